//! What fills the cluster.

use std::time::Instant;

use data_encoding::BASE64;
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    Settings,
    kms::{Context, Key, Kms},
    operator::Operator,
    plane::Plane,
};

/// Requests of one client in flight at a time.
const IN_FLIGHT: usize = 16;
/// SealConfigs of a namespace.
const A_NAMESPACE: usize = 100;
/// Pairs that the plain client writes.
const PLAIN: usize = 1000;

/// The cluster and the KMS.
pub struct World {
    /// What is to be measured.
    pub settings: Settings,
    /// The cluster.
    pub plane: Plane,
    /// The KMS.
    pub kms: Kms,
    /// How the operator is started.
    pub operator: Operator,
    /// SealConfigs that there are.
    pub made: usize,
    key: Key,
    stamp: i64,
}

impl World {
    /// How many namespaces so many SealConfigs fill.
    pub fn tenants(seal_configs: usize) -> usize {
        seal_configs.div_ceil(A_NAMESPACE)
    }

    /// The namespaces, and what the operator is told of them.
    pub async fn prepare(settings: Settings) -> Self {
        let (plane, kms) = (Plane::connect().await, Kms::start());
        let key = kms.key();
        let stamp = jiff::Timestamp::now().as_millisecond();
        let mut world = Self {
            settings,
            plane,
            key,
            stamp,
            operator: Operator::new().env("AWS_ENDPOINT_URL_KMS", kms.url()),
            kms,
            made: 0,
        };
        // Those that meet the throttled KMS come on top.
        let tenants = Self::tenants(world.settings.seal_configs + crate::HELD_UP);
        let namespaces: Vec<String> = (0..tenants).map(|tenant| world.namespace(tenant)).collect();
        let objects: Vec<Value> = namespaces
            .iter()
            .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
            .collect();
        world.create_all(&objects).await;
        let grants: serde_json::Map<String, Value> = namespaces
            .iter()
            .map(|namespace| (namespace.clone(), json!([world.key.arn])))
            .collect();
        let file = std::env::temp_dir().join(format!("scale-{stamp}-grants.json"));
        std::fs::write(&file, Value::from(grants).to_string()).unwrap();
        world.operator = world.operator.clone().flags([
            "--operator-identity-namespaces",
            &namespaces.join(","),
            "--operator-identity-grants",
            file.to_str().unwrap(),
            "--kms-requests-per-second",
            "100000",
        ]);
        world
    }

    fn namespace(&self, tenant: usize) -> String {
        format!("scale-{}-{tenant}", self.stamp)
    }

    fn home(&self, index: usize) -> String {
        self.namespace(index / A_NAMESPACE)
    }

    fn copy(&self, text: &str) -> Value {
        let ciphertext = self.kms.encrypt(&self.key, text.as_bytes(), &Context::new());
        json!([{"seal": "aws", "format": "kms", "inline": BASE64.encode(&ciphertext)}])
    }

    fn config(&self, index: usize) -> Value {
        json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": format!("c-{index}"), "namespace": self.home(index)},
            "spec": {
                "seals": [{"name": "aws", "awskms": {"kmsKeyID": self.key.arn}}],
                "keys": [{"name": "root", "wrapped": self.copy(&format!("{index:032}"))}],
                "targets": [{
                    "name": "app", "secret": {"name": format!("s-{index}")},
                    "podSelector": {"matchLabels": {"app": format!("c-{index}")}},
                }],
            },
        })
    }

    /// A change of one SealConfig: namespace, name, patch.
    pub fn change(&self, index: usize) -> (String, String, Value) {
        let stamp = jiff::Timestamp::now().as_nanosecond();
        let keys = json!([{"name": "root", "wrapped": self.copy(&format!("{stamp:032}"))}]);
        (
            self.home(index),
            format!("c-{index}"),
            json!({"spec": {"keys": keys}}),
        )
    }

    fn pod(&self, index: usize) -> Value {
        let config = index % self.settings.seal_configs;
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p-{index}"), "namespace": self.home(config), "labels": {"app": format!("c-{config}")}},
            "spec": {"nodeName": "node-1", "containers": [{
                "name": "app", "image": "app", "envFrom": [{"secretRef": {"name": format!("s-{config}")}}],
            }]},
        })
    }

    /// What the kubelet reports of a pod whose container has just started.
    fn started(index: usize) -> Value {
        let now = jiff::Timestamp::now();
        let started = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "startTime": started,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": started}],
            "containerStatuses": [{
                "name": "app", "ready": true, "started": true, "restartCount": 0, "image": "app", "imageID": "app",
                "containerID": format!("containerd://{index}-{}", now.as_nanosecond()),
                "state": {"running": {"startedAt": started}},
            }],
        })
    }

    /// Creates objects with 16 requests in flight.
    async fn create_all(&self, objects: &[Value]) {
        stream::iter(objects)
            .for_each_concurrent(IN_FLIGHT, async |object| {
                self.plane.create(object).await;
            })
            .await;
    }

    /// Secrets and pods, before the first SealConfig.
    pub async fn strangers(&self) {
        let tenants = Self::tenants(self.settings.seal_configs);
        let value = BASE64.encode(&[b'x'; 200]);
        stream::iter(0..self.settings.secrets)
            .for_each_concurrent(IN_FLIGHT, async |index| {
                let secret = json!({
                    "apiVersion": "v1", "kind": "Secret", "data": {"value": value},
                    "metadata": {"name": format!("other-{index}"), "namespace": self.namespace(index % tenants)},
                });
                self.plane.create(&secret).await;
            })
            .await;
        stream::iter(0..self.settings.pods)
            .for_each_concurrent(IN_FLIGHT, async |index| {
                self.plane.create(&self.pod(index)).await;
            })
            .await;
        self.restart_pods().await;
    }

    /// Every pod's container starts anew.
    pub async fn restart_pods(&self) {
        stream::iter(0..self.settings.pods)
            .for_each_concurrent(IN_FLIGHT, async |index| {
                let home = self.home(index % self.settings.seal_configs);
                let status = Self::started(index);
                self.plane
                    .patch_status("Pod", &home, &format!("p-{index}"), &status)
                    .await;
            })
            .await;
    }

    /// As many SealConfigs as this.
    pub async fn grow(&mut self, size: usize) {
        stream::iter(self.made..size)
            .for_each_concurrent(IN_FLIGHT, async |index| {
                self.plane.create(&self.config(index)).await;
            })
            .await;
        self.made = size;
    }

    /// The operator's own Secrets and statuses, written again by a plain client; pairs a second.
    /// Their SealConfigs are of a class that nobody takes. `round` tells its calls apart.
    pub async fn plain_client(&self, round: usize) -> f64 {
        let namespace = self.namespace(0);
        let all = self.plane.list("Secret", &namespace).await;
        let secret = all
            .iter()
            .find(|secret| secret["metadata"]["name"] == "s-0")
            .expect("s-0 is delivered");
        let status = self.plane.get("SealConfig", &namespace, "c-0").await.unwrap()["status"].clone();
        let raw = format!("scale-{}-raw-{round}", self.stamp);
        self.create_all(&[json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": raw}})])
            .await;
        let configs: Vec<Value> = (0..PLAIN)
            .map(|index| {
                let mut config = self.config(index);
                config["metadata"]["namespace"] = json!(raw);
                config["spec"]["controllerClass"] = json!("nobody");
                config
            })
            .collect();
        self.create_all(&configs).await;
        let start = Instant::now();
        stream::iter(0..PLAIN)
            .for_each_concurrent(IN_FLIGHT, async |index| {
                let copy = json!({
                    "apiVersion": "v1", "kind": "Secret", "type": secret["type"], "data": secret["data"],
                    "metadata": {"name": format!("raw-{index}"), "namespace": raw, "annotations": secret["metadata"]["annotations"]},
                });
                self.plane.create(&copy).await;
                self.plane.patch_status("SealConfig", &raw, &format!("c-{index}"), &status).await;
            })
            .await;
        let took = start.elapsed();
        // Else they would count as the operator's memory.
        stream::iter(0..PLAIN)
            .for_each_concurrent(IN_FLIGHT, async |index| {
                self.plane.delete("SealConfig", &raw, &format!("c-{index}")).await;
                self.plane.delete("Secret", &raw, &format!("raw-{index}")).await;
            })
            .await;
        PLAIN as f64 / took.as_secs_f64()
    }
}
