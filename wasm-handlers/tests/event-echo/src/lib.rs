//! Follows what its details name, and lists what it saw: a device for each thing, the newest 200.

use akri_handler::multicast::Listener;
use akri_handler::uevents::Monitor;
use akri_handler::watch::Watch;
use akri_handler::{Device, Error, Handler, Request, Step, handler, links};
use std::collections::VecDeque;

#[derive(serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Details {
    /// Subsystems; an empty list for all that are granted.
    uevents: Option<Vec<String>>,
    /// Directories whose changes, and whose entries, are listed.
    watch: Vec<String>,
    /// Groups, as `239.255.255.250:3702` or `239.255.255.250:3702 on eth0`.
    groups: Vec<String>,
    /// Each group is sent this at the first step, and at those at which uevents came.
    say: Option<String>,
    links: bool,
    /// What could not be opened is listed; else it is an error.
    list_errors: bool,
    /// A directory with so many entries is listed, and counted.
    count: Option<String>,
    /// Files that are read.
    read: Vec<String>,
    /// Every so many steps it traps.
    trap_every: Option<u32>,
    /// Opens so many monitors and forgets them.
    forget_monitors: u32,
}

struct EventEcho {
    details: Details,
    monitor: Option<Monitor>,
    watches: Vec<(String, Watch)>,
    listeners: Vec<Listener>,
    seen: VecDeque<String>,
    steps: u32,
}

impl EventEcho {
    fn see(&mut self, what: String) {
        if self.seen.back() != Some(&what) {
            self.seen.push_back(what);
        }
        if self.seen.len() > 200 {
            self.seen.pop_front();
        }
    }

    fn opened<T>(&mut self, what: Result<T, Error>) -> Result<Option<T>, Error> {
        match what {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if self.details.list_errors => {
                self.see(format!("error: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Handler for EventEcho {
    const NAME: &'static str = "event-echo";
    const SHARED: bool = false;
    type Details = Details;

    fn open(request: Request<Details>) -> Result<Self, Error> {
        let mut handler = Self {
            details: request.details,
            monitor: None,
            watches: Vec::new(),
            listeners: Vec::new(),
            seen: VecDeque::new(),
            steps: 0,
        };
        for _ in 0..handler.details.forget_monitors {
            let forgotten = Monitor::open(&[]);
            if let Some(monitor) = handler.opened(forgotten)? {
                std::mem::forget(monitor);
            }
        }
        if let Some(subsystems) = handler.details.uevents.clone() {
            handler.monitor = handler.opened(Monitor::open(&subsystems))?;
        }
        for path in handler.details.watch.clone() {
            if let Some(watch) = handler.opened(Watch::open(&path))? {
                handler.watches.push((path, watch));
            }
        }
        for group in handler.details.groups.clone() {
            let (place, link) = match group.split_once(" on ") {
                Some((place, link)) => (place, Some(link)),
                None => (group.as_str(), None),
            };
            let place = place.parse().map_err(|_| Error::InvalidDetails(format!("{place} is no place")))?;
            if let Some(listener) = handler.opened(Listener::join(place, link))? {
                handler.listeners.push(listener);
            }
        }
        Ok(handler)
    }

    fn step(&mut self) -> Result<Step, Error> {
        self.steps += 1;
        let mut new = Vec::new();
        let mut says = self.steps == 1;
        if let Some(monitor) = &self.monitor {
            let (events, lost) = monitor.take();
            says |= !events.is_empty();
            new.extend(events.iter().map(|event| format!("uevent {} {}", event.action, event.devpath)));
            new.extend((lost > 0).then(|| format!("lost uevents {lost}")));
        }
        for (path, watch) in &self.watches {
            let (names, lost) = watch.take();
            new.extend(names.iter().map(|name| format!("changed {path}/{name}")));
            new.extend(lost.then(|| format!("lost changes {path}")));
            new.extend(akri_handler::fs::list(path)?.iter().map(|name| format!("entry {path}/{name}")));
        }
        for listener in &self.listeners {
            if let Some(text) = self.details.say.as_ref().filter(|_| says) {
                listener.send(text.as_bytes())?;
            }
            let (datagrams, lost) = listener.take(50);
            new.extend(datagrams.iter().map(|datagram| {
                let text = String::from_utf8_lossy(&datagram.payload);
                format!("datagram {} {} {text}", datagram.from, datagram.link)
            }));
            new.extend((lost > 0).then(|| format!("lost datagrams {lost}")));
        }
        if self.details.links {
            new.extend(links::list().iter().map(|link| format!("link {}", link.name)));
        }
        for path in &self.details.read {
            let read = std::fs::read(path).map(|bytes| bytes.len().to_string());
            new.push(format!("read {path}: {}", read.unwrap_or_else(|error| format!("{:?}", error.kind()))));
        }
        if let Some(path) = &self.details.count {
            new.push(format!("entries {}", akri_handler::fs::list(path)?.len()));
        }
        if self.details.trap_every.is_some_and(|every| self.steps.is_multiple_of(every)) {
            panic!("as it was asked to");
        }
        new.into_iter().for_each(|what| self.see(what));
        let mut ids: Vec<_> = self.seen.iter().cloned().collect();
        ids.sort();
        ids.dedup();
        ids.push(format!("steps {}", self.steps));
        Ok(Step::devices(ids.into_iter().map(Device::new).collect()))
    }
}

handler!(EventEcho);
