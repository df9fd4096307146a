//! Akri's debugEcho discovery handler as a component: every description of the request is a device.
//!
//! It says all that it knows at the first step: there is nothing that could change.

use akri_handler::{Device, Error, Handler, Request, Step, Text, handler};

/// The environment variable that brokers read.
const DESCRIPTION: &str = "DEBUG_ECHO_DESCRIPTION";

/// What the node checks before it asks. A text may be written plainly (`10`, `no`), so JSON has it as it reads it.
const SCHEMA: &str = r#"{
    "type": "object",
    "required": ["descriptions"],
    "properties": {"descriptions": {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}}}
}"#;

#[derive(serde::Deserialize)]
struct Details {
    descriptions: Vec<Text>,
}

/// What the request asks for, until it was answered.
struct DebugEcho(Option<Vec<Text>>);

impl Handler for DebugEcho {
    const NAME: &'static str = "debugEcho";
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        Some(SCHEMA.to_owned())
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        log::info!("debugEcho: {} devices", request.details.descriptions.len());
        Ok(Self(Some(request.details.descriptions)))
    }

    fn step(&mut self) -> Result<Step, Error> {
        let device = |Text(text): Text| Device::new(&text).property(DESCRIPTION, &text);
        Ok(Step { devices: self.0.take().map(|texts| texts.into_iter().map(device).collect()), ..Step::default() })
    }
}

handler!(DebugEcho);

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;

    #[test]
    fn each_description_is_a_device_once() {
        let world = World::new();
        let mut handler = world.open::<DebugEcho>(r#"{"descriptions": ["a", 10]}"#).unwrap();
        let devices = handler.step().unwrap().devices.unwrap();
        assert_eq!(devices, ["a", "10"].map(|text| Device::new(text).property(DESCRIPTION, text)));
        assert_eq!(handler.step().unwrap(), Step::unchanged());
        let Err(Error::InvalidDetails(what)) = world.open::<DebugEcho>("{}") else { panic!() };
        assert!(what.contains("descriptions"), "{what}");
    }
}
