//! What is to be looked at, handed to kube's Controller as it has room. Its own queue takes 800 bytes for each object and
//! never gives them back, and at a start every object is to be looked at.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::memories::Name;

/// Objects of one kind in one scope, each once, in the order in which they were asked for.
pub struct Feed {
    room: usize,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Arc<Name>>,
    /// The same, to be found.
    asked: HashSet<Arc<Name>>,
    /// The Controller has them, and has not begun with them.
    handed: HashSet<Name>,
    begun: usize,
}

impl Inner {
    fn ask(&mut self, name: Name) {
        // Who has not begun yet will see whatever it is asked for.
        if self.handed.contains(&name) || self.asked.contains(&name) {
            return;
        }
        let name = Arc::new(name);
        self.waiting.push_back(name.clone());
        self.asked.insert(name);
    }

    fn hand(&mut self, room: usize) -> Option<Name> {
        if self.handed.len() + self.begun >= room {
            return None;
        }
        let name = self.waiting.pop_front()?;
        self.asked.remove(&name);
        if self.waiting.is_empty() {
            // There may have been thousands.
            (self.waiting, self.asked) = Default::default();
        }
        self.handed.insert((*name).clone());
        Some(Arc::unwrap_or_clone(name))
    }
}

impl Feed {
    /// For so many workers: as many again are at hand, so that none has to wait.
    pub fn new(workers: u16) -> Self {
        Self {
            room: 2 * usize::from(workers),
            inner: Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object is to be looked at.
    pub fn ask(&self, namespace: &str, name: &str) {
        self.lock().ask((namespace.to_owned(), name.to_owned()));
        self.changed.notify_one();
    }

    /// The next one, when there is room. For one caller at a time.
    pub async fn next(&self) -> Name {
        loop {
            let next = self.lock().hand(self.room);
            if let Some(name) = next {
                return name;
            }
            self.changed.notified().await;
        }
    }

    /// The Controller begins with an object, handed by this or for reasons of its own. It reads its store in the same poll, in
    /// which its watch cannot change that: so nobody is asked for in between with news that are not seen.
    pub fn begin(self: &Arc<Self>, name: &Name) -> Begun {
        let mut inner = self.lock();
        inner.handed.remove(name);
        inner.begun += 1;
        Begun(self.clone())
    }

    /// The Controller will not begin with an object: it is gone.
    pub fn dropped(&self, name: &Name) {
        self.lock().handed.remove(name);
        self.changed.notify_one();
    }
}

/// Work on an object; when this is dropped, it is done.
pub struct Begun(Arc<Feed>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.lock().begun -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn next(feed: &Feed) -> Option<String> {
        feed.next().now_or_never().map(|(_, name)| name)
    }

    fn name(name: &str) -> Name {
        ("n".to_owned(), name.to_owned())
    }

    #[test]
    fn each_is_handed_once_in_order_while_there_is_room() {
        let feed = Arc::new(Feed::new(1));
        for name in ["a", "b", "a", "c"] {
            feed.ask("n", name);
        }
        assert_eq!(next(&feed).as_deref(), Some("a"));
        feed.ask("n", "a");
        assert_eq!(next(&feed).as_deref(), Some("b"));
        assert_eq!(next(&feed), None, "there is room for two");
        let begun = feed.begin(&name("a"));
        assert_eq!(next(&feed), None, "it is worked on");
        feed.ask("n", "a");
        drop(begun);
        assert_eq!(next(&feed).as_deref(), Some("c"));
        feed.dropped(&name("b"));
        assert_eq!(next(&feed).as_deref(), Some("a"), "asked for after it was begun");
        feed.dropped(&name("a"));
        feed.dropped(&name("c"));
        assert_eq!(next(&feed), None);
        let inner = feed.lock();
        assert!(inner.asked.is_empty() && inner.handed.is_empty() && inner.waiting.capacity() == 0);
    }

    #[test]
    fn what_the_controller_begins_by_itself_takes_room_until_it_is_done() {
        let feed = Arc::new(Feed::new(1));
        let begun = [feed.begin(&name("x")), feed.begin(&name("y"))];
        feed.ask("n", "a");
        assert_eq!(next(&feed), None);
        drop(begun);
        assert_eq!(next(&feed).as_deref(), Some("a"));
    }
}
