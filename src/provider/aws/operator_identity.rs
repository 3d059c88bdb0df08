//! The operator's own identity and what its environment says.
//!
//! The only module of the provider that reads the environment, files or metadata services. It is entered by
//! [`Chain::of`], which takes a tenant's choice to three words without any text, so no text of a tenant gets here
//! (security rule S9). Who may use this identity is decided before, in the seal's checks (S3).

use std::{
    env,
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_config::Region as SdkRegion;
use aws_config::{
    BehaviorVersion, SdkConfig,
    default_provider::credentials::DefaultCredentialsChain,
    ecs::EcsCredentialsProvider,
    environment::EnvironmentVariableRegionProvider,
    imds::{
        self as sdk_imds,
        client::error::{ImdsError, TokenError},
        credentials::ImdsCredentialsProvider,
        region::ImdsRegionProvider,
    },
    meta::region::RegionProviderChain,
    profile::ProfileFileRegionProvider,
    provider_config::ProviderConfig,
    retry::RetryConfig,
};
use aws_credential_types::{
    Credentials as AwsCredentials,
    provider::{ProvideCredentials, SharedCredentialsProvider, error::CredentialsError},
};
use aws_sdk_sts::operation::{
    assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
};
use aws_smithy_runtime_api::client::{http::SharedHttpClient, orchestrator::HttpResponse, result::SdkError};
use tokio::sync::OnceCell;

use super::{
    error::{self, Asked, Operation},
    imds::{self, Imds, Verdict},
    sdk,
};
use crate::{
    api::Reason,
    provider::{bound::Tie, wire},
    seal::{
        Fault,
        aws::{Credentials, Region},
    },
};

/// The behaviour of the SDK is that of this date until somebody moves it on purpose.
pub(super) fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

/// Bound of everything with the instance metadata service.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

/// What the provider reads from the operator's environment, once.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `AWS_ENDPOINT_URL_KMS`, else `AWS_ENDPOINT_URL`.
    pub kms_endpoint: Option<String>,
    /// `AWS_ENDPOINT_URL_STS`, else `AWS_ENDPOINT_URL`.
    pub sts_endpoint: Option<String>,
    /// Every endpoint that the environment names, each of which counts as allowed.
    pub endpoints: Vec<String>,
    /// Whether a container agent is named (`AWS_CONTAINER_CREDENTIALS_…`), as EKS Pod Identity does.
    pub container_agent: bool,
    /// Whether `AWS_EC2_METADATA_DISABLED` is true.
    pub metadata_disabled: bool,
    /// Where the SDK asks for instance metadata: `AWS_EC2_METADATA_SERVICE_ENDPOINT`, else by
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE`.
    pub metadata_endpoint: String,
}

impl Environment {
    /// Reads the variables, with the meaning that the SDKs give them (AWS SDKs and tools reference guide).
    pub fn read() -> Self {
        let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let is_true = |name: &str| set(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let endpoint = |name: &str| {
            set(name)
                .filter(|_| !is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"))
                .map(|url| url.trim_end_matches('/').to_owned())
        };
        let (general, kms, sts) = (
            endpoint("AWS_ENDPOINT_URL"),
            endpoint("AWS_ENDPOINT_URL_KMS"),
            endpoint("AWS_ENDPOINT_URL_STS"),
        );
        Self {
            endpoints: [kms.clone(), general.clone()].into_iter().flatten().collect(),
            kms_endpoint: kms.or_else(|| general.clone()),
            sts_endpoint: sts.or(general),
            container_agent: set("AWS_CONTAINER_CREDENTIALS_FULL_URI").is_some()
                || set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").is_some(),
            metadata_disabled: is_true("AWS_EC2_METADATA_DISABLED"),
            metadata_endpoint: set("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| {
                let mode = set("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
                let v6 = mode.is_some_and(|mode| mode.eq_ignore_ascii_case("IPv6"));
                if v6 {
                    "http://[fd00:ec2::254]"
                } else {
                    "http://169.254.169.254"
                }
                .to_owned()
            }),
        }
    }
}

/// The operator's SDK settings without credentials: FIPS, dual stack and the rest of what the environment and the
/// shared configuration file say.
pub(super) async fn base_config(client: SharedHttpClient) -> SdkConfig {
    aws_config::defaults(behavior())
        // Replaced for every client; named here so that nobody is asked for it.
        .region(SdkRegion::from_static("us-east-1"))
        .http_client(client)
        .retry_config(RetryConfig::disabled())
        .no_credentials()
        .load()
        .await
}

/// The operator's region: environment, shared configuration, instance metadata. `None`: none of them tells, now.
pub(super) async fn region(client: SharedHttpClient, imds: Option<&Imds>) -> Option<Region> {
    let parsed = |region: SdkRegion| region.as_ref().parse().ok();
    let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new());
    if let Some(region) = chain.region().await {
        return parsed(region);
    }
    if imds?.verdict().await != Verdict::Available {
        return None;
    }
    let config = ProviderConfig::without_region().with_http_client(client);
    let metadata = ImdsRegionProvider::builder().configure(&config).build();
    let found = tokio::time::timeout(METADATA_TIMEOUT, metadata.region()).await;
    found.ok().flatten().and_then(parsed)
}

/// The region when nothing tells another.
pub(super) fn fallback_region() -> Region {
    "us-east-1"
        .parse()
        .unwrap_or_else(|()| unreachable!("us-east-1 is a region"))
}

/// Which of the operator's identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Chain {
    Default,
    PodIdentity,
    InstanceMetadata,
}

impl Chain {
    /// The operator's identity that these credentials mean, if they mean one.
    pub(super) fn of(credentials: &Credentials) -> Option<Self> {
        match credentials {
            Credentials::DefaultChain => Some(Chain::Default),
            Credentials::PodIdentity => Some(Chain::PodIdentity),
            Credentials::InstanceMetadata => Some(Chain::InstanceMetadata),
            Credentials::ServiceAccount { .. } | Credentials::Secret { .. } => None,
        }
    }
}

/// One of the operator's identities.
pub(super) struct OperatorIdentity {
    chain: Chain,
    environment: Environment,
    /// An open client: metadata services and agents are link-local by design.
    client: SharedHttpClient,
    imds: Arc<Imds>,
    region: Region,
    provider: OnceCell<SharedCredentialsProvider>,
}

impl OperatorIdentity {
    pub(super) fn new(
        chain: Chain,
        environment: Environment,
        client: SharedHttpClient,
        imds: Arc<Imds>,
        region: Region,
    ) -> Self {
        Self {
            chain,
            environment,
            client,
            imds,
            region,
            provider: OnceCell::new(),
        }
    }

    pub(super) async fn load(&self, now: SystemTime) -> Result<AwsCredentials, Fault> {
        match self.chain {
            Chain::PodIdentity if !self.environment.container_agent => {
                return Err(Fault::denied(
                    Reason::PodIdentityAgentMissing,
                    "the operator's pod has no EKS Pod Identity (no AWS_CONTAINER_CREDENTIALS_FULL_URI); install the \
                     Pod Identity agent, associate a role with the operator's ServiceAccount and restart its pod",
                ));
            }
            Chain::InstanceMetadata if self.environment.metadata_disabled => {
                return Err(imds::disabled(
                    "AWS_EC2_METADATA_DISABLED is true in the operator's environment; take that out",
                ));
            }
            // Asked first: the SDK waits longer and cannot say why it got nothing.
            Chain::InstanceMetadata => {
                if let Some(fault) = self.imds.verdict().await.fault() {
                    return Err(fault);
                }
            }
            Chain::Default | Chain::PodIdentity => {}
        }
        let provider = self.provider.get_or_init(|| self.make()).await;
        let bound = match self.chain {
            Chain::InstanceMetadata => METADATA_TIMEOUT,
            // The caller's bound holds.
            Chain::Default | Chain::PodIdentity => Duration::from_mins(1),
        };
        let got = tokio::time::timeout(bound, provider.provide_credentials()).await;
        match (self.chain, got) {
            (_, Ok(Ok(credentials))) => Ok(credentials),
            (Chain::Default, Ok(Err(error))) => Err(self.chain_fault(&error, now).await),
            (Chain::PodIdentity, Ok(Err(_))) => Err(Fault::transient(
                Reason::CredentialsMissing,
                "the EKS Pod Identity agent gave the operator no credentials; check that the agent runs on its node \
                 and that the association names a role that pods.eks.amazonaws.com may assume",
            )),
            (Chain::InstanceMetadata, Ok(Err(error))) => Err(metadata_fault(&error)),
            (Chain::Default | Chain::PodIdentity, Err(_)) => Err(Fault::transient(
                Reason::CredentialsMissing,
                "getting the operator's own credentials took too long",
            )),
            (Chain::InstanceMetadata, Err(_)) => Err(unreachable_now()),
        }
    }

    async fn make(&self) -> SharedCredentialsProvider {
        let config = ProviderConfig::without_region()
            .with_region(Some(SdkRegion::new(self.region.to_string())))
            .with_behavior_version(Some(behavior()))
            .with_http_client(self.client.clone());
        let metadata = || {
            sdk_imds::Client::builder()
                .configure(&config)
                .connect_timeout(Duration::from_secs(1))
                .read_timeout(Duration::from_secs(1))
                .operation_attempt_timeout(Duration::from_secs(1))
                .max_attempts(2)
                .build()
        };
        match self.chain {
            Chain::Default => SharedCredentialsProvider::new(
                DefaultCredentialsChain::builder()
                    .imds_client(metadata())
                    .region(SdkRegion::new(self.region.to_string()))
                    .configure(config.clone())
                    .build()
                    .await,
            ),
            Chain::PodIdentity => {
                SharedCredentialsProvider::new(EcsCredentialsProvider::builder().configure(&config).build())
            }
            Chain::InstanceMetadata => SharedCredentialsProvider::new(
                ImdsCredentialsProvider::builder()
                    .configure(&config)
                    .imds_client(metadata())
                    .build(),
            ),
        }
    }

    async fn chain_fault(&self, error: &CredentialsError, now: SystemTime) -> Fault {
        let asked = |operation| Asked {
            operation,
            of: "the operator's role",
            region: self.region.as_str(),
            tie: Tie::None,
        };
        if let Some(error) = wire::find::<SdkError<AssumeRoleWithWebIdentityError, HttpResponse>>(error) {
            let operation = Operation::AssumeRoleWithWebIdentity;
            return error::fault(&asked(operation), sdk::failure(error, now));
        }
        if let Some(error) = wire::find::<SdkError<AssumeRoleError, HttpResponse>>(error) {
            return error::fault(&asked(Operation::AssumeRole), sdk::failure(error, now));
        }
        // The chain ends with the node's role, and does not say what kept it from that.
        let came_to_metadata = matches!(error, CredentialsError::CredentialsNotLoaded(_))
            || wire::find::<SdkError<TokenError, HttpResponse>>(error).is_some()
            || wire::find::<ImdsError>(error).is_some();
        if !self.environment.metadata_disabled
            && came_to_metadata
            && self.imds.verdict().await == Verdict::HopLimitTooLow
            && let Some(fault) = Verdict::HopLimitTooLow.fault()
        {
            return fault;
        }
        let what = "the operator finds no AWS credentials of its own; give it a role (IRSA, EKS Pod Identity or an \
                    instance role), or set `credentials` of the seal";
        match error {
            CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
                Fault::denied(Reason::CredentialsMissing, what)
            }
            _ => Fault::transient(Reason::CredentialsMissing, what),
        }
    }
}

fn metadata_fault(error: &CredentialsError) -> Fault {
    let status = |response: &HttpResponse| response.status().as_u16();
    let refused = |status: u16| {
        (status == 403).then(|| {
            imds::disabled(
                "switch it on for the operator's node (aws ec2 modify-instance-metadata-options --http-endpoint enabled \
                 --instance-id …)",
            )
        })
    };
    if let Some(error) = wire::find::<SdkError<TokenError, HttpResponse>>(error) {
        return error
            .raw_response()
            .and_then(|response| refused(status(response)))
            .unwrap_or_else(unreachable_now);
    }
    match wire::find::<ImdsError>(error) {
        Some(ImdsError::ErrorResponse(context)) => {
            refused(status(context.response())).unwrap_or_else(no_node_role)
        }
        // The SDK says "not loaded" with a text of its own when the node has no role.
        None if error.source().is_some() && matches!(error, CredentialsError::CredentialsNotLoaded(_)) => {
            no_node_role()
        }
        Some(_) | None => unreachable_now(),
    }
}

fn no_node_role() -> Fault {
    Fault::denied(
        Reason::CredentialsMissing,
        "the operator's node has no instance role; attach an instance profile to it, or use IRSA or EKS Pod Identity",
    )
}

/// It answered the probe and then no more.
fn unreachable_now() -> Fault {
    Fault::transient(
        Reason::ImdsUnreachable,
        "the instance metadata service issued a token and then gave the operator no answer within 3 seconds; it is tried \
         again",
    )
}
