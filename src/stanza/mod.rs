//! Text of stanzas: configuration that Vault, OpenBao and Boundary read, from values that were checked before.
//!
//! One file a product. Key bytes and credentials go from where they lie straight into the finished text, whose buffer is
//! wiped when dropped.

use zeroize::Zeroizing;

use crate::{
    api::Reason,
    seal::{
        Fault, StaticCredentials,
        stanza::{KEY_BYTES, NativeKms, NativeSeal, Stanza, Variable},
        template::KeyView,
    },
};

pub mod hcl;

mod boundary;
mod boundary_aead;
mod env;

mod openbao;
mod openbao_static;
mod vault;

use hcl::{Document, Value};

/// The keys at hand, by name, and whether the version before the current one is meant.
pub type Keys<'f, 'k> = &'f dyn Fn(&str, bool) -> Option<KeyView<'k>>;
/// The static credentials at hand, by the name of the seal.
pub type Credentials<'f, 'k> = &'f dyn Fn(&str) -> Option<&'k StaticCredentials>;

/// Writes a stanza.
///
/// # Errors
/// `InvalidSpec`: a key of the wrong length, a value that HCL cannot hold. `CredentialsMissing`: nobody read them.
pub fn write<'k>(
    stanza: &'k Stanza,
    keys: Keys<'_, 'k>,
    credentials: Credentials<'_, 'k>,
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let document = match stanza {
        Stanza::Vault(seals) => vault::document(seals, credentials),
        Stanza::OpenBao(seals) => openbao::document(seals, credentials),
        Stanza::OpenBaoStatic(seal) => openbao_static::document(seal, keys),
        Stanza::Boundary { seal, purposes } => boundary::document(seal, purposes, credentials),
        Stanza::BoundaryAead(blocks) => boundary_aead::document(blocks, keys),
    }?;
    Ok(document.write())
}

/// Writes the value of an environment variable.
///
/// # Errors
/// `CredentialsMissing`: nobody read them.
pub fn variable(variable: &Variable, credentials: Credentials<'_, '_>) -> Result<Zeroizing<Vec<u8>>, Fault> {
    env::value(variable, credentials)
}

type Attributes<'k> = Vec<(&'static str, Value<'k>)>;

/// The type of a seal's KMS, and the attributes that lead to its key, alike for all products.
fn native<'k>(
    seal: &'k NativeSeal,
    credentials: Credentials<'_, 'k>,
) -> Result<(&'static str, Attributes<'k>), Fault> {
    let mut attributes: Attributes<'k> = Vec::new();
    let label = match &seal.kms {
        NativeKms::Aws {
            key,
            region,
            endpoint,
        } => {
            attributes.push(("region", Value::Text(region)));
            attributes.push(("kms_key_id", Value::Text(key)));
            if let Some(endpoint) = endpoint {
                attributes.push(("endpoint", Value::Text(endpoint)));
            }
            if seal.credentials {
                let pair = of(&seal.name, credentials)?;
                attributes.push(("access_key", Value::Secret(pair.access_key_id())));
                attributes.push(("secret_key", Value::Secret(pair.secret_access_key())));
            }
            "awskms"
        }
        NativeKms::Oci {
            key,
            crypto_endpoint,
            management_endpoint,
            api_key,
        } => {
            attributes.push(("key_id", Value::Text(key)));
            attributes.push(("crypto_endpoint", Value::Text(crypto_endpoint)));
            attributes.push(("management_endpoint", Value::Text(management_endpoint)));
            attributes.push(("auth_type_api_key", Value::Text(truth(*api_key))));
            "ocikms"
        }
    };
    Ok((label, attributes))
}

/// The credentials of a seal.
fn of<'k>(seal: &str, credentials: Credentials<'_, 'k>) -> Result<&'k StaticCredentials, Fault> {
    credentials(seal).ok_or_else(|| {
        Fault::denied(
            Reason::CredentialsMissing,
            format!("the credentials of seal {seal:?} were not read; they are looked for again"),
        )
    })
}

const fn truth(flag: bool) -> &'static str {
    if flag { "true" } else { "false" }
}

/// A `seal` block as Vault and OpenBao read it, with what only one of them reads before the rest.
fn seal_block<'k>(
    document: &mut Document<'k>,
    seal: &'k NativeSeal,
    first: Attributes<'k>,
    credentials: Credentials<'_, 'k>,
) -> Result<(), Fault> {
    let (label, rest) = native(seal, credentials)?;
    let mut attributes = first;
    attributes.extend(rest);
    if seal.disabled {
        attributes.push(("disabled", Value::Text(truth(true))));
    }
    document.block("seal", label, &attributes)
}

/// A key of the right length. Whether it has that is known only once it is open.
fn key<'k>(name: &str, previous: bool, keys: Keys<'_, 'k>) -> Result<Option<KeyView<'k>>, Fault> {
    let Some(view) = keys(name, previous) else {
        return Ok(None);
    };
    if view.bytes.len() == KEY_BYTES {
        return Ok(Some(view));
    }
    let version = if previous {
        "the version before of key"
    } else {
        "key"
    };
    Err(Fault::invalid_spec(format!(
        "{version} {name:?} has another length than {KEY_BYTES} bytes, which its consumer takes no other; bring a key of \
             {KEY_BYTES} bytes"
    )))
}

/// A key that must be there.
fn current<'k>(name: &str, keys: Keys<'_, 'k>) -> Result<KeyView<'k>, Fault> {
    key(name, false, keys)?
        .ok_or_else(|| Fault::invalid_spec(format!("there is no key {name:?}; name one of spec.keys")))
}

#[cfg(test)]
mod tests;
