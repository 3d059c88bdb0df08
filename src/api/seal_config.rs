//! `SealConfig`: what the user applies.

use std::collections::BTreeMap;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AwsKms, EnvSpec, ManagedKey, OciKms, StanzaSpec, UnsealSpec, status::SealConfigStatus};

/// Names seals (KMS keys) and the root keys wrapped under them, and says which Secrets receive the keys.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autounseal.dev",
    version = "v1alpha1",
    kind = "SealConfig",
    plural = "sealconfigs",
    namespaced,
    shortname = "seal",
    category = "autounseal",
    status = "SealConfigStatus",
    derive = "PartialEq",
    doc = "Names seals (KMS keys) and the root keys wrapped under them, and says which Secrets receive the keys.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Seals", type_ = "string", json_path = ".status.summary.seals"),
    printcolumn(name = "Keys", type_ = "string", json_path = ".status.summary.keys"),
    printcolumn(name = "Pods", type_ = "string", json_path = ".status.summary.pods"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63").message("the name of a SealConfig has at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "!has(self.keys) || self.keys.all(k, !has(k.wrapped) || k.wrapped.all(w, self.seals.exists(s, s.name == w.seal && s.use.exists(u, u == 'Wrap'))))",
        "message": "every wrapped copy must name one of spec.seals with use: Wrap",
    },
    {
        "rule": "!has(self.keys) || self.keys.size() == 0 || self.seals.exists(s, s.use.exists(u, u == 'Wrap'))",
        "message": "keys need a seal with use: Wrap",
    },
    {
        "rule": "!has(self.unseal) || !has(self.unseal.initialize) || self.seals.exists(s, !s.disabled && s.use.exists(u, u == 'Wrap'))",
        "message": "unseal.initialize needs an enabled seal with use: Wrap, under which the shares are kept",
    },
    {
        "rule": "!has(self.targets) || self.targets.all(t, !has(t.secret.data) || t.secret.data.all(d, !has(d.key) || (has(self.keys) && self.keys.exists(k, k.name == d.key.name && !(k.purpose in ['unseal-share', 'recovery-share', 'root-token'])))))",
        "message": "every data entry must name one of spec.keys, and none of purpose unseal-share, recovery-share or root-token: these are never delivered",
    },
    {
        "rule": "!has(self.targets) || self.targets.all(t, !has(t.secret.data) || t.secret.data.all(d, !has(d.stanza) || ((!has(d.stanza.vault) || d.stanza.vault.seals.all(n, self.seals.exists(s, s.name == n && (!d.stanza.vault.includeCredentials || (has(s.awskms) && has(s.awskms.credentials) && has(s.awskms.credentials.secretRef)))))) && (!has(d.stanza.openbao) || d.stanza.openbao.seals.all(n, self.seals.exists(s, s.name == n && (!d.stanza.openbao.includeCredentials || (has(s.awskms) && has(s.awskms.credentials) && has(s.awskms.credentials.secretRef)))))) && (!has(d.stanza.boundary) || self.seals.exists(s, s.name == d.stanza.boundary.seal && (!d.stanza.boundary.includeCredentials || (has(s.awskms) && has(s.awskms.credentials) && has(s.awskms.credentials.secretRef))))))))",
        "message": "every stanza must name seals of spec.seals; with includeCredentials those that have static credentials in a Secret (awskms.credentials.secretRef)",
    },
    {
        "rule": "!has(self.targets) || self.targets.all(t, !has(t.secret.env) || ((!has(t.secret.env.vault) || t.secret.env.vault.seals.all(n, self.seals.exists(s, s.name == n && (!t.secret.env.vault.includeCredentials || (has(s.awskms) && has(s.awskms.credentials) && has(s.awskms.credentials.secretRef)))))) && (!has(t.secret.env.openbao) || t.secret.env.openbao.seals.all(n, self.seals.exists(s, s.name == n && (!t.secret.env.openbao.includeCredentials || (has(s.awskms) && has(s.awskms.credentials) && has(s.awskms.credentials.secretRef))))))))",
        "message": "env must name a seal of spec.seals; with includeCredentials one that has static credentials in a Secret (awskms.credentials.secretRef)",
    },
    {
        "rule": "!has(self.targets) || self.targets.all(t, !has(t.secret.data) || t.secret.data.all(d, !has(d.stanza) || ((!has(d.stanza.openbaoStatic) || (has(self.keys) && self.keys.exists(k, k.name == d.stanza.openbaoStatic.key && !(k.purpose in ['unseal-share', 'recovery-share', 'root-token']) && (!has(k.generate) || k.generate.bytes == 32)))) && (!has(d.stanza.boundaryAEAD) || !has(d.stanza.boundaryAEAD.keys) || d.stanza.boundaryAEAD.keys.all(n, has(self.keys) && self.keys.exists(k, k.name == n && !(k.purpose in ['static', 'other', 'unseal-share', 'recovery-share', 'root-token']) && (!has(k.generate) || k.generate.bytes == 32)))))))",
        "message": "openbaoStatic and boundaryAEAD take keys of spec.keys of 32 bytes, the latter with one of Boundary's purposes",
    },
    {
        "rule": "!has(self.targets) || self.targets.all(t, self.targets.exists_one(u, u.secret.name == t.secret.name))",
        "message": "two targets cannot write the same Secret",
    },
]))]
pub struct SealConfigSpec {
    /// Which operator instance takes this object (flag `--controller-class`).
    #[serde(default)]
    #[schemars(regex(pattern = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"), length(max = 63), extend("x-kubernetes-validations" = [
        {"rule": "self == oldSelf", "message": "controllerClass is immutable"},
    ]))]
    pub controller_class: String,
    /// Stops KMS calls, delivery and restarts; deletion still runs.
    #[serde(default)]
    pub suspend: bool,
    /// KMS keys that open what `keys` hold.
    #[schemars(length(min = 1, max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub seals: Vec<SealSpec>,
    /// The root keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub keys: Vec<RootKey>,
    /// The Secrets that receive keys, and the pods that read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<Target>,
    /// The Vault or OpenBao servers that are unsealed over their API, with the keys of purpose
    /// `unseal-share` or with the shares that they answered when the operator initialised them, and
    /// migrated with those of purpose `recovery-share`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseal: Option<UnsealSpec>,
    /// Whether the wrapped store goes with the SealConfig.
    #[serde(default)]
    pub wrapped_deletion_policy: DeletionPolicy,
}

/// One KMS key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "has(self.awskms) != has(self.ocikms)", "message": "a seal takes exactly one of: awskms, ocikms"},
    {"rule": "has(self.awskms) == has(oldSelf.awskms)", "message": "a seal keeps its cloud: add another seal, then take this one out"},
]))]
pub struct SealSpec {
    /// How copies, status and messages name this seal.
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
        length(min = 1, max = 63)
    )]
    pub name: String,
    /// Lower is tried first; ties go by name.
    #[serde(default = "default_priority")]
    #[schemars(range(min = 0, max = 100))]
    pub priority: u8,
    /// What the seal is for: to wrap and open keys, or only to be named in stanzas and env.
    #[serde(rename = "use", default = "default_use")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub use_: Vec<SealUse>,
    /// It may still open; nothing new is wrapped under it. The way out of a seal.
    #[serde(default)]
    pub disabled: bool,
    /// A key of AWS KMS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awskms: Option<AwsKms>,
    /// A key of OCI KMS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ocikms: Option<OciKms>,
}

fn default_priority() -> u8 {
    50
}

fn default_use() -> Vec<SealUse> {
    vec![SealUse::Wrap]
}

/// What a seal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SealUse {
    /// The operator wraps and opens keys with it.
    Wrap,
    /// The consumer uses it itself: it is only named in stanzas and env.
    Native,
}

/// A secret that a workload needs before it can start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "[has(self.wrapped), has(self.generate), has(self.import)].filter(x, x).size() == 1",
        "message": "a key takes exactly one of wrapped, generate, import",
    },
    {
        "rule": "has(self.wrapped) == has(oldSelf.wrapped) && has(self.generate) == has(oldSelf.generate)",
        "message": "a key cannot change from one of wrapped, generate, import to another: give the new one another name",
    },
    {
        "rule": "!(self.purpose in ['unseal-share', 'recovery-share', 'root-token']) || !has(self.generate)",
        "message": "a share or root token is made by its server: bring it in wrapped, or take it in with import",
    },
    {
        "rule": "self.purpose == oldSelf.purpose || !(self.purpose in ['unseal-share', 'recovery-share', 'root-token'] || oldSelf.purpose in ['unseal-share', 'recovery-share', 'root-token'])",
        "message": "purpose cannot change from or to unseal-share, recovery-share or root-token: give the new key another name",
    },
    {
        "rule": "!has(self.checkValue) || has(self.wrapped)",
        "message": "checkValue pins a key that is brought in wrapped",
    },
]))]
pub struct RootKey {
    /// How targets name this key.
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
        length(min = 1, max = 63)
    )]
    pub name: String,
    /// What the key is for.
    #[serde(default)]
    pub purpose: Purpose,
    /// How the consumer names this key. Default: derived from the key.
    #[serde(rename = "consumerKeyID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9._:/@+=-]+$"), length(min = 1, max = 253))]
    pub consumer_key_id: Option<String>,
    /// Pins the key: the value that `autounseal wrap` printed for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"), length(max = 64))]
    pub check_value: Option<String>,
    /// Brought by the user: copies of the same key, each wrapped under one seal.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 5), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["seal"]))]
    pub wrapped: Vec<WrappedCopy>,
    /// Made by the operator and wrapped under every enabled seal before anything uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generate: Option<Generate>,
    /// A plain key that lies in a Secret: wrapped and read back; the source may then be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<Import>,
}

/// A key that the operator makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Generate {
    /// Bytes of the next version that is made.
    #[serde(default = "default_bytes")]
    #[schemars(range(min = 16, max = 64))]
    pub bytes: u8,
    /// How many versions before the current one are delivered beside it.
    #[serde(default = "default_keep_previous")]
    #[schemars(range(min = 0, max = 1))]
    pub keep_previous: u8,
    /// When a new version is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,
}

fn default_bytes() -> u8 {
    32
}

fn default_keep_previous() -> u8 {
    1
}

/// When a new version of a key is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rotation {
    /// So long after the version in use was made, such as `2160h`; at least a day.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$"), length(min = 2, max = 32), extend("x-kubernetes-validations" = [
        {"rule": "duration(self) >= duration('24h')", "message": "rotation.after is at least 24h"},
    ]))]
    pub after: Option<String>,
    /// Opaque: each change makes exactly one new version; a first value makes none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub trigger: Option<String>,
}

/// A plain key in a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// The entry that holds the key's bytes as they are.
    pub secret_key_ref: PlainRef,
}

/// An entry of a Secret of the same namespace, taken byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlainRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the entry.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// What a root key is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Boundary's root key.
    Root,
    /// Boundary's root key before the current one.
    PreviousRoot,
    /// Boundary's worker authentication.
    WorkerAuth,
    /// Boundary's downstream worker authentication.
    DownstreamWorkerAuth,
    /// Boundary's worker credentials at rest.
    WorkerAuthStorage,
    /// Boundary's recovery key.
    Recovery,
    /// Boundary's key for values in configuration files.
    Config,
    /// Boundary's session recording.
    Bsr,
    /// OpenBao's static seal.
    Static,
    /// A Shamir share of Vault's or OpenBao's unseal key. Never delivered.
    UnsealShare,
    /// A share of the recovery key of Vault or OpenBao with a native auto seal. Never delivered.
    RecoveryShare,
    /// A root token of Vault or OpenBao. Never delivered.
    RootToken,
    /// Anything else.
    #[default]
    Other,
}

/// One copy of a key, wrapped under one seal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "[has(self.inline), has(self.secretKeyRef), has(self.configMapKeyRef)].filter(x, x).size() == 1",
        "message": "a wrapped copy takes exactly one of inline, secretKeyRef, configMapKeyRef",
    },
    {
        "rule": "!has(self.context) || self.format == 'kms'",
        "message": "context goes only with format: kms",
    },
    {
        "rule": "!has(self.context) || self.context.all(k, !k.startsWith('autounseal.dev/') || k == 'autounseal.dev/bound-namespace')",
        "message": "context keys under autounseal.dev/ are the operator's own, but for autounseal.dev/bound-namespace",
    },
]))]
pub struct WrappedCopy {
    /// The seal that opens this copy.
    #[schemars(length(min = 1, max = 63))]
    pub seal: String,
    /// `blobinfo`: go-kms-wrapping's message; `kms`: the KMS's own ciphertext.
    #[serde(default)]
    pub format: WrappedFormat,
    /// AWS encryption context, or OCI associatedData, that the ciphertext was made with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 8), extend("maxProperties" = 8))]
    pub context: BTreeMap<String, BoundedText>,
    /// Standard base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9+/=\s]*$"), length(max = 87384))]
    pub inline: Option<String>,
    /// An entry of a Secret of the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<EntryRef>,
    /// An entry of a ConfigMap of the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<EntryRef>,
}

/// Text of at most 1,024 characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct BoundedText(#[schemars(length(max = 1024))] pub String);

/// How a copy is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WrappedFormat {
    /// go-kms-wrapping's BlobInfo message (Vault, OpenBao, Boundary).
    #[default]
    BlobInfo,
    /// The KMS's own ciphertext.
    Kms,
}

/// An entry of a Secret or ConfigMap of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntryRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the entry.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
    /// Whether the entry's bytes are base64 text.
    #[serde(default)]
    pub armor: Armor,
}

/// Whether bytes are base64 text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Armor {
    /// Base64 when the bytes are nothing but base64, else as they are.
    #[default]
    Auto,
    /// Standard base64, white space ignored.
    Base64,
    /// The bytes as they are.
    None,
}

/// A Secret that receives keys, and the pods that read it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.onChange != 'Restart' || has(self.podSelector)",
        "message": "onChange: Restart needs a podSelector",
    },
    {
        "rule": "!has(self.podSelector) || (has(self.podSelector.matchLabels) && self.podSelector.matchLabels.size() > 0) || (has(self.podSelector.matchExpressions) && self.podSelector.matchExpressions.size() > 0)",
        "message": "podSelector must not be empty",
    },
]))]
pub struct Target {
    /// How status and messages name this target.
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"),
        length(min = 1, max = 63)
    )]
    pub name: String,
    /// Pods of the same namespace that read the Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// The Secret.
    pub secret: TargetSecret,
    /// What happens to the pods' owners when the delivered keys change.
    #[serde(default)]
    pub on_change: ChangePolicy,
}

/// What happens when delivered keys change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ChangePolicy {
    /// Nothing.
    #[default]
    None,
    /// Workloads that carry the annotation `autounseal.dev/restart: allowed` are rolled.
    Restart,
}

/// The Secret that the target pods read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "!self.name.endsWith('.wrapped')", "message": "names that end in .wrapped are the operator's wrapped stores"},
    {"rule": "!self.adopt || self.deletionPolicy != 'Delete'", "message": "an adopted Secret is never deleted: adopt does not go with deletionPolicy: Delete"},
]))]
pub struct TargetSecret {
    /// Name of the Secret.
    #[schemars(
        regex(pattern = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"),
        length(min = 1, max = 253)
    )]
    pub name: String,
    /// Type of the Secret.
    #[serde(rename = "type", default)]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self == oldSelf", "message": "the type of a Secret is immutable"}]))]
    pub type_: SecretType,
    /// Labels of the Secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "x-kubernetes-validations" = [
        {"rule": "self.all(k, !k.matches('^([a-z0-9.-]+[.])?(kubernetes[.]io|autounseal[.]dev)/'))", "message": "labels under kubernetes.io and autounseal.dev are not yours to set here"},
    ]))]
    pub labels: BTreeMap<String, BoundedText>,
    /// Annotations of the Secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "x-kubernetes-validations" = [
        {"rule": "self.all(k, !k.matches('^([a-z0-9.-]+[.])?(kubernetes[.]io|autounseal[.]dev)/'))", "message": "annotations under kubernetes.io and autounseal.dev are not yours to set here"},
    ]))]
    pub annotations: BTreeMap<String, BoundedText>,
    /// Take over an existing Secret that carries the annotation `autounseal.dev/adopt-by: <sealconfig>`.
    #[serde(default)]
    pub adopt: bool,
    /// Whether the Secret goes with the SealConfig.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// The entries. Default, where there is no `env`: one for each key, named after it, raw bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub data: Vec<DataEntry>,
    /// One entry for each environment variable that tells a server its seal, for `envFrom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<EnvSpec>,
}

/// Types of Secrets that the operator may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SecretType {
    /// Arbitrary entries.
    #[default]
    Opaque,
    /// A TLS key pair.
    #[serde(rename = "kubernetes.io/tls")]
    Tls,
    /// User name and password.
    #[serde(rename = "kubernetes.io/basic-auth")]
    BasicAuth,
}

impl SecretType {
    /// The word in `Secret.type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            SecretType::Opaque => "Opaque",
            SecretType::Tls => "kubernetes.io/tls",
            SecretType::BasicAuth => "kubernetes.io/basic-auth",
        }
    }
}

/// Whether something goes with the SealConfig.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays.
    #[default]
    Retain,
    /// It goes.
    Delete,
}

/// One entry of the Secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.key), has(self.stanza), has(self.template)].filter(x, x).size() == 1", "message": "a data entry takes exactly one of key, stanza, template"},
]))]
pub struct DataEntry {
    /// Name of the entry.
    #[schemars(regex(pattern = r"^[-._a-zA-Z0-9]+$"), length(min = 1, max = 253))]
    pub name: String,
    /// A key's bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyEntry>,
    /// A piece of a server's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stanza: Option<StanzaSpec>,
    /// Text with placeholders `{{ keys["name"].base64 }}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub template: Option<String>,
}

/// A key's bytes as an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyEntry {
    /// One of `spec.keys`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// How the bytes are written; never with a trailing newline.
    #[serde(default)]
    pub encoding: Encoding,
    /// Which version; a previous one is left out until there is one.
    #[serde(default)]
    pub version: KeyVersion,
}

/// How key bytes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The bytes themselves.
    #[default]
    Raw,
    /// Standard base64 with padding.
    Base64,
    /// URL-safe base64 without padding.
    Base64Url,
    /// Lower-case hexadecimal.
    Hex,
}

/// Which version of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyVersion {
    /// The newest.
    #[default]
    Current,
    /// The one before it.
    Previous,
}

/// The CustomResourceDefinitions, as they are applied: SealConfig, ManagedKey.
///
/// kube's derive marks optional fields `nullable`; the contract says that no member is, for an
/// explicit `null` would satisfy the type and confuse `has()`.
pub fn crds() -> [serde_json::Value; 2] {
    [SealConfig::crd(), ManagedKey::crd()].map(|definition: CustomResourceDefinition| {
        let mut value = serde_json::to_value(definition).unwrap_or_default();
        strip(&mut value);
        if let Some(status) = value.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/status") {
            status["default"] = serde_json::json!({"conditions": [{
                "type": "Ready", "status": "Unknown", "reason": "Pending",
                "message": "waiting for the operator", "lastTransitionTime": "1970-01-01T00:00:00Z",
            }]});
        }
        value
    })
}

fn strip(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            map.remove("nullable");
            map.values_mut().for_each(strip);
        }
        serde_json::Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}
