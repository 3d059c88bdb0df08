//! Free loopback ports.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use crate::failure::Outcome;

/// Below the range that systems hand out to outgoing connections, so that none of these takes a port between
/// our look and the server's start.
const FIRST: u16 = 15_000;
const COUNT: u16 = 15_000;

/// So many different ports on which nothing listens now. Another program may still be faster; the caller
/// tries again when a server says so.
pub fn free(count: usize) -> Outcome<Vec<u16>> {
    let mut found = BTreeSet::new();
    for attempt in 0..2_000_u16 {
        let random = RandomState::new().hash_one(attempt) % u64::from(COUNT);
        let port = FIRST + u16::try_from(random).unwrap_or_default();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            found.insert(port);
        }
        if found.len() == count {
            return Ok(found.into_iter().collect());
        }
    }
    Err(format!(
        "no {count} free loopback ports between {FIRST} and {}",
        FIRST + COUNT
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_different_and_can_be_bound() {
        let ports = free(4).unwrap();
        let listeners: Vec<_> = ports
            .iter()
            .map(|&port| TcpListener::bind(("127.0.0.1", port)))
            .collect();
        assert_eq!(listeners.iter().filter(|listener| listener.is_ok()).count(), 4);
    }
}
