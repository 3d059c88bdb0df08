//! The header of a wrapped store: which versions there are, and which copies. Each key's section is authenticated under
//! that key, so that an edited one is told and not obeyed (`api.md`, meaning 2).

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    rekey::Rekey,
    sets::{Initialized, Marker},
};
use crate::seal::{KeyBytes, consumer_id::GUESSABLE_BELOW, managed::record::Managed};

const DOMAIN: &[u8] = b"autounseal.dev/store-header/v1";

/// The version of the header's format.
pub const FORMAT: u32 = 1;

/// The header as it lies in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// [`FORMAT`].
    pub format: u32,
    /// Grows with each write of the store.
    pub counter: u64,
    /// A server was asked to initialise itself, or is about to be. Stays beside what it answered. Not authenticated, for
    /// there is no key yet: one that somebody else wrote keeps servers from being initialised, and does nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Marker>,
    /// Sets up to this number do not keep servers from being initialised any more (`autounseal forget-init`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgotten: Option<u32>,
    /// A server is being asked for new shares, or has answered some that are not in use yet. Not authenticated: what it
    /// says only leads to questions to the server, and no set goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rekey: Option<Box<Rekey>>,
    /// The last set from a rotation with which a server was unsealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<u32>,
    /// By key.
    pub keys: BTreeMap<String, Sealed>,
}

/// A section and its authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Sealed {
    /// What is said.
    pub section: Section,
    /// HMAC-SHA256 under the current version, 64 hexadecimal digits. Absent for keys under 16 bytes: it would let everyone
    /// who reads the store test guesses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// Where a stored key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provenance {
    /// The operator made it.
    Generated,
    /// It lay in the clear in a Secret.
    Imported,
    /// The user brings it; the store holds copies under seals for which the user brings none.
    Brought,
    /// A server answered it when it was initialised.
    Initialized,
}

impl Provenance {
    /// The field of the spec.
    pub const fn field(self) -> &'static str {
        match self {
            Provenance::Generated => "generate",
            Provenance::Imported => "import",
            Provenance::Brought => "wrapped",
            Provenance::Initialized => "unseal.initialize",
        }
    }
}

/// What the store says of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Section {
    /// Where the key comes from.
    pub source: Provenance,
    /// The store's counter at the last change of this section.
    pub counter: u64,
    /// The version in use.
    pub current: u32,
    /// The number that the next version gets; never used before.
    pub next: u32,
    /// `rotation.trigger` last acted on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// Digest of the copies of a brought key that the stored ones were made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<String>,
    /// Every version that there ever was.
    pub versions: BTreeMap<u32, Version>,
    /// What the material of a ManagedKey is, and where it was brought to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<Managed>,
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Version {
    /// When it was made.
    pub created: Timestamp,
    /// One-way: tells whether a copy that opens is this version. Absent for keys under 16 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_value: Option<String>,
    /// By seal.
    pub copies: BTreeMap<String, CopyRecord>,
    /// Copies that have a successor and wait for the end of their retention, by item.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub former: BTreeMap<String, Former>,
    /// Seals that once opened this version and are not in the spec any more (security rule S17).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed: BTreeSet<String>,
    /// Which initialisation it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Initialized>,
}

/// What is known of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopyRecord {
    /// `awskms` or `ocikms`.
    pub provider: String,
    /// ARN or OCID of the KMS key that wrapped it.
    #[serde(rename = "keyID")]
    pub key_id: String,
    /// What the KMS says of the version of its key, where it says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<String>,
    /// `kmsKeyID` or `keyID` as the spec had it: the pin of account and region holds while it stays.
    #[serde(rename = "configuredKeyID")]
    pub configured_key_id: String,
    /// Endpoint as the spec had it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// When it was made.
    pub made: Timestamp,
    /// SHA-256 of the item's bytes, hexadecimal: a damaged copy is seen without any call.
    pub digest: String,
}

/// A copy that has a successor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Former {
    /// The seal that it was made under.
    pub seal: String,
    /// The copy.
    pub copy: CopyRecord,
    /// When its successor was read for the first time.
    pub replaced: Timestamp,
}

impl Sealed {
    /// The name of this very state, with its authentication: tells nothing of the key.
    pub fn digest(&self) -> String {
        let mac = self.mac.as_deref().unwrap_or_default();
        let mut message = self.section.message([mac, "", "", ""]);
        message.extend_from_slice(b"digest");
        HEXLOWER.encode(&super::sha256(&message)[..16])
    }
}

impl Section {
    /// The version before the one in use, if there is one.
    pub fn previous(&self) -> Option<u32> {
        self.versions
            .range(..self.current)
            .next_back()
            .map(|(version, _)| *version)
    }

    /// Authenticates the section under the bytes of its current version. `None` for keys under 16 bytes.
    pub fn mac(&self, key: &KeyBytes, place: [&str; 4]) -> Option<String> {
        if key.expose().len() < GUESSABLE_BELOW {
            return None;
        }
        Some(HEXLOWER.encode(&key.mac(&self.message(place))))
    }

    /// `place`: kind, namespace, name, key. Fields are written in the order of their declaration and maps by name, so
    /// that what was read is written the same again.
    fn message(&self, place: [&str; 4]) -> Vec<u8> {
        let mut message = DOMAIN.to_vec();
        let body = serde_json::to_string(self).unwrap_or_default();
        for part in place.into_iter().chain([body.as_str()]) {
            message.extend_from_slice(&(part.len() as u64).to_be_bytes());
            message.extend_from_slice(part.as_bytes());
        }
        message
    }
}
