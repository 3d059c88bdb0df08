//! The command line of each service, and why it is so.

use std::path::Path;
use std::process::Command;

use crate::http;
use crate::python::Environment;

/// The region of everything in moto.
pub const REGION: &str = "us-east-1";
/// An access key id of the right shape that belongs to nobody.
pub const ACCESS_KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";

/// Where each service listens, on loopback.
pub struct Ports {
    /// etcd's clients.
    pub etcd: u16,
    /// etcd's other members, of which there are none.
    pub etcd_peers: u16,
    /// The API server, TLS.
    pub apiserver: u16,
    /// AWS.
    pub moto: u16,
}

/// The store, in memory as far as it matters: nothing waits for the disk.
pub fn etcd(program: &Path, folder: &Path, ports: &Ports) -> Command {
    let (clients, peers) = (loopback(ports.etcd), loopback(ports.etcd_peers));
    let mut command = Command::new(program);
    command
        .arg("--unsafe-no-fsync")
        .arg(format!("--data-dir={}", folder.join("etcd").display()))
        .arg(format!("--listen-client-urls={clients}"))
        .arg(format!("--advertise-client-urls={clients}"))
        .arg(format!("--listen-peer-urls={peers}"))
        .arg(format!("--initial-advertise-peer-urls={peers}"))
        .arg(format!("--initial-cluster=default={peers}"))
        // Two clusters at once must never take each other for a member.
        .arg(format!("--initial-cluster-token={}", folder.display()))
        .args(["--log-level=warn", "--quota-backend-bytes=8589934592"]);
    command
}

/// The API server, with the credentials that lie in `files`.
pub fn apiserver(program: &Path, files: &Path, ports: &Ports) -> Command {
    let file = |name: &str| files.join(name).display().to_string();
    let mut command = Command::new(program);
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
        // Nobody dials the advertised address (it is one of those reserved for documentation), but one must
        // be given, and loopback is refused.
        .args(["--endpoint-reconciler-type=none", "--advertise-address=192.0.2.1"])
        // A test must measure its own limits and not the server's.
        .args([
            "--max-requests-inflight=3000",
            "--max-mutating-requests-inflight=1500",
        ])
        .args(["--allow-privileged=true", "--profiling=false"]);
    command
}

/// The controllers that own pods, remove what lost its owner and count disruptions; no others.
pub fn controller_manager(program: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .args(["--leader-elect=false", "--secure-port=0"])
        .arg(
            "--controllers=deployment-controller,replicaset-controller,statefulset-controller,\
             daemonset-controller,garbage-collector-controller,disruption-controller",
        )
        .args(["--kube-api-qps=200", "--kube-api-burst=400"]);
    command
}

/// AWS. With `auth` it checks signatures and policies from the first call on.
pub fn moto(environment: &Environment, auth: bool, ports: &Ports) -> Command {
    let mut command = Command::new(environment.program("moto_server"));
    command
        .args(["-H", "127.0.0.1", "-p"])
        .arg(ports.moto.to_string());
    command.env_remove("INITIAL_NO_AUTH_ACTION_COUNT");
    if auth {
        command.env("INITIAL_NO_AUTH_ACTION_COUNT", "0");
    }
    command
}

/// moto loads a service's code at its first request, which takes a second; the wait for it belongs to the start.
/// Any answer will do: with its checks on, moto refuses these.
pub fn moto_is_warm(port: u16) -> bool {
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
            "AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/20200101/{REGION}/{service}/aws4_request, \
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

/// A plain address on loopback.
pub fn loopback(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}
