//! The operator's own identity. A test cannot change its own environment safely, so these run themselves again in a
//! child process with the environment that they are about.

use std::process::Command;

use super::*;
use crate::seal::aws::AssumeRole;

/// Runs the ignored test of that name with only these variables.
async fn child(name: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .env_clear()
        .env("HOME", "/nonexistent")
        .envs(variables.iter().copied())
        .args(["--ignored", "--exact", "--test-threads=1"])
        .arg(format!("provider::aws::tests::environment::{name}"));
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn own(credentials: Credentials) -> AwsSeal {
    AwsSeal {
        credentials,
        ..seal(ARN)
    }
}

fn from_environment() -> Aws {
    let environment = Environment::read();
    let endpoints = EndpointPolicy {
        environment: environment.endpoints.clone(),
        ..EndpointPolicy::default()
    };
    let settings = Settings::new("prod".into(), endpoints, environment);
    Aws::new(settings, None, Arc::new(Notes::default()))
}

async fn open(aws: &Aws, seal: &AwsSeal) -> Result<(), Fault> {
    let kms = aws.connect(seal, TENANT).await?;
    kms.unwrap(Format::Kms, &Ciphertext::new(vec![1, 2]), &none())
        .await
        .map(|_| ())
}

const SESSION: &str = r#"{"Code":"Success","AccessKeyId":"ASIAPODIDENTITY00000","SecretAccessKey":"s","Token":"t","Expiration":"2999-01-01T00:00:00Z"}"#;

/// KMS, STS, a container agent and a metadata service in one.
fn everything(seen: &Seen) -> Reply {
    match seen.operation.as_str() {
        "PUT /latest/api/token" => {
            assert!(seen.headers.contains_key("x-aws-ec2-metadata-token-ttl-seconds"));
            Reply::text(200, "imds-token").header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
        }
        "GET /latest/meta-data/iam/security-credentials/" => Reply::text(200, "node-role"),
        "GET /latest/meta-data/placement/region" => Reply::text(200, "eu-central-1"),
        "GET /latest/meta-data/iam/security-credentials/node-role" => {
            assert_eq!(
                seen.headers["x-aws-ec2-metadata-token"], "imds-token",
                "never version 1"
            );
            Reply::text(200, SESSION)
        }
        "GET /v1/credentials" => Reply::text(200, SESSION),
        "AssumeRole" => {
            assert_eq!(seen.form("ExternalId").unwrap(), "prod/team-a");
            assert_eq!(
                seen.form("Tags.member.1.Key").unwrap(),
                "autounseal.dev/namespace"
            );
            assert_eq!(seen.form("Tags.member.1.Value").unwrap(), "team-a");
            Reply::text(
                403,
                "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>",
            )
        }
        _ => toy(seen),
    }
}

#[tokio::test]
async fn the_default_chain_signs() {
    let server = Double::start(everything).await;
    let variables = [
        ("AWS_ENDPOINT_URL", server.url.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKIAOPERATOR00000000"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "eu-west-3"),
    ];
    child("in_the_default_chain", &variables).await;
    let operations: Vec<_> = server.seen().into_iter().map(|seen| seen.operation).collect();
    assert_eq!(operations, ["Decrypt", "AssumeRole"]);
}

#[tokio::test]
#[ignore = "run by the_default_chain_signs"]
async fn in_the_default_chain() {
    let aws = from_environment();
    assert_eq!(
        aws.region(&AwsSeal {
            region: None,
            ..seal("alias/a")
        })
        .await
        .as_str(),
        "eu-west-3"
    );
    assert_eq!(Environment::read().endpoints.len(), 1);
    open(&aws, &own(Credentials::DefaultChain)).await.unwrap();
    let role = AssumeRole {
        role_arn: ROLE.into(),
        external_id: None,
        session_name: None,
    };
    let seal = AwsSeal {
        assume_role: Some(role),
        ..own(Credentials::DefaultChain)
    };
    assert_eq!(
        open(&aws, &seal).await.unwrap_err().reason,
        Reason::AssumeRoleDenied
    );
}

#[tokio::test]
async fn an_operator_without_identity_is_told() {
    child(
        "in_no_environment",
        &[
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ],
    )
    .await;
}

#[tokio::test]
#[ignore = "run by an_operator_without_identity_is_told"]
async fn in_no_environment() {
    let aws = from_environment();
    for (credentials, reason) in [
        (Credentials::DefaultChain, Reason::CredentialsMissing),
        (Credentials::PodIdentity, Reason::PodIdentityAgentMissing),
        (Credentials::InstanceMetadata, Reason::ImdsDisabled),
    ] {
        assert_eq!(open(&aws, &own(credentials)).await.unwrap_err().reason, reason);
    }
    assert_eq!(
        aws.region(&AwsSeal {
            region: None,
            ..seal("alias/a")
        })
        .await
        .as_str(),
        "us-east-1"
    );
}

#[tokio::test]
async fn pod_identity_and_instance_metadata_sign() {
    let server = Double::start(everything).await;
    let variables = [
        ("AWS_ENDPOINT_URL_KMS", server.url.as_str()),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            &format!("{}/v1/credentials", server.url),
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "pod-token"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server.url),
    ];
    child("in_a_pod_on_a_node", &variables).await;
    let operations: Vec<_> = server.seen().into_iter().map(|seen| seen.operation).collect();
    assert_eq!(
        operations
            .iter()
            .filter(|operation| *operation == "Decrypt")
            .count(),
        2
    );
    assert!(operations.contains(&"GET /v1/credentials".to_owned()));
}

#[tokio::test]
#[ignore = "run by pod_identity_and_instance_metadata_sign"]
async fn in_a_pod_on_a_node() {
    let aws = from_environment();
    assert_eq!(
        aws.region(&AwsSeal {
            region: None,
            ..seal("alias/a")
        })
        .await
        .as_str(),
        "eu-central-1"
    );
    open(&aws, &own(Credentials::PodIdentity)).await.unwrap();
    open(&aws, &own(Credentials::InstanceMetadata)).await.unwrap();
}

#[tokio::test]
async fn a_metadata_service_that_refuses_or_is_silent_is_told() {
    for (status, delay, reason) in [
        (403, 0, "IMDSDisabled"),
        (404, 0, "CredentialsMissing"),
        (200, 10, "IMDSUnreachable"),
    ] {
        let server = Double::start(move |seen| match seen.operation.as_str() {
            "PUT /latest/api/token" if status == 404 => {
                Reply::text(200, "t").header("x-aws-ec2-metadata-token-ttl-seconds", "21600")
            }
            _ => Reply::text(status, "").after(Duration::from_secs(delay)),
        })
        .await;
        let variables = [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url.as_str()),
            ("EXPECTED", reason),
        ];
        child("on_a_node_without_identity", &variables).await;
    }
    let variables = [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9"),
        ("EXPECTED", "IMDSUnreachable"),
    ];
    child("on_a_node_without_identity", &variables).await;
}

#[tokio::test]
#[ignore = "run by a_metadata_service_that_refuses_or_is_silent_is_told"]
async fn on_a_node_without_identity() {
    let started = std::time::Instant::now();
    let fault = open(
        &from_environment(),
        &AwsSeal {
            credentials: Credentials::InstanceMetadata,
            ..seal(ARN)
        },
    )
    .await;
    assert_eq!(
        fault.unwrap_err().reason.as_str(),
        std::env::var("EXPECTED").unwrap()
    );
    assert!(started.elapsed() < Duration::from_millis(3500));
}

/// Security rule S9: what reads the environment or files stands in one module, which takes no tenant's text.
#[test]
fn only_the_operators_module_reads_the_environment_or_files() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/provider");
    let mut folders = vec![std::path::PathBuf::from(folder)];
    let mut read = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                if path.file_name().unwrap() != "tests" {
                    folders.push(path);
                }
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            read += 1;
            if path.ends_with("operator_identity.rs") {
                assert!(!text.contains("Tenant") && !text.contains("SecretEntries"));
                continue;
            }
            for word in [
                "std::env",
                "env::var",
                "std::fs",
                "tokio::fs",
                "ProviderConfig",
                "aws_config::load",
                "aws_config::defaults",
                "default_provider",
                "File::",
            ] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
        }
    }
    assert!(read > 8);
}
