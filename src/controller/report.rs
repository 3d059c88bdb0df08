//! Tells: the status when it differs, an event when `Ready` turned, metrics.

use std::time::Duration;

use http::StatusCode;
use kube::{Resource, ResourceExt};

use super::context::Context;
use crate::{
    api::{Reason, SealConfig, SealConfigStatus, SealHealth, SealUse, condition_types},
    kube_ext::{merge_patch::merge_patch, write},
    telemetry::objects::{Figures, ObjectState},
};

/// How long to wait after a status that was not taken.
const AGAIN: Duration = Duration::from_secs(2);

/// Writes what has changed. The resourceVersion of that write.
///
/// # Errors
/// When to try again, if the apiserver did not take the status.
pub async fn report(
    context: &Context,
    config: &SealConfig,
    saved: &SealConfigStatus,
    next: &SealConfigStatus,
) -> Result<Option<String>, Duration> {
    let (namespace, name) = (config.namespace().unwrap_or_default(), config.name_any());
    let ready = |status: &SealConfigStatus| {
        status
            .conditions
            .iter()
            .find(|condition| condition.type_ == condition_types::READY)
            .map(|condition| {
                (
                    condition.status.clone(),
                    condition.reason.clone(),
                    condition.message.clone(),
                )
            })
    };
    let (before, after) = (ready(saved), ready(next));
    let unhealthy = next
        .seals
        .iter()
        .filter(|seal| seal.state == SealHealth::Unhealthy)
        .count();
    if let Some((status, reason, _)) = &after {
        let state = ObjectState {
            ready: status == "True",
            reason,
            figures: Figures {
                seals_unhealthy: unhealthy,
                key_copies_min: next.keys.iter().map(|key| key.wrapped_under.len()).min(),
                seals_wrapping: config
                    .spec
                    .seals
                    .iter()
                    .filter(|seal| !seal.disabled && seal.use_.contains(&SealUse::Wrap))
                    .count(),
                rotation_due: next
                    .keys
                    .iter()
                    .filter_map(|key| Some(key.next_rotation_time.as_ref()?.0.as_second()))
                    .min(),
                pods_sealed: next.unseal.as_ref().map(|unseal| unseal.sealed),
                root_token_since: next
                    .unseal
                    .as_ref()
                    .and_then(|unseal| Some(unseal.root_token_held_since.as_ref()?.0.as_second())),
            },
        };
        context.metrics.objects.seal_config(&namespace, &name, &state);
    }
    let mut written = None;
    let to_value = |status: &SealConfigStatus| serde_json::to_value(status).unwrap_or_default();
    if let Some(patch) = merge_patch(&to_value(saved), &to_value(next)) {
        let uid = config.uid().unwrap_or_default();
        match write::patch_status::<SealConfig>(&context.client, &namespace, &name, &uid, patch).await {
            Ok(answer) => written = Some(answer.resource_version),
            // The object is gone, or another one of the same name has come.
            Err(error) if error.is(StatusCode::NOT_FOUND) || error.is(StatusCode::CONFLICT) => {
                return Ok(None);
            }
            Err(error) => {
                tracing::warn!(namespace, name, %error, "the status was not written; it is tried again");
                return Err(AGAIN);
            }
        }
    }
    if let Some((status, reason, message)) = after
        && before
            .as_ref()
            .is_none_or(|(was, why, _)| *was != status || *why != reason)
    {
        let word = Reason::ALL
            .iter()
            .copied()
            .find(|known| known.as_str() == reason)
            .unwrap_or(Reason::Pending);
        let is_ready = status == "True";
        if is_ready {
            tracing::info!(namespace, name, reason, "{message}");
        } else {
            tracing::warn!(namespace, name, reason, "{message}");
        }
        context
            .events
            .transition(config.object_ref(&()), is_ready, word, &message)
            .await;
    }
    Ok(written)
}
