//! `autounseal doctor`: walks the way to each seal's key, step by step, and says where it ends and why.

use std::{path::PathBuf, sync::Arc, time::Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

mod report;

use report::{Outcome, Report, Step, Walk};

use super::{
    Done, Failure, Output, check,
    cluster::{self, ClusterArgs},
    manifest, offline, output, unwrap,
};
use crate::{
    api::{Reason, SealConfig},
    controller::preflight,
    kube_ext::{
        bounded,
        cluster::{ApiserverCluster, read_fault, source_facts},
        facts,
    },
    provider::{self, Clouds, Kms, Tenant},
    seal::{
        Ciphertext, Fault,
        checks::{endpoints_allowed, identity_allowed, key_allowed, key_granted, source_found},
        endpoint::EndpointPolicy,
        model::{self, Cloud, Copy, Model, Seal, Source},
        observed::NamespaceFacts,
    },
};

/// Walk every step to a SealConfig's keys, and say which one fails and why
///
/// For each seal, in order: the endpoint, whether the namespace may use the identity, the credentials, signing in, the
/// key's state, for a seal that pods use themselves what a server does when it starts (a random value is encrypted and
/// decrypted), and opening each copy that names the seal (what opens is thrown away at once). The walk to a seal ends at
/// its first failure, with the finding, the evidence and the fix.
///
/// A SealConfig in the cluster is walked with what it names: its Secrets and ServiceAccounts, read with your own rights in
/// the cluster. Where it means the operator's own identity, the identity of the machine on which doctor runs is tried: run it
/// in a pod beside the operator to see what the operator sees (kubectl debug, kubectl exec). With -f a file is walked with your own cloud identity, as
/// `wrap` and `unwrap` do, and the hosts are printed before anything is sent.
///
/// Examples:
///
///   autounseal doctor -n billing app
///   kubectl autounseal doctor -n billing app -o json
///   autounseal doctor -f seal.yaml
///
/// Exit codes: 0 every step was taken, 1 one failed, 2 misuse.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct DoctorArgs {
    /// The SealConfig in the cluster
    #[arg(value_name = "NAME", required_unless_present = "file")]
    name: Option<String>,
    /// Its namespace. Default: that of the context, or of the file
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
    /// A file with the SealConfig, YAML or JSON, at most 1 MiB, instead of a cluster; NAME chooses among several
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Use the endpoints and roles that the file names
    #[arg(long, requires = "file")]
    trust_file: bool,
    /// KMS endpoints that the operator allows beyond the clouds' own (its flag of the same name)
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    allowed_endpoints: Vec<String>,
    /// What the operator sends as external id when it takes a role with its own identity (its flag of the same name)
    #[arg(long, value_name = "TEXT", default_value = "autounseal")]
    binding_domain: String,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How to print the report
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(super) async fn run(args: &DoctorArgs) -> Done {
    let report = match &args.file {
        Some(file) => of_file(args, file).await?,
        None => of_cluster(args).await?,
    };
    match args.output {
        Output::Json => output::json(&report.json()),
        Output::Text => output::report(&report.text()),
    }
    if report.is_well() {
        Ok(())
    } else {
        Err(Failure::Told)
    }
}

/// What a walk is taken with.
struct Guide<'a> {
    model: &'a Model,
    clouds: Clouds,
    endpoints: EndpointPolicy,
    /// `None` = a file, which asks nobody's leave.
    namespace: Option<Result<NamespaceFacts, Fault>>,
    bytes: Bytes<'a>,
}

/// Where the bytes of copies come from.
enum Bytes<'a> {
    Cluster(Client),
    File(&'a [manifest::Object]),
}

async fn of_file(args: &DoctorArgs, file: &std::path::Path) -> Result<Report, Failure> {
    let (object, others) = manifest::one_seal_config(file, args.name.as_deref(), args.namespace.as_deref())?;
    let mut model = check::check(&object).map_err(|problems| unwrap::wrong(&object, &problems))?;
    for seal in &mut model.seals {
        let own = offline::with_own_identity(seal, args.trust_file);
        own.notes.iter().for_each(|note| output::note(note));
        *seal = own.seal;
    }
    let mut allowed = args.allowed_endpoints.clone();
    if args.trust_file {
        allowed.extend(model.seals.iter().flat_map(|seal| seal.cloud.endpoints()));
    }
    let (clouds, endpoints) = clouds(args, allowed, None);
    for seal in &model.seals {
        output::note(&format!(
            "seal {:?}: requests go to {}",
            seal.name,
            host(seal, &endpoints)
        ));
    }
    let guide = Guide {
        model: &model,
        clouds,
        endpoints,
        namespace: None,
        bytes: Bytes::File(&others),
    };
    Ok(Report {
        of: object.place.clone(),
        fault: None,
        walks: guide.walk_all().await,
        operator: None,
    })
}

async fn of_cluster(args: &DoctorArgs) -> Result<Report, Failure> {
    let cluster = cluster::connect(&args.cluster).await?;
    let namespace = args.namespace.clone().unwrap_or(cluster.namespace);
    let name = args.name.clone().unwrap_or_default();
    let config = cluster::seal_config(&cluster.client, &namespace, &name).await?;
    let mut report = Report {
        of: format!("{namespace}/{name}"),
        fault: None,
        walks: Vec::new(),
        operator: said_by_the_operator(&config),
    };
    let model = match model::parse(&config) {
        Ok(model) => model,
        Err(fault) => {
            report.fault = Some(fault);
            return Ok(report);
        }
    };
    let asked = Arc::new(ApiserverCluster::new(cluster.client.clone()));
    let (clouds, endpoints) = clouds(args, args.allowed_endpoints.clone(), Some(asked));
    let guide = Guide {
        model: &model,
        clouds,
        endpoints,
        namespace: Some(namespace_facts(&cluster.client, &namespace).await),
        bytes: Bytes::Cluster(cluster.client),
    };
    report.walks = guide.walk_all().await;
    Ok(report)
}

fn clouds(
    args: &DoctorArgs,
    allowed: Vec<String>,
    cluster: Option<Arc<dyn provider::Cluster>>,
) -> (Clouds, EndpointPolicy) {
    let environment = provider::Environment::read();
    let endpoints = environment.endpoints(allowed);
    let settings = provider::Settings::new(args.binding_domain.clone(), endpoints.clone(), environment);
    (
        Clouds::new(settings, cluster, Arc::new(offline::Nobody)),
        endpoints,
    )
}

fn said_by_the_operator(config: &SealConfig) -> Option<(String, String, String)> {
    let conditions = &config.status.as_ref()?.conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    Some((ready.status.clone(), ready.reason.clone(), ready.message.clone()))
}

/// What the namespace's label and annotation allow; the operator's flags are not known here.
async fn namespace_facts(client: &Client, namespace: &str) -> Result<NamespaceFacts, Fault> {
    let api: Api<Namespace> = Api::all(client.clone());
    let found = bounded(api.get_metadata(namespace)).await.map_err(|error| {
        read_fault(
            &error,
            "get namespaces",
            namespace,
            Reason::OperatorIdentityNotAllowed,
        )
    })?;
    Ok(facts::namespace(&found.metadata))
}

/// The host that a seal's requests go to.
fn host(seal: &Seal, endpoints: &EndpointPolicy) -> String {
    match &seal.cloud {
        Cloud::Aws(aws) => match (
            aws.endpoint.as_ref().or(endpoints.environment.first()),
            &aws.region,
        ) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(region)) => format!("kms.{region}.{}", region.dns_suffix()),
            (None, None) => "KMS in the region of your own AWS configuration".to_owned(),
        },
        Cloud::Oci(oci) => format!("{} and {}", oci.crypto_endpoint, oci.management_endpoint),
    }
}

impl Guide<'_> {
    /// One seal after the other: the times of one say nothing of another's.
    async fn walk_all(&self) -> Vec<Walk> {
        let mut walks = Vec::new();
        for seal in &self.model.seals {
            let mut walk = Walk {
                seal: seal.name.clone(),
                provider: seal.cloud.provider(),
                key: seal.cloud.configured_key(),
                steps: Vec::new(),
            };
            // The walk ends where a step fails, and the step is in it.
            let _ = self.walk(seal, &mut walk.steps).await;
            walks.push(walk);
        }
        walks
    }

    async fn walk(&self, seal: &Seal, steps: &mut Vec<Step>) -> Result<(), Ended> {
        take(steps, "endpoint", async {
            endpoints_allowed(seal, &self.endpoints)
                .map(|()| (Outcome::Well(host(seal, &self.endpoints)), ()))
        })
        .await?;
        if seal.cloud.is_operators() && self.namespace.is_some() {
            take(steps, "allowed", async { self.allowed(seal) }).await?;
        }
        let tenant = Tenant {
            namespace: &self.model.id.namespace,
            name: &self.model.id.name,
        };
        let kms = take(steps, "credentials", async {
            let kms = self.clouds.connect(seal, tenant).await?;
            let source = seal.cloud.credential_source();
            let seen = kms
                .identity()
                .map_or_else(|| source.clone(), |who| format!("{source}: {who}"));
            Ok((Outcome::Well(seen), kms))
        })
        .await?;
        take(steps, "sign in", async {
            kms.authenticate().await?;
            Ok((
                Outcome::Well(
                    kms.identity()
                        .unwrap_or_else(|| "credentials were had".to_owned()),
                ),
                (),
            ))
        })
        .await?;
        let key = take(steps, "key", async { described(&kms).await }).await?;
        if self.model.is_native(seal) {
            take(steps, "server", async {
                // A namespace that cannot be read limits nothing here: it is the caller's own identity that asks.
                let facts = match &self.namespace {
                    Some(Ok(facts)) => facts.clone(),
                    Some(Err(_)) | None => NamespaceFacts::default(),
                };
                preflight::look(&kms, self.model, seal, &facts, jiff::Timestamp::now()).await?;
                let seen = "described the key, encrypted and decrypted a random value, as a server does when it starts";
                Ok((Outcome::Well(seen.to_owned()), ()))
            })
            .await?;
        }
        let key = key.or_else(|| seal.cloud.full_key());
        let copies: Vec<(&str, &Copy)> = self
            .model
            .keys
            .iter()
            .flat_map(|key| key.copies.iter().map(move |copy| (key.name.as_str(), copy)))
            .filter(|(_, copy)| copy.seal == seal.name)
            .collect();
        if copies.is_empty() {
            take(steps, "open", async {
                Ok((Outcome::Skipped("no copy names this seal".into()), ()))
            })
            .await?;
        }
        for (name, copy) in copies {
            take(steps, "open", async {
                if let Some(key) = &key {
                    self.granted(seal, copy, key)?;
                }
                let bytes = self.bytes_of(copy).await?;
                let opened = kms.unwrap(copy.format, &bytes, &copy.context).await?;
                self.granted(seal, copy, &opened.key_id)?;
                Ok((Outcome::Well(format!("key {name}, by {}", opened.key_id)), ()))
            })
            .await?;
        }
        Ok(())
    }

    /// With the identity of this machine nothing is asked that the operator would not ask with its own.
    fn allowed(&self, seal: &Seal) -> Result<(Outcome, ()), Fault> {
        if let Some(facts) = &self.namespace {
            identity_allowed(self.model, seal, facts.as_ref().map_err(Clone::clone)?)?;
        }
        let said =
            "by the namespace's label; the identity of this machine stands for the operator's from here on";
        Ok((Outcome::Well(said.to_owned()), ()))
    }

    /// The same for one copy, by the key that it is to be opened with.
    fn granted(&self, seal: &Seal, copy: &Copy, key: &str) -> Result<(), Fault> {
        match &self.namespace {
            Some(Ok(facts)) => {
                key_allowed(&self.model.id.namespace, key, facts)?;
                key_granted(self.model, seal, copy, key, facts)
            }
            Some(Err(_)) | None => Ok(()),
        }
    }

    async fn bytes_of(&self, copy: &Copy) -> Result<Ciphertext, Fault> {
        let namespace = &self.model.id.namespace;
        match (&copy.source, &self.bytes) {
            (Source::Inline(bytes), _) => Ok(bytes.clone()),
            (Source::Entry(_), Bytes::File(others)) => unwrap::source::wrapped(copy, others, namespace)
                .map_err(|why| Fault::invalid(Reason::SourceMissing, why)),
            (Source::Entry(entry), Bytes::Cluster(client)) => {
                let (_, found) = source_facts(client, namespace, entry).await?;
                source_found(entry, Some(&found)).cloned()
            }
        }
    }
}

/// What the KMS says of the key, and its full name; that it may not be asked is no fault.
async fn described(kms: &Kms) -> Result<(Outcome, Option<String>), Fault> {
    match kms.describe().await {
        Ok(description) => {
            if let Some(fault) = description.fault {
                return Err(fault);
            }
            let said = format!("{} can be used", description.key);
            Ok((Outcome::Well(said), Some(description.key)))
        }
        Err(fault) if fault.reason == Reason::AccessDenied => {
            let said = "the identity may not describe the key, which is no fault";
            Ok((Outcome::Note(said.to_owned()), None))
        }
        Err(fault) => Err(fault),
    }
}

/// The walk has ended.
struct Ended;

/// Takes a step and writes down how it went.
async fn take<T>(
    steps: &mut Vec<Step>,
    name: &'static str,
    step: impl Future<Output = Result<(Outcome, T), Fault>>,
) -> Result<T, Ended> {
    let started = Instant::now();
    let (outcome, value) = match step.await {
        Ok((outcome, value)) => (outcome, Ok(value)),
        Err(fault) => (Outcome::Failed(fault), Err(Ended)),
    };
    steps.push(Step {
        name,
        outcome,
        took: started.elapsed(),
    });
    value
}
