//! Connections, many at once, of a protocol that is a [`Talk`]: it says what to send and understands what came, and does no input and
//! output itself, so that its tests need no network. Need a rule `tcp` in the pod's annotation `akri-krustlet/network`.

use crate::Error;
use std::net::IpAddr;
use std::time::Duration;

/// Connections that are under way at once; more wait for their turn.
pub const AT_ONCE: usize = 24;

/// One side of a conversation.
pub trait Talk {
    /// What is found out by it.
    type Said;

    /// What is sent first.
    fn begin(&mut self) -> Vec<u8>;

    /// Something has come.
    fn received(&mut self, bytes: &[u8]) -> Next<Self::Said>;
}

/// How a conversation goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// This is sent, which may be nothing, and more is awaited.
    More(Vec<u8>),
    /// It is over.
    Done(T),
    /// It is over after this has been sent.
    Last(Vec<u8>, T),
}

/// Whom to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Has conversations, [`AT_ONCE`] of them at once, and waits for all; the results are in their order. Each may take so long,
/// counted from its turn, with the look-up of its peer's name.
pub fn talk<T: Talk>(talks: Vec<(Peer, T)>, timeout: Duration) -> Vec<Result<T::Said, Error>> {
    inner::talk(talks, timeout)
}

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookUpError {
    /// The pod does not grant it (rule `dns`), or grants it and not the machine's own addresses, to which it leads.
    Denied(Error),
    /// It leads nowhere.
    NotFound(Error),
    /// It cannot be found out now.
    Unavailable(Error),
}

/// Looks names up, all at once. Addresses lead to themselves.
pub fn look_up(names: &[String], timeout: Duration) -> Vec<Result<Vec<IpAddr>, LookUpError>> {
    inner::look_up(names, timeout)
}

#[cfg(target_family = "wasm")]
pub(crate) use inner::denied;

#[cfg(target_family = "wasm")]
mod inner {
    use super::{AT_ONCE, LookUpError, Next, Peer, Talk};
    use crate::Error;
    use crate::wait::{self, Left};
    use std::net::{IpAddr, SocketAddr};
    use std::time::Duration;
    use wasip2::io::poll::Pollable;
    use wasip2::io::streams::{InputStream, OutputStream, StreamError};
    use wasip2::sockets::instance_network::instance_network;
    use wasip2::sockets::ip_name_lookup::{ResolveAddressStream, resolve_addresses};
    use wasip2::sockets::network::{ErrorCode, IpAddressFamily};
    use wasip2::sockets::tcp::TcpSocket;
    use wasip2::sockets::tcp_create_socket::create_tcp_socket;

    /// Addresses of a name that are tried.
    const MOST_ADDRESSES: usize = 4;

    pub(crate) fn denied(what: &str, place: &str, error: ErrorCode) -> Error {
        let why = match error {
            ErrorCode::AccessDenied => {
                "the pod does not grant it (annotation akri-krustlet/network; the container's log says more)"
            }
            ErrorCode::NameUnresolvable => "its name leads nowhere",
            ErrorCode::TemporaryResolverFailure | ErrorCode::PermanentResolverFailure => "names cannot be looked up",
            ErrorCode::ConnectionRefused => "nobody listens there",
            ErrorCode::ConnectionReset | ErrorCode::ConnectionAborted => "it closed the connection",
            ErrorCode::RemoteUnreachable => "there is no way there",
            ErrorCode::Timeout => "no answer in time",
            ErrorCode::NewSocketLimit => "the handler has too many sockets",
            error => error.name(),
        };
        Error::Unavailable(format!("{what} {place}: {why}"))
    }

    enum State {
        Named(ResolveAddressStream),
        Connects(TcpSocket),
        // In the order in which they are dropped: streams before their socket.
        Talks(InputStream, OutputStream, #[expect(dead_code, reason = "it is kept open")] TcpSocket),
    }

    struct Open<T: Talk> {
        at: usize,
        peer: Peer,
        talk: T,
        left: Left,
        addresses: Vec<IpAddr>,
        unsent: Vec<u8>,
        said: Option<T::Said>,
        state: State,
    }

    enum Went<T: Talk> {
        On(Open<T>),
        Ended(Result<T::Said, ErrorCode>),
        /// The peer does not answer in this protocol to the end.
        Closed,
    }

    impl<T: Talk> Open<T> {
        fn pollable(&self) -> Pollable {
            match &self.state {
                State::Named(stream) => stream.subscribe(),
                State::Connects(socket) => socket.subscribe(),
                State::Talks(_, output, _) if !self.unsent.is_empty() => output.subscribe(),
                State::Talks(input, ..) => input.subscribe(),
            }
        }

        /// To the next of its addresses.
        fn connect(mut self, before: ErrorCode) -> Went<T> {
            let mut failed = before;
            while !self.addresses.is_empty() {
                let address = self.addresses.remove(0);
                match connect(SocketAddr::new(address, self.peer.port)) {
                    Ok(socket) => return Went::On(Self { state: State::Connects(socket), ..self }),
                    Err(error) => failed = error,
                }
            }
            Went::Ended(Err(failed))
        }

        fn go_on(mut self) -> Went<T> {
            match self.state {
                State::Named(ref stream) => loop {
                    match stream.resolve_next_address() {
                        Ok(Some(address)) if self.addresses.len() < MOST_ADDRESSES => {
                            self.addresses.push(wait::address(address));
                        }
                        Ok(_) => return self.connect(ErrorCode::NameUnresolvable),
                        Err(ErrorCode::WouldBlock) => return Went::On(self),
                        Err(error) => return Went::Ended(Err(error)),
                    }
                },
                State::Connects(socket) => match socket.finish_connect() {
                    Ok((input, output)) => {
                        let unsent = self.talk.begin();
                        Went::On(Self { state: State::Talks(input, output, socket), unsent, ..self })
                    }
                    Err(ErrorCode::WouldBlock) => Went::On(Self { state: State::Connects(socket), ..self }),
                    Err(error) => {
                        // The next address, if there is one. The stream of a name is gone by now.
                        let next = Self { state: State::Connects(socket), ..self };
                        next.connect(error)
                    }
                },
                State::Talks(ref input, ..) if self.unsent.is_empty() => match input.read(64 << 10) {
                    Ok(bytes) if bytes.is_empty() => Went::On(self),
                    Ok(bytes) => match self.talk.received(&bytes) {
                        Next::More(unsent) => Went::On(Self { unsent, ..self }),
                        Next::Done(said) => Went::Ended(Ok(said)),
                        Next::Last(unsent, said) if unsent.is_empty() => Went::Ended(Ok(said)),
                        Next::Last(unsent, said) => Went::On(Self { unsent, said: Some(said), ..self }),
                    },
                    Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => Went::Closed,
                },
                State::Talks(_, ref output, _) => {
                    let free = output.check_write().map(|free| usize::try_from(free).unwrap_or(usize::MAX));
                    let wrote = free.and_then(|free| {
                        let count = free.min(self.unsent.len());
                        output.write(&self.unsent[..count]).map(|()| count)
                    });
                    match wrote {
                        Ok(count) => {
                            self.unsent.drain(..count);
                        }
                        Err(_) => match self.said {
                            Some(said) => return Went::Ended(Ok(said)),
                            None => return Went::Closed,
                        },
                    }
                    if self.unsent.is_empty()
                        && let Some(said) = self.said
                    {
                        let _ = output.flush();
                        return Went::Ended(Ok(said));
                    }
                    Went::On(self)
                }
            }
        }
    }

    fn connect(place: SocketAddr) -> Result<TcpSocket, ErrorCode> {
        let family = if place.is_ipv4() { IpAddressFamily::Ipv4 } else { IpAddressFamily::Ipv6 };
        let socket = create_tcp_socket(family)?;
        socket.start_connect(&instance_network(), wait::as_wasi(place))?;
        Ok(socket)
    }

    /// Where a conversation begins: with the look-up of a name, or with an address.
    fn begin<T: Talk>(at: usize, peer: Peer, talk: T, timeout: Duration) -> Went<T> {
        let open = |state, addresses, peer| Open {
            at,
            peer,
            talk,
            left: Left::from_now(timeout),
            addresses,
            unsent: Vec::new(),
            said: None,
            state,
        };
        match peer.host.parse::<IpAddr>() {
            Ok(address) => match connect(SocketAddr::new(address, peer.port)) {
                Ok(socket) => Went::On(open(State::Connects(socket), Vec::new(), peer)),
                Err(error) => Went::Ended(Err(error)),
            },
            Err(_) => match resolve_addresses(&instance_network(), &peer.host) {
                Ok(stream) => Went::On(open(State::Named(stream), Vec::new(), peer)),
                Err(error) => Went::Ended(Err(error)),
            },
        }
    }

    pub(super) fn talk<T: Talk>(talks: Vec<(Peer, T)>, timeout: Duration) -> Vec<Result<T::Said, Error>> {
        let names: Vec<_> = talks.iter().map(|(peer, _)| format!("{}:{}", peer.host, peer.port)).collect();
        let mut results: Vec<Option<Result<T::Said, Error>>> = names.iter().map(|_| None).collect();
        let mut waiting = talks.into_iter().enumerate();
        let mut open: Vec<Open<T>> = Vec::new();
        let mut ended = |at: usize, went: Result<T::Said, ErrorCode>| {
            results[at] = Some(went.map_err(|error| denied("tcp connection to", &names[at], error)));
        };
        loop {
            while open.len() < AT_ONCE
                && let Some((at, (peer, talk))) = waiting.next()
            {
                match begin(at, peer, talk, timeout) {
                    Went::On(begun) => open.push(begun),
                    Went::Ended(result) => ended(at, result),
                    Went::Closed => ended(at, Err(ErrorCode::ConnectionReset)),
                }
            }
            if open.is_empty() {
                break;
            }
            let ready = wait::any(open.iter().map(Open::pollable).collect(), open.iter().map(|open| open.left).min());
            let mut still = Vec::new();
            for (open, is_ready) in open.into_iter().zip(ready) {
                let at = open.at;
                match open.left.is_over() {
                    true => ended(at, Err(ErrorCode::Timeout)),
                    false if !is_ready => still.push(open),
                    false => match open.go_on() {
                        Went::On(open) => still.push(open),
                        Went::Ended(result) => ended(at, result),
                        Went::Closed => ended(at, Err(ErrorCode::ConnectionReset)),
                    },
                }
            }
            open = still;
        }
        let lost = |name: &String| denied("tcp connection to", name, ErrorCode::Timeout);
        results.into_iter().zip(&names).map(|(result, name)| result.unwrap_or_else(|| Err(lost(name)))).collect()
    }

    pub(super) fn look_up(names: &[String], timeout: Duration) -> Vec<Result<Vec<IpAddr>, LookUpError>> {
        let left = Left::from_now(timeout);
        let mut results: Vec<Option<Result<Vec<IpAddr>, LookUpError>>> = names.iter().map(|_| None).collect();
        let mut waiting = names.iter().enumerate();
        let mut open: Vec<(usize, ResolveAddressStream, Vec<IpAddr>)> = Vec::new();
        loop {
            while open.len() < AT_ONCE
                && let Some((at, name)) = waiting.next()
            {
                if let Ok(address) = name.parse() {
                    results[at] = Some(Ok(vec![address]));
                    continue;
                }
                match resolve_addresses(&instance_network(), name) {
                    Ok(stream) => open.push((at, stream, Vec::new())),
                    Err(error) => results[at] = Some(Err(no_addresses(name, error))),
                }
            }
            if open.is_empty() || left.is_over() {
                break;
            }
            wait::any(open.iter().map(|(_, stream, _)| stream.subscribe()).collect(), Some(left));
            open.retain_mut(|(at, stream, found)| {
                loop {
                    match stream.resolve_next_address() {
                        Ok(Some(address)) => found.push(wait::address(address)),
                        Ok(None) => {
                            results[*at] = Some(Ok(std::mem::take(found)));
                            return false;
                        }
                        Err(ErrorCode::WouldBlock) => return true,
                        Err(error) => {
                            results[*at] = Some(Err(no_addresses(&names[*at], error)));
                            return false;
                        }
                    }
                }
            });
        }
        let late = |name: &String| Err(no_addresses(name, ErrorCode::Timeout));
        results.into_iter().zip(names).map(|(result, name)| result.unwrap_or_else(|| late(name))).collect()
    }

    fn no_addresses(name: &str, error: ErrorCode) -> LookUpError {
        let said = denied("look-up of", name, error);
        match error {
            ErrorCode::AccessDenied => LookUpError::Denied(said),
            ErrorCode::NameUnresolvable | ErrorCode::InvalidArgument => LookUpError::NotFound(said),
            _ => LookUpError::Unavailable(said),
        }
    }
}

#[cfg(not(target_family = "wasm"))]
use crate::fake::tcp as inner;
