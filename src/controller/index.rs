//! What is known of other objects, by their metadata: kept small, and never behind our own writes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::core::Selector;

use crate::seal::observed::{NamespaceFacts, PodFacts, SecretFacts};

/// Kinds of objects that SealConfigs and ManagedKeys refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Secrets: sources, credentials, targets.
    Secret,
    /// ConfigMaps: sources.
    ConfigMap,
    /// ServiceAccounts: identities.
    ServiceAccount,
    /// SealConfigs: the seals of ManagedKeys.
    SealConfig,
}

type Name = (String, String);

/// Everything that is known of other objects.
#[derive(Default)]
pub struct Index {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    secrets: HashMap<Name, SecretFacts>,
    /// resourceVersions of ConfigMaps.
    config_maps: HashMap<Name, String>,
    /// Labels and annotations of namespaces.
    namespaces: HashMap<String, NamespaceFacts>,
    pods: HashMap<String, BTreeMap<String, Arc<PodFacts>>>,
    /// Who refers to what.
    references: HashMap<(Kind, Name), BTreeSet<String>>,
    /// What each SealConfig refers to, for the reverse.
    referring: HashMap<Name, References>,
    /// UIDs of the SealConfigs that exist.
    living: HashMap<Name, String>,
    /// The pods that SealConfigs unseal, whoever works on these SealConfigs.
    unseals: HashMap<Name, Selector>,
    /// The ManagedKeys.
    managed: HashMap<Name, ManagedFacts>,
    /// The scopes whose SealConfigs are all known.
    listed: HashSet<Option<String>>,
}

/// Before the name of a ManagedKey where names of SealConfigs stand as well; no name holds a slash.
const MANAGED: &str = "managedkey/";

/// How a ManagedKey is named among those that refer to something.
pub fn managed(name: &str) -> String {
    format!("{MANAGED}{name}")
}

/// The ManagedKey that is named so; `None` = it is a SealConfig.
pub fn as_managed(name: &str) -> Option<&str> {
    name.strip_prefix(MANAGED)
}

/// What a SealConfig must know of a ManagedKey that refers to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManagedFacts {
    /// The SealConfig.
    pub config: String,
    /// The seals that open its material.
    pub wrapped_under: BTreeSet<String>,
}

/// What a SealConfig refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Kind and name, in its own namespace.
    pub objects: BTreeSet<(Kind, String)>,
    /// Secrets that it reads.
    pub read_secrets: BTreeSet<String>,
    /// It selects pods.
    pub selects_pods: bool,
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-made entry here: every change is one insert or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A Secret was seen, by us or by the watch. Returns whether this was news: neither an echo of our own write
    /// nor older than what is known.
    pub fn saw_secret(&self, namespace: &str, name: &str, facts: SecretFacts) -> bool {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(known) = inner.secrets.get(&key)
            && !newer(&known.resource_version, &facts.resource_version)
        {
            return false;
        }
        inner.secrets.insert(key, facts);
        true
    }

    /// A Secret is gone. `resource_version` is that of the deletion, if it is known.
    pub fn lost_secret(&self, namespace: &str, name: &str, resource_version: Option<&str>) -> bool {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let newer_known = match (inner.secrets.get(&key), resource_version) {
            (Some(known), Some(version)) => !newer(&known.resource_version, version),
            _ => false,
        };
        !newer_known && inner.secrets.remove(&key).is_some()
    }

    /// Names of the Secrets known in a scope, to find those that a new list does not hold.
    pub fn secret_names(&self, namespace: Option<&str>) -> HashSet<Name> {
        let inner = self.lock();
        inner
            .secrets
            .keys()
            .filter(|(ns, _)| namespace.is_none_or(|wanted| wanted == ns))
            .cloned()
            .collect()
    }

    /// A Secret's facts.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<SecretFacts> {
        self.lock()
            .secrets
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// The Secrets of a namespace that name this SealConfig as the one that delivered keys to them.
    pub fn delivered_by(&self, namespace: &str, name: &str) -> BTreeMap<String, SecretFacts> {
        let inner = self.lock();
        let of_it = inner.secrets.iter().filter(|((ns, _), facts)| {
            ns == namespace && facts.owner_name.as_deref() == Some(name) && !facts.delivered.marks.is_empty()
        });
        of_it
            .map(|((_, secret), facts)| (secret.clone(), facts.clone()))
            .collect()
    }

    /// A ConfigMap was seen.
    pub fn saw_config_map(&self, namespace: &str, name: &str, resource_version: String) {
        self.lock()
            .config_maps
            .insert((namespace.to_owned(), name.to_owned()), resource_version);
    }

    /// A ConfigMap is gone.
    pub fn lost_config_map(&self, namespace: &str, name: &str) {
        self.lock()
            .config_maps
            .remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// A ConfigMap's resourceVersion.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<String> {
        self.lock()
            .config_maps
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    /// A namespace was seen. Returns whether what matters to us has changed.
    pub fn saw_namespace(&self, name: &str, meta: NamespaceFacts) -> bool {
        self.lock().namespaces.insert(name.to_owned(), meta.clone()) != Some(meta)
    }

    /// A namespace is gone.
    pub fn lost_namespace(&self, name: &str) {
        self.lock().namespaces.remove(name);
    }

    /// A namespace's labels and annotations.
    pub fn namespace(&self, name: &str) -> NamespaceFacts {
        self.lock().namespaces.get(name).cloned().unwrap_or_default()
    }

    /// A pod was seen. Returns whether its facts have changed.
    pub fn saw_pod(&self, namespace: &str, facts: PodFacts) -> bool {
        let mut inner = self.lock();
        let pods = inner.pods.entry(namespace.to_owned()).or_default();
        if pods.get(&facts.name).is_some_and(|known| **known == facts) {
            return false;
        }
        pods.insert(facts.name.clone(), Arc::new(facts));
        true
    }

    /// A pod is gone.
    pub fn lost_pod(&self, namespace: &str, name: &str) {
        let mut inner = self.lock();
        if let Some(pods) = inner.pods.get_mut(namespace) {
            pods.remove(name);
            if pods.is_empty() {
                inner.pods.remove(namespace);
            }
        }
    }

    /// The pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Vec<Arc<PodFacts>> {
        self.lock()
            .pods
            .get(namespace)
            .map(|pods| pods.values().cloned().collect())
            .unwrap_or_default()
    }

    /// A SealConfig exists.
    pub fn saw_config(&self, namespace: &str, name: &str, uid: String) {
        self.lock()
            .living
            .insert((namespace.to_owned(), name.to_owned()), uid);
    }

    /// A SealConfig is gone, and with it its references.
    pub fn lost_config(&self, namespace: &str, name: &str) {
        self.refer(namespace, name, References::default());
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        inner.referring.remove(&key);
        inner.unseals.remove(&key);
        inner.living.remove(&key);
    }

    /// A ManagedKey was seen. Whether what matters to its SealConfig has changed.
    pub fn saw_managed(&self, namespace: &str, name: &str, facts: ManagedFacts) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        self.lock().managed.insert(key, facts.clone()) != Some(facts)
    }

    /// A ManagedKey is gone, and with it its references.
    pub fn lost_managed(&self, namespace: &str, name: &str) {
        self.refer(namespace, &managed(name), References::default());
        let mut inner = self.lock();
        inner.referring.remove(&(namespace.to_owned(), managed(name)));
        inner.managed.remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// What is known of a ManagedKey.
    pub fn managed(&self, namespace: &str, name: &str) -> Option<ManagedFacts> {
        let key = (namespace.to_owned(), name.to_owned());
        self.lock().managed.get(&key).cloned()
    }

    /// The ManagedKeys that refer to a SealConfig, by name.
    pub fn dependants(&self, namespace: &str, config: &str) -> BTreeMap<String, ManagedFacts> {
        let inner = self.lock();
        let of_it = inner
            .managed
            .iter()
            .filter(|((ns, _), facts)| ns == namespace && facts.config == config);
        of_it
            .map(|((_, name), facts)| (name.clone(), facts.clone()))
            .collect()
    }

    /// A SealConfig unseals these pods, or none. Whether this is news.
    pub fn saw_unseal(&self, namespace: &str, name: &str, selector: Option<Selector>) -> bool {
        let mut inner = self.lock();
        let key = (namespace.to_owned(), name.to_owned());
        match selector {
            Some(selector) => inner.unseals.insert(key, selector.clone()) != Some(selector),
            None => inner.unseals.remove(&key).is_some(),
        }
    }

    /// The SealConfigs of a scope are listed anew: until all are known, nobody can say whose a pod is.
    pub fn listing_configs(&self, scope: Option<&str>) {
        let mut inner = self.lock();
        inner.listed.remove(&scope.map(ToOwned::to_owned));
        inner
            .unseals
            .retain(|(namespace, _), _| scope.is_some_and(|scope| scope != namespace));
    }

    /// All SealConfigs of a scope are known.
    pub fn listed_configs(&self, scope: Option<&str>) {
        self.lock().listed.insert(scope.map(ToOwned::to_owned));
    }

    /// Which SealConfigs of a namespace unseal which pods; `None` = not all are known yet.
    pub fn unseals(&self, namespace: &str) -> Option<Vec<(String, Selector)>> {
        let inner = self.lock();
        if !inner.listed.contains(&None) && !inner.listed.contains(&Some(namespace.to_owned())) {
            return None;
        }
        let of_namespace = inner.unseals.iter().filter(|((ns, _), _)| ns == namespace);
        Some(
            of_namespace
                .map(|((_, name), selector)| (name.clone(), selector.clone()))
                .collect(),
        )
    }

    /// UIDs of the SealConfigs of a namespace.
    pub fn living(&self, namespace: &str) -> BTreeSet<String> {
        self.lock()
            .living
            .iter()
            .filter(|((ns, _), _)| ns == namespace)
            .map(|(_, uid)| uid.clone())
            .collect()
    }

    /// Names of the SealConfigs of a namespace, and of its ManagedKeys.
    pub fn configs(&self, namespace: &str) -> Vec<String> {
        let inner = self.lock();
        let of_namespace = |(ns, _): &&Name| ns == namespace;
        let configs = inner
            .living
            .keys()
            .filter(of_namespace)
            .map(|(_, name)| name.clone());
        let keys = inner
            .managed
            .keys()
            .filter(of_namespace)
            .map(|(_, name)| managed(name));
        configs.chain(keys).collect()
    }

    /// Names of the SealConfigs of a namespace that select pods.
    pub fn configs_with_pods(&self, namespace: &str) -> Vec<String> {
        let inner = self.lock();
        let selecting = inner
            .referring
            .iter()
            .filter(|((ns, _), refers)| ns == namespace && refers.selects_pods);
        selecting.map(|((_, name), _)| name.clone()).collect()
    }

    /// Sets what a SealConfig refers to.
    pub fn refer(&self, namespace: &str, name: &str, references: References) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let key = (namespace.to_owned(), name.to_owned());
        if inner.referring.get(&key) == Some(&references) {
            return;
        }
        let before = inner
            .referring
            .insert(key, references.clone())
            .unwrap_or_default();
        for (kind, object) in before.objects {
            let place = (kind, (namespace.to_owned(), object));
            if let Some(names) = inner.references.get_mut(&place) {
                names.remove(name);
                if names.is_empty() {
                    inner.references.remove(&place);
                }
            }
        }
        for (kind, object) in references.objects {
            inner
                .references
                .entry((kind, (namespace.to_owned(), object)))
                .or_default()
                .insert(name.to_owned());
        }
    }

    /// Names of the SealConfigs that refer to an object.
    pub fn referring(&self, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
        let place = (kind, (namespace.to_owned(), name.to_owned()));
        self.lock()
            .references
            .get(&place)
            .map(|names| names.iter().cloned().collect())
            .unwrap_or_default()
    }

    /// Secrets that any SealConfig of a namespace reads.
    pub fn read_secrets(&self, namespace: &str) -> BTreeSet<String> {
        let inner = self.lock();
        let of_namespace = inner.referring.iter().filter(|((ns, _), _)| ns == namespace);
        of_namespace
            .flat_map(|(_, refers)| refers.read_secrets.iter().cloned())
            .collect()
    }
}

/// Whether `next` comes after `known`. Versions are decimal numbers that grow; Kubernetes promises that they can be
/// compared (KEP-5504). Anything else counts as news.
fn newer(known: &str, next: &str) -> bool {
    match (known.parse::<u128>(), next.parse::<u128>()) {
        (Ok(known), Ok(next)) => next > known,
        _ => known != next,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(version: &str) -> SecretFacts {
        SecretFacts {
            resource_version: version.into(),
            ..SecretFacts::default()
        }
    }

    #[test]
    fn echoes_and_late_events_are_no_news() {
        let index = Index::default();
        assert!(index.saw_secret("n", "s", facts("10")));
        assert!(!index.saw_secret("n", "s", facts("10")));
        assert!(!index.saw_secret("n", "s", facts("9")));
        assert!(index.saw_secret("n", "s", facts("11")));
        assert!(!index.lost_secret("n", "s", Some("9")));
        assert!(index.lost_secret("n", "s", Some("12")));
        assert_eq!(index.secret("n", "s"), None);
    }

    #[test]
    fn nobody_knows_whose_a_pod_is_before_all_are_listed() {
        let index = Index::default();
        let selector = || Some(Selector::from_iter([("app".to_owned(), "x".to_owned())]));
        index.listing_configs(None);
        assert!(index.saw_unseal("n", "a", selector()) && !index.saw_unseal("n", "a", selector()));
        assert!(index.unseals("n").is_none());
        index.listed_configs(None);
        assert_eq!(index.unseals("n").unwrap().len(), 1);
        assert!(index.unseals("other").unwrap().is_empty());
        assert!(index.saw_unseal("n", "a", None));
        assert!(index.unseals("n").unwrap().is_empty());
        index.listing_configs(Some("n"));
        index.listed_configs(Some("n"));
        index.listing_configs(None);
        assert!(index.unseals("n").is_some() && index.unseals("m").is_none());
    }

    #[test]
    fn references_follow_the_spec() {
        let index = Index::default();
        let references = |names: &[&str]| References {
            objects: names
                .iter()
                .map(|name| (Kind::Secret, (*name).to_owned()))
                .collect(),
            ..References::default()
        };
        index.refer("n", "a", references(&["x", "y"]));
        index.refer("n", "b", references(&["x"]));
        assert_eq!(index.referring(Kind::Secret, "n", "x"), ["a", "b"]);
        index.refer("n", "a", references(&["y"]));
        assert_eq!(index.referring(Kind::Secret, "n", "x"), ["b"]);
        index.lost_config("n", "b");
        assert!(index.referring(Kind::Secret, "n", "x").is_empty());
        assert!(index.referring(Kind::Secret, "other", "y").is_empty());
    }
}
