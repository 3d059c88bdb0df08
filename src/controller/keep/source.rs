//! Where keys come from that no KMS opens: randomness, and Secrets in the clear.

use std::collections::BTreeMap;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use zeroize::Zeroizing;

use crate::{
    api::{Encoding, Reason},
    kube_ext::{
        bounded,
        cluster::{entries, read_fault},
    },
    seal::{Fault, KeyBytes, model::MAX_SOURCE},
};

/// So many random bytes.
///
/// # Errors
/// The operating system gives none.
pub fn random(bytes: usize) -> Result<KeyBytes, Fault> {
    let mut key = Zeroizing::new(vec![0; bytes]);
    aws_lc_rs::rand::fill(&mut key).map_err(|_| {
        Fault::transient(
            Reason::Pending,
            "the operating system gives no random bytes; it is tried again",
        )
    })?;
    Ok(KeyBytes::new(std::mem::take(&mut *key)))
}

/// A key that lies in a Secret in the clear.
pub(super) async fn plain(
    client: &Client,
    namespace: &str,
    name: &str,
    entry: &str,
) -> Result<KeyBytes, Fault> {
    let mut found = read(client, namespace, name).await?;
    let bytes = found
        .remove(entry)
        .filter(|bytes| (1..=MAX_SOURCE).contains(&bytes.len()));
    let mut bytes = bytes.ok_or_else(|| {
        Fault::invalid(
            Reason::SourceMissing,
            format!("Secret {name} has no entry {entry:?} of 1 byte to 64 KiB; add it, or correct import"),
        )
    })?;
    Ok(KeyBytes::new(std::mem::take(&mut *bytes)))
}

/// What a Secret holds.
pub(super) async fn read(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<BTreeMap<String, Zeroizing<Vec<u8>>>, Fault> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = bounded(api.get_opt(name)).await;
    let found = found.map_err(|error| read_fault(&error, "get secrets", namespace, Reason::SourceMissing))?;
    found.map(entries).ok_or_else(|| {
        Fault::invalid(
            Reason::SourceMissing,
            format!("Secret {name} does not exist in this namespace; create it, or correct name"),
        )
    })
}

/// Takes back how an entry was written.
pub(super) fn decode(bytes: &[u8], encoding: Encoding) -> Option<KeyBytes> {
    let plain = match encoding {
        Encoding::Raw => Ok(bytes.to_vec()),
        Encoding::Base64 => BASE64.decode(bytes),
        Encoding::Base64Url => BASE64URL_NOPAD.decode(bytes),
        Encoding::Hex => HEXLOWER.decode(bytes),
    };
    plain.ok().map(KeyBytes::new)
}
