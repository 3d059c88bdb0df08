//! The clouds' KMSes, one folder a cloud. Their SDKs' types do not leave those folders.

use std::{collections::BTreeMap, fmt};

use futures::future::BoxFuture;
use zeroize::Zeroizing;

pub use crate::api::WrappedFormat as Format;
use crate::seal::{Fault, KeyBytes, aws::KeyArn};

pub mod aws;
mod cache;

/// What credentials may ask of the cluster, always in the SealConfig's own namespace.
///
/// An implementation maps its own errors: a refused TokenRequest is `TokenRequestDenied`, a refused read names the
/// missing right, a cluster that does not answer is transient.
pub trait Cluster: Send + Sync {
    /// Annotations of a ServiceAccount; `None` = there is no such ServiceAccount.
    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, Fault>>;

    /// A fresh token of a ServiceAccount for one audience (TokenRequest).
    fn token<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Token, Fault>>;

    /// Entries of a Secret; `None` = there is no such Secret.
    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<SecretEntries>, Fault>>;
}

/// Entries of a Secret, wiped when dropped.
pub type SecretEntries = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// A bearer token, wiped when dropped and never shown.
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes ownership of the text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, for the one who sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// The SealConfig on whose behalf something is done.
#[derive(Clone, Copy, Debug)]
pub struct Tenant<'a> {
    /// Its namespace: the boundary of everything that it may refer to.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// A key that a KMS opened, and the KMS key that opened it. That key was checked to be one that the seal names.
#[derive(Debug)]
pub struct Opened {
    /// The bytes.
    pub key: KeyBytes,
    /// What the KMS says it used.
    pub key_id: KeyArn,
}

/// Who counts requests and watches expiries: the metrics, or a test.
pub trait Observer: Send + Sync {
    /// One request to a KMS. `outcome` is `ok` or a reason's word.
    fn kms_request(
        &self,
        provider: &'static str,
        operation: &'static str,
        outcome: &'static str,
        seconds: f64,
    );

    /// Credentials were loaded that expire at this time.
    fn credential_expiry(&self, provider: &'static str, source: &'static str, unix_seconds: i64);
}
