//! Boundary's `kms` blocks for a KMS that Boundary asks itself: one for each purpose.

use super::{Attributes, Credentials, Document, Value, native};
use crate::seal::{
    Fault,
    stanza::{BoundaryPurpose, NativeSeal},
};

pub(super) fn document<'k>(
    seal: &'k NativeSeal,
    purposes: &[BoundaryPurpose],
    credentials: Credentials<'_, 'k>,
) -> Result<Document<'k>, Fault> {
    let mut document = Document::default();
    for purpose in purposes {
        let (label, rest) = native(seal, credentials)?;
        let mut attributes: Attributes<'k> = vec![("purpose", Value::Text(purpose.as_str()))];
        attributes.extend(rest);
        document.block("kms", label, &attributes)?;
    }
    Ok(document)
}
