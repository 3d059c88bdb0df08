//! What went wrong with OCI, as a [`Fault`] in our own words.
//!
//! Pure. Nothing of a server's text passes (security rule S13): a code and a status of a fixed form, and names that we
//! sent ourselves.
//!
//! Codes: docs.oracle.com, "API Errors".

use std::time::Duration;

use crate::{
    api::Reason,
    provider::{
        bound::{self, Tie},
        wire::{self, SKEW},
    },
    seal::{Fault, FaultKind},
};

/// What was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Decrypt,
    Encrypt,
    GetKey,
}

impl Operation {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Operation::Decrypt => "Decrypt",
            Operation::Encrypt => "Encrypt",
            Operation::GetKey => "GetKey",
        }
    }
}

/// What a sentence about the KMS needs to know beside the answer. All of it is ours or the user's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    /// OCID of the key.
    pub(super) key: &'a str,
    /// What the ciphertext is tied to by the associated data that was sent.
    pub(super) tie: Tie,
    /// Whom a policy must name: the beginning of the statement that would allow it.
    pub(super) subject: &'a Subject,
}

/// Who asks, as OCI's policies name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A user, by a group.
    User {
        /// OCID.
        user: String,
        /// The fingerprint that was sent, and the key's own if that is another.
        other_fingerprint: Option<(String, String)>,
    },
    /// An instance, by a dynamic group.
    Instance,
    /// A function or other resource, by a dynamic group.
    Resource,
    /// Somebody with a session token, whose kind it does not tell.
    Session,
    /// A workload of OKE.
    Workload {
        namespace: String,
        service_account: String,
    },
}

impl Subject {
    /// The policy statement that lets it use the key.
    fn statement(&self, key: &str) -> String {
        let (who, also) = match self {
            Subject::User { .. } => ("group <a group of the user>", String::new()),
            Subject::Instance => ("dynamic-group <one that holds the instance>", String::new()),
            Subject::Resource => ("dynamic-group <one that holds the resource>", String::new()),
            Subject::Session => ("group <a group of yours>", String::new()),
            Subject::Workload {
                namespace,
                service_account,
            } => (
                "any-user",
                format!(
                    "request.principal.type = 'workload', request.principal.namespace = '{namespace}', \
                     request.principal.service_account = '{service_account}', request.principal.cluster_id = \
                     '<OCID of the cluster>', "
                ),
            ),
        };
        format!(
            "Allow {who} to use keys in compartment <the key's> where all {{{also}target.key.id = '{key}'}}"
        )
    }
}

/// An answer that is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Letters only, at most 64.
    pub(super) code: Option<String>,
    pub(super) retry_after: Option<Duration>,
    /// How far the server's clock is from ours.
    pub(super) skew: Option<Duration>,
}

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server answered with an error.
    Refused(Refusal),
    /// The name of the endpoint has no address.
    NoAddress,
    /// The name resolves to where no KMS can be.
    ForbiddenAddress,
    /// No trusted TLS with the endpoint.
    Tls,
    /// No connection: nothing was sent.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The connection broke.
    Broken,
    /// More than 64 KiB.
    TooLarge,
    /// An answer that is none of the protocol.
    Garbage,
}

impl Failure {
    /// Whether the same request may go well in a moment.
    ///
    /// Source: `oci/retry/retry_checkers.py`: 409 IncorrectState is tried again by the SDKs, as a key that is being
    /// enabled answers it; a key that is disabled answers it too, and does not get enabled within our few seconds.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Failure::Refused(refusal) => {
                refusal.status == 429 || (refusal.status >= 500 && refusal.status != 501)
            }
            Failure::Unreachable | Failure::Broken | Failure::Timeout => true,
            Failure::NoAddress
            | Failure::ForbiddenAddress
            | Failure::Tls
            | Failure::TooLarge
            | Failure::Garbage => false,
        }
    }

    /// The server's own hint.
    pub(super) fn hint(&self) -> Option<Duration> {
        match self {
            Failure::Refused(refusal) => refusal.retry_after,
            _ => None,
        }
    }

    /// Whether the server does not take who asks: another token may help.
    pub(super) fn is_unauthenticated(&self) -> bool {
        matches!(self, Failure::Refused(Refusal { status: 401, skew, .. }) if skew.is_none_or(|skew| skew <= SKEW))
    }
}

/// The code in an error's body, `{"code": "…", "message": "…"}`.
pub(super) fn code(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Body {
        code: String,
    }
    let body: Body = serde_json::from_slice(body).ok()?;
    wire::code(&body.code)
}

/// What the server said, as far as it stays the same from one try to the next.
fn evidence(refusal: &Refusal) -> String {
    match &refusal.code {
        Some(code) => format!(" ({code}, status {})", refusal.status),
        None => format!(" (status {})", refusal.status),
    }
}

/// The fault that users see of a request to the KMS.
pub(super) fn kms(asked: &Asked<'_>, failure: &Failure) -> Fault {
    let operation = asked.operation.as_str();
    match failure {
        Failure::Refused(refusal) => {
            let mut fault = refused(asked, refusal);
            fault.message.push_str(&evidence(refusal));
            fault.retry_after = refusal.retry_after;
            fault
        }
        other => transport(other, "the vault", operation),
    }
}

/// Failures that say nothing of what was asked.
pub(super) fn transport(failure: &Failure, what: &str, operation: &str) -> Fault {
    match failure {
        Failure::NoAddress => Fault::transient(
            Reason::EndpointUnresolvable,
            format!(
                "the host name of {what}'s endpoint does not resolve; check the endpoint and the cluster's DNS"
            ),
        ),
        Failure::ForbiddenAddress => Fault::denied(
            Reason::EndpointUnresolvable,
            format!(
                "the host name of {what}'s endpoint resolves to a loopback, link-local or multicast address, where no KMS \
                 can be; nothing was sent; mend the DNS, or have the cluster admin allow the endpoint by the operator's \
                 --allowed-endpoints"
            ),
        ),
        Failure::Tls => Fault::denied(
            Reason::EndpointTlsFailed,
            format!(
                "the TLS handshake with {what} failed: its certificate is not trusted or not for this name; give the \
                 operator the right roots (SSL_CERT_FILE), or take out what intercepts TLS"
            ),
        ),
        Failure::Unreachable => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "no connection to {what} for {operation}; check network policies, the service gateway and the region's \
                 health"
            ),
        ),
        Failure::Timeout => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{what} did not answer {operation} in time; check network policies, the service gateway and the region's \
                 health"
            ),
        ),
        Failure::Broken => Fault::transient(
            Reason::KmsUnavailable,
            format!("the connection to {what} broke during {operation}; it is tried again"),
        ),
        Failure::TooLarge => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{what} answered {operation} with more than 64 KiB, which it never does; check what listens at the endpoint"
            ),
        ),
        Failure::Garbage | Failure::Refused(_) => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{what} answered {operation} with something that is not its protocol; check what listens at the endpoint"
            ),
        ),
    }
}

/// The two clocks disagree: nothing that is signed is taken.
pub(super) fn skewed(refusal: &Refusal, what: &str) -> Option<Fault> {
    let skew = refusal.skew.filter(|skew| *skew > SKEW)?;
    Some(Fault::denied(
        Reason::ClockSkew,
        format!(
            "the clock of the operator's node and {what}'s differ by {} minutes, and signatures hold for 5; set the \
             node's clock (NTP)",
            // To the nearest, for a skew of ten minutes is measured as a second less.
            (skew.as_secs() + 30) / 60
        ),
    ))
}

/// The server asks to slow down.
pub(super) fn throttled(what: &str, operation: &str) -> Fault {
    Fault::new(
        Reason::Throttled,
        FaultKind::Throttled,
        format!(
            "{what} limits the rate of {operation}; it is tried again later; raise the service limit if this stays"
        ),
    )
}

fn refused(asked: &Asked<'_>, refusal: &Refusal) -> Fault {
    let Asked { operation, key, .. } = *asked;
    let code = refusal.code.as_deref().unwrap_or_default();
    match (refusal.status, code) {
        (401, _) => skewed(refusal, "the vault").unwrap_or_else(|| unauthenticated(asked)),
        (404, "NotFound" | "KeyNotFound") => Fault::denied(
            Reason::KeyNotFound,
            format!(
                "the vault knows no key {key}; check keyID, and that the endpoints are those of the key's vault"
            ),
        ),
        (403 | 404, _) => denied(asked),
        (409, _) | (400, "KeyDisabled" | "KeyNotEnabled" | "IncorrectState" | "InvalidKeyState") => {
            unusable(asked)
        }
        (429, _) | (400, "LimitExceeded" | "QuotaExceeded") => throttled("the vault", operation.as_str()),
        (400, _) if operation == Operation::Decrypt && asked.tie == Tie::Operators => {
            Fault::invalid(Reason::ContextMismatch, bound::refused("the vault"))
        }
        (400, _) if operation == Operation::Decrypt && asked.tie == Tie::Users => Fault::invalid(
            Reason::ContextMismatch,
            "the vault does not open the wrapped key with this context: `context` is not exactly the associatedData that it \
             was wrapped with, or its bytes were changed (the vault does not say which)",
        ),
        (400, _) if operation == Operation::Decrypt => Fault::invalid(
            Reason::CiphertextInvalid,
            "the vault does not open the wrapped key: its bytes were changed, it was made with another key, or it was \
             wrapped with associatedData that `context` must then name",
        ),
        (400 | 405 | 413 | 415 | 422, _) => Fault::denied(
            Reason::KeyUnusable,
            format!(
                "the vault cannot {} with the key {key}; a seal needs an AES key, and the endpoints of its vault",
                operation.as_str()
            ),
        ),
        (300..=399, _) => Fault::denied(
            Reason::KmsUnavailable,
            format!(
                "the vault's endpoint redirects {}, which is never followed; name the endpoint itself",
                operation.as_str()
            ),
        ),
        _ => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "the vault could not answer {}; it is tried again; see the region's health if this stays",
                operation.as_str()
            ),
        ),
    }
}

/// A missing policy and a missing key look the same.
///
/// Source: docs.oracle.com, "API Errors": 404 NotAuthorizedOrNotFound.
fn denied(asked: &Asked<'_>) -> Fault {
    Fault::denied(
        Reason::AccessDenied,
        format!(
            "the identity may not {} with the key {key}, or there is no such key in this vault (OCI does not say which); \
             add the policy: {} (docs/providers/oci.md, also for a key of another tenancy)",
            asked.operation.as_str(),
            asked.subject.statement(asked.key),
            key = asked.key,
        ),
    )
}

fn unusable(asked: &Asked<'_>) -> Fault {
    Fault::denied(
        Reason::KeyUnusable,
        format!(
            "the key {} is in a state in which it cannot {}; look at it (oci kms management key get --key-id … --endpoint \
             <management endpoint>): a disabled key is enabled, a deletion cancelled",
            asked.key,
            asked.operation.as_str()
        ),
    )
}

fn unauthenticated(asked: &Asked<'_>) -> Fault {
    let (reason, message) = match asked.subject {
        Subject::User {
            other_fingerprint: Some((sent, own)),
            ..
        } => (
            Reason::CredentialsRejected,
            format!(
                "OCI does not take the API key, and the fingerprint {sent} is not that of the private key, which is {own}; \
                 correct the fingerprint, or bring the key that belongs to it"
            ),
        ),
        Subject::User { user, .. } => (
            Reason::CredentialsRejected,
            format!(
                "OCI does not take the API key: check that the user {user} exists in the tenancy, that the API key with this \
                 fingerprint is among the user's keys, and that the tenancy belongs to the key's realm"
            ),
        ),
        Subject::Instance | Subject::Resource | Subject::Session | Subject::Workload { .. } => (
            Reason::CredentialsRejected,
            "the vault does not take the token that OCI's identity service issued; a new one is asked for; check that the \
             vault belongs to the realm of the operator's cluster"
                .to_owned(),
        ),
    };
    Fault::denied(reason, message)
}

/// The fault of a request for a token.
pub(super) fn federation(failure: &Failure, what: &str, hint: &str) -> Fault {
    match failure {
        Failure::Refused(refusal) => {
            let told = match refusal.status {
                401 => skewed(refusal, what),
                _ => None,
            };
            let mut fault = told.unwrap_or_else(|| match refusal.status {
                429 => throttled(what, "token requests"),
                500.. => Fault::transient(
                    Reason::FederationRejected,
                    format!("{what} could not issue a token; it is tried again"),
                ),
                _ => Fault::denied(
                    Reason::FederationRejected,
                    format!("{what} refuses to issue a token; {hint}"),
                ),
            });
            fault.message.push_str(&evidence(refusal));
            fault.retry_after = refusal.retry_after;
            fault
        }
        other => transport(other, what, "the request for a token"),
    }
}

#[cfg(test)]
mod tests;
