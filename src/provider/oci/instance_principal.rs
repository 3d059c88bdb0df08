//! The instance principal: certificates of the metadata service, exchanged for a token at the region's `auth` endpoint.
//!
//! Source: `common/auth/{instance_principal_key_provider,federation_client}.go` of the Go SDK v65 and `oci/auth` of the
//! Python SDK.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reqwest::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    error::{self, Failure, Refusal},
    http::{self, Answer, Client, Request},
    operator_identity::Environment,
    pem,
    session::{self, Session},
    signature::{self, Form, Unsigned},
};
use crate::{
    api::Reason,
    provider::{Timeouts, wire},
    seal::{
        Fault, FaultKind,
        oci::{self, Atlas},
    },
};

/// The metadata services: OCI's own, and its address on hosts with IPv6 only.
const METADATA: [&str; 2] = [
    "http://169.254.169.254/opc/v2",
    "http://[fd00:c1::a9fe:a9fe]/opc/v2",
];

/// Bound of one request to the metadata service, which is next door.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);

const WHAT: &str = "OCI's identity service";

/// How the instance principal is got.
pub(super) struct InstancePrincipal {
    pub(super) environment: Environment,
    pub(super) timeouts: Timeouts,
    /// For the metadata service, which is link-local by design, and for what the environment names.
    pub(super) open: Arc<Client>,
    pub(super) guarded: Arc<Client>,
}

/// What the metadata service says of the region.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RegionInfo {
    region_identifier: String,
    realm_domain_component: String,
}

/// The token's answer.
#[derive(Deserialize)]
pub(super) struct Issued {
    pub(super) token: String,
}

impl InstancePrincipal {
    /// A new session: the certificates are read anew each time, for they rotate.
    pub(super) async fn load(&self, now: SystemTime) -> Result<Session, Fault> {
        let metadata = self.metadata().await?;
        let auth = self.auth_base(metadata.as_ref()).await?;
        let (leaf, key, intermediate) = tokio::try_join!(
            self.get(metadata.as_ref(), "/identity/cert.pem"),
            self.get(metadata.as_ref(), "/identity/key.pem"),
            self.get(metadata.as_ref(), "/identity/intermediate.pem"),
        )?;
        let unusable = |what: &str| {
            Fault::transient(
                Reason::FederationRejected,
                format!(
                    "the metadata service answered with no usable {what}; check what answers at 169.254.169.254"
                ),
            )
        };
        let leaf = pem::certificates(&leaf)
            .ok()
            .and_then(|mut all| (!all.is_empty()).then(|| all.swap_remove(0)))
            .ok_or_else(|| unusable("certificate"))?;
        let key = pem::private_key(&key, None).map_err(|_| unusable("private key"))?;
        let intermediate =
            pem::certificates(&intermediate).map_err(|_| unusable("intermediate certificate"))?;
        let tenancy = leaf
            .tenancy
            .ok_or_else(|| unusable("certificate (its subject names no tenancy)"))?;
        if leaf.not_after <= now {
            return Err(Fault::transient(
                Reason::FederationRejected,
                "the instance's certificate has expired and the metadata service has no new one yet; if this stays, check \
                 the node's clock (NTP)",
            ));
        }
        let own = session::fresh_key().await?;
        let public = session::public_key(&own).ok_or_else(|| unusable("key"))?;
        let body = serde_json::json!({
            "certificate": leaf.base64,
            "publicKey": public,
            "intermediateCertificates": intermediate.iter().map(|one| &one.base64).collect::<Vec<_>>(),
            "fingerprintAlgorithm": "SHA256",
        });
        let signer = Signer {
            key_id: format!("{tenancy}/fed-x509-sha256/{}", pem::sha256_fingerprint(&leaf.der)),
            key,
        };
        let answer = self
            .exchange(&auth, &signer, body.to_string().into_bytes(), now)
            .await?;
        let issued: Option<Issued> = serde_json::from_slice(&answer.body).ok();
        let session =
            issued.and_then(|issued| Session::of_token(issued.token.trim_start_matches("ST$"), own));
        let session = session.ok_or_else(|| error::federation(&Failure::Garbage, WHAT, ""))?;
        fresh(session, now, WHAT)
    }

    /// The metadata service that answers. Neither address is tried when the environment names one.
    async fn metadata(&self) -> Result<std::borrow::Cow<'_, str>, Fault> {
        if let Some(base) = &self.environment.metadata_base {
            return Ok(base.into());
        }
        let mut last = None;
        for base in METADATA {
            match self.try_get(base, "/instance/region").await {
                Ok(_) => return Ok(base.into()),
                Err(failure) => last = last.or(Some(failure)),
            }
        }
        Err(metadata_fault(&last.unwrap_or(Failure::Unreachable)))
    }

    async fn get(&self, base: &str, path: &str) -> Result<Zeroizing<Vec<u8>>, Fault> {
        self.try_get(base, path)
            .await
            .map_err(|failure| metadata_fault(&failure))
    }

    async fn try_get(&self, base: &str, path: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let request = Request {
            method: Method::GET,
            base,
            target: path,
            // Version 2 answers nobody without it: a request that somebody else was tricked into has no such header.
            headers: vec![("authorization", "Bearer Oracle".to_owned())],
            body: None,
            timeout: METADATA_TIMEOUT,
        };
        let answer = self.open.send(request).await?;
        match answer.status {
            200 => Ok(answer.body),
            status => Err(Failure::Refused(Refusal {
                status,
                ..Refusal::default()
            })),
        }
    }

    /// Where tokens are issued. Derived, never taken from a resource (security rule S1).
    async fn auth_base(&self, metadata: &str) -> Result<String, Fault> {
        if let Some(base) = &self.environment.auth_base {
            return Ok(base.clone());
        }
        let host = match self.try_get(metadata, "/instance/regionInfo").await {
            Ok(body) => serde_json::from_slice::<RegionInfo>(&body).ok().and_then(|info| {
                auth_host(
                    &info.region_identifier,
                    Some(&info.realm_domain_component),
                    &self.environment.atlas,
                )
            }),
            // Older metadata services tell the region only.
            Err(Failure::Refused(_)) => {
                let region = self.get(metadata, "/instance/region").await?;
                let region = std::str::from_utf8(&region).unwrap_or_default().trim();
                auth_host(region, None, &self.environment.atlas)
            }
            Err(failure) => return Err(metadata_fault(&failure)),
        };
        let host = host.ok_or_else(|| {
            Fault::transient(
                Reason::FederationRejected,
                "the metadata service names no region; check what answers at 169.254.169.254",
            )
        })?;
        Ok(format!("https://{host}"))
    }

    async fn exchange(
        &self,
        auth: &str,
        signer: &Signer,
        body: Vec<u8>,
        now: SystemTime,
    ) -> Result<Answer, Fault> {
        // Derived from a metadata service that a test or an admin put in place, it may lead to this machine too.
        let trusted = self.environment.auth_base.is_some() || self.environment.metadata_base.is_some();
        let client = if trusted { &self.open } else { &self.guarded };
        let hint = "check that the instance is not terminated, and the node's clock and certificates";
        let told = |failure: &Failure| error::federation(failure, WHAT, hint);
        let host = http::host_of(auth).ok_or_else(|| told(&Failure::NoAddress))?;
        let body = Bytes::from(body);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let unsigned = Unsigned {
                method: "POST",
                target: "/v1/x509",
                host: &host,
                content_type: "application/json",
                body: &body,
            };
            let date = signature::http_date(wire::timestamp(now).as_second());
            let headers = signature::headers(&signer.key, &signer.key_id, &unsigned, &date, Form::Federation)
                .map_err(|_| told(&Failure::Garbage))?;
            let request = Request {
                method: Method::POST,
                base: auth,
                target: "/v1/x509",
                headers,
                body: Some(body.clone()),
                timeout: self.timeouts.attempt,
            };
            let failure = match client.send(request).await {
                Ok(answer) if answer.status == 200 => return Ok(answer),
                Ok(answer) => refusal(&answer, now),
                Err(failure) => failure,
            };
            // A second try on what passes; a third would not fit into the time that a load has.
            if attempt == 2 || !failure.is_passing() || failure.hint().is_some() {
                return Err(told(&failure));
            }
            tokio::time::sleep(Duration::from_millis(250).mul_f64(0.5 + wire::jitter())).await;
        }
    }
}

struct Signer {
    key_id: String,
    key: aws_lc_rs::rsa::KeyPair,
}

/// An error answer as a failure.
pub(super) fn refusal(answer: &Answer, now: SystemTime) -> Failure {
    Failure::Refused(Refusal {
        status: answer.status,
        code: error::code(&answer.body),
        retry_after: answer
            .header("retry-after")
            .and_then(|value| wire::hint(value, now)),
        skew: http::skew(answer, now),
    })
}

/// A token that has ended before it was used tells of clocks.
pub(super) fn fresh(session: Session, now: SystemTime, what: &str) -> Result<Session, Fault> {
    if session.expires.is_some_and(|end| end <= now) {
        return Err(Fault::denied(
            Reason::ClockSkew,
            format!(
                "{what} issued a token that has already ended by the clock of the operator's node; set that clock (NTP)"
            ),
        ));
    }
    Ok(session)
}

/// `auth.<region>.<domain>`; a region that holds a dot is a domain already.
///
/// Source: `common/regions.go` of the Go SDK.
fn auth_host(region: &str, domain: Option<&str>, atlas: &Atlas) -> Option<String> {
    let is_host = |text: &str| {
        (1..=200).contains(&text.len())
            && text.split('.').all(|label| {
                !label.is_empty()
                    && !label.starts_with('-')
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            })
    };
    let region = region.to_ascii_lowercase();
    if region.contains('.') {
        return is_host(&region).then(|| format!("auth.{region}"));
    }
    let region = atlas.region(&region);
    let domain = match domain {
        Some(domain) => domain,
        None => atlas.domain(atlas.realm_of_region(region))?,
    };
    (oci::is_region(region) && is_host(domain)).then(|| format!("auth.{region}.{domain}"))
}

fn metadata_fault(failure: &Failure) -> Fault {
    match failure {
        Failure::Refused(refusal) if matches!(refusal.status, 401 | 403 | 404) => Fault::new(
            Reason::ImdsDisabled,
            FaultKind::Nearby,
            format!(
                "OCI's instance metadata service refuses the certificates of the instance principal (status {}); check that what \
                 answers at 169.254.169.254 is OCI's own, or give the seal other credentials (workloadIdentity, apiKey)",
                refusal.status
            ),
        ),
        Failure::Unreachable | Failure::Timeout | Failure::NoAddress => Fault::new(
            Reason::ImdsUnreachable,
            FaultKind::Nearby,
            "OCI's instance metadata service (169.254.169.254) does not answer; the operator must run on an instance of OCI and \
             no network policy may block it; else give the seal other credentials (workloadIdentity, apiKey)",
        ),
        other => error::transport(other, "OCI's instance metadata service", "a request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_auth_endpoint_follows_region_and_realm() {
        let atlas = Atlas::default();
        for (region, domain, host) in [
            ("phx", None, "auth.us-phoenix-1.oraclecloud.com"),
            ("PHX", None, "auth.us-phoenix-1.oraclecloud.com"),
            ("eu-frankfurt-1", None, "auth.eu-frankfurt-1.oraclecloud.com"),
            (
                "us-gov-ashburn-1",
                None,
                "auth.us-gov-ashburn-1.oraclegovcloud.com",
            ),
            (
                "xx-new-1",
                Some("oraclecloud99.com"),
                "auth.xx-new-1.oraclecloud99.com",
            ),
            ("region.dedicated.example", None, "auth.region.dedicated.example"),
        ] {
            assert_eq!(
                auth_host(region, domain, &atlas).as_deref(),
                Some(host),
                "{region}"
            );
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_no_region() {
        let atlas = Atlas::default();
        for (region, domain) in [
            ("", None),
            ("evil.example/", None),
            ("x@evil.example", None),
            ("phx", Some("evil.example/p")),
            ("phx", Some("evil.example:6443")),
            ("phx", Some("")),
            ("a..b", None),
        ] {
            assert_eq!(auth_host(region, domain, &atlas), None, "{region} {domain:?}");
        }
    }
}
