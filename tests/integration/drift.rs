//! A delivered Secret that somebody edits or deletes is repaired at once, unless they keep fighting.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{
    plane::{eventually, within},
    scene::Scene,
    stage::{condition, random},
};

#[tokio::test(flavor = "multi_thread")]
async fn edited_and_deleted_secrets_are_repaired() {
    let scene = Scene::new("drift").await;
    let operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    let mut spec = scene.spec("out", &bytes);
    spec["targets"][0]["secret"]["labels"] = json!({"team": "us"});
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &bytes)]).await;
    stage.ready("one").await;

    let patch = async |patch: serde_json::Value| {
        stage.plane.patch("Secret", &stage.namespace, "out", &patch).await;
    };
    let mut took = Vec::new();
    let mut repaired = async |what: &str| {
        let start = Instant::now();
        eventually(what, async || {
            let Some(secret) = stage.plane.get("Secret", &stage.namespace, "out").await else {
                return Err("no Secret".into());
            };
            let data = crate::support::stage::data_of(&secret);
            let fits =
                data.get("root").is_some_and(|b| *b == bytes) && secret["metadata"]["labels"]["team"] == "us";
            if fits {
                Ok(())
            } else {
                Err(secret["metadata"].to_string())
            }
        })
        .await;
        took.push((what.to_owned(), start.elapsed()));
    };
    patch(json!({"data": {"root": "d3Jvbmc="}})).await;
    repaired("an edited value").await;
    patch(json!({"data": {"root": null}})).await;
    repaired("a removed entry").await;
    stage.plane.delete("Secret", &stage.namespace, "out").await;
    repaired("a deleted Secret").await;
    println!("{took:?}");
    stage.ready("one").await;
    drop(operator);

    // While the operator is away, too.
    stage.plane.delete("Secret", &stage.namespace, "out").await;
    let _operator = scene.start();
    stage.delivered("out", &[("root", &bytes)]).await;
    stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "out",
            &json!({"metadata": {"labels": {"team": null}}}),
        )
        .await;
    eventually("a removed label", async || {
        let secret = stage.whole_secret("out").await;
        if secret["metadata"]["labels"]["team"] == "us" {
            Ok(())
        } else {
            Err(secret["metadata"].to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_additions_are_left_alone() {
    let scene = Scene::new("additions").await;
    let _operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    scene.deliver("one", &bytes).await;
    stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "one",
            &json!({"metadata": {"annotations": {"example.com/mine": "x"}}}),
        )
        .await;
    // A second object is the clock: when it is served, the first had its turn.
    scene.deliver("clock", &random(32)).await;
    assert_eq!(
        stage.whole_secret("one").await["metadata"]["annotations"]["example.com/mine"],
        "x"
    );
    stage.ready("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_keeps_fighting_is_told_and_not_fought() {
    let scene = Scene::new("contested").await;
    let _operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    scene.deliver("one", &bytes).await;
    let fight = async {
        loop {
            let patch = json!({"data": {"root": "d3Jvbmc="}});
            let _ = stage
                .plane
                .try_patch("Secret", &stage.namespace, "one", &patch)
                .await;
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    let told = within(Duration::from_mins(1), "SecretContested", async || {
        let config = stage.config("one").await;
        let delivered = condition(&config, "SecretsDelivered");
        if delivered["reason"] == "SecretContested" {
            Ok(delivered)
        } else {
            Err(format!("{:#}", config["status"]))
        }
    });
    let told = tokio::select! { () = fight => unreachable!(), told = told => told };
    assert!(told["message"].as_str().unwrap().contains("one"), "{told}");
    // Backed off: many edits, few repairs.
    let decrypts = scene.kms.count("Decrypt");
    for _ in 0..20 {
        let patch = json!({"data": {"root": "d3Jvbmc=", "n": null}});
        stage.plane.patch("Secret", &stage.namespace, "one", &patch).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        scene.kms.count("Decrypt") <= decrypts + 3,
        "{decrypts} then {}",
        scene.kms.count("Decrypt")
    );
    // Peace: repaired after the backoff of a minute.
    within(Duration::from_mins(2), "the repair after the fight", async || {
        let data = stage.secret("one").await.unwrap_or_default();
        if data.get("root").is_some_and(|b| *b == bytes) {
            Ok(())
        } else {
            Err("still wrong".into())
        }
    })
    .await;
    stage.ready("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_somebody_else_writes_is_written_over() {
    let scene = Scene::new("told").await;
    let operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    stage.apply("one", &scene.spec("out", &bytes)).await;
    let told = stage.ready("one").await["status"].clone();
    let (plane, namespace) = (&stage.plane, &stage.namespace);
    let told_again = async |what: &str| {
        eventually(what, async || {
            let status = stage.config("one").await["status"].clone();
            (status == told)
                .then_some(())
                .ok_or_else(|| format!("{status:#}"))
        })
        .await;
    };
    let ready = |status: &str| json!({"type": "Ready", "status": status, "reason": "Forged", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let cases = [
        ("emptied", json!(null)),
        ("emptied again", json!(null)),
        ("without keys", json!({"keys": null})),
        ("forged conditions", json!({"conditions": [ready("False")]})),
        (
            "a forged generation",
            json!({"observedGeneration": 99, "conditions": [ready("True")]}),
        ),
    ];
    for (what, status) in &cases {
        plane.patch_status("SealConfig", namespace, "one", status).await;
        told_again(what).await;
    }
    // While the operator is away, too: of what was emptied it tells anew what it sees.
    drop(operator);
    plane
        .patch_status("SealConfig", namespace, "one", &json!(null))
        .await;
    let _operator = scene.start();
    stage.ready("one").await;
}
