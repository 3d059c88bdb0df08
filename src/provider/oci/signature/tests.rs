use aws_lc_rs::{rsa::KeyPair, signature};
use data_encoding::HEXLOWER;
use rstest::rstest;
use serde_json::Value as Json;

use super::*;

const DATE: &str = "Tue, 24 Nov 2026 16:23:12 GMT";

/// Part of the program, for nothing here may read files (security rule S9).
const VECTORS: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/vectors/oci-http-signature.json"
));

fn vectors() -> Json {
    serde_json::from_str(VECTORS).unwrap()
}

fn text<'a>(json: &'a Json, field: &str) -> &'a str {
    json[field].as_str().unwrap()
}

fn key() -> KeyPair {
    let der = BASE64.decode(text(&vectors(), "api_private_key_pkcs8_der_base64").as_bytes());
    KeyPair::from_pkcs8(&der.unwrap()).unwrap()
}

fn get() -> Unsigned<'static> {
    Unsigned {
        method: "GET",
        target: "/20180608/keys/k?limit=10",
        host: "vault.example",
        content_type: "application/json",
        body: b"",
    }
}

fn of<'a>(headers: &'a [(&'static str, String)], name: &str) -> Option<&'a str> {
    let mut found = headers.iter().filter(|(header, _)| *header == name);
    let value = found.next().map(|(_, value)| value.as_str());
    assert!(found.next().is_none(), "{name} twice");
    value
}

#[test]
fn every_request_that_oracles_sdk_signed_is_signed_alike() {
    let vectors = vectors();
    let leaf = BASE64.decode(text(&vectors, "leaf_private_key_pkcs1_der_base64").as_bytes());
    let (api, leaf) = (key(), KeyPair::from_der(&leaf.unwrap()).unwrap());
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let name = text(case, "name");
        let (_, rest) = text(case, "url").split_once("://").unwrap();
        let at = rest.find('/').unwrap();
        let sent = &case["request_headers"];
        let request = Unsigned {
            method: text(case, "method"),
            target: &rest[at..],
            host: text(sent, "host"),
            content_type: text(sent, "content-type"),
            body: case["body"].as_str().unwrap_or_default().as_bytes(),
        };
        let (form, key) = if name.starts_with("federation") {
            (Form::Federation, &leaf)
        } else {
            (Form::Service, &api)
        };
        let date = text(sent, "date");
        let signed = signing_string(&request, date, form).unwrap();
        assert_eq!(signed, text(case, "signing_string"), "{name}");
        assert_eq!(
            HEXLOWER.encode(digest::digest(&digest::SHA256, signed.as_bytes()).as_ref()),
            text(case, "signing_string_sha256_hex"),
            "{name}"
        );
        let headers = headers(key, text(case, "key_id"), &request, date, form).unwrap();
        let authorization = of(&headers, "authorization").unwrap();
        assert_eq!(authorization, text(case, "authorization_go_order"), "{name}");
        assert!(
            authorization.ends_with(&format!("signature=\"{}\"", text(case, "signature_b64"))),
            "{name}"
        );
        assert_eq!(of(&headers, "date"), Some(date), "{name}");
        assert_eq!(of(&headers, "host"), None, "{name}: the client's own");
        let with_body = text(case, "method") == "POST";
        for header in ["content-length", "content-type", "x-content-sha256"] {
            let expected = sent[header].as_str().filter(|_| with_body);
            assert_eq!(of(&headers, header), expected, "{name}: {header}");
        }
    }
}

#[rstest]
#[case("GET", false)]
#[case("HEAD", false)]
#[case("DELETE", false)]
#[case("POST", true)]
#[case("PUT", true)]
#[case("PATCH", true)]
fn a_method_decides_whether_a_body_is_signed_even_an_empty_one(
    #[case] method: &str,
    #[case] with_body: bool,
) {
    let request = Unsigned { method, ..get() };
    let signed = signing_string(&request, DATE, Form::Service).unwrap();
    assert_eq!(signed.contains("\ncontent-length: 0\n"), with_body);
    assert_eq!(
        signed.ends_with("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
        with_body
    );
    assert!(signed.contains(&format!(
        "\n(request-target): {} /20180608/",
        method.to_lowercase()
    )));
}

#[test]
fn a_body_that_would_not_be_signed_is_not_sent() {
    for method in ["GET", "HEAD", "DELETE"] {
        let request = Unsigned {
            method,
            body: b"x",
            ..get()
        };
        assert_eq!(
            signing_string(&request, DATE, Form::Service),
            Err(Unsignable::Body)
        );
    }
    for method in ["", "get", "OPTIONS", "GET /\nhost: a"] {
        let request = Unsigned { method, ..get() };
        assert_eq!(
            signing_string(&request, DATE, Form::Service),
            Err(Unsignable::Method)
        );
    }
}

#[rstest]
#[case::nothing("")]
#[case::a_line("a\nhost: other")]
#[case::a_line_of_http("a\r\nx: y")]
#[case::a_quote("a\",keyId=\"b")]
#[case::a_backslash("a\\")]
#[case::a_blank("a b")]
#[case::a_tab("a\tb")]
#[case::delete("a\u{7f}")]
#[case::not_ascii("\u{e4}")]
fn what_would_end_its_header_is_not_signed(#[case] text: &str) {
    let target = format!("/{text}");
    let path = Unsigned {
        target: if text.is_empty() { text } else { &target },
        ..get()
    };
    assert_eq!(
        signing_string(&path, DATE, Form::Service),
        Err(Unsignable::Text("path"))
    );
    let host = Unsigned { host: text, ..get() };
    for form in [Form::Service, Form::Federation] {
        assert_eq!(signing_string(&host, DATE, form), Err(Unsignable::Text("host")));
    }
    let told = headers(&key(), text, &get(), DATE, Form::Service).unwrap_err();
    assert_eq!(told, Unsignable::Text("key id"));
    assert!(text.is_empty() || !told.to_string().contains(&format!(" {text} ")));
    // A date and a content type have blanks.
    if text != "a b" {
        assert_eq!(
            signing_string(&get(), text, Form::Service),
            Err(Unsignable::Text("date"))
        );
        let post = Unsigned {
            method: "POST",
            content_type: text,
            ..get()
        };
        assert_eq!(
            signing_string(&post, DATE, Form::Service),
            Err(Unsignable::Text("content type"))
        );
    }
}

#[test]
fn a_path_starts_with_a_slash() {
    let request = Unsigned {
        target: "https://vault.example/",
        ..get()
    };
    assert_eq!(
        signing_string(&request, DATE, Form::Service),
        Err(Unsignable::Text("path"))
    );
}

#[test]
fn the_public_key_verifies_what_was_signed() {
    use aws_lc_rs::signature::KeyPair as _;
    let key = key();
    let sent = headers(&key, "a/b/c", &get(), DATE, Form::Service).unwrap();
    let (_, rest) = of(&sent, "authorization")
        .unwrap()
        .split_once("signature=\"")
        .unwrap();
    let signed = BASE64.decode(rest.trim_end_matches('"').as_bytes()).unwrap();
    let public = signature::UnparsedPublicKey::new(&signature::RSA_PKCS1_2048_8192_SHA256, key.public_key());
    let text = signing_string(&get(), DATE, Form::Service).unwrap();
    public.verify(text.as_bytes(), &signed).unwrap();
}

#[rstest]
#[case(1_795_537_392, DATE)]
#[case(0, "Thu, 01 Jan 1970 00:00:00 GMT")]
#[case(-1, "Thu, 01 Jan 1970 00:00:00 GMT")]
#[case(951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT")]
#[case(i64::MAX, "Thu, 30 Dec 9999 22:00:00 GMT")]
fn a_date_has_the_form_of_http(#[case] unix_seconds: i64, #[case] expected: &str) {
    assert_eq!(http_date(unix_seconds), expected);
}
