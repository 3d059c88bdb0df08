//! The wire: what users write and read. Types only, no logic.

mod aws;
mod oci;
mod reason;
mod seal_config;
mod stanza;
mod status;
mod unseal;

pub use aws::{AssumeRole, AwsCredentials, AwsKms, Empty, SecretCredentialsRef, ServiceAccountRef};
pub use oci::{ApiKeyRef, NameRef, OciCredentials, OciKms, WorkloadIdentity};
pub use reason::Reason;
pub use seal_config::{
    Armor, BoundedText, ChangePolicy, DataEntry, DeletionPolicy, Encoding, EntryRef, Generate, Import,
    KeyEntry, KeyVersion, PlainRef, Purpose, RootKey, Rotation, SealConfig, SealConfigSpec, SealSpec,
    SealUse, SecretType, Target, TargetSecret, WrappedCopy, WrappedFormat, crd,
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

/// The kind whose keys are bound, authenticated and checked.
pub const KIND: &str = "SealConfig";
