//! What is done about one key: it is made, rebuilt from what was delivered, copied and rotated.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use super::{
    Draft,
    hand::Hand,
    source::{decode, plain, random, read},
};
use crate::{
    api::Reason,
    controller::{
        managed::material,
        open::{open_brings, open_candidate},
    },
    kube_ext::{bounded, cluster::read_fault, facts},
    seal::{
        Fault, KeyBytes,
        digest::brought_inputs,
        model::Origin,
        store::{
            Store,
            proof::{authentic, fits, value_of},
            secret_name,
            standing::{Delivered, Due, Rebuild, seen, successor, trigger},
        },
    },
};

impl<'a> Hand<'_, 'a> {
    /// The first version.
    pub(super) async fn make(
        &self,
        seals: &[String],
        brought: Option<&KeyBytes>,
    ) -> Result<Draft<'a>, Fault> {
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
        let mut draft = Draft::new(self.key, self.fresh(1));
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
        let copies = draft.made(self.wrap_all(version, bytes, seals).await);
        if !every || copies.len() == seals.len() {
            draft.edit.add_version(version, self.version(bytes), copies);
        }
    }

    /// The key as it was delivered.
    pub(super) async fn rebuild(&self, from: &Rebuild, seals: &[String]) -> Result<Draft<'a>, Fault> {
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
        let mut draft = Draft::new(self.key, section);
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
        let found = read(&self.context.client, &self.model.id.namespace, &from.secret).await?;
        let bytes = found
            .get(&from.entry)
            .and_then(|bytes| decode(bytes, from.encoding));
        Ok(bytes.filter(|bytes| value_of(self.model, self.key, bytes).as_ref() == Some(&from.mark)))
    }

    /// What is due.
    pub(super) async fn mend(&self, due: &Due, brought: Option<&KeyBytes>) -> Result<Draft<'a>, Fault> {
        let Some((store, sealed)) = self
            .store
            .and_then(|store| Some((store, store.header.keys.get(&self.key.name)?)))
        else {
            return Err(Fault::transient(
                Reason::Pending,
                "the wrapped store is read again",
            ));
        };
        let mut draft = Draft::new(self.key, sealed.section.clone());
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
            for copy in draft.made(self.wrap_all(version, bytes, &seals).await) {
                draft.edit.add_copy(store, version, copy, self.observed.now);
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
}
