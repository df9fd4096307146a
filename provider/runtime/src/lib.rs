//! The WebAssembly host of the node: compiles modules, runs guests under limits, keeps their logs.
//!
//! It knows neither Kubernetes nor Akri. A [`Runtime`] is made once per process; [`Runtime::load`] turns the bytes of a
//! module into a [`Program`] that every guest of that module shares; [`Runtime::start`] makes a [`Guest`] of it.
//!
//! ```no_run
//! use akri_krustlet_runtime::{ContainerLimits, GuestSpec, Outcome, Runtime, RuntimeConfig};
//!
//! # async fn example(module: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::new(RuntimeConfig::new("/var/lib/akri-krustlet/modules"))?;
//! let program = runtime.load(module).await?;
//! let limits = ContainerLimits::default().share();
//! let guest = runtime.start(&program, GuestSpec::new("hello", limits))?;
//! assert!(matches!(guest.outcome().await, Outcome::Exited(0)));
//! # Ok(()) }
//! ```
//!
//! # Guarantees
//! - Compiling happens in a child process with limits; this process never runs Cranelift ([`compile`]).
//! - Every guest's store is built by one function, `guest::build_store` for modules and `component::store` for components, which
//!   sets every limit ([`limits`], [`wasi`]).
//! - Guests run on threads of their own at lower priority ([`cpu`]); a spinning guest delays neither the host nor a guest
//!   that answers an event. The one exception: a call of a component may begin on the thread that asks, one at a time, until
//!   the next epoch at the latest.
//! - An idle guest costs memory (about 50 KB) but neither a thread nor a timer tick.

pub mod aot;
pub mod compile;
pub mod component;
pub mod cpu;
mod directories;
mod disk;
pub mod engine;
pub mod guest;
pub mod limits;
pub mod log;
pub mod module;
pub mod needs;
pub mod network;
pub mod outcome;
mod preopen;
pub mod program;
mod runtime;
mod start;
pub mod stdin;
pub mod wasi;
pub mod world;

/// What happens on the machine, for guests that may follow it.
pub use akri_krustlet_events as events;
pub use compile::{CompileError, CompileLimits, Compiler};
pub use component::link::{Granted, Item, LinkError};
pub use component::{CallError, ComponentSpec, ComponentState, EventGrant};
pub use engine::Counting;
pub use guest::{Guest, GuestSpec};
pub use limits::{ContainerLimits, InitialSizes, PodLimits, PodShare, SharedLimits};
pub use module::{Digest, ModuleKind};
pub use needs::Needs;
pub use outcome::Outcome;
pub use preopen::{Preopen, PreopenError};
pub use program::{LoadError, Program};
pub use runtime::{Runtime, RuntimeConfig, RuntimeError};
pub use world::World;
