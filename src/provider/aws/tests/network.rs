use super::{double::raw, *};
use crate::seal::FaultKind;
use aws_smithy_runtime_api::client::{
    dns::{DnsFuture, ResolveDns, ResolveDnsError},
    http::{HttpClient, HttpConnector, HttpConnectorSettings},
    orchestrator::HttpRequest,
    runtime_components::RuntimeComponentsBuilder,
};
use std::{net::IpAddr, time::Instant};
use tokio::net::TcpListener;

/// Answers the n-th lookup with the n-th address, the last one for ever.
#[derive(Debug)]
struct Rebinding(Vec<IpAddr>, AtomicUsize);

impl ResolveDns for Rebinding {
    fn resolve_dns<'a>(&'a self, _: &'a str) -> DnsFuture<'a> {
        let turn = self.1.fetch_add(1, Ordering::SeqCst);
        DnsFuture::ready(match self.0.get(turn).or(self.0.last()) {
            Some(address) => Ok(vec![*address]),
            None => Err(ResolveDnsError::new("no such host")),
        })
    }
}

fn lookup(addresses: &[&str]) -> http::Lookup {
    Arc::new(Rebinding(
        addresses.iter().map(|a| a.parse().unwrap()).collect(),
        AtomicUsize::new(0),
    ))
}

async fn get(client: &impl HttpClient, url: &str) -> Result<u16, String> {
    let components = RuntimeComponentsBuilder::for_tests().build().unwrap();
    let connector = client.http_connector(&HttpConnectorSettings::builder().build(), &components);
    let mut request = HttpRequest::empty();
    request.set_uri(url).unwrap();
    let answer = connector.call(request).await.map_err(|error| {
        let forbidden =
            crate::provider::wire::find::<crate::provider::guard::ForbiddenAddress>(&error).is_some();
        format!("{} {error:?}", if forbidden { "forbidden" } else { "other" })
    })?;
    Ok(answer.status().as_u16())
}

#[tokio::test]
async fn a_rebinding_resolver_gets_no_byte_to_loopback() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = counter();
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(stream);
        }
    });
    let url = format!("http://kms.eu-west-1.amazonaws.com:{port}/");
    // The second lookup goes to loopback: 192.0.2.1 is nobody's (RFC 5737).
    let rebinding = lookup(&["192.0.2.1", "127.0.0.1"]);
    let clients = http::Clients::new(Duration::from_millis(200), &rebinding);
    assert!(
        get(&clients.guarded, &url)
            .await
            .unwrap_err()
            .starts_with("other")
    );
    assert!(
        get(&clients.guarded, &url)
            .await
            .unwrap_err()
            .starts_with("forbidden")
    );
    for address in [
        "127.0.0.1",
        "::ffff:127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "::1",
    ] {
        let clients = http::Clients::new(Duration::from_millis(200), &lookup(&[address]));
        assert!(
            get(&clients.guarded, &url)
                .await
                .unwrap_err()
                .starts_with("forbidden")
        );
    }
    for url in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
    ] {
        let clients = http::Clients::new(Duration::from_millis(200), &lookup(&[]));
        assert!(
            get(&clients.guarded, &url)
                .await
                .unwrap_err()
                .starts_with("forbidden")
        );
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    // The proof that the listener would have heard.
    let clients = http::Clients::new(Duration::from_millis(200), &lookup(&["127.0.0.1"]));
    assert!(get(&clients.open, &url).await.unwrap_err().starts_with("other"));
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn derived_kms_and_sts_hosts_are_guarded() {
    let bench = Bench::with("", FakeCluster::default(), &lookup(&["127.0.0.1"]), quick());
    let vpce = AwsSeal {
        endpoint: Some("https://vpce-1.kms.us-east-1.vpce.amazonaws.com".into()),
        ..seal(ARN)
    };
    let irsa = AwsSeal {
        credentials: service_account(),
        ..seal(ARN)
    };
    for seal in [seal(ARN), vpce, irsa] {
        let kms = bench.kms(&seal).await;
        let fault = kms
            .unwrap(Format::Kms, &Ciphertext::new(vec![1]), &none())
            .await
            .unwrap_err();
        assert_eq!(fault.reason, Reason::EndpointUnresolvable, "{fault}");
        assert!(fault.message.contains("loopback"), "{fault}");
    }
}

#[tokio::test]
async fn a_name_without_address_is_told() {
    let bench = Bench::with("", FakeCluster::default(), &lookup(&[]), quick());
    let kms = bench.kms(&seal(ARN)).await;
    let fault = kms
        .unwrap(Format::Kms, &Ciphertext::new(vec![1]), &none())
        .await
        .unwrap_err();
    assert_eq!(
        (fault.reason, fault.kind),
        (Reason::EndpointUnresolvable, FaultKind::Transient)
    );
    assert!(fault.message.contains("does not resolve"));
}

#[tokio::test]
async fn endpoints_that_are_not_allowed_are_refused_before_anything_is_read() {
    let bench = Bench::at("http://127.0.0.1:9");
    for endpoint in [
        "https://kms.eu-west-1.amazonaws.com",
        "https://s3.us-east-1.amazonaws.com",
        "http://127.0.0.1:10",
    ] {
        let seal = AwsSeal {
            endpoint: Some(endpoint.into()),
            ..seal(ARN)
        };
        let fault = bench.aws.connect(&seal, TENANT).await.map(|_| ()).unwrap_err();
        assert_eq!(fault.reason, Reason::EndpointNotAllowed);
    }
    let seal = AwsSeal {
        region: "eu-west-1".parse().ok(),
        ..seal(ARN)
    };
    let fault = bench.aws.connect(&seal, TENANT).await.map(|_| ()).unwrap_err();
    assert_eq!(fault.reason, Reason::RegionMismatch);
}

async fn fault_at(url: &str) -> Fault {
    let lookup = Arc::new(http::SystemLookup) as http::Lookup;
    let bench = Bench::with(url, FakeCluster::default(), &lookup, quick());
    let kms = bench.kms(&seal(ARN)).await;
    let started = Instant::now();
    let fault = kms
        .unwrap(Format::Kms, &Ciphertext::new(vec![1]), &none())
        .await
        .unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(10));
    fault
}

#[tokio::test]
async fn servers_that_misbehave_are_unavailable() {
    for (bytes, word) in [
        (b"".as_slice(), "broke"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"KeyId\"",
            "broke",
        ),
        (b"\x16\x03\x01 garbage garbage garbage", "not its protocol"),
    ] {
        let fault = fault_at(&format!("http://{}", raw(bytes).await)).await;
        assert_eq!(
            (fault.reason, fault.kind),
            (Reason::KmsUnavailable, FaultKind::Transient)
        );
        assert!(fault.message.contains(word), "{fault}");
    }
    let hanging = Double::start(|_| Reply::text(200, "{}").after(Duration::from_mins(1))).await;
    let fault = fault_at(&hanging.url).await;
    assert_eq!(fault.reason, Reason::KmsUnavailable);
    assert!(fault.message.contains("in time"), "{fault}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    let fault = fault_at(&format!("http://{closed}")).await;
    assert_eq!(fault.reason, Reason::KmsUnavailable);
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    for status in [200, 400] {
        let huge = Double::start(move |_| Reply::text(status, &"x".repeat(200_000))).await;
        let fault = fault_at(&huge.url).await;
        assert_eq!(fault.reason, Reason::KmsUnavailable);
        assert!(fault.message.contains("64 KiB"), "{fault}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_no_https_endpoint() {
    let plain = raw(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let fault = fault_at(&format!("https://{plain}")).await;
    assert_eq!(fault.reason, Reason::EndpointTlsFailed);
}
