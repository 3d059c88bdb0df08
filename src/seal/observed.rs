//! What was seen when a reconcile began: plain values, so that every decision can be tested without a cluster.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Ciphertext, Fault, endpoint::EndpointPolicy, model::SourceRef, store::StoreFacts};
use crate::api::SealConfigStatus;

/// The world as one reconcile sees it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The time of the reconcile.
    pub now: Timestamp,
    /// 0.0..1.0, spreads waits.
    pub jitter: f64,
    /// The namespace.
    pub namespace: NamespaceFacts,
    /// Endpoints that an admin allowed.
    pub endpoints: EndpointPolicy,
    /// The objects that hold copies.
    pub sources: BTreeMap<SourceRef, SourceFacts>,
    /// The target Secrets that exist, by name.
    pub secrets: BTreeMap<String, SecretFacts>,
    /// Every Secret that names this SealConfig as the one that delivered it, also before it was made again.
    pub relics: BTreeMap<String, SecretFacts>,
    /// Secrets that hold keys in the clear, with their resourceVersion; their bytes are read only to wrap them.
    pub plain: BTreeMap<String, String>,
    /// The wrapped store.
    pub store: StoreFacts,
    /// How long copies under a former KMS key are kept.
    pub old_copy_retention: SignedDuration,
    /// resourceVersions of the Secrets whose credentials are written into configuration, by name.
    pub credentials: BTreeMap<String, String>,
    /// Of the targets' Secrets, those that any SealConfig of the namespace reads: never adopted.
    pub read_secrets: BTreeSet<String>,
    /// Of the owners that the targets' Secrets name, those that are other SealConfigs of the namespace, by UID.
    pub living: BTreeSet<String>,
    /// The pods of the namespace that a target selects.
    pub pods: Vec<PodFacts>,
    /// How the unsealed servers say that their cluster is called.
    pub cluster_id: Option<String>,
    /// The status as we last wrote it.
    pub status: SealConfigStatus,
    /// What this process remembers of the object.
    pub memory: Memory,
}

/// What a namespace may do with the operator's own identity (security rule S3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Labelled by a cluster admin or listed by the operator's flag.
    pub operator_identity: bool,
    /// Exact key ARNs and role ARNs.
    pub grants: BTreeSet<String>,
    /// Exact ARNs and OCIDs of the only keys that seals may use; `None` = every key.
    pub allowed_seals: Option<BTreeSet<String>>,
}

/// What was found where a copy should lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceFacts {
    /// No such object.
    ObjectMissing,
    /// The object has no such entry.
    EntryMissing,
    /// Not base64 although the armor says so, empty, or too large.
    Unreadable,
    /// The wrapped key.
    Found(Ciphertext),
}

/// A target Secret, by its metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFacts {
    /// UID.
    pub uid: String,
    /// resourceVersion.
    pub resource_version: String,
    /// UID of the SealConfig that wrote it.
    pub owner_uid: Option<String>,
    /// Name of that SealConfig.
    pub owner_name: Option<String>,
    /// The SealConfig that its owner lets take it over.
    pub adopt_by: Option<String>,
    /// What we wrote beside the content.
    pub delivered: Delivered,
    /// It is being deleted.
    pub deleting: bool,
}

/// What a delivered Secret tells of its content, in annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Counts changes of key bytes; 0 = never delivered.
    pub count: u64,
    /// When key bytes last changed.
    pub keys_changed: Option<Timestamp>,
    /// When anything of the content last changed.
    pub content_changed: Option<Timestamp>,
    /// Which keys it holds, each with a one-way mark.
    pub marks: BTreeMap<String, Mark>,
}

/// What a delivered Secret tells of a key in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Version of the key.
    pub version: u32,
    /// One-way: the check value of its bytes, or the inputs of a key that could be guessed.
    pub mark: String,
    /// The version before it, if that was delivered too, and its mark.
    pub previous: Option<(u32, String)>,
    /// The counter of the wrapped store's section; 0 = brought.
    pub stored: u64,
}

/// Marks of guessable keys speak of their inputs only: a mark of such bytes would let its readers test guesses.
const INPUTS_MARK: &str = "inputs:";

impl Mark {
    /// The mark of a key that has no check value.
    pub fn of_inputs(inputs: &str) -> String {
        format!("{INPUTS_MARK}{inputs}")
    }

    /// Whether a mark is the check value of bytes.
    pub fn is_check_value(mark: &str) -> bool {
        !mark.is_empty() && !mark.starts_with(INPUTS_MARK)
    }

    /// Whether two marks speak of the same bytes.
    pub fn same_keys(&self, other: &Mark) -> bool {
        (self.version, &self.mark, &self.previous) == (other.version, &other.mark, &other.previous)
    }
}

/// A pod that a target selects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFacts {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its controller: kind and name.
    pub controller: Option<(String, String)>,
    /// It is being deleted, or has ended.
    pub leaving: bool,
    /// It is ready.
    pub ready: bool,
    /// The counter of deliveries that its template carried: it was made after that delivery.
    pub delivered: Option<u64>,
    /// It uses the network of its node.
    pub host_network: bool,
    /// Secrets that its spec uses.
    pub uses: Vec<SecretUse>,
    /// Its address, while it runs.
    pub ip: Option<IpAddr>,
    /// Its containers, but for those that only prepare it.
    pub containers: Vec<ContainerFacts>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFacts {
    /// Its id, another one after each restart; `None` = it does not run.
    pub id: Option<String>,
    /// The ports that its spec tells, some with names.
    pub ports: Vec<(Option<String>, u16)>,
}

/// One container's use of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Name of the Secret.
    pub secret: String,
    /// Through a volume, where the kubelet may serve an old copy for a while; else through the environment.
    pub volume: bool,
    /// When the container that uses it last started; `None` = it does not run.
    pub started: Option<Timestamp>,
}

/// What this process remembers of an object between reconciles. Holds no key bytes.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Failures of copies, by key and seal.
    pub copies: BTreeMap<(String, String), Failure>,
    /// Failures of whole keys (copies differ, pinned value differs).
    pub keys: BTreeMap<String, Failure>,
    /// Failures to make, copy, rotate or rebuild stored keys, by key.
    pub stored: BTreeMap<String, Failure>,
    /// Failures to wrap, by key and seal.
    pub wraps: BTreeMap<(String, String), Failure>,
    /// Failures of deliveries, by target.
    pub targets: BTreeMap<String, Failure>,
    /// Failures to describe a key, by seal.
    pub probes: BTreeMap<String, Failure>,
    /// Repaired deliveries, by target.
    pub repairs: BTreeMap<String, Repairs>,
    /// Marks of keys that were opened, by key, with the inputs digest that they belong to.
    // A map of this kind has room for four; the others stand empty most of the time, and take nothing then.
    pub marks: HashMap<String, (String, String)>,
}

impl Memory {
    /// Whether there is nothing to remember.
    pub fn is_blank(&self) -> bool {
        let Self {
            copies,
            keys,
            stored,
            wraps,
            targets,
            probes,
            repairs,
            marks,
        } = self;
        copies.is_empty()
            && [keys, stored, targets, probes].iter().all(|map| map.is_empty())
            && wraps.is_empty()
            && repairs.is_empty()
            && marks.is_empty()
    }
}

/// Something that failed and when it may be tried again.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The digest of what was tried: other inputs start afresh.
    pub inputs: String,
    /// What went wrong.
    pub fault: Fault,
    /// How often in a row.
    pub times: u32,
    /// When.
    pub at: Timestamp,
    /// Not before this.
    pub retry_at: Timestamp,
}

impl Failure {
    /// When it is tried again; `None` = now, for its time has come, or it was of other inputs.
    pub fn waits_until(&self, inputs: &str, now: Timestamp) -> Option<Timestamp> {
        waits_until(self.at, self.retry_at, now).filter(|_| self.inputs == inputs)
    }

    /// Whether it was of the same inputs and its time has not come.
    pub fn holds(&self, inputs: &str, now: Timestamp) -> bool {
        self.waits_until(inputs, now).is_some()
    }
}

/// Until when that waits which happened at `since`; `None` = its time has come.
///
/// Nothing waits for what has yet to happen: it was dated by a clock that was ahead, which says nothing of how long ago it
/// was, and would keep it waiting for as long as the clock was ahead.
pub fn waits_until(since: Timestamp, until: Timestamp, now: Timestamp) -> Option<Timestamp> {
    (since..until).contains(&now).then_some(until)
}

/// When somebody else's changes to a delivered Secret were undone within the last minute.
#[derive(Clone, Debug, Default)]
pub struct Repairs(Vec<Timestamp>);

impl Repairs {
    /// So many of one Secret within a minute, and somebody is fighting (`api.md`, meaning 6; security rule S19).
    pub const A_MINUTE: usize = 3;

    fn counts_until(at: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let minute = SignedDuration::from_secs(60);
        waits_until(at, at.saturating_add(minute).ok()?, now)
    }

    /// One more.
    pub fn add(&mut self, now: Timestamp) {
        self.0.retain(|at| Self::counts_until(*at, now).is_some());
        self.0.push(now);
    }

    /// Until when there are too many for another one; `None` = there are not.
    pub fn contested_until(&self, now: Timestamp) -> Option<Timestamp> {
        let mut counting = self.0.iter().filter_map(|at| Self::counts_until(*at, now));
        counting.nth_back(Self::A_MINUTE - 1)
    }
}
