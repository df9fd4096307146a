//! The sockets of WASI 0.2, held to a [`NetworkAccess`]: which addresses, how many sockets, how many bytes, and which names.
//!
//! wasmtime-wasi makes the sockets and asks for every address. What it does not bound is done here, by functions that stand before
//! its own: the number of sockets, what is sent, and the look-up of names.

use super::access::NetworkAccess;
use crate::component::ComponentState;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, IpAddressFamily};
use wasmtime_wasi::p2::bindings::sockets::{tcp, tcp_create_socket, udp, udp_create_socket};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, Network, OutputStream, Pollable, SocketError, SocketResult,
    StreamError, TcpSocket, UdpSocket, subscribe,
};
use wasmtime_wasi::sockets::WasiSocketsView as _;

/// Sockets that one guest may have at once.
const SOCKETS: usize = 32;
/// What a datagram counts for besides its bytes: the headers that it is sent with.
const DATAGRAM: usize = 64;
/// Names that are looked up at once, for all guests: each takes a thread until the resolver answers.
static LOOK_UPS: Semaphore = Semaphore::const_new(8);
/// How long a look-up may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Addresses of one name that a guest is told.
const MOST_ADDRESSES: usize = 32;

/// The version of WASI whose interfaces are stood before; components of older ones are given it, too.
const VERSION: &str = "0.2.12";

/// Gives a guest's sockets their rules; without an access, there are no sockets.
pub(crate) fn restrict(wasi: &mut WasiCtxBuilder, access: Option<&Arc<NetworkAccess>>) {
    let Some(access) = access.cloned() else {
        wasi.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        return;
    };
    wasi.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(false).socket_addr_check(move |address, how| {
        let permitted = access.permits(address, how);
        Box::pin(async move { permitted })
    });
}

type Store<'a> = StoreContextMut<'a, ComponentState>;
/// What a function of WASI's sockets returns.
type Returned<T> = Result<(std::result::Result<T, ErrorCode>,)>;

/// Puts the functions of this module before wasmtime-wasi's.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut create = linker.instance(&format!("wasi:sockets/tcp-create-socket@{VERSION}"))?;
    create.func_wrap("create-tcp-socket", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        returned(
            check_sockets(&mut store)
                .and_then(|()| tcp_create_socket::Host::create_tcp_socket(&mut store.data_mut().sockets(), family)),
        )
    })?;
    let mut create = linker.instance(&format!("wasi:sockets/udp-create-socket@{VERSION}"))?;
    create.func_wrap_async("create-udp-socket", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        Box::new(async move {
            returned(match check_sockets(&mut store) {
                Ok(()) => udp_create_socket::Host::create_udp_socket(&mut store.data_mut().sockets(), family).await,
                Err(error) => Err(error),
            })
        })
    })?;
    add_tcp(&mut linker.instance(&format!("wasi:sockets/tcp@{VERSION}"))?)?;
    add_udp(&mut linker.instance(&format!("wasi:sockets/udp@{VERSION}"))?)?;
    add_names(&mut linker.instance(&format!("wasi:sockets/ip-name-lookup@{VERSION}"))?)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A trap is the guest's end, an error code is its affair.
fn returned<T>(result: SocketResult<T>) -> Returned<T> {
    match result {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

fn check_sockets(store: &mut Store<'_>) -> SocketResult<()> {
    let is_socket = |entry: &dyn std::any::Any| entry.is::<TcpSocket>() || entry.is::<UdpSocket>();
    let sockets = store.data_mut().table().iter_mut().filter(|entry| is_socket(&**entry)).count();
    if sockets < SOCKETS { Ok(()) } else { Err(ErrorCode::NewSocketLimit.into()) }
}

fn add_tcp(tcp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);
    tcp.func_wrap("[method]tcp-socket.finish-connect", |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
        let connected = tcp::HostTcpSocket::finish_connect(&mut store.data_mut().sockets(), socket);
        returned(connected.and_then(|(input, output)| -> SocketResult<Streams> {
            pace(&mut store, &output)?;
            Ok((input, output))
        }))
    })?;
    tcp.func_wrap("[method]tcp-socket.accept", |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
        type Accepted = (Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>);
        let accepted = check_sockets(&mut store)
            .and_then(|()| tcp::HostTcpSocket::accept(&mut store.data_mut().sockets(), socket));
        returned(accepted.and_then(|(socket, input, output)| -> SocketResult<Accepted> {
            pace(&mut store, &output)?;
            Ok((socket, input, output))
        }))
    })
}

/// Has what is written to a connection counted.
fn pace(store: &mut Store<'_>, output: &Resource<DynOutputStream>) -> SocketResult<()> {
    let Some(access) = store.data().network().cloned() else { return Ok(()) };
    let stream = store.data_mut().table().get_mut(output)?;
    let inner = std::mem::replace(stream, Box::new(wasmtime_wasi::p2::pipe::SinkOutputStream));
    *stream = Box::new(PacedStream { inner, access, free: Instant::now() });
    Ok(())
}

/// A stream that takes no more than its guest may send.
struct PacedStream {
    inner: DynOutputStream,
    access: Arc<NetworkAccess>,
    /// When more may be sent.
    free: Instant,
}

#[async_trait::async_trait]
impl Pollable for PacedStream {
    async fn ready(&mut self) {
        if self.free > Instant::now() {
            tokio::time::sleep_until(self.free).await;
        }
        self.inner.ready().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for PacedStream {
    fn write(&mut self, bytes: bytes::Bytes) -> std::result::Result<(), StreamError> {
        self.free = self.access.sends(bytes.len());
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> std::result::Result<(), StreamError> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> std::result::Result<usize, StreamError> {
        if self.free > Instant::now() { Ok(0) } else { self.inner.check_write() }
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

fn add_udp(udp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    type Arguments = (Resource<udp::OutgoingDatagramStream>, Vec<udp::OutgoingDatagram>);
    udp.func_wrap_async(
        "[method]outgoing-datagram-stream.send",
        |mut store: Store<'_>, (stream, datagrams): Arguments| {
            Box::new(async move {
                let bytes = datagrams.iter().map(|datagram| datagram.data.len() + DATAGRAM).sum();
                let free = store.data().network().map(|access| access.sends(bytes));
                // Whoever floods waits here, in its own step.
                if let Some(free) = free.filter(|free| *free > Instant::now()) {
                    tokio::time::sleep_until(free).await;
                }
                returned(udp::HostOutgoingDatagramStream::send(&mut store.data_mut().sockets(), stream, datagrams))
            })
        },
    )
}

/// The addresses of a name, one after the other.
enum Addresses {
    Awaited(AbortOnDropHandle<std::result::Result<Vec<IpAddr>, ErrorCode>>),
    Found(std::vec::IntoIter<IpAddr>),
    Failed(ErrorCode),
}

#[async_trait::async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        if let Self::Awaited(look_up) = self {
            *self = match look_up.await {
                Ok(Ok(addresses)) => Self::Found(addresses.into_iter()),
                Ok(Err(error)) => Self::Failed(error),
                Err(_) => Self::Failed(ErrorCode::PermanentResolverFailure),
            };
        }
    }
}

fn add_names(names: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    names.resource("resolve-address-stream", ResourceType::host::<Addresses>(), |mut store, stream| {
        store.data_mut().table().delete(Resource::<Addresses>::new_own(stream))?;
        Ok(())
    })?;
    names.func_wrap("resolve-addresses", |mut store: Store<'_>, (_, name): (Resource<Network>, String)| {
        returned(match addresses(store.data().network(), name) {
            Ok(addresses) => store.data_mut().table().push(addresses).map_err(SocketError::from),
            Err(error) => Err(error.into()),
        })
    })?;
    names.func_wrap_async(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store: Store<'_>, (stream,): (Resource<Addresses>,)| {
            Box::new(async move {
                let stream = store.data_mut().table().get_mut(&stream)?;
                let next: std::result::Result<Option<IpAddress>, ErrorCode> = match stream {
                    Addresses::Awaited(look_up) if !look_up.is_finished() => Err(ErrorCode::WouldBlock),
                    _ => {
                        stream.ready().await;
                        match stream {
                            Addresses::Found(addresses) => Ok(addresses.next().map(IpAddress::from)),
                            Addresses::Failed(error) => Err(*error),
                            Addresses::Awaited(_) => Err(ErrorCode::WouldBlock),
                        }
                    }
                };
                Ok((next,))
            })
        },
    )?;
    names.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store: Store<'_>, (stream,): (Resource<Addresses>,)| -> Result<(Resource<DynPollable>,)> {
            Ok((subscribe(store.data_mut().table(), stream)?,))
        },
    )
}

/// Begins to look a name up, if the guest may.
fn addresses(access: Option<&Arc<NetworkAccess>>, name: String) -> std::result::Result<Addresses, ErrorCode> {
    let Some(access) = access.cloned() else { return Err(ErrorCode::AccessDenied) };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Addresses::Found(vec![address].into_iter()));
    }
    if name.is_empty() || name.len() > 254 {
        return Err(ErrorCode::InvalidArgument);
    }
    if !access.may_look_up(&name) {
        access.deny(&format!("look-up of {name:?}"), "no rule gives it");
        return Err(ErrorCode::AccessDenied);
    }
    Ok(Addresses::Awaited(AbortOnDropHandle::new(tokio::spawn(async move {
        let found = tokio::time::timeout(LOOK_UP, look_up(name.clone())).await;
        let found = found.map_err(|_| ErrorCode::TemporaryResolverFailure)??;
        let all = found.len();
        let told = access.resolved(&name, found);
        if told.is_empty() && all > 0 { Err(ErrorCode::AccessDenied) } else { Ok(told) }
    }))))
}

type LookedUp = std::result::Result<Vec<IpAddr>, ErrorCode>;

fn look_up(name: String) -> Pin<Box<dyn Future<Output = LookedUp> + Send>> {
    Box::pin(async move {
        let turn = LOOK_UPS.acquire().await.map_err(|_| ErrorCode::TemporaryResolverFailure)?;
        // The resolver cannot be interrupted: it keeps its place until it returns, also when nobody waits any more.
        let asked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), 0))
        });
        let found = asked.await.map_err(|_| ErrorCode::PermanentResolverFailure)?;
        let found = found.map_err(|_| ErrorCode::NameUnresolvable)?;
        let mut addresses: Vec<_> = found.map(|address| address.ip()).take(MOST_ADDRESSES).collect();
        addresses.dedup();
        Ok(addresses)
    })
}
