//! What GitOps tools make of a SealConfig: its status, read by kstatus and by a health script in Argo CD's interpreter, and
//! its manifest, which nothing fights.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    helm::{file, kubectl},
    kms::Act,
    plane::eventually,
    scene::Scene,
    stage::{Stage, condition, random, repository},
};

/// The script that docs/gitops.md gives.
fn health_script() -> String {
    let text = std::fs::read_to_string(repository("docs/gitops.md")).unwrap();
    let (_, rest) = text.split_once("<!-- the health script -->\n```lua\n").unwrap();
    file(rest.split_once("```").unwrap().0)
}

/// What the tools say.
fn asked(arguments: &[&str], object: &Value) -> String {
    let program =
        std::env::var("AUTOUNSEAL_GITOPS").expect("AUTOUNSEAL_GITOPS is set by cargo xtask cluster");
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(object.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?} of {object:#}");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(said["message"].is_string(), "{said}");
    said["status"].as_str().unwrap().to_owned()
}

/// Waits until kstatus and Argo CD say these words of the SealConfig.
async fn read_as(stage: &Stage, name: &str, kstatus: &str, argo: &str) {
    let script = health_script();
    eventually(&format!("{name} is {kstatus} and {argo}"), async || {
        let config = stage.config(name).await;
        let said = (asked(&["kstatus"], &config), asked(&["argocd", &script], &config));
        (said == (kstatus.to_owned(), argo.to_owned()))
            .then_some(())
            .ok_or_else(|| format!("{said:?} of {:#}", config["status"]))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kstatus_and_argo_cd_read_from_a_status_what_is_meant() {
    let scene = Scene::new("gitops").await;
    let stage = &scene.stage;
    let bytes = random(32);
    let mut spec = scene.spec("one", &bytes);
    stage.apply("one", &spec).await;
    read_as(stage, "one", "InProgress", "Progressing").await;
    let running = scene.start();
    read_as(stage, "one", "Current", "Healthy").await;

    // A newer spec that nobody has looked at yet.
    running.stop();
    spec["targets"][0]["secret"]["data"] = json!([{"name": "other", "key": {"name": "root"}}]);
    stage.apply("one", &spec).await;
    read_as(stage, "one", "InProgress", "Progressing").await;
    let _running = scene.start();
    read_as(stage, "one", "Current", "Healthy").await;

    // What may mend itself, and what only a human can mend.
    for (error, kstatus, argo) in [
        (
            Act::error(500, "KMSInternalException"),
            "InProgress",
            "Progressing",
        ),
        (Act::error(400, "AccessDeniedException"), "Failed", "Degraded"),
    ] {
        scene.kms.always("Decrypt", error);
        spec = scene.spec("one", &random(32));
        stage.apply("one", &spec).await;
        read_as(stage, "one", kstatus, argo).await;
    }
    scene.kms.heal();
    spec = scene.spec("one", &random(32));
    stage.apply("one", &spec).await;
    read_as(stage, "one", "Current", "Healthy").await;
    spec["suspend"] = json!(true);
    stage.apply("one", &spec).await;
    read_as(stage, "one", "Current", "Suspended").await;
}

/// Whether all of `some` stands in `all` as it is.
fn is_within(some: &Value, all: &Value) -> bool {
    match (some, all) {
        (Value::Object(some), Value::Object(all)) => some
            .iter()
            .all(|(name, value)| all.get(name).is_some_and(|other| is_within(value, other))),
        (Value::Array(some), Value::Array(all)) => {
            some.len() == all.len() && some.iter().zip(all).all(|(one, other)| is_within(one, other))
        }
        _ => some == all,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_applied_twice_changes_nothing_and_nothing_fights_it() {
    let stage = Stage::bare("gitops-twice", &json!({})).await;
    // Somebody looks after all of them: what that one writes must not show either.
    let _running = stage.operator().start();
    let mut manifests = Vec::new();
    for entry in std::fs::read_dir(repository("examples")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let mut object: Value = serde::Deserialize::deserialize(document).unwrap();
            if object["kind"] == "SealConfig" || object["kind"] == "ManagedKey" {
                object["metadata"]["namespace"] = json!(stage.namespace);
                manifests.push(object);
            }
        }
    }
    assert!(manifests.len() > 10);
    for (way, manager) in [
        ("--server-side=true", "flux"),
        ("--server-side=false", "argocd-controller"),
    ] {
        for manifest in &manifests {
            let path = file(&manifest.to_string());
            let manager = format!("--field-manager={manager}");
            let apply = || {
                let (fine, said) = kubectl(&["apply", way, &manager, "-f", &path]);
                assert!(fine, "{said}");
            };
            apply();
            let (kind, name) = (
                manifest["kind"].as_str().unwrap(),
                manifest["metadata"]["name"].as_str().unwrap(),
            );
            let read = async || stage.plane.get(kind, &stage.namespace, name).await;
            let handled = eventually("the operator has looked", async || {
                let config = read().await.ok_or("it is not there")?;
                let ready = condition(&config, "Ready");
                let done = ready["reason"] != "Pending" || config["spec"].get("controllerClass").is_some();
                done.then_some(config).ok_or_else(|| ready.to_string())
            })
            .await;
            assert!(
                is_within(&manifest["spec"], &handled["spec"]),
                "{name} reads back as {:#}",
                handled["spec"]
            );
            apply();
            let again = read().await.unwrap();
            // The whole entry of the manager, with the time of its last change.
            let own = |config: &Value| {
                let all = config["metadata"]["managedFields"].as_array().unwrap();
                all.iter()
                    .filter(|one| one.get("subresource").is_none())
                    .cloned()
                    .collect::<Vec<_>>()
            };
            assert_eq!(own(&again), own(&handled), "{name}");
            assert_eq!(again["metadata"]["generation"], handled["metadata"]["generation"]);
            assert_eq!(again["spec"], handled["spec"]);
            let (same, shown) = kubectl(&["diff", way, &manager, "-f", &path]);
            assert!(same, "{name}: {shown}");
            // Two examples share a name.
            stage.plane.delete(kind, &stage.namespace, name).await;
            eventually("it is gone", async || {
                read().await.map_or(Ok(()), |_| Err("still there".to_owned()))
            })
            .await;
        }
    }
}
