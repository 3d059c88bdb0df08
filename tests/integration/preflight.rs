//! What pods will meet at the KMS is proven before they start, with their identity, and not more often than it must.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    kms::{Act, Key},
    plane::within,
    scene::Scene,
    stage::{condition, named},
};

/// A SealConfig that only tells pods of a seal.
fn native(key: &Key, secret: &str) -> Value {
    json!({
        "seals": [{"name": "primary", "use": ["Native"], "awskms": {
            "kmsKeyID": key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}],
        "targets": [{"name": "server", "secret": {"name": secret, "env": {"vault": {"seals": ["primary"]}}}}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_seal_is_proven_once_and_again_only_when_it_changes() {
    let scene = Scene::new("preflight").await;
    let operator = scene.start();
    let mut spec = native(&scene.key, "one");
    scene.stage.apply("one", &spec).await;
    let config = scene.stage.ready("one").await;
    let seal = named(&config["status"]["seals"], "primary");
    assert_eq!(seal["state"], "Healthy");
    let message = seal["message"].as_str().unwrap();
    assert!(
        message.contains("encrypted and decrypted, by the identity that the seal names"),
        "{message}"
    );
    let counts = |of: &Scene| ["DescribeKey", "Encrypt", "Decrypt"].map(|operation| of.kms.count(operation));
    assert_eq!(counts(&scene), [1, 1, 1]);

    // Nothing that it asks for changes, and a restart of the operator is no news.
    spec["targets"][0]["secret"]["annotations"] = json!({"example.com/a": "b"});
    scene.stage.apply("one", &spec).await;
    scene.stage.ready("one").await;
    drop(operator);
    let _operator = scene.start();
    spec["targets"][0]["secret"]["annotations"] = json!({"example.com/a": "c"});
    scene.stage.apply("one", &spec).await;
    scene.stage.ready("one").await;
    assert_eq!(counts(&scene), [1, 1, 1]);

    let other = scene.kms.key();
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!(other.arn);
    scene.stage.apply("one", &spec).await;
    scene.stage.ready("one").await;
    assert_eq!(counts(&scene), [2, 2, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_that_a_server_lacks_is_told_before_it_starts() {
    let scene = Scene::new("preflight-denied").await;
    let _operator = scene.start();
    for (operation, names) in [
        ("DescribeKey", "kms:DescribeKey"),
        ("Encrypt", "kms:Encrypt"),
        ("Decrypt", "kms:Decrypt"),
    ] {
        let name = operation.to_lowercase();
        scene
            .kms
            .always(operation, Act::error(400, "AccessDeniedException"));
        scene.stage.apply(&name, &native(&scene.kms.key(), &name)).await;
        let message = scene.stage.not_ready(&name, "AccessDenied").await;
        assert!(
            message.contains(names) && message.contains("primary"),
            "{message}"
        );
        let config = scene.stage.config(&name).await;
        let healthy = condition(&config, "SealsHealthy");
        assert_eq!(
            (&healthy["status"], &healthy["reason"]),
            (&json!("False"), &json!("AccessDenied"))
        );
        assert_eq!(named(&config["status"]["seals"], "primary")["state"], "Unhealthy");
        // The configuration is delivered all the same: pods may have more rights, and wait for it.
        assert!(scene.stage.secret(&name).await.is_some());
        scene.kms.heal();
    }
    within(
        Duration::from_mins(1),
        "the last one is looked at again",
        async || {
            let config = scene.stage.config("decrypt").await;
            let state = &named(&config["status"]["seals"], "primary")["state"];
            (state == "Healthy")
                .then_some(())
                .ok_or_else(|| format!("{:#}", config["status"]))
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_opens_something_else_than_was_wrapped_is_told() {
    let scene = Scene::new("preflight-bytes").await;
    let _operator = scene.start();
    scene.kms.always("Decrypt", Act::OtherBytes(vec![7; 32]));
    scene.stage.apply("one", &native(&scene.key, "one")).await;
    scene.not_ready("one", &["CiphertextInvalid"]).await;
}
