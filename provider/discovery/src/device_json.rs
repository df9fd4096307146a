//! Lists of devices as JSON: as guests of the exchange contract answer, and as the node keeps the last list of a stream.

use crate::device::{RefusedAnswer, Said};
use akri_proto::v0::{Device, DeviceSpec, DiscoverResponse, Mount};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct AnswerJson {
    devices: Option<Vec<DeviceJson>>,
    error: Option<ErrorJson>,
}

#[derive(Deserialize)]
struct ErrorJson {
    invalid_details: String,
}

#[derive(Serialize, Deserialize)]
struct DeviceJson {
    id: String,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    mounts: Vec<MountJson>,
    #[serde(default)]
    device_specs: Vec<DeviceSpecJson>,
}

#[derive(Serialize, Deserialize)]
struct MountJson {
    container_path: String,
    host_path: String,
    #[serde(default)]
    read_only: bool,
}

#[derive(Serialize, Deserialize)]
struct DeviceSpecJson {
    container_path: String,
    host_path: String,
    permissions: String,
}

/// Reads an answer.
pub(crate) fn read(json: &[u8]) -> Result<Said, RefusedAnswer> {
    let answer: AnswerJson = serde_json::from_slice(json).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => RefusedAnswer::Shape(error.to_string()),
        _ => RefusedAnswer::NotJson(error.to_string()),
    })?;
    match (answer.devices, answer.error) {
        (_, Some(error)) => Ok(Said::InvalidDetails(error.invalid_details)),
        (Some(devices), None) => Ok(Said::devices(devices.into_iter().map(Device::from).collect())),
        (None, None) => Err(RefusedAnswer::Shape("`devices` is missing".to_owned())),
    }
}

/// Writes a list that [`read`] reads.
pub(crate) fn write(list: &DiscoverResponse) -> Vec<u8> {
    #[derive(Serialize)]
    struct ListJson {
        devices: Vec<DeviceJson>,
    }
    let devices = list.devices.iter().cloned().map(DeviceJson::from).collect();
    serde_json::to_vec(&ListJson { devices }).unwrap_or_default()
}

impl From<DeviceJson> for Device {
    fn from(device: DeviceJson) -> Self {
        let mount = |MountJson { container_path, host_path, read_only }| Mount { container_path, host_path, read_only };
        let spec = |DeviceSpecJson { container_path, host_path, permissions }| DeviceSpec {
            container_path,
            host_path,
            permissions,
        };
        Self {
            id: device.id,
            properties: device.properties,
            mounts: device.mounts.into_iter().map(mount).collect(),
            device_specs: device.device_specs.into_iter().map(spec).collect(),
        }
    }
}

impl From<Device> for DeviceJson {
    fn from(device: Device) -> Self {
        let mount = |Mount { container_path, host_path, read_only }| MountJson { container_path, host_path, read_only };
        let spec = |DeviceSpec { container_path, host_path, permissions }| DeviceSpecJson {
            container_path,
            host_path,
            permissions,
        };
        Self {
            id: device.id,
            properties: device.properties,
            mounts: device.mounts.into_iter().map(mount).collect(),
            device_specs: device.device_specs.into_iter().map(spec).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_list_or_what_is_wrong_with_the_details() {
        let error = read(br#"{"error": {"invalid_details": "no descriptions"}}"#);
        assert_eq!(error, Ok(Said::InvalidDetails("no descriptions".to_owned())));
        let json = br#"{"devices": [{"id": "a", "properties": {"K": "v"},
            "mounts": [{"container_path": "/c", "host_path": "/h", "read_only": true}],
            "device_specs": [{"container_path": "/dev/c", "host_path": "/dev/h", "permissions": "rw"}]}]}"#;
        let Ok(Said::Found { devices: Some(devices), .. }) = read(json) else { panic!() };
        assert_eq!(devices[0].mounts[0].host_path, "/h");
        let written = write(&DiscoverResponse { devices: devices.clone() });
        assert_eq!(read(&written), Ok(Said::devices(devices)));
    }
}
