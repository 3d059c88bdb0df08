//! The main job: a wrapped key in a SealConfig becomes the Secret that the pods read.

use std::process::Command;

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use crate::support::{
    blob::{blob_info, blob_info_without_key_info, envelope},
    kms::{Act, Context, Kms},
    moto::Moto,
    plane::{Plane, eventually},
    stage::{Stage, condition, named, random, repository, simple},
    sts::Sts,
};

fn example(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(repository("examples").join(file)).unwrap();
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect()
}

fn kubectl(arguments: &[&str]) -> (bool, String) {
    let program =
        std::env::var("AUTOUNSEAL_KUBECTL").expect("AUTOUNSEAL_KUBECTL is set by cargo xtask cluster");
    let output = Command::new(program).args(arguments).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

/// The namespace of example 01, made once by whoever comes first.
async fn billing(plane: &Plane) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "billing"}});
    plane.apply(&namespace).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn example_01_brings_a_key_wrapped_with_the_aws_command_line_to_the_applications_pods() {
    let stage = Stage::at("billing").await;
    billing(&stage.plane).await;
    let moto = Moto::of_cluster("eu-west-1");
    let arn = moto.key().await;
    moto.alias("alias/billing-root", &arn).await;
    let key = random(32);
    let ciphertext = moto.encrypt("alias/billing-root", &key, &Context::new()).await;

    let mut account = stage.object("v1", "ServiceAccount", "billing");
    account["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/billing"});
    stage.plane.apply(&account).await;
    stage
        .pod("billing-0", "billing", Some("billing-master-key"), None)
        .await;

    // Left over when the tests run twice on one control plane.
    stage.plane.delete("SealConfig", "billing", "billing").await;
    stage
        .plane
        .delete("Secret", "billing", "billing-master-key")
        .await;
    let operator = stage.operator().start();
    let mut manifest = example("01-app-root-key-aws.yaml").remove(0);
    // The one thing that the example asks the reader to replace.
    manifest["spec"]["keys"][0]["wrapped"][0]["inline"] = json!(BASE64.encode(&ciphertext));
    stage.plane.apply(&manifest).await;

    let template = format!("master_key = \"{}\"\n", BASE64.encode(&key));
    stage
        .delivered(
            "billing-master-key",
            &[("master.key", &key), ("settings.toml", template.as_bytes())],
        )
        .await;
    let secret = stage.whole_secret("billing-master-key").await;
    assert_eq!(secret["type"], "Opaque");
    assert!(
        secret["metadata"].get("ownerReferences").is_none(),
        "Retain is the default"
    );

    // The pod started before the delivery: Ready waits for it to be restarted by whoever owns it.
    eventually("pods counted", async || {
        let config = stage.config("billing").await;
        let pods = named(&config["status"]["targets"], "app")["pods"].clone();
        if pods["selected"] == 1 && pods["using"] == 1 {
            Ok(())
        } else {
            Err(format!("{config:#}"))
        }
    })
    .await;
    stage.plane.delete("Pod", "billing", "billing-0").await;
    let config = stage.ready("billing").await;
    let status = &config["status"];
    let seal = named(&status["seals"], "aws");
    assert_eq!(seal["provider"], "awskms");
    assert_eq!(seal["keyID"], arn, "the alias is resolved");
    assert_eq!(seal["credentialSource"], "irsa");
    assert_eq!(seal["state"], "Healthy");
    let role = seal["identity"].as_str().unwrap_or_default();
    assert!(role.contains("billing"), "the role is named: {role}");
    let named_key = named(&status["keys"], "master");
    assert_eq!(named_key["version"], 1);
    assert_eq!(named_key["openedBy"], "aws");
    assert_eq!(named_key["wrappedUnder"], json!(["aws"]));
    assert!(named_key["consumerKeyID"].is_string());
    let target = named(&status["targets"], "app");
    assert_eq!(target["secret"], "billing-master-key");
    assert_eq!(target["resourceVersion"], secret["metadata"]["resourceVersion"]);
    assert!(target["inputsDigest"].is_string() && target["deliveredTime"].is_string());
    for kind in ["Ready", "SealsHealthy", "KeysUnwrapped", "SecretsDelivered"] {
        let condition = condition(&config, kind);
        assert_eq!(condition["status"], "True", "{kind}: {condition}");
        assert_eq!(condition["observedGeneration"], config["metadata"]["generation"]);
        assert!(condition["message"].as_str().is_some_and(|m| !m.is_empty()));
    }
    assert_ne!(condition(&config, "Stalled")["status"], "True");
    assert_eq!(status["summary"]["seals"], "1/1");
    assert_eq!(status["summary"]["keys"], "1");
    eventually("an event tells of the delivery", async || {
        let events = stage.events("billing").await;
        if events.iter().any(|e| e.starts_with("Normal ")) {
            Ok(())
        } else {
            Err(format!("{events:?}"))
        }
    })
    .await;

    let (well, table) = kubectl(&["-n", "billing", "get", "seal", "billing"]);
    assert!(well, "{table}");
    let mut lines = table.lines();
    let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    let row: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "READY", "REASON", "SEALS", "KEYS", "PODS", "AGE"]);
    assert_eq!(&row[..5], ["billing", "True", "Ready", "1/1", "1"]);
    let (well, said) = kubectl(&[
        "-n",
        "billing",
        "wait",
        "--for=condition=Ready",
        "seal/billing",
        "--timeout=10s",
    ]);
    assert!(well, "{said}");
    let (well, said) = kubectl(&["-n", "billing", "get", "autounseal"]);
    assert!(well && said.contains("billing"), "the category: {said}");
    operator.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_accounts_token_is_exchanged_for_its_own_role_and_cached() {
    let stage = Stage::new("irsa").await;
    let (kms, sts) = (Kms::start(), Sts::start());
    let key = kms.key();
    let _operator = stage
        .operator_of(&kms)
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .start();
    let mut account = stage.object("v1", "ServiceAccount", "app");
    account["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
    stage.plane.apply(&account).await;
    let secret = random(32);
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "one");
    spec["seals"][0]["awskms"]["credentials"] = json!({"serviceAccountRef": {"name": "app"}});
    stage.apply("one", &spec).await;
    spec["targets"][0]["secret"]["name"] = json!("two");
    stage.apply("two", &spec).await;
    stage.delivered("one", &[("root", &secret)]).await;
    stage.delivered("two", &[("root", &secret)]).await;
    stage.ready("two").await;

    let calls = sts.calls();
    assert_eq!(
        calls.len(),
        1,
        "one exchange serves both: {:?}",
        calls.iter().map(|c| &c.action).collect::<Vec<_>>()
    );
    let call = &calls[0];
    assert_eq!(call.action, "AssumeRoleWithWebIdentity");
    assert!(!call.signed, "web identity calls are not signed");
    assert_eq!(call.field("RoleArn"), Some("arn:aws:iam::123456789012:role/app"));
    let session = call.field("RoleSessionName").unwrap();
    assert!(
        (2..=64).contains(&session.len()) && session.contains(&stage.namespace),
        "CloudTrail tells the tenant: {session}"
    );
    let claims = call.claims();
    assert_eq!(
        claims["sub"],
        format!("system:serviceaccount:{}:app", stage.namespace)
    );
    assert_eq!(claims["aud"], json!(["sts.amazonaws.com"]));
    let issued = call.issued.clone().unwrap();
    assert!(kms.calls().iter().all(|c| c.access_key_id == issued.access_key_id
        && c.session_token.as_deref() == Some(issued.session_token.as_str())));
    // The apiserver itself says that the token is genuine, and that it is none for the apiserver.
    let token = call.field("WebIdentityToken").unwrap();
    for (audiences, genuine) in [(json!(["sts.amazonaws.com"]), true), (json!([]), false)] {
        let review = stage
            .plane
            .create(
                &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "spec": {"token": token, "audiences": audiences}}),
            )
            .await;
        assert_eq!(
            review["status"]["authenticated"].as_bool().unwrap_or_default(),
            genuine,
            "{}",
            review["status"]
        );
    }
    assert_eq!(kms.malformed(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_accounts_audience_annotation_and_the_seals_role_win() {
    let stage = Stage::new("irsa-aud").await;
    let (kms, sts) = (Kms::start(), Sts::start());
    let key = kms.key();
    let _operator = stage
        .operator_of(&kms)
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .start();
    let mut account = stage.object("v1", "ServiceAccount", "app");
    account["metadata"]["annotations"] = json!({"eks.amazonaws.com/audience": "sts.amazonaws.com.cn"});
    stage.plane.apply(&account).await;
    let secret = random(32);
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "out");
    spec["seals"][0]["awskms"]["credentials"] =
        json!({"serviceAccountRef": {"name": "app", "roleARN": "arn:aws:iam::123456789012:role/path/other"}});
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    let calls = sts.calls();
    assert_eq!(
        calls[0].field("RoleArn"),
        Some("arn:aws:iam::123456789012:role/path/other")
    );
    assert_eq!(calls[0].claims()["aud"], json!(["sts.amazonaws.com.cn"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn static_credentials_of_a_secret_open_a_key_by_arn_alias_alias_arn_and_bare_id() {
    let stage = Stage::new("names").await;
    let moto = Moto::of_cluster("us-east-1");
    let arn = moto.key().await;
    let alias = format!("alias/{}", stage.namespace);
    moto.alias(&alias, &arn).await;
    let id = arn.rsplit('/').next().unwrap();
    let alias_arn = arn.replace(&format!("key/{id}"), &alias);
    let _operator = stage.operator().start();
    for (name, key_id) in [
        ("arn", arn.as_str()),
        ("alias", &alias),
        ("alias-arn", &alias_arn),
        ("id", id),
    ] {
        let secret = random(32);
        let ciphertext = moto.encrypt(&arn, &secret, &Context::new()).await;
        stage.apply(name, &simple(key_id, &ciphertext, name)).await;
        stage.delivered(name, &[("root", &secret)]).await;
        let config = stage.ready(name).await;
        let seal = named(&config["status"]["seals"], "aws");
        assert_eq!(seal["keyID"], arn, "{name}");
        assert_eq!(seal["credentialSource"], "secret");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_region_comes_from_the_arn_or_else_from_the_operators_environment() {
    let stage = Stage::new("region").await;
    let kms = Kms::start();
    let _operator = stage.operator_of(&kms).env("AWS_REGION", "ap-south-1").start();
    for (name, region, by_arn) in [("arn", "eu-central-1", true), ("env", "ap-south-1", false)] {
        let key = kms.key_in(region, "123456789012");
        let secret = random(32);
        let ciphertext = kms.encrypt(&key, &secret, &Context::new());
        let mut spec = simple(if by_arn { &key.arn } else { &key.id }, &ciphertext, name);
        spec["seals"][0]["awskms"]
            .as_object_mut()
            .unwrap()
            .remove("region");
        stage.apply(name, &spec).await;
        stage.delivered(name, &[("root", &secret)]).await;
        assert!(
            kms.calls().iter().any(|call| call.region == region),
            "{name} is signed for {region}"
        );
    }
    // A region beside an ARN of another one is a contradiction.
    let key = kms.key_in("eu-central-1", "123456789012");
    let spec = simple(&key.arn, &kms.encrypt(&key, b"x", &Context::new()), "mismatch");
    let before = kms.calls().len();
    stage.apply("mismatch", &spec).await;
    stage.not_ready("mismatch", "RegionMismatch").await;
    assert_eq!(kms.calls().len(), before, "no call for a contradiction");
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_entries_of_other_names_and_a_session_token_are_used() {
    let stage = Stage::new("secretref").await;
    let kms = Kms::start();
    let key = kms.key();
    stage
        .secret_of(
            "odd",
            &[
                ("id", b"ASIAODDNAMES00000000".as_slice()),
                ("sec", b"s3cret"),
                ("tok", b"session-token"),
            ],
        )
        .await;
    let secret = random(32);
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "out");
    spec["seals"][0]["awskms"]["credentials"] = json!({"secretRef": {
        "name": "odd", "accessKeyIDKey": "id", "secretAccessKeyKey": "sec", "sessionTokenKey": "tok"}});
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    for call in kms.calls() {
        assert_eq!(call.access_key_id, "ASIAODDNAMES00000000");
        assert_eq!(call.session_token.as_deref(), Some("session-token"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_assumed_on_top_of_the_tenants_credentials_with_its_external_id() {
    let stage = Stage::new("assume").await;
    let (kms, sts) = (Kms::start(), Sts::start());
    let key = kms.key();
    let secret = random(32);
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "out");
    spec["seals"][0]["awskms"]["assumeRole"] = json!({
        "roleARN": "arn:aws:iam::210987654321:role/unseal", "externalID": "4711", "sessionName": "mine"});
    let _operator = stage
        .operator_of(&kms)
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .start();
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    let config = stage.ready("one").await;
    let calls = sts.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].action, "AssumeRole");
    assert!(calls[0].signed);
    let signed = calls[0]
        .headers
        .iter()
        .find(|(name, _)| name == "authorization")
        .unwrap();
    assert!(
        signed.1.contains("Credential=AKIAINTEGRATIONTEST0/"),
        "signed by the tenant's own credentials"
    );
    assert_eq!(
        calls[0].field("RoleArn"),
        Some("arn:aws:iam::210987654321:role/unseal")
    );
    assert_eq!(calls[0].field("ExternalId"), Some("4711"));
    assert_eq!(calls[0].field("RoleSessionName"), Some("mine"));
    let issued = calls[0].issued.clone().unwrap();
    assert!(
        kms.calls()
            .iter()
            .all(|call| call.access_key_id == issued.access_key_id)
    );
    let seal = named(&config["status"]["seals"], "aws");
    assert!(
        seal["credentialSource"].as_str().unwrap().contains("assume-role"),
        "{seal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_assumed_through_motos_sts_too() {
    let stage = Stage::new("assume-moto").await;
    let moto = Moto::of_cluster("us-east-1");
    let arn = moto.key().await;
    let secret = random(32);
    let mut spec = simple(&arn, &moto.encrypt(&arn, &secret, &Context::new()).await, "out");
    spec["seals"][0]["awskms"]["assumeRole"] = json!({"roleARN": "arn:aws:iam::123456789012:role/unseal"});
    let _operator = stage.operator().start();
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    stage.ready("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_blob_of_go_kms_wrapping_is_read_once_its_data_key_is_wrapped_anew() {
    let stage = Stage::new("blobinfo").await;
    let moto = Moto::of_cluster("us-east-1");
    let arn = moto.key().await;
    let file = std::fs::read_to_string(repository("tests/vectors/awskms-blobinfo.json")).unwrap();
    let file: Value = serde_json::from_str(&file).unwrap();
    let hex = |value: &Value| {
        HEXLOWER
            .decode(value.as_str().unwrap_or_default().as_bytes())
            .unwrap()
    };
    let mut keys = Vec::new();
    let mut expected = Vec::new();
    for vector in file["vectors"].as_array().unwrap() {
        let name = vector["name"].as_str().unwrap().to_owned();
        let plaintext = hex(&vector["plaintext_hex"]);
        let blob = match name.as_str() {
            // Direct ciphertext: the KMS must have made the payload itself.
            "awskms-legacy-direct-mechanism0" => blob_info(
                &moto.encrypt(&arn, &plaintext, &Context::new()).await,
                &[],
                0,
                &arn,
                &[],
            ),
            "awskms-legacy-no-keyinfo" => {
                blob_info_without_key_info(&moto.encrypt(&arn, &plaintext, &Context::new()).await)
            }
            _ => {
                let data_key = hex(&vector["dek_hex"]);
                let wrapped = moto.encrypt(&arn, &data_key, &Context::new()).await;
                blob_info(
                    &hex(&vector["ciphertext_hex"]),
                    &hex(&vector["iv_hex"]),
                    1,
                    &arn,
                    &wrapped,
                )
            }
        };
        // What was sealed with additional data cannot be read without it, and SealConfig has no field for it;
        // an empty key is no key.
        if vector["aad_hex"] != "" || plaintext.is_empty() {
            continue;
        }
        keys.push(json!({"name": name, "wrapped": [{"seal": "aws", "inline": BASE64.encode(&blob)}]}));
        expected.push((name, plaintext));
    }
    // The framing that only OpenBao 2.5.0 wrote: the nonce in front of the ciphertext.
    let (plaintext, data_key) = (random(32), random(32));
    let wrapped = moto.encrypt(&arn, &data_key, &Context::new()).await;
    let split = envelope(
        &plaintext,
        data_key.as_slice().try_into().unwrap(),
        &arn,
        &wrapped,
    );
    // Fields 1 and 2 as written above: tag, one length byte, content.
    let (ciphertext, iv) = (&split[2..2 + 48], &split[2 + 48 + 2..2 + 48 + 2 + 12]);
    let combined = blob_info(&[iv, ciphertext].concat(), &[], 1, &arn, &wrapped);
    for (name, blob) in [("split", &split), ("openbao-250", &combined)] {
        keys.push(json!({"name": name, "wrapped": [{"seal": "aws", "format": "blobinfo", "inline": BASE64.encode(blob)}]}));
        expected.push((name.to_owned(), plaintext.clone()));
    }
    assert!(keys.len() >= 9, "{}", keys.len());

    let _operator = stage.operator().start();
    let mut spec = simple(&arn, b"-", "out");
    spec["keys"] = json!(keys);
    stage.apply("one", &spec).await;
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    stage.delivered("out", &expected).await;
    stage.ready("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_sends_no_key_id_and_no_context_to_the_kms() {
    let stage = Stage::new("blobcalls").await;
    let kms = Kms::start();
    let key = kms.key();
    let (secret, data_key) = (random(32), random(32));
    let wrapped = kms.encrypt(&key, &data_key, &Context::new());
    let blob = envelope(
        &secret,
        data_key.as_slice().try_into().unwrap(),
        &key.arn,
        &wrapped,
    );
    let mut spec = simple(&key.arn, b"-", "out");
    spec["keys"][0]["wrapped"][0] = json!({"seal": "aws", "inline": BASE64.encode(&blob)});
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    let decrypts: Vec<_> = kms
        .calls()
        .into_iter()
        .filter(|c| c.operation == "Decrypt")
        .collect();
    assert_eq!(decrypts.len(), 1);
    assert_eq!(decrypts[0].key_id, None);
    assert_eq!(decrypts[0].ciphertext, wrapped);
    assert_eq!(kms.count("Encrypt"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encryption_context_opens_what_was_wrapped_with_it() {
    let stage = Stage::new("context").await;
    let moto = Moto::of_cluster("us-east-1");
    let arn = moto.key().await;
    let secret = random(32);
    let context = Context::from([
        ("Tool".into(), "bank-vaults".into()),
        ("Grüße".into(), "wörld".into()),
    ]);
    let mut spec = simple(&arn, &moto.encrypt(&arn, &secret, &context).await, "out");
    spec["keys"][0]["wrapped"][0]["context"] = json!(context);
    let _operator = stage.operator().start();
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_under_two_seals_is_delivered_while_either_works() {
    let stage = Stage::new("two-seals").await;
    let (kms, secret) = (Kms::start(), random(32));
    let (first, second) = (kms.key(), kms.key());
    let mut spec = simple(&first.arn, b"-", "out");
    spec["seals"] = json!([
        {"name": "second", "priority": 20, "awskms": {"kmsKeyID": second.arn, "credentials": {"secretRef": {"name": "aws"}}}},
        {"name": "first", "priority": 10, "awskms": {"kmsKeyID": first.arn, "credentials": {"secretRef": {"name": "aws"}}}},
    ]);
    spec["keys"][0]["wrapped"] = json!([
        {"seal": "second", "format": "kms", "inline": BASE64.encode(&kms.encrypt(&second, &secret, &Context::new()))},
        {"seal": "first", "format": "kms", "inline": BASE64.encode(&kms.encrypt(&first, &secret, &Context::new()))},
    ]);
    let _operator = stage.operator_of(&kms).start();
    stage.apply("both", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    let config = stage.ready("both").await;
    let key = named(&config["status"]["keys"], "root");
    assert_eq!(key["openedBy"], "first", "the lower priority is tried first");
    assert_eq!(
        kms.count("Decrypt"),
        2,
        "each copy is opened once, so that all are known to agree"
    );
    assert_eq!(config["status"]["summary"]["seals"], "2/2");

    kms.set_state(&first, "Disabled");
    spec["targets"][0]["secret"]["name"] = json!("out-2");
    stage.apply("one-down", &spec).await;
    stage.delivered("out-2", &[("root", &secret)]).await;
    let config = eventually("the broken seal is told", async || {
        let config = stage.config("one-down").await;
        let healthy = condition(&config, "SealsHealthy");
        if healthy["status"] == "False" && named(&config["status"]["keys"], "root")["openedBy"] == "second" {
            Ok(config)
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    assert_eq!(condition(&config, "SealsHealthy")["reason"], "KeyDisabled");
    assert_eq!(named(&config["status"]["seals"], "first")["state"], "Unhealthy");
    assert_eq!(named(&config["status"]["seals"], "second")["state"], "Healthy");
    assert_eq!(config["status"]["summary"]["seals"], "1/2");
}

#[tokio::test(flavor = "multi_thread")]
async fn ciphertext_is_taken_from_secrets_and_config_maps_with_and_without_armor() {
    let stage = Stage::new("armor").await;
    let (kms, secret) = (Kms::start(), random(32));
    let key = kms.key();
    let raw = kms.encrypt(&key, &secret, &Context::new());
    let text = BASE64.encode(&raw);
    let folded = format!("{}\n{}\n", &text[..40], &text[40..]);
    stage
        .secret_of(
            "s",
            &[
                ("raw", raw.as_slice()),
                ("text", text.as_bytes()),
                ("folded", folded.as_bytes()),
            ],
        )
        .await;
    let mut map = stage.object("v1", "ConfigMap", "m");
    map["data"] = json!({"text": text, "folded": folded});
    map["binaryData"] = json!({"raw": text});
    stage.plane.apply(&map).await;

    let mut keys = Vec::new();
    for (kind, source) in [("s", "secretKeyRef"), ("m", "configMapKeyRef")] {
        for (entry, armor) in [
            ("raw", None),
            ("raw", Some("None")),
            ("raw", Some("Auto")),
            ("text", None),
            ("text", Some("Auto")),
            ("text", Some("Base64")),
            ("folded", Some("Auto")),
            ("folded", Some("Base64")),
        ] {
            let mut copy = json!({"seal": "aws", "format": "kms"});
            copy[source] = json!({"name": kind, "key": entry});
            if let Some(armor) = armor {
                copy[source]["armor"] = json!(armor);
            }
            keys.push(json!({"name": format!("k{}", keys.len()), "wrapped": [copy]}));
        }
    }
    let names: Vec<_> = keys
        .iter()
        .map(|k| k["name"].as_str().unwrap().to_owned())
        .collect();
    let mut spec = simple(&key.arn, b"-", "out");
    spec["keys"] = json!(keys);
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    let expected: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), secret.as_slice()))
        .collect();
    stage.delivered("out", &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_source_is_delivered_without_touching_the_seal_config() {
    let stage = Stage::new("source").await;
    let (kms, first, second) = (Kms::start(), random(32), random(48));
    let key = kms.key();
    stage
        .secret_of(
            "s",
            &[("c", kms.encrypt(&key, &first, &Context::new()).as_slice())],
        )
        .await;
    let mut spec = simple(&key.arn, b"-", "out");
    spec["keys"][0]["wrapped"][0] =
        json!({"seal": "aws", "format": "kms", "secretKeyRef": {"name": "s", "key": "c"}});
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &first)]).await;
    stage
        .secret_of(
            "s",
            &[("c", kms.encrypt(&key, &second, &Context::new()).as_slice())],
        )
        .await;
    stage.delivered("out", &[("root", &second)]).await;
    assert_eq!(kms.count("Decrypt"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_encoding_is_written_to_the_byte_and_into_the_type_labels_and_annotations_asked_for() {
    let stage = Stage::new("encodings").await;
    let kms = Kms::start();
    let secret = b"p\xc3\xa4ss\xfbw\xffrd>>??".as_slice();
    let utf8 = "grüße".as_bytes();
    let key = kms.key();
    let mut spec = simple(&key.arn, &kms.encrypt(&key, secret, &Context::new()), "out");
    spec["keys"].as_array_mut().unwrap().push(json!({"name": "word", "consumerKeyID": "the-word", "wrapped": [
        {"seal": "aws", "format": "kms", "inline": BASE64.encode(&kms.encrypt(&key, utf8, &Context::new()))}]}));
    spec["targets"][0]["secret"] = json!({
    "name": "out", "type": "kubernetes.io/basic-auth",
    "labels": {"team": "payments"}, "annotations": {"example.com/note": "n"},
    "data": [
        {"name": "username", "template": "admin"},
        {"name": "raw", "key": {"name": "root"}},
        {"name": "raw2", "key": {"name": "root", "encoding": "raw", "version": "current"}},
        {"name": "b64", "key": {"name": "root", "encoding": "base64"}},
        {"name": "b64url", "key": {"name": "root", "encoding": "base64url"}},
        {"name": "hex", "key": {"name": "root", "encoding": "hex"}},
        {"name": "previous", "key": {"name": "root", "version": "previous"}},
        {"name": "all", "template": "{{ keys[\"root\"].base64 }}|{{keys[\"root\"].base64url}}|{{ keys[\"root\"].hex }}|{{ keys[\"word\"].utf8 }}|{{ keys[\"word\"].id }}\n"},
    ]});
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    let (base64, base64url, hex) = (
        BASE64.encode(secret),
        BASE64URL_NOPAD.encode(secret),
        HEXLOWER.encode(secret),
    );
    let all = format!("{base64}|{base64url}|{hex}|grüße|the-word\n");
    // `previous` is left out until there is one.
    stage
        .delivered(
            "out",
            &[
                ("username", b"admin".as_slice()),
                ("raw", secret),
                ("raw2", secret),
                ("b64", base64.as_bytes()),
                ("b64url", base64url.as_bytes()),
                ("hex", hex.as_bytes()),
                ("all", all.as_bytes()),
            ],
        )
        .await;
    let written = stage.whole_secret("out").await;
    assert_eq!(written["type"], "kubernetes.io/basic-auth");
    assert_eq!(written["metadata"]["labels"]["team"], "payments");
    assert_eq!(written["metadata"]["annotations"]["example.com/note"], "n");

    // What the spec no longer asks for goes again.
    spec["targets"][0]["secret"]["data"]
        .as_array_mut()
        .unwrap()
        .truncate(2);
    spec["targets"][0]["secret"]
        .as_object_mut()
        .unwrap()
        .remove("labels");
    stage.apply("one", &spec).await;
    stage
        .delivered("out", &[("username", b"admin"), ("raw", secret)])
        .await;
    eventually("the label goes", async || {
        let written = stage.whole_secret("out").await;
        if written.pointer("/metadata/labels/team").is_none() {
            Ok(())
        } else {
            Err(written["metadata"].to_string())
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_seal_config_causes_nothing_and_goes_on_when_resumed() {
    let stage = Stage::new("suspend").await;
    let (kms, secret) = (Kms::start(), random(32));
    let key = kms.key();
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "out");
    spec["suspend"] = json!(true);
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    eventually("Suspended is told", async || {
        let config = stage.config("one").await;
        let ready = condition(&config, "Ready");
        if ready["reason"] == "Suspended" {
            Ok(())
        } else {
            Err(ready.to_string())
        }
    })
    .await;
    assert_eq!(stage.secret("out").await, None);
    assert_eq!(kms.calls().len(), 0);

    spec["suspend"] = json!(false);
    stage.apply("one", &spec).await;
    stage.delivered("out", &[("root", &secret)]).await;
    stage.ready("one").await;

    // Suspended again: Ready keeps its status, and drift stays.
    spec["suspend"] = json!(true);
    stage.apply("one", &spec).await;
    eventually("Suspended is told again", async || {
        let config = stage.config("one").await;
        let ready = condition(&config, "Ready");
        if ready["reason"] == "Suspended" && ready["status"] == "True" {
            Ok(())
        } else {
            Err(ready.to_string())
        }
    })
    .await;
    let calls = kms.calls().len();
    stage.plane.delete("Secret", &stage.namespace, "out").await;
    // Another object of the same operator is the clock: once it is served, the suspended one had its chance too.
    let other = random(32);
    stage
        .apply(
            "clock",
            &simple(&key.arn, &kms.encrypt(&key, &other, &Context::new()), "clock"),
        )
        .await;
    stage.delivered("clock", &[("root", &other)]).await;
    assert_eq!(stage.secret("out").await, None);
    assert!(kms.calls().len() <= calls + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_takes_only_the_seal_configs_of_its_class() {
    let stage = Stage::new("class").await;
    let (kms, secret) = (Kms::start(), random(32));
    let key = kms.key();
    let ciphertext = kms.encrypt(&key, &secret, &Context::new());
    let _blue = stage
        .operator_of(&kms)
        .flags(["--controller-class", "blue"])
        .start();
    let mut spec = simple(&key.arn, &ciphertext, "unclassed");
    stage.apply("unclassed", &spec).await;
    spec["controllerClass"] = json!("green");
    spec["targets"][0]["secret"]["name"] = json!("green");
    stage.apply("green", &spec).await;
    spec["controllerClass"] = json!("blue");
    spec["targets"][0]["secret"]["name"] = json!("blue");
    stage.apply("blue", &spec).await;
    stage.delivered("blue", &[("root", &secret)]).await;
    stage.ready("blue").await;
    for other in ["unclassed", "green"] {
        assert_eq!(stage.secret(other).await, None);
        assert_eq!(
            condition(&stage.config(other).await, "Ready")["reason"],
            "Pending"
        );
    }
    assert_eq!(kms.count("Decrypt"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_targets_each_get_their_own_entries() {
    let stage = Stage::new("targets").await;
    let (kms, one, two) = (Kms::start(), random(32), random(16));
    let key = kms.key();
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &one, &Context::new()), "all");
    spec["keys"].as_array_mut().unwrap().push(json!({"name": "two", "wrapped": [
        {"seal": "aws", "format": "kms", "inline": BASE64.encode(&kms.encrypt(&key, &two, &Context::new()))}]}));
    spec["targets"].as_array_mut().unwrap().push(
        json!({"name": "second", "secret": {"name": "only-two", "data": [{"name": "k", "key": {"name": "two"}}]}}),
    );
    let _operator = stage.operator_of(&kms).start();
    stage.apply("one", &spec).await;
    stage.delivered("all", &[("root", &one), ("two", &two)]).await;
    stage.delivered("only-two", &[("k", &two)]).await;
    assert_eq!(
        kms.count("Decrypt"),
        2,
        "one for each copy, whatever the number of targets"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_policies_retain_and_delete_the_secret() {
    let stage = Stage::new("deletion").await;
    let (kms, secret) = (Kms::start(), random(32));
    let key = kms.key();
    let mut spec = simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "kept");
    let mut second = spec["targets"][0].clone();
    second["name"] = json!("second");
    second["secret"] = json!({"name": "owned", "deletionPolicy": "Delete"});
    spec["targets"].as_array_mut().unwrap().push(second);
    let _operator = stage.operator_of(&kms).start();
    let config = stage.apply("one", &spec).await;
    stage.delivered("kept", &[("root", &secret)]).await;
    stage.delivered("owned", &[("root", &secret)]).await;
    assert!(
        stage.whole_secret("kept").await["metadata"]
            .get("ownerReferences")
            .is_none()
    );
    let owners = stage.whole_secret("owned").await["metadata"]["ownerReferences"].clone();
    assert_eq!(owners[0]["uid"], config["metadata"]["uid"]);
    assert_eq!(owners[0]["kind"], "SealConfig");

    // The policy may change later; the reference follows.
    spec["targets"][1]["secret"]["deletionPolicy"] = json!("Retain");
    stage.apply("one", &spec).await;
    eventually("the owner reference goes", async || {
        let owned = stage.whole_secret("owned").await;
        let owners = owned
            .pointer("/metadata/ownerReferences")
            .cloned()
            .unwrap_or_default();
        if owners.as_array().is_none_or(Vec::is_empty) {
            Ok(())
        } else {
            Err(owners.to_string())
        }
    })
    .await;

    // No finalizer holds the object, and a retained Secret stays as it is.
    stage.plane.delete("SealConfig", &stage.namespace, "one").await;
    assert!(
        stage
            .plane
            .get("SealConfig", &stage.namespace, "one")
            .await
            .is_none()
    );
    stage.delivered("kept", &[("root", &secret)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_passing_fault_of_the_kms_delays_and_nothing_more() {
    let stage = Stage::new("passing").await;
    let (kms, secret) = (Kms::start(), random(32));
    let key = kms.key();
    for act in [
        Act::ServerFault,
        Act::Throttle(Some(1)),
        Act::CloseMidAnswer,
        Act::error(500, "KMSInternalException"),
    ] {
        kms.next("Decrypt", act);
    }
    let _operator = stage.operator_of(&kms).start();
    stage
        .apply(
            "one",
            &simple(&key.arn, &kms.encrypt(&key, &secret, &Context::new()), "out"),
        )
        .await;
    stage.delivered("out", &[("root", &secret)]).await;
    stage.ready("one").await;
}
