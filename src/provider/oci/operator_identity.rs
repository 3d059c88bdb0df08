//! The operator's own environment, and the identities that lie in it.
//!
//! The only module of the provider that reads the environment or files. No text of a tenant gets here: it is entered by
//! [`ResourcePrincipal`] and [`Caller`], which carry none (security rule S9).

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use zeroize::Zeroizing;

use super::{
    api_key::{self, Parts},
    config_file,
    instance_principal::{InstancePrincipal, fresh},
    pem,
    session::Session,
};
use crate::{
    api::Reason,
    seal::{
        Fault,
        oci::{Atlas, RegionMetadata, is_region},
    },
};

/// Where pods find the cluster's CA.
const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// The largest file that is read.
const MAX_FILE: u64 = 64 * 1024;

/// What the provider reads from the operator's environment, once. Values that are secrets are read when they are needed.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// `OCI_METADATA_BASE_URL`.
    pub metadata_base: Option<String>,
    /// `OCI_SDK_AUTH_CLIENT_REGION_URL`: where the SDKs send federation requests instead of the region's endpoint.
    pub auth_base: Option<String>,
    /// Realms and regions, with `OCI_REGION_METADATA`.
    pub atlas: Atlas,
    /// `KUBERNETES_SERVICE_HOST`.
    kubernetes_host: Option<String>,
    /// `OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH`, else where pods find it.
    cluster_ca: PathBuf,
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

impl Environment {
    /// Reads the variables, with the meaning that the SDKs give them (`common/auth` and `common/regions.go` of the Go SDK).
    pub fn read() -> Self {
        let url = |name: &str| set(name).map(|url| url.trim_end_matches('/').to_owned());
        Self {
            metadata_base: url("OCI_METADATA_BASE_URL"),
            auth_base: url("OCI_SDK_AUTH_CLIENT_REGION_URL").map(|url| {
                if url.contains("://") {
                    url
                } else {
                    format!("https://{url}")
                }
            }),
            atlas: Atlas {
                added: set("OCI_REGION_METADATA").and_then(|text| {
                    let read = region_metadata(&text);
                    if read.is_none() {
                        tracing::warn!(
                            "OCI_REGION_METADATA is not read: it must be JSON with regionKey, regionIdentifier, realmKey and \
                             realmDomainComponent"
                        );
                    }
                    read
                }),
            },
            kubernetes_host: set("KUBERNETES_SERVICE_HOST"),
            cluster_ca: set("OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH")
                .map_or_else(|| PathBuf::from(CLUSTER_CA), PathBuf::from),
        }
    }

    /// The host of the cluster's control plane, as a URL needs it, and the PEM of its CA.
    pub(super) fn control_plane(&self) -> Result<(String, Vec<u8>), Fault> {
        let outside = |what: &str| {
            Fault::denied(
                Reason::CredentialsMissing,
                format!("workload identity works only for an operator that runs in a pod of OKE: {what}"),
            )
        };
        let host = self
            .kubernetes_host
            .as_deref()
            .ok_or_else(|| outside("KUBERNETES_SERVICE_HOST is not set"))?;
        let ca = read_file(&self.cluster_ca).ok_or_else(|| {
            outside("the cluster's CA cannot be read (OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH, else the mounted ca.crt)")
        })?;
        // The SDKs forget the brackets that an address of IPv6 needs.
        let host = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]")
        } else {
            host.to_owned()
        };
        Ok((host, ca.to_vec()))
    }
}

fn region_metadata(text: &str) -> Option<RegionMetadata> {
    let read: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
    let lower = |name: &str| read.get(name).map(|value| value.to_ascii_lowercase());
    let metadata = RegionMetadata {
        code: lower("regionKey")?,
        region: lower("regionIdentifier")?,
        realm: lower("realmKey")?,
        domain: lower("realmDomainComponent")?,
    };
    (is_region(&metadata.region) && is_region(&metadata.code)).then_some(metadata)
}

fn read_file(path: &Path) -> Option<Zeroizing<Vec<u8>>> {
    let small = fs::metadata(path).is_ok_and(|about| about.len() <= MAX_FILE);
    small.then(|| fs::read(path).ok().map(Zeroizing::new)).flatten()
}

fn missing(message: impl Into<String>) -> Fault {
    Fault::denied(Reason::CredentialsMissing, message)
}

/// A resource principal of version 2.2, from the environment that the platform set.
///
/// Source: `common/auth/resource_principal_key_provider.go` of the Go SDK: each value is itself, or the absolute path of
/// a file, which is read anew at each renewal.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResourcePrincipal;

impl ResourcePrincipal {
    /// A session of what stands there now.
    pub(super) fn load(now: SystemTime) -> Result<Session, Fault> {
        match set("OCI_RESOURCE_PRINCIPAL_VERSION").as_deref() {
            Some("2.2") => {}
            Some(_) => {
                return Err(missing(
                    "OCI_RESOURCE_PRINCIPAL_VERSION is not 2.2, the only version that is read; give the seal other credentials",
                ));
            }
            None => {
                return Err(missing(
                    "the operator has no resource principal: OCI_RESOURCE_PRINCIPAL_VERSION is not set; give the seal other \
                     credentials (workloadIdentity, instancePrincipal, apiKey)",
                ));
            }
        }
        let value = |name: &str| -> Result<Zeroizing<Vec<u8>>, Fault> {
            let text = Zeroizing::new(set(name).ok_or_else(|| missing(format!("{name} is not set")))?);
            if text.starts_with('/') {
                return read_file(Path::new(text.as_str()))
                    .ok_or_else(|| missing(format!("the file that {name} names cannot be read")));
            }
            Ok(Zeroizing::new(text.as_bytes().to_vec()))
        };
        let phrase = match set("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE") {
            Some(_) => Some(value("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE")?),
            None => None,
        };
        let key = value("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM")?;
        let key = pem::private_key(&key, phrase.as_ref().map(|phrase| phrase.trim_ascii_end()))
            .map_err(|error| missing(format!("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM: {error}")))?;
        let token = value("OCI_RESOURCE_PRINCIPAL_RPST")?;
        let token = std::str::from_utf8(&token).unwrap_or_default().trim();
        let session = Session::of_token(token.trim_start_matches("ST$"), key)
            .ok_or_else(|| missing("OCI_RESOURCE_PRINCIPAL_RPST holds no token"))?;
        if session.expires.is_some_and(|end| end <= now) {
            return Err(Fault::denied(
                Reason::CredentialsExpired,
                "the token in OCI_RESOURCE_PRINCIPAL_RPST has ended; the platform must renew it (name a file there, which is \
                 read again, and not the token itself)",
            ));
        }
        fresh(session, now, "the platform")
    }
}

/// The caller of the command line: the configuration file, else a resource principal, else the instance principal.
pub(super) struct Caller {
    pub(super) instance: InstancePrincipal,
}

impl Caller {
    pub(super) async fn load(&self, now: SystemTime) -> Result<Session, Fault> {
        let session = match configuration_file() {
            Some(path) => tokio::task::spawn_blocking(move || from_configuration(&path))
                .await
                .unwrap_or_else(|_| Err(missing("the OCI configuration file could not be read")))?,
            None if set("OCI_RESOURCE_PRINCIPAL_VERSION").is_some() => ResourcePrincipal::load(now)?,
            None => self.instance.load(now).await.map_err(|fault| {
                Fault::new(
                    fault.reason,
                    fault.kind,
                    format!(
                        "there is no ~/.oci/config, OCI_CONFIG_FILE names none, and the instance principal cannot be had: {}",
                        fault.message
                    ),
                )
            })?,
        };
        if session.expires.is_some_and(|end| end <= now) {
            return Err(Fault::denied(
                Reason::CredentialsExpired,
                "the session token of your OCI profile has ended; renew it: oci session refresh",
            ));
        }
        Ok(session)
    }
}

/// `~/.oci/config`; only if that does not exist, what `OCI_CONFIG_FILE` names; then the older places.
///
/// Source: `common/configuration.go` of the Go SDK: the variable is a fallback, not an override.
fn configuration_file() -> Option<PathBuf> {
    let home = set("HOME").map(PathBuf::from);
    let below = |path: &str| home.as_ref().map(|home| home.join(path));
    let named = set("OCI_CONFIG_FILE").map(|path| expanded(&path));
    [
        below(".oci/config"),
        named,
        below(".obmcs/config"),
        below(".oraclebmc/config"),
    ]
    .into_iter()
    .flatten()
    .find(|path| path.is_file())
}

fn expanded(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), set("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => PathBuf::from(path),
    }
}

fn from_configuration(path: &Path) -> Result<Session, Fault> {
    let shown = path.display();
    let unreadable = || missing(format!("{shown} cannot be read, or is larger than 64 KiB"));
    let text = read_file(path).ok_or_else(unreadable)?;
    let text = std::str::from_utf8(&text).map_err(|_| unreadable())?;
    // The OCI CLI's variable for the profile; the SDKs have none.
    let name = set("OCI_CLI_PROFILE");
    let profile =
        config_file::profile(text, name.as_deref()).map_err(|error| missing(format!("{shown}: {error}")))?;
    let file = |what: &str, named: Option<&String>| -> Result<Zeroizing<Vec<u8>>, Fault> {
        let named = named.ok_or_else(|| missing(format!("{shown}: the profile has no {what}")))?;
        read_file(&expanded(named))
            .ok_or_else(|| missing(format!("{shown}: the file that {what} names cannot be read")))
    };
    let key = file("key_file", profile.key_file.as_ref())?;
    let place = |part: &str| format!("{shown}, {part}");
    if profile.security_token_file.is_some() {
        let token = file("security_token_file", profile.security_token_file.as_ref())?;
        let token = std::str::from_utf8(&token).unwrap_or_default().trim();
        let key = pem::private_key(&key, profile.pass_phrase.as_ref().map(|phrase| phrase.as_bytes()))
            .map_err(|error| missing(format!("{}: {error}", place("key_file"))))?;
        return Session::of_token(token, key)
            .ok_or_else(|| missing(format!("{}: it holds no token", place("security_token_file"))));
    }
    api_key::session(
        &Parts {
            user: profile.user.as_deref(),
            tenancy: profile.tenancy.as_deref(),
            fingerprint: profile.fingerprint.as_deref(),
            pem: &key,
            pass_phrase: profile.pass_phrase.as_ref().map(|phrase| phrase.as_bytes()),
        },
        &place,
    )
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_of_the_environment_is_read_whole_or_not_at_all() {
        let text = r#"{"realmKey":"OC99","realmDomainComponent":"oraclecloud99.com","regionKey":"XYZ","regionIdentifier":"xx-new-1"}"#;
        let read = region_metadata(text).unwrap();
        assert_eq!((read.code.as_str(), read.realm.as_str()), ("xyz", "oc99"));
        for text in [
            "",
            "{}",
            r#"{"regionKey":"xyz"}"#,
            &text.replace("xx-new-1", "xx.evil"),
        ] {
            assert!(region_metadata(text).is_none(), "{text}");
        }
    }

    #[test]
    fn an_address_of_ipv6_gets_its_brackets() {
        let file = std::env::temp_dir().join(format!("autounseal-ca-{}", std::process::id()));
        fs::write(&file, "ca").unwrap();
        let of = |host: &str| Environment {
            kubernetes_host: Some(host.to_owned()),
            cluster_ca: file.clone(),
            ..Environment::default()
        };
        assert_eq!(of("10.96.0.1").control_plane().unwrap().0, "10.96.0.1");
        assert_eq!(of("fd00::1").control_plane().unwrap().0, "[fd00::1]");
        assert_eq!(of("[fd00::1]").control_plane().unwrap().0, "[fd00::1]");
        fs::remove_file(&file).unwrap();
        assert_eq!(
            of("10.96.0.1").control_plane().unwrap_err().reason,
            Reason::CredentialsMissing
        );
    }
}
