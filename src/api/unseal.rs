//! `spec.unseal`: the servers to unseal, and how they are known to be themselves.

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Vault or OpenBao servers, unsealed over their API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.podSelector.matchLabels) && self.podSelector.matchLabels.size() > 0) || (has(self.podSelector.matchExpressions) && self.podSelector.matchExpressions.size() > 0)",
        "message": "podSelector must not be empty",
    },
    {
        "rule": "self.scheme != 'https' || (has(self.tls) && (has(self.tls.serverName) || (has(self.address) && self.address.type == 'PodDNS')))",
        "message": "https needs tls.ca and a name to verify: tls.serverName, or address.type PodDNS",
    },
    {
        "rule": "self.scheme != 'http' || !has(self.tls)",
        "message": "http goes without tls",
    },
    {
        "rule": "self.scheme == 'https' || !has(self.initialize)",
        "message": "initialize needs https: what a server answers to it opens everything",
    },
]))]
pub struct UnsealSpec {
    /// Which server it is.
    pub product: UnsealProduct,
    /// Pods of the same namespace; not empty.
    pub pod_selector: LabelSelector,
    /// Where a pod is reached. Default: at its IP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<UnsealAddress>,
    /// `http` works only in namespaces that the operator's flag `--insecure-unseal-namespaces` lists.
    #[serde(default)]
    pub scheme: UnsealScheme,
    /// The port's number, or its name in the pod's containers.
    #[serde(default = "default_port")]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "type(self) != int || (int(self) >= 1 && int(self) <= 65535)", "message": "port is a number from 1 to 65535, or the name of a container's port"},
    ]))]
    pub port: IntOrString,
    /// Whom to trust. There is no switch to skip verification.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UnsealTls>,
    /// What becomes of a server that was sealed while its container ran.
    #[serde(default)]
    pub policy: UnsealPolicy,
    /// How servers that were never initialised are. Absent: they never are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initialize: Option<InitializeSpec>,
    /// Whether a server that says that it is between two seals (Shamir to auto seal, or back) is given its old seal's shares
    /// with `migrate`.
    #[serde(default)]
    pub migrate: bool,
}

fn default_port() -> IntOrString {
    IntOrString::Int(8200)
}

/// Servers that can be unsealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnsealProduct {
    /// HashiCorp Vault.
    Vault,
    /// OpenBao.
    OpenBao,
}

/// Where a pod is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "(self.type == 'PodDNS') == has(self.serviceName)", "message": "serviceName goes with type: PodDNS, and PodDNS needs it"},
]))]
pub struct UnsealAddress {
    /// By IP, or by the name that a headless Service gives the pod.
    #[serde(rename = "type")]
    pub type_: UnsealAddressType,
    /// The headless Service: the pod is `<pod>.<serviceName>.<namespace>.svc`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
        length(min = 1, max = 63)
    )]
    pub service_name: Option<String>,
}

/// How a pod is addressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnsealAddressType {
    /// At its IP.
    #[default]
    PodIP,
    /// By its name under a headless Service, which is also the TLS name unless serverName is set.
    PodDNS,
}

/// How a server is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UnsealScheme {
    /// Over TLS.
    #[default]
    Https,
    /// In the clear.
    Http,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnsealTls {
    /// The only CA that is trusted.
    pub ca: CaSource,
    /// The name that the server's certificate must carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"),
        length(min = 1, max = 253)
    )]
    pub server_name: Option<String>,
}

/// PEM certificates in an object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.secretKeyRef) != has(self.configMapKeyRef)", "message": "ca takes exactly one of secretKeyRef, configMapKeyRef"},
    {"rule": "!has(self.configMapKeyRef) || self.configMapKeyRef.name != 'kube-root-ca.crt'", "message": "the cluster's own CA signs more than your servers: give them a CA of their own"},
]))]
pub struct CaSource {
    /// An entry of a Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<CaRef>,
    /// An entry of a ConfigMap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<CaRef>,
}

/// An entry that holds PEM certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the entry.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What becomes of a server that was sealed while its container ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnsealPolicy {
    /// It stays sealed until its container restarts: an emergency seal is respected.
    #[default]
    OnStart,
    /// It is unsealed.
    Always,
}

/// How servers are initialised. What the server says of its seal picks the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.shamir) || has(self.recovery)", "message": "initialize takes shamir, recovery, or both"},
]))]
pub struct InitializeSpec {
    /// For a server whose seal is opened by unseal shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shamir: Option<SharesSpec>,
    /// For a server that has a native seal: shares of its recovery key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<SharesSpec>,
    /// What becomes of the root token that the server answers.
    #[serde(default)]
    pub root_token: RootTokenPolicy,
}

/// Into how many shares a key is split, and how many of them it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.threshold <= self.shares && (self.shares == 1 || self.threshold >= 2)", "message": "threshold is at most shares, and at least 2 when there are several shares"},
]))]
pub struct SharesSpec {
    /// Shares that are made.
    #[schemars(range(min = 1, max = 255))]
    pub shares: u8,
    /// Shares that it takes.
    #[schemars(range(min = 1, max = 255))]
    pub threshold: u8,
}

/// What becomes of the root token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RootTokenPolicy {
    /// It is revoked once the server is unsealed.
    #[default]
    Revoke,
    /// It is kept in the wrapped store until an admin fetches it.
    Wrap,
}
