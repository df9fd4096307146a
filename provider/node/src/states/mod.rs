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
    pub(super) use crate::pod_state::{PodState, ProviderState};
    pub(super) use kubelet::pod::state::prelude::*;
    pub(super) use kubelet::pod::{Phase, Pod, Status};

    /// The pod is in this phase, and there is nothing to say about it.
    pub(super) fn phase(state: &PodState, phase: Phase) -> anyhow::Result<Status> {
        tell(state, phase, None)
    }

    /// The pod is in this phase for a reason, in one word, that the message explains.
    pub(super) fn explained(state: &PodState, phase: Phase, reason: &str, message: &str) -> anyhow::Result<Status> {
        tell(state, phase, Some((reason, message)))
    }

    /// Krustlet's status has one text for reason and message: the reporter is told both, and krator nothing.
    fn tell(state: &PodState, phase: Phase, why: Option<(&str, &str)>) -> anyhow::Result<Status> {
        let phase = match phase {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Unknown => "Unknown",
        };
        state.context.reporter.set_phase(phase, why);
        Ok(Status::default())
    }
}
