//! The bytes of brought copies, as files carry them.

use serde_json::Value;

use crate::{
    cli::manifest::Object,
    seal::{
        Ciphertext,
        model::{Copy, Source, SourceKind, SourceRef, unarmor},
    },
};

/// The bytes of a copy, from the manifest or from an object beside it.
pub(in crate::cli) fn wrapped(copy: &Copy, others: &[Object], namespace: &str) -> Result<Ciphertext, String> {
    match &copy.source {
        Source::Inline(wrapped) => Ok(wrapped.clone()),
        Source::Entry(entry) => {
            let holder = others.iter().find(|object| {
                object.kind() == entry.kind.to_string()
                    && object.name() == Some(entry.name.as_str())
                    && object.namespace().is_none_or(|own| own == namespace)
            });
            let holder = holder.ok_or_else(|| {
                format!("the copy lies in {entry}, which is not in the file; add that object to the file to try it")
            })?;
            entry_bytes(&holder.value, entry)
                .ok_or_else(|| format!("{entry} has no readable entry {:?}", entry.key))
        }
    }
}

/// An entry as the apiserver would give it: `stringData` wins in a Secret, `binaryData` and `data` differ in a ConfigMap.
fn entry_bytes(object: &Value, entry: &SourceRef) -> Option<Ciphertext> {
    let text = |field: &str| object[field][&entry.key].as_str();
    let bytes = match entry.kind {
        SourceKind::Secret => match text("stringData") {
            Some(plain) => plain.as_bytes().to_vec(),
            None => base64(text("data")?)?,
        },
        SourceKind::ConfigMap => match text("data") {
            Some(plain) => plain.as_bytes().to_vec(),
            None => base64(text("binaryData")?)?,
        },
    };
    unarmor(&bytes, entry.armor)
}

/// How manifests carry bytes. The apiserver reads it with line ends in it, too.
pub(in crate::cli) fn base64(text: &str) -> Option<Vec<u8>> {
    let packed: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    data_encoding::BASE64.decode(&packed).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::Armor;

    fn entry(kind: SourceKind, armor: Armor) -> SourceRef {
        SourceRef {
            kind,
            name: "s".into(),
            key: "k".into(),
            armor,
        }
    }

    #[test]
    fn a_copy_is_found_in_an_object_of_the_same_file() {
        let copy = Copy {
            seal: "aws".into(),
            format: crate::api::WrappedFormat::Kms,
            context: std::collections::BTreeMap::new(),
            source: Source::Entry(entry(SourceKind::Secret, Armor::None)),
        };
        let beside = |namespace: &str| Object {
            place: String::new(),
            value: json!({"kind": "Secret", "metadata": {"name": "s", "namespace": namespace}, "data": {"k": "eA=="}}),
        };
        assert_eq!(
            wrapped(&copy, &[beside("n")], "n"),
            Ok(Ciphertext::new(b"x".to_vec()))
        );
        assert!(wrapped(&copy, &[beside("other")], "n").is_err());
        assert!(wrapped(&copy, &[], "n").unwrap_err().contains("not in the file"));
    }

    #[test]
    fn entries_read_as_the_apiserver_gives_them() {
        let read = |object: &Value, kind, armor| {
            entry_bytes(object, &entry(kind, armor)).map(|c| c.bytes().to_vec())
        };
        let secret = json!({"data": {"k": "ZUE9PQ=="}});
        assert_eq!(read(&secret, SourceKind::Secret, Armor::None).unwrap(), b"eA==");
        assert_eq!(read(&secret, SourceKind::Secret, Armor::Auto).unwrap(), b"x");
        let map = json!({"data": {"k": "eA=\n="}});
        assert_eq!(read(&map, SourceKind::ConfigMap, Armor::Base64).unwrap(), b"x");
        assert_eq!(
            read(&json!({"data": {"k": "?"}}), SourceKind::ConfigMap, Armor::Base64),
            None
        );
        assert_eq!(
            read(
                &json!({"binaryData": {"k": "/w=="}}),
                SourceKind::ConfigMap,
                Armor::Auto
            )
            .unwrap(),
            [0xff]
        );
        assert_eq!(
            read(
                &json!({"stringData": {"k": "?"}}),
                SourceKind::Secret,
                Armor::Auto
            )
            .unwrap(),
            b"?"
        );
    }
}
