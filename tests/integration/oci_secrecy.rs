//! Nothing secret in anything that the operator says of OCI, whatever a server repeats (S13, meaning 12).

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use crate::{
    oci_identities::{by_account, cluster, in_cluster},
    secrecy::{said, search},
    support::{
        http::{Reply, Server},
        needle::Needle,
        oci_scene::{GRANTS, LABEL, OciScene, by_secret},
        plane::within,
        stage::{condition, random, speaks_of_now},
    },
};

/// Every line of a PEM by itself: what is a line in base64 is also found in hex, or with the lines joined.
fn pem_needles(what: &str, pem: &str, needles: &mut Vec<Needle>) {
    let before = needles.len();
    for line in pem
        .lines()
        .filter(|line| line.len() == 64 && !line.contains(['-', ':']))
    {
        needles.push(Needle::new(what, &BASE64.decode(line.as_bytes()).unwrap()));
    }
    assert!(needles.len() > before + 10, "{what} has few lines");
}

/// What the metadata service tells of a path.
fn metadata(scene: &OciScene, path: &str) -> String {
    let url = scene.oci.url("metadata");
    let address = url.trim_start_matches("http://").trim_end_matches("/opc/v2");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET /opc/v2{path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer Oracle\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Waits for a verdict, whichever.
async fn settled(scene: &OciScene, name: &str) -> Value {
    within(
        Duration::from_secs(90),
        &format!("{name} has a verdict"),
        async || {
            let config = scene.stage.config(name).await;
            let ready = condition(&config, "Ready");
            if ready["reason"] != "Pending" && ready["status"] != "Unknown" && speaks_of_now(&config) {
                Ok(ready)
            } else {
                Err(format!("{:#}", config["status"]))
            }
        },
    )
    .await
}

/// A vault that tells these bytes in its errors, or where a key's name belongs.
fn talker(bytes: &[u8], status: u16) -> Server {
    let said = format!(
        "{} {} {}",
        BASE64.encode(bytes),
        HEXLOWER.encode(bytes),
        String::from_utf8_lossy(bytes)
    );
    let answer = json!({"code": BASE64.encode(bytes), "message": said, "keyId": said, "plaintext": BASE64.encode(bytes)});
    Server::start(move |_| Reply::Answer {
        status,
        headers: vec![
            ("content-type", "application/json".into()),
            (
                "opc-request-id",
                said.replace(|c: char| !c.is_ascii_graphic(), "?"),
            ),
        ],
        body: answer.to_string().into_bytes(),
    })
}

/// Every identity in play, servers that repeat what they are sent, in one log format.
async fn life(name: &str, format: &str) {
    let scene = cluster(name).await;
    let stage = &scene.stage;
    let rights = json!({"metadata": {"labels": {LABEL: "allowed"}, "annotations": {GRANTS: scene.key.id}}});
    stage
        .plane
        .patch("Namespace", "", &stage.namespace, &rights)
        .await;
    let mut needles = Vec::new();
    pem_needles("API key", &scene.user.pem, &mut needles);
    let phrase = "correct horse battery staple";
    needles.push(Needle::new("pass phrase", phrase.as_bytes()));
    let coded = scene.oci.api_key("pkcs8-encrypted", Some(phrase));
    scene
        .api_key_secret("coded", &coded, &[("pass_phrase", phrase)])
        .await;
    let nonsense = "nonsense-that-is-a-pasted-secret-key-0123";
    needles.push(Needle::new("pasted secret", nonsense.as_bytes()));
    scene
        .api_key_secret(
            "odd",
            &scene.user,
            &[("fingerprint", nonsense), ("user", nonsense)],
        )
        .await;
    let config = format!("[DEFAULT]\nuser = {nonsense}\nthis is no line of it {nonsense}\n");
    scene.entries("odd-config", &json!({"config": config})).await;
    let resource = scene.oci.resource_principal(None, None);
    pem_needles("resource's key", &resource.private_pem, &mut needles);
    needles.push(Needle::new("resource's token", resource.rpst.as_bytes()));
    pem_needles(
        "instance's key",
        &metadata(&scene, "/identity/key.pem"),
        &mut needles,
    );
    // How every token of the server begins, every one of the apiserver's, and what a signed request holds.
    needles.push(Needle::new(
        "a session token",
        b"eyJraWQiOiJhc3dfdGVzdCIsImFsZyI6IlJTMjU2",
    ));
    needles.push(Needle::new(
        "a ServiceAccount token",
        b"eyJhbGciOiJSUzI1NiIsImtpZCI6",
    ));
    // Without what follows: a quote is escaped in JSON.
    needles.push(Needle::new("a signature", b"Signature version="));

    let fresh = |needles: &mut Vec<Needle>, what: &str| {
        let bytes = random(32);
        needles.push(Needle::new(&format!("key of {what}"), &bytes));
        bytes
    };
    let talkers: Vec<_> = [400, 401, 409, 500, 200]
        .into_iter()
        .map(|status| {
            let bytes = fresh(&mut needles, &format!("a talker of {status}"));
            (status, talker(&bytes, status))
        })
        .collect();
    let mut endpoints: Vec<_> = talkers.iter().map(|(_, server)| server.url()).collect();
    endpoints.extend([scene.oci.url("crypto"), scene.oci.url("management")]);
    let operator = in_cluster(&scene)
        .env("OCI_RESOURCE_PRINCIPAL_VERSION", "2.2")
        .env("OCI_RESOURCE_PRINCIPAL_RPST", &resource.rpst)
        .env("OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM", &resource.private_pem)
        .env("RUST_LOG", "trace")
        .env("RUST_BACKTRACE", "full")
        .with_flags([
            "--watch-namespaces".to_owned(),
            stage.namespace.clone(),
            "--operator-identity-namespaces".to_owned(),
            stage.namespace.clone(),
            "--operator-identity-grants".to_owned(),
            grants(&scene),
            "--allowed-endpoints".to_owned(),
            endpoints.join(","),
            "--log-format".to_owned(),
            format.to_owned(),
            "--log-level".to_owned(),
            "trace".to_owned(),
        ]);
    let running = operator.start();

    let identities = [
        ("key", by_secret("oci")),
        ("coded", by_secret("coded")),
        ("instance", json!({"instancePrincipal": {}})),
        ("resource", json!({"resourcePrincipal": {}})),
        ("workload", by_account()),
    ];
    let unclassed = |mut spec: Value| {
        spec.as_object_mut().unwrap().remove("controllerClass");
        spec
    };
    // All goes well; management repeats what it is sent the while.
    scene
        .oci
        .fault(&json!({"service": "management", "kind": "echo", "times": -1}));
    for (who, credentials) in &identities {
        for format in ["kms", "blob"] {
            let name = format!("{who}-{format}");
            let bytes = fresh(&mut needles, &name);
            let copy = if format == "kms" {
                scene.kms_copy(&bytes)
            } else {
                scene.blob_copy(&bytes)
            };
            let inline = BASE64
                .decode(copy["inline"].as_str().unwrap().as_bytes())
                .unwrap();
            needles.push(Needle::new(&format!("ciphertext of {name}"), &inline));
            stage
                .apply(&name, &unclassed(scene.spec_as(credentials, &copy, &name)))
                .await;
            stage.delivered(&name, &[("root", &bytes)]).await;
        }
    }
    // Every service repeats what it is sent.
    for (service, status, who) in [
        ("crypto", 400, 0),
        ("crypto", 401, 1),
        ("crypto", 500, 3),
        ("crypto", 401, 2),
        ("crypto", 409, 4),
        ("federation", 401, 2),
        ("metadata", 500, 2),
        ("oke", 401, 4),
    ] {
        scene
            .oci
            .fault(&json!({"service": service, "kind": "echo", "status": status, "times": -1}));
        scene.oci.revoke_tokens();
        let name = format!("echo-{service}-{status}-{who}");
        let bytes = fresh(&mut needles, &name);
        let spec = scene.spec_as(&identities[who].1, &scene.kms_copy(&bytes), &name);
        stage.apply(&name, &unclassed(spec)).await;
        let ready = settled(&scene, &name).await;
        println!("{name}: {} {}", ready["reason"], ready["message"]);
        assert_ne!(ready["status"], "True", "{name}");
        // A failure of before may have to be waited for until the next try.
        within(Duration::from_mins(1), &format!("{name} repeats"), async || {
            let log = scene.oci.log();
            let repeated = log
                .iter()
                .any(|entry| echoed(entry, service) && entry["status"] == status);
            repeated.then_some(()).ok_or_else(|| "not asked yet".to_owned())
        })
        .await;
        scene.oci.clear_faults();
    }
    // A vault that tells what it opened.
    for (status, server) in &talkers {
        let name = format!("talker-{status}");
        let mut spec = scene.spec(&name, b"-");
        spec["seals"][0]["ocikms"]["cryptoEndpoint"] = json!(server.url());
        spec["seals"][0]["ocikms"]["managementEndpoint"] = json!(server.url());
        stage.apply(&name, &unclassed(spec)).await;
        let ready = settled(&scene, &name).await;
        println!("{name}: {} {}", ready["reason"], ready["message"]);
        assert_ne!(ready["status"], "True", "{name}");
    }
    // Secrets that hold nonsense.
    for secret in ["odd", "odd-config"] {
        let name = format!("by-{secret}");
        let spec = scene.spec_as(&by_secret(secret), &scene.kms_copy(b"-"), &name);
        stage.apply(&name, &unclassed(spec)).await;
        assert_eq!(settled(&scene, &name).await["reason"], "CredentialsMissing");
    }

    let log = scene.oci.log();
    for service in ["crypto", "management", "federation", "metadata", "oke"] {
        let echoed = |entry: &&Value| entry["service"] == service && entry["fault"] == "echo";
        assert!(
            log.iter().any(|entry| echoed(&entry)),
            "{service} repeated nothing"
        );
    }
    let metrics = running.metrics();
    let written = running.stop();
    assert!(written.len() > 1000, "the operator was silent at trace level");
    search(&needles, &said(stage, &written, &metrics).await);
}

fn echoed(entry: &Value, service: &str) -> bool {
    entry["service"] == service && entry["fault"] == "echo"
}

/// The operator's grants file for the scene's namespace and key.
fn grants(scene: &OciScene) -> String {
    let file = std::env::temp_dir().join(format!("autounseal-grants-{}.json", scene.stage.namespace));
    let mut grants = json!({});
    grants[&scene.stage.namespace] = json!([scene.key.id]);
    std::fs::write(&file, grants.to_string()).unwrap();
    file.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_trace_level_in_json_nothing_secret_of_oci_is_written() {
    life("oci-secrecy-json", "json").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_trace_level_in_text_nothing_secret_of_oci_is_written() {
    life("oci-secrecy-text", "text").await;
}
