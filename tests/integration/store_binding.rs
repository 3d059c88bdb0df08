//! Drill 4 (security rule S2): a copy opens in its place only, and what does not open says so.

use autounseal::{
    seal::{
        KeyBytes,
        store::{Class, Place, Section},
    },
    wrapped::blob_info::BlobInfo,
};
use serde_json::{Value, json};

use crate::{
    generated::Clouds,
    support::{
        blob::bound_envelope,
        drill::{Data, Drill, NAME, STORE, encoded, header, sha256},
        kms::Context,
        plane::eventually,
        stage::{condition, named, random},
    },
};

/// A drill at version 2.
async fn rotated<'c>(clouds: &'c Clouds, name: &str) -> (Drill<'c>, Data) {
    let drill = Drill::new(clouds, name).await;
    let operator = drill.operator().start();
    drill.apply("q1").await;
    drill.at(1).await;
    drill.apply("q2").await;
    let data = drill.at(2).await;
    operator.stop();
    (drill, data)
}

/// Writes a store of that name.
async fn plant(drill: &Drill<'_>, name: &str, data: &Data) {
    let mut object = drill
        .stage
        .object("v1", "Secret", &format!("{name}.sealconfig.wrapped"));
    object["type"] = json!("autounseal.dev/wrapped");
    object["data"] = encoded(data);
    drill.stage.plane.create(&object).await;
}

/// What a store says, and the copies in it, once more for another key of the same SealConfig.
fn renamed(data: &Data, from: &str, to: &str) -> Data {
    let mut named = Data::new();
    for (item, bytes) in data {
        let rest = item.strip_prefix(&format!("key.{from}.")).map(ToOwned::to_owned);
        let item = rest.map_or_else(|| item.clone(), |rest| format!("key.{to}.{rest}"));
        named.insert(item, bytes.clone());
    }
    let mut header = header(data);
    let section = header["keys"].as_object_mut().unwrap().remove(from).unwrap();
    header["keys"][to] = section;
    named.insert("header".to_owned(), header.to_string().into_bytes());
    named
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_pasted_elsewhere_does_not_open_and_says_so() {
    let clouds = Clouds::new("binding").await;
    let (drill, delivered) = rotated(&clouds, "binding").await;
    let store = drill.store().await;

    // Another namespace, the same name.
    let elsewhere = Drill::new(&clouds, "binding").await;
    elsewhere.put_store(&store).await;
    let operator = elsewhere.operator().start();
    elsewhere.apply("q2").await;
    let message = elsewhere.told("ContextMismatch").await;
    assert!(message.contains("does not belong here"), "{message}");
    assert_eq!(elsewhere.stage.secret(NAME).await, None);
    assert_eq!(elsewhere.store().await, store, "nothing is written over it");
    operator.stop();

    // Another name, and another key, in the same namespace.
    let operator = drill.operator().start();
    plant(&drill, "other", &store).await;
    plant(&drill, "key", &renamed(&store, "static", "moved")).await;
    for name in ["other", "key"] {
        let mut spec = drill.spec("q2");
        spec["targets"][0]["secret"]["name"] = json!(name);
        if name == "key" {
            spec["keys"][0]["name"] = json!("moved");
            spec["targets"][0]["secret"]["data"] = json!([{"name": "current.key", "key": {"name": "moved"}}]);
        }
        drill.stage.apply(name, &spec).await;
        let message = drill.stage.not_ready(name, "ContextMismatch").await;
        assert!(message.contains("does not belong here"), "{message}");
        assert_eq!(drill.stage.secret(name).await, None, "{name}");
    }

    // Versions swapped, with the header to match: it was well before, and is told all the same.
    let mut swapped = store.clone();
    let mut said = header(&store);
    for seal in ["aws", "oci"] {
        let [one, two] = [1, 2].map(|version| format!("key.static.v{version}.{seal}"));
        swapped.insert(one.clone(), store[&two].clone());
        swapped.insert(two, store[&one].clone());
        let record = &mut said["keys"]["static"]["section"]["versions"];
        for version in ["1", "2"] {
            let item = &swapped[&format!("key.static.v{version}.{seal}")];
            record[version]["copies"][seal]["digest"] = json!(sha256(item));
        }
    }
    swapped.insert("header".to_owned(), said.to_string().into_bytes());
    drill.put_store(&swapped).await;
    let message = drill.told("ContextMismatch").await;
    assert!(message.contains("does not belong here"), "{message}");
    assert_eq!(drill.stage.secret(NAME).await.unwrap(), delivered);
    drill.put_store(&store).await;
    assert_eq!(drill.at(2).await, delivered);
    operator.stop();

    // Another cluster that shares the KMS keys: nothing that it stored opens here.
    let operator = drill.operator().flags(["--binding-domain", "other"]).start();
    drill
        .stage
        .plane
        .delete("Secret", &drill.stage.namespace, NAME)
        .await;
    let message = drill.told("ContextMismatch").await;
    assert!(message.contains("--binding-domain"), "{message}");
    assert_eq!(drill.stage.secret(NAME).await, None);
    operator.stop();
    let _operator = drill.operator().start();
    assert_eq!(drill.at(2).await, delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_key_of_a_stored_copy_is_not_opened_as_a_brought_one() {
    let clouds = Clouds::new("binding-kms").await;
    let (drill, _) = rotated(&clouds, "binding-kms").await;
    let store = drill.store().await;
    let _operator = drill.operator().start();
    let wrapped = |seal: &str| {
        let copy = BlobInfo::decode(&store[&format!("key.static.v2.{seal}")]).unwrap();
        copy.key_info.unwrap().wrapped_key
    };
    let inline = json!({
        "aws": data_encoding::BASE64.encode(&wrapped("aws")),
        // OCI's ciphertext is text already.
        "oci": String::from_utf8(wrapped("oci")).unwrap(),
    });
    let place = Place {
        domain: "autounseal",
        kind: "SealConfig",
        namespace: &drill.stage.namespace,
        name: NAME,
        class: Class::Key,
        item: "static",
        version: 2,
    };
    for seal in ["aws", "oci"] {
        let brought = |context: &Value| {
            let mut spec = drill.spec("q2");
            spec["keys"] = json!([{"name": "k", "wrapped": [
                {"seal": seal, "format": "kms", "context": context, "inline": inline[seal]}]}]);
            spec["targets"] = json!([{"name": "t", "secret": {"name": "stolen"}}]);
            spec
        };
        // The apiserver lets no context of ours in: not the whole one, and none of its names alone.
        let whole = json!(place.context());
        let mut refused = vec![whole.clone()];
        for (name, value) in place.context() {
            if name != "autounseal.dev/bound-namespace" {
                refused.push(json!({name: value}));
            }
        }
        for context in &refused {
            let object = drill.stage.seal_config("stolen", &brought(context));
            let refusal = drill.stage.plane.try_apply(&object).await.unwrap_err();
            assert_eq!(
                (refusal.code, refusal.reason.as_str()),
                (422, "Invalid"),
                "{context}"
            );
            assert!(refusal.message.contains("autounseal.dev/"), "{}", refusal.message);
        }
        // What it lets in does not open it.
        for (index, context) in [
            json!({}),
            json!({"autounseal.dev/bound-namespace": drill.stage.namespace}),
        ]
        .iter()
        .enumerate()
        {
            let name = format!("stolen-{seal}-{index}");
            drill.stage.apply(&name, &brought(context)).await;
            eventually("it does not open", async || {
                let config = drill.stage.config(&name).await;
                let ready = condition(&config, "Ready");
                let reason = ready["reason"].as_str().unwrap_or_default();
                let refused = ["ContextMismatch", "CiphertextInvalid"].contains(&reason);
                refused
                    .then_some(())
                    .ok_or_else(|| format!("{:#}", config["status"]))
            })
            .await;
            assert_eq!(drill.stage.secret("stolen").await, None);
        }
    }
}

/// Whoever may encrypt with the KMS key, write the store and knows a key can make a copy for any place; it opens in that
/// place only. (`expected`: whether it does.)
async fn forged(drill: &Drill<'_>, name: &str, place: Place<'_>, expected: bool) {
    let (bytes, data_key) = (random(32), random(32));
    let aws = drill.clouds.kms.key();
    let context: Context = place.context();
    let data_key: [u8; 32] = data_key.try_into().unwrap();
    let wrapped = drill.clouds.kms.encrypt(&aws, &data_key, &context);
    let copy = bound_envelope(&bytes, &data_key, &aws.arn, &wrapped, &place.aad());
    let check = autounseal::seal::check_value::check_value(
        &KeyBytes::new(bytes.clone()),
        &autounseal::seal::check_value::Binding {
            kind: "SealConfig",
            namespace: &drill.stage.namespace,
            name,
            key: "static",
        },
    );
    let section: Section = serde_json::from_value(json!({
        "source": "generated", "counter": 1, "current": 1, "next": 2, "trigger": "q1",
        "versions": {"1": {"created": "2026-01-01T00:00:00Z", "checkValue": check, "copies": {"aws": {
            "provider": "awskms", "keyID": aws.arn, "configuredKeyID": aws.arn,
            "made": "2026-01-01T00:00:00Z", "digest": sha256(&copy)}}}},
    }))
    .unwrap();
    let mac = section
        .mac(
            &KeyBytes::new(bytes.clone()),
            ["SealConfig", &drill.stage.namespace, name, "static"],
        )
        .unwrap();
    let said = json!({"format": 1, "counter": 1, "keys": {"static": {"section": section, "mac": mac}}});
    let store = Data::from([
        ("header".to_owned(), said.to_string().into_bytes()),
        ("key.static.v1.aws".to_owned(), copy),
    ]);
    plant(drill, name, &store).await;
    let mut spec = drill.spec("q1");
    let mut seal = named(&spec["seals"], "aws");
    seal["awskms"]["kmsKeyID"] = json!(aws.arn);
    spec["seals"] = json!([seal]);
    spec["targets"][0]["secret"]["name"] = json!(name);
    drill.stage.apply(name, &spec).await;
    if expected {
        drill.stage.ready(name).await;
        assert_eq!(drill.stage.secret(name).await.unwrap()["current.key"], bytes);
    } else {
        drill.stage.not_ready(name, "ContextMismatch").await;
        assert_eq!(drill.stage.secret(name).await, None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_another_kind_or_class_does_not_open_as_a_key() {
    let clouds = Clouds::new("binding-class").await;
    let drill = Drill::new(&clouds, "binding-class").await;
    let _operator = drill.operator().start();
    let right = |name: &'static str| Place {
        domain: "autounseal",
        kind: "SealConfig",
        namespace: &drill.stage.namespace,
        name,
        class: Class::Key,
        item: "static",
        version: 1,
    };
    forged(&drill, "right", right("right"), true).await;
    let others = [
        (
            "kind",
            Place {
                kind: "ManagedKey",
                ..right("kind")
            },
        ),
        (
            "share",
            Place {
                class: Class::UnsealShare,
                ..right("share")
            },
        ),
        (
            "recovery",
            Place {
                class: Class::RecoveryShare,
                ..right("recovery")
            },
        ),
        (
            "token",
            Place {
                class: Class::RootToken,
                ..right("token")
            },
        ),
        (
            "managed",
            Place {
                class: Class::Managed,
                ..right("managed")
            },
        ),
        (
            "version",
            Place {
                version: 2,
                ..right("version")
            },
        ),
        (
            "domain",
            Place {
                domain: "other",
                ..right("domain")
            },
        ),
    ];
    for (name, place) in others {
        forged(&drill, name, place, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_ignores_the_context_is_unfit_and_nothing_is_stored_under_it() {
    let clouds = Clouds::new("binding-unfit").await;
    let drill = Drill::new(&clouds, "binding-unfit").await;
    let careless = clouds.kms.key();
    clouds.kms.ignore_context(&careless);
    clouds.kms.alias("alias/root", &careless);
    let _operator = drill.operator().start();
    drill.apply("q1").await;
    let message = drill.told("ContextMismatch").await;
    assert!(
        message.contains("seal \"aws\"") && message.contains(&careless.arn),
        "{message}"
    );
    assert!(drill.store().await.is_empty(), "nothing is stored");
    assert_eq!(drill.stage.secret(NAME).await, None);
    // A fit one mends it.
    let fit = clouds.kms.key();
    let mut spec = drill.spec("q1");
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!(fit.arn);
    drill.stage.apply(NAME, &spec).await;
    drill.at(1).await;
    // Nor is one taken for a copy of a key that is well stored.
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!(careless.arn);
    drill.stage.apply(NAME, &spec).await;
    eventually("the seal is told unfit", async || {
        let config = drill.stage.config(NAME).await;
        let seal = named(&config["status"]["seals"], "aws");
        (seal["reason"] == "ContextMismatch")
            .then_some(())
            .ok_or_else(|| format!("{:#}", config["status"]))
    })
    .await;
    let record = drill.header().await["keys"]["static"]["section"]["versions"]["1"].clone();
    assert_eq!(record["copies"]["aws"]["keyID"], fit.arn);
    assert!(drill.stage.secret(STORE).await.is_some());
}
