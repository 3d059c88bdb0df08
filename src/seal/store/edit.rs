//! Changes of one key's section and of its entries. Pure: what a copy holds is made and checked by others.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    CopyRecord, Former, Header, Section, Store, StoreFacts, Version, former_item, header, item,
    standing::Seen,
};
use crate::seal::Ciphertext;

/// A copy that was made, and opened again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCopy {
    /// The seal that it was made under.
    pub seal: String,
    /// The entry's bytes.
    pub ciphertext: Ciphertext,
    /// What is recorded of it.
    pub record: CopyRecord,
}

/// What becomes of one key's section, and of its entries.
#[derive(Clone, Debug)]
pub struct Edit {
    key: String,
    /// The section as it will be.
    pub section: Section,
    /// Entries that are new or replaced.
    pub put: BTreeMap<String, Ciphertext>,
    /// Entries that go.
    pub remove: BTreeSet<String>,
    /// Something is to be written.
    pub changed: bool,
}

impl Edit {
    /// Nothing yet.
    pub fn new(key: &str, section: Section) -> Self {
        Self {
            key: key.to_owned(),
            section,
            put: BTreeMap::new(),
            remove: BTreeSet::new(),
            changed: false,
        }
    }

    /// A version with its first copies, which becomes the one in use. One that is known, whose copies were all damaged,
    /// keeps its age and what else is recorded of it; `fresh` is for one that is not.
    pub fn add_version(&mut self, version: u32, fresh: Version, copies: Vec<NewCopy>) {
        if copies.is_empty() {
            return;
        }
        let record = self.section.versions.entry(version).or_insert(fresh);
        for copy in copies {
            self.put
                .insert(item(&self.key, version, &copy.seal), copy.ciphertext);
            record.copies.insert(copy.seal, copy.record);
        }
        self.section.current = version;
        self.section.next = self.section.next.max(version.saturating_add(1));
        self.changed = true;
    }

    /// A copy under a seal that has none, a damaged one, or one under a former key of the KMS.
    pub fn add_copy(&mut self, store: &Store, version: u32, copy: NewCopy, now: Timestamp) {
        self.supersede(store, version, &copy.seal, now);
        let Some(record) = self.section.versions.get_mut(&version) else {
            return;
        };
        self.put
            .insert(item(&self.key, version, &copy.seal), copy.ciphertext);
        record.copies.insert(copy.seal, copy.record);
        self.changed = true;
    }

    /// The copy of a seal that is gone from the spec: kept for its retention, and the version counts as exposed.
    pub fn retire(&mut self, store: &Store, version: u32, seal: &str, now: Timestamp) {
        self.supersede(store, version, seal, now);
        self.remove.insert(item(&self.key, version, seal));
        if let Some(record) = self.section.versions.get_mut(&version) {
            record.exposed.insert(seal.to_owned());
        }
        self.changed = true;
    }

    /// A former copy whose retention is over, and whose successor was read for the second time.
    pub fn drop_former(&mut self, version: u32, former: &str) {
        if let Some(record) = self.section.versions.get_mut(&version) {
            record.former.remove(former);
        }
        self.remove.insert(former.to_owned());
        self.changed = true;
    }

    /// A human accepted this state: numbers that were used after it stay used.
    pub fn accept(&mut self, seen: Seen) {
        self.section.next = self.section.next.max(seen.version.saturating_add(1));
        self.changed = true;
    }

    /// The trigger that was acted on.
    pub fn note_trigger(&mut self, trigger: Option<String>) {
        self.section.trigger = trigger;
        self.changed = true;
    }

    /// How the cluster calls itself that the version in use is of.
    pub fn note_cluster(&mut self, id: &str) {
        let current = self.section.versions.get_mut(&self.section.current);
        if let Some(init) = current.and_then(|version| version.init.as_mut()) {
            init.cluster_id = Some(id.to_owned());
            self.changed = true;
        }
    }

    /// Moves an undamaged copy out of the way, to be kept for its retention.
    fn supersede(&mut self, store: &Store, version: u32, seal: &str, now: Timestamp) {
        let name = item(&self.key, version, seal);
        let Some(record) = self.section.versions.get_mut(&version) else {
            return;
        };
        let Some(copy) = record.copies.remove(seal) else {
            return;
        };
        let Some(bytes) = store.intact(&name, &copy) else {
            return;
        };
        let former = former_item(&self.key, version, seal, &copy);
        self.put.insert(former.clone(), bytes.clone());
        let former_copy = Former {
            seal: seal.to_owned(),
            copy,
            replaced: now,
        };
        record.former.insert(former, former_copy);
    }
}

/// The header that the next write begins with: its counter is above all that was found or ever seen.
pub fn next_header(found: &StoreFacts, seen: u64) -> Header {
    let mut next = match found {
        StoreFacts::Found(store) => store.header.clone(),
        StoreFacts::NotLooked | StoreFacts::Absent | StoreFacts::NotOwned | StoreFacts::Corrupt(..) => {
            Header {
                format: header::FORMAT,
                counter: 0,
                init: None,
                forgotten: None,
                rekey: None,
                proven: None,
                keys: BTreeMap::new(),
            }
        }
    };
    next.counter = next.counter.max(seen).saturating_add(1);
    next
}
