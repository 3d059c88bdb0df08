//! What ties bytes to a stored key: the place of its copies, its check value, and the authentication of its section. One
//! definition, for the operator and for the command line.

use super::{Place, Sealed, Section, Version, secret_name, standing::forged};
use crate::{
    api::Reason,
    seal::{
        Fault, KeyBytes,
        check_value::{Binding, check_value},
        model::{Key, Model},
        observed::Mark,
    },
};

/// The place of a stored key's version. `domain`: the operator's `--binding-domain`.
pub fn place<'a>(domain: &'a str, model: &'a Model, key: &'a Key, version: u32) -> Place<'a> {
    Place {
        domain,
        kind: model.id.kind,
        namespace: &model.id.namespace,
        name: &model.id.name,
        class: key.class(),
        item: &key.name,
        version,
    }
}

/// The authentication of a section under the bytes of its current version. `None` for keys under 16 bytes.
pub fn mac_of(model: &Model, key: &Key, section: &Section, bytes: &KeyBytes) -> Option<String> {
    section.mac(
        bytes,
        [model.id.kind, &model.id.namespace, &model.id.name, &key.name],
    )
}

/// The check value of a key of this object.
pub fn value_of(model: &Model, key: &Key, bytes: &KeyBytes) -> Option<String> {
    let place = Binding {
        kind: model.id.kind,
        namespace: &model.id.namespace,
        name: &model.id.name,
        key: &key.name,
    };
    check_value(bytes, &place)
}

/// The one-way mark of a version: its check value, or its number where that would let guesses be tested.
pub fn mark_of(model: &Model, key: &Key, version: u32, bytes: &KeyBytes) -> String {
    value_of(model, key, bytes).unwrap_or_else(|| Mark::of_inputs(&format!("v{version}")))
}

/// Holds that the bytes of the version in use are those that were recorded, and that they authenticate the section.
///
/// # Errors
/// `CopiesDiffer`, `StoreCorrupt`.
pub fn authentic(model: &Model, key: &Key, sealed: &Sealed, bytes: &KeyBytes) -> Result<(), Fault> {
    let section = &sealed.section;
    fits(model, key, section.versions.get(&section.current), bytes)?;
    match (mac_of(model, key, section, bytes), &sealed.mac) {
        (None, None) => Ok(()),
        (Some(right), Some(found)) if same_text(&right, found) => Ok(()),
        _ => Err(forged(model)),
    }
}

/// Holds that bytes are the version that was recorded.
///
/// # Errors
/// `CopiesDiffer`.
pub fn fits(model: &Model, key: &Key, record: Option<&Version>, bytes: &KeyBytes) -> Result<(), Fault> {
    let recorded = record.and_then(|record| record.check_value.as_deref());
    let value = value_of(model, key, bytes);
    let same = match (&value, recorded) {
        (Some(value), Some(recorded)) => same_text(value, recorded),
        (None, None) => true,
        _ => false,
    };
    if same {
        return Ok(());
    }
    Err(Fault::denied(
        Reason::CopiesDiffer,
        format!(
            "a stored copy in Secret {} holds another key than the one that was recorded, so it is not used; restore the \
             Secret from a backup, and find out who changed it",
            secret_name(&model.id)
        ),
    ))
}

fn same_text(one: &str, other: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::seal::{model::parse, store::Provenance};

    fn model(namespace: &str) -> Model {
        let config = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "app", "namespace": namespace, "uid": "u"},
            "spec": {
                "seals": [{"name": "a", "awskms": {
                    "kmsKeyID": "arn:aws:kms:eu-west-1:123456789012:key/00000000-12ab-34cd-56ef-000000000000"}}],
                "keys": [{"name": "root", "generate": {}}, {"name": "other", "generate": {}}],
                "targets": [{"name": "t", "secret": {"name": "app", "data": [
                    {"name": "k", "key": {"name": "root"}}, {"name": "o", "key": {"name": "other"}}]}}],
            },
        }));
        parse(&config.unwrap()).unwrap()
    }

    fn bytes(fill: u8) -> KeyBytes {
        KeyBytes::new(vec![fill; 32])
    }

    fn version(check_value: Option<String>) -> Version {
        Version {
            created: Timestamp::UNIX_EPOCH,
            check_value,
            copies: [].into(),
            former: [].into(),
            exposed: [].into(),
            init: None,
        }
    }

    /// What the operator writes of version 2, which is in use, and of version 1 before it.
    fn sealed(model: &Model, key: &Key, current: &KeyBytes) -> Sealed {
        let section = Section {
            source: Provenance::Generated,
            counter: 3,
            current: 2,
            next: 3,
            trigger: None,
            inputs: None,
            versions: [(1, &bytes(1)), (2, current)]
                .map(|(number, bytes)| (number, version(value_of(model, key, bytes))))
                .into(),
            managed: None,
        };
        let mac = mac_of(model, key, &section, current);
        Sealed { section, mac }
    }

    fn refused(model: &Model, key: &Key, sealed: &Sealed, bytes: &KeyBytes) -> Reason {
        authentic(model, key, sealed, bytes).unwrap_err().reason
    }

    #[test]
    fn only_the_bytes_that_were_recorded_in_that_place_are_authentic() {
        let model = model("team");
        let [root, other] = model.keys.as_slice() else {
            panic!("two keys")
        };
        let stored = sealed(&model, root, &bytes(2));
        assert_eq!(authentic(&model, root, &stored, &bytes(2)), Ok(()));
        // The version before it, though recorded too, is not the one in use.
        for wrong in [
            bytes(1),
            bytes(3),
            KeyBytes::new(vec![2; 31]),
            KeyBytes::new(vec![2; 8]),
        ] {
            assert_eq!(refused(&model, root, &stored, &wrong), Reason::CopiesDiffer);
        }
        assert_eq!(refused(&model, other, &stored, &bytes(2)), Reason::CopiesDiffer);
        let elsewhere = self::model("elsewhere");
        let same_name = &elsewhere.keys[0];
        assert_eq!(
            refused(&elsewhere, same_name, &stored, &bytes(2)),
            Reason::CopiesDiffer
        );
    }

    #[test]
    fn a_section_that_was_edited_is_told_although_the_key_is_right() {
        let model = model("team");
        let key = &model.keys[0];
        let whole = sealed(&model, key, &bytes(2));
        let refused = |edit: fn(&mut Sealed)| {
            let mut edited = whole.clone();
            edit(&mut edited);
            refused(&model, key, &edited, &bytes(2))
        };
        assert_eq!(refused(|sealed| sealed.section.next = 9), Reason::StoreCorrupt);
        assert_eq!(
            refused(|sealed| drop(sealed.section.versions.remove(&1))),
            Reason::StoreCorrupt
        );
        assert_eq!(refused(|sealed| sealed.mac = None), Reason::StoreCorrupt);
        assert_eq!(
            refused(|sealed| sealed.mac = Some("0".repeat(64))),
            Reason::StoreCorrupt
        );
        // Without its record there is nothing to hold the bytes against.
        assert_eq!(
            refused(|sealed| drop(sealed.section.versions.remove(&2))),
            Reason::CopiesDiffer
        );
        let unmarked = |sealed: &mut Sealed| drop(sealed.section.versions.insert(2, version(None)));
        assert_eq!(refused(unmarked), Reason::CopiesDiffer);
    }

    #[test]
    fn a_key_that_could_be_guessed_has_neither_check_value_nor_authentication() {
        let model = model("team");
        let key = &model.keys[0];
        let short = KeyBytes::new(vec![2; 15]);
        let stored = sealed(&model, key, &short);
        assert_eq!(
            (&stored.mac, &stored.section.versions[&2].check_value),
            (&None, &None)
        );
        assert_eq!(authentic(&model, key, &stored, &short), Ok(()));
        // One that appears nevertheless is not the operator's.
        let forged = Sealed {
            mac: Some("0".repeat(64)),
            ..stored
        };
        assert_eq!(refused(&model, key, &forged, &short), Reason::StoreCorrupt);
        assert_ne!(mark_of(&model, key, 1, &short), mark_of(&model, key, 2, &short));
        assert_eq!(
            mark_of(&model, key, 1, &bytes(2)),
            value_of(&model, key, &bytes(2)).unwrap()
        );
    }

    #[test]
    fn a_copy_is_bound_to_the_object_the_key_and_the_version() {
        let model = model("team");
        let place = place("cluster", &model, &model.keys[1], 7);
        let found = (
            place.domain,
            place.kind,
            place.namespace,
            place.name,
            place.item,
            place.version,
        );
        assert_eq!(found, ("cluster", "SealConfig", "team", "app", "other", 7));
        assert_eq!(place.class, crate::seal::store::Class::Key);
    }
}
