//! Stanzas beside their readers: HCL by HashiCorp's own parsers, keys by the go-kms-wrapping wrappers of Vault and Boundary;
//! and the examples that ask for them.

use std::{
    collections::BTreeMap,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use autounseal::{
    api::SealConfig,
    delivery::{content::DeliveredKey, render},
    seal::{KeyBytes, model::parse},
    stanza::hcl::{Document, Value as Hcl},
};
use data_encoding::BASE64;
use proptest::{
    prelude::{Strategy, any, prop_oneof},
    sample::select,
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Value, json};

use crate::{
    secrecy::{said, search},
    support::{
        moto::Moto,
        needle::Needle,
        oci_caller::{Caller, profile},
        oci_scene::OciScene,
        plane::eventually,
        server::Scratch,
        stage::{Stage, random, repository},
    },
};

/// The Go program, with an environment of its own.
fn go(arguments: &[&str], input: &[u8], variables: &[(&str, &str)]) -> Result<Vec<u8>, String> {
    let program =
        std::env::var("AUTOUNSEAL_STANZA").expect("AUTOUNSEAL_STANZA is set by cargo xtask cluster");
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Text that configuration would rather not hold.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => select(vec![
            "\"", "\\", "${", "%{", "$${", "%%{", "}", "{", "$", "%", "\n", "\r\n", "\t", "\\u0024", "\\\"", "<<EOF\n", "EOF\n", "#", "//",
            "/*", "*/", "${file(\"/etc/passwd\")}", "%{ if true }", "\u{0}", "\u{7f}", "\u{feff}", "\u{e123}", "\u{2028}", "e\u{301}",
            "é", "😀", "\u{202e}", "seal \"x\" {", "\" disabled = \"true",
        ]).prop_map(str::to_owned),
        2 => "[ -~]{0,8}",
        1 => any::<String>(),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

#[test]
fn both_versions_of_hcl_read_back_what_was_meant() {
    let mut runner = TestRunner::default();
    let strategy = hostile();
    let (mut values, mut documents) = (Vec::new(), Vec::new());
    let mut refused = 0;
    while values.len() < 600 {
        let value = strategy.new_tree(&mut runner).unwrap().current();
        let mut document = Document::default();
        let attributes = [
            ("before", Hcl::Text("x")),
            ("value", Hcl::Text(&value)),
            ("after", Hcl::Number(7)),
        ];
        // Only what version 2 would change is refused, which is decomposed text.
        if document.block("seal", "awskms", &attributes).is_err() {
            assert!(!value.is_ascii(), "{value:?}");
            refused += 1;
            continue;
        }
        documents.extend_from_slice(&document.write());
        documents.push(0);
        values.push(value);
    }
    assert!(refused > 0, "no text was met that must be refused");
    let read = go(&["read"], &documents, &[]).unwrap();
    let lines: Vec<Value> = read
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines.len(), values.len());
    for (value, line) in values.iter().zip(&lines) {
        let expected = json!([{"kind": "seal", "label": "awskms", "values": {"before": "x", "value": value, "after": 7}}]);
        assert_eq!(line["v1"], expected, "by version 1");
        assert_eq!(line["v2"], expected, "by version 2");
    }
}

/// What Boundary uses keys for.
const PURPOSES: [(&str, &str); 8] = [
    ("root", "r"),
    ("previous-root", "p"),
    ("worker-auth", "w"),
    ("downstream-worker-auth", "d"),
    ("worker-auth-storage", "s"),
    ("recovery", "v"),
    ("config", "c"),
    ("bsr", "b"),
];

/// The text of one stanza; keys are handed over as if they were generated.
fn written(
    seals: &Value,
    keys: &Value,
    stanza: &Value,
    handed: &BTreeMap<String, DeliveredKey<'_>>,
) -> Vec<u8> {
    let config: SealConfig = serde_json::from_value(json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "x", "namespace": "x", "uid": "x"},
        "spec": {"seals": seals, "keys": keys, "targets": [
            {"name": "x", "secret": {"name": "x", "data": [{"name": "x", "stanza": stanza}]}}]},
    }))
    .unwrap();
    let model = parse(&config).unwrap();
    let content = render(&model.targets[0].entries, handed, &BTreeMap::new()).unwrap();
    content.get("x").unwrap().to_vec()
}

/// Holds the operator's own wrapping against the Go wrapper that this configuration makes, both ways, for every purpose.
fn both_ways(seal: &Value, caller: &Caller, variables: &[(&str, &str)]) {
    let manifest = |keys: &Value| {
        json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig", "metadata": {"name": "x", "namespace": "x"},
            "spec": {"seals": [seal], "keys": keys},
        })
        .to_string()
    };
    let name = seal["name"].as_str().unwrap();
    let (first, second): (Vec<_>, Vec<_>) = PURPOSES
        .iter()
        .map(|(purpose, _)| *purpose)
        .partition(|purpose| *purpose != "previous-root");
    for purposes in [first, second] {
        let stanza = json!({"boundary": {"seal": name, "purposes": purposes}});
        let file = Scratch::new(written(&json!([seal]), &json!([]), &stanza, &BTreeMap::new()));
        let path = file.path().display().to_string();
        let plaintext = random(32);
        let mut theirs = Vec::new();
        for purpose in &purposes {
            let blob = go(&["wrap", &path, purpose], &plaintext, variables).unwrap();
            theirs.push(String::from_utf8(blob).unwrap().trim().to_owned());
        }
        // All in one file, so that the command line opens them in one run each.
        let keys: Vec<Value> = purposes
            .iter()
            .zip(&theirs)
            .map(|(purpose, blob)| json!({"name": purpose, "purpose": purpose, "wrapped": [{"seal": name, "inline": blob}]}))
            .collect();
        let config = caller.file("theirs.yaml", manifest(&json!(keys)));
        for purpose in &purposes {
            let opened = caller
                .run(&["unwrap", "-f", &config, "--trust-file", "--key", purpose], b"")
                .ok();
            assert_eq!(opened, plaintext, "{purpose}: what the Go wrapper wrapped");
        }
        let config = caller.file("ours.yaml", manifest(&json!([])));
        let destination = seal
            .pointer("/awskms/kmsKeyID")
            .or_else(|| seal.pointer("/ocikms/keyID"))
            .and_then(Value::as_str)
            .unwrap();
        let arguments = [
            "wrap",
            "-f",
            &config,
            "--trust-file",
            "--key",
            "x",
            "--to",
            destination,
            "-o",
            "json",
        ];
        let ours = caller.run(&arguments, &plaintext).json();
        let blob = find(&ours, "inline").unwrap_or_else(|| panic!("no copy in {ours}"));
        for purpose in &purposes {
            let opened = go(&["unwrap", &path, purpose], blob.as_bytes(), variables).unwrap();
            assert_eq!(opened, plaintext, "{purpose}: what we wrapped");
        }
    }
}

/// The first text of that name anywhere.
fn find(value: &Value, name: &str) -> Option<String> {
    match value {
        Value::Object(map) => map
            .get(name)
            .and_then(Value::as_str)
            .map(ToOwned::to_owned)
            .or_else(|| map.values().find_map(|value| find(value, name))),
        Value::Array(list) => list.iter().find_map(|value| find(value, name)),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_wrapper_of_our_awskms_blocks_and_we_open_each_others_for_every_purpose() {
    let key = Moto::of_cluster("us-east-1").key().await;
    let url = std::env::var("AWS_ENDPOINT_URL_KMS").unwrap();
    let seal = json!({"name": "aws", "use": ["Wrap", "Native"],
        "awskms": {"kmsKeyID": key, "endpoint": url}});
    let identity = [
        ("AWS_ACCESS_KEY_ID", "AKIAINTEGRATIONTEST0"),
        ("AWS_SECRET_ACCESS_KEY", "integration-secret"),
    ];
    let mut caller = Caller::new().env("AWS_ENDPOINT_URL_KMS", url.clone());
    for (name, value) in identity {
        caller = caller.env(name, value);
    }
    tokio::task::spawn_blocking(move || both_ways(&seal, &caller, &identity))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_wrapper_of_our_ocikms_blocks_and_we_open_each_others_for_every_purpose() {
    let scene = OciScene::new("stanza-oci").await;
    let seal = json!({"name": "oci", "use": ["Wrap", "Native"], "ocikms": {
        "keyID": scene.key.id, "cryptoEndpoint": scene.oci.url("crypto"), "managementEndpoint": scene.oci.url("management"),
        "credentials": {"apiKey": {"secretRef": {"name": "oci"}}}}});
    let caller = Caller::with(&scene.user);
    let pem = caller.path(".oci/oci_api_key.pem").display().to_string();
    let config = caller.file("config", profile("DEFAULT", &scene.user, &pem));
    tokio::task::spawn_blocking(move || both_ways(&seal, &caller, &[("OCI_CONFIG_FILE", &config)]))
        .await
        .unwrap();
}

#[test]
fn aead_blocks_make_the_wrappers_that_boundary_makes_and_a_rotated_root_opens_what_the_one_before_wrapped() {
    let seals = json!([{"name": "aws", "awskms": {"kmsKeyID": "alias/x"}}]);
    let purposes = PURPOSES.iter().filter(|(purpose, _)| *purpose != "previous-root");
    let keys: Vec<Value> = purposes
        .clone()
        .map(|(purpose, name)| json!({"name": name, "purpose": purpose, "consumerKeyID": format!("global_{purpose}"), "generate": {}}))
        .collect();
    let bytes: BTreeMap<&str, [KeyBytes; 2]> = purposes
        .clone()
        .map(|(_, name)| (*name, [KeyBytes::new(random(32)), KeyBytes::new(random(32))]))
        .collect();
    let at = |version: usize| {
        let handed = purposes.clone().map(|(purpose, name)| {
            let id = |version: usize| format!("global_{purpose}{}", ["", "-2f0c1d3e"][version]);
            let rotated = version == 1 && *purpose == "root";
            let key = DeliveredKey {
                current: &bytes[name][usize::from(rotated)],
                consumer_key_id: id(usize::from(rotated)),
                previous: rotated.then(|| (&bytes[name][0], id(0))),
            };
            ((*name).to_owned(), key)
        });
        Scratch::new(written(
            &seals,
            &json!(keys),
            &json!({"boundaryAEAD": {}}),
            &handed.collect(),
        ))
    };
    let (before, after) = (at(0), at(1));
    let path = |file: &Scratch| file.path().display().to_string();
    let wrap =
        |file: &Scratch, purpose: &str| go(&["wrap", &path(file), purpose], b"scope key", &[]).unwrap();
    let unwrap = |file: &Path, purpose: &str, blob: &[u8]| {
        go(&["unwrap", &file.display().to_string(), purpose], blob, &[])
    };
    for (purpose, _) in purposes.clone() {
        let blob = wrap(&before, purpose);
        assert_eq!(
            unwrap(before.path(), purpose, &blob).unwrap(),
            b"scope key",
            "{purpose}"
        );
        // Every key but the root stays; the root's old data is opened by the one before it.
        assert_eq!(
            unwrap(after.path(), purpose, &blob).unwrap(),
            b"scope key",
            "{purpose} after the rotation"
        );
    }
    let blob = wrap(&after, "root");
    assert_eq!(unwrap(after.path(), "root", &blob).unwrap(), b"scope key");
    assert!(
        unwrap(before.path(), "root", &blob).is_err(),
        "the new root wraps, not the one before"
    );
    let message = BASE64.decode(blob.trim_ascii()).unwrap();
    let id = b"global_root-2f0c1d3e";
    assert!(
        message.windows(id.len()).any(|part| part == id),
        "the blob names the new root"
    );
}

/// A SealConfig of the examples, in a namespace of this test's own.
fn example(stage: &Stage, file: &str) -> Value {
    let text = std::fs::read_to_string(repository("examples").join(file)).unwrap();
    let mut object: Value = serde_yaml::from_str(&text).unwrap();
    object["metadata"]["namespace"] = json!(stage.namespace);
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_with_native_seals_are_delivered() {
    let stage = Stage::bare("native-examples", &json!({})).await;
    let _operator = stage.operator().start();
    stage
        .plane
        .apply(&example(&stage, "03-boundary-native-oci.yaml"))
        .await;
    let mut vault = example(&stage, "06-vault-native-awskms.yaml");
    vault["spec"].as_object_mut().unwrap().remove("unseal");
    stage.plane.apply(&vault).await;
    let secret = async |name: &str| {
        eventually(name, async || {
            stage.secret(name).await.ok_or_else(|| "not there".to_owned())
        })
        .await
    };
    let boundary = secret("boundary-kms").await;
    let kms = String::from_utf8(boundary["kms.hcl"].clone()).unwrap();
    let read: Value = serde_json::from_slice(&go(&["read"], kms.as_bytes(), &[]).unwrap()).unwrap();
    let purposes: Vec<_> = read["v1"]
        .as_array()
        .unwrap()
        .iter()
        .map(|block| block["values"]["purpose"].as_str().unwrap())
        .collect();
    assert_eq!(purposes, ["root", "worker-auth", "recovery", "config"]);
    let vault = secret("vault-seal").await;
    let variables = [
        "AWS_REGION",
        "VAULT_AWSKMS_SEAL_KEY_ID",
        "VAULT_SEAL_TYPE",
        "seal.hcl",
    ];
    assert_eq!(vault.keys().collect::<Vec<_>>(), variables);
    assert_eq!(vault["VAULT_AWSKMS_SEAL_KEY_ID"], b"alias/vault-seal");
}

/// A seal that moto serves, for examples whose own name KMS keys that nobody has.
async fn moto_seal() -> Value {
    json!({"name": "aws", "awskms": {"kmsKeyID": Moto::of_cluster("us-east-1").key().await, "region": "us-east-1",
        "credentials": {"secretRef": {"name": "aws"}}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn boundary_gets_the_generated_keys_of_the_example_each_process_its_own() {
    let stage = Stage::new("aead-example").await;
    let operator = stage.operator().start();
    let mut boundary = example(&stage, "02-boundary-aws.yaml");
    boundary["spec"]["seals"] = json!([moto_seal().await]);
    stage.plane.apply(&boundary).await;
    let file = async |secret: &str| {
        let entries = eventually(secret, async || {
            stage.secret(secret).await.ok_or_else(|| "not there".to_owned())
        });
        Scratch::new(&entries.await["kms.hcl"])
    };
    let controller = file("boundary-controller-kms").await;
    let text = std::fs::read_to_string(controller.path()).unwrap();
    let keys: Vec<Needle> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("key ")?.split('"').nth(1))
        .map(|key| Needle::new("a key", &BASE64.decode(key.as_bytes()).unwrap()))
        .collect();
    assert_eq!(keys.len(), 4);
    let worker = file("boundary-worker-kms").await;
    let path = |file: &Scratch| file.path().display().to_string();
    for purpose in ["root", "worker-auth", "recovery", "config"] {
        let blob = go(&["wrap", &path(&controller), purpose], b"data", &[]).unwrap();
        let opened = go(&["unwrap", &path(&worker), purpose], &blob, &[]);
        // A worker shares its authentication with the controller, and has nothing else.
        assert_eq!(opened.is_ok(), purpose == "worker-auth", "{purpose}: {opened:?}");
    }
    stage.ready("boundary").await;
    search(&keys, &said(&stage, &operator.output(), "").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_consumer_could_start_with_is_refused_by_the_apiserver() {
    let stage = Stage::bare("bad-stanzas", &json!({})).await;
    let config = |secret: &Value| {
        let mut secret = secret.clone();
        secret["name"] = json!("x");
        let key = |name: &str, purpose: &str, bytes: u8| json!({"name": name, "purpose": purpose, "generate": {"bytes": bytes}});
        stage.seal_config("x", &json!({
            "controllerClass": "none",
            "seals": [
                {"name": "aws", "awskms": {"kmsKeyID": "alias/x", "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}},
                {"name": "irsa", "awskms": {"kmsKeyID": "alias/x", "credentials": {"serviceAccountRef": {"name": "x"}}}},
            ],
            "keys": [key("root", "root", 32), key("short", "root", 16), key("app", "other", 32)],
            "targets": [{"name": "x", "secret": secret}],
        }))
    };
    let stanza = |stanza: Value| json!({"data": [{"name": "x", "stanza": stanza}]});
    let files = |key: &str, mount: &str, current: &str| {
        stanza(json!({"openbaoStatic": {"key": key, "mountPath": mount, "currentFile": current}}))
    };
    let native = |purposes: Value| stanza(json!({"boundary": {"seal": "aws", "purposes": purposes}}));
    for good in [
        stanza(json!({"vault": {"seals": ["aws", "irsa"]}})),
        stanza(json!({"vault": {"seals": ["aws"], "includeCredentials": true}})),
        stanza(json!({"boundaryAEAD": {"keys": ["root"]}})),
        files("root", "/a", "current.key"),
        native(json!(["root", "bsr"])),
        json!({"env": {"openbao": {"seals": ["irsa"]}}}),
    ] {
        stage.plane.create(&config(&good)).await;
        stage.plane.delete("SealConfig", &stage.namespace, "x").await;
    }
    let refused = [
        (stanza(json!({})), "exactly one of vault"),
        (
            stanza(json!({"vault": {"seals": ["aws"]}, "openbao": {"seals": ["aws"]}})),
            "exactly one of vault",
        ),
        (
            stanza(json!({"vault": {"seals": ["none"]}})),
            "must name seals of spec.seals",
        ),
        (
            stanza(json!({"vault": {"seals": ["aws", "aws"]}})),
            "Duplicate value",
        ),
        (stanza(json!({"vault": {"seals": []}})), "at least 1 item"),
        (
            stanza(json!({"openbao": {"seals": ["irsa"], "includeCredentials": true}})),
            "static credentials in a Secret",
        ),
        (
            stanza(json!({"boundary": {"seal": "none", "purposes": ["root"]}})),
            "must name seals of spec.seals",
        ),
        (
            stanza(json!({"boundary": {"seal": "irsa", "purposes": ["root"], "includeCredentials": true}})),
            "static credentials in a Secret",
        ),
        (native(json!([])), "at least 1 item"),
        (native(json!(["static"])), "purposes are Boundary's"),
        (native(json!(["unseal-share"])), "purposes are Boundary's"),
        (native(json!(["root", "root"])), "Duplicate value"),
        (
            native(json!(["root", "previous-root"])),
            "root and previous-root at once",
        ),
        (
            stanza(json!({"boundaryAEAD": {"keys": ["none"]}})),
            "take keys of spec.keys of 32 bytes",
        ),
        (
            stanza(json!({"boundaryAEAD": {"keys": ["short"]}})),
            "take keys of spec.keys of 32 bytes",
        ),
        (
            stanza(json!({"boundaryAEAD": {"keys": ["app"]}})),
            "take keys of spec.keys of 32 bytes",
        ),
        (
            files("short", "/a", "current.key"),
            "take keys of spec.keys of 32 bytes",
        ),
        (files("root", "relative", "current.key"), "mountPath"),
        (files("root", "/a%zz", "current.key"), "mountPath"),
        (files("root", "/a", "previous.key"), "two files"),
        (json!({"env": {}}), "exactly one of vault, openbao"),
        (
            json!({"env": {"vault": {"seals": ["aws", "irsa"]}}}),
            "one seal only",
        ),
        (
            json!({"env": {"vault": {"seals": ["none"]}}}),
            "must name a seal of spec.seals",
        ),
        (
            json!({"env": {"vault": {"seals": ["irsa"], "includeCredentials": true}}}),
            "static credentials in a Secret",
        ),
        (
            json!({"data": [{"name": "x", "template": "x", "stanza": {"boundaryAEAD": {}}}]}),
            "exactly one of key, stanza, template",
        ),
    ];
    for (secret, words) in refused {
        let refusal = stage
            .plane
            .try_create(&config(&secret))
            .await
            .expect_err(&secret.to_string());
        assert!(refusal.message.contains(words), "{secret}: {}", refusal.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_follow_their_secret_and_temporary_ones_are_not_written() {
    let stage = Stage::new("stanza-credentials").await;
    let operator = stage.operator().start();
    let mut seal = moto_seal().await;
    seal["use"] = json!(["Native"]);
    let spec = json!({"seals": [seal], "targets": [{"name": "x", "secret": {
        "name": "x", "env": {"vault": {"seals": ["aws"], "includeCredentials": true}}}}]});
    stage.apply("x", &spec).await;
    let holds = async |id: &str| {
        eventually(&format!("access key {id}"), async || {
            let found = stage
                .secret("x")
                .await
                .and_then(|mut data| data.remove("AWS_ACCESS_KEY_ID"));
            let shown = found
                .as_deref()
                .map(String::from_utf8_lossy)
                .unwrap_or_default()
                .into_owned();
            (shown == id).then_some(()).ok_or(shown)
        })
        .await;
    };
    holds("AKIAINTEGRATIONTEST0").await;
    stage
        .credentials("aws", "AKIAINTEGRATIONTEST1", "integration-secret")
        .await;
    holds("AKIAINTEGRATIONTEST1").await;
    let before = stage.whole_secret("x").await;
    let temporary: [(&str, &[u8]); 3] = [
        ("access_key", b"ASIAINTEGRATIONTEST2"),
        ("secret_key", b"integration-secret"),
        ("session_token", b"token"),
    ];
    stage.secret_of("aws", &temporary).await;
    let message = stage.not_ready("x", "InvalidSpec").await;
    assert!(message.contains("temporary"), "{message}");
    let secret = Needle::new("the secret access key", b"integration-secret");
    search(&[secret], &said(&stage, &operator.output(), "").await);
    // The last good Secret stays as it is.
    let after = stage.whole_secret("x").await;
    assert_eq!(
        before["metadata"]["resourceVersion"],
        after["metadata"]["resourceVersion"]
    );
}
