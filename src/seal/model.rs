//! `SealConfig` → [`Model`]: parsed once, validated once. Later steps never read the resource again.

mod clouds;
mod parse;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use data_encoding::BASE64;
use jiff::SignedDuration;
use kube::core::Selector;

use super::{
    Ciphertext,
    aws::{self, AwsSeal, KeyRef},
    entry::Entry,
    oci::{self, OciSeal},
    store::{Class, StoreFacts, sets},
    unseal::{ShareKind, Unseal},
};
use crate::api::{self, Armor, MaterialType, Purpose, SecretType, WrappedFormat};

pub(super) use clouds::parse_aws_credentials;
pub use parse::parse;
pub(super) use parse::{parse_copy, parse_selector, rotation_after};

/// The only context key under our prefix that users may write: it ties a brought copy to a namespace.
pub const BOUND_NAMESPACE: &str = "autounseal.dev/bound-namespace";

/// The annotation with which a human accepts a wrapped store that is older than what was seen.
pub const ACCEPT_STORE: &str = "autounseal.dev/accept-store";

/// The annotation each new value of which has the stored unseal shares replaced once.
pub const ROTATE_SHARES: &str = "autounseal.dev/rotate-shares";

/// The shortest time between two rotations (security rule S19).
pub const LEAST_ROTATION: SignedDuration = SignedDuration::from_hours(24);

/// The largest source that is read, in bytes (security rule S19).
pub const MAX_SOURCE: usize = 64 * 1024;

/// Who is spoken of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// Kind.
    pub kind: &'static str,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID: tells an object from its successor of the same name.
    pub uid: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A SealConfig as the rest of the program reads it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The object.
    pub id: ObjectId,
    /// Its generation.
    pub generation: i64,
    /// Nothing is done but deletion.
    pub suspend: bool,
    /// By priority, then name.
    pub seals: Vec<Seal>,
    /// In the order of the spec.
    pub keys: Vec<Key>,
    /// In the order of the spec.
    pub targets: Vec<Target>,
    /// The servers that are unsealed over their API.
    pub unseal: Option<Unseal>,
    /// The wrapped store goes with the SealConfig.
    pub delete_store: bool,
    /// The counter of a wrapped store that a human accepted although a newer one was seen.
    pub accept_store: Option<u64>,
    /// [`ROTATE_SHARES`].
    pub rotate_shares: Option<String>,
}

/// A KMS key.
#[derive(Clone, Debug)]
pub struct Seal {
    /// Name in the spec.
    pub name: String,
    /// Lower is tried first.
    pub priority: u8,
    /// The operator wraps and opens keys with it.
    pub wraps: bool,
    /// It may be named in stanzas and env without wrapping anything.
    pub native: bool,
    /// It may still open, but nothing new is wrapped under it.
    pub disabled: bool,
    /// Which cloud, and the way to the key.
    pub cloud: Cloud,
}

/// The clouds.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "at most five to an object, and read far more often than moved"
)]
pub enum Cloud {
    /// AWS KMS.
    Aws(AwsSeal),
    /// OCI KMS.
    Oci(OciSeal),
}

impl Cloud {
    /// The word in status and metrics.
    pub const fn provider(&self) -> &'static str {
        match self {
            Cloud::Aws(_) => "awskms",
            Cloud::Oci(_) => "ocikms",
        }
    }

    /// The key as the user named it.
    pub fn configured_key(&self) -> String {
        match self {
            Cloud::Aws(seal) => seal.key.to_string(),
            Cloud::Oci(seal) => seal.key.to_string(),
        }
    }

    /// The key's full name, where the spec itself tells it: an ARN or an OCID, as grants name keys.
    pub fn full_key(&self) -> Option<String> {
        match self {
            Cloud::Aws(AwsSeal {
                key: KeyRef::Arn(arn),
                ..
            }) => Some(arn.to_string()),
            Cloud::Aws(_) => None,
            Cloud::Oci(seal) => Some(seal.key.to_string()),
        }
    }

    /// The endpoints that the spec names.
    pub fn endpoints(&self) -> Vec<String> {
        match self {
            Cloud::Aws(seal) => seal.endpoint.iter().cloned().collect(),
            Cloud::Oci(seal) => vec![seal.crypto_endpoint.clone(), seal.management_endpoint.clone()],
        }
    }

    /// Whether it is reached with the operator's own identity, which needs a grant (security rule S3).
    pub fn is_operators(&self) -> bool {
        match self {
            Cloud::Aws(seal) => seal.credentials.is_operators(),
            Cloud::Oci(seal) => seal.credentials.is_operators(),
        }
    }

    /// The word in status for where the identity comes from.
    pub fn credential_source(&self) -> String {
        match self {
            Cloud::Aws(seal) if seal.assume_role.is_some() => {
                format!("{}+assume-role", seal.credentials.source())
            }
            Cloud::Aws(seal) => seal.credentials.source().to_owned(),
            Cloud::Oci(seal) => seal.credentials.source().to_owned(),
        }
    }

    /// The Secret that holds the credentials.
    pub fn credentials_secret(&self) -> Option<&str> {
        match self {
            Cloud::Aws(AwsSeal {
                credentials: aws::Credentials::Secret { name, .. },
                ..
            })
            | Cloud::Oci(OciSeal {
                credentials: oci::Credentials::ApiKey { secret: name },
                ..
            }) => Some(name),
            Cloud::Aws(_) | Cloud::Oci(_) => None,
        }
    }

    /// The ServiceAccount whose identity is used.
    pub fn service_account(&self) -> Option<&str> {
        match self {
            Cloud::Aws(AwsSeal {
                credentials: aws::Credentials::ServiceAccount { name, .. },
                ..
            })
            | Cloud::Oci(OciSeal {
                credentials:
                    oci::Credentials::WorkloadIdentity {
                        service_account: name,
                    },
                ..
            }) => Some(name),
            Cloud::Aws(_) | Cloud::Oci(_) => None,
        }
    }
}

/// A root key and where its copies lie.
#[derive(Clone, Debug)]
pub struct Key {
    /// Name in the spec.
    pub name: String,
    /// What it is for.
    pub purpose: Purpose,
    /// How the consumer names it.
    pub consumer_key_id: Option<String>,
    /// Pins the key.
    pub check_value: Option<String>,
    /// The material of a ManagedKey, of this type; `None` = bytes that are delivered.
    pub material: Option<MaterialType>,
    /// Copies of the next version of material that the user brings; empty = it is made.
    pub brings: Vec<Copy>,
    /// Where it comes from.
    pub origin: Origin,
    /// The copies of a brought key, by the priority of their seals; other keys have none.
    pub copies: Vec<Copy>,
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The user brings wrapped copies.
    Brought,
    /// The operator makes it.
    Generated {
        /// Bytes of the next version.
        bytes: usize,
        /// The version before the current one is delivered beside it.
        keep_previous: bool,
        /// A version lasts so long.
        after: Option<SignedDuration>,
        /// Each change makes a version.
        trigger: Option<String>,
    },
    /// It lay in the clear in a Secret.
    Imported {
        /// Name of the Secret.
        secret: String,
        /// Name of the entry.
        entry: String,
    },
    /// A server answered it when it was initialised: an item of such a set (`store::sets`).
    Initialized(Class),
}

impl Key {
    /// Whether the user brings wrapped copies of it; else its copies lie in the wrapped store.
    pub fn is_brought(&self) -> bool {
        self.origin == Origin::Brought
    }

    /// What it is in the wrapped store, and to servers: a share, a root token, the material of a ManagedKey, or just a key.
    pub fn class(&self) -> Class {
        match (&self.origin, self.purpose) {
            _ if self.material.is_some() => Class::Managed,
            (Origin::Initialized(class), _) => *class,
            (_, purpose) => class(purpose),
        }
    }

    /// Whether it is a share, of an unseal key or a recovery key.
    pub fn is_share(&self) -> bool {
        matches!(self.class(), Class::UnsealShare | Class::RecoveryShare)
    }

    /// Whether it is what a server answered, and no key of the spec.
    pub fn is_answer(&self) -> bool {
        matches!(self.origin, Origin::Initialized(_))
    }

    /// Whether it is a share or a root token, which are never delivered (security rule S8).
    pub fn is_withheld(&self) -> bool {
        !matches!(self.class(), Class::Key | Class::Managed)
    }

    /// Whether a version before the current one may be delivered.
    pub fn keeps_previous(&self) -> bool {
        matches!(
            self.origin,
            Origin::Generated {
                keep_previous: true,
                ..
            }
        )
    }
}

/// One wrapped copy.
#[derive(Clone, Debug)]
pub struct Copy {
    /// The seal that opens it.
    pub seal: String,
    /// How it is packed.
    pub format: WrappedFormat,
    /// Encryption context.
    pub context: BTreeMap<String, String>,
    /// Where its bytes are.
    pub source: Source,
}

/// Where bytes are.
#[derive(Clone, Debug)]
pub enum Source {
    /// In the spec.
    Inline(Ciphertext),
    /// In an object of the same namespace.
    Entry(SourceRef),
}

/// An entry of an object of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceRef {
    /// Which kind.
    pub kind: SourceKind,
    /// Name of the object.
    pub name: String,
    /// Name of the entry.
    pub key: String,
    /// Whether it is base64 text.
    pub armor: Armor,
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// Kinds of objects that hold sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SourceKind::Secret => "Secret",
            SourceKind::ConfigMap => "ConfigMap",
        })
    }
}

/// A Secret to write.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name in the spec.
    pub name: String,
    /// Pods that read it.
    pub selector: Option<Selector>,
    /// Name of the Secret.
    pub secret: String,
    /// Type of the Secret.
    pub type_: SecretType,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Take over what exists.
    pub adopt: bool,
    /// Goes with the SealConfig.
    pub delete_with_owner: bool,
    /// Entries, never empty when there are keys.
    pub entries: Vec<Entry>,
    /// Names of the seals that its pods are told to use themselves.
    pub native: BTreeSet<String>,
    /// Roll the owners when keys change.
    pub restart: bool,
}

impl Target {
    /// Names of the keys that the entries use.
    pub fn keys(&self) -> BTreeSet<&str> {
        self.entries
            .iter()
            .flat_map(|entry| entry.content.keys())
            .collect()
    }

    /// Names of the seals whose credentials the entries hold.
    pub fn credentials(&self) -> BTreeSet<&str> {
        self.entries
            .iter()
            .flat_map(|entry| entry.content.credentials())
            .collect()
    }
}

impl Model {
    /// The seal of that name; parse has made sure that copies name one.
    pub fn seal(&self, name: &str) -> Option<&Seal> {
        self.seals.iter().find(|seal| seal.name == name)
    }

    /// Whether pods are told to use the seal themselves.
    pub fn is_native(&self, seal: &Seal) -> bool {
        let told = |target: &Target| target.native.contains(&seal.name);
        seal.native || self.targets.iter().any(told)
    }

    /// Every entry of another object that holds a copy, or the CA of the servers to unseal.
    pub fn sources(&self) -> BTreeSet<&SourceRef> {
        self.keys
            .iter()
            .flat_map(|key| key.copies.iter().chain(&key.brings))
            .filter_map(|copy| match &copy.source {
                Source::Entry(entry) => Some(entry),
                Source::Inline(_) => None,
            })
            .chain(self.unseal.as_ref().and_then(Unseal::ca))
            .collect()
    }

    /// Adds what servers answered when they were initialised. Such items are looked after like other stored keys, and
    /// nothing of a spec can name them.
    pub fn add_answers(&mut self, store: &StoreFacts, known: &[api::KeyStatus]) {
        self.keys.retain(|key| !key.is_answer());
        self.keys.extend(sets::keys(store, known));
    }

    /// The keys that are shares of that kind, in the order of the spec.
    pub fn shares(&self, kind: ShareKind) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| key.class() == kind.class())
    }

    /// Secrets that hold copies, credentials or plain keys.
    pub fn read_secrets(&self) -> BTreeSet<&str> {
        let copies = self
            .sources()
            .into_iter()
            .filter(|s| s.kind == SourceKind::Secret)
            .map(|s| s.name.as_str());
        let credentials = self
            .seals
            .iter()
            .filter_map(|seal| seal.cloud.credentials_secret());
        let plain = self.keys.iter().filter_map(|key| match &key.origin {
            Origin::Imported { secret, .. } => Some(secret.as_str()),
            Origin::Brought | Origin::Generated { .. } | Origin::Initialized(_) => None,
        });
        copies.chain(credentials).chain(plain).collect()
    }

    /// ServiceAccounts whose identity is used.
    pub fn service_accounts(&self) -> BTreeSet<&str> {
        self.seals
            .iter()
            .filter_map(|seal| seal.cloud.service_account())
            .collect()
    }

    fn reads_secret(&self, name: &str) -> bool {
        self.read_secrets().contains(name)
    }
}

/// Takes the armor off. `None`: not base64 although it must be, empty, or larger than [`MAX_SOURCE`].
pub fn unarmor(bytes: &[u8], armor: Armor) -> Option<Ciphertext> {
    let decode = || {
        let packed: Vec<u8> = bytes
            .iter()
            .copied()
            .filter(|b| !b.is_ascii_whitespace())
            .collect();
        BASE64.decode(&packed).ok().filter(|decoded| !decoded.is_empty())
    };
    let plain = match armor {
        Armor::Base64 => decode()?,
        Armor::None => bytes.to_vec(),
        Armor::Auto => decode().unwrap_or_else(|| bytes.to_vec()),
    };
    (!plain.is_empty() && plain.len() <= MAX_SOURCE).then(|| Ciphertext::new(plain))
}

/// What a key of a purpose is to servers.
fn class(purpose: Purpose) -> Class {
    match purpose {
        Purpose::UnsealShare => Class::UnsealShare,
        Purpose::RecoveryShare => Class::RecoveryShare,
        Purpose::RootToken => Class::RootToken,
        _ => Class::Key,
    }
}
