//! An example: each line of a file in a volume is a device, and the list follows the file.
//!
//! It shows details with a schema that is derived from their type, a source of events, a note for the operator, and tests in a
//! faked world. The pod mounts a volume at /etc/devices, and the Configuration says
//!
//! ```yaml
//! discoveryHandler:
//!   name: lines
//!   discoveryDetails: |+
//!     file: cameras.txt
//! ```

use akri_handler::watch::Watch;
use akri_handler::{Device, Error, Handler, Request, Step, fs, handler, schema_of};
use schemars::JsonSchema;
use std::collections::BTreeSet;

/// Where the pod mounts the volume.
const DIRECTORY: &str = "/etc/devices";
/// The variable that brokers read.
const LINE: &str = "LINE";

/// `discoveryDetails`. The node refuses others, with their place, before the handler sees them.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Details {
    /// Name of a file of the volume.
    #[schemars(regex(pattern = r"^[^/]+$"))]
    file: String,
}

struct Lines {
    path: String,
    /// Asks for a step when something in the directory has changed.
    changes: Watch,
}

impl Handler for Lines {
    const NAME: &'static str = "lines";
    const SHARED: bool = false;
    type Details = Details;

    fn schema() -> Option<String> {
        schema_of::<Details>()
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let path = format!("{DIRECTORY}/{}", request.details.file);
        Ok(Self { path, changes: Watch::open(DIRECTORY)? })
    }

    fn step(&mut self) -> Result<Step, Error> {
        self.changes.take();
        if !fs::exists(&self.path) {
            // No file, no devices. A file that cannot be read is another matter: then the last list stays.
            return Ok(Step::devices(Vec::new()).note(format!("there is no file {}", self.path)));
        }
        let text = fs::read(&self.path)?;
        // Each once: ids are unique.
        let lines: BTreeSet<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Ok(Step::devices(lines.into_iter().map(|line| Device::new(line).property(LINE, line)).collect()))
    }
}

handler!(Lines);

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;

    #[test]
    fn the_list_follows_the_file() {
        let world = World::new();
        world.write("/etc/devices/other.txt", "");
        let mut lines = world.open::<Lines>(r#"{"file": "cameras.txt"}"#).unwrap();
        let none = lines.step().unwrap();
        assert_eq!(none.devices, Some(Vec::new()));
        assert!(none.note.unwrap().contains("/etc/devices/cameras.txt"));
        world.write("/etc/devices/cameras.txt", "front\n\n back \nfront\n");
        world.change("/etc/devices", "cameras.txt");
        assert!(world.wants_step());
        let devices = lines.step().unwrap().devices.unwrap();
        assert_eq!(devices, ["back", "front"].map(|line| Device::new(line).property(LINE, line)));
        assert!(!world.wants_step());
    }

    #[test]
    fn the_schema_has_what_the_details_have() {
        let schema = Lines::schema().unwrap();
        assert!(schema.contains(r#""required":["file"]"#) && schema.contains("additionalProperties"), "{schema}");
    }
}
