//! What happens on this machine, told to whoever asked for it: uevents of the kernel, datagrams of multicast groups, changes of
//! network links and of directories.
//!
//! One [`EventSources`] is made for the process. Nothing is opened before somebody asks: then there is one netlink socket for all
//! uevents, one socket for each group and port, one inotify instance, and one thread that reads them all, so that a burst of events
//! takes nobody else's time.
//!
//! # Flow
//! kernel -> thread of the sources -> filter of each subscription -> [`Inbox`] of its owner, which wakes it -> `take`.
//!
//! An owner has one [`Inbox`] for all that it subscribed to. It holds [`MOST_EVENTS`] events and [`MOST_BYTES`] bytes; what comes
//! beyond that is lost, and each subscription tells how much of its own was. Dropping a subscription ends it.

mod directories;
mod inbox;
pub mod links;
mod multicast;
mod socket;
mod sources;
mod uevents;

pub use directories::DirectoryChanges;
pub use inbox::{Inbox, MOST_BYTES, MOST_EVENTS};
pub use links::{Link, LinkNames};
pub use multicast::{Datagram, MulticastError, MulticastListener, SourceFilter};
pub use sources::EventSources;
pub use uevents::{Subsystems, Uevent, UeventMonitor};
