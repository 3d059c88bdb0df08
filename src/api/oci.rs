//! `seals[].ocikms`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Empty;

/// An OCI KMS key and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.authTypeAPIKey) || self.authTypeAPIKey == (has(self.credentials) && has(self.credentials.apiKey))",
        "message": "authTypeAPIKey must agree with credentials: true goes with credentials.apiKey, false with every other identity",
    },
]))]
pub struct OciKms {
    /// OCID of the key. Immutable, for OCI decrypts by it: add a seal with the new key, then take this one out.
    #[serde(rename = "keyID")]
    #[schemars(
        regex(pattern = r"^ocid1\.key\.[a-z0-9]+\.[a-z][a-z0-9-]*\.[A-Za-z0-9._-]+$"),
        length(min = 1, max = 255),
        extend("x-kubernetes-validations" = [
            {"rule": "self == oldSelf", "message": "keyID is immutable: add a seal with the new key, then take this one out"},
        ])
    )]
    pub key_id: String,
    /// The vault's cryptographic endpoint, `https://…-crypto.kms.<region>.<domain>`.
    #[schemars(regex(pattern = r"^https?://"), length(max = 512))]
    pub crypto_endpoint: String,
    /// The vault's management endpoint, `https://…-management.kms.<region>.<domain>`.
    #[schemars(regex(pattern = r"^https?://"), length(max = 512))]
    pub management_endpoint: String,
    /// Vault's and Boundary's switch: true = API key, false = instance principal. Must agree with `credentials`.
    #[serde(rename = "authTypeAPIKey", skip_serializing_if = "Option::is_none")]
    pub auth_type_api_key: Option<bool>,
    /// Who asks the KMS; none = the instance principal of the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<OciCredentials>,
}

/// At most one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.instancePrincipal), has(self.apiKey), has(self.workloadIdentity), has(self.resourcePrincipal)].filter(x, x).size() <= 1",
    "message": "credentials take at most one of instancePrincipal, apiKey, workloadIdentity, resourcePrincipal",
}]))]
pub struct OciCredentials {
    /// The instance principal of the operator's node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_principal: Option<Empty>,
    /// A user's API key in a Secret of the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<ApiKeyRef>,
    /// OKE workload identity of a ServiceAccount of the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_identity: Option<WorkloadIdentity>,
    /// The operator's resource principal (version 2.2), from its environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_principal: Option<Empty>,
}

/// An API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyRef {
    /// Its entries are `user`, `tenancy`, `fingerprint`, `region` and `key.pem`, with `pass_phrase` if that is encrypted;
    /// or `config`, OCI's configuration file, with the PEM whose entry its `key_file` names, and `profile` for a profile
    /// other than DEFAULT.
    pub secret_ref: NameRef,
}

/// OKE workload identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadIdentity {
    /// The ServiceAccount whose token is exchanged.
    pub service_account_ref: NameRef,
}

/// An object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NameRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
