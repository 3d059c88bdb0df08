//! What is to be looked at, handed to kube's Controller as it has room. Its own queue takes 800 bytes for each object and
//! never gives them back, and at a start every object is to be looked at.
//!
//! What it is handed is a ticket with a name, which stands in its store as long as it may look for it: the objects themselves
//! are kept elsewhere, in less room.

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
    /// The Controller is done with these, and need not find them any more.
    done: HashSet<Name>,
}

/// What the Controller is to be handed.
#[derive(Debug, PartialEq)]
pub struct Handed {
    /// The object.
    pub name: Name,
    /// Those whose tickets are void.
    pub void: HashSet<Name>,
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

    fn hand(&mut self, room: usize) -> Option<Handed> {
        if self.handed.len() + self.begun >= room {
            return None;
        }
        let name = self.waiting.pop_front()?;
        self.asked.remove(&name);
        if self.waiting.is_empty() {
            // There may have been thousands.
            (self.waiting, self.asked) = Default::default();
        }
        let name = Arc::unwrap_or_clone(name);
        self.handed.insert(name.clone());
        let mut void = std::mem::take(&mut self.done);
        void.retain(|name| !self.handed.contains(name));
        Some(Handed { name, void })
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
    pub async fn next(&self) -> Handed {
        loop {
            let next = self.lock().hand(self.room);
            if let Some(handed) = next {
                return handed;
            }
            self.changed.notified().await;
        }
    }

    /// The Controller begins with an object, handed by this or for reasons of its own. Whoever begins reads what is known of
    /// it after this: so nobody is asked for in between with news that are not seen.
    pub fn begin(self: &Arc<Self>, name: Name) -> Begun {
        let mut inner = self.lock();
        inner.handed.remove(&name);
        inner.done.remove(&name);
        inner.begun += 1;
        Begun {
            feed: self.clone(),
            name: Some(name),
        }
    }
}

/// Work on an object; when this is dropped, it is done.
pub struct Begun {
    feed: Arc<Feed>,
    /// `None` = the Controller will find it once more.
    name: Option<Name>,
}

impl Begun {
    /// It is done, and the Controller begins with it again by itself.
    pub fn again(mut self) {
        self.name = None;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut inner = self.feed.lock();
        inner.begun -= 1;
        inner.done.extend(self.name.take());
        drop(inner);
        self.feed.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn next(feed: &Feed) -> Option<String> {
        feed.next().now_or_never().map(|handed| handed.name.1)
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
        let begun = feed.begin(name("a"));
        assert_eq!(next(&feed), None, "it is worked on");
        feed.ask("n", "a");
        drop(begun);
        assert_eq!(next(&feed).as_deref(), Some("c"));
        drop(feed.begin(name("b")));
        assert_eq!(next(&feed).as_deref(), Some("a"), "asked for after it was begun");
        drop((feed.begin(name("a")), feed.begin(name("c"))));
        assert_eq!(next(&feed), None);
        let inner = feed.lock();
        assert!(inner.asked.is_empty() && inner.handed.is_empty() && inner.waiting.capacity() == 0);
    }

    #[test]
    fn what_the_controller_begins_by_itself_takes_room_until_it_is_done() {
        let feed = Arc::new(Feed::new(1));
        let begun = [feed.begin(name("x")), feed.begin(name("y"))];
        feed.ask("n", "a");
        assert_eq!(next(&feed), None);
        drop(begun);
        assert_eq!(next(&feed).as_deref(), Some("a"));
    }

    #[test]
    fn a_ticket_is_void_once_the_controller_cannot_look_for_it() {
        let feed = Arc::new(Feed::new(4));
        let void = |ask: &str| {
            feed.ask("n", ask);
            let handed = feed.next().now_or_never().unwrap();
            feed.begin(handed.name).again();
            let mut void: Vec<String> = handed.void.into_iter().map(|(_, name)| name).collect();
            void.sort();
            void
        };
        for each in ["a", "b", "c", "d"] {
            feed.ask("n", each);
            assert_eq!(next(&feed).as_deref(), Some(each));
        }
        let (b, d) = (feed.begin(name("b")), feed.begin(name("d")));
        drop(feed.begin(name("a")));
        feed.begin(name("c")).again();
        drop((b, d));
        // Handed again, or begun again by the Controller itself, before it was void.
        feed.ask("n", "a");
        let d = feed.begin(name("d"));
        let handed = feed.next().now_or_never().unwrap();
        assert_eq!(
            (handed.name, handed.void),
            (name("a"), HashSet::from([name("b")]))
        );
        assert_eq!(void("x"), Vec::<String>::new());
        drop(d);
        assert_eq!(void("x"), ["d"]);
        drop(feed.begin(name("a")));
        assert_eq!(void("x"), ["a"]);
    }
}
