//! Keys that others made: taken in from the clear, or brought wrapped under some seals and copied for the others.

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::{
    generated::Clouds,
    support::{
        drill::{Drill, NAME, header},
        kms::{Act, Context},
        plane::eventually,
        stage::{random, speaks_of_now},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_key_is_taken_in_once_and_its_source_may_go() {
    let clouds = Clouds::new("import").await;
    let drill = Drill::new(&clouds, "import").await;
    let (stage, namespace) = (&drill.stage, &drill.stage.namespace);
    let operator = drill.operator().start();
    // The shape of example 09, under two seals.
    let mut spec = drill.spec("q1");
    spec["keys"] = json!([{"name": "static", "import": {"secretKeyRef": {"name": "plain", "key": "key"}}}]);
    spec["targets"] = json!([{"name": "t", "secret": {"name": NAME}}]);
    stage.apply(NAME, &spec).await;
    let message = drill.told("SourceMissing").await;
    assert!(message.contains("plain"), "{message}");
    assert!(drill.store().await.is_empty());
    let bytes = random(48);
    stage.secret_of("plain", &[("other", &bytes)]).await;
    eventually("the entry is missed", async || {
        let message = drill.told("SourceMissing").await;
        message.contains("\"key\"").then_some(()).ok_or(message)
    })
    .await;
    stage.secret_of("plain", &[("key", &bytes)]).await;
    drill.at(1).await;
    stage.delivered(NAME, &[("static", &bytes)]).await;

    // The source goes; the Secret comes back from the store, also to a new operator.
    stage.plane.delete("Secret", namespace, "plain").await;
    stage.plane.delete("Secret", namespace, NAME).await;
    stage.delivered(NAME, &[("static", &bytes)]).await;
    operator.stop();
    stage.plane.delete("Secret", namespace, NAME).await;
    let operator = drill.operator().start();
    stage.delivered(NAME, &[("static", &bytes)]).await;
    drill.at(1).await;

    // Another key in its source is no other version: what was taken in stays.
    let store = drill.store().await;
    stage.secret_of("plain", &[("key", &random(48))]).await;
    operator.stop();
    let _operator = drill.operator().start();
    stage.plane.delete("Secret", namespace, NAME).await;
    stage.delivered(NAME, &[("static", &bytes)]).await;
    assert_eq!(drill.store().await, store);

    // Nor is it taken in anew when the store is lost while the Secret still holds it.
    drill.delete_store().await;
    eventually("a store again", async || {
        let section = drill.header().await["keys"]["static"]["section"].clone();
        (section["current"] == 1)
            .then_some(())
            .ok_or_else(|| format!("{section:#}"))
    })
    .await;
    drill.at(1).await;
    stage.delivered(NAME, &[("static", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_key_is_taken_in_without_a_word_that_lets_its_readers_test_guesses() {
    let clouds = Clouds::new("import-short").await;
    let drill = Drill::new(&clouds, "import-short").await;
    let stage = &drill.stage;
    let _operator = drill.operator().start();
    stage.secret_of("plain", &[("key", b"hunter2")]).await;
    let mut spec = drill.spec("q1");
    spec["keys"] = json!([{"name": "static", "import": {"secretKeyRef": {"name": "plain", "key": "key"}}}]);
    spec["targets"] = json!([{"name": "t", "secret": {"name": NAME}}]);
    stage.apply(NAME, &spec).await;
    drill.at(1).await;
    stage.delivered(NAME, &[("static", b"hunter2")]).await;
    let sealed = drill.header().await["keys"]["static"].clone();
    assert_eq!(sealed["mac"], Value::Null);
    assert_eq!(sealed["section"]["versions"]["1"]["checkValue"], Value::Null);
    stage.plane.delete("Secret", &stage.namespace, "plain").await;
    stage.plane.delete("Secret", &stage.namespace, NAME).await;
    stage.delivered(NAME, &[("static", b"hunter2")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brought_key_gets_a_copy_under_the_other_seal_that_is_used_while_it_matches() {
    let clouds = Clouds::new("brought").await;
    let drill = Drill::new(&clouds, "brought").await;
    let (stage, namespace) = (&drill.stage, &drill.stage.namespace);
    let key = clouds.kms.key();
    let brought = |bytes: &[u8]| {
        let ciphertext = clouds.kms.encrypt(&key, bytes, &Context::new());
        let mut spec = drill.spec("q1");
        spec["seals"][0]["awskms"]["kmsKeyID"] = json!(key.arn);
        spec["keys"] = json!([{"name": "static", "wrapped": [
            {"seal": "aws", "format": "kms", "inline": BASE64.encode(&ciphertext)}]}]);
        spec["targets"] = json!([{"name": "t", "secret": {"name": NAME}}]);
        spec
    };
    let section = async || drill.header().await["keys"]["static"]["section"].clone();
    let copied = async |version: u64| {
        eventually(&format!("copy of {version}"), async || {
            let section = section().await;
            let config = stage.config(NAME).await;
            let told = config["status"]["keys"][0]["wrappedUnder"] == json!(["aws", "oci"]);
            (section["current"] == version && told && speaks_of_now(&config))
                .then_some(())
                .ok_or_else(|| format!("{section:#} {:#}", config["status"]))
        })
        .await;
    };
    let operator = drill.operator().start();
    let first = random(32);
    let spec = brought(&first);
    stage.apply(NAME, &spec).await;
    copied(1).await;
    stage.delivered(NAME, &[("static", &first)]).await;
    let items: Vec<String> = drill.store().await.into_keys().collect();
    assert_eq!(
        items,
        ["header", "key.static.v1.oci"],
        "none under the seal that has one"
    );

    // The seal of the brought copy is gone: the other opens, to a new operator too.
    for operation in ["Decrypt", "DescribeKey", "Encrypt"] {
        clouds.kms.always(operation, Act::ServerFault);
    }
    operator.stop();
    stage.plane.delete("Secret", namespace, NAME).await;
    let operator = drill.operator().start();
    stage.delivered(NAME, &[("static", &first)]).await;

    // Another key is brought while its seal is down: the copy of the former is no stand-in for it.
    let second = random(32);
    let other = brought(&second);
    stage.apply(NAME, &other).await;
    stage.not_ready(NAME, "KMSUnavailable").await;
    stage.plane.delete("Secret", namespace, NAME).await;
    let looked = operator.metric("autounseal_reconcile_total", &[]);
    stage
        .apply("beside", &{
            let mut spec = drill.spec("q1");
            spec["keys"] = json!([]);
            spec["targets"] = json!([]);
            spec
        })
        .await;
    eventually("it has looked", async || {
        let now = operator.metric("autounseal_reconcile_total", &[]);
        (now > looked).then_some(()).ok_or_else(|| now.to_string())
    })
    .await;
    stage.not_ready(NAME, "KMSUnavailable").await;
    assert_eq!(stage.secret(NAME).await, None, "not the key before");
    clouds.kms.heal();
    stage.delivered(NAME, &[("static", &second)]).await;
    copied(2).await;

    // The same key in another copy: nothing is made anew.
    let items = drill.store().await;
    stage.apply(NAME, &brought(&second)).await;
    eventually("the new inputs are written down", async || {
        let now = header(&drill.store().await)["keys"]["static"]["section"]["inputs"].clone();
        let before = header(&items)["keys"]["static"]["section"]["inputs"].clone();
        (now != before).then_some(()).ok_or_else(|| now.to_string())
    })
    .await;
    copied(2).await;
    let now = drill.store().await;
    assert_eq!(now["key.static.v2.oci"], items["key.static.v2.oci"]);
    operator.stop();

    // A header that says that the copy of the first key were one of the second is not believed.
    drill
        .edit_header(|header| {
            header["keys"]["static"]["section"]["current"] = json!(1);
        })
        .await;
    for operation in ["Decrypt", "DescribeKey", "Encrypt"] {
        clouds.kms.always(operation, Act::ServerFault);
    }
    stage.plane.delete("Secret", namespace, NAME).await;
    let decrypts = clouds.oci.oci.count("crypto", "/decrypt");
    let _operator = drill.operator().start();
    drill.told("StoreCorrupt").await;
    assert!(
        clouds.oci.oci.count("crypto", "/decrypt") > decrypts,
        "it was opened"
    );
    assert_eq!(stage.secret(NAME).await, None, "the first key is not the second");
    clouds.kms.heal();
    stage.delivered(NAME, &[("static", &second)]).await;
    // Changed inputs make a copy anew, beside what is left of the others.
    stage.apply(NAME, &brought(&second)).await;
    copied(3).await;
}
