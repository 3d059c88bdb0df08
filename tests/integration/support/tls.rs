//! A server that speaks TLS and remembers what it was sent: an impostor, or a server that misbehaves.

use std::{
    io::{BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{
    http::{Request, read_request},
    pki::Pki,
};

/// What it does with a request.
pub enum Says {
    /// A status code, a header line or nothing, and a body.
    Answer(u16, &'static str, String),
    /// Nothing, until the server goes.
    Hangs,
    /// The beginning of an answer, byte by byte, until the server goes.
    Drips,
    /// It closes the connection.
    Closes,
}

/// What came over one connection.
pub type Received = Vec<Request>;

/// The server; stops accepting when dropped.
pub struct TlsServer {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
}

impl TlsServer {
    /// Listens on a free loopback port with the certificate of a host.
    pub fn start(pki: &Pki, host: &str, handler: impl Fn(&Request) -> Says + Send + Sync + 'static) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), pki, host, handler)
    }

    /// The same at an address.
    pub fn at(
        address: SocketAddr,
        pki: &Pki,
        host: &str,
        handler: impl Fn(&Request) -> Says + Send + Sync + 'static,
    ) -> Self {
        let (certificate, key) = pki.files(host);
        let chain = CertificateDer::pem_file_iter(certificate).unwrap();
        let chain: Vec<_> = chain.collect::<Result<_, _>>().unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let received: Arc<Mutex<Vec<Received>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (all, stopped, handler) = (received.clone(), stop.clone(), Arc::new(handler));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (config, all, handler, stopped) =
                    (config.clone(), all.clone(), handler.clone(), stopped.clone());
                thread::spawn(move || {
                    let Ok(session) = ServerConnection::new(config) else {
                        return;
                    };
                    let mut reader = BufReader::new(StreamOwned::new(session, stream));
                    let own = {
                        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                        all.push(Vec::new());
                        all.len() - 1
                    };
                    while let Ok(Some(request)) = read_request(&mut reader) {
                        all.lock().unwrap_or_else(PoisonError::into_inner)[own].push(request.clone());
                        match handler(&request) {
                            Says::Answer(status, header, body) => {
                                let length = body.len();
                                let answer = format!(
                                    "HTTP/1.1 {status} Status\r\n{header}content-length: {length}\r\n\r\n{body}"
                                );
                                if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                                    return;
                                }
                            }
                            Says::Closes => return,
                            Says::Drips => {
                                let mut answer = b"HTTP/1.1 200 OK\r\nx-slow: "
                                    .iter()
                                    .chain(std::iter::repeat(&b'x'));
                                while !stopped.load(Ordering::SeqCst) {
                                    let byte = answer.next().copied().unwrap_or_default();
                                    if reader.get_mut().write_all(&[byte]).is_err() {
                                        return;
                                    }
                                    thread::sleep(Duration::from_millis(50));
                                }
                                return;
                            }
                            Says::Hangs => {
                                while !stopped.load(Ordering::SeqCst) {
                                    thread::sleep(Duration::from_millis(50));
                                }
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self {
            address,
            received,
            stop,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Forgets what came so far.
    pub fn forget(&self) {
        let mut all = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        // Connections know their place.
        all.iter_mut().for_each(Vec::clear);
    }

    /// What came, by connection; one whose handshake failed has nothing.
    pub fn received(&self) -> Vec<Received> {
        self.received
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}
