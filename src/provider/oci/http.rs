//! The HTTP client for OCI: bounded answers, no redirects, no proxy, and guarded where a tenant names the host.
//!
//! *Guarded* (security rule S1) is for endpoints of seals and for what is derived from metadata; *open* is for what the
//! operator's own environment or flags name: test servers, the metadata service. One more kind trusts the cluster's CA
//! only, for OKE.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use reqwest::{
    Method, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use zeroize::Zeroizing;

use super::error::Failure;
use crate::provider::{
    guard::{self, ForbiddenAddress, MAX_ANSWER_BYTES, NoAddress},
    wire,
};

/// Idle connections kept per host.
const IDLE_CONNECTIONS: usize = 32;

/// Looks names up. Injected, so that tests can play a rebinding resolver.
pub(super) type Lookup = Arc<dyn Resolve>;

/// A client that is made at its first use, for loading the system's trusted roots takes tens of milliseconds.
pub(super) struct Client {
    guarded: bool,
    lookup: Lookup,
    connect_timeout: Duration,
    /// PEM of the only CA that is trusted; `None` = the system's.
    ca: Option<Vec<u8>>,
    made: OnceLock<Option<reqwest::Client>>,
}

/// What is sent. The body is shared by the tries of one request and wiped after the last.
pub(super) struct Request<'a> {
    pub(super) method: Method,
    /// Scheme, host and port, without a trailing slash.
    pub(super) base: &'a str,
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Option<Bytes>,
    /// For the request with its whole answer.
    pub(super) timeout: Duration,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: HeaderMap,
    /// May hold key bytes.
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Client {
    pub(super) fn new(
        guarded: bool,
        lookup: &Lookup,
        connect_timeout: Duration,
        ca: Option<Vec<u8>>,
    ) -> Self {
        Self {
            guarded,
            lookup: Arc::clone(lookup),
            connect_timeout,
            ca,
            made: OnceLock::new(),
        }
    }

    fn make(&self) -> Option<reqwest::Client> {
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("autounseal/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(Duration::from_mins(1))
            .tls_version_min(reqwest::tls::Version::TLS_1_2)
            .dns_resolver(Resolver {
                lookup: Arc::clone(&self.lookup),
                guarded: self.guarded,
            });
        if let Some(ca) = &self.ca {
            builder = builder.tls_certs_only(reqwest::Certificate::from_pem_bundle(ca).ok()?);
        }
        builder.build().ok()
    }

    /// Sends a request and reads its answer, whatever its status.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<Answer, Failure> {
        let url = [request.base, request.target].concat();
        if self.guarded
            && let Some(address) = guard::literal_address(&url)
            && guard::judge(&[address]).is_err()
        {
            return Err(Failure::ForbiddenAddress);
        }
        let client = self
            .made
            .get_or_init(|| self.make())
            .as_ref()
            .ok_or(Failure::Tls)?;
        let url: Url = url.parse().map_err(|_| Failure::NoAddress)?;
        let mut headers = HeaderMap::new();
        for (name, value) in request.headers {
            let mut value = HeaderValue::from_str(&value).map_err(|_| Failure::Garbage)?;
            // Keeps it out of the debug output of whatever logs requests.
            value.set_sensitive(name == "authorization");
            headers.insert(HeaderName::from_static(name), value);
        }
        // As the SDKs send it: what Oracle's support finds a request by.
        headers.insert("opc-request-id", request_id());
        let mut builder = client
            .request(request.method, url)
            .headers(headers)
            .timeout(request.timeout);
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let answer = builder.send().await.map_err(|error| failure(&error))?;
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        let body = bounded(answer).await?;
        Ok(Answer {
            status,
            headers,
            body,
        })
    }
}

/// 32 hexadecimal digits that name one request.
fn request_id() -> HeaderValue {
    let mut bytes = [0; 16];
    // Without randomness all requests have one name, and nothing else depends on it.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    HeaderValue::from_str(&data_encoding::HEXLOWER.encode(&bytes))
        .unwrap_or_else(|_| HeaderValue::from_static("autounseal"))
}

/// Reads the whole body, or fails when it is larger than what any honest answer holds. The buffer never grows, so no
/// copy of key bytes is left behind in it.
async fn bounded(mut answer: reqwest::Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let most = MAX_ANSWER_BYTES as u64;
    let length = answer.content_length().unwrap_or(most);
    if length > most {
        return Err(Failure::TooLarge);
    }
    let mut body = Zeroizing::new(Vec::with_capacity(
        usize::try_from(length).unwrap_or(MAX_ANSWER_BYTES),
    ));
    while let Some(chunk) = answer.chunk().await.map_err(|error| failure(&error))? {
        if body.len() + chunk.len() > body.capacity() {
            return Err(Failure::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// From reqwest's errors to ours: the only place that looks inside them.
fn failure(error: &reqwest::Error) -> Failure {
    if wire::find::<ForbiddenAddress>(error).is_some() {
        Failure::ForbiddenAddress
    } else if wire::find::<NoAddress>(error).is_some() {
        Failure::NoAddress
    } else if wire::find::<rustls::Error>(error).is_some() {
        Failure::Tls
    } else if error.is_timeout() {
        if error.is_connect() {
            Failure::Unreachable
        } else {
            Failure::Timeout
        }
    } else if error.is_connect() {
        Failure::Unreachable
    } else if wire::find::<std::io::Error>(error).is_some()
        || error.is_body()
        || error.is_decode()
        || cut(error)
    {
        Failure::Broken
    } else {
        Failure::Garbage
    }
}

/// Whether the connection was closed before there was an answer: what becomes of a request on a kept connection that the
/// server closes at the same moment.
fn cut(error: &reqwest::Error) -> bool {
    wire::find::<hyper::Error>(error)
        .is_some_and(|error| error.is_incomplete_message() || error.is_closed() || error.is_canceled())
}

/// How far the server's clock is from ours, if it tells.
pub(super) fn skew(answer: &Answer, now: SystemTime) -> Option<Duration> {
    answer
        .header("date")
        .and_then(wire::http_date)
        .map(|date| wire::distance(date, now))
}

#[derive(Clone)]
struct Resolver {
    lookup: Lookup,
    guarded: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let Self { lookup, guarded } = self.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> = lookup.resolve(name).await.map_err(|_| NoAddress)?.collect();
            if guarded {
                let addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
                guard::judge(&addresses)?;
            }
            if found.is_empty() {
                return Err(NoAddress.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The system's resolver.
pub(super) struct SystemLookup;

impl Resolve for SystemLookup {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// The `host` header of a base URL, which requests sign: with its port if that is not the scheme's own.
pub(super) fn host_of(base: &str) -> Option<String> {
    let url: Url = base.parse().ok()?;
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_host_names_only_unusual_ports() {
        for (base, host) in [
            (
                "https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com",
                "v-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            ),
            (
                "https://v-crypto.kms.eu-frankfurt-1.oraclecloud.com:443",
                "v-crypto.kms.eu-frankfurt-1.oraclecloud.com",
            ),
            ("http://127.0.0.1:8443", "127.0.0.1:8443"),
            ("https://[::1]:12250", "[::1]:12250"),
        ] {
            assert_eq!(host_of(base).as_deref(), Some(host), "{base}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_closed_without_an_answer_is_broken_and_no_garbage() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let closes = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // All of the request is read: closing with bytes unread is a reset, which is another error.
            tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096])
                .await
                .unwrap();
        });
        let lookup: Lookup = Arc::new(SystemLookup);
        let client = Client::new(false, &lookup, Duration::from_secs(1), None);
        let request = Request {
            method: Method::GET,
            base: &base,
            target: "/",
            headers: Vec::new(),
            body: None,
            timeout: Duration::from_secs(5),
        };
        assert_eq!(client.send(request).await.err(), Some(Failure::Broken));
        closes.await.unwrap();
    }

    #[tokio::test]
    async fn a_guarded_client_sends_nothing_to_the_node() {
        struct Rebinding;

        impl Resolve for Rebinding {
            fn resolve(&self, _: Name) -> Resolving {
                let loopback: SocketAddr = ([127, 0, 0, 1], 0).into();
                let public: SocketAddr = ([192, 0, 2, 1], 0).into();
                Box::pin(async move { Ok(Box::new([public, loopback].into_iter()) as Addrs) })
            }
        }

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lookup: Lookup = Arc::new(Rebinding);
        let client = Client::new(true, &lookup, Duration::from_secs(1), None);
        for host in ["vault.example", "127.0.0.1", "[::ffff:127.0.0.1]"] {
            let request = Request {
                method: Method::GET,
                base: &format!("http://{host}:{port}"),
                target: "/",
                headers: Vec::new(),
                body: None,
                timeout: Duration::from_secs(1),
            };
            let failure = client.send(request).await.err();
            assert_eq!(failure, Some(Failure::ForbiddenAddress), "{host}");
        }
        let nobody = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(nobody.is_err(), "somebody connected");
    }
}
