//! Servers that the operator unseals, as the apiserver tells of them: their pods, the SealConfig, and a client of theirs.

use std::net::{IpAddr, SocketAddr};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    pki::Pki,
    plane::eventually,
    scene::Scene,
    stage::{Stage, condition, unique},
};

/// The name in the servers' certificates.
pub const HOST: &str = "vault.example.svc";

/// Makes a pod of `app` at an address.
pub async fn pod(scene: &Scene, name: &str, app: &str, ip: IpAddr) {
    Kubelet(&scene.stage).pod(name, app, ip).await;
}

/// What the kubelet reports when the pod's container has started afresh.
pub async fn container(scene: &Scene, name: &str, ip: IpAddr, ready: bool) -> String {
    Kubelet(&scene.stage).container(name, ip, ready).await
}

/// What the kubelet reports when the readiness probe's answer changed.
pub async fn readiness(scene: &Scene, name: &str, ready: bool) {
    Kubelet(&scene.stage).readiness(name, ready).await;
}

/// Who reports on a stage's pods, where there is no whole scene.
pub struct Kubelet<'s>(pub &'s Stage);

impl Kubelet<'_> {
    /// Makes a pod of `app` at an address.
    pub async fn pod(&self, name: &str, app: &str, ip: IpAddr) {
        let mut pod = self.0.object("v1", "Pod", name);
        pod["metadata"]["labels"] = json!({"app": app});
        pod["spec"] = json!({"nodeName": "node-1", "containers": [{"name": "server", "image": "server"}]});
        self.0.plane.create(&pod).await;
        self.container(name, ip, true).await;
    }

    /// The pod's container has started afresh; its id.
    pub async fn container(&self, name: &str, ip: IpAddr, ready: bool) -> String {
        let started = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let id = format!("containerd://{}", unique());
        let status = json!({
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": started,
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": started}],
            "containerStatuses": [{
                "name": "server", "ready": ready, "started": true, "restartCount": 0, "image": "server", "imageID": "server",
                "containerID": id, "state": {"running": {"startedAt": started}},
            }],
        });
        self.report(name, &status).await;
        id
    }

    /// The readiness probe's answer changed.
    pub async fn readiness(&self, name: &str, ready: bool) {
        let status =
            json!({"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]});
        self.report(name, &status).await;
    }

    async fn report(&self, name: &str, status: &Value) {
        let (plane, namespace) = (&self.0.plane, &self.0.namespace);
        plane.patch_status("Pod", namespace, name, status).await;
    }
}

/// A SealConfig that unseals the pods of `app` with these shares.
pub fn spec(scene: &Scene, shares: &[Vec<u8>], app: &str, port: u16) -> Value {
    let keys: Vec<Value> = shares
        .iter()
        .enumerate()
        .map(|(number, share)| {
            let copy = json!({"seal": "aws", "format": "kms", "inline": BASE64.encode(&scene.wrap(share))});
            json!({"name": format!("share-{number}"), "purpose": "unseal-share", "wrapped": [copy]})
        })
        .collect();
    json!({
        "seals": [{"name": "aws", "awskms": {
            "kmsKeyID": scene.key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}],
        "keys": keys,
        "unseal": {
            "product": "vault", "podSelector": {"matchLabels": {"app": app}}, "port": port,
            "tls": {"ca": {"configMapKeyRef": {"name": "vault-ca", "key": "ca.crt"}}, "serverName": HOST},
        },
    })
}

/// The same over http.
pub fn plain(mut spec: Value) -> Value {
    spec["unseal"]["scheme"] = json!("http");
    spec["unseal"].as_object_mut().unwrap().remove("tls");
    spec
}

/// Puts the CA where [`spec`] looks for it.
pub async fn trust(scene: &Scene, pki: &Pki) {
    trust_in(&scene.stage, pki).await;
}

/// The same where there is no whole scene.
pub async fn trust_in(stage: &Stage, pki: &Pki) {
    let mut map = stage.object("v1", "ConfigMap", "vault-ca");
    map["data"] = json!({"ca.crt": String::from_utf8(pki.ca()).unwrap()});
    stage.plane.apply(&map).await;
}

/// Waits until condition Unsealed has this status and reason; gives back its message.
pub async fn told(scene: &Scene, name: &str, status: &str, reason: &str) -> String {
    eventually(&format!("{name}: Unsealed {status} {reason}"), async || {
        let config = scene.stage.config(name).await;
        let is = condition(&config, "Unsealed");
        if is["status"] == status && is["reason"] == reason {
            Ok(is["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await
}

/// A TLS client of one server.
#[derive(Clone)]
pub struct Client {
    client: reqwest::Client,
    port: u16,
}

impl Client {
    /// Of the server at that address.
    pub fn new(pki: &Pki, address: SocketAddr) -> Self {
        let ca = reqwest::Certificate::from_pem(&pki.ca()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .no_proxy()
            .connect_timeout(std::time::Duration::from_secs(10))
            .timeout(std::time::Duration::from_mins(1))
            .resolve(HOST, address);
        Self {
            client: client.build().unwrap(),
            port: address.port(),
        }
    }

    /// Status and answer; `None` while nobody listens.
    pub async fn ask(&self, method: &str, path: &str, token: &str, body: &Value) -> Option<(u16, Value)> {
        let url = format!("https://{HOST}:{}/v1/{path}", self.port);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, url).header("x-vault-token", token);
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.ok()?;
        Some((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// What its seal status says; `null` while nobody listens.
    pub async fn status(&self) -> Value {
        let answer = self.ask("GET", "sys/seal-status", "", &Value::Null).await;
        answer.map_or(Value::Null, |(_, body)| body)
    }

    /// Whether it is sealed; `None` while nobody listens.
    pub async fn sealed(&self) -> Option<bool> {
        self.status().await["sealed"].as_bool()
    }

    /// Seals it.
    pub async fn seal(&self, token: &str) {
        let answer = self.ask("PUT", "sys/seal", token, &Value::Null).await;
        assert_eq!(answer.map(|(status, _)| status), Some(204));
    }

    /// Waits until it is sealed or not.
    pub async fn becomes(&self, sealed: bool) {
        eventually(&format!("sealed: {sealed}"), async || {
            let status = self.status().await;
            (status["sealed"] == sealed)
                .then_some(())
                .ok_or_else(|| status.to_string())
        })
        .await;
    }
}
