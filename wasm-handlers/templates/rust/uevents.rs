//! {{name}}: what a class of the kernel has is a device, and the list follows the kernel's events.

use akri_handler::uevents::Monitor;
use akri_handler::{Device, Error, Handler, Request, Step, fs, handler, needs, schema_of};
use schemars::JsonSchema;

/// The variable that brokers read.
const DEVICE: &str = "{{VARIABLE}}";

/// `discoveryDetails`. The node refuses others, with their place, before the handler sees them.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Details {
    /// A class of /sys/class, such as tty or video4linux.
    #[schemars(regex(pattern = r"^[a-z0-9_-]+$"))]
    class: String,
}

struct {{Type}} {
    directory: String,
    /// Asks for a step when something of the class comes or goes.
    events: Monitor,
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
        let class = request.details.class;
        // Before the class is read for the first time: nothing is missed.
        let events = Monitor::open(std::slice::from_ref(&class))?;
        Ok(Self { directory: format!("/sys/class/{class}"), events })
    }

    fn step(&mut self) -> Result<Step, Error> {
        self.events.take();
        if !fs::exists(&self.directory) {
            return Ok(Step::devices(Vec::new()).note(format!("there is no {}", self.directory)));
        }
        let names = fs::list(&self.directory)?;
        log::info!("{} devices", names.len());
        let device = |name: &String| Device::new(name).property(DEVICE, format!("{}/{name}", self.directory));
        Ok(Step::devices(names.iter().map(device).collect()))
    }
}

handler!({{Type}});

// What its pod has to give it: akri-krustlet tells whoever runs it without.
needs! {
    uevents: ["tty"],
    volumes: ["/sys"],
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;
    use akri_handler::uevents::Uevent;

    #[test]
    fn the_list_follows_the_kernel() {
        let world = World::new();
        world.write("/sys/class/tty/ttyS0/dev", "4:64");
        let mut handler = world.open::<{{Type}}>(r#"{"class": "tty"}"#).unwrap();
        let ids = |step: Step| step.devices.unwrap().into_iter().map(|device| device.id).collect::<Vec<_>>();
        assert_eq!(ids(handler.step().unwrap()), ["ttyS0"]);
        world.write("/sys/class/tty/ttyUSB0/dev", "188:0");
        world.uevent(Uevent { subsystem: "tty".to_owned(), ..Uevent::default() });
        assert!(world.wants_step());
        assert_eq!(ids(handler.step().unwrap()), ["ttyS0", "ttyUSB0"]);
    }

    /// What `akri-krustlet dev --record tests/NAME.rec` writes down is a test.
    #[test]
    fn what_was_recorded_is_said_again() {
        akri_handler::fake::replay_all::<{{Type}}>("tests");
    }
}
