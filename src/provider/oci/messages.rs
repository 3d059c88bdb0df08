//! What is said to a vault and what it answers: bodies, the texts in them, and what they mean. Pure.
//!
//! Source: `oracle/oci-go-sdk` `keymanagement`.

use std::{collections::BTreeMap, fmt};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize, de};
use zeroize::Zeroizing;

use super::error::{self, Failure, Operation};
use crate::{
    api::Reason,
    seal::{Ciphertext, Fault, oci::KeyOcid},
    wrapped::blob_info::{BlobInfo, KeyInfo, Sealed},
};

/// The largest plaintext that an AES key encrypts; the service's own limit.
pub(super) const MAX_PLAINTEXT: usize = 4096;

/// The longest ciphertext that is sent or taken. The service's are some hundred characters longer than the plaintext.
pub(super) const MAX_CIPHERTEXT: usize = 16 * 1024;

/// The SDK's documentation of `associatedData`: fewer characters than this, as JSON.
const MAX_CONTEXT: usize = 4096;

/// The body of decrypt.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Decrypt<'a> {
    pub(super) ciphertext: &'a str,
    pub(super) key_id: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) associated_data: &'a BTreeMap<String, String>,
}

/// What decrypt answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Decrypted {
    pub(super) plaintext: SecretText,
    pub(super) key_id: Option<String>,
}

/// The body of encrypt.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Encrypt<'a> {
    pub(super) key_id: &'a str,
    pub(super) plaintext: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) associated_data: &'a BTreeMap<String, String>,
}

/// What encrypt answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Encrypted {
    pub(super) ciphertext: String,
    pub(super) key_id: Option<String>,
    pub(super) key_version_id: Option<String>,
}

/// What get-key answers, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Key {
    pub(super) id: String,
    pub(super) current_key_version: Option<String>,
    pub(super) lifecycle_state: String,
    #[serde(rename = "keyShape")]
    pub(super) shape: Option<Shape>,
}

/// What kind of key it is.
#[derive(Deserialize)]
pub(super) struct Shape {
    pub(super) algorithm: Option<String>,
}

/// A body in a buffer that is wiped, with room for all of it: no copy of a plaintext is left behind by growth.
pub(super) fn body(operation: Operation, body: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(2 * (MAX_CIPHERTEXT + MAX_CONTEXT)));
    serde_json::to_writer(&mut *buffer, body).map_err(|_| garbage(operation))?;
    Ok(buffer)
}

/// Whether what is said to be a ciphertext is one, and does not hold what was to be encrypted.
pub(super) fn is_honest(text: &str, plain: &[u8]) -> bool {
    // A few bytes stand in any ciphertext by chance.
    let tells = plain.len() >= 8
        && ciphertext_bytes(text)
            .windows(plain.len())
            .any(|window| window == plain);
    (1..=MAX_CIPHERTEXT).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic())
        && text != BASE64.encode(plain)
        // What is kept must be sent as it came.
        && ciphertext_text(&ciphertext_bytes(text)) == text
        && !tells
}

/// Why the key cannot be used, if it cannot.
///
/// Source: `keymanagement/key.go` of the Go SDK for the states.
pub(super) fn state_fault(key: &KeyOcid, state: &str, algorithm: Option<&str>) -> Option<Fault> {
    let (reason, message) = match state {
        "ENABLED" | "UPDATING" | "BACKUP_IN_PROGRESS" => match algorithm {
            None | Some("AES") => return None,
            Some(_) => (
                Reason::KeyUnusable,
                format!("{key} is no AES key; a seal needs one: make it and name it"),
            ),
        },
        "DISABLED" | "DISABLING" => (
            Reason::KeyDisabled,
            format!(
                "the key {key} is disabled; enable it (oci kms management key enable --key-id {key} --endpoint …)"
            ),
        ),
        "PENDING_DELETION" | "SCHEDULING_DELETION" | "DELETING" => (
            Reason::KeyPendingDeletion,
            format!(
                "the key {key} is about to be deleted; cancel that now (oci kms management key cancel-deletion --key-id {key} \
                 --endpoint …), or everything wrapped under it alone is lost"
            ),
        ),
        "DELETED" => (
            Reason::KeyNotFound,
            format!("the key {key} is deleted; name another"),
        ),
        _ => (
            Reason::KeyUnusable,
            format!(
                "the key {key} is in no state in which it can be used; look at it (oci kms management key get --key-id {key} \
                 --endpoint …)"
            ),
        ),
    };
    Some(Fault::denied(reason, message))
}

pub(super) fn garbage(operation: Operation) -> Fault {
    error::transport(&Failure::Garbage, "the vault", operation.as_str())
}

pub(super) fn context_with_blob() -> Fault {
    Fault::invalid_spec(
        "a BlobInfo has no associatedData; take `context` out, or set format: kms if it is the KMS's own ciphertext",
    )
}

pub(super) fn check_context(context: &BTreeMap<String, String>) -> Result<(), Fault> {
    let length = serde_json::to_string(context).map_or(usize::MAX, |text| text.len());
    if length < MAX_CONTEXT {
        Ok(())
    } else {
        Err(Fault::invalid_spec(
            "the context is longer than the 4096 characters that OCI takes as associatedData; shorten it",
        ))
    }
}

/// OCI's ciphertext is base64 text. A copy is kept as what it decodes to; where that is itself such a text, somebody has
/// packed it once more (a Secret made with `armor: None` from OCI's answer), and it is sent as it is.
pub(super) fn ciphertext_text(bytes: &[u8]) -> String {
    let is_text = bytes.len() >= 16 && BASE64.decode(bytes).is_ok();
    match std::str::from_utf8(bytes) {
        Ok(text) if is_text => text.to_owned(),
        _ => BASE64.encode(bytes),
    }
}

/// The other way: what the text decodes to, or the text itself where it is no base64.
pub(super) fn ciphertext_bytes(text: &str) -> Vec<u8> {
    BASE64
        .decode(text.as_bytes())
        .unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// An envelope as the ocikms wrapper writes it: `text` is the data key as the vault encrypted it, `version` the OCID of the
/// key version that did.
pub(super) fn envelope(sealed: Sealed, text: String, version: String) -> Ciphertext {
    let blob = BlobInfo {
        ciphertext: sealed.ciphertext,
        iv: sealed.iv.to_vec(),
        key_info: Some(KeyInfo {
            // Never set by the ocikms wrapper, although it is an envelope.
            mechanism: 0,
            key_id: version,
            wrapped_key: text.into_bytes(),
        }),
    };
    Ciphertext::new(blob.encode())
}

/// The text of the data key in an envelope of OCI.
pub(super) fn wrapped_text(info: &KeyInfo) -> Option<&str> {
    let text = std::str::from_utf8(&info.wrapped_key).ok()?;
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())).then_some(text)
}

/// Text that is a key: wiped when dropped, never shown.
pub(super) struct SecretText(pub(super) Zeroizing<String>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = SecretText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            // Copied once into its own buffer; the answer's is wiped too.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretText, E> {
                Ok(SecretText(Zeroizing::new(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// Base64 into a buffer that is wiped.
pub(super) fn decoded(text: &SecretText) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.0.as_bytes();
    let mut plain = Zeroizing::new(vec![0; BASE64.decode_len(text.len()).ok()?]);
    let length = BASE64.decode_mut(text, &mut plain).ok()?;
    plain.truncate(length);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ciphertext_is_the_same_text_again() {
        for text in [
            "IXIAQwF5dQo=",
            "TU9DS09DSTFdLSWtRA0V8YmH3cYABuZZEs62aGjDwtAFg88XF9Yf4PH1aHgR0i8focTNx1pvR3NB",
        ] {
            assert_eq!(ciphertext_text(&ciphertext_bytes(text)), text);
            // The text itself in a Secret, with armor: None.
            if text.len() >= 16 {
                assert_eq!(ciphertext_text(text.as_bytes()), text);
            }
        }
    }

    #[test]
    fn a_ciphertext_that_holds_the_key_is_none() {
        let key = [7; 32];
        assert!(is_honest("IXIAQwF5dQo=", &key));
        assert!(
            is_honest(&BASE64.encode(&[1, 2, 3, 4]), &[3]),
            "a byte is in any ciphertext by chance"
        );
        for text in [
            "",
            "a b",
            &BASE64.encode(&key),
            &BASE64.encode(&[&[1, 2, 3][..], &key].concat()),
        ] {
            assert!(!is_honest(text, &key), "{text}");
        }
        assert!(!is_honest(&BASE64.encode(&[3]), &[3]));
    }

    #[test]
    fn every_state_of_a_key_is_told() {
        let key: KeyOcid = "ocid1.key.oc1.iad.v.k".parse().unwrap();
        let reason = |state: &str| state_fault(&key, state, Some("AES")).map(|fault| fault.reason);
        assert_eq!(reason("ENABLED"), None);
        assert_eq!(reason("UPDATING"), None);
        assert_eq!(reason("DISABLED"), Some(Reason::KeyDisabled));
        assert_eq!(reason("PENDING_DELETION"), Some(Reason::KeyPendingDeletion));
        assert_eq!(reason("DELETED"), Some(Reason::KeyNotFound));
        assert_eq!(reason("CREATING"), Some(Reason::KeyUnusable));
        assert_eq!(reason("<b>"), Some(Reason::KeyUnusable));
        assert_eq!(
            state_fault(&key, "ENABLED", Some("RSA")).unwrap().reason,
            Reason::KeyUnusable
        );
        assert_eq!(state_fault(&key, "ENABLED", None), None);
    }

    #[test]
    fn a_key_in_an_answer_is_never_shown() {
        let text: SecretText = serde_json::from_str(r#""aHVudGVyMg\u003d\u003d""#).unwrap();
        assert_eq!(format!("{text:?}"), "[redacted]");
        assert_eq!(decoded(&text).unwrap().as_slice(), b"hunter2");
    }
}
