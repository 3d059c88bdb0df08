//! ManagedKeys: material that is made and kept here, and brought to AWS KMS.
//!
//! The material is one stored key of a [`Model`] like any other, under the seals of a SealConfig: [`crate::seal::store`] and
//! what works on it serve both kinds. [`record`] is what is written down of AWS, [`step`] decides what is done there next,
//! [`status`] tells.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Fault,
    aws::{AwsSeal, KeyRef, Region},
    model::{
        self, ACCEPT_STORE, Key, Model, ObjectId, Origin, parse_aws_credentials, parse_copy, rotation_after,
    },
};
use crate::api::{
    AwsCredentials, Deletion, Distribution, KeyUsage, MANAGED_KIND, ManagedKey, MaterialType, Purpose,
    SealConfig,
};

pub mod record;
pub mod status;
pub mod step;

/// The name of the material in the wrapped store.
pub const MATERIAL: &str = "material";

/// The annotation with which a human lets keys in AWS be disabled or deleted; its value is the object's UID.
pub const CONFIRM_DELETION: &str = "autounseal.dev/confirm-deletion";

/// A ManagedKey as the rest of the program reads it.
#[derive(Clone, Debug)]
pub struct ManagedModel {
    /// The material, and the seals that wrap it.
    pub model: Model,
    /// What kind of key.
    pub type_: MaterialType,
    /// What it may be used for.
    pub usage: KeyUsage,
    /// Where it is brought to.
    pub distributions: Vec<Wanted>,
    /// Versions below are disabled.
    pub min_enabled: u32,
    /// What becomes of keys in AWS.
    pub deletion: Deletion,
    /// A human said so.
    pub confirmed: bool,
}

/// A place that the key is brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name in the spec.
    pub name: String,
    /// Name of the ManagedKey: part of the standard alias.
    pub key_name: String,
    /// The region.
    pub region: String,
    /// The keys are multi-Region keys.
    pub multi_region: bool,
    /// Regions of replicas.
    pub replica_regions: BTreeSet<String>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// The user's own alias.
    pub alias: Option<String>,
    /// Where the credentials come from.
    pub credentials: Option<AwsCredentials>,
}

/// Whether the annotation confirms the deletion of keys in AWS.
pub fn is_confirmed(key: &ManagedKey) -> bool {
    let metadata = &key.metadata;
    let annotation = metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(CONFIRM_DELETION));
    metadata.uid.is_some() && annotation == metadata.uid.as_ref()
}

/// Holds a ManagedKey against the rules that need no SealConfig.
///
/// # Errors
/// `InvalidSpec`: what the schema could not refuse, or what reached us around it.
pub fn rules(key: &ManagedKey) -> Result<Vec<Wanted>, Fault> {
    material(key)?;
    let name = key.metadata.name.clone().unwrap_or_default();
    if name.contains('.') {
        return Err(Fault::invalid_spec(
            "the name is part of an alias in AWS, so it holds no dot",
        ));
    }
    key.spec
        .distributions
        .iter()
        .map(|distribution| {
            wanted(&name, distribution)
                .map_err(|fault| fault.of(format!("distribution {:?}", distribution.name)))
        })
        .collect()
}

fn wanted(key_name: &str, distribution: &Distribution) -> Result<Wanted, Fault> {
    let aws = &distribution.awskms;
    for region in std::iter::once(&aws.region).chain(&aws.replica_regions) {
        region
            .parse::<Region>()
            .map_err(|()| Fault::invalid_spec("region is not the name of a region, such as eu-west-1"))?;
    }
    if !aws.multi_region && !aws.replica_regions.is_empty() {
        return Err(Fault::invalid_spec("replicaRegions needs multiRegion: true"));
    }
    if aws.replica_regions.contains(&aws.region) {
        return Err(Fault::invalid_spec(
            "replicaRegions are other regions than region",
        ));
    }
    let taken = |prefix: &&str| aws.alias_name.starts_with(*prefix);
    if ["alias/aws/", "alias/hashicorp/"].iter().any(taken) {
        return Err(Fault::invalid_spec(
            "aliases under alias/aws/ are AWS's, and those under alias/hashicorp/ the operator's standard ones",
        ));
    }
    if aws
        .tags
        .keys()
        .any(|name| name.starts_with("aws:") || name.starts_with("autounseal.dev/"))
    {
        return Err(Fault::invalid_spec(
            "tags that begin with aws: or autounseal.dev/ are not yours to set",
        ));
    }
    parse_aws_credentials(aws.credentials.as_ref())?;
    Ok(Wanted {
        name: distribution.name.clone(),
        key_name: key_name.to_owned(),
        region: aws.region.clone(),
        multi_region: aws.multi_region,
        replica_regions: aws.replica_regions.iter().cloned().collect(),
        tags: aws
            .tags
            .iter()
            .map(|(name, value)| (name.clone(), value.0.clone()))
            .collect(),
        alias: Some(aws.alias_name.clone()).filter(|alias| !alias.is_empty()),
        credentials: aws.credentials.clone(),
    })
}

fn material(key: &ManagedKey) -> Result<Key, Fault> {
    let spec = &key.spec;
    let aes = spec.type_ == MaterialType::Aes256;
    let ecdsa = matches!(
        spec.type_,
        MaterialType::EcdsaP256 | MaterialType::EcdsaP384 | MaterialType::EcdsaP521
    );
    if (aes && spec.usage == KeyUsage::SignVerify) || (ecdsa && spec.usage == KeyUsage::EncryptDecrypt) {
        return Err(Fault::invalid_spec(
            "usage does not fit type: aes256-gcm96 takes EncryptDecrypt, ecdsa-… takes SignVerify, rsa-… takes either",
        ));
    }
    if spec.material.generate.is_some() != spec.material.wrapped.is_empty() {
        return Err(Fault::invalid_spec(
            "material takes exactly one of generate, wrapped",
        ));
    }
    if spec.material.generate.is_none() && spec.rotation.is_some() {
        return Err(Fault::invalid_spec(
            "rotation goes with material.generate only: material that is brought rotates when other bytes are brought",
        ));
    }
    let rotation = spec.rotation.clone().unwrap_or_default();
    let after = rotation_after(rotation.after.as_deref(), "8760h");
    Ok(Key {
        name: MATERIAL.to_owned(),
        purpose: Purpose::Other,
        consumer_key_id: None,
        check_value: None,
        material: Some(spec.type_),
        brings: Vec::new(),
        origin: Origin::Generated {
            bytes: 32,
            keep_previous: false,
            after: after?,
            trigger: rotation.trigger,
        },
        copies: Vec::new(),
    })
}

/// Parses a ManagedKey, with the SealConfig that it names.
///
/// # Errors
/// As [`rules`], and what is wrong with the SealConfig.
pub fn parse(key: &ManagedKey, config: &SealConfig) -> Result<ManagedModel, Fault> {
    let seals = model::parse(config)
        .map_err(|fault| fault.of(format!("SealConfig {}", key.spec.seal_config_ref.name)))?;
    let (spec, metadata) = (&key.spec, &key.metadata);
    let distributions = rules(key)?;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let copies = spec.material.wrapped.iter();
    let brings =
        copies.map(|copy| parse_copy(copy, &seals.seals, namespace).map_err(|fault| fault.of("material")));
    let brings = brings.collect::<Result<Vec<_>, _>>()?;
    Ok(ManagedModel {
        confirmed: is_confirmed(key),
        model: Model {
            id: ObjectId {
                kind: MANAGED_KIND,
                namespace: metadata.namespace.clone().unwrap_or_default(),
                name: metadata.name.clone().unwrap_or_default(),
                uid: metadata.uid.clone().unwrap_or_default(),
            },
            generation: metadata.generation.unwrap_or_default(),
            suspend: spec.suspend || seals.suspend,
            seals: seals.seals,
            keys: vec![Key {
                brings,
                ..material(key)?
            }],
            targets: Vec::new(),
            unseal: None,
            delete_store: false,
            rotate_shares: None,
            accept_store: metadata
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get(ACCEPT_STORE)?.parse().ok()),
        },
        type_: spec.type_,
        usage: spec.usage,
        distributions,
        min_enabled: spec.min_enabled_version,
        deletion: spec.deletion,
    })
}

/// The way to a region, for the same rules as those of a seal (security rules S1, S3, S9).
///
/// # Errors
/// `InvalidSpec`, for a record that nobody here wrote.
pub fn way(
    region: &str,
    credentials: Option<&AwsCredentials>,
    account: Option<String>,
) -> Result<AwsSeal, Fault> {
    let region: Region = region
        .parse()
        .map_err(|()| Fault::invalid_spec("region is not the name of a region, such as eu-west-1"))?;
    Ok(AwsSeal {
        // Each call names its key itself.
        key: KeyRef::Alias("alias/hashicorp/-".to_owned()),
        former: Vec::new(),
        account,
        region: Some(region),
        endpoint: None,
        assume_role: None,
        credentials: parse_aws_credentials(credentials)?,
    })
}

/// KeySpec of AWS KMS.
///
/// Source: botocore service model `kms/2014-11-01`, `KeySpec`.
pub const fn key_spec(type_: MaterialType) -> &'static str {
    match type_ {
        MaterialType::Aes256 => "SYMMETRIC_DEFAULT",
        MaterialType::Rsa2048 => "RSA_2048",
        MaterialType::Rsa3072 => "RSA_3072",
        MaterialType::Rsa4096 => "RSA_4096",
        MaterialType::EcdsaP256 => "ECC_NIST_P256",
        MaterialType::EcdsaP384 => "ECC_NIST_P384",
        MaterialType::EcdsaP521 => "ECC_NIST_P521",
    }
}

/// KeyUsage of AWS KMS.
///
/// Source: botocore service model `kms/2014-11-01`, `KeyUsageType`.
pub const fn key_usage(usage: KeyUsage) -> &'static str {
    match usage {
        KeyUsage::EncryptDecrypt => "ENCRYPT_DECRYPT",
        KeyUsage::SignVerify => "SIGN_VERIFY",
    }
}

/// The alias that applications use, as the Key Management secrets engine makes it. `first`: seconds of Unix time.
pub fn standard_alias(key_name: &str, first: i64) -> String {
    format!("alias/hashicorp/{key_name}-{first}")
}
