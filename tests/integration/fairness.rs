//! One tenant does all that could slow others down, and the others are served (security rule S19).

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::support::{
    hostile::Hostile,
    kms::{Call, Context, Key, Kms},
    operator::Operator,
    plane::within,
    stage::{Stage, condition, random, simple},
};

/// SealConfigs of the hostile tenant whose KMS hangs; it has as many again of other kinds.
const HANGING: usize = 150;
/// Changes of the other tenant.
const CHANGES: usize = 20;
/// Longer than any of it takes on a slow machine.
const PATIENCE: Duration = Duration::from_mins(3);

/// Copies under this key that were sent to be opened.
fn opened(calls: &[Call], key: &Key) -> usize {
    let of = |call: &&Call| call.operation == "Decrypt" && key.wrapped(&call.ciphertext);
    calls.iter().filter(of).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_served_while_another_does_its_worst() {
    let (quiet, worse) = (Stage::new("quiet").await, Stage::new("hostile").await);
    let kms = Kms::start();
    let good = kms.key();
    let running = Operator::new()
        .flags([
            "--watch-namespaces",
            &format!("{},{}", quiet.namespace, worse.namespace),
        ])
        .env("AWS_ENDPOINT_URL_KMS", kms.url())
        .start();
    let moved_in = Instant::now();
    let hostile = Hostile::begin(worse, &kms, HANGING).await;
    within(PATIENCE, "the silent KMS is asked for its key", async || {
        let asked = opened(&kms.calls(), &hostile.silent);
        if asked > 0 { Ok(()) } else { Err(running.metrics()) }
    })
    .await;

    // Each change of the quiet tenant is delivered while the other goes on.
    for change in 0..CHANGES {
        let (name, bytes) = (format!("c-{}", change % 4), random(32));
        let copy = kms.encrypt(&good, &bytes, &Context::new());
        quiet.apply(&name, &simple(&good.arn, &copy, &name)).await;
        within(PATIENCE, &format!("change {change} of {name}"), async || {
            let data = quiet.secret(&name).await.unwrap_or_default();
            let delivered = data.get("root").is_some_and(|found| *found == bytes);
            delivered.then_some(()).ok_or_else(|| "not delivered".to_owned())
        })
        .await;
    }

    // The attack was going on all the while: nothing of it has become Ready, and all of it is told.
    within(PATIENCE, "every failing SealConfig says so", async || {
        let configs = hostile
            .stage
            .plane
            .list("SealConfig", &hostile.stage.namespace)
            .await;
        let failing = configs.iter().filter(|config| {
            let name = config["metadata"]["name"].as_str().unwrap_or_default();
            hostile.failing.iter().any(|failing| failing == name)
        });
        let mut reasons = BTreeSet::new();
        let mut silent = 0;
        for config in failing {
            let ready = condition(config, "Ready");
            assert_ne!(ready["status"], "True", "{config:#}");
            match ready["reason"].as_str() {
                Some(reason) => _ = reasons.insert(reason.to_owned()),
                None => silent += 1,
            }
        }
        let expected = ["KMSUnavailable", "ServiceAccountMissing", "Throttled"];
        if silent == 0 && expected.iter().all(|reason| reasons.contains(*reason)) {
            Ok(())
        } else {
            Err(format!("{silent} say nothing, the others {reasons:?}"))
        }
    })
    .await;
    within(PATIENCE, "the fight is told", async || {
        let config = hostile.stage.config("fought").await;
        let delivered = condition(&config, "SecretsDelivered");
        if delivered["reason"] == "SecretContested" {
            Ok(())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;

    // A source that changes fifty times a second is not opened as often: ten times at once, then once a second. Its turn
    // comes among the hundreds of its own namespace.
    within(PATIENCE, "the source that never rests is opened", async || {
        let times = opened(&kms.calls(), &hostile.busy);
        if times > 0 { Ok(()) } else { Err(running.metrics()) }
    })
    .await;
    let calls = kms.calls();
    let bound = 10 + usize::try_from(moved_in.elapsed().as_secs()).unwrap() + 2;
    let times = opened(&calls, &hostile.busy);
    assert!(
        times > 0 && times <= bound,
        "opened {times} times, {bound} allowed"
    );
    println!(
        "{} KMS calls in {:?}, {times} of them for the source that never rests",
        calls.len(),
        moved_in.elapsed()
    );
    assert_eq!(kms.malformed(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_change_is_not_held_up_and_the_last_is_never_lost() {
    let scene = crate::support::scene::Scene::new("debounced").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let mut spec = scene.deliver("one", &random(32)).await;
    spec["keys"][0]["wrapped"][0] =
        json!({"seal": "aws", "format": "kms", "secretKeyRef": {"name": "source", "key": "copy"}});
    let mut last = random(32);
    let write = async |bytes: &[u8]| {
        let copy = data_encoding::BASE64.encode(&scene.wrap(bytes));
        stage.secret_of("source", &[("copy", copy.as_bytes())]).await;
    };
    write(&last).await;
    stage.apply("one", &spec).await;
    stage.delivered("one", &[("root", &last)]).await;
    let (before, began) = (scene.kms.count("Decrypt"), Instant::now());
    for _ in 0..200 {
        last = random(32);
        write(&last).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stage.delivered("one", &[("root", &last)]).await;
    stage.ready("one").await;
    let opened = scene.kms.count("Decrypt") - before;
    let bound = 10 + usize::try_from(began.elapsed().as_secs()).unwrap() + 2;
    assert!(
        opened <= bound,
        "200 changes in {:?}: opened {opened} times",
        began.elapsed()
    );
}
