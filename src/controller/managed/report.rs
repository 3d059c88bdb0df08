//! Tells of a ManagedKey: the status when it differs, an event when `Ready` turned, metrics.

use std::time::Duration;

use http::StatusCode;
use kube::{Resource, ResourceExt};

use crate::{
    api::{MANAGED_KIND, ManagedKey, ManagedKeyStatus, Reason, condition_types},
    controller::context::Context,
    kube_ext::{merge_patch::merge_patch, write},
};

/// How long to wait after a status that was not taken.
const AGAIN: Duration = Duration::from_secs(2);

/// Writes what has changed. The resourceVersion of that write.
///
/// # Errors
/// When to try again, if the apiserver did not take the status.
pub async fn report(
    context: &Context,
    key: &ManagedKey,
    saved: &ManagedKeyStatus,
    next: &ManagedKeyStatus,
) -> Result<Option<String>, Duration> {
    let (namespace, name) = (key.namespace().unwrap_or_default(), key.name_any());
    let ready = |status: &ManagedKeyStatus| {
        let ready = |condition: &&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            condition.type_ == condition_types::READY
        };
        status.conditions.iter().find(ready).cloned()
    };
    let (before, after) = (ready(saved), ready(next));
    if let Some(ready) = &after {
        context.metrics.objects.readiness(
            MANAGED_KIND,
            &namespace,
            &name,
            ready.status == "True",
            &ready.reason,
        );
    }
    let mut written = None;
    let to_value = |status: &ManagedKeyStatus| serde_json::to_value(status).unwrap_or_default();
    if let Some(patch) = merge_patch(&to_value(saved), &to_value(next)) {
        let uid = key.uid().unwrap_or_default();
        match write::patch_status::<ManagedKey>(&context.client, &namespace, &name, &uid, patch).await {
            Ok(answer) => written = Some(answer.resource_version),
            Err(error) if error.is(StatusCode::NOT_FOUND) || error.is(StatusCode::CONFLICT) => {
                return Ok(None);
            }
            Err(error) => {
                tracing::warn!(namespace, name, %error, "the status of a ManagedKey was not written; it is tried again");
                return Err(AGAIN);
            }
        }
    }
    let Some(ready) = after else {
        return Ok(written);
    };
    let turned = before
        .is_none_or(|before| (before.status, before.reason) != (ready.status.clone(), ready.reason.clone()));
    if turned {
        let known = Reason::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == ready.reason);
        let (reason, message) = (&ready.reason, &ready.message);
        let well = ready.status == "True";
        if well {
            tracing::info!(namespace, name, reason, "{message}");
        } else {
            tracing::warn!(namespace, name, reason, "{message}");
        }
        context
            .events
            .transition(
                key.object_ref(&()),
                well,
                known.unwrap_or(Reason::Pending),
                message,
            )
            .await;
    }
    Ok(written)
}
