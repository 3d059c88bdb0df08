//! The usual scene: a namespace, a scripted KMS with one key, an operator between them.

use std::time::Duration;

use serde_json::Value;

use super::{
    kms::{Context, Key, Kms},
    operator::{Operator, Running},
    plane::within,
    stage::{Stage, condition, simple, speaks_of_now},
};

/// The usual scene.
pub struct Scene {
    /// Namespace and control plane.
    pub stage: Stage,
    /// KMS.
    pub kms: Kms,
    /// Its first key.
    pub key: Key,
}

impl Scene {
    /// Sets it up, without an operator.
    pub async fn new(name: &str) -> Self {
        let stage = Stage::new(name).await;
        let kms = Kms::start();
        let key = kms.key();
        Self { stage, kms, key }
    }

    /// An operator of this scene.
    pub fn operator(&self) -> Operator {
        self.stage.operator_of(&self.kms)
    }

    /// Starts one.
    pub fn start(&self) -> Running {
        self.operator().start()
    }

    /// The bytes under the scene's key.
    pub fn wrap(&self, bytes: &[u8]) -> Vec<u8> {
        self.kms.encrypt(&self.key, bytes, &Context::new())
    }

    /// A spec that delivers these bytes into the Secret.
    pub fn spec(&self, secret: &str, bytes: &[u8]) -> Value {
        simple(&self.key.arn, &self.wrap(bytes), secret)
    }

    /// Applies a SealConfig of that name, waits for its Secret of the same name, and gives back the spec.
    pub async fn deliver(&self, name: &str, bytes: &[u8]) -> Value {
        let spec = self.spec(name, bytes);
        self.stage.apply(name, &spec).await;
        self.stage.delivered(name, &[("root", bytes)]).await;
        self.stage.ready(name).await;
        spec
    }

    /// Waits until Ready is not True for one of these reasons; gives back reason and message.
    pub async fn not_ready(&self, name: &str, reasons: &[&str]) -> (String, String) {
        self.not_ready_within(Duration::from_secs(40), name, reasons)
            .await
    }

    /// The same with patience.
    pub async fn not_ready_within(&self, limit: Duration, name: &str, reasons: &[&str]) -> (String, String) {
        within(limit, &format!("{name} not Ready for {reasons:?}"), async || {
            let config = self.stage.config(name).await;
            let ready = condition(&config, "Ready");
            let reason = ready["reason"].as_str().unwrap_or_default();
            if ready["status"] != "True" && reasons.contains(&reason) && speaks_of_now(&config) {
                Ok((
                    reason.to_owned(),
                    ready["message"].as_str().unwrap_or_default().to_owned(),
                ))
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await
    }
}
