//! The controller of one kind: whoever leads reconciles its objects, and a standby lets them pass.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt, stream};
use kube::{
    core::{NamespaceResourceScope, ObjectMeta, PartialObjectMeta, PartialObjectMetaExt, Resource},
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::{self, ObjectRef},
        watcher::Event,
    },
};
use tokio::{sync::watch, time::MissedTickBehavior};

use super::{
    Replica,
    context::Context,
    feed::{Feed, Handed},
    memories::{Memories, Name, Object, Rest, named},
};

/// A look that is further away than this is kept with what is remembered of the object, in 16 bytes: in the Controller's
/// own queue it takes 800, and most objects are looked at again in hours.
const FAR: Duration = Duration::from_secs(20);

/// How often it is seen which of those are due.
const SWEEP: Duration = Duration::from_secs(5);

/// What stands for an object in the Controller's store.
type Ticket<K> = PartialObjectMeta<K>;

/// The objects of a kind, as they are watched.
pub struct Followed<S, K: Object, T> {
    /// Their watch; what it shows has gone where it belongs.
    pub watch: S,
    /// Where they are.
    pub namespace: Option<String>,
    /// Those to be looked at.
    pub feed: Arc<Feed>,
    /// What is known of them.
    pub memories: fn(&Context) -> &Memories<K, T>,
    /// Whether they were listed.
    pub begun: watch::Receiver<bool>,
}

impl<S, K, T> Followed<S, K, T>
where
    S: Stream<Item = Infallible> + Send + 'static,
    K: Object + Resource<Scope = NamespaceResourceScope> + Clone + Debug + Send + Sync + 'static,
    K::Kept: Send,
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
            namespace,
            feed,
            memories,
            mut begun,
        } = self;
        let is_listed = begun.clone();
        // A standby lists and watches like a leader, and lets every object pass; when it leads it takes them all up.
        let Replica { term, mut leads } = replica;
        let elected = async {
            let _ = leads.wait_for(|leads| *leads).await;
            for (namespace, name) in memories(&context).names(namespace.as_deref()) {
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
        let as_leader = move |ticket: Arc<Ticket<K>>, context: Arc<Context>| {
            let (namespace, name) = named(&*ticket);
            let begun = begins.begin((namespace.clone(), name.clone()));
            let object = memories(&context).shown(&namespace, &name);
            let object = object.filter(|_| term.holds());
            let work = object.map(|object| (reconcile(object.clone(), context.clone()), object));
            async move {
                let Some((work, object)) = work else {
                    return Ok(Action::await_change());
                };
                Ok::<_, Infallible>(match work.await {
                    Some(wait) if wait <= FAR => {
                        begun.again();
                        Action::requeue(wait)
                    }
                    wait => {
                        if let Some(wait) = wait {
                            memories(&context).look_at(&object, Instant::now() + wait);
                        }
                        Action::await_change()
                    }
                })
            }
        };
        let (reader, mut tickets) = reflector::store::<Ticket<K>>();
        let first = async move {
            // Nothing is decided before all are known.
            let _ = begun.wait_for(|begun| *begun).await;
            tickets.apply_watcher_event(&Event::Init);
            tickets.apply_watcher_event(&Event::InitDone);
            tickets
        };
        let handing = feed.clone();
        let fed = stream::once(first).flat_map(move |tickets| {
            stream::unfold((tickets, handing.clone()), |(mut tickets, feed)| async move {
                let Handed { name, void } = feed.next().await;
                for name in &void {
                    tickets.apply_watcher_event(&Event::Delete(ticket(name)));
                }
                tickets.apply_watcher_event(&Event::Apply(ticket(&name)));
                Some((ObjectRef::new(&name.1).within(&name.0), (tickets, feed)))
            })
        });
        let never = watch.map(|never| match never {});
        let controller = Controller::for_stream(never, reader)
            .with_config(controller::Config::default().concurrency(context.settings.concurrency))
            .reconcile_on(fed)
            .graceful_shutdown_on(stop.clone())
            .run(as_leader, |_, never, _| match *never {}, context.clone())
            .for_each(|_| std::future::ready(()));
        // The controller ends when what it has begun is done, and waits for its first list forever if it is stopped before it.
        let too_early = async {
            stop.await;
            if *is_listed.borrow() {
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

fn ticket<K: Resource<DynamicType = ()>>((namespace, name): &Name) -> Ticket<K> {
    let meta = ObjectMeta {
        namespace: Some(namespace.clone()),
        name: Some(name.clone()),
        ..ObjectMeta::default()
    };
    meta.into_response_partial()
}
