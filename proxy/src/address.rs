//! Parses an address to listen on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Parses `ADDRESS:PORT`, `localhost:PORT`, `PORT` (on 127.0.0.1) or `:PORT` (on all IPv4 addresses).
///
/// # Errors
/// The text has none of these forms. The message lists them.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, String> {
    let at = |ip: Ipv4Addr, port: &str| Some(SocketAddr::new(IpAddr::V4(ip), port.parse().ok()?));
    let address = match text.rsplit_once(':') {
        None => at(Ipv4Addr::LOCALHOST, text),
        Some(("", port)) => at(Ipv4Addr::UNSPECIFIED, port),
        Some(("localhost", port)) => at(Ipv4Addr::LOCALHOST, port),
        Some(_) => text.parse().ok(),
    };
    address.ok_or_else(|| "write it like 127.0.0.1:8080, [::1]:8080, localhost:8080, :8080 or 8080".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_address_is_parsed() {
        for (text, address) in [
            ("8080", "127.0.0.1:8080"),
            (":8080", "0.0.0.0:8080"),
            ("localhost:0", "127.0.0.1:0"),
            ("10.1.2.3:80", "10.1.2.3:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(parse(text), Ok(address.parse().unwrap()), "{text}");
        }
        for wrong in ["", "here", "here:80", "65536", "::1", "127.0.0.1", ":", "localhost"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
