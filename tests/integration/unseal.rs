//! The real Vault is unsealed with shares that the user brought.

use std::net::SocketAddr;

use data_encoding::{BASE64, HEXLOWER};
use serde_json::json;

use crate::{
    secrecy::{said, search},
    support::{
        fleet::{Client, plain, readiness},
        needle::Needle,
        operator::free_port,
        pki::Pki,
        plane::eventually,
        scene::Scene,
        server::{Disk, Product, Server},
        stage::{condition, named, random},
    },
};

pub use crate::support::fleet::{HOST, container, pod, spec, told, trust};

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_are_unsealed_at_every_start_and_an_emergency_seal_is_respected() {
    let scene = Scene::new("unseal").await;
    let stage = &scene.stage;
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let (first, token, shares) = {
        let disk = Disk::new(Product::Vault);
        let (shares, token) = disk.start(&[], &[]).shamir(5, 3);
        (disk, token, shares)
    };
    let disks = [first.copy(), first.copy(), first];
    let port = free_port().port();
    let addresses =
        ["127.0.0.2", "127.0.0.3", "127.0.0.4"].map(|ip| SocketAddr::new(ip.parse().unwrap(), port));
    let (certificate, key) = pki.files(HOST);
    let start =
        |disk: &Disk, at: SocketAddr| -> Server { disk.listen(at, Some((&certificate, &key)), &[], &[]) };
    let mut servers: Vec<Server> = disks
        .iter()
        .zip(addresses)
        .map(|(disk, at)| start(disk, at))
        .collect();
    let clients = addresses.map(|at| Client::new(&pki, at));

    // As bytes, as the text that the server prints, and as the other text that it takes.
    let raw: Vec<Vec<u8>> = shares
        .iter()
        .map(|hex| HEXLOWER.decode(hex.as_bytes()).unwrap())
        .collect();
    let mut brought = raw.clone();
    brought[1] = shares[1].clone().into_bytes();
    brought[2] = BASE64.encode(&raw[2]).into_bytes();
    let needles: Vec<Needle> = raw
        .iter()
        .map(|share| Needle::new("a share", share))
        .chain([Needle::new("a share's text", shares[1].as_bytes())])
        .collect();
    for (number, at) in addresses.iter().enumerate() {
        pod(&scene, &format!("vault-{number}"), "vault", at.ip()).await;
    }
    let operator = scene
        .operator()
        .env("RUST_LOG", "trace")
        .flags(["--unseal-allow-loopback", "--log-level=trace"])
        .without_flags(|flag| flag == "--log-level" || flag == "debug");
    let running = operator.start();
    let mut config = spec(&scene, &brought, "vault", port);
    stage.apply("vault", &config).await;
    for client in &clients {
        client.becomes(false).await;
    }
    told(&scene, "vault", "True", "Ready").await;
    stage.ready("vault").await;
    let status = stage.config("vault").await["status"]["unseal"].clone();
    assert_eq!(
        (&status["initialized"], &status["sealed"]),
        (&json!(true), &json!(0))
    );
    assert_eq!(status["pods"].as_array().unwrap().len(), 3);

    // Each restart, and nothing else, makes another container.
    for round in 0..2 {
        drop(servers.remove(0));
        servers.insert(0, start(&disks[0], addresses[0]));
        let id = container(&scene, "vault-0", addresses[0].ip(), true).await;
        clients[0].becomes(false).await;
        eventually(&format!("round {round}: the container is told"), async || {
            let pods = stage.config("vault").await["status"]["unseal"]["pods"].clone();
            let known = named(&pods, "vault-0");
            (known["containerID"] == id.as_str() && known["lastUnsealedTime"].is_string())
                .then_some(())
                .ok_or_else(|| pods.to_string())
        })
        .await;
    }

    clients[1].seal(&token).await;
    readiness(&scene, "vault-1", false).await;
    let message = told(&scene, "vault", "False", "Sealed").await;
    assert!(message.starts_with("pod vault-1: "), "{message}");
    let metrics = running.metrics();
    assert!(metrics.contains("autounseal_pods_sealed{"), "{metrics}");
    assert!(
        running.metric("autounseal_unseal_total", &["outcome=\"ok\""]) >= 5.0,
        "{metrics}"
    );
    let written = running.stop();
    // Another operator knows it from the status.
    let running = operator.start();
    eventually("the server was looked at", async || {
        let output = running.output();
        let looked = output
            .lines()
            .any(|line| line.contains("looked at a server") && line.contains("vault-1"));
        looked.then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    assert_eq!(
        clients[1].sealed().await,
        Some(true),
        "OnStart undid a seal by hand"
    );

    config["unseal"]["policy"] = json!("Always");
    stage.apply("vault", &config).await;
    clients[1].becomes(false).await;
    told(&scene, "vault", "True", "Ready").await;
    let metrics = running.metrics();
    let output = written + &running.stop();
    search(&needles, &said(stage, &output, &metrics).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_server_sealed_is_told_and_mended_by_the_spec() {
    let scene = Scene::new("unseal-faults").await;
    let stage = &scene.stage;
    // Over http, which the flag allows in this namespace.
    let running = scene
        .operator()
        .flags([
            "--unseal-allow-loopback",
            "--insecure-unseal-namespaces",
            &stage.namespace,
        ])
        .start();
    let disk = Disk::new(Product::Vault);
    let mut server = disk.start(&[], &[]);
    let address = server.address();
    server.status(|status| status["initialized"] == false);
    pod(&scene, "vault-0", "vault", address.ip()).await;
    let with = |shares: &[Vec<u8>]| plain(spec(&scene, shares, "vault", address.port()));
    let wrong: Vec<Vec<u8>> = (0..2).map(|_| random(33)).collect();
    stage.apply("vault", &with(&wrong)).await;
    told(&scene, "vault", "False", "NotInitialized").await;

    let (shares, _) = server.shamir(3, 2);
    let shares: Vec<Vec<u8>> = shares.into_iter().map(String::into_bytes).collect();
    stage.apply("vault", &with(&shares[..1])).await;
    let message = told(&scene, "vault", "False", "UnsealKeysMissing").await;
    assert!(message.contains("2 shares, and 1 key"), "{message}");
    assert_eq!(stage.not_ready("vault", "UnsealKeysMissing").await, message);

    stage.apply("vault", &with(&wrong)).await;
    let message = told(&scene, "vault", "False", "UnsealRejected").await;
    assert!(message.contains("share-0, share-1"), "{message}");
    assert!(
        !wrong
            .iter()
            .any(|share| Needle::new("", share).found_in(message.as_bytes()).is_some())
    );
    let status = server.status(|status| status["sealed"] == true);
    assert_eq!(status["progress"], 0, "{status}");

    stage.apply("vault", &with(&shares)).await;
    told(&scene, "vault", "True", "Ready").await;
    server.unsealed();
    assert!(running.metric("autounseal_unseal_total", &["UnsealRejected"]) >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_as_many_shares_are_opened_as_the_server_needs_and_none_while_they_are_at_hand() {
    let scene = Scene::new("unseal-thrift").await;
    let stage = &scene.stage;
    let disk = Disk::new(Product::Vault);
    let mut server = disk.start(&[], &[]);
    let (shares, _) = server.shamir(5, 2);
    let shares: Vec<Vec<u8>> = shares.into_iter().map(String::into_bytes).collect();
    let address = server.address();
    let _running = scene
        .operator()
        .flags([
            "--unseal-allow-loopback",
            "--share-cache-ttl=1h",
            "--insecure-unseal-namespaces",
        ])
        .flags([stage.namespace.clone()])
        .start();
    let spec = plain(spec(&scene, &shares, "vault", address.port()));
    stage.apply("vault", &spec).await;
    eventually("every share was checked", async || {
        let config = stage.config("vault").await;
        let open = condition(&config, "KeysUnwrapped")["status"] == "True";
        open.then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    let decrypts = || scene.kms.count("Decrypt");
    assert_eq!(decrypts(), 5, "each copy is opened once when it comes");
    pod(&scene, "vault-0", "vault", address.ip()).await;
    told(&scene, "vault", "True", "Ready").await;
    assert_eq!(decrypts(), 7, "two shares are needed");
    drop(server);
    let mut server = disk.listen(address, None, &[], &[]);
    server.status(|status| status["sealed"].is_boolean());
    container(&scene, "vault-0", address.ip(), true).await;
    server.unsealed();
    assert_eq!(decrypts(), 7, "the shares were at hand");
}
