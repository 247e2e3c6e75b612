//! Which addresses the operator asks on behalf of a Projection's author. Pure.
//!
//! A Projection or its Secret names a server, or a server announces others, and the operator connects to it from its own place in the network. Addresses that are reachable from there and that
//! a team could not reach by itself are refused: the operator's own machine, the machine's cloud metadata, and the API server. An administrator can
//! allow ranges of them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Where clouds serve a machine's own credentials outside link-local ranges: AWS and Google over IPv6, Alibaba, Azure.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];

/// Addresses that have the same first bits: `10.0.0.0/8`, `fd00::/8`, or a single one, `127.0.0.1`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AddressRange {
    address: IpAddr,
    bits: u8,
}

impl AddressRange {
    fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differs = u32::from(own) ^ u32::from(other);
                differs.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differs = u128::from(own) ^ u128::from(other);
                differs.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is no address and no range of addresses, such as 127.0.0.1 or 10.0.0.0/8");
        let text = text.trim();
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), |bits| bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(wrong))?;
        Ok(Self { address, bits })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Which addresses may be asked. The default allows what a team in the cluster reaches as well: Services, pods, nodes, other hosts.
#[derive(Clone, Debug, Default)]
pub struct AddressRules {
    allowed: Vec<AddressRange>,
    api_server: Vec<SocketAddr>,
}

impl AddressRules {
    /// For a worker, which asks from its own pod, where its team could ask as well: no address that a server announces is refused.
    #[must_use]
    pub fn everywhere() -> Self {
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        Self::default().allowing(all.map(|address| AddressRange { address, bits: 0 }))
    }

    /// Allows these in addition, except those that are no single host.
    #[must_use]
    pub fn allowing(mut self, ranges: impl IntoIterator<Item = AddressRange>) -> Self {
        self.allowed.extend(ranges);
        self
    }

    /// Refuses the API server, which is at these addresses. At other ports of its machine other servers may be asked.
    #[must_use]
    pub fn refusing_api_server(mut self, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.api_server.extend(addresses.into_iter().map(|at| SocketAddr::new(at.ip().to_canonical(), at.port())));
        self
    }

    /// What kind of address this is, where it is refused.
    pub fn refused(&self, at: SocketAddr) -> Option<&'static str> {
        let written = at.ip().to_canonical();
        let embedded = embedded(written);
        embedded.into_iter().chain([written]).find_map(|ip| self.refused_one(SocketAddr::new(ip, at.port())))
    }

    fn refused_one(&self, at: SocketAddr) -> Option<&'static str> {
        let ip = at.ip();
        let no_host = match ip {
            IpAddr::V4(ip) => ip.octets()[0] == 0 || ip.is_multicast() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
        };
        if no_host {
            return Some("an address that is no single host's");
        }
        if self.allowed.iter().any(|range| range.contains(ip)) {
            return None;
        }
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        if ip.is_loopback() {
            Some("a loopback address, which is the operator's own")
        } else if link_local || METADATA.contains(&ip) {
            Some("an address at which clouds serve the machine's own credentials (link-local, metadata)")
        } else if self.api_server.contains(&at) {
            Some("the cluster's API server")
        } else {
            None
        }
    }
}

/// The IPv4 address that a packet to this one may end at: NAT64, 6to4 and the old IPv4-compatible form.
fn embedded(ip: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(ip) = ip else { return None };
    let [a, b, c, d, e, f, g, h] = ip.segments();
    let of = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match (a, b, c, d, e, f) {
        (0x64, 0xff9b, ..) | (0, 0, 0, 0, 0, 0) if !ip.is_unspecified() && !ip.is_loopback() => Some(of(g, h)),
        (0x2002, ..) => Some(of(b, c)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 9_090)
    }

    fn ranges(texts: &[&str]) -> Vec<AddressRange> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_operators_own_machine_and_its_metadata_are_not_asked() {
        let rules = AddressRules::default();
        for refused in [
            "127.0.0.1",
            "127.8.9.10",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:a9fe:a9fe::1",
            "::127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::ffff:0.0.0.0",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert!(rules.refused(at(refused)).is_some(), "{refused}");
        }
        for allowed in
            ["10.0.0.1", "172.18.0.2", "192.168.0.1", "fd00::1", "192.0.2.1", "2001:db8::1", "64:ff9b::10.0.0.1"]
        {
            assert_eq!(rules.refused(at(allowed)), None, "{allowed}");
        }
    }

    #[test]
    fn the_api_server_is_refused_at_its_port_and_not_the_whole_node() {
        let rules = AddressRules::default()
            .refusing_api_server(["10.96.0.1:443".parse().unwrap(), "172.18.0.2:6443".parse().unwrap()]);
        for refused in ["10.96.0.1:443", "[::ffff:10.96.0.1]:443", "172.18.0.2:6443"] {
            assert_eq!(rules.refused(refused.parse().unwrap()), Some("the cluster's API server"), "{refused}");
        }
        for allowed in ["10.96.0.2:443", "172.18.0.2:9090"] {
            assert_eq!(rules.refused(allowed.parse().unwrap()), None, "{allowed}");
        }
    }

    #[test]
    fn an_administrator_allows_ranges_but_nothing_that_is_no_host() {
        let rules = AddressRules::default()
            .refusing_api_server(["10.96.0.1:9090".parse().unwrap()])
            .allowing(ranges(&["127.0.0.0/8", "fe80::/10", "10.96.0.1", "0.0.0.0/0"]));
        for allowed in ["127.0.0.1", "fe80::1", "10.96.0.1", "169.254.169.254"] {
            assert_eq!(rules.refused(at(allowed)), None, "{allowed}");
        }
        for refused in ["0.0.0.0", "224.0.0.1", "::1", "ff02::1"] {
            assert!(rules.refused(at(refused)).is_some(), "{refused}");
        }
        let narrow = AddressRules::default().allowing(ranges(&["127.0.0.2/32"]));
        assert!(narrow.refused(at("127.0.0.1")).is_some());
        assert!(narrow.refused(at("127.0.0.2")).is_none());
    }

    #[test]
    fn a_range_is_read_as_it_is_usually_written() {
        for (text, shown) in [("127.0.0.1", "127.0.0.1/32"), (" fd00::/8", "fd00::/8"), ("0.0.0.0/0", "0.0.0.0/0")] {
            assert_eq!(text.parse::<AddressRange>().unwrap().to_string(), shown);
        }
        for wrong in ["", "localhost", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "/8"] {
            assert!(wrong.parse::<AddressRange>().is_err(), "{wrong}");
        }
    }
}
