//! What of a request to the KMS is tried again, and when. Pure.
//!
//! The wrappers of go-kms-wrapping try statuses from 500 five times and never 429, without bound in time. Here what
//! passes by itself is tried again a few times, later as the server asks, and never beyond the operation's bound: the
//! controller's own backoff goes on from there.

use std::time::Duration;

use super::error::Failure;
use crate::seal::fault::{growing, spread};

/// Tries of one operation, the first included.
const TRIES: u32 = 3;

/// The wait before the second try; doubled before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// A try that has less than this left is not begun.
const LEAST: Duration = Duration::from_millis(500);

/// How long to wait before trying again after `tries` tries, if at all. `left` is what remains of the operation's time,
/// `jitter` in 0.0..1.0 spreads those who failed together.
pub(super) fn wait(failure: &Failure, tries: u32, left: Duration, jitter: f64) -> Option<Duration> {
    if !failure.is_passing() || tries >= TRIES {
        return None;
    }
    let step = growing(FIRST_WAIT, 2.0, left, tries);
    let wait = spread(step, jitter).max(failure.hint().unwrap_or_default());
    (wait + LEAST <= left).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::{super::error::Refusal, *};

    const LONG: Duration = Duration::from_secs(10);

    fn refused(status: u16, hint: Option<u64>) -> Failure {
        Failure::Refused(Refusal {
            status,
            retry_after: hint.map(Duration::from_secs),
            ..Refusal::default()
        })
    }

    #[test]
    fn what_passes_is_tried_again_a_few_times() {
        for failure in [
            refused(429, None),
            refused(500, None),
            refused(503, None),
            Failure::Broken,
        ] {
            assert_eq!(
                wait(&failure, 1, LONG, 0.5),
                Some(Duration::from_millis(250)),
                "{failure:?}"
            );
            assert_eq!(wait(&failure, 2, LONG, 0.5), Some(Duration::from_millis(500)));
            assert_eq!(wait(&failure, 3, LONG, 0.5), None);
        }
        for failure in [
            refused(400, None),
            refused(401, None),
            refused(404, None),
            refused(501, None),
            Failure::Tls,
        ] {
            assert_eq!(wait(&failure, 1, LONG, 0.5), None, "{failure:?}");
        }
    }

    #[test]
    fn the_servers_hint_is_honoured_within_the_operations_time() {
        assert_eq!(
            wait(&refused(429, Some(2)), 1, LONG, 0.5),
            Some(Duration::from_secs(2))
        );
        assert_eq!(wait(&refused(429, Some(30)), 1, LONG, 0.5), None);
        assert_eq!(
            wait(&refused(503, None), 1, Duration::from_millis(600), 0.5),
            None
        );
    }
}
