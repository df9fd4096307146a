//! Sockets that the reactor watches.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// In the reactor of the current runtime. The socket does not block.
#[allow(unsafe_code, reason = "the reactor keeps the number of a descriptor that we give it")]
pub(crate) fn register(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and stays the same descriptor as long as the `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(socket) }?)
}
