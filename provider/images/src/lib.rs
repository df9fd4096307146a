//! WebAssembly images: what a container's `image` names, from an OCI registry to a file.
//!
//! # Flow
//! 1. [`Images::find`] looks an image up among those that were pulled before; [`Images::pull`] asks its registry.
//! 2. The registry's manifest says which layer is the module: see [`layout`].
//! 3. The layer is downloaded once, however many pulls want it, and verified against its digest.
//! 4. The module is a file named by its own digest in the [`store`]; a record there says which image it is of.
//!
//! [`push`] is the other way, for whoever has a module.
//!
//! What its operator asks of images before they are run is a [`policy`].
//!
//! Credentials come as Docker writes them ([`Credentials`]) and are sent to the registry that they are for, nowhere else.
//! Knows neither Kubernetes nor Akri.

mod archive;
pub mod credentials;
mod digest;
mod images;
pub mod layout;
pub mod policy;
mod pull_error;
mod push;
pub mod reference;
mod registry;
mod session;
pub mod store;

pub use credentials::{Credentials, CredentialsError};
pub use images::{GarbageCollection, Images, ImagesConfig, NodeCredentials, Unused};
pub use oci_client::Reference;
pub use oci_client::manifest::{OciDescriptor, OciImageManifest};
pub use policy::{ImagePolicy, PolicyError, PolicyFileError};
pub use pull_error::PullError;
pub use push::{Artifact, PushError, PushOptions, Pushed, push};
pub use store::{Access, Image, Launch, ListedImage};
