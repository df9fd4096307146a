//! {{name}}: each line of a file in a volume is a device, and the list follows the file.

use akri_handler::watch::Watch;
use akri_handler::{Device, Error, Handler, Request, Step, fs, handler, needs, schema_of};
use schemars::JsonSchema;
use std::collections::BTreeSet;

/// Where the pod mounts the volume.
const DIRECTORY: &str = "/etc/devices";
/// The variable that brokers read.
const DEVICE: &str = "{{VARIABLE}}";

/// `discoveryDetails`. The node refuses others, with their place, before the handler sees them.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Details {
    /// Name of a file of the volume.
    #[schemars(regex(pattern = r"^[^/]+$"))]
    file: String,
}

struct {{Type}} {
    path: String,
    /// Asks for a step when something in the directory has changed.
    changes: Watch,
}

impl Handler for {{Type}} {
    const NAME: &'static str = "{{name}}";
    // Whether other nodes see the same devices.
    const SHARED: bool = false;
    type Details = Details;

    fn schema() -> Option<String> {
        schema_of::<Details>()
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        Ok(Self { path: format!("{DIRECTORY}/{}", request.details.file), changes: Watch::open(DIRECTORY)? })
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
        log::info!("{} devices", lines.len());
        Ok(Step::devices(lines.into_iter().map(|line| Device::new(line).property(DEVICE, line)).collect()))
    }
}

handler!({{Type}});

// What its pod has to give it: akri-krustlet tells whoever runs it without.
needs! {
    volumes: ["/etc/devices"],
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;

    #[test]
    fn the_list_follows_the_file() {
        let world = World::new();
        world.write("/etc/devices/other.txt", "");
        let mut handler = world.open::<{{Type}}>(r#"{"file": "devices.txt"}"#).unwrap();
        assert_eq!(handler.step().unwrap().devices, Some(Vec::new()));
        world.write("/etc/devices/devices.txt", "front\n\n back \nfront\n");
        world.change("/etc/devices", "devices.txt");
        assert!(world.wants_step());
        let devices = handler.step().unwrap().devices.unwrap();
        assert_eq!(devices, ["back", "front"].map(|line| Device::new(line).property(DEVICE, line)));
    }

    /// What `akri-krustlet dev --record tests/NAME.rec` writes down is a test.
    #[test]
    fn what_was_recorded_is_said_again() {
        akri_handler::fake::replay_all::<{{Type}}>("tests");
    }
}
