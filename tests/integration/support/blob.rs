//! go-kms-wrapping's BlobInfo, written by hand from its proto file: independent of the operator's own reader.

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or_default() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or_default());
}

fn bytes_field(number: u64, bytes: &[u8], out: &mut Vec<u8>) {
    varint(number << 3 | 2, out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// A BlobInfo of these parts; an empty `iv` and mechanism 0 are left out, as proto3 does.
pub fn blob_info(ciphertext: &[u8], iv: &[u8], mechanism: u64, key_id: &str, wrapped_key: &[u8]) -> Vec<u8> {
    let mut info = Vec::new();
    if mechanism != 0 {
        varint(1 << 3, &mut info);
        varint(mechanism, &mut info);
    }
    bytes_field(3, key_id.as_bytes(), &mut info);
    if !wrapped_key.is_empty() {
        bytes_field(5, wrapped_key, &mut info);
    }
    let mut out = Vec::new();
    bytes_field(1, ciphertext, &mut out);
    if !iv.is_empty() {
        bytes_field(2, iv, &mut out);
    }
    bytes_field(5, &info, &mut out);
    out
}

/// A BlobInfo without `key_info`: direct KMS ciphertext, as the oldest versions wrote it.
pub fn blob_info_without_key_info(ciphertext: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    bytes_field(1, ciphertext, &mut out);
    out
}

/// An envelope as the `awskms` wrapper makes it: plaintext under the data key, the data key already wrapped.
pub fn envelope(plaintext: &[u8], data_key: &[u8; 32], key_id: &str, wrapped_key: &[u8]) -> Vec<u8> {
    bound_envelope(plaintext, data_key, key_id, wrapped_key, &[])
}

/// The same with additional data, as the operator ties its own copies to their place.
pub fn bound_envelope(
    plaintext: &[u8],
    data_key: &[u8; 32],
    key_id: &str,
    wrapped_key: &[u8],
    aad: &[u8],
) -> Vec<u8> {
    let (sealed, nonce) = sealed(plaintext, data_key, aad);
    blob_info(&sealed, &nonce, 1, key_id, wrapped_key)
}

/// An envelope as the `ocikms` wrapper makes it: no mechanism, the ciphertext's text as it came, and the version that
/// management called current.
pub fn ocikms_envelope(
    plaintext: &[u8],
    data_key: &[u8; 32],
    key_version: &str,
    ciphertext: &str,
) -> Vec<u8> {
    let (sealed, nonce) = sealed(plaintext, data_key, &[]);
    blob_info(&sealed, &nonce, 0, key_version, ciphertext.as_bytes())
}

fn sealed(plaintext: &[u8], data_key: &[u8; 32], aad: &[u8]) -> (Vec<u8>, [u8; 12]) {
    use aws_lc_rs::{
        aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
        rand,
    };
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).unwrap();
    let mut sealed = plaintext.to_vec();
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, data_key).unwrap())
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), &mut sealed)
        .unwrap();
    (sealed, nonce)
}
