//! One look at one server: asked over one connection, and unsealed over the same one (security rule S10).

use std::{sync::Arc, time::Instant};

use futures::future::join_all;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{
    beside::{self, Beside},
    initialize::{consider, same_pod},
    job::Job,
    rotate, token,
};
use crate::{
    api::Reason,
    controller::context::Context,
    provider,
    seal::{
        Fault,
        observed::PodFacts,
        store::sets::Held,
        unseal::{
            Place, PodRecord, Said, ShareKind, Transport,
            exchange::{
                After, Answer, First, Give, Known, SealState, after, busy, first, malformed, same_cluster,
            },
            initialize::lost,
            share,
            verify::{Allowed, may_speak},
            watch::Look,
        },
    },
    servers::{Connection, TOTAL_TIMEOUT, Trust, late},
};

/// Looks at a server, and unseals it if that is what it needs.
pub async fn look(context: &Arc<Context>, job: &Arc<Job>, pod: &PodFacts, record: &PodRecord) -> Look {
    let mut look = Look::default();
    let Some(place) = job.unseal.place(pod) else {
        return look;
    };
    // Closed only with the job, whose tasks end before.
    let _slot = job.slots.acquire().await;
    look.fault = visit(context, job, pod, &place, record, &mut look).await.err();
    look
}

async fn visit(
    context: &Arc<Context>,
    job: &Arc<Job>,
    pod: &PodFacts,
    place: &Place,
    record: &PodRecord,
    look: &mut Look,
) -> Result<(), Fault> {
    let namespace = &job.model.id.namespace;
    let Reach { trust, .. } = reach(context, job, pod)?;
    let (mut connection, state) = connected(place, trust.as_ref()).await?;
    look.said = Some(state.said());
    same_cluster(&state, job.cluster().as_deref())?;
    look.cluster = state.cluster().map(ToOwned::to_owned);
    look.migrating = state.migration;
    if state.initialized
        && let Held::Marker(marker) = job.set()
    {
        let (namespace, name) = (&job.model.id.namespace, &job.model.id.name);
        let told = context.inits.told(namespace, name);
        return Err(told.unwrap_or_else(|| lost(&marker.pod, true)));
    }
    // What this one was initialised with a moment ago is not known to this job yet: older shares are not its own.
    if state.initialized
        && state.sealed
        && let Some(told) = context.inits.told(&job.model.id.namespace, &job.model.id.name)
    {
        return Err(told);
    }
    let known = Known {
        policy: job.unseal.policy,
        was_unsealed: record.was_unsealed(&place.container),
        migrate: job.unseal.migrate,
        shares: job.count(ShareKind::Unseal).max(beside::most(job, &state)),
        recovery_shares: job.count(ShareKind::Recovery),
        before: record.look.as_ref().and_then(|look| look.begun.as_ref()),
    };
    let give = match first(&state, known) {
        First::Nothing if job.revokes() => {
            return token::revoke(context, job, pod, place, &mut connection).await;
        }
        First::Nothing if job.rotation().is_due() => {
            look.rotating = true;
            return rotate::consider(context, job, pod, place, connection, &state).await;
        }
        First::Nothing => return Ok(()),
        First::Uninitialized => {
            return Err(consider(context, job, pod, place, connection, &state).await);
        }
        First::Stays(fault) => return Err(fault),
        First::Busy(attempt) => {
            look.begun = Some(attempt);
            return Err(busy());
        }
        First::Give(give) => give,
    };
    let seen = Instant::now();
    let mut outcome = unseal(context, job, pod, place, &mut connection, give, look).await;
    if outcome.is_ok() {
        beside::prove(context, job);
    } else if let Err(fault) = &outcome
        // Refused, or fewer than it asks for.
        && [Reason::UnsealRejected, Reason::UnsealKeysMissing].contains(&fault.reason)
        && give.kind == ShareKind::Unseal
        && !give.migrate
    {
        let beside = Beside {
            context,
            job,
            pod,
            place,
            state: &state,
            wanted: give,
        };
        if beside.unseals(&mut connection, look).await {
            outcome = Ok(());
        }
    }
    let word = outcome
        .as_ref()
        .map_or_else(|fault| fault.reason.as_str(), |()| "ok");
    context.metrics.unsealed(word, seen.elapsed());
    if outcome.is_ok() {
        let (name, took) = (&job.model.id.name, seen.elapsed().as_millis());
        tracing::info!(
            namespace,
            name,
            pod = pod.name,
            took_ms = took,
            "a server was unsealed"
        );
        look.rotating = job.rotation().is_due();
        if job.revokes() {
            return Err(token::held("the server was unsealed a moment ago"));
        }
    }
    outcome
}

/// Where a server is and whom to trust there.
pub struct Reach {
    /// Where.
    pub place: Place,
    /// Whom; `None` over http.
    pub trust: Option<Trust>,
}

/// Where a pod's server is, if it may be spoken to.
///
/// # Errors
/// `TargetNotVerified`; `TargetUnreachable` for a pod that does not run.
pub fn reach(context: &Context, job: &Job, pod: &PodFacts) -> Result<Reach, Fault> {
    let namespace = &job.model.id.namespace;
    let place = job.unseal.place(pod).ok_or_else(|| {
        Fault::transient(
            Reason::TargetUnreachable,
            "the pod does not run; it is looked at when it does",
        )
    })?;
    let allowed = Allowed {
        insecure: context.settings.insecure_unseal.contains(namespace),
        loopback: context.settings.unseal_loopback,
    };
    let forbidden = provider::is_forbidden(place.ip);
    may_speak(&job.unseal, &place, namespace, forbidden, allowed)?;
    let trust = trust(context, job, pod)?;
    Ok(Reach { place, trust })
}

/// A connection, and what the server says of itself over it.
///
/// # Errors
/// As `Connection::open` and `Connection::seal_status`.
pub async fn connected(place: &Place, trust: Option<&Trust>) -> Result<(Connection, SealState), Fault> {
    let asked = async {
        let mut connection = Connection::open(place.ip, place.port, trust).await?;
        let state = connection.seal_status().await?;
        Ok((connection, state))
    };
    timeout(TOTAL_TIMEOUT, asked).await.map_err(|_| late())?
}

/// What servers say of themselves now; `None` = one does not answer, or may not be asked.
pub async fn states(context: &Context, job: &Job, pods: &[PodFacts]) -> Vec<Option<SealState>> {
    let asking = pods.iter().map(|pod| async {
        let Reach { place, trust } = reach(context, job, pod).ok()?;
        let (_, state) = connected(&place, trust.as_ref()).await.ok()?;
        Some(state)
    });
    join_all(asking).await
}

/// Whom to trust; `None` over http.
fn trust(context: &Context, job: &Job, pod: &PodFacts) -> Result<Option<Trust>, Fault> {
    let Transport::Tls { ca, .. } = &job.unseal.transport else {
        return Ok(None);
    };
    let missing = || {
        Fault::denied(
            Reason::TargetNotVerified,
            format!(
                "tls.ca: {ca} does not exist, or has no entry {:?} of at most 64 KiB; put the CA of your servers there",
                ca.key
            ),
        )
    };
    let pem = job.ca().ok_or_else(missing)?;
    let name = job
        .unseal
        .tls_name(&pod.name, &job.model.id.namespace)
        .unwrap_or_default();
    Trust::new(pem, &name, &context.cluster_ca).map(Some)
}

/// Gives shares over the connection that was asked.
async fn unseal(
    context: &Context,
    job: &Arc<Job>,
    pod: &PodFacts,
    place: &Place,
    connection: &mut Connection,
    wanted: Give,
    look: &mut Look,
) -> Result<(), Fault> {
    let shares = job.shares(context, wanted.kind, wanted.shares).await?;
    let bodies = shares
        .iter()
        .map(|(key, bytes)| match share::body(bytes, wanted.migrate) {
            Some(body) => Ok((key.as_str(), body)),
            None => Err(malformed(key)),
        })
        .collect::<Result<Vec<_>, _>>()?;
    // From here to the first share nothing is waited for but the apiserver's own word on the pod.
    same_pod(context, job, pod, place).await?;
    timeout(TOTAL_TIMEOUT, give(connection, bodies, wanted, look))
        .await
        .map_err(|_| late())?
}

/// Gives these shares, each as the body of its request, by the names of their keys.
///
/// # Errors
/// Why the server is not unsealed.
pub async fn give(
    connection: &mut Connection,
    bodies: Vec<(&str, Zeroizing<Vec<u8>>)>,
    wanted: Give,
    look: &mut Look,
) -> Result<(), Fault> {
    if wanted.reset {
        connection.reset().await?;
    }
    let needed = wanted.shares;
    let mut given: Vec<&str> = Vec::with_capacity(needed);
    let mut nonce: Option<String> = None;
    for (key, body) in bodies {
        let answer = connection.give(body).await?;
        given.push(key);
        match after(&given, needed, nonce.as_deref(), &answer) {
            After::Next => {
                if let Answer::State(state) = &answer {
                    nonce.get_or_insert_with(|| state.nonce.clone());
                }
            }
            After::Done => {
                look.said = Some(Said::Unsealed);
                if let Answer::State(state) = &answer {
                    look.migrating = state.migration;
                    look.cluster = state.cluster().map(ToOwned::to_owned);
                }
                return Ok(());
            }
            After::Disturbed(attempt) => {
                look.begun = Some(attempt);
                return Err(busy());
            }
            After::Settling(fault) => return Err(fault),
            After::Rejected(fault) => {
                if given.len() < needed {
                    // What it has got so far is left to nobody.
                    let _ = connection.reset().await;
                }
                return Err(fault);
            }
        }
    }
    // `after` ends the loop at the last share, whatever the server says.
    Err(busy())
}
