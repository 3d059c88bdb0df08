//! The distributions of one ManagedKey: which are due, and what came of them.

use std::{collections::BTreeMap, time::Duration};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};

use super::{
    Remembered,
    bring::{Errand, Hand, takes},
    ledger::Ledger,
};
use crate::{
    api::{KeyDeletionPolicy, ManagedKey, ManagedKeyStatus, Reason},
    controller::{apply, context::Context},
    seal::{
        Fault,
        digest::managed_inputs,
        managed::{self, ManagedModel, record::Record, status::Looked},
        observed::{Observed, waits_until},
        plan::PROBE_INTERVAL,
    },
};

/// Looks after every distribution that is due, all at once: a region that is silent keeps none of the others waiting.
pub(super) async fn distribute(
    context: &Context,
    key: &ManagedKey,
    managed: &ManagedModel,
    previous: &ManagedKeyStatus,
    observed: &mut Observed,
    memory: &mut Remembered,
) -> (BTreeMap<String, Looked>, Option<Duration>) {
    let model = &managed.model;
    let Some(material) = model.keys.first() else {
        return (BTreeMap::new(), None);
    };
    let (now, jitter, facts) = (observed.now, observed.jitter, observed.namespace.clone());
    let mut ledger = Ledger::new(context, model, material, observed);
    let current = ledger.sealed().map_or(0, |sealed| sealed.section.current);
    if managed.min_enabled > current {
        // Nothing is disabled by a number that no version has.
        let fault = Fault::invalid_spec(format!(
            "minEnabledVersion is {}, and the version in use is {current}; lower it, or rotate first",
            managed.min_enabled
        ));
        let looked = |wanted: &managed::Wanted| Looked {
            record: ledger.record(&wanted.name),
            sight: managed::step::Sight::default(),
            fault: Some(fault.clone()),
            inputs: String::new(),
            at: now,
        };
        let all = managed.distributions.iter();
        return (
            all.map(|wanted| (wanted.name.clone(), looked(wanted))).collect(),
            None,
        );
    }
    let mut times: Vec<Timestamp> = Vec::new();
    let mut errands = Vec::new();
    for wanted in &managed.distributions {
        memory.left.remove(&wanted.name);
        memory.told.remove(&wanted.name);
        let inputs = inputs_of(managed, wanted, current, ledger.record(&wanted.name).as_ref());
        match due(previous, memory, &wanted.name, &inputs, now) {
            Some(at) => times.push(at),
            None => errands.push(Errand::Bring(wanted)),
        }
    }
    let names: Vec<String> = ledger
        .sealed()
        .and_then(|sealed| sealed.section.managed.as_ref())
        .map(|known| known.distributions.keys().cloned().collect())
        .unwrap_or_default();
    let gone: Vec<String> = names
        .into_iter()
        .filter(|name| !managed.distributions.iter().any(|wanted| wanted.name == *name))
        .collect();
    for name in &gone {
        if let Some(errand) =
            take_back(context, key, managed, &mut ledger, memory, name, now, &mut times).await
        {
            errands.push(errand);
        }
    }
    let ledger = tokio::sync::Mutex::new(ledger);
    let working = errands.iter().map(|errand| {
        let hand = Hand {
            context,
            managed,
            facts: &facts,
            ledger: &ledger,
            now,
            errand: *errand,
        };
        async move { Box::pin(hand.work()).await }
    });
    let results = join_all(working).await;
    let ledger = ledger.into_inner();
    let mut looked = BTreeMap::new();
    for (errand, (sight, fault)) in errands.into_iter().zip(results) {
        let (name, inputs, record) = match errand {
            Errand::Bring(wanted) => {
                let record = ledger.record(&wanted.name);
                let inputs = inputs_of(managed, wanted, current, record.as_ref());
                (wanted.name.clone(), inputs, record)
            }
            Errand::TakeBack(name, _) => {
                let record = ledger.record(name);
                let inputs = left_inputs(managed, record.as_ref());
                (name.to_owned(), inputs, record)
            }
        };
        if let Some(fault) = &fault {
            apply::fail(&mut memory.failures, name.clone(), &inputs, fault, now, jitter);
            times.extend(memory.failures.get(&name).map(|failure| failure.retry_at));
        } else {
            memory.failures.remove(&name);
            if matches!(errand, Errand::TakeBack(..)) {
                memory.left.insert(name.clone(), inputs.clone());
            } else {
                let spread = PROBE_INTERVAL.as_secs_f64() * (1.0 + 0.25 * jitter);
                let spread = SignedDuration::try_from_secs_f64(spread).unwrap_or(PROBE_INTERVAL);
                times.extend(now.saturating_add(spread));
            }
        }
        let looked_at = Looked {
            record,
            sight,
            fault,
            inputs,
            at: now,
        };
        looked.insert(name, looked_at);
    }
    let soonest = times.into_iter().min().map(|at| {
        Duration::try_from(at.duration_since(now))
            .unwrap_or_default()
            .max(Duration::from_millis(50))
    });
    (looked, soonest)
}

/// A distribution that is gone from the spec: what is left to be done about it.
#[expect(
    clippy::too_many_arguments,
    reason = "the values of one reconcile, and where its results go"
)]
async fn take_back<'n>(
    context: &Context,
    key: &ManagedKey,
    managed: &ManagedModel,
    ledger: &mut Ledger<'_>,
    memory: &mut Remembered,
    name: &'n str,
    now: Timestamp,
    times: &mut Vec<Timestamp>,
) -> Option<Errand<'n>> {
    let policy = managed.deletion.policy;
    let record = ledger.record(name)?;
    if !takes(policy) {
        return None;
    }
    let inputs = left_inputs(managed, Some(&record));
    if memory.left.get(name) == Some(&inputs) {
        return None;
    }
    if !managed.confirmed {
        if memory.told.insert(name.to_owned()) {
            let note = not_confirmed(key, &format!("of distribution {name:?}"));
            context
                .events
                .warn(
                    key.object_ref(&()),
                    Reason::DeletionNotConfirmed,
                    note,
                    "TakeBack",
                )
                .await;
        }
        return None;
    }
    if let Some(failure) = memory.failures.get(name)
        && failure.holds(&inputs, now)
    {
        times.push(failure.retry_at);
        return None;
    }
    if record.retired != Some(policy) {
        let noted = ledger
            .write(|managed| {
                if let Some(record) = managed.distributions.get_mut(name) {
                    record.retired = Some(policy);
                }
            })
            .await;
        if let Err(fault) = noted {
            apply::fail(&mut memory.failures, name.to_owned(), &inputs, &fault, now, 0.5);
            times.extend(memory.failures.get(name).map(|failure| failure.retry_at));
            return None;
        }
    }
    Some(Errand::TakeBack(name, managed.deletion))
}

/// What is told where the deletion of keys is not confirmed.
pub(super) fn not_confirmed(key: &ManagedKey, what: &str) -> String {
    format!(
        "the keys {what} stay as they are in AWS, for deletion.policy {} is not confirmed; to confirm it: kubectl annotate \
         managedkey {} {}={}",
        key.spec.deletion.policy.as_str(),
        key.name_any(),
        managed::CONFIRM_DELETION,
        key.uid().unwrap_or_default()
    )
}

fn inputs_of(
    managed: &ManagedModel,
    wanted: &managed::Wanted,
    current: u32,
    record: Option<&Record>,
) -> String {
    // Debug and JSON of names, numbers and references; no secret.
    let record = record.and_then(|record| serde_json::to_string(record).ok());
    managed_inputs(&[
        &format!("{wanted:?}"),
        &format!("{current} {}", managed.min_enabled),
        &record.unwrap_or_default(),
    ])
}

fn left_inputs(managed: &ManagedModel, record: Option<&Record>) -> String {
    let record = record.and_then(|record| serde_json::to_string(record).ok());
    let policy: KeyDeletionPolicy = managed.deletion.policy;
    managed_inputs(&[policy.as_str(), &record.unwrap_or_default()])
}

/// When a distribution is to be looked at; `None` = now.
fn due(
    previous: &ManagedKeyStatus,
    memory: &Remembered,
    name: &str,
    inputs: &str,
    now: Timestamp,
) -> Option<Timestamp> {
    if let Some(failure) = memory.failures.get(name) {
        return failure.waits_until(inputs, now);
    }
    let known = previous.distributions.iter().find(|known| known.name == name)?;
    if known.inputs_digest.as_deref() != Some(inputs) || known.reason.is_some() {
        return None;
    }
    let last = known.last_probe_time.as_ref()?.0;
    waits_until(last, last.saturating_add(PROBE_INTERVAL).ok()?, now)
}
