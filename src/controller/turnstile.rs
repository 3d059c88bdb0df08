//! Which SealConfigs are worked on (security rule S19): no namespace takes all the workers.
//!
//! Workers wait for KMSes and for Kubernetes, and a namespace whose KMS is slow could hold them all. So a namespace gets
//! another worker only while it has fewer than twice as many as are free: alone it gets two thirds, and one that comes
//! finds some free at once (the dynamic threshold of shared buffers, Choudhury and Hahne 1998). Who has to wait is
//! parked without a worker, and called when one is free, one namespace after the other.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::context::Context;

/// Who is parked is looked at again after this long, even if nobody calls.
pub const PARKED: Duration = Duration::from_secs(30);

/// Workers, and who waits for them.
pub struct Turnstile {
    workers: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Workers in use, by namespace.
    busy: HashMap<String, usize>,
    parked: HashMap<String, Parked>,
    /// Namespaces with something parked, in the order of their turns.
    round: VecDeque<String>,
}

#[derive(Default)]
struct Parked {
    order: VecDeque<String>,
    names: HashSet<String>,
}

impl Inner {
    fn may_enter(&self, workers: usize, namespace: &str) -> bool {
        let used: usize = self.busy.values().sum();
        let own = self.busy.get(namespace).copied().unwrap_or_default();
        own < 2 * workers.saturating_sub(used)
    }

    /// The next that may enter, one namespace after the other.
    fn call(&mut self, workers: usize) -> Option<(String, String)> {
        for _ in 0..self.round.len() {
            let namespace = self.round.pop_front()?;
            if !self.may_enter(workers, &namespace) {
                self.round.push_back(namespace);
                continue;
            }
            let Some(parked) = self.parked.get_mut(&namespace) else {
                continue;
            };
            let name = parked.order.pop_front();
            if let Some(name) = &name {
                parked.names.remove(name);
            }
            if parked.order.is_empty() {
                self.parked.remove(&namespace);
            } else {
                self.round.push_back(namespace.clone());
            }
            if let Some(name) = name {
                return Some((namespace, name));
            }
        }
        None
    }
}

impl Turnstile {
    /// With so many workers.
    pub fn new(workers: u16) -> Self {
        Self {
            workers: usize::from(workers),
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker for a SealConfig, or parks it.
    fn enter(&self, namespace: &str, name: &str) -> bool {
        let mut inner = self.lock();
        if inner.may_enter(self.workers, namespace) {
            *inner.busy.entry(namespace.to_owned()).or_default() += 1;
            return true;
        }
        if !inner.parked.contains_key(namespace) {
            inner.round.push_back(namespace.to_owned());
        }
        let parked = inner.parked.entry(namespace.to_owned()).or_default();
        if parked.names.insert(name.to_owned()) {
            parked.order.push_back(name.to_owned());
        }
        false
    }

    /// Gives a worker back; who is to be looked at now.
    fn leave(&self, namespace: &str) -> Option<(String, String)> {
        let mut inner = self.lock();
        if let Some(busy) = inner.busy.get_mut(namespace) {
            *busy -= 1;
            if *busy == 0 {
                inner.busy.remove(namespace);
            }
        }
        inner.call(self.workers)
    }
}

/// A worker at work; given back when dropped.
pub struct Pass {
    context: Arc<Context>,
    namespace: String,
}

impl Pass {
    /// A worker for a SealConfig; `None` = it is parked, and called when its turn comes.
    pub fn take(context: &Arc<Context>, namespace: &str, name: &str) -> Option<Self> {
        context.turnstile.enter(namespace, name).then(|| Self {
            context: context.clone(),
            namespace: namespace.to_owned(),
        })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((namespace, name)) = self.context.turnstile.leave(&self.namespace) {
            self.context.look_at(&namespace, &name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(index: usize) -> String {
        format!("c-{index}")
    }

    #[test]
    fn one_namespace_leaves_a_third_free_for_others() {
        let turnstile = Turnstile::new(16);
        let entered = (0..5000).filter(|i| turnstile.enter("many", &name(*i))).count();
        assert_eq!(entered, 11);
        assert!(turnstile.enter("few", "a") && turnstile.enter("few", "b"));
        assert!(turnstile.enter("other", "a"));
    }

    #[test]
    fn the_last_worker_is_anybodys() {
        let turnstile = Turnstile::new(1);
        assert!(turnstile.enter("n", "a") && !turnstile.enter("m", "b"));
        assert_eq!(turnstile.leave("n"), Some(("m".into(), "b".into())));
        assert!(turnstile.enter("m", "b"));
        assert_eq!(turnstile.leave("m"), None);
    }

    #[test]
    fn who_was_parked_is_called_in_turn_and_once() {
        let turnstile = Turnstile::new(3);
        assert!(turnstile.enter("a", "1") && turnstile.enter("a", "2"));
        assert!(!turnstile.enter("a", "3") && !turnstile.enter("a", "4") && !turnstile.enter("a", "3"));
        assert!(turnstile.enter("b", "1"));
        assert!(!turnstile.enter("b", "2") && !turnstile.enter("b", "3"));
        let called: Vec<_> = [turnstile.leave("a"), turnstile.leave("a"), turnstile.leave("b")]
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(
            called,
            [("a", "3"), ("b", "2"), ("a", "4")].map(|(ns, name)| (ns.to_owned(), name.to_owned()))
        );
        // The last is called by whoever leaves next.
        assert!(turnstile.enter("a", "3"));
        assert_eq!(turnstile.leave("a"), Some(("b".into(), "3".into())));
        assert!(turnstile.lock().parked.is_empty() && turnstile.lock().round.is_empty());
        assert!(turnstile.lock().busy.is_empty());
    }
}
