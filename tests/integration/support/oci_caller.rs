//! A caller of the command line, with a home folder and an environment of their own.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    oci::{ApiKey, Key, Oci},
    stage::unique,
};

/// A person at a machine; the home folder goes with this.
pub struct Caller {
    home: PathBuf,
    environment: BTreeMap<String, String>,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// Exit code, -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
}

impl Done {
    /// The output of a command that must have succeeded.
    pub fn ok(self) -> Vec<u8> {
        assert_eq!(self.code, 0, "{}", self.err);
        self.out
    }

    /// The same as JSON.
    pub fn json(self) -> Value {
        serde_json::from_slice(&self.ok()).unwrap()
    }
}

impl Caller {
    /// Somebody without any OCI configuration.
    pub fn new() -> Self {
        let home = std::env::temp_dir().join(format!("autounseal-caller-{}", unique()));
        fs::create_dir(&home).unwrap();
        let environment = BTreeMap::from([("HOME".to_owned(), home.display().to_string())]);
        Self { home, environment }
    }

    /// Somebody with an API key under `~/.oci`, as `oci setup config` leaves it.
    pub fn with(key: &ApiKey) -> Self {
        let caller = Self::new();
        let pem = caller.file(".oci/oci_api_key.pem", &key.pem);
        caller.file(".oci/config", profile("DEFAULT", key, &pem));
        caller
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.insert(name.to_owned(), value.into());
        self
    }

    /// Writes a file below the home folder; its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.home.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Where a file of that name is or would be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// Runs `autounseal`.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> Done {
        self.program(&super::binary(), arguments, input)
    }

    /// Runs the real Go wrapper, as this caller; of the home folder it sees only what `OCI_CONFIG_FILE` names.
    pub fn ocikms(&self, oci: &Oci, command: &str, key: &Key, aad: &str, input: &[u8]) -> Done {
        let program =
            std::env::var("AUTOUNSEAL_OCIKMS").expect("AUTOUNSEAL_OCIKMS is set by cargo xtask cluster");
        let (crypto, management) = (oci.url("crypto"), oci.url("management"));
        #[rustfmt::skip]
        let arguments = [
            command, "-key-id", &key.id, "-crypto-endpoint", &crypto, "-management-endpoint", &management,
            "-auth-type-api-key", "-aad", aad,
        ];
        self.program(&program, &arguments, input)
    }

    /// Runs the Go program that opens an entry of a wrapped store, as this caller.
    pub fn wrappedstore(&self, arguments: &[&str], input: &[u8]) -> Done {
        let program = std::env::var("AUTOUNSEAL_WRAPPEDSTORE")
            .expect("AUTOUNSEAL_WRAPPEDSTORE is set by cargo xtask cluster");
        self.program(&program, arguments, input)
    }

    /// Runs any program, as this caller.
    pub fn program(&self, program: &str, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that ends before it reads its input is fine.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        Done {
            code: output.status.code().unwrap_or(-1),
            out: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A profile of OCI's configuration file with an API key.
pub fn profile(name: &str, key: &ApiKey, key_file: &str) -> String {
    format!(
        "[{name}]\nuser={}\nfingerprint={}\ntenancy={}\nregion={}\nkey_file={key_file}\n",
        key.user, key.fingerprint, key.tenancy, key.region
    )
}

/// A seal at a test server, without credentials.
pub fn seal(oci: &Oci, key: &Key) -> Value {
    json!({"keyID": key.id, "cryptoEndpoint": oci.url("crypto"), "managementEndpoint": oci.url("management")})
}

/// A manifest with one seal, named `oci`.
pub fn manifest(ocikms: &Value, keys: &Value) -> String {
    json!({
        "apiVersion": "autounseal.dev/v1alpha1", "kind": "SealConfig",
        "metadata": {"name": "app", "namespace": "apps"},
        "spec": {"seals": [{"name": "oci", "ocikms": ocikms}], "keys": keys},
    })
    .to_string()
}

/// The keys of a manifest: `root`, from one copy.
pub fn root(format: &str, wrapped: &str) -> Value {
    json!([{"name": "root", "wrapped": [{"seal": "oci", "format": format, "inline": wrapped}]}])
}
