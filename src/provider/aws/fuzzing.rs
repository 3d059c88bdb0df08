//! Any bytes through what reads AWS's answers. No part of the product.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sdk_kms::config::Region;
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::{body::SdkBody, retry::RetryConfig};

use super::{
    describe, error,
    error::{Asked, Operation},
    imds, kms, operator_identity, sdk,
};
use crate::{fuzzing::sane, provider::bound::Tie};

/// Answers every request alike.
#[derive(Clone, Debug)]
struct Canned {
    status: u16,
    body: Vec<u8>,
}

impl HttpConnector for Canned {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let Ok(status) = self.status.try_into() else {
            return HttpConnectorFuture::ready(Err(ConnectorError::user("no status".into())));
        };
        let mut answer = HttpResponse::new(status, SdkBody::from(self.body.clone()));
        answer
            .headers_mut()
            .insert("content-type", "application/x-amz-json-1.1");
        HttpConnectorFuture::ready(Ok(answer))
    }
}

impl HttpClient for Canned {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

fn client(status: u16, body: &[u8]) -> aws_sdk_kms::Client {
    let canned = Canned {
        status,
        body: body.to_vec(),
    };
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(operator_identity::behavior())
        .region(Region::new("eu-west-1"))
        .credentials_provider(Credentials::new(
            "AKIAFUZZFUZZFUZZFUZZ",
            "secret",
            None,
            None,
            "fuzzing",
        ))
        .retry_config(RetryConfig::disabled())
        .http_client(canned)
        .build();
    aws_sdk_kms::Client::from_conf(config)
}

/// What KMS and STS answer: the first byte is the status, the rest the body.
pub(crate) fn kms(data: &[u8]) {
    let Some((first, body)) = data.split_first() else {
        return;
    };
    let status = [200, 400, 403, 404, 429, 500, 503][usize::from(*first) % 7];
    let asked = |operation| Asked {
        operation,
        of: "alias/fuzz",
        region: "eu-west-1",
        tie: Tie::None,
    };
    let _ = (error::code_in_json(body), error::code_in_xml(body));
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    let client = client(status, body);
    let now = SystemTime::UNIX_EPOCH;
    runtime.block_on(async {
        let sent = b"ciphertext".to_vec();
        match Box::pin(client.decrypt().ciphertext_blob(sent.clone().into()).send()).await {
            Err(error) => sane(&error::fault(
                &asked(Operation::Decrypt),
                sdk::failure(&error, now),
            )),
            Ok(answer) => {
                let told = asked(Operation::Decrypt);
                let opened = kms::opened(&told, &sent, answer, |_| true, || "another key".to_owned());
                match opened {
                    Err(fault) => sane(&fault),
                    Ok(opened) => assert!(!opened.key.expose().is_empty()),
                }
            }
        }
        match Box::pin(client.describe_key().key_id("alias/fuzz").send()).await {
            Err(error) => sane(&error::fault(
                &asked(Operation::DescribeKey),
                sdk::failure(&error, now),
            )),
            Ok(answer) => {
                let arn = answer.key_metadata.and_then(|key| key.arn);
                let _ = arn.as_deref().and_then(describe::answered);
            }
        }
    });
}

/// What the metadata service answers.
pub(crate) fn imds(data: &[u8]) {
    if let Some(head) = data.first_chunk::<12>() {
        let status = imds::status(head);
        assert!(status.is_none() || data.starts_with(b"HTTP/1."));
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(address) = imds::address(text)
    {
        assert!(address.contains(':'), "{address}");
    }
}
