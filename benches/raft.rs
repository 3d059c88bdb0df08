//! `cargo xtask bench raft --minutes M`: the active server of a raft cluster is killed again and again under a client that
//! reads. Ends with a status other than 0 when a restarted server stays sealed.

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
#[path = "../tests/integration/support/fleet.rs"]
mod fleet;
#[path = "../tests/integration/support/http.rs"]
mod http;
#[path = "../tests/integration/support/kms.rs"]
mod kms;
#[path = "../tests/integration/support/operator.rs"]
mod operator;
#[path = "../tests/integration/support/pki.rs"]
mod pki;
#[path = "../tests/integration/support/plane.rs"]
mod plane;
#[path = "../tests/integration/support/raft.rs"]
mod raft;
#[path = "../tests/integration/support/scene.rs"]
mod scene;
#[path = "../tests/integration/support/server.rs"]
mod server;
#[path = "../tests/integration/support/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use crate::{
    common::{binary, ms, percentile, row},
    fleet::{HOST, spec, trust},
    pki::Pki,
    raft::Cluster,
    scene::Scene,
    server::Product,
};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let minutes = arguments
        .windows(2)
        .find(|pair| pair[0] == "--minutes")
        .map_or(10, |pair| pair[1].parse().expect("--minutes takes a number"));
    println!("\nbench raft, {minutes} minutes\n");
    let scene = Scene::new("bench-raft").await;
    let running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let mut cluster = Cluster::new(&scene, Product::Vault, pki, 5, 3).await;
    let spec = spec(&scene, &cluster.shares, "vault", cluster.port());
    scene.stage.apply("vault", &spec).await;
    let end = Instant::now() + Duration::from_mins(minutes);
    let mut toll = cluster
        .kill_the_active(&scene, "value", |_| Instant::now() < end)
        .await;
    toll.unsealed.sort();
    toll.whole.sort();
    row(
        "kills of the active server, each restarted",
        toll.unsealed.len(),
        "",
    );
    row("first answer to unsealed, median", at(&toll.unsealed, 0.5), "");
    row("first answer to unsealed, p99", at(&toll.unsealed, 0.99), "");
    row(
        "kill to all unsealed and one active, median",
        at(&toll.whole, 0.5),
        "",
    );
    row(
        "kill to all unsealed and one active, p99",
        at(&toll.whole, 0.99),
        "",
    );
    row("reads that were answered", toll.reads, "");
    row("reads that no server answered", toll.failed, "");
    row("longest time without an answer", ms(toll.longest), "");
    row("KMS Decrypt calls", scene.kms.count("Decrypt"), "");
    running.stop();
    println!();
}

/// A percentile of sorted times.
fn at(times: &[Duration], share: f64) -> String {
    if times.is_empty() {
        return "none".into();
    }
    ms(percentile(times, share))
}
