//! Being a member of a cluster: identity, node object, lease, events, and the HTTPS endpoint's certificate.

pub mod certificate;
pub mod connection;
pub mod events;
pub mod history;
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
pub use history::History;
pub use identity::{Identity, IdentitySource};
pub use protected::protect_api_server;

use jiff::Timestamp;
use std::time::Duration;

/// By a clock that nobody sets.
fn is_just_now(at: tokio::time::Instant) -> bool {
    at.elapsed() < Duration::from_secs(300)
}

/// A certificate that was signed just now has ended already, by this machine's clock: asking for another one helps nobody.
async fn clock_is_wrong(until: Timestamp) {
    let pause = Duration::from_secs(600);
    tracing::warn!(%until, "a certificate that was just signed has ended by this machine's clock, which is wrong, then; asking again in {} min", pause.as_secs() / 60);
    tokio::time::sleep(pause).await;
}

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
