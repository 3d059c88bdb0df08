//! The decisions about a wrapped store under random histories: effects are played, decisions are the real ones.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Class, CopyRecord, Edit, NewCopy, Provenance, Revision, Sealed, Section, Standing, Store, StoreFacts,
    Version,
    edit::next_header,
    item, item_digest,
    proof::place,
    read,
    standing::{candidates, seen, standing, successor, wrapping},
};
use crate::{
    api::{Reason, SealConfig, SealConfigStatus},
    seal::{
        Ciphertext, Fault, KeyBytes,
        check_value::{Binding, check_value},
        checks::check,
        digest::{brought_inputs, seal_inputs, tend_inputs},
        endpoint::EndpointPolicy,
        model::{Model, Origin, parse},
        observed::{Delivered, Failure, Mark, Memory, NamespaceFacts, Observed, SecretFacts},
        outcome::{KeyOutcome, Outcomes, StoredState, TargetOutcome},
        plan::{Work, plan},
        status::{prune, status},
    },
};

const PLACE: [&str; 4] = ["SealConfig", "team", "app", "root"];

/// What happens between two looks of the operator.
#[derive(Clone, Debug)]
enum Event {
    Add(usize),
    Remove(usize),
    Disable(usize),
    Enable(usize),
    /// The seal names another KMS key.
    Rekey(usize),
    /// The trigger changes.
    Rotate,
    /// The KMS of a seal is down.
    Fail(usize),
    /// It is back.
    Restore(usize),
    /// Somebody cuts a copy off.
    Damage(usize),
    Restart,
    /// The operator dies right after the next write of the store.
    Crash,
    LoseStatus,
    DeleteSecret,
    Hours(u16),
}

#[derive(Clone, Debug)]
struct SealSpec {
    key: usize,
    is_present: bool,
    disabled: bool,
}

/// The cluster, the KMSes and the operator's memory.
struct World {
    seals: Vec<SealSpec>,
    trigger: usize,
    down: BTreeSet<usize>,
    store: Option<BTreeMap<String, Vec<u8>>>,
    writes: u64,
    secret: Option<(SecretFacts, Vec<u8>)>,
    status: SealConfigStatus,
    memory: Memory,
    now: Timestamp,
    crash: bool,
    retention: SignedDuration,
    /// `autounseal.dev/accept-store`.
    accept: Option<u64>,
    /// Every version that was ever made.
    made: BTreeMap<u32, Vec<u8>>,
}

fn arn(seal: usize, key: usize) -> String {
    format!("arn:aws:kms:eu-west-1:123456789012:key/0000000{seal}-12ab-34cd-56ef-{key:012}")
}

fn index(seal: &str) -> usize {
    seal[1..].parse().unwrap()
}

fn value_of(bytes: &[u8]) -> Option<String> {
    let [kind, namespace, name, key] = PLACE;
    let place = Binding {
        kind,
        namespace,
        name,
        key,
    };
    check_value(&KeyBytes::new(bytes.to_vec()), &place)
}

impl World {
    fn new() -> Self {
        let seal = |is_present| SealSpec {
            key: 0,
            is_present,
            disabled: false,
        };
        Self {
            seals: vec![seal(true), seal(true), seal(false), seal(false)],
            trigger: 0,
            down: BTreeSet::new(),
            store: None,
            writes: 0,
            secret: None,
            status: SealConfigStatus::default(),
            memory: Memory::default(),
            now: Timestamp::from_second(1_800_000_000).unwrap(),
            crash: false,
            retention: SignedDuration::from_hours(168),
            accept: None,
            made: BTreeMap::new(),
        }
    }

    fn model(&self) -> Model {
        let present = self.seals.iter().enumerate().filter(|(_, seal)| seal.is_present);
        let seals: Vec<Value> = present
            .map(|(at, seal)| {
                json!({"name": format!("s{at}"), "priority": at, "disabled": seal.disabled, "awskms": {
                    "kmsKeyID": arn(at, seal.key), "credentials": {"secretRef": {"name": "aws"}}}})
            })
            .collect();
        let accept = self
            .accept
            .map(|counter| json!({"autounseal.dev/accept-store": counter.to_string()}));
        let config: SealConfig = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "app", "namespace": "team", "uid": "uid-1", "generation": 1,
                "annotations": accept},
            "spec": {
                "seals": seals,
                "keys": [{"name": "root", "generate": {"bytes": 32, "rotation": {"trigger": format!("t{}", self.trigger)}}}],
                "targets": [{"name": "t", "secret": {"name": "app", "data": [
                    {"name": "k", "key": {"name": "root"}},
                    {"name": "p", "key": {"name": "root", "version": "previous"}}]}}],
            },
        }))
        .unwrap();
        parse(&config).unwrap()
    }

    fn facts(&self) -> StoreFacts {
        let revision = Revision {
            uid: "store".into(),
            resource_version: self.writes.to_string(),
        };
        self.store
            .clone()
            .map_or(StoreFacts::Absent, |data| read(revision, data))
    }

    fn observed(&mut self) -> Observed {
        let secrets: BTreeMap<String, SecretFacts> = self
            .secret
            .iter()
            .map(|(facts, _)| ("app".to_owned(), facts.clone()))
            .collect();
        Observed {
            credentials: BTreeMap::new(),
            now: self.now,
            jitter: 0.5,
            namespace: NamespaceFacts::default(),
            endpoints: EndpointPolicy::default(),
            sources: BTreeMap::new(),
            relics: secrets.clone(),
            secrets,
            plain: BTreeMap::new(),
            store: self.facts(),
            old_copy_retention: self.retention,
            read_secrets: BTreeSet::new(),
            living: ["uid-1".to_owned()].into(),
            pods: Vec::new(),
            cluster_id: None,
            status: self.status.clone(),
            memory: std::mem::take(&mut self.memory),
        }
    }

    /// Wraps, if the KMS is up: the bytes in the clear, after the key and the version that they are bound to.
    fn wrap(&self, seal: &str, version: u32, bytes: &[u8]) -> Option<NewCopy> {
        let at = index(seal);
        if self.down.contains(&at) {
            return None;
        }
        let key_id = arn(at, self.seals[at].key);
        let mut ciphertext = format!("{key_id} {version} ").into_bytes();
        ciphertext.extend_from_slice(bytes);
        let ciphertext = Ciphertext::new(ciphertext);
        let record = CopyRecord {
            provider: "awskms".into(),
            key_id: key_id.clone(),
            key_version: None,
            configured_key_id: key_id,
            endpoint: None,
            made: self.now,
            digest: item_digest(&ciphertext),
        };
        Some(NewCopy {
            seal: seal.to_owned(),
            ciphertext,
            record,
        })
    }

    fn opens(&self, seal: &str, key_id: &str, version: u32, ciphertext: &Ciphertext) -> Option<Vec<u8>> {
        let bound = format!("{key_id} {version} ");
        let up = !self.down.contains(&index(seal));
        up.then(|| ciphertext.bytes().strip_prefix(bound.as_bytes()))
            .flatten()
            .map(<[u8]>::to_vec)
    }

    fn open(&self, model: &Model, store: &Store, version: u32) -> Option<Vec<u8>> {
        candidates(model, &model.keys[0], store, version)
            .iter()
            .find_map(|candidate| {
                let ciphertext = store.items.get(&candidate.item)?;
                self.opens(&candidate.seal, &candidate.key_id, version, ciphertext)
            })
    }

    /// The versions for which the store holds an undamaged copy under a seal of the spec.
    fn openable(&self) -> BTreeSet<u32> {
        let (model, facts) = (self.model(), self.facts());
        let StoreFacts::Found(store) = &facts else {
            return BTreeSet::new();
        };
        let versions = store.header.keys["root"].section.versions.keys().copied();
        versions
            .filter(|version| !candidates(&model, &model.keys[0], store, *version).is_empty())
            .collect()
    }

    fn section(&self) -> Option<Section> {
        match self.facts() {
            StoreFacts::Found(store) => Some(store.header.keys["root"].section.clone()),
            _ => None,
        }
    }

    fn random(&mut self) -> Vec<u8> {
        vec![u8::try_from(self.made.len() + 1).unwrap(); 32]
    }

    fn version(&self, bytes: &[u8]) -> Version {
        Version {
            created: self.now,
            check_value: value_of(bytes),
            copies: BTreeMap::new(),
            former: BTreeMap::new(),
            exposed: BTreeSet::new(),
            init: None,
        }
    }

    /// Wraps under all or not at all, as the effects do.
    fn add_version(
        &self,
        edit: &mut Edit,
        version: u32,
        bytes: &[u8],
        seals: &[String],
        failed: &mut BTreeSet<String>,
    ) {
        let mut copies = Vec::new();
        for seal in seals {
            match self.wrap(seal, version, bytes) {
                Some(copy) => copies.push(copy),
                None => {
                    failed.insert(seal.clone());
                }
            }
        }
        if copies.len() == seals.len() {
            edit.add_version(version, self.version(bytes), copies);
        }
    }

    /// Plays what is done about the key. `None` = nothing opens it now.
    fn tend(
        &mut self,
        model: &Model,
        observed: &Observed,
        work: &Work,
        failed: &mut BTreeSet<String>,
    ) -> Option<(Edit, Vec<u8>)> {
        let key = &model.keys[0];
        let Origin::Generated { trigger, .. } = &key.origin else {
            unreachable!("the key is generated")
        };
        let due = match work {
            Work::Make(seals) => {
                assert!(self.made.is_empty(), "a second key over the first");
                let bytes = self.random();
                let section = Section {
                    source: Provenance::Generated,
                    counter: 0,
                    current: 1,
                    next: 2,
                    trigger: trigger.clone(),
                    inputs: None,
                    versions: BTreeMap::new(),
                    managed: None,
                };
                let mut edit = Edit::new("root", section);
                self.add_version(&mut edit, 1, &bytes, seals, failed);
                return Some((edit, bytes));
            }
            Work::Rebuild(from, seals) => {
                let StoreFacts::Found(store) = &observed.store else {
                    unreachable!("nobody takes the store away")
                };
                let (_, bytes) = self.secret.as_ref().unwrap();
                let mut edit = Edit::new("root", store.header.keys["root"].section.clone());
                let copies = seals.iter().filter_map(|seal| {
                    let copy = self.wrap(seal, from.current.version, bytes);
                    if copy.is_none() {
                        failed.insert(seal.clone());
                    }
                    copy
                });
                edit.add_version(from.current.version, self.version(bytes), copies.collect());
                return Some((edit, bytes.clone()));
            }
            Work::Mend(due) => due,
        };
        let StoreFacts::Found(store) = &observed.store else {
            unreachable!("there is one to mend")
        };
        let sealed = &store.header.keys["root"];
        let mut edit = Edit::new("root", sealed.section.clone());
        let mut bytes = self.open(model, store, sealed.section.current)?;
        let mac = sealed.section.mac(&KeyBytes::new(bytes.clone()), PLACE);
        assert_eq!(mac, sealed.mac, "what we write authenticates itself");
        if due.accept {
            edit.accept(seen(key, observed));
        }
        for (version, seal) in &due.copies {
            let opened = self.open(model, store, *version);
            let copy = opened.and_then(|bytes| self.wrap(seal, *version, &bytes));
            match copy {
                Some(copy) => edit.add_copy(store, *version, copy, self.now),
                None => {
                    failed.insert(seal.clone());
                }
            }
        }
        for (version, seal) in &due.retire {
            edit.retire(store, *version, seal, self.now);
        }
        for (version, former) in &due.drop {
            let by = successor(model, key, store, *version, former).unwrap();
            let ciphertext = &store.items[&by.item];
            match self.opens(&by.seal, &by.key_id, *version, ciphertext) {
                Some(_) => edit.drop_former(*version, former),
                None => {
                    failed.insert(by.seal);
                }
            }
        }
        if due.trigger {
            edit.note_trigger(trigger.clone());
        }
        if due.rotate {
            let seals: Vec<String> = wrapping(model, key).map(|seal| seal.name.clone()).collect();
            let (new, version) = (self.random(), edit.section.next);
            self.add_version(&mut edit, version, &new, &seals, failed);
            if edit.section.current == version {
                edit.note_trigger(trigger.clone());
                bytes = new;
            }
        }
        Some((edit, bytes))
    }

    fn save(&mut self, observed: &mut Observed, mut edit: Edit, bytes: &[u8], seen: u64) {
        let before = self.facts();
        let mut header = next_header(&observed.store, seen);
        edit.section.counter = header.counter;
        let mac = edit.section.mac(&KeyBytes::new(bytes.to_vec()), PLACE);
        let section = edit.section.clone();
        header.keys.insert("root".into(), Sealed { section, mac });
        let data = self.store.get_or_insert_default();
        edit.remove.retain(|item| !edit.put.contains_key(item));
        for item in &edit.remove {
            data.remove(item);
        }
        for (item, bytes) in &edit.put {
            data.insert(item.clone(), bytes.bytes().to_vec());
        }
        data.insert("header".into(), serde_json::to_vec(&header).unwrap());
        self.writes += 1;
        self.check_write(&before, &edit.section, bytes);
        observed.store = self.facts();
    }

    /// What no write may do.
    fn check_write(&mut self, found: &StoreFacts, after: &Section, current: &[u8]) {
        let known = self.made.entry(after.current).or_insert_with(|| current.to_vec());
        assert_eq!(known, current, "version {} has two values", after.current);
        let StoreFacts::Found(store) = found else {
            return;
        };
        let before = &store.header.keys["root"].section;
        assert!(before.current <= after.current, "the version in use went back");
        assert!(before.next <= after.next && after.current < after.next);
        for (number, version) in &before.versions {
            let now = &after.versions[number];
            assert_eq!(now.check_value, version.check_value);
            assert_eq!(now.created, version.created);
            assert!(now.exposed.is_superset(&version.exposed));
            for (item, former) in &version.former {
                let age = self.now.duration_since(former.replaced);
                assert!(
                    now.former.contains_key(item)
                        || age >= self.retention.max(SignedDuration::from_hours(24)),
                    "a former copy went after {age}"
                );
            }
            for (seal, copy) in &version.copies {
                // What was damaged cannot be kept.
                let kept = now.copies.get(seal) == Some(copy)
                    || now.former.values().any(|former| former.copy == *copy)
                    || store.intact(&item("root", *number, seal), copy).is_none();
                assert!(kept, "the copy of version {number} under {seal} went at once");
            }
        }
    }

    /// One reconcile. Says whether there is more to do.
    fn look(&mut self) -> bool {
        let model = self.model();
        let mut observed = self.observed();
        let before = self.openable();
        let findings = check(&model, &observed);
        prune(&mut observed.memory, &model, &findings);
        let first = plan(&model, &observed, &findings);
        let mut outcomes = Outcomes::default();
        for tend in &first.tends {
            let mut failed = BTreeSet::new();
            let fault = || Fault::transient(Reason::KmsUnavailable, "down");
            let at = self.now;
            let retry_at = at + SignedDuration::from_secs(60);
            let failure = |inputs: String| Failure {
                inputs,
                fault: fault(),
                times: 1,
                at,
                retry_at,
            };
            match self.tend(&model, &observed, &tend.work, &mut failed) {
                None => {
                    let inputs = tend_inputs(&model, &model.keys[0], &findings.standings["root"], &observed);
                    observed.memory.stored.insert("root".into(), failure(inputs));
                }
                Some((edit, bytes)) => {
                    if edit.changed {
                        let seen = seen(&model.keys[0], &observed).counter;
                        self.save(&mut observed, edit, &bytes, seen);
                        if std::mem::take(&mut self.crash) {
                            self.memory = Memory::default();
                            assert!(self.openable().is_superset(&before), "a version was lost");
                            return true;
                        }
                    }
                    Self::tell(&observed, &mut outcomes);
                }
            }
            for seal in failed {
                let inputs = seal_inputs(model.seal(&seal).unwrap());
                observed
                    .memory
                    .wraps
                    .insert(("root".into(), seal), failure(inputs));
            }
        }
        assert!(self.openable().is_superset(&before), "a version was lost");
        let findings = check(&model, &observed);
        let next = plan(&model, &observed, &findings);
        for delivery in &next.deliveries {
            self.deliver(
                &model,
                &mut observed,
                &delivery.inputs,
                &findings.standings["root"],
                &mut outcomes,
            );
        }
        self.status = status(&model, &observed, &findings, &outcomes);
        observed.status = self.status.clone();
        let again = !plan(&model, &observed, &check(&model, &observed))
            .tends
            .is_empty();
        self.memory = observed.memory;
        again
    }

    fn tell(observed: &Observed, outcomes: &mut Outcomes) {
        let StoreFacts::Found(store) = &observed.store else {
            return;
        };
        let sealed = &store.header.keys["root"];
        let state = StoredState {
            counter: sealed.section.counter,
            digest: sealed.digest(),
        };
        let outcome = KeyOutcome {
            stored: Some(state),
            ..KeyOutcome::default()
        };
        outcomes.keys.insert("root".into(), outcome);
    }

    fn deliver(
        &mut self,
        model: &Model,
        observed: &mut Observed,
        inputs: &str,
        standing: &Standing,
        outcomes: &mut Outcomes,
    ) {
        let (Standing::Kept(kept), StoreFacts::Found(store)) = (standing, &observed.store) else {
            return;
        };
        let Some(bytes) = self.open(model, store, kept.current) else {
            return;
        };
        let previous = kept
            .previous
            .map(|version| (version, self.open(model, store, version)));
        let previous = match previous {
            Some((_, None)) => return,
            Some((version, Some(bytes))) => Some((version, value_of(&bytes).unwrap())),
            None => None,
        };
        assert_eq!(self.made[&kept.current], bytes, "another key than was made");
        let mark = Mark {
            version: kept.current,
            mark: value_of(&bytes).unwrap(),
            previous,
            stored: store.header.keys["root"].section.counter,
        };
        self.writes += 1;
        let facts = SecretFacts {
            uid: "secret".into(),
            resource_version: self.writes.to_string(),
            owner_uid: Some("uid-1".into()),
            owner_name: Some("app".into()),
            delivered: Delivered {
                count: 1,
                marks: [("root".to_owned(), mark)].into(),
                ..Delivered::default()
            },
            ..SecretFacts::default()
        };
        let done = TargetOutcome::Delivered {
            resource_version: facts.resource_version.clone(),
            inputs: inputs.to_owned(),
            content_changed: self.now,
            deliveries: 1,
        };
        Self::tell(observed, outcomes);
        outcomes.targets.insert("t".into(), done);
        observed.secrets.insert("app".into(), facts.clone());
        observed.relics.insert("app".into(), facts.clone());
        self.secret = Some((facts, bytes));
    }

    /// Looks every two minutes, so often.
    fn rest(&mut self, looks: usize) -> bool {
        let mut more = true;
        for _ in 0..looks {
            self.now += SignedDuration::from_mins(2);
            more = self.look();
        }
        more
    }

    fn standing(&mut self) -> Standing {
        let (model, observed) = (self.model(), self.observed());
        let standing = check(&model, &observed).standings["root"].clone();
        self.memory = observed.memory;
        standing
    }

    fn formers(&self) -> usize {
        let section = self.section().unwrap();
        section
            .versions
            .values()
            .map(|version| version.former.len())
            .sum()
    }

    fn play(&mut self, event: &Event) {
        match *event {
            Event::Add(at) => self.seals[at].is_present = true,
            Event::Remove(at) => {
                if self.seals.iter().filter(|seal| seal.is_present).count() > 1 {
                    self.seals[at].is_present = false;
                }
            }
            Event::Disable(at) => self.seals[at].disabled = true,
            Event::Enable(at) => self.seals[at].disabled = false,
            Event::Rekey(at) => self.seals[at].key += 1,
            Event::Rotate => self.trigger += 1,
            Event::Fail(at) => {
                self.down.insert(at);
            }
            Event::Restore(at) => {
                self.down.remove(&at);
            }
            Event::Damage(at) => {
                // Never the last copy: what is lost then is lost by him who damages.
                let whole = self.openable();
                let Some(current) = self.section().map(|section| section.current) else {
                    return;
                };
                let before = self.store.clone();
                if let Some(bytes) = self
                    .store
                    .as_mut()
                    .and_then(|data| data.get_mut(&item("root", current, &format!("s{at}"))))
                {
                    bytes.truncate(bytes.len() / 2);
                }
                if self.openable() != whole || !whole.contains(&current) {
                    self.store = before;
                }
            }
            Event::Restart => self.memory = Memory::default(),
            Event::Crash => self.crash = true,
            Event::LoseStatus => {
                self.memory = Memory::default();
                self.status = SealConfigStatus::default();
            }
            Event::DeleteSecret => self.secret = None,
            Event::Hours(hours) => self.now += SignedDuration::from_hours(hours.into()),
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    let seal = 0..4_usize;
    prop_oneof![
        2 => seal.clone().prop_map(Event::Add),
        2 => seal.clone().prop_map(Event::Remove),
        1 => seal.clone().prop_map(Event::Disable),
        1 => seal.clone().prop_map(Event::Enable),
        1 => seal.clone().prop_map(Event::Rekey),
        3 => Just(Event::Rotate),
        2 => seal.clone().prop_map(Event::Fail),
        2 => seal.clone().prop_map(Event::Restore),
        1 => seal.prop_map(Event::Damage),
        1 => Just(Event::Restart),
        1 => Just(Event::Crash),
        1 => Just(Event::LoseStatus),
        1 => Just(Event::DeleteSecret),
        2 => (1..400_u16).prop_map(Event::Hours),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_version_that_a_remaining_seal_opens_is_ever_lost(events in prop::collection::vec(event(), 1..30)) {
        let mut world = World::new();
        world.look();
        for event in &events {
            world.play(event);
            world.now += SignedDuration::from_mins(2);
            world.look();
        }
        // All is well again: everything that is due comes to its end, and then there is rest.
        world.down.clear();
        world.crash = false;
        prop_assert!(!world.rest(12), "there is always something to do");
        let model = world.model();
        let observed = world.observed();
        let enabled: Vec<_> = wrapping(&model, &model.keys[0]).map(|seal| seal.name.clone()).collect();
        match &check(&model, &observed).standings["root"] {
            Standing::New => prop_assert!(world.made.is_empty() && enabled.is_empty()),
            Standing::Barred(fault) => prop_assert_eq!(fault.reason, Reason::LastSealRemoved),
            Standing::Kept(kept) => {
                let section = world.section().unwrap();
                prop_assert_eq!(kept.current, *world.made.keys().max().unwrap());
                prop_assert_eq!(world.made.len(), section.versions.len());
                for version in section.versions.values() {
                    for seal in &enabled {
                        prop_assert!(version.copies.contains_key(seal), "no copy under {}", seal);
                    }
                }
                if !enabled.is_empty() {
                    let trigger = format!("t{}", world.trigger);
                    prop_assert_eq!(section.trigger.as_ref(), Some(&trigger));
                }
                let delivered = world.secret.as_ref().unwrap();
                prop_assert_eq!(&delivered.1, &world.made[&kept.current]);
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn a_former_copy_goes_after_its_retention_by_a_second_read_that_went_well() {
    for (retention, hours) in [(168, 168), (0, 24), (30, 30)] {
        let mut world = World::new();
        world.retention = SignedDuration::from_hours(retention);
        world.look();
        world.play(&Event::Rekey(0));
        world.rest(2);
        assert_eq!(world.formers(), 1);
        let started = world.now;
        world.now = started + SignedDuration::from_mins(hours * 60 - 10);
        world.rest(2);
        assert_eq!(world.formers(), 1, "{retention} h: not before its time");
        // The second read fails: it stays, is not tried without end, and goes once the KMS is back.
        world.play(&Event::Fail(0));
        world.now = started + SignedDuration::from_mins(hours * 60 + 10);
        assert!(
            !world.rest(3),
            "{retention} h: a failed read is not repeated at once"
        );
        assert_eq!(world.formers(), 1, "{retention} h: not without a second read");
        world.play(&Event::Restore(0));
        world.rest(2);
        assert_eq!(world.formers(), 0, "{retention} h");
    }
}

#[test]
fn a_former_copy_stays_while_its_seal_has_no_other() {
    let mut world = World::new();
    world.look();
    for event in [Event::Disable(1), Event::Remove(1)] {
        world.play(&event);
        world.rest(1);
    }
    assert_eq!(world.formers(), 1);
    // Back, but disabled: nothing new is wrapped under it, so this is its only copy.
    world.play(&Event::Add(1));
    world.play(&Event::Hours(1000));
    assert!(!world.rest(3), "there is nothing to do about it");
    assert_eq!(world.formers(), 1);
    world.play(&Event::Enable(1));
    world.rest(3);
    assert_eq!(world.formers(), 1, "its successor is a few minutes old");
    world.play(&Event::Hours(24));
    world.rest(2);
    assert_eq!(world.formers(), 0, "its successor was read twice, a day apart");
}

#[test]
fn consent_to_an_older_store_outlives_a_crash_and_no_number_is_used_again() {
    let mut world = World::new();
    world.look();
    world.rest(1);
    let first = world.store.clone();
    world.play(&Event::Rotate);
    world.rest(3);
    assert_eq!(world.made.len(), 2);
    world.store = first;
    world.memory = Memory::default();
    let barred = |standing: &Standing| match standing {
        Standing::Barred(fault) => Some(fault.reason),
        _ => None,
    };
    assert_eq!(barred(&world.standing()), Some(Reason::StoreRolledBack));
    world.rest(2);
    assert_eq!(world.section().unwrap().current, 1);
    world.accept = Some(77);
    assert_eq!(barred(&world.standing()), Some(Reason::StoreRolledBack));
    let StoreFacts::Found(store) = world.facts() else {
        panic!("it is there")
    };
    world.accept = Some(store.header.counter);
    world.crash = true;
    world.rest(1);
    assert!(!world.crash, "it was written");
    assert_eq!(
        barred(&world.standing()),
        None,
        "the store is above what was seen"
    );
    world.rest(4);
    let section = world.section().unwrap();
    let versions: Vec<u32> = section.versions.keys().copied().collect();
    assert_eq!((section.current, versions), (3, vec![1, 3]));
}

#[test]
fn a_store_that_is_gone_is_made_again_from_what_was_delivered_or_not_at_all() {
    let mut world = World::new();
    world.look();
    world.rest(3);
    let corrupt = || StoreFacts::Corrupt(Revision::default(), BTreeSet::new());
    let mut standing = |edit: &dyn Fn(&mut Observed)| {
        let (model, mut observed) = (world.model(), world.observed());
        edit(&mut observed);
        check(&model, &observed).standings["root"].clone()
    };
    for store in [StoreFacts::Absent, corrupt()] {
        let Standing::Lost(from) = standing(&|observed| observed.store = store.clone()) else {
            panic!("{store:?}: the delivered Secret holds the key")
        };
        let current = &from.current;
        assert_eq!(
            (current.secret.as_str(), current.entry.as_str(), current.version),
            ("app", "k", 1)
        );
        assert_eq!(Some(&current.mark), value_of(&[1; 32]).as_ref());
    }
    let mut barred = |store: &StoreFacts, edit: &dyn Fn(&mut Observed)| match standing(&|observed| {
        observed.store = store.clone();
        edit(observed);
    }) {
        Standing::Barred(fault) => fault.reason,
        other => panic!("{other:?}"),
    };
    let secret = |observed: &mut Observed, edit: &dyn Fn(&mut SecretFacts)| {
        edit(observed.secrets.get_mut("app").unwrap());
    };
    // Nowhere, in somebody else's Secret, in one that goes, or in an older version than was seen elsewhere.
    let edits: [&dyn Fn(&mut Observed); 5] = [
        &|observed| observed.secrets.clear(),
        &|observed| secret(observed, &|facts| facts.owner_uid = Some("uid-2".into())),
        &|observed| secret(observed, &|facts| facts.deleting = true),
        &|observed| observed.status.keys[0].version = 2,
        &|observed| {
            secret(observed, &|facts| {
                facts.delivered.marks.get_mut("root").unwrap().mark = Mark::of_inputs("v1");
            });
        },
    ];
    for edit in edits {
        assert_eq!(barred(&StoreFacts::Absent, edit), Reason::StoreMissing);
        assert_eq!(barred(&corrupt(), edit), Reason::StoreCorrupt);
    }
    // Nothing is concluded from what is another's or was not looked at.
    let nothing: &dyn Fn(&mut Observed) = &|_| {};
    assert_eq!(barred(&StoreFacts::NotOwned, nothing), Reason::StoreNotOwned);
    assert_eq!(barred(&StoreFacts::NotLooked, nothing), Reason::Pending);
}

#[test]
fn the_numbers_of_copies_are_told_without_a_header() {
    let entries = [
        "key.root.v2.aws",
        "key.root.v11.oci.0a1b2c3d",
        "key.root2.v40.aws",
        "header",
    ];
    let entries = entries.map(ToOwned::to_owned);
    assert_eq!(super::highest_version("root", &entries), 11);
    assert_eq!(super::highest_version("other", &entries), 0);
    let data = entries.map(|entry| (entry, b"x".to_vec()));
    let found = read(Revision::default(), data.into());
    let StoreFacts::Corrupt(_, left) = found else {
        panic!("such a header cannot be read")
    };
    assert_eq!(left.len(), 3);
}

#[test]
fn a_share_is_bound_as_a_share_and_a_key_as_a_key() {
    let config: SealConfig = serde_json::from_value(json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "app", "namespace": "team"},
        "spec": {
            "seals": [{"name": "s0", "awskms": {"kmsKeyID": arn(0, 0)}}],
            "keys": [
                {"name": "root", "generate": {}},
                {"name": "share", "purpose": "unseal-share", "import": {"secretKeyRef": {"name": "s", "key": "k"}}},
            ],
        },
    }))
    .unwrap();
    let model = parse(&config).unwrap();
    let classes: Vec<_> = model
        .keys
        .iter()
        .map(|key| place("domain", &model, key, 1).class)
        .collect();
    assert_eq!(classes, [Class::Key, Class::UnsealShare]);
}

/// A key that is brought under the first of two seals as `inline`, and under both if `both`.
fn bringing(inline: &str, both: bool, second: &Value) -> Model {
    let seal = |at: usize| {
        json!({"name": format!("s{at}"), "awskms": {
            "kmsKeyID": arn(at, 0), "credentials": {"secretRef": {"name": "aws"}}}})
    };
    let mut seals = [seal(0), seal(1)];
    for (field, value) in second.as_object().into_iter().flatten() {
        seals[1][field] = value.clone();
    }
    let copy = |at: usize| json!({"seal": format!("s{at}"), "format": "kms", "inline": inline});
    let copies: Vec<Value> = (0..if both { 2 } else { 1 }).map(copy).collect();
    let config: SealConfig = serde_json::from_value(json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "app", "namespace": "team", "uid": "uid-1"},
        "spec": {"seals": seals, "keys": [{"name": "root", "wrapped": copies}]},
    }))
    .unwrap();
    parse(&config).unwrap()
}

#[test]
fn what_is_added_to_a_brought_key_follows_what_is_brought() {
    let mut world = World::new();
    let as_it_was = json!({});
    let model = bringing("Zmlyc3Q=", false, &as_it_was);
    let stands = |world: &mut World, model: &Model| standing(model, &model.keys[0], &world.observed());
    assert_eq!(stands(&mut world, &model), Standing::New);
    assert_eq!(
        stands(&mut world, &bringing("Zmlyc3Q=", true, &as_it_was)),
        Standing::Elsewhere
    );

    let copy = world.wrap("s1", 1, b"key").unwrap();
    let (name, bytes) = (item("root", 1, "s1"), copy.ciphertext.bytes().to_vec());
    let mut version = world.version(b"key");
    version.copies.insert("s1".into(), copy.record);
    let section = Section {
        source: Provenance::Brought,
        counter: 1,
        current: 1,
        next: 2,
        trigger: None,
        inputs: Some(brought_inputs(&model.keys[0], &world.observed())),
        versions: [(1, version)].into(),
        managed: None,
    };
    let stored = |section: &Section, bytes: &[u8]| {
        let mut header = next_header(&StoreFacts::Absent, 0);
        let section = section.clone();
        header.keys.insert("root".into(), Sealed { section, mac: None });
        let header = serde_json::to_vec(&header).unwrap();
        Some(BTreeMap::from([
            (super::HEADER.to_owned(), header),
            (name.clone(), bytes.to_vec()),
        ]))
    };
    let due = |world: &mut World, model: &Model| match stands(world, model) {
        Standing::Kept(kept) => kept.due,
        other => panic!("{other:?}"),
    };
    let again = vec![(1, "s1".to_owned())];
    world.store = stored(&section, &bytes);
    // It was never looked at, and nothing else is to be done.
    let first = due(&mut world, &model);
    assert!(
        first.verify && !first.renew && first.copies.is_empty(),
        "{first:?}"
    );
    assert!(due(&mut world, &bringing("c2Vjb25k", false, &as_it_was)).renew);
    let moved = json!({"awskms": {"kmsKeyID": arn(1, 1), "credentials": {"secretRef": {"name": "aws"}}}});
    assert_eq!(
        due(&mut world, &bringing("Zmlyc3Q=", false, &moved)).copies,
        again
    );
    let out = json!({"disabled": true, "awskms": moved["awskms"]});
    assert!(
        due(&mut world, &bringing("Zmlyc3Q=", false, &out))
            .copies
            .is_empty()
    );
    world.store = stored(&section, b"damaged");
    assert_eq!(due(&mut world, &model).copies, again);

    // What another origin left is not taken for it; a header that nobody can read is no loss here.
    let made = Section {
        source: Provenance::Generated,
        ..section
    };
    world.store = stored(&made, &bytes);
    let Standing::Barred(fault) = stands(&mut world, &model) else {
        panic!("it was made, not brought")
    };
    assert_eq!(fault.reason, Reason::InvalidSpec);
    world.store = Some(BTreeMap::from([(super::HEADER.to_owned(), b"x".to_vec())]));
    assert_eq!(stands(&mut world, &model), Standing::New);
}
