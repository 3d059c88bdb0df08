//! Credentials that are loaded once, shared, renewed before they expire, and whose faults say what to do.
//!
//! One load at a time; while one renews, the others go on with what is still good.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use tokio::sync::Mutex;

use super::{Clock, Observer, wire};
use crate::{
    api::Reason,
    seal::{Fault, backoff},
};

/// Credentials are renewed when they have less than this left; brief ones at half of their life
/// if that is later.
const RENEW_BEFORE: Duration = Duration::from_mins(5);

/// When renewing fails, credentials are still used until they have less than this left; brief ones until the last tenth
/// of their life.
const USABLE_UNTIL: Duration = Duration::from_secs(30);

/// A failed load is not repeated sooner than its backoff, of which this is the most: a mended policy shows soon.
const LONGEST_FAILURE: Duration = Duration::from_secs(30);

/// Credentials that may expire.
pub(crate) trait Expires: Clone {
    /// Whether their life may be a matter of minutes, so that what must be left of it is a part of it.
    const BRIEF: bool;

    /// When; `None` = never.
    fn expiry(&self) -> Option<SystemTime>;
}

/// The credentials of one identity.
pub(crate) struct Renewal<C> {
    /// `awskms`, `ocikms`.
    provider: &'static str,
    /// The word in status and metrics.
    word: &'static str,
    clock: Clock,
    observer: Arc<dyn Observer>,
    /// Bound of one load.
    timeout: Duration,
    current: RwLock<Option<Held<C>>>,
    /// Held while loading: one load at a time.
    loading: Mutex<Option<Failed>>,
}

#[derive(Clone)]
struct Held<C> {
    credentials: C,
    loaded: SystemTime,
}

struct Failed {
    fault: Fault,
    times: u32,
    until: SystemTime,
}

impl<C: Expires> Renewal<C> {
    pub(crate) fn new(
        provider: &'static str,
        word: &'static str,
        clock: Clock,
        observer: Arc<dyn Observer>,
        timeout: Duration,
    ) -> Self {
        Self {
            provider,
            word,
            clock,
            observer,
            timeout,
            current: RwLock::new(None),
            loading: Mutex::new(None),
        }
    }

    /// The word in status and metrics.
    pub(crate) fn word(&self) -> &'static str {
        self.word
    }

    /// Credentials to sign with, loaded by `load` when there are none that last.
    ///
    /// # Errors
    /// Why the last load failed, which holds until its backoff is over.
    pub(crate) async fn get(
        &self,
        load: impl AsyncFnOnce(SystemTime) -> Result<C, Fault>,
    ) -> Result<C, Fault> {
        if let Some(credentials) = self.lasting(RENEW_BEFORE, 2) {
            return Ok(credentials);
        }
        let mut failed = match self.usable() {
            Some(credentials) => match self.loading.try_lock() {
                Ok(guard) => guard,
                Err(_) => return Ok(credentials),
            },
            None => self.loading.lock().await,
        };
        if let Some(credentials) = self.lasting(RENEW_BEFORE, 2) {
            return Ok(credentials);
        }
        let now = (self.clock)();
        if let Some(last) = &*failed
            && now < last.until
        {
            return self.usable().ok_or_else(|| last.fault.clone());
        }
        let loaded = tokio::time::timeout(self.timeout, Box::pin(load(now))).await;
        let outcome = loaded.unwrap_or_else(|_| {
            Err(Fault::transient(
                Reason::KmsUnavailable,
                "getting credentials took too long; check that the operator reaches the cloud's identity service, the \
                 metadata service or the apiserver",
            ))
        });
        match outcome {
            Ok(credentials) => {
                *failed = None;
                if let Some(expiry) = credentials.expiry() {
                    let seconds = wire::timestamp(expiry).as_second();
                    self.observer.credential_expiry(self.provider, self.word, seconds);
                }
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Held {
                    credentials: credentials.clone(),
                    loaded: now,
                });
                Ok(credentials)
            }
            Err(fault) => {
                let times = failed.as_ref().map_or(0, |last| last.times) + 1;
                let wait = backoff(&fault, times, wire::jitter()).min(LONGEST_FAILURE);
                let wait = wait.max(fault.retry_after.unwrap_or_default());
                *failed = Some(Failed {
                    fault: fault.clone(),
                    times,
                    until: now + wait,
                });
                self.usable().ok_or(fault)
            }
        }
    }

    /// What is in hand, whatever is left of it: for telling who it is.
    pub(crate) fn held(&self) -> Option<C> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|held| held.credentials.clone())
    }

    /// Forgets what the cloud no longer takes, so that the next use loads anew. What somebody else has renewed
    /// meanwhile stays: `spent` tells.
    pub(crate) fn forget(&self, spent: impl Fn(&C) -> bool) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_some_and(|held| spent(&held.credentials)) {
            *current = None;
        }
    }

    fn usable(&self) -> Option<C> {
        self.lasting(USABLE_UNTIL, 10)
    }

    /// Credentials that have at least this left, or that part of a brief life.
    fn lasting(&self, at_least: Duration, part: u32) -> Option<C> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let held = current.as_ref()?;
        if let Some(expiry) = held.credentials.expiry() {
            let life = expiry.duration_since(held.loaded).unwrap_or_default();
            let at_least = if C::BRIEF {
                at_least.min(life / part)
            } else {
                at_least
            };
            if expiry < (self.clock)() + at_least {
                return None;
            }
        }
        Some(held.credentials.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Token(usize, Option<SystemTime>);

    impl Expires for Token {
        const BRIEF: bool = true;

        fn expiry(&self) -> Option<SystemTime> {
            self.1
        }
    }

    struct Nobody;

    impl Observer for Nobody {
        fn kms_request(&self, _: &'static str, _: &'static str, _: &'static str, _: f64) {}

        fn imds_probe(&self, _: &'static str) {}

        fn credential_expiry(&self, _: &'static str, _: &'static str, _: i64) {}
    }

    struct Scene {
        seconds: Arc<AtomicU64>,
        loads: AtomicUsize,
        renewal: Renewal<Token>,
    }

    impl Scene {
        fn new() -> Self {
            let seconds = Arc::new(AtomicU64::new(1_000_000));
            let read = Arc::clone(&seconds);
            let clock: Clock =
                Arc::new(move || SystemTime::UNIX_EPOCH + Duration::from_secs(read.load(Ordering::SeqCst)));
            Self {
                seconds,
                loads: AtomicUsize::new(0),
                renewal: Renewal::new("ocikms", "test", clock, Arc::new(Nobody), Duration::from_secs(5)),
            }
        }

        fn pass(&self, seconds: u64) {
            self.seconds.fetch_add(seconds, Ordering::SeqCst);
        }

        async fn get(&self, life: u64) -> Result<usize, Fault> {
            let load = async |now: SystemTime| {
                let count = self.loads.fetch_add(1, Ordering::SeqCst) + 1;
                Ok(Token(count, Some(now + Duration::from_secs(life))))
            };
            self.renewal.get(load).await.map(|token| token.0)
        }

        async fn fail(&self) -> Result<usize, Fault> {
            let load = async |_| Err(Fault::denied(Reason::AccessDenied, "no"));
            self.renewal.get(load).await.map(|token| token.0)
        }
    }

    #[tokio::test]
    async fn a_long_lived_token_is_renewed_five_minutes_before_its_end() {
        let scene = Scene::new();
        assert_eq!(scene.get(1200).await, Ok(1));
        scene.pass(899);
        assert_eq!(scene.get(1200).await, Ok(1));
        scene.pass(2);
        assert_eq!(scene.get(1200).await, Ok(2));
    }

    #[tokio::test]
    async fn a_short_lived_token_is_renewed_at_half_its_life() {
        let scene = Scene::new();
        for expected in [1, 1, 1, 2] {
            assert_eq!(scene.get(20).await, Ok(expected));
            scene.pass(4);
        }
    }

    #[tokio::test]
    async fn a_failed_renewal_leaves_what_is_still_good() {
        let scene = Scene::new();
        assert_eq!(scene.get(100).await, Ok(1));
        scene.pass(60);
        assert_eq!(scene.fail().await, Ok(1));
        scene.pass(35);
        assert_eq!(scene.fail().await.unwrap_err().reason, Reason::AccessDenied);
    }

    #[tokio::test]
    async fn only_what_is_spent_is_forgotten() {
        let scene = Scene::new();
        assert_eq!(scene.get(1000).await, Ok(1));
        scene.renewal.forget(|token| token.0 == 7);
        assert_eq!(scene.get(1000).await, Ok(1));
        scene.renewal.forget(|token| token.0 == 1);
        assert_eq!(scene.get(1000).await, Ok(2));
    }

    #[tokio::test]
    async fn many_at_once_cause_one_load() {
        let scene = Scene::new();
        let all = futures::future::join_all((0..50).map(|_| scene.get(1000))).await;
        assert!(all.iter().all(|one| *one == Ok(1)), "{all:?}");
    }

    #[tokio::test]
    async fn a_refusal_is_asked_for_once_by_all_who_share_it() {
        let scene = Scene::new();
        let refused = async || {
            let load = async |_| {
                scene.loads.fetch_add(1, Ordering::SeqCst);
                Err(Fault::denied(Reason::AccessDenied, "no"))
            };
            scene.renewal.get(load).await
        };
        let all = futures::future::join_all((0..1000).map(|_| refused())).await;
        assert!(all.iter().all(Result::is_err));
        assert_eq!(scene.loads.load(Ordering::SeqCst), 1);
        scene.pass(LONGEST_FAILURE.as_secs() + 1);
        assert!(refused().await.is_err());
        assert_eq!(scene.loads.load(Ordering::SeqCst), 2);
    }
}
