//! The run of which the dashboard's picture is drawn: two replicas, tenants, a Vault and two clouds, and in a few minutes all
//! that the dashboard asks for. `cargo xtask picture` scrapes it, in a control plane of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::{
    initialize::{NAME, Set},
    leader::{PATIENCE, leading},
    managed_keys,
    own_identity::{Metadata, Put},
    support::{
        fleet::{container, readiness, told},
        kms::{Act, Context, Key, Kms},
        oci::{self, Oci},
        oci_scene::by_secret,
        operator::{Operator, Running},
        plane::{Plane, within},
        scene::Scene,
        server::{Product, Server},
        stage::{Stage, condition, named, random, repository, speaks_of_now, unique},
        sts::Sts,
    },
};

/// Between two changes by users.
const PACE: Duration = Duration::from_millis(1500);
/// How long a fault is left, for its share of the picture.
const WHILE: Duration = Duration::from_secs(16);

/// Where the picture's maker looks for what to scrape, and for when the run was; nowhere when the test is run by hand.
fn write(name: &str, content: &Value) {
    if let Some(folder) = std::env::var_os("AUTOUNSEAL_PICTURE").map(PathBuf::from) {
        let fresh = folder.join(format!("{name}.new"));
        std::fs::write(&fresh, content.to_string()).unwrap();
        std::fs::rename(fresh, folder.join(name)).unwrap();
    }
}

fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

/// The replicas that run, by the names of their pods, and every metric that one of them ever told.
#[derive(Default)]
struct Crew {
    replicas: BTreeMap<String, Running>,
    told: BTreeSet<String>,
}

impl Crew {
    fn joined_by(&mut self, pod: &str, operator: &Operator) {
        self.replicas.insert(pod.to_owned(), operator.start());
        self.is_scraped();
    }

    fn is_scraped(&self) {
        let target = |(pod, replica): (&String, &Running)| {
            json!({"targets": [replica.metrics_address().to_string()],
                "labels": {"pod": pod, "namespace": "auto-unseal-operator"}})
        };
        write("targets.json", &self.replicas.iter().map(target).collect());
    }

    /// Remembers what they tell now.
    fn look(&mut self) {
        for replica in self.replicas.values() {
            let metrics = replica.metrics();
            let lines = metrics.lines().filter(|line| !line.starts_with('#'));
            let names = lines.filter_map(|line| line.split(['{', ' ']).next());
            self.told.extend(names.map(str::to_owned));
        }
    }

    async fn leader(&self) -> String {
        within(PATIENCE, "a replica leads", async || {
            let mut replicas = self.replicas.iter();
            let leader = replicas.find(|(_, replica)| leading(replica));
            leader
                .map(|(pod, _)| pod.clone())
                .ok_or_else(|| "none does".to_owned())
        })
        .await
    }

    /// Kills the one that leads, and waits until another does.
    async fn loses_its_leader(&mut self) {
        self.look();
        let leader = self.leader().await;
        self.replicas.remove(&leader).unwrap().kill();
        self.is_scraped();
        self.leader().await;
    }
}

/// Everything around the replicas.
struct World {
    billing: Stage,
    orders: Stage,
    /// The namespace of Vault, and the KMS of all.
    vault: Set,
    oci: Oci,
    oci_key: oci::Key,
    sts: Sts,
    metadata: Metadata,
    grants: PathBuf,
    lease: String,
}

async fn namespace(name: &str) -> Stage {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    Plane::connect().await.apply(&object).await;
    let stage = Stage::at(name).await;
    stage
        .credentials("aws", "AKIAINTEGRATIONTEST0", "integration-secret")
        .await;
    stage
}

impl World {
    async fn new() -> Self {
        let kms = Kms::start();
        let scene = Scene {
            stage: namespace("vault").await,
            key: kms.key(),
            kms,
        };
        let (billing, orders) = (namespace("billing").await, namespace("orders").await);
        let mut account = billing.object("v1", "ServiceAccount", "billing");
        account["metadata"]["annotations"] =
            json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/billing"});
        billing.plane.apply(&account).await;
        let oci = Oci::start();
        let user = oci.api_key("pkcs8", None);
        for stage in [&billing, &orders] {
            let mut secret = stage.object("v1", "Secret", "oci");
            secret["stringData"] = json!({"user": user.user, "tenancy": user.tenancy, "region": user.region,
                "fingerprint": user.fingerprint, "key.pem": user.pem});
            stage.plane.apply(&secret).await;
        }
        let sts = Sts::start();
        sts.lifetime(900);
        let grants = std::env::temp_dir().join(format!("autounseal-grants-{}.json", unique()));
        std::fs::write(&grants, json!({"orders": [scene.key.arn]}).to_string()).unwrap();
        Self {
            billing,
            orders,
            vault: Set::of(scene, Product::Vault, "127.0.0.2").await,
            oci_key: oci.key(),
            oci,
            sts,
            metadata: Metadata::start(Put::StaysSilent),
            grants,
            lease: format!("unseal-{}", unique()),
        }
    }

    fn kms(&self) -> &Kms {
        &self.vault.scene.kms
    }

    fn replica(&self, pod: &str) -> Operator {
        let endpoints = [self.oci.url("crypto"), self.oci.url("management")].join(",");
        Operator::new()
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_SECRET_ACCESS_KEY")
            .without("AWS_EC2_METADATA_DISABLED")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", self.metadata.server.url())
            .env("AWS_ENDPOINT_URL_KMS", self.kms().url())
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
            .flags(["--watch-namespaces", "billing,orders,vault"])
            .flags(["--operator-identity-namespaces", "orders"])
            .flags(["--operator-identity-grants", self.grants.to_str().unwrap()])
            .flags(["--allowed-endpoints", &endpoints, "--unseal-allow-loopback"])
            .flags(["--leader-elect", "--leader-elect-namespace", "vault"])
            .flags(["--leader-elect-name", &self.lease, "--leader-elect-identity", pod])
    }

    fn aws(key: &Key, credentials: &Value) -> Value {
        json!({"name": "aws", "priority": 10, "awskms": {
            "kmsKeyID": key.arn, "region": "us-east-1", "credentials": credentials}})
    }

    fn oci(&self) -> Value {
        json!({"name": "oci", "priority": 20, "ocikms": {"keyID": self.oci_key.id,
            "cryptoEndpoint": self.oci.url("crypto"), "managementEndpoint": self.oci.url("management"),
            "credentials": by_secret("oci")}})
    }

    /// A key that the operator makes, under both clouds.
    async fn makes(&self, name: &str, after: &str, trigger: &str) {
        let spec = json!({
            "seals": [Self::aws(&self.vault.scene.key, &json!({"secretRef": {"name": "aws"}})), self.oci()],
            "keys": [{"name": "root", "generate": {"rotation": {"after": after, "trigger": trigger}}}],
            "targets": [{"name": "app", "secret": {"name": name}}],
        });
        self.orders.apply(name, &spec).await;
    }

    /// A key that somebody brings, under AWS.
    async fn brings(&self, stage: &Stage, name: &str, key: &Key, credentials: &Value, more: &[Value]) {
        let copy = self.kms().encrypt(key, &random(32), &Context::new());
        let mut spec = json!({
            "seals": [Self::aws(key, credentials)],
            "keys": [{"name": "root", "wrapped": [{"seal": "aws", "format": "kms", "inline": BASE64.encode(&copy)}]}],
            "targets": [{"name": "app", "secret": {"name": name}}],
        });
        spec["seals"].as_array_mut().unwrap().extend_from_slice(more);
        stage.apply(name, &spec).await;
    }

    async fn brings_by_account(&self, name: &str) {
        let account = json!({"serviceAccountRef": {"name": "billing"}});
        self.brings(&self.billing, name, &self.vault.scene.key, &account, &[])
            .await;
    }
}

/// Waits with the patience that a fault asks for.
async fn ready(stage: &Stage, name: &str) {
    within(Duration::from_mins(3), &format!("{name} Ready"), async || {
        let config = stage.config(name).await;
        let fits = condition(&config, "Ready")["status"] == "True" && speaks_of_now(&config);
        fits.then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
}

/// Waits until it is not Ready, and says so of what is asked for now.
async fn ill(stage: &Stage, name: &str) -> String {
    within(Duration::from_mins(2), &format!("{name} not Ready"), async || {
        let config = stage.config(name).await;
        let ready = condition(&config, "Ready");
        let fits = ready["status"] == "False" && speaks_of_now(&config);
        let reason = ready["reason"].as_str().unwrap_or_default().to_owned();
        fits.then_some(reason)
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await
}

const MADE: [(&str, &str); 3] = [("carts", "720h"), ("checkout", "2160h"), ("sessions", "24h")];
const BROUGHT: [&str; 3] = ["invoices", "ledger", "refunds"];

/// Users come, and Vault is initialised; nodes keep the metadata service from pods at first.
async fn users_come(world: &World) -> Server {
    let metadata = json!({"instanceMetadata": {}});
    world
        .brings(&world.orders, "search", &world.vault.scene.key, &metadata, &[])
        .await;
    for ((made, after), brought) in MADE.iter().zip(BROUGHT) {
        world.makes(made, after, "q1").await;
        tokio::time::sleep(PACE).await;
        world.brings_by_account(brought).await;
        tokio::time::sleep(PACE).await;
    }
    assert_eq!(ill(&world.orders, "search").await, "IMDSHopLimitTooLow");
    let server = world.vault.start(&[], &[]);
    world.vault.pod().await;
    let initialize = json!({"shamir": {"shares": 3, "threshold": 2}, "rootToken": "Wrap"});
    world
        .vault
        .scene
        .stage
        .apply(NAME, &world.vault.spec(&initialize))
        .await;
    world.vault.unsealed().await;
    for name in BROUGHT {
        ready(&world.billing, name).await;
    }
    for (name, _) in MADE {
        ready(&world.orders, name).await;
    }
    server
}

/// AWS fails while keys change, and then throttles; all of them come through. Then somebody raises the hop limit, too.
async fn aws_is_ill(world: &World) {
    for operation in ["Decrypt", "Encrypt", "DescribeKey"] {
        world.kms().always(operation, Act::ServerFault);
    }
    for name in BROUGHT {
        world.brings_by_account(name).await;
    }
    assert_eq!(ill(&world.billing, BROUGHT[0]).await, "KMSUnavailable");
    tokio::time::sleep(WHILE).await;
    world.kms().heal();
    world.kms().limit(Some(0.5));
    tokio::time::sleep(WHILE).await;
    world.kms().limit(None);
    for name in BROUGHT {
        ready(&world.billing, name).await;
    }
    world.metadata.does(Put::Answers);
    ready(&world.orders, "search").await;
}

/// Keys are rotated.
async fn keys_rotate(world: &World) {
    for (name, after) in MADE {
        world.makes(name, after, "q2").await;
        world
            .orders
            .status_where(name, &format!("version 2 of {name}"), |status| {
                named(&status["keys"], "root")["version"] == 2
            })
            .await;
        tokio::time::sleep(PACE).await;
    }
}

/// The server's container starts anew.
async fn restarted(world: &World, server: Server) -> Server {
    drop(server);
    let vault = &world.vault;
    container(&vault.scene, "vault-0", vault.at.ip(), true).await;
    tokio::time::sleep(PACE).await;
    let server = vault.start(&[], &[]);
    vault.unsealed().await;
    told(&vault.scene, NAME, "True", "Ready").await;
    server
}

/// Somebody seals the server by hand, which is respected until its container starts anew.
async fn sealed_by_hand(world: &World, server: Server) -> Server {
    let vault = &world.vault;
    let token = vault.unwrap(&["--root-token"]);
    vault
        .ask("PUT", "sys/seal", Some(token.trim()), Value::Null)
        .await;
    readiness(&vault.scene, "vault-0", false).await;
    told(&vault.scene, NAME, "False", "Sealed").await;
    tokio::time::sleep(WHILE).await;
    restarted(world, server).await
}

/// What is not well at the end: a key that somebody disabled, one cloud of two, and a ManagedKey without a SealConfig.
async fn some_stay_ill(world: &World) {
    let disabled = world.kms().key();
    world.kms().set_state(&disabled, "Disabled");
    let account = json!({"serviceAccountRef": {"name": "billing"}});
    world
        .brings(&world.billing, "archive", &disabled, &account, &[])
        .await;
    world.oci.set_state(&world.oci_key, "DISABLED");
    let key = &world.vault.scene.key;
    world
        .brings(&world.billing, "payouts", key, &account, &[world.oci()])
        .await;
    let spec = json!({"type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}},
        "sealConfigRef": {"name": "platform"}, "distributions": [{"name": "home", "awskms": {
            "region": "us-east-1", "credentials": {"serviceAccountRef": {"name": "billing"}}}}]});
    managed_keys::apply(&world.billing, "card-numbers", &spec).await;
    within(Duration::from_mins(1), "card-numbers not Ready", async || {
        let key = managed_keys::managed_key(&world.billing, "card-numbers").await;
        let told = condition(&key, "Ready")["status"] == "False";
        told.then_some(()).ok_or_else(|| format!("{:#}", key["status"]))
    })
    .await;
    assert_eq!(ill(&world.billing, "archive").await, "KeyDisabled");
    world
        .billing
        .status_where("payouts", "one cloud of two", |status| {
            status["summary"]["seals"] == "1/2"
        })
        .await;
}

/// Every metric that a query of the dashboard names.
fn asked_for() -> BTreeSet<String> {
    let text =
        std::fs::read_to_string(repository("charts/auto-unseal-operator/files/dashboard.json")).unwrap();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics = words.filter(|word| word.starts_with("autounseal_"));
    metrics.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes, for the dashboard's picture: cargo xtask picture"]
async fn whatever_the_dashboard_asks_for_is_told_when_it_happens() {
    let world = World::new().await;
    let mut crew = Crew::default();
    let from = unix_seconds();
    crew.joined_by("operator-0", &world.replica("operator-0"));
    crew.leader().await;
    crew.joined_by("operator-1", &world.replica("operator-1"));
    let server = users_come(&world).await;
    aws_is_ill(&world).await;
    keys_rotate(&world).await;
    let server = restarted(&world, server).await;
    crew.loses_its_leader().await;
    crew.joined_by("operator-2", &world.replica("operator-2"));
    let server = restarted(&world, server).await;
    let server = sealed_by_hand(&world, server).await;
    some_stay_ill(&world).await;
    // Until the last of it was scraped.
    tokio::time::sleep(PACE * 4).await;
    write("run.json", &json!({"from": from, "to": unix_seconds()}));
    crew.look();
    let missing: Vec<_> = asked_for().difference(&crew.told).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
    drop(server);
    std::fs::remove_file(&world.grants).unwrap();
}
