//! The clouds' KMSes, one folder a cloud. Their SDKs' types do not leave those folders.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use jiff::Timestamp;
use zeroize::Zeroizing;

pub use crate::api::WrappedFormat as Format;
use crate::seal::{
    Ciphertext, Fault, KMS_REQUESTS_PER_SECOND, KeyBytes, StaticCredentials,
    aws::AwsSeal,
    endpoint::EndpointPolicy,
    model::{Cloud, Seal},
};

pub mod aws;
pub mod oci;

mod bound;
mod cache;
#[cfg(test)]
mod double;
mod guard;
mod pace;
mod recent;
mod renewal;
mod wire;

pub use bound::{Bound, Wrapped};
pub(crate) use guard::is_forbidden;
pub use wire::jitter;

/// The clouds: the one place that lists them.
pub struct Clouds {
    aws: aws::Aws,
    oci: oci::Oci,
}

impl Clouds {
    /// Does nothing slow. Without a cluster (the command line), credentials of Secrets and ServiceAccounts are faults.
    pub fn new(settings: Settings, cluster: Option<Arc<dyn Cluster>>, observer: Arc<dyn Observer>) -> Self {
        Self {
            aws: aws::Aws::new(settings.aws, cluster.clone(), Arc::clone(&observer)),
            oci: oci::Oci::new(settings.oci, cluster, observer),
        }
    }

    /// The static credentials in a seal's Secret, to be written into a server's configuration (security rule S9).
    ///
    /// # Errors
    /// `InvalidSpec`: the seal has none, or they are temporary. What is wrong with the Secret.
    pub async fn static_credentials(
        &self,
        seal: &Seal,
        tenant: Tenant<'_>,
    ) -> Result<StaticCredentials, Fault> {
        match &seal.cloud {
            Cloud::Aws(aws) => self.aws.static_credentials(aws, tenant).boxed().await,
            Cloud::Oci(_) => Err(Fault::invalid_spec(
                "ocikms takes no credentials in its configuration; take includeCredentials out",
            )),
        }
    }

    /// The keys of a ManagedKey in one region of AWS. Calls nobody; may read the credentials Secret or the ServiceAccount.
    ///
    /// # Errors
    /// What is wrong with the credentials as far as the cluster tells.
    pub async fn custody(&self, way: &AwsSeal, tenant: Tenant<'_>) -> Result<aws::Custody, Fault> {
        self.aws.custody(way, tenant).boxed().await
    }

    /// A seal's key, ready to be used. Calls no KMS; may read the credentials Secret or the ServiceAccount.
    ///
    /// # Errors
    /// A refused endpoint, and what is wrong with the credentials as far as the cluster tells.
    pub async fn connect(&self, seal: &Seal, tenant: Tenant<'_>) -> Result<Kms, Fault> {
        match &seal.cloud {
            Cloud::Aws(aws) => self.aws.connect(aws, tenant).boxed().await.map(Kms::Aws),
            Cloud::Oci(oci) => self.oci.connect(oci, tenant).boxed().await.map(Kms::Oci),
        }
    }
}

/// The target of spans that are sent as traces. They carry names and no text of anybody's.
pub const TRACES: &str = "traces";

/// One seal's key, with the credentials to use it. The clouds' futures are large and deep; here they end up in boxes.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the way to a call of a KMS"
)]
pub enum Kms {
    /// AWS KMS.
    Aws(aws::Kms),
    /// OCI KMS.
    Oci(oci::Kms),
}

impl Kms {
    fn provider(&self) -> &'static str {
        match self {
            Kms::Aws(_) => "awskms",
            Kms::Oci(_) => "ocikms",
        }
    }

    /// The role or principal, as far as known without asking anybody.
    pub fn identity(&self) -> Option<String> {
        match self {
            Kms::Aws(kms) => kms.identity(),
            Kms::Oci(kms) => kms.identity(),
        }
    }

    /// Gets credentials, if there are none yet that last.
    ///
    /// # Errors
    /// Why there are none.
    #[tracing::instrument(target = TRACES, name = "kms", skip_all, fields(provider = self.provider(), operation = "authenticate"))]
    pub async fn authenticate(&self) -> Result<(), Fault> {
        match self {
            Kms::Aws(kms) => kms.authenticate().boxed().await,
            Kms::Oci(kms) => kms.authenticate().boxed().await,
        }
    }

    /// What the KMS says of the key, asked at most once an hour for all who have the same identity and key.
    ///
    /// # Errors
    /// What kept the KMS from answering.
    #[tracing::instrument(target = TRACES, name = "kms", skip_all, fields(provider = self.provider(), operation = "describe"))]
    pub async fn describe(&self) -> Result<Description, Fault> {
        match self {
            Kms::Aws(kms) => kms.describe().boxed().await.map(|described| Description {
                key: described.arn.to_string(),
                at: described.at,
                fault: described.fault(),
                version: described.version.clone(),
            }),
            Kms::Oci(kms) => kms.describe().boxed().await,
        }
    }

    /// Opens a wrapped key.
    ///
    /// # Errors
    /// `CiphertextInvalid`, `ContextMismatch`, `KeyNotAllowed`, and whatever the KMS or the credentials say.
    #[tracing::instrument(target = TRACES, name = "kms", skip_all, fields(provider = self.provider(), operation = "unwrap"))]
    pub async fn unwrap(
        &self,
        format: Format,
        ciphertext: &Ciphertext,
        context: &BTreeMap<String, String>,
    ) -> Result<Opened, Fault> {
        match self {
            Kms::Aws(kms) => kms.unwrap(format, ciphertext, context).boxed().await,
            Kms::Oci(kms) => kms.unwrap(format, ciphertext, context).boxed().await,
        }
    }

    /// Wraps a key.
    ///
    /// # Errors
    /// `InvalidSpec` for what the format cannot hold; `KeyNotAllowed` if the KMS used another key; what it says.
    #[tracing::instrument(target = TRACES, name = "kms", skip_all, fields(provider = self.provider(), operation = "wrap"))]
    pub async fn wrap(
        &self,
        key: &KeyBytes,
        format: Format,
        context: &BTreeMap<String, String>,
    ) -> Result<Ciphertext, Fault> {
        match self {
            Kms::Aws(kms) => kms
                .wrap(key, format, context)
                .boxed()
                .await
                .map(|(bytes, _)| Ciphertext::new(bytes)),
            Kms::Oci(kms) => kms.wrap(key, format, context).boxed().await,
        }
    }

    /// Wraps a key as the operator's own copy: an envelope whose data key the KMS encrypts with `bound.context`, and whose
    /// payload carries `bound.aad`.
    ///
    /// # Errors
    /// `KeyNotAllowed` if the KMS used another key; `InvalidSpec` for a context that is too long; what the KMS says. That
    /// the key's version cannot be asked for is none.
    #[tracing::instrument(target = TRACES, name = "kms", skip_all, fields(provider = self.provider(), operation = "wrap_bound"))]
    pub async fn wrap_bound(&self, key: &KeyBytes, bound: &Bound<'_>) -> Result<Wrapped, Fault> {
        match self {
            Kms::Aws(kms) => kms.wrap_bound(key, bound).boxed().await,
            Kms::Oci(kms) => kms.wrap_bound(key, bound).boxed().await,
        }
    }

    /// Opens what [`Kms::wrap_bound`] made. `recorded`: the key that the store records for the copy; the KMS is told to use
    /// that one, and its answer must name it (security rule S4).
    ///
    /// # Errors
    /// `ContextMismatch` for a copy of another place; `KeyNotAllowed` for a recorded key that is not the seal's to use
    /// (nothing is decrypted then), or if another key opened it; `CiphertextInvalid` for what the operator never writes;
    /// and whatever the KMS or the credentials say.
    #[tracing::instrument(target = TRACES, name = "kms", skip_all, fields(provider = self.provider(), operation = "unwrap_bound"))]
    pub async fn unwrap_bound(
        &self,
        ciphertext: &Ciphertext,
        bound: &Bound<'_>,
        recorded: &str,
    ) -> Result<Opened, Fault> {
        match self {
            Kms::Aws(kms) => kms.unwrap_bound(ciphertext, bound, recorded).boxed().await,
            Kms::Oci(kms) => kms.unwrap_bound(ciphertext, bound, recorded).boxed().await,
        }
    }
}

/// What a KMS says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// ARN or OCID.
    pub key: String,
    /// When it was said.
    pub at: Timestamp,
    /// Why the key cannot be used, if it cannot.
    pub fault: Option<Fault>,
    /// What the key encrypts with now: id of AWS's key material, OCID of OCI's key version. `None` = the KMS did not say.
    pub version: Option<String>,
}

/// What the operator's own environment says about the clouds, read once.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    aws: aws::Environment,
    oci: oci::Environment,
}

impl Environment {
    /// Reads it.
    pub fn read() -> Self {
        Self {
            aws: aws::Environment::read(),
            oci: oci::Environment::read(),
        }
    }

    /// Which endpoints may be spoken to, by the environment and by these patterns of a cluster admin.
    pub fn endpoints(&self, patterns: Vec<String>) -> EndpointPolicy {
        EndpointPolicy {
            environment: self.aws.endpoints.clone(),
            patterns,
            atlas: self.oci.atlas.clone(),
        }
    }
}

/// What the operator's flags and environment say about the clouds.
#[derive(Clone, Debug)]
pub struct Settings {
    aws: aws::Settings,
    oci: oci::Settings,
}

impl Settings {
    /// `binding_domain`: part of the external id that the operator's AWS identity sends with assumeRole.
    pub fn new(binding_domain: String, endpoints: EndpointPolicy, environment: Environment) -> Self {
        Self {
            aws: aws::Settings::new(binding_domain, endpoints.clone(), environment.aws),
            oci: oci::Settings::new(endpoints, environment.oci),
        }
        .paced(KMS_REQUESTS_PER_SECOND)
    }

    /// So many requests a second to the KMSes of all clouds.
    #[must_use]
    pub fn paced(mut self, requests_per_second: u32) -> Self {
        let pace = pace::Pace::new(requests_per_second);
        self.aws.pace = Arc::clone(&pace);
        self.oci.pace = pace;
        self
    }
}

/// The time; replaced in tests.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How long anything may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// A TCP connection.
    pub connect: Duration,
    /// One request with its answer.
    pub attempt: Duration,
    /// Everything for one operation, credentials included.
    pub operation: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            attempt: Duration::from_secs(5),
            operation: Duration::from_secs(10),
        }
    }
}

/// What credentials may ask of the cluster, always in the SealConfig's own namespace.
///
/// An implementation maps its own errors: a refused TokenRequest is `TokenRequestDenied`, a refused read names the
/// missing right, a cluster that does not answer is transient.
pub trait Cluster: Send + Sync {
    /// Annotations of a ServiceAccount; `None` = there is no such ServiceAccount.
    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, Fault>>;

    /// A fresh token of a ServiceAccount (TokenRequest).
    fn token<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        audience: Audience<'a>,
    ) -> BoxFuture<'a, Result<Token, Fault>>;

    /// Entries of a Secret; `None` = there is no such Secret.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<SecretEntries>, Fault>>;
}

/// Who may take a ServiceAccount's token for its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience<'a> {
    /// Somebody outside of the cluster, who trusts its issuer.
    Named(&'a str),
    /// The cluster itself. Such a token opens the apiserver, so it is sent to the cluster's own control plane only.
    Cluster,
}

/// Entries of a Secret, wiped when dropped.
pub type SecretEntries = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// A bearer token, wiped when dropped and never shown.
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes ownership of the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one who sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The SealConfig on whose behalf something is done.
#[derive(Clone, Copy, Debug)]
pub struct Tenant<'a> {
    /// Its namespace: the boundary of everything that it may refer to.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// A key that a KMS opened, and the KMS key that opened it. That key was checked to be one that the seal names.
#[derive(Debug)]
pub struct Opened {
    /// The bytes.
    pub key: KeyBytes,
    /// What the KMS says it used: ARN or OCID.
    pub key_id: String,
}

/// Who counts requests and watches expiries: the metrics, or a test.
pub trait Observer: Send + Sync {
    /// One request to a KMS. `outcome` is `ok` or a reason's word.
    fn kms_request(
        &self,
        provider: &'static str,
        operation: &'static str,
        outcome: &'static str,
        seconds: f64,
    );

    /// The instance metadata service was asked whether it answers.
    fn imds_probe(&self, result: &'static str);

    /// Credentials were loaded that expire at this time.
    fn credential_expiry(&self, provider: &'static str, source: &'static str, unix_seconds: i64);
}
