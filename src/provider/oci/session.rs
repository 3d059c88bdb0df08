//! What requests are signed with: a private key and the key id that tells OCI whose it is.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{encoding::AsDer, rsa};
use data_encoding::{BASE64, BASE64URL_NOPAD};

use crate::{
    api::Reason,
    provider::renewal::Expires,
    seal::{Fault, oci},
};

/// What requests are signed with. Token and key are one value: they are swapped together.
pub(super) struct Session {
    /// `<tenancy>/<user>/<fingerprint>`, or `ST$<token>`.
    pub(super) key_id: String,
    pub(super) key: rsa::KeyPair,
    /// `None` = an API key.
    pub(super) expires: Option<SystemTime>,
    /// OCID of the user or principal, as far as known.
    pub(super) principal: Option<String>,
    /// The realm it belongs to, as far as known.
    pub(super) realm: Option<String>,
    /// For API keys: the fingerprint in use and the key's own, if they differ.
    pub(super) other_fingerprint: Option<(String, String)>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Expires for Arc<Session> {
    const BRIEF: bool = true;

    fn expiry(&self) -> Option<SystemTime> {
        self.expires
    }
}

impl Session {
    /// A session of a security token and the private key that it was issued for.
    pub(super) fn of_token(token: &str, key: rsa::KeyPair) -> Option<Self> {
        let claims = claims(token)?;
        Some(Self {
            key_id: format!("ST${token}"),
            key,
            expires: Some(claims.expires),
            realm: claims
                .principal
                .as_deref()
                .and_then(oci::realm_of)
                .map(ToOwned::to_owned),
            principal: claims.principal,
            other_fingerprint: None,
        })
    }
}

pub(super) struct Claims {
    expires: SystemTime,
    principal: Option<String>,
}

/// What we read of a token; whether it is genuine is for the KMS to say.
///
/// Source: `common/auth/jwt.go` of the Go SDK: three parts, `exp` in seconds.
pub(super) fn claims(token: &str) -> Option<Claims> {
    #[derive(serde::Deserialize)]
    struct Payload {
        exp: f64,
        sub: Option<String>,
    }
    let fits = token.len() <= 32 * 1024 && token.bytes().all(|b| b.is_ascii_graphic() && b != b'"');
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None, true) =
        (parts.next(), parts.next(), parts.next(), parts.next(), fits)
    else {
        return None;
    };
    let payload = BASE64URL_NOPAD
        .decode(payload.trim_end_matches('=').as_bytes())
        .ok()?;
    let payload: Payload = serde_json::from_slice(&payload).ok()?;
    let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(payload.exp).ok()?)?;
    Some(Claims {
        expires,
        principal: payload.sub.filter(|sub| oci::is_ocid(sub)),
    })
}

/// A fresh session key, RSA-2048 as the SDKs make it. Takes some hundred milliseconds, off the runtime's threads.
pub(super) async fn fresh_key() -> Result<rsa::KeyPair, Fault> {
    let made = tokio::task::spawn_blocking(|| rsa::KeyPair::generate(rsa::KeySize::Rsa2048)).await;
    match made {
        Ok(Ok(key)) => Ok(key),
        _ => Err(Fault::transient(
            Reason::KmsUnavailable,
            "the operating system gave no random bytes for a session key",
        )),
    }
}

/// The public half as one line of base64: a PEM without its armour.
pub(super) fn public_key(key: &rsa::KeyPair) -> Option<String> {
    use aws_lc_rs::{encoding::PublicKeyX509Der, signature::KeyPair as _};
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().ok()?;
    Some(BASE64.encode(der.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> String {
        format!("e30.{}.c2ln", BASE64URL_NOPAD.encode(payload.as_bytes()))
    }

    #[test]
    fn a_token_tells_when_it_ends_and_whose_it_is() {
        let read = claims(&token(
            r#"{"exp": 1388956800, "sub": "ocid1.instance.oc1.phx.vector.x"}"#,
        ))
        .unwrap();
        assert_eq!(
            read.expires,
            SystemTime::UNIX_EPOCH + Duration::from_mins(23_149_280)
        );
        assert_eq!(read.principal.as_deref(), Some("ocid1.instance.oc1.phx.vector.x"));
        assert!(claims(&token(r#"{"exp": 1.5e9}"#)).unwrap().principal.is_none());
        assert!(
            claims(&token(r#"{"exp": 1, "sub": "<script>"}"#))
                .unwrap()
                .principal
                .is_none()
        );
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            &token("{}"),
            &token(r#"{"exp": -1}"#),
            &token(r#"{"exp": 1e300}"#),
            &token(r#"{"exp": "1"}"#),
            &format!("{}\n", token(r#"{"exp": 1}"#)),
            &format!("\"{}", token(r#"{"exp": 1}"#)),
        ] {
            assert!(claims(text).is_none(), "{text}");
        }
    }
}
