//! Foreign bytes through everything that reads some: what `fuzz/` and the property tests call. No part of the product.
//!
//! Each of [`TARGETS`] takes any bytes and holds what must be true of all: nothing panics, what was read and written again
//! is read alike, a decision made twice is the same, and no sentence holds a control character.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::{
    api::SealConfig,
    provider,
    seal::{
        Fault, checks,
        ciphertext::Ciphertext,
        model::{self, Model},
        observed::{NamespaceFacts, Observed, SecretFacts, SourceFacts},
        outcome::Outcomes,
        plan, status,
        store::{self, HEADER, Revision, StoreFacts},
        template::{KeyView, Template},
        unseal::exchange::SealState,
    },
    servers::Answered,
    wrapped::blob_info::BlobInfo,
    yaml,
};

/// Something that takes any bytes.
pub type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Target); 12] = [
    ("blob_info", blob_info),
    ("store", store),
    ("oci_config_file", provider::oci::fuzzing::config_file),
    ("oci_pem", provider::oci::fuzzing::pem),
    ("oci_federation", provider::oci::fuzzing::federation),
    ("oci_kms", provider::oci::fuzzing::kms),
    ("aws_kms", provider::aws::fuzzing::kms),
    ("imds", provider::aws::fuzzing::imds),
    ("servers", servers),
    ("template", template),
    ("manifest", manifest),
    ("seal_config", seal_config),
];

/// Examples that are bent.
const EXAMPLES: [&str; 8] = [
    include_str!("../examples/01-app-root-key-aws.yaml"),
    include_str!("../examples/03-boundary-native-oci.yaml"),
    include_str!("../examples/04-openbao-static-two-clouds.yaml"),
    include_str!("../examples/05-vault-shamir-aws.yaml"),
    include_str!("../examples/06-vault-native-awskms.yaml"),
    include_str!("../examples/10-blobs-from-secret-and-configmap.yaml"),
    include_str!("../examples/11-operator-identity-assumed-role.yaml"),
    include_str!("../examples/13-vault-own-shares-aws.yaml"),
];

/// What a fault must never be, whatever led to it.
pub(crate) fn sane(fault: &Fault) {
    let fits = |c: char| !c.is_control();
    assert!(fault.message.chars().all(fits), "a control character: {fault:?}");
    assert!(fault.message.len() < 6100, "a long message: {fault:?}");
}

/// A BlobInfo is read as it was written.
pub fn blob_info(data: &[u8]) {
    match BlobInfo::decode(data) {
        Err(fault) => sane(&fault),
        Ok(blob) => {
            // What has nothing that is read is written as nothing, which is no message.
            if blob != BlobInfo::default() {
                let again = BlobInfo::decode(&blob.encode());
                assert!(
                    again.is_ok_and(|again| again == blob),
                    "another BlobInfo: {blob:?}"
                );
            }
            let _ = (blob.is_sealed(), blob.mechanism());
        }
    }
}

/// Entries of a store: a JSON object of them, whose header may be an object; anything else is a header.
fn entries(data: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = serde_json::from_slice::<Map<String, Value>>(data) else {
        return BTreeMap::from([(HEADER.to_owned(), data.to_vec())]);
    };
    let bytes = |value: Value| match value {
        Value::String(text) => text.into_bytes(),
        other => other.to_string().into_bytes(),
    };
    entries
        .into_iter()
        .map(|(name, value)| (name, bytes(value)))
        .collect()
}

fn revision() -> Revision {
    Revision {
        uid: "uid".to_owned(),
        resource_version: "1".to_owned(),
    }
}

/// A wrapped store is read alike when its header is written again, and decided upon.
pub fn store(data: &[u8]) {
    let facts = store::read(revision(), entries(data));
    if let StoreFacts::Found(found) = &facts {
        let header = serde_json::to_vec(&found.header).unwrap_or_default();
        let items = found
            .items
            .iter()
            .map(|(name, item)| (name.clone(), item.bytes().to_vec()));
        let again = store::read(revision(), items.chain([(HEADER.to_owned(), header)]).collect());
        assert!(
            matches!(again, StoreFacts::Found(again) if again.header == found.header),
            "another header: {:?}",
            found.header
        );
        for sealed in found.header.keys.values() {
            let _ = (sealed.digest(), sealed.section.previous());
        }
    }
    let _ = store::edit::next_header(&facts, 0);
    for example in EXAMPLES {
        for config in configs(example) {
            if let Ok(mut model) = model::parse(&config) {
                model.add_answers(&facts, &[]);
                let mut world = world(&model);
                world.store = facts.clone();
                decide(&model, world);
            }
        }
    }
}

/// What Vault and OpenBao answer.
pub fn servers(data: &[u8]) {
    if let Some(state) = SealState::read(data) {
        let _ = (state.said(), state.is_native(), state.cluster().map(str::len));
    }
    for native in [false, true] {
        if let Some(answered) = Answered::read(data, native) {
            assert_eq!(format!("{answered:?}"), "[redacted]");
        }
    }
}

/// A template is accepted or refused by its text, and renders to what its size says.
pub fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(template) = Template::parse(text) else {
        return;
    };
    assert_eq!(template.source(), text);
    let names: BTreeSet<&str> = template
        .references()
        .map(|reference| reference.key.as_str())
        .collect();
    assert!(template.check(&names, &names).is_ok());
    let key = KeyView {
        bytes: b"0123456789abcdef",
        id: "root-v1",
    };
    if let Ok(out) = template.render(|_, _| Some(KeyView { ..key })) {
        assert_eq!(template.references().count() == 0, *out == data, "{text:?}");
    }
    assert!(template.render(|_, _| None).is_err() || template.references().count() == 0);
}

/// A file with manifests, as the command line and the apiserver get it.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for config in configs(text) {
        try_config(&config);
    }
}

fn configs(text: &str) -> Vec<SealConfig> {
    let documents = yaml::documents(text).unwrap_or_default();
    documents.into_iter().filter_map(as_config).collect()
}

fn as_config(mut document: Value) -> Option<SealConfig> {
    let metadata = document.get_mut("metadata")?.as_object_mut()?;
    metadata.entry("namespace").or_insert("team".into());
    metadata.entry("uid").or_insert("uid-1".into());
    serde_json::from_value(document).ok()
}

/// Bytes as a series of changes to an example: nearly valid SealConfigs, which nobody would write.
///
/// The first byte chooses the example; each six after it make one change: where (two), what (two), how, and a number.
pub fn seal_config(data: &[u8]) {
    let Some((first, changes)) = data.split_first() else {
        return;
    };
    let Some(example) = EXAMPLES.get(usize::from(*first) % EXAMPLES.len()) else {
        return;
    };
    for mut document in yaml::documents(example).unwrap_or_default() {
        for change in changes.chunks_exact(6).take(64) {
            bend(&mut document, change);
        }
        if let Some(config) = as_config(document) {
            try_config(&config);
        }
    }
}

/// The pointers to all parts of a value.
fn parts(value: &Value, here: &str, found: &mut Vec<String>) {
    found.push(here.to_owned());
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                parts(field, &format!("{here}/{name}"), found);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                parts(item, &format!("{here}/{at}"), found);
            }
        }
        _ => {}
    }
}

/// Values that somewhere mean something.
fn odd(number: u8) -> Value {
    let texts = [
        "",
        "aws",
        "root",
        "master",
        "unseal-1",
        "env",
        "OnStart",
        "kms",
        "blobinfo",
        "previous-root",
        "24h",
        "1s",
        "9999999h",
        "-1h",
        "{{ keys[\"root\"].previous.hex }}",
        "{{",
        "autounseal.dev/bound-namespace",
        "alias/x",
        "https://kms.eu-west-1.amazonaws.com",
        "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "ocid1.key.oc1.iad.x.y",
        "\u{0}\u{202e}\n",
    ];
    match usize::from(number) {
        0 => Value::Null,
        1 => true.into(),
        2 => false.into(),
        3 => 0.into(),
        4 => (-1).into(),
        5 => i64::MAX.into(),
        6 => 1.5.into(),
        7 => Value::Array(Vec::new()),
        8 => Value::Object(Map::new()),
        9 => "x".repeat(70_000).into(),
        other => texts[other % texts.len()].into(),
    }
}

fn bend(document: &mut Value, change: &[u8]) {
    let &[one, two, three, four, how, number] = change else {
        return;
    };
    let mut all = Vec::new();
    parts(document, "", &mut all);
    let at = |high: u8, low: u8| all[usize::from(u16::from_be_bytes([high, low])) % all.len()].clone();
    let (place, other) = (at(one, two), at(three, four));
    let donor = document.pointer(&other).cloned().unwrap_or_default();
    let (parent, name) = place.rsplit_once('/').unwrap_or_default();
    match how % 5 {
        0 => {
            if let Some(part) = document.pointer_mut(&place) {
                *part = odd(number);
            }
        }
        // A part must not hold itself: the document would grow without end.
        1 if !place.starts_with(&other) => {
            if let Some(part) = document.pointer_mut(&place) {
                *part = donor;
            }
        }
        2 => match document.pointer_mut(parent) {
            Some(Value::Object(fields)) => {
                fields.remove(name);
            }
            Some(Value::Array(items)) if !items.is_empty() => {
                items.remove(usize::from(number) % items.len());
            }
            _ => {}
        },
        3 => {
            if let Some(Value::Array(items)) = document.pointer_mut(parent)
                && items.len() < 40
                && let Some(item) = items.get(usize::from(number) % items.len().max(1)).cloned()
            {
                items.push(item);
            }
        }
        _ => {
            if let Some(Value::Object(fields)) = document.pointer_mut(&place)
                && !place.starts_with(&other)
            {
                let name = other.rsplit('/').next().unwrap_or_default();
                fields.insert(name.to_owned(), donor);
            }
        }
    }
}

fn try_config(config: &SealConfig) {
    match model::parse(config) {
        Err(fault) => {
            sane(&fault);
            let _ = status::failed(&config.status.clone().unwrap_or_default(), 1, &fault, now());
        }
        Ok(model) => {
            decide(&model, world(&model));
            decide(&model, full_world(&model));
        }
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap_or_default()
}

/// A world in which nothing is.
fn world(model: &Model) -> Observed {
    Observed {
        now: now(),
        jitter: 0.5,
        namespace: NamespaceFacts::default(),
        endpoints: crate::seal::endpoint::EndpointPolicy::default(),
        sources: model
            .sources()
            .into_iter()
            .map(|source| (source.clone(), SourceFacts::ObjectMissing))
            .collect(),
        secrets: BTreeMap::new(),
        relics: BTreeMap::new(),
        plain: BTreeMap::new(),
        store: StoreFacts::Absent,
        old_copy_retention: jiff::SignedDuration::from_hours(168),
        credentials: BTreeMap::new(),
        read_secrets: BTreeSet::new(),
        living: BTreeSet::new(),
        pods: Vec::new(),
        cluster_id: None,
        status: crate::api::SealConfigStatus::default(),
        memory: crate::seal::observed::Memory::default(),
    }
}

/// A world in which all is there that the spec names.
fn full_world(model: &Model) -> Observed {
    let mut world = world(model);
    for facts in world.sources.values_mut() {
        *facts = SourceFacts::Found(Ciphertext::new(b"wrapped".to_vec()));
    }
    for target in &model.targets {
        let facts = SecretFacts {
            uid: "secret-uid".to_owned(),
            resource_version: "7".to_owned(),
            owner_uid: Some(model.id.uid.clone()),
            ..SecretFacts::default()
        };
        world.secrets.insert(target.secret.clone(), facts);
    }
    world.plain = model
        .read_secrets()
        .into_iter()
        .map(|secret| (secret.to_owned(), "3".to_owned()))
        .collect();
    world.namespace.operator_identity = true;
    world
}

/// Decides as a reconcile does, twice, and once more with what it told.
fn decide(model: &Model, mut world: Observed) {
    for _ in 0..2 {
        let findings = checks::check(model, &world);
        let plan = plan::plan(model, &world, &findings);
        let again = checks::check(model, &world);
        assert_eq!(format!("{findings:?}"), format!("{again:?}"), "checks differ");
        assert_eq!(plan, plan::plan(model, &world, &again), "plans differ");
        let faults = findings.seals.values().chain(findings.keys.values());
        faults
            .chain(findings.copies.values())
            .chain(findings.targets.values())
            .for_each(sane);
        let outcomes = Outcomes::default();
        let told = status::status(model, &world, &findings, &outcomes);
        status::prune(&mut world.memory, model, &findings);
        world.status = told;
        let _ = (
            plan.to_string(),
            status::next_look(model, &world, &findings, &outcomes),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::PathBuf};

    use proptest::{collection::vec, prelude::*, sample::Index};

    use super::*;

    fn folder() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn corpus(target: &str) -> Vec<Vec<u8>> {
        let files = fs::read_dir(folder().join("corpus").join(target)).unwrap();
        let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "no corpus for {target}");
        files.into_iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// Bytes of the corpus, cut, joined and changed in places.
    fn bent(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
        let edit = (any::<Index>(), any::<u8>(), 0..6u8);
        (any::<Index>(), any::<Index>(), vec(edit, 0..8)).prop_map(move |(one, other, edits)| {
            let mut bytes = one.get(&corpus).clone();
            for (at, byte, how) in edits {
                let place = if bytes.is_empty() {
                    0
                } else {
                    at.index(bytes.len())
                };
                match how {
                    0 if !bytes.is_empty() => bytes[place] = byte,
                    1 if !bytes.is_empty() => bytes[place] ^= 1 << (byte % 8),
                    2 => bytes.insert(place, byte),
                    3 if !bytes.is_empty() => _ = bytes.remove(place),
                    4 => bytes.truncate(place),
                    _ => {
                        let other = other.get(&corpus);
                        bytes.truncate(place);
                        bytes.extend_from_slice(&other[place.min(other.len())..]);
                    }
                }
            }
            bytes
        })
    }

    #[test]
    fn every_target_is_in_the_fuzz_crate_and_has_a_corpus() {
        let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let files = |below: &str| -> BTreeSet<String> {
            let files = fs::read_dir(folder().join(below)).unwrap();
            let name = |file: PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
            files.map(|file| name(file.unwrap().path())).collect()
        };
        assert_eq!(files("fuzz_targets"), names);
        assert_eq!(files("corpus"), names);
        let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
        for name in &names {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let source =
                fs::read_to_string(folder().join("fuzz_targets").join(format!("{name}.rs"))).unwrap();
            assert!(source.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn every_seed_goes_through_its_target() {
        for (name, target) in TARGETS {
            for seed in corpus(name) {
                target(&seed);
            }
        }
    }

    #[test]
    fn seeds_of_a_manifest_are_seal_configs_that_can_be_parsed() {
        for example in EXAMPLES {
            let configs = configs(example);
            assert!(!configs.is_empty());
            for config in configs {
                assert!(model::parse(&config).is_ok(), "{:?}", config.metadata.name);
            }
        }
    }

    fn hold(target: &str, cases: u32) {
        let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
        let config = ProptestConfig {
            cases,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let bytes = prop_oneof![4 => bent(corpus(target)), 1 => vec(any::<u8>(), 0..256)];
        proptest!(config, |(data in bytes)| run(&data));
    }

    #[test]
    fn formats_take_any_bytes() {
        for target in ["blob_info", "oci_config_file", "template", "imds", "servers"] {
            hold(target, 512);
        }
    }

    #[test]
    fn answers_may_be_anything() {
        for target in ["oci_federation", "oci_kms", "aws_kms"] {
            hold(target, 256);
        }
        hold("oci_pem", 64);
    }

    #[test]
    fn decisions_are_made_of_anything_and_twice_alike() {
        hold("store", 32);
        hold("manifest", 64);
        hold("seal_config", 128);
    }
}
