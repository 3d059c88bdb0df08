use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

const PASS_PHRASE: &[u8] = b"correct horse 1";

/// Parts of the program, for nothing here may read files (security rule S9).
const KEYS: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/vectors/oci-keys.json"
));
const SIGNATURES: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/vectors/oci-http-signature.json"
));

fn vectors() -> Json {
    serde_json::from_str(KEYS).unwrap()
}

fn text(json: &Json, field: &str) -> String {
    json[field].as_str().unwrap().to_owned()
}

fn keys() -> Vec<Json> {
    vectors()["keys"].as_array().unwrap().clone()
}

fn pem(name: &str) -> String {
    text(keys().iter().find(|key| key["name"] == name).unwrap(), "pem")
}

fn error(text: impl AsRef<[u8]>, pass_phrase: Option<&[u8]>) -> PemError {
    private_key(text.as_ref(), pass_phrase).unwrap_err()
}

fn opens(text: impl AsRef<[u8]>, pass_phrase: Option<&[u8]>, name: &str) {
    let key = private_key(text.as_ref(), pass_phrase).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    assert_eq!(
        fingerprint(&key).as_deref(),
        vectors()["fingerprint_md5"].as_str(),
        "{name}"
    );
}

#[test]
fn every_form_of_a_key_is_read_or_refused_for_its_own_reason() {
    for key in keys() {
        let (name, outcome, pem) = (text(&key, "name"), text(&key, "outcome"), text(&key, "pem"));
        if outcome == "opened" {
            opens(&pem, Some(PASS_PHRASE), &name);
        } else {
            assert_eq!(format!("{:?}", error(&pem, Some(PASS_PHRASE))), outcome, "{name}");
        }
    }
}

#[test]
fn an_encrypted_key_asks_for_its_pass_phrase_and_another_ignores_it() {
    for key in keys().iter().filter(|key| key["outcome"] == "opened") {
        let (name, pem) = (text(key, "name"), text(key, "pem"));
        if key["encrypted"] == true {
            assert_eq!(error(&pem, None), PemError::PassPhraseMissing, "{name}");
            assert_eq!(error(&pem, Some(b"")), PemError::PassPhraseMissing, "{name}");
            for wrong in [
                "wrong",
                "correct horse 1\n",
                " correct horse 1",
                "Correct horse 1",
            ] {
                assert_eq!(
                    error(&pem, Some(wrong.as_bytes())),
                    PemError::WrongPassPhrase,
                    "{name}"
                );
            }
        } else {
            opens(&pem, None, &name);
            opens(&pem, Some(b"wrong"), &name);
        }
    }
}

#[test]
fn a_wrong_pass_phrase_is_told_even_where_the_padding_happens_to_fit() {
    // One in 256 fits: these are enough to meet some.
    let pem = pem("old-aes-128");
    for number in 0..1500 {
        let wrong = format!("wrong {number}");
        assert_eq!(
            error(&pem, Some(wrong.as_bytes())),
            PemError::WrongPassPhrase,
            "{wrong}"
        );
    }
}

#[test]
fn a_key_is_found_however_a_secret_holds_it() {
    for form in ["pkcs8", "pkcs1", "old-aes-256", "pbes2-aes-256-sha512"] {
        let pem = pem(form);
        let indented = pem.replace('\n', "\n    ");
        for (what, text) in [
            ("CRLF", pem.replace('\n', "\r\n")),
            ("CR", pem.replace('\n', "\r")),
            ("blank lines", format!("\n \r\n\t{pem}\n \n")),
            ("no newline at the end", pem.trim_end().to_owned()),
            ("indented", format!("    {indented}")),
            (
                "what the console adds",
                format!("{}\nOCI_API_KEY", pem.trim_end()),
            ),
            (
                "what openssl prints before",
                format!("Bag Attributes\n    friendlyName: me\n{pem}"),
            ),
            (
                "a certificate before",
                format!("{}{pem}", certificate_pem("utf8")),
            ),
            ("another key after", format!("{pem}{}", self::pem("ec-pkcs8"))),
            (
                "a block that is cut off before",
                format!("-----BEGIN X-----\nAAAA\n{pem}"),
            ),
        ] {
            opens(&text, Some(PASS_PHRASE), &format!("{form}: {what}"));
        }
    }
    for form in ["pkcs8", "pkcs1", "pbes2-aes-256-sha512"] {
        let pem = pem(form);
        let lines: Vec<&str> = pem.lines().collect();
        let (first, body, last) = (
            lines[0],
            lines[1..lines.len() - 1].concat(),
            lines[lines.len() - 1],
        );
        opens(format!("{first}\n{body}\n{last}"), Some(PASS_PHRASE), "one line");
        opens(
            format!("{first}{body}{last}"),
            Some(PASS_PHRASE),
            "no line at all",
        );
        opens(pem.replace('\n', " "), Some(PASS_PHRASE), "blanks for lines");
        let digits: Vec<String> = body.chars().map(String::from).collect();
        opens(
            format!("{first}\n{}\n{last}", digits.join("\n")),
            Some(PASS_PHRASE),
            "a digit a line",
        );
    }
}

#[test]
fn bytes_are_believed_before_labels() {
    let pkcs1 = pem("pkcs1").replace("RSA PRIVATE KEY", "PRIVATE KEY");
    opens(pkcs1, None, "PKCS#1 called PKCS#8");
    let pkcs8 = pem("pkcs8").replace("PRIVATE KEY", "RSA PRIVATE KEY");
    opens(pkcs8, None, "PKCS#8 called PKCS#1");
    let sec1 = pem("ec-sec1").replace("EC PRIVATE KEY", "PRIVATE KEY");
    assert_eq!(error(sec1, None), PemError::NotRsa);
}

#[test]
fn what_is_cut_off_is_damaged_wherever_it_is_cut() {
    for form in ["pkcs8", "pkcs1", "old-aes-128", "pbes2-aes-256-default"] {
        let pem = pem(form);
        let label = pem.find("KEY-----").unwrap() + "KEY-----".len();
        let end = pem.find("\n-----END").unwrap();
        for at in label..pem.trim_end().len() - 1 {
            assert_eq!(
                error(&pem[..at], Some(PASS_PHRASE)),
                PemError::Damaged,
                "{form} at {at}"
            );
        }
        for missing in [1, 4, 64, 100, 1000] {
            let text = format!("{}{}", &pem[..end - missing], &pem[end..]);
            let told = error(text, Some(PASS_PHRASE));
            // Where whole blocks of the ciphertext are left, nobody can tell which of the two it is.
            assert!(
                [PemError::Damaged, PemError::WrongPassPhrase].contains(&told),
                "{form} without {missing}: {told:?}"
            );
        }
    }
    for (from, to) in [
        ("MII", "M!I"),
        ("MII", "MI"),
        ("MII", "AAAA"),
        ("-----END", "====-----END"),
    ] {
        assert_eq!(
            error(pem("pkcs8").replacen(from, to, 1), None),
            PemError::Damaged,
            "{from} {to}"
        );
    }
    assert_eq!(
        error("-----BEGIN PRIVATE KEY-----\n\n-----END PRIVATE KEY-----", None),
        PemError::Damaged
    );
}

#[test]
fn a_key_whose_numbers_do_not_belong_together_is_damaged() {
    let pem = pem("pkcs1");
    let lines: Vec<&str> = pem.lines().collect();
    // Line 20 is of the primes: the modulus is no longer their product.
    let changed = pem.replacen(lines[20], &lines[20].chars().rev().collect::<String>(), 1);
    assert_eq!(error(changed, None), PemError::Damaged);
}

#[test]
fn headers_of_the_old_encryption_are_read_with_care() {
    let pem = pem("old-aes-256");
    let info = pem.lines().find(|line| line.starts_with("DEK-Info")).unwrap();
    for (what, instead, expected) in [
        ("no DEK-Info", "X: Y", PemError::Damaged),
        ("no vector", "DEK-Info: AES-256-CBC", PemError::Damaged),
        ("a short vector", "DEK-Info: AES-256-CBC,00", PemError::Damaged),
        ("no hex", "DEK-Info: AES-256-CBC,zz", PemError::Damaged),
        (
            "DES",
            "DEK-Info: DES-EDE3-CBC,0011223344556677",
            PemError::EncryptionUnsupported,
        ),
        ("GCM", "DEK-Info: AES-256-GCM,00", PemError::EncryptionUnsupported),
    ] {
        assert_eq!(
            error(pem.replace(info, instead), Some(PASS_PHRASE)),
            expected,
            "{what}"
        );
    }
    opens(
        pem.replace(info, &info.to_lowercase()),
        Some(PASS_PHRASE),
        "lower-case",
    );
}

#[test]
fn a_large_or_hostile_text_costs_little() {
    for filler in [
        "A",
        "-",
        "-----BEGIN ",
        "-----BEGIN A-----",
        "-----BEGIN PRIVATE KEY-----",
        ":",
        "a:\n",
        "\n",
    ] {
        let garbage = filler.repeat(MAX_BYTES / filler.len());
        let whole = format!("-----BEGIN PRIVATE KEY-----\n{garbage}");
        for text in [&garbage[..], &whole[..MAX_BYTES]] {
            assert!(
                [PemError::NoPrivateKey, PemError::Damaged].contains(&error(text, Some(PASS_PHRASE))),
                "{filler:?}"
            );
            assert!(certificates(text.as_bytes()).is_err(), "{filler:?}");
        }
        assert_eq!(error(whole, None), PemError::TooLarge);
    }
    // The largest that is looked at, with the key at its end.
    let pem = pem("pkcs8");
    opens(
        format!("{}{pem}", "x".repeat(MAX_BYTES - pem.len())),
        None,
        "at the end",
    );
}

#[test]
fn no_error_repeats_the_text() {
    for key in keys().iter().filter(|key| key["outcome"] != "opened") {
        let told = error(text(key, "pem"), Some(PASS_PHRASE)).to_string();
        assert!(told.contains("; "), "names the fix: {told}");
        assert!(!told.contains("correct horse"), "{told}");
        assert!(!told.contains("MII"), "{told}");
    }
}

fn certificate_pem(name: &str) -> String {
    let vectors = vectors();
    let all = vectors["certificates"].as_array().unwrap();
    text(all.iter().find(|one| one["name"] == name).unwrap(), "pem")
}

#[test]
fn every_certificate_is_read_with_the_tenancy_it_names() {
    for vector in vectors()["certificates"].as_array().unwrap() {
        let (name, pem) = (text(vector, "name"), text(vector, "pem"));
        let read = certificate(pem.as_bytes()).unwrap();
        assert_eq!(read.tenancy.as_deref(), vector["tenancy"].as_str(), "{name}");
        let until = Duration::from_secs(vector["not_after_unix"].as_u64().unwrap());
        assert_eq!(read.not_after, UNIX_EPOCH + until, "{name}");
        assert_eq!(
            sha1_fingerprint(&read.der),
            text(vector, "sha1_fingerprint"),
            "{name}"
        );
        assert_eq!(
            sha256_fingerprint(&read.der),
            text(vector, "sha256_fingerprint"),
            "{name}"
        );
        let lines: Vec<&str> = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        assert_eq!(read.base64, lines.concat(), "{name}");
    }
}

#[test]
fn what_oracles_sdk_signed_with_and_sent_is_read_alike() {
    let vectors: Json = serde_json::from_str(SIGNATURES).unwrap();
    let leaf = text(&vectors, "leaf_certificate_pem");
    let read = certificate(leaf.as_bytes()).unwrap();
    assert_eq!(read.tenancy.as_deref(), vectors["tenancy"].as_str());
    assert_eq!(
        sha1_fingerprint(&read.der),
        text(&vectors, "leaf_fingerprint_sha1")
    );
    assert_eq!(
        sha256_fingerprint(&read.der),
        text(&vectors, "leaf_fingerprint_sha256")
    );
    let sent = vectors["cases"]
        .as_array()
        .unwrap()
        .iter()
        .find(|case| case["name"] == "federation-x509-sha1");
    assert!(text(sent.unwrap(), "body").contains(&read.base64));
    let pkcs8 = text(&vectors, "api_private_key_pkcs8_der_base64");
    let key = format!("-----BEGIN PRIVATE KEY-----\n{pkcs8}\n-----END PRIVATE KEY-----");
    let key = private_key(key.as_bytes(), None).unwrap();
    assert_eq!(
        fingerprint(&key).as_deref(),
        vectors["api_public_key_fingerprint_md5"].as_str()
    );
}

#[test]
fn a_file_of_intermediates_may_hold_several_certificates() {
    let (one, two) = (certificate_pem("utf8"), certificate_pem("no-tenancy"));
    let both = certificates(format!("{one}text between\n{two}").as_bytes()).unwrap();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0], certificate(one.as_bytes()).unwrap());
    assert_eq!(both[1], certificate(two.as_bytes()).unwrap());
    for text in ["", "text", &pem("pkcs8")] {
        assert_eq!(certificate(text.as_bytes()), Err(PemError::NoCertificate));
        assert_eq!(certificates(text.as_bytes()), Err(PemError::NoCertificate));
    }
    let cut = &two[..two.len() - 20];
    assert_eq!(
        certificates(format!("{one}{cut}").as_bytes()),
        Err(PemError::CertificateDamaged)
    );
    let key = pem("pkcs8").replace("PRIVATE KEY", "CERTIFICATE");
    assert_eq!(certificate(key.as_bytes()), Err(PemError::CertificateDamaged));
}

/// Bytes that look like PEM often enough to get past the armour.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let label = prop::sample::select(vec![
        "PRIVATE KEY",
        "RSA PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
        "CERTIFICATE",
    ]);
    let dek = "DEK-Info: (AES-128-CBC|AES-256-CBC|x)(,[0-9A-F]{0,40})?\n|";
    let bytes = prop::collection::vec(any::<u8>(), 0..400);
    let armoured = (label, dek, bytes).prop_map(|(label, dek, bytes)| {
        let proc = if dek.is_empty() {
            ""
        } else {
            "Proc-Type: 4,ENCRYPTED\n"
        };
        let body = data_encoding::BASE64.encode(&bytes);
        format!("-----BEGIN {label}-----\n{proc}{dek}\n{body}\n-----END {label}-----\n").into_bytes()
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..600), armoured]
}

/// Real keys and certificates with some bytes changed: what gets deepest.
fn changed() -> impl Strategy<Value = Vec<u8>> {
    let vectors = vectors();
    let all: Vec<Vec<u8>> = ["keys", "certificates"]
        .iter()
        .flat_map(|part| vectors[*part].as_array().unwrap())
        // Random counts of rounds below the bound would take the whole day.
        .filter(|one| !text(one, "name").starts_with("pbes2"))
        .map(|one| text(one, "pem").into_bytes())
        .collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4);
    (prop::sample::select(all), changes).prop_map(|(mut pem, changes)| {
        for (at, byte) in changes {
            let at = at.index(pem.len());
            pem[at] = byte;
        }
        pem
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(text in prop_oneof![texts(), changed()], pass_phrase in any::<Option<[u8; 8]>>()) {
        let _ = private_key(&text, pass_phrase.as_ref().map(<[u8; 8]>::as_slice));
        let _ = certificate(&text);
        let _ = certificates(&text);
    }
}
