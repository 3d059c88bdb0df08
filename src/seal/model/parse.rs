//! `SealConfig` → [`Model`], with a sentence for each that cannot become one.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use super::{
    ACCEPT_STORE, BOUND_NAMESPACE, Cloud, Copy, Key, LEAST_ROTATION, Model, ObjectId, Origin, ROTATE_SHARES,
    Seal, Source, SourceKind, SourceRef, Target, class,
    clouds::{parse_aws, parse_oci},
    unarmor,
};
use crate::{
    api::{self, Armor, ChangePolicy, DeletionPolicy, Reason, SealConfig, SealUse, WrappedFormat},
    seal::{Fault, entry::entries, store::Class, unseal::Unseal},
};

/// The longest value of [`ROTATE_SHARES`] that is told apart, in characters.
const LONGEST_VALUE: usize = 128;

/// Parses a SealConfig.
///
/// # Errors
/// `InvalidSpec`, `TemplateInvalid`, `RegionMismatch`: what the schema could not refuse, or what reached
/// us around it. The first fault found.
pub fn parse(config: &SealConfig) -> Result<Model, Fault> {
    let metadata = &config.metadata;
    let id = ObjectId {
        kind: api::KIND,
        namespace: metadata
            .namespace
            .clone()
            .ok_or_else(|| Fault::invalid_spec("the object has no namespace"))?,
        name: metadata
            .name
            .clone()
            .ok_or_else(|| Fault::invalid_spec("the object has no name"))?,
        uid: metadata.uid.clone().unwrap_or_default(),
    };
    let spec = &config.spec;
    let mut seals = spec.seals.iter().map(parse_seal).collect::<Result<Vec<_>, _>>()?;
    seals.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
    unique("spec.seals", seals.iter().map(|seal| seal.name.as_str()))?;
    if seals.is_empty() {
        return Err(Fault::invalid_spec(
            "spec.seals is empty: name at least one KMS key",
        ));
    }
    let keys = spec
        .keys
        .iter()
        .map(|key| parse_key(key, &seals, &id.namespace))
        .collect::<Result<Vec<_>, _>>()?;
    unique("spec.keys", keys.iter().map(|key| key.name.as_str()))?;
    let targets = spec
        .targets
        .iter()
        .map(|target| parse_target(target, &seals, &keys))
        .collect::<Result<Vec<_>, _>>()?;
    unique("spec.targets", targets.iter().map(|target| target.name.as_str()))?;
    unique(
        "secret names of spec.targets",
        targets.iter().map(|target| target.secret.as_str()),
    )?;
    let model = Model {
        id,
        generation: metadata.generation.unwrap_or_default(),
        suspend: spec.suspend,
        seals,
        keys,
        targets,
        unseal: spec
            .unseal
            .as_ref()
            .map(|unseal| Unseal::parse(unseal).map_err(|fault| fault.of("unseal")))
            .transpose()?,
        delete_store: spec.wrapped_deletion_policy == DeletionPolicy::Delete,
        accept_store: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(ACCEPT_STORE)?.parse().ok()),
        rotate_shares: metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(ROTATE_SHARES))
            .filter(|value| !value.is_empty())
            .map(|value| value.chars().take(LONGEST_VALUE).collect()),
    };
    let initializes = model
        .unseal
        .as_ref()
        .is_some_and(|unseal| unseal.initialize.is_some());
    if initializes && !model.seals.iter().any(|seal| seal.wraps && !seal.disabled) {
        return Err(Fault::invalid_spec(
            "unseal.initialize needs an enabled seal with use: Wrap, under which the shares are kept",
        ));
    }
    if let Some(target) = model
        .targets
        .iter()
        .find(|target| model.reads_secret(&target.secret))
    {
        return Err(Fault::invalid_spec(format!(
            "target {:?} would overwrite Secret {}, which this SealConfig reads; give the target another name",
            target.name, target.secret
        )));
    }
    Ok(model)
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> Result<(), Fault> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Fault::invalid_spec(format!(
                "{what}: {name:?} appears twice; names must differ"
            )));
        }
    }
    Ok(())
}

fn parse_seal(spec: &api::SealSpec) -> Result<Seal, Fault> {
    let part = format!("seal {:?}", spec.name);
    let cloud = match (&spec.awskms, &spec.ocikms) {
        (Some(aws), None) => parse_aws(aws).map(Cloud::Aws),
        (None, Some(oci)) => parse_oci(oci).map(Cloud::Oci),
        _ => Err(Fault::invalid_spec("a seal takes exactly one of: awskms, ocikms")),
    };
    let cloud = cloud.map_err(|fault| fault.of(&part))?;
    Ok(Seal {
        name: spec.name.clone(),
        priority: spec.priority,
        wraps: spec.use_.contains(&SealUse::Wrap),
        native: spec.use_.contains(&SealUse::Native),
        disabled: spec.disabled,
        cloud,
    })
}

fn parse_key(spec: &api::RootKey, seals: &[Seal], namespace: &str) -> Result<Key, Fault> {
    let part = format!("key {:?}", spec.name);
    let mut copies = spec
        .wrapped
        .iter()
        .map(|copy| parse_copy(copy, seals, namespace).map_err(|fault| fault.of(&part)))
        .collect::<Result<Vec<_>, _>>()?;
    unique(
        &format!("{part}: seals of wrapped copies"),
        copies.iter().map(|copy| copy.seal.as_str()),
    )?;
    let origin = parse_origin(spec).map_err(|fault| fault.of(&part))?;
    if class(spec.purpose) != Class::Key && matches!(origin, Origin::Generated { .. }) {
        return Err(Fault::invalid_spec(
            "a share or root token is made by its server: bring it in wrapped, or take it in with import",
        )
        .of(&part));
    }
    if spec.check_value.is_some() && origin != Origin::Brought {
        return Err(
            Fault::invalid_spec("checkValue pins a key that is brought in wrapped; take it out").of(&part),
        );
    }
    if !seals.iter().any(|seal| seal.wraps) {
        return Err(Fault::invalid_spec("keys need a seal with use: Wrap").of(&part));
    }
    copies.sort_by_key(|copy| seals.iter().position(|seal| seal.name == copy.seal));
    Ok(Key {
        name: spec.name.clone(),
        purpose: spec.purpose,
        consumer_key_id: spec.consumer_key_id.clone(),
        check_value: spec.check_value.clone(),
        material: None,
        brings: Vec::new(),
        origin,
        copies,
    })
}

fn parse_origin(spec: &api::RootKey) -> Result<Origin, Fault> {
    match (spec.wrapped.is_empty(), &spec.generate, &spec.import) {
        (false, None, None) => Ok(Origin::Brought),
        (true, Some(generate), None) => {
            let rotation = generate.rotation.clone().unwrap_or_default();
            let after = rotation_after(rotation.after.as_deref(), "2160h");
            if !(16..=64).contains(&generate.bytes) || generate.keep_previous > 1 {
                return Err(Fault::invalid_spec(
                    "generate takes 16 to 64 bytes, and 0 or 1 in keepPrevious",
                ));
            }
            Ok(Origin::Generated {
                bytes: usize::from(generate.bytes),
                keep_previous: generate.keep_previous == 1,
                after: after?,
                trigger: rotation.trigger,
            })
        }
        (true, None, Some(import)) => Ok(Origin::Imported {
            secret: import.secret_key_ref.name.clone(),
            entry: import.secret_key_ref.key.clone(),
        }),
        _ => Err(Fault::invalid_spec(
            "a key takes exactly one of wrapped, generate, import, and wrapped holds at least one copy",
        )),
    }
}

/// How long until a key is rotated by itself; `example` is shown to who wrote something else.
pub(in crate::seal) fn rotation_after(
    text: Option<&str>,
    example: &str,
) -> Result<Option<SignedDuration>, Fault> {
    let parse = |text: &str| {
        let after = text.parse().ok();
        after.filter(|after| *after >= LEAST_ROTATION).ok_or_else(|| {
            Fault::invalid_spec(format!(
                "rotation.after is a duration of at least 24h, such as {example}"
            ))
        })
    };
    text.map(parse).transpose()
}

pub(in crate::seal) fn parse_copy(
    spec: &api::WrappedCopy,
    seals: &[Seal],
    namespace: &str,
) -> Result<Copy, Fault> {
    if !seals.iter().any(|seal| seal.name == spec.seal && seal.wraps) {
        return Err(Fault::invalid_spec(format!(
            "a wrapped copy names seal {:?}, which spec.seals does not hold with use: Wrap",
            spec.seal
        )));
    }
    if spec.format == WrappedFormat::BlobInfo && !spec.context.is_empty() {
        return Err(Fault::invalid_spec(
            "context goes only with format: kms; go-kms-wrapping's blobs never carry one",
        ));
    }
    for (name, value) in &spec.context {
        if name.starts_with("autounseal.dev/") && (name != BOUND_NAMESPACE || value.0 != namespace) {
            return Err(Fault::invalid_spec(format!(
                "context keys under autounseal.dev/ are the operator's own; only {BOUND_NAMESPACE}: {namespace} is yours to set"
            )));
        }
    }
    let entry = |kind, entry: &api::EntryRef| {
        Source::Entry(SourceRef {
            kind,
            name: entry.name.clone(),
            key: entry.key.clone(),
            armor: entry.armor,
        })
    };
    let source = match (&spec.inline, &spec.secret_key_ref, &spec.config_map_key_ref) {
        (Some(text), None, None) => {
            Source::Inline(unarmor(text.as_bytes(), Armor::Base64).ok_or_else(|| {
                Fault::invalid(
                    Reason::CiphertextInvalid,
                    format!(
                        "the inline copy for seal {:?} is not standard base64, or is empty or too long",
                        spec.seal
                    ),
                )
            })?)
        }
        (None, Some(secret), None) => entry(SourceKind::Secret, secret),
        (None, None, Some(map)) => entry(SourceKind::ConfigMap, map),
        _ => {
            return Err(Fault::invalid_spec(
                "a wrapped copy takes exactly one of inline, secretKeyRef, configMapKeyRef",
            ));
        }
    };
    let context = spec
        .context
        .iter()
        .map(|(name, value)| (name.clone(), value.0.clone()))
        .collect();
    Ok(Copy {
        seal: spec.seal.clone(),
        format: spec.format,
        context,
        source,
    })
}

fn parse_target(spec: &api::Target, seals: &[Seal], keys: &[Key]) -> Result<Target, Fault> {
    let part = format!("target {:?}", spec.name);
    let secret = &spec.secret;
    if secret.name.ends_with(".wrapped") {
        return Err(
            Fault::invalid_spec("names that end in .wrapped are the operator's wrapped stores").of(&part),
        );
    }
    if secret.adopt && secret.deletion_policy == DeletionPolicy::Delete {
        return Err(
            Fault::invalid_spec("an adopted Secret is never deleted: remove deletionPolicy: Delete")
                .of(&part),
        );
    }
    let labels = metadata(&secret.labels, "label").map_err(|fault| fault.of(&part))?;
    let annotations = metadata(&secret.annotations, "annotation").map_err(|fault| fault.of(&part))?;
    let selector = spec
        .pod_selector
        .as_ref()
        .map(parse_selector)
        .transpose()
        .map_err(|fault| fault.of(&part))?;
    let restart = spec.on_change == ChangePolicy::Restart;
    if restart && selector.is_none() {
        return Err(Fault::invalid_spec("onChange: Restart needs a podSelector").of(&part));
    }
    let entries = entries(&secret.data, secret.env.as_ref(), seals, keys)
        .map_err(|mut faults| faults.swap_remove(0).of(&part))?;
    Ok(Target {
        name: spec.name.clone(),
        selector,
        secret: secret.name.clone(),
        type_: secret.type_,
        labels,
        annotations,
        adopt: secret.adopt,
        delete_with_owner: secret.deletion_policy == DeletionPolicy::Delete,
        native: told_seals(secret),
        entries,
        restart,
    })
}

/// The seals that stanzas and variables name.
fn told_seals(secret: &api::TargetSecret) -> BTreeSet<String> {
    let stanzas = secret.data.iter().filter_map(|entry| entry.stanza.as_ref());
    let servers = stanzas
        .clone()
        .flat_map(|stanza| [&stanza.vault, &stanza.openbao])
        .chain(secret.env.iter().flat_map(|env| [&env.vault, &env.openbao]));
    let named = servers.flatten().flat_map(|spec| spec.seals.iter());
    let boundary = stanzas.filter_map(|stanza| stanza.boundary.as_ref());
    named.chain(boundary.map(|spec| &spec.seal)).cloned().collect()
}

pub(in crate::seal) fn parse_selector(selector: &LabelSelector) -> Result<Selector, Fault> {
    let empty = selector.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if empty {
        return Err(Fault::invalid_spec(
            "podSelector must not be empty, or it would select every pod of the namespace",
        ));
    }
    Selector::try_from(selector.clone()).map_err(|_| {
        Fault::invalid_spec("podSelector holds an operator or a list of values that Kubernetes does not know")
    })
}

/// Metadata that steers other controllers is refused (security rule S7).
fn metadata(
    pairs: &BTreeMap<String, api::BoundedText>,
    what: &str,
) -> Result<BTreeMap<String, String>, Fault> {
    const FOREIGN: &[&str] = &[
        "kubernetes.io",
        "autounseal.dev",
        "argocd.argoproj.io",
        "eks.amazonaws.com",
    ];
    for name in pairs.keys() {
        let domain = name.split_once('/').map_or("", |(domain, _)| domain);
        let under =
            |root: &str| domain == root || domain.strip_suffix(root).is_some_and(|rest| rest.ends_with('.'));
        if FOREIGN.iter().any(|root| under(root)) {
            return Err(Fault::invalid_spec(format!(
                "{what} {name:?} steers Kubernetes or another controller; the operator does not write it into Secrets"
            )));
        }
    }
    Ok(pairs
        .iter()
        .map(|(name, value)| (name.clone(), value.0.clone()))
        .collect())
}
