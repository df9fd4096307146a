//! What the handlers are at, for whoever looks at the node.

use crate::details::DiscoveryRequest;
use akri_proto::v0::Device;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a stream's details that are shown.
const MOST_DETAILS: usize = 2000;
/// Devices of one stream that are; how many there are is told besides.
const MOST_DEVICES: usize = 200;

/// One handler.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HandlerOverview {
    /// Its name.
    pub name: String,
    /// Whether other nodes see the same devices.
    pub shared: bool,
    /// `namespace/pod/container` that serves it, if one does.
    pub container: Option<String>,
    /// Its open streams.
    pub streams: Vec<StreamOverview>,
}

/// One Discover stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StreamOverview {
    /// When it was opened, in seconds of Unix time.
    pub opened: u64,
    /// What it asks for, as its user wrote it; the beginning of that.
    pub details: String,
    /// What is wrong with it, if anything is.
    pub complaint: Option<String>,
    /// How many devices its list has.
    pub count: usize,
    /// The first of them.
    pub devices: Vec<DeviceOverview>,
}

/// A device of a stream's list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceOverview {
    /// Its id.
    pub id: String,
    /// Since when it is in the list, in seconds of Unix time.
    pub since: u64,
}

/// What a stream keeps of itself to be looked at.
#[derive(Debug)]
pub(crate) struct Shown {
    opened: u64,
    request: Arc<DiscoveryRequest>,
    /// How many there are, and the first of them.
    devices: Mutex<(usize, Vec<DeviceOverview>)>,
}

impl Shown {
    pub(crate) fn new(request: Arc<DiscoveryRequest>) -> Self {
        Self { opened: now(), request, devices: Mutex::default() }
    }

    /// It has a new list.
    pub(crate) fn list(&self, devices: &[Device]) {
        let now = now();
        let mut shown = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before: HashMap<_, _> =
            std::mem::take(&mut shown.1).into_iter().map(|device| (device.id, device.since)).collect();
        let since = |device: &Device| {
            let (id, since) = before.remove_entry(&device.id).unwrap_or_else(|| (device.id.clone(), now));
            DeviceOverview { id, since }
        };
        *shown = (devices.len(), devices.iter().take(MOST_DEVICES).map(since).collect());
    }

    pub(crate) fn overview(&self, complaint: Option<String>) -> StreamOverview {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let details = &self.request.raw_details;
        StreamOverview {
            opened: self.opened,
            details: details[..details.floor_char_boundary(MOST_DETAILS)].to_owned(),
            complaint,
            count: devices.0,
            devices: devices.1.clone(),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_proto::v0::DiscoverRequest;

    #[test]
    fn a_device_that_stays_is_as_old_as_it_is() {
        let request = DiscoveryRequest::read(DiscoverRequest::default()).unwrap();
        let shown = Shown::new(Arc::new(request));
        let device = |id: &str| Device { id: id.to_owned(), ..Device::default() };
        shown.list(&[device("a"), device("b")]);
        shown.devices.lock().unwrap().1.iter_mut().for_each(|device| device.since = 7);
        shown.list(&[device("b"), device("c")]);
        let StreamOverview { devices, count, .. } = shown.overview(None);
        assert_eq!((devices[0].id.as_str(), devices[0].since, count), ("b", 7, 2));
        assert!(devices[1].id == "c" && devices[1].since > 7);
    }
}
