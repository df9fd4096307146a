//! The network of components: nothing by default, and what rules give.
//!
//! # Flow
//! A pod's rules ([`rules`]) become a [`NetworkGrant`] of its container, and with a request's details a [`NetworkAccess`] of each
//! guest ([`access`]). The sockets that the guest makes ask it for every address that they bind, connect to, send to and receive from;
//! names are looked up for it ([`sockets`]).

mod access;
mod details;
pub mod rules;
pub(crate) mod sockets;

pub use access::{Denials, NetworkAccess, NetworkGrant, NodeNetwork};
pub use rules::{NetworkCeiling, NetworkRules};
