//! A plain HTTP/1.1 server on blocking sockets: small enough to misbehave on purpose, byte by byte.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// What a client sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// First line.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Request {
    /// The first header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// What the server does with it.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer.
    Answer {
        /// Status code.
        status: u16,
        /// Headers beside `content-length`.
        headers: Vec<(&'static str, String)>,
        /// Body.
        body: Vec<u8>,
    },
    /// Takes the request and says nothing, until the server goes.
    Hang,
    /// Promises a body, sends half of it and closes.
    CloseMidAnswer(Vec<u8>),
    /// Bytes that are no HTTP.
    Garbage(Vec<u8>),
    /// The answer, after a while.
    Late(Duration, Box<Reply>),
}

impl Reply {
    /// An answer with a content type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Reply::Answer {
            status,
            headers: vec![("content-type", content_type.to_owned())],
            body: body.into(),
        }
    }
}

/// A running server; stops accepting when dropped.
pub struct Server {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Listens on a free loopback port.
    pub fn start(handler: impl Fn(Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU64::new(0));
        let bytes = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let handler = Arc::new(handler);
        let shared = (connections.clone(), bytes.clone(), stop.clone());
        thread::spawn(move || {
            let (connections, bytes, stop) = shared;
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                connections.fetch_add(1, Ordering::SeqCst);
                let (handler, bytes, stop) = (handler.clone(), bytes.clone(), stop.clone());
                // A client that goes away in the middle is the client's business.
                thread::spawn(move || serve(&stream, &*handler, &bytes, &stop));
            }
        });
        Self {
            address,
            connections,
            bytes,
            stop,
        }
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    /// Bytes received so far, on all connections.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept loop, so that the port is given back.
        let _ = TcpStream::connect(self.address);
    }
}

struct Counted<'a> {
    stream: &'a TcpStream,
    bytes: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = (&mut &*self.stream).read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::SeqCst);
        Ok(read)
    }
}

fn serve(
    stream: &TcpStream,
    handler: &(dyn Fn(Request) -> Reply + Send + Sync),
    bytes: &AtomicU64,
    stop: &AtomicBool,
) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(Counted { stream, bytes });
    while let Ok(Some(request)) = read_request(&mut reader) {
        let mut out = stream;
        let mut reply = handler(request);
        while let Reply::Late(after, then) = reply {
            thread::sleep(after);
            reply = *then;
        }
        let done = match reply {
            Reply::Late(..) => true,
            Reply::Answer {
                status,
                headers,
                body,
            } => {
                let mut answer = format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    answer.push_str(name);
                    answer.push_str(": ");
                    answer.push_str(&value);
                    answer.push_str("\r\n");
                }
                answer.push_str("\r\n");
                let mut answer = answer.into_bytes();
                answer.extend_from_slice(&body);
                out.write_all(&answer).is_err()
            }
            Reply::Hang => {
                while !stop.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(50));
                }
                true
            }
            Reply::CloseMidAnswer(body) => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = out.write_all(head.as_bytes());
                let _ = out.write_all(&body[..body.len() / 2]);
                true
            }
            Reply::Garbage(body) => {
                let _ = out.write_all(&body);
                true
            }
        };
        if done {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

/// The next request, `None` when the client has gone.
pub fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let header = header.trim_end();
        if header.is_empty() {
            break;
        }
        if let Some((name, value)) = header.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request {
        line: line.trim_end().to_owned(),
        headers,
        body,
    }))
}
