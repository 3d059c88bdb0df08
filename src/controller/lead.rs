//! The controller of one kind: whoever leads reconciles its objects, and a standby lets them pass.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, stream};
use kube::{
    core::{NamespaceResourceScope, Resource},
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::{ObjectRef, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::time::MissedTickBehavior;

use super::{
    Replica,
    context::Context,
    feed::Feed,
    memories::{Memories, Rest, StatusText, named},
};

/// A look that is further away than this is kept with what is remembered of the object, in 16 bytes: in the Controller's
/// own queue it takes 800, and most objects are looked at again in hours.
const FAR: Duration = Duration::from_secs(20);

/// How often it is seen which of those are due.
const SWEEP: Duration = Duration::from_secs(5);

/// The objects of a kind, as they are watched.
pub struct Followed<S, K: Resource<DynamicType = ()> + 'static, T> {
    /// Their watch; what it shows has gone where it belongs.
    pub watch: S,
    /// All of them.
    pub reader: Store<K>,
    /// Those to be looked at.
    pub feed: Arc<Feed>,
    /// What is remembered of them.
    pub memories: fn(&Context) -> &Memories<K, T>,
    /// Whether they were listed.
    pub begun: Arc<AtomicBool>,
    /// What the apiserver calls them.
    pub resource: &'static str,
}

impl<S, K, T> Followed<S, K, T>
where
    S: Stream<Item = Result<K, watcher::Error>> + Send + 'static,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + DeserializeOwned + StatusText + Send + Sync + 'static,
    T: Rest + Send + 'static,
{
    /// Reconciles until `stop` ends and what was begun is done. `reconcile` tells after how long to look again.
    pub(super) async fn lead<F>(
        self,
        context: Arc<Context>,
        replica: Replica,
        stop: impl Future<Output = ()> + Clone + Send + Sync + 'static,
        reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
    ) where
        F: Future<Output = Option<Duration>> + Send + 'static,
    {
        let Self {
            watch,
            reader,
            feed,
            memories,
            begun,
            resource,
        } = self;
        // A standby lists and watches like a leader, and lets every object pass; when it leads it takes them all up.
        let Replica { term, mut leads } = replica;
        let elected = async {
            let _ = leads.wait_for(|leads| *leads).await;
            for object in reader.state() {
                let (namespace, name) = named(&*object);
                feed.ask(&namespace, &name);
            }
            std::future::pending::<()>().await;
        };
        let sweeping = async {
            let mut sweep = tokio::time::interval(SWEEP);
            sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                sweep.tick().await;
                for (namespace, name) in memories(&context).due(Instant::now()) {
                    feed.ask(&namespace, &name);
                }
            }
        };
        let begins = feed.clone();
        let as_leader = move |object: Arc<K>, context: Arc<Context>| {
            let begun = begins.begin(&named(&*object));
            let work = term.holds().then(|| reconcile(object.clone(), context.clone()));
            async move {
                let wait = match work {
                    Some(work) => work.await,
                    None => None,
                };
                drop(begun);
                Ok::<_, Infallible>(match wait {
                    Some(wait) if wait > FAR => {
                        memories(&context).look_at(&object, Instant::now() + wait);
                        Action::await_change()
                    }
                    Some(wait) => Action::requeue(wait),
                    None => Action::await_change(),
                })
            }
        };
        let fed = stream::unfold(feed.clone(), |feed| async move {
            let (namespace, name) = feed.next().await;
            Some((ObjectRef::new(&name).within(&namespace), feed))
        });
        let controller = Controller::for_stream(watch, reader.clone())
            .with_config(controller::Config::default().concurrency(context.settings.concurrency))
            .reconcile_on(fed)
            .graceful_shutdown_on(stop.clone())
            .run(as_leader, |_, never, _| match *never {}, context.clone())
            .for_each(|result| {
                match result {
                    Err(controller::Error::ObjectNotFound(gone)) => {
                        feed.dropped(&(gone.namespace.unwrap_or_default(), gone.name));
                    }
                    Err(controller::Error::QueueError(_)) => tracing::warn!(
                        "the watch of {resource} failed and is started again; may the operator list and watch them?"
                    ),
                    _ => {}
                }
                std::future::ready(())
            });
        // The controller ends when what it has begun is done, and waits for its first list forever if it is stopped before it.
        let too_early = async {
            stop.await;
            if begun.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = controller => {}
            () = too_early => {}
            () = elected => {}
            () = sweeping => {}
        }
    }
}
