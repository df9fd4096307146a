//! Checks what a guest answers before it leaves the node.

use crate::host_path::{HostPaths, Refusal};
use akri_proto::v0::{Device, DiscoverResponse};
use std::collections::{BTreeMap, BTreeSet};

/// Longest answer, in bytes of JSON. The Agent's gRPC takes 4 MiB, and ends the stream above that.
pub const MOST_ANSWER: usize = 3 << 20;
/// Longest device id, in bytes.
pub const MOST_ID: usize = 1 << 10;
/// Longest property name, in bytes.
pub const MOST_NAME: usize = 256;
/// Longest property value, in bytes.
pub const MOST_VALUE: usize = 64 << 10;
/// Most devices in one list.
pub const MOST_DEVICES: usize = 1024;

/// What a guest said, in whatever way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    /// What it found.
    Found {
        /// All devices there are; none: the same as before.
        devices: Option<Vec<Device>>,
        /// What the pod's condition is to tell; none: all is well.
        note: Option<String>,
    },
    /// The discovery details are wrong.
    InvalidDetails(String),
    /// It cannot find out now, and says why.
    Trouble(String),
}

impl Said {
    /// The devices, and nothing else to say.
    pub(crate) fn devices(devices: Vec<Device>) -> Self {
        Self::Found { devices: Some(devices), note: None }
    }

    /// About what it takes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Found { devices, note } => {
                devices.iter().flatten().map(bytes).sum::<usize>() + note.as_ref().map_or(0, String::len)
            }
            Self::InvalidDetails(text) | Self::Trouble(text) => text.len(),
        }
    }
}

/// About what a device takes in memory, and at most what it takes in a message.
fn bytes(device: &Device) -> usize {
    const PART: usize = 16;
    let properties = device.properties.iter().map(|(name, value)| PART + name.len() + value.len());
    let mounts = device.mounts.iter().map(|mount| PART + mount.container_path.len() + mount.host_path.len());
    let specs = device.device_specs.iter().map(|spec| PART + spec.container_path.len() + spec.host_path.len());
    size_of::<Device>() + device.id.len() + properties.chain(mounts).chain(specs).sum::<usize>()
}

/// Devices that may be sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Checked {
    /// By id.
    pub list: DiscoverResponse,
    /// What was left out of it, in words.
    pub warning: Option<String>,
}

/// Why an answer is not used. The last good one stays in force.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RefusedAnswer {
    /// No JSON, or JSON that ends too soon.
    #[error("the answer is not JSON ({0}); is it written to out.out in one piece?")]
    NotJson(String),
    /// JSON of another shape.
    #[error(
        "the answer has not the shape {{\"devices\":[{{\"id\",\"properties\",\"mounts\",\"device_specs\"}}]}}: {0}"
    )]
    Shape(String),
    /// More devices than [`MOST_DEVICES`].
    #[error("the answer has {0} devices, {MOST_DEVICES} at most are taken")]
    TooMany(usize),
    /// More than [`MOST_ANSWER`] in all.
    #[error("the answer has about {0} bytes, {MOST_ANSWER} at most are taken")]
    TooLarge(usize),
    /// Something is longer than allowed.
    #[error("device {id:?}: {what} has {size} bytes, {most} at most are taken")]
    TooLong {
        /// The device.
        id: String,
        /// Its id, a property's name or value.
        what: String,
        /// Bytes.
        size: usize,
        /// Bytes allowed.
        most: usize,
    },
    /// A property name that no environment variable can have.
    #[error(
        "device {id:?}: property {name:?} cannot be an environment variable: letters, digits, `_`, `-` and `.` make a name, and no digit begins it"
    )]
    PropertyName {
        /// The device.
        id: String,
        /// The name.
        name: String,
    },
    /// A value that no environment variable can have.
    #[error("device {id:?}: the value of {name} contains a NUL byte, which no environment variable can hold")]
    PropertyValue {
        /// The device.
        id: String,
        /// The property.
        name: String,
    },
    /// A host path that it may not name.
    #[error("device {id:?} names the host path {path:?}, {}", refusal.explain(path))]
    HostPath {
        /// The device.
        id: String,
        /// The path.
        path: String,
        /// Why not.
        refusal: Refusal,
    },
    /// A container path that is not absolute, or permissions other than of r, w and m.
    #[error("device {id:?}: {what}")]
    Malformed {
        /// The device.
        id: String,
        /// What is wrong.
        what: String,
    },
}

impl RefusedAnswer {
    /// What is wrong in one word, as metrics tell it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotJson(_) => "not_json",
            Self::Shape(_) => "shape",
            Self::TooMany(_) => "too_many",
            Self::TooLarge(_) => "too_large",
            Self::TooLong { .. } => "too_long",
            Self::PropertyName { .. } => "property_name",
            Self::PropertyValue { .. } => "property_value",
            Self::HostPath { .. } => "host_path",
            Self::Malformed { .. } => "malformed",
        }
    }
}

impl Checked {
    /// Checks what a guest found.
    ///
    /// Devices are sorted by id, so that a guest that lists the same ones in another order has said nothing new. Of
    /// devices with the same id the first is kept and those with an empty id are left out; a warning names them.
    pub(crate) fn of(devices: Vec<Device>, allowed: &HostPaths) -> Result<Self, RefusedAnswer> {
        if devices.len() > MOST_DEVICES {
            return Err(RefusedAnswer::TooMany(devices.len()));
        }
        let bytes = devices.iter().map(bytes).sum();
        if bytes > MOST_ANSWER {
            return Err(RefusedAnswer::TooLarge(bytes));
        }
        let mut by_id = BTreeMap::new();
        let mut repeated = BTreeSet::new();
        let mut nameless = 0;
        for device in devices {
            check(&device, allowed)?;
            if device.id.is_empty() {
                nameless += 1;
            } else if by_id.contains_key(&device.id) {
                repeated.insert(device.id);
            } else {
                by_id.insert(device.id.clone(), device);
            }
        }
        let list = DiscoverResponse { devices: by_id.into_values().collect() };
        Ok(Self { list, warning: warning(&repeated, nameless) })
    }
}

/// Looks at the host paths of a list that was read. Blocks as long as the files that they name do.
pub(crate) fn look_at_host_paths(list: &DiscoverResponse, allowed: &HostPaths) -> Result<(), RefusedAnswer> {
    for device in &list.devices {
        for path in host_paths(device) {
            allowed.look(path).map_err(|refusal| RefusedAnswer::HostPath {
                id: device.id.clone(),
                path: path.clone(),
                refusal,
            })?;
        }
    }
    Ok(())
}

/// Whether a list names any.
pub(crate) fn has_host_paths(list: &DiscoverResponse) -> bool {
    list.devices.iter().any(|device| host_paths(device).next().is_some())
}

fn host_paths(device: &Device) -> impl Iterator<Item = &String> {
    let mounts = device.mounts.iter().map(|mount| &mount.host_path);
    mounts.chain(device.device_specs.iter().map(|spec| &spec.host_path))
}

fn warning(repeated: &BTreeSet<String>, nameless: usize) -> Option<String> {
    let mut parts = Vec::new();
    if !repeated.is_empty() {
        parts.push(format!("ids given to several devices, of which the first was kept: {repeated:?}"));
    }
    if nameless > 0 {
        parts.push(format!("{nameless} device(s) with an empty id left out"));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn check(device: &Device, allowed: &HostPaths) -> Result<(), RefusedAnswer> {
    let id = &device.id;
    let short = |what: String, size: usize, most: usize| {
        if size <= most {
            return Ok(());
        }
        let id = id.chars().take(64).collect();
        Err(RefusedAnswer::TooLong { id, what, size, most })
    };
    short("its id".to_owned(), id.len(), MOST_ID)?;
    for (name, value) in &device.properties {
        short("a property name".to_owned(), name.len(), MOST_NAME)?;
        short(format!("the value of {name}"), value.len(), MOST_VALUE)?;
        if !is_variable_name(name) {
            return Err(RefusedAnswer::PropertyName { id: id.clone(), name: name.clone() });
        }
        if value.contains('\0') {
            return Err(RefusedAnswer::PropertyValue { id: id.clone(), name: name.clone() });
        }
    }
    let paths = device.mounts.iter().map(|mount| (&mount.container_path, &mount.host_path));
    let spec_paths = device.device_specs.iter().map(|spec| (&spec.container_path, &spec.host_path));
    for (container_path, host_path) in paths.chain(spec_paths) {
        if let Err(refusal) = allowed.check(host_path) {
            return Err(RefusedAnswer::HostPath { id: id.clone(), path: host_path.clone(), refusal });
        }
        if !crate::settings::is_plain_absolute(container_path) {
            let what = format!("container path {container_path:?} is not an absolute path without `..`");
            return Err(RefusedAnswer::Malformed { id: id.clone(), what });
        }
    }
    for spec in &device.device_specs {
        if spec.permissions.is_empty() || !spec.permissions.chars().all(|letter| "rwm".contains(letter)) {
            let what = format!("permissions {:?} of {} are not of r, w and m", spec.permissions, spec.host_path);
            return Err(RefusedAnswer::Malformed { id: id.clone(), what });
        }
    }
    Ok(())
}

/// Kubernetes' rule for the names of environment variables.
fn is_variable_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || b"_-.".contains(&byte);
    name.bytes().next().is_some_and(letter) && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_path::AllowList;
    use serde_json::json;

    fn read_with(json: &[u8], allowed: &HostPaths) -> Result<Checked, RefusedAnswer> {
        match crate::device_json::read(json)? {
            Said::Found { devices: Some(devices), .. } => Checked::of(devices, allowed),
            other => panic!("{other:?}"),
        }
    }

    fn read(json: &serde_json::Value) -> Result<Checked, RefusedAnswer> {
        read_with(json.to_string().as_bytes(), &HostPaths::default())
    }

    #[test]
    fn devices_are_sorted_and_the_first_of_an_id_wins() {
        let answer = read(&json!({"devices": [
            {"id": "b", "properties": {"K": "1"}}, {"id": "a"}, {"id": "b", "properties": {"K": "2"}}, {"id": ""},
        ]}))
        .unwrap();
        let ids: Vec<_> = answer.list.devices.iter().map(|device| device.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(answer.list.devices[1].properties["K"], "1");
        let warning = answer.warning.unwrap();
        assert!(warning.contains("\"b\"") && warning.contains("1 device(s) with an empty id"), "{warning}");
    }

    #[test]
    fn what_breaks_a_bound_is_refused() {
        let device = |id: &str, name: &str, value: &str| json!({"devices": [{"id": id, "properties": {name: value}}]});
        let most = "x".repeat(MOST_ID);
        assert!(read(&device(&most, "K", "v")).is_ok());
        for (answer, message) in [
            (device(&format!("{most}x"), "K", "v"), "its id has 1025 bytes"),
            (device("a", "K", &"x".repeat(MOST_VALUE + 1)), "the value of K has 65537 bytes"),
            (device("a", "1A", "v"), "cannot be an environment variable"),
            (device("a", "a b=x", "v"), "cannot be an environment variable"),
            (device("a", "", "v"), "cannot be an environment variable"),
            (device("a", "K", "v\0"), "NUL"),
            (json!({"devices": vec![json!({"id": "a"}); MOST_DEVICES + 1]}), "1025 devices"),
            (json!({"devices": [{"id": 7}]}), "has not the shape"),
            (json!({}), "`devices` is missing"),
            (json!([]), "has not the shape"),
        ] {
            let error = read(&answer).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        assert!(matches!(crate::device_json::read(b"{\"devices\":["), Err(RefusedAnswer::NotJson(_))));
    }

    #[test]
    fn host_paths_need_to_be_allowed() {
        let device = |path: &str| {
            json!({"devices": [{"id": "a", "device_specs": [
                {"container_path": "/dev/x", "host_path": path, "permissions": "rw"}]}]})
            .to_string()
        };
        let list = AllowList::parse("/dev/video*, /run/udev/").unwrap();
        let allowed = HostPaths { pod: list.clone(), operator: list, writable: Vec::new() };
        for (path, is_allowed) in [
            ("/dev/video0", true),
            ("/run/udev", true),
            ("/run/udev/data", true),
            ("/run/udevil", false),
            ("/dev/mem", false),
            ("/run/udev/../../etc", false),
            ("dev/video0", false),
        ] {
            let answer = read_with(device(path).as_bytes(), &allowed);
            assert_eq!(answer.is_ok(), is_allowed, "{path}: {answer:?}");
        }
        let refused = read_with(device("/dev/mem").as_bytes(), &HostPaths::default()).unwrap_err().to_string();
        assert!(refused.contains("akri-krustlet/allowed-host-paths: /dev/mem"), "{refused}");
        assert_eq!(AllowList::parse("/a,b"), Err("b".to_owned()));
        assert_eq!(AllowList::parse("/*"), Err("/*".to_owned()));
    }
}
