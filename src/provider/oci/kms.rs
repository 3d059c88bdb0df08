//! Decrypt, encrypt and get-key, and the checks without which their answers are not believed (security rule S4).
//!
//! Source: `oracle/oci-go-sdk` `keymanagement`; what goes into a BlobInfo: `hashicorp/go-kms-wrapping`
//! `wrappers/ocikms/ocikms.go`.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use data_encoding::BASE64;
use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize, de};
use zeroize::Zeroizing;

use super::{
    error::{self, Asked, Failure, Operation, Subject},
    http::{self, Answer, Client, Request},
    identity::Identity,
    instance_principal::refusal,
    retry,
    session::Session,
    signature::{self, Form, Unsigned},
};
use crate::{
    api::Reason,
    provider::{Clock, Description, Format, Observer, Opened, Timeouts, recent::Recent, wire},
    seal::{
        Ciphertext, Fault, KeyBytes,
        endpoint::AllowedEndpoint,
        oci::{KeyOcid, is_ocid},
    },
    wrapped::blob_info::{self, BlobInfo, KeyInfo},
};

/// The largest plaintext that an AES key encrypts; the service's own limit.
const MAX_PLAINTEXT: usize = 4096;

/// The longest ciphertext that is sent or taken. The service's are some hundred characters longer than the plaintext.
const MAX_CIPHERTEXT: usize = 16 * 1024;

/// The SDK's documentation of `associatedData`: fewer characters than this, as JSON.
const MAX_CONTEXT: usize = 4096;

/// The way to the vault.
pub(super) struct Connection {
    pub(super) crypto: AllowedEndpoint,
    pub(super) management: AllowedEndpoint,
    pub(super) open: Arc<Client>,
    pub(super) guarded: Arc<Client>,
    pub(super) identity: Arc<Identity>,
    pub(super) timeouts: Timeouts,
    pub(super) clock: Clock,
    pub(super) observer: Arc<dyn Observer>,
    /// Shared by all seals with one identity, endpoint and key.
    pub(super) description: Arc<Recent<KeyFacts>>,
}

/// One seal's key, with the credentials to use it.
pub struct Kms {
    connection: Connection,
    key: KeyOcid,
}

/// What get-key says.
pub(super) struct KeyFacts {
    /// OCID of the version that encrypts.
    version: String,
    fault: Option<Fault>,
    at: Timestamp,
}

/// What is asked, before it is known who asks.
struct Call<'a> {
    operation: Operation,
    method: Method,
    target: &'a str,
    body: Bytes,
    context: bool,
}

impl Kms {
    pub(super) fn new(connection: Connection, key: KeyOcid) -> Self {
        Self { connection, key }
    }

    /// The user or principal, as far as known without asking anybody.
    pub fn identity(&self) -> Option<String> {
        self.connection.identity.principal()
    }

    /// Gets a session to sign with, if there is none yet that lasts.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn authenticate(&self) -> Result<(), Fault> {
        let session = self.connection.identity.get().await?;
        self.check_realm(&session)
    }

    /// What get-key says, asked at most once an hour per identity, vault and key.
    ///
    /// # Errors
    /// What kept the vault from answering; a refusal (`AccessDenied`) is remembered for as long as an answer.
    pub async fn describe(&self) -> Result<Description, Fault> {
        let facts = self.facts(None).await?;
        Ok(Description {
            key: self.key.to_string(),
            at: facts.at,
            fault: facts.fault.clone(),
        })
    }

    async fn facts(&self, since: Option<SystemTime>) -> Result<Arc<KeyFacts>, Fault> {
        let Connection {
            clock, description, ..
        } = &self.connection;
        description.get(clock, since, self.ask_facts()).await
    }

    /// Opens a wrapped key.
    ///
    /// `kms`: decrypt with `context` as associatedData. `blobinfo`: decrypt of the data key, then the envelope. The key
    /// that the vault says it used must be the seal's.
    ///
    /// # Errors
    /// `CiphertextInvalid`, `ContextMismatch`, `KeyNotAllowed`, and whatever the vault or the credentials say.
    pub async fn unwrap(
        &self,
        format: Format,
        ciphertext: &Ciphertext,
        context: &BTreeMap<String, String>,
    ) -> Result<Opened, Fault> {
        let key = match format {
            Format::Kms => {
                self.decrypt(&ciphertext_text(ciphertext.bytes()), context)
                    .await?
            }
            Format::BlobInfo if !context.is_empty() => return Err(context_with_blob()),
            Format::BlobInfo => self.open_blob(ciphertext.bytes(), b"").await?,
        };
        Ok(Opened {
            key,
            key_id: self.key.to_string(),
        })
    }

    /// Opens a BlobInfo with additional authenticated data, which never reaches the vault.
    ///
    /// The mechanism is not looked at: the ocikms wrapper never sets it, and does not read it either.
    async fn open_blob(&self, bytes: &[u8], aad: &[u8]) -> Result<KeyBytes, Fault> {
        let blob = BlobInfo::decode(bytes)?;
        let foreign = || {
            Fault::invalid(
                Reason::CiphertextInvalid,
                "the BlobInfo was not wrapped by OCI KMS (it holds no data key as OCI's base64 text); name the seal that did",
            )
        };
        let wrapped = blob.key_info.map(|info| info.wrapped_key).unwrap_or_default();
        let text = String::from_utf8(wrapped).map_err(|_| foreign())?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(foreign());
        }
        let data_key = self.decrypt(&text, &BTreeMap::new()).await?;
        if data_key.expose().len() != blob_info::DATA_KEY_BYTES {
            return Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "what the vault unwrapped from the BlobInfo is no data key of 32 bytes; bring the value again",
            ));
        }
        blob_info::open(&data_key, &blob.iv, &blob.ciphertext, aad)
    }

    async fn decrypt(&self, ciphertext: &str, context: &BTreeMap<String, String>) -> Result<KeyBytes, Fault> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            ciphertext: &'a str,
            key_id: &'a str,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            associated_data: &'a BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Decrypted {
            plaintext: SecretText,
            key_id: Option<String>,
        }
        if !(1..=MAX_CIPHERTEXT).contains(&ciphertext.len()) {
            return Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "the wrapped key is empty or larger than 16 KiB, which no ciphertext of OCI KMS is; bring it again (a BlobInfo \
                 needs format: blobinfo)",
            ));
        }
        check_context(context)?;
        let body = Body {
            ciphertext,
            key_id: self.key.as_str(),
            associated_data: context,
        };
        let call = post(Operation::Decrypt, "/20180608/decrypt", &body, context)?;
        let asked = (self.connection.clock)();
        let answer = match self.call(&call).await {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state(fault, asked).await);
            }
            outcome => outcome?,
        };
        let answer: Decrypted =
            serde_json::from_slice(&answer.body).map_err(|_| garbage(Operation::Decrypt))?;
        self.check_key(answer.key_id.as_deref())?;
        let plain = decoded(&answer.plaintext).ok_or_else(|| garbage(Operation::Decrypt))?;
        if answer.plaintext.0.as_str() == ciphertext || plain.as_slice() == ciphertext.as_bytes() {
            return Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "what answers for the vault sent back what it was given, so nothing was opened; check what listens at the \
                 endpoint",
            ));
        }
        if plain.is_empty() || plain.len() > MAX_PLAINTEXT {
            return Err(garbage(Operation::Decrypt));
        }
        let mut plain = plain;
        Ok(KeyBytes::new(std::mem::take(&mut *plain)))
    }

    /// Wraps a key.
    ///
    /// `blobinfo`: an envelope whose data key the vault encrypts, as the ocikms wrapper writes it. `kms`: encrypt of the
    /// bytes themselves with `context` as associatedData; the result is what OCI's text decodes to.
    ///
    /// # Errors
    /// `InvalidSpec` for more than 4096 bytes with `kms`; `KeyNotAllowed` if the vault used another key; what it says.
    pub async fn wrap(
        &self,
        key: &KeyBytes,
        format: Format,
        context: &BTreeMap<String, String>,
    ) -> Result<Ciphertext, Fault> {
        match format {
            Format::Kms => {
                let (text, _) = self.encrypt(key, context).await?;
                Ok(Ciphertext::new(ciphertext_bytes(&text)))
            }
            Format::BlobInfo if !context.is_empty() => Err(context_with_blob()),
            Format::BlobInfo => {
                let sealed = blob_info::seal(key.expose(), b"")?;
                let (text, version) = self.encrypt(&sealed.data_key, context).await?;
                let version = match version {
                    Some(version) => version,
                    // The wrapper always asks the management endpoint; the answer to encrypt says the same, sooner.
                    None => self.facts(None).await?.version.clone(),
                };
                let blob = BlobInfo {
                    ciphertext: sealed.ciphertext,
                    iv: sealed.iv.to_vec(),
                    key_info: Some(KeyInfo {
                        // Never set by the ocikms wrapper, although it is an envelope.
                        mechanism: 0,
                        key_id: version,
                        wrapped_key: text.into_bytes(),
                    }),
                };
                Ok(Ciphertext::new(blob.encode()))
            }
        }
    }

    /// The ciphertext's text and the version that made it.
    async fn encrypt(
        &self,
        key: &KeyBytes,
        context: &BTreeMap<String, String>,
    ) -> Result<(String, Option<String>), Fault> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            key_id: &'a str,
            plaintext: &'a str,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            associated_data: &'a BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Encrypted {
            ciphertext: String,
            key_id: Option<String>,
            key_version_id: Option<String>,
        }
        let bytes = key.expose();
        if !(1..=MAX_PLAINTEXT).contains(&bytes.len()) {
            return Err(Fault::invalid(
                Reason::InvalidSpec,
                "OCI KMS wraps 1 to 4096 bytes by itself; use format: blobinfo for a longer key",
            ));
        }
        check_context(context)?;
        let mut plaintext = Zeroizing::new(vec![0; BASE64.encode_len(bytes.len())]);
        BASE64.encode_mut(bytes, &mut plaintext);
        let plaintext = std::str::from_utf8(&plaintext).unwrap_or_default();
        let body = Body {
            key_id: self.key.as_str(),
            plaintext,
            associated_data: context,
        };
        let call = post(Operation::Encrypt, "/20180608/encrypt", &body, context)?;
        let asked = (self.connection.clock)();
        let answer = match self.call(&call).await {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state(fault, asked).await);
            }
            outcome => outcome?,
        };
        let answer: Encrypted =
            serde_json::from_slice(&answer.body).map_err(|_| garbage(Operation::Encrypt))?;
        self.check_key(answer.key_id.as_deref())?;
        let text = answer.ciphertext;
        let honest = (1..=MAX_CIPHERTEXT).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic())
            && !text.contains(plaintext)
            && !ciphertext_bytes(&text)
                .windows(bytes.len())
                .any(|window| window == bytes);
        if !honest {
            return Err(garbage(Operation::Encrypt));
        }
        Ok((text, answer.key_version_id.filter(|version| is_ocid(version))))
    }

    async fn ask_facts(&self) -> Result<KeyFacts, Fault> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            algorithm: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Key {
            id: String,
            current_key_version: String,
            lifecycle_state: String,
            #[serde(rename = "keyShape")]
            shape: Option<Shape>,
        }
        let call = Call {
            operation: Operation::GetKey,
            method: Method::GET,
            target: &format!("/20180608/keys/{}", self.key),
            body: Bytes::new(),
            context: false,
        };
        let answer = self.call(&call).await?;
        let key: Key = serde_json::from_slice(&answer.body).map_err(|_| garbage(Operation::GetKey))?;
        self.check_key(Some(&key.id))?;
        if !is_ocid(&key.current_key_version) {
            return Err(garbage(Operation::GetKey));
        }
        let algorithm = key.shape.and_then(|shape| shape.algorithm);
        Ok(KeyFacts {
            version: key.current_key_version,
            fault: state_fault(&self.key, &key.lifecycle_state, algorithm.as_deref()),
            at: wire::timestamp((self.connection.clock)()),
        })
    }

    /// The vault says that the key's state is wrong, but not which it is. Get-key knows: what it found wrong in the last
    /// minute, else what it says now, for an older word that all is well has just been refuted.
    async fn tell_state(&self, fault: Fault, asked: SystemTime) -> Fault {
        for since in [asked.checked_sub(Duration::from_mins(1)), Some(asked)] {
            match self.facts(since).await {
                Ok(facts) => {
                    if let Some(known) = &facts.fault {
                        return known.clone();
                    }
                }
                Err(_) => return fault,
            }
        }
        fault
    }

    /// The key that the vault says it used, where it says so, must be the seal's (security rule S4).
    fn check_key(&self, answered: Option<&str>) -> Result<(), Fault> {
        if answered.is_none_or(|key| key == self.key.as_str()) {
            return Ok(());
        }
        Err(Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "the vault answered for another key than {}, so the result was dropped; check keyID, and what answers at the \
                 endpoints",
                self.key
            ),
        ))
    }

    /// Sends a request, signed anew at each try: told to the observer, its error said in our words.
    async fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let bound = self.connection.timeouts.operation;
        let (mut tries, mut renewed, mut spent) = (0, false, Duration::ZERO);
        loop {
            // The session first, outside of the operation's bound in time: its faults are not the vault's.
            let session = self.connection.identity.get().await?;
            self.check_realm(&session)?;
            tries += 1;
            let sent = Instant::now();
            let outcome = self.send(call, &session, bound.saturating_sub(spent)).await;
            let failure = match outcome {
                Ok(answer) => {
                    self.observe(call.operation, "ok", sent);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            spent += sent.elapsed();
            let subject = self.connection.identity.subject(&session);
            let fault = error::kms(&self.asked(call, &subject), &failure);
            self.observe(call.operation, fault.reason.as_str(), sent);
            // A token that was revoked, or whose certificate has rotated away: one new one is worth a try.
            if failure.is_unauthenticated() && session.expires.is_some() && !renewed {
                self.connection.identity.forget(&session);
                renewed = true;
                tries -= 1;
                continue;
            }
            let left = bound.saturating_sub(spent);
            let Some(wait) = retry::wait(&failure, tries, left, wire::jitter()) else {
                return Err(fault);
            };
            tokio::time::sleep(wait).await;
            spent += wait;
        }
    }

    /// One try, which has no more than `left`.
    async fn send(&self, call: &Call<'_>, session: &Session, left: Duration) -> Result<Answer, Failure> {
        let Connection {
            crypto, management, ..
        } = &self.connection;
        let endpoint = match call.operation {
            Operation::Decrypt | Operation::Encrypt => crypto,
            Operation::GetKey => management,
        };
        let client = if endpoint.trusted {
            &self.connection.open
        } else {
            &self.connection.guarded
        };
        let now = (self.connection.clock)();
        let host = http::host_of(&endpoint.url).ok_or(Failure::NoAddress)?;
        let unsigned = Unsigned {
            method: call.method.as_str(),
            target: call.target,
            host: &host,
            content_type: "application/json",
            body: &call.body,
        };
        let date = signature::http_date(wire::timestamp(now).as_second());
        let headers = signature::headers(&session.key, &session.key_id, &unsigned, &date, Form::Service)
            .map_err(|_| Failure::Garbage)?;
        let has_body = call.method == Method::POST;
        let request = Request {
            method: call.method.clone(),
            base: &endpoint.url,
            target: call.target,
            headers,
            body: has_body.then(|| call.body.clone()),
            timeout: self.connection.timeouts.attempt.min(left),
        };
        let answer = client.send(request).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        tracing::debug!(
            operation = call.operation.as_str(),
            status = answer.status,
            request_id = answer.header("opc-request-id").and_then(wire::request_id),
            "OCI answered with an error"
        );
        Err(refusal(&answer, now))
    }

    fn asked<'a>(&'a self, call: &Call<'_>, subject: &'a Subject) -> Asked<'a> {
        Asked {
            operation: call.operation,
            key: self.key.as_str(),
            context: call.context,
            subject,
        }
    }

    fn observe(&self, operation: Operation, outcome: &'static str, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.connection
            .observer
            .kms_request("ocikms", operation.as_str(), outcome, seconds);
    }

    /// Realms are islands: an identity of one is unknown in every other.
    fn check_realm(&self, session: &Session) -> Result<(), Fault> {
        match &session.realm {
            Some(realm) if realm != self.key.realm() => Err(Fault::invalid(
                Reason::RealmMismatch,
                format!(
                    "the identity belongs to realm {realm} and the key to realm {}, which know nothing of each other; use an \
                     identity of the key's realm",
                    self.key.realm()
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// A request with a body.
fn post<'a>(
    operation: Operation,
    target: &'a str,
    body: &impl Serialize,
    context: &BTreeMap<String, String>,
) -> Result<Call<'a>, Fault> {
    // Room for all of it, so that no copy of a plaintext is left behind by growth; wiped when the last try is over.
    let room = 2 * (MAX_CIPHERTEXT + MAX_CONTEXT);
    let mut buffer = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *buffer, body).map_err(|_| garbage(operation))?;
    Ok(Call {
        operation,
        method: Method::POST,
        target,
        body: Bytes::from_owner(buffer),
        context: !context.is_empty(),
    })
}

/// Why the key cannot be used, if it cannot.
///
/// Source: `keymanagement/key.go` of the Go SDK for the states.
fn state_fault(key: &KeyOcid, state: &str, algorithm: Option<&str>) -> Option<Fault> {
    let (reason, message) = match state {
        "ENABLED" | "UPDATING" | "BACKUP_IN_PROGRESS" => match algorithm {
            None | Some("AES") => return None,
            Some(_) => (
                Reason::KeyUnusable,
                format!("{key} is no AES key; a seal needs one: make it and name it"),
            ),
        },
        "DISABLED" | "DISABLING" => (
            Reason::KeyDisabled,
            format!(
                "the key {key} is disabled; enable it (oci kms management key enable --key-id {key} --endpoint …)"
            ),
        ),
        "PENDING_DELETION" | "SCHEDULING_DELETION" | "DELETING" => (
            Reason::KeyPendingDeletion,
            format!(
                "the key {key} is about to be deleted; cancel that now (oci kms management key cancel-deletion --key-id {key} \
                 --endpoint …), or everything wrapped under it alone is lost"
            ),
        ),
        "DELETED" => (
            Reason::KeyNotFound,
            format!("the key {key} is deleted; name another"),
        ),
        _ => (
            Reason::KeyUnusable,
            format!(
                "the key {key} is in no state in which it can be used; look at it (oci kms management key get --key-id {key} \
                 --endpoint …)"
            ),
        ),
    };
    Some(Fault::denied(reason, message))
}

fn garbage(operation: Operation) -> Fault {
    error::transport(&Failure::Garbage, "the vault", operation.as_str())
}

fn context_with_blob() -> Fault {
    Fault::invalid(
        Reason::InvalidSpec,
        "a BlobInfo has no associatedData; take `context` out, or set format: kms if it is the KMS's own ciphertext",
    )
}

fn check_context(context: &BTreeMap<String, String>) -> Result<(), Fault> {
    let length = serde_json::to_string(context).map_or(usize::MAX, |text| text.len());
    if length < MAX_CONTEXT {
        Ok(())
    } else {
        Err(Fault::invalid(
            Reason::InvalidSpec,
            "the context is longer than the 4096 characters that OCI takes as associatedData; shorten it",
        ))
    }
}

/// OCI's ciphertext is base64 text. A copy is kept as what it decodes to; where that is itself such a text, somebody has
/// packed it once more (a Secret made with `armor: None` from OCI's answer), and it is sent as it is.
fn ciphertext_text(bytes: &[u8]) -> String {
    let is_text = bytes.len() >= 16 && BASE64.decode(bytes).is_ok();
    match std::str::from_utf8(bytes) {
        Ok(text) if is_text => text.to_owned(),
        _ => BASE64.encode(bytes),
    }
}

/// The other way: what the text decodes to, or the text itself where it is no base64.
fn ciphertext_bytes(text: &str) -> Vec<u8> {
    BASE64
        .decode(text.as_bytes())
        .unwrap_or_else(|_| text.as_bytes().to_vec())
}

/// Text that is a key: wiped when dropped, never shown.
struct SecretText(Zeroizing<String>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = SecretText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            // Copied once into its own buffer; the answer's is wiped too.
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretText, E> {
                Ok(SecretText(Zeroizing::new(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

/// Base64 into a buffer that is wiped.
fn decoded(text: &SecretText) -> Option<Zeroizing<Vec<u8>>> {
    let text = text.0.as_bytes();
    let mut plain = Zeroizing::new(vec![0; BASE64.decode_len(text.len()).ok()?]);
    let length = BASE64.decode_mut(text, &mut plain).ok()?;
    plain.truncate(length);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ciphertext_is_the_same_text_again() {
        for text in [
            "IXIAQwF5dQo=",
            "TU9DS09DSTFdLSWtRA0V8YmH3cYABuZZEs62aGjDwtAFg88XF9Yf4PH1aHgR0i8focTNx1pvR3NB",
        ] {
            assert_eq!(ciphertext_text(&ciphertext_bytes(text)), text);
            // The text itself in a Secret, with armor: None.
            if text.len() >= 16 {
                assert_eq!(ciphertext_text(text.as_bytes()), text);
            }
        }
    }

    #[test]
    fn every_state_of_a_key_is_told() {
        let key: KeyOcid = "ocid1.key.oc1.iad.v.k".parse().unwrap();
        let reason = |state: &str| state_fault(&key, state, Some("AES")).map(|fault| fault.reason);
        assert_eq!(reason("ENABLED"), None);
        assert_eq!(reason("UPDATING"), None);
        assert_eq!(reason("DISABLED"), Some(Reason::KeyDisabled));
        assert_eq!(reason("PENDING_DELETION"), Some(Reason::KeyPendingDeletion));
        assert_eq!(reason("DELETED"), Some(Reason::KeyNotFound));
        assert_eq!(reason("CREATING"), Some(Reason::KeyUnusable));
        assert_eq!(reason("<b>"), Some(Reason::KeyUnusable));
        assert_eq!(
            state_fault(&key, "ENABLED", Some("RSA")).unwrap().reason,
            Reason::KeyUnusable
        );
        assert_eq!(state_fault(&key, "ENABLED", None), None);
    }

    #[test]
    fn a_key_in_an_answer_is_never_shown() {
        let text: SecretText = serde_json::from_str(r#""aHVudGVyMg\u003d\u003d""#).unwrap();
        assert_eq!(format!("{text:?}"), "[redacted]");
        assert_eq!(decoded(&text).unwrap().as_slice(), b"hunter2");
    }
}
