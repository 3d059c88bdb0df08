//! Credentials as the KMS client uses them: loaded once, shared, refreshed before they expire, and with faults that
//! say what to do.
//!
//! A [`Source`] never changes into another one: when explicit credentials fail, that is the answer (security rule S3).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};

use super::{
    Clock,
    operator_identity::OperatorIdentity,
    tenant_identity::{AssumedRole, WebIdentity},
};
use crate::{
    provider::{
        Observer,
        renewal::{Expires, Renewal},
    },
    seal::Fault,
};

/// How credentials are got.
pub(super) enum Loader {
    /// An access key of a Secret.
    Static(Credentials),
    /// A ServiceAccount's token for its role.
    WebIdentity(WebIdentity),
    /// A role on top of others.
    AssumedRole(AssumedRole),
    /// The operator's own.
    Operator(OperatorIdentity),
}

/// One identity, shared by every seal that has it.
pub(super) struct Source {
    loader: Loader,
    renewal: Renewal<Credentials>,
}

impl Expires for Credentials {
    // STS issues nothing for less than fifteen minutes.
    const BRIEF: bool = false;

    fn expiry(&self) -> Option<SystemTime> {
        Credentials::expiry(self)
    }
}

impl Source {
    pub(super) fn new(
        word: &'static str,
        loader: Loader,
        clock: Clock,
        observer: Arc<dyn Observer>,
        timeout: Duration,
    ) -> Self {
        Self {
            loader,
            renewal: Renewal::new("awskms", word, clock, observer, timeout),
        }
    }

    /// Credentials to sign with.
    pub(super) async fn get(&self) -> Result<Credentials, Fault> {
        let load = async |now| match &self.loader {
            Loader::Static(credentials) => Ok(credentials.clone()),
            Loader::WebIdentity(identity) => identity.load(now).await,
            Loader::AssumedRole(role) => role.load(now).await,
            Loader::Operator(identity) => identity.load(now).await,
        };
        Box::pin(self.renewal.get(load)).await
    }

    /// Forgets what the KMS no longer takes, so that the next use loads anew.
    pub(super) fn forget(&self) {
        self.renewal.forget(|_| true);
    }
}

/// A source as the SDK wants it.
#[derive(Clone)]
pub(super) struct Bridge(pub(super) Arc<Source>);

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bridge({})", self.0.renewal.word())
    }
}

impl ProvideCredentials for Bridge {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let got: provider::Result = self.0.get().await.map_err(CredentialsError::provider_error);
            got
        })
    }
}
