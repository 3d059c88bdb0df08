//! The operator's settings: flags, each with an environment variable `AUTOUNSEAL_…`.
//!
//! The only place, beside the cloud providers' own identity, that reads the environment.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use jiff::SignedDuration;

use crate::seal::{KMS_REQUESTS_PER_SECOND, endpoint::EndpointPolicy};

/// Flags of `autounseal controller`.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// Namespaces to watch, comma-separated. Default: all of them, which needs cluster-wide rights.
    #[arg(long, env = "AUTOUNSEAL_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,
    /// Takes only SealConfigs whose spec.controllerClass is this.
    #[arg(long, env = "AUTOUNSEAL_CONTROLLER_CLASS", default_value = "")]
    pub controller_class: String,
    /// Namespaces that may use the operator's own cloud identity, comma-separated.
    #[arg(long, env = "AUTOUNSEAL_OPERATOR_IDENTITY_NAMESPACES", value_delimiter = ',')]
    pub operator_identity_namespaces: Vec<String>,
    /// A YAML file, namespace: [ARN or OCID, …]: keys and roles that a namespace may use through the operator's identity,
    /// beside those of its annotation autounseal.dev/operator-identity-grants.
    #[arg(long, env = "AUTOUNSEAL_OPERATOR_IDENTITY_GRANTS")]
    pub operator_identity_grants: Option<PathBuf>,
    /// Whether the namespace label autounseal.dev/operator-identity=allowed and the grants annotation count.
    #[arg(long, env = "AUTOUNSEAL_OPERATOR_IDENTITY_LABEL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub operator_identity_label: bool,
    /// Tells clusters apart that share a KMS key or a role: `<binding-domain>/<namespace>` is the external id that the
    /// operator's identity sends with assumeRole.
    #[arg(long, env = "AUTOUNSEAL_BINDING_DOMAIN", default_value = "autounseal", value_parser = binding_domain)]
    pub binding_domain: String,
    /// How long copies under a former KMS key are kept, such as 168h; at least until a new copy was read twice, a day apart.
    #[arg(long, env = "AUTOUNSEAL_OLD_COPY_RETENTION", default_value = "168h", value_parser = duration)]
    pub old_copy_retention: SignedDuration,
    /// KMS endpoints to allow beyond the clouds' own, comma-separated: `https://host[:port]`, * stands for one DNS label.
    #[arg(long, env = "AUTOUNSEAL_ALLOWED_ENDPOINTS", value_delimiter = ',')]
    pub allowed_endpoints: Vec<String>,
    /// Namespaces whose SealConfigs may unseal servers over http, comma-separated: whoever listens there gets the shares.
    #[arg(long, env = "AUTOUNSEAL_INSECURE_UNSEAL_NAMESPACES", value_delimiter = ',')]
    pub insecure_unseal_namespaces: Vec<String>,
    /// Whether pods may have loopback and link-local addresses. For tests.
    #[arg(long, env = "AUTOUNSEAL_UNSEAL_ALLOW_LOOPBACK", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub unseal_allow_loopback: bool,
    /// How long opened unseal shares are kept for the next server, such as 60s; 0s keeps none. A disabled KMS key stops
    /// unsealing within that time.
    #[arg(long, env = "AUTOUNSEAL_SHARE_CACHE_TTL", default_value = "60s", value_parser = share_ttl)]
    pub share_cache_ttl: std::time::Duration,
    /// How many SealConfigs are worked on at once.
    #[arg(long, env = "AUTOUNSEAL_CONCURRENCY", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Requests to KMSes a second, of all SealConfigs together; one identity of one namespace sends at most half of them,
    /// and fewer when its KMS throttles.
    #[arg(long, env = "AUTOUNSEAL_KMS_REQUESTS_PER_SECOND", default_value_t = KMS_REQUESTS_PER_SECOND, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub kms_requests_per_second: u32,
    /// Several replicas, one of which acts: the one that holds a Lease of coordination.k8s.io.
    #[arg(long, env = "AUTOUNSEAL_LEADER_ELECT", default_value_t = false, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub leader_elect: bool,
    /// Namespace of the Lease. Default: the operator's own, or that of the kubeconfig.
    #[arg(long, env = "AUTOUNSEAL_LEADER_ELECT_NAMESPACE")]
    pub leader_elect_namespace: Option<String>,
    /// Name of the Lease; with --controller-class, `-<class>` is added to it, so that operators of two classes never meet.
    #[arg(long, env = "AUTOUNSEAL_LEADER_ELECT_NAME", default_value = "auto-unseal-operator", value_parser = lease_name)]
    pub leader_elect_name: String,
    /// What the holder of the Lease is called, such as the pod's name; something random is added.
    #[arg(long, env = "HOSTNAME", default_value = "autounseal", hide_env_values = true)]
    pub leader_elect_identity: String,
    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "AUTOUNSEAL_METRICS_ADDR", default_value = "0.0.0.0:8080")]
    pub metrics_addr: SocketAddr,
    /// How log lines are written.
    #[arg(long, env = "AUTOUNSEAL_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
    /// Least level of the operator's own log lines. Libraries never log below warn.
    #[arg(long, env = "AUTOUNSEAL_LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    /// Where traces go by OTLP over HTTP, such as `http://collector:4318`. Default: nowhere.
    #[cfg(feature = "otlp")]
    #[arg(long, env = "AUTOUNSEAL_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Least level of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Faults of the operator itself.
    Error,
    /// What somebody should look at.
    Warn,
    /// What was done.
    Info,
    /// Why.
    Debug,
    /// Everything, and still no secret.
    Trace,
}

fn duration(text: &str) -> Result<SignedDuration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .filter(|duration| !duration.is_negative())
        .ok_or_else(|| "a duration such as 168h or 30m".to_owned())
}

fn lease_name(text: &str) -> Result<String, String> {
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let fits = text.len() <= 128
        && ends(text.chars().next())
        && ends(text.chars().next_back())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    if fits {
        Ok(text.to_owned())
    } else {
        Err("a name of Kubernetes: at most 128 lower-case letters, digits, '-' or '.'".to_owned())
    }
}

fn share_ttl(text: &str) -> Result<std::time::Duration, String> {
    duration(text)
        .ok()
        .and_then(|duration| duration.try_into().ok())
        .filter(|ttl: &std::time::Duration| *ttl <= std::time::Duration::from_hours(1))
        .ok_or_else(|| "a duration of at most an hour, such as 60s or 0s".to_owned())
}

fn binding_domain(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fits {
        Ok(text.to_owned())
    } else {
        Err("1 to 63 letters, digits, '.', '_' or '-'".to_owned())
    }
}

/// What the controller works by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespaces to watch; empty = all.
    pub watch_namespaces: Vec<String>,
    /// Our class.
    pub controller_class: String,
    /// Who may use the operator's identity, and for what.
    pub identity: IdentityPolicy,
    /// Part of the external id, and of what stored copies are bound to.
    pub binding_domain: String,
    /// How long copies under a former KMS key are kept.
    pub old_copy_retention: SignedDuration,
    /// Endpoints beyond the clouds' own.
    pub endpoints: EndpointPolicy,
    /// Namespaces whose servers may be unsealed over http.
    pub insecure_unseal: BTreeSet<String>,
    /// Whether pods may have loopback addresses.
    pub unseal_loopback: bool,
    /// How long opened shares are kept.
    pub share_cache_ttl: std::time::Duration,
    /// Objects at once.
    pub concurrency: u16,
    /// Several replicas, one of which acts; `None` = this is the only one.
    pub election: Option<ElectionSettings>,
    /// Where metrics are served.
    pub metrics_addr: SocketAddr,
}

/// Where replicas find out which of them acts.
#[derive(Clone, Debug)]
pub struct ElectionSettings {
    /// Namespace of the Lease; `None` = the operator's own.
    pub namespace: Option<String>,
    /// Name of the Lease.
    pub name: String,
    /// How the holder begins its name.
    pub identity: String,
}

/// Who may use the operator's identity, by flags.
#[derive(Clone, Debug, Default)]
pub struct IdentityPolicy {
    /// Listed by flag.
    pub namespaces: BTreeSet<String>,
    /// Listed in the grants file.
    pub grants: BTreeMap<String, BTreeSet<String>>,
    /// Whether labels and annotations of namespaces count.
    pub labels: bool,
}

/// Flags that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The grants file is not what it should be.
    #[error(
        "--operator-identity-grants: the file cannot be read, or is not YAML of the form `namespace: [ARN or OCID, …]`"
    )]
    Grants,
    /// An endpoint pattern is not one.
    #[error("--allowed-endpoints: {0:?} is not scheme://host[:port], where * stands for one DNS label")]
    Endpoint(String),
}

impl Settings {
    /// Settings from flags, and from the operator's own environment: `endpoints` makes the policy of the patterns.
    ///
    /// # Errors
    /// A sentence that names the flag.
    pub fn from_args(
        args: &ControllerArgs,
        endpoints: impl FnOnce(Vec<String>) -> EndpointPolicy,
    ) -> Result<Self, SettingsError> {
        let list = |items: &[String]| {
            items
                .iter()
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect::<Vec<_>>()
        };
        let patterns = list(&args.allowed_endpoints);
        if let Some(wrong) = patterns
            .iter()
            .find(|pattern| !crate::seal::endpoint::is_pattern(pattern))
        {
            return Err(SettingsError::Endpoint(wrong.clone()));
        }
        let grants = match &args.operator_identity_grants {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|_| SettingsError::Grants)?;
                let mut documents = crate::yaml::documents(&text).map_err(|_| SettingsError::Grants)?;
                let last = documents.pop().unwrap_or_else(|| serde_json::json!({}));
                if !documents.is_empty() {
                    return Err(SettingsError::Grants);
                }
                serde_json::from_value(last).map_err(|_| SettingsError::Grants)?
            }
            None => BTreeMap::new(),
        };
        Ok(Self {
            watch_namespaces: list(&args.watch_namespaces),
            controller_class: args.controller_class.clone(),
            identity: IdentityPolicy {
                namespaces: list(&args.operator_identity_namespaces).into_iter().collect(),
                grants,
                // With namespaced Roles the operator cannot read namespaces: only flags count.
                labels: args.operator_identity_label && args.watch_namespaces.is_empty(),
            },
            binding_domain: args.binding_domain.clone(),
            old_copy_retention: args.old_copy_retention,
            endpoints: endpoints(patterns),
            insecure_unseal: list(&args.insecure_unseal_namespaces).into_iter().collect(),
            unseal_loopback: args.unseal_allow_loopback,
            share_cache_ttl: args.share_cache_ttl,
            concurrency: args.concurrency,
            election: args.leader_elect.then(|| ElectionSettings {
                namespace: args.leader_elect_namespace.clone(),
                name: match args.controller_class.as_str() {
                    "" => args.leader_elect_name.clone(),
                    class => format!("{}-{class}", args.leader_elect_name),
                },
                identity: args.leader_elect_identity.clone(),
            }),
            metrics_addr: args.metrics_addr,
        })
    }
}
