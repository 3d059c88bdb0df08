//! Guards that the admin of a namespace sets for its SealConfigs (security rule S20).

use serde_json::{Value, json};

use crate::support::{
    kms::Context,
    operator::Operator,
    scene::Scene,
    stage::{random, simple, unique},
    sts::Sts,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_limits_the_keys_of_its_seals_and_an_account_keeps_itself_from_them() {
    let (scene, sts) = (Scene::new("guarded").await, Sts::start());
    let (stage, kms) = (&scene.stage, &scene.kms);
    let other = kms.key();
    kms.alias("alias/good", &scene.key);
    kms.alias("alias/bad", &other);
    let list = |keys: &[&str]| json!({"metadata": {"annotations": {"autounseal.dev/allowed-seals": keys.join(",")}}});
    let annotate = async |patch: Value| {
        stage.plane.patch("Namespace", "", &stage.namespace, &patch).await;
    };
    annotate(list(&[&scene.key.arn])).await;
    // It has to read namespaces: it watches all of them, and takes the objects of its class.
    let class = format!("c{}", unique());
    let _running = Operator::new()
        .flags(["--controller-class", &class, "--log-level", "debug"])
        .env("AWS_ENDPOINT_URL_KMS", kms.url())
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .start();
    let bytes = random(32);
    let brought = |name: &str, key: &str, under: &_| {
        let mut spec = simple(key, &kms.encrypt(under, &bytes, &Context::new()), name);
        spec["controllerClass"] = json!(class);
        spec
    };
    let asked = |operation: &str, key: &str| {
        let calls = kms.calls();
        let of = |call: &&crate::support::kms::Call| {
            call.operation == operation && call.key_id.as_deref() == Some(key)
        };
        calls.iter().filter(of).count()
    };

    // Named in the spec: nothing is sent.
    stage
        .apply("by-arn", &brought("by-arn", &other.arn, &other))
        .await;
    let why = stage.not_ready("by-arn", "KeyNotAllowed").await;
    assert!(why.contains("autounseal.dev/allowed-seals"), "{why}");
    assert_eq!(kms.calls().len(), 0);
    // Behind an alias: the KMS is asked which key it is, and for nothing else. It makes no key of its own either.
    stage
        .apply("by-alias", &brought("by-alias", "alias/bad", &other))
        .await;
    let mut made = brought("made", "alias/bad", &other);
    made["keys"] = json!([{"name": "root", "generate": {}}]);
    stage.apply("made", &made).await;
    for name in ["by-alias", "made"] {
        stage.not_ready(name, "KeyNotAllowed").await;
        assert_eq!(stage.secret(name).await, None);
    }
    assert!(asked("DescribeKey", "alias/bad") > 0);
    assert_eq!(kms.count("Decrypt") + kms.count("Encrypt"), 0);
    // The key of the list, by either name. A foreign copy under that seal is not delivered.
    for (name, key) in [("good-arn", scene.key.arn.as_str()), ("good-alias", "alias/good")] {
        stage.apply(name, &brought(name, key, &scene.key)).await;
        stage.delivered(name, &[("root", &bytes)]).await;
        stage.ready(name).await;
    }

    // A ServiceAccount that says no, beside one that does not.
    for (name, annotations) in [
        ("shy", json!({"autounseal.dev/use": "denied"})),
        ("app", json!({})),
    ] {
        let mut account = stage.object("v1", "ServiceAccount", name);
        account["metadata"]["annotations"] = annotations;
        account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] =
            json!("arn:aws:iam::123456789012:role/app");
        stage.plane.apply(&account).await;
        let mut spec = brought(name, &scene.key.arn, &scene.key);
        spec["seals"][0]["awskms"]["credentials"] = json!({"serviceAccountRef": {"name": name}});
        stage.apply(name, &spec).await;
    }
    let why = stage.not_ready("shy", "TokenRequestDenied").await;
    assert!(why.contains("autounseal.dev/use"), "{why}");
    stage.delivered("app", &[("root", &bytes)]).await;
    assert_eq!(sts.calls().len(), 1);
    assert_eq!(stage.secret("shy").await, None);

    // What the admin adds is used soon.
    annotate(list(&[&scene.key.arn, &other.arn])).await;
    stage.delivered("by-arn", &[("root", &bytes)]).await;
}
