//! Who must not get shares gets none (security rule S10).

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::{
    support::{
        http::{Reply, Server},
        needle::Needle,
        operator::Running,
        pki::Pki,
        plane::eventually,
        scene::Scene,
        stage::{named, random, unique},
        tls::{Says, TlsServer},
    },
    unseal::{HOST, pod, spec, told, trust},
};

const SEALED: &str =
    r#"{"type":"shamir","initialized":true,"sealed":true,"t":2,"n":2,"progress":0,"nonce":""}"#;

struct Attack {
    scene: Scene,
    pki: Pki,
    shares: Vec<Vec<u8>>,
    running: Running,
}

impl Attack {
    async fn new(name: &str) -> Self {
        let scene = Scene::new(name).await;
        let pki = Pki::new(&[HOST, "other.example.svc"]);
        trust(&scene, &pki).await;
        let running = scene.operator().flags(["--unseal-allow-loopback"]).start();
        let shares = vec![random(33), random(33)];
        Self {
            scene,
            pki,
            shares,
            running,
        }
    }

    /// A SealConfig and its one pod, both of that name, at a port of loopback.
    async fn aim(&self, name: &str, port: u16) -> Value {
        let spec = spec(&self.scene, &self.shares, name, port);
        pod(&self.scene, name, name, "127.0.0.1".parse().unwrap()).await;
        self.scene.stage.apply(name, &spec).await;
        spec
    }

    /// No share, and no request that would hold one.
    fn untouched(&self, server: &TlsServer) {
        for request in server.received().iter().flatten() {
            assert!(
                request.line.starts_with("GET /v1/sys/seal-status "),
                "{}",
                request.line
            );
            self.holds_no_share(&request.body);
        }
    }

    fn holds_no_share(&self, bytes: &[u8]) {
        for share in &self.shares {
            assert!(Needle::new("a share", share).found_in(bytes).is_none());
        }
    }
}

fn says_sealed() -> Says {
    Says::Answer(200, "", SEALED.into())
}

/// Answers whatever comes as an http listener answers a TLS handshake; where it is, and all that came.
fn plain_http() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let all = received.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut buffer = [0; 16 * 1024];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                all.lock().unwrap().extend_from_slice(&buffer[..read]);
                if stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").is_err() {
                    break;
                }
            }
        }
    });
    (address, received)
}

#[tokio::test(flavor = "multi_thread")]
async fn impostors_get_no_share() {
    let attack = Attack::new("impostors").await;
    let scene = &attack.scene;

    // A certificate of the same CA, for another name.
    let other = TlsServer::start(&attack.pki, "other.example.svc", |_| says_sealed());
    attack.aim("other-name", other.address().port()).await;
    // A certificate of another CA.
    let foreign = TlsServer::start(&Pki::new(&[HOST]), HOST, |_| says_sealed());
    attack.aim("other-ca", foreign.address().port()).await;
    // Plain HTTP on the https port.
    let (plain, plain_received) = plain_http();
    attack.aim("plain", plain.port()).await;
    // A page, and a redirect to somebody else.
    let page = TlsServer::start(&attack.pki, HOST, |_| {
        Says::Answer(200, "", "<html></html>".into())
    });
    attack.aim("page", page.address().port()).await;
    let redirect = TlsServer::start(&attack.pki, HOST, |_| {
        Says::Answer(
            307,
            "location: https://127.0.0.1:1/v1/sys/seal-status\r\n",
            SEALED.into(),
        )
    });
    attack.aim("redirect", redirect.address().port()).await;
    // http in a namespace where it is not allowed.
    let http = Server::start(|_| Reply::new(200, "application/json", SEALED));
    let mut spec = attack.aim("http", 1).await;
    spec["unseal"]["scheme"] = json!("http");
    spec["unseal"]["port"] = json!(http.address().port());
    spec["unseal"].as_object_mut().unwrap().remove("tls");
    scene.stage.apply("http", &spec).await;
    eventually("http is refused", async || {
        let message = told(scene, "http", "False", "TargetNotVerified").await;
        let says = message.contains("--insecure-unseal-namespaces");
        says.then_some(()).ok_or(message)
    })
    .await;
    assert_eq!(http.connections(), 0);

    for name in ["other-name", "other-ca", "plain", "page", "redirect"] {
        told(scene, name, "False", "TargetNotVerified").await;
    }
    let received = plain_received.lock().unwrap().clone();
    assert!(!received.is_empty());
    attack.holds_no_share(&received);
    for server in [&other, &foreign, &page, &redirect] {
        attack.untouched(server);
    }
    for server in [&other, &foreign] {
        assert!(
            server.received().iter().all(Vec::is_empty),
            "it was asked before it was proven"
        );
    }
    assert!(!page.received().iter().flatten().collect::<Vec<_>>().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_went_or_restarted_while_it_was_asked_gets_no_share() {
    let attack = Attack::new("swapped").await;
    let scene = &attack.scene;
    let runtime = tokio::runtime::Handle::current();
    let (plane, namespace) = (scene.stage.plane.clone(), scene.stage.namespace.clone());
    // The pod is deleted between the list and the first share, and another one gets its address.
    let deleting = {
        let (runtime, plane, namespace) = (runtime.clone(), plane.clone(), namespace.clone());
        TlsServer::start(&attack.pki, HOST, move |_| {
            runtime.block_on(plane.delete("Pod", &namespace, "deleted"));
            says_sealed()
        })
    };
    // Its container is another one, each time that it is asked.
    let restarts = Arc::new(AtomicUsize::new(0));
    let restarting = {
        let (runtime, plane, namespace, restarts) = (runtime, plane, namespace, restarts.clone());
        TlsServer::start(&attack.pki, HOST, move |_| {
            let number = restarts.fetch_add(1, Ordering::SeqCst);
            let status = json!({"containerStatuses": [{
                "name": "server", "ready": true, "started": true, "restartCount": number, "image": "server",
                "imageID": "server", "containerID": format!("containerd://{}", unique()),
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }]});
            runtime.block_on(plane.patch_status("Pod", &namespace, "restarted", &status));
            says_sealed()
        })
    };
    attack.aim("deleted", deleting.address().port()).await;
    attack.aim("restarted", restarting.address().port()).await;
    eventually("the deleted pod is forgotten", async || {
        let config = scene.stage.config("deleted").await;
        let pods = &config["status"]["unseal"]["pods"];
        let forgotten = !deleting.received().is_empty() && named(pods, "deleted").is_null();
        forgotten
            .then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    eventually("the restarted pod was found out", async || {
        let found = attack
            .running
            .metric("autounseal_unseal_total", &["outcome=\"TargetNotVerified\""]);
        (found >= 1.0)
            .then_some(())
            .ok_or_else(|| attack.running.metrics())
    })
    .await;
    assert!(restarts.load(Ordering::SeqCst) >= 1);
    attack.untouched(&deleting);
    attack.untouched(&restarting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_after_a_share_gets_no_second_one_and_delays_nobody() {
    let attack = Attack::new("hanging").await;
    let scene = &attack.scene;
    let hanging = TlsServer::start(&attack.pki, HOST, |request| {
        if request.line.starts_with("GET") {
            says_sealed()
        } else {
            Says::Hangs
        }
    });
    attack.aim("hanging", hanging.address().port()).await;
    eventually("the first share", async || {
        let got = hanging.received().iter().any(|requests| requests.len() == 2);
        got.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    // Meanwhile keys are delivered.
    scene.deliver("app", &random(32)).await;
    let message = told(scene, "hanging", "False", "TargetUnreachable").await;
    assert!(message.contains("10 seconds"), "{message}");
    for requests in hanging.received() {
        let shares = requests
            .iter()
            .filter(|request| request.line.starts_with("PUT"))
            .count();
        assert!(shares <= 1, "{shares} shares over one connection");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_two_seal_configs_is_touched_by_neither() {
    let attack = Attack::new("contested").await;
    let scene = &attack.scene;
    let server = TlsServer::start(&attack.pki, HOST, |_| says_sealed());
    let spec = spec(scene, &attack.shares, "shared", server.address().port());
    scene.stage.apply("one", &spec).await;
    scene.stage.apply("two", &spec).await;
    for name in ["one", "two"] {
        told(scene, name, "Unknown", "Pending").await;
    }
    pod(scene, "shared", "shared", "127.0.0.1".parse().unwrap()).await;
    for (name, other) in [("one", "two"), ("two", "one")] {
        let message = told(scene, name, "False", "PodContested").await;
        assert!(message.contains(other), "{message}");
    }
    assert!(server.received().is_empty());
    // Freed, it is looked at at once.
    scene
        .stage
        .plane
        .delete("SealConfig", &scene.stage.namespace, "two")
        .await;
    eventually("the pod is asked", async || {
        let asked = !server.received().is_empty();
        asked.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loopback_addresses_are_no_pods_and_the_clusters_ca_no_servers() {
    let scene = Scene::new("no-pods").await;
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let shares = [random(33), random(33)];
    let server = TlsServer::start(&pki, HOST, |_| says_sealed());
    let spec = spec(&scene, &shares, "vault", server.address().port());
    pod(&scene, "vault-0", "vault", "127.0.0.1".parse().unwrap()).await;
    scene.stage.apply("vault", &spec).await;
    let running = scene.start();
    let message = told(&scene, "vault", "False", "TargetNotVerified").await;
    assert!(message.contains("127.0.0.1"), "{message}");
    drop(running);
    // A copy of the cluster's own CA under another name.
    let config = kube::Config::infer().await.unwrap();
    let ca = config.root_cert.unwrap().remove(0);
    let mut map = scene.stage.object("v1", "ConfigMap", "vault-ca");
    let lines = data_encoding::BASE64.encode(&ca);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n");
    map["data"] = json!({"ca.crt": pem});
    scene.stage.plane.apply(&map).await;
    let _running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    eventually("the cluster's CA is refused", async || {
        let message = told(&scene, "vault", "False", "TargetNotVerified").await;
        message.contains("cluster's own CA").then_some(()).ok_or(message)
    })
    .await;
    assert!(server.received().is_empty());
}
