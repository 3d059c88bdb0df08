//! Traces by OTLP over HTTP (feature `otlp`): a span for each reconcile, and in it one for each call of a KMS.
//!
//! Only spans of the target [`TRACES`] are sent, and no log line: they carry the object's kind, namespace and name, the
//! provider and the operation, and nothing else (security rule S13).

use std::{fmt, pin::Pin, time::Duration};

use bytes::Bytes;
use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tokio::runtime::Handle;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

use crate::provider::TRACES;

/// Bound of one transfer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The path of OTLP over HTTP (OpenTelemetry protocol specification, "OTLP/HTTP request").
const PATH: &str = "/v1/traces";

/// Where spans go; the rest of them is sent by [`Traces::end`].
pub struct Traces(SdkTracerProvider);

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
#[error("--otlp-endpoint: {0:?} is not the URL of an OTLP receiver over HTTP, such as http://collector:4318")]
pub struct TracesError(String);

impl Traces {
    /// Sends to this receiver from now on; to be called on the runtime.
    ///
    /// # Errors
    /// If the endpoint is not a URL, or there is no TLS.
    pub fn to(endpoint: &str) -> Result<Self, TracesError> {
        let wrong = || TracesError(endpoint.to_owned());
        let url = format!("{}{PATH}", endpoint.trim_end_matches('/').trim_end_matches(PATH));
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(|_| wrong())?;
        let client = Client {
            http,
            runtime: Handle::current(),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(url)
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|_| wrong())?;
        let about = Resource::builder_empty()
            .with_service_name("auto-unseal-operator")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(about)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self(provider))
    }

    /// What takes the spans from the program.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("autounseal"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(|about| about.is_span() && about.target() == TRACES))
    }

    /// Sends what is left, for a few seconds at the most.
    pub async fn end(self) {
        // It waits for a transfer, which needs this thread's runtime.
        let _ = tokio::task::spawn_blocking(move || self.0.shutdown()).await;
    }
}

/// Sends on the runtime what the SDK's own thread, which has none, wants to have sent.
struct Client {
    http: reqwest::Client,
    runtime: Handle,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

type Answer = Result<http::Response<Bytes>, HttpError>;

impl HttpClient for Client {
    fn send_bytes<'client, 'future>(
        &'client self,
        request: http::Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'future>>
    where
        'client: 'future,
        Self: 'future,
    {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let answer = http.execute(request.try_into()?).await?;
            let status = answer.status();
            let mut response = http::Response::new(answer.bytes().await?);
            *response.status_mut() = status;
            Ok(response)
        });
        Box::pin(async move { sent.await? })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
        sync::mpsc,
        thread,
    };

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// A receiver: the first request line and body, as soon as it is complete.
    fn receiver() -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let body = loop {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).unwrap();
                seen.extend_from_slice(&buffer[..read]);
                let text = String::from_utf8_lossy(&seen).to_lowercase();
                let Some((head, _)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let length = head.split("content-length: ").nth(1).unwrap();
                let length: usize = length.lines().next().unwrap().parse().unwrap();
                let start = head.len() + 4;
                if seen.len() >= start + length {
                    break seen[start..].to_vec();
                }
            };
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .unwrap();
            let line = String::from_utf8_lossy(&seen).lines().next().unwrap().to_owned();
            tell.send((line, body)).unwrap();
        });
        (endpoint, told)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn spans_arrive_with_their_object_and_without_a_log_line() {
        let (endpoint, told) = receiver();
        let traces = Traces::to(&endpoint).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(traces.layer()), || {
            let reconcile =
                tracing::info_span!(target: TRACES, "reconcile", namespace = "billing", name = "root");
            let _in = reconcile.entered();
            tracing::info!(target: TRACES, "a line with needle-one");
            let _other = tracing::info_span!("elsewhere", value = "needle-two").entered();
            let _kms = tracing::info_span!(target: TRACES, "kms", operation = "unwrap").entered();
        });
        traces.end().await;
        let (line, body) = told.recv_timeout(Duration::from_mins(1)).unwrap();
        assert_eq!(line, "POST /v1/traces HTTP/1.1");
        let has = |word: &str| body.windows(word.len()).any(|part| part == word.as_bytes());
        for word in [
            "auto-unseal-operator",
            "reconcile",
            "billing",
            "root",
            "kms",
            "unwrap",
        ] {
            assert!(has(word), "{word}");
        }
        for word in ["needle", "elsewhere", "src/telemetry"] {
            assert!(!has(word), "{word}");
        }
    }

    #[tokio::test]
    async fn what_is_no_url_is_refused_with_the_flag_in_the_sentence() {
        let error = Traces::to("collector:4318 please").err().unwrap().to_string();
        assert!(error.contains("--otlp-endpoint"), "{error}");
    }
}
