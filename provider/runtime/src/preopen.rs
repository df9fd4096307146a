//! Directories of the host that a guest sees.

use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

/// A directory of the host that a guest sees.
#[derive(Clone, Debug)]
pub struct Preopen {
    /// The directory on the host.
    pub host: PathBuf,
    /// Which directory below it, if not itself; links in it do not lead out of it.
    pub beneath: Option<PathBuf>,
    /// Its path in the guest, absolute.
    pub guest: String,
    /// The guest cannot change anything in it.
    pub read_only: bool,
    /// Made by the host for this guest alone. Its size is bounded, and because nobody can put a FIFO into it, file
    /// operations need no extra thread in a guest that has only such directories.
    pub private: bool,
}

impl Preopen {
    /// A directory that the guest may write to.
    pub fn new(host: impl Into<PathBuf>, guest: impl Into<String>) -> Self {
        Self { host: host.into(), beneath: None, guest: guest.into(), read_only: false, private: false }
    }
}

/// A directory that a guest cannot be given.
#[derive(Debug, thiserror::Error)]
#[error("directory {} (in the guest: {guest}): {source}", host.display())]
pub struct PreopenError {
    /// On the host.
    host: PathBuf,
    /// In the guest.
    guest: String,
    /// What the system said.
    #[source]
    source: std::io::Error,
}

impl Preopen {
    /// Gives it to a guest; the directory itself.
    pub(crate) fn give(&self, wasi: &mut WasiCtxBuilder) -> Result<OwnedFd, PreopenError> {
        let failed = |source| PreopenError { host: self.host.clone(), guest: self.guest.clone(), source };
        let permissions = if self.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        let directory = self.open().map_err(|error| failed(error.into()))?;
        // Opened by the descriptor: nothing else has come in its place.
        let path = descriptor_path(&directory);
        wasi.preopened_dir(&path, &self.guest, permissions)
            .map_err(|error| failed(std::io::Error::other(format!("{error:#}"))))?;
        Ok(directory)
    }

    fn open(&self) -> rustix::io::Result<OwnedFd> {
        match &self.beneath {
            Some(path) => open_beneath(&self.host, path),
            None => rustix::fs::open(&self.host, DIRECTORY, Mode::empty()),
        }
    }

    /// A directory in it, by its path there; links do not lead out of it.
    pub(crate) fn open_below(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        below(&self.open()?, path)
    }
}

/// Where an open file or directory is found.
pub(crate) fn descriptor_path(descriptor: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()).into()
}

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// A directory below another, wherever the links in that lead.
fn open_beneath(directory: &Path, path: &Path) -> rustix::io::Result<OwnedFd> {
    below(&rustix::fs::open(directory, DIRECTORY, Mode::empty())?, path)
}

fn below(directory: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    rustix::fs::openat2(directory, path, DIRECTORY, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}
