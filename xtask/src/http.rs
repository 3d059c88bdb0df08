//! One plain HTTP request to a server that we started on loopback: enough to know that it is up, and to read what it says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a request and gives the answer's status, or nothing if there was no answer.
pub fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Option<u16> {
    let length = body.len().to_string();
    let fixed = [
        ("Host", "127.0.0.1"),
        ("Connection", "close"),
        ("Content-Length", length.as_str()),
    ];
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in fixed.iter().chain(headers) {
        head.extend([name, ": ", value, "\r\n"]);
    }
    status(&exchange(port, &[head.as_str(), "\r\n", body].concat())?)
}

/// The body of the answer to a GET, whatever its status. By HTTP/1.0, in which no server sends it in chunks.
pub fn fetch(port: u16, path: &str) -> Option<Vec<u8>> {
    let answer = exchange(port, &format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"))?;
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    answer.get(head + 4..).map(<[u8]>::to_vec)
}

fn exchange(port: u16, request: &str) -> Option<Vec<u8>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(answer)
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\r').next()?;
    std::str::from_utf8(line)
        .ok()?
        .strip_prefix("HTTP/1.")?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_body_of_an_answer_is_fetched() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".len()];
            stream.read_exact(&mut asked).unwrap();
            let answer = b"HTTP/1.0 400 Bad Request\r\nX: y\r\n\r\n{}\r\n\r\n";
            stream.write_all(answer).unwrap();
            String::from_utf8(asked.to_vec()).unwrap()
        });
        let body = fetch(port, "/");
        assert!(server.join().unwrap().starts_with("GET / HTTP/1.0\r\n"));
        assert_eq!(body.as_deref(), Some(&b"{}\r\n\r\n"[..]));
    }

    #[test]
    fn the_status_is_read_from_the_first_line_only() {
        assert_eq!(
            status(b"HTTP/1.1 403 Forbidden\r\nX: HTTP/1.1 200\r\n\r\n"),
            Some(403)
        );
        assert_eq!(status(b"\x15\x03\x01"), None);
        assert_eq!(status(b""), None);
    }
}
