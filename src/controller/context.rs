//! What every reconcile shares.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use kube::{Client, core::DeserializeGuard};

use super::{
    debounce::Debounce,
    events::Events,
    index::Index,
    kept::Kept,
    managed,
    memories::{Memories, Rest},
    turnstile::Turnstile,
    unseal::{Inits, Rotations, Unsealers},
    watch::Scope,
};
use crate::{
    api::{ManagedKey, SealConfig},
    kube_ext::cluster::ApiserverCluster,
    lease::Term,
    provider::Clouds,
    seal::{
        model::SourceRef,
        observed::{Memory, SourceFacts},
        store::StoreFacts,
    },
    settings::Settings,
    telemetry::metrics::Metrics,
};

/// What every reconcile shares.
pub struct Context {
    /// The apiserver.
    pub client: Client,
    /// The apiserver, past the end of the term: only for what a server answered when it was initialised, which would be
    /// lost with this process, and which is written over the very marker that announced it.
    pub keeper: Client,
    /// Flags.
    pub settings: Settings,
    /// The clouds' KMSes.
    pub clouds: Clouds,
    /// What credentials ask of the apiserver.
    pub cluster: Arc<ApiserverCluster>,
    /// Other objects, by their metadata.
    pub index: Index,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Events.
    pub events: Events,
    /// Who is worked on.
    pub turnstile: Turnstile,
    /// How often.
    pub debounce: Debounce,
    /// The servers that are unsealed.
    pub unsealers: Unsealers,
    /// The servers that are being initialised.
    pub inits: Arc<Inits>,
    /// The SealConfigs whose shares are being replaced.
    pub rotations: Arc<Rotations>,
    /// The cluster's own CAs, which no server to unseal is trusted by.
    pub cluster_ca: Vec<Vec<u8>>,
    /// Until when this replica acts.
    pub term: Term,
    /// What is remembered of SealConfigs.
    pub memories: Memories<Kept, Remembered>,
    /// What is remembered of ManagedKeys.
    pub managed: Memories<DeserializeGuard<ManagedKey>, managed::Remembered>,
    scopes: Mutex<Vec<Scope>>,
}

/// What is remembered of one SealConfig between reconciles.
#[derive(Default)]
pub struct Remembered {
    /// Failures, repairs, marks.
    pub memory: Memory,
    /// Copies that were read, with the resourceVersion they were read at.
    pub sources: BTreeMap<SourceRef, (String, SourceFacts)>,
    /// The wrapped store as it was last read.
    pub store: Option<StoreFacts>,
}

impl Rest for Remembered {
    fn is_blank(&self) -> bool {
        self.memory.is_blank() && self.sources.is_empty() && self.store.is_none()
    }
}

impl Context {
    /// Joins the parts. Of the clients the second is the one that outlives the term.
    pub fn new(
        (client, keeper): (Client, Client),
        settings: Settings,
        (clouds, cluster): (Clouds, Arc<ApiserverCluster>),
        metrics: Arc<Metrics>,
        events: Events,
        cluster_ca: Vec<Vec<u8>>,
        term: Term,
    ) -> Self {
        Self {
            client,
            turnstile: Turnstile::new(settings.concurrency),
            debounce: Debounce::default(),
            keeper,
            settings,
            clouds,
            cluster,
            index: Index::default(),
            metrics,
            events,
            unsealers: Unsealers::default(),
            inits: Arc::default(),
            rotations: Arc::default(),
            cluster_ca,
            term,
            memories: Memories::default(),
            managed: Memories::default(),
            scopes: Mutex::default(),
        }
    }

    /// A part of the cluster is watched from now on.
    pub fn watches(&self, scope: Scope) {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.push(scope);
    }

    /// A SealConfig as the watch last saw it.
    pub fn config(&self, namespace: &str, name: &str) -> Option<SealConfig> {
        self.memories.shown(namespace, name)?.read()
    }

    /// A SealConfig is to be looked at again.
    pub fn look_at(&self, namespace: &str, name: &str) {
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        for scope in scopes.iter().filter(|scope| scope.holds(namespace)) {
            scope.look_at(namespace, [name.to_owned()]);
        }
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.memories.forget(namespace, name);
        self.unsealers.forget(namespace, name);
        self.index.lost_config(namespace, name);
        self.metrics.objects.forget_seal_config(namespace, name);
    }
}
