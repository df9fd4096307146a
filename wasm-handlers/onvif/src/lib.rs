//! Akri's ONVIF discovery handler: cameras that answer probes or say hello.
//!
//! # Flow
//! A probe on every link ([`discovery`]), each interval, and what cameras announce meanwhile -> [`cameras`], which asks their
//! services ([`device_service`]) and filters -> devices. A camera stays for some probes that it misses.

mod cameras;
mod credentials;
mod details;
mod device_service;
mod digest;
mod discovery;
#[cfg(test)]
mod tests;
mod xml;

use akri_handler::multicast::Listener;
use akri_handler::{Error, Handler, Request, Step, handler, time};
use cameras::Cameras;
use details::Details;
use discovery::{Announcement, GROUP};
use std::time::Duration;

/// Announcements that are read at one step.
const MOST_ANNOUNCEMENTS: u32 = 64;

struct Onvif {
    cameras: Cameras,
    window: Duration,
    interval: Duration,
    listener: Result<Listener, String>,
    /// When the next probe is due.
    due: Duration,
}

impl Handler for Onvif {
    const NAME: &'static str = "onvif";
    const SHARED: bool = true;
    type Details = Details;

    fn schema() -> Option<String> {
        Some(details::SCHEMA.to_owned())
    }

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let Request { details, properties } = request;
        Ok(Self {
            window: Duration::from_secs(details.discovery_timeout_seconds.into()),
            interval: Duration::from_secs_f64(details.interval),
            cameras: Cameras::new(details, &properties),
            listener: Listener::join(GROUP, None).map_err(|error| error.to_string()),
            due: time::now(),
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let mut notes: Vec<_> = self.listener.as_ref().err().cloned().into_iter().collect();
        let (announced, _) =
            self.listener.as_ref().map(|listener| listener.take(MOST_ANNOUNCEMENTS)).unwrap_or_default();
        for announcement in announced.iter().filter_map(|datagram| discovery::announcement(&datagram.payload)) {
            match announcement {
                Announcement::Hello(camera) => self.cameras.has_said_hello(camera),
                Announcement::Bye(uuid) => self.cameras.has_said_bye(&uuid),
            }
        }
        let mut failed = None;
        if self.due <= time::now() {
            self.due = time::now() + self.interval;
            match discovery::probe(self.window) {
                Ok(found) => self.cameras.have_answered(found),
                Err(why) => failed = Some(why),
            }
        }
        self.cameras.ask();
        if let Some(why) = failed {
            // What is there is not known to have gone.
            return Err(Error::Unavailable(format!("cameras cannot be probed: {why}")));
        }
        notes.extend(self.cameras.notes());
        let rest = match self.cameras.are_all_asked() {
            true => self.due.saturating_sub(time::now()),
            false => Duration::ZERO,
        };
        let step = Step::devices(self.cameras.devices()).wake_after(rest);
        Ok(if notes.is_empty() { step } else { step.note(notes.join("; ")) })
    }
}

handler!(Onvif);
