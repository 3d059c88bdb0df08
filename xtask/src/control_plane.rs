//! A throwaway control plane on loopback: etcd, kube-apiserver with RBAC, moto; on request the controller
//! manager. There is no kubelet: pods are created and their status is patched by whoever tests.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Doing, Failure, Outcome};
use crate::session::Session;
use crate::tools::Tools;
use crate::{http, ports, process, repository};

const STARTUP: Duration = Duration::from_secs(90);
const REGION: &str = "us-east-1";

/// What may differ between two control planes.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// Where logs and credentials go, to stay there.
    pub keep: Option<PathBuf>,
    /// moto checks signatures and policies from the first call.
    pub moto_auth: bool,
    /// Deployments, garbage collection and so on are real.
    pub controller_manager: bool,
}

/// A running control plane. It ends with the session.
pub struct ControlPlane<'a> {
    tools: &'a Tools,
    folder: PathBuf,
    logs: PathBuf,
    endpoint: String,
    services: RefCell<Vec<Service>>,
}

struct Service {
    name: &'static str,
    process: Child,
    log: PathBuf,
}

struct Ports {
    etcd: u16,
    etcd_peers: u16,
    apiserver: u16,
    moto: u16,
}

impl<'a> ControlPlane<'a> {
    /// Starts everything and waits until it answers and `crds/` are established.
    pub fn start(session: &Session, tools: &'a Tools, options: &Options) -> Outcome<Self> {
        let started = Instant::now();
        // Between the look for a free port and the server's start another program may take the port.
        let mut tries = 0;
        let plane = loop {
            tries += 1;
            match Self::try_start(session, tools, options) {
                Ok(plane) => break plane,
                Err(Failed::PortTaken) if tries < 4 => {
                    eprintln!("    a port was taken meanwhile; trying others");
                }
                Err(Failed::PortTaken) => return Err("no free loopback ports after several tries.".into()),
                Err(Failed::Otherwise(failure)) => return Err(failure),
            }
        };
        let definitions = plane.apply_definitions(session)?;
        eprintln!(
            "==> control plane ready after {:.1} s ({definitions})",
            started.elapsed().as_secs_f32()
        );
        Ok(plane)
    }

    fn try_start(session: &Session, tools: &'a Tools, options: &Options) -> Result<Self, Failed> {
        let folder = session.temporary_folder("cluster")?;
        let logs = match &options.keep {
            Some(keep) => std::path::absolute(keep).doing("read the folder of --keep")?,
            None => folder.clone(),
        };
        std::fs::create_dir_all(&logs).doing(format!("make the folder {}", logs.display()))?;
        let ports = match *ports::free(4)?.as_slice() {
            [etcd, etcd_peers, apiserver, moto] => Ports {
                etcd,
                etcd_peers,
                apiserver,
                moto,
            },
            _ => return Err(Failed::PortTaken),
        };
        let plane = Self {
            tools,
            endpoint: format!("http://127.0.0.1:{}", ports.moto),
            services: RefCell::default(),
            folder,
            logs,
        };
        let outcome = plane.bring_up(session, options, &ports);
        if outcome.is_err() {
            plane.stop(session);
        }
        outcome.map(|()| plane)
    }

    fn bring_up(&self, session: &Session, options: &Options, ports: &Ports) -> Result<(), Failed> {
        self.launch(session, "etcd", self.etcd(ports))?;
        self.launch(session, "moto", self.moto(options, ports))?;
        self.make_credentials(session, ports.apiserver)?;
        self.wait_for(session, "etcd", || {
            http::ask(ports.etcd, "GET", "/health", &[], "") == Some(200)
        })?;
        self.launch(session, "kube-apiserver", self.apiserver(ports))?;
        self.wait_for(session, "moto", || moto_is_warm(ports.moto))?;
        let ready = || process::answer(self.kubectl().args(["get", "--raw=/readyz"])).is_some();
        self.wait_for(session, "kube-apiserver", ready)?;
        let default = || process::answer(self.kubectl().args(["get", "namespace", "default"])).is_some();
        self.wait_for(session, "kube-apiserver", default)?;
        if let Some(program) = &self.tools.controller_manager {
            self.launch(
                session,
                "kube-controller-manager",
                self.controller_manager(program),
            )?;
        }
        Ok(())
    }

    fn etcd(&self, ports: &Ports) -> Command {
        let mut command = Command::new(&self.tools.etcd);
        let (clients, peers) = (loopback(ports.etcd), loopback(ports.etcd_peers));
        command
            .arg("--unsafe-no-fsync")
            .arg(format!("--data-dir={}", self.folder.join("etcd").display()))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=default={peers}"))
            // Two clusters at once must never take each other for a member.
            .arg(format!("--initial-cluster-token={}", self.folder.display()))
            .args(["--log-level=warn", "--quota-backend-bytes=8589934592"]);
        command
    }

    fn apiserver(&self, ports: &Ports) -> Command {
        let file = |name: &str| self.logs.join(name).display().to_string();
        let mut command = Command::new(&self.tools.apiserver);
        command
            .arg(format!("--etcd-servers={}", loopback(ports.etcd)))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", ports.apiserver))
            .arg(format!("--tls-cert-file={}", file("apiserver.crt")))
            .arg(format!("--tls-private-key-file={}", file("apiserver.key")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg("--authorization-mode=RBAC")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!(
                "--service-account-signing-key-file={}",
                file("service-accounts.key")
            ))
            .arg(format!(
                "--service-account-key-file={}",
                file("service-accounts.key")
            ))
            // Without a controller manager no ServiceAccount is made for a namespace, and this plugin would
            // refuse every pod.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg("--service-cluster-ip-range=10.96.0.0/16")
            // The advertised address is never dialled, and loopback is refused as one.
            .args(["--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1"])
            // A test must measure its own limits and not the server's.
            .args([
                "--max-requests-inflight=3000",
                "--max-mutating-requests-inflight=1500",
            ])
            .args(["--allow-privileged=true", "--profiling=false"]);
        command
    }

    fn controller_manager(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .args([
                "--leader-elect=false",
                "--secure-port=0",
                "--concurrent-gc-syncs=4",
            ])
            .arg(
                "--controllers=deployment-controller,replicaset-controller,statefulset-controller,\
                 daemonset-controller,garbage-collector-controller,disruption-controller",
            )
            .args(["--kube-api-qps=200", "--kube-api-burst=400"]);
        command
    }

    fn moto(&self, options: &Options, ports: &Ports) -> Command {
        let mut command = Command::new(self.tools.moto.program("moto_server"));
        command
            .args(["-H", "127.0.0.1", "-p"])
            .arg(ports.moto.to_string());
        command.env_remove("INITIAL_NO_AUTH_ACTION_COUNT");
        if options.moto_auth {
            command.env("INITIAL_NO_AUTH_ACTION_COUNT", "0");
        }
        command
    }

    fn launch(&self, session: &Session, name: &'static str, mut command: Command) -> Outcome<()> {
        let log = self.logs.join(format!("{name}.log"));
        process::log_to(&mut command, &log)?;
        process::without_aws(&mut command)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        let process = session.spawn(&mut command)?;
        self.services.borrow_mut().push(Service { name, process, log });
        Ok(())
    }

    /// Certificates, the admin's token and the kubeconfig.
    fn make_credentials(&self, session: &Session, port: u16) -> Outcome<()> {
        let mut command = Command::new(self.tools.moto.python());
        command.args(["-c", include_str!("pki.py")]).arg(&self.logs);
        session.run_logged(&mut command, "making certificates", &self.logs.join("pki.log"))?;
        let token = random_token()?;
        let write = |name: &str, text: String| {
            std::fs::write(self.logs.join(name), text).doing(format!("write {name} for the cluster"))
        };
        write("tokens.csv", format!("{token},admin,admin,\"system:masters\"\n"))?;
        write("kubeconfig", kubeconfig(&self.logs.join("ca.crt"), port, &token))?;
        write("aws-config", String::new())
    }

    /// Waits until `up` holds, watching that no service dies meanwhile.
    fn wait_for(&self, session: &Session, name: &str, up: impl Fn() -> bool) -> Result<(), Failed> {
        let started = Instant::now();
        loop {
            session.check()?;
            let is_up = up();
            // Asked after the answer, for the answer may have come from another program on our port.
            self.check_alive()?;
            if is_up {
                return Ok(());
            }
            if started.elapsed() > STARTUP {
                let log = self.logs.join(format!("{name}.log"));
                return Err(Failed::Otherwise(Failure::Said(format!(
                    "{name} did not become ready within {} s. The last lines of its log:\n{}",
                    STARTUP.as_secs(),
                    process::tail(&log, 20)
                ))));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    fn check_alive(&self) -> Result<(), Failed> {
        for service in self.services.borrow_mut().iter_mut() {
            let Some(status) = service.process.try_wait().doing("look after a service")? else {
                continue;
            };
            let end = process::tail(&service.log, 20);
            if end.to_lowercase().contains("address already in use") || end.contains("is in use by another") {
                return Err(Failed::PortTaken);
            }
            return Err(Failed::Otherwise(Failure::Said(format!(
                "{} ended by itself ({status}). The last lines of its log:\n{end}",
                service.name
            ))));
        }
        Ok(())
    }

    /// Says so if a service died while the command ran: it explains failures that nothing else would.
    pub fn report_dead_services(&self) {
        if let Err(Failed::Otherwise(Failure::Said(message))) = self.check_alive() {
            eprintln!("xtask: {message}");
        }
    }

    fn apply_definitions(&self, session: &Session) -> Outcome<&'static str> {
        let folder = repository::root().join("crds");
        let any = std::fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some());
        if !any {
            return Ok("there is no crds/ yet");
        }
        let log = self.logs.join("crds.log");
        let mut apply = self.kubectl();
        apply.args(["apply", "--server-side", "-f"]).arg(&folder);
        session.run_logged(&mut apply, "applying crds/", &log)?;
        let mut wait = self.kubectl();
        wait.args(["wait", "--for=condition=Established", "--timeout=30s", "-f"])
            .arg(&folder);
        session.run_logged(&mut wait, "waiting for crds/", &log)?;
        Ok("crds/ applied")
    }

    /// kubectl as the admin.
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(&self.tools.kubectl);
        self.dress(&mut command);
        command
    }

    /// Python with boto3.
    pub fn python(&self) -> PathBuf {
        self.tools.moto.python()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.logs.join("kubeconfig")
    }

    /// Gives a command the environment of this control plane, and none of the developer's own AWS settings.
    pub fn dress<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let nowhere = self.logs.join("aws-config");
        process::without_cargo_run(process::without_aws(command))
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.folder.join("kube-cache"))
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_ENDPOINT_URL_KMS", &self.endpoint)
            .env("AWS_ENDPOINT_URL_STS", &self.endpoint)
            .env("AWS_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
            .env("AWS_SECRET_ACCESS_KEY", "throwaway-secret-of-the-test-cluster")
            // Empty files: what ~/.aws says must not leak in.
            .env("AWS_CONFIG_FILE", &nowhere)
            .env("AWS_SHARED_CREDENTIALS_FILE", &nowhere)
            .env("NO_PROXY", without_proxy("NO_PROXY"))
            .env("no_proxy", without_proxy("no_proxy"))
            .env("AUTOUNSEAL_KUBECTL", &self.tools.kubectl)
            .env("AUTOUNSEAL_MOTO", self.tools.moto.program("moto_server"))
            .env("AUTOUNSEAL_PYTHON", self.tools.moto.python())
            .env("AUTOUNSEAL_CLUSTER_LOGS", &self.logs)
    }

    /// Ends all services, the last started first.
    pub fn stop(&self, session: &Session) {
        for mut service in self.services.borrow_mut().drain(..).rev() {
            session.end(&mut service.process);
        }
    }
}

/// Why a start failed: whether other ports may help.
enum Failed {
    PortTaken,
    Otherwise(Failure),
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self::Otherwise(failure)
    }
}

fn loopback(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// moto loads a service's code at its first request, which takes a second; the wait for it belongs to the start.
/// Any answer will do: with its checks on, moto refuses these.
fn moto_is_warm(port: u16) -> bool {
    let calls = [
        ("kms", "application/x-amz-json-1.1", "{}"),
        (
            "sts",
            "application/x-www-form-urlencoded",
            "Action=GetCallerIdentity&Version=2011-06-15",
        ),
        (
            "iam",
            "application/x-www-form-urlencoded",
            "Action=ListRoles&Version=2010-05-08",
        ),
    ];
    calls.into_iter().all(|(service, content_type, body)| {
        let scope = format!(
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20200101/{REGION}/{service}/aws4_request, \
             SignedHeaders=host, Signature=0"
        );
        let headers = [
            ("Authorization", scope.as_str()),
            ("Content-Type", content_type),
            // Only KMS looks at it.
            ("X-Amz-Target", "TrentService.ListKeys"),
        ];
        http::ask(port, "POST", "/", &headers, body).is_some()
    })
}

fn random_token() -> Outcome<String> {
    use std::io::Read;
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .doing("read /dev/urandom")?;
    Ok(bytes
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
}

/// A kubeconfig in JSON, which is YAML too and needs no quoting rules of our own.
fn kubeconfig(authority: &Path, port: u16, token: &str) -> String {
    let server = format!("https://127.0.0.1:{port}");
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "throwaway",
        "clusters": [{"name": "throwaway", "cluster": {"server": server, "certificate-authority": authority}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "throwaway", "context": {"cluster": "throwaway", "user": "admin"}}],
    })
    .to_string()
}

/// The developer's list of hosts reached without a proxy, loopback added.
fn without_proxy(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(list) if !list.is_empty() => format!("{list},127.0.0.1,localhost"),
        _ => "127.0.0.1,localhost".to_owned(),
    }
}
