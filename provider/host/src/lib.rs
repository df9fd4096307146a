//! What several parts of a node need of the system: Unix sockets that gRPC is spoken on ([`socket`],
//! [`ServedSocket`]), also with those who send anything ([`Untrusted`], [`one_line()`]), changes of directories
//! ([`DirectoryWatcher`]), files that are whole whatever happens ([`mod@file`]), work that may never end ([`patience`]), how often
//! something may happen ([`TokenBucket`]) and is tried again ([`BackOff`]), work for one at a time ([`Turns`]), the program's own memory while nothing does
//! ([`resting_memory`]) and how often it is asked for more ([`allocations`]); a machine that goes down ([`logind`]), and what is told to a collector of traces ([`spans`]).

pub mod allocations;
mod authority;
mod back_off;
mod directory_watcher;
pub mod file;
pub mod logind;
mod one_line;
pub mod patience;
pub mod resting_memory;
mod served_socket;
pub mod socket;
pub mod spans;
mod token_bucket;
mod turns;
mod until;
mod untrusted;

pub use back_off::BackOff;
pub use directory_watcher::{DirectoryWatcher, Finished, FinishedFiles};
pub use one_line::one_line;
pub use served_socket::{GrpcService, ServedSocket};
pub use token_bucket::TokenBucket;
pub use turns::Turns;
pub use until::{changed, until};
pub use untrusted::Untrusted;
