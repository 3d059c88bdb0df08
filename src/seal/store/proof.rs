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
