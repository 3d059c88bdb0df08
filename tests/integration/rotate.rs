//! Shares are replaced by real servers (issue 8, item 6): the old ones are void then, the new ones unseal, and a rekey of
//! somebody else's is left alone.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    initialize::{NAME, Set, needles},
    secrecy::{said, search},
    support::{
        drill::header,
        plane::within,
        server::{Product, Server},
    },
    unseal::{container, pod, told},
};

/// The annotation.
const ROTATE: &str = "autounseal.dev/rotate-shares";

impl Set {
    /// Asks for new shares.
    pub async fn rotate(&self, value: &str) {
        let annotations = json!({"metadata": {"annotations": {ROTATE: value}}});
        let stage = &self.scene.stage;
        stage
            .plane
            .patch("SealConfig", &stage.namespace, NAME, &annotations)
            .await;
    }

    /// Waits until a set is in use, and nothing is under way.
    async fn uses(&self, set: u32) {
        self.in_use(&format!("set {set}"), |section| section["current"] == set)
            .await;
    }

    /// Waits until the shares that this value asked for are in use, and nothing is under way.
    pub async fn replaced(&self, value: &str) {
        self.in_use(value, |section| section["trigger"] == value).await;
    }

    async fn in_use(&self, what: &str, fits: impl Fn(&Value) -> bool) {
        within(Duration::from_mins(2), &format!("{what} is in use"), async || {
            let header = header(&self.store().await);
            let config = self.scene.stage.config(NAME).await;
            let count = &config["spec"]["unseal"]["initialize"]["shamir"]["shares"];
            let count = count.as_u64().unwrap_or_default();
            let section = |number: u64| &header["keys"][format!("share.{number}")]["section"];
            let current = |number: u64| section(number)["current"].as_u64();
            let all = (1..=count).all(|number| current(number) == current(1) && fits(section(number)));
            (all && count > 0 && header["rekey"].is_null())
                .then_some(())
                .ok_or_else(|| format!("{header:#} {:#}", config["status"]))
        })
        .await;
    }

    /// The first so many of the shares in use.
    pub fn shares(&self, count: u32) -> Vec<String> {
        (1..=count)
            .map(|number| self.unwrap(&["--share", &number.to_string()]))
            .collect()
    }

    /// Why the command line writes it not.
    fn refused(&self, what: &[&str]) -> String {
        let namespace = &self.scene.stage.namespace;
        let arguments = [&["unwrap", "-n", namespace, NAME], what].concat();
        let done = self.caller.run(&arguments, b"");
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(done.out.is_empty());
        done.err
    }

    async fn going(&self) -> Value {
        self.ask("GET", "sys/rekey/init", None, Value::Null).await.1
    }

    /// Restarts the server, which is unsealed by the operator.
    async fn restarts(&self, server: Server) -> Server {
        drop(server);
        let server = self.start(&[], &[]);
        container(&self.scene, "vault-0", self.at.ip(), true).await;
        self.unsealed().await;
        server
    }
}

fn split() -> Value {
    json!({"shamir": {"shares": 3, "threshold": 2}})
}

#[tokio::test(flavor = "multi_thread")]
async fn vault_takes_new_shares_and_the_old_ones_are_void() {
    let set = Set::new("rotate-vault", Product::Vault, "127.0.0.2").await;
    let stage = &set.scene.stage;
    pod(&set.scene, "vault-0", "vault", set.at.ip()).await;
    let server = set.start(&[], &[]);
    let operator = set.operator();
    let running = operator.start();
    stage.apply(NAME, &set.spec(&split())).await;
    set.unsealed().await;
    set.token_is_gone().await;
    let old = set.shares(3);

    set.rotate("2026-q1").await;
    set.uses(2).await;
    let new = set.shares(3);
    assert!(old.iter().all(|share| !new.contains(share)));
    assert_eq!(old[0], set.unwrap(&["--share", "1", "--key-version", "1"]));
    let items = set.items().await;
    for item in [
        "share.1.aws",
        "share.3.aws",
        "set2.share.1.aws",
        "set2.share.3.aws",
    ] {
        assert!(items.iter().any(|held| held == item), "{items:?}");
    }
    told(&set.scene, NAME, "True", "Ready").await;
    stage.ready(NAME).await;
    assert_eq!(header(&set.store().await)["proven"], Value::Null);

    // The old ones do not unseal it any more; nobody but the operator gives it the new ones.
    let mut written = running.stop();
    drop(server);
    let server = set.start(&[], &[]);
    set.becomes("sealed", |state| state["sealed"] == true).await;
    let mut status = 0;
    for share in &old[..2] {
        status = set.ask("PUT", "sys/unseal", None, json!({"key": share})).await.0;
    }
    assert_ne!(status, 200, "the old shares still unseal");
    let running = operator.start();
    container(&set.scene, "vault-0", set.at.ip(), true).await;
    set.unsealed().await;
    within(Duration::from_mins(2), "the new set is proven", async || {
        let header = header(&set.store().await);
        (header["proven"] == 2)
            .then_some(())
            .ok_or_else(|| header.to_string())
    })
    .await;

    // The same value again is nothing new; another one is, once; and another number of shares is taken.
    set.rotate("2026-q1").await;
    let mut spec = set.spec(&json!({"shamir": {"shares": 4, "threshold": 3}}));
    spec["unseal"]["initialize"]["rootToken"] = json!("Revoke");
    stage.apply(NAME, &spec).await;
    told(&set.scene, NAME, "True", "Ready").await;
    set.rotate("2026-q2").await;
    set.uses(3).await;
    let third = set.shares(4);
    let server = set.restarts(server).await;
    assert_eq!(set.unsealed().await["t"], 3, "the new threshold is the server's");

    // Fewer: what the new set lacks is void, and is written only for who names its set.
    spec["unseal"]["initialize"]["shamir"] = json!({"shares": 2, "threshold": 2});
    stage.apply(NAME, &spec).await;
    told(&set.scene, NAME, "True", "Ready").await;
    set.rotate("2026-q3").await;
    set.uses(4).await;
    let fourth = set.shares(2);
    for number in ["3", "4"] {
        let refused = set.refused(&["--share", number]);
        assert!(refused.contains("number 4, has 2 unseal shares"), "{refused}");
        assert!(refused.contains("--key-version 3"), "{refused}");
    }
    assert_eq!(third[2], set.unwrap(&["--share", "3", "--key-version", "3"]));
    let server = set.restarts(server).await;
    let metrics = running.metrics();
    written += &running.stop();
    let asked = written.matches("the server is asked for new shares").count();
    assert_eq!(asked, 3, "one rotation for each value");
    let all: Vec<String> = [old, new, third, fourth].concat();
    search(&needles(&all), &said(stage, &written, &metrics).await);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rekey_of_somebody_else_gets_no_share_and_is_not_cancelled() {
    let set = Set::new("rotate-foreign", Product::Vault, "127.0.0.3").await;
    let stage = &set.scene.stage;
    pod(&set.scene, "vault-0", "vault", set.at.ip()).await;
    let server = set.start(&[], &[]);
    let running = set.operator().start();
    stage.apply(NAME, &set.spec(&split())).await;
    set.unsealed().await;
    set.token_is_gone().await;
    let body = json!({"secret_shares": 1, "secret_threshold": 1});
    let (status, foreign) = set.ask("PUT", "sys/rekey/init", None, body).await;
    assert_eq!((status, &foreign["started"]), (200, &json!(true)));
    set.rotate("one").await;
    let message = told(&set.scene, NAME, "False", "UnsealRejected").await;
    assert!(message.contains("operator rekey -cancel"), "{message}");
    let going = set.going().await;
    assert_eq!(going["nonce"], foreign["nonce"], "it was cancelled");
    assert_eq!(going["progress"], 0, "it was fed");
    assert!(header(&set.store().await)["rekey"].is_null());
    let old = set.shares(3);
    // Its owner ends it, and the operator goes on: at once when it is told to look.
    let nonce = json!({"nonce": foreign["nonce"]});
    set.ask("DELETE", "sys/rekey/init", None, nonce).await;
    set.rotate("two").await;
    set.uses(2).await;
    told(&set.scene, NAME, "True", "Ready").await;
    let metrics = running.metrics();
    let all = [old, set.shares(3)].concat();
    search(&needles(&all), &said(stage, &running.stop(), &metrics).await);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_lets_its_shares_be_replaced_when_its_listener_says_so() {
    let mut set = Set::new("rotate-openbao", Product::OpenBao, "127.0.0.4").await;
    let stage = &set.scene.stage;
    pod(&set.scene, "vault-0", "vault", set.at.ip()).await;
    let server = set.start(&[], &[]);
    let running = set.operator().start();
    stage.apply(NAME, &set.spec(&split())).await;
    set.unsealed().await;
    set.token_is_gone().await;
    set.rotate("one").await;
    let message = told(&set.scene, NAME, "False", "UnsealRejected").await;
    assert!(
        message.contains("disable_unauthed_rekey_endpoints = false"),
        "{message}"
    );
    assert!(header(&set.store().await)["rekey"].is_null());
    let old = set.shares(3);

    // As the message says.
    set.disk.listener = "disable_unauthed_rekey_endpoints = false".into();
    let server = set.restarts(server).await;
    set.uses(2).await;
    told(&set.scene, NAME, "True", "Ready").await;
    let server = set.restarts(server).await;
    let metrics = running.metrics();
    let all = [old, set.shares(3)].concat();
    search(&needles(&all), &said(stage, &running.stop(), &metrics).await);
    drop(server);
}
