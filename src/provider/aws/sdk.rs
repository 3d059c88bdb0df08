//! From the SDK's errors to a [`Failure`]: the only place that looks inside them.

use std::{error::Error, time::SystemTime};

use aws_smithy_runtime_api::client::{dns::ResolveDnsError, orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::error::{self, Answer, Failure};
use crate::{
    provider::{
        guard::{AnswerTooLarge, ForbiddenAddress},
        wire::{self, distance, find, hint, http_date},
    },
    seal::Fault,
};

/// What happened. `now` tells how far the server's clock is off.
pub(super) fn failure<E>(error: &SdkError<E, HttpResponse>, now: SystemTime) -> Failure
where
    E: Error + ProvideErrorMetadata + 'static,
{
    // Our own credentials code answers with a fault; the SDK carries it through in the chain of causes.
    if let Some(fault) = find::<Fault>(error) {
        return Failure::Credentials(fault.clone());
    }
    match error {
        SdkError::ServiceError(context) => {
            let raw = context.raw();
            if raw.status().is_success() {
                return Failure::Garbage;
            }
            let answer = answer(context.err().code(), raw, now);
            tracing::debug!(
                code = answer.code,
                status = answer.status,
                request_id = answer.request_id,
                "AWS answered with an error"
            );
            Failure::Answer(answer)
        }
        SdkError::TimeoutError(_) => Failure::Timeout,
        SdkError::DispatchFailure(context) => {
            if find::<ForbiddenAddress>(error).is_some() {
                Failure::ForbiddenAddress
            } else if find::<ResolveDnsError>(error).is_some() {
                Failure::NoAddress
            } else if find::<AnswerTooLarge>(error).is_some() {
                Failure::TooLarge
            } else if find::<rustls::Error>(error).is_some() {
                Failure::Tls
            } else if context.is_timeout() {
                Failure::Timeout
            } else if context.is_other() && context.as_other().is_none() {
                Failure::Garbage
            } else {
                Failure::Broken
            }
        }
        // The endpoint rules of the SDK know no host for such a region.
        SdkError::ConstructionFailure(_) => Failure::NoAddress,
        _ => Failure::Garbage,
    }
}

/// Whether a credential error says that the credentials in hand are of no more use.
pub(super) fn credentials_are_spent(fault: &Fault) -> bool {
    use crate::api::Reason;
    matches!(
        fault.reason,
        Reason::CredentialsExpired | Reason::CredentialsRejected
    )
}

fn answer(code: Option<&str>, raw: &HttpResponse, now: SystemTime) -> Answer {
    let header = |name: &str| raw.headers().get(name);
    let body = raw.body().bytes().unwrap_or_default();
    Answer {
        code: code
            .and_then(wire::code)
            .or_else(|| error::code_in_json(body))
            .or_else(|| error::code_in_xml(body)),
        status: Some(raw.status().as_u16()),
        request_id: header("x-amzn-requestid")
            .or_else(|| header("x-amz-request-id"))
            .and_then(wire::request_id),
        retry_after: header("retry-after").and_then(|value| hint(value, now)),
        skew: header("date").and_then(http_date).map(|date| distance(date, now)),
    }
}
