//! {{name}}: a server is asked for a list by a connection; each line of it is a device.

use akri_handler::tcp::{self, Next, Peer, Talk};
use akri_handler::{Device, Error, Handler, Request, Step, handler, needs, schema_of};
use schemars::JsonSchema;
use std::collections::BTreeSet;
use std::time::Duration;

/// The variable that brokers read.
const DEVICE: &str = "{{VARIABLE}}";
/// What is asked, and the line that ends the answer. Yours will be others.
const QUESTION: &[u8] = b"list\n";
const END: &str = ".";
/// Longest answer, in bytes; longest time for it; the time between two questions.
const MOST: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(10);

/// `discoveryDetails`. The node refuses others, with their place, before the handler sees them.
#[derive(serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Details {
    /// The server's name or address.
    host: String,
    /// Its port.
    port: u16,
}

/// What came so far.
#[derive(Default)]
struct List(Vec<u8>);

impl Talk for List {
    type Said = Result<Vec<String>, String>;

    fn begin(&mut self) -> Vec<u8> {
        QUESTION.to_vec()
    }

    fn received(&mut self, bytes: &[u8]) -> Next<Self::Said> {
        self.0.extend_from_slice(bytes);
        if self.0.len() > MOST {
            return Next::Done(Err(format!("a list of more than {MOST} bytes")));
        }
        let text = String::from_utf8_lossy(&self.0);
        // Whole lines only; the last one may be on its way.
        let lines: Vec<_> = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::trim).collect();
        match lines.iter().position(|line| *line == END) {
            Some(end) => Next::Done(Ok(lines[..end].iter().map(ToString::to_string).collect())),
            None => Next::More(Vec::new()),
        }
    }
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
        let peer = Peer { host: self.0.host.clone(), port: self.0.port };
        let said = tcp::talk(vec![(peer, List::default())], TIMEOUT).pop();
        let list = match said {
            Some(Ok(Ok(list))) => list,
            // Without an answer the last list stays, and the pod's condition says why.
            Some(Ok(Err(what))) => return Ok(Step::unchanged().note(what).wake_after(AGAIN)),
            Some(Err(error)) => return Ok(Step::unchanged().note(error.to_string()).wake_after(AGAIN)),
            None => return Err(Error::Internal("no conversation".to_owned())),
        };
        let lines: BTreeSet<_> = list.into_iter().filter(|line| !line.is_empty()).collect();
        log::info!("{} devices", lines.len());
        let devices = lines.iter().map(|line| Device::new(line).property(DEVICE, line)).collect();
        Ok(Step::devices(devices).wake_after(AGAIN))
    }
}

handler!({{Type}});

// What its pod has to give it: akri-krustlet tells whoever runs it without.
needs! {
    // Yours will be another one.
    optional_network: ["tcp plant.example:7000"],
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_handler::fake::World;

    #[test]
    fn each_line_of_the_list_is_a_device() {
        let world = World::new();
        world.server("plant.example", 7000, || {
            Box::new(|asked| (asked == QUESTION).then(|| b"pump no.\r\nvalve\r\n.\r\n".to_vec()))
        });
        let mut handler = world.open::<{{Type}}>(r#"{"host": "plant.example", "port": 7000}"#).unwrap();
        let devices = handler.step().unwrap().devices.unwrap();
        assert_eq!(devices, ["pump no.", "valve"].map(|line| Device::new(line).property(DEVICE, line)));
        let mut nobody = world.open::<{{Type}}>(r#"{"host": "plant.example", "port": 1}"#).unwrap();
        let step = nobody.step().unwrap();
        assert!(step.devices.is_none() && step.note.is_some());
    }

    /// What `akri-krustlet dev --record tests/NAME.rec` writes down is a test.
    #[test]
    fn what_was_recorded_is_said_again() {
        akri_handler::fake::replay_all::<{{Type}}>("tests");
    }
}
