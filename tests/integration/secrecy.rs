//! Nothing secret in anything that the operator says: logs at trace level, events, status, metrics (S13, meaning 12).

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    kms::{Act, Context},
    needle::Needle,
    operator::Running,
    plane::{eventually, within},
    scene::Scene,
    stage::{Stage, condition, random, speaks_of_now},
    sts::Sts,
};

/// Everything that the operator said anywhere.
pub async fn said(stage: &Stage, written: &str, metrics: &str) -> Vec<(&'static str, String)> {
    let plane = &stage.plane;
    let mut status = String::new();
    for config in plane.list("SealConfig", &stage.namespace).await {
        status.push_str(&config["status"].to_string());
    }
    let events = plane.list("Event", &stage.namespace).await;
    let mut metadata = String::new();
    for secret in plane.list("Secret", &stage.namespace).await {
        let mut of = secret["metadata"].clone();
        // The field manager lists names, and those of the user's own objects hold what the user put there.
        of.as_object_mut().unwrap().remove("managedFields");
        metadata.push_str(&of.to_string());
    }
    vec![
        ("output", written.to_owned()),
        ("status", status),
        ("events", json!(events).to_string()),
        ("metadata of Secrets", metadata),
        ("metrics", metrics.to_owned()),
    ]
}

/// Nothing of what is secret is found anywhere.
pub fn search(needles: &[Needle], places: &[(&'static str, String)]) {
    let mut found = Vec::new();
    for (place, text) in places {
        for needle in needles {
            if let Some(how) = needle.found_in(text.as_bytes()) {
                let line = text
                    .lines()
                    .find(|line| needle.found_in(line.as_bytes()).is_some())
                    .unwrap_or_default();
                let line: String = line.chars().take(300).collect();
                found.push(format!("{} ({how}) in {place}: {line}", needle.what));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

async fn settled(scene: &Scene, name: &str) -> Value {
    within(
        std::time::Duration::from_secs(90),
        &format!("{name} has a verdict"),
        async || {
            let config = scene.stage.config(name).await;
            let ready = condition(&config, "Ready");
            if ready["reason"] != "Pending" && ready["status"] != "Unknown" && speaks_of_now(&config) {
                Ok(config)
            } else {
                Err(format!("{:#}", config["status"]))
            }
        },
    )
    .await
}

/// The whole life of an operator with every secret in play, in one log format.
async fn life(name: &str, format: &str) {
    let scene = Scene::new(name).await;
    let sts = Sts::start();
    sts.echo(true);
    let stage = &scene.stage;
    let operator_secret = "operator+secret/key0123456789ABCDEFGHIJK";
    let tenant_secret = "tenant+secret/access/key0123456789abcdef";
    let tenant_token = "tenantsessiontoken//0123456789abcdefghijklmnopqrstuvwxyz==";
    let mut credentials = stage.object("v1", "Secret", "aws");
    credentials["stringData"] = json!({"access_key": "AKIATENANT0000000000", "secret_key": tenant_secret, "session_token": tenant_token});
    stage.plane.apply(&credentials).await;
    let mut account = stage.object("v1", "ServiceAccount", "app");
    account["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
    stage.plane.apply(&account).await;
    let mut needles = vec![
        Needle::new("operator's secret access key", operator_secret.as_bytes()),
        Needle::new("tenant's secret access key", tenant_secret.as_bytes()),
        Needle::new("tenant's session token", tenant_token.as_bytes()),
    ];
    let operator = scene
        .stage
        .operator()
        .env("AWS_ENDPOINT_URL_KMS", scene.kms.url())
        .env("AWS_ENDPOINT_URL_STS", sts.url())
        .env("AWS_SECRET_ACCESS_KEY", operator_secret)
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .with_flags(
            [
                "--watch-namespaces",
                &stage.namespace,
                "--log-format",
                format,
                "--log-level",
                "trace",
            ]
            .map(str::to_owned),
        );
    let running: Running = operator.start();

    let mut number = 0;
    let mut secret = |what: &str, needles: &mut Vec<Needle>| {
        number += 1;
        let bytes = random(32);
        needles.push(Needle::new(&format!("{what} {number}"), &bytes));
        bytes
    };
    // Well: raw, template, IRSA, text that is UTF-8.
    let bytes = secret("key", &mut needles);
    let ciphertext = scene.wrap(&bytes);
    needles.push(Needle::new("ciphertext", &ciphertext));
    let mut spec = crate::support::stage::simple(&scene.key.arn, &ciphertext, "well");
    spec["targets"][0]["secret"]["data"] = json!([
        {"name": "raw", "key": {"name": "root"}},
        {"name": "t", "template": "{{ keys[\"root\"].base64 }} {{ keys[\"root\"].hex }}"}]);
    stage.apply("well", &spec).await;
    stage.ready("well").await;
    let word = "correct horse battery staple".as_bytes();
    needles.push(Needle::new("word", word));
    let mut spec = scene.spec("irsa", word);
    spec["seals"][0]["awskms"]["credentials"] = json!({"serviceAccountRef": {"name": "app"}});
    spec["targets"][0]["secret"]["data"] = json!([{"name": "w", "template": "{{ keys[\"root\"].utf8 }}"}]);
    stage.apply("irsa", &spec).await;
    stage.ready("irsa").await;
    // Drift, repair, change.
    stage.plane.delete("Secret", &stage.namespace, "well").await;
    eventually("repaired", async || {
        stage
            .secret("well")
            .await
            .map(drop)
            .ok_or_else(|| "not yet".to_owned())
    })
    .await;

    // A KMS that repeats what it was sent, then what it was asked for; on every operation.
    for (name, act) in [
        ("echo-request", Act::EchoRequest),
        ("echo-plaintext", Act::EchoPlaintext),
        ("close", Act::CloseMidAnswer),
        ("other", Act::OtherBytes(random(32))),
        (
            "claims",
            Act::ClaimKey(scene.key.arn.replace(&scene.key.id, "no-such-key")),
        ),
        ("garbage", Act::Garbage),
    ] {
        scene.kms.always("Decrypt", act.clone());
        scene.kms.always("DescribeKey", act);
        let bytes = secret(name, &mut needles);
        let ciphertext = scene.wrap(&bytes);
        needles.push(Needle::new(&format!("ciphertext of {name}"), &ciphertext));
        let mut spec = crate::support::stage::simple(&scene.key.arn, &ciphertext, name);
        // A pinned value makes `other` a failure, too.
        spec["keys"][0]["checkValue"] = json!("0".repeat(64));
        stage.apply(name, &spec).await;
        let config = settled(&scene, name).await;
        assert_ne!(condition(&config, "Ready")["status"], "True", "{name}");
        println!("{format} {name}: {}", condition(&config, "Ready")["message"]);
        scene.kms.heal();
    }
    // Two copies that differ; a damaged one; one that is no text where text is asked for.
    let (one, two) = (secret("copy", &mut needles), secret("copy", &mut needles));
    let second = scene.kms.key();
    let mut spec = scene.spec("differ", &one);
    spec["seals"].as_array_mut().unwrap().push(
        json!({"name": "second", "awskms": {"kmsKeyID": second.arn, "credentials": {"secretRef": {"name": "aws"}}}}),
    );
    spec["keys"][0]["wrapped"]
        .as_array_mut()
        .unwrap()
        .push(json!({"seal": "second", "format": "kms",
        "inline": BASE64.encode(&scene.kms.encrypt(&second, &two, &Context::new()))}));
    stage.apply("differ", &spec).await;
    settled(&scene, "differ").await;
    let binary = [b"\xff\xfe".as_slice(), &secret("no text", &mut needles)].concat();
    needles.push(Needle::new("no text", &binary));
    let mut spec = scene.spec("utf8", &binary);
    spec["targets"][0]["secret"]["data"] = json!([{"name": "w", "template": "{{ keys[\"root\"].utf8 }}"}]);
    stage.apply("utf8", &spec).await;
    let config = settled(&scene, "utf8").await;
    assert_eq!(condition(&config, "Ready")["reason"], "TemplateInvalid");
    // An STS that repeats what it was sent.
    sts.refuse(Some((400, "InvalidIdentityToken")));
    stage
        .plane
        .apply(&stage.object("v1", "ServiceAccount", "other"))
        .await;
    let mut spec = scene.spec("sts-web", word);
    spec["seals"][0]["awskms"]["credentials"] =
        json!({"serviceAccountRef": {"name": "other", "roleARN": "arn:aws:iam::123456789012:role/other"}});
    stage.apply("sts-web", &spec).await;
    settled(&scene, "sts-web").await;
    sts.refuse(Some((403, "AccessDenied")));
    let mut spec = scene.spec("sts-assume", word);
    spec["seals"][0]["awskms"]["assumeRole"] = json!({"roleARN": "arn:aws:iam::123456789012:role/x"});
    stage.apply("sts-assume", &spec).await;
    settled(&scene, "sts-assume").await;
    // Credentials that are nonsense are not repeated either.
    let nonsense = "nonsense-that-is-a-pasted-secret-key-0123";
    needles.push(Needle::new("pasted secret", nonsense.as_bytes()));
    stage
        .secret_of(
            "odd",
            &[
                ("access_key", nonsense.as_bytes()),
                ("secret_key", nonsense.as_bytes()),
            ],
        )
        .await;
    let mut spec = scene.spec("odd-credentials", word);
    spec["seals"][0]["awskms"]["credentials"] = json!({"secretRef": {"name": "odd"}});
    stage.apply("odd-credentials", &spec).await;
    settled(&scene, "odd-credentials").await;

    for call in sts.calls() {
        if let Some(token) = call.field("WebIdentityToken") {
            needles.push(Needle::new("web identity token", token.as_bytes()));
            needles.push(Needle::new(
                "its signature",
                token.rsplit('.').next().unwrap().as_bytes(),
            ));
        }
        if let Some(issued) = call.issued {
            needles.push(Needle::new("issued secret", issued.secret_access_key.as_bytes()));
            needles.push(Needle::new("issued token", issued.session_token.as_bytes()));
        }
    }
    needles.push(Needle::new("a signature header", b"AWS4-HMAC-SHA256 Credential"));
    assert!(needles.iter().any(|needle| needle.what == "web identity token"));
    let metrics = running.metrics();
    let written = running.stop();
    assert!(written.len() > 1000, "the operator was silent at trace level");
    search(&needles, &said(stage, &written, &metrics).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_trace_level_in_json_nothing_secret_is_written() {
    life("secrecy-json", "json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_trace_level_in_text_nothing_secret_is_written() {
    life("secrecy-text", "text").await;
}

#[test]
fn the_search_itself_finds_every_form() {
    let secret = b"0123456789abcdef\x00\xff+/";
    let needle = Needle::new("secret", secret);
    let numbers = secret.map(|b| b.to_string()).join(", ");
    for text in [
        format!("key={}", data_encoding::HEXLOWER.encode(secret)),
        BASE64.encode(&[b"a".as_slice(), secret, b"tail"].concat()),
        BASE64.encode(&[b"ab".as_slice(), secret].concat()),
        data_encoding::BASE64URL.encode(&[b"abc".as_slice(), secret].concat()),
        format!("[9, {numbers}, 1]"),
        "0123456789abcdef%00%FF%2B%2F".into(),
    ] {
        assert!(needle.found_in(text.as_bytes()).is_some(), "{text}");
    }
    assert!(
        needle
            .found_in(b"0123456789abcdee and more of 0123456789abcde")
            .is_none()
    );
}
