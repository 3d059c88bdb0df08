//! YAML, for the files that a person hands to the command line and for printing. The only file that knows serde_yaml.
//!
//! What comes from the apiserver is JSON and never passes here. Files may be hostile (security rule S14): a few bytes
//! of aliases can stand for gigabytes, so anchors and aliases are refused before parsing, and parsing itself may not
//! yield more than the text could hold.

mod scan;
mod splice;

use std::{cell::Cell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

pub use splice::{Step, replace};

/// Bytes that a file may have.
pub const MAX_FILE: usize = 1024 * 1024;

/// Why a file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// The file is longer than [`MAX_FILE`].
    #[error("the file is longer than 1 MiB; split it")]
    TooLong,
    /// Something that is YAML and not taken here.
    #[error("line {line}, column {column}: {what}")]
    Refused {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What it is and what to write instead.
        what: &'static str,
    },
    /// No YAML, or no YAML that could be a manifest.
    #[error("not a readable manifest: {0}")]
    Syntax(String),
    /// A value cannot be replaced without touching the rest.
    #[error(
        "the place of the value is not found for sure; write mappings as `name: value`, or paste the value in by hand"
    )]
    NoPlace,
}

/// The documents of a file, YAML or JSON; empty ones are left out.
///
/// # Errors
/// A sentence with the place. A name given twice in one mapping is an error, for only one of them could count.
pub fn documents(text: &str) -> Result<Vec<Value>, YamlError> {
    if text.len() > MAX_FILE {
        return Err(YamlError::TooLong);
    }
    if text.trim_start().starts_with('{') {
        // Flow mappings of YAML begin alike; what is not JSON is tried as YAML.
        let budget = Budget::of(text);
        let mut json = serde_json::Deserializer::from_str(text);
        if let Ok(value) = (Node { budget: &budget }).deserialize(&mut json)
            && json.end().is_ok()
        {
            return Ok(vec![value]);
        }
    }
    scan::scan(text)?;
    let budget = Budget::of(text);
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = (Node { budget: &budget })
            .deserialize(document)
            .map_err(|error| YamlError::Syntax(error.to_string()))?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}

/// A value as one YAML document.
///
/// # Errors
/// Never for values that came from JSON.
pub fn print(value: &Value) -> Result<String, YamlError> {
    serde_yaml::to_string(value).map_err(|error| YamlError::Syntax(error.to_string()))
}

/// How much a text may still yield. Without aliases no text yields more nodes than it has bytes, and no scalars of
/// more than twice its length (the longest escape is `\L`, two bytes for three).
struct Budget(Cell<usize>);

impl Budget {
    fn of(text: &str) -> Self {
        Self(Cell::new(64 + 3 * text.len()))
    }

    fn spend<E: serde::de::Error>(&self, bytes: usize) -> Result<(), E> {
        match self.0.get().checked_sub(bytes) {
            Some(left) => {
                self.0.set(left);
                Ok(())
            }
            None => Err(E::custom(
                "the document expands to more than its text; write it without aliases",
            )),
        }
    }
}

/// Reads one node into JSON.
#[derive(Clone, Copy)]
struct Node<'b> {
    budget: &'b Budget,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("plain YAML without tags")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.budget.spend(1)?;
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.budget.spend(1)?;
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("infinite and undefined numbers have no place in a manifest"))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.budget.spend(1 + value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.budget.spend(1)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.budget.spend(1)?;
        let mut map = Map::new();
        while let Some(Name(name)) = entries.next_key()? {
            self.budget.spend(name.len())?;
            let value = entries.next_value_seed(self)?;
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom(
                    "a name stands twice in one mapping; remove one of the two",
                ));
            }
        }
        Ok(Value::Object(map))
    }
}

/// A mapping's name: text, as in JSON.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name (quote names that read as numbers or booleans)")
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Name, E> {
                Ok(Name(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn yaml_and_json_read_alike() {
        let want = json!({"a": [1, -2, 1.5, true, null, "x"], "b": {"c": "d"}});
        assert_eq!(
            documents("a: [1, -2, 1.5, true, null, x]\nb:\n  c: d\n").unwrap(),
            std::slice::from_ref(&want)
        );
        assert_eq!(documents(&want.to_string()).unwrap(), std::slice::from_ref(&want));
        assert_eq!(
            documents(&serde_json::to_string_pretty(&want).unwrap()).unwrap(),
            [want]
        );
    }

    #[test]
    fn several_documents_are_read_and_empty_ones_left_out() {
        assert_eq!(
            documents("# head\n---\na: 1\n---\n---\n# nothing\n---\nb: 2\n...\n").unwrap(),
            [json!({"a": 1}), json!({"b": 2})]
        );
        assert!(documents("").unwrap().is_empty());
    }

    #[test]
    fn the_billion_laughs_are_refused_unread() {
        let mut text = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
        for (of, to) in ('a'..'i').zip('b'..'j') {
            use fmt::Write as _;
            writeln!(text, "{to}: &{to} [{}]", vec![format!("*{of}"); 9].join(", ")).unwrap();
        }
        assert!(matches!(
            documents(&text),
            Err(YamlError::Refused {
                line: 1,
                column: 4,
                ..
            })
        ));
    }

    #[test]
    fn a_document_cannot_yield_more_than_its_text() {
        // Past the scanner: as if it had been deceived.
        let (of, to) = (vec!["x"; 99].join(","), vec!["*a"; 99].join(","));
        let text = &format!("a: &a [{of}]\nb: [{to}]");
        let budget = Budget::of(text);
        let document = serde_yaml::Deserializer::from_str(text).next().unwrap();
        let error = Node { budget: &budget }.deserialize(document).unwrap_err();
        assert!(error.to_string().contains("expands"), "{error}");
    }

    #[test]
    fn duplicate_names_odd_names_tags_and_infinities_are_errors() {
        for text in [
            "a: 1\na: 2",
            r#"{"a": 1, "a": 2}"#,
            "1: x",
            "a: !t x",
            "a: .inf",
            "a: [",
        ] {
            assert!(documents(text).is_err(), "{text}");
        }
    }

    #[test]
    fn size_and_nesting_are_bounded() {
        assert_eq!(documents(&" ".repeat(MAX_FILE + 1)), Err(YamlError::TooLong));
        let start = std::time::Instant::now();
        for hostile in [
            "[".repeat(MAX_FILE),
            "{".repeat(MAX_FILE),
            "{\"a\":".repeat(MAX_FILE / 5),
            "- ".repeat(MAX_FILE / 2),
            "? ".repeat(MAX_FILE / 2),
            "\"".repeat(MAX_FILE),
            format!("a: {}", "'".repeat(MAX_FILE - 3)),
            "a:\n".repeat(MAX_FILE / 3),
        ] {
            assert!(documents(&hostile).is_err(), "{}", &hostile[..8]);
        }
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }

    #[test]
    fn what_is_printed_reads_back() {
        let value = json!({"a": ["x: y", "&z", "*", "| ", "# no", "1", "yes", "l1\nl2 &a\n"], "b": 1});
        assert_eq!(documents(&print(&value).unwrap()).unwrap(), [value]);
    }
}
