//! Keys that the operator makes: wrapped under every enabled seal before anything uses them, rotated, opened by any seal.

use serde_json::{Value, json};

use crate::support::{
    kms::{Act, Key, Kms},
    oci_scene::OciScene,
    operator::Operator,
    plane::eventually,
    stage::named,
};

/// A key of AWS and one of OCI, as in example 04.
pub struct Clouds {
    /// The OCI side, and the stage.
    pub oci: OciScene,
    /// The AWS side.
    pub kms: Kms,
}

impl Clouds {
    pub async fn new(name: &str) -> Self {
        let oci = OciScene::new(name).await;
        oci.stage
            .credentials("aws", "AKIAINTEGRATIONTEST0", "integration-secret")
            .await;
        let kms = Kms::start();
        let key = kms.key();
        kms.alias("alias/root", &key);
        Self { oci, kms }
    }

    pub fn operator(&self) -> Operator {
        self.oci.operator().env("AWS_ENDPOINT_URL_KMS", self.kms.url())
    }

    #[allow(clippy::unused_self)] // beside `oci_seal`, which needs it
    pub fn aws_seal(&self) -> Value {
        json!({"name": "aws", "priority": 10, "awskms": {
            "kmsKeyID": "alias/root", "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}})
    }

    pub fn oci_seal(&self) -> Value {
        let mut seal = self.oci.spec("x", b"x")["seals"][0].clone();
        seal["priority"] = json!(20);
        seal
    }

    /// One generated key under both, delivered with the version before it.
    pub fn spec(&self, secret: &str) -> Value {
        json!({
            "controllerClass": self.oci.spec("x", b"x")["controllerClass"],
            "seals": [self.aws_seal(), self.oci_seal()],
            "keys": [{"name": "static", "purpose": "static", "generate": {"bytes": 32}}],
            "targets": [{"name": "t", "secret": {"name": secret, "data": [
                {"name": "current.key", "key": {"name": "static"}},
                {"name": "previous.key", "key": {"name": "static", "version": "previous"}},
                {"name": "id", "template": "{{ keys[\"static\"].id }}"},
            ]}}],
        })
    }

    /// The delivered entries, once status says that version.
    pub async fn at_version(&self, name: &str, version: u64) -> std::collections::BTreeMap<String, Vec<u8>> {
        let stage = &self.oci.stage;
        stage
            .status_where(name, &format!("version {version} of {name}"), |status| {
                let key = &status["keys"][0];
                key["version"] == version && key["wrappedUnder"] == json!(["aws", "oci"])
            })
            .await;
        stage.ready(name).await;
        stage.secret(name).await.unwrap_or_default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_once_rotated_by_the_trigger_and_outlives_its_seal_config() {
    let clouds = Clouds::new("generate").await;
    let stage = &clouds.oci.stage;
    let operator = clouds.operator().start();
    let mut spec = clouds.spec("bao");
    stage.apply("bao", &spec).await;
    let first = clouds.at_version("bao", 1).await;
    assert_eq!(first["current.key"].len(), 32);
    assert!(!first.contains_key("previous.key"), "there is none yet");
    let store = stage.whole_secret("bao.sealconfig.wrapped").await;
    assert_eq!(store["type"], "autounseal.dev/wrapped");
    assert!(store["metadata"].get("ownerReferences").is_none());
    let items: Vec<&str> = store["data"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(items, ["header", "key.static.v1.aws", "key.static.v1.oci"]);

    // Nothing changes: no call.
    let calls = clouds.kms.calls().len();
    stage
        .plane
        .patch(
            "SealConfig",
            &stage.namespace,
            "bao",
            &json!({"metadata": {"annotations": {"example.com/touched": "1"}}}),
        )
        .await;

    // The first value of a trigger makes no version; each change makes exactly one.
    spec["keys"][0]["generate"]["rotation"] = json!({"trigger": "q1"});
    stage.apply("bao", &spec).await;
    eventually("the trigger is written down", async || {
        let header = clouds.header("bao").await;
        let section = &header["keys"]["static"]["section"];
        if section["trigger"] == "q1" {
            Ok(())
        } else {
            Err(format!("{header:#}"))
        }
    })
    .await;
    assert_eq!(
        clouds.at_version("bao", 1).await["current.key"],
        first["current.key"]
    );
    assert_eq!(
        clouds.kms.calls().len(),
        calls + 1,
        "one Decrypt, to write it under the key"
    );
    spec["keys"][0]["generate"]["rotation"] = json!({"trigger": "q2"});
    stage.apply("bao", &spec).await;
    let second = clouds.at_version("bao", 2).await;
    assert_ne!(second["current.key"], first["current.key"]);
    assert_eq!(second["previous.key"], first["current.key"]);
    assert_ne!(second["id"], first["id"]);

    // A successor of the same name takes the versions up again.
    stage.plane.delete("SealConfig", &stage.namespace, "bao").await;
    stage.plane.delete("Secret", &stage.namespace, "bao").await;
    stage.apply("bao", &spec).await;
    let again = clouds.at_version("bao", 2).await;
    assert_eq!(again, second);

    // Restarts cost no call.
    operator.stop();
    let calls = (clouds.kms.calls().len(), clouds.oci.oci.log().len());
    let operator = clouds.operator().start();
    eventually("the new operator has looked", async || {
        let seen = operator.metric("autounseal_reconcile_total", &[]);
        if seen >= 1.0 {
            Ok(())
        } else {
            Err(operator.metrics())
        }
    })
    .await;
    assert_eq!((clouds.kms.calls().len(), clouds.oci.oci.log().len()), calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_seal_opens_and_a_seal_that_is_silent_delays_nothing() {
    let clouds = Clouds::new("any-seal").await;
    let stage = &clouds.oci.stage;
    let _operator = clouds.operator().start();
    // A key is not used before every enabled seal holds it.
    clouds.kms.always("Encrypt", Act::ServerFault);
    stage.apply("bao", &clouds.spec("bao")).await;
    let message = stage.not_ready("bao", "KMSUnavailable").await;
    assert!(message.contains("seal \"aws\""), "{message}");
    assert_eq!(stage.secret("bao").await, None);
    assert_eq!(stage.secret("bao.sealconfig.wrapped").await, None);
    clouds.kms.heal();
    let made = clouds.at_version("bao", 1).await;

    // AWS hangs for good: the Secret that somebody deleted comes back through OCI.
    for operation in ["Decrypt", "DescribeKey", "Encrypt"] {
        clouds.kms.always(operation, Act::Hang);
    }
    stage.plane.delete("Secret", &stage.namespace, "bao").await;
    stage
        .delivered(
            "bao",
            &[("current.key", &made["current.key"]), ("id", &made["id"])],
        )
        .await;
    clouds.kms.heal();

    // AWS comes back as another key: the copy under it is made anew, without a human.
    let fresh = clouds.kms.key();
    clouds.kms.alias("alias/root", &fresh);
    let mut spec = clouds.spec("bao");
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!(fresh.arn);
    stage.apply("bao", &spec).await;
    eventually("the copy under the new key, and the word on it", async || {
        let header = clouds.header("bao").await;
        let record = &header["keys"]["static"]["section"]["versions"]["1"];
        let status = stage.config("bao").await["status"].clone();
        let moved = record["copies"]["aws"]["keyID"] == fresh.arn
            && record["former"].as_object().is_some_and(|f| f.len() == 1)
            && named(&status["seals"], "aws")["keyID"] == fresh.arn;
        if moved {
            Ok(())
        } else {
            Err(format!("{header:#} {status:#}"))
        }
    })
    .await;
    assert_eq!(stage.secret("bao").await.unwrap(), made);
}

impl Clouds {
    async fn header(&self, name: &str) -> Value {
        let store = self.oci.stage.secret(&format!("{name}.sealconfig.wrapped")).await;
        serde_json::from_slice(&store.unwrap()["header"]).unwrap()
    }

    /// What the store says of the copy of version 1 under a seal.
    async fn copy(&self, name: &str, seal: &str) -> Value {
        self.header(name).await["keys"]["static"]["section"]["versions"]["1"]["copies"][seal].clone()
    }

    async fn eventually_copy(&self, what: &str, name: &str, seal: &str, fits: impl Fn(&Value) -> bool) {
        eventually(what, async || {
            let copy = self.copy(name, seal).await;
            if fits(&copy) {
                Ok(())
            } else {
                Err(format!(
                    "{copy:#} {:#}",
                    self.oci.stage.config(name).await["status"]
                ))
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_in_the_kms_and_a_moved_alias_are_noticed_and_wrapped_anew() {
    let clouds = Clouds::new("kms-rotates").await;
    let stage = &clouds.oci.stage;
    let operator = clouds.operator().start();
    stage.apply("bao", &clouds.spec("bao")).await;
    let made = clouds.at_version("bao", 1).await;
    let before = [clouds.copy("bao", "aws").await, clouds.copy("bao", "oci").await];
    let delivered = stage.whole_secret("bao").await["metadata"]["resourceVersion"].clone();
    operator.stop();

    // An hour later both keys have a new version.
    let arn = before[0]["keyID"].as_str().unwrap().to_owned();
    let key = Key {
        id: arn.split('/').nth(1).unwrap().to_owned(),
        arn,
    };
    clouds.kms.rotate(&key);
    clouds.oci.oci.rotate(&clouds.oci.key);
    let an_hour_ago = async || {
        let mut status = stage.config("bao").await["status"].clone();
        for seal in status["seals"].as_array_mut().unwrap() {
            seal["lastProbeTime"] = json!("2026-01-01T00:00:00Z");
        }
        stage
            .plane
            .patch_status("SealConfig", &stage.namespace, "bao", &status)
            .await;
    };
    an_hour_ago().await;
    let operator = clouds.operator().start();
    for (seal, before) in ["aws", "oci"].into_iter().zip(&before) {
        clouds
            .eventually_copy("a copy under the new version", "bao", seal, |copy| {
                copy["keyID"] == before["keyID"] && copy["keyVersion"] != before["keyVersion"]
            })
            .await;
    }
    operator.stop();

    // The alias moves to another key.
    let other = clouds.kms.key();
    clouds.kms.alias("alias/root", &other);
    an_hour_ago().await;
    let _operator = clouds.operator().start();
    clouds
        .eventually_copy("a copy under the other key", "bao", "aws", |copy| {
            copy["keyID"] == other.arn
        })
        .await;
    let config = stage.ready("bao").await;
    assert_eq!(named(&config["status"]["seals"], "aws")["keyID"], other.arn);
    assert!(named(&config["status"]["seals"], "oci")["keyVersion"].is_string());
    assert_eq!(
        clouds.header("bao").await["keys"]["static"]["section"]["versions"]["1"]["former"]
            .as_object()
            .unwrap()
            .len(),
        3
    );
    let secret = stage.whole_secret("bao").await;
    assert_eq!(
        secret["metadata"]["resourceVersion"], delivered,
        "the key is the same"
    );
    assert_eq!(stage.secret("bao").await.unwrap(), made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_from_cloud_to_cloud_is_unseen_by_readers() {
    let clouds = Clouds::new("migrate").await;
    let stage = &clouds.oci.stage;
    let _operator = clouds.operator().start();
    let mut spec = clouds.spec("bao");
    spec["seals"] = json!([clouds.aws_seal()]);
    stage.apply("bao", &spec).await;
    let config = stage.ready("bao").await;
    assert_eq!(config["status"]["keys"][0]["wrappedUnder"], json!(["aws"]));
    let made = stage.secret("bao").await.unwrap();
    let version = stage.whole_secret("bao").await["metadata"]["resourceVersion"].clone();

    // Readers all the time: never a wrong value, never none.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let reader = {
        let (plane, namespace) = (
            crate::support::plane::Plane::connect().await,
            stage.namespace.clone(),
        );
        let expected = version.clone();
        tokio::spawn(async move {
            let mut reads = 0_usize;
            while !*stopped.borrow() {
                let secret = plane
                    .get("Secret", &namespace, "bao")
                    .await
                    .expect("a missing read");
                assert_eq!(secret["metadata"]["resourceVersion"], expected);
                reads += 1;
            }
            reads
        })
    };
    let wrapped_under = async |expected: Value| {
        stage
            .status_where("bao", &format!("wrapped under {expected}"), |status| {
                status["keys"][0]["wrappedUnder"] == expected
            })
            .await;
    };
    spec["seals"] = json!([clouds.aws_seal(), clouds.oci_seal()]);
    stage.apply("bao", &spec).await;
    wrapped_under(json!(["aws", "oci"])).await;
    spec["seals"][0]["disabled"] = json!(true);
    stage.apply("bao", &spec).await;
    stage.ready("bao").await;
    spec["seals"] = json!([clouds.oci_seal()]);
    stage.apply("bao", &spec).await;
    wrapped_under(json!(["oci"])).await;
    stage.ready("bao").await;
    stage
        .status_where("bao", "the old seal is told as exposure", |status| {
            status["keys"][0]["exposedUnder"] == json!(["aws"])
        })
        .await;
    stop.send(true).unwrap();
    let reads = reader.await.unwrap();
    assert!(reads > 10, "{reads} reads");

    // AWS is gone; the key comes from OCI alone.
    clouds.kms.always("Decrypt", Act::error(400, "NotFoundException"));
    stage.plane.delete("Secret", &stage.namespace, "bao").await;
    stage
        .delivered(
            "bao",
            &[("current.key", &made["current.key"]), ("id", &made["id"])],
        )
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_seal_that_opens_a_key_cannot_be_taken_out() {
    let clouds = Clouds::new("last-seal").await;
    let stage = &clouds.oci.stage;
    let _operator = clouds.operator().start();
    let mut spec = clouds.spec("bao");
    spec["seals"] = json!([clouds.aws_seal()]);
    stage.apply("bao", &spec).await;
    stage.ready("bao").await;
    let (made, store) = (
        stage.whole_secret("bao").await,
        stage.whole_secret("bao.sealconfig.wrapped").await,
    );
    spec["seals"] = json!([clouds.oci_seal()]);
    stage.apply("bao", &spec).await;
    let message = stage.not_ready("bao", "LastSealRemoved").await;
    assert!(message.contains("aws"), "{message}");
    assert_eq!(stage.whole_secret("bao").await, made);
    assert_eq!(stage.whole_secret("bao.sealconfig.wrapped").await, store);
    spec["seals"] = json!([clouds.oci_seal(), clouds.aws_seal()]);
    stage.apply("bao", &spec).await;
    clouds.at_version("bao", 1).await;
    assert_eq!(stage.whole_secret("bao").await, made);
}
