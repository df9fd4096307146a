//! The device plugin side of a kubelet.
//!
//! A device plugin registers a resource on `kubelet.sock` (`registry`, `membership`); the node connects to the plugin's own socket
//! and follows its list of devices (`plugin`). A pod that asks for devices gets them, all or none, before any container of it
//! starts (`granting`, [`allocation`]); what its containers need to use them is remembered over an end of the node (`checkpoint`). Who has
//! which device can be asked on a second socket (`pod_resources`): Akri's Agent frees the slots of its Instances by it.
//!
//! Knows neither pods of the API nor WebAssembly: see [`PodRequest`] and [`Provided`].

pub mod allocation;
mod checkpoint;
pub mod config;
mod devices;
mod granting;
mod membership;
pub mod offer;
mod plugin;
mod pod_resources;
mod registry;

pub use allocation::{AllocationError, ContainerRequest, PodRequest, Provided};
pub use config::{DevicesConfig, DevicesError, Timeouts};
pub use devices::{Amount, Devices};
