//! What every reconcile shares.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use kube::Client;

use kube::runtime::reflector::{ObjectRef, Store};

use super::{
    debounce::Debounce,
    events::Events,
    index::Index,
    kept::Kept,
    managed::Memories,
    turnstile::Turnstile,
    unseal::{Inits, Rotations, Unsealers},
    watch::Scope,
};
use crate::{
    api::{SealConfig, SealConfigStatus},
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
    /// What is remembered of ManagedKeys.
    pub managed: Memories,
    scopes: Mutex<Vec<Scope>>,
    configs: Mutex<Vec<Store<Kept>>>,
    objects: Mutex<HashMap<(String, String), Box<Remembered>>>,
}

/// What is remembered of one SealConfig between reconciles.
#[derive(Default)]
pub struct Remembered {
    /// UID: a successor of the same name starts afresh.
    pub uid: String,
    /// Failures, repairs, marks.
    pub memory: Memory,
    /// The status as it stands after the last reconcile: the watch may still be behind it.
    pub status: Option<SealConfigStatus>,
    /// The status as the apiserver has it, if writing the last one failed.
    pub saved: Option<SealConfigStatus>,
    /// Copies that were read, with the resourceVersion they were read at.
    pub sources: BTreeMap<SourceRef, (String, SourceFacts)>,
    /// The wrapped store as it was last read.
    pub store: Option<StoreFacts>,
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
            managed: Memories::default(),
            scopes: Mutex::default(),
            configs: Mutex::default(),
            objects: Mutex::default(),
        }
    }

    /// A part of the cluster is watched from now on.
    pub fn watches(&self, scope: Scope) {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        scopes.push(scope);
    }

    /// SealConfigs are watched here from now on.
    pub fn reads(&self, configs: Store<Kept>) {
        let mut all = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(configs);
    }

    /// A SealConfig as the watch last saw it.
    pub fn config(&self, namespace: &str, name: &str) -> Option<SealConfig> {
        let all = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let reference = ObjectRef::new(name).within(namespace);
        let found = all.iter().find_map(|configs| configs.get(&reference))?;
        found.read()
    }

    /// A SealConfig is to be looked at again.
    pub fn look_at(&self, namespace: &str, name: &str) {
        let scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        for scope in scopes.iter().filter(|scope| scope.holds(namespace)) {
            scope.look_at(namespace, [name.to_owned()]);
        }
    }

    /// Takes what is remembered of an object; nothing if it is another of the same name. kube never reconciles one
    /// object twice at once, so nobody misses it meanwhile.
    pub fn recall(&self, namespace: &str, name: &str, uid: &str) -> Box<Remembered> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        objects
            .remove(&key)
            .filter(|remembered| remembered.uid == uid)
            .unwrap_or_else(|| {
                Box::new(Remembered {
                    uid: uid.to_owned(),
                    ..Remembered::default()
                })
            })
    }

    /// Puts back what is remembered.
    pub fn remember(&self, namespace: &str, name: &str, remembered: Box<Remembered>) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.insert((namespace.to_owned(), name.to_owned()), remembered);
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.remove(&(namespace.to_owned(), name.to_owned()));
        drop(objects);
        self.unsealers.forget(namespace, name);
        self.index.lost_config(namespace, name);
        self.metrics.forget(namespace, name);
    }
}
