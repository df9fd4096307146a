//! The node: pods and all that belongs to them.
//!
//! A pod enters by a [`source::PodSource`], walks the states of [`states`] driven by [`driver`], and leaves by a
//! [`status::StatusSink`]. Its containers are run by [`container`], with images from [`container::image`], directories from
//! [`volume`], variables from [`environment`] and devices from [`device`]. [`Node`] holds it together.
//!
//! The contract to the outside is Krustlet's: [`provider::WasmProvider`] implements `kubelet::provider::Provider`, and the
//! states are krator's, with transitions that the compiler checks.

pub mod admission;
pub mod back_off;
pub mod cluster;
pub mod container;
pub mod container_log;
pub mod context;
pub mod data_directory;
pub mod device;
pub mod driver;
pub mod endpoint;
pub mod environment;
pub mod eviction;
pub mod fields;
pub mod grants;
pub mod loaded_image;
pub mod local_modules;
pub mod local_storage;
pub mod machine_shutdown;
pub mod manifest;
pub mod memory_directory;
pub mod metrics;
pub mod needs;
mod node;
pub mod objects;
pub mod overview;
pub mod placement;
pub mod pod;
pub mod pod_state;
pub mod provider;
pub mod quantity;
pub mod resize;
pub mod services;
pub mod source;
pub mod states;
pub mod status;
pub mod support;
pub mod termination;
mod termination_message;
pub mod volume;

pub use data_directory::DataDirectory;
pub use node::{DevicePlugins, Node, NodeConfig, NodeError};
pub use pod::PodObject;
