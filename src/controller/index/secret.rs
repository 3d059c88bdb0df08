//! A Secret in the index. Most Secrets of a cluster are none of ours: of these nothing is kept but who they are.

use std::borrow::Cow;

use crate::seal::observed::{Mark, SecretFacts};

/// What is known of a Secret.
pub enum Known {
    /// One that says nothing of us: UID and resourceVersion as numbers, 32 bytes instead of 250.
    Foreign {
        /// The UUID's bytes.
        uid: [u8; 16],
        /// resourceVersion.
        version: u64,
    },
    /// One of ours, or one that is being deleted.
    Told(Box<Told>),
}

/// The facts, with the marks of its keys in a list: most have one, and a map has room for eleven.
pub struct Told {
    facts: SecretFacts,
    marks: Box<[(String, Mark)]>,
}

impl Known {
    /// Its resourceVersion.
    pub fn version(&self) -> Cow<'_, str> {
        match self {
            Known::Foreign { version, .. } => Cow::Owned(version.to_string()),
            Known::Told(told) => Cow::Borrowed(&told.facts.resource_version),
        }
    }

    /// All that is known.
    pub fn facts(&self) -> SecretFacts {
        match self {
            Known::Foreign { uid, version } => SecretFacts {
                uid: uuid_text(uid),
                resource_version: version.to_string(),
                ..SecretFacts::default()
            },
            Known::Told(told) => {
                let mut facts = told.facts.clone();
                facts.delivered.marks = told.marks.iter().cloned().collect();
                facts
            }
        }
    }

    /// Whether it says that keys were delivered to it by a SealConfig of this name.
    pub fn delivered_by(&self, name: &str) -> bool {
        match self {
            Known::Foreign { .. } => false,
            Known::Told(told) => told.facts.owner_name.as_deref() == Some(name) && !told.marks.is_empty(),
        }
    }
}

impl From<SecretFacts> for Known {
    fn from(facts: SecretFacts) -> Self {
        let foreign = uuid(&facts.uid)
            .zip(facts.resource_version.parse().ok())
            .map(|(uid, version)| Known::Foreign { uid, version })
            // What would not come back as it was is kept as it is.
            .filter(|foreign| foreign.facts() == facts);
        foreign.unwrap_or_else(|| {
            let mut facts = facts;
            let marks = std::mem::take(&mut facts.delivered.marks);
            Known::Told(Box::new(Told {
                facts,
                marks: marks.into_iter().collect(),
            }))
        })
    }
}

fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    data_encoding::HEXLOWER.decode(&digits).ok()?.try_into().ok()
}

fn uuid_text(uid: &[u8; 16]) -> String {
    let mut text = data_encoding::HEXLOWER.encode(uid);
    for place in [20, 16, 12, 8] {
        text.insert(place, '-');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_known_comes_back_as_it_was() {
        let plain = SecretFacts {
            uid: "5d3c1e0a-7b0a-4b7e-9a59-0f2f0c9a1b2c".into(),
            resource_version: "4711".into(),
            ..SecretFacts::default()
        };
        assert!(matches!(Known::from(plain.clone()), Known::Foreign { .. }));
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
            changed(|f| f.adopt_by = Some("c".into())),
            changed(|f| f.deleting = true),
            SecretFacts::default(),
        ] {
            let known = Known::from(facts.clone());
            assert_eq!(known.facts(), facts);
            assert_eq!(known.version(), facts.resource_version);
        }
    }
}
