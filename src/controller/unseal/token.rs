//! Revokes the root token that a server answered when it was initialised (security rule S12).

use std::sync::Arc;

use tokio::time::timeout;

use super::{initialize::same_pod, job::Job, record};
use crate::{
    api::Reason,
    controller::context::Context,
    seal::{
        Fault,
        observed::PodFacts,
        store::{StoreFacts, sets},
        unseal::{Place, Transport},
    },
    servers::{Connection, TOTAL_TIMEOUT, Token, late},
};

/// Revokes it over the connection to a server that is unsealed, holds that it is of no use any more, and drops the copies.
/// Stopped anywhere, it is taken up again from the copies.
///
/// # Errors
/// `RootTokenHeld`, with what stands in the way.
pub async fn revoke(
    context: &Context,
    job: &Arc<Job>,
    pod: &PodFacts,
    place: &Place,
    connection: &mut Connection,
) -> Result<(), Fault> {
    // Another server's look is at it.
    let Ok(_alone) = job.revoking.try_lock() else {
        return Ok(());
    };
    if job.unseal.transport == Transport::Plain {
        return Err(held("it is never sent over http"));
    }
    attempt(context, job, pod, place, connection)
        .await
        .map_err(|fault| held(&fault.message))
}

async fn attempt(
    context: &Context,
    job: &Arc<Job>,
    pod: &PodFacts,
    place: &Place,
    connection: &mut Connection,
) -> Result<(), Fault> {
    let token = job.token(context).await?;
    same_pod(context, job, pod, place).await?;
    let asked = async {
        connection.revoke(&token).await?;
        connection.look_up(&token).await
    };
    match timeout(TOTAL_TIMEOUT, asked).await.map_err(|_| late())?? {
        Token::Good => Err(Fault::transient(
            Reason::RootTokenHeld,
            "the server still takes it after it was asked to revoke it",
        )),
        Token::Refused => {
            let seen = job.seen();
            let facts = &seen.observed.store;
            if let (Some(key), StoreFacts::Found(store)) = (sets::token(facts), facts)
                && let Some(sealed) = store.header.keys.get(&key.name)
            {
                record::drop_token(context, &job.model, &seen.observed, &key.name, sealed).await?;
            }
            let id = &job.model.id;
            let (namespace, name) = (&id.namespace, &id.name);
            tracing::info!(namespace, name, pod = pod.name, "the root token is revoked");
            context.look_at(namespace, name);
            Ok(())
        }
    }
}

/// It is not revoked yet.
pub fn held(why: &str) -> Fault {
    Fault::transient(
        Reason::RootTokenHeld,
        format!("the root token is kept wrapped and not revoked yet: {why}; it is tried again"),
    )
}
