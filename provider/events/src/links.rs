//! The network links of this machine, and when they change.

use crate::socket::register;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, recv, socket,
};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use tokio::io::unix::AsyncFd;

/// Groups of rtnetlink: links, addresses of IPv4 and of IPv6.
const CHANGES: u32 = 1 | 0x10 | 0x100;

/// A network link that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// As `eth0`.
    pub name: String,
    /// The kernel's number of it.
    pub index: u32,
    /// Its addresses, with the lengths of their networks' prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether it carries multicast.
    pub multicast: bool,
    /// Whether it is this machine's own.
    pub loopback: bool,
}

/// Which links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkNames {
    /// All of them.
    All,
    /// These; one that ends in `*` stands for all that begin so.
    Named(Vec<String>),
}

impl LinkNames {
    /// Whether one is among them.
    pub fn contain(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|named| match named.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == named,
            }),
        }
    }

    /// Those that both have; `None` if there can be none.
    pub fn and(self, other: Self) -> Option<Self> {
        let (Self::Named(ours), Self::Named(theirs)) = (&self, &other) else {
            return Some(if self == Self::All { other } else { self });
        };
        let is_in = |one: &str, other: &str| {
            one == other || other.strip_suffix('*').is_some_and(|start| one.starts_with(start))
        };
        // Of two that begin alike, the longer one is what both have.
        let both = |one: &String, other: &String| match () {
            () if is_in(one, other) => Some(one.clone()),
            () if is_in(other, one) => Some(other.clone()),
            () => None,
        };
        let common: Vec<_> =
            ours.iter().flat_map(|one| theirs.iter().filter_map(move |other| both(one, other))).collect();
        (!common.is_empty()).then_some(Self::Named(common))
    }
}

/// The links that are up, by name.
pub fn list() -> io::Result<Vec<Link>> {
    let mut links = BTreeMap::<String, Link>::new();
    for found in getifaddrs()? {
        if !found.flags.contains(InterfaceFlags::IFF_UP) {
            continue;
        }
        // One that has gone meanwhile has no number.
        let Ok(index) = if_nametoindex(found.interface_name.as_str()) else { continue };
        let link = links.entry(found.interface_name.clone()).or_insert_with(|| Link {
            name: found.interface_name,
            index,
            addresses: Vec::new(),
            multicast: found.flags.contains(InterfaceFlags::IFF_MULTICAST),
            loopback: found.flags.contains(InterfaceFlags::IFF_LOOPBACK),
        });
        let mask = found.netmask.as_ref().and_then(address);
        if let (Some(address), Some(mask)) = (found.address.as_ref().and_then(address), mask) {
            link.addresses.push((address, prefix(mask)));
        }
    }
    Ok(links.into_values().collect())
}

/// The addresses of all links, up or not.
pub fn addresses() -> io::Result<HashSet<IpAddr>> {
    Ok(getifaddrs()?.filter_map(|found| found.address.as_ref().and_then(address)).collect())
}

fn address(of: &SockaddrStorage) -> Option<IpAddr> {
    let of_four = of.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    of_four.or_else(|| of.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

fn prefix(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

/// Tells that links or their addresses have changed.
#[derive(Debug)]
pub(crate) struct LinkChanges(AsyncFd<OwnedFd>);

impl LinkChanges {
    /// In the reactor of the current runtime.
    pub(crate) fn follow() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, CHANGES))?;
        Ok(Self(register(socket)?))
    }

    /// Resolves when something has changed; what is said of it is not looked at, the links are.
    pub(crate) async fn changed(&self) -> io::Result<()> {
        let mut buffer = [0; 8 << 10];
        loop {
            let mut ready = self.0.readable().await?;
            let mut any = false;
            while let Ok(received) =
                ready.try_io(|socket| Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?))
            {
                // An error says that some were lost: then something has changed, too.
                let _ = received;
                any = true;
            }
            if any {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_links_of_this_machine_have_their_addresses() {
        let links = list().unwrap();
        let loopback = links.iter().find(|link| link.loopback).expect("this machine has a loopback link");
        assert!(loopback.addresses.contains(&(IpAddr::from([127, 0, 0, 1]), 8)), "{links:?}");
        assert!(links.iter().all(|link| link.index > 0));
    }

    #[test]
    fn names_of_links_may_have_a_common_start() {
        let names = LinkNames::Named(vec!["eth0".to_owned(), "cam*".to_owned()]);
        assert!(names.contain("eth0") && names.contain("cam1") && names.contain("cam"));
        assert!(!names.contain("eth01") && !names.contain("ca"));
        assert!(LinkNames::All.contain("lo"));
        let named = |names: &[&str]| LinkNames::Named(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(LinkNames::All.and(named(&["a"])), Some(named(&["a"])));
        assert_eq!(named(&["cam*", "lo"]).and(named(&["cam0", "camera*", "eth0"])), Some(named(&["cam0", "camera*"])));
        assert_eq!(named(&["cam*"]).and(named(&["eth0"])), None);
    }
}
