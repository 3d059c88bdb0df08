//! `autounseal doctor` on set-ups that are broken in one place each: what a stranger reads, as reviewed snapshots.
//!
//! A snapshot that changed is looked at and taken with: INSTA_UPDATE=always cargo xtask test integration -- doctor

use std::process::Command;

use data_encoding::BASE64;
use regex_lite::Regex;
use serde_json::{Value, json};

use crate::support::{
    binary,
    http::{Reply, Server},
    kms::{Act, Context, Key, Kms},
    oci::Oci,
    stage::{Stage, random, unique},
    sts::Sts,
};

/// A patient: a SealConfig `app` that is well until a test breaks it, and the doctor's surroundings.
struct Patient {
    stage: Stage,
    kms: Kms,
    sts: Sts,
    key: Key,
    spec: Value,
    environment: Vec<(String, String)>,
}

struct Told {
    code: i32,
    text: String,
}

impl Patient {
    async fn new(name: &str) -> Self {
        let stage = Stage::new(name).await;
        let (kms, sts) = (Kms::start(), Sts::start());
        let key = kms.key();
        let wrapped = kms.encrypt(&key, &random(32), &Context::new());
        let spec = json!({
            "seals": [{"name": "aws", "awskms": {
                "kmsKeyID": key.arn, "credentials": {"secretRef": {"name": "aws"}},
            }}],
            "keys": [{"name": "root", "wrapped": [{"seal": "aws", "format": "kms", "inline": BASE64.encode(&wrapped)}]}],
        });
        let mut account = stage.object("v1", "ServiceAccount", "app");
        account["metadata"]["annotations"] =
            json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
        stage.plane.apply(&account).await;
        let environment = vec![
            ("AWS_ENDPOINT_URL_KMS".to_owned(), kms.url()),
            ("AWS_ENDPOINT_URL_STS".to_owned(), sts.url()),
            ("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned()),
        ];
        Self {
            stage,
            kms,
            sts,
            key,
            spec,
            environment,
        }
    }

    fn seal(&mut self) -> &mut Value {
        &mut self.spec["seals"][0]["awskms"]
    }

    fn with(&mut self, name: &str, value: &str) {
        self.environment.retain(|(own, _)| own != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn without(&mut self, name: &str) {
        self.environment.retain(|(own, _)| own != name);
    }

    /// Applies the SealConfig and lets the doctor see it.
    async fn seen(&self, more: &[&str]) -> Told {
        self.stage.apply("app", &self.spec).await;
        let kubeconfig = std::env::var("KUBECONFIG").unwrap();
        self.seen_with(&kubeconfig, more)
    }

    fn seen_with(&self, kubeconfig: &str, more: &[&str]) -> Told {
        let done = Command::new(binary())
            .args([
                "doctor",
                "-n",
                &self.stage.namespace,
                "app",
                "--kubeconfig",
                kubeconfig,
            ])
            .args(more)
            .env_clear()
            .env("HOME", "/nonexistent")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        Told {
            code: done.status.code().unwrap_or(-1),
            text: self.plain(&text),
        }
    }

    /// What differs from run to run, by a word.
    fn plain(&self, text: &str) -> String {
        let text = text
            .replace(&self.stage.namespace, "NAMESPACE")
            .replace(&self.key.id, "KEY")
            .replace(&self.kms.url(), "KMS");
        let times = Regex::new(r" +[0-9]+ ms").unwrap();
        let ports = Regex::new(r"127\.0\.0\.1:[0-9]+").unwrap();
        let text = times.replace_all(&text, " … ms");
        ports.replace_all(&text, "127.0.0.1:PORT").into_owned()
    }
}

fn broken(told: &Told, name: &str) {
    assert_eq!(told.code, 1, "{}", told.text);
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!(format!("doctor-{name}"), told.text);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong() {
    let patient = Patient::new("doctor-well").await;
    let told = patient.seen(&[]).await;
    assert_eq!(told.code, 0, "{}", told.text);
    insta::with_settings!({prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_snapshot!("doctor-well", told.text);
    });
    let told = patient.seen(&["-o", "json"]).await;
    let read: Value = serde_json::from_str(&told.text.replace("… ms", "0")).unwrap();
    assert_eq!(read["ok"], true);
    let steps: Vec<_> = read["seals"][0]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["step"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(steps, ["endpoint", "credentials", "sign in", "key", "open"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_not_there() {
    let mut patient = Patient::new("doctor-missing").await;
    patient.seal()["credentials"] = json!({"secretRef": {"name": "nowhere"}});
    broken(&patient.seen(&[]).await, "secret-missing");
    patient
        .stage
        .secret_of("half", &[("access_key", b"AKIAINTEGRATIONTEST0")])
        .await;
    patient.seal()["credentials"] = json!({"secretRef": {"name": "half"}});
    broken(&patient.seen(&[]).await, "secret-entry-missing");
    patient.seal()["credentials"] = json!({"serviceAccountRef": {"name": "nobody"}});
    broken(&patient.seen(&[]).await, "service-account-missing");
    patient
        .stage
        .plane
        .apply(&patient.stage.object("v1", "ServiceAccount", "bare"))
        .await;
    patient.seal()["credentials"] = json!({"serviceAccountRef": {"name": "bare"}});
    broken(&patient.seen(&[]).await, "role-annotation-missing");
    let mut account = patient.stage.object("v1", "ServiceAccount", "other");
    account["metadata"]["annotations"] = json!({
        "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app",
        "eks.amazonaws.com/audience": "https://kubernetes.default.svc",
    });
    patient.stage.plane.apply(&account).await;
    patient.seal()["credentials"] = json!({"serviceAccountRef": {"name": "other"}});
    broken(&patient.seen(&[]).await, "audience");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_refused() {
    let mut patient = Patient::new("doctor-refused").await;
    patient.seal()["credentials"] = json!({"serviceAccountRef": {"name": "app"}});
    patient.sts.refuse(Some((403, "AccessDenied")));
    broken(&patient.seen(&[]).await, "trust-policy");
    patient.sts.refuse(Some((400, "InvalidIdentityToken")));
    broken(&patient.seen(&[]).await, "oidc-provider");
    patient.sts.refuse(Some((403, "AccessDenied")));
    patient.seal()["credentials"] = json!({"secretRef": {"name": "aws"}});
    patient.seal()["assumeRole"] = json!({"roleARN": "arn:aws:iam::123456789012:role/unseal"});
    broken(&patient.seen(&[]).await, "assume-role");
    patient.sts.refuse(None);
    patient.seal().as_object_mut().unwrap().remove("assumeRole");
    patient
        .kms
        .always("DescribeKey", Act::error(400, "UnrecognizedClientException"));
    broken(&patient.seen(&[]).await, "keys-unknown");
    patient.kms.heal();
    patient
        .kms
        .always("DescribeKey", Act::error(400, "ExpiredTokenException"));
    broken(&patient.seen(&[]).await, "session-expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_doctor_may_not_ask_for() {
    let mut patient = Patient::new("doctor-rbac").await;
    patient.seal()["credentials"] = json!({"serviceAccountRef": {"name": "app"}});
    patient.stage.apply("app", &patient.spec).await;
    let user = format!("user-{}", unique());
    let mut role = patient
        .stage
        .object("rbac.authorization.k8s.io/v1", "Role", "reader");
    role["rules"] = json!([
        {"apiGroups": ["autounseal.dev"], "resources": ["sealconfigs"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]},
    ]);
    patient.stage.plane.apply(&role).await;
    let mut binding = patient
        .stage
        .object("rbac.authorization.k8s.io/v1", "RoleBinding", "reader");
    binding["roleRef"] = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"});
    binding["subjects"] = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}]);
    patient.stage.plane.apply(&binding).await;
    let mut config: Value =
        serde_json::from_str(&std::fs::read_to_string(std::env::var("KUBECONFIG").unwrap()).unwrap())
            .unwrap();
    config["users"][0]["user"]["as"] = json!(user);
    let file = std::env::temp_dir().join(format!("autounseal-kubeconfig-{user}"));
    std::fs::write(&file, config.to_string()).unwrap();
    let told = patient.seen_with(file.to_str().unwrap(), &[]);
    std::fs::remove_file(&file).unwrap();
    broken(&told, "token-request-denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_do_not_open() {
    let mut patient = Patient::new("doctor-key").await;
    patient
        .kms
        .always("Decrypt", Act::error(400, "AccessDeniedException"));
    broken(&patient.seen(&[]).await, "decrypt-denied");
    patient.kms.heal();
    patient.kms.set_state(&patient.key, "Disabled");
    broken(&patient.seen(&[]).await, "key-disabled");
    patient.kms.set_state(&patient.key, "Enabled");
    patient
        .kms
        .alias("alias/moved", &patient.kms.key_in("us-east-1", "999999999999"));
    let arn = patient.key.arn.clone();
    *patient.seal() = json!({"kmsKeyID": "alias/moved", "region": "us-east-1", "accountID": "123456789012",
        "credentials": {"secretRef": {"name": "aws"}}});
    broken(&patient.seen(&[]).await, "foreign-account");
    *patient.seal() = json!({"kmsKeyID": arn, "credentials": {"secretRef": {"name": "aws"}}});
    patient.spec["keys"][0]["wrapped"][0]["inline"] = json!(BASE64.encode(&random(64)));
    broken(&patient.seen(&[]).await, "ciphertext");
    patient.seal()["region"] = json!("eu-west-1");
    broken(&patient.seen(&[]).await, "region");
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_that_lead_nowhere() {
    let mut patient = Patient::new("doctor-way").await;
    patient.seal()["endpoint"] = json!("https://kms.us-east-1.amazonaws.com.evil.example");
    broken(&patient.seen(&[]).await, "endpoint-refused");
    patient.seal().as_object_mut().unwrap().remove("endpoint");
    patient.with("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9");
    broken(&patient.seen(&[]).await, "unreachable");
    patient.with("AWS_ENDPOINT_URL_KMS", "http://kms.nowhere.invalid");
    broken(&patient.seen(&[]).await, "unresolvable");
    let plain = Server::start(|_| Reply::new(200, "text/plain", "no TLS here"));
    patient.with(
        "AWS_ENDPOINT_URL_KMS",
        &plain.url().replace("http://", "https://"),
    );
    broken(&patient.seen(&[]).await, "no-tls");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_own_identity() {
    let mut patient = Patient::new("doctor-own").await;
    patient.seal()["credentials"] = json!({"instanceMetadata": {}});
    broken(&patient.seen(&[]).await, "namespace-not-labelled");
    let labelled = json!({"metadata": {
        "labels": {"autounseal.dev/operator-identity": "allowed"},
        "annotations": {"autounseal.dev/operator-identity-grants": patient.key.arn},
    }});
    let namespace = patient.stage.namespace.clone();
    patient
        .stage
        .plane
        .patch("Namespace", "", &namespace, &labelled)
        .await;
    // The token request connects and stays silent, the plain one is answered: the hop limit.
    let silent = Server::start(|request| {
        if request.line.starts_with("PUT") {
            Reply::Hang
        } else {
            Reply::new(401, "text/plain", "")
        }
    });
    patient.without("AWS_EC2_METADATA_DISABLED");
    patient.with("AWS_EC2_METADATA_SERVICE_ENDPOINT", &silent.url());
    broken(&patient.seen(&[]).await, "hop-limit");
    patient.seal()["credentials"] = json!({"podIdentity": {}});
    broken(&patient.seen(&[]).await, "pod-identity-agent");
}

#[tokio::test(flavor = "multi_thread")]
async fn oci_with_a_wrong_fingerprint_a_missing_policy_a_wrong_clock() {
    let mut patient = Patient::new("doctor-oci").await;
    let oci = Oci::start();
    let key = oci.key();
    let user = oci.api_key("pkcs8", None);
    let entries = |fingerprint: &str| json!({"user": user.user, "tenancy": user.tenancy, "fingerprint": fingerprint, "key.pem": user.pem});
    let mut secret = patient.stage.object("v1", "Secret", "oci");
    secret["stringData"] = entries(&"00:".repeat(16)[..47]);
    patient.stage.plane.apply(&secret).await;
    let copy = oci.encrypt(&key, &random(32), &Context::new());
    patient.spec = json!({
        "seals": [{"name": "oci", "ocikms": {
            "keyID": key.id, "cryptoEndpoint": oci.url("crypto"), "managementEndpoint": oci.url("management"),
            "credentials": {"apiKey": {"secretRef": {"name": "oci"}}},
        }}],
        "keys": [{"name": "root", "wrapped": [{"seal": "oci", "format": "kms", "inline": copy}]}],
    });
    let allowed = [oci.url("crypto"), oci.url("management")].join(",");
    let plain = |told: Told| Told {
        text: told
            .text
            .replace(&key.id, "KEY")
            .replace(&user.user, "USER")
            .replace(&user.fingerprint, "FINGERPRINT")
            .replace(&oci.url("crypto"), "CRYPTO")
            .replace(&oci.url("management"), "MANAGEMENT"),
        ..told
    };
    let look = ["--allowed-endpoints", &allowed];
    broken(&plain(patient.seen(&look).await), "oci-fingerprint");
    secret["stringData"] = entries(&user.fingerprint);
    patient.stage.plane.apply(&secret).await;
    oci.deny(&user.user, Some(&key), &["decrypt"]);
    broken(&plain(patient.seen(&look).await), "oci-policy");
    oci.allow(&user.user);
    oci.clock(600);
    broken(&plain(patient.seen(&look).await), "oci-clock");
    oci.clock(0);
    broken(&plain(patient.seen(&[]).await), "oci-endpoint-refused");
    let well = patient.seen(&look).await;
    assert_eq!(well.code, 0, "{}", well.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_walked_with_the_callers_identity_and_its_hosts_are_told_first() {
    let patient = Patient::new("doctor-file").await;
    let file = std::env::temp_dir().join(format!("autounseal-doctor-{}.json", unique()));
    let manifest = patient.stage.seal_config("app", &patient.spec);
    std::fs::write(&file, manifest.to_string()).unwrap();
    let done = Command::new(binary())
        .args(["doctor", "-f", file.to_str().unwrap()])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_ENDPOINT_URL_KMS", patient.kms.url())
        .env("AWS_ACCESS_KEY_ID", "AKIACALLER0000000000")
        .env("AWS_SECRET_ACCESS_KEY", "caller-secret")
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert_eq!(done.status.code(), Some(0), "{out}{err}");
    assert!(
        err.contains(&format!("requests go to {}", patient.kms.url())),
        "{err}"
    );
    assert!(out.contains("✓ open"), "{out}");
    assert!(
        patient
            .kms
            .calls()
            .iter()
            .all(|call| call.access_key_id == "AKIACALLER0000000000")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_meets_when_it_starts_is_met_by_the_doctor() {
    let mut patient = Patient::new("doctor-native").await;
    patient.spec["seals"][0]["use"] = json!(["Wrap", "Native"]);
    let told = patient.seen(&[]).await;
    assert_eq!(told.code, 0, "{}", told.text);
    assert!(
        told.text.contains("as a server does when it starts"),
        "{}",
        told.text
    );
    patient
        .kms
        .always("Encrypt", Act::error(400, "AccessDeniedException"));
    let told = patient.seen(&[]).await;
    assert_eq!(told.code, 1, "{}", told.text);
    assert!(told.text.contains("kms:Encrypt"), "{}", told.text);
}
