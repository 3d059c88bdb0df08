//! Initialises one server of a set, and never loses what it answers: everything that could fail afterwards is tried
//! before, a marker is stored before the server is asked, and its answer stays in memory until it is stored.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::time::{sleep, timeout};

use super::{
    inits::Begun,
    job::Job,
    look::states,
    record::{self, Item},
};
use crate::{
    api::Reason,
    controller::{
        context::Context,
        keep::{Hand, random},
    },
    kube_ext::{bounded, cluster::read_fault, facts},
    seal::{
        Fault, KeyBytes,
        model::{Key, Origin},
        observed::{Observed, PodFacts},
        store::{
            Class, Version,
            sets::{self, Initialized, Marker},
        },
        unseal::{
            Place, Said,
            exchange::SealState,
            initialize::{Ask, Other, brings_none, just_done, turn, under_way},
            verify::still_there,
        },
    },
    servers::{Answered, Connection, INIT_TIMEOUT, Init, TOTAL_TIMEOUT, late},
};

/// Items of a set that are wrapped at once.
const AT_ONCE: usize = 4;

/// The first and the longest wait before an answer that could not be stored is stored again.
const WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// How long one look waits for an initialisation, so that a status can tell of a slow one.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server said over this connection that it is not initialised: initialises it, if it is its turn.
///
/// Returns what is to be said of it. It is not initialised by its own look but by a task that nothing ends but the process.
pub async fn consider(
    context: &Arc<Context>,
    job: &Arc<Job>,
    pod: &PodFacts,
    place: &Place,
    connection: Connection,
    state: &SealState,
) -> Fault {
    let (namespace, name) = (&job.model.id.namespace, &job.model.id.name);
    if let Some(told) = context.inits.told(namespace, name) {
        return told;
    }
    if let Err(fault) = brings_none(&job.model, job.unseal.initialize.as_ref()) {
        return fault;
    }
    let others = context.unsealers.others(context, job, &pod.uid);
    let known: Vec<Other> = others
        .iter()
        .map(|(pod, said)| Other {
            pod: pod.name.clone(),
            initialized: said.map(|said| said != Said::NotInitialized),
        })
        .collect();
    let decided = turn(job.unseal.initialize.as_ref(), job.set(), &pod.name, &known);
    let ask = match decided.and_then(|initialize| initialize.ask(state)) {
        Ok(ask) => ask,
        Err(fault) => return fault,
    };
    let Some(begun) = context.inits.begin(namespace, name) else {
        return context.inits.told(namespace, name).unwrap_or_else(under_way);
    };
    let work = Work {
        context: context.clone(),
        job: job.clone(),
        pod: pod.clone(),
        place: place.clone(),
        ask,
        observed: Observed {
            now: Timestamp::now(),
            ..job.seen().observed.clone()
        },
    };
    let others = others.into_iter().map(|(pod, _)| pod).collect();
    let mut task = tokio::spawn(async move { work.initialize(connection, others, &begun).await });
    match timeout(PATIENCE, &mut task).await {
        Ok(Ok(Ok(()))) => just_done(),
        Ok(Ok(Err(fault))) => fault,
        Ok(Err(_)) | Err(_) => context.inits.told(namespace, name).unwrap_or_else(under_way),
    }
}

struct Work {
    context: Arc<Context>,
    job: Arc<Job>,
    pod: PodFacts,
    place: Place,
    ask: Ask,
    observed: Observed,
}

impl Work {
    async fn initialize(
        self,
        mut connection: Connection,
        others: Vec<PodFacts>,
        begun: &Begun,
    ) -> Result<(), Fault> {
        let (context, model) = (&*self.context, &self.job.model);
        let facts = record::find(&context.client, model).await?;
        let held = sets::held(model, &facts, &self.observed.status.keys);
        let number = sets::next(&facts, &self.observed.status.keys);
        let seals: Vec<String> = wrapping_seals(&self.job);
        sets::fits(model, &facts, self.ask.split.shares, seals.len())?;
        let proven = self.prove(number, &seals).await?;
        // The last word of every server, asked now and not remembered.
        let others = self.asked(&others).await;
        turn(
            self.job.unseal.initialize.as_ref(),
            &held,
            &self.pod.name,
            &others,
        )?;
        let marker = Marker {
            id: data_encoding::HEXLOWER.encode(random(16)?.expose()),
            set: number,
            pod: self.pod.name.clone(),
            at: Timestamp::now(),
        };
        record::mark(context, model, &self.observed, &facts, &marker).await?;
        self.say("a marker is stored; the server is asked to initialise itself");
        if let Err(fault) = self.ready(&mut connection).await {
            self.unmark(&marker).await;
            return Err(fault);
        }
        match timeout(INIT_TIMEOUT, connection.initialize(self.ask)).await {
            Ok(Ok(Init::Done(answered))) => {
                self.keep(answered, marker, &seals, proven, begun).await;
                Ok(())
            }
            Ok(Ok(Init::Refused(status))) => {
                let state = timeout(TOTAL_TIMEOUT, connection.seal_status()).await;
                if matches!(state, Ok(Ok(state)) if !state.initialized) {
                    self.unmark(&marker).await;
                }
                Err(Fault::transient(
                    Reason::NotInitialized,
                    format!(
                        "it refused to initialise itself (status {status}); see its log for why, and whether its storage and \
                         its seal work"
                    ),
                ))
            }
            Ok(Ok(Init::Unknown)) => Err(unanswered("answered something that is no answer to it")),
            Ok(Err(_)) => Err(unanswered("closed the connection")),
            Err(_) => Err(unanswered("did not answer within a minute")),
        }
    }

    /// Every enabled seal wraps and opens for this very place, before there is anything to lose. The KMS keys that do.
    async fn prove(&self, number: u32, seals: &[String]) -> Result<BTreeSet<String>, Fault> {
        for seal in seals {
            if let Some(fault) = self.job.barred(seal) {
                return Err(cannot_keep(seal, fault));
            }
        }
        let key = item(self.class(), 1)?;
        let hand = Hand::new(
            &self.context,
            &self.job.model,
            &self.observed,
            &key,
            BTreeSet::new(),
        );
        let mut proven = BTreeSet::new();
        for (seal, result) in hand.wrap_all(number, &random(32)?, seals).await {
            let copy = result.map_err(|fault| cannot_keep(&seal, fault))?;
            proven.insert(copy.record.key_id);
        }
        Ok(proven)
    }

    /// What every other pod says of itself now.
    async fn asked(&self, others: &[PodFacts]) -> Vec<Other> {
        let states = states(&self.context, &self.job, others).await;
        let asked = others.iter().zip(states);
        asked
            .map(|(other, state)| Other {
                pod: other.name.clone(),
                initialized: state.map(|state| state.initialized),
            })
            .collect()
    }

    /// Nothing is between this and the request (security rule S10).
    async fn ready(&self, connection: &mut Connection) -> Result<(), Fault> {
        same_pod(&self.context, &self.job, &self.pod, &self.place).await?;
        if !self.context.unsealers.wants(&self.job) {
            return Err(Fault::transient(
                Reason::Pending,
                "the SealConfig was changed a moment ago; it is looked at again",
            ));
        }
        let state = timeout(TOTAL_TIMEOUT, connection.seal_status())
            .await
            .map_err(|_| late())??;
        if state.initialized {
            return Err(Fault::transient(
                Reason::NotInitialized,
                "somebody else initialised it a moment ago; it is looked at again",
            ));
        }
        Ok(())
    }

    async fn unmark(&self, marker: &Marker) {
        for _ in 0..3 {
            if record::unmark(&self.context, &self.job.model, &self.observed, marker)
                .await
                .is_ok()
            {
                return;
            }
            sleep(WAITS.0).await;
        }
        // It stands, and a human is told what to do about it.
    }

    /// Stores the answer, however long it takes.
    async fn keep(
        &self,
        answered: Answered,
        mut marker: Marker,
        seals: &[String],
        proven: BTreeSet<String>,
        begun: &Begun,
    ) {
        let mut items = self.items(answered, &marker);
        let mut wait = WAITS.0;
        while let Err(fault) = self.store(&mut items, &mut marker, seals, &proven).await {
            let (namespace, name) = (&self.job.model.id.namespace, &self.job.model.id.name);
            let reason = fault.reason.as_str();
            tracing::error!(
                namespace,
                name,
                pod = self.pod.name,
                reason,
                "what a server answered when it was initialised is not stored yet, and lies in memory only: {}",
                fault.message
            );
            begun.not_stored(fault);
            self.context.look_at(namespace, name);
            sleep(wait).await;
            wait = (wait * 2).min(WAITS.1);
        }
        begun.done();
        self.say("what the server answered is stored and read back");
        let id = &self.job.model.id;
        self.context.look_at(&id.namespace, &id.name);
    }

    fn items(&self, answered: Answered, marker: &Marker) -> Vec<Item> {
        let class = self.class();
        let shares = answered
            .shares
            .into_iter()
            .zip(1..)
            .map(|(bytes, number)| (class, number, bytes));
        shares
            .chain([(Class::RootToken, marker.set, answered.token)])
            .filter_map(|(class, number, bytes)| {
                let key = item(class, number).ok()?;
                let version = self.version(&key, &bytes, marker);
                Some(Item {
                    key,
                    bytes,
                    version,
                    copies: Vec::new(),
                })
            })
            .collect()
    }

    fn version(&self, key: &Key, bytes: &KeyBytes, marker: &Marker) -> Version {
        let hand = Hand::new(
            &self.context,
            &self.job.model,
            &self.observed,
            key,
            BTreeSet::new(),
        );
        Version {
            created: Timestamp::now(),
            init: Some(Initialized {
                id: marker.id.clone(),
                pod: marker.pod.clone(),
                cluster_id: None,
            }),
            ..hand.version(bytes)
        }
    }

    /// One attempt. What was wrapped stays wrapped for the next one.
    async fn store(
        &self,
        items: &mut [Item],
        marker: &mut Marker,
        seals: &[String],
        proven: &BTreeSet<String>,
    ) -> Result<(), Fault> {
        let (context, model) = (&*self.context, &self.job.model);
        let observed = Observed {
            now: Timestamp::now(),
            ..self.observed.clone()
        };
        let facts = record::find(&context.keeper, model).await?;
        let number = record::number(&facts, &observed, marker);
        if number != marker.set {
            // Somebody took the marker away: copies are bound to the number of their set, and made for another one.
            marker.set = number;
            for item in &mut *items {
                item.copies.clear();
                if item.key.origin == Origin::Initialized(Class::RootToken) {
                    item.key = self::item(Class::RootToken, number)?;
                    item.version = self.version(&item.key, &item.bytes, marker);
                }
            }
        }
        for chunk in items.chunks_mut(AT_ONCE) {
            let mut wrapping = Vec::with_capacity(chunk.len());
            for item in chunk {
                wrapping.push(self.wrap(item, &observed, number, seals, proven));
            }
            for wrapped in join_all(wrapping).await {
                wrapped?;
            }
        }
        record::keep(context, model, &observed, &facts, marker, items).await
    }

    /// Under one seal it is safe; under the others it is wrapped like every stored key.
    async fn wrap(
        &self,
        item: &mut Item,
        observed: &Observed,
        number: u32,
        seals: &[String],
        proven: &BTreeSet<String>,
    ) -> Result<(), Fault> {
        if !item.copies.is_empty() {
            return Ok(());
        }
        let (context, model) = (&*self.context, &self.job.model);
        let hand = Hand::new(context, model, observed, &item.key, proven.clone());
        let mut failed = None;
        for (seal, result) in hand.wrap_all(number, &item.bytes, seals).await {
            match result {
                Ok(copy) => item.copies.push(copy),
                Err(fault) => failed = Some(fault.of(format_args!("seal {seal:?}"))),
            }
        }
        match failed {
            Some(fault) if item.copies.is_empty() => Err(fault),
            _ => Ok(()),
        }
    }

    fn class(&self) -> Class {
        if self.ask.native {
            Class::RecoveryShare
        } else {
            Class::UnsealShare
        }
    }

    fn say(&self, what: &str) {
        let id = &self.job.model.id;
        let (namespace, name) = (&id.namespace, &id.name);
        tracing::info!(namespace, name, pod = self.pod.name, "initialise: {what}");
    }
}

/// Whether the pod is still the one that was connected to, and this replica still acts.
///
/// # Errors
/// `TargetNotVerified`, and what kept the apiserver from answering.
pub async fn same_pod(context: &Context, job: &Job, pod: &PodFacts, place: &Place) -> Result<(), Fault> {
    let namespace = &job.model.id.namespace;
    let api: Api<Pod> = Api::namespaced(context.client.clone(), namespace);
    let now = bounded(api.get_opt(&pod.name))
        .await
        .map_err(|error| read_fault(&error, "get pods", namespace, Reason::TargetNotVerified))?;
    let now = now.map(|now| facts::pod(&now));
    still_there(&job.unseal, &pod.uid, place, now.as_ref())?;
    if context.term.holds() {
        Ok(())
    } else {
        Err(Fault::transient(
            Reason::Pending,
            "another replica of the operator acts from now on",
        ))
    }
}

pub(super) fn wrapping_seals(job: &Job) -> Vec<String> {
    let seals = job.model.seals.iter().filter(|seal| seal.wraps && !seal.disabled);
    seals.map(|seal| seal.name.clone()).collect()
}

pub(super) fn item(class: Class, number: u32) -> Result<Key, Fault> {
    sets::key(&sets::name(class, number)).ok_or_else(|| Fault::invalid_spec("no item of a set has that name"))
}

fn cannot_keep(seal: &str, mut fault: Fault) -> Fault {
    fault.message = format!(
        "it is initialised when every enabled seal can keep its shares, and seal {seal:?} cannot: {}",
        fault.message
    );
    fault
}

fn unanswered(what: &str) -> Fault {
    Fault::denied(
        Reason::InitResponseLost,
        format!(
            "it was asked to initialise itself and {what}, so what it answered is lost, if it did; it is looked at again, and \
             then told what to do"
        ),
    )
}
