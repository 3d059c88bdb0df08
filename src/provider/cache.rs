//! A bounded map that forgets what was used longest ago.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

/// At most `capacity` values. Made for values that are costly to make and cheap to share (`Arc`).
pub(crate) struct Bounded<K, V> {
    capacity: usize,
    inner: Mutex<Inner<K, V>>,
}

struct Inner<K, V> {
    clock: u64,
    values: HashMap<K, (u64, V)>,
}

impl<K: Clone + Eq + Hash, V: Clone> Bounded<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        let inner = Inner {
            clock: 0,
            values: HashMap::new(),
        };
        Self {
            capacity,
            inner: Mutex::new(inner),
        }
    }

    /// The value under `key`, made on the spot if there is none. `make` must not block.
    pub(crate) fn get_or(&self, key: &K, make: impl FnOnce() -> V) -> V {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        if let Some((used, value)) = inner.values.get_mut(key) {
            *used = now;
            return value.clone();
        }
        if inner.values.len() >= self.capacity {
            // A scan, but only when a new value meets a full map.
            let oldest = inner
                .values
                .iter()
                .min_by_key(|(_, (used, _))| *used)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                inner.values.remove(&oldest);
            }
        }
        let value = make();
        inner.values.insert(key.clone(), (now, value.clone()));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::Bounded;

    #[test]
    fn the_least_recently_used_value_is_forgotten() {
        let cache = Bounded::new(2);
        cache.get_or(&1, || "one");
        cache.get_or(&2, || "two");
        cache.get_or(&1, || "not made again");
        cache.get_or(&3, || "three");
        assert_eq!(cache.get_or(&1, || "made again"), "one");
        assert_eq!(cache.get_or(&2, || "made again"), "made again");
    }
}
