//! LocalStack's KMS, which can import keys, and its own environment's boto3 beside it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{operator, stage::unique};

/// The account of access keys that LocalStack reads no account from.
pub const ACCOUNT: &str = "000000000000";

/// A LocalStack of a test's own, ended when dropped.
pub struct LocalStack {
    child: Child,
    folder: PathBuf,
    /// Where it listens.
    pub url: String,
}

fn python() -> String {
    std::env::var("AUTOUNSEAL_LOCALSTACK").expect("AUTOUNSEAL_LOCALSTACK is set by cargo xtask cluster")
}

impl LocalStack {
    /// Starts one and waits until it serves.
    pub fn start() -> Self {
        let address = operator::free_port();
        let folder = std::env::temp_dir().join(format!("localstack-{}", unique()));
        std::fs::create_dir_all(&folder).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(python())
            .args(["-m", "localstack.runtime.main"])
            .current_dir(&folder)
            .env("HOME", &folder)
            .env("TMPDIR", &folder)
            .env("FILESYSTEM_ROOT", &folder)
            .env("SERVICES", "kms,sts")
            .env("GATEWAY_LISTEN", address.to_string())
            .env("DISABLE_EVENTS", "1")
            .env("SKIP_SSL_CERT_DOWNLOAD", "1")
            .env("DNS_ADDRESS", "0")
            .env_remove("AWS_ENDPOINT_URL")
            .env_remove("AWS_ENDPOINT_URL_KMS")
            .env_remove("AWS_ENDPOINT_URL_STS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self {
            child,
            folder,
            url: format!("http://{address}"),
        };
        let started = Instant::now();
        while operator::get(address, "/_localstack/health").is_none_or(|(status, _)| status != 200) {
            assert!(
                started.elapsed() < Duration::from_mins(3),
                "LocalStack does not answer:\n{}",
                std::fs::read_to_string(server.folder.join("log")).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        server
    }

    /// Runs Python with boto3 against it. In the script, `kms(region)` is a client and `say(value)` prints the answer.
    pub fn python(&self, script: &str) -> Value {
        let head = format!(
            "import boto3, json, base64, hashlib\n\
             def kms(region): return boto3.client('kms', region_name=region, endpoint_url='{}', \
             aws_access_key_id='AKIAINTEGRATIONTEST0', aws_secret_access_key='integration-secret')\n\
             def say(value): print(json.dumps(value, default=str))\n",
            self.url
        );
        let output = Command::new(python())
            .args(["-c", &format!("{head}{script}")])
            .env_remove("AWS_ENDPOINT_URL")
            .env_remove("AWS_ENDPOINT_URL_KMS")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{script}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

impl Drop for LocalStack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
