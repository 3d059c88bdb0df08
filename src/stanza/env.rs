//! Environment variables, one entry each, for `envFrom`.

use zeroize::Zeroizing;

use super::{Credentials, of};
use crate::seal::{Fault, stanza::Variable};

pub(super) fn value(variable: &Variable, given: Credentials<'_, '_>) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let text = match variable {
        Variable::Text(text) => text,
        Variable::AccessKeyId { seal } => of(seal, given)?.access_key_id(),
        Variable::SecretAccessKey { seal } => of(seal, given)?.secret_access_key(),
    };
    Ok(Zeroizing::new(text.as_bytes().to_vec()))
}
