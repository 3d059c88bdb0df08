//! Unseals Vault and OpenBao: one task for each pod, woken by the pod's own events.
//!
//! Not inside the reconcile: a server that hangs would hold one of the workers that deliver keys for ten seconds, and a
//! KMS that hangs would keep a restarted server waiting that needs another one. So a reconcile only says what the spec
//! wants ([`follow`]) and what came of it so far; the watch of pods wakes the tasks itself ([`Unsealers::sync`]); and a task
//! that learned something has its SealConfig looked at again, which tells it. Decisions are `seal::unseal`'s.

mod beside;
mod initialize;
mod inits;
mod job;
mod look;
mod record;
mod rekeyed;
mod rotate;
mod token;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::core::{Selector, SelectorExt};
use tokio::{sync::watch, task::JoinHandle};

use super::context::Context;
use crate::{
    api::UnsealStatus,
    provider,
    seal::{
        checks::Findings,
        model::Model,
        observed::{Observed, PodFacts},
        store::sets::{Held, held},
        unseal::{
            PodRecord, Said, verdict,
            watch::{Next, next},
        },
    },
};
pub use inits::Inits;
use job::Job;
pub use rotate::Rotations;

type Name = (String, String);
type Record = Arc<Mutex<PodRecord>>;

/// Every SealConfig that unseals servers, and its pods.
#[derive(Default)]
pub struct Unsealers {
    entries: Mutex<HashMap<Name, Entry>>,
}

/// One SealConfig's pods. Its tasks, and what they hold of shares, go with it.
struct Entry {
    job: Arc<Job>,
    /// What a former operator knew.
    known: UnsealStatus,
    /// By UID.
    pods: BTreeMap<String, Watched>,
}

struct Watched {
    record: Record,
    task: Option<Task>,
}

struct Task {
    facts: watch::Sender<PodFacts>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Says what a SealConfig wants of its servers, and gives back what is known of them.
pub fn follow(
    context: &Arc<Context>,
    model: &Model,
    observed: &Observed,
    findings: &Findings,
) -> Vec<PodRecord> {
    let (namespace, name) = (&model.id.namespace, &model.id.name);
    if held(model, &observed.store, &observed.status.keys) == Held::Set {
        context.inits.seen(namespace, name);
    }
    let Some(unseal) = &model.unseal else {
        context.unsealers.forget(namespace, name);
        return Vec::new();
    };
    {
        let mut entries = context.unsealers.lock();
        let key = (namespace.clone(), name.clone());
        match entries.get_mut(&key) {
            Some(entry) if entry.job.is_of(model, observed, findings) => {
                entry.job.refresh(observed, findings);
            }
            before => {
                let mut pods: BTreeMap<String, Watched> = before
                    .map(|entry| std::mem::take(&mut entry.pods))
                    .unwrap_or_default();
                for pod in pods.values_mut() {
                    // The old task goes, and with the old job every share that it holds.
                    pod.task = None;
                    let anew = lock(&pod.record).anew();
                    pod.record = Arc::new(Mutex::new(anew));
                }
                let entry = Entry {
                    job: Arc::new(Job::new(
                        model,
                        unseal,
                        observed,
                        findings,
                        context.settings.share_cache_ttl,
                    )),
                    known: observed.status.unseal.clone().unwrap_or_default(),
                    pods,
                };
                entries.insert(key, entry);
            }
        }
    }
    if context.index.unseals(namespace).is_none() {
        // Nobody is attended to yet: what a former operator wrote down is not to be lost meanwhile.
        let known = observed.status.unseal.iter().flat_map(|status| &status.pods);
        return known
            .map(|pod| PodRecord::from_status(&pod.name, Some(pod)))
            .collect();
    }
    context.unsealers.sync(context, namespace);
    context.unsealers.records(namespace, name)
}

impl Unsealers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A SealConfig unseals nothing any more: its tasks end, and its shares are wiped.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// What is known of a SealConfig's pods, by name.
    fn records(&self, namespace: &str, name: &str) -> Vec<PodRecord> {
        let entries = self.lock();
        let pods = entries
            .get(&(namespace.to_owned(), name.to_owned()))
            .map(|entry| &entry.pods);
        let mut records: Vec<PodRecord> = pods
            .into_iter()
            .flat_map(BTreeMap::values)
            .map(|pod| lock(&pod.record).clone())
            .collect();
        records.sort_by(|a, b| a.name.cmp(&b.name));
        // A pod that goes and its successor share a name, which the status takes once.
        records.dedup_by(|a, b| a.name == b.name);
        records
    }

    /// How a SealConfig's unsealed servers call their cluster.
    pub fn cluster(&self, namespace: &str, name: &str) -> Option<String> {
        verdict::cluster(&self.records(namespace, name))
    }

    /// Whether a SealConfig still is as this job has it, and not suspended.
    fn wants(&self, job: &Job) -> bool {
        let id = &job.model.id;
        let entries = self.lock();
        let entry = entries.get(&(id.namespace.clone(), id.name.clone()));
        entry.is_some_and(|entry| {
            let now = &entry.job.model;
            (&now.id, now.generation) == (id, job.model.generation)
                && now.rotate_shares == job.model.rotate_shares
        })
    }

    /// Every other pod that a SealConfig selects, and what it said when it was last asked in this term.
    fn others(&self, context: &Context, job: &Job, uid: &str) -> Vec<(PodFacts, Option<Said>)> {
        let (namespace, name) = (&job.model.id.namespace, &job.model.id.name);
        let selected = |labels: &BTreeMap<String, String>| job.unseal.selector.matches(labels);
        let pods = context.index.pods(namespace, selected);
        let entries = self.lock();
        let entry = entries.get(&(namespace.clone(), name.clone()));
        let said = |uid: &str| {
            let record = lock(&entry?.pods.get(uid)?.record);
            record.look.as_ref()?.said
        };
        pods.into_iter()
            .filter(|pod| pod.uid != uid && job.unseal.selects(pod))
            .map(|pod| {
                let said = said(&pod.uid);
                (pod, said)
            })
            .collect()
    }

    /// Gives every task of a namespace its pod as it is now.
    pub fn sync(&self, context: &Arc<Context>, namespace: &str) {
        let Some(selectors) = context.index.unseals(namespace) else {
            return;
        };
        let mut entries = self.lock();
        let mut of_namespace = entries
            .iter_mut()
            .filter(|((ns, _), _)| ns == namespace)
            .peekable();
        if of_namespace.peek().is_none() {
            return;
        }
        let pods = context.index.pods(namespace, |_| true);
        for ((_, name), entry) in of_namespace {
            if entry.sync(context, name, &pods, &selectors) {
                context.look_at(namespace, name);
            }
        }
    }

    /// The same for every namespace.
    pub fn sync_all(&self, context: &Arc<Context>) {
        let namespaces: std::collections::BTreeSet<String> = self
            .lock()
            .keys()
            .map(|(namespace, _)| namespace.clone())
            .collect();
        for namespace in namespaces {
            self.sync(context, &namespace);
        }
    }
}

impl Entry {
    /// Whether there is something new to tell.
    fn sync(
        &mut self,
        context: &Arc<Context>,
        name: &str,
        pods: &[PodFacts],
        selectors: &[(String, Selector)],
    ) -> bool {
        let mut news = false;
        let job = &self.job;
        let known = &self.known;
        let selected: Vec<_> = pods.iter().filter(|pod| job.unseal.selects(pod)).collect();
        self.pods
            .retain(|uid, _| selected.iter().any(|pod| pod.uid == *uid));
        for pod in selected {
            let watched = self.pods.entry(pod.uid.clone()).or_insert_with(|| {
                news = true;
                let before = known.pods.iter().find(|status| status.name == pod.name);
                Watched {
                    record: Arc::new(Mutex::new(PodRecord::from_status(&pod.name, before))),
                    task: None,
                }
            });
            let rival = selectors
                .iter()
                .find(|(other, selector)| other != name && selector.matches(&pod.labels));
            match (rival, &watched.task) {
                (Some((rival, _)), _) => {
                    watched.task = None;
                    news |= lock(&watched.record).contested(rival);
                }
                (None, Some(task)) if !task.handle.is_finished() => {
                    task.facts.send_if_modified(|facts| {
                        let changed = facts != pod;
                        if changed {
                            facts.clone_from(pod);
                        }
                        changed
                    });
                }
                (None, _) => {
                    let freed = {
                        let mut record = lock(&watched.record);
                        let contested = record.is_contested();
                        if contested {
                            *record = record.anew();
                        }
                        contested
                    };
                    news |= freed;
                    let (facts, changes) = watch::channel(pod.clone());
                    let task = attend(context.clone(), job.clone(), changes, watched.record.clone());
                    watched.task = Some(Task {
                        facts,
                        handle: tokio::spawn(task),
                    });
                }
            }
        }
        news
    }
}

/// Attends to one pod for as long as it is selected.
async fn attend(
    context: Arc<Context>,
    job: Arc<Job>,
    mut changes: watch::Receiver<PodFacts>,
    record: Record,
) {
    loop {
        let pod = changes.borrow_and_update().clone();
        // A replica that lost its term is about to end; until then it speaks to no server.
        if !context.term.holds() {
            return;
        }
        let step = next(&job.unseal, &pod, &lock(&record), Timestamp::now());
        let changed = match step {
            Next::Nothing => changes.changed().await,
            Next::Wait(until) => {
                lock(&record).noticed(&job.unseal, &pod);
                let wait = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                tokio::select! {
                    changed = changes.changed() => changed,
                    () = tokio::time::sleep(wait) => Ok(()),
                }
            }
            Next::Look(why) => {
                let before = lock(&record).clone();
                let look = look::look(&context, &job, &pod, &before).await;
                let (namespace, name) = (&job.model.id.namespace, &job.model.id.name);
                tracing::debug!(namespace, name, pod = pod.name, ?why, said = ?look.said, "looked at a server");
                let news =
                    lock(&record).looked(&job.unseal, &pod, look, Timestamp::now(), provider::jitter());
                if news {
                    context.look_at(namespace, name);
                }
                Ok(())
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

fn lock(record: &Mutex<PodRecord>) -> MutexGuard<'_, PodRecord> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
