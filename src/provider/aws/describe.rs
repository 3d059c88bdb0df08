//! DescribeKey: what a seal's name means and what state its key is in, asked once for everybody.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    error::{self, Failure, Operation},
    kms::{Connection, Kms},
};
use crate::{
    api::Reason,
    provider::{bound::Tie, recent::Recent, wire},
    seal::{
        Fault,
        aws::{KeyArn, KeyRef},
    },
};
use aws_sdk_kms::types::{KeyState as SdkState, KeyUsageType};
use jiff::Timestamp;

/// What state a key is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It can be used.
    Enabled,
    /// Somebody disabled it.
    Disabled,
    /// It will be deleted, or its primary key will.
    PendingDeletion,
    /// It has no key material.
    PendingImport,
    /// Its custom key store is disconnected.
    Unavailable,
    /// Being made or changed, or a state that this program does not know.
    Other,
}

/// What DescribeKey says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The key as the seal names it.
    pub named: String,
    /// The key, whatever name the seal uses.
    pub arn: KeyArn,
    /// Its state.
    pub state: KeyState,
    /// The id of the key material that encrypts now, 64 hexadecimal digits. `None` = the KMS did not say.
    pub version: Option<String>,
    /// Whether it can encrypt and decrypt: enabled, symmetric, and meant for it.
    pub usable: bool,
    /// When this was said.
    pub at: Timestamp,
}

impl Description {
    /// Why the key cannot be used, if it cannot.
    pub fn fault(&self) -> Option<Fault> {
        if self.usable {
            return None;
        }
        let name = &self.named;
        let (reason, message) = match self.state {
            KeyState::Disabled => (
                Reason::KeyDisabled,
                format!("the key {name} is disabled; enable it (aws kms enable-key --key-id {name})"),
            ),
            KeyState::PendingDeletion => (
                Reason::KeyPendingDeletion,
                format!(
                    "the key {name} is about to be deleted; cancel that now (aws kms cancel-key-deletion, then \
                     enable-key, --key-id {name}), or everything wrapped under it alone is lost"
                ),
            ),
            KeyState::PendingImport => (
                Reason::KeyUnusable,
                format!("the key {name} has no key material; import it again"),
            ),
            KeyState::Unavailable => (
                Reason::KeyUnusable,
                format!("the custom key store of {name} is not connected; connect it"),
            ),
            KeyState::Enabled => (
                Reason::KeyUnusable,
                format!("{name} is not a symmetric key for encryption and decryption; make one and name it"),
            ),
            KeyState::Other => (
                Reason::KeyUnusable,
                format!(
                    "the key {name} is in no state in which it can be used; look at it (aws kms describe-key --key-id {name})"
                ),
            ),
        };
        Some(Fault::denied(reason, message))
    }
}

/// The last description of a key.
pub(super) type Slot = Recent<Description>;

impl Kms {
    /// What DescribeKey says, asked at most once an hour per identity, region, endpoint and key.
    ///
    /// # Errors
    /// What kept the KMS from answering; a refusal (`AccessDenied`) is remembered for as long as an answer.
    pub async fn describe(&self) -> Result<Arc<Description>, Fault> {
        self.describe_since(None).await
    }

    /// Like [`Kms::describe`], but an answer from before `since` does not count.
    async fn describe_since(&self, since: Option<SystemTime>) -> Result<Arc<Description>, Fault> {
        let Connection {
            clock, description, ..
        } = &self.connection;
        let outcome = description.get(clock, since, self.ask_description()).await;
        self.checked(outcome)
    }

    /// Seals that share a connection may differ in the account that they pin, so this is not remembered.
    fn checked(&self, outcome: Result<Arc<Description>, Fault>) -> Result<Arc<Description>, Fault> {
        let description = outcome?;
        if self.is_named(&description.arn) {
            Ok(description)
        } else {
            Err(Fault::denied(
                Reason::KeyNotAllowed,
                format!(
                    "the KMS says that {} is a key of another account, region or id than the seal names; check \
                     accountID and kmsKeyID, and what answers at the endpoint",
                    self.name
                ),
            ))
        }
    }

    async fn ask_description(&self) -> Result<Description, Fault> {
        let now = (self.connection.clock)();
        let request = self.connection.client.describe_key().key_id(&self.name);
        let asked = self.asked(Operation::DescribeKey, Tie::None);
        let answer = self.timed(&asked, Box::pin(request.send())).await?;
        let garbage = || error::fault(&asked, Failure::Garbage);
        let metadata = answer.key_metadata.ok_or_else(garbage)?;
        let arn = metadata.arn.as_deref().and_then(answered).ok_or_else(garbage)?;
        let state = match metadata.key_state.as_ref().ok_or_else(garbage)? {
            SdkState::Enabled => KeyState::Enabled,
            SdkState::Disabled => KeyState::Disabled,
            SdkState::PendingDeletion | SdkState::PendingReplicaDeletion => KeyState::PendingDeletion,
            SdkState::PendingImport => KeyState::PendingImport,
            SdkState::Unavailable => KeyState::Unavailable,
            _ => KeyState::Other,
        };
        // Some servers leave the two out; a key that says nothing else is one for us.
        let symmetric = metadata
            .key_spec
            .as_ref()
            .is_none_or(|spec| spec.as_str() == "SYMMETRIC_DEFAULT");
        let meant = metadata
            .key_usage
            .as_ref()
            .is_none_or(|usage| *usage == KeyUsageType::EncryptDecrypt);
        Ok(Description {
            named: self.name.clone(),
            arn,
            state,
            version: metadata.current_key_material_id.filter(|id| is_material(id)),
            usable: state == KeyState::Enabled && symmetric && meant,
            at: wire::timestamp(now),
        })
    }

    /// Whether a key may be what the seal's name means, as far as account, region and id tell.
    pub(super) fn is_named(&self, arn: &KeyArn) -> bool {
        let pinned = self
            .seal
            .account
            .as_ref()
            .is_none_or(|account| *account == arn.account);
        pinned
            && match &self.seal.key {
                KeyRef::Arn(_) | KeyRef::Id(_) => self.seal.key.names(arn, &self.region),
                KeyRef::Alias(_) => arn.region == self.region,
                KeyRef::AliasArn {
                    partition,
                    region,
                    account,
                    ..
                } => arn.partition == *partition && arn.region == *region && arn.account == *account,
            }
    }

    /// The KMS says that the key's state is wrong, but not which it is. DescribeKey knows.
    pub(super) async fn tell_state(&self, fault: Fault) -> Fault {
        let since = (self.connection.clock)().checked_sub(Duration::from_mins(1));
        match self.describe_since(since).await {
            Ok(description) => description.fault().unwrap_or(fault),
            Err(_) => fault,
        }
    }
}

/// The form of a key material's id, which ends up in the store.
///
/// Source: botocore service model `kms/2014-11-01`, `BackingKeyIdType`.
fn is_material(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A key's ARN in an answer. Stricter than the parser of what users write, for it ends up in status.
pub(super) fn answered(text: &str) -> Option<KeyArn> {
    let arn: KeyArn = text.parse().ok()?;
    let plain = arn.id.len() <= 64
        && arn.partition.len() <= 16
        && arn.partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
    plain.then_some(arn)
}
