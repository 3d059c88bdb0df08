//! What went wrong, said once: the reason, how to wait, and a sentence that names the fix.

use std::{fmt, time::Duration};

use crate::api::Reason;

/// How a fault behaves over time; it decides the backoff and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Passes by itself: network, server faults.
    Transient,
    /// The server asked to slow down.
    Throttled,
    /// Somebody must mend something at the operator's own node, where looking again costs nobody anything.
    Nearby,
    /// Somebody must grant, create or enable something outside this object.
    Denied,
    /// The object or its inputs must change before another try makes sense.
    Invalid,
}

impl FaultKind {
    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            FaultKind::Transient => "transient",
            FaultKind::Throttled => "throttled",
            FaultKind::Nearby => "nearby",
            FaultKind::Denied => "denied",
            FaultKind::Invalid => "invalid",
        }
    }
}

/// A fault as users read it. Holds our words only, never a server's text (security rule S13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The word of the closed set.
    pub reason: Reason,
    /// How to wait before another try.
    pub kind: FaultKind,
    /// What is wrong and what to do about it.
    pub message: String,
    /// The server's own hint.
    pub retry_after: Option<Duration>,
}

/// Bytes of a sentence: room for a command with the longest ARN, twice.
const LONGEST_MESSAGE: usize = 6000;

/// What steers a terminal or turns text around does not get there (security rule S13): sentences repeat names of a spec,
/// which the command line reads from files that no apiserver has looked at.
fn shown(mut message: String) -> String {
    if message.len() > LONGEST_MESSAGE {
        message.truncate(message.floor_char_boundary(LONGEST_MESSAGE));
        message.push('…');
    }
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if message.contains(steers) {
        message.replace(steers, "?")
    } else {
        message
    }
}

impl Fault {
    /// A fault without a server's hint.
    pub fn new(reason: Reason, kind: FaultKind, message: impl Into<String>) -> Self {
        Self {
            reason,
            kind,
            message: shown(message.into()),
            retry_after: None,
        }
    }

    /// Shorthand for faults that only a change of the inputs can mend.
    pub fn invalid(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, FaultKind::Invalid, message)
    }

    /// [`Fault::invalid`] with the reason `InvalidSpec`.
    pub fn invalid_spec(message: impl Into<String>) -> Self {
        Self::invalid(Reason::InvalidSpec, message)
    }

    /// Shorthand for faults that somebody must grant, create or enable something for.
    pub fn denied(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, FaultKind::Denied, message)
    }

    /// Shorthand for faults that pass by themselves.
    pub fn transient(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason, FaultKind::Transient, message)
    }

    /// The same fault, told of a named part (`seal "aws"`, `key "root"`).
    #[must_use]
    pub fn of(mut self, part: impl fmt::Display) -> Self {
        self.message = shown(format!("{part}: {}", self.message));
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Fault {}

/// Requests a second to the KMSes of all clouds together, unless a cluster admin says otherwise. AWS grants a region's
/// account 10,000 and more cryptographic requests a second (AWS KMS request quotas), which are not the operator's alone.
pub const KMS_REQUESTS_PER_SECOND: u32 = 1000;

/// How long to wait after the `failures`-th failure in a row (1 = the first).
///
/// `jitter` in 0.0..1.0 spreads objects that failed together: the wait is between 75 % and 125 %
/// of the step. A server's hint is a lower bound.
pub fn backoff(fault: &Fault, failures: u32, jitter: f64) -> Duration {
    let (first, most) = match fault.kind {
        FaultKind::Transient => (1, 300),
        FaultKind::Throttled => (2, 300),
        FaultKind::Nearby => (2, 12),
        FaultKind::Denied => (5, 600),
        FaultKind::Invalid => (60, 3600),
    };
    let step = growing(
        Duration::from_secs(first),
        2.0,
        Duration::from_secs(most),
        failures,
    );
    spread(step, jitter).max(fault.retry_after.unwrap_or_default())
}

/// The step after so many failures in a row: `first` after one, `factor` times as long after each further one, `most` at last.
pub fn growing(first: Duration, factor: f64, most: Duration, failures: u32) -> Duration {
    let further = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
    let step = first.as_secs_f64() * factor.powi(further);
    Duration::try_from_secs_f64(step).map_or(most, |step| step.min(most))
}

/// Between 75 % and 125 % of a step: `jitter` in 0.0..1.0 tells apart those who failed together.
pub fn spread(step: Duration, jitter: f64) -> Duration {
    step.mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_from_the_first_step_to_its_cap() {
        let fault = Fault::transient(Reason::KmsUnavailable, "x");
        assert_eq!(backoff(&fault, 1, 0.5), Duration::from_secs(1));
        assert_eq!(backoff(&fault, 2, 0.5), Duration::from_secs(2));
        assert_eq!(backoff(&fault, 60, 0.5), Duration::from_mins(5));
        assert_eq!(backoff(&fault, u32::MAX, 0.5), Duration::from_mins(5));
    }

    #[test]
    fn no_sentence_steers_a_terminal() {
        let fault = Fault::transient(Reason::Pending, "a\u{1b}[2J\nb\u{202e}c").of("key\u{0}");
        assert_eq!(fault.message, "key?: a?[2J?b?c");
        let long = Fault::transient(Reason::Pending, "é".repeat(LONGEST_MESSAGE));
        assert!(long.message.len() < LONGEST_MESSAGE + 4 && long.message.ends_with('…'));
    }

    #[test]
    fn a_servers_hint_is_a_lower_bound() {
        let mut fault = Fault::new(Reason::Throttled, FaultKind::Throttled, "x");
        fault.retry_after = Some(Duration::from_secs(42));
        assert_eq!(backoff(&fault, 1, 0.0), Duration::from_secs(42));
        fault.retry_after = Some(Duration::from_millis(1));
        assert_eq!(backoff(&fault, 1, 0.5), Duration::from_secs(2));
    }

    #[test]
    fn what_is_mended_at_the_node_is_looked_at_again_soon() {
        let fault = Fault::new(Reason::ImdsHopLimitTooLow, FaultKind::Nearby, "x");
        assert_eq!(backoff(&fault, 60, 1.0), Duration::from_secs(15));
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let fault = Fault::denied(Reason::AccessDenied, "x");
        assert_eq!(backoff(&fault, 1, 0.0), Duration::from_secs_f64(3.75));
        assert_eq!(backoff(&fault, 1, 1.0), Duration::from_secs_f64(6.25));
    }
}
