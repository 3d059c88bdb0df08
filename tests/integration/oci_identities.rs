//! Every identity that OCI knows, each asked of the services that issue it; the server verifies every byte.

use std::{net::SocketAddr, path::PathBuf};

use serde_json::{Value, json};

use crate::support::{
    oci::Options,
    oci_scene::{OciScene, by_secret},
    operator::Operator,
    stage::{random, unique},
};

/// What status says of the seal.
async fn seal_of(scene: &OciScene, name: &str) -> Value {
    scene.stage.ready(name).await["status"]["seals"][0].clone()
}

/// Both formats, and associatedData, by these credentials; gives back what status says of the seal.
async fn opens_everything(scene: &OciScene, credentials: &Value, source: &str) -> Value {
    let mut last = Value::Null;
    for name in ["kms", "context", "blob"] {
        let bytes = random(32);
        let copy = match name {
            "kms" => scene.kms_copy(&bytes),
            "context" => scene.kms_copy_with(&bytes, &[("Tool", "bank-vaults"), ("ä", "\"ö\"")]),
            _ => scene.blob_copy(&bytes),
        };
        let spec = scene.spec_as(credentials, &copy, name);
        scene.deliver(name, spec, &bytes).await;
        last = seal_of(scene, name).await;
        assert_eq!(last["provider"], "ocikms");
        assert_eq!(last["keyID"], scene.key.id.as_str());
        assert_eq!(last["credentialSource"], source);
        assert_eq!(last["state"], "Healthy");
    }
    // Nothing that was sent was found wrong.
    let refused: Vec<_> = scene
        .oci
        .log()
        .into_iter()
        .filter(|entry| entry["service"] != "metadata" && entry["status"] != 200)
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(scene.decrypts(), 3);
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_key_of_single_entries_opens_every_format() {
    let scene = OciScene::new("oci-apikey").await;
    let _operator = scene.start();
    let seal = opens_everything(&scene, &by_secret("oci"), "api-key").await;
    assert_eq!(seal["identity"], scene.user.user.as_str());
    assert_eq!(
        scene.oci.count("metadata", "") + scene.oci.count("federation", ""),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_key_is_read_in_every_form_that_openssl_writes() {
    let scene = OciScene::new("oci-pem").await;
    let _operator = scene.start();
    for (name, form, phrase) in [
        ("pkcs1", "pkcs1", None),
        ("pkcs8-encrypted", "pkcs8-encrypted", Some("correct horse")),
        ("traditional", "traditional-encrypted", Some("battery staple")),
    ] {
        let user = scene.oci.api_key(form, phrase);
        // The line end that an editor leaves is no part of the pass phrase.
        let with_end = phrase.map(|phrase| format!("{phrase}\n"));
        let more: Vec<_> = with_end
            .iter()
            .map(|phrase| ("pass_phrase", phrase.as_str()))
            .collect();
        let secret = format!("key-{name}");
        scene.api_key_secret(&secret, &user, &more).await;
        let bytes = random(32);
        let spec = scene.spec_as(&by_secret(&secret), &scene.kms_copy(&bytes), name);
        scene.deliver(name, spec, &bytes).await;
        assert_eq!(seal_of(&scene, name).await["identity"], user.user.as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_configuration_file_serves_with_the_profile_and_the_entry_that_it_names() {
    let scene = OciScene::new("oci-config").await;
    let _operator = scene.start();
    let (plain, coded) = (
        scene.oci.api_key("pkcs8", None),
        scene.oci.api_key("pkcs8-encrypted", Some("of the profile")),
    );
    let config = format!(
        "[DEFAULT]\nuser={}\nfingerprint={}\ntenancy={}\nregion={}\nkey_file=~/.oci/oci_api_key.pem\n\n\
         [PROD]\nuser={}\nfingerprint={}\npass_phrase=of the profile\nkey_file=/home/me/.oci/prod.pem\n",
        plain.user, plain.fingerprint, plain.tenancy, plain.region, coded.user, coded.fingerprint
    );
    let entries = json!({"config": config, "oci_api_key.pem": plain.pem, "prod.pem": coded.pem});
    let mut of_profile = entries.clone();
    of_profile["profile"] = json!("PROD\n");
    scene.entries("key-default", &entries).await;
    scene.entries("key-prod", &of_profile).await;
    for (name, user) in [("default", &plain), ("prod", &coded)] {
        let bytes = random(32);
        let secret = format!("key-{name}");
        let spec = scene.spec_as(&by_secret(&secret), &scene.kms_copy(&bytes), name);
        scene.deliver(name, spec, &bytes).await;
        assert_eq!(seal_of(&scene, name).await["identity"], user.user.as_str());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_instance_principal_opens_every_format_with_one_token() {
    let scene = OciScene::granted("oci-instance").await;
    let _operator = scene.start();
    let seal = opens_everything(&scene, &json!({"instancePrincipal": {}}), "instance-principal").await;
    assert_eq!(seal["identity"], scene.oci.fact("instance").as_str());
    assert_eq!(scene.oci.count("federation", "/v1/x509"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_it_is_the_instance_principal_that_asks() {
    let scene = OciScene::granted("oci-none").await;
    let _operator = scene.start();
    let bytes = random(32);
    let mut spec = scene.spec_as(&Value::Null, &scene.blob_copy(&bytes), "one");
    spec["seals"][0]["ocikms"]["authTypeAPIKey"] = json!(false);
    scene.deliver("one", spec, &bytes).await;
    assert_eq!(
        seal_of(&scene, "one").await["credentialSource"],
        "instance-principal"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_metadata_service_that_tells_a_short_code_only_is_asked_for_that() {
    let scene = OciScene::granted("oci-short").await;
    scene.oci.metadata("/instance/regionInfo", None);
    scene.oci.metadata("/instance/region", Some("XYZ\n"));
    // The endpoint that follows from the code is none of this machine; `.invalid` never resolves (RFC 6761).
    let region = json!({"regionKey": "xyz", "regionIdentifier": "xx-test-1", "realmKey": "oc99",
        "realmDomainComponent": "realm.invalid"});
    let _operator = scene
        .operator()
        .without("OCI_SDK_AUTH_CLIENT_REGION_URL")
        .env("OCI_REGION_METADATA", region.to_string())
        .start();
    let spec = scene.spec_as(&json!({"instancePrincipal": {}}), &scene.blob_copy(b"x"), "one");
    scene.stage.apply("one", &spec).await;
    let message = scene.not_ready("one", "EndpointUnresolvable").await;
    assert!(message.contains("identity service"), "{message}");
    let asked: Vec<_> = scene
        .oci
        .log()
        .iter()
        .take(2)
        .map(|entry| (entry["path"].clone(), entry["status"].clone()))
        .collect();
    let expected = [("regionInfo", 404), ("region", 200)]
        .map(|(path, status)| (json!(format!("/opc/v2/instance/{path}")), json!(status)));
    assert_eq!(asked, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_for_tokens_in_the_environment_saves_the_question_for_the_region() {
    let scene = OciScene::granted("oci-auth-url").await;
    scene.oci.metadata("/instance/regionInfo", None);
    scene.oci.metadata("/instance/region", None);
    let _operator = scene.start();
    let bytes = random(32);
    let spec = scene.spec_as(&json!({"instancePrincipal": {}}), &scene.blob_copy(&bytes), "one");
    scene.deliver("one", spec, &bytes).await;
}

/// Values themselves, or files that hold them.
async fn resource_principal(name: &str, files: bool, phrase: Option<&str>) {
    let scene = OciScene::granted(name).await;
    let given = scene.oci.resource_principal(None, phrase);
    let folder = std::env::temp_dir().join(format!("autounseal-rp-{}", unique()));
    std::fs::create_dir(&folder).unwrap();
    let value = |file: &str, text: &str| {
        if !files {
            return text.to_owned();
        }
        let path = folder.join(file);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        path.display().to_string()
    };
    let mut operator = scene
        .operator()
        .env("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")
        .env("OCI_RESOURCE_PRINCIPAL_REGION", &given.region)
        .env("OCI_RESOURCE_PRINCIPAL_RPST", value("rpst", &given.rpst))
        .env(
            "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM",
            value("pem", &given.private_pem),
        );
    if let Some(phrase) = phrase {
        operator = operator.env(
            "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM_PASSPHRASE",
            value("phrase", phrase),
        );
    }
    let _operator = operator.start();
    let seal = opens_everything(&scene, &json!({"resourcePrincipal": {}}), "resource-principal").await;
    assert_eq!(seal["identity"], given.resource.as_str());
    assert_eq!(
        scene.oci.count("metadata", "") + scene.oci.count("federation", ""),
        0
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_principal_of_values_opens_every_format() {
    resource_principal("oci-rp-values", false, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_principal_of_files_opens_every_format() {
    resource_principal("oci-rp-files", true, Some("of the resource")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_a_resource_principal_says_so() {
    let scene = OciScene::granted("oci-rp-none").await;
    let _operator = scene.start();
    let spec = scene.spec_as(&json!({"resourcePrincipal": {}}), &scene.kms_copy(b"x"), "one");
    scene.stage.apply("one", &spec).await;
    let message = scene.not_ready("one", "CredentialsMissing").await;
    assert!(message.contains("OCI_RESOURCE_PRINCIPAL_VERSION"), "{message}");
    assert_eq!(scene.sent(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_key_is_read_from_secrets_and_config_maps_with_or_without_armour() {
    let scene = OciScene::new("oci-sources").await;
    let _operator = scene.start();
    let (stage, bytes) = (&scene.stage, random(32));
    // What `oci kms crypto encrypt` prints, as somebody would paste it: that is base64 already.
    let text = scene.kms_copy(&bytes)["inline"].as_str().unwrap().to_owned();
    let blob = scene.oci.wrapped(&scene.key, &bytes);
    stage
        .secret_of(
            "sources",
            &[
                ("text", format!("{text}\n").as_bytes()),
                ("bare", text.as_bytes()),
                ("blob", &blob),
            ],
        )
        .await;
    let mut map = stage.object("v1", "ConfigMap", "sources");
    map["data"] = json!({"text": text});
    stage.plane.apply(&map).await;
    let secret =
        |key: &str, armor: &str| json!({"secretKeyRef": {"name": "sources", "key": key, "armor": armor}});
    for (name, format, source) in [
        ("text-auto", "kms", secret("text", "Auto")),
        ("text-base64", "kms", secret("text", "Base64")),
        ("text-none", "kms", secret("bare", "None")),
        ("blob-auto", "blobinfo", secret("blob", "Auto")),
        ("blob-none", "blobinfo", secret("blob", "None")),
        (
            "config-map",
            "kms",
            json!({"configMapKeyRef": {"name": "sources", "key": "text"}}),
        ),
    ] {
        let mut copy = source;
        copy["format"] = json!(format);
        let spec = scene.spec_as(&by_secret("oci"), &copy, name);
        scene.deliver(name, spec, &bytes).await;
    }
}

/// A scene of an OKE cluster: the token endpoint at an address of its own, ServiceAccount `app` in the namespace.
pub async fn cluster(name: &str) -> OciScene {
    let part = random(2);
    // The clients' port is fixed; an even last part is neither network nor broadcast to anybody.
    let listen: SocketAddr = format!("127.77.{}.{}:12250", part[0], part[1] & 0xfe | 2)
        .parse()
        .unwrap();
    let options = Options {
        oke_listen: Some(listen),
        kubeconfig: Some(PathBuf::from(
            std::env::var("KUBECONFIG").expect("cargo xtask cluster sets KUBECONFIG"),
        )),
        ..Options::default()
    };
    let scene = OciScene::with(name, &options).await;
    scene
        .stage
        .plane
        .apply(&scene.stage.object("v1", "ServiceAccount", "app"))
        .await;
    scene
}

/// An operator in that cluster.
pub fn in_cluster(scene: &OciScene) -> Operator {
    let url = scene.oci.url("oke");
    let host = url.trim_start_matches("https://").trim_end_matches(":12250");
    scene
        .operator()
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", "443")
        .env(
            "OCI_KUBERNETES_SERVICE_ACCOUNT_CERT_PATH",
            scene.oci.ca_file().display().to_string(),
        )
}

/// `credentials` that name ServiceAccount `app`.
pub fn by_account() -> Value {
    json!({"workloadIdentity": {"serviceAccountRef": {"name": "app"}}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_of_oke_opens_every_format_with_one_token() {
    let scene = cluster("oci-oke").await;
    let _operator = in_cluster(&scene).start();
    let seal = opens_everything(&scene, &by_account(), "workload-identity").await;
    let account = format!("{}/app", scene.stage.namespace);
    assert_eq!(seal["identity"], format!("ServiceAccount {account}"));
    assert_eq!(scene.oci.count("oke", ""), 1);
    for entry in scene.oci.log() {
        assert_eq!(
            entry["principal"],
            format!("workload:{account}"),
            "the apiserver reviewed the token: {entry}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_that_is_missing_is_told_and_comes_to_life_when_it_is_made() {
    let scene = cluster("oci-oke-missing").await;
    let _operator = in_cluster(&scene).start();
    let stage = &scene.stage;
    stage
        .plane
        .delete("ServiceAccount", &stage.namespace, "app")
        .await;
    let bytes = random(32);
    stage
        .apply(
            "one",
            &scene.spec_as(&by_account(), &scene.kms_copy(&bytes), "one"),
        )
        .await;
    let message = scene.not_ready("one", "ServiceAccountMissing").await;
    assert!(message.contains("app"), "{message}");
    assert_eq!(scene.sent(), Vec::<String>::new());
    stage
        .plane
        .apply(&stage.object("v1", "ServiceAccount", "app"))
        .await;
    stage.delivered("one", &[("root", &bytes)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_outside_of_oke_says_what_workload_identity_needs() {
    let scene = OciScene::new("oci-oke-outside").await;
    let stage = &scene.stage;
    stage
        .plane
        .apply(&stage.object("v1", "ServiceAccount", "app"))
        .await;
    let _operator = scene.start();
    stage
        .apply("one", &scene.spec_as(&by_account(), &scene.kms_copy(b"x"), "one"))
        .await;
    let message = scene.not_ready("one", "CredentialsMissing").await;
    assert!(message.contains("KUBERNETES_SERVICE_HOST"), "{message}");
}
