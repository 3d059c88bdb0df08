//! One plain HTTP request to a server that we started on loopback: enough to know that it is up.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a request and gives the answer's status, or nothing if there was no answer.
pub fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Option<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
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
    stream
        .write_all([head.as_str(), "\r\n", body].concat().as_bytes())
        .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    status(&answer)
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
    use super::*;

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
