//! What is known of other objects, by their metadata: kept small, and never behind our own writes.
//!
//! Kept by namespace: nothing that one SealConfig needs to know costs more because other namespaces are full.

mod pod;
mod secret;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use kube::core::{Selector, SelectorExt};

use super::memories::Name;
use crate::seal::observed::{NamespaceFacts, PodFacts, SecretFacts};
use secret::Secrets;

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

/// Everything that is known of other objects.
#[derive(Default)]
pub struct Index {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    spaces: HashMap<String, Space>,
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

/// What is known of one namespace.
#[derive(Default)]
struct Space {
    /// Its labels and annotations.
    meta: NamespaceFacts,
    secrets: Secrets,
    /// resourceVersions.
    config_maps: HashMap<Box<str>, Box<str>>,
    pods: HashMap<Box<str>, Box<pod::Known>>,
    /// SealConfigs, and what ManagedKeys refer to ([`managed`]).
    configs: HashMap<Box<str>, Config>,
    /// Who refers to what.
    referred: HashMap<Kind, HashMap<Box<str>, Names>>,
    /// The ManagedKeys.
    managed: HashMap<String, ManagedFacts>,
}

/// Names in their order: most objects are referred to by one or two.
type Names = Vec<Box<str>>;

/// What is known of one SealConfig.
#[derive(Default)]
struct Config {
    /// `None` = it is not known to exist.
    uid: Option<Box<str>>,
    refers: Option<Box<Refers>>,
    /// The pods that it unseals, whoever works on it.
    unseals: Option<Box<Selector>>,
}

impl Config {
    fn is_blank(&self) -> bool {
        self.uid.is_none() && self.refers.is_none() && self.unseals.is_none()
    }
}

/// [`References`], without room for more.
#[derive(PartialEq)]
struct Refers {
    objects: Box<[(Kind, Box<str>)]>,
    read_secrets: Box<[Box<str>]>,
    pods: Box<[Selector]>,
}

impl From<References> for Refers {
    fn from(references: References) -> Self {
        let objects = references.objects.into_iter();
        Self {
            objects: objects.map(|(kind, name)| (kind, name.into())).collect(),
            read_secrets: references.read_secrets.into_iter().map(Into::into).collect(),
            // A copy has no room for more, either.
            pods: references.pods.iter().cloned().collect(),
        }
    }
}

impl Space {
    fn is_empty(&self) -> bool {
        self.meta == NamespaceFacts::default()
            && self.secrets.is_empty()
            && self.config_maps.is_empty()
            && self.pods.is_empty()
            && self.configs.is_empty()
            && self.managed.is_empty()
    }

    /// Changes what is known of a SealConfig; nothing is kept of one of which nothing is known.
    fn config<T>(&mut self, name: &str, change: impl FnOnce(&mut Config) -> T) -> T {
        let config = self.configs.entry(name.into()).or_default();
        let outcome = change(config);
        if config.is_blank() {
            self.configs.remove(name);
        }
        outcome
    }

    fn refer(&mut self, name: &str, references: References) {
        let refers = (references != References::default()).then(|| Box::new(Refers::from(references)));
        if self.configs.get(name).map(|config| &config.refers) == Some(&refers) {
            return;
        }
        for (kind, object) in refers.iter().flat_map(|refers| &refers.objects) {
            let names = self.referred.entry(*kind).or_default();
            let names = names.entry(object.clone()).or_default();
            if let Err(place) = names.binary_search_by(|known| (**known).cmp(name)) {
                names.reserve_exact(1);
                names.insert(place, name.into());
            }
        }
        let before = self.config(name, |config| std::mem::replace(&mut config.refers, refers));
        let now = self.configs.get(name).and_then(|config| config.refers.as_deref());
        for (kind, object) in before.iter().flat_map(|before| &before.objects) {
            let still = now.is_some_and(|now| now.objects.iter().any(|(k, o)| (k, o) == (kind, object)));
            let of_kind = self.referred.get_mut(kind);
            let (false, Some(of_kind)) = (still, of_kind) else {
                continue;
            };
            if let Some(names) = of_kind.get_mut(object) {
                names.retain(|known| **known != *name);
                if names.is_empty() {
                    of_kind.remove(object);
                }
            }
        }
    }

    /// Who refers to an object.
    fn referred(&self, kind: Kind, name: &str) -> &[Box<str>] {
        let names = self.referred.get(&kind).and_then(|of_kind| of_kind.get(name));
        names.map(Vec::as_slice).unwrap_or_default()
    }

    /// Who selects pods that are selected so.
    fn selecting(&self, selects: impl Fn(&Selector) -> bool) -> Vec<String> {
        let configs = self.configs.iter().filter(|(_, config)| {
            let refers = config.refers.as_deref();
            refers.is_some_and(|refers| refers.pods.iter().any(&selects))
        });
        configs.map(|(name, _)| name.to_string()).collect()
    }

    /// The SealConfigs that exist, and their UIDs.
    fn living(&self) -> impl Iterator<Item = (&str, &str)> {
        let configs = self.configs.iter();
        configs.filter_map(|(name, config)| Some((&**name, config.uid.as_deref()?)))
    }
}

/// What a SealConfig refers to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct References {
    /// Kind and name, in its own namespace.
    pub objects: Vec<(Kind, String)>,
    /// Secrets that it reads.
    pub read_secrets: Vec<String>,
    /// The pods that it selects.
    pub pods: Vec<Selector>,
}

impl Index {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-made entry here: every change is one insert or remove.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is known of a namespace.
    fn read<T: Default>(&self, namespace: &str, read: impl FnOnce(&Space) -> T) -> T {
        self.lock().spaces.get(namespace).map(read).unwrap_or_default()
    }

    /// Changes what is known of a namespace; nothing is kept of one that is empty.
    fn change<T>(&self, namespace: &str, change: impl FnOnce(&mut Space) -> T) -> T {
        let mut inner = self.lock();
        if !inner.spaces.contains_key(namespace) {
            inner.spaces.insert(namespace.to_owned(), Space::default());
        }
        let space = inner.spaces.entry(namespace.to_owned()).or_default();
        let outcome = change(space);
        if space.is_empty() {
            inner.spaces.remove(namespace);
        }
        outcome
    }

    /// A Secret was seen, by us or by the watch. Returns whether this was news: neither an echo of our own write
    /// nor older than what is known.
    pub fn saw_secret(&self, namespace: &str, name: &str, facts: &SecretFacts) -> bool {
        self.change(namespace, |space| {
            let known = space.secrets.get(name);
            if known.is_some_and(|known| !newer(&known.resource_version, &facts.resource_version)) {
                return false;
            }
            space.secrets.insert(name, facts);
            true
        })
    }

    /// A Secret is gone. `resource_version` is that of the deletion, if it is known.
    pub fn lost_secret(&self, namespace: &str, name: &str, resource_version: Option<&str>) -> bool {
        self.change(namespace, |space| {
            let newer_known = match (space.secrets.get(name), resource_version) {
                (Some(known), Some(version)) => !newer(&known.resource_version, version),
                _ => false,
            };
            !newer_known && space.secrets.remove(name)
        })
    }

    /// Objects known in a scope, to find those that a new list does not hold.
    fn names<'a, I: Iterator<Item = &'a str>>(
        inner: &'a Inner,
        scope: Option<&str>,
        of: impl Fn(&'a Space) -> I,
    ) -> HashSet<Name> {
        let spaces = inner
            .spaces
            .iter()
            .filter(|(namespace, _)| scope.is_none_or(|scope| scope == **namespace));
        spaces
            .flat_map(|(namespace, space)| of(space).map(|name| (namespace.clone(), name.to_owned())))
            .collect()
    }

    /// The Secrets known in a scope.
    pub fn secret_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.secrets.names())
    }

    /// The ConfigMaps known in a scope.
    pub fn config_map_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| {
            space.config_maps.keys().map(|name| &**name)
        })
    }

    /// The pods known in a scope.
    pub fn pod_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.pods.keys().map(|name| &**name))
    }

    /// A Secret's facts.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<SecretFacts> {
        self.read(namespace, |space| space.secrets.get(name))
    }

    /// The Secrets of a namespace that name this SealConfig as the one that delivered keys to them.
    pub fn delivered_by(&self, namespace: &str, name: &str) -> BTreeMap<String, SecretFacts> {
        self.read(namespace, |space| {
            let of_it = space.secrets.delivered_by(name);
            of_it.map(|(secret, facts)| (secret.to_owned(), facts)).collect()
        })
    }

    /// A ConfigMap was seen. Returns whether it is another than was known.
    pub fn saw_config_map(&self, namespace: &str, name: &str, resource_version: &str) -> bool {
        self.change(namespace, |space| {
            let before = space.config_maps.insert(name.into(), resource_version.into());
            before.as_deref() != Some(resource_version)
        })
    }

    /// A ConfigMap is gone.
    pub fn lost_config_map(&self, namespace: &str, name: &str) {
        self.change(namespace, |space| {
            space.config_maps.remove(name);
        });
    }

    /// A ConfigMap's resourceVersion.
    pub fn config_map(&self, namespace: &str, name: &str) -> Option<String> {
        self.read(namespace, |space| {
            space.config_maps.get(name).map(ToString::to_string)
        })
    }

    /// A namespace was seen. Returns whether what matters to us has changed.
    pub fn saw_namespace(&self, name: &str, meta: NamespaceFacts) -> bool {
        self.change(name, |space| {
            let news = space.meta != meta;
            space.meta = meta;
            news
        })
    }

    /// A namespace is gone.
    pub fn lost_namespace(&self, name: &str) {
        self.saw_namespace(name, NamespaceFacts::default());
    }

    /// A namespace's labels and annotations.
    pub fn namespace(&self, name: &str) -> NamespaceFacts {
        self.read(name, |space| space.meta.clone())
    }

    /// A pod was seen. Returns the SealConfigs that select it now or did before, by name; `None` = nothing has changed.
    pub fn saw_pod(&self, namespace: &str, facts: PodFacts) -> Option<Vec<String>> {
        self.change(namespace, |space| {
            let before = space.pods.get(facts.name.as_str()).map(|known| known.facts());
            if before.as_ref() == Some(&facts) {
                return None;
            }
            let names = space.selecting(|selector| {
                let before = before.as_ref();
                selector.matches(&facts.labels)
                    || before.is_some_and(|before| selector.matches(&before.labels))
            });
            let name = facts.name.as_str().into();
            space.pods.insert(name, Box::new(facts.into()));
            Some(names)
        })
    }

    /// A pod is gone. Returns the SealConfigs that selected it, by name.
    pub fn lost_pod(&self, namespace: &str, name: &str) -> Vec<String> {
        self.change(namespace, |space| {
            let Some(gone) = space.pods.remove(name) else {
                return Vec::new();
            };
            let labels = gone.labels();
            space.selecting(|selector| selector.matches(&labels))
        })
    }

    /// The pods of a namespace whose labels are selected, by name.
    pub fn pods(
        &self,
        namespace: &str,
        selected: impl Fn(&BTreeMap<String, String>) -> bool,
    ) -> Vec<PodFacts> {
        let mut pods: Vec<PodFacts> = self.read(namespace, |space| {
            let pods = space.pods.values().filter(|pod| selected(&pod.labels()));
            pods.map(|pod| pod.facts()).collect()
        });
        pods.sort_by(|one, other| one.name.cmp(&other.name));
        pods
    }

    /// A SealConfig exists.
    pub fn saw_config(&self, namespace: &str, name: &str, uid: &str) {
        self.change(namespace, |space| {
            space.config(name, |config| config.uid = Some(uid.into()));
        });
    }

    /// A SealConfig is gone, and with it its references.
    pub fn lost_config(&self, namespace: &str, name: &str) {
        self.change(namespace, |space| {
            space.refer(name, References::default());
            space.configs.remove(name);
        });
    }

    /// A ManagedKey was seen. Whether what matters to its SealConfig has changed.
    pub fn saw_managed(&self, namespace: &str, name: &str, facts: ManagedFacts) -> bool {
        self.change(namespace, |space| {
            space.managed.insert(name.to_owned(), facts.clone()) != Some(facts)
        })
    }

    /// A ManagedKey is gone, and with it its references.
    pub fn lost_managed(&self, namespace: &str, name: &str) {
        self.change(namespace, |space| {
            space.refer(&managed(name), References::default());
            space.managed.remove(name);
        });
    }

    /// What is known of a ManagedKey.
    pub fn managed(&self, namespace: &str, name: &str) -> Option<ManagedFacts> {
        self.read(namespace, |space| space.managed.get(name).cloned())
    }

    /// The ManagedKeys that refer to a SealConfig, by name.
    pub fn dependants(&self, namespace: &str, config: &str) -> BTreeMap<String, ManagedFacts> {
        self.read(namespace, |space| {
            let of_it = space.managed.iter().filter(|(_, facts)| facts.config == config);
            of_it.map(|(name, facts)| (name.clone(), facts.clone())).collect()
        })
    }

    /// A SealConfig unseals these pods, or none. Whether this is news.
    pub fn saw_unseal(&self, namespace: &str, name: &str, selector: Option<Selector>) -> bool {
        let selector = selector.map(Box::new);
        self.change(namespace, |space| {
            space.config(name, |config| {
                let news = config.unseals != selector;
                config.unseals = selector;
                news
            })
        })
    }

    /// The SealConfigs of a scope are listed anew: until all are known, nobody can say whose a pod is.
    pub fn listing_configs(&self, scope: Option<&str>) {
        let mut inner = self.lock();
        inner.listed.remove(&scope.map(ToOwned::to_owned));
        for (namespace, space) in &mut inner.spaces {
            if scope.is_none_or(|scope| scope == namespace) {
                space.configs.retain(|_, config| {
                    config.unseals = None;
                    !config.is_blank()
                });
            }
        }
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
        let configs = inner.spaces.get(namespace).map(|space| &space.configs);
        let unseals = configs.into_iter().flatten().filter_map(|(name, config)| {
            let selector = config.unseals.as_deref()?;
            Some((name.to_string(), selector.clone()))
        });
        Some(unseals.collect())
    }

    /// Those of these UIDs that are SealConfigs of a namespace.
    pub fn living(&self, namespace: &str, uids: &BTreeSet<String>) -> BTreeSet<String> {
        if uids.is_empty() {
            return BTreeSet::new();
        }
        self.read(namespace, |space| {
            let uids = space.living().filter(|(_, uid)| uids.contains(*uid));
            uids.map(|(_, uid)| uid.to_owned()).collect()
        })
    }

    /// Names of the SealConfigs of a namespace, and of its ManagedKeys.
    pub fn configs(&self, namespace: &str) -> Vec<String> {
        self.read(namespace, |space| {
            let keys = space.managed.keys().map(|name| managed(name));
            let configs = space.living().map(|(name, _)| name.to_owned());
            configs.chain(keys).collect()
        })
    }

    /// Sets what a SealConfig refers to.
    pub fn refer(&self, namespace: &str, name: &str, references: References) {
        self.change(namespace, |space| space.refer(name, references));
    }

    /// Names of the SealConfigs that refer to an object.
    pub fn referring(&self, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
        self.read(namespace, |space| {
            let names = space.referred(kind, name).iter();
            names.map(ToString::to_string).collect()
        })
    }

    /// Whether anything refers to an object.
    pub fn refers(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.read(namespace, |space| !space.referred(kind, name).is_empty())
    }

    /// Those of these Secrets that any SealConfig of a namespace reads.
    pub fn read_secrets<'a>(
        &self,
        namespace: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> BTreeSet<String> {
        self.read(namespace, |space| {
            let is_read = |name: &str| {
                space.referred(Kind::Secret, name).iter().any(|config| {
                    let refers = space
                        .configs
                        .get(config)
                        .and_then(|config| config.refers.as_deref());
                    refers.is_some_and(|refers| refers.read_secrets.iter().any(|read| **read == *name))
                })
            };
            names
                .filter(|name| is_read(name))
                .map(ToOwned::to_owned)
                .collect()
        })
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
        assert!(index.saw_secret("n", "s", &facts("10")));
        assert!(!index.saw_secret("n", "s", &facts("10")));
        assert!(!index.saw_secret("n", "s", &facts("9")));
        assert!(index.saw_secret("n", "s", &facts("11")));
        assert!(!index.lost_secret("n", "s", Some("9")));
        assert!(index.lost_secret("n", "s", Some("12")));
        assert_eq!(index.secret("n", "s"), None);
        assert!(index.saw_config_map("n", "m", "1"));
        assert!(!index.saw_config_map("n", "m", "1"), "listed again");
        assert!(index.saw_config_map("n", "m", "2"));
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
    fn a_pod_concerns_those_who_select_it_now_or_did_before() {
        let index = Index::default();
        let pods = |app: &str| References {
            pods: vec![Selector::from_iter([("app".to_owned(), app.to_owned())])],
            ..References::default()
        };
        index.refer("n", "a", pods("a"));
        index.refer("n", "b", pods("b"));
        let pod = |app: &str| PodFacts {
            name: "p".into(),
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ..PodFacts::default()
        };
        assert_eq!(index.saw_pod("n", pod("a")), Some(vec!["a".to_owned()]));
        assert_eq!(index.saw_pod("n", pod("a")), None);
        let mut both = index.saw_pod("n", pod("b")).unwrap();
        both.sort();
        assert_eq!(both, ["a", "b"]);
        assert_eq!(index.saw_pod("other", pod("a")), Some(vec![]));
        assert_eq!(
            index.pod_names(Some("n")),
            HashSet::from([("n".into(), "p".into())])
        );
        assert_eq!(index.lost_pod("n", "p"), ["b"]);
        assert!(index.lost_pod("n", "p").is_empty());
    }

    #[test]
    fn nothing_is_kept_of_what_is_gone() {
        let index = Index::default();
        index.saw_secret("n", "s", &facts("1"));
        index.saw_config("n", "c", "u");
        index.refer(
            "n",
            "c",
            References {
                read_secrets: ["s".into()].into(),
                objects: [(Kind::Secret, "s".into())].into(),
                ..References::default()
            },
        );
        assert_eq!(
            index.read_secrets("n", ["s", "t"].into_iter()),
            ["s".to_owned()].into()
        );
        assert_eq!(
            index.living("n", &["u".into(), "v".into()].into()),
            ["u".to_owned()].into()
        );
        index.lost_secret("n", "s", None);
        index.lost_config("n", "c");
        assert!(index.lock().spaces.is_empty());
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
