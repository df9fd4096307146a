//! The network of components: nothing by default, and what rules give.
//!
//! # Flow
//! A pod's rules ([`rules`]) become a [`NetworkGrant`] of its container, and with a request's details a [`NetworkAccess`] of each
//! guest. The sockets that the guest makes ask it for every address that they bind, connect to, send to and receive from;
//! names are looked up for it (`sockets`, `names`). Its requests by HTTP are sent for it, to the addresses that the access gives
//! (`http`).

mod access;
mod denials;
mod details;
pub(crate) mod http;
mod names;
pub mod rules;
pub(crate) mod sockets;
mod special;
pub mod urls;

pub use access::{NetworkAccess, NetworkGrant, NodeNetwork};
pub use denials::Denials;
pub use rules::{NetworkCeiling, NetworkRules};
