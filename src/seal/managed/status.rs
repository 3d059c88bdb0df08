//! What is said of a ManagedKey.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    ManagedModel,
    record::{KeyRecord, Record},
    standard_alias,
    step::{Sight, Target},
};
use crate::{
    api::{
        DistributionStatus, KeyVersionStatus, ManagedKeyStatus, ManagedKeySummary, Reason, SealConfigStatus,
        condition_types as types,
    },
    seal::{
        Fault,
        status::{Verdict, fail, needs_a_human, second, set, stalled, suspend},
    },
};

/// What came of a look at one distribution.
#[derive(Clone, Debug)]
pub struct Looked {
    /// What is written down of it.
    pub record: Option<Record>,
    /// What AWS said.
    pub sight: Sight,
    /// Why it is not as it should be.
    pub fault: Option<Fault>,
    /// Digest of what it was looked at for.
    pub inputs: String,
    /// When it was looked at.
    pub at: Timestamp,
}

/// The status of an object that cannot be read, or whose SealConfig cannot: what was known stays, the conditions tell.
pub fn failed(
    previous: &ManagedKeyStatus,
    generation: i64,
    fault: &Fault,
    now: Timestamp,
) -> ManagedKeyStatus {
    let mut status = previous.clone();
    status.observed_generation = Some(generation);
    fail(&mut status.conditions, generation, fault, now);
    status
}

/// The status of a suspended object.
pub fn suspended(previous: &ManagedKeyStatus, generation: i64, now: Timestamp) -> ManagedKeyStatus {
    let mut status = previous.clone();
    status.observed_generation = Some(generation);
    suspend(
        &mut status.conditions,
        generation,
        "spec.suspend of the ManagedKey or of its SealConfig is true: nothing is made, brought, moved or disabled until it is \
         false",
        now,
    );
    status
}

/// The status after a reconcile. `base` speaks of the material as of a SealConfig's key; a distribution that was not looked
/// at keeps what was known.
pub fn status(
    managed: &ManagedModel,
    previous: &ManagedKeyStatus,
    base: &SealConfigStatus,
    looked: &BTreeMap<String, Looked>,
    now: Timestamp,
) -> ManagedKeyStatus {
    let generation = managed.model.generation;
    let known = |name: &str| previous.distributions.iter().find(|known| known.name == name);
    let previous_of = |name: &String| {
        known(name).cloned().unwrap_or_else(|| DistributionStatus {
            name: name.clone(),
            ..DistributionStatus::default()
        })
    };
    let current = base.keys.first().map_or(0, |material| material.version);
    let wanted = managed.distributions.iter().map(|wanted| &wanted.name);
    // Those that are gone from the spec, as long as something is left to be done.
    let leaving = looked
        .iter()
        .filter(|(name, looked)| looked.fault.is_some() && !wanted.clone().any(|wanted| wanted == *name))
        .map(|(name, _)| name);
    let distributions: Vec<DistributionStatus> = wanted
        .clone()
        .chain(leaving)
        .map(|name| match looked.get(name) {
            Some(looked) => told(managed, looked, &previous_of(name)),
            None => previous_of(name),
        })
        .collect();

    let mut conditions = previous.conditions.clone();
    conditions.retain(|condition| {
        [
            types::READY,
            types::SEALS_HEALTHY,
            types::KEYS_UNWRAPPED,
            types::DISTRIBUTED,
        ]
        .contains(&condition.type_.as_str())
    });
    for kind in [types::SEALS_HEALTHY, types::KEYS_UNWRAPPED] {
        if let Some(said) = base.conditions.iter().find(|condition| condition.type_ == kind) {
            conditions.retain(|condition| condition.type_ != kind);
            conditions.push(said.clone());
        }
    }
    let material = base
        .conditions
        .iter()
        .find(|condition| condition.type_ == types::READY && condition.status != "True");
    let failing = looked
        .iter()
        .find_map(|(name, looked)| Some((name, looked.fault.as_ref()?)))
        .map(|(name, fault)| fault.clone().of(format!("distribution {name:?}")));
    let waiting = distributions.iter().find(|told| !is_done(told, current));
    let distributed = match (&failing, waiting) {
        (Some(fault), _) => Verdict::no(fault),
        (None, Some(told)) => match &told.message {
            Some(message) => Verdict {
                status: "False",
                reason: word(told.reason.as_deref()),
                message: format!("distribution {:?}: {message}", told.name),
            },
            None => Verdict::unknown(format!("distribution {:?} is not done yet", told.name)),
        },
        (None, None) => Verdict::yes("every distribution is as it should be"),
    };
    let ready = match material {
        Some(said) => Verdict {
            status: if said.status == "False" {
                "False"
            } else {
                "Unknown"
            },
            reason: word(Some(&said.reason)),
            message: said.message.clone(),
        },
        None => distributed.clone(),
    };
    let human = match material {
        Some(_) => base
            .conditions
            .iter()
            .find(|condition| condition.type_ == types::STALLED)
            .map(|condition| (word(Some(&condition.reason)), condition.message.clone())),
        None => failing
            .filter(needs_a_human)
            .map(|fault| (fault.reason, fault.message))
            .or_else(|| {
                // Of one that waits for its next try.
                let was = previous
                    .conditions
                    .iter()
                    .find(|condition| condition.type_ == types::STALLED)?;
                (ready.status == "False" && was.reason == ready.reason.as_str())
                    .then(|| (ready.reason, ready.message.clone()))
            }),
    };
    set(&mut conditions, types::DISTRIBUTED, &distributed, generation, now);
    if let Some((reason, message)) = human {
        let fault = Fault::denied(reason, message);
        let before = previous.conditions.iter().find(|c| c.type_ == types::STALLED);
        conditions.extend(before.cloned());
        set(&mut conditions, types::STALLED, &stalled(&fault), generation, now);
    }
    set(&mut conditions, types::READY, &ready, generation, now);
    let done = distributions.iter().filter(|told| is_done(told, current)).count();
    ManagedKeyStatus {
        observed_generation: Some(generation),
        conditions,
        summary: Some(ManagedKeySummary {
            version: current.to_string(),
            distributions: format!("{done}/{}", distributions.len()),
        }),
        material: base.keys.first().map(|material| crate::api::KeyStatus {
            // Nobody consumes it by a name; the alias is its name.
            consumer_key_id: None,
            ..material.clone()
        }),
        distributions,
    }
}

fn is_done(told: &DistributionStatus, current: u32) -> bool {
    told.reason.is_none() && told.current_version == current && current > 0
}

fn word(text: Option<&str>) -> Reason {
    let text = text.unwrap_or_default();
    Reason::ALL
        .iter()
        .copied()
        .find(|reason| reason.as_str() == text)
        .unwrap_or(Reason::Pending)
}

/// What was not seen this time stays as it was seen last.
fn told(managed: &ManagedModel, looked: &Looked, before: &DistributionStatus) -> DistributionStatus {
    let Some(record) = &looked.record else {
        return DistributionStatus {
            inputs_digest: Some(looked.inputs.clone()),
            last_probe_time: Some(second(looked.at)),
            reason: looked.fault.as_ref().map(|fault| fault.reason.to_string()),
            message: looked.fault.as_ref().map(|fault| fault.message.clone()),
            ..before.clone()
        };
    };
    let alias = standard_alias(&managed.model.id.name, record.first);
    let pointed = match looked.sight.aliases.get(&(alias.clone(), record.region.clone())) {
        Some(Target::Key(arn)) => record.version_of(arn).unwrap_or_default(),
        Some(Target::Nothing) => 0,
        None => before.current_version,
    };
    let version = |(version, key): (&u32, &KeyRecord)| {
        let seen = looked.sight.keys.get(&(*version, record.region.clone()));
        let was = before.versions.iter().find(|was| was.version == *version);
        KeyVersionStatus {
            version: *version,
            key_id: key.arn.clone(),
            state: seen
                .map(|state| state.as_str().to_owned())
                .or_else(|| was?.state.clone()),
        }
    };
    DistributionStatus {
        name: before.name.clone(),
        alias: Some(alias),
        current_version: pointed,
        replicas: record.replica_regions.iter().cloned().collect(),
        versions: record.keys.iter().map(version).collect(),
        inputs_digest: Some(looked.inputs.clone()),
        last_probe_time: Some(second(looked.at)),
        reason: looked.fault.as_ref().map(|fault| fault.reason.to_string()),
        message: looked.fault.as_ref().map(|fault| fault.message.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        api::KeyStatus,
        seal::{aws::KeyArn, managed::step::KeyState},
    };

    const REGION: &str = "eu-west-1";

    fn now() -> Timestamp {
        "2026-11-24T00:00:00Z".parse().unwrap()
    }

    fn managed(distributions: &[&str]) -> ManagedModel {
        let config = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "platform", "namespace": "platform", "uid": "c"},
            "spec": {"seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/platform", "region": REGION}}]},
        }));
        let distribution = |name| json!({"name": name, "awskms": {"region": REGION}});
        let distributions: Vec<_> = distributions.iter().map(distribution).collect();
        let key = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "ManagedKey",
            "metadata": {"name": "pay", "namespace": "platform", "uid": "k", "generation": 4},
            "spec": {"type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}},
                "sealConfigRef": {"name": "platform"}, "distributions": distributions},
        }));
        super::super::parse(&key.unwrap(), &config.unwrap()).unwrap()
    }

    fn arn(version: u32) -> KeyArn {
        let text =
            format!("arn:aws:kms:{REGION}:123456789012:key/0000000{version}-12ab-34cd-56ef-000000000000");
        text.parse().unwrap()
    }

    /// The material in version 2, whole.
    fn base() -> SealConfigStatus {
        SealConfigStatus {
            keys: vec![KeyStatus {
                name: "material".into(),
                version: 2,
                consumer_key_id: Some("material-12345678".into()),
                ..KeyStatus::default()
            }],
            ..SealConfigStatus::default()
        }
    }

    fn record() -> Record {
        let key = |version: u32| {
            let key = KeyRecord {
                token: format!("t{version}"),
                asked: now(),
                arn: Some(arn(version).to_string()),
            };
            (version, key)
        };
        Record {
            region: REGION.into(),
            multi_region: false,
            replica_regions: [].into(),
            credentials: None,
            first: 17,
            tags: [].into(),
            aliases: [].into(),
            keys: [key(1), key(2)].into(),
            retired: None,
        }
    }

    /// What AWS says while the alias points at a version.
    fn looked(pointed: u32, fault: Option<Fault>) -> Looked {
        let mut sight = Sight::default();
        let alias = ("alias/hashicorp/pay-17".to_owned(), REGION.to_owned());
        let target = if pointed == 0 {
            Target::Nothing
        } else {
            Target::Key(arn(pointed))
        };
        sight.aliases.insert(alias, target);
        sight.keys.insert((2, REGION.into()), KeyState::Enabled);
        Looked {
            record: Some(record()),
            sight,
            fault,
            inputs: "inputs".into(),
            at: now(),
        }
    }

    fn of(status: &ManagedKeyStatus, kind: &str) -> Option<(String, String, String)> {
        let found = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)?;
        Some((found.status.clone(), found.reason.clone(), found.message.clone()))
    }

    fn word_of(status: &ManagedKeyStatus, kind: &str) -> (String, String) {
        let (status, reason, _) = of(status, kind).unwrap();
        (status, reason)
    }

    fn says(status: &str, reason: Reason) -> (String, String) {
        (status.to_owned(), reason.to_string())
    }

    #[test]
    fn a_key_whose_alias_points_at_the_version_in_use_is_done() {
        let managed = managed(&["eu"]);
        let before = ManagedKeyStatus::default();
        let looks = [("eu".to_owned(), looked(2, None))].into();
        let told = status(&managed, &before, &base(), &looks, now());
        assert_eq!(of(&told, types::READY).unwrap().0, "True");
        assert_eq!(of(&told, types::DISTRIBUTED).unwrap().0, "True");
        assert_eq!(of(&told, types::STALLED), None);
        assert_eq!(told.observed_generation, Some(4));
        let summary = told.summary.unwrap();
        assert_eq!(
            (summary.version.as_str(), summary.distributions.as_str()),
            ("2", "1/1")
        );
        let [eu] = told.distributions.as_slice() else {
            panic!("one distribution")
        };
        assert_eq!(eu.alias.as_deref(), Some("alias/hashicorp/pay-17"));
        assert_eq!((eu.name.as_str(), eu.current_version), ("eu", 2));
        let states: Vec<_> = eu
            .versions
            .iter()
            .map(|version| version.state.as_deref())
            .collect();
        // Of version 1 nothing was seen yet.
        assert_eq!(states, [None, Some("Enabled")]);
        assert_eq!(
            told.material.unwrap().consumer_key_id,
            None,
            "nobody consumes it by a name"
        );
    }

    #[test]
    fn an_alias_that_points_elsewhere_is_not_done() {
        let managed = managed(&["eu"]);
        for pointed in [0, 1] {
            let looks = [("eu".to_owned(), looked(pointed, None))].into();
            let told = status(&managed, &ManagedKeyStatus::default(), &base(), &looks, now());
            assert_eq!(told.distributions[0].current_version, pointed);
            assert_eq!(of(&told, types::READY).unwrap().0, "Unknown");
            assert_eq!(told.summary.unwrap().distributions, "0/1");
        }
        // Nor is one of a key that was not made yet.
        let none = SealConfigStatus::default();
        let looks = [("eu".to_owned(), looked(0, None))].into();
        let told = status(&managed, &ManagedKeyStatus::default(), &none, &looks, now());
        assert_eq!(told.summary.unwrap().distributions, "0/1");
    }

    #[test]
    fn what_was_not_looked_at_keeps_what_was_known_of_it() {
        let managed = managed(&["eu", "other"]);
        let looks = [("eu", 2), ("other", 2)].map(|(name, at)| (name.to_owned(), looked(at, None)));
        let known = status(
            &managed,
            &ManagedKeyStatus::default(),
            &base(),
            &looks.into(),
            now(),
        );
        let later = status(&managed, &known, &base(), &BTreeMap::new(), now());
        assert_eq!(later.distributions, known.distributions);
        assert_eq!(of(&later, types::READY).unwrap().0, "True");
        // AWS was asked, and did not answer for version 2 and the alias.
        let mut silent = looked(2, Some(Fault::transient(Reason::KmsUnavailable, "no answer")));
        silent.sight = Sight::default();
        let told = status(
            &managed,
            &known,
            &base(),
            &[("eu".to_owned(), silent)].into(),
            now(),
        );
        assert_eq!(told.distributions[0].current_version, 2);
        assert_eq!(told.distributions[0].versions, known.distributions[0].versions);
        assert_eq!(
            word_of(&told, types::READY),
            says("False", Reason::KmsUnavailable)
        );
        assert_eq!(of(&told, types::STALLED), None, "it passes by itself");
    }

    #[test]
    fn what_a_human_must_mend_is_said_until_it_is_mended() {
        let managed = managed(&["eu"]);
        let denied = || Fault::denied(Reason::AccessDenied, "grant it");
        let looks = |fault| [("eu".to_owned(), looked(2, fault))].into();
        let told = status(
            &managed,
            &ManagedKeyStatus::default(),
            &base(),
            &looks(Some(denied())),
            now(),
        );
        assert_eq!(word_of(&told, types::READY), says("False", Reason::AccessDenied));
        assert_eq!(
            word_of(&told, types::DISTRIBUTED),
            says("False", Reason::AccessDenied)
        );
        let (status_word, reason, message) = of(&told, types::STALLED).unwrap();
        assert_eq!(
            (status_word.as_str(), reason),
            ("True", Reason::AccessDenied.to_string())
        );
        assert!(
            message.contains("distribution \"eu\"") && message.contains("grant it"),
            "{message}"
        );
        // While it waits for its next try nothing is looked at.
        let waits = status(&managed, &told, &base(), &BTreeMap::new(), now());
        assert_eq!(
            word_of(&waits, types::STALLED),
            says("True", Reason::AccessDenied)
        );
        assert_eq!(word_of(&waits, types::READY), says("False", Reason::AccessDenied));
        let mended = status(&managed, &waits, &base(), &looks(None), now());
        assert_eq!(of(&mended, types::STALLED), None);
        assert_eq!(of(&mended, types::READY).unwrap().0, "True");
    }

    #[test]
    fn a_distribution_that_left_the_spec_is_told_of_while_something_is_wrong_with_it() {
        let managed = managed(&["eu"]);
        let looks = |fault| {
            [
                ("eu".to_owned(), looked(2, None)),
                ("gone".to_owned(), looked(2, fault)),
            ]
            .into()
        };
        let failing = looks(Some(Fault::transient(Reason::KmsUnavailable, "no answer")));
        let told = status(&managed, &ManagedKeyStatus::default(), &base(), &failing, now());
        let names = |status: &ManagedKeyStatus| -> Vec<String> {
            status
                .distributions
                .iter()
                .map(|told| told.name.clone())
                .collect()
        };
        assert_eq!(names(&told), ["eu", "gone"]);
        assert_eq!(of(&told, types::READY).unwrap().0, "False");
        let done = status(&managed, &told, &base(), &looks(None), now());
        assert_eq!(names(&done), ["eu"]);
        assert_eq!(of(&done, types::READY).unwrap().0, "True");
    }

    #[test]
    fn material_that_is_not_there_comes_before_its_distributions() {
        let managed = managed(&["eu"]);
        let fault = Fault::denied(Reason::AccessDenied, "the seal is refused");
        let mut base = base();
        fail(&mut base.conditions, 1, &fault, now());
        let looks = [("eu".to_owned(), looked(2, None))].into();
        let told = status(&managed, &ManagedKeyStatus::default(), &base, &looks, now());
        assert_eq!(word_of(&told, types::READY), says("False", Reason::AccessDenied));
        assert_eq!(word_of(&told, types::STALLED), says("True", Reason::AccessDenied));
        assert_eq!(of(&told, types::DISTRIBUTED).unwrap().0, "True");
    }

    #[test]
    fn an_object_that_cannot_be_read_or_is_suspended_keeps_what_was_known() {
        let managed = managed(&["eu"]);
        let looks = [("eu".to_owned(), looked(2, None))].into();
        let known = status(&managed, &ManagedKeyStatus::default(), &base(), &looks, now());
        let fault = Fault::invalid_spec("no such region");
        let told = failed(&known, 5, &fault, now());
        assert_eq!(told.observed_generation, Some(5));
        assert_eq!(told.distributions, known.distributions);
        assert_eq!(word_of(&told, types::READY), says("False", Reason::InvalidSpec));
        assert_eq!(word_of(&told, types::STALLED), says("True", Reason::InvalidSpec));
        let still = suspended(&known, 6, now());
        assert_eq!(still.observed_generation, Some(6));
        assert_eq!(still.distributions, known.distributions);
        let (ready, _, message) = of(&still, types::READY).unwrap();
        assert!(ready == "True" && message.contains("spec.suspend"), "{message}");
    }
}
