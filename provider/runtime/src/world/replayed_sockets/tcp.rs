//! Connections.

use super::{Returned, Store, any, bound, locked, replay, subscribed};
use crate::component::ComponentState;
use akri_recording::{Conversation, Turn};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::time::{Instant, sleep_until};
use wasmtime::component::{LinkerInstance, Resource, ResourceType};
use wasmtime::{Result, format_err};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress};
use wasmtime_wasi::p2::bindings::sockets::tcp::ShutdownType;
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, InputStream, Network, OutputStream, Pollable, StreamError};

/// What a connection takes at once, in bytes.
const WRITE: usize = 64 << 10;
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

pub(super) fn add_creation(create: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    create.func_wrap(
        "create-tcp-socket",
        |mut store: Store<'_>, (family,): (IpAddressFamily,)| -> Returned<Resource<Tcp>> {
            let tcp = Tcp { family, own: None, state: State::New };
            Ok((Ok(store.data_mut().table().push(tcp)?),))
        },
    )
}

pub(super) fn add(tcp: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
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
