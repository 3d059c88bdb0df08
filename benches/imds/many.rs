//! Many SealConfigs with the node's role, on one operator behind the hop.

use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::{
    kms::{Context, Kms},
    netns::Network,
    operator::Operator,
    plane::within,
    stage::{Stage, condition, simple},
    subjects,
};

/// Requests of one client in flight at a time.
const IN_FLIGHT: usize = 16;

/// A namespace and a scripted KMS.
pub struct Many {
    stage: Stage,
    kms: Kms,
}

impl Many {
    pub async fn prepare() -> Self {
        Self {
            stage: Stage::bare("bench-imds", &json!({})).await,
            kms: Kms::start(),
        }
    }

    /// What the operator must reach out of the pod's namespace.
    pub fn ports(&self) -> [u16; 2] {
        let file = std::env::var("KUBECONFIG").unwrap();
        let config: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap();
        [port(server), port(&self.kms.url())]
    }

    /// Makes them all, then starts the operator, and tells what that cost.
    pub async fn run(&self, network: &Network, count: usize) -> String {
        let Stage { plane, namespace } = &self.stage;
        let key = self.kms.key();
        let objects: Vec<Value> = (0..count)
            .map(|index| {
                let name = format!("c-{index}");
                let bytes = format!("{index:032}");
                let ciphertext = self.kms.encrypt(&key, bytes.as_bytes(), &Context::new());
                let mut spec = simple(&key.arn, &ciphertext, &name);
                spec["seals"][0]["awskms"]["credentials"] = json!({"instanceMetadata": {}});
                self.stage.seal_config(&name, &spec)
            })
            .collect();
        stream::iter(&objects)
            .for_each_concurrent(IN_FLIGHT, |object| async {
                plane.create(object).await;
            })
            .await;

        let mut grants = json!({});
        grants[namespace] = json!([key.arn]);
        let file = std::env::temp_dir().join(format!("{namespace}-grants.json"));
        std::fs::write(&file, grants.to_string()).unwrap();
        network.set(&json!({"hop_limit": 2}));
        let before = network.seen().len();
        let operator = Operator::new()
            .env("AWS_ENDPOINT_URL_KMS", self.kms.url())
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_SECRET_ACCESS_KEY")
            .without("AWS_EC2_METADATA_DISABLED")
            .flags(["--watch-namespaces", namespace])
            .flags(["--operator-identity-namespaces", namespace])
            .flags(["--operator-identity-grants", file.to_str().unwrap()])
            .launched_by(network.pod_launcher());
        let started = Instant::now();
        let running = operator.spawn();
        within(Duration::from_mins(5), "all Ready", async || {
            let configs = plane.list("SealConfig", namespace).await;
            let ready = configs
                .iter()
                .filter(|config| condition(config, "Ready")["status"] == "True")
                .count();
            if ready == count {
                Ok(())
            } else {
                Err(format!("{ready} of {count}"))
            }
        })
        .await;
        let took = started.elapsed();

        let metrics = subjects::metrics(network, &running.metrics_address().to_string());
        let probes: u64 = metrics
            .lines()
            .filter(|line| line.starts_with("autounseal_imds_probe_total"))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        running.stop();
        let _ = std::fs::remove_file(file);
        let seen = &network.seen()[before..];
        let tokens = seen.iter().filter(|(method, ..)| method == "PUT").count();
        let fetches = seen
            .iter()
            .filter(|(_, path, _)| path.ends_with("/node-role"))
            .count();
        format!(
            "{count} SealConfigs with the node's role, {:.1} s from the operator's start until all are Ready: probes {probes}, \
             token requests {tokens} (the probes' included), fetches of credentials {fetches}, requests in all {}",
            took.as_secs_f64(),
            seen.len(),
        )
    }
}

fn port(url: &str) -> u16 {
    let port = url.rsplit(':').next().unwrap();
    port.trim_end_matches('/').parse().unwrap()
}
