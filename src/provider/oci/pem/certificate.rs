//! Certificates: what an instance principal sends of them, and the tenancy that they name.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use data_encoding::{BASE64, HEXLOWER, HEXUPPER};
use x509_cert::der::Decode;

use super::{MAX_BYTES, PemError, armour, colons};
use crate::seal::oci::is_ocid;

/// The beginnings of a subject attribute that names the tenancy, the better one first.
///
/// Source: `oracle/oci-go-sdk` `common/auth/utils.go` (`opc-tenant:`); Python `oci/auth/auth_utils.py` (both).
const TENANCY: [&[u8]; 2] = [b"opc-tenant:", b"opc-identity:"];

/// A certificate that was read, not verified: it is ours to show, not ours to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The DER bytes as standard base64 on one line: the PEM text without its armour, as the federation endpoint
    /// wants it.
    pub base64: String,
    /// The bytes.
    pub der: Vec<u8>,
    /// The last moment at which it is valid.
    pub not_after: SystemTime,
    /// The OCID of the tenancy that its subject names. It has the form of an OCID; no more is known of it.
    pub tenancy: Option<String>,
}

/// Reads the first certificate of a text.
pub fn certificate(pem: &[u8]) -> Result<Certificate, PemError> {
    all(pem)?.next().ok_or(PemError::NoCertificate)?
}

/// Reads all certificates of a text: a file of intermediates may hold more than one.
///
/// At least one is in the answer, in the order of the text; one that is damaged is an error.
pub fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, PemError> {
    let found = all(pem)?.collect::<Result<Vec<_>, _>>()?;
    if found.is_empty() {
        return Err(PemError::NoCertificate);
    }
    Ok(found)
}

/// SHA-256 of the DER bytes, lower-case, with colons: the key id `fed-x509-sha256` of `oracle/oci-go-sdk` v65.
pub fn sha256_fingerprint(der: &[u8]) -> String {
    colons(&HEXLOWER.encode(digest::digest(&digest::SHA256, der).as_ref()))
}

/// SHA-1 of the DER bytes, upper-case, with colons: the key id `fed-x509` of the Python SDK.
pub fn sha1_fingerprint(der: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der);
    colons(&HEXUPPER.encode(sum.as_ref()))
}

fn all(pem: &[u8]) -> Result<impl Iterator<Item = Result<Certificate, PemError>>, PemError> {
    if pem.len() > MAX_BYTES {
        return Err(PemError::TooLarge);
    }
    Ok(armour::blocks(pem)
        .filter(|block| block.label == b"CERTIFICATE")
        .map(|block| {
            block
                .body
                .and_then(armour::base64)
                .and_then(|der| read(&der))
                .ok_or(PemError::CertificateDamaged)
        }))
}

fn read(der: &[u8]) -> Option<Certificate> {
    let parsed = x509_cert::Certificate::from_der(der).ok()?;
    let content = parsed.tbs_certificate();
    let tenancy = TENANCY.iter().find_map(|prefix| {
        let mut attributes = content.subject().iter();
        attributes.find_map(|attribute| {
            // Every string type that is in use for such a text is ASCII here, and an OCID has no other characters.
            let ocid = attribute.value.value().strip_prefix(*prefix)?;
            std::str::from_utf8(ocid)
                .ok()
                .filter(|text| is_ocid(text))
                .map(str::to_owned)
        })
    });
    Some(Certificate {
        base64: BASE64.encode(der),
        der: der.to_vec(),
        not_after: UNIX_EPOCH.checked_add(content.validity().not_after.to_unix_duration())?,
        tenancy,
    })
}
