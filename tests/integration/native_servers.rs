//! Vault and OpenBao start from what the operator delivers, and unseal themselves by the KMS.

use std::collections::BTreeMap;

use autounseal::{
    api::SealConfig,
    delivery::{content::DeliveredKey, render},
    seal::{KeyBytes, model::parse},
};
use serde_json::{Value, json};

use crate::support::{
    moto::Moto,
    netns::Instance,
    oci_caller::{Caller, profile},
    oci_scene::{LABEL, OciScene, by_secret},
    plane::eventually,
    server::{Disk, Product},
    stage::{Stage, repository, unique},
};

/// The entries of a delivered Secret, once it is there.
async fn secret(stage: &Stage, name: &str) -> BTreeMap<String, Vec<u8>> {
    eventually(&format!("Secret {name}"), async || {
        stage.secret(name).await.ok_or_else(|| "not there".to_owned())
    })
    .await
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// `envFrom`.
fn env_from(secret: &BTreeMap<String, Vec<u8>>) -> Vec<(&str, &str)> {
    secret
        .iter()
        .map(|(name, value)| (name.as_str(), text(value)))
        .collect()
}

/// Starts a server afresh and makes sure that this seal unsealed it. No share was ever handed in, and its storage belongs to
/// one type of seal.
fn starts_unsealed(disk: &Disk, files: &[&str], variables: &[(&str, &str)], seal: &str) {
    let mut server = disk.start(files, variables);
    let status = server.unsealed();
    assert_eq!(status["recovery_seal"], true, "{status}");
    // This Vault names the type of the recovery key here.
    if disk.product == Product::OpenBao {
        assert_eq!(status["type"], seal, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_unseal_by_aws_kms_from_the_stanza_and_from_the_environment_alone() {
    let stage = Stage::new("native-aws").await;
    let moto = Moto::of_cluster("us-east-1");
    let alias = format!("alias/native-{}", unique());
    moto.alias(&alias, &moto.key().await).await;
    let endpoint = std::env::var("AWS_ENDPOINT_URL_KMS").unwrap();
    let seals = json!({"seals": ["primary"], "includeCredentials": true});
    let target = |name: &str, mut secret: Value| {
        secret["name"] = json!(name);
        json!({"name": name, "secret": secret})
    };
    let spec = json!({
        "seals": [{"name": "primary", "use": ["Native"], "awskms": {
            "kmsKeyID": alias, "region": "us-east-1", "endpoint": endpoint, "credentials": {"secretRef": {"name": "aws"}}}}],
        "targets": [
            target("files", json!({"data": [
                {"name": "vault.hcl", "stanza": {"vault": seals}}, {"name": "openbao.hcl", "stanza": {"openbao": seals}}]})),
            target("vault", json!({"env": {"vault": seals}})),
            target("openbao", json!({"env": {"openbao": seals}})),
        ],
    });
    let _operator = stage.operator().start();
    stage.apply("native", &spec).await;
    let files = secret(&stage, "files").await;
    for product in [Product::Vault, Product::OpenBao] {
        let disk = Disk::new(product);
        let file = format!("{}.hcl", product.word());
        disk.mounted(&[(&file, &files[&file])]);
        disk.start(&[&file], &[]).initialize();
        starts_unsealed(&disk, &[&file], &[], "awskms");
        let variables = secret(&stage, product.word()).await;
        starts_unsealed(&disk, &[], &env_from(&variables), "awskms");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_unseal_by_oci_kms_from_the_stanza_and_from_the_environment_alone() {
    let scene = OciScene::set_up(
        "native-oci",
        &crate::support::oci::Options::default(),
        |_| json!({"labels": {LABEL: "allowed"}}),
    )
    .await;
    let stage = &scene.stage;
    let spec = |credentials: Value, secret: Value| {
        let mut spec = scene.spec_as(&credentials, &json!({}), "x");
        spec.as_object_mut().unwrap().remove("keys");
        spec["seals"][0]["use"] = json!(["Native"]);
        spec["targets"] = json!([{"name": "x", "secret": secret}]);
        spec
    };
    let _operator = scene.start();
    let stanza = |product: &str| json!({"name": product, "stanza": {product: {"seals": ["oci"]}}});
    let by_key = json!({"name": "files", "data": [stanza("vault"), stanza("openbao")]});
    stage.apply("by-key", &spec(by_secret("oci"), by_key)).await;
    let by_principal = json!({"name": "env", "env": {"vault": {"seals": ["oci"]}}});
    stage
        .apply("by-principal", &spec(Value::Null, by_principal))
        .await;
    let files = secret(stage, "files").await;
    let variables = secret(stage, "env").await;

    // The SDK's own file, which a pod would mount: `~` is the home folder of the user database, so it is named.
    let caller = Caller::new();
    let pem = caller.file("key.pem", &scene.user.pem);
    let config = caller.file("config", profile("DEFAULT", &scene.user, &pem));
    let identity = ("OCI_CONFIG_FILE", config.as_str());
    let port = |service: &str| -> u16 {
        let url = scene.oci.url(service);
        let authority = url.trim_start_matches("http://").split('/').next().unwrap();
        authority.rsplit(':').next().unwrap().parse().unwrap()
    };
    let federation = scene.oci.url("federation");
    let instance = Instance::new(
        port("metadata"),
        &["crypto", "management", "federation"].map(port),
    );
    for product in [Product::Vault, Product::OpenBao] {
        let disk = Disk::new(product);
        disk.mounted(&[("seal.hcl", &files[product.word()])]);
        disk.start(&["seal.hcl"], &[identity]).initialize();
        starts_unsealed(&disk, &["seal.hcl"], &[identity], "ocikms");
        // Variables alone mean an instance principal, which the SDKs get at a fixed address.
        let mut alone = env_from(&variables);
        alone.push(("OCI_SDK_AUTH_CLIENT_REGION_URL", &federation));
        let mut server = disk.start_by(&instance.launcher(), &[], &alone);
        let status = server.unsealed();
        assert_eq!(status["recovery_seal"], true, "{status}");
    }
}

/// What a generated key's Secret would hold.
fn static_seal(
    mount: &str,
    current: (&KeyBytes, &str),
    previous: Option<(&KeyBytes, &str)>,
) -> Vec<(String, Vec<u8>)> {
    let config: SealConfig = serde_json::from_value(json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "x", "namespace": "x", "uid": "x"},
        "spec": {
            "seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/x"}}],
            "keys": [{"name": "static", "purpose": "static", "generate": {}}],
            "targets": [{"name": "x", "secret": {"name": "x", "data": [
                {"name": "seal.hcl", "stanza": {"openbaoStatic": {"key": "static", "mountPath": mount}}}]}}],
        },
    }))
    .unwrap();
    let model = parse(&config).unwrap();
    let key = DeliveredKey {
        current: current.0,
        consumer_key_id: current.1.to_owned(),
        previous: previous.map(|(bytes, id)| (bytes, id.to_owned())),
    };
    let content = render(
        &model.targets[0].entries,
        &BTreeMap::from([("static".to_owned(), key)]),
        &BTreeMap::new(),
    );
    content
        .unwrap()
        .iter()
        .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
        .collect()
}

#[test]
fn openbao_unseals_by_its_static_key_and_follows_its_rotation() {
    let disk = Disk::new(Product::OpenBao);
    let mount = disk.mount().display().to_string();
    let start = |files: &[(String, Vec<u8>)]| {
        let files: Vec<_> = files
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        disk.mounted(&files);
        disk.start(&["seal.hcl"], &[])
    };
    // White space at either end, and no text: bytes that a careless reader would change.
    let key = |first: u8, last: u8| {
        let mut bytes = vec![0xfe; 32];
        (bytes[0], bytes[31]) = (first, last);
        KeyBytes::new(bytes)
    };
    let (first, second, third) = (key(b'\n', b' '), key(b' ', 0), key(b'\t', b'\n'));
    start(&static_seal(&mount, (&first, "static-1"), None)).initialize();
    let rotated = static_seal(&mount, (&second, "static-2"), Some((&first, "static-1")));
    start(&rotated).unsealed();
    // What the first key wrapped was wrapped anew, so the next rotation can do without it.
    let rotated = static_seal(&mount, (&third, "static-3"), Some((&second, "static-2")));
    assert_eq!(start(&rotated).unsealed()["type"], "static");
    start(&static_seal(&mount, (&third, "static-3"), None)).unsealed();
}

#[tokio::test(flavor = "multi_thread")]
async fn openbao_starts_from_the_key_that_the_operator_makes_and_survives_its_rotation() {
    let stage = Stage::new("static-example").await;
    let _operator = stage.operator().start();
    let disk = Disk::new(Product::OpenBao);
    let text = std::fs::read_to_string(repository("examples/04-openbao-static-two-clouds.yaml")).unwrap();
    let mut config: Value = serde_yaml::from_str(&text).unwrap();
    config["metadata"]["namespace"] = json!(stage.namespace);
    // The example's KMS keys are nobody's, and its mount is a pod's.
    let key = Moto::of_cluster("us-east-1").key().await;
    config["spec"]["seals"] = json!([{"name": "aws", "awskms": {
        "kmsKeyID": key, "region": "us-east-1", "credentials": {"secretRef": {"name": "aws"}}}}]);
    let stanza = &mut config["spec"]["targets"][0]["secret"]["data"][0]["stanza"]["openbaoStatic"];
    stanza["mountPath"] = json!(disk.mount().display().to_string());
    config["spec"]["keys"][0]["generate"]["rotation"]["trigger"] = json!("first");
    stage.plane.apply(&config).await;
    let start = |secret: &BTreeMap<String, Vec<u8>>| {
        let files: Vec<_> = secret
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
            .collect();
        disk.mounted(&files);
        disk.start(&["seal.hcl"], &[])
    };
    let first = secret(&stage, "openbao-seal").await;
    assert_eq!(first.keys().collect::<Vec<_>>(), ["current.key", "seal.hcl"]);
    start(&first).initialize();
    stage.ready("openbao").await;

    config["spec"]["keys"][0]["generate"]["rotation"]["trigger"] = json!("second");
    stage.plane.apply(&config).await;
    let second = eventually("the key before", async || {
        let now = secret(&stage, "openbao-seal").await;
        now.contains_key("previous.key")
            .then_some(now)
            .ok_or_else(|| "only one".to_owned())
    })
    .await;
    assert_eq!(second["previous.key"], first["current.key"]);
    assert_ne!(second["current.key"], first["current.key"]);
    start(&second).unsealed();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_seal_is_the_way_to_another_one() {
    let stage = Stage::new("migration").await;
    let _operator = stage.operator().start();
    let key = Moto::of_cluster("us-east-1").key().await;
    let endpoint = std::env::var("AWS_ENDPOINT_URL_KMS").unwrap();
    let seal = |name: &str, native: bool, disabled: bool| {
        json!({"name": name, "use": [if native { "Native" } else { "Wrap" }], "disabled": disabled, "awskms": {
            "kmsKeyID": key, "region": "us-east-1", "endpoint": endpoint, "credentials": {"secretRef": {"name": "aws"}}}})
    };
    for (product, to_static) in [(Product::Vault, false), (Product::OpenBao, true)] {
        let word = product.word();
        let disk = Disk::new(product);
        let mount = disk.mount().display().to_string();
        let native =
            json!({"name": "seal.hcl", "stanza": {word: {"seals": ["primary"], "includeCredentials": true}}});
        let new =
            json!({"name": "static.hcl", "stanza": {"openbaoStatic": {"key": "static", "mountPath": mount}}});
        let spec = |disabled: bool, data: Value| {
            json!({
                "seals": [seal("primary", true, disabled), seal("wraps", false, false)],
                "keys": [{"name": "static", "purpose": "static", "generate": {}}],
                "targets": [{"name": "server", "secret": {"name": word, "data": data}}],
            })
        };
        let delivered = async |spec: &Value, has: &str| {
            stage.apply(word, spec).await;
            let files = eventually(&format!("{has} in {word}"), async || {
                let files = secret(&stage, word).await;
                let whole: Vec<u8> = files.values().flatten().copied().collect();
                String::from_utf8_lossy(&whole)
                    .contains(has)
                    .then_some(files)
                    .ok_or_else(|| "not yet".to_owned())
            })
            .await;
            let files: Vec<_> = files
                .iter()
                .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
                .collect();
            disk.mounted(&files);
        };
        delivered(&spec(false, json!([native])), "awskms").await;
        let share = disk.start(&["seal.hcl"], &[]).initialize();
        if to_static {
            delivered(&spec(true, json!([native, new])), "disabled").await;
            let status = disk.start(&["seal.hcl", "static.hcl"], &[]).migrate(&share);
            assert_eq!(status["type"], "static", "{status}");
            starts_unsealed(&disk, &["static.hcl"], &[], "static");
        } else {
            delivered(&spec(true, json!([native])), "disabled").await;
            let status = disk.start(&["seal.hcl"], &[]).migrate(&share);
            assert_eq!(status["recovery_seal"], false, "{status}");
            let status = disk.start(&[], &[]).unseal(&share);
            assert_eq!(
                (&status["type"], &status["sealed"]),
                (&json!("shamir"), &json!(false)),
                "{status}"
            );
        }
    }
}
