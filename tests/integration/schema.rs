//! The schema as the apiserver enforces it: what it must refuse, and what it must take.

use serde_json::{Value, json};

use crate::support::stage::{Stage, repository};

/// A spec that uses every field once.
fn full() -> Value {
    json!({
        "controllerClass": "none", "suspend": true,
        "seals": [
            {"name": "a", "priority": 10, "awskms": {
                "kmsKeyID": "alias/a", "formerKeyIDs": ["1234abcd-12ab-34cd-56ef-1234567890ab"], "accountID": "123456789012",
                "region": "eu-west-1", "endpoint": "https://kms.eu-west-1.amazonaws.com",
                "assumeRole": {"roleARN": "arn:aws:iam::123456789012:role/x", "externalID": "4711", "sessionName": "me"},
                "credentials": {"serviceAccountRef": {"name": "app", "roleARN": "arn:aws:iam::123456789012:role/path/x"}}}},
            {"name": "b", "awskms": {"kmsKeyID": "arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
                "credentials": {"secretRef": {"name": "aws"}}}},
            {"name": "c", "awskms": {"kmsKeyID": "arn:aws-cn:kms:cn-north-1:123456789012:alias/x", "credentials": {"podIdentity": {}}}},
            {"name": "d", "awskms": {"kmsKeyID": "mrk-1234abcd12ab34cd56ef1234567890ab", "credentials": {"instanceMetadata": {}}}},
        ],
        "keys": [
            {"name": "root", "purpose": "root", "consumerKeyID": "global_root", "wrapped": [
                {"seal": "a", "format": "kms", "context": {"Tool": "bank-vaults", "autounseal.dev/bound-namespace": "x"}, "inline": "AAAA"},
                {"seal": "b", "format": "blobinfo", "secretKeyRef": {"name": "s", "key": "k", "armor": "None"}},
                {"seal": "c", "configMapKeyRef": {"name": "m", "key": "k"}}]},
            {"name": "static", "purpose": "static", "checkValue": "0".repeat(64), "wrapped": [{"seal": "d", "inline": "AAAA"}]},
            {"name": "share", "purpose": "unseal-share", "wrapped": [{"seal": "d", "inline": "AAAA"}]},
            {"name": "recovery", "purpose": "recovery-share", "wrapped": [{"seal": "d", "inline": "AAAA"}]},
            {"name": "token", "purpose": "root-token", "wrapped": [{"seal": "d", "inline": "AAAA"}]},
        ],
        "unseal": {
            "product": "vault", "podSelector": {"matchLabels": {"app": "vault"}},
            "address": {"type": "PodDNS", "serviceName": "vault-internal"}, "scheme": "https", "port": "https",
            "tls": {"ca": {"secretKeyRef": {"name": "vault-tls", "key": "ca.crt"}}, "serverName": "vault.vault.svc"},
            "policy": "Always", "migrate": true,
            "initialize": {"shamir": {"shares": 5, "threshold": 3}, "recovery": {"shares": 1, "threshold": 1}, "rootToken": "Wrap"},
        },
        "targets": [
            {"name": "one", "podSelector": {"matchLabels": {"app": "x"}}, "onChange": "Restart", "secret": {
                "name": "one", "type": "Opaque", "labels": {"team": "x"}, "annotations": {"example.com/a": "b"}, "adopt": true,
                "data": [{"name": "root.key", "key": {"name": "root", "encoding": "base64url", "version": "current"}},
                    {"name": "t", "template": "{{ keys[\"root\"].hex }}"}]}},
            {"name": "two", "podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["b"]}]},
                "secret": {"name": "two", "deletionPolicy": "Delete"}},
        ],
    })
}

fn set(spec: &Value, pointer: &str, value: Value) -> Value {
    let mut spec = spec.clone();
    let (place, field) = pointer.rsplit_once('/').unwrap();
    let parent = spec.pointer_mut(place).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Array(entries) if field == "-" => entries.push(value),
        Value::Array(entries) => entries[field.parse::<usize>().unwrap()] = value,
        Value::Object(map) => {
            map.insert(field.to_owned(), value);
        }
        _ => panic!("{pointer}"),
    }
    spec
}

fn without(spec: &Value, pointer: &str) -> Value {
    let mut spec = spec.clone();
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(last);
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn what_contradicts_itself_is_refused_by_the_apiserver() {
    let stage = Stage::bare("schema", &json!({})).await;
    let full = full();
    stage.apply("full", &full).await;
    let s = |pointer: &str, value: Value| set(&full, pointer, value);
    let secret_ref = json!({"name": "s", "key": "k"});
    let refused: Vec<(&str, Value)> =
        vec![
        ("no seals", s("/seals", json!([]))),
        ("seals left out", without(&full, "/seals")),
        (
            "six seals",
            s(
                "/seals",
                (0..6)
                    .map(|i| json!({"name": format!("s{i}"), "awskms": {"kmsKeyID": "alias/a"}}))
                    .collect(),
            ),
        ),
        ("two seals of one name", s("/seals/1/name", json!("a"))),
        ("a seal without a cloud", without(&full, "/seals/3/awskms")),
        ("a seal whose cloud is null", s("/seals/3/awskms", Value::Null)),
        ("a priority above 100", s("/seals/0/priority", json!(101))),
        ("a priority below 0", s("/seals/0/priority", json!(-1))),
        ("a seal's name in upper case", s("/seals/3/name", json!("D"))),
        ("no key id", without(&full, "/seals/0/awskms/kmsKeyID")),
        ("an empty key id", s("/seals/0/awskms/kmsKeyID", json!(""))),
        ("a generated share", {
            let spec = without(&full, "/keys/2/wrapped");
            set(&spec, "/keys/2/generate", json!({}))
        }),
        (
            "a share in a data entry",
            s("/targets/0/secret/data/0/key/name", json!("share")),
        ),
        (
            "a share as a static seal",
            s(
                "/targets/0/secret/data/-",
                json!({"name": "x", "stanza": {"openbaoStatic": {"key": "share", "mountPath": "/x"}}}),
            ),
        ),
        (
            "a share in Boundary's configuration",
            s(
                "/targets/0/secret/data/-",
                json!({"name": "x", "stanza": {"boundaryAEAD": {"keys": ["share"]}}}),
            ),
        ),
        ("unseal for every pod", s("/unseal/podSelector", json!({}))),
        ("unseal of no product", without(&full, "/unseal/product")),
        ("https without a CA", without(&full, "/unseal/tls")),
        ("https without a name", {
            let spec = without(&full, "/unseal/address");
            without(&spec, "/unseal/tls/serverName")
        }),
        ("http with a CA", s("/unseal/scheme", json!("http"))),
        (
            "PodDNS without its Service",
            without(&full, "/unseal/address/serviceName"),
        ),
        (
            "a Service without PodDNS",
            s("/unseal/address/type", json!("PodIP")),
        ),
        ("port 0", s("/unseal/port", json!(0))),
        ("port 65536", s("/unseal/port", json!(65536))),
        ("two CAs", s("/unseal/tls/ca/configMapKeyRef", secret_ref.clone())),
        (
            "the cluster's CA",
            s(
                "/unseal/tls/ca",
                json!({"configMapKeyRef": {"name": "kube-root-ca.crt", "key": "ca.crt"}}),
            ),
        ),
        (
            "a switch to skip verification",
            s("/unseal/tls/insecure", json!(true)),
        ),
        ("initialize without a member", s("/unseal/initialize", json!({"rootToken": "Wrap"}))),
        ("no share", s("/unseal/initialize/shamir/shares", json!(0))),
        ("256 shares", s("/unseal/initialize/shamir/shares", json!(256))),
        (
            "a threshold above the shares",
            s("/unseal/initialize/shamir/threshold", json!(6)),
        ),
        (
            "one of several recovery keys that opens alone",
            s("/unseal/initialize/recovery", json!({"shares": 3, "threshold": 1})),
        ),
        (
            "shares without a threshold",
            without(&full, "/unseal/initialize/shamir/threshold"),
        ),
        (
            "a root token that is kept in the clear",
            s("/unseal/initialize/rootToken", json!("Store")),
        ),
        ("initialize over http", {
            let mut spec = without(&full, "/unseal/tls");
            spec["unseal"]["scheme"] = json!("http");
            spec
        }),
        ("initialize with no seal that wraps", {
            let mut spec = full.clone();
            for seal in spec["seals"].as_array_mut().unwrap() {
                seal["disabled"] = json!(true);
            }
            spec
        }),
        (
            "a key id with a blank",
            s("/seals/0/awskms/kmsKeyID", json!("alias/a b")),
        ),
        (
            "an ARN of another service",
            s(
                "/seals/0/awskms/kmsKeyID",
                json!("arn:aws:s3:eu-west-1:123456789012:key/x"),
            ),
        ),
        (
            "eleven former keys",
            s(
                "/seals/0/awskms/formerKeyIDs",
                (0..11).map(|i| json!(format!("k{i}"))).collect(),
            ),
        ),
        (
            "a former key twice",
            s("/seals/0/awskms/formerKeyIDs", json!(["k", "k"])),
        ),
        (
            "a short account",
            s("/seals/0/awskms/accountID", json!("12345678901")),
        ),
        (
            "an account as a number",
            s("/seals/0/awskms/accountID", json!(123_456_789_012_u64)),
        ),
        (
            "a dotted region",
            s("/seals/0/awskms/region", json!("eu-west-1.evil")),
        ),
        (
            "a region in upper case",
            s("/seals/0/awskms/region", json!("EU-WEST-1")),
        ),
        (
            "an endpoint of another scheme",
            s("/seals/0/awskms/endpoint", json!("file:///etc/passwd")),
        ),
        ("no role ARN", s("/seals/0/awskms/assumeRole", json!({}))),
        (
            "a role that is a user",
            s(
                "/seals/0/awskms/assumeRole/roleARN",
                json!("arn:aws:iam::123456789012:user/x"),
            ),
        ),
        (
            "an external id with a blank",
            s("/seals/0/awskms/assumeRole/externalID", json!("a b")),
        ),
        (
            "a session name of one character",
            s("/seals/0/awskms/assumeRole/sessionName", json!("x")),
        ),
        (
            "two credentials",
            s("/seals/0/awskms/credentials/podIdentity", json!({})),
        ),
        (
            "a ServiceAccount without a name",
            s("/seals/0/awskms/credentials", json!({"serviceAccountRef": {}})),
        ),
        (
            "a secretRef without a name",
            s("/seals/0/awskms/credentials", json!({"secretRef": {}})),
        ),
        (
            "a secretRef of another namespace",
            s(
                "/seals/1/awskms/credentials/secretRef/namespace",
                json!("kube-system"),
            ),
        ),
        (
            "an account of another namespace",
            s(
                "/seals/0/awskms/credentials/serviceAccountRef/namespace",
                json!("kube-system"),
            ),
        ),
        (
            "33 keys",
            s(
                "/keys",
                (0..33)
                    .map(|i| json!({"name": format!("k{i}"), "wrapped": [{"seal": "a", "inline": "AAAA"}]}))
                    .collect(),
            ),
        ),
        ("two keys of one name", s("/keys/1/name", json!("root"))),
        ("a key without copies", s("/keys/0/wrapped", json!([]))),
        ("a key without wrapped", without(&full, "/keys/1/wrapped")),
        ("an unknown purpose", s("/keys/0/purpose", json!("unknown"))),
        ("a short check value", s("/keys/1/checkValue", json!("00"))),
        ("two copies of one seal", s("/keys/0/wrapped/1/seal", json!("a"))),
        ("a copy of no seal", s("/keys/0/wrapped/0/seal", json!("nobody"))),
        ("a copy from nowhere", without(&full, "/keys/0/wrapped/0/inline")),
        (
            "a copy from two places",
            s("/keys/0/wrapped/0/secretKeyRef", secret_ref.clone()),
        ),
        (
            "a copy from two objects",
            s("/keys/0/wrapped/1/configMapKeyRef", secret_ref),
        ),
        (
            "a copy whose place is null",
            s("/keys/0/wrapped/0", json!({"seal": "a", "inline": null})),
        ),
        (
            "a copy that is no base64",
            s("/keys/1/wrapped/0/inline", json!("<xml/>")),
        ),
        (
            "an unknown format",
            s("/keys/0/wrapped/0/format", json!("pkcs12")),
        ),
        (
            "an unknown armor",
            s("/keys/0/wrapped/1/secretKeyRef/armor", json!("Hex")),
        ),
        (
            "a source of another namespace",
            s("/keys/0/wrapped/1/secretKeyRef/namespace", json!("kube-system")),
        ),
        (
            "context with blobinfo",
            s("/keys/0/wrapped/1/context", json!({"a": "b"})),
        ),
        (
            "context with the default format",
            s("/keys/0/wrapped/2/context", json!({"a": "b"})),
        ),
        (
            "a context key of ours",
            s("/keys/0/wrapped/0/context", json!({"autounseal.dev/x": "y"})),
        ),
        (
            "nine context pairs",
            s(
                "/keys/0/wrapped/0/context",
                (0..9).map(|i| (format!("k{i}"), json!("v"))).collect(),
            ),
        ),
        (
            "a context value that is a number",
            s("/keys/0/wrapped/0/context", json!({"a": 1})),
        ),
        (
            "nine targets",
            s(
                "/targets",
                (0..9)
                    .map(|i| json!({"name": format!("t{i}"), "secret": {"name": format!("t{i}")}}))
                    .collect(),
            ),
        ),
        ("two targets of one name", s("/targets/1/name", json!("one"))),
        (
            "two targets of one Secret",
            s("/targets/1/secret/name", json!("one")),
        ),
        ("a target without a Secret", without(&full, "/targets/1/secret")),
        ("an empty selector", s("/targets/1/podSelector", json!({}))),
        (
            "an empty matchLabels",
            s("/targets/1/podSelector", json!({"matchLabels": {}})),
        ),
        (
            "Restart without a selector",
            without(&full, "/targets/0/podSelector"),
        ),
        ("an unknown onChange", s("/targets/0/onChange", json!("Reboot"))),
        (
            "the name of a store",
            s("/targets/1/secret/name", json!("a.sealconfig.wrapped")),
        ),
        (
            "a Secret name in upper case",
            s("/targets/1/secret/name", json!("Two")),
        ),
        (
            "an unknown type",
            s(
                "/targets/1/secret/type",
                json!("kubernetes.io/service-account-token"),
            ),
        ),
        (
            "adopt and Delete",
            s("/targets/0/secret/deletionPolicy", json!("Delete")),
        ),
        (
            "a label of Kubernetes",
            s("/targets/0/secret/labels", json!({"app.kubernetes.io/name": "x"})),
        ),
        (
            "a label of ours",
            s("/targets/0/secret/labels", json!({"autounseal.dev/x": "y"})),
        ),
        (
            "an annotation of Kubernetes",
            s(
                "/targets/0/secret/annotations",
                json!({"kubernetes.io/service-account.name": "x"}),
            ),
        ),
        (
            "an annotation of ours",
            s(
                "/targets/0/secret/annotations",
                json!({"sub.autounseal.dev/x": "y"}),
            ),
        ),
        (
            "33 entries",
            s(
                "/targets/0/secret/data",
                (0..33)
                    .map(|i| json!({"name": format!("e{i}"), "template": "x"}))
                    .collect(),
            ),
        ),
        (
            "two entries of one name",
            s("/targets/0/secret/data/1/name", json!("root.key")),
        ),
        (
            "an entry of nothing",
            s("/targets/0/secret/data/1", json!({"name": "t"})),
        ),
        (
            "an entry of two things",
            s("/targets/0/secret/data/0/template", json!("x")),
        ),
        (
            "an entry whose key is null",
            s("/targets/0/secret/data/0", json!({"name": "t", "key": null})),
        ),
        (
            "an entry of no key",
            s("/targets/0/secret/data/0/key/name", json!("nobody")),
        ),
        (
            "an entry's name with a slash",
            s("/targets/0/secret/data/0/name", json!("a/b")),
        ),
        (
            "an unknown encoding",
            s("/targets/0/secret/data/0/key/encoding", json!("rot13")),
        ),
        (
            "an unknown version",
            s("/targets/0/secret/data/0/key/version", json!("oldest")),
        ),
        (
            "a template of 65 KiB",
            s(
                "/targets/0/secret/data/1/template",
                json!("x".repeat(65 * 1024 + 1)),
            ),
        ),
        ("an unknown field of the spec", s("/sealss", json!([]))),
        ("an unknown field of a seal", s("/seals/0/prio", json!(1))),
        (
            "an unknown field of awskms",
            s("/seals/0/awskms/keyID", json!("x")),
        ),
        (
            "an unknown field of an entry",
            s("/targets/0/secret/data/0/key/enc", json!("hex")),
        ),
        ("a class in upper case", s("/controllerClass", json!("None"))),
        ("a later field", s("/unseal", json!({"product": "vault"}))),
    ];
    let mut taken = Vec::new();
    for (index, (what, spec)) in refused.iter().enumerate() {
        match stage
            .plane
            .try_create(&stage.seal_config(&format!("c{index}"), spec))
            .await
        {
            Ok(_) => taken.push(*what),
            Err(refusal) => assert!(matches!(refusal.code, 400 | 422), "{what}: {refusal:?}"),
        }
    }
    assert!(taken.is_empty(), "these were taken: {taken:#?}");
    let long = stage.seal_config(&"x".repeat(64), &full);
    assert_eq!(stage.plane.try_create(&long).await.unwrap_err().code, 422);
    stage
        .plane
        .create(&stage.seal_config(&"x".repeat(63), &full))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_immutable_stays_and_everything_else_may_change() {
    let stage = Stage::bare("immutable", &json!({})).await;
    let full = full();
    stage.apply("full", &full).await;
    for (what, spec) in [
        ("class", set(&full, "/controllerClass", json!("other"))),
        ("class to the default", set(&full, "/controllerClass", json!(""))),
        (
            "type",
            set(&full, "/targets/1/secret/type", json!("kubernetes.io/tls")),
        ),
    ] {
        let refusal = stage
            .plane
            .try_apply(&stage.seal_config("full", &spec))
            .await
            .expect_err(what);
        assert_eq!(refusal.code, 422, "{what}");
        assert!(
            refusal.message.contains("immutable"),
            "{what}: {}",
            refusal.message
        );
    }
    for spec in [
        set(&full, "/suspend", json!(false)),
        set(&full, "/seals/0/awskms/kmsKeyID", json!("alias/b")),
        set(&full, "/seals/0/priority", json!(0)),
        set(&full, "/targets/0/secret/name", json!("renamed")),
        set(
            &full,
            "/targets/-",
            json!({"name": "three", "secret": {"name": "three"}}),
        ),
    ] {
        stage.apply("full", &spec).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_stays_a_share_and_another_key_never_becomes_one() {
    let stage = Stage::bare("shares", &json!({})).await;
    let full = full();
    stage.apply("full", &full).await;
    for (key, purpose) in [
        (2, "other"),
        (2, "recovery-share"),
        (3, "unseal-share"),
        (4, "other"),
        (1, "unseal-share"),
        (1, "recovery-share"),
        (1, "root-token"),
    ] {
        let spec = set(&full, &format!("/keys/{key}/purpose"), json!(purpose));
        let refusal = stage
            .plane
            .try_apply(&stage.seal_config("full", &spec))
            .await
            .expect_err(purpose);
        assert!(refusal.message.contains("unseal-share"), "{}", refusal.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_are_those_of_the_contract_and_unions_have_none() {
    let stage = Stage::bare("defaults", &json!({})).await;
    let least = json!({
        "seals": [{"name": "a", "awskms": {"kmsKeyID": "alias/a", "credentials": {"secretRef": {"name": "aws"}}}}],
        "keys": [{"name": "k", "wrapped": [{"seal": "a", "secretKeyRef": {"name": "s", "key": "k"}}]}],
        "targets": [{"name": "t", "secret": {"name": "t", "data": [{"name": "k", "key": {"name": "k"}}]}}],
    });
    let made = stage.plane.create(&stage.seal_config("least", &least)).await;
    assert_eq!(
        made["spec"],
        json!({
            "controllerClass": "", "suspend": false, "wrappedDeletionPolicy": "Retain",
            "seals": [{"name": "a", "priority": 50, "use": ["Wrap"], "disabled": false, "awskms": {"kmsKeyID": "alias/a", "credentials": {"secretRef": {
                "name": "aws", "accessKeyIDKey": "access_key", "secretAccessKeyKey": "secret_key", "sessionTokenKey": "session_token"}}}}],
            "keys": [{"name": "k", "purpose": "other", "wrapped": [{"seal": "a", "format": "blobinfo",
                "secretKeyRef": {"name": "s", "key": "k", "armor": "Auto"}}]}],
            "targets": [{"name": "t", "onChange": "None", "secret": {"name": "t", "type": "Opaque", "adopt": false, "deletionPolicy": "Retain",
                "data": [{"name": "k", "key": {"name": "k", "encoding": "raw", "version": "current"}}]}}],
        })
    );
    let ready = crate::support::stage::condition(&stage.config("least").await, "Ready");
    assert_eq!(
        (ready["status"].as_str(), ready["reason"].as_str()),
        (Some("Unknown"), Some("Pending"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_null_is_as_good_as_absent() {
    let stage = Stage::bare("nulls", &json!({})).await;
    let mut spec = full();
    spec["seals"][1]["awskms"]["credentials"]["podIdentity"] = Value::Null;
    spec["keys"][1]["wrapped"][0]["secretKeyRef"] = Value::Null;
    let made = stage.plane.create(&stage.seal_config("nulls", &spec)).await;
    assert!(
        made.pointer("/spec/seals/1/awskms/credentials/podIdentity")
            .is_none()
    );
    assert!(made.pointer("/spec/keys/1/wrapped/0/secretKeyRef").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_applies_unchanged() {
    let stage = Stage::bare("examples", &json!({})).await;
    let mut applied = 0;
    let mut files: Vec<_> = std::fs::read_dir(repository("examples"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|e| e == "yaml"))
    {
        let text = std::fs::read_to_string(file).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let mut object: Value = serde::Deserialize::deserialize(document).unwrap();
            if !["SealConfig", "ManagedKey"].contains(&object["kind"].as_str().unwrap()) {
                continue;
            }
            // Into a namespace of this test's own, or the other tests would meet it.
            object["metadata"]["namespace"] = json!(stage.namespace);
            stage.plane.apply(&object).await;
            applied += 1;
        }
    }
    assert!(applied > 0, "no example was applied");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managed_key_that_contradicts_itself_is_refused_by_the_apiserver() {
    let stage = Stage::bare("schema-managed", &json!({})).await;
    let full = json!({
        "suspend": true, "type": "rsa-2048", "usage": "SignVerify", "material": {"generate": {}},
        "sealConfigRef": {"name": "platform"},
        "distributions": [
            {"name": "eu", "awskms": {"region": "eu-west-1", "multiRegion": true, "replicaRegions": ["us-east-1"],
                "tags": {"team": "payments"}, "aliasName": "alias/pay", "credentials": {"secretRef": {"name": "aws"}}}},
            {"name": "us", "awskms": {"region": "us-west-2"}},
        ],
        "rotation": {"after": "8760h", "trigger": "1"}, "minEnabledVersion": 2,
        "deletion": {"policy": "ScheduleDeletion", "pendingWindowDays": 7},
    });
    let applied = |name: &str, spec: &Value| {
        let mut object = stage.object("autounseal.dev/v1alpha1", "ManagedKey", name);
        object["spec"] = spec.clone();
        object
    };
    let made = stage.plane.apply(&applied("full", &full)).await;
    assert_eq!(made["status"]["conditions"][0]["reason"], "Pending");
    let minimal = json!({
        "type": "aes256-gcm96", "usage": "EncryptDecrypt", "material": {"generate": {}}, "sealConfigRef": {"name": "p"},
    });
    let made = stage.plane.apply(&applied("minimal", &minimal)).await;
    assert_eq!(
        made["spec"]["deletion"],
        json!({"policy": "Retain", "pendingWindowDays": 30})
    );
    assert_eq!(made["spec"]["minEnabledVersion"], 1);
    let s = |pointer: &str, value: Value| set(&full, pointer, value);
    let refused: Vec<(&str, Value)> = vec![
        ("AES that signs", s("/type", json!("aes256-gcm96"))),
        (
            "ECDSA that encrypts",
            set(
                &s("/type", json!("ecdsa-p256")),
                "/usage",
                json!("EncryptDecrypt"),
            ),
        ),
        ("an unknown type", s("/type", json!("ed25519"))),
        ("no material", without(&full, "/material")),
        ("material of nowhere", s("/material", json!({}))),
        (
            "two materials",
            s("/material/wrapped", json!([{"seal": "aws", "inline": "AAAA"}])),
        ),
        (
            "a rotation of what is brought",
            s(
                "/material",
                json!({"wrapped": [{"seal": "aws", "inline": "AAAA"}]}),
            ),
        ),
        ("no SealConfig", without(&full, "/sealConfigRef")),
        ("two of one name", s("/distributions/1/name", json!("eu"))),
        ("no region", without(&full, "/distributions/1/awskms/region")),
        (
            "a region with a dot",
            s("/distributions/1/awskms/region", json!("eu.west-1")),
        ),
        (
            "replicas of a single-Region key",
            s("/distributions/1/awskms/replicaRegions", json!(["us-east-1"])),
        ),
        (
            "a replica at home",
            s("/distributions/0/awskms/replicaRegions", json!(["eu-west-1"])),
        ),
        (
            "AWS's own alias",
            s("/distributions/0/awskms/aliasName", json!("alias/aws/pay")),
        ),
        (
            "a standard alias",
            s(
                "/distributions/0/awskms/aliasName",
                json!("alias/hashicorp/pay-1"),
            ),
        ),
        ("no alias", s("/distributions/0/awskms/aliasName", json!("pay"))),
        (
            "our own tag",
            s(
                "/distributions/0/awskms/tags",
                json!({"autounseal.dev/create-token": "x"}),
            ),
        ),
        (
            "AWS's own tag",
            s("/distributions/0/awskms/tags", json!({"aws:x": "x"})),
        ),
        (
            "two credentials",
            s(
                "/distributions/0/awskms/credentials",
                json!({"podIdentity": {}, "instanceMetadata": {}}),
            ),
        ),
        ("a rotation within a day", s("/rotation", json!({"after": "23h"}))),
        ("version 0", s("/minEnabledVersion", json!(0))),
        ("a window of six days", s("/deletion/pendingWindowDays", json!(6))),
        ("an unknown policy", s("/deletion/policy", json!("Delete"))),
    ];
    for (what, spec) in &refused {
        let answer = stage.plane.try_apply(&applied("refused", spec)).await;
        assert!(answer.is_err(), "{what} was taken");
    }
    let named = applied("with.dot", &minimal);
    assert!(
        stage.plane.try_apply(&named).await.is_err(),
        "a name with a dot was taken"
    );
    let changed: Vec<(&str, Value)> = vec![
        ("type", s("/type", json!("rsa-4096"))),
        ("usage", s("/usage", json!("EncryptDecrypt"))),
        ("material", {
            without(
                &s(
                    "/material",
                    json!({"wrapped": [{"seal": "aws", "inline": "AAAA"}]}),
                ),
                "/rotation",
            )
        }),
        ("region", s("/distributions/1/awskms/region", json!("us-east-2"))),
        (
            "multiRegion",
            s("/distributions/1/awskms/multiRegion", json!(true)),
        ),
    ];
    for (what, spec) in &changed {
        let answer = stage.plane.try_apply(&applied("full", spec)).await;
        assert!(answer.is_err(), "{what} was changed");
    }
}
