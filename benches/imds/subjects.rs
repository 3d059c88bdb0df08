//! Who is asked for the credentials of the node. Each runs in a fresh process, in the pod's namespace, with an environment
//! that says nothing but the region, and measures itself from its first call to the verdict: what a process costs to start
//! is in no figure.

use std::{
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    time::Instant,
};

use autounseal::{
    api::SealConfig,
    provider::{self, Clouds, Observer, Tenant},
    seal::model,
};
use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError};
use serde_json::json;

use crate::{netns::Network, operator, stage::repository};

/// Who is asked.
#[derive(Clone, Copy)]
pub enum Subject {
    Ours,
    AwsConfig,
    Botocore,
}

/// What it said, and when.
pub struct Told {
    pub seconds: f64,
    pub words: String,
}

const OURS: &str = "--ours";
const AWS_CONFIG: &str = "--aws-config";
/// Prints what this address of the namespace's loopback answers to a GET of `/metrics`.
const METRICS: &str = "--metrics";

const BOTOCORE: &str = "
import time
import botocore.session
start = time.perf_counter()
found = botocore.session.get_session().get_credentials()
print(time.perf_counter() - start, 'credentials' if found else '`None`')
";

/// Nobody listens there.
const CLOSED: &str = "http://127.0.0.1:9";

impl Subject {
    pub const ALL: [Self; 3] = [Self::Ours, Self::AwsConfig, Self::Botocore];

    /// With the version of what is not ours.
    pub fn name(self) -> String {
        match self {
            Self::Ours => "this operator".to_owned(),
            Self::AwsConfig => format!("`aws-config` {}, default chain", locked("aws-config")),
            Self::Botocore => {
                let version = "import botocore; print(botocore.__version__)";
                let output = Command::new(python()).args(["-c", version]).output().unwrap();
                format!("botocore {}", String::from_utf8(output.stdout).unwrap().trim())
            }
        }
    }

    /// Asks once; `address` is where the service is looked for, if not at its own.
    pub fn ask(self, network: &Network, address: Option<&str>) -> Told {
        let before = network.seen().len();
        let mut command = match self {
            Self::Ours => in_pod(network, &[&itself(), OURS]),
            Self::AwsConfig => in_pod(network, &[&itself(), AWS_CONFIG]),
            Self::Botocore => in_pod(network, &[&python(), "-c", BOTOCORE]),
        };
        command
            .env("HOME", "/nonexistent")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL_KMS", CLOSED);
        if let Some(address) = address {
            command.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("http://{address}"));
        }
        let text = output(&mut command);
        let (seconds, words) = text.trim().split_once(' ').unwrap_or_else(|| panic!("{text:?}"));
        let by_version_1 = network.seen()[before..]
            .iter()
            .any(|(method, path, token)| method == "GET" && path.ends_with("/node-role") && !token);
        let version = if by_version_1 { " by IMDSv1" } else { "" };
        Told {
            seconds: seconds.parse().unwrap(),
            words: format!("{words}{version}"),
        }
    }
}

/// The metrics of an operator in the pod's namespace.
pub fn metrics(network: &Network, address: &str) -> String {
    output(&mut in_pod(network, &[&itself(), METRICS, address]))
}

/// Plays a subject, if the arguments name one.
pub async fn run(arguments: &[String]) -> bool {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let started = Instant::now();
    let (at, said) = match words.as_slice() {
        [OURS] => ours().await,
        [AWS_CONFIG] => aws_config().await,
        [METRICS, address] => {
            let answer = operator::get(address.parse().unwrap(), "/metrics");
            print!("{}", answer.expect("the operator answers").1);
            return true;
        }
        _ => return false,
    };
    println!("{} {said}", at.duration_since(started).as_secs_f64());
    true
}

/// What a SealConfig with `instanceMetadata` goes through. With credentials it goes on to a KMS, which is not measured.
async fn ours() -> (Instant, String) {
    let environment = provider::Environment::read();
    let endpoints = environment.endpoints(Vec::new());
    let settings = provider::Settings::new("bench".to_owned(), endpoints, environment);
    let loaded = Arc::new(Loaded::default());
    let clouds = Clouds::new(settings, None, loaded.clone());
    let config: SealConfig = serde_json::from_value(json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "bench", "namespace": "bench"},
        "spec": {"seals": [{"name": "aws", "awskms": {
            "kmsKeyID": "alias/bench", "region": "us-east-1", "credentials": {"instanceMetadata": {}},
        }}]},
    }))
    .unwrap();
    let seal = model::parse(&config).unwrap().seals.remove(0);
    let tenant = Tenant {
        namespace: "bench",
        name: "bench",
    };
    let kms = clouds.connect(&seal, tenant).await.unwrap();
    let fault = kms.describe().await.expect_err("there is no KMS");
    match loaded.0.get() {
        Some(&at) => (at, "credentials".to_owned()),
        None => (Instant::now(), format!("`{}`", fault.reason)),
    }
}

async fn aws_config() -> (Instant, String) {
    let config = aws_config::defaults(aws_config::BehaviorVersion::v2026_01_12())
        .load()
        .await;
    let provider = config.credentials_provider().expect("the default chain");
    let words = match provider.provide_credentials().await {
        Ok(_) => "credentials",
        Err(CredentialsError::CredentialsNotLoaded(_)) => "`CredentialsNotLoaded`",
        Err(CredentialsError::ProviderTimedOut(_)) => "`ProviderTimedOut`",
        Err(CredentialsError::InvalidConfiguration(_)) => "`InvalidConfiguration`",
        Err(CredentialsError::ProviderError(_)) => "`ProviderError`",
        Err(_) => "`Unhandled`",
    };
    (Instant::now(), words.to_owned())
}

/// When credentials were there.
#[derive(Default)]
struct Loaded(OnceLock<Instant>);

impl Observer for Loaded {
    fn kms_request(&self, _: &'static str, _: &'static str, _: &'static str, _: f64) {}

    fn imds_probe(&self, _: &'static str) {}

    fn credential_expiry(&self, _: &'static str, _: &'static str, _: i64) {
        self.0.get_or_init(Instant::now);
    }
}

/// A program in the pod's namespace, with next to nothing in its environment.
fn in_pod(network: &Network, words: &[&str]) -> Command {
    let launcher = network.pod_launcher();
    let mut command = Command::new(&launcher[0]);
    command
        .args(&launcher[1..])
        .args(words)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

fn output(command: &mut Command) -> String {
    let done = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", done.status);
    String::from_utf8(done.stdout).unwrap()
}

fn itself() -> String {
    let program = std::env::current_exe().unwrap();
    program.to_str().expect("a path of Unicode").to_owned()
}

fn python() -> String {
    std::env::var("AUTOUNSEAL_PYTHON").expect("AUTOUNSEAL_PYTHON is set by cargo xtask bench")
}

/// The version of a package in `Cargo.lock`.
fn locked(package: &str) -> String {
    let lock = std::fs::read_to_string(repository("Cargo.lock")).unwrap();
    let after = lock
        .split_once(&format!("name = \"{package}\"\nversion = \""))
        .unwrap()
        .1;
    after.split('"').next().unwrap().to_owned()
}
