//! What is written down of AWS in the wrapped store, while a reconcile works on it: read, changed in one authenticated
//! write, and the material opened for those who need it.

use std::collections::BTreeMap;

use crate::{
    api::Reason,
    controller::{
        context::Context,
        keep::{amend, first_fault},
        open::open_version,
    },
    provider::aws::{PublicKey, Wrapping},
    seal::{
        Fault, KeyBytes,
        managed::record::{Managed, Record},
        model::{Key, Model},
        observed::Observed,
        store::{
            Sealed, Store, StoreFacts,
            proof::{authentic, fits},
        },
    },
};

/// The store of one ManagedKey and the material in it.
pub struct Ledger<'w> {
    context: &'w Context,
    model: &'w Model,
    key: &'w Key,
    observed: &'w mut Observed,
    /// Versions that were opened, until the reconcile ends.
    opened: BTreeMap<u32, KeyBytes>,
    /// What is written down was authenticated in this reconcile.
    proven: bool,
}

impl<'w> Ledger<'w> {
    /// Over the store as it was observed.
    pub fn new(context: &'w Context, model: &'w Model, key: &'w Key, observed: &'w mut Observed) -> Self {
        Self {
            context,
            model,
            key,
            observed,
            opened: BTreeMap::new(),
            proven: false,
        }
    }

    fn store(&self) -> Option<&Store> {
        match &self.observed.store {
            StoreFacts::Found(store) => Some(store),
            _ => None,
        }
    }

    /// The section of the material.
    pub fn sealed(&self) -> Option<&Sealed> {
        self.store()?.header.keys.get(&self.key.name)
    }

    /// What is written down of a distribution.
    pub fn record(&self, name: &str) -> Option<Record> {
        let managed = self.sealed()?.section.managed.as_ref()?;
        managed.distributions.get(name).cloned()
    }

    /// Holds that what is written down was written by us, under the material itself. Before anything in AWS is changed by
    /// it: the status only says that somebody found so before, and others may be able to write a status.
    ///
    /// # Errors
    /// `StoreCorrupt`, and why the material could not be opened.
    pub async fn prove(&mut self) -> Result<(), Fault> {
        if self.proven {
            return Ok(());
        }
        let sealed = self.sealed().cloned().ok_or_else(again)?;
        let current = sealed.section.current;
        self.open(current).await?;
        let bytes = self.opened.get(&current).ok_or_else(again)?;
        authentic(self.model, self.key, &sealed, bytes)?;
        self.proven = true;
        Ok(())
    }

    /// Writes a change down and reads it back: only then what it announces may be done.
    ///
    /// # Errors
    /// Why the material could not be opened, which authenticates what is written, or the store not written.
    pub async fn write(&mut self, change: impl FnOnce(&mut Managed)) -> Result<(), Fault> {
        self.prove().await?;
        let mut section = self.sealed().ok_or_else(again)?.section.clone();
        let current = section.current;
        let bytes = self.opened.remove(&current).ok_or_else(again)?;
        if let Some(managed) = &mut section.managed {
            change(managed);
        }
        let (bytes, outcome) = amend(self.context, self.model, self.observed, self.key, section, bytes).await;
        if let Some(bytes) = bytes {
            self.opened.insert(current, bytes);
        }
        outcome
    }

    /// Wraps a version for its way to AWS.
    ///
    /// # Errors
    /// Why the material could not be opened.
    pub async fn wrap(
        &mut self,
        version: u32,
        wrapping: Wrapping,
        public: &PublicKey,
    ) -> Result<Vec<u8>, Fault> {
        self.open(version).await?;
        let bytes = self.opened.get(&version).ok_or_else(again)?;
        public.wrap(wrapping, bytes)
    }

    async fn open(&mut self, version: u32) -> Result<(), Fault> {
        if self.opened.contains_key(&version) {
            return Ok(());
        }
        let store = self.store().ok_or_else(again)?;
        let (attempts, bytes) = open_version(self.context, self.model, self.key, store, version, None).await;
        let bytes = bytes.ok_or_else(|| first_fault(attempts))?;
        let record = self
            .sealed()
            .and_then(|sealed| sealed.section.versions.get(&version));
        fits(self.model, self.key, record, &bytes)?;
        self.opened.insert(version, bytes);
        Ok(())
    }
}

fn again() -> Fault {
    Fault::transient(Reason::Pending, "the wrapped store is read again")
}
