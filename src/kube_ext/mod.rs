//! The thin layer over kube: names that are written once, raw writes, facts read from objects.

pub mod cluster;
pub mod facts;
pub mod merge_patch;
pub mod missing;
pub mod store;
pub mod write;

/// The field manager of delivered Secrets and restarted workloads.
pub const FIELD_MANAGER: &str = "auto-unseal-operator";

/// How long the apiserver may take for one request. kube sets no limit of its own, and a request that hangs would
/// hold its object for ever.
pub const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

/// A request that ends: with its answer, or as one that was not answered.
///
/// # Errors
/// As the request's own, and `Service` when there was no answer in time.
pub async fn bounded<T>(request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer,
        Err(late) => Err(kube::Error::Service(late.into())),
    }
}

/// Annotations and labels that the operator reads and writes.
pub mod names {
    /// On SealConfigs whose wrapped store goes with them.
    pub const FINALIZER: &str = "autounseal.dev/wrapped-store";
    /// On ManagedKeys whose keys in AWS do not stay as they are.
    pub const KEYS_FINALIZER: &str = "autounseal.dev/keys";
    /// On delivered Secrets: the UID of the SealConfig that owns the content.
    pub const OWNER_UID: &str = "autounseal.dev/owner-uid";
    /// On delivered Secrets: the name of that SealConfig, for people.
    pub const OWNER_NAME: &str = "autounseal.dev/sealconfig";
    /// On a Secret of somebody else: the SealConfig that may take it over.
    pub const ADOPT_BY: &str = "autounseal.dev/adopt-by";
    /// On delivered Secrets and on restarted pod templates: how often key bytes have changed.
    pub const DELIVERED: &str = "autounseal.dev/delivered";
    /// On delivered Secrets: when key bytes last changed.
    pub const KEYS_CHANGED: &str = "autounseal.dev/keys-changed";
    /// On delivered Secrets: when anything of the content last changed.
    pub const CONTENT_CHANGED: &str = "autounseal.dev/content-changed";
    /// On delivered Secrets: the keys it holds, each with version and one-way mark.
    pub const KEYS: &str = "autounseal.dev/keys";
    /// On workloads: consent to be restarted.
    pub const RESTART: &str = "autounseal.dev/restart";
    /// On workloads: when we restarted them, of the last day.
    pub const RESTARTS: &str = "autounseal.dev/restarts";
    /// On namespaces: consent to use the operator's identity (label).
    pub const OPERATOR_IDENTITY: &str = "autounseal.dev/operator-identity";
    /// On namespaces: what may be used with it, comma-separated.
    pub const GRANTS: &str = "autounseal.dev/operator-identity-grants";
    /// On namespaces: the only keys that seals may use, comma-separated.
    pub const ALLOWED_SEALS: &str = "autounseal.dev/allowed-seals";
    /// On delivered Secrets: who manages them (label).
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// What consent is written as.
    pub const ALLOWED: &str = "allowed";
}
