//! Copies in the wrapped store, opened with the caller's own cloud identity and bound as the operator binds them.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;

use super::{
    Failure,
    manifest::{self, Object},
    offline::{self, Caller},
    output, unwrap,
};
use crate::{
    provider::Bound,
    seal::{
        Fault, KeyBytes,
        model::{Key, Model},
        store::{
            self, Class, Revision, SECRET_TYPE, Sealed, Store, StoreFacts,
            proof::{authentic, fits, place},
            secret_name, sets,
            standing::candidates,
        },
    },
};

/// Takes the store out of a file that holds nothing else of interest: as `kubectl get secret … -o yaml` prints it.
///
/// # Errors
/// The file holds no store of this SealConfig, or one that cannot be read.
pub(super) fn of_file(path: &Path, model: &Model) -> Result<Store, Failure> {
    let objects = manifest::read(path)?;
    of_objects(&objects, model)?.ok_or_else(|| {
        Failure::No(format!(
            "{} does not hold Secret {} of namespace {}; write it with: kubectl -n {1} get secret {} -o yaml",
            path.display(),
            secret_name(&model.id),
            model.id.namespace,
            secret_name(&model.id),
        ))
    })
}

/// The store of the SealConfig, if it is among these objects.
///
/// # Errors
/// It is, and cannot be read.
pub(super) fn of_objects(objects: &[Object], model: &Model) -> Result<Option<Store>, Failure> {
    let name = secret_name(&model.id);
    let holder = objects.iter().find(|object| {
        object.kind() == "Secret"
            && object.name() == Some(name.as_str())
            && object.namespace().is_none_or(|own| own == model.id.namespace)
    });
    let Some(holder) = holder else {
        return Ok(None);
    };
    if holder.value["type"].as_str() != Some(SECRET_TYPE) {
        return of_facts(StoreFacts::NotOwned, &name);
    }
    let entry = |(name, value): (&String, &Value)| {
        let bytes = unwrap::source::base64(value.as_str()?)?;
        Some((name.clone(), bytes))
    };
    let data: Option<BTreeMap<_, _>> = match &holder.value["data"] {
        Value::Object(data) => data.iter().map(entry).collect(),
        _ => None,
    };
    let Some(data) = data else {
        return of_facts(
            StoreFacts::Corrupt(Revision::default(), std::collections::BTreeSet::new()),
            &name,
        );
    };
    of_facts(store::read(Revision::default(), data), &name)
}

/// What was found, or why it is of no use.
///
/// # Errors
/// A Secret that is no store, or a damaged one.
pub(super) fn of_facts(facts: StoreFacts, name: &str) -> Result<Option<Store>, Failure> {
    match facts {
        StoreFacts::Found(store) => Ok(Some(store)),
        StoreFacts::Absent | StoreFacts::NotLooked => Ok(None),
        StoreFacts::NotOwned => Err(Failure::No(format!(
            "Secret {name} is not of type {SECRET_TYPE}, so it is no wrapped store"
        ))),
        StoreFacts::Corrupt(..) => Err(Failure::No(format!(
            "the header of Secret {name} cannot be read; restore the Secret from a backup, or open an entry by hand as \
             docs/store.md says"
        ))),
    }
}

/// Holds that a share is of the set in use: one that a later set lacks is void.
///
/// # Errors
/// Misuse, with how many shares there are.
pub(super) fn in_use(store: &Store, name: &str) -> Result<(), Failure> {
    let (Some(class), Some(newest)) = (sets::class(name), sets::newest_number(store)) else {
        return Ok(());
    };
    if sets::is_of_newest(store, name) {
        return Ok(());
    }
    let word = match class {
        Class::RecoveryShare => "recovery",
        _ => "unseal",
    };
    let former = store.header.keys.get(name);
    let former = former.map_or_else(String::new, |sealed| {
        format!(
            "; the one of set {0} is void at the server, and is written with --key-version {0}",
            sealed.section.current
        )
    });
    Err(Failure::Misuse(format!(
        "the set of shares in use, number {newest}, has {} {word} shares, and no {name}{former}",
        sets::count(store, class)
    )))
}

/// What is to be opened, and how.
pub(super) struct Request<'a> {
    pub(super) model: &'a Model,
    pub(super) key: &'a Key,
    pub(super) store: &'a Store,
    /// `None` = the one in use.
    pub(super) version: Option<u32>,
    /// Only the copy of this seal.
    pub(super) seal: Option<&'a str>,
    /// The operator's `--binding-domain`.
    pub(super) domain: &'a str,
    pub(super) trust_file: bool,
}

impl Request<'_> {
    /// Opens the version, and holds that it is the recorded one and that the operator wrote what is recorded.
    ///
    /// # Errors
    /// No such version (misuse), no copy that opens, one that does not fit.
    pub(super) async fn open(&self) -> Result<KeyBytes, Failure> {
        let sealed = self.sealed()?;
        let section = &sealed.section;
        let version = self.version.unwrap_or(section.current);
        let Some(record) = section.versions.get(&version) else {
            let versions: Vec<_> = section.versions.keys().map(ToString::to_string).collect();
            return Err(Failure::Misuse(format!(
                "the store holds no version {version} of key {:?}; it holds {}",
                self.key.name,
                versions.join(", ")
            )));
        };
        let Some(bytes) = self.open_version(version).await? else {
            return Err(Failure::No(format!(
                "no stored copy of version {version} of key {:?} could be opened",
                self.key.name
            )));
        };
        fits(self.model, self.key, Some(record), &bytes)?;
        if version == section.current {
            authentic(self.model, self.key, sealed, &bytes)?;
        } else if let Some(current) = self.open_version(section.current).await? {
            authentic(self.model, self.key, sealed, &current)?;
        } else {
            output::note(&format!(
                "version {} does not open, which authenticates what the store says, so only the check value of version \
                 {version} was checked",
                section.current
            ));
        }
        output::note(&format!(
            "key {:?}: version {version}{}, made {}",
            self.key.name,
            if self.is_in_use(version) {
                ", the one in use"
            } else {
                ""
            },
            record.created
        ));
        Ok(bytes)
    }

    /// A share of an older set may be the last of its number, and is not in use all the same.
    fn is_in_use(&self, version: u32) -> bool {
        let name = &self.key.name;
        let current = self
            .store
            .header
            .keys
            .get(name)
            .map(|sealed| sealed.section.current);
        let of_a_set = self.key.is_answer() && self.key.is_share();
        let newest = !of_a_set || sets::is_of_newest(self.store, name);
        current == Some(version) && newest
    }

    pub(super) fn sealed(&self) -> Result<&Sealed, Failure> {
        self.store.header.keys.get(&self.key.name).ok_or_else(|| {
            let names: Vec<_> = self.store.header.keys.keys().map(String::as_str).collect();
            Failure::No(format!(
                "Secret {} holds no key {:?}; it holds {}",
                secret_name(&self.model.id),
                self.key.name,
                names.join(", ")
            ))
        })
    }

    /// The first copy that opens, by the priority of the seals.
    async fn open_version(&self, version: u32) -> Result<Option<KeyBytes>, Failure> {
        let mut tried = false;
        for candidate in candidates(self.model, self.key, self.store, version) {
            if self.seal.is_some_and(|only| only != candidate.seal) {
                continue;
            }
            let (Some(seal), Some(ciphertext)) = (
                self.model.seal(&candidate.seal),
                self.store.items.get(&candidate.item),
            ) else {
                continue;
            };
            tried = true;
            let way = offline::with_own_identity(seal, self.trust_file);
            way.notes.iter().for_each(|note| output::note(note));
            let caller = Caller::of(self.model, std::iter::once(&way.seal), self.trust_file);
            let place = place(self.domain, self.model, self.key, version);
            let (pairs, aad) = (place.context(), place.aad());
            let bound = Bound {
                context: &pairs,
                aad: &aad,
            };
            let opened = caller
                .unwrap_bound(&way.seal, ciphertext, &bound, &candidate.key_id)
                .await;
            match opened {
                Ok(opened) => {
                    output::note(&format!("entry {}: opened by {}", candidate.item, opened.key_id));
                    return Ok(Some(opened.key));
                }
                Err(fault) => {
                    let fault: Fault = fault.of(format_args!("entry {}", candidate.item));
                    output::note(&fault.to_string());
                }
            }
        }
        if !tried {
            output::note(&format!(
                "version {version} of key {:?} has no undamaged copy that a seal of the SealConfig{} could open",
                self.key.name,
                self.seal
                    .map_or_else(String::new, |seal| format!(" named {seal:?}"))
            ));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::check::tests::model;

    fn generated() -> Model {
        model(&json!({
            "seals": [{"name": "aws", "awskms": {"kmsKeyID": "alias/a"}}],
            "keys": [{"name": "root", "generate": {}}],
        }))
    }

    fn secret(type_: &str, namespace: &str, data: &Value) -> Object {
        Object {
            place: "store.yaml".to_owned(),
            value: json!({
                "kind": "Secret", "type": type_, "data": data,
                "metadata": {"name": "billing.sealconfig.wrapped", "namespace": namespace},
            }),
        }
    }

    fn header() -> Value {
        let header = json!({"format": 1, "counter": 3, "keys": {}}).to_string();
        json!({"header": data_encoding::BASE64.encode(header.as_bytes())})
    }

    #[test]
    fn a_store_is_found_by_name_type_and_namespace() {
        let model = generated();
        let found = of_objects(&[secret(SECRET_TYPE, "billing", &header())], &model).unwrap();
        assert_eq!(found.unwrap().header.counter, 3);
        let elsewhere = of_objects(&[secret(SECRET_TYPE, "other", &header())], &model).unwrap();
        assert!(elsewhere.is_none());
        let foreign = of_objects(&[secret("Opaque", "billing", &header())], &model);
        assert!(matches!(foreign, Err(Failure::No(_))));
    }

    #[test]
    fn a_share_that_the_set_in_use_lacks_is_refused_with_how_many_it_has() {
        let section = |current: u32| {
            let version = json!({"created": "2026-01-01T00:00:00Z", "copies": {}});
            json!({"section": {
                "source": "initialized", "counter": 1, "current": current, "next": current + 1,
                "versions": {current.to_string(): version},
            }})
        };
        let stored = |keys: Value| {
            let header = json!({"format": 1, "counter": 3, "keys": keys}).to_string();
            let data = json!({"header": data_encoding::BASE64.encode(header.as_bytes())});
            let found = of_objects(&[secret(SECRET_TYPE, "billing", &data)], &generated());
            found.unwrap().unwrap()
        };
        for word in ["share", "recovery"] {
            // Three, and then two.
            let keys = [(1, 2), (2, 2), (3, 1)].map(|(n, set)| (format!("{word}.{n}"), section(set)));
            let fewer = stored(keys.into_iter().collect());
            in_use(&fewer, &format!("{word}.2")).unwrap();
            let refused = |number: u32| match in_use(&fewer, &format!("{word}.{number}")) {
                Err(Failure::Misuse(message)) => message,
                other => panic!("{other:?}"),
            };
            let class = if word == "share" { "unseal" } else { "recovery" };
            let void = refused(3);
            assert!(
                void.contains(&format!("number 2, has 2 {class} shares")),
                "{void}"
            );
            assert!(void.contains("--key-version 1"), "{void}");
            assert!(!refused(4).contains("--key-version"), "{}", refused(4));
        }
        // Shamir shares were given up for recovery keys.
        let other = stored(json!({"share.1": section(1), "recovery.1": section(2)}));
        assert!(in_use(&other, "share.1").is_err());
        // Whether there is a set at all is told elsewhere.
        in_use(&stored(json!({})), "share.1").unwrap();
    }

    #[test]
    fn a_damaged_store_is_told() {
        let model = generated();
        for data in [
            json!({}),
            json!({"header": "e30="}),
            json!({"header": "?"}),
            json!(1),
        ] {
            let Err(Failure::No(message)) = of_objects(&[secret(SECRET_TYPE, "billing", &data)], &model)
            else {
                panic!("{data} was taken")
            };
            assert!(message.contains("docs/store.md"), "{message}");
        }
    }
}
