//! `autounseal unwrap`: from a SealConfig and the caller's own cloud identity to the key; the break-glass way of a file.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
};

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use serde_json::json;

use super::{
    Done, Failure, Output, check,
    cluster::{self, ClusterArgs},
    manifest::{self, Object},
    offline::{self, Caller},
    output,
    schema::Problem,
    stored::{self, Request},
};
use crate::{
    api::{Reason, SealConfigStatus},
    kube_ext::{self, cluster::source_facts},
    seal::{
        Ciphertext, Fault, KeyBytes,
        checks::source_found,
        digest::brought_inputs,
        endpoint::EndpointPolicy,
        model::{Copy, Key, Model, Source},
        observed::{Memory, NamespaceFacts, Observed, SourceFacts},
        store::{Class, Provenance, Store, StoreFacts, proof::value_of, secret_name, sets},
    },
};

mod out_file;
pub(super) mod source;

use out_file::OutFile;

/// Open a key of a SealConfig with your own cloud identity, from the cluster or from a file when the cluster is gone
///
/// Tries the copies of the key in the order of their seals' priority and writes the bytes of the first that opens to
/// standard output, exactly as they are. What opened a copy is checked as the operator would: the KMS key must be the
/// seal's, and the key must fit checkValue where there is one.
///
/// From the cluster (NAME, or with -n its namespace) copies are read with your own rights in it: the Secrets and ConfigMaps
/// that a brought key names, and the wrapped store NAME.sealconfig.wrapped, in which generated and imported keys lie and
/// the operator's own copies of brought ones. With -f a file is read instead. A copy in a Secret or ConfigMap is found when
/// that object is in the same file; the wrapped store when it is, too, or with --store.
///
/// What a server answered when the operator initialised it lies in the wrapped store too: --share, --recovery and --root-token
/// write it as the server printed it, without a newline.
///
/// A stored copy opens only with the binding that the operator made it with; where the operator runs with another
/// --binding-domain than the default, say it here too. It must be the version that was recorded, and the record must be
/// authenticated by the version in use.
///
/// What the SealConfig says about endpoints, roles and credentials is not used unless you pass --trust-file; your own
/// identity is. It needs kms:Decrypt on an AWS key, `use keys` on an OCI key. The endpoints of an OCI vault are used, but
/// without --trust-file only those of Oracle itself, in the realm and region of the key.
///
/// Examples:
///
///   autounseal unwrap -n openbao openbao --key static --out-file static.key
///   autounseal unwrap -n openbao openbao --key static --key-version 1 | sha256sum
///   autounseal unwrap -n vault vault --share 1 --out-file share-1
///   autounseal unwrap -n vault vault --root-token | vault login -
///   autounseal unwrap -f seal.yaml --key master --out-file master.key
///   autounseal unwrap -f seal.yaml --store store.yaml --key static --key-version 3 --out-file static.key
///
/// Exit codes: 0 opened, 1 no copy could be opened or the manifest is wrong, 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct UnwrapArgs {
    /// The SealConfig in the cluster
    #[arg(value_name = "NAME", required_unless_present = "file", conflicts_with_all = ["file", "store", "name"])]
    seal_config: Option<String>,
    /// A file with the SealConfig, YAML or JSON, at most 1 MiB; - reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    what: What,
    /// Which version of a generated key, or which set of shares. Default: the one in use, and a share that the set in use
    /// lacks is refused
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    key_version: Option<u32>,
    /// A file with the wrapped store, as `kubectl get secret NAME.sealconfig.wrapped -o yaml` prints it, at most 1 MiB
    #[arg(long, value_name = "FILE", requires = "file")]
    store: Option<PathBuf>,
    /// What the operator binds stored copies to (its flag of the same name)
    #[arg(long, value_name = "TEXT", default_value = "autounseal")]
    binding_domain: String,
    /// Only the copy of this seal
    #[arg(long, value_name = "NAME")]
    seal: Option<String>,
    /// Write the key into this file, which must not exist; only you may read it
    #[arg(long, value_name = "FILE")]
    out_file: Option<PathBuf>,
    /// Which SealConfig, when the file holds several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its namespace. Default: that of the context, or of the manifest
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Use the endpoints and roles that the SealConfig names
    #[arg(long)]
    trust_file: bool,
    /// Write the key even to a terminal
    #[arg(long)]
    force: bool,
    /// How to print the key; text is its bytes as they are, JSON has them in base64. A file always gets the bytes
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// What is opened.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Name of the key
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// An unseal share that a server answered when the operator initialised it, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    share: Option<u32>,
    /// A share of the recovery key, from 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=255))]
    recovery: Option<u32>,
    /// The root token, as long as it is kept
    #[arg(long)]
    root_token: bool,
}

impl What {
    /// The name of a share's section.
    fn share(&self) -> Option<String> {
        let share = self.share.map(|number| sets::name(Class::UnsealShare, number));
        let recovery = self
            .recovery
            .map(|number| sets::name(Class::RecoveryShare, number));
        share.or(recovery)
    }
}

pub(super) async fn run(args: &UnwrapArgs) -> Done {
    if args.out_file.is_none() && !args.force && io::stdout().is_terminal() {
        return Err(Failure::Misuse(
            "standard output is a terminal, which would show the key: name a file with --out-file, or pass --force"
                .to_owned(),
        ));
    }
    let case = match &args.file {
        Some(file) => Case::of_file(args, file)?,
        None => Case::of_cluster(args).await?,
    };
    let key = &case.find().await?;
    if key.is_brought() && args.key_version.is_some_and(|version| version != 1) {
        return Err(Failure::Misuse(format!(
            "key {:?} is brought and has one version; leave --key-version out",
            key.name
        )));
    }
    // Before anything is opened: a file that is in the way is better told now.
    let mut file = args.out_file.as_deref().map(OutFile::create).transpose()?;
    let bytes = case.open(key).await?;
    if let (Some(file), Some(path)) = (&mut file, &args.out_file) {
        file.keep(bytes.expose())
            .map_err(|error| Failure::No(format!("cannot write {}: {error}", path.display())))?;
        let path = path.display().to_string();
        match args.output {
            Output::Text => output::note(&format!("written to {path}")),
            Output::Json => output::json(&json!({"key": key.name, "file": path})),
        }
        return Ok(());
    }
    match args.output {
        Output::Text => output::bytes(bytes.expose()),
        Output::Json => output::named_bytes(&key.name, bytes.expose()),
    }
    .map_err(|error| Failure::No(format!("cannot write to standard output: {error}")))
}

pub(super) fn wrong(object: &Object, problems: &[Problem]) -> Failure {
    let list: Vec<_> = problems.iter().map(ToString::to_string).collect();
    Failure::No(format!("{}: {}", object.place, list.join("; ")))
}

/// A SealConfig, and where its copies lie.
struct Case<'a> {
    args: &'a UnwrapArgs,
    model: Model,
    holder: Holder,
    status: SealConfigStatus,
}

enum Holder {
    /// The other objects of the file.
    File(Vec<Object>),
    Cluster(Client),
}

impl<'a> Case<'a> {
    fn of_file(args: &'a UnwrapArgs, file: &std::path::Path) -> Result<Self, Failure> {
        let (object, others) =
            manifest::one_seal_config(file, args.name.as_deref(), args.namespace.as_deref())?;
        let model = check::check(&object).map_err(|problems| wrong(&object, &problems))?;
        Ok(Self {
            args,
            model,
            holder: Holder::File(others),
            status: SealConfigStatus::default(),
        })
    }

    async fn of_cluster(args: &'a UnwrapArgs) -> Result<Self, Failure> {
        let cluster = cluster::connect(&args.cluster).await?;
        let namespace = args.namespace.clone().unwrap_or(cluster.namespace);
        let name = args.seal_config.as_deref().unwrap_or_default();
        let config = cluster::seal_config(&cluster.client, &namespace, name).await?;
        let model = crate::seal::model::parse(&config)?;
        Ok(Self {
            args,
            model,
            holder: Holder::Cluster(cluster.client),
            status: config.status.unwrap_or_default(),
        })
    }

    /// The key, as the SealConfig has it or as a set does.
    async fn find(&self) -> Result<Key, Failure> {
        let what = &self.args.what;
        if let Some(key) = what.share().and_then(|name| sets::key(&name)) {
            if self.args.key_version.is_none()
                && let Some(store) = self.store().await?
            {
                stored::in_use(&store, &key.name)?;
            }
            return Ok(key);
        }
        if let Some(name) = &what.key {
            let found = self.model.keys.iter().find(|key| key.name == *name);
            return found.cloned().ok_or_else(|| {
                let names: Vec<_> = self.model.keys.iter().map(|key| key.name.as_str()).collect();
                Failure::Misuse(format!(
                    "the SealConfig has no key {name:?}; it has {}",
                    names.join(", ")
                ))
            });
        }
        let of_set = self.args.key_version.map(|set| sets::name(Class::RootToken, set));
        let named = of_set.and_then(|name| sets::key(&name));
        let newest = match self.store().await? {
            Some(store) => sets::token(&StoreFacts::Found(store)),
            None => None,
        };
        named.or(newest).ok_or_else(|| {
            Failure::No(
                "the wrapped store holds no root token: it was revoked, or no server was initialised by the operator"
                    .to_owned(),
            )
        })
    }

    async fn open(&self, key: &Key) -> Result<KeyBytes, Failure> {
        if key.is_brought() {
            return self.open_brought(key).await;
        }
        let Some(store) = self.store().await? else {
            let name = secret_name(&self.model.id);
            return Err(Failure::No(match &self.holder {
                Holder::File(_) => format!(
                    "key {:?} is not in the file: its copies lie in Secret {name}; name a file that holds it with --store \
                     (kubectl -n {} get secret {name} -o yaml)",
                    key.name, self.model.id.namespace
                ),
                Holder::Cluster(_) => format!(
                    "there is no Secret {name} in namespace {}, in which the copies of key {:?} would lie; restore it from a \
                     backup",
                    self.model.id.namespace, key.name
                ),
            }));
        };
        self.request(key, &store).open().await
    }

    fn request<'s>(&'s self, key: &'s Key, store: &'s Store) -> Request<'s> {
        if let (Some(sealed), Some(status)) = (
            store.header.keys.get(&key.name),
            self.status.keys.iter().find(|status| status.name == key.name),
        ) && (sealed.section.counter < status.store_counter || sealed.section.current < status.version)
            && !key.is_brought()
        {
            output::note(&format!(
                "the store is older than what the operator has seen: it holds version {} of key {:?}, and status speaks of \
                 version {}",
                sealed.section.current, key.name, status.version
            ));
        }
        Request {
            model: &self.model,
            key,
            store,
            version: if key.is_brought() {
                None
            } else {
                self.args.key_version
            },
            seal: self.args.seal.as_deref(),
            domain: &self.args.binding_domain,
            trust_file: self.args.trust_file,
        }
    }

    async fn store(&self) -> Result<Option<Store>, Failure> {
        let name = secret_name(&self.model.id);
        match (&self.args.store, &self.holder) {
            (Some(path), _) => stored::of_file(path, &self.model).map(Some),
            (None, Holder::File(others)) => stored::of_objects(others, &self.model),
            (None, Holder::Cluster(client)) => {
                let found = kube_ext::store::find(client, &self.model.id.namespace, &name).await;
                let (facts, _) = found.map_err(cluster::yours)?;
                stored::of_facts(facts, &name)
            }
        }
    }

    /// The first brought copy that opens and fits; else the first of those that the operator made of them.
    async fn open_brought(&self, key: &Key) -> Result<KeyBytes, Failure> {
        let (model, only) = (&self.model, self.args.seal.as_ref());
        let mut tried = false;
        let mut sources = Vec::new();
        for copy in &key.copies {
            let bytes = self.bytes_of(copy).await;
            if let (Source::Entry(entry), Ok(bytes)) = (&copy.source, &bytes) {
                sources.push((entry.clone(), SourceFacts::Found(bytes.clone())));
            }
            let Some(seal) = model
                .seal(&copy.seal)
                .filter(|seal| only.is_none_or(|only| *only == seal.name))
            else {
                continue;
            };
            let part = format!("seal {:?}", seal.name);
            let wrapped = match bytes {
                Ok(wrapped) => wrapped,
                Err(why) => {
                    output::note(&format!("{part}: {why}"));
                    continue;
                }
            };
            tried = true;
            let way = offline::with_own_identity(seal, self.args.trust_file);
            for note in &way.notes {
                output::note(note);
            }
            let caller = Caller::of(model, std::iter::once(&way.seal), self.args.trust_file);
            let opened = caller
                .unwrap(&way.seal, &wrapped, copy.format, &copy.context)
                .await
                .and_then(|opened| {
                    pinned(model, key, &opened.key)?;
                    Ok(opened)
                });
            match opened {
                Ok(opened) => {
                    output::note(&format!("{part}: opened by {}", opened.key_id));
                    return Ok(opened.key);
                }
                Err(fault) => output::note(&fault.of(&part).to_string()),
            }
        }
        if let Some(bytes) = self.open_operators_copy(key, sources).await? {
            return Ok(bytes);
        }
        Err(Failure::No(if tried {
            format!("no copy of key {:?} could be opened", key.name)
        } else {
            format!(
                "there was no copy of key {:?} to try; put the objects that hold the copies into the file, or name another \
                 --seal",
                key.name
            )
        }))
    }

    /// What the operator made of a brought key opens under the seals for which the user brings nothing. It counts only while
    /// it is of the copies that the SealConfig names, or of the key that checkValue pins.
    async fn open_operators_copy(
        &self,
        key: &Key,
        sources: Vec<(crate::seal::model::SourceRef, SourceFacts)>,
    ) -> Result<Option<KeyBytes>, Failure> {
        let Some(store) = self.store().await? else {
            return Ok(None);
        };
        let request = self.request(key, &store);
        let Some(sealed) = store
            .header
            .keys
            .get(&key.name)
            .filter(|sealed| sealed.section.source == Provenance::Brought)
        else {
            return Ok(None);
        };
        let inputs = brought_inputs(key, &seen(sources));
        if sealed.section.inputs.as_ref() != Some(&inputs) && key.check_value.is_none() {
            output::note(
                "the operator's own copies were made from other copies than could be read here, so they are not tried",
            );
            return Ok(None);
        }
        let bytes = request.open().await?;
        pinned(&self.model, key, &bytes)?;
        Ok(Some(bytes))
    }

    async fn bytes_of(&self, copy: &Copy) -> Result<Ciphertext, String> {
        let namespace = &self.model.id.namespace;
        match (&copy.source, &self.holder) {
            (Source::Inline(bytes), _) => Ok(bytes.clone()),
            (Source::Entry(_), Holder::File(others)) => source::wrapped(copy, others, namespace),
            (Source::Entry(entry), Holder::Cluster(client)) => {
                let found = source_facts(client, namespace, entry)
                    .await
                    .map_err(|fault| cluster::yours(fault).message)?;
                source_found(entry, Some(&found.1))
                    .cloned()
                    .map_err(|fault| fault.to_string())
            }
        }
    }
}

/// The sources, in the form that their digest is made from.
fn seen(sources: Vec<(crate::seal::model::SourceRef, SourceFacts)>) -> Observed {
    Observed {
        credentials: std::collections::BTreeMap::new(),
        now: Timestamp::UNIX_EPOCH,
        jitter: 0.0,
        namespace: NamespaceFacts::default(),
        endpoints: EndpointPolicy::default(),
        sources: sources.into_iter().collect(),
        secrets: std::collections::BTreeMap::new(),
        relics: std::collections::BTreeMap::new(),
        plain: std::collections::BTreeMap::new(),
        store: StoreFacts::NotLooked,
        old_copy_retention: SignedDuration::ZERO,
        read_secrets: std::collections::BTreeSet::new(),
        living: std::collections::BTreeSet::new(),
        pods: Vec::new(),
        cluster_id: None,
        status: SealConfigStatus::default(),
        memory: Memory::default(),
    }
}

/// What `checkValue` says of the key.
///
/// # Errors
/// `CheckValueDiffers`.
pub(super) fn pinned(model: &Model, key: &Key, bytes: &KeyBytes) -> Result<(), Fault> {
    let Some(pinned) = &key.check_value else {
        return Ok(());
    };
    if value_of(model, key, bytes).as_ref() == Some(pinned) {
        Ok(())
    } else {
        Err(Fault::invalid(
            Reason::CheckValueDiffers,
            "the copy holds another key than checkValue pins; it is not written",
        ))
    }
}
