//! Credentials that a tenant's resource names: data of its Secrets and tokens of its ServiceAccounts, nothing else.
//!
//! Nothing here reads a file or the environment, so no text of a tenant can name one (security rule S9).

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use aws_credential_types::Credentials as AwsCredentials;
use aws_lc_rs::digest;
use aws_sdk_sts::{
    operation::{
        assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    },
    types::Tag,
};
use zeroize::Zeroizing;

use super::{
    error::{self, Asked, Failure, Operation},
    identity::Source,
    sdk,
};
use crate::{
    api::Reason,
    provider::{Audience, Cluster, SecretEntries, Tenant, bound::Tie},
    seal::{Fault, aws::Region, endpoint::printable},
};

/// The annotation of IRSA that names the role.
///
/// Source: `aws/amazon-eks-pod-identity-webhook` README, as the one below.
const ROLE_ANNOTATION: &str = "eks.amazonaws.com/role-arn";

/// The annotation of IRSA that names the audience.
const AUDIENCE_ANNOTATION: &str = "eks.amazonaws.com/audience";

/// The audiences that a token may have; a token for the apiserver itself would be a gift to whoever reads it.
const AUDIENCES: [&str; 2] = ["sts.amazonaws.com", "sts.amazonaws.com.cn"];

/// The key of the session tag that tells the namespace to CloudTrail and policies.
pub(super) const NAMESPACE_TAG: &str = "autounseal.dev/namespace";

/// What a ServiceAccount says about its role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Irsa {
    pub(super) role: String,
    pub(super) audience: String,
}

pub(super) fn no_service_account(name: &str) -> Fault {
    Fault::denied(
        Reason::ServiceAccountMissing,
        format!(
            "there is no ServiceAccount {} in this namespace; create it, or correct credentials.serviceAccountRef",
            printable(name)
        ),
    )
}

/// Reads the annotations of a ServiceAccount; a role in the seal goes before them.
pub(super) fn irsa(
    name: &str,
    annotations: &BTreeMap<String, String>,
    role: Option<&str>,
) -> Result<Irsa, Fault> {
    let role = role
        .or_else(|| annotations.get(ROLE_ANNOTATION).map(String::as_str))
        .filter(|role| !role.is_empty())
        .ok_or_else(|| {
            Fault::denied(
                Reason::RoleAnnotationMissing,
                format!(
                    "ServiceAccount {} names no role; annotate it with {ROLE_ANNOTATION}, or set \
                     serviceAccountRef.roleARN",
                    printable(name)
                ),
            )
        })?;
    if !is_role(role) {
        return Err(Fault::denied(
            Reason::RoleAnnotationMissing,
            format!(
                "what ServiceAccount {} names as its role is no role's ARN; its form is \
                 arn:aws:iam::123456789012:role/name",
                printable(name)
            ),
        ));
    }
    let audience = annotations
        .get(AUDIENCE_ANNOTATION)
        .map_or(AUDIENCES[0], String::as_str);
    if !AUDIENCES.contains(&audience) {
        return Err(Fault::denied(
            Reason::AudienceRejected,
            format!(
                "ServiceAccount {} asks for another token audience than {} or {}; correct its annotation \
                 {AUDIENCE_ANNOTATION}",
                printable(name),
                AUDIENCES[0],
                AUDIENCES[1]
            ),
        ));
    }
    Ok(Irsa {
        role: role.to_owned(),
        audience: audience.to_owned(),
    })
}

/// `arn:aws:iam::123456789012:role/path/name`, in any partition.
fn is_role(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("arn:aws") else {
        return false;
    };
    let mut parts = rest.splitn(5, ':');
    let (Some(partition), Some("iam"), Some(""), Some(account), Some(resource)) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return false;
    };
    text.len() <= 2048
        && partition.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && resource.strip_prefix("role/").is_some_and(|name| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"_+=,.@/-".contains(&b))
        })
}

/// An access key, and a digest that tells it from its successor.
pub(super) struct AccessKey {
    pub(super) credentials: AwsCredentials,
    pub(super) digest: [u8; 32],
}

/// Names of the entries of a credentials Secret.
#[derive(Clone, Copy)]
pub(super) struct Entries<'a> {
    pub(super) secret: &'a str,
    pub(super) access_key_id: &'a str,
    pub(super) secret_access_key: &'a str,
    pub(super) session_token: &'a str,
}

/// Reads an access key from the entries of a Secret.
pub(super) fn access_key(names: Entries<'_>, secret: Option<&SecretEntries>) -> Result<AccessKey, Fault> {
    let missing = |what: String| Fault::denied(Reason::CredentialsMissing, what);
    let shown = printable(names.secret);
    let secret = secret.ok_or_else(|| {
        missing(format!(
            "there is no Secret {shown} with AWS credentials in this namespace; create it, or correct \
             credentials.secretRef"
        ))
    })?;
    let entry = |name: &str| -> Result<Option<Zeroizing<String>>, Fault> {
        let Some(bytes) = secret.get(name) else {
            return Ok(None);
        };
        let text = std::str::from_utf8(bytes)
            .map_err(|_| missing(format!("entry {} of Secret {shown} is no text", printable(name))))?;
        // What `kubectl create secret --from-file` leaves at the end.
        let text = text.trim_end_matches(['\r', '\n']);
        Ok((!text.is_empty()).then(|| Zeroizing::new(text.to_owned())))
    };
    let required = |name: &str| {
        entry(name)?.ok_or_else(|| {
            missing(format!(
                "Secret {shown} has no entry {}, or it is empty; add it, or name the right one in \
                 credentials.secretRef",
                printable(name)
            ))
        })
    };
    let id = required(names.access_key_id)?;
    let fits =
        (16..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if !fits {
        // It would go out in clear in the signature header, whatever it is (security rule S1).
        return Err(missing(format!(
            "entry {} of Secret {shown} is no access key id (16 to 128 capital letters and digits); it was not sent",
            printable(names.access_key_id)
        )));
    }
    let key = required(names.secret_access_key)?;
    let token = entry(names.session_token)?;
    if [Some(&key), token.as_ref()]
        .into_iter()
        .flatten()
        .any(|text| !text.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(missing(format!(
            "an AWS credential in Secret {shown} holds blanks or control characters; write it without"
        )));
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    for text in [Some(&id), Some(&key), token.as_ref()].into_iter().flatten() {
        hash.update(&(text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(hash.finish().as_ref());
    Ok(AccessKey {
        credentials: AwsCredentials::new(
            id.as_str(),
            key.as_str(),
            token.map(|token| token.to_string()),
            None,
            "secretRef",
        ),
        digest: sum,
    })
}

/// A session name in CloudTrail: 2 to 64 of `[\w+=,.@-]`.
pub(super) fn session_name(tenant: Tenant<'_>) -> String {
    let name: String = format!("{}.{}", tenant.namespace, tenant.name)
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(64)
        .collect();
    // A namespace and a name have a character each, but that is somebody else's promise.
    if name.len() < 2 { format!("{name}--") } else { name }
}

/// AssumeRoleWithWebIdentity with a token of a ServiceAccount.
pub(super) struct WebIdentity {
    pub(super) cluster: Arc<dyn Cluster>,
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) irsa: Irsa,
    pub(super) session: String,
    pub(super) region: Region,
    /// Needs no credentials: this operation is not signed.
    pub(super) sts: aws_sdk_sts::Client,
}

impl WebIdentity {
    pub(super) async fn load(&self, now: SystemTime) -> Result<AwsCredentials, Fault> {
        let token = self
            .cluster
            .token(
                &self.namespace,
                &self.service_account,
                Audience::Named(&self.irsa.audience),
            )
            .await?;
        let answer = self
            .sts
            .assume_role_with_web_identity()
            .role_arn(&self.irsa.role)
            .role_session_name(&self.session)
            .web_identity_token(token.expose())
            .send()
            .await;
        let asked = asked(
            Operation::AssumeRoleWithWebIdentity,
            &self.irsa.role,
            &self.region,
        );
        let answer = answer.map_err(
            |error: aws_sdk_sts::error::SdkError<AssumeRoleWithWebIdentityError, _>| {
                error::fault(&asked, sdk::failure(&error, now))
            },
        )?;
        is_asked_for(&self.irsa.role, answer.assumed_role_user.as_ref())?;
        session(answer.credentials, &asked)
    }
}

/// AssumeRole on top of other credentials.
pub(super) struct AssumedRole {
    pub(super) role: String,
    pub(super) external_id: Option<String>,
    pub(super) session: String,
    /// The namespace, told to CloudTrail and policies; set with the operator's identity only.
    pub(super) tag: Option<String>,
    pub(super) region: Region,
    /// The credentials underneath.
    pub(super) under: Arc<Source>,
    /// Signs with them.
    pub(super) sts: aws_sdk_sts::Client,
}

impl AssumedRole {
    pub(super) async fn load(&self, now: SystemTime) -> Result<AwsCredentials, Fault> {
        // Boxed, for one source may stand on another.
        Box::pin(self.under.get()).await?;
        let asked = asked(Operation::AssumeRole, &self.role, &self.region);
        let tag = match &self.tag {
            Some(namespace) => Some(
                Tag::builder()
                    .key(NAMESPACE_TAG)
                    .value(namespace)
                    .build()
                    .map_err(|_| error::fault(&asked, Failure::Garbage))?,
            ),
            None => None,
        };
        let answer = self
            .sts
            .assume_role()
            .role_arn(&self.role)
            .role_session_name(&self.session)
            .set_external_id(self.external_id.clone())
            .set_tags(tag.map(|tag| vec![tag]))
            .send()
            .await;
        let answer = answer.map_err(|error: aws_sdk_sts::error::SdkError<AssumeRoleError, _>| {
            error::fault(&asked, sdk::failure(&error, now))
        })?;
        is_asked_for(&self.role, answer.assumed_role_user.as_ref())?;
        session(answer.credentials, &asked)
    }
}

/// Whether STS gave the role that was asked for: another one would use its keys in the name of this one, unseen.
///
/// A session's ARN leaves out the role's path (IAM user guide, "IAM identifiers"); servers in the place of STS may leave it in.
pub(super) fn is_asked_for(
    role: &str,
    user: Option<&aws_sdk_sts::types::AssumedRoleUser>,
) -> Result<(), Fault> {
    let Some(user) = user else {
        return Ok(());
    };
    let account = |arn: &str| arn.split(':').nth(4).map(ToOwned::to_owned);
    let asked = role.rsplit('/').next().unwrap_or_default();
    let given = user
        .arn()
        .split_once(":assumed-role/")
        .and_then(|(_, rest)| rest.rsplit_once('/'))
        .is_some_and(|(role, _)| role.rsplit('/').next() == Some(asked));
    if given && account(role) == account(user.arn()) {
        return Ok(());
    }
    Err(Fault::denied(
        Reason::IdentityMismatch,
        format!(
            "STS was asked for {role} and gave another identity, which is not used; check what answers for STS"
        ),
    ))
}

fn asked<'a>(operation: Operation, role: &'a str, region: &'a Region) -> Asked<'a> {
    Asked {
        operation,
        of: role,
        region: region.as_str(),
        tie: Tie::None,
    }
}

fn session(
    answered: Option<aws_sdk_sts::types::Credentials>,
    asked: &Asked<'_>,
) -> Result<AwsCredentials, Fault> {
    let garbage = || error::fault(asked, Failure::Garbage);
    let answered = answered.ok_or_else(garbage)?;
    let expiry = SystemTime::try_from(answered.expiration).map_err(|_| garbage())?;
    let fits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if [
        &answered.access_key_id,
        &answered.secret_access_key,
        &answered.session_token,
    ]
    .into_iter()
    .any(|text| !fits(text))
    {
        return Err(garbage());
    }
    Ok(AwsCredentials::new(
        answered.access_key_id,
        answered.secret_access_key,
        Some(answered.session_token),
        Some(expiry),
        "sts",
    ))
}
