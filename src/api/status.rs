//! `SealConfig.status`: what the operator reports.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition types, in the order of importance.
pub mod condition_types {
    /// Everything asked for is done.
    pub const READY: &str = "Ready";
    /// Only a human can mend it.
    pub const STALLED: &str = "Stalled";
    /// Every seal works.
    pub const SEALS_HEALTHY: &str = "SealsHealthy";
    /// Every key is open.
    pub const KEYS_UNWRAPPED: &str = "KeysUnwrapped";
    /// Every target Secret holds what it should.
    pub const SECRETS_DELIVERED: &str = "SecretsDelivered";
    /// Every target pod runs with what was delivered.
    pub const PODS_CURRENT: &str = "PodsCurrent";
    /// Every distribution of a ManagedKey is as it should be.
    pub const DISTRIBUTED: &str = "Distributed";
    /// Every server that `spec.unseal` selects is unsealed.
    pub const UNSEALED: &str = "Unsealed";
}

/// What the operator reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SealConfigStatus {
    /// The generation that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Stalled, SealsHealthy, KeysUnwrapped, SecretsDelivered, PodsCurrent, Unsealed: those that apply.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// For the printer columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Each seal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub seals: Vec<SealStatus>,
    /// Each key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub keys: Vec<KeyStatus>,
    /// Each target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<TargetStatus>,
    /// The servers that `spec.unseal` selects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseal: Option<UnsealStatus>,
}

/// What is known of the servers that are unsealed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnsealStatus {
    /// Whether the servers that answered say that they are initialised; absent while none has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initialized: Option<bool>,
    /// Servers that said that they are sealed when they were last asked.
    #[serde(default)]
    pub sealed: u32,
    /// The cluster that the servers are of, as it called itself when it was first seen unsealed: another one gets no share.
    #[serde(rename = "clusterID", skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Digest of the shares that `clusterID` was seen with; tells nothing of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares_digest: Option<String>,
    /// Since when the wrapped store holds a root token; absent when it holds none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_token_held_since: Option<Time>,
    /// Each selected pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub pods: Vec<UnsealPodStatus>,
}

/// What is known of one server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnsealPodStatus {
    /// Name of the pod.
    pub name: String,
    /// The container that was last seen unsealed: under `policy: OnStart` it is left alone when it is sealed later.
    #[serde(rename = "containerID", skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// When that container was first seen unsealed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_unsealed_time: Option<Time>,
}

/// Counts as users read them in `kubectl get`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Healthy of all, `2/2`.
    pub seals: String,
    /// Keys, `1`.
    pub keys: String,
    /// Current of using pods, `3/3`.
    pub pods: String,
}

/// What is known of a seal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SealStatus {
    /// Name in the spec.
    pub name: String,
    /// `awskms` or `ocikms`.
    pub provider: String,
    /// The key's ARN as the KMS resolved it, which pins account and region; or its OCID.
    #[serde(rename = "keyID", skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The version of the key's material, as the KMS last told it: copies under another one are made anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_version: Option<String>,
    /// The `kmsKeyID` or `keyID` that `keyID` was resolved from: the pin is renewed when it changes.
    #[serde(rename = "configuredKeyID", skip_serializing_if = "Option::is_none")]
    pub configured_key_id: Option<String>,
    /// Digest of key, endpoint and credentials that this entry speaks of; another one is asked anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs_digest: Option<String>,
    /// Role or principal, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// `operator`, `irsa`, `pod-identity`, `instance-metadata`, `secret`, with `+assume-role`; `instance-principal`,
    /// `resource-principal`, `api-key`, `workload-identity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_source: Option<String>,
    /// Unknown, Healthy or Unhealthy.
    #[serde(default)]
    pub state: SealHealth,
    /// When the KMS last described the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_probe_time: Option<Time>,
    /// Why it is Unhealthy: a word of the closed set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong and what to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Whether a seal works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SealHealth {
    /// Not tried yet, or DescribeKey is not permitted and nothing was opened yet.
    #[default]
    Unknown,
    /// The last call went well.
    Healthy,
    /// The last call failed.
    Unhealthy,
}

/// What is known of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Name in the spec.
    pub name: String,
    /// Version in use; brought keys have version 1, a key that was not made yet 0.
    pub version: u32,
    /// How the consumer names the version in use.
    #[serde(rename = "consumerKeyID", skip_serializing_if = "Option::is_none")]
    pub consumer_key_id: Option<String>,
    /// Seals under which there is a copy: brought ones that were opened and agreed, and the operator's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wrapped_under: Vec<String>,
    /// The seal whose copy was delivered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_by: Option<String>,
    /// When the age of the version in use makes a new one due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_rotation_time: Option<Time>,
    /// Seals that once opened the version in use and were taken out since: rotate, if one of them is compromised.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_under: Vec<String>,
    /// Digest of the copies and seals that `wrappedUnder` speaks of; tells nothing of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs_digest: Option<String>,
    /// The highest counter of the wrapped store that was seen for this key: an older store is not obeyed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub store_counter: u64,
    /// Which state of the wrapped store was checked; tells nothing of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_digest: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(counter: &u64) -> bool {
    *counter == 0
}

/// What is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// Name in the spec.
    pub name: String,
    /// Name of the Secret.
    pub secret: String,
    /// The Secret's resourceVersion after our last write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Digest of everything that the Secret was made from; tells nothing of the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs_digest: Option<String>,
    /// When the content last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered_time: Option<Time>,
    /// How often the key bytes in it have changed; the counter that restarted pod templates carry.
    #[serde(default)]
    pub deliveries: u64,
    /// The pods that read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodCounts>,
}

/// Pods of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Selected by the target.
    pub selected: u32,
    /// Of those, the ones whose spec uses the Secret.
    pub using: u32,
    /// Of those, the ones that run with what was delivered.
    pub current: u32,
}
