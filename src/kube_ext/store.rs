//! The Secret in which a wrapped store lies: read uncached, written with preconditions, read back.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64;
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Preconditions},
    client::Body,
};
use serde_json::{Value, json};

use super::{FIELD_MANAGER, bounded, cluster::read_fault, facts, names, write};
use crate::{
    api::Reason,
    seal::{
        Ciphertext, Fault,
        observed::SecretFacts,
        store::{HEADER, Header, Revision, SECRET_TYPE, StoreFacts, read},
    },
};

/// What is changed in a store.
#[derive(Debug)]
pub struct Change {
    /// The state that it was decided on; `None` = there is none yet.
    pub base: Option<Revision>,
    /// The new header, as JSON.
    pub header: Vec<u8>,
    /// Entries that are new or replaced.
    pub put: BTreeMap<String, Ciphertext>,
    /// Entries that go.
    pub remove: BTreeSet<String>,
}

impl Change {
    /// With the header that the store is to have.
    ///
    /// # Errors
    /// `StoreCorrupt`: the header cannot be written as JSON.
    pub fn new(
        base: Option<Revision>,
        header: &Header,
        put: BTreeMap<String, Ciphertext>,
        remove: BTreeSet<String>,
    ) -> Result<Self, Fault> {
        let header = serde_json::to_vec(header)
            .map_err(|_| Fault::invalid(Reason::StoreCorrupt, "the header cannot be written"))?;
        Ok(Self {
            base,
            header,
            put,
            remove,
        })
    }
}

/// Reads the store of that name, and the facts of the Secret if there is one.
///
/// # Errors
/// A refused read names the missing right; a cluster that does not answer is transient.
pub async fn find(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<(StoreFacts, Option<SecretFacts>), Fault> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = bounded(api.get_opt(name)).await;
    let found =
        found.map_err(|error| read_fault(&error, "get secrets", namespace, Reason::DeliveryFailed))?;
    let Some(secret) = found else {
        return Ok((StoreFacts::Absent, None));
    };
    let known = facts::secret(&secret.metadata);
    if secret.type_.as_deref() != Some(SECRET_TYPE) {
        return Ok((StoreFacts::NotOwned, Some(known)));
    }
    let revision = Revision {
        uid: secret.uid().unwrap_or_default(),
        resource_version: secret.resource_version().unwrap_or_default(),
    };
    let data = secret.data.unwrap_or_default();
    let data = data.into_iter().map(|(name, bytes)| (name, bytes.0)).collect();
    Ok((read(revision, data), Some(known)))
}

/// Writes a change over the very state that it was decided on, reads it back and compares. Only what this returns may be
/// used.
///
/// # Errors
/// `StoreNotOwned` is left to the next look; a conflict and a cluster that does not answer are transient; 403 names the
/// missing right.
pub async fn save(
    client: &Client,
    namespace: &str,
    name: &str,
    change: &Change,
) -> Result<(StoreFacts, Option<SecretFacts>), Fault> {
    let mut data = serde_json::Map::new();
    data.insert(HEADER.to_owned(), json!(BASE64.encode(&change.header)));
    for (item, bytes) in &change.put {
        data.insert(item.clone(), json!(BASE64.encode(bytes.bytes())));
    }
    let mut metadata = json!({"name": name, "namespace": namespace});
    let collection = format!("/api/v1/namespaces/{namespace}/secrets");
    let (method, uri, content_type) = match &change.base {
        None => {
            metadata["labels"] = json!({names::MANAGED_BY: FIELD_MANAGER});
            (
                Method::POST,
                format!("{collection}?fieldManager={FIELD_MANAGER}"),
                "application/json",
            )
        }
        Some(base) => {
            for item in &change.remove {
                data.insert(item.clone(), Value::Null);
            }
            // A patch that names a resourceVersion is refused when the object has another.
            metadata["uid"] = json!(base.uid);
            metadata["resourceVersion"] = json!(base.resource_version);
            (
                Method::PATCH,
                format!("{collection}/{name}?fieldManager={FIELD_MANAGER}"),
                "application/merge-patch+json",
            )
        }
    };
    let mut body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data});
    if change.base.is_none() {
        body["type"] = json!(SECRET_TYPE);
    }
    write::send(
        client,
        method,
        &uri,
        content_type,
        Body::from(body.to_string().into_bytes()),
    )
    .await
    .map_err(|error| save_fault(&error, namespace, name))?;
    let (facts, known) = find(client, namespace, name).await?;
    let StoreFacts::Found(store) = &facts else {
        return Err(not_read_back(name));
    };
    let same_header = serde_json::to_vec(&store.header).is_ok_and(|header| header == change.header);
    let same_items = change
        .put
        .iter()
        .all(|(item, bytes)| store.items.get(item) == Some(bytes));
    if same_header && same_items {
        Ok((facts, known))
    } else {
        Err(not_read_back(name))
    }
}

/// Deletes a store, if it still is the one that was seen.
///
/// # Errors
/// What kept the apiserver from it.
pub async fn delete(client: &Client, namespace: &str, name: &str) -> Result<(), Fault> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = bounded(api.get_opt(name)).await;
    let found =
        found.map_err(|error| read_fault(&error, "get secrets", namespace, Reason::DeliveryFailed))?;
    let Some(secret) = found.filter(|secret| secret.type_.as_deref() == Some(SECRET_TYPE)) else {
        return Ok(());
    };
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: secret.uid(),
            resource_version: secret.resource_version(),
        }),
        ..DeleteParams::default()
    };
    match bounded(api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND.as_u16() => Ok(()),
        Err(error) => Err(read_fault(
            &error,
            "delete secrets",
            namespace,
            Reason::DeliveryFailed,
        )),
    }
}

fn not_read_back(name: &str) -> Fault {
    Fault::transient(
        Reason::StoreCorrupt,
        format!(
            "what was read back from Secret {name} is not what was written, so nothing was used; it is tried again: find out \
             who changes it"
        ),
    )
}

fn save_fault(error: &write::WriteError, namespace: &str, name: &str) -> Fault {
    if error.is(StatusCode::CONFLICT) {
        return Fault::transient(
            Reason::Pending,
            format!("Secret {name} was changed by somebody else meanwhile; it is read and decided again"),
        );
    }
    if error.is(StatusCode::FORBIDDEN) {
        return Fault::denied(
            Reason::DeliveryFailed,
            format!(
                "the operator may not create and patch Secret {name} in namespace {namespace}; grant it create and patch on \
                 secrets in a Role of that namespace"
            ),
        );
    }
    Fault::transient(
        Reason::DeliveryFailed,
        format!("Secret {name} was not written ({error}), so nothing was used; it is tried again"),
    )
}
