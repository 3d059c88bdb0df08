//! The schema of `ocikms` as the apiserver enforces it.

use serde_json::{Value, json};

use crate::support::stage::Stage;

const KEY: &str = "ocid1.key.oc1.eu-frankfurt-1.bbpnqqmlaaceu.abtheljtexamplekey";

fn seal(ocikms: &Value) -> Value {
    let mut whole = json!({
        "keyID": KEY,
        "cryptoEndpoint": "https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com",
        "managementEndpoint": "https://v-management.kms.eu-frankfurt-1.oraclecloud.com",
    });
    for (field, value) in ocikms.as_object().unwrap() {
        whole[field] = value.clone();
    }
    json!({"name": "oci", "ocikms": whole})
}

fn spec(seals: &[Value]) -> Value {
    json!({
        "controllerClass": "none", "suspend": true, "seals": seals,
        "keys": [{"name": "root", "wrapped": [{"seal": "oci", "inline": "AAAA"}]}],
        "targets": [{"name": "one", "secret": {"name": "one"}}],
    })
}

fn by_secret() -> Value {
    json!({"apiKey": {"secretRef": {"name": "oci"}}})
}

fn by_account() -> Value {
    json!({"workloadIdentity": {"serviceAccountRef": {"name": "app"}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn every_identity_is_taken_with_the_switch_that_agrees() {
    let stage = Stage::bare("oci-schema-good", &json!({})).await;
    let (instance, resource) = (json!({"instancePrincipal": {}}), json!({"resourcePrincipal": {}}));
    for (index, good) in [
        json!({}),
        json!({"authTypeAPIKey": false}),
        json!({"credentials": {}}),
        json!({"credentials": instance}),
        json!({"credentials": instance, "authTypeAPIKey": false}),
        json!({"credentials": resource}),
        json!({"credentials": by_secret()}),
        json!({"credentials": by_secret(), "authTypeAPIKey": true}),
        json!({"credentials": by_account(), "authTypeAPIKey": false}),
        json!({"keyID": "ocid1.key.oc1.iad.afnxza26aag4s.abzwkljsbapzb2nrha5nt3s7s7p42ctcrcj72vn3kq5qx"}),
        json!({"keyID": "ocid1.key.oc19.eu-madrid-2.v.k"}),
    ]
    .iter()
    .enumerate()
    {
        stage.apply(&format!("c{index}"), &spec(&[seal(good)])).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_itself_is_refused_by_the_apiserver() {
    let stage = Stage::bare("oci-schema-bad", &json!({})).await;
    let with = |change: Value| spec(&[seal(&change)]);
    let without = |field: &str| {
        let mut seal = seal(&json!({}));
        seal["ocikms"].as_object_mut().unwrap().remove(field);
        spec(&[seal])
    };
    let mut both_clouds = seal(&json!({}));
    both_clouds["awskms"] = json!({"kmsKeyID": "alias/a"});
    let two = |one: Value, other: Value| {
        let mut credentials = one;
        for (member, value) in other.as_object().unwrap() {
            credentials[member] = value.clone();
        }
        with(json!({"credentials": credentials}))
    };
    let instance = json!({"instancePrincipal": {}});
    let refused = [
        ("two clouds", "exactly one of", spec(&[both_clouds])),
        ("no cloud", "exactly one of", spec(&[json!({"name": "oci"})])),
        ("no key", "keyID: Required", without("keyID")),
        (
            "no crypto endpoint",
            "cryptoEndpoint: Required",
            without("cryptoEndpoint"),
        ),
        (
            "no management endpoint",
            "managementEndpoint: Required",
            without("managementEndpoint"),
        ),
        (
            "an ARN as key",
            "keyID in body",
            with(json!({"keyID": "arn:aws:kms:eu-west-1:123456789012:key/x"})),
        ),
        (
            "a vault as key",
            "keyID in body",
            with(json!({"keyID": KEY.replace(".key.", ".vault.")})),
        ),
        (
            "a key with a slash",
            "keyID in body",
            with(json!({"keyID": format!("{KEY}/x")})),
        ),
        (
            "a key with a line end",
            "keyID in body",
            with(json!({"keyID": format!("{KEY}\nx")})),
        ),
        (
            "a key that is too long",
            "keyID: Too long",
            with(json!({"keyID": format!("{KEY}{}", "a".repeat(250))})),
        ),
        (
            "an endpoint of another scheme",
            "cryptoEndpoint in body",
            with(json!({"cryptoEndpoint": "file:///etc/passwd"})),
        ),
        (
            "true without an API key",
            "authTypeAPIKey must agree",
            with(json!({"authTypeAPIKey": true})),
        ),
        (
            "true with an instance",
            "authTypeAPIKey must agree",
            with(json!({"authTypeAPIKey": true, "credentials": instance})),
        ),
        (
            "true with a workload",
            "authTypeAPIKey must agree",
            with(json!({"authTypeAPIKey": true, "credentials": by_account()})),
        ),
        (
            "false with an API key",
            "authTypeAPIKey must agree",
            with(json!({"authTypeAPIKey": false, "credentials": by_secret()})),
        ),
        (
            "API key and instance",
            "at most one of",
            two(by_secret(), instance.clone()),
        ),
        (
            "API key and workload",
            "at most one of",
            two(by_secret(), by_account()),
        ),
        (
            "two of the operator's",
            "at most one of",
            two(instance, json!({"resourcePrincipal": {}})),
        ),
        (
            "a Secret without a name",
            "secretRef.name: Required",
            with(json!({"credentials": {"apiKey": {"secretRef": {}}}})),
        ),
        (
            "a Secret of another namespace",
            "secretRef.namespace: field not declared",
            with(json!({"credentials": {"apiKey": {"secretRef":
            {"name": "oci", "namespace": "kube-system"}}}})),
        ),
        (
            "an account without a name",
            "serviceAccountRef.name: Required",
            with(json!({"credentials": {"workloadIdentity": {"serviceAccountRef": {}}}})),
        ),
        (
            "an unknown identity",
            "delegation: field not declared",
            with(json!({"credentials": {"delegation": {}}})),
        ),
    ];
    for (index, (what, word, spec)) in refused.iter().enumerate() {
        let object = stage.seal_config(&format!("c{index}"), spec);
        match stage.plane.try_apply(&object).await {
            Ok(_) => panic!("{what} was taken"),
            Err(refusal) => assert!(refusal.message.contains(word), "{what}: {}", refusal.message),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seals_cloud_and_its_oci_key_cannot_be_changed_but_all_else_can() {
    let stage = Stage::bare("oci-immutable", &json!({})).await;
    stage.apply("one", &spec(&[seal(&json!({}))])).await;
    let other_key = spec(&[seal(&json!({"keyID": KEY.replace("examplekey", "otherkey")}))]);
    let other_cloud = spec(&[json!({"name": "oci", "awskms": {"kmsKeyID": "alias/a"}})]);
    for (what, changed, word) in [
        ("the key", other_key, "keyID"),
        ("the cloud", other_cloud, "keeps its cloud"),
    ] {
        let refusal = stage
            .plane
            .try_apply(&stage.seal_config("one", &changed))
            .await
            .expect_err(what);
        assert_eq!(refusal.code, 422, "{refusal:?}");
        assert!(refusal.message.contains(word), "{what}: {}", refusal.message);
    }
    // The way out that the message names: a seal more. Endpoints and credentials may change.
    let mut more = seal(&json!({"keyID": KEY.replace("examplekey", "otherkey")}));
    more["name"] = json!("oci-2");
    let endpoint = "https://w-crypto.kms.eu-frankfurt-1.oraclecloud.com";
    let changed = seal(&json!({"cryptoEndpoint": endpoint, "credentials": by_secret()}));
    stage.apply("one", &spec(&[changed, more])).await;
}
