//! Tells: the status when it differs, an event when `Ready` turned, metrics.

use std::time::Duration;

use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{Resource, ResourceExt};
use serde::Serialize;

use super::context::Context;
use crate::{
    api::{
        MANAGED_KIND, ManagedKey, ManagedKeyStatus, Reason, SealConfig, SealConfigStatus, SealHealth,
        SealUse, condition_types,
    },
    kube_ext::{merge_patch::merge_patch, write},
    telemetry::objects::{Figures, ObjectState},
};

/// How long to wait after a status that was not taken.
const AGAIN: Duration = Duration::from_secs(2);

/// A kind with conditions.
pub trait Told: Resource<DynamicType = ()> {
    /// Its status.
    type Status: Serialize;

    /// What the status says.
    fn conditions(status: &Self::Status) -> &[Condition];

    /// What metrics say of the object.
    fn measure(&self, context: &Context, status: &Self::Status, is_ready: bool, reason: &str);
}

impl Told for SealConfig {
    type Status = SealConfigStatus;

    fn conditions(status: &SealConfigStatus) -> &[Condition] {
        &status.conditions
    }

    fn measure(&self, context: &Context, status: &SealConfigStatus, is_ready: bool, reason: &str) {
        let unseal = status.unseal.as_ref();
        let state = ObjectState {
            ready: is_ready,
            reason,
            figures: Figures {
                seals_unhealthy: status
                    .seals
                    .iter()
                    .filter(|seal| seal.state == SealHealth::Unhealthy)
                    .count(),
                key_copies_min: status.keys.iter().map(|key| key.wrapped_under.len()).min(),
                seals_wrapping: self
                    .spec
                    .seals
                    .iter()
                    .filter(|seal| !seal.disabled && seal.use_.contains(&SealUse::Wrap))
                    .count(),
                rotation_due: status
                    .keys
                    .iter()
                    .filter_map(|key| Some(key.next_rotation_time.as_ref()?.0.as_second()))
                    .min(),
                pods_sealed: unseal.map(|unseal| unseal.sealed),
                root_token_since: unseal
                    .and_then(|unseal| Some(unseal.root_token_held_since.as_ref()?.0.as_second())),
            },
        };
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        context.metrics.objects.seal_config(&namespace, &name, &state);
    }
}

impl Told for ManagedKey {
    type Status = ManagedKeyStatus;

    fn conditions(status: &ManagedKeyStatus) -> &[Condition] {
        &status.conditions
    }

    fn measure(&self, context: &Context, _: &ManagedKeyStatus, is_ready: bool, reason: &str) {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        context
            .metrics
            .objects
            .readiness(MANAGED_KIND, &namespace, &name, is_ready, reason);
    }
}

fn ready<K: Told>(status: &K::Status) -> Option<&Condition> {
    K::conditions(status)
        .iter()
        .find(|condition| condition.type_ == condition_types::READY)
}

/// Writes what has changed. The resourceVersion of that write.
///
/// # Errors
/// When to try again, if the apiserver did not take the status.
pub async fn report<K: Told>(
    context: &Context,
    object: &K,
    saved: &K::Status,
    next: &K::Status,
) -> Result<Option<String>, Duration> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let (before, after) = (ready::<K>(saved), ready::<K>(next));
    if let Some(after) = after {
        object.measure(context, next, after.status == "True", &after.reason);
    }
    let mut written = None;
    let to_value = |status: &K::Status| serde_json::to_value(status).unwrap_or_default();
    if let Some(patch) = merge_patch(&to_value(saved), &to_value(next)) {
        let uid = object.uid().unwrap_or_default();
        match write::patch_status::<K>(&context.client, &namespace, &name, &uid, patch).await {
            Ok(answer) => written = Some(answer.resource_version),
            // The object is gone, or another one of the same name has come.
            Err(error) if error.is(StatusCode::NOT_FOUND) || error.is(StatusCode::CONFLICT) => {
                return Ok(None);
            }
            Err(error) => {
                let kind = K::kind(&());
                tracing::warn!(namespace, name, %error, "the status of a {kind} was not written; it is tried again");
                return Err(AGAIN);
            }
        }
    }
    let told = |condition: &Condition| (condition.status.clone(), condition.reason.clone());
    if let Some(after) = after
        && before.map(told) != Some(told(after))
    {
        let Condition { reason, message, .. } = after;
        let known = Reason::ALL.iter().find(|known| known.as_str() == reason);
        let is_ready = after.status == "True";
        if is_ready {
            tracing::info!(namespace, name, reason, "{message}");
        } else {
            tracing::warn!(namespace, name, reason, "{message}");
        }
        let reason = known.copied().unwrap_or(Reason::Pending);
        context
            .events
            .transition(object.object_ref(&()), is_ready, reason, message)
            .await;
    }
    Ok(written)
}
