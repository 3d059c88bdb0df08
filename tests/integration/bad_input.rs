//! Bad input: the user reads the reason, and the last good Secret stays as it was.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    blob::{blob_info, envelope},
    kms::{Act, Context, Kms},
    moto::Moto,
    plane::eventually,
    scene::Scene,
    stage::{condition, random},
    sts::Sts,
};

/// A good delivery, the change that breaks it, and the reasons that may be told.
struct Case {
    name: &'static str,
    reasons: &'static [&'static str],
    break_it: Value,
}

/// Delivers every case well, breaks it by a JSON merge of the spec, and holds the operator to reason and Secret.
async fn play(scene: &Scene, cases: Vec<Case>) {
    let mut good = Vec::new();
    for case in &cases {
        let bytes = random(32);
        let spec = scene.deliver(case.name, &bytes).await;
        good.push((bytes, spec, scene.stage.whole_secret(case.name).await));
    }
    for (case, (_, spec, _)) in cases.iter().zip(&good) {
        let mut broken = spec.clone();
        merge(&mut broken, &case.break_it);
        scene.stage.apply(case.name, &broken).await;
    }
    for (case, (bytes, _, before)) in cases.iter().zip(&good) {
        let (reason, message) = scene.not_ready(case.name, case.reasons).await;
        println!("{}: {reason}: {message}", case.name);
        assert!(
            message.len() > 20,
            "{}: a sentence is wanted: {message}",
            case.name
        );
        scene.stage.delivered(case.name, &[("root", bytes)]).await;
        let now = scene.stage.whole_secret(case.name).await;
        assert_eq!(
            now["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"],
            "{}: the last good Secret was written again",
            case.name
        );
    }
}

/// JSON merge, but that arrays of one element are merged by that element.
fn merge(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (Value::Array(into), Value::Array(patch)) if into.len() == 1 && patch.len() == 1 => {
            merge(&mut into[0], &patch[0]);
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn copy(change: &Value) -> Value {
    json!({"keys": [{"wrapped": [change]}]})
}

fn inline(bytes: &[u8]) -> Value {
    copy(&json!({"inline": BASE64.encode(bytes)}))
}

fn blob(bytes: &[u8]) -> Value {
    copy(&json!({"inline": BASE64.encode(bytes), "format": "blobinfo"}))
}

fn source(secret: &str, key: &str) -> Value {
    copy(&json!({"inline": null, "secretKeyRef": {"name": secret, "key": key}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_foreign_ciphertext_is_told_and_never_delivered() {
    let scene = Scene::new("bad-ciphertext").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let good = scene.wrap(b"never delivered");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let elsewhere = Kms::start();
    let foreign = elsewhere.encrypt(&elsewhere.key(), b"never delivered", &Context::new());
    let with_context = |value: &str| Context::from([("k".to_owned(), value.to_owned())]);
    let of_a = scene
        .kms
        .encrypt(&scene.key, b"never delivered", &with_context("a"));
    let second = scene.kms.key();
    let under_second = scene.kms.encrypt(&second, b"never delivered", &Context::new());
    stage
        .secret_of(
            "bad",
            &[
                ("empty", b"".as_slice()),
                ("garbage", &random(900_000)),
                ("seven", &random(7000)),
            ],
        )
        .await;
    let data_key: [u8; 32] = random(32).try_into().unwrap();
    let wrapped = scene.wrap(&data_key);
    let mut flipped_blob = envelope(b"never delivered", &data_key, &scene.key.arn, &wrapped);
    flipped_blob[3] ^= 1;
    let other_data_key = scene.wrap(&random(32));
    let short_data_key = scene.wrap(&data_key[..31]);
    let under_second_blob = envelope(
        b"never delivered",
        &data_key,
        &scene.key.arn,
        &scene.kms.encrypt(&second, &data_key, &Context::new()),
    );
    let invalid = ["CiphertextInvalid"].as_slice();
    let context = ["ContextMismatch", "CiphertextInvalid"].as_slice();
    let case = |name, reasons, break_it| Case {
        name,
        reasons,
        break_it,
    };
    play(
        &scene,
        vec![
            case("truncated", invalid, inline(&good[..good.len() - 9])),
            case("one-byte", invalid, inline(&good[..1])),
            case("flipped", invalid, inline(&flipped)),
            case("of-another-kms", invalid, inline(&foreign)),
            case("context-missing", context, inline(&of_a)),
            case(
                "context-other",
                context,
                copy(&json!({"inline": BASE64.encode(&of_a), "context": {"k": "b"}})),
            ),
            case(
                "context-added",
                context,
                copy(&json!({"inline": BASE64.encode(&good), "context": {"k": "b"}})),
            ),
            case(
                "empty",
                &["CiphertextInvalid", "InvalidSpec"],
                copy(&json!({"inline": ""})),
            ),
            case("empty-entry", invalid, source("bad", "empty")),
            case("garbage", invalid, source("bad", "garbage")),
            case("longer-than-kms-takes", invalid, source("bad", "seven")),
            // A key that the identity may use, but that the seal does not name: the copy is somebody else's.
            case(
                "other-key",
                &["KeyNotAllowed", "CiphertextInvalid"],
                inline(&under_second),
            ),
            case("other-key-blob", &["KeyNotAllowed"], blob(&under_second_blob)),
            case("blob-random", invalid, blob(&random(300))),
            case(
                "blob-truncated",
                invalid,
                blob(&envelope(b"x", &data_key, &scene.key.arn, &wrapped)[..90]),
            ),
            case(
                "blob-lying-length",
                invalid,
                blob(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x00]),
            ),
            case("blob-empty-message", invalid, blob(&[0x2a, 0x00])),
            case(
                "blob-mechanism",
                invalid,
                blob(&blob_info(
                    b"0123456789abcdef",
                    &[0; 12],
                    7,
                    &scene.key.arn,
                    &wrapped,
                )),
            ),
            case("blob-flipped", invalid, blob(&flipped_blob)),
            case(
                "blob-other-dek",
                invalid,
                blob(&blob_info(
                    &random(48),
                    &[7; 12],
                    1,
                    &scene.key.arn,
                    &other_data_key,
                )),
            ),
            case(
                "blob-short-dek",
                invalid,
                blob(&blob_info(
                    &random(48),
                    &[7; 12],
                    1,
                    &scene.key.arn,
                    &short_data_key,
                )),
            ),
            case(
                "blob-as-kms",
                invalid,
                inline(&envelope(b"x", &data_key, &scene.key.arn, &wrapped)),
            ),
            case("kms-as-blob", invalid, blob(&good)),
        ],
    )
    .await;
    // What cannot be a copy is not even sent.
    assert!(
        scene
            .kms
            .calls()
            .iter()
            .all(|call| call.operation != "Decrypt" || (1..=6144).contains(&call.ciphertext.len()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_sources_wrong_templates_and_refused_places_are_told() {
    let scene = Scene::new("bad-spec").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    stage.secret_of("there", &[("k", b"x".as_slice())]).await;
    let template = |text: &str| json!({"targets": [{"secret": {"data": [{"name": "t", "template": text}]}}]});
    // A new ciphertext comes with the new identity: what was opened before would need no identity at all.
    let aws = |change: &Value| {
        json!({"seals": [{"awskms": change}],
            "keys": [{"wrapped": [{"inline": BASE64.encode(&scene.wrap(b"never delivered"))}]}]})
    };
    let case = |name, reasons, break_it| Case {
        name,
        reasons,
        break_it,
    };
    play(
        &scene,
        vec![
            case("source-missing", &["SourceMissing"], source("not-there", "k")),
            case(
                "source-key-missing",
                &["SourceMissing"],
                source("there", "not-there"),
            ),
            case(
                "map-missing",
                &["SourceMissing"],
                copy(&json!({"inline": null, "configMapKeyRef": {"name": "not-there", "key": "k"}})),
            ),
            case(
                "template-unknown-key",
                &["TemplateInvalid"],
                template("{{ keys[\"other\"].base64 }}"),
            ),
            case(
                "template-language",
                &["TemplateInvalid"],
                template("{% if true %}{{ keys[\"root\"].base64 }}{% endif %}{{ 1 + 1 }}"),
            ),
            case(
                "template-filter",
                &["TemplateInvalid"],
                template("{{ keys[\"root\"].base64 | upper }}"),
            ),
            case(
                "template-open",
                &["TemplateInvalid"],
                template("a\n  {{ keys[\"root\"].base64"),
            ),
            case(
                "endpoint",
                &["EndpointNotAllowed"],
                aws(&json!({"endpoint": "https://kms.us-east-1.amazonaws.com.evil.example"})),
            ),
            case(
                "namespace",
                &["OperatorIdentityNotAllowed"],
                aws(&json!({"credentials": null})),
            ),
            case(
                "credentials-missing",
                &["CredentialsMissing"],
                aws(&json!({"credentials": {"secretRef": {"name": "not-there"}}})),
            ),
            case(
                "credentials-entry-missing",
                &["CredentialsMissing"],
                aws(&json!({"credentials": {"secretRef": {"name": "there"}}})),
            ),
            case(
                "account-missing",
                &["ServiceAccountMissing"],
                aws(&json!({"credentials": {"secretRef": null, "serviceAccountRef": {"name": "not-there"}}})),
            ),
            case(
                "foreign-account",
                &["KeyNotAllowed", "InvalidSpec"],
                aws(&json!({"accountID": "999999999999"})),
            ),
            case(
                "key-not-found",
                &["KeyNotFound"],
                aws(&json!({"kmsKeyID": "alias/not-there"})),
            ),
        ],
    )
    .await;
    // A template error says where, and nothing of what is there.
    let message = condition(&stage.config("template-open").await, "Ready")["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(message.contains("line 2"), "{message}");
    let message = condition(&stage.config("namespace").await, "Ready")["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains("kubectl "),
        "the command that fixes it: {message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_hold_different_keys_are_told_and_neither_is_delivered() {
    let scene = Scene::new("differ").await;
    let _operator = scene.start();
    let bytes = random(32);
    let mut spec = scene.deliver("one", &bytes).await;
    let before = scene.stage.whole_secret("one").await;
    let second = scene.kms.key();
    spec["seals"].as_array_mut().unwrap().push(
        json!({"name": "second", "awskms": {"kmsKeyID": second.arn, "credentials": {"secretRef": {"name": "aws"}}}}),
    );
    spec["keys"][0]["wrapped"] = json!([
        {"seal": "aws", "format": "kms", "inline": BASE64.encode(&scene.wrap(&random(32)))},
        {"seal": "second", "format": "kms", "inline": BASE64.encode(&scene.kms.encrypt(&second, &random(32), &Context::new()))},
    ]);
    scene.stage.apply("one", &spec).await;
    let (_, message) = scene.not_ready("one", &["CopiesDiffer"]).await;
    assert!(
        message.contains("root") || message.contains("second"),
        "{message}"
    );
    assert_eq!(
        scene.stage.whole_secret("one").await["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_check_value_refuses_other_bytes() {
    let scene = Scene::new("pinned").await;
    let _operator = scene.start();
    let mut spec = scene.deliver("one", &random(32)).await;
    let before = scene.stage.whole_secret("one").await;
    spec["keys"][0]["checkValue"] = json!("0".repeat(64));
    scene.stage.apply("one", &spec).await;
    scene.not_ready("one", &["CheckValueDiffers"]).await;
    assert_eq!(
        scene.stage.whole_secret("one").await["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_a_key_is_the_reason() {
    let scene = Scene::new("key-state").await;
    let _operator = scene.start();
    for (state, reason) in [
        ("Disabled", "KeyDisabled"),
        // Decrypt tells only that the state is wrong; DescribeKey, which tells more, is asked once an hour.
        ("PendingDeletion", "KeyUnusable"),
        ("Gone", "KeyNotFound"),
        ("PendingImport", "KeyUnusable"),
    ] {
        let key = scene.kms.key();
        let name = reason.to_lowercase();
        let bytes = random(32);
        let mut spec = scene.spec(&name, &bytes);
        spec["seals"][0]["awskms"]["kmsKeyID"] = json!(key.arn);
        let wrap = |bytes: &[u8]| json!(BASE64.encode(&scene.kms.encrypt(&key, bytes, &Context::new())));
        spec["keys"][0]["wrapped"][0]["inline"] = wrap(&bytes);
        scene.stage.apply(&name, &spec).await;
        scene.stage.delivered(&name, &[("root", &bytes)]).await;
        scene.stage.ready(&name).await;
        spec["keys"][0]["wrapped"][0]["inline"] = wrap(&random(32));
        scene.kms.set_state(&key, state);
        scene.stage.apply(&name, &spec).await;
        let (_, message) = scene.not_ready(&name, &[reason]).await;
        assert!(message.contains("aws"), "the seal is named: {message}");
        scene.stage.delivered(&name, &[("root", &bytes)]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_that_describe_key_tells_is_the_reason_of_a_new_seal() {
    let scene = Scene::new("described").await;
    let _operator = scene.start();
    for (state, reason) in [
        ("Disabled", "KeyDisabled"),
        ("PendingDeletion", "KeyPendingDeletion"),
        ("PendingImport", "KeyUnusable"),
    ] {
        let key = scene.kms.key();
        let name = reason.to_lowercase();
        let mut spec = scene.spec(&name, b"x");
        spec["seals"][0]["awskms"]["kmsKeyID"] = json!(key.arn);
        spec["keys"][0]["wrapped"][0]["inline"] =
            json!(BASE64.encode(&scene.kms.encrypt(&key, b"x", &Context::new())));
        scene.kms.set_state(&key, state);
        scene.stage.apply(&name, &spec).await;
        eventually(&format!("{reason} of the seal"), async || {
            let config = scene.stage.config(&name).await;
            let healthy = condition(&config, "SealsHealthy");
            if healthy["reason"] == reason {
                Ok(())
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await;
        scene.not_ready(&name, &[reason, "KeyUnusable"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_identity_in_status_is_the_one_that_the_spec_names_now() {
    let scene = Scene::new("identity-now").await;
    let _operator = scene.start();
    let mut spec = scene.deliver("one", &random(32)).await;
    spec["seals"][0]["awskms"]
        .as_object_mut()
        .unwrap()
        .remove("credentials");
    scene.stage.apply("one", &spec).await;
    eventually("the operator's identity is refused", async || {
        let config = scene.stage.config("one").await;
        let healthy = condition(&config, "SealsHealthy");
        if healthy["reason"] == "OperatorIdentityNotAllowed" {
            Ok(())
        } else {
            Err(healthy.to_string())
        }
    })
    .await;
    let seal = &scene.stage.config("one").await["status"]["seals"][0];
    assert!(
        !seal["identity"].as_str().unwrap_or_default().contains("/aws"),
        "the former identity is told: {seal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_changed_for_a_wrong_one_is_told_although_nothing_is_to_be_opened() {
    let scene = Scene::new("identity").await;
    let _operator = scene.start();
    for (name, credentials, reason) in [
        ("operators", Value::Null, "OperatorIdentityNotAllowed"),
        (
            "missing",
            json!({"secretRef": {"name": "not-there"}}),
            "CredentialsMissing",
        ),
        (
            "account",
            json!({"serviceAccountRef": {"name": "not-there"}}),
            "ServiceAccountMissing",
        ),
    ] {
        let bytes = random(32);
        let mut spec = scene.deliver(name, &bytes).await;
        if credentials.is_null() {
            spec["seals"][0]["awskms"]
                .as_object_mut()
                .unwrap()
                .remove("credentials");
        } else {
            spec["seals"][0]["awskms"]["credentials"] = credentials;
        }
        scene.stage.apply(name, &spec).await;
        eventually(&format!("{reason} of the seal"), async || {
            let config = scene.stage.config(name).await;
            let healthy = condition(&config, "SealsHealthy");
            if healthy["reason"] == reason {
                Ok(())
            } else {
                Err(format!("{:#}", config["status"]))
            }
        })
        .await;
        scene.stage.delivered(name, &[("root", &bytes)]).await;
    }
}

/// Everything well once, then a KMS that behaves so, then healed.
async fn under(name: &str, act: Act, reasons: &[&str]) {
    let scene = Scene::new(name).await;
    let _operator = scene.start();
    let (first, second) = (random(32), random(32));
    scene.deliver("one", &first).await;
    let before = scene.stage.whole_secret("one").await;
    scene.kms.always("Decrypt", act);
    scene.stage.apply("one", &scene.spec("one", &second)).await;
    let (reason, message) = scene
        .not_ready_within(Duration::from_secs(90), "one", reasons)
        .await;
    println!("{name}: {reason}: {message}");
    let now = scene.stage.whole_secret("one").await;
    assert_eq!(
        now["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
    scene.kms.heal();
    // The object is touched so that a long backoff does not hold the test up; the reason was read before.
    scene.stage.apply("one", &scene.spec("one", &second)).await;
    scene.stage.delivered("one", &[("root", &second)]).await;
    scene.stage.ready("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_told() {
    under("throttled", Act::Throttle(None), &["Throttled"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_faults_are_told() {
    under("faults", Act::ServerFault, &["KMSUnavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_hangs_is_told() {
    under("hangs", Act::Hang, &["KMSUnavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_closes_in_the_middle_of_an_answer_is_told() {
    under("closes", Act::CloseMidAnswer, &["KMSUnavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_answers_garbage_is_told() {
    under("garbage", Act::Garbage, &["KMSUnavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_does_not_speak_http_is_told() {
    under("no-http", Act::NotHttp, &["KMSUnavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kms_that_floods_is_told() {
    under("floods", Act::Flood, &["KMSUnavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_permission_is_told() {
    under(
        "denied",
        Act::error(400, "AccessDeniedException"),
        &["AccessDenied"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_credentials_are_told() {
    under(
        "rejected",
        Act::error(400, "UnrecognizedClientException"),
        &["CredentialsRejected", "CredentialsMissing"],
    )
    .await;
    under(
        "bad-signature",
        Act::error(400, "InvalidSignatureException"),
        &["CredentialsRejected", "ClockSkew"],
    )
    .await;
    under(
        "expired",
        Act::error(400, "ExpiredTokenException"),
        &["CredentialsExpired"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_claims_a_foreign_key_or_account_is_dropped() {
    under(
        "foreign-key",
        Act::ClaimKey("arn:aws:kms:us-east-1:123456789012:key/ffffffff-0000-0000-0000-000000000000".into()),
        &["KeyNotAllowed"],
    )
    .await;
    let scene = Scene::new("foreign-account").await;
    let _operator = scene.start();
    scene.kms.always(
        "Decrypt",
        Act::ClaimKey(scene.key.arn.replace("123456789012", "999999999999")),
    );
    scene.stage.apply("one", &scene.spec("one", &random(32))).await;
    scene.not_ready("one", &["KeyNotAllowed"]).await;
    assert_eq!(scene.stage.secret("one").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_that_moves_to_another_key_is_not_followed_for_old_copies() {
    let scene = Scene::new("alias-moved").await;
    let _operator = scene.start();
    scene.kms.alias("alias/moving", &scene.key);
    let bytes = random(32);
    let mut spec = scene.spec("one", &bytes);
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!("alias/moving");
    scene.stage.apply("one", &spec).await;
    scene.stage.delivered("one", &[("root", &bytes)]).await;
    scene.stage.ready("one").await;
    // Somebody moves the alias to a key in another account and brings a copy under it.
    let foreign = scene.kms.key_in("us-east-1", "999999999999");
    scene.kms.alias("alias/moving", &foreign);
    spec["keys"][0]["wrapped"][0]["inline"] =
        json!(BASE64.encode(&scene.kms.encrypt(&foreign, &random(32), &Context::new())));
    scene.stage.apply("one", &spec).await;
    scene.not_ready("one", &["KeyNotAllowed"]).await;
    scene.stage.delivered("one", &[("root", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_key_of_an_alias_is_accepted_when_it_is_named() {
    let scene = Scene::new("former").await;
    let _operator = scene.start();
    let newer = scene.kms.key();
    scene.kms.alias("alias/now", &newer);
    let bytes = random(32);
    let mut spec = scene.spec("one", &bytes);
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!("alias/now");
    scene.stage.apply("one", &spec).await;
    scene
        .not_ready("one", &["KeyNotAllowed", "CiphertextInvalid"])
        .await;
    spec["seals"][0]["awskms"]["formerKeyIDs"] = json!([scene.key.arn]);
    scene.stage.apply("one", &spec).await;
    scene.stage.delivered("one", &[("root", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_sts_rejects_are_told_and_nothing_else_is_tried() {
    let scene = Scene::new("role-rejected").await;
    let sts = Sts::start();
    let _operator = scene.operator().env("AWS_ENDPOINT_URL_STS", sts.url()).start();
    let mut account = scene.stage.object("v1", "ServiceAccount", "app");
    account["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
    scene.stage.plane.apply(&account).await;
    scene
        .stage
        .plane
        .apply(&scene.stage.object("v1", "ServiceAccount", "plain"))
        .await;
    let calls = scene.kms.calls().len();
    for (name, code, status, credentials, role, reason) in [
        (
            "web",
            "AccessDenied",
            403,
            json!({"serviceAccountRef": {"name": "app"}}),
            None,
            "WebIdentityRejected",
        ),
        (
            "idp",
            "InvalidIdentityToken",
            400,
            json!({"serviceAccountRef": {"name": "app"}}),
            None,
            "WebIdentityRejected",
        ),
        (
            "assume",
            "AccessDenied",
            403,
            json!({"secretRef": {"name": "aws"}}),
            Some("arn:aws:iam::123456789012:role/x"),
            "AssumeRoleDenied",
        ),
        (
            "no-role",
            "AccessDenied",
            403,
            json!({"serviceAccountRef": {"name": "plain"}}),
            None,
            "RoleAnnotationMissing",
        ),
    ] {
        sts.refuse(Some((status, code)));
        let mut spec = scene.spec(name, b"x");
        spec["seals"][0]["awskms"]["credentials"] = credentials;
        if let Some(role) = role {
            spec["seals"][0]["awskms"]["assumeRole"] = json!({"roleARN": role});
        }
        scene.stage.apply(name, &spec).await;
        scene.not_ready(name, &[reason]).await;
        assert_eq!(scene.stage.secret(name).await, None);
    }
    assert_eq!(
        scene.kms.calls().len(),
        calls,
        "a failing credential never falls back to the operator's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn motos_own_refusals_of_garbage_and_unknown_keys_are_told() {
    let scene = Scene::new("moto-refusals").await;
    let _operator = scene.stage.operator().start();
    let moto = Moto::of_cluster("us-east-1");
    let arn = moto.key().await;
    let mut spec = scene.spec("garbage", b"x");
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!(arn);
    spec["keys"][0]["wrapped"][0]["inline"] = json!(BASE64.encode(&random(120)));
    scene.stage.apply("garbage", &spec).await;
    // moto says AccessDenied where the real service says InvalidCiphertext (protocols.md, 2.9).
    scene
        .not_ready("garbage", &["AccessDenied", "CiphertextInvalid"])
        .await;
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!("alias/never-made");
    spec["targets"][0]["secret"]["name"] = json!("unknown");
    scene.stage.apply("unknown", &spec).await;
    scene.not_ready("unknown", &["KeyNotFound"]).await;
}
