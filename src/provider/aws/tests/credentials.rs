use super::*;
use crate::seal::aws::AssumeRole;

const KEY_ID: &str = "ASIAIOSFODNN7EXAMPLE";

fn sts(operation: &str, access_key_id: &str, expiry: SystemTime) -> Reply {
    let expiry = crate::provider::wire::timestamp(expiry).strftime("%Y-%m-%dT%H:%M:%SZ");
    Reply::text(
        200,
        &format!(
            "<{operation}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{operation}Result><Credentials>\
             <AccessKeyId>{access_key_id}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>\
             <SessionToken>session</SessionToken><Expiration>{expiry}</Expiration>\
             </Credentials></{operation}Result></{operation}Response>"
        ),
    )
}

fn sts_error(code: &str) -> Reply {
    Reply::text(
        if code == "IDPCommunicationError" { 400 } else { 403 },
        &format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>FOREIGN token-1</Message></Error></ErrorResponse>"
        ),
    )
}

/// An STS whose sessions last an hour by the bench's clock, and the toy KMS.
async fn cloud(clock: Arc<AtomicU64>, delay: Duration) -> Double {
    Double::start(move |seen| match seen.operation.as_str() {
        operation @ ("AssumeRole" | "AssumeRoleWithWebIdentity") => {
            let ahead = Duration::from_secs(clock.load(Ordering::SeqCst) + 3600);
            sts(operation, KEY_ID, SystemTime::now() + ahead).after(delay)
        }
        _ => toy(seen),
    })
    .await
}

async fn open(bench: &Bench, seal: &AwsSeal) -> Result<(), Fault> {
    let kms = bench.aws.connect(seal, TENANT).await?;
    kms.unwrap(Format::Kms, &Ciphertext::new(vec![1, 2]), &none())
        .await
        .map(|_| ())
}

fn irsa() -> AwsSeal {
    AwsSeal {
        credentials: service_account(),
        ..seal(ARN)
    }
}

fn signed_with(server: &Double, access_key_id: &str) -> bool {
    let last = server.seen().pop().unwrap();
    last.headers["authorization"]
        .to_str()
        .unwrap()
        .contains(&format!("Credential={access_key_id}/"))
}

/// A bench whose server knows the bench's clock.
async fn bench(delay: Duration) -> (Bench, Double) {
    let clock = Arc::new(AtomicU64::new(0));
    let server = cloud(Arc::clone(&clock), delay).await;
    let mut bench = Bench::at(&server.url);
    let settings = Settings {
        clock: {
            let clock = Arc::clone(&clock);
            Arc::new(move || SystemTime::now() + Duration::from_secs(clock.load(Ordering::SeqCst)))
        },
        ..bench.aws.settings.clone()
    };
    bench.ahead = clock;
    let lookup = Arc::new(http::SystemLookup) as http::Lookup;
    let (cluster, notes) = (Arc::clone(&bench.cluster) as _, Arc::clone(&bench.notes) as _);
    bench.aws = Arc::new(Aws::with_lookup(settings, Some(cluster), notes, &lookup));
    (bench, server)
}

#[tokio::test]
async fn a_secrets_key_signs_and_its_successor_takes_over() {
    let (bench, server) = bench(Duration::ZERO).await;
    open(&bench, &seal(ARN)).await.unwrap();
    assert!(signed_with(&server, "AKIAIOSFODNN7EXAMPLE"));
    assert!(!server.seen()[0].headers.contains_key("x-amz-security-token"));
    let identity = bench.kms(&seal(ARN)).await.identity().unwrap();
    assert_eq!(identity, "access key of Secret team-a/aws");
    {
        let mut secrets = bench.cluster.secrets.lock().unwrap();
        let entries = secrets.get_mut("aws").unwrap();
        entries.insert("access_key".into(), "AKIAIOSFODNN7SECOND0\n".into());
        entries.insert("session_token".into(), "session".into());
    }
    open(&bench, &seal(ARN)).await.unwrap();
    assert!(signed_with(&server, "AKIAIOSFODNN7SECOND0"));
    assert_eq!(server.seen()[1].headers["x-amz-security-token"], "session");
}

#[tokio::test]
async fn a_secret_that_holds_no_key_is_told_by_its_entry() {
    for (entry, value, word) in [
        ("access_key", None, "access_key"),
        ("secret_key", None, "secret_key"),
        ("secret_key", Some(""), "secret_key"),
        ("secret_key", Some("two words"), "blanks"),
        ("secret_key", Some("line\r\nX-Evil: 1"), "blanks"),
        ("access_key", Some("short"), "no access key id"),
        ("access_key", Some("AKIAIOSFODNN7EXAMPL/"), "no access key id"),
        ("access_key", Some("akiaiosfodnn7example"), "no access key id"),
        ("session_token", Some("a\u{0}b"), "blanks"),
    ] {
        let (bench, server) = bench(Duration::ZERO).await;
        {
            let mut secrets = bench.cluster.secrets.lock().unwrap();
            let entries = secrets.get_mut("aws").unwrap();
            match value {
                Some(value) => entries.insert(entry.into(), value.into()),
                None => entries.remove(entry),
            };
        }
        let fault = open(&bench, &seal(ARN)).await.unwrap_err();
        assert_eq!(fault.reason, Reason::CredentialsMissing);
        assert!(fault.message.contains(word), "{fault}");
        assert!(value.is_none_or(|value| value.is_empty() || !fault.message.contains(value)));
        assert!(
            server.seen().is_empty(),
            "nothing was sent and nothing else tried"
        );
    }
    let (bench, _) = bench(Duration::ZERO).await;
    bench.cluster.secrets.lock().unwrap().clear();
    let fault = open(&bench, &seal(ARN)).await.unwrap_err();
    assert_eq!(fault.reason, Reason::CredentialsMissing);
    assert!(fault.message.contains("no Secret aws"));
}

#[tokio::test]
async fn a_service_accounts_token_is_exchanged_once_for_all() {
    let (bench, server) = bench(Duration::from_millis(50)).await;
    let seal = irsa();
    let all = (0..30).map(|_| open(&bench, &seal));
    for outcome in futures::future::join_all(all).await {
        outcome.unwrap();
    }
    assert!(signed_with(&server, KEY_ID));
    assert_eq!(count(&server, "AssumeRoleWithWebIdentity"), 1);
    assert_eq!(
        *bench.cluster.tokens.lock().unwrap(),
        [("bao".to_owned(), "sts.amazonaws.com".to_owned())]
    );
    let sent = &server.seen()[0];
    assert!(
        !sent.headers.contains_key("authorization"),
        "this operation is not signed"
    );
    assert_eq!(sent.form("RoleArn").unwrap(), ROLE);
    assert_eq!(sent.form("RoleSessionName").unwrap(), "team-a.bao");
    assert_eq!(sent.form("WebIdentityToken").unwrap(), "token-1");
    assert_eq!(bench.notes.expiries.lock().unwrap().len(), 1);
    assert_eq!(
        bench.kms(&seal).await.identity().unwrap(),
        format!("ServiceAccount team-a/bao as {ROLE}")
    );
}

#[tokio::test]
async fn a_session_is_renewed_before_it_ends() {
    let (bench, server) = bench(Duration::ZERO).await;
    open(&bench, &irsa()).await.unwrap();
    bench.pass(3000);
    open(&bench, &irsa()).await.unwrap();
    assert_eq!(count(&server, "AssumeRoleWithWebIdentity"), 1);
    bench.pass(400);
    open(&bench, &irsa()).await.unwrap();
    assert_eq!(count(&server, "AssumeRoleWithWebIdentity"), 2);
    assert_eq!(
        bench.cluster.tokens.lock().unwrap().len(),
        2,
        "a token for each exchange"
    );
}

#[tokio::test]
async fn a_session_is_used_to_its_end_when_it_cannot_be_renewed() {
    let broken = Arc::new(AtomicUsize::new(0));
    let switch = Arc::clone(&broken);
    let server = Double::start(move |seen| match seen.operation.as_str() {
        "AssumeRoleWithWebIdentity" if switch.load(Ordering::SeqCst) == 1 => Reply::text(500, ""),
        operation @ "AssumeRoleWithWebIdentity" => {
            sts(operation, KEY_ID, SystemTime::now() + Duration::from_hours(1))
        }
        _ => toy(seen),
    })
    .await;
    let bench = Bench::at(&server.url);
    open(&bench, &irsa()).await.unwrap();
    broken.store(1, Ordering::SeqCst);
    bench.pass(3400);
    open(&bench, &irsa()).await.unwrap();
    open(&bench, &irsa()).await.unwrap();
    assert_eq!(
        count(&server, "AssumeRoleWithWebIdentity"),
        2,
        "a failed renewal waits"
    );
    bench.pass(190);
    assert_eq!(
        open(&bench, &irsa()).await.unwrap_err().reason,
        Reason::KmsUnavailable
    );
}

#[tokio::test]
async fn what_a_service_account_lacks_is_told() {
    for (annotations, role, reason) in [
        (None, None, Reason::ServiceAccountMissing),
        (Some(vec![]), None, Reason::RoleAnnotationMissing),
        (
            Some(vec![("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/x")]),
            None,
            Reason::RoleAnnotationMissing,
        ),
        (
            Some(vec![(
                "eks.amazonaws.com/role-arn",
                "arn:aws:iam::123456789012:user/x",
            )]),
            None,
            Reason::RoleAnnotationMissing,
        ),
        (
            Some(vec![(
                "eks.amazonaws.com/audience",
                "https://kubernetes.default.svc",
            )]),
            Some(ROLE),
            Reason::AudienceRejected,
        ),
        (
            Some(vec![("eks.amazonaws.com/audience", "")]),
            Some(ROLE),
            Reason::AudienceRejected,
        ),
    ] {
        let (bench, server) = bench(Duration::ZERO).await;
        {
            let mut accounts = bench.cluster.accounts.lock().unwrap();
            accounts.clear();
            if let Some(annotations) = annotations {
                let annotations = annotations
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
                accounts.insert("bao".into(), annotations.collect());
            }
        }
        let credentials = Credentials::ServiceAccount {
            name: "bao".into(),
            role_arn: role.map(Into::into),
        };
        let fault = open(
            &bench,
            &AwsSeal {
                credentials,
                ..seal(ARN)
            },
        )
        .await
        .unwrap_err();
        assert_eq!(fault.reason, reason, "{fault}");
        assert!(server.seen().is_empty() && bench.cluster.tokens.lock().unwrap().is_empty());
    }
    let (bench, _) = bench(Duration::ZERO).await;
    bench
        .cluster
        .accounts
        .lock()
        .unwrap()
        .get_mut("bao")
        .unwrap()
        .insert("eks.amazonaws.com/audience".into(), "sts.amazonaws.com.cn".into());
    open(&bench, &irsa()).await.unwrap();
    assert_eq!(bench.cluster.tokens.lock().unwrap()[0].1, "sts.amazonaws.com.cn");
}

#[tokio::test]
async fn a_refused_identity_is_told_and_never_replaced_by_another() {
    for (code, reason) in [
        ("InvalidIdentityToken", Reason::WebIdentityRejected),
        ("ExpiredTokenException", Reason::WebIdentityRejected),
        ("AccessDenied", Reason::WebIdentityRejected),
        ("IDPCommunicationError", Reason::WebIdentityRejected),
        ("Throttling", Reason::Throttled),
        ("InternalFailure", Reason::WebIdentityRejected),
    ] {
        let server = Double::start(move |_| sts_error(code)).await;
        let bench = Bench::at(&server.url);
        for _ in 0..10 {
            let fault = open(&bench, &irsa()).await.unwrap_err();
            assert_eq!(fault.reason, reason, "{code}: {fault}");
            assert!(!fault.message.contains("FOREIGN") && !fault.message.contains("token-1"));
        }
        let operations: Vec<_> = server.seen().into_iter().map(|seen| seen.operation).collect();
        assert_eq!(
            operations,
            ["AssumeRoleWithWebIdentity"],
            "one exchange, no KMS call"
        );
    }
    let cluster = FakeCluster {
        refuse_token: true,
        ..FakeCluster::default()
    };
    let server = Double::start(toy).await;
    let lookup = Arc::new(http::SystemLookup) as http::Lookup;
    let bench = Bench::with(&server.url, cluster, &lookup, quick());
    assert_eq!(
        open(&bench, &irsa()).await.unwrap_err().reason,
        Reason::TokenRequestDenied
    );
    assert!(server.seen().is_empty());
}

fn role(external_id: Option<&str>, session_name: Option<&str>) -> AssumeRole {
    AssumeRole {
        role_arn: ROLE.into(),
        external_id: external_id.map(Into::into),
        session_name: session_name.map(Into::into),
    }
}

#[tokio::test]
async fn a_role_is_assumed_with_the_tenants_credentials() {
    let (bench, server) = bench(Duration::ZERO).await;
    let with = |role: AssumeRole| AwsSeal {
        assume_role: Some(role),
        ..seal(ARN)
    };
    open(&bench, &with(role(Some("theirs"), Some("session"))))
        .await
        .unwrap();
    assert!(signed_with(&server, KEY_ID));
    let sent = server.seen().remove(0);
    assert!(
        sent.headers["authorization"]
            .to_str()
            .unwrap()
            .contains("Credential=AKIAIOSFODNN7EXAMPLE/")
    );
    assert_eq!(sent.form("ExternalId").as_deref(), Some("theirs"));
    assert_eq!(sent.form("RoleSessionName").as_deref(), Some("session"));
    assert_eq!(sent.form("Tags.member.1.Key"), None);
    assert_eq!(
        bench.kms(&with(role(None, None))).await.identity().as_deref(),
        Some(ROLE)
    );
    open(&bench, &with(role(None, None))).await.unwrap();
    open(&bench, &with(role(None, None))).await.unwrap();
    assert_eq!(
        count(&server, "AssumeRole"),
        2,
        "another external id is another session"
    );
}

#[tokio::test]
async fn a_refused_role_is_told() {
    let server = Double::start(|_| sts_error("AccessDenied")).await;
    let bench = Bench::at(&server.url);
    let fault = open(
        &bench,
        &AwsSeal {
            assume_role: Some(role(None, None)),
            ..seal(ARN)
        },
    )
    .await
    .unwrap_err();
    assert_eq!(fault.reason, Reason::AssumeRoleDenied);
    assert!(fault.message.contains(ROLE) && !fault.message.contains("FOREIGN"));
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn spent_credentials_are_loaded_anew_at_the_next_try() {
    let server = Double::start(move |seen| match seen.operation.as_str() {
        operation @ "AssumeRoleWithWebIdentity" => {
            sts(operation, KEY_ID, SystemTime::now() + Duration::from_hours(1))
        }
        _ => Reply::error(400, "ExpiredTokenException"),
    })
    .await;
    let bench = Bench::at(&server.url);
    for tries in 1..=2 {
        assert_eq!(
            open(&bench, &irsa()).await.unwrap_err().reason,
            Reason::CredentialsExpired
        );
        assert_eq!(count(&server, "AssumeRoleWithWebIdentity"), tries);
    }
}

#[tokio::test]
async fn the_operators_identity_names_the_namespace_and_takes_no_external_id() {
    let (bench, _) = bench(Duration::ZERO).await;
    let with = |role: AssumeRole| AwsSeal {
        credentials: Credentials::PodIdentity,
        assume_role: Some(role),
        ..seal(ARN)
    };
    let fault = open(&bench, &with(role(Some("theirs"), None))).await.unwrap_err();
    assert_eq!(fault.reason, Reason::OperatorIdentityNotAllowed);
    // What is sent with it is tested in `environment`, where there is such an identity.
    let fault = open(&bench, &with(role(None, None))).await.unwrap_err();
    assert_eq!(fault.reason, Reason::PodIdentityAgentMissing);
    assert_eq!(
        bench
            .kms(&AwsSeal {
                credentials: Credentials::PodIdentity,
                ..seal(ARN)
            })
            .await
            .identity(),
        None
    );
}

#[tokio::test]
async fn without_a_cluster_its_credentials_are_missing() {
    let bench = Bench::at("http://127.0.0.1:9");
    let aws = Aws::new(bench.aws.settings.clone(), None, Arc::clone(&bench.notes) as _);
    for credentials in [secret_ref(), service_account()] {
        let seal = AwsSeal {
            credentials,
            ..seal(ARN)
        };
        let fault = aws.connect(&seal, TENANT).await.map(|_| ()).unwrap_err();
        assert_eq!(fault.reason, Reason::CredentialsMissing);
    }
}

#[test]
fn session_names_are_legal_whatever_the_object_is_called() {
    for (namespace, name) in [
        ("a", "b"),
        ("team-a", "bao"),
        ("", ""),
        ("n", &"x".repeat(200)),
        ("ü/§", "\n"),
    ] {
        let text = tenant_identity::session_name(Tenant { namespace, name });
        assert!((2..=64).contains(&text.len()), "{text}");
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)),
            "{text}"
        );
    }
}

/// A work-stealing runtime moves these between threads.
#[test]
fn everything_can_be_spawned() {
    fn is_send<T: Send>(_: &T) {}
    fn both<T: Send + Sync>() {}
    both::<Aws>();
    both::<Kms>();
    let bench = Bench::at("http://127.0.0.1:9");
    let seal = irsa();
    is_send(&bench.aws.connect(&seal, TENANT));
    is_send(&open(&bench, &seal));
}

#[test]
fn a_session_of_another_role_is_not_used() {
    let user = |arn: &str| {
        aws_sdk_sts::types::AssumedRoleUser::builder()
            .assumed_role_id("AROA:x")
            .arn(arn)
            .build()
            .unwrap()
    };
    let role = "arn:aws:iam::123456789012:role/team/app";
    let given = |arn: &str| tenant_identity::is_asked_for(role, Some(&user(arn)));
    assert!(given("arn:aws:sts::123456789012:assumed-role/team/app/n.app").is_ok());
    assert!(given("arn:aws:sts::123456789012:assumed-role/app/n.app").is_ok());
    assert!(
        tenant_identity::is_asked_for(role, None).is_ok(),
        "some servers do not say"
    );
    for other in [
        "arn:aws:sts::123456789012:assumed-role/other/n.app",
        "arn:aws:sts::999999999999:assumed-role/app/n.app",
        "arn:aws:sts::123456789012:federated-user/app",
        "",
    ] {
        let fault = given(other).unwrap_err();
        assert_eq!(fault.reason, Reason::IdentityMismatch, "{other}");
    }
}
