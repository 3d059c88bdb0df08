//! The operator's own copies: Decrypt is told which key to use (security rule S4).

use super::{
    describe::answered,
    error::{Asked, Operation},
    kms::{ENVELOPE, Kms, is_ciphertext, opened},
};
use crate::{
    api::Reason,
    provider::{
        Bound, Opened, Wrapped,
        bound::{self, PUT_BACK, Tie},
    },
    seal::{
        Ciphertext, Fault, KeyBytes,
        aws::{KeyArn, KeyRef},
    },
};

impl Kms {
    /// Wraps a key as an envelope that is tied to a place.
    ///
    /// Encrypt does not say which key material it used. The description from before it does, at most an hour late: a
    /// material that is recorded too old makes somebody wrap once more, one too new would never be noticed.
    ///
    /// # Errors
    /// As [`Kms::wrap`] with `blobinfo`.
    pub async fn wrap_bound(&self, key: &KeyBytes, bound: &Bound<'_>) -> Result<Wrapped, Fault> {
        let description = self.describe().await;
        let (bytes, arn) = self.envelope(key, bound.context, bound.aad).await?;
        Ok(Wrapped {
            ciphertext: Ciphertext::new(bytes),
            key_id: arn.to_string(),
            key_version: description
                .ok()
                .and_then(|description| description.version.clone()),
        })
    }

    /// Opens what [`Kms::wrap_bound`] made. `recorded`: the ARN of the key that made it.
    ///
    /// # Errors
    /// `ContextMismatch` for a copy of another place; `KeyNotAllowed` for a recorded key that this seal may not use, and if
    /// another opened it; `CiphertextInvalid` for what is never written; and whatever the KMS or the credentials say.
    pub async fn unwrap_bound(
        &self,
        ciphertext: &Ciphertext,
        bound: &Bound<'_>,
        recorded: &str,
    ) -> Result<Opened, Fault> {
        let copy = bound::read(ciphertext)?;
        // Mechanism 0 would be the KMS's own ciphertext, whose payload has no additional data.
        let wrapped = copy
            .key_info
            .as_ref()
            .filter(|info| info.mechanism == ENVELOPE && is_ciphertext(&info.wrapped_key))
            .map(|info| info.wrapped_key.as_slice())
            .ok_or_else(bound::damaged)?;
        let key = self.recorded(recorded).await?;
        let name = key.to_string();
        let asked = Asked {
            of: &name,
            ..self.asked(Operation::Decrypt, Tie::Operators)
        };
        let answer = match self
            .send_decrypt(&asked, wrapped, bound.context, Some(name.clone()))
            .await
        {
            Err(fault) if fault.reason == Reason::KeyUnusable => {
                return Err(self.tell_state_of(&key, fault).await);
            }
            outcome => outcome?,
        };
        let refused = || {
            format!(
                "the KMS was told to open the copy with {name} and used another key, so its bytes were dropped; check what \
                 answers at the endpoint"
            )
        };
        let data_key = opened(&asked, wrapped, answer, |arn| arn.same_key(&key), refused)?;
        Ok(Opened {
            key: bound::open(&data_key.key, &copy, bound.aad)?,
            key_id: data_key.key_id,
        })
    }

    /// The key that Decrypt is told to use: the one that the store records, if it may be this seal's.
    ///
    /// The store lies in a Secret, so what it says is checked like what an answer says: account and region of a seal do not
    /// change by what is written there (security rule S4).
    async fn recorded(&self, text: &str) -> Result<KeyArn, Fault> {
        let key = answered(text).ok_or_else(|| {
            Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "the store does not name the key of the copy by a key's ARN, so nothing was decrypted; {PUT_BACK}"
                ),
            )
        })?;
        let pinned = self
            .seal
            .account
            .as_ref()
            .is_none_or(|account| *account == key.account);
        let former = || {
            self.seal
                .former
                .iter()
                .any(|former| former.names(&key, &self.region))
        };
        if !pinned || !(former() || self.is_beside(&key).await?) {
            return Err(Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "the store says that the copy was made with {key}, whose account or region is not that of {}, so nothing \
                     was decrypted; if that key is right, add it to formerKeyIDs (and correct accountID), else {PUT_BACK}",
                    self.name
                ),
            ));
        }
        if key.region != self.region && key.id.starts_with("mrk-") {
            // Made by a replica in another region; the one here opens it, and no other is known at this endpoint.
            return Ok(KeyArn {
                region: self.region.clone(),
                ..key
            });
        }
        Ok(key)
    }

    /// Whether a key has the account and region of the seal's own key, as far as these are known.
    async fn is_beside(&self, key: &KeyArn) -> Result<bool, Fault> {
        if key.region != self.region && !key.id.starts_with("mrk-") {
            return Ok(false);
        }
        let own = |partition: &str, account: &str| key.partition == partition && key.account == account;
        match &self.seal.key {
            KeyRef::Arn(arn) => Ok(own(&arn.partition, &arn.account)),
            KeyRef::AliasArn {
                partition, account, ..
            } => Ok(own(partition, account)),
            // What was pinned has been compared, and need not be asked for.
            KeyRef::Id(_) | KeyRef::Alias(_) if self.seal.account.is_some() => Ok(true),
            KeyRef::Id(_) | KeyRef::Alias(_) => match self.describe().await {
                Ok(description) => Ok(own(&description.arn.partition, &description.arn.account)),
                // Not known, then. The context still says whose copy it is, and the answer must name this very key.
                Err(fault) if fault.reason == Reason::AccessDenied => Ok(true),
                Err(fault) => Err(fault),
            },
        }
    }

    /// DescribeKey tells of the seal's key only, which a recorded one need not be.
    async fn tell_state_of(&self, key: &KeyArn, fault: Fault) -> Fault {
        match self.describe().await {
            Ok(description) if description.arn.same_key(key) => self.tell_state(fault).await,
            _ => fault,
        }
    }
}
