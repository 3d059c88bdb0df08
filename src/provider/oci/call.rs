//! A signed request to a vault: to the right endpoint, as the right identity, tried again where that makes sense.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::Method;

use super::{
    error::{self, Asked, Failure, Operation, Subject},
    http::{self, Answer, Client, Request},
    identity::Identity,
    instance_principal::refusal,
    kms::KeyFacts,
    retry,
    session::Session,
    signature::{self, Form, Unsigned},
};
use crate::{
    api::Reason,
    provider::{Clock, Observer, Timeouts, bound::Tie, pace::Turns, recent::Recent, wire},
    seal::{Fault, endpoint::AllowedEndpoint, oci::KeyOcid},
};

/// The way to the vault.
pub(super) struct Connection {
    pub(super) crypto: AllowedEndpoint,
    pub(super) management: AllowedEndpoint,
    pub(super) open: Arc<Client>,
    pub(super) guarded: Arc<Client>,
    pub(super) identity: Arc<Identity>,
    pub(super) timeouts: Timeouts,
    pub(super) clock: Clock,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) turns: Turns,
    /// Shared by all seals with one identity, endpoint and key.
    pub(super) description: Arc<Recent<KeyFacts>>,
}

/// What is asked of a key, before it is known who asks.
pub(super) struct Call<'a> {
    pub(super) operation: Operation,
    pub(super) key: &'a KeyOcid,
    pub(super) method: Method,
    pub(super) target: &'a str,
    /// Wiped when the last try is over.
    pub(super) body: Bytes,
    /// What the ciphertext is tied to by the associated data that is sent.
    pub(super) tie: Tie,
}

impl Call<'_> {
    fn asked<'a>(&'a self, subject: &'a Subject) -> Asked<'a> {
        Asked {
            operation: self.operation,
            key: self.key.as_str(),
            tie: self.tie,
            subject,
        }
    }
}

/// Realms are islands: an identity of one is unknown in every other.
pub(super) fn check_realm(key: &KeyOcid, session: &Session) -> Result<(), Fault> {
    match &session.realm {
        Some(realm) if realm != key.realm() => Err(Fault::invalid(
            Reason::RealmMismatch,
            format!(
                "the identity belongs to realm {realm} and the key to realm {}, which know nothing of each other; use an \
                 identity of the key's realm",
                key.realm()
            ),
        )),
        _ => Ok(()),
    }
}

impl Connection {
    /// Sends a request, signed anew at each try: told to the observer, its error said in our words.
    pub(super) async fn call(&self, call: &Call<'_>) -> Result<Answer, Fault> {
        let bound = self.timeouts.operation;
        let (mut tries, mut renewed, mut spent) = (0, false, Duration::ZERO);
        loop {
            // The session first, outside of the operation's bound in time: its faults are not the vault's.
            let session = self.identity.get().await?;
            check_realm(call.key, &session)?;
            self.turns.next().await;
            tries += 1;
            let sent = Instant::now();
            let outcome = self.send(call, &session, bound.saturating_sub(spent)).await;
            let failure = match outcome {
                Ok(answer) => {
                    self.turns.learn(None);
                    self.observe(call.operation, "ok", sent);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            spent += sent.elapsed();
            let subject = self.identity.subject(&session);
            let fault = error::kms(&call.asked(&subject), &failure);
            self.turns.learn(Some(&fault));
            self.observe(call.operation, fault.reason.as_str(), sent);
            // A token that was revoked, or whose certificate has rotated away: one new one is worth a try.
            if failure.is_unauthenticated() && session.expires.is_some() && !renewed {
                self.identity.forget(&session);
                renewed = true;
                tries -= 1;
                continue;
            }
            let left = bound.saturating_sub(spent);
            let Some(wait) = retry::wait(&failure, tries, left, wire::jitter()) else {
                return Err(fault);
            };
            tokio::time::sleep(wait).await;
            spent += wait;
        }
    }

    /// One try, which has no more than `left`.
    async fn send(&self, call: &Call<'_>, session: &Session, left: Duration) -> Result<Answer, Failure> {
        let Self {
            crypto, management, ..
        } = self;
        let endpoint = match call.operation {
            Operation::Decrypt | Operation::Encrypt => crypto,
            Operation::GetKey => management,
        };
        let client = if endpoint.trusted {
            &self.open
        } else {
            &self.guarded
        };
        let now = (self.clock)();
        let host = http::host_of(&endpoint.url).ok_or(Failure::NoAddress)?;
        let unsigned = Unsigned {
            method: call.method.as_str(),
            target: call.target,
            host: &host,
            content_type: "application/json",
            body: &call.body,
        };
        let date = signature::http_date(wire::timestamp(now).as_second());
        let headers = signature::headers(&session.key, &session.key_id, &unsigned, &date, Form::Service)
            .map_err(|_| Failure::Garbage)?;
        let has_body = call.method == Method::POST;
        let request = Request {
            method: call.method.clone(),
            base: &endpoint.url,
            target: call.target,
            headers,
            body: has_body.then(|| call.body.clone()),
            timeout: self.timeouts.attempt.min(left),
        };
        let answer = client.send(request).await?;
        if (200..300).contains(&answer.status) {
            return Ok(answer);
        }
        tracing::debug!(
            operation = call.operation.as_str(),
            status = answer.status,
            request_id = answer.header("opc-request-id").and_then(wire::request_id),
            "OCI answered with an error"
        );
        Err(refusal(&answer, now))
    }

    fn observe(&self, operation: Operation, outcome: &'static str, since: Instant) {
        let seconds = since.elapsed().as_secs_f64();
        self.observer
            .kms_request("ocikms", operation.as_str(), outcome, seconds);
    }
}
