//! What is right: every value that was ever asked for or made, and every write held against it.

use std::collections::{BTreeMap, BTreeSet};

use autounseal::{
    api::Reason,
    seal::{
        KeyBytes,
        check_value::{Binding, check_value},
    },
};
use serde_json::Value;

use super::etcd::Written;
use crate::support::{
    drill::{Data, header},
    needle::Needle,
    stage::data_of,
};

/// How a value begins that somebody else put there.
pub const FOREIGN: &[u8] = b"foreign value ";

/// The word of somebody else in a status.
pub const FORGED: &str = "ForgedBySomebody";

/// The key that the operator makes, and the one that is brought.
pub const MADE: &str = "made";
/// The same.
pub const BROUGHT: &str = "brought";

/// What is known of one SealConfig.
#[derive(Default)]
pub struct Page {
    /// Brought values in the order in which they were asked for.
    pub asked: Vec<Vec<u8>>,
    /// The youngest of them that was delivered.
    reached: usize,
    /// Versions of the made key as they were delivered.
    pub made: BTreeMap<u64, Vec<u8>>,
    /// Check values of the versions in the store, as it is now.
    stored: BTreeMap<u64, String>,
    /// The store as it is.
    pub store: Option<Value>,
    /// The delivered Secret as it is.
    pub secret: Option<Data>,
    /// Highest version delivered.
    delivered: u64,
    /// Versions that nobody deleted.
    pub owed: BTreeSet<u64>,
    store_version: u64,
}

/// All that is known.
pub struct Ledger {
    namespace: String,
    /// By SealConfig.
    pub pages: BTreeMap<String, Page>,
    /// What went wrong; must stay empty.
    pub violations: Vec<String>,
    /// Reasons that conditions and seals had, and how often they were written.
    pub reasons: BTreeMap<String, usize>,
    /// Writes seen: of delivered Secrets, of stores, of statuses.
    pub seen: [usize; 3],
    /// Everything that was said in statuses and events.
    pub said: String,
    markers: BTreeSet<String>,
    versions: BTreeMap<String, u64>,
}

impl Ledger {
    /// Of one namespace.
    pub fn new(namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pages: BTreeMap::new(),
            violations: Vec::new(),
            reasons: BTreeMap::new(),
            seen: [0; 3],
            said: String::new(),
            markers: BTreeSet::new(),
            versions: BTreeMap::new(),
        }
    }

    /// The page of a SealConfig.
    pub fn page(&mut self, name: &str) -> &mut Page {
        self.pages.entry(name.to_owned()).or_default()
    }

    /// Whether the write of a Secret of that name was seen.
    pub fn has_seen(&self, marker: &str) -> bool {
        self.markers.contains(marker)
    }

    /// The check value of a made key, as the store records it.
    fn check_value(&self, name: &str, bytes: &[u8]) -> String {
        check_value(
            &KeyBytes::new(bytes.to_vec()),
            &place(&self.namespace, name, MADE),
        )
        .unwrap()
    }

    /// Takes note of a write, and judges it.
    pub fn take(&mut self, written: &Written) {
        let before = match written.object {
            Some(_) => self.versions.insert(written.key.clone(), written.version),
            None => self.versions.remove(&written.key).map(|_| 0),
        };
        if written.object.is_some() && written.version != before.unwrap_or_default() + 1 {
            self.violations.push(format!(
                "the campaign itself missed a write of {}: {before:?}, then {}",
                written.key, written.version
            ));
        }
        let secrets = format!("/registry/secrets/{}/", self.namespace);
        let configs = format!("/registry/autounseal.dev/sealconfigs/{}/", self.namespace);
        let events = format!("/registry/events/{}/", self.namespace);
        if let Some(name) = written.key.strip_prefix(&secrets) {
            let known = name.strip_suffix(".sealconfig.wrapped");
            if let Some(name) = known.filter(|name| self.pages.contains_key(*name)) {
                self.seen[1] += 1;
                self.take_store(name, written.object.as_ref());
            } else if self.pages.contains_key(name) {
                self.seen[0] += 1;
                self.take_secret(name, written.object.as_ref());
            } else {
                self.markers.insert(name.to_owned());
            }
        } else if written.key.starts_with(&configs) {
            self.seen[2] += 1;
            let status = written.object.as_ref().map(|object| &object["status"]);
            self.take_status(status.unwrap_or(&Value::Null));
        } else if written.key.starts_with(&events)
            && let Some(object) = &written.object
        {
            self.said.push_str(&object.to_string());
            self.said.push('\n');
        }
    }

    fn take_status(&mut self, status: &Value) {
        self.said.push_str(&status.to_string());
        self.said.push('\n');
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let seals = status["seals"].as_array().into_iter().flatten();
        for reason in conditions
            .chain(seals)
            .filter_map(|entry| entry["reason"].as_str())
        {
            if Reason::ALL.iter().any(|known| known.as_str() == reason) {
                *self.reasons.entry(reason.to_owned()).or_default() += 1;
            } else if reason != FORGED {
                self.violations
                    .push(format!("a status says {reason}, which no documentation explains"));
            }
        }
    }

    fn take_store(&mut self, name: &str, object: Option<&Value>) {
        let page = self.pages.get_mut(name).unwrap();
        page.store = object.cloned();
        let Some(object) = object else {
            // Somebody deleted it. What is still in the delivered Secret can be taken up again.
            page.stored.clear();
            page.store_version = 0;
            let left: Vec<Vec<u8>> = page
                .secret
                .iter()
                .flat_map(|data| data.values().cloned())
                .collect();
            let made = &page.made;
            page.owed.retain(|version| left.contains(&made[version]));
            return;
        };
        let section = &header(&data_of(object))["keys"][MADE]["section"];
        let Some(versions) = section["versions"].as_object() else {
            return;
        };
        let current = section["current"].as_u64().unwrap();
        if current < page.store_version {
            self.violations.push(format!(
                "{name}: the version in use went back from {} to {current}",
                page.store_version
            ));
        }
        page.store_version = current;
        for (number, version) in versions {
            let number = number.parse().unwrap();
            let value = version["checkValue"].as_str().unwrap_or_default().to_owned();
            let known = page.stored.entry(number).or_insert_with(|| value.clone());
            if *known != value {
                self.violations
                    .push(format!("{name}: version {number} was made twice"));
            }
        }
    }

    fn take_secret(&mut self, name: &str, object: Option<&Value>) {
        let Some(object) = object else {
            self.page(name).secret = None;
            return;
        };
        let data = data_of(object);
        let marks = object["metadata"]["annotations"]["autounseal.dev/keys"].as_str();
        let marks: Value = marks
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        let ours = |entry: &str| {
            data.get(entry)
                .filter(|bytes| !bytes.starts_with(FOREIGN))
                .cloned()
        };
        let mut wrong = Vec::new();
        if let Some(bytes) = ours(BROUGHT) {
            let page = self.pages.get_mut(name).unwrap();
            match page.asked.iter().position(|asked| *asked == bytes) {
                None => wrong.push("a brought value was delivered that nobody asked for".to_owned()),
                Some(at) if at < page.reached => {
                    wrong.push(format!(
                        "value {at} came back after value {} was delivered",
                        page.reached
                    ));
                }
                Some(at) => page.reached = at,
            }
        }
        let current = ours("current").map(|bytes| (bytes, marks[MADE]["version"].as_u64()));
        if let Some((bytes, version)) = current {
            match version {
                None => wrong.push("a made key was delivered without its version".to_owned()),
                Some(version) => wrong.extend(self.judge(name, version, &bytes)),
            }
        }
        let page = self.pages.get_mut(name).unwrap();
        if let (Some(previous), Some(version)) = (ours("previous"), marks[MADE]["version"].as_u64())
            && page
                .made
                .range(..version)
                .next_back()
                .map(|(_, bytes)| bytes)
                .is_some_and(|before| *before != previous)
            && page.made.contains_key(&(version - 1))
        {
            wrong.push(format!(
                "what stands before version {version} is not the version before it"
            ));
        }
        page.secret = Some(data);
        self.violations
            .extend(wrong.into_iter().map(|what| format!("{name}: {what}")));
    }

    /// A version of the made key, as it was delivered.
    fn judge(&mut self, name: &str, version: u64, bytes: &[u8]) -> Vec<String> {
        let mut wrong = Vec::new();
        let value = self.check_value(name, bytes);
        for (other, page) in &self.pages {
            let twin = page
                .made
                .iter()
                .any(|(number, made)| made == bytes && (other != name || *number != version));
            if twin {
                wrong.push(format!(
                    "the bytes of version {version} are also another's, of {other}"
                ));
            }
        }
        let page = self.pages.get_mut(name).unwrap();
        if page
            .made
            .get(&version)
            .is_some_and(|known| known.as_slice() != bytes)
        {
            wrong.push(format!("version {version} was delivered with two values"));
        }
        if version < page.delivered {
            wrong.push(format!(
                "version {version} was delivered after version {}",
                page.delivered
            ));
        }
        if page.store.is_some() && page.stored.get(&version) != Some(&value) {
            wrong.push(format!(
                "version {version} was delivered, and it is not the one in the store"
            ));
        }
        page.delivered = page.delivered.max(version);
        if page.made.insert(version, bytes.to_vec()).is_none() {
            page.owed.insert(version);
        }
        wrong
    }

    /// Every secret that there was.
    pub fn needles(&self) -> Vec<Needle> {
        let mut needles = Vec::new();
        for (name, page) in &self.pages {
            for bytes in &page.asked {
                needles.push(Needle::new(&format!("a brought value of {name}"), bytes));
            }
            for (version, bytes) in &page.made {
                needles.push(Needle::new(&format!("version {version} of {name}"), bytes));
            }
        }
        needles
    }
}

/// The place of a key.
pub fn place<'a>(namespace: &'a str, name: &'a str, key: &'a str) -> Binding<'a> {
    Binding {
        kind: "SealConfig",
        namespace,
        name,
        key,
    }
}
