//! The scripted KMS is itself held against the official SDK, so that a test's verdict is the operator's and not the stub's.

use aws_sdk_kms::{error::ProvideErrorMetadata, operation::RequestId, primitives::Blob};

use crate::support::{
    kms::{Act, Context, Kms},
    moto::Moto,
};

fn client(kms: &Kms) -> Moto {
    Moto::at(&kms.url(), "us-east-1", "AKIASCRIPTEDSERVER00", "secret")
}

fn context(pairs: &[(&str, &str)]) -> Context {
    pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()
}

#[tokio::test]
async fn the_scripted_kms_encrypts_and_decrypts_for_the_official_sdk() {
    let kms = Kms::start();
    let key = kms.key();
    kms.alias("alias/a", &key);
    let moto = client(&kms);
    let blob = moto
        .encrypt("alias/a", b"root key", &context(&[("a", "b")]))
        .await;
    let opened = moto
        .client()
        .decrypt()
        .ciphertext_blob(Blob::new(blob.clone()))
        .encryption_context("a", "b")
        .send()
        .await
        .unwrap();
    assert_eq!(opened.plaintext().unwrap().as_ref(), b"root key");
    assert_eq!(opened.key_id().unwrap(), key.arn);
    let described = moto
        .client()
        .describe_key()
        .key_id("alias/a")
        .send()
        .await
        .unwrap();
    assert_eq!(described.key_metadata().unwrap().arn().unwrap(), key.arn);

    for wrong in [
        context(&[]),
        context(&[("a", "c")]),
        context(&[("a", "b"), ("x", "y")]),
    ] {
        let refused = moto
            .client()
            .decrypt()
            .ciphertext_blob(Blob::new(blob.clone()))
            .set_encryption_context(Some(wrong.into_iter().collect()))
            .send()
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some("InvalidCiphertextException"));
    }
    assert_eq!(
        (
            kms.count("Encrypt"),
            kms.count("Decrypt"),
            kms.count("DescribeKey")
        ),
        (1, 4, 1)
    );
    assert_eq!(kms.malformed(), Vec::<String>::new());
}

#[tokio::test]
async fn the_scripted_kms_shows_every_state_of_a_key() {
    let kms = Kms::start();
    let key = kms.key();
    let blob = kms.encrypt(&key, b"x", &Context::new());
    let moto = client(&kms);
    for (state, code) in [
        ("Disabled", "DisabledException"),
        ("PendingDeletion", "KMSInvalidStateException"),
        ("Gone", "NotFoundException"),
    ] {
        kms.set_state(&key, state);
        let refused = moto
            .client()
            .decrypt()
            .ciphertext_blob(Blob::new(blob.clone()))
            .send()
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Some(code));
    }
}

#[tokio::test]
async fn the_scripted_kms_misbehaves_once_or_until_it_is_healed() {
    let kms = Kms::start();
    let key = kms.key();
    let blob = kms.encrypt(&key, b"x", &Context::new());
    let moto = client(&kms);
    let decrypt = || {
        moto.client()
            .decrypt()
            .ciphertext_blob(Blob::new(blob.clone()))
            .send()
    };
    kms.next("Decrypt", Act::error(400, "AccessDeniedException"));
    assert_eq!(decrypt().await.unwrap_err().code(), Some("AccessDeniedException"));
    decrypt().await.unwrap();
    for act in [Act::CloseMidAnswer, Act::Garbage, Act::NotHttp] {
        kms.always("Decrypt", act);
        assert!(decrypt().await.is_err());
    }
    kms.always("Decrypt", Act::EchoRequest);
    let echoed = decrypt().await.unwrap_err();
    assert!(format!("{echoed:?} {:?}", echoed.request_id()).contains("AWS4-HMAC-SHA256"));
    kms.heal();
    decrypt().await.unwrap();
}
