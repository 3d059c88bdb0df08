//! ManagedKeys: the material is looked after as any stored key ([`super::keep`]), then brought to AWS ([`bring`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt, core::DeserializeGuard, runtime::controller::Action};

use super::{
    apply,
    context::{Context, Remembered},
    index::{self, Kind, References},
    observe,
};
use crate::{
    api::{
        KeyDeletionPolicy, MANAGED_KIND, ManagedKey, ManagedKeyStatus, Reason, SealConfig, SealConfigStatus,
    },
    provider,
    seal::{
        Fault, backoff, checks,
        digest::managed_inputs,
        managed::{self, MATERIAL, ManagedModel, record::Record, status::Looked},
        observed::{Failure, Observed},
        outcome::StoredState,
        plan::{self, PROBE_INTERVAL},
        status,
        store::StoreFacts,
    },
};
use bring::{Errand, Hand, takes};
use ledger::Ledger;

pub mod bring;
mod finalize;
mod ledger;
pub mod material;
mod report;
pub mod run;

/// How long until it is looked again whether all SealConfigs are listed.
const UNLISTED: Duration = Duration::from_millis(500);

/// What is remembered of ManagedKeys between reconciles.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<(String, String), Memory>>);

#[derive(Default)]
struct Memory {
    uid: String,
    /// Of the material.
    material: Remembered,
    status: Option<ManagedKeyStatus>,
    saved: Option<ManagedKeyStatus>,
    /// Failures, by distribution.
    failures: BTreeMap<String, Failure>,
    /// Distributions that are gone from the spec and need nothing more, with what they were looked at for.
    left: BTreeMap<String, String>,
    /// Distributions of which was told that taking them back is not confirmed.
    told: BTreeSet<String>,
}

impl Memories {
    fn take(&self, namespace: &str, name: &str, uid: &str) -> Memory {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(namespace.to_owned(), name.to_owned()))
            .filter(|memory| memory.uid == uid)
            .unwrap_or_else(|| Memory {
                uid: uid.to_owned(),
                ..Memory::default()
            })
    }

    fn put(&self, namespace: &str, name: &str, memory: Memory) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert((namespace.to_owned(), name.to_owned()), memory);
    }

    fn forget(&self, namespace: &str, name: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

/// Brings one ManagedKey, its keys in AWS and its status to what its spec says.
///
/// # Errors
/// None: every fault is a status and a time to look again.
pub async fn reconcile(
    object: Arc<DeserializeGuard<ManagedKey>>,
    context: Arc<Context>,
) -> Result<Action, Infallible> {
    let started = Instant::now();
    let Ok(key) = &object.0 else {
        tracing::warn!(
            namespace = object.namespace(),
            name = object.name_any(),
            "a ManagedKey cannot be read"
        );
        return Ok(Action::await_change());
    };
    let (namespace, name) = (key.namespace().unwrap_or_default(), key.name_any());
    let config = context.config(&namespace, &key.spec.seal_config_ref.name);
    // Whatever becomes of the SealConfig leads back here.
    refer_to_config(&context, key);
    if config.is_none() && context.index.unseals(&namespace).is_none() {
        // It may only not have been listed yet; that is no reason for anything.
        return Ok(Action::requeue(UNLISTED));
    }
    let class = config
        .as_ref()
        .map_or("", |config| config.spec.controller_class.as_str());
    if class != context.settings.controller_class {
        return Ok(Action::await_change());
    }
    let mut memory = context
        .managed
        .take(&namespace, &name, &key.uid().unwrap_or_default());
    let previous = memory
        .status
        .take()
        .or_else(|| key.status.clone())
        .unwrap_or_default();
    if key.metadata.deletion_timestamp.is_some() {
        let outcome = finalize::delete(&context, key, config.as_ref(), &previous).await;
        memory.status = Some(previous);
        context.managed.put(&namespace, &name, memory);
        return Ok(match outcome {
            Ok(()) => Action::await_change(),
            Err(fault) => {
                let reason = fault.reason.as_str();
                tracing::warn!(namespace, name, reason, "{}", fault.message);
                Action::requeue(backoff(&fault, 3, provider::jitter()))
            }
        });
    }
    let saved = memory.saved.take().unwrap_or_else(|| previous.clone());
    let generation = key.metadata.generation.unwrap_or_default();
    let parsed = match (finalize::mark(&context, key).await, &config) {
        (Err(fault), _) => Err(fault),
        (Ok(()), None) => Err(Fault::invalid(
            Reason::SourceMissing,
            format!(
                "there is no SealConfig {} in this namespace, and without its seals nothing is wrapped; make it, or correct \
                 sealConfigRef",
                key.spec.seal_config_ref.name
            ),
        )),
        (Ok(()), Some(config)) => managed::parse(key, config).map(|managed| (managed, config)),
    };
    let (next, wait) = match parsed {
        Err(fault) => (
            managed::status::failed(&previous, generation, &fault, Timestamp::now()),
            // A change of the spec, or a SealConfig that appears, is told by the watches.
            (!matches!(fault.reason, Reason::SourceMissing | Reason::InvalidSpec))
                .then(|| backoff(&fault, 3, 0.5)),
        ),
        Ok((managed, config)) => {
            refer(&context, &managed, config);
            if managed.model.suspend {
                (
                    managed::status::suspended(&previous, generation, Timestamp::now()),
                    None,
                )
            } else {
                follow(&context, key, &managed, config, &previous, &mut memory).await
            }
        }
    };
    let outcome = report::report(&context, key, &saved, &next).await;
    memory.saved = outcome.is_err().then_some(saved);
    memory.status = Some(next);
    context.managed.put(&namespace, &name, memory);
    context
        .metrics
        .reconciled(MANAGED_KIND, outcome.is_ok(), started.elapsed());
    Ok(match outcome.err().or(wait) {
        Some(wait) => Action::requeue(wait),
        None => Action::await_change(),
    })
}

/// The one reference that is known without the SealConfig; what else there is, is added once that is read.
fn refer_to_config(context: &Context, key: &ManagedKey) {
    let (namespace, name) = (
        key.namespace().unwrap_or_default(),
        index::managed(&key.name_any()),
    );
    let config = (Kind::SealConfig, key.spec.seal_config_ref.name.clone());
    if !context
        .index
        .referring(config.0, &namespace, &config.1)
        .contains(&name)
    {
        let references = References {
            objects: BTreeSet::from([config]),
            ..References::default()
        };
        context.index.refer(&namespace, &name, references);
    }
}

/// What it refers to leads back here when it changes.
fn refer(context: &Context, managed: &ManagedModel, config: &SealConfig) {
    let id = &managed.model.id;
    let mut references = observe::references(&managed.model);
    references.objects.insert((Kind::SealConfig, config.name_any()));
    let credentials = managed
        .distributions
        .iter()
        .filter_map(|to| to.credentials.as_ref());
    for credentials in credentials {
        if let Some(secret) = &credentials.secret_ref {
            references.read_secrets.insert(secret.name.clone());
            references.objects.insert((Kind::Secret, secret.name.clone()));
        }
        if let Some(account) = &credentials.service_account_ref {
            references
                .objects
                .insert((Kind::ServiceAccount, account.name.clone()));
        }
    }
    context
        .index
        .refer(&id.namespace, &index::managed(&id.name), references);
}

/// The status of the material as that of a SealConfig's key: its decisions are the same.
fn of_material(previous: &ManagedKeyStatus, config: &SealConfig) -> SealConfigStatus {
    SealConfigStatus {
        conditions: previous.conditions.clone(),
        keys: previous.material.clone().into_iter().collect(),
        // What the SealConfig has learned of its seals need not be asked again.
        seals: config.status.clone().unwrap_or_default().seals,
        ..SealConfigStatus::default()
    }
}

async fn follow(
    context: &Context,
    key: &ManagedKey,
    managed: &ManagedModel,
    config: &SealConfig,
    previous: &ManagedKeyStatus,
    memory: &mut Memory,
) -> (ManagedKeyStatus, Option<Duration>) {
    let model = &managed.model;
    let before = of_material(previous, config);
    let mut observed = match observe::observe(context, model, &before, &mut memory.material).await {
        Ok(observed) => observed,
        Err(fault) => {
            let wait = backoff(&fault, 3, 0.5);
            let next = managed::status::failed(previous, model.generation, &fault, Timestamp::now());
            return (next, Some(wait));
        }
    };
    let mut findings = checks::check(model, &observed);
    status::prune(&mut observed.memory, model, &findings);
    let plan = plan::plan(model, &observed, &findings);
    let mut outcomes = apply::apply(context, model, &mut observed, &mut findings, &plan).await;
    let base = status::status(model, &observed, &findings, &outcomes);
    let (looked, soonest) = if is_authentic(&base, &observed) {
        distribute(context, key, managed, previous, &mut observed, memory).await
    } else {
        (BTreeMap::new(), None)
    };
    // What was written down since is authentic, too: it was written over what was.
    if let StoreFacts::Found(store) = &observed.store
        && let Some(sealed) = store.header.keys.get(MATERIAL)
        && was_made(&base)
        && !looked.is_empty()
    {
        let outcome = outcomes.keys.entry(MATERIAL.to_owned()).or_default();
        outcome.stored = Some(StoredState::of(sealed));
        findings = checks::check(model, &observed);
    }
    let base = status::status(model, &observed, &findings, &outcomes);
    let next = managed::status::status(managed, previous, &base, &looked, observed.now);
    let after = Observed {
        status: base,
        ..observed
    };
    let wait = status::next_look(model, &after, &findings, &outcomes);
    memory.material.memory = after.memory;
    memory.material.store = matches!(after.store, StoreFacts::Found(_)).then_some(after.store);
    (next, [wait, soonest].into_iter().flatten().min())
}

/// Whether the store is in the state that was authenticated last: only then what it says of AWS is believed.
fn is_authentic(base: &SealConfigStatus, observed: &Observed) -> bool {
    let StoreFacts::Found(store) = &observed.store else {
        return false;
    };
    let Some(sealed) = store.header.keys.get(MATERIAL) else {
        return false;
    };
    base.keys
        .first()
        .is_some_and(|material| material.version > 0 && material.store_digest == Some(sealed.digest()))
}

fn was_made(base: &SealConfigStatus) -> bool {
    base.keys.first().is_some_and(|material| material.version > 0)
}

/// Looks after every distribution that is due, all at once: a region that is silent keeps none of the others waiting.
async fn distribute(
    context: &Context,
    key: &ManagedKey,
    managed: &ManagedModel,
    previous: &ManagedKeyStatus,
    observed: &mut Observed,
    memory: &mut Memory,
) -> (BTreeMap<String, Looked>, Option<Duration>) {
    let model = &managed.model;
    let Some(material) = model.keys.first() else {
        return (BTreeMap::new(), None);
    };
    let (now, jitter, facts) = (observed.now, observed.jitter, observed.namespace.clone());
    let mut ledger = Ledger::new(context, model, material, observed);
    let current = ledger.sealed().map_or(0, |sealed| sealed.section.current);
    if managed.min_enabled > current {
        // Nothing is disabled by a number that no version has.
        let fault = Fault::invalid(
            Reason::InvalidSpec,
            format!(
                "minEnabledVersion is {}, and the version in use is {current}; lower it, or rotate first",
                managed.min_enabled
            ),
        );
        let looked = |wanted: &managed::Wanted| Looked {
            record: ledger.record(&wanted.name),
            sight: managed::step::Sight::default(),
            fault: Some(fault.clone()),
            inputs: String::new(),
            at: now,
        };
        let all = managed.distributions.iter();
        return (
            all.map(|wanted| (wanted.name.clone(), looked(wanted))).collect(),
            None,
        );
    }
    let mut times: Vec<Timestamp> = Vec::new();
    let mut errands = Vec::new();
    for wanted in &managed.distributions {
        memory.left.remove(&wanted.name);
        memory.told.remove(&wanted.name);
        let inputs = inputs_of(managed, wanted, current, ledger.record(&wanted.name).as_ref());
        match due(previous, memory, &wanted.name, &inputs, now) {
            Some(at) => times.push(at),
            None => errands.push(Errand::Bring(wanted)),
        }
    }
    let names: Vec<String> = ledger
        .sealed()
        .and_then(|sealed| sealed.section.managed.as_ref())
        .map(|known| known.distributions.keys().cloned().collect())
        .unwrap_or_default();
    let gone: Vec<String> = names
        .into_iter()
        .filter(|name| !managed.distributions.iter().any(|wanted| wanted.name == *name))
        .collect();
    for name in &gone {
        if let Some(errand) =
            take_back(context, key, managed, &mut ledger, memory, name, now, &mut times).await
        {
            errands.push(errand);
        }
    }
    let ledger = tokio::sync::Mutex::new(ledger);
    let working = errands.iter().map(|errand| {
        let hand = Hand {
            context,
            managed,
            facts: &facts,
            ledger: &ledger,
            now,
            errand: *errand,
        };
        async move { Box::pin(hand.work()).await }
    });
    let results = join_all(working).await;
    let ledger = ledger.into_inner();
    let mut looked = BTreeMap::new();
    for (errand, (sight, fault)) in errands.into_iter().zip(results) {
        let (name, inputs, record) = match errand {
            Errand::Bring(wanted) => {
                let record = ledger.record(&wanted.name);
                let inputs = inputs_of(managed, wanted, current, record.as_ref());
                (wanted.name.clone(), inputs, record)
            }
            Errand::TakeBack(name, _) => {
                let record = ledger.record(name);
                let inputs = left_inputs(managed, record.as_ref());
                (name.to_owned(), inputs, record)
            }
        };
        if let Some(fault) = &fault {
            apply::fail(&mut memory.failures, name.clone(), &inputs, fault, now, jitter);
            times.extend(memory.failures.get(&name).map(|failure| failure.retry_at));
        } else {
            memory.failures.remove(&name);
            if matches!(errand, Errand::TakeBack(..)) {
                memory.left.insert(name.clone(), inputs.clone());
            } else {
                let spread = PROBE_INTERVAL.as_secs_f64() * (1.0 + 0.25 * jitter);
                let spread = SignedDuration::try_from_secs_f64(spread).unwrap_or(PROBE_INTERVAL);
                times.extend(now.saturating_add(spread));
            }
        }
        let looked_at = Looked {
            record,
            sight,
            fault,
            inputs,
            at: now,
        };
        looked.insert(name, looked_at);
    }
    let soonest = times.into_iter().min().map(|at| {
        Duration::try_from(at.duration_since(now))
            .unwrap_or_default()
            .max(Duration::from_millis(50))
    });
    (looked, soonest)
}

/// A distribution that is gone from the spec: what is left to be done about it.
#[expect(
    clippy::too_many_arguments,
    reason = "the values of one reconcile, and where its results go"
)]
async fn take_back<'n>(
    context: &Context,
    key: &ManagedKey,
    managed: &ManagedModel,
    ledger: &mut Ledger<'_>,
    memory: &mut Memory,
    name: &'n str,
    now: Timestamp,
    times: &mut Vec<Timestamp>,
) -> Option<Errand<'n>> {
    let policy = managed.deletion.policy;
    let record = ledger.record(name)?;
    if !takes(policy) {
        return None;
    }
    let inputs = left_inputs(managed, Some(&record));
    if memory.left.get(name) == Some(&inputs) {
        return None;
    }
    if !managed.confirmed {
        if memory.told.insert(name.to_owned()) {
            let note = not_confirmed(key, &format!("of distribution {name:?}"));
            context
                .events
                .warn(
                    key.object_ref(&()),
                    Reason::DeletionNotConfirmed,
                    note,
                    "TakeBack",
                )
                .await;
        }
        return None;
    }
    if let Some(failure) = memory.failures.get(name)
        && failure.holds(&inputs, now)
    {
        times.push(failure.retry_at);
        return None;
    }
    if record.retired != Some(policy) {
        let noted = ledger
            .write(|managed| {
                if let Some(record) = managed.distributions.get_mut(name) {
                    record.retired = Some(policy);
                }
            })
            .await;
        if let Err(fault) = noted {
            apply::fail(&mut memory.failures, name.to_owned(), &inputs, &fault, now, 0.5);
            times.extend(memory.failures.get(name).map(|failure| failure.retry_at));
            return None;
        }
    }
    Some(Errand::TakeBack(name, managed.deletion))
}

/// What is told where the deletion of keys is not confirmed.
fn not_confirmed(key: &ManagedKey, what: &str) -> String {
    format!(
        "the keys {what} stay as they are in AWS, for deletion.policy {} is not confirmed; to confirm it: kubectl annotate \
         managedkey {} {}={}",
        key.spec.deletion.policy.as_str(),
        key.name_any(),
        managed::CONFIRM_DELETION,
        key.uid().unwrap_or_default()
    )
}

fn inputs_of(
    managed: &ManagedModel,
    wanted: &managed::Wanted,
    current: u32,
    record: Option<&Record>,
) -> String {
    // Debug and JSON of names, numbers and references; no secret.
    let record = record.and_then(|record| serde_json::to_string(record).ok());
    managed_inputs(&[
        &format!("{wanted:?}"),
        &format!("{current} {}", managed.min_enabled),
        &record.unwrap_or_default(),
    ])
}

fn left_inputs(managed: &ManagedModel, record: Option<&Record>) -> String {
    let record = record.and_then(|record| serde_json::to_string(record).ok());
    let policy: KeyDeletionPolicy = managed.deletion.policy;
    managed_inputs(&[policy.as_str(), &record.unwrap_or_default()])
}

/// When a distribution is to be looked at; `None` = now.
fn due(
    previous: &ManagedKeyStatus,
    memory: &Memory,
    name: &str,
    inputs: &str,
    now: Timestamp,
) -> Option<Timestamp> {
    if let Some(failure) = memory.failures.get(name) {
        return failure.holds(inputs, now).then_some(failure.retry_at);
    }
    let known = previous.distributions.iter().find(|known| known.name == name)?;
    if known.inputs_digest.as_deref() != Some(inputs) || known.reason.is_some() {
        return None;
    }
    let next = known
        .last_probe_time
        .as_ref()?
        .0
        .saturating_add(PROBE_INTERVAL)
        .ok()?;
    (next > now).then_some(next)
}

impl Context {
    /// A ManagedKey is gone.
    pub fn forget_managed(&self, namespace: &str, name: &str) {
        self.managed.forget(namespace, name);
        self.index.lost_managed(namespace, name);
        self.metrics.forget_readiness(MANAGED_KIND, namespace, name);
    }
}
