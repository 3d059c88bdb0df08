//! The story on OCI, for which the test server of `tests/support/oci` stands in.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::shell::Shell;
use super::{Cloud, Rotation};
use crate::failure::{Doing, Outcome};
use crate::{process, repository};

/// The Secret with the API key, in the demo's namespace.
const API_KEY: &str = "oci-api-key";
/// How long the server may take to say where it listens.
const STARTUP: Duration = Duration::from_secs(30);

/// A key in the test server, and the API key of a user who may use it: the caller of `wrap` finds it in `~/.oci`,
/// the operator in a Secret of the namespace.
pub struct Oci {
    server: Server,
    key: String,
    /// The version of the key that encrypts at first.
    version: String,
}

impl Oci {
    /// Starts the server and makes both keys.
    pub fn start(shell: &Shell) -> Outcome<Self> {
        println!("   This one lives in a test server, a stand-in for OCI; its values are worth nothing.");
        let server = Server::start(shell)?;
        let made = server.admin(shell, "keys", &json!({}), "on OCI: oci kms management key create")?;
        let (key, version) = (text(&made, "id")?, text(&made, "currentKeyVersion")?);
        let user = server.admin(
            shell,
            "api-keys",
            &json!({}),
            "on OCI: oci iam user api-key upload",
        )?;
        let user = ApiKey::read(&user)?;
        shell.write(".oci/config", &user.config())?;
        shell.write(".oci/oci_api_key.pem", &user.pem)?;
        for (name, value) in user.entries() {
            shell.write(&format!("{API_KEY}/{name}"), value)?;
        }
        Ok(Self { server, key, version })
    }
}

impl Cloud for Oci {
    fn key(&self) -> &str {
        &self.key
    }

    fn seal(&self) -> String {
        let Urls {
            crypto, management, ..
        } = &self.server.urls;
        format!(
            "  - name: oci
    ocikms:
      keyID: {}
      cryptoEndpoint: {crypto}
      managementEndpoint: {management}
      credentials: {{apiKey: {{secretRef: {{name: {API_KEY}}}}}}}
",
            self.key
        )
    }

    /// The endpoints in the file are not Oracle's.
    fn wrap_arguments(&self) -> &[&str] {
        &["--trust-file"]
    }

    /// For the same reason.
    fn operator_arguments(&self) -> Vec<String> {
        let Urls {
            crypto, management, ..
        } = &self.server.urls;
        vec!["--allowed-endpoints".to_owned(), format!("{crypto},{management}")]
    }

    fn bring_identity(&self, shell: &Shell) -> Outcome<()> {
        let files = format!("--from-file={API_KEY}/");
        shell.kubectl(&["create", "secret", "generic", API_KEY, &files])
    }

    fn rotation(&self) -> Option<&dyn Rotation> {
        Some(self)
    }
}

impl Rotation for Oci {
    fn rotate(&self, shell: &Shell) -> Outcome<()> {
        let body = json!({"id": self.key});
        let made = self.server.admin(
            shell,
            "keys/rotate",
            &body,
            "on OCI: oci kms management key-version create",
        )?;
        let version = text(&made, "currentKeyVersion")?;
        if version == self.version {
            return Err("the OCI test server gave the key no new version.".into());
        }
        println!("   was {}\n   now {version}", self.version);
        Ok(())
    }
}

/// The test server. It ends when its standard input closes, which is with this value or with xtask.
struct Server {
    urls: Urls,
    python: PathBuf,
    log: PathBuf,
    _process: Child,
}

impl Server {
    fn start(shell: &Shell) -> Outcome<Self> {
        let python = shell.stage.plane.oci_python();
        let log = shell.file("oci-server.log");
        let errors = std::fs::File::create(&log).doing(format!("write {}", log.display()))?;
        println!("$ python3 tests/support/oci/server.py &");
        let mut command: Command = shell.command(&python);
        command
            .arg(repository::root().join("tests/support/oci/server.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut process = shell.session.spawn(&mut command)?;
        let line = first_line(shell, &mut process)?;
        let urls = Urls::read(&line).ok_or_else(|| {
            format!(
                "the OCI test server did not say where it listens. Its last lines were:\n{}",
                process::tail(&log, 20)
            )
        })?;
        Ok(Self {
            urls,
            python,
            log,
            _process: process,
        })
    }

    /// Asks for something that the real cloud's API or console would be asked for.
    fn admin(&self, shell: &Shell, path: &str, body: &Value, comment: &str) -> Outcome<Value> {
        let url = format!("{}/{path}", self.urls.admin);
        let code =
            format!("import urllib.request as u; print(u.urlopen('{url}', b'{body}').read().decode())");
        shell
            .python(&self.python, &code, comment)
            .and_then(|answer| serde_json::from_str(&answer).ok())
            .ok_or_else(|| {
                format!(
                    "the OCI test server refused {path}. Its last lines were:\n{}",
                    process::tail(&self.log, 20)
                )
                .into()
            })
    }
}

/// What the server prints first; empty if it ends or takes too long. It is read by a thread, so that Ctrl-C is
/// heeded meanwhile.
fn first_line(shell: &Shell, process: &mut Child) -> Outcome<String> {
    let Some(output) = process.stdout.take() else {
        return Ok(String::new());
    };
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        // What cannot be read is no line of JSON either, and is told as that.
        let _ = BufReader::new(output).read_line(&mut line);
        let _ = sender.send(line);
    });
    let started = Instant::now();
    while started.elapsed() < STARTUP {
        shell.session.check()?;
        match receiver.recv_timeout(Duration::from_millis(25)) {
            Ok(line) => return Ok(line),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(String::new())
}

/// Where the server listens.
#[derive(Debug, PartialEq)]
struct Urls {
    crypto: String,
    management: String,
    admin: String,
}

impl Urls {
    fn read(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let url = |name: &str| value[name].as_str().map(str::to_owned);
        Some(Self {
            crypto: url("crypto")?,
            management: url("management")?,
            admin: url("admin")?,
        })
    }
}

/// A user of the test server, with a private key that signs requests.
struct ApiKey {
    user: String,
    tenancy: String,
    fingerprint: String,
    region: String,
    pem: String,
}

impl ApiKey {
    fn read(made: &Value) -> Outcome<Self> {
        Ok(Self {
            user: text(made, "user")?,
            tenancy: text(made, "tenancy")?,
            fingerprint: text(made, "fingerprint")?,
            region: text(made, "region")?,
            pem: text(made, "pem")?,
        })
    }

    /// `~/.oci/config`, as `oci setup config` writes it.
    fn config(&self) -> String {
        let Self {
            user,
            tenancy,
            fingerprint,
            region,
            ..
        } = self;
        format!(
            "[DEFAULT]
user={user}
fingerprint={fingerprint}
tenancy={tenancy}
region={region}
key_file=~/.oci/oci_api_key.pem
"
        )
    }

    /// The entries of the Secret.
    fn entries(&self) -> [(&'static str, &str); 5] {
        [
            ("user", &self.user),
            ("tenancy", &self.tenancy),
            ("fingerprint", &self.fingerprint),
            ("region", &self.region),
            ("key.pem", &self.pem),
        ]
    }
}

fn text(answer: &Value, name: &str) -> Outcome<String> {
    let found = answer[name].as_str().map(str::to_owned);
    found.ok_or_else(|| format!("the OCI test server answered without `{name}`.").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_where_the_server_listens_and_nothing_else_does() {
        let line = r#"{"crypto": "http://c", "management": "http://m", "admin": "http://a", "region": "r"}"#;
        let urls = Urls::read(line).unwrap();
        assert_eq!(
            (&*urls.crypto, &*urls.management, &*urls.admin),
            ("http://c", "http://m", "http://a")
        );
        for wrong in ["", "Traceback (most recent call last):", "{}", r#"{"crypto": 1}"#] {
            assert_eq!(Urls::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_identity_is_told_alike_to_the_caller_and_to_the_cluster() {
        let made = json!({"user": "u", "tenancy": "t", "fingerprint": "f", "region": "r", "pem": "p"});
        let key = ApiKey::read(&made).unwrap();
        let config = key.config();
        for (name, value) in key.entries() {
            let told = config.contains(&format!("\n{name}={value}\n"));
            // The private key lies in a file of its own.
            assert_eq!(told, name != "key.pem", "{name}");
        }
        assert!(ApiKey::read(&json!({"user": "u"})).is_err());
    }
}
