//! The only place that joins everything: observe → parse → check → plan → apply → status.
//!
//! [`reconcile`] is the whole story in one page. [`observe`] looks, `crate::seal` decides, [`apply`] does,
//! [`report`] tells. [`watch`] says when; [`index`] keeps what the watches saw.

pub mod apply;
pub mod context;
pub mod debounce;
pub mod deliver;
pub mod events;
pub mod feed;
pub mod finalize;
pub mod hedge;
pub mod index;
pub mod keep;
pub mod kept;
pub mod lead;
pub mod managed;
pub mod memories;
pub mod observe;
pub mod open;
pub mod packed;
pub mod preflight;
pub mod reconcile;
pub mod report;
pub mod restart;
pub mod stream;
pub mod told;
pub mod turnstile;
pub mod unseal;
pub mod watch;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt,
    future::{Either, join, join_all, ready, select},
};
use kube::{
    ResourceExt,
    client::ClientBuilder,
    core::Selector,
    runtime::watcher::{self, Event},
};

use crate::{
    lease::{self, Candidacy, Term, election::Loss},
    provider::{self, Clouds},
    settings::Settings,
    telemetry::{metrics::Metrics, server},
};
use context::Context;
use feed::Feed;
use index::Kind;
use kept::Kept;
use lead::Followed;
use memories::{Unlisted, named};
use turnstile::Pass;
use watch::{Pending, Scope};

/// SealConfigs of one page of a list: a page is held several times while it is read.
const CONFIGS_A_PAGE: u32 = 100;

/// Why the controller could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No apiserver is named.
    #[error("no cluster: run inside one, or set KUBECONFIG")]
    NoCluster,
    /// The metrics address is taken.
    #[error("--metrics-addr {0}: the address cannot be listened on; choose another")]
    MetricsAddress(std::net::SocketAddr),
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes to tell replicas apart by")]
    NoIdentity,
    /// Another replica acts from now on.
    #[error("this replica leads no more and ends, to start again as a standby: {0}")]
    Lost(#[from] Loss),
}

/// Runs until `stop` ends, then finishes what was begun.
///
/// # Errors
/// When there is no cluster, or no address to serve metrics on; and when another replica may lead from now on: then the
/// process has to end.
pub async fn run(
    settings: Settings,
    provider_settings: provider::Settings,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), StartError> {
    let metrics = Arc::new(Metrics::new());
    let health = server::serve(settings.metrics_addr, metrics.clone())
        .await
        .map_err(|_| StartError::MetricsAddress(settings.metrics_addr))?;
    let mut config = kube::Config::infer().await.map_err(|_| StartError::NoCluster)?;
    // One layer of retries: ours. kube's own would hold a worker for minutes.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.write_timeout = Some(Duration::from_secs(10));
    let home = config.default_namespace.clone();
    let cluster_ca = config.root_cert.clone().unwrap_or_default();
    let build = || ClientBuilder::try_from(config.clone()).map_err(|_| StartError::NoCluster);
    let term = if settings.election.is_some() {
        Term::none()
    } else {
        Term::endless()
    };
    let client = build()?
        .with_layer(&tower::filter::FilterLayer::new(fence(term.clone())))
        .build();
    let election = match &settings.election {
        None => None,
        Some(election) => {
            let candidacy = Candidacy {
                namespace: election.namespace.clone().unwrap_or(home),
                name: election.name.clone(),
                identity: format!("{}_{}", election.identity, random_word()?),
            };
            Some((build()?.build(), candidacy))
        }
    };
    let cluster = Arc::new(crate::kube_ext::cluster::ApiserverCluster::new(client.clone()));
    let clouds = Clouds::new(provider_settings, Some(cluster.clone()), metrics.clone());
    let events = events::Events::new(client.clone());
    let context = Arc::new(Context::new(
        (client, build()?.build()),
        settings,
        (clouds, cluster),
        metrics.clone(),
        events,
        cluster_ca,
        term.clone(),
    ));
    let (elected, leads) = tokio::sync::watch::channel(election.is_none());
    metrics.leads(election.is_none());
    let shown = (metrics, leads.clone());
    tokio::spawn(async move {
        let (metrics, mut leads) = shown;
        while leads.changed().await.is_ok() {
            metrics.leads(*leads.borrow());
        }
    });

    let (stopping, stopped) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        stop.await;
        let _ = stopping.send(true);
    });
    let namespaces = &context.settings.watch_namespaces;
    let scopes: Vec<Option<String>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().cloned().map(Some).collect()
    };
    let streams = watch::streams_lists(&context.client).await;
    // What a server answered when it was initialised is stored before this process ends, however it ends.
    let inits = context.inits.clone();
    let running = scopes.into_iter().map(|namespace| {
        let mut stopped = stopped.clone();
        let stop = async move {
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let replica = Replica {
            term: term.clone(),
            leads: leads.clone(),
        };
        run_scope(context.clone(), namespace, streams, health.clone(), replica, stop)
    });
    let running: Vec<_> = running.collect();
    match election {
        None => {
            join_all(running).await;
            inits.settled().await;
        }
        Some((client, candidacy)) => {
            // The Lease is held until the last worker has finished what it began, and then given up.
            let (finished, finish) = tokio::sync::oneshot::channel();
            let holding = lease::hold(client, candidacy, term.clone(), elected, finish);
            let work = async move {
                join_all(running).await;
                inits.settled().await;
                let _ = finished.send(());
                std::future::pending::<()>().await;
            };
            let held = tokio::select! {
                held = holding => held,
                () = work => Ok(()),
            };
            if held.is_err() {
                context.inits.settled().await;
            }
            held?;
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Whether this replica acts.
#[derive(Clone)]
struct Replica {
    term: Term,
    leads: tokio::sync::watch::Receiver<bool>,
}

/// Lets writes pass in a term of ours only. What the apiserver is asked for by a standby are lists and watches.
fn fence<B>(term: Term) -> impl FnMut(http::Request<B>) -> Result<http::Request<B>, tower::BoxError> + Clone {
    move |request| {
        if request.method() == http::Method::GET || term.holds() {
            Ok(request)
        } else {
            Err("this replica does not lead".into())
        }
    }
}

fn random_word() -> Result<String, StartError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StartError::NoIdentity)?;
    Ok(data_encoding::HEXLOWER.encode(&bytes))
}

/// One namespace, or all: its watches, and the controller that follows them.
async fn run_scope(
    context: Arc<Context>,
    namespace: Option<String>,
    streams: bool,
    health: server::Health,
    replica: Replica,
    stop: impl Future<Output = ()> + Send + Sync + 'static,
) {
    let feed = || Arc::new(Feed::new(context.settings.concurrency));
    let scope = Scope {
        namespace: namespace.clone(),
        configs: feed(),
        streams,
        managed: feed(),
    };
    context.watches(scope.clone());
    let watches_namespaces = namespace.is_none();
    let (sender, mut receiver) = tokio::sync::watch::channel(4 + usize::from(watches_namespaces));
    let pending: Pending = Arc::new(sender);
    let mut watches = tokio::task::JoinSet::new();
    watches.spawn(watch::secrets(context.clone(), scope.clone(), pending.clone()));
    watches.spawn(watch::config_maps(
        context.clone(),
        scope.clone(),
        pending.clone(),
    ));
    watches.spawn(watch::service_accounts(
        context.clone(),
        scope.clone(),
        pending.clone(),
    ));
    watches.spawn(watch::pods(context.clone(), scope.clone(), pending.clone()));
    if watches_namespaces {
        watches.spawn(watch::namespaces(context.clone(), scope.clone(), pending.clone()));
    }
    let mut part = Some(health.part());
    let stop = stop.shared();
    // A Secret that was not listed yet would look as if it did not exist: nothing is decided before that.
    let listed = std::pin::pin!(receiver.wait_for(|left| *left == 0));
    if !matches!(select(listed, stop.clone()).await, Either::Left((Ok(_), _))) {
        return;
    }

    let api = scope.api::<Kept>(context.client.clone());
    let known = context.clone();
    let (begins, begun) = tokio::sync::watch::channel(false);
    let seen_in = scope.clone();
    let mut unlisted = Unlisted::default();
    // Not from the apiserver's cache: a trigger for a rotation that is behind would be taken for a new one.
    let listing = watcher::Config::default().page_size(CONFIGS_A_PAGE);
    let configs = stream::events(api, listing, "sealconfigs").filter_map(move |event| {
        // First of all: whoever is woken by an event finds what it told.
        if let Some((namespace, name)) = known.memories.reflect(&event) {
            seen_in.look_at(&namespace, [name]);
        }
        remember(&known, &seen_in, &event, &mut unlisted);
        if matches!(event, Event::InitDone) {
            begins.send_replace(true);
            if let Some(part) = part.take() {
                part.ready();
            }
        }
        ready(None)
    });
    let managed = managed::run::run(context.clone(), scope.clone(), replica.clone(), stop.clone());
    let configs = Followed {
        memories: |context| &context.memories,
        watch: configs,
        begun,
        feed: scope.configs,
        namespace,
    };
    let configs = configs.lead(context, replica, stop, |config, context| async move {
        let (namespace, name) = named(&*config);
        let Some(_pass) = Pass::take(&context, &namespace, &name) else {
            return Some(turnstile::PARKED);
        };
        match context.debounce.wait(&namespace, &name, Instant::now()) {
            Some(wait) => Some(wait),
            None => Box::pin(reconcile::reconcile(config, context)).await,
        }
    });
    join(configs, managed).await;
    drop(watches);
}

fn remember(context: &Arc<Context>, scope: &Scope, event: &Event<Kept>, unlisted: &mut Unlisted) {
    let of_scope = scope.namespace.as_deref();
    for (namespace, name) in unlisted.follow(event, &context.memories, of_scope) {
        context.forget(&namespace, &name);
        context.unsealers.sync(context, &namespace);
    }
    match event {
        Event::Apply(config) | Event::InitApply(config) => {
            let (namespace, name) = named(config);
            context
                .index
                .saw_config(&namespace, &name, &config.uid().unwrap_or_default());
            // Of every SealConfig, also of those that are another instance's or suspended: theirs is the pod as well.
            let selector = config
                .unseal()
                .and_then(|unseal| Selector::try_from(unseal.pod_selector).ok());
            if context.index.saw_unseal(&namespace, &name, selector) {
                context.unsealers.sync(context, &namespace);
            }
            scope.look_at(
                &namespace,
                context.index.referring(Kind::SealConfig, &namespace, &name),
            );
        }
        Event::Delete(_) => {}
        Event::Init => context.index.listing_configs(of_scope),
        Event::InitDone => {
            context.index.listed_configs(of_scope);
            context.unsealers.sync_all(context);
        }
    }
}
