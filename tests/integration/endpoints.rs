//! A tenant's endpoint is spoken to only if it is a KMS of the key's region, or the admin's (security rule S1).

use serde_json::json;

use crate::support::{
    http::{Reply, Server},
    scene::Scene,
    stage::random,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_endpoint_receives_no_byte() {
    let scene = Scene::new("endpoints").await;
    let _operator = scene.start();
    let listener = Server::start(|_| Reply::new(200, "text/plain", "hello"));
    let port = listener.address().port();
    let here = |text: &str| text.replace("PORT", &port.to_string());
    let refused = [
        "http://127.0.0.1:PORT",
        "https://127.0.0.1:PORT",
        "http://localhost:PORT",
        "https://localhost:PORT",
        "http://0.0.0.0:PORT",
        "https://user@127.0.0.1:PORT",
        "https://kms.us-east-1.amazonaws.com@127.0.0.1:PORT",
        "http://[::1]:PORT",
        "https://2130706433:PORT",
        "https://x.execute-api.us-east-1.amazonaws.com",
        "https://s3.us-east-1.amazonaws.com",
        "https://kms.us-east-1.amazonaws.com.evil.example",
        "https://kms.us-east-1.amazonaws.com:6443",
        "https://kms.us-east-1.amazonaws.com/p",
        "https://kms.us-east-1.amazonaws.com?q=1",
        "https://kms.us-east-1.amazonaws.com#f",
        "https://kms.eu-west-1.amazonaws.com",
        "http://kms.us-east-1.amazonaws.com",
    ];
    let calls = scene.kms.calls().len();
    let mut tried = Vec::new();
    for (index, endpoint) in refused.iter().enumerate() {
        let name = format!("e{index}");
        let mut spec = scene.spec(&name, b"x");
        spec["seals"][0]["awskms"]["endpoint"] = json!(here(endpoint));
        // The schema may refuse it already.
        if scene
            .stage
            .plane
            .try_apply(&scene.stage.seal_config(&name, &spec))
            .await
            .is_ok()
        {
            tried.push((name, endpoint));
        }
    }
    assert!(tried.len() > 10, "most are the operator's to refuse");
    for (name, endpoint) in tried {
        let (_, message) = scene.not_ready(&name, &["EndpointNotAllowed"]).await;
        assert!(message.contains("--allowed-endpoints"), "{endpoint}: {message}");
        assert_eq!(scene.stage.secret(&name).await, None);
    }
    assert_eq!((listener.connections(), listener.bytes()), (0, 0));
    assert_eq!(
        scene.kms.calls().len(),
        calls,
        "nor is the operator's own endpoint asked instead"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_with_a_dot_is_refused() {
    let scene = Scene::new("dotted").await;
    let _operator = scene.start();
    let mut spec = scene.spec("one", b"x");
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!("alias/x");
    spec["seals"][0]["awskms"]["region"] = json!("us-east-1.evil.example");
    let refusal = scene
        .stage
        .plane
        .try_apply(&scene.stage.seal_config("one", &spec))
        .await
        .unwrap_err();
    assert_eq!(refusal.code, 422, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_the_operators_environment_or_flag_is_allowed() {
    let scene = Scene::new("allowed").await;
    let other = crate::support::kms::Kms::start();
    let _operator = scene
        .operator()
        .flags(["--allowed-endpoints", &other.url()])
        .start();
    let bytes = random(32);
    let mut spec = scene.spec("environment", &bytes);
    spec["seals"][0]["awskms"]["endpoint"] = json!(scene.kms.url());
    scene.stage.apply("environment", &spec).await;
    scene.stage.delivered("environment", &[("root", &bytes)]).await;

    let key = other.key();
    let mut spec = scene.spec("flag", b"-");
    spec["seals"][0]["awskms"]["endpoint"] = json!(other.url());
    spec["seals"][0]["awskms"]["kmsKeyID"] = json!(key.arn);
    let ciphertext = other.encrypt(&key, &bytes, &crate::support::kms::Context::new());
    spec["keys"][0]["wrapped"][0]["inline"] = json!(data_encoding::BASE64.encode(&ciphertext));
    scene.stage.apply("flag", &spec).await;
    scene.stage.delivered("flag", &[("root", &bytes)]).await;
    assert_eq!(other.count("Decrypt"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let scene = Scene::new("redirect").await;
    let target = std::sync::Arc::new(Server::start(|_| Reply::new(200, "text/plain", "hello")));
    let to = target.url();
    let redirecting = Server::start(move |_| Reply::Answer {
        status: 307,
        headers: vec![("location", to.clone())],
        body: Vec::new(),
    });
    let _operator = scene
        .stage
        .operator()
        .env("AWS_ENDPOINT_URL_KMS", redirecting.url())
        .start();
    scene.stage.apply("one", &scene.spec("one", b"x")).await;
    scene.not_ready("one", &["KMSUnavailable"]).await;
    assert_eq!(target.connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_host_that_resolves_to_loopback_is_refused_at_connect_time() {
    // `*.localhost` names resolve to loopback without any server; the pattern of the flag is what lets the
    // name pass the first check, so only an explicit port of the admin's makes it trusted.
    let scene = Scene::new("loopback").await;
    let listener = Server::start(|_| Reply::new(200, "text/plain", "hello"));
    let _operator = scene.start();
    let mut spec = scene.spec("one", b"x");
    spec["seals"][0]["awskms"]["endpoint"] =
        json!(format!("https://kms.localhost:{}", listener.address().port()));
    scene.stage.apply("one", &spec).await;
    scene
        .not_ready("one", &["EndpointNotAllowed", "EndpointUnresolvable"])
        .await;
    assert_eq!(listener.bytes(), 0);
}
