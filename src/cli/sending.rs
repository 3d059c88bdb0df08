//! What `wrap` and `rewrap` share: leave to send a key, wrapping it with a look at what was made, and the entry for it.

use std::{collections::BTreeMap, fmt::Write as _};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{
    Failure,
    destination::Way,
    offline::{self, Caller},
    output,
};
use crate::{
    api::WrappedFormat,
    seal::{Ciphertext, KeyBytes, model::Cloud},
};

/// Tells what of the file is left aside and, unless the caller named the destinations, asks at the terminal.
///
/// # Errors
/// Misuse without a terminal, no when the answer is not `yes`.
pub(super) fn permitted(what: &str, ways: &[Way], named: bool) -> Result<(), Failure> {
    for note in ways.iter().flat_map(|way| &way.notes) {
        output::note(note);
    }
    if named {
        return Ok(());
    }
    offline::confirm(
        &question(what, ways),
        "no destination is named: pass --to with the ARN or OCID of the KMS key that the key may be sent to, or run this at \
         a terminal and confirm",
    )
}

fn question(what: &str, ways: &[Way]) -> String {
    let mut text = format!("The {what} will be sent, with your own identity, to be wrapped under\n");
    for way in ways {
        let place = match &way.seal.cloud {
            Cloud::Aws(aws) => {
                let mut place = aws.region.as_ref().map_or_else(
                    || "the region of your own AWS configuration".to_owned(),
                    |region| format!("region {region}"),
                );
                // Writing to a String cannot fail.
                if let Some(endpoint) = &aws.endpoint {
                    let _ = write!(place, ", endpoint {endpoint}");
                }
                if let Some(role) = &aws.assume_role {
                    let _ = write!(place, ", as role {}", role.role_arn);
                }
                place
            }
            Cloud::Oci(oci) => format!("endpoint {}", oci.crypto_endpoint),
        };
        let _ = writeln!(
            text,
            "  seal {:?}: {}, {place}",
            way.seal.name,
            way.seal.cloud.configured_key()
        );
    }
    text.push_str("Go on? Type yes: ");
    text
}

/// Wraps a key and opens the copy again before it counts as one. `part` names it in messages.
///
/// # Errors
/// What the KMS says; other bytes than it was given.
pub(super) async fn wrap(
    caller: &Caller,
    way: &Way,
    part: &str,
    key: &KeyBytes,
    format: WrappedFormat,
    context: &BTreeMap<String, String>,
) -> Result<Ciphertext, Failure> {
    let wrapped = caller
        .wrap(&way.seal, key, format, context)
        .await
        .map_err(|fault| fault.of(part))?;
    let read_back = caller
        .unwrap(&way.seal, &wrapped, format, context)
        .await
        .map_err(|fault| fault.of(format_args!("{part}, reading back")))?;
    if !read_back.key.same_as(key) {
        return Err(Failure::No(format!(
            "{part}: the KMS gave other bytes back than it was given; nothing is printed"
        )));
    }
    output::note(&format!(
        "{part}: wrapped under {} and read back",
        read_back.key_id
    ));
    Ok(wrapped)
}

/// One entry for `wrapped:`.
pub(super) fn entry(
    seal: &str,
    format: WrappedFormat,
    context: &BTreeMap<String, String>,
    wrapped: &Ciphertext,
) -> Value {
    let mut entry = json!({"seal": seal, "format": word(format), "inline": BASE64.encode(wrapped.bytes())});
    if !context.is_empty() {
        entry["context"] = json!(context);
    }
    entry
}

/// The word of the schema.
pub(super) const fn word(format: WrappedFormat) -> &'static str {
    match format {
        WrappedFormat::BlobInfo => "blobinfo",
        WrappedFormat::Kms => "kms",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;

    #[test]
    fn entries_paste_into_a_manifest() {
        let context = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let entry = entry(
            "aws",
            WrappedFormat::Kms,
            &context,
            &Ciphertext::new(b"x".to_vec()),
        );
        let read: api::WrappedCopy = serde_json::from_value(entry).unwrap();
        assert_eq!(read.inline.as_deref(), Some("eA=="));
        assert_eq!(read.format, WrappedFormat::Kms);
    }
}
