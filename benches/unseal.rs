//! `cargo xtask bench unseal`: how long a server stays sealed, beside a loop that polls and beside the server's own time, and
//! what an idle server is asked.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on should say so and end; figures are its output"
)]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
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
#[path = "../tests/integration/support/tls.rs"]
mod tls;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    common::{binary, ms, row},
    fleet::{Client, HOST, container, pod, readiness, spec, told, trust},
    operator::free_port,
    pki::Pki,
    raft::until_unsealed,
    scene::Scene,
    server::{Disk, Product, Server},
    tls::{Says, TlsServer},
};

/// How often the loop beside asks, as bank-vaults does by default.
const POLL: Duration = Duration::from_secs(5);
/// The loop and slow starts take their time: one restart of so many is theirs.
const ONE_IN: usize = 4;
/// How long a slow start takes, such as that of a container which reads much before it listens.
const SLOW: Duration = Duration::from_secs(3);
const SHARES: u8 = 5;
const THRESHOLD: u8 = 3;

const UNSEALED: &str =
    r#"{"type":"shamir","initialized":true,"sealed":false,"t":3,"n":5,"progress":0,"nonce":""}"#;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let number = |name: &str, default: usize| {
        let given = arguments.windows(2).find(|pair| pair[0] == name);
        given.map_or(default, |pair| pair[1].parse().expect("a number"))
    };
    let restarts = number("--restarts", 100);
    let idle = Duration::from_secs(number("--idle", 300) as u64);
    println!("\nbench unseal, {restarts} restarts\n");
    let bench = Bench::prepare().await;
    let running = bench
        .scene
        .operator()
        .flags(["--unseal-allow-loopback"])
        .without_flags(|flag| flag == "--log-level" || flag == "debug")
        .start();
    bench.quiet().await;
    let since = Instant::now();
    bench.restarts(restarts).await;
    tokio::time::sleep(idle.saturating_sub(since.elapsed())).await;
    let asked = bench.asked();
    row(
        "requests per hour to an idle unsealed server",
        format!("{:.0}", asked as f64 * 3600.0 / since.elapsed().as_secs_f64()),
        &format!("{asked} in {:.0} s; aim 60", since.elapsed().as_secs_f64()),
    );
    running.stop();
    println!();
}

/// A server and what unseals it.
struct Subject {
    disk: Disk,
    address: SocketAddr,
    client: Client,
    shares: Vec<String>,
    token: String,
}

impl Subject {
    fn new(pki: &Pki, address: SocketAddr) -> Self {
        let disk = Disk::new(Product::Vault);
        let (shares, token) = disk.start(&[], &[]).shamir(SHARES, THRESHOLD);
        Self {
            disk,
            address,
            client: Client::new(pki, address),
            shares,
            token,
        }
    }

    fn start(&self, pki: &Pki) -> Server {
        let (certificate, key) = pki.files(HOST);
        self.disk
            .listen(self.address, Some((&certificate, &key)), &[], &[])
    }

    /// Gives as many shares as are needed, one after the other.
    async fn give(&self) {
        for share in &self.shares[..usize::from(THRESHOLD)] {
            let share = json!({"key": share});
            self.client.ask("PUT", "sys/unseal", "", &share).await;
        }
    }
}

struct Bench {
    scene: Scene,
    pki: Pki,
    ours: Subject,
    polled: Subject,
    direct: Subject,
    idle: TlsServer,
}

impl Bench {
    async fn prepare() -> Self {
        let scene = Scene::new("bench-unseal").await;
        let pki = Pki::new(&[HOST]);
        trust(&scene, &pki).await;
        let port = free_port().port();
        let at = |host: u8| SocketAddr::new([127, 0, 0, host].into(), port);
        Self {
            ours: Subject::new(&pki, at(2)),
            polled: Subject::new(&pki, at(3)),
            direct: Subject::new(&pki, at(4)),
            idle: TlsServer::at(at(5), &pki, HOST, |_| Says::Answer(200, "", UNSEALED.into())),
            scene,
            pki,
        }
    }

    /// An idle server that is unsealed, and nothing of it on its way any more.
    async fn quiet(&self) {
        let address = self.idle.address();
        pod(&self.scene, "idle", "idle", address.ip()).await;
        let spec = spec(&self.scene, &[], "idle", address.port());
        self.scene.stage.apply("idle", &spec).await;
        told(&self.scene, "idle", "True", "Ready").await;
        self.idle.forget();
    }

    fn asked(&self) -> usize {
        self.idle.received().iter().flatten().count()
    }

    async fn restarts(&self, restarts: usize) {
        let Subject { address, shares, .. } = &self.ours;
        let shares: Vec<Vec<u8>> = shares.iter().map(|text| text.clone().into_bytes()).collect();
        let mut spec = spec(&self.scene, &shares, "ours", address.port());
        spec["unseal"]["policy"] = json!("Always");
        let mut server = self.ours.start(&self.pki);
        pod(&self.scene, "ours", "ours", address.ip()).await;
        self.scene.stage.apply("ours", &spec).await;
        told(&self.scene, "ours", "True", "Ready").await;
        let poll = tokio::spawn(keep_polling(
            self.polled.client.clone(),
            self.polled.shares[..usize::from(THRESHOLD)].to_vec(),
        ));
        let decrypts = self.scene.kms.count("Decrypt");
        let began = Instant::now();
        let (mut ours, mut slow, mut by_hand) = (Vec::new(), Vec::new(), Vec::new());
        let (mut polled, mut direct) = (Vec::new(), Vec::new());
        for round in 0..restarts {
            drop(server);
            server = self.ours.start(&self.pki);
            container(&self.scene, "ours", address.ip(), true).await;
            ours.push(until_unsealed(&self.ours.client).await);

            // The kubelet tells it when its probe finds out.
            self.ours.client.seal(&self.ours.token).await;
            let sealed = Instant::now();
            readiness(&self.scene, "ours", false).await;
            until_unsealed(&self.ours.client).await;
            by_hand.push(sealed.elapsed());
            readiness(&self.scene, "ours", true).await;

            let other = self.direct.start(&self.pki);
            while self.direct.client.sealed().await.is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let first = Instant::now();
            self.direct.give().await;
            until_unsealed(&self.direct.client).await;
            direct.push(first.elapsed());
            drop(other);

            if round % ONE_IN == 0 {
                drop(server);
                container(&self.scene, "ours", address.ip(), true).await;
                // Never at the same point between two tries.
                let part = (round as f64 * 0.618).fract();
                tokio::time::sleep(SLOW + Duration::from_millis(500).mul_f64(part)).await;
                server = self.ours.start(&self.pki);
                slow.push(until_unsealed(&self.ours.client).await);

                tokio::time::sleep(POLL.mul_f64(part)).await;
                let other = self.polled.start(&self.pki);
                polled.push(until_unsealed(&self.polled.client).await);
                drop(other);
            }
        }
        poll.abort();
        let decrypts = self.scene.kms.count("Decrypt") - decrypts;
        let unseals = ours.len() + slow.len() + by_hand.len();
        for times in [&mut ours, &mut slow, &mut by_hand, &mut polled, &mut direct] {
            times.sort();
        }
        pair("restart: first answer to unsealed", &ours, "");
        pair(
            "the same, 3 s after its container started",
            &slow,
            &format!("{} restarts", slow.len()),
        );
        pair("sealed by hand to unsealed (policy Always)", &by_hand, "");
        pair("the server's own, shares given at once", &direct, "");
        pair(
            "a loop that asks every 5 s",
            &polled,
            &format!("{} restarts", polled.len()),
        );
        // Its median: the stricter measure, for a slow one of its own would count in our favour.
        let beyond = |times: &[Duration]| ms(at(times, 99).saturating_sub(at(&direct, 50)));
        row(
            "p99 beyond the server's own median",
            format!(
                "{}, slow {}, by hand {}",
                beyond(&ours),
                beyond(&slow),
                beyond(&by_hand)
            ),
            "aim 250 ms",
        );
        let ratio = |percent| at(&polled, percent).as_secs_f64() / at(&ours, percent).as_secs_f64();
        row(
            "ratio of the loop to the operator, p50, p99",
            format!("{:.1}, {:.1}", ratio(50), ratio(99)),
            "",
        );
        row(
            "KMS Decrypt calls per unseal",
            format!("{:.2}", decrypts as f64 / unseals as f64),
            &format!(
                "{decrypts} for {unseals} in {:.0} s; aim: at most one per share and 60 s, which is {:.0}",
                began.elapsed().as_secs_f64(),
                f64::from(THRESHOLD) * (began.elapsed().as_secs_f64() / 60.0).ceil()
            ),
        );
    }
}

/// As bank-vaults does it, but with the shares at hand: it does not pay for the object store and the KMS.
async fn keep_polling(client: Client, shares: Vec<String>) {
    loop {
        if client.sealed().await == Some(true) {
            for share in &shares {
                let share: Value = json!({"key": share});
                client.ask("PUT", "sys/unseal", "", &share).await;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A percentile of sorted times.
fn at(times: &[Duration], percent: usize) -> Duration {
    let index = (times.len() * percent / 100).min(times.len().saturating_sub(1));
    times.get(index).copied().unwrap_or_default()
}

fn pair(what: &str, times: &[Duration], beside: &str) {
    let figure = format!("p50 {}, p99 {}", ms(at(times, 50)), ms(at(times, 99)));
    row(what, figure, beside);
}
