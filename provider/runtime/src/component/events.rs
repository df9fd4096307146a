//! The host's own interfaces that tell what happens on the machine (`akri:host/uevents`, `multicast`, `watch`, `links`): what an
//! instance opened of them, held to what its pod grants.

use super::ComponentState;
use super::bindings::akri::host::{links, multicast, uevents, watch};
use crate::network::NetworkAccess;
use crate::preopen::{Preopen, descriptor_path};
use crate::wasi::PaidCall;
use akri_krustlet_events::{
    DirectoryChanges, EventSources, Inbox, LinkNames, MulticastError, MulticastListener, Subsystems, UeventMonitor,
};
use akri_recording::Event;
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use wasmtime::component::Resource;

/// Subscriptions of each kind that one instance may have at once.
const MONITORS: usize = 8;
const LISTENERS: usize = 16;
const WATCHES: usize = 64;
/// Subsystems that a monitor may name, and the longest name of one and of a link.
const SUBSYSTEMS: usize = 64;
const SUBSYSTEM: usize = 63;
const LINK: usize = 15;
/// Largest datagram, and longest path.
const DATAGRAM: usize = 65_507;
const PATH: usize = 4096;
/// What joining a group counts for, in bytes that are sent: the machine tells its network.
const JOIN: usize = 64 << 10;

/// What of the machine's events a container may follow; nothing by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventGrant {
    /// Uevents of which subsystems.
    pub uevents: Option<Subsystems>,
    /// Which network links it may list.
    pub links: Option<LinkNames>,
}

/// What one instance has of the machine's events.
pub(super) struct Events {
    pub(super) sources: Arc<EventSources>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) grant: EventGrant,
    pub(super) network: Option<Arc<NetworkAccess>>,
    pub(super) preopens: Vec<Preopen>,
}

impl Events {
    /// The preopened directory that a path of the guest is in, and the rest of the path.
    fn preopen(&self, path: &str) -> Option<(&Preopen, PathBuf)> {
        let path = plain(Path::new(path))?;
        let here = self.preopens.iter().filter_map(|preopen| {
            let rest = path.strip_prefix(plain(Path::new(&preopen.guest))?).ok()?;
            Some((preopen, rest.to_owned()))
        });
        here.min_by_key(|(_, rest)| rest.components().count())
    }
}

/// An absolute path without its root; not one that goes up.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(plain)
}

/// A subscription to uevents, as a guest holds it.
#[derive(Debug)]
pub enum Monitor {
    /// Of the machine, and in which step of a recording it was opened.
    Of(Arc<UeventMonitor>, Option<u64>),
    /// Of a recording.
    Replayed(u32),
}

/// A group that a guest listens to.
#[derive(Debug)]
pub enum Listener {
    /// Of the machine, and in which step of a recording it was opened.
    Of(Arc<MulticastListener>, Option<u64>),
    /// Of a recording.
    Replayed(u32),
}

/// A directory that a guest follows.
#[derive(Debug)]
pub enum Watch {
    /// Of the machine, the directory's path in the guest, and in which step of a recording it was opened.
    Of(DirectoryChanges, String, Option<u64>),
    /// Of a recording.
    Replayed(u32),
}

impl ComponentState {
    /// What it followed of a recording, it does not follow any more.
    fn close(&self, number: u32) {
        if let Some(replay) = self.world.replay() {
            replay.close(number);
        }
    }

    /// Which step of a recording it is.
    fn step(&self) -> Option<u64> {
        self.world.recorder().map(|recorder| recorder.steps())
    }

    fn has_room<T: 'static>(&mut self, most: usize) -> bool {
        self.table.iter_mut().filter(|entry| entry.is::<T>()).count() < most
    }
}

impl From<akri_krustlet_events::Uevent> for uevents::Uevent {
    fn from(uevent: akri_krustlet_events::Uevent) -> Self {
        let akri_krustlet_events::Uevent { action, devpath, subsystem, properties } = uevent;
        Self { action, devpath, subsystem, properties }
    }
}

impl uevents::Host for ComponentState {}

impl uevents::HostMonitor for ComponentState {
    async fn open(&mut self, subsystems: Vec<String>) -> wasmtime::Result<Result<Resource<Monitor>, uevents::Denied>> {
        if subsystems.len() > SUBSYSTEMS || subsystems.iter().any(|name| name.len() > SUBSYSTEM) {
            return Ok(Err(uevents::Denied::NotGranted));
        }
        if let Some(replay) = self.world.replay().cloned() {
            return Ok(Ok(self.table.push(Monitor::Replayed(replay.monitor(subsystems)))?));
        }
        let Some(granted) = self.events.grant.uevents.clone() else { return Ok(Err(uevents::Denied::NotGranted)) };
        let wanted = match subsystems.is_empty() {
            true => granted,
            false if subsystems.iter().all(|subsystem| granted.contain(subsystem)) => {
                Subsystems::Named(subsystems.into_iter().collect())
            }
            false => return Ok(Err(uevents::Denied::NotGranted)),
        };
        if !self.has_room::<Monitor>(MONITORS) {
            return Ok(Err(uevents::Denied::TooMany));
        }
        let step = self.step();
        match self.events.sources.uevents(wanted, self.events.inbox.clone()) {
            Ok(monitor) => Ok(Ok(self.table.push(Monitor::Of(monitor, step))?)),
            Err(error) => {
                tracing::error!(%error, "uevents of the kernel cannot be followed");
                Ok(Err(uevents::Denied::Unavailable))
            }
        }
    }

    async fn take(&mut self, monitor: Resource<Monitor>) -> wasmtime::Result<(Vec<uevents::Uevent>, u32)> {
        let (monitor, opened) = match self.table.get(&monitor)? {
            Monitor::Of(monitor, opened) => (monitor, *opened),
            Monitor::Replayed(number) => {
                let (events, lost) = self.world.replay().map(|replay| replay.uevents(*number)).unwrap_or_default();
                return Ok((events.into_iter().map(Into::into).collect(), lost));
            }
        };
        let (events, lost) = monitor.take();
        if let Some(recorder) = self.world.recorder() {
            let events = events.iter().map(|uevent| {
                let (action, path) = (uevent.action.clone(), uevent.devpath.clone());
                Event::Uevent { action, path, properties: uevent.properties.clone() }
            });
            recorder.took(opened, events, ("uevents", lost));
        }
        Ok((events.into_iter().map(|uevent| Arc::unwrap_or_clone(uevent).into()).collect(), lost))
    }

    async fn drop(&mut self, monitor: Resource<Monitor>) -> wasmtime::Result<()> {
        if let Monitor::Replayed(number) = self.table.delete(monitor)? {
            self.close(number);
        }
        Ok(())
    }
}

impl multicast::Host for ComponentState {}

impl multicast::HostListener for ComponentState {
    async fn join(
        &mut self,
        group: multicast::IpAddress,
        port: u16,
        link: Option<String>,
    ) -> wasmtime::Result<Result<Resource<Listener>, multicast::Denied>> {
        let place = SocketAddr::new(ip_address(&group), port);
        if !place.ip().is_multicast() {
            return Ok(Err(multicast::Denied::NotMulticast));
        }
        let is_name = |link: &String| link.len() <= LINK && link.bytes().all(|byte| byte.is_ascii_graphic());
        if link.as_ref().is_some_and(|link| !is_name(link)) {
            return Ok(Err(multicast::Denied::NoSuchLink));
        }
        if let Some(replay) = self.world.replay().cloned() {
            let number = replay.listener(place, link);
            return Ok(Ok(self.table.push(Listener::Replayed(number))?));
        }
        let Some(network) = self.events.network.clone() else { return Ok(Err(multicast::Denied::NotGranted)) };
        let Some(links) = network.may_join(place, link.as_deref()) else {
            return Ok(Err(multicast::Denied::NotGranted));
        };
        if !self.has_room::<Listener>(LISTENERS) {
            return Ok(Err(multicast::Denied::TooMany));
        }
        crate::network::sockets::paid_datagrams(&network, JOIN, 1).await;
        let (sources, inbox, of_guest) = (self.events.sources.clone(), self.events.inbox.clone(), network.clone());
        let hears = Arc::new(move |from| of_guest.may_hear(from));
        let step = self.step();
        match tokio::task::spawn_blocking(move || sources.join(place, links, hears, inbox)).await? {
            Ok(listener) => Ok(Ok(self.table.push(Listener::Of(listener, step))?)),
            Err(error) => Ok(Err(denied(&network, place, error))),
        }
    }

    async fn take(
        &mut self,
        listener: Resource<Listener>,
        most: u32,
    ) -> wasmtime::Result<(Vec<multicast::Datagram>, u32)> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let (listener, opened) = match self.table.get(&listener)? {
            Listener::Of(listener, opened) => (listener, *opened),
            Listener::Replayed(number) => {
                let taken = self.world.replay().map(|replay| replay.group_datagrams(*number, most));
                let (datagrams, lost) = taken.unwrap_or_default();
                let datagrams = datagrams.into_iter().map(|(from, link, payload)| multicast::Datagram {
                    from: as_wit(from.ip()),
                    from_port: from.port(),
                    link,
                    payload,
                });
                return Ok((datagrams.collect(), lost));
            }
        };
        let (datagrams, lost) = listener.take(most);
        if let Some(recorder) = self.world.recorder() {
            let events = datagrams.iter().map(|datagram| {
                let (place, link) = (listener.place(), datagram.link.to_string());
                Event::Group { place, link, from: datagram.from, payload: datagram.payload.to_vec() }
            });
            recorder.took(opened, events, ("groups", lost));
        }
        let as_wit = |datagram: akri_krustlet_events::Datagram| multicast::Datagram {
            from: as_wit(datagram.from.ip()),
            from_port: datagram.from.port(),
            link: datagram.link.to_string(),
            payload: datagram.payload.to_vec(),
        };
        Ok((datagrams.into_iter().map(as_wit).collect(), lost))
    }

    async fn send(
        &mut self,
        listener: Resource<Listener>,
        payload: Vec<u8>,
    ) -> wasmtime::Result<Result<(), multicast::Denied>> {
        let listener = match self.table.get(&listener)? {
            Listener::Of(listener, _) => listener.clone(),
            Listener::Replayed(_) => return Ok(Ok(())),
        };
        if let Some(recorder) = self.world.recorder() {
            recorder.note(Event::SentToGroup { place: listener.place(), payload: payload.clone() });
        }
        let Some(network) = self.events.network.clone() else { return Ok(Err(multicast::Denied::NotGranted)) };
        if payload.len() > DATAGRAM {
            return Ok(Err(multicast::Denied::Unavailable));
        }
        crate::network::sockets::paid_datagrams(&network, payload.len(), listener.links()).await;
        Ok(listener.send(&payload).map_err(|error| denied(&network, listener.place(), error)))
    }

    async fn drop(&mut self, listener: Resource<Listener>) -> wasmtime::Result<()> {
        if let Listener::Replayed(number) = self.table.delete(listener)? {
            self.close(number);
        }
        Ok(())
    }
}

fn denied(network: &NetworkAccess, place: SocketAddr, error: MulticastError) -> multicast::Denied {
    match error {
        MulticastError::NotMulticast(_) => multicast::Denied::NotMulticast,
        MulticastError::NoSuchLink => multicast::Denied::NoSuchLink,
        MulticastError::Io(error) => {
            let way_out = match error.kind() {
                io::ErrorKind::AddrInUse => "; another program has its port for itself (it binds without SO_REUSEADDR)",
                _ => "",
            };
            network.deny(&format!("multicast group {place}"), &format!("{error}{way_out}"));
            multicast::Denied::Unavailable
        }
    }
}

impl watch::Host for ComponentState {}

impl watch::HostWatch for ComponentState {
    async fn open(&mut self, path: String) -> wasmtime::Result<Result<Resource<Watch>, watch::Denied>> {
        if path.len() > PATH {
            return Ok(Err(watch::Denied::NotADirectory));
        }
        let Some((preopen, rest)) = self.events.preopen(&path) else { return Ok(Err(watch::Denied::NotPreopened)) };
        let preopen = preopen.clone();
        if !self.has_room::<Watch>(WATCHES) {
            return Ok(Err(watch::Denied::TooMany));
        }
        let (sources, inbox) = (self.events.sources.clone(), self.events.inbox.clone());
        let (is_replayed, shown) = (self.world.replay().is_some(), path.clone());
        let open = move || {
            let directory = preopen.open_below(&rest).map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => watch::Denied::NotADirectory,
                Errno::XDEV | Errno::LOOP => watch::Denied::NotPreopened,
                _ => watch::Denied::Unavailable,
            })?;
            if is_replayed {
                return Ok(None);
            }
            sources.directory(&descriptor_path(&directory), inbox).map(Some).map_err(|error| {
                // The user's watches are used up, most likely.
                tracing::warn!(directory = shown, %error, "a directory cannot be followed");
                watch::Denied::Unavailable
            })
        };
        let call = PaidCall::begin(self.limiter.container().clone()).await;
        let step = self.step();
        let opened = tokio::task::spawn_blocking(open).await?;
        call.ended(0);
        match opened {
            Ok(Some(changes)) => Ok(Ok(self.table.push(Watch::Of(changes, path, step))?)),
            Ok(None) => {
                let number = self.world.replay().map(|replay| replay.watch(path)).unwrap_or_default();
                Ok(Ok(self.table.push(Watch::Replayed(number))?))
            }
            Err(denied) => Ok(Err(denied)),
        }
    }

    async fn take(&mut self, watch: Resource<Watch>) -> wasmtime::Result<(Vec<String>, u32)> {
        let (changes, directory, opened) = match self.table.get(&watch)? {
            Watch::Of(changes, directory, opened) => (changes, directory, *opened),
            Watch::Replayed(number) => {
                return Ok(self.world.replay().map(|replay| replay.changes(*number)).unwrap_or_default());
            }
        };
        let (names, lost) = changes.take();
        if let Some(recorder) = self.world.recorder() {
            if let Some(directory) = recorder.host_path(directory) {
                names.iter().for_each(|name| recorder.looked(&directory.join(name), true));
            }
            let changed = |name: &String| Event::Changed { directory: directory.clone(), name: name.clone() };
            recorder.took(opened, names.iter().map(changed), ("changes", lost.into()));
        }
        Ok((names, lost.into()))
    }

    async fn drop(&mut self, watch: Resource<Watch>) -> wasmtime::Result<()> {
        if let Watch::Replayed(number) = self.table.delete(watch)? {
            self.close(number);
        }
        Ok(())
    }
}

impl links::Host for ComponentState {
    async fn list(&mut self) -> wasmtime::Result<Vec<links::Link>> {
        if let Some(replay) = self.world.replay() {
            let as_wit = |link: crate::world::Link| links::Link {
                name: link.name,
                addresses: link.addresses.into_iter().map(|(address, prefix)| (as_wit(address), prefix)).collect(),
                multicast: link.multicast,
                loopback: link.loopback,
            };
            return Ok(replay.links().into_iter().map(as_wit).collect());
        }
        let Some(granted) = &self.events.grant.links else { return Ok(Vec::new()) };
        let listed = akri_krustlet_events::links::list().unwrap_or_else(|error| {
            tracing::warn!(%error, "network links cannot be listed");
            Vec::new()
        });
        let granted: Vec<_> = listed.into_iter().filter(|link| granted.contain(&link.name)).collect();
        if let Some(recorder) = self.world.recorder() {
            let event = |link: &akri_krustlet_events::Link| Event::Link {
                name: link.name.clone(),
                addresses: link.addresses.clone(),
                multicast: link.multicast,
                loopback: link.loopback,
            };
            recorder.links(granted.iter().map(event).collect());
        }
        let as_wit = |link: akri_krustlet_events::Link| links::Link {
            name: link.name,
            addresses: link.addresses.into_iter().map(|(address, prefix)| (as_wit(address), prefix)).collect(),
            multicast: link.multicast,
            loopback: link.loopback,
        };
        Ok(granted.into_iter().map(as_wit).collect())
    }
}

fn ip_address(address: &multicast::IpAddress) -> IpAddr {
    match *address {
        multicast::IpAddress::Ipv4((a, b, c, d)) => Ipv4Addr::new(a, b, c, d).into(),
        multicast::IpAddress::Ipv6((a, b, c, d, e, f, g, h)) => Ipv6Addr::new(a, b, c, d, e, f, g, h).into(),
    }
}

fn as_wit(address: IpAddr) -> multicast::IpAddress {
    match address {
        IpAddr::V4(address) => multicast::IpAddress::Ipv4(address.octets().into()),
        IpAddr::V6(address) => multicast::IpAddress::Ipv6(address.segments().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_the_innermost_directory_that_has_it() {
        let events = Events {
            sources: EventSources::new(),
            inbox: Inbox::new(),
            grant: EventGrant::default(),
            network: None,
            preopens: vec![Preopen::new("/a", "/data"), Preopen::new("/b", "/data/inner/")],
        };
        let found = |path: &str| {
            let (preopen, rest) = events.preopen(path)?;
            Some((preopen.host.display().to_string(), rest.display().to_string()))
        };
        assert_eq!(found("/data"), Some(("/a".to_owned(), String::new())));
        assert_eq!(found("/data/x/./y"), Some(("/a".to_owned(), "x/y".to_owned())));
        assert_eq!(found("/data/inner/z"), Some(("/b".to_owned(), "z".to_owned())));
        assert_eq!(found("/data/../etc"), None);
        assert_eq!(found("/database"), None);
    }
}
