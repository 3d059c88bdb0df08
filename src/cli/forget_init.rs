//! `autounseal forget-init`: a human says that an initialisation is given up, which the operator never decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead, IsTerminal},
};

use serde_json::json;

use super::{
    Done, Failure, Output,
    cluster::{self, ClusterArgs},
    output,
};
use crate::{
    api::{KIND, Reason, SealConfig, condition_types},
    kube_ext::store as secret,
    seal::store::{
        Class, Store, StoreFacts,
        edit::next_header,
        name_of,
        sets::{self, Marker},
    },
};

/// Let the operator initialise a server anew although it did, or may have done, so before
///
/// The operator initialises servers once: a marker in the wrapped store, or shares that lie there, keep it from asking again.
/// When what a server answered is lost (InitResponseLost), or the old data is given up (AlreadyInitializedElsewhere), this
/// takes the marker away. Shares, recovery keys and a root token that the store holds stay in it; those of the next
/// initialisation are written beside them.
///
/// It is refused as long as the operator does not say one of these two reasons of the SealConfig as it is now, and asks for
/// the name of the SealConfig, or --yes. It needs get on sealconfigs, and get and patch on Secret NAME.sealconfig.wrapped.
///
/// Examples:
///
///   autounseal forget-init -n vault vault
///   autounseal forget-init -n vault vault --yes
///
/// Exit codes: 0 done, 1 there is nothing to forget or it is refused, 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct ForgetInitArgs {
    /// The SealConfig
    #[arg(value_name = "NAME")]
    name: String,
    /// Its namespace. Default: that of the context
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// How to print what was done
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(super) async fn run(args: &ForgetInitArgs) -> Done {
    let cluster = cluster::connect(&args.cluster).await?;
    let namespace = args.namespace.clone().unwrap_or(cluster.namespace);
    let config = cluster::seal_config(&cluster.client, &namespace, &args.name).await?;
    let name = name_of(KIND, &args.name);
    let found = secret::find(&cluster.client, &namespace, &name).await;
    let (facts, _) = found.map_err(cluster::yours)?;
    let StoreFacts::Found(store) = &facts else {
        return Err(Failure::No(format!(
            "there is no wrapped store {name} in namespace {namespace} that can be read, so there is nothing to forget"
        )));
    };
    let standing = Standing::of(store);
    if standing.marker.is_none() && standing.counted == 0 {
        return Err(Failure::No(format!(
            "the wrapped store {name} holds neither a marker nor shares that keep a server from being initialised"
        )));
    }
    asked_for(&config)?;
    output::note(&standing.to_string());
    if !args.yes {
        confirm(&args.name)?;
    }
    let mut header = next_header(&facts, 0);
    header.forgotten = Some(standing.highest).max(header.forgotten);
    header.init = None;
    let base = Some(store.revision.clone());
    let change =
        secret::Change::new(base, &header, BTreeMap::new(), BTreeSet::new()).map_err(cluster::yours)?;
    secret::save(&cluster.client, &namespace, &name, &change)
        .await
        .map_err(cluster::yours)?;
    match args.output {
        Output::Text => output::note(&format!(
            "done: the operator may initialise a server of {namespace}/{} again",
            args.name
        )),
        Output::Json => output::json(&json!({
            "namespace": namespace, "name": args.name, "forgotten": header.forgotten,
        })),
    }
    Ok(())
}

/// What stands in the store.
struct Standing<'s> {
    marker: Option<&'s Marker>,
    /// Shares and recovery keys that count.
    counted: usize,
    /// The highest number of a set.
    highest: u32,
}

impl<'s> Standing<'s> {
    fn of(store: &'s Store) -> Self {
        let forgotten = store.header.forgotten.unwrap_or_default();
        let items = store.header.keys.iter().filter_map(|(name, sealed)| {
            let class = sets::class(name)?;
            Some((class, sealed.section.current))
        });
        let items: Vec<_> = items.collect();
        let counted = items
            .iter()
            .filter(|(class, set)| *class != Class::RootToken && *set > forgotten)
            .count();
        let marker = store.header.init.as_ref();
        let highest = items
            .iter()
            .map(|(_, set)| *set)
            .chain(marker.map(|marker| marker.set))
            .max();
        Self {
            marker,
            counted,
            highest: highest.unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Standing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(marker) = self.marker {
            write!(f, "pod {} was to be initialised at {}; ", marker.pod, marker.at)?;
        }
        match self.counted {
            0 => f.write_str("nothing that it answered is stored"),
            count => write!(
                f,
                "{count} shares of it are stored, and stay: they open the old data, and only the old data"
            ),
        }
    }
}

/// Whether the operator says now that it does not go on by itself.
fn asked_for(config: &SealConfig) -> Done {
    let status = config.status.clone().unwrap_or_default();
    let unsealed = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == condition_types::UNSEALED);
    let reasons = [Reason::InitResponseLost, Reason::AlreadyInitializedElsewhere];
    let says = unsealed.is_some_and(|condition| {
        condition.status == "False" && reasons.iter().any(|reason| reason.as_str() == condition.reason)
    });
    if says && status.observed_generation == config.metadata.generation {
        return Ok(());
    }
    Err(Failure::No(format!(
        "refused: the condition Unsealed is {}, and this is for {} and {} only, of the SealConfig as it is now; wait until the \
         operator has looked, and see what it says",
        unsealed.map_or("not there", |condition| condition.reason.as_str()),
        reasons[0],
        reasons[1]
    )))
}

fn confirm(name: &str) -> Done {
    if !io::stdin().is_terminal() {
        return Err(Failure::Misuse(
            "standard input is no terminal, so nobody can be asked: pass --yes".to_owned(),
        ));
    }
    output::note(&format!("type {name} to go on"));
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    if read.is_ok() && line.trim() == name {
        Ok(())
    } else {
        Err(Failure::No("nothing was changed".to_owned()))
    }
}
