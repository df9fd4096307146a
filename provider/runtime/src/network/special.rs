//! Addresses that no rule for a network or a name opens.

use akri_krustlet_events::links;
use ipnet::IpNet;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where clouds tell a machine's secrets to whoever asks.
const METADATA: [IpAddr; 8] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0023)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254)),
];

/// How long this machine's addresses are remembered.
const REMEMBERED: Duration = Duration::from_secs(2);

/// What needs a rule of its own on this machine.
#[derive(Debug, Default)]
pub(super) struct SpecialAddresses {
    /// Those that the node names.
    protected: Mutex<Vec<IpAddr>>,
    /// This machine's, as they were at that time.
    own: Mutex<Option<(Instant, HashSet<IpAddr>)>>,
}

impl SpecialAddresses {
    pub(super) fn protect(&self, addresses: Vec<IpAddr>) {
        *self.protected.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    pub(super) fn contain(&self, place: SocketAddr) -> bool {
        let address = place.ip();
        address.is_loopback()
            || address.is_unspecified()
            || METADATA.contains(&address)
            || self.protected.lock().unwrap_or_else(PoisonError::into_inner).contains(&address)
            || self.is_own(address)
    }

    /// On whatever link; a machine whose addresses cannot be listed has all of them.
    fn is_own(&self, address: IpAddr) -> bool {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = own.as_ref().is_some_and(|(at, _)| at.elapsed() < REMEMBERED);
        if !is_known {
            *own = links::addresses().map(|addresses| (Instant::now(), addresses)).ok();
        }
        own.as_ref().is_none_or(|(_, addresses)| addresses.contains(&address))
    }
}

/// The same address in one notation: an IPv4 address that is written as IPv6 is one. A link-local address keeps its link.
pub(super) fn canonical(place: SocketAddr) -> SocketAddr {
    match (place.ip().to_canonical(), place) {
        (IpAddr::V6(address), SocketAddr::V6(place)) => {
            SocketAddrV6::new(address, place.port(), 0, place.scope_id()).into()
        }
        (address, _) => SocketAddr::new(address, place.port()),
    }
}

/// Whether a rule is for just this address.
pub(super) fn is_single(net: &IpNet, address: IpAddr) -> bool {
    net.prefix_len() == net.max_prefix_len() && net.addr() == address
}

/// Whether whoever answers a group may have this address.
pub(super) fn is_private(address: IpAddr) -> bool {
    let is_private = match address {
        IpAddr::V4(address) => address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_unique_local() || address.is_unicast_link_local(),
    };
    is_private && !METADATA.contains(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_own_addresses_are_known() {
        let own = links::addresses().unwrap();
        assert!(own.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{own:?}");
        let special = SpecialAddresses::default();
        let contain = |address: &str| special.contain(SocketAddr::new(address.parse().unwrap(), 80));
        assert!(own.iter().all(|address| special.contain(SocketAddr::new(*address, 80))));
        assert!(!contain("203.0.113.1") && !contain("239.255.255.250") && contain("127.9.9.9"));
    }

    #[test]
    fn a_place_has_one_notation() {
        let canonical = |place: &str| canonical(place.parse().unwrap()).to_string();
        assert_eq!(canonical("[::ffff:127.0.0.1]:80"), "127.0.0.1:80");
        assert_eq!(canonical("[fe80::1%7]:80"), "[fe80::1%7]:80");
    }
}
