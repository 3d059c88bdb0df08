//! Several replicas, one of which acts: killed, told to go, or standing still, it is followed by another and never meets it.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    kms::Act,
    operator::{Operator, Running},
    plane::{eventually, within},
    scene::Scene,
    stage::{random, unique},
};

/// Longer than a Lease lasts.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Replicas of one operator, and what they share.
pub struct Replicas {
    /// Their namespace and their KMS.
    pub scene: Scene,
    lease: String,
}

impl Replicas {
    /// None yet.
    pub async fn new(name: &str) -> Self {
        Self {
            scene: Scene::new(name).await,
            lease: format!("unseal-{}", unique()),
        }
    }

    /// A replica under that name.
    pub fn replica(&self, identity: &str) -> Operator {
        self.scene.operator().flags([
            "--leader-elect",
            &format!("--leader-elect-namespace={}", self.scene.stage.namespace),
            &format!("--leader-elect-name={}", self.lease),
            &format!("--leader-elect-identity={identity}"),
        ])
    }

    async fn lease(&self) -> Value {
        let stage = &self.scene.stage;
        let lease = stage.plane.get("Lease", &stage.namespace, &self.lease).await;
        lease.unwrap_or_default()
    }

    /// Waits until the replica of that name leads; nobody else may say so meanwhile.
    async fn leads(&self, identity: &str, leader: &Running, others: &[&Running]) {
        within(PATIENCE, &format!("{identity} leads"), async || {
            let all: Vec<_> = [leader].iter().chain(others).map(|one| leading(one)).collect();
            assert!(all.iter().filter(|leads| **leads).count() <= 1, "{all:?}");
            let lease = self.lease().await;
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            let done = all[0] && holder.starts_with(&format!("{identity}_"));
            done.then_some(()).ok_or_else(|| format!("{all:?} {lease}"))
        })
        .await;
    }
}

/// Whether it says that it leads.
pub fn leading(replica: &Running) -> bool {
    replica
        .metrics()
        .lines()
        .any(|line| line == "autounseal_leader 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_warm_and_takes_over_soon_after_its_leader_was_killed() {
    let replicas = Replicas::new("leader-killed").await;
    let (scene, stage) = (&replicas.scene, &replicas.scene.stage);
    let first = replicas.replica("first").start();
    replicas.leads("first", &first, &[]).await;
    // It says that it is ready, and does nothing.
    let second = replicas.replica("second").start();
    scene.deliver("one", &random(32)).await;
    assert!(leading(&first) && !leading(&second));
    assert!(!second.metrics().contains("autounseal_reconcile_total{"));
    assert!(second.metrics().contains("autounseal_leader 0"));

    first.kill();
    let killed = Instant::now();
    let bytes = random(32);
    stage.apply("two", &scene.spec("two", &bytes)).await;
    within(PATIENCE, "delivered by the standby", async || {
        let delivered = stage.secret("two").await;
        delivered.map(drop).ok_or_else(|| second.output())
    })
    .await;
    eprintln!("failover after SIGKILL: {:.1} s", killed.elapsed().as_secs_f64());
    stage.delivered("two", &[("root", &bytes)]).await;
    assert!(leading(&second));
    let lease = replicas.lease().await;
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
    // What stood there already is looked at again, and nothing of it is done again.
    stage.ready("one").await;
    assert_eq!(scene.kms.count("Decrypt"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_go_the_leader_finishes_a_key_that_it_began_to_make_and_hands_over_at_once() {
    let replicas = Replicas::new("leader-gone").await;
    let (scene, stage) = (&replicas.scene, &replicas.scene.stage);
    let mut first = replicas.replica("first").start();
    replicas.leads("first", &first, &[]).await;
    let second = replicas.replica("second").start();
    scene.kms.next("Encrypt", Act::Late(Duration::from_secs(2)));
    let mut spec = scene.spec("made", &random(32));
    spec["keys"] = json!([{"name": "root", "generate": {}}]);
    stage.apply("made", &spec).await;
    eventually("the key is about to be wrapped", async || {
        (scene.kms.count("Encrypt") == 1)
            .then_some(())
            .ok_or_else(|| first.output())
    })
    .await;
    assert_eq!(stage.secret("made.sealconfig.wrapped").await, None);
    first.signal(Signal::TERM);
    let told = Instant::now();
    let code = eventually("it ends", async || {
        first.exit_code().ok_or_else(|| first.output())
    })
    .await;
    let ended = Instant::now();
    assert_eq!(code, 0, "{}", first.output());
    assert!(first.output().contains("the Lease is given up"));
    replicas.leads("second", &second, &[&first]).await;
    eprintln!(
        "hand-over at SIGTERM: {:.1} s, of which {:.1} s to finish",
        told.elapsed().as_secs_f64(),
        (ended - told).as_secs_f64()
    );
    // The first has made, stored and delivered it; the second asked no KMS to make or open anything.
    assert!(stage.secret("made.sealconfig.wrapped").await.is_some());
    assert_eq!(stage.secret("made").await.unwrap()["root"].len(), 32);
    assert_eq!(first.output().matches("\"delivered\"").count(), 1);
    scene.deliver("next", &random(32)).await;
    assert_eq!(scene.kms.count("Encrypt"), 1);
    assert!(!second.output().contains("\"name\":\"made\",\"secret\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stood_still_while_another_took_over_writes_nothing_and_ends() {
    let replicas = Replicas::new("leader-frozen").await;
    let (scene, stage) = (&replicas.scene, &replicas.scene.stage);
    let mut first = replicas.replica("first").start();
    replicas.leads("first", &first, &[]).await;
    let second = replicas.replica("second").start();
    scene.deliver("known", &random(32)).await;
    // It stands still in the middle of work: a key is on its way to be opened, in many objects.
    let names: Vec<_> = (0..8).map(|n| format!("caught-{n}")).collect();
    scene.kms.always("Decrypt", Act::Late(Duration::from_secs(1)));
    for name in &names {
        stage.apply(name, &scene.spec(name, &random(32))).await;
    }
    eventually("it asks the KMS", async || {
        (scene.kms.count("Decrypt") > names.len())
            .then_some(())
            .ok_or_else(|| first.output())
    })
    .await;
    first.signal(Signal::STOP);
    let stopped = Instant::now();
    scene.kms.heal();
    within(PATIENCE, "the second leads", async || {
        leading(&second).then_some(()).ok_or_else(|| second.output())
    })
    .await;
    eprintln!(
        "failover from a frozen leader: {:.1} s",
        stopped.elapsed().as_secs_f64()
    );
    for name in names.iter().map(String::as_str).chain(["known"]) {
        stage.ready(name).await;
    }

    // With the second quiet for a moment, whatever is written is written by the first, which has both old work in its
    // hands and new work before its eyes.
    second.signal(Signal::STOP);
    for name in names.iter().map(String::as_str).chain(["known"]) {
        stage.plane.delete("Secret", &stage.namespace, name).await;
    }
    stage.apply("new", &scene.spec("new", &random(32))).await;
    let before = versions(&replicas).await;
    first.signal(Signal::CONT);
    let code = eventually("the first ends", async || {
        first.exit_code().ok_or_else(|| first.output())
    })
    .await;
    let after = versions(&replicas).await;
    second.signal(Signal::CONT);
    assert_eq!(code, 1, "{}", first.output());
    assert!(
        first.output().contains("this replica leads no more"),
        "{}",
        first.output()
    );
    assert_eq!(before, after);
    // The second goes on, or a new one of its kind does.
    drop(second);
    let _third = replicas.replica("third").start();
    within(PATIENCE, "all is mended", async || {
        let mut missing = Vec::new();
        for name in names.iter().map(String::as_str).chain(["known", "new"]) {
            if stage.secret(name).await.is_none() {
                missing.push(name);
            }
        }
        missing
            .is_empty()
            .then_some(())
            .ok_or_else(|| format!("{missing:?}"))
    })
    .await;
}

/// Every Secret, SealConfig and event of the namespace, with its resourceVersion, and who holds the Lease.
async fn versions(replicas: &Replicas) -> Vec<(String, String)> {
    let stage = &replicas.scene.stage;
    let mut found = Vec::new();
    for kind in ["Secret", "SealConfig", "Event", "Lease"] {
        for object in stage.plane.list(kind, &stage.namespace).await {
            let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
            found.push((format!("{kind} {}", text("name")), text("resourceVersion")));
        }
    }
    found
}
