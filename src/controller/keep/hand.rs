//! What the work on one key is done with: copies are wrapped, opened again, and described.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use futures::future::join_all;

use super::first_fault;
use crate::{
    api::Reason,
    controller::{
        apply::{admitted, connect, pinned},
        context::Context,
        open::open_version,
    },
    provider::Bound,
    seal::{
        Fault, KeyBytes,
        digest::brought_inputs,
        managed::record::Managed,
        model::{Key, Model, Origin, Seal},
        observed::Observed,
        outcome::Described,
        store::{
            CopyRecord, NewCopy, Provenance, Section, Store, StoreFacts, Version, highest_version,
            item_digest,
            proof::{place, value_of},
            standing::{trigger, wrapping},
        },
    },
};

/// Seals that were asked to open a copy, and what came of it.
pub(super) type Asked = Vec<(String, Result<(), Fault>)>;

/// What the work on one key needs.
pub struct Hand<'w, 'a> {
    pub(super) context: &'w Context,
    pub(super) model: &'w Model,
    pub(super) observed: &'w Observed,
    pub(super) store: Option<&'w Store>,
    pub(super) key: &'a Key,
    /// KMS keys whose heed of the context is proven, though no copy under them is stored yet.
    pub(super) proven: BTreeSet<String>,
    pub(super) asked: Mutex<Asked>,
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

    /// The seals under which new copies are made.
    pub(super) fn wrapping(&self) -> Vec<String> {
        wrapping(self.model, self.key)
            .map(|seal| seal.name.clone())
            .collect()
    }

    pub(super) fn fresh(&self, version: u32) -> Section {
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

    pub(super) async fn open(&self, store: &Store, version: u32) -> Result<KeyBytes, Fault> {
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

fn unfit(key_id: &str) -> Fault {
    Fault::denied(
        Reason::ContextMismatch,
        format!(
            "key {key_id} opened a copy although its context was altered, so copies under it could be opened anywhere; use a \
             symmetric key (AWS: SYMMETRIC_DEFAULT, OCI: AES)"
        ),
    )
}
