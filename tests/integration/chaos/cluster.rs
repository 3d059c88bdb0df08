//! A control plane that may be broken: an etcd and an apiserver like those of `cargo xtask cluster`, beside them, so that
//! nobody else's test feels it.

use std::{path::PathBuf, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    apiserver::{Process, apiserver},
    operator::free_port,
    plane::{Plane, within},
    stage::{repository, unique},
};

/// Longer than any fault, and any start.
const PATIENCE: Duration = Duration::from_mins(3);

/// The control plane; it ends with this.
pub struct Cluster {
    /// The store.
    pub etcd: Process,
    /// The API.
    pub apiserver: Process,
    /// An admin who does not give up.
    pub plane: Plane,
    etcd_url: String,
    port: u16,
    kubeconfig: Value,
    folder: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A process that stands still is killed all the same.
        self.apiserver.signal(Signal::KILL);
        self.etcd.signal(Signal::KILL);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The kubeconfig with another port in it.
fn at_port(kubeconfig: &Value, port: u16) -> Value {
    let mut other = kubeconfig.clone();
    other["clusters"][0]["cluster"]["server"] = json!(format!("https://127.0.0.1:{port}"));
    other
}

async fn client(kubeconfig: &Value) -> Client {
    let kubeconfig: Kubeconfig = serde_json::from_value(kubeconfig.clone()).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    // A server that was frozen and killed says nothing more.
    config.read_timeout = Some(Duration::from_secs(30));
    Client::try_from(config).unwrap()
}

impl Cluster {
    /// Starts it, with our kinds.
    pub async fn start() -> Self {
        let model = apiserver();
        let old_etcd = model.value("--etcd-servers=").unwrap().to_owned();
        let etcd = Process::find("etcd", &format!("--listen-client-urls={old_etcd}")).unwrap();
        let [clients, peers, api] = [(); 3].map(|()| free_port());
        let folder = std::env::temp_dir().join(format!("autounseal-chaos-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        let old_peers = etcd.value("--listen-peer-urls=").unwrap().to_owned();
        let old_folder = etcd.value("--data-dir=").unwrap().to_owned();
        let data = folder.join("etcd").display().to_string();
        let etcd_url = format!("http://{clients}");
        let etcd = etcd.another(
            |word| {
                word.replace(&old_etcd, &etcd_url)
                    .replace(&old_peers, &format!("http://{peers}"))
                    .replace(&old_folder, &data)
            },
            // A store that is killed must have what it said it has.
            &[
                &format!("--initial-cluster-token={data}"),
                "--unsafe-no-fsync=false",
            ],
        );
        let old_port = model.value("--secure-port=").unwrap().to_owned();
        let apiserver = model.another(
            |word| match word.strip_prefix("--secure-port=") {
                Some(port) if port == old_port => format!("--secure-port={}", api.port()),
                _ => word.replace(&old_etcd, &etcd_url),
            },
            // So that whoever reads the store can read it, all of it, back to the first word.
            &[
                "--storage-media-type=application/json",
                "--etcd-compaction-interval=0",
            ],
        );
        let text = std::fs::read_to_string(std::env::var("KUBECONFIG").unwrap()).unwrap();
        let kubeconfig = at_port(&serde_json::from_str(&text).unwrap(), api.port());
        let plane = Plane::broken(client(&kubeconfig).await, PATIENCE);
        let cluster = Self {
            etcd,
            apiserver,
            plane,
            etcd_url,
            port: api.port(),
            kubeconfig,
            folder,
        };
        cluster.define().await;
        cluster
    }

    async fn define(&self) {
        let text = std::fs::read_to_string(repository("crds/autounseal.dev.yaml")).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let definition: Value = serde::Deserialize::deserialize(document).unwrap();
            let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
            self.plane.apply(&definition).await;
            within(PATIENCE, &format!("{name} is established"), async || {
                let now = self
                    .plane
                    .get("CustomResourceDefinition", "", &name)
                    .await
                    .unwrap_or_default();
                let conditions = now["status"]["conditions"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let established = conditions
                    .iter()
                    .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
                established.then_some(()).ok_or_else(|| now["status"].to_string())
            })
            .await;
        }
        within(PATIENCE, "the default namespace", async || {
            let found = self.plane.get("Namespace", "", "default").await;
            found.map(drop).ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }

    /// Where the API listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the store listens.
    pub fn etcd_url(&self) -> &str {
        &self.etcd_url
    }

    /// A kubeconfig that goes by another port; its path.
    pub fn kubeconfig(&self, port: u16) -> String {
        let path = self.folder.join(format!("kubeconfig-{port}.json"));
        std::fs::write(&path, at_port(&self.kubeconfig, port).to_string()).unwrap();
        path.display().to_string()
    }

    /// As a service manager would: what ended by itself is started again.
    pub fn tend(&mut self) {
        self.etcd.revive();
        self.apiserver.revive();
    }
}
