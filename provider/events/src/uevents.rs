//! Uevents of the kernel, by one netlink socket for all who follow them.

use crate::inbox::{Inbox, Queue};
use crate::socket::register;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg,
    setsockopt, socket, sockopt,
};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// The group in which the kernel speaks; in the others udev does.
const KERNEL: u32 = 1;
/// What waits in the socket while its reader is busy: 100,000 events are 20 MB or more.
const SOCKET_BYTES: usize = 32 << 20;
/// The kernel's messages are shorter (UEVENT_BUFFER_SIZE and a header).
const MOST_MESSAGE: usize = 8 << 10;

/// Something that happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, `move`, `online`, `offline`, `bind`, `unbind`.
    pub action: String,
    /// The device's path below /sys, as `/devices/virtual/net/eth0`.
    pub devpath: String,
    /// Its subsystem, as `net`.
    pub subsystem: String,
    /// All that the kernel says, in its order.
    pub properties: Vec<(String, String)>,
}

/// A message of the kernel: `ACTION@DEVPATH`, then `KEY=VALUE`s, each ended by a zero.
#[derive(Debug)]
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let parts = self.0.split(|byte| *byte == 0).skip(1);
        parts.filter_map(|part| {
            let at = part.iter().position(|byte| *byte == b'=')?;
            Some((&part[..at], &part[at + 1..]))
        })
    }

    fn field(&self, name: &str) -> Option<Cow<'a, str>> {
        let mut fields = self.fields();
        fields.find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| String::from_utf8_lossy(value))
    }

    fn uevent(&self, subsystem: &str) -> Option<Uevent> {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(Uevent {
            action: self.field("ACTION")?.into_owned(),
            devpath: self.field("DEVPATH")?.into_owned(),
            subsystem: subsystem.to_owned(),
            properties: self.fields().map(|(key, value)| (text(key), text(value))).collect(),
        })
    }
}

/// Of which subsystems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subsystems {
    /// Of each.
    All,
    /// Of these.
    Named(BTreeSet<String>),
}

impl Subsystems {
    /// Whether one is among them.
    pub fn contain(&self, subsystem: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.contains(subsystem),
        }
    }
}

/// A subscription to uevents.
#[derive(Debug)]
pub struct UeventMonitor {
    subsystems: Subsystems,
    queue: Queue<Arc<Uevent>>,
}

impl UeventMonitor {
    /// What came since this was called last, in order, and how much more there was.
    pub fn take(&self) -> (Vec<Arc<Uevent>>, u32) {
        self.queue.take(usize::MAX)
    }
}

/// The socket, as long as somebody follows.
#[derive(Debug, Default)]
pub(crate) struct Uevents(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    monitors: Vec<Weak<UeventMonitor>>,
    reader: Option<AbortOnDropHandle<()>>,
}

impl Uevents {
    pub(crate) fn open(
        self: &Arc<Self>,
        thread: &Handle,
        subsystems: Subsystems,
        inbox: Arc<Inbox>,
    ) -> io::Result<Arc<UeventMonitor>> {
        let monitor = Arc::new(UeventMonitor { subsystems, queue: Queue::new(inbox) });
        let mut state = self.state();
        if state.reader.as_ref().is_none_or(AbortOnDropHandle::is_finished) {
            let _in_thread = thread.enter();
            let socket = register(open_socket()?)?;
            state.reader = Some(AbortOnDropHandle::new(thread.spawn(read(socket, Arc::downgrade(self)))));
        }
        state.monitors.retain(|monitor| monitor.strong_count() > 0);
        state.monitors.push(Arc::downgrade(&monitor));
        Ok(monitor)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody follows still; else the reader is to end.
    fn monitors(&self) -> Option<Vec<Arc<UeventMonitor>>> {
        let mut state = self.state();
        state.monitors.retain(|monitor| monitor.strong_count() > 0);
        if state.monitors.is_empty() {
            state.reader = None;
            return None;
        }
        Some(state.monitors.iter().filter_map(Weak::upgrade).collect())
    }
}

impl Uevents {
    /// Tells all who follow its subsystem of an event that the kernel has not sent.
    pub(crate) fn inject(&self, uevent: Uevent) {
        let monitors = self.monitors().unwrap_or_default();
        let uevent = Arc::new(uevent);
        for monitor in monitors.iter().filter(|monitor| monitor.subsystems.contain(&uevent.subsystem)) {
            monitor.queue.push(uevent.clone(), MOST_MESSAGE);
        }
    }
}

fn open_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, SockProtocol::NetlinkKObjectUEvent)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES).is_err() {
        // Without the right to that: as much as anybody may have.
        setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BYTES)?;
    }
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, KERNEL))?;
    Ok(socket)
}

async fn read(socket: AsyncFd<OwnedFd>, uevents: Weak<Uevents>) {
    let mut buffer = vec![0; MOST_MESSAGE];
    loop {
        let mut ready = match socket.readable().await {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(%error, "uevents are not read any more");
                return;
            }
        };
        let received = ready.try_io(|socket| receive(socket.get_ref(), &mut buffer));
        let Ok(received) = received else { continue };
        let Some(monitors) = uevents.upgrade().and_then(|uevents| uevents.monitors()) else { return };
        match received {
            Ok(Some(length)) => deliver(&Message(&buffer[..length]), &monitors),
            // Of somebody who is not the kernel.
            Ok(None) => {}
            Err(error) => {
                // ENOBUFS: the socket could not hold all.
                tracing::warn!(%error, "uevents were lost");
                monitors.iter().for_each(|monitor| monitor.queue.lose());
            }
        }
        // Others of this thread have their turn in a burst, too.
        tokio::task::coop::consume_budget().await;
    }
}

/// The length of one message, if it is the kernel's.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    let mut control = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
    let mut parts = [io::IoSliceMut::new(buffer)];
    let message = match recvmsg::<NetlinkAddr>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty()) {
        Ok(message) => message,
        Err(Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let from_kernel = message.address.is_some_and(|address| address.pid() == 0);
    let mut control = message.cmsgs()?;
    // The kernel's own process id; nobody else can claim it.
    let signed = control
        .any(|message| matches!(message, ControlMessageOwned::ScmCredentials(credentials) if credentials.pid() == 0));
    let is_whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
    Ok((from_kernel && signed && is_whole).then_some(message.bytes))
}

fn deliver(message: &Message<'_>, monitors: &[Arc<UeventMonitor>]) {
    let Some(subsystem) = message.field("SUBSYSTEM") else { return };
    let mut wanting = monitors.iter().filter(|monitor| monitor.subsystems.contain(&subsystem)).peekable();
    if wanting.peek().is_none() {
        return;
    }
    let Some(uevent) = message.uevent(&subsystem).map(Arc::new) else { return };
    wanting.for_each(|monitor| monitor.queue.push(uevent.clone(), message.0.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_the_kernel_is_read() {
        let message = Message(
            b"add@/devices/virtual/net/br0\0ACTION=add\0DEVPATH=/devices/virtual/net/br0\0SUBSYSTEM=net\0INTERFACE=br0\0ODD=a=b\0NONE\0",
        );
        let uevent = message.uevent(&message.field("SUBSYSTEM").unwrap()).unwrap();
        assert_eq!((uevent.action.as_str(), uevent.subsystem.as_str()), ("add", "net"));
        assert_eq!(uevent.devpath, "/devices/virtual/net/br0");
        assert_eq!(uevent.properties.len(), 5);
        assert!(uevent.properties.contains(&("ODD".to_owned(), "a=b".to_owned())));
        assert!(Message(b"nonsense").field("SUBSYSTEM").is_none());
    }

    #[test]
    fn each_monitor_is_told_of_its_subsystems_only() {
        let monitor = |subsystems| Arc::new(UeventMonitor { subsystems, queue: Queue::new(Inbox::new()) });
        let all = monitor(Subsystems::All);
        let usb = monitor(Subsystems::Named(["usb".to_owned()].into()));
        let message = Message(b"add@/d\0ACTION=add\0DEVPATH=/d\0SUBSYSTEM=net\0");
        deliver(&message, &[all.clone(), usb.clone()]);
        assert_eq!(all.take().0.len(), 1);
        assert_eq!(usb.take(), (vec![], 0));
    }
}
