//! The closed set of reasons: the same word in conditions, events, metric labels and documentation.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident $text:literal,)+) => {
        /// Why something is as it is. One fault, one reason, one entry in `docs/reasons.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The word that users see.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Nothing has been tried yet.
    Pending "Pending",
    /// Everything asked for is done.
    Ready "Ready",
    /// `spec.suspend` is true.
    Suspended "Suspended",
    /// The manifest contradicts itself in a way that the schema cannot refuse.
    InvalidSpec "InvalidSpec",
    /// The namespace, key or role has no grant for the operator's own identity.
    OperatorIdentityNotAllowed "OperatorIdentityNotAllowed",
    /// The seal's endpoint is not one that the operator may speak to.
    EndpointNotAllowed "EndpointNotAllowed",
    /// The KMS opened the copy with a key that the seal does not name.
    KeyNotAllowed "KeyNotAllowed",
    /// The key that a copy holds is not the one that `checkValue` pins.
    CheckValueDiffers "CheckValueDiffers",
    /// No usable credentials were found where the seal says they are.
    CredentialsMissing "CredentialsMissing",
    /// The cloud says that the credentials have expired.
    CredentialsExpired "CredentialsExpired",
    /// The cloud does not know the credentials or their signature is wrong.
    CredentialsRejected "CredentialsRejected",
    /// The ServiceAccount that a seal names does not exist.
    ServiceAccountMissing "ServiceAccountMissing",
    /// The ServiceAccount carries no role annotation and the seal names no role.
    RoleAnnotationMissing "RoleAnnotationMissing",
    /// The apiserver refused to issue a token for the ServiceAccount.
    TokenRequestDenied "TokenRequestDenied",
    /// The token audience asked for is not one that the operator may ask for.
    AudienceRejected "AudienceRejected",
    /// STS refused the ServiceAccount's token.
    WebIdentityRejected "WebIdentityRejected",
    /// EKS Pod Identity is asked for, and the operator's pod has none.
    PodIdentityAgentMissing "PodIdentityAgentMissing",
    /// OCI's identity service, or OKE's, refused to issue a token.
    FederationRejected "FederationRejected",
    /// STS refused `assumeRole`.
    AssumeRoleDenied "AssumeRoleDenied",
    /// STS gave an identity other than the one that was asked for.
    IdentityMismatch "IdentityMismatch",
    /// The instance metadata service answers, but its tokens do not reach the operator's pod.
    ImdsHopLimitTooLow "IMDSHopLimitTooLow",
    /// The instance metadata service does not answer.
    ImdsUnreachable "IMDSUnreachable",
    /// The instance metadata service is switched off.
    ImdsDisabled "IMDSDisabled",
    /// The clock of this machine and the cloud's disagree.
    ClockSkew "ClockSkew",
    /// The identity may not do this with the key.
    AccessDenied "AccessDenied",
    /// The KMS knows no such key.
    KeyNotFound "KeyNotFound",
    /// The key is disabled.
    KeyDisabled "KeyDisabled",
    /// The key is about to be deleted.
    KeyPendingDeletion "KeyPendingDeletion",
    /// The key is in a state, or of a type, that cannot decrypt.
    KeyUnusable "KeyUnusable",
    /// The key's ARN names another region than the seal.
    RegionMismatch "RegionMismatch",
    /// The endpoint, or the identity, belongs to another realm of OCI than the key.
    RealmMismatch "RealmMismatch",
    /// The KMS endpoint's name does not resolve, or resolves to a forbidden address.
    EndpointUnresolvable "EndpointUnresolvable",
    /// The TLS handshake with the KMS endpoint failed.
    EndpointTlsFailed "EndpointTLSFailed",
    /// The wrapped key is damaged, of another format, or not from this KMS.
    CiphertextInvalid "CiphertextInvalid",
    /// The wrapped key was made with another encryption context.
    ContextMismatch "ContextMismatch",
    /// Two copies of one key hold different bytes.
    CopiesDiffer "CopiesDiffer",
    /// The KMS asks to slow down.
    Throttled "Throttled",
    /// The KMS does not answer, or answers with a fault of its own.
    KmsUnavailable "KMSUnavailable",
    /// A Secret or ConfigMap, or an entry of it, that the spec names does not exist.
    SourceMissing "SourceMissing",
    /// Taking seals out would leave a key that nothing opens.
    LastSealRemoved "LastSealRemoved",
    /// The wrapped store's name is taken by a Secret of another type.
    StoreNotOwned "StoreNotOwned",
    /// A key existed, and the wrapped store does not hold it any more.
    StoreMissing "StoreMissing",
    /// The wrapped store was damaged or edited.
    StoreCorrupt "StoreCorrupt",
    /// The wrapped store is older than what was delivered.
    StoreRolledBack "StoreRolledBack",
    /// The target Secret belongs to somebody else.
    SecretNotOwned "SecretNotOwned",
    /// Somebody keeps changing the delivered Secret.
    SecretContested "SecretContested",
    /// The apiserver refused or could not take the delivery.
    DeliveryFailed "DeliveryFailed",
    /// A template has a placeholder that does not exist, or renders too much.
    TemplateInvalid "TemplateInvalid",
    /// Selected pods do not mount or read the delivered Secret.
    PodsNotUsingSecret "PodsNotUsingSecret",
    /// Pods run with what was delivered before.
    PodsOutdated "PodsOutdated",
    /// A rotation waits for pods that still run the version before.
    RotationWaitingForPods "RotationWaitingForPods",
    /// A restart is due and held back.
    RestartBlocked "RestartBlocked",
    /// A server is sealed and stays so for now.
    Sealed "Sealed",
    /// A server is between two seals.
    Migrating "Migrating",
    /// A server has not been initialised.
    NotInitialized "NotInitialized",
    /// A server says that it was never initialised, and the store holds what one answered before.
    AlreadyInitializedElsewhere "AlreadyInitializedElsewhere",
    /// A server was, or may have been, initialised, and what it answered is lost.
    InitResponseLost "InitResponseLost",
    /// A server was initialised, and what it answered lies in the operator's memory only.
    InitResponseNotStored "InitResponseNotStored",
    /// The root token is to be revoked and is not yet.
    RootTokenHeld "RootTokenHeld",
    /// There are fewer unseal shares than the server asks for.
    UnsealKeysMissing "UnsealKeysMissing",
    /// A server refused the shares.
    UnsealRejected "UnsealRejected",
    /// A server does not answer.
    TargetUnreachable "TargetUnreachable",
    /// What answers is not proven to be the server, so it got no share.
    TargetNotVerified "TargetNotVerified",
    /// Two SealConfigs select one pod to unseal it.
    PodContested "PodContested",
    /// An alias in AWS points at a key that the ManagedKey did not make.
    AliasNotOwned "AliasNotOwned",
    /// Two keys in AWS carry the token of the one that was being made.
    CreateTokenAmbiguous "CreateTokenAmbiguous",
    /// AWS does not take the wrapped material.
    ImportRejected "ImportRejected",
    /// A key in AWS held other material than the version that it was made for.
    MaterialMismatch "MaterialMismatch",
    /// The account has reached a quota of the KMS.
    QuotaExceeded "QuotaExceeded",
    /// The deletion of keys in AWS was not confirmed.
    DeletionNotConfirmed "DeletionNotConfirmed",
    /// A ManagedKey refers to the SealConfig.
    InUse "InUse",
    /// A workload was restarted (event).
    Restarted "Restarted",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn reasons_are_unique_words_that_kubernetes_accepts() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert!(
            words
                .iter()
                .all(|w| w.chars().all(|c| c.is_ascii_alphanumeric()) && w.len() <= 64)
        );
        words.sort_unstable();
        let before = words.len();
        words.dedup();
        assert_eq!(before, words.len());
    }

    #[test]
    fn docs_cover_every_reason() {
        let docs = include_str!("../../docs/reasons.md");
        let entries: Vec<(&str, &str)> = docs
            .split("\n### `")
            .skip(1)
            .filter_map(|entry| entry.split_once('`'))
            .collect();
        for reason in Reason::ALL {
            let entry = entries.iter().find(|(word, _)| *word == reason.as_str());
            let (_, text) = entry.unwrap_or_else(|| panic!("docs/reasons.md has no entry for {reason}"));
            assert!(
                text.contains("\nSee: ") && text.contains("\nFix"),
                "{reason}: how to see it and the fix are missing"
            );
        }
        for (word, _) in &entries {
            assert!(
                Reason::ALL.iter().any(|reason| reason.as_str() == *word),
                "{word} is no reason"
            );
        }
    }
}
