//! What `wrap`, `unwrap` and `rewrap` share: the seals of a file, reached with the caller's own identity (security rule S14).
//!
//! A file may come from anybody. What it says about *where* and *as whom* (endpoint, role, credentials) is left aside
//! unless the caller trusts the file; what remains of a seal is a KMS key, in a region or in a vault of its own cloud.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, IsTerminal, Write},
    sync::Arc,
};

use super::{Failure, output};
use crate::{
    api::WrappedFormat,
    provider::{self, Bound, Clouds, Kms, Observer, Opened, Tenant},
    seal::{
        Ciphertext, Fault, KeyBytes,
        aws::{self, AwsSeal},
        model::{Cloud, Model, Seal},
        oci::{self, OciSeal},
    },
};

/// A seal as the command line may use it, and what of the file was left aside.
#[derive(Clone, Debug)]
pub(super) struct Offline {
    /// The seal with the caller's own identity.
    pub(super) seal: Seal,
    /// Sentences about what was left aside.
    pub(super) notes: Vec<String>,
}

/// Leaves aside what a file must not decide.
pub(super) fn with_own_identity(seal: &Seal, trust_file: bool) -> Offline {
    let mut notes = Vec::new();
    let mut note = |what: &str, fix: &str| {
        notes.push(format!(
            "seal {:?}: {what} of the file is not used; {fix}",
            seal.name
        ));
    };
    let cloud = match &seal.cloud {
        Cloud::Aws(aws) => Cloud::Aws(aws_with_own_identity(aws, trust_file, &mut note)),
        Cloud::Oci(oci) => Cloud::Oci(oci_with_own_identity(oci, &mut note)),
    };
    let seal = Seal {
        cloud,
        ..seal.clone()
    };
    Offline { seal, notes }
}

const IN_THE_CLUSTER: &str = "what it names lives in the cluster, so your own identity is used";
const THE_OPERATORS: &str = "it means the operator's identity, so your own is used";

fn aws_with_own_identity(aws: &AwsSeal, trust_file: bool, note: &mut impl FnMut(&str, &str)) -> AwsSeal {
    let mut own = aws.clone();
    if !trust_file {
        if own.endpoint.take().is_some() {
            note("the endpoint", "pass --trust-file to use it");
        }
        if own.assume_role.take().is_some() {
            note(
                "assumeRole",
                "pass --trust-file to use it, or take the role before you call",
            );
        }
    }
    // With the caller's identity the provider sends the external id that it would send as the operator.
    if own
        .assume_role
        .as_ref()
        .is_some_and(|role| role.external_id.is_some())
    {
        own.assume_role = None;
        note(
            "assumeRole with an externalID",
            "take the role before you call: aws sts assume-role --external-id …",
        );
    }
    match &aws.credentials {
        aws::Credentials::DefaultChain => {}
        aws::Credentials::ServiceAccount { .. } | aws::Credentials::Secret { .. } => {
            note("the credentials reference", IN_THE_CLUSTER);
        }
        aws::Credentials::PodIdentity | aws::Credentials::InstanceMetadata => {
            note("the credentials setting", THE_OPERATORS);
        }
    }
    own.credentials = aws::Credentials::DefaultChain;
    own
}

/// A vault has no other address than its endpoints, so they are not left aside: without --trust-file they must be Oracle's
/// own, of the realm and region of the key (security rule S1), where only the key's own vault can answer for it.
fn oci_with_own_identity(oci: &OciSeal, note: &mut impl FnMut(&str, &str)) -> OciSeal {
    match &oci.credentials {
        oci::Credentials::ApiKey { .. } | oci::Credentials::WorkloadIdentity { .. } => {
            note("the credentials reference", IN_THE_CLUSTER);
        }
        oci::Credentials::ResourcePrincipal => note("the credentials setting", THE_OPERATORS),
        // Also what stands for no setting at all.
        oci::Credentials::InstancePrincipal | oci::Credentials::Caller => {}
    }
    OciSeal {
        credentials: oci::Credentials::Caller,
        ..oci.clone()
    }
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
    clouds: Clouds,
    namespace: String,
    name: String,
}

impl Caller {
    /// For the seals of one manifest, whose endpoints count as allowed if the caller trusts the file.
    pub(super) fn new<'s>(
        namespace: Option<&str>,
        name: Option<&str>,
        seals: impl Iterator<Item = &'s Seal>,
        trust_file: bool,
    ) -> Self {
        let trusted = seals
            .filter(|_| trust_file)
            .flat_map(|seal| seal.cloud.endpoints())
            .collect();
        let environment = provider::Environment::read();
        let endpoints = environment.endpoints(trusted);
        let settings = provider::Settings::new("autounseal".to_owned(), endpoints, environment);
        Self {
            clouds: Clouds::new(settings, None, Arc::new(Nobody)),
            namespace: namespace.unwrap_or("default").to_owned(),
            name: name.unwrap_or("autounseal").to_owned(),
        }
    }

    /// The same for a SealConfig that was read as a whole.
    pub(super) fn of<'s>(model: &Model, seals: impl Iterator<Item = &'s Seal>, trust_file: bool) -> Self {
        Self::new(Some(&model.id.namespace), Some(&model.id.name), seals, trust_file)
    }

    async fn connect(&self, seal: &Seal) -> Result<Kms, Fault> {
        let tenant = Tenant {
            namespace: &self.namespace,
            name: &self.name,
        };
        self.clouds.connect(seal, tenant).await
    }

    /// Wraps a key.
    pub(super) async fn wrap(
        &self,
        seal: &Seal,
        key: &KeyBytes,
        format: WrappedFormat,
        context: &BTreeMap<String, String>,
    ) -> Result<Ciphertext, Fault> {
        self.connect(seal).await?.wrap(key, format, context).await
    }

    /// Opens a copy; the provider checks which key opened it.
    pub(super) async fn unwrap(
        &self,
        seal: &Seal,
        wrapped: &Ciphertext,
        format: WrappedFormat,
        context: &BTreeMap<String, String>,
    ) -> Result<Opened, Fault> {
        self.connect(seal).await?.unwrap(format, wrapped, context).await
    }

    /// Opens a copy of the operator's; the provider checks which key opened it.
    pub(super) async fn unwrap_bound(
        &self,
        seal: &Seal,
        wrapped: &Ciphertext,
        bound: &Bound<'_>,
        recorded: &str,
    ) -> Result<Opened, Fault> {
        self.connect(seal)
            .await?
            .unwrap_bound(wrapped, bound, recorded)
            .await
    }
}

/// A command has no metrics.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn kms_request(&self, _: &'static str, _: &'static str, _: &'static str, _: f64) {}

    fn imds_probe(&self, _: &'static str) {}

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

    fn own(seal: &Seal, trust_file: bool) -> (AwsSeal, Vec<String>) {
        let Offline { seal, notes } = with_own_identity(seal, trust_file);
        match seal.cloud {
            Cloud::Aws(aws) => (aws, notes),
            Cloud::Oci(_) => panic!("the cloud changed"),
        }
    }

    #[test]
    fn a_vault_is_asked_as_the_caller() {
        let seal = seals(&json!([{"name": "oci", "ocikms": {
            "keyID": "ocid1.key.oc1.iad.v.k",
            "cryptoEndpoint": "https://v-crypto.kms.us-ashburn-1.oraclecloud.com",
            "managementEndpoint": "https://v-management.kms.us-ashburn-1.oraclecloud.com",
            "credentials": {"apiKey": {"secretRef": {"name": "s"}}},
        }}]))
        .remove(0);
        let Offline { seal, notes } = with_own_identity(&seal, false);
        let Cloud::Oci(oci) = seal.cloud else {
            panic!("the cloud changed")
        };
        assert_eq!(oci.credentials, oci::Credentials::Caller);
        assert!(notes[0].contains("lives in the cluster"), "{notes:?}");
    }

    #[test]
    fn a_file_decides_neither_where_nor_as_whom() {
        let (aws, notes) = own(&hostile(), false);
        assert_eq!(aws.endpoint, None);
        assert_eq!(aws.assume_role, None);
        assert_eq!(aws.credentials, aws::Credentials::DefaultChain);
        assert_eq!(notes.len(), 3);
    }

    #[test]
    fn an_external_id_cannot_be_sent_in_the_operators_way() {
        let mut seal = hostile();
        if let Cloud::Aws(aws) = &mut seal.cloud {
            aws.assume_role.as_mut().unwrap().external_id = Some("4711".to_owned());
        }
        let (aws, notes) = own(&seal, true);
        assert_eq!(aws.assume_role, None);
        assert!(notes[0].contains("--external-id"));
    }

    #[test]
    fn a_trusted_file_decides_endpoint_and_role_but_not_credentials() {
        let (aws, notes) = own(&hostile(), true);
        assert_eq!(aws.endpoint.as_deref(), Some("https://evil.example"));
        assert!(aws.assume_role.is_some());
        assert_eq!(aws.credentials, aws::Credentials::DefaultChain);
        assert!(notes[0].contains("lives in the cluster"), "{notes:?}");
    }
}
