//! The wrapped store: operator-made copies of keys, in one Secret beside the SealConfig (`docs/store.md`).
//!
//! [`place`] is what binds a copy, [`header`] what the store says, [`mod@standing`] what follows from it, and [`edit`] how it
//! is changed. All pure.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;

use super::{Ciphertext, model::ObjectId};

pub mod edit;
pub mod header;
pub mod place;
pub mod proof;
pub mod rekey;
pub mod sets;
pub mod standing;

pub use edit::{Edit, NewCopy};
pub use header::{CopyRecord, Former, Header, Provenance, Sealed, Section, Version};
pub use place::{Class, Place};
pub use standing::{Kept, Standing, standing};

/// The type of the Secret. One of another type is never touched.
pub const SECRET_TYPE: &str = "autounseal.dev/wrapped";

/// The entry that holds the header.
pub const HEADER: &str = "header";

/// The largest store that is read or written, in bytes of its entries (security rule S19).
pub const MAX_BYTES: usize = 512 * 1024;

/// The name of an object's store.
pub fn secret_name(id: &ObjectId) -> String {
    name_of(id.kind, &id.name)
}

/// The name of the store of an object of that kind and name.
pub fn name_of(kind: &str, name: &str) -> String {
    format!("{name}.{}.wrapped", kind.to_ascii_lowercase())
}

/// The entry of a copy.
pub fn item(key: &str, version: u32, seal: &str) -> String {
    sets::item(key, version, seal).unwrap_or_else(|| format!("key.{key}.v{version}.{seal}"))
}

/// The highest version of a key that any entry of a store is of: its number was used, whatever a header says.
pub fn highest_version<'n>(key: &str, entries: impl IntoIterator<Item = &'n String>) -> u32 {
    let of_key = format!("key.{key}.v");
    let numbers = entries
        .into_iter()
        .filter_map(|entry| entry.strip_prefix(&of_key)?.split('.').next()?.parse().ok());
    numbers.max().unwrap_or_default()
}

/// The entry of a copy that has a successor: told from it by the KMS key and the time.
pub fn former_item(key: &str, version: u32, seal: &str, copy: &CopyRecord) -> String {
    let tag = HEXLOWER.encode(&sha256(format!("{} {}", copy.key_id, copy.digest).as_bytes())[..4]);
    format!("{}.{tag}", item(key, version, seal))
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// What was found where the store should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreFacts {
    /// Nobody looked: no key needs it.
    #[default]
    NotLooked,
    /// No such Secret.
    Absent,
    /// A Secret of that name that is not of our type.
    NotOwned,
    /// Ours, but the header cannot be read. The names of the entries that are left.
    Corrupt(Revision, BTreeSet<String>),
    /// Ours.
    Found(Store),
}

/// Which object, and which state of it, was read: a write must meet the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// UID.
    pub uid: String,
    /// resourceVersion.
    pub resource_version: String,
}

/// A store that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// What was read.
    pub revision: Revision,
    /// The header.
    pub header: Header,
    /// Every other entry.
    pub items: BTreeMap<String, Ciphertext>,
}

impl Store {
    /// An item, if it is the one that was recorded.
    pub fn intact(&self, item: &str, copy: &CopyRecord) -> Option<&Ciphertext> {
        self.items
            .get(item)
            .filter(|bytes| item_digest(bytes) == copy.digest)
    }
}

/// Reads a store's entries.
pub fn read(revision: Revision, mut data: BTreeMap<String, Vec<u8>>) -> StoreFacts {
    let size: usize = data.iter().map(|(name, bytes)| name.len() + bytes.len()).sum();
    let header = data
        .remove(HEADER)
        .filter(|_| size <= MAX_BYTES)
        .and_then(|bytes| serde_json::from_slice::<Header>(&bytes).ok())
        .filter(|header| {
            header.format == header::FORMAT && header.keys.values().all(|key| is_sound(&key.section))
        });
    let items: BTreeMap<_, _> = data
        .into_iter()
        .map(|(name, bytes)| (name, Ciphertext::new(bytes)))
        .collect();
    match header {
        Some(header) => StoreFacts::Found(Store {
            revision,
            header,
            items,
        }),
        None => StoreFacts::Corrupt(revision, items.into_keys().collect()),
    }
}

/// What every section that we write holds.
fn is_sound(section: &Section) -> bool {
    let versions = &section.versions;
    versions.contains_key(&section.current)
        && versions.keys().all(|version| (1..section.next).contains(version))
}

/// The digest of an item, as it is recorded.
pub fn item_digest(bytes: &Ciphertext) -> String {
    HEXLOWER.encode(&bytes.digest())
}

#[cfg(test)]
mod tests;
