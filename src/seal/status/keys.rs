//! What is said of keys: brought ones and stored ones.

use super::{label, second};
use crate::{
    api::{KeyStatus, Reason},
    seal::{
        Fault,
        checks::Findings,
        digest::tend_inputs,
        model::{Key, Model},
        observed::Observed,
        outcome::Outcomes,
        plan::rotation_waits,
        store::{
            Standing, StoreFacts, item,
            standing::{next_rotation, wrapping},
        },
    },
};

pub(super) fn key_status(
    model: &Model,
    key: &Key,
    observed: &Observed,
    findings: &Findings,
    outcomes: &Outcomes,
) -> KeyStatus {
    if !key.is_brought() {
        return stored_status(model, key, observed, findings, outcomes);
    }
    let previous = observed
        .status
        .keys
        .iter()
        .find(|status| status.name == key.name)
        .cloned();
    let Some(outcome) = outcomes
        .keys
        .get(&key.name)
        .filter(|outcome| !outcome.agreed.is_empty())
    else {
        return previous.unwrap_or_else(|| KeyStatus {
            name: key.name.clone(),
            version: 1,
            ..KeyStatus::default()
        });
    };
    let inputs = findings.key_inputs.get(&key.name).cloned();
    let same = previous
        .as_ref()
        .is_some_and(|status| status.inputs_digest == inputs);
    let kept = previous
        .as_ref()
        .filter(|_| same)
        .map(|status| status.wrapped_under.clone())
        .unwrap_or_default();
    let under = |seal: &String| kept.contains(seal) || outcome.agreed.contains(seal);
    KeyStatus {
        name: key.name.clone(),
        version: 1,
        consumer_key_id: outcome
            .consumer_key_id
            .clone()
            .or_else(|| previous.as_ref()?.consumer_key_id.clone()),
        wrapped_under: model
            .seals
            .iter()
            .map(|seal| seal.name.clone())
            .filter(|seal| {
                let brought = key.copies.iter().any(|copy| copy.seal == *seal);
                if brought {
                    under(seal)
                } else {
                    stored_under(key, observed, findings).contains(seal)
                }
            })
            .collect(),
        opened_by: outcome
            .opened_by
            .clone()
            .or_else(|| previous.as_ref()?.opened_by.clone()),
        inputs_digest: inputs,
        store_counter: match &outcome.stored {
            Some(stored) => stored.counter,
            None => previous.as_ref().map_or(0, |status| status.store_counter),
        },
        store_digest: match &outcome.stored {
            Some(stored) => Some(stored.digest.clone()),
            None => previous.as_ref().and_then(|status| status.store_digest.clone()),
        },
        ..KeyStatus::default()
    }
}

/// Seals under which the wrapped store holds an undamaged copy of the version in use.
fn stored_under(key: &Key, observed: &Observed, findings: &Findings) -> Vec<String> {
    let (Some(Standing::Kept(kept)), StoreFacts::Found(store)) =
        (findings.standings.get(&key.name), &observed.store)
    else {
        return Vec::new();
    };
    if kept.due.renew {
        return Vec::new();
    }
    let record = store
        .header
        .keys
        .get(&key.name)
        .and_then(|sealed| sealed.section.versions.get(&kept.current));
    let copies = record.into_iter().flat_map(|record| &record.copies);
    copies
        .filter(|(seal, copy)| store.intact(&item(&key.name, kept.current, seal), copy).is_some())
        .map(|(seal, _)| seal.clone())
        .collect()
}

fn stored_status(
    model: &Model,
    key: &Key,
    observed: &Observed,
    findings: &Findings,
    outcomes: &Outcomes,
) -> KeyStatus {
    let previous = observed
        .status
        .keys
        .iter()
        .find(|status| status.name == key.name)
        .cloned();
    let previous = previous.unwrap_or_else(|| KeyStatus {
        name: key.name.clone(),
        ..KeyStatus::default()
    });
    let (Some(Standing::Kept(kept)), StoreFacts::Found(store)) =
        (findings.standings.get(&key.name), &observed.store)
    else {
        return previous;
    };
    let Some(section) = store.header.keys.get(&key.name).map(|sealed| &sealed.section) else {
        return previous;
    };
    let outcome = outcomes
        .keys
        .get(&key.name)
        .filter(|outcome| outcome.stored.is_some());
    // Only what was authenticated under the key itself is told (and remembered as seen).
    let stored = outcome.and_then(|outcome| outcome.stored.as_ref());
    let known = stored.is_some() || (previous.store_digest.is_some() && !kept.due.verify);
    if !known {
        return previous;
    }
    let under = stored_under(key, observed, findings);
    let seals = model.seals.iter().map(|seal| &seal.name);
    let record = section.versions.get(&kept.current);
    let exposed = record.into_iter().flat_map(|record| &record.exposed);
    KeyStatus {
        version: kept.current,
        consumer_key_id: outcome
            .and_then(|outcome| outcome.consumer_key_id.clone())
            .or(previous.consumer_key_id),
        wrapped_under: seals.filter(|seal| under.contains(seal)).cloned().collect(),
        opened_by: outcome
            .and_then(|outcome| outcome.opened_by.clone())
            .or(previous.opened_by),
        next_rotation_time: next_rotation(key, section).map(second),
        exposed_under: exposed.cloned().collect(),
        inputs_digest: if stored.is_some() {
            findings.key_inputs.get(&key.name).cloned()
        } else {
            previous.inputs_digest
        },
        store_counter: stored.map_or(previous.store_counter, |stored| stored.counter),
        store_digest: stored
            .map(|stored| stored.digest.clone())
            .or(previous.store_digest),
        name: previous.name,
    }
}

/// Why a rotation that is due does not start.
pub(super) fn rotation_fault(model: &Model, observed: &Observed, findings: &Findings) -> Option<Fault> {
    model
        .keys
        .iter()
        .find_map(|key| match findings.standings.get(&key.name) {
            Some(Standing::Kept(kept)) if kept.due.rotate => rotation_waits(model, key, observed, findings),
            _ => None,
        })
}

/// Why a stored key is not as it should be.
fn stored_fault(
    model: &Model,
    key: &Key,
    status: &KeyStatus,
    observed: &Observed,
    findings: &Findings,
) -> Option<Fault> {
    let standing = findings.standings.get(&key.name)?;
    let failed = observed.memory.stored.get(&key.name);
    let failed = failed.filter(|failure| failure.inputs == tend_inputs(model, key, standing, observed));
    let failed = failed.map(|failure| failure.fault.clone());
    let wraps = || {
        wrapping(model, key).find_map(|seal| {
            let id = (key.name.clone(), seal.name.clone());
            let barred = findings.seals.get(&seal.name).cloned();
            let fault = barred.or_else(|| {
                observed
                    .memory
                    .wraps
                    .get(&id)
                    .map(|failure| failure.fault.clone())
            })?;
            Some(fault.of(label(seal)))
        })
    };
    let pending = || Fault::transient(Reason::Pending, "it has not been wrapped yet");
    match standing {
        Standing::Barred(fault) => Some(fault.clone()),
        Standing::New => Some(
            findings
                .keys
                .get(&key.name)
                .cloned()
                .or(failed)
                .or_else(wraps)
                .unwrap_or_else(pending),
        ),
        Standing::Lost(_) => Some(failed.or_else(wraps).unwrap_or_else(pending)),
        Standing::Kept(_) | Standing::Elsewhere => {
            // A new version that could not be made leaves the one in use as good as it was; a store whose copies do not
            // open where they lie does not, though what was delivered is untouched.
            // Material that a user brings, and that is not taken, is not what was asked for.
            let damaged = failed.filter(|fault| lies_in_copies(fault) || !key.brings.is_empty());
            damaged.or_else(|| {
                let open = status.inputs_digest.as_ref() == findings.key_inputs.get(&key.name)
                    && !status.wrapped_under.is_empty();
                (!open).then(|| Fault::transient(Reason::Pending, "it has not been opened yet"))
            })
        }
    }
}

/// Whether a fault lies in the copies themselves, and not in the seals that should open them.
fn lies_in_copies(fault: &Fault) -> bool {
    fault.reason.is_of_the_store() || fault.reason.is_of_a_copy()
}

/// Why a key is not as it should be: nothing opened it, its copies disagree, or a copy is bad in itself.
pub(super) fn key_fault(
    model: &Model,
    key: &Key,
    status: &KeyStatus,
    observed: &Observed,
    findings: &Findings,
) -> Option<Fault> {
    let part = format!("key {:?}", key.name);
    let inputs = findings.key_inputs.get(&key.name)?;
    if let Some(failure) = observed
        .memory
        .keys
        .get(&key.name)
        .filter(|failure| failure.inputs == *inputs)
    {
        return Some(failure.fault.clone().of(part));
    }
    let copy_faults: Vec<Fault> = model
        .seals
        .iter()
        .filter_map(|seal| {
            let id = (key.name.clone(), seal.name.clone());
            let failed = || {
                let failure = observed.memory.copies.get(&id)?;
                (findings.copy_inputs.get(&id) == Some(&failure.inputs)).then(|| failure.fault.clone())
            };
            let fault = findings.copies.get(&id).cloned().or_else(failed)?;
            Some(fault.of(label(seal)).of(&part))
        })
        .collect();
    if !key.is_brought() {
        let Some(fault) = stored_fault(model, key, status, observed, findings) else {
            return copy_faults.into_iter().find(lies_in_copies);
        };
        // That it has not been opened says less than why.
        let why = (fault.reason == Reason::Pending)
            .then(|| copy_faults.into_iter().next())
            .flatten();
        return Some(why.unwrap_or_else(|| fault.of(part)));
    }
    let open = status.inputs_digest.as_ref() == Some(inputs) && !status.wrapped_under.is_empty();
    if open {
        return copy_faults.into_iter().find(lies_in_copies);
    }
    // A store that was tampered with says more than a KMS that is away.
    let tampered = copy_faults
        .iter()
        .position(|fault| fault.reason.is_of_the_store());
    Some(
        copy_faults
            .into_iter()
            .nth(tampered.unwrap_or_default())
            .unwrap_or_else(|| Fault::transient(Reason::Pending, "it has not been opened yet").of(part)),
    )
}
