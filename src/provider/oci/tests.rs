//! The operator's own copies against a scripted vault on loopback. What a vault says else, and who asks it, is tested
//! with the server of `tests/support/oci`.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64;
use futures::{FutureExt, future::BoxFuture};
use rstest::rstest;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{api_key::tests as api_key, *};
use crate::{
    provider::{
        Audience, Bound, Format, Kms as Any, Token, Wrapped,
        double::{Double, Reply, Seen},
    },
    seal::{Ciphertext, KeyBytes},
    wrapped::blob_info::{BlobInfo, KeyInfo},
};

const KEY: &str = "ocid1.key.oc1.eu-frankfurt-1.v.k";
const OTHER_KEY: &str = "ocid1.key.oc1.eu-frankfurt-1.v.other";
const VERSION: &str = "ocid1.keyversion.oc1.eu-frankfurt-1.v.1";
const CURRENT: &str = "ocid1.keyversion.oc1.eu-frankfurt-1.v.2";
const AAD: &[u8] = b"team-a/bao/key/1";

/// The API key of the signature vectors, in every Secret.
struct OneSecret;

impl Cluster for OneSecret {
    fn service_account<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, Fault>> {
        async { Ok(None) }.boxed()
    }

    fn token<'a>(&'a self, _: &'a str, _: &'a str, _: Audience<'a>) -> BoxFuture<'a, Result<Token, Fault>> {
        async { Err(Fault::denied(Reason::TokenRequestDenied, "no")) }.boxed()
    }

    fn secret<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<SecretEntries>, Fault>> {
        let entries = [
            ("user", api_key::USER.to_owned()),
            ("tenancy", api_key::TENANCY.to_owned()),
            ("key.pem", api_key::pem()),
        ]
        .map(|(name, text)| (name.to_owned(), Zeroizing::new(text.into_bytes())));
        async { Ok(Some(entries.into())) }.boxed()
    }
}

struct Nobody;

impl Observer for Nobody {
    fn kms_request(&self, _: &'static str, _: &'static str, _: &'static str, _: f64) {}

    fn imds_probe(&self, _: &'static str) {}

    fn credential_expiry(&self, _: &'static str, _: &'static str, _: i64) {}
}

async fn kms(server: &Double) -> Kms {
    let endpoints = EndpointPolicy {
        environment: vec![server.url.clone()],
        ..EndpointPolicy::default()
    };
    let settings = Settings::new(endpoints, Environment::default());
    let seal = OciSeal {
        key: KEY.parse().unwrap(),
        crypto_endpoint: server.url.clone(),
        management_endpoint: server.url.clone(),
        credentials: Credentials::ApiKey { secret: "oci".into() },
    };
    let tenant = Tenant {
        namespace: "team-a",
        name: "bao",
    };
    Oci::new(settings, Some(Arc::new(OneSecret)), Arc::new(Nobody))
        .connect(&seal, tenant)
        .await
        .unwrap()
}

fn place() -> BTreeMap<String, String> {
    (0..9)
        .map(|n| (format!("autounseal.dev/bound-{n}"), "n".repeat(253)))
        .collect()
}

fn key() -> KeyBytes {
    KeyBytes::new((0..32).collect())
}

/// A vault whose ciphertext begins with the digest of its associated data.
fn strict(seen: &Seen) -> Reply {
    if seen.operation.starts_with("GET ") {
        return Reply::json(&json!({"id": KEY, "currentKeyVersion": CURRENT, "lifecycleState": "ENABLED"}));
    }
    let request = seen.json();
    assert_eq!(request["keyId"], KEY);
    let tag = digest(&SHA256, request["associatedData"].to_string().as_bytes());
    let bytes = |field: &str| {
        let text = request[field].as_str().unwrap();
        BASE64.decode(text.as_bytes()).unwrap()
    };
    if seen.operation.ends_with("/encrypt") {
        let mut blob = tag.as_ref().to_vec();
        blob.extend(bytes("plaintext").iter().rev());
        return Reply::json(
            &json!({"ciphertext": BASE64.encode(&blob), "keyId": KEY, "keyVersionId": VERSION}),
        );
    }
    match bytes("ciphertext").strip_prefix(tag.as_ref()) {
        Some(rest) => {
            let plain: Vec<u8> = rest.iter().rev().copied().collect();
            Reply::json(&json!({"plaintext": BASE64.encode(&plain), "keyId": KEY, "keyVersionId": VERSION}))
        }
        None => Reply::text(400, r#"{"code": "InvalidParameter", "message": "FOREIGN TEXT"}"#),
    }
}

fn count(server: &Double, operation: &str) -> usize {
    server
        .seen()
        .iter()
        .filter(|seen| seen.operation.ends_with(operation))
        .count()
}

async fn made() -> (Double, Kms, Wrapped) {
    let server = Double::start(strict).await;
    let kms = kms(&server).await;
    let bound = Bound {
        context: &place(),
        aad: AAD,
    };
    let wrapped = kms.wrap_bound(&key(), &bound).await.unwrap();
    (server, kms, wrapped)
}

#[tokio::test]
async fn a_copy_is_opened_by_the_key_that_made_it() {
    let server = Double::start(strict).await;
    let kms = Any::Oci(kms(&server).await);
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let wrapped = kms.wrap_bound(&key(), &bound).await.unwrap();
    assert_eq!(wrapped.key_id, KEY);
    assert_eq!(wrapped.key_version.as_deref(), Some(VERSION));
    let opened = kms
        .unwrap_bound(&wrapped.ciphertext, &bound, &wrapped.key_id)
        .await
        .unwrap();
    assert!(opened.key.same_as(&key()));
    assert_eq!(opened.key_id, KEY);
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "get-key is not asked for what encrypt answers");
    for seen in seen {
        assert_eq!(
            seen.json()["associatedData"],
            json!(context),
            "{}",
            seen.operation
        );
    }
    let description = kms.describe().await.unwrap();
    assert_eq!(description.version.as_deref(), Some(CURRENT));
}

#[rstest]
#[case::get_key_knows(None, Some(CURRENT))]
#[case::get_key_is_refused(Some(Reply::text(404, r#"{"code": "NotAuthorizedOrNotFound"}"#)), None)]
#[tokio::test]
async fn a_copy_is_made_where_encrypt_names_no_version(
    #[case] described: Option<Reply>,
    #[case] version: Option<&str>,
) {
    let server = Double::start(move |seen| match &described {
        Some(reply) if seen.operation.starts_with("GET ") => reply.clone(),
        _ => {
            let mut reply = strict(seen);
            let mut body: Value = serde_json::from_slice(&reply.body).unwrap();
            body.as_object_mut().unwrap().remove("keyVersionId");
            reply.body = body.to_string().into_bytes();
            reply
        }
    })
    .await;
    let kms = kms(&server).await;
    let bound = Bound {
        context: &place(),
        aad: AAD,
    };
    let wrapped = kms.wrap_bound(&key(), &bound).await.unwrap();
    assert_eq!(wrapped.key_version.as_deref(), version);
    assert_eq!(count(&server, KEY), 1);
    let opened = kms.unwrap_bound(&wrapped.ciphertext, &bound, KEY).await.unwrap();
    assert!(opened.key.same_as(&key()));
}

#[tokio::test]
async fn a_copy_of_another_place_does_not_open() {
    let (server, kms, wrapped) = made().await;
    let (context, mut other) = (place(), place());
    other.insert("autounseal.dev/bound-0".into(), "team-b".into());
    for (context, aad) in [
        (&other, AAD),
        (&context, b"team-b/bao/key/1".as_slice()),
        (&context, b""),
    ] {
        let bound = Bound { context, aad };
        let fault = kms
            .unwrap_bound(&wrapped.ciphertext, &bound, KEY)
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::ContextMismatch, "{fault}");
        assert!(
            fault.message.starts_with("the copy does not belong here: "),
            "{fault}"
        );
        assert!(!fault.message.contains("FOREIGN"), "{fault}");
    }
    assert_eq!(count(&server, "/decrypt"), 3);
    // Nor as what a user brings.
    let fault = kms
        .unwrap(Format::BlobInfo, &wrapped.ciphertext, &BTreeMap::new())
        .await
        .unwrap_err();
    assert_eq!(fault.reason, Reason::CiphertextInvalid);
}

#[tokio::test]
async fn what_was_made_with_another_key_is_not_sent() {
    let (server, kms, wrapped) = made().await;
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let before = server.seen().len();
    for recorded in [OTHER_KEY, VERSION, "SECRET TEXT", ""] {
        let fault = kms
            .unwrap_bound(&wrapped.ciphertext, &bound, recorded)
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::KeyNotAllowed, "{recorded}");
        assert!(
            fault.message.contains(KEY) && !fault.message.contains("SECRET"),
            "{fault}"
        );
    }
    assert_eq!(server.seen().len(), before);
}

#[tokio::test]
async fn an_answer_by_another_key_is_dropped() {
    let (_, _, wrapped) = made().await;
    let answer = json!({"plaintext": BASE64.encode(&[7; 32]), "keyId": OTHER_KEY});
    let server = Double::start(move |_| Reply::json(&answer)).await;
    let kms = kms(&server).await;
    let bound = Bound {
        context: &place(),
        aad: AAD,
    };
    let fault = kms
        .unwrap_bound(&wrapped.ciphertext, &bound, KEY)
        .await
        .unwrap_err();
    assert_eq!(fault.reason, Reason::KeyNotAllowed);
    assert_eq!(count(&server, "/decrypt"), 1);
}

#[tokio::test]
async fn what_the_operator_never_writes_reaches_no_vault() {
    let (server, kms, wrapped) = made().await;
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let good = BlobInfo::decode(wrapped.ciphertext.bytes()).unwrap();
    let with = |wrapped_key: Vec<u8>| BlobInfo {
        key_info: Some(KeyInfo {
            wrapped_key,
            ..KeyInfo::default()
        }),
        ..good.clone()
    };
    let before = server.seen().len();
    for (what, blob) in [
        ("no data key", with(vec![])),
        ("raw bytes, as AWS has them", with(vec![0xff; 60])),
        ("too long a data key", with(vec![b'A'; 16 * 1024 + 1])),
        (
            "no key info",
            BlobInfo {
                key_info: None,
                ..good.clone()
            },
        ),
        (
            "the nonce in front",
            BlobInfo {
                iv: vec![],
                ciphertext: [good.iv.clone(), good.ciphertext.clone()].concat(),
                ..good.clone()
            },
        ),
    ] {
        let fault = kms
            .unwrap_bound(&Ciphertext::new(blob.encode()), &bound, KEY)
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::CiphertextInvalid, "{what}: {fault}");
    }
    assert_eq!(server.seen().len(), before);
}

#[tokio::test]
async fn a_context_that_is_too_long_for_associated_data_is_not_sent() {
    let server = Double::start(strict).await;
    let kms = kms(&server).await;
    // `{"k":"…"}` is 8 characters and the value; 4096 are too many.
    for (length, fits) in [(4087, true), (4088, false)] {
        let context = BTreeMap::from([("k".to_owned(), "v".repeat(length))]);
        let bound = Bound {
            context: &context,
            aad: AAD,
        };
        let before = server.seen().len();
        let outcome = kms.wrap_bound(&key(), &bound).await;
        assert_eq!(outcome.is_ok(), fits, "{length}");
        if let Err(fault) = outcome {
            assert_eq!(fault.reason, Reason::InvalidSpec);
            assert_eq!(server.seen().len(), before);
        }
    }
}
