//! What an instance says, as recordings have it: its own words, before the node looks at them.

use super::{letters, types};
use akri_krustlet_runtime::world::recording::{Device, Said};

/// `None`: nothing new.
pub(super) fn of_outcome(outcome: &Result<types::Outcome, types::Error>) -> Option<Said> {
    match outcome {
        Ok(outcome) => outcome.devices.as_ref().map(|devices| list(devices)),
        Err(error) => Some(of_error(error)),
    }
}

pub(super) fn of_error(error: &types::Error) -> Said {
    match error {
        types::Error::InvalidDetails(what) => Said::InvalidDetails(what.clone()),
        types::Error::Unavailable(what) => Said::Unavailable(what.clone()),
        types::Error::Internal(what) => Said::Internal(what.clone()),
    }
}

/// By id: what is in a directory has no order.
fn list(devices: &[types::Device]) -> Said {
    let mut devices: Vec<_> = devices.iter().map(of_device).collect();
    devices.sort_by(|one, other| one.id.cmp(&other.id));
    Said::List(devices)
}

fn of_device(device: &types::Device) -> Device {
    let mut properties = device.properties.clone();
    properties.sort();
    let node =
        |spec: &types::DeviceSpec| (spec.container_path.clone(), spec.host_path.clone(), letters(spec.permissions));
    let mount = |mount: &types::Mount| (mount.container_path.clone(), mount.host_path.clone(), mount.read_only);
    Device {
        id: device.id.clone(),
        properties,
        mounts: device.mounts.iter().map(mount).collect(),
        nodes: device.device_specs.iter().map(node).collect(),
    }
}
