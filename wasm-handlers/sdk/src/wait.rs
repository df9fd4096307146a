//! Waiting for several things at once, as WASI has it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;
use wasip2::clocks::monotonic_clock;
use wasip2::io::poll::{self, Pollable};
use wasip2::sockets::network::{IpAddress, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};

/// A moment at which something has to be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Left(u64);

impl Left {
    pub(crate) fn from_now(time: Duration) -> Self {
        Self(monotonic_clock::now().saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
    }

    pub(crate) fn is_over(self) -> bool {
        self.0 <= monotonic_clock::now()
    }
}

/// Waits until one of them has something, or until that moment; tells of each whether it has.
pub(crate) fn any(pollables: Vec<Pollable>, until: Option<Left>) -> Vec<bool> {
    let count = pollables.len();
    let timer = until.map(|left| monotonic_clock::subscribe_instant(left.0));
    let all: Vec<&Pollable> = pollables.iter().chain(&timer).collect();
    let mut ready = vec![false; count];
    if !all.is_empty() {
        for index in poll::poll(&all) {
            if let Some(ready) = usize::try_from(index).ok().and_then(|index| ready.get_mut(index)) {
                *ready = true;
            }
        }
    }
    ready
}

pub(crate) fn as_wasi(place: SocketAddr) -> IpSocketAddress {
    match place {
        SocketAddr::V4(place) => {
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port: place.port(), address: place.ip().octets().into() })
        }
        SocketAddr::V6(place) => IpSocketAddress::Ipv6(Ipv6SocketAddress {
            port: place.port(),
            flow_info: place.flowinfo(),
            address: place.ip().segments().into(),
            scope_id: place.scope_id(),
        }),
    }
}

pub(crate) fn from_wasi(place: IpSocketAddress) -> SocketAddr {
    match place {
        IpSocketAddress::Ipv4(place) => SocketAddr::new(address(IpAddress::Ipv4(place.address)), place.port),
        IpSocketAddress::Ipv6(place) => {
            let (a, b, c, d, e, f, g, h) = place.address;
            let address = Ipv6Addr::new(a, b, c, d, e, f, g, h);
            SocketAddrV6::new(address, place.port, place.flow_info, place.scope_id).into()
        }
    }
}

pub(crate) fn address(address: IpAddress) -> IpAddr {
    match address {
        IpAddress::Ipv4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
        IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
    }
}
