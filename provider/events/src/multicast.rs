//! Multicast groups, by one socket for each group and port, on the links that somebody listens on.

use crate::inbox::{Inbox, Queue};
use crate::links::{self, Link, LinkNames};
use crate::socket::register;
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrStorage, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockRef, Socket, Type};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// Largest datagram.
const MOST_DATAGRAM: usize = 64 << 10;
/// What waits in a group's socket while the reader is busy.
const SOCKET_BYTES: usize = 1 << 20;

/// Something that was sent to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// By whom.
    pub from: SocketAddr,
    /// On which link it came.
    pub link: Arc<str>,
    /// What it says.
    pub payload: Arc<[u8]>,
}

/// Why a group cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum MulticastError {
    /// It is the address of no group.
    #[error("{0} is no multicast group")]
    NotMulticast(IpAddr),
    /// No link of that name, or of those that are allowed, is up and carries multicast.
    #[error("no link that may be used carries multicast")]
    NoSuchLink,
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Whose datagrams are taken.
pub type SourceFilter = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// A subscription to a group. Dropping it leaves the group, if it was the last.
pub struct MulticastListener {
    group: Arc<OpenGroup>,
    links: LinkNames,
    from: SourceFilter,
    queue: Queue<Datagram>,
}

impl fmt::Debug for MulticastListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MulticastListener").field("place", &self.group.0.place).finish_non_exhaustive()
    }
}

impl MulticastListener {
    /// At most `most` datagrams that came since this was called last, in order, and how many were lost after them.
    pub fn take(&self, most: usize) -> (Vec<Datagram>, u32) {
        self.queue.take(most)
    }

    /// Sends to the group, from its port, on each link. What the network cannot take now is not sent.
    pub fn send(&self, payload: &[u8]) -> Result<(), MulticastError> {
        let joined = self.group.0.joined();
        let links: Vec<_> = joined.values().filter(|link| self.links.contain(&link.name)).cloned().collect();
        drop(joined);
        if links.is_empty() {
            return Err(MulticastError::NoSuchLink);
        }
        links.iter().try_for_each(|link| Ok(self.group.0.send(link, payload)?))
    }

    /// The group and its port.
    pub fn place(&self) -> SocketAddr {
        self.group.0.place
    }

    /// How many links it is on: what is sent goes to each.
    pub fn links(&self) -> usize {
        self.group.0.joined().values().filter(|link| self.links.contain(&link.name)).count()
    }
}

impl Drop for MulticastListener {
    fn drop(&mut self) {
        self.group.0.leave_unwanted();
    }
}

/// A group and the task that reads it, as long as somebody listens.
struct OpenGroup(Arc<Group>, #[expect(dead_code, reason = "its drop ends the task")] AbortOnDropHandle<()>);

/// A group and port on this machine, with its socket.
struct Group {
    place: SocketAddr,
    socket: AsyncFd<OwnedFd>,
    /// The links that it was joined on, by number.
    joined: Mutex<BTreeMap<u32, JoinedLink>>,
    listeners: Mutex<Vec<Weak<MulticastListener>>>,
}

#[derive(Clone, Debug)]
struct JoinedLink {
    index: u32,
    name: Arc<str>,
}

impl Group {
    /// In the reactor of the current runtime.
    fn open(place: SocketAddr) -> io::Result<Self> {
        let domain = if place.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        // Others on this machine follow the same group: mDNS has a daemon of its own.
        socket.set_reuse_address(true)?;
        let _ = socket.set_reuse_port(true);
        let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
        match place {
            SocketAddr::V4(_) => {
                setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
                // Only what comes on the links that this socket has joined on.
                socket.set_multicast_all_v4(false)?;
                socket.set_multicast_ttl_v4(1)?;
            }
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                socket.set_multicast_all_v6(false)?;
                socket.set_multicast_hops_v6(1)?;
            }
        }
        // To the group: nothing that is sent to this machine's port alone comes here.
        socket.bind(&place.into())?;
        Ok(Self { place, socket: register(socket.into())?, joined: Mutex::default(), listeners: Mutex::default() })
    }

    fn joined(&self) -> MutexGuard<'_, BTreeMap<u32, JoinedLink>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> Vec<Arc<MulticastListener>> {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.iter().filter_map(Weak::upgrade).collect()
    }

    /// Joins on the links that a listener wants and that are there, and forgets those that have gone.
    fn follow(&self, links: &[Link]) {
        // Whoever comes meanwhile follows after this. A listener that is dropped as the last of its owner needs the lock: after it.
        let listeners;
        let mut joined = self.joined();
        listeners = self.listeners();
        let usable = |link: &&Link| {
            let has_family = link.addresses.iter().any(|(address, _)| address.is_ipv4() == self.place.is_ipv4());
            link.multicast && has_family && listeners.iter().any(|listener| listener.links.contain(&link.name))
        };
        let there: HashSet<_> = links.iter().filter(usable).map(|link| link.index).collect();
        joined.retain(|index, _| {
            let stays = there.contains(index);
            if !stays {
                // The membership of a link that has gone went with it.
                let _ = self.membership(*index, false);
            }
            stays
        });
        for link in links.iter().filter(usable) {
            if joined.contains_key(&link.index) {
                continue;
            }
            match self.membership(link.index, true) {
                Ok(()) => {
                    joined.insert(link.index, JoinedLink { index: link.index, name: link.name.as_str().into() });
                }
                Err(error) => {
                    tracing::warn!(group = %self.place, link = link.name, %error, "the group cannot be joined");
                }
            }
        }
    }

    /// Leaves it on the links that no listener wants any more.
    fn leave_unwanted(&self) {
        let listeners;
        let mut joined = self.joined();
        listeners = self.listeners();
        joined.retain(|index, link| {
            let stays = listeners.iter().any(|listener| listener.links.contain(&link.name));
            if !stays {
                let _ = self.membership(*index, false);
            }
            stays
        });
    }

    fn membership(&self, link: u32, joins: bool) -> io::Result<()> {
        let socket = SockRef::from(self.socket.get_ref());
        match (self.place.ip(), joins) {
            (IpAddr::V4(group), true) => socket.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(link)),
            (IpAddr::V4(group), false) => socket.leave_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(link)),
            (IpAddr::V6(group), true) => socket.join_multicast_v6(&group, link),
            (IpAddr::V6(group), false) => socket.leave_multicast_v6(&group, link),
        }
    }

    fn send(&self, link: &JoinedLink, payload: &[u8]) -> io::Result<()> {
        let descriptor = self.socket.get_ref().as_raw_fd();
        let parts = [io::IoSlice::new(payload)];
        let sent = match self.place {
            SocketAddr::V4(place) => {
                let info = nix::libc::in_pktinfo {
                    ipi_ifindex: link.index.cast_signed(),
                    ipi_spec_dst: nix::libc::in_addr { s_addr: 0 },
                    ipi_addr: nix::libc::in_addr { s_addr: 0 },
                };
                let control = [ControlMessage::Ipv4PacketInfo(&info)];
                sendmsg(descriptor, &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn::from(place)))
            }
            SocketAddr::V6(place) => {
                let info = nix::libc::in6_pktinfo {
                    ipi6_ifindex: link.index,
                    ipi6_addr: nix::libc::in6_addr { s6_addr: [0; 16] },
                };
                let control = [ControlMessage::Ipv6PacketInfo(&info)];
                let to = SocketAddrV6::new(*place.ip(), place.port(), 0, link.index);
                sendmsg(descriptor, &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&SockaddrIn6::from(to)))
            }
        };
        match sent {
            // The network is full, or the link went down a moment ago: as a datagram that is lost on its way.
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENETDOWN | Errno::ENODEV) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn deliver(&self, received: &Received<'_>) {
        let Some(link) = self.joined().get(&received.link).map(|link| link.name.clone()) else { return };
        let payload = std::cell::OnceCell::<Arc<[u8]>>::new();
        for listener in self.listeners() {
            if !listener.links.contain(&link) || !(listener.from)(received.from) {
                continue;
            }
            if listener.queue.is_losing() {
                listener.queue.lose();
                continue;
            }
            let payload = payload.get_or_init(|| received.payload.into()).clone();
            let bytes = payload.len();
            listener.queue.push(Datagram { from: received.from, link: link.clone(), payload }, bytes);
        }
    }
}

struct Received<'a> {
    from: SocketAddr,
    link: u32,
    payload: &'a [u8],
}

/// The groups that somebody listens to.
#[derive(Default)]
pub(crate) struct Multicast(Mutex<HashMap<SocketAddr, Weak<OpenGroup>>>);

impl Multicast {
    pub(crate) fn join(
        &self,
        thread: &Handle,
        place: SocketAddr,
        names: LinkNames,
        from: SourceFilter,
        inbox: Arc<Inbox>,
    ) -> Result<Arc<MulticastListener>, MulticastError> {
        if !place.ip().is_multicast() {
            return Err(MulticastError::NotMulticast(place.ip()));
        }
        let links = links::list()?;
        let mut groups = self.groups();
        // Those that nobody listens to any more.
        groups.retain(|_, group| group.strong_count() > 0);
        let group = match groups.get(&place).and_then(Weak::upgrade) {
            Some(group) => group,
            None => {
                let _in_thread = thread.enter();
                let group = Arc::new(Group::open(place)?);
                let reader = AbortOnDropHandle::new(thread.spawn(read(group.clone())));
                let group = Arc::new(OpenGroup(group, reader));
                groups.insert(place, Arc::downgrade(&group));
                group
            }
        };
        let listener =
            Arc::new(MulticastListener { group: group.clone(), links: names, from, queue: Queue::new(inbox) });
        group.0.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&listener));
        group.0.follow(&links);
        match listener.links() {
            0 => Err(MulticastError::NoSuchLink),
            _ => Ok(listener),
        }
    }

    /// Links have changed.
    pub(crate) fn follow(&self, links: &[Link]) {
        let groups: Vec<_> = self.groups().values().filter_map(Weak::upgrade).collect();
        groups.iter().for_each(|group| group.0.follow(links));
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<SocketAddr, Weak<OpenGroup>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ended from outside when nobody listens to the group any more.
async fn read(group: Arc<Group>) {
    let mut buffer = vec![0; MOST_DATAGRAM];
    loop {
        let mut ready = match group.socket.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(group = %group.place, %error, "the group is not listened to any more");
                return;
            }
        };
        match ready.try_io(|socket| receive(socket.get_ref(), &mut buffer)) {
            Ok(Ok(Some((from, link, length)))) => group.deliver(&Received { from, link, payload: &buffer[..length] }),
            Ok(Ok(None)) | Err(_) => {}
            // Of a datagram that was sent.
            Ok(Err(error)) => tracing::debug!(group = %group.place, %error, "receiving"),
        }
        tokio::task::coop::consume_budget().await;
    }
}

/// From whom, on which link, and how long.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(SocketAddr, u32, usize)>> {
    let mut control = nix::cmsg_space!(nix::libc::in6_pktinfo, nix::libc::in_pktinfo);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Ok(message) => message,
        Err(Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let link = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info.ipi6_ifindex),
        _ => None,
    });
    let from = message.address.and_then(|address| {
        let of_four = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
        of_four.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
    });
    Ok(from.zip(link).map(|(from, link)| (from, link, message.bytes)))
}
