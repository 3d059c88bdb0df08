//! Decrypt, encrypt and get-key, and the checks without which their answers are not believed (security rule S4).
//!
//! Source: `oracle/oci-go-sdk` `keymanagement`; what goes into a BlobInfo: `hashicorp/go-kms-wrapping`
//! `wrappers/ocikms/ocikms.go`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use data_encoding::BASE64;
use jiff::Timestamp;
use reqwest::Method;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    call::{Call, Connection, check_realm},
    error::Operation,
    messages::{
        self, MAX_CIPHERTEXT, MAX_PLAINTEXT, check_context, ciphertext_bytes, ciphertext_text,
        context_with_blob, decoded, garbage, state_fault,
    },
};
use crate::{
    api::Reason,
    provider::{Description, Format, Opened, bound::Tie, wire},
    seal::{
        Ciphertext, Fault, KeyBytes,
        oci::{KeyOcid, is_ocid},
    },
    wrapped::blob_info::{self, BlobInfo},
};

/// One seal's key, with the credentials to use it.
pub struct Kms {
    connection: Connection,
    pub(super) key: KeyOcid,
}

/// What get-key says.
pub(super) struct KeyFacts {
    /// OCID of the version that encrypts.
    pub(super) version: Option<String>,
    fault: Option<Fault>,
    at: Timestamp,
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
        check_realm(&self.key, &session)
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
            version: facts.version.clone(),
        })
    }

    pub(super) async fn facts(&self, since: Option<SystemTime>) -> Result<Arc<KeyFacts>, Fault> {
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
                self.decrypt(
                    &ciphertext_text(ciphertext.bytes()),
                    context,
                    Tie::of_users(context),
                )
                .await?
            }
            Format::BlobInfo if !context.is_empty() => return Err(context_with_blob()),
            Format::BlobInfo => self.open_blob(ciphertext.bytes()).await?,
        };
        Ok(Opened {
            key,
            key_id: self.key.to_string(),
        })
    }

    /// Opens a BlobInfo.
    ///
    /// The mechanism is not looked at: the ocikms wrapper never sets it, and does not read it either.
    async fn open_blob(&self, bytes: &[u8]) -> Result<KeyBytes, Fault> {
        let blob = BlobInfo::decode(bytes)?;
        let foreign = || {
            Fault::invalid(
                Reason::CiphertextInvalid,
                "the BlobInfo was not wrapped by OCI KMS (it holds no data key as OCI's base64 text); name the seal that did",
            )
        };
        let text = blob
            .key_info
            .as_ref()
            .and_then(messages::wrapped_text)
            .ok_or_else(foreign)?;
        let data_key = self.decrypt(text, &BTreeMap::new(), Tie::None).await?;
        if data_key.expose().len() != blob_info::DATA_KEY_BYTES {
            return Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "what the vault unwrapped from the BlobInfo is no data key of 32 bytes; bring the value again",
            ));
        }
        blob_info::open(&data_key, &blob.iv, &blob.ciphertext, b"")
    }

    pub(super) async fn decrypt(
        &self,
        ciphertext: &str,
        context: &BTreeMap<String, String>,
        tie: Tie,
    ) -> Result<KeyBytes, Fault> {
        if !(1..=MAX_CIPHERTEXT).contains(&ciphertext.len()) {
            return Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "the wrapped key is empty or larger than 16 KiB, which no ciphertext of OCI KMS is; bring it again (a BlobInfo \
                 needs format: blobinfo)",
            ));
        }
        check_context(context)?;
        let body = messages::Decrypt {
            ciphertext,
            key_id: self.key.as_str(),
            associated_data: context,
        };
        let call = self.post(Operation::Decrypt, "/20180608/decrypt", &body, tie)?;
        let asked = (self.connection.clock)();
        let answer = match self.connection.call(&call).await {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state(fault, asked).await);
            }
            outcome => outcome?,
        };
        let answer: messages::Decrypted =
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
                    None => self
                        .facts(None)
                        .await?
                        .version
                        .clone()
                        .ok_or_else(|| garbage(Operation::GetKey))?,
                };
                Ok(messages::envelope(sealed, text, version))
            }
        }
    }

    /// The ciphertext's text and the version that made it.
    pub(super) async fn encrypt(
        &self,
        key: &KeyBytes,
        context: &BTreeMap<String, String>,
    ) -> Result<(String, Option<String>), Fault> {
        let bytes = key.expose();
        if !(1..=MAX_PLAINTEXT).contains(&bytes.len()) {
            return Err(Fault::invalid_spec(
                "OCI KMS wraps 1 to 4096 bytes by itself; use format: blobinfo for a longer key",
            ));
        }
        check_context(context)?;
        let mut plaintext = Zeroizing::new(vec![0; BASE64.encode_len(bytes.len())]);
        BASE64.encode_mut(bytes, &mut plaintext);
        let plaintext = std::str::from_utf8(&plaintext).unwrap_or_default();
        let body = messages::Encrypt {
            key_id: self.key.as_str(),
            plaintext,
            associated_data: context,
        };
        let call = self.post(
            Operation::Encrypt,
            "/20180608/encrypt",
            &body,
            Tie::of_users(context),
        )?;
        let asked = (self.connection.clock)();
        let answer = match self.connection.call(&call).await {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state(fault, asked).await);
            }
            outcome => outcome?,
        };
        let answer: messages::Encrypted =
            serde_json::from_slice(&answer.body).map_err(|_| garbage(Operation::Encrypt))?;
        self.check_key(answer.key_id.as_deref())?;
        let text = answer.ciphertext;
        if !messages::is_honest(&text, bytes) {
            return Err(garbage(Operation::Encrypt));
        }
        Ok((text, answer.key_version_id.filter(|version| is_ocid(version))))
    }

    async fn ask_facts(&self) -> Result<KeyFacts, Fault> {
        let call = Call {
            operation: Operation::GetKey,
            key: &self.key,
            method: Method::GET,
            target: &format!("/20180608/keys/{}", self.key),
            body: Bytes::new(),
            tie: Tie::None,
        };
        let answer = self.connection.call(&call).await?;
        let key: messages::Key =
            serde_json::from_slice(&answer.body).map_err(|_| garbage(Operation::GetKey))?;
        self.check_key(Some(&key.id))?;
        let algorithm = key.shape.and_then(|shape| shape.algorithm);
        Ok(KeyFacts {
            version: key.current_key_version.filter(|version| is_ocid(version)),
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

    /// A request with a body.
    fn post<'a>(
        &'a self,
        operation: Operation,
        target: &'a str,
        body: &impl Serialize,
        tie: Tie,
    ) -> Result<Call<'a>, Fault> {
        Ok(Call {
            operation,
            key: &self.key,
            method: Method::POST,
            target,
            body: Bytes::from_owner(messages::body(operation, body)?),
            tie,
        })
    }
}
