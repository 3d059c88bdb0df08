//! Watches: each keeps the index up to date and says which SealConfigs to look at again.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures::{StreamExt, future::ready, stream::BoxStream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    core::{NamespaceResourceScope, PartialObjectMeta, Resource},
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{
    context::Context,
    feed::Feed,
    index::{self, Kind},
    memories::named,
};
use crate::{
    kube_ext::{facts, missing::AskedFor},
    provider,
};

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

/// How long a watch that failed waits until it is begun anew: longer each time, and never more than eight seconds, so that an
/// apiserver that was away is followed soon after its return. kube's own waits grow to a minute.
#[derive(Default)]
pub struct Pauses {
    in_a_row: u32,
}

impl Pauses {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(8);
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let whole = Self::FIRST.saturating_mul(2_u32.saturating_pow(self.in_a_row));
        self.in_a_row = self.in_a_row.saturating_add(1);
        // The watches failed in one moment, and are not to come back in one.
        Some(whole.min(Self::LONGEST).mul_f64(0.5 + provider::jitter() / 2.0))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.in_a_row = 0;
    }
}

/// How many first lists are still awaited.
pub type Pending = Arc<watch::Sender<usize>>;

/// A watch as a stream that never ends, told apart by namespace and name.
fn events<K>(api: Api<K>, config: watcher::Config, kind: &'static str) -> BoxStream<'static, Event<K>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher(api, config)
        .backoff(Pauses::default())
        .filter_map(move |event| {
            if event.is_err() {
                // Its text is the server's; the right that is missing is what people need to know.
                tracing::warn!(
                    kind,
                    "a watch failed and is started again; may the operator list and watch them?"
                );
            }
            ready(event.ok())
        })
        .boxed()
}

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
                context
                    .index
                    .saw_config_map(&namespace, &name, &map.resource_version().unwrap_or_default());
                scope.look_at(
                    &namespace,
                    context.index.referring(Kind::ConfigMap, &namespace, &name),
                );
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
    let mut first = true;
    while let Some(event) = stream.next().await {
        match event {
            Event::Init => {}
            Event::InitDone => listed(&pending, &mut first),
            Event::InitApply(account) | Event::Apply(account) | Event::Delete(account) => {
                let (namespace, name) = named(&account);
                context
                    .cluster
                    .appeared(AskedFor::ServiceAccount, &namespace, &name);
                scope.look_at(
                    &namespace,
                    context.index.referring(Kind::ServiceAccount, &namespace, &name),
                );
            }
        }
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
    fn a_watch_waits_longer_each_time_up_to_seconds_and_is_quick_again_after_a_success() {
        let mut pauses = Pauses::default();
        for _ in 0..2 {
            for seconds in [1, 2, 4, 8, 8, 8] {
                let whole = Duration::from_secs(seconds);
                let pause = pauses.next().unwrap();
                assert!(whole / 2 <= pause && pause <= whole, "{pause:?} of {whole:?}");
            }
            pauses.reset();
        }
        pauses.in_a_row = u32::MAX;
        assert!(pauses.next().unwrap() <= Pauses::LONGEST);
    }
}
