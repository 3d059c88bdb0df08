//! Leader election by a `coordination.k8s.io` Lease. [`election`] decides; here is what it does.
//!
//! Two things keep a replica that lost its term from writing. It ends: that is the simplest thing that leaves no half-done
//! work, no stale cache and no metric behind, and the kubelet starts it again as a standby. And until it has ended, its
//! client lets no write pass once [`Term::holds`] says no, which depends on nothing but the monotonic clock: also when the
//! process stood still and its workers wake up before this module does.

pub mod election;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, ResourceExt, api::PostParams};
use tokio::sync::{oneshot, watch};

use election::{Answer, Election, Loss, Next, Record, Step, TIMING};

/// The longest that one request may take, so that several fit into a term.
const PATIENCE: Duration = Duration::from_secs(4);

/// Where the Lease lies, and under which name we ask for it.
#[derive(Clone, Debug)]
pub struct Candidacy {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Our name, which no other process has or had.
    pub identity: String,
}

/// Until when this process may write.
#[derive(Clone, Debug)]
pub struct Term {
    start: Instant,
    /// Milliseconds since `start`.
    until: Arc<AtomicU64>,
}

impl Term {
    /// The term of who needs no election.
    pub fn endless() -> Self {
        let term = Self::none();
        term.until.store(u64::MAX, Ordering::SeqCst);
        term
    }

    /// The term of who has not been elected.
    pub fn none() -> Self {
        Self {
            start: Instant::now(),
            until: Arc::default(),
        }
    }

    /// Whether this process may write now.
    pub fn holds(&self) -> bool {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        now < self.until.load(Ordering::SeqCst)
    }

    fn set(&self, until: Option<Duration>) {
        let until = until.map_or(0, |until| u64::try_from(until.as_millis()).unwrap_or(0));
        self.until.store(until, Ordering::SeqCst);
    }
}

/// The Lease as we know it, and the way to it.
struct Held {
    api: Api<Lease>,
    candidacy: Candidacy,
    last: Lease,
    complained: Option<String>,
}

/// Runs for the Lease, and holds it until `finished`; then gives it up. `leads` says when the term has begun.
///
/// `client` must not be one whose writes depend on the term.
///
/// # Errors
/// Why the term is over: then this process may do nothing more, and has to end.
pub async fn hold(
    client: Client,
    candidacy: Candidacy,
    term: Term,
    leads: watch::Sender<bool>,
    mut finished: oneshot::Receiver<()>,
) -> Result<(), Loss> {
    let mut election = Election::new(candidacy.identity.clone(), TIMING);
    let mut held = Held {
        api: Api::namespaced(client, &candidacy.namespace),
        candidacy,
        last: Lease::default(),
        complained: None,
    };
    loop {
        let now = term.start.elapsed();
        match election.next(now) {
            Next::Lost(loss) => {
                term.set(None);
                tracing::error!("this replica leads no more: {loss}");
                return Err(loss);
            }
            Next::Wait(wait) => {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = &mut finished => break,
                }
            }
            Next::Ask(step) => {
                let left = election
                    .until()
                    .map_or(PATIENCE, |until| until.saturating_sub(now).min(PATIENCE));
                let answer = tokio::time::timeout(left, held.ask(step)).await;
                let answer = answer.unwrap_or(Answer::Unknown);
                election.heard(step, now, term.start.elapsed(), &answer);
                term.set(election.until());
                let leading = term.holds();
                if leading && !*leads.borrow() {
                    let (lease, identity) = (&held.candidacy.name, &held.candidacy.identity);
                    tracing::info!(
                        lease = lease.as_str(),
                        identity = identity.as_str(),
                        "this replica leads"
                    );
                    let _ = leads.send(true);
                }
                if matches!(
                    finished.try_recv(),
                    Ok(()) | Err(oneshot::error::TryRecvError::Closed)
                ) {
                    break;
                }
            }
        }
    }
    // Nothing more is written before the Lease is free.
    let led = election.until().is_some();
    term.set(None);
    if led {
        held.release().await;
    }
    Ok(())
}

impl Held {
    async fn ask(&mut self, step: Step) -> Answer {
        let name = self.candidacy.name.clone();
        let parameters = PostParams::default();
        let (verb, answered) = match step {
            Step::Look => ("get", self.api.get_opt(&name).await),
            Step::Create => {
                let lease = self.ours(Lease::default());
                ("create", self.api.create(&parameters, &lease).await.map(Some))
            }
            Step::Hold => {
                let lease = self.ours(self.last.clone());
                (
                    "update",
                    self.api.replace(&name, &parameters, &lease).await.map(Some),
                )
            }
        };
        match answered {
            Ok(Some(lease)) => {
                self.complained = None;
                let record = record(&lease);
                self.last = lease;
                Answer::Is(record)
            }
            Ok(None) => Answer::Missing,
            Err(kube::Error::Api(status)) if status.code == StatusCode::CONFLICT => Answer::Conflict,
            Err(kube::Error::Api(status)) if status.code == StatusCode::NOT_FOUND && step == Step::Hold => {
                Answer::Missing
            }
            Err(error) => {
                self.complain(verb, &error);
                Answer::Unknown
            }
        }
    }

    /// That lease with us as its holder: over the very version that it names.
    fn ours(&self, mut lease: Lease) -> Lease {
        let now = Some(MicroTime(Timestamp::now()));
        let identity = &self.candidacy.identity;
        lease.metadata.name = Some(self.candidacy.name.clone());
        lease.metadata.namespace = Some(self.candidacy.namespace.clone());
        let before = lease.spec.take().unwrap_or_default();
        let renewal = before.holder_identity.as_ref() == Some(identity);
        let seconds = i32::try_from(TIMING.duration.as_secs()).ok();
        lease.spec = Some(LeaseSpec {
            acquire_time: if renewal { before.acquire_time } else { now.clone() },
            holder_identity: Some(identity.clone()),
            lease_duration_seconds: seconds,
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!renewal)),
            renew_time: now,
            ..before
        });
        lease
    }

    /// Gives it up, so that others need not wait.
    async fn release(&mut self) {
        let mut lease = self.ours(self.last.clone());
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let parameters = PostParams::default();
        let written = self.api.replace(&self.candidacy.name, &parameters, &lease);
        if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, written).await {
            tracing::info!("the Lease is given up");
        } else {
            tracing::warn!("the Lease could not be given up: others take over when it expires");
        }
    }

    /// Once for each kind of trouble.
    fn complain(&mut self, verb: &str, error: &kube::Error) {
        let said = match error {
            kube::Error::Api(status) => format!("the apiserver answers {} to {verb}", status.code),
            _ => "the apiserver does not answer".to_owned(),
        };
        if self.complained.as_ref() == Some(&said) {
            return;
        }
        tracing::warn!(
            lease = self.candidacy.name.as_str(),
            namespace = self.candidacy.namespace.as_str(),
            "leader election: {said}; it is tried again, and nothing is done meanwhile. The operator needs get, create and \
             update on leases of coordination.k8s.io in that namespace"
        );
        self.complained = Some(said);
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    let seconds = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .unwrap_or(0);
    Record {
        version: lease.resource_version().unwrap_or_default(),
        holder: spec
            .and_then(|spec| spec.holder_identity.clone())
            .unwrap_or_default(),
        duration: Duration::from_secs(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_ends_by_itself() {
        assert!(Term::endless().holds());
        let term = Term::none();
        assert!(!term.holds());
        term.set(Some(Duration::from_mins(10)));
        assert!(term.holds());
        // Not renewed: nobody has to come and say that it is over.
        term.set(Some(Duration::ZERO));
        assert!(!term.holds());
        term.set(Some(Duration::from_mins(10)));
        term.set(None);
        assert!(!term.holds());
    }
}
