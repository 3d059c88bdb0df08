//! `cargo xtask bench imds`: how soon somebody on EC2 learns why the instance metadata service gives no credentials, from
//! us, from the SDK's own default chain and from botocore, on one and the same network; and what many SealConfigs cost it.
//!
//! | module | what |
//! | --- | --- |
//! | `subjects` | what is measured: each in a process of its own, in the pod's namespace |
//! | `many` | the operator behind the hop, with many SealConfigs |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on should say so and end; figures are its output"
)]
#![allow(dead_code, reason = "the modules are shared with the integration tests")]

#[path = "../../tests/integration/support/http.rs"]
mod http;
#[path = "../../tests/integration/support/kms.rs"]
mod kms;
#[path = "../../tests/integration/support/netns.rs"]
mod netns;
#[path = "../../tests/integration/support/operator.rs"]
mod operator;
#[path = "../../tests/integration/support/plane.rs"]
mod plane;
#[path = "../../tests/integration/support/stage.rs"]
mod stage;

mod many;
mod subjects;

use serde_json::{Value, json};

use crate::{
    many::Many,
    netns::Network,
    subjects::{Subject, Told},
};

/// An address of documentation (RFC 5737): nothing in the network leads there.
const NO_ROUTE: &str = "192.0.2.1";

/// Another one, whose packets the node drops.
const DROPPED: &str = "198.51.100.1";

/// What the operator's binary is; the operator module asks its parent for it.
fn binary() -> String {
    std::env::var("AUTOUNSEAL_BIN").expect("AUTOUNSEAL_BIN is set by cargo xtask bench")
}

struct Settings {
    count: usize,
    repeat: usize,
}

fn settings(arguments: &[String]) -> Option<Settings> {
    let mut settings = Settings {
        count: 1000,
        repeat: 3,
    };
    let mut asked = false;
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            arguments
                .next()
                .and_then(|value| value.parse().ok())
                .filter(|&value| value > 0)
                .unwrap_or_else(|| panic!("{argument} needs a number"))
        };
        match argument.as_str() {
            "--bench" => asked = true,
            "--count" => settings.count = number(),
            "--repeat" => settings.repeat = number(),
            other => panic!("unknown argument {other}; known: --count N, --repeat N"),
        }
    }
    asked.then_some(settings)
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // We are in the pod's namespace already.
    if subjects::run(&arguments).await {
        return;
    }
    // `cargo test --all-targets` runs benches too; there is nothing to test here.
    let Some(settings) = settings(&arguments) else {
        return;
    };
    let many = Many::prepare().await;
    let network = Network::new(1, &many.ports());
    network.drops(DROPPED);
    table(&network, settings.repeat);
    println!("\n{}\n", many.run(&network, settings.count).await);
}

/// One condition of the network.
struct Condition {
    name: &'static str,
    /// How the service behaves; see `tests/support/imds/server.py`.
    state: Value,
    /// Where it is looked for, if not where it is.
    address: Option<&'static str>,
}

fn conditions() -> Vec<Condition> {
    let at = |address, name| Condition {
        name,
        state: json!({"hop_limit": 2}),
        address: Some(address),
    };
    let behaves = |name, state| Condition {
        name,
        state,
        address: None,
    };
    vec![
        behaves("hop limit 1, tokens required", json!({"hop_limit": 1})),
        behaves(
            "hop limit 1, tokens optional",
            json!({"hop_limit": 1, "tokens": "optional"}),
        ),
        behaves("hop limit 2: works", json!({"hop_limit": 2})),
        behaves(
            "works, each answer 0.3 s late",
            json!({"hop_limit": 2, "delay": 0.3}),
        ),
        behaves("switched off (403)", json!({"hop_limit": 2, "enabled": false})),
        behaves(
            "connects, never answers",
            json!({"hop_limit": 2, "blackhole": true}),
        ),
        at(DROPPED, "packets are dropped"),
        at(NO_ROUTE, "no route"),
    ]
}

fn table(network: &Network, repeat: usize) {
    println!("\nbench imds, one node between pod and service, medians of {repeat}\n");
    let names: Vec<String> = Subject::ALL.iter().map(|subject| subject.name()).collect();
    println!("| the service | {} |", names.join(" | "));
    println!("| --- |{}", " --- |".repeat(names.len()));
    for condition in conditions() {
        network.set(&condition.state);
        let cells: Vec<String> = Subject::ALL
            .iter()
            .map(|subject| {
                let told = (0..repeat)
                    .map(|_| subject.ask(network, condition.address))
                    .collect();
                cell(told)
            })
            .collect();
        println!("| {} | {} |", condition.name, cells.join(" | "));
    }
}

/// The median, and what was said; all of it, should it not always be the same.
fn cell(mut told: Vec<Told>) -> String {
    told.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    let median = told[told.len() / 2].seconds;
    let mut words: Vec<String> = told.into_iter().map(|told| told.words).collect();
    words.sort_unstable();
    words.dedup();
    format!("{median:.2} s: {}", words.join(" or "))
}
