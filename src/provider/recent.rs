//! What a KMS says of a key, asked once for everybody (`api.md`, meaning 4: at most once an hour).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::Mutex;

use super::{Clock, wire};
use crate::{
    api::Reason,
    seal::{Fault, backoff},
};

/// An answer holds for this long and up to a tenth longer, so that keys are not all asked about at once.
pub(crate) const HOLDS: Duration = Duration::from_hours(1);

/// What could not be had is not asked for again sooner than its backoff, of which this is the most.
const LONGEST_FAILURE: Duration = Duration::from_mins(5);

/// The last answer, and the turn to ask for the next: held while the KMS is asked.
pub(crate) struct Recent<D>(Mutex<Option<Known<D>>>);

struct Known<D> {
    outcome: Result<Arc<D>, Fault>,
    failures: u32,
    at: SystemTime,
    until: SystemTime,
}

impl<D> Default for Recent<D> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<D> Recent<D> {
    /// The last answer while it holds, else a new one. An answer from before `since` does not count.
    ///
    /// # Errors
    /// What kept the KMS from answering; a refusal (`AccessDenied`) is remembered for as long as an answer.
    pub(crate) async fn get(
        &self,
        clock: &Clock,
        since: Option<SystemTime>,
        ask: impl Future<Output = Result<D, Fault>>,
    ) -> Result<Arc<D>, Fault> {
        let mut slot = self.0.lock().await;
        let now = clock();
        let counts = |known: &Known<D>| known.outcome.is_err() || since.is_none_or(|since| known.at >= since);
        if let Some(known) = &*slot
            && now < known.until
            && counts(known)
        {
            return known.outcome.clone();
        }
        let outcome = ask.await.map(Arc::new);
        let failures = match &outcome {
            Ok(_) => 0,
            Err(_) => slot.as_ref().map_or(0, |known| known.failures) + 1,
        };
        let holds = match &outcome {
            Err(fault) if fault.reason != Reason::AccessDenied => {
                let wait = backoff(fault, failures, wire::jitter()).min(LONGEST_FAILURE);
                wait.max(fault.retry_after.unwrap_or_default())
            }
            _ => HOLDS.mul_f64(1.0 + wire::jitter() / 10.0),
        };
        *slot = Some(Known {
            outcome: outcome.clone(),
            failures,
            at: now,
            until: now + holds,
        });
        outcome
    }
}
