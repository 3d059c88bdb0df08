//! The keys of a ManagedKey in one region: made, described, imported into, aliased, taken back.
//!
//! Every call names a key by the ARN that was written down, or an alias; nothing is looked for by a tag but what a crash
//! may have left half-made (security rule S15).
//!
//! Source: botocore service model `kms/2014-11-01`.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_kms::types::{ExpirationModelType, KeySpec, KeyState as SdkState, KeyUsageType, OriginType, Tag};
use aws_sdk_kms::{primitives::Blob, types::KeyMetadata};

use super::{
    describe::answered,
    error::{self, Asked, Failure, Operation},
    import::{self, WRAPPING_KEY_BITS, Wrapping},
    kms::Connection,
};
use crate::{
    api::Reason,
    provider::bound::Tie,
    seal::{
        Fault,
        aws::{KeyArn, Region},
        managed::step::KeyState,
    },
};

/// The tag by which a key is found again whose creation was cut short.
const TOKEN_TAG: &str = "autounseal.dev/create-token";

/// Between two GetParametersForImport of one identity in one region: the quota is one in 4 seconds (KMS developer guide,
/// request quotas).
const IMPORTS_APART: Duration = Duration::from_secs(4);

/// Pages of keys that are looked through at most, of 1000 each.
const PAGES: usize = 200;

/// Whose turn it is to import: one at a time, and not faster than the quota.
pub(super) type Turn = tokio::sync::Mutex<Option<Instant>>;

/// What a key of ours must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewKey<'a> {
    /// KeySpec.
    pub spec: &'a str,
    /// KeyUsage.
    pub usage: &'a str,
    /// A multi-Region key.
    pub multi_region: bool,
    /// Random, written down before.
    pub token: &'a str,
    /// What the description says.
    pub description: &'a str,
    /// Tags.
    pub tags: &'a BTreeMap<String, String>,
}

/// A key as AWS describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its ARN.
    pub arn: KeyArn,
    /// Its state.
    pub state: KeyState,
}

/// The way to the keys of one region.
pub struct Custody {
    connection: Connection,
    account: Option<String>,
    region: Region,
    turn: Arc<Turn>,
}

impl Custody {
    pub(super) fn new(
        connection: Connection,
        account: Option<String>,
        region: Region,
        turn: Arc<Turn>,
    ) -> Self {
        Self {
            connection,
            account,
            region,
            turn,
        }
    }

    /// Makes a key without material.
    ///
    /// # Errors
    /// `QuotaExceeded`, `KeyNotAllowed` for a key of another account than before, and what AWS or the credentials say. The
    /// key may have been made all the same.
    pub async fn create(&self, key: &NewKey<'_>) -> Result<Held, Fault> {
        let request = self
            .connection
            .client
            .create_key()
            .origin(OriginType::External)
            .key_spec(KeySpec::from(key.spec))
            .key_usage(KeyUsageType::from(key.usage))
            .multi_region(key.multi_region)
            .description(key.description)
            .set_tags(Some(tags(key.tags, Some(key.token))?));
        let asked = self.asked(Operation::CreateKey, "a new key");
        let answer = self.connection.timed(&asked, Box::pin(request.send())).await?;
        let metadata = answer.key_metadata.ok_or_else(|| garbage(&asked))?;
        let held = held(&metadata).ok_or_else(|| garbage(&asked))?;
        if !is_half_made(&metadata, key) || held.arn.region != self.region {
            return Err(garbage(&asked));
        }
        self.of_our_account(&held.arn)?;
        Ok(held)
    }

    /// The key that was made with this token before its id could be written down: of our account, of the same form, with
    /// external origin and still without material.
    ///
    /// # Errors
    /// `CreateTokenAmbiguous` for two such keys; `AccessDenied` where no key may be described; what AWS says.
    pub async fn find(&self, key: &NewKey<'_>) -> Result<Option<Held>, Fault> {
        let mut found: Option<Held> = None;
        let (mut seen, mut denied) = (false, None);
        let mut marker = None;
        for _ in 0..PAGES {
            let request = self
                .connection
                .client
                .list_keys()
                .limit(1000)
                .set_marker(marker.take());
            let asked = self.asked(Operation::ListKeys, "the account's keys");
            let page = self.connection.timed(&asked, Box::pin(request.send())).await?;
            for entry in page.keys.unwrap_or_default() {
                let Some(arn) = entry.key_arn.as_deref().and_then(answered) else {
                    continue;
                };
                let metadata = match self.metadata(&arn.to_string()).await {
                    Ok(Some(metadata)) => metadata,
                    Ok(None) => continue,
                    // A key whose policy leaves us out is none of ours.
                    Err(fault) if fault.reason == Reason::AccessDenied => {
                        denied = Some(fault);
                        continue;
                    }
                    Err(fault) => return Err(fault),
                };
                seen = true;
                let Some(held) = held(&metadata).filter(|held| held.arn == arn) else {
                    continue;
                };
                let fits = is_half_made(&metadata, key) && self.of_our_account(&held.arn).is_ok();
                if !fits || !self.carries(&held.arn, key.token).await? {
                    continue;
                }
                if let Some(other) = found {
                    return Err(Fault::denied(
                        Reason::CreateTokenAmbiguous,
                        format!(
                            "both {} and {} carry the tag {TOKEN_TAG} of the key that was being made, so neither is used; find \
                             out in CloudTrail which one this operator created and take the tag off the other",
                            other.arn, held.arn
                        ),
                    ));
                }
                found = Some(held);
            }
            match page.next_marker.filter(|_| page.truncated) {
                Some(next) => marker = Some(next),
                None => {
                    return match denied {
                        Some(fault) if !seen => Err(fault),
                        _ => Ok(found),
                    };
                }
            }
        }
        Err(Fault::denied(
            Reason::QuotaExceeded,
            "there are more than 200,000 keys in the region, so the one that was being made cannot be found among them",
        ))
    }

    async fn carries(&self, arn: &KeyArn, token: &str) -> Result<bool, Fault> {
        let name = arn.to_string();
        let request = self
            .connection
            .client
            .list_resource_tags()
            .key_id(&name)
            .limit(50);
        let asked = self.asked(Operation::ListResourceTags, &name);
        let answer = self.connection.timed(&asked, Box::pin(request.send())).await?;
        let tags = answer.tags.unwrap_or_default();
        Ok(tags
            .iter()
            .any(|tag| tag.tag_key == TOKEN_TAG && tag.tag_value == token))
    }

    /// The key of that ARN or alias; `None` = there is none.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn describe(&self, name: &str) -> Result<Option<Held>, Fault> {
        let Some(metadata) = self.metadata(name).await? else {
            return Ok(None);
        };
        let held = held(&metadata).ok_or_else(|| garbage(&self.asked(Operation::DescribeKey, name)))?;
        if let Ok(arn) = name.parse::<KeyArn>()
            && arn != held.arn
        {
            return Err(garbage(&self.asked(Operation::DescribeKey, name)));
        }
        Ok(Some(held))
    }

    async fn metadata(&self, name: &str) -> Result<Option<KeyMetadata>, Fault> {
        let request = self.connection.client.describe_key().key_id(name);
        let asked = self.asked(Operation::DescribeKey, name);
        match self.connection.timed(&asked, Box::pin(request.send())).await {
            Ok(answer) => answer.key_metadata.map(Some).ok_or_else(|| garbage(&asked)),
            Err(fault) if fault.reason == Reason::KeyNotFound => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Imports material that never expires. `wrap` is given the public key, which was checked, and gives back the wrapped
    /// material. The import token is forgotten with the call.
    ///
    /// # Errors
    /// `ImportRejected`, `MaterialMismatch`, `KeyNotAllowed` for parameters of another key; what AWS and `wrap` say.
    pub async fn import<W>(&self, arn: &KeyArn, wrapping: Wrapping, wrap: W) -> Result<(), Fault>
    where
        W: AsyncFnOnce(import::PublicKey) -> Result<Vec<u8>, Fault>,
    {
        let name = arn.to_string();
        let mut last = self.turn.lock().await;
        if let Some(wait) = last.and_then(|at| IMPORTS_APART.checked_sub(at.elapsed())) {
            tokio::time::sleep(wait).await;
        }
        *last = Some(Instant::now());
        let request = self
            .connection
            .client
            .get_parameters_for_import()
            .key_id(&name)
            .wrapping_algorithm(wrapping.algorithm())
            .wrapping_key_spec(wrapping.key_spec());
        let asked = self.asked(Operation::GetParametersForImport, &name);
        let answer = self.connection.timed(&asked, Box::pin(request.send())).await?;
        let told = answer.key_id.as_deref().and_then(answered);
        if told.as_ref() != Some(arn) {
            return Err(Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "AWS gave parameters to import into another key than {name}, so nothing was sent; check what answers"
                ),
            ));
        }
        let public = answer.public_key.ok_or_else(|| garbage(&asked))?.into_inner();
        let public = import::PublicKey::read(&public).ok_or_else(|| {
            Fault::denied(
                Reason::ImportRejected,
                format!(
                    "what was given to wrap the material for {name} is no RSA key of {WRAPPING_KEY_BITS} bits, so nothing was \
                     sent; check what answers in region {}",
                    self.region
                ),
            )
        })?;
        let token = answer.import_token.ok_or_else(|| garbage(&asked))?;
        let material = wrap(public).await?;
        let request = self
            .connection
            .client
            .import_key_material()
            .key_id(&name)
            .import_token(token)
            .encrypted_key_material(Blob::new(material))
            // Its default would have the material expire (`protocols.md`, trap 12). ImportType is left out: AWS takes new
            // bytes for a key that never had any, and for others only the same bytes again, which is what is meant.
            .expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire);
        let asked = self.asked(Operation::ImportKeyMaterial, &name);
        let answer = self.connection.timed(&asked, Box::pin(request.send())).await?;
        let told = answer.key_id.as_deref().and_then(answered);
        // Older servers answer nothing.
        if told.is_some_and(|told| told != *arn) {
            return Err(garbage(&asked));
        }
        Ok(())
    }

    /// Makes a replica in another region.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn replicate(
        &self,
        arn: &KeyArn,
        region: &str,
        description: &str,
        tagged: &BTreeMap<String, String>,
    ) -> Result<(), Fault> {
        let name = arn.to_string();
        let request = self
            .connection
            .client
            .replicate_key()
            .key_id(&name)
            .replica_region(region)
            .description(description)
            .set_tags(Some(tags(tagged, None)?));
        let asked = self.asked(Operation::ReplicateKey, &name);
        match self.connection.timed(&asked, Box::pin(request.send())).await {
            Ok(_) => Ok(()),
            // It is there already: made before a crash, and not yet seen.
            Err(fault) if fault.reason == Reason::AliasNotOwned => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Enables a key.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn enable(&self, arn: &KeyArn) -> Result<(), Fault> {
        let name = arn.to_string();
        let request = self.connection.client.enable_key().key_id(&name);
        let asked = self.asked(Operation::EnableKey, &name);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Disables a key.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn disable(&self, arn: &KeyArn) -> Result<(), Fault> {
        let name = arn.to_string();
        let request = self.connection.client.disable_key().key_id(&name);
        let asked = self.asked(Operation::DisableKey, &name);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Has a key deleted after so many days.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn schedule_deletion(&self, arn: &KeyArn, days: u8) -> Result<(), Fault> {
        let name = arn.to_string();
        let request = self
            .connection
            .client
            .schedule_key_deletion()
            .key_id(&name)
            .pending_window_in_days(i32::from(days));
        let asked = self.asked(Operation::ScheduleKeyDeletion, &name);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Takes a scheduled deletion back; the key is Disabled then.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn cancel_deletion(&self, arn: &KeyArn) -> Result<(), Fault> {
        let name = arn.to_string();
        let request = self.connection.client.cancel_key_deletion().key_id(&name);
        let asked = self.asked(Operation::CancelKeyDeletion, &name);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Sets tags.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn tag(&self, arn: &KeyArn, tagged: &BTreeMap<String, String>) -> Result<(), Fault> {
        if tagged.is_empty() {
            return Ok(());
        }
        let name = arn.to_string();
        let request = self
            .connection
            .client
            .tag_resource()
            .key_id(&name)
            .set_tags(Some(tags(tagged, None)?));
        let asked = self.asked(Operation::TagResource, &name);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Whether an alias points at a key.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn has_alias(&self, arn: &KeyArn, alias: &str) -> Result<bool, Fault> {
        let name = arn.to_string();
        let mut marker = None;
        // A key has 50 aliases at most (KMS developer guide, quotas), and a page holds as many.
        for _ in 0..4 {
            let request = self
                .connection
                .client
                .list_aliases()
                .key_id(&name)
                .set_marker(marker.take());
            let asked = self.asked(Operation::ListAliases, &name);
            let page = self.connection.timed(&asked, Box::pin(request.send())).await?;
            let entries = page.aliases.unwrap_or_default();
            if entries
                .iter()
                .any(|entry| entry.alias_name.as_deref() == Some(alias))
            {
                return Ok(true);
            }
            match page.next_marker.filter(|_| page.truncated) {
                Some(next) => marker = Some(next),
                None => break,
            }
        }
        Ok(false)
    }

    /// Makes an alias.
    ///
    /// # Errors
    /// `AliasNotOwned` if there is one of that name; what AWS or the credentials say.
    pub async fn create_alias(&self, alias: &str, arn: &KeyArn) -> Result<(), Fault> {
        let request = self
            .connection
            .client
            .create_alias()
            .alias_name(alias)
            .target_key_id(&arn.id);
        let asked = self.asked(Operation::CreateAlias, alias);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Points an alias at another key. The caller has seen that it is ours.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn move_alias(&self, alias: &str, arn: &KeyArn) -> Result<(), Fault> {
        let request = self
            .connection
            .client
            .update_alias()
            .alias_name(alias)
            .target_key_id(&arn.id);
        let asked = self.asked(Operation::UpdateAlias, alias);
        self.connection
            .timed(&asked, Box::pin(request.send()))
            .await
            .map(drop)
    }

    /// Deletes an alias. The caller has seen that it is ours.
    ///
    /// # Errors
    /// What AWS or the credentials say.
    pub async fn delete_alias(&self, alias: &str) -> Result<(), Fault> {
        let request = self.connection.client.delete_alias().alias_name(alias);
        let asked = self.asked(Operation::DeleteAlias, alias);
        match self.connection.timed(&asked, Box::pin(request.send())).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.reason == Reason::KeyNotFound => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    fn asked<'a>(&'a self, operation: Operation, of: &'a str) -> Asked<'a> {
        Asked {
            operation,
            of,
            region: self.region.as_str(),
            tie: Tie::None,
        }
    }

    /// The account of the keys that were made before is the one of those that follow (security rule S4).
    fn of_our_account(&self, arn: &KeyArn) -> Result<(), Fault> {
        match &self.account {
            Some(account) if *account != arn.account => Err(Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "the credentials lead to account {} now, and the keys before lie in {account}; give back the ones of that \
                     account, or add a distribution for the other ({} was made there and is not used)",
                    arn.account, arn
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn garbage(asked: &Asked<'_>) -> Fault {
    error::fault(asked, Failure::Garbage)
}

fn held(metadata: &KeyMetadata) -> Option<Held> {
    let state = match metadata.key_state.as_ref()? {
        SdkState::Enabled => KeyState::Enabled,
        SdkState::Disabled => KeyState::Disabled,
        SdkState::PendingDeletion | SdkState::PendingReplicaDeletion => KeyState::PendingDeletion,
        SdkState::PendingImport => KeyState::PendingImport,
        SdkState::Creating | SdkState::Updating => KeyState::Changing,
        _ => KeyState::Unusable,
    };
    Some(Held {
        arn: metadata.arn.as_deref().and_then(answered)?,
        state,
    })
}

/// Whether a key is what CreateKey makes for us, before any import.
fn is_half_made(metadata: &KeyMetadata, key: &NewKey<'_>) -> bool {
    metadata.origin == Some(OriginType::External)
        && metadata.key_state == Some(SdkState::PendingImport)
        && metadata
            .key_spec
            .as_ref()
            .is_some_and(|spec| spec.as_str() == key.spec)
        && metadata
            .key_usage
            .as_ref()
            .is_some_and(|usage| usage.as_str() == key.usage)
        && metadata.multi_region.unwrap_or_default() == key.multi_region
}

fn tags(pairs: &BTreeMap<String, String>, token: Option<&str>) -> Result<Vec<Tag>, Fault> {
    let token = token.map(|token| (TOKEN_TAG, token));
    let pairs = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    pairs
        .chain(token)
        .map(|(key, value)| {
            let tag = Tag::builder().tag_key(key).tag_value(value).build();
            tag.map_err(|_| Fault::invalid_spec("a tag has no key or no value; correct awskms.tags"))
        })
        .collect()
}
