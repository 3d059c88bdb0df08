//! The vault is called when inputs change, and not otherwise (`api.md`, meaning 4); and next to a seal on AWS.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    kms::{Context, Key as AwsKey, Kms},
    oci_scene::{OciScene, by_secret},
    plane::eventually,
    stage::{named, random},
};

fn key_requests(scene: &OciScene) -> (usize, usize) {
    (scene.decrypts(), scene.oci.count("management", "/keys/"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_costs_one_decrypt_and_many_seal_configs_share_one_get_key() {
    let scene = OciScene::granted("oci-thrift").await;
    let operator = scene.start();
    let instance = json!({"instancePrincipal": {}});
    for index in 0..8 {
        let (name, bytes) = (format!("c{index}"), random(32));
        let copy = if index % 2 == 0 {
            scene.kms_copy(&bytes)
        } else {
            scene.blob_copy(&bytes)
        };
        scene
            .stage
            .apply(&name, &scene.spec_as(&instance, &copy, &name))
            .await;
    }
    for index in 0..8 {
        scene.stage.ready(&format!("c{index}")).await;
    }
    assert_eq!(key_requests(&scene), (8, 1));
    assert_eq!(scene.oci.count("federation", ""), 1, "one token for all of them");
    assert_eq!(scene.oci.count("crypto", "/encrypt"), 0);
    let counted = operator.metric(
        "autounseal_kms_requests_total",
        &["provider=\"ocikms\"", "operation=\"Decrypt\""],
    );
    assert_eq!(counted.to_string(), "8", "the metric tells the truth");

    // Another identity asks for itself.
    let bytes = random(32);
    scene.deliver("key", scene.spec("key", &bytes), &bytes).await;
    assert_eq!(key_requests(&scene), (9, 2));

    // Touched, not changed.
    let patch = json!({"metadata": {"annotations": {"example.com/touched": "1"}}});
    let (plane, namespace) = (&scene.stage.plane, &scene.stage.namespace);
    plane.patch("SealConfig", namespace, "c0", &patch).await;
    plane.patch("Secret", namespace, "oci", &patch).await;
    // What that would cause is caused by now: this one comes after it.
    let bytes = random(32);
    scene.deliver("last", scene.spec("last", &bytes), &bytes).await;
    assert_eq!(key_requests(&scene), (10, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_operator_costs_no_request_to_anybody() {
    let scene = OciScene::granted("oci-restart").await;
    let mut running = scene.start();
    for (name, credentials) in [
        ("instance", json!({"instancePrincipal": {}})),
        ("key", by_secret("oci")),
    ] {
        let bytes = random(32);
        let spec = scene.spec_as(&credentials, &scene.blob_copy(&bytes), name);
        scene.deliver(name, spec, &bytes).await;
    }
    let log = scene.oci.log().len();
    let before = scene.stage.plane.list("Secret", &scene.stage.namespace).await;
    for hard in [false, true] {
        if hard {
            running.kill();
        } else {
            running.stop();
        }
        running = scene.start();
        eventually("the new operator has looked at everything", async || {
            let seen = running.metric("autounseal_reconcile_total", &[]);
            if seen >= 2.0 {
                Ok(())
            } else {
                Err(running.metrics())
            }
        })
        .await;
        // Whatever it would do, it does within this; there is nothing to wait for when it does nothing.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.oci.log().len(), log, "requests after a restart");
        assert_eq!(
            scene.stage.plane.list("Secret", &scene.stage.namespace).await,
            before
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_version_needs_no_change_and_costs_nothing() {
    let scene = OciScene::new("oci-rotated").await;
    let _operator = scene.start();
    let bytes = random(32);
    let old_copies = [scene.kms_copy(&bytes), scene.blob_copy(&bytes)];
    let one = scene.deliver("one", scene.spec("one", &bytes), &bytes).await;
    let before = key_requests(&scene);
    scene.oci.rotate(&scene.key);
    scene.repaired("one", &bytes).await;
    assert_eq!(key_requests(&scene), (before.0 + 1, before.1));
    // Copies of both versions open under the one OCID.
    for (name, copy) in [
        ("old-kms", &old_copies[0]),
        ("old-blob", &old_copies[1]),
        ("new-kms", &scene.kms_copy(&bytes)),
        ("new-blob", &scene.blob_copy(&bytes)),
    ] {
        let spec = scene.spec_as(&by_secret("oci"), copy, name);
        scene.deliver(name, spec, &bytes).await;
    }
    scene.heals(&one).await;
}

/// A seal on AWS beside the scene's, and a copy of these bytes under each.
fn on_both(scene: &OciScene, aws: (&Kms, &AwsKey), bytes: (&[u8], &[u8]), secret: &str) -> Value {
    let mut spec = scene.spec(secret, bytes.1);
    let (kms, key) = aws;
    spec["seals"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "aws", "priority": 10, "awskms": {
        "kmsKeyID": key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}));
    spec["keys"][0]["wrapped"]
        .as_array_mut()
        .unwrap()
        .push(json!({"seal": "aws", "format": "kms",
        "inline": BASE64.encode(&kms.encrypt(key, bytes.0, &Context::new()))}));
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_under_both_clouds_is_delivered_when_they_agree_and_while_one_is_down() {
    let scene = OciScene::new("oci-both").await;
    let (kms, stage) = (Kms::start(), &scene.stage);
    let key = kms.key();
    stage
        .credentials("aws", "AKIAINTEGRATIONTEST0", "integration-secret")
        .await;
    let _operator = scene.operator().env("AWS_ENDPOINT_URL_KMS", kms.url()).start();
    let bytes = random(32);
    let spec = on_both(&scene, (&kms, &key), (&bytes, &bytes), "one");
    let one = scene.deliver("one", spec, &bytes).await;
    let config = stage.config("one").await;
    assert_eq!(config["status"]["summary"]["seals"], "2/2");
    for (name, provider) in [("aws", "awskms"), ("oci", "ocikms")] {
        let seal = named(&config["status"]["seals"], name);
        assert_eq!(
            (&seal["provider"], &seal["state"]),
            (&json!(provider), &json!("Healthy"))
        );
    }
    assert_eq!((kms.count("Decrypt"), scene.decrypts()), (1, 1), "each copy once");

    // They differ: nothing is delivered, and the last good Secret stays.
    let spec = on_both(&scene, (&kms, &key), (&random(32), &bytes), "one");
    scene.stage.apply("one", &spec).await;
    scene.stage.not_ready("one", "CopiesDiffer").await;
    scene.untouched(&one).await;

    // The OCI vault is down: AWS alone delivers, and status says which is ill.
    scene
        .oci
        .fault(&json!({"service": "crypto", "kind": "status", "status": 503, "times": -1}));
    scene
        .oci
        .fault(&json!({"service": "management", "kind": "status", "status": 503, "times": -1}));
    let fresh = random(32);
    let spec = on_both(&scene, (&kms, &key), (&fresh, &fresh), "two");
    stage.apply("two", &spec).await;
    stage.delivered("two", &[("root", &fresh)]).await;
    eventually("the ill seal is told", async || {
        let config = stage.config("two").await;
        let seal = named(&config["status"]["seals"], "oci");
        let told = seal["state"] == "Unhealthy" && config["status"]["summary"]["seals"] == "1/2";
        told.then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    scene.oci.clear_faults();
    eventually("both are well again", async || {
        let config = stage.config("two").await;
        let well = config["status"]["summary"]["seals"] == "2/2";
        well.then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    stage.ready("two").await;
    stage.delivered("two", &[("root", &fresh)]).await;

    // And the other way round.
    kms.always("Decrypt", crate::support::kms::Act::ServerFault);
    let fresh = random(32);
    let spec = on_both(&scene, (&kms, &key), (&fresh, &fresh), "three");
    stage.apply("three", &spec).await;
    stage.delivered("three", &[("root", &fresh)]).await;
}
