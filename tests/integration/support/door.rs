//! A door before a real server: it speaks TLS as the server does, passes each request on, and may lose the answer.

use std::{net::SocketAddr, sync::Arc};

use serde_json::Value;
use tokio::runtime::Handle;

use super::{
    fleet::{Client, HOST},
    http::Request,
    pki::Pki,
    tls::{Says, TlsServer},
};

/// Sees each request when the server has answered it; whether the answer is lost.
pub type Watch = Arc<dyn Fn(&Request) -> bool + Send + Sync>;

/// A door at this address before the server of that client.
pub fn before(client: Client, at: SocketAddr, pki: &Pki, watch: Watch) -> TlsServer {
    let runtime = Handle::current();
    TlsServer::at(at, pki, HOST, move |request| {
        let mut words = request.line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.trim_start_matches("/v1/").to_owned();
        let token = request.header("x-vault-token").unwrap_or_default();
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let answer = runtime.block_on(client.ask(method, &path, token, &body));
        let lost = watch(request);
        match answer {
            Some((status, body)) if !lost => {
                let text = if body.is_null() {
                    String::new()
                } else {
                    body.to_string()
                };
                Says::Answer(status, "", text)
            }
            _ => Says::Closes,
        }
    })
}
