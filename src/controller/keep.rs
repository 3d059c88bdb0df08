//! Looks after stored keys: makes, copies, rotates and rebuilds them. What is made here is written to the wrapped store
//! and read back before anybody uses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use zeroize::Zeroizing;

use super::{
    apply::{admitted, connect, fail, pinned},
    context::Context,
    hedge::Attempt,
    managed::material,
    open::{Held, Ready, consumer_key_id, open_brings, open_candidate, open_version},
};
use crate::{
    api::{Encoding, Reason},
    kube_ext::{
        bounded,
        cluster::{entries, read_fault},
        facts, store as secret,
    },
    provider::Bound,
    seal::{
        Ciphertext, Fault, KeyBytes,
        checks::Findings,
        digest::{brought_inputs, seal_inputs, tend_inputs},
        managed::record::Managed,
        model::{Key, MAX_SOURCE, Model, Origin, Seal},
        observed::Observed,
        outcome::{Described, KeyOutcome, Outcomes, StoredState},
        plan::{Tend, Work},
        store::{
            CopyRecord, Edit, HEADER, MAX_BYTES, NewCopy, Provenance, Sealed, Section, Store, StoreFacts,
            Version,
            edit::next_header,
            highest_version, item_digest,
            proof::{authentic, fits, mac_of, place, value_of},
            secret_name,
            standing::{Delivered, Due, Rebuild, seen, successor, trigger, wrapping},
        },
    },
};

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

/// Seals that were asked to open a copy, and what came of it.
type Asked = Vec<(String, Result<(), Fault>)>;

/// What the work on one key needs.
pub struct Hand<'w, 'a> {
    context: &'w Context,
    model: &'w Model,
    observed: &'w Observed,
    store: Option<&'w Store>,
    key: &'a Key,
    /// KMS keys whose heed of the context is proven, though no copy under them is stored yet.
    proven: BTreeSet<String>,
    asked: Mutex<Asked>,
}

impl<'w, 'a> Hand<'w, 'a> {
    /// For work on a key that is not in the store yet.
    pub fn new(
        context: &'w Context,
        model: &'w Model,
        observed: &'w Observed,
        key: &'a Key,
        proven: BTreeSet<String>,
    ) -> Self {
        Self {
            context,
            model,
            observed,
            store: None,
            key,
            proven,
            asked: Mutex::default(),
        }
    }

    fn start(&self, section: Section) -> Draft<'a> {
        Draft {
            key: self.key,
            edit: Edit::new(&self.key.name, section),
            bytes: BTreeMap::new(),
            faults: Vec::new(),
            wrapped: Vec::new(),
        }
    }

    /// The seals under which new copies are made.
    fn wrapping(&self) -> Vec<String> {
        wrapping(self.model, self.key)
            .map(|seal| seal.name.clone())
            .collect()
    }

    fn fresh(&self, version: u32) -> Section {
        let (source, trigger, inputs) = match &self.key.origin {
            Origin::Generated { .. } => (Provenance::Generated, trigger(self.key, self.observed), None),
            Origin::Imported { .. } => (Provenance::Imported, None, None),
            Origin::Initialized(_) => (Provenance::Initialized, None, None),
            Origin::Brought => {
                let inputs = brought_inputs(self.key, self.observed);
                (Provenance::Brought, None, Some(inputs))
            }
        };
        // Copies that no header speaks of any more have used up their numbers all the same.
        let used = match &self.observed.store {
            StoreFacts::Found(store) => highest_version(&self.key.name, store.items.keys()),
            StoreFacts::Corrupt(_, entries) => highest_version(&self.key.name, entries),
            StoreFacts::NotLooked | StoreFacts::Absent | StoreFacts::NotOwned => 0,
        };
        Section {
            source,
            counter: 0,
            current: version,
            next: version.max(used).saturating_add(1),
            trigger,
            inputs,
            versions: BTreeMap::new(),
            managed: self.key.material.map(Managed::of),
        }
    }

    /// What is recorded of a version with these bytes.
    pub fn version(&self, bytes: &KeyBytes) -> Version {
        Version {
            created: self.observed.now,
            check_value: value_of(self.model, self.key, bytes),
            copies: BTreeMap::new(),
            former: BTreeMap::new(),
            exposed: BTreeSet::new(),
            init: None,
        }
    }

    /// The first version.
    async fn make(&self, seals: &[String], brought: Option<&KeyBytes>) -> Result<Draft<'a>, Fault> {
        let made;
        let bytes = match (&self.key.origin, brought) {
            (_, Some(bytes)) => bytes,
            (Origin::Generated { bytes, .. }, None) => {
                self.never_delivered().await?;
                made = self.fresh_bytes(*bytes).await?;
                &made
            }
            (Origin::Imported { secret, entry }, None) => {
                made = plain(&self.context.client, &self.model.id.namespace, secret, entry).await?;
                &made
            }
            (Origin::Brought, None) => {
                return Err(Fault::transient(Reason::Pending, "it has not been opened yet"));
            }
            (Origin::Initialized(_), None) => {
                return Err(Fault::denied(
                    Reason::StoreMissing,
                    "only its server can make it, and does so once; restore the wrapped store from a backup",
                ));
            }
        };
        let mut draft = self.start(self.fresh(1));
        self.add_version(&mut draft, 1, bytes, seals, !self.key.is_brought())
            .await;
        if draft.edit.changed && brought.is_none() {
            draft.bytes.insert(1, KeyBytes::new(bytes.expose().to_vec()));
        }
        Ok(draft)
    }

    /// The last look before a first key is made: what the watches show may be behind (security rule S5).
    async fn never_delivered(&self) -> Result<(), Fault> {
        let api: Api<Secret> = Api::namespaced(self.context.client.clone(), &self.model.id.namespace);
        for target in &self.model.targets {
            let found = bounded(api.get_metadata_opt(&target.secret))
                .await
                .map_err(|error| {
                    read_fault(
                        &error,
                        "get secrets",
                        &self.model.id.namespace,
                        Reason::DeliveryFailed,
                    )
                })?;
            let Some(found) = found else { continue };
            let facts = facts::secret(&found.metadata);
            let ours = facts.owner_name.as_ref() == Some(&self.model.id.name);
            if ours && facts.delivered.marks.contains_key(&self.key.name) {
                self.context
                    .index
                    .saw_secret(&self.model.id.namespace, &target.secret, &facts);
                return Err(Fault::transient(
                    Reason::Pending,
                    "a Secret turned up that holds it already; it is looked at again",
                ));
            }
        }
        Ok(())
    }

    /// Wraps a new version under `seals`; with `every`, under all of them or not at all.
    async fn add_version(
        &self,
        draft: &mut Draft<'a>,
        version: u32,
        bytes: &KeyBytes,
        seals: &[String],
        every: bool,
    ) {
        let wrapped = self.wrap_all(version, bytes, seals).await;
        let failed = wrapped.iter().any(|(_, result)| result.is_err());
        let mut copies = Vec::new();
        for (seal, result) in wrapped {
            match result {
                Ok(copy) => {
                    copies.push(copy);
                    draft.wrapped.push(seal);
                }
                Err(fault) => draft.faults.push((seal, fault)),
            }
        }
        if !(every && failed) {
            draft.edit.add_version(version, self.version(bytes), copies);
        }
    }

    /// Wraps a version under each of these seals.
    pub async fn wrap_all(
        &self,
        version: u32,
        bytes: &KeyBytes,
        seals: &[String],
    ) -> Vec<(String, Result<NewCopy, Fault>)> {
        let seals = seals.iter().filter_map(|name| self.model.seal(name));
        join_all(seals.map(|seal| async move { (seal.name.clone(), self.wrap(seal, version, bytes).await) }))
            .await
    }

    /// Wraps a version under one seal, and opens the copy again before it counts as one.
    async fn wrap(&self, seal: &Seal, version: u32, bytes: &KeyBytes) -> Result<NewCopy, Fault> {
        let kms = connect(self.context, self.model, seal).await?;
        admitted(self.model, self.observed, seal, &kms).await?;
        let domain = &self.context.settings.binding_domain;
        let place = place(domain, self.model, self.key, version);
        let (pairs, aad) = (place.context(), place.aad());
        let bound = Bound {
            context: &pairs,
            aad: &aad,
        };
        let wrapped = kms.wrap_bound(bytes, &bound).await?;
        let described = Described::Key {
            arn: wrapped.key_id.clone(),
            version: None,
            at: self.observed.now,
            fault: None,
        };
        if let Described::Failed(fault) = pinned(self.observed, seal, described) {
            return Err(fault);
        }
        if !self.is_proven(seal, &wrapped.key_id) {
            let mut altered = pairs.clone();
            altered.insert(
                "autounseal.dev/name".to_owned(),
                format!("{}-altered", self.model.id.name),
            );
            let elsewhere = Bound {
                context: &altered,
                aad: &aad,
            };
            match kms
                .unwrap_bound(&wrapped.ciphertext, &elsewhere, &wrapped.key_id)
                .await
            {
                Ok(_) => return Err(unfit(&wrapped.key_id)),
                Err(fault) if matches!(fault.reason, Reason::ContextMismatch | Reason::CiphertextInvalid) => {
                }
                Err(fault) => return Err(fault),
            }
        }
        let opened = kms
            .unwrap_bound(&wrapped.ciphertext, &bound, &wrapped.key_id)
            .await?;
        if !opened.key.same_as(bytes) {
            return Err(Fault::denied(
                Reason::CopiesDiffer,
                "what the KMS opened is not what was wrapped a moment ago, so the copy was dropped; check what answers at the \
                 endpoint",
            ));
        }
        let record = CopyRecord {
            provider: seal.cloud.provider().to_owned(),
            key_id: wrapped.key_id,
            key_version: wrapped.key_version,
            configured_key_id: seal.cloud.configured_key(),
            endpoint: seal.cloud.endpoints().into_iter().next(),
            made: self.observed.now,
            digest: item_digest(&wrapped.ciphertext),
        };
        Ok(NewCopy {
            seal: seal.name.clone(),
            ciphertext: wrapped.ciphertext,
            record,
        })
    }

    /// Whether a copy under this KMS key was made before, and with it its heed of the context was proven.
    fn is_proven(&self, seal: &Seal, key_id: &str) -> bool {
        let sections = self
            .store
            .into_iter()
            .flat_map(|store| store.header.keys.values());
        let mut copies = sections
            .flat_map(|sealed| sealed.section.versions.values())
            .filter_map(|version| version.copies.get(&seal.name));
        self.proven.contains(key_id) || copies.any(|copy| copy.key_id == key_id)
    }

    /// The key as it was delivered.
    async fn rebuild(&self, from: &Rebuild, seals: &[String]) -> Result<Draft<'a>, Fault> {
        let current = self.take(&from.current).await?.ok_or_else(|| {
            Fault::denied(
                Reason::StoreMissing,
                format!(
                    "Secret {} does not hold it, and Secret {} holds other bytes than were delivered, so nothing was made from \
                     them; restore the store from a backup",
                    secret_name(&self.model.id),
                    from.current.secret
                ),
            )
        })?;
        let sealed = self.store.and_then(|store| store.header.keys.get(&self.key.name));
        let known = sealed.filter(|sealed| authentic(self.model, self.key, sealed, &current).is_ok());
        let section = known.map_or_else(|| self.fresh(from.current.version), |known| known.section.clone());
        let mut draft = self.start(section);
        if let Some(previous) = &from.previous
            && !draft.edit.section.versions.contains_key(&previous.version)
            && let Some(bytes) = self.take(previous).await?
        {
            self.add_version(&mut draft, previous.version, &bytes, seals, false)
                .await;
            // Without it the version in use would be delivered alone, and the last bytes of the one before would go.
            if !draft.edit.changed {
                return Ok(draft);
            }
            draft.bytes.insert(previous.version, bytes);
            draft.edit.changed = false;
        }
        let version = from.current.version;
        self.add_version(&mut draft, version, &current, seals, false)
            .await;
        draft.bytes.insert(version, current);
        Ok(draft)
    }

    /// A version from the Secret that it was delivered to, if its bytes are still those.
    async fn take(&self, from: &Delivered) -> Result<Option<KeyBytes>, Fault> {
        let found = delivered(&self.context.client, &self.model.id.namespace, &from.secret).await?;
        let bytes = found
            .get(&from.entry)
            .and_then(|bytes| decode(bytes, from.encoding));
        Ok(bytes.filter(|bytes| value_of(self.model, self.key, bytes).as_ref() == Some(&from.mark)))
    }

    /// What is due.
    async fn mend(&self, due: &Due, brought: Option<&KeyBytes>) -> Result<Draft<'a>, Fault> {
        let Some((store, sealed)) = self
            .store
            .and_then(|store| Some((store, store.header.keys.get(&self.key.name)?)))
        else {
            return Err(Fault::transient(
                Reason::Pending,
                "the wrapped store is read again",
            ));
        };
        let mut draft = self.start(sealed.section.clone());
        if !due.renew
            && let Some(bytes) = brought
            && authentic(self.model, self.key, sealed, bytes).is_err()
        {
            // The key itself lies elsewhere, so its copies are made anew, in place of what somebody else wrote.
            draft.edit.section = self.fresh(1);
            let (version, seals) = (draft.edit.section.next, self.wrapping());
            self.add_version(&mut draft, version, bytes, &seals, false).await;
            return Ok(draft);
        }
        if brought.is_none() {
            let bytes = self.open(store, draft.edit.section.current).await?;
            authentic(self.model, self.key, sealed, &bytes)?;
            draft.bytes.insert(draft.edit.section.current, bytes);
        }
        if due.accept {
            draft.edit.accept(seen(self.key, self.observed));
        }
        if due.renew
            && let Some(bytes) = brought
        {
            self.renew(&mut draft, bytes).await;
        } else {
            self.copy(&mut draft, store, &due.copies, brought).await;
        }
        for (version, seal) in &due.retire {
            draft.edit.retire(store, *version, seal, self.observed.now);
        }
        for (version, item) in &due.drop {
            self.drop_former(&mut draft, store, *version, item).await;
        }
        let trigger = trigger(self.key, self.observed);
        if let Some(cluster) = &due.cluster {
            draft.edit.note_cluster(cluster);
        }
        if due.trigger {
            draft.edit.note_trigger(trigger.clone());
        }
        if due.rotate {
            self.rotate(&mut draft, trigger).await?;
        }
        Ok(draft)
    }

    /// Bytes that never were before: of that number, or the material of a ManagedKey.
    async fn fresh_bytes(&self, bytes: usize) -> Result<KeyBytes, Fault> {
        match self.key.material {
            Some(type_) if !self.key.brings.is_empty() => {
                let brought = open_brings(self.context, self.model, self.observed, self.key).await?;
                material::check(type_, &brought)?;
                Ok(brought)
            }
            Some(type_) => material::make(type_).await,
            None => random(bytes),
        }
    }

    async fn rotate(&self, draft: &mut Draft<'a>, trigger: Option<String>) -> Result<(), Fault> {
        let Origin::Generated { bytes, .. } = self.key.origin else {
            return Ok(());
        };
        let seals = self.wrapping();
        let (bytes, version) = (self.fresh_bytes(bytes).await?, draft.edit.section.next);
        let current = draft.edit.section.versions.get(&draft.edit.section.current);
        let value = value_of(self.model, self.key, &bytes);
        if value.is_some() && current.is_some_and(|current| current.check_value == value) {
            // Brought in other copies, and the same key.
            draft.edit.note_trigger(trigger);
            return Ok(());
        }
        self.add_version(draft, version, &bytes, &seals, true).await;
        if draft.edit.section.current == version {
            draft.edit.note_trigger(trigger);
            draft.bytes.insert(version, bytes);
        }
        Ok(())
    }

    /// The brought copies have changed: the same key in other copies, or another key.
    async fn renew(&self, draft: &mut Draft<'a>, bytes: &KeyBytes) {
        let value = value_of(self.model, self.key, bytes);
        let recorded = draft.edit.section.versions.get(&draft.edit.section.current);
        let same = value.is_some() && recorded.is_some_and(|record| record.check_value == value);
        if same {
            draft.edit.section.inputs = Some(brought_inputs(self.key, self.observed));
            draft.edit.changed = true;
            return;
        }
        let seals = self.wrapping();
        let version = draft.edit.section.next;
        self.add_version(draft, version, bytes, &seals, false).await;
        if draft.edit.section.current == version {
            draft.edit.section.inputs = Some(brought_inputs(self.key, self.observed));
        }
    }

    /// Makes copies that are missing, damaged, or under a former key of the KMS.
    async fn copy(
        &self,
        draft: &mut Draft<'a>,
        store: &Store,
        copies: &[(u32, String)],
        brought: Option<&KeyBytes>,
    ) {
        let versions: BTreeSet<u32> = copies.iter().map(|(version, _)| *version).collect();
        for version in versions {
            let seals: Vec<String> = copies
                .iter()
                .filter(|(of, _)| *of == version)
                .map(|(_, seal)| seal.clone())
                .collect();
            if brought.is_none() && !draft.bytes.contains_key(&version) {
                match self.open(store, version).await {
                    Ok(bytes) => {
                        draft.bytes.insert(version, bytes);
                    }
                    Err(fault) => {
                        draft
                            .faults
                            .extend(seals.into_iter().map(|seal| (seal, fault.clone())));
                        continue;
                    }
                }
            }
            let Some(bytes) = brought.or_else(|| draft.bytes.get(&version)) else {
                continue;
            };
            // Bytes that are not what was recorded must not be wrapped anew.
            let record = draft.edit.section.versions.get(&version);
            if let Err(fault) = fits(self.model, self.key, record, bytes) {
                let failed = seals.into_iter().map(|seal| (seal, fault.clone()));
                draft.faults.extend(failed);
                continue;
            }
            let wrapped = self.wrap_all(version, bytes, &seals).await;
            for (seal, result) in wrapped {
                match result {
                    Ok(copy) => {
                        draft.edit.add_copy(store, version, copy, self.observed.now);
                        draft.wrapped.push(seal);
                    }
                    Err(fault) => draft.faults.push((seal, fault)),
                }
            }
        }
    }

    /// The second read of the successor, a day or more after the first: only then the former copy goes.
    async fn drop_former(&self, draft: &mut Draft<'a>, store: &Store, version: u32, former: &str) {
        let Some(successor) = successor(self.model, self.key, store, version, former) else {
            return;
        };
        let under = successor.seal.clone();
        let record = draft.edit.section.versions.get(&version);
        let (_, _, opened) =
            open_candidate(self.context, self.model, self.key, store, version, successor).await;
        match opened.and_then(|bytes| fits(self.model, self.key, record, &bytes)) {
            Ok(()) => {
                draft.edit.drop_former(version, former);
                draft.wrapped.push(under);
            }
            Err(fault) => draft.faults.push((under, fault)),
        }
    }

    async fn open(&self, store: &Store, version: u32) -> Result<KeyBytes, Fault> {
        let (attempts, bytes) = open_version(self.context, self.model, self.key, store, version, None).await;
        let answers = attempts
            .iter()
            .map(|(seal, _, result)| (seal.clone(), result.as_ref().map(drop).map_err(Clone::clone)));
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(answers);
        bytes.ok_or_else(|| first_fault(attempts))
    }
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
    let mut draft = Draft {
        key,
        edit: Edit::new(&key.name, section),
        bytes: BTreeMap::from([(current, bytes)]),
        faults: Vec::new(),
        wrapped: Vec::new(),
    };
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
    let header = serde_json::to_vec(&header)
        .map_err(|_| Fault::invalid(Reason::StoreCorrupt, "the header cannot be written"))?;
    let added: usize = put
        .iter()
        .map(|(name, bytes): (&String, &Ciphertext)| name.len() + bytes.bytes().len())
        .sum();
    if size + added + header.len() + HEADER.len() > MAX_BYTES {
        return Err(Fault::invalid(
            Reason::InvalidSpec,
            format!(
                "Secret {} would grow beyond 512 KiB, so nothing was written; spread the keys over several SealConfigs",
                secret_name(&model.id)
            ),
        ));
    }
    let change = secret::Change {
        base,
        header,
        put,
        remove,
    };
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

fn unfit(key_id: &str) -> Fault {
    Fault::denied(
        Reason::ContextMismatch,
        format!(
            "key {key_id} opened a copy although its context was altered, so copies under it could be opened anywhere; use a \
             symmetric key (AWS: SYMMETRIC_DEFAULT, OCI: AES)"
        ),
    )
}

/// So many random bytes.
///
/// # Errors
/// The operating system gives none.
pub fn random(bytes: usize) -> Result<KeyBytes, Fault> {
    let mut key = Zeroizing::new(vec![0; bytes]);
    aws_lc_rs::rand::fill(&mut key).map_err(|_| {
        Fault::transient(
            Reason::Pending,
            "the operating system gives no random bytes; it is tried again",
        )
    })?;
    Ok(KeyBytes::new(std::mem::take(&mut *key)))
}

/// A key that lies in a Secret in the clear.
async fn plain(client: &Client, namespace: &str, name: &str, entry: &str) -> Result<KeyBytes, Fault> {
    let mut found = delivered(client, namespace, name).await?;
    let bytes = found
        .remove(entry)
        .filter(|bytes| (1..=MAX_SOURCE).contains(&bytes.len()));
    let mut bytes = bytes.ok_or_else(|| {
        Fault::invalid(
            Reason::SourceMissing,
            format!("Secret {name} has no entry {entry:?} of 1 byte to 64 KiB; add it, or correct import"),
        )
    })?;
    Ok(KeyBytes::new(std::mem::take(&mut *bytes)))
}

async fn delivered(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, Fault> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = bounded(api.get_opt(name)).await;
    let found = found.map_err(|error| read_fault(&error, "get secrets", namespace, Reason::SourceMissing))?;
    found.map(entries).ok_or_else(|| {
        Fault::invalid(
            Reason::SourceMissing,
            format!("Secret {name} does not exist in this namespace; create it, or correct name"),
        )
    })
}

/// Takes back how an entry was written.
fn decode(bytes: &[u8], encoding: Encoding) -> Option<KeyBytes> {
    let plain = match encoding {
        Encoding::Raw => Ok(bytes.to_vec()),
        Encoding::Base64 => BASE64.decode(bytes),
        Encoding::Base64Url => BASE64URL_NOPAD.decode(bytes),
        Encoding::Hex => HEXLOWER.decode(bytes),
    };
    plain.ok().map(KeyBytes::new)
}
