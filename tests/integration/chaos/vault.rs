//! A real Vault that the operator initialises and unseals: the server, the node that it runs on, the way to it, and another
//! server that sometimes stands in its place.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use data_encoding::{BASE64, HEXLOWER};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    link::{Link, Weather},
    world::{Cloud, SEALS, seal},
};
use crate::support::{
    fleet::{Client, HOST, Kubelet, trust_in},
    needle::Needle,
    operator::free_port,
    pki::Pki,
    plane::within,
    server::{Disk, Product, Server},
    stage::{Stage, random},
    tls::{Says, TlsServer},
};

/// The name of its SealConfig.
pub const VAULT: &str = "vault";

/// Its pod.
const POD: &str = "vault-0";

/// How many shares it answers, and how many of them open it.
pub const SHARES: usize = 3;
const THRESHOLD: usize = 2;

/// Where a value lies in it that must not be lost.
const KEPT: &str = "kv/kept";

/// How long somebody waits for its answer who does not count on one.
const GLANCE: Duration = Duration::from_secs(2);

/// How the command line calls the answer at that place of [`Vault::answers`].
pub fn answered(at: usize) -> Vec<String> {
    if at < SHARES {
        vec!["--share".to_owned(), (at + 1).to_string()]
    } else {
        vec!["--root-token".to_owned()]
    }
}

/// The server and what stands around it.
pub struct Vault {
    /// The way to it.
    pub link: Link,
    server: Option<Server>,
    at: SocketAddr,
    disk: Disk,
    pki: Pki,
    client: Client,
    /// What its address leads to at times: a server whose certificate is of somebody else's CA.
    impostor: TlsServer,
    _theirs: Pki,
    /// How often it was started.
    pub starts: usize,
    containers: Arc<AtomicU64>,
    node: JoinHandle<()>,
    /// What it answered when it was initialised, as text: the shares, then the root token.
    pub answers: Vec<String>,
    kept: String,
}

impl Drop for Vault {
    fn drop(&mut self) {
        self.node.abort();
    }
}

impl Vault {
    /// Starts it, empty, with a pod that leads to it.
    pub async fn start(stage: Stage, seed: u64) -> Self {
        let pki = Pki::new(&[HOST]);
        trust_in(&stage, &pki).await;
        let at = free_port();
        let link = Link::before(at.port(), seed).await;
        let theirs = Pki::new(&[HOST]);
        let impostor = TlsServer::start(&theirs, HOST, |_| {
            let status = json!({"initialized": true, "sealed": true, "type": "shamir", "t": THRESHOLD, "n": SHARES,
                "progress": 0, "version": "1.13.1"});
            Says::Answer(200, "", status.to_string())
        });
        let client = Client::new(&pki, at);
        let kubelet = Kubelet(&stage);
        kubelet.pod(POD, VAULT, IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
        let containers = Arc::new(AtomicU64::new(0));
        let node = tokio::spawn(report(stage, client.clone(), containers.clone()));
        let mut vault = Self {
            link,
            server: None,
            at,
            disk: Disk::new(Product::Vault),
            pki,
            client,
            impostor,
            _theirs: theirs,
            starts: 0,
            containers,
            node,
            answers: Vec::new(),
            kept: HEXLOWER.encode(&random(16)),
        };
        vault.restart();
        vault
    }

    /// The SealConfig's spec. A seal by API call is to be undone, so that all ends well.
    pub fn spec(&self, clouds: &[Cloud; 2]) -> Value {
        let seals: Vec<Value> = (0..2)
            .map(|at| seal(clouds, SEALS[at], 10 * (at + 1), false))
            .collect();
        json!({"seals": seals, "unseal": {
            "product": "vault", "podSelector": {"matchLabels": {"app": VAULT}}, "port": self.link.port(),
            "policy": "Always",
            "initialize": {"shamir": {"shares": SHARES, "threshold": THRESHOLD}, "rootToken": "Wrap"},
            "tls": {"ca": {"configMapKeyRef": {"name": "vault-ca", "key": "ca.crt"}}, "serverName": HOST},
        }})
    }

    /// SIGKILL, if it runs, and started again from its disk, in a new container.
    pub fn restart(&mut self) {
        // Its port and its disk are free before another takes them.
        drop(self.server.take());
        let (certificate, key) = self.pki.files(HOST);
        self.server = Some(self.disk.listen(self.at, Some((&certificate, &key)), &[], &[]));
        self.starts += 1;
        self.containers.fetch_add(1, Ordering::SeqCst);
    }

    /// As a kubelet would: what ended by itself is started again. A port that another took meanwhile is free a moment later.
    pub fn tend(&mut self) {
        if self.server.as_mut().is_some_and(Server::has_ended) {
            self.restart();
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.server.as_ref().map(Server::pid);
        if let Some(pid) = pid
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Somebody seals it; whether it did so.
    pub async fn seal(&self) -> bool {
        let asked = self.client.ask("PUT", "sys/seal", self.token(), &Value::Null);
        matches!(timeout(GLANCE, asked).await, Ok(Some((204, _))))
    }

    /// Whether another server stands at its address, in a container of its own: else nobody would have a reason to ask it.
    pub fn is_replaced(&self, replaced: bool) {
        let port = if replaced {
            self.impostor.address().port()
        } else {
            self.at.port()
        };
        self.link.lead(port);
        self.containers.fetch_add(1, Ordering::SeqCst);
    }

    /// How many connections the other server got.
    pub fn met(&self) -> usize {
        self.impostor.received().len()
    }

    /// How many requests the other server got, which had nothing to prove that it is the right one.
    pub fn misled(&self) -> usize {
        self.impostor.received().iter().map(Vec::len).sum()
    }

    /// Whether it says itself that it is unsealed, by the way that nothing is done to.
    pub async fn is_unsealed(&self) -> bool {
        matches!(timeout(GLANCE, self.client.sealed()).await, Ok(Some(false)))
    }

    /// Puts a value into it.
    pub async fn fill(&self) {
        self.does("POST", "sys/mounts/kv", &json!({"type": "kv"})).await;
        self.does("PUT", KEPT, &json!({"value": self.kept})).await;
    }

    /// The value is still there.
    pub async fn keeps(&self) {
        let answer = self.does("GET", KEPT, &Value::Null).await;
        assert_eq!(
            answer["data"]["value"],
            json!(self.kept),
            "chaos: VIOLATION: the Vault lost its data"
        );
    }

    /// Where nobody else can reach it, it opens by these shares.
    pub async fn opens_by(&mut self, shares: &[String]) {
        self.link.set(Weather::Refused);
        self.link.cut();
        self.restart();
        within(
            Duration::from_mins(1),
            "the Vault is sealed after its start",
            async || {
                let status = self.client.status().await;
                (status["sealed"] == true)
                    .then_some(())
                    .ok_or_else(|| status.to_string())
            },
        )
        .await;
        for share in &shares[..THRESHOLD] {
            self.does("PUT", "sys/unseal", &json!({"key": share})).await;
        }
        assert!(
            self.is_unsealed().await,
            "chaos: VIOLATION: the shares do not open the Vault"
        );
    }

    /// What must be said nowhere.
    pub fn needles(&self) -> Vec<Needle> {
        let text = |answer: &String| Needle::new("what the Vault answered", answer.as_bytes());
        let bytes = |answer: &String| {
            let bytes = BASE64.decode(answer.as_bytes()).ok()?;
            Some(Needle::new("a share of the Vault", &bytes))
        };
        self.answers
            .iter()
            .map(text)
            .chain(self.answers[..SHARES].iter().filter_map(bytes))
            .collect()
    }

    fn token(&self) -> &str {
        self.answers.last().map_or("", String::as_str)
    }

    /// A server that has just been unsealed takes a moment until it serves.
    async fn does(&self, method: &str, path: &str, body: &Value) -> Value {
        within(
            Duration::from_mins(1),
            &format!("the Vault does {method} {path}"),
            async || match self.client.ask(method, path, self.token(), body).await {
                Some((200 | 204, answer)) => Ok(answer),
                other => Err(format!("{other:?}")),
            },
        )
        .await
    }
}

/// What the node's kubelet tells of the pod.
async fn report(stage: Stage, client: Client, containers: Arc<AtomicU64>) {
    let kubelet = Kubelet(&stage);
    let mut told = (0, true);
    loop {
        let container = containers.load(Ordering::SeqCst);
        let ready = matches!(timeout(GLANCE, client.sealed()).await, Ok(Some(false)));
        if container != told.0 {
            kubelet
                .container(POD, IpAddr::V4(Ipv4Addr::LOCALHOST), ready)
                .await;
        } else if ready != told.1 {
            kubelet.readiness(POD, ready).await;
        }
        told = (container, ready);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
