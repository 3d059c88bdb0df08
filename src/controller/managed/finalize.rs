//! The deletion of a ManagedKey: what its policy says of the keys in AWS, if a human confirmed it (security rule S15).

use k8s_openapi::api::events::v1::Event;
use kube::{Api, Resource, ResourceExt, api::PostParams};
use serde_json::json;
use tokio::sync::Mutex;

use super::{
    bring::{Errand, Hand, takes},
    is_authentic,
    ledger::Ledger,
    not_confirmed, of_material,
};
use crate::{
    api::{ManagedKey, ManagedKeyStatus, Reason, SealConfig},
    controller::{
        apply,
        context::{Context, Remembered},
        finalize::put_finalizers,
        observe,
    },
    kube_ext::{bounded, names},
    seal::{
        Fault, checks,
        managed::{self, ManagedModel},
        plan, status,
    },
};

/// The right that is told when it is missing.
const RIGHT: &str = "patch managedkeys (deletion.policy; rights.storeDeletion of the chart)";

/// Puts the finalizer where the policy needs it, and takes it away where it does not.
///
/// # Errors
/// What kept the apiserver from it; it is tried again.
pub async fn mark(context: &Context, key: &ManagedKey) -> Result<(), Fault> {
    put(context, key, takes(key.spec.deletion.policy)).await
}

async fn put(context: &Context, key: &ManagedKey, wanted: bool) -> Result<(), Fault> {
    put_finalizers(&context.client, key, names::KEYS_FINALIZER, wanted, RIGHT).await
}

/// Takes the keys back as the policy says, then lets the object go.
///
/// # Errors
/// Why that is not done yet; it is tried again.
pub async fn delete(
    context: &Context,
    key: &ManagedKey,
    config: Option<&SealConfig>,
    previous: &ManagedKeyStatus,
) -> Result<(), Fault> {
    let has = key
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == names::KEYS_FINALIZER);
    if !has {
        return Ok(());
    }
    if takes(key.spec.deletion.policy) {
        let outcome = if managed::is_confirmed(key) {
            Box::pin(take_back(context, key, config, previous)).await
        } else {
            Err(not_confirmed(key, "of the ManagedKey"))
                .map_err(|note| Fault::invalid(Reason::DeletionNotConfirmed, note))
        };
        if let Err(fault) = outcome {
            let gives_way = fault.reason == Reason::DeletionNotConfirmed || terminates(context, key).await;
            let namespace = key.namespace();
            let (name, reason) = (key.name_any(), fault.reason.as_str());
            tracing::warn!(namespace, name, reason, "{}", fault.message);
            context
                .events
                .warn(key.object_ref(&()), fault.reason, fault.message.clone(), "Delete")
                .await;
            if !gives_way {
                return Err(fault);
            }
        }
    }
    put(context, key, false).await
}

async fn take_back(
    context: &Context,
    key: &ManagedKey,
    config: Option<&SealConfig>,
    previous: &ManagedKeyStatus,
) -> Result<(), Fault> {
    let config = config.ok_or_else(|| {
        Fault::invalid(
            Reason::DeletionNotConfirmed,
            format!(
                "SealConfig {} is gone, and without its seals nobody can tell whether the wrapped store still says which keys in \
                 AWS are ours; they stay as they are",
                key.spec.seal_config_ref.name
            ),
        )
    })?;
    let managed: ManagedModel = managed::parse(key, config)?;
    let model = &managed.model;
    let before = of_material(previous, config);
    let mut remembered = Remembered::default();
    let mut observed = observe::observe(context, model, &before, &mut remembered).await?;
    // A store that was changed by others is opened and authenticated; nothing new is made any more.
    let mut findings = checks::check(model, &observed);
    let mut todo = plan::plan(model, &observed, &findings);
    todo.tends
        .retain(|tend| matches!(&tend.work, plan::Work::Mend(due) if due.verify));
    for tend in &mut todo.tends {
        if let plan::Work::Mend(due) = &mut tend.work {
            due.rotate = false;
            due.trigger = false;
        }
    }
    let outcomes = apply::apply(context, model, &mut observed, &mut findings, &todo).await;
    let base = status::status(model, &observed, &findings, &outcomes);
    let Some(material) = model.keys.first() else {
        return Ok(());
    };
    if !is_authentic(&base, &observed) {
        let made = base.keys.first().is_some_and(|material| material.version > 0);
        return if made {
            Err(Fault::transient(
                Reason::StoreCorrupt,
                "the wrapped store could not be authenticated, so nothing that it names in AWS is touched; it is tried again",
            ))
        } else {
            // Nothing was ever made.
            Ok(())
        };
    }
    let (now, facts) = (observed.now, observed.namespace.clone());
    let ledger = Ledger::new(context, model, material, &mut observed);
    let all: Vec<String> = ledger
        .sealed()
        .and_then(|sealed| sealed.section.managed.as_ref())
        .map(|managed| managed.distributions.keys().cloned().collect())
        .unwrap_or_default();
    let ledger = Mutex::new(ledger);
    for name in &all {
        let hand = Hand {
            context,
            managed: &managed,
            facts: &facts,
            ledger: &ledger,
            now,
            errand: Errand::TakeBack(name, managed.deletion),
        };
        let (_, fault) = Box::pin(hand.work()).await;
        if let Some(fault) = fault {
            return Err(fault.of(format!("distribution {name:?}")));
        }
    }
    Ok(())
}

/// Whether the namespace is being deleted: then nothing may hold it up. The apiserver says so to whoever makes something.
async fn terminates(context: &Context, key: &ManagedKey) -> bool {
    let namespace = key.namespace().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(context.client.clone(), &namespace);
    let probe = serde_json::from_value(json!({
        "metadata": {"generateName": "autounseal-probe-", "namespace": namespace},
        "eventTime": "1970-01-01T00:00:00.000000Z", "reportingController": "autounseal.dev/operator",
        "reportingInstance": "probe", "action": "Probe", "reason": "Probe", "type": "Normal",
        "regarding": key.object_ref(&()),
    }));
    let Ok(probe) = probe else { return false };
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match bounded(api.create(&params, &probe)).await {
        Err(kube::Error::Api(status)) => {
            let causes = status.details.into_iter().flat_map(|details| details.causes);
            causes
                .into_iter()
                .any(|cause| cause.reason == "NamespaceTerminating")
        }
        _ => false,
    }
}
