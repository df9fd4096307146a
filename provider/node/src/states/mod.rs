//! The states of a pod, one file each.
//!
//! ```text
//! Registered ──> Resources ──> VolumeMount ──> Initializing ──> Running
//!     │              │                              │              │
//!     v              v                              └──> Completed <┘
//!  Rejected <────────┘
//!                      Terminated: from any of them, when the pod is to end
//! ```
//!
//! Images are had by each container for itself, when its turn comes: one that is missing keeps no other from running.

mod completed;
mod initializing;
mod registered;
mod rejected;
mod resources;
mod running;
mod terminated;
mod volume_mount;

pub use completed::Completed;
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
