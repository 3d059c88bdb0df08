//! Servers that are being initialised: what is known of each, and how the end of the process waits for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::Name;
use crate::seal::{
    Fault,
    unseal::initialize::{just_done, not_stored, under_way},
};

/// How long a server that was initialised is said to be, when no reconcile has seen its set: longer than one takes.
const FRESH: Duration = Duration::from_mins(1);

/// Where an initialisation is.
#[derive(Clone, Debug)]
enum Phase {
    UnderWay,
    /// The server has answered, and this keeps the answer from being stored.
    NotStored(Fault),
    Done(Instant),
}

/// Every initialisation of this process.
#[derive(Default)]
pub struct Inits {
    phases: Mutex<HashMap<Name, Phase>>,
    running: watch::Sender<Running>,
}

#[derive(Clone, Copy, Default)]
struct Running {
    count: usize,
    /// None begins any more.
    closed: bool,
}

impl Inits {
    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins one; `None`: one of this SealConfig is under way, or the process is about to end.
    pub(super) fn begin(self: &Arc<Self>, namespace: &str, name: &str) -> Option<Begun> {
        let name = (namespace.to_owned(), name.to_owned());
        let mut phases = self.lock();
        if matches!(phases.get(&name), Some(Phase::UnderWay | Phase::NotStored(_))) {
            return None;
        }
        let open = self.running.send_if_modified(|running| {
            running.count += usize::from(!running.closed);
            !running.closed
        });
        if !open {
            return None;
        }
        phases.insert(name.clone(), Phase::UnderWay);
        drop(phases);
        Some(Begun {
            inits: self.clone(),
            name,
        })
    }

    /// What is said of the servers of a SealConfig one of which is being initialised, or was a moment ago.
    pub(super) fn told(&self, namespace: &str, name: &str) -> Option<Fault> {
        let phases = self.lock();
        match phases.get(&(namespace.to_owned(), name.to_owned()))? {
            Phase::UnderWay => Some(under_way()),
            Phase::NotStored(fault) => Some(not_stored(fault)),
            Phase::Done(at) => (at.elapsed() < FRESH).then(just_done),
        }
    }

    /// A reconcile has seen the set that was stored.
    pub(super) fn seen(&self, namespace: &str, name: &str) {
        let name = (namespace.to_owned(), name.to_owned());
        let mut phases = self.lock();
        if matches!(phases.get(&name), Some(Phase::Done(_))) {
            phases.remove(&name);
        }
    }

    /// Lets none begin any more, and waits until what servers answered is stored.
    pub async fn settled(&self) {
        self.running.send_modify(|running| running.closed = true);
        let mut running = self.running.subscribe();
        let waits = running.borrow().count > 0;
        if waits {
            tracing::warn!("a server is being initialised: this process ends when what it answers is stored");
        }
        let _ = running.wait_for(|running| running.count == 0).await;
    }
}

/// One initialisation. Its end, however it comes, is noticed.
pub(super) struct Begun {
    inits: Arc<Inits>,
    name: Name,
}

impl Begun {
    /// The server has answered, and this keeps the answer from being stored.
    pub fn not_stored(&self, fault: Fault) {
        self.inits
            .lock()
            .insert(self.name.clone(), Phase::NotStored(fault));
    }

    /// Everything is stored.
    pub fn done(&self) {
        self.inits
            .lock()
            .insert(self.name.clone(), Phase::Done(Instant::now()));
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut phases = self.inits.lock();
        if !matches!(phases.get(&self.name), Some(Phase::Done(_))) {
            phases.remove(&self.name);
        }
        drop(phases);
        self.inits.running.send_modify(|running| running.count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Reason;

    #[tokio::test]
    async fn one_at_a_time_is_told_and_waited_for() {
        let inits = Arc::new(Inits::default());
        let begun = inits.begin("n", "a").unwrap();
        assert!(inits.begin("n", "a").is_none());
        drop(inits.begin("n", "b").unwrap());
        assert_eq!(inits.told("n", "a").unwrap().reason, Reason::NotInitialized);
        begun.not_stored(Fault::transient(Reason::KmsUnavailable, "x"));
        assert_eq!(
            inits.told("n", "a").unwrap().reason,
            Reason::InitResponseNotStored
        );
        let waiting = tokio::spawn({
            let inits = inits.clone();
            async move { inits.settled().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        begun.done();
        drop(begun);
        waiting.await.unwrap();
        assert!(inits.begin("n", "b").is_none(), "the process is about to end");
        assert_eq!(inits.told("n", "a").unwrap().reason, Reason::Sealed);
        inits.seen("n", "a");
        assert!(inits.told("n", "a").is_none());
    }

    #[tokio::test]
    async fn one_that_never_asked_leaves_nothing_behind() {
        let inits = Arc::new(Inits::default());
        drop(inits.begin("n", "a").unwrap());
        assert!(inits.told("n", "a").is_none());
        inits.settled().await;
    }
}
