//! Writes one Secret: server-side apply with one field manager, never over somebody else's.

use std::collections::BTreeMap;

use http::StatusCode;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};

use super::{context::Context, open::Ready};
use crate::{
    api::Reason,
    delivery::{Content, content::DeliveredKey, manifest, render},
    kube_ext::{
        FIELD_MANAGER, bounded,
        cluster::{entries, read_fault},
        facts, names,
        write::{self, WriteError, Written},
    },
    provider::{SecretEntries, Tenant},
    seal::{
        Fault, StaticCredentials,
        model::{Model, Target},
        observed::{Delivered, Mark, Observed, SecretFacts},
        outcome::TargetOutcome,
        plan::{Delivery, Write},
    },
};

/// Writes one Secret.
///
/// # Errors
/// `TemplateInvalid`, `SecretNotOwned`, `DeliveryFailed`.
pub async fn deliver(
    context: &Context,
    model: &Model,
    target: &Target,
    delivery: &Delivery,
    keys: &BTreeMap<String, Ready>,
    observed: &mut Observed,
) -> Result<TargetOutcome, Fault> {
    let handed: BTreeMap<String, DeliveredKey<'_>> = delivery
        .keys
        .iter()
        .filter_map(|name| Some((name, keys.get(name)?)))
        .map(|(name, key)| {
            let delivered = DeliveredKey {
                current: &key.bytes,
                consumer_key_id: key.consumer_key_id.clone(),
                previous: key
                    .previous
                    .as_ref()
                    .map(|previous| (&previous.bytes, previous.consumer_key_id.clone())),
            };
            (name.clone(), delivered)
        })
        .collect();
    let credentials = written_credentials(context, model, target).await?;
    let content = render(&target.entries, &handed, &credentials)?;
    drop(credentials);
    let marks: BTreeMap<String, Mark> = delivery
        .keys
        .iter()
        .filter_map(|name| Some((name.clone(), keys.get(name)?.mark.clone())))
        .collect();

    let before = observed.secrets.get(&target.secret).cloned();
    let changed = content_changed(context, model, target, delivery, &content).await?;
    let recorded = observed
        .status
        .targets
        .iter()
        .find(|status| status.name == target.name && status.secret == target.secret);
    let previous = before
        .as_ref()
        .filter(|_| !matches!(delivery.write, Write::Adopt { .. }))
        .map(|s| s.delivered.clone());
    let previous = previous.or_else(|| {
        // The Secret is gone: the status still knows when and how often it was delivered. With other inputs its keys
        // count as changed, for nobody can compare them any more.
        let status = recorded.filter(|status| status.deliveries > 0)?;
        let at = status.delivered_time.as_ref().map(|time| time.0);
        let marks = if delivery.repair {
            marks.clone()
        } else {
            BTreeMap::new()
        };
        Some(Delivered {
            count: status.deliveries,
            keys_changed: at,
            content_changed: at,
            marks,
        })
    });
    let delivered = next_delivered(previous, marks, changed, observed.now);
    let body = manifest(
        &metadata(model, target, delivery, &delivered),
        target.type_,
        &content,
    );
    drop(content);

    let namespace = &model.id.namespace;
    let force = delivery.write != Write::Create;
    let written = write::apply_secret(&context.client, namespace, &target.secret, body, force)
        .await
        .map_err(|error| write_fault(&error, target))?;
    // An apply that should have made the Secret and found one. If nobody else ever wrote to it, or we delivered it
    // before, it is our own, which the watch has not shown yet: taking our fields back would empty it.
    let known = recorded.is_some_and(|status| status.resource_version.is_some());
    if delivery.write == Write::Create && !written.created && written.shared && !known {
        let_go(context, model, target, &written).await;
        return Err(not_ours(target));
    }
    let facts = SecretFacts {
        uid: written.uid.clone(),
        resource_version: written.resource_version.clone(),
        owner_uid: written.annotations.get(names::OWNER_UID).cloned(),
        owner_name: written.annotations.get(names::OWNER_NAME).cloned(),
        adopt_by: written.annotations.get(names::ADOPT_BY).cloned(),
        delivered: facts::delivered(&written.annotations),
        deleting: false,
    };
    context.index.saw_secret(namespace, &target.secret, &facts);
    observed.secrets.insert(target.secret.clone(), facts);
    tracing::info!(
        namespace = namespace.as_str(),
        name = model.id.name.as_str(),
        secret = target.secret.as_str(),
        repair = delivery.repair,
        "delivered"
    );
    Ok(TargetOutcome::Delivered {
        resource_version: written.resource_version,
        inputs: delivery.inputs.clone(),
        content_changed: delivered.content_changed.unwrap_or(observed.now),
        deliveries: delivered.count,
    })
}

/// The static credentials that the target's entries hold.
async fn written_credentials(
    context: &Context,
    model: &Model,
    target: &Target,
) -> Result<BTreeMap<String, StaticCredentials>, Fault> {
    let tenant = Tenant {
        namespace: &model.id.namespace,
        name: &model.id.name,
    };
    let mut credentials = BTreeMap::new();
    for seal in target
        .credentials()
        .into_iter()
        .filter_map(|name| model.seal(name))
    {
        let read = context.clouds.static_credentials(seal, tenant).await;
        let read = read.map_err(|fault| fault.of(format_args!("seal {:?}", seal.name)))?;
        credentials.insert(seal.name.clone(), read);
    }
    Ok(credentials)
}

/// Whether the content differs from what the Secret holds. Only asked when inputs have changed: a repair puts
/// back what was delivered before.
async fn content_changed(
    context: &Context,
    model: &Model,
    target: &Target,
    delivery: &Delivery,
    content: &Content,
) -> Result<bool, Fault> {
    if delivery.repair {
        return Ok(false);
    }
    let adopted = match &delivery.write {
        Write::Create => return Ok(true),
        Write::Update { .. } => false,
        Write::Adopt { .. } => true,
    };
    let namespace = &model.id.namespace;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), namespace);
    let found = bounded(api.get_opt(&target.secret)).await;
    let found =
        found.map_err(|error| read_fault(&error, "get secrets", namespace, Reason::DeliveryFailed))?;
    let Some(secret) = found else { return Ok(true) };
    let type_fits = secret.type_.as_deref() == Some(target.type_.as_str());
    let live = entries(secret);
    if adopted && !type_fits {
        return Err(Fault::denied(
            Reason::SecretNotOwned,
            format!(
                "Secret {} is of another type than {}, and the type of a Secret cannot be changed; it is not taken over",
                target.secret,
                target.type_.as_str()
            ),
        ));
    }
    Ok(!holds(&live, content))
}

fn holds(live: &SecretEntries, content: &Content) -> bool {
    live.len() == content.len()
        && content
            .iter()
            .all(|(name, bytes)| live.get(name).is_some_and(|found| found.as_slice() == bytes))
}

/// The record beside the content: times and counter move only with what they speak of.
fn next_delivered(
    previous: Option<Delivered>,
    marks: BTreeMap<String, Mark>,
    changed: bool,
    now: jiff::Timestamp,
) -> Delivered {
    match previous {
        None => Delivered {
            count: 1,
            keys_changed: Some(now),
            content_changed: Some(now),
            marks,
        },
        Some(before) => {
            let keys_changed = before.marks.len() != marks.len()
                || !marks
                    .iter()
                    .all(|(key, mark)| before.marks.get(key).is_some_and(|before| before.same_keys(mark)));
            Delivered {
                count: if keys_changed {
                    before.count + 1
                } else {
                    before.count.max(1)
                },
                keys_changed: if keys_changed {
                    Some(now)
                } else {
                    before.keys_changed.or(Some(now))
                },
                content_changed: if changed || keys_changed {
                    Some(now)
                } else {
                    before.content_changed.or(Some(now))
                },
                marks,
            }
        }
    }
}

fn metadata(model: &Model, target: &Target, delivery: &Delivery, delivered: &Delivered) -> Value {
    let mut labels = target.labels.clone();
    labels.insert(names::MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
    let mut annotations = target.annotations.clone();
    annotations.extend(facts::delivered_annotations(delivered));
    annotations.insert(names::OWNER_UID.to_owned(), model.id.uid.clone());
    annotations.insert(names::OWNER_NAME.to_owned(), model.id.name.clone());
    let mut metadata = json!({
        "name": target.secret,
        "namespace": model.id.namespace,
        "labels": labels,
        "annotations": annotations,
    });
    match &delivery.write {
        Write::Create => {}
        Write::Update { uid } => metadata["uid"] = json!(uid),
        Write::Adopt {
            uid,
            resource_version,
        } => {
            metadata["uid"] = json!(uid);
            metadata["resourceVersion"] = json!(resource_version);
        }
    }
    if target.delete_with_owner {
        metadata["ownerReferences"] = json!([{
            "apiVersion": format!("{}/v1alpha1", crate::api::GROUP),
            "kind": "SealConfig",
            "name": model.id.name,
            "uid": model.id.uid,
            "controller": true,
            "blockOwnerDeletion": false,
        }]);
    }
    metadata
}

fn not_ours(target: &Target) -> Fault {
    Fault::denied(
        Reason::SecretNotOwned,
        format!(
            "Secret {} was made by somebody else in the same moment; choose another name",
            target.secret
        ),
    )
}

/// Somebody made the Secret between our look and our write: what we added to it is taken back. An apply without
/// fields gives up everything that this manager alone owns.
async fn let_go(context: &Context, model: &Model, target: &Target, written: &Written) {
    let metadata = json!({"name": target.secret, "namespace": model.id.namespace, "uid": written.uid});
    let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
        .to_string()
        .into_bytes();
    let given_up = write::apply_secret(
        &context.client,
        &model.id.namespace,
        &target.secret,
        zeroize::Zeroizing::new(body),
        false,
    );
    if given_up.await.is_err() {
        tracing::warn!(
            namespace = model.id.namespace.as_str(),
            secret = target.secret.as_str(),
            "a Secret of somebody else still holds entries that were applied to it in a race; delete it"
        );
    }
}

fn write_fault(error: &WriteError, target: &Target) -> Fault {
    let secret = &target.secret;
    match error {
        _ if error.is(StatusCode::CONFLICT) => Fault::transient(
            Reason::DeliveryFailed,
            format!(
                "Secret {secret} was changed, replaced or made by somebody else in the same moment; it is looked at again"
            ),
        ),
        _ if error.is(StatusCode::FORBIDDEN) => Fault::denied(
            Reason::DeliveryFailed,
            format!(
                "the operator may not write Secret {secret}: a missing right (create and patch secrets), a quota, or an \
                 admission policy refuses it"
            ),
        ),
        _ if error.is(StatusCode::UNPROCESSABLE_ENTITY) => Fault::denied(
            Reason::DeliveryFailed,
            format!(
                "the apiserver refuses Secret {secret}: it is immutable or of another type, or its entries do not fit the \
                 type; delete the Secret, or correct the target"
            ),
        ),
        WriteError::Refused { status, reason } => Fault::transient(
            Reason::DeliveryFailed,
            format!(
                "the apiserver answered {status} {reason} to the write of Secret {secret}; it is tried again"
            ),
        ),
        WriteError::Unreachable => Fault::transient(
            Reason::DeliveryFailed,
            format!("the apiserver does not answer to the write of Secret {secret}; it is tried again"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn marks(mark: &str) -> BTreeMap<String, Mark> {
        let mark = Mark {
            version: 1,
            mark: mark.to_owned(),
            ..Mark::default()
        };
        [("root".to_owned(), mark)].into()
    }

    #[test]
    fn counter_and_times_move_only_with_what_they_speak_of() {
        let first = next_delivered(None, marks("a"), true, at(1));
        assert_eq!(
            (first.count, first.keys_changed, first.content_changed),
            (1, Some(at(1)), Some(at(1)))
        );
        let text = next_delivered(Some(first.clone()), marks("a"), true, at(2));
        assert_eq!(
            (text.count, text.keys_changed, text.content_changed),
            (1, Some(at(1)), Some(at(2)))
        );
        let same = next_delivered(Some(first.clone()), marks("a"), false, at(3));
        assert_eq!(same, first);
        let keys = next_delivered(Some(first), marks("b"), true, at(4));
        assert_eq!(
            (keys.count, keys.keys_changed, keys.content_changed),
            (2, Some(at(4)), Some(at(4)))
        );
    }
}
