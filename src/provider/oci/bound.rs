//! The operator's own copies: only the key that made one is asked to open it (security rule S4).

use super::{kms::Kms, messages};
use crate::{
    api::Reason,
    provider::{
        Bound, Opened, Wrapped,
        bound::{self, PUT_BACK, Tie},
    },
    seal::{Ciphertext, Fault, KeyBytes, oci::is_ocid},
    wrapped::blob_info,
};

impl Kms {
    /// Wraps a key as an envelope that is tied to a place.
    ///
    /// # Errors
    /// As [`Kms::wrap`] with `blobinfo`, but that an unknown version of the key is none; `InvalidSpec` for a context that
    /// is too long.
    pub async fn wrap_bound(&self, key: &KeyBytes, bound: &Bound<'_>) -> Result<Wrapped, Fault> {
        let sealed = blob_info::seal(key.expose(), bound.aad)?;
        let (text, version) = self.encrypt(&sealed.data_key, bound.context).await?;
        let version = match version {
            Some(version) => Some(version),
            // It is for knowing when to wrap anew, so a copy is not lost for want of it.
            None => self
                .facts(None)
                .await
                .ok()
                .and_then(|facts| facts.version.clone()),
        };
        Ok(Wrapped {
            ciphertext: messages::envelope(sealed, text, version.clone().unwrap_or_default()),
            key_id: self.key.to_string(),
            key_version: version,
        })
    }

    /// Opens what [`Kms::wrap_bound`] made. `recorded`: the OCID of the key that made it.
    ///
    /// # Errors
    /// `ContextMismatch` for a copy of another place; `KeyNotAllowed` for another recorded key than the seal's, without a
    /// request, and if another key opened it; `CiphertextInvalid` for what is never written; and whatever the vault or the
    /// credentials say.
    pub async fn unwrap_bound(
        &self,
        ciphertext: &Ciphertext,
        bound: &Bound<'_>,
        recorded: &str,
    ) -> Result<Opened, Fault> {
        let copy = bound::read(ciphertext)?;
        let text = copy
            .key_info
            .as_ref()
            .and_then(messages::wrapped_text)
            .filter(|text| text.len() <= messages::MAX_CIPHERTEXT)
            .ok_or_else(bound::damaged)?;
        if recorded != self.key.as_str() {
            return Err(self.other_key(recorded));
        }
        let data_key = self.decrypt(text, bound.context, Tie::Operators).await?;
        Ok(Opened {
            key: bound::open(&data_key, &copy, bound.aad)?,
            key_id: self.key.to_string(),
        })
    }

    fn other_key(&self, recorded: &str) -> Fault {
        let made = if is_ocid(recorded) {
            format!("with {recorded}")
        } else {
            "with something that is no OCID".to_owned()
        };
        Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "the store says that the copy was made {made}, and the seal names {}, so nothing was decrypted; to change the \
                 key, set keyID back, add a seal with the new key, and remove this one when that has a copy; if the seal \
                 always named its key, {PUT_BACK}",
                self.key
            ),
        )
    }
}
