//! BlobInfo, the message in which Vault, OpenBao and Boundary keep what a KMS wraps, and the AES-GCM envelope in it.
//!
//! Source: `hashicorp/go-kms-wrapping` v2, `github.com.hashicorp.go.kms.wrapping.v2.types.proto` (numbers and
//! types), `envelope.go` (envelope); `openbao/go-kms-wrapping` for the subset of fields that every reader knows.
//! The decoder is written by hand: the message has five fields that matter, and it meets hostile bytes.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use zeroize::Zeroizing;

use crate::{
    api::Reason,
    seal::{Fault, KeyBytes},
};

/// The largest message that is looked at. A key is at most a few KiB; sources are refused above 64 KiB anyway.
pub const MAX_BYTES: usize = 64 * 1024;

/// Bytes of the data key of an envelope that we write, and of every one that the awskms wrapper wrote.
pub const DATA_KEY_BYTES: usize = 32;

/// A wrapped value: what the wrappers read of it, and all that we write.
///
/// Plaintext fields that the message type has (7 of BlobInfo, 9 of KeyInfo) are skipped unread.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BlobInfo {
    /// Field 1: AES-GCM output, or the KMS's own ciphertext for mechanism 0 of awskms.
    pub ciphertext: Vec<u8>,
    /// Field 2: the nonce; empty when it stands in front of `ciphertext`.
    pub iv: Vec<u8>,
    /// Field 5. Absent and empty mean different things to readers.
    pub key_info: Option<KeyInfo>,
}

/// How the value was wrapped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KeyInfo {
    /// Field 1: awskms writes 1 for an envelope and wrote 0 for direct ciphertext; ocikms and aead leave it 0.
    pub mechanism: u64,
    /// Field 3: the key's ARN for awskms, the key version's OCID for ocikms.
    pub key_id: String,
    /// Field 5: the wrapped data key, raw bytes for awskms, base64 text for ocikms.
    pub wrapped_key: Vec<u8>,
}

impl fmt::Debug for BlobInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobInfo")
            .field("ciphertext", &format_args!("[{} bytes]", self.ciphertext.len()))
            .field("iv", &format_args!("[{} bytes]", self.iv.len()))
            .field("key_info", &self.key_info)
            .finish()
    }
}

impl fmt::Debug for KeyInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyInfo")
            .field("mechanism", &self.mechanism)
            .field("key_id", &format_args!("[{} bytes]", self.key_id.len()))
            .field("wrapped_key", &format_args!("[{} bytes]", self.wrapped_key.len()))
            .finish()
    }
}

impl BlobInfo {
    /// Reads a message: fields in any order, unknown ones skipped, the last of a repeated field wins and repeated
    /// `key_info` are merged, as proto3 says.
    ///
    /// # Errors
    /// `CiphertextInvalid` for what is no such message: truncated, groups, field number 0, more than [`MAX_BYTES`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > MAX_BYTES {
            return Err(malformed("it is larger than 64 KiB"));
        }
        if bytes.is_empty() {
            return Err(malformed("it is empty"));
        }
        let mut blob = Self::default();
        for field in Fields(bytes) {
            match field? {
                (1, Value::Bytes(value)) => value.clone_into(&mut blob.ciphertext),
                (2, Value::Bytes(value)) => value.clone_into(&mut blob.iv),
                (5, Value::Bytes(value)) => {
                    blob.key_info.get_or_insert_default().merge(value)?;
                }
                _ => {}
            }
        }
        Ok(blob)
    }

    /// Writes the message: fields 1, 2 and 5 only, ascending, which every version of every reader understands.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, 1, &self.ciphertext);
        put_bytes(&mut out, 2, &self.iv);
        if let Some(info) = &self.key_info {
            let mut inner = Vec::new();
            if info.mechanism != 0 {
                inner.push(1 << 3);
                put_varint(&mut inner, info.mechanism);
            }
            put_bytes(&mut inner, 3, info.key_id.as_bytes());
            put_bytes(&mut inner, 5, &info.wrapped_key);
            // An empty KeyInfo is written too: present and absent differ.
            out.push(5 << 3 | 2);
            put_varint(&mut out, inner.len() as u64);
            out.extend(inner);
        }
        out
    }

    /// Whether it has the form of what [`seal`] makes: a nonce apart from the payload, and room for a tag in that.
    pub fn is_sealed(&self) -> bool {
        self.iv.len() == NONCE_LEN && self.ciphertext.len() >= AES_256_GCM.tag_len()
    }

    /// The wrapping mechanism; an absent `key_info` counts as 0 (awskms `Decrypt`).
    pub fn mechanism(&self) -> u64 {
        self.key_info.as_ref().map_or(0, |info| info.mechanism)
    }
}

impl KeyInfo {
    fn merge(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for field in Fields(bytes) {
            match field? {
                (1, Value::Varint(value)) => self.mechanism = value,
                (3, Value::Bytes(value)) => {
                    let text = std::str::from_utf8(value).map_err(|_| no_message())?;
                    text.clone_into(&mut self.key_id);
                }
                (5, Value::Bytes(value)) => value.clone_into(&mut self.wrapped_key),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A sealed payload and the fresh data key that seals it; the caller has the KMS wrap that key.
#[derive(Debug)]
pub struct Sealed {
    /// The data key.
    pub data_key: KeyBytes,
    /// The nonce.
    pub iv: [u8; NONCE_LEN],
    /// The payload, encrypted, and the tag.
    pub ciphertext: Vec<u8>,
}

/// Seals `plaintext` (which may be empty) under a fresh random AES-256 key and nonce.
///
/// `aad` is bound locally and stored nowhere (`envelope.go`); empty is the same as none.
///
/// # Errors
/// `KMSUnavailable` if the system has no randomness, which does not happen on a healthy machine.
pub fn seal(plaintext: &[u8], aad: &[u8]) -> Result<Sealed, Fault> {
    let no_randomness = || {
        Fault::transient(
            Reason::KmsUnavailable,
            "the operating system gave no random bytes for a data key",
        )
    };
    let mut data_key = Zeroizing::new(vec![0; DATA_KEY_BYTES]);
    rand::fill(&mut data_key).map_err(|_| no_randomness())?;
    let mut iv = [0; NONCE_LEN];
    rand::fill(&mut iv).map_err(|_| no_randomness())?;
    let key = cipher(&data_key)?;
    // Room for the tag, so that the plaintext is never moved to another allocation.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + key.algorithm().tag_len()));
    buffer.extend_from_slice(plaintext);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::from(aad), &mut *buffer)
        .map_err(|_| malformed("it is too long to encrypt"))?;
    Ok(Sealed {
        data_key: KeyBytes::new(std::mem::take(&mut *data_key)),
        iv,
        ciphertext: std::mem::take(&mut *buffer),
    })
}

/// Opens an envelope: AES-GCM by the length of `data_key` (16, 24 or 32 bytes) over `iv || ciphertext`, whose first
/// 12 bytes are the nonce.
///
/// So it reads the split form, the one of OpenBao 2.5.0 (nonce in front of the ciphertext, `iv` empty; fixed in
/// 2.5.1, `openbao/openbao` GH-2505) and the plain `aead` wrapper's, which never fills `iv`.
///
/// # Errors
/// `CiphertextInvalid`: another key, other AAD, changed or too few bytes; AES-GCM does not tell which.
pub fn open(data_key: &KeyBytes, iv: &[u8], ciphertext: &[u8], aad: &[u8]) -> Result<KeyBytes, Fault> {
    let key = cipher(data_key.expose())?;
    let mut buffer = Zeroizing::new([iv, ciphertext].concat());
    let nonce = buffer
        .first_chunk::<NONCE_LEN>()
        .copied()
        .ok_or_else(|| malformed("its ciphertext is too short to hold a nonce"))?;
    let opened = key
        .open_within(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut buffer,
            NONCE_LEN..,
        )
        .map_err(|_| {
            malformed("its payload does not open: bytes were changed, or it belongs to another place")
        })?
        .len();
    buffer.truncate(opened);
    Ok(KeyBytes::new(std::mem::take(&mut *buffer)))
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, Fault> {
    let algorithm = match key.len() {
        16 => &AES_128_GCM,
        24 => &AES_192_GCM,
        32 => &AES_256_GCM,
        _ => return Err(malformed("what the KMS unwrapped from it is no AES key")),
    };
    UnboundKey::new(algorithm, key)
        .map(LessSafeKey::new)
        .map_err(|_| malformed("what the KMS unwrapped from it is no AES key"))
}

/// One sentence for all: which mistake it is would tell of the bytes of a Secret that somebody points at to find out.
fn no_message() -> Fault {
    malformed("its bytes do not read as one")
}

fn malformed(why: &str) -> Fault {
    Fault::invalid(
        Reason::CiphertextInvalid,
        format!(
            "the wrapped key is no usable BlobInfo: {why}; bring the value again as it was written \
             (format: kms is for the KMS's own ciphertext)"
        ),
    )
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Fixed-width numbers; no field that we know has one.
    Other,
}

/// The fields of one message, in order. Ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), Fault> {
        let tag = self.varint()?;
        let number = tag >> 3;
        if number == 0 || number >= 1 << 29 {
            return Err(no_message());
        }
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            // Groups (3, 4) are proto2 and nest without bound; no writer of this message uses them.
            _ => return Err(no_message()),
        };
        Ok((number, value))
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(no_message())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.0.split_at_checked(count).ok_or_else(no_message)?;
        self.0 = rest;
        Ok(head)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// Empty values are left out, as proto3 writers do.
fn put_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(number << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests;
