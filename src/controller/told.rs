//! What was told in the status of an object, and what the watch shows of it.
//!
//! Decisions build on what this process told last: the watch may be behind that, and others may write a status, too. As long
//! as the watch shows just that, nothing is kept of it here. What others wrote over it is written over again.

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

/// The status of one object.
#[derive(Debug, Default)]
pub struct Told {
    last: Last,
    /// The resourceVersion of our last write: what the watch shows from then on is no echo of an earlier one.
    written: Option<u64>,
    /// What the apiserver has, when the last write of `last` was not taken and the watch is behind an earlier one.
    saved: Option<Box<str>>,
}

/// What this process told last.
#[derive(Debug, Default, PartialEq)]
enum Last {
    /// Nothing yet: what the watch shows is what a former process told.
    #[default]
    Nothing,
    /// What the watch shows.
    Shown,
    /// This.
    Kept(Box<str>),
}

/// What the watch shows of an object.
#[derive(Clone, Debug)]
pub struct Shown<'a> {
    /// The status as [`text`] writes it; `None` = it has none.
    pub status: Option<Cow<'a, str>>,
    /// The object's resourceVersion.
    pub version: Option<&'a str>,
}

impl Shown<'_> {
    fn number(&self) -> Option<u64> {
        self.version?.parse().ok()
    }
}

/// A status to build on.
#[derive(Debug, PartialEq)]
pub struct Base<S> {
    /// What this process told last, or a former one.
    pub previous: S,
    /// What the apiserver has, as far as is known: what differs from it is written.
    pub saved: S,
}

/// A status as text, always alike.
pub fn text<S: Serialize>(status: &S) -> Box<str> {
    // By way of a value, which sorts the members as the apiserver's are when they are kept.
    serde_json::to_value(status)
        .unwrap_or_default()
        .to_string()
        .into()
}

fn read<S: DeserializeOwned + Default>(text: Option<&str>) -> S {
    text.and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

impl Told {
    /// What the next status builds on.
    pub fn base<S: DeserializeOwned + Default + Clone>(&self, shown: &Shown<'_>) -> Base<S> {
        let previous: S = match &self.last {
            Last::Nothing | Last::Shown => read(shown.status.as_deref()),
            Last::Kept(text) => read(Some(text)),
        };
        let saved = if self.is_behind(shown) {
            self.saved
                .as_deref()
                .map_or_else(|| previous.clone(), |saved| read(Some(saved)))
        } else {
            read(shown.status.as_deref())
        };
        Base { previous, saved }
    }

    /// Whether the watch does not show our last write yet.
    fn is_behind(&self, shown: &Shown<'_>) -> bool {
        matches!((self.written, shown.number()), (Some(written), Some(shown)) if shown < written)
    }

    /// A status was told; `written`: the resourceVersion of the write, if one was needed.
    pub fn told<S: Serialize>(&mut self, next: &S, written: Option<&str>) {
        if let Some(version) = written {
            self.written = version.parse().ok();
            self.saved = None;
        }
        self.last = Last::Kept(text(next));
    }

    /// A status could not be written. `base`: what it was written over, and `shown`: what the watch showed then.
    pub fn failed<S: Serialize>(&mut self, next: &S, saved: &S, shown: &Shown<'_>) {
        self.saved = self.is_behind(shown).then(|| text(saved));
        self.last = Last::Kept(text(next));
    }

    /// `now` is shown where `before` was: whether somebody else has written that status. What this process told is kept
    /// as long as another one is shown.
    pub fn follow(&mut self, before: &Shown<'_>, now: &Shown<'_>) -> bool {
        if self.last == Last::Shown && before.status != now.status {
            self.last = Last::Kept(before.status.as_deref().unwrap_or("{}").into());
        }
        match &self.last {
            Last::Nothing | Last::Shown => false,
            Last::Kept(text) if now.status.as_deref() == Some(text) => {
                self.last = Last::Shown;
                self.saved = None;
                false
            }
            Last::Kept(_) => before.status != now.status && !self.is_behind(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown<'a>(status: Option<&'a str>, version: &'static str) -> Shown<'a> {
        Shown {
            status: status.map(Cow::Borrowed),
            version: Some(version),
        }
    }

    /// Previous and saved.
    fn base(told: &Told, shown: &Shown<'_>) -> (Value, Value) {
        let Base { previous, saved } = told.base::<Value>(shown);
        (previous, saved)
    }

    #[test]
    fn what_a_former_process_told_is_built_on() {
        let mut told = Told::default();
        assert_eq!(
            base(&told, &shown(Some(r#"{"a":1}"#), "5")),
            (json!({"a": 1}), json!({"a": 1}))
        );
        assert_eq!(base(&told, &shown(None, "5")), (Value::Null, Value::Null));
        assert!(!told.follow(&shown(None, "5"), &shown(Some("{}"), "6")));
    }

    #[test]
    fn the_watch_is_not_believed_while_it_is_behind_and_nothing_is_kept_once_it_has_come_along() {
        let mut told = Told::default();
        let (old, new) = (json!({"a": 1}), json!({"a": 2}));
        told.told(&new, Some("9"));
        let (before, after) = (text(&old), text(&new));
        let behind = shown(Some(&before), "8");
        assert_eq!(base(&told, &behind), (new.clone(), new.clone()));
        assert!(
            !told.follow(&behind, &shown(Some("{}"), "8")),
            "an echo of an earlier write"
        );
        assert!(!told.follow(&behind, &shown(Some(&after), "9")));
        assert_eq!(told.last, Last::Shown);
        assert_eq!(base(&told, &shown(Some(&after), "9")), (new.clone(), new));
    }

    #[test]
    fn what_others_write_is_noticed_and_written_over() {
        let new = json!({"a": 2});
        let ours = text(&new);
        for already_shown in [true, false] {
            let mut told = Told::default();
            told.told(&new, Some("9"));
            if already_shown {
                assert!(!told.follow(&shown(None, "8"), &shown(Some(&ours), "9")));
            }
            let forged = shown(Some(r#"{"a":3}"#), "10");
            let before = if already_shown {
                shown(Some(&ours), "9")
            } else {
                shown(None, "8")
            };
            assert!(told.follow(&before, &forged));
            assert_eq!(base(&told, &forged), (new.clone(), json!({"a": 3})));
            assert!(!told.follow(&forged, &forged), "told once");
            let emptied = shown(None, "11");
            assert!(told.follow(&forged, &emptied));
            assert_eq!(base(&told, &emptied), (new.clone(), Value::Null));
        }
    }

    #[test]
    fn what_was_not_written_is_written_over_what_is_there() {
        let (old, new, newer) = (json!({"a": 1}), json!({"a": 2}), json!({"a": 3}));
        let before = text(&old);
        let mut told = Told::default();
        let seen = shown(Some(&before), "5");
        told.failed(&new, &old, &seen);
        assert_eq!(base(&told, &seen), (new.clone(), old.clone()));
        // The watch is behind the write before the one that failed: that one is what it is written over.
        told.told(&new, Some("7"));
        told.failed(&newer, &new, &seen);
        assert_eq!(base(&told, &seen), (newer, new));
    }

    #[test]
    fn versions_that_are_no_numbers_are_taken_as_they_are_shown() {
        let new = json!({"a": 2});
        let mut told = Told::default();
        told.told(&new, Some("x"));
        assert_eq!(
            base(&told, &shown(Some(r#"{"a":1}"#), "y")),
            (new, json!({"a": 1}))
        );
    }
}
