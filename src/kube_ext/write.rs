//! Writes that kube's typed client cannot do as we need them: bodies that are wiped, answers that carry
//! metadata only, and whether an apply created or changed.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use kube::{Client, client::Body, core::PartialObjectMeta};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{FIELD_MANAGER, bounded};

const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// What the apiserver said to a write, without the object's content.
#[derive(Debug)]
pub struct Written {
    /// The object did not exist before.
    pub created: bool,
    /// Somebody else owns fields of it too.
    pub shared: bool,
    /// UID.
    pub uid: String,
    /// resourceVersion.
    pub resource_version: String,
    /// Annotations as they are now.
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// Why a write failed, in the apiserver's closed words only.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The apiserver answered no.
    #[error("the apiserver answered {status} {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// `Status.reason`, a word of Kubernetes' own set.
        reason: String,
    },
    /// The apiserver could not be asked.
    #[error("the apiserver does not answer")]
    Unreachable,
}

impl WriteError {
    /// Whether it was refused with that HTTP status.
    pub fn is(&self, code: StatusCode) -> bool {
        matches!(self, WriteError::Refused { status, .. } if *status == code.as_u16())
    }
}

/// Server-side apply of a Secret. `body` is wiped after it was sent.
///
/// # Errors
/// As the apiserver answers; 409 for a conflict with another manager (without `force`) or another UID.
pub async fn apply_secret(
    client: &Client,
    namespace: &str,
    name: &str,
    body: Zeroizing<Vec<u8>>,
    force: bool,
) -> Result<Written, WriteError> {
    let uri = format!(
        "/api/v1/namespaces/{namespace}/secrets/{name}?fieldManager={FIELD_MANAGER}&force={force}&fieldValidation=Strict"
    );
    // Bytes drops its owner when the last reference goes, and dropping a Zeroizing wipes it.
    let body = Body::from(Bytes::from_owner(body));
    send(client, Method::PATCH, &uri, "application/apply-patch+yaml", body).await
}

/// Merge patch of an object's status.
///
/// # Errors
/// As the apiserver answers; 409 when the object of that name has another UID by now.
pub async fn patch_status<K: kube::Resource<DynamicType = ()>>(
    client: &Client,
    namespace: &str,
    name: &str,
    uid: &str,
    patch: Value,
) -> Result<Written, WriteError> {
    let uri = format!(
        "/apis/{}/v1alpha1/namespaces/{namespace}/{}/{name}/status?fieldManager={FIELD_MANAGER}",
        crate::api::GROUP,
        K::plural(&()),
    );
    let body = serde_json::json!({"metadata": {"uid": uid}, "status": patch});
    send(
        client,
        Method::PATCH,
        &uri,
        "application/merge-patch+json",
        Body::from(body.to_string().into_bytes()),
    )
    .await
}

pub(super) async fn send(
    client: &Client,
    method: Method,
    uri: &str,
    content_type: &str,
    body: Body,
) -> Result<Written, WriteError> {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::ACCEPT, METADATA_ONLY)
        .body(body)
        .map_err(|_| WriteError::Unreachable)?;
    let response = bounded(client.send(request))
        .await
        .map_err(|_| WriteError::Unreachable)?;
    let status = response.status();
    let bytes = bounded(response.into_body().collect_bytes())
        .await
        .map_err(|_| WriteError::Unreachable)?;
    if !status.is_success() {
        let reason = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .and_then(|answer| Some(answer.get("reason")?.as_str()?.to_owned()))
            .filter(|word| word.len() <= 64 && word.chars().all(|c| c.is_ascii_alphabetic()))
            .unwrap_or_default();
        return Err(WriteError::Refused {
            status: status.as_u16(),
            reason,
        });
    }
    let object: PartialObjectMeta<k8s_openapi::api::core::v1::Secret> =
        serde_json::from_slice(&bytes).map_err(|_| WriteError::Unreachable)?;
    Ok(Written {
        created: status == StatusCode::CREATED,
        shared: object
            .metadata
            .managed_fields
            .iter()
            .flatten()
            .any(|fields| fields.manager.as_deref() != Some(FIELD_MANAGER)),
        uid: object.metadata.uid.unwrap_or_default(),
        resource_version: object.metadata.resource_version.unwrap_or_default(),
        annotations: object.metadata.annotations.unwrap_or_default(),
    })
}
