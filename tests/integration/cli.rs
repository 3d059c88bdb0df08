//! The command line with the caller's own identity, on friendly and on hostile files (security rule S14).

use std::{
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::{
    binary,
    http::{Reply, Server},
    kms::Kms,
    moto::Moto,
    stage::{Stage, random, unique},
};

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("autounseal-cli-{}", unique()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Done {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Done {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

/// Runs `autounseal` as a caller with an identity for this KMS.
fn run(kms: &str, arguments: &[&str], input: &[u8]) -> Done {
    let mut child = Command::new(binary())
        .args(arguments)
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_ENDPOINT_URL_KMS", kms)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ACCESS_KEY_ID", "AKIACALLER0000000000")
        .env("AWS_SECRET_ACCESS_KEY", "caller-secret")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that ends before it reads its input is fine.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn manifest(awskms: &Value, keys: &Value) -> String {
    json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "app", "namespace": "apps"},
        "spec": {"seals": [{"name": "aws", "awskms": awskms}], "keys": keys},
    })
    .to_string()
}

fn wrapped(done: &Done) -> Value {
    assert_eq!(done.code, 0, "{}", done.err);
    serde_json::from_slice::<Value>(&done.out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_wrapped_and_unwrapped_in_both_formats_and_the_operator_reads_the_same() {
    let kms = std::env::var("AWS_ENDPOINT_URL_KMS").unwrap();
    let folder = Folder::new();
    let arn = Moto::of_cluster("us-east-1").key().await;
    let seals = folder.file("seals.yaml", manifest(&json!({"kmsKeyID": arn}), &json!([])));
    let stage = Stage::new("cli").await;
    let _operator = stage.operator().start();
    for (format, context) in [
        ("blobinfo", None),
        ("kms", None),
        ("kms", Some("Tool=bank-vaults")),
    ] {
        let key = random(32);
        let mut arguments = vec![
            "wrap", "-f", &seals, "--key", "root", "--to", &arn, "--format", format, "-o", "json",
        ];
        if let Some(context) = context {
            arguments.extend(["--context", context]);
        }
        let copies = wrapped(&run(&kms, &arguments, &key))["wrapped"].clone();
        assert_eq!(copies[0]["seal"], "aws");
        assert_eq!(copies[0]["format"], format);
        let keys = json!([{"name": "root", "wrapped": copies}]);
        let file = folder.file("whole.yaml", manifest(&json!({"kmsKeyID": arn}), &keys));
        let opened = run(&kms, &["unwrap", "-f", &file, "--key", "root"], b"");
        assert_eq!((opened.code, &opened.out), (0, &key), "{}", opened.err);
        assert!(!opened.err.contains(&data_encoding::BASE64.encode(&key)));
        let told = run(&kms, &["unwrap", "-f", &file, "--key", "root", "-o", "json"], b"");
        let told: Value = serde_json::from_slice(&told.out).unwrap();
        assert_eq!(
            told,
            json!({"key": "root", "base64": data_encoding::BASE64.encode(&key)})
        );
        // Into a file of the caller's only.
        let out = folder.path(&format!("out-{format}-{}", context.is_some()));
        let done = run(
            &kms,
            &[
                "unwrap",
                "-f",
                &file,
                "--key",
                "root",
                "--out-file",
                out.to_str().unwrap(),
            ],
            b"",
        );
        assert_eq!((done.code, done.out.len()), (0, 0), "{}", done.err);
        assert_eq!(std::fs::read(&out).unwrap(), key);
        assert_eq!(
            std::fs::metadata(&out).unwrap().permissions().mode() & 0o777,
            0o600
        );

        let name = format!("{format}-{}", context.is_some());
        let mut spec = crate::support::stage::simple(&arn, b"-", &name);
        spec["keys"] = keys;
        stage.apply(&name, &spec).await;
        stage.delivered(&name, &[("root", &key)]).await;
    }
}

#[test]
fn text_output_is_yaml_to_paste() {
    let kms = Kms::start();
    let folder = Folder::new();
    let key = kms.key();
    let seals = folder.file("seals.yaml", manifest(&json!({"kmsKeyID": key.arn}), &json!([])));
    let done = run(
        &kms.url(),
        &["wrap", "-f", &seals, "--key", "root", "--to", &key.arn],
        &random(32),
    );
    assert_eq!(done.code, 0, "{}", done.err);
    let read: Value = serde_yaml::from_str(&done.text()).unwrap();
    assert_eq!(read["wrapped"][0]["seal"], "aws");
    assert_eq!(read["wrapped"][0]["format"], "blobinfo");
    assert!(read["checkValue"].as_str().is_some_and(|value| value.len() == 64));
}

#[test]
fn a_hostile_files_endpoint_role_and_credentials_are_ignored() {
    let kms = Kms::start();
    let trap = Server::start(|_| Reply::new(200, "text/plain", "thank you"));
    let folder = Folder::new();
    let key = kms.key();
    let hostile = json!({"kmsKeyID": key.arn, "endpoint": trap.url(), "credentials": {"secretRef": {"name": "x"}},
        "assumeRole": {"roleARN": "arn:aws:iam::999999999999:role/evil"}});
    let seals = folder.file("seals.yaml", manifest(&hostile, &json!([])));
    let secret = random(32);
    let done = run(
        &kms.url(),
        &[
            "wrap", "-f", &seals, "--key", "root", "--to", &key.arn, "-o", "json",
        ],
        &secret,
    );
    let copies = wrapped(&done)["wrapped"].clone();
    assert!(
        done.err.contains("endpoint") || done.err.contains("--trust-file"),
        "it says what it left out: {}",
        done.err
    );
    let whole = folder.file(
        "whole.yaml",
        manifest(&hostile, &json!([{"name": "root", "wrapped": copies}])),
    );
    let opened = run(&kms.url(), &["unwrap", "-f", &whole, "--key", "root"], b"");
    assert_eq!((opened.code, &opened.out), (0, &secret), "{}", opened.err);
    assert_eq!((trap.connections(), trap.bytes()), (0, 0));
    assert!(
        kms.calls()
            .iter()
            .all(|call| call.access_key_id == "AKIACALLER0000000000")
    );

    // With the caller's word the endpoint is used.
    let _ = run(
        &kms.url(),
        &["unwrap", "-f", &whole, "--key", "root", "--trust-file"],
        b"",
    );
}

#[test]
fn without_a_named_destination_nothing_is_sent() {
    let kms = Kms::start();
    let folder = Folder::new();
    let (key, other) = (kms.key(), kms.key());
    kms.alias("alias/a", &key);
    let seals = folder.file("seals.yaml", manifest(&json!({"kmsKeyID": key.arn}), &json!([])));
    let no_destination = run(&kms.url(), &["wrap", "-f", &seals, "--key", "root"], &random(32));
    assert_eq!(no_destination.code, 2, "{}", no_destination.err);
    assert!(no_destination.err.contains("--to"), "{}", no_destination.err);
    // A destination that the file does not name is not what the caller meant.
    let elsewhere = run(
        &kms.url(),
        &["wrap", "-f", &seals, "--key", "root", "--to", &other.arn],
        &random(32),
    );
    assert_ne!(elsewhere.code, 0);
    assert_eq!(kms.calls().len(), 0);
    // Of several seals only the named one gets the key.
    let two = json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig", "metadata": {"name": "app", "namespace": "apps"},
        "spec": {"seals": [{"name": "mine", "awskms": {"kmsKeyID": key.arn}}, {"name": "evil", "awskms": {"kmsKeyID": other.arn}}]},
    });
    let two = folder.file("two.yaml", two.to_string());
    let done = run(
        &kms.url(),
        &[
            "wrap", "-f", &two, "--key", "root", "--to", &key.arn, "-o", "json",
        ],
        &random(32),
    );
    let copies = wrapped(&done)["wrapped"].clone();
    assert_eq!(copies.as_array().unwrap().len(), 1);
    assert_eq!(copies[0]["seal"], "mine");
    assert!(
        kms.calls()
            .iter()
            .all(|call| call.key_id.as_deref() != Some(&other.arn))
    );
}

#[test]
fn nothing_new_goes_under_a_disabled_seal_unless_it_is_asked_for() {
    let kms = Kms::start();
    let folder = Folder::new();
    let key = kms.key();
    let seal = json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig", "metadata": {"name": "app", "namespace": "apps"},
        "spec": {"seals": [{"name": "old", "disabled": true, "awskms": {"kmsKeyID": key.arn}}]},
    });
    let file = folder.file("disabled.yaml", seal.to_string());
    let wrap = |more: &[&str]| {
        let mut arguments = vec!["wrap", "-f", &file, "--key", "root", "--to", &key.arn];
        arguments.extend(more);
        run(&kms.url(), &arguments, &random(32)).code
    };
    assert_eq!((wrap(&[]), kms.calls().len()), (2, 0));
    assert_eq!(wrap(&["--seal", "old"]), 0);
}

#[test]
fn output_files_are_never_overwritten_or_followed() {
    let kms = Kms::start();
    let folder = Folder::new();
    let key = kms.key();
    let copy = data_encoding::BASE64.encode(&kms.encrypt(
        &key,
        b"0123456789abcdef",
        &crate::support::kms::Context::new(),
    ));
    let keys = json!([{"name": "root", "wrapped": [{"seal": "aws", "format": "kms", "inline": copy}]}]);
    let whole = folder.file("whole.yaml", manifest(&json!({"kmsKeyID": key.arn}), &keys));
    let existing = folder.file("existing", "precious");
    let target = folder.path("target");
    let link = folder.path("link");
    symlink(&target, &link).unwrap();
    let link_to_existing = folder.path("link-2");
    symlink(&existing, &link_to_existing).unwrap();
    for out in [Path::new(&existing), &link, &link_to_existing] {
        let done = run(
            &kms.url(),
            &[
                "unwrap",
                "-f",
                &whole,
                "--key",
                "root",
                "--out-file",
                out.to_str().unwrap(),
            ],
            b"",
        );
        assert_ne!(done.code, 0, "{}", out.display());
    }
    assert_eq!(std::fs::read_to_string(&existing).unwrap(), "precious");
    assert!(!target.exists());
    // A failed opening leaves no file behind.
    kms.set_state(&key, "Disabled");
    let out = folder.path("never");
    let done = run(
        &kms.url(),
        &[
            "unwrap",
            "-f",
            &whole,
            "--key",
            "root",
            "--out-file",
            out.to_str().unwrap(),
        ],
        b"",
    );
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.err.contains("KeyDisabled"), "{}", done.err);
    assert!(!out.exists() || std::fs::metadata(&out).unwrap().len() == 0);
}

#[test]
fn aliases_and_huge_files_are_refused() {
    let folder = Folder::new();
    let bomb = "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n";
    let bomb = folder.file("bomb.yaml", bomb);
    let huge = format!(
        "{}\n# {}\n",
        manifest(&json!({"kmsKeyID": "alias/a"}), &json!([])),
        "x".repeat(1 << 20)
    );
    let huge = folder.file("huge.yaml", huge);
    let made = json!([{"name": "made", "generate": {}}]);
    let good = folder.file("made.yaml", manifest(&json!({"kmsKeyID": "alias/a"}), &made));
    for file in [&bomb, &huge] {
        for arguments in [
            vec!["check", "-f", file],
            vec![
                "wrap",
                "-f",
                file,
                "--key",
                "root",
                "--to",
                "arn:aws:kms:us-east-1:123456789012:key/x",
            ],
            vec!["unwrap", "-f", file, "--key", "root"],
            vec!["unwrap", "-f", &good, "--store", file, "--key", "made"],
            vec!["rewrap", "-f", file],
            vec!["rewrap", "-f", file, "--in-place"],
        ] {
            let done = run("http://127.0.0.1:9", &arguments, b"0123456789abcdef");
            assert!(
                matches!(done.code, 1 | 2),
                "{arguments:?}: {} {}",
                done.code,
                done.err
            );
            assert!(!done.err.is_empty() || !done.out.is_empty());
        }
    }
}

#[test]
fn errors_of_a_hostile_kms_are_not_repeated() {
    let kms = Kms::start();
    let folder = Folder::new();
    let key = kms.key();
    let secret = random(32);
    kms.always("Decrypt", crate::support::kms::Act::EchoPlaintext);
    kms.always("Encrypt", crate::support::kms::Act::EchoRequest);
    let copy =
        data_encoding::BASE64.encode(&kms.encrypt(&key, &secret, &crate::support::kms::Context::new()));
    let keys = json!([{"name": "root", "wrapped": [{"seal": "aws", "format": "kms", "inline": copy}]}]);
    let whole = folder.file("whole.yaml", manifest(&json!({"kmsKeyID": key.arn}), &keys));
    let needles = [
        crate::support::needle::Needle::new("key", &secret),
        crate::support::needle::Needle::new("signature", b"AWS4-HMAC-SHA256 Credential"),
    ];
    for arguments in [
        vec!["unwrap", "-f", &whole, "--key", "root"],
        vec![
            "wrap", "-f", &whole, "--key", "root", "--to", &key.arn, "--format", "kms",
        ],
        vec!["rewrap", "-f", &whole, "--to", &key.arn],
    ] {
        let done = run(&kms.url(), &arguments, &secret);
        assert_eq!(done.code, 1, "{}", done.err);
        for needle in &needles {
            assert_eq!(needle.found_in(done.err.as_bytes()), None, "{}", done.err);
            assert_eq!(needle.found_in(&done.out), None);
        }
    }
}

#[test]
fn manifests_are_checked_offline() {
    let folder = Folder::new();
    let good = folder.file(
        "good.yaml",
        manifest(
            &json!({"kmsKeyID": "alias/a"}),
            &json!([{"name": "root", "wrapped": [{"seal": "aws", "inline": "AAAA"}]}]),
        ),
    );
    let done = run("http://127.0.0.1:9", &["check", "-f", &good], b"");
    assert_eq!(done.code, 0, "{} {}", done.text(), done.err);
    assert!(
        done.text().contains("root"),
        "the plan is printed: {}",
        done.text()
    );
    let bad = folder.file(
        "bad.yaml",
        manifest(
            &json!({"kmsKeyID": "alias/a", "regoin": "x"}),
            &json!([{"name": "root", "wrapped": [{"seal": "nobody", "inline": "AAAA"}]}]),
        ),
    );
    let done = run("http://127.0.0.1:9", &["check", "-f", &bad], b"");
    assert_eq!(done.code, 1, "{} {}", done.text(), done.err);
    assert!((done.text() + &done.err).contains("regoin"));
    assert_eq!(
        run("http://127.0.0.1:9", &["check", "-f", "/nonexistent/file"], b"").code,
        2
    );
    assert_eq!(run("http://127.0.0.1:9", &["check"], b"").code, 2);
    let done = run("http://127.0.0.1:9", &["check", "-o", "json", "-f", &good], b"");
    assert!(
        serde_json::from_slice::<Value>(&done.out).is_ok(),
        "{}",
        done.text()
    );
}

/// 100 and 100.0 are the same bound.
fn numbers(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(list) => list.iter().map(numbers).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(name, value)| (name.clone(), numbers(value)))
            .collect(),
        other => other.clone(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_definitions_are_those_that_the_apiserver_has() {
    let done = run("http://127.0.0.1:9", &["crd"], b"");
    assert_eq!(done.code, 0, "{}", done.err);
    let list: Value =
        serde_json::from_slice(&run("http://127.0.0.1:9", &["crd", "-o", "json"], b"").out).unwrap();
    assert_eq!(list["items"], json!(autounseal::api::crds()));
    let stage = Stage::bare("crd", &json!({})).await;
    let mut found = 0;
    for document in serde_yaml::Deserializer::from_str(&done.text()) {
        let printed: Value = serde::Deserialize::deserialize(document).unwrap();
        let name = printed["metadata"]["name"].as_str().unwrap();
        let there = stage
            .plane
            .get("CustomResourceDefinition", "", name)
            .await
            .expect(name);
        for (ours, theirs) in printed["spec"]["versions"]
            .as_array()
            .unwrap()
            .iter()
            .zip(there["spec"]["versions"].as_array().unwrap())
        {
            // Nothing that we print is dropped by the apiserver.
            let (ours, theirs) = (numbers(&ours["schema"]), numbers(&theirs["schema"]));
            assert!(
                ours == theirs,
                "the definitions of the cluster are not those of this build: cargo xtask gen"
            );
        }
        found += 1;
    }
    assert!(found >= 1);
}

#[test]
fn the_version_is_printed_and_misuse_is_2() {
    let done = run("http://127.0.0.1:9", &["version"], b"");
    assert_eq!(done.code, 0);
    assert!(done.text().contains(env!("CARGO_PKG_VERSION")), "{}", done.text());
    for arguments in [
        vec!["nonsense"],
        vec!["wrap"],
        vec!["unwrap", "--key", "x"],
        vec!["controller", "--no-such-flag"],
    ] {
        assert_eq!(
            run("http://127.0.0.1:9", &arguments, b"").code,
            2,
            "{arguments:?}"
        );
    }
}
