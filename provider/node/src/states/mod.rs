//! The states of a pod, one file each.
//!
//! ```text
//! Registered ──> Resources ──> ImagePull <──> ImagePullBackOff
//!     │              │             │
//!     v              v             v
//!  Rejected <────────┘        VolumeMount ──> Initializing ──> Running
//!                                                  │              │
//!     Terminated: from any of them,                └──> Completed <┘
//!     when the pod is deleted
//! ```

mod completed;
mod image_pull;
mod image_pull_back_off;
mod initializing;
mod registered;
mod rejected;
mod resources;
mod running;
mod terminated;
mod volume_mount;

pub use completed::Completed;
pub use image_pull::ImagePull;
pub use image_pull_back_off::ImagePullBackOff;
pub use initializing::Initializing;
pub use registered::Registered;
pub use rejected::Rejected;
pub use resources::Resources;
pub use running::Running;
pub use terminated::Terminated;
pub use volume_mount::VolumeMount;

/// What the states' files share.
mod prelude {
    pub(super) use crate::provider::{PodState, ProviderState};
    pub(super) use kubelet::pod::state::prelude::*;
    pub(super) use kubelet::pod::{Phase, Pod, Status};

    /// A phase, with reason and message cleared.
    pub(super) fn phase(phase: Phase) -> Status {
        kubelet::pod::make_status(phase, "")
    }

    /// A phase with a reason, in one word, and a message. Krustlet's status has one text for both;
    /// [`crate::status::StatusReporter::apply_patch`] takes them apart.
    pub(super) fn explained(phase: Phase, reason: &str, message: &str) -> Status {
        kubelet::pod::make_status(phase, &format!("{reason}: {message}"))
    }
}
