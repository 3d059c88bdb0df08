//! What is written down of a ManagedKey in its wrapped store: what its material is, and which keys and aliases in AWS are
//! its own. It lies in the section of the material, and is authenticated with it: nobody else can name a key or an alias
//! there to have it moved, disabled or deleted (security rule S15).

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{AwsCredentials, KeyDeletionPolicy, MaterialType},
    seal::aws::KeyArn,
};

/// What the material is, and where it was brought to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Managed {
    /// What kind of key every version is.
    #[serde(rename = "type")]
    pub type_: MaterialType,
    /// By the name of the distribution.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub distributions: BTreeMap<String, Record>,
}

impl Managed {
    /// Material that was brought nowhere yet.
    pub fn of(type_: MaterialType) -> Self {
        Self {
            type_,
            distributions: BTreeMap::new(),
        }
    }
}

/// What is ours in one distribution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// The region.
    pub region: String,
    /// The keys are multi-Region keys.
    #[serde(default)]
    pub multi_region: bool,
    /// Regions in which replicas were or will be made. Grows only.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub replica_regions: BTreeSet<String>,
    /// Who brings and takes back: kept for when the distribution is gone from the spec. References, no secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<AwsCredentials>,
    /// When the key was first brought here, in seconds of Unix time: part of the standard alias.
    pub first: i64,
    /// Tags that every key has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Aliases that were or will be made.
    pub aliases: BTreeSet<String>,
    /// By version of the material.
    pub keys: BTreeMap<u32, KeyRecord>,
    /// The policy by which its keys were taken back, once they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<KeyDeletionPolicy>,
}

/// The key in AWS that one version was brought to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRecord {
    /// Random, and the tag by which a key is found again whose creation was cut short.
    pub token: String,
    /// When the token was written down.
    pub asked: Timestamp,
    /// Its ARN, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arn: Option<String>,
}

impl KeyRecord {
    /// Its ARN in a region: a replica differs by the region alone.
    ///
    /// Source: KMS developer guide, multi-Region keys.
    pub fn arn_in(&self, region: &str) -> Option<KeyArn> {
        let arn: KeyArn = self.arn.as_deref()?.parse().ok()?;
        let region = region.parse().ok()?;
        Some(KeyArn { region, ..arn })
    }
}

impl Record {
    /// Its region and those of the replicas.
    pub fn regions(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.region).chain(&self.replica_regions)
    }

    /// The version whose key, or a replica of it, this is; `None` = it is not ours.
    pub fn version_of(&self, arn: &KeyArn) -> Option<u32> {
        let ours = |key: &KeyRecord| {
            let own: Option<KeyArn> = key.arn.as_deref().and_then(|arn| arn.parse().ok());
            own.is_some_and(|own| own.same_key(arn))
        };
        self.keys
            .iter()
            .find(|(_, key)| ours(key))
            .map(|(version, _)| *version)
    }

    /// The account of its keys, once one was made.
    pub fn account(&self) -> Option<String> {
        let arn: KeyArn = self
            .keys
            .values()
            .find_map(|key| key.arn.as_deref()?.parse().ok())?;
        Some(arn.account)
    }
}
