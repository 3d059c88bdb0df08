//! OpenBao's `seal "static"`: names of files, and the ids of the keys in them. The bytes lie in entries of their own.

use super::{Attributes, Document, Keys, Value, current, key};
use crate::seal::{Fault, stanza::StaticSeal};

pub(super) fn document<'k>(seal: &'k StaticSeal, keys: Keys<'_, 'k>) -> Result<Document<'k>, Fault> {
    let now = current(&seal.key, keys)?;
    let before = key(&seal.key, true, keys)?;
    let mut attributes: Attributes<'_> = vec![
        ("current_key_id", Value::Text(now.id)),
        ("current_key", Value::File(&seal.current)),
    ];
    if let Some(before) = before {
        attributes.push(("previous_key_id", Value::Text(before.id)));
        attributes.push(("previous_key", Value::File(&seal.previous)));
    }
    let mut document = Document::default();
    document.block("seal", "static", &attributes)?;
    Ok(document)
}
