//! `discover --offer-devices`: the devices of a handler, offered to pods as Akri's Agent does it.

use akri_krustlet_devices::offer::{Offer, OfferError};
use akri_proto::v0::Device;
use akri_proto::v1beta1::{ContainerAllocateResponse, DeviceSpec, Mount};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The devices that are offered, by the name of their Instance.
pub(crate) struct Offers {
    directory: PathBuf,
    capacity: u32,
    offers: BTreeMap<String, (Device, Offer)>,
}

impl Offers {
    /// To the node that takes registrations in `directory`; each device to so many pods.
    pub(crate) fn new(directory: PathBuf, capacity: u32) -> Self {
        Self { directory, capacity, offers: BTreeMap::new() }
    }

    /// Offers these devices, and no others any more.
    pub(crate) async fn update(&mut self, devices: BTreeMap<String, Device>) -> Result<(), OfferError> {
        self.offers.retain(|instance, _| devices.contains_key(instance));
        for (instance, device) in devices {
            // As with Akri, what a device brings is what it brought when it came.
            if self.offers.contains_key(&instance) {
                continue;
            }
            let ids = (0..self.capacity).map(|slot| format!("{instance}-{slot}")).collect();
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let (resource, socket) = (format!("akri.sh/{instance}"), format!("{instance}-{seconds}.sock"));
            let offer = Offer::start(&self.directory, &resource, &socket, ids, response(&instance, &device)).await?;
            eprintln!("offering {resource}, to {} pod(s)", self.capacity);
            self.offers.insert(instance, (device, offer));
        }
        Ok(())
    }
}

/// What a container gets of a device: its properties as they are, and with the Instance's hash, so that those of several
/// devices do not collide.
fn response(instance: &str, device: &Device) -> ContainerAllocateResponse {
    let hash = instance.rsplit('-').next().unwrap_or_default().to_ascii_uppercase();
    let mut envs = device.properties.clone();
    envs.extend(device.properties.iter().map(|(name, value)| (format!("{name}_{hash}"), value.clone())));
    let mounts = device.mounts.iter().map(|mount| Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        read_only: mount.read_only,
    });
    let devices = device.device_specs.iter().map(|spec| DeviceSpec {
        container_path: spec.container_path.clone(),
        host_path: spec.host_path.clone(),
        permissions: spec.permissions.clone(),
    });
    ContainerAllocateResponse { envs, mounts: mounts.collect(), devices: devices.collect(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_come_in_both_of_akris_forms() {
        let properties = BTreeMap::from([("DEBUG_ECHO_DESCRIPTION".to_owned(), "foo0".to_owned())]);
        let device = Device { id: "foo0".to_owned(), properties, ..Device::default() };
        let names: Vec<_> = response("akri-debug-echo-8120fe", &device).envs.into_keys().collect();
        assert_eq!(names, ["DEBUG_ECHO_DESCRIPTION", "DEBUG_ECHO_DESCRIPTION_8120FE"]);
    }
}
