//! Events on our objects: one for each transition, warnings always, good news sparingly.

use std::sync::Mutex;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::{
    api::{Reason, SealConfig},
    kube_ext::{FIELD_MANAGER, bounded},
    seal::model::Model,
};

/// Good news published at most at once, and then one a second: a thousand objects that become ready together
/// are told by their status, not by a thousand writes.
const BURST: f64 = 50.0;

/// Publishes events.
pub struct Events {
    recorder: Recorder,
    bucket: Mutex<(f64, Timestamp)>,
}

impl Events {
    /// Publishes through the operator's client.
    pub fn new(client: Client) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.to_owned(),
            instance: None,
        };
        Self {
            recorder: Recorder::new(client, reporter),
            bucket: Mutex::new((BURST, Timestamp::now())),
        }
    }

    /// The object's `Ready` condition has changed.
    pub async fn transition(&self, object: ObjectReference, ready: bool, reason: Reason, message: &str) {
        if ready && !self.may_speak() {
            return;
        }
        let type_ = if ready {
            EventType::Normal
        } else {
            EventType::Warning
        };
        self.publish(object, type_, reason, message.to_owned(), "Reconcile")
            .await;
    }

    /// A workload was restarted.
    pub async fn restarted(&self, model: &Model, workload: &str) {
        let reference = ObjectReference {
            api_version: Some(SealConfig::api_version(&()).into_owned()),
            kind: Some(SealConfig::kind(&()).into_owned()),
            namespace: Some(model.id.namespace.clone()),
            name: Some(model.id.name.clone()),
            uid: Some(model.id.uid.clone()),
            ..ObjectReference::default()
        };
        let note = format!("{workload} is restarted, because the keys that its pods read have changed");
        self.publish(reference, EventType::Normal, Reason::Restarted, note, "Restart")
            .await;
    }

    /// A human must know of something that is no state.
    pub async fn warn(&self, object: ObjectReference, reason: Reason, note: String, action: &str) {
        self.publish(object, EventType::Warning, reason, note, action)
            .await;
    }

    async fn publish(
        &self,
        reference: ObjectReference,
        type_: EventType,
        reason: Reason,
        note: String,
        action: &str,
    ) {
        // The apiserver takes 1,024 bytes.
        let note: String = note.chars().take(1000).collect();
        let event = Event {
            type_,
            reason: reason.as_str().to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        if bounded(self.recorder.publish(&event, &reference)).await.is_err() {
            tracing::debug!(
                reason = reason.as_str(),
                "an event was not taken by the apiserver"
            );
        }
    }

    fn may_speak(&self) -> bool {
        let mut bucket = self
            .bucket
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Timestamp::now();
        let refilled = bucket.0 + now.duration_since(bucket.1).as_secs_f64().max(0.0);
        *bucket = (refilled.min(BURST), now);
        let speaks = bucket.0 >= 1.0;
        if speaks {
            bucket.0 -= 1.0;
        }
        speaks
    }
}
