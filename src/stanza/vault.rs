//! Vault's `seal` blocks.
//!
//! Several enabled seals are Seal HA of Vault Enterprise, where each has a name and a priority of its own, from 1. With one
//! enabled seal both are left out: a name given later counts as a renamed seal, and older servers know neither.

use super::{Attributes, Credentials, Document, Value, seal_block};
use crate::seal::{Fault, stanza::NativeSeal};

pub(super) fn document<'k>(
    seals: &'k [NativeSeal],
    credentials: Credentials<'_, 'k>,
) -> Result<Document<'k>, Fault> {
    let several = seals.iter().filter(|seal| !seal.disabled).count() > 1;
    let mut document = Document::default();
    for (index, seal) in seals.iter().enumerate() {
        let mut first = Attributes::new();
        if several {
            // The order is that of priorities and names already; two seals of one priority would be refused.
            first.push(("name", Value::Text(&seal.name)));
            first.push(("priority", Value::Number(index + 1)));
        }
        seal_block(&mut document, seal, first, credentials)?;
    }
    Ok(document)
}
