//! `SealConfig` → [`Model`]: parsed once, validated once. Later steps never read the resource again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use data_encoding::BASE64;
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use super::{
    Ciphertext, Fault,
    aws::{self, AssumeRole, AwsSeal, KeyRef},
    entry::{Entry, entries},
    oci::{self, OciSeal},
    store::{Class, StoreFacts, sets},
    unseal::{ShareKind, Unseal},
};
use crate::api::{
    self, Armor, ChangePolicy, DeletionPolicy, MaterialType, Purpose, Reason, SealConfig, SealUse,
    SecretType, WrappedFormat,
};

/// The only context key under our prefix that users may write: it ties a brought copy to a namespace.
pub const BOUND_NAMESPACE: &str = "autounseal.dev/bound-namespace";

/// The annotation with which a human accepts a wrapped store that is older than what was seen.
pub const ACCEPT_STORE: &str = "autounseal.dev/accept-store";

/// The annotation each new value of which has the stored unseal shares replaced once.
pub const ROTATE_SHARES: &str = "autounseal.dev/rotate-shares";

/// The longest value of it that is taken.
const LONGEST_VALUE: usize = 128;

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

/// Parses a SealConfig.
///
/// # Errors
/// `InvalidSpec`, `TemplateInvalid`, `RegionMismatch`: what the schema could not refuse, or what reached
/// us around it. The first fault found.
pub fn parse(config: &SealConfig) -> Result<Model, Fault> {
    let metadata = &config.metadata;
    let id = ObjectId {
        kind: api::KIND,
        namespace: metadata
            .namespace
            .clone()
            .ok_or_else(|| invalid("the object has no namespace"))?,
        name: metadata
            .name
            .clone()
            .ok_or_else(|| invalid("the object has no name"))?,
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    let spec = &config.spec;
    let mut seals = spec.seals.iter().map(parse_seal).collect::<Result<Vec<_>, _>>()?;
    seals.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
    unique("spec.seals", seals.iter().map(|seal| seal.name.as_str()))?;
    if seals.is_empty() {
        return Err(invalid("spec.seals is empty: name at least one KMS key"));
    }
    let keys = spec
        .keys
        .iter()
        .map(|key| parse_key(key, &seals, &id.namespace))
        .collect::<Result<Vec<_>, _>>()?;
    unique("spec.keys", keys.iter().map(|key| key.name.as_str()))?;
    let targets = spec
        .targets
        .iter()
        .map(|target| parse_target(target, &seals, &keys))
        .collect::<Result<Vec<_>, _>>()?;
    unique("spec.targets", targets.iter().map(|target| target.name.as_str()))?;
    unique(
        "secret names of spec.targets",
        targets.iter().map(|target| target.secret.as_str()),
    )?;
    let model = Model {
        id,
        generation: metadata.generation.unwrap_or_default(),
        suspend: spec.suspend,
        seals,
        keys,
        targets,
        unseal: spec
            .unseal
            .as_ref()
            .map(|unseal| Unseal::parse(unseal).map_err(|fault| fault.of("unseal")))
            .transpose()?,
        delete_store: spec.wrapped_deletion_policy == DeletionPolicy::Delete,
        accept_store: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(ACCEPT_STORE)?.parse().ok()),
        rotate_shares: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(ROTATE_SHARES))
            .filter(|value| !value.is_empty())
            .map(|value| value.chars().take(LONGEST_VALUE).collect()),
    };
    let initializes = model
        .unseal
        .as_ref()
        .is_some_and(|unseal| unseal.initialize.is_some());
    if initializes && !model.seals.iter().any(|seal| seal.wraps && !seal.disabled) {
        return Err(invalid(
            "unseal.initialize needs an enabled seal with use: Wrap, under which the shares are kept",
        ));
    }
    if let Some(target) = model
        .targets
        .iter()
        .find(|target| model.reads_secret(&target.secret))
    {
        return Err(invalid(format!(
            "target {:?} would overwrite Secret {}, which this SealConfig reads; give the target another name",
            target.name, target.secret
        )));
    }
    Ok(model)
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

fn invalid(message: impl Into<String>) -> Fault {
    Fault::invalid(Reason::InvalidSpec, message)
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(invalid(format!(
                "{what}: {name:?} appears twice; names must differ"
            )));
        }
    }
    Ok(())
}

fn parse_seal(spec: &api::SealSpec) -> Result<Seal, Fault> {
    let part = format!("seal {:?}", spec.name);
    let cloud = match (&spec.awskms, &spec.ocikms) {
        (Some(aws), None) => parse_aws(aws).map(Cloud::Aws),
        (None, Some(oci)) => parse_oci(oci).map(Cloud::Oci),
        _ => Err(invalid("a seal takes exactly one of: awskms, ocikms")),
    };
    let cloud = cloud.map_err(|fault| fault.of(&part))?;
    Ok(Seal {
        name: spec.name.clone(),
        priority: spec.priority,
        wraps: spec.use_.contains(&SealUse::Wrap),
        native: spec.use_.contains(&SealUse::Native),
        disabled: spec.disabled,
        cloud,
    })
}

fn parse_aws(spec: &api::AwsKms) -> Result<AwsSeal, Fault> {
    let key: KeyRef = spec.kms_key_id.parse().map_err(|()| {
        invalid("kmsKeyID is not a key id, key ARN, alias name (alias/…) or alias ARN of AWS KMS")
    })?;
    let former = spec
        .former_key_ids
        .iter()
        .map(|text| match text.parse::<KeyRef>() {
            Ok(former) if !former.is_alias() => Ok(former),
            _ => Err(invalid(
                "formerKeyIDs takes key ids and key ARNs only, for an alias may move again",
            )),
        })
        .collect::<Result<_, _>>()?;
    let region = match &spec.region {
        Some(text) => Some(
            text.parse()
                .map_err(|()| invalid("region is not the name of a region, such as eu-west-1"))?,
        ),
        None => None,
    };
    if let (Some(asked), Some(told)) = (&region, key.region())
        && asked != told
    {
        return Err(Fault::invalid(
            Reason::RegionMismatch,
            format!(
                "region says {asked}, but the ARN in kmsKeyID lies in {told}; remove region or correct one of them"
            ),
        ));
    }
    if let (Some(pinned), Some(told)) = (&spec.account_id, key.account())
        && pinned != told
    {
        return Err(invalid(format!(
            "accountID says {pinned}, but the ARN in kmsKeyID belongs to account {told}"
        )));
    }
    let credentials = parse_aws_credentials(spec.credentials.as_ref())?;
    let assume_role = spec.assume_role.as_ref().map(|role| AssumeRole {
        role_arn: role.role_arn.clone(),
        external_id: role.external_id.clone(),
        session_name: role.session_name.clone(),
    });
    Ok(AwsSeal {
        region: region.or_else(|| key.region().cloned()),
        key,
        former,
        account: spec.account_id.clone(),
        endpoint: spec.endpoint.clone(),
        assume_role,
        credentials,
    })
}

pub(super) fn parse_aws_credentials(spec: Option<&api::AwsCredentials>) -> Result<aws::Credentials, Fault> {
    let Some(spec) = spec else {
        return Ok(aws::Credentials::DefaultChain);
    };
    let account = spec.service_account_ref.as_ref();
    let secret = spec.secret_ref.as_ref();
    let members = [
        account.map(|account| aws::Credentials::ServiceAccount {
            name: account.name.clone(),
            role_arn: account.role_arn.clone(),
        }),
        spec.pod_identity.map(|_| aws::Credentials::PodIdentity),
        spec.instance_metadata.map(|_| aws::Credentials::InstanceMetadata),
        secret.map(|secret| aws::Credentials::Secret {
            name: secret.name.clone(),
            access_key_id: secret.access_key_id_key.clone(),
            secret_access_key: secret.secret_access_key_key.clone(),
            session_token: secret.session_token_key.clone(),
        }),
    ];
    let names = "serviceAccountRef, podIdentity, instanceMetadata, secretRef";
    Ok(at_most_one(members, names)?.unwrap_or(aws::Credentials::DefaultChain))
}

fn parse_oci(spec: &api::OciKms) -> Result<OciSeal, Fault> {
    let key = spec
        .key_id
        .parse()
        .map_err(|()| invalid("keyID is not the OCID of an OCI KMS key (ocid1.key.<realm>.<region>.…)"))?;
    let chosen = match &spec.credentials {
        None => None,
        Some(spec) => at_most_one(
            [
                spec.instance_principal
                    .map(|_| oci::Credentials::InstancePrincipal),
                spec.api_key.as_ref().map(|key| oci::Credentials::ApiKey {
                    secret: key.secret_ref.name.clone(),
                }),
                spec.workload_identity
                    .as_ref()
                    .map(|identity| oci::Credentials::WorkloadIdentity {
                        service_account: identity.service_account_ref.name.clone(),
                    }),
                spec.resource_principal
                    .map(|_| oci::Credentials::ResourcePrincipal),
            ],
            "instancePrincipal, apiKey, workloadIdentity, resourcePrincipal",
        )?,
    };
    let credentials = chosen.unwrap_or(oci::Credentials::InstancePrincipal);
    let is_api_key = matches!(credentials, oci::Credentials::ApiKey { .. });
    if spec.auth_type_api_key.is_some_and(|switch| switch != is_api_key) {
        return Err(invalid(
            "authTypeAPIKey does not agree with credentials: true goes with credentials.apiKey, false with every other \
             identity; correct one of them, or leave authTypeAPIKey out",
        ));
    }
    Ok(OciSeal {
        key,
        crypto_endpoint: spec.crypto_endpoint.clone(),
        management_endpoint: spec.management_endpoint.clone(),
        credentials,
    })
}

/// The one member that is set, if any.
fn at_most_one<T, const N: usize>(members: [Option<T>; N], names: &str) -> Result<Option<T>, Fault> {
    let mut found = members.into_iter().flatten();
    match (found.next(), found.next()) {
        (one, None) => Ok(one),
        (_, Some(_)) => Err(invalid(format!("credentials take at most one of {names}"))),
    }
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

fn parse_key(spec: &api::RootKey, seals: &[Seal], namespace: &str) -> Result<Key, Fault> {
    let part = format!("key {:?}", spec.name);
    let mut copies = spec
        .wrapped
        .iter()
        .map(|copy| parse_copy(copy, seals, namespace).map_err(|fault| fault.of(&part)))
        .collect::<Result<Vec<_>, _>>()?;
    unique(
        &format!("{part}: seals of wrapped copies"),
        copies.iter().map(|copy| copy.seal.as_str()),
    )?;
    let origin = parse_origin(spec).map_err(|fault| fault.of(&part))?;
    if class(spec.purpose) != Class::Key && matches!(origin, Origin::Generated { .. }) {
        return Err(invalid(
            "a share or root token is made by its server: bring it in wrapped, or take it in with import",
        )
        .of(&part));
    }
    if spec.check_value.is_some() && origin != Origin::Brought {
        return Err(invalid("checkValue pins a key that is brought in wrapped; take it out").of(&part));
    }
    if !seals.iter().any(|seal| seal.wraps) {
        return Err(invalid("keys need a seal with use: Wrap").of(&part));
    }
    copies.sort_by_key(|copy| seals.iter().position(|seal| seal.name == copy.seal));
    Ok(Key {
        name: spec.name.clone(),
        purpose: spec.purpose,
        consumer_key_id: spec.consumer_key_id.clone(),
        check_value: spec.check_value.clone(),
        material: None,
        brings: Vec::new(),
        origin,
        copies,
    })
}

fn parse_origin(spec: &api::RootKey) -> Result<Origin, Fault> {
    match (spec.wrapped.is_empty(), &spec.generate, &spec.import) {
        (false, None, None) => Ok(Origin::Brought),
        (true, Some(generate), None) => {
            let rotation = generate.rotation.clone().unwrap_or_default();
            let after = rotation.after.as_deref().map(|text| {
                text.parse::<SignedDuration>()
                    .ok()
                    .filter(|after| *after >= LEAST_ROTATION)
                    .ok_or_else(|| invalid("rotation.after is a duration of at least 24h, such as 2160h"))
            });
            if !(16..=64).contains(&generate.bytes) || generate.keep_previous > 1 {
                return Err(invalid(
                    "generate takes 16 to 64 bytes, and 0 or 1 in keepPrevious",
                ));
            }
            Ok(Origin::Generated {
                bytes: usize::from(generate.bytes),
                keep_previous: generate.keep_previous == 1,
                after: after.transpose()?,
                trigger: rotation.trigger,
            })
        }
        (true, None, Some(import)) => Ok(Origin::Imported {
            secret: import.secret_key_ref.name.clone(),
            entry: import.secret_key_ref.key.clone(),
        }),
        _ => Err(invalid(
            "a key takes exactly one of wrapped, generate, import, and wrapped holds at least one copy",
        )),
    }
}

pub(super) fn parse_copy(spec: &api::WrappedCopy, seals: &[Seal], namespace: &str) -> Result<Copy, Fault> {
    if !seals.iter().any(|seal| seal.name == spec.seal && seal.wraps) {
        return Err(invalid(format!(
            "a wrapped copy names seal {:?}, which spec.seals does not hold with use: Wrap",
            spec.seal
        )));
    }
    if spec.format == WrappedFormat::BlobInfo && !spec.context.is_empty() {
        return Err(invalid(
            "context goes only with format: kms; go-kms-wrapping's blobs never carry one",
        ));
    }
    for (name, value) in &spec.context {
        if name.starts_with("autounseal.dev/") && (name != BOUND_NAMESPACE || value.0 != namespace) {
            return Err(invalid(format!(
                "context keys under autounseal.dev/ are the operator's own; only {BOUND_NAMESPACE}: {namespace} is yours to set"
            )));
        }
    }
    let entry = |kind, entry: &api::EntryRef| {
        Source::Entry(SourceRef {
            kind,
            name: entry.name.clone(),
            key: entry.key.clone(),
            armor: entry.armor,
        })
    };
    let source = match (&spec.inline, &spec.secret_key_ref, &spec.config_map_key_ref) {
        (Some(text), None, None) => {
            Source::Inline(unarmor(text.as_bytes(), Armor::Base64).ok_or_else(|| {
                Fault::invalid(
                    Reason::CiphertextInvalid,
                    format!(
                        "the inline copy for seal {:?} is not standard base64, or is empty or too long",
                        spec.seal
                    ),
                )
            })?)
        }
        (None, Some(secret), None) => entry(SourceKind::Secret, secret),
        (None, None, Some(map)) => entry(SourceKind::ConfigMap, map),
        _ => {
            return Err(invalid(
                "a wrapped copy takes exactly one of inline, secretKeyRef, configMapKeyRef",
            ));
        }
    };
    let context = spec
        .context
        .iter()
        .map(|(name, value)| (name.clone(), value.0.clone()))
        .collect();
    Ok(Copy {
        seal: spec.seal.clone(),
        format: spec.format,
        context,
        source,
    })
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

fn parse_target(spec: &api::Target, seals: &[Seal], keys: &[Key]) -> Result<Target, Fault> {
    let part = format!("target {:?}", spec.name);
    let secret = &spec.secret;
    if secret.name.ends_with(".wrapped") {
        return Err(invalid("names that end in .wrapped are the operator's wrapped stores").of(&part));
    }
    if secret.adopt && secret.deletion_policy == DeletionPolicy::Delete {
        return Err(invalid("an adopted Secret is never deleted: remove deletionPolicy: Delete").of(&part));
    }
    let labels = metadata(&secret.labels, "label").map_err(|fault| fault.of(&part))?;
    let annotations = metadata(&secret.annotations, "annotation").map_err(|fault| fault.of(&part))?;
    let selector = spec
        .pod_selector
        .as_ref()
        .map(parse_selector)
        .transpose()
        .map_err(|fault| fault.of(&part))?;
    let restart = spec.on_change == ChangePolicy::Restart;
    if restart && selector.is_none() {
        return Err(invalid("onChange: Restart needs a podSelector").of(&part));
    }
    let entries = entries(&secret.data, secret.env.as_ref(), seals, keys)
        .map_err(|mut faults| faults.swap_remove(0).of(&part))?;
    Ok(Target {
        name: spec.name.clone(),
        selector,
        secret: secret.name.clone(),
        type_: secret.type_,
        labels,
        annotations,
        adopt: secret.adopt,
        delete_with_owner: secret.deletion_policy == DeletionPolicy::Delete,
        native: told_seals(secret),
        entries,
        restart,
    })
}

/// The seals that stanzas and variables name.
fn told_seals(secret: &api::TargetSecret) -> BTreeSet<String> {
    let stanzas = secret.data.iter().filter_map(|entry| entry.stanza.as_ref());
    let servers = stanzas
        .clone()
        .flat_map(|stanza| [&stanza.vault, &stanza.openbao])
        .chain(secret.env.iter().flat_map(|env| [&env.vault, &env.openbao]));
    let named = servers.flatten().flat_map(|spec| spec.seals.iter());
    let boundary = stanzas.filter_map(|stanza| stanza.boundary.as_ref());
    named.chain(boundary.map(|spec| &spec.seal)).cloned().collect()
}

pub(super) fn parse_selector(selector: &LabelSelector) -> Result<Selector, Fault> {
    let empty = selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if empty {
        return Err(invalid(
            "podSelector must not be empty, or it would select every pod of the namespace",
        ));
    }
    Selector::try_from(selector.clone()).map_err(|_| {
        invalid("podSelector holds an operator or a list of values that Kubernetes does not know")
    })
}

/// Metadata that steers other controllers is refused (security rule S7).
fn metadata(
    pairs: &BTreeMap<String, api::BoundedText>,
    what: &str,
) -> Result<BTreeMap<String, String>, Fault> {
    const FOREIGN: &[&str] = &[
        "kubernetes.io",
        "autounseal.dev",
        "argocd.argoproj.io",
        "eks.amazonaws.com",
    ];
    for name in pairs.keys() {
        let domain = name.split_once('/').map_or("", |(domain, _)| domain);
        let under =
            |root: &str| domain == root || domain.strip_suffix(root).is_some_and(|rest| rest.ends_with('.'));
        if FOREIGN.iter().any(|root| under(root)) {
            return Err(invalid(format!(
                "{what} {name:?} steers Kubernetes or another controller; the operator does not write it into Secrets"
            )));
        }
    }
    Ok(pairs
        .iter()
        .map(|(name, value)| (name.clone(), value.0.clone()))
        .collect())
}
