//! Drill: the operator is killed at every write and at every request of a rotation of shares, on either side of it, and the
//! server may restart before another operator comes. The server is unsealed at every start all the same, and neither set
//! is lost.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    initialize::{NAME, STORE},
    initialize_crash::Drill,
    secrecy::{said, search},
    support::{
        drill::header,
        fleet::readiness,
        knife::{Cut, Knife, Side},
        needle::Needle,
        oci_caller::Caller,
        plane::within,
        stage::condition,
        vault::Asked,
    },
    unseal::{container, told},
};

/// Runs that go on at once.
const AT_ONCE: usize = 3;

const PATIENCE: Duration = Duration::from_mins(3);

impl Drill {
    /// Initialised and unsealed, and nobody there who would replace its shares. What was written.
    async fn initialized(&self) -> String {
        let running = self.operator().start();
        self.apply().await;
        assert_eq!(self.settles().await, "well");
        let output = running.stop();
        let annotation = json!({"metadata": {"annotations": {"autounseal.dev/rotate-shares": "one"}}});
        let stage = &self.scene.stage;
        stage
            .plane
            .patch("SealConfig", &stage.namespace, NAME, &annotation)
            .await;
        output
    }

    async fn header(&self) -> Value {
        header(&self.scene.stage.secret(STORE).await.unwrap_or_default())
    }

    /// Whether the new shares are in use and everything is well.
    async fn rotated(&self) -> Result<(), String> {
        let header = self.header().await;
        let config = self.scene.stage.config(NAME).await;
        let section = |number: u32| &header["keys"][format!("share.{number}")]["section"];
        let done = (1..=3).all(|number| {
            let section = section(number);
            section["current"].as_u64() >= Some(2) && section["trigger"] == "one"
        });
        let well = condition(&config, "Unsealed")["status"] == "True"
            && condition(&config, "Ready")["status"] == "True"
            && header["rekey"].is_null()
            && !self.vault.state().sealed;
        (done && well)
            .then_some(())
            .ok_or_else(|| format!("{header:#} {:#}", config["status"]))
    }

    /// The same, when a human has done what the message says.
    async fn finished(&self) {
        within(PATIENCE, "the shares are replaced", async || {
            let outcome = self.rotated().await;
            let config = self.scene.stage.config(NAME).await;
            let unsealed = condition(&config, "Unsealed");
            let message = unsealed["message"].as_str().unwrap_or_default();
            if message.contains("operator rekey -cancel") && self.vault.cancel_rekey() {
                // It is looked at on any event.
                readiness(&self.scene, "vault-0", false).await;
                readiness(&self.scene, "vault-0", true).await;
            }
            outcome
        })
        .await;
    }

    fn share(&self, version: Option<&str>) -> String {
        let namespace = &self.scene.stage.namespace;
        let mut words = vec!["unwrap", "-n", namespace, NAME, "--share", "1"];
        words.extend(version.iter().flat_map(|version| ["--key-version", version]));
        let caller = Caller::new()
            .env("KUBECONFIG", std::env::var("KUBECONFIG").unwrap())
            .env("AWS_ENDPOINT_URL_KMS", self.scene.kms.url())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIACALLER0000000000")
            .env("AWS_SECRET_ACCESS_KEY", "caller-secret")
            .env("AWS_EC2_METADATA_DISABLED", "true");
        String::from_utf8(caller.run(&words, b"").ok()).unwrap()
    }

    /// The server has restarted.
    async fn restarted(&self) {
        self.vault.restart();
        container(&self.scene, "vault-0", "127.0.0.1".parse().unwrap(), true).await;
    }

    /// What holds whatever happened.
    async fn kept(&self, output: &str, metrics: &str) {
        assert_eq!(
            self.vault.state().foreign,
            0,
            "it was given what it never answered"
        );
        let sets: Vec<Vec<String>> = {
            let state = self.vault.state();
            state.answers.iter().map(|(shares, _)| shares.clone()).collect()
        };
        assert_eq!(self.share(Some("1")), sets[0][0], "the old set is lost");
        assert_eq!(self.share(None), sets.last().unwrap()[0]);
        let secrets = self.vault.secrets();
        let needles: Vec<Needle> = secrets
            .iter()
            .map(|secret| Needle::new("what a server answered", secret.as_bytes()))
            .collect();
        search(&needles, &said(&self.scene.stage, output, metrics).await);
        self.restarted().await;
        within(PATIENCE, "unsealed again", async || {
            let sealed = self.vault.state().sealed;
            (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
        })
        .await;
    }

    /// The next operator: unseals what has restarted, and brings the rotation to its end.
    async fn taken_up(&self, restarts: bool, output: String) {
        if restarts {
            self.restarted().await;
        }
        let running = self.operator().start();
        within(PATIENCE, "unsealed", async || {
            let sealed = self.vault.state().sealed;
            (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
        })
        .await;
        self.finished().await;
        let metrics = running.metrics();
        self.kept(&(output + &running.output()), &metrics).await;
    }
}

/// A rotation by an operator that dies at the cut; the writes that there were if it never did.
async fn killed_at_write(cut: Cut, restarts: bool) -> Option<Vec<String>> {
    let drill = Drill::new("rotate-crash", None).await;
    let mut output = drill.initialized().await;
    let knife = Knife::new(drill.scene.stage.plane.client(), Some(cut)).await;
    let running = knife.start(&drill.operator());
    let killed = within(PATIENCE, "replaced, or killed", async || {
        match (knife.is_reached(), knife.has_struck()) {
            (true, false) => Err("it is about to be killed".to_owned()),
            (true, true) => Ok(true),
            _ => drill.rotated().await.map(|()| false),
        }
    })
    .await;
    output += &running.output();
    drop(running);
    drill.taken_up(restarts, output).await;
    println!(
        "{cut:?} {restarts}: {killed}, asked {} times",
        drill.vault.count("begin")
    );
    (!killed).then(|| knife.seen())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_write_of_a_rotation_the_operator_loses_neither_set() {
    let mut first = 1;
    let writes = loop {
        let cuts = (first..first + AT_ONCE)
            .flat_map(|write| [Side::Before, Side::After].map(|side| Cut { write, side }));
        // Half of the servers restart, each write once on either side with and once without over two rounds of sides.
        let runs = cuts.map(|cut| killed_at_write(cut, (cut.write % 2 == 0) == (cut.side == Side::Before)));
        let runs = join_all(runs).await;
        first += AT_ONCE;
        if let Some(writes) = runs.into_iter().flatten().next() {
            break writes;
        }
    };
    println!("{writes:#?}");
    // The mark, the name of the attempt, the new set, and that it is in use: fewer would mean that they are not seen.
    let secrets = writes.iter().filter(|write| write.contains("/secrets")).count();
    assert!(secrets >= 4 && first > writes.len(), "{writes:#?}");
}

/// A rotation in which the store refuses this write and the one after it; whether there was such a write.
async fn refused_at(write: usize) -> bool {
    let drill = Drill::new("rotate-refusals", None).await;
    let mut output = drill.initialized().await;
    let knife = Knife::new(drill.scene.stage.plane.client(), None).await;
    knife.refuse_after(write - 1, 2);
    let running = knife.start(&drill.operator());
    drill.finished().await;
    let refused = knife.has_refused();
    knife.refuse(0);
    output += &running.output();
    drill.kept(&output, &running.metrics()).await;
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_any_write_of_a_rotation_delays_it_only() {
    // The mark, the name of the attempt, the new set, and that it is in use; nothing is written after them.
    let runs = join_all((1..=5).map(refused_at)).await;
    assert_eq!(runs, [true, true, true, true, false]);
}

/// Twice: the next operator is killed while it finds out which shares the server takes.
#[tokio::test(flavor = "multi_thread")]
async fn killed_again_while_it_finds_out_the_operator_loses_neither_set() {
    let asked = |what, number| Asked { what, number };
    // The server has taken the new shares, and the operator does not know. It begins another attempt, gives the two old
    // ones, which are refused, then the two new ones, and ends the attempt.
    let points = [
        (asked("begin", 2), false),
        (asked("feed", 4), true),
        (asked("feed", 6), false),
        (asked("cancel", 1), true),
    ];
    let runs = points.map(|second| async move {
        let first = (asked("verify", 2), false);
        let drill = Drill::new("rotate-twice", [first, second.clone()]).await;
        let mut output = drill.initialized().await;
        for _ in 0..2 {
            let running = drill.start();
            output += &drill.killed(&running, PATIENCE, &second).await;
        }
        drill.taken_up(false, output).await;
    });
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_the_attempt_is_asked_anew_and_nobody_is_told_of_wrong_shares() {
    let runs = ["feed", "verify"].map(|what| async move {
        let drill = Drill::new("rotate-lost", None).await;
        let mut output = drill.initialized().await;
        drill.vault.state().forgets = Some(Asked { what, number: 2 });
        let running = drill.operator().start();
        drill.finished().await;
        output += &running.output();
        // One that only asks which shares it takes comes between, if new ones wait.
        let asked = if what == "feed" { 2 } else { 3 };
        assert_eq!(drill.vault.count("begin"), asked, "{what}");
        assert!(
            !output.contains("were its shares replaced by somebody else"),
            "{output}"
        );
        drill.kept(&output, &running.metrics()).await;
    });
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_neither_set_is_told_and_both_stay() {
    let taken = Asked {
        what: "verify",
        number: 2,
    };
    let drill = Drill::new("rotate-torn", [(taken.clone(), false)]).await;
    drill.initialized().await;
    let running = drill.start();
    drill.killed(&running, PATIENCE, &taken).await;
    drop(running);
    // As one is whose storage holds the one half of a rekey.
    {
        let mut state = drill.vault.state();
        let token = state.answers[0].1.clone();
        state.answers.push((vec!["x".repeat(44); 3], token));
    }
    let _running = drill.operator().start();
    let message = told(&drill.scene, NAME, "False", "UnsealRejected").await;
    assert!(message.contains("restart no server"), "{message}");
    assert!(message.contains("snapshot"), "{message}");
    let store = drill.scene.stage.secret(STORE).await.unwrap();
    for item in [
        "share.1.aws",
        "share.3.aws",
        "set2.share.1.aws",
        "set2.share.3.aws",
    ] {
        assert!(store.contains_key(item), "{item} is gone");
    }
    assert_eq!(
        drill.header().await["rekey"]["pending"]
            .as_object()
            .unwrap()
            .len(),
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_wants_more_shares_than_there_were_gets_those_that_wait() {
    let taken = Asked {
        what: "verify",
        number: 4,
    };
    let drill = Drill::new("rotate-more", [(taken.clone(), false)]).await;
    let mut output = drill.initialized().await;
    drill.apply_with(&json!({"shares": 5, "threshold": 4})).await;
    let running = drill.start();
    output += &drill.killed(&running, PATIENCE, &taken).await;
    drop(running);
    drill.taken_up(true, output).await;
    assert_eq!(drill.vault.count("begin"), 1, "it was asked again");
}

async fn killed_at_requests(restarts: bool) {
    let points = [
        ("begin", 1),
        ("feed", 1),
        ("feed", 2),
        ("verify", 1),
        ("verify", 2),
    ];
    let runs = points
        .into_iter()
        .flat_map(|at| [true, false].map(|before| (at, before)));
    let runs = runs.map(|((what, number), before)| async move {
        let at = Asked { what, number };
        let drill = Drill::new("rotate-killed", Some((at.clone(), before))).await;
        let mut output = drill.initialized().await;
        let running = drill.start();
        output += &drill.killed(&running, PATIENCE, &at).await;
        drop(running);
        drill.taken_up(restarts, output).await;
        println!(
            "{at:?} {before} {restarts}: asked {} times",
            drill.vault.count("begin")
        );
    });
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_request_of_a_rotation_the_operator_goes_on_with_the_server() {
    killed_at_requests(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_request_of_a_rotation_the_operator_unseals_the_server_that_restarted() {
    killed_at_requests(true).await;
}
