//! Vault and OpenBao over their API, each over one connection (security rule S10): what was proven of the one who listens
//! holds for as long as that connection does, and a new one is a new stranger.
//!
//! No pool, no proxy, no redirects; answers are bounded, and their text goes nowhere (security rule S13).

mod answer;
mod rekey;
mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    api::Reason,
    seal::{
        Fault, KeyBytes,
        unseal::{
            exchange::{Answer, SealState},
            initialize::Ask,
        },
    },
};
pub use answer::Answered;
pub use rekey::{NewShares, Rekeyed};
pub use tls::Trust;

/// How long a server may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long everything on one connection may take, but for what we do between.
pub const TOTAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may take to initialise itself: it makes its storage, and a native one asks its KMS.
pub const INIT_TIMEOUT: Duration = Duration::from_mins(1);

/// The largest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// What became of the request to initialise a server.
#[derive(Debug)]
pub enum Init {
    /// It did.
    Done(Answered),
    /// It refused, with this status.
    Refused(u16),
    /// It answered with something else: whether it is initialised now, nobody knows.
    Unknown,
}

/// What a server makes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// It did what was asked with it.
    Good,
    /// It does not know it (any more), or does not let it do this.
    Refused,
}

/// The one connection to a server.
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    /// Drives the connection; ends with it.
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects, and proves who listens. Without `trust` nobody is proven: over plain http.
    ///
    /// # Errors
    /// `TargetUnreachable`, `TargetNotVerified`.
    pub async fn open(ip: IpAddr, port: u16, trust: Option<&Trust>) -> Result<Self, Fault> {
        let address = SocketAddr::new(ip, port);
        let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
            .await
            .map_err(|_| unreachable("does not accept a connection within 2 seconds"))?
            .map_err(|_| unreachable("does not accept connections"))?;
        let _ = stream.set_nodelay(true);
        match trust {
            None => Self::over(stream, address.to_string()).await,
            Some(trust) => Self::over(trust.secured(stream).await?, trust.host(port)).await,
        }
    }

    async fn over<S>(stream: S, host: String) -> Result<Self, Fault>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|_| unreachable("closed the connection"))?;
        let driver = tokio::spawn(async move {
            // Who sends finds out by himself.
            let _ = connection.await;
        });
        Ok(Self { sender, host, driver })
    }

    /// `sys/seal-status`.
    ///
    /// # Errors
    /// `TargetUnreachable`; `TargetNotVerified` if it does not answer as these servers do.
    pub async fn seal_status(&mut self) -> Result<SealState, Fault> {
        let (status, body) = self
            .send(Method::GET, "/v1/sys/seal-status", Bytes::new(), None)
            .await?;
        state(status, &body)
    }

    /// Throws away the shares that the server has got so far.
    ///
    /// # Errors
    /// As [`Connection::seal_status`].
    pub async fn reset(&mut self) -> Result<SealState, Fault> {
        let body = Bytes::from_static(b"{\"reset\":true}");
        let (status, body) = self.send(Method::PUT, "/v1/sys/unseal", body, None).await?;
        state(status, &body)
    }

    /// Gives one share, as `seal::unseal::share` wrote it. The buffer is wiped when it was sent.
    ///
    /// # Errors
    /// As [`Connection::seal_status`].
    pub async fn give(&mut self, share: Zeroizing<Vec<u8>>) -> Result<Answer, Fault> {
        let (status, body) = self
            .send(Method::PUT, "/v1/sys/unseal", Bytes::from_owner(share), None)
            .await?;
        if status == StatusCode::BAD_REQUEST {
            return Ok(Answer::Refused);
        }
        state(status, &body).map(Answer::State)
    }

    /// Has the server initialise itself (`sys/init`). It answers only once.
    ///
    /// # Errors
    /// `TargetUnreachable`, `TargetNotVerified`: then whether it is initialised, nobody knows.
    pub async fn initialize(&mut self, ask: Ask) -> Result<Init, Fault> {
        let body = Bytes::from(ask.body());
        let (status, body) = self.send(Method::PUT, "/v1/sys/init", body, None).await?;
        if status.is_client_error() {
            return Ok(Init::Refused(status.as_u16()));
        }
        let answered = Answered::read(&body, ask.native).filter(|_| status == StatusCode::OK);
        Ok(answered.map_or(Init::Unknown, Init::Done))
    }

    /// Revokes a token by itself (`auth/token/revoke-self`).
    ///
    /// # Errors
    /// As [`Connection::seal_status`].
    pub async fn revoke(&mut self, token: &KeyBytes) -> Result<Token, Fault> {
        self.with_token(Method::POST, "/v1/auth/token/revoke-self", token)
            .await
    }

    /// Asks after a token by itself (`auth/token/lookup-self`).
    ///
    /// # Errors
    /// As [`Connection::seal_status`].
    pub async fn look_up(&mut self, token: &KeyBytes) -> Result<Token, Fault> {
        self.with_token(Method::GET, "/v1/auth/token/lookup-self", token)
            .await
    }

    async fn with_token(
        &mut self,
        method: Method,
        path: &'static str,
        token: &KeyBytes,
    ) -> Result<Token, Fault> {
        // Wiped when the request is sent, as far as it is ours.
        let bytes = Bytes::from_owner(Zeroizing::new(token.expose().to_vec()));
        let mut value = HeaderValue::from_maybe_shared(bytes)
            .map_err(|_| stranger("the token that it answered cannot be sent"))?;
        value.set_sensitive(true);
        let (status, _) = self.send(method, path, Bytes::new(), Some(value)).await?;
        match status {
            status if status.is_success() => Ok(Token::Good),
            StatusCode::FORBIDDEN => Ok(Token::Refused),
            // One that has just been unsealed, or that stands by and does not reach the active one.
            status => Err(unreachable(&format!("answers with status {}", status.as_u16()))),
        }
    }

    async fn send(
        &mut self,
        method: Method,
        path: &'static str,
        body: Bytes,
        token: Option<HeaderValue>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Fault> {
        let gone = || unreachable("closed the connection before it answered");
        self.sender.ready().await.map_err(|_| gone())?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.host)
            .header(
                header::USER_AGENT,
                concat!("autounseal/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| gone())?;
        if let Some(token) = token {
            request.headers_mut().insert("x-vault-token", token);
        }
        let answer = self.sender.send_request(request).await.map_err(|error| {
            if error.is_parse() {
                stranger("what it answers is not HTTP")
            } else {
                gone()
            }
        })?;
        let status = answer.status();
        let mut answered = Limited::new(answer.into_body(), MAX_ANSWER);
        // Its capacity never changes, so nothing of a key is left behind where it grew.
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
        while let Some(frame) = answered.frame().await {
            let frame = frame.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    stranger("its answer is larger than 64 KiB")
                } else {
                    unreachable("closed the connection in the middle of an answer")
                }
            })?;
            if let Ok(data) = frame.into_data() {
                body.extend_from_slice(&data);
                wipe(data);
            }
        }
        Ok((status, body))
    }
}

/// Wipes what was read from the network, where nobody else holds it.
fn wipe(data: Bytes) {
    if let Ok(mut data) = data.try_into_mut() {
        data.zeroize();
    }
}

fn state(status: StatusCode, body: &[u8]) -> Result<SealState, Fault> {
    if status.is_server_error() {
        return Err(unreachable(&format!("answers with status {}", status.as_u16())));
    }
    if status != StatusCode::OK {
        return Err(stranger(&format!("it answers with status {}", status.as_u16())));
    }
    SealState::read(body).ok_or_else(|| stranger("its answer is not a seal status"))
}

/// A server that did not end within [`TOTAL_TIMEOUT`].
pub fn late() -> Fault {
    unreachable("does not answer within 10 seconds")
}

fn unreachable(what: &str) -> Fault {
    Fault::transient(
        Reason::TargetUnreachable,
        format!(
            "the server {what}; it is tried again. If it stays so: does it listen on that port at the pod's address, and \
             does every NetworkPolicy let the operator through?"
        ),
    )
}

fn stranger(what: &str) -> Fault {
    Fault::denied(
        Reason::TargetNotVerified,
        format!(
            "what listens is not taken for the server, and got no share more: {what}; correct port, scheme or podSelector"
        ),
    )
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Answers each connection's every request with these bytes.
    async fn answering(answer: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        });
        address
    }

    async fn asked(status: &str, body: &str) -> Result<SealState, Fault> {
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let address = answering(answer.into_bytes()).await;
        let mut connection = Connection::open(address.ip(), address.port(), None).await?;
        connection.seal_status().await
    }

    #[tokio::test]
    async fn only_a_seal_status_is_taken_for_one() {
        let good = r#"{"initialized":true,"sealed":true,"t":3}"#;
        assert!(asked("200 OK", good).await.unwrap().sealed);
        for (status, body) in [
            ("200 OK", "<html>"),
            ("200 OK", ""),
            ("302 Found\r\nlocation: http://127.0.0.1:1/", good),
            ("404 Not Found", good),
            ("200 OK", &format!("{good}{}", " ".repeat(MAX_ANSWER))),
        ] {
            let fault = asked(status, body).await.unwrap_err();
            assert_eq!(fault.reason, Reason::TargetNotVerified, "{status}");
        }
        let down = asked("503 Service Unavailable", "").await.unwrap_err();
        assert_eq!(down.reason, Reason::TargetUnreachable);
    }

    #[tokio::test]
    async fn what_speaks_no_http_is_a_stranger_and_what_is_not_there_unreachable() {
        let address = answering(b"SSH-2.0-x\r\n\r\n".to_vec()).await;
        let mut connection = Connection::open(address.ip(), address.port(), None)
            .await
            .unwrap();
        let fault = connection.seal_status().await.unwrap_err();
        assert_eq!(fault.reason, Reason::TargetNotVerified);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let fault = Connection::open("127.0.0.1".parse().unwrap(), port, None)
            .await
            .err()
            .unwrap();
        assert_eq!(fault.reason, Reason::TargetUnreachable);
    }
}
