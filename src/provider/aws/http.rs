//! The one HTTP client under the SDK: a shared pool, bounded answers, no redirects, no proxy.
//!
//! It comes in two kinds (security rule S1). *Guarded*, for everything that a tenant's region or endpoint can reach:
//! addresses are judged after the lookup and at connect time, so no second lookup can swap them. *Open*, for what the
//! operator's own environment names: test servers, metadata services, container agents.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_smithy_http_client::{
    Connector,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::{
    dns::{DnsFuture, ResolveDns, ResolveDnsError},
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};

/// The largest answer that is read: a KMS's or STS's is a few KiB.
pub(super) const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Idle connections kept per host.
const IDLE_CONNECTIONS: usize = 32;

/// Looks names up. Injected, so that tests can play a rebinding resolver.
pub(super) type Lookup = Arc<dyn ResolveDns>;

/// The two clients.
#[derive(Clone, Debug)]
pub(super) struct Clients {
    pub(super) guarded: SharedHttpClient,
    pub(super) open: SharedHttpClient,
}

impl Clients {
    pub(super) fn new(connect_timeout: Duration, lookup: &Lookup) -> Self {
        let client = |guarded| {
            SharedHttpClient::new(Client {
                connector: SharedHttpConnector::new(Bounded {
                    guarded,
                    resolver: Resolver {
                        lookup: Arc::clone(lookup),
                        guarded,
                    },
                    connect_timeout,
                    https: OnceLock::new(),
                    http: OnceLock::new(),
                }),
            })
        };
        Self {
            guarded: client(true),
            open: client(false),
        }
    }
}

/// Hands out one connector, whatever settings a service client has: so all of them share one pool.
#[derive(Debug)]
struct Client {
    connector: SharedHttpConnector,
}

impl HttpClient for Client {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.connector.clone()
    }
}

/// Makes the connectors at the first request, for loading the system's trusted roots takes tens of milliseconds.
#[derive(Debug)]
struct Bounded {
    guarded: bool,
    resolver: Resolver,
    connect_timeout: Duration,
    https: OnceLock<Connector>,
    http: OnceLock<Connector>,
}

impl Bounded {
    fn connector(&self, https: bool) -> &Connector {
        let make = |trust: TrustStore| {
            // Building this context has no way to fail; its default is the fallback that the types ask for.
            let context = TlsContext::builder()
                .with_trust_store(trust)
                .build()
                .unwrap_or_default();
            Connector::builder()
                .connector_settings(
                    HttpConnectorSettings::builder()
                        .connect_timeout(self.connect_timeout)
                        .build(),
                )
                .pool_max_idle_per_host(IDLE_CONNECTIONS)
                .pool_idle_timeout(Duration::from_mins(1))
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .tls_context(context)
                .build_with_resolver(self.resolver.clone())
        };
        if https {
            self.https.get_or_init(|| make(TrustStore::default()))
        } else {
            self.http.get_or_init(|| make(TrustStore::empty()))
        }
    }
}

impl HttpConnector for Bounded {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let uri = request.uri();
        if self.guarded
            && let Some(address) = literal_address(uri)
            && is_forbidden(address)
        {
            return HttpConnectorFuture::ready(Err(ConnectorError::user(Box::new(ForbiddenAddress))));
        }
        let https = !uri.starts_with("http://");
        let answer = self.connector(https).call(request);
        HttpConnectorFuture::new(async move { bounded(answer.await?).await })
    }
}

/// Reads the whole body, or fails when it is larger than what any honest answer holds.
async fn bounded(answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
    let mut answer = answer;
    let body = std::mem::replace(answer.body_mut(), SdkBody::empty());
    match Limited::new(body, MAX_ANSWER_BYTES).collect().await {
        Ok(whole) => {
            *answer.body_mut() = SdkBody::from(whole.to_bytes());
            Ok(answer)
        }
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ConnectorError::other(Box::new(AnswerTooLarge), None))
        }
        Err(error) => Err(ConnectorError::io(error)),
    }
}

/// The address in a URI that names one instead of a host.
fn literal_address(uri: &str) -> Option<IpAddr> {
    let uri: http::Uri = uri.parse().ok()?;
    let host = uri.host()?;
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
        .parse()
        .ok()
}

/// Addresses at which no cloud offers its KMS, and at which the node or its neighbours listen.
pub(super) fn is_forbidden(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => is_forbidden(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unicast_link_local()
                    // fd00:ec2::/32, where AWS puts its metadata services and agents.
                    || v6.segments()[..2] == [0xfd00, 0x0ec2]
            }
        },
    }
}

/// The IPv4 address in an IPv4-mapped, IPv4-compatible, 6to4 or NAT64 one.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let at = |first: u16, second: u16| {
        let ([a, b], [c, d]) = (first.to_be_bytes(), second.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, a, b] | [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => {
            Some(at(a, b))
        }
        // ::/128 and ::1 are not addresses of IPv4.
        [0, 0, 0, 0, 0, 0, a, b] if a != 0 => Some(at(a, b)),
        _ => None,
    }
}

#[derive(Clone, Debug)]
struct Resolver {
    lookup: Lookup,
    guarded: bool,
}

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let addresses = self.lookup.resolve_dns(name).await?;
            // One forbidden address among several is refused too: which of them gets connected is a race.
            if self.guarded && addresses.iter().copied().any(is_forbidden) {
                return Err(ResolveDnsError::new(ForbiddenAddress));
            }
            if addresses.is_empty() {
                return Err(ResolveDnsError::new(NoAddress));
            }
            Ok(addresses)
        })
    }
}

/// The system's resolver.
#[derive(Debug)]
pub(super) struct SystemLookup;

impl ResolveDns for SystemLookup {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let found = tokio::net::lookup_host((name, 0)).await;
            let found = found.map_err(ResolveDnsError::new)?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

macro_rules! plain_error {
    ($name:ident, $text:literal) => {
        /// Found in the chain of an SDK error to tell what happened.
        #[derive(Debug)]
        pub(super) struct $name;

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($text)
            }
        }

        impl Error for $name {}
    };
}

plain_error!(ForbiddenAddress, "the name resolves to a forbidden address");
plain_error!(NoAddress, "the name resolves to no address");
plain_error!(AnswerTooLarge, "the answer is larger than 64 KiB");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_node_and_its_neighbours_are_forbidden() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "169.254.170.23",
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
        ] {
            assert!(is_forbidden(address.parse().unwrap()), "{address}");
        }
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "52.94.133.131",
            "2600:1f18::1",
            "fd12::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!is_forbidden(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn literal_addresses_are_recognised() {
        for (uri, address) in [
            ("https://127.0.0.1/", Some("127.0.0.1")),
            ("https://[::1]:443/", Some("::1")),
            ("https://kms.eu-west-1.amazonaws.com/", None),
        ] {
            assert_eq!(literal_address(uri), address.map(|a| a.parse().unwrap()), "{uri}");
        }
    }
}
