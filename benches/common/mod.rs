//! What the measuring programs share: how figures are printed, and what the kernel and the apiserver count.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, WatchEvent, WatchParams};
use serde_json::Value;

use crate::plane::Plane;

/// The kinds that the operator writes, as the apiserver's metrics call them.
const WRITTEN: [&str; 7] = [
    "sealconfigs",
    "secrets",
    "events",
    "pods",
    "deployments",
    "statefulsets",
    "daemonsets",
];

/// What the operator's binary is; the operator module asks its parent for it.
pub fn binary() -> String {
    std::env::var("AUTOUNSEAL_BIN").expect("AUTOUNSEAL_BIN is set by cargo xtask bench")
}

/// One figure: what, how much, and what it is to be compared with.
pub fn row(what: &str, figure: impl Display, beside: &str) {
    println!("{what:<44} {figure:<48} {beside}");
}

/// Bytes for people.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1024.0 / 1024.0)
}

/// A short time for people.
pub fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// The value below which so much of all lies.
pub fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

/// Whether a SealConfig is Ready.
pub fn is_ready(config: &Value) -> bool {
    config
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A line of `/proc/PID/status` (`VmRSS`, `VmHWM`), in bytes.
pub fn resident(pid: u32, line: &str) -> u64 {
    std::fs::read_to_string(format!("/proc/{pid}/status"))
        .unwrap_or_default()
        .lines()
        .find_map(|text| {
            text.strip_prefix(line)?
                .strip_prefix(':')?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or_default()
        * 1024
}

/// Processor time of a process so far: all its threads, as the scheduler counts it.
pub fn cpu(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let of_one = |path: std::path::PathBuf| -> Option<u64> {
        let text = std::fs::read_to_string(path.join("schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    Duration::from_nanos(threads.filter_map(|thread| of_one(thread.path())).sum())
}

/// Requests that the apiserver has counted so far, by verb. Those for `/metrics` itself are left out.
pub async fn requests(plane: &Plane) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let text = plane.text("/metrics").await;
    for line in text
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"))
    {
        let label = |name: &str| {
            let (_, rest) = line.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let (Some(verb), Some(resource)) = (label("verb"), label("resource")) else {
            continue;
        };
        if WRITTEN.contains(&resource.as_str())
            || ["configmaps", "namespaces", "serviceaccounts"].contains(&resource.as_str())
        {
            let count: f64 = line
                .rsplit(' ')
                .next()
                .and_then(|n| n.parse().ok())
                .unwrap_or_default();
            *counts.entry(verb).or_default() += count as u64;
        }
    }
    counts
}

/// What has come since, by verb; verbs without any are left out.
pub fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    after
        .iter()
        .map(|(verb, count)| {
            (
                verb.clone(),
                count - before.get(verb).copied().unwrap_or_default(),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// How many of these requests wrote something.
pub fn writes(requests: &BTreeMap<String, u64>) -> u64 {
    ["POST", "PUT", "PATCH", "APPLY", "DELETE"]
        .iter()
        .filter_map(|verb| requests.get(*verb))
        .sum()
}

/// A watch that counts the SealConfigs which became Ready.
pub struct Readiness {
    api: Api<DynamicObject>,
    events: stream::BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>,
    ready: HashSet<(Option<String>, Option<String>)>,
}

impl Readiness {
    /// Of one namespace, or of all.
    pub async fn watch(plane: &Plane, namespace: Option<&str>) -> Self {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("autounseal.dev", "v1alpha1", "SealConfig"),
            "sealconfigs",
        );
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(plane.client(), namespace, &kind),
            None => Api::all_with(plane.client(), &kind),
        };
        Self {
            events: Self::events(&api, "0").await,
            ready: HashSet::new(),
            api,
        }
    }

    async fn events(
        api: &Api<DynamicObject>,
        version: &str,
    ) -> stream::BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>> {
        // The apiserver ends a watch after some minutes on its own, unless it is asked for a longer one; 295 s is kube's most.
        let params = WatchParams::default().timeout(294);
        api.watch(&params, version).await.unwrap().boxed()
    }

    fn saw(&mut self, object: DynamicObject) {
        // Those of the plain client are nobody's, and say what it was told to write.
        let class = object.data["spec"]["controllerClass"].as_str();
        if class.is_none_or(str::is_empty) && is_ready(&object.data) {
            self.ready
                .insert((object.metadata.namespace, object.metadata.name));
        }
    }

    /// The apiserver ends the watch of a client that is slower than the changes.
    async fn again(&mut self) {
        let listed = self.api.list(&ListParams::default()).await.unwrap();
        let version = listed.metadata.resource_version.unwrap_or_default();
        for object in listed.items {
            self.saw(object);
        }
        self.events = Self::events(&self.api, &version).await;
    }

    /// Until so many are.
    pub async fn wait(&mut self, count: usize) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(280);
        while self.ready.len() < count {
            let event = tokio::time::timeout_at(deadline, self.events.try_next())
                .await
                .unwrap_or_else(|_| panic!("only {} of {count} became Ready", self.ready.len()));
            match event {
                Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object))) => self.saw(object),
                Ok(Some(WatchEvent::Deleted(_) | WatchEvent::Bookmark(_))) => {}
                Ok(Some(WatchEvent::Error(_)) | None) | Err(_) => self.again().await,
            }
        }
    }
}
