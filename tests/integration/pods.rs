//! Pods are counted, and rolled only where their owner agreed and only when keys changed (`api.md`, meaning 10; S16).

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    plane::{eventually, within},
    scene::Scene,
    stage::{condition, named, pod_spec, random},
};

async fn counts(scene: &Scene, config: &str, expected: [u64; 3]) -> Value {
    eventually(&format!("{config} counts {expected:?}"), async || {
        let config = scene.stage.config(config).await;
        let pods = named(&config["status"]["targets"], "app")["pods"].clone();
        let found = ["selected", "using", "current"].map(|name| pods[name].as_u64().unwrap_or(u64::MAX));
        if found == expected {
            Ok(config)
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await
}

/// Kubernetes tells times in whole seconds: what happens within one cannot be told apart.
pub(crate) async fn a_second_later() {
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
}

/// A workload whose template mounts the Secret, with a finished rollout, as its controller would report it.
pub(crate) async fn workload(scene: &Scene, kind: &str, name: &str, secret: &str, allowed: bool) -> Value {
    let mut object = scene.stage.object("apps/v1", kind, name);
    if allowed {
        object["metadata"]["annotations"] = json!({"autounseal.dev/restart": "allowed"});
    }
    let mut template = json!({"metadata": {"labels": {"app": name}}});
    template["spec"] = pod_spec(Some(secret));
    object["spec"] = json!({"selector": {"matchLabels": {"app": name}}, "template": template});
    match kind {
        "Deployment" => object["spec"]["replicas"] = json!(2),
        "StatefulSet" => {
            object["spec"]["replicas"] = json!(3);
            object["spec"]["serviceName"] = json!(name);
            object["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
        }
        _ => {}
    }
    let made = scene.stage.plane.create(&object).await;
    rolled_out(scene, kind, name).await;
    made
}

/// The controller's report that the rollout is complete.
async fn rolled_out(scene: &Scene, kind: &str, name: &str) {
    let object = scene
        .stage
        .plane
        .get(kind, &scene.stage.namespace, name)
        .await
        .unwrap();
    let generation = &object["metadata"]["generation"];
    let replicas = object["spec"]["replicas"].as_u64().unwrap_or(2);
    let status = match kind {
        "DaemonSet" => {
            json!({"observedGeneration": generation, "currentNumberScheduled": replicas, "numberMisscheduled": 0,
            "desiredNumberScheduled": replicas, "numberReady": replicas, "updatedNumberScheduled": replicas, "numberAvailable": replicas})
        }
        "StatefulSet" => {
            json!({"observedGeneration": generation, "replicas": replicas, "readyReplicas": replicas,
            "updatedReplicas": replicas, "currentReplicas": replicas, "availableReplicas": replicas, "currentRevision": "r1", "updateRevision": "r1"})
        }
        _ => json!({"observedGeneration": generation, "replicas": replicas, "readyReplicas": replicas,
            "updatedReplicas": replicas, "availableReplicas": replicas, "unavailableReplicas": 0}),
    };
    scene
        .stage
        .plane
        .patch_status(kind, &scene.stage.namespace, name, &status)
        .await;
}

fn delivered_annotation(workload: &Value) -> Option<String> {
    let annotation = workload.pointer("/spec/template/metadata/annotations/autounseal.dev~1delivered")?;
    annotation.as_str().map(str::to_owned)
}

async fn annotation_of(scene: &Scene, kind: &str, name: &str) -> Option<String> {
    delivered_annotation(
        &scene
            .stage
            .plane
            .get(kind, &scene.stage.namespace, name)
            .await
            .unwrap(),
    )
}

/// Waits until a Deployment's template has the counter, in seconds.
async fn restarted(scene: &Scene, name: &str, seconds: u64) -> String {
    let most = std::time::Duration::from_secs(seconds);
    within(most, &format!("the restart of {name}"), async || {
        annotation_of(scene, "Deployment", name)
            .await
            .ok_or_else(|| "no annotation".to_owned())
    })
    .await
}

pub(crate) async fn replica_set(scene: &Scene, deployment: &Value) -> Value {
    let name = deployment["metadata"]["name"].as_str().unwrap();
    let mut object = scene.stage.object("apps/v1", "ReplicaSet", &format!("{name}-1"));
    object["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "controller": true,
        "name": name, "uid": deployment["metadata"]["uid"]}]);
    object["spec"] = json!({"replicas": 2, "selector": deployment["spec"]["selector"], "template": deployment["spec"]["template"]});
    scene.stage.plane.create(&object).await
}

/// A spec for pods `app=<app>`, restarted when keys change.
pub(crate) fn restarting(scene: &Scene, app: &str, bytes: &[u8]) -> Value {
    let mut spec = scene.spec(app, bytes);
    spec["targets"][0]["podSelector"] = json!({"matchLabels": {"app": app}});
    spec["targets"][0]["onChange"] = json!("Restart");
    spec
}

pub(crate) fn rewrapped(scene: &Scene, spec: &Value, bytes: &[u8]) -> Value {
    let mut spec = spec.clone();
    spec["keys"][0]["wrapped"][0]["inline"] = json!(BASE64.encode(&scene.wrap(bytes)));
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn selected_using_and_current_pods_are_counted_and_strangers_named() {
    let scene = Scene::new("counts").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let mut spec = scene.spec("x", &random(32));
    spec["targets"][0]["podSelector"] = json!({"matchLabels": {"app": "x"}});
    stage.apply("one", &spec).await;
    stage.ready("one").await;
    counts(&scene, "one", [0, 0, 0]).await;
    // By volume, by environment variable, by envFrom, by projection; and one not at all, and one of another app.
    stage.pod("volume", "x", Some("x"), None).await;
    for (name, container, volumes) in [
        (
            "env",
            json!({"env": [{"name": "K", "valueFrom": {"secretKeyRef": {"name": "x", "key": "root"}}}]}),
            json!([]),
        ),
        (
            "env-from",
            json!({"envFrom": [{"secretRef": {"name": "x"}}]}),
            json!([]),
        ),
        (
            "projected",
            json!({"volumeMounts": [{"name": "p", "mountPath": "/p"}]}),
            json!([{"name": "p", "projected": {"sources": [{"secret": {"name": "x"}}]}}]),
        ),
    ] {
        let mut pod = stage.object("v1", "Pod", name);
        pod["metadata"]["labels"] = json!({"app": "x"});
        pod["spec"] = json!({"nodeName": "node-1", "volumes": volumes});
        let mut only = json!({"name": "app", "image": "app"});
        only.as_object_mut()
            .unwrap()
            .extend(container.as_object().unwrap().clone());
        pod["spec"]["containers"] = json!([only]);
        stage.plane.create(&pod).await;
        stage.pod_started(name, jiff::Timestamp::now()).await;
    }
    let config = counts(&scene, "one", [4, 4, 4]).await;
    assert_eq!(config["status"]["summary"]["pods"], "4/4");
    stage.ready("one").await;
    stage.pod("stranger", "x", Some("other"), None).await;
    stage.pod("elsewhere", "y", Some("x"), None).await;
    let config = counts(&scene, "one", [5, 4, 4]).await;
    let pods = condition(&config, "PodsCurrent");
    assert_eq!(
        (pods["status"].as_str(), pods["reason"].as_str()),
        (Some("False"), Some("PodsNotUsingSecret")),
        "{pods}"
    );
    assert!(pods["message"].as_str().unwrap().contains("stranger"), "{pods}");
    stage.plane.delete("Pod", &stage.namespace, "stranger").await;
    counts(&scene, "one", [4, 4, 4]).await;
    stage.ready("one").await;

    // New bytes: whoever started before is behind.
    a_second_later().await;
    stage.apply("one", &rewrapped(&scene, &spec, &random(32))).await;
    let config = counts(&scene, "one", [4, 4, 0]).await;
    assert_eq!(config["status"]["summary"]["pods"], "0/4");
    assert_eq!(condition(&config, "PodsCurrent")["reason"], "PodsOutdated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_started_in_the_second_of_the_change_is_not_taken_for_current() {
    let scene = Scene::new("same-second").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let first = random(32);
    let spec = restarting(&scene, "app", &first);
    stage.apply("one", &spec).await;
    stage.delivered("app", &[("root", &first)]).await;
    stage.pod("early", "app", Some("app"), None).await;
    counts(&scene, "one", [1, 1, 1]).await;
    // At the head of a second, so that start and delivery most likely share it.
    let into = jiff::Timestamp::now().subsec_millisecond();
    tokio::time::sleep(std::time::Duration::from_millis(
        1000 - u64::from(into.unsigned_abs()),
    ))
    .await;
    stage.plane.delete("Pod", &stage.namespace, "early").await;
    stage.pod("late", "app", Some("app"), None).await;
    stage.apply("one", &rewrapped(&scene, &spec, &random(32))).await;
    eventually("the second delivery", async || {
        let data = stage.secret("app").await.unwrap_or_default();
        if data.get("root").is_some_and(|bytes| *bytes != first) {
            Ok(())
        } else {
            Err("not yet".into())
        }
    })
    .await;
    counts(&scene, "one", [1, 1, 0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_agreed_is_rolled_once_when_key_bytes_change() {
    let scene = Scene::new("rollout").await;
    let operator = scene.start();
    let stage = &scene.stage;
    let deployment = workload(&scene, "Deployment", "app", "app", true).await;
    let set = replica_set(&scene, &deployment).await;
    stage.pod("app-1-a", "app", Some("app"), Some(&set)).await;
    stage.pod("app-1-b", "app", Some("app"), Some(&set)).await;

    // The first delivery rolls nothing.
    let bytes = random(32);
    let spec = restarting(&scene, "app", &bytes);
    stage.apply("one", &spec).await;
    stage.delivered("app", &[("root", &bytes)]).await;
    let waiting = jiff::Timestamp::now();
    for pod in ["app-1-a", "app-1-b"] {
        stage.pod_started(pod, waiting).await;
    }
    stage.ready("one").await;
    assert_eq!(annotation_of(&scene, "Deployment", "app").await, None);

    // Text alone rolls nothing, nor does the same key in a new wrapping.
    let mut text = spec.clone();
    text["targets"][0]["secret"]["data"] =
        json!([{"name": "root", "key": {"name": "root"}}, {"name": "note", "template": "hello"}]);
    stage.apply("one", &text).await;
    stage
        .delivered("app", &[("root", &bytes), ("note", b"hello")])
        .await;
    stage.apply("one", &rewrapped(&scene, &text, &bytes)).await;
    scene.deliver("clock", &random(32)).await;
    assert_eq!(annotation_of(&scene, "Deployment", "app").await, None);

    // New bytes: one rollout, by a counter.
    a_second_later().await;
    let next = random(32);
    let spec = rewrapped(&scene, &spec, &next);
    stage.apply("one", &spec).await;
    stage.delivered("app", &[("root", &next)]).await;
    let counter = eventually("the template is annotated", async || {
        annotation_of(&scene, "Deployment", "app")
            .await
            .ok_or_else(|| "no annotation".to_owned())
    })
    .await;
    assert!(
        counter.parse::<u64>().is_ok(),
        "a counter, not a digest: {counter}"
    );
    let annotated = stage
        .plane
        .get("Deployment", &stage.namespace, "app")
        .await
        .unwrap();
    let fields = annotated["spec"]["template"]["metadata"]["annotations"]
        .as_object()
        .unwrap();
    assert_eq!(
        fields.len(),
        1,
        "nothing else of the template changes: {fields:?}"
    );

    // A restart of the operator rolls nothing, although the pods are still the old ones.
    let generation = annotated["metadata"]["generation"].clone();
    operator.stop();
    let _operator = scene.start();
    scene.deliver("clock-2", &random(32)).await;
    let now = stage
        .plane
        .get("Deployment", &stage.namespace, "app")
        .await
        .unwrap();
    assert_eq!(
        (
            &now["metadata"]["generation"],
            delivered_annotation(&now).as_ref()
        ),
        (&generation, Some(&counter))
    );

    // And again new bytes at once: the ten minutes are not over.
    rolled_out(&scene, "Deployment", "app").await;
    let third = random(32);
    stage.apply("one", &rewrapped(&scene, &spec, &third)).await;
    stage.delivered("app", &[("root", &third)]).await;
    let config = eventually("RestartBlocked", async || {
        let config = stage.config("one").await;
        if condition(&config, "PodsCurrent")["reason"] == "RestartBlocked" {
            Ok(config)
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    assert!(
        condition(&config, "PodsCurrent")["message"]
            .as_str()
            .unwrap()
            .contains("app")
    );
    assert_eq!(
        annotation_of(&scene, "Deployment", "app").await.as_ref(),
        Some(&counter)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_without_consent_or_without_the_secret_in_their_template_are_left_alone() {
    let scene = Scene::new("consent").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let silent = workload(&scene, "Deployment", "silent", "silent", false).await;
    let set = replica_set(&scene, &silent).await;
    // Agreed, but its template uses another Secret; its pod was changed by somebody to use ours.
    let elsewhere = workload(&scene, "DaemonSet", "elsewhere", "other", true).await;
    let (first, second) = (random(32), random(32));
    for name in ["silent", "elsewhere"] {
        stage.apply(name, &restarting(&scene, name, &first)).await;
        stage.delivered(name, &[("root", &first)]).await;
    }
    stage
        .pod("silent-1-a", "silent", Some("silent"), Some(&set))
        .await;
    stage
        .pod("elsewhere-a", "elsewhere", Some("elsewhere"), Some(&elsewhere))
        .await;
    a_second_later().await;
    for name in ["silent", "elsewhere"] {
        counts(&scene, name, [1, 1, 1]).await;
        stage.apply(name, &restarting(&scene, name, &second)).await;
        stage.delivered(name, &[("root", &second)]).await;
    }
    let config = counts(&scene, "silent", [1, 1, 0]).await;
    assert_eq!(condition(&config, "PodsCurrent")["status"], "False");
    counts(&scene, "elsewhere", [1, 1, 0]).await;
    scene.deliver("clock", &random(32)).await;
    assert_eq!(annotation_of(&scene, "Deployment", "silent").await, None);
    assert_eq!(annotation_of(&scene, "DaemonSet", "elsewhere").await, None);
    assert_eq!(
        scene.stage.plane.list("Pod", &stage.namespace).await.len(),
        2,
        "nobody was evicted"
    );

    // Consent that is given later is noticed, although nobody watches workloads.
    let agreed = json!({"metadata": {"annotations": {"autounseal.dev/restart": "allowed"}}});
    stage
        .plane
        .patch("Deployment", &stage.namespace, "silent", &agreed)
        .await;
    rolled_out(&scene, "Deployment", "silent").await;
    restarted(&scene, "silent", 120).await;
    assert_eq!(annotation_of(&scene, "DaemonSet", "elsewhere").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_waits_for_the_rollout_before_it_and_stops_when_that_failed() {
    let scene = Scene::new("waits").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let deployment = workload(&scene, "Deployment", "app", "app", true).await;
    let set = replica_set(&scene, &deployment).await;
    let first = random(32);
    let spec = restarting(&scene, "app", &first);
    stage.apply("one", &spec).await;
    stage.delivered("app", &[("root", &first)]).await;
    stage.pod("app-1-a", "app", Some("app"), Some(&set)).await;
    counts(&scene, "one", [1, 1, 1]).await;
    a_second_later().await;

    let generation = stage
        .plane
        .get("Deployment", &stage.namespace, "app")
        .await
        .unwrap()["metadata"]["generation"]
        .clone();
    let failed = json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "lastUpdateTime": "2026-01-01T00:00:00Z", "message": "x"}]);
    stage
        .plane
        .patch_status("Deployment", &stage.namespace, "app", &json!({"observedGeneration": generation, "replicas": 3,
            "updatedReplicas": 1, "availableReplicas": 2, "readyReplicas": 2, "unavailableReplicas": 1, "conditions": failed}))
        .await;
    let second = random(32);
    stage.apply("one", &rewrapped(&scene, &spec, &second)).await;
    stage.delivered("app", &[("root", &second)]).await;
    let blocked = async || {
        let config = stage.config("one").await;
        let pods = condition(&config, "PodsCurrent");
        if pods["reason"] == "RestartBlocked" {
            Ok(pods)
        } else {
            Err(format!("{:#}", config["status"]))
        }
    };
    let told = eventually("blocked by the failed rollout", blocked).await;
    assert!(told["message"].as_str().unwrap().contains("failed"), "{told}");
    assert_eq!(annotation_of(&scene, "Deployment", "app").await, None);

    // Mended: the restart follows by itself.
    stage
        .plane
        .patch_status(
            "Deployment",
            &stage.namespace,
            "app",
            &json!({"conditions": null}),
        )
        .await;
    rolled_out(&scene, "Deployment", "app").await;
    restarted(&scene, "app", 90).await;

    // Somebody holds the rollout back: the pods stay as they are, and the status says why.
    let spec = json!({"spec": {"paused": true}});
    stage
        .plane
        .patch("Deployment", &stage.namespace, "app", &spec)
        .await;
    let pod = json!({"metadata": {"labels": {"looked": "at"}}});
    stage.plane.patch("Pod", &stage.namespace, "app-1-a", &pod).await;
    eventually("blocked by the pause", async || {
        let told = blocked().await?;
        let message = told["message"].as_str().unwrap();
        (message.contains("spec.paused") && message.contains("Deployment app"))
            .then_some(())
            .ok_or_else(|| message.to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_on_delete_pods_are_evicted_one_at_a_time_standbys_first_honouring_budgets() {
    let scene = Scene::new("on-delete").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let set = workload(&scene, "StatefulSet", "vault", "vault", true).await;
    let first = random(32);
    let spec = restarting(&scene, "vault", &first);
    stage.apply("one", &spec).await;
    stage.delivered("vault", &[("root", &first)]).await;
    for index in 0..3 {
        stage
            .pod(&format!("vault-{index}"), "vault", Some("vault"), Some(&set))
            .await;
    }
    stage
        .plane
        .patch(
            "Pod",
            &stage.namespace,
            "vault-0",
            &json!({"metadata": {"labels": {"vault-active": "true"}}}),
        )
        .await;
    counts(&scene, "one", [3, 3, 3]).await;
    a_second_later().await;
    // A budget that allows nothing: nobody goes.
    let mut budget = stage.object("policy/v1", "PodDisruptionBudget", "vault");
    budget["spec"] = json!({"maxUnavailable": 1, "selector": {"matchLabels": {"app": "vault"}}});
    let made = stage.plane.create(&budget).await;
    let allow = async |count: u32| {
        stage
            .plane
            .patch_status("PodDisruptionBudget", &stage.namespace, "vault", &json!({"observedGeneration": made["metadata"]["generation"],
                "disruptionsAllowed": count, "currentHealthy": 3, "desiredHealthy": 2, "expectedPods": 3, "disruptedPods": null}))
            .await;
    };
    allow(0).await;
    let second = random(32);
    stage.apply("one", &rewrapped(&scene, &spec, &second)).await;
    stage.delivered("vault", &[("root", &second)]).await;
    let config = eventually("blocked by the budget", async || {
        let config = stage.config("one").await;
        if condition(&config, "PodsCurrent")["reason"] == "RestartBlocked" {
            Ok(config)
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    println!("{}", condition(&config, "PodsCurrent")["message"]);
    assert_eq!(stage.plane.list("Pod", &stage.namespace).await.len(), 3);

    // One allowed at a time: standbys first, the active one last, each replaced and ready before the next.
    let mut order = Vec::new();
    for _ in 0..3 {
        allow(1).await;
        let gone =
            crate::support::plane::within(std::time::Duration::from_mins(2), "an eviction", async || {
                let pods = stage.plane.list("Pod", &stage.namespace).await;
                let there = |name: &String| {
                    pods.iter().any(|p| {
                        p["metadata"]["name"] == *name && p["metadata"].get("deletionTimestamp").is_none()
                    })
                };
                (0..3)
                    .map(|index| format!("vault-{index}"))
                    .find(|name| !there(name) && !order.contains(name))
                    .ok_or_else(|| format!("{order:?} so far"))
            })
            .await;
        order.push(gone.clone());
        allow(1).await;
        // Not one more, although the budget would allow it, before the replacement is ready.
        scene.deliver(&format!("clock-{gone}"), &random(32)).await;
        let living = stage
            .plane
            .list("Pod", &stage.namespace)
            .await
            .iter()
            .filter(|pod| pod["metadata"].get("deletionTimestamp").is_none())
            .count();
        assert_eq!(living, 2, "one at a time");
        stage.plane.delete("Pod", &stage.namespace, &gone).await;
        // The StatefulSet's controller makes it again; the kubelet starts it. This pod is made by hand, without the
        // counter that a real one takes from its template, so only a later second tells that it is new.
        a_second_later().await;
        stage.pod(&gone, "vault", Some("vault"), Some(&set)).await;
    }
    assert_eq!(
        order.last().map(String::as_str),
        Some("vault-0"),
        "the active one goes last: {order:?}"
    );
    counts(&scene, "one", [3, 3, 3]).await;
    stage.ready("one").await;
}
