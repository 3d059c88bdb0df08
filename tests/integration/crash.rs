//! The operator is killed at random points; no Secret ever holds a wrong or partial value, and the end is right.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::support::{plane::within, scene::Scene, stage::random};

const ROUNDS: usize = 60;
const OBJECTS: usize = 6;

/// For each Secret, every set of entries that it may ever hold.
type Allowed = Arc<Mutex<HashMap<String, Vec<BTreeMap<String, Vec<u8>>>>>>;

/// Two keys and a text of both: a torn write would show.
fn spec(scene: &Scene, name: &str, allowed: &Allowed) -> (Value, BTreeMap<String, Vec<u8>>) {
    let (one, two) = (random(32), random(16));
    let mut spec = scene.spec(name, &one);
    spec["keys"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": "two", "wrapped": [
        {"seal": "aws", "format": "kms", "inline": data_encoding::BASE64.encode(&scene.wrap(&two))}]}));
    spec["targets"][0]["secret"]["deletionPolicy"] = json!("Delete");
    spec["targets"][0]["secret"]["data"] = json!([
        {"name": "one", "key": {"name": "root"}}, {"name": "two", "key": {"name": "two", "encoding": "hex"}},
        {"name": "both", "template": "{{ keys[\"root\"].hex }}:{{ keys[\"two\"].hex }}"},
    ]);
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let holds = BTreeMap::from([
        ("one".to_owned(), one.clone()),
        ("two".to_owned(), hex(&two).into_bytes()),
        (
            "both".to_owned(),
            format!("{}:{}", hex(&one), hex(&two)).into_bytes(),
        ),
    ]);
    // Known before the apiserver is: the watcher never sees a value that is not in the list.
    allowed
        .lock()
        .unwrap()
        .entry(name.to_owned())
        .or_default()
        .push(holds.clone());
    (spec, holds)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_points_the_operator_never_leaves_a_wrong_or_partial_secret() {
    let scene = Scene::new("crash").await;
    let stage = &scene.stage;
    let allowed: Allowed = Arc::default();
    let wrong: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::new(Mutex::new(0_usize));
    let watcher = tokio::spawn(watch(
        Api::namespaced(stage.plane.client(), &stage.namespace),
        allowed.clone(),
        wrong.clone(),
        seen.clone(),
    ));

    let mut expected: HashMap<String, BTreeMap<String, Vec<u8>>> = HashMap::new();
    for round in 0..ROUNDS {
        let name = format!("c{}", round % OBJECTS);
        // Created, changed four times, deleted, made again: the objects are out of step with each other.
        if round / OBJECTS % 5 == 4 {
            stage.plane.delete("SealConfig", &stage.namespace, &name).await;
            // No garbage collector runs here: what deletionPolicy Delete would take away goes by hand.
            stage.plane.delete("Secret", &stage.namespace, &name).await;
            expected.remove(&name);
        } else {
            let (spec, holds) = spec(&scene, &name, &allowed);
            stage.apply(&name, &spec).await;
            expected.insert(name, holds);
        }
        let running = scene.operator().spawn();
        // From before it is connected to after everything is done.
        let wait = u64::from(random(1)[0]) * 4 + u64::from(random(1)[0]);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        running.kill();
        assert_eq!(*wrong.lock().unwrap(), Vec::<String>::new(), "in round {round}");
    }

    let operator = scene.start();
    for (name, holds) in &expected {
        within(
            Duration::from_secs(90),
            &format!("{name} at the end"),
            async || {
                let data = stage.secret(name).await.unwrap_or_default();
                if data == *holds {
                    Ok(())
                } else {
                    Err(format!("{:#}", stage.config(name).await["status"]))
                }
            },
        )
        .await;
        stage.ready(name).await;
    }
    for index in 0..OBJECTS {
        let name = format!("c{index}");
        if !expected.contains_key(&name) {
            assert_eq!(stage.secret(&name).await, None, "{name} was deleted");
        }
    }
    operator.stop();
    watcher.abort();
    let seen = *seen.lock().unwrap();
    assert!(seen >= OBJECTS, "the watcher saw {seen} values");
    assert_eq!(*wrong.lock().unwrap(), Vec::<String>::new());
    println!(
        "{ROUNDS} rounds, {seen} values of Secrets seen, {} Decrypts",
        scene.kms.count("Decrypt")
    );
}

async fn watch(api: Api<Secret>, allowed: Allowed, wrong: Arc<Mutex<Vec<String>>>, seen: Arc<Mutex<usize>>) {
    let mut version = "0".to_owned();
    loop {
        let Ok(stream) = api.watch(&WatchParams::default(), &version).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut stream = stream.boxed();
        while let Ok(Some(event)) = stream.try_next().await {
            let (WatchEvent::Added(secret) | WatchEvent::Modified(secret)) = event else {
                continue;
            };
            version = secret.metadata.resource_version.clone().unwrap_or(version);
            let name = secret.metadata.name.unwrap_or_default();
            let data: BTreeMap<String, Vec<u8>> = secret
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, value)| (key, value.0))
                .collect();
            let allowed = allowed.lock().unwrap();
            let Some(values) = allowed.get(&name) else {
                continue;
            };
            *seen.lock().unwrap() += 1;
            if !values.contains(&data) {
                let shape: Vec<_> = data.iter().map(|(key, value)| (key, value.len())).collect();
                wrong.lock().unwrap().push(format!("{name}: {shape:?}"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_to_stop_while_it_starts_the_operator_ends() {
    let scene = Scene::new("crash-start").await;
    // From before its first list to after it; `stop` fails when the operator does not end.
    for wait in (0..400).step_by(25) {
        let running = scene.operator().spawn();
        crate::support::plane::eventually("it listens to signals", async || {
            let output = running.output();
            output.contains("serving").then_some(()).ok_or(output)
        })
        .await;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        running.stop();
    }
}
