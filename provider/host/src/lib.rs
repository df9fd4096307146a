//! What several parts of a node need of the system: Unix sockets that gRPC is spoken on ([`socket`],
//! [`ServedSocket`]), changes of directories ([`DirectoryWatcher`]), files that are whole whatever happens ([`mod@file`]),
//! and work that may never end ([`patience`]).

mod authority;
mod directory_watcher;
pub mod file;
pub mod patience;
mod served_socket;
pub mod socket;

pub use directory_watcher::DirectoryWatcher;
pub use served_socket::ServedSocket;
