//! ManagedKeys: the material is looked after as any stored key ([`super::keep`]), then brought to AWS ([`bring`]).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::{ResourceExt, core::DeserializeGuard};

use super::{
    apply,
    context::{self, Context},
    index::{self, Kind, References},
    memories::{Object, Rest},
    observe, report,
    told::{self, Base},
};
use crate::{
    api::{MANAGED_KIND, ManagedKey, ManagedKeyStatus, Reason, SealConfig, SealConfigStatus},
    provider,
    seal::{
        Fault, backoff, checks,
        managed::{self, MATERIAL, ManagedModel},
        observed::{Failure, Observed},
        outcome::StoredState,
        plan, status,
        store::StoreFacts,
    },
};
use distribute::{distribute, not_confirmed};

pub mod bring;
mod distribute;
mod finalize;
mod ledger;
pub mod material;
pub mod run;

/// How long until it is looked again whether all SealConfigs are listed.
const UNLISTED: Duration = Duration::from_millis(500);

/// What is remembered of a ManagedKey between reconciles.
#[derive(Default)]
pub struct Remembered {
    /// Of the material.
    material: context::Remembered,
    /// Failures, by distribution.
    failures: BTreeMap<String, Failure>,
    /// Distributions that are gone from the spec and need nothing more, with what they were looked at for.
    left: BTreeMap<String, String>,
    /// Distributions of which was told that taking them back is not confirmed.
    told: BTreeSet<String>,
}

impl Rest for Remembered {
    fn is_blank(&self) -> bool {
        // They are few.
        false
    }
}

/// They are few, and kept as they are.
impl Object for DeserializeGuard<ManagedKey> {
    type Kept = Arc<Self>;

    fn keep(self: &Arc<Self>) -> Arc<Self> {
        self.clone()
    }

    fn kept(kept: &Arc<Self>) -> Arc<Self> {
        kept.clone()
    }

    fn status_text(&self) -> Option<Cow<'_, str>> {
        let status = self.0.as_ref().ok()?.status.as_ref()?;
        Some(Cow::Owned(told::text(status).into()))
    }
}

/// Brings one ManagedKey, its keys in AWS and its status to what its spec says. After how long it is to be looked at again,
/// if nothing changes; every fault is a status and such a time.
pub async fn reconcile(object: Arc<DeserializeGuard<ManagedKey>>, context: Arc<Context>) -> Option<Duration> {
    let started = Instant::now();
    let Ok(key) = &object.0 else {
        tracing::warn!(
            namespace = object.namespace(),
            name = object.name_any(),
            "a ManagedKey cannot be read"
        );
        return None;
    };
    let (namespace, name) = (key.namespace().unwrap_or_default(), key.name_any());
    // Whatever becomes of the SealConfig from now on leads back here; so it is read after this.
    refer_to_config(&context, key);
    let listed = context.index.unseals(&namespace).is_some();
    let config = context.config(&namespace, &key.spec.seal_config_ref.name);
    if config.is_none() && !listed {
        // It may only not have been listed yet; that is no reason for anything.
        return Some(UNLISTED);
    }
    let class = config
        .as_ref()
        .map_or("", |config| config.spec.controller_class.as_str());
    if class != context.settings.controller_class {
        return None;
    }
    let mut memory = context.managed.take(&object);
    let Base { previous, saved } = memory.base::<ManagedKeyStatus>();
    if key.metadata.deletion_timestamp.is_some() {
        let outcome = Box::pin(finalize::delete(&context, key, config.as_ref(), &previous)).await;
        context.managed.put(memory);
        return match outcome {
            Ok(()) => None,
            Err(fault) => {
                let reason = fault.reason.as_str();
                tracing::warn!(namespace, name, reason, "{}", fault.message);
                Some(backoff(&fault, 3, provider::jitter()))
            }
        };
    }
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
                .then(|| backoff(&fault, 3, provider::jitter())),
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
    memory.tell(&next, &saved, &outcome);
    if context.managed.put(memory) {
        context.look_at(&namespace, &index::managed(&name));
    }
    context
        .metrics
        .reconciled(MANAGED_KIND, outcome.is_ok(), started.elapsed());
    outcome.err().or(wait)
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
            objects: vec![config],
            ..References::default()
        };
        context.index.refer(&namespace, &name, references);
    }
}

/// What it refers to leads back here when it changes.
fn refer(context: &Context, managed: &ManagedModel, config: &SealConfig) {
    let id = &managed.model.id;
    let mut references = observe::references(&managed.model);
    references.objects.push((Kind::SealConfig, config.name_any()));
    let credentials = managed
        .distributions
        .iter()
        .filter_map(|to| to.credentials.as_ref());
    for credentials in credentials {
        if let Some(secret) = &credentials.secret_ref {
            references.read_secrets.push(secret.name.clone());
            references.objects.push((Kind::Secret, secret.name.clone()));
        }
        if let Some(account) = &credentials.service_account_ref {
            references
                .objects
                .push((Kind::ServiceAccount, account.name.clone()));
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
    memory: &mut Remembered,
) -> (ManagedKeyStatus, Option<Duration>) {
    let model = &managed.model;
    let before = of_material(previous, config);
    let mut observed = match observe::observe(context, model, &before, &mut memory.material).await {
        Ok(observed) => observed,
        Err(fault) => {
            let wait = backoff(&fault, 3, provider::jitter());
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

impl Context {
    /// A ManagedKey is gone.
    pub fn forget_managed(&self, namespace: &str, name: &str) {
        self.managed.forget(namespace, name);
        self.index.lost_managed(namespace, name);
        self.metrics.objects.forget(MANAGED_KIND, namespace, name);
    }
}
