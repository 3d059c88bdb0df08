//! How fast KMSes are asked (security rule S19): each namespace's identity at its own pace, and all together at one.
//!
//! A namespace that asks for much waits for its own turn; the turns go round the namespaces, so others wait for one of
//! its requests and not for all of them. A KMS that throttles is asked half as often from then on, and more again little
//! by little, as TCP does (RFC 5681): its quota is shared with others, and nobody tells how large it is.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::cache::Bounded;
use crate::{api::Reason, seal::Fault};

/// Lanes kept at most; one that is forgotten starts at its full pace again.
const LANES: usize = 8192;

/// A rate is halved at most once in this time: what was on its way already says nothing new.
const ONE_ROUND: Duration = Duration::from_millis(500);

/// Spends a rate: as many at once as come together in a tenth of a second, at least one.
#[derive(Clone, Debug)]
struct Bucket {
    rate: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: f64, now: Instant) -> Self {
        Self {
            rate,
            left: Self::most(rate),
            at: now,
        }
    }

    fn most(rate: f64) -> f64 {
        (rate / 10.0).max(1.0)
    }

    /// Takes one, on credit if need be, and says how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.left = (self.left + earned).min(Self::most(self.rate)) - 1.0;
        self.at = now;
        Duration::from_secs_f64((-self.left / self.rate).max(0.0))
    }
}

/// The pace of one identity of one namespace.
#[derive(Clone, Debug)]
struct Lane {
    bucket: Bucket,
    /// Its rate while nothing throttles.
    full: f64,
    halved: Option<Instant>,
}

impl Lane {
    fn new(full: f64, now: Instant) -> Self {
        Self {
            bucket: Bucket::new(full, now),
            full,
            halved: None,
        }
    }

    /// The KMS answered, and whether that it was asked too often.
    fn learn(&mut self, throttled: bool, now: Instant) {
        let rate = self.bucket.rate;
        if !throttled {
            // One request a second more for each second of answers, or a hundredth of the full pace.
            self.bucket.rate = (rate + (self.full / 100.0).max(1.0) / rate).min(self.full);
        } else if self
            .halved
            .is_none_or(|at| now.saturating_duration_since(at) >= ONE_ROUND)
        {
            self.bucket.rate = (rate / 2.0).max(1.0);
            self.bucket.left = self.bucket.left.min(0.0);
            self.halved = Some(now);
        }
    }
}

/// A lane with those who are in it.
struct Shared {
    /// Held while waiting, so that requests go in the order in which they came.
    order: tokio::sync::Mutex<()>,
    lane: Mutex<Lane>,
}

impl Shared {
    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pace of the whole process.
pub(crate) struct Pace {
    full: f64,
    lanes: Bounded<(String, u64), Arc<Shared>>,
    hasher: RandomState,
    together: Mutex<Together>,
}

struct Together {
    bucket: Bucket,
    waiting: HashMap<String, VecDeque<oneshot::Sender<()>>>,
    /// Namespaces that wait, in the order of their turns.
    round: VecDeque<String>,
}

impl Together {
    /// Who is next: a request of the namespace whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<()>> {
        while let Some(namespace) = self.round.pop_front() {
            let queue = self.waiting.get_mut(&namespace)?;
            let next = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&namespace);
            } else {
                self.round.push_back(namespace);
            }
            if next.as_ref().is_some_and(|sender| !sender.is_closed()) {
                return next;
            }
        }
        None
    }
}

impl Pace {
    /// So many requests a second in all; each namespace's identity sends at most half of them.
    pub(crate) fn new(rate: u32) -> Arc<Self> {
        let rate = f64::from(rate.max(1));
        Arc::new(Self {
            full: (rate / 2.0).max(1.0),
            lanes: Bounded::new(LANES),
            hasher: RandomState::new(),
            together: Mutex::new(Together {
                bucket: Bucket::new(rate, Instant::now()),
                waiting: HashMap::new(),
                round: VecDeque::new(),
            }),
        })
    }

    /// The turns of an identity of a namespace.
    pub(crate) fn turns(self: &Arc<Self>, namespace: &str, identity: &impl Hash) -> Turns {
        let key = (namespace.to_owned(), self.hasher.hash_one(identity));
        let make = || {
            Arc::new(Shared {
                order: tokio::sync::Mutex::default(),
                lane: Mutex::new(Lane::new(self.full, Instant::now())),
            })
        };
        Turns {
            lane: self.lanes.get_or(&key, make),
            namespace: key.0,
            pace: Arc::clone(self),
        }
    }

    fn together(&self) -> MutexGuard<'_, Together> {
        self.together.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the process as a whole may send one more.
    async fn turn(self: &Arc<Self>, namespace: &str) {
        let called = {
            let mut together = self.together();
            if together.round.is_empty() {
                let now = Instant::now();
                let mut bucket = together.bucket.clone();
                if bucket.take(now).is_zero() {
                    together.bucket = bucket;
                    return;
                }
                tokio::spawn(Arc::clone(self).go_round());
            }
            let (caller, called) = oneshot::channel();
            if !together.waiting.contains_key(namespace) {
                together.round.push_back(namespace.to_owned());
            }
            together
                .waiting
                .entry(namespace.to_owned())
                .or_default()
                .push_back(caller);
            called
        };
        // The caller is dropped only with the process.
        let _ = called.await;
    }

    /// Calls one after the other until nobody waits.
    async fn go_round(self: Arc<Self>) {
        loop {
            let wait = self.together().bucket.take(Instant::now());
            tokio::time::sleep(wait).await;
            let mut together = self.together();
            let Some(next) = together.next() else {
                // What was taken for nobody.
                together.bucket.left += 1.0;
                return;
            };
            let _ = next.send(());
            if together.round.is_empty() {
                return;
            }
        }
    }
}

/// The turns of one identity of one namespace to ask a KMS.
#[derive(Clone)]
pub(crate) struct Turns {
    pace: Arc<Pace>,
    namespace: String,
    lane: Arc<Shared>,
}

impl Turns {
    /// Waits for the next one.
    pub(crate) async fn next(&self) {
        {
            let _in_order = self.lane.order.lock().await;
            let wait = self.lane.lane().bucket.take(Instant::now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
        self.pace.turn(&self.namespace).await;
    }

    /// The KMS answered so.
    pub(crate) fn learn(&self, fault: Option<&Fault>) {
        let throttled = fault.is_some_and(|fault| fault.reason == Reason::Throttled);
        self.lane.lane().learn(throttled, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn throttled() -> Fault {
        Fault::new(Reason::Throttled, crate::seal::FaultKind::Throttled, "slower")
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_lets_a_tenth_of_a_second_through_at_once_and_then_its_rate() {
        let now = Instant::now();
        let mut bucket = Bucket::new(100.0, now);
        assert!((0..10).all(|_| bucket.take(now).is_zero()));
        assert_eq!(bucket.take(now), Duration::from_millis(10));
        assert_eq!(bucket.take(now), Duration::from_millis(20));
        assert_eq!(bucket.take(now + SECOND), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_halves_the_rate_once_a_round_and_answers_bring_it_back() {
        let now = Instant::now();
        let mut lane = Lane::new(100.0, now);
        for _ in 0..10 {
            lane.learn(true, now);
        }
        assert!((lane.bucket.rate - 50.0).abs() < 1e-9);
        for round in 1..20 {
            lane.learn(true, now + ONE_ROUND * round);
        }
        assert!(
            (lane.bucket.rate - 1.0).abs() < 1e-9,
            "never less than one a second"
        );
        for _ in 0..10_000 {
            lane.learn(false, now);
        }
        assert!((lane.bucket.rate - 100.0).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_comes_back_little_by_little() {
        let now = Instant::now();
        for (full, after_one) in [(20.0, 10.0 + 1.0 / 10.0), (1000.0, 500.0 + 10.0 / 500.0)] {
            let mut lane = Lane::new(full, now);
            lane.learn(true, now);
            lane.learn(false, now);
            assert!(
                (lane.bucket.rate - after_one).abs() < 1e-9,
                "{}",
                lane.bucket.rate
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_identity_sends_half_of_the_whole_rate() {
        let pace = Pace::new(100);
        let turns = pace.turns("n", &"identity");
        let start = Instant::now();
        for _ in 0..55 {
            turns.next().await;
        }
        // 5 at once, then 50 a second.
        assert_eq!(start.elapsed().as_millis() / 100, 10);
        let other = pace.turns("m", &"identity");
        let start = Instant::now();
        other.next().await;
        assert!(start.elapsed() < Duration::from_millis(20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_identity_slows_down_and_no_other() {
        let pace = Pace::new(100);
        let (one, same) = (pace.turns("n", &1), pace.turns("n", &1));
        one.learn(Some(&throttled()));
        let rate = |turns: &Turns| turns.lane.lane().bucket.rate;
        assert!((rate(&same) - 25.0).abs() < 1e-9);
        assert!((rate(&pace.turns("n", &2)) - 50.0).abs() < 1e-9);
        assert!((rate(&pace.turns("m", &1)) - 50.0).abs() < 1e-9);
    }

    #[tokio::test(start_paused = true)]
    async fn turns_go_round_the_namespaces() {
        let pace = Pace::new(10);
        let order = Arc::new(Mutex::new(Vec::new()));
        let ask = |namespace: &'static str| {
            let (pace, order) = (Arc::clone(&pace), Arc::clone(&order));
            tokio::spawn(async move {
                pace.turn(namespace).await;
                order.lock().unwrap().push(namespace);
            })
        };
        // The first goes through at once; then "many" waits with 50.
        let mut tasks: Vec<_> = (0..51).map(|_| ask("many")).collect();
        tokio::task::yield_now().await;
        tasks.push(ask("few"));
        tokio::time::sleep(Duration::from_millis(350)).await;
        let order = order.lock().unwrap();
        assert!(order.len() <= 5, "{order:?}");
        assert!(order.contains(&"few"), "{order:?}");
        drop(tasks);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_away_takes_no_turn() {
        let pace = Pace::new(10);
        pace.turn("n").await;
        let (gone, waits) = (Arc::clone(&pace), Arc::clone(&pace));
        let gone = tokio::spawn(async move { gone.turn("n").await });
        let waits = tokio::spawn(async move { waits.turn("n").await });
        tokio::task::yield_now().await;
        gone.abort();
        let start = Instant::now();
        waits.await.unwrap();
        assert!(start.elapsed() <= Duration::from_millis(210));
        pace.turn("n").await;
        assert!(pace.together().round.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_taken_for_nobody_is_given_back() {
        let pace = Pace::new(10);
        pace.turn("n").await;
        let gone = Arc::clone(&pace);
        let gone = tokio::spawn(async move { gone.turn("n").await });
        tokio::task::yield_now().await;
        gone.abort();
        tokio::time::sleep(Duration::from_millis(110)).await;
        let start = Instant::now();
        pace.turn("m").await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
