//! What bank-vaults calls what it keeps, and how its values are told apart. Pure.
//!
//! Source: `bank-vaults/bank-vaults` v1.33.1, `internal/vault/operator_client.go` (names), `pkg/kv/s3/s3.go`, `pkg/kv/oci/oci.go`
//! (prefixes), `pkg/kv/awskms/awskms.go`, `pkg/kv/ocikms/ocikms.go` (values).

use std::fmt;

use data_encoding::BASE64;

/// The most shares that Shamir's scheme has here.
const MOST_SHARES: u32 = 255;

/// What base64 text in the clear decodes to at most: a share of 32 bytes in hexadecimal digits, read as base64. A ciphertext
/// has more: the text of a share or token, a nonce of 12 bytes and a tag of 16.
const MOST_CLEAR: usize = 48;

/// One of the things that bank-vaults keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    /// `vault-unseal-N`.
    Unseal(u32),
    /// `vault-recovery-N`.
    Recovery(u32),
    /// `vault-root`.
    Root,
}

impl Item {
    /// Reads a name; what stands before it is the prefix that bank-vaults was given.
    pub(super) fn read(name: &str) -> Option<(&str, Self)> {
        if let Some(prefix) = name.strip_suffix("vault-root") {
            return Some((prefix, Item::Root));
        }
        let (head, digits) = name.rsplit_once('-')?;
        let plain = !digits.is_empty() && (digits == "0" || !digits.starts_with('0'));
        let all_digits = digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u32 = (plain && all_digits).then(|| digits.parse().ok())??;
        if number >= MOST_SHARES {
            return None;
        }
        head.strip_suffix("vault-unseal")
            .map(|prefix| (prefix, Item::Unseal(number)))
            .or_else(|| {
                head.strip_suffix("vault-recovery")
                    .map(|prefix| (prefix, Item::Recovery(number)))
            })
    }

    /// The purpose of the key that it becomes.
    pub(super) fn purpose(self) -> &'static str {
        match self {
            Item::Unseal(_) => "unseal-share",
            Item::Recovery(_) => "recovery-share",
            Item::Root => "root-token",
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::Unseal(number) => write!(f, "vault-unseal-{number}"),
            Item::Recovery(number) => write!(f, "vault-recovery-{number}"),
            Item::Root => write!(f, "vault-root"),
        }
    }
}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// AWS KMS's ciphertext as it is.
    Aws(Vec<u8>),
    /// OCI KMS's ciphertext, which is text.
    Oci(String),
    /// No ciphertext: it lies in the clear. Its bytes go nowhere.
    Clear,
}

impl Value {
    /// Tells what a value is by its form: AWS's ciphertext is binary, OCI's is base64, and shares and tokens are short text.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let text = bytes.trim_ascii();
        if text.is_empty() || text.iter().any(|byte| !(b' '..=b'~').contains(byte)) {
            return Value::Aws(bytes.to_vec());
        }
        let hexadecimal = text.iter().all(u8::is_ascii_hexdigit);
        match BASE64.decode(text) {
            Ok(decoded) if !hexadecimal && decoded.len() > MOST_CLEAR => {
                Value::Oci(String::from_utf8_lossy(text).into_owned())
            }
            _ => Value::Clear,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_whatever_prefix() {
        for (name, prefix, item) in [
            ("vault-unseal-0", "", Item::Unseal(0)),
            ("prod/vault-unseal-10", "prod/", Item::Unseal(10)),
            ("prod-vault-recovery-2", "prod-", Item::Recovery(2)),
            ("/vault-root", "/", Item::Root),
        ] {
            assert_eq!(Item::read(name), Some((prefix, item)), "{name}");
            assert!(name.ends_with(&item.to_string()));
        }
        for other in [
            "vault-test",
            "vault-unseal-",
            "vault-unseal-01",
            "vault-unseal-+1",
            "vault-unseal-255",
            "vault-unseal-0.bak",
            "vault-unseal",
            "vault-rooted",
            "x",
        ] {
            assert_eq!(Item::read(other), None, "{other}");
        }
    }

    #[test]
    fn values_are_told_apart_by_their_form() {
        let binary: Vec<u8> = (0..150).collect();
        assert_eq!(Value::read(&binary), Value::Aws(binary.clone()));
        let text = BASE64.encode(&binary);
        let line = format!("{text}\n");
        assert_eq!(Value::read(line.as_bytes()), Value::Oci(text));
        for clear in [
            "ab".repeat(33),
            "ab".repeat(64),
            "0f".repeat(32),
            BASE64.encode(&[7; 33]),
            "hvs.CAESIJ0sT2J0cm9vdHRva2VuaXNsb25nZXJ0aGFudGhhdGFuZGhhc2Fkb3RpbmlzdGFydGluZ2F0cG9zaXRpb24z"
                .into(),
            "s.1234567890abcdef".into(),
        ] {
            assert_eq!(Value::read(clear.as_bytes()), Value::Clear, "{clear}");
        }
    }
}
