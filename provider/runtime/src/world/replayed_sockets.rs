//! Sockets of a replay: no packet leaves the machine, and what comes is the recording's.
//!
//! They stand where wasmtime-wasi's would, with resources of their own.

use super::Replay;
use crate::component::{ComponentState, WASI};
use akri_recording::{Conversation, Turn};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::{Instant, sleep_until};
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut, format_err};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;
use wasmtime_wasi::p2::bindings::sockets::udp::{IncomingDatagram, OutgoingDatagram};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, InputStream, Network, OutputStream, Pollable, StreamError, subscribe,
};

type Store<'a> = StoreContextMut<'a, ComponentState>;
type Returned<T> = Result<(std::result::Result<T, ErrorCode>,)>;

/// The first port that a socket is given which asks for none.
const FIRST_PORT: u16 = 49152;
/// Datagrams that are sent or received at once.
const AT_ONCE: usize = 16;
/// What waits in a socket at most: datagrams, and their bytes.
const MOST_WAITING: usize = 256;
const MOST_BYTES: usize = 4 << 20;
/// What a connection takes at once, in bytes.
const WRITE: usize = 64 << 10;

/// Puts the functions of this module before all others.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut create = linker.instance(&format!("wasi:sockets/udp-create-socket@{WASI}"))?;
    create.func_wrap(
        "create-udp-socket",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| -> Returned<Resource<Udp>> {
            let udp = Udp { family, own: None, peer: None, coming: Arc::default() };
            Ok((Ok(store.data_mut().table().push(udp)?),))
        },
    )?;
    let mut create = linker.instance(&format!("wasi:sockets/tcp-create-socket@{WASI}"))?;
    create.func_wrap(
        "create-tcp-socket",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| -> Returned<Resource<Tcp>> {
            let tcp = Tcp { family, own: None, state: State::New };
            Ok((Ok(store.data_mut().table().push(tcp)?),))
        },
    )?;
    add_udp(&mut linker.instance(&format!("wasi:sockets/udp@{WASI}"))?)?;
    add_tcp(&mut linker.instance(&format!("wasi:sockets/tcp@{WASI}"))?)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn replay(store: &Store<'_>) -> Result<Arc<Replay>> {
    store.data().world().replay().cloned().ok_or_else(|| format_err!("sockets of a replay, and there is none"))
}

/// The address that a socket is bound to when it asks for this one.
fn bound(store: &mut Store<'_>, asked: SocketAddr) -> SocketAddr {
    let port = match asked.port() {
        0 => FIRST_PORT + u16::try_from(store.data_mut().table().iter_mut().count()).unwrap_or(0) % 1000,
        port => port,
    };
    SocketAddr::new(asked.ip(), port)
}

fn any(family: IpAddressFamily) -> SocketAddr {
    match family {
        IpAddressFamily::Ipv4 => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddressFamily::Ipv6 => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

struct Udp {
    family: IpAddressFamily,
    own: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    coming: Coming,
}

/// What comes to a socket.
type Coming = Arc<Mutex<Datagrams>>;

#[derive(Default)]
struct Datagrams {
    /// When, and in which order.
    waiting: BTreeMap<(Instant, u64), (SocketAddr, Vec<u8>)>,
    numbered: u64,
    bytes: usize,
}

impl Datagrams {
    /// As a socket's buffer: what it has no room for is lost.
    fn push(&mut self, at: Instant, from: SocketAddr, payload: Vec<u8>) {
        if self.waiting.len() < MOST_WAITING && self.bytes + payload.len() <= MOST_BYTES {
            self.numbered += 1;
            self.bytes += payload.len();
            self.waiting.insert((at, self.numbered), (from, payload));
        }
    }

    /// The first that has come.
    fn pop(&mut self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let first = self.waiting.first_entry().filter(|first| first.key().0 <= now)?;
        let (from, payload) = first.remove();
        self.bytes -= payload.len();
        Some((from, payload))
    }
}

struct Incoming(Coming);

struct Outgoing {
    own: IpAddr,
    peer: Option<SocketAddr>,
    coming: Coming,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait::async_trait]
impl Pollable for Udp {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {}
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        // Nothing is sent while its guest waits.
        let first = locked(&self.0).waiting.keys().next().map(|(at, _)| *at);
        match first {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// Functions that a socket has and that change nothing in a replay.
macro_rules! without_effect {
    ($instance:ident, $of:ty: $(get $get:literal $value:expr => $as:ty;)* $(set $set:literal $with:ty;)*) => {
        $($instance.func_wrap($get, |_: Store<'_>, (_,): (Resource<$of>,)| -> Returned<$as> { Ok((Ok($value),)) })?;)*
        $($instance.func_wrap($set, |_: Store<'_>, (_, _): (Resource<$of>, $with)| -> Returned<()> { Ok((Ok(()),)) })?;)*
    };
}

fn add_udp(udp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    udp.resource("udp-socket", ResourceType::host::<Udp>(), |mut store, number| {
        store.data_mut().table().delete(Resource::<Udp>::new_own(number))?;
        Ok(())
    })?;
    udp.resource("incoming-datagram-stream", ResourceType::host::<Incoming>(), |mut store, number| {
        store.data_mut().table().delete(Resource::<Incoming>::new_own(number))?;
        Ok(())
    })?;
    udp.resource("outgoing-datagram-stream", ResourceType::host::<Outgoing>(), |mut store, number| {
        store.data_mut().table().delete(Resource::<Outgoing>::new_own(number))?;
        Ok(())
    })?;
    type Bind = (Resource<Udp>, Resource<Network>, IpSocketAddress);
    udp.func_wrap("[method]udp-socket.start-bind", |mut store: Store<'_>, (socket, _, own): Bind| -> Returned<()> {
        let own = bound(&mut store, own.into());
        store.data_mut().table().get_mut(&socket)?.own = Some(own);
        Ok((Ok(()),))
    })?;
    udp.func_wrap("[method]udp-socket.finish-bind", |_: Store<'_>, (_,): (Resource<Udp>,)| -> Returned<()> {
        Ok((Ok(()),))
    })?;
    type Streams = (Resource<Incoming>, Resource<Outgoing>);
    udp.func_wrap(
        "[method]udp-socket.stream",
        |mut store: Store<'_>, (socket, peer): (Resource<Udp>, Option<IpSocketAddress>)| -> Returned<Streams> {
            let table = store.data_mut().table();
            let udp = table.get_mut(&socket)?;
            udp.peer = peer.map(SocketAddr::from);
            let own = udp.own.unwrap_or_else(|| any(udp.family)).ip();
            let (coming, peer) = (udp.coming.clone(), udp.peer);
            let incoming = table.push(Incoming(coming.clone()))?;
            Ok((Ok((incoming, table.push(Outgoing { own, peer, coming })?)),))
        },
    )?;
    udp.func_wrap(
        "[method]udp-socket.local-address",
        |mut store: Store<'_>, (socket,): (Resource<Udp>,)| -> Returned<IpSocketAddress> {
            let own = store.data_mut().table().get(&socket)?.own;
            Ok((own.map(IpSocketAddress::from).ok_or(ErrorCode::InvalidState),))
        },
    )?;
    udp.func_wrap(
        "[method]udp-socket.remote-address",
        |mut store: Store<'_>, (socket,): (Resource<Udp>,)| -> Returned<IpSocketAddress> {
            let peer = store.data_mut().table().get(&socket)?.peer;
            Ok((peer.map(IpSocketAddress::from).ok_or(ErrorCode::InvalidState),))
        },
    )?;
    udp.func_wrap(
        "[method]udp-socket.address-family",
        |mut store: Store<'_>, (socket,): (Resource<Udp>,)| -> Result<(IpAddressFamily,)> {
            Ok((store.data_mut().table().get(&socket)?.family,))
        },
    )?;
    without_effect! { udp, Udp:
        get "[method]udp-socket.unicast-hop-limit" 64 => u8;
        get "[method]udp-socket.receive-buffer-size" 65_536 => u64;
        get "[method]udp-socket.send-buffer-size" 65_536 => u64;
        set "[method]udp-socket.set-unicast-hop-limit" u8;
        set "[method]udp-socket.set-receive-buffer-size" u64;
        set "[method]udp-socket.set-send-buffer-size" u64;
    }
    udp.func_wrap("[method]udp-socket.subscribe", subscribed::<Udp>)?;
    udp.func_wrap("[method]incoming-datagram-stream.subscribe", subscribed::<Incoming>)?;
    udp.func_wrap("[method]outgoing-datagram-stream.subscribe", subscribed::<Outgoing>)?;
    udp.func_wrap(
        "[method]incoming-datagram-stream.receive",
        |mut store: Store<'_>, (stream, most): (Resource<Incoming>, u64)| -> Returned<Vec<IncomingDatagram>> {
            let incoming = store.data_mut().table().get(&stream)?;
            let (mut coming, mut datagrams) = (locked(&incoming.0), Vec::new());
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(AT_ONCE);
            while datagrams.len() < most
                && let Some((from, data)) = coming.pop(Instant::now())
            {
                datagrams.push(IncomingDatagram { data, remote_address: from.into() });
            }
            Ok((Ok(datagrams),))
        },
    )?;
    udp.func_wrap(
        "[method]outgoing-datagram-stream.check-send",
        |_: Store<'_>, (_,): (Resource<Outgoing>,)| -> Returned<u64> { Ok((Ok(AT_ONCE as u64),)) },
    )?;
    type Send = (Resource<Outgoing>, Vec<OutgoingDatagram>);
    udp.func_wrap(
        "[method]outgoing-datagram-stream.send",
        |mut store: Store<'_>, (stream, datagrams): Send| -> Returned<u64> {
            let replay = replay(&store)?;
            if datagrams.len() > AT_ONCE {
                return Err(format_err!("more datagrams than check-send allows"));
            }
            let Outgoing { own, peer, coming } = store.data_mut().table().get(&stream)?;
            let (now, mut coming) = (Instant::now(), locked(coming));
            for datagram in &datagrams {
                let Some(to) = datagram.remote_address.map(SocketAddr::from).or(*peer) else {
                    return Ok((Err(ErrorCode::InvalidArgument),));
                };
                for (after, from, payload) in replay.datagrams(*own, to) {
                    coming.push(now + after, from, payload);
                }
            }
            Ok((Ok(datagrams.len() as u64),))
        },
    )
}

fn subscribed<T: Pollable>(mut store: Store<'_>, (resource,): (Resource<T>,)) -> Result<(Resource<DynPollable>,)> {
    Ok((subscribe(store.data_mut().table(), resource)?,))
}

struct Tcp {
    family: IpAddressFamily,
    own: Option<SocketAddr>,
    state: State,
}

enum State {
    New,
    Connecting(SocketAddr, Conversation),
    Connected(SocketAddr),
}

impl State {
    /// One that nobody answers.
    fn is_silent(&self) -> bool {
        matches!(self, Self::Connecting(_, conversation) if conversation.failed.as_deref() == Some("timeout"))
    }
}

#[async_trait::async_trait]
impl Pollable for Tcp {
    async fn ready(&mut self) {
        if self.state.is_silent() {
            std::future::pending::<()>().await;
        }
    }
}

fn add_tcp(tcp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    tcp.resource("tcp-socket", ResourceType::host::<Tcp>(), |mut store, number| {
        store.data_mut().table().delete(Resource::<Tcp>::new_own(number))?;
        Ok(())
    })?;
    type Place = (Resource<Tcp>, Resource<Network>, IpSocketAddress);
    tcp.func_wrap("[method]tcp-socket.start-bind", |mut store: Store<'_>, (socket, _, own): Place| -> Returned<()> {
        let own = bound(&mut store, own.into());
        store.data_mut().table().get_mut(&socket)?.own = Some(own);
        Ok((Ok(()),))
    })?;
    tcp.func_wrap("[method]tcp-socket.finish-bind", |_: Store<'_>, (_,): (Resource<Tcp>,)| -> Returned<()> {
        Ok((Ok(()),))
    })?;
    tcp.func_wrap(
        "[method]tcp-socket.start-connect",
        |mut store: Store<'_>, (socket, _, to): Place| -> Returned<()> {
            let to = SocketAddr::from(to);
            let conversation = replay(&store)?.connection(to).unwrap_or_else(|| Conversation::failed("refused"));
            if conversation.failed.as_deref() == Some("denied") {
                return Ok((Err(ErrorCode::AccessDenied),));
            }
            store.data_mut().table().get_mut(&socket)?.state = State::Connecting(to, conversation);
            Ok((Ok(()),))
        },
    )?;
    type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);
    tcp.func_wrap(
        "[method]tcp-socket.finish-connect",
        |mut store: Store<'_>, (socket,): (Resource<Tcp>,)| -> Returned<Streams> {
            let family = store.data_mut().table().get(&socket)?.family;
            let own = bound(&mut store, any(family));
            let table = store.data_mut().table();
            let tcp = table.get_mut(&socket)?;
            if tcp.state.is_silent() {
                return Ok((Err(ErrorCode::WouldBlock),));
            }
            let State::Connecting(to, conversation) = std::mem::replace(&mut tcp.state, State::New) else {
                return Ok((Err(ErrorCode::NotInProgress),));
            };
            if let Some(why) = conversation.failed {
                let error = match why.as_str() {
                    "refused" => ErrorCode::ConnectionRefused,
                    "closed" => ErrorCode::ConnectionReset,
                    "unreachable" => ErrorCode::RemoteUnreachable,
                    _ => ErrorCode::Unknown,
                };
                return Ok((Err(error),));
            }
            tcp.own = tcp.own.or(Some(own));
            tcp.state = State::Connected(to);
            let live = Arc::new(Mutex::new(Live { conversation, last: Instant::now(), rest: Bytes::new() }));
            let input: DynInputStream = Box::new(Input(live.clone()));
            let output: DynOutputStream = Box::new(Output(live));
            Ok((Ok((table.push(input)?, table.push(output)?)),))
        },
    )?;
    type Accepted = (Resource<Tcp>, Resource<DynInputStream>, Resource<DynOutputStream>);
    tcp.func_wrap("[method]tcp-socket.accept", |_: Store<'_>, (_,): (Resource<Tcp>,)| -> Returned<Accepted> {
        Ok((Err(ErrorCode::NotSupported),))
    })?;
    for name in ["start-listen", "finish-listen"] {
        let name = format!("[method]tcp-socket.{name}");
        tcp.func_wrap(&name, |_: Store<'_>, (_,): (Resource<Tcp>,)| -> Returned<()> {
            Ok((Err(ErrorCode::NotSupported),))
        })?;
    }
    tcp.func_wrap(
        "[method]tcp-socket.local-address",
        |mut store: Store<'_>, (socket,): (Resource<Tcp>,)| -> Returned<IpSocketAddress> {
            let own = store.data_mut().table().get(&socket)?.own;
            Ok((own.map(IpSocketAddress::from).ok_or(ErrorCode::InvalidState),))
        },
    )?;
    tcp.func_wrap(
        "[method]tcp-socket.remote-address",
        |mut store: Store<'_>, (socket,): (Resource<Tcp>,)| -> Returned<IpSocketAddress> {
            Ok((match store.data_mut().table().get(&socket)?.state {
                State::Connected(peer) => Ok(peer.into()),
                _ => Err(ErrorCode::InvalidState),
            },))
        },
    )?;
    tcp.func_wrap("[method]tcp-socket.is-listening", |_: Store<'_>, (_,): (Resource<Tcp>,)| -> Result<(bool,)> {
        Ok((false,))
    })?;
    tcp.func_wrap(
        "[method]tcp-socket.address-family",
        |mut store: Store<'_>, (socket,): (Resource<Tcp>,)| -> Result<(IpAddressFamily,)> {
            Ok((store.data_mut().table().get(&socket)?.family,))
        },
    )?;
    without_effect! { tcp, Tcp:
        get "[method]tcp-socket.keep-alive-enabled" false => bool;
        get "[method]tcp-socket.keep-alive-idle-time" 7_200_000_000_000 => u64;
        get "[method]tcp-socket.keep-alive-interval" 75_000_000_000 => u64;
        get "[method]tcp-socket.keep-alive-count" 9 => u32;
        get "[method]tcp-socket.hop-limit" 64 => u8;
        get "[method]tcp-socket.receive-buffer-size" 65_536 => u64;
        get "[method]tcp-socket.send-buffer-size" 65_536 => u64;
        set "[method]tcp-socket.set-listen-backlog-size" u64;
        set "[method]tcp-socket.set-keep-alive-enabled" bool;
        set "[method]tcp-socket.set-keep-alive-idle-time" u64;
        set "[method]tcp-socket.set-keep-alive-interval" u64;
        set "[method]tcp-socket.set-keep-alive-count" u32;
        set "[method]tcp-socket.set-hop-limit" u8;
        set "[method]tcp-socket.set-receive-buffer-size" u64;
        set "[method]tcp-socket.set-send-buffer-size" u64;
        set "[method]tcp-socket.shutdown" ShutdownType;
    }
    tcp.func_wrap("[method]tcp-socket.subscribe", subscribed::<Tcp>)
}

/// A connection that is there.
struct Live {
    conversation: Conversation,
    /// When something was last written or read.
    last: Instant,
    /// What has come and was not read.
    rest: Bytes,
}

struct Input(Arc<Mutex<Live>>);

struct Output(Arc<Mutex<Live>>);

#[async_trait::async_trait]
impl Pollable for Input {
    async fn ready(&mut self) {
        let next = {
            let mut live = locked(&self.0);
            match live.rest.is_empty() {
                false => return,
                true => live.conversation.turn(),
            }
        };
        match next {
            Turn::Says(after, _) => {
                let at = locked(&self.0).last + after;
                sleep_until(at).await;
            }
            Turn::Ends | Turn::Breaks => {}
            Turn::Asks | Turn::Silent => std::future::pending().await,
        }
    }
}

impl InputStream for Input {
    fn read(&mut self, size: usize) -> std::result::Result<Bytes, StreamError> {
        let mut live = locked(&self.0);
        if live.rest.is_empty() {
            match live.conversation.turn() {
                Turn::Says(after, bytes) if live.last + after <= Instant::now() => {
                    live.conversation.taken();
                    live.last = Instant::now();
                    live.rest = bytes.into();
                }
                Turn::Says(..) | Turn::Asks | Turn::Silent => return Ok(Bytes::new()),
                Turn::Ends => return Err(StreamError::Closed),
                Turn::Breaks => return Err(StreamError::LastOperationFailed(format_err!("it broke"))),
            }
        }
        let size = size.min(live.rest.len());
        Ok(live.rest.split_to(size))
    }
}

#[async_trait::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> std::result::Result<(), StreamError> {
        if !bytes.is_empty() {
            let mut live = locked(&self.0);
            live.conversation.wrote();
            live.last = Instant::now();
        }
        Ok(())
    }

    fn flush(&mut self) -> std::result::Result<(), StreamError> {
        Ok(())
    }

    fn check_write(&mut self) -> std::result::Result<usize, StreamError> {
        Ok(WRITE)
    }
}
