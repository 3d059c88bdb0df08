//! Carries a plan out: the only place of the controller where key bytes exist.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use jiff::SignedDuration;

use super::{context::Context, deliver, restart};
use crate::{
    api::Reason,
    provider::{Kms, Opened, Tenant},
    seal::{
        Fault, KeyBytes, backoff,
        check_value::{Binding, check_value},
        checks::{Findings, key_granted},
        consumer_id::ConsumerName,
        digest::seal_inputs,
        model::{Copy, Key, Model, Seal, Source},
        observed::{Failure, Observed, SourceFacts},
        outcome::{Described, KeyOutcome, Outcomes, TargetOutcome},
        plan::{Open, Plan},
    },
};

/// A key that was opened and agreed on, until its Secrets are written.
pub struct Ready {
    /// The bytes.
    pub bytes: KeyBytes,
    /// How the consumer names it.
    pub consumer_key_id: String,
    /// One-way, to tell a change of the bytes.
    pub mark: String,
}

/// Carries a plan out and remembers what failed.
pub async fn apply(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    findings: &Findings,
    plan: &Plan,
) -> Outcomes {
    let mut outcomes = Outcomes::default();
    probe(context, model, observed, plan, &mut outcomes).await;
    let keys = open_all(context, model, observed, findings, plan, &mut outcomes).await;
    for delivery in &plan.deliveries {
        let Some(target) = model.targets.iter().find(|target| target.name == delivery.target) else {
            continue;
        };
        // A key that did not open leaves the Secret as it is; the key's own condition says why.
        if !delivery.keys.iter().all(|key| keys.contains_key(key)) {
            continue;
        }
        let outcome = match deliver::deliver(context, model, target, delivery, &keys, observed).await {
            Ok(done) => {
                observed.memory.targets.remove(&target.name);
                if delivery.repair {
                    let minute = SignedDuration::from_secs(60);
                    let now = observed.now;
                    let repairs = observed.memory.repairs.entry(target.name.clone()).or_default();
                    repairs.retain(|at| now.duration_since(*at) < minute);
                    repairs.push(now);
                }
                done
            }
            Err(fault) => {
                let memory = &mut observed.memory.targets;
                fail(
                    memory,
                    target.name.clone(),
                    &delivery.inputs,
                    &fault,
                    observed.now,
                    observed.jitter,
                );
                TargetOutcome::Failed(fault)
            }
        };
        outcomes.targets.insert(target.name.clone(), outcome);
    }
    drop(keys);
    restart::restart(context, model, observed, &mut outcomes).await;
    outcomes
}

fn fail<K: Ord>(
    memory: &mut BTreeMap<K, Failure>,
    what: K,
    inputs: &str,
    fault: &Fault,
    now: jiff::Timestamp,
    jitter: f64,
) {
    let times = memory
        .get(&what)
        .filter(|failure| failure.inputs == inputs)
        .map_or(0, |failure| failure.times)
        + 1;
    let wait =
        SignedDuration::try_from(backoff(fault, times, jitter)).unwrap_or(SignedDuration::from_secs(60));
    let retry_at = now.saturating_add(wait).unwrap_or(now);
    memory.insert(
        what,
        Failure {
            inputs: inputs.to_owned(),
            fault: fault.clone(),
            times,
            retry_at,
        },
    );
}

async fn connect(context: &Context, model: &Model, seal: &Seal) -> Result<Kms, Fault> {
    let tenant = Tenant {
        namespace: &model.id.namespace,
        name: &model.id.name,
    };
    context.clouds.connect(seal, tenant).await
}

async fn probe(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    plan: &Plan,
    outcomes: &mut Outcomes,
) {
    let seals = model.seals.iter().filter(|seal| plan.probes.contains(&seal.name));
    let asked = seals.map(|seal| async move {
        let (identity, described) = match connect(context, model, seal).await {
            Ok(kms) => (kms.identity(), kms.describe().await),
            Err(fault) => (None, Err(fault)),
        };
        (seal, identity, described)
    });
    for (seal, identity, described) in join_all(asked).await {
        let described = match described {
            Ok(description) => Described::Key {
                arn: description.key,
                at: description.at,
                fault: description.fault,
            },
            Err(fault) if fault.reason == Reason::AccessDenied => {
                Described::NotPermitted { at: observed.now }
            }
            Err(fault) => Described::Failed(fault),
        };
        let described = pinned(observed, seal, described);
        let memory = &mut observed.memory.probes;
        match &described {
            Described::Failed(fault) => {
                let inputs = seal_inputs(seal);
                fail(
                    memory,
                    seal.name.clone(),
                    &inputs,
                    fault,
                    observed.now,
                    observed.jitter,
                );
            }
            Described::Key { .. } | Described::NotPermitted { .. } => {
                memory.remove(&seal.name);
            }
        }
        let outcome = outcomes.seals.entry(seal.name.clone()).or_default();
        outcome.identity = identity.or_else(|| outcome.identity.take());
        outcome.described = Some(described);
    }
}

/// Account and region are pinned at first use and renewed only by a changed `kmsKeyID` (security rule S4).
fn pinned(observed: &Observed, seal: &Seal, described: Described) -> Described {
    let Described::Key { arn, .. } = &described else {
        return described;
    };
    let configured = seal.cloud.configured_key();
    let recorded = observed
        .status
        .seals
        .iter()
        .find(|status| status.name == seal.name && status.configured_key_id.as_ref() == Some(&configured))
        .and_then(|status| status.key_id.as_ref());
    let place = |arn: &str| arn.split(':').take(5).map(ToOwned::to_owned).collect::<Vec<_>>();
    match recorded {
        Some(before) if place(before) != place(arn) => Described::Failed(Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "{configured} led to {before} and now leads to {arn}, in another account or region; if that is meant, \
                 name the new key in kmsKeyID"
            ),
        )),
        _ => described,
    }
}

async fn open_all(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    findings: &Findings,
    plan: &Plan,
    outcomes: &mut Outcomes,
) -> BTreeMap<String, Ready> {
    let mut ready = BTreeMap::new();
    let opening = plan.opens.iter().filter_map(|open| {
        let key = model.keys.iter().find(|key| key.name == open.key)?;
        let observed = &*observed;
        Some(async move { (key, open_one(context, model, observed, key, open).await) })
    });
    for (key, attempts) in join_all(opening).await.into_iter().collect::<Vec<_>>() {
        let mut opened = Vec::new();
        for (seal, identity, result) in attempts {
            let id = (key.name.clone(), seal.clone());
            let outcome = outcomes.seals.entry(seal.clone()).or_default();
            outcome.identity = identity.or_else(|| outcome.identity.take());
            match result {
                Ok(bytes) => {
                    outcome.opened = true;
                    observed.memory.copies.remove(&id);
                    opened.push((seal, bytes));
                }
                Err(fault) => {
                    let inputs = findings.copy_inputs.get(&id).cloned().unwrap_or_default();
                    fail(
                        &mut observed.memory.copies,
                        id,
                        &inputs,
                        &fault,
                        observed.now,
                        observed.jitter,
                    );
                }
            }
        }
        let Some((first_seal, _)) = opened.first() else {
            continue;
        };
        let first_seal = first_seal.clone();
        let inputs = findings.key_inputs.get(&key.name).cloned().unwrap_or_default();
        let known = observed
            .memory
            .marks
            .get(&key.name)
            .filter(|(of, _)| *of == inputs)
            .map(|(_, mark)| mark.clone());
        match agree(model, key, &opened, known.as_deref(), &inputs) {
            Err(fault) => {
                fail(
                    &mut observed.memory.keys,
                    key.name.clone(),
                    &inputs,
                    &fault,
                    observed.now,
                    observed.jitter,
                );
            }
            Ok(mark) => {
                observed.memory.keys.remove(&key.name);
                if !is_of_inputs(&mark) {
                    observed
                        .memory
                        .marks
                        .insert(key.name.clone(), (inputs, mark.clone()));
                }
                let agreed: BTreeSet<String> = opened.iter().map(|(seal, _)| seal.clone()).collect();
                let bytes = opened.swap_remove(0).1;
                let name = ConsumerName {
                    key: &key.name,
                    purpose: key.purpose,
                    consumer_key_id: key.consumer_key_id.as_deref(),
                    brought: true,
                    version: 1,
                };
                let consumer_key_id = name.id(&bytes);
                outcomes.keys.insert(
                    key.name.clone(),
                    KeyOutcome {
                        agreed,
                        opened_by: Some(first_seal),
                        consumer_key_id: Some(consumer_key_id.clone()),
                    },
                );
                ready.insert(
                    key.name.clone(),
                    Ready {
                        bytes,
                        consumer_key_id,
                        mark,
                    },
                );
            }
        }
    }
    ready
}

type Attempt = (String, Option<String>, Result<KeyBytes, Fault>);

async fn open_one(
    context: &Context,
    model: &Model,
    observed: &Observed,
    key: &Key,
    open: &Open,
) -> Vec<Attempt> {
    let copies = open
        .seals
        .iter()
        .filter_map(|seal| key.copies.iter().find(|copy| copy.seal == *seal));
    if open.all {
        return join_all(copies.map(|copy| open_copy(context, model, observed, copy))).await;
    }
    let mut attempts = Vec::new();
    for copy in copies {
        let attempt = open_copy(context, model, observed, copy).await;
        let done = attempt.2.is_ok();
        attempts.push(attempt);
        if done {
            break;
        }
    }
    attempts
}

async fn open_copy(context: &Context, model: &Model, observed: &Observed, copy: &Copy) -> Attempt {
    let Some(seal) = model.seal(&copy.seal) else {
        let fault = Fault::invalid(
            Reason::InvalidSpec,
            "the copy names a seal that is not in spec.seals",
        );
        return (copy.seal.clone(), None, Err(fault));
    };
    match connect(context, model, seal).await {
        Err(fault) => (seal.name.clone(), None, Err(fault)),
        Ok(kms) => (
            seal.name.clone(),
            kms.identity(),
            unwrap(model, observed, seal, copy, &kms).await,
        ),
    }
}

async fn unwrap(
    model: &Model,
    observed: &Observed,
    seal: &Seal,
    copy: &Copy,
    kms: &Kms,
) -> Result<KeyBytes, Fault> {
    let ciphertext = match &copy.source {
        Source::Inline(ciphertext) => ciphertext,
        Source::Entry(entry) => match observed.sources.get(entry) {
            Some(SourceFacts::Found(ciphertext)) => ciphertext,
            _ => {
                return Err(Fault::invalid(
                    Reason::SourceMissing,
                    "the source of the copy is not there",
                ));
            }
        },
    };
    // Through the operator's identity nothing is sent before the key is known to be granted, as far as anybody tells;
    // what Decrypt says it used is checked again (security rules S3, S4).
    if seal.cloud.is_operators()
        && let Ok(description) = kms.describe().await
    {
        key_granted(model, seal, copy, &description.key, &observed.namespace)?;
        if let Described::Failed(fault) = pinned(
            observed,
            seal,
            Described::Key {
                arn: description.key,
                at: description.at,
                fault: None,
            },
        ) {
            return Err(fault);
        }
    }
    let Opened { key, key_id } = kms.unwrap(copy.format, ciphertext, &copy.context).await?;
    key_granted(model, seal, copy, &key_id, &observed.namespace)?;
    Ok(key)
}

/// Marks of guessable keys speak of their inputs only: a mark of such bytes would let its readers test guesses.
const INPUTS_MARK: &str = "inputs:";

fn is_of_inputs(mark: &str) -> bool {
    mark.starts_with(INPUTS_MARK)
}

/// Holds that all copies are the same key, the one that is pinned and the one seen before. Returns its mark.
fn agree(
    model: &Model,
    key: &Key,
    opened: &[(String, KeyBytes)],
    known: Option<&str>,
    inputs: &str,
) -> Result<String, Fault> {
    let Some((first_seal, first)) = opened.first() else {
        return Err(Fault::transient(Reason::Pending, "no copy was opened"));
    };
    let place = Binding {
        kind: "SealConfig",
        namespace: &model.id.namespace,
        name: &model.id.name,
        key: &key.name,
    };
    if let Some((other, _)) = opened.iter().find(|(_, bytes)| !bytes.same_as(first)) {
        return Err(Fault::invalid(
            Reason::CopiesDiffer,
            format!(
                "the copies for seals {first_seal:?} and {other:?} hold different keys, so none of them is delivered; find \
                 out which one is right and wrap it again for the other"
            ),
        ));
    }
    let value = check_value(first, &place);
    if let Some(pinned) = &key.check_value {
        let fits = value.as_ref().is_some_and(|value| {
            aws_lc_rs::constant_time::verify_slices_are_equal(value.as_bytes(), pinned.as_bytes()).is_ok()
        });
        if !fits {
            return Err(Fault::invalid(
                Reason::CheckValueDiffers,
                "the key is not the one that checkValue pins; bring the right copy, or correct checkValue to what \
                 `autounseal wrap` prints for it (keys under 16 bytes have none)",
            ));
        }
    }
    match (value, known) {
        (Some(value), Some(known)) if value != known => Err(Fault::invalid(
            Reason::CopiesDiffer,
            format!(
                "the copy for seal {first_seal:?} holds another key than the copies opened before; find out which one is \
                 right and wrap it again for the other"
            ),
        )),
        (Some(value), _) => Ok(value),
        (None, _) => Ok(format!("{INPUTS_MARK}{inputs}")),
    }
}
