//! One reconcile: observe → parse → check → plan → apply → status.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use kube::ResourceExt;
use tracing::Instrument;

use super::{apply, context::Context, finalize, kept::Kept, observe, report, told::Base, unseal};
use crate::{
    api::{Reason, SealConfigStatus},
    provider::{self, TRACES},
    seal::{FaultKind, backoff, checks, model, plan, status, store::StoreFacts},
};

/// Brings one SealConfig, its Secrets and its status to what its spec says. After how long it is to be looked at again, if
/// nothing changes; every fault is a status and such a time.
pub async fn reconcile(object: Arc<Kept>, context: Arc<Context>) -> Option<Duration> {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let span = tracing::info_span!(target: TRACES, "reconcile", kind = "SealConfig", namespace, name);
    Box::pin(look(object, context)).instrument(span).await
}

async fn look(object: Arc<Kept>, context: Arc<Context>) -> Option<Duration> {
    let started = Instant::now();
    let Some(config) = &object.read() else {
        // Its text is not logged.
        tracing::warn!(
            namespace = object.namespace(),
            name = object.name_any(),
            "a SealConfig cannot be read"
        );
        return None;
    };
    if config.spec.controller_class != context.settings.controller_class {
        return None;
    }
    let finalized = finalize::finalize(&context, config).await;
    if config.metadata.deletion_timestamp.is_some() {
        context
            .unsealers
            .forget(&config.namespace().unwrap_or_default(), &config.name_any());
        return match finalized {
            Ok(()) => None,
            Err(fault) => {
                if fault.reason == Reason::InUse {
                    let saved = config.status.clone().unwrap_or_default();
                    let generation = config.metadata.generation.unwrap_or_default();
                    let next = status::failed(&saved, generation, &fault, Timestamp::now());
                    // Not taken, it is written at the next look.
                    let _ = report::report(&context, config, &saved, &next).await;
                }
                let (namespace, name) = (config.namespace(), config.name_any());
                let reason = fault.reason.as_str();
                tracing::warn!(namespace, name, reason, "{}", fault.message);
                Some(backoff(&fault, 2, provider::jitter()))
            }
        };
    }
    let (namespace, name) = (config.namespace().unwrap_or_default(), config.name_any());
    let mut remembered = context.memories.take(&object);
    let Base { previous, saved } = remembered.base::<SealConfigStatus>();
    let generation = config.metadata.generation.unwrap_or_default();

    // Nothing is made that could not go as it should.
    let (next, wait) = match finalized.and_then(|()| model::parse(config)) {
        Err(fault) => {
            context.unsealers.forget(&namespace, &name);
            // Only a change of the spec mends the spec; what the apiserver did not let pass is tried again.
            let wait = (fault.kind != FaultKind::Invalid).then(|| backoff(&fault, 3, 0.5));
            (
                status::failed(&previous, generation, &fault, Timestamp::now()),
                wait,
            )
        }
        Ok(mut model) => {
            context
                .index
                .refer(&namespace, &name, observe::references(&model));
            if model.suspend {
                context.unsealers.forget(&namespace, &name);
                (status::suspended(&previous, generation, Timestamp::now()), None)
            } else {
                match observe::observe(&context, &model, &previous, &mut remembered).await {
                    Err(fault) => {
                        let wait = backoff(&fault, 3, 0.5);
                        (
                            status::failed(&previous, generation, &fault, Timestamp::now()),
                            Some(wait),
                        )
                    }
                    Ok(mut observed) => {
                        model.add_answers(&observed.store, &previous.keys);
                        let mut findings = checks::check(&model, &observed);
                        status::prune(&mut observed.memory, &model, &findings);
                        let plan = plan::plan(&model, &observed, &findings);
                        let mut outcomes =
                            apply::apply(&context, &model, &mut observed, &mut findings, &plan).await;
                        outcomes.unseal = unseal::follow(&context, &model, &observed, &findings);
                        let mut next = status::status(&model, &observed, &findings, &outcomes);
                        let dependants = context.index.dependants(&namespace, &name);
                        let dependants = dependants.iter().map(|(key, facts)| (key, &facts.wrapped_under));
                        if let Some(fault) = checks::left_unopenable(&model, dependants) {
                            next = status::failed(&next, generation, &fault, observed.now);
                        }
                        let after = crate::seal::observed::Observed {
                            status: next.clone(),
                            ..observed
                        };
                        let wait = status::next_look(&model, &after, &findings, &outcomes);
                        remembered.memory = after.memory;
                        remembered.store = matches!(after.store, StoreFacts::Found(_)).then_some(after.store);
                        (next, wait)
                    }
                }
            }
        }
    };
    let outcome = report::report(&context, config, &saved, &next).await;
    remembered.tell(&next, &saved, &outcome);
    if context.memories.put(remembered) {
        context.look_at(&namespace, &name);
    }
    context
        .metrics
        .reconciled("SealConfig", outcome.is_ok(), started.elapsed());
    outcome.err().or(wait)
}
