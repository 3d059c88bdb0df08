//! The instance metadata service, asked whether it will give credentials, and if not, why.
//!
//! The hop limit of an instance (`HttpPutResponseHopLimit`) is the IP TTL of the packets that carry the answer to the
//! token PUT, and of no others. Behind one hop more than that the PUT is delivered and acknowledged, and then there is
//! silence: no data, no end. A GET without a token is answered all the same (401, or 200 where tokens are optional). So
//! "the PUT connects and stays silent, the GET is answered" is the finding; everything else is another fault.
//!
//! Source: EC2 user guide, "Use IMDSv2"; `torvalds/linux` `net/ipv4/ip_forward.c` for where the packets end.
//!
//! The GET is asked for nothing that version 1 would protect, and its body is not read: version 1 is never used.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::timeout,
};

use crate::{
    api::Reason,
    provider::{Clock, Observer},
    seal::{Fault, FaultKind},
};

/// Bound of a connection: the service is next door.
const CONNECT: Duration = Duration::from_secs(1);

/// After this much silence on the PUT, the GET is asked.
const SILENCE: Duration = Duration::from_millis(700);

/// How long the PUT may take in all.
const PATIENCE: Duration = Duration::from_millis(1500);

/// A bad verdict holds for this long: all who ask meanwhile share one probe, and a raised hop limit is soon seen.
const BAD_HOLDS: Duration = Duration::from_secs(10);

/// A good one holds for longer; credentials are fetched once an hour anyway.
const GOOD_HOLDS: Duration = Duration::from_mins(1);

/// What the probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Tokens are issued.
    Available,
    /// The answer to the PUT does not get here, others do.
    HopLimitTooLow,
    /// Nothing is answered.
    Unreachable,
    /// 403: it is switched off.
    Disabled,
}

impl Verdict {
    /// The word in metrics.
    const fn as_str(self) -> &'static str {
        match self {
            Verdict::Available => "available",
            Verdict::HopLimitTooLow => "hop_limit_too_low",
            Verdict::Unreachable => "unreachable",
            Verdict::Disabled => "disabled",
        }
    }

    /// The fault for one who needs the service; `None` = there is none.
    pub(super) fn fault(self) -> Option<Fault> {
        match self {
            Verdict::Available => None,
            Verdict::HopLimitTooLow => Some(Fault::new(
                Reason::ImdsHopLimitTooLow,
                FaultKind::Nearby,
                "the instance metadata service answers, but its answer to the token request does not reach the operator's pod: \
                 the node's hop limit is too low (a request without a token was answered at once, the token request with \
                 silence); raise it: aws ec2 modify-instance-metadata-options --instance-id <the node's> \
                 --http-put-response-hop-limit 2 --http-endpoint enabled (and in the node group's launch template), or use IRSA \
                 or EKS Pod Identity instead; pods on the same node share this, those with hostNetwork do not",
            )),
            Verdict::Unreachable => Some(Fault::new(
                Reason::ImdsUnreachable,
                FaultKind::Nearby,
                "the instance metadata service gave the operator no answer, neither to a token request nor to a plain one; check \
                 network policies and that the operator runs on an EC2 instance, or use IRSA or EKS Pod Identity instead",
            )),
            Verdict::Disabled => Some(disabled(
                "switch it on for the operator's node (aws ec2 modify-instance-metadata-options --http-endpoint enabled \
                 --instance-id …)",
            )),
        }
    }
}

pub(super) fn disabled(fix: &str) -> Fault {
    Fault::new(
        Reason::ImdsDisabled,
        FaultKind::Nearby,
        format!(
            "the instance metadata service is switched off for the operator; {fix}, or use IRSA or EKS Pod Identity"
        ),
    )
}

/// How one request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// No connection.
    Nothing,
    /// A connection, and silence.
    Silence,
    /// An answer with this status.
    Status(u16),
}

/// What two requests mean together. The GET is asked only when the PUT stays silent.
fn verdict(put: Heard, get: Option<Heard>) -> Verdict {
    match (put, get) {
        (Heard::Status(403), _) | (Heard::Silence, Some(Heard::Status(403))) => Verdict::Disabled,
        (Heard::Status(200), _) => Verdict::Available,
        (Heard::Silence, Some(Heard::Status(200 | 401))) => Verdict::HopLimitTooLow,
        // Anything else that answers there is no metadata service.
        (Heard::Status(_) | Heard::Silence | Heard::Nothing, _) => Verdict::Unreachable,
    }
}

/// The service of this node. One probe at a time, shared by all who ask.
pub(super) struct Imds {
    /// `host:port`; `None` = it cannot be probed by plain HTTP, and is taken for available.
    address: Option<String>,
    clock: Clock,
    observer: Arc<dyn Observer>,
    last: Mutex<Option<(Verdict, SystemTime)>>,
}

impl Imds {
    /// For the endpoint that the SDK uses, `http://host[:port]`.
    pub(super) fn new(endpoint: &str, clock: Clock, observer: Arc<dyn Observer>) -> Self {
        Self {
            address: address(endpoint),
            clock,
            observer,
            last: Mutex::new(None),
        }
    }

    /// Whether the service will give credentials, asked at most once while the last verdict holds.
    pub(super) async fn verdict(&self) -> Verdict {
        let Some(address) = &self.address else {
            return Verdict::Available;
        };
        let mut last = self.last.lock().await;
        let now = (self.clock)();
        if let Some((verdict, until)) = *last
            && now < until
        {
            return verdict;
        }
        let found = probe(address).await;
        self.observer.imds_probe(found.as_str());
        let holds = match found {
            Verdict::Available => GOOD_HOLDS,
            _ => BAD_HOLDS,
        };
        *last = Some((found, (self.clock)() + holds));
        found
    }
}

/// Host and port of an endpoint of plain HTTP, without its path.
pub(super) fn address(endpoint: &str) -> Option<String> {
    let uri: http::Uri = endpoint.parse().ok()?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"))?;
    Some(match authority.port_u16() {
        Some(_) => authority.as_str().to_owned(),
        None => format!("{authority}:80"),
    })
}

async fn probe(address: &str) -> Verdict {
    let found = timeout(CONNECT, tokio::net::lookup_host(address)).await;
    let Some(to) = found.ok().and_then(Result::ok).and_then(|mut found| found.next()) else {
        return Verdict::Unreachable;
    };
    let put = ask(
        to,
        address,
        "PUT /latest/api/token",
        "x-aws-ec2-metadata-token-ttl-seconds: 60\r\ncontent-length: 0\r\n",
        PATIENCE,
    );
    tokio::pin!(put);
    if let Ok(heard) = timeout(SILENCE, &mut put).await {
        return verdict(heard, None);
    }
    let get = ask(
        to,
        address,
        "GET /latest/meta-data/",
        "",
        PATIENCE.saturating_sub(SILENCE),
    );
    // The PUT may still be answered meanwhile: then the service is slow, and no hop is missing.
    let (put, get) = tokio::join!(put, get);
    verdict(put, Some(get))
}

/// Sends one request and reads the status of its answer.
async fn ask(to: SocketAddr, host: &str, line: &str, headers: &str, patience: Duration) -> Heard {
    let exchange = async {
        let Ok(Ok(mut stream)) = timeout(CONNECT, TcpStream::connect(to)).await else {
            return Err(Heard::Nothing);
        };
        let request = format!(
            "{line} HTTP/1.1\r\nhost: {host}\r\nuser-agent: autounseal\r\nconnection: close\r\n{headers}\r\n"
        );
        stream
            .write_all(request.as_bytes())
            .await
            .map_err(|_| Heard::Nothing)?;
        let mut head = [0; 12];
        match stream.read_exact(&mut head).await {
            Ok(_) => Ok(status(&head)),
            // It was closed without an answer.
            Err(_) => Err(Heard::Nothing),
        }
    };
    match timeout(patience, exchange).await {
        Ok(Ok(Some(status))) => Heard::Status(status),
        Ok(Ok(None)) => Heard::Nothing,
        Ok(Err(heard)) => heard,
        Err(_) => Heard::Silence,
    }
}

/// The status in `HTTP/1.1 200`.
pub(super) fn status(head: &[u8; 12]) -> Option<u16> {
    let text = std::str::from_utf8(head).ok()?;
    text.strip_prefix("HTTP/1.")?.get(2..)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_silent_put_beside_an_answered_get_is_the_hop_limit() {
        use Heard::{Nothing, Silence, Status};
        for (put, get, expected) in [
            (Status(200), None, Verdict::Available),
            (Status(200), Some(Status(401)), Verdict::Available),
            (Status(403), None, Verdict::Disabled),
            (Silence, Some(Status(401)), Verdict::HopLimitTooLow),
            (Silence, Some(Status(200)), Verdict::HopLimitTooLow),
            (Silence, Some(Status(403)), Verdict::Disabled),
            (Silence, Some(Silence), Verdict::Unreachable),
            (Silence, Some(Nothing), Verdict::Unreachable),
            (Silence, Some(Status(404)), Verdict::Unreachable),
            (Nothing, None, Verdict::Unreachable),
            (Status(404), None, Verdict::Unreachable),
            (Status(500), None, Verdict::Unreachable),
        ] {
            assert_eq!(verdict(put, get), expected, "{put:?} {get:?}");
        }
    }

    #[test]
    fn the_endpoint_is_probed_where_the_sdk_asks() {
        for (endpoint, expected) in [
            ("http://169.254.169.254", Some("169.254.169.254:80")),
            ("http://169.254.169.254/", Some("169.254.169.254:80")),
            ("http://[fd00:ec2::254]", Some("[fd00:ec2::254]:80")),
            ("http://127.0.0.1:1338", Some("127.0.0.1:1338")),
            ("https://imds.example", None),
            ("nonsense", None),
        ] {
            assert_eq!(address(endpoint).as_deref(), expected, "{endpoint}");
        }
    }

    #[test]
    fn a_status_is_read_from_the_first_line_only() {
        assert_eq!(status(b"HTTP/1.1 200"), Some(200));
        assert_eq!(status(b"HTTP/1.0 401"), Some(401));
        assert_eq!(status(b"SSH-2.0-Open"), None);
        assert_eq!(status(b"HTTP/1.1 2x0"), None);
    }

    #[tokio::test]
    async fn a_closed_port_is_unreachable_at_once() {
        let port = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        assert_eq!(probe(&format!("127.0.0.1:{port}")).await, Verdict::Unreachable);
    }

    #[tokio::test]
    async fn a_slow_service_is_no_hop_limit() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 3];
                    stream.read_exact(&mut head).await.unwrap();
                    let answer = if &head == b"PUT" {
                        tokio::time::sleep(SILENCE + Duration::from_millis(200)).await;
                        "HTTP/1.1 200 OK\r\n\r\n"
                    } else {
                        "HTTP/1.1 401 Unauthorized\r\n\r\n"
                    };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                });
            }
        });
        assert_eq!(probe(&address).await, Verdict::Available);
    }
}
