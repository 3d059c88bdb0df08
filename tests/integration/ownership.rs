//! Secrets of others are never overwritten (security rule S7).

use serde_json::{Value, json};

use crate::support::{
    plane::eventually,
    scene::Scene,
    stage::{data_of, random},
};

async fn untouched(scene: &Scene, before: &Value) {
    let name = before["metadata"]["name"].as_str().unwrap();
    let now = scene.stage.whole_secret(name).await;
    assert_eq!(
        now["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"],
        "{name} was written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_somebody_else_made_is_refused_until_both_sides_agree_to_the_adoption() {
    let scene = Scene::new("adopt").await;
    let _operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    let before = stage
        .secret_of("foreign", &[("other", b"theirs".as_slice()), ("root", b"old")])
        .await;
    stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "foreign",
            &json!({"metadata": {"labels": {"team": "them"}}}),
        )
        .await;
    let before = json!({"metadata": stage.whole_secret("foreign").await["metadata"], "was": before});

    // Neither side; then the SealConfig alone.
    let mut spec = scene.spec("foreign", &bytes);
    stage.apply("one", &spec).await;
    let message = stage.not_ready("one", "SecretNotOwned").await;
    assert!(
        message.contains("adopt") && message.contains("foreign"),
        "{message}"
    );
    untouched(&scene, &before).await;
    spec["targets"][0]["secret"]["adopt"] = json!(true);
    stage.apply("one", &spec).await;
    stage.not_ready("one", "SecretNotOwned").await;
    untouched(&scene, &before).await;

    // The annotation names somebody else.
    let annotate = |value: &str| json!({"metadata": {"annotations": {"autounseal.dev/adopt-by": value}}});
    stage
        .plane
        .patch("Secret", &stage.namespace, "foreign", &annotate("two"))
        .await;
    let before = stage.whole_secret("foreign").await;
    stage.apply("one", &spec).await;
    stage.not_ready("one", "SecretNotOwned").await;
    untouched(&scene, &before).await;

    // Both sides.
    stage
        .plane
        .patch("Secret", &stage.namespace, "foreign", &annotate("one"))
        .await;
    eventually("the Secret is taken over", async || {
        let data = stage.secret("foreign").await.unwrap_or_default();
        if data.get("root").is_some_and(|b| *b == bytes) {
            Ok(())
        } else {
            Err(format!("{:?}", data.keys()))
        }
    })
    .await;
    stage.ready("one").await;
    let adopted = stage.whole_secret("foreign").await;
    assert_eq!(
        adopted["metadata"]["labels"]["team"], "them",
        "what others set stays"
    );
    assert_eq!(
        data_of(&adopted).get("other").map(Vec::as_slice),
        Some(b"theirs".as_slice())
    );
    assert_eq!(
        adopted["metadata"]["uid"], before["metadata"]["uid"],
        "never deleted and made anew"
    );
    assert!(
        adopted["metadata"].get("ownerReferences").is_none(),
        "an adopted Secret is never deleted"
    );

    stage.plane.delete("SealConfig", &stage.namespace, "one").await;
    assert!(stage.secret("foreign").await.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn consent_of_the_secret_alone_is_not_enough() {
    let scene = Scene::new("adopt-alone").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    stage.secret_of("foreign", &[("root", b"old".as_slice())]).await;
    let before = stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "foreign",
            &json!({"metadata": {"annotations": {"autounseal.dev/adopt-by": "one"}}}),
        )
        .await;
    stage.apply("one", &scene.spec("foreign", &random(32))).await;
    stage.not_ready("one", "SecretNotOwned").await;
    untouched(&scene, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_of_other_types_stores_and_sources_are_never_adopted() {
    let scene = Scene::new("adopt-types").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    stage
        .plane
        .apply(&stage.object("v1", "ServiceAccount", "victim"))
        .await;
    let mut made = Vec::new();
    for (name, kind, data) in [
        ("token", "kubernetes.io/service-account-token", json!({})),
        (
            "docker",
            "kubernetes.io/dockerconfigjson",
            json!({".dockerconfigjson": "e30="}),
        ),
        (
            "store",
            "autounseal.dev/wrapped",
            json!({"key.root.v1.aws": "AAAA"}),
        ),
        ("tls", "kubernetes.io/tls", json!({"tls.crt": "", "tls.key": ""})),
        ("source", "Opaque", json!({"c": "AAAA"})),
    ] {
        let mut secret = stage.object("v1", "Secret", name);
        secret["type"] = json!(kind);
        secret["data"] = data;
        // The token controller is not running; the annotation is what would make it mint a token.
        secret["metadata"]["annotations"] =
            json!({"autounseal.dev/adopt-by": name, "kubernetes.io/service-account.name": "victim"});
        stage.plane.create(&secret).await;
        made.push(stage.whole_secret(name).await);
    }
    // Somebody reads `source`: it is nobody's to overwrite.
    let mut reader = scene.spec("reader", b"x");
    reader["keys"][0]["wrapped"][0] = json!({"seal": "aws", "secretKeyRef": {"name": "source", "key": "c"}});
    stage.apply("reader", &reader).await;
    stage.not_ready("reader", "CiphertextInvalid").await;
    for before in &made {
        let name = before["metadata"]["name"].as_str().unwrap();
        let mut spec = scene.spec(name, &random(32));
        spec["targets"][0]["secret"]["adopt"] = json!(true);
        stage.apply(name, &spec).await;
    }
    for before in &made {
        let name = before["metadata"]["name"].as_str().unwrap();
        stage.not_ready(name, "SecretNotOwned").await;
        untouched(&scene, before).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_of_another_seal_config_is_refused_with_and_without_adopt() {
    let scene = Scene::new("two-configs").await;
    let _operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    scene.deliver("shared", &bytes).await;
    let before = stage.whole_secret("shared").await;
    let mut spec = scene.spec("shared", &random(32));
    stage.apply("second", &spec).await;
    stage.not_ready("second", "SecretNotOwned").await;
    untouched(&scene, &before).await;
    // Even the annotation does not hand over what a living SealConfig delivers.
    stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "shared",
            &json!({"metadata": {"annotations": {"autounseal.dev/adopt-by": "second"}}}),
        )
        .await;
    spec["targets"][0]["secret"]["adopt"] = json!(true);
    stage.apply("second", &spec).await;
    stage.not_ready("second", "SecretNotOwned").await;
    stage.delivered("shared", &[("root", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_config_made_again_under_the_same_name_does_not_inherit_the_secret() {
    let scene = Scene::new("same-name").await;
    let _operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    scene.deliver("one", &bytes).await;
    let before = stage.whole_secret("one").await;
    stage.plane.delete("SealConfig", &stage.namespace, "one").await;
    let mut spec = scene.spec("one", &random(32));
    stage.apply("one", &spec).await;
    stage.not_ready("one", "SecretNotOwned").await;
    untouched(&scene, &before).await;
    // With consent of both sides it goes on.
    let next = random(32);
    spec = scene.spec("one", &next);
    spec["targets"][0]["secret"]["adopt"] = json!(true);
    stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "one",
            &json!({"metadata": {"annotations": {"autounseal.dev/adopt-by": "one"}}}),
        )
        .await;
    stage.apply("one", &spec).await;
    eventually("the Secret is taken over", async || {
        let data = stage.secret("one").await.unwrap_or_default();
        if data.get("root").is_some_and(|b| *b == next) {
            Ok(())
        } else {
            Err("not yet".into())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_never_overwrites_what_its_own_seal_config_reads() {
    let scene = Scene::new("self-read").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let before = stage.whole_secret("aws").await;
    let mut spec = scene.spec("aws", &random(32));
    spec["targets"][0]["secret"]["adopt"] = json!(true);
    stage
        .plane
        .patch(
            "Secret",
            &stage.namespace,
            "aws",
            &json!({"metadata": {"annotations": {"autounseal.dev/adopt-by": "one"}}}),
        )
        .await;
    stage.apply("one", &spec).await;
    scene.not_ready("one", &["InvalidSpec", "SecretNotOwned"]).await;
    assert_eq!(stage.whole_secret("aws").await["data"], before["data"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_steers_other_controllers_is_refused() {
    let scene = Scene::new("steering").await;
    let _operator = scene.start();
    for (index, (field, key)) in [
        ("annotations", "argocd.argoproj.io/sync-options"),
        ("labels", "argocd.argoproj.io/secret-type"),
        ("annotations", "eks.amazonaws.com/role-arn"),
        ("annotations", "sub.eks.amazonaws.com/x"),
        ("annotations", "kubernetes.io/service-account.name"),
        ("labels", "app.kubernetes.io/managed-by"),
        ("annotations", "autounseal.dev/adopt-by"),
        ("labels", "x.autounseal.dev/y"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("c{index}");
        let mut spec = scene.spec(&name, b"x");
        spec["targets"][0]["secret"][field] = json!({key: "x"});
        // The schema refuses it, or else the operator does.
        if scene
            .stage
            .plane
            .try_apply(&scene.stage.seal_config(&name, &spec))
            .await
            .is_ok()
        {
            scene.stage.not_ready(&name, "InvalidSpec").await;
        }
        assert_eq!(scene.stage.secret(&name).await, None, "{field} {key}");
    }
    assert_eq!(scene.kms.count("Decrypt"), 0);
}
