//! {{name}}: each line of what a web server answers is a device.

use akri_handler::http::Call;
use akri_handler::{Device, Error, Handler, Request, Step, handler, needs, schema_of};
use schemars::JsonSchema;
use std::collections::BTreeSet;
use std::time::Duration;

/// The variable that brokers read.
const DEVICE: &str = "{{VARIABLE}}";
/// Longest time for an answer, and longest answer in bytes.
const TIMEOUT: Duration = Duration::from_secs(5);
const MOST: usize = 1 << 20;

/// `discoveryDetails`. The node refuses others, with their place, before the handler sees them.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Details {
    /// What is asked.
    url: String,
    /// How often, in seconds.
    #[serde(default = "ten")]
    #[schemars(range(min = 1))]
    every: u32,
}

fn ten() -> u32 {
    10
}

struct {{Type}}(Details);

impl Handler for {{Type}} {
    const NAME: &'static str = "{{name}}";
    // Whether other nodes see the same devices.
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        schema_of::<Details>()
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        Ok(Self(request.details))
    }

    fn step(&mut self) -> Result<Step, Error> {
        let Self(Details { url, every }) = self;
        let again = Duration::from_secs((*every).into());
        let answer = Call::get(url.clone()).timeout(TIMEOUT).most(MOST).send();
        // Without an answer the last list stays, and the pod's condition says why.
        let trouble = |what: String| Ok(Step::unchanged().note(what).wake_after(again));
        let answer = match answer {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => return trouble(format!("{url}: it answered {}", answer.status)),
            Err(error) => return trouble(error.to_string()),
        };
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let lines: BTreeSet<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        log::info!("{} devices", lines.len());
        let devices = lines.into_iter().map(|line| Device::new(line).property(DEVICE, line)).collect();
        Ok(Step::devices(devices).wake_after(again))
    }
}

handler!({{Type}});

// What its pod has to give it: akri-krustlet tells whoever runs it without.
needs! {
    network: ["http details"],
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;
    use akri_handler::http::Answer;

    #[test]
    fn each_line_is_a_device_and_the_list_stays_when_the_server_fails() {
        let world = World::new();
        world.web(|_| Ok(Answer { status: 200, body: b"b\n\na\n".to_vec(), ..Answer::default() }));
        let mut handler = world.open::<{{Type}}>(r#"{"url": "http://devices.example/list"}"#).unwrap();
        let step = handler.step().unwrap();
        assert_eq!(step.devices.unwrap(), ["a", "b"].map(|line| Device::new(line).property(DEVICE, line)));
        assert_eq!(step.wake_after, Some(Duration::from_secs(10)));
        world.web(|_| Ok(Answer { status: 503, ..Answer::default() }));
        let step = handler.step().unwrap();
        assert!(step.devices.is_none() && step.note.unwrap().contains("503"));
    }

    /// What `akri-krustlet dev --record tests/NAME.rec` writes down is a test.
    #[test]
    fn what_was_recorded_is_said_again() {
        akri_handler::fake::replay_all::<{{Type}}>("tests");
    }
}
