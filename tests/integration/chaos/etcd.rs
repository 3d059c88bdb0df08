//! Everything that was ever written, from the store itself: a watch of the API may miss what was there for a moment, and
//! misses much when the apiserver is killed. etcd forgets nothing here.

use std::time::Duration;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

/// One write.
#[derive(Clone, Debug)]
pub struct Written {
    /// `/registry/…`.
    pub key: String,
    /// The object, `None` when it was deleted.
    pub object: Option<Value>,
    /// How many writes the key has seen since it was made; etcd counts them.
    pub version: u64,
}

/// Sends on every write below `/registry/`, each once and in order, as long as somebody listens.
///
/// By etcd's gRPC gateway (etcd documentation, "gRPC gateway": `/v3/watch`, one JSON object a line, bytes in base64).
pub async fn follow(url: String, sink: UnboundedSender<Written>) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut next = 1_u64;
    while !sink.is_closed() {
        let request = json!({"create_request": {
            "key": BASE64.encode(b"/registry/"), "range_end": BASE64.encode(b"/registry0"),
            "start_revision": next.to_string(),
        }});
        let asked = client
            .post(format!("{url}/v3/watch"))
            .body(request.to_string())
            .send();
        if let Ok(mut answer) = asked.await {
            let mut pending = Vec::new();
            while let Ok(Some(piece)) = answer.chunk().await {
                pending.extend_from_slice(&piece);
                while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    let said: Value = serde_json::from_slice(&line).unwrap_or_default();
                    for event in said["result"]["events"].as_array().into_iter().flatten() {
                        let (written, revision) = read(event);
                        next = revision + 1;
                        if sink.send(written).is_err() {
                            return;
                        }
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn read(event: &Value) -> (Written, u64) {
    let bytes = |name: &str| {
        let text = event["kv"][name].as_str().unwrap_or_default();
        BASE64.decode(text.as_bytes()).unwrap()
    };
    let number = |name: &str| -> u64 {
        let text = event["kv"][name].as_str().unwrap_or("0");
        text.parse().unwrap()
    };
    let deleted = event["type"] == "DELETE";
    let written = Written {
        key: String::from_utf8_lossy(&bytes("key")).into_owned(),
        object: (!deleted).then(|| serde_json::from_slice(&bytes("value")).unwrap_or_default()),
        version: number("version"),
    };
    (written, number("mod_revision"))
}
