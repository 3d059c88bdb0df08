//! Looks at the world for one reconcile. Reads, decides nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::core::SelectorExt;

use super::{
    context::{Context, Remembered},
    index::{Kind, References},
};
use crate::{
    api::{KIND, SealConfigStatus},
    kube_ext::{cluster::source_facts, store::find},
    provider,
    seal::{
        Fault,
        model::{Model, Origin, SourceKind, SourceRef, Target},
        observed::{NamespaceFacts, Observed, SecretFacts, SourceFacts},
        store::{StoreFacts, secret_name, sets, standing::needs_store},
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
    // Servers may have been initialised before, and what they answered lies there.
    if needs_store(model) || model.unseal.is_some() {
        objects.insert((Kind::Secret, secret_name(&model.id)));
    }
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
    let targets = model.targets.iter().filter_map(|target| target.selector.clone());
    let unseal = model.unseal.iter().map(|unseal| unseal.selector.clone());
    References {
        objects: objects.into_iter().collect(),
        read_secrets: read_secrets.into_iter().collect(),
        pods: targets.chain(unseal).collect(),
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
    let store = store(context, model, status, remembered).await?;
    let own = model.keys.iter().any(|key| !key.is_brought());
    let plain = model.keys.iter().filter_map(|key| match &key.origin {
        Origin::Imported { secret, .. } => {
            let version = index.secret(namespace, secret)?.resource_version;
            Some((secret.clone(), version))
        }
        Origin::Brought | Origin::Generated { .. } | Origin::Initialized(_) => None,
    });
    let secrets: BTreeMap<String, SecretFacts> = model
        .targets
        .iter()
        .filter_map(|target| Some((target.secret.clone(), index.secret(namespace, &target.secret)?)))
        .collect();
    let others = secrets.values().filter_map(|secret| secret.owner_uid.clone());
    let owners = others.filter(|owner| *owner != model.id.uid).collect();
    let pods = if model.targets.iter().any(|target| target.selector.is_some()) {
        let selectors = model.targets.iter().filter_map(|target| target.selector.as_ref());
        index.pods(namespace, |labels| {
            selectors.clone().any(|selector| selector.matches(labels))
        })
    } else {
        Vec::new()
    };
    Ok(Observed {
        now: Timestamp::now(),
        jitter: provider::jitter(),
        namespace: namespace_facts(context, namespace),
        endpoints: context.settings.endpoints.clone(),
        living: index.living(namespace, &owners),
        secrets,
        relics: if own && model.id.kind == KIND {
            index.delivered_by(namespace, &model.id.name)
        } else {
            BTreeMap::new()
        },
        plain: plain.collect(),
        store,
        old_copy_retention: context.settings.old_copy_retention,
        credentials: written_credentials(context, model),
        read_secrets: index.read_secrets(namespace, model.targets.iter().map(|t| t.secret.as_str())),
        pods,
        cluster_id: context.unsealers.cluster(namespace, &model.id.name),
        status: status.clone(),
        memory: std::mem::take(&mut remembered.memory),
        sources,
    })
}

/// Which versions of their Secrets the credentials are that targets hold.
fn written_credentials(context: &Context, model: &Model) -> BTreeMap<String, String> {
    let seals = model.targets.iter().flat_map(Target::credentials);
    let secrets = seals.filter_map(|seal| model.seal(seal)?.cloud.credentials_secret());
    let version = |secret: &str| {
        let facts = context.index.secret(&model.id.namespace, secret)?;
        Some((secret.to_owned(), facts.resource_version))
    };
    secrets.filter_map(version).collect()
}

fn namespace_facts(context: &Context, namespace: &str) -> NamespaceFacts {
    let policy = &context.settings.identity;
    let mut grants = policy.grants.get(namespace).cloned().unwrap_or_default();
    let mut operator_identity = policy.namespaces.contains(namespace);
    if policy.labels {
        let meta = context.index.namespace(namespace);
        operator_identity |= meta.operator_identity;
        grants.extend(meta.grants);
    }
    NamespaceFacts {
        operator_identity,
        grants,
        // Known where namespaces are watched: not with --watch-namespaces.
        allowed_seals: context.index.namespace(namespace).allowed_seals,
    }
}

/// Reads the wrapped store, unless it is known to be as it was. What looks as if it did not exist is looked for once more
/// at the apiserver itself: a watch may be behind.
async fn store(
    context: &Context,
    model: &Model,
    status: &SealConfigStatus,
    remembered: &mut Remembered,
) -> Result<StoreFacts, Fault> {
    let before = remembered.store.take();
    let (namespace, name) = (&model.id.namespace, secret_name(&model.id));
    let seen = context
        .index
        .secret(namespace, &name)
        .map(|facts| facts.resource_version);
    // What servers answered when they were initialised is looked after as long as it is there, whatever the spec says.
    let answers = || status.keys.iter().any(|key| sets::class(&key.name).is_some());
    if !needs_store(model) && !answers() && (model.unseal.is_none() || seen.is_none()) {
        return Ok(StoreFacts::NotLooked);
    }
    if let Some(StoreFacts::Found(store)) = &before
        && Some(&store.revision.resource_version) == seen.as_ref()
    {
        return Ok(before.unwrap_or_default());
    }
    let (facts, known) = find(&context.client, namespace, &name).await?;
    if let Some(known) = known {
        context.index.saw_secret(namespace, &name, &known);
    }
    Ok(facts)
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
            None => source_facts(&context.client, namespace, source).await?,
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
