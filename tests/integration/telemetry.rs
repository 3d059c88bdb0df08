//! What people watch the operator by: metrics, events, health.

use crate::support::{
    kms::Act,
    operator,
    plane::eventually,
    scene::Scene,
    stage::{Stage, random},
};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_carry_the_names_and_reasons_of_the_contract() {
    let scene = Scene::new("metrics").await;
    let running = scene.start();
    scene.deliver("good", &random(32)).await;
    scene
        .kms
        .always("Decrypt", Act::error(400, "AccessDeniedException"));
    scene.stage.apply("bad", &scene.spec("bad", b"x")).await;
    scene.not_ready("bad", &["AccessDenied"]).await;
    let namespace = format!("namespace=\"{}\"", scene.stage.namespace);
    let metrics = running.metrics();
    for (name, fragments, value) in [
        (
            "autounseal_ready{",
            [namespace.as_str(), "name=\"good\"", "kind=\"SealConfig\""],
            1.0,
        ),
        (
            "autounseal_ready{",
            [namespace.as_str(), "name=\"bad\"", "kind=\"SealConfig\""],
            0.0,
        ),
        (
            "autounseal_not_ready{",
            ["reason=\"AccessDenied\"", "kind=\"SealConfig\"", ""],
            1.0,
        ),
        (
            "autounseal_seals_unhealthy{",
            [namespace.as_str(), "name=\"bad\"", ""],
            1.0,
        ),
        (
            "autounseal_kms_requests_total{",
            ["provider=\"awskms\"", "operation=\"Decrypt\"", "outcome=\"ok\""],
            1.0,
        ),
    ] {
        let found = running.metric(name, &fragments);
        assert!(
            (found - value).abs() < 0.1,
            "{name} {fragments:?} is {found}:\n{metrics}"
        );
    }
    for name in [
        "autounseal_reconcile_total{",
        "autounseal_reconcile_duration_seconds",
        "autounseal_kms_request_duration_seconds",
        "autounseal_build_info",
        "outcome=\"AccessDenied\"",
    ] {
        assert!(metrics.contains(name), "{name}:\n{metrics}");
    }
    // What is gone is told no more.
    scene
        .stage
        .plane
        .delete("SealConfig", &scene.stage.namespace, "bad")
        .await;
    eventually("the series go", async || {
        let metrics = running.metrics();
        if metrics.contains("name=\"bad\"") {
            Err(metrics)
        } else {
            Ok(())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_tells_each_turn() {
    let scene = Scene::new("events").await;
    let _operator = scene.start();
    scene.deliver("one", &random(32)).await;
    scene.kms.always("Decrypt", Act::error(400, "DisabledException"));
    scene.stage.apply("one", &scene.spec("one", b"x")).await;
    scene.not_ready("one", &["KeyDisabled"]).await;
    let events = eventually("both turns are told", async || {
        let events = scene.stage.events("one").await;
        let told = |what: &str| events.iter().any(|event| event.starts_with(what));
        if told("Normal Ready") && told("Warning KeyDisabled") {
            Ok(events)
        } else {
            Err(format!("{events:?}"))
        }
    })
    .await;
    assert_eq!(
        events
            .iter()
            .filter(|event| event.starts_with("Warning KeyDisabled"))
            .count(),
        1,
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_operator_serves_several_namespaces_and_no_other() {
    let scene = Scene::new("first").await;
    let (second, third) = (Stage::new("second").await, Stage::new("third").await);
    let namespaces = format!("{},{}", scene.stage.namespace, second.namespace);
    let running = scene
        .operator()
        .with_flags(["--watch-namespaces".to_owned(), namespaces])
        .start();
    let bytes = random(32);
    for stage in [&scene.stage, &second, &third] {
        stage.apply("one", &scene.spec("out", &bytes)).await;
    }
    scene.stage.delivered("out", &[("root", &bytes)]).await;
    second.delivered("out", &[("root", &bytes)]).await;
    assert_eq!(third.secret("out").await, None);
    let output = running.stop();
    assert!(output.contains("stop"), "it ends in order: {output}");
}

#[test]
fn misuse_ends_with_a_sentence_and_2() {
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(crate::support::binary())
            .args(arguments)
            .env_clear()
            .env("KUBECONFIG", "/nonexistent")
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let address = operator::free_port().to_string();
    for arguments in [
        vec!["controller", "--metrics-addr", "nonsense"],
        vec![
            "controller",
            "--metrics-addr",
            &address,
            "--allowed-endpoints",
            "https://kms.example/path",
        ],
        vec![
            "controller",
            "--metrics-addr",
            &address,
            "--operator-identity-grants",
            "/nonexistent",
        ],
        vec!["controller", "--metrics-addr", &address, "--log-level", "loud"],
        vec!["controller", "--metrics-addr", &address, "--concurrency", "0"],
    ] {
        let (code, said) = run(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.contains("--"), "the flag is named: {said}");
    }
    let (code, said) = run(&["controller", "--metrics-addr", &address]);
    assert!(code.is_some_and(|code| code != 0), "no cluster: {said}");
    assert!(said.contains("KUBECONFIG"), "{said}");
}
