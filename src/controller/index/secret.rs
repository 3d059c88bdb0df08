//! The Secrets of a namespace in the index. Most Secrets of a cluster are none of ours: of these nothing is kept but who they
//! are, in one piece.

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    hash::{Hash, Hasher},
};

use crate::{controller::packed::Packed, seal::observed::SecretFacts};

/// What is known of the Secrets of a namespace, by name.
#[derive(Default)]
pub struct Secrets {
    /// Those that say nothing of us.
    foreign: HashSet<Foreign>,
    /// Those of ours, and those that are being deleted.
    told: HashMap<Box<str>, Told>,
}

/// UID (16 bytes), resourceVersion (8 bytes) and name of a Secret: 50 bytes where the facts take 250.
struct Foreign(Box<[u8]>);

/// Bytes before the name.
const HEAD: usize = 16 + 8;

/// The facts as text, and whose it is.
struct Told {
    owner: Option<Box<str>>,
    facts: Packed,
}

impl Foreign {
    /// `None` = the facts would not come back as they are.
    fn new(name: &str, facts: &SecretFacts) -> Option<Self> {
        let version: u64 = facts.resource_version.parse().ok()?;
        let known = [&uuid(&facts.uid)?[..], &version.to_be_bytes(), name.as_bytes()].concat();
        let known = Self(known.into());
        (known.facts() == *facts).then_some(known)
    }

    fn name(&self) -> &str {
        let name = self.0.get(HEAD..).unwrap_or_default();
        std::str::from_utf8(name).unwrap_or_default()
    }

    fn facts(&self) -> SecretFacts {
        let (uid, version) = self.0.split_at(16);
        SecretFacts {
            uid: uuid_text(uid),
            resource_version: version
                .first_chunk()
                .map_or(0, |version| u64::from_be_bytes(*version))
                .to_string(),
            ..SecretFacts::default()
        }
    }
}

impl Borrow<str> for Foreign {
    fn borrow(&self) -> &str {
        self.name()
    }
}

impl Hash for Foreign {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

impl PartialEq for Foreign {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Foreign {}

impl Told {
    fn new(facts: &SecretFacts) -> Self {
        Self {
            owner: facts.owner_name.as_deref().map(Into::into),
            facts: Packed::new(&serde_json::to_string(facts).unwrap_or_default()),
        }
    }

    fn facts(&self) -> SecretFacts {
        serde_json::from_str(&self.facts.text()).unwrap_or_default()
    }
}

impl Secrets {
    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.foreign.is_empty() && self.told.is_empty()
    }

    /// All that is known of one.
    pub fn get(&self, name: &str) -> Option<SecretFacts> {
        let foreign = self.foreign.get(name).map(Foreign::facts);
        foreign.or_else(|| Some(self.told.get(name)?.facts()))
    }

    /// Keeps what is known of one.
    pub fn insert(&mut self, name: &str, facts: &SecretFacts) {
        self.remove(name);
        if let Some(foreign) = Foreign::new(name, facts) {
            self.foreign.insert(foreign);
        } else {
            self.told.insert(name.into(), Told::new(facts));
        }
    }

    /// Forgets one. Whether it was known.
    pub fn remove(&mut self, name: &str) -> bool {
        self.foreign.remove(name) || self.told.remove(name).is_some()
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let foreign = self.foreign.iter().map(Foreign::name);
        foreign.chain(self.told.keys().map(|name| &**name))
    }

    /// Those that say that keys were delivered to them by a SealConfig of this name.
    pub fn delivered_by(&self, name: &str) -> impl Iterator<Item = (&str, SecretFacts)> {
        let of_it = self
            .told
            .iter()
            .filter(move |(_, told)| told.owner.as_deref() == Some(name));
        let of_it = of_it.map(|(secret, told)| (&**secret, told.facts()));
        of_it.filter(|(_, facts)| !facts.delivered.marks.is_empty())
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    data_encoding::HEXLOWER.decode(&digits).ok()?.try_into().ok()
}

fn uuid_text(uid: &[u8]) -> String {
    let mut text = data_encoding::HEXLOWER.encode(uid);
    for place in [20, 16, 12, 8] {
        text.insert(place, '-');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::observed::Mark;

    #[test]
    fn whatever_is_known_comes_back_as_it_was() {
        let plain = SecretFacts {
            uid: "5d3c1e0a-7b0a-4b7e-9a59-0f2f0c9a1b2c".into(),
            resource_version: "4711".into(),
            ..SecretFacts::default()
        };
        assert!(Foreign::new("s", &plain).is_some());
        let changed = |change: fn(&mut SecretFacts)| {
            let mut facts = plain.clone();
            change(&mut facts);
            facts
        };
        for facts in [
            plain.clone(),
            changed(|f| f.uid = "not a UUID".into()),
            changed(|f| f.uid = "5D3C1E0A-7B0A-4B7E-9A59-0F2F0C9A1B2C".into()),
            changed(|f| f.uid = "5d3c1e0a7b0a4b7e9a590f2f0c9a1b2c".into()),
            changed(|f| f.resource_version = "0042".into()),
            changed(|f| f.resource_version = "x".into()),
            changed(|f| f.owner_uid = Some("u".into())),
            changed(|f| {
                f.delivered.marks.insert("k".into(), Mark::default());
            }),
            changed(|f| {
                f.owner_name = Some("c".into());
                f.delivered.marks.insert("k".into(), Mark::default());
            }),
            changed(|f| {
                f.delivered.count = u64::MAX;
                f.delivered.keys_changed = Some(jiff::Timestamp::MIN);
                f.delivered.content_changed = Some(jiff::Timestamp::MAX);
                f.delivered.marks.insert(
                    "\u{0}\"".into(),
                    Mark {
                        previous: Some((u32::MAX, String::new())),
                        ..Mark::default()
                    },
                );
            }),
            changed(|f| f.adopt_by = Some("c".into())),
            changed(|f| f.deleting = true),
            SecretFacts::default(),
        ] {
            let mut secrets = Secrets::default();
            secrets.insert("t", &plain);
            // Over one of the other sort, too.
            for before in [plain.clone(), changed(|f| f.deleting = true)] {
                secrets.insert("s", &before);
                secrets.insert("s", &facts);
                assert_eq!(secrets.get("s"), Some(facts.clone()));
                assert_eq!(secrets.names().filter(|name| *name == "s").count(), 1);
            }
            assert_eq!(secrets.get("t"), Some(plain.clone()));
            let is_delivered = facts.owner_name.is_some() && !facts.delivered.marks.is_empty();
            let delivered: Vec<_> = secrets.delivered_by("c").collect();
            assert_eq!(
                delivered,
                is_delivered
                    .then(|| ("s", facts.clone()))
                    .into_iter()
                    .collect::<Vec<_>>()
            );
            assert!(secrets.remove("s") && !secrets.remove("s") && secrets.get("s").is_none());
            assert!(secrets.remove("t") && secrets.is_empty());
        }
    }
}
