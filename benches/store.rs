//! `cargo xtask bench store`: what several seals cost, and what a silent one does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on should say so and end; figures are its output"
)]
#![allow(dead_code, reason = "the modules are shared with the integration tests")]

mod common;
#[path = "../tests/integration/support/http.rs"]
mod http;
#[path = "../tests/integration/support/kms.rs"]
mod kms;
#[path = "../tests/integration/support/operator.rs"]
mod operator;
#[path = "../tests/integration/support/plane.rs"]
mod plane;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    common::{binary, ms, row},
    kms::{Key, Kms},
    operator::Operator,
    plane::{Plane, within},
};

/// SealConfigs of each kind, made in turn.
const EACH: usize = 40;
/// Secrets that are opened anew while the first seal is silent.
const SILENT: usize = 10;
/// What the operator waits for a silent seal (`controller::open::HEDGE`).
const HEDGE: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("\nbench store\n");
    let bench = Bench::prepare().await;
    let running = bench.operator.start();
    bench.several_seals().await;
    bench.rotation().await;
    bench.silent_seal().await;
    running.stop();
    println!();
}

struct Bench {
    plane: Plane,
    kms: Kms,
    keys: [Key; 2],
    operator: Operator,
    namespace: String,
}

impl Bench {
    async fn prepare() -> Self {
        let plane = Plane::connect().await;
        let kms = Kms::start();
        let keys = [kms.key(), kms.key()];
        let namespace = format!("bench-store-{}", jiff::Timestamp::now().as_millisecond());
        plane
            .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
            .await;
        plane
            .create(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "aws", "namespace": namespace},
                "stringData": {"access_key": "AKIAINTEGRATIONTEST0", "secret_key": "bench"}}))
            .await;
        let operator = Operator::new()
            .env("AWS_ENDPOINT_URL_KMS", kms.url())
            .flags(["--watch-namespaces", &namespace]);
        Self {
            plane,
            kms,
            keys,
            operator,
            namespace,
        }
    }

    fn seal_config(&self, name: &str, seals: usize, generate: &Value) -> Value {
        let seals: Vec<Value> = self
            .keys
            .iter()
            .take(seals)
            .enumerate()
            .map(|(index, key)| {
                json!({"name": format!("seal-{index}"), "priority": index, "awskms": {
                    "kmsKeyID": key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}})
            })
            .collect();
        json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "seals": seals, "keys": [{"name": "root", "generate": generate}],
                "targets": [{"name": "app", "secret": {"name": name}}],
            },
        })
    }

    async fn delivered(&self, name: &str) -> Value {
        let start = Instant::now();
        loop {
            if let Some(secret) = self.plane.get("Secret", &self.namespace, name).await {
                return secret;
            }
            assert!(
                start.elapsed() < Duration::from_mins(1),
                "{name} was not delivered"
            );
            // The figures are some ten milliseconds: the polling must not be one of them.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// From the apply to the Secret: read, wrap, open again, write the store, read it back, deliver.
    async fn several_seals(&self) {
        let mut took = [Vec::new(), Vec::new()];
        for index in 0..EACH {
            for seals in [1, 2] {
                let name = format!("s{seals}-{index}");
                let start = Instant::now();
                self.plane
                    .create(&self.seal_config(&name, seals, &json!({})))
                    .await;
                self.delivered(&name).await;
                took[seals - 1].push(start.elapsed());
            }
        }
        let [one, two] = took.map(median);
        row("apply to delivered, one seal, median", ms(one), "");
        row(
            "apply to delivered, two seals, median",
            ms(two),
            &format!("ratio {:.2}, aim 1.3", two.as_secs_f64() / one.as_secs_f64()),
        );
    }

    async fn rotation(&self) {
        let trigger = |value: &str| json!({"rotation": {"trigger": value}});
        let name = "rotated";
        self.plane
            .create(&self.seal_config(name, 2, &trigger("one")))
            .await;
        let before = self.delivered(name).await["data"]["root"].clone();
        self.settled(name, 1).await;
        let calls = self.kms.calls().len();
        self.plane
            .apply(&self.seal_config(name, 2, &trigger("two")))
            .await;
        within(Duration::from_mins(1), "the new version", async || {
            let now = self.delivered(name).await["data"]["root"].clone();
            (now != before)
                .then_some(())
                .ok_or_else(|| "the old version".to_owned())
        })
        .await;
        self.settled(name, 2).await;
        let all = self.kms.calls();
        let of = |operation: &str| {
            all.iter()
                .skip(calls)
                .filter(|call| call.operation == operation)
                .count()
        };
        row(
            "KMS calls of a rotation, two seals",
            format!("{} Encrypt, {} Decrypt", of("Encrypt"), of("Decrypt")),
            "a copy for each seal, each opened again; the version before is opened once",
        );
    }

    async fn settled(&self, name: &str, version: u64) {
        within(Duration::from_mins(1), name, async || {
            let config = self.plane.get("SealConfig", &self.namespace, name).await.unwrap();
            let key = &config["status"]["keys"][0];
            (key["version"] == version)
                .then_some(())
                .ok_or_else(|| config["status"].to_string())
        })
        .await;
    }

    /// The seal of the highest priority never answers; a Secret that is gone comes back through the other.
    async fn silent_seal(&self) {
        let again = async |name: &str| {
            let start = Instant::now();
            self.plane.delete("Secret", &self.namespace, name).await;
            self.delivered(name).await;
            start.elapsed()
        };
        let (mut well, mut silent) = (Vec::new(), Vec::new());
        for index in 0..SILENT {
            well.push(again(&format!("s2-{index}")).await);
        }
        self.kms.set_state(&self.keys[0], "Silent");
        for index in SILENT..2 * SILENT {
            silent.push(again(&format!("s2-{index}")).await);
        }
        self.kms.set_state(&self.keys[0], "Enabled");
        let (well, silent) = (median(well), median(silent));
        row("deleted to delivered, both seals well, median", ms(well), "");
        row(
            "deleted to delivered, the first seal silent, median",
            ms(silent),
            &format!("{} after the hedge of 1 s", ms(silent.saturating_sub(HEDGE))),
        );
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
