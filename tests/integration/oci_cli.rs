//! The command line on OCI: whose identity it takes, from where, and what it never sends or says.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::{
    http::{Reply, Server},
    needle::Needle,
    oci::{ApiKey, Key, Oci},
    oci_caller::{Caller, Done, manifest, profile, root, seal},
    stage::random,
};

/// Wraps with the endpoints of the file trusted.
fn wrap(caller: &Caller, oci: &Oci, key: &Key, secret: &[u8], more: &[&str]) -> Done {
    let file = caller.file("seals.yaml", manifest(&seal(oci, key), &json!([])));
    let mut arguments = vec![
        "wrap",
        "-f",
        &file,
        "--key",
        "root",
        "--trust-file",
        "--to",
        &key.id,
    ];
    arguments.extend(more);
    caller.run(&arguments, secret)
}

/// Opens what lies in a manifest with these keys.
fn unwrap(caller: &Caller, oci: &Oci, key: &Key, keys: &Value) -> Done {
    let file = caller.file("whole.yaml", manifest(&seal(oci, key), keys));
    caller.run(&["unwrap", "-f", &file, "--key", "root", "--trust-file"], b"")
}

/// A copy that somebody else made.
fn copy(oci: &Oci, key: &Key, secret: &[u8]) -> Value {
    root(
        "blobinfo",
        &data_encoding::BASE64.encode(&oci.wrapped(key, secret)),
    )
}

/// Opens a copy; who the server saw.
fn opened_as(caller: &Caller, oci: &Oci) -> String {
    let (key, secret) = (oci.key(), random(32));
    oci.clear_log();
    let done = unwrap(caller, oci, &key, &copy(oci, &key, &secret));
    assert!(done.ok() == secret);
    let log = oci.log();
    let decrypt = log.iter().find(|entry| entry["service"] == "crypto").unwrap();
    decrypt["principal"].as_str().unwrap().to_owned()
}

/// Fails to open a copy; what was said.
fn refused(caller: &Caller, oci: &Oci) -> String {
    let key = oci.key();
    let done = unwrap(caller, oci, &key, &copy(oci, &key, &random(32)));
    assert_eq!((done.code, done.out.len()), (1, 0), "{}", done.err);
    done.err
}

/// No form of these stands in the text.
fn silent_about(text: &str, secrets: &[(&str, &[u8])]) {
    for (what, bytes) in secrets {
        let needle = Needle::new(what, bytes);
        assert_eq!(needle.found_in(text.as_bytes()), None, "{what} in {text}");
    }
}

/// A whole line of a PEM, near its end: before it an old one has headers.
fn body(pem: &str) -> &[u8] {
    pem.lines().rev().nth(3).unwrap().as_bytes()
}

#[test]
fn a_key_is_wrapped_pasted_and_unwrapped_in_both_formats() {
    let oci = Oci::start();
    let (key, user) = (oci.key(), oci.api_key("pkcs8", None));
    let caller = Caller::with(&user);
    let bound = "autounseal.dev/bound-namespace=apps";
    for (format, contexts) in [
        ("blobinfo", vec![]),
        ("kms", vec![]),
        ("kms", vec!["Tool=bank-vaults"]),
        ("kms", vec![bound, "Tool=bank-vaults"]),
    ] {
        oci.clear_log();
        let secret = random(32);
        let mut more = vec!["--format", format];
        for context in &contexts {
            more.extend(["--context", context]);
        }
        let done = wrap(&caller, &oci, &key, &secret, &more);
        silent_about(
            &done.err,
            &[("the key", &secret), ("the private key", body(&user.pem))],
        );
        // YAML to paste, as it is.
        let printed: Value = serde_yaml::from_slice(&done.ok()).unwrap();
        let copy = &printed["wrapped"][0];
        assert_eq!((&copy["seal"], &copy["format"]), (&json!("oci"), &json!(format)));
        assert_eq!(
            copy["context"].as_object().map_or(0, serde_json::Map::len),
            contexts.len()
        );
        let keys = json!([{
            "name": "root", "wrapped": printed["wrapped"], "checkValue": printed["checkValue"],
        }]);
        assert!(unwrap(&caller, &oci, &key, &keys).ok() == secret, "{format}");
        for entry in oci.log() {
            assert_eq!(
                (&entry["status"], &entry["principal"]),
                (&json!(200), &json!(user.user))
            );
        }
        // What is bound to a context does not open without it.
        if !contexts.is_empty() {
            let mut without = keys;
            without[0]["wrapped"][0]
                .as_object_mut()
                .unwrap()
                .remove("context");
            let done = unwrap(&caller, &oci, &key, &without);
            assert_eq!((done.code, done.out.len()), (1, 0), "{}", done.err);
        }
    }
}

#[test]
fn a_context_goes_only_with_the_vaults_own_ciphertext() {
    let oci = Oci::start();
    let key = oci.key();
    let caller = Caller::with(&oci.api_key("pkcs8", None));
    for more in [
        vec!["--context", "Tool=bank-vaults"],
        vec![
            "--format",
            "kms",
            "--context",
            "autounseal.dev/bound-namespace=elsewhere",
        ],
    ] {
        let done = wrap(&caller, &oci, &key, &random(32), &more);
        assert_eq!(done.code, 2, "{}", done.err);
    }
    // Over the service's limit, before it is asked.
    let long = format!("a={}", "x".repeat(4096));
    let done = wrap(
        &caller,
        &oci,
        &key,
        &random(32),
        &["--format", "kms", "--context", &long],
    );
    assert_eq!(done.code, 1, "{}", done.err);
    assert_eq!(oci.log().len(), 0);
}

#[test]
fn the_variable_names_the_configuration_only_where_home_has_none() {
    let oci = Oci::start();
    let (home, named) = (oci.api_key("pkcs8", None), oci.api_key("pkcs1", None));
    for has_home in [false, true] {
        let caller = if has_home {
            Caller::with(&home)
        } else {
            Caller::new()
        };
        let pem = caller.file("elsewhere/key.pem", &named.pem);
        let config = caller.file("elsewhere/config", profile("DEFAULT", &named, &pem));
        let caller = caller.env("OCI_CONFIG_FILE", config);
        let expected = if has_home { &home } else { &named };
        assert_eq!(opened_as(&caller, &oci), expected.user);
    }
}

#[test]
fn paths_that_begin_with_a_tilde_are_those_of_home() {
    let oci = Oci::start();
    let user = oci.api_key("pkcs8", None);
    let caller = Caller::new();
    caller.file("keys/mine.pem", &user.pem);
    caller.file("keys/config", profile("DEFAULT", &user, "~/keys/mine.pem"));
    let caller = caller.env("OCI_CONFIG_FILE", "~/keys/config");
    assert_eq!(opened_as(&caller, &oci), user.user);
}

/// Two profiles, `DEFAULT` and `PROD`.
fn two_profiles(default: &ApiKey, prod: &ApiKey) -> Caller {
    let caller = Caller::new();
    let of = |name: &str, key: &ApiKey| {
        let pem = caller.file(&format!(".oci/{name}.pem"), &key.pem);
        profile(name, key, &pem)
    };
    let config = format!("# work\n{}\n{}", of("DEFAULT", default), of("PROD", prod));
    caller.file(".oci/config", config);
    caller
}

#[test]
fn the_profile_is_the_one_that_the_variable_names() {
    let oci = Oci::start();
    let (default, prod) = (oci.api_key("pkcs8", None), oci.api_key("pkcs8", None));
    let caller = two_profiles(&default, &prod);
    assert_eq!(opened_as(&caller, &oci), default.user);
    let caller = caller.env("OCI_CLI_PROFILE", "PROD");
    assert_eq!(opened_as(&caller, &oci), prod.user);

    // A name that is not there is told with those that are, and nobody is asked.
    let caller = caller.env("OCI_CLI_PROFILE", "PRDO");
    oci.clear_log();
    let told = refused(&caller, &oci);
    for part in ["CredentialsMissing", ".oci/config", "PRDO", "DEFAULT", "PROD"] {
        assert!(told.contains(part), "{part} in {told}");
    }
    silent_about(&told, &[("the private key", body(&default.pem))]);
    assert_eq!(oci.log().len(), 0);
}

#[test]
fn an_encrypted_key_is_opened_with_the_pass_phrase_of_its_profile() {
    let oci = Oci::start();
    let phrase = "correct horse = battery";
    for form in ["pkcs8-encrypted", "traditional-encrypted"] {
        let user = oci.api_key(form, Some(phrase));
        let with = |phrase: &str| {
            let caller = Caller::new();
            let pem = caller.file(".oci/key.pem", &user.pem);
            let line = if phrase.is_empty() {
                String::new()
            } else {
                format!("pass_phrase={phrase}\n")
            };
            caller.file(".oci/config", profile("DEFAULT", &user, &pem) + &line);
            caller
        };
        assert_eq!(opened_as(&with(phrase), &oci), user.user, "{form}");
        oci.clear_log();
        let wrong = "another pass phrase";
        for (given, says) in [(wrong, "pass phrase"), ("", "pass phrase")] {
            let told = refused(&with(given), &oci);
            assert!(
                told.contains("CredentialsMissing") && told.contains(says),
                "{form}: {told}"
            );
            let secrets: [(&str, &[u8]); 3] = [
                ("the pass phrase", phrase.as_bytes()),
                ("the wrong one", wrong.as_bytes()),
                ("the private key", body(&user.pem)),
            ];
            silent_about(&told, &secrets);
        }
        assert_eq!(oci.log().len(), 0);
    }
}

/// A profile as `oci session authenticate` writes it.
fn session(token: &str, pem: &str) -> Caller {
    let caller = Caller::new();
    let token = caller.file(".oci/sessions/DEFAULT/token", token);
    let pem = caller.file(".oci/sessions/DEFAULT/oci_api_key.pem", pem);
    let fingerprint = ["00"; 16].join(":");
    let config = format!(
        "[DEFAULT]\nfingerprint={fingerprint}\nkey_file={pem}\ntenancy=ocid1.tenancy.oc1..aaaaaaaamine\n\
         region=eu-frankfurt-1\nsecurity_token_file={token}\n"
    );
    caller.file(".oci/config", config);
    caller
}

#[test]
fn a_session_of_a_security_token_is_used_until_it_ends() {
    let oci = Oci::start();
    let made = oci.resource_principal(None, None);
    assert_eq!(
        opened_as(&session(&made.rpst, &made.private_pem), &oci),
        made.resource
    );
    // Editors end files with a line end.
    let token = format!("{}\n", made.rpst);
    assert_eq!(
        opened_as(&session(&token, &made.private_pem), &oci),
        made.resource
    );

    // One that has ended is not sent.
    let past = oci.resource_principal(Some(-60), None);
    oci.clear_log();
    let told = refused(&session(&past.rpst, &past.private_pem), &oci);
    assert!(
        told.contains("CredentialsExpired") && told.contains("oci session refresh"),
        "{told}"
    );
    assert_eq!(oci.log().len(), 0);

    // One that OCI no longer takes is told as that.
    oci.revoke_tokens();
    let told = refused(&session(&made.rpst, &made.private_pem), &oci);
    assert!(told.contains("CredentialsRejected"), "{told}");
    for made in [&past, &made] {
        let signature = made.rpst.rsplit('.').next().unwrap();
        silent_about(
            &told,
            &[
                ("the token", signature.as_bytes()),
                ("the private key", body(&made.private_pem)),
            ],
        );
    }
}

#[test]
fn without_any_configuration_the_caller_is_the_instance() {
    let oci = Oci::start();
    let caller = Caller::new()
        .env("OCI_METADATA_BASE_URL", oci.url("metadata"))
        .env("OCI_SDK_AUTH_CLIENT_REGION_URL", oci.url("federation"));
    assert_eq!(opened_as(&caller, &oci), oci.fact("instance"));
    assert_eq!(oci.count("federation", "/v1/x509"), 1);

    // Neither file nor metadata service: all that was looked for is named.
    let nobody = Caller::new().env("OCI_METADATA_BASE_URL", "http://127.0.0.1:9/opc/v2");
    let told = refused(&nobody, &oci);
    for part in ["~/.oci/config", "OCI_CONFIG_FILE", "instance principal"] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[test]
fn a_configuration_that_does_not_work_is_never_passed_over() {
    let oci = Oci::start();
    let user = oci.api_key("pkcs8", None);
    let caller = Caller::new();
    caller.file(".oci/config", profile("DEFAULT", &user, "/nonexistent/key.pem"));
    let caller = caller
        .env("OCI_METADATA_BASE_URL", oci.url("metadata"))
        .env("OCI_SDK_AUTH_CLIENT_REGION_URL", oci.url("federation"));
    let told = refused(&caller, &oci);
    assert!(
        told.contains("CredentialsMissing") && told.contains("key_file"),
        "{told}"
    );
    assert_eq!(oci.log().len(), 0, "the instance principal was not asked for");
}

#[test]
fn a_destination_that_the_file_does_not_name_gets_nothing() {
    let oci = Oci::start();
    let (key, other) = (oci.key(), oci.key());
    let caller = Caller::with(&oci.api_key("pkcs8", None));
    let file = caller.file("seals.yaml", manifest(&seal(&oci, &key), &json!([])));
    let arguments = ["wrap", "-f", &file, "--key", "root", "--trust-file", "--to"];
    for to in [other.id.as_str(), &oci.fact("vault"), "https://evil.example"] {
        let done = caller.run(&[&arguments[..], &[to]].concat(), &random(32));
        assert_eq!((done.code, done.out.len()), (2, 0), "{to}: {}", done.err);
    }
    let done = caller.run(&arguments[..6], &random(32));
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("--to"), "{}", done.err);
    assert_eq!(oci.log().len(), 0);
}

#[test]
fn endpoints_that_are_not_oracles_are_refused_without_trust() {
    let oci = Oci::start();
    let trap = Server::start(|_| Reply::new(200, "application/json", "{}"));
    let key = oci.key();
    let caller = Caller::with(&oci.api_key("pkcs8", None));
    let url = trap.url();
    let secure = url.replace("http://", "https://");
    let region = oci.fact("region");
    let oracles = |which: &str| format!("https://vault-{which}.kms.{region}.oraclecloud.com");
    // One of both is enough, whichever it is.
    for (crypto, management) in [
        (url.clone(), url.clone()),
        (secure.clone(), secure.clone()),
        (url.clone(), oracles("management")),
        (oracles("crypto"), secure),
        (
            format!(
                "https://vault-crypto.kms.{region}.oraclecloud.com@{}",
                trap.address()
            ),
            oracles("management"),
        ),
        // Another region's, and a vault's other endpoint.
        (
            "https://vault-crypto.kms.us-phoenix-1.oraclecloud.com".to_owned(),
            oracles("management"),
        ),
        (oracles("management"), oracles("management")),
    ] {
        let hostile = json!({"keyID": key.id, "cryptoEndpoint": crypto, "managementEndpoint": management});
        let seals = caller.file("seals.yaml", manifest(&hostile, &json!([])));
        let whole = caller.file("whole.yaml", manifest(&hostile, &copy(&oci, &key, &random(32))));
        oci.clear_log();
        let secret = random(32);
        for done in [
            caller.run(&["wrap", "-f", &seals, "--key", "root", "--to", &key.id], &secret),
            caller.run(&["unwrap", "-f", &whole, "--key", "root"], b""),
        ] {
            assert_eq!((done.code, done.out.len()), (1, 0), "{crypto}: {}", done.err);
            assert!(done.err.contains("EndpointNotAllowed"), "{crypto}: {}", done.err);
            silent_about(&done.err, &[("the key", &secret)]);
        }
        assert_eq!(oci.log().len(), 0, "{crypto}");
    }
    assert_eq!((trap.connections(), trap.bytes()), (0, 0));
}

#[test]
fn a_key_in_a_file_is_the_callers_alone() {
    let oci = Oci::start();
    let (key, secret) = (oci.key(), random(32));
    let caller = Caller::with(&oci.api_key("pkcs8", None));
    let file = caller.file(
        "whole.yaml",
        manifest(&seal(&oci, &key), &copy(&oci, &key, &secret)),
    );
    let out = caller.path("root.key");
    let arguments = [
        "unwrap",
        "-f",
        &file,
        "--key",
        "root",
        "--trust-file",
        "--out-file",
        out.to_str().unwrap(),
    ];
    assert!(caller.run(&arguments, b"").ok().is_empty());
    assert!(std::fs::read(&out).unwrap() == secret);
    let mode = std::fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Nor is it written over.
    assert_ne!(caller.run(&arguments, b"").code, 0);
    assert!(std::fs::read(&out).unwrap() == secret);
}

#[test]
fn what_the_vault_answers_is_never_repeated() {
    let oci = Oci::start();
    let (key, user, secret) = (oci.key(), oci.api_key("pkcs8", None), random(32));
    let caller = Caller::with(&user);
    let keys = copy(&oci, &key, &secret);
    for fault in [
        json!({"kind": "echo", "status": 400, "code": "InvalidParameter"}),
        json!({"kind": "echo", "status": 404, "code": "NotAuthorizedOrNotFound"}),
        json!({"kind": "echo", "status": 401, "code": "NotAuthenticated"}),
        json!({"kind": "garbage", "status": 200, "message": "Authorization: Signature version"}),
    ] {
        oci.clear_faults();
        let mut fault = fault;
        fault["service"] = json!("crypto");
        fault["times"] = json!(-1);
        oci.fault(&fault);
        for done in [
            wrap(&caller, &oci, &key, &secret, &["--format", "kms"]),
            unwrap(&caller, &oci, &key, &keys),
        ] {
            assert_eq!((done.code, done.out.len()), (1, 0), "{fault}: {}", done.err);
            silent_about(
                &done.err,
                &[
                    ("the key", &secret),
                    ("the private key", body(&user.pem)),
                    ("a signature", b"Signature version"),
                ],
            );
        }
    }
}

#[test]
fn a_manifest_with_oci_is_checked_offline() {
    let oci = Oci::start();
    let key = oci.key();
    let caller = Caller::new();
    for (credentials, word) in [
        (
            json!({"apiKey": {"secretRef": {"name": "mine"}}}),
            "API key in Secret mine",
        ),
        (
            json!({"workloadIdentity": {"serviceAccountRef": {"name": "app"}}}),
            "ServiceAccount app",
        ),
        (json!({"instancePrincipal": {}}), "instance principal"),
        (json!({"resourcePrincipal": {}}), "resource principal"),
    ] {
        let mut ocikms = seal(&oci, &key);
        ocikms["credentials"] = credentials;
        let file = caller.file("a.yaml", manifest(&ocikms, &root("blobinfo", "AAAA")));
        let done = caller.run(&["check", "-f", &file], b"");
        let told = String::from_utf8(done.ok()).unwrap();
        for part in ["seal oci", "OCI KMS", &key.id, word] {
            assert!(told.contains(part), "{part} in {told}");
        }
        let report = caller.run(&["check", "-o", "json", "-f", &file], b"").json();
        assert!(report.to_string().contains(&key.id), "{report}");
    }
    let mut wrong = seal(&oci, &key);
    wrong["credentials"] = json!({"apiKey": {"secretRef": {"name": "a"}}, "instancePrincipal": {}});
    let file = caller.file("b.yaml", manifest(&wrong, &root("blobinfo", "AAAA")));
    assert_eq!(caller.run(&["check", "-f", &file], b"").code, 1);
    assert_eq!(oci.log().len(), 0, "nobody was asked");
}
