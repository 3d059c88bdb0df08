//! The operator's own identity where it is asked for by name: EKS Pod Identity and IMDSv2, each by a stub.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    http::{Reply, Request, Server},
    kms::{Act, Context},
    operator::Operator,
    plane::within,
    scene::Scene,
    stage::{random, unique},
    sts::Sts,
};

/// An operator whose identity this namespace may use for the scene's key.
pub fn granted(scene: &Scene) -> Operator {
    let file = std::env::temp_dir().join(format!("autounseal-grants-{}.json", unique()));
    let mut grants = json!({});
    grants[&scene.stage.namespace] = json!([scene.key.arn]);
    std::fs::write(&file, grants.to_string()).unwrap();
    scene
        .operator()
        .without("AWS_ACCESS_KEY_ID")
        .without("AWS_SECRET_ACCESS_KEY")
        .without("AWS_EC2_METADATA_DISABLED")
        .flags(["--operator-identity-namespaces", &scene.stage.namespace])
        .flags(["--operator-identity-grants", file.to_str().unwrap()])
}

pub fn spec(scene: &Scene, credentials: &Value, secret: &str, bytes: &[u8]) -> Value {
    let mut spec = scene.spec(secret, bytes);
    spec["seals"][0]["awskms"]["credentials"] = credentials.clone();
    spec
}

/// Expiry far enough away, in the form of IMDS and the container agent.
fn credentials(access_key_id: &str) -> String {
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    json!({"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": access_key_id, "SecretAccessKey": "stub-secret",
        "Token": "stub-token", "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()})
    .to_string()
}

/// What an instance metadata service does with the token PUT.
#[derive(Clone, Copy)]
pub enum Put {
    Answers,
    StaysSilent,
    SilencesAll,
    Refuses,
}

/// An instance metadata service with tokens required; remembers what was asked.
pub struct Metadata {
    pub server: Server,
    put: Arc<Mutex<Put>>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Metadata {
    pub fn start(put: Put) -> Self {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let put = Arc::new(Mutex::new(put));
        let (remember, does) = (seen.clone(), put.clone());
        let server = Server::start(move |request: Request| {
            let token = request.header("x-aws-ec2-metadata-token") == Some("the-token");
            let line = request.line.clone();
            remember.lock().unwrap().push(format!("{line} token={token}"));
            let text = |status, body: &str| Reply::new(status, "text/plain", body);
            let put = *does.lock().unwrap();
            if line.starts_with("PUT /latest/api/token") {
                return match put {
                    Put::Answers => Reply::Answer {
                        status: 200,
                        headers: vec![(
                            "x-aws-ec2-metadata-token-ttl-seconds",
                            request
                                .header("x-aws-ec2-metadata-token-ttl-seconds")
                                .unwrap_or("21600")
                                .to_owned(),
                        )],
                        body: b"the-token".to_vec(),
                    },
                    Put::StaysSilent | Put::SilencesAll => Reply::Hang,
                    Put::Refuses => text(403, "forbidden"),
                };
            }
            if matches!(put, Put::SilencesAll) {
                return Reply::Hang;
            }
            if !token {
                return text(401, "unauthorized");
            }
            if line.contains("/latest/meta-data/iam/security-credentials/node-role") {
                text(200, &credentials("ASIAFROMIMDS00000000"))
            } else if line.contains("/latest/meta-data/iam/security-credentials/") {
                text(200, "node-role")
            } else if line.contains("/placement/region") {
                text(200, "us-east-1")
            } else {
                text(404, "not found")
            }
        });
        Self { server, put, seen }
    }

    /// From now on it does this.
    pub fn does(&self, put: Put) {
        *self.put.lock().unwrap() = put;
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_identity_is_asked_at_its_agent_with_the_token_of_its_file() {
    let scene = Scene::new("pod-identity").await;
    let agent = Server::start(|request| match request.header("authorization") {
        Some("the pod's token") => Reply::new(200, "application/json", credentials("ASIAFROMAGENT0000000")),
        _ => Reply::new(401, "text/plain", "no token"),
    });
    let token = std::env::temp_dir().join(format!("autounseal-token-{}", unique()));
    std::fs::write(&token, "the pod's token").unwrap();
    let _operator = granted(&scene)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("{}/v1/credentials", agent.url()),
        )
        .env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap())
        .start();
    let bytes = random(32);
    let spec = spec(&scene, &json!({"podIdentity": {}}), "out", &bytes);
    scene.stage.apply("one", &spec).await;
    scene.stage.delivered("out", &[("root", &bytes)]).await;
    let config = scene.stage.ready("one").await;
    assert_eq!(config["status"]["seals"][0]["credentialSource"], "pod-identity");
    for call in scene.kms.calls() {
        assert_eq!(call.access_key_id, "ASIAFROMAGENT0000000");
        assert_eq!(call.session_token.as_deref(), Some("stub-token"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_identity_without_an_agent_is_told() {
    let scene = Scene::new("no-agent").await;
    let _operator = granted(&scene).env("AWS_EC2_METADATA_DISABLED", "true").start();
    let spec = spec(&scene, &json!({"podIdentity": {}}), "out", b"x");
    scene.stage.apply("one", &spec).await;
    scene.not_ready("one", &["PodIdentityAgentMissing"]).await;
    assert_eq!(scene.kms.calls().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_metadata_is_asked_by_version_2_only() {
    let scene = Scene::new("imds").await;
    let metadata = Metadata::start(Put::Answers);
    let _operator = granted(&scene)
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.server.url())
        .start();
    let bytes = random(32);
    let spec = spec(&scene, &json!({"instanceMetadata": {}}), "out", &bytes);
    scene.stage.apply("one", &spec).await;
    scene.stage.delivered("out", &[("root", &bytes)]).await;
    let config = scene.stage.ready("one").await;
    assert_eq!(
        config["status"]["seals"][0]["credentialSource"],
        "instance-metadata"
    );
    assert!(
        scene
            .kms
            .calls()
            .iter()
            .all(|call| call.access_key_id == "ASIAFROMIMDS00000000")
    );
    let seen = metadata.seen();
    assert!(
        seen.iter()
            .all(|line| line.starts_with("PUT ") || line.ends_with("token=true")),
        "a GET without a token is version 1: {seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metadata_service_that_is_silent_or_refuses_is_told_within_seconds() {
    for (name, put, reason) in [
        ("imds-hop-limit", Put::StaysSilent, "IMDSHopLimitTooLow"),
        ("imds-silent", Put::SilencesAll, "IMDSUnreachable"),
        ("imds-403", Put::Refuses, "IMDSDisabled"),
    ] {
        let scene = Scene::new(name).await;
        let metadata = Metadata::start(put);
        let _operator = granted(&scene)
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.server.url())
            .start();
        let spec = spec(&scene, &json!({"instanceMetadata": {}}), "out", b"x");
        let start = Instant::now();
        scene.stage.apply("one", &spec).await;
        let (_, message) = scene.not_ready("one", &[reason]).await;
        println!("{name}: after {:?}: {message}", start.elapsed());
        // 3 s by contract, and room for a busy machine.
        assert!(start.elapsed() < Duration::from_secs(12));
        assert_eq!(scene.kms.calls().len(), 0);
        let seen = metadata.seen();
        assert!(
            !seen.iter().any(|line| line.contains("security-credentials")),
            "never by version 1: {seen:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_a_service_account_are_renewed_before_and_after_they_expire() {
    let scene = Scene::new("renewed").await;
    let sts = Sts::start();
    let _operator = scene.operator().env("AWS_ENDPOINT_URL_STS", sts.url()).start();
    let mut account = scene.stage.object("v1", "ServiceAccount", "app");
    account["metadata"]["annotations"] =
        json!({"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/app"});
    scene.stage.plane.apply(&account).await;
    let by_account = json!({"serviceAccountRef": {"name": "app"}});
    // Good for two more seconds: nobody starts a call with that.
    sts.lifetime(2);
    scene
        .stage
        .apply("one", &spec(&scene, &by_account, "one", b"one"))
        .await;
    scene.stage.delivered("one", &[("root", b"one")]).await;
    sts.lifetime(3600);
    scene
        .stage
        .apply("two", &spec(&scene, &by_account, "two", b"two"))
        .await;
    scene.stage.delivered("two", &[("root", b"two")]).await;
    let calls = sts.calls();
    assert!(calls.len() >= 2, "short-lived credentials are not kept");
    let last = scene.kms.calls().pop().unwrap();
    assert_eq!(
        Some(last.access_key_id),
        calls
            .last()
            .unwrap()
            .issued
            .as_ref()
            .map(|i| i.access_key_id.clone())
    );

    // The KMS says that they have expired, whatever the clock says: one renewal, and it goes on.
    let exchanges = sts.calls().len();
    scene
        .kms
        .next("Decrypt", Act::error(400, "ExpiredTokenException"));
    scene
        .stage
        .apply("three", &spec(&scene, &by_account, "three", b"three"))
        .await;
    within(Duration::from_mins(1), "the key after a renewal", async || {
        let data = scene.stage.secret("three").await.unwrap_or_default();
        if data.get("root").is_some_and(|bytes| bytes == b"three") {
            Ok(())
        } else {
            Err("no key".into())
        }
    })
    .await;
    assert_eq!(sts.calls().len(), exchanges + 1, "exactly one renewal");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_credentials_in_a_secret_are_taken_at_once() {
    let scene = Scene::new("rotated").await;
    let _operator = scene.start();
    scene.deliver("one", &random(32)).await;
    scene
        .stage
        .credentials("aws", "AKIAROTATED000000000", "other-secret")
        .await;
    let bytes = random(32);
    let mut next = scene.spec("one", &bytes);
    next["keys"][0]["wrapped"][0]["inline"] =
        json!(BASE64.encode(&scene.kms.encrypt(&scene.key, &bytes, &Context::new())));
    scene.stage.apply("one", &next).await;
    scene.stage.delivered("one", &[("root", &bytes)]).await;
    assert_eq!(
        scene.kms.calls().pop().unwrap().access_key_id,
        "AKIAROTATED000000000"
    );
}
