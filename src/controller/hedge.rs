//! Asks several seals for one key, so that a silent one delays nothing.

use std::time::Duration;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    api::Reason,
    seal::{Fault, KeyBytes},
};

/// A seal that does not answer for this long does not delay the next one, and what another seal has opened does not wait
/// longer for it.
pub const HEDGE: Duration = Duration::from_secs(1);

/// Seal, identity, and what came of it.
pub type Attempt = (String, Option<String>, Result<KeyBytes, Fault>);

/// By priority, each after the one before has failed or has been silent for [`HEDGE`]. Ends with the first that opens;
/// late answers are dropped.
pub async fn first_that_opens(attempts: Vec<BoxFuture<'_, Attempt>>, hedge: Duration) -> Vec<Attempt> {
    let mut waiting = attempts.into_iter();
    let mut running: FuturesUnordered<_> = waiting.next().into_iter().collect();
    let mut done = Vec::new();
    loop {
        let more = waiting.len() > 0;
        tokio::select! {
            finished = running.next() => {
                let Some(attempt) = finished else { return done };
                let opened = attempt.2.is_ok();
                done.push(attempt);
                if opened {
                    return done;
                }
                running.extend(waiting.next());
            }
            () = sleep(hedge), if more => running.extend(waiting.next()),
        }
    }
}

/// All at once. What one has opened waits for the others for [`HEDGE`]; who is later is asked again, alone.
pub async fn every_one_in_time(
    seals: &[String],
    attempts: Vec<BoxFuture<'_, Attempt>>,
    hedge: Duration,
) -> Vec<Attempt> {
    let mut running: FuturesUnordered<_> = attempts.into_iter().collect();
    let mut done: Vec<Attempt> = Vec::new();
    let mut until: Option<Instant> = None;
    while !running.is_empty() {
        let deadline = until.unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
        tokio::select! {
            Some(attempt) = running.next() => {
                if attempt.2.is_ok() {
                    until.get_or_insert(Instant::now() + hedge);
                }
                done.push(attempt);
            }
            () = sleep_until(deadline) => break,
        }
    }
    let late: Vec<_> = seals
        .iter()
        .filter(|seal| !done.iter().any(|(name, ..)| name == *seal))
        .cloned()
        .collect();
    let first_opened = done.iter().position(|(_, _, result)| result.is_ok());
    if first_opened.is_some() {
        done.extend(late.into_iter().map(|seal| {
            let fault = Fault::transient(
                Reason::KmsUnavailable,
                "the KMS did not answer while that of another seal did; it is asked again, and nothing waits for it",
            );
            (seal, None, Err(fault))
        }));
    }
    // By the order that was asked for, so that the seal of the highest priority counts as the one that opened.
    done.sort_by_key(|(name, ..)| seals.iter().position(|seal| seal == name));
    done
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::FutureExt;

    use super::*;

    const NOW: Duration = Duration::ZERO;
    const SHORT: Duration = Duration::from_millis(20);
    /// Far longer than a busy machine holds anything up.
    const LONG: Duration = Duration::from_secs(2);
    /// Who waits for this one makes the test hang.
    const NEVER: Duration = Duration::from_hours(1);

    /// A seal that answers after some time: with the key, or with a fault.
    fn seal(
        name: &str,
        after: Duration,
        opens: bool,
        asked: &Arc<AtomicUsize>,
    ) -> BoxFuture<'static, Attempt> {
        let (name, asked) = (name.to_owned(), Arc::clone(asked));
        async move {
            asked.fetch_add(1, Ordering::SeqCst);
            sleep(after).await;
            let result = if opens {
                Ok(KeyBytes::new(name.clone().into_bytes()))
            } else {
                Err(Fault::transient(Reason::KmsUnavailable, "down"))
            };
            (name, None, result)
        }
        .boxed()
    }

    fn names(attempts: &[Attempt]) -> Vec<(&str, bool)> {
        attempts
            .iter()
            .map(|(name, _, result)| (name.as_str(), result.is_ok()))
            .collect()
    }

    #[tokio::test]
    async fn the_next_seal_is_asked_when_one_fails_or_is_silent_and_late_answers_are_dropped() {
        let asked = Arc::default();
        let attempts = vec![
            seal("a", NEVER, true, &asked),
            seal("b", NOW, false, &asked),
            seal("c", NOW, true, &asked),
        ];
        assert_eq!(
            names(&first_that_opens(attempts, SHORT).await),
            [("b", false), ("c", true)]
        );

        // One that answers in time is the only one asked.
        let asked = Arc::default();
        let attempts = vec![seal("a", NOW, true, &asked), seal("b", NOW, true, &asked)];
        assert_eq!(names(&first_that_opens(attempts, LONG).await), [("a", true)]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);

        // A slow one that is first to open after all counts.
        let asked = Arc::default();
        let attempts = vec![seal("a", SHORT * 3, true, &asked), seal("b", NEVER, true, &asked)];
        assert_eq!(names(&first_that_opens(attempts, SHORT).await), [("a", true)]);
        assert!(first_that_opens(Vec::new(), SHORT).await.is_empty());
    }

    #[tokio::test]
    async fn copies_are_compared_with_those_that_answer_in_time() {
        let asked = Arc::default();
        let order = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let attempts = vec![
            seal("a", NEVER, true, &asked),
            seal("b", SHORT * 2, true, &asked),
            seal("c", SHORT, true, &asked),
        ];
        let done = every_one_in_time(&order, attempts, LONG).await;
        assert_eq!(names(&done), [("a", false), ("b", true), ("c", true)]);

        // Where none opens, all are waited for.
        let attempts = vec![
            seal("a", SHORT * 5, false, &asked),
            seal("b", SHORT, false, &asked),
        ];
        let done = every_one_in_time(&order[..2], attempts, SHORT).await;
        assert_eq!(names(&done), [("a", false), ("b", false)]);
    }
}
