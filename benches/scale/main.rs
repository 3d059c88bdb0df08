//! `cargo xtask bench scale --seal-configs N --pods N --secrets N`: the operator in a full cluster.
//!
//! Every figure of a rate stands beside the same writes by a plain client, on the same machine and in the same run.

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

#[path = "../../tests/integration/support/apiserver.rs"]
mod apiserver;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../tests/integration/support/http.rs"]
mod http;
#[path = "../../tests/integration/support/kms.rs"]
mod kms;
#[path = "../../tests/integration/support/operator.rs"]
mod operator;
#[path = "../../tests/integration/support/plane.rs"]
mod plane;
mod world;

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    ResourceExt,
    api::{Api, PartialObjectMeta, WatchEvent, WatchParams},
};

use crate::{
    common::{Readiness, binary, cpu, mib, ms, percentile, requests, resident, row, since, writes},
    operator::Running,
    world::World,
};

/// After this long nothing is on its way any more.
const SETTLE: Duration = Duration::from_secs(5);
/// What the throttled KMS answers in a second.
const THROTTLED: f64 = 50.0;
/// SealConfigs that meet the throttled KMS.
const HELD_UP: usize = 500;

/// What is to be measured.
pub struct Settings {
    /// SealConfigs.
    pub seal_configs: usize,
    /// Pods that use the delivered Secrets.
    pub pods: usize,
    /// Secrets that are nobody's business.
    pub secrets: usize,
    /// Nothing happens for so long.
    pub idle: Duration,
    /// One of a hundred SealConfigs changes each minute, for so long.
    pub churn: Duration,
}

fn settings() -> Option<Settings> {
    let mut settings = Settings {
        seal_configs: 1000,
        pods: 1000,
        secrets: 9000,
        idle: Duration::from_mins(1),
        churn: Duration::from_mins(1),
    };
    let mut asked = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || -> usize {
            arguments
                .next()
                .and_then(|value| value.parse().ok())
                .unwrap_or_else(|| panic!("{argument} needs a number"))
        };
        match argument.as_str() {
            "--bench" => asked = true,
            "--seal-configs" => settings.seal_configs = number(),
            "--pods" => settings.pods = number(),
            "--secrets" => settings.secrets = number(),
            "--idle" => settings.idle = Duration::from_secs(number() as u64),
            "--churn" => settings.churn = Duration::from_secs(number() as u64),
            other => panic!(
                "unknown argument {other}; known: --seal-configs N, --pods N, --secrets N, --idle SECONDS, --churn SECONDS"
            ),
        }
    }
    asked.then_some(settings)
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    let Some(settings) = settings() else { return };
    println!(
        "\nbench scale, {} SealConfigs in {} namespaces, {} pods, {} other Secrets\n",
        settings.seal_configs,
        World::tenants(settings.seal_configs),
        settings.pods,
        settings.secrets
    );
    let world = World::prepare(settings).await;
    let mut bench = Bench { world };
    bench.growth().await;
    let running = bench.world.operator.start();
    bench.seen(&running, bench.world.made).await;
    bench.idle(&running).await;
    bench.churn().await;
    bench.restarted_pods(&running).await;
    bench.lost_apiserver(&running).await;
    bench.throttled(&running).await;
    memory("memory at the end", &running);
    running.stop();
    println!();
}

struct Bench {
    world: World,
}

/// One start of the operator.
struct Start {
    wall: Duration,
    cpu: Duration,
}

impl Bench {
    /// From a few SealConfigs to all, each time with new ones and then with nothing new.
    async fn growth(&mut self) {
        let all = self.world.settings.seal_configs;
        self.world.strangers().await;
        let (empty, running) = self.start(0, 0).await;
        row(
            "no SealConfigs, start",
            format!("{:.2} s of processor time", empty.cpu.as_secs_f64()),
            "the cluster's other objects are listed",
        );
        memory("memory with no SealConfigs", &running);
        running.stop();

        let mut sizes: Vec<usize> = [100, 1000, all].into_iter().filter(|size| *size <= all).collect();
        sizes.dedup();
        let mut warm: Vec<(usize, Duration)> = Vec::new();
        let mut earlier = Duration::ZERO;
        for size in sizes {
            let made = self.world.made;
            let fresh = size - made;
            self.world.grow(size).await;
            // Before and after the greatest step: an apiserver has better and worse minutes.
            let plain_before = if size == all && made > 0 {
                Some(self.world.plain_client(0).await)
            } else {
                None
            };
            let calls = self.world.kms.calls().len();
            let (cold, running) = self.start(size, size).await;
            let decrypts = self.world.kms.calls().len() - calls;
            tokio::time::sleep(SETTLE).await;
            let rate = fresh as f64 / cold.wall.as_secs_f64();
            row(
                &format!("{size} SealConfigs, {fresh} of them new"),
                format!("{:.1} s, {rate:.0} /s", cold.wall.as_secs_f64()),
                &format!("{decrypts} KMS calls"),
            );
            memory(&format!("memory with {size} SealConfigs"), &running);
            let used = cpu(running.pid()).saturating_sub(empty.cpu);
            running.stop();

            let (counted, calls) = (requests(&self.world.plane).await, self.world.kms.calls().len());
            let (again, running) = self.start(size, 0).await;
            tokio::time::sleep(SETTLE).await;
            let asked = since(&counted, &requests(&self.world.plane).await);
            row(
                &format!("{size} SealConfigs, nothing new"),
                format!(
                    "{:.1} s, {} writes, {} KMS calls",
                    again.wall.as_secs_f64(),
                    writes(&asked),
                    self.world.kms.calls().len() - calls
                ),
                "aim 0 and 0",
            );
            let own = cpu(running.pid()).saturating_sub(empty.cpu);
            memory("memory after that restart", &running);
            running.stop();
            row(
                "processor time for each SealConfig",
                format!(
                    "{} new, {} known",
                    ms(used.saturating_sub(earlier) / fresh as u32),
                    ms(own / size as u32)
                ),
                "",
            );
            // The work for a hundred is lost in that of a start that lists all the others.
            if own * 10 > empty.cpu {
                warm.push((size, own));
            }
            earlier = own;
            if size == all {
                let plain_after = self.world.plain_client(1).await;
                let plain_before = plain_before.unwrap_or(plain_after);
                row(
                    "plain client, Secret + status",
                    format!(
                        "{plain_before:.0} /s before, {plain_after:.0} /s after; the operator {:.2} of their mean",
                        2.0 * rate / (plain_before + plain_after)
                    ),
                    "aim ≥ 0.75; sealed-secrets 0.12, external-secrets 0.17",
                );
            }
        }
        if let Some(exponent) = exponent(&warm) {
            row(
                "growth of the work of a restart",
                format!("exponent {exponent:.2}"),
                "1 = each SealConfig costs the same, however many there are",
            );
        }
    }

    /// Starts the operator and waits until it has gone through `seen` SealConfigs, and `ready` of them are Ready.
    async fn start(&self, seen: usize, ready: usize) -> (Start, Running) {
        let mut readiness = Readiness::watch(&self.world.plane, None).await;
        let start = Instant::now();
        let running = self.world.operator.start();
        if ready > 0 {
            readiness.wait(ready).await;
        }
        self.seen(&running, seen).await;
        let wall = start.elapsed();
        let cpu = cpu(running.pid());
        (Start { wall, cpu }, running)
    }

    async fn seen(&self, running: &Running, count: usize) {
        let start = Instant::now();
        while running.metric("autounseal_reconcile_total", &[]) < count as f64 {
            assert!(
                start.elapsed() < Duration::from_mins(5),
                "the operator does not come round"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Until nothing is looked at any more.
    async fn quiet(running: &Running) {
        let looks = || running.metric("autounseal_reconcile_total", &[]);
        let mut before = looks();
        loop {
            tokio::time::sleep(SETTLE).await;
            let now = looks();
            if now <= before {
                return;
            }
            before = now;
        }
    }

    async fn idle(&self, running: &Running) {
        tokio::time::sleep(SETTLE).await;
        let (counted, calls) = (requests(&self.world.plane).await, self.world.kms.calls().len());
        let used = cpu(running.pid());
        let span = self.world.settings.idle;
        tokio::time::sleep(span).await;
        let asked = since(&counted, &requests(&self.world.plane).await);
        let share = cpu(running.pid()).saturating_sub(used).as_secs_f64() / span.as_secs_f64();
        row(
            &format!("idle for {} s", span.as_secs()),
            format!(
                "{} writes, {} KMS calls, {:.2} % of a core",
                writes(&asked),
                self.world.kms.calls().len() - calls,
                100.0 * share
            ),
            &format!("aim 0 and 0; requests {}", told(&asked)),
        );
        memory("memory, settled", running);
    }

    /// One of a hundred SealConfigs a minute gets another ciphertext.
    async fn churn(&self) {
        let span = self.world.settings.churn;
        let rate = self.world.made as f64 / 100.0 / 60.0;
        let count = ((span.as_secs_f64() * rate) as usize).max(1);
        let secrets: Api<PartialObjectMeta<Secret>> = Api::all(self.world.plane.client());
        let label = WatchParams::default().labels("app.kubernetes.io/managed-by=auto-unseal-operator");
        let mut events = secrets.watch(&label, "0").await.unwrap().boxed();
        let mut versions: HashMap<(String, String), String> = HashMap::new();
        let mut sent: HashMap<(String, String), Instant> = HashMap::new();
        let mut times = Vec::new();
        let calls = self.world.kms.calls().len();
        let counted = requests(&self.world.plane).await;
        let step = span / count as u32;
        let mut next = tokio::time::Instant::now() + SETTLE;
        let mut index = 0;
        let deadline = tokio::time::Instant::now() + SETTLE + span + Duration::from_mins(1);
        while index < count || !sent.is_empty() {
            tokio::select! {
                event = events.try_next() => {
                    let Some(WatchEvent::Added(secret) | WatchEvent::Modified(secret)) = event.unwrap() else { continue };
                    let name = (secret.namespace().unwrap_or_default(), secret.name_any());
                    let version = secret.resource_version().unwrap_or_default();
                    let before = versions.insert(name.clone(), version.clone());
                    if before.is_some_and(|before| before != version) && let Some(at) = sent.remove(&name) {
                        times.push(at.elapsed());
                    }
                }
                () = tokio::time::sleep_until(next), if index < count => {
                    // Spread over the tenants.
                    let config = index * 7919 % self.world.made;
                    index += 1;
                    next += step;
                    let (namespace, name, patch) = self.world.change(config);
                    if let std::collections::hash_map::Entry::Vacant(free) = sent.entry((namespace.clone(), format!("s-{config}"))) {
                        free.insert(Instant::now());
                        self.world.plane.patch("SealConfig", &namespace, &name, &patch).await;
                    }
                }
                () = tokio::time::sleep_until(deadline) => panic!("{} changes were not delivered", sent.len()),
            }
        }
        times.sort_unstable();
        let asked = since(&counted, &requests(&self.world.plane).await);
        row(
            &format!("{} changes in {} s, change → Secret", times.len(), span.as_secs()),
            format!(
                "p50 {}, p99 {}",
                ms(percentile(&times, 0.5)),
                ms(percentile(&times, 0.99))
            ),
            &format!(
                "{} KMS calls; requests {}",
                self.world.kms.calls().len() - calls,
                told(&asked)
            ),
        );
    }

    /// Every container starts anew.
    async fn restarted_pods(&self, running: &Running) {
        let calls = self.world.kms.calls().len();
        let used = cpu(running.pid());
        let start = Instant::now();
        self.world.restart_pods().await;
        let patched = start.elapsed();
        Self::quiet(running).await;
        row(
            &format!(
                "all {} pods restart within {:.0} s",
                self.world.settings.pods,
                patched.as_secs_f64()
            ),
            format!(
                "{} KMS calls, {:.1} s of processor time",
                self.world.kms.calls().len() - calls,
                cpu(running.pid()).saturating_sub(used).as_secs_f64()
            ),
            "aim 0 KMS calls",
        );
        memory("memory after that", running);
    }

    /// The apiserver is killed: every watch is lost, and everything is listed again.
    async fn lost_apiserver(&self, running: &Running) {
        let calls = self.world.kms.calls().len();
        let used = cpu(running.pid());
        let looks = || running.metric("autounseal_reconcile_total", &[]);
        let looked = looks();
        let mut apiserver = apiserver::apiserver();
        let start = Instant::now();
        apiserver.restart();
        apiserver::answers(&mut apiserver).await;
        let back = start.elapsed();
        // One change goes all the way again.
        let (namespace, name, patch) = self.world.change(0);
        let before = self.world.plane.get("Secret", &namespace, "s-0").await;
        self.world
            .plane
            .patch("SealConfig", &namespace, &name, &patch)
            .await;
        while self.world.plane.get("Secret", &namespace, "s-0").await == before {
            assert!(
                start.elapsed() < Duration::from_mins(3),
                "nothing is delivered after the restart"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let delivered = start.elapsed();
        tokio::time::sleep(SETTLE * 2).await;
        // What the apiserver has counted began at its own start.
        let asked = requests(&self.world.plane).await;
        row(
            &format!("apiserver killed, back after {:.1} s", back.as_secs_f64()),
            format!("delivers again after {:.1} s", delivered.as_secs_f64()),
            &format!(
                "{} KMS calls for 1 change, {:.0} SealConfigs looked at; {:.1} s of processor time; requests {}",
                self.world.kms.calls().len() - calls,
                looks() - looked,
                cpu(running.pid()).saturating_sub(used).as_secs_f64(),
                told(&asked)
            ),
        );
        memory("memory after that", running);
        // It lives for as long as the measurement.
        std::mem::forget(apiserver);
    }

    /// New SealConfigs meet a KMS that takes only so many calls a second.
    async fn throttled(&mut self, running: &Running) {
        let mut readiness = Readiness::watch(&self.world.plane, None).await;
        let before = self.world.made;
        self.world.kms.limit(Some(THROTTLED));
        let calls = self.world.kms.calls().len();
        let start = Instant::now();
        self.world.grow(before + HELD_UP).await;
        readiness.wait(before + HELD_UP).await;
        let took = start.elapsed();
        let refused = self.world.kms.refused();
        row(
            &format!("{HELD_UP} new, KMS takes {THROTTLED:.0} /s"),
            format!(
                "{:.1} s, at best {:.1} s",
                took.as_secs_f64(),
                HELD_UP as f64 / THROTTLED - 1.0
            ),
            &format!(
                "{} KMS calls, {refused} of them throttled",
                self.world.kms.calls().len() - calls
            ),
        );
        self.world.kms.limit(None);
        memory("memory after that", running);
    }
}

fn memory(what: &str, running: &Running) {
    row(
        what,
        format!(
            "settled {}, peak {}",
            mib(resident(running.pid(), "VmRSS")),
            mib(resident(running.pid(), "VmHWM"))
        ),
        "aim at 10,000 + 10,000 + 90,000: 64 and 128 MiB",
    );
}

fn told(requests: &BTreeMap<String, u64>) -> String {
    let all: Vec<String> = requests
        .iter()
        .map(|(verb, count)| format!("{verb} {count}"))
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

/// The slope of log(time) over log(size), by least squares.
fn exponent(sizes: &[(usize, Duration)]) -> Option<f64> {
    let points: Vec<(f64, f64)> = sizes
        .iter()
        .map(|(size, time)| ((*size as f64).ln(), time.as_secs_f64().max(1e-6).ln()))
        .collect();
    let count = points.len() as f64;
    if points.len() < 2 {
        return None;
    }
    let (x, y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    Some(above / below)
}
