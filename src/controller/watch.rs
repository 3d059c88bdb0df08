//! Watches: each keeps the index up to date and says which SealConfigs to look at again.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    core::{NamespaceResourceScope, PartialObjectMeta, Resource},
    runtime::watcher::{self, Event},
};
use tokio::sync::watch;

use super::{
    context::Context,
    feed::Feed,
    index::{self, Kind},
    memories::{Name, named},
    stream::events,
};
use crate::kube_ext::{facts, missing::AskedFor};

/// A part of the cluster that is watched: one namespace, or all.
#[derive(Clone)]
pub struct Scope {
    /// `None` = all.
    pub namespace: Option<String>,
    /// The SealConfigs to look at.
    pub configs: Arc<Feed>,
    /// Whether the apiserver sends lists object by object.
    pub streams: bool,
    /// The ManagedKeys.
    pub managed: Arc<Feed>,
}

impl Scope {
    /// The typed client of this scope.
    pub fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        }
    }

    /// Whether a namespace is part of it.
    pub fn holds(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|own| own == namespace)
    }

    /// Has these SealConfigs and ManagedKeys ([`index::managed`]) looked at again.
    pub fn look_at(&self, namespace: &str, names: impl IntoIterator<Item = String>) {
        for name in names {
            match index::as_managed(&name) {
                Some(key) => self.managed.ask(namespace, key),
                None => self.configs.ask(namespace, &name),
            }
        }
    }
}

/// Whether an apiserver sends lists object by object (KEP-3157): on by default for good from 1.34 on.
pub async fn streams_lists(client: &Client) -> bool {
    let version = client.apiserver_version().await.ok();
    let number = |text: &str| text.trim_end_matches('+').parse::<u32>().ok();
    version.is_some_and(|version| number(&version.major) == Some(1) && number(&version.minor) >= Some(34))
}

/// How many first lists are still awaited.
pub type Pending = Arc<watch::Sender<usize>>;

impl Scope {
    /// A first list of what others own. Object by object and from the apiserver's cache, where it can do that: a list of
    /// all Secrets of a large cluster would take more than everything else that is kept. What is missing in the cache
    /// comes with the watch, and a decision made by it does no harm.
    fn list(&self) -> watcher::Config {
        let config = watcher::Config::default();
        if self.streams {
            config.streaming_lists()
        } else {
            config
        }
    }
}

fn listed(pending: &Pending, first: &mut bool) {
    if std::mem::take(first) {
        pending.send_modify(|left| *left = left.saturating_sub(1));
    }
}

type Meta<K> = PartialObjectMeta<K>;

/// Secrets, by their metadata only.
pub async fn secrets(context: Arc<Context>, scope: Scope, pending: Pending) {
    let mut stream = events(
        scope.api::<Meta<Secret>>(context.client.clone()),
        // A list that is behind shows a delivered Secret as touched or absent: it is applied once more, which changes
        // nothing (see `deliver`), and a start does not wait for the apiserver's cache.
        scope.list(),
        "secrets",
    );
    let mut first = true;
    let mut gone = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => gone = context.index.secret_names(scope.namespace.as_deref()),
            Event::InitApply(secret) | Event::Apply(secret) => {
                let (namespace, name) = named(&secret);
                context.cluster.appeared(AskedFor::Secret, &namespace, &name);
                gone.remove(&(namespace.clone(), name.clone()));
                if context
                    .index
                    .saw_secret(&namespace, &name, &facts::secret(&secret.metadata))
                {
                    scope.look_at(
                        &namespace,
                        context.index.referring(Kind::Secret, &namespace, &name),
                    );
                }
            }
            Event::Delete(secret) => {
                let (namespace, name) = named(&secret);
                if context
                    .index
                    .lost_secret(&namespace, &name, secret.metadata.resource_version.as_deref())
                {
                    scope.look_at(
                        &namespace,
                        context.index.referring(Kind::Secret, &namespace, &name),
                    );
                }
            }
            Event::InitDone => {
                for (namespace, name) in gone.drain() {
                    context.index.lost_secret(&namespace, &name, None);
                    scope.look_at(
                        &namespace,
                        context.index.referring(Kind::Secret, &namespace, &name),
                    );
                }
                listed(&pending, &mut first);
            }
        }
    }
}

/// ConfigMaps, by their metadata only.
pub async fn config_maps(context: Arc<Context>, scope: Scope, pending: Pending) {
    let mut stream = events(
        scope.api::<Meta<ConfigMap>>(context.client.clone()),
        scope.list(),
        "configmaps",
    );
    let lost = |namespace: &str, name: &str| {
        context.index.lost_config_map(namespace, name);
        scope.look_at(
            namespace,
            context.index.referring(Kind::ConfigMap, namespace, name),
        );
    };
    let mut first = true;
    let mut gone = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => gone = context.index.config_map_names(scope.namespace.as_deref()),
            Event::InitApply(map) | Event::Apply(map) => {
                let (namespace, name) = named(&map);
                gone.remove(&(namespace.clone(), name.clone()));
                // A list after the first one shows thousands that are as they were.
                let version = map.resource_version().unwrap_or_default();
                if context.index.saw_config_map(&namespace, &name, &version) {
                    scope.look_at(
                        &namespace,
                        context.index.referring(Kind::ConfigMap, &namespace, &name),
                    );
                }
            }
            Event::Delete(map) => {
                let (namespace, name) = named(&map);
                lost(&namespace, &name);
            }
            Event::InitDone => {
                for (namespace, name) in gone.drain() {
                    lost(&namespace, &name);
                }
                listed(&pending, &mut first);
            }
        }
    }
}

/// ServiceAccounts: only to look again when one that is waited for appears or changes.
pub async fn service_accounts(context: Arc<Context>, scope: Scope, pending: Pending) {
    let mut stream = events(
        scope.api::<Meta<ServiceAccount>>(context.client.clone()),
        scope.list(),
        "serviceaccounts",
    );
    let look = |name: &Name| {
        let referring = context.index.referring(Kind::ServiceAccount, &name.0, &name.1);
        scope.look_at(&name.0, referring);
    };
    let mut first = true;
    let mut versions = Versions::default();
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => versions.listing(),
            Event::InitApply(account) | Event::Apply(account) => {
                let name = named(&account);
                context
                    .cluster
                    .appeared(AskedFor::ServiceAccount, &name.0, &name.1);
                let version = account.resource_version().unwrap_or_default();
                // Most are nobody's business, and nothing is kept of them.
                if context.index.refers(Kind::ServiceAccount, &name.0, &name.1)
                    && versions.saw(name.clone(), version)
                {
                    look(&name);
                }
            }
            Event::Delete(account) => {
                let name = named(&account);
                versions.lost(&name);
                look(&name);
            }
            Event::InitDone => {
                for name in versions.listed() {
                    look(&name);
                }
                listed(&pending, &mut first);
            }
        }
    }
}

/// The resourceVersions of some objects: a list after the first one shows thousands that are as they were.
#[derive(Default)]
struct Versions {
    known: HashMap<Name, String>,
    /// What was known when a list began, and was not in it yet.
    earlier: HashMap<Name, String>,
}

impl Versions {
    fn listing(&mut self) {
        self.earlier.extend(self.known.drain());
    }

    /// Whether it is another than was known.
    fn saw(&mut self, name: Name, version: String) -> bool {
        let before = self.earlier.remove(&name);
        let before = self.known.insert(name, version.clone()).or(before);
        before != Some(version)
    }

    fn lost(&mut self, name: &Name) {
        self.known.remove(name);
    }

    /// Those that the list did not hold.
    fn listed(&mut self) -> Vec<Name> {
        std::mem::take(&mut self.earlier).into_keys().collect()
    }
}

/// Pods, kept as the few facts that decisions need.
pub async fn pods(context: Arc<Context>, scope: Scope, pending: Pending) {
    let mut stream = events(scope.api::<Pod>(context.client.clone()), scope.list(), "pods");
    let tell = |namespace: &str, selecting: Vec<String>| {
        // Straight to who waits for it: no reconcile that waits for a KMS stands between a restart and its unsealing.
        context.unsealers.sync(&context, namespace);
        scope.look_at(namespace, selecting);
    };
    let mut first = true;
    let mut gone = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => gone = context.index.pod_names(scope.namespace.as_deref()),
            Event::InitApply(pod) | Event::Apply(pod) => {
                let (namespace, name) = named(&pod);
                let selecting = context.index.saw_pod(&namespace, facts::pod(&pod));
                if let Some(selecting) = selecting {
                    tell(&namespace, selecting);
                }
                gone.remove(&(namespace, name));
            }
            Event::Delete(pod) => {
                let (namespace, name) = named(&pod);
                tell(&namespace, context.index.lost_pod(&namespace, &name));
            }
            Event::InitDone => {
                for (namespace, name) in gone.drain() {
                    tell(&namespace, context.index.lost_pod(&namespace, &name));
                }
                listed(&pending, &mut first);
            }
        }
    }
}

/// Namespaces: who may use the operator's identity.
pub async fn namespaces(context: Arc<Context>, scope: Scope, pending: Pending) {
    let mut stream = events(
        Api::<Meta<Namespace>>::all(context.client.clone()),
        scope.list(),
        "namespaces",
    );
    let mut first = true;
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => {}
            Event::InitDone => listed(&pending, &mut first),
            Event::InitApply(namespace) | Event::Apply(namespace) => {
                let name = namespace.name_any();
                let facts = facts::namespace(namespace.meta());
                if context.index.saw_namespace(&name, facts) {
                    scope.look_at(&name, context.index.configs(&name));
                }
            }
            Event::Delete(namespace) => context.index.lost_namespace(&namespace.name_any()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_list_tells_only_what_is_new_in_it() {
        let name = |name: &str| ("n".to_owned(), name.to_owned());
        let mut versions = Versions::default();
        versions.listing();
        assert!(versions.saw(name("a"), "1".into()) && versions.saw(name("b"), "2".into()));
        assert_eq!(versions.listed(), Vec::<Name>::new());
        assert!(versions.saw(name("c"), "3".into()), "by the watch");
        versions.lost(&name("c"));
        // A list that broke, and the next one.
        versions.listing();
        assert!(!versions.saw(name("a"), "1".into()));
        versions.listing();
        assert!(!versions.saw(name("a"), "1".into()) && versions.saw(name("c"), "4".into()));
        assert_eq!(versions.listed(), [name("b")], "gone meanwhile");
        assert!(versions.saw(name("a"), "5".into()));
    }
}
