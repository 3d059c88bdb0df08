//! Entries of a target's Secret, read and checked before any key is opened.

use std::collections::BTreeSet;

use crate::{
    api::{DataEntry, Encoding, EnvSpec, KeyVersion, Reason},
    seal::{
        Fault,
        model::{Key, Seal},
        stanza::{self, Stanza, Variable},
        template::Template,
    },
};

/// One entry of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the entry.
    pub name: String,
    /// What it holds.
    pub content: EntryContent,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryContent {
    /// A key.
    Key {
        /// Name of the key.
        key: String,
        /// How it is written.
        encoding: Encoding,
        /// Which version.
        version: KeyVersion,
    },
    /// Text with keys in it.
    Template(Template),
    /// A piece of a server's configuration.
    Stanza(Stanza),
    /// The value of an environment variable.
    Variable(Variable),
}

impl EntryContent {
    /// Names of the keys that it needs.
    pub fn keys(&self) -> BTreeSet<&str> {
        match self {
            EntryContent::Key { key, .. } => BTreeSet::from([key.as_str()]),
            EntryContent::Template(template) => template.references().map(|r| r.key.as_str()).collect(),
            EntryContent::Stanza(stanza) => stanza.keys(),
            EntryContent::Variable(_) => BTreeSet::new(),
        }
    }

    /// Names of the seals whose credentials it needs.
    pub fn credentials(&self) -> BTreeSet<&str> {
        match self {
            EntryContent::Stanza(stanza) => stanza
                .seals()
                .filter(|seal| seal.credentials)
                .map(|seal| seal.name.as_str())
                .collect(),
            EntryContent::Variable(Variable::AccessKeyId { seal } | Variable::SecretAccessKey { seal }) => {
                BTreeSet::from([seal.as_str()])
            }
            EntryContent::Variable(Variable::Text(_))
            | EntryContent::Key { .. }
            | EntryContent::Template(_) => BTreeSet::new(),
        }
    }
}

/// Reads the entries of one Secret. `seals` are by priority, `keys` those of `spec.keys`, in their order.
///
/// Without entries and variables there is one for each key, named after it, with the raw bytes.
///
/// # Errors
/// Every entry that is wrong, each with the fix: `TemplateInvalid` or `InvalidSpec`.
pub fn entries(
    data: &[DataEntry],
    env: Option<&EnvSpec>,
    seals: &[Seal],
    keys: &[Key],
) -> Result<Vec<Entry>, Vec<Fault>> {
    if data.is_empty() && env.is_none() {
        let delivered = keys.iter().filter(|key| !key.is_withheld());
        return Ok(delivered.map(|key| default_entry(&key.name)).collect());
    }
    let read = data.iter().map(|entry| {
        read(entry, seals, keys)
            .and_then(|entries| without_shares(entries, keys))
            .map_err(|fault| fault.of(format_args!("entry {:?}", entry.name)))
    });
    let variables = env.map(|env| stanza::variables(env, seals).map_err(|fault| fault.of("env")));
    let mut seen = BTreeSet::new();
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for result in read.chain(variables) {
        match result {
            Ok(entries) => good.extend(entries),
            Err(fault) => bad.push(fault),
        }
    }
    for entry in &good {
        if !seen.insert(entry.name.as_str()) {
            bad.push(Fault::invalid_spec(format!(
                "two entries are named {:?}; give one of them another name",
                entry.name
            )));
        }
    }
    if bad.is_empty() { Ok(good) } else { Err(bad) }
}

/// Shares are given to servers and never delivered, in whatever form an entry asks for them (security rule S8).
fn without_shares(entries: Vec<Entry>, keys: &[Key]) -> Result<Vec<Entry>, Fault> {
    let names = || entries.iter().flat_map(|entry| entry.content.keys());
    match keys
        .iter()
        .filter(|key| key.is_withheld())
        .find(|share| names().any(|name| name == share.name))
    {
        None => Ok(entries),
        Some(share) => Err(Fault::invalid_spec(format!(
            "key {:?} is a share or a root token, and these are never delivered; take it out of the entry",
            share.name
        ))),
    }
}

fn default_entry(key: &str) -> Entry {
    Entry {
        name: key.to_owned(),
        content: EntryContent::Key {
            key: key.to_owned(),
            encoding: Encoding::Raw,
            version: KeyVersion::Current,
        },
    }
}

fn read(entry: &DataEntry, seals: &[Seal], keys: &[Key]) -> Result<Vec<Entry>, Fault> {
    let content = match (&entry.key, &entry.stanza, &entry.template) {
        (Some(key), None, None) => {
            if !keys.iter().any(|known| known.name == key.name) {
                return Err(Fault::invalid_spec(format!(
                    "there is no key {:?}; name one of spec.keys",
                    key.name
                )));
            }
            EntryContent::Key {
                key: key.name.clone(),
                encoding: key.encoding,
                version: key.version,
            }
        }
        (None, Some(spec), None) => return stanza::entries(&entry.name, spec, seals, keys),
        (None, None, Some(source)) => {
            let template = Template::parse(source).map_err(|error| invalid(&error))?;
            template
                .check(
                    &keys.iter().map(|key| key.name.as_str()).collect(),
                    &keys
                        .iter()
                        .filter(|key| key.keeps_previous())
                        .map(|key| key.name.as_str())
                        .collect(),
                )
                .map_err(|error| invalid(&error))?;
            EntryContent::Template(template)
        }
        _ => {
            return Err(Fault::invalid_spec(
                "an entry takes exactly one of key, stanza, template",
            ));
        }
    };
    Ok(vec![Entry {
        name: entry.name.clone(),
        content,
    }])
}

/// A template's error as a fault.
pub fn invalid(error: &crate::seal::template::TemplateError) -> Fault {
    Fault::invalid(Reason::TemplateInvalid, format!("template, {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{KeyEntry, Purpose},
        seal::model::Origin,
    };

    fn brought(names: &[&str]) -> Vec<Key> {
        let key = |name: &&str| Key {
            name: (*name).into(),
            purpose: Purpose::Other,
            consumer_key_id: None,
            check_value: None,
            material: None,
            brings: Vec::new(),
            origin: Origin::Brought,
            copies: Vec::new(),
        };
        names.iter().map(key).collect()
    }

    fn key(name: &str, key: &str) -> DataEntry {
        DataEntry {
            name: name.into(),
            key: Some(KeyEntry {
                name: key.into(),
                encoding: Encoding::Hex,
                version: KeyVersion::Current,
            }),
            stanza: None,
            template: None,
        }
    }

    fn template(name: &str, text: &str) -> DataEntry {
        DataEntry {
            name: name.into(),
            key: None,
            stanza: None,
            template: Some(text.into()),
        }
    }

    #[test]
    fn without_entries_each_key_is_delivered_raw_under_its_own_name() {
        let read = entries(&[], None, &[], &brought(&["b", "a"])).unwrap();
        assert_eq!(read, [default_entry("b"), default_entry("a")]);
    }

    #[test]
    fn entries_are_read_in_order() {
        let read = entries(
            &[key("k.hex", "a"), template("t", r#"{{ keys["b"].id }}"#)],
            None,
            &[],
            &brought(&["a", "b"]),
        )
        .unwrap();
        assert_eq!(read[0].content.keys(), BTreeSet::from(["a"]));
        assert_eq!(read[1].content.keys(), BTreeSet::from(["b"]));
    }

    #[test]
    fn shares_are_delivered_neither_by_default_nor_on_demand() {
        for purpose in [Purpose::UnsealShare, Purpose::RecoveryShare, Purpose::RootToken] {
            never_delivered(purpose);
        }
    }

    fn never_delivered(purpose: Purpose) {
        let mut keys = brought(&["share", "a"]);
        keys[0].purpose = purpose;
        assert_eq!(entries(&[], None, &[], &keys).unwrap(), [default_entry("a")]);
        for wish in [
            key("x", "share"),
            template("x", r#"{{ keys["a"].id }}{{ keys["share"].hex }}"#),
        ] {
            let faults = entries(&[wish], None, &[], &keys).unwrap_err();
            assert!(faults[0].message.contains("never delivered"), "{}", faults[0]);
        }
        let stanza = |spec: serde_json::Value| DataEntry {
            name: "x".into(),
            key: None,
            stanza: Some(serde_json::from_value(spec).unwrap()),
            template: None,
        };
        for spec in [
            serde_json::json!({"openbaoStatic": {"key": "share", "mountPath": "/x"}}),
            serde_json::json!({"boundaryAEAD": {"keys": ["share"]}}),
        ] {
            entries(&[stanza(spec)], None, &[], &keys).unwrap_err();
        }
    }

    #[test]
    fn every_wrong_entry_is_told() {
        let mut neither = key("n", "a");
        neither.key = None;
        let faults = entries(
            &[
                key("x", "none"),
                template("y", "{{ nope }}"),
                template("z", r#"{{ keys["a"].previous.hex }}"#),
                neither,
                key("d", "a"),
                key("d", "a"),
            ],
            None,
            &[],
            &brought(&["a"]),
        )
        .unwrap_err();
        let reasons: Vec<_> = faults.iter().map(|f| f.reason).collect();
        assert_eq!(
            reasons,
            [
                Reason::InvalidSpec,
                Reason::TemplateInvalid,
                Reason::TemplateInvalid,
                Reason::InvalidSpec,
                Reason::InvalidSpec
            ]
        );
        assert!(
            faults[1]
                .message
                .starts_with("entry \"y\": template, line 1, column 1: ")
        );
    }
}
