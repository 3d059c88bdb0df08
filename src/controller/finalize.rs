//! `wrappedDeletionPolicy: Delete`: a finalizer that takes the wrapped store along (`api.md`, meaning 11).

use http::StatusCode;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::context::Context;
use crate::{
    api::{DeletionPolicy, Reason, SealConfig},
    kube_ext::{FIELD_MANAGER, bounded, cluster::read_fault, names, store},
    seal::{Fault, store::secret_name},
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
        store::delete(&context.client, &namespace, &secret_name(&name)).await?;
    }
    let mut finalizers: Vec<&str> = config.finalizers().iter().map(String::as_str).collect();
    if wanted {
        finalizers.push(names::FINALIZER);
    } else {
        finalizers.retain(|finalizer| *finalizer != names::FINALIZER);
    }
    let api: Api<SealConfig> = Api::namespaced(context.client.clone(), &namespace);
    // A list is replaced as a whole, so it must be the one that was seen.
    let patch = json!({"metadata": {
        "uid": config.uid(), "resourceVersion": config.resource_version(), "finalizers": finalizers,
    }});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match bounded(api.patch_metadata(&name, &params, &Patch::Merge(patch))).await {
        Ok(_) => Ok(()),
        // Gone, or changed meanwhile: the watch brings what it is now.
        Err(kube::Error::Api(status))
            if [StatusCode::NOT_FOUND, StatusCode::CONFLICT]
                .iter()
                .any(|code| status.code == code.as_u16()) =>
        {
            Ok(())
        }
        Err(error) => Err(read_fault(
            &error,
            "patch sealconfigs (wrappedDeletionPolicy: Delete; rights.storeDeletion of the chart)",
            &namespace,
            Reason::DeliveryFailed,
        )),
    }
}
