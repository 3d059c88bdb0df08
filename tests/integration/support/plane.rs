//! The control plane as plain JSON over its REST paths: tests see what a user's tools see.

use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

/// An admin's client of the throwaway control plane.
#[derive(Clone)]
pub struct Plane {
    client: Client,
    /// How long a request is repeated that nobody answered, or that the apiserver could not serve.
    patience: Duration,
}

/// What the apiserver answered when it refused.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// `Invalid`, `NotFound`, …
    pub reason: String,
    /// Sentence.
    pub message: String,
}

type Answer = Result<Value, Refusal>;

/// Where objects of a kind live.
fn root(kind: &str) -> (&'static str, &'static str, bool) {
    match kind {
        "Namespace" => ("/api/v1", "namespaces", false),
        "Secret" => ("/api/v1", "secrets", true),
        "ConfigMap" => ("/api/v1", "configmaps", true),
        "ServiceAccount" => ("/api/v1", "serviceaccounts", true),
        "Pod" => ("/api/v1", "pods", true),
        "Event" => ("/apis/events.k8s.io/v1", "events", true),
        "Deployment" => ("/apis/apps/v1", "deployments", true),
        "ReplicaSet" => ("/apis/apps/v1", "replicasets", true),
        "StatefulSet" => ("/apis/apps/v1", "statefulsets", true),
        "DaemonSet" => ("/apis/apps/v1", "daemonsets", true),
        "Lease" => ("/apis/coordination.k8s.io/v1", "leases", true),
        "PodDisruptionBudget" => ("/apis/policy/v1", "poddisruptionbudgets", true),
        "SealConfig" => ("/apis/autounseal.dev/v1alpha1", "sealconfigs", true),
        "ManagedKey" => ("/apis/autounseal.dev/v1alpha1", "managedkeys", true),
        "CustomResourceDefinition" => (
            "/apis/apiextensions.k8s.io/v1",
            "customresourcedefinitions",
            false,
        ),
        "TokenReview" => ("/apis/authentication.k8s.io/v1", "tokenreviews", false),
        "Role" => ("/apis/rbac.authorization.k8s.io/v1", "roles", true),
        "RoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "rolebindings", true),
        "ClusterRole" => ("/apis/rbac.authorization.k8s.io/v1", "clusterroles", false),
        "ClusterRoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings", false),
        other => unreachable!("no path for {other}"),
    }
}

fn collection(kind: &str, namespace: &str) -> String {
    let (api, plural, namespaced) = root(kind);
    if namespaced {
        format!("{api}/namespaces/{namespace}/{plural}")
    } else {
        format!("{api}/{plural}")
    }
}

impl Plane {
    /// The control plane of `cargo xtask cluster`.
    pub async fn connect() -> Self {
        Self {
            client: Client::try_default()
                .await
                .expect("run the integration tests with: cargo xtask cluster -- cargo test --features integration --test integration"),
            patience: Duration::ZERO,
        }
    }

    /// A control plane that is broken on purpose: whoever asks it for something asks again, for so long.
    pub fn broken(client: Client, patience: Duration) -> Self {
        Self { client, patience }
    }

    /// The typed client, where a test needs one.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    async fn send(&self, method: &str, path: &str, content_type: &str, body: Option<&Value>) -> Answer {
        let asked = std::time::Instant::now();
        loop {
            let error = match self.send_once(method, path, content_type, body).await {
                Ok(value) => return Ok(value),
                Err(kube::Error::Api(status)) if status.code < 429 || asked.elapsed() >= self.patience => {
                    return Err(Refusal {
                        code: status.code,
                        reason: status.reason.clone(),
                        message: status.message.clone(),
                    });
                }
                Err(error) => error,
            };
            assert!(asked.elapsed() < self.patience, "{method} {path}: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn send_once(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
    ) -> kube::Result<Value> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(body.map(|b| b.to_string().into_bytes()).unwrap_or_default())
            .unwrap();
        self.client.request::<Value>(request).await
    }

    /// GET of any path, as text.
    pub async fn text(&self, path: &str) -> String {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        self.client.request_text(request).await.unwrap()
    }

    /// A token of a ServiceAccount for the apiserver, as the kubelet requests it for a pod.
    pub async fn token(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let answer = self.send("POST", &path, "application/json", Some(&request)).await;
        answer.unwrap()["status"]["token"].as_str().unwrap().to_owned()
    }

    /// POST with strict field validation.
    pub async fn try_create(&self, object: &Value) -> Answer {
        let kind = object["kind"].as_str().unwrap();
        let namespace = object
            .pointer("/metadata/namespace")
            .and_then(Value::as_str)
            .unwrap_or("default");
        let path = format!("{}?fieldValidation=Strict", collection(kind, namespace));
        self.send("POST", &path, "application/json", Some(object)).await
    }

    /// POST that must go well.
    pub async fn create(&self, object: &Value) -> Value {
        match self.try_create(object).await {
            Ok(value) => value,
            Err(refusal) => panic!("{refusal:?} for {object:#}"),
        }
    }

    /// Server-side apply as the user's tool, with strict field validation.
    pub async fn try_apply(&self, object: &Value) -> Answer {
        let kind = object["kind"].as_str().unwrap();
        let namespace = object
            .pointer("/metadata/namespace")
            .and_then(Value::as_str)
            .unwrap_or("default");
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap();
        let path = format!(
            "{}/{name}?fieldManager=user&force=true&fieldValidation=Strict",
            collection(kind, namespace)
        );
        self.send("PATCH", &path, "application/apply-patch+yaml", Some(object))
            .await
    }

    /// Server-side apply that must go well.
    pub async fn apply(&self, object: &Value) -> Value {
        match self.try_apply(object).await {
            Ok(value) => value,
            Err(refusal) => panic!("{refusal:?} for {object:#}"),
        }
    }

    /// GET, `None` when it is not there.
    pub async fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let path = format!("{}/{name}", collection(kind, namespace));
        match self.send("GET", &path, "application/json", None).await {
            Ok(value) => Some(value),
            Err(refusal) if refusal.code == 404 => None,
            Err(refusal) => panic!("{refusal:?} for {path}"),
        }
    }

    /// LIST of a namespace.
    pub async fn list(&self, kind: &str, namespace: &str) -> Vec<Value> {
        let answer = self
            .send("GET", &collection(kind, namespace), "application/json", None)
            .await
            .unwrap();
        answer["items"].as_array().cloned().unwrap_or_default()
    }

    /// JSON merge patch.
    pub async fn try_patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Answer {
        let url = format!("{}/{name}", collection(kind, namespace));
        self.send("PATCH", &url, "application/merge-patch+json", Some(patch))
            .await
    }

    /// JSON merge patch that must go well.
    pub async fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) -> Value {
        match self.try_patch(kind, namespace, name, patch).await {
            Ok(value) => value,
            Err(refusal) => panic!("{refusal:?} for {patch:#}"),
        }
    }

    /// JSON merge patch of the status subresource: the kubelet's and the controllers' part.
    pub async fn patch_status(&self, kind: &str, namespace: &str, name: &str, status: &Value) -> Value {
        let path = format!("{}/{name}/status", collection(kind, namespace));
        self.send(
            "PATCH",
            &path,
            "application/merge-patch+json",
            Some(&json!({"status": status})),
        )
        .await
        .unwrap()
    }

    /// DELETE without grace; nothing there is fine.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) {
        let path = format!("{}/{name}?gracePeriodSeconds=0", collection(kind, namespace));
        match self.send("DELETE", &path, "application/json", None).await {
            Err(refusal) if refusal.code != 404 => panic!("{refusal:?} for {path}"),
            _ => {}
        }
    }
}

/// Polls until the probe says yes; noisy machines get half a minute, and the last word of the probe is shown.
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    within(Duration::from_secs(40), what, probe).await
}

/// Polls until the probe says yes or time is up.
pub async fn within<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T, String>) -> T {
    let start = std::time::Instant::now();
    loop {
        match probe().await {
            Ok(value) => return value,
            Err(last) => assert!(
                start.elapsed() < limit,
                "{what} did not come true within {limit:?}: {last}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
