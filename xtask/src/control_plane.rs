//! A throwaway control plane on loopback: etcd, kube-apiserver with RBAC, moto; on request the controller
//! manager. There is no kubelet: pods are created and their status is patched by whoever tests.

use std::cell::RefCell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::{Doing, Failure, Outcome};
use crate::services::{self, Ports};
use crate::session::Session;
use crate::tools::Tools;
use crate::{credentials, http, ports, process, repository};

const STARTUP: Duration = Duration::from_secs(90);

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
        let Self {
            tools, folder, logs, ..
        } = self;
        self.launch(session, "etcd", services::etcd(&tools.etcd, folder, ports))?;
        self.launch(
            session,
            "moto",
            services::moto(&tools.moto, options.moto_auth, ports),
        )?;
        credentials::make(session, &tools.moto, logs, ports.apiserver)?;
        self.wait_for(session, "etcd", || {
            http::ask(ports.etcd, "GET", "/health", &[], "") == Some(200)
        })?;
        self.launch(
            session,
            "kube-apiserver",
            services::apiserver(&tools.apiserver, logs, ports),
        )?;
        self.wait_for(session, "moto", || services::moto_is_warm(ports.moto))?;
        let ready = || process::answer(self.kubectl().args(["get", "--raw=/readyz"])).is_some();
        self.wait_for(session, "kube-apiserver", ready)?;
        let default = || process::answer(self.kubectl().args(["get", "namespace", "default"])).is_some();
        self.wait_for(session, "kube-apiserver", default)?;
        if let Some(program) = &tools.controller_manager {
            let manager = services::controller_manager(program, &self.kubeconfig());
            self.launch(session, "kube-controller-manager", manager)?;
        }
        Ok(())
    }

    fn launch(&self, session: &Session, name: &'static str, mut command: Command) -> Outcome<()> {
        let log = self.logs.join(format!("{name}.log"));
        process::log_to(&mut command, &log)?;
        process::without_clouds(&mut command)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        let process = session.spawn(&mut command)?;
        self.services.borrow_mut().push(Service { name, process, log });
        Ok(())
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

    /// Python for the OCI test server.
    pub fn oci_python(&self) -> PathBuf {
        self.tools.oci.python()
    }

    fn kubeconfig(&self) -> PathBuf {
        self.logs.join(credentials::KUBECONFIG)
    }

    /// Gives a command the environment of this control plane, and none of the developer's own cloud settings.
    pub fn dress<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        let nowhere = self.logs.join(credentials::NO_AWS_CONFIG);
        process::without_cargo_run(process::without_clouds(command))
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.folder.join("kube-cache"))
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("AWS_ENDPOINT_URL_KMS", &self.endpoint)
            .env("AWS_ENDPOINT_URL_STS", &self.endpoint)
            .env("AWS_REGION", services::REGION)
            .env("AWS_ACCESS_KEY_ID", services::ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", "throwaway-secret-of-the-test-cluster")
            // Empty files: what ~/.aws says must not leak in.
            .env("AWS_CONFIG_FILE", &nowhere)
            .env("AWS_SHARED_CREDENTIALS_FILE", &nowhere)
            .env("NO_PROXY", without_proxy("NO_PROXY"))
            .env("no_proxy", without_proxy("no_proxy"))
            // Programs that lie in the repository leave no compiled files beside themselves.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("AUTOUNSEAL_KUBECTL", &self.tools.kubectl)
            .env("AUTOUNSEAL_HELM", &self.tools.helm)
            .env("AUTOUNSEAL_MOTO", self.tools.moto.program("moto_server"))
            .env("AUTOUNSEAL_PYTHON", self.tools.moto.python())
            .env("AUTOUNSEAL_LOCALSTACK", self.tools.localstack.python())
            .env("AUTOUNSEAL_OCI_PYTHON", self.tools.oci.python())
            .env("AUTOUNSEAL_OCIKMS", &self.tools.ocikms)
            .env("AUTOUNSEAL_VAULT", &self.tools.vault)
            .env("AUTOUNSEAL_OPENBAO", &self.tools.openbao)
            .env("AUTOUNSEAL_STANZA", &self.tools.stanza)
            .env("AUTOUNSEAL_WRAPPEDSTORE", &self.tools.wrappedstore)
            .env("AUTOUNSEAL_GITOPS", &self.tools.gitops)
            .env("AUTOUNSEAL_PROMTOOL", &self.tools.promtool)
            .env("AUTOUNSEAL_KUBECONFORM", &self.tools.kubeconform)
            .env("AUTOUNSEAL_KUBE_SCORE", &self.tools.kube_score)
            .env("AUTOUNSEAL_CLUSTER_LOGS", &self.logs)
            .envs(
                self.tools
                    .faketime
                    .iter()
                    .map(|library| ("AUTOUNSEAL_FAKETIME", library)),
            )
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

/// The developer's list of hosts reached without a proxy, loopback added.
fn without_proxy(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(list) if !list.is_empty() => format!("{list},127.0.0.1,localhost"),
        _ => "127.0.0.1,localhost".to_owned(),
    }
}
