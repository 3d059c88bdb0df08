//! What to do, decided and printable: names where things are and who gets them, holds no key bytes.

use std::{collections::BTreeSet, fmt};

use jiff::{SignedDuration, Timestamp};

use super::{
    Fault,
    checks::Findings,
    digest::{seal_inputs, tend_inputs},
    model::{Key, Model, Seal, Target},
    observed::{Delivered, Observed, Repairs, waits_until},
    pods::{has_keys, pods},
    store::{
        Standing, StoreFacts,
        standing::{Due, Rebuild, successor, wrapping},
    },
};
use crate::api::{Reason, SealHealth, SealStatus};

/// How long what DescribeKey said is good for.
pub const PROBE_INTERVAL: SignedDuration = SignedDuration::from_hours(1);

/// Everything that one reconcile does, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Seals to describe.
    pub probes: Vec<String>,
    /// Stored keys to look after, before anything is delivered from them.
    pub tends: Vec<Tend>,
    /// Keys to open.
    pub opens: Vec<Open>,
    /// Secrets to write.
    pub deliveries: Vec<Delivery>,
}

impl Plan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.probes.is_empty() && self.tends.is_empty() && self.opens.is_empty() && self.deliveries.is_empty()
    }
}

/// A stored key to look after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tend {
    /// The key.
    pub key: String,
    /// What is done.
    pub work: Work,
}

/// What is done about a stored key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// It is made, taken in, or copied for the first time, under these seals.
    Make(Vec<String>),
    /// It is made from what was delivered, under these seals.
    Rebuild(Rebuild, Vec<String>),
    /// What is due.
    Mend(Due),
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
        for tend in &self.tends {
            let key = &tend.key;
            match &tend.work {
                Work::Make(seals) => writeln!(f, "wrap key {key:?} under seals {}", seals.join(", "))?,
                Work::Rebuild(from, seals) => writeln!(
                    f,
                    "take key {key:?} from Secret {} and wrap it under seals {}",
                    from.current.secret,
                    seals.join(", ")
                )?,
                Work::Mend(due) => {
                    for (version, seal) in &due.copies {
                        writeln!(f, "wrap version {version} of key {key:?} under seal {seal}")?;
                    }
                    if due.rotate {
                        writeln!(f, "make a new version of key {key:?}")?;
                    }
                    if due.copies.is_empty() && !due.rotate {
                        writeln!(f, "check and tidy the stored copies of key {key:?}")?;
                    }
                }
            }
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
    let repairs = observed.memory.repairs.get(&target.name);
    if repair && let Some(until) = repairs.and_then(|repairs| repairs.contested_until(observed.now)) {
        let fault = Fault::transient(
            Reason::SecretContested,
            format!(
                "somebody keeps changing Secret {}: it was repaired {} times within a minute and waits; \
                 find the other writer with: kubectl get secret {} -o yaml --show-managed-fields",
                target.secret,
                Repairs::A_MINUTE,
                target.secret
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
    let mut tends: Vec<Tend> = model
        .keys
        .iter()
        .filter_map(|key| {
            Some(Tend {
                key: key.name.clone(),
                work: tend(model, key, observed, findings)?,
            })
        })
        .collect();
    let opens: Vec<Open> = model
        .keys
        .iter()
        .filter_map(|key| {
            // A brought key is copied from its brought copies; a stored one is opened where it is looked after.
            let copied = key.is_brought() && tends.iter().any(|tend| tend.key == key.name);
            open(
                model,
                key,
                copied || wanted.contains(&key.name),
                observed,
                findings,
            )
        })
        .collect();
    tends.retain(|tend| {
        model
            .keys
            .iter()
            .any(|key| key.name == tend.key && !key.is_brought())
            || opens.iter().any(|open| open.key == tend.key)
    });
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
        tends,
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
        let until = failure.waits_until(&inputs, observed.now);
        return until.unwrap_or(Timestamp::MIN);
    }
    if is_told_of_the_past(seal, observed) {
        return Timestamp::MIN;
    }
    let recorded = recorded(seal, observed);
    recorded
        .filter(|status| status.inputs_digest.as_ref() == Some(&inputs))
        .and_then(|status| status.last_probe_time.as_ref())
        .and_then(|last| waits_until(last.0, last.0.saturating_add(PROBE_INTERVAL).ok()?, observed.now))
        .unwrap_or(Timestamp::MIN)
}

fn recorded<'o>(seal: &Seal, observed: &'o Observed) -> Option<&'o SealStatus> {
    let mut seals = observed.status.seals.iter();
    seals.find(|status| status.name == seal.name)
}

/// Whether a seal is told to be unhealthy for something that passes by itself, and nothing is left that would try it again:
/// what failed is not asked for any more, or waits for its user, or the operator was started anew. A state of the KMS key
/// stays until the next regular look at it.
pub fn is_told_of_the_past(seal: &Seal, observed: &Observed) -> bool {
    let Some(status) = recorded(seal, observed) else {
        return false;
    };
    let of_the_key = [
        Reason::KeyDisabled,
        Reason::KeyPendingDeletion,
        Reason::KeyUnusable,
        Reason::KeyNotFound,
        Reason::AccessDenied,
    ];
    let word = status.reason.as_deref().unwrap_or_default();
    let memory = &observed.memory;
    let mut failing = memory.copies.iter().chain(&memory.wraps);
    status.state == SealHealth::Unhealthy
        && !memory.probes.contains_key(&seal.name)
        && !of_the_key.iter().any(|reason| reason.as_str() == word)
        && !failing.any(|((_, seal), failure)| *seal == status.name && !failure.fault.reason.is_of_a_copy())
}

/// What is done about a stored key now: what is due, but for what failed a moment ago.
fn tend(model: &Model, key: &Key, observed: &Observed, findings: &Findings) -> Option<Work> {
    let standing = findings.standings.get(&key.name)?;
    let inputs = tend_inputs(model, key, standing, observed);
    let held = observed
        .memory
        .stored
        .get(&key.name)
        .is_some_and(|failure| failure.holds(&inputs, observed.now));
    if held {
        return None;
    }
    let works = |seal: &Seal| {
        let id = (key.name.clone(), seal.name.clone());
        let failed = observed.memory.wraps.get(&id);
        !findings.seals.contains_key(&seal.name)
            && !failed.is_some_and(|failure| failure.holds(&seal_inputs(seal), observed.now))
    };
    let all: Vec<&Seal> = wrapping(model, key).collect();
    let ready: Vec<String> = all
        .iter()
        .filter(|seal| works(seal))
        .map(|seal| seal.name.clone())
        .collect();
    // A key that only the operator has is used when every enabled seal holds it, and not before.
    let every = !all.is_empty() && ready.len() == all.len();
    match standing {
        Standing::Elsewhere | Standing::Barred(_) => None,
        Standing::New if key.is_brought() => (!ready.is_empty()).then_some(Work::Make(ready)),
        Standing::New => (every && !findings.keys.contains_key(&key.name)).then_some(Work::Make(ready)),
        Standing::Lost(from) => (!ready.is_empty()).then(|| Work::Rebuild(from.clone(), ready)),
        Standing::Kept(kept) => {
            let mut due = kept.due.clone();
            due.copies.retain(|(_, seal)| ready.contains(seal));
            // The read of a successor that failed a moment ago is not tried again at once either.
            due.drop.retain(|(version, item)| {
                let StoreFacts::Found(store) = &observed.store else {
                    return false;
                };
                let under = successor(model, key, store, *version, item);
                under.is_some_and(|under| model.seal(&under.seal).is_some_and(works))
            });
            due.rotate &= every && rotation_waits(model, key, observed, findings).is_none();
            (!due.is_nothing()).then_some(Work::Mend(due))
        }
    }
}

/// Why a rotation that is due does not start: a Secret or a pod that does not have the version in use yet (`api.md`,
/// meaning 5).
pub fn rotation_waits(model: &Model, key: &Key, observed: &Observed, findings: &Findings) -> Option<Fault> {
    let waiting = |message: String| Some(Fault::denied(Reason::RotationWaitingForPods, message));
    for target in model
        .targets
        .iter()
        .filter(|target| target.keys().contains(key.name.as_str()))
    {
        if need(model, target, observed, findings) != Need::Nothing {
            return waiting(format!(
                "the rotation of key {:?} waits until target {:?} holds the version in use",
                key.name, target.name
            ));
        }
        let delivered = delivered(target, observed);
        let mut using = pods(target, &observed.pods, &delivered).using();
        // Who is behind a change of text only runs the version in use.
        using.retain(|pod| !has_keys(pod, &target.secret, &delivered));
        if let Some(pod) = using.first() {
            return waiting(format!(
                "the rotation of key {:?} waits for pod {} (and {} more), which started before the keys in Secret {} last \
                 changed; restart it, or set onChange: Restart and annotate its workload with autounseal.dev/restart: allowed",
                key.name,
                pod.name,
                using.len() - 1,
                target.secret
            ));
        }
    }
    None
}

/// What is known of the last delivery to a target.
pub fn delivered(target: &Target, observed: &Observed) -> Delivered {
    let delivered = observed
        .secrets
        .get(&target.secret)
        .map(|secret| secret.delivered.clone())
        .unwrap_or_default();
    // The status knows of a delivery that the observed Secret does not show yet.
    let recorded = observed
        .status
        .targets
        .iter()
        .find(|status| status.name == target.name && status.secret == target.secret);
    let recorded = recorded
        .and_then(|status| status.delivered_time.as_ref())
        .map(|time| time.0);
    let unseen = recorded.filter(|at| delivered.content_changed.is_none_or(|seen| seen < *at));
    Delivered {
        content_changed: recorded.or(delivered.content_changed),
        // What changed then is not known, so it counts as the keys.
        keys_changed: unseen.or(delivered.keys_changed),
        count: delivered.count.max(1),
        ..delivered
    }
}

/// How a share is opened now to be given to a server; `None` = nothing opens it, and findings or memory say why.
pub fn open_share(model: &Model, share: &Key, observed: &Observed, findings: &Findings) -> Option<Open> {
    let open = open(model, share, true, observed, findings)?;
    // Copies were compared when they came.
    Some(Open { all: false, ..open })
}

fn open(model: &Model, key: &Key, wanted: bool, observed: &Observed, findings: &Findings) -> Option<Open> {
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
    // Brought and stored copies alike, by the priority of their seals.
    let usable: Vec<String> = model
        .seals
        .iter()
        .map(|seal| seal.name.clone())
        .filter(|seal| {
            findings
                .copy_inputs
                .contains_key(&(key.name.clone(), seal.clone()))
        })
        .filter(can_try)
        .collect();
    if !key.is_brought() {
        let kept = matches!(findings.standings.get(&key.name), Some(Standing::Kept(_)));
        // A seal that failed is asked again when its time has come, so that it does not stay ill in the status.
        let again = usable.iter().find(|seal| {
            observed
                .memory
                .copies
                .contains_key(&(key.name.clone(), (*seal).clone()))
        });
        let seals = match again {
            Some(seal) if !wanted => vec![seal.clone()],
            _ if wanted => usable,
            _ => Vec::new(),
        };
        return (kept && !seals.is_empty()).then(|| Open {
            key: key.name.clone(),
            seals,
            all: false,
        });
    }
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
