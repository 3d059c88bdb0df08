//! Shares that lie beside those in use, for a server that does not take these: those that a rotation left waiting, and for a
//! server of a cluster whose own copy of the data is older than a rotation the set of then.

use std::sync::Arc;

use tokio::time::timeout;

use super::{
    initialize::same_pod,
    job::Job,
    look::{give, states},
    record, rekeyed,
};
use crate::{
    controller::context::Context,
    seal::{
        Fault, KeyBytes,
        model::Key,
        observed::{Observed, PodFacts},
        store::{
            StoreFacts,
            rekey::{self, Rekey},
        },
        unseal::{
            Place,
            exchange::{Give, SealState, malformed},
            rotate::one_well,
            share,
            watch::Look,
        },
    },
    servers::{Connection, TOTAL_TIMEOUT, late},
};

/// The most shares that a set beside the one in use has which this server may get.
pub fn most(job: &Job, state: &SealState) -> usize {
    let seen = job.seen();
    let facts = &seen.observed.store;
    let waiting = rekey::of(facts).map_or(0, |rekey| rekey.pending.len());
    let former = match facts {
        StoreFacts::Found(store) if state.is_replica() => {
            let sets = rekey::former(facts).into_iter();
            sets.map(|set| rekey::shares_of(store, set).count()).max()
        }
        _ => None,
    };
    waiting.max(former.unwrap_or_default())
}

/// A server that did not take the shares in use.
pub struct Beside<'a> {
    /// Of the operator.
    pub context: &'a Arc<Context>,
    /// Of its SealConfig.
    pub job: &'a Arc<Job>,
    /// Its pod.
    pub pod: &'a PodFacts,
    /// Where it is.
    pub place: &'a Place,
    /// What it said of itself.
    pub state: &'a SealState,
    /// What it was given.
    pub wanted: Give,
}

impl Beside<'_> {
    /// Tries the shares beside those in use. Whether the server is unsealed.
    pub async fn unseals(&self, connection: &mut Connection, look: &mut Look) -> bool {
        let (context, job, needed) = (self.context, self.job, self.wanted.shares);
        let seen = job.seen();
        let store = &seen.observed.store;
        if let Some(rekey) = rekey::of(store).filter(|rekey| rekey.is_pending()) {
            let shares = job.pending(context, store, rekey, needed).await;
            if self.tries(connection, look, shares, "that wait").await {
                taken(context, job, rekey);
                return true;
            }
        }
        let former = rekey::former(store);
        if former.is_empty() || !self.state.is_replica() {
            return false;
        }
        // Alone it could be one whose data were put back, which is for a person to decide.
        look.alone = !self.has_peer().await;
        if look.alone {
            return false;
        }
        for set in former {
            let shares = job.former(context, store, set, needed).await;
            if self
                .tries(connection, look, shares, &format!("of set {set}"))
                .await
            {
                return true;
            }
        }
        false
    }

    async fn tries(
        &self,
        connection: &mut Connection,
        look: &mut Look,
        shares: Result<Vec<(Key, KeyBytes)>, Fault>,
        which: &str,
    ) -> bool {
        let outcome = match shares {
            Ok(shares) => self.give(connection, look, &shares).await,
            Err(fault) => Err(fault),
        };
        let what = match &outcome {
            Ok(()) => format!("the shares {which} unsealed the server"),
            Err(fault) => format!(
                "the shares {which} were tried, and did not unseal the server ({})",
                fault.reason
            ),
        };
        say(self.job, self.pod, &what);
        outcome.is_ok()
    }

    async fn give(
        &self,
        connection: &mut Connection,
        look: &mut Look,
        shares: &[(Key, KeyBytes)],
    ) -> Result<(), Fault> {
        let bodies = shares
            .iter()
            .map(|(key, bytes)| match share::body(bytes, false) {
                Some(body) => Ok((key.name.as_str(), body)),
                None => Err(malformed(&key.name)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        same_pod(self.context, self.job, self.pod, self.place).await?;
        let wanted = Give {
            reset: false,
            ..self.wanted
        };
        timeout(TOTAL_TIMEOUT, give(connection, bodies, wanted, look))
            .await
            .map_err(|_| late())?
    }

    /// Whether another selected server is unsealed and of the recorded cluster: what this one lacks it gets from there.
    async fn has_peer(&self) -> bool {
        let Some(cluster) = self.job.cluster() else {
            return false;
        };
        let (context, job) = (self.context, self.job);
        let others = context.unsealers.others(context, job, &self.pod.uid);
        let others: Vec<_> = others.into_iter().map(|(pod, _)| pod).collect();
        one_well(&cluster, &states(context, job, &others).await)
    }
}

/// Has shares that wait, and that unsealed a server, taken into use. Not ended with the look at the server; if it fails
/// they still wait, and the next look finds them.
fn taken(context: &Arc<Context>, job: &Arc<Job>, rekey: &Rekey) {
    let (context, job, rekey) = (context.clone(), job.clone(), rekey.clone());
    tokio::spawn(async move {
        let observed = job.seen().observed.clone();
        if let Err(fault) = take(&context, &job, &observed, &rekey).await {
            let (namespace, name) = (&job.model.id.namespace, &job.model.id.name);
            let reason = fault.reason.as_str();
            tracing::warn!(
                namespace,
                name,
                reason,
                "the shares that unsealed a server wait still: {}",
                fault.message
            );
        }
    });
}

/// A server was unsealed with shares of the set in use: written down, if they come from a rotation and it is not yet.
pub fn prove(context: &Arc<Context>, job: &Arc<Job>) {
    let Some(set) = rekey::unproven(&job.seen().observed.store) else {
        return;
    };
    let (context, job) = (context.clone(), job.clone());
    tokio::spawn(async move {
        let observed = job.seen().observed.clone();
        // It is of no consequence but for the record, and tried again at the next unsealing.
        let _ = rekeyed::prove(&context, &job.model, &observed, set).await;
    });
}

/// Takes the shares that wait into use.
///
/// # Errors
/// Why one does not open, or why it was not written.
pub async fn take(context: &Context, job: &Job, observed: &Observed, rekey: &Rekey) -> Result<(), Fault> {
    let facts = record::find(&context.client, &job.model).await?;
    let shares = job.pending(context, &facts, rekey, rekey.pending.len()).await?;
    rekeyed::take(context, &job.model, observed, &rekey.id, &shares).await?;
    let id = &job.model.id;
    context.look_at(&id.namespace, &id.name);
    Ok(())
}

/// Writes into the log what becomes of the shares of a set.
pub fn say(job: &Job, pod: &PodFacts, what: &str) {
    let id = &job.model.id;
    let (namespace, name) = (&id.namespace, &id.name);
    tracing::info!(namespace, name, pod = pod.name, "rotate shares: {what}");
}
