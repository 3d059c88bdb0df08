//! OpenBao's `seal` blocks: one seal, and a disabled one beside it while it migrates.

use super::{Attributes, Credentials, Document, seal_block};
use crate::seal::{Fault, stanza::NativeSeal};

pub(super) fn document<'k>(
    seals: &'k [NativeSeal],
    credentials: Credentials<'_, 'k>,
) -> Result<Document<'k>, Fault> {
    let mut document = Document::default();
    for seal in seals {
        seal_block(&mut document, seal, Attributes::new(), credentials)?;
    }
    Ok(document)
}
