//! `wrappedDeletionPolicy: Delete`: a finalizer that takes the wrapped store along (`api.md`, meaning 11).

use std::fmt::Debug;

use http::StatusCode;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::context::Context;
use crate::{
    api::{DeletionPolicy, KIND, ManagedKey, Reason, SealConfig},
    kube_ext::{FIELD_MANAGER, bounded, cluster::read_fault, names, store},
    seal::{Fault, store::name_of},
};

/// Brings the finalizer to what the policy says. An object that is being deleted loses its store, if the policy is Delete
/// to the last, then the finalizer.
///
/// # Errors
/// What kept the apiserver from it; it is tried again.
pub async fn finalize(context: &Context, config: &SealConfig) -> Result<(), Fault> {
    let (namespace, name) = (config.namespace().unwrap_or_default(), config.name_any());
    let deleting = config.metadata.deletion_timestamp.is_some();
    let wanted = !deleting && config.spec.wrapped_deletion_policy == DeletionPolicy::Delete;
    let has = config
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == names::FINALIZER);
    if wanted == has {
        return Ok(());
    }
    if deleting && config.spec.wrapped_deletion_policy == DeletionPolicy::Delete {
        unused(context, &namespace, &name).await?;
        store::delete(&context.client, &namespace, &name_of(KIND, &name)).await?;
    }
    put_finalizers(
        &context.client,
        config,
        names::FINALIZER,
        wanted,
        "patch sealconfigs (wrappedDeletionPolicy: Delete; rights.storeDeletion of the chart)",
    )
    .await
}

/// Holds that no ManagedKey refers to the SealConfig: its seals are needed to open the material. The apiserver itself is
/// asked, for a watch may be behind.
async fn unused(context: &Context, namespace: &str, name: &str) -> Result<(), Fault> {
    let api: Api<ManagedKey> = Api::namespaced(context.client.clone(), namespace);
    let list = bounded(api.list(&ListParams::default())).await;
    let list = match list {
        Ok(list) => list.items,
        // Where the kind does not exist nobody refers to anything.
        Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND.as_u16() => Vec::new(),
        Err(error) => {
            return Err(read_fault(
                &error,
                "list managedkeys",
                namespace,
                Reason::DeliveryFailed,
            ));
        }
    };
    let users = list.iter().filter(|key| key.spec.seal_config_ref.name == name);
    let users: Vec<_> = users.map(ResourceExt::name_any).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(Fault::denied(
        Reason::InUse,
        format!(
            "its seals open the material of ManagedKey {}, so the SealConfig and its store stay until that is deleted or refers \
             to another one",
            users.join(", ")
        ),
    ))
}

/// Puts a finalizer of ours on an object, or takes it away; nothing where it is as it should be.
///
/// # Errors
/// What kept the apiserver from it. `right`: what is told to be missing if it is not permitted.
pub async fn put_finalizers<K>(
    client: &Client,
    object: &K,
    finalizer: &str,
    wanted: bool,
    right: &str,
) -> Result<(), Fault>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    if wanted == object.finalizers().iter().any(|found| found == finalizer) {
        return Ok(());
    }
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let (group, kind) = (K::group(&()), K::kind(&()));
    let patch = patch(object.uid().as_deref(), object.finalizers(), finalizer, wanted);
    let refused = |error: &kube::Error| read_fault(error, right, &namespace, Reason::DeliveryFailed);
    let patch = serde_json::from_value(patch).map_err(|error| refused(&kube::Error::SerdeError(error)))?;
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    match bounded(api.patch_metadata(&name, &params, &Patch::Json::<()>(patch))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND.as_u16() => Ok(()),
        // How the apiserver says that what a patch tests is not so; its own text names neither.
        Err(kube::Error::Api(status)) if status.code == StatusCode::UNPROCESSABLE_ENTITY.as_u16() => {
            Err(Fault::transient(
                Reason::DeliveryFailed,
                format!(
                    "finalizer {finalizer} of {kind}.{group} {name} was not changed: others changed its finalizers meanwhile, or \
                     the object does not pass the schema of its kind; it is tried again"
                ),
            ))
        }
        Err(error) => Err(refused(&error)),
    }
}

/// A list is replaced as a whole, so it must be the one that was seen; whatever else of the object changed since (our own
/// status above all) is no hindrance.
fn patch(uid: Option<&str>, seen: &[String], finalizer: &str, wanted: bool) -> Value {
    let mut next: Vec<&str> = seen.iter().map(String::as_str).collect();
    if wanted {
        next.push(finalizer);
    } else {
        next.retain(|found| *found != finalizer);
    }
    let seen = (!seen.is_empty()).then_some(seen);
    json!([
        {"op": "test", "path": "/metadata/uid", "value": uid},
        {"op": "test", "path": "/metadata/finalizers", "value": seen},
        {"op": "add", "path": "/metadata/finalizers", "value": next},
    ])
}
