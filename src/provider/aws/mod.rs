//! AWS KMS.
//!
//! | module | what |
//! | --- | --- |
//! | `kms`, `describe` | Decrypt, Encrypt, DescribeKey, and the checks of their answers |
//! | `bound` | … of the operator's own copies |
//! | `custody`, `import` | the keys of ManagedKeys: made, imported into, aliased, taken back |
//! | `clients` | the SDK's clients: no retries, bounds in time |
//! | `identity` | credentials: cached, refreshed, with faults that name the fix |
//! | `tenant_identity` | … from a tenant's Secrets and ServiceAccounts |
//! | `operator_identity` | … of the operator; the only place that reads environment and files |
//! | `imds` | whether the instance metadata service answers, and if not, why (the hop limit) |
//! | `http` | the client under the SDK: guarded, bounded, shared |
//! | `error`, `sdk` | faults in our words; the SDK's errors |
//!
//! The SDK's own retries are off: the operator has one backoff, and two would multiply.

use std::sync::Arc;

use aws_config::SdkConfig;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

use super::{Clock, Cluster, Observer, Tenant, cache::Bounded};
use crate::{
    api::Reason,
    seal::{
        Fault, StaticCredentials,
        aws::{AssumeRole, AwsSeal, Credentials, Region},
        endpoint::{AllowedEndpoint, allow_aws},
    },
};

mod bound;
mod clients;
mod custody;
mod describe;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod http;
mod identity;
mod imds;
mod import;
mod kms;
mod operator_identity;
mod sdk;
mod settings;
mod tenant_identity;

#[cfg(test)]
mod tests;

pub use custody::{Custody, Held, NewKey};
pub use describe::{Description, KeyState};
pub use import::{PublicKey, Wrapping};
pub use kms::Kms;
pub use operator_identity::Environment;
pub use settings::Settings;

use custody::Turn;
use describe::Slot;
use identity::{Loader, Source};
use kms::Connection;
use operator_identity::{Chain, OperatorIdentity};

/// KMS clients kept at most; one takes some 20 KiB and half a millisecond to make.
const CLIENTS: usize = 256;

/// Identities kept at most; forgetting one costs a call of STS.
const SOURCES: usize = 1024;

/// Descriptions of keys kept at most; they are small.
const DESCRIPTIONS: usize = 8192;

/// AWS for the whole process: clients, identities and descriptions of keys, shared by all SealConfigs.
pub struct Aws {
    settings: Settings,
    cluster: Option<Arc<dyn Cluster>>,
    observer: Arc<dyn Observer>,
    http: http::Clients,
    base: OnceCell<SdkConfig>,
    region: OnceCell<Region>,
    imds: Arc<imds::Imds>,
    sources: Bounded<SourceKey, Arc<Source>>,
    clients: Bounded<ClientKey, aws_sdk_kms::Client>,
    /// STS without credentials, as AssumeRoleWithWebIdentity needs it, by region.
    unsigned: Bounded<Region, aws_sdk_sts::Client>,
    descriptions: Bounded<(ClientKey, String), Arc<Slot>>,
    /// Whose turn it is to import.
    imports: Bounded<ClientKey, Arc<Turn>>,
}

/// What makes two identities the same. Never holds the SealConfig's name: objects that use one identity share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SourceKey {
    base: BaseKey,
    assumed: Option<AssumedKey>,
    /// Of STS, where one is asked.
    region: Option<Region>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum BaseKey {
    Operator(Chain),
    WebIdentity {
        namespace: String,
        service_account: String,
        irsa: tenant_identity::Irsa,
    },
    Secret {
        namespace: String,
        name: String,
        digest: [u8; 32],
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct AssumedKey {
    role: String,
    external_id: Option<String>,
    session: Option<String>,
    tag: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ClientKey {
    source: SourceKey,
    region: Region,
    endpoint: Option<String>,
}

impl Aws {
    /// Does nothing slow: roots, configuration files and metadata are read at the first use.
    ///
    /// Without a cluster (the command line), credentials of Secrets and ServiceAccounts are faults.
    pub fn new(settings: Settings, cluster: Option<Arc<dyn Cluster>>, observer: Arc<dyn Observer>) -> Self {
        Self::with_lookup(
            settings,
            cluster,
            observer,
            &(Arc::new(http::SystemLookup) as http::Lookup),
        )
    }

    fn with_lookup(
        settings: Settings,
        cluster: Option<Arc<dyn Cluster>>,
        observer: Arc<dyn Observer>,
        lookup: &http::Lookup,
    ) -> Self {
        Self {
            http: http::Clients::new(settings.timeouts.connect, lookup),
            imds: Arc::new(imds::Imds::new(
                &settings.environment.metadata_endpoint,
                Arc::clone(&settings.clock),
                Arc::clone(&observer),
            )),
            settings,
            cluster,
            observer,
            base: OnceCell::new(),
            region: OnceCell::new(),
            sources: Bounded::new(SOURCES),
            clients: Bounded::new(CLIENTS),
            unsigned: Bounded::new(CLIENTS),
            descriptions: Bounded::new(DESCRIPTIONS),
            imports: Bounded::new(CLIENTS),
        }
    }

    /// The seal's region: its own, its ARN's, else the operator's, which is looked up once.
    pub async fn region(&self, seal: &AwsSeal) -> Region {
        match seal.region.as_ref().or_else(|| seal.key.region()) {
            Some(region) => region.clone(),
            None => self.own_region().await,
        }
    }

    async fn own_region(&self) -> Region {
        let imds = (!self.settings.environment.metadata_disabled).then_some(&*self.imds);
        let look = async || {
            let found = operator_identity::region(self.http.open.clone(), imds).await;
            found.ok_or(())
        };
        // Only what was told is remembered: a metadata service that is silent now may tell another region later.
        let region = self.region.get_or_try_init(look).await;
        region.map_or_else(|()| operator_identity::fallback_region(), Clone::clone)
    }

    /// The static credentials in a seal's Secret.
    ///
    /// # Errors
    /// `InvalidSpec`: the seal has none, or they are temporary. What is wrong with the Secret.
    pub async fn static_credentials(
        &self,
        seal: &AwsSeal,
        tenant: Tenant<'_>,
    ) -> Result<StaticCredentials, Fault> {
        let key = self.access_key(seal, tenant).await?.credentials;
        let secret = Zeroizing::new(key.secret_access_key().to_owned());
        StaticCredentials::new(key.access_key_id(), secret, key.session_token().is_some())
    }

    /// The access key in a seal's Secret.
    async fn access_key(
        &self,
        seal: &AwsSeal,
        tenant: Tenant<'_>,
    ) -> Result<tenant_identity::AccessKey, Fault> {
        let Credentials::Secret {
            name,
            access_key_id,
            secret_access_key,
            session_token,
        } = &seal.credentials
        else {
            return Err(Fault::invalid_spec(
                "the seal names no Secret with credentials; name one in credentials.secretRef",
            ));
        };
        let entries = tenant_identity::Entries {
            secret: name,
            access_key_id,
            secret_access_key,
            session_token,
        };
        let secret = self.cluster()?.secret(tenant.namespace, name).await?;
        tenant_identity::access_key(entries, secret.as_ref())
    }

    /// A seal's key, ready to be used. Calls no KMS and no STS; reads the credentials Secret or the ServiceAccount.
    ///
    /// # Errors
    /// `EndpointNotAllowed`, `RegionMismatch`, and what is wrong with the credentials as far as the cluster tells.
    pub async fn connect(&self, seal: &AwsSeal, tenant: Tenant<'_>) -> Result<Kms, Fault> {
        let (key, connection, region) = self.route(seal, tenant).await?;
        let identity = Self::describe_identity(seal, tenant, &key.source);
        Ok(Kms::new(connection, seal.clone(), region, identity))
    }

    /// The keys of a ManagedKey in one region, ready to be made and managed. Calls nobody, as [`Aws::connect`].
    ///
    /// # Errors
    /// As [`Aws::connect`].
    pub async fn custody(&self, way: &AwsSeal, tenant: Tenant<'_>) -> Result<Custody, Fault> {
        let (key, connection, region) = self.route(way, tenant).await?;
        let turn = self.imports.get_or(&key, Arc::default);
        Ok(Custody::new(connection, way.account.clone(), region, turn))
    }

    /// The way to the KMS of a region with an identity.
    async fn route(
        &self,
        seal: &AwsSeal,
        tenant: Tenant<'_>,
    ) -> Result<(ClientKey, Connection, Region), Fault> {
        let region = self.region(seal).await;
        if seal.key.region().is_some_and(|named| *named != region) {
            return Err(Fault::invalid(
                Reason::RegionMismatch,
                format!(
                    "kmsKeyID names a key of another region than region {region}; leave region out, or name the key \
                     of that region"
                ),
            ));
        }
        let endpoint = match &seal.endpoint {
            Some(endpoint) => Some(allow_aws(endpoint, &region, &self.settings.endpoints)?),
            None => self
                .settings
                .environment
                .kms_endpoint
                .clone()
                .map(|url| AllowedEndpoint { url, trusted: true }),
        };
        let base = self
            .base
            .get_or_init(|| operator_identity::base_config(self.http.open.clone()))
            .await;
        let (source_key, source) = self.identity(seal, &region, tenant, base).await?;
        let key = ClientKey {
            source: source_key,
            region: region.clone(),
            endpoint: endpoint.as_ref().map(|endpoint| endpoint.url.clone()),
        };
        let client = self.clients.get_or(&key, || {
            self.kms_client(base, &region, endpoint.as_ref(), &source)
        });
        let turns = self.settings.pace.turns(tenant.namespace, &key);
        let description = (key.clone(), seal.key.to_string());
        let connection = Connection {
            client,
            source,
            clock: Arc::clone(&self.settings.clock),
            observer: Arc::clone(&self.observer),
            turns,
            description: self.descriptions.get_or(&description, Arc::default),
        };
        Ok((key, connection, region))
    }

    async fn identity(
        &self,
        seal: &AwsSeal,
        region: &Region,
        tenant: Tenant<'_>,
        config: &SdkConfig,
    ) -> Result<(SourceKey, Arc<Source>), Fault> {
        let word = seal.credentials.source();
        let (base, loader): (BaseKey, Box<dyn FnOnce() -> Loader + Send + '_>) = match &seal.credentials {
            Credentials::DefaultChain | Credentials::PodIdentity | Credentials::InstanceMetadata => {
                let chain = Chain::of(&seal.credentials).unwrap_or(Chain::Default);
                // Only the default chain may ask STS something; the others are not kept waiting for a region.
                let own = match chain {
                    Chain::Default => self.own_region().await,
                    Chain::PodIdentity | Chain::InstanceMetadata => region.clone(),
                };
                let loader = move || {
                    Loader::Operator(OperatorIdentity::new(
                        chain,
                        self.settings.environment.clone(),
                        self.http.open.clone(),
                        Arc::clone(&self.imds),
                        own,
                    ))
                };
                (BaseKey::Operator(chain), Box::new(loader))
            }
            Credentials::ServiceAccount { name, role_arn } => {
                let cluster = self.cluster()?;
                let annotations = cluster.service_account(tenant.namespace, name).await?;
                let annotations = annotations.ok_or_else(|| tenant_identity::no_service_account(name))?;
                let irsa = tenant_identity::irsa(name, &annotations, role_arn.as_deref())?;
                let base = BaseKey::WebIdentity {
                    namespace: tenant.namespace.to_owned(),
                    service_account: name.clone(),
                    irsa: irsa.clone(),
                };
                let loader = move || {
                    Loader::WebIdentity(tenant_identity::WebIdentity {
                        cluster,
                        namespace: tenant.namespace.to_owned(),
                        service_account: name.clone(),
                        irsa,
                        // SealConfigs of one ServiceAccount share the session: CloudTrail names the account.
                        session: tenant_identity::session_name(Tenant { name, ..tenant }),
                        region: region.clone(),
                        sts: self
                            .unsigned
                            .get_or(region, || self.sts_client(config, region, None)),
                    })
                };
                (base, Box::new(loader))
            }
            Credentials::Secret { name, .. } => {
                let key = self.access_key(seal, tenant).await?;
                let base = BaseKey::Secret {
                    namespace: tenant.namespace.to_owned(),
                    name: name.clone(),
                    digest: key.digest,
                };
                (base, Box::new(move || Loader::Static(key.credentials)))
            }
        };
        let base_key = SourceKey {
            region: matches!(base, BaseKey::WebIdentity { .. }).then(|| region.clone()),
            base,
            assumed: None,
        };
        let under = self.sources.get_or(&base_key, || self.source(word, loader()));
        let Some(role) = &seal.assume_role else {
            return Ok((base_key, under));
        };
        let assumed = self.assumed(role, &seal.credentials, tenant)?;
        let key = SourceKey {
            assumed: Some(assumed.clone()),
            region: Some(region.clone()),
            ..base_key
        };
        let source = self.sources.get_or(&key, || {
            let role = tenant_identity::AssumedRole {
                role: assumed.role,
                external_id: assumed.external_id,
                session: assumed
                    .session
                    .unwrap_or_else(|| tenant_identity::session_name(tenant)),
                tag: assumed.tag,
                region: region.clone(),
                sts: self.sts_client(config, region, Some(Arc::clone(&under))),
                under,
            };
            self.source(word, Loader::AssumedRole(role))
        });
        Ok((key, source))
    }

    /// What AssumeRole is sent. From the operator's identity the namespace is told, and nobody can tell another
    /// (security rule S3: the role's owner can then trust the external id).
    fn assumed(
        &self,
        role: &AssumeRole,
        credentials: &Credentials,
        tenant: Tenant<'_>,
    ) -> Result<AssumedKey, Fault> {
        let operators = credentials.is_operators();
        if operators && role.external_id.is_some() {
            return Err(Fault::denied(
                Reason::OperatorIdentityNotAllowed,
                format!(
                    "assumeRole.externalID cannot be chosen with the operator's own identity, which always sends \
                     {}/{}; take externalID out, or set `credentials`",
                    self.settings.binding_domain, tenant.namespace
                ),
            ));
        }
        Ok(AssumedKey {
            role: role.role_arn.clone(),
            external_id: if operators {
                Some(format!("{}/{}", self.settings.binding_domain, tenant.namespace))
            } else {
                role.external_id.clone()
            },
            session: role.session_name.clone(),
            tag: operators.then(|| tenant.namespace.to_owned()),
        })
    }

    fn cluster(&self) -> Result<Arc<dyn Cluster>, Fault> {
        self.cluster.clone().ok_or_else(|| {
            Fault::denied(
                Reason::CredentialsMissing,
                "credentials of Secrets and ServiceAccounts need a cluster; outside of it your own AWS identity is used",
            )
        })
    }

    fn source(&self, word: &'static str, loader: Loader) -> Arc<Source> {
        Arc::new(Source::new(
            word,
            loader,
            Arc::clone(&self.settings.clock),
            Arc::clone(&self.observer),
            self.settings.timeouts.operation,
        ))
    }

    fn describe_identity(seal: &AwsSeal, tenant: Tenant<'_>, key: &SourceKey) -> Option<String> {
        if let Some(role) = &seal.assume_role {
            return Some(role.role_arn.clone());
        }
        match &key.base {
            BaseKey::Operator(_) => None,
            BaseKey::WebIdentity {
                service_account,
                irsa,
                ..
            } => Some(format!(
                "ServiceAccount {}/{service_account} as {}",
                tenant.namespace, irsa.role
            )),
            BaseKey::Secret { name, .. } => Some(format!("access key of Secret {}/{name}", tenant.namespace)),
        }
    }
}
