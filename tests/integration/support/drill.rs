//! A drill: one SealConfig with a generated key under two clouds, in a namespace of its own, and everything that its
//! wrapped store and its delivered Secret ever were.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use autounseal::seal::{
    KeyBytes,
    check_value::{Binding, check_value},
};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::{Value, json};

use super::{
    operator::Operator,
    plane::{eventually, within},
    stage::{Stage, condition, data_of, speaks_of_now, unique},
};
use crate::generated::Clouds;

/// The entries of a Secret.
pub type Data = BTreeMap<String, Vec<u8>>;

/// The name of the SealConfig and of the Secret that it delivers.
pub const NAME: &str = "bao";

/// Its store.
pub const STORE: &str = "bao.sealconfig.wrapped";

/// A state that a Secret was in; no data when it was deleted.
#[derive(Clone, Debug)]
pub struct State {
    /// Which Secret.
    pub name: String,
    /// Its entries.
    pub data: Data,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// It was deleted.
    pub gone: bool,
}

/// One drill.
pub struct Drill<'c> {
    /// The two KMSes.
    pub clouds: &'c Clouds,
    /// The namespace.
    pub stage: Stage,
    class: String,
    history: Arc<Mutex<Vec<State>>>,
    watcher: tokio::task::JoinHandle<()>,
}

impl Drop for Drill<'_> {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl<'c> Drill<'c> {
    /// Sets it up, with credentials for both clouds and nothing else.
    pub async fn new(clouds: &'c Clouds, name: &str) -> Self {
        let stage = Stage::new(name).await;
        let user = &clouds.oci.user;
        let mut secret = stage.object("v1", "Secret", "oci");
        secret["stringData"] = json!({"user": user.user, "tenancy": user.tenancy, "region": user.region,
            "fingerprint": user.fingerprint, "key.pem": user.pem});
        stage.plane.create(&secret).await;
        let history = Arc::<Mutex<Vec<State>>>::default();
        let api = Api::namespaced(stage.plane.client(), &stage.namespace);
        let watcher = tokio::spawn(record(api, history.clone()));
        Self {
            clouds,
            stage,
            class: format!("d{}", unique()),
            history,
            watcher,
        }
    }

    /// An operator of this drill.
    pub fn operator(&self) -> Operator {
        let oci = &self.clouds.oci.oci;
        let endpoints = [oci.url("crypto"), oci.url("management")].join(",");
        let flags = [
            "--controller-class",
            &self.class,
            "--watch-namespaces",
            &self.stage.namespace,
            "--allowed-endpoints",
            &endpoints,
            "--log-format",
            "json",
            "--log-level",
            "debug",
        ];
        self.clouds.operator().with_flags(flags.map(ToOwned::to_owned))
    }

    /// The usual spec, with a trigger.
    pub fn spec(&self, trigger: &str) -> Value {
        let mut spec = self.clouds.spec(NAME);
        spec["controllerClass"] = json!(self.class);
        spec["keys"][0]["generate"]["rotation"] = json!({"trigger": trigger});
        spec
    }

    /// Applies the usual spec with this trigger.
    pub async fn apply(&self, trigger: &str) {
        self.stage.apply(NAME, &self.spec(trigger)).await;
    }

    /// Whether all is well at this version.
    pub async fn is_at(&self, version: u64) -> Result<Data, String> {
        let Some(config) = self
            .stage
            .plane
            .get("SealConfig", &self.stage.namespace, NAME)
            .await
        else {
            return Err("no such SealConfig".to_owned());
        };
        let key = &config["status"]["keys"][0];
        let well = condition(&config, "Ready")["status"] == "True"
            && speaks_of_now(&config)
            && key["version"] == version
            && key["wrappedUnder"] == json!(["aws", "oci"]);
        let data = self.stage.secret(NAME).await;
        data.filter(|_| well)
            .ok_or_else(|| format!("{:#}", config["status"]))
    }

    /// Waits until all is well at this version.
    pub async fn at(&self, version: u64) -> Data {
        within(
            Duration::from_mins(1),
            &format!("version {version}"),
            async || self.is_at(version).await,
        )
        .await
    }

    /// Waits until Ready is False for this reason and gives back the message.
    pub async fn told(&self, reason: &str) -> String {
        self.stage.not_ready(NAME, reason).await
    }

    /// The store as it is.
    pub async fn store(&self) -> Data {
        self.stage.secret(STORE).await.unwrap_or_default()
    }

    /// The store's header.
    pub async fn header(&self) -> Value {
        header(&self.store().await)
    }

    /// Replaces all entries of the store by these.
    pub async fn put_store(&self, data: &Data) {
        let mut object = self.stage.object("v1", "Secret", STORE);
        object["type"] = json!("autounseal.dev/wrapped");
        object["data"] = encoded(data);
        let plane = &self.stage.plane;
        if let Some(now) = plane.get("Secret", &self.stage.namespace, STORE).await {
            let mut patch = object["data"].clone();
            for name in data_of(&now).keys().filter(|name| !data.contains_key(*name)) {
                patch[name] = Value::Null;
            }
            plane
                .patch("Secret", &self.stage.namespace, STORE, &json!({"data": patch}))
                .await;
        } else {
            plane.create(&object).await;
        }
    }

    /// Changes the store's header by hand.
    pub async fn edit_header(&self, change: impl FnOnce(&mut Value)) {
        let mut data = self.store().await;
        let mut header = header(&data);
        change(&mut header);
        data.insert("header".to_owned(), header.to_string().into_bytes());
        self.put_store(&data).await;
    }

    /// Deletes the store.
    pub async fn delete_store(&self) {
        self.stage
            .plane
            .delete("Secret", &self.stage.namespace, STORE)
            .await;
    }

    /// Deletes what was delivered, and waits until the same is there again.
    pub async fn comes_back(&self, expected: &Data) {
        self.stage
            .plane
            .delete("Secret", &self.stage.namespace, NAME)
            .await;
        eventually("it comes back", async || {
            let data = self.stage.secret(NAME).await;
            (data.as_ref() == Some(expected))
                .then_some(())
                .ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }

    /// Takes away everything that the status says.
    pub async fn lose_status(&self) {
        let names = [
            "conditions",
            "keys",
            "seals",
            "targets",
            "summary",
            "observedGeneration",
        ];
        let nothing: Value = names
            .iter()
            .map(|name| ((*name).to_owned(), Value::Null))
            .collect();
        let (plane, namespace) = (&self.stage.plane, &self.stage.namespace);
        plane.patch_status("SealConfig", namespace, NAME, &nothing).await;
    }

    /// Everything that happened until now.
    pub async fn history(&self) -> Vec<State> {
        let marker = format!("marker-{}", unique());
        self.stage.secret_of(&marker, &[]).await;
        eventually("the watch has seen all", async || {
            let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            if history.iter().any(|state| state.name == marker) {
                Ok(history.clone())
            } else {
                Err("not yet".to_owned())
            }
        })
        .await
    }

    /// The check value of bytes as a version of the drill's key.
    pub fn check_value(&self, bytes: &[u8]) -> String {
        let place = Binding {
            kind: "SealConfig",
            namespace: &self.stage.namespace,
            name: NAME,
            key: "static",
        };
        check_value(&KeyBytes::new(bytes.to_vec()), &place).unwrap()
    }

    /// What was delivered, by version number as the Secret's annotation has it; no number has two values, and none comes
    /// after a higher one.
    pub async fn delivered(&self) -> Vec<(u64, Vec<u8>)> {
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        for state in self.history().await.iter().filter(|state| state.name == NAME) {
            let Some(bytes) = state.data.get("current.key") else {
                continue;
            };
            let marks: Value = serde_json::from_str(&state.annotations["autounseal.dev/keys"]).unwrap();
            let version = marks["static"]["version"].as_u64().unwrap();
            match found.last() {
                Some((last, value)) if *last == version => {
                    assert_eq!(value, bytes, "version {version} was delivered with two values");
                }
                Some((last, _)) => {
                    assert!(*last < version, "version {version} was delivered after {last}");
                    found.push((version, bytes.clone()));
                }
                None => found.push((version, bytes.clone())),
            }
        }
        found
    }

    /// Holds that whatever happened, at every moment: what is delivered is a version of the store; a number has one value;
    /// the version in use lies, undamaged, under both seals; the version in use never goes back.
    pub async fn holds(&self) {
        let mut values: BTreeMap<u64, String> = BTreeMap::new();
        let mut current = 0;
        let mut stored = false;
        for state in self.history().await {
            if state.name == STORE {
                assert!(!state.gone, "nobody deletes the store");
                stored = true;
                let section = header(&state.data)["keys"]["static"]["section"].clone();
                let now = section["current"].as_u64().unwrap();
                assert!(
                    now >= current,
                    "the version in use went back from {current} to {now}"
                );
                current = now;
                for (number, version) in section["versions"].as_object().unwrap() {
                    let value = version["checkValue"].as_str().unwrap().to_owned();
                    let known = values
                        .entry(number.parse().unwrap())
                        .or_insert_with(|| value.clone());
                    assert_eq!(*known, value, "version {number} was made twice");
                }
                for seal in ["aws", "oci"] {
                    let record = &section["versions"][current.to_string()]["copies"][seal];
                    let item = &state.data[&format!("key.static.v{current}.{seal}")];
                    assert_eq!(
                        record["digest"],
                        sha256(item),
                        "the copy of {seal} is not what is said"
                    );
                }
            } else if state.name == NAME && !state.gone {
                assert!(stored, "delivered before it was stored");
                let bytes = &state.data["current.key"];
                let value = self.check_value(bytes);
                assert_eq!(
                    values.get(&current),
                    Some(&value),
                    "what is delivered is not the version in use"
                );
                if let Some(previous) = state.data.get("previous.key") {
                    assert_eq!(values.get(&(current - 1)), Some(&self.check_value(previous)));
                }
            }
        }
        self.delivered().await;
    }
}

/// The header in a store's entries.
pub fn header(data: &Data) -> Value {
    data.get("header")
        .and_then(|bytes| serde_json::from_slice(bytes).ok())
        .unwrap_or_default()
}

/// Entries as the API writes them.
pub fn encoded(data: &Data) -> Value {
    data.iter()
        .map(|(name, bytes)| (name.clone(), json!(data_encoding::BASE64.encode(bytes))))
        .collect()
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    use aws_lc_rs::digest::{SHA256, digest};
    data_encoding::HEXLOWER.encode(digest(&SHA256, bytes).as_ref())
}

/// Writes down every state that a Secret is in, until it is aborted.
pub async fn record(api: Api<Secret>, history: Arc<Mutex<Vec<State>>>) {
    let mut version = "0".to_owned();
    loop {
        let Ok(stream) = api.watch(&WatchParams::default(), &version).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut stream = stream.boxed();
        while let Ok(Some(event)) = stream.try_next().await {
            let (secret, gone) = match event {
                WatchEvent::Added(secret) | WatchEvent::Modified(secret) => (secret, false),
                WatchEvent::Deleted(secret) => (secret, true),
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
            };
            version = secret.metadata.resource_version.unwrap_or(version);
            let data = secret.data.unwrap_or_default();
            let state = State {
                name: secret.metadata.name.unwrap_or_default(),
                data: data.into_iter().map(|(name, bytes)| (name, bytes.0)).collect(),
                annotations: secret.metadata.annotations.unwrap_or_default(),
                gone,
            };
            history.lock().unwrap_or_else(PoisonError::into_inner).push(state);
        }
    }
}
