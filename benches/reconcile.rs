//! `cargo xtask bench reconcile --count N`: how fast, how large and how quiet the operator is, beside what a
//! plain client reaches on the same apiserver.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on should say so and end; figures are its output"
)]
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
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

use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::{
    common::{Readiness, binary, is_ready, mib, ms, percentile, requests, resident, row, writes},
    kms::{Context, Kms},
    operator::Operator,
    plane::Plane,
};

/// Requests of one client in flight at a time.
const IN_FLIGHT: usize = 16;
/// Objects of the one-at-a-time measurement.
const SAMPLES: usize = 200;
/// After this long nothing is on its way any more.
const SETTLE: Duration = Duration::from_secs(5);

struct Settings {
    count: usize,
    idle: Duration,
}

fn settings() -> Option<Settings> {
    let mut settings = Settings {
        count: 1000,
        idle: Duration::from_mins(1),
    };
    let mut asked = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or_else(|| panic!("{argument} needs a number"))
        };
        match argument.as_str() {
            "--bench" => asked = true,
            "--count" => settings.count = number(),
            "--idle" => settings.idle = Duration::from_secs(number() as u64),
            other => panic!("unknown argument {other}; known: --count N, --idle SECONDS"),
        }
    }
    asked.then_some(settings)
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    let Some(settings) = settings() else { return };
    let bench = Bench::prepare(settings).await;
    bench.run().await;
}

struct Bench {
    settings: Settings,
    plane: Plane,
    kms: Kms,
    key: kms::Key,
    operator: Operator,
    /// SealConfigs that are there before the operator.
    existing: String,
    /// SealConfigs that are made while it runs.
    creating: String,
    /// One SealConfig at a time.
    single: String,
    /// Never watched: the plain client's.
    raw: String,
}

impl Bench {
    async fn prepare(settings: Settings) -> Self {
        let plane = Plane::connect().await;
        let kms = Kms::start();
        let key = kms.key();
        let stamp = jiff::Timestamp::now().as_millisecond();
        let name = |part: &str| format!("bench-{part}-{stamp}");
        let (existing, creating) = (name("existing"), name("creating"));
        let (single, raw) = (name("single"), name("raw"));
        for namespace in [&existing, &creating, &single, &raw] {
            plane
                .create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))
                .await;
        }
        // The operator's own identity, granted by the admin: no Secret of credentials to read for each object.
        let granted = [&existing, &creating, &single];
        let grants: Value = granted
            .iter()
            .map(|namespace| ((*namespace).clone(), json!([key.arn])))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let file = std::env::temp_dir().join(name("grants.json"));
        std::fs::write(&file, grants.to_string()).unwrap();
        let namespaces = granted.map(String::as_str).join(",");
        let operator = Operator::new().env("AWS_ENDPOINT_URL_KMS", kms.url()).flags([
            "--watch-namespaces",
            &namespaces,
            "--operator-identity-namespaces",
            &namespaces,
            "--operator-identity-grants",
            file.to_str().unwrap(),
        ]);
        Self {
            settings,
            plane,
            kms,
            key,
            operator,
            existing,
            creating,
            single,
            raw,
        }
    }

    fn config(&self, namespace: &str, index: usize) -> Value {
        let secret = format!("{index:032}");
        let ciphertext = self.kms.encrypt(&self.key, secret.as_bytes(), &Context::new());
        json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": format!("c-{index}"), "namespace": namespace},
            "spec": {
                "seals": [{"name": "aws", "awskms": {"kmsKeyID": self.key.arn}}],
                "keys": [{"name": "root", "wrapped": [
                    {"seal": "aws", "format": "kms", "inline": BASE64.encode(&ciphertext)},
                ]}],
                "targets": [{"name": "app", "secret": {"name": format!("s-{index}")}}],
            },
        })
    }

    /// Creates objects with 16 requests in flight; how long it took.
    async fn create_all(&self, objects: &[Value]) -> Duration {
        let start = Instant::now();
        stream::iter(objects)
            .for_each_concurrent(IN_FLIGHT, |object| async {
                self.plane.create(object).await;
            })
            .await;
        start.elapsed()
    }

    fn configs(&self, namespace: &str) -> Vec<Value> {
        (0..self.settings.count)
            .map(|index| self.config(namespace, index))
            .collect()
    }

    async fn run(&self) {
        let count = self.settings.count;
        let size = std::fs::metadata(binary()).unwrap().len();
        println!("\nbench reconcile, {count} SealConfigs, {IN_FLIGHT} requests in flight\n");
        row("binary", mib(size), "aim ≤ 15 MiB stripped");

        let mut starts: Vec<Duration> = (0..5)
            .map(|_| {
                let running = self.operator.start();
                let after = running.ready_after;
                running.stop();
                after
            })
            .collect();
        starts.sort_unstable();
        row("start → ready", ms(starts[2]), "median of 5, aim ≤ 100 ms");

        // 1. Everything is there before the operator.
        self.create_all(&self.configs(&self.existing)).await;
        let mut ready = Readiness::watch(&self.plane, Some(&self.existing)).await;
        let start = Instant::now();
        let running = self.operator.start();
        row("memory at start", mib(resident(running.pid(), "VmRSS")), "");
        ready.wait(count).await;
        let existing = start.elapsed();
        let decrypts = self.kms.count("Decrypt");
        let describes = self.kms.count("DescribeKey");
        row(
            "KMS calls",
            format!(
                "{:.3} Decrypt a copy, {describes} DescribeKey in all",
                decrypts as f64 / count as f64
            ),
            "aim exactly 1 Decrypt a copy",
        );

        tokio::time::sleep(SETTLE).await;
        row(
            &format!("memory with {count} SealConfigs"),
            format!(
                "peak {}, settled {}",
                mib(resident(running.pid(), "VmHWM")),
                mib(resident(running.pid(), "VmRSS"))
            ),
            "aim settled ≤ 40 MiB at 1,000",
        );

        // 2. Everything is made while it runs.
        let objects = self.configs(&self.creating);
        let mut ready = Readiness::watch(&self.plane, Some(&self.creating)).await;
        let start = Instant::now();
        let (created, ()) = tokio::join!(self.create_all(&objects), ready.wait(count));
        let creating = start.elapsed();

        // 3. The same writes by a plain client that has nothing else to do.
        let (pairs, triples) = self.plain_client().await;
        let rate = |took: Duration| count as f64 / took.as_secs_f64();
        row(
            "plain client, Secret + status",
            format!("{:.0} /s", rate(pairs)),
            "known: 540 /s on 2 cores with etcd not syncing",
        );
        row(
            "plain client, SealConfig + Secret + status",
            format!("{:.0} /s", rate(triples)),
            "",
        );
        row(
            "operator, objects there before",
            format!(
                "{:.0} /s, ratio {:.2}",
                rate(existing),
                rate(existing) / rate(pairs)
            ),
            "aim ≥ 0.7; sealed-secrets 0.12, external-secrets 0.17",
        );
        row(
            "operator, objects made meanwhile",
            format!(
                "{:.0} /s, ratio {:.2} of pairs, {:.2} of triples",
                rate(creating),
                rate(creating) / rate(pairs),
                rate(creating) / rate(triples)
            ),
            &format!("creating alone took {:.1} s", created.as_secs_f64()),
        );

        // 4. One at a time.
        let mut samples = self.one_at_a_time().await;
        samples.sort_unstable();
        let at = |share: f64| percentile(&samples, share);
        row(
            "create → Secret, one at a time",
            format!("p50 {}, p99 {}", ms(at(0.5)), ms(at(0.99))),
            "aim ≤ 10 / 30 ms; sealed-secrets 14.6 / 27.4, external-secrets 11.1 / 101",
        );

        // 5. Nothing happens.
        let (writes, calls) = (self.writes().await, self.kms.calls().len());
        tokio::time::sleep(self.settings.idle).await;
        row(
            "idle",
            format!(
                "{} API writes, {} KMS calls in {} s",
                self.writes().await - writes,
                self.kms.calls().len() - calls,
                self.settings.idle.as_secs()
            ),
            "aim 0 and 0",
        );
        row(
            &format!("memory with {} SealConfigs", 2 * count + SAMPLES),
            format!(
                "peak {}, settled {}",
                mib(resident(running.pid(), "VmHWM")),
                mib(resident(running.pid(), "VmRSS"))
            ),
            "",
        );
        running.stop();

        // 6. The operator itself restarts.
        let (writes, calls) = (self.writes().await, self.kms.calls().len());
        let start = Instant::now();
        let running = self.operator.start();
        let all = (2 * count + SAMPLES) as f64;
        while running.metric("autounseal_reconcile_total", &[]) < all {
            assert!(
                start.elapsed() < Duration::from_mins(2),
                "the restarted operator does not come round"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let round = start.elapsed();
        tokio::time::sleep(SETTLE).await;
        row(
            "after a restart",
            format!(
                "{} API writes, {} KMS calls",
                self.writes().await - writes,
                self.kms.calls().len() - calls
            ),
            &format!("aim 0 and 0; all seen after {:.1} s", round.as_secs_f64()),
        );
        row(
            "memory after a restart",
            mib(resident(running.pid(), "VmRSS")),
            "",
        );
        running.stop();
        println!();
    }

    /// The operator's own Secrets and statuses, written again by a plain client.
    async fn plain_client(&self) -> (Duration, Duration) {
        let secrets = self.plane.list("Secret", &self.existing).await;
        let configs = self.plane.list("SealConfig", &self.existing).await;
        let status = configs[0]["status"].clone();
        let copies = |prefix: &str| -> Vec<Value> {
            secrets
                .iter()
                .take(self.settings.count)
                .map(|secret| {
                    let name = secret["metadata"]["name"].as_str().unwrap();
                    json!({
                        "apiVersion": "v1", "kind": "Secret", "type": secret["type"], "data": secret["data"],
                        "metadata": {
                            "name": format!("{prefix}{name}"), "namespace": self.raw,
                            "labels": secret["metadata"]["labels"], "annotations": secret["metadata"]["annotations"],
                        },
                    })
                })
                .collect()
        };
        let named = |prefix: &str| -> Vec<Value> {
            self.configs(&self.raw)
                .into_iter()
                .map(|mut config| {
                    let name = config["metadata"]["name"].as_str().unwrap().to_owned();
                    config["metadata"]["name"] = json!(format!("{prefix}{name}"));
                    config
                })
                .collect()
        };
        let write = async |secret: &Value, config: &Value| {
            self.plane.create(secret).await;
            let name = config["metadata"]["name"].as_str().unwrap();
            self.plane
                .patch_status("SealConfig", &self.raw, name, &status)
                .await;
        };

        let (secrets_a, configs_a) = (copies("a-"), named("a-"));
        self.create_all(&configs_a).await;
        let start = Instant::now();
        stream::iter(secrets_a.iter().zip(&configs_a))
            .for_each_concurrent(IN_FLIGHT, |(secret, config)| write(secret, config))
            .await;
        let pairs = start.elapsed();

        let (secrets_b, configs_b) = (copies("b-"), named("b-"));
        let start = Instant::now();
        stream::iter(secrets_b.iter().zip(&configs_b))
            .for_each_concurrent(IN_FLIGHT, |(secret, config)| async move {
                self.plane.create(config).await;
                write(secret, config).await;
            })
            .await;
        (pairs, start.elapsed())
    }

    async fn one_at_a_time(&self) -> Vec<Duration> {
        let secrets: Api<Secret> = Api::namespaced(self.plane.client(), &self.single);
        let mut events = secrets
            .watch_metadata(&WatchParams::default(), "0")
            .await
            .unwrap()
            .boxed();
        let mut samples = Vec::new();
        for index in 0..SAMPLES {
            let config = self.config(&self.single, index);
            let name = format!("s-{index}");
            let start = Instant::now();
            self.plane.create(&config).await;
            while let Some(event) = events.try_next().await.unwrap() {
                if matches!(event, WatchEvent::Added(ref secret) if secret.metadata.name.as_ref() == Some(&name))
                {
                    break;
                }
            }
            samples.push(start.elapsed());
            // The status write of this object must not run into the next sample.
            while self
                .plane
                .get("SealConfig", &self.single, &format!("c-{index}"))
                .await
                .is_some_and(|config| !is_ready(&config))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        samples
    }

    /// Writes so far; the bench itself is silent while this is compared.
    async fn writes(&self) -> u64 {
        writes(&requests(&self.plane).await)
    }
}
