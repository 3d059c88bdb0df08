//! Private keys behind a pass phrase: PBES2 of RFC 8018, and what OpenSSL wrote before it.
//!
//! AES-CBC only. DES and scrypt are refused with the command that converts them: the one crypto library has neither
//! (DES behind a feature that nothing else needs), nor HMAC-SHA224 for PBKDF2.

use std::num::NonZeroU32;

use aws_lc_rs::{
    cipher::{AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey},
    iv::FixedLength,
    pbkdf2,
};
use data_encoding::HEXLOWER_PERMISSIVE;
use md5::{Digest, Md5};
use pkcs5::{
    AlgorithmIdentifierRef, EncryptionScheme,
    der::{Decode, Reader, SliceReader, asn1::OctetStringRef},
    pbes2,
};
use zeroize::Zeroizing;

use super::PemError;

/// The most rounds of PBKDF2 that a tenant's Secret may cost.
///
/// OpenSSL takes 2048 unless told otherwise, and RFC 8018 section 4.2 calls ten million appropriate for "especially
/// critical keys".
pub(super) const MAX_ITERATIONS: u32 = 2_000_000;

const BLOCK: usize = 16;

/// Opens an EncryptedPrivateKeyInfo (RFC 5958 section 3). The answer is PKCS#8, if the pass phrase was right.
pub(super) fn pkcs8(der: &[u8], pass_phrase: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let (algorithm, data) = SliceReader::new(der)
        .and_then(|mut reader| {
            reader.sequence(|members| {
                let algorithm = AlgorithmIdentifierRef::decode(members)?;
                let data = <&OctetStringRef>::decode(members)?;
                Ok::<_, pkcs5::der::Error>((algorithm, data.as_bytes()))
            })
        })
        .map_err(|_| PemError::Damaged)?;
    let Ok(EncryptionScheme::Pbes2(pbes2::Parameters {
        kdf: pbes2::Kdf::Pbkdf2(kdf),
        encryption,
    })) = EncryptionScheme::try_from(algorithm)
    else {
        return Err(PemError::EncryptionUnsupported);
    };
    let (size, iv) = match encryption {
        pbes2::EncryptionScheme::Aes128Cbc { iv } => (16, iv),
        pbes2::EncryptionScheme::Aes192Cbc { iv } => (24, iv),
        pbes2::EncryptionScheme::Aes256Cbc { iv } => (32, iv),
        _ => return Err(PemError::EncryptionUnsupported),
    };
    if kdf.key_length.is_some_and(|length| usize::from(length) != size) {
        return Err(PemError::EncryptionUnsupported);
    }
    let function = match kdf.prf {
        pbes2::Pbkdf2Prf::HmacWithSha1 => pbkdf2::PBKDF2_HMAC_SHA1,
        pbes2::Pbkdf2Prf::HmacWithSha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        pbes2::Pbkdf2Prf::HmacWithSha384 => pbkdf2::PBKDF2_HMAC_SHA384,
        pbes2::Pbkdf2Prf::HmacWithSha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        _ => return Err(PemError::EncryptionUnsupported),
    };
    let iterations = NonZeroU32::new(kdf.iteration_count).ok_or(PemError::EncryptionUnsupported)?;
    if iterations.get() > MAX_ITERATIONS {
        return Err(PemError::TooManyIterations);
    }
    whole_blocks(data)?;
    let pass_phrase = pass_phrase.ok_or(PemError::PassPhraseMissing)?;
    let mut key = Zeroizing::new([0; 32]);
    let (key, _) = key.split_at_mut(size);
    pbkdf2::derive(function, iterations, kdf.salt.as_bytes(), pass_phrase, key);
    decrypt(key, iv, Zeroizing::new(data.to_vec()))
}

/// Opens what `DEK-Info` describes. The answer is PKCS#1, if the pass phrase was right.
///
/// Source: OpenSSL's PEM_read_bio_PrivateKey(3): `DEK-Info: cipher,IV`, the key from EVP_BytesToKey(3) with MD5, one
/// round, and the first eight bytes of the vector as the salt.
pub(super) fn old(
    dek_info: &[u8],
    data: Zeroizing<Vec<u8>>,
    pass_phrase: Option<&[u8]>,
) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let mut parts = dek_info.splitn(2, |byte| *byte == b',');
    let (Some(cipher), Some(vector)) = (parts.next(), parts.next()) else {
        return Err(PemError::Damaged);
    };
    let size = match cipher.trim_ascii().to_ascii_uppercase().as_slice() {
        b"AES-128-CBC" => 16,
        b"AES-192-CBC" => 24,
        b"AES-256-CBC" => 32,
        _ => return Err(PemError::EncryptionUnsupported),
    };
    let iv: [u8; BLOCK] = HEXLOWER_PERMISSIVE
        .decode(vector.trim_ascii())
        .ok()
        .and_then(|iv| iv.try_into().ok())
        .ok_or(PemError::Damaged)?;
    whole_blocks(&data)?;
    let pass_phrase = pass_phrase.ok_or(PemError::PassPhraseMissing)?;
    let (salt, _) = iv.split_at(8);
    let mut key = Zeroizing::new([0; 32]);
    let (key, _) = key.split_at_mut(size);
    md5_key(pass_phrase, salt, key);
    decrypt(key, iv, data)
}

/// Each digest is of the one before it, the pass phrase and the salt; together they are the key.
fn md5_key(pass_phrase: &[u8], salt: &[u8], key: &mut [u8]) {
    let mut digest = Zeroizing::new([0; 16]);
    for (round, part) in key.chunks_mut(digest.len()).enumerate() {
        let mut hash = Md5::new();
        if round > 0 {
            hash.update(*digest);
        }
        hash.update(pass_phrase);
        hash.update(salt);
        hash.finalize_into((&mut *digest).into());
        part.copy_from_slice(digest.split_at(part.len()).0);
    }
}

/// No pass phrase opens a ciphertext of another length.
fn whole_blocks(data: &[u8]) -> Result<(), PemError> {
    if !data.is_empty() && data.len().is_multiple_of(BLOCK) {
        Ok(())
    } else {
        Err(PemError::Damaged)
    }
}

/// AES-CBC in place; a padding that is none means that the key is wrong.
fn decrypt(
    key: &[u8],
    iv: [u8; BLOCK],
    mut data: Zeroizing<Vec<u8>>,
) -> Result<Zeroizing<Vec<u8>>, PemError> {
    let algorithm = match key.len() {
        16 => &AES_128,
        24 => &AES_192,
        _ => &AES_256,
    };
    let length = UnboundCipherKey::new(algorithm, key)
        .and_then(PaddedBlockDecryptingKey::cbc_pkcs7)
        .and_then(|key| {
            let opened = key.decrypt(&mut data, DecryptionContext::Iv128(FixedLength::from(iv)))?;
            Ok(opened.len())
        })
        .map_err(|_| PemError::WrongPassPhrase)?;
    data.truncate(length);
    Ok(data)
}
