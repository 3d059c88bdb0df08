//! Stanzas and environment variables as they are asked for, read and checked before any key is opened.
//!
//! What a consumer could not start with is refused here: an identity that its configuration cannot carry, a purpose twice,
//! a seal without a region. Which credentials may be written at all is security rule S9.

use std::collections::BTreeSet;

use super::{
    Fault, aws,
    entry::{Entry, EntryContent},
    model::{Cloud, Key, Origin, Seal},
    oci,
};
use crate::api::{
    AeadStanza, Encoding, EnvSpec, KeyVersion, KmsStanza, Purpose, SealStanza, StanzaSpec, StaticStanza,
};

/// Bytes of a key for OpenBao's static seal and for Boundary's `aead` blocks: AES-256.
pub const KEY_BYTES: usize = 32;

/// A piece of configuration to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stanza {
    /// Vault's `seal` blocks, by priority.
    Vault(Vec<NativeSeal>),
    /// OpenBao's, by priority.
    OpenBao(Vec<NativeSeal>),
    /// OpenBao's `seal "static"`.
    OpenBaoStatic(StaticSeal),
    /// Boundary's `kms` blocks of one KMS.
    Boundary {
        /// The KMS.
        seal: NativeSeal,
        /// One block for each.
        purposes: Vec<BoundaryPurpose>,
    },
    /// Boundary's `kms "aead"` blocks.
    BoundaryAead(Vec<AeadKey>),
}

/// A seal as a consumer is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NativeSeal {
    /// Name in the spec.
    pub name: String,
    /// The consumer may still open with it, on its way to another seal.
    pub disabled: bool,
    /// The key, and the way to it.
    pub kms: NativeKms,
    /// The static credentials of the seal's Secret are written too.
    pub credentials: bool,
}

/// A KMS key in the words of the consumers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NativeKms {
    /// `awskms`.
    Aws {
        /// As the user named it.
        key: String,
        /// Region.
        region: String,
        /// A custom endpoint.
        endpoint: Option<String>,
    },
    /// `ocikms`.
    Oci {
        /// OCID.
        key: String,
        /// Where it encrypts and decrypts.
        crypto_endpoint: String,
        /// Where it is described.
        management_endpoint: String,
        /// API key, else instance principal.
        api_key: bool,
    },
}

/// OpenBao's static seal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticSeal {
    /// Name of the key.
    pub key: String,
    /// Where the pods find the current version.
    pub current: String,
    /// Where they find the one before it.
    pub previous: String,
}

/// A key in an `aead` block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AeadKey {
    /// Name of the key.
    pub key: String,
    /// What Boundary uses it for.
    pub purpose: BoundaryPurpose,
}

/// What Boundary uses a key for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BoundaryPurpose(&'static str);

impl BoundaryPurpose {
    /// The root key.
    pub const ROOT: Self = Self("root");
    /// The root key before it.
    pub const PREVIOUS_ROOT: Self = Self("previous-root");

    /// Boundary's word for a purpose. No other one ever gets into its configuration (security rule S8).
    pub const fn of(purpose: Purpose) -> Option<Self> {
        match purpose {
            Purpose::Root => Some(Self::ROOT),
            Purpose::PreviousRoot => Some(Self::PREVIOUS_ROOT),
            Purpose::WorkerAuth => Some(Self("worker-auth")),
            Purpose::DownstreamWorkerAuth => Some(Self("downstream-worker-auth")),
            Purpose::WorkerAuthStorage => Some(Self("worker-auth-storage")),
            Purpose::Recovery => Some(Self("recovery")),
            Purpose::Config => Some(Self("config")),
            Purpose::Bsr => Some(Self("bsr")),
            Purpose::Static
            | Purpose::UnsealShare
            | Purpose::RecoveryShare
            | Purpose::RootToken
            | Purpose::Other => None,
        }
    }

    /// The word.
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Whether Boundary takes several keys for it.
    const fn repeats(self) -> bool {
        matches!(self.0.as_bytes(), b"downstream-worker-auth")
    }
}

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    /// No secret.
    Text(String),
    /// The access key id in a seal's Secret.
    AccessKeyId {
        /// Name of the seal.
        seal: String,
    },
    /// The secret access key in a seal's Secret.
    SecretAccessKey {
        /// Name of the seal.
        seal: String,
    },
}

impl Stanza {
    /// Names of the keys that are written.
    pub fn keys(&self) -> BTreeSet<&str> {
        match self {
            Stanza::Vault(_) | Stanza::OpenBao(_) | Stanza::Boundary { .. } => BTreeSet::new(),
            // The stanza holds the key's id, which is made from its bytes.
            Stanza::OpenBaoStatic(seal) => BTreeSet::from([seal.key.as_str()]),
            Stanza::BoundaryAead(keys) => keys.iter().map(|key| key.key.as_str()).collect(),
        }
    }

    /// Names of the seals that are written.
    pub fn seals(&self) -> impl Iterator<Item = &NativeSeal> {
        match self {
            Stanza::Vault(seals) | Stanza::OpenBao(seals) => seals.as_slice(),
            Stanza::Boundary { seal, .. } => std::slice::from_ref(seal),
            Stanza::OpenBaoStatic(_) | Stanza::BoundaryAead(_) => &[],
        }
        .iter()
    }
}

/// Reads a stanza: the entry of that name, and those that it adds beside itself.
///
/// # Errors
/// `InvalidSpec`, with the fix.
pub fn entries(name: &str, spec: &StanzaSpec, seals: &[Seal], keys: &[Key]) -> Result<Vec<Entry>, Fault> {
    let members = [
        spec.vault
            .as_ref()
            .map(|spec| Ok(Stanza::Vault(server(spec, seals)?))),
        spec.openbao.as_ref().map(|spec| openbao(spec, seals)),
        spec.openbao_static.as_ref().map(|spec| static_seal(spec, keys)),
        spec.boundary.as_ref().map(|spec| boundary(spec, seals)),
        spec.boundary_aead.as_ref().map(|spec| aead(spec, keys)),
    ];
    let mut found = members.into_iter().flatten();
    let (Some(stanza), None) = (found.next(), found.next()) else {
        return Err(Fault::invalid_spec(
            "a stanza takes exactly one of vault, openbao, openbaoStatic, boundary, boundaryAEAD",
        ));
    };
    let stanza = stanza?;
    let mut entries = Vec::new();
    if let (Stanza::OpenBaoStatic(seal), Some(spec)) = (&stanza, &spec.openbao_static) {
        let file = |name: &str, version| Entry {
            name: name.to_owned(),
            content: EntryContent::Key {
                key: seal.key.clone(),
                encoding: Encoding::Raw,
                version,
            },
        };
        entries.push(file(&spec.current_file, KeyVersion::Current));
        entries.push(file(&spec.previous_file, KeyVersion::Previous));
    }
    entries.insert(
        0,
        Entry {
            name: name.to_owned(),
            content: EntryContent::Stanza(stanza),
        },
    );
    Ok(entries)
}

/// Reads `env`: an entry for each variable.
///
/// # Errors
/// `InvalidSpec`, with the fix.
pub fn variables(spec: &EnvSpec, seals: &[Seal]) -> Result<Vec<Entry>, Fault> {
    // Both servers read the same names.
    let ((Some(spec), None) | (None, Some(spec))) = (&spec.vault, &spec.openbao) else {
        return Err(Fault::invalid_spec("env takes exactly one of vault, openbao"));
    };
    let [seal] = &server(spec, seals)?[..] else {
        return Err(Fault::invalid_spec(
            "environment variables describe one seal only; name one, and write several as a stanza",
        ));
    };
    if seal.disabled {
        return Err(Fault::invalid_spec(format!(
            "seal {:?} is disabled, which no environment variable can say; write it as a stanza",
            seal.name
        )));
    }
    let text = |text: &str| Variable::Text(text.to_owned());
    let variables = match &seal.kms {
        NativeKms::Aws {
            key,
            region,
            endpoint,
        } => {
            let mut variables = vec![
                ("VAULT_SEAL_TYPE", text("awskms")),
                ("VAULT_AWSKMS_SEAL_KEY_ID", text(key)),
                ("AWS_REGION", text(region)),
            ];
            variables.extend(endpoint.as_ref().map(|url| ("AWS_KMS_ENDPOINT", text(url))));
            if seal.credentials {
                let seal = || seal.name.clone();
                variables.push(("AWS_ACCESS_KEY_ID", Variable::AccessKeyId { seal: seal() }));
                variables.push((
                    "AWS_SECRET_ACCESS_KEY",
                    Variable::SecretAccessKey { seal: seal() },
                ));
            }
            variables
        }
        NativeKms::Oci { api_key: true, .. } => {
            return Err(Fault::invalid_spec(format!(
                "seal {:?} uses an API key, which no environment variable can say; write it as a stanza",
                seal.name
            )));
        }
        NativeKms::Oci {
            key,
            crypto_endpoint,
            management_endpoint,
            api_key: false,
        } => vec![
            ("VAULT_SEAL_TYPE", text("ocikms")),
            ("VAULT_OCIKMS_SEAL_KEY_ID", text(key)),
            ("VAULT_OCIKMS_CRYPTO_ENDPOINT", text(crypto_endpoint)),
            ("VAULT_OCIKMS_MANAGEMENT_ENDPOINT", text(management_endpoint)),
        ],
    };
    let entry = |(name, variable): (&str, _)| Entry {
        name: name.to_owned(),
        content: EntryContent::Variable(variable),
    };
    Ok(variables.into_iter().map(entry).collect())
}

/// The seals of a server, by priority.
fn server(spec: &SealStanza, seals: &[Seal]) -> Result<Vec<NativeSeal>, Fault> {
    let mut seen = BTreeSet::new();
    for name in &spec.seals {
        find(name, seals)?;
        if !seen.insert(name.as_str()) {
            return Err(Fault::invalid_spec(format!(
                "seal {name:?} is named twice; name it once"
            )));
        }
    }
    // Those of the model stand by priority already.
    let named: Vec<NativeSeal> = seals
        .iter()
        .filter(|seal| seen.contains(seal.name.as_str()))
        .map(|seal| native(seal, spec.include_credentials))
        .collect::<Result<_, _>>()?;
    if named.is_empty() || named.len() > 3 {
        return Err(Fault::invalid_spec(
            "seals takes one to three names of spec.seals",
        ));
    }
    if named.iter().filter(|seal| seal.disabled).count() > 1 {
        return Err(Fault::invalid_spec(
            "a server migrates away from one seal at a time; name one disabled seal at most",
        ));
    }
    Ok(named)
}

fn openbao(spec: &SealStanza, seals: &[Seal]) -> Result<Stanza, Fault> {
    let named = server(spec, seals)?;
    if named.iter().filter(|seal| !seal.disabled).count() > 1 {
        return Err(Fault::invalid_spec(
            "OpenBao runs one seal at a time; name one, with a disabled one beside it while it migrates",
        ));
    }
    Ok(Stanza::OpenBao(named))
}

fn static_seal(spec: &StaticStanza, keys: &[Key]) -> Result<Stanza, Fault> {
    let key = key(&spec.key, keys)?;
    sized(key, "OpenBao's static seal")?;
    if spec.current_file == spec.previous_file {
        return Err(Fault::invalid_spec(
            "currentFile and previousFile are two files; give them different names",
        ));
    }
    // The reader takes the path for the key itself when it is no good URL, so only plain paths are let through.
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
    };
    if !spec.mount_path.starts_with('/') || !plain(&spec.mount_path) {
        return Err(Fault::invalid_spec(
            "mountPath is an absolute path of letters, digits and ._-/; mount the Secret at such a one",
        ));
    }
    let path = |file: &str| format!("{}/{file}", spec.mount_path.trim_end_matches('/'));
    Ok(Stanza::OpenBaoStatic(StaticSeal {
        key: key.name.clone(),
        current: path(&spec.current_file),
        previous: path(&spec.previous_file),
    }))
}

fn boundary(spec: &KmsStanza, seals: &[Seal]) -> Result<Stanza, Fault> {
    let seal = find(&spec.seal, seals)?;
    let purposes = spec
        .purposes
        .iter()
        .map(|purpose| {
            BoundaryPurpose::of(*purpose).ok_or_else(|| {
                Fault::invalid_spec(
                    "purposes are Boundary's: root, previous-root, worker-auth, downstream-worker-auth, worker-auth-storage, \
                     recovery, config, bsr",
                )
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if purposes.is_empty() {
        return Err(Fault::invalid_spec(
            "purposes is empty; name what Boundary uses the key for",
        ));
    }
    if let Some(twice) = first_double(purposes.iter().copied()) {
        return Err(Fault::invalid_spec(format!(
            "purpose {} is named twice; name it once",
            twice.as_str()
        )));
    }
    if purposes.contains(&BoundaryPurpose::ROOT) && purposes.contains(&BoundaryPurpose::PREVIOUS_ROOT) {
        return Err(Fault::invalid_spec(
            "one seal cannot be root and previous-root at once, for Boundary refuses two of the same key; write previous-root \
             from the seal before",
        ));
    }
    if seal.disabled && purposes != [BoundaryPurpose::PREVIOUS_ROOT] {
        return Err(Fault::invalid_spec(format!(
            "seal {:?} is disabled, so nothing new may be wrapped under it; its only purpose can be previous-root",
            seal.name
        )));
    }
    Ok(Stanza::Boundary {
        seal: native(seal, spec.include_credentials)?,
        purposes,
    })
}

fn aead(spec: &AeadStanza, keys: &[Key]) -> Result<Stanza, Fault> {
    let chosen: Vec<&Key> = if spec.keys.is_empty() {
        keys.iter()
            .filter(|key| BoundaryPurpose::of(key.purpose).is_some())
            .collect()
    } else {
        spec.keys
            .iter()
            .map(|name| key(name, keys))
            .collect::<Result<_, _>>()?
    };
    if chosen.is_empty() {
        return Err(Fault::invalid_spec(
            "no key has one of Boundary's purposes; give the keys a purpose, such as root or worker-auth",
        ));
    }
    let mut purposes = Vec::new();
    let mut blocks = Vec::new();
    for key in chosen {
        let purpose = BoundaryPurpose::of(key.purpose).ok_or_else(|| {
            Fault::invalid_spec(format!(
                "key {:?} has none of Boundary's purposes; give it one, or take it out of keys",
                key.name
            ))
        })?;
        sized(key, "Boundary")?;
        purposes.push(purpose);
        if purpose == BoundaryPurpose::ROOT && key.keeps_previous() {
            purposes.push(BoundaryPurpose::PREVIOUS_ROOT);
        }
        blocks.push(AeadKey {
            key: key.name.clone(),
            purpose,
        });
    }
    match first_double(purposes.iter().copied().filter(|purpose| !purpose.repeats())) {
        Some(BoundaryPurpose::PREVIOUS_ROOT) => {
            return Err(Fault::invalid_spec(
                "two keys would be previous-root, one of them the version of the root key before its current one; set \
                 generate.keepPrevious: 0 on that until the other is no longer needed",
            ));
        }
        Some(twice) => {
            return Err(Fault::invalid_spec(format!(
                "two keys have the purpose {}, of which Boundary takes one; name in keys those of this configuration",
                twice.as_str()
            )));
        }
        None => {}
    }
    if purposes.contains(&BoundaryPurpose::PREVIOUS_ROOT) && !purposes.contains(&BoundaryPurpose::ROOT) {
        return Err(Fault::invalid_spec(
            "Boundary refuses a previous-root without a root beside it; name the root key too",
        ));
    }
    Ok(Stanza::BoundaryAead(blocks))
}

fn first_double(purposes: impl Iterator<Item = BoundaryPurpose>) -> Option<BoundaryPurpose> {
    let mut seen = BTreeSet::new();
    let mut purposes = purposes;
    purposes.find(|purpose| !seen.insert(*purpose))
}

fn find<'a>(name: &str, seals: &'a [Seal]) -> Result<&'a Seal, Fault> {
    seals
        .iter()
        .find(|seal| seal.name == name)
        .ok_or_else(|| Fault::invalid_spec(format!("there is no seal {name:?}; name one of spec.seals")))
}

fn key<'a>(name: &str, keys: &'a [Key]) -> Result<&'a Key, Fault> {
    keys.iter()
        .find(|key| key.name == name)
        .ok_or_else(|| Fault::invalid_spec(format!("there is no key {name:?}; name one of spec.keys")))
}

/// Refuses a key that will be made with another length than its consumer takes. Others are measured when they are opened.
fn sized(key: &Key, consumer: &str) -> Result<(), Fault> {
    match key.origin {
        Origin::Generated { bytes, .. } if bytes != KEY_BYTES => Err(Fault::invalid_spec(format!(
            "{consumer} takes keys of {KEY_BYTES} bytes, but key {:?} is generated with {bytes}; set generate.bytes: {KEY_BYTES}",
            key.name
        ))),
        Origin::Generated { .. } | Origin::Brought | Origin::Imported { .. } | Origin::Initialized(_) => {
            Ok(())
        }
    }
}

/// A seal in the consumers' words, with its credentials where they may be written (security rule S9).
fn native(seal: &Seal, include_credentials: bool) -> Result<NativeSeal, Fault> {
    let kms = match &seal.cloud {
        Cloud::Aws(aws) => native_aws(aws, include_credentials),
        Cloud::Oci(oci) => native_oci(oci, include_credentials),
    };
    Ok(NativeSeal {
        name: seal.name.clone(),
        disabled: seal.disabled,
        kms: kms.map_err(|fault| fault.of(format_args!("seal {:?}", seal.name)))?,
        credentials: include_credentials,
    })
}

fn native_aws(seal: &aws::AwsSeal, include_credentials: bool) -> Result<NativeKms, Fault> {
    if seal.assume_role.is_some() {
        return Err(Fault::invalid_spec(
            "the servers' awskms cannot assume a role on top of its credentials; take assumeRole out, and give the role to the \
             pods' ServiceAccount",
        ));
    }
    let is_secret = match &seal.credentials {
        aws::Credentials::Secret { .. } => true,
        aws::Credentials::DefaultChain
        | aws::Credentials::PodIdentity
        | aws::Credentials::InstanceMetadata
        | aws::Credentials::ServiceAccount { .. } => false,
    };
    if include_credentials && !is_secret {
        return Err(Fault::invalid_spec(
            "includeCredentials writes static credentials of a Secret only, never temporary ones or the operator's; take it out \
             and let the pods use their own identity, or name a Secret in credentials.secretRef",
        ));
    }
    let region = seal.region.as_ref().ok_or_else(|| {
        Fault::invalid_spec(
            "a server that asks the KMS itself must be told the region, and neither region nor an ARN in kmsKeyID says it; set \
             region",
        )
    })?;
    Ok(NativeKms::Aws {
        key: seal.key.to_string(),
        region: region.to_string(),
        endpoint: seal.endpoint.clone(),
    })
}

fn native_oci(seal: &oci::OciSeal, include_credentials: bool) -> Result<NativeKms, Fault> {
    let api_key = match &seal.credentials {
        oci::Credentials::ApiKey { .. } => true,
        oci::Credentials::InstancePrincipal | oci::Credentials::Caller => false,
        oci::Credentials::WorkloadIdentity { .. } | oci::Credentials::ResourcePrincipal => {
            return Err(Fault::invalid_spec(
                "the servers' ocikms knows instance principals and API keys only; use one of them, or let the operator hold the \
                 key (openbaoStatic, boundaryAEAD) with the identity that this seal names",
            ));
        }
    };
    if include_credentials {
        return Err(Fault::invalid_spec(
            "ocikms takes no credentials in its configuration; take includeCredentials out and mount OCI's configuration file \
             at ~/.oci/config of the pods",
        ));
    }
    Ok(NativeKms::Oci {
        key: seal.key.to_string(),
        crypto_endpoint: seal.crypto_endpoint.clone(),
        management_endpoint: seal.management_endpoint.clone(),
        api_key,
    })
}
