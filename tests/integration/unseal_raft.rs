//! Raft clusters come back by themselves, whatever dies.

use serde_json::json;

use crate::support::{
    fleet::{HOST, spec, told, trust},
    pki::Pki,
    raft::{Cluster, MEMBERS},
    scene::Scene,
    server::Product,
};

#[tokio::test(flavor = "multi_thread")]
async fn raft_clusters_are_joined_unsealed_and_come_back_whole() {
    let scene = Scene::new("raft").await;
    let stage = &scene.stage;
    let _running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    for product in [Product::Vault, Product::OpenBao] {
        let word = product.word();
        let pki = Pki::new(&[HOST]);
        trust(&scene, &pki).await;
        let mut cluster = Cluster::new(&scene, product, pki, 3, 2).await;
        let mut spec = spec(&scene, &cluster.shares, word, cluster.port());
        spec["unseal"]["product"] = json!(word);
        stage.apply(word, &spec).await;
        // Two of them learn only from the first one, once it is unsealed, that they are initialised.
        cluster.whole().await;
        told(&scene, word, "True", "Ready").await;
        cluster.write("before").await;

        // The whole cluster is lost, and comes back without a human.
        for member in 0..MEMBERS {
            cluster.kill(member);
        }
        for member in 0..MEMBERS {
            cluster.restart(&scene, member).await;
        }
        let active = cluster.whole().await;
        assert_eq!(cluster.read(active).await.as_deref(), Some("before"));
        told(&scene, word, "True", "Ready").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_active_server_is_killed_again_and_again_and_comes_back_each_time() {
    let scene = Scene::new("kills").await;
    let _running = scene.operator().flags(["--unseal-allow-loopback"]).start();
    let pki = Pki::new(&[HOST]);
    trust(&scene, &pki).await;
    let mut cluster = Cluster::new(&scene, Product::Vault, pki, 3, 2).await;
    let spec = spec(&scene, &cluster.shares, "vault", cluster.port());
    scene.stage.apply("vault", &spec).await;
    let toll = cluster.kill_the_active(&scene, "value", |kills| kills < 4).await;
    assert_eq!((toll.unsealed.len(), toll.whole.len()), (4, 4), "{toll:?}");
    assert!(toll.reads > 0, "{toll:?}");
    told(&scene, "vault", "True", "Ready").await;
}
