//! Error codes of KMS and STS and what each means to a user.

use super::{Answer, Asked, Operation};
use crate::{
    api::Reason,
    provider::{
        bound::{self, Tie},
        wire::SKEW,
    },
    seal::{Fault, FaultKind},
};

/// Errors that any AWS service answers.
fn common(asked: &Asked<'_>, answer: &Answer) -> Option<Fault> {
    let (service, operation) = (asked.operation.service(), asked.operation.as_str());
    let fault = match answer.code.as_deref().unwrap_or_default() {
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "AuthFailure"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException" => Fault::denied(
            Reason::CredentialsRejected,
            format!(
                "{service} does not know the credentials; check that the access key exists, is active, belongs to \
                 the key's partition and has its session token"
            ),
        ),
        "ExpiredToken" | "ExpiredTokenException"
            if asked.operation != Operation::AssumeRoleWithWebIdentity =>
        {
            Fault::denied(
                Reason::CredentialsExpired,
                format!(
                    "{service} says that the credentials have expired; renew the session token where the seal's \
                         credentials come from"
                ),
            )
        }
        "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "RequestExpired"
        | "RequestTimeTooSkewed" => match answer.skew {
            Some(skew) if skew > SKEW => Fault::denied(
                Reason::ClockSkew,
                format!(
                    "the clock of the operator's node and {service}'s differ by more than {} minutes, so signatures \
                     are refused; set the node's clock (NTP)",
                    skew.as_secs() / 60
                ),
            ),
            _ => Fault::denied(
                Reason::CredentialsRejected,
                format!("{service} finds the signature wrong; check the secret access key"),
            ),
        },
        "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "RequestThrottled"
        | "RequestThrottledException"
        | "LimitExceededException"
        | "BandwidthLimitExceeded"
        | "SlowDown"
        | "ServiceQuotaExceededException" => Fault::new(
            Reason::Throttled,
            FaultKind::Throttled,
            format!(
                "{service} in region {} limits the rate of {operation}; it is tried again later; raise the account's \
                 request quota if this stays",
                asked.region
            ),
        ),
        _ if answer.status == Some(429) => Fault::new(
            Reason::Throttled,
            FaultKind::Throttled,
            format!(
                "{service} in region {} limits the rate of {operation}; it is tried again later",
                asked.region
            ),
        ),
        _ => return None,
    };
    Some(fault)
}

pub(super) fn kms(asked: &Asked<'_>, answer: &Answer) -> Fault {
    if let Some(fault) = managing(asked, answer) {
        return fault;
    }
    if let Some(fault) = common(asked, answer) {
        return fault;
    }
    let Asked {
        operation,
        of: key,
        region,
        ..
    } = *asked;
    let operation = operation.as_str();
    match answer.code.as_deref().unwrap_or_default() {
        "AccessDeniedException"
        | "AccessDenied"
        | "NotAuthorized"
        | "OptInRequired"
        | "InvalidGrantTokenException"
        | "DryRunOperationException" => access_denied(asked),
        "NotFoundException" => Fault::denied(
            Reason::KeyNotFound,
            format!(
                "the KMS in region {region} knows no key {key}; check kmsKeyID, region and account, or create the \
                 key or alias"
            ),
        ),
        "DisabledException" => Fault::denied(
            Reason::KeyDisabled,
            format!("the key {key} is disabled; enable it (aws kms enable-key --region {region} --key-id …)"),
        ),
        "KMSInvalidStateException" => Fault::denied(
            Reason::KeyUnusable,
            format!(
                "the key {key} is in a state in which it cannot {operation}; look at its state (aws kms describe-key \
                 --region {region} --key-id …): a deletion is cancelled, missing key material imported again"
            ),
        ),
        "InvalidKeyUsageException" | "UnsupportedOperationException" => Fault::denied(
            Reason::KeyUnusable,
            format!(
                "the key {key} cannot {operation}; a seal needs a symmetric key for encryption and decryption"
            ),
        ),
        "IncorrectKeyException" if asked.tie == Tie::Operators => Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "the copy was not made with {key}, which the store records for it; {}",
                bound::PUT_BACK
            ),
        ),
        "IncorrectKeyException" => Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "the wrapped key was not made with {key}; name the key that made it under kmsKeyID or formerKeyIDs, \
                 or wrap it again"
            ),
        ),
        "InvalidCiphertextException" if asked.tie == Tie::Operators => {
            Fault::invalid(Reason::ContextMismatch, bound::refused("the KMS"))
        }
        "InvalidCiphertextException" if asked.tie == Tie::Users => Fault::invalid(
            Reason::ContextMismatch,
            "the KMS does not open the wrapped key with this context: `context` is not exactly the encryption context \
             that it was wrapped with, or its bytes were changed (the KMS does not say which)",
        ),
        "InvalidCiphertextException" => Fault::invalid(
            Reason::CiphertextInvalid,
            "the KMS does not open the wrapped key: its bytes were changed, it comes from another KMS or account, or \
             it was wrapped with an encryption context that `context` must then name",
        ),
        "InvalidArnException" => Fault::invalid(
            Reason::KeyNotFound,
            format!("the KMS takes {key} for no valid name of a key; check kmsKeyID and region"),
        ),
        "ValidationException" | "SerializationException" | "ValidationError" => Fault::invalid(
            if asked.operation == Operation::Decrypt {
                Reason::CiphertextInvalid
            } else {
                Reason::KeyUnusable
            },
            format!(
                "the KMS in region {region} takes this {operation} for malformed; check kmsKeyID and the wrapped key"
            ),
        ),
        _ => without_code(asked, answer),
    }
}

/// Errors of the operations on keys of a ManagedKey that mean something else there, or occur nowhere else.
///
/// Source: botocore service model `kms/2014-11-01`.
fn managing(asked: &Asked<'_>, answer: &Answer) -> Option<Fault> {
    if !asked.operation.manages() {
        return None;
    }
    let Asked { of, region, .. } = *asked;
    let operation = asked.operation.as_str();
    let fault = match answer.code.as_deref()? {
        // Not a rate, whatever the SDK's list says: how many keys, aliases or tags there may be.
        "LimitExceededException" => Fault::denied(
            Reason::QuotaExceeded,
            format!(
                "the account has reached a quota of AWS KMS in region {region}, so {operation} made nothing; delete what \
                 nobody uses, or have the quota of keys or aliases raised"
            ),
        ),
        "AlreadyExistsException" => Fault::denied(
            Reason::AliasNotOwned,
            format!(
                "{of} exists in region {region}, and it is not this ManagedKey's, so it was not moved; delete it there, or \
                 choose another aliasName"
            ),
        ),
        "ExpiredImportTokenException" | "InvalidImportTokenException" => Fault::transient(
            Reason::ImportRejected,
            format!(
                "AWS does not take the import token for {of} any more; it is tried again with new parameters"
            ),
        ),
        "IncorrectKeyMaterialException" => Fault::denied(
            Reason::MaterialMismatch,
            format!(
                "{of} had other material than this version's before, and AWS takes back only that; whoever imported into it \
                 must say what it is: rotate to have a key that is known to be right"
            ),
        ),
        "InvalidCiphertextException" | "ValidationException"
            if asked.operation == Operation::ImportKeyMaterial =>
        {
            Fault::denied(
                Reason::ImportRejected,
                format!(
                    "AWS could not unwrap the material for {of}, or it is none of the key's type; check what answers in region \
                     {region}"
                ),
            )
        }
        "KMSInvalidStateException" => Fault::transient(
            Reason::KeyUnusable,
            format!("{of} is in a state in which AWS does not {operation}; its state is looked at again"),
        ),
        "TagException" => {
            Fault::invalid_spec(format!("AWS does not take the tags of {of}; correct awskms.tags"))
        }
        "UnsupportedOperationException" | "ValidationException" => Fault::denied(
            Reason::InvalidSpec,
            format!(
                "AWS KMS in region {region} does not {operation} as asked; check type, usage, multiRegion and tags"
            ),
        ),
        _ => return None,
    };
    Some(fault)
}

fn access_denied(asked: &Asked<'_>) -> Fault {
    let Asked {
        operation,
        of: key,
        region,
        ..
    } = *asked;
    let operation = operation.as_str();
    // Who is told which key to use does not try another.
    let hint = if asked.operation == Operation::Decrypt && asked.tie != Tie::Operators {
        ", or the wrapped key was made with another key, which the identity may not use"
    } else {
        ""
    };
    Fault::denied(
        Reason::AccessDenied,
        format!(
            "the identity may not kms:{operation} with {key} in region {region}; allow kms:{operation} in its IAM \
             policy, and in the key's policy if the key belongs to another account or does not delegate to IAM{hint}"
        ),
    )
}

pub(super) fn sts(asked: &Asked<'_>, answer: &Answer) -> Fault {
    if let Some(fault) = common(asked, answer) {
        return fault;
    }
    let role = asked.of;
    let code = answer.code.as_deref().unwrap_or_default();
    if asked.operation == Operation::AssumeRole {
        return match code {
            "AccessDenied"
            | "AccessDeniedException"
            | "RegionDisabledException"
            | "ValidationError"
            | "MalformedPolicyDocument"
            | "PackedPolicyTooLarge" => Fault::denied(
                Reason::AssumeRoleDenied,
                format!(
                    "STS refuses to let the identity assume {role}; allow sts:AssumeRole and sts:TagSession in its IAM \
                     policy, and the identity, with its external id, in the role's trust policy"
                ),
            ),
            _ => without_code(asked, answer),
        };
    }
    match code {
        "IDPCommunicationError" => Fault::transient(
            Reason::WebIdentityRejected,
            format!(
                "STS could not reach the cluster's OIDC issuer to check the token for {role}; it is tried again"
            ),
        ),
        "InvalidIdentityToken" | "IDPRejectedClaim" | "ExpiredTokenException" | "ExpiredToken" => {
            Fault::denied(
                Reason::WebIdentityRejected,
                format!(
                    "STS does not accept the ServiceAccount's token for {role}; register the cluster's OIDC issuer as an \
                 identity provider of that account, with the token's audience among its client ids"
                ),
            )
        }
        "AccessDenied"
        | "AccessDeniedException"
        | "RegionDisabledException"
        | "ValidationError"
        | "MalformedPolicyDocument"
        | "PackedPolicyTooLarge" => Fault::denied(
            Reason::WebIdentityRejected,
            format!(
                "STS refuses {role} to the ServiceAccount; its trust policy must allow sts:AssumeRoleWithWebIdentity \
                 for the cluster's OIDC provider with sub system:serviceaccount:<namespace>:<name> and the token's \
                 audience"
            ),
        ),
        _ => without_code(asked, answer),
    }
}

/// By status alone, for codes that say no more than it.
fn without_code(asked: &Asked<'_>, answer: &Answer) -> Fault {
    let (service, operation, region) = (asked.operation.service(), asked.operation.as_str(), asked.region);
    match answer.status.unwrap_or_default() {
        300..=399 => Fault::denied(
            Reason::KmsUnavailable,
            format!(
                "{service}'s endpoint in region {region} redirects {operation}, which is never followed; name the \
                     endpoint itself"
            ),
        ),
        401 | 403 if asked.operation.is_sts() => Fault::denied(
            if asked.operation == Operation::AssumeRole {
                Reason::AssumeRoleDenied
            } else {
                Reason::WebIdentityRejected
            },
            format!("STS in region {region} refuses {operation} for {}", asked.of),
        ),
        401 | 403 => access_denied(asked),
        _ => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{service} in region {region} could not answer {operation}; it is tried again; see the region's \
                     health if this stays"
            ),
        ),
    }
}
