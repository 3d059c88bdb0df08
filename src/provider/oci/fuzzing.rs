//! Any bytes through what reads OCI's answers, and the files that users have of it. No part of the product.

use std::time::SystemTime;

use super::{
    config_file,
    error::{self, Asked, Failure, Operation, Refusal, Subject},
    instance_principal::{Issued, RegionInfo},
    messages::{self, Decrypted, Encrypted, Key},
    pem, session, workload_identity,
};
use crate::{fuzzing::sane, provider::bound::Tie, seal::oci::KeyOcid, wrapped::blob_info::BlobInfo};

const KEY: &str =
    "ocid1.key.oc1.iad.b5r7cu2xaaeuk.abuwcljsmk6dqlgkzqsfrprkbpuvjm2mwsgmnpr3rtbjg6iqn4q6zbjjlzkq";

/// A configuration file.
pub(crate) fn config_file(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        for name in [None, Some("DEFAULT"), Some("other")] {
            if let Err(error) = config_file::profile(text, name) {
                assert!(error.to_string().len() < 4096, "a long message: {error}");
            }
        }
    }
}

/// A private key or certificates.
pub(crate) fn pem(data: &[u8]) {
    for pass_phrase in [None, Some(&b"correct horse 1"[..])] {
        if let Ok(key) = pem::private_key(data, pass_phrase) {
            assert!(pem::fingerprint(&key).is_some());
        }
    }
    if let Ok(certificates) = pem::certificates(data) {
        assert!(!certificates.is_empty());
    }
}

/// What federation, OKE and the metadata service answer, and the tokens in it.
pub(crate) fn federation(data: &[u8]) {
    let _ = serde_json::from_slice::<Issued>(data).map(|issued| session::claims(&issued.token).is_some());
    let _ = serde_json::from_slice::<RegionInfo>(data).is_ok();
    let _ = workload_identity::session_token(data).map(|token| session::claims(&token).is_some());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = session::claims(text).is_some();
    }
    refused(data, |failure| {
        error::federation(failure, "the federation endpoint", "check it")
    });
}

fn refused(data: &[u8], told: impl Fn(&Failure) -> crate::seal::Fault) {
    for status in [400, 401, 404, 409, 429, 500] {
        let refusal = Refusal {
            status,
            code: error::code(data),
            ..Refusal::default()
        };
        assert!(refusal.code.as_ref().is_none_or(|code| code.len() <= 64));
        sane(&told(&Failure::Refused(refusal)));
    }
}

/// What a vault answers.
pub(crate) fn kms(data: &[u8]) {
    if let Ok(answer) = serde_json::from_slice::<Decrypted>(data) {
        let plain = messages::decoded(&answer.plaintext);
        assert!(plain.is_none_or(|plain| plain.len() <= data.len()));
        let _ = answer.key_id;
    }
    if let Ok(answer) = serde_json::from_slice::<Encrypted>(data) {
        let _ = messages::is_honest(&answer.ciphertext, b"0123456789abcdef");
        let bytes = messages::ciphertext_bytes(&answer.ciphertext);
        if messages::is_honest(&answer.ciphertext, b"0123456789abcdef") {
            assert_eq!(messages::ciphertext_text(&bytes), answer.ciphertext);
        }
    }
    let key: Option<KeyOcid> = KEY.parse().ok();
    if let (Some(key), Ok(answer)) = (&key, serde_json::from_slice::<Key>(data)) {
        let algorithm = answer.shape.as_ref().and_then(|shape| shape.algorithm.as_deref());
        if let Some(fault) = messages::state_fault(key, &answer.lifecycle_state, algorithm) {
            sane(&fault);
        }
        let _ = answer.id.parse::<KeyOcid>().is_ok();
    }
    if let Ok(blob) = BlobInfo::decode(data) {
        let _ = blob.key_info.as_ref().and_then(messages::wrapped_text);
    }
    for operation in [Operation::Decrypt, Operation::Encrypt, Operation::GetKey] {
        for tie in [Tie::None, Tie::Users, Tie::Operators] {
            let asked = Asked {
                operation,
                key: KEY,
                tie,
                subject: &Subject::Instance,
            };
            refused(data, |failure| error::kms(&asked, failure));
        }
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = crate::provider::wire::hint(text, SystemTime::UNIX_EPOCH);
        let _ = crate::provider::wire::http_date(text);
    }
}
