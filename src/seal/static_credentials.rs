//! Credentials that may stand in a server's configuration: a user's own, which do not expire (security rule S9).

use std::fmt;

use zeroize::Zeroizing;

use super::Fault;

/// An access key of a user.
pub struct StaticCredentials {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
}

impl StaticCredentials {
    /// Takes an access key that was read from a Secret, if it is one that lasts.
    ///
    /// # Errors
    /// `InvalidSpec`: it is a temporary one.
    pub fn new(
        access_key_id: &str,
        secret_access_key: Zeroizing<String>,
        has_session_token: bool,
    ) -> Result<Self, Fault> {
        // Ids of temporary access keys begin so (IAM user guide, unique identifiers).
        if has_session_token || access_key_id.starts_with("ASIA") {
            return Err(Fault::invalid_spec(
                "includeCredentials writes credentials that last, and those in the Secret are temporary; take includeCredentials \
                 out and let the pods use their own identity, or put an access key of a user into the Secret",
            ));
        }
        Ok(Self {
            access_key_id: access_key_id.to_owned(),
            secret_access_key,
        })
    }

    /// Which access key; no secret.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The secret, for the one who writes it.
    pub fn secret_access_key(&self) -> &str {
        &self.secret_access_key
    }
}

impl fmt::Debug for StaticCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
