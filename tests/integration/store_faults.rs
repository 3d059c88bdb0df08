//! KMSes that are down, stores that somebody edits, seals that come and go.

use serde_json::{Value, json};

use crate::{
    generated::Clouds,
    support::{
        drill::{Data, Drill, NAME, STORE, header, sha256},
        kms::Act,
        operator::Running,
        plane::eventually,
        stage::{named, speaks_of_now},
    },
};

/// A drill at version 1 with a running operator, and what it delivered.
async fn made<'c>(clouds: &'c Clouds, name: &str) -> (Drill<'c>, Running, Data) {
    let drill = Drill::new(clouds, name).await;
    let operator = drill.operator().start();
    drill.apply("q1").await;
    let data = drill.at(1).await;
    (drill, operator, data)
}

fn aws_down(clouds: &Clouds) {
    for operation in ["Decrypt", "DescribeKey", "Encrypt"] {
        clouds.kms.always(operation, Act::ServerFault);
    }
}

fn oci_down(clouds: &Clouds) {
    for service in ["crypto", "management"] {
        let fault = json!({"service": service, "kind": "status", "status": 503, "times": -1});
        clouds.oci.oci.fault(&fault);
    }
}

fn heal(clouds: &Clouds) {
    clouds.kms.heal();
    clouds.oci.oci.clear_faults();
}

/// Waits until the status of the present spec says that these seals fail for that reason.
async fn failing(drill: &Drill<'_>, seals: &[&str], reason: &str) -> Value {
    eventually(&format!("{seals:?} fail"), async || {
        let config = drill.stage.config(NAME).await;
        let failing = seals
            .iter()
            .all(|seal| named(&config["status"]["seals"], seal)["reason"] == reason);
        (failing && speaks_of_now(&config))
            .then_some(config.clone())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await
}

async fn section(drill: &Drill<'_>) -> Value {
    drill.header().await["keys"]["static"]["section"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_both_kmses_down_the_last_good_secret_stays_and_each_seal_is_told() {
    let clouds = Clouds::new("both-down").await;
    let (drill, operator, first) = made(&clouds, "both-down").await;
    let store = drill.store().await;
    operator.stop();
    aws_down(&clouds);
    oci_down(&clouds);
    let _operator = drill.operator().start();
    drill.apply("q2").await;
    let config = failing(&drill, &["aws", "oci"], "KMSUnavailable").await;
    for seal in ["aws", "oci"] {
        let told = named(&config["status"]["seals"], seal);
        assert_eq!(told["state"], "Unhealthy");
        assert!(told["message"].as_str().unwrap().len() > 20, "{told}");
    }
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), first);
    assert_eq!(drill.store().await, store);
    heal(&clouds);
    let second = drill.at(2).await;
    assert_eq!(second["previous.key"], first["current.key"]);
    drill.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_of_one_kms_holds_a_rotation_up_and_makes_one_version_after_it() {
    let clouds = Clouds::new("partition").await;
    let (drill, _operator, first) = made(&clouds, "partition").await;
    oci_down(&clouds);
    drill.apply("q2").await;
    failing(&drill, &["oci"], "KMSUnavailable").await;
    // It goes on trying, and wraps under the other seal to no effect.
    let tries = clouds.kms.count("Encrypt");
    eventually("another try", async || {
        let now = clouds.kms.count("Encrypt");
        (now > tries).then_some(()).ok_or_else(|| now.to_string())
    })
    .await;
    let section_now = section(&drill).await;
    assert_eq!(section_now["versions"].as_object().unwrap().len(), 1);
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), first);
    heal(&clouds);
    let second = drill.at(2).await;
    assert_eq!(second["previous.key"], first["current.key"]);
    let section_now = section(&drill).await;
    assert_eq!(
        (&section_now["current"], &section_now["next"]),
        (&json!(2), &json!(3)),
        "{section_now:#}"
    );
    drill.holds().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_edited_or_deleted_is_made_anew_from_the_other_seals() {
    let clouds = Clouds::new("copy-edited").await;
    let (drill, _operator, first) = made(&clouds, "copy-edited").await;
    for (seal, is_deleted) in [("aws", false), ("oci", true)] {
        let mut data = drill.store().await;
        let item = format!("key.static.v1.{seal}");
        if is_deleted {
            data.remove(&item);
        } else {
            *data.get_mut(&item).unwrap().last_mut().unwrap() ^= 1;
        }
        drill.put_store(&data).await;
        eventually("the copy is whole", async || {
            let data = drill.store().await;
            let said = header(&data)["keys"]["static"]["section"]["versions"]["1"]["copies"][seal].clone();
            let whole = data
                .get(&item)
                .is_some_and(|bytes| said["digest"] == sha256(bytes));
            whole.then_some(()).ok_or_else(|| format!("{said:#}"))
        })
        .await;
        assert_eq!(drill.at(1).await, first);
    }
    // Each opens by itself.
    for seal in ["aws", "oci"] {
        if seal == "aws" {
            aws_down(&clouds);
        } else {
            oci_down(&clouds);
        }
        drill.comes_back(&first).await;
        heal(&clouds);
    }
}

/// What is edited in a section, and how.
type Edit = (&'static str, fn(&mut Value));

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_was_edited_is_told_and_not_obeyed() {
    let clouds = Clouds::new("header-edited").await;
    let (drill, operator, first) = made(&clouds, "header-edited").await;
    drill.apply("q2").await;
    let second = drill.at(2).await;
    let store = drill.store().await;
    let (plane, namespace) = (&drill.stage.plane, &drill.stage.namespace);
    // Each edit of one part; the last is seen by a new operator.
    let edits: [Edit; 8] = [
        ("current", |section| section["current"] = json!(1)),
        ("trigger", |section| section["trigger"] = json!("q1")),
        ("next", |section| section["next"] = json!(9)),
        ("exposed", |section| {
            section["versions"]["2"]["exposed"] = json!(["x"]);
        }),
        ("created", |section| {
            section["versions"]["2"]["created"] = json!("2020-01-01T00:00:00Z");
        }),
        ("counter", |section| section["counter"] = json!(99)),
        ("versions", |section| {
            section["versions"].as_object_mut().unwrap().remove("1");
        }),
        ("keyID", |section| {
            section["versions"]["2"]["copies"]["aws"]["configuredKeyID"] = json!("alias/other");
        }),
    ];
    for (what, edit) in edits {
        drill
            .edit_header(|header| edit(&mut header["keys"]["static"]["section"]))
            .await;
        let forged = drill.store().await;
        let message = drill.told("StoreCorrupt").await;
        assert!(message.contains(STORE), "{what}: {message}");
        assert_eq!(drill.stage.secret(NAME).await.unwrap(), second, "{what}");
        // It is not delivered from either.
        if what == "current" {
            plane.delete("Secret", namespace, NAME).await;
            drill.told("StoreCorrupt").await;
            assert_eq!(drill.stage.secret(NAME).await, None);
        }
        assert_eq!(drill.store().await, forged, "{what}: nothing is written over it");
        drill.put_store(&store).await;
        assert_eq!(drill.at(2).await, second, "{what}");
    }
    // Without authentication.
    drill
        .edit_header(|header| {
            header["keys"]["static"].as_object_mut().unwrap().remove("mac");
        })
        .await;
    drill.told("StoreCorrupt").await;
    operator.stop();
    let _operator = drill.operator().start();
    drill.told("StoreCorrupt").await;
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), second);
    drill.put_store(&store).await;
    drill.apply("q3").await;
    let third = drill.at(3).await;
    assert_eq!(third["previous.key"], second["current.key"]);
    assert_ne!(third["current.key"], first["current.key"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_another_type_in_the_stores_place_is_never_touched() {
    let clouds = Clouds::new("not-owned").await;
    let drill = Drill::new(&clouds, "not-owned").await;
    drill.stage.secret_of(STORE, &[("header", b"mine")]).await;
    let before = drill.stage.whole_secret(STORE).await;
    let _operator = drill.operator().start();
    drill.apply("q1").await;
    let message = drill.told("StoreNotOwned").await;
    assert!(message.contains(STORE), "{message}");
    assert_eq!(drill.stage.whole_secret(STORE).await, before);
    assert_eq!(drill.stage.secret(NAME).await, None);
    drill.delete_store().await;
    let first = drill.at(1).await;
    // Nor where a store was before.
    drill.delete_store().await;
    drill.stage.secret_of(STORE, &[("header", b"mine")]).await;
    drill.told("StoreNotOwned").await;
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), first);
    assert_eq!(drill.store().await["header"], b"mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_seal_opens_and_gets_nothing_new_and_one_that_is_gone_counts_until_the_rotation() {
    let clouds = Clouds::new("disabled").await;
    let (drill, _operator, first) = made(&clouds, "disabled").await;
    let status = async |expected: Value| {
        eventually(&format!("{expected}"), async || {
            let config = drill.stage.config(NAME).await;
            let key = config["status"]["keys"][0].clone();
            let fits = expected
                .as_object()
                .unwrap()
                .iter()
                .all(|(name, value)| key[name] == *value || (value.is_null() && key.get(name).is_none()));
            (fits && speaks_of_now(&config))
                .then_some(())
                .ok_or_else(|| format!("{:#}", config["status"]))
        })
        .await;
    };
    let mut spec = drill.spec("q1");
    spec["seals"][0]["disabled"] = json!(true);
    drill.stage.apply(NAME, &spec).await;
    // It still opens, alone.
    oci_down(&clouds);
    drill.comes_back(&first).await;
    heal(&clouds);
    let encrypts = clouds.kms.count("Encrypt");
    spec["keys"][0]["generate"]["rotation"]["trigger"] = json!("q2");
    drill.stage.apply(NAME, &spec).await;
    status(json!({"version": 2, "wrappedUnder": ["oci"], "exposedUnder": null})).await;
    assert_eq!(
        clouds.kms.count("Encrypt"),
        encrypts,
        "nothing new under a disabled seal"
    );
    assert_eq!(
        drill.stage.secret(NAME).await.unwrap()["previous.key"],
        first["current.key"]
    );

    // Enabled again it gets the copy that it missed, and gone it counts for the version that it opened.
    spec["seals"][0]["disabled"] = json!(false);
    drill.stage.apply(NAME, &spec).await;
    status(json!({"version": 2, "wrappedUnder": ["aws", "oci"], "exposedUnder": null})).await;
    let seals = spec["seals"].clone();
    spec["seals"] = json!([seals[1]]);
    drill.stage.apply(NAME, &spec).await;
    status(json!({"version": 2, "wrappedUnder": ["oci"], "exposedUnder": ["aws"]})).await;
    let record = section(&drill).await["versions"].clone();
    for version in ["1", "2"] {
        let former = record[version]["former"].as_object().unwrap();
        assert_eq!(former.len(), 1, "its copy is kept for the retention: {record:#}");
    }
    spec["keys"][0]["generate"]["rotation"]["trigger"] = json!("q3");
    drill.stage.apply(NAME, &spec).await;
    status(json!({"version": 3, "wrappedUnder": ["oci"], "exposedUnder": null})).await;
    let record = section(&drill).await["versions"].clone();
    assert_eq!(record["2"]["exposed"], json!(["aws"]));

    // Put back, its kept copies open again where nothing else does, and it gets its own of every version.
    spec["seals"] = seals;
    oci_down(&clouds);
    drill.stage.apply(NAME, &spec).await;
    failing(&drill, &["oci"], "KMSUnavailable").await;
    heal(&clouds);
    status(json!({"version": 3, "wrappedUnder": ["aws", "oci"]})).await;
    eventually("every version has a copy under it", async || {
        let record = section(&drill).await["versions"].clone();
        let all = ["1", "2", "3"]
            .iter()
            .all(|version| record[*version]["copies"]["aws"].is_object());
        all.then_some(()).ok_or_else(|| format!("{record:#}"))
    })
    .await;
}
