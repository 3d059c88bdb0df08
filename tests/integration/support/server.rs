//! Vault and OpenBao themselves, started from files as their images start them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{operator::free_port, stage::unique};

/// The servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Vault.
    Vault,
    /// OpenBao.
    OpenBao,
}

impl Product {
    /// As the API names it.
    pub fn word(self) -> &'static str {
        match self {
            Product::Vault => "vault",
            Product::OpenBao => "openbao",
        }
    }

    fn program(self) -> String {
        let variable = match self {
            Product::Vault => "AUTOUNSEAL_VAULT",
            Product::OpenBao => "AUTOUNSEAL_OPENBAO",
        };
        std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is set by cargo xtask cluster"))
    }
}

/// A server's disk, which outlives its processes; removed when dropped.
pub struct Disk {
    /// The server.
    pub product: Product,
    folder: PathBuf,
    /// What of the configuration follows the path of its data; `None` = file storage.
    storage: Option<Storage>,
    /// More of the listener's block.
    pub listener: String,
}

/// Another storage than files.
#[derive(Clone)]
struct Storage {
    kind: &'static str,
    /// More of the storage's own block.
    within: String,
    /// More of the configuration.
    beside: String,
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    log: PathBuf,
    launcher: Vec<String>,
}

impl Disk {
    /// An empty one.
    pub fn new(product: Product) -> Self {
        let folder = std::env::temp_dir().join(format!("autounseal-{}-{}", product.word(), unique()));
        std::fs::create_dir(&folder).unwrap();
        Self {
            product,
            folder,
            storage: None,
            listener: String::new(),
        }
    }

    /// An empty one for a member of a raft cluster: its name, where its API is, and what more its storage's block says, such
    /// as whom it joins.
    pub fn raft(product: Product, node: &str, api: SocketAddr, join: &str) -> Self {
        let mut disk = Self::new(product);
        std::fs::create_dir(disk.folder.join("data")).unwrap();
        // The port that the servers take for each other unless they are told one.
        let peers = SocketAddr::new(api.ip(), api.port() + 1);
        disk.storage = Some(Storage {
            kind: "raft",
            // The shortest election that it knows.
            within: format!("node_id = {node:?}\n  performance_multiplier = 1\n  {join}"),
            beside: format!("cluster_addr = \"https://{peers}\"\napi_addr = \"https://{api}\"\n"),
        });
        disk
    }

    /// Another one with the same content, as the servers of one cluster have it.
    pub fn copy(&self) -> Self {
        let copy = Self::new(self.product);
        copy.take_from(self);
        copy
    }

    /// Takes the content that a copy of it has, as from a backup.
    pub fn put_back(&self, copy: &Self) {
        std::fs::remove_dir_all(self.folder.join("data")).unwrap();
        self.take_from(copy);
    }

    fn take_from(&self, other: &Self) {
        let status = Command::new("cp")
            .arg("-r")
            .arg(other.folder.join("data"))
            .arg(&self.folder)
            .status();
        assert!(status.unwrap().success());
    }

    /// Where a Secret would be mounted.
    pub fn mount(&self) -> PathBuf {
        self.folder.join("mount")
    }

    /// Mounts a Secret: these files and no others.
    pub fn mounted(&self, files: &[(&str, &[u8])]) {
        let mount = self.mount();
        let _ = std::fs::remove_dir_all(&mount);
        std::fs::create_dir(&mount).unwrap();
        for (name, bytes) in files {
            std::fs::write(mount.join(name), bytes).unwrap();
        }
    }

    /// Starts the server from its own configuration and these files of the mount, with these variables and no others.
    pub fn start(&self, files: &[&str], variables: &[(&str, &str)]) -> Server {
        self.start_by(&[], files, variables)
    }

    /// The same by words before the program, which run it somewhere else.
    pub fn start_by(&self, launcher: &[String], files: &[&str], variables: &[(&str, &str)]) -> Server {
        self.run(launcher, free_port(), None, files, variables)
    }

    /// The same at an address, over TLS with this certificate and its key.
    pub fn listen(
        &self,
        address: SocketAddr,
        tls: Option<(&Path, &Path)>,
        files: &[&str],
        variables: &[(&str, &str)],
    ) -> Server {
        self.run(&[], address, tls, files, variables)
    }

    /// The same without TLS, by words before the program.
    pub fn listen_by(
        &self,
        launcher: &[String],
        address: SocketAddr,
        files: &[&str],
        variables: &[(&str, &str)],
    ) -> Server {
        self.run(launcher, address, None, files, variables)
    }

    fn run(
        &self,
        launcher: &[String],
        address: SocketAddr,
        tls: Option<(&Path, &Path)>,
        files: &[&str],
        variables: &[(&str, &str)],
    ) -> Server {
        let more = &self.listener;
        let tls = match tls {
            None => "tls_disable = true".to_owned(),
            Some((certificate, key)) => format!(
                "tls_cert_file = {:?}\n  tls_key_file = {:?}",
                certificate.display().to_string(),
                key.display().to_string()
            ),
        };
        let own = self.folder.join("server.hcl");
        let data = self.folder.join("data").display().to_string();
        let Storage { kind, within, beside } = self.storage.clone().unwrap_or(Storage {
            kind: "file",
            within: String::new(),
            beside: String::new(),
        });
        let config = format!(
            "disable_mlock = true\n{beside}storage {kind:?} {{\n  path = {data:?}\n  {within}\n}}\n\
             listener \"tcp\" {{\n  address = \"{address}\"\n  {tls}\n  {more}\n}}\n"
        );
        std::fs::write(&own, config).unwrap();
        let log = self.folder.join("log");
        let file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = launched(launcher, &self.product.program());
        command.arg("server").arg("-config").arg(&own);
        for name in files {
            command.arg("-config").arg(self.mount().join(name));
        }
        let child = command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &self.folder)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Server {
            child,
            address,
            log,
            launcher: launcher.to_vec(),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Server {
    /// Initialises it as a server that unseals itself; its recovery key.
    pub fn initialize(&mut self) -> String {
        self.status(|status| status["initialized"] == false);
        let keys = json!({"recovery_shares": 1, "recovery_threshold": 1});
        let answer = self.ask("PUT", "/v1/sys/init", &keys.to_string());
        assert!(answer["root_token"].is_string(), "{answer}: {}", self.log());
        self.unsealed();
        answer["recovery_keys_base64"][0].as_str().unwrap().to_owned()
    }

    /// Migrates it to the seal that its configuration leads to, by the one key of the old seal.
    pub fn migrate(&mut self, key: &str) -> Value {
        self.status(|status| status["migration"] == true);
        let given = json!({"key": key, "migrate": true});
        let answer = self.ask("PUT", "/v1/sys/unseal", &given.to_string());
        assert_eq!(answer["sealed"], false, "{answer}: {}", self.log());
        // The server that is active does it, a moment later.
        self.status(|status| status["sealed"] == false && status["migration"] == false)
    }

    /// Initialises a server with a Shamir seal; its shares as the server prints them, and the root token.
    pub fn shamir(&mut self, shares: u8, threshold: u8) -> (Vec<String>, String) {
        self.status(|status| status["initialized"] == false);
        let keys = json!({"secret_shares": shares, "secret_threshold": threshold});
        let answer = self.ask("PUT", "/v1/sys/init", &keys.to_string());
        let keys = answer["keys"].as_array().unwrap_or_else(|| panic!("{answer}"));
        let keys = keys.iter().map(|key| key.as_str().unwrap().to_owned()).collect();
        (keys, answer["root_token"].as_str().unwrap().to_owned())
    }

    /// Unseals a server of one share.
    pub fn unseal(&mut self, share: &str) -> Value {
        self.status(|status| status["initialized"] == true);
        self.ask("PUT", "/v1/sys/unseal", &json!({"key": share}).to_string())
    }

    /// Seals it; `null` if it does so.
    pub fn seal(&self, token: &str) -> Value {
        let token = format!("x-vault-token: {token}\r\n");
        self.request("PUT", "/v1/sys/seal", &token, "")
    }

    /// Waits until it is unsealed; what its status says then.
    pub fn unsealed(&mut self) -> Value {
        self.status(|status| status["initialized"] == true && status["sealed"] == false)
    }

    /// Waits until its status fits.
    pub fn status(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let status = self.ask("GET", "/v1/sys/seal-status", "");
            if fits(&status) {
                return status;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && started.elapsed() < Duration::from_mins(2),
                "ended: {ended:?}, status {status}: {}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has written.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `null` while it does not listen.
    fn ask(&self, method: &str, path: &str, body: &str) -> Value {
        // Who was started elsewhere may not be reached from here.
        if self.launcher.iter().any(|word| word == "netns") {
            return self.ask_there(method, path, body);
        }
        self.request(method, path, "", body)
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Value {
        let send = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(self.address)?;
            stream.set_read_timeout(Some(Duration::from_mins(1)))?;
            let length = body.len();
            let head = format!(
                "{method} {path} HTTP/1.0\r\nhost: {}\r\n{headers}content-length: {length}\r\n\r\n",
                self.address
            );
            stream.write_all(head.as_bytes())?;
            stream.write_all(body.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = send().unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }
}

impl Server {
    /// The same from where the server is.
    fn ask_there(&self, method: &str, path: &str, body: &str) -> Value {
        let code = "import http.client, sys\na, m, p, b = sys.argv[1:]\n\
                    c = http.client.HTTPConnection(a, timeout=60)\nc.request(m, p, b)\nprint(c.getresponse().read().decode())";
        let python =
            std::env::var("AUTOUNSEAL_PYTHON").expect("AUTOUNSEAL_PYTHON is set by cargo xtask cluster");
        let answer = launched(&self.launcher, &python)
            .args(["-c", code, &self.address.to_string(), method, path, body])
            .output()
            .unwrap();
        serde_json::from_slice(&answer.stdout).unwrap_or_default()
    }
}

fn launched(launcher: &[String], program: &str) -> Command {
    let mut words = launcher.iter().map(String::as_str).chain([program]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of its own for one test, removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Writes it.
    pub fn new(content: impl AsRef<[u8]>) -> Self {
        let path = std::env::temp_dir().join(format!("autounseal-scratch-{}", unique()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
