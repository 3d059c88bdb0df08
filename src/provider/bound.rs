//! Operator-made copies: envelopes that are tied to their place (security rule S2).
//!
//! Tied twice: the KMS opens the data key with the context of the place only, and the payload opens with its additional
//! data only. The first keeps a copy from being opened through the KMS elsewhere, the second holds whatever a KMS makes
//! of a context.

use std::collections::BTreeMap;

use crate::{
    api::Reason,
    seal::{Ciphertext, Fault, KeyBytes},
    wrapped::blob_info::{self, BlobInfo},
};

/// What ties an operator-made copy to its place (security rule S2).
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// What the KMS is told: AWS's encryption context, OCI's associatedData (fewer than 4096 characters as JSON).
    pub context: &'a BTreeMap<String, String>,
    /// The payload's additional data, which no KMS sees.
    pub aad: &'a [u8],
}

/// An operator-made copy and the key that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// A BlobInfo.
    pub ciphertext: Ciphertext,
    /// ARN or OCID of the key, as the KMS answered: what [`super::Kms::unwrap_bound`] wants to have recorded.
    pub key_id: String,
    /// What the KMS says of its key's version: id of AWS's key material, OCID of OCI's key version. `None` = it did not
    /// say, or could not be asked. AWS says it by its description of the key, so it may be that of up to an hour ago.
    pub key_version: Option<String>,
}

/// Who ties a ciphertext to something, and so what a refusal to open it must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tie {
    /// Nobody.
    None,
    /// The user, by `context`.
    Users,
    /// The operator, by [`Bound`].
    Operators,
}

impl Tie {
    pub(super) fn of_users(context: &BTreeMap<String, String>) -> Self {
        if context.is_empty() { Tie::None } else { Tie::Users }
    }
}

/// What every fault of a copy ends with: a copy may be the only one, so nothing is advised that would lose it.
pub(super) const PUT_BACK: &str = "put the store's Secret back as the operator wrote it";

/// The message of a refusal by the KMS. `service`: `the KMS`, `the vault`.
pub(super) fn refused(service: &str) -> String {
    format!(
        "the copy does not belong here: {service} does not open it with the binding of this place, so it was made for \
         another object, namespace or --binding-domain, or its bytes were changed ({service} does not say which); {PUT_BACK}"
    )
}

/// It is nothing that the operator writes.
pub(super) fn damaged() -> Fault {
    Fault::invalid(
        Reason::CiphertextInvalid,
        format!("the copy is none that the operator makes: its bytes were changed; {PUT_BACK}"),
    )
}

/// Reads a copy, in the one form that is written.
pub(super) fn read(ciphertext: &Ciphertext) -> Result<BlobInfo, Fault> {
    BlobInfo::decode(ciphertext.bytes())
        .ok()
        .filter(BlobInfo::is_sealed)
        .ok_or_else(damaged)
}

/// Opens the payload of a copy whose data key the KMS opened.
pub(super) fn open(data_key: &KeyBytes, copy: &BlobInfo, aad: &[u8]) -> Result<KeyBytes, Fault> {
    if data_key.expose().len() != blob_info::DATA_KEY_BYTES {
        return Err(damaged());
    }
    // With a key and a nonce of the right size, nothing is left to fail but the tag.
    blob_info::open(data_key, &copy.iv, &copy.ciphertext, aad).map_err(|_| {
        Fault::invalid(
            Reason::ContextMismatch,
            format!(
                "the copy does not belong here: its data key opens, but its payload was made for another object, namespace \
                 or --binding-domain, or was changed; {PUT_BACK}"
            ),
        )
    })
}
