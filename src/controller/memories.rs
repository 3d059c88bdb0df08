//! What is remembered of the objects of a kind between reconciles, and how it follows what the watch shows of them.

use std::{
    borrow::Cow,
    collections::HashMap,
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use kube::{
    Resource, ResourceExt,
    runtime::{
        reflector::{ObjectRef, Store, store::Writer},
        watcher::Event,
    },
};

use serde::{Serialize, de::DeserializeOwned};

use super::told::{Base, Shown, Told};

/// Namespace and name.
pub type Name = (String, String);

/// An object whose status can be compared as text.
pub trait StatusText {
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
    /// A successor of the same name starts afresh.
    uid: Option<String>,
    /// What the watch showed when it was taken.
    shown: Arc<K>,
    told: Told,
    rest: Box<T>,
}

/// The same, while nobody works on the object: of most there is nothing but what was told.
struct Stored<T> {
    uid: Option<String>,
    told: Told,
    rest: Option<Box<T>>,
    /// When it is looked at again, if nothing happens.
    due: Option<Instant>,
}

impl<K: Resource + StatusText, T> Memory<K, T> {
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

/// What the watches show of the objects of a kind, and what is remembered of them.
pub struct Memories<K: Resource<DynamicType = ()> + 'static, T> {
    shown: Mutex<Vec<Store<K>>>,
    remembered: Mutex<HashMap<Name, Stored<T>>>,
}

impl<K: Resource<DynamicType = ()>, T> Default for Memories<K, T> {
    fn default() -> Self {
        Self {
            shown: Mutex::default(),
            remembered: Mutex::default(),
        }
    }
}

impl<K, T> Memories<K, T>
where
    K: Resource<DynamicType = ()> + StatusText + Clone,
    T: Rest,
{
    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Stored<T>>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects are watched here from now on.
    pub fn reads(&self, store: Store<K>) {
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(store);
    }

    /// An object as the watch last showed it.
    pub fn shown(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let reference = ObjectRef::new(name).within(namespace);
        all.iter().find_map(|store| store.get(&reference))
    }

    /// Takes what is remembered of an object; nothing if it is another of the same name. kube never reconciles one
    /// object twice at once, so nobody misses it meanwhile.
    pub fn take(&self, object: &Arc<K>) -> Memory<K, T> {
        let (namespace, name) = named(&**object);
        let stored = self.lock().remove(&(namespace.clone(), name.clone()));
        let uid = object.uid();
        let stored = stored.filter(|stored| stored.uid == uid);
        let (told, rest) = stored.map_or_else(Default::default, |stored| (stored.told, stored.rest));
        Memory {
            uid,
            // Read after that: `object` may be behind what was settled since.
            shown: self.shown(&namespace, &name).unwrap_or_else(|| object.clone()),
            told,
            rest: rest.unwrap_or_default(),
        }
    }

    /// Puts back what is remembered. Whether somebody else wrote the status meanwhile.
    pub fn put(&self, memory: Memory<K, T>) -> bool {
        // Locked first: an event that comes now finds it, or is shown already.
        let mut all = self.lock();
        let Memory {
            uid,
            shown: before,
            mut told,
            rest,
        } = memory;
        let (namespace, name) = named(&*before);
        let Some(now) = self.shown(&namespace, &name) else {
            // It is gone, and what was remembered of it with it.
            return false;
        };
        let foreign = told.settle(&shows(&*before), &shows(&*now));
        let stored = Stored {
            uid,
            told,
            rest: (!rest.is_blank()).then_some(rest),
            due: None,
        };
        all.insert((namespace, name), stored);
        foreign
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// An object is to be looked at at this time; once it was looked at earlier, that is forgotten.
    pub fn look_at(&self, object: &K, due: Instant) {
        let mut all = self.lock();
        let name = named(object);
        let Some(now) = self.shown(&name.0, &name.1) else {
            return;
        };
        let stored = all.entry(name).or_insert_with(|| Stored {
            uid: now.uid(),
            told: Told::default(),
            rest: None,
            due: None,
        });
        if stored.uid == object.uid() {
            stored.due = Some(due);
        }
    }

    /// The objects whose time has come, each once.
    pub fn due(&self, now: Instant) -> Vec<Name> {
        let mut all = self.lock();
        let due = all.iter_mut().filter_map(|(name, stored)| {
            let is_due = stored.due.take_if(|due| *due <= now).is_some();
            is_due.then(|| name.clone())
        });
        due.collect()
    }

    fn settle(&self, before: &K, now: &K) -> bool {
        let mut all = self.lock();
        let memory = all.get_mut(&named(now));
        memory.is_some_and(|memory| memory.told.settle(&shows(before), &shows(now)))
    }

    fn keep(&self, before: &K, now: &K) {
        if let Some(memory) = self.lock().get_mut(&named(now)) {
            memory.told.keep(&shows(before), &shows(now));
        }
    }
}

/// What an object is known by.
pub fn named(object: &impl ResourceExt) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn shows<K: Resource + StatusText>(object: &K) -> Shown<'_> {
    Shown {
        status: object.status_text(),
        version: object.meta().resource_version.as_deref(),
    }
}

/// Puts an event into the store that `memories` read. The objects to look at: new ones, those to which there is more news than
/// a status, and those whose status somebody else has written. What is being listed is in the store only when all is listed,
/// so nobody is to look before that.
pub fn reflect<K, T>(event: &Event<K>, writer: &mut Writer<K>, memories: &Memories<K, T>) -> Vec<Name>
where
    K: Resource<DynamicType = ()> + StatusText + Clone,
    T: Rest,
{
    let mut look = Vec::new();
    match event {
        Event::Apply(now) => {
            let (namespace, name) = named(now);
            let before = memories.shown(&namespace, &name);
            if let Some(before) = &before {
                memories.keep(before, now);
            }
            writer.apply_watcher_event(event);
            let is_foreign = before.as_ref().is_some_and(|before| memories.settle(before, now));
            if is_foreign || changed(before.as_deref(), now) {
                look.push((namespace, name));
            }
        }
        Event::InitDone => {
            let before = writer.as_reader().state();
            let before: HashMap<Name, Arc<K>> = before
                .into_iter()
                .map(|object| (named(&*object), object))
                .collect();
            writer.apply_watcher_event(event);
            for now in writer.as_reader().state() {
                let name = named(&*now);
                let before = before.get(&name).map(Arc::as_ref);
                if let Some(before) = before {
                    memories.keep(before, &now);
                }
                let is_foreign = before.is_some_and(|before| memories.settle(before, &now));
                if is_foreign || changed(before, &now) {
                    look.push(name);
                }
            }
        }
        Event::Init | Event::InitApply(_) | Event::Delete(_) => writer.apply_watcher_event(event),
    }
    look
}

/// Whether there is more to what is shown than a status.
fn changed<K: Resource>(before: Option<&K>, now: &K) -> bool {
    fn said<K: Resource>(object: &K) -> impl PartialEq {
        let meta = object.meta();
        (
            meta.uid.as_ref(),
            meta.generation,
            meta.annotations.as_ref(),
            meta.labels.as_ref(),
            meta.finalizers.as_ref(),
        )
    }
    before.is_none_or(|before| said(before) != said(now))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kube::runtime::reflector;
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
    fn begun(status: &Value, at: u64) -> (Memories<Kept, Nothing>, Writer<Kept>) {
        let (reader, mut writer) = reflector::store::<Kept>();
        let memories = Memories::default();
        memories.reads(reader);
        let before = object(at - 1, &json!({}));
        reflect(&Event::Init, &mut writer, &memories);
        reflect(&Event::InitApply(before.clone()), &mut writer, &memories);
        let listed = reflect(&Event::InitDone, &mut writer, &memories);
        assert_eq!(listed.len(), 1, "it is new");
        let mut memory = memories.take(&Arc::new(before));
        memory.told.told(status, Some(&at.to_string()));
        assert!(!memories.put(memory));
        (memories, writer)
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
            let (memories, mut writer) = begun(&ours, 5);
            if echoed {
                assert!(reflect(&Event::Apply(object(5, &ours)), &mut writer, &memories).is_empty());
            }
            let event = Event::Apply(object(6, &forged));
            assert_eq!(
                reflect(&event, &mut writer, &memories),
                std::slice::from_ref(&name)
            );
            assert_eq!(base(&memories), (ours.clone(), forged.clone()));

            let (memories, mut writer) = begun(&ours, 5);
            if echoed {
                reflect(&Event::Apply(object(5, &ours)), &mut writer, &memories);
            }
            reflect(&Event::Init, &mut writer, &memories);
            reflect(&Event::InitApply(object(6, &forged)), &mut writer, &memories);
            assert_eq!(
                reflect(&Event::InitDone, &mut writer, &memories),
                std::slice::from_ref(&name)
            );
            assert_eq!(base(&memories), (ours.clone(), forged.clone()));

            let (memories, mut writer) = begun(&ours, 5);
            if echoed {
                reflect(&Event::Apply(object(5, &ours)), &mut writer, &memories);
            }
            let mut memory = memories.take(&memories.shown("n", "c").unwrap());
            assert!(reflect(&Event::Apply(object(6, &forged)), &mut writer, &memories).is_empty());
            memory.told.told(&ours, None);
            assert!(memories.put(memory), "it is looked at again");
            assert_eq!(base(&memories), (ours.clone(), forged.clone()));
        }
    }

    #[test]
    fn of_what_is_gone_or_was_made_again_nothing_is_remembered() {
        let ours = json!({"a": 1});
        let (memories, mut writer) = begun(&ours, 5);
        let mut successor = object(5, &json!({}));
        successor.meta_mut().uid = Some("another".into());
        let memory = memories.take(&Arc::new(successor));
        assert_eq!(memory.uid.as_deref(), Some("another"));
        let of_former = (ours.clone(), ours.clone());
        assert_ne!(
            memory.base::<Value>(),
            Base {
                previous: of_former.0,
                saved: of_former.1
            }
        );
        reflect(&Event::Delete(object(6, &ours)), &mut writer, &memories);
        assert!(!memories.put(memory));
        assert!(memories.lock().is_empty());
    }

    #[test]
    fn a_far_look_comes_once_and_is_forgotten_after_an_earlier_one_and_with_its_object() {
        let now = Instant::now();
        let (memories, _writer) = begun(&json!({}), 5);
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
        // Also what was never reconciled: it may have waited for its turn.
        memories.forget("n", "c");
        memories.look_at(&object, far);
        assert_eq!(memories.due(far).len(), 1);
        let fresh = Memories::<Kept, Nothing>::default();
        fresh.look_at(&object, far);
        assert!(fresh.due(far).is_empty(), "it is gone");
    }

    #[test]
    fn an_event_is_news_when_it_says_more_than_a_status() {
        let (memories, mut writer) = begun(&json!({}), 5);
        // Nothing was told of it, so no status is a forged one.
        memories.forget("n", "c");
        let mut is_news = |object: Kept| !reflect(&Event::Apply(object), &mut writer, &memories).is_empty();
        assert!(!is_news(object(6, &json!({"a": 1}))));
        let mut annotated = object(7, &json!({}));
        annotated
            .meta_mut()
            .annotations
            .get_or_insert_default()
            .insert("a".into(), "b".into());
        assert!(is_news(annotated.clone()));
        assert!(!is_news(annotated.clone()));
        annotated.meta_mut().generation = Some(2);
        assert!(is_news(annotated));
        // What a list shows is looked at when all is listed: before that the store is as it was.
        let mut list = |object: Kept| {
            assert!(reflect(&Event::Init, &mut writer, &memories).is_empty());
            assert!(reflect(&Event::InitApply(object), &mut writer, &memories).is_empty());
            reflect(&Event::InitDone, &mut writer, &memories).len()
        };
        let listed = object(8, &json!({}));
        assert_eq!(list(listed.clone()), 1);
        assert_eq!(list(listed), 0, "listed again as it was");
    }
}
