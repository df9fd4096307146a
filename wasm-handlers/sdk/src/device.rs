//! What a handler found.

use crate::bindings::akri::discovery::types;

/// What a container may do with a device file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `m`
    pub mknod: bool,
}

impl Permissions {
    /// As Kubernetes' device plugins and cgroups write them: letters of `rwm`, each once at most, in any order.
    pub fn parse(text: &str) -> Option<Self> {
        let mut permissions = Self::default();
        for letter in text.chars() {
            let one = match letter {
                'r' => &mut permissions.read,
                'w' => &mut permissions.write,
                'm' => &mut permissions.mknod,
                _ => return None,
            };
            if std::mem::replace(one, true) {
                return None;
            }
        }
        (!text.is_empty()).then_some(permissions)
    }
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The same for the same device, whenever and wherever it is found; not another one's.
    pub id: String,
    /// Environment of its brokers.
    pub properties: Vec<(String, String)>,
    /// Mounts of its brokers: path there, path on the host, whether it is read-only.
    pub mounts: Vec<(String, String, bool)>,
    /// Device files of its brokers: path there, path on the host, permissions.
    pub device_files: Vec<(String, String, Permissions)>,
}

impl Device {
    /// A device of this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }

    /// With a variable of its brokers. What cannot be in a variable's name becomes `_`; a name that was given before gets the new
    /// value.
    #[must_use]
    pub fn property(mut self, name: &str, value: impl Into<String>) -> Self {
        // As the node takes them.
        let plain = |letter: char| match letter {
            letter if letter.is_ascii_alphanumeric() || "_-.".contains(letter) => letter,
            _ => '_',
        };
        let mut name: String = name.chars().map(plain).collect();
        if name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) {
            name.insert(0, '_');
        }
        let value = value.into();
        match self.properties.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.properties.push((name, value)),
        }
        self
    }

    /// With a mount of its brokers.
    #[must_use]
    pub fn mount(mut self, container_path: &str, host_path: &str, read_only: bool) -> Self {
        self.mounts.push((container_path.to_owned(), host_path.to_owned(), read_only));
        self
    }

    /// With a device file of its brokers, at the same path there as on the host.
    #[must_use]
    pub fn device_file(mut self, path: &str, permissions: Permissions) -> Self {
        self.device_files.push((path.to_owned(), path.to_owned(), permissions));
        self
    }
}

impl From<Device> for types::Device {
    fn from(device: Device) -> Self {
        let mount = |(container_path, host_path, read_only)| types::Mount { container_path, host_path, read_only };
        let file = |(container_path, host_path, of): (String, String, Permissions)| {
            let mut permissions = types::Permissions::empty();
            permissions.set(types::Permissions::READ, of.read);
            permissions.set(types::Permissions::WRITE, of.write);
            permissions.set(types::Permissions::MKNOD, of.mknod);
            types::DeviceSpec { container_path, host_path, permissions }
        };
        Self {
            id: device.id,
            properties: device.properties,
            mounts: device.mounts.into_iter().map(mount).collect(),
            device_specs: device.device_files.into_iter().map(file).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_properties_can_be_variables() {
        let device = Device::new("a").property("ID=PATH-1", "x").property("1", "y").property("ID PATH-1", "z");
        let expected = [("ID_PATH-1", "z"), ("_1", "y")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(device.properties, expected);
    }

    #[test]
    fn permissions_are_letters() {
        assert_eq!(Permissions::parse("wr"), Some(Permissions { read: true, write: true, mknod: false }));
        for wrong in ["", "rr", "x", "rwmr", "RW"] {
            assert_eq!(Permissions::parse(wrong), None, "{wrong}");
        }
    }
}
