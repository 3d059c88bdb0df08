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
    provider::{
        bound::Tie,
        wire::{LONGEST_HINT, code},
    },
    seal::Fault,
};

mod answers;

/// What was asked of AWS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Decrypt,
    Encrypt,
    DescribeKey,
    CreateKey,
    ListKeys,
    ListResourceTags,
    TagResource,
    GetParametersForImport,
    ImportKeyMaterial,
    ReplicateKey,
    EnableKey,
    DisableKey,
    ScheduleKeyDeletion,
    CancelKeyDeletion,
    ListAliases,
    CreateAlias,
    UpdateAlias,
    DeleteAlias,
    AssumeRole,
    AssumeRoleWithWebIdentity,
}

impl Operation {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Operation::Decrypt => "Decrypt",
            Operation::Encrypt => "Encrypt",
            Operation::DescribeKey => "DescribeKey",
            Operation::CreateKey => "CreateKey",
            Operation::ListKeys => "ListKeys",
            Operation::ListResourceTags => "ListResourceTags",
            Operation::TagResource => "TagResource",
            Operation::GetParametersForImport => "GetParametersForImport",
            Operation::ImportKeyMaterial => "ImportKeyMaterial",
            Operation::ReplicateKey => "ReplicateKey",
            Operation::EnableKey => "EnableKey",
            Operation::DisableKey => "DisableKey",
            Operation::ScheduleKeyDeletion => "ScheduleKeyDeletion",
            Operation::CancelKeyDeletion => "CancelKeyDeletion",
            Operation::ListAliases => "ListAliases",
            Operation::CreateAlias => "CreateAlias",
            Operation::UpdateAlias => "UpdateAlias",
            Operation::DeleteAlias => "DeleteAlias",
            Operation::AssumeRole => "AssumeRole",
            Operation::AssumeRoleWithWebIdentity => "AssumeRoleWithWebIdentity",
        }
    }

    const fn is_sts(self) -> bool {
        matches!(self, Operation::AssumeRole | Operation::AssumeRoleWithWebIdentity)
    }

    /// Whether it makes, changes or takes back keys of a ManagedKey.
    const fn manages(self) -> bool {
        !self.is_sts()
            && !matches!(
                self,
                Operation::Decrypt | Operation::Encrypt | Operation::DescribeKey
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
    /// The key as the seal names it or as a copy records it, or the role.
    pub(super) of: &'a str,
    pub(super) region: &'a str,
    /// What the ciphertext is tied to by the encryption context that was sent.
    pub(super) tie: Tie,
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
                answers::sts(asked, &answer)
            } else {
                answers::kms(asked, &answer)
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

/// What the server said, as far as it stays the same from one try to the next: a request id would make each retry
/// a new status and a new event, so that one goes to the debug log.
fn evidence(answer: &Answer) -> String {
    match (&answer.code, answer.status) {
        (Some(code), Some(status)) => format!(" ({code}, status {status})"),
        (Some(code), None) => format!(" ({code})"),
        (None, Some(status)) => format!(" (status {status})"),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests;
