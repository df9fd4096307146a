//! Being a member of a cluster: identity, node object, lease, events, and the HTTPS endpoint's certificate.

pub mod certificate;
pub mod connection;
pub mod events;
pub mod identity;
pub mod instances;
pub mod labels;
pub mod lease;
pub mod machine;
pub mod node_object;
mod protected;
pub mod registration;
pub mod serving;
pub mod signing;
mod transport;

pub use connection::Connection;
pub use events::{EventRecorder, RecentEvent};
pub use identity::{Identity, IdentitySource};
pub use protected::protect_api_server;

use jiff::Timestamp;
use std::time::Duration;

/// Sleeps until a time of the clock. The clock may be set meanwhile: it is looked at every hour.
pub(crate) async fn sleep_until(at: Timestamp) {
    loop {
        let left = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(3600))).await;
    }
}
