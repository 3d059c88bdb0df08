//! moto's KMS, STS and IAM, over the official SDK: what a user's `aws kms encrypt` would do.

use std::{
    collections::HashMap,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use aws_sdk_kms::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    primitives::Blob,
};

use super::{kms::Context, operator};

/// A client of moto's KMS in one region.
pub struct Moto {
    client: Client,
}

impl Moto {
    /// The moto of `cargo xtask cluster`.
    pub fn of_cluster(region: &str) -> Self {
        let url = std::env::var("AWS_ENDPOINT_URL_KMS")
            .expect("AWS_ENDPOINT_URL_KMS is set by cargo xtask cluster");
        Self::at(&url, region, "AKIAINTEGRATIONTEST0", "integration-secret")
    }

    /// Any KMS.
    pub fn at(url: &str, region: &str, access_key_id: &str, secret: &str) -> Self {
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(region.to_owned()))
            .endpoint_url(url)
            .credentials_provider(Credentials::new(access_key_id, secret, None, None, "tests"))
            .build();
        Self {
            client: Client::from_conf(config),
        }
    }

    /// The SDK's client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Makes a key; its ARN.
    pub async fn key(&self) -> String {
        let made = self.client.create_key().send().await.unwrap();
        made.key_metadata().and_then(|m| m.arn()).unwrap().to_owned()
    }

    /// Points an alias at a key.
    pub async fn alias(&self, alias: &str, key: &str) {
        // Left over when the tests run twice on one control plane.
        let _ = self.client.delete_alias().alias_name(alias).send().await;
        self.client
            .create_alias()
            .alias_name(alias)
            .target_key_id(key)
            .send()
            .await
            .unwrap();
    }

    /// `aws kms encrypt`.
    pub async fn encrypt(&self, key: &str, plaintext: &[u8], context: &Context) -> Vec<u8> {
        let context: HashMap<String, String> = context.clone().into_iter().collect();
        let answer = self
            .client
            .encrypt()
            .key_id(key)
            .plaintext(Blob::new(plaintext))
            .set_encryption_context((!context.is_empty()).then_some(context))
            .send()
            .await
            .unwrap();
        answer.ciphertext_blob().unwrap().as_ref().to_vec()
    }
}

/// A moto of a test's own, ended when dropped.
pub struct MotoServer {
    child: Child,
    /// Where it listens.
    pub url: String,
}

impl MotoServer {
    /// Starts one that checks signatures and policies after the first `unchecked` requests.
    pub fn start(unchecked: u32) -> Self {
        let address = operator::free_port();
        let program =
            std::env::var("AUTOUNSEAL_MOTO").expect("AUTOUNSEAL_MOTO is set by cargo xtask cluster");
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .env("INITIAL_NO_AUTH_ACTION_COUNT", unchecked.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self {
            child,
            url: format!("http://{address}"),
        };
        let started = Instant::now();
        while operator::get(address, "/moto-api/").is_none() {
            assert!(started.elapsed() < Duration::from_mins(1), "moto does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }
}

impl Drop for MotoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
