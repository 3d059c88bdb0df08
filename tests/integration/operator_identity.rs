//! The operator's own identity opens nothing for a namespace but what is bound or granted to it (security rule S3).

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    blob::envelope,
    kms::{Context, Key, Kms},
    operator::Operator,
    stage::{Stage, random, unique},
    sts::Sts,
};

const LABEL: &str = "autounseal.dev/operator-identity";
const GRANTS: &str = "autounseal.dev/operator-identity-grants";

/// Two namespaces of one cluster-wide operator, told from the other tests by its class.
struct Shared {
    kms: Kms,
    sts: Sts,
    class: String,
}

impl Shared {
    fn new() -> Self {
        Self {
            kms: Kms::start(),
            sts: Sts::start(),
            class: format!("c{}", unique()),
        }
    }

    fn operator(&self) -> Operator {
        Operator::new()
            .env("AWS_ENDPOINT_URL_KMS", self.kms.url())
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
            .flags(["--controller-class", &self.class, "--log-level", "debug"])
    }

    /// No `credentials`: the operator's own identity.
    fn spec(&self, key: &Key, copy: &Value, secret: &str) -> Value {
        let mut copy = copy.clone();
        copy["seal"] = json!("aws");
        json!({
            "controllerClass": self.class,
            "seals": [{"name": "aws", "awskms": {"kmsKeyID": key.arn}}],
            "keys": [{"name": "root", "wrapped": [copy]}],
            "targets": [{"name": "app", "secret": {"name": secret}}],
        })
    }

    fn kms_copy(&self, key: &Key, bytes: &[u8]) -> Value {
        json!({"format": "kms", "inline": BASE64.encode(&self.kms.encrypt(key, bytes, &Context::new()))})
    }

    fn bound_copy(&self, key: &Key, bytes: &[u8], namespace: &str) -> Value {
        let context = Context::from([("autounseal.dev/bound-namespace".to_owned(), namespace.to_owned())]);
        json!({"format": "kms", "inline": BASE64.encode(&self.kms.encrypt(key, bytes, &context)), "context": context})
    }

    fn blob_copy(&self, key: &Key, bytes: &[u8]) -> Value {
        let data_key: [u8; 32] = random(32).try_into().unwrap();
        let wrapped = self.kms.encrypt(key, &data_key, &Context::new());
        json!({"inline": BASE64.encode(&envelope(bytes, &data_key, &key.arn, &wrapped))})
    }
}

async fn namespace(name: &str, label: bool, grants: &[&str]) -> Stage {
    let mut metadata = json!({"labels": {}, "annotations": {}});
    if label {
        metadata["labels"][LABEL] = json!("allowed");
    }
    if !grants.is_empty() {
        metadata["annotations"][GRANTS] = json!(grants.join(","));
    }
    Stage::bare(name, &metadata).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_the_label_gets_nothing_and_reads_how_to_get_it() {
    let shared = Shared::new();
    let key = shared.kms.key();
    let stage = namespace("s3-plain", false, &[&key.arn]).await;
    let _operator = shared.operator().start();
    for (name, copy) in [
        ("kms", shared.kms_copy(&key, b"x")),
        ("bound", shared.bound_copy(&key, b"x", &stage.namespace)),
        ("blob", shared.blob_copy(&key, b"x")),
    ] {
        stage.apply(name, &shared.spec(&key, &copy, name)).await;
        let message = stage.not_ready(name, "OperatorIdentityNotAllowed").await;
        assert!(
            message.contains(&format!("kubectl label namespace {}", stage.namespace)),
            "{message}"
        );
        assert_eq!(stage.secret(name).await, None);
    }
    assert_eq!(shared.kms.calls().len(), 0);

    // The admin does what the message says; nobody touches the SealConfigs.
    stage
        .plane
        .patch(
            "Namespace",
            "",
            &stage.namespace,
            &json!({"metadata": {"labels": {LABEL: "allowed"}}}),
        )
        .await;
    stage.delivered("kms", &[("root", b"x")]).await;
    stage.delivered("bound", &[("root", b"x")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_namespace_opens_what_is_bound_to_it_and_nothing_that_is_brought_without_a_grant() {
    let shared = Shared::new();
    let key = shared.kms.key();
    let stage = namespace("s3-label", true, &[]).await;
    let _operator = shared.operator().start();
    let bytes = random(32);
    let bound = shared.bound_copy(&key, &bytes, &stage.namespace);
    stage.apply("bound", &shared.spec(&key, &bound, "bound")).await;
    stage.delivered("bound", &[("root", &bytes)]).await;
    let decrypts = shared.kms.count("Decrypt");
    for (name, copy) in [
        ("kms", shared.kms_copy(&key, b"x")),
        ("blob", shared.blob_copy(&key, b"x")),
    ] {
        stage.apply(name, &shared.spec(&key, &copy, name)).await;
        let message = stage.not_ready(name, "OperatorIdentityNotAllowed").await;
        assert!(
            message.contains(&key.arn) && message.contains("kubectl annotate namespace"),
            "{message}"
        );
        assert_eq!(stage.secret(name).await, None);
    }
    assert_eq!(shared.kms.count("Decrypt"), decrypts);

    // The grant of exactly this key.
    stage
        .plane
        .patch(
            "Namespace",
            "",
            &stage.namespace,
            &json!({"metadata": {"annotations": {GRANTS: format!("arn:aws:iam::1:role/x, {}", key.arn)}}}),
        )
        .await;
    stage.delivered("kms", &[("root", b"x")]).await;
    stage.delivered("blob", &[("root", b"x")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_labelled_namespace_cannot_use_the_keys_and_ciphertexts_of_the_other() {
    let shared = Shared::new();
    let (own, theirs) = (shared.kms.key(), shared.kms.key());
    shared.kms.alias("alias/theirs", &theirs);
    let attacker = namespace("s3-attacker", true, &[&own.arn]).await;
    let victim = namespace("s3-victim", true, &[&theirs.arn]).await;
    let _operator = shared.operator().start();
    let treasure = random(32);
    let copies = [
        ("kms", shared.kms_copy(&theirs, &treasure)),
        ("blob", shared.blob_copy(&theirs, &treasure)),
        ("bound", shared.bound_copy(&theirs, &treasure, &victim.namespace)),
    ];
    for (name, copy) in &copies {
        victim.apply(name, &shared.spec(&theirs, copy, name)).await;
        victim.delivered(name, &[("root", &treasure)]).await;
    }
    let refused = [
        "OperatorIdentityNotAllowed",
        "KeyNotAllowed",
        "CiphertextInvalid",
        "ContextMismatch",
        "InvalidSpec",
    ];
    let mut tried = Vec::new();
    for (name, copy) in &copies {
        let mut unbound = copy.clone();
        unbound.as_object_mut().unwrap().remove("context");
        let mut rebound = unbound.clone();
        rebound["context"] = json!({"autounseal.dev/bound-namespace": attacker.namespace});
        // Their key by ARN and by alias; one's own key with their ciphertext; the context left out or forged.
        for (way, copy) in [("as-is", copy), ("unbound", &unbound), ("rebound", &rebound)] {
            if way == "rebound" && *name == "blob" {
                continue;
            }
            let mut by_alias = shared.spec(&theirs, copy, "loot");
            by_alias["seals"][0]["awskms"]["kmsKeyID"] = json!("alias/theirs");
            by_alias["seals"][0]["awskms"]["region"] = json!("us-east-1");
            let mut former = shared.spec(&own, copy, "loot");
            former["seals"][0]["awskms"]["formerKeyIDs"] = json!([theirs.arn]);
            for (how, mut spec) in [
                ("arn", shared.spec(&theirs, copy, "loot")),
                ("alias", by_alias),
                ("own", shared.spec(&own, copy, "loot")),
                ("former", former),
            ] {
                let config = format!("{name}-{way}-{how}");
                spec["targets"][0]["secret"]["name"] = json!(config);
                if attacker
                    .plane
                    .try_apply(&attacker.seal_config(&config, &spec))
                    .await
                    .is_ok()
                {
                    tried.push(config);
                }
            }
        }
    }
    assert!(tried.len() >= 20, "{tried:?}");
    for config in &tried {
        let (mut reason, mut last) = (String::new(), Value::Null);
        for _ in 0..1200 {
            last = attacker.config(config).await;
            let ready = crate::support::stage::condition(&last, "Ready");
            reason = ready["reason"].as_str().unwrap_or_default().to_owned();
            if refused.contains(&reason.as_str()) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        assert!(
            refused.contains(&reason.as_str()),
            "{config}: {:#}",
            last["status"]
        );
        assert_eq!(attacker.secret(config).await, None, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_needs_a_grant_and_gets_an_external_id_that_the_tenant_cannot_choose() {
    let shared = Shared::new();
    let key = shared.kms.key();
    let role = "arn:aws:iam::210987654321:role/unseal";
    let granted = namespace("s3-role", true, &[&key.arn, role]).await;
    let other = namespace("s3-norole", true, &[&key.arn]).await;
    let _operator = shared
        .operator()
        .flags(["--binding-domain", "prod.example"])
        .start();
    let bytes = random(32);
    let mut spec = shared.spec(&key, &shared.kms_copy(&key, &bytes), "out");
    spec["seals"][0]["awskms"]["assumeRole"] = json!({"roleARN": role});
    other.apply("one", &spec).await;
    let message = other.not_ready("one", "OperatorIdentityNotAllowed").await;
    assert!(message.contains(role), "{message}");
    let mut chosen = spec.clone();
    chosen["seals"][0]["awskms"]["assumeRole"]["externalID"] = json!("prod.example/somebody-else");
    chosen["targets"][0]["secret"]["name"] = json!("chosen");
    granted.apply("chosen", &chosen).await;
    granted.not_ready("chosen", "OperatorIdentityNotAllowed").await;
    assert_eq!(shared.sts.calls().len(), 0);
    assert_eq!(shared.kms.count("Decrypt"), 0);

    granted.apply("one", &spec).await;
    granted.delivered("out", &[("root", &bytes)]).await;
    let call = shared.sts.calls().remove(0);
    assert_eq!(call.action, "AssumeRole");
    assert_eq!(call.field("RoleArn"), Some(role));
    assert_eq!(
        call.field("ExternalId"),
        Some(format!("prod.example/{}", granted.namespace).as_str())
    );
    let tags: Vec<_> = call
        .form
        .iter()
        .filter(|(name, _)| name.starts_with("Tags."))
        .map(|(_, v)| v.as_str())
        .collect();
    assert!(
        tags.contains(&granted.namespace.as_str()),
        "a session tag tells the namespace: {tags:?}"
    );
    let issued = call.issued.unwrap();
    assert!(
        shared
            .kms
            .calls()
            .iter()
            .filter(|c| c.operation == "Decrypt")
            .all(|c| c.access_key_id == issued.access_key_id)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_label_counts_for_nothing_where_the_operator_is_told_so_but_flag_and_file_do() {
    let shared = Shared::new();
    let key = shared.kms.key();
    let labelled = namespace("s3-off", true, &[&key.arn]).await;
    let listed = namespace("s3-listed", false, &[]).await;
    let file = std::env::temp_dir().join(format!("autounseal-grants-{}.yaml", unique()));
    std::fs::write(&file, format!("{}:\n- {}\n", listed.namespace, key.arn)).unwrap();
    let _operator = shared
        .operator()
        .flags([
            "--operator-identity-label=false",
            "--operator-identity-namespaces",
            &listed.namespace,
            "--operator-identity-grants",
            file.to_str().unwrap(),
        ])
        .start();
    let bytes = random(32);
    let spec = shared.spec(&key, &shared.kms_copy(&key, &bytes), "out");
    labelled.apply("one", &spec).await;
    labelled.not_ready("one", "OperatorIdentityNotAllowed").await;
    assert_eq!(shared.kms.calls().len(), 0);
    listed.apply("one", &spec).await;
    listed.delivered("out", &[("root", &bytes)]).await;
    std::fs::remove_file(file).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_watched_namespaces_only_the_flag_counts() {
    let shared = Shared::new();
    let key = shared.kms.key();
    let labelled = namespace("s3-watch", true, &[&key.arn]).await;
    let _operator = shared
        .operator()
        .flags(["--watch-namespaces", &labelled.namespace])
        .start();
    labelled
        .apply("one", &shared.spec(&key, &shared.kms_copy(&key, b"x"), "out"))
        .await;
    labelled.not_ready("one", "OperatorIdentityNotAllowed").await;
    assert_eq!(shared.kms.calls().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_credential_of_the_tenant_never_falls_back_to_the_operators() {
    let shared = Shared::new();
    let key = shared.kms.key();
    let stage = namespace("s3-fallback", true, &[&key.arn]).await;
    let _operator = shared.operator().start();
    stage
        .secret_of("half", &[("access_key", b"AKIAHALFAPAIR0000000".as_slice())])
        .await;
    stage
        .secret_of(
            "odd",
            &[
                ("access_key", b"http://evil.example/?".as_slice()),
                ("secret_key", b"s"),
            ],
        )
        .await;
    for (name, credentials) in [
        ("missing", json!({"secretRef": {"name": "nowhere"}})),
        ("half", json!({"secretRef": {"name": "half"}})),
        ("odd", json!({"secretRef": {"name": "odd"}})),
    ] {
        let mut spec = shared.spec(&key, &shared.kms_copy(&key, b"x"), name);
        spec["targets"][0]["secret"]["name"] = json!(format!("out-{name}"));
        spec["seals"][0]["awskms"]["credentials"] = credentials;
        stage.apply(name, &spec).await;
        stage.not_ready(name, "CredentialsMissing").await;
    }
    assert_eq!(shared.kms.calls().len(), 0);
}
