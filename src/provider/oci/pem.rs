//! Private keys as people and metadata services hold them: PEM text of every kind that OpenSSL and OCI's console write.
//!
//! Source: RFC 7468 (armour), RFC 5958 (PKCS#8), RFC 8017 A.1 (PKCS#1), RFC 8018 (PBES2); OpenSSL's
//! PEM_read_bio_PrivateKey(3), section "PEM ENCRYPTION FORMAT", for what came before PKCS#8. Every buffer that holds
//! key bytes has its size from the start and is wiped when dropped.

mod armour;
mod certificate;
mod encrypted;
#[cfg(test)]
mod tests;

use aws_lc_rs::{encoding::AsDer, rsa::KeyPair, signature::KeyPair as _};
use data_encoding::HEXLOWER;
use md5::{Digest, Md5};
use pkcs5::der::{
    Decode, Header, Reader, SliceReader, Tag, Tagged,
    asn1::{AnyRef, ObjectIdentifier},
};

pub use certificate::{Certificate, certificate, certificates, sha1_fingerprint, sha256_fingerprint};

/// The largest text that is looked at. A key of 8192 bits is less than 7 KiB.
pub const MAX_BYTES: usize = 64 * 1024;

/// `rsaEncryption`, RFC 8017 appendix A.1.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// Why a text gives no key or certificate. Nothing of the text is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// More than [`MAX_BYTES`].
    #[error("the text is larger than 64 KiB; give the PEM text only")]
    TooLarge,
    /// No block whose label ends with `PRIVATE KEY`.
    #[error(
        "there is no private key in the text; give the whole PEM file, which starts with \
         -----BEGIN PRIVATE KEY----- or -----BEGIN RSA PRIVATE KEY-----"
    )]
    NoPrivateKey,
    /// Encrypted, and there is no pass phrase or an empty one.
    #[error(
        "the private key is encrypted and there is no pass phrase; add entry pass_phrase, or decrypt the key with \
         openssl pkcs8 -topk8 -nocrypt -in key.pem -out new.pem"
    )]
    PassPhraseMissing,
    /// What the pass phrase decrypts is no private key.
    #[error("the pass phrase does not open the private key; correct entry pass_phrase")]
    WrongPassPhrase,
    /// Another cipher, key derivation or parameters than are read here.
    #[error(
        "the private key is encrypted in a way that is not read here (PBKDF2 with AES-CBC is); encrypt it anew with \
         openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -in key.pem -out new.pem"
    )]
    EncryptionUnsupported,
    /// More than two million rounds of PBKDF2.
    #[error(
        "opening the private key takes more than 2 million rounds of PBKDF2; encrypt it anew with \
         openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -iter 600000 -in key.pem -out new.pem"
    )]
    TooManyIterations,
    /// A key of another algorithm.
    #[error(
        "the private key is no RSA key, and OCI signs with RSA only; make one with \
         openssl genrsa -out key.pem 2048, and give OCI its public half"
    )]
    NotRsa,
    /// An RSA modulus outside of 2048 to 8192 bits.
    #[error(
        "the RSA key has fewer than 2048 or more than 8192 bits; make one with \
         openssl genrsa -out key.pem 2048, and give OCI its public half"
    )]
    KeySize,
    /// The form that `ssh-keygen` writes.
    #[error(
        "the private key has the form of OpenSSH; convert a copy of it with ssh-keygen -p -m PEM -f copy.pem"
    )]
    OpenSsh,
    /// A private key that is cut off, or whose bytes are no key.
    #[error(
        "the private key is damaged; copy the whole PEM text again, with its lines -----BEGIN and -----END, and \
         check it with openssl pkey -in key.pem -noout -check"
    )]
    Damaged,
    /// No whole block `CERTIFICATE`.
    #[error(
        "there is no certificate in the text; give the whole PEM file, which starts with -----BEGIN CERTIFICATE-----"
    )]
    NoCertificate,
    /// A certificate that is cut off, or whose bytes are no certificate.
    #[error(
        "the certificate is damaged; copy the whole PEM text again, with its lines -----BEGIN and -----END, and \
         check it with openssl x509 -in cert.pem -noout -text"
    )]
    CertificateDamaged,
}

/// Reads the first private key of a text.
///
/// Text around the block is skipped: OCI's console writes a line `OCI_API_KEY` after it. A pass phrase that nothing
/// needs is ignored. Up to two million rounds of PBKDF2 are worked off here, which takes seconds: not for a thread
/// that others wait for.
pub fn private_key(text: &[u8], pass_phrase: Option<&[u8]>) -> Result<KeyPair, PemError> {
    if text.len() > MAX_BYTES {
        return Err(PemError::TooLarge);
    }
    let block = armour::blocks(text)
        .find(|block| block.label.ends_with(b"PRIVATE KEY"))
        .ok_or(PemError::NoPrivateKey)?;
    let body = block.body.ok_or(PemError::Damaged)?;
    let pkcs8 = match block.label {
        b"PRIVATE KEY" | b"RSA PRIVATE KEY" => false,
        b"ENCRYPTED PRIVATE KEY" => true,
        b"OPENSSH PRIVATE KEY" => return Err(PemError::OpenSsh),
        _ => return Err(PemError::NotRsa),
    };
    let (headers, body) = armour::headers(body);
    let bytes = armour::base64(body).ok_or(PemError::Damaged)?;
    // OpenSSL refuses an empty pass phrase, so an empty entry of a Secret means that there is none.
    let pass_phrase = pass_phrase.filter(|phrase| !phrase.is_empty());
    let opened = if pkcs8 {
        encrypted::pkcs8(&bytes, pass_phrase)?
    } else if headers.encrypted {
        encrypted::old(headers.dek_info, bytes, pass_phrase)?
    } else {
        return rsa(&bytes);
    };
    rsa(&opened).map_err(|error| match error {
        // One wrong pass phrase in 256 decrypts to something that has a padding.
        PemError::Damaged => PemError::WrongPassPhrase,
        other => other,
    })
}

/// The fingerprint by which OCI names an API key: MD5 of the DER SubjectPublicKeyInfo, lower-case, with colons.
///
/// `None` when the library cannot write the public key, which no key that [`private_key`] read makes happen.
///
/// Source: docs.oracle.com, "Required Keys and OCIDs": `openssl rsa -pubout -outform DER -in key.pem | openssl md5 -c`.
pub fn fingerprint(key: &KeyPair) -> Option<String> {
    let der = key.public_key().as_der().ok()?;
    Some(colons(&HEXLOWER.encode(&Md5::digest(der.as_ref()))))
}

/// Sets a colon after every second character.
fn colons(hex: &str) -> String {
    let mut out = String::with_capacity(hex.len() * 3 / 2);
    for (at, c) in hex.chars().enumerate() {
        if at > 0 && at % 2 == 0 {
            out.push(':');
        }
        out.push(c);
    }
    out
}

/// Reads PKCS#8 or PKCS#1, whichever the bytes are: labels are wrong more often than bytes.
fn rsa(der: &[u8]) -> Result<KeyPair, PemError> {
    let [second, third] = members(der).ok_or(PemError::Damaged)?;
    match second.tag() {
        // PKCS#1: version, modulus, public exponent, ...
        Tag::Integer => {
            fits(second)?;
            KeyPair::from_der(der)
        }
        // PKCS#8: version, algorithm, a string that holds PKCS#1
        Tag::Sequence => {
            let mut algorithm = SliceReader::new(second.value()).map_err(|_| PemError::Damaged)?;
            if ObjectIdentifier::decode(&mut algorithm).map_err(|_| PemError::Damaged)? != RSA {
                return Err(PemError::NotRsa);
            }
            let [modulus, _] = members(third.value()).ok_or(PemError::Damaged)?;
            fits(modulus)?;
            KeyPair::from_pkcs8(der)
        }
        // SEC 1: version, a string, ...
        Tag::OctetString => return Err(PemError::NotRsa),
        _ => return Err(PemError::Damaged),
    }
    .map_err(|_| PemError::Damaged)
}

/// The second and third member of a sequence that starts with a version.
fn members(der: &[u8]) -> Option<[AnyRef<'_>; 2]> {
    let mut reader = SliceReader::new(der).ok()?;
    if Header::decode(&mut reader).ok()?.tag() != Tag::Sequence || reader.peek_byte()? != 2 {
        return None;
    }
    let mut next = || AnyRef::decode(&mut reader).ok();
    next()?;
    Some([next()?, next()?])
}

/// Whether a modulus has 2048 to 8192 bits, so that the library's refusal of others needs no guess at its reason.
fn fits(modulus: AnyRef<'_>) -> Result<(), PemError> {
    let zeros = modulus.value().iter().take_while(|byte| **byte == 0).count();
    let bits = match modulus.value().get(zeros) {
        Some(first) => (modulus.value().len() - zeros) * 8 - first.leading_zeros() as usize,
        None => 0,
    };
    if (2048..=8192).contains(&bits) {
        Ok(())
    } else {
        Err(PemError::KeySize)
    }
}
