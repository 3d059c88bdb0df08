//! OCI KMS.
//!
//! | module | what |
//! | --- | --- |
//! | `kms`, `messages` | decrypt, encrypt and get-key, and the checks of their answers |
//! | `bound` | … of the operator's own copies |
//! | `call`, `retry` | a signed request, and what is tried again |
//! | `identity`, `session` | who asks: shared, renewed, with faults that name the fix |
//! | `api_key`, `workload_identity` | … from a tenant's Secrets and ServiceAccounts |
//! | `instance_principal` | … of the operator's node |
//! | `operator_identity` | … in the operator's environment; the only place that reads environment and files |
//! | `signature`, `pem`, `config_file` | the formats |
//! | `http` | the client: guarded, bounded, shared |
//! | `error` | faults in our words |

use std::{fmt, sync::Arc, time::SystemTime};

use aws_lc_rs::digest;

use super::{
    Clock, Cluster, Observer, SecretEntries, Tenant, Timeouts, cache::Bounded, pace::Pace, recent::Recent,
};
use crate::{
    api::Reason,
    seal::{
        Fault, KMS_REQUESTS_PER_SECOND,
        endpoint::{EndpointPolicy, VaultEndpoint, allow_oci},
        oci::{Credentials, OciSeal},
    },
};

mod api_key;
mod bound;
mod call;
pub mod config_file;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod http;
mod identity;
mod instance_principal;
mod kms;
mod messages;
mod operator_identity;
pub mod pem;
mod retry;
mod session;
pub mod signature;
mod workload_identity;

#[cfg(test)]
mod tests;

pub use kms::Kms;
pub use operator_identity::Environment;

use call::Connection;
use identity::{Identity, Loader};
use instance_principal::InstancePrincipal;
use kms::KeyFacts;
use operator_identity::{Caller, ResourcePrincipal};
use workload_identity::WorkloadIdentity;

/// Identities kept at most; forgetting one costs a request for a token.
const IDENTITIES: usize = 1024;

/// Descriptions of keys kept at most; they are small.
const DESCRIPTIONS: usize = 8192;

/// What the operator's flags and environment say.
#[derive(Clone)]
pub struct Settings {
    /// Endpoints that a cluster admin allows.
    pub endpoints: EndpointPolicy,
    /// What was read from the operator's environment.
    pub environment: Environment,
    /// Bounds in time.
    pub timeouts: Timeouts,
    /// The time.
    pub clock: Clock,
    /// How fast the KMS is asked.
    pub(crate) pace: Arc<Pace>,
}

impl Settings {
    /// With the bounds in time and the clock of a real process.
    pub fn new(endpoints: EndpointPolicy, environment: Environment) -> Self {
        Self {
            endpoints,
            environment,
            timeouts: Timeouts::default(),
            clock: Arc::new(SystemTime::now),
            pace: Pace::new(KMS_REQUESTS_PER_SECOND),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoints", &self.endpoints)
            .field("environment", &self.environment)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// OCI for the whole process: clients, identities and descriptions of keys, shared by all SealConfigs.
pub struct Oci {
    settings: Settings,
    cluster: Option<Arc<dyn Cluster>>,
    observer: Arc<dyn Observer>,
    lookup: http::Lookup,
    open: Arc<http::Client>,
    guarded: Arc<http::Client>,
    identities: Bounded<IdentityKey, Arc<Identity>>,
    descriptions: Bounded<(IdentityKey, String, String), Arc<Recent<KeyFacts>>>,
}

/// What makes two identities the same. Never holds the SealConfig's name: objects that use one identity share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum IdentityKey {
    Instance,
    Resource,
    Caller,
    ApiKey {
        namespace: String,
        secret: String,
        digest: [u8; 32],
    },
    Workload {
        namespace: String,
        service_account: String,
    },
}

impl Oci {
    /// Does nothing slow: roots and metadata are read at the first use.
    ///
    /// Without a cluster (the command line), credentials of Secrets and ServiceAccounts are faults.
    pub fn new(settings: Settings, cluster: Option<Arc<dyn Cluster>>, observer: Arc<dyn Observer>) -> Self {
        let lookup: http::Lookup = Arc::new(http::SystemLookup);
        let client = |guarded| {
            Arc::new(http::Client::new(
                guarded,
                &lookup,
                settings.timeouts.connect,
                None,
            ))
        };
        Self {
            open: client(false),
            guarded: client(true),
            lookup,
            settings,
            cluster,
            observer,
            identities: Bounded::new(IDENTITIES),
            descriptions: Bounded::new(DESCRIPTIONS),
        }
    }

    /// A seal's key, ready to be used. Calls neither KMS nor identity service; reads the credentials Secret.
    ///
    /// # Errors
    /// `EndpointNotAllowed`, `RealmMismatch`, and what is wrong with the credentials as far as the cluster tells.
    pub async fn connect(&self, seal: &OciSeal, tenant: Tenant<'_>) -> Result<Kms, Fault> {
        let endpoint = |text: &str, which| allow_oci(text, which, &seal.key, &self.settings.endpoints);
        let crypto = endpoint(&seal.crypto_endpoint, VaultEndpoint::Crypto)?;
        let management = endpoint(&seal.management_endpoint, VaultEndpoint::Management)?;
        let (key, loader) = self.loader(seal, tenant).await?;
        let identity = self.identities.get_or(&key, || {
            Arc::new(Identity::new(
                seal.credentials.source(),
                loader,
                Arc::clone(&self.settings.clock),
                Arc::clone(&self.observer),
                self.settings.timeouts.operation,
            ))
        });
        let turns = self.settings.pace.turns(tenant.namespace, &key);
        let place = (key, management.url.clone(), seal.key.to_string());
        let connection = Connection {
            crypto,
            management,
            open: Arc::clone(&self.open),
            guarded: Arc::clone(&self.guarded),
            identity,
            timeouts: self.settings.timeouts,
            clock: Arc::clone(&self.settings.clock),
            observer: Arc::clone(&self.observer),
            turns,
            description: self.descriptions.get_or(&place, Arc::default),
        };
        Ok(Kms::new(connection, seal.key.clone()))
    }

    async fn loader(&self, seal: &OciSeal, tenant: Tenant<'_>) -> Result<(IdentityKey, Loader), Fault> {
        let instance = || InstancePrincipal {
            environment: self.settings.environment.clone(),
            timeouts: self.settings.timeouts,
            open: Arc::clone(&self.open),
            guarded: Arc::clone(&self.guarded),
        };
        Ok(match &seal.credentials {
            Credentials::InstancePrincipal => (IdentityKey::Instance, Loader::Instance(instance())),
            Credentials::ResourcePrincipal => (IdentityKey::Resource, Loader::Resource(ResourcePrincipal)),
            Credentials::Caller => (
                IdentityKey::Caller,
                Loader::Caller(Caller { instance: instance() }),
            ),
            Credentials::ApiKey { secret } => {
                let entries = self.cluster()?.secret(tenant.namespace, secret).await?;
                let entries = entries.ok_or_else(|| api_key::no_secret(secret))?;
                let key = IdentityKey::ApiKey {
                    namespace: tenant.namespace.to_owned(),
                    secret: secret.clone(),
                    digest: digest_of(&entries),
                };
                let loader = Loader::ApiKey {
                    secret: secret.clone(),
                    entries: Arc::new(entries),
                };
                (key, loader)
            }
            Credentials::WorkloadIdentity { service_account } => {
                let key = IdentityKey::Workload {
                    namespace: tenant.namespace.to_owned(),
                    service_account: service_account.clone(),
                };
                let loader = Loader::Workload(WorkloadIdentity {
                    cluster: self.cluster()?,
                    namespace: tenant.namespace.to_owned(),
                    service_account: service_account.clone(),
                    environment: self.settings.environment.clone(),
                    timeouts: self.settings.timeouts,
                    lookup: Arc::clone(&self.lookup),
                });
                (key, loader)
            }
        })
    }

    fn cluster(&self) -> Result<Arc<dyn Cluster>, Fault> {
        self.cluster.clone().ok_or_else(|| {
            Fault::denied(
                Reason::CredentialsMissing,
                "credentials of Secrets and ServiceAccounts need a cluster; outside of it your own OCI identity is used",
            )
        })
    }
}

/// Tells a Secret from its successor.
fn digest_of(entries: &SecretEntries) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in entries
        .iter()
        .flat_map(|(name, value)| [name.as_bytes(), value.as_slice()])
    {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(hash.finish().as_ref());
    sum
}
