//! What the effects achieved, as values for the status.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Fault, store::Sealed, unseal::PodRecord};
use crate::api::Reason;

/// The results of one plan.
#[derive(Clone, Debug, Default)]
pub struct Outcomes {
    /// By seal.
    pub seals: BTreeMap<String, SealOutcome>,
    /// By key; absent = not tried.
    pub keys: BTreeMap<String, KeyOutcome>,
    /// By target; absent = not tried.
    pub targets: BTreeMap<String, TargetOutcome>,
    /// Restarts that are held back, by target.
    pub restarts: BTreeMap<String, Fault>,
    /// The servers to unseal, by pod.
    pub unseal: Vec<PodRecord>,
}

/// What is known of a seal after its calls.
#[derive(Clone, Debug, Default)]
pub struct SealOutcome {
    /// What DescribeKey said, if it was asked.
    pub described: Option<Described>,
    /// Who spoke to the KMS.
    pub identity: Option<String>,
    /// At least one copy was opened or made.
    pub opened: bool,
}

/// What DescribeKey said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Described {
    /// The key, and what is wrong with its state.
    Key {
        /// ARN.
        arn: String,
        /// The version of its material, where the KMS tells it.
        version: Option<String>,
        /// When the KMS said so.
        at: Timestamp,
        /// Disabled, pending deletion and the like.
        fault: Option<Fault>,
    },
    /// The identity may not ask: no fault.
    NotPermitted {
        /// When the KMS said so.
        at: Timestamp,
    },
    /// It failed.
    Failed(Fault),
}

/// What became of a key.
#[derive(Clone, Debug, Default)]
pub struct KeyOutcome {
    /// Seals whose copies opened and agreed.
    pub agreed: BTreeSet<String>,
    /// The seal whose copy is used.
    pub opened_by: Option<String>,
    /// How the consumer names the key.
    pub consumer_key_id: Option<String>,
    /// The state of its section of the wrapped store that was written or checked, for a key that is not brought.
    pub stored: Option<StoredState>,
}

/// A state of a section of the wrapped store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredState {
    /// The section's counter.
    pub counter: u64,
    /// The section's digest.
    pub digest: String,
}

impl StoredState {
    /// The state of a section as it lies in the store.
    pub fn of(sealed: &Sealed) -> Self {
        Self {
            counter: sealed.section.counter,
            digest: sealed.digest(),
        }
    }
}

/// What became of a target.
#[derive(Clone, Debug)]
pub enum TargetOutcome {
    /// Written, or found as it should be.
    Delivered {
        /// resourceVersion after the write.
        resource_version: String,
        /// Digest of what it was made from.
        inputs: String,
        /// When the content last changed.
        content_changed: Timestamp,
        /// How often key bytes have changed.
        deliveries: u64,
    },
    /// Not written.
    Failed(Fault),
}

impl Reason {
    /// Whether the fault lies in the wrapped store, so that nothing may be believed that it says.
    pub fn is_of_the_store(self) -> bool {
        matches!(
            self,
            Reason::StoreCorrupt
                | Reason::StoreRolledBack
                | Reason::StoreMissing
                | Reason::StoreNotOwned
                | Reason::CopiesDiffer
        )
    }

    /// Whether the fault lies in one wrapped copy rather than in the seal that should open it.
    pub fn is_of_a_copy(self) -> bool {
        matches!(
            self,
            Reason::CiphertextInvalid
                | Reason::StoreCorrupt
                | Reason::ContextMismatch
                | Reason::KeyNotAllowed
                | Reason::SourceMissing
                | Reason::CheckValueDiffers
                | Reason::CopiesDiffer
        )
    }
}
