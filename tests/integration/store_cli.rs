//! The wrapped store from outside of the operator: a Go program that knows only docs/store.md, and the command line with
//! the caller's own identities in both clouds.

use std::os::unix::fs::PermissionsExt;

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    kms::{Context, Key, Kms},
    oci_caller::{Caller, Done},
    oci_scene::{OciScene, by_secret},
    operator::Running,
    plane::eventually,
    stage::{named, random, repository, unique},
};

/// A seal in each cloud, an operator, and a caller who may use both keys.
struct Clouds {
    scene: OciScene,
    kms: Kms,
    key: Key,
    caller: Caller,
    _operator: Running,
}

impl Clouds {
    async fn new(name: &str) -> Self {
        let scene = OciScene::new(name).await;
        scene
            .stage
            .credentials("aws", "AKIAINTEGRATIONTEST0", "integration-secret")
            .await;
        let kms = Kms::start();
        let key = kms.key();
        let caller = Caller::with(&scene.user);
        let config = caller.path(".oci/config").display().to_string();
        let caller = caller
            .env("AWS_ENDPOINT_URL_KMS", kms.url())
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "AKIACALLER0000000000")
            .env("AWS_SECRET_ACCESS_KEY", "caller-secret")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("OCI_CONFIG_FILE", config)
            .env("KUBECONFIG", std::env::var("KUBECONFIG").unwrap());
        let operator = scene.operator().env("AWS_ENDPOINT_URL_KMS", kms.url()).start();
        Self {
            scene,
            kms,
            key,
            caller,
            _operator: operator,
        }
    }

    /// Both seals, these keys, and a target with these entries.
    fn spec(&self, keys: &Value, data: &Value, secret: &str) -> Value {
        let mut spec = self.scene.spec_as(&by_secret("oci"), &json!({}), secret);
        let oci = spec["seals"][0].clone();
        spec["seals"] = json!([self.aws(), oci]);
        spec["keys"] = keys.clone();
        if !data.is_null() {
            spec["targets"][0]["secret"]["data"] = data.clone();
        }
        spec
    }

    fn aws(&self) -> Value {
        json!({"name": "aws", "priority": 10, "awskms": {
            "kmsKeyID": self.key.arn, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}},
        }})
    }

    /// Makes a key and waits for its delivery.
    async fn generated(&self, name: &str) -> Vec<u8> {
        let spec = self.spec(&json!([{"name": "static", "generate": {}}]), &Value::Null, name);
        self.scene.stage.apply(name, &spec).await;
        self.scene.stage.ready(name).await;
        self.entry(name, "static").await
    }

    async fn entry(&self, secret: &str, entry: &str) -> Vec<u8> {
        self.scene.stage.secret(secret).await.unwrap()[entry].clone()
    }

    /// The store as kubectl would print it.
    async fn store(&self, name: &str) -> Value {
        self.scene
            .stage
            .whole_secret(&format!("{name}.sealconfig.wrapped"))
            .await
    }

    /// Opens a copy with the Go program.
    fn go(&self, copy: &Value, entry: &str, place: &Value, payload: Option<&Value>) -> Done {
        let provider = copy["provider"].as_str().unwrap();
        let endpoint = if provider == "awskms" {
            self.kms.url()
        } else {
            self.scene.oci.url("crypto")
        };
        let place = place.to_string();
        let key_id = copy["keyID"].as_str().unwrap();
        #[rustfmt::skip]
        let mut arguments = vec!["-provider", provider, "-key-id", key_id, "-endpoint", &endpoint, "-place", &place];
        let payload = payload.map(ToString::to_string);
        if let Some(payload) = &payload {
            arguments.extend(["-payload-place", payload]);
        }
        self.caller.wrappedstore(&arguments, entry.as_bytes())
    }

    /// `autounseal unwrap` of the SealConfig in the cluster.
    fn unwrap(&self, name: &str, more: &[&str]) -> Done {
        let mut arguments = vec!["unwrap", "-n", &self.scene.stage.namespace, name, "--trust-file"];
        arguments.extend(more);
        self.caller.run(&arguments, b"")
    }

    /// `autounseal unwrap` of key `static` from files, without the cluster.
    fn break_glass(&self, file: &str, store: &str, more: &[&str]) -> Done {
        #[rustfmt::skip]
        let mut arguments = vec!["unwrap", "-f", file, "--store", store, "--key", "static", "--trust-file"];
        arguments.extend(more);
        self.caller.run(&arguments, b"")
    }

    /// A file with the SealConfig as it is applied.
    async fn file(&self, name: &str) -> String {
        let config = self.scene.stage.config(name).await;
        self.caller.file("seal.json", config.to_string())
    }
}

fn header(store: &Value) -> Value {
    let text = store["data"]["header"].as_str().unwrap();
    serde_json::from_slice(&BASE64.decode(text.as_bytes()).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_go_program_that_knows_the_documentation_opens_both_copies_and_none_out_of_its_place() {
    let clouds = Clouds::new("store-go").await;
    let delivered = clouds.generated("app").await;
    assert_eq!(delivered.len(), 32);
    let store = clouds.store("app").await;
    assert_eq!(store["type"], "autounseal.dev/wrapped");
    let copies = header(&store)["keys"]["static"]["section"]["versions"]["1"]["copies"].clone();
    let place = json!({
        "binding": "1", "domain": "autounseal", "kind": "SealConfig", "namespace": clouds.scene.stage.namespace, "name": "app",
        "class": "key", "item": "static", "version": 1,
    });
    for seal in ["aws", "oci"] {
        let copy = &copies[seal];
        let entry = store["data"][format!("key.static.v1.{seal}")].as_str().unwrap();
        let opened = clouds.go(copy, entry, &place, None);
        assert_eq!(opened.code, 0, "{seal}: {}", opened.err);
        assert!(opened.out == delivered, "{seal}: other bytes");
        for (part, other) in [
            ("binding", json!("2")),
            ("domain", json!("elsewhere")),
            ("kind", json!("ManagedKey")),
            ("namespace", json!("other")),
            ("name", json!("other")),
            ("class", json!("unseal-share")),
            ("item", json!("root")),
            ("version", json!(2)),
        ] {
            let mut elsewhere = place.clone();
            elsewhere[part] = other;
            let refused = clouds.go(copy, entry, &elsewhere, None);
            assert_eq!((refused.code, refused.out.len()), (1, 0), "{seal}, {part}");
            assert!(
                refused.err.contains("data key:"),
                "{seal}, {part}: {}",
                refused.err
            );
            // Even a KMS that heeds no context leaves the payload shut.
            let refused = clouds.go(copy, entry, &place, Some(&elsewhere));
            assert_eq!((refused.code, refused.out.len()), (1, 0), "{seal}, {part}");
            assert!(
                refused.err.contains("payload:"),
                "{seal}, {part}: {}",
                refused.err
            );
        }
    }
}

/// The script of docs/store.md.
pub fn script() -> String {
    let page = std::fs::read_to_string(repository("docs/store.md")).unwrap();
    let (_, rest) = page.split_once("```python\n").unwrap();
    rest.split_once("\n```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_of_the_documentation_opens_both_copies() {
    let clouds = Clouds::new("store-script").await;
    let delivered = clouds.generated("app").await;
    let store = clouds.store("app").await.to_string();
    let script = clouds.caller.file("open.py", script());
    for (seal, python) in [("aws", "AUTOUNSEAL_PYTHON"), ("oci", "AUTOUNSEAL_OCI_PYTHON")] {
        let python = std::env::var(python).unwrap();
        let namespace = clouds.scene.stage.namespace.clone();
        let open = |version: &str, domain: &str| {
            let arguments = [&script, domain, &namespace, "app", "static", version, seal];
            clouds.caller.program(&python, &arguments, store.as_bytes())
        };
        let opened = open("1", "autounseal");
        assert_eq!(opened.code, 0, "{seal}: {}", opened.err);
        assert!(opened.out == delivered, "{seal}: other bytes");
        let refused = open("1", "elsewhere");
        assert_eq!((refused.code, refused.out.len()), (1, 0), "{seal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_key_comes_back_from_the_cluster_and_from_a_backup_of_the_store() {
    let clouds = Clouds::new("store-back").await;
    let delivered = clouds.generated("app").await;
    for more in [
        &["--key", "static"][..],
        &["--key", "static", "--key-version", "1", "--seal", "oci"],
    ] {
        let opened = clouds.unwrap("app", more);
        assert_eq!(opened.code, 0, "{more:?}: {}", opened.err);
        assert!(opened.out == delivered, "{more:?}");
        assert!(!opened.err.contains(&BASE64.encode(&delivered)));
    }
    let out = clouds.caller.path("static.key");
    let done = clouds.unwrap("app", &["--key", "static", "--out-file", out.to_str().unwrap()]);
    assert_eq!((done.code, done.out.len()), (0, 0), "{}", done.err);
    assert!(std::fs::read(&out).unwrap() == delivered);
    assert_eq!(
        std::fs::metadata(&out).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let again = clouds.unwrap("app", &["--key", "static", "--out-file", out.to_str().unwrap()]);
    assert_eq!(
        again.code, 2,
        "an existing file is not overwritten: {}",
        again.err
    );

    // The cluster is gone: a file, and a backup of the store.
    let file = clouds.file("app").await;
    let store = clouds.store("app").await;
    let backup = |store: &Value| {
        let path = clouds
            .caller
            .file("store.yaml", serde_yaml::to_string(store).unwrap());
        clouds.caller.run(
            &[
                "unwrap",
                "-f",
                &file,
                "--store",
                &path,
                "--key",
                "static",
                "--trust-file",
            ],
            b"",
        )
    };
    let opened = backup(&store);
    assert_eq!(opened.code, 0, "{}", opened.err);
    assert!(opened.out == delivered);
    let without = clouds
        .caller
        .run(&["unwrap", "-f", &file, "--key", "static", "--trust-file"], b"");
    assert_eq!(without.code, 1);
    assert!(without.err.contains("--store"), "{}", without.err);

    // One copy lost is no loss; an edited header is told.
    let mut damaged = store.clone();
    damaged["data"]["key.static.v1.aws"] = json!("AAAA");
    let opened = backup(&damaged);
    assert!(opened.code == 0 && opened.out == delivered, "{}", opened.err);
    let mut edited = header(&store);
    edited["keys"]["static"]["section"]["versions"]["1"]["created"] = json!("2020-01-01T00:00:00Z");
    damaged["data"]["header"] = json!(BASE64.encode(edited.to_string().as_bytes()));
    let refused = backup(&damaged);
    assert_eq!((refused.code, refused.out.len()), (1, 0));
    assert!(refused.err.contains("StoreCorrupt"), "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_share_opens_as_what_it_is_bound_as() {
    let clouds = Clouds::new("store-share").await;
    let (share, stage) = (random(33), &clouds.scene.stage);
    stage.secret_of("plain", &[("share", &share)]).await;
    let keys = json!([{"name": "share-1", "purpose": "unseal-share",
        "import": {"secretKeyRef": {"name": "plain", "key": "share"}}}]);
    let mut spec = clouds.spec(&keys, &Value::Null, "app");
    spec["targets"] = json!([]);
    stage.apply("app", &spec).await;
    eventually("the share is stored", async || {
        let store = stage.secret("app.sealconfig.wrapped").await;
        store.map(drop).ok_or_else(|| "no store".to_owned())
    })
    .await;
    let done = clouds.unwrap("app", &["--key", "share-1"]);
    assert_eq!((done.code, &done.out), (0, &share), "{}", done.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_copy_does_not_open_elsewhere_nor_with_a_forged_binding() {
    let clouds = Clouds::new("store-else").await;
    clouds.generated("app").await;
    let file = clouds.file("app").await;
    let store = clouds.store("app").await;
    let path = clouds.caller.file("store.json", store.to_string());
    let domain = clouds.break_glass(&file, &path, &["--binding-domain", "other"]);
    assert_eq!((domain.code, domain.out.len()), (1, 0));
    assert!(domain.err.contains("--binding-domain"), "{}", domain.err);
    // The same store, given out as that of another object.
    for (field, value) in [("name", "other"), ("namespace", "elsewhere")] {
        let mut config = clouds.scene.stage.config("app").await;
        config["metadata"][field] = json!(value);
        let mut store = store.clone();
        store["metadata"]["namespace"] = config["metadata"]["namespace"].clone();
        store["metadata"]["name"] = json!(format!(
            "{}.sealconfig.wrapped",
            config["metadata"]["name"].as_str().unwrap()
        ));
        let file = clouds.caller.file("other.json", config.to_string());
        let path = clouds.caller.file("other-store.json", store.to_string());
        let done = clouds.break_glass(&file, &path, &[]);
        assert_eq!((done.code, done.out.len()), (1, 0), "{field}");
        assert!(done.err.contains("does not belong here"), "{field}: {}", done.err);
    }
    // A brought copy cannot claim a binding of the operator's.
    let mut config = clouds.scene.stage.config("app").await;
    config["spec"]["keys"] = json!([{"name": "static", "wrapped": [{
        "seal": "aws", "format": "kms", "inline": "eA==", "context": {"autounseal.dev/item": "static"},
    }]}]);
    let file = clouds.caller.file("forged.json", config.to_string());
    for command in ["unwrap", "rewrap"] {
        let mut arguments = vec![command, "-f", &file, "--key", "static"];
        if command == "rewrap" {
            arguments.extend(["--to", &clouds.key.arn]);
        }
        let before = clouds.kms.calls().len();
        let done = clouds.caller.run(&arguments, b"");
        assert_eq!((done.code, done.out.len()), (1, 0), "{command}");
        assert!(done.err.contains("the operator's own"), "{command}: {}", done.err);
        assert_eq!(clouds.kms.calls().len(), before, "{command}: nothing is asked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_opens_in_every_version() {
    let clouds = Clouds::new("store-versions").await;
    let keys = |trigger: &str| json!([{"name": "static", "generate": {"rotation": {"trigger": trigger}}}]);
    let data = json!([
        {"name": "now", "key": {"name": "static"}},
        {"name": "before", "key": {"name": "static", "version": "previous"}},
    ]);
    let stage = &clouds.scene.stage;
    stage.apply("app", &clouds.spec(&keys("a"), &data, "app")).await;
    stage.ready("app").await;
    let first = clouds.entry("app", "now").await;
    stage.apply("app", &clouds.spec(&keys("b"), &data, "app")).await;
    let second = eventually("the second version", async || {
        let data = stage.secret("app").await.unwrap_or_default();
        match (data.get("now"), data.get("before")) {
            (Some(now), Some(before)) if *before == first && *now != first => Ok(now.clone()),
            _ => Err("not yet".to_owned()),
        }
    })
    .await;
    for (version, bytes) in [("1", &first), ("2", &second)] {
        let opened = clouds.unwrap("app", &["--key", "static", "--key-version", version]);
        assert!(
            opened.code == 0 && opened.out == *bytes,
            "{version}: {}",
            opened.err
        );
    }
    let none = clouds.unwrap("app", &["--key", "static", "--key-version", "3"]);
    assert_eq!(none.code, 2, "{}", none.err);
    assert!(none.err.contains("it holds 1, 2"), "{}", none.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_brought_key_opens_from_its_secret_and_by_the_operators_copy_when_its_own_kms_is_gone() {
    let clouds = Clouds::new("store-brought").await;
    let bytes = random(32);
    let stage = &clouds.scene.stage;
    let wrapped = clouds.kms.encrypt(&clouds.key, &bytes, &Context::new());
    stage.secret_of("copies", &[("root", &wrapped)]).await;
    let keys = json!([{"name": "root", "wrapped": [
        {"seal": "aws", "format": "kms", "secretKeyRef": {"name": "copies", "key": "root", "armor": "None"}},
    ]}]);
    stage.apply("app", &clouds.spec(&keys, &Value::Null, "app")).await;
    stage.delivered("app", &[("root", &bytes)]).await;
    eventually("a copy under both seals", async || {
        let config = stage.config("app").await;
        let under = named(&config["status"]["keys"], "root")["wrappedUnder"].clone();
        if under == json!(["aws", "oci"]) {
            Ok(())
        } else {
            Err(format!("{:#}", config["status"]))
        }
    })
    .await;
    let opened = clouds.unwrap("app", &["--key", "root"]);
    assert!(opened.code == 0 && opened.out == bytes, "{}", opened.err);
    assert!(opened.err.contains("seal \"aws\": opened"), "{}", opened.err);

    clouds.kms.set_state(&clouds.key, "Gone");
    let opened = clouds.unwrap("app", &["--key", "root"]);
    assert!(opened.code == 0 && opened.out == bytes, "{}", opened.err);
    assert!(opened.err.contains("key.root.v"), "{}", opened.err);
    // In a file alone the Secret is not at hand.
    let file = clouds.file("app").await;
    let done = clouds
        .caller
        .run(&["unwrap", "-f", &file, "--key", "root", "--trust-file"], b"");
    assert_eq!(done.code, 1);
    assert!(
        done.err.contains("Secret copies, which is not in the file"),
        "{}",
        done.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_what_is_ready_and_what_is_not() {
    let clouds = Clouds::new("store-status").await;
    clouds.generated("app").await;
    let namespace = clouds.scene.stage.namespace.clone();
    let well = clouds.caller.run(&["status", "-n", &namespace, "app"], b"");
    assert_eq!(well.code, 0, "{}", well.err);
    let text = String::from_utf8(well.out).unwrap();
    assert!(text.starts_with(&format!("{namespace}/app: Ready\n")), "{text}");
    assert!(
        text.contains("aws,oci") && text.contains(&clouds.key.arn),
        "{text}"
    );

    let broken = clouds.spec(
        &json!([{"name": "root", "wrapped": [
            {"seal": "aws", "secretKeyRef": {"name": "nowhere", "key": "root"}},
        ]}]),
        &Value::Null,
        "broken",
    );
    clouds.scene.stage.apply("broken", &broken).await;
    clouds.scene.stage.not_ready("broken", "SourceMissing").await;
    let some = clouds
        .caller
        .run(&["status", "-n", &namespace, "-o", "json"], b"");
    assert_eq!(some.code, 1, "{}", some.err);
    let report: Value = serde_json::from_slice(&some.out).unwrap();
    let names: Vec<_> = report["sealConfigs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|config| {
            (
                config["name"].as_str().unwrap(),
                config["ready"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(names, [("app", "True"), ("broken", "False")]);
    assert_eq!(report["sealConfigs"][1]["reason"], "SourceMissing");
    assert_eq!(report["sealConfigs"][0]["keys"][0]["version"], 1);
    let all = clouds.caller.run(&["status", "-A", "-o", "json"], b"");
    assert_eq!(all.code, 1, "{}", all.err);
    let none = clouds.caller.run(&["status", "-n", &namespace, "none"], b"");
    assert_eq!(none.code, 2, "{}", none.err);
    let empty = clouds.caller.run(&["status", "-n", "kube-public"], b"");
    assert_eq!((empty.code, empty.out.len()), (0, 0), "{}", empty.err);
    assert_eq!(clouds.caller.run(&["status", "-A", "app"], b"").code, 2);
}

/// A file in Git, as people write it.
fn in_git(clouds: &Clouds, copies: &str) -> String {
    let (crypto, management) = (clouds.scene.oci.url("crypto"), clouds.scene.oci.url("management"));
    let (arn, ocid) = (&clouds.key.arn, &clouds.scene.key.id);
    format!(
        "# the root key of billing\napiVersion: autounseal.dev/v1alpha1\nkind: SealConfig\nmetadata:\n  name: app\n  \
         namespace: apps   # ours\nspec:\n  seals:\n  - name: aws\n    awskms: {{kmsKeyID: '{arn}'}}\n  - name: oci  # new\n    \
         priority: 60\n    ocikms:\n      keyID: {ocid}\n      cryptoEndpoint: {crypto}\n      managementEndpoint: \
         {management}\n  - name: old\n    disabled: true\n    awskms: {{kmsKeyID: '{arn}'}}\n  keys:\n  - name: root\n    \
         # wrapped by hand, once\n    wrapped:\n{copies}\n    # the end of it\n    purpose: other\n"
    )
}

fn listed(clouds: &Clouds, seal: &str, bytes: &[u8]) -> String {
    let wrapped = clouds.kms.encrypt(&clouds.key, bytes, &Context::new());
    format!(
        "    - seal: {seal}\n      format: kms\n      inline: {}",
        BASE64.encode(&wrapped)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrap_changes_the_lists_of_a_file_and_nothing_else() {
    let clouds = Clouds::new("rewrap").await;
    let bytes = random(32);
    let copies = [listed(&clouds, "old", &bytes), listed(&clouds, "aws", &bytes)].join("\n");
    let text = in_git(&clouds, &copies);
    let file = clouds.caller.file("seal.yaml", &text);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let (arn, ocid) = (clouds.key.arn.clone(), clouds.scene.key.id.clone());
    let run = |more: &[&str]| {
        let mut arguments = vec!["rewrap", "-f", &file, "--trust-file"];
        arguments.extend(more);
        clouds.caller.run(&arguments, b"")
    };
    // Every destination is the caller's word.
    let calls = clouds.kms.calls().len();
    for (to, what) in [(vec![], "--to"), (vec!["--to", arn.as_str()], ocid.as_str())] {
        let done = run(&to);
        assert_eq!(done.code, 2, "{to:?}: {}", done.err);
        assert!(done.err.contains(what), "{to:?}: {}", done.err);
    }
    assert_eq!((clouds.kms.calls().len(), clouds.scene.decrypts()), (calls, 0));

    let to = ["--to", arn.as_str(), "--to", ocid.as_str()];
    let printed = run(&[&to[..], &["-o", "json"]].concat()).json();
    let seals: Vec<_> = printed["keys"][0]["wrapped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|copy| (copy["seal"].clone(), copy["format"].clone()))
        .collect();
    // In the order of the file, without the disabled one; the new one is packed as the first.
    assert_eq!(
        seals,
        [(json!("aws"), json!("kms")), (json!("oci"), json!("kms"))]
    );
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        text,
        "printing changes nothing"
    );

    let done = run(&[&to[..], &["--in-place"]].concat());
    assert_eq!((done.code, done.out.len()), (0, 0), "{}", done.err);
    let new = std::fs::read_to_string(&file).unwrap();
    let (head, tail) = text.split_once(&copies).unwrap();
    assert!(new.starts_with(head) && new.ends_with(tail), "{new}");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777,
        0o640
    );
    for seal in ["aws", "oci"] {
        let opened = clouds.caller.run(
            &[
                "unwrap",
                "-f",
                &file,
                "--key",
                "root",
                "--seal",
                seal,
                "--trust-file",
            ],
            b"",
        );
        assert!(opened.code == 0 && opened.out == bytes, "{seal}: {}", opened.err);
    }

    // A link is not followed.
    let link = clouds.caller.path("link.yaml");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut arguments = vec![
        "rewrap",
        "-f",
        link.to_str().unwrap(),
        "--in-place",
        "--trust-file",
    ];
    arguments.extend(to);
    let done = clouds.caller.run(&arguments, b"");
    assert_eq!(done.code, 2, "{}", done.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), new);
}

#[tokio::test(flavor = "multi_thread")]
async fn rewrap_takes_no_key_that_is_in_doubt() {
    let clouds = Clouds::new("rewrap-doubt").await;
    let (bytes, other) = (random(32), random(32));
    let (arn, ocid) = (clouds.key.arn.clone(), clouds.scene.key.id.clone());
    let run = |text: &str| {
        let file = clouds.caller.file(&format!("{}.yaml", unique()), text);
        #[rustfmt::skip]
        let done = clouds.caller.run(
            &["rewrap", "-f", &file, "--in-place", "--trust-file", "--to", &arn, "--to", &ocid], b"",
        );
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "{}", done.err);
        (done.code, done.err)
    };
    let encrypts = clouds.kms.count("Encrypt");
    let differ = [listed(&clouds, "aws", &bytes), listed(&clouds, "old", &other)].join("\n");
    let (code, err) = run(&in_git(&clouds, &differ));
    assert!(code == 1 && err.contains("CopiesDiffer"), "{err}");

    let pinned = in_git(&clouds, &listed(&clouds, "aws", &bytes)).replace(
        "    purpose: other",
        &format!("    checkValue: {}", "0".repeat(64)),
    );
    let (code, err) = run(&pinned);
    assert!(code == 1 && err.contains("CheckValueDiffers"), "{err}");

    let foreign = format!(
        "{}\n      context: {{autounseal.dev/bound-namespace: other}}",
        listed(&clouds, "aws", &bytes)
    );
    let (code, err) = run(&in_git(&clouds, &foreign));
    assert!(code == 1 && err.contains("bound-namespace"), "{err}");

    let away = "    - seal: aws\n      secretKeyRef: {name: copies, key: root}";
    let (code, err) = run(&in_git(&clouds, away));
    assert!(code == 1 && err.contains("which is not in the file"), "{err}");
    assert_eq!(clouds.kms.count("Encrypt"), encrypts, "nothing was wrapped");
}

/// Somebody who may write Secrets, but use no KMS key, makes the store speak of the version before, and waits for the KMS
/// of the brought copy to fail.
#[tokio::test(flavor = "multi_thread")]
async fn an_edited_section_of_a_brought_key_is_not_obeyed() {
    let clouds = Clouds::new("store-edited").await;
    let (before, now) = (random(32), random(32));
    let stage = &clouds.scene.stage;
    for (version, bytes) in [(1, &before), (2, &now)] {
        let wrapped = clouds.kms.encrypt(&clouds.key, bytes, &Context::new());
        let copy = json!({"seal": "aws", "format": "kms", "inline": BASE64.encode(&wrapped)});
        let keys = json!([{"name": "root", "wrapped": [copy]}]);
        stage.apply("app", &clouds.spec(&keys, &Value::Null, "app")).await;
        stage.delivered("app", &[("root", bytes)]).await;
        eventually("a stored copy", async || {
            let store = stage.secret("app.sealconfig.wrapped").await.ok_or("no store")?;
            let header: Value = serde_json::from_slice(&store["header"]).unwrap();
            let current = header["keys"]["root"]["section"]["current"].clone();
            (current == version)
                .then_some(())
                .ok_or_else(|| current.to_string())
        })
        .await;
    }
    let Clouds {
        scene,
        kms,
        key,
        _operator: operator,
        ..
    } = clouds;
    operator.stop();
    let stage = &scene.stage;
    let store = stage.whole_secret("app.sealconfig.wrapped").await;
    let mut edited = header(&store);
    edited["keys"]["root"]["section"]["current"] = json!(1);
    let mut data = store["data"].clone();
    data["header"] = json!(BASE64.encode(edited.to_string().as_bytes()));
    let mut object = stage.object("v1", "Secret", "app.sealconfig.wrapped");
    object["type"] = store["type"].clone();
    object["data"] = data;
    let (plane, namespace) = (&stage.plane, &stage.namespace);
    plane.delete("Secret", namespace, "app.sealconfig.wrapped").await;
    plane.create(&object).await;
    kms.set_state(&key, "Disabled");
    plane.delete("Secret", namespace, "app").await;
    let _operator = scene.operator().env("AWS_ENDPOINT_URL_KMS", kms.url()).start();
    stage.not_ready("app", "StoreCorrupt").await;
    assert!(stage.secret("app").await.is_none(), "nothing is delivered");
}
