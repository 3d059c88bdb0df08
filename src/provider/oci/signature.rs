//! The signature of OCI requests, version 1: RSA PKCS#1 v1.5 with SHA-256 over some headers.
//!
//! Source: docs.oracle.com, "Request Signatures"; draft-cavage-http-signatures-08; `oracle/oci-go-sdk`
//! `common/http_signer.go`. `tests/vectors/oci-http-signature.json` has what Oracle's Python SDK makes of it.

use std::borrow::Cow;

use aws_lc_rs::{digest, rand::SystemRandom, rsa::KeyPair, signature::RSA_PKCS1_SHA256};
use data_encoding::BASE64;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

#[cfg(test)]
mod tests;

const TARGET: &str = "(request-target)";
const HOST: &str = "host";

/// Which headers are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `date (request-target) host`, and with a body `content-length content-type x-content-sha256`.
    Service,
    /// The same without `host`: how both SDKs ask the federation endpoint for a token.
    Federation,
}

/// A request as it will be sent.
#[derive(Clone, Copy, Debug)]
pub struct Unsigned<'a> {
    /// `GET`, `HEAD`, `DELETE`, `POST`, `PUT` or `PATCH`.
    pub method: &'a str,
    /// The path with its query, exactly as sent.
    pub target: &'a str,
    /// The header `host` exactly as sent, with the port unless it is the scheme's own.
    pub host: &'a str,
    /// Used with a method that has a body only.
    pub content_type: &'a str,
    /// Empty for a method that has none.
    pub body: &'a [u8],
}

/// Why a request is not signed. Nothing of it is repeated: key ids hold tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsignable {
    /// A method whose signed headers nobody has specified.
    #[error("the request is not signed: OCI signs GET, HEAD, DELETE, POST, PUT and PATCH in capitals only")]
    Method,
    /// A body that the signature would not cover.
    #[error("the request is not signed: a GET, HEAD or DELETE has a body that OCI's signature leaves open")]
    Body,
    /// A part that would change the meaning of the header it stands in.
    #[error(
        "the request is not signed: its {0} is empty or has blanks, quotes, control or other characters outside of \
         ASCII; correct the OCI configuration that it comes from"
    )]
    Text(&'static str),
    /// The library refused.
    #[error(
        "the request is not signed: the private key cannot sign; check it with openssl pkey -noout -check"
    )]
    Key,
}

/// The headers that the request is sent with: `date`; `content-length`, `content-type` and `x-content-sha256` where
/// the method has a body; `authorization`. `host` is the client's own.
///
/// `authorization` holds the key id, which is a bearer token in all but name where it starts with `ST$`: mark the
/// header as sensitive. A date older than five minutes is refused by the service, so sign each try anew.
pub fn headers(
    key: &KeyPair,
    key_id: &str,
    request: &Unsigned<'_>,
    date: &str,
    form: Form,
) -> Result<Vec<(&'static str, String)>, Unsignable> {
    if !is_word(key_id) {
        return Err(Unsignable::Text("key id"));
    }
    let signed = signed(request, date, form)?;
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        joined(&signed).as_bytes(),
        &mut signature,
    )
    .map_err(|_| Unsignable::Key)?;
    let names: Vec<&str> = signed.iter().map(|(name, _)| *name).collect();
    let authorization = format!(
        "Signature version=\"1\",headers=\"{}\",keyId=\"{key_id}\",algorithm=\"rsa-sha256\",signature=\"{}\"",
        names.join(" "),
        BASE64.encode(&signature)
    );
    Ok(signed
        .into_iter()
        .filter(|(name, _)| ![TARGET, HOST].contains(name))
        .map(|(name, value)| (name, value.into_owned()))
        .chain([("authorization", authorization)])
        .collect())
}

/// The text that is signed: a line a header, joined by `\n`, with none at the end.
pub fn signing_string(request: &Unsigned<'_>, date: &str, form: Form) -> Result<String, Unsignable> {
    Ok(joined(&signed(request, date, form)?))
}

/// A time as the header `date` wants it: `Tue, 24 Nov 2026 16:23:12 GMT`. What no such date can say becomes the
/// nearest that it can.
///
/// Source: RFC 9110 section 5.6.7, IMF-fixdate.
pub fn http_date(unix_seconds: i64) -> String {
    // Before the year 0 and after 9999 there is no such date; nor is there a clock.
    let seconds = unix_seconds.clamp(0, Timestamp::MAX.as_second());
    Timestamp::from_second(seconds)
        .and_then(|at| DateTimePrinter::new().timestamp_to_rfc9110_string(&at))
        .unwrap_or_default()
}

/// Names and values in the order of signing, which is the order of the SDKs.
type Signed<'a> = Vec<(&'static str, Cow<'a, str>)>;

fn signed<'a>(request: &Unsigned<'a>, date: &'a str, form: Form) -> Result<Signed<'a>, Unsignable> {
    let with_body = match request.method {
        "POST" | "PUT" | "PATCH" => true,
        "GET" | "HEAD" | "DELETE" if request.body.is_empty() => false,
        "GET" | "HEAD" | "DELETE" => return Err(Unsignable::Body),
        _ => return Err(Unsignable::Method),
    };
    if !is_phrase(date) {
        return Err(Unsignable::Text("date"));
    }
    if !is_word(request.target) || !request.target.starts_with('/') {
        return Err(Unsignable::Text("path"));
    }
    if !is_word(request.host) {
        return Err(Unsignable::Text("host"));
    }
    let target = format!("{} {}", request.method.to_ascii_lowercase(), request.target);
    let mut signed = vec![("date", date.into()), (TARGET, target.into())];
    match form {
        Form::Service => signed.push((HOST, request.host.into())),
        Form::Federation => {}
    }
    // An empty body is signed like any other.
    if with_body {
        if !is_phrase(request.content_type) {
            return Err(Unsignable::Text("content type"));
        }
        let sum = digest::digest(&digest::SHA256, request.body);
        signed.push(("content-length", request.body.len().to_string().into()));
        signed.push(("content-type", request.content_type.into()));
        signed.push(("x-content-sha256", BASE64.encode(sum.as_ref()).into()));
    }
    Ok(signed)
}

fn joined(signed: &Signed<'_>) -> String {
    let lines: Vec<String> = signed
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    lines.join("\n")
}

/// Visible ASCII without what a quoted string gives a meaning to.
fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
}

/// Words with single blanks between them, as in a date or `application/json; charset=utf-8`.
fn is_phrase(text: &str) -> bool {
    text.split(' ').all(is_word)
}
