//! The wire: what users write and read. Types only, no logic.

mod aws;
mod managed_key;
mod oci;
mod reason;
mod seal_config;
mod stanza;
mod status;
mod unseal;

pub use aws::{AssumeRole, AwsCredentials, AwsKms, Empty, SecretCredentialsRef, ServiceAccountRef};
pub use managed_key::{
    AwsDistribution, Deletion, Distribution, DistributionStatus, KeyDeletionPolicy, KeyUsage,
    KeyVersionStatus, ManagedKey, ManagedKeySpec, ManagedKeyStatus, ManagedKeySummary, Material,
    MaterialType, SealConfigRef,
};
pub use oci::{ApiKeyRef, NameRef, OciCredentials, OciKms, WorkloadIdentity};
pub use reason::Reason;
pub use seal_config::{
    Armor, BoundedText, ChangePolicy, DataEntry, DeletionPolicy, Encoding, EntryRef, Generate, Import,
    KeyEntry, KeyVersion, PlainRef, Purpose, RootKey, Rotation, SealConfig, SealConfigSpec, SealSpec,
    SealUse, SecretType, Target, TargetSecret, WrappedCopy, WrappedFormat, crds,
};
pub use stanza::{AeadStanza, EnvSpec, KmsStanza, SealStanza, StanzaSpec, StaticStanza};
pub use status::{
    KeyStatus, PodCounts, SealConfigStatus, SealHealth, SealStatus, Summary, TargetStatus, UnsealPodStatus,
    UnsealStatus, condition_types,
};
pub use unseal::{
    CaRef, CaSource, InitializeSpec, RootTokenPolicy, SharesSpec, UnsealAddress, UnsealAddressType,
    UnsealPolicy, UnsealProduct, UnsealScheme, UnsealSpec, UnsealTls,
};

/// The API group of every kind, and the prefix of every label and annotation.
pub const GROUP: &str = "autounseal.dev";

/// The kind of objects whose keys are delivered.
pub const KIND: &str = "SealConfig";

/// The kind of objects whose keys are brought to a KMS.
pub const MANAGED_KIND: &str = "ManagedKey";
