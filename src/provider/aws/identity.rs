//! Credentials as the KMS client uses them: loaded once, shared, refreshed before they expire, and with faults that
//! say what to do.
//!
//! A [`Source`] never changes into another one: when explicit credentials fail, that is the answer (security rule S3).

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use tokio::sync::Mutex;

use super::{
    Clock,
    operator_identity::OperatorIdentity,
    tenant_identity::{AssumedRole, WebIdentity},
};
use crate::{
    api::Reason,
    provider::Observer,
    seal::{Fault, backoff},
};

/// Credentials are renewed when they have less than this left.
const RENEW_BEFORE: Duration = Duration::from_mins(5);

/// When renewing fails, credentials are still used until they have less than this left.
const USABLE_UNTIL: Duration = Duration::from_secs(30);

/// A failed load is not repeated sooner than its backoff, of which this is the most: a mended trust policy shows soon.
const LONGEST_FAILURE: Duration = Duration::from_secs(30);

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
    /// The word in status and metrics.
    pub(super) word: &'static str,
    loader: Loader,
    clock: Clock,
    observer: Arc<dyn Observer>,
    /// Bound of one load.
    timeout: Duration,
    current: RwLock<Option<Credentials>>,
    /// Held while loading: one load at a time.
    loading: Mutex<Option<Failed>>,
}

struct Failed {
    fault: Fault,
    times: u32,
    until: SystemTime,
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
            word,
            loader,
            clock,
            observer,
            timeout,
            current: RwLock::new(None),
            loading: Mutex::new(None),
        }
    }

    /// Credentials to sign with.
    pub(super) async fn get(&self) -> Result<Credentials, Fault> {
        if let Some(credentials) = self.lasting(RENEW_BEFORE) {
            return Ok(credentials);
        }
        // While one renews, the others go on with what is still good.
        let mut failed = match self.lasting(USABLE_UNTIL) {
            Some(credentials) => match self.loading.try_lock() {
                Ok(guard) => guard,
                Err(_) => return Ok(credentials),
            },
            None => self.loading.lock().await,
        };
        if let Some(credentials) = self.lasting(RENEW_BEFORE) {
            return Ok(credentials);
        }
        let now = (self.clock)();
        if let Some(last) = &*failed
            && now < last.until
        {
            return self.lasting(USABLE_UNTIL).ok_or_else(|| last.fault.clone());
        }
        match Box::pin(self.load()).await {
            Ok(credentials) => {
                *failed = None;
                if let Some(expiry) = credentials.expiry() {
                    let seconds = super::sdk::timestamp(expiry).as_second();
                    self.observer.credential_expiry("awskms", self.word, seconds);
                }
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(credentials.clone());
                Ok(credentials)
            }
            Err(fault) => {
                let times = failed.as_ref().map_or(0, |last| last.times) + 1;
                let wait = backoff(&fault, times, super::jitter()).min(LONGEST_FAILURE);
                let wait = wait.max(fault.retry_after.unwrap_or_default());
                *failed = Some(Failed {
                    fault: fault.clone(),
                    times,
                    until: now + wait,
                });
                self.lasting(USABLE_UNTIL).ok_or(fault)
            }
        }
    }

    /// Forgets what the KMS no longer takes, so that the next use loads anew.
    pub(super) fn forget(&self) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn lasting(&self, at_least: Duration) -> Option<Credentials> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let credentials = current.as_ref()?;
        match credentials.expiry() {
            Some(expiry) if expiry < (self.clock)() + at_least => None,
            _ => Some(credentials.clone()),
        }
    }

    async fn load(&self) -> Result<Credentials, Fault> {
        let load = async {
            match &self.loader {
                Loader::Static(credentials) => Ok(credentials.clone()),
                Loader::WebIdentity(identity) => identity.load((self.clock)()).await,
                Loader::AssumedRole(role) => role.load((self.clock)()).await,
                Loader::Operator(identity) => identity.load((self.clock)()).await,
            }
        };
        match tokio::time::timeout(self.timeout, load).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::transient(
                Reason::KmsUnavailable,
                "getting credentials took too long; check that the operator reaches STS, the metadata service or the \
                 apiserver",
            )),
        }
    }
}

/// A source as the SDK wants it.
#[derive(Clone)]
pub(super) struct Bridge(pub(super) Arc<Source>);

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bridge({})", self.0.word)
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
