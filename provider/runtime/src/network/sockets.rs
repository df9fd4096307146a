//! The sockets of WASI 0.2, held to a [`NetworkAccess`]: which addresses, how many sockets, how many bytes, and which names.
//!
//! wasmtime-wasi makes the sockets and asks for every address. What it does not bound is done here, by functions that stand before
//! its own: the number of sockets, what is sent, and the look-up of names.

use super::access::NetworkAccess;
use crate::component::{ComponentState, WASI, returned};
use crate::world::{RecordedInput, RecordedOutput, Recorder};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::time::Instant;
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceType};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::{tcp, tcp_create_socket, udp, udp_create_socket};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, Network, OutputStream, Pollable, SocketError, SocketResult, StreamError,
    TcpSocket, UdpSocket,
};
use wasmtime_wasi::sockets::WasiSocketsView as _;

/// Sockets that one guest may have at once.
pub(super) const SOCKETS: usize = 32;
/// The least that a datagram counts for, in bytes, and what a new connection does: each costs the machine a place in its tables.
const DATAGRAM: usize = 4 << 10;
pub(super) const CONNECTION: usize = 64 << 10;
/// Largest buffer of a socket in the kernel, in bytes, and most connections that wait to be accepted.
const BUFFER: u64 = 256 << 10;
const BACKLOG: u64 = 64;

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

pub(super) type Store<'a> = StoreContextMut<'a, ComponentState>;

/// Puts the functions of this module before wasmtime-wasi's.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> Result<()> {
    linker.allow_shadowing(true);
    let mut create = linker.instance(&format!("wasi:sockets/tcp-create-socket@{WASI}"))?;
    create.func_wrap_async("create-tcp-socket", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        Box::new(async move {
            if let Err(error) = check_sockets(&mut store) {
                return returned(Err(error));
            }
            if let Some(access) = store.data().network().cloned() {
                paid(&access, CONNECTION).await;
            }
            returned(tcp_create_socket::Host::create_tcp_socket(&mut store.data_mut().sockets(), family))
        })
    })?;
    let mut create = linker.instance(&format!("wasi:sockets/udp-create-socket@{WASI}"))?;
    create.func_wrap_async("create-udp-socket", |mut store: Store<'_>, (family,): (IpAddressFamily,)| {
        Box::new(async move {
            if let Err(error) = check_sockets(&mut store) {
                return returned(Err(error));
            }
            returned(udp_create_socket::Host::create_udp_socket(&mut store.data_mut().sockets(), family).await)
        })
    })?;
    add_tcp(&mut linker.instance(&format!("wasi:sockets/tcp@{WASI}"))?)?;
    add_udp(&mut linker.instance(&format!("wasi:sockets/udp@{WASI}"))?)?;
    super::names::add_to_linker(&mut linker.instance(&format!("wasi:sockets/ip-name-lookup@{WASI}"))?)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Counts bytes as sent, and waits until more may be: whoever floods waits here, in its own step.
pub(super) async fn paid(access: &NetworkAccess, bytes: usize) {
    let mut free = access.sends(bytes);
    while free > Instant::now() {
        tokio::time::sleep_until(free).await;
        free = access.sends(0);
    }
}

/// The same of a datagram that goes to so many links.
pub(crate) async fn paid_datagrams(access: &NetworkAccess, bytes: usize, links: usize) {
    paid(access, bytes.max(DATAGRAM) * links).await;
}

fn check_sockets(store: &mut Store<'_>) -> SocketResult<()> {
    if let Some(access) = store.data().network()
        && access.denies_sockets()
    {
        return Err(ErrorCode::AccessDenied.into());
    }
    let is_socket = |entry: &dyn std::any::Any| entry.is::<TcpSocket>() || entry.is::<UdpSocket>();
    let sockets = store.data_mut().table().iter_mut().filter(|entry| is_socket(&**entry)).count();
    if sockets < SOCKETS { Ok(()) } else { Err(ErrorCode::NewSocketLimit.into()) }
}

fn add_tcp(tcp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    tcp.resource("tcp-socket", ResourceType::host::<TcpSocket>(), |mut store, number| {
        if let Some(recorder) = store.data().world().recorder() {
            recorder.dropped(number);
        }
        tcp::HostTcpSocket::drop(&mut store.data_mut().sockets(), Resource::new_own(number))
    })?;
    type Size = (Resource<TcpSocket>, u64);
    tcp.func_wrap("[method]tcp-socket.set-receive-buffer-size", |mut store: Store<'_>, (socket, size): Size| {
        let size = size.min(BUFFER);
        returned(tcp::HostTcpSocket::set_receive_buffer_size(&mut store.data_mut().sockets(), socket, size))
    })?;
    tcp.func_wrap("[method]tcp-socket.set-send-buffer-size", |mut store: Store<'_>, (socket, size): Size| {
        let size = size.min(BUFFER);
        returned(tcp::HostTcpSocket::set_send_buffer_size(&mut store.data_mut().sockets(), socket, size))
    })?;
    tcp.func_wrap("[method]tcp-socket.set-listen-backlog-size", |mut store: Store<'_>, (socket, size): Size| {
        let size = size.min(BACKLOG);
        returned(tcp::HostTcpSocket::set_listen_backlog_size(&mut store.data_mut().sockets(), socket, size))
    })?;
    type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);
    type Place = (Resource<TcpSocket>, Resource<Network>, IpSocketAddress);
    tcp.func_wrap("[method]tcp-socket.start-connect", |mut store: Store<'_>, (socket, network, to): Place| {
        let number = socket.rep();
        let started = tcp::HostTcpSocket::start_connect(&mut store.data_mut().sockets(), socket, network, to);
        if let Some(recorder) = store.data().world().recorder() {
            recorder.connects(number, to.into());
            if let Err(error) = &started {
                recorder.connected(number, Some(why(error)));
            }
        }
        returned(started)
    })?;
    tcp.func_wrap("[method]tcp-socket.finish-connect", |mut store: Store<'_>, (socket,): (Resource<TcpSocket>,)| {
        let number = socket.rep();
        let connected = tcp::HostTcpSocket::finish_connect(&mut store.data_mut().sockets(), socket);
        let recorder = store.data().world().recorder().cloned();
        if let (Some(recorder), Err(error)) = (&recorder, &connected)
            && why(error) != "would-block"
        {
            recorder.connected(number, Some(why(error)));
        }
        returned(connected.and_then(|(input, output)| -> SocketResult<Streams> {
            pace(&mut store, &output)?;
            if let Some(recorder) = recorder
                && let Some(number) = recorder.connected(number, None)
            {
                record(&mut store, (&input, &output), &recorder, number)?;
            }
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

/// Why there is no connection, as recordings have it.
fn why(error: &SocketError) -> &'static str {
    match error.downcast_ref() {
        Some(ErrorCode::WouldBlock) => "would-block",
        Some(ErrorCode::ConnectionRefused) => "refused",
        Some(ErrorCode::ConnectionReset | ErrorCode::ConnectionAborted) => "closed",
        Some(ErrorCode::RemoteUnreachable) => "unreachable",
        Some(ErrorCode::AccessDenied) => "denied",
        Some(ErrorCode::Timeout) => "timeout",
        _ => "other",
    }
}

/// Has what goes through a connection written down.
fn record(
    store: &mut Store<'_>,
    (input, output): (&Resource<DynInputStream>, &Resource<DynOutputStream>),
    recorder: &Arc<Recorder>,
    number: u32,
) -> SocketResult<()> {
    let table = store.data_mut().table();
    let stream = table.get_mut(input)?;
    let inner = std::mem::replace(stream, Box::new(wasmtime_wasi::p2::pipe::ClosedInputStream));
    *stream = Box::new(RecordedInput { inner, recorder: recorder.clone(), number, has_ended: false });
    let stream = table.get_mut(output)?;
    let inner = std::mem::replace(stream, Box::new(wasmtime_wasi::p2::pipe::SinkOutputStream));
    *stream = Box::new(RecordedOutput { inner, recorder: recorder.clone(), number });
    Ok(())
}

/// Has what is written to a connection counted.
fn pace(store: &mut Store<'_>, output: &Resource<DynOutputStream>) -> SocketResult<()> {
    let Some(access) = store.data().network().cloned() else { return Ok(()) };
    let stream = store.data_mut().table().get_mut(output)?;
    let inner = std::mem::replace(stream, Box::new(wasmtime_wasi::p2::pipe::SinkOutputStream));
    *stream = Box::new(PacedStream { inner, access });
    Ok(())
}

/// A stream that takes no more than its guest may send.
struct PacedStream {
    inner: DynOutputStream,
    access: Arc<NetworkAccess>,
}

#[async_trait::async_trait]
impl Pollable for PacedStream {
    async fn ready(&mut self) {
        paid(&self.access, 0).await;
        self.inner.ready().await;
    }
}

#[async_trait::async_trait]
impl OutputStream for PacedStream {
    fn write(&mut self, bytes: bytes::Bytes) -> std::result::Result<(), StreamError> {
        self.access.sends(bytes.len());
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> std::result::Result<(), StreamError> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> std::result::Result<usize, StreamError> {
        if self.access.sends(0) > Instant::now() { Ok(0) } else { self.inner.check_write() }
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

fn add_udp(udp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    type Size = (Resource<UdpSocket>, u64);
    udp.func_wrap("[method]udp-socket.set-receive-buffer-size", |mut store: Store<'_>, (socket, size): Size| {
        let size = size.min(BUFFER);
        returned(udp::HostUdpSocket::set_receive_buffer_size(&mut store.data_mut().sockets(), socket, size))
    })?;
    udp.func_wrap("[method]udp-socket.set-send-buffer-size", |mut store: Store<'_>, (socket, size): Size| {
        let size = size.min(BUFFER);
        returned(udp::HostUdpSocket::set_send_buffer_size(&mut store.data_mut().sockets(), socket, size))
    })?;
    type Streams = (Resource<udp::IncomingDatagramStream>, Resource<udp::OutgoingDatagramStream>);
    udp.func_wrap_async(
        "[method]udp-socket.stream",
        |mut store: Store<'_>, (socket, peer): (Resource<UdpSocket>, Option<IpSocketAddress>)| {
            Box::new(async move {
                let mut sockets = store.data_mut().sockets();
                let own = udp::HostUdpSocket::local_address(&mut sockets, Resource::new_borrow(socket.rep()));
                let streams = udp::HostUdpSocket::stream(&mut sockets, socket, peer).await;
                if let (Some(recorder), Ok((incoming, outgoing)), Ok(own)) =
                    (store.data().world().recorder(), &streams, own)
                {
                    for stream in [incoming.rep(), outgoing.rep()] {
                        recorder.bound(stream, SocketAddr::from(own).ip(), peer.map(SocketAddr::from));
                    }
                }
                returned(streams) as Result<(std::result::Result<Streams, ErrorCode>,)>
            })
        },
    )?;
    udp.func_wrap(
        "[method]incoming-datagram-stream.receive",
        |mut store: Store<'_>, (stream, most): (Resource<udp::IncomingDatagramStream>, u64)| {
            let number = stream.rep();
            let mut sockets = store.data_mut().sockets();
            let received = udp::HostIncomingDatagramStream::receive(&mut sockets, stream, most);
            if let (Some(recorder), Ok(datagrams)) = (store.data().world().recorder(), &received) {
                for datagram in datagrams {
                    recorder.datagram(number, false, Some(datagram.remote_address.into()), &datagram.data);
                }
            }
            returned(received)
        },
    )?;
    type Arguments = (Resource<udp::OutgoingDatagramStream>, Vec<udp::OutgoingDatagram>);
    udp.func_wrap_async(
        "[method]outgoing-datagram-stream.send",
        |mut store: Store<'_>, (stream, datagrams): Arguments| {
            Box::new(async move {
                let bytes = datagrams.iter().map(|datagram| datagram.data.len().max(DATAGRAM)).sum();
                if let Some(access) = store.data().network().cloned() {
                    paid(&access, bytes).await;
                }
                if let Some(recorder) = store.data().world().recorder() {
                    for datagram in &datagrams {
                        let to = datagram.remote_address.map(SocketAddr::from);
                        recorder.datagram(stream.rep(), true, to, &datagram.data);
                    }
                }
                returned(udp::HostOutgoingDatagramStream::send(&mut store.data_mut().sockets(), stream, datagrams))
            })
        },
    )
}
