//! What goes wrong with who asks: Secrets, tokens, metadata, realms.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    oci_identities::{by_account, cluster, in_cluster},
    support::{
        oci_scene::{Delivered, OciScene, by_secret},
        operator::free_port,
        stage::{random, unique},
    },
};

async fn delivered(scene: &OciScene, name: &str, credentials: &Value) -> Delivered {
    let bytes = random(32);
    let spec = scene.spec_as(credentials, &scene.kms_copy(&bytes), name);
    scene.deliver(name, spec, &bytes).await
}

fn by_instance() -> Value {
    json!({"instancePrincipal": {}})
}

/// The spec with other credentials, and a copy that must be opened anew.
fn with_credentials(scene: &OciScene, one: &Delivered, credentials: &Value) -> Value {
    let mut spec = scene.rewrapped(one);
    spec["seals"][0]["ocikms"]["credentials"] = credentials.clone();
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_secret_is_told_before_anything_is_sent() {
    let scene = OciScene::new("oci-bad-secret").await;
    let _operator = scene.start();
    let coded = scene.oci.api_key("pkcs8-encrypted", Some("right"));
    let traditional = scene.oci.api_key("traditional-encrypted", Some("right"));
    let user = &scene.user;
    let whole = json!({"user": user.user, "tenancy": user.tenancy, "fingerprint": user.fingerprint,
        "region": user.region, "key.pem": user.pem});
    let without = |entry: &str| {
        let mut entries = whole.clone();
        entries.as_object_mut().unwrap().remove(entry);
        entries
    };
    let with = |entry: &str, value: &str| {
        let mut entries = whole.clone();
        entries[entry] = json!(value);
        entries
    };
    let elsewhere = user.tenancy.replace(".oc1.", ".oc19.");
    let cases = [
        ("no-user", without("user"), "CredentialsMissing", "user"),
        ("no-tenancy", without("tenancy"), "CredentialsMissing", "tenancy"),
        ("no-key", without("key.pem"), "CredentialsMissing", "key.pem"),
        (
            "no-pem",
            with("key.pem", "hunter2 hunter2"),
            "CredentialsMissing",
            "private key",
        ),
        (
            "cut-pem",
            with("key.pem", &user.pem[..600]),
            "CredentialsMissing",
            "private key",
        ),
        ("odd-user", with("user", "hunter2"), "CredentialsMissing", "user"),
        (
            "odd-mark",
            with("fingerprint", "hunter2"),
            "CredentialsMissing",
            "fingerprint",
        ),
        (
            "coded",
            with("key.pem", &coded.pem),
            "CredentialsMissing",
            "pass_phrase",
        ),
        (
            "old-coded",
            with("key.pem", &traditional.pem),
            "CredentialsMissing",
            "pass_phrase",
        ),
        (
            "profile",
            json!({"config": "[A]\nuser=x\n", "profile": "B"}),
            "CredentialsMissing",
            "profile",
        ),
        ("realm", with("tenancy", &elsewhere), "RealmMismatch", "oc19"),
    ];
    let by = by_secret("oci");
    for (name, entries, reason, word) in &cases {
        let one = delivered(&scene, name, &by).await;
        let sent = scene.sent().len();
        let secret = format!("bad-{name}");
        scene.entries(&secret, entries).await;
        let spec = with_credentials(&scene, &one, &by_secret(&secret));
        let message = scene.fails_with(&one, &spec, reason).await;
        assert!(message.contains(word), "{name}: {message}");
        assert!(!message.contains("hunter2"), "{name}: {message}");
        assert_eq!(scene.sent().len(), sent, "{name}: something was sent");
    }
    let one = delivered(&scene, "phrase", &by).await;
    for pem in [&coded.pem, &traditional.pem] {
        let sent = scene.sent().len();
        let mut entries = with("key.pem", pem);
        entries["pass_phrase"] = json!("wrong");
        let secret = format!("phrase-{}", unique());
        scene.entries(&secret, &entries).await;
        let spec = with_credentials(&scene, &one, &by_secret(&secret));
        let message = scene.fails_with(&one, &spec, "CredentialsMissing").await;
        assert!(message.contains("pass phrase"), "{message}");
        assert_eq!(scene.sent().len(), sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_is_missing_is_told_and_taken_when_it_comes() {
    let scene = OciScene::new("oci-no-secret").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_secret("oci")).await;
    let spec = with_credentials(&scene, &one, &by_secret("later"));
    let message = scene.fails_with(&one, &spec, "CredentialsMissing").await;
    assert!(message.contains("later"), "{message}");
    scene.api_key_secret("later", &scene.user, &[]).await;
    scene.stage.ready("one").await;
    scene.untouched(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_fingerprint_is_told_with_the_right_one_and_a_corrected_one_is_taken_at_once() {
    let scene = OciScene::new("oci-fingerprint").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_secret("oci")).await;
    let mut wrong = scene.user.clone();
    wrong.fingerprint = scene.oci.api_key("pkcs8", None).fingerprint;
    scene.api_key_secret("wrong", &wrong, &[]).await;
    let spec = with_credentials(&scene, &one, &by_secret("wrong"));
    let message = scene.fails_with(&one, &spec, "CredentialsRejected").await;
    assert!(message.contains(&scene.user.fingerprint), "{message}");
    assert!(message.contains(&wrong.fingerprint), "{message}");
    scene.api_key_secret("wrong", &scene.user, &[]).await;
    scene.stage.ready("one").await;
    scene.untouched(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_that_oci_does_not_know_is_told() {
    let scene = OciScene::new("oci-stranger").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_secret("oci")).await;
    let mut stranger = scene.user.clone();
    stranger.user = stranger.user.replace(".user.oc1..a", ".user.oc1..b");
    scene.api_key_secret("stranger", &stranger, &[]).await;
    let spec = with_credentials(&scene, &one, &by_secret("stranger"));
    let message = scene.fails_with(&one, &spec, "CredentialsRejected").await;
    assert!(message.contains(&stranger.user), "{message}");
}

/// Ends the token in hand, plays the fault, and holds the operator to reason and Secret; then it heals by itself.
async fn token_fault(scene: &OciScene, one: &Delivered, fault: &Value, reason: &str) -> String {
    scene.oci.fault(fault);
    scene.oci.revoke_tokens();
    let message = scene.fails(one, reason).await;
    scene.oci.clear_faults();
    scene.stage.ready(&one.name).await;
    scene.untouched(one).await;
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_federation_is_told() {
    let scene = OciScene::granted("oci-fed").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_instance()).await;
    for (given, reason) in [
        (
            json!({"kind": "status", "status": 401, "code": "NotAuthenticated"}),
            "FederationRejected",
        ),
        (
            json!({"kind": "status", "status": 404, "code": "NotAuthorizedOrNotFound"}),
            "FederationRejected",
        ),
        (json!({"kind": "status", "status": 500}), "FederationRejected"),
        (json!({"kind": "status", "status": 429}), "Throttled"),
        (json!({"kind": "garbage"}), "KMSUnavailable"),
        (json!({"kind": "redirect"}), "FederationRejected"),
    ] {
        let mut fault = given;
        fault["service"] = json!("federation");
        fault["times"] = json!(-1);
        let message = token_fault(&scene, &one, &fault, reason).await;
        assert!(message.contains("identity service"), "{message}");
    }
    assert_eq!(scene.oci.count("redirected", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_federation_is_not_asked_by_every_seal_config() {
    let scene = OciScene::granted("oci-fed-many").await;
    let _operator = scene.start();
    scene
        .oci
        .fault(&json!({"service": "federation", "kind": "status", "status": 401, "times": -1}));
    for index in 0..10 {
        let name = format!("c{index}");
        let spec = scene.spec_as(&by_instance(), &scene.kms_copy(b"x"), &name);
        scene.stage.apply(&name, &spec).await;
    }
    let start = Instant::now();
    for index in 0..10 {
        scene.not_ready(&format!("c{index}"), "FederationRejected").await;
    }
    // One for all of them, and its backoff of 5 s and more.
    let most = usize::try_from(start.elapsed().as_secs() / 3 + 2).unwrap();
    let asked = scene.oci.count("federation", "");
    assert!((1..=most).contains(&asked), "{asked} requests");
    scene.oci.clear_faults();
    for index in 0..10 {
        scene.stage.ready(&format!("c{index}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_another_tenancy_is_refused_by_the_vault_and_told() {
    let scene = OciScene::granted("oci-tenancy").await;
    scene
        .oci
        .rotate_instance(&json!({"tenancy": scene.oci.fact("tenancy").replace("..a", "..b")}));
    let _operator = scene.start();
    let spec = scene.spec_as(&by_instance(), &scene.kms_copy(b"x"), "one");
    scene.stage.apply("one", &spec).await;
    let message = scene.not_ready("one", "AccessDenied").await;
    assert!(message.contains("dynamic-group"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_service_that_refuses_or_talks_nonsense_is_told() {
    let scene = OciScene::granted("oci-imds").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one", &by_instance()).await;
    for (given, reason) in [
        (
            json!({"kind": "status", "status": 403, "code": "NotAllowed"}),
            "IMDSDisabled",
        ),
        (
            json!({"kind": "status", "status": 404, "code": "NotFound"}),
            "IMDSDisabled",
        ),
        (json!({"kind": "silent"}), "IMDSUnreachable"),
        (json!({"kind": "garbage"}), "FederationRejected"),
        (json!({"kind": "redirect"}), "KMSUnavailable"),
    ] {
        let mut fault = given;
        fault["service"] = json!("metadata");
        fault["times"] = json!(-1);
        token_fault(&scene, &one, &fault, reason).await;
    }
    assert_eq!(scene.oci.count("redirected", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_service_that_is_not_there_is_told_within_seconds() {
    let scene = OciScene::granted("oci-no-imds").await;
    let operator = scene.start();
    let one = delivered(&scene, "one", &by_instance()).await;
    operator.stop();
    let nobody = format!("http://{}/opc/v2", free_port());
    let _operator = scene.operator().env("OCI_METADATA_BASE_URL", nobody).start();
    let start = Instant::now();
    let message = scene.fails(&one, "IMDSUnreachable").await;
    assert!(message.contains("workloadIdentity"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(12));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_basic_cluster_is_told_to_become_an_enhanced_one() {
    let scene = cluster("oci-basic").await;
    let _operator = in_cluster(&scene).start();
    let one = delivered(&scene, "one", &by_account()).await;
    scene.oci.basic_cluster(true);
    scene.oci.revoke_tokens();
    let message = scene.fails(&one, "FederationRejected").await;
    assert!(message.contains("enhanced cluster"), "{message}");
    scene.oci.basic_cluster(false);
    scene.stage.ready("one").await;
    for (given, reason) in [
        (
            json!({"kind": "status", "status": 401, "code": "NotAuthenticated"}),
            "FederationRejected",
        ),
        (json!({"kind": "status", "status": 500}), "FederationRejected"),
        (json!({"kind": "garbage"}), "KMSUnavailable"),
        (json!({"kind": "redirect"}), "FederationRejected"),
    ] {
        let mut fault = given;
        fault["service"] = json!("oke");
        fault["times"] = json!(-1);
        token_fault(&scene, &one, &fault, reason).await;
    }
    assert_eq!(scene.oci.count("redirected", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_the_clusters_ca_does_not_vouch_for_gets_no_token() {
    let scene = cluster("oci-oke-tls").await;
    let other = crate::support::oci::Oci::start();
    let _operator = in_cluster(&scene)
        .env(
            "OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH",
            other.ca_file().display().to_string(),
        )
        .start();
    let spec = scene.spec_as(&by_account(), &scene.kms_copy(b"x"), "one");
    scene.stage.apply("one", &spec).await;
    scene.not_ready("one", "EndpointTLSFailed").await;
    assert_eq!(scene.sent(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_for_a_workload_is_told_with_its_namespace_and_service_account() {
    let scene = cluster("oci-oke-policy").await;
    let _operator = in_cluster(&scene).start();
    let namespace = &scene.stage.namespace;
    scene.oci.deny(
        &format!("workload:{namespace}/app"),
        Some(&scene.key),
        &["decrypt"],
    );
    let spec = scene.spec_as(&by_account(), &scene.kms_copy(b"x"), "one");
    scene.stage.apply("one", &spec).await;
    let message = scene.not_ready("one", "AccessDenied").await;
    for part in [
        "request.principal.type = 'workload'",
        &format!("request.principal.namespace = '{namespace}'"),
        "request.principal.service_account = 'app'",
        &format!("target.key.id = '{}'", scene.key.id),
    ] {
        assert!(message.contains(part), "{message}");
    }
}
