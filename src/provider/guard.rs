//! Addresses at which no cloud has its KMS (security rule S1): judged after the lookup and at connect time, so that no
//! second lookup can swap them.

use std::{
    error::Error,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The largest answer that is read: a KMS's or an identity service's is a few KiB.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What a guarded client does with the addresses of a name.
///
/// # Errors
/// [`ForbiddenAddress`] if one of them is forbidden: which of several gets connected is a race.
pub(crate) fn judge(addresses: &[IpAddr]) -> Result<(), ForbiddenAddress> {
    if addresses.iter().copied().any(is_forbidden) {
        Err(ForbiddenAddress)
    } else {
        Ok(())
    }
}

/// The address in a URI that names one instead of a host: no resolver is asked about it.
pub(crate) fn literal_address(uri: &str) -> Option<IpAddr> {
    let uri: http::Uri = uri.parse().ok()?;
    let host = uri.host()?;
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
        .parse()
        .ok()
}

/// Addresses at which no cloud offers its KMS, and at which the node or its neighbours listen.
pub(crate) fn is_forbidden(address: IpAddr) -> bool {
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
                    // fd00:ec2::/32 and fd00:c1::/32, where AWS and OCI put their metadata services and agents.
                    || matches!(v6.segments()[..2], [0xfd00, 0x0ec2 | 0x00c1])
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

macro_rules! plain_error {
    ($name:ident, $text:literal) => {
        /// Found in the chain of an error to tell what happened.
        #[derive(Debug)]
        pub(crate) struct $name;

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
            "fd00:c1::a9fe:a9fe",
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
