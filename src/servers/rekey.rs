//! How a server is asked for new shares: `sys/rekey`, without a token (Vault API docs `system/rekey`).

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Connection;
use crate::seal::{
    Fault, KeyBytes,
    unseal::{
        initialize::Split,
        rotate::{Going, is_uuid, strange},
    },
};

const INIT: &str = "/v1/sys/rekey/init";
const UPDATE: &str = "/v1/sys/rekey/update";
const VERIFY: &str = "/v1/sys/rekey/verify";

/// What a server answers of a rekey.
#[derive(Debug)]
pub enum Rekeyed {
    /// Where it is.
    Going(Going),
    /// It has all the old shares, and answered the new ones.
    Answered(NewShares),
    /// It has taken the new shares; the old ones are void.
    Complete,
    /// It refuses, with this status.
    Refused(u16),
}

/// New shares, each as the text that the server printed, and the name under which it wants to see them.
pub struct NewShares {
    /// In the server's order.
    pub shares: Vec<KeyBytes>,
    /// The verification.
    pub verification: String,
}

impl fmt::Debug for NewShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(default)]
    complete: bool,
    #[serde(borrow, default)]
    keys_base64: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    verification_nonce: Cow<'a, str>,
}

impl Connection {
    /// Where the server is with a rekey.
    ///
    /// # Errors
    /// `TargetUnreachable`, `TargetNotVerified`.
    pub async fn rekey_status(&mut self) -> Result<Rekeyed, Fault> {
        self.rekey(Method::GET, INIT, Bytes::new()).await
    }

    /// Asks for so many new shares, to be verified before they count.
    ///
    /// # Errors
    /// As [`Connection::rekey_status`].
    pub async fn rekey_begin(&mut self, split: Split) -> Result<Rekeyed, Fault> {
        let Split { shares, threshold } = split;
        let body = format!(
            "{{\"secret_shares\":{shares},\"secret_threshold\":{threshold},\"require_verification\":true}}"
        );
        self.rekey(Method::PUT, INIT, body.into()).await
    }

    /// Gives an old share, as `seal::unseal::share` wrote it.
    ///
    /// # Errors
    /// As [`Connection::rekey_status`].
    pub async fn rekey_feed(&mut self, share: Zeroizing<Vec<u8>>) -> Result<Rekeyed, Fault> {
        self.rekey(Method::PUT, UPDATE, Bytes::from_owner(share)).await
    }

    /// Gives a new share back.
    ///
    /// # Errors
    /// As [`Connection::rekey_status`].
    pub async fn rekey_verify(&mut self, share: Zeroizing<Vec<u8>>) -> Result<Rekeyed, Fault> {
        self.rekey(Method::PUT, VERIFY, Bytes::from_owner(share)).await
    }

    /// Has the server forget which new shares it has seen.
    ///
    /// # Errors
    /// As [`Connection::rekey_status`].
    pub async fn rekey_verify_anew(&mut self, nonce: &str) -> Result<Rekeyed, Fault> {
        self.rekey(Method::DELETE, VERIFY, named(nonce)).await
    }

    /// Ends the attempt of this name. Older servers end whichever there is: the caller has asked for its name.
    ///
    /// # Errors
    /// As [`Connection::rekey_status`].
    pub async fn rekey_cancel(&mut self, nonce: &str) -> Result<Rekeyed, Fault> {
        self.rekey(Method::DELETE, INIT, named(nonce)).await
    }

    async fn rekey(&mut self, method: Method, path: &'static str, body: Bytes) -> Result<Rekeyed, Fault> {
        let (status, body) = self.send(method, path, body, None).await?;
        read(status, &body)
    }
}

fn named(nonce: &str) -> Bytes {
    format!("{{\"nonce\":\"{nonce}\"}}").into()
}

fn read(status: StatusCode, body: &[u8]) -> Result<Rekeyed, Fault> {
    match status {
        StatusCode::NO_CONTENT => return Ok(Rekeyed::Going(Going::default())),
        StatusCode::OK => {}
        // Wrong shares are a fault of its own to the server.
        status if status.is_client_error() || status == StatusCode::INTERNAL_SERVER_ERROR => {
            return Ok(Rekeyed::Refused(status.as_u16()));
        }
        // One that stands by and does not reach the active one.
        status => return Err(strange(&format!("answers with status {}", status.as_u16()))),
    }
    let no_answer = || strange("answers something that is no answer to it");
    let answer: Body<'_> = serde_json::from_slice(body).map_err(|_| no_answer())?;
    if !answer.complete {
        let going = serde_json::from_slice(body).map_err(|_| no_answer())?;
        return Ok(Rekeyed::Going(going));
    }
    if answer.keys_base64.is_empty() {
        return Ok(Rekeyed::Complete);
    }
    let text = |text: Cow<'_, str>| KeyBytes::new(text.into_owned().into_bytes());
    let verification = answer.verification_nonce.into_owned();
    let sound = answer.keys_base64.iter().all(|share| !share.is_empty()) && is_uuid(&verification);
    let shares = answer.keys_base64.into_iter().map(text).collect();
    sound
        .then_some(Rekeyed::Answered(NewShares { shares, verification }))
        .ok_or_else(no_answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "2dbd10f1-8528-6246-09e7-82b25b8aba63";

    fn said(status: u16, body: &str) -> Result<Rekeyed, Fault> {
        read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn answers_are_read_for_what_they_are() {
        let going = format!(r#"{{"nonce":"{NONCE}","started":true,"t":2,"n":3,"progress":1,"required":3}}"#);
        let Rekeyed::Going(read) = said(200, &going).unwrap() else {
            panic!("{going}");
        };
        assert_eq!((read.name(), read.required), (Some(NONCE), 3));
        let answer = format!(
            r#"{{"complete":true,"keys":["0a"],"keys_base64":["Cg==","Cw=="],"verification_nonce":"{NONCE}"}}"#
        );
        let Rekeyed::Answered(read) = said(200, &answer).unwrap() else {
            panic!("{answer}");
        };
        assert_eq!(
            (read.shares[1].expose(), read.verification.as_str()),
            (&b"Cw=="[..], NONCE)
        );
        assert_eq!(format!("{read:?}"), "[redacted]");
        let verified = format!(r#"{{"complete":true,"nonce":"{NONCE}"}}"#);
        assert!(matches!(said(200, &verified), Ok(Rekeyed::Complete)));
        assert!(matches!(said(204, ""), Ok(Rekeyed::Going(_))));
        for status in [400, 403, 404, 405, 500] {
            assert!(matches!(said(status, "{}"), Ok(Rekeyed::Refused(is)) if is == status));
        }
        // Without a verification the old shares would be void already.
        for (status, body) in [
            (200, r#"{"complete":true,"keys_base64":["Cg=="]}"#),
            (200, "<html>"),
            (307, ""),
            (503, "{}"),
        ] {
            assert!(said(status, body).is_err(), "{status} {body}");
        }
    }
}
