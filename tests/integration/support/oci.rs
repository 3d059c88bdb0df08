//! Oracle's KMS and identity services, as `tests/support/oci` plays them: it verifies every byte of a request.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{blob, kms::Context};

/// How a server is to be started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `eu-frankfurt-1` unless given.
    pub region: Option<String>,
    /// `oc1` unless given.
    pub realm: Option<String>,
    /// Where the cluster's token endpoint listens; its port is fixed in clients, so give it an address of its own.
    pub oke_listen: Option<SocketAddr>,
    /// Whose apiserver reviews ServiceAccount tokens; without one only those of [`Oci::workload_tokens`] are good.
    pub kubeconfig: Option<PathBuf>,
    /// One line of JSON for each request.
    pub log: Option<PathBuf>,
}

/// A running server; ended when dropped.
pub struct Oci {
    child: Child,
    // Held open: the server ends when it is closed, even if this process is killed.
    stdin: Option<ChildStdin>,
    facts: Value,
    admin: SocketAddr,
}

/// A master encryption key.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its OCID.
    pub id: String,
    /// The OCID of the version that was current when this was made.
    pub version: String,
}

/// A user with an API key.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// OCID.
    pub tenancy: String,
    /// OCID; what policies name.
    pub user: String,
    /// MD5 with colons.
    pub fingerprint: String,
    /// Of the server.
    pub region: String,
    /// The private key.
    pub pem: String,
}

/// What the service gives a resource: token and key.
#[derive(Clone, Debug)]
pub struct ResourcePrincipal {
    /// The session token, a JWT without `ST$`.
    pub rpst: String,
    /// The session's private key.
    pub private_pem: String,
    /// Of the server.
    pub region: String,
    /// The resource's OCID; what policies name.
    pub resource: String,
}

impl Oci {
    /// Starts one with nothing special.
    pub fn start() -> Self {
        Self::with(&Options::default())
    }

    /// Starts one.
    pub fn with(options: &Options) -> Self {
        let python = std::env::var("AUTOUNSEAL_OCI_PYTHON")
            .expect("AUTOUNSEAL_OCI_PYTHON is set by cargo xtask cluster");
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/oci/server.py"));
        let mut flag = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                command.arg(name).arg(value);
            }
        };
        let file = |path: &PathBuf| path.display().to_string();
        flag("--region", options.region.clone());
        flag("--realm", options.realm.clone());
        flag(
            "--oke-listen",
            options.oke_listen.map(|address| address.to_string()),
        );
        flag("--kubeconfig", options.kubeconfig.as_ref().map(file));
        flag("--log", options.log.as_ref().map(file));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("AUTOUNSEAL_OCI_PYTHON names a Python");
        let stdin = child.stdin.take();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let facts: Value = serde_json::from_str(&line).expect("the OCI test server says where it listens");
        let admin = text(&facts, "admin")
            .trim_start_matches("http://")
            .parse()
            .unwrap();
        Self {
            child,
            stdin,
            facts,
            admin,
        }
    }

    /// Where a service listens: `crypto`, `management`, `crypto_tls`, `management_tls`, `federation` (without
    /// `/v1/x509`), `metadata` (with `/opc/v2`), `oke`.
    pub fn url(&self, service: &str) -> String {
        self.fact(service)
    }

    /// A fact that the server tells: `tenancy`, `compartment`, `instance`, `cluster`, `vault`, `region`, `realm`.
    pub fn fact(&self, name: &str) -> String {
        text(&self.facts, name)
    }

    /// The CA behind the https listeners.
    pub fn ca_file(&self) -> PathBuf {
        self.fact("ca_file").into()
    }

    /// Makes an AES-256 key.
    pub fn key(&self) -> Key {
        self.key_with(&json!({}))
    }

    /// Makes a key with `region`, `realm` or `algorithm` of its own.
    pub fn key_with(&self, given: &Value) -> Key {
        let made = self.admin("/keys", given);
        Key {
            id: text(&made, "id"),
            version: text(&made, "currentKeyVersion"),
        }
    }

    /// Gives a key a new version.
    pub fn rotate(&self, key: &Key) -> Key {
        let made = self.admin("/keys/rotate", &json!({"id": key.id}));
        Key {
            id: key.id.clone(),
            version: text(&made, "currentKeyVersion"),
        }
    }

    /// `ENABLED`, `DISABLED`, `PENDING_DELETION`, …; only an enabled key is of use.
    pub fn set_state(&self, key: &Key, state: &str) {
        self.admin("/keys/state", &json!({"id": key.id, "state": state}));
    }

    /// The same, with what a use of the key then answers.
    pub fn set_state_answering(&self, key: &Key, state: &str, status: u16, code: &str) {
        let given = json!({"id": key.id, "state": state, "status": status, "code": code});
        self.admin("/keys/state", &given);
    }

    /// Encrypts as somebody else would; the text of the ciphertext.
    pub fn encrypt(&self, key: &Key, plaintext: &[u8], context: &Context) -> String {
        let given = json!({"id": key.id, "plaintext": BASE64.encode(plaintext), "associatedData": context});
        text(&self.admin("/encrypt", &given), "ciphertext")
    }

    /// An envelope as the `ocikms` wrapper makes it, with a data key of its own.
    pub fn wrapped(&self, key: &Key, plaintext: &[u8]) -> Vec<u8> {
        let mut data_key = [0; 32];
        aws_lc_rs::rand::fill(&mut data_key).unwrap();
        let ciphertext = self.encrypt(key, &data_key, &Context::new());
        blob::ocikms_envelope(plaintext, &data_key, &key.version, &ciphertext)
    }

    /// Makes a user; the form is `pkcs8`, `pkcs1`, `pkcs8-encrypted` or `traditional-encrypted`.
    pub fn api_key(&self, form: &str, pass_phrase: Option<&str>) -> ApiKey {
        let made = self.admin("/api-keys", &json!({"form": form, "pass_phrase": pass_phrase}));
        ApiKey {
            tenancy: text(&made, "tenancy"),
            user: text(&made, "user"),
            fingerprint: text(&made, "fingerprint"),
            region: text(&made, "region"),
            pem: text(&made, "pem"),
        }
    }

    /// Takes `encrypt`, `decrypt` or `read` (none named: all) of a key (none named: all) from a principal: a user's,
    /// the instance's or a resource's OCID, or `workload:<namespace>/<serviceaccount>`.
    pub fn deny(&self, principal: &str, key: Option<&Key>, actions: &[&str]) {
        let key = key.map(|key| key.id.as_str());
        let given = json!({"principal": principal, "key": key, "actions": actions});
        self.admin("/deny", &given);
    }

    /// Gives it all back.
    pub fn allow(&self, principal: &str) {
        self.admin("/allow", &json!({"principal": principal}));
    }

    /// Scripts misbehaviour; `tests/support/oci/README.md` says what there is.
    pub fn fault(&self, fault: &Value) {
        self.admin("/faults", fault);
    }

    /// Ends all misbehaviour, and wakes whom it holds.
    pub fn clear_faults(&self) {
        self.admin("/faults/clear", &json!({}));
    }

    /// Puts the server's clock ahead by so many seconds, or back.
    pub fn clock(&self, offset_seconds: i64) {
        self.admin("/clock", &json!({"offset_seconds": offset_seconds}));
    }

    /// Seconds that session tokens are good for from now on.
    pub fn token_life(&self, seconds: u64) {
        self.admin("/tokens", &json!({"life_seconds": seconds}));
    }

    /// Revokes every session token so far.
    pub fn revoke_tokens(&self) {
        self.admin("/tokens/revoke", &json!({}));
    }

    /// Gives the instance another certificate: `life_seconds`, `tenancy`, `revoke_old`.
    pub fn rotate_instance(&self, given: &Value) {
        self.admin("/instance/rotate", given);
    }

    /// Another text for a path below `/opc/v2` of the metadata service; `None` makes it 404.
    pub fn metadata(&self, path: &str, text: Option<&str>) {
        self.admin("/metadata", &json!({"path": path, "text": text}));
    }

    /// Whether the cluster is a basic one, which has no workload identity.
    pub fn basic_cluster(&self, basic: bool) {
        self.admin("/oke", &json!({"basic_cluster": basic}));
    }

    /// ServiceAccount tokens that are good without an apiserver: texts, or `{token, namespace, service_account}`.
    pub fn workload_tokens(&self, tokens: &Value) {
        self.admin("/oke", &json!({"tokens": tokens}));
    }

    /// Makes a resource principal.
    pub fn resource_principal(
        &self,
        life_seconds: Option<i64>,
        pass_phrase: Option<&str>,
    ) -> ResourcePrincipal {
        let given = json!({"life_seconds": life_seconds, "pass_phrase": pass_phrase});
        let made = self.admin("/resource-principal", &given);
        ResourcePrincipal {
            rpst: text(&made, "rpst"),
            private_pem: text(&made, "private_pem"),
            region: text(&made, "region"),
            resource: text(&made, "resource"),
        }
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Value> {
        match self.send("GET", "/log", "") {
            Value::Array(entries) => entries,
            other => panic!("the log is {other}"),
        }
    }

    /// Forgets them.
    pub fn clear_log(&self) {
        self.admin("/log/clear", &json!({}));
    }

    /// Requests to a service whose target holds this.
    pub fn count(&self, service: &str, path: &str) -> usize {
        self.log()
            .iter()
            .filter(|entry| entry["service"] == service && text(entry, "path").contains(path))
            .count()
    }

    /// Any path of the admin listener.
    pub fn admin(&self, path: &str, given: &Value) -> Value {
        self.send("POST", path, &given.to_string())
    }

    fn send(&self, method: &str, path: &str, body: &str) -> Value {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            self.admin,
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        // It takes its files along when it ends by itself.
        drop(self.stdin.take());
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(2) {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(value: &Value, name: &str) -> String {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
        .to_owned()
}
