//! What a server answers when it is initialised: read without leaving copies behind.

use std::{borrow::Cow, fmt};

use serde::Deserialize;

use crate::seal::KeyBytes;

/// Shares, recovery keys and the root token, each as the text that the server printed.
pub struct Answered {
    /// Shares of the unseal key, or of the recovery key, in the server's order.
    pub shares: Vec<KeyBytes>,
    /// The root token.
    pub token: KeyBytes,
}

impl fmt::Debug for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// As `sys/init` answers (Vault API docs `system/init`).
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    keys_base64: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    recovery_keys_base64: Vec<Cow<'a, str>>,
    #[serde(borrow)]
    root_token: Cow<'a, str>,
}

impl Answered {
    /// Reads the answer of a server that was asked for these shares; `None` = it is none.
    pub fn read(body: &[u8], native: bool) -> Option<Self> {
        let body: Body<'_> = serde_json::from_slice(body).ok()?;
        let shares = if native {
            body.recovery_keys_base64
        } else {
            body.keys_base64
        };
        let text = |text: Cow<'_, str>| KeyBytes::new(text.into_owned().into_bytes());
        let sound = !shares.is_empty() && shares.iter().all(|share| !share.is_empty());
        sound.then(|| Self {
            shares: shares.into_iter().map(text).collect(),
            token: text(body.root_token),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_both_seals_are_read_and_others_are_not() {
        let shamir = br#"{"keys":["0a"],"keys_base64":["Cg==","Cw=="],"root_token":"hvs.x","extra":{}}"#;
        let read = Answered::read(shamir, false).unwrap();
        assert_eq!(read.shares[1].expose(), b"Cw==");
        assert_eq!((read.shares.len(), read.token.expose()), (2, &b"hvs.x"[..]));
        assert_eq!(format!("{read:?}"), "[redacted]");
        assert!(Answered::read(shamir, true).is_none());
        let native = br#"{"keys":[],"keys_base64":[],"recovery_keys":["0a"],"recovery_keys_base64":["Cg=="],"root_token":"s.x"}"#;
        assert_eq!(Answered::read(native, true).unwrap().shares[0].expose(), b"Cg==");
        for other in [&b"{}"[..], b"", b"<html>", br#"{"errors":["x"]}"#] {
            assert!(Answered::read(other, false).is_none());
        }
    }
}
