//! The controller of one kind: whoever leads reconciles its objects, and a standby lets them pass.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt, channel::mpsc, future::select};
use kube::{
    core::{NamespaceResourceScope, Resource},
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::Store,
        watcher,
    },
};
use serde::de::DeserializeOwned;

use super::{Replica, context::Context, watch};

/// The objects of a kind, as they are watched.
pub struct Followed<S, K: Resource<DynamicType = ()> + 'static> {
    /// Those that changed.
    pub objects: S,
    /// All of them.
    pub reader: Store<K>,
    /// Those to be looked at again: namespace and name.
    pub triggered: mpsc::UnboundedReceiver<(String, String)>,
    /// Whether they were listed.
    pub begun: Arc<AtomicBool>,
    /// What the apiserver calls them.
    pub resource: &'static str,
}

impl<S, K> Followed<S, K>
where
    S: Stream<Item = Result<K, watcher::Error>> + Send + 'static,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Reconciles until `stop` ends and what was begun is done.
    pub(super) async fn lead<F>(
        self,
        context: Arc<Context>,
        replica: Replica,
        stop: impl Future<Output = ()> + Clone + Send + Sync + 'static,
        reconcile: impl Fn(Arc<K>, Arc<Context>) -> F,
    ) where
        F: Future<Output = Result<Action, Infallible>> + Send + 'static,
    {
        let Self {
            objects,
            reader,
            triggered,
            begun,
            resource,
        } = self;
        // A standby lists and watches like a leader, and lets every object pass; when it leads it takes them all up.
        let Replica { term, mut leads } = replica;
        let elected = futures::stream::once(async move {
            let _ = leads.wait_for(|leads| *leads).await;
        });
        let as_leader = move |object: Arc<K>, context: Arc<Context>| {
            let work = term.holds().then(|| reconcile(object, context));
            async move {
                match work {
                    Some(work) => work.await,
                    None => Ok(Action::await_change()),
                }
            }
        };
        let controller = Controller::for_stream(objects, reader)
            .with_config(controller::Config::default().concurrency(context.settings.concurrency))
            .reconcile_on(watch::as_references(triggered))
            .reconcile_all_on(elected)
            .graceful_shutdown_on(stop.clone())
            .run(as_leader, |_, never, _| match *never {}, context)
            .for_each(|result| {
                if let Err(controller::Error::QueueError(_)) = result {
                    tracing::warn!(
                        "the watch of {resource} failed and is started again; may the operator list and watch them?"
                    );
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
        select(std::pin::pin!(controller), std::pin::pin!(too_early)).await;
    }
}
