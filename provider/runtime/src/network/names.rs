//! Names, looked up for a guest if its rules give that; what they lead to is held to the rules, too.

use super::access::NetworkAccess;
use super::sockets::Store;
use crate::component::ComponentState;
use crate::component::returned;
use crate::world::World;
use akri_recording::Event;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::Result;
use wasmtime::component::{LinkerInstance, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress};
use wasmtime_wasi::p2::{DynPollable, Network, Pollable, SocketError, subscribe};

/// Names that are looked up at once, for all guests: each takes a thread until the resolver answers.
static LOOK_UPS: Semaphore = Semaphore::const_new(8);
/// How long a look-up may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Addresses of one name that a guest is told.
const MOST_ADDRESSES: usize = 32;

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

/// Puts the look-up of names by the guest's rules before wasmtime-wasi's.
pub(super) fn add_to_linker(names: &mut LinkerInstance<'_, ComponentState>) -> Result<()> {
    names.resource("resolve-address-stream", ResourceType::host::<Addresses>(), |mut store, stream| {
        store.data_mut().table().delete(Resource::<Addresses>::new_own(stream))?;
        Ok(())
    })?;
    names.func_wrap("resolve-addresses", |mut store: Store<'_>, (_, name): (Resource<Network>, String)| {
        returned(match found(store.data(), name) {
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

/// As the world has it: the machine's, or a recording's.
fn found(state: &ComponentState, name: String) -> std::result::Result<Addresses, ErrorCode> {
    match state.world() {
        World::Machine => addresses(state.network(), name, |_| {}),
        World::Recorded(recorder) => {
            let (recorder, of) = (recorder.clone(), name.clone());
            let noted = recorder.clone();
            let note = move |found: &std::result::Result<Vec<IpAddr>, ErrorCode>| {
                let found = match found {
                    Ok(addresses) => Ok(addresses.clone()),
                    Err(error) => Err(why(*error).to_owned()),
                };
                noted.note(Event::Name(of, found));
            };
            let begun = addresses(state.network(), name.clone(), note);
            if let Err(error) = &begun {
                recorder.note(Event::Name(name, Err(why(*error).to_owned())));
            }
            begun
        }
        World::Replayed(replay) => match name.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(address) => Ok(Addresses::Found(vec![address].into_iter())),
            Err(_) => match replay.name(&name) {
                Ok(addresses) => Ok(Addresses::Found(addresses.into_iter())),
                Err(why) if why == "denied" => Err(ErrorCode::AccessDenied),
                Err(why) if why == "not-found" => Ok(Addresses::Failed(ErrorCode::NameUnresolvable)),
                Err(_) => Ok(Addresses::Failed(ErrorCode::TemporaryResolverFailure)),
            },
        },
    }
}

/// Why a name leads nowhere, as recordings have it.
fn why(error: ErrorCode) -> &'static str {
    match error {
        ErrorCode::AccessDenied => "denied",
        ErrorCode::NameUnresolvable | ErrorCode::InvalidArgument => "not-found",
        _ => "unavailable",
    }
}

/// Begins to look a name up, if the guest may; tells what came of it.
fn addresses(
    access: Option<&Arc<NetworkAccess>>,
    name: String,
    told: impl FnOnce(&std::result::Result<Vec<IpAddr>, ErrorCode>) + Send + 'static,
) -> std::result::Result<Addresses, ErrorCode> {
    let Some(access) = access.cloned() else { return Err(ErrorCode::AccessDenied) };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(&name);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Addresses::Found(vec![address].into_iter()));
    }
    if name.is_empty() || name.len() > 254 {
        return Err(ErrorCode::InvalidArgument);
    }
    if let Some(why) = access.look_up_denied(&name) {
        access.deny(&format!("look-up of {name:?}"), why);
        return Err(ErrorCode::AccessDenied);
    }
    Ok(Addresses::Awaited(AbortOnDropHandle::new(tokio::spawn(async move {
        let found = look_up(name.clone(), access.grant.look_ups.clone()).await;
        let found = found.and_then(|found| {
            let (all, allowed) = (found.len(), access.resolved(&name, found));
            if allowed.is_empty() && all > 0 { Err(ErrorCode::AccessDenied) } else { Ok(allowed) }
        });
        told(&found);
        found
    }))))
}

pub(super) async fn look_up(name: String, of_guest: Arc<Semaphore>) -> std::result::Result<Vec<IpAddr>, ErrorCode> {
    let own = of_guest.acquire_owned().await.map_err(|_| ErrorCode::TemporaryResolverFailure)?;
    let turn = LOOK_UPS.acquire().await.map_err(|_| ErrorCode::TemporaryResolverFailure)?;
    // The resolver cannot be interrupted: it keeps its place until it returns, also when nobody waits any more.
    let asked = tokio::task::spawn_blocking(move || {
        let _turns = (own, turn);
        std::net::ToSocketAddrs::to_socket_addrs(&(name.as_str(), 0))
    });
    let asked = tokio::time::timeout(LOOK_UP, asked).await.map_err(|_| ErrorCode::TemporaryResolverFailure)?;
    let found = asked.map_err(|_| ErrorCode::PermanentResolverFailure)?;
    let found = found.map_err(|_| ErrorCode::NameUnresolvable)?;
    let mut addresses: Vec<_> = found.map(|address| address.ip()).take(MOST_ADDRESSES).collect();
    addresses.dedup();
    Ok(addresses)
}
