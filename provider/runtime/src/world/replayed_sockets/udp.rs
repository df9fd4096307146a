//! Datagrams.

use super::{Returned, Store, any, bound, locked, replay, subscribed};
use crate::component::ComponentState;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::time::{Instant, sleep_until};
use wasmtime::component::{LinkerInstance, Resource, ResourceType};
use wasmtime::{Result, format_err};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::udp::{IncomingDatagram, OutgoingDatagram};
use wasmtime_wasi::p2::{Network, Pollable};

/// Datagrams that are sent or received at once.
const AT_ONCE: usize = 16;
/// What waits in a socket at most: datagrams, and their bytes.
const MOST_WAITING: usize = 256;
const MOST_BYTES: usize = 4 << 20;
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

pub(super) fn add_creation(create: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    create.func_wrap(
        "create-udp-socket",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| -> Returned<Resource<Udp>> {
            let udp = Udp { family, own: None, peer: None, coming: Arc::default() };
            Ok((Ok(store.data_mut().table().push(udp)?),))
        },
    )
}

pub(super) fn add(udp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
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
