//! JSON merge patches (RFC 7386): the least that turns one value into another.

use serde_json::{Map, Value};

/// The merge patch from `old` to `new`; `None` when nothing differs. Lists are replaced whole.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in after {
        match before.get(name) {
            Some(previous) => {
                if let Some(change) = merge_patch(previous, value) {
                    patch.insert(name.clone(), change);
                }
            }
            None => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_sent_and_what_is_gone_is_nulled() {
        let old = json!({"a": 1, "b": {"c": 1, "d": 2}, "gone": [1], "list": [1, 2]});
        let new = json!({"a": 1, "b": {"c": 1, "d": 3}, "list": [1], "more": {"x": 1}});
        let patch = json!({"b": {"d": 3}, "gone": null, "list": [1], "more": {"x": 1}});
        assert_eq!(merge_patch(&old, &new), Some(patch));
        assert_eq!(merge_patch(&new, &new), None);
    }
}
