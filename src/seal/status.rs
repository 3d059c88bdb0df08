//! Status from what was seen and what was done. Conditions are computed here and nowhere else.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    Fault, FaultKind, backoff,
    checks::{Findings, check},
    digest::{seal_inputs, shares_inputs},
    model::{Model, Seal, Target},
    native,
    observed::{Delivered, Memory, Observed},
    outcome::{Described, Outcomes, TargetOutcome},
    plan::{Need, PROBE_INTERVAL, delivered, is_told_of_the_past, need, plan, probe_due},
    pods::{TargetPods, has_keys, pods},
    rollout::{behind, look_again},
    store::{
        StoreFacts, sets,
        standing::{needs_store, next_due},
    },
    unseal::{PodRecord, verdict},
};
use crate::api::{
    Reason, SealConfigStatus, SealHealth, SealStatus, Summary, TargetStatus, condition_types as types,
};

mod keys;

use keys::{key_fault, key_status, rotation_fault};

/// What a condition says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) status: &'static str,
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Verdict {
    pub(super) fn yes(message: impl Into<String>) -> Self {
        Self {
            status: "True",
            reason: Reason::Ready,
            message: message.into(),
        }
    }

    pub(super) fn no(fault: &Fault) -> Self {
        Self {
            status: "False",
            reason: fault.reason,
            message: fault.message.clone(),
        }
    }

    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Self {
            status: "Unknown",
            reason: Reason::Pending,
            message: message.into(),
        }
    }
}

/// The status of an object whose spec or sources cannot be read: what was known stays, the conditions tell.
pub fn failed(
    previous: &SealConfigStatus,
    generation: i64,
    fault: &Fault,
    now: Timestamp,
) -> SealConfigStatus {
    let mut status = previous.clone();
    status.observed_generation = Some(generation);
    fail(&mut status.conditions, generation, fault, now);
    status
}

/// Says that nothing goes on, and why.
pub(super) fn fail(conditions: &mut Vec<Condition>, generation: i64, fault: &Fault, now: Timestamp) {
    set(conditions, types::READY, &Verdict::no(fault), generation, now);
    if needs_a_human(fault) {
        set(conditions, types::STALLED, &stalled(fault), generation, now);
    } else {
        conditions.retain(|condition| condition.type_ != types::STALLED);
    }
}

/// The status of a suspended object: `Ready` keeps its status and says why nothing moves.
pub fn suspended(previous: &SealConfigStatus, generation: i64, now: Timestamp) -> SealConfigStatus {
    let mut status = previous.clone();
    status.observed_generation = Some(generation);
    suspend(
        &mut status.conditions,
        generation,
        "spec.suspend is true: nothing is opened, delivered, restarted or unsealed until it is false",
        now,
    );
    status
}

/// `Ready` keeps its status and says why nothing moves.
pub(super) fn suspend(conditions: &mut Vec<Condition>, generation: i64, message: &str, now: Timestamp) {
    let kept = conditions
        .iter()
        .find(|c| c.type_ == types::READY)
        .map(|c| c.status.clone());
    let verdict = Verdict {
        status: match kept.as_deref() {
            Some("True") => "True",
            Some("False") => "False",
            _ => "Unknown",
        },
        reason: Reason::Suspended,
        message: message.into(),
    };
    set(conditions, types::READY, &verdict, generation, now);
    conditions.retain(|condition| condition.type_ != types::STALLED);
}

/// The status after a plan was carried out. `observed.memory` is the memory after it.
pub fn status(
    model: &Model,
    observed: &Observed,
    findings: &Findings,
    outcomes: &Outcomes,
) -> SealConfigStatus {
    let seals: Vec<_> = model
        .seals
        .iter()
        .map(|seal| seal_status(model, seal, observed, findings, outcomes))
        .collect();
    let keys: Vec<_> = model
        .keys
        .iter()
        .map(|key| key_status(model, key, observed, findings, outcomes))
        .collect();
    let mut told_apart = Vec::new();
    let mut targets = Vec::new();
    for target in &model.targets {
        let recorded = target_status(target, observed, outcomes);
        let delivered = delivered(target, observed);
        let delivered = Delivered {
            content_changed: recorded
                .delivered_time
                .as_ref()
                .map(|time| time.0)
                .or(delivered.content_changed),
            ..delivered
        };
        let found = pods(target, &observed.pods, &delivered);
        targets.push(TargetStatus {
            pods: target.selector.is_some().then(|| found.counts()),
            ..recorded
        });
        told_apart.push((target, delivered, found));
    }

    let key_faults: Vec<(&str, Option<Fault>)> = model
        .keys
        .iter()
        .zip(&keys)
        .map(|(key, status)| {
            (
                key.name.as_str(),
                key_fault(model, key, status, observed, findings),
            )
        })
        .collect();
    let target_faults: Vec<Fault> = model
        .targets
        .iter()
        .filter_map(|target| target_fault(model, target, observed, findings, outcomes))
        .collect();

    let mut verdicts: BTreeMap<&str, Verdict> = BTreeMap::new();
    verdicts.insert(
        types::SEALS_HEALTHY,
        seals_verdict(model, &seals, observed, findings),
    );
    if !model.keys.is_empty() {
        let fault = key_faults.iter().find_map(|(_, fault)| fault.as_ref());
        verdicts.insert(
            types::KEYS_UNWRAPPED,
            fault.map_or_else(|| Verdict::yes("every key is open"), Verdict::no),
        );
    }
    if !model.targets.is_empty() {
        let verdict = target_faults
            .first()
            .map_or_else(|| Verdict::yes("every Secret holds what it should"), Verdict::no);
        verdicts.insert(types::SECRETS_DELIVERED, verdict);
    }
    if model.targets.iter().any(|target| target.selector.is_some()) {
        let waits = rotation_fault(model, observed, findings);
        verdicts.insert(
            types::PODS_CURRENT,
            pods_verdict(&told_apart, outcomes, waits.as_ref()),
        );
    }
    let servers = model.unseal.as_ref().map(|_| outcomes.unseal.as_slice());
    let unseal_fault = servers.and_then(verdict::fault);
    if let Some(pods) = servers {
        verdicts.insert(types::UNSEALED, unsealed_verdict(pods, unseal_fault.as_ref()));
    }
    let ready = ready(model, &verdicts);
    let blocking = key_faults
        .iter()
        .filter_map(|(_, fault)| fault.clone())
        .chain(target_faults);
    let blocking = blocking
        .chain(seal_faults(model, observed, findings))
        .chain(unseal_fault)
        .find(|fault| fault.reason == ready.reason);
    if let Some(fault) = blocking.filter(|fault| ready.status == "False" && needs_a_human(fault)) {
        verdicts.insert(types::STALLED, stalled(&fault));
    }
    verdicts.insert(types::READY, ready);

    let mut conditions = observed.status.conditions.clone();
    conditions.retain(|condition| verdicts.contains_key(condition.type_.as_str()));
    for (kind, verdict) in verdicts {
        set(&mut conditions, kind, &verdict, model.generation, observed.now);
    }
    let summary = summary(&seals, &key_faults, &targets);
    SealConfigStatus {
        observed_generation: Some(model.generation),
        conditions,
        summary: Some(summary),
        seals,
        keys,
        targets,
        unseal: servers.map(|pods| {
            let before = observed.status.unseal.as_ref();
            let cluster =
                before.and_then(|before| Some((before.cluster_id.clone()?, before.shares_digest.clone()?)));
            let known = verdict::Known {
                cluster,
                shares: shares_inputs(model, &findings.key_inputs),
                token_since: sets::token_since(&observed.store),
            };
            verdict::status(pods, known)
        }),
    }
}

fn unsealed_verdict(pods: &[PodRecord], fault: Option<&Fault>) -> Verdict {
    match fault {
        Some(fault) => Verdict::no(fault),
        None if pods.is_empty() => Verdict::unknown("unseal.podSelector selects no pod now"),
        None if verdict::all_seen(pods) => match verdict::migrating(pods).as_slice() {
            [] => Verdict::yes("every server is unsealed"),
            migrating => Verdict {
                status: "True",
                reason: Reason::Migrating,
                message: format!(
                    "every server is unsealed; {} still between two seals: when all standbys were restarted, step the active \
                     server down and restart it, then take the old seal out of the configuration",
                    match migrating {
                        [one] => format!("pod {one} is"),
                        several => format!("pods {} are", several.join(", ")),
                    }
                ),
            },
        },
        None => Verdict::unknown("not every server has been asked yet"),
    }
}

pub(super) fn needs_a_human(fault: &Fault) -> bool {
    matches!(
        fault.kind,
        FaultKind::Invalid | FaultKind::Denied | FaultKind::Nearby
    )
}

pub(super) fn stalled(fault: &Fault) -> Verdict {
    Verdict {
        status: "True",
        reason: fault.reason,
        message: fault.message.clone(),
    }
}

fn summary(seals: &[SealStatus], keys: &[(&str, Option<Fault>)], targets: &[TargetStatus]) -> Summary {
    let healthy = seals
        .iter()
        .filter(|seal| seal.state == SealHealth::Healthy)
        .count();
    // Those of the spec: what servers answered is not counted among them.
    let open = keys
        .iter()
        .filter(|(name, fault)| fault.is_none() && sets::class(name).is_none())
        .count();
    let counts = targets.iter().filter_map(|target| target.pods);
    let (using, current) = counts.fold((0, 0), |(using, current), pods| {
        (using + pods.using, current + pods.current)
    });
    Summary {
        seals: format!("{healthy}/{}", seals.len()),
        keys: open.to_string(),
        pods: format!("{current}/{using}"),
    }
}

pub(super) fn set(
    conditions: &mut Vec<Condition>,
    kind: &str,
    verdict: &Verdict,
    generation: i64,
    now: Timestamp,
) {
    let reason = verdict.reason.as_str().to_owned();
    let previous = conditions.iter().position(|condition| condition.type_ == kind);
    // 32,768 characters are what metav1.Condition allows; our sentences are far from it.
    let message: String = verdict.message.chars().take(4096).collect();
    let since = previous
        .map(|at| &conditions[at])
        .filter(|condition| condition.status == verdict.status)
        .map_or_else(|| second(now), |condition| condition.last_transition_time.clone());
    let condition = Condition {
        type_: kind.to_owned(),
        status: verdict.status.to_owned(),
        reason,
        message,
        observed_generation: Some(generation),
        last_transition_time: since,
    };
    match previous {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// Kubernetes keeps whole seconds.
pub(super) fn second(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The unresolved fault of a seal: a closed gate, a call that failed, a key in a bad state.
fn seal_fault(model: &Model, seal: &Seal, observed: &Observed, findings: &Findings) -> Option<Fault> {
    let fault = own_fault(model, seal, observed, findings)?;
    Some(native::for_pods(model, seal, fault, &observed.pods))
}

fn own_fault(model: &Model, seal: &Seal, observed: &Observed, findings: &Findings) -> Option<Fault> {
    if let Some(fault) = findings.seals.get(&seal.name) {
        return Some(fault.clone());
    }
    let failing_copy = model.keys.iter().find_map(|key| {
        let id = (key.name.clone(), seal.name.clone());
        let failure = observed.memory.copies.get(&id)?;
        let same = findings.copy_inputs.get(&id) == Some(&failure.inputs);
        (same && !failure.fault.reason.is_of_a_copy()).then(|| failure.fault.clone())
    });
    let failing_wrap = || {
        let failures = model.keys.iter().filter_map(|key| {
            let id = (key.name.clone(), seal.name.clone());
            observed.memory.wraps.get(&id)
        });
        let mut same = failures.filter(|failure| failure.inputs == seal_inputs(seal));
        same.next().map(|failure| failure.fault.clone())
    };
    failing_copy.or_else(failing_wrap).or_else(|| {
        let failure = observed.memory.probes.get(&seal.name)?;
        (failure.inputs == seal_inputs(seal)).then(|| failure.fault.clone())
    })
}

fn seal_faults(model: &Model, observed: &Observed, findings: &Findings) -> Vec<Fault> {
    model
        .seals
        .iter()
        .filter_map(|seal| Some(seal_fault(model, seal, observed, findings)?.of(label(seal))))
        .collect()
}

fn label(seal: &Seal) -> String {
    format!("seal {:?}", seal.name)
}

fn seal_status(
    model: &Model,
    seal: &Seal,
    observed: &Observed,
    findings: &Findings,
    outcomes: &Outcomes,
) -> SealStatus {
    let configured = seal.cloud.configured_key();
    let previous = observed
        .status
        .seals
        .iter()
        .find(|status| status.name == seal.name && status.configured_key_id.as_ref() == Some(&configured))
        .cloned()
        .unwrap_or_default();
    let inputs = seal_inputs(seal);
    // The pin of account and region outlives a change of credentials; what was seen with them does not.
    let previous = if previous.inputs_digest.as_ref() == Some(&inputs) {
        previous
    } else {
        SealStatus {
            key_id: previous.key_id,
            key_version: previous.key_version,
            ..SealStatus::default()
        }
    };
    let outcome = outcomes.seals.get(&seal.name);
    let described = outcome.and_then(|outcome| outcome.described.as_ref());
    let (key_id, key_version, probed) = match described {
        Some(Described::Key { arn, version, at, .. }) => {
            (Some(arn.clone()), version.clone(), Some(second(*at)))
        }
        Some(Described::NotPermitted { at }) => (None, None, Some(second(*at))),
        Some(Described::Failed(_)) | None => (None, None, None),
    };
    let fault = match described {
        Some(Described::Key { fault, .. }) => fault.clone(),
        _ => None,
    };
    let asked = described.is_some_and(|described| matches!(described, Described::Key { .. }));
    let opened = outcome.is_some_and(|outcome| outcome.opened);
    let (state, reason, message) = match seal_fault(model, seal, observed, findings).or(fault) {
        Some(fault) => (
            SealHealth::Unhealthy,
            Some(fault.reason.to_string()),
            Some(fault.message),
        ),
        None if asked && model.is_native(seal) => (SealHealth::Healthy, None, Some(native::proven(seal))),
        None if asked || opened => (SealHealth::Healthy, None, None),
        // A bad state of the key that DescribeKey told stays until DescribeKey tells otherwise.
        None if previous.state == SealHealth::Unhealthy
            && previous.last_probe_time.is_some()
            && probed.is_none() =>
        {
            (previous.state, previous.reason.clone(), previous.message.clone())
        }
        None if previous.state == SealHealth::Unhealthy => (SealHealth::Unknown, None, None),
        None => (previous.state, previous.reason.clone(), previous.message.clone()),
    };
    SealStatus {
        name: seal.name.clone(),
        provider: seal.cloud.provider().to_owned(),
        // A key that is told without a version has none to compare.
        key_version: if asked { key_version } else { previous.key_version },
        key_id: key_id.or(previous.key_id),
        configured_key_id: Some(configured),
        inputs_digest: Some(inputs),
        identity: outcome
            .and_then(|outcome| outcome.identity.clone())
            .or(previous.identity),
        credential_source: Some(seal.cloud.credential_source()),
        state,
        last_probe_time: probed.or(previous.last_probe_time),
        reason,
        message,
    }
}

fn seals_verdict(model: &Model, seals: &[SealStatus], observed: &Observed, findings: &Findings) -> Verdict {
    if let Some(fault) = seal_faults(model, observed, findings).first() {
        return Verdict::no(fault);
    }
    let in_state = |state| seals.iter().find(move |seal| seal.state == state);
    if let Some(seal) = in_state(SealHealth::Unhealthy) {
        let message = seal.message.clone().unwrap_or_default();
        let word = seal.reason.as_deref().unwrap_or_default();
        let reason = Reason::ALL.iter().copied().find(|reason| reason.as_str() == word);
        return Verdict {
            status: "False",
            reason: reason.unwrap_or(Reason::KeyUnusable),
            message: format!("seal {:?}: {message}", seal.name),
        };
    }
    match in_state(SealHealth::Unknown) {
        Some(seal) => Verdict::unknown(format!("seal {:?} has not been used yet", seal.name)),
        None => Verdict::yes("every seal works"),
    }
}

fn target_status(target: &Target, observed: &Observed, outcomes: &Outcomes) -> TargetStatus {
    let previous = observed
        .status
        .targets
        .iter()
        .find(|status| status.name == target.name && status.secret == target.secret)
        .cloned()
        .unwrap_or_default();
    let base = TargetStatus {
        name: target.name.clone(),
        secret: target.secret.clone(),
        ..previous
    };
    match outcomes.targets.get(&target.name) {
        Some(TargetOutcome::Delivered {
            resource_version,
            inputs,
            content_changed,
            deliveries,
        }) => TargetStatus {
            deliveries: *deliveries,
            resource_version: Some(resource_version.clone()),
            inputs_digest: Some(inputs.clone()),
            delivered_time: Some(second(*content_changed)),
            ..base
        },
        Some(TargetOutcome::Failed(_)) | None => base,
    }
}

fn target_fault(
    model: &Model,
    target: &Target,
    observed: &Observed,
    findings: &Findings,
    outcomes: &Outcomes,
) -> Option<Fault> {
    let part = format!("target {:?}", target.name);
    match outcomes.targets.get(&target.name) {
        Some(TargetOutcome::Delivered { .. }) => None,
        Some(TargetOutcome::Failed(fault)) => Some(fault.clone().of(part)),
        None => match need(model, target, observed, findings) {
            Need::Nothing => None,
            Need::Wait(fault, _) => Some(fault.of(part)),
            Need::Deliver(_) => Some(
                Fault::transient(
                    Reason::Pending,
                    "it waits for its keys; what was delivered before is untouched",
                )
                .of(part),
            ),
        },
    }
}

fn pods_verdict(
    targets: &[(&Target, Delivered, TargetPods<'_>)],
    outcomes: &Outcomes,
    rotation: Option<&Fault>,
) -> Verdict {
    let names = |pods: &[&super::observed::PodFacts]| {
        let mut names: Vec<_> = pods.iter().take(3).map(|pod| pod.name.as_str()).collect();
        if pods.len() > 3 {
            names.push("…");
        }
        names.join(", ")
    };
    for (target, _, pods) in targets {
        if !pods.not_using.is_empty() {
            return Verdict::no(&Fault::denied(
                Reason::PodsNotUsingSecret,
                format!(
                    "target {:?} selects pods that neither mount nor read Secret {}: {}; add the Secret to their spec, \
                     or narrow podSelector",
                    target.name,
                    target.secret,
                    names(&pods.not_using)
                ),
            ));
        }
    }
    if let Some((target, fault)) = outcomes.restarts.iter().next() {
        return Verdict::no(&fault.clone().of(format!("target {target:?}")));
    }
    if let Some(fault) = rotation {
        return Verdict::no(fault);
    }
    for (target, delivered, pods) in targets {
        if !pods.outdated.is_empty() {
            let text_only = pods
                .outdated
                .iter()
                .all(|pod| has_keys(pod, &target.secret, delivered));
            let fix = if text_only || delivered.count <= 1 {
                "restart them; only a change of keys restarts a workload by itself"
            } else if target.restart {
                "their workload is rolled if it is annotated with autounseal.dev/restart: allowed and its template uses the \
                 Secret; else restart them"
            } else {
                "restart them, or set onChange: Restart and annotate their workload with autounseal.dev/restart: allowed"
            };
            return Verdict::no(&Fault::denied(
                Reason::PodsOutdated,
                format!(
                    "target {:?}: pods started before Secret {} last changed: {}; {fix}",
                    target.name,
                    target.secret,
                    names(&pods.outdated)
                ),
            ));
        }
    }
    Verdict::yes("every pod runs with what was delivered")
}

fn ready(model: &Model, verdicts: &BTreeMap<&str, Verdict>) -> Verdict {
    let said = |kind: &str| {
        verdicts
            .get(kind)
            .filter(|verdict| verdict.status == "False")
            .cloned()
    };
    // A target that waits for its keys says less than the key that does not open.
    if let Some(verdict) = said(types::KEYS_UNWRAPPED).or_else(|| said(types::SECRETS_DELIVERED)) {
        return verdict;
    }
    if let Some(verdict) = verdicts.get(types::UNSEALED)
        && verdict.status != "True"
    {
        return verdict.clone();
    }
    if model.keys.is_empty() {
        return verdicts
            .get(types::SEALS_HEALTHY)
            .cloned()
            .unwrap_or_else(|| Verdict::yes("nothing to do"));
    }
    Verdict::yes("every key is open and delivered")
}

/// When to look again without being told: the earliest retry, probe or restart that is still to come.
///
/// What is due but was not done now (its seal is barred, its source is gone) waits for a change, not for a time.
pub fn next_look(
    model: &Model,
    observed: &Observed,
    findings: &Findings,
    outcomes: &Outcomes,
) -> Option<Duration> {
    let memory = &observed.memory;
    let failures = memory
        .copies
        .values()
        .chain(memory.keys.values())
        .chain(memory.stored.values())
        .chain(memory.wraps.values())
        .chain(memory.targets.values());
    let mut times: Vec<Timestamp> = failures.map(|failure| failure.retry_at).collect();
    if let StoreFacts::Found(store) = &observed.store {
        let sections = model
            .keys
            .iter()
            .filter_map(|key| Some((key, &store.header.keys.get(&key.name)?.section)));
        times.extend(sections.filter_map(|(key, section)| next_due(key, section, observed)));
    }
    // What was learned just now may make more to do: a KMS key that turned out to be another one, say.
    if needs_store(model) {
        let next = plan(model, observed, &check(model, observed));
        let stored = |name: &str| model.keys.iter().any(|key| key.name == name && !key.is_brought());
        // Another seal that failed and is to be asked again, where nothing is to be delivered.
        let again = next.deliveries.is_empty() && next.opens.iter().any(|open| stored(&open.key));
        if again || !next.tends.is_empty() {
            return Some(Duration::from_millis(50));
        }
    }
    for seal in model
        .seals
        .iter()
        .filter(|seal| !findings.seals.contains_key(&seal.name))
    {
        if is_told_of_the_past(seal, observed) {
            let soon = SignedDuration::from_secs(1);
            times.extend(observed.now.checked_add(soon));
            continue;
        }
        let due = probe_due(seal, observed);
        // Spread over a quarter of the interval, so that objects that started together drift apart.
        let failing = memory.probes.contains_key(&seal.name);
        let spread = if failing {
            0.0
        } else {
            PROBE_INTERVAL.as_secs_f64() * 0.25 * observed.jitter
        };
        let spread = SignedDuration::try_from_secs_f64(spread).unwrap_or_default();
        times.push(due.saturating_add(spread).unwrap_or(due));
    }
    let repairs = memory.repairs.values();
    times.extend(repairs.filter_map(|repairs| repairs.contested_until(observed.now)));
    for target in model.targets.iter().filter(|target| target.restart) {
        let Some(secret) = observed.secrets.get(&target.secret) else {
            continue;
        };
        let delivered = &secret.delivered;
        let using = pods(target, &observed.pods, delivered).using();
        if let Some(changed) = delivered.keys_changed
            && !behind(&using, &target.secret, delivered).is_empty()
        {
            times.extend(
                observed
                    .now
                    .checked_add(look_again(changed, observed.now, observed.jitter)),
            );
        }
    }
    let soonest = times.into_iter().filter(|at| *at > observed.now).min().map(|at| {
        Duration::try_from(at.duration_since(observed.now))
            .unwrap_or_default()
            .max(Duration::from_millis(50))
    });
    let restart = outcomes
        .restarts
        .values()
        .map(|fault| backoff(fault, 2, observed.jitter))
        .min();
    [soonest, restart].into_iter().flatten().min()
}

/// Forgets failures of what the spec no longer holds.
pub fn prune(memory: &mut Memory, model: &Model, findings: &Findings) {
    memory
        .copies
        .retain(|id, failure| findings.copy_inputs.get(id) == Some(&failure.inputs));
    memory
        .keys
        .retain(|key, failure| findings.key_inputs.get(key) == Some(&failure.inputs));
    memory
        .stored
        .retain(|key, _| findings.key_inputs.contains_key(key));
    memory.wraps.retain(|(key, seal), failure| {
        let seal = model.seal(seal).filter(|seal| seal.wraps);
        findings.key_inputs.contains_key(key) && seal.is_some_and(|seal| seal_inputs(seal) == failure.inputs)
    });
    memory
        .targets
        .retain(|target, failure| findings.target_inputs.get(target) == Some(&failure.inputs));
    memory
        .marks
        .retain(|key, (inputs, _)| findings.key_inputs.get(key) == Some(inputs));
    memory
        .repairs
        .retain(|target, _| findings.target_inputs.contains_key(target));
    memory.probes.retain(|name, failure| {
        model
            .seal(name)
            .is_some_and(|seal| seal_inputs(seal) == failure.inputs)
    });
}
