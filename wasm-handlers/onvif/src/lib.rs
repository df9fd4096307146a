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
use discovery::{Announcement, GROUP, Senders};
use std::time::Duration;

/// Announcements that are read at one step, and of one sender.
const MOST_ANNOUNCEMENTS: u32 = 64;
const MOST_OF_ONE: usize = 8;
/// How long services are asked from the beginning of a step on: the last ones may take 3 s more, and a step has 10 s.
const ASKING: Duration = Duration::from_secs(6);
/// How long the first list waits for cameras that are slow.
const FIRST_LIST: Duration = Duration::from_secs(10);
/// The longest window for answers to a probe.
const MOST_WINDOW: Duration = Duration::from_secs(5);

struct Onvif {
    cameras: Cameras,
    window: Duration,
    interval: Duration,
    listener: Result<Listener, String>,
    /// When the next probe is due.
    due: Duration,
    /// A list was told: from then on each change is.
    has_told: bool,
    /// When it is told at the latest, whoever keeps it waiting.
    tells: Duration,
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
            window: Duration::from_secs(details.discovery_timeout_seconds.into()).min(MOST_WINDOW),
            interval: Duration::from_secs_f64(details.interval),
            cameras: Cameras::new(details, &properties),
            listener: Listener::join(GROUP, None).map_err(|error| error.to_string()),
            due: time::now(),
            has_told: false,
            tells: time::now() + FIRST_LIST,
        })
    }

    fn step(&mut self) -> Result<Step, Error> {
        let began = time::now();
        let mut troubles: Vec<_> = self.listener.as_ref().err().cloned().into_iter().collect();
        let (announced, _) =
            self.listener.as_ref().map(|listener| listener.take(MOST_ANNOUNCEMENTS)).unwrap_or_default();
        let mut of_sender = Senders::new();
        for datagram in announced {
            let Some(announcement) = discovery::announcement(&datagram.payload) else { continue };
            let said = &mut of_sender.entry(datagram.from.ip()).or_default().datagrams;
            *said += 1;
            match announcement {
                _ if *said > MOST_OF_ONE => {}
                Announcement::Hello(camera) => self.cameras.has_said_hello(camera),
                Announcement::Bye(uuid) => self.cameras.has_said_bye(&uuid),
            }
        }
        let mut failed = None;
        if self.due <= time::now() {
            self.due = time::now() + self.interval;
            match discovery::probe(self.window) {
                Ok((found, away)) => {
                    self.cameras.have_answered(found);
                    troubles.extend(away);
                }
                Err(why) => failed = Some(why),
            }
        }
        self.cameras.ask(began + ASKING);
        if let Some(why) = failed {
            // What is there is not known to have gone.
            return Err(Error::Unavailable(format!("cameras cannot be probed: {why}")));
        }
        troubles.extend(self.cameras.troubles());
        let wanted = self.cameras.wants();
        let next = wanted.map_or(self.due, |wanted| wanted.min(self.due));
        // The first list has all that were there before a restart: those who are slow, too.
        self.has_told |= wanted.is_none() || self.tells <= time::now();
        let step = if self.has_told { Step::devices(self.cameras.devices()) } else { Step::unchanged() };
        Ok(step.wake_after(next.saturating_sub(time::now())).troubles(&troubles))
    }
}

handler!(Onvif);
akri_handler::needs! {
    // Cameras say where their service is, and nearly all have it there.
    network: [
        "udp 239.255.255.250:3702",
        "join 239.255.255.250:3702",
        "http http://[0.0.0.0/0]:1-65535/onvif/*",
    ],
    optional_network: ["http https://[0.0.0.0/0]:1-65535/onvif/* any-certificate"],
    links: ["*"],
}
