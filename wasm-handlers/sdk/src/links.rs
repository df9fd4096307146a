//! The network links that the pod's annotation `akri-krustlet/links` grants.

use std::net::IpAddr;

/// A network link that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// As `eth0`.
    pub name: String,
    /// With the lengths of their networks' prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether it carries multicast.
    pub multicast: bool,
    /// Whether it is the machine's own.
    pub loopback: bool,
}

/// Those that are granted.
pub fn list() -> Vec<Link> {
    #[cfg(target_family = "wasm")]
    {
        use crate::multicast::from_wit;
        let own = |link: crate::bindings::akri::host::links::Link| Link {
            name: link.name,
            addresses: link.addresses.into_iter().map(|(address, prefix)| (from_wit(address), prefix)).collect(),
            multicast: link.multicast,
            loopback: link.loopback,
        };
        crate::bindings::akri::host::links::list().into_iter().map(own).collect()
    }
    #[cfg(not(target_family = "wasm"))]
    crate::fake::links()
}
