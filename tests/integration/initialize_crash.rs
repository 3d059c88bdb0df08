//! Drill: the operator is killed at every write and at every request of an initialisation, on either side of it. A server
//! is asked to initialise itself once, and what it answered is stored, or a human is told that it is lost; it is never
//! unsealed with what is not stored.

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::{
    initialize::{NAME, STORE},
    secrecy::{said, search},
    support::{
        kms::Act,
        knife::{Cut, Knife, Side},
        needle::Needle,
        oci_caller::Caller,
        operator::{Operator, Running},
        pki::Pki,
        plane::{eventually, within},
        scene::Scene,
        stage::{condition, speaks_of_now},
        vault::{Asked, Hook, Vault},
    },
    unseal::{HOST, pod, told, trust},
};

/// Runs that go on at once.
const AT_ONCE: usize = 3;

/// One server, scripted.
pub struct Drill {
    pub scene: Arc<Scene>,
    pub vault: Vault,
    caller: Caller,
    /// Something was unsealed before its shares were stored.
    early: Arc<AtomicBool>,
    /// The operator that is to be killed at a request; 0 = none.
    victim: Arc<AtomicU32>,
    struck: Arc<AtomicBool>,
    /// Done when the server is asked to initialise itself, before it does.
    upon_init: Arc<Mutex<Option<Upon>>>,
    _pki: Pki,
}

type Upon = Box<dyn FnOnce() + Send>;

impl Drill {
    /// `cuts`: the requests of the server at each of which an operator is killed, and whether before it was carried out.
    pub async fn new(name: &str, cuts: impl IntoIterator<Item = (Asked, bool)>) -> Self {
        let cuts: Vec<(Asked, bool)> = cuts.into_iter().collect();
        let scene = Arc::new(Scene::new(name).await);
        let pki = Pki::new(&[HOST]);
        trust(&scene, &pki).await;
        let (early, victim, struck): (Arc<AtomicBool>, Arc<AtomicU32>, Arc<AtomicBool>) =
            (Arc::default(), Arc::default(), Arc::default());
        let upon_init: Arc<Mutex<Option<Upon>>> = Arc::default();
        let hook: Hook = {
            let (runtime, plane) = (tokio::runtime::Handle::current(), scene.stage.plane.clone());
            let namespace = scene.stage.namespace.clone();
            let (early, victim, struck) = (early.clone(), victim.clone(), struck.clone());
            let upon_init = upon_init.clone();
            Arc::new(move |asked, before| {
                if asked.what == "init"
                    && before
                    && let Some(upon) = upon_init.lock().unwrap().take()
                {
                    upon();
                }
                if asked.what == "unseal" && before {
                    let store = runtime.block_on(plane.get("Secret", &namespace, STORE));
                    // The first set, or one that lies beside it.
                    let holds = |data: &Value, number: u32| {
                        let item = format!("share.{number}.aws");
                        let items = data.as_object().unwrap().keys();
                        items.into_iter().any(|name| name.ends_with(&item))
                    };
                    let stored =
                        store.is_some_and(|store| (1..=3).all(|number| holds(&store["data"], number)));
                    early.fetch_or(!stored, Ordering::SeqCst);
                }
                if cuts.iter().any(|(at, side)| at == asked && *side == before) {
                    kill(&victim, &struck);
                }
            })
        };
        let vault = Vault::start(&pki, HOST, Some(hook));
        let caller = Caller::new().env("KUBECONFIG", std::env::var("KUBECONFIG").unwrap());
        pod(&scene, "vault-0", "vault", "127.0.0.1".parse().unwrap()).await;
        Self {
            scene,
            vault,
            caller,
            early,
            victim,
            struck,
            upon_init,
            _pki: pki,
        }
    }

    fn upon_init(&self, upon: impl FnOnce() + Send + 'static) {
        *self.upon_init.lock().unwrap() = Some(Box::new(upon));
    }

    pub fn operator(&self) -> Operator {
        self.scene.operator().flags(["--unseal-allow-loopback"])
    }

    /// One that dies at the next cut of the server's requests.
    pub fn start(&self) -> Running {
        self.struck.store(false, Ordering::SeqCst);
        let running = self.operator().spawn();
        self.victim.store(running.pid(), Ordering::SeqCst);
        running
    }

    /// Waits until that one is dead, by the cut at `at`. What it wrote.
    pub async fn killed(&self, running: &Running, patience: Duration, at: &impl Debug) -> String {
        within(patience, "killed", async || {
            let struck = self.struck.load(Ordering::SeqCst);
            struck
                .then_some(())
                .ok_or_else(|| format!("{at:?} {}", running.output()))
        })
        .await;
        running.output()
    }

    pub async fn apply(&self) {
        self.apply_with(&json!({"shares": 3, "threshold": 2})).await;
    }

    /// Applies it with so many shares.
    pub async fn apply_with(&self, split: &Value) {
        let spec = json!({
            "seals": [{"name": "aws", "awskms": {
                "kmsKeyID": self.scene.key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}],
            "unseal": {
                "product": "vault", "podSelector": {"matchLabels": {"app": "vault"}}, "port": self.vault.port(),
                "tls": {"ca": {"configMapKeyRef": {"name": "vault-ca", "key": "ca.crt"}}, "serverName": HOST},
                "initialize": {"shamir": split},
            },
        });
        self.scene.stage.apply(NAME, &spec).await;
    }

    async fn store(&self) -> Value {
        let data = self.scene.stage.secret(STORE).await.unwrap_or_default();
        let items: Vec<&String> = data.keys().filter(|item| *item != "header").collect();
        json!({"header": crate::support::drill::header(&data), "items": items})
    }

    /// Whether everything is done: initialised, stored, unsealed, the token gone; or what a human was told.
    async fn verdict(&self) -> Result<&'static str, String> {
        let config = self.scene.stage.config(NAME).await;
        let is = condition(&config, "Unsealed");
        let reason = is["reason"].as_str().unwrap_or_default();
        if !speaks_of_now(&config) {
            return Err("not looked at yet".to_owned());
        }
        if is["status"] == "False" && reason == "InitResponseLost" {
            return Ok("lost");
        }
        let gone = config["status"]["unseal"]["rootTokenHeldSince"].is_null();
        let store = self.store().await;
        let kept = store["items"].as_array().is_some_and(|items| items.len() == 3);
        let well = is["status"] == "True" && gone && kept && condition(&config, "Ready")["status"] == "True";
        well.then_some("well")
            .ok_or_else(|| format!("{:#} {store:#}", config["status"]))
    }

    pub async fn settles(&self) -> &'static str {
        within(Duration::from_mins(2), "well, or lost", async || {
            self.verdict().await
        })
        .await
    }

    /// Does what the message says, and waits until everything is well.
    async fn mended(&self) {
        if self.settles().await == "lost" {
            let message = told(&self.scene, NAME, "False", "InitResponseLost").await;
            let initialized = self.vault.state().initialized;
            let says = if initialized {
                "delete its volumes"
            } else {
                "nothing is lost"
            };
            assert!(message.contains(says), "initialised: {initialized}: {message}");
            let asked = self.vault.count("init");
            if initialized {
                self.vault.wipe();
            }
            let namespace = &self.scene.stage.namespace;
            self.caller
                .run(&["forget-init", "-n", namespace, NAME, "--yes"], b"")
                .ok();
            within(Duration::from_mins(2), "well", async || {
                let verdict = self.verdict().await?;
                (verdict == "well")
                    .then_some(())
                    .ok_or_else(|| verdict.to_owned())
            })
            .await;
            assert_eq!(self.vault.count("init"), asked + 1);
        }
    }

    /// What holds whatever happened.
    async fn holds(&self, output: &str, metrics: &str) {
        assert!(
            !self.early.load(Ordering::SeqCst),
            "unsealed with shares that were not stored"
        );
        assert!(!self.vault.token_lives(), "the root token still works");
        assert_eq!(
            self.vault.state().foreign,
            0,
            "it was given shares that are not its own"
        );
        let secrets = self.vault.secrets();
        let needles: Vec<Needle> = secrets
            .iter()
            .map(|secret| Needle::new("what a server answered", secret.as_bytes()))
            .collect();
        search(&needles, &said(&self.scene.stage, output, metrics).await);
        // A restart is unsealed from the store.
        self.vault.restart();
        crate::unseal::container(&self.scene, "vault-0", "127.0.0.1".parse().unwrap(), true).await;
        eventually("unsealed again", async || {
            let sealed = self.vault.state().sealed;
            (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
        })
        .await;
    }
}

fn kill(victim: &AtomicU32, struck: &AtomicBool) {
    let pid = i32::try_from(victim.swap(0, Ordering::SeqCst)).ok();
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
        struck.store(true, Ordering::SeqCst);
    }
}

/// An initialisation with an operator that dies at the cut; returns the writes that there were if it never did.
async fn killed_at_write(cut: Cut) -> Option<Vec<String>> {
    let drill = Drill::new("init-crash", None).await;
    let knife = Knife::new(drill.scene.stage.plane.client(), Some(cut)).await;
    let running = knife.start(&drill.operator());
    drill.apply().await;
    let killed = within(Duration::from_mins(2), "well, or killed", async || {
        match (knife.is_reached(), knife.has_struck()) {
            (true, false) => Err("it is about to be killed".to_owned()),
            (true, true) => Ok(true),
            _ => drill.verdict().await.map(|_| false),
        }
    })
    .await;
    let mut output = running.output();
    drop(running);
    let running = drill.operator().start();
    drill.mended().await;
    println!(
        "{cut:?}: {}, asked {} times",
        if killed { "killed" } else { "not reached" },
        drill.vault.count("init")
    );
    drill
        .holds(&(output.clone() + &running.output()), &running.metrics())
        .await;
    output += &running.stop();
    drop(output);
    (!killed).then(|| knife.seen())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_write_the_operator_asks_once_and_loses_no_share_untold() {
    let mut first = 1;
    let writes = loop {
        let cuts = (first..first + AT_ONCE)
            .flat_map(|write| [Side::Before, Side::After].map(|side| Cut { write, side }));
        let runs = join_all(cuts.map(killed_at_write)).await;
        first += AT_ONCE;
        if let Some(writes) = runs.into_iter().flatten().next() {
            break writes;
        }
    };
    println!("{writes:#?}");
    // The marker, the set, the set without its token, and a status between: fewer would mean that they are not seen.
    let secrets = writes.iter().filter(|write| write.contains("/secrets")).count();
    assert!(secrets >= 3 && first > writes.len(), "{writes:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_every_request_the_operator_asks_once_and_loses_no_share_untold() {
    let asked = |what, number| Asked { what, number };
    let points = [
        asked("init", 1),
        asked("unseal", 1),
        asked("unseal", 2),
        asked("revoke", 1),
        asked("look-up", 1),
    ];
    let runs = points
        .into_iter()
        .flat_map(|at| [true, false].map(|before| (at.clone(), before)));
    let runs = runs.map(|(at, before)| async move {
        let drill = Drill::new("init-killed", Some((at.clone(), before))).await;
        let running = drill.start();
        drill.apply().await;
        let output = drill.killed(&running, Duration::from_mins(2), &at).await;
        drop(running);
        let running = drill.operator().start();
        let lost = drill.settles().await == "lost";
        // Only an answer that was never received is lost.
        assert_eq!(lost, at.what == "init", "{at:?} {before}");
        if lost {
            // `sys/init` was carried out, though the operator did not live to see that.
            assert!(drill.vault.state().initialized);
        }
        drill.mended().await;
        assert_eq!(
            drill.vault.count("init"),
            1 + usize::from(lost),
            "{at:?} {before}"
        );
        drill
            .holds(&(output + &running.output()), &running.metrics())
            .await;
    });
    join_all(runs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_writes_delays_and_loses_nothing() {
    let drill = Drill::new("init-refused", None).await;
    let knife = Arc::new(Knife::new(drill.scene.stage.plane.client(), None).await);
    // No marker can be written: nothing is asked.
    knife.refuse(usize::MAX);
    let mut running = knife.start(&drill.operator());
    drill.apply().await;
    let message = told(&drill.scene, NAME, "False", "DeliveryFailed").await;
    assert!(message.contains(STORE), "{message}");
    assert_eq!(drill.vault.count("init"), 0, "asked without a marker");
    // The marker can be written, and what the server answers cannot.
    let refusing = knife.clone();
    drill.upon_init(move || refusing.refuse(usize::MAX));
    knife.refuse(0);
    told(&drill.scene, NAME, "False", "InitResponseNotStored").await;
    // It outlives a request to end.
    running.signal(Signal::TERM);
    eventually("it knows that it should end", async || {
        let said = running
            .output()
            .contains("this process ends when what it answers is stored");
        said.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    assert_eq!(
        running.exit_code(),
        None,
        "it ended with the only copy of the shares"
    );
    assert_eq!(drill.vault.count("unseal"), 0);
    assert!(drill.store().await["items"].as_array().unwrap().is_empty());
    knife.refuse(0);
    eventually("it ends", async || {
        let code = running.exit_code();
        (code == Some(0)).then_some(()).ok_or_else(|| format!("{code:?}"))
    })
    .await;
    let output = running.output();
    drop(running);
    let running = drill.operator().start();
    assert_eq!(drill.settles().await, "well");
    assert_eq!(drill.vault.count("init"), 1);
    drill
        .holds(&(output + &running.output()), &running.metrics())
        .await;
}

/// An initialisation in which the store refuses this write and the one after it; whether there was such a write.
async fn refused_at(write: usize) -> bool {
    let drill = Drill::new("init-refusals", None).await;
    let knife = Knife::new(drill.scene.stage.plane.client(), None).await;
    knife.refuse_after(write - 1, 2);
    let running = knife.start(&drill.operator());
    drill.apply().await;
    assert_eq!(drill.settles().await, "well", "write {write}");
    let refused = knife.has_refused();
    assert_eq!(drill.vault.count("init"), 1, "write {write}");
    knife.refuse(0);
    drill.holds(&running.output(), &running.metrics()).await;
    refused
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_any_write_of_an_initialisation_delays_it_only() {
    // The marker, the set, and the set without its token; nothing is written after them.
    let runs = join_all((1..=4).map(refused_at)).await;
    assert_eq!(runs, [true, true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_that_cannot_be_taken_away_is_told_and_nothing_is_lost() {
    let drill = Drill::new("init-unmark", None).await;
    let knife = Arc::new(Knife::new(drill.scene.stage.plane.client(), None).await);
    drill.vault.state().refuses = Some(400);
    let refusing = knife.clone();
    drill.upon_init(move || refusing.refuse(usize::MAX));
    let running = knife.start(&drill.operator());
    drill.apply().await;
    assert_eq!(drill.settles().await, "lost");
    assert!(!drill.store().await["header"]["init"].is_null());
    assert_eq!(drill.vault.count("init"), 1, "asked again over a marker");
    drill.vault.state().refuses = None;
    knife.refuse(0);
    drill.mended().await;
    drill.holds(&running.output(), &running.metrics()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_fails_after_the_answer_delays_and_loses_nothing() {
    let drill = Drill::new("init-kms", None).await;
    // Before: nothing is asked, and it is told which seal does not wrap.
    drill.scene.kms.always("Encrypt", Act::ServerFault);
    let running = drill.operator().start();
    drill.apply().await;
    let message = told(&drill.scene, NAME, "False", "KMSUnavailable").await;
    assert!(
        message.contains("every enabled seal") && message.contains("\"aws\""),
        "{message}"
    );
    assert_eq!(drill.vault.count("init"), 0);
    assert!(drill.store().await["header"]["init"].is_null());
    // After: the wrap that is tried before goes through, and those of the answer do not.
    let scene = drill.scene.clone();
    drill.upon_init(move || scene.kms.always("Encrypt", Act::ServerFault));
    drill.scene.kms.heal();
    let message = told(&drill.scene, NAME, "False", "InitResponseNotStored").await;
    assert!(message.contains("KMSUnavailable"), "{message}");
    assert_eq!(drill.vault.count("unseal"), 0);
    drill.scene.kms.heal();
    assert_eq!(drill.settles().await, "well");
    assert_eq!(drill.vault.count("init"), 1);
    drill.holds(&running.output(), &running.metrics()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_loses_its_lease_stores_the_answer_before_it_ends() {
    let drill = Drill::new("init-lease", None).await;
    let namespace = &drill.scene.stage.namespace;
    let mut running = drill
        .operator()
        .flags([
            "--leader-elect",
            "--leader-elect-name=init",
            &format!("--leader-elect-namespace={namespace}"),
            "--leader-elect-identity=first",
        ])
        .start();
    let scene = drill.scene.clone();
    drill.upon_init(move || scene.kms.always("Encrypt", Act::ServerFault));
    drill.apply().await;
    told(&drill.scene, NAME, "False", "InitResponseNotStored").await;
    drill.scene.stage.plane.delete("Lease", namespace, "init").await;
    within(
        Duration::from_mins(2),
        "it knows that its term is over",
        async || {
            let output = running.output();
            let said = output.contains("this process ends when what it answers is stored");
            said.then_some(()).ok_or(output)
        },
    )
    .await;
    assert_eq!(
        running.exit_code(),
        None,
        "it ended with the only copy of the shares"
    );
    assert!(drill.store().await["items"].as_array().unwrap().is_empty());
    drill.scene.kms.heal();
    within(Duration::from_mins(2), "it ends", async || {
        let code = running.exit_code();
        (code == Some(1)).then_some(()).ok_or_else(|| format!("{code:?}"))
    })
    .await;
    assert_eq!(
        drill.store().await["items"].as_array().unwrap().len(),
        4,
        "three shares and the token"
    );
    let output = running.output();
    drop(running);
    // Another one takes it up: unsealed from what the first one stored.
    let running = drill.operator().start();
    assert_eq!(drill.settles().await, "well");
    assert_eq!(drill.vault.count("init"), 1);
    drill
        .holds(&(output + &running.output()), &running.metrics())
        .await;
}
