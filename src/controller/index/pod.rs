//! A pod in the index. A map has room for eleven labels; most pods have three.

use std::collections::BTreeMap;

use crate::seal::observed::PodFacts;

/// What is known of a pod.
pub struct Known {
    /// All but the labels.
    facts: PodFacts,
    labels: Box<[(Box<str>, Box<str>)]>,
}

impl Known {
    /// All that is known.
    pub fn facts(&self) -> PodFacts {
        PodFacts {
            labels: self.labels(),
            ..self.facts.clone()
        }
    }

    /// Its labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let labels = self.labels.iter();
        labels
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect()
    }
}

impl From<PodFacts> for Known {
    fn from(mut facts: PodFacts) -> Self {
        let labels = std::mem::take(&mut facts.labels);
        facts.uses.shrink_to_fit();
        facts.containers.shrink_to_fit();
        Self {
            facts,
            labels: labels
                .into_iter()
                .map(|(key, value)| (key.into(), value.into()))
                .collect(),
        }
    }
}
