//! Boundary's `kms "aead"` blocks, with the keys in them: its reader resolves neither `file://` nor `env://` there.
//!
//! Only the root key has a name for the version before: `previous-root` opens what the former one wrapped until Boundary
//! has wrapped it anew.

use super::{Document, Keys, Value, current, key};
use crate::seal::{
    Fault,
    stanza::{AeadKey, BoundaryPurpose},
    template::KeyView,
};

pub(super) fn document<'k>(blocks: &[AeadKey], keys: Keys<'_, 'k>) -> Result<Document<'k>, Fault> {
    let mut document = Document::default();
    for block in blocks {
        let now = current(&block.key, keys)?;
        write(&mut document, block.purpose, now)?;
        if block.purpose == BoundaryPurpose::ROOT
            && let Some(before) = key(&block.key, true, keys)?
        {
            write(&mut document, BoundaryPurpose::PREVIOUS_ROOT, before)?;
        }
    }
    Ok(document)
}

fn write<'k>(document: &mut Document<'k>, purpose: BoundaryPurpose, key: KeyView<'k>) -> Result<(), Fault> {
    document.block(
        "kms",
        "aead",
        &[
            ("purpose", Value::Text(purpose.as_str())),
            ("aead_type", Value::Text("aes-gcm")),
            ("key", Value::Key(key.bytes)),
            ("key_id", Value::Text(key.id)),
        ],
    )
}
