//! `cargo xtask bench fairness`: what a tenant waits for a change while another does its worst, beside what it waits when
//! nobody does (security rule S19).

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
#[path = "../tests/integration/support/hostile.rs"]
mod hostile;
#[path = "../tests/integration/support/http.rs"]
mod http;
#[path = "../tests/integration/support/kms.rs"]
mod kms;
#[path = "../tests/integration/support/operator.rs"]
mod operator;
#[path = "../tests/integration/support/plane.rs"]
mod plane;
#[path = "../tests/integration/support/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use data_encoding::BASE64;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::json;

use crate::{
    common::{binary, ms, percentile, row},
    hostile::Hostile,
    kms::{Context, Key, Kms},
    operator::Operator,
    stage::{Stage, random, simple},
};

/// SealConfigs of the tenant that is measured; each is changed in turn.
const OBJECTS: usize = 20;
/// Between two changes.
const STEP: Duration = Duration::from_millis(100);

struct Settings {
    changes: usize,
    hanging: usize,
}

fn settings() -> Option<Settings> {
    let mut settings = Settings {
        changes: 200,
        hanging: 250,
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
            "--changes" => settings.changes = number().max(1),
            "--hanging" => settings.hanging = number(),
            other => panic!("unknown argument {other}; known: --changes N, --hanging N"),
        }
    }
    asked.then_some(settings)
}

/// Who makes the Secret of a change.
#[derive(Clone, Copy)]
enum By<'a> {
    /// The operator, of a SealConfig.
    Operator(&'a Kms, &'a Key),
    /// This client: what the apiserver itself takes longer for when it has more to do.
    Itself,
}

/// Changes of a tenant, one after the other: each from its apply to the Secret that a watch shows.
async fn changes(stage: &Stage, by: By<'_>, count: usize) -> Vec<Duration> {
    let secrets: Api<Secret> = Api::namespaced(stage.plane.client(), &stage.namespace);
    let mut times = Vec::new();
    for index in 0..count {
        let bytes = random(32);
        let name = match by {
            By::Operator(..) => format!("c-{}", index % OBJECTS),
            By::Itself => format!("p-{}", index % OBJECTS),
        };
        let only = WatchParams::default()
            .fields(&format!("metadata.name={name}"))
            .timeout(294);
        let mut events = secrets.watch(&only, "0").await.unwrap().boxed();
        let change = match by {
            By::Operator(kms, key) => {
                let copy = kms.encrypt(key, &bytes, &Context::new());
                stage.seal_config(&name, &simple(&key.arn, &copy, &name))
            }
            By::Itself => {
                let mut secret = stage.object("v1", "Secret", &name);
                secret["data"] = json!({"root": BASE64.encode(&bytes)});
                secret
            }
        };
        let start = Instant::now();
        stage.plane.apply(&change).await;
        let seen = async {
            while let Some(event) = events.try_next().await.unwrap() {
                if let WatchEvent::Added(secret) | WatchEvent::Modified(secret) = event
                    && secret
                        .data
                        .is_some_and(|data| data.get("root").is_some_and(|found| found.0 == bytes))
                {
                    return;
                }
            }
            panic!("the watch ended");
        };
        tokio::time::timeout(Duration::from_mins(4), seen)
            .await
            .unwrap_or_else(|_| panic!("change {index} was not delivered"));
        times.push(start.elapsed());
        tokio::time::sleep(STEP).await;
    }
    times.sort_unstable();
    times
}

fn show(what: &str, times: &[Duration], beside: &str) {
    let (half, most) = (percentile(times, 0.5), percentile(times, 0.99));
    row(what, format!("p50 {}, p99 {}", ms(half), ms(most)), beside);
}

fn compare(what: &str, beside: &[Duration], alone: &[Duration], aim: &str) {
    let ratio = |share: f64| percentile(beside, share).as_secs_f64() / percentile(alone, share).as_secs_f64();
    row(
        what,
        format!("p50 {:.2}, p99 {:.2}", ratio(0.5), ratio(0.99)),
        aim,
    );
}

#[tokio::main]
async fn main() {
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    let Some(settings) = settings() else { return };
    let kms = Kms::start();
    let key = kms.key();
    let (quiet, worse) = (Stage::new("quiet").await, Stage::new("hostile").await);
    let both = format!("{},{}", quiet.namespace, worse.namespace);
    let _running = Operator::new()
        .flags(["--watch-namespaces", &both])
        .env("AWS_ENDPOINT_URL_KMS", kms.url())
        .start();
    println!(
        "\nbench fairness, {} changes of one tenant; the other has {} SealConfigs that fail and 3 that are edited 50 times a second\n",
        settings.changes,
        settings.hanging * 2 + 1
    );
    let operator = By::Operator(&kms, &key);
    // The first of each is a new object.
    changes(&quiet, operator, OBJECTS).await;
    changes(&quiet, By::Itself, OBJECTS).await;
    let alone = changes(&quiet, operator, settings.changes).await;
    let plain_alone = changes(&quiet, By::Itself, settings.changes).await;
    show("change → Secret, alone", &alone, "");
    show("a plain client's Secret, alone", &plain_alone, "");
    let hostile = Hostile::begin(worse, &kms, settings.hanging).await;
    let beside = changes(&quiet, operator, settings.changes).await;
    let plain_beside = changes(&quiet, By::Itself, settings.changes).await;
    show("change → Secret, beside the other", &beside, "");
    show("a plain client's Secret, beside the other", &plain_beside, "");
    compare("beside / alone", &beside, &alone, "aim ≤ 2 (p99)");
    compare(
        "beside / alone, the plain client",
        &plain_beside,
        &plain_alone,
        "the apiserver's own part",
    );
    drop(hostile);
    println!();
}
