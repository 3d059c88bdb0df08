//! The controller of ManagedKeys in one scope: its watch, and who is looked at when.

use std::{future::Future, sync::Arc};

use futures::{StreamExt, future::ready};
use kube::{
    ResourceExt,
    core::DeserializeGuard,
    runtime::watcher::{self, Event},
};

use super::reconcile;
use crate::{
    api::ManagedKey,
    controller::{
        Replica,
        context::Context,
        index::{self, ManagedFacts},
        lead::Followed,
        memories::{Unlisted, named},
        stream::events,
        watch::Scope,
    },
};

/// Runs until `stop` ends and what was begun is done.
pub(in crate::controller) async fn run(
    context: Arc<Context>,
    scope: Scope,
    replica: Replica,
    stop: impl Future<Output = ()> + Clone + Send + Sync + 'static,
) {
    let api = scope.api::<DeserializeGuard<ManagedKey>>(context.client.clone());
    let known = context.clone();
    let (begins, begun) = tokio::sync::watch::channel(false);
    let seen_in = scope.clone();
    let mut unlisted = Unlisted::default();
    let keys = events(api, watcher::Config::default(), "managedkeys").filter_map(move |event| {
        let event = event.modify(|key| key.managed_fields_mut().clear());
        // First of all: whoever is woken by an event finds what it told.
        if let Some((namespace, name)) = known.managed.reflect(&event) {
            seen_in.look_at(&namespace, [index::managed(&name)]);
        }
        remember(&known, &seen_in, &event, &mut unlisted);
        if matches!(event, Event::InitDone) {
            begins.send_replace(true);
        }
        ready(None)
    });
    let keys = Followed {
        memories: |context| &context.managed,
        watch: keys,
        begun,
        feed: scope.managed,
        namespace: scope.namespace,
    };
    keys.lead(context, replica, stop, |key, context| {
        Box::pin(reconcile(key, context))
    })
    .await;
}

/// What SealConfigs must know of those that refer to them.
fn remember(
    context: &Context,
    scope: &Scope,
    event: &Event<DeserializeGuard<ManagedKey>>,
    unlisted: &mut Unlisted,
) {
    for (namespace, name) in unlisted.follow(event, &context.managed, scope.namespace.as_deref()) {
        let config = context.index.managed(&namespace, &name).map(|facts| facts.config);
        context.forget_managed(&namespace, &name);
        scope.look_at(&namespace, config);
    }
    let (Event::Apply(key) | Event::InitApply(key)) = event else {
        return;
    };
    let (namespace, name) = named(key);
    let Ok(key) = &key.0 else { return };
    let material = key.status.as_ref().and_then(|status| status.material.as_ref());
    let facts = ManagedFacts {
        config: key.spec.seal_config_ref.name.clone(),
        wrapped_under: material
            .map(|material| material.wrapped_under.iter().cloned().collect())
            .unwrap_or_default(),
    };
    let config = facts.config.clone();
    if context.index.saw_managed(&namespace, &name, facts) {
        scope.look_at(&namespace, [config]);
    }
}
