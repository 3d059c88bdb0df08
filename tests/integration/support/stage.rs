//! A stage: one namespace of its own for one test, and the words that tests share.

use std::{collections::BTreeMap, path::PathBuf};

use aws_lc_rs::rand;
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use super::{
    kms::Kms,
    operator::Operator,
    plane::{Plane, eventually},
};

/// One test's own namespace.
pub struct Stage {
    /// The control plane.
    pub plane: Plane,
    /// The namespace.
    pub namespace: String,
}

/// Random lower-case hexadecimal text, so that tests never meet.
pub fn unique() -> String {
    HEXLOWER.encode(&random(4))
}

/// Random bytes.
pub fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    rand::fill(&mut bytes).unwrap();
    bytes
}

impl Stage {
    /// Makes the namespace and, in it, the Secret `aws` with credentials that moto and the scripted KMS take.
    pub async fn new(name: &str) -> Self {
        let stage = Self::bare(name, &json!({})).await;
        stage
            .credentials("aws", "AKIAINTEGRATIONTEST0", "integration-secret")
            .await;
        stage
    }

    /// Makes the namespace with this metadata and nothing in it.
    pub async fn bare(name: &str, metadata: &Value) -> Self {
        let plane = Plane::connect().await;
        let namespace = format!("{name}-{}", unique());
        let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        object["metadata"]["name"] = json!(namespace);
        plane.create(&object).await;
        Self { plane, namespace }
    }

    /// An existing namespace.
    pub async fn at(namespace: &str) -> Self {
        Self {
            plane: Plane::connect().await,
            namespace: namespace.to_owned(),
        }
    }

    /// An operator for this namespace only.
    pub fn operator(&self) -> Operator {
        Operator::new().flags([
            "--watch-namespaces",
            &self.namespace,
            "--log-format",
            "json",
            "--log-level",
            "debug",
        ])
    }

    /// An operator for this namespace only that speaks to a scripted KMS.
    pub fn operator_of(&self, kms: &Kms) -> Operator {
        self.operator().env("AWS_ENDPOINT_URL_KMS", kms.url())
    }

    /// An object of this namespace.
    pub fn object(&self, api: &str, kind: &str, name: &str) -> Value {
        json!({"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": self.namespace}})
    }

    /// A SealConfig of this namespace.
    pub fn seal_config(&self, name: &str, spec: &Value) -> Value {
        let mut object = self.object("autounseal.dev/v1alpha1", "SealConfig", name);
        object["spec"] = spec.clone();
        object
    }

    /// Applies a SealConfig.
    pub async fn apply(&self, name: &str, spec: &Value) -> Value {
        self.plane.apply(&self.seal_config(name, spec)).await
    }

    /// Writes static credentials.
    pub async fn credentials(&self, name: &str, access_key_id: &str, secret: &str) {
        let mut object = self.object("v1", "Secret", name);
        object["stringData"] = json!({"access_key": access_key_id, "secret_key": secret});
        self.plane.apply(&object).await;
    }

    /// Writes an opaque Secret.
    pub async fn secret_of(&self, name: &str, data: &[(&str, &[u8])]) -> Value {
        let mut object = self.object("v1", "Secret", name);
        object["data"] = data
            .iter()
            .map(|(key, bytes)| ((*key).to_owned(), json!(BASE64.encode(bytes))))
            .collect();
        self.plane.apply(&object).await
    }

    /// The Secret's data, `None` when it is not there.
    pub async fn secret(&self, name: &str) -> Option<BTreeMap<String, Vec<u8>>> {
        Some(data_of(&self.plane.get("Secret", &self.namespace, name).await?))
    }

    /// The Secret whole.
    pub async fn whole_secret(&self, name: &str) -> Value {
        self.plane
            .get("Secret", &self.namespace, name)
            .await
            .unwrap_or_else(|| panic!("no Secret {name}"))
    }

    /// The SealConfig.
    pub async fn config(&self, name: &str) -> Value {
        self.plane
            .get("SealConfig", &self.namespace, name)
            .await
            .unwrap_or_else(|| panic!("no SealConfig {name}"))
    }

    /// Waits until the status is as it should be.
    pub async fn status_where(&self, name: &str, what: &str, fits: impl Fn(&Value) -> bool) {
        eventually(what, async || {
            let status = self.config(name).await["status"].take();
            if fits(&status) {
                Ok(())
            } else {
                Err(format!("{status:#}"))
            }
        })
        .await;
    }

    /// Waits until Ready=True is said of the current generation.
    pub async fn ready(&self, name: &str) -> Value {
        eventually(&format!("{name} Ready"), async || {
            let config = self.config(name).await;
            let ready = condition(&config, "Ready");
            if ready["status"] == "True" && speaks_of_now(&config) {
                Ok(config)
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await
    }

    /// Waits until Ready is not True for this reason, said of the current generation; gives back the message.
    pub async fn not_ready(&self, name: &str, reason: &str) -> String {
        eventually(&format!("{name} not Ready: {reason}"), async || {
            let config = self.config(name).await;
            let ready = condition(&config, "Ready");
            if ready["status"] != "True" && ready["reason"] == reason && speaks_of_now(&config) {
                Ok(ready["message"].as_str().unwrap_or_default().to_owned())
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await
    }

    /// Waits until the Secret holds exactly these entries.
    pub async fn delivered(&self, name: &str, expected: &[(&str, &[u8])]) {
        eventually(&format!("Secret {name}"), async || {
            let Some(data) = self.secret(name).await else {
                return Err("no such Secret".into());
            };
            let fits = data.len() == expected.len()
                && expected
                    .iter()
                    .all(|(key, bytes)| data.get(*key).is_some_and(|b| b == bytes));
            fits.then_some(()).ok_or_else(|| {
                let lengths: Vec<_> = data.iter().map(|(k, v)| (k, v.len())).collect();
                format!("other content: {lengths:?}")
            })
        })
        .await;
    }

    /// Events about the SealConfig, as `type reason: note`.
    pub async fn events(&self, name: &str) -> Vec<String> {
        self.plane
            .list("Event", &self.namespace)
            .await
            .iter()
            .filter(|event| event["regarding"]["name"] == name)
            .map(|event| {
                format!(
                    "{} {}: {}",
                    event["type"].as_str().unwrap_or_default(),
                    event["reason"].as_str().unwrap_or_default(),
                    event["note"].as_str().unwrap_or_default()
                )
            })
            .collect()
    }

    /// A running pod of `app=<app>` that mounts the Secret, started now, as a kubelet would report it.
    pub async fn pod(&self, name: &str, app: &str, secret: Option<&str>, owner: Option<&Value>) -> Value {
        let mut pod = self.object("v1", "Pod", name);
        pod["metadata"]["labels"] = json!({"app": app});
        if let Some(owner) = owner {
            pod["metadata"]["ownerReferences"] = json!([{
                "apiVersion": owner["apiVersion"], "kind": owner["kind"], "controller": true,
                "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
            }]);
            if let Some(labels) = owner.pointer("/spec/template/metadata/labels") {
                pod["metadata"]["labels"] = labels.clone();
            }
        }
        pod["spec"] = pod_spec(secret);
        pod["spec"]["nodeName"] = json!("node-1");
        self.plane.create(&pod).await;
        self.pod_started(name, jiff::Timestamp::now()).await
    }

    /// What the kubelet reports of a pod whose container started then.
    pub async fn pod_started(&self, name: &str, started: jiff::Timestamp) -> Value {
        let started = started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let status = json!({
            "phase": "Running", "podIP": "127.0.0.2", "startTime": started,
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": started}],
            "containerStatuses": [{
                "name": "app", "ready": true, "started": true, "restartCount": 0, "image": "app", "imageID": "app",
                "containerID": format!("containerd://{}", unique()), "state": {"running": {"startedAt": started}},
            }],
        });
        self.plane
            .patch_status("Pod", &self.namespace, name, &status)
            .await
    }
}

/// A pod spec of one container that mounts the Secret.
pub fn pod_spec(secret: Option<&str>) -> Value {
    let mut spec = json!({"containers": [{"name": "app", "image": "app"}]});
    if let Some(secret) = secret {
        spec["volumes"] = json!([{"name": "key", "secret": {"secretName": secret}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "key", "mountPath": "/key"}]);
    }
    spec
}

/// The entries of a Secret.
pub fn data_of(secret: &Value) -> BTreeMap<String, Vec<u8>> {
    secret["data"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| {
            let bytes = BASE64.decode(value.as_str().unwrap_or_default().as_bytes());
            (key.clone(), bytes.unwrap_or_default())
        })
        .collect()
}

/// A condition of the status, null when absent.
pub fn condition(config: &Value, kind: &str) -> Value {
    config["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind)
        .cloned()
        .unwrap_or_default()
}

/// An entry of a list-map by name, null when absent.
pub fn named(list: &Value, name: &str) -> Value {
    list.as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["name"] == name)
        .cloned()
        .unwrap_or_default()
}

/// Whether the status speaks of the current generation, Ready condition included.
pub fn speaks_of_now(config: &Value) -> bool {
    config["status"]["observedGeneration"] == config["metadata"]["generation"]
}

/// One seal `aws` with the credentials in Secret `aws`, one key `root`, one target.
pub fn simple(key_id: &str, ciphertext: &[u8], secret: &str) -> Value {
    json!({
        "seals": [{"name": "aws", "awskms": {
            "kmsKeyID": key_id, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}},
        }}],
        "keys": [{"name": "root", "wrapped": [
            {"seal": "aws", "format": "kms", "inline": BASE64.encode(ciphertext)},
        ]}],
        "targets": [{"name": "app", "secret": {"name": secret}}],
    })
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}
