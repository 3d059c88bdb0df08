//! Who asks OCI: sessions that are shared, renewed before they end, and whose faults say what to do.
//!
//! An identity never changes into another one: when explicit credentials fail, that is the answer (security rule S3).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    api_key,
    error::Subject,
    instance_principal::InstancePrincipal,
    operator_identity::{Caller, ResourcePrincipal},
    session::Session,
    workload_identity::WorkloadIdentity,
};
use crate::{
    api::Reason,
    provider::{Clock, Observer, SecretEntries, renewal::Renewal},
    seal::Fault,
};

/// How a session is got.
pub(super) enum Loader {
    /// An API key in a Secret, as it was read.
    ApiKey {
        secret: String,
        entries: Arc<SecretEntries>,
    },
    /// The operator's node.
    Instance(InstancePrincipal),
    /// A ServiceAccount's token for OKE.
    Workload(WorkloadIdentity),
    /// The operator's resource principal.
    Resource(ResourcePrincipal),
    /// The caller of the command line.
    Caller(Caller),
}

/// One identity, shared by every seal that has it.
pub(super) struct Identity {
    loader: Loader,
    renewal: Renewal<Arc<Session>>,
}

impl Identity {
    pub(super) fn new(
        word: &'static str,
        loader: Loader,
        clock: Clock,
        observer: Arc<dyn Observer>,
        timeout: Duration,
    ) -> Self {
        Self {
            loader,
            renewal: Renewal::new("ocikms", word, clock, observer, timeout),
        }
    }

    /// A session to sign with.
    pub(super) async fn get(&self) -> Result<Arc<Session>, Fault> {
        let load = async |now: SystemTime| {
            let session = match &self.loader {
                Loader::ApiKey { secret, entries } => read_secret(secret, entries).await,
                Loader::Instance(principal) => principal.load(now).await,
                Loader::Workload(workload) => workload.load(now).await,
                Loader::Resource(_) => ResourcePrincipal::load(now),
                Loader::Caller(caller) => caller.load(now).await,
            };
            session.map(Arc::new)
        };
        Box::pin(self.renewal.get(load)).await
    }

    /// Forgets a session whose token OCI no longer takes. An API key stays: reading it again changes nothing.
    pub(super) fn forget(&self, session: &Arc<Session>) {
        if session.expires.is_some() {
            self.renewal.forget(|held| Arc::ptr_eq(held, session));
        }
    }

    /// Who it is, as far as known without asking anybody.
    pub(super) fn principal(&self) -> Option<String> {
        match &self.loader {
            Loader::Workload(workload) => Some(format!(
                "ServiceAccount {}/{}",
                workload.namespace, workload.service_account
            )),
            _ => self.renewal.held().and_then(|session| session.principal.clone()),
        }
    }

    /// Whom a policy must name.
    pub(super) fn subject(&self, session: &Session) -> Subject {
        match &self.loader {
            Loader::Workload(workload) => Subject::Workload {
                namespace: workload.namespace.clone(),
                service_account: workload.service_account.clone(),
            },
            Loader::Instance(_) => Subject::Instance,
            Loader::Resource(_) => Subject::Resource,
            Loader::ApiKey { .. } | Loader::Caller(_) => match (&session.principal, session.expires) {
                (Some(user), None) => Subject::User {
                    user: user.clone(),
                    other_fingerprint: session.other_fingerprint.clone(),
                },
                _ => Subject::Session,
            },
        }
    }
}

/// Off the runtime's threads: a pass phrase is made costly to try on purpose.
async fn read_secret(secret: &str, entries: &Arc<SecretEntries>) -> Result<Session, Fault> {
    let (name, entries) = (secret.to_owned(), Arc::clone(entries));
    let read = tokio::task::spawn_blocking(move || api_key::of_secret(&name, &entries)).await;
    read.unwrap_or_else(|_| {
        Err(Fault::denied(
            Reason::CredentialsMissing,
            "the API key could not be read; bring it again as OCI's console made it",
        ))
    })
}
