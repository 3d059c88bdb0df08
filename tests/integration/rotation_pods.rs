//! No rotation starts while a pod still runs the version before (`api.md`, meaning 5).

use serde_json::{Value, json};

use crate::{
    generated::Clouds,
    pods::a_second_later,
    support::{
        drill::{Drill, NAME},
        plane::eventually,
        stage::condition,
    },
};

/// Waits until PodsCurrent is False for this reason and gives back the message.
async fn told(drill: &Drill<'_>, reason: &str) -> String {
    eventually(reason, async || {
        let config = drill.stage.config(NAME).await;
        let pods = condition(&config, "PodsCurrent");
        if pods["status"] == "False" && pods["reason"] == reason {
            Ok(pods["message"].as_str().unwrap_or_default().to_owned())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_pods_that_run_the_version_before_and_for_no_others() {
    let clouds = Clouds::new("waits-for-pods").await;
    let drill = Drill::new(&clouds, "waits-for-pods").await;
    let stage = &drill.stage;
    let _operator = drill.operator().start();
    let spec = |trigger: &str, text: Option<&str>| -> Value {
        let mut spec = drill.spec(trigger);
        let target = &mut spec["targets"][0];
        target["podSelector"] = json!({"matchLabels": {"app": "bao"}});
        if let Some(text) = text {
            let entries = target["secret"]["data"].as_array_mut().unwrap();
            entries.push(json!({"name": "note", "template": text}));
        }
        spec
    };
    stage.apply(NAME, &spec("one", None)).await;
    drill.at(1).await;
    stage.pod("old", "bao", Some(NAME), None).await;
    a_second_later().await;
    stage.apply(NAME, &spec("two", None)).await;
    let second = drill.at(2).await;

    // Another rotation would leave that pod two versions behind.
    stage.apply(NAME, &spec("three", None)).await;
    let why = told(&drill, "RotationWaitingForPods").await;
    assert!(why.contains("pod old") && why.contains("restart it"), "{why}");
    let items = drill.store().await;
    assert!(
        !items.keys().any(|item| item.starts_with("key.static.v3")),
        "no third version"
    );
    assert_eq!(drill.at(2).await["current.key"], second["current.key"]);

    // Restarted: the rotation follows by itself.
    stage.plane.delete("Pod", &stage.namespace, "old").await;
    a_second_later().await;
    stage.pod("new", "bao", Some(NAME), None).await;
    let third = drill.at(3).await;
    assert_eq!(third["previous.key"], second["current.key"]);

    // A pod that is behind a text only runs the version in use.
    stage.plane.delete("Pod", &stage.namespace, "new").await;
    a_second_later().await;
    stage.pod("newer", "bao", Some(NAME), None).await;
    a_second_later().await;
    stage.apply(NAME, &spec("three", Some("hello"))).await;
    let why = told(&drill, "PodsOutdated").await;
    assert!(
        why.contains("newer") && why.contains("only a change of keys"),
        "{why}"
    );
    stage.apply(NAME, &spec("four", Some("hello"))).await;
    let fourth = drill.at(4).await;
    assert_eq!(fourth["previous.key"], third["current.key"]);
    assert_eq!(drill.header().await["keys"]["static"]["section"]["current"], 4);
}
