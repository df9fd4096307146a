//! What several parts of a node need of the system: Unix sockets that gRPC is spoken on ([`socket`]), changes of directories
//! ([`DirectoryWatcher`]), files that are whole whatever happens ([`mod@file`]).

mod directory_watcher;
pub mod file;
pub mod socket;

pub use directory_watcher::DirectoryWatcher;
