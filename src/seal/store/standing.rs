//! Where a key stands with the wrapped store: what may be used, what must be made, and what must not be believed.
//!
//! The rule above all (security rule S5): a second key is never made over the first. A key is made only if nothing shows
//! that it ever existed; else the store is rebuilt from what was delivered, or a human is asked.

use jiff::SignedDuration;

use super::{Class, CopyRecord, Provenance, Sealed, Section, Store, StoreFacts, Version, item, secret_name};
use crate::{
    api::{Encoding, KeyVersion, Reason},
    seal::{
        Fault,
        aws::KeyArn,
        digest::{brings_inputs, brought_inputs},
        entry::EntryContent,
        model::{Cloud, Key, Model, Origin, Seal, Target},
        observed::{Mark, Observed},
        unseal::Unseal,
    },
};

/// The least time between the two reads of a new copy before its predecessor is dropped (security rule S17).
const READS_APART: SignedDuration = SignedDuration::from_hours(24);

/// Where a key stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is brought under every seal: nothing is stored.
    Elsewhere,
    /// Nothing of it is stored, and nothing shows that it ever was: it may be made, or copied if it is brought.
    New,
    /// The store has lost it, and a delivered Secret still holds it.
    Lost(Rebuild),
    /// It is stored.
    Kept(Kept),
    /// It must not be used or made, and why.
    Barred(Fault),
}

/// What a lost key is made from again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// The version in use.
    pub current: Delivered,
    /// The one before it, if it was delivered too.
    pub previous: Option<Delivered>,
}

/// A version of a key in a delivered Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The delivered Secret.
    pub secret: String,
    /// The entry.
    pub entry: String,
    /// How its bytes are written.
    pub encoding: Encoding,
    /// Its number.
    pub version: u32,
    /// The check value that its bytes must have.
    pub mark: String,
}

/// A key that is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The version in use.
    pub current: u32,
    /// The one before it, if it is delivered.
    pub previous: Option<u32>,
    /// What is to be done about its copies.
    pub due: Due,
}

/// What is to be done about a stored key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent things to do")]
pub struct Due {
    /// A human accepted an older store: it is written anew, above what was seen.
    pub accept: bool,
    /// Somebody else changed the section, or it was never looked at: it is opened and its authentication checked.
    pub verify: bool,
    /// Copies to make, by version and seal.
    pub copies: Vec<(u32, String)>,
    /// Copies of seals that are gone from the spec, by version and seal.
    pub retire: Vec<(u32, String)>,
    /// Former copies whose time has come, by version and item.
    pub drop: Vec<(u32, String)>,
    /// The trigger has its first value, which is written down.
    pub trigger: bool,
    /// A new version is due.
    pub rotate: bool,
    /// The brought copies have changed.
    pub renew: bool,
    /// How the cluster calls itself that the set is of: it was seen unsealed for the first time.
    pub cluster: Option<String>,
}

impl Due {
    /// Nothing is to be done.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What shows that a key existed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The highest version; 0 = none.
    pub version: u32,
    /// The highest counter of its section.
    pub counter: u64,
}

/// What status and delivered Secrets remember of a key that is not brought.
pub fn seen(key: &Key, observed: &Observed) -> Seen {
    let status = observed.status.keys.iter().find(|status| status.name == key.name);
    let mut seen = Seen {
        version: status.map_or(0, |status| status.version),
        counter: status.map_or(0, |status| status.store_counter),
    };
    for mark in observed
        .relics
        .values()
        .filter_map(|facts| facts.delivered.marks.get(&key.name))
    {
        seen.version = seen.version.max(mark.version);
        seen.counter = seen.counter.max(mark.stored);
    }
    seen
}

/// Whether any key of the model may have something in the store, or servers may be initialised, whose answers lie there.
pub fn needs_store(model: &Model) -> bool {
    let keys = || {
        let mut keys = model.keys.iter();
        keys.any(|key| !key.is_brought() || lacking(model, key).next().is_some())
    };
    let initializes = |unseal: &Unseal| unseal.initialize.is_some();
    model.unseal.as_ref().is_some_and(initializes) || keys()
}

/// The seals under which a key may be stored: for a brought key those for which the user brings no copy.
pub fn lacking<'m>(model: &'m Model, key: &'m Key) -> impl Iterator<Item = &'m Seal> {
    model
        .seals
        .iter()
        .filter(|seal| seal.wraps && !key.copies.iter().any(|copy| copy.seal == seal.name))
}

/// The seals under which new copies are made.
pub fn wrapping<'m>(model: &'m Model, key: &'m Key) -> impl Iterator<Item = &'m Seal> {
    lacking(model, key).filter(|seal| !seal.disabled)
}

/// Decides where a key stands.
pub fn standing(model: &Model, key: &Key, observed: &Observed) -> Standing {
    if key.is_brought() {
        return brought(model, key, observed);
    }
    let section = match &observed.store {
        StoreFacts::NotOwned => return Standing::Barred(not_owned(model)),
        StoreFacts::Corrupt(..) => {
            let rebuilt = || model.keys.iter().filter(|key| !key.is_brought());
            return match rebuild(model, key, observed) {
                // Nothing is written over a header that somebody may mend unless every key survives that.
                Some(rebuild) if rebuilt().all(|key| self::rebuild(model, key, observed).is_some()) => {
                    Standing::Lost(rebuild)
                }
                _ => Standing::Barred(corrupt(model, "its header cannot be read")),
            };
        }
        // Nothing is concluded from what nobody has looked at.
        StoreFacts::NotLooked => {
            return Standing::Barred(Fault::transient(
                Reason::Pending,
                "the wrapped store is read again",
            ));
        }
        StoreFacts::Absent => None,
        StoreFacts::Found(store) => store.header.keys.get(&key.name).map(|sealed| (store, sealed)),
    };
    let Some((store, sealed)) = section else {
        // Only a server makes these, and only when it is initialised.
        let made = !matches!(key.origin, Origin::Initialized(_));
        if made && seen(key, observed) == Seen::default() {
            return Standing::New;
        }
        return match rebuild(model, key, observed) {
            Some(rebuild) => Standing::Lost(rebuild),
            None => Standing::Barred(missing(model)),
        };
    };
    let section = &sealed.section;
    let provenance = match key.origin {
        Origin::Imported { .. } => Provenance::Imported,
        Origin::Initialized(_) => Provenance::Initialized,
        Origin::Generated { .. } | Origin::Brought => Provenance::Generated,
    };
    if section.source != provenance || section.managed.as_ref().map(|managed| managed.type_) != key.material {
        return Standing::Barred(taken(model, section));
    }
    let seen = seen(key, observed);
    // By the counter alone: a version in use that is lower than one seen, at a higher counter, is an older state that a
    // human accepted (or forged, which its authentication tells).
    let behind = section.counter < seen.counter;
    let accept = behind && model.accept_store == Some(store.header.counter);
    if behind && !accept {
        return Standing::Barred(rolled_back(model, store, seen));
    }
    if contradicted(key, section, observed) {
        return Standing::Barred(forged(model));
    }
    if let Some(fault) = unopenable(model, key, store, section) {
        return Standing::Barred(fault);
    }
    let previous = section.previous().filter(|_| key.keeps_previous());
    for version in [Some(section.current), previous].into_iter().flatten() {
        if candidates(model, key, store, version).is_empty() {
            let fits = |rebuild: &Rebuild| {
                version == section.current && rebuild.current.version == version && !accept
            };
            return match rebuild(model, key, observed).filter(fits) {
                Some(rebuild) => Standing::Lost(rebuild),
                None => Standing::Barred(corrupt(
                    model,
                    &format!(
                        "every copy of version {version} of key {:?} is damaged or missing",
                        key.name
                    ),
                )),
            };
        }
    }
    let (trigger, rotate) = rotation(key, section, observed);
    Standing::Kept(Kept {
        current: section.current,
        previous,
        due: Due {
            accept,
            verify: !is_checked(key, sealed, observed),
            copies: copies(model, key, store, section, observed),
            retire: retire(model, section),
            drop: drops(model, key, store, section, observed),
            trigger,
            rotate,
            renew: false,
            cluster: cluster(key, section, observed),
        },
    })
}

/// Written down once, with the first item of a set.
fn cluster(key: &Key, section: &Section, observed: &Observed) -> Option<String> {
    let first = matches!(
        key.origin,
        Origin::Initialized(Class::UnsealShare | Class::RecoveryShare)
    ) && key.name.ends_with(".1");
    let init = section.versions.get(&section.current)?.init.as_ref()?;
    let unknown = first && init.cluster_id.is_none();
    observed.cluster_id.clone().filter(|_| unknown)
}

/// Whether this very state of a section is the one that was written or checked last.
fn is_checked(key: &Key, sealed: &Sealed, observed: &Observed) -> bool {
    let status = observed.status.keys.iter().find(|status| status.name == key.name);
    status.and_then(|status| status.store_digest.as_ref()) == Some(&sealed.digest())
}

/// Operator-made copies of a brought key: they can be made again from what is brought, so nothing is ever barred for
/// want of them.
fn brought(model: &Model, key: &Key, observed: &Observed) -> Standing {
    if lacking(model, key).next().is_none() {
        return Standing::Elsewhere;
    }
    let store = match &observed.store {
        StoreFacts::NotOwned => return Standing::Barred(not_owned(model)),
        StoreFacts::Corrupt(..) if model.keys.iter().any(|key| !key.is_brought()) => {
            return Standing::Barred(corrupt(model, "its header cannot be read"));
        }
        StoreFacts::Corrupt(..) | StoreFacts::NotLooked | StoreFacts::Absent => return Standing::New,
        StoreFacts::Found(store) => store,
    };
    let Some(sealed) = store.header.keys.get(&key.name) else {
        return Standing::New;
    };
    let section = &sealed.section;
    if section.source != Provenance::Brought {
        return Standing::Barred(taken(model, section));
    }
    let renew = section.inputs.as_ref() != Some(&brought_inputs(key, observed));
    Standing::Kept(Kept {
        current: section.current,
        previous: None,
        due: Due {
            copies: copies(model, key, store, section, observed),
            retire: retire(model, section),
            drop: drops(model, key, store, section, observed),
            verify: !is_checked(key, sealed, observed),
            renew,
            ..Due::default()
        },
    })
}

/// One stored copy that may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The seal.
    pub seal: String,
    /// The entry of the store.
    pub item: String,
    /// The KMS key that made it, as it is recorded.
    pub key_id: String,
}

/// The copies of a version that are undamaged and whose seal is in the spec: by priority, former ones last.
pub fn candidates(model: &Model, key: &Key, store: &Store, version: u32) -> Vec<Candidate> {
    let Some(record) = store
        .header
        .keys
        .get(&key.name)
        .and_then(|sealed| sealed.section.versions.get(&version))
    else {
        return Vec::new();
    };
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for seal in lacking(model, key) {
        let candidate = |item: String, copy: &CopyRecord| {
            store.intact(&item, copy).map(|_| Candidate {
                seal: seal.name.clone(),
                item: item.clone(),
                key_id: copy.key_id.clone(),
            })
        };
        if let Some(copy) = record.copies.get(&seal.name).filter(|copy| may_open(seal, copy)) {
            first.extend(candidate(item(&key.name, version, &seal.name), copy));
        }
        for (item, former) in &record.former {
            if former.seal == seal.name && may_open(seal, &former.copy) {
                last.extend(candidate(item.clone(), &former.copy));
            }
        }
    }
    first.append(&mut last);
    first
}

/// OCI decrypts by the key's OCID alone, and a seal of another cloud cannot open anything of this one.
fn may_open(seal: &Seal, copy: &CopyRecord) -> bool {
    copy.provider == seal.cloud.provider()
        && match &seal.cloud {
            Cloud::Aws(_) => true,
            Cloud::Oci(oci) => copy.key_id == oci.key.as_str(),
        }
}

/// Whether a delivered Secret knows a version by another check value: then somebody made a store of his own around
/// another key, which authenticates itself.
fn contradicted(key: &Key, section: &Section, observed: &Observed) -> bool {
    let marks = observed
        .relics
        .values()
        .filter_map(|facts| facts.delivered.marks.get(&key.name));
    let told = marks.flat_map(|mark| {
        let previous = mark.previous.as_ref().map(|(version, mark)| (*version, mark));
        [Some((mark.version, &mark.mark)), previous].into_iter().flatten()
    });
    told.filter(|(_, mark)| Mark::is_check_value(mark))
        .any(|(version, mark)| {
            let record = section.versions.get(&version);
            record.is_some_and(|record| record.check_value.as_ref() != Some(mark))
        })
}

/// Whether taking seals out of the spec left a version that nothing opens any more. Damaged copies open nothing.
fn unopenable(model: &Model, key: &Key, store: &Store, section: &Section) -> Option<Fault> {
    let lies = |number: u32, version: &Version| {
        let copies = version.copies.iter();
        let mut intact = copies
            .map(|(seal, copy)| (item(&key.name, number, seal), copy))
            .chain(
                version
                    .former
                    .iter()
                    .map(|(item, former)| (item.clone(), &former.copy)),
            );
        intact.any(|(item, copy)| store.intact(&item, copy).is_some())
    };
    let (number, version) = section.versions.iter().find(|(number, version)| {
        candidates(model, key, store, **number).is_empty() && lies(**number, version)
    })?;
    let seals: Vec<_> = version.copies.keys().map(String::as_str).collect();
    Some(Fault::denied(
        Reason::LastSealRemoved,
        format!(
            "version {number} of the key can only be opened with {} as it was, and spec.seals does not hold that any more; \
             nothing was changed: put the seal back, wait until status.keys[].wrappedUnder names another one, then take \
             it out",
            if seals.is_empty() {
                "a seal".to_owned()
            } else {
                format!("seal {}", seals.join(" or "))
            }
        ),
    ))
}

/// What the KMS last said a seal's key is: ARN or OCID, and the version of its material.
pub fn resolved<'o>(seal: &Seal, observed: &'o Observed) -> (Option<&'o str>, Option<&'o str>) {
    let configured = seal.cloud.configured_key();
    let status =
        observed.status.seals.iter().find(|status| {
            status.name == seal.name && status.configured_key_id.as_ref() == Some(&configured)
        });
    (
        status.and_then(|status| status.key_id.as_deref()),
        status.and_then(|status| status.key_version.as_deref()),
    )
}

/// Whether two names mean one KMS key (multi-Region keys: by their id).
pub fn same_key(one: &str, other: &str) -> bool {
    one == other
        || match (one.parse::<KeyArn>(), other.parse::<KeyArn>()) {
            (Ok(one), Ok(other)) => one.same_key(&other),
            _ => false,
        }
}

/// Whether a copy is what a new one would be.
fn up_to_date(seal: &Seal, copy: &CopyRecord, observed: &Observed) -> bool {
    let (key_id, key_version) = resolved(seal, observed);
    let configured = seal.cloud.configured_key();
    let same = match key_id {
        Some(key_id) => same_key(key_id, &copy.key_id),
        // Nobody may tell what an alias means now: the copy is as good as its name.
        None => copy.configured_key_id == configured,
    };
    let same_version = match (key_version, &copy.key_version) {
        (Some(now), Some(then)) => now == then,
        _ => true,
    };
    copy.provider == seal.cloud.provider() && same && same_version
}

fn copies(
    model: &Model,
    key: &Key,
    store: &Store,
    section: &Section,
    observed: &Observed,
) -> Vec<(u32, String)> {
    let versions = section
        .versions
        .iter()
        // Older states of a brought key are of no use to anybody: the user brought another.
        .filter(|(version, _)| !key.is_brought() || **version == section.current);
    versions
        .flat_map(|(version, record)| {
            let due = move |seal: &&Seal| {
                !record.copies.get(&seal.name).is_some_and(|copy| {
                    up_to_date(seal, copy, observed)
                        && store
                            .intact(&item(&key.name, *version, &seal.name), copy)
                            .is_some()
                })
            };
            wrapping(model, key)
                .filter(due)
                .map(move |seal| (*version, seal.name.clone()))
        })
        .collect()
}

fn retire(model: &Model, section: &Section) -> Vec<(u32, String)> {
    let gone = |seal: &&String| model.seal(seal).is_none();
    section
        .versions
        .iter()
        .flat_map(|(version, record)| {
            record
                .copies
                .keys()
                .filter(gone)
                .map(|seal| (*version, seal.clone()))
        })
        .collect()
}

/// When a former copy may go: after its retention, and a day after its successor was made and read for the first time.
fn drop_at(former: &super::Former, successor: Option<&CopyRecord>, observed: &Observed) -> jiff::Timestamp {
    let after = |at: jiff::Timestamp, wait| at.saturating_add(wait).unwrap_or(jiff::Timestamp::MAX);
    let retained = after(former.replaced, observed.old_copy_retention.max(READS_APART));
    successor.map_or(retained, |copy| retained.max(after(copy.made, READS_APART)))
}

/// Those whose time has come and that have a successor to read.
fn drops(
    model: &Model,
    key: &Key,
    store: &Store,
    section: &Section,
    observed: &Observed,
) -> Vec<(u32, String)> {
    section
        .versions
        .iter()
        .flat_map(|(version, record)| {
            let due = record.former.iter().filter(|(item, former)| {
                let by = successor(model, key, store, *version, item);
                let by = by.and_then(|by| record.copies.get(&by.seal));
                by.is_some() && drop_at(former, by, observed) <= observed.now
            });
            due.map(|(item, _)| (*version, item.clone()))
        })
        .collect()
}

/// Whether the first value of a trigger is to be written down, and whether a new version is due.
fn rotation(key: &Key, section: &Section, observed: &Observed) -> (bool, bool) {
    let trigger = &trigger(key, observed);
    if !matches!(key.origin, Origin::Generated { .. }) {
        return (false, false);
    }
    let first = trigger.is_some() && section.trigger.is_none();
    let pulled = trigger.is_some() && section.trigger.is_some() && *trigger != section.trigger;
    let late = next_rotation(key, section).is_some_and(|at| at <= observed.now);
    (first, pulled || late)
}

/// What makes a new version when it changes: the spec's word, or what the user brings of a ManagedKey's material.
pub fn trigger(key: &Key, observed: &Observed) -> Option<String> {
    match &key.origin {
        Origin::Generated { .. } if !key.brings.is_empty() => Some(brings_inputs(key, observed)),
        Origin::Generated { trigger, .. } => trigger.clone(),
        Origin::Imported { .. } | Origin::Brought | Origin::Initialized(_) => None,
    }
}

/// When the age of the version in use makes a new one due.
pub fn next_rotation(key: &Key, section: &Section) -> Option<jiff::Timestamp> {
    let Origin::Generated {
        after: Some(after), ..
    } = &key.origin
    else {
        return None;
    };
    let created = section.versions.get(&section.current)?.created;
    Some(created.saturating_add(*after).unwrap_or(jiff::Timestamp::MAX))
}

/// When something about a stored key becomes due by the clock alone.
pub fn next_due(key: &Key, section: &Section, observed: &Observed) -> Option<jiff::Timestamp> {
    let former = section.versions.values().flat_map(|version| {
        let of = |former: &super::Former| drop_at(former, version.copies.get(&former.seal), observed);
        version.former.values().map(of)
    });
    let due = former.chain(next_rotation(key, section));
    // What is late already waits for something else than time, and must not hide what comes next.
    due.filter(|at| *at > observed.now).min()
}

/// The copy that must open once more before a former one goes: that of its own seal, or of any other where that seal is
/// gone from the spec.
pub fn successor(model: &Model, key: &Key, store: &Store, version: u32, former: &str) -> Option<Candidate> {
    let record = store.header.keys.get(&key.name)?.section.versions.get(&version)?;
    let seal = &record.former.get(former)?.seal;
    let mut in_force = candidates(model, key, store, version)
        .into_iter()
        .filter(|candidate| candidate.item == item(&key.name, version, &candidate.seal));
    if model.seal(seal).is_some() {
        in_force.find(|candidate| candidate.seal == *seal)
    } else {
        in_force.next()
    }
}

/// Finds delivered Secrets of this very SealConfig that still hold the key, with check values to compare it to.
fn rebuild(model: &Model, key: &Key, observed: &Observed) -> Option<Rebuild> {
    let seen = seen(key, observed);
    let holders = || {
        model.targets.iter().filter_map(|target| {
            let facts = observed.secrets.get(&target.secret)?;
            let mark = facts.delivered.marks.get(&key.name)?;
            let ours = facts.owner_uid.as_ref() == Some(&model.id.uid) && !facts.deleting;
            // An older state than was seen elsewhere is no base for anything.
            let sound = ours && mark.version >= seen.version && Mark::is_check_value(&mark.mark);
            sound.then_some((target, mark))
        })
    };
    let find = |target: &Target, wanted: KeyVersion, number: u32, mark: &str| {
        target.entries.iter().find_map(|entry| match &entry.content {
            EntryContent::Key {
                key: name,
                encoding,
                version,
            } if *name == key.name && *version == wanted => Some(Delivered {
                secret: target.secret.clone(),
                entry: entry.name.clone(),
                encoding: *encoding,
                version: number,
                mark: mark.to_owned(),
            }),
            _ => None,
        })
    };
    let current =
        holders().find_map(|(target, mark)| find(target, KeyVersion::Current, mark.version, &mark.mark))?;
    // Another Secret than that of the version in use may be the one that holds the version before.
    let previous = holders()
        .filter(|(_, mark)| mark.version == current.version && mark.mark == current.mark)
        .find_map(|(target, mark)| {
            let (version, value) = mark.previous.as_ref()?;
            find(target, KeyVersion::Previous, *version, value)
        });
    Some(Rebuild { current, previous })
}

fn taken(model: &Model, section: &Section) -> Fault {
    if let Some(managed) = &section.managed {
        return Fault::invalid_spec(format!(
            "the wrapped store {} holds material of type {} from an object of this name before; give this one another name",
            secret_name(&model.id),
            managed.type_.as_str()
        ));
    }
    Fault::invalid_spec(format!(
        "the wrapped store {} already holds a key of this name from {}; give this one another name",
        secret_name(&model.id),
        section.source.field()
    ))
}

fn not_owned(model: &Model) -> Fault {
    let name = secret_name(&model.id);
    Fault::denied(
        Reason::StoreNotOwned,
        format!(
            "Secret {name} exists and is not of type {}, so it is not touched; rename or delete it, or give the {} another \
             name",
            super::SECRET_TYPE,
            model.id.kind
        ),
    )
}

fn missing(model: &Model) -> Fault {
    let name = secret_name(&model.id);
    Fault::denied(
        Reason::StoreMissing,
        format!(
            "the key was made and delivered before, but Secret {name} does not hold it, and no delivered Secret holds its \
             bytes as an entry; no second key is made over the first: restore that Secret from a backup (or give the key \
             another name, if its data is gone too)"
        ),
    )
}

fn corrupt(model: &Model, what: &str) -> Fault {
    let name = secret_name(&model.id);
    Fault::denied(
        Reason::StoreCorrupt,
        format!(
            "{what} in Secret {name}; what was delivered is untouched: restore the Secret from a backup, and find out who \
             changed it"
        ),
    )
}

/// A section that does not fit its key.
pub fn forged(model: &Model) -> Fault {
    corrupt(
        model,
        "what the header says was not written by the operator, for its authentication does not fit the key,",
    )
}

fn rolled_back(model: &Model, store: &Store, seen: Seen) -> Fault {
    let (kind, name, counter) = (
        model.id.kind.to_ascii_lowercase(),
        &model.id.name,
        store.header.counter,
    );
    Fault::denied(
        Reason::StoreRolledBack,
        format!(
            "Secret {} is older than what was delivered (it has seen version {} of the key, and the store does not hold that \
             state); restore the newer one, or accept this one with: kubectl annotate {kind} {name} \
             autounseal.dev/accept-store={counter} (and take that away again afterwards, for it holds for every store of this \
             counter)",
            secret_name(&model.id),
            seen.version
        ),
    )
}
