//! Akri discovery handlers whose work is done by WebAssembly guests.
//!
//! A `Discover` call enters [`service`], becomes a session ([`session`]), which asks a [`HandlerContainer`] for a guest,
//! hands it the request by its contract ([`contract`]), checks what comes back ([`device`]) and streams it.
//! [`Handlers`] owns the handlers of a node by name: their sockets, the containers behind them, the streams. [`registration`]
//! announces them to Akri's Agent. [`agent`] is the other side, as far as a developer or a test needs it.
//!
//! What Akri expects of a handler is described in its Agent; the rules that we keep because breaking them loses devices
//! stand with the code that keeps them: a stream never ends while its handler exists ([`session`]), a handler is
//! registered once in each life of the Agent ([`registration`]), a list is repeated until its Instances are there ([`output`]).

pub mod agent;
pub mod before;
pub mod container;
pub mod contract;
pub mod details;
pub mod device;
mod device_json;
pub mod handlers;
pub mod host_path;
pub mod instance;
pub mod last_lists;
pub mod output;
pub mod overview;
mod owners;
pub mod registration;
pub mod service;
pub mod session;
pub mod settings;

pub use container::{ContainerSpec, HandlerContainer};
pub use contract::component::{Descriptions, DetailsSchema, HandlerInfo, trial};
pub use handlers::{HandlerClaim, Handlers, HandlersConfig};
pub use settings::HandlerSettings;
