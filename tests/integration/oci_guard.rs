//! Attacks on an OCI seal: endpoints (S1), the operator's identity (S3), lying vaults (S4), the operator's files (S9).

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    http::{Reply, Request, Server},
    oci::Options,
    oci_scene::{GRANTS, LABEL, OciScene, by_secret},
    stage::{random, unique},
};

fn by_instance() -> Value {
    json!({"instancePrincipal": {}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_endpoint_receives_no_byte() {
    let scene = OciScene::new("oci-endpoints").await;
    let _operator = scene.start();
    let listener = Server::start(|_| Reply::new(200, "text/plain", "hello"));
    let port = listener.address().port();
    let here = |text: &str| text.replace("PORT", &port.to_string());
    let (denied, realm) = ("EndpointNotAllowed", "RealmMismatch");
    let bytes = random(32);
    let one = scene.deliver("one", scene.spec("one", &bytes), &bytes).await;
    let before = scene.sent().len();
    let mut tried = 0;
    for (crypto, reason) in [
        ("http://127.0.0.1:PORT", denied),
        ("https://127.0.0.1:PORT", denied),
        ("https://localhost:PORT", denied),
        ("https://user@127.0.0.1:PORT", denied),
        (
            "https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com@127.0.0.1:PORT",
            denied,
        ),
        ("https://v-crypto.kms.eu-amsterdam-1.oraclecloud.com", denied),
        ("https://v-management.kms.eu-frankfurt-1.oraclecloud.com", denied),
        (
            "https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com.evil.example",
            denied,
        ),
        ("https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com:6443", denied),
        ("https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com/p", denied),
        ("http://v-crypto.kms.eu-frankfurt-1.oraclecloud.com", denied),
        (
            "https://v-crypto.objectstorage.eu-frankfurt-1.oraclecloud.com",
            denied,
        ),
        ("https://v-crypto.kms.us-gov-ashburn-1.oraclegovcloud.com", realm),
        ("https://v-crypto.kms.eu-madrid-2.oraclecloud.eu", realm),
    ] {
        let mut spec = one.spec.clone();
        spec["seals"][0]["ocikms"]["cryptoEndpoint"] = json!(here(crypto));
        // The schema may refuse it already.
        let object = scene.stage.seal_config("one", &spec);
        if scene.stage.plane.try_apply(&object).await.is_ok() {
            tried += 1;
            scene.fails_with(&one, &spec, reason).await;
        }
    }
    assert!(tried > 10, "most are the operator's to refuse");
    let mut spec = one.spec.clone();
    spec["seals"][0]["ocikms"]["managementEndpoint"] = json!(here("https://127.0.0.1:PORT"));
    scene.fails_with(&one, &spec, denied).await;
    assert_eq!((listener.connections(), listener.bytes()), (0, 0));
    assert_eq!(scene.sent().len(), before, "nor was anybody else asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_by_https_is_spoken_to_only_if_its_certificate_is_trusted() {
    let scene = OciScene::new("oci-tls").await;
    let endpoints = [scene.oci.url("crypto_tls"), scene.oci.url("management_tls")].join(",");
    let bytes = random(32);
    let mut spec = scene.spec("one", &bytes);
    spec["seals"][0]["ocikms"]["cryptoEndpoint"] = json!(scene.oci.url("crypto_tls"));
    spec["seals"][0]["ocikms"]["managementEndpoint"] = json!(scene.oci.url("management_tls"));
    let operator = scene.operator().flags(["--allowed-endpoints", &endpoints]);
    let untrusting = operator.start();
    scene.stage.apply("one", &spec).await;
    scene.not_ready("one", "EndpointTLSFailed").await;
    assert_eq!(scene.sent(), Vec::<String>::new());
    untrusting.stop();
    let _trusting = operator
        .env("SSL_CERT_FILE", scene.oci.ca_file().display().to_string())
        .start();
    scene.stage.delivered("one", &[("root", &bytes)]).await;
    scene.stage.ready("one").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_label_or_grant_gets_nothing_and_nobody_is_asked() {
    let scene = OciScene::new("oci-s3").await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let label = |value: Value| json!({"metadata": {"labels": {LABEL: value}}});
    let namespace = async |patch: &Value| {
        stage.plane.patch("Namespace", "", &stage.namespace, patch).await;
    };
    let bound = scene.kms_copy_with(b"b", &[("autounseal.dev/bound-namespace", &stage.namespace)]);
    let elsewhere = scene.kms_copy_with(b"e", &[("autounseal.dev/bound-namespace", "kube-system")]);
    let copies = [
        ("kms", scene.kms_copy(b"k")),
        ("blob", scene.blob_copy(b"o")),
        ("bound", bound),
    ];
    let credentials = [
        ("instance", by_instance()),
        ("resource", json!({"resourcePrincipal": {}})),
        ("none", Value::Null),
    ];
    for (copy_name, copy) in &copies {
        for (who, credentials) in &credentials {
            let name = format!("{copy_name}-{who}");
            stage.apply(&name, &scene.spec_as(credentials, copy, &name)).await;
        }
    }
    for (copy_name, _) in &copies {
        for (who, _) in &credentials {
            let name = format!("{copy_name}-{who}");
            let message = scene.not_ready(&name, "OperatorIdentityNotAllowed").await;
            let fix = format!("kubectl label namespace {}", stage.namespace);
            assert!(message.contains(&fix), "{message}");
            assert_eq!(stage.secret(&name).await, None);
        }
    }
    assert_eq!(scene.oci.log(), Vec::<Value>::new(), "metadata included");

    // The label alone: what is bound to the namespace, and nothing else.
    namespace(&label(json!("allowed"))).await;
    stage.delivered("bound-instance", &[("root", b"b")]).await;
    stage.delivered("bound-none", &[("root", b"b")]).await;
    for name in ["kms-instance", "kms-none", "blob-instance", "blob-none"] {
        let message = scene.not_ready(name, "OperatorIdentityNotAllowed").await;
        assert!(message.contains(&scene.key.id), "{message}");
    }
    assert_eq!(scene.decrypts(), 2, "the brought copies were not sent");
    // A copy that is bound to another namespace is none of ours, whatever it says of itself.
    stage
        .apply(
            "elsewhere",
            &scene.spec_as(&by_instance(), &elsewhere, "elsewhere"),
        )
        .await;
    stage.not_ready("elsewhere", "InvalidSpec").await;
    assert_eq!(scene.decrypts(), 2);

    // A grant of another key is none of this one.
    let another = scene.oci.key();
    namespace(&json!({"metadata": {"annotations": {GRANTS: another.id}}})).await;
    let mut spec = scene.spec_as(&by_instance(), &scene.kms_copy(b"x"), "granted-other");
    stage.apply("granted-other", &spec).await;
    scene
        .not_ready("granted-other", "OperatorIdentityNotAllowed")
        .await;
    assert_eq!(scene.decrypts(), 2);
    namespace(&json!({"metadata": {"annotations": {GRANTS: format!("{}, {}", another.id, scene.key.id)}}}))
        .await;
    for name in ["kms-instance", "kms-none", "blob-instance", "blob-none"] {
        stage.ready(name).await;
    }
    spec["seals"][0]["ocikms"]["credentials"] = by_instance();
    stage.delivered("granted-other", &[("root", b"x")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_copy_of_another_namespace_does_not_open_when_its_context_is_forged() {
    let options = Options::default();
    let scene = OciScene::set_up("oci-bound", &options, |_| json!({"labels": {LABEL: "allowed"}})).await;
    let _operator = scene.start();
    let stage = &scene.stage;
    let mut forged = scene.kms_copy_with(b"x", &[("autounseal.dev/bound-namespace", "victim")]);
    forged["context"] = json!({"autounseal.dev/bound-namespace": stage.namespace});
    stage
        .apply("forged", &scene.spec_as(&by_instance(), &forged, "forged"))
        .await;
    scene.not_ready("forged", "ContextMismatch").await;
    assert_eq!(stage.secret("forged").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_api_key_never_falls_back_to_the_operators_identity() {
    let scene = OciScene::granted("oci-fallback").await;
    let _operator = scene.start();
    scene.entries("half", &json!({"user": scene.user.user})).await;
    for (name, secret, reason) in [
        ("missing", "nowhere", "CredentialsMissing"),
        ("half", "half", "CredentialsMissing"),
    ] {
        let out = format!("out-{name}");
        let spec = scene.spec_as(&by_secret(secret), &scene.kms_copy(b"x"), &out);
        scene.stage.apply(name, &spec).await;
        scene.not_ready(name, reason).await;
        assert_eq!(scene.stage.secret(&out).await, None);
    }
    assert_eq!(scene.oci.log(), Vec::<Value>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_configuration_never_names_a_file_of_the_operator() {
    let scene = OciScene::new("oci-s9").await;
    let _operator = scene.start();
    // Files that the operator could read, and with which it would succeed if it did.
    let folder = std::env::temp_dir().join(format!("autounseal-s9-{}", unique()));
    std::fs::create_dir(&folder).unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (user, stolen) = (&scene.user, scene.oci.resource_principal(None, None));
    let key_file = file("key", &user.pem);
    let (token_file, token_key) = (
        file("token", &stolen.rpst),
        file("token-key", &stolen.private_pem),
    );
    let head = format!(
        "[DEFAULT]\nuser={}\ntenancy={}\nfingerprint={}\nregion={}\n",
        user.user, user.tenancy, user.fingerprint, user.region
    );
    let service_account = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    let lines = |lines: &[(&str, &str)]| {
        let mut text = head.clone();
        for (name, value) in lines {
            text.extend([name, "=", value, "\n"]);
        }
        text
    };
    let cases = [
        ("readable", lines(&[("key_file", &key_file)]), false),
        ("hostname", lines(&[("key_file", "/etc/hostname")]), false),
        ("relative", lines(&[("key_file", "../../../etc/hostname")]), false),
        ("url", lines(&[("key_file", "file:///etc/hostname")]), false),
        (
            "environment",
            lines(&[("key_file", "env://OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM")]),
            false,
        ),
        (
            "token",
            lines(&[("key_file", &token_key), ("security_token_file", &token_file)]),
            false,
        ),
        (
            "token-and-key",
            lines(&[("key_file", "key.pem"), ("security_token_file", &token_file)]),
            true,
        ),
        (
            "own-token",
            lines(&[("key_file", "key.pem"), ("security_token_file", service_account)]),
            true,
        ),
        (
            "delegation",
            lines(&[
                ("authentication_type", "instance_principal"),
                ("delegation_token_file", &token_file),
            ]),
            false,
        ),
    ];
    for (name, config, with_key) in &cases {
        let mut entries = json!({"config": config});
        if *with_key {
            entries["key.pem"] = json!(stolen.private_pem);
        }
        scene.entries(&format!("key-{name}"), &entries).await;
        let spec = scene.spec_as(&by_secret(&format!("key-{name}")), &scene.kms_copy(b"x"), name);
        scene.stage.apply(name, &spec).await;
    }
    for (name, ..) in &cases {
        let message = scene.not_ready(name, "CredentialsMissing").await;
        assert!(!message.contains(folder.to_str().unwrap()), "{message}");
        assert_eq!(scene.stage.secret(name).await, None);
    }
    assert_eq!(scene.oci.log(), Vec::<Value>::new(), "something was sent");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A vault that is no vault: it answers decrypt with this.
fn liar(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Server {
    Server::start(move |request: Request| {
        let asked: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        Reply::new(200, "application/json", answer(&asked).to_string())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_lies_is_not_believed() {
    let scene = OciScene::new("oci-liar").await;
    let (another, right) = (scene.oci.key().id, scene.key.id.clone());
    let plaintext = BASE64.encode(&random(32));
    let (of_another, given) = (another.clone(), plaintext.clone());
    let liars = [
        (
            "another-key",
            "KeyNotAllowed",
            liar(move |_| json!({"plaintext": given, "keyId": of_another})),
        ),
        (
            "echo",
            "CiphertextInvalid",
            liar(|asked| json!({"plaintext": asked["ciphertext"], "keyId": asked["keyId"]})),
        ),
        (
            "empty",
            "KMSUnavailable",
            liar(|asked| json!({"plaintext": "", "keyId": asked["keyId"]})),
        ),
        (
            "no-base64",
            "KMSUnavailable",
            liar(|asked| json!({"plaintext": "?!", "keyId": asked["keyId"]})),
        ),
        ("nothing", "KMSUnavailable", liar(|_| json!({}))),
    ];
    let manager = liar(
        move |_| json!({"id": another, "currentKeyVersion": right.replace(".key.", ".keyversion."), "lifecycleState": "ENABLED"}),
    );
    let urls: Vec<_> = liars
        .iter()
        .map(|(_, _, liar)| liar.url())
        .chain([manager.url()])
        .collect();
    let _operator = scene
        .operator()
        .flags(["--allowed-endpoints", &urls.join(",")])
        .start();
    for (name, reason, liar) in &liars {
        let bytes = random(32);
        let one = scene.deliver(name, scene.spec(name, &bytes), &bytes).await;
        let mut spec = scene.rewrapped(&one);
        spec["seals"][0]["ocikms"]["cryptoEndpoint"] = json!(liar.url());
        let message = scene.fails_with(&one, &spec, reason).await;
        assert!(!message.contains(&plaintext), "{message}");
    }
    // A manager that describes another key is not believed, either, but what opens is delivered.
    let bytes = random(32);
    let mut spec = scene.spec("manager", &bytes);
    spec["seals"][0]["ocikms"]["managementEndpoint"] = json!(manager.url());
    scene.stage.apply("manager", &spec).await;
    scene.stage.delivered("manager", &[("root", &bytes)]).await;
    crate::support::plane::eventually("the seal is unhealthy", async || {
        let config = scene.stage.config("manager").await;
        let seal = config["status"]["seals"][0].clone();
        if seal["state"] == "Unhealthy" && seal["reason"] == "KeyNotAllowed" {
            Ok(())
        } else {
            Err(seal.to_string())
        }
    })
    .await;
}
