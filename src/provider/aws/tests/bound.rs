use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::BASE64;
use rstest::rstest;
use serde_json::{Value, json};

use super::*;
use crate::{
    provider::{Bound, Kms as Any, Wrapped},
    wrapped::blob_info::BlobInfo,
};

const MATERIAL: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const ELSEWHERE: &str = "arn:aws:kms:us-east-1:999999999999:key/10f10041-be4c-4765-9a36-fa27195e0cc3";
const AAD: &[u8] = b"team-a/bao/key/1";

/// As many entries as a copy's binding has, the longest that the cluster's names can be.
fn place() -> BTreeMap<String, String> {
    (0..9)
        .map(|n| (format!("autounseal.dev/bound-{n}"), "n".repeat(253)))
        .collect()
}

fn key() -> KeyBytes {
    KeyBytes::new((0..32).collect())
}

fn encoded(request: &Value, field: &str) -> Vec<u8> {
    let text = request[field].as_str().unwrap();
    BASE64.decode(text.as_bytes()).unwrap()
}

/// A KMS whose ciphertext begins with the digest of its key and context, as strict about both as the real one.
fn strict(seen: &Seen) -> Reply {
    let request = seen.json();
    let tag = |key: &str| {
        let said = format!("{key} {}", request["EncryptionContext"]);
        digest(&SHA256, said.as_bytes()).as_ref().to_vec()
    };
    match seen.operation.as_str() {
        "Encrypt" => {
            let mut blob = tag(ARN);
            blob.extend(encoded(&request, "Plaintext").iter().rev());
            Reply::json(&json!({"KeyId": ARN, "CiphertextBlob": BASE64.encode(&blob)}))
        }
        "Decrypt" => {
            let named = request.get("KeyId").and_then(Value::as_str);
            if named.is_some_and(|named| named != ARN) {
                return Reply::error(400, "IncorrectKeyException");
            }
            match encoded(&request, "CiphertextBlob").strip_prefix(tag(ARN).as_slice()) {
                Some(rest) => {
                    let plain: Vec<u8> = rest.iter().rev().copied().collect();
                    Reply::json(&json!({"KeyId": ARN, "Plaintext": BASE64.encode(&plain)}))
                }
                None => Reply::error(400, "InvalidCiphertextException"),
            }
        }
        _ => Reply::json(&json!({"KeyMetadata": {
            "KeyId": "x", "Arn": ARN, "KeyState": "Enabled", "CurrentKeyMaterialId": MATERIAL,
        }})),
    }
}

/// A copy made by [`strict`], and the server that made it.
async fn made() -> (Double, Kms, Wrapped) {
    let server = Double::start(strict).await;
    let kms = Bench::at(&server.url).kms(&seal(ARN)).await;
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let wrapped = kms.wrap_bound(&key(), &bound).await.unwrap();
    (server, kms, wrapped)
}

/// What the KMS answers to the Decrypt of a copy of ours, and what becomes of it.
async fn answered_with(
    seal: &AwsSeal,
    recorded: &str,
    answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> (Double, Result<crate::provider::Opened, Fault>) {
    let (_, _, wrapped) = made().await;
    let server = Double::start(answer).await;
    let kms = Bench::at(&server.url).kms(seal).await;
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let outcome = kms.unwrap_bound(&wrapped.ciphertext, &bound, recorded).await;
    (server, outcome)
}

#[rstest]
#[case::by_arn(ARN)]
#[case::by_id("10f10041-be4c-4765-9a36-fa27195e0cc3")]
#[case::by_alias("alias/bao")]
#[case::by_the_arn_of_an_alias("arn:aws:kms:us-east-1:123456789012:alias/bao")]
#[tokio::test]
async fn a_copy_is_opened_by_the_key_that_made_it(#[case] name: &str) {
    let server = Double::start(strict).await;
    let kms = Any::Aws(Bench::at(&server.url).kms(&seal(name)).await);
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let wrapped = kms.wrap_bound(&key(), &bound).await.unwrap();
    assert_eq!(wrapped.key_id, ARN);
    assert_eq!(wrapped.key_version.as_deref(), Some(MATERIAL));
    assert_eq!(
        BlobInfo::decode(wrapped.ciphertext.bytes()).unwrap().mechanism(),
        1
    );
    let opened = kms
        .unwrap_bound(&wrapped.ciphertext, &bound, &wrapped.key_id)
        .await
        .unwrap();
    assert!(opened.key.same_as(&key()));
    assert_eq!(opened.key_id, ARN);
    for seen in server.seen() {
        let request = seen.json();
        let named = match seen.operation.as_str() {
            "Decrypt" => ARN,
            _ => name,
        };
        assert_eq!(request["KeyId"], named, "{}", seen.operation);
        let told = if seen.operation == "DescribeKey" {
            Value::Null
        } else {
            json!(context)
        };
        assert_eq!(request["EncryptionContext"], told, "{}", seen.operation);
    }
    assert_eq!((count(&server, "Encrypt"), count(&server, "Decrypt")), (1, 1));
    assert_eq!(count(&server, "DescribeKey"), 1, "once an hour for all purposes");
    let description = kms.describe().await.unwrap();
    assert_eq!(description.version.as_deref(), Some(MATERIAL));
}

#[rstest]
#[case::refused(Reply::error(400, "AccessDeniedException"))]
#[case::down(Reply::error(500, "KMSInternalException"))]
#[case::silent(description(ARN, "Enabled"))]
#[case::foreign_text(Reply::json(&json!({"KeyMetadata": {
    "Arn": ARN, "KeyState": "Enabled", "CurrentKeyMaterialId": "FOREIGN TEXT",
}})))]
#[tokio::test]
async fn a_copy_is_made_without_the_version_of_its_key(#[case] described: Reply) {
    let server = Double::start(move |seen| match seen.operation.as_str() {
        "DescribeKey" => described.clone(),
        _ => strict(seen),
    })
    .await;
    let kms = Bench::at(&server.url).kms(&seal(ARN)).await;
    let bound = Bound {
        context: &place(),
        aad: AAD,
    };
    let wrapped = kms.wrap_bound(&key(), &bound).await.unwrap();
    assert_eq!(count(&server, "DescribeKey"), 1);
    assert_eq!(wrapped.key_version, None);
    assert!(kms.unwrap_bound(&wrapped.ciphertext, &bound, ARN).await.is_ok());
}

#[tokio::test]
async fn a_copy_of_another_place_does_not_open() {
    let (server, kms, wrapped) = made().await;
    let (context, mut other) = (place(), place());
    other.insert("autounseal.dev/bound-0".into(), "team-b".into());
    // The context is the KMS's to check, the additional data ours; each alone keeps the copy shut.
    for (context, aad) in [
        (&other, AAD),
        (&none(), AAD),
        (&context, b"team-b/bao/key/1".as_slice()),
        (&context, b""),
    ] {
        let bound = Bound { context, aad };
        let fault = kms
            .unwrap_bound(&wrapped.ciphertext, &bound, ARN)
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::ContextMismatch, "{fault}");
        assert!(
            fault.message.starts_with("the copy does not belong here: "),
            "{fault}"
        );
        assert!(fault.message.contains("put the store's Secret back"), "{fault}");
    }
    assert_eq!(count(&server, "Decrypt"), 4);
    // Nor as what a user brings.
    let fault = kms
        .unwrap(Format::BlobInfo, &wrapped.ciphertext, &none())
        .await
        .unwrap_err();
    assert_eq!(fault.reason, Reason::CiphertextInvalid);
}

#[tokio::test]
async fn what_the_operator_never_writes_reaches_no_kms() {
    let (server, kms, wrapped) = made().await;
    let context = place();
    let bound = Bound {
        context: &context,
        aad: AAD,
    };
    let good = BlobInfo::decode(wrapped.ciphertext.bytes()).unwrap();
    let info = good.key_info.clone().unwrap();
    let with = |mechanism: u64, wrapped_key: Vec<u8>| BlobInfo {
        key_info: Some(crate::wrapped::blob_info::KeyInfo {
            mechanism,
            wrapped_key,
            key_id: ARN.into(),
        }),
        ..good.clone()
    };
    let before = server.seen().len();
    for (what, blob) in [
        ("mechanism 0", with(0, info.wrapped_key.clone())),
        (
            "mechanism 0 over the KMS's own ciphertext",
            BlobInfo {
                ciphertext: info.wrapped_key.clone(),
                ..with(0, vec![])
            },
        ),
        ("mechanism 2", with(2, info.wrapped_key.clone())),
        ("no data key", with(1, vec![])),
        ("too long a data key", with(1, vec![7; 6145])),
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
        (
            "no tag",
            BlobInfo {
                ciphertext: vec![7; 15],
                ..good.clone()
            },
        ),
    ] {
        let fault = kms
            .unwrap_bound(&Ciphertext::new(blob.encode()), &bound, ARN)
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::CiphertextInvalid, "{what}: {fault}");
    }
    let garbage = Ciphertext::new(vec![0xff; 100]);
    let fault = kms.unwrap_bound(&garbage, &bound, ARN).await.unwrap_err();
    assert_eq!(fault.reason, Reason::CiphertextInvalid);
    assert_eq!(server.seen().len(), before);
    // The same bytes with the right mechanism do open: it is nothing else that kept them shut.
    let again = Ciphertext::new(with(1, info.wrapped_key).encode());
    assert!(kms.unwrap_bound(&again, &bound, ARN).await.is_ok());
}

#[rstest]
#[case::account(ARN, None, ELSEWHERE)]
#[case::account_of_an_alias("arn:aws:kms:us-east-1:123456789012:alias/bao", None, ELSEWHERE)]
#[case::pinned_account("10f10041-be4c-4765-9a36-fa27195e0cc3", Some("123456789012"), ELSEWHERE)]
#[case::region(
    ARN,
    None,
    "arn:aws:kms:eu-west-1:123456789012:key/10f10041-be4c-4765-9a36-fa27195e0cc3"
)]
#[case::region_of_an_id(
    "10f10041-be4c-4765-9a36-fa27195e0cc3",
    None,
    "arn:aws:kms:eu-west-1:123456789012:key/10f10041-be4c-4765-9a36-fa27195e0cc3"
)]
#[case::partition(ARN, None, "arn:aws-cn:kms:us-east-1:123456789012:key/1")]
#[case::account_of_a_multi_region_key(ARN, None, "arn:aws:kms:us-east-1:999999999999:key/mrk-1")]
#[case::id(ARN, None, "10f10041-be4c-4765-9a36-fa27195e0cc3")]
#[case::alias(ARN, None, "arn:aws:kms:us-east-1:123456789012:alias/bao")]
#[case::id_of_no_key(
    ARN,
    None,
    "arn:aws:kms:us-east-1:123456789012:key/SECRET-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
)]
#[case::text(ARN, None, "SECRET TEXT")]
#[case::nothing(ARN, None, "")]
#[tokio::test]
async fn a_recorded_key_that_is_not_the_seals_to_use_is_sent_nothing(
    #[case] name: &str,
    #[case] account: Option<&str>,
    #[case] recorded: &str,
) {
    let seal = AwsSeal {
        account: account.map(Into::into),
        ..seal(name)
    };
    let (server, outcome) = answered_with(&seal, recorded, strict).await;
    let fault = outcome.unwrap_err();
    assert_eq!(fault.reason, Reason::KeyNotAllowed, "{fault}");
    assert!(!fault.message.contains("SECRET"), "{fault}");
    assert!(server.seen().is_empty(), "{:?}", server.seen());
}

#[rstest]
#[case::by_id("10f10041-be4c-4765-9a36-fa27195e0cc3")]
#[case::by_alias("alias/bao")]
#[tokio::test]
async fn a_name_that_tells_no_account_is_looked_up_before_a_recorded_key_is_used(#[case] name: &str) {
    let (server, outcome) = answered_with(&seal(name), ELSEWHERE, strict).await;
    assert_eq!(outcome.unwrap_err().reason, Reason::KeyNotAllowed);
    assert_eq!((count(&server, "DescribeKey"), count(&server, "Decrypt")), (1, 0));
    // What cannot be known for now is not taken for right.
    let down = |seen: &Seen| match seen.operation.as_str() {
        "DescribeKey" => Reply::error(500, "KMSInternalException"),
        _ => strict(seen),
    };
    let (server, outcome) = answered_with(&seal(name), ARN, down).await;
    assert_eq!(outcome.unwrap_err().reason, Reason::KmsUnavailable);
    assert_eq!(count(&server, "Decrypt"), 0);
    // What is pinned need not be looked up.
    let pinned = AwsSeal {
        account: Some("123456789012".into()),
        ..seal(name)
    };
    let (server, outcome) = answered_with(&pinned, ARN, down).await;
    assert!(outcome.is_ok());
    assert_eq!(count(&server, "DescribeKey"), 0);
    // A refusal is for good, and the key is named to the KMS.
    let refused = |seen: &Seen| match seen.operation.as_str() {
        "DescribeKey" => Reply::error(400, "AccessDeniedException"),
        _ => strict(seen),
    };
    let (server, outcome) = answered_with(&seal(name), ARN, refused).await;
    assert!(outcome.is_ok());
    assert_eq!(server.seen().pop().unwrap().json()["KeyId"], ARN);
}

/// What [`strict`] says, in the name of another key.
fn claiming(arn: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    move |seen| {
        let asked = Seen {
            body: seen.body.replace(arn, ARN),
            ..seen.clone()
        };
        let mut reply = strict(&asked);
        reply.body = String::from_utf8(reply.body)
            .unwrap()
            .replace(ARN, arn)
            .into_bytes();
        reply
    }
}

#[tokio::test]
async fn the_key_that_the_store_records_may_be_an_older_one() {
    // Of the same account and region: the store's word is enough.
    let (server, outcome) = answered_with(&seal(ARN), OTHER_ARN, claiming(OTHER_ARN)).await;
    assert_eq!(outcome.unwrap().key_id, OTHER_ARN);
    assert_eq!(server.seen().pop().unwrap().json()["KeyId"], OTHER_ARN);
    // Of another account: it must be named, and no account be pinned.
    let former = AwsSeal {
        former: vec![ELSEWHERE.parse().unwrap()],
        ..seal(ARN)
    };
    let (server, outcome) = answered_with(&former, ELSEWHERE, claiming(ELSEWHERE)).await;
    assert_eq!(outcome.unwrap().key_id, ELSEWHERE);
    assert_eq!(server.seen().pop().unwrap().json()["KeyId"], ELSEWHERE);
    let pinned = AwsSeal {
        account: Some("123456789012".into()),
        ..former
    };
    let (server, outcome) = answered_with(&pinned, ELSEWHERE, claiming(ELSEWHERE)).await;
    assert_eq!(outcome.unwrap_err().reason, Reason::KeyNotAllowed);
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn a_copy_of_a_replica_is_opened_by_the_one_of_the_seals_region() {
    const HERE: &str = "arn:aws:kms:us-east-1:123456789012:key/mrk-1";
    const THERE: &str = "arn:aws:kms:eu-west-1:123456789012:key/mrk-1";
    let (server, outcome) = answered_with(&seal(HERE), THERE, claiming(HERE)).await;
    assert_eq!(outcome.unwrap().key_id, HERE);
    assert_eq!(server.seen().pop().unwrap().json()["KeyId"], HERE);
}

#[tokio::test]
async fn an_answer_by_another_key_than_the_recorded_one_is_dropped() {
    for (recorded, answered) in [
        (ARN, OTHER_ARN),
        (OTHER_ARN, ARN),
        (ARN, ELSEWHERE),
        (ARN, "SECRET TEXT"),
    ] {
        // Even one that the seal names is not the one that was asked for.
        let seal = AwsSeal {
            former: vec![OTHER_ARN.parse().unwrap()],
            ..seal(ARN)
        };
        let answer = json!({"KeyId": answered, "Plaintext": BASE64.encode(&[7; 32])});
        let (server, outcome) = answered_with(&seal, recorded, move |_| Reply::json(&answer)).await;
        let fault = outcome.unwrap_err();
        assert_eq!(fault.reason, Reason::KeyNotAllowed, "{recorded}, {answered}");
        assert!(
            fault.message.contains(recorded) && !fault.message.contains("SECRET"),
            "{fault}"
        );
        assert_eq!(count(&server, "Decrypt"), 1);
    }
}

#[tokio::test]
async fn a_data_key_that_is_none_opens_nothing() {
    for length in [1, 16, 31, 33] {
        let answer = json!({"KeyId": ARN, "Plaintext": BASE64.encode(&vec![7; length])});
        let (_, outcome) = answered_with(&seal(ARN), ARN, move |_| Reply::json(&answer)).await;
        assert_eq!(outcome.unwrap_err().reason, Reason::CiphertextInvalid, "{length}");
    }
}

#[rstest]
#[case::denied("AccessDeniedException", Reason::AccessDenied)]
#[case::wrong_key("IncorrectKeyException", Reason::KeyNotAllowed)]
#[case::gone("NotFoundException", Reason::KeyNotFound)]
#[case::disabled("DisabledException", Reason::KeyDisabled)]
#[case::throttled("ThrottlingException", Reason::Throttled)]
#[case::state("KMSInvalidStateException", Reason::KeyUnusable)]
#[tokio::test]
async fn a_refusal_tells_of_the_recorded_key(#[case] code: &'static str, #[case] reason: Reason) {
    let answer = move |seen: &Seen| match seen.operation.as_str() {
        "DescribeKey" => description(ARN, "PendingDeletion"),
        _ => Reply::error(400, code),
    };
    let (_, outcome) = answered_with(&seal(ARN), OTHER_ARN, answer).await;
    let fault = outcome.unwrap_err();
    assert_eq!(fault.reason, reason, "{fault}");
    assert_eq!(
        fault.message.contains(OTHER_ARN),
        reason != Reason::Throttled,
        "{fault}"
    );
    assert!(
        !fault.message.contains("FOREIGN") && !fault.message.contains(ARN),
        "{fault}"
    );
    // The seal's own key has a state that can be looked up.
    if reason == Reason::KeyUnusable {
        let (_, outcome) = answered_with(&seal(ARN), ARN, answer).await;
        assert_eq!(outcome.unwrap_err().reason, Reason::KeyPendingDeletion);
    }
}
