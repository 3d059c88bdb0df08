//! Manifest files: read within bounds, split into objects, matched with what a command asks for.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::Value;

use super::Failure;
use crate::{api::KIND, yaml};

/// Its API version.
pub(super) const API_VERSION: &str = "autounseal.dev/v1alpha1";

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    /// Where it stands, for messages: `seal.yaml` or `seal.yaml, document 2`.
    pub(super) place: String,
    /// The object.
    pub(super) value: Value,
}

impl Object {
    pub(super) fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.value["metadata"]["name"].as_str()
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.value["metadata"]["namespace"].as_str()
    }

    /// Writes the namespace of the command line into an object that names none.
    ///
    /// # Errors
    /// When both name one and differ.
    pub(super) fn put_in(&mut self, namespace: Option<&str>) -> Result<(), Failure> {
        let Some(asked) = namespace else {
            return Ok(());
        };
        match self.namespace() {
            Some(own) if own != asked => Err(Failure::Misuse(format!(
                "{}: the object is of namespace {own:?}, but --namespace says {asked:?}; leave the flag out",
                self.place
            ))),
            Some(_) => Ok(()),
            None => {
                if let Some(metadata) = self.value.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("namespace".to_owned(), asked.into());
                }
                Ok(())
            }
        }
    }
}

/// Where an object stands in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The document, as [`yaml::documents`] counts.
    pub(super) document: usize,
    /// The item, when the document is a `List`.
    pub(super) item: Option<usize>,
}

/// The objects of a file, `-` = standard input. A `List` counts as its items.
pub(super) fn read(path: &Path) -> Result<Vec<Object>, Failure> {
    let objects = objects(&path.display().to_string(), &read_text(path)?)?;
    Ok(objects.into_iter().map(|(_, object)| object).collect())
}

/// The objects of a text that lies in a file of that name.
pub(super) fn objects(name: &str, text: &str) -> Result<Vec<(Position, Object)>, Failure> {
    let documents = yaml::documents(text).map_err(|error| Failure::No(format!("{name}: {error}")))?;
    let mut values = Vec::new();
    for (document, value) in documents.into_iter().enumerate() {
        let at = |item| Position { document, item };
        match value {
            Value::Object(mut list)
                if list.get("kind").and_then(Value::as_str) == Some("List")
                    && list.get("items").is_some_and(Value::is_array) =>
            {
                if let Some(Value::Array(items)) = list.remove("items") {
                    let items = items.into_iter().enumerate();
                    values.extend(items.map(|(item, value)| (at(Some(item)), value)));
                }
            }
            other => values.push((at(None), other)),
        }
    }
    let several = values.len() > 1;
    Ok(values
        .into_iter()
        .enumerate()
        .map(|(i, (position, value))| {
            let place = if several {
                format!("{name}, object {}", i + 1)
            } else {
                name.to_owned()
            };
            (position, Object { place, value })
        })
        .collect())
}

pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        text_of(io::stdin(), path)
    } else {
        let file = File::open(path)
            .map_err(|error| Failure::Misuse(format!("cannot read {}: {error}", path.display())))?;
        text_of(file, path)
    }
}

/// The text of a reader, within bounds. `path`: its name, for messages.
pub(super) fn text_of(reader: impl Read, path: &Path) -> Result<String, Failure> {
    let shown = path.display();
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long from one that just fits.
    reader
        .take(yaml::MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::Misuse(format!("cannot read {shown}: {error}")))?;
    String::from_utf8(bytes).map_err(|_| Failure::No(format!("{shown}: the file is not UTF-8 text")))
}

/// The one SealConfig of a file, and the file's other objects.
pub(super) fn one_seal_config(
    path: &Path,
    name: Option<&str>,
    namespace: Option<&str>,
) -> Result<(Object, Vec<Object>), Failure> {
    let shown = path.display().to_string();
    let ((_, config), others) = one_of(objects(&shown, &read_text(path)?)?, &shown, name, namespace)?;
    Ok((config, others))
}

/// The same of objects that were read from the file `shown`, with the place of the SealConfig in it.
pub(super) fn one_of(
    objects: Vec<(Position, Object)>,
    shown: &str,
    name: Option<&str>,
    namespace: Option<&str>,
) -> Result<((Position, Object), Vec<Object>), Failure> {
    let (mut configs, others): (Vec<_>, Vec<_>) =
        objects.into_iter().partition(|(_, object)| object.kind() == KIND);
    if let Some(name) = name {
        configs.retain(|(_, object)| object.name() == Some(name));
    }
    let asked = name.map_or_else(String::new, |name| format!(" named {name:?}"));
    if configs.len() > 1 {
        let names: Vec<_> = configs.iter().filter_map(|(_, object)| object.name()).collect();
        return Err(Failure::Misuse(format!(
            "{shown} holds {} SealConfigs{asked} ({}); choose one with --name, or give it a file of its own",
            configs.len(),
            names.join(", ")
        )));
    }
    let Some((position, mut config)) = configs.pop() else {
        return Err(Failure::No(format!("{shown} holds no SealConfig{asked}")));
    };
    if config.value["apiVersion"] != API_VERSION {
        return Err(Failure::No(format!(
            "{}: apiVersion must be {API_VERSION}",
            config.place
        )));
    }
    config.put_in(namespace)?;
    let others = others.into_iter().map(|(_, object)| object).collect();
    Ok(((position, config), others))
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A file that goes away with the value.
    pub(in crate::cli) struct Scratch(pub(in crate::cli) PathBuf);

    impl Scratch {
        pub(in crate::cli) fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("autounseal-{}-{name}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    const TWO: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: n}
---
apiVersion: autounseal.dev/v1alpha1
kind: SealConfig
metadata: {name: a, namespace: n}
---
apiVersion: v1
kind: List
items:
- {apiVersion: autounseal.dev/v1alpha1, kind: SealConfig, metadata: {name: b}}
- {apiVersion: v1, kind: Secret}
";

    #[test]
    fn objects_are_found_in_documents_and_lists() {
        let file = Scratch::new("two.yaml", TWO);
        let objects = read(&file.0).unwrap();
        let kinds: Vec<_> = objects.iter().map(Object::kind).collect();
        assert_eq!(kinds, ["Namespace", "SealConfig", "SealConfig", "Secret"]);
        assert!(objects[3].place.ends_with("two.yaml, object 4"));
    }

    #[test]
    fn one_config_is_chosen_by_name_and_put_into_a_namespace() {
        let file = Scratch::new("choose.yaml", TWO);
        assert!(matches!(
            one_seal_config(&file.0, None, None),
            Err(Failure::Misuse(_))
        ));
        let (config, others) = one_seal_config(&file.0, Some("b"), Some("m")).unwrap();
        assert_eq!(config.namespace(), Some("m"));
        assert_eq!(others.len(), 2);
        assert!(matches!(
            one_seal_config(&file.0, Some("c"), None),
            Err(Failure::No(_))
        ));
        assert!(matches!(
            one_seal_config(&file.0, Some("a"), Some("m")),
            Err(Failure::Misuse(_))
        ));
    }

    #[test]
    fn a_file_longer_than_a_mebibyte_is_refused() {
        let file = Scratch::new("long.yaml", &"#".repeat(yaml::MAX_FILE + 1));
        let Err(Failure::No(message)) = read(&file.0) else {
            panic!("read")
        };
        assert!(message.contains("1 MiB"), "{message}");
    }
}
