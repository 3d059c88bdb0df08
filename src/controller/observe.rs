//! Looks at the world for one reconcile. Reads, decides nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, core::SelectorExt};

use super::{
    context::{Context, Remembered},
    index::{Kind, References},
};
use crate::{
    api::{Reason, SealConfigStatus},
    kube_ext::{
        bounded,
        cluster::{entries, read_fault},
    },
    seal::{
        Fault,
        model::{Model, SourceKind, SourceRef, unarmor},
        observed::{NamespaceFacts, Observed, SourceFacts},
    },
};

/// What the spec refers to, so that a change of it leads back here.
pub fn references(model: &Model) -> References {
    let mut objects = std::collections::BTreeSet::new();
    for source in model.sources() {
        let kind = match source.kind {
            SourceKind::Secret => Kind::Secret,
            SourceKind::ConfigMap => Kind::ConfigMap,
        };
        objects.insert((kind, source.name.clone()));
    }
    let read_secrets: std::collections::BTreeSet<String> =
        model.read_secrets().into_iter().map(Into::into).collect();
    objects.extend(read_secrets.iter().map(|name| (Kind::Secret, name.clone())));
    objects.extend(
        model
            .targets
            .iter()
            .map(|target| (Kind::Secret, target.secret.clone())),
    );
    objects.extend(
        model
            .service_accounts()
            .into_iter()
            .map(|name| (Kind::ServiceAccount, name.to_owned())),
    );
    References {
        objects,
        read_secrets,
        selects_pods: model.targets.iter().any(|target| target.selector.is_some()),
    }
}

/// Looks at everything that the decisions need.
///
/// # Errors
/// A source that exists but cannot be read.
pub async fn observe(
    context: &Context,
    model: &Model,
    status: &SealConfigStatus,
    remembered: &mut Remembered,
) -> Result<Observed, Fault> {
    let namespace = &model.id.namespace;
    let index = &context.index;
    let sources = sources(context, model, remembered).await?;
    let secrets = model
        .targets
        .iter()
        .filter_map(|target| Some((target.secret.clone(), index.secret(namespace, &target.secret)?)));
    let pods = if model.targets.iter().any(|target| target.selector.is_some()) {
        let selected = |pod: &crate::seal::observed::PodFacts| {
            model
                .targets
                .iter()
                .any(|target| target.selector.as_ref().is_some_and(|s| s.matches(&pod.labels)))
        };
        index
            .pods(namespace)
            .iter()
            .filter(|pod| selected(pod))
            .map(|pod| (**pod).clone())
            .collect()
    } else {
        Vec::new()
    };
    Ok(Observed {
        now: Timestamp::now(),
        jitter: jitter(),
        namespace: namespace_facts(context, namespace),
        endpoints: context.settings.endpoints.clone(),
        secrets: secrets.collect(),
        read_secrets: index.read_secrets(namespace),
        living: index.living(namespace),
        pods,
        status: status.clone(),
        memory: std::mem::take(&mut remembered.memory),
        sources,
    })
}

fn jitter() -> f64 {
    let mut bytes = [0_u8; 4];
    // Without randomness waits are not spread; nothing else depends on it.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

fn namespace_facts(context: &Context, namespace: &str) -> NamespaceFacts {
    let policy = &context.settings.identity;
    let mut grants = policy.grants.get(namespace).cloned().unwrap_or_default();
    let mut operator_identity = policy.namespaces.contains(namespace);
    if policy.labels {
        let meta = context.index.namespace(namespace);
        operator_identity |= meta.identity_allowed;
        grants.extend(meta.grants);
    }
    NamespaceFacts {
        operator_identity,
        grants,
    }
}

/// Reads the copies that lie in other objects, each once for each of its resourceVersions.
async fn sources(
    context: &Context,
    model: &Model,
    remembered: &mut Remembered,
) -> Result<BTreeMap<SourceRef, SourceFacts>, Fault> {
    let namespace = &model.id.namespace;
    let mut known = BTreeMap::new();
    for source in model.sources() {
        let version = match source.kind {
            SourceKind::Secret => context
                .index
                .secret(namespace, &source.name)
                .map(|facts| facts.resource_version),
            SourceKind::ConfigMap => context.index.config_map(namespace, &source.name),
        };
        let before = remembered
            .sources
            .remove(source)
            .filter(|(seen, _)| version.as_ref() == Some(seen));
        let read = match before {
            Some(before) => before,
            None => read(context, namespace, source).await?,
        };
        known.insert(source.clone(), read);
    }
    let facts = known
        .iter()
        .map(|(source, (_, facts))| (source.clone(), facts.clone()))
        .collect();
    remembered.sources = known;
    Ok(facts)
}

async fn read(
    context: &Context,
    namespace: &str,
    source: &SourceRef,
) -> Result<(String, SourceFacts), Fault> {
    let missing = (String::new(), SourceFacts::ObjectMissing);
    let (version, bytes) = match source.kind {
        SourceKind::Secret => {
            let api: Api<k8s_openapi::api::core::v1::Secret> =
                Api::namespaced(context.client.clone(), namespace);
            let found = bounded(api.get_opt(&source.name)).await;
            let Some(secret) =
                found.map_err(|e| read_fault(&e, "get secrets", namespace, Reason::SourceMissing))?
            else {
                return Ok(missing);
            };
            let version = secret.metadata.resource_version.clone().unwrap_or_default();
            (
                version,
                entries(secret).remove(&source.key).map(|bytes| bytes.to_vec()),
            )
        }
        SourceKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
            let found = bounded(api.get_opt(&source.name)).await;
            let Some(map) =
                found.map_err(|e| read_fault(&e, "get configmaps", namespace, Reason::SourceMissing))?
            else {
                return Ok(missing);
            };
            let version = map.metadata.resource_version.clone().unwrap_or_default();
            let binary = map
                .binary_data
                .and_then(|mut data| data.remove(&source.key))
                .map(|bytes| bytes.0);
            let text = map
                .data
                .and_then(|mut data| data.remove(&source.key))
                .map(String::into_bytes);
            (version, binary.or(text))
        }
    };
    let facts = match bytes {
        None => SourceFacts::EntryMissing,
        Some(bytes) => unarmor(&bytes, source.armor).map_or(SourceFacts::Unreadable, SourceFacts::Found),
    };
    Ok((version, facts))
}
