//! Which KMS endpoints the operator may speak to (security rule S1): pure, so that every refusal can be tabled.

use crate::{
    api::Reason,
    seal::{
        aws::Region,
        fault::Fault,
        oci::{Atlas, KeyOcid},
    },
};

/// Endpoints that a cluster admin allows beyond the clouds' own.
#[derive(Clone, Debug, Default)]
pub struct EndpointPolicy {
    /// From the operator's own environment (`AWS_ENDPOINT_URL…`): exact, any scheme, any address.
    pub environment: Vec<String>,
    /// From `--allowed-endpoints`: `https://host[:port]`, `*` stands for one DNS label.
    pub patterns: Vec<String>,
    /// OCI's realms and regions, with what the operator's environment adds to them.
    pub atlas: Atlas,
}

/// How a permitted endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedEndpoint {
    /// The URL to speak to, without a trailing slash.
    pub url: String,
    /// True: an admin named it, so it may resolve to loopback or link-local addresses.
    pub trusted: bool,
}

/// Decides about a custom endpoint of an AWS seal.
///
/// # Errors
/// `EndpointNotAllowed`, with the flag that would allow it.
pub fn allow_aws(endpoint: &str, region: &Region, policy: &EndpointPolicy) -> Result<AllowedEndpoint, Fault> {
    let url = trimmed(endpoint).to_owned();
    let Some(host) = judge(endpoint, policy)? else {
        return Ok(AllowedEndpoint { url, trusted: true });
    };
    let own = [region.dns_suffix(), region.dual_stack_suffix()];
    let services = ["kms", "kms-fips"];
    let fits = services.iter().any(|service| {
        own.iter()
            .any(|suffix| host == format!("{service}.{region}.{suffix}"))
            || matches_labels(
                &format!("*.{service}.{region}.vpce.{}", region.dns_suffix()),
                host,
            )
    });
    if fits {
        Ok(AllowedEndpoint { url, trusted: false })
    } else {
        Err(refused(
            endpoint,
            &format!("it is no KMS endpoint of region {region}"),
        ))
    }
}

/// Which of a vault's two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VaultEndpoint {
    /// Encrypts and decrypts.
    Crypto,
    /// Describes keys.
    Management,
}

impl VaultEndpoint {
    const fn word(self) -> &'static str {
        match self {
            VaultEndpoint::Crypto => "crypto",
            VaultEndpoint::Management => "management",
        }
    }
}

/// Decides about an endpoint of an OCI seal: it must be of the realm and region that the key's OCID names.
///
/// A vault's host is `<vault>-crypto.kms.<region>.<domain>`; some have one label more, in front or before the domain
/// (`oci`).
///
/// # Errors
/// `RealmMismatch` for a vault of another realm; `EndpointNotAllowed`, with the flag that would allow it.
pub fn allow_oci(
    endpoint: &str,
    which: VaultEndpoint,
    key: &KeyOcid,
    policy: &EndpointPolicy,
) -> Result<AllowedEndpoint, Fault> {
    let url = trimmed(endpoint).to_owned();
    let Some(host) = judge(endpoint, policy)? else {
        return Ok(AllowedEndpoint { url, trusted: true });
    };
    let (atlas, what) = (&policy.atlas, which.word());
    let is_vault = |region: &str, domain: &str| {
        [
            format!("*.kms.{region}.{domain}"),
            format!("*.*.kms.{region}.{domain}"),
            format!("*.kms.{region}.oci.{domain}"),
        ]
        .iter()
        .any(|pattern| matches_labels(pattern, host))
            && host
                .split_once(".kms.")
                .and_then(|(vault, _)| vault.rsplit('.').next()?.strip_suffix(what)?.strip_suffix('-'))
                .is_some_and(|vault| !vault.is_empty())
    };
    let region = atlas.region(key.region());
    let domain = atlas.domain(key.realm());
    if domain.is_some_and(|domain| is_vault(region, domain)) {
        return Ok(AllowedEndpoint { url, trusted: false });
    }
    let elsewhere = atlas
        .domains()
        .find(|(_, other)| Some(*other) != domain && is_vault("*", other));
    if let Some((first, domain)) = elsewhere {
        // Realms may share a domain; then the region tells which of them it is.
        let realm = host
            .split_once(".kms.")
            .and_then(|(_, rest)| rest.split('.').next())
            .map(|region| atlas.realm_of_region(region))
            .filter(|realm| atlas.domain(realm) == Some(domain))
            .unwrap_or(first);
        return Err(Fault::invalid(
            Reason::RealmMismatch,
            format!(
                "the {what} endpoint {} is one of realm {realm}, but the key's OCID belongs to realm {}; correct keyID or \
                 the endpoint",
                printable(endpoint),
                key.realm()
            ),
        ));
    }
    Err(refused(
        endpoint,
        &match domain {
            Some(domain) => format!(
                "it is no {what} endpoint of a vault in region {region} (https://<vault>-{what}.kms.{region}.{domain})"
            ),
            None => format!(
                "realm {} of the key is not known here, so no endpoint of it is (OCI_REGION_METADATA may add it)",
                key.realm()
            ),
        },
    ))
}

fn trimmed(endpoint: &str) -> &str {
    endpoint.strip_suffix('/').unwrap_or(endpoint)
}

/// What holds for the endpoints of every cloud. `None`: an admin allowed it; else the host, which the cloud's own rule
/// must judge.
fn judge<'e>(endpoint: &'e str, policy: &EndpointPolicy) -> Result<Option<&'e str>, Fault> {
    let url = trimmed(endpoint);
    if policy.environment.iter().any(|own| trimmed(own) == url) {
        return Ok(None);
    }
    let Some(parsed) = Parsed::read(url) else {
        return Err(refused(endpoint, "it is not a plain https://host"));
    };
    if policy
        .patterns
        .iter()
        .any(|pattern| Parsed::read(trimmed(pattern)).is_some_and(|pattern| pattern.covers(&parsed)))
    {
        return Ok(None);
    }
    if parsed.scheme != "https" {
        return Err(refused(endpoint, "it is not https"));
    }
    if parsed.port.is_some_and(|port| port != 443) {
        return Err(refused(endpoint, "it names a port other than 443"));
    }
    Ok(Some(parsed.host))
}

/// Whether a text is a pattern that [`EndpointPolicy::patterns`] can hold.
pub fn is_pattern(text: &str) -> bool {
    Parsed::read(trimmed(text)).is_some()
}

fn refused(endpoint: &str, why: &str) -> Fault {
    Fault::invalid(
        Reason::EndpointNotAllowed,
        format!(
            "the endpoint {} is refused: {why}; use a KMS endpoint of the key's own region, or ask the cluster admin to \
             add it to the operator's --allowed-endpoints",
            printable(endpoint)
        ),
    )
}

/// At most 200 printable ASCII characters of what a user wrote.
pub fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct Parsed<'a> {
    scheme: &'a str,
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Parsed<'a> {
    /// Only what S1 lets through: no user info, path, query or fragment, lower-case host of legal labels.
    fn read(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        if scheme != "https" && scheme != "http" {
            return None;
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) => {
                let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
                (
                    host,
                    Some(if digits {
                        port.parse().ok()?
                    } else {
                        return None;
                    }),
                )
            }
            None => (rest, None),
        };
        let label_fits = |label: &str| {
            label == "*"
                || (!label.is_empty()
                    && label.len() <= 63
                    && !label.starts_with('-')
                    && !label.ends_with('-')
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'))
        };
        (host.len() <= 253 && host.split('.').all(label_fits)).then_some(Self { scheme, host, port })
    }

    fn covers(&self, other: &Parsed<'_>) -> bool {
        self.scheme == other.scheme
            && self.effective_port() == other.effective_port()
            && matches_labels(self.host, other.host)
    }

    fn effective_port(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == "https" { 443 } else { 80 })
    }
}

/// Label by label, `*` in the pattern standing for exactly one label, which is never itself a `*`.
fn matches_labels(pattern: &str, host: &str) -> bool {
    let (pattern, host): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    pattern.len() == host.len()
        && pattern
            .iter()
            .zip(&host)
            .all(|(want, label)| *label != "*" && (*want == "*" || want == label))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(endpoint: &str, region: &str) -> Result<AllowedEndpoint, Fault> {
        allow_aws(endpoint, &region.parse().unwrap(), &EndpointPolicy::default())
    }

    #[test]
    fn the_clouds_own_kms_endpoints_are_allowed() {
        for (endpoint, region) in [
            ("https://kms.eu-west-1.amazonaws.com", "eu-west-1"),
            ("https://kms.eu-west-1.amazonaws.com/", "eu-west-1"),
            ("https://kms.eu-west-1.amazonaws.com:443", "eu-west-1"),
            ("https://kms-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
            ("https://kms.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("https://kms.eu-west-1.api.aws", "eu-west-1"),
            (
                "https://vpce-0e1bb1852241f8cc6-pzi0do8n.kms.us-east-1.vpce.amazonaws.com",
                "us-east-1",
            ),
            (
                "https://vpce-1-2-us-east-1a.kms-fips.us-east-1.vpce.amazonaws.com",
                "us-east-1",
            ),
        ] {
            let allowed = allow(endpoint, region).unwrap();
            assert!(!allowed.trusted, "{endpoint}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for endpoint in [
            "https://x.execute-api.eu-west-1.amazonaws.com",
            "https://s3.eu-west-1.amazonaws.com",
            "https://bucket.s3.eu-west-1.amazonaws.com",
            "https://kms.eu-west-1.amazonaws.com.evil.example",
            "https://evil.example/kms.eu-west-1.amazonaws.com",
            "https://user@kms.eu-west-1.amazonaws.com",
            "https://kms.eu-west-1.amazonaws.com@evil.example",
            "https://kms.eu-west-1.amazonaws.com:6443",
            "https://kms.eu-west-1.amazonaws.com:",
            "https://kms.eu-west-1.amazonaws.com/p",
            "https://kms.eu-west-1.amazonaws.com?q",
            "https://kms.eu-west-1.amazonaws.com#f",
            "https://kms.us-east-1.amazonaws.com",
            "https://a.b.kms.eu-west-1.vpce.amazonaws.com",
            "https://kms.eu-west-1.vpce.amazonaws.com",
            "https://*.kms.eu-west-1.vpce.amazonaws.com",
            "https://KMS.eu-west-1.amazonaws.com",
            "http://kms.eu-west-1.amazonaws.com",
            "https://127.0.0.1",
            "https://[::1]",
            "https://kms.eu-west-1.amazonaws.com.",
            "https://kms.eu-west-1.amazonaws.com\u{0}",
            "kms.eu-west-1.amazonaws.com",
            "file:///etc/passwd",
            "",
        ] {
            assert_eq!(
                allow(endpoint, "eu-west-1").unwrap_err().reason,
                Reason::EndpointNotAllowed,
                "{endpoint}"
            );
        }
    }

    #[test]
    fn an_admins_environment_and_patterns_count() {
        let policy = EndpointPolicy {
            environment: vec!["http://127.0.0.1:5000".into()],
            patterns: vec!["https://*.kms.corp.example:8443".into()],
            ..EndpointPolicy::default()
        };
        let region = "eu-west-1".parse().unwrap();
        assert!(
            allow_aws("http://127.0.0.1:5000/", &region, &policy)
                .unwrap()
                .trusted
        );
        assert!(
            allow_aws("https://a.kms.corp.example:8443", &region, &policy)
                .unwrap()
                .trusted
        );
        for endpoint in [
            "http://127.0.0.1:5001",
            "http://a.kms.corp.example:8443",
            "https://a.b.kms.corp.example:8443",
            "https://a.kms.corp.example",
            "https://kms.corp.example:8443",
        ] {
            assert!(allow_aws(endpoint, &region, &policy).is_err(), "{endpoint}");
        }
    }

    const KEY: &str = "ocid1.key.oc1.eu-frankfurt-1.bbpnqqmlaaceu.abtheljtexamplekey";

    fn crypto(endpoint: &str, key: &str) -> Result<AllowedEndpoint, Fault> {
        let key = key.parse().unwrap();
        allow_oci(endpoint, VaultEndpoint::Crypto, &key, &EndpointPolicy::default())
    }

    #[test]
    fn the_vaults_of_every_realm_are_allowed() {
        for (endpoint, key) in [
            ("https://bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com", KEY),
            ("https://bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com:443/", KEY),
            ("https://a.bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com", KEY),
            ("https://bbpn-crypto.kms.eu-frankfurt-1.oci.oraclecloud.com", KEY),
            (
                "https://v-crypto.kms.us-ashburn-1.oraclecloud.com",
                "ocid1.key.oc1.iad.v.k",
            ),
            (
                "https://v-crypto.kms.us-gov-ashburn-1.oraclegovcloud.com",
                "ocid1.key.oc3.us-gov-ashburn-1.v.k",
            ),
            (
                "https://v-crypto.kms.uk-gov-london-1.oraclegovcloud.uk",
                "ocid1.key.oc4.ltn.v.k",
            ),
            (
                "https://v-crypto.kms.eu-madrid-2.oraclecloud.eu",
                "ocid1.key.oc19.eu-madrid-2.v.k",
            ),
            (
                "https://v-crypto.kms.xx-new-1.oraclecloud24.com",
                "ocid1.key.oc24.xx-new-1.v.k",
            ),
        ] {
            assert!(!crypto(endpoint, key).unwrap().trusted, "{endpoint}");
        }
        let key = KEY.parse().unwrap();
        let management = "https://bbpn-management.kms.eu-frankfurt-1.oraclecloud.com";
        let policy = EndpointPolicy::default();
        assert!(allow_oci(management, VaultEndpoint::Management, &key, &policy).is_ok());
    }

    #[test]
    fn every_other_vault_endpoint_is_refused() {
        for endpoint in [
            "https://bbpn-management.kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpn-crypto.kms.eu-amsterdam-1.oraclecloud.com",
            "https://-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "https://crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpncrypto.kms.eu-frankfurt-1.oraclecloud.com",
            "https://a.b.bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpn-crypto.evil.kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpn-crypto.objectstorage.eu-frankfurt-1.oraclecloud.com",
            "https://kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com.evil.example",
            "https://user@bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com:6443",
            "https://bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com/p",
            "https://*-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "http://bbpn-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            "https://bbpn-crypto.kms.evil.example",
            "https://127.0.0.1",
        ] {
            let reason = crypto(endpoint, KEY).unwrap_err().reason;
            assert_eq!(reason, Reason::EndpointNotAllowed, "{endpoint}");
        }
        let unknown = crypto(
            "https://v-crypto.kms.xx-new-1.oraclecloud99.com",
            "ocid1.key.oc99.xx-new-1.v.k",
        );
        assert_eq!(unknown.unwrap_err().reason, Reason::EndpointNotAllowed);
    }

    #[test]
    fn a_vault_of_another_realm_is_named() {
        for (endpoint, realm) in [
            ("https://v-crypto.kms.eu-madrid-2.oraclecloud.eu", "realm oc19,"),
            (
                "https://v-crypto.kms.us-langley-1.oraclegovcloud.com",
                "realm oc2,",
            ),
            (
                "https://v-crypto.kms.us-gov-ashburn-1.oraclegovcloud.com",
                "realm oc3,",
            ),
        ] {
            let fault = crypto(endpoint, KEY).unwrap_err();
            assert_eq!(fault.reason, Reason::RealmMismatch, "{endpoint}");
            assert!(fault.message.contains(realm), "{}", fault.message);
            assert!(fault.message.contains("realm oc1;"), "{}", fault.message);
        }
    }
}
