//! Opens keys: brought copies and stored ones, from whichever seal answers first.

use std::collections::{BTreeMap, BTreeSet};

use futures::{FutureExt, future::join_all};

use super::{
    apply::{admitted, connect, fail, pinned},
    context::Context,
    hedge::{Attempt, HEDGE, every_one_in_time, first_that_opens},
};
use crate::{
    api::Reason,
    provider::{Bound, Kms, Opened},
    seal::{
        Fault, KeyBytes,
        checks::{Findings, key_allowed, key_granted, source_found},
        consumer_id::ConsumerName,
        model::{Copy, Key, Model, Seal, Source},
        observed::{Mark, Observed, SourceFacts},
        outcome::{Described, KeyOutcome, Outcomes, StoredState},
        plan::Open,
        store::{
            Kept, Standing, Store, StoreFacts,
            proof::{authentic, fits, mark_of, place, value_of},
            standing::{Candidate, candidates},
        },
    },
};

/// A key that was opened and agreed on, until its Secrets are written.
pub struct Ready {
    /// The bytes.
    pub bytes: KeyBytes,
    /// How the consumer names it.
    pub consumer_key_id: String,
    /// The version before it, if it is delivered.
    pub previous: Option<Previous>,
    /// Versions and one-way marks, to tell a change of the bytes.
    pub mark: Mark,
}

/// The version before the current one.
pub struct Previous {
    /// The bytes.
    pub bytes: KeyBytes,
    /// How the consumer names it.
    pub consumer_key_id: String,
}

/// Versions of stored keys that were opened or made in this reconcile, so that nothing is opened twice.
pub type Held = BTreeMap<(String, u32), KeyBytes>;

/// Opens the keys that a plan names.
pub async fn open_all(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    findings: &Findings,
    opens: &[Open],
    held: &mut Held,
    outcomes: &mut Outcomes,
) -> BTreeMap<String, Ready> {
    let mut ready = BTreeMap::new();
    let named = |open: &Open| model.keys.iter().find(|key| key.name == open.key);
    let brought = opens.iter().filter_map(|open| Some((open, named(open)?)));
    let (brought, stored): (Vec<_>, Vec<_>) = brought.partition(|(_, key)| key.is_brought());
    let opening = brought.into_iter().map(|(open, key)| {
        let observed = &*observed;
        async move {
            (
                key,
                open_brought(context, model, observed, findings, key, open).await,
            )
        }
    });
    for (key, attempts) in join_all(opening).await {
        let opened = sort(observed, findings, outcomes, key, attempts);
        if let Some(key_ready) = agreed(model, observed, findings, outcomes, key, opened) {
            ready.insert(key.name.clone(), key_ready);
        }
    }
    let mut tasks = Vec::new();
    for (open, key) in stored {
        if let Some(Standing::Kept(kept)) = findings.standings.get(&key.name) {
            let mine = [Some(kept.current), kept.previous].map(|version| {
                let id = (key.name.clone(), version?);
                held.remove(&id)
            });
            let observed = &*observed;
            tasks.push(async move {
                (
                    key,
                    open_stored(context, model, observed, key, kept, &open.seals, mine).await,
                )
            });
        }
    }
    for (key, (attempts, outcome)) in join_all(tasks).await {
        let openers: Vec<String> = attempts
            .iter()
            .filter(|(_, _, result)| result.is_ok())
            .map(|(seal, _, _)| seal.clone())
            .collect();
        sort(observed, findings, outcomes, key, attempts);
        let inputs = findings.key_inputs.get(&key.name).cloned().unwrap_or_default();
        match outcome {
            Ok(Some((key_ready, state))) => {
                observed.memory.keys.remove(&key.name);
                tell_stored(outcomes, &key_ready, key, openers.first().cloned(), state);
                ready.insert(key.name.clone(), key_ready);
            }
            // Its copies say why.
            Ok(None) => {}
            Err(fault) => fail(
                &mut observed.memory.keys,
                key.name.clone(),
                &inputs,
                &fault,
                observed.now,
                observed.jitter,
            ),
        }
    }
    ready
}

/// Remembers what failed, and keeps what opened.
fn sort(
    observed: &mut Observed,
    findings: &Findings,
    outcomes: &mut Outcomes,
    key: &Key,
    attempts: Vec<Attempt>,
) -> Vec<(String, KeyBytes)> {
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
    opened
}

/// A brought key whose opened copies agree.
fn agreed(
    model: &Model,
    observed: &mut Observed,
    findings: &Findings,
    outcomes: &mut Outcomes,
    key: &Key,
    mut opened: Vec<(String, KeyBytes)>,
) -> Option<Ready> {
    let first_seal = opened.first()?.0.clone();
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
            None
        }
        Ok(mark) => {
            observed.memory.keys.remove(&key.name);
            if Mark::is_check_value(&mark) {
                observed
                    .memory
                    .marks
                    .insert(key.name.clone(), (inputs, mark.clone()));
            }
            let agreed: BTreeSet<String> = opened.iter().map(|(seal, _)| seal.clone()).collect();
            let bytes = opened.swap_remove(0).1;
            let consumer_key_id = consumer_key_id(key, 1, &bytes);
            outcomes.keys.insert(
                key.name.clone(),
                KeyOutcome {
                    agreed,
                    opened_by: Some(first_seal),
                    consumer_key_id: Some(consumer_key_id.clone()),
                    stored: None,
                },
            );
            Some(Ready {
                bytes,
                consumer_key_id,
                previous: None,
                mark: Mark {
                    version: 1,
                    mark,
                    ..Mark::default()
                },
            })
        }
    }
}

/// Tells the status of a stored key that was opened or made.
pub fn tell_stored(
    outcomes: &mut Outcomes,
    ready: &Ready,
    key: &Key,
    opened_by: Option<String>,
    state: StoredState,
) {
    let outcome = outcomes.keys.entry(key.name.clone()).or_default();
    outcome.opened_by = opened_by.or_else(|| outcome.opened_by.take());
    outcome.consumer_key_id = Some(ready.consumer_key_id.clone());
    outcome.stored = Some(state);
}

/// The consumer's name for a version.
pub fn consumer_key_id(key: &Key, version: u32, bytes: &KeyBytes) -> String {
    let name = ConsumerName {
        key: &key.name,
        purpose: key.purpose,
        consumer_key_id: key.consumer_key_id.as_deref(),
        brought: !matches!(key.origin, crate::seal::model::Origin::Generated { .. }),
        version,
    };
    name.id(bytes)
}

/// The copies of a brought key, and those that the operator made of it.
async fn open_brought(
    context: &Context,
    model: &Model,
    observed: &Observed,
    findings: &Findings,
    key: &Key,
    open: &Open,
) -> Vec<Attempt> {
    let attempts = open.seals.iter().filter_map(|seal| {
        if let Some(copy) = key.copies.iter().find(|copy| copy.seal == *seal) {
            return Some(open_copy(context, model, observed, copy).boxed());
        }
        let Some(Standing::Kept(kept)) = findings.standings.get(&key.name) else {
            return None;
        };
        let StoreFacts::Found(store) = &observed.store else {
            return None;
        };
        let candidate = candidates(model, key, store, kept.current)
            .into_iter()
            .find(|candidate| candidate.seal == *seal)?;
        let sealed = store.header.keys.get(&key.name)?;
        let opening = async move {
            let (seal, identity, opened) =
                open_candidate(context, model, key, store, kept.current, candidate).await;
            // Nothing else says that this is the version which the brought copies hold.
            let opened = opened.and_then(|bytes| {
                authentic(model, key, sealed, &bytes)?;
                Ok(bytes)
            });
            (seal, identity, opened)
        };
        Some(opening.boxed())
    });
    let attempts: Vec<_> = attempts.collect();
    if open.all {
        every_one_in_time(&open.seals, attempts, HEDGE).await
    } else {
        first_that_opens(attempts, HEDGE).await
    }
}

/// A stored key: the version in use and, where it is delivered, the one before. `held`: what is at hand already.
async fn open_stored(
    context: &Context,
    model: &Model,
    observed: &Observed,
    key: &Key,
    kept: &Kept,
    seals: &[String],
    held: [Option<KeyBytes>; 2],
) -> (Vec<Attempt>, Result<Option<(Ready, StoredState)>, Fault>) {
    let StoreFacts::Found(store) = &observed.store else {
        return (Vec::new(), Ok(None));
    };
    let Some(sealed) = store.header.keys.get(&key.name) else {
        return (Vec::new(), Ok(None));
    };
    let section = &sealed.section;
    let [current, previous] = held;
    let mut told = Vec::new();
    let (mut attempts, bytes) = match current {
        Some(bytes) => (Vec::new(), Some(bytes)),
        None => open_version(context, model, key, store, kept.current, Some(seals)).await,
    };
    told.append(&mut attempts);
    let Some(bytes) = bytes else {
        return (told, Ok(None));
    };
    if let Err(fault) = authentic(model, key, sealed, &bytes) {
        return (told, Err(fault));
    }
    let mut mark = Mark {
        version: kept.current,
        mark: mark_of(model, key, kept.current, &bytes),
        previous: None,
        stored: section.counter,
    };
    let mut ready_previous = None;
    if let Some(version) = kept.previous {
        let (mut attempts, found) = match previous {
            Some(bytes) => (Vec::new(), Some(bytes)),
            None => open_version(context, model, key, store, version, Some(seals)).await,
        };
        told.append(&mut attempts);
        let Some(found) = found else {
            return (told, Ok(None));
        };
        if let Err(fault) = fits(model, key, section.versions.get(&version), &found) {
            return (told, Err(fault));
        }
        mark.previous = Some((version, mark_of(model, key, version, &found)));
        ready_previous = Some(Previous {
            consumer_key_id: consumer_key_id(key, version, &found),
            bytes: found,
        });
    }
    let ready = Ready {
        consumer_key_id: consumer_key_id(key, kept.current, &bytes),
        bytes,
        previous: ready_previous,
        mark,
    };
    (told, Ok(Some((ready, StoredState::of(sealed)))))
}

/// Opens one version from whichever of its stored copies opens first. `seals` = `None`: from any.
pub async fn open_version(
    context: &Context,
    model: &Model,
    key: &Key,
    store: &Store,
    version: u32,
    seals: Option<&[String]>,
) -> (Vec<Attempt>, Option<KeyBytes>) {
    let copies = candidates(model, key, store, version)
        .into_iter()
        .filter(|candidate| seals.is_none_or(|seals| seals.contains(&candidate.seal)));
    let attempts: Vec<_> = copies
        .map(|candidate| open_candidate(context, model, key, store, version, candidate).boxed())
        .collect();
    let mut attempts = first_that_opens(attempts, HEDGE).await;
    let opened = attempts.iter().position(|(_, _, result)| result.is_ok());
    let bytes = opened.and_then(|at| {
        // What remains in the list says that the seal works; the bytes have one owner.
        let nothing = Ok(KeyBytes::new(Vec::new()));
        std::mem::replace(&mut attempts[at].2, nothing).ok()
    });
    (attempts, bytes)
}

/// Opens one stored copy.
pub async fn open_candidate(
    context: &Context,
    model: &Model,
    key: &Key,
    store: &Store,
    version: u32,
    candidate: Candidate,
) -> Attempt {
    let (Some(seal), Some(ciphertext)) = (model.seal(&candidate.seal), store.items.get(&candidate.item))
    else {
        let fault = Fault::invalid(Reason::StoreCorrupt, "the copy is not in the wrapped store");
        return (candidate.seal, None, Err(fault));
    };
    let place = place(&context.settings.binding_domain, model, key, version);
    let (pairs, aad) = (place.context(), place.aad());
    let bound = Bound {
        context: &pairs,
        aad: &aad,
    };
    let facts = context.index.namespace(&model.id.namespace);
    if let Err(fault) = key_allowed(&model.id.namespace, &candidate.key_id, &facts) {
        return (candidate.seal, None, Err(fault));
    }
    match connect(context, model, seal).await {
        Err(fault) => (candidate.seal, None, Err(fault)),
        Ok(kms) => {
            let opened = kms.unwrap_bound(ciphertext, &bound, &candidate.key_id).await;
            (candidate.seal, kms.identity(), opened.map(|opened| opened.key))
        }
    }
}

/// Opens every copy of material that the user brings, which must agree.
///
/// # Errors
/// What kept a copy from opening, with its seal; `CopiesDiffer`.
pub async fn open_brings(
    context: &Context,
    model: &Model,
    observed: &Observed,
    key: &Key,
) -> Result<KeyBytes, Fault> {
    let opening = key
        .brings
        .iter()
        .map(|copy| open_copy(context, model, observed, copy));
    let mut opened = Vec::new();
    for (seal, _, result) in join_all(opening).await {
        opened.push((
            seal.clone(),
            result.map_err(|fault| fault.of(format!("seal {seal:?}")))?,
        ));
    }
    agree(model, key, &opened, None, "")?;
    let (_, bytes) = opened.swap_remove(0);
    Ok(bytes)
}

async fn open_copy(context: &Context, model: &Model, observed: &Observed, copy: &Copy) -> Attempt {
    let Some(seal) = model.seal(&copy.seal) else {
        let fault = Fault::invalid_spec("the copy names a seal that is not in spec.seals");
        return (copy.seal.clone(), None, Err(fault));
    };
    match connect(context, model, seal).await {
        Err(fault) => (seal.name.clone(), None, Err(fault)),
        Ok(kms) => {
            let opened = unwrap(model, observed, seal, copy, &kms).await;
            (seal.name.clone(), kms.identity(), opened)
        }
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
            facts => source_found(entry, facts)?,
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
                version: description.version,
                at: description.at,
                fault: None,
            },
        ) {
            return Err(fault);
        }
    }
    admitted(model, observed, seal, kms).await?;
    let Opened { key, key_id } = kms.unwrap(copy.format, ciphertext, &copy.context).await?;
    key_granted(model, seal, copy, &key_id, &observed.namespace)?;
    key_allowed(&model.id.namespace, &key_id, &observed.namespace)?;
    Ok(key)
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
    if let Some((other, _)) = opened.iter().find(|(_, bytes)| !bytes.same_as(first)) {
        return Err(Fault::invalid(
            Reason::CopiesDiffer,
            format!(
                "the copies for seals {first_seal:?} and {other:?} hold different keys, so none of them is delivered; find \
                 out which one is right and wrap it again for the other"
            ),
        ));
    }
    let value = value_of(model, key, first);
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
        (None, _) => Ok(Mark::of_inputs(inputs)),
    }
}
