//! Unix sockets that gRPC is spoken on.

use crate::Untrusted;
use hyper_util::rt::TokioIo;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint};

/// Longest path of a socket, in bytes, as the kernel's `sockaddr_un` has it, less one for the name it is prepared under.
pub const MOST_PATH: usize = 106;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel has no room for the path.
    #[error(
        "socket path {path} has {length} bytes, the kernel takes {MOST_PATH} at most; use a shorter directory or name"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// Another process serves it.
    #[error("socket {path} is served by another process{by}; stop it, or use another directory or name")]
    Live {
        /// The path.
        path: PathBuf,
        /// ` (pid N, name)` if it can be told.
        by: String,
    },
    /// Something that is no socket has the path.
    #[error("{path} exists and is not a socket; it is not removed: move it away")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("socket {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A listening socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl SocketFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True while the file is still ours: nobody removed or replaced it.
    pub fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Opens a connection to a socket. The authority is a dummy: a socket's path is not a valid one, and gRPC servers reject it.
pub async fn connect(socket: PathBuf) -> Result<Untrusted<Channel>, tonic::transport::Error> {
    let channel = Endpoint::from_static("http://[::1]:50051")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await;
    channel.map(Untrusted::new)
}

/// Listens at `path` with mode 0660, making its directory if it is missing and replacing a socket that nobody serves.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    let length = path.as_os_str().len();
    if length > MOST_PATH {
        return Err(SocketError::TooLong { path: path.to_owned(), length });
    }
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
    }
    check_free(path)?;
    // Under another name first: the socket appears with its mode set, and replaces a stale one in one step.
    let mut prepared = path.as_os_str().to_owned();
    prepared.push("~");
    let prepared = PathBuf::from(prepared);
    let _ = std::fs::remove_file(&prepared);
    let listener = StdListener::bind(&prepared).map_err(failed)?;
    let placed = std::fs::set_permissions(&prepared, std::fs::Permissions::from_mode(0o660))
        .and_then(|()| std::fs::rename(&prepared, path));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&prepared);
        return Err(failed(error));
    }
    listener.set_nonblocking(true).map_err(failed)?;
    let inode = std::fs::symlink_metadata(path).map_err(failed)?.ino();
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode }))
}

fn check_free(path: &Path) -> Result<(), SocketError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(SocketError::Io { path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match try_connect(path) {
        Ok(stream) => Err(SocketError::Live { path: path.to_owned(), by: describe_peer(&stream) }),
        // Somebody listens, and has more connections than he takes.
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err(SocketError::Live { path: path.to_owned(), by: " that takes no connections".to_owned() })
        }
        // Nobody listens: a socket that a killed process left behind.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SocketError::Io { path: path.to_owned(), source }),
    }
}

/// Connects, or fails at once: a listener that hangs must not keep us.
fn try_connect(path: &Path) -> std::io::Result<StdStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn describe_peer(stream: &StdStream) -> String {
    let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else { return String::new() };
    let pid = peer.pid.as_raw_nonzero();
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!(" (pid {pid}, {})", name.trim()),
        Err(_) => format!(" (pid {pid})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_made_with_its_directory_and_mode_and_removed_at_the_end() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("akri/echo.sock");
        let (_listener, file) = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        StdStream::connect(&path).unwrap();
        assert!(file.is_in_place());
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("echo.sock");
        drop(StdListener::bind(&path).unwrap());
        let (_listener, file) = listen(&path).unwrap();
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        assert!(file.is_in_place());
    }

    #[test]
    fn a_listener_that_hangs_keeps_nobody() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("full.sock");
        let listener =
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = try_connect(&path) {
            queued.push(stream);
        }
        let error = check_free(&path).unwrap_err().to_string();
        assert!(error.contains("another process that takes no connections"), "{error}");
    }

    #[tokio::test]
    async fn other_files_and_long_paths_are_refused_in_words() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("echo.sock");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        let long = parent.path().join("x".repeat(MOST_PATH));
        assert!(listen(&long).unwrap_err().to_string().contains("at most"));
    }
}
