//! `ManagedKey`: keys of the user's own, brought to AWS KMS.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AwsCredentials, BoundedText, Empty, KeyStatus, Rotation, WrappedCopy};

/// A key whose material is made here, kept wrapped under the seals of a SealConfig, and brought to AWS KMS.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autounseal.dev",
    version = "v1alpha1",
    kind = "ManagedKey",
    plural = "managedkeys",
    shortname = "mkey",
    category = "autounseal",
    namespaced,
    status = "ManagedKeyStatus",
    derive = "PartialEq",
    doc = "A key whose material is made here, kept wrapped under the seals of a SealConfig, and brought to AWS KMS.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.summary.version"),
    printcolumn(name = "Distributions", type_ = "string", json_path = ".status.summary.distributions"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')")
        .message("the name of a ManagedKey is part of its alias in AWS: it has at most 63 characters and no dot")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.type.startsWith('aes') ? self.usage == 'EncryptDecrypt' : (self.type.startsWith('ecdsa') ? self.usage == 'SignVerify' : true)",
        "message": "usage does not fit type: aes256-gcm96 takes EncryptDecrypt, ecdsa-… takes SignVerify, rsa-… takes either",
    },
    {
        "rule": "!has(self.rotation) || has(self.material.generate)",
        "message": "rotation goes with material.generate only: material that is brought rotates when other bytes are brought",
    },
]))]
pub struct ManagedKeySpec {
    /// Nothing is called, made or moved while true; deletion still runs.
    #[serde(default)]
    pub suspend: bool,
    /// What kind of key.
    #[serde(rename = "type")]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "type is immutable: make another ManagedKey"},
    ]))]
    pub type_: MaterialType,
    /// What applications may do with it.
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "usage is immutable: make another ManagedKey"},
    ]))]
    pub usage: KeyUsage,
    /// Where the material comes from. Which of the two is immutable.
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "has(self.generate) != has(self.wrapped)", "message": "material takes exactly one of generate, wrapped"},
        {"rule": "has(self.generate) == has(oldSelf.generate)", "message": "material cannot change between generate and wrapped: make another ManagedKey"},
    ]))]
    pub material: Material,
    /// The SealConfig of the same namespace whose seals wrap the material at rest.
    pub seal_config_ref: SealConfigRef,
    /// The regions and accounts that the key is brought to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub distributions: Vec<Distribution>,
    /// When new material is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
    /// Versions below are disabled in AWS.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_enabled_version: u32,
    /// What becomes of the keys in AWS when the object, or a distribution in it, goes.
    #[serde(default)]
    pub deletion: Deletion,
}

fn one() -> u32 {
    1
}

/// Kinds of keys, in the words of the Key Management secrets engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MaterialType {
    /// 32 bytes for AES-256-GCM.
    #[serde(rename = "aes256-gcm96")]
    Aes256,
    /// RSA of 2048 bits.
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    /// RSA of 3072 bits.
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    /// RSA of 4096 bits.
    #[serde(rename = "rsa-4096")]
    Rsa4096,
    /// ECDSA over P-256.
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    /// ECDSA over P-384.
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    /// ECDSA over P-521.
    #[serde(rename = "ecdsa-p521")]
    EcdsaP521,
}

impl MaterialType {
    /// The word in the spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            MaterialType::Aes256 => "aes256-gcm96",
            MaterialType::Rsa2048 => "rsa-2048",
            MaterialType::Rsa3072 => "rsa-3072",
            MaterialType::Rsa4096 => "rsa-4096",
            MaterialType::EcdsaP256 => "ecdsa-p256",
            MaterialType::EcdsaP384 => "ecdsa-p384",
            MaterialType::EcdsaP521 => "ecdsa-p521",
        }
    }
}

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyUsage {
    /// Encrypt and decrypt.
    EncryptDecrypt,
    /// Sign and verify.
    SignVerify,
}

impl KeyUsage {
    /// The word in the spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyUsage::EncryptDecrypt => "EncryptDecrypt",
            KeyUsage::SignVerify => "SignVerify",
        }
    }
}

/// Where the material comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Material {
    /// The operator makes it, wraps it under every enabled seal, and stores it before AWS sees it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate: Option<Empty>,
    /// The user brings it: 32 bytes, or a private key as PKCS#8 DER, in copies of the same key, each wrapped under one seal of
    /// the SealConfig. Other bytes are the next version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["seal"]))]
    pub wrapped: Vec<WrappedCopy>,
}

/// A SealConfig of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SealConfigRef {
    /// Name of the SealConfig.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
}

/// A place that the key is brought to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    /// How status and messages name it.
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
        length(min = 1, max = 63)
    )]
    pub name: String,
    /// AWS KMS.
    pub awskms: AwsDistribution,
}

/// A region of AWS KMS, and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.multiRegion || !has(self.replicaRegions) || self.replicaRegions.size() == 0", "message": "replicaRegions needs multiRegion: true"},
    {"rule": "!has(self.replicaRegions) || !(self.region in self.replicaRegions)", "message": "replicaRegions are other regions than region"},
]))]
pub struct AwsDistribution {
    /// The region, which is the key collection.
    #[schemars(regex(pattern = r"^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$"), length(max = 32), extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "region is immutable: add another distribution"},
    ]))]
    pub region: String,
    /// Whether the keys are multi-Region keys.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "multiRegion is immutable: add another distribution"},
    ]))]
    pub multi_region: bool,
    /// Other regions that each key is replicated to, and its material imported into. A region taken out of the list keeps
    /// its replicas.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 8),
        inner(regex(pattern = r"^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$"), length(max = 32)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub replica_regions: Vec<String>,
    /// Tags of the keys. A tag taken out of the list stays on keys that have it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 40, "x-kubernetes-validations" = [
        {"rule": "self.all(k, k.size() >= 1 && k.size() <= 128 && !k.startsWith('aws:') && !k.startsWith('autounseal.dev/'))", "message": "tag keys have 1 to 128 characters and do not begin with aws: or autounseal.dev/"},
        {"rule": "self.all(k, self[k].size() <= 256)", "message": "tag values have at most 256 characters"},
    ]))]
    pub tags: BTreeMap<String, BoundedText>,
    /// An alias of the user's own, beside the standard one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(
        regex(pattern = r"^$|^alias/[A-Za-z0-9/_-]+$"),
        length(max = 256),
        extend("x-kubernetes-validations" = [
            {"rule": "!self.startsWith('alias/aws/') && !self.startsWith('alias/hashicorp/')", "message": "aliases under alias/aws/ are AWS's, and those under alias/hashicorp/ the operator's standard ones"},
        ])
    )]
    pub alias_name: String,
    /// Where the credentials come from; none = the operator's own identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<AwsCredentials>,
}

/// What becomes of keys in AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Deletion {
    /// Anything but Retain needs the annotation `autounseal.dev/confirm-deletion: <uid>` on the object.
    #[serde(default)]
    pub policy: KeyDeletionPolicy,
    /// Days until AWS deletes a key under `ScheduleDeletion`.
    #[serde(default = "thirty")]
    #[schemars(range(min = 7, max = 30))]
    pub pending_window_days: u8,
}

fn thirty() -> u8 {
    30
}

impl Default for Deletion {
    fn default() -> Self {
        Self {
            policy: KeyDeletionPolicy::Retain,
            pending_window_days: thirty(),
        }
    }
}

/// What becomes of keys in AWS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyDeletionPolicy {
    /// They stay as they are.
    #[default]
    Retain,
    /// They are disabled.
    Disable,
    /// Their aliases go, and they are deleted after the window.
    ScheduleDeletion,
}

impl KeyDeletionPolicy {
    /// The word in the spec.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyDeletionPolicy::Retain => "Retain",
            KeyDeletionPolicy::Disable => "Disable",
            KeyDeletionPolicy::ScheduleDeletion => "ScheduleDeletion",
        }
    }
}

/// What the operator reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagedKeyStatus {
    /// The generation that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Stalled, SealsHealthy, KeysUnwrapped, Distributed: those that apply.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// For the printer columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<ManagedKeySummary>,
    /// The material, as it lies wrapped in the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub material: Option<KeyStatus>,
    /// Each distribution, and those taken out of the spec whose keys are still being dealt with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub distributions: Vec<DistributionStatus>,
}

/// Counts as users read them in `kubectl get`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ManagedKeySummary {
    /// Version in use, `1`.
    pub version: String,
    /// Done of all, `2/2`.
    pub distributions: String,
}

/// What is known of a distribution.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DistributionStatus {
    /// Name in the spec.
    pub name: String,
    /// The alias that applications use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The version that the alias points at; 0 = none yet.
    #[serde(default)]
    pub current_version: u32,
    /// The regions that each key is replicated to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
    /// Each version that was brought there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["version"]))]
    pub versions: Vec<KeyVersionStatus>,
    /// Digest of what was last brought there; another one is looked at anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs_digest: Option<String>,
    /// When AWS was last asked how its keys and aliases stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Time>,
    /// Why it is not done: a word of the closed set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What is known of one version's key in AWS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyVersionStatus {
    /// The version.
    pub version: u32,
    /// ARN of its key; absent until there is one.
    #[serde(rename = "keyID", skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// Its state, in AWS's words, or `Missing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}
