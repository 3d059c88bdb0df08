//! Real servers go from Shamir to a native seal and back, unsealed by the operator on every step of the way.

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    fleet::{HOST, container, plain, pod, spec, told, trust},
    moto::Moto,
    pki::Pki,
    plane::{eventually, within},
    raft::{Cluster, MEMBERS, PATIENCE},
    scene::Scene,
    server::{Disk, Product, Server},
};

/// One server at one address, its pod, and the SealConfig that unseals it.
struct Journey<'s> {
    scene: &'s Scene,
    product: Product,
    disk: Disk,
    server: Option<Server>,
    address: std::net::SocketAddr,
    shares: Vec<Vec<u8>>,
}

impl Journey<'_> {
    fn name(&self) -> &'static str {
        self.product.word()
    }

    /// Restarts the server with that seal in its configuration, as a new container of its pod.
    async fn restart(&mut self, seal: Option<&str>) -> String {
        self.server = None;
        self.disk
            .mounted(&[("seal.hcl", seal.unwrap_or_default().as_bytes())]);
        let files: &[&str] = if seal.is_some() { &["seal.hcl"] } else { &[] };
        let mut server = self.disk.listen(self.address, None, files, &[]);
        server.status(|status| status["initialized"] == true);
        self.server = Some(server);
        container(self.scene, self.name(), self.address.ip(), true).await
    }

    /// Waits until the operator has seen that container unsealed.
    async fn seen(&self, id: &str) {
        eventually("the container was seen unsealed", async || {
            let config = self.scene.stage.config(self.name()).await;
            let pods = &config["status"]["unseal"]["pods"];
            (pods[0]["containerID"] == id)
                .then_some(())
                .ok_or_else(|| pods.to_string())
        })
        .await;
        told(self.scene, self.name(), "True", "Ready").await;
    }

    fn status(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        self.server.as_mut().unwrap().status(fits)
    }

    /// The shares as keys of that purpose.
    async fn apply(&self, purpose: &str, change: Value) {
        let mut spec = plain(spec(self.scene, &[], self.name(), self.address.port()));
        let key = |(number, share): (usize, &Vec<u8>)| {
            let copy =
                json!({"seal": "aws", "format": "kms", "inline": BASE64.encode(&self.scene.wrap(share))});
            json!({"name": format!("{purpose}-{number}"), "purpose": purpose, "wrapped": [copy]})
        };
        spec["keys"] = self.shares.iter().enumerate().map(key).collect();
        let unseal = spec["unseal"].as_object_mut().unwrap();
        unseal.insert("product".into(), json!(self.name()));
        unseal.extend(change.as_object().unwrap().clone());
        self.scene.stage.apply(self.name(), &spec).await;
    }

    /// Waits until condition Unsealed is False for that reason, and its message speaks of that.
    async fn says(&self, reason: &str, words: &str) {
        eventually(&format!("{words:?} is said"), async || {
            let message = told(self.scene, self.name(), "False", reason).await;
            message.contains(words).then_some(()).ok_or(message)
        })
        .await;
    }
}

/// A server's own configuration of a seal.
fn seal(key: &str, more: &str) -> String {
    let endpoint = std::env::var("AWS_ENDPOINT_URL_KMS").unwrap();
    format!(
        "seal \"awskms\" {{\n  region = \"us-east-1\"\n  kms_key_id = {key:?}\n  endpoint = {endpoint:?}\n  \
         access_key = \"AKIAINTEGRATIONTEST0\"\n  secret_key = \"integration-secret\"\n  {more}\n}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_migrated_to_a_native_seal_and_back() {
    let scene = Scene::new("migrate").await;
    let stage = &scene.stage;
    let _running = scene
        .operator()
        .flags([
            "--unseal-allow-loopback",
            "--insecure-unseal-namespaces",
            &stage.namespace,
        ])
        .start();
    let key = Moto::of_cluster("us-east-1").key().await;
    let (native, leaving) = (seal(&key, ""), seal(&key, "disabled = \"true\""));
    for product in [Product::Vault, Product::OpenBao] {
        let disk = Disk::new(product);
        let mut server = disk.start(&[], &[]);
        let (shares, token) = server.shamir(3, 2);
        let address = server.address();
        let mut journey = Journey {
            scene: &scene,
            product,
            disk,
            server: Some(server),
            address,
            shares: shares.into_iter().map(String::into_bytes).collect(),
        };
        let name = journey.name();
        pod(&scene, name, name, address.ip()).await;

        // Nothing of it happens before somebody has said so.
        journey.restart(Some(&native)).await;
        journey.apply("unseal-share", json!({})).await;
        journey.says("Migrating", "unseal.migrate: true").await;
        let status = journey.status(|status| status["migration"] == true);
        assert_eq!(
            (&status["sealed"], &status["progress"]),
            (&json!(true), &json!(0)),
            "{status}"
        );
        journey.apply("unseal-share", json!({"migrate": true})).await;
        let status = journey.status(|status| status["sealed"] == false && status["migration"] == false);
        assert_eq!(status["recovery_seal"], true, "{status}");
        told(&scene, name, "True", "Ready").await;

        // From now on it unseals itself, and takes its shares as recovery shares when it was sealed by hand.
        let id = journey.restart(Some(&native)).await;
        journey.status(|status| status["sealed"] == false);
        journey.seen(&id).await;
        let sealed = journey.server.as_ref().unwrap().seal(&token);
        assert!(sealed.is_null(), "{sealed}");
        journey.status(|status| status["sealed"] == true);
        journey.apply("unseal-share", json!({})).await;
        journey.says("Sealed", "policy: OnStart respects").await;
        journey.apply("unseal-share", json!({"policy": "Always"})).await;
        journey.says("Sealed", "purpose recovery-share").await;
        journey.apply("recovery-share", json!({"policy": "Always"})).await;
        journey.status(|status| status["sealed"] == false);
        told(&scene, name, "True", "Ready").await;

        // And back.
        journey.restart(Some(&leaving)).await;
        journey.says("Migrating", "unseal.migrate: true").await;
        journey.apply("recovery-share", json!({"migrate": true})).await;
        let status = journey.status(|status| status["sealed"] == false && status["migration"] == false);
        assert_eq!(status["recovery_seal"], false, "{status}");
        // The recovery shares are its unseal shares now, under either name while the spec speaks of a migration.
        journey.restart(None).await;
        journey.status(|status| status["sealed"] == false && status["recovery_seal"] == false);
        journey.apply("unseal-share", json!({})).await;
        let id = journey.restart(None).await;
        journey.status(|status| status["sealed"] == false);
        journey.seen(&id).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raft_cluster_is_migrated_one_server_after_the_other() {
    let scene = Scene::new("migrate-raft").await;
    let _running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let mut cluster = Cluster::new(&scene, Product::Vault, pki, 3, 2).await;
    let mut spec = spec(&scene, &cluster.shares, "vault", cluster.port());
    spec["unseal"]["migrate"] = json!(true);
    scene.stage.apply("vault", &spec).await;
    cluster.write("before").await;
    told(&scene, "vault", "True", "Ready").await;
    let active = cluster.whole().await;
    cluster.seal = Some(seal(&Moto::of_cluster("us-east-1").key().await, ""));
    for member in (0..MEMBERS).filter(|member| *member != active) {
        cluster.kill(member);
        cluster.restart(&scene, member).await;
        cluster.whole().await;
    }
    // The cluster has not gone over while the one that is active has not.
    let message = told(&scene, "vault", "True", "Migrating").await;
    assert!(message.contains("step the active server down"), "{message}");
    // Whoever is active next migrates it.
    cluster.kill(active);
    cluster.restart(&scene, active).await;
    cluster.whole().await;
    within(PATIENCE, "no server is between two seals", async || {
        for client in &cluster.clients {
            let status = client.status().await;
            if status["migration"] != false || status["recovery_seal"] != true || status["sealed"] != false {
                return Err(status.to_string());
            }
        }
        Ok(())
    })
    .await;
    told(&scene, "vault", "True", "Ready").await;
    let active = cluster.whole().await;
    assert_eq!(cluster.read(active).await.as_deref(), Some("before"));
}
