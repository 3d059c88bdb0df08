//! What a seal says of its cloud: one function for each.

use crate::{
    api::{self, Reason},
    seal::{
        Fault,
        aws::{self, AssumeRole, AwsSeal, KeyRef},
        oci::{self, OciSeal},
    },
};

pub(super) fn parse_aws(spec: &api::AwsKms) -> Result<AwsSeal, Fault> {
    let key: KeyRef = spec.kms_key_id.parse().map_err(|()| {
        Fault::invalid_spec("kmsKeyID is not a key id, key ARN, alias name (alias/…) or alias ARN of AWS KMS")
    })?;
    let former = spec
        .former_key_ids
        .iter()
        .map(|text| match text.parse::<KeyRef>() {
            Ok(former) if !former.is_alias() => Ok(former),
            _ => Err(Fault::invalid_spec(
                "formerKeyIDs takes key ids and key ARNs only, for an alias may move again",
            )),
        })
        .collect::<Result<_, _>>()?;
    let region = match &spec.region {
        Some(text) => Some(
            text.parse()
                .map_err(|()| Fault::invalid_spec("region is not the name of a region, such as eu-west-1"))?,
        ),
        None => None,
    };
    if let (Some(asked), Some(told)) = (&region, key.region())
        && asked != told
    {
        return Err(Fault::invalid(
            Reason::RegionMismatch,
            format!(
                "region says {asked}, but the ARN in kmsKeyID lies in {told}; remove region or correct one of them"
            ),
        ));
    }
    if let (Some(pinned), Some(told)) = (&spec.account_id, key.account())
        && pinned != told
    {
        return Err(Fault::invalid_spec(format!(
            "accountID says {pinned}, but the ARN in kmsKeyID belongs to account {told}"
        )));
    }
    let credentials = parse_aws_credentials(spec.credentials.as_ref())?;
    let assume_role = spec.assume_role.as_ref().map(|role| AssumeRole {
        role_arn: role.role_arn.clone(),
        external_id: role.external_id.clone(),
        session_name: role.session_name.clone(),
    });
    Ok(AwsSeal {
        region: region.or_else(|| key.region().cloned()),
        key,
        former,
        account: spec.account_id.clone(),
        endpoint: spec.endpoint.clone(),
        assume_role,
        credentials,
    })
}

pub(in crate::seal) fn parse_aws_credentials(
    spec: Option<&api::AwsCredentials>,
) -> Result<aws::Credentials, Fault> {
    let Some(spec) = spec else {
        return Ok(aws::Credentials::DefaultChain);
    };
    let account = spec.service_account_ref.as_ref();
    let secret = spec.secret_ref.as_ref();
    let members = [
        account.map(|account| aws::Credentials::ServiceAccount {
            name: account.name.clone(),
            role_arn: account.role_arn.clone(),
        }),
        spec.pod_identity.map(|_| aws::Credentials::PodIdentity),
        spec.instance_metadata.map(|_| aws::Credentials::InstanceMetadata),
        secret.map(|secret| aws::Credentials::Secret {
            name: secret.name.clone(),
            access_key_id: secret.access_key_id_key.clone(),
            secret_access_key: secret.secret_access_key_key.clone(),
            session_token: secret.session_token_key.clone(),
        }),
    ];
    let names = "serviceAccountRef, podIdentity, instanceMetadata, secretRef";
    Ok(at_most_one(members, names)?.unwrap_or(aws::Credentials::DefaultChain))
}

pub(super) fn parse_oci(spec: &api::OciKms) -> Result<OciSeal, Fault> {
    let key = spec.key_id.parse().map_err(|()| {
        Fault::invalid_spec("keyID is not the OCID of an OCI KMS key (ocid1.key.<realm>.<region>.…)")
    })?;
    let chosen = match &spec.credentials {
        None => None,
        Some(spec) => at_most_one(
            [
                spec.instance_principal
                    .map(|_| oci::Credentials::InstancePrincipal),
                spec.api_key.as_ref().map(|key| oci::Credentials::ApiKey {
                    secret: key.secret_ref.name.clone(),
                }),
                spec.workload_identity
                    .as_ref()
                    .map(|identity| oci::Credentials::WorkloadIdentity {
                        service_account: identity.service_account_ref.name.clone(),
                    }),
                spec.resource_principal
                    .map(|_| oci::Credentials::ResourcePrincipal),
            ],
            "instancePrincipal, apiKey, workloadIdentity, resourcePrincipal",
        )?,
    };
    let credentials = chosen.unwrap_or(oci::Credentials::InstancePrincipal);
    let is_api_key = matches!(credentials, oci::Credentials::ApiKey { .. });
    if spec.auth_type_api_key.is_some_and(|switch| switch != is_api_key) {
        return Err(Fault::invalid_spec(
            "authTypeAPIKey does not agree with credentials: true goes with credentials.apiKey, false with every other \
             identity; correct one of them, or leave authTypeAPIKey out",
        ));
    }
    Ok(OciSeal {
        key,
        crypto_endpoint: spec.crypto_endpoint.clone(),
        management_endpoint: spec.management_endpoint.clone(),
        credentials,
    })
}

/// The one member that is set, if any.
fn at_most_one<T, const N: usize>(members: [Option<T>; N], names: &str) -> Result<Option<T>, Fault> {
    let mut found = members.into_iter().flatten();
    match (found.next(), found.next()) {
        (one, None) => Ok(one),
        (_, Some(_)) => Err(Fault::invalid_spec(format!(
            "credentials take at most one of {names}"
        ))),
    }
}
