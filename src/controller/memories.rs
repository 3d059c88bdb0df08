//! The objects of a kind between reconciles: as the watch last showed them, and what is remembered of them.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use kube::{Resource, ResourceExt, runtime::watcher::Event};
use serde::{Serialize, de::DeserializeOwned};

use super::told::{Base, Shown, Told};

/// Namespace and name.
pub type Name = (String, String);

/// An object that is kept here.
pub trait Object: Resource<DynamicType = ()> {
    /// How it is kept.
    type Kept: Clone;

    /// For keeping.
    fn keep(self: &Arc<Self>) -> Self::Kept;

    /// As it was.
    fn kept(kept: &Self::Kept) -> Arc<Self>;

    /// The status as `told::text` writes it; `None` = it has none.
    fn status_text(&self) -> Option<Cow<'_, str>>;
}

/// What a kind has remembered of its objects.
pub trait Rest: Default {
    /// Whether it is as good as nothing, and need not be kept.
    fn is_blank(&self) -> bool;
}

/// What is remembered of one object while it is worked on.
pub struct Memory<K, T> {
    /// What the watch showed when it was taken.
    shown: Arc<K>,
    told: Told,
    rest: Box<T>,
}

/// One object; while it is worked on, what is remembered of it is there.
struct Stored<K: Object, T> {
    shown: K::Kept,
    told: Told,
    rest: Option<Box<T>>,
    /// When it is looked at again, if nothing happens.
    due: Option<Instant>,
}

impl<K: Object, T> Memory<K, T> {
    /// What the next status builds on.
    pub fn base<S: DeserializeOwned + Default + Clone>(&self) -> Base<S> {
        self.told.base(&shows(&*self.shown))
    }

    /// A status was to be written over `saved`; `written`: the resourceVersion of the write, if one was needed and taken.
    pub fn tell<S: Serialize, E>(&mut self, next: &S, saved: &S, written: &Result<Option<String>, E>) {
        match written {
            Ok(written) => self.told.told(next, written.as_deref()),
            Err(_) => self.told.failed(next, saved, &shows(&*self.shown)),
        }
    }
}

impl<K, T> Deref for Memory<K, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.rest
    }
}

impl<K, T> DerefMut for Memory<K, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.rest
    }
}

/// By namespace, then by name.
type All<K, T> = HashMap<Box<str>, HashMap<Box<str>, Box<Stored<K, T>>>>;

/// The objects of a kind.
pub struct Memories<K: Object, T>(Mutex<All<K, T>>);

impl<K: Object, T> Default for Memories<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Object, T: Rest> Memories<K, T> {
    fn lock(&self) -> MutexGuard<'_, All<K, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object as the watch last showed it.
    pub fn shown(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let kept = self.lock().get(namespace)?.get(name)?.shown.clone();
        Some(K::kept(&kept))
    }

    /// All that are known in a namespace, or everywhere.
    pub fn names(&self, scope: Option<&str>) -> Vec<Name> {
        let all = self.lock();
        let spaces = all
            .iter()
            .filter(|(namespace, _)| scope.is_none_or(|scope| *scope == ***namespace));
        let names = spaces.flat_map(|(namespace, objects)| objects.keys().map(move |name| (namespace, name)));
        names
            .map(|(namespace, name)| (namespace.to_string(), name.to_string()))
            .collect()
    }

    /// Takes what is remembered of an object; nothing if it is another of the same name. kube never reconciles one
    /// object twice at once, so nobody misses it meanwhile.
    pub fn take(&self, object: &Arc<K>) -> Memory<K, T> {
        let (namespace, name) = named(&**object);
        let mut all = self.lock();
        if let Some(stored) = find(&mut all, &namespace, &name) {
            // `object` may be behind what is shown now.
            let shown = K::kept(&stored.shown);
            if shown.meta().uid == object.meta().uid {
                stored.due = None;
                return Memory {
                    shown,
                    told: std::mem::take(&mut stored.told),
                    rest: stored.rest.take().unwrap_or_default(),
                };
            }
        }
        Memory {
            shown: object.clone(),
            told: Told::default(),
            rest: Box::default(),
        }
    }

    /// Puts back what is remembered. Whether somebody else wrote the status meanwhile.
    pub fn put(&self, memory: Memory<K, T>) -> bool {
        let Memory {
            shown: before,
            mut told,
            rest,
        } = memory;
        let (namespace, name) = named(&*before);
        let mut all = self.lock();
        let Some(stored) = find(&mut all, &namespace, &name) else {
            // It is gone, and what was remembered of it with it.
            return false;
        };
        let now = K::kept(&stored.shown);
        if now.meta().uid != before.meta().uid {
            return false;
        }
        let foreign = told.follow(&shows(&*before), &shows(&*now));
        stored.told = told;
        stored.rest = (!rest.is_blank()).then_some(rest);
        stored.due = None;
        foreign
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut all = self.lock();
        if let Some(objects) = all.get_mut(namespace) {
            objects.remove(name);
            if objects.is_empty() {
                all.remove(namespace);
            }
        }
    }

    /// An object is to be looked at at this time; once it was looked at earlier, that is forgotten.
    pub fn look_at(&self, object: &K, due: Instant) {
        let (namespace, name) = named(object);
        let mut all = self.lock();
        let stored = find(&mut all, &namespace, &name);
        if let Some(stored) = stored
            && K::kept(&stored.shown).meta().uid == object.meta().uid
        {
            stored.due = Some(due);
        }
    }

    /// The objects whose time has come, each once.
    pub fn due(&self, now: Instant) -> Vec<Name> {
        let mut all = self.lock();
        let mut names = Vec::new();
        for (namespace, objects) in all.iter_mut() {
            for (name, stored) in objects {
                if stored.due.take_if(|due| *due <= now).is_some() {
                    names.push((namespace.to_string(), name.to_string()));
                }
            }
        }
        names
    }

    /// Keeps what an event shows. The object to look at: a new one, one to which there is more news than a status, and one
    /// whose status somebody else has written. Those that are gone are forgotten by [`Memories::forget`].
    pub fn reflect(&self, event: &Event<K>) -> Option<Name>
    where
        K: Clone,
    {
        let (Event::Apply(now) | Event::InitApply(now)) = event else {
            return None;
        };
        let now = Arc::new(now.clone());
        let name = named(&*now);
        let mut all = self.lock();
        let fresh = || Stored {
            shown: now.keep(),
            told: Told::default(),
            rest: None,
            due: None,
        };
        if let Some(stored) = find(&mut all, &name.0, &name.1) {
            let before = K::kept(&stored.shown);
            if before.meta().uid != now.meta().uid {
                *stored = fresh();
                return Some(name);
            }
            stored.shown = now.keep();
            let is_foreign = stored.told.follow(&shows(&*before), &shows(&*now));
            return (is_foreign || changed(&*before, &*now)).then_some(name);
        }
        let objects = all.entry(name.0.as_str().into()).or_default();
        objects.insert(name.1.as_str().into(), Box::new(fresh()));
        Some(name)
    }
}

/// Those that were known when a new list began, and were not in it yet.
#[derive(Default)]
pub struct Unlisted(HashSet<Name>);

impl Unlisted {
    /// Follows a watch. Those that are gone, by what an event says or by a list that they are not in.
    pub fn follow<K: Object, T: Rest>(
        &mut self,
        event: &Event<K>,
        memories: &Memories<K, T>,
        scope: Option<&str>,
    ) -> Vec<Name> {
        match event {
            Event::Init => {
                self.0 = memories.names(scope).into_iter().collect();
                Vec::new()
            }
            Event::Apply(object) | Event::InitApply(object) => {
                self.0.remove(&named(object));
                Vec::new()
            }
            Event::Delete(object) => vec![named(object)],
            Event::InitDone => self.0.drain().collect(),
        }
    }
}

fn find<'a, K: Object, T>(
    all: &'a mut All<K, T>,
    namespace: &str,
    name: &str,
) -> Option<&'a mut Stored<K, T>> {
    all.get_mut(namespace)?.get_mut(name).map(Box::as_mut)
}

/// What an object is known by.
pub fn named(object: &impl ResourceExt) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn shows<K: Object>(object: &K) -> Shown<'_> {
    Shown {
        status: object.status_text(),
        version: object.meta().resource_version.as_deref(),
    }
}

/// Whether there is more to what is shown than a status.
fn changed<K: Resource>(before: &K, now: &K) -> bool {
    fn said<K: Resource>(object: &K) -> impl PartialEq {
        let meta = object.meta();
        (
            meta.generation,
            meta.annotations.as_ref(),
            meta.labels.as_ref(),
            meta.finalizers.as_ref(),
        )
    }
    said(before) != said(now)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::controller::kept::Kept;

    #[derive(Default)]
    struct Nothing;

    impl Rest for Nothing {
        fn is_blank(&self) -> bool {
            true
        }
    }

    fn object(version: u64, status: &Value) -> Kept {
        let metadata =
            json!({"name": "c", "namespace": "n", "resourceVersion": version.to_string(), "uid": "u"});
        serde_json::from_value(json!({"metadata": metadata, "spec": {}, "status": status})).unwrap()
    }

    /// A status, told by us at this version and not shown yet.
    fn begun(status: &Value, at: u64) -> Memories<Kept, Nothing> {
        let memories = Memories::default();
        let before = object(at - 1, &json!({}));
        let listed = memories.reflect(&Event::InitApply(before.clone()));
        assert_eq!(listed.map(|(_, name)| name).as_deref(), Some("c"), "it is new");
        let mut memory = memories.take(&Arc::new(before));
        memory.told.told(status, Some(&at.to_string()));
        assert!(!memories.put(memory));
        memories
    }

    fn base(memories: &Memories<Kept, Nothing>) -> (Value, Value) {
        let memory = memories.take(&memories.shown("n", "c").unwrap());
        let Base { previous, saved } = memory.base();
        memories.put(memory);
        (previous, saved)
    }

    #[test]
    fn a_forged_status_is_noticed_by_an_event_by_a_list_and_while_it_is_worked_on() {
        let (ours, forged) = (json!({"a": 1}), json!({"a": 2}));
        let name = ("n".to_owned(), "c".to_owned());
        for echoed in [true, false] {
            let begun = || {
                let memories = begun(&ours, 5);
                if echoed {
                    assert_eq!(memories.reflect(&Event::Apply(object(5, &ours))), None);
                }
                memories
            };
            for event in [Event::Apply, Event::InitApply] {
                let memories = begun();
                assert_eq!(memories.reflect(&event(object(6, &forged))), Some(name.clone()));
                assert_eq!(base(&memories), (ours.clone(), forged.clone()));
            }

            // Also when nothing was told this time.
            for told in [true, false] {
                let memories = begun();
                let mut memory = memories.take(&memories.shown("n", "c").unwrap());
                assert_eq!(memories.reflect(&Event::Apply(object(6, &forged))), None);
                if told {
                    memory.told.told(&ours, None);
                }
                assert!(memories.put(memory), "it is looked at again");
                assert_eq!(base(&memories), (ours.clone(), forged.clone()));
            }
        }
    }

    #[test]
    fn of_what_is_gone_or_was_made_again_nothing_is_remembered() {
        let ours = json!({"a": 1});
        let memories = begun(&ours, 5);
        let former = memories.shown("n", "c").unwrap();
        let mut successor = object(6, &json!({}));
        successor.meta_mut().uid = Some("another".into());
        // Whether it was worked on meanwhile or not.
        for worked_on in [true, false] {
            let memories = begun(&ours, 5);
            let memory = worked_on.then(|| memories.take(&former));
            assert!(memories.reflect(&Event::Apply(successor.clone())).is_some());
            if let Some(memory) = memory {
                assert!(!memories.put(memory));
            }
            assert_eq!(base(&memories).0, json!({}));
            let of_former = memories.take(&former);
            assert_eq!(
                of_former.base::<Value>().previous,
                json!({}),
                "what is shown is another"
            );
            assert!(!memories.put(of_former));
        }
        let memory = memories.take(&former);
        memories.forget("n", "c");
        assert!(!memories.put(memory));
        assert!(memories.lock().is_empty() && memories.shown("n", "c").is_none());
    }

    #[test]
    fn those_of_a_scope_are_named() {
        let memories = begun(&json!({}), 5);
        let name = ("n".to_owned(), "c".to_owned());
        for (scope, names) in [
            (None, vec![name.clone()]),
            (Some("n"), vec![name]),
            (Some("m"), vec![]),
        ] {
            assert_eq!(memories.names(scope), names);
        }
    }

    #[test]
    fn who_is_not_in_a_new_list_is_gone_and_who_is_deleted_at_once() {
        let memories = begun(&json!({}), 5);
        let listed = object(6, &json!({}));
        let name = vec![("n".to_owned(), "c".to_owned())];
        let mut unlisted = Unlisted::default();
        let mut follow = |event, scope| unlisted.follow(&event, &memories, scope);
        for (scope, shown, gone) in [
            (None, None, name.clone()),
            (Some("n"), None, name.clone()),
            (Some("m"), None, vec![]),
            (None, Some(Event::InitApply(listed.clone())), vec![]),
            (None, Some(Event::Apply(listed.clone())), vec![]),
            (None, Some(Event::Delete(listed.clone())), name.clone()),
        ] {
            assert!(follow(Event::Init, scope).is_empty());
            let deleted = matches!(shown, Some(Event::Delete(_)));
            let told = shown.map(|event| follow(event, scope)).unwrap_or_default();
            assert_eq!(told.is_empty(), !deleted);
            assert_eq!(follow(Event::InitDone, scope), gone);
            assert!(follow(Event::InitDone, scope).is_empty(), "told once");
        }
    }

    #[test]
    fn a_far_look_comes_once_and_is_forgotten_after_an_earlier_one_and_with_its_object() {
        let now = Instant::now();
        let memories = begun(&json!({}), 5);
        let object = memories.shown("n", "c").unwrap();
        let far = now + Duration::from_hours(1);
        memories.look_at(&object, far);
        assert!(memories.due(now).is_empty());
        assert_eq!(memories.due(far), [("n".to_owned(), "c".to_owned())]);
        assert!(memories.due(far).is_empty());
        memories.look_at(&object, far);
        let memory = memories.take(&object);
        memories.put(memory);
        assert!(memories.due(far).is_empty());
        let mut former = Kept::clone(&object);
        former.meta_mut().uid = Some("another".into());
        memories.look_at(&former, far);
        assert!(memories.due(far).is_empty());
        memories.forget("n", "c");
        memories.look_at(&object, far);
        assert!(memories.due(far).is_empty(), "it is gone");
        // Also what was never reconciled: it may have waited for its turn.
        memories.reflect(&Event::Apply(Kept::clone(&object)));
        memories.look_at(&object, far);
        assert_eq!(memories.due(far).len(), 1);
    }

    #[test]
    fn an_event_is_news_when_it_says_more_than_a_status() {
        // Nothing was told of it, so no status is a forged one.
        let memories = Memories::<Kept, Nothing>::default();
        let is_news = |event: Event<Kept>| memories.reflect(&event).is_some();
        assert!(is_news(Event::Apply(object(5, &json!({})))));
        assert!(!is_news(Event::Apply(object(6, &json!({"a": 1})))));
        let mut other = object(7, &json!({}));
        other
            .meta_mut()
            .annotations
            .get_or_insert_default()
            .insert("a".into(), "b".into());
        assert!(is_news(Event::Apply(other.clone())));
        assert!(
            !is_news(Event::InitApply(other.clone())),
            "listed again as it was"
        );
        other.meta_mut().generation = Some(2);
        assert!(is_news(Event::InitApply(other.clone())));
        for event in [Event::Init, Event::InitDone, Event::Delete(other)] {
            assert!(!is_news(event));
        }
    }
}
