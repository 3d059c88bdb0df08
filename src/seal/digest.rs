//! Digests of inputs: tell whether anything changed, and nothing of any key.

use std::{collections::BTreeMap, fmt::Write as _};

use aws_lc_rs::digest::{Context, SHA256};

use super::{
    entry::EntryContent,
    model::{Cloud, Copy, Key, Model, Seal, Source, Target},
    observed::{Observed, SourceFacts},
    store::{Kept, Standing, StoreFacts},
};

/// A digest over length-prefixed parts, so that no two different inputs read the same.
struct Parts(Context);

impl Parts {
    fn new(what: &str) -> Self {
        let mut parts = Self(Context::new(&SHA256));
        parts.add(what.as_bytes());
        parts
    }

    fn add(&mut self, part: &[u8]) {
        self.0.update(&(part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn text(&mut self, part: &str) {
        self.add(part.as_bytes());
    }

    fn pairs(&mut self, pairs: &BTreeMap<String, String>) {
        self.add(&(pairs.len() as u64).to_be_bytes());
        for (name, value) in pairs {
            self.text(name);
            self.text(value);
        }
    }

    fn hex(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0.finish().as_ref()[..16])
    }
}

/// Everything that decides who asks which key where: another identity is asked for anew.
pub fn seal_inputs(seal: &Seal) -> String {
    let mut parts = Parts::new("seal/v1");
    key_place(&mut parts, &seal.cloud);
    match &seal.cloud {
        // Debug of closed enums over text that the spec holds, no secret.
        Cloud::Aws(aws) => parts.text(&format!("{:?} {:?}", aws.credentials, aws.assume_role)),
        Cloud::Oci(oci) => parts.text(&format!("{:?}", oci.credentials)),
    }
    parts.hex()
}

fn key_place(parts: &mut Parts, cloud: &Cloud) {
    match cloud {
        Cloud::Aws(aws) => {
            parts.text(&aws.key.to_string());
            for former in &aws.former {
                parts.text(&former.to_string());
            }
            parts.text(aws.account.as_deref().unwrap_or_default());
            parts.text(aws.region.as_ref().map_or("", |region| region.as_str()));
            parts.text(aws.endpoint.as_deref().unwrap_or_default());
        }
        Cloud::Oci(oci) => {
            parts.text(oci.key.as_str());
            parts.text(&oci.crypto_endpoint);
            parts.text(&oci.management_endpoint);
        }
    }
}

/// What a copy is opened from: the seal's key, the format, the context, the bytes.
pub fn copy_inputs(model: &Model, copy: &Copy, observed: &Observed) -> String {
    let mut parts = Parts::new("copy/v1");
    parts.text(&copy.seal);
    if let Some(seal) = model.seal(&copy.seal) {
        key_place(&mut parts, &seal.cloud);
    }
    packed(&mut parts, copy, observed);
    parts.hex()
}

fn packed(parts: &mut Parts, copy: &Copy, observed: &Observed) {
    parts.text(match copy.format {
        crate::api::WrappedFormat::BlobInfo => "blobinfo",
        crate::api::WrappedFormat::Kms => "kms",
    });
    parts.pairs(&copy.context);
    match &copy.source {
        Source::Inline(ciphertext) => parts.add(&ciphertext.digest()),
        Source::Entry(entry) => match observed.sources.get(entry) {
            Some(SourceFacts::Found(ciphertext)) => parts.add(&ciphertext.digest()),
            Some(SourceFacts::Unreadable) => parts.text("unreadable"),
            Some(SourceFacts::EntryMissing) => parts.text("entry missing"),
            Some(SourceFacts::ObjectMissing) | None => parts.text("missing"),
        },
    }
}

/// What material that the user brings is made from: another value makes another version.
pub fn brings_inputs(key: &Key, observed: &Observed) -> String {
    let mut parts = Parts::new("brings/v1");
    for copy in &key.brings {
        parts.text(&copy.seal);
        packed(&mut parts, copy, observed);
    }
    parts.hex()
}

/// What a brought key's copies hold, wherever their seals lie: operator-made copies are used while this stays the same.
pub fn brought_inputs(key: &Key, observed: &Observed) -> String {
    let mut parts = Parts::new("brought/v1");
    for copy in &key.copies {
        parts.text(&copy.seal);
        packed(&mut parts, copy, observed);
    }
    parts.hex()
}

/// What a stored key is delivered from: its versions. Where its copies lie does not matter.
pub fn stored_inputs(key: &Key, kept: &Kept, observed: &Observed) -> String {
    let mut parts = Parts::new("stored/v1");
    parts.text(&key.name);
    if let StoreFacts::Found(store) = &observed.store
        && let Some(sealed) = store.header.keys.get(&key.name)
    {
        for version in [Some(kept.current), kept.previous].into_iter().flatten() {
            let record = sealed.section.versions.get(&version);
            parts.text(&version.to_string());
            parts.text(
                record
                    .and_then(|record| record.check_value.as_deref())
                    .unwrap_or_default(),
            );
        }
    }
    parts.hex()
}

/// What a distribution of a ManagedKey is looked at for.
pub fn managed_inputs(texts: &[&str]) -> String {
    let mut parts = Parts::new("distribution/v1");
    for text in texts {
        parts.text(text);
    }
    parts.hex()
}

/// What a stored copy is opened from.
pub fn stored_copy_inputs(key: &Key, seal: &Seal, observed: &Observed) -> String {
    let mut parts = Parts::new("stored copy/v1");
    key_place(&mut parts, &seal.cloud);
    if let StoreFacts::Found(store) = &observed.store
        && let Some(sealed) = store.header.keys.get(&key.name)
    {
        for (version, record) in &sealed.section.versions {
            parts.text(&version.to_string());
            parts.text(record.copies.get(&seal.name).map_or("", |copy| &copy.digest));
        }
    }
    parts.hex()
}

/// What a stored key is looked after from: after a failure, another state is tried at once.
pub fn tend_inputs(model: &Model, key: &Key, standing: &Standing, observed: &Observed) -> String {
    let mut parts = Parts::new("tend/v1");
    // Debug of values that hold names, numbers and one-way marks only.
    parts.text(&format!("{standing:?} {:?}", key.origin));
    parts.pairs(&observed.plain);
    if key.is_brought() {
        parts.text(&key_inputs(model, key, observed));
    }
    for seal in model.seals.iter().filter(|seal| seal.wraps && !seal.disabled) {
        parts.text(&seal_inputs(seal));
    }
    parts.hex()
}

/// What a key that is not brought is delivered from, where it stands well.
pub fn standing_inputs(key: &Key, standing: &Standing, observed: &Observed) -> String {
    match standing {
        Standing::Kept(kept) => stored_inputs(key, kept, observed),
        _ => Parts::new("not stored/v1").hex(),
    }
}

/// What a key is opened from: all its copies and what pins it.
pub fn key_inputs(model: &Model, key: &Key, observed: &Observed) -> String {
    let mut parts = Parts::new("key/v1");
    parts.text(&key.name);
    parts.text(key.check_value.as_deref().unwrap_or_default());
    for copy in &key.copies {
        parts.text(&copy_inputs(model, copy, observed));
    }
    parts.hex()
}

/// What all shares together are.
pub fn shares_inputs(model: &Model, keys: &BTreeMap<String, String>) -> String {
    let mut parts = Parts::new("shares/v1");
    for share in model.keys.iter().filter(|key| key.is_share()) {
        parts.text(&share.name);
        parts.text(keys.get(&share.name).map_or("", String::as_str));
    }
    parts.hex()
}

/// What a target is made from: its keys, its entries, its metadata.
pub fn target_inputs(
    model: &Model,
    target: &Target,
    keys: &BTreeMap<String, String>,
    observed: &Observed,
) -> String {
    let mut parts = Parts::new("target/v1");
    parts.text(&model.id.uid);
    parts.text(&target.secret);
    parts.text(target.type_.as_str());
    parts.text(if target.delete_with_owner { "owned" } else { "" });
    parts.pairs(&target.labels);
    parts.pairs(&target.annotations);
    for entry in &target.entries {
        parts.text(&entry.name);
        match &entry.content {
            EntryContent::Key {
                key,
                encoding,
                version,
            } => {
                let mut what = String::new();
                // Debug names of two closed enums: stable, and writing to a String cannot fail.
                let _ = write!(what, "{key} {encoding:?} {version:?}");
                parts.text(&what);
            }
            EntryContent::Template(template) => parts.text(template.source()),
            // Debug of closed enums over text that the spec holds, no secret; and how it is written, so that another
            // version of the operator writes it anew.
            EntryContent::Stanza(stanza) => parts.text(&format!("stanza/v1 {stanza:?}")),
            EntryContent::Variable(variable) => parts.text(&format!("{variable:?}")),
        }
    }
    for name in target.credentials() {
        parts.text(name);
        // Which version of the Secret, and not what it holds: a digest of that would let its readers test guesses.
        let secret = model.seal(name).and_then(|seal| seal.cloud.credentials_secret());
        let version = secret.and_then(|secret| observed.credentials.get(secret));
        parts.text(version.map_or("", String::as_str));
    }
    for name in target.keys() {
        parts.text(name);
        parts.text(keys.get(name).map_or("", String::as_str));
        if let Some(key) = model.keys.iter().find(|key| key.name == name) {
            parts.text(key.consumer_key_id.as_deref().unwrap_or_default());
            parts.text(&format!("{:?}", key.purpose));
        }
    }
    parts.hex()
}
