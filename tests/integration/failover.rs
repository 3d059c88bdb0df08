//! The failover drill: the replica that acts is killed again and again while SealConfigs come and change. Whatever it left
//! half done, every Secret holds what was asked for last, no key is made twice, and no value comes back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};

use crate::{
    leader::{PATIENCE, Replicas, leading},
    support::{
        drill::{State, record},
        operator::Running,
        plane::within,
        scene::Scene,
        stage::{Stage, random},
    },
};

/// Between two changes by users.
const PACE: Duration = Duration::from_millis(400);
/// Those that change are among the last so many.
const RECENT: usize = 8;

/// What users asked for.
#[derive(Default)]
struct Asked {
    /// The bytes of each key that was brought, all of them in the order in which they were asked for.
    brought: BTreeMap<String, Vec<Vec<u8>>>,
    /// SealConfigs whose key the operator makes.
    made: Vec<String>,
}

fn name_of(kind: &str, number: usize) -> String {
    format!("{kind}-{number:04}")
}

/// Users at work: in turn a new SealConfig with a brought key, a new one with a key to make, and a change of a recent one.
async fn work(scene: &Scene, asked: &Mutex<Asked>) {
    let lock = || asked.lock().unwrap_or_else(PoisonError::into_inner);
    for turn in 0_usize.. {
        let number = turn / 3;
        let (kind, number) = match turn % 3 {
            0 => ("brought", number),
            1 => ("made", number),
            _ => ("brought", number.saturating_sub(number % RECENT)),
        };
        let name = name_of(kind, number);
        let bytes = random(32);
        let mut spec = scene.spec(&name, &bytes);
        if kind == "made" {
            spec["keys"] = json!([{"name": "root", "generate": {}}]);
            lock().made.push(name.clone());
        } else {
            lock().brought.entry(name.clone()).or_default().push(bytes);
        }
        scene.stage.apply(&name, &spec).await;
        tokio::time::sleep(PACE).await;
    }
}

/// Waits until one of the replicas leads; which one.
async fn leader(replicas: &[Running]) -> usize {
    within(PATIENCE, "a replica leads", async || {
        let found: Vec<bool> = replicas.iter().map(leading).collect();
        assert!(found.iter().filter(|leads| **leads).count() <= 1, "{found:?}");
        found.iter().position(|leads| *leads).ok_or_else(|| {
            replicas
                .iter()
                .map(Running::output)
                .collect::<Vec<_>>()
                .join("\n--- the other ---\n")
        })
    })
    .await
}

/// Kills the leader this many times; how long each time nobody led, and the replicas that are left.
async fn kill_leaders(all: &Replicas, kills: usize) -> (Vec<Duration>, Vec<Running>) {
    let start = |number: usize| all.replica(&format!("replica-{number}")).start();
    let mut replicas = vec![start(0), start(1)];
    let mut gaps = Vec::new();
    for kill in 0..kills {
        let leads = leader(&replicas).await;
        // At a different moment of its work each time.
        tokio::time::sleep(Duration::from_millis(u64::from(random(1)[0]) * 8)).await;
        replicas.swap_remove(leads).kill();
        let killed = Instant::now();
        leader(&replicas).await;
        gaps.push(killed.elapsed());
        println!(
            "kill {}: the other leads after {:.1} s",
            kill + 1,
            gaps[kill].as_secs_f64()
        );
        replicas.push(start(kill + 2));
    }
    (gaps, replicas)
}

/// Every value that an entry `root` ever had, by Secret.
fn values(history: &[State]) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut found: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for state in history.iter().filter(|state| !state.gone) {
        if let Some(bytes) = state.data.get("root") {
            let of_secret = found.entry(state.name.clone()).or_default();
            if of_secret.last() != Some(bytes) {
                of_secret.push(bytes.clone());
            }
        }
    }
    found
}

/// Whether `some` of all values came in the order of all.
fn in_order(some: &[Vec<u8>], all: &[Vec<u8>]) -> bool {
    let mut rest = all.iter();
    some.iter().all(|value| rest.any(|one| one == value))
}

/// Waits until all was done that was asked for, and holds what is there and what was there against it.
async fn all_is_right(stage: &Stage, asked: &Asked, history: &Mutex<Vec<State>>) {
    let settled = |name: String, last: Option<Vec<u8>>| async move {
        within(PATIENCE, &format!("{name} is as it should be"), async || {
            let delivered = stage.secret(&name).await.unwrap_or_default();
            let right = match &last {
                Some(bytes) => delivered.get("root") == Some(bytes),
                None => delivered.get("root").is_some_and(|bytes| bytes.len() == 32),
            };
            right.then_some(()).ok_or_else(|| format!("{delivered:?}"))
        })
        .await;
        stage.ready(&name).await;
    };
    for (name, all) in &asked.brought {
        settled(name.clone(), all.last().cloned()).await;
    }
    for name in &asked.made {
        settled(name.clone(), None).await;
        let store = stage.secret(&format!("{name}.sealconfig.wrapped")).await;
        let header: Value = serde_json::from_slice(&store.unwrap()["header"]).unwrap();
        let versions = header["keys"]["root"]["section"]["versions"].as_object();
        let numbers: Vec<_> = versions.unwrap().keys().collect();
        assert_eq!(numbers, ["1"], "{name} was made twice");
    }
    let history = history.lock().unwrap_or_else(PoisonError::into_inner);
    let values = values(&history);
    for (name, all) in &asked.brought {
        assert!(
            in_order(&values[name], all),
            "{name}: an older value came back, or one that nobody asked for"
        );
    }
    for name in &asked.made {
        assert_eq!(values[name].len(), 1, "{name} was delivered with several values");
    }
}

/// The drill; gives back how long nobody led after each kill.
async fn drill(kills: usize) -> Vec<Duration> {
    let all = Replicas::new("failover").await;
    let stage = &all.scene.stage;
    let history = Arc::<Mutex<Vec<State>>>::default();
    let secrets: Api<Secret> = Api::namespaced(stage.plane.client(), &stage.namespace);
    let watch = tokio::spawn(record(secrets, history.clone()));
    let asked = Mutex::<Asked>::default();
    let (gaps, replicas) = tokio::select! {
        done = kill_leaders(&all, kills) => done,
        () = work(&all.scene, &asked) => unreachable!("users never rest"),
    };
    let asked = asked.into_inner().unwrap();
    // The change that was cut off was asked for or was not: it is asked for once more.
    let again = asked
        .brought
        .iter()
        .filter_map(|(name, all)| Some((name, all.last()?)));
    join_all(again.map(async |(name, bytes)| {
        stage.apply(name, &all.scene.spec(name, bytes)).await;
    }))
    .await;
    if let Some(name) = asked.made.last() {
        let mut spec = all.scene.spec(name, &random(32));
        spec["keys"] = json!([{"name": "root", "generate": {}}]);
        stage.apply(name, &spec).await;
    }
    all_is_right(stage, &asked, &history).await;
    watch.abort();
    println!(
        "{} SealConfigs, {} changes, {} Decrypt, {} Encrypt",
        asked.brought.len() + asked.made.len(),
        asked.brought.values().map(|all| all.len() - 1).sum::<usize>(),
        all.scene.kms.count("Decrypt"),
        all.scene.kms.count("Encrypt"),
    );
    drop(replicas);
    gaps
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_killed_under_load_leave_nothing_undone_and_nothing_done_twice() {
    // `cargo xtask drill failover` asks for more.
    let kills = std::env::var("AUTOUNSEAL_DRILL_KILLS").ok();
    let mut gaps = drill(kills.map_or(3, |kills| kills.parse().unwrap())).await;
    gaps.sort_unstable();
    let seconds = |gap: Option<&Duration>| gap.map_or(0.0, Duration::as_secs_f64);
    println!(
        "failover after {} kills: p50 {:.1} s, max {:.1} s",
        gaps.len(),
        seconds(gaps.get(gaps.len() / 2)),
        seconds(gaps.last())
    );
}
