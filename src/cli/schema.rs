//! Holds a manifest against the CRD's own schema, offline.
//!
//! The apiserver drops unknown fields without a word unless the client asks for strict validation, and a dropped field
//! is a setting that the user believes in. Here an unknown field is an error. The walker knows what the CRD uses of
//! OpenAPI and no more; a test holds that the CRD uses no more. CEL rules are the parser's to repeat
//! (`seal::model`).

use std::fmt;

use regex_lite::Regex;
use serde_json::Value;

/// Something wrong at a place of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// `spec.seals[0].awskms.region`.
    pub(super) path: String,
    /// What is wrong and what to write instead.
    pub(super) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// The schema of an object as a user writes it: status is the operator's.
pub(super) fn of_kind(crd: &Value) -> Value {
    let mut schema = crd
        .pointer("/spec/versions/0/schema/openAPIV3Schema")
        .cloned()
        .unwrap_or_default();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.remove("status");
        for name in ["apiVersion", "kind"] {
            properties.insert(name.to_owned(), serde_json::json!({"type": "string"}));
        }
        properties.insert("metadata".to_owned(), metadata());
    }
    schema["required"] = serde_json::json!(["apiVersion", "kind", "metadata", "spec"]);
    schema
}

/// What a user may write into the metadata of an object with a name of its own.
fn metadata() -> Value {
    let text = || serde_json::json!({"type": "string"});
    let pairs = serde_json::json!({"type": "object", "additionalProperties": text()});
    let any = serde_json::json!({"x-kubernetes-preserve-unknown-fields": true});
    serde_json::json!({
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"},
            "namespace": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
            "labels": pairs, "annotations": pairs,
            "finalizers": {"type": "array", "items": text()},
            "ownerReferences": any, "managedFields": any,
            "generateName": text(), "uid": text(), "resourceVersion": text(), "selfLink": text(),
            "creationTimestamp": any, "deletionTimestamp": any, "deletionGracePeriodSeconds": any, "generation": any,
        },
    })
}

/// Everything that is wrong with a value.
pub(super) fn check(schema: &Value, value: &Value) -> Vec<Problem> {
    let mut walk = Walk {
        path: String::new(),
        problems: Vec::new(),
    };
    walk.value(schema, value);
    walk.problems
}

struct Walk {
    path: String,
    problems: Vec<Problem>,
}

impl Walk {
    fn problem(&mut self, message: impl Into<String>) {
        self.problems.push(Problem {
            path: self.path.clone(),
            message: message.into(),
        });
    }

    fn at(&mut self, part: &str, walk: impl FnOnce(&mut Self)) {
        let before = self.path.len();
        if !part.starts_with('[') && before > 0 {
            self.path.push('.');
        }
        self.path.push_str(part);
        walk(self);
        self.path.truncate(before);
    }

    fn value(&mut self, schema: &Value, value: &Value) {
        let preserve = schema["x-kubernetes-preserve-unknown-fields"] == true;
        if schema["x-kubernetes-int-or-string"] == true && !value.is_string() && !value.is_i64() {
            self.problem(format!("must be a number or text, not {}", kind(value)));
        }
        let Some(type_) = schema["type"].as_str() else {
            return;
        };
        let fits = match type_ {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            _ => true,
        };
        if !fits {
            let hint = match (type_, value) {
                ("string", Value::Number(_) | Value::Bool(_)) => "; put it in quotes",
                (_, Value::Null) => "; leave the field out instead",
                _ => "",
            };
            self.problem(format!("must be {}, not {}{hint}", article(type_), kind(value)));
            return;
        }
        match value {
            Value::Object(map) => self.object(schema, map, preserve),
            Value::Array(items) => self.array(schema, items),
            Value::String(text) => self.string(schema, text),
            Value::Number(number) => self.number(schema, number.as_f64().unwrap_or_default()),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn object(&mut self, schema: &Value, map: &serde_json::Map<String, Value>, preserve: bool) {
        let properties = schema["properties"].as_object();
        let additional = &schema["additionalProperties"];
        for (name, value) in map {
            let known = properties.and_then(|properties| properties.get(name));
            self.at(name, |walk| match known {
                Some(schema) => walk.value(schema, value),
                None if additional.is_object() => walk.value(additional, value),
                None if additional == true || preserve => {}
                None => walk.unknown(name, properties),
            });
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            if let Some(name) = name.as_str()
                && !map.contains_key(name)
            {
                self.problem(format!("{name} is missing"));
            }
        }
        self.bounds(schema, ["minProperties", "maxProperties"], map.len(), "entries");
    }

    fn unknown(&mut self, name: &str, properties: Option<&serde_json::Map<String, Value>>) {
        let same = |known: &&String| known.eq_ignore_ascii_case(name);
        let hint = properties
            .and_then(|properties| properties.keys().find(same))
            .map_or_else(
                || match properties {
                    Some(properties) if !properties.is_empty() => {
                        let names: Vec<_> = properties.keys().map(String::as_str).collect();
                        format!("; the fields here are {}", names.join(", "))
                    }
                    _ => "; no field stands here".to_owned(),
                },
                |known| format!("; it is written {known}"),
            );
        self.problem(format!("no such field{hint}"));
    }

    fn array(&mut self, schema: &Value, items: &[Value]) {
        for (i, item) in items.iter().enumerate() {
            self.at(&format!("[{i}]"), |walk| walk.value(&schema["items"], item));
        }
        self.bounds(schema, ["minItems", "maxItems"], items.len(), "items");
        let same: Option<Vec<&Value>> = match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Some(items.iter().collect()),
            Some("map") => {
                let key = schema["x-kubernetes-list-map-keys"][0]
                    .as_str()
                    .unwrap_or_default();
                Some(items.iter().map(|item| &item[key]).collect())
            }
            _ => None,
        };
        for (i, one) in same.iter().flatten().enumerate() {
            if same.iter().flatten().take(i).any(|other| other == one) {
                self.at(&format!("[{i}]"), |walk| {
                    walk.problem(format!("{one} stands twice in the list"));
                });
            }
        }
    }

    fn string(&mut self, schema: &Value, text: &str) {
        if let Some(words) = schema["enum"].as_array()
            && !words.iter().any(|word| word == text)
        {
            let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
            self.problem(format!("must be one of {}", words.join(", ")));
        }
        self.bounds(
            schema,
            ["minLength", "maxLength"],
            text.chars().count(),
            "characters",
        );
        if let Some(pattern) = schema["pattern"].as_str() {
            match Regex::new(pattern) {
                Ok(regex) if !regex.is_match(text) => {
                    self.problem(format!("does not fit the pattern {pattern}"));
                }
                Ok(_) => {}
                Err(_) => self.problem("cannot be checked: the pattern of the schema is not readable here"),
            }
        }
    }

    fn number(&mut self, schema: &Value, number: f64) {
        if schema["minimum"].as_f64().is_some_and(|least| number < least) {
            self.problem(format!("must be at least {}", schema["minimum"]));
        }
        if schema["maximum"].as_f64().is_some_and(|most| number > most) {
            self.problem(format!("must be at most {}", schema["maximum"]));
        }
    }

    fn bounds(&mut self, schema: &Value, [least, most]: [&str; 2], count: usize, what: &str) {
        let count = count as u64;
        if let Some(least) = schema[least].as_u64()
            && count < least
        {
            self.problem(format!("must have at least {least} {what}"));
        }
        if let Some(most) = schema[most].as_u64()
            && count > most
        {
            self.problem(format!("must have at most {most} {what}"));
        }
    }
}

fn article(type_: &str) -> &'static str {
    match type_ {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "text",
        "boolean" => "true or false",
        "integer" => "a whole number",
        _ => "a number",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;

    fn problems(value: &Value) -> Vec<String> {
        check(&of_kind(&api::crds()[0]), value)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn good() -> Value {
        json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}},
            "spec": {
                "seals": [{"name": "aws", "awskms": {
                    "kmsKeyID": "alias/a", "region": "eu-west-1", "credentials": {"podIdentity": {}},
                    "assumeRole": {"roleARN": "arn:aws:iam::123456789012:role/x"},
                }}],
                "keys": [{"name": "root", "wrapped": [
                    {"seal": "aws", "format": "kms", "context": {"a": "b"}, "inline": "eA=="},
                ]}],
                "targets": [{
                    "name": "t",
                    "podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["a"]}]},
                    "secret": {"name": "s", "data": [{"name": "k", "key": {"name": "root"}}]},
                }],
            },
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut whole = good();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        whole.pointer_mut(parent).unwrap()[name] = value;
        whole
    }

    #[test]
    fn a_good_manifest_has_no_problem() {
        assert_eq!(problems(&good()), [""; 0]);
    }

    #[test]
    fn every_problem_has_its_path() {
        for (pointer, value, want) in [
            (
                "/spec/seal",
                json!([]),
                "spec.seal: no such field; the fields here are controllerClass, ",
            ),
            (
                "/spec/seals/0/awskms/kmsKeyId",
                json!("x"),
                "spec.seals[0].awskms.kmsKeyId: no such field; it is written kmsKeyID",
            ),
            (
                "/spec/seals/0/gcpckms",
                json!({}),
                "spec.seals[0].gcpckms: no such field; ",
            ),
            (
                "/spec/seals/0/awskms/credentials/podIdentity",
                json!({"x": 1}),
                "spec.seals[0].awskms.credentials.podIdentity.x: no such field; no field stands here",
            ),
            (
                "/spec/seals/0/awskms/region",
                json!("eu.west.1"),
                "spec.seals[0].awskms.region: does not fit the pattern ",
            ),
            (
                "/spec/seals/0/awskms/region",
                json!(1),
                "spec.seals[0].awskms.region: must be text, not a number; put it in quotes",
            ),
            (
                "/spec/seals/0/awskms/credentials",
                json!(null),
                "spec.seals[0].awskms.credentials: must be a mapping, not empty; leave",
            ),
            (
                "/spec/seals/0/priority",
                json!(101),
                "spec.seals[0].priority: must be at most 100",
            ),
            (
                "/spec/seals/0/priority",
                json!(-1),
                "spec.seals[0].priority: must be at least 0",
            ),
            (
                "/spec/seals/0/priority",
                json!(1.5),
                "spec.seals[0].priority: must be a whole number, not a number",
            ),
            ("/spec/seals", json!([]), "spec.seals: must have at least 1 items"),
            (
                "/spec/keys/0/purpose",
                json!("rot"),
                "spec.keys[0].purpose: must be one of root, ",
            ),
            (
                "/spec/keys/0/wrapped/0/context",
                json!({"a": 1}),
                "spec.keys[0].wrapped[0].context.a: must be text",
            ),
            (
                "/spec/keys/0/name",
                json!(""),
                "spec.keys[0].name: must have at least 1 characters",
            ),
            (
                "/spec/keys/0/name",
                json!("a".repeat(64)),
                "spec.keys[0].name: must have at most 63 characters",
            ),
            (
                "/spec/targets/0/secret/data/0/stanzas",
                json!({}),
                "spec.targets[0].secret.data[0].stanzas: no such field",
            ),
            (
                "/spec/targets/0/podSelector/matchLabel",
                json!({}),
                "spec.targets[0].podSelector.matchLabel: no such field",
            ),
            ("/metadata/nam", json!("x"), "metadata.nam: no such field"),
            (
                "/metadata/name",
                json!("A"),
                "metadata.name: does not fit the pattern",
            ),
            (
                "/metadata/annotations",
                json!({"a": true}),
                "metadata.annotations.a: must be text, not true or false; put",
            ),
            ("/spec", json!({"keys": []}), "spec: seals is missing"),
        ] {
            let found = problems(&with(pointer, value));
            assert!(
                found.iter().any(|problem| problem.starts_with(want)),
                "{pointer}: {found:?}"
            );
        }
    }

    #[test]
    fn names_stand_once_in_a_list() {
        let seal = good()["spec"]["seals"][0].clone();
        assert_eq!(
            problems(&with("/spec/seals", json!([seal, seal]))),
            ["spec.seals[1]: \"aws\" stands twice in the list"]
        );
        assert_eq!(
            problems(&with("/spec/seals/0/awskms/formerKeyIDs", json!(["a", "a"]))),
            ["spec.seals[0].awskms.formerKeyIDs[1]: \"a\" stands twice in the list"]
        );
    }

    /// What the walker does not know must not come into the schema unseen.
    #[test]
    fn the_walker_knows_every_word_of_the_schema() {
        const KNOWN: &[&str] = &[
            "type",
            "description",
            "default",
            "format",
            "properties",
            "additionalProperties",
            "required",
            "items",
            "enum",
            "pattern",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "minProperties",
            "maxProperties",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-map-type",
            "x-kubernetes-validations",
            "x-kubernetes-int-or-string",
            "title",
        ];
        fn walk(schema: &Value, unknown: &mut Vec<String>) {
            let Some(map) = schema.as_object() else {
                return;
            };
            for (word, value) in map {
                match word.as_str() {
                    "properties" => value.as_object().unwrap().values().for_each(|v| walk(v, unknown)),
                    "items" | "additionalProperties" => walk(value, unknown),
                    "pattern" => assert!(Regex::new(value.as_str().unwrap()).is_ok(), "{value}"),
                    word if !KNOWN.contains(&word) => unknown.push(format!("{word}: {value}")),
                    _ => {}
                }
            }
        }
        let [crd, _] = api::crds();
        let schema = crd
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec")
            .unwrap();
        let mut unknown = Vec::new();
        walk(schema, &mut unknown);
        assert_eq!(unknown, [""; 0]);
    }
}
