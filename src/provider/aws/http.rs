//! The one HTTP client under the SDK: a shared pool, bounded answers, no redirects, no proxy.
//!
//! It comes in two kinds (security rule S1). *Guarded*, for everything that a tenant's region or endpoint can reach:
//! addresses are judged after the lookup and at connect time, so no second lookup can swap them. *Open*, for what the
//! operator's own environment names: test servers, metadata services, container agents.

use std::{
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

use crate::provider::guard::{self, AnswerTooLarge, ForbiddenAddress, MAX_ANSWER_BYTES, NoAddress};

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
            && let Some(address) = guard::literal_address(uri)
            && guard::judge(&[address]).is_err()
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

#[derive(Clone, Debug)]
struct Resolver {
    lookup: Lookup,
    guarded: bool,
}

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let addresses = self.lookup.resolve_dns(name).await?;
            if self.guarded {
                guard::judge(&addresses).map_err(ResolveDnsError::new)?;
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
