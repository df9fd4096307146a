//! What the kernel tells of devices: they come, go, change. Needs the pod's annotation `akri-krustlet/uevents`.

use crate::Error;

/// Something that happened to a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uevent {
    /// `add`, `remove`, `change`, ...
    pub action: String,
    /// Its path below /sys.
    pub devpath: String,
    /// As `usb`.
    pub subsystem: String,
    /// All that the kernel says.
    pub properties: Vec<(String, String)>,
}

/// Follows uevents. Each makes the node ask for a step.
#[derive(Debug)]
pub struct Monitor(inner::Monitor);

impl Monitor {
    /// Of these subsystems; of all that the pod grants, if there are none.
    pub fn open(subsystems: &[String]) -> Result<Self, Error> {
        inner::open(subsystems).map(Self)
    }

    /// What came since this was called last, in order, and how many more there were: then look at everything.
    pub fn take(&self) -> (Vec<Uevent>, u32) {
        inner::take(&self.0)
    }
}

#[cfg(target_family = "wasm")]
mod inner {
    use super::Uevent;
    use crate::Error;
    use crate::bindings::akri::host::uevents::{self, Denied};

    pub(super) type Monitor = uevents::Monitor;

    pub(super) fn open(subsystems: &[String]) -> Result<Monitor, Error> {
        uevents::Monitor::open(subsystems).map_err(|denied| {
            let why = match denied {
                Denied::NotGranted => "the pod does not grant all of them (annotation akri-krustlet/uevents)",
                Denied::TooMany => "the handler has too many monitors open",
                Denied::Unavailable => "the node has none, its log says why",
            };
            Error::Unavailable(format!("uevents of {subsystems:?}: {why}"))
        })
    }

    pub(super) fn take(monitor: &Monitor) -> (Vec<Uevent>, u32) {
        let (events, lost) = monitor.take();
        let own = |event: uevents::Uevent| Uevent {
            action: event.action,
            devpath: event.devpath,
            subsystem: event.subsystem,
            properties: event.properties,
        };
        (events.into_iter().map(own).collect(), lost)
    }
}

#[cfg(not(target_family = "wasm"))]
use crate::fake::uevents as inner;
