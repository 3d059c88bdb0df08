//! Tokens and certificates end, are revoked and rotate; the operator goes on, and nobody reads of it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    oci_identities::{by_account, cluster, in_cluster},
    support::{
        oci_scene::{Delivered, OciScene},
        plane::within,
        stage::{condition, random},
    },
};

/// Seconds that a token lives here: longer than a slow machine takes for its use, shorter than anybody's patience.
const LIFE: u64 = 8;

fn by_instance() -> Value {
    json!({"instancePrincipal": {}})
}

async fn delivered(scene: &OciScene, name: &str, credentials: &Value) -> Delivered {
    let bytes = random(32);
    let spec = scene.spec_as(credentials, &scene.blob_copy(&bytes), name);
    scene.deliver(name, spec, &bytes).await
}

/// The conditions Ready and SealsHealthy, with the time at which they became so.
async fn verdict(scene: &OciScene, name: &str) -> (Value, Value) {
    let config = scene.stage.config(name).await;
    let of = |kind| {
        let mut condition = condition(&config, kind);
        condition.as_object_mut().map(|c| c.remove("observedGeneration"));
        condition
    };
    (of("Ready"), of("SealsHealthy"))
}

/// Uses the vault over several lives of a token; counts the requests for tokens at `service`.
async fn outlives_its_tokens(scene: &OciScene, service: &str, credentials: &Value) {
    let start = Instant::now();
    let first = delivered(scene, "one", credentials).await;
    let mut uses = 1;
    while start.elapsed() < Duration::from_secs(3 * LIFE) {
        scene.heals(&first).await;
        uses += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    scene.repaired("one", &first.bytes).await;
    let (tokens, decrypts) = (scene.oci.count(service, ""), scene.decrypts());
    let seconds = start.elapsed().as_secs();
    println!("{service}: {tokens} tokens of {LIFE} s, {decrypts} decrypts in {seconds} s");
    assert!(tokens >= 3, "a token of {LIFE} s does not last for {seconds} s");
    // They are renewed at half of their life, so that their end is never met.
    let most = usize::try_from(2 * seconds / LIFE + 2).unwrap();
    assert!(tokens <= most, "{tokens} tokens in {seconds} s");
    assert!(tokens < uses, "not one for each delivery");
    assert_eq!(refused(scene), Vec::<Value>::new());
}

/// Answers of 401 or other errors, wherever.
fn refused(scene: &OciScene) -> Vec<Value> {
    let log = scene.oci.log().into_iter();
    log.filter(|entry| entry["status"] != 200).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_instances_token_is_renewed_once_a_life_and_none_is_used_after_its_end() {
    let scene = OciScene::granted("oci-renew").await;
    scene.oci.token_life(LIFE);
    let _operator = scene.start();
    outlives_its_tokens(&scene, "federation", &by_instance()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workloads_token_is_renewed_once_a_life_and_none_is_used_after_its_end() {
    let scene = cluster("oci-renew-oke").await;
    scene.oci.token_life(LIFE);
    let _operator = in_cluster(&scene).start();
    outlives_its_tokens(&scene, "oke", &by_account()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_repaired_after_the_token_of_its_delivery_has_ended() {
    let scene = OciScene::granted("oci-ended").await;
    scene.oci.token_life(6);
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_instance()).await;
    // Nothing runs meanwhile: the token ends unseen.
    tokio::time::sleep(Duration::from_secs(7)).await;
    scene.repaired("one", &one.bytes).await;
    assert_eq!(scene.oci.count("federation", ""), 2);
    assert_eq!(refused(&scene), Vec::<Value>::new());
}

/// Everything revoked: one refusal, one new token, and no word of it.
async fn heals_a_revoked_token(scene: &OciScene, service: &str, credentials: &Value) {
    let one = delivered(scene, "one", credentials).await;
    let before = verdict(scene, "one").await;
    let tokens = scene.oci.count(service, "");
    scene.oci.revoke_tokens();
    scene.repaired("one", &one.bytes).await;
    scene.heals(&one).await;
    assert_eq!(scene.oci.count(service, ""), tokens + 1, "one new token");
    let refused = refused(scene);
    assert_eq!(refused.len(), 1, "{refused:#?}");
    assert_eq!(refused[0]["reason"], "the token was revoked");
    assert_eq!(verdict(scene, "one").await, before, "nobody reads of it");
    let warnings: Vec<_> = scene.stage.events("one").await;
    assert!(
        !warnings.iter().any(|event| event.starts_with("Warning")),
        "{warnings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_of_the_instance_is_replaced_by_one_new_one_without_a_word() {
    let scene = OciScene::granted("oci-revoked").await;
    let _operator = scene.start();
    heals_a_revoked_token(&scene, "federation", &by_instance()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_of_a_workload_is_replaced_by_one_new_one_without_a_word() {
    let scene = cluster("oci-revoked-oke").await;
    let _operator = in_cluster(&scene).start();
    heals_a_revoked_token(&scene, "oke", &by_account()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_instance_certificate_is_picked_up_without_a_restart() {
    let scene = OciScene::granted("oci-cert").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_instance()).await;
    let before = verdict(&scene, "one").await;
    for round in 1..=2 {
        // The old certificate is worth nothing any more, and neither is the token that it got.
        scene.oci.rotate_instance(&json!({"revoke_old": true}));
        scene.oci.revoke_tokens();
        scene.heals(&one).await;
        assert_eq!(scene.oci.count("federation", ""), 1 + round);
    }
    let log = scene.oci.log();
    let mut exchanges = log.iter().filter(|entry| entry["service"] == "federation");
    assert!(
        exchanges.all(|entry| entry["status"] == 200),
        "the new certificate was sent at once"
    );
    assert_eq!(verdict(&scene, "one").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_resource_principal_are_read_anew_when_the_platform_renews_them() {
    let scene = OciScene::granted("oci-rp-renew").await;
    let folder = std::env::temp_dir().join(format!("autounseal-rp-{}", crate::support::stage::unique()));
    std::fs::create_dir(&folder).unwrap();
    let write = |life: i64| {
        let given = scene.oci.resource_principal(Some(life), None);
        for (name, text) in [("pem", &given.private_pem), ("rpst", &given.rpst)] {
            std::fs::write(folder.join(name), text).unwrap();
        }
    };
    // Long enough for a start on a busy machine.
    let end = Instant::now() + Duration::from_secs(20);
    write(20);
    let path = |name: &str| folder.join(name).display().to_string();
    let _operator = scene
        .operator()
        .env("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")
        .env("OCI_RESOURCE_PRINCIPAL_RPST", path("rpst"))
        .env("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM", path("pem"))
        .start();
    let one = delivered(&scene, "one", &json!({"resourcePrincipal": {}})).await;
    tokio::time::sleep_until(end.into()).await;
    // The platform is late: that is told, and the last good Secret stays.
    let message = scene.fails(&one, "CredentialsExpired").await;
    assert!(message.contains("OCI_RESOURCE_PRINCIPAL_RPST"), "{message}");
    write(3600);
    within(Duration::from_secs(90), "Ready again by itself", async || {
        let (ready, _) = verdict(&scene, "one").await;
        (ready["status"] == "True")
            .then_some(())
            .ok_or_else(|| ready.to_string())
    })
    .await;
    scene.untouched(&one).await;
    std::fs::remove_dir_all(folder).unwrap();
}
