//! What `wrap` and `unwrap` share: the seals of a file, reached with the caller's own identity (security rule S14).
//!
//! A file may come from anybody. What it says about *where* and *as whom* (endpoint, role, credentials) is left aside
//! unless the caller trusts the file; what remains of a seal is a key of AWS KMS in a region.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, IsTerminal, Write},
    sync::Arc,
};

use super::{Failure, manifest::Object, output};
use crate::{
    api::WrappedFormat,
    provider::{
        Observer, Opened, Tenant,
        aws::{Aws, Kms, Settings},
    },
    seal::{
        Ciphertext, Fault, KeyBytes,
        aws::{AwsSeal, Credentials},
        model::{Cloud, Seal},
    },
};

/// A seal as the command line may use it, and what of the file was left aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offline {
    /// The seal with the caller's own identity.
    pub(super) seal: AwsSeal,
    /// Sentences about what was left aside.
    pub(super) notes: Vec<String>,
}

/// Leaves aside what a file must not decide.
pub(super) fn with_own_identity(seal: &Seal, trust_file: bool) -> Offline {
    let Cloud::Aws(aws) = &seal.cloud;
    let mut own = aws.clone();
    let mut notes = Vec::new();
    let mut note = |what: &str, fix: &str| {
        notes.push(format!("seal {:?}: {what} of the file is not used; {fix}", seal.name));
    };
    if !trust_file {
        if own.endpoint.take().is_some() {
            note("the endpoint", "pass --trust-file to use it");
        }
        if own.assume_role.take().is_some() {
            note("assumeRole", "pass --trust-file to use it, or take the role before you call");
        }
    }
    // With the caller's identity the provider sends the external id that it would send as the operator.
    if own.assume_role.as_ref().is_some_and(|role| role.external_id.is_some()) {
        own.assume_role = None;
        note(
            "assumeRole with an externalID",
            "take the role before you call: aws sts assume-role --external-id …",
        );
    }
    match &aws.credentials {
        Credentials::DefaultChain => {}
        Credentials::ServiceAccount { .. } | Credentials::Secret { .. } => note(
            "the credentials reference",
            "what it names lives in the cluster, so your own AWS identity is used",
        ),
        Credentials::PodIdentity | Credentials::InstanceMetadata => note(
            "the credentials setting",
            "it means the operator's identity, so your own AWS identity is used",
        ),
    }
    own.credentials = Credentials::DefaultChain;
    Offline { seal: own, notes }
}

/// Asks at the terminal, which is not standard input: that may carry a key.
///
/// # Errors
/// Misuse when there is no terminal; no when the answer is not `yes`.
pub(super) fn confirm(question: &str, without_terminal: &str) -> Result<(), Failure> {
    let terminal = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .ok()
        .filter(IsTerminal::is_terminal);
    let Some(terminal) = terminal else {
        return Err(Failure::Misuse(without_terminal.to_owned()));
    };
    let cannot = |error: io::Error| Failure::Misuse(format!("cannot ask at the terminal: {error}"));
    write!(&terminal, "{}", output::escaped(question)).map_err(cannot)?;
    let mut answer = String::new();
    // Nobody types more than this; a terminal that does is no person.
    let mut line = io::BufReader::new(io::Read::take(&terminal, 256));
    line.read_line(&mut answer).map_err(cannot)?;
    if answer.trim() == "yes" {
        Ok(())
    } else {
        Err(Failure::No("nothing was sent".to_owned()))
    }
}

/// The clouds, as the caller.
pub(super) struct Caller {
    aws: Aws,
    namespace: String,
    name: String,
}

impl Caller {
    /// For the seals of one manifest. Endpoints that are still in a seal are those of a file that the caller trusts.
    pub(super) fn new<'s>(object: &Object, seals: impl Iterator<Item = &'s AwsSeal>) -> Self {
        let trusted = seals.filter_map(|seal| seal.endpoint.clone()).collect();
        let settings = Settings::from_environment("autounseal".to_owned(), trusted);
        Self {
            aws: Aws::new(settings, None, Arc::new(Nobody)),
            namespace: object.namespace().unwrap_or("default").to_owned(),
            name: object.name().unwrap_or("autounseal").to_owned(),
        }
    }

    async fn connect(&self, seal: &AwsSeal) -> Result<Kms, Fault> {
        let tenant = Tenant {
            namespace: &self.namespace,
            name: &self.name,
        };
        self.aws.connect(seal, tenant).await
    }

    /// Wraps a key.
    pub(super) async fn wrap(
        &self,
        seal: &AwsSeal,
        key: &KeyBytes,
        format: WrappedFormat,
        context: &BTreeMap<String, String>,
    ) -> Result<Ciphertext, Fault> {
        let (wrapped, _) = self.connect(seal).await?.wrap(key, format, context).await?;
        Ok(Ciphertext::new(wrapped))
    }

    /// Opens a copy; the provider checks which key opened it.
    pub(super) async fn unwrap(
        &self,
        seal: &AwsSeal,
        wrapped: &Ciphertext,
        format: WrappedFormat,
        context: &BTreeMap<String, String>,
    ) -> Result<Opened, Fault> {
        self.connect(seal).await?.unwrap(format, wrapped, context).await
    }
}

/// A command has no metrics.
struct Nobody;

impl Observer for Nobody {
    fn kms_request(&self, _: &'static str, _: &'static str, _: &'static str, _: f64) {}

    fn credential_expiry(&self, _: &'static str, _: &'static str, _: i64) {}
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{api::SealConfig, seal::model};

    pub(in crate::cli) fn seals(specs: &Value) -> Vec<Seal> {
        let config: SealConfig = serde_json::from_value(json!({
            "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
            "metadata": {"name": "c", "namespace": "n"}, "spec": {"seals": specs},
        }))
        .unwrap();
        model::parse(&config).unwrap().seals
    }

    fn hostile() -> Seal {
        seals(&json!([{"name": "aws", "awskms": {
            "kmsKeyID": "alias/a", "region": "eu-west-1", "endpoint": "https://evil.example",
            "assumeRole": {"roleARN": "arn:aws:iam::123456789012:role/x"},
            "credentials": {"secretRef": {"name": "s"}},
        }}]))
        .remove(0)
    }

    #[test]
    fn a_file_decides_neither_where_nor_as_whom() {
        let Offline { seal, notes } = with_own_identity(&hostile(), false);
        assert_eq!(seal.endpoint, None);
        assert_eq!(seal.assume_role, None);
        assert_eq!(seal.credentials, Credentials::DefaultChain);
        assert_eq!(notes.len(), 3);
    }

    #[test]
    fn an_external_id_cannot_be_sent_in_the_operators_way() {
        let mut seal = hostile();
        let Cloud::Aws(aws) = &mut seal.cloud;
        aws.assume_role.as_mut().unwrap().external_id = Some("4711".to_owned());
        let offline = with_own_identity(&seal, true);
        assert_eq!(offline.seal.assume_role, None);
        assert!(offline.notes[0].contains("--external-id"));
    }

    #[test]
    fn a_trusted_file_decides_endpoint_and_role_but_not_credentials() {
        let Offline { seal, notes } = with_own_identity(&hostile(), true);
        assert_eq!(seal.endpoint.as_deref(), Some("https://evil.example"));
        assert!(seal.assume_role.is_some());
        assert_eq!(seal.credentials, Credentials::DefaultChain);
        assert!(notes[0].contains("lives in the cluster"), "{notes:?}");
    }
}
