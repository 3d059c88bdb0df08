//! What the answers of every cloud have in common: forms of foreign text that may pass, hints, clocks, causes.
//!
//! Pure. Nothing of a server's text passes but what has one of these forms (security rule S13).

use std::{
    error::Error,
    io,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

/// The longest that a server's hint is obeyed.
pub(crate) const LONGEST_HINT: Duration = Duration::from_hours(1);

/// More than this between two clocks is what signatures break by (SigV4 and OCI's request signatures allow 5 minutes).
pub(crate) const SKEW: Duration = Duration::from_mins(5);

/// A code, if it has the form of one.
pub(crate) fn code(text: &str) -> Option<String> {
    // `prefix#Code` in JSON, `Code:http://…` in headers.
    let text = text.rsplit('#').next().unwrap_or_default();
    let text = text.split(':').next().unwrap_or_default();
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphabetic());
    fits.then(|| text.to_owned())
}

/// A request id, if it has the form of one.
pub(crate) fn request_id(text: &str) -> Option<String> {
    let fits = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'/' || b == b'-');
    fits.then(|| text.to_owned())
}

/// `Retry-After`: seconds or a date (RFC 9110, 10.2.3).
pub(crate) fn hint(value: &str, now: SystemTime) -> Option<Duration> {
    let wait = match value.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => http_date(value)?.duration_since(now).ok()?,
    };
    Some(wait.min(LONGEST_HINT))
}

/// A `Date` header.
pub(crate) fn http_date(value: &str) -> Option<SystemTime> {
    let at = jiff::fmt::rfc2822::parse(value.trim()).ok()?;
    Some(SystemTime::from(at.timestamp()))
}

/// How far two times are apart.
pub(crate) fn distance(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other)
        .unwrap_or_else(|earlier| earlier.duration())
}

/// The first error of this type in the chain of causes. `io::Error` hides its payload from `source`.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
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
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A number in 0.0..1.0 that spreads what would else happen at once; no secret depends on it.
pub fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everything happens in the middle of its span.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 0.5,
    }
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
