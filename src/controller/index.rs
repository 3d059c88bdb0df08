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

use crate::seal::observed::{NamespaceFacts, PodFacts, SecretFacts};
use secret::Known;

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

/// Namespace and name.
type Name = (String, String);

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
    secrets: HashMap<Box<str>, Known>,
    /// resourceVersions.
    config_maps: HashMap<Box<str>, Box<str>>,
    pods: HashMap<Box<str>, Box<pod::Known>>,
    /// UIDs of the SealConfigs that exist.
    living: HashMap<String, String>,
    /// What each SealConfig refers to.
    referring: HashMap<String, References>,
    /// The reverse: who refers to what.
    referred: HashMap<(Kind, String), BTreeSet<String>>,
    /// The pods that SealConfigs unseal, whoever works on these SealConfigs.
    unseals: HashMap<String, Selector>,
    /// The ManagedKeys.
    managed: HashMap<String, ManagedFacts>,
}

impl Space {
    fn is_empty(&self) -> bool {
        self.meta == NamespaceFacts::default()
            && self.secrets.is_empty()
            && self.config_maps.is_empty()
            && self.pods.is_empty()
            && self.living.is_empty()
            && self.referring.is_empty()
            && self.unseals.is_empty()
            && self.managed.is_empty()
    }

    fn refer(&mut self, name: &str, references: References) {
        let before = if references == References::default() {
            self.referring.remove(name)
        } else {
            self.referring.insert(name.to_owned(), references.clone())
        };
        for object in before.unwrap_or_default().objects {
            if let Some(names) = self.referred.get_mut(&object) {
                names.remove(name);
                if names.is_empty() {
                    self.referred.remove(&object);
                }
            }
        }
        for object in references.objects {
            self.referred.entry(object).or_default().insert(name.to_owned());
        }
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
    pub fn saw_secret(&self, namespace: &str, name: &str, facts: SecretFacts) -> bool {
        self.change(namespace, |space| {
            let known = space.secrets.get(name);
            if known.is_some_and(|known| !newer(&known.version(), &facts.resource_version)) {
                return false;
            }
            space.secrets.insert(name.into(), Known::from(facts));
            true
        })
    }

    /// A Secret is gone. `resource_version` is that of the deletion, if it is known.
    pub fn lost_secret(&self, namespace: &str, name: &str, resource_version: Option<&str>) -> bool {
        self.change(namespace, |space| {
            let newer_known = match (space.secrets.get(name), resource_version) {
                (Some(known), Some(version)) => !newer(&known.version(), version),
                _ => false,
            };
            !newer_known && space.secrets.remove(name).is_some()
        })
    }

    /// Objects known in a scope, to find those that a new list does not hold.
    fn names<'a, T: AsRef<str> + 'a, I: Iterator<Item = &'a T>>(
        inner: &'a Inner,
        scope: Option<&str>,
        of: impl Fn(&'a Space) -> I,
    ) -> HashSet<Name> {
        let spaces = inner
            .spaces
            .iter()
            .filter(|(namespace, _)| scope.is_none_or(|scope| scope == **namespace));
        spaces
            .flat_map(|(namespace, space)| {
                of(space).map(|name| (namespace.clone(), name.as_ref().to_owned()))
            })
            .collect()
    }

    /// The Secrets known in a scope.
    pub fn secret_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.secrets.keys())
    }

    /// The ConfigMaps known in a scope.
    pub fn config_map_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.config_maps.keys())
    }

    /// The SealConfigs known in a scope.
    pub fn config_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.living.keys())
    }

    /// The ManagedKeys known in a scope.
    pub fn managed_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.managed.keys())
    }

    /// The pods known in a scope.
    pub fn pod_names(&self, scope: Option<&str>) -> HashSet<Name> {
        Self::names(&self.lock(), scope, |space| space.pods.keys())
    }

    /// A Secret's facts.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<SecretFacts> {
        self.read(namespace, |space| space.secrets.get(name).map(Known::facts))
    }

    /// The Secrets of a namespace that name this SealConfig as the one that delivered keys to them.
    pub fn delivered_by(&self, namespace: &str, name: &str) -> BTreeMap<String, SecretFacts> {
        self.read(namespace, |space| {
            let of_it = space.secrets.iter().filter(|(_, known)| known.delivered_by(name));
            of_it
                .map(|(secret, known)| (secret.to_string(), known.facts()))
                .collect()
        })
    }

    /// A ConfigMap was seen.
    pub fn saw_config_map(&self, namespace: &str, name: &str, resource_version: &str) {
        self.change(namespace, |space| {
            space.config_maps.insert(name.into(), resource_version.into());
        });
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
            let selecting = space.referring.iter().filter(|(_, refers)| {
                refers.pods.iter().any(|selector| {
                    selector.matches(&facts.labels)
                        || before
                            .as_ref()
                            .is_some_and(|before| selector.matches(&before.labels))
                })
            });
            let names = selecting.map(|(name, _)| name.clone()).collect();
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
            let selecting = space
                .referring
                .iter()
                .filter(|(_, refers)| refers.pods.iter().any(|selector| selector.matches(&labels)));
            selecting.map(|(name, _)| name.clone()).collect()
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
    pub fn saw_config(&self, namespace: &str, name: &str, uid: String) {
        self.change(namespace, |space| {
            space.living.insert(name.to_owned(), uid);
        });
    }

    /// A SealConfig is gone, and with it its references.
    pub fn lost_config(&self, namespace: &str, name: &str) {
        self.change(namespace, |space| {
            space.refer(name, References::default());
            space.unseals.remove(name);
            space.living.remove(name);
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
        self.change(namespace, |space| match selector {
            Some(selector) => space.unseals.insert(name.to_owned(), selector.clone()) != Some(selector),
            None => space.unseals.remove(name).is_some(),
        })
    }

    /// The SealConfigs of a scope are listed anew: until all are known, nobody can say whose a pod is.
    pub fn listing_configs(&self, scope: Option<&str>) {
        let mut inner = self.lock();
        inner.listed.remove(&scope.map(ToOwned::to_owned));
        for (namespace, space) in &mut inner.spaces {
            if scope.is_none_or(|scope| scope == namespace) {
                space.unseals.clear();
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
        let unseals = inner.spaces.get(namespace).map(|space| &space.unseals);
        Some(
            unseals
                .into_iter()
                .flatten()
                .map(|(name, selector)| (name.clone(), selector.clone()))
                .collect(),
        )
    }

    /// Those of these UIDs that are SealConfigs of a namespace.
    pub fn living(&self, namespace: &str, uids: &BTreeSet<String>) -> BTreeSet<String> {
        if uids.is_empty() {
            return BTreeSet::new();
        }
        self.read(namespace, |space| {
            let living = space.living.values().filter(|uid| uids.contains(*uid));
            living.cloned().collect()
        })
    }

    /// Names of the SealConfigs of a namespace, and of its ManagedKeys.
    pub fn configs(&self, namespace: &str) -> Vec<String> {
        self.read(namespace, |space| {
            let keys = space.managed.keys().map(|name| managed(name));
            space.living.keys().cloned().chain(keys).collect()
        })
    }

    /// Sets what a SealConfig refers to.
    pub fn refer(&self, namespace: &str, name: &str, references: References) {
        self.change(namespace, |space| {
            if space.referring.get(name) != Some(&references) {
                space.refer(name, references);
            }
        });
    }

    /// Names of the SealConfigs that refer to an object.
    pub fn referring(&self, kind: Kind, namespace: &str, name: &str) -> Vec<String> {
        self.read(namespace, |space| {
            let names = space.referred.get(&(kind, name.to_owned()));
            names.into_iter().flatten().cloned().collect()
        })
    }

    /// Those of these Secrets that any SealConfig of a namespace reads.
    pub fn read_secrets<'a>(
        &self,
        namespace: &str,
        names: impl Iterator<Item = &'a str>,
    ) -> BTreeSet<String> {
        self.read(namespace, |space| {
            let is_read = |name: &str| {
                let referring = space.referred.get(&(Kind::Secret, name.to_owned()));
                referring.into_iter().flatten().any(|config| {
                    let refers = space.referring.get(config);
                    refers.is_some_and(|refers| refers.read_secrets.iter().any(|read| read == name))
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
        index.saw_secret("n", "s", facts("1"));
        index.saw_config("n", "c", "u".into());
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
