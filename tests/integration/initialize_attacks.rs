//! What must never be initialised is not (security rules S10, S11), and what was kept stays kept.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{
    initialize::{NAME, STORE, needles},
    store_cli::script,
    support::{
        drill::header,
        http::{Reply, Server},
        oci_caller::Caller,
        operator::Running,
        pki::Pki,
        plane::eventually,
        scene::Scene,
        stage::{condition, named, speaks_of_now},
        tls::{Says, TlsServer},
        vault::Vault,
    },
    unseal::{HOST, container, pod, told, trust},
};

const RAW: &str =
    r#"{"type":"shamir","initialized":false,"sealed":true,"t":0,"n":0,"progress":0,"nonce":""}"#;

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

struct Attack {
    scene: Scene,
    pki: Pki,
    caller: Caller,
    running: Running,
}

impl Attack {
    async fn new(name: &str) -> Self {
        let scene = Scene::new(name).await;
        let pki = Pki::new(&[HOST, "other.example.svc"]);
        trust(&scene, &pki).await;
        let running = scene.operator().flags(["--unseal-allow-loopback"]).start();
        let caller = Caller::new().env("KUBECONFIG", std::env::var("KUBECONFIG").unwrap());
        Self {
            scene,
            pki,
            caller,
            running,
        }
    }

    fn spec(&self, app: &str, port: &Value) -> Value {
        json!({
            "seals": [{"name": "aws", "awskms": {
                "kmsKeyID": self.scene.key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}],
            "unseal": {
                "product": "vault", "podSelector": {"matchLabels": {"app": app}}, "port": port, "policy": "Always",
                "tls": {"ca": {"configMapKeyRef": {"name": "vault-ca", "key": "ca.crt"}}, "serverName": HOST},
                "initialize": {"shamir": {"shares": 3, "threshold": 2}},
            },
        })
    }

    /// A SealConfig and its one pod, both of that name.
    async fn aim(&self, name: &str, port: u16) -> Value {
        let spec = self.spec(name, &json!(port));
        pod(&self.scene, name, name, LOOPBACK).await;
        self.scene.stage.apply(name, &spec).await;
        spec
    }

    /// A server that was initialised, with its SealConfig and pod.
    async fn initialized(&self) -> (Vault, Value) {
        let vault = Vault::start(&self.pki, HOST, None);
        let spec = self.aim(NAME, vault.port()).await;
        self.well().await;
        (vault, spec)
    }

    async fn well(&self) {
        told(&self.scene, NAME, "True", "Ready").await;
        self.scene.stage.ready(NAME).await;
    }

    async fn store(&self) -> BTreeMap<String, Vec<u8>> {
        self.scene.stage.secret(STORE).await.unwrap_or_default()
    }

    async fn restarts(&self) {
        container(&self.scene, NAME, LOOPBACK, false).await;
    }

    fn forget(&self) -> crate::support::oci_caller::Done {
        let namespace = &self.scene.stage.namespace;
        self.caller.run(
            &["forget-init", "-n", namespace, NAME, "--yes", "-o", "json"],
            b"",
        )
    }
}

/// Nothing but questions.
fn untouched(server: &TlsServer) {
    for request in server.received().iter().flatten() {
        assert!(
            request.line.starts_with("GET /v1/sys/seal-status "),
            "{}",
            request.line
        );
        assert!(request.body.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn impostors_and_http_initialise_nothing() {
    let attack = Attack::new("init-impostors").await;
    let scene = &attack.scene;
    let says = || Says::Answer(200, "", RAW.into());
    let other = TlsServer::start(&attack.pki, "other.example.svc", move |_| says());
    attack.aim("other-name", other.address().port()).await;
    let foreign = TlsServer::start(&Pki::new(&[HOST]), HOST, move |_| says());
    attack.aim("other-ca", foreign.address().port()).await;
    // Over http it is not even a SealConfig.
    let http = Server::start(|_| Reply::new(200, "application/json", RAW));
    pod(scene, "http", "http", LOOPBACK).await;
    let mut spec = attack.spec("http", &json!(http.address().port()));
    spec["unseal"]["scheme"] = json!("http");
    spec["unseal"].as_object_mut().unwrap().remove("tls");
    let refused = scene
        .stage
        .plane
        .try_apply(&scene.stage.seal_config("http", &spec))
        .await;
    assert!(refused.is_err_and(|refusal| refusal.message.contains("initialize needs https")));
    // A seal that this namespace may not use keeps nothing, and so nothing is asked.
    let good = Vault::start(&attack.pki, HOST, None);
    let mut spec = attack.spec("identity", &json!(good.port()));
    spec["seals"][0]["awskms"]
        .as_object_mut()
        .unwrap()
        .remove("credentials");
    pod(scene, "identity", "identity", LOOPBACK).await;
    scene.stage.apply("identity", &spec).await;
    told(scene, "identity", "False", "OperatorIdentityNotAllowed").await;
    assert_eq!((good.count("init"), scene.kms.count("Encrypt")), (0, 0));

    // The pod goes while it is asked, every time.
    let (runtime, plane) = (tokio::runtime::Handle::current(), scene.stage.plane.clone());
    let namespace = scene.stage.namespace.clone();
    let deleting = TlsServer::start(&attack.pki, HOST, move |_| {
        runtime.block_on(plane.delete("Pod", &namespace, "deleted"));
        says()
    });
    attack.aim("deleted", deleting.address().port()).await;

    for name in ["other-name", "other-ca"] {
        told(scene, name, "False", "TargetNotVerified").await;
    }
    eventually("the deleted pod is forgotten", async || {
        let config = scene.stage.config("deleted").await;
        let forgotten = named(&config["status"]["unseal"]["pods"], "deleted").is_null();
        (forgotten && !deleting.received().is_empty())
            .then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    eventually("its marker is gone again", async || {
        let data = scene
            .stage
            .secret("deleted.sealconfig.wrapped")
            .await
            .unwrap_or_default();
        let marker = header(&data)["init"].clone();
        marker.is_null().then_some(()).ok_or_else(|| marker.to_string())
    })
    .await;
    for server in [&other, &foreign] {
        assert!(
            server.received().iter().all(Vec::is_empty),
            "asked before it was proven"
        );
    }
    untouched(&deleting);
    assert_eq!(http.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_volume_is_told_and_a_new_set_lies_beside_the_old_one() {
    let attack = Attack::new("init-wiped").await;
    let (vault, _) = attack.initialized().await;
    let first = attack.store().await;
    let early = attack.forget();
    assert_eq!(early.code, 1, "{}", early.err);
    assert!(early.err.contains("refused"), "{}", early.err);
    vault.wipe();
    attack.restarts().await;
    let message = told(&attack.scene, NAME, "False", "AlreadyInitializedElsewhere").await;
    assert!(message.contains("forget-init"), "{message}");
    assert_eq!(vault.count("init"), 1);

    let unconfirmed = attack.caller.run(
        &["forget-init", "-n", &attack.scene.stage.namespace, NAME],
        b"vault\n",
    );
    assert_eq!(unconfirmed.code, 2, "{}", unconfirmed.err);
    let forgotten = attack.forget().json();
    assert_eq!(
        (&forgotten["name"], &forgotten["forgotten"]),
        (&json!(NAME), &json!(1))
    );
    attack.well().await;
    assert_eq!((vault.count("init"), vault.state().foreign), (2, 0));
    let second = attack.store().await;
    for number in 1..=3 {
        let item = format!("share.{number}.aws");
        assert_eq!(first[&item], second[&item], "the old share was written over");
        assert!(second.contains_key(&format!("set2.{item}")));
    }
    // The old one is there for who needs it.
    let secrets = vault.secrets();
    let caller = Caller::new()
        .env("AWS_ENDPOINT_URL_KMS", attack.scene.kms.url())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIACALLER0000000000")
        .env("AWS_SECRET_ACCESS_KEY", "caller-secret")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("KUBECONFIG", std::env::var("KUBECONFIG").unwrap());
    let share = |set: &str| {
        let namespace = &attack.scene.stage.namespace;
        let arguments = [
            "unwrap",
            "-n",
            namespace,
            NAME,
            "--share",
            "2",
            "--key-version",
            set,
        ];
        String::from_utf8(caller.run(&arguments, b"").ok()).unwrap()
    };
    assert_eq!(share("1"), secrets[1]);
    assert_eq!(share("2"), secrets[4 + 1]);
    // By hand as well, as docs/store.md says.
    let stage = &attack.scene.stage;
    let store = stage.whole_secret(STORE).await.to_string();
    let script = caller.file("open.py", script());
    let python = std::env::var("AUTOUNSEAL_PYTHON").unwrap();
    for (set, at) in [("1", 1), ("2", 4 + 1)] {
        let arguments = [
            &script,
            "autounseal",
            &stage.namespace,
            NAME,
            "share.2",
            set,
            "aws",
        ];
        let opened = caller.program(&python, &arguments, store.as_bytes()).ok();
        assert_eq!(String::from_utf8(opened).unwrap(), secrets[at]);
    }
    vault.restart();
    attack.restarts().await;
    eventually("unsealed with the new set", async || {
        let sealed = vault.state().sealed;
        (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_lost_makes_no_second_set() {
    let attack = Attack::new("init-store-lost").await;
    let (vault, _) = attack.initialized().await;
    let plane = &attack.scene.stage.plane;
    plane.delete("Secret", &attack.scene.stage.namespace, STORE).await;
    vault.wipe();
    attack.restarts().await;
    told(&attack.scene, NAME, "False", "StoreMissing").await;
    assert_eq!(vault.count("init"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_initialised_before_every_pod_has_said_that_it_is_not() {
    let attack = Attack::new("init-several").await;
    let scene = &attack.scene;
    let plane = &scene.stage.plane;
    let vaults = [0, 1].map(|_| Vault::start(&attack.pki, HOST, None));
    for (number, vault) in vaults.iter().enumerate() {
        let name = format!("vault-{number}");
        let mut pod = scene.stage.object("v1", "Pod", &name);
        pod["metadata"]["labels"] = json!({"app": "vault"});
        pod["spec"] = json!({"nodeName": "node-1", "containers": [{
            "name": "server", "image": "server", "ports": [{"name": "api", "containerPort": vault.port()}]}]});
        plane.create(&pod).await;
    }
    container(scene, "vault-0", LOOPBACK, false).await;
    // The second one does not run: it may be the one that holds the data.
    scene
        .stage
        .apply(NAME, &attack.spec("vault", &json!("api")))
        .await;
    let message = told(scene, NAME, "False", "NotInitialized").await;
    assert!(message.contains("pod vault-1 has not answered"), "{message}");
    assert_eq!(vaults[0].count("init"), 0);

    container(scene, "vault-1", LOOPBACK, false).await;
    eventually("the first one is initialised", async || {
        let sealed = vaults[0].state().sealed;
        (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
    })
    .await;
    // The other one is not its follower yet, and stays as it is.
    eventually("it is told to join", async || {
        let message = told(scene, NAME, "False", "NotInitialized").await;
        let joins = message.contains("pod vault-1") && message.contains("pod vault-0 of the same set is");
        joins.then_some(()).ok_or(message)
    })
    .await;
    assert_eq!((vaults[0].count("init"), vaults[1].count("init")), (1, 0));
    // It joins: its shares are those of the first.
    let answers = vaults[0].state().answers.clone();
    vaults[1].join(answers);
    eventually("the follower is unsealed", async || {
        let sealed = vaults[1].state().sealed;
        (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
    })
    .await;
    told(scene, NAME, "True", "Ready").await;
    assert_eq!((vaults[1].count("init"), vaults[1].state().foreign), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_leaves_no_marker_and_foreign_ones_get_no_share() {
    let attack = Attack::new("init-refusal").await;
    let vault = Vault::start(&attack.pki, HOST, None);
    vault.state().refuses = Some(400);
    attack.aim(NAME, vault.port()).await;
    eventually("the refusal is told", async || {
        let message = told(&attack.scene, NAME, "False", "NotInitialized").await;
        message.contains("status 400").then_some(()).ok_or(message)
    })
    .await;
    vault.state().refuses = None;
    attack.well().await;
    // The one that is there now calls itself otherwise.
    eventually("the cluster is written down", async || {
        let header = header(&attack.store().await);
        let init = &header["keys"]["share.1"]["section"]["versions"]["1"]["init"];
        init["clusterID"]
            .is_string()
            .then_some(())
            .ok_or_else(|| header.to_string())
    })
    .await;
    vault.state().cluster = Some("1b0a1c1e-6d3b-4f6f-9d3c-0123456789ab");
    attack.restarts().await;
    let message = told(&attack.scene, NAME, "False", "UnsealRejected").await;
    assert!(message.contains("is of cluster 1b0a1c1e"), "{message}");
    // A server that somebody else initialised, whose shares nobody brought.
    let other = Vault::start(&attack.pki, HOST, None);
    other.join(vec![(vec!["x".repeat(44), "y".repeat(44)], "t".to_owned())]);
    pod(&attack.scene, "other", "other", LOOPBACK).await;
    let spec = attack.spec("other", &json!(other.port()));
    attack.scene.stage.apply("other", &spec).await;
    told(&attack.scene, "other", "False", "UnsealKeysMissing").await;
    assert_eq!((other.count("init"), other.count("unseal")), (0, 0));
    drop(attack.running);
}

#[tokio::test(flavor = "multi_thread")]
async fn seals_come_and_go_and_every_share_goes_along() {
    let attack = Attack::new("init-seals").await;
    let (vault, mut spec) = attack.initialized().await;
    let second = attack.scene.kms.key();
    let seal = |name: &str, arn: &str| {
        json!({"name": name, "awskms": {
            "kmsKeyID": arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}})
    };
    // The only seal that opens them cannot be taken out.
    let first = spec["seals"][0].clone();
    spec["seals"] = json!([seal("new", &second.arn)]);
    attack.scene.stage.apply(NAME, &spec).await;
    attack.scene.stage.not_ready(NAME, "LastSealRemoved").await;
    // One beside it takes every share.
    spec["seals"] = json!([first, seal("new", &second.arn)]);
    attack.scene.stage.apply(NAME, &spec).await;
    eventually("wrapped under both", async || {
        let config = attack.scene.stage.config(NAME).await;
        let keys = config["status"]["keys"].as_array().unwrap().clone();
        let both = keys.len() == 3
            && keys
                .iter()
                .all(|key| key["wrappedUnder"] == json!(["aws", "new"]));
        both.then_some(()).ok_or_else(|| json!(keys).to_string())
    })
    .await;
    // Then the first may go, and servers are unsealed by the second.
    spec["seals"] = json!([seal("new", &second.arn)]);
    attack.scene.stage.apply(NAME, &spec).await;
    attack.scene.stage.ready(NAME).await;
    attack.scene.kms.set_state(&attack.scene.key, "Disabled");
    vault.restart();
    attack.restarts().await;
    eventually("unsealed by the second seal", async || {
        let sealed = vault.state().sealed;
        (!sealed).then_some(()).ok_or_else(|| "sealed".to_owned())
    })
    .await;
    assert_eq!(vault.count("init"), 1);
}

/// Security rule S8, by whoever may write SealConfigs.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_answered_reaches_no_other_secret() {
    let attack = Attack::new("init-delivered").await;
    let (vault, spec) = attack.initialized().await;
    let stage = &attack.scene.stage;
    let target = |data: Value| json!([{"name": "t", "podSelector": {"matchLabels": {"app": "x"}}, "secret": {"name": "loot", "data": data}}]);
    // By its name, as a key of the spec or as one of the store's.
    let mut named = spec.clone();
    named["keys"] = json!([{"name": "share.1", "generate": {}}]);
    let mut asked = spec.clone();
    asked["targets"] = target(json!([{"name": "x", "key": {"name": "share.1"}}]));
    for refused in [&named, &asked] {
        let refused = stage.plane.try_apply(&stage.seal_config(NAME, refused)).await;
        assert!(refused.is_err(), "{refused:?}");
    }
    let mut template = spec.clone();
    template["targets"] = target(
        json!([{"name": "x", "template": "{{ keys[\"share.1\"].base64 }}{{ keys[\"root-token.1\"].hex }}"}]),
    );
    stage.apply(NAME, &template).await;
    attack.scene.not_ready(NAME, &["TemplateInvalid"]).await;
    // Its copies, as those of a key that somebody brings; and as what somebody has in the clear.
    for (name, key) in [
        (
            "brought",
            json!({"wrapped": [{"seal": "aws", "secretKeyRef": {"name": STORE, "key": "share.1.aws"}}]}),
        ),
        (
            "kms",
            json!({"wrapped": [{"seal": "aws", "format": "kms", "secretKeyRef": {"name": STORE, "key": "share.1.aws"}}]}),
        ),
        (
            "imported",
            json!({"import": {"secretKeyRef": {"name": STORE, "key": "share.1.aws"}}}),
        ),
    ] {
        let mut key = key;
        key["name"] = json!("loot");
        let thief = json!({"seals": spec["seals"], "keys": [key], "targets": [{"name": "t", "podSelector": {"matchLabels": {"app": "x"}}, "secret": {"name": name}}]});
        stage.apply(name, &thief).await;
        eventually(&format!("{name} has been looked at"), async || {
            let config = stage.config(name).await;
            let ready = condition(&config, "Ready");
            let told = speaks_of_now(&config) && ready["reason"] != "Pending";
            told.then_some(()).ok_or_else(|| ready.to_string())
        })
        .await;
    }
    // By what is delivered when nobody says what.
    let mut default = spec.clone();
    default["keys"] = json!([{"name": "own", "generate": {}}]);
    default["targets"] =
        json!([{"name": "t", "podSelector": {"matchLabels": {"app": "x"}}, "secret": {"name": "own"}}]);
    stage.apply(NAME, &default).await;
    attack.well().await;
    let delivered = stage.secret("own").await.unwrap();
    assert_eq!(delivered.keys().collect::<Vec<_>>(), ["own"]);

    let needles = needles(&vault.secrets());
    for secret in stage.plane.list("Secret", &stage.namespace).await {
        for (entry, text) in secret["data"].as_object().into_iter().flatten() {
            let bytes = data_encoding::BASE64
                .decode(text.as_str().unwrap().as_bytes())
                .unwrap();
            let found = needles.iter().find_map(|needle| needle.found_in(&bytes));
            assert_eq!(found, None, "{} {entry}", secret["metadata"]["name"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_server_takes_after_it_was_revoked_is_kept_and_told() {
    let attack = Attack::new("init-token").await;
    let vault = Vault::start(&attack.pki, HOST, None);
    vault.state().spares_token = usize::MAX;
    attack.aim(NAME, vault.port()).await;
    eventually("it was looked up twice", async || {
        let asked = vault.count("look-up");
        (asked >= 2).then_some(()).ok_or_else(|| asked.to_string())
    })
    .await;
    assert!(
        attack.store().await.contains_key("root-token.aws"),
        "the copy is gone"
    );
    let stage = &attack.scene.stage;
    eventually("it is told that it is held", async || {
        let config = stage.config(NAME).await;
        let since = &config["status"]["unseal"]["rootTokenHeldSince"];
        let told = since.is_string() && config["status"].to_string().contains("still takes it");
        told.then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    vault.state().spares_token = 0;
    eventually("it is gone", async || {
        let held = attack.store().await.contains_key("root-token.aws");
        (!held && !vault.token_lives())
            .then_some(())
            .ok_or_else(|| "held".to_owned())
    })
    .await;
}
