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
