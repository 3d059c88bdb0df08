//! What went wrong with AWS, as a [`Fault`] in our own words.
//!
//! Pure. Nothing of a server's text passes (security rule S13): a code, a status, a request id, each of a fixed form,
//! and names that we sent ourselves.
//!
//! Codes: botocore's service models `kms/2014-11-01` and `sts/2011-06-15`, the common errors of the AWS query
//! protocol, and what emulators answer in their place.

use std::time::Duration;

use crate::{
    api::Reason,
    seal::{Fault, FaultKind},
};

/// What was asked of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Decrypt,
    Encrypt,
    DescribeKey,
    AssumeRole,
    AssumeRoleWithWebIdentity,
}

impl Operation {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Operation::Decrypt => "Decrypt",
            Operation::Encrypt => "Encrypt",
            Operation::DescribeKey => "DescribeKey",
            Operation::AssumeRole => "AssumeRole",
            Operation::AssumeRoleWithWebIdentity => "AssumeRoleWithWebIdentity",
        }
    }

    const fn is_sts(self) -> bool {
        matches!(
            self,
            Operation::AssumeRole | Operation::AssumeRoleWithWebIdentity
        )
    }

    const fn service(self) -> &'static str {
        if self.is_sts() { "STS" } else { "the KMS" }
    }
}

/// What a sentence needs to know beside the answer. All of it is ours or the user's, none of it a server's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) operation: Operation,
    /// The key as the seal names it, or the role.
    pub(super) of: &'a str,
    pub(super) region: &'a str,
    /// Whether an encryption context was sent.
    pub(super) context: bool,
}

/// An answer that is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Letters only, at most 64.
    pub(super) code: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) request_id: Option<String>,
    pub(super) retry_after: Option<Duration>,
    /// How far the server's clock is from ours.
    pub(super) skew: Option<Duration>,
}

/// How a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server answered with an error.
    Answer(Answer),
    /// There were no credentials to sign with.
    Credentials(Fault),
    /// The name of the endpoint has no address.
    NoAddress,
    /// The name resolves to where no KMS can be.
    ForbiddenAddress,
    /// No trusted TLS with the endpoint.
    Tls,
    /// No answer in time.
    Timeout,
    /// The connection broke or was refused.
    Broken,
    /// More than 64 KiB.
    TooLarge,
    /// An answer that is none of the protocol.
    Garbage,
}

/// More than this between two clocks is what signatures break by (SigV4 allows 5 minutes).
const SKEW: Duration = Duration::from_secs(300);

/// The longest that a server's hint is obeyed.
pub(super) const LONGEST_HINT: Duration = Duration::from_secs(3600);

/// A code, if it has the form of one.
pub(super) fn code(text: &str) -> Option<String> {
    // `prefix#Code` in JSON, `Code:http://…` in headers.
    let text = text.rsplit('#').next().unwrap_or_default();
    let text = text.split(':').next().unwrap_or_default();
    let fits = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphabetic());
    fits.then(|| text.to_owned())
}

/// A request id, if it has the form of one.
pub(super) fn request_id(text: &str) -> Option<String> {
    let fits = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'/' || b == b'-');
    fits.then(|| text.to_owned())
}

/// The code in an XML error, which STS answers always and some servers answer in place of JSON.
pub(super) fn code_in_xml(body: &[u8]) -> Option<String> {
    let head = &body[..body.len().min(4096)];
    let text = std::str::from_utf8(head).ok()?;
    let (_, rest) = text.split_once("<Code>")?;
    code(rest.split_once("</Code>")?.0.trim())
}

/// The code in a JSON error whose status the SDK did not expect.
pub(super) fn code_in_json(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    code(value.get("__type")?.as_str()?)
}

/// The fault that users see.
pub(super) fn fault(asked: &Asked<'_>, failure: Failure) -> Fault {
    let service = asked.operation.service();
    let region = asked.region;
    match failure {
        Failure::Answer(answer) => {
            let mut fault = if asked.operation.is_sts() {
                sts_answer(asked, &answer)
            } else {
                kms_answer(asked, &answer)
            };
            fault.message.push_str(&evidence(&answer));
            fault.retry_after = answer.retry_after.map(|hint| hint.min(LONGEST_HINT));
            fault
        }
        Failure::Credentials(fault) => fault,
        Failure::NoAddress => Fault::transient(
            Reason::EndpointUnresolvable,
            format!(
                "the name of {service}'s endpoint in region {region} does not resolve; check the region, the \
                 endpoint and the cluster's DNS"
            ),
        ),
        Failure::ForbiddenAddress => Fault::denied(
            Reason::EndpointUnresolvable,
            format!(
                "the name of {service}'s endpoint in region {region} resolves to a loopback, link-local or multicast \
                 address, where no KMS can be; nothing was sent; mend the DNS, or have the cluster admin allow the \
                 endpoint by the operator's --allowed-endpoints"
            ),
        ),
        Failure::Tls => Fault::denied(
            Reason::EndpointTlsFailed,
            format!(
                "the TLS handshake with {service} in region {region} failed: its certificate is not trusted or not \
                 for this name; give the operator the right roots (SSL_CERT_FILE), or take out what intercepts TLS"
            ),
        ),
        Failure::Timeout => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{service} in region {region} did not answer {} in time; check network policies, the VPC endpoint \
                 and the region's health",
                asked.operation.as_str()
            ),
        ),
        Failure::Broken => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "the connection to {service} in region {region} was refused or broke during {}; check network \
                 policies, the VPC endpoint and the region's health",
                asked.operation.as_str()
            ),
        ),
        Failure::TooLarge => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{service} in region {region} answered {} with more than 64 KiB, which no KMS does; check what \
                 listens at the endpoint",
                asked.operation.as_str()
            ),
        ),
        Failure::Garbage => Fault::transient(
            Reason::KmsUnavailable,
            format!(
                "{service} in region {region} answered {} with something that is not its protocol; check what \
                 listens at the endpoint",
                asked.operation.as_str()
            ),
        ),
    }
}

/// What helps support to find the request.
fn evidence(answer: &Answer) -> String {
    let mut parts = Vec::new();
    if let Some(code) = &answer.code {
        parts.push(code.clone());
    }
    if let Some(status) = answer.status {
        parts.push(format!("status {status}"));
    }
    if let Some(id) = &answer.request_id {
        parts.push(format!("request {id}"));
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    }
}

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
                    "the clock of the operator's node and {service}'s differ by {} seconds, so signatures are \
                     refused; set the node's clock (NTP)",
                    skew.as_secs()
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

fn kms_answer(asked: &Asked<'_>, answer: &Answer) -> Fault {
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
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" | "OptInRequired" => {
            access_denied(asked)
        }
        "NotFoundException" => Fault::denied(
            Reason::KeyNotFound,
            format!(
                "the KMS in region {region} knows no key {key}; check kmsKeyID, region and account, or create the \
                 key or alias"
            ),
        ),
        "DisabledException" => Fault::denied(
            Reason::KeyDisabled,
            format!(
                "the key {key} is disabled; enable it (aws kms enable-key --region {region} --key-id …)"
            ),
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
        "IncorrectKeyException" => Fault::denied(
            Reason::KeyNotAllowed,
            format!(
                "the wrapped key was not made with {key}; name the key that made it under kmsKeyID or formerKeyIDs, \
                 or wrap it again"
            ),
        ),
        "InvalidCiphertextException" if asked.context => Fault::invalid(
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
        "InvalidGrantTokenException" | "DryRunOperationException" => access_denied(asked),
        _ => without_code(asked, answer),
    }
}

fn access_denied(asked: &Asked<'_>) -> Fault {
    let Asked {
        operation,
        of: key,
        region,
        ..
    } = *asked;
    let operation = operation.as_str();
    let hint = if asked.operation == Operation::Decrypt {
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

fn sts_answer(asked: &Asked<'_>, answer: &Answer) -> Fault {
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
    let (service, operation, region) = (
        asked.operation.service(),
        asked.operation.as_str(),
        asked.region,
    );
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
            format!(
                "STS in region {region} refuses {operation} for {}",
                asked.of
            ),
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

#[cfg(test)]
mod tests;
