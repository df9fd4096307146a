//! What was in force before the node's start, until its handler has found it again.
//!
//! A guest that starts has to find everything anew. What it has trouble with, which its note says, it may not have heard of: a server
//! that is away for a moment is not gone because the node was.

use crate::device::MOST_DEVICES;
use akri_proto::v0::Device;
use std::time::Duration;
use tokio::time::Instant;

/// How long it counts without being found again.
const COUNTS: Duration = Duration::from_secs(60);

/// Devices of the list that was in force when the node ended, as far as the guest has not found them again.
pub(crate) struct Before {
    devices: Vec<Device>,
    until: Instant,
    /// The guest's latest list, without them, and its note.
    list: Option<(Vec<Device>, String)>,
}

impl Before {
    pub(crate) fn new(devices: &[Device]) -> Self {
        Self { devices: devices.to_vec(), until: Instant::now() + COUNTS, list: None }
    }

    /// A list of a guest that has trouble, with what it may not have heard of.
    pub(crate) fn complete(&mut self, list: Vec<Device>, note: &str) -> Vec<Device> {
        self.devices.retain(|device| list.iter().all(|found| found.id != device.id));
        let room = MOST_DEVICES.saturating_sub(list.len());
        let whole = list.iter().chain(self.devices.iter().take(room)).cloned().collect();
        self.list = Some((list, note.to_owned()));
        whole
    }

    /// All of it was found again.
    pub(crate) fn is_found(&self) -> bool {
        self.devices.is_empty()
    }

    /// When it is to end.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// What the guest's latest list is without it.
    pub(crate) fn end(self) -> Option<(Vec<Device>, String)> {
        self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(ids: &[&str]) -> Vec<Device> {
        ids.iter().map(|id| Device { id: (*id).to_owned(), ..Device::default() }).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_found_again_stays_and_what_was_found_once_is_the_guests() {
        let mut before = Before::new(&devices(&["a", "b"]));
        assert_eq!(before.until(), Instant::now() + COUNTS);
        assert_eq!(before.complete(devices(&["c", "a"]), "b is away"), devices(&["c", "a", "b"]));
        assert_eq!(
            before.complete(devices(&["c"]), "a and b are away"),
            devices(&["c", "b"]),
            "a went after it was found"
        );
        assert!(!before.is_found());
        let many: Vec<_> = (0..MOST_DEVICES).map(|number| format!("d{number}")).collect();
        let many = devices(&many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(before.complete(many.clone(), "b is away"), many, "there is no room for more");
        assert_eq!(before.complete(devices(&["b"]), "a is away"), devices(&["b"]));
        assert!(before.is_found());
        assert_eq!(before.end(), Some((devices(&["b"]), "a is away".to_owned())));
    }
}
