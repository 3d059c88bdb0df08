//! The operator's OCI beside others': Oracle's SDK, the Go wrapper of Vault and OpenBao, and what both left in files.

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use autounseal::{
    provider::oci::{
        pem,
        signature::{self, Form, Unsigned},
    },
    wrapped::BlobInfo,
};
use data_encoding::{BASE64, HEXLOWER};
use proptest::{
    collection::{btree_map, vec},
    prelude::{Just, Strategy, any, prop_oneof},
    sample::select,
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Value, json};

use crate::support::{
    http::{Reply, Server},
    oci::{ApiKey, Key, Oci},
    oci_caller::{Caller, manifest, root, seal},
    stage::{Stage, random, repository},
};

/// A Python program of the test server's, with Oracle's SDK at hand.
fn python(program: &str, input: &[u8]) -> Output {
    let python =
        std::env::var("AUTOUNSEAL_OCI_PYTHON").expect("AUTOUNSEAL_OCI_PYTHON is set by cargo xtask cluster");
    let mut child = Command::new(python)
        .arg(repository("tests/support/oci").join(program))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn the_test_server_is_honest() {
    let output = python("honesty.py", b"");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    // unittest's closing lines: `Ran 65 tests in 12.653s`, an empty one, `OK`.
    let ran: usize = told
        .lines()
        .find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("no closing line: {told}"));
    assert!(ran > 50, "only {ran} tests ran: {told}");
    assert_eq!(
        told.trim_end().lines().last(),
        Some("OK"),
        "none is left out: {told}"
    );
}

/// A request to be signed by Oracle's SDK and by us.
#[derive(Clone, Debug)]
struct Case {
    method: String,
    host: String,
    target: String,
    /// `None` where the method has none.
    body: Option<String>,
    date: String,
    key_id: String,
    federation: bool,
    /// Which of the keys signs.
    key: usize,
}

impl Case {
    fn asked(&self, pems: &[String]) -> Value {
        json!({
            "method": self.method, "url": format!("https://{}{}", self.host, self.target), "body": self.body,
            "date": self.date, "form": if self.federation { "federation" } else { "service" },
            "key_id": self.key_id, "private_key_pem": pems[self.key],
        })
    }

    fn form(&self) -> Form {
        if self.federation {
            Form::Federation
        } else {
            Form::Service
        }
    }

    fn unsigned(&self) -> Unsigned<'_> {
        Unsigned {
            method: &self.method,
            target: &self.target,
            host: &self.host,
            content_type: "application/json",
            body: self.body.as_deref().unwrap_or_default().as_bytes(),
        }
    }
}

/// What of a path or query a client sends as it is, and what it encodes; letters and digits are never encoded.
fn piece() -> impl Strategy<Value = String> {
    let encoded = select(vec![
        "%20",
        "%2F",
        "%25",
        "%22",
        "%3A",
        "%C3%BC",
        "%E2%82%AC",
        "%0A",
        "%7C",
    ]);
    prop_oneof![
        4 => "[A-Za-z0-9._~-]{1,24}",
        1 => "[a-z0-9]{0,4}[:@!$'()*+,;]{1}[a-z0-9]{1,4}",
        2 => encoded.prop_map(str::to_owned),
    ]
}

fn target() -> impl Strategy<Value = String> {
    // A segment of points is resolved away by clients.
    let segment = vec(piece(), 1..4)
        .prop_map(|pieces| pieces.concat())
        .prop_filter("no segment of points", |text| !text.starts_with('.'));
    let pair = (piece(), piece()).prop_map(|(name, value)| format!("{name}={value}"));
    (vec(segment, 1..5), vec(pair, 0..4)).prop_map(|(path, query)| {
        let mark = if query.is_empty() { "" } else { "?" };
        format!("/{}{mark}{}", path.join("/"), query.join("&"))
    })
}

fn host() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[a-z0-9]{3,13}-(crypto|management)\\.kms\\.[a-z]{2}-[a-z]{4,9}-[1-3]\\.oraclecloud\\.com",
        "auth\\.[a-z]{2}-[a-z]{4,9}-1\\.oraclecloud\\.com",
        Just("127.0.0.1".to_owned()),
        Just("[::1]".to_owned()),
    ];
    // Not the scheme's own port, which some clients send and some do not.
    let port = prop_oneof![
        Just(String::new()),
        (1024_u16..).prop_map(|port| format!(":{port}"))
    ];
    (name, port).prop_map(|(name, port)| name + &port)
}

fn body() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just(String::new()),
        1 => Just("{}".to_owned()),
        4 => ("ocid1\\.key\\.oc1\\.iad\\.[a-z0-9]{8}", vec(any::<u8>(), 0..100)).prop_map(|(key, bytes)| {
            json!({"keyId": key, "plaintext": BASE64.encode(&bytes)}).to_string()
        }),
        // Any text at all; outside of ASCII it goes as it is.
        4 => btree_map(".{0,20}", ".{0,20}", 0..6).prop_map(|map| json!({"associatedData": map}).to_string()),
        1 => "[a-zäöü€漢😀 ]{0,2000}".prop_map(|text| json!({"note": text}).to_string()),
    ]
}

fn key_id() -> impl Strategy<Value = String> {
    prop_oneof![
        "ocid1\\.tenancy\\.oc1\\.\\.[a-z0-9]{60}/ocid1\\.user\\.oc1\\.\\.[a-z0-9]{60}/([0-9a-f]{2}:){15}[0-9a-f]{2}",
        "ST\\$[A-Za-z0-9_-]{20,200}\\.[A-Za-z0-9_-]{100,1500}\\.[A-Za-z0-9_-]{342}",
        "ocid1\\.tenancy\\.oc1\\.\\.[a-z0-9]{60}/fed-x509-sha256/([0-9a-f]{2}:){31}[0-9a-f]{2}",
    ]
}

fn case(keys: usize) -> impl Strategy<Value = Case> {
    let method = select(vec!["GET", "POST", "DELETE", "PUT", "HEAD", "PATCH"]);
    let (date, key) = (0_i64..4_000_000_000, 0..keys);
    let parts = (
        method,
        host(),
        target(),
        body(),
        date,
        key_id(),
        any::<bool>(),
        key,
    );
    parts.prop_map(|(method, host, target, body, at, key_id, federation, key)| Case {
        method: method.to_owned(),
        host,
        target,
        body: ["POST", "PUT", "PATCH"].contains(&method).then_some(body),
        date: signature::http_date(at),
        key_id,
        federation,
        key,
    })
}

/// The attributes of an `authorization` header; Go and Python write them in different orders.
fn attributes(authorization: &str) -> BTreeMap<&str, &str> {
    let list = authorization.strip_prefix("Signature ").unwrap();
    list.split("\",")
        .map(|one| {
            let (name, value) = one.split_once("=\"").unwrap();
            (name, value.strip_suffix('"').unwrap_or(value))
        })
        .collect()
}

/// The keys of the vectors: a user's and an instance's.
fn pems(vectors: &Value) -> Vec<String> {
    [
        ("api_private_key_pkcs8_der_base64", "PRIVATE KEY"),
        ("leaf_private_key_pkcs1_der_base64", "RSA PRIVATE KEY"),
    ]
    .map(|(name, label)| {
        let body = vectors[name].as_str().unwrap();
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    })
    .into()
}

fn vectors(name: &str) -> Value {
    let text = std::fs::read_to_string(repository("tests/vectors").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Has all of them signed by Oracle's SDK, in one batch, and holds ours against each.
fn agree(pems: &[String], cases: &[Case]) {
    let requests: Vec<_> = cases.iter().map(|case| case.asked(pems)).collect();
    let output = python("sign.py", json!({"requests": requests}).to_string().as_bytes());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let theirs: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs.len(), cases.len());
    let keys: Vec<_> = pems
        .iter()
        .map(|pem| pem::private_key(pem.as_bytes(), None).unwrap())
        .collect();
    for (case, theirs) in cases.iter().zip(&theirs) {
        let header = |name: &str| theirs["headers"][name].as_str();
        assert_eq!(theirs["target"], json!(case.target), "{case:?}");
        let their_authorization = attributes(theirs["authorization"].as_str().unwrap());

        let request = case.unsigned();
        let ours = signature::headers(&keys[case.key], &case.key_id, &request, &case.date, case.form())
            .unwrap_or_else(|error| panic!("{error}: {case:?}"));
        for (name, value) in &ours {
            if *name != "authorization" {
                assert_eq!(header(name), Some(value.as_str()), "{name} of {case:?}");
            }
        }
        let (_, authorization) = ours.iter().find(|(name, _)| *name == "authorization").unwrap();
        // signature, headers, keyId, algorithm and version; both have these and no others.
        assert_eq!(attributes(authorization), their_authorization, "{case:?}");
        assert_eq!(their_authorization.len(), 5);

        // The text that was signed, made from what the SDK says that it signed.
        let lines: Vec<_> = their_authorization["headers"]
            .split(' ')
            .map(|name| match name {
                "(request-target)" => format!("{name}: {} {}", case.method.to_lowercase(), case.target),
                name => format!("{name}: {}", header(name).unwrap()),
            })
            .collect();
        let text = signature::signing_string(&request, &case.date, case.form()).unwrap();
        assert_eq!(text, lines.join("\n"), "{case:?}");
    }
}

#[test]
fn a_thousand_random_requests_are_signed_as_oracles_sdk_signs_them() {
    let pems = pems(&vectors("oci-http-signature.json"));
    let mut runner = TestRunner::deterministic();
    let strategy = case(pems.len());
    let cases: Vec<_> = (0..1000)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect();
    // The generator makes what the claim is about.
    let some = |what: &str, is: fn(&Case) -> bool| {
        let count = cases.iter().filter(|case| is(case)).count();
        assert!(count >= 50, "only {count} of a thousand: {what}");
    };
    some("empty body", |case| case.body.as_deref() == Some(""));
    some("text outside of ASCII", |case| {
        case.body.as_ref().is_some_and(|body| !body.is_ascii())
    });
    some("encoded path", |case| case.target.contains('%'));
    some("query", |case| case.target.contains('?'));
    some("port", |case| {
        case.host
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.ends_with(']'))
    });
    some("token", |case| case.key_id.starts_with("ST$"));
    some("API key", |case| case.key_id.contains("/ocid1.user."));
    some("federation", |case| case.federation);
    some("service", |case| !case.federation);
    for method in ["GET", "POST", "DELETE", "PUT"] {
        assert!(cases.iter().filter(|case| case.method == method).count() >= 50);
    }
    agree(&pems, &cases);
}

#[test]
fn the_vectors_the_sdk_and_we_agree() {
    let vectors = vectors("oci-http-signature.json");
    let pems = pems(&vectors);
    let cases: Vec<Case> = vectors["cases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vector| {
            let text = |name: &str| vector[name].as_str().unwrap().to_owned();
            let url = text("url");
            let (host, path) = url.trim_start_matches("https://").split_once('/').unwrap();
            let federation = text("name").starts_with("federation");
            Case {
                method: text("method"),
                host: host.to_owned(),
                target: format!("/{path}"),
                body: vector["body"].as_str().map(ToOwned::to_owned),
                date: vector["request_headers"]["date"].as_str().unwrap().to_owned(),
                key_id: text("key_id"),
                federation,
                key: usize::from(federation),
            }
        })
        .collect();
    assert_eq!(cases.len(), 9);
    agree(&pems, &cases);
    for (case, vector) in cases.iter().zip(vectors["cases"].as_array().unwrap()) {
        let key = pem::private_key(pems[case.key].as_bytes(), None).unwrap();
        let ours = signature::headers(&key, &case.key_id, &case.unsigned(), &case.date, case.form()).unwrap();
        let (_, authorization) = ours.last().unwrap();
        assert_eq!(
            attributes(authorization)["signature"],
            vector["signature_b64"],
            "{}",
            vector["name"]
        );
    }
}

/// A server, a key in it, and somebody who may use it from the command line and from Go.
struct Scene {
    oci: Oci,
    key: Key,
    api_key: ApiKey,
    caller: Caller,
}

impl Scene {
    fn new() -> Self {
        let oci = Oci::start();
        let (key, api_key) = (oci.key(), oci.api_key("pkcs8", None));
        let caller = Caller::with(&api_key);
        let config = caller.path(".oci/config").display().to_string();
        Self {
            oci,
            key,
            api_key,
            caller: caller.env("OCI_CONFIG_FILE", config),
        }
    }

    /// What Go wraps: base64 of the message.
    fn go_wraps(&self, plaintext: &[u8], aad: &[u8]) -> String {
        let aad = BASE64.encode(aad);
        let done = self.caller.ocikms(&self.oci, "wrap", &self.key, &aad, plaintext);
        String::from_utf8(done.ok()).unwrap().trim().to_owned()
    }

    fn go_unwraps(&self, blob: &str) -> Vec<u8> {
        self.caller
            .ocikms(&self.oci, "unwrap", &self.key, "", blob.as_bytes())
            .ok()
    }

    fn we_wrap(&self, plaintext: &[u8]) -> String {
        let file = manifest(&seal(&self.oci, &self.key), &json!([]));
        let file = self.caller.file("seals.yaml", file);
        let arguments = [
            "wrap",
            "-f",
            &file,
            "--key",
            "root",
            "--to",
            &self.key.id,
            "--trust-file",
            "-o",
            "json",
        ];
        let printed = self.caller.run(&arguments, plaintext).json();
        assert_eq!(printed["wrapped"][0]["format"], "blobinfo");
        printed["wrapped"][0]["inline"].as_str().unwrap().to_owned()
    }

    fn we_unwrap(&self, blob: &str) -> crate::support::oci_caller::Done {
        let file = manifest(&seal(&self.oci, &self.key), &root("blobinfo", blob));
        let file = self.caller.file("whole.yaml", file);
        self.caller
            .run(&["unwrap", "-f", &file, "--key", "root", "--trust-file"], b"")
    }

    /// The version of the key that a blob names.
    fn version(blob: &str) -> String {
        let blob = BlobInfo::decode(&BASE64.decode(blob.as_bytes()).unwrap()).unwrap();
        let info = blob.key_info.unwrap();
        assert_eq!(info.mechanism, 0);
        assert_eq!(blob.iv.len(), 12);
        info.key_id
    }
}

/// A namespace with the scene's API key in it.
async fn stage(scene: &Scene, name: &str) -> Stage {
    let stage = Stage::bare(name, &json!({})).await;
    let key = &scene.api_key;
    stage
        .secret_of(
            "oci",
            &[
                ("user", key.user.as_bytes()),
                ("tenancy", key.tenancy.as_bytes()),
                ("fingerprint", key.fingerprint.as_bytes()),
                ("key.pem", key.pem.as_bytes()),
            ],
        )
        .await;
    stage
}

/// A SealConfig for one blob.
fn spec(scene: &Scene, blob: &str, secret: &str) -> Value {
    let mut ocikms = seal(&scene.oci, &scene.key);
    ocikms["credentials"] = json!({"apiKey": {"secretRef": {"name": "oci"}}});
    json!({
        "seals": [{"name": "oci", "ocikms": ocikms}],
        "keys": root("blobinfo", blob),
        "targets": [{"name": "app", "secret": {"name": secret}}],
    })
}

fn allowed(scene: &Scene) -> [String; 2] {
    let (crypto, management) = (scene.oci.url("crypto"), scene.oci.url("management"));
    ["--allowed-endpoints".to_owned(), format!("{crypto},{management}")]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_go_wrapper_wraps_the_command_line_and_the_operator_open() {
    let scene = Scene::new();
    let stage = stage(&scene, "oci-go").await;
    let _operator = stage.operator().flags(allowed(&scene)).start();
    for length in [0, 1, 32, 5000] {
        let key = random(length);
        let blob = scene.go_wraps(&key, b"");
        assert_eq!(Scene::version(&blob), scene.key.version);
        assert!(scene.we_unwrap(&blob).ok() == key, "{length} bytes");
        let name = format!("go-{length}");
        stage.apply(&name, &spec(&scene, &blob, &name)).await;
        stage.delivered(&name, &[("root", &key)]).await;
        stage.ready(&name).await;
    }
}

#[test]
fn what_the_command_line_wraps_the_go_wrapper_opens() {
    let scene = Scene::new();
    for length in [1, 32, 5000] {
        let key = random(length);
        let blob = scene.we_wrap(&key);
        assert_eq!(Scene::version(&blob), scene.key.version);
        assert!(scene.go_unwraps(&blob) == key, "{length} bytes");
    }
    let state = scene.caller.ocikms(&scene.oci, "state", &scene.key, "", b"").ok();
    let state = String::from_utf8(state).unwrap();
    assert_eq!(state.trim(), format!("ocikms {}", scene.key.version));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_aad_does_not_open_without_it() {
    let scene = Scene::new();
    let blob = scene.go_wraps(&random(32), b"whose it is");
    let done = scene.we_unwrap(&blob);
    assert_eq!((done.code, done.out.len()), (1, 0), "{}", done.err);
    assert!(done.err.contains("CiphertextInvalid"), "{}", done.err);
    let go = scene
        .caller
        .ocikms(&scene.oci, "unwrap", &scene.key, "", blob.as_bytes());
    assert_eq!((go.code, go.out.len()), (1, 0), "nor does Go: {}", go.err);

    let stage = stage(&scene, "oci-aad").await;
    let _operator = stage.operator().flags(allowed(&scene)).start();
    stage.apply("aad", &spec(&scene, &blob, "aad")).await;
    stage.not_ready("aad", "CiphertextInvalid").await;
    assert_eq!(stage.secret("aad").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_old_blobs_open_everywhere_and_new_ones_name_the_new_version() {
    let scene = Scene::new();
    let (ours, theirs) = (random(32), random(32));
    let (by_us, by_go) = (scene.we_wrap(&ours), scene.go_wraps(&theirs, b""));
    let new = scene.oci.rotate(&scene.key);
    assert_ne!(new.version, scene.key.version);
    for (blob, key) in [(&by_us, &ours), (&by_go, &theirs)] {
        assert_eq!(Scene::version(blob), scene.key.version);
        assert!(scene.we_unwrap(blob).ok() == *key);
        assert!(scene.go_unwraps(blob) == *key);
    }
    let later = random(32);
    for blob in [scene.we_wrap(&later), scene.go_wraps(&later, b"")] {
        assert_eq!(Scene::version(&blob), new.version);
        assert!(scene.we_unwrap(&blob).ok() == later);
        assert!(scene.go_unwraps(&blob) == later);
    }

    let stage = stage(&scene, "oci-rotated").await;
    let _operator = stage.operator().flags(allowed(&scene)).start();
    for (name, blob, key) in [("ours", &by_us, &ours), ("theirs", &by_go, &theirs)] {
        stage.apply(name, &spec(&scene, blob, name)).await;
        stage.delivered(name, &[("root", key)]).await;
    }
}

/// What Go sent to decrypt, and what it was told, when the vectors were made.
struct Recorded {
    asked: Value,
    answer: String,
}

#[test]
fn the_wrappers_vectors_are_opened_by_the_very_calls_that_go_made() {
    let signing = vectors("oci-http-signature.json");
    let text = |name: &str| signing[name].as_str().unwrap().to_owned();
    let caller = Caller::with(&ApiKey {
        tenancy: text("tenancy"),
        user: text("user"),
        fingerprint: text("api_public_key_fingerprint_md5"),
        region: "us-phoenix-1".to_owned(),
        pem: pems(&signing).remove(0),
    });
    let file = vectors("ocikms-blobinfo.json");
    let all = file["vectors"].as_array().unwrap();
    assert_eq!(all.len(), 4);
    for vector in all {
        let name = vector["name"].as_str().unwrap();
        let hex = |name: &str| {
            HEXLOWER
                .decode(vector[name].as_str().unwrap().as_bytes())
                .unwrap()
        };
        let call = &vector["decrypt_calls"][0];
        let recorded = Recorded {
            asked: serde_json::from_str(call["body"].as_str().unwrap()).unwrap(),
            answer: call["response_body"].as_str().unwrap().to_owned(),
        };
        assert!(
            recorded.answer.contains(&BASE64.encode(&hex("dek_hex"))),
            "{name}: it answered with the data key"
        );
        let calls = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&calls);
        let server = Server::start(move |request| {
            seen.lock().unwrap().push(request.line.clone());
            let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            if asked == recorded.asked {
                Reply::new(200, "application/json", recorded.answer.clone())
            } else {
                Reply::new(
                    400,
                    "application/json",
                    r#"{"code":"InvalidParameter","message":"other bytes"}"#,
                )
            }
        });
        let ocikms = json!({
            "keyID": file["key_ocid"], "cryptoEndpoint": server.url(), "managementEndpoint": server.url(),
        });
        let keys = root("blobinfo", &BASE64.encode(&hex("blob_info_hex")));
        let path = caller.file("vector.yaml", manifest(&ocikms, &keys));
        let done = caller.run(&["unwrap", "-f", &path, "--key", "root", "--trust-file"], b"");
        assert_eq!(
            *calls.lock().unwrap(),
            ["POST /20180608/decrypt HTTP/1.1"],
            "{name}: {}",
            done.err
        );
        if vector["aad_present"] == true {
            assert_eq!((done.code, done.out.len()), (1, 0), "{name}: {}", done.err);
            assert!(done.err.contains("CiphertextInvalid"), "{name}: {}", done.err);
        } else {
            assert!(done.ok() == hex("plaintext_hex"), "{name}");
        }
    }
}
