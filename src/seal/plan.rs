//! What to do, decided and printable: names where things are and who gets them, holds no key bytes.

use std::{collections::BTreeSet, fmt};

use jiff::{SignedDuration, Timestamp};

use super::{
    Fault,
    checks::Findings,
    digest::seal_inputs,
    model::{Key, Model, Seal, Target},
    observed::Observed,
};
use crate::api::Reason;

/// Repairs of one Secret in a minute, beyond which somebody is fighting (`api.md`, meaning 6; security rule S19).
pub const REPAIRS_A_MINUTE: usize = 3;

/// How long what DescribeKey said is good for.
pub const PROBE_INTERVAL: SignedDuration = SignedDuration::from_hours(1);

/// Everything that one reconcile does, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Seals to describe.
    pub probes: Vec<String>,
    /// Keys to open.
    pub opens: Vec<Open>,
    /// Secrets to write.
    pub deliveries: Vec<Delivery>,
}

impl Plan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.probes.is_empty() && self.opens.is_empty() && self.deliveries.is_empty()
    }
}

/// A key to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The key.
    pub key: String,
    /// Seals whose copies are opened, in this order.
    pub seals: Vec<String>,
    /// Every copy is opened and compared; else the first that opens is enough.
    pub all: bool,
}

/// A Secret to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The target.
    pub target: String,
    /// Keys that it needs.
    pub keys: BTreeSet<String>,
    /// How it is written.
    pub write: Write,
    /// Digest of the inputs, for the record.
    pub inputs: String,
    /// The inputs are those delivered before: somebody changed the Secret.
    pub repair: bool,
}

/// How a Secret is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// It must not exist.
    Create,
    /// It must still be this object.
    Update {
        /// UID.
        uid: String,
    },
    /// Somebody else's, taken over with consent; it must still be this very version.
    Adopt {
        /// UID.
        uid: String,
        /// resourceVersion.
        resource_version: String,
    },
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for seal in &self.probes {
            writeln!(f, "describe the key of seal {seal:?}")?;
        }
        for open in &self.opens {
            let how = if open.all {
                "open every copy of and compare"
            } else {
                "open one copy of"
            };
            writeln!(f, "{how} key {:?} with seals {}", open.key, open.seals.join(", "))?;
        }
        for delivery in &self.deliveries {
            let how = match delivery.write {
                Write::Create => "create",
                Write::Update { .. } => "update",
                Write::Adopt { .. } => "take over",
            };
            let keys: Vec<_> = delivery.keys.iter().map(String::as_str).collect();
            writeln!(
                f,
                "{how} the Secret of target {:?} with keys {}",
                delivery.target,
                keys.join(", ")
            )?;
        }
        Ok(())
    }
}

/// What a target needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing: the Secret is the one we wrote, from the same inputs.
    Nothing,
    /// It waits, and why.
    Wait(Fault, Option<Timestamp>),
    /// It is written.
    Deliver(Delivery),
}

/// Decides what a target needs.
pub fn need(model: &Model, target: &Target, observed: &Observed, findings: &Findings) -> Need {
    let inputs = findings
        .target_inputs
        .get(&target.name)
        .cloned()
        .unwrap_or_default();
    let recorded = observed
        .status
        .targets
        .iter()
        .find(|status| status.name == target.name);
    let same_inputs = recorded.and_then(|status| status.inputs_digest.as_ref()) == Some(&inputs);
    let secret = observed.secrets.get(&target.secret);
    let ours = secret.is_some_and(|secret| secret.owner_uid.as_ref() == Some(&model.id.uid));
    let untouched = secret.is_some_and(|secret| {
        recorded.and_then(|status| status.resource_version.as_ref()) == Some(&secret.resource_version)
    });
    if same_inputs && ours && untouched {
        return Need::Nothing;
    }
    if let Some(fault) = findings.targets.get(&target.name) {
        return Need::Wait(fault.clone(), None);
    }
    if let Some(failure) = observed.memory.targets.get(&target.name)
        && failure.holds(&inputs, observed.now)
    {
        return Need::Wait(failure.fault.clone(), Some(failure.retry_at));
    }
    let write = match secret {
        Some(secret) if secret.deleting => {
            let fault = Fault::transient(
                Reason::SecretNotOwned,
                format!(
                    "Secret {} is being deleted; it is written again when it is gone",
                    target.secret
                ),
            );
            return Need::Wait(fault, None);
        }
        Some(secret) if ours => Write::Update {
            uid: secret.uid.clone(),
        },
        Some(secret) => Write::Adopt {
            uid: secret.uid.clone(),
            resource_version: secret.resource_version.clone(),
        },
        None => Write::Create,
    };
    let repair = same_inputs && recorded.is_some_and(|status| status.resource_version.is_some());
    if repair && let Some(until) = contested_until(target, observed) {
        let fault = Fault::transient(
            Reason::SecretContested,
            format!(
                "somebody keeps changing Secret {}: it was repaired {REPAIRS_A_MINUTE} times within a minute and waits; \
                 find the other writer with: kubectl get secret {} -o yaml --show-managed-fields",
                target.secret, target.secret
            ),
        );
        return Need::Wait(fault, Some(until));
    }
    let keys = target.keys().into_iter().map(Into::into).collect();
    Need::Deliver(Delivery {
        target: target.name.clone(),
        keys,
        write,
        inputs,
        repair,
    })
}

fn contested_until(target: &Target, observed: &Observed) -> Option<Timestamp> {
    let minute = SignedDuration::from_secs(60);
    let recent: Vec<_> = observed
        .memory
        .repairs
        .get(&target.name)?
        .iter()
        .filter(|at| observed.now.duration_since(**at) < minute)
        .collect();
    (recent.len() >= REPAIRS_A_MINUTE)
        .then(|| {
            recent[recent.len() - REPAIRS_A_MINUTE]
                .saturating_add(minute)
                .ok()
        })
        .flatten()
}

/// Decides everything.
pub fn plan(model: &Model, observed: &Observed, findings: &Findings) -> Plan {
    if model.suspend {
        return Plan::default();
    }
    let mut deliveries: Vec<Delivery> = model
        .targets
        .iter()
        .filter_map(|target| match need(model, target, observed, findings) {
            Need::Deliver(delivery) => Some(delivery),
            Need::Nothing | Need::Wait(..) => None,
        })
        .collect();
    let wanted: BTreeSet<String> = deliveries
        .iter()
        .flat_map(|delivery| delivery.keys.iter().cloned())
        .collect();
    let opens: Vec<Open> = model
        .keys
        .iter()
        .filter_map(|key| open(key, wanted.contains(&key.name), observed, findings))
        .collect();
    deliveries.retain(|delivery| {
        delivery
            .keys
            .iter()
            .all(|key| opens.iter().any(|open| open.key == *key))
    });
    let probes = model
        .seals
        .iter()
        .filter(|seal| !findings.seals.contains_key(&seal.name))
        .filter(|seal| probe_due(seal, observed) <= observed.now)
        .map(|seal| seal.name.clone())
        .collect();
    Plan {
        probes,
        opens,
        deliveries,
    }
}

/// When the key of a seal is to be described next.
pub fn probe_due(seal: &Seal, observed: &Observed) -> Timestamp {
    let inputs = seal_inputs(seal);
    if let Some(failure) = observed.memory.probes.get(&seal.name)
        && failure.inputs == inputs
    {
        return failure.retry_at;
    }
    let recorded = observed
        .status
        .seals
        .iter()
        .find(|status| status.name == seal.name);
    let last = recorded
        .filter(|status| status.inputs_digest.as_ref() == Some(&inputs))
        .and_then(|status| status.last_probe_time.as_ref());
    last.map_or(Timestamp::MIN, |last| {
        last.0.saturating_add(PROBE_INTERVAL).unwrap_or(Timestamp::MAX)
    })
}

fn open(key: &Key, wanted: bool, observed: &Observed, findings: &Findings) -> Option<Open> {
    let inputs = findings.key_inputs.get(&key.name)?;
    if observed
        .memory
        .keys
        .get(&key.name)
        .is_some_and(|failure| failure.holds(inputs, observed.now))
    {
        return None;
    }
    let recorded = observed.status.keys.iter().find(|status| status.name == key.name);
    let known = recorded.is_some_and(|status| status.inputs_digest.as_ref() == Some(inputs));
    let verified =
        |seal: &String| known && recorded.is_some_and(|status| status.wrapped_under.contains(seal));
    let can_try = |seal: &String| {
        let id = (key.name.clone(), seal.clone());
        let held = findings.copy_inputs.get(&id).is_some_and(|inputs| {
            observed
                .memory
                .copies
                .get(&id)
                .is_some_and(|failure| failure.holds(inputs, observed.now))
        });
        !held && !findings.copies.contains_key(&id)
    };
    let usable: Vec<String> = key
        .copies
        .iter()
        .map(|copy| copy.seal.clone())
        .filter(can_try)
        .collect();
    let new: Vec<String> = usable.iter().filter(|seal| !verified(seal)).cloned().collect();
    let (seals, all) = match (wanted, new.is_empty()) {
        (false, true) => return None,
        (true, true) => (usable, false),
        // Comparing needs the mark of a copy that was opened before; without it, all are opened again.
        (false, false)
            if observed
                .memory
                .marks
                .get(&key.name)
                .is_some_and(|(of, _)| of == inputs) =>
        {
            (new, true)
        }
        (_, false) => (usable, true),
    };
    (!seals.is_empty()).then(|| Open {
        key: key.name.clone(),
        seals,
        all,
    })
}
