//! The KMS is called when inputs change, and not otherwise (`api.md`, meaning 4).

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    kms::{Act, Context},
    plane::eventually,
    scene::Scene,
    stage::random,
};

/// What every object of the namespace looks like to an outsider: kind, name, resourceVersion.
async fn versions(scene: &Scene) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for kind in ["SealConfig", "Secret", "Event", "ConfigMap", "Pod", "Deployment"] {
        for object in scene.stage.plane.list(kind, &scene.stage.namespace).await {
            let text = |pointer: &str| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            all.push((
                kind.to_owned(),
                text("/metadata/name"),
                text("/metadata/resourceVersion"),
            ));
        }
    }
    all.sort();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn each_copy_is_opened_once_and_again_only_when_it_changes() {
    let scene = Scene::new("thrift").await;
    let operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    let mut spec = scene.deliver("one", &bytes).await;
    assert_eq!((scene.kms.count("Decrypt"), scene.kms.count("Encrypt")), (1, 0));

    // Pods come and go, labels and annotations change, sources are touched without a change.
    spec["targets"][0]["podSelector"] = json!({"matchLabels": {"app": "x"}});
    stage.apply("one", &spec).await;
    for index in 0..5 {
        stage.pod(&format!("x-{index}"), "x", Some("one"), None).await;
    }
    eventually("the pods are counted", async || {
        let config = stage.config("one").await;
        if config["status"]["targets"][0]["pods"]["using"] == 5 {
            Ok(())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    stage
        .plane
        .patch(
            "SealConfig",
            &stage.namespace,
            "one",
            &json!({"metadata": {"annotations": {"example.com/touched": "1"}}}),
        )
        .await;
    for index in 0..5 {
        stage
            .plane
            .delete("Pod", &stage.namespace, &format!("x-{index}"))
            .await;
    }
    eventually("the pods are gone", async || {
        let config = stage.config("one").await;
        if config["status"]["targets"][0]["pods"]["selected"] == 0 {
            Ok(())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    assert_eq!((scene.kms.count("Decrypt"), scene.kms.count("Encrypt")), (1, 0));
    assert_eq!(scene.kms.count("DescribeKey"), 1);

    // Changed ciphertext of the same key: one more.
    spec["keys"][0]["wrapped"][0]["inline"] = json!(BASE64.encode(&scene.wrap(&bytes)));
    stage.apply("one", &spec).await;
    stage.ready("one").await;
    assert_eq!(scene.kms.count("Decrypt"), 2);
    // A changed template needs the key again: at most one more.
    spec["targets"][0]["secret"]["data"] =
        json!([{"name": "hex", "key": {"name": "root", "encoding": "hex"}}]);
    stage.apply("one", &spec).await;
    stage
        .delivered(
            "one",
            &[("hex", data_encoding::HEXLOWER.encode(&bytes).as_bytes())],
        )
        .await;
    assert!(scene.kms.count("Decrypt") <= 3);
    assert_eq!(scene.kms.count("Encrypt"), 0);
    assert_eq!(scene.kms.malformed(), Vec::<String>::new());
    let counted = operator.metric("autounseal_kms_requests_total", &["Decrypt"])
        + operator.metric("autounseal_kms_requests_total", &["decrypt"]);
    assert_eq!(
        counted.to_string(),
        scene.kms.count("Decrypt").to_string(),
        "the metric tells the truth"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_seal_configs_share_one_describe_key() {
    let scene = Scene::new("describe").await;
    let _operator = scene.start();
    for index in 0..10 {
        let name = format!("c{index}");
        scene.stage.apply(&name, &scene.spec(&name, b"x")).await;
    }
    for index in 0..10 {
        scene.stage.ready(&format!("c{index}")).await;
    }
    assert_eq!(scene.kms.count("Decrypt"), 10);
    assert_eq!(scene.kms.count("DescribeKey"), 1, "shared by identity and key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_operator_costs_no_call_and_no_write() {
    let scene = Scene::new("restart").await;
    let operator = scene.start();
    let stage = &scene.stage;
    let second = scene.kms.key();
    for index in 0..8 {
        let name = format!("c{index}");
        let bytes = random(32);
        let mut spec = scene.spec(&name, &bytes);
        spec["targets"][0]["podSelector"] = json!({"matchLabels": {"app": name}});
        if index % 2 == 0 {
            spec["seals"].as_array_mut().unwrap().push(
                json!({"name": "second", "awskms": {"kmsKeyID": second.arn, "credentials": {"secretRef": {"name": "aws"}}}}),
            );
            spec["keys"][0]["wrapped"]
                .as_array_mut()
                .unwrap()
                .push(json!({"seal": "second", "format": "kms",
                "inline": BASE64.encode(&scene.kms.encrypt(&second, &bytes, &Context::new()))}));
        }
        stage.apply(&name, &spec).await;
        stage.ready(&name).await;
        stage.pod(&name, &name, Some(&name), None).await;
    }
    // A broken one, too: its reason must not be written again.
    stage.apply("broken", &scene.spec("broken", b"x")).await;
    scene
        .kms
        .always("Decrypt", Act::error(400, "AccessDeniedException"));
    stage.apply("broken", &scene.spec("broken", b"y")).await;
    scene.not_ready("broken", &["AccessDenied"]).await;
    stage.plane.delete("SealConfig", &stage.namespace, "broken").await;
    scene.kms.heal();
    for index in 0..8 {
        let name = format!("c{index}");
        eventually("the pods are counted", async || {
            let config = stage.config(&name).await;
            let pods = &config["status"]["targets"][0]["pods"];
            if pods["using"] == 1 {
                Ok(())
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await;
    }
    let before = eventually("silence", async || {
        let first = versions(&scene).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        if versions(&scene).await == first {
            Ok(first)
        } else {
            Err("still writing".into())
        }
    })
    .await;
    operator.stop();
    for hard in [false, true] {
        let calls = scene.kms.calls().len();
        let running = scene.start();
        eventually("the new operator has looked at everything", async || {
            let seen = running.metric("autounseal_reconcile_total", &[]);
            if seen >= 8.0 {
                Ok(())
            } else {
                Err(running.metrics())
            }
        })
        .await;
        // Whatever it would do, it does within this; there is nothing to wait for when it does nothing.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(scene.kms.calls().len(), calls, "calls after a restart");
        assert_eq!(versions(&scene).await, before, "writes after a restart");
        if hard {
            running.kill()
        } else {
            running.stop()
        };
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_kms_is_asked_less_and_less() {
    let scene = Scene::new("backoff").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    scene.kms.always("Decrypt", Act::ServerFault);
    for index in 0..5 {
        let name = format!("c{index}");
        stage.apply(&name, &scene.spec(&name, b"x")).await;
    }
    for index in 0..5 {
        scene.not_ready(&format!("c{index}"), &["KMSUnavailable"]).await;
    }
    let before = scene.kms.count("Decrypt");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let calls = scene.kms.count("Decrypt") - before;
    assert!(calls <= 5 * 8, "{calls} calls for 5 objects in 5 s");

    // The KMS's own hint is kept to: nobody asks again before it.
    scene.kms.heal();
    scene.kms.always("Decrypt", Act::Throttle(Some(3600)));
    let hinted = scene.spec("hinted", b"x");
    let ciphertext = BASE64
        .decode(
            hinted["keys"][0]["wrapped"][0]["inline"]
                .as_str()
                .unwrap()
                .as_bytes(),
        )
        .unwrap();
    stage.apply("hinted", &hinted).await;
    scene.not_ready("hinted", &["Throttled"]).await;
    let asked = || {
        scene
            .kms
            .calls()
            .iter()
            .filter(|call| call.ciphertext == ciphertext)
            .count()
    };
    let before = asked();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(asked(), before, "asked again although told to wait an hour");
}
