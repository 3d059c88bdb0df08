//! The provider against a scripted server on loopback and a scripted cluster.

mod bound;
mod credentials;
mod environment;
mod kms;
mod network;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures::{FutureExt, future::BoxFuture};
use zeroize::Zeroizing;

use super::*;
use crate::seal::endpoint::EndpointPolicy;
use crate::{
    provider::{
        Audience, Format, SecretEntries, Timeouts, Token,
        double::{self, Double, Reply, Seen},
    },
    seal::{Ciphertext, KeyBytes},
};

pub(super) const ARN: &str = "arn:aws:kms:us-east-1:123456789012:key/10f10041-be4c-4765-9a36-fa27195e0cc3";
pub(super) const OTHER_ARN: &str =
    "arn:aws:kms:us-east-1:123456789012:key/ffffffff-be4c-4765-9a36-fa27195e0cc3";
pub(super) const ROLE: &str = "arn:aws:iam::123456789012:role/unseal";
pub(super) const TENANT: Tenant<'static> = Tenant {
    namespace: "team-a",
    name: "bao",
};

/// A cluster of maps.
#[derive(Default)]
pub(super) struct FakeCluster {
    pub(super) accounts: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    pub(super) secrets: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
    pub(super) tokens: Mutex<Vec<(String, String)>>,
    pub(super) refuse_token: bool,
}

impl Cluster for FakeCluster {
    fn service_account<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<BTreeMap<String, String>>, Fault>> {
        assert_eq!(namespace, TENANT.namespace);
        async move { Ok(self.accounts.lock().unwrap().get(name).cloned()) }.boxed()
    }

    fn token<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        audience: Audience<'a>,
    ) -> BoxFuture<'a, Result<Token, Fault>> {
        assert_eq!(namespace, TENANT.namespace);
        async move {
            if self.refuse_token {
                return Err(Fault::denied(Reason::TokenRequestDenied, "no"));
            }
            let Audience::Named(audience) = audience else {
                panic!("AWS is sent a token for the cluster itself");
            };
            let mut tokens = self.tokens.lock().unwrap();
            tokens.push((name.to_owned(), audience.to_owned()));
            Ok(Token::new(format!("token-{}", tokens.len())))
        }
        .boxed()
    }

    fn secret<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<SecretEntries>, Fault>> {
        assert_eq!(namespace, TENANT.namespace);
        async move {
            let secrets = self.secrets.lock().unwrap();
            Ok(secrets.get(name).map(|entries| {
                let bytes = |text: &String| Zeroizing::new(text.clone().into_bytes());
                entries
                    .iter()
                    .map(|(name, text)| (name.clone(), bytes(text)))
                    .collect()
            }))
        }
        .boxed()
    }
}

/// Remembers what it was told.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) requests: Mutex<Vec<(&'static str, &'static str)>>,
    pub(super) expiries: Mutex<Vec<(&'static str, i64)>>,
}

impl Observer for Notes {
    fn kms_request(
        &self,
        provider: &'static str,
        operation: &'static str,
        outcome: &'static str,
        seconds: f64,
    ) {
        assert_eq!(provider, "awskms");
        assert!(seconds >= 0.0);
        self.requests.lock().unwrap().push((operation, outcome));
    }

    fn imds_probe(&self, _: &'static str) {}

    fn credential_expiry(&self, _: &'static str, source: &'static str, unix_seconds: i64) {
        self.expiries.lock().unwrap().push((source, unix_seconds));
    }
}

/// The provider under test and what stands around it.
pub(super) struct Bench {
    pub(super) aws: Arc<Aws>,
    pub(super) cluster: Arc<FakeCluster>,
    pub(super) notes: Arc<Notes>,
    /// Seconds by which the provider's clock runs ahead.
    pub(super) ahead: Arc<AtomicU64>,
}

/// For servers that never answer: whoever does has the usual time, also on a busy machine.
pub(super) fn quick() -> Timeouts {
    Timeouts {
        connect: Duration::from_millis(300),
        attempt: Duration::from_millis(400),
        operation: Duration::from_millis(600),
    }
}

impl Bench {
    /// Everything goes to one server; the cluster has Secret `aws` and ServiceAccount `bao`.
    pub(super) fn at(url: &str) -> Self {
        Self::with(
            url,
            FakeCluster::default(),
            &(Arc::new(http::SystemLookup) as http::Lookup),
            Timeouts::default(),
        )
    }

    pub(super) fn with(url: &str, cluster: FakeCluster, lookup: &http::Lookup, timeouts: Timeouts) -> Self {
        let endpoint = (!url.is_empty()).then(|| url.to_owned());
        let environment = Environment {
            kms_endpoint: endpoint.clone(),
            sts_endpoint: endpoint.clone(),
            endpoints: endpoint.into_iter().collect(),
            ..Environment::default()
        };
        cluster.secrets.lock().unwrap().insert(
            "aws".into(),
            [
                ("access_key", "AKIAIOSFODNN7EXAMPLE"),
                ("secret_key", "secret/one+two"),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        );
        cluster.accounts.lock().unwrap().insert(
            "bao".into(),
            [("eks.amazonaws.com/role-arn".to_owned(), ROLE.to_owned())].into(),
        );
        let (cluster, notes) = (Arc::new(cluster), Arc::new(Notes::default()));
        let ahead = Arc::new(AtomicU64::new(0));
        let settings = Settings {
            pace: crate::provider::pace::Pace::new(crate::seal::KMS_REQUESTS_PER_SECOND),
            binding_domain: "prod".into(),
            endpoints: EndpointPolicy {
                environment: environment.endpoints.clone(),
                ..EndpointPolicy::default()
            },
            environment,
            timeouts,
            clock: {
                let ahead = Arc::clone(&ahead);
                Arc::new(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::SeqCst)))
            },
        };
        let aws = Aws::with_lookup(
            settings,
            Some(Arc::clone(&cluster) as _),
            Arc::clone(&notes) as _,
            lookup,
        );
        Self {
            aws: Arc::new(aws),
            cluster,
            notes,
            ahead,
        }
    }

    pub(super) async fn kms(&self, seal: &AwsSeal) -> Kms {
        self.aws.connect(seal, TENANT).await.unwrap()
    }

    pub(super) fn pass(&self, seconds: u64) {
        self.ahead.fetch_add(seconds, Ordering::SeqCst);
    }
}

pub(super) fn secret_ref() -> Credentials {
    Credentials::Secret {
        name: "aws".into(),
        access_key_id: "access_key".into(),
        secret_access_key: "secret_key".into(),
        session_token: "session_token".into(),
    }
}

pub(super) fn service_account() -> Credentials {
    Credentials::ServiceAccount {
        name: "bao".into(),
        role_arn: None,
    }
}

pub(super) fn seal(key: &str) -> AwsSeal {
    AwsSeal {
        key: key.parse().unwrap(),
        former: vec![],
        account: None,
        region: "us-east-1".parse().ok(),
        endpoint: None,
        assume_role: None,
        credentials: secret_ref(),
    }
}

pub(super) fn none() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// A KMS that "encrypts" by reversing bytes, under one key.
pub(super) fn toy(seen: &Seen) -> Reply {
    let request = seen.json();
    let bytes = |field: &str| {
        data_encoding::BASE64
            .decode(request[field].as_str().unwrap().as_bytes())
            .unwrap()
    };
    let reversed = |field: &str| {
        let mut bytes = bytes(field);
        bytes.reverse();
        data_encoding::BASE64.encode(&bytes)
    };
    match seen.operation.as_str() {
        "Encrypt" => Reply::json(&serde_json::json!({"KeyId": ARN, "CiphertextBlob": reversed("Plaintext")})),
        "Decrypt" => Reply::json(&serde_json::json!({"KeyId": ARN, "Plaintext": reversed("CiphertextBlob")})),
        "DescribeKey" => description(ARN, "Enabled"),
        other => panic!("{other}"),
    }
}

pub(super) fn description(arn: &str, state: &str) -> Reply {
    Reply::json(&serde_json::json!({"KeyMetadata": {
        "KeyId": arn.rsplit('/').next(), "Arn": arn, "KeyState": state,
        "KeySpec": "SYMMETRIC_DEFAULT", "KeyUsage": "ENCRYPT_DECRYPT",
    }}))
}

pub(super) fn count(seen: &Double, operation: &str) -> usize {
    seen.seen()
        .iter()
        .filter(|seen| seen.operation == operation)
        .count()
}

pub(super) fn counter() -> Arc<AtomicUsize> {
    Arc::default()
}
