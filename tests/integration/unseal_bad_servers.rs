//! Servers that misbehave are told for what they are, get no share that they should not have, and delay nobody.

use std::net::{SocketAddr, TcpListener};

use serde_json::{Value, json};

use crate::{
    secrecy::{said, search},
    support::{
        fleet::{HOST, pod, spec, told, trust},
        needle::Needle,
        operator::free_port,
        pki::Pki,
        plane::{eventually, within},
        raft::PATIENCE,
        scene::Scene,
        server::{Disk, Product},
        stage::{named, random},
        tls::{Says, TlsServer},
    },
};

const SEALED: &str =
    r#"{"type":"shamir","initialized":true,"sealed":true,"t":2,"n":2,"progress":0,"nonce":""}"#;

fn shares_in(server: &TlsServer) -> usize {
    let requests = server.received();
    let shares = requests.iter().flatten().filter(|request| {
        request.line.starts_with("PUT") && request.body.windows(5).any(|w| w == b"\"key\"")
    });
    shares.count()
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_silent_and_endless_servers_are_given_up_and_the_one_beside_them_is_unsealed() {
    let scene = Scene::new("slow").await;
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let disk = Disk::new(Product::Vault);
    let (shares, _) = disk.start(&[], &[]).shamir(3, 2);
    let shares: Vec<Vec<u8>> = shares.into_iter().map(String::into_bytes).collect();
    let port = free_port().port();
    let at = |host: u8| SocketAddr::new([127, 0, 0, host].into(), port);
    // One byte at a time, for ever; nothing at all; more than anybody wants to hear; and not even a handshake.
    let drips = TlsServer::at(at(5), &pki, HOST, |_| Says::Drips);
    let hangs = TlsServer::at(at(6), &pki, HOST, |_| Says::Hangs);
    let floods = TlsServer::at(at(7), &pki, HOST, |_| {
        Says::Answer(200, "", format!("{SEALED}{}", " ".repeat(8 << 20)))
    });
    let silent = TcpListener::bind(at(8)).unwrap();
    let held = std::thread::spawn(move || {
        // They stay open for as long as the test runs.
        let all: Vec<_> = silent.incoming().flatten().take(64).collect();
        drop(all);
    });
    let (certificate, key) = pki.files(HOST);
    let good = disk.listen(at(9), Some((&certificate, &key)), &[], &[]);
    for host in 5..=9 {
        pod(&scene, &format!("server-{host}"), "mixed", at(host).ip()).await;
    }
    let _running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    let mut config = spec(&scene, &shares, "mixed", port);
    scene.stage.apply("mixed", &config).await;
    within(PATIENCE, "the good one is unsealed", async || {
        let status = scene.stage.config("mixed").await["status"]["unseal"].clone();
        let known = named(&status["pods"], "server-9");
        known["lastUnsealedTime"]
            .is_string()
            .then_some(())
            .ok_or_else(|| status.to_string())
    })
    .await;
    drop(good);
    // Each alone, for its own sentence.
    for (host, reason, words) in [
        (5, "TargetUnreachable", "10 seconds"),
        (6, "TargetUnreachable", "10 seconds"),
        (7, "TargetNotVerified", "larger than 64 KiB"),
        (8, "TargetUnreachable", "10 seconds"),
    ] {
        let name = format!("alone-{host}");
        pod(&scene, &name, &name, at(host).ip()).await;
        config["unseal"]["podSelector"]["matchLabels"]["app"] = json!(name);
        scene.stage.apply(&name, &config).await;
        eventually(&format!("{name}: {words}"), async || {
            let message = told(&scene, &name, "False", reason).await;
            message.contains(words).then_some(()).ok_or(message)
        })
        .await;
    }
    for server in [&drips, &hangs, &floods] {
        assert!(!server.received().is_empty());
        assert_eq!(shares_in(server), 0);
    }
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_typing_shares_in_is_left_alone() {
    let scene = Scene::new("typing").await;
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let counter = std::sync::atomic::AtomicUsize::new(0);
    // Each time that it is asked, somebody has begun anew.
    let server = TlsServer::start(&pki, HOST, move |_| {
        let number = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let mut status: Value = serde_json::from_str(SEALED).unwrap();
        (status["progress"], status["nonce"]) = (json!(1), json!(format!("attempt-{number}")));
        Says::Answer(200, "", status.to_string())
    });
    let _running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    pod(&scene, "vault", "vault", server.address().ip()).await;
    let spec = spec(
        &scene,
        &[random(33), random(33)],
        "vault",
        server.address().port(),
    );
    scene.stage.apply("vault", &spec).await;
    within(PATIENCE, "it is asked some times", async || {
        let asked = server.received().iter().flatten().count();
        (asked >= 4).then_some(()).ok_or_else(|| asked.to_string())
    })
    .await;
    let message = told(&scene, "vault", "False", "Sealed").await;
    assert!(message.contains("somebody else"), "{message}");
    for request in server.received().iter().flatten() {
        assert!(request.line.starts_with("GET "), "{}", request.line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_echoes_shares_in_its_errors_spreads_none() {
    let scene = Scene::new("echo").await;
    let stage = &scene.stage;
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let shares = [random(33), random(33)];
    let needles: Vec<Needle> = shares.iter().map(|share| Needle::new("a share", share)).collect();
    let echoing = |status: u16| {
        move |request: &crate::support::http::Request| {
            if request.line.starts_with("GET") {
                return Says::Answer(200, "", SEALED.into());
            }
            let body = String::from_utf8_lossy(&request.body).into_owned();
            Says::Answer(
                status,
                "",
                json!({"errors": [body.clone()], "nonce": body}).to_string(),
            )
        }
    };
    let running = scene
        .operator()
        .env("RUST_LOG", "trace")
        .flags(["--unseal-allow-loopback", "--log-level=trace"])
        .without_flags(|flag| flag == "--log-level" || flag == "debug")
        .start();
    let servers = [
        (400, "UnsealRejected"),
        (500, "TargetUnreachable"),
        (200, "TargetNotVerified"),
    ];
    for (status, reason) in servers {
        let server = TlsServer::start(&pki, HOST, echoing(status));
        let name = format!("echo-{status}");
        pod(&scene, &name, &name, server.address().ip()).await;
        stage
            .apply(&name, &spec(&scene, &shares, &name, server.address().port()))
            .await;
        told(&scene, &name, "False", reason).await;
        assert!(shares_in(&server) > 0);
    }
    let metrics = running.metrics();
    let output = running.stop();
    search(&needles, &said(stage, &output, &metrics).await);
}
