//! How often one SealConfig is looked at (security rule S19): what it is made of may change as fast as a tenant can write.
//!
//! Some changes in a row are followed at once; who goes on is followed at a steady pace, with what is the latest then.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Looks at one SealConfig that come as fast as they are asked for.
pub const AT_ONCE: u32 = 10;

/// The pace of those after them, which is also how soon one of [`AT_ONCE`] is earned back.
pub const PACE: Duration = Duration::from_secs(1);

/// Fewer than this are not worth being swept.
const FEW: usize = 64;

/// What was looked at lately.
#[derive(Default)]
pub struct Debounce(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// When everything that was spent will be earned back, by namespace and name.
    spent: HashMap<(String, String), Instant>,
    /// Swept when there are more than this.
    sweep: usize,
}

impl Debounce {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long to wait before a SealConfig is looked at; `None` = it may be now, and that is counted.
    pub fn wait(&self, namespace: &str, name: &str, now: Instant) -> Option<Duration> {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let until = inner.spent.get(&key).copied().map_or(now, |until| until.max(now));
        let ahead = (until - now).checked_sub(PACE * (AT_ONCE - 1));
        if let Some(wait) = ahead.filter(|wait| !wait.is_zero()) {
            return Some(wait);
        }
        inner.spent.insert(key, until + PACE);
        if inner.spent.len() > inner.sweep.max(FEW) {
            inner.spent.retain(|_, until| *until > now);
            inner.sweep = inner.spent.len() * 2;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_looks_come_at_once_and_the_others_at_a_pace() {
        let (debounce, start) = (Debounce::default(), Instant::now());
        for _ in 0..AT_ONCE {
            assert_eq!(debounce.wait("n", "a", start), None);
        }
        assert_eq!(debounce.wait("n", "a", start), Some(PACE));
        assert_eq!(debounce.wait("n", "b", start), None, "another SealConfig");
        assert_eq!(debounce.wait("m", "a", start), None, "another namespace");
        // Who asks fifty times a second is looked at once a second.
        let asked = (1..=500).map(|tick| start + Duration::from_millis(20) * tick);
        assert_eq!(
            asked.filter(|at| debounce.wait("n", "a", *at).is_none()).count(),
            10
        );
    }

    #[test]
    fn what_was_spent_is_earned_back() {
        let (debounce, start) = (Debounce::default(), Instant::now());
        for _ in 0..AT_ONCE {
            debounce.wait("n", "a", start);
        }
        let later = start + PACE * 3;
        let free = (0..AT_ONCE).filter(|_| debounce.wait("n", "a", later).is_none());
        assert_eq!(free.count(), 3);
    }

    #[test]
    fn a_wait_that_is_kept_to_is_enough() {
        let (debounce, mut now) = (Debounce::default(), Instant::now());
        for _ in 0..50 {
            if let Some(wait) = debounce.wait("n", "a", now) {
                now += wait;
                assert_eq!(debounce.wait("n", "a", now), None);
            }
        }
    }

    #[test]
    fn who_has_earned_all_back_is_forgotten() {
        let (debounce, start) = (Debounce::default(), Instant::now());
        for round in 0..100u32 {
            for index in 0..50 {
                debounce.wait("n", &format!("c-{round}-{index}"), start + PACE * 2 * round);
            }
        }
        assert!(debounce.lock().spent.len() < 3 * FEW);
    }
}
