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
