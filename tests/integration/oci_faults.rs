//! What goes wrong with the vault and with what it is given: the user reads the reason, and the last good Secret stays
//! as it was.

use std::time::{Duration, Instant};

use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::support::{
    blob::{blob_info, blob_info_without_key_info, envelope},
    kms::{Context, Kms},
    oci_scene::{Delivered, OciScene, by_secret},
    plane::within,
    stage::{condition, random},
};

/// Delivers these bytes by the API key of Secret `oci`.
async fn delivered(scene: &OciScene, name: &str) -> Delivered {
    let bytes = random(32);
    scene.deliver(name, scene.spec(name, &bytes), &bytes).await
}

/// The spec with another copy of the key.
fn with_copy(one: &Delivered, copy: &Value) -> Value {
    let mut spec = one.spec.clone();
    spec["keys"][0]["wrapped"][0] = copy.clone();
    spec["keys"][0]["wrapped"][0]["seal"] = json!("oci");
    spec
}

fn inline(format: &str, bytes: &[u8]) -> Value {
    json!({"format": format, "inline": BASE64.encode(bytes)})
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_foreign_wrapped_keys_are_told_and_never_delivered() {
    let scene = OciScene::new("oci-bad-copies").await;
    let _operator = scene.start();
    let text = |copy: &Value| copy["inline"].as_str().unwrap().to_owned();
    let good = BASE64.decode(text(&scene.kms_copy(b"good")).as_bytes()).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        inline("kms", &bytes)
    };
    let blob = BASE64.decode(text(&scene.blob_copy(b"good")).as_bytes()).unwrap();
    // In the envelope, which the vault never sees: field 1 begins after its tag and length.
    let mut flipped_blob = blob.clone();
    flipped_blob[3] ^= 1;
    let second = scene.oci.key();
    let of_another = scene.oci.encrypt(&second, b"x", &Context::new());
    let aws = Kms::start();
    let aws_key = aws.key();
    let data_key: [u8; 32] = random(32).try_into().unwrap();
    let wrapped = aws.encrypt(&aws_key, &data_key, &Context::new());
    let short_key = scene.oci.encrypt(&scene.key, &random(16), &Context::new());
    let cases: Vec<(&str, Value, usize)> = vec![
        ("flipped", flipped(good.len() - 1), 1),
        ("head", flipped(0), 1),
        ("cut", inline("kms", &good[..good.len() - 7]), 1),
        ("noise", inline("kms", &random(100)), 1),
        (
            "of-another-key",
            json!({"format": "kms", "inline": of_another}),
            1,
        ),
        ("blob-as-kms", inline("kms", &blob), 1),
        ("kms-as-blob", inline("blobinfo", &good), 0),
        ("flipped-blob", inline("blobinfo", &flipped_blob), 1),
        ("cut-blob", inline("blobinfo", &blob[..blob.len() / 2]), 0),
        (
            "blob-of-awskms",
            inline("blobinfo", &envelope(b"x", &data_key, &aws_key.arn, &wrapped)),
            0,
        ),
        (
            "blob-without-key-info",
            inline("blobinfo", &blob_info_without_key_info(&good)),
            0,
        ),
        (
            "blob-with-a-short-data-key",
            inline(
                "blobinfo",
                &blob_info(
                    &random(48),
                    &random(12),
                    0,
                    &scene.key.version,
                    short_key.as_bytes(),
                ),
            ),
            1,
        ),
    ];
    let mut good = Vec::new();
    for (name, ..) in &cases {
        good.push(delivered(&scene, name).await);
    }
    for (one, (name, copy, asked)) in good.iter().zip(&cases) {
        let before = scene.decrypts();
        scene
            .fails_with(one, &with_copy(one, copy), "CiphertextInvalid")
            .await;
        assert_eq!(scene.decrypts() - before, *asked, "{name}: requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_associated_data_is_told_as_such() {
    let scene = OciScene::new("oci-context").await;
    let _operator = scene.start();
    for (name, context) in [
        ("other-value", json!({"Tool": "x"})),
        ("more", json!({"Tool": "bank-vaults", "a": "b"})),
        ("other-name", json!({"tool": "bank-vaults"})),
    ] {
        let bytes = random(32);
        let copy = scene.kms_copy_with(&bytes, &[("Tool", "bank-vaults")]);
        let spec = scene.spec_as(&by_secret("oci"), &copy, name);
        let one = scene.deliver(name, spec, &bytes).await;
        let mut copy = copy.clone();
        copy["context"] = context;
        let message = scene
            .fails_with(&one, &with_copy(&one, &copy), "ContextMismatch")
            .await;
        assert!(message.contains("associatedData"), "{message}");
    }
    // Left out, it cannot be told from a damaged ciphertext; the sentence names both.
    let bytes = random(32);
    let copy = scene.kms_copy_with(&bytes, &[("Tool", "bank-vaults")]);
    let one = scene
        .deliver("none", scene.spec_as(&by_secret("oci"), &copy, "none"), &bytes)
        .await;
    let bare = json!({"format": "kms", "inline": copy["inline"]});
    let message = scene
        .fails_with(&one, &with_copy(&one, &bare), "CiphertextInvalid")
        .await;
    assert!(message.contains("associatedData"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_policy_is_told_with_the_statement_that_is_missing() {
    let scene = OciScene::new("oci-policy").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one").await;
    scene.oci.deny(&scene.user.user, Some(&scene.key), &["decrypt"]);
    let message = scene.fails(&one, "AccessDenied").await;
    assert!(message.contains("Allow group"), "{message}");
    assert!(message.contains(&scene.key.id), "{message}");
    assert!(message.contains("NotAuthorizedOrNotFound"), "{message}");
    // Once the policy is there, nobody touches the SealConfig.
    scene.oci.allow(&scene.user.user);
    scene.stage.ready("one").await;
    scene.untouched(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_be_used_but_not_looked_at_is_not_unhealthy() {
    let scene = OciScene::new("oci-noread").await;
    scene.oci.deny(&scene.user.user, Some(&scene.key), &["read"]);
    let _operator = scene.start();
    delivered(&scene, "one").await;
    within(Duration::from_secs(30), "get-key is refused", async || {
        let asked = scene.oci.count("management", "/keys/");
        if asked > 0 {
            Ok(())
        } else {
            Err("not asked".to_owned())
        }
    })
    .await;
    delivered(&scene, "two").await;
    for name in ["one", "two"] {
        let config = scene.stage.ready(name).await;
        assert_ne!(config["status"]["seals"][0]["state"], "Unhealthy", "{config:#}");
        assert_ne!(condition(&config, "SealsHealthy")["status"], "False");
    }
    assert_eq!(scene.oci.count("management", "/keys/"), 1, "asked once an hour");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_disabled_or_about_to_be_deleted_is_told_and_heals_when_it_is_enabled() {
    for (name, state, reason, status, code) in [
        ("oci-disabled", "DISABLED", "KeyDisabled", 409, "IncorrectState"),
        ("oci-disabled-400", "DISABLED", "KeyDisabled", 400, "KeyDisabled"),
        (
            "oci-deletion",
            "PENDING_DELETION",
            "KeyPendingDeletion",
            409,
            "IncorrectState",
        ),
    ] {
        let scene = OciScene::new(name).await;
        let _operator = scene.start();
        let one = delivered(&scene, "one").await;
        scene.oci.set_state_answering(&scene.key, state, status, code);
        let message = scene.fails(&one, reason).await;
        assert!(message.contains(&scene.key.id), "{message}");
        scene.oci.set_state(&scene.key, "ENABLED");
        let config = scene.stage.ready("one").await;
        assert_eq!(config["status"]["seals"][0]["state"], "Healthy", "{config:#}");
        scene.untouched(&one).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_no_aes_key_and_one_that_is_not_there_are_told() {
    let scene = OciScene::new("oci-wrong-key").await;
    let _operator = scene.start();
    let rsa = scene.oci.key_with(&json!({"algorithm": "RSA"}));
    let mut spec = scene.spec("rsa", b"x");
    spec["seals"][0]["ocikms"]["keyID"] = json!(rsa.id);
    scene.stage.apply("rsa", &spec).await;
    // The vault answers decrypt as it does for a damaged ciphertext; what get-key says is with the seal.
    scene.not_ready("rsa", "CiphertextInvalid").await;
    within(Duration::from_secs(40), "the seal is unhealthy", async || {
        let seal = scene.stage.config("rsa").await["status"]["seals"][0].clone();
        let told = seal["state"] == "Unhealthy" && seal["reason"] == "KeyUnusable";
        told.then_some(()).ok_or_else(|| seal.to_string())
    })
    .await;
    let mut spec = scene.spec("gone", b"x");
    spec["seals"][0]["ocikms"]["keyID"] = json!(format!("{}x", scene.key.id));
    scene.stage.apply("gone", &spec).await;
    scene.not_ready("gone", "AccessDenied").await;
    for name in ["rsa", "gone"] {
        assert_eq!(scene.stage.secret(name).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_throttles_is_told_asked_little_and_heals_when_it_ends() {
    let scene = OciScene::new("oci-throttle").await;
    let _operator = scene.start();
    let mut all = Vec::new();
    for index in 0..5 {
        all.push(delivered(&scene, &format!("c{index}")).await);
    }
    scene.oci.fault(
        &json!({"service": "crypto", "kind": "status", "status": 429, "code": "TooManyRequests", "times": -1,
        "headers": {"retry-after": "4"}}),
    );
    let (start, before) = (Instant::now(), scene.decrypts());
    for one in &all {
        scene.stage.apply(&one.name, &scene.rewrapped(one)).await;
    }
    for one in &all {
        scene.not_ready(&one.name, "Throttled").await;
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (asked, seconds) = (scene.decrypts() - before, start.elapsed().as_secs());
    println!("{asked} requests of 5 SealConfigs in {seconds} s");
    // At most once in the 4 s that the vault asks for, each.
    let each = usize::try_from(seconds / 4 + 2).unwrap();
    assert!(asked <= 5 * each, "{asked} requests in {seconds} s");
    scene.oci.clear_faults();
    for one in &all {
        scene.stage.ready(&one.name).await;
        scene.untouched(one).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_broken_vault_does_is_told_within_the_operations_bound_and_heals() {
    let scene = OciScene::new("oci-broken").await;
    let _operator = scene.start();
    let faults = [
        ("status", json!({"status": 500})),
        ("unavailable", json!({"kind": "status", "status": 503})),
        ("truncated", json!({})),
        ("garbage", json!({})),
        ("noise", json!({})),
        ("empty", json!({})),
        ("large", json!({})),
        ("large-chunked", json!({"kind": "large", "chunked": true})),
        ("drop", json!({})),
        ("silent", json!({})),
        ("redirect", json!({})),
    ];
    for (name, given) in faults {
        let one = delivered(&scene, name).await;
        let mut fault = json!({"service": "crypto", "kind": name, "times": -1});
        for (field, value) in given.as_object().unwrap() {
            fault[field] = value.clone();
        }
        scene.oci.fault(&fault);
        let (start, before) = (Instant::now(), scene.decrypts());
        scene.fails(&one, "KMSUnavailable").await;
        let took = start.elapsed();
        // 10 s are the operation's, the rest is for a busy machine.
        assert!(took < Duration::from_secs(25), "{name}: told after {took:?}");
        let asked = scene.decrypts() - before;
        assert!((1..=9).contains(&asked), "{name}: {asked} requests");
        scene.oci.clear_faults();
        scene.stage.ready(name).await;
        scene.untouched(&one).await;
    }
    assert_eq!(scene.oci.count("redirected", ""), 0, "nobody follows a redirect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_hiccup_of_the_vault_is_not_even_told() {
    let scene = OciScene::new("oci-hiccup").await;
    let _operator = scene.start();
    let one = delivered(&scene, "one").await;
    let before = condition(&scene.stage.config("one").await, "Ready")["lastTransitionTime"].clone();
    for fault in [
        json!({"service": "crypto", "kind": "status", "status": 503}),
        json!({"service": "crypto", "kind": "drop"}),
        json!({"service": "crypto", "kind": "status", "status": 429, "headers": {"retry-after": "1"}}),
    ] {
        scene.oci.fault(&fault);
        scene.heals(&one).await;
    }
    let after = condition(&scene.stage.config("one").await, "Ready");
    assert_eq!(after["lastTransitionTime"], before, "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_differ_are_told_as_such() {
    let scene = OciScene::new("oci-clock").await;
    let _operator = scene.start();
    for (name, offset) in [("ahead", 600), ("behind", -600)] {
        let one = delivered(&scene, name).await;
        scene.oci.clock(offset);
        let message = scene.fails(&one, "ClockSkew").await;
        assert!(message.contains("10 minutes"), "{message}");
        scene.oci.clock(0);
        scene.heals(&one).await;
    }
}
