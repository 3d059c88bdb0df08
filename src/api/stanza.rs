//! `targets[].secret.data[].stanza` and `targets[].secret.env`: configuration of servers that ask the KMS themselves, or
//! that read keys out of their configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Purpose;

/// A piece of a server's configuration. Exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.vault), has(self.openbao), has(self.openbaoStatic), has(self.boundary), has(self.boundaryAEAD)].filter(x, x).size() == 1",
    "message": "a stanza takes exactly one of vault, openbao, openbaoStatic, boundary, boundaryAEAD",
}]))]
pub struct StanzaSpec {
    /// Vault's `seal` blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vault: Option<SealStanza>,
    /// OpenBao's `seal` blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openbao: Option<SealStanza>,
    /// OpenBao's `seal "static"`, with the files that it names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openbao_static: Option<StaticStanza>,
    /// Boundary's `kms` blocks for a KMS that Boundary itself asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary: Option<KmsStanza>,
    /// Boundary's `kms "aead"` blocks, with the keys in them.
    #[serde(rename = "boundaryAEAD", skip_serializing_if = "Option::is_none")]
    pub boundary_aead: Option<AeadStanza>,
}

/// Which seals a server is to use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SealStanza {
    /// Names of `spec.seals`. Their priorities decide the order.
    #[schemars(length(min = 1, max = 3), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub seals: Vec<String>,
    /// Writes the static credentials of the seals' Secrets too. Not for any other kind of identity.
    #[serde(default)]
    pub include_credentials: bool,
}

/// OpenBao's static seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "self.currentFile != self.previousFile", "message": "currentFile and previousFile are two files: give them different names"},
]))]
pub struct StaticStanza {
    /// The key, one of `spec.keys`: 32 bytes.
    #[schemars(length(min = 1, max = 63))]
    pub key: String,
    /// Where the pods mount the Secret.
    #[schemars(regex(pattern = r"^(/[A-Za-z0-9._-]+)+/?$"), length(min = 2, max = 1024))]
    pub mount_path: String,
    /// The entry that is added for the current key.
    #[serde(default = "current_file")]
    #[schemars(regex(pattern = r"^[-._a-zA-Z0-9]+$"), length(min = 1, max = 253))]
    pub current_file: String,
    /// The entry that is added for the key before it, once there is one.
    #[serde(default = "previous_file")]
    #[schemars(regex(pattern = r"^[-._a-zA-Z0-9]+$"), length(min = 1, max = 253))]
    pub previous_file: String,
}

fn current_file() -> String {
    "current.key".into()
}

fn previous_file() -> String {
    "previous.key".into()
}

/// `kms` blocks of one seal, one for each purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KmsStanza {
    /// One of `spec.seals`.
    #[schemars(length(min = 1, max = 63))]
    pub seal: String,
    /// What Boundary uses the key for.
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set", "x-kubernetes-validations" = [
        {
            "rule": "self.all(p, !(p in ['static', 'other', 'unseal-share', 'recovery-share', 'root-token']))",
            "message": "purposes are Boundary's: root, previous-root, worker-auth, downstream-worker-auth, worker-auth-storage, recovery, config, bsr",
        },
        {
            "rule": "!('root' in self && 'previous-root' in self)",
            "message": "one seal cannot be root and previous-root at once: Boundary refuses two of the same key",
        },
    ]))]
    pub purposes: Vec<Purpose>,
    /// Writes the static credentials of the seal's Secret too. Not for any other kind of identity.
    #[serde(default)]
    pub include_credentials: bool,
}

/// `kms "aead"` blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AeadStanza {
    /// Names of `spec.keys`. Default: every key with one of Boundary's purposes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub keys: Vec<String>,
}

/// Environment variables of a server, one entry each. Exactly one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.vault) != has(self.openbao)",
    "message": "env takes exactly one of vault, openbao",
}, {
    "rule": "(!has(self.vault) || self.vault.seals.size() == 1) && (!has(self.openbao) || self.openbao.seals.size() == 1)",
    "message": "environment variables describe one seal only: name one, and write several as a stanza",
}]))]
pub struct EnvSpec {
    /// Vault's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vault: Option<SealStanza>,
    /// OpenBao's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub openbao: Option<SealStanza>,
}
