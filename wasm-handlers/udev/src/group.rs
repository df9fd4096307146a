//! Devices as Akri gets them, of what rules found.

use crate::scan::Found;
use akri_handler::{Device, Permissions, fs};
use std::collections::{BTreeMap, BTreeSet};

/// How what was found becomes devices.
#[derive(Debug)]
pub(crate) struct Grouping {
    /// What is below another that was found belongs to it.
    pub(crate) recursive: bool,
    /// Of their files in /dev.
    pub(crate) permissions: Permissions,
    /// Name of a resource of KubeVirt.
    pub(crate) resource: Option<String>,
    /// Devices of PCI are given with their VFIO group.
    pub(crate) vfio: bool,
}

const VFIO: Permissions = Permissions { read: true, write: true, mknod: true };

impl Grouping {
    pub(crate) fn devices(&self, found: BTreeSet<Found>) -> Vec<Device> {
        let mut groups = BTreeMap::<String, Vec<Found>>::new();
        // What is above another comes before it, though others may come between.
        for found in found {
            let top = self.recursive.then(|| above(&found.devpath).find(|path| groups.contains_key(*path))).flatten();
            let top = top.unwrap_or(&found.devpath).to_owned();
            groups.entry(top).or_default().push(found);
        }
        groups.into_iter().map(|(id, members)| self.device(&id, &members)).collect()
    }

    fn device(&self, id: &str, members: &[Found]) -> Device {
        let mut device = Device::new(id).property("UDEV_DEVPATH", id);
        for (number, devnode) in members.iter().filter_map(|found| found.devnode.as_ref()).enumerate() {
            let suffix = if self.recursive { format!("_{number}") } else { String::new() };
            device = device.property(&format!("UDEV_DEVNODE{suffix}"), devnode).device_file(devnode, self.permissions);
            if let (Some(resource), Some(address)) = (&self.resource, usb_address(devnode)) {
                device = device.property(&format!("USB_RESOURCE_{}{suffix}", variable(resource)), address);
            }
        }
        let is_usb = id.split('/').any(|part| part.starts_with("usb"));
        if let Some(resource) = self.resource.as_ref().filter(|_| !is_usb)
            && let Some(address) = id.split('/').rfind(|part| is_pci_address(part))
        {
            device = device.property(&format!("PCI_RESOURCE_{}", variable(resource)), address);
            if let Some(group) = self.vfio.then(|| iommu_group(id)).flatten() {
                device = device.device_file(&format!("/dev/vfio/{group}"), VFIO).device_file("/dev/vfio/vfio", VFIO);
            }
        }
        device
    }
}

/// The paths above a path, from the outermost on.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

/// As KubeVirt makes a variable of a resource's name.
fn variable(resource: &str) -> String {
    resource.replace(['.', '/'], "_").to_ascii_uppercase()
}

/// Bus and device of a file below /dev/bus/usb.
fn usb_address(devnode: &str) -> Option<String> {
    let (bus, device) = devnode.strip_prefix("/dev/bus/usb/")?.rsplit_once('/')?;
    let number = |text: &str| text.parse::<u32>().ok();
    Some(format!("{}:{}", number(bus.rsplit('/').next()?)?, number(device)?))
}

/// Domain, bus, slot and function: `0000:01:00.0`.
fn is_pci_address(part: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<_> = part.split(':').collect();
    matches!(parts[..], [domain, bus, rest] if rest.split_once('.').is_some_and(|(slot, function)| {
        [domain, bus, slot, function].into_iter().all(is_number)
    }))
}

fn iommu_group(devpath: &str) -> Option<String> {
    let target = fs::read_link(format!("/sys{devpath}/iommu_group")).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}
