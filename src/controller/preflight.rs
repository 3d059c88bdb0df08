//! Proves, before a pod starts, that the identity of a seal can do what a server does with it: describe, encrypt, decrypt.

use std::collections::BTreeMap;

use crate::{
    api::{Reason, WrappedFormat},
    provider::{Description, Kms},
    seal::{
        Fault, KeyBytes,
        checks::key_allowed,
        model::{BOUND_NAMESPACE, Model, Seal},
        native,
        observed::NamespaceFacts,
    },
};

/// Describes the key and, for a seal that pods use themselves, wraps and opens a random value.
///
/// # Errors
/// What such a server would meet.
pub async fn look(
    kms: &Kms,
    model: &Model,
    seal: &Seal,
    facts: &NamespaceFacts,
    now: jiff::Timestamp,
) -> Result<Description, Fault> {
    let described = kms.describe().await;
    if !model.is_native(seal) {
        return described;
    }
    let mut description = described.map_err(|fault| {
        if fault.reason == Reason::AccessDenied {
            native::must_describe(seal)
        } else {
            fault
        }
    })?;
    // Before the key is given anything (security rule S20).
    key_allowed(&model.id.namespace, &description.key, facts)?;
    if description.fault.is_none() {
        prove(kms, model, seal).await?;
        // The description may be an older one of somebody else's; the proof is of now.
        description.at = now;
    }
    Ok(description)
}

async fn prove(kms: &Kms, model: &Model, seal: &Seal) -> Result<(), Fault> {
    let mut bytes = vec![0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| {
        Fault::transient(
            Reason::KmsUnavailable,
            "the system gave no random bytes; it is tried again",
        )
    })?;
    let value = KeyBytes::new(bytes);
    // The operator's own identity uses a tenant's key only for what is bound to the namespace (security rule S3).
    let (format, context) = if seal.cloud.is_operators() {
        let bound = (BOUND_NAMESPACE.to_owned(), model.id.namespace.clone());
        (WrappedFormat::Kms, BTreeMap::from([bound]))
    } else {
        (WrappedFormat::BlobInfo, BTreeMap::new())
    };
    let wrapped = kms.wrap(&value, format, &context).await?;
    let opened = kms.unwrap(format, &wrapped, &context).await?;
    if opened.key.same_as(&value) {
        Ok(())
    } else {
        Err(Fault::denied(
            Reason::CiphertextInvalid,
            "the KMS opened a random value as another one than it had wrapped; no server could trust this key, so use another",
        ))
    }
}
