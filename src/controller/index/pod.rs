//! A pod in the index: its labels, by which it is looked for, and the rest as packed text.

use std::collections::BTreeMap;

use crate::{controller::packed::Packed, seal::observed::PodFacts};

/// What is known of a pod.
pub struct Known {
    /// Each key and each value ends with [`END`], which no label has.
    labels: Box<str>,
    /// All but the labels.
    rest: Packed,
}

/// After a key and after a value.
const END: char = '\n';

impl Known {
    /// All that is known.
    pub fn facts(&self) -> PodFacts {
        let rest: PodFacts = serde_json::from_str(&self.rest.text()).unwrap_or_default();
        PodFacts {
            labels: self.labels(),
            ..rest
        }
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut texts = self.labels.split_terminator(END).map(ToOwned::to_owned);
        std::iter::from_fn(|| Some((texts.next()?, texts.next()?))).collect()
    }
}

impl From<PodFacts> for Known {
    fn from(mut facts: PodFacts) -> Self {
        let labels = std::mem::take(&mut facts.labels);
        let texts = labels.into_iter().flat_map(|(key, value)| [key, value]);
        Self {
            labels: texts
                .flat_map(|text| [text, END.to_string()])
                .collect::<String>()
                .into(),
            rest: Packed::new(&serde_json::to_string(&facts).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::observed::{ContainerFacts, SecretUse};

    #[test]
    fn whatever_is_known_comes_back_as_it_was() {
        let some = PodFacts {
            name: "p".into(),
            uid: "u".into(),
            labels: BTreeMap::from([("a".into(), String::new()), ("b/c".into(), "d".into())]),
            created: Some(jiff::Timestamp::MAX),
            controller: Some(("StatefulSet".into(), "v".into())),
            leaving: true,
            ready: true,
            delivered: Some(u64::MAX),
            host_network: true,
            uses: vec![SecretUse {
                secret: "s".into(),
                volume: true,
                started: Some(jiff::Timestamp::MIN),
            }],
            ip: Some(std::net::Ipv6Addr::LOCALHOST.into()),
            containers: vec![ContainerFacts {
                id: Some("containerd://1".into()),
                ports: vec![(None, u16::MAX), (Some("http".into()), 0)],
            }],
        };
        for facts in [some, PodFacts::default()] {
            let known = Known::from(facts.clone());
            assert_eq!(known.labels(), facts.labels);
            assert_eq!(known.facts(), facts);
        }
    }
}
