//! Looks after stored keys: makes, copies, rotates and rebuilds them. What is made here is written to the wrapped store
//! and read back before anybody uses it.

mod hand;
mod source;
mod work;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use futures::future::join_all;

use super::{
    apply::fail,
    context::Context,
    hedge::Attempt,
    open::{Held, Ready, consumer_key_id},
};
use crate::{
    api::Reason,
    kube_ext::store as secret,
    seal::{
        Fault, KeyBytes,
        checks::Findings,
        digest::{seal_inputs, tend_inputs},
        model::{Key, Model},
        observed::Observed,
        outcome::{KeyOutcome, Outcomes, StoredState},
        plan::{Tend, Work},
        store::{
            Edit, HEADER, MAX_BYTES, NewCopy, Sealed, Section, StoreFacts, edit::next_header, proof::mac_of,
            secret_name, standing::seen,
        },
    },
};
use hand::Asked;
pub use hand::Hand;
pub use source::random;

/// What becomes of one key's section.
struct Draft<'a> {
    key: &'a Key,
    edit: Edit,
    /// Versions that were opened or made.
    bytes: BTreeMap<u32, KeyBytes>,
    /// Seals that did not do what was asked of them.
    faults: Vec<(String, Fault)>,
    /// Seals that did.
    wrapped: Vec<String>,
}

impl<'a> Draft<'a> {
    fn new(key: &'a Key, section: Section) -> Self {
        Self {
            key,
            edit: Edit::new(&key.name, section),
            bytes: BTreeMap::new(),
            faults: Vec::new(),
            wrapped: Vec::new(),
        }
    }

    /// The copies that were made; which seal made one and which did not is noted.
    fn made(&mut self, wrapped: Vec<(String, Result<NewCopy, Fault>)>) -> Vec<NewCopy> {
        let mut copies = Vec::new();
        for (seal, result) in wrapped {
            match result {
                Ok(copy) => {
                    copies.push(copy);
                    self.wrapped.push(seal);
                }
                Err(fault) => self.faults.push((seal, fault)),
            }
        }
        copies
    }
}

/// Does what is due. `ready` holds the brought keys that were opened.
#[expect(
    clippy::too_many_arguments,
    reason = "the values of one reconcile, and where its results go"
)]
pub async fn tend(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    findings: &Findings,
    tends: &[&Tend],
    ready: &BTreeMap<String, Ready>,
    held: &mut Held,
    outcomes: &mut Outcomes,
) {
    let drafting = tends.iter().filter_map(|tend| {
        let key = model.keys.iter().find(|key| key.name == tend.key)?;
        let brought = ready.get(&key.name).map(|ready| &ready.bytes);
        if key.is_brought() && brought.is_none() {
            return None;
        }
        let observed = &*observed;
        Some(async move {
            (
                key,
                draft(context, model, observed, key, &tend.work, brought).await,
            )
        })
    });
    let drafted = join_all(drafting).await;
    let mut drafts = Vec::new();
    for (key, (drafted, asked)) in drafted {
        for (seal, answer) in asked {
            let id = (key.name.clone(), seal);
            match answer {
                Ok(()) => {
                    observed.memory.copies.remove(&id);
                }
                Err(fault) => {
                    let inputs = findings.copy_inputs.get(&id).cloned().unwrap_or_default();
                    let (now, jitter) = (observed.now, observed.jitter);
                    fail(&mut observed.memory.copies, id, &inputs, &fault, now, jitter);
                }
            }
        }
        match drafted {
            Ok(draft) => {
                for (seal, fault) in &draft.faults {
                    let inputs = model.seal(seal).map(seal_inputs).unwrap_or_default();
                    let id = (key.name.clone(), seal.clone());
                    let (now, jitter) = (observed.now, observed.jitter);
                    fail(&mut observed.memory.wraps, id, &inputs, fault, now, jitter);
                }
                drafts.push(draft);
            }
            Err(fault) => failed(model, observed, findings, key, &fault),
        }
    }
    for draft in &drafts {
        for seal in &draft.wrapped {
            observed
                .memory
                .wraps
                .remove(&(draft.key.name.clone(), seal.clone()));
            outcomes.seals.entry(seal.clone()).or_default().opened = true;
        }
    }
    let changed = drafts.iter().any(|draft| draft.edit.changed);
    if changed && let Err(fault) = save(context, model, observed, &mut drafts, ready).await {
        // What was written may stand or not. The state before it is still good to deliver from, and a write over a state
        // that is no more is refused.
        for draft in drafts.iter().filter(|draft| draft.edit.changed) {
            failed(model, observed, findings, draft.key, &fault);
        }
        return;
    }
    for draft in drafts {
        // A key that could not be made has no version yet.
        if !draft
            .edit
            .section
            .versions
            .contains_key(&draft.edit.section.current)
            || draft.edit.section.counter == 0
        {
            continue;
        }
        observed.memory.stored.remove(&draft.key.name);
        tell(outcomes, observed, &draft);
        for (version, bytes) in draft.bytes {
            held.insert((draft.key.name.clone(), version), bytes);
        }
    }
}

fn failed(model: &Model, observed: &mut Observed, findings: &Findings, key: &Key, fault: &Fault) {
    let Some(standing) = findings.standings.get(&key.name) else {
        return;
    };
    let inputs = tend_inputs(model, key, standing, observed);
    let (now, jitter) = (observed.now, observed.jitter);
    fail(
        &mut observed.memory.stored,
        key.name.clone(),
        &inputs,
        fault,
        now,
        jitter,
    );
}

fn tell(outcomes: &mut Outcomes, observed: &Observed, draft: &Draft<'_>) {
    let StoreFacts::Found(store) = &observed.store else {
        return;
    };
    let Some(sealed) = store.header.keys.get(&draft.key.name) else {
        return;
    };
    let state = StoredState::of(sealed);
    if draft.key.is_brought() {
        outcomes.keys.entry(draft.key.name.clone()).or_default().stored = Some(state);
        return;
    }
    let Some(bytes) = draft.bytes.get(&draft.edit.section.current) else {
        return;
    };
    outcomes.keys.insert(
        draft.key.name.clone(),
        KeyOutcome {
            opened_by: draft.wrapped.first().cloned(),
            consumer_key_id: Some(consumer_key_id(draft.key, draft.edit.section.current, bytes)),
            stored: Some(state),
            ..KeyOutcome::default()
        },
    );
}

async fn draft<'a>(
    context: &Context,
    model: &Model,
    observed: &Observed,
    key: &'a Key,
    work: &Work,
    brought: Option<&KeyBytes>,
) -> (Result<Draft<'a>, Fault>, Asked) {
    let store = match &observed.store {
        StoreFacts::Found(store) => Some(store),
        _ => None,
    };
    let hand = Hand {
        context,
        model,
        observed,
        store,
        key,
        proven: BTreeSet::new(),
        asked: Mutex::default(),
    };
    let drafted = match work {
        Work::Make(seals) => hand.make(seals, brought).await,
        Work::Rebuild(from, seals) => hand.rebuild(from, seals).await,
        Work::Mend(due) => hand.mend(due, brought).await,
    };
    let asked = hand.asked.into_inner().unwrap_or_else(PoisonError::into_inner);
    (drafted, asked)
}

pub(super) fn first_fault(attempts: Vec<Attempt>) -> Fault {
    let fault = attempts
        .into_iter()
        .find_map(|(seal, _, result)| Some(result.err()?.of(format!("seal {seal:?}"))));
    fault.unwrap_or_else(|| Fault::transient(Reason::Pending, "no stored copy can be opened now"))
}

/// Writes a changed section of a stored key, authenticated under the bytes of its current version, which come back.
pub async fn amend(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    key: &Key,
    section: Section,
    bytes: KeyBytes,
) -> (Option<KeyBytes>, Result<(), Fault>) {
    let current = section.current;
    let mut draft = Draft::new(key, section);
    draft.bytes.insert(current, bytes);
    draft.edit.changed = true;
    let outcome = save(
        context,
        model,
        observed,
        std::slice::from_mut(&mut draft),
        &BTreeMap::new(),
    )
    .await;
    (draft.bytes.remove(&current), outcome)
}

/// Writes every draft in one write, and takes what was read back.
async fn save(
    context: &Context,
    model: &Model,
    observed: &mut Observed,
    drafts: &mut [Draft<'_>],
    ready: &BTreeMap<String, Ready>,
) -> Result<(), Fault> {
    let (base, size) = match &observed.store {
        StoreFacts::Found(store) => {
            let items = store.items.iter();
            let size: usize = items.map(|(name, bytes)| name.len() + bytes.bytes().len()).sum();
            (Some(store.revision.clone()), size)
        }
        StoreFacts::Corrupt(revision, _) => (Some(revision.clone()), 0),
        StoreFacts::Absent => (None, 0),
        StoreFacts::NotLooked | StoreFacts::NotOwned => {
            return Err(Fault::transient(
                Reason::Pending,
                "the wrapped store is read again",
            ));
        }
    };
    let counters = model.keys.iter().map(|key| seen(key, observed).counter);
    let mut header = next_header(&observed.store, counters.max().unwrap_or_default());
    let (mut put, mut remove) = (BTreeMap::new(), BTreeSet::new());
    for draft in drafts.iter_mut().filter(|draft| draft.edit.changed) {
        draft.edit.section.counter = header.counter;
        let current = draft
            .bytes
            .get(&draft.edit.section.current)
            .or_else(|| ready.get(&draft.key.name).map(|ready| &ready.bytes));
        let mac = current.and_then(|bytes| mac_of(model, draft.key, &draft.edit.section, bytes));
        let sealed = Sealed {
            section: draft.edit.section.clone(),
            mac,
        };
        header.keys.insert(draft.key.name.clone(), sealed);
        put.append(&mut draft.edit.put);
        remove.append(&mut draft.edit.remove);
    }
    remove.retain(|item| !put.contains_key(item));
    let change = secret::Change::new(base, &header, put, remove)?;
    let put = change.put.iter();
    let added: usize = put.map(|(name, bytes)| name.len() + bytes.bytes().len()).sum();
    if size + added + change.header.len() + HEADER.len() > MAX_BYTES {
        return Err(Fault::invalid_spec(format!(
            "Secret {} would grow beyond 512 KiB, so nothing was written; spread the keys over several SealConfigs",
            secret_name(&model.id)
        )));
    }
    let (namespace, name) = (&model.id.namespace, secret_name(&model.id));
    let (facts, known) = secret::save(&context.client, namespace, &name, &change).await?;
    if let Some(known) = known {
        context.index.saw_secret(namespace, &name, &known);
    }
    tracing::info!(
        namespace = namespace.as_str(),
        name = model.id.name.as_str(),
        "the wrapped store was written and read back"
    );
    observed.store = facts;
    Ok(())
}
