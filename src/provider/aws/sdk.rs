//! From the SDK's errors to a [`Failure`]: the only place that looks inside them.

use std::{
    error::Error,
    io,
    time::{Duration, SystemTime},
};

use aws_smithy_runtime_api::client::{dns::ResolveDnsError, orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use jiff::Timestamp;

use super::{
    error::{self, Answer, Failure},
    http::{AnswerTooLarge, ForbiddenAddress},
};
use crate::seal::Fault;

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
            .and_then(error::code)
            .or_else(|| error::code_in_json(body))
            .or_else(|| error::code_in_xml(body)),
        status: Some(raw.status().as_u16()),
        request_id: header("x-amzn-requestid")
            .or_else(|| header("x-amz-request-id"))
            .and_then(error::request_id),
        retry_after: header("retry-after").and_then(|value| hint(value, now)),
        skew: header("date").and_then(http_date).map(|date| distance(date, now)),
    }
}

/// `Retry-After`: seconds or a date (RFC 9110, 10.2.3).
fn hint(value: &str, now: SystemTime) -> Option<Duration> {
    let wait = match value.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(value)?.duration_since(now).ok()?,
    };
    Some(wait.min(error::LONGEST_HINT))
}

fn http_date(value: &str) -> Option<SystemTime> {
    let at = jiff::fmt::rfc2822::parse(value.trim()).ok()?;
    Some(SystemTime::from(at.timestamp()))
}

fn distance(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|earlier| earlier.duration())
}

/// The first error of this type in the chain of causes. `io::Error` hides its payload from `source`.
pub(super) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    // Chains are short; the bound is there so that a cyclic one cannot hang us.
    for _ in 0..32 {
        let error = next?;
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>() {
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// The time in a form for status; the epoch for a clock that is beyond jiff's range.
pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn retry_hints_are_seconds_or_dates_and_at_most_an_hour() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, seconds) in [
            ("7", Some(7)),
            ("999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", None),
            ("soon", None),
            ("-1", None),
        ] {
            assert_eq!(hint(value, now).map(|d| d.as_secs()), seconds, "{value}");
        }
    }
}
