//! What initialisations leave in the wrapped store: a marker before, the set after, and no root token once it is revoked.
//! Each write is over the very state that was read, and is read back.

use std::collections::{BTreeMap, BTreeSet};

use kube::Client;

use crate::{
    api::Reason,
    controller::context::Context,
    kube_ext::store as secret,
    seal::{
        Fault, KeyBytes,
        model::{Key, Model},
        observed::Observed,
        store::{
            Edit, Header, NewCopy, Provenance, Sealed, Section, StoreFacts, Version,
            edit::next_header,
            proof::mac_of,
            secret_name,
            sets::{self, Held, Marker},
            standing::seen,
        },
    },
};

/// An item of a set, with what was made of it.
pub struct Item {
    /// The item.
    pub key: Key,
    /// Its bytes.
    pub bytes: KeyBytes,
    /// What is recorded of it.
    pub version: Version,
    /// Its copies so far.
    pub copies: Vec<NewCopy>,
}

/// The store as it lies at the apiserver now.
pub async fn find(client: &Client, model: &Model) -> Result<StoreFacts, Fault> {
    let name = secret_name(&model.id);
    let (facts, _) = secret::find(client, &model.id.namespace, &name).await?;
    Ok(facts)
}

/// Writes the marker over a store that holds nothing that counts.
///
/// # Errors
/// What the store holds, or why it was not written: then nothing was.
pub async fn mark(
    context: &Context,
    model: &Model,
    observed: &Observed,
    facts: &StoreFacts,
    marker: &Marker,
) -> Result<(), Fault> {
    let mut header = header(model, observed, facts);
    header.init = Some(marker.clone());
    save(
        context,
        &context.client,
        model,
        facts,
        &header,
        BTreeMap::new(),
        BTreeSet::new(),
    )
    .await
}

/// Takes the marker away again: the server was never asked.
pub async fn unmark(
    context: &Context,
    model: &Model,
    observed: &Observed,
    marker: &Marker,
) -> Result<(), Fault> {
    let facts = find(&context.client, model).await?;
    let mut header = header(model, observed, &facts);
    if header.init.as_ref() != Some(marker) {
        return Ok(());
    }
    header.init = None;
    save(
        context,
        &context.client,
        model,
        &facts,
        &header,
        BTreeMap::new(),
        BTreeSet::new(),
    )
    .await
}

/// The number that a set has to have now: its marker's, or another if somebody took that one away meanwhile.
pub fn number(facts: &StoreFacts, observed: &Observed, marker: &Marker) -> u32 {
    match facts {
        StoreFacts::Found(store) if store.header.init.as_ref() == Some(marker) => marker.set,
        _ => sets::next(facts, &observed.status.keys),
    }
}

/// Writes a set beside everything that the store holds. Not with the client that ends with the term: the answer would be
/// lost, and nobody else may write a set of this marker.
///
/// # Errors
/// Why it was not written, or not as it was meant.
pub async fn keep(
    context: &Context,
    model: &Model,
    observed: &Observed,
    facts: &StoreFacts,
    marker: &Marker,
    items: &[Item],
) -> Result<(), Fault> {
    let mut header = header(model, observed, facts);
    let mut put = BTreeMap::new();
    for item in items {
        let name = &item.key.name;
        let section = header.keys.get(name).map(|sealed| sealed.section.clone());
        let section = section.unwrap_or_else(|| Section {
            source: Provenance::Initialized,
            counter: 0,
            current: marker.set,
            next: marker.set,
            trigger: None,
            inputs: None,
            versions: BTreeMap::new(),
            managed: None,
        });
        let mut edit = Edit::new(name, section);
        edit.add_version(marker.set, item.version.clone(), item.copies.clone());
        edit.section.counter = header.counter;
        put.append(&mut edit.put);
        let mac = mac_of(model, &item.key, &edit.section, &item.bytes);
        let sealed = Sealed {
            section: edit.section,
            mac,
        };
        header.keys.insert(name.clone(), sealed);
    }
    header.init = Some(marker.clone());
    save(
        context,
        &context.keeper,
        model,
        facts,
        &header,
        put,
        BTreeSet::new(),
    )
    .await
}

/// Takes a root token out of the store: it is of no use to anybody any more.
///
/// # Errors
/// Why it was not written.
pub async fn drop_token(
    context: &Context,
    model: &Model,
    observed: &Observed,
    name: &str,
    revoked: &Sealed,
) -> Result<(), Fault> {
    let facts = find(&context.client, model).await?;
    let StoreFacts::Found(store) = &facts else {
        return Ok(());
    };
    let mut header = header(model, observed, &facts);
    let version = revoked.section.current;
    let id = |sealed: &Sealed| sealed.section.versions.get(&version)?.init.clone();
    // Another one than was revoked is not ours to drop.
    if header.keys.get(name).and_then(id) != id(revoked) {
        return Ok(());
    }
    header.keys.remove(name);
    let entries = sets::item(name, version, "").unwrap_or_default();
    let items = store.items.keys();
    let remove = items.filter(|item| item.starts_with(&entries)).cloned().collect();
    save(
        context,
        &context.client,
        model,
        &facts,
        &header,
        BTreeMap::new(),
        remove,
    )
    .await
}

pub(super) fn header(model: &Model, observed: &Observed, facts: &StoreFacts) -> Header {
    let counters = model.keys.iter().map(|key| seen(key, observed).counter);
    next_header(facts, counters.max().unwrap_or_default())
}

pub(super) async fn save(
    context: &Context,
    client: &Client,
    model: &Model,
    facts: &StoreFacts,
    header: &Header,
    put: BTreeMap<String, crate::seal::Ciphertext>,
    remove: BTreeSet<String>,
) -> Result<(), Fault> {
    let base = match facts {
        StoreFacts::Found(store) => Some(store.revision.clone()),
        StoreFacts::Absent => None,
        StoreFacts::NotLooked | StoreFacts::NotOwned | StoreFacts::Corrupt(..) => {
            return Err(match sets::held(model, facts, &[]) {
                Held::Unknown(fault) => fault,
                _ => Fault::transient(Reason::Pending, "the wrapped store is read again"),
            });
        }
    };
    let change = secret::Change::new(base, header, put, remove)?;
    let (namespace, name) = (&model.id.namespace, secret_name(&model.id));
    let (_, known) = secret::save(client, namespace, &name, &change).await?;
    if let Some(known) = known {
        context.index.saw_secret(namespace, &name, &known);
    }
    Ok(())
}
