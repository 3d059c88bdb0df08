//! What stands in the way, decided before anything is called: identity, endpoints, sources, ownership.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Ciphertext, Fault,
    aws::AwsSeal,
    digest,
    endpoint::{EndpointPolicy, VaultEndpoint, allow_aws, allow_oci},
    model::{BOUND_NAMESPACE, Cloud, Copy, Key, Model, Origin, Seal, Source, SourceRef, Target},
    observed::{NamespaceFacts, Observed, SecretFacts, SourceFacts},
    store::{
        Standing, StoreFacts, standing,
        standing::{candidates, wrapping},
    },
};
use crate::api::{Reason, WrappedFormat};

/// On ServiceAccounts: whether seals may name them.
const USE: &str = "autounseal.dev/use";

/// What the checks found, and the digests they were found for.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Seals that must not be used now.
    pub seals: BTreeMap<String, Fault>,
    /// Keys that cannot be made now.
    pub keys: BTreeMap<String, Fault>,
    /// Copies that cannot be opened now, by key and seal.
    pub copies: BTreeMap<(String, String), Fault>,
    /// Targets that must not be written now.
    pub targets: BTreeMap<String, Fault>,
    /// Where each key stands with the wrapped store.
    pub standings: BTreeMap<String, Standing>,
    /// Digest of each copy's inputs, by key and seal.
    pub copy_inputs: BTreeMap<(String, String), String>,
    /// Digest of each key's inputs.
    pub key_inputs: BTreeMap<String, String>,
    /// Digest of each target's inputs.
    pub target_inputs: BTreeMap<String, String>,
}

/// Runs every check.
pub fn check(model: &Model, observed: &Observed) -> Findings {
    let mut findings = Findings::default();
    for seal in &model.seals {
        if let Err(fault) = seal_allowed(model, seal, observed) {
            findings.seals.insert(seal.name.clone(), fault);
        }
    }
    for key in &model.keys {
        for copy in &key.copies {
            let id = (key.name.clone(), copy.seal.clone());
            findings
                .copy_inputs
                .insert(id.clone(), digest::copy_inputs(model, copy, observed));
            if let Err(fault) = copy_allowed(model, copy, observed, &findings) {
                findings.copies.insert(id, fault);
            }
        }
        let standing = standing(model, key, observed);
        let inputs = if key.is_brought() {
            digest::key_inputs(model, key, observed)
        } else {
            digest::standing_inputs(key, &standing, observed)
        };
        findings.key_inputs.insert(key.name.clone(), inputs);
        for seal in stored_seals(model, key, &standing, observed) {
            let id = (key.name.clone(), seal.name.clone());
            findings
                .copy_inputs
                .insert(id.clone(), digest::stored_copy_inputs(key, seal, observed));
            if let Some(fault) = findings.seals.get(&seal.name) {
                findings.copies.insert(id, fault.clone());
            }
        }
        if let Some(fault) = cannot_be_made(model, key, &standing, observed) {
            findings.keys.insert(key.name.clone(), fault);
        }
        findings.standings.insert(key.name.clone(), standing);
    }
    for target in &model.targets {
        let inputs = digest::target_inputs(model, target, &findings.key_inputs, observed);
        findings.target_inputs.insert(target.name.clone(), inputs);
        if let Err(fault) = target_allowed(model, target, observed) {
            findings.targets.insert(target.name.clone(), fault);
        }
    }
    findings
}

/// The seals whose stored copies of a key may be opened.
fn stored_seals<'m>(model: &'m Model, key: &Key, standing: &Standing, observed: &Observed) -> Vec<&'m Seal> {
    let (Standing::Kept(kept), StoreFacts::Found(store)) = (standing, &observed.store) else {
        return Vec::new();
    };
    // Copies of a brought key are used only while they match what is brought (`api.md`, meaning 3).
    if kept.due.renew {
        return Vec::new();
    }
    let opens = candidates(model, key, store, kept.current);
    model
        .seals
        .iter()
        .filter(|seal| opens.iter().any(|candidate| candidate.seal == seal.name))
        .collect()
}

fn cannot_be_made(model: &Model, key: &Key, standing: &Standing, observed: &Observed) -> Option<Fault> {
    if *standing != Standing::New || key.is_brought() {
        return None;
    }
    if wrapping(model, key).next().is_none() {
        return Some(Fault::invalid_spec(
            "no seal may wrap it: every one is disabled or has another use; enable one, or add another",
        ));
    }
    match &key.origin {
        Origin::Imported { secret, .. } if !observed.plain.contains_key(secret) => Some(Fault::invalid(
            Reason::SourceMissing,
            format!("Secret {secret} does not exist in this namespace; create it, or correct name"),
        )),
        _ => None,
    }
}

fn seal_allowed(model: &Model, seal: &Seal, observed: &Observed) -> Result<(), Fault> {
    endpoints_allowed(seal, &observed.endpoints)?;
    if let Some(key) = seal.cloud.full_key() {
        key_allowed(&model.id.namespace, &key, &observed.namespace)?;
    }
    identity_allowed(model, seal, &observed.namespace)
}

/// Whether seals of the namespace may use a KMS key, by its ARN or OCID (security rule S20).
///
/// Called with the one that the spec tells before anything is sent, with the one that the KMS describes before it is
/// asked to encrypt or decrypt, and with the one that it answered.
///
/// # Errors
/// `KeyNotAllowed`, with where it is allowed.
pub fn key_allowed(namespace: &str, key: &str, facts: &NamespaceFacts) -> Result<(), Fault> {
    match &facts.allowed_seals {
        Some(allowed) if !allowed.contains(key) => Err(Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "seals of namespace {namespace} may use only the keys that its annotation autounseal.dev/allowed-seals lists, \
                 and {key} is not among them; use one of those, or have the admin of the namespace add it"
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether seals may name a ServiceAccount of these annotations (security rule S20).
///
/// # Errors
/// `TokenRequestDenied`.
pub fn account_allowed(name: &str, annotations: &BTreeMap<String, String>) -> Result<(), Fault> {
    if annotations.get(USE).is_some_and(|value| value == "denied") {
        return Err(Fault::denied(
            Reason::TokenRequestDenied,
            format!(
                "ServiceAccount {name} carries the annotation {USE}=denied, so no seal may use it; name another in \
                 serviceAccountRef, or have its owner remove the annotation"
            ),
        ));
    }
    Ok(())
}

/// Whether taking seals out leaves a ManagedKey that refers to the SealConfig with material that nothing opens (`api.md`,
/// meaning 1). `dependants`: the seals that open each one's material, as far as it was told.
pub fn left_unopenable<'d>(
    model: &Model,
    mut dependants: impl Iterator<Item = (&'d String, &'d BTreeSet<String>)>,
) -> Option<Fault> {
    let opens = |name: &String| model.seal(name).is_some_and(|seal| seal.wraps);
    let (key, seals) = dependants.find(|(_, seals)| !seals.is_empty() && !seals.iter().any(opens))?;
    let seals: Vec<_> = seals.iter().map(String::as_str).collect();
    Some(Fault::denied(
        Reason::LastSealRemoved,
        format!(
            "the material of ManagedKey {key} can only be opened with seal {}, which spec.seals does not hold any more; nothing \
             of it was changed: put the seal back, wait until the ManagedKey's status.material.wrappedUnder names another one, \
             then take it out",
            seals.join(" or ")
        ),
    ))
}

/// Whether the endpoints that a seal names may be spoken to (security rule S1).
///
/// # Errors
/// `EndpointNotAllowed`, `RealmMismatch`.
pub fn endpoints_allowed(seal: &Seal, policy: &EndpointPolicy) -> Result<(), Fault> {
    match &seal.cloud {
        Cloud::Aws(aws) => {
            if let (Some(endpoint), Some(region)) = (&aws.endpoint, &aws.region) {
                allow_aws(endpoint, region, policy)?;
            }
        }
        Cloud::Oci(oci) => {
            allow_oci(&oci.crypto_endpoint, VaultEndpoint::Crypto, &oci.key, policy)?;
            allow_oci(
                &oci.management_endpoint,
                VaultEndpoint::Management,
                &oci.key,
                policy,
            )?;
        }
    }
    Ok(())
}

/// Whether the namespace may use the identity that a seal means (security rule S3).
///
/// # Errors
/// `OperatorIdentityNotAllowed`, with the command that mends it.
pub fn identity_allowed(model: &Model, seal: &Seal, facts: &NamespaceFacts) -> Result<(), Fault> {
    if !seal.cloud.is_operators() {
        return Ok(());
    }
    let namespace = &model.id.namespace;
    if !facts.operator_identity {
        return Err(Fault::denied(
            Reason::OperatorIdentityNotAllowed,
            format!(
                "namespace {namespace} may not use the operator's own identity; give the seal credentials of its own, \
                 or have a cluster admin run: kubectl label namespace {namespace} \
                 autounseal.dev/operator-identity=allowed (or list it in --operator-identity-namespaces)"
            ),
        ));
    }
    match &seal.cloud {
        Cloud::Aws(aws) => role_granted(namespace, aws, facts),
        Cloud::Oci(_) => Ok(()),
    }
}

/// Whether the operator's identity may take the seal's role.
fn role_granted(namespace: &str, aws: &AwsSeal, facts: &NamespaceFacts) -> Result<(), Fault> {
    let Some(role) = &aws.assume_role else {
        return Ok(());
    };
    if role.external_id.is_some() {
        return Err(Fault::invalid(
            Reason::OperatorIdentityNotAllowed,
            "assumeRole.externalID cannot be chosen with the operator's own identity, which sends \
             <binding-domain>/<namespace>; remove it and name that value in the role's trust policy",
        ));
    }
    if facts.grants.contains(&role.role_arn) {
        Ok(())
    } else {
        Err(ungranted(namespace, "role", &role.role_arn))
    }
}

fn ungranted(namespace: &str, what: &str, arn: &str) -> Fault {
    Fault::denied(
        Reason::OperatorIdentityNotAllowed,
        format!(
            "namespace {namespace} has no grant to use {what} {arn} through the operator's own identity; have a cluster \
             admin add it: kubectl annotate namespace {namespace} \
             autounseal.dev/operator-identity-grants={arn} (comma-separated; or in the operator's grants file)"
        ),
    )
}

/// Whether a copy is tied to its namespace by the KMS itself, so that the operator's identity may open it.
fn bound(copy: &Copy, namespace: &str) -> bool {
    copy.format == WrappedFormat::Kms
        && copy
            .context
            .get(BOUND_NAMESPACE)
            .is_some_and(|bound| bound == namespace)
}

/// Whether the operator's identity may open `copy` with the key that `key` names (security rule S3).
///
/// Called with the ARN or OCID that the spec or the KMS's description tells before the copy is sent, and with the one
/// that the KMS answered after it.
///
/// # Errors
/// `OperatorIdentityNotAllowed`, with the command that grants it.
pub fn key_granted(
    model: &Model,
    seal: &Seal,
    copy: &Copy,
    key: &str,
    facts: &NamespaceFacts,
) -> Result<(), Fault> {
    let namespace = &model.id.namespace;
    if !seal.cloud.is_operators() || bound(copy, namespace) || facts.grants.contains(key) {
        Ok(())
    } else {
        Err(ungranted(namespace, "key", key))
    }
}

fn copy_allowed(model: &Model, copy: &Copy, observed: &Observed, findings: &Findings) -> Result<(), Fault> {
    if let Some(fault) = findings.seals.get(&copy.seal) {
        return Err(fault.clone());
    }
    if let Some(seal) = model.seal(&copy.seal)
        && let Some(key) = seal.cloud.full_key()
    {
        key_granted(model, seal, copy, &key, &observed.namespace)?;
    }
    match &copy.source {
        Source::Inline(_) => Ok(()),
        Source::Entry(entry) => source_found(entry, observed.sources.get(entry)).map(drop),
    }
}

/// The bytes that lie where a copy should.
///
/// # Errors
/// `SourceMissing`, `CiphertextInvalid`.
pub fn source_found<'f>(entry: &SourceRef, facts: Option<&'f SourceFacts>) -> Result<&'f Ciphertext, Fault> {
    let (reason, message) = match facts {
        Some(SourceFacts::Found(bytes)) => return Ok(bytes),
        Some(SourceFacts::EntryMissing) => (
            Reason::SourceMissing,
            format!("{entry} has no entry {:?}; add it, or correct key", entry.key),
        ),
        Some(SourceFacts::Unreadable) => (
            Reason::CiphertextInvalid,
            format!(
                "entry {:?} of {entry} is empty, larger than 64 KiB, or not base64 although armor says so; \
                 put the wrapped key there as it was made",
                entry.key
            ),
        ),
        Some(SourceFacts::ObjectMissing) | None => (
            Reason::SourceMissing,
            format!("{entry} does not exist in this namespace; create it, or correct name"),
        ),
    };
    Err(Fault::invalid(reason, message))
}

fn target_allowed(model: &Model, target: &Target, observed: &Observed) -> Result<(), Fault> {
    let Some(secret) = observed.secrets.get(&target.secret) else {
        return Ok(());
    };
    if secret.owner_uid.as_ref() == Some(&model.id.uid) {
        return Ok(());
    }
    let name = &target.secret;
    let refused = |why: String| Err(Fault::denied(Reason::SecretNotOwned, why));
    if secret
        .owner_uid
        .as_ref()
        .is_some_and(|owner| observed.living.contains(owner))
    {
        return refused(format!(
            "Secret {name} is delivered by another SealConfig of this namespace; choose another name for one of them"
        ));
    }
    if observed.read_secrets.contains(name) {
        return refused(format!(
            "Secret {name} holds copies or credentials that a SealConfig reads and is never overwritten; choose another name"
        ));
    }
    if may_adopt(model, target, secret) {
        return Ok(());
    }
    let config = &model.id.name;
    refused(format!(
        "Secret {name} exists and was not made by this SealConfig; delete or rename it, or let it be taken over: set \
         adopt: true in the target and run: kubectl annotate secret {name} autounseal.dev/adopt-by={config}"
    ))
}

/// Whether both sides agreed to an adoption (security rule S7).
pub fn may_adopt(model: &Model, target: &Target, secret: &SecretFacts) -> bool {
    target.adopt && secret.adopt_by.as_ref() == Some(&model.id.name)
}
