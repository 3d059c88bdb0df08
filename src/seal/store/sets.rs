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

/// The name of an item's section, which no key of a spec can have. `number`: which share, from 1; of a root token that of
/// its set, so that one goes without the others.
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
        "root-token" => Some(Class::RootToken),
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
        material: None,
        brings: Vec::new(),
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
    let secret = secret_name(&model.id);
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
            let rekey = store.header.rekey.as_ref().map(|rekey| rekey.set);
            highest.max(marker).max(rekey).max(store.header.forgotten)
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
    Err(Fault::invalid_spec(format!(
        "{shares} shares under {seals} seals would not fit into the 512 KiB of Secret {}, so nothing is initialised; ask \
             for fewer shares in unseal.initialize, or keep keys in another SealConfig",
        secret_name(&model.id)
    )))
}

/// How the cluster called itself that the newest set is of, if that was recorded.
pub fn cluster_id(store: &StoreFacts) -> Option<&str> {
    let StoreFacts::Found(store) = store else {
        return None;
    };
    let newest = newest_number(store)?;
    sections(store)
        .filter(|(_, section)| section.current == newest)
        .find_map(|(_, section)| {
            section
                .versions
                .get(&newest)?
                .init
                .as_ref()?
                .cluster_id
                .as_deref()
        })
}

/// The number of the newest set.
pub fn newest_number(store: &Store) -> Option<u32> {
    let shares = sections(store).filter(|(class, _)| *class != Class::RootToken);
    shares.map(|(_, section)| section.current).max()
}

/// Whether an item is of the newest set. A share that a rotation to fewer ones left behind is not.
pub fn is_of_newest(store: &Store, name: &str) -> bool {
    let newest = newest_number(store);
    let sealed = store.header.keys.get(name);
    newest.is_some() && sealed.map(|sealed| sealed.section.current) == newest
}

/// How many items of a class the newest set has.
pub fn count(store: &Store, of: Class) -> usize {
    let names = store.header.keys.keys();
    names
        .filter(|name| class(name) == Some(of) && is_of_newest(store, name))
        .count()
}

/// The root token of the newest initialisation, if it is held; replaced shares have none of their own. Those of servers
/// that were given up are of no account.
pub fn token(store: &StoreFacts) -> Option<Key> {
    let StoreFacts::Found(store) = store else {
        return None;
    };
    let given_up = store.header.forgotten.unwrap_or_default();
    let held = sections(store).filter(|(class, _)| *class == Class::RootToken);
    let newest = held.map(|(_, section)| section.current).max()?;
    (newest > given_up)
        .then(|| key(&name(Class::RootToken, newest)))
        .flatten()
}

/// Since when a root token is held.
pub fn token_since(store: &StoreFacts) -> Option<Timestamp> {
    let name = token(store)?.name;
    let StoreFacts::Found(store) = store else {
        return None;
    };
    let versions = store.header.keys.get(&name)?.section.versions.values();
    versions.map(|version| version.created).min()
}

/// Of these keys those of the newest set, in their order: the only ones that are given to servers.
pub fn newest<'m>(keys: impl Iterator<Item = &'m Key>, store: &StoreFacts) -> Vec<&'m Key> {
    let StoreFacts::Found(store) = store else {
        return Vec::new();
    };
    let current = |key: &Key| {
        let sealed = store.header.keys.get(&key.name)?;
        Some(sealed.section.current)
    };
    let keys: Vec<&Key> = keys.filter(|key| key.is_answer()).collect();
    let newest = keys.iter().filter_map(|key| current(key)).max();
    keys.into_iter()
        .filter(|key| newest.is_some() && current(key) == newest)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::{
        api::SealConfig,
        seal::{
            Ciphertext,
            store::{CopyRecord, Header, Provenance, Revision, Sealed, Version, item_digest},
        },
    };

    fn model() -> Model {
        let config: SealConfig = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "vault", "namespace": "v", "uid": "u"},
            "spec": {"seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a"}}]},
        }))
        .unwrap();
        crate::seal::model::parse(&config).unwrap()
    }

    fn marker(set: u32) -> Marker {
        Marker {
            id: "x".into(),
            set,
            pod: "vault-0".into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// A store with these items, each of these sets, under one seal.
    fn store(items: &[(&str, &[u32])], init: Option<Marker>, forgotten: Option<u32>) -> Store {
        let bytes = Ciphertext::new(vec![1; 300]);
        let record = CopyRecord {
            provider: "awskms".into(),
            key_id: "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab".into(),
            key_version: None,
            configured_key_id: "alias/a".into(),
            endpoint: None,
            made: Timestamp::UNIX_EPOCH,
            digest: item_digest(&bytes),
        };
        let mut store = Store {
            revision: Revision::default(),
            header: Header {
                format: 1,
                counter: 1,
                init,
                forgotten,
                rekey: None,
                proven: None,
                keys: BTreeMap::new(),
            },
            items: BTreeMap::new(),
        };
        for (name, sets) in items {
            let version = |set: &u32| {
                let version = Version {
                    created: Timestamp::UNIX_EPOCH,
                    check_value: None,
                    copies: [("aws".to_owned(), record.clone())].into(),
                    former: BTreeMap::new(),
                    exposed: BTreeSet::new(),
                    init: Some(Initialized {
                        id: "x".into(),
                        pod: "vault-0".into(),
                        cluster_id: (*name == "share.1").then(|| format!("c{set}")),
                    }),
                };
                (*set, version)
            };
            let current = *sets.iter().max().unwrap();
            let section = Section {
                source: Provenance::Initialized,
                counter: 1,
                current,
                next: current + 1,
                trigger: None,
                inputs: None,
                versions: sets.iter().map(version).collect(),
                managed: None,
            };
            for set in *sets {
                store
                    .items
                    .insert(item(name, *set, "aws").unwrap(), bytes.clone());
            }
            store
                .header
                .keys
                .insert((*name).to_owned(), Sealed { section, mac: None });
        }
        store
    }

    fn known(name: &str, version: u32) -> KeyStatus {
        KeyStatus {
            name: name.into(),
            version,
            ..KeyStatus::default()
        }
    }

    fn found(store: Store) -> StoreFacts {
        StoreFacts::Found(store)
    }

    #[test]
    fn items_have_entries_of_their_own_and_no_key_of_a_spec_has_their_names() {
        for (name, version, entry) in [
            ("share.3", 1, "share.3.aws"),
            ("share.3", 2, "set2.share.3.aws"),
            ("recovery.1", 1, "recovery.1.aws"),
            ("root-token.1", 1, "root-token.aws"),
            ("root-token.4", 4, "set4.root-token.aws"),
        ] {
            assert_eq!(item(name, version, "aws").as_deref(), Some(entry));
            assert!(key(name).is_some_and(|key| key.is_answer() && !key.is_brought()));
        }
        for name in [
            "share",
            "share.0",
            "share.x",
            "root-token",
            "root-token.0",
            "key.1",
            "share-1",
        ] {
            assert_eq!((class(name), item(name, 1, "aws")), (None, None), "{name}");
        }
        for class in [Class::UnsealShare, Class::RecoveryShare, Class::RootToken] {
            assert_eq!(super::class(&name(class, 1)), Some(class));
        }
    }

    #[test]
    fn a_set_or_a_marker_is_held_until_it_is_forgotten() {
        let model = model();
        let held = |facts: &StoreFacts, status: &[KeyStatus]| held(&model, facts, status);
        let shares: &[(&str, &[u32])] = &[("share.1", &[1]), ("share.2", &[1])];
        assert_eq!(held(&StoreFacts::Absent, &[]), Held::Nothing);
        assert_eq!(held(&found(store(&[], None, None)), &[]), Held::Nothing);
        let marked = found(store(&[], Some(marker(1)), None));
        assert_eq!(held(&marked, &[]), Held::Marker(marker(1)));
        for init in [None, Some(marker(1))] {
            assert_eq!(held(&found(store(shares, init, None)), &[]), Held::Set);
        }
        let status = [known("share.1", 1)];
        let forgotten = found(store(shares, None, Some(1)));
        assert_eq!(held(&forgotten, &status), Held::Nothing);
        assert_eq!(
            held(&found(store(shares, Some(marker(2)), Some(1))), &status),
            Held::Marker(marker(2))
        );
        let again: &[(&str, &[u32])] = &[("share.1", &[1, 2]), ("share.2", &[1])];
        assert_eq!(
            held(&found(store(again, Some(marker(2)), Some(1))), &status),
            Held::Set
        );
        // A root token alone opens no server.
        assert_eq!(
            held(&found(store(&[("root-token.1", &[1])], None, None)), &[]),
            Held::Nothing
        );
    }

    #[test]
    fn a_store_that_lost_a_set_holds_nothing_that_can_be_told() {
        let model = model();
        let reason = |facts: &StoreFacts, status: &[KeyStatus]| match held(&model, facts, status) {
            Held::Unknown(fault) => fault.reason,
            other => panic!("{other:?}"),
        };
        let status = [known("recovery.1", 1)];
        assert_eq!(reason(&StoreFacts::Absent, &status), Reason::StoreMissing);
        assert_eq!(
            reason(&found(store(&[], None, None)), &status),
            Reason::StoreMissing
        );
        assert_eq!(reason(&StoreFacts::NotLooked, &[]), Reason::Pending);
        assert_eq!(reason(&StoreFacts::NotOwned, &[]), Reason::StoreNotOwned);
        let corrupt = StoreFacts::Corrupt(Revision::default(), BTreeSet::new());
        assert_eq!(reason(&corrupt, &[]), Reason::StoreCorrupt);
        // Its header was replaced, and its shares lie there still.
        let mut edited = store(&[("share.1", &[1])], None, None);
        edited.header.keys.clear();
        assert_eq!(reason(&found(edited), &[]), Reason::StoreCorrupt);
        // Lost items stay known, to be told.
        let names: Vec<String> = keys(
            &StoreFacts::Absent,
            &[known("share.1", 1), known("root-token.1", 1), known("root", 1)],
        )
        .into_iter()
        .map(|key| key.name)
        .collect();
        assert_eq!(names, ["share.1"]);
    }

    #[test]
    fn a_number_is_never_used_twice() {
        assert_eq!(next(&StoreFacts::Absent, &[]), 1);
        assert_eq!(next(&StoreFacts::Absent, &[known("share.1", 3)]), 4);
        assert_eq!(next(&found(store(&[], Some(marker(2)), None)), &[]), 3);
        assert_eq!(next(&found(store(&[], None, Some(5))), &[]), 6);
        assert_eq!(next(&found(store(&[("share.1", &[1, 2])], None, None)), &[]), 3);
    }

    #[test]
    fn servers_get_the_newest_set_in_its_order() {
        let facts = found(store(
            &[
                ("share.1", &[1, 2]),
                ("share.2", &[1, 2]),
                ("share.10", &[1, 2]),
                ("share.3", &[1]),
                ("root-token.1", &[1]),
                ("root-token.2", &[2]),
            ],
            Some(marker(2)),
            Some(1),
        ));
        let all = keys(&facts, &[]);
        let shares = all.iter().filter(|key| key.class() == Class::UnsealShare);
        let newest: Vec<&str> = newest(shares, &facts)
            .into_iter()
            .map(|key| key.name.as_str())
            .collect();
        assert_eq!(newest, ["share.1", "share.2", "share.10"]);
        assert_eq!(cluster_id(&facts), Some("c2"));
        assert_eq!(token_since(&facts), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(token(&facts).unwrap().name, "root-token.2");
        let answered: &[(&str, &[u32])] = &[("share.1", &[1, 2]), ("root-token.1", &[1])];
        assert!(token(&found(store(answered, None, Some(1)))).is_none());
        // Shares that were replaced come without a token: that of their server is held still.
        let replaced = found(store(answered, None, None));
        assert_eq!(token(&replaced).unwrap().name, "root-token.1");
        assert_eq!(token_since(&StoreFacts::Absent), None);
    }

    #[test]
    fn a_share_that_the_newest_set_lacks_is_not_of_it() {
        let fewer = store(
            &[
                ("share.1", &[1, 2]),
                ("share.2", &[1, 2]),
                ("share.3", &[1]),
                ("root-token.1", &[1]),
            ],
            None,
            None,
        );
        let of = |name: &str| is_of_newest(&fewer, name);
        assert!(of("share.1") && of("share.2") && !of("share.3") && !of("share.4"));
        assert_eq!(count(&fewer, Class::UnsealShare), 2);
        assert_eq!(count(&fewer, Class::RecoveryShare), 0);
        let none = store(&[("root-token.1", &[1])], None, None);
        assert!(!is_of_newest(&none, "root-token.1"));
    }

    #[test]
    fn more_than_fits_is_refused_before_anything_is_asked() {
        let model = model();
        fits(&model, &StoreFacts::Absent, 255, 1).unwrap();
        assert_eq!(
            fits(&model, &StoreFacts::Absent, 255, 2).unwrap_err().reason,
            Reason::InvalidSpec
        );
    }
}
