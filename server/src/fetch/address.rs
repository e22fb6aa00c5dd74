//! Which addresses belong to the public internet. Everything else is refused before a packet is
//! sent: a server that fetches what its callers name must not reach what only it can reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Addresses that are fetched from although they are not public.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct PrivateAddresses {
    all: bool,
    prefixes: Vec<Prefix>,
}

/// The addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Prefix {
    address: IpAddr,
    bits: u32,
}

impl FromStr for PrivateAddresses {
    type Err = String;

    /// `all`, or a list such as `10.1.0.0/16,192.168.7.20`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut out = Self::default();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            if part == "all" {
                out.all = true;
                continue;
            }
            let (address, bits) = part.split_once('/').unwrap_or((part, ""));
            let address: IpAddr = address
                .parse()
                .map_err(|_| format!("`{part}` is no address, prefix, or `all`"))?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = match bits {
                "" => most,
                bits => bits
                    .parse()
                    .ok()
                    .filter(|bits| *bits <= most)
                    .ok_or_else(|| format!("`{part}`: a prefix has 0 to {most} bits"))?,
            };
            out.prefixes.push(Prefix { address, bits });
        }
        Ok(out)
    }
}

impl PrivateAddresses {
    /// Whether an address may be connected to.
    pub(super) fn allow(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.all || is_public(address) || self.prefixes.iter().any(|prefix| prefix.has(address))
    }
}

impl Prefix {
    fn has(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
                (a.to_bits() ^ b.to_bits()) & mask == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
                (a.to_bits() ^ b.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

/// IANA's registry of special addresses, and one that a cloud gives its machines.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        [0 | 10 | 127, ..] => true,             // this network, private, loopback
        [100, b, ..] if b & 0xc0 == 64 => true, // carrier-grade NAT
        [169, 254, ..] => true,                 // link-local, and clouds' metadata
        [172, b, ..] if b & 0xf0 == 16 => true, // private
        [192, 0, 0 | 2, _] => true,             // protocol assignments, documentation
        [192, 88, 99, _] => true,               // relays of 6to4
        [192, 168, ..] => true,                 // private
        [198, 18 | 19, ..] => true,             // benchmarks
        [198, 51, 100, _] | [203, 0, 113, _] => true, // documentation
        [168, 63, 129, 16] => true,             // Azure's metadata
        [224..=255, ..] => true,                // multicast, reserved, broadcast
        _ => false,
    };
    !special
}

/// Global unicast without what only wraps an IPv4 address, tunnels, or documents.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // NAT64 carries an IPv4 address, and leads where that leads.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            let bits = (u32::from(high) << 16) | u32::from(low);
            is_public_v4(Ipv4Addr::from_bits(bits))
        }
        [0x2001, b, ..] if b < 0x200 => false, // Teredo, ORCHID, benchmarks
        [0x2001, 0xdb8, ..] => false,          // documentation
        [0x2002, ..] => false,                 // 6to4
        [0x3fff, b, ..] if b < 0x1000 => false, // documentation
        [a, ..] => a & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_of_the_public_internet_is_refused() {
        let none = PrivateAddresses::default();
        for address in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.0.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "168.63.129.16",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!none.allow(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(none.allow(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn an_intranet_is_allowed_by_name() {
        let some: PrivateAddresses = "10.1.0.0/16, 127.0.0.1,fd00::/8".parse().unwrap();
        for (address, allowed) in [
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("127.0.0.1", true),
            ("::ffff:127.0.0.1", true),
            ("127.0.0.2", false),
            ("fd99::1", true),
            ("fe80::1", false),
            ("1.1.1.1", true),
        ] {
            assert_eq!(some.allow(address.parse().unwrap()), allowed, "{address}");
        }
        let all: PrivateAddresses = "all".parse().unwrap();
        assert!(all.allow("127.0.0.1".parse().unwrap()));
        let everything: PrivateAddresses = "0.0.0.0/0".parse().unwrap();
        assert!(everything.allow("127.0.0.1".parse().unwrap()));
        for bad in ["localhost", "10.0.0.0/33", "10.0.0.0/x", "::/129"] {
            assert!(bad.parse::<PrivateAddresses>().is_err(), "{bad}");
        }
    }
}
