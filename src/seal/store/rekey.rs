//! A rotation of the shares of a set, as far as the store knows of it: the mark before the server is asked, and the new
//! set, which waits beside the one in use until the server has taken it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Class, Header, NewCopy, Provenance, Sealed, Section, Store, StoreFacts, Version, sets};
use crate::seal::Ciphertext;

/// Written before a server is asked for new shares (security rule S11).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rekey {
    /// Random: tells one attempt from another.
    pub id: String,
    /// The pod that was asked.
    pub pod: String,
    /// The value of the annotation that asked for it.
    pub value: String,
    /// The number of the new set.
    pub set: u32,
    /// When.
    pub at: Timestamp,
    /// How the server calls the attempt; absent before it has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The attempt of that name only finds out which shares the server takes: those that wait were not answered under it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settles: bool,
    /// How many of the new shares it will take.
    pub threshold: u8,
    /// The new shares by name. Whether the server has taken them is not known until they are in use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pending: BTreeMap<String, Version>,
}

impl Rekey {
    /// Whether the new shares are stored.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

/// The rotation that is under way, if one is. One of a set that is older than the one in use is over: data were given up.
pub fn of(facts: &StoreFacts) -> Option<&Rekey> {
    let StoreFacts::Found(store) = facts else {
        return None;
    };
    let newest = sets::newest_number(store).unwrap_or_default();
    store.header.rekey.as_deref().filter(|rekey| rekey.set > newest)
}

/// The annotation's value that was last acted on, as the shares of the newest set record it.
pub fn acted_on(facts: &StoreFacts) -> Option<&str> {
    let StoreFacts::Found(store) = facts else {
        return None;
    };
    section_of_newest(store)?.trigger.as_deref()
}

/// The number of the newest set, if it holds unseal shares.
pub fn newest(facts: &StoreFacts) -> Option<u32> {
    let StoreFacts::Found(store) = facts else {
        return None;
    };
    Some(section_of_newest(store)?.current)
}

/// The number of the newest set, if it comes from a rotation and no server was ever unsealed with it.
pub fn unproven(facts: &StoreFacts) -> Option<u32> {
    let StoreFacts::Found(store) = facts else {
        return None;
    };
    let section = section_of_newest(store)?;
    let proven = store.header.proven.unwrap_or_default();
    (section.trigger.is_some() && section.current > proven).then_some(section.current)
}

/// The sets that were in use before those of rotations, the latest first: one of them opens data that are older than a
/// rotation. Not those of servers that were given up.
pub fn former(facts: &StoreFacts) -> Vec<u32> {
    let StoreFacts::Found(store) = facts else {
        return Vec::new();
    };
    let Some(newest) = newest(facts) else {
        return Vec::new();
    };
    let given_up = store.header.forgotten.unwrap_or_default();
    let held = store.header.keys.iter();
    let shares = held.filter(|(name, _)| sets::class(name) == Some(Class::UnsealShare));
    let sets: BTreeSet<u32> = shares
        .flat_map(|(_, sealed)| sealed.section.versions.keys().copied())
        .filter(|set| given_up < *set && *set < newest)
        .collect();
    sets.into_iter().rev().collect()
}

/// The shares of a set, each with its record.
pub fn shares_of(store: &Store, set: u32) -> impl Iterator<Item = (&String, &Version)> {
    store.header.keys.iter().filter_map(move |(name, sealed)| {
        let version = sealed.section.versions.get(&set)?;
        (sets::class(name) == Some(Class::UnsealShare)).then_some((name, version))
    })
}

fn section_of_newest(store: &Store) -> Option<&Section> {
    let newest = sets::newest_number(store)?;
    let mut shares = store.header.keys.iter();
    shares.find_map(|(name, sealed)| {
        let of_newest = sets::class(name) == Some(Class::UnsealShare) && sealed.section.current == newest;
        of_newest.then_some(&sealed.section)
    })
}

/// The store as it is when the new shares are in use, for opening them; not to be written.
pub fn view(store: &Store, rekey: &Rekey) -> Store {
    let mut view = store.clone();
    for (name, version) in &rekey.pending {
        let mut section = section(&view.header, name, rekey.set);
        section.versions.insert(rekey.set, version.clone());
        view.header
            .keys
            .insert(name.clone(), Sealed { section, mac: None });
    }
    view
}

fn section(header: &Header, name: &str, set: u32) -> Section {
    let known = header.keys.get(name).map(|sealed| sealed.section.clone());
    known.unwrap_or_else(|| Section {
        source: Provenance::Initialized,
        counter: 0,
        current: set,
        next: set,
        trigger: None,
        inputs: None,
        versions: BTreeMap::new(),
        managed: None,
    })
}

/// Puts a new share beside those in use: its record, and its entries.
pub fn put_aside(
    rekey: &mut Rekey,
    name: &str,
    mut version: Version,
    copies: Vec<NewCopy>,
    put: &mut BTreeMap<String, Ciphertext>,
) {
    for copy in copies {
        put.insert(super::item(name, rekey.set, &copy.seal), copy.ciphertext);
        version.copies.insert(copy.seal, copy.record);
    }
    rekey.pending.insert(name.to_owned(), version);
}

/// A share's section when its new version is in use. It is authenticated by others, who have its bytes.
pub fn taken(header: &Header, rekey: &Rekey, name: &str) -> Option<Section> {
    let mut section = section(header, name, rekey.set);
    section
        .versions
        .insert(rekey.set, rekey.pending.get(name)?.clone());
    section.current = rekey.set;
    section.next = section.next.max(rekey.set.saturating_add(1));
    section.trigger = Some(rekey.value.clone());
    section.counter = header.counter;
    Some(section)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::store::{CopyRecord, Revision, item_digest};

    fn version() -> Version {
        Version {
            created: Timestamp::UNIX_EPOCH,
            check_value: None,
            copies: BTreeMap::new(),
            former: BTreeMap::new(),
            exposed: BTreeSet::new(),
            init: None,
        }
    }

    fn rekey(pending: &[&str]) -> Rekey {
        Rekey {
            id: "x".into(),
            pod: "vault-0".into(),
            value: "one".into(),
            set: 2,
            at: Timestamp::UNIX_EPOCH,
            nonce: None,
            settles: false,
            threshold: 2,
            pending: pending
                .iter()
                .map(|name| ((*name).to_owned(), version()))
                .collect(),
        }
    }

    /// A store whose first set has two shares.
    fn store(rekey: Option<Rekey>) -> Store {
        let shares = ["share.1", "share.2"].map(|name| {
            let section = Section {
                source: Provenance::Initialized,
                counter: 3,
                current: 1,
                next: 2,
                trigger: None,
                inputs: None,
                versions: [(1, version())].into(),
                managed: None,
            };
            (name.to_owned(), Sealed { section, mac: None })
        });
        Store {
            revision: Revision::default(),
            header: Header {
                format: 1,
                counter: 7,
                init: None,
                forgotten: None,
                rekey: rekey.map(Box::new),
                proven: None,
                keys: shares.into(),
            },
            items: BTreeMap::new(),
        }
    }

    fn found(store: Store) -> StoreFacts {
        StoreFacts::Found(store)
    }

    #[test]
    fn shares_that_wait_are_not_in_use() {
        let waiting = found(store(Some(rekey(&["share.1", "share.2", "share.3"]))));
        assert_eq!(newest(&waiting), Some(1));
        assert_eq!((acted_on(&waiting), unproven(&waiting)), (None, None));
        assert!(of(&waiting).unwrap().is_pending());
        assert_eq!(sets::next(&waiting, &[]), 3, "its number is used");
        assert!(of(&StoreFacts::Absent).is_none() && newest(&StoreFacts::Absent).is_none());
    }

    #[test]
    fn shares_that_are_taken_lie_beside_the_old_ones() {
        let rekey = rekey(&["share.1", "share.2", "share.3"]);
        let mut store = store(Some(rekey.clone()));
        for name in rekey.pending.keys() {
            let section = taken(&store.header, &rekey, name).unwrap();
            assert_eq!((section.current, section.next, section.counter), (2, 3, 7));
            assert_eq!(
                section.versions.contains_key(&1),
                name != "share.3",
                "the old one is lost"
            );
            let sealed = Sealed { section, mac: None };
            store.header.keys.insert(name.clone(), sealed);
        }
        assert!(taken(&store.header, &rekey, "share.4").is_none());
        let mut after = found(store.clone());
        // The record of the attempt is of no account any more, should it still lie there.
        assert!(of(&after).is_none());
        assert_eq!((newest(&after), acted_on(&after)), (Some(2), Some("one")));
        assert_eq!(unproven(&after), Some(2));
        store.header.proven = Some(2);
        after = found(store);
        assert_eq!(unproven(&after), None);
    }

    #[test]
    fn fewer_shares_leave_the_rest_of_the_old_set_as_it_was() {
        let rekey = rekey(&["share.1"]);
        let mut store = store(None);
        let section = taken(&store.header, &rekey, "share.1").unwrap();
        store
            .header
            .keys
            .insert("share.1".into(), Sealed { section, mac: None });
        let all = sets::keys(&found(store.clone()), &[]);
        let newest: Vec<&str> = sets::newest(all.iter(), &found(store))
            .into_iter()
            .map(|key| key.name.as_str())
            .collect();
        assert_eq!(newest, ["share.1"]);
    }

    #[test]
    fn the_sets_before_stay_known_until_their_server_is_given_up() {
        assert!(former(&StoreFacts::Absent).is_empty());
        assert!(former(&found(store(None))).is_empty(), "the set in use");
        let mut store = store(None);
        for (set, shares) in [(2, &["share.1", "share.2", "share.3"][..]), (3, &["share.1"])] {
            let rekey = Rekey { set, ..rekey(shares) };
            for name in shares {
                let section = taken(&store.header, &rekey, name).unwrap();
                store
                    .header
                    .keys
                    .insert((*name).to_owned(), Sealed { section, mac: None });
            }
        }
        assert_eq!(former(&found(store.clone())), [2, 1]);
        let names = |set: u32| shares_of(&store, set).map(|(name, _)| name.as_str()).collect();
        let (first, second): (Vec<&str>, Vec<&str>) = (names(1), names(2));
        assert_eq!(first, ["share.1", "share.2"]);
        assert_eq!(second, ["share.1", "share.2", "share.3"]);
        store.header.forgotten = Some(1);
        assert_eq!(former(&found(store)), [2]);
    }

    #[test]
    fn a_view_has_what_opens_the_shares_that_wait() {
        let mut waiting = rekey(&[]);
        let mut put = BTreeMap::new();
        let ciphertext = Ciphertext::new(vec![1; 300]);
        let record = CopyRecord {
            provider: "awskms".into(),
            key_id: "k".into(),
            key_version: None,
            configured_key_id: "k".into(),
            endpoint: None,
            made: Timestamp::UNIX_EPOCH,
            digest: item_digest(&ciphertext),
        };
        let copy = NewCopy {
            seal: "aws".into(),
            ciphertext,
            record,
        };
        put_aside(&mut waiting, "share.3", version(), vec![copy], &mut put);
        let entries: Vec<&String> = put.keys().collect();
        assert_eq!(entries, ["set2.share.3.aws"]);
        let view = view(&store(None), &waiting);
        let copies = &view.header.keys["share.3"].section.versions[&2].copies;
        assert!(copies.contains_key("aws"));
        assert_eq!(view.header.keys["share.1"].section.current, 1);
    }

    #[test]
    fn what_is_written_down_is_read_again() {
        let written = Rekey {
            nonce: Some("n".into()),
            settles: true,
            ..rekey(&["share.1"])
        };
        let text = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<Rekey>(&text).unwrap(), written);
    }
}
