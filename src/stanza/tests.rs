//! Each stanza to the letter, from the manifests that ask for them; what is refused, and how it is told.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use zeroize::Zeroizing;

use crate::{
    api::{Reason, SealConfig},
    delivery::{content::DeliveredKey, render},
    seal::{
        Fault, KeyBytes, StaticCredentials,
        model::{Model, parse},
    },
};

/// A SealConfig with one target that holds this.
fn model(seals: &Json, keys: &Json, secret: &Json) -> Result<Model, Fault> {
    let mut secret = secret.clone();
    secret["name"] = json!("target");
    let config: SealConfig = serde_json::from_value(json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "x", "namespace": "x", "uid": "1"},
        "spec": {"seals": seals, "keys": keys, "targets": [{"name": "t", "secret": secret}]},
    }))
    .unwrap();
    parse(&config)
}

/// What the target gets; every key is 32 bytes of its version's number.
fn delivered(model: &Model, previous: bool) -> Result<BTreeMap<String, String>, Fault> {
    let (now, before) = (KeyBytes::new(vec![2; 32]), KeyBytes::new(vec![1; 32]));
    let keys = model.keys.iter().map(|key| {
        let id = key.consumer_key_id.clone().unwrap_or_else(|| key.name.clone());
        let delivered = DeliveredKey {
            current: &now,
            consumer_key_id: if previous { format!("{id}-2") } else { id.clone() },
            previous: (previous && key.keeps_previous()).then_some((&before, id)),
        };
        (key.name.clone(), delivered)
    });
    let lasting = StaticCredentials::new(
        "AKIAIOSFODNN7EXAMPLE",
        Zeroizing::new("wJalrXUtnFEMI/K7MDENG".to_owned()),
        false,
    )?;
    let content = render(
        &model.targets[0].entries,
        &keys.collect(),
        &BTreeMap::from([("aws".to_owned(), lasting)]),
    )?;
    Ok(content
        .iter()
        .map(|(name, bytes)| (name.to_owned(), String::from_utf8_lossy(bytes).into_owned()))
        .collect())
}

fn stanza(seals: &Json, keys: &Json, stanza: &Json) -> Result<String, Fault> {
    let model = model(
        seals,
        keys,
        &json!({"data": [{"name": "x.hcl", "stanza": stanza}]}),
    )?;
    Ok(delivered(&model, false)?["x.hcl"].clone())
}

/// Refused, and told so.
#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, Fault>, words: &str) {
    let fault = result.unwrap_err();
    assert_eq!(fault.reason, Reason::InvalidSpec);
    assert!(fault.message.contains(words), "{}", fault.message);
}

fn aws(credentials: &Json) -> Json {
    json!({"name": "aws", "use": ["Native"], "awskms": {
        "kmsKeyID": "alias/vault-seal", "region": "us-east-1", "credentials": credentials}})
}

fn oci(credentials: &Json) -> Json {
    json!({"name": "oci", "use": ["Native"], "ocikms": {
        "keyID": "ocid1.key.oc1.iad.vault.key",
        "cryptoEndpoint": "https://vault-crypto.kms.us-ashburn-1.oraclecloud.com",
        "managementEndpoint": "https://vault-management.kms.us-ashburn-1.oraclecloud.com",
        "credentials": credentials}})
}

fn irsa() -> Json {
    json!({"serviceAccountRef": {"name": "vault"}})
}

fn secret_ref() -> Json {
    json!({"secretRef": {"name": "aws"}})
}

fn api_key() -> Json {
    json!({"apiKey": {"secretRef": {"name": "oci"}}})
}

fn wraps() -> Json {
    json!({"name": "wraps", "awskms": {"kmsKeyID": "alias/wraps", "credentials": irsa()}})
}

fn generated(name: &str, purpose: &str) -> Json {
    json!({"name": name, "purpose": purpose, "consumerKeyID": format!("global_{name}"), "generate": {}})
}

#[test]
fn vault_and_openbao_are_told_the_key_and_the_way_to_it() {
    let aws_block = "\
seal \"awskms\" {
  region     = \"us-east-1\"
  kms_key_id = \"alias/vault-seal\"
}
";
    let oci_block = "\
seal \"ocikms\" {
  key_id              = \"ocid1.key.oc1.iad.vault.key\"
  crypto_endpoint     = \"https://vault-crypto.kms.us-ashburn-1.oraclecloud.com\"
  management_endpoint = \"https://vault-management.kms.us-ashburn-1.oraclecloud.com\"
  auth_type_api_key   = \"true\"
}
";
    for product in ["vault", "openbao"] {
        let of = |name: &str| json!({product: {"seals": [name]}});
        let written = stanza(&json!([aws(&irsa())]), &json!([]), &of("aws")).unwrap();
        assert_eq!(written, aws_block);
        let written = stanza(&json!([oci(&api_key())]), &json!([]), &of("oci")).unwrap();
        assert_eq!(written, oci_block);
        let written = stanza(&json!([oci(&json!({}))]), &json!([]), &of("oci")).unwrap();
        assert_eq!(written, oci_block.replace("\"true\"", "\"false\""));
    }
}

#[test]
fn the_region_may_come_from_the_arn_and_an_endpoint_is_told() {
    let seal = json!({"name": "aws", "awskms": {
        "kmsKeyID": "arn:aws:kms:eu-west-1:123456789012:key/1234", "endpoint": "https://kms.eu-west-1.amazonaws.com"}});
    let written = stanza(&json!([seal]), &json!([]), &json!({"vault": {"seals": ["aws"]}})).unwrap();
    assert_eq!(
        written,
        "seal \"awskms\" {\n  region     = \"eu-west-1\"\n  kms_key_id = \"arn:aws:kms:eu-west-1:123456789012:key/1234\"\n  \
         endpoint   = \"https://kms.eu-west-1.amazonaws.com\"\n}\n"
    );
    let nowhere = json!({"name": "aws", "awskms": {"kmsKeyID": "alias/x"}});
    let result = stanza(
        &json!([nowhere]),
        &json!([]),
        &json!({"vault": {"seals": ["aws"]}}),
    );
    refused(result, "set region");
}

#[test]
fn a_disabled_seal_stands_as_disabled_beside_the_one_that_follows_it() {
    let mut old = aws(&irsa());
    old["disabled"] = json!(true);
    old["priority"] = json!(90);
    let seals = json!([old, oci(&json!({}))]);
    for product in ["vault", "openbao"] {
        let written = stanza(&seals, &json!([]), &json!({product: {"seals": ["aws", "oci"]}})).unwrap();
        assert!(written.starts_with("seal \"ocikms\" {"), "{written}");
        let (_, second) = written.split_once("\n\n").unwrap();
        assert_eq!(
            second,
            "seal \"awskms\" {\n  region     = \"us-east-1\"\n  kms_key_id = \"alias/vault-seal\"\n  disabled   = \"true\"\n}\n"
        );
    }
    let mut other = oci(&json!({}));
    other["disabled"] = json!(true);
    let both = json!([seals[0], other]);
    refused(
        stanza(&both, &json!([]), &json!({"vault": {"seals": ["aws", "oci"]}})),
        "one seal at a time",
    );
}

#[test]
fn several_seals_of_vault_have_names_and_priorities_and_openbao_takes_one() {
    let mut first = oci(&json!({}));
    first["priority"] = json!(10);
    let seals = json!([aws(&irsa()), first]);
    let written = stanza(&seals, &json!([]), &json!({"vault": {"seals": ["aws", "oci"]}})).unwrap();
    assert_eq!(
        written,
        "\
seal \"ocikms\" {
  name                = \"oci\"
  priority            = 1
  key_id              = \"ocid1.key.oc1.iad.vault.key\"
  crypto_endpoint     = \"https://vault-crypto.kms.us-ashburn-1.oraclecloud.com\"
  management_endpoint = \"https://vault-management.kms.us-ashburn-1.oraclecloud.com\"
  auth_type_api_key   = \"false\"
}

seal \"awskms\" {
  name       = \"aws\"
  priority   = 2
  region     = \"us-east-1\"
  kms_key_id = \"alias/vault-seal\"
}
"
    );
    let result = stanza(&seals, &json!([]), &json!({"openbao": {"seals": ["aws", "oci"]}}));
    refused(result, "OpenBao runs one seal at a time");
}

#[test]
fn boundary_gets_a_block_for_each_purpose() {
    let written = stanza(
        &json!([aws(&irsa())]),
        &json!([]),
        &json!({"boundary": {"seal": "aws", "purposes": ["root", "worker-auth"]}}),
    );
    let block = |purpose: &str| {
        format!(
            "kms \"awskms\" {{\n  purpose    = \"{purpose}\"\n  region     = \"us-east-1\"\n  kms_key_id = \"alias/vault-seal\"\n}}\n"
        )
    };
    assert_eq!(written.unwrap(), [block("root"), block("worker-auth")].join("\n"));
}

#[test]
fn boundary_refuses_what_boundary_would() {
    let with = |seal: &Json, purposes: Json| {
        let stanza_ = json!({"boundary": {"seal": "aws", "purposes": purposes}});
        stanza(&json!([seal]), &json!([]), &stanza_)
    };
    let seal = aws(&irsa());
    refused(with(&seal, json!(["static"])), "purposes are Boundary's");
    refused(with(&seal, json!([])), "purposes is empty");
    refused(with(&seal, json!(["root", "root"])), "named twice");
    refused(
        with(&seal, json!(["root", "previous-root"])),
        "root and previous-root at once",
    );
    let mut disabled = seal;
    disabled["disabled"] = json!(true);
    refused(with(&disabled, json!(["root"])), "can be previous-root");
    assert!(with(&disabled, json!(["previous-root"])).is_ok());
}

#[test]
fn aead_blocks_hold_every_key_with_a_purpose_of_boundarys() {
    let keys = json!([
        generated("root", "root"),
        generated("app", "other"),
        generated("bsr", "bsr")
    ]);
    let written = stanza(&json!([wraps()]), &keys, &json!({"boundaryAEAD": {}})).unwrap();
    let key = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    let block = |purpose: &str| {
        format!(
            "kms \"aead\" {{\n  purpose   = \"{purpose}\"\n  aead_type = \"aes-gcm\"\n  key       = \"{key}\"\n  \
             key_id    = \"global_{purpose}\"\n}}\n"
        )
    };
    assert_eq!(written, [block("root"), block("bsr")].join("\n"));
}

#[test]
fn while_a_root_key_rotates_the_one_before_it_is_previous_root() {
    let keys = json!([generated("root", "root"), generated("recovery", "recovery")]);
    let data = json!({"data": [{"name": "x.hcl", "stanza": {"boundaryAEAD": {}}}]});
    let model = model(&json!([wraps()]), &keys, &data).unwrap();
    let written = delivered(&model, true).unwrap()["x.hcl"].clone();
    let heads: Vec<_> = written
        .lines()
        .filter(|line| line.contains("purpose") || line.contains("key_id"))
        .map(|line| line.split('"').nth(1).unwrap())
        .collect();
    assert_eq!(
        heads,
        [
            "root",
            "global_root-2",
            "previous-root",
            "global_root",
            "recovery",
            "global_recovery-2"
        ]
    );
    assert!(written.contains("\"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\""));
}

#[test]
fn aead_refuses_what_boundary_would() {
    let with =
        |keys: Json, stanza_: Json| stanza(&json!([wraps()]), &keys, &json!({"boundaryAEAD": stanza_}));
    let sized = |bytes: u8| json!({"name": "k", "purpose": "root", "generate": {"bytes": bytes}});
    refused(
        with(json!([generated("k", "other")]), json!({})),
        "no key has one of Boundary's purposes",
    );
    refused(
        with(json!([generated("k", "static")]), json!({"keys": ["k"]})),
        "none of Boundary's purposes",
    );
    refused(
        with(json!([generated("k", "root")]), json!({"keys": ["x"]})),
        "there is no key",
    );
    refused(with(json!([sized(16)]), json!({})), "set generate.bytes: 32");
    refused(
        with(json!([generated("a", "root"), generated("b", "root")]), json!({})),
        "two keys have the purpose root",
    );
    let repeats = json!([
        generated("a", "downstream-worker-auth"),
        generated("b", "downstream-worker-auth")
    ]);
    assert!(with(repeats, json!({})).is_ok());
    refused(
        with(json!([generated("k", "previous-root")]), json!({})),
        "without a root",
    );
    refused(
        with(
            json!([generated("a", "root"), generated("b", "previous-root")]),
            json!({}),
        ),
        "set generate.keepPrevious: 0",
    );
}

#[test]
fn the_static_seal_brings_its_files_and_names_the_key_before_only_once_there_is_one() {
    let data = json!({"data": [{"name": "seal.hcl", "stanza": {"openbaoStatic": {
        "key": "static", "mountPath": "/openbao/seal/", "currentFile": "now", "previousFile": "before"}}}]});
    let model = model(&json!([wraps()]), &json!([generated("static", "static")]), &data).unwrap();
    let first = delivered(&model, false).unwrap();
    assert_eq!(
        first["seal.hcl"],
        "seal \"static\" {\n  current_key_id = \"global_static\"\n  current_key    = \"file:///openbao/seal/now\"\n}\n"
    );
    assert_eq!(first.keys().collect::<Vec<_>>(), ["now", "seal.hcl"]);
    assert_eq!(first["now"], "\u{2}".repeat(32));
    let second = delivered(&model, true).unwrap();
    assert_eq!(
        second["seal.hcl"],
        "seal \"static\" {\n  current_key_id  = \"global_static-2\"\n  current_key     = \"file:///openbao/seal/now\"\n  \
         previous_key_id = \"global_static\"\n  previous_key    = \"file:///openbao/seal/before\"\n}\n"
    );
    assert_eq!(second["before"], "\u{1}".repeat(32));
}

#[test]
fn the_static_seal_refuses_what_openbao_would_misread() {
    let with = |bytes: u8, path: &str, file: &str| {
        let key = json!({"name": "k", "purpose": "static", "generate": {"bytes": bytes}});
        let spec = json!({"openbaoStatic": {"key": "k", "mountPath": path, "currentFile": file, "previousFile": "previous.key"}});
        stanza(&json!([wraps()]), &json!([key]), &spec)
    };
    assert!(with(32, "/a", "current.key").is_ok());
    refused(with(64, "/a", "current.key"), "set generate.bytes: 32");
    refused(with(32, "/a", "previous.key"), "two files");
    // Its reader would take these for the key itself, or look elsewhere.
    for path in ["a", "/a%zz", "/a b", "/a?b", "/a\n", "/${a}", "/é"] {
        refused(with(32, path, "current.key"), "mountPath");
    }
    // The file's name is an entry of the same Secret: it cannot be there twice.
    refused(with(32, "/a", "x.hcl"), "two entries are named");
}

#[test]
fn a_brought_key_is_measured_when_it_is_open() {
    let key = json!({"name": "k", "purpose": "root", "wrapped": [{"seal": "wraps", "inline": "AAAA"}]});
    let data = json!({"data": [{"name": "x", "stanza": {"boundaryAEAD": {}}}]});
    let model = model(&json!([wraps()]), &json!([key]), &data).unwrap();
    let short = KeyBytes::new(vec![7; 24]);
    let handed = DeliveredKey {
        current: &short,
        consumer_key_id: "k".into(),
        previous: None,
    };
    let keys = BTreeMap::from([("k".to_owned(), handed)]);
    let result = render(&model.targets[0].entries, &keys, &BTreeMap::new());
    refused(result, "key \"k\" has another length than 32 bytes");
}

#[test]
fn variables_tell_one_seal() {
    let with = |seals: Json, env: &Json| -> Result<_, Fault> {
        delivered(&model(&seals, &json!([]), &json!({"env": env}))?, false)
    };
    for product in ["vault", "openbao"] {
        let env = |seal: &str| json!({product: {"seals": [seal]}});
        let variables = with(json!([aws(&irsa())]), &env("aws")).unwrap();
        let expected = [
            ("AWS_REGION", "us-east-1"),
            ("VAULT_AWSKMS_SEAL_KEY_ID", "alias/vault-seal"),
            ("VAULT_SEAL_TYPE", "awskms"),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(name, value)| (name.into(), value.into())).into();
        assert_eq!(variables, expected);
        let variables = with(json!([oci(&json!({}))]), &env("oci")).unwrap();
        let expected = [
            (
                "VAULT_OCIKMS_CRYPTO_ENDPOINT",
                "https://vault-crypto.kms.us-ashburn-1.oraclecloud.com",
            ),
            (
                "VAULT_OCIKMS_MANAGEMENT_ENDPOINT",
                "https://vault-management.kms.us-ashburn-1.oraclecloud.com",
            ),
            ("VAULT_OCIKMS_SEAL_KEY_ID", "ocid1.key.oc1.iad.vault.key"),
            ("VAULT_SEAL_TYPE", "ocikms"),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(name, value)| (name.into(), value.into())).into();
        assert_eq!(variables, expected);
        refused(with(json!([oci(&api_key())]), &env("oci")), "uses an API key");
    }
    let both = json!({"vault": {"seals": ["aws", "oci"]}});
    refused(
        with(json!([aws(&irsa()), oci(&json!({}))]), &both),
        "one seal only",
    );
    let mut disabled = aws(&irsa());
    disabled["disabled"] = json!(true);
    refused(
        with(json!([disabled]), &json!({"vault": {"seals": ["aws"]}})),
        "is disabled",
    );
}

#[test]
fn only_lasting_credentials_of_a_secret_are_written_and_only_when_asked_for() {
    let with = |seal: Json, include: bool| {
        let name = seal["name"].clone();
        let spec = json!({"seals": [name], "includeCredentials": include});
        let secret = json!({"data": [{"name": "x", "stanza": {"vault": spec}}], "env": {"vault": spec}});
        delivered(&model(&json!([seal]), &json!([]), &secret)?, false)
    };
    let without = with(aws(&secret_ref()), false).unwrap();
    assert!(
        without
            .values()
            .all(|text| !text.contains("AKIA") && !text.contains("wJal"))
    );
    let written = with(aws(&secret_ref()), true).unwrap();
    assert_eq!(
        written["x"],
        "seal \"awskms\" {\n  region     = \"us-east-1\"\n  kms_key_id = \"alias/vault-seal\"\n  \
         access_key = \"AKIAIOSFODNN7EXAMPLE\"\n  secret_key = \"wJalrXUtnFEMI/K7MDENG\"\n}\n"
    );
    assert_eq!(written["AWS_ACCESS_KEY_ID"], "AKIAIOSFODNN7EXAMPLE");
    assert_eq!(written["AWS_SECRET_ACCESS_KEY"], "wJalrXUtnFEMI/K7MDENG");
    for credentials in [
        irsa(),
        json!({}),
        json!({"podIdentity": {}}),
        json!({"instanceMetadata": {}}),
    ] {
        refused(
            with(aws(&credentials), true),
            "static credentials of a Secret only",
        );
    }
    refused(with(oci(&json!({})), true), "ocikms takes no credentials");
    for (id, token) in [("AKIAIOSFODNN7EXAMPLE", true), ("ASIAIOSFODNN7EXAMPLE", false)] {
        let secret = Zeroizing::new("wJalrXUtnFEMI".to_owned());
        refused(StaticCredentials::new(id, secret, token), "are temporary");
    }
}

#[test]
fn an_identity_that_the_consumer_cannot_have_is_refused() {
    let with = |seal: Json| {
        let spec = json!({"vault": {"seals": [seal["name"]]}});
        stanza(&json!([seal]), &json!([]), &spec)
    };
    let mut assumes = aws(&irsa());
    assumes["awskms"]["assumeRole"] = json!({"roleARN": "arn:aws:iam::123456789012:role/x"});
    refused(with(assumes), "take assumeRole out");
    for credentials in [
        json!({"workloadIdentity": {"serviceAccountRef": {"name": "x"}}}),
        json!({"resourcePrincipal": {}}),
    ] {
        refused(with(oci(&credentials)), "instance principals and API keys only");
    }
}

#[test]
fn a_stanza_is_one_thing_and_names_what_there_is() {
    let seals = json!([aws(&irsa())]);
    let none = json!({});
    let two = json!({"vault": {"seals": ["aws"]}, "openbao": {"seals": ["aws"]}});
    for spec in [none, two] {
        refused(stanza(&seals, &json!([]), &spec), "exactly one of vault");
    }
    refused(
        stanza(&seals, &json!([]), &json!({"vault": {"seals": ["x"]}})),
        "there is no seal",
    );
    refused(
        stanza(&seals, &json!([]), &json!({"vault": {"seals": ["aws", "aws"]}})),
        "named twice",
    );
    refused(
        stanza(&seals, &json!([]), &json!({"vault": {"seals": []}})),
        "one to three",
    );
}
