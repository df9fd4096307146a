//! Multicast groups. Needs a rule `join` in the pod's annotation `akri-krustlet/network`.

use crate::Error;
use std::net::SocketAddr;

/// Something that was sent to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// By whom.
    pub from: SocketAddr,
    /// On which link it came.
    pub link: String,
    /// What it says.
    pub payload: Vec<u8>,
}

/// Listens to a group. Each datagram makes the node ask for a step.
#[derive(Debug)]
pub struct Listener(inner::Listener);

impl Listener {
    /// On one link, or on all that are granted.
    pub fn join(group: SocketAddr, link: Option<&str>) -> Result<Self, Error> {
        inner::join(group, link).map(Self)
    }

    /// At most `most` datagrams that came since this was called last, in order, and how many were lost after them.
    pub fn take(&self, most: u32) -> (Vec<Datagram>, u32) {
        inner::take(&self.0, most)
    }

    /// Sends to the group, from its port, on each link.
    pub fn send(&self, payload: &[u8]) -> Result<(), Error> {
        inner::send(&self.0, payload)
    }
}

#[cfg(target_family = "wasm")]
pub(crate) use inner::from_wit;

#[cfg(target_family = "wasm")]
mod inner {
    use super::Datagram;
    use crate::Error;
    use crate::bindings::akri::host::multicast::{self, Denied, IpAddress};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    pub(super) type Listener = multicast::Listener;

    pub(crate) fn from_wit(address: IpAddress) -> IpAddr {
        match address {
            IpAddress::Ipv4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
            IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
        }
    }

    fn as_wit(address: IpAddr) -> IpAddress {
        match address {
            IpAddr::V4(address) => IpAddress::Ipv4(address.octets().into()),
            IpAddr::V6(address) => IpAddress::Ipv6(address.segments().into()),
        }
    }

    fn denied(what: &str, denied: Denied) -> Error {
        let why = match denied {
            Denied::NotGranted => "the pod does not grant it (rule `join` in annotation akri-krustlet/network)",
            Denied::NotMulticast => "it is no multicast group",
            Denied::NoSuchLink => "no granted network link carries multicast",
            Denied::TooMany => "the handler listens to too many groups",
            Denied::Unavailable => "the node cannot, its log says why",
        };
        Error::Unavailable(format!("multicast group {what}: {why}"))
    }

    pub(super) fn join(group: SocketAddr, link: Option<&str>) -> Result<Listener, Error> {
        multicast::Listener::join(as_wit(group.ip()), group.port(), link)
            .map_err(|error| denied(&group.to_string(), error))
    }

    pub(super) fn take(listener: &Listener, most: u32) -> (Vec<Datagram>, u32) {
        let (datagrams, lost) = listener.take(most);
        let own = |datagram: multicast::Datagram| Datagram {
            from: SocketAddr::new(from_wit(datagram.from), datagram.from_port),
            link: datagram.link,
            payload: datagram.payload,
        };
        (datagrams.into_iter().map(own).collect(), lost)
    }

    pub(super) fn send(listener: &Listener, payload: &[u8]) -> Result<(), Error> {
        listener.send(payload).map_err(|error| denied("", error))
    }
}

#[cfg(not(target_family = "wasm"))]
use crate::fake::multicast as inner;
