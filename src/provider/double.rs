//! A server on loopback that answers what a test says.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, Response},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `Decrypt`, `AssumeRole`, … or method and path.
    pub(crate) operation: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// A field of a form, still percent-encoded but for `+`, `/` and `:`.
    pub(crate) fn form(&self, field: &str) -> Option<String> {
        let value = self
            .body
            .split('&')
            .find_map(|pair| pair.strip_prefix(&format!("{field}=")))?;
        Some(value.replace("%2F", "/").replace("%3A", ":"))
    }
}

/// What is answered.
#[derive(Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) delay: Duration,
}

impl Reply {
    pub(crate) fn json(body: &serde_json::Value) -> Self {
        Self {
            status: 200,
            body: body.to_string().into_bytes(),
            ..Self::default()
        }
    }

    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self {
            status,
            body: body.as_bytes().to_vec(),
            ..Self::default()
        }
    }

    pub(crate) fn error(status: u16, code: &str) -> Self {
        Self::text(
            status,
            &format!(r#"{{"__type":"{code}","message":"FOREIGN TEXT"}}"#),
        )
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

pub(crate) struct Double {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Double {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        let app = Router::new().fallback(move |request: Request| {
            let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
            async move {
                let request = read(request).await;
                log.lock().unwrap().push(request.clone());
                let reply = answer(&request);
                tokio::time::sleep(reply.delay).await;
                let mut response = Response::builder().status(reply.status);
                for (name, value) in reply.headers {
                    response = response.header(name, value);
                }
                response.body(Body::from(reply.body)).unwrap()
            }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn read(request: Request) -> Seen {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let target = head
        .headers
        .get("x-amz-target")
        .map(|target| target.to_str().unwrap().to_owned());
    let operation = target
        .and_then(|target| target.strip_prefix("TrentService.").map(str::to_owned))
        .or_else(|| {
            let action = body.split('&').find_map(|pair| pair.strip_prefix("Action="))?;
            Some(action.to_owned())
        })
        .unwrap_or_else(|| format!("{} {}", head.method, head.uri.path()));
    Seen {
        operation,
        headers: head.headers,
        body,
    }
}

/// A server that reads a little, writes these bytes and closes. Returns its address.
pub(crate) async fn raw(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 8192]).await;
                let _ = stream.write_all(bytes).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    address.to_string()
}
