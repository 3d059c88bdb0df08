//! The body of the apply: JSON written into one buffer, so that key bytes are in one place and are wiped there.
//!
//! `serde_json::Value` would hold a copy of every key in strings that nobody wipes.

use data_encoding::BASE64;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::{api::SecretType, delivery::Content};

/// The Secret as JSON. `metadata` is written as it is: it holds names, labels, annotations and owners, no secrets.
pub fn manifest(metadata: &Value, type_: SecretType, content: &Content) -> Zeroizing<Vec<u8>> {
    let head = format!(
        r#"{{"apiVersion":"v1","kind":"Secret","metadata":{metadata},"type":{},"data":{{"#,
        quoted(type_.as_str())
    );
    let names: Vec<String> = content
        .iter()
        .map(|(name, _)| format!("{}:", quoted(name)))
        .collect();
    let tail = "}}";
    let entries: usize = content
        .iter()
        .zip(&names)
        .map(|((_, bytes), name)| name.len() + BASE64.encode_len(bytes.len()) + 2)
        .sum();
    let commas = names.len().saturating_sub(1);

    let mut out = Zeroizing::new(Vec::with_capacity(
        head.len() + entries + commas + tail.len(),
    ));
    out.extend_from_slice(head.as_bytes());
    for (i, ((_, bytes), name)) in content.iter().zip(&names).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(name.as_bytes());
        out.push(b'"');
        let start = out.len();
        out.resize(start + BASE64.encode_len(bytes.len()), 0);
        BASE64.encode_mut(bytes, &mut out[start..]);
        out.push(b'"');
    }
    out.extend_from_slice(tail.as_bytes());
    out
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::delivery::content::tests::content;

    fn naive(metadata: &Value, type_: SecretType, content: &Content) -> Value {
        let data: serde_json::Map<_, _> = content
            .iter()
            .map(|(name, bytes)| (name.to_owned(), BASE64.encode(bytes).into()))
            .collect();
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": type_.as_str(), "data": data})
    }

    #[test]
    fn it_is_the_json_that_serde_would_write() {
        let metadata = json!({
            "name": "s", "namespace": "n", "labels": {"a\"b": "c\\\u{7}"},
            "ownerReferences": [{"uid": "u", "controller": true}],
        });
        for data in [
            json!([]),
            json!([{"name": "a", "key": {"name": "root"}}, {"name": "b", "key": {"name": "root", "encoding": "hex"}}]),
        ] {
            let content = content(&data, &[0, 1, 2, 255]).unwrap();
            let written = manifest(&metadata, SecretType::Tls, &content);
            assert_eq!(written.capacity(), written.len(), "the buffer never grows");
            let read: Value = serde_json::from_slice(&written).unwrap();
            assert_eq!(read, naive(&metadata, SecretType::Tls, &content));
        }
    }

    #[test]
    fn no_data_is_an_empty_object() {
        let written = manifest(&json!({}), SecretType::Opaque, &Content::default());
        let read: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(read["data"], json!({}));
    }

    proptest! {
        #[test]
        fn any_bytes_and_labels_survive(bytes in proptest::collection::vec(any::<u8>(), 0..100), label in any::<String>()) {
            let metadata = json!({"labels": {"x": label}});
            let content = content(&json!([]), &bytes).unwrap();
            let written = manifest(&metadata, SecretType::Opaque, &content);
            let read: Value = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(read, naive(&metadata, SecretType::Opaque, &content));
        }
    }
}
