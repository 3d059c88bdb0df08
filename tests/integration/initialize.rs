//! Real servers are initialised once; what they answer is kept wrapped and used from there (issue 8, examples 05 and 06).

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    secrecy::{said, search},
    support::{
        drill::header,
        moto::Moto,
        needle::Needle,
        oci_caller::Caller,
        operator::{Operator, free_port},
        pki::Pki,
        plane::{eventually, within},
        scene::Scene,
        server::{Disk, Product, Server},
        stage::{condition, repository, unique},
    },
    unseal::{HOST, container, pod, told, trust},
};

/// One server of a test, its pod and everything that it needs.
pub struct Set {
    pub scene: Scene,
    pub pki: Arc<Pki>,
    pub disk: Disk,
    pub host: String,
    pub at: SocketAddr,
    pub caller: Caller,
}

/// The name of its SealConfig.
pub const NAME: &str = "vault";

/// Its store.
pub const STORE: &str = "vault.sealconfig.wrapped";

impl Set {
    pub async fn new(name: &str, product: Product, ip: &str) -> Self {
        Self::of(Scene::new(name).await, product, ip).await
    }

    /// One in the namespace of a scene.
    pub async fn of(scene: Scene, product: Product, ip: &str) -> Self {
        let pki = Arc::new(Pki::new(&[HOST]));
        trust(&scene, &pki).await;
        let caller = Caller::new()
            .env("AWS_ENDPOINT_URL_KMS", scene.kms.url())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIACALLER0000000000")
            .env("AWS_SECRET_ACCESS_KEY", "caller-secret")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("KUBECONFIG", std::env::var("KUBECONFIG").unwrap());
        let ip: IpAddr = ip.parse().unwrap();
        Self {
            scene,
            pki,
            disk: Disk::new(product),
            host: HOST.to_owned(),
            at: SocketAddr::new(ip, free_port().port()),
            caller,
        }
    }

    pub fn operator(&self) -> Operator {
        self.scene
            .operator()
            .env("RUST_LOG", "trace")
            .flags(["--unseal-allow-loopback", "--log-level=trace"])
            .without_flags(|flag| flag == "--log-level" || flag == "debug")
    }

    pub fn start(&self, files: &[&str], variables: &[(&str, &str)]) -> Server {
        let (certificate, key) = self.pki.files(&self.host);
        self.disk
            .listen(self.at, Some((&certificate, &key)), files, variables)
    }

    /// A seal that wraps.
    pub fn seal(&self) -> Value {
        json!({"name": "aws", "awskms": {
            "kmsKeyID": self.scene.key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}})
    }

    /// A SealConfig that initialises.
    pub fn spec(&self, initialize: &Value) -> Value {
        json!({
            "seals": [self.seal()],
            "unseal": {
                "product": self.disk.product.word(), "podSelector": {"matchLabels": {"app": "vault"}},
                "port": self.at.port(), "initialize": initialize,
                "tls": {"ca": {"configMapKeyRef": {"name": "vault-ca", "key": "ca.crt"}}, "serverName": HOST},
            },
        })
    }

    pub async fn pod(&self) {
        pod(&self.scene, "vault-0", "vault", self.at.ip()).await;
    }

    /// Asks the server itself.
    pub async fn ask(&self, method: &str, path: &str, token: Option<&str>, body: Value) -> (u16, Value) {
        let ca = reqwest::Certificate::from_pem(&self.pki.ca()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([ca])
            .no_proxy()
            .resolve(&self.host, self.at)
            .build()
            .unwrap();
        let url = format!("https://{}:{}/v1/{path}", self.host, self.at.port());
        let mut request = client.request(method.parse().unwrap(), url);
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        if let Some(token) = token {
            request = request.header("x-vault-token", token);
        }
        match request.send().await {
            Err(_) => (0, Value::Null),
            Ok(answer) => {
                let status = answer.status().as_u16();
                let body = answer.bytes().await.unwrap_or_default();
                (status, serde_json::from_slice(&body).unwrap_or_default())
            }
        }
    }

    pub async fn becomes(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        // Nodes of a raft cluster take their time to join.
        within(Duration::from_mins(2), what, async || {
            let (_, state) = self.ask("GET", "sys/seal-status", None, Value::Null).await;
            if fits(&state) {
                Ok(state)
            } else {
                Err(state.to_string())
            }
        })
        .await
    }

    pub async fn unsealed(&self) -> Value {
        self.becomes("unsealed", |state| {
            state["initialized"] == true && state["sealed"] == false
        })
        .await
    }

    /// A new root token, by these shares of its unseal or recovery key.
    async fn generate_root(&self, keys: &[String]) -> String {
        let (_, attempt) = self
            .ask("PUT", "sys/generate-root/attempt", None, json!({}))
            .await;
        let (nonce, otp) = (&attempt["nonce"], attempt["otp"].as_str().unwrap());
        let mut made = Value::Null;
        for key in keys {
            let body = json!({"key": key, "nonce": nonce});
            made = self.ask("PUT", "sys/generate-root/update", None, body).await.1;
        }
        assert_eq!(made["complete"], true, "{made}");
        let encoded = made["encoded_token"].as_str().unwrap().trim_end_matches('=');
        let encoded = data_encoding::BASE64_NOPAD.decode(encoded.as_bytes()).unwrap();
        let token = encoded.iter().zip(otp.bytes()).map(|(a, b)| a ^ b).collect();
        String::from_utf8(token).unwrap()
    }

    /// What the command line takes out of the store.
    pub fn unwrap(&self, what: &[&str]) -> String {
        let namespace = &self.scene.stage.namespace;
        let arguments = [&["unwrap", "-n", namespace, NAME], what].concat();
        String::from_utf8(self.caller.run(&arguments, b"").ok()).unwrap()
    }

    pub async fn store(&self) -> std::collections::BTreeMap<String, Vec<u8>> {
        self.scene.stage.secret(STORE).await.unwrap_or_default()
    }

    pub async fn items(&self) -> Vec<String> {
        self.store().await.into_keys().collect()
    }

    /// Waits until the store holds no root token.
    pub async fn token_is_gone(&self) {
        within(Duration::from_mins(2), "the root token is gone", async || {
            let items = self.items().await;
            let status = self.scene.stage.config(NAME).await["status"]["unseal"].clone();
            let gone = !items.is_empty()
                && !items.iter().any(|item| item.contains("root-token"))
                && status["rootTokenHeldSince"].is_null();
            gone.then_some(()).ok_or_else(|| format!("{items:?} {status}"))
        })
        .await;
    }
}

pub fn needles(secrets: &[String]) -> Vec<Needle> {
    secrets
        .iter()
        .map(|secret| Needle::new("what a server answered", secret.as_bytes()))
        .collect()
}

/// A SealConfig of the examples, by its file.
fn example(file: &str) -> Value {
    let text = std::fs::read_to_string(repository("examples").join(file)).unwrap();
    let mut object: Value = serde_yaml::from_str(&text).unwrap();
    object["spec"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn example_05_a_server_is_initialised_once_and_unsealed_at_every_start() {
    let set = Set::new("init-shamir", Product::Vault, "127.0.0.2").await;
    let stage = &set.scene.stage;
    // The example, but for the way to the KMS and the places of this test.
    let mut spec = example("05-vault-shamir-aws.yaml");
    let key = set.scene.kms.key_in("us-west-2", "123456789012");
    set.scene.kms.alias("alias/vault-unseal", &key);
    spec["seals"][0]["awskms"]["credentials"] = json!({"secretRef": {"name": "aws"}});
    spec["unseal"]["port"] = json!(set.at.port());
    spec["unseal"]["tls"]["serverName"] = json!(HOST);
    stage.secret_of("vault-tls", &[("ca.crt", &set.pki.ca())]).await;
    set.pod().await;
    let labels = json!({"metadata": {"labels": {"app.kubernetes.io/name": "vault", "component": "server"}}});
    stage
        .plane
        .patch("Pod", &stage.namespace, "vault-0", &labels)
        .await;
    let mut server = set.start(&[], &[]);
    set.becomes("not initialised", |state| state["initialized"] == false)
        .await;

    let operator = set.operator();
    let running = operator.start();
    stage.apply(NAME, &spec).await;
    set.unsealed().await;
    told(&set.scene, NAME, "True", "Ready").await;
    set.token_is_gone().await;
    stage.ready(NAME).await;
    let config = stage.config(NAME).await;
    let status = &config["status"];
    assert_eq!(status["unseal"]["initialized"], true);
    assert_eq!(status["keys"].as_array().unwrap().len(), 5, "{status:#}");
    assert_eq!(status["summary"]["keys"], "0", "answers are not keys of the spec");
    assert!(status["unseal"]["clusterID"].is_string(), "{status:#}");
    let mut items = set.items().await;
    items.retain(|item| item != "header");
    let shares: Vec<String> = (1..=5).map(|number| format!("share.{number}.aws")).collect();
    assert_eq!(items, shares);
    eventually("the cluster is written down", async || {
        let header = header(&set.store().await);
        let init = &header["keys"]["share.1"]["section"]["versions"]["1"]["init"];
        (init["clusterID"] == status["unseal"]["clusterID"])
            .then_some(())
            .ok_or_else(|| header.to_string())
    })
    .await;

    let mut written = String::new();
    let mut metrics = running.metrics();
    let mut running = Some(running);
    for round in 0..2 {
        drop(server);
        // The second time by another operator, which knows only what is stored.
        if round == 1 {
            written += &running.take().unwrap().stop();
            running = Some(operator.start());
        }
        server = set.start(&[], &[]);
        container(&set.scene, "vault-0", set.at.ip(), true).await;
        set.unsealed().await;
    }
    let running = running.unwrap();
    metrics += &running.metrics();
    assert!(
        !metrics.contains("root_token_held_since_timestamp_seconds{"),
        "{metrics}"
    );
    let secrets: Vec<String> = (1..=5)
        .map(|number| set.unwrap(&["--share", &number.to_string()]))
        .collect();
    assert!(
        secrets.iter().all(|share| share.len() == 44),
        "the text that the server prints"
    );
    // The server knows of no token but the one that is made by its shares now.
    let token = set.generate_root(&secrets[..3]).await;
    let (status, known) = set
        .ask("LIST", "auth/token/accessors", Some(&token), Value::Null)
        .await;
    assert_eq!(status, 200, "{known}");
    assert_eq!(known["data"]["keys"].as_array().unwrap().len(), 1, "{known}");
    written += &running.stop();
    assert!(written.contains("a marker is stored"), "{written}");
    search(&needles(&secrets), &said(stage, &written, &metrics).await);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn example_06_recovery_keys_and_the_root_token_are_for_the_admin_to_fetch() {
    let mut set = Set::new("init-native", Product::Vault, "127.0.0.3").await;
    let namespace = set.scene.stage.namespace.clone();
    set.host = format!("vault-0.vault-internal.{namespace}.svc");
    set.pki = Pki::new(&[&set.host]).into();
    trust(&set.scene, &set.pki).await;
    // The server's own seal.
    let moto = Moto::of_cluster("us-east-1");
    let alias = format!("alias/init-{}", unique());
    moto.alias(&alias, &moto.key().await).await;
    let endpoint = std::env::var("AWS_ENDPOINT_URL_KMS").unwrap();
    let stanza = format!(
        "seal \"awskms\" {{\n  region = \"us-east-1\"\n  kms_key_id = {alias:?}\n  endpoint = {endpoint:?}\n  \
         access_key = \"AKIAINTEGRATIONTEST0\"\n  secret_key = \"integration-secret\"\n}}\n"
    );
    set.disk.mounted(&[("seal.hcl", stanza.as_bytes())]);
    let mut spec = example("06-vault-native-awskms.yaml");
    spec["seals"][0]["awskms"]["credentials"] = json!({"secretRef": {"name": "aws"}});
    let mut wraps = set.seal();
    wraps["name"] = json!("recovery");
    spec["seals"][1] = wraps;
    spec["unseal"]["port"] = json!(set.at.port());
    set.pod().await;
    let stage = &set.scene.stage;
    let labels = json!({"metadata": {"labels": {"app.kubernetes.io/name": "vault"}}});
    stage.plane.patch("Pod", &namespace, "vault-0", &labels).await;
    let mut server = set.start(&["seal.hcl"], &[]);
    let running = set.operator().start();
    stage.apply(NAME, &spec).await;
    set.unsealed().await;
    told(&set.scene, NAME, "True", "Ready").await;
    eventually("the token is told", async || {
        let status = stage.config(NAME).await["status"]["unseal"].clone();
        let metrics = running.metrics();
        let told = status["rootTokenHeldSince"].is_string()
            && metrics.contains("autounseal_root_token_held_since_timestamp_seconds{");
        told.then_some(()).ok_or_else(|| status.to_string())
    })
    .await;
    let token = set.unwrap(&["--root-token"]);
    let (status, who) = set
        .ask("GET", "auth/token/lookup-self", Some(&token), Value::Null)
        .await;
    assert_eq!(
        (status, &who["data"]["policies"]),
        (200, &json!(["root"])),
        "{who}"
    );

    // A new root token by three of the five recovery keys.
    let keys = ["5", "1", "3"].map(|number| set.unwrap(&["--recovery", number]));
    let second = set.generate_root(&keys).await;
    let (status, _) = set
        .ask("GET", "auth/token/lookup-self", Some(&second), Value::Null)
        .await;
    assert_eq!(status, 200);
    let secrets = [std::slice::from_ref(&token), &keys[..]].concat();

    // It unseals itself at every start, and gets nothing.
    drop(server);
    server = set.start(&["seal.hcl"], &[]);
    container(&set.scene, "vault-0", set.at.ip(), true).await;
    set.unsealed().await;

    // Revoked after all.
    spec["unseal"]["initialize"]["rootToken"] = json!("Revoke");
    stage.apply(NAME, &spec).await;
    set.token_is_gone().await;
    let (status, _) = set
        .ask("GET", "auth/token/lookup-self", Some(&token), Value::Null)
        .await;
    assert_eq!(status, 403, "the token still works");
    let metrics = running.metrics();
    search(&needles(&secrets), &said(stage, &running.stop(), &metrics).await);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_is_initialised_and_its_root_token_revoked() {
    let set = Set::new("init-openbao", Product::OpenBao, "127.0.0.4").await;
    let stage = &set.scene.stage;
    set.pod().await;
    let server = set.start(&[], &[]);
    let running = set.operator().start();
    let mut spec = set.spec(&json!({"shamir": {"shares": 3, "threshold": 2}, "rootToken": "Wrap"}));
    stage.apply(NAME, &spec).await;
    set.unsealed().await;
    told(&set.scene, NAME, "True", "Ready").await;
    let token = set.unwrap(&["--root-token"]);
    let (status, _) = set
        .ask("GET", "auth/token/lookup-self", Some(&token), Value::Null)
        .await;
    assert_eq!(status, 200);
    spec["unseal"]["initialize"]["rootToken"] = json!("Revoke");
    stage.apply(NAME, &spec).await;
    set.token_is_gone().await;
    let (status, _) = set
        .ask("GET", "auth/token/lookup-self", Some(&token), Value::Null)
        .await;
    assert_eq!(status, 403, "the token still works");
    // The break-glass way opens a share where there is no cluster.
    let store = stage.whole_secret(STORE).await;
    let file = set
        .caller
        .file("seal.yaml", stage.seal_config(NAME, &spec).to_string());
    let kept = set.caller.file("store.yaml", store.to_string());
    let share = set
        .caller
        .run(&["unwrap", "-f", &file, "--store", &kept, "--share", "2"], b"")
        .ok();
    assert_eq!(share, set.unwrap(&["--share", "2"]).into_bytes());
    let config = stage.config(NAME).await;
    assert_eq!(condition(&config, "KeysUnwrapped")["status"], "True");
    let metrics = running.metrics();
    let secrets = [token, String::from_utf8(share).unwrap()];
    search(&needles(&secrets), &said(stage, &running.stop(), &metrics).await);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_with_a_static_seal_answers_recovery_keys() {
    let set = Set::new("init-static", Product::OpenBao, "127.0.0.8").await;
    let key = set.disk.mount().join("current.key").display().to_string();
    let stanza =
        format!("seal \"static\" {{\n  current_key_id = \"k1\"\n  current_key = \"file://{key}\"\n}}\n");
    set.disk
        .mounted(&[("seal.hcl", stanza.as_bytes()), ("current.key", &[7; 32])]);
    set.pod().await;
    let server = set.start(&["seal.hcl"], &[]);
    let _running = set.operator().start();
    let spec = set.spec(&json!({"recovery": {"shares": 2, "threshold": 2}}));
    set.scene.stage.apply(NAME, &spec).await;
    set.unsealed().await;
    told(&set.scene, NAME, "True", "Ready").await;
    set.token_is_gone().await;
    let mut items = set.items().await;
    items.retain(|item| item != "header");
    assert_eq!(items, ["recovery.1.aws", "recovery.2.aws"]);
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_raft_cluster_is_initialised_and_the_others_join_it() {
    let mut set = Set::new("init-raft", Product::Vault, "127.0.0.5").await;
    let port = set.at.port();
    let at = ["127.0.0.5", "127.0.0.6", "127.0.0.7"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
    let cluster = at.map(|at| SocketAddr::new(at.ip(), port + 1));
    let ca = set.caller.file("ca.crt", set.pki.ca());
    let disks = at.map(|_| Disk::new(Product::Vault));
    let (certificate, key) = set.pki.files(HOST);
    for (number, disk) in disks.iter().enumerate() {
        let join = at.map(|leader| {
            format!(
                "  retry_join {{\n    leader_api_addr = \"https://{leader}\"\n    leader_ca_cert_file = {ca:?}\n    \
                 leader_tls_servername = {HOST:?}\n  }}\n"
            )
        });
        let join = join.concat();
        // Over the storage of the usual configuration.
        let config = format!(
            "storage \"raft\" {{\n  path = {:?}\n  node_id = \"vault-{number}\"\n{join}}}\napi_addr = \"https://{}\"\n\
             cluster_addr = \"https://{}\"\n",
            disk.mount().display().to_string(),
            at[number],
            cluster[number],
        );
        disk.mounted(&[("raft.hcl", config.as_bytes())]);
    }
    let start =
        |number: usize| disks[number].listen(at[number], Some((&certificate, &key)), &["raft.hcl"], &[]);
    let mut servers: Vec<Server> = (0..3).map(start).collect();
    for (number, at) in at.iter().enumerate() {
        pod(&set.scene, &format!("vault-{number}"), "vault", at.ip()).await;
    }
    let running = set.operator().start();
    let spec = set.spec(&json!({"shamir": {"shares": 3, "threshold": 2}}));
    set.scene.stage.apply(NAME, &spec).await;
    let mut clusters = std::collections::BTreeSet::new();
    for server in at {
        set.at = server;
        clusters.insert(set.unsealed().await["cluster_id"].to_string());
    }
    assert_eq!(clusters.len(), 1, "one cluster: {clusters:?}");
    set.token_is_gone().await;
    // All of it is lost and comes back without anybody.
    servers.clear();
    servers.extend((0..3).map(start));
    for (number, at) in at.iter().enumerate() {
        container(&set.scene, &format!("vault-{number}"), at.ip(), true).await;
    }
    for server in at {
        set.at = server;
        set.unsealed().await;
    }
    let asked = running
        .output()
        .matches("the server is asked to initialise itself")
        .count();
    assert_eq!(asked, 1);
}
