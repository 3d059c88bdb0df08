//! What a rotation of shares leaves in the wrapped store. Each write is over the very state that was read, and is read
//! back; none takes the shares in use away.

use std::collections::{BTreeMap, BTreeSet};

use super::record::{find, header, save};
use crate::{
    api::Reason,
    controller::context::Context,
    seal::{
        Ciphertext, Fault, KeyBytes,
        model::{Key, Model},
        observed::Observed,
        store::{
            Header, NewCopy, Sealed, StoreFacts, Version,
            proof::mac_of,
            rekey::{self, Rekey},
            sets,
        },
    },
};

/// A new share that is wrapped.
pub struct NewShare {
    /// Its name.
    pub name: String,
    /// What is recorded of it.
    pub version: Version,
    /// Its copies.
    pub copies: Vec<NewCopy>,
}

/// Writes down where the attempt is. `before`: what must stand there; `None` = nothing, or what left no shares.
///
/// # Errors
/// Why it was not written: then nothing was.
pub async fn mark(
    context: &Context,
    model: &Model,
    observed: &Observed,
    rekey: &Rekey,
    before: Option<&Rekey>,
) -> Result<(), Fault> {
    change(context, model, observed, |header, _| {
        let stands = match before {
            Some(before) => header.rekey.as_deref() == Some(before),
            None => header
                .rekey
                .as_ref()
                .is_none_or(|old| !old.is_pending() || old.set < rekey.set),
        };
        header.rekey = Some(Box::new(rekey.clone()));
        stands.then(Change::default)
    })
    .await
}

/// Stores new shares beside those in use.
///
/// # Errors
/// As [`mark`].
pub async fn put_aside(
    context: &Context,
    model: &Model,
    observed: &Observed,
    rekey: &mut Rekey,
    before: &Rekey,
    shares: Vec<NewShare>,
) -> Result<(), Fault> {
    let mut put = BTreeMap::new();
    let mut pending = rekey.clone();
    for share in shares {
        rekey::put_aside(&mut pending, &share.name, share.version, share.copies, &mut put);
    }
    change(context, model, observed, |header, _| {
        let stands = header.rekey.as_deref() == Some(before);
        header.rekey = Some(Box::new(pending.clone()));
        stands.then_some(Change {
            put,
            ..Change::default()
        })
    })
    .await?;
    *rekey = pending;
    Ok(())
}

/// Takes the shares that wait into use, in one write. `shares`: all of them.
///
/// # Errors
/// As [`mark`].
pub async fn take(
    context: &Context,
    model: &Model,
    observed: &Observed,
    id: &str,
    shares: &[(Key, KeyBytes)],
) -> Result<(), Fault> {
    change(context, model, observed, |header, _| {
        let rekey = header.rekey.take().filter(|rekey| rekey.id == id)?;
        for (key, bytes) in shares {
            let section = rekey::taken(header, &rekey, &key.name)?;
            let mac = mac_of(model, key, &section, bytes);
            header.keys.insert(key.name.clone(), Sealed { section, mac });
        }
        (shares.len() == rekey.pending.len()).then(Change::default)
    })
    .await
}

/// Forgets an attempt whose shares the server has not taken, as the server itself has shown.
///
/// # Errors
/// As [`mark`].
pub async fn forget(
    context: &Context,
    model: &Model,
    observed: &Observed,
    held: &Rekey,
) -> Result<(), Fault> {
    change(context, model, observed, |header, items| {
        let stands = header.rekey.as_deref() == Some(held);
        header.rekey = None;
        let names = held.pending.keys();
        let entries: Vec<String> = names.filter_map(|name| sets::item(name, held.set, "")).collect();
        let mine = |item: &&String| entries.iter().any(|entry| item.starts_with(entry));
        stands.then(|| Change {
            put: BTreeMap::new(),
            remove: items.keys().filter(mine).cloned().collect(),
        })
    })
    .await
}

/// Writes down that a server was unsealed with the shares of this set.
///
/// # Errors
/// As [`mark`].
pub async fn prove(context: &Context, model: &Model, observed: &Observed, set: u32) -> Result<(), Fault> {
    change(context, model, observed, |header, _| {
        let news = header.proven.unwrap_or_default() < set;
        header.proven = Some(set);
        news.then(Change::default)
    })
    .await
}

/// What is written beside the header.
#[derive(Default)]
struct Change {
    put: BTreeMap<String, Ciphertext>,
    remove: BTreeSet<String>,
}

/// `edit`: `None` = the store is not as it was when this was decided.
async fn change(
    context: &Context,
    model: &Model,
    observed: &Observed,
    edit: impl FnOnce(&mut Header, &BTreeMap<String, Ciphertext>) -> Option<Change>,
) -> Result<(), Fault> {
    let facts = find(&context.client, model).await?;
    let mut next = header(model, observed, &facts);
    let change = match &facts {
        StoreFacts::Found(store) => edit(&mut next, &store.items),
        _ => None,
    };
    let Change { put, remove } = change.ok_or_else(|| {
        Fault::transient(Reason::Pending, "the wrapped store was changed; it is read again")
    })?;
    save(context, &context.client, model, &facts, &next, put, remove).await
}
