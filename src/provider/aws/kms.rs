//! Decrypt, Encrypt and DescribeKey, and the checks without which their answers are not believed (security rule S4).
//!
//! Source: botocore service model `kms/2014-11-01`; what goes into a BlobInfo: `hashicorp/go-kms-wrapping`
//! `wrappers/awskms/awskms.go`.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use aws_sdk_kms::{error::SdkError, operation::decrypt::DecryptOutput, primitives::Blob};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use zeroize::Zeroizing;

use super::{
    describe::{Description, Slot, answered},
    error::{self, Asked, Failure, Operation},
    identity::Source,
    sdk,
};
use crate::{
    api::Reason,
    provider::{Clock, Format, Observer, Opened, bound::Tie, pace::Turns},
    seal::{
        Ciphertext, Fault, KeyBytes,
        aws::{AwsSeal, KeyArn, Region, accepts},
    },
    wrapped::blob_info::{self, BlobInfo, KeyInfo},
};

/// The largest plaintext that Encrypt takes.
const MAX_PLAINTEXT: usize = 4096;

/// The largest ciphertext that Decrypt takes.
const MAX_CIPHERTEXT: usize = 6144;

/// The mechanism of an envelope in a BlobInfo of awskms; 0 is the KMS's ciphertext itself.
pub(super) const ENVELOPE: u64 = 1;

/// The way to the KMS.
pub(super) struct Connection {
    pub(super) client: aws_sdk_kms::Client,
    pub(super) source: Arc<Source>,
    pub(super) clock: Clock,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) turns: Turns,
    /// Shared by all seals with one identity, region, endpoint and key.
    pub(super) description: Arc<Slot>,
}

impl Connection {
    /// Sends a request: told to the observer, its error said in our words, spent credentials forgotten.
    ///
    /// The SDK's futures take 17 KiB, so callers box them.
    pub(super) async fn timed<T, E>(
        &self,
        asked: &Asked<'_>,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Fault>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        // Credentials first, outside of the request's bounds in time: getting them may take several requests, and
        // their faults are not the KMS's. The SDK then finds them ready.
        self.source.get().await?;
        self.turns.next().await;
        let started = Instant::now();
        let outcome = request.await.map_err(|error| {
            let fault = error::fault(asked, sdk::failure(&error, (self.clock)()));
            if sdk::credentials_are_spent(&fault) {
                self.source.forget();
            }
            fault
        });
        self.turns.learn(outcome.as_ref().err());
        self.observer.kms_request(
            "awskms",
            asked.operation.as_str(),
            outcome
                .as_ref()
                .map_or_else(|fault| fault.reason.as_str(), |_| "ok"),
            started.elapsed().as_secs_f64(),
        );
        outcome
    }
}

/// One seal's key, with the credentials to use it.
pub struct Kms {
    pub(super) connection: Connection,
    pub(super) seal: AwsSeal,
    pub(super) region: Region,
    /// The key as the seal names it.
    pub(super) name: String,
    identity: Option<String>,
}

/// What of the key is known when an answer is checked.
enum Known {
    /// The name says it (id or ARN), or DescribeKey did.
    Resolved(Option<Arc<Description>>),
    /// An alias that the identity may not describe: the KMS itself must refuse other keys.
    AliasOnly,
}

impl Kms {
    pub(super) fn new(
        connection: Connection,
        seal: AwsSeal,
        region: Region,
        identity: Option<String>,
    ) -> Self {
        Self {
            name: seal.key.to_string(),
            connection,
            seal,
            region,
            identity,
        }
    }

    /// The role or principal, as far as known without asking anybody.
    pub fn identity(&self) -> Option<String> {
        self.identity.clone()
    }

    /// Gets credentials, if there are none yet that last.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn authenticate(&self) -> Result<(), Fault> {
        self.connection.source.get().await.map(drop)
    }

    /// The region that requests go to.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Opens a wrapped key.
    ///
    /// `kms`: Decrypt with `context`. `blobinfo`: Decrypt of the data key, then the envelope; two old forms hold the
    /// KMS's own ciphertext instead. Decrypt is sent no KeyId, as the go-kms-wrapping readers do, and the key that the
    /// KMS says it used must be one that the seal names (`api.md`, meaning 7).
    ///
    /// # Errors
    /// `CiphertextInvalid`, `ContextMismatch`, `KeyNotAllowed`, and whatever the KMS or the credentials say.
    pub async fn unwrap(
        &self,
        format: Format,
        ciphertext: &Ciphertext,
        context: &BTreeMap<String, String>,
    ) -> Result<Opened, Fault> {
        match format {
            Format::Kms => self.decrypt(ciphertext.bytes(), context).await,
            Format::BlobInfo if context.is_empty() => self.open_blob(ciphertext.bytes(), b"").await,
            Format::BlobInfo => Err(context_with_blob()),
        }
    }

    /// Opens a BlobInfo with additional authenticated data, which never reaches the KMS.
    pub(super) async fn open_blob(&self, bytes: &[u8], aad: &[u8]) -> Result<Opened, Fault> {
        let blob = BlobInfo::decode(bytes)?;
        let none = BTreeMap::new();
        match blob.mechanism() {
            0 => self.decrypt(&blob.ciphertext, &none).await,
            ENVELOPE => {
                let wrapped = blob.key_info.map(|info| info.wrapped_key).unwrap_or_default();
                let data_key = self.decrypt(&wrapped, &none).await?;
                if data_key.key.expose().len() != blob_info::DATA_KEY_BYTES {
                    return Err(Fault::invalid(
                        Reason::CiphertextInvalid,
                        "what the KMS unwrapped from the BlobInfo is no data key of 32 bytes; bring the value again",
                    ));
                }
                let key = blob_info::open(&data_key.key, &blob.iv, &blob.ciphertext, aad)?;
                Ok(Opened {
                    key,
                    key_id: data_key.key_id,
                })
            }
            _ => Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "the BlobInfo was not wrapped by AWS KMS (its mechanism is neither 0 nor 1); name the seal that did",
            )),
        }
    }

    async fn decrypt(&self, ciphertext: &[u8], context: &BTreeMap<String, String>) -> Result<Opened, Fault> {
        if !is_ciphertext(ciphertext) {
            return Err(Fault::invalid(
                Reason::CiphertextInvalid,
                "the wrapped key is empty or larger than 6144 bytes, which no ciphertext of AWS KMS is; bring it again \
                 (a BlobInfo needs format: blobinfo)",
            ));
        }
        let known = self.known().await?;
        let asked = self.asked(Operation::Decrypt, Tie::of_users(context));
        let send = |key| self.send_decrypt(&asked, ciphertext, context, key);
        let alias = matches!(known, Known::AliasOnly).then(|| self.name.clone());
        let bound_to_alias = alias.is_some();
        let mut outcome = send(alias).await;
        let mut by_alias = bound_to_alias;
        if bound_to_alias
            && !self.seal.former.is_empty()
            && matches!(&outcome, Err(fault) if fault.reason == Reason::KeyNotAllowed)
        {
            // The KMS says that it is another key's: of a former one, perhaps.
            by_alias = false;
            outcome = send(None).await;
        }
        let answer = match outcome {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state(fault).await);
            }
            outcome => outcome?,
        };
        let allowed = |arn: &KeyArn| match &known {
            Known::AliasOnly if by_alias => self.is_named(arn),
            Known::AliasOnly => accepts(&self.seal, &self.region, arn, None),
            Known::Resolved(description) => accepts(
                &self.seal,
                &self.region,
                arn,
                description.as_ref().map(|description| &description.arn),
            ),
        };
        let refused = || {
            format!(
                "the wrapped key was opened by another key than {}, so its bytes were dropped; if that key is right, add it \
                 to formerKeyIDs or correct kmsKeyID or accountID (an alias that moved is looked up again within the hour), \
                 else find out who put it there",
                self.name
            )
        };
        opened(&asked, ciphertext, answer, allowed, refused)
    }

    /// Sends one Decrypt.
    pub(super) async fn send_decrypt(
        &self,
        asked: &Asked<'_>,
        ciphertext: &[u8],
        context: &BTreeMap<String, String>,
        key: Option<String>,
    ) -> Result<DecryptOutput, Fault> {
        let request = self
            .connection
            .client
            .decrypt()
            .ciphertext_blob(Blob::new(ciphertext))
            .set_encryption_context(encryption_context(context))
            .set_key_id(key);
        self.timed(asked, Box::pin(request.send())).await
    }

    /// Wraps a key.
    ///
    /// `blobinfo`: an envelope whose data key the KMS encrypts, as the awskms wrapper writes it. `kms`: Encrypt of the
    /// bytes themselves with `context`.
    ///
    /// # Errors
    /// `InvalidSpec` for more than 4096 bytes with `kms`; `KeyNotAllowed` if the KMS used another key; what it says.
    pub async fn wrap(
        &self,
        key: &KeyBytes,
        format: Format,
        context: &BTreeMap<String, String>,
    ) -> Result<(Vec<u8>, KeyArn), Fault> {
        match format {
            Format::Kms => self.encrypt(key, context).await,
            Format::BlobInfo if !context.is_empty() => Err(context_with_blob()),
            Format::BlobInfo => self.envelope(key, context, b"").await,
        }
    }

    /// An envelope: the data key encrypted with `context`, the payload with `aad` by the data key.
    pub(super) async fn envelope(
        &self,
        key: &KeyBytes,
        context: &BTreeMap<String, String>,
        aad: &[u8],
    ) -> Result<(Vec<u8>, KeyArn), Fault> {
        let sealed = blob_info::seal(key.expose(), aad)?;
        let (wrapped_key, arn) = self.encrypt(&sealed.data_key, context).await?;
        let blob = BlobInfo {
            ciphertext: sealed.ciphertext,
            iv: sealed.iv.to_vec(),
            key_info: Some(KeyInfo {
                mechanism: ENVELOPE,
                key_id: arn.to_string(),
                wrapped_key,
            }),
        };
        Ok((blob.encode(), arn))
    }

    async fn encrypt(
        &self,
        key: &KeyBytes,
        context: &BTreeMap<String, String>,
    ) -> Result<(Vec<u8>, KeyArn), Fault> {
        let bytes = key.expose();
        if !(1..=MAX_PLAINTEXT).contains(&bytes.len()) {
            return Err(Fault::invalid_spec(
                "AWS KMS wraps 1 to 4096 bytes by itself; use format: blobinfo for a longer key",
            ));
        }
        let known = self.known().await?;
        let request = self
            .connection
            .client
            .encrypt()
            .key_id(&self.name)
            .plaintext(Blob::new(bytes))
            .set_encryption_context(encryption_context(context));
        let asked = self.asked(Operation::Encrypt, Tie::of_users(context));
        let answer = match self.timed(&asked, Box::pin(request.send())).await {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state(fault).await);
            }
            outcome => outcome?,
        };
        let garbage = || error::fault(&asked, Failure::Garbage);
        let ciphertext = answer.ciphertext_blob.ok_or_else(garbage)?.into_inner();
        let key_id = answer.key_id.as_deref().ok_or_else(garbage)?;
        let arn = answered(key_id).filter(|arn| match &known {
            Known::Resolved(Some(description)) => description.arn.same_key(arn),
            Known::Resolved(None) | Known::AliasOnly => true,
        });
        let Some(arn) = arn.filter(|arn| self.is_named(arn)) else {
            return Err(Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "the KMS encrypted with another key than {}, so the result was dropped; check accountID and \
                     kmsKeyID, and what answers at the endpoint",
                    self.name
                ),
            ));
        };
        if !is_ciphertext(&ciphertext)
            || ciphertext == bytes
            // A few bytes stand in any ciphertext by chance.
            || (bytes.len() >= 8 && ciphertext.windows(bytes.len()).any(|window| window == bytes))
        {
            return Err(garbage());
        }
        Ok((ciphertext, arn))
    }

    /// An alias is resolved before its answers are checked; ids and ARNs say themselves which key they mean.
    async fn known(&self) -> Result<Known, Fault> {
        if !self.seal.key.is_alias() {
            return Ok(Known::Resolved(None));
        }
        match self.describe().await {
            Ok(description) => Ok(Known::Resolved(Some(description))),
            Err(fault) if fault.reason == Reason::AccessDenied => Ok(Known::AliasOnly),
            Err(fault) => Err(fault),
        }
    }

    pub(super) fn asked(&self, operation: Operation, tie: Tie) -> Asked<'_> {
        Asked {
            operation,
            of: &self.name,
            region: self.region.as_str(),
            tie,
        }
    }

    /// Sends a request; see [`Connection::timed`].
    pub(super) async fn timed<T, E>(
        &self,
        asked: &Asked<'_>,
        request: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Fault>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
    {
        self.connection.timed(asked, request).await
    }
}

/// Whether Decrypt takes it at all.
pub(super) fn is_ciphertext(bytes: &[u8]) -> bool {
    (1..=MAX_CIPHERTEXT).contains(&bytes.len())
}

/// What Decrypt's answer holds, if the key that it names is `allowed` and the rest can be believed too; `refused` says
/// what to do about another key.
pub(super) fn opened(
    asked: &Asked<'_>,
    ciphertext: &[u8],
    answer: DecryptOutput,
    allowed: impl FnOnce(&KeyArn) -> bool,
    refused: impl FnOnce() -> String,
) -> Result<Opened, Fault> {
    // From here on the bytes are wiped wherever this ends.
    let plaintext = answer.plaintext.map(|blob| Zeroizing::new(blob.into_inner()));
    let garbage = || error::fault(asked, Failure::Garbage);
    let key_id = answer.key_id.as_deref().ok_or_else(garbage)?;
    let mut plaintext = plaintext.ok_or_else(garbage)?;
    let key_id = answered(key_id)
        .filter(allowed)
        .ok_or_else(|| Fault::denied(Reason::KeyNotAllowed, refused()))?;
    if plaintext.is_empty() || plaintext.len() > MAX_PLAINTEXT {
        return Err(garbage());
    }
    if plaintext.as_slice() == ciphertext {
        return Err(Fault::invalid(
            Reason::CiphertextInvalid,
            "what answers for the KMS sent back what it was given, so nothing was opened; check what listens at the endpoint",
        ));
    }
    Ok(Opened {
        key: KeyBytes::new(std::mem::take(&mut *plaintext)),
        key_id: key_id.to_string(),
    })
}

fn context_with_blob() -> Fault {
    Fault::invalid_spec(
        "a BlobInfo has no encryption context; take `context` out, or set format: kms if it is the KMS's own \
         ciphertext",
    )
}

fn encryption_context(
    context: &BTreeMap<String, String>,
) -> Option<std::collections::HashMap<String, String>> {
    (!context.is_empty()).then(|| context.clone().into_iter().collect())
}
