//! Services of the local network that say by mDNS (RFC 6762) and DNS-SD (RFC 6763) that they are there.
//!
//! # Flow
//! A question on every link, each interval ([`question`]) -> answers, and what services announce meanwhile -> [`services`] ->
//! devices. A service stays for some questions that it misses; one that says goodbye has gone.

mod question;
mod services;
#[cfg(test)]
mod tests;

use akri_handler::multicast::Listener;
use akri_handler::{Error, Handler, Request, Step, Text, handler, time};
use question::GROUP;
use services::Services;
use std::time::Duration;

/// Announcements that are read at one step.
const MOST_ANNOUNCEMENTS: u32 = 64;
/// Services that one of them may name and that were not known.
const MOST_ANNOUNCED: usize = 16;

/// What the node checks before it asks.
const SCHEMA: &str = r#"{
    "type": "object",
    "properties": {
        "kind": {"type": "string", "pattern": "^_[^.]+\\._(tcp|udp)$"},
        "domain": {"type": "string", "pattern": "^[^.]+(\\.[^.]+)*$"},
        "name": {"type": ["string", "number", "boolean"]},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "interval": {"type": "number", "minimum": 1, "maximum": 86400},
        "missedQuestions": {"type": "integer", "minimum": 0, "maximum": 1000}
    }
}"#;

/// `discoveryDetails`, with the keys that Akri proposed, and two more.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    /// As `_rtsp._tcp`; all kinds without it.
    kind: Option<String>,
    #[serde(default = "local")]
    domain: String,
    name: Option<Text>,
    port: Option<u16>,
    #[serde(default = "ten")]
    interval: f64,
    #[serde(default = "three")]
    missed_questions: u32,
}

fn local() -> String {
    "local".to_owned()
}

fn ten() -> f64 {
    10.0
}

fn three() -> u32 {
    3
}

struct Zeroconf {
    services: Services,
    interval: Duration,
    listener: Result<Listener, String>,
    /// When the next question is due.
    due: Duration,
}

impl Handler for Zeroconf {
    const NAME: &'static str = "zeroconf";
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        Some(SCHEMA.to_owned())
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let interval = Duration::from_secs_f64(request.details.interval);
        Ok(Self {
            services: Services::new(request.details),
            interval,
            listener: Listener::join(GROUP, None).map_err(|error| error.to_string()),
            due: time::now(),
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let (announced, _) =
            self.listener.as_ref().map(|listener| listener.take(MOST_ANNOUNCEMENTS)).unwrap_or_default();
        for datagram in announced {
            self.services.have_said(&datagram.payload, MOST_ANNOUNCED);
        }
        let asked = if self.due <= time::now() {
            self.due = time::now() + self.interval;
            self.services.are_asked();
            question::ask_who(&mut self.services)
        } else {
            question::ask_rest(&mut self.services)
        };
        asked.map_err(|why| Error::Unavailable(format!("services cannot be asked: {why}")))?;
        let step = Step::devices(self.services.devices()).wake_after(self.due.saturating_sub(time::now()));
        Ok(match &self.listener {
            Ok(_) => step,
            Err(why) => step.note(why),
        })
    }
}

handler!(Zeroconf);
akri_handler::needs! {
    network: ["udp 224.0.0.251:5353", "join 224.0.0.251:5353"],
    links: ["*"],
}
