//! Free ports for programs that are told their port. A port of the range that the system gives to who asks for any is not free for
//! long: between the question and the program's start, an outgoing connection may have it. So the ports here are
//! below that range, and are held until this process ends.

use anyhow::Context as _;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

/// Below it are ports of well-known services.
const FIRST: u16 = 15_000;
/// Below those of a cluster's services of type NodePort, and of what Linux gives to who asks for any.
const END: u16 = 30_000;

/// Where fewer are outside of that range, they are taken out of it.
const ENOUGH: u16 = 1000;

/// What nobody else is given.
static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// A TCP port of all addresses of the machine that nobody uses, and that nobody else is given before this process ends. A program
/// listens on it if it sets `SO_REUSEADDR`, as nearly all do; until then, connections to it are refused.
pub fn free() -> anyhow::Result<u16> {
    let end = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok())
        .filter(|first: &u16| *first > FIRST + ENOUGH)
        .map_or(END, |first| first.min(END));
    // Processes that ask at the same time begin elsewhere.
    let start = std::process::id().wrapping_mul(61);
    let number = u32::from(end - FIRST);
    for step in 0..number {
        let port = FIRST + u16::try_from((start.wrapping_add(step)) % number).unwrap_or(0);
        if let Ok(held) = hold(port) {
            HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(held);
            return Ok(port);
        }
    }
    anyhow::bail!("no port between {FIRST} and {end} is free")
}

/// Bound as by who shares it with nobody, so that it is refused where anyone has it; shared only afterwards.
fn hold(port: u16) -> anyhow::Result<OwnedFd> {
    let (family, kind, tcp) = (AddressFamily::INET, SocketType::STREAM, Some(ipproto::TCP));
    let held = socket_with(family, kind, SocketFlags::CLOEXEC, tcp).context("a socket")?;
    bind(&held, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
    sockopt::set_socket_reuseaddr(&held, true)?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_free_port_is_given_once_refuses_and_may_be_listened_on() {
        let ports: Vec<_> = (0..20).map(|_| super::free().unwrap()).collect();
        for (index, port) in ports.iter().enumerate() {
            assert!(!ports[..index].contains(port), "{ports:?}");
            assert!(super::hold(*port).is_err());
            assert_eq!(TcpStream::connect(("127.0.0.1", *port)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            for address in ["127.0.0.1", "0.0.0.0"] {
                let listener = TcpListener::bind((address, *port)).unwrap();
                TcpStream::connect(("127.0.0.1", *port)).unwrap();
                assert!(super::hold(*port).is_err());
                drop(listener);
            }
        }
    }
}
