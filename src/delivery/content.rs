//! From entries and opened keys to the data of a Secret.

use std::{collections::BTreeMap, fmt};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use zeroize::Zeroizing;

use crate::{
    api::{Encoding, KeyVersion},
    seal::{
        Fault, KeyBytes, StaticCredentials,
        entry::{Entry, EntryContent, invalid},
        template::KeyView,
    },
    stanza,
};

/// Bytes that the data of a Secret may have in all; the apiserver refuses more.
pub const MAX_TOTAL: usize = 1024 * 1024;

/// A key at hand, ready to be written.
#[derive(Debug)]
pub struct DeliveredKey<'k> {
    /// The bytes of the current version.
    pub current: &'k KeyBytes,
    /// The consumer's name for it.
    pub consumer_key_id: String,
    /// The version before it and the consumer's name for that one, once there is one that is delivered.
    pub previous: Option<(&'k KeyBytes, String)>,
}

/// The data of a Secret. Wiped when dropped; `Debug` tells names and lengths only.
#[derive(Default)]
pub struct Content(BTreeMap<String, Zeroizing<Vec<u8>>>);

impl Content {
    /// Names and bytes, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }

    /// The bytes of one entry.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(|bytes| bytes.as_slice())
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, _)| (name, format_args!("[redacted]"))))
            .finish()
    }
}

/// Writes every entry. Entries of a version that does not exist are left out.
///
/// # Errors
/// `TemplateInvalid` when a template cannot be rendered, `InvalidSpec` when a key is missing or the whole is too large.
pub fn render(
    entries: &[Entry],
    keys: &BTreeMap<String, DeliveredKey<'_>>,
    credentials: &BTreeMap<String, StaticCredentials>,
) -> Result<Content, Fault> {
    let mut content = Content::default();
    let mut total = 0_usize;
    for entry in entries {
        let Some(bytes) = written(entry, keys, credentials)
            .map_err(|fault| fault.of(format_args!("entry {:?}", entry.name)))?
        else {
            continue;
        };
        total = total.saturating_add(bytes.len());
        if total > MAX_TOTAL {
            return Err(Fault::invalid_spec(
                "the entries add up to more than 1 MiB, which no Secret can hold; spread them over several targets",
            ));
        }
        content.0.insert(entry.name.clone(), bytes);
    }
    Ok(content)
}

fn written(
    entry: &Entry,
    keys: &BTreeMap<String, DeliveredKey<'_>>,
    credentials: &BTreeMap<String, StaticCredentials>,
) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
    let of_seal = |seal: &str| credentials.get(seal);
    match &entry.content {
        EntryContent::Key {
            key,
            encoding,
            version,
        } => {
            let delivered = keys.get(key).ok_or_else(|| {
                Fault::invalid_spec(format!("there is no key {key:?}; name one of spec.keys"))
            })?;
            let bytes = match version {
                KeyVersion::Current => Some(delivered.current),
                KeyVersion::Previous => delivered.previous.as_ref().map(|(bytes, _)| *bytes),
            };
            Ok(bytes.map(|bytes| encode(bytes.expose(), *encoding)))
        }
        EntryContent::Template(template) => {
            let lacks = |key: &str| keys.get(key).is_some_and(|key| key.previous.is_none());
            // Like an entry of a previous version, such a template is left out until there is one.
            if template
                .references()
                .any(|reference| reference.previous && lacks(&reference.key))
            {
                return Ok(None);
            }
            template
                .render(|name, previous| view(keys, name, previous))
                .map(Some)
                .map_err(|error| invalid(&error))
        }
        EntryContent::Stanza(stanza) => {
            let by_name = |name: &str, previous: bool| view(keys, name, previous);
            stanza::write(stanza, &by_name, &of_seal).map(Some)
        }
        EntryContent::Variable(variable) => stanza::variable(variable, &of_seal).map(Some),
    }
}

/// A version of a key, if there is one.
fn view<'k>(keys: &'k BTreeMap<String, DeliveredKey<'_>>, name: &str, previous: bool) -> Option<KeyView<'k>> {
    let delivered = keys.get(name)?;
    if previous {
        let (bytes, id) = delivered.previous.as_ref()?;
        return Some(KeyView {
            bytes: bytes.expose(),
            id,
        });
    }
    Some(KeyView {
        bytes: delivered.current.expose(),
        id: &delivered.consumer_key_id,
    })
}

/// Key bytes as text or as they are, never with a trailing newline: consumers read files whole.
fn encode(bytes: &[u8], encoding: Encoding) -> Zeroizing<Vec<u8>> {
    let with = |encoding: &data_encoding::Encoding| {
        let mut out = Zeroizing::new(vec![0; encoding.encode_len(bytes.len())]);
        encoding.encode_mut(bytes, &mut out);
        out
    };
    match encoding {
        Encoding::Raw => Zeroizing::new(bytes.to_vec()),
        Encoding::Base64 => with(&BASE64),
        Encoding::Base64Url => with(&BASE64URL_NOPAD),
        Encoding::Hex => with(&HEXLOWER),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        api::{DataEntry, Purpose, Reason},
        seal::{
            entry::entries,
            model::{Key, Origin},
        },
    };

    fn generated_key() -> Key {
        Key {
            name: "root".into(),
            purpose: Purpose::Root,
            consumer_key_id: None,
            check_value: None,
            material: None,
            brings: Vec::new(),
            origin: Origin::Generated {
                bytes: 32,
                keep_previous: true,
                after: None,
                trigger: None,
            },
            copies: Vec::new(),
        }
    }

    pub(crate) fn content(data: &serde_json::Value, bytes: &[u8]) -> Result<Content, Fault> {
        let data: Vec<DataEntry> = serde_json::from_value(data.clone()).unwrap();
        let entries = entries(&data, None, &[], &[generated_key()]).unwrap();
        let key = KeyBytes::new(bytes.to_vec());
        render(
            &entries,
            &BTreeMap::from([(
                "root".to_owned(),
                DeliveredKey {
                    current: &key,
                    consumer_key_id: "global_root".to_owned(),
                    previous: None,
                },
            )]),
            &BTreeMap::new(),
        )
    }

    #[test]
    fn encodings_have_no_trailing_newline() {
        let content = content(
            &serde_json::json!([
                {"name": "raw", "key": {"name": "root"}},
                {"name": "b64", "key": {"name": "root", "encoding": "base64"}},
                {"name": "url", "key": {"name": "root", "encoding": "base64url"}},
                {"name": "hex", "key": {"name": "root", "encoding": "hex"}},
                {"name": "old", "key": {"name": "root", "version": "previous"}},
                {"name": "t", "template": "{{ keys[\"root\"].id }}={{ keys[\"root\"].hex }}\n"},
            ]),
            &[0xfb, 0xff],
        )
        .unwrap();
        let seen: Vec<_> = content.iter().collect();
        assert_eq!(
            seen,
            [
                ("b64", b"+/8=".as_slice()),
                ("hex", b"fbff"),
                ("raw", &[0xfb, 0xff]),
                ("t", b"global_root=fbff\n"),
                ("url", b"-_8"),
            ]
        );
    }

    #[test]
    fn default_entries_carry_raw_bytes() {
        let content = content(&serde_json::json!([]), b"key").unwrap();
        assert_eq!(content.get("root"), Some(b"key".as_slice()));
        assert_eq!(content.len(), 1);
    }

    #[test]
    fn debug_output_tells_no_bytes() {
        let content = content(&serde_json::json!([]), b"hunter2").unwrap();
        assert_eq!(format!("{content:?}"), r#"{"root": [redacted]}"#);
    }

    #[test]
    fn a_template_that_cannot_render_is_told_with_its_entry_and_place() {
        let fault = content(
            &serde_json::json!([{"name": "t", "template": "\n {{ keys[\"root\"].utf8 }}"}]),
            &[0xff],
        )
        .unwrap_err();
        assert_eq!(fault.reason, Reason::TemplateInvalid);
        assert!(
            fault
                .message
                .starts_with("entry \"t\": template, line 2, column 2: "),
            "{}",
            fault.message
        );
    }

    #[test]
    fn more_than_a_secret_holds_is_refused() {
        let data: Vec<_> = (0..17)
            .map(|i| serde_json::json!({"name": format!("e{i}"), "key": {"name": "root"}}))
            .collect();
        let fault = content(&data.into(), &vec![1; 64 * 1024]).unwrap_err();
        assert_eq!(fault.reason, Reason::InvalidSpec);
    }
}
