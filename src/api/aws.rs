//! `seals[].awskms`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An AWS KMS key and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AwsKms {
    /// Key id, key ARN, alias name (`alias/…`) or alias ARN.
    #[serde(rename = "kmsKeyID")]
    #[schemars(
        regex(
            pattern = r"^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:(key/[A-Za-z0-9-]+|alias/[A-Za-z0-9:/_-]+)|alias/[A-Za-z0-9:/_-]+|[A-Za-z0-9-]+)$"
        ),
        length(min = 1, max = 512)
    )]
    pub kms_key_id: String,
    /// Other keys (id, key ARN) that may have wrapped what is brought, for example the former targets of an alias.
    #[serde(rename = "formerKeyIDs", default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(min = 1, max = 512)), extend("x-kubernetes-list-type" = "set"))]
    pub former_key_ids: Vec<String>,
    /// Pins the AWS account that the key must belong to.
    #[serde(rename = "accountID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{12}$"), length(max = 12))]
    pub account_id: Option<String>,
    /// Region of the key. Default: the ARN's, then the operator's own.
    #[schemars(regex(pattern = r"^[a-z]{2,8}(-[a-z]+)+-[0-9]{1,2}$"), length(max = 32))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A VPC, FIPS or private endpoint of KMS in that region, `https://host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"), length(max = 512))]
    pub endpoint: Option<String>,
    /// A role to assume on top of whatever `credentials` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assume_role: Option<AssumeRole>,
    /// Where the credentials come from; none = the operator's own identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<AwsCredentials>,
}

/// STS AssumeRole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AssumeRole {
    /// ARN of the role.
    #[serde(rename = "roleARN")]
    #[schemars(
        regex(pattern = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+$"),
        length(max = 2048)
    )]
    pub role_arn: String,
    /// The external id that the role's trust policy asks for. Refused with the operator's own identity,
    /// which sends `<binding-domain>/<namespace>`.
    #[serde(rename = "externalID", skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[\w+=,.@:/-]+$"), length(min = 2, max = 1224))]
    pub external_id: Option<String>,
    /// Session name in CloudTrail. Default: namespace and name of the SealConfig.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[\w+=,.@-]+$"), length(min = 2, max = 64))]
    pub session_name: Option<String>,
}

/// At most one member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "[has(self.serviceAccountRef), has(self.podIdentity), has(self.instanceMetadata), has(self.secretRef)].filter(x, x).size() <= 1",
    "message": "credentials take at most one of serviceAccountRef, podIdentity, instanceMetadata, secretRef",
}]))]
pub struct AwsCredentials {
    /// IRSA per resource: a token of this ServiceAccount, of the same namespace, exchanged for its role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_ref: Option<ServiceAccountRef>,
    /// EKS Pod Identity of the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_identity: Option<Empty>,
    /// The operator's node role by IMDSv2, never v1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_metadata: Option<Empty>,
    /// Static or session credentials in a Secret of the same namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretCredentialsRef>,
}

/// A ServiceAccount of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountRef {
    /// Name of the ServiceAccount.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Role to take; default: the ServiceAccount's annotation `eks.amazonaws.com/role-arn`.
    #[serde(rename = "roleARN", skip_serializing_if = "Option::is_none")]
    #[schemars(
        regex(pattern = r"^arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]+$"),
        length(max = 2048)
    )]
    pub role_arn: Option<String>,
}

/// A Secret with AWS credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretCredentialsRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Entry with the access key id. Default `access_key`.
    #[serde(default = "access_key", rename = "accessKeyIDKey")]
    #[schemars(length(min = 1, max = 253))]
    pub access_key_id_key: String,
    /// Entry with the secret access key. Default `secret_key`.
    #[serde(default = "secret_key")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_access_key_key: String,
    /// Entry with the session token, which may be absent. Default `session_token`.
    #[serde(default = "session_token")]
    #[schemars(length(min = 1, max = 253))]
    pub session_token_key: String,
}

fn access_key() -> String {
    "access_key".into()
}

fn secret_key() -> String {
    "secret_key".into()
}

fn session_token() -> String {
    "session_token".into()
}

/// A choice without settings: `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}
