//! A proxy before the apiserver that counts the operator's writes and kills it at one of them: crash points are
//! enumerated, not sampled.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use http_body_util::BodyExt;
use kube::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{
    operator::{Operator, Running},
    stage::unique,
};

/// On which side of a write the operator dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The apiserver never hears of it.
    Before,
    /// The apiserver has done it, and the operator never hears of that.
    After,
}

/// The write at which the operator dies: the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Which write.
    pub write: usize,
    /// On which side of it.
    pub side: Side,
}

struct Shared {
    client: Client,
    cut: Option<Cut>,
    writes: AtomicUsize,
    pid: AtomicU32,
    struck: AtomicBool,
    seen: Mutex<Vec<String>>,
    /// How many of the next writes of Secrets are let through, and how many of those after them are refused.
    spared: AtomicUsize,
    refused: AtomicUsize,
    /// It says that it is so old, by its minor version.
    minor: Option<u32>,
}

/// The proxy; it ends with the test's runtime.
pub struct Knife {
    shared: Arc<Shared>,
    kubeconfig: PathBuf,
}

impl Knife {
    /// Stands between an operator and the apiserver that this client speaks to. Without a cut it only counts.
    pub async fn new(client: Client, cut: Option<Cut>) -> Self {
        Self::made(client, cut, None).await
    }

    /// Stands between this operator and its apiserver, with the operator's own credentials, and says that the apiserver is
    /// of version 1.`minor`. The operator is to be started as it comes back.
    pub async fn of_version(operator: &Operator, minor: u32) -> (Self, Operator) {
        let read = kube::config::Kubeconfig::read_from(operator.variable("KUBECONFIG")).unwrap();
        let config = kube::Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        let knife = Self::made(client, None, Some(minor)).await;
        let kubeconfig = knife.kubeconfig.display().to_string();
        let operator = operator.clone().env("KUBECONFIG", kubeconfig);
        (knife, operator)
    }

    async fn made(client: Client, cut: Option<Cut>, minor: Option<u32>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            client,
            cut,
            writes: AtomicUsize::new(0),
            pid: AtomicU32::new(0),
            struck: AtomicBool::new(false),
            seen: Mutex::default(),
            spared: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            minor,
        });
        let handler = shared.clone();
        let router = Router::new().fallback(move |request: Request| {
            let shared = handler.clone();
            async move { shared.pass(request).await }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        let kubeconfig = std::env::temp_dir().join(format!("knife-{}.json", unique()));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "knife",
            "clusters": [{"name": "knife", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "knife", "user": {}}],
            "contexts": [{"name": "knife", "context": {"cluster": "knife", "user": "knife"}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        Self { shared, kubeconfig }
    }

    /// Starts an operator behind it.
    pub fn start(&self, operator: &Operator) -> Running {
        let running = operator
            .clone()
            .env("KUBECONFIG", self.kubeconfig.display().to_string())
            .spawn();
        self.shared.pid.store(running.pid(), Ordering::SeqCst);
        running
    }

    /// Whether the cut was made.
    pub fn has_struck(&self) -> bool {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// Whether the write at which it cuts has come.
    pub fn is_reached(&self) -> bool {
        self.shared.cut.is_some_and(|cut| self.writes() >= cut.write)
    }

    /// Refuses so many of the next writes of Secrets; 0 = none any more.
    pub fn refuse(&self, writes: usize) {
        self.shared.refused.store(writes, Ordering::SeqCst);
    }

    /// Lets so many of the next writes of Secrets through, and refuses so many after them.
    pub fn refuse_after(&self, spared: usize, writes: usize) {
        self.shared.spared.store(spared, Ordering::SeqCst);
        self.refuse(writes);
    }

    /// Whether nothing is left to be refused.
    pub fn has_refused(&self) -> bool {
        self.shared.refused.load(Ordering::SeqCst) == 0
    }

    /// Writes so far.
    pub fn writes(&self) -> usize {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// What they were, as `METHOD path`.
    pub fn seen(&self) -> Vec<String> {
        self.shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Knife {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.kubeconfig);
    }
}

impl Shared {
    async fn pass(&self, request: Request) -> Response {
        if let Some(minor) = self.minor.filter(|_| request.uri().path() == "/version") {
            let version = json!({
                "major": "1", "minor": minor.to_string(), "gitVersion": format!("v1.{minor}.0"), "gitCommit": "",
                "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
            });
            return Response::new(Body::from(version.to_string()));
        }
        let what = format!("{} {}", request.method(), request.uri().path());
        let mine = is_write(&what).then(|| self.writes.fetch_add(1, Ordering::SeqCst) + 1);
        if mine.is_some() {
            self.seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(what);
        }
        let cut = self.cut.filter(|cut| mine.is_some_and(|mine| mine >= cut.write));
        if cut.is_some_and(|cut| cut.side == Side::Before || mine != Some(cut.write)) {
            return self.kill().await;
        }
        let secret = mine.is_some() && request.uri().path().contains("/secrets");
        let one_less = |left: usize| left.checked_sub(1);
        let one_of = |left: &AtomicUsize| {
            let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
            taken.is_ok()
        };
        if secret && !one_of(&self.spared) && one_of(&self.refused) {
            return Response::builder().status(500).body(Body::empty()).unwrap();
        }
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes().to_vec());
        let mut forwarded = http::Request::new(kube::client::Body::from(body.unwrap_or_default()));
        *forwarded.method_mut() = parts.method;
        *forwarded.uri_mut() = parts.uri;
        for (name, value) in &parts.headers {
            if !["host", "content-length", "connection", "accept-encoding"].contains(&name.as_str()) {
                forwarded.headers_mut().insert(name, value.clone());
            }
        }
        let answer = self.client.send(forwarded).await;
        if cut.is_some() {
            return self.kill().await;
        }
        match answer {
            Ok(answer) => answer.map(Body::new),
            Err(error) => Response::builder()
                .status(502)
                .body(Body::from(error.to_string()))
                .unwrap(),
        }
    }

    /// The operator does not live to see an answer.
    async fn kill(&self) -> Response {
        // It may write before the test knows its id.
        loop {
            let pid = i32::try_from(self.pid.load(Ordering::SeqCst)).ok();
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
                self.struck.store(true, Ordering::SeqCst);
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::future::pending().await
    }
}

/// Secrets and the status of our own objects; events and tokens are of no account here.
fn is_write(what: &str) -> bool {
    let Some((method, path)) = what.split_once(' ') else {
        return false;
    };
    ["POST", "PUT", "PATCH", "DELETE"].contains(&method)
        && (path.contains("/secrets") || path.contains("/sealconfigs/") || path.contains("/managedkeys/"))
}
