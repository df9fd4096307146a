//! Akri's debugEcho discovery handler as a component: every description of the request is a device.
//!
//! The node calls `open` with the request and then `step`, once: there is nothing that could change.

use crate::akri::discovery::types::{Device, Error, Outcome, Request};
use akri::host::log::{Level, log};
use exports::akri::discovery::handler::{Guest, Info};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::sync::{Mutex, PoisonError};

wit_bindgen::generate!({ path: "../../proto/wit", world: "discovery-handler", generate_all });

/// The environment variable that brokers read.
const DESCRIPTION: &str = "DEBUG_ECHO_DESCRIPTION";

/// What the node checks before it asks. A text may be written plainly (`10`, `no`), so JSON has it as it reads it.
const SCHEMA: &str = r#"{
    "type": "object",
    "required": ["descriptions"],
    "properties": {"descriptions": {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}}}
}"#;

#[derive(Deserialize)]
struct Details {
    descriptions: Vec<Text>,
}

/// A text, which need not be quoted in the Configuration: `10` is one, too.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Box::<RawValue>::deserialize(deserializer)?;
        let written = written.get();
        match written.as_bytes().first() {
            Some(b'"') => serde_json::from_str(written).map(Self).map_err(serde::de::Error::custom),
            Some(b'[' | b'{') => Err(serde::de::Error::custom(format!("{written} is no text"))),
            _ => Ok(Self(written.to_owned())),
        }
    }
}

/// What the request asks for, until it was answered.
static DESCRIPTIONS: Mutex<Option<Vec<String>>> = Mutex::new(None);

struct DebugEcho;

impl Guest for DebugEcho {
    fn describe() -> Info {
        Info { name: "debugEcho".to_owned(), shared: true, details_schema: Some(SCHEMA.to_owned()) }
    }

    fn open(request: Request) -> Result<(), Error> {
        let details: Details = serde_json::from_str(&request.details).map_err(|error| {
            Error::InvalidDetails(format!("debugEcho needs `descriptions`, a list of strings: {error}"))
        })?;
        let descriptions: Vec<_> = details.descriptions.into_iter().map(|Text(description)| description).collect();
        log(Level::Info, &format!("debugEcho: {} devices", descriptions.len()));
        *DESCRIPTIONS.lock().unwrap_or_else(PoisonError::into_inner) = Some(descriptions);
        Ok(())
    }

    fn step() -> Result<Outcome, Error> {
        let descriptions = DESCRIPTIONS.lock().unwrap_or_else(PoisonError::into_inner).take();
        let devices = descriptions.map(|descriptions| descriptions.into_iter().map(device).collect());
        Ok(Outcome { devices, wake_after_ms: None, note: None })
    }
}

fn device(description: String) -> Device {
    let properties = vec![(DESCRIPTION.to_owned(), description.clone())];
    Device { id: description, properties, mounts: Vec::new(), device_specs: Vec::new() }
}

export!(DebugEcho);
