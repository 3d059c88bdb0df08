//! What leads to an unsealing, what stops it (security rule S12), and what people do meanwhile.

use std::{net::SocketAddr, time::Duration};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    fleet::{container, plain, pod, spec, told},
    operator::{Running, free_port},
    plane::{eventually, within},
    raft::PATIENCE,
    scene::Scene,
    server::{Disk, Product, Scratch, Server},
    stage::{condition, random},
};

/// One real server over http, its pod and its SealConfig, all of one name.
struct One {
    scene: Scene,
    running: Running,
    disk: Disk,
    server: Option<Server>,
    address: SocketAddr,
    token: String,
    shares: Vec<Vec<u8>>,
}

const NAME: &str = "vault";

impl One {
    /// Initialised and sealed; there is neither a pod nor a SealConfig yet.
    async fn new(name: &str, flags: &[&str]) -> Self {
        let scene = Scene::new(name).await;
        let running = scene
            .operator()
            .flags([
                "--unseal-allow-loopback",
                "--insecure-unseal-namespaces",
                &scene.stage.namespace,
            ])
            .flags(flags.iter().copied())
            .start();
        let disk = Disk::new(Product::Vault);
        let mut server = disk.start(&[], &[]);
        let (shares, token) = server.shamir(3, 2);
        Self {
            address: server.address(),
            scene,
            running,
            disk,
            server: Some(server),
            token,
            shares: shares.into_iter().map(String::into_bytes).collect(),
        }
    }

    async fn apply(&self, change: impl Fn(&mut Value)) {
        let mut spec = plain(spec(&self.scene, &self.shares, NAME, self.address.port()));
        change(&mut spec);
        self.scene.stage.apply(NAME, &spec).await;
    }

    async fn pod(&self) {
        pod(&self.scene, NAME, NAME, self.address.ip()).await;
    }

    async fn restart(&mut self) {
        self.server = None;
        let mut server = self.disk.listen(self.address, None, &[], &[]);
        server.status(|status| status["initialized"] == true);
        self.server = Some(server);
        container(&self.scene, NAME, self.address.ip(), true).await;
    }

    fn server(&mut self) -> &mut Server {
        self.server.as_mut().unwrap()
    }

    fn still_sealed(&mut self) {
        let status = self.server().status(|status| status["sealed"].is_boolean());
        assert_eq!(
            (&status["sealed"], &status["progress"]),
            (&json!(true), &json!(0)),
            "{status}"
        );
    }

    fn key_is(&self, state: &'static str) {
        self.scene.kms.set_state(&self.scene.key, state);
    }

    /// Unsealed, its shares opened a moment ago.
    async fn warm(&mut self) {
        self.apply(|_| ()).await;
        self.pod().await;
        told(&self.scene, NAME, "True", "Ready").await;
        self.server().unsealed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_spec_wipes_the_shares_at_hand() {
    let mut one = One::new("wipe-spec", &["--share-cache-ttl=1h"]).await;
    one.warm().await;
    one.key_is("Disabled");
    one.restart().await;
    one.server().unsealed();
    told(&one.scene, NAME, "True", "Ready").await;
    one.apply(|spec| spec["unseal"]["policy"] = json!("Always")).await;
    one.restart().await;
    told(&one.scene, NAME, "False", "KeyDisabled").await;
    one.still_sealed();
}

#[tokio::test(flavor = "multi_thread")]
async fn suspend_stops_unsealing_and_wipes_the_shares_at_hand() {
    let mut one = One::new("wipe-suspend", &["--share-cache-ttl=1h"]).await;
    one.warm().await;
    one.apply(|spec| spec["suspend"] = json!(true)).await;
    eventually("it is suspended", async || {
        let config = one.scene.stage.config(NAME).await;
        let ready = condition(&config, "Ready");
        (ready["reason"] == "Suspended")
            .then_some(())
            .ok_or_else(|| ready.to_string())
    })
    .await;
    let looks = |running: &Running| running.output().matches("looked at a server").count();
    let before = looks(&one.running);
    one.restart().await;
    // Whatever the restart leads to would come before this.
    one.scene.deliver("app", &random(32)).await;
    assert_eq!(looks(&one.running), before);
    one.still_sealed();
    one.key_is("Disabled");
    one.apply(|_| ()).await;
    told(&one.scene, NAME, "False", "KeyDisabled").await;
    one.still_sealed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_key_stops_unsealing_when_the_shares_at_hand_have_run_out() {
    for ttl in ["0s", "1s"] {
        let mut one = One::new("wipe-time", &["--share-cache-ttl", ttl]).await;
        one.warm().await;
        one.key_is("Disabled");
        if ttl != "0s" {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        one.restart().await;
        told(&one.scene, NAME, "False", "KeyDisabled").await;
        one.still_sealed();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_that_somebody_left_behind_are_thrown_away() {
    let mut one = One::new("stale", &[]).await;
    // Of another server, so that the progress would spoil the set.
    let left = BASE64.encode(&random(33));
    let status = one.server().unseal(&left);
    assert_eq!(status["progress"], 1, "{status}");
    one.apply(|_| ()).await;
    one.pod().await;
    one.server().unsealed();
    told(&one.scene, NAME, "True", "Ready").await;
    assert!(one.running.metric("autounseal_unseal_total", &["outcome=\"ok\""]) >= 1.0);
    assert!(!one.running.metrics().contains("outcome=\"UnsealRejected\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_event_tells_is_swept_up() {
    let mut one = One::new("sweep", &[]).await;
    one.apply(|spec| spec["unseal"]["policy"] = json!("Always")).await;
    one.pod().await;
    told(&one.scene, NAME, "True", "Ready").await;
    let token = one.token.clone();
    let answer = one.server().seal(&token);
    assert!(answer.is_null(), "{answer}");
    // The server's own wait is two minutes, the sweep's at most 75 seconds.
    one.server().unsealed();
    let output = one.running.output();
    let last = output
        .lines()
        .rfind(|line| line.contains("looked at a server"))
        .unwrap();
    assert!(last.contains("\"why\":\"Time\""), "{last}");
}

/// Files as the kubelet mounts them into a pod, and a launcher that puts a program where it finds them.
struct Mounted {
    files: Vec<Scratch>,
}

impl Mounted {
    fn new(token: &str, ca: &[u8]) -> Self {
        let pem = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            BASE64.encode(ca)
        );
        Self {
            files: vec![Scratch::new(token), Scratch::new(pem)],
        }
    }

    /// In a mount namespace of its own; needs root, as the tests of the hop limit do.
    fn launcher(&self) -> Vec<String> {
        let script = "set -e; folder=/run/secrets/kubernetes.io/serviceaccount; mount -t tmpfs tmpfs /run; mkdir -p $folder; \
                      cp \"$1\" $folder/token; cp \"$2\" $folder/ca.crt; shift 2; exec \"$@\"";
        let path = |file: &Scratch| file.path().display().to_string();
        let words = ["unshare", "--mount", "sh", "-c", script, "sh"].map(ToOwned::to_owned);
        words.into_iter().chain(self.files.iter().map(path)).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_label_that_a_server_sets_itself_leads_to_a_look_each_time() {
    let scene = Scene::new("label").await;
    let stage = &scene.stage;
    let namespace = stage.namespace.clone();
    let running = scene
        .operator()
        .flags([
            "--unseal-allow-loopback",
            "--insecure-unseal-namespaces",
            &namespace,
        ])
        .start();
    // What Vault's documentation of `service_registration "kubernetes"` asks for.
    let account = stage.object("v1", "ServiceAccount", NAME);
    stage.plane.create(&account).await;
    let mut role = stage.object("rbac.authorization.k8s.io/v1", "Role", NAME);
    role["rules"] = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "update", "patch"]}]);
    stage.plane.create(&role).await;
    let mut binding = stage.object("rbac.authorization.k8s.io/v1", "RoleBinding", NAME);
    binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME});
    binding["subjects"] = json!([{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]);
    stage.plane.create(&binding).await;
    let token = stage.plane.token(&namespace, NAME).await;
    let cluster = kube::Config::infer().await.unwrap();
    let mounted = Mounted::new(&token, &cluster.root_cert.unwrap()[0]);
    let host = cluster.cluster_url.host().unwrap().to_owned();
    let port = cluster.cluster_url.port_u16().unwrap().to_string();

    let address = free_port();
    pod(&scene, NAME, NAME, address.ip()).await;
    // Only a server that could have standbys registers itself.
    let disk = Disk::raft(Product::Vault, "node", address, "");
    let registration = format!(
        "service_registration \"kubernetes\" {{\n  namespace = {namespace:?}\n  pod_name = {NAME:?}\n}}\n"
    );
    disk.mounted(&[("registration.hcl", registration.as_bytes())]);
    let variables = [
        ("KUBERNETES_SERVICE_HOST", host.as_str()),
        ("KUBERNETES_SERVICE_PORT", port.as_str()),
    ];
    let mut server = disk.listen_by(&mounted.launcher(), address, &["registration.hcl"], &variables);
    let (shares, root) = server.shamir(1, 1);
    let shares: Vec<Vec<u8>> = shares.into_iter().map(String::into_bytes).collect();
    let mut spec = plain(spec(&scene, &shares, NAME, address.port()));
    spec["unseal"]["policy"] = json!("Always");
    stage.apply(NAME, &spec).await;
    let labelled = async |value: &str| {
        within(PATIENCE, &format!("vault-sealed: {value}"), async || {
            let pod = stage.plane.get("Pod", &namespace, NAME).await.unwrap();
            let labels = &pod["metadata"]["labels"];
            (labels["vault-sealed"] == value)
                .then_some(())
                .ok_or_else(|| labels.to_string())
        })
        .await;
    };
    let looks = || {
        let output = running.output();
        let of_label =
            |line: &&str| line.contains("looked at a server") && line.contains("\"why\":\"Label\"");
        output.lines().filter(of_label).count()
    };
    // Twice, for the label must count again after it was false. On a starved machine the operator may see two changes as
    // none; then the sweep unseals the server, and it is sealed once more.
    let (mut by_label, mut tries) = (0, 0);
    while by_label < 2 {
        tries += 1;
        assert!(
            tries <= 6,
            "the label led to {by_label} looks: {}",
            running.output()
        );
        server.unsealed();
        labelled("false").await;
        let before = looks();
        // Unsealed it is a standby for a moment, which cannot be sealed.
        within(PATIENCE, "it is sealed by hand", async || {
            let answer = server.seal(&root);
            answer.is_null().then_some(()).ok_or_else(|| answer.to_string())
        })
        .await;
        server.unsealed();
        // It is written down when the look is over.
        for _ in 0..100 {
            if looks() > before {
                by_label += 1;
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
