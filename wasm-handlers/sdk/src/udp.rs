//! Datagrams. Need a rule `udp` in the pod's annotation `akri-krustlet/network`.
//!
//! ```no_run
//! use akri_handler::{time, udp};
//! use std::time::Duration;
//!
//! let socket = udp::Socket::bind("0.0.0.0".parse().unwrap())?;
//! socket.send("239.255.255.250:3702".parse().unwrap(), b"who is there?")?;
//! let until = time::now() + Duration::from_secs(1);
//! while let Some((_, datagram)) = udp::receive(&[&socket], until) {
//!     println!("{} is", datagram.from);
//! }
//! # Ok::<(), akri_handler::Error>(())
//! ```

use crate::Error;
use crate::links::{self, Link};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Something that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// By whom.
    pub from: SocketAddr,
    /// What it says.
    pub payload: Vec<u8>,
}

/// A socket with a port that the node chose.
#[derive(Debug)]
pub struct Socket(inner::Socket);

impl Socket {
    /// With that address of the machine: a group is then asked on its link. `0.0.0.0` and `::` are any.
    pub fn bind(address: IpAddr) -> Result<Self, Error> {
        inner::bind(address).map(Self)
    }

    /// Sends a datagram.
    pub fn send(&self, to: SocketAddr, payload: &[u8]) -> Result<(), Error> {
        inner::send(&self.0, to, payload)
    }
}

/// A socket on each link that is granted and carries multicast, with one of its IPv4 addresses, on which `ask` was done; and why that
/// was not possible on a link. The error is why it was possible on none.
pub fn ask_on_links(ask: impl Fn(&Socket) -> Result<(), Error>) -> Result<(Vec<Socket>, Option<String>), String> {
    let of_link = |link: &Link| link.addresses.iter().map(|(address, _)| *address).find(IpAddr::is_ipv4);
    let (mut sockets, mut failed) = (Vec::new(), None);
    for address in links::list().iter().filter(|link| link.multicast && !link.loopback).filter_map(of_link) {
        match Socket::bind(address).and_then(|socket| ask(&socket).map(|()| socket)) {
            Ok(socket) => sockets.push(socket),
            Err(error) => failed = Some(error.to_string()),
        }
    }
    if sockets.is_empty() {
        let none = || "no granted network link carries multicast and has an IPv4 address".to_owned();
        return Err(failed.unwrap_or_else(none));
    }
    Ok((sockets, failed))
}

/// The next datagram that comes to one of the sockets, with the socket's place among them; none if nothing comes until then
/// ([`crate::time::now`]).
pub fn receive(sockets: &[&Socket], until: Duration) -> Option<(usize, Datagram)> {
    let sockets: Vec<_> = sockets.iter().map(|socket| &socket.0).collect();
    inner::receive(&sockets, until)
}

#[cfg(target_family = "wasm")]
mod inner {
    use super::Datagram;
    use crate::Error;
    use crate::tcp::denied;
    use crate::wait::{self, Left};
    use std::cell::{Cell, RefCell};
    use std::collections::VecDeque;
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;
    use wasip2::sockets::instance_network::instance_network;
    use wasip2::sockets::network::{ErrorCode, IpAddressFamily};
    use wasip2::sockets::udp::{IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket};
    use wasip2::sockets::udp_create_socket::create_udp_socket;

    /// Datagrams that are taken at once.
    const AT_ONCE: u64 = 16;
    /// How long those that come right after one are waited for: to be woken for each costs more than to read it. The kernel keeps
    /// about a hundred meanwhile.
    const TOGETHER: Duration = Duration::from_millis(5);
    /// How long a datagram may wait to be sent.
    const SENT: Duration = Duration::from_secs(2);

    // In the order in which they are dropped.
    #[derive(Debug)]
    pub(super) struct Socket {
        incoming: IncomingDatagramStream,
        outgoing: OutgoingDatagramStream,
        taken: RefCell<VecDeque<Datagram>>,
        _socket: UdpSocket,
    }

    pub(super) fn bind(address: IpAddr) -> Result<Socket, Error> {
        let family = if address.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 };
        let bound = || -> Result<Socket, ErrorCode> {
            let socket = create_udp_socket(family)?;
            socket.start_bind(&instance_network(), wait::as_wasi(SocketAddr::new(address, 0)))?;
            while let Err(error) = socket.finish_bind() {
                match error {
                    ErrorCode::WouldBlock => socket.subscribe().block(),
                    error => return Err(error),
                }
            }
            let (incoming, outgoing) = socket.stream(None)?;
            Ok(Socket { incoming, outgoing, taken: RefCell::default(), _socket: socket })
        };
        bound().map_err(|error| denied("udp socket on", &address.to_string(), error))
    }

    pub(super) fn send(socket: &Socket, to: SocketAddr, payload: &[u8]) -> Result<(), Error> {
        let sent = || -> Result<(), ErrorCode> {
            let left = Left::from_now(SENT);
            while socket.outgoing.check_send()? == 0 {
                if left.is_over() {
                    return Err(ErrorCode::Timeout);
                }
                wait::any(vec![socket.outgoing.subscribe()], Some(left));
            }
            let datagram = OutgoingDatagram { data: payload.to_vec(), remote_address: Some(wait::as_wasi(to)) };
            match socket.outgoing.send(&[datagram])? {
                0 => Err(ErrorCode::WouldBlock),
                _ => Ok(()),
            }
        };
        sent().map_err(|error| denied("udp datagram to", &to.to_string(), error))
    }

    pub(super) fn receive(sockets: &[&Socket], until: Duration) -> Option<(usize, Datagram)> {
        let left = Left::from_now(until.saturating_sub(crate::time::now()));
        thread_local! {
            /// Where the last look began: each socket has its turn, however much comes to another one.
            static FIRST: Cell<usize> = const { Cell::new(0) };
        }
        // What came until then is read, but not for ever: whoever floods is not waited for.
        while !left.is_over() {
            let first = FIRST.get().wrapping_add(1);
            FIRST.set(first);
            for turn in 0..sockets.len() {
                let at = (first % sockets.len() + turn) % sockets.len();
                let socket = sockets[at];
                if socket.taken.borrow().is_empty() {
                    // What fails, as by an ICMP message, is not an answer.
                    let came = socket.incoming.receive(AT_ONCE).unwrap_or_default();
                    let own = came.into_iter().map(|datagram| Datagram {
                        from: wait::from_wasi(datagram.remote_address),
                        payload: datagram.data,
                    });
                    socket.taken.borrow_mut().extend(own);
                }
                if let Some(datagram) = socket.taken.borrow_mut().pop_front() {
                    return Some((at, datagram));
                }
            }
            let ready = wait::any(sockets.iter().map(|socket| socket.incoming.subscribe()).collect(), Some(left));
            if ready.contains(&true) {
                wait::any(Vec::new(), Some(left.min(Left::from_now(TOGETHER))));
            }
        }
        None
    }
}

#[cfg(not(target_family = "wasm"))]
use crate::fake::udp as inner;
