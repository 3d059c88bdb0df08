//! Carries a plan out: the only place of the controller where key bytes exist.

use std::collections::BTreeMap;

use futures::{
    StreamExt,
    future::{Either, select},
    stream::FuturesUnordered,
};
use jiff::SignedDuration;

use super::{
    context::Context,
    deliver,
    hedge::HEDGE,
    keep,
    open::{Held, Ready, open_all},
    preflight, restart,
};
use crate::{
    api::Reason,
    provider::{Description, Kms, Tenant},
    seal::{
        Fault, backoff, checks,
        checks::Findings,
        digest::seal_inputs,
        model::{Model, Seal},
        observed::{Failure, NamespaceFacts, Observed},
        outcome::{Described, Outcomes, TargetOutcome},
        plan::{self, Delivery, Open, Plan, Tend},
        store::StoreFacts,
    },
};

/// Carries a plan out and remembers what failed. `findings` are those of the wrapped store as it is afterwards.
pub async fn apply(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    findings: &mut Findings,
    plan: &Plan,
) -> Outcomes {
    let mut outcomes = Outcomes::default();
    let mut answers = Vec::new();
    let now = observed.now;
    {
        let facts = observed.namespace.clone();
        let mut asking: FuturesUnordered<_> = model
            .seals
            .iter()
            .filter(|seal| plan.probes.contains(&seal.name))
            .map(|seal| ask(context, model, seal, &facts, now))
            .collect();
        let asked = async {
            while let Some(answer) = asking.next().await {
                answers.push(answer);
            }
        };
        let busy = !plan.tends.is_empty() || !plan.opens.is_empty() || !plan.deliveries.is_empty();
        let work = work(context, model, observed, findings, plan, &mut outcomes);
        let (asked, work) = (std::pin::pin!(asked), std::pin::pin!(work));
        match select(asked, work).await {
            Either::Left(((), work)) => work.await,
            // A KMS that is silent delays nothing but the word on its own key.
            Either::Right(((), asked)) if busy => {
                let _ = tokio::time::timeout(HEDGE, asked).await;
            }
            Either::Right(((), asked)) => asked.await,
        }
    }
    for seal in model.seals.iter().filter(|seal| plan.probes.contains(&seal.name)) {
        let answer = answers
            .iter()
            .position(|answer: &Answer| answer.seal == seal.name);
        let (identity, described) = match answer.map(|at| answers.swap_remove(at)) {
            Some(answer) => (answer.identity, answer.described),
            None => (
                None,
                Err(Fault::transient(
                    Reason::KmsUnavailable,
                    "the KMS did not describe the key while there was other work; it is asked again, and nothing waits for it",
                )),
            ),
        };
        probed(model, observed, seal, identity, described, &mut outcomes);
    }
    restart::restart(context, model, observed, &mut outcomes).await;
    outcomes
}

/// Opens, looks after the store, delivers: in this order, but for copies of what the user brings, which nobody waits for.
async fn work(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    findings: &mut Findings,
    plan: &Plan,
    outcomes: &mut Outcomes,
) {
    let mut held = Held::new();
    let is_brought = |name: &str| model.keys.iter().any(|key| key.name == name && key.is_brought());
    let (brought, stored): (Vec<Open>, Vec<Open>) =
        plan.opens.iter().cloned().partition(|open| is_brought(&open.key));
    let (copied, kept): (Vec<&Tend>, Vec<&Tend>) = plan.tends.iter().partition(|tend| is_brought(&tend.key));
    let mut keys = open_all(context, model, observed, findings, &brought, &mut held, outcomes).await;
    let mut opens = stored;
    let mut deliveries: Vec<Delivery> = plan.deliveries.clone();
    if !kept.is_empty() {
        keep::tend(
            context, model, observed, findings, &kept, &keys, &mut held, outcomes,
        )
        .await;
        // The store has changed, and with it what is delivered.
        *findings = checks::check(model, observed);
        let next = plan::plan(model, observed, findings);
        opens = next
            .opens
            .into_iter()
            .filter(|open| !is_brought(&open.key))
            .collect();
        deliveries = next.deliveries;
    }
    keys.append(&mut open_all(context, model, observed, findings, &opens, &mut held, outcomes).await);
    drop(held);
    deliver_all(context, model, observed, &deliveries, &keys, outcomes).await;
    if !copied.is_empty() {
        let mut none = Held::new();
        keep::tend(
            context, model, observed, findings, &copied, &keys, &mut none, outcomes,
        )
        .await;
        *findings = checks::check(model, observed);
    }
}

async fn deliver_all(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    deliveries: &[Delivery],
    keys: &BTreeMap<String, Ready>,
    outcomes: &mut Outcomes,
) {
    for delivery in deliveries {
        let Some(target) = model.targets.iter().find(|target| target.name == delivery.target) else {
            continue;
        };
        // A key that did not open leaves the Secret as it is; the key's own condition says why.
        if !delivery.keys.iter().all(|key| keys.contains_key(key)) {
            continue;
        }
        let outcome = match deliver::deliver(context, model, target, delivery, keys, observed).await {
            Ok(done) => {
                observed.memory.targets.remove(&target.name);
                if delivery.repair {
                    let repairs = observed.memory.repairs.entry(target.name.clone()).or_default();
                    repairs.add(observed.now);
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
}

/// Remembers a failure and when to try again.
pub fn fail<K: Ord>(
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
            at: now,
            retry_at,
        },
    );
}

/// A seal's key, ready to be used.
///
/// # Errors
/// As `Clouds::connect`.
pub async fn connect(context: &Context, model: &Model, seal: &Seal) -> Result<Kms, Fault> {
    let tenant = Tenant {
        namespace: &model.id.namespace,
        name: &model.id.name,
    };
    context.clouds.connect(seal, tenant).await
}

/// What a KMS said of its key.
struct Answer {
    seal: String,
    identity: Option<String>,
    described: Result<Description, Fault>,
}

async fn ask(
    context: &Context,
    model: &Model,
    seal: &Seal,
    facts: &NamespaceFacts,
    now: jiff::Timestamp,
) -> Answer {
    let (identity, described) = match connect(context, model, seal).await {
        Ok(kms) => {
            // Who asks is known once it has credentials.
            let described = preflight::look(&kms, model, seal, facts, now).await;
            (kms.identity(), described)
        }
        Err(fault) => (None, Err(fault)),
    };
    Answer {
        seal: seal.name.clone(),
        identity,
        described,
    }
}

fn probed(
    model: &Model,
    observed: &mut Observed,
    seal: &Seal,
    identity: Option<String>,
    described: Result<Description, Fault>,
    outcomes: &mut Outcomes,
) {
    let described = match described {
        Ok(description) => Described::Key {
            arn: description.key,
            version: description.version,
            at: description.at,
            fault: description.fault,
        },
        Err(fault) if fault.reason == Reason::AccessDenied && !model.is_native(seal) => {
            Described::NotPermitted { at: observed.now }
        }
        Err(fault) => Described::Failed(fault),
    };
    let described = match pinned(observed, seal, described) {
        Described::Key { ref arn, .. }
            if let Err(fault) = checks::key_allowed(&model.id.namespace, arn, &observed.namespace) =>
        {
            Described::Failed(fault)
        }
        described => described,
    };
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

/// Whether the namespace may use the seal's key, where only the KMS can tell which one that is; asked before it is given
/// anything to encrypt or decrypt (security rule S20).
///
/// # Errors
/// `KeyNotAllowed`, and what the KMS says.
pub async fn admitted(model: &Model, observed: &Observed, seal: &Seal, kms: &Kms) -> Result<(), Fault> {
    // What the spec tells was checked before.
    if observed.namespace.allowed_seals.is_none() || seal.cloud.full_key().is_some() {
        return Ok(());
    }
    let key = match kms.describe().await {
        Ok(description) => description.key,
        Err(fault) if fault.reason == Reason::AccessDenied => {
            return Err(Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "namespace {} limits the keys of its seals, and which key {} is cannot be told without kms:DescribeKey; \
                     allow that, or name the key by its ARN",
                    model.id.namespace,
                    seal.cloud.configured_key()
                ),
            ));
        }
        Err(fault) => return Err(fault),
    };
    checks::key_allowed(&model.id.namespace, &key, &observed.namespace)
}

/// Account and region are pinned at first use and renewed only by a changed `kmsKeyID` (security rule S4).
pub fn pinned(observed: &Observed, seal: &Seal, described: Described) -> Described {
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
    // A SealConfig that was made again has no status yet, but its store knows.
    let stored = match &observed.store {
        StoreFacts::Found(store) => store
            .header
            .keys
            .values()
            .flat_map(|sealed| sealed.section.versions.values())
            .filter_map(|version| version.copies.get(&seal.name))
            .find(|copy| copy.configured_key_id == configured)
            .map(|copy| &copy.key_id),
        _ => None,
    };
    let recorded = recorded.or(stored);
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
