//! What servers answered when they were initialised: sets of shares or of recovery keys, each with a root token.
//!
//! An item of a set is a stored key like others, so that it is copied, retired and checked like them; its version is the
//! number of its set. Sets lie beside each other: no item is ever written over.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Class, Section, Store, StoreFacts, secret_name};
use crate::{
    api::{KeyStatus, Purpose, Reason},
    seal::{
        Fault,
        model::{Key, Model, Origin},
    },
};

/// The bytes that one copy takes in a store with its record, generously.
const BYTES_OF_A_COPY: usize = 1200;

/// Written before a server is asked to initialise itself, so that it is never asked twice (security rule S11).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Marker {
    /// Random: tells one attempt from another.
    pub id: String,
    /// The number of the set.
    pub set: u32,
    /// The pod.
    pub pod: String,
    /// When.
    pub at: Timestamp,
}

/// Which initialisation a version comes from. Authenticated with its section.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Initialized {
    /// The marker's id.
    pub id: String,
    /// The pod that answered.
    pub pod: String,
    /// How the cluster called itself when it was first seen unsealed.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
}

/// What the store holds of initialisations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing that counts.
    Nothing,
    /// A marker, and no set.
    Marker(Marker),
    /// A set.
    Set,
    /// It cannot be told, and why: then nothing is initialised.
    Unknown(Fault),
}

/// The name of an item's section, which no key of a spec can have. `number` counts from 1; a root token is the first of
/// its set.
pub fn name(class: Class, number: u32) -> String {
    let word = match class {
        Class::RecoveryShare => "recovery",
        Class::RootToken => "root-token",
        Class::UnsealShare | Class::Key | Class::Managed => "share",
    };
    format!("{word}.{number}")
}

/// The class of a section of that name, if it is an item of a set.
pub fn class(name: &str) -> Option<Class> {
    let (word, number) = name.split_once('.')?;
    number.parse::<u32>().ok().filter(|number| *number > 0)?;
    match word {
        "share" => Some(Class::UnsealShare),
        "recovery" => Some(Class::RecoveryShare),
        "root-token" if number == "1" => Some(Class::RootToken),
        _ => None,
    }
}

/// The entry of a copy of a section of that name; `None` = it is no item of a set.
pub fn item(name: &str, version: u32, seal: &str) -> Option<String> {
    let item = match class(name)? {
        Class::RootToken => format!("root-token.{seal}"),
        _ => format!("{name}.{seal}"),
    };
    Some(if version == 1 {
        item
    } else {
        format!("set{version}.{item}")
    })
}

/// An item of a set, as a key.
pub fn key(name: &str) -> Option<Key> {
    Some(Key {
        name: name.to_owned(),
        purpose: Purpose::Other,
        consumer_key_id: None,
        check_value: None,
        origin: Origin::Initialized(class(name)?),
        copies: Vec::new(),
    })
}

/// The items of every set, those that were lost as well; by class and number. A root token may go.
pub fn keys(store: &StoreFacts, known: &[KeyStatus]) -> Vec<Key> {
    let held: Vec<&String> = match store {
        StoreFacts::Found(store) => store.header.keys.keys().collect(),
        _ => Vec::new(),
    };
    let known = known
        .iter()
        .map(|status| &status.name)
        .filter(|name| class(name) != Some(Class::RootToken));
    let names: BTreeSet<(usize, &String)> = known
        .chain(held)
        .filter(|name| class(name).is_some())
        .map(|name| (name.len(), name))
        .collect();
    let mut keys: Vec<Key> = names.into_iter().filter_map(|(_, name)| key(name)).collect();
    keys.sort_by_key(|key| match key.origin {
        Origin::Initialized(Class::UnsealShare) => 0,
        Origin::Initialized(Class::RecoveryShare) => 1,
        _ => 2,
    });
    keys
}

/// What the store holds.
pub fn held(model: &Model, store: &StoreFacts, known: &[KeyStatus]) -> Held {
    let secret = secret_name(&model.id.name);
    let missing = |above: u32| {
        known.iter().any(|status| {
            let counts = !matches!(class(&status.name), None | Some(Class::RootToken));
            counts && status.version > above
        })
    };
    let lost = || {
        Held::Unknown(Fault::denied(
            Reason::StoreMissing,
            format!(
                "the servers were initialised before, and Secret {secret} does not hold what they answered any more; nothing \
                 is initialised: restore that Secret from a backup"
            ),
        ))
    };
    let store = match store {
        StoreFacts::NotLooked => {
            return Held::Unknown(Fault::transient(
                Reason::Pending,
                "the wrapped store is read again",
            ));
        }
        StoreFacts::NotOwned => {
            return Held::Unknown(Fault::denied(
                Reason::StoreNotOwned,
                format!(
                    "Secret {secret} exists and is not of type {}, so nothing could be kept; rename or delete it",
                    super::SECRET_TYPE
                ),
            ));
        }
        StoreFacts::Corrupt(..) => {
            return Held::Unknown(Fault::denied(
                Reason::StoreCorrupt,
                format!(
                    "the header of Secret {secret} cannot be read; nothing is initialised: restore it from a backup"
                ),
            ));
        }
        StoreFacts::Absent if missing(0) => return lost(),
        StoreFacts::Absent => return Held::Nothing,
        StoreFacts::Found(store) => store,
    };
    let forgotten = store.header.forgotten.unwrap_or_default();
    let mut sections = sections(store);
    if sections.any(|(class, section)| class != Class::RootToken && section.current > forgotten) {
        return Held::Set;
    }
    if let Some(marker) = &store.header.init {
        return Held::Marker(marker.clone());
    }
    if missing(forgotten) {
        return lost();
    }
    // Copies that no header speaks of are a set all the same.
    let stray = store.items.keys().any(|item| {
        let set = item.split('.').next().unwrap_or_default();
        let of_a_set = ["share", "recovery"].contains(&set) || set.starts_with("set");
        of_a_set && !accounted(store, item)
    });
    if stray {
        return Held::Unknown(Fault::denied(
            Reason::StoreCorrupt,
            format!(
                "Secret {secret} holds shares of which its header does not speak; nothing is initialised: restore it from a \
                 backup"
            ),
        ));
    }
    Held::Nothing
}

fn sections(store: &Store) -> impl Iterator<Item = (Class, &Section)> {
    let keys = store.header.keys.iter();
    keys.filter_map(|(name, sealed)| Some((class(name)?, &sealed.section)))
}

fn accounted(store: &Store, item: &str) -> bool {
    store.header.keys.iter().any(|(name, sealed)| {
        sealed.section.versions.iter().any(|(version, record)| {
            let mut copies = record.copies.keys();
            record.former.contains_key(item) || copies.any(|seal| super::item(name, *version, seal) == item)
        })
    })
}

/// The number of the next set, which none ever had.
pub fn next(store: &StoreFacts, known: &[KeyStatus]) -> u32 {
    let seen = known
        .iter()
        .filter(|status| class(&status.name).is_some())
        .map(|status| status.version);
    let of_store = match store {
        StoreFacts::Found(store) => {
            let highest = sections(store)
                .map(|(_, section)| section.next.saturating_sub(1))
                .max();
            let marker = store.header.init.as_ref().map(|marker| marker.set);
            highest.max(marker).max(store.header.forgotten)
        }
        _ => None,
    };
    seen.max().max(of_store).unwrap_or_default().saturating_add(1)
}

/// Whether so many shares under so many seals, with a root token, fit into the store beside what is there.
///
/// # Errors
/// `InvalidSpec`.
pub fn fits(model: &Model, store: &StoreFacts, shares: u8, seals: usize) -> Result<(), Fault> {
    let size = match store {
        StoreFacts::Found(store) => {
            let items = store.items.iter();
            let items: usize = items.map(|(name, bytes)| name.len() + bytes.bytes().len()).sum();
            items + serde_json::to_vec(&store.header).map_or(0, |header| header.len())
        }
        _ => 0,
    };
    if size + (usize::from(shares) + 1) * seals * BYTES_OF_A_COPY <= super::MAX_BYTES {
        return Ok(());
    }
    Err(Fault::invalid(
        Reason::InvalidSpec,
        format!(
            "{shares} shares under {seals} seals would not fit into the 512 KiB of Secret {}, so nothing is initialised; ask \
             for fewer shares in unseal.initialize, or keep keys in another SealConfig",
            secret_name(&model.id.name)
        ),
    ))
}

/// How the cluster called itself that the newest set is of, if that was recorded.
pub fn cluster_id(store: &StoreFacts) -> Option<&str> {
    let StoreFacts::Found(store) = store else {
        return None;
    };
    let newest = sections(store)
        .filter(|(class, _)| *class != Class::RootToken)
        .max_by_key(|(_, section)| section.current)?;
    let current = newest.1.current;
    sections(store)
        .filter(|(_, section)| section.current == current)
        .find_map(|(_, section)| {
            section
                .versions
                .get(&current)?
                .init
                .as_ref()?
                .cluster_id
                .as_deref()
        })
}

/// Since when a root token is held.
pub fn token_since(store: &StoreFacts) -> Option<Timestamp> {
    let StoreFacts::Found(store) = store else {
        return None;
    };
    let token = sections(store).find(|(class, _)| *class == Class::RootToken)?.1;
    token.versions.values().map(|version| version.created).min()
}

/// The shares of the newest set, in their order: the only ones that are given to servers.
pub fn newest<'m>(keys: impl Iterator<Item = &'m Key>, store: &StoreFacts) -> Vec<&'m Key> {
    let StoreFacts::Found(store) = store else {
        return Vec::new();
    };
    let current = |key: &Key| {
        let sealed = store.header.keys.get(&key.name)?;
        Some(sealed.section.current)
    };
    let keys: Vec<&Key> = keys
        .filter(|key| key.origin == Origin::Initialized(Class::UnsealShare))
        .collect();
    let newest = keys.iter().filter_map(|key| current(key)).max();
    keys.into_iter()
        .filter(|key| newest.is_some() && current(key) == newest)
        .collect()
}
