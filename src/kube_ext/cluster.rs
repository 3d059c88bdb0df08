//! What credentials ask of the cluster (`provider::Cluster`), answered by the apiserver.

use std::collections::BTreeMap;

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Secret, ServiceAccount},
};
use kube::{Api, Client, api::PostParams};
use zeroize::Zeroizing;

use super::{
    bounded,
    missing::{AskedFor, Missing},
};
use crate::{
    api::Reason,
    provider::{Audience, Cluster, SecretEntries, Token},
    seal::{
        Fault,
        checks::account_allowed,
        model::{SourceKind, SourceRef, unarmor},
        observed::SourceFacts,
    },
};

/// Seconds that a ServiceAccount's token is asked for. It is exchanged at once; the apiserver's least is ten minutes.
const TOKEN_SECONDS: i64 = 600;

/// The apiserver as the credentials see it.
pub struct ApiserverCluster {
    client: Client,
    missing: Missing,
}

impl ApiserverCluster {
    /// Uses the operator's client.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            missing: Missing::default(),
        }
    }

    /// A watch has shown that an object is there, or has changed: it is asked for again.
    pub fn appeared(&self, kind: AskedFor, namespace: &str, name: &str) {
        self.missing.appeared(kind, namespace, name);
    }

    async fn account(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, String>>, Fault> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let ask = async {
            let account = bounded(api.get_metadata_opt(name)).await.map_err(|error| {
                read_fault(
                    &error,
                    "get serviceaccounts",
                    namespace,
                    Reason::CredentialsMissing,
                )
            })?;
            Ok(account.map(|account| account.metadata.annotations.unwrap_or_default()))
        };
        self.missing
            .ask(AskedFor::ServiceAccount, namespace, name, ask)
            .await
    }
}

impl Cluster for ApiserverCluster {
    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, Fault>> {
        self.account(namespace, name).boxed()
    }

    fn token<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        audience: Audience<'a>,
    ) -> BoxFuture<'a, Result<Token, Fault>> {
        async move {
            let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            let annotations = self.account(namespace, name).await?;
            account_allowed(name, &annotations.unwrap_or_default())?;
            let request = TokenRequest {
                spec: Some(TokenRequestSpec {
                    audiences: match audience {
                        Audience::Named(audience) => Some(vec![audience.to_owned()]),
                        Audience::Cluster => None,
                    },
                    expiration_seconds: Some(TOKEN_SECONDS),
                    ..TokenRequestSpec::default()
                }),
                ..TokenRequest::default()
            };
            let answer = bounded(api.create_token_request(name, &PostParams::default(), &request))
                .await
                .map_err(|error| {
                    if code(&error) == Some(404) {
                        Fault::denied(
                            Reason::ServiceAccountMissing,
                            format!(
                                "ServiceAccount {name} does not exist in namespace {namespace}; create it"
                            ),
                        )
                    } else {
                        read_fault(
                            &error,
                            "create serviceaccounts/token",
                            namespace,
                            Reason::TokenRequestDenied,
                        )
                    }
                })?;
            let token = answer.status.and_then(|status| status.token).unwrap_or_default();
            Ok(Token::new(token))
        }
        .boxed()
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<SecretEntries>, Fault>> {
        async move {
            let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
            let ask = async {
                let secret = bounded(api.get_opt(name)).await.map_err(|error| {
                    read_fault(&error, "get secrets", namespace, Reason::CredentialsMissing)
                })?;
                Ok(secret.map(entries))
            };
            self.missing.ask(AskedFor::Secret, namespace, name, ask).await
        }
        .boxed()
    }
}

/// The entries of a Secret, each moved into a buffer that is wiped.
pub fn entries(secret: Secret) -> SecretEntries {
    let data = secret.data.unwrap_or_default();
    data.into_iter()
        .map(|(name, bytes)| (name, Zeroizing::new(bytes.0)))
        .collect()
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// What lies where a copy should, and the resourceVersion of the object that was read.
///
/// # Errors
/// A refused read names the missing right; a cluster that does not answer is transient.
pub async fn source_facts(
    client: &Client,
    namespace: &str,
    source: &SourceRef,
) -> Result<(String, SourceFacts), Fault> {
    let missing = (String::new(), SourceFacts::ObjectMissing);
    let (version, bytes) = match source.kind {
        SourceKind::Secret => {
            let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
            let found = bounded(api.get_opt(&source.name)).await;
            let Some(secret) =
                found.map_err(|e| read_fault(&e, "get secrets", namespace, Reason::SourceMissing))?
            else {
                return Ok(missing);
            };
            let version = secret.metadata.resource_version.clone().unwrap_or_default();
            (
                version,
                entries(secret).remove(&source.key).map(|bytes| bytes.to_vec()),
            )
        }
        SourceKind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let found = bounded(api.get_opt(&source.name)).await;
            let Some(map) =
                found.map_err(|e| read_fault(&e, "get configmaps", namespace, Reason::SourceMissing))?
            else {
                return Ok(missing);
            };
            let version = map.metadata.resource_version.clone().unwrap_or_default();
            let binary = map
                .binary_data
                .and_then(|mut data| data.remove(&source.key))
                .map(|bytes| bytes.0);
            let text = map
                .data
                .and_then(|mut data| data.remove(&source.key))
                .map(String::into_bytes);
            (version, binary.or(text))
        }
    };
    let facts = match bytes {
        None => SourceFacts::EntryMissing,
        Some(bytes) => unarmor(&bytes, source.armor).map_or(SourceFacts::Unreadable, SourceFacts::Found),
    };
    Ok((version, facts))
}

/// A read that failed: 403 names the missing right, anything else passes by itself.
pub fn read_fault(error: &kube::Error, right: &str, namespace: &str, denied: Reason) -> Fault {
    match code(error) {
        Some(403) => Fault::denied(
            denied,
            format!(
                "the operator may not {right} in namespace {namespace}; grant it that in a Role of that namespace"
            ),
        ),
        Some(code) => Fault::transient(
            Reason::DeliveryFailed,
            format!("the apiserver answered {code} to {right} in namespace {namespace}; it is tried again"),
        ),
        None => Fault::transient(
            Reason::DeliveryFailed,
            format!("the apiserver does not answer to {right} in namespace {namespace}; it is tried again"),
        ),
    }
}
