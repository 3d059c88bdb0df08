use super::*;
use data_encoding::{BASE64, HEXLOWER};
use serde_json::json;

fn hex(json: &serde_json::Value, field: &str) -> Vec<u8> {
    HEXLOWER
        .decode(json[field].as_str().unwrap_or_default().as_bytes())
        .unwrap()
}

fn vectors() -> Vec<serde_json::Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/awskms-blobinfo.json");
    let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    file["vectors"].as_array().unwrap().clone()
}

/// Opens what the vectors say that the KMS opened.
async fn replay() -> Double {
    let known: BTreeMap<String, String> = vectors()
        .iter()
        .map(|vector| match vector["mechanism"].as_u64() {
            Some(1) => (hex(vector, "wrapped_key_hex"), hex(vector, "dek_hex")),
            _ => (hex(vector, "ciphertext_hex"), hex(vector, "plaintext_hex")),
        })
        .map(|(from, to)| (BASE64.encode(&from), BASE64.encode(&to)))
        .collect();
    Double::start(move |seen| {
        let request = seen.json();
        assert_eq!(
            request.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["CiphertextBlob"],
            "neither KeyId nor EncryptionContext"
        );
        match known.get(request["CiphertextBlob"].as_str().unwrap()) {
            Some(plaintext) => Reply::json(&json!({"KeyId": ARN, "Plaintext": plaintext})),
            None => Reply::error(400, "InvalidCiphertextException"),
        }
    })
    .await
}

#[tokio::test]
async fn every_awskms_vector_is_unwrapped() {
    let server = replay().await;
    let kms = Bench::at(&server.url).kms(&seal(ARN)).await;
    for vector in vectors() {
        let blob = hex(&vector, "blob_info_hex");
        let opened = kms.open_blob(&blob, &hex(&vector, "aad_hex")).await.unwrap();
        assert_eq!(
            opened.key.expose(),
            hex(&vector, "plaintext_hex"),
            "{}",
            vector["name"]
        );
        assert_eq!(opened.key_id, ARN);
        let through = kms
            .unwrap(Format::BlobInfo, &Ciphertext::new(blob), &none())
            .await;
        if vector["aad_hex"] == "" {
            assert_eq!(through.unwrap().key.expose(), hex(&vector, "plaintext_hex"));
        } else {
            assert_eq!(through.unwrap_err().reason, Reason::CiphertextInvalid);
        }
    }
}

#[tokio::test]
async fn what_is_wrapped_is_unwrapped_again() {
    let server = Double::start(toy).await;
    let bench = Bench::at(&server.url);
    for name in [
        ARN,
        "10f10041-be4c-4765-9a36-fa27195e0cc3",
        "alias/bao",
        "arn:aws:kms:us-east-1:123456789012:alias/bao",
    ] {
        let kms = bench.kms(&seal(name)).await;
        for (format, context) in [
            (Format::BlobInfo, none()),
            (Format::Kms, none()),
            (
                Format::Kms,
                BTreeMap::from([("Tool".to_owned(), "bank-vaults".to_owned())]),
            ),
        ] {
            let key = KeyBytes::new((0..32).collect());
            let (wrapped, arn) = kms.wrap(&key, format, &context).await.unwrap();
            assert_eq!(arn.to_string(), ARN);
            let opened = kms
                .unwrap(format, &Ciphertext::new(wrapped), &context)
                .await
                .unwrap();
            assert!(opened.key.same_as(&key));
            let last = server.seen().pop().unwrap().json();
            assert_eq!(last.get("EncryptionContext").is_some(), !context.is_empty());
            assert_eq!(last.get("KeyId"), None);
        }
        let context = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let key = KeyBytes::new(vec![1; 32]);
        assert_eq!(
            kms.wrap(&key, Format::BlobInfo, &context)
                .await
                .unwrap_err()
                .reason,
            Reason::InvalidSpec
        );
        let long = KeyBytes::new(vec![1; 4097]);
        assert_eq!(
            kms.wrap(&long, Format::Kms, &none()).await.unwrap_err().reason,
            Reason::InvalidSpec
        );
        assert!(kms.wrap(&long, Format::BlobInfo, &none()).await.is_ok());
    }
    assert_eq!(count(&server, "DescribeKey"), 2, "one for each alias");
    assert!(
        bench
            .notes
            .requests
            .lock()
            .unwrap()
            .iter()
            .all(|(_, outcome)| *outcome == "ok")
    );
    assert_eq!(bench.notes.requests.lock().unwrap().len(), server.seen().len());
}

#[tokio::test]
async fn a_wrapped_key_that_is_none_reaches_no_kms() {
    let server = Double::start(toy).await;
    let kms = Bench::at(&server.url).kms(&seal(ARN)).await;
    for (format, bytes) in [
        (Format::BlobInfo, vec![]),
        (Format::BlobInfo, vec![0xff; 100]),
        (Format::BlobInfo, vec![0x5a; 1 << 20]),
        (Format::BlobInfo, b"\x0a\x03abc\x2a\x02\x08\x02".to_vec()),
        (Format::BlobInfo, b"\x0a\x03abc\x2a\x02\x08\x01".to_vec()),
        (Format::Kms, vec![]),
        (Format::Kms, vec![0; 6145]),
    ] {
        let fault = kms
            .unwrap(format, &Ciphertext::new(bytes), &none())
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::CiphertextInvalid, "{fault}");
    }
    assert!(server.seen().is_empty());
}

/// One Decrypt of `ciphertext` answered with `answer`.
async fn decrypt(seal: &AwsSeal, answer: serde_json::Value) -> Result<crate::provider::Opened, Fault> {
    let server = Double::start(move |seen| match seen.operation.as_str() {
        "DescribeKey" => description(ARN, "Enabled"),
        _ => Reply::json(&answer),
    })
    .await;
    let bench = Bench::at(&server.url);
    bench
        .kms(seal)
        .await
        .unwrap(Format::Kms, &Ciphertext::new(b"ciphertext".to_vec()), &none())
        .await
}

#[tokio::test]
async fn answers_are_believed_only_if_they_name_a_key_of_the_seal() {
    let good = BASE64.encode(b"key bytes");
    let pinned = AwsSeal {
        account: Some("999999999999".into()),
        ..seal("10f10041-be4c-4765-9a36-fa27195e0cc3")
    };
    let former = AwsSeal {
        former: vec![OTHER_ARN.parse().unwrap()],
        ..seal("alias/bao")
    };
    assert!(
        decrypt(&former, json!({"KeyId": OTHER_ARN, "Plaintext": good}))
            .await
            .is_ok()
    );
    assert!(
        decrypt(&seal("alias/bao"), json!({"KeyId": ARN, "Plaintext": good}))
            .await
            .is_ok()
    );
    for (seal, answer, reason) in [
        (
            seal(ARN),
            json!({"KeyId": OTHER_ARN, "Plaintext": good}),
            Reason::KeyNotAllowed,
        ),
        (
            seal("alias/bao"),
            json!({"KeyId": OTHER_ARN, "Plaintext": good}),
            Reason::KeyNotAllowed,
        ),
        (
            seal(ARN),
            json!({"KeyId": ARN.replace("1234", "4321"), "Plaintext": good}),
            Reason::KeyNotAllowed,
        ),
        (
            pinned,
            json!({"KeyId": ARN, "Plaintext": good}),
            Reason::KeyNotAllowed,
        ),
        (
            seal(ARN),
            json!({"KeyId": "10f10041-be4c-4765-9a36-fa27195e0cc3", "Plaintext": good}),
            Reason::KeyNotAllowed,
        ),
        (
            seal(ARN),
            json!({"KeyId": "secret bytes", "Plaintext": good}),
            Reason::KeyNotAllowed,
        ),
        (seal(ARN), json!({"Plaintext": good}), Reason::KmsUnavailable),
        (seal(ARN), json!({"KeyId": ARN}), Reason::KmsUnavailable),
        (
            seal(ARN),
            json!({"KeyId": ARN, "Plaintext": ""}),
            Reason::KmsUnavailable,
        ),
        (
            seal(ARN),
            json!({"KeyId": ARN, "Plaintext": BASE64.encode(&[1; 4097])}),
            Reason::KmsUnavailable,
        ),
        (
            seal(ARN),
            json!({"KeyId": ARN, "Plaintext": "no base64!"}),
            Reason::KmsUnavailable,
        ),
        (seal(ARN), json!({}), Reason::KmsUnavailable),
        (seal(ARN), json!([1]), Reason::KmsUnavailable),
        // A server that sends back what it was sent.
        (
            seal(ARN),
            json!({"KeyId": ARN, "Plaintext": BASE64.encode(b"ciphertext")}),
            Reason::CiphertextInvalid,
        ),
    ] {
        let fault = decrypt(&seal, answer.clone()).await.unwrap_err();
        assert_eq!(fault.reason, reason, "{answer}: {fault}");
        assert!(!fault.message.contains("secret bytes") && !fault.message.contains("key bytes"));
    }
}

#[tokio::test]
async fn encrypts_answer_is_checked_too() {
    for (answer, reason) in [
        (
            json!({"KeyId": OTHER_ARN, "CiphertextBlob": "AAAA"}),
            Reason::KeyNotAllowed,
        ),
        (
            json!({"KeyId": ARN, "CiphertextBlob": BASE64.encode(&[7; 32])}),
            Reason::KmsUnavailable,
        ),
        (
            json!({"KeyId": ARN, "CiphertextBlob": ""}),
            Reason::KmsUnavailable,
        ),
        (json!({"CiphertextBlob": "AAAA"}), Reason::KmsUnavailable),
    ] {
        for name in [ARN, "alias/bao"] {
            let reply = answer.clone();
            let server = Double::start(move |seen| match seen.operation.as_str() {
                "DescribeKey" => description(ARN, "Enabled"),
                _ => Reply::json(&reply),
            })
            .await;
            let kms = Bench::at(&server.url).kms(&seal(name)).await;
            let fault = kms
                .wrap(&KeyBytes::new(vec![7; 32]), Format::Kms, &none())
                .await
                .unwrap_err();
            assert_eq!(fault.reason, reason, "{answer}");
        }
    }
}

#[tokio::test]
async fn an_alias_that_may_not_be_described_is_checked_by_the_kms() {
    let server = Double::start(|seen| match seen.operation.as_str() {
        "DescribeKey" => Reply::error(400, "AccessDeniedException"),
        _ if seen.json()["KeyId"] == "alias/bao"
            && seen.json()["CiphertextBlob"] == BASE64.encode(b"other") =>
        {
            Reply::error(400, "IncorrectKeyException")
        }
        _ if seen.json()["CiphertextBlob"] == BASE64.encode(b"other") => {
            Reply::json(&json!({"KeyId": OTHER_ARN, "Plaintext": "AAAA"}))
        }
        _ => Reply::json(&json!({"KeyId": ARN, "Plaintext": "AAAA"})),
    })
    .await;
    let bench = Bench::at(&server.url);
    let kms = bench.kms(&seal("alias/bao")).await;
    assert!(
        kms.unwrap(Format::Kms, &Ciphertext::new(b"ours".to_vec()), &none())
            .await
            .is_ok()
    );
    assert_eq!(server.seen().pop().unwrap().json()["KeyId"], "alias/bao");
    let other = Ciphertext::new(b"other".to_vec());
    let fault = kms.unwrap(Format::Kms, &other, &none()).await.unwrap_err();
    assert_eq!(fault.reason, Reason::KeyNotAllowed);
    let former = AwsSeal {
        former: vec![OTHER_ARN.parse().unwrap()],
        ..seal("alias/bao")
    };
    let opened = bench
        .kms(&former)
        .await
        .unwrap(Format::Kms, &other, &none())
        .await
        .unwrap();
    assert_eq!(opened.key_id, OTHER_ARN);
    assert_eq!(count(&server, "DescribeKey"), 1, "a refusal is remembered");
}

#[tokio::test]
async fn a_key_is_described_once_an_hour_for_everybody() {
    let server = Double::start(|_| description(ARN, "Enabled").after(Duration::from_millis(50))).await;
    let bench = Bench::at(&server.url);
    let all = (0..50).map(|_| async { bench.kms(&seal("alias/bao")).await.describe().await.unwrap() });
    for description in futures::future::join_all(all).await {
        assert_eq!(description.arn.to_string(), ARN);
        assert!(description.usable && description.fault().is_none());
    }
    assert_eq!(count(&server, "DescribeKey"), 1);
    bench.pass(3590);
    bench.kms(&seal("alias/bao")).await.describe().await.unwrap();
    assert_eq!(count(&server, "DescribeKey"), 1);
    bench.pass(400);
    bench.kms(&seal("alias/bao")).await.describe().await.unwrap();
    assert_eq!(count(&server, "DescribeKey"), 2);
}

#[tokio::test]
async fn a_description_that_fails_is_not_asked_for_by_everybody() {
    let server = Double::start(|_| Reply::error(500, "KMSInternalException")).await;
    let bench = Bench::at(&server.url);
    for _ in 0..20 {
        let fault = bench.kms(&seal(ARN)).await.describe().await.unwrap_err();
        assert_eq!(fault.reason, Reason::KmsUnavailable);
    }
    assert_eq!(server.seen().len(), 1);
    bench.pass(2);
    bench.kms(&seal(ARN)).await.describe().await.unwrap_err();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_description_of_a_foreign_key_is_refused() {
    for (name, answered) in [
        (ARN, OTHER_ARN),
        ("alias/bao", "arn:aws:kms:eu-west-1:123456789012:key/1"),
        (
            "arn:aws:kms:us-east-1:123456789012:alias/bao",
            "arn:aws:kms:us-east-1:999999999999:key/1",
        ),
    ] {
        let server = Double::start(move |_| description(answered, "Enabled")).await;
        let kms = Bench::at(&server.url).kms(&seal(name)).await;
        assert_eq!(
            kms.describe().await.unwrap_err().reason,
            Reason::KeyNotAllowed,
            "{name}"
        );
    }
    let server =
        Double::start(|_| description("arn:aws<i>:kms:us-east-1:123456789012:key/1", "Enabled")).await;
    let kms = Bench::at(&server.url).kms(&seal("alias/bao")).await;
    assert_eq!(kms.describe().await.unwrap_err().reason, Reason::KmsUnavailable);
}

#[tokio::test]
async fn the_state_of_the_key_is_told() {
    for (state, known, reason) in [
        ("Disabled", KeyState::Disabled, Reason::KeyDisabled),
        (
            "PendingDeletion",
            KeyState::PendingDeletion,
            Reason::KeyPendingDeletion,
        ),
        (
            "PendingReplicaDeletion",
            KeyState::PendingDeletion,
            Reason::KeyPendingDeletion,
        ),
        ("PendingImport", KeyState::PendingImport, Reason::KeyUnusable),
        ("Unavailable", KeyState::Unavailable, Reason::KeyUnusable),
        ("Updating", KeyState::Other, Reason::KeyUnusable),
        ("New<state>", KeyState::Other, Reason::KeyUnusable),
    ] {
        let server = Double::start(move |seen| match seen.operation.as_str() {
            "DescribeKey" => description(ARN, state),
            _ => Reply::error(400, "KMSInvalidStateException"),
        })
        .await;
        let kms = Bench::at(&server.url).kms(&seal(ARN)).await;
        // Decrypt says only that the state is wrong; the description says which.
        let fault = kms
            .unwrap(Format::Kms, &Ciphertext::new(vec![1]), &none())
            .await
            .unwrap_err();
        assert_eq!(fault.reason, reason, "{state}");
        let description = kms.describe().await.unwrap();
        assert_eq!((description.state, description.usable), (known, false));
        assert_eq!(description.fault().unwrap().reason, reason);
        assert_eq!(count(&server, "DescribeKey"), 1);
    }
}

#[tokio::test]
async fn faults_of_the_wire_are_told_in_our_words() {
    let date = "Sun, 06 Nov 1994 08:50:37 GMT";
    for (reply, reason, context) in [
        (
            Reply::error(400, "InvalidCiphertextException"),
            Reason::CiphertextInvalid,
            false,
        ),
        (
            Reply::error(400, "InvalidCiphertextException"),
            Reason::ContextMismatch,
            true,
        ),
        (
            Reply::error(400, "com.amazonaws.kms#DisabledException"),
            Reason::KeyDisabled,
            false,
        ),
        (Reply::error(400, "NotFoundException"), Reason::KeyNotFound, false),
        (
            Reply::error(400, "ThrottlingException").header("retry-after", "7"),
            Reason::Throttled,
            false,
        ),
        (
            Reply::error(503, "DependencyTimeoutException"),
            Reason::KmsUnavailable,
            false,
        ),
        (
            Reply::error(400, "ExpiredTokenException"),
            Reason::CredentialsExpired,
            false,
        ),
        (
            Reply::error(400, "InvalidSignatureException").header("date", date),
            Reason::ClockSkew,
            false,
        ),
        (
            Reply::error(400, "InvalidSignatureException"),
            Reason::CredentialsRejected,
            false,
        ),
        // moto with its checks on: XML, even for the KMS.
        (
            Reply::text(
                403,
                "<Response><Errors><Error><Code>AccessDenied</Code><Message>FOREIGN TEXT</Message></Error></Errors></Response>",
            ),
            Reason::AccessDenied,
            false,
        ),
        (
            Reply::text(403, "<x><Code>SignatureDoesNotMatch</Code></x>"),
            Reason::CredentialsRejected,
            false,
        ),
        (
            Reply::text(403, "<x><Code>InvalidClientTokenId</Code></x>"),
            Reason::CredentialsRejected,
            false,
        ),
        (Reply::text(403, "FOREIGN TEXT"), Reason::AccessDenied, false),
        (
            Reply::text(500, "<html>FOREIGN TEXT</html>"),
            Reason::KmsUnavailable,
            false,
        ),
        (Reply::text(502, ""), Reason::KmsUnavailable, false),
        (Reply::text(429, "{}"), Reason::Throttled, false),
        (Reply::text(404, "FOREIGN TEXT"), Reason::KmsUnavailable, false),
        (
            Reply::text(302, "").header("location", "http://127.0.0.1:1/"),
            Reason::KmsUnavailable,
            false,
        ),
        (Reply::text(200, "FOREIGN TEXT"), Reason::KmsUnavailable, false),
        (Reply::error(400, "FOREIGN TEXT"), Reason::KmsUnavailable, false),
    ] {
        let body = String::from_utf8_lossy(&reply.body).into_owned();
        let reply = reply.header("x-amzn-requestid", "FOREIGN_TEXT");
        let server = Double::start(move |_| reply.clone()).await;
        let bench = Bench::at(&server.url);
        let kms = bench.kms(&seal(ARN)).await;
        let mut sent = none();
        if context {
            sent.insert("a".into(), "b".into());
        }
        let fault = kms
            .unwrap(Format::Kms, &Ciphertext::new(vec![1]), &sent)
            .await
            .unwrap_err();
        assert_eq!(fault.reason, reason, "{body}: {fault}");
        assert!(!fault.message.contains("FOREIGN"), "{fault}");
        assert_eq!(fault.retry_after.is_some(), body.contains("Throttling"), "{body}");
        assert_eq!(
            *bench.notes.requests.lock().unwrap(),
            [("Decrypt", reason.as_str())]
        );
        assert_eq!(server.seen().len(), 1, "one try: the backoff is the operator's");
    }
}

#[tokio::test]
async fn a_server_that_echoes_the_request_in_its_errors_is_not_quoted() {
    let server = Double::start(|seen| {
        let headers = format!("{:?}", seen.headers);
        let body = format!("{}{}", seen.body, headers);
        let json = json!({"__type": body, "message": body, "Message": body});
        Reply::text(400, &json.to_string()).header("x-amzn-requestid", seen.body.replace(['\n', '\r'], ""))
    })
    .await;
    let bench = Bench::at(&server.url);
    let kms = bench.kms(&seal(ARN)).await;
    let fault = kms
        .unwrap(Format::Kms, &Ciphertext::new(b"ciphertext".to_vec()), &none())
        .await
        .unwrap_err();
    for text in [
        BASE64.encode(b"ciphertext"),
        "AKIA".to_owned(),
        "Signature".to_owned(),
        "CiphertextBlob".to_owned(),
    ] {
        assert!(!fault.message.contains(&text), "{fault}");
    }
}
