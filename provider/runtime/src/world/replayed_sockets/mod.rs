//! Sockets of a replay: no packet leaves the machine, and what comes is the recording's.
//!
//! They stand where wasmtime-wasi's would, with resources of their own.

/// Functions that a socket has and that change nothing in a replay.
macro_rules! without_effect {
    ($instance:ident, $of:ty: $(get $get:literal $value:expr => $as:ty;)* $(set $set:literal $with:ty;)*) => {
        $($instance.func_wrap($get, |_: Store<'_>, (_,): (Resource<$of>,)| -> Returned<$as> { Ok((Ok($value),)) })?;)*
        $($instance.func_wrap($set, |_: Store<'_>, (_, _): (Resource<$of>, $with)| -> Returned<()> { Ok((Ok(()),)) })?;)*
    };
}

mod tcp;
mod udp;

use super::Replay;
use crate::component::{ComponentState, WASI};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wasmtime::component::{Linker, Resource};
use wasmtime::{Result, StoreContextMut, format_err};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};

type Store<'a> = StoreContextMut<'a, ComponentState>;
type Returned<T> = Result<(std::result::Result<T, ErrorCode>,)>;

/// The first port that a socket is given which asks for none.
const FIRST_PORT: u16 = 49152;

/// Puts the functions of this module before all others.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> Result<()> {
    linker.allow_shadowing(true);
    udp::add_creation(&mut linker.instance(&format!("wasi:sockets/udp-create-socket@{WASI}"))?)?;
    udp::add(&mut linker.instance(&format!("wasi:sockets/udp@{WASI}"))?)?;
    tcp::add_creation(&mut linker.instance(&format!("wasi:sockets/tcp-create-socket@{WASI}"))?)?;
    tcp::add(&mut linker.instance(&format!("wasi:sockets/tcp@{WASI}"))?)?;
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

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn subscribed<T: Pollable>(mut store: Store<'_>, (resource,): (Resource<T>,)) -> Result<(Resource<DynPollable>,)> {
    Ok((subscribe(store.data_mut().table(), resource)?,))
}
