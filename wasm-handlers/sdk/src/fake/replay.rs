//! A recording in place of the world: what `akri-krustlet dev --record` and `step --record` write is a handler's test.
//!
//! ```no_run
//! # struct Meter;
//! # impl akri_handler::Handler for Meter {
//! #     const NAME: &'static str = "meter";
//! #     const SHARED: bool = false;
//! #     type Details = ();
//! #     fn open(_: akri_handler::Request<()>) -> Result<Self, akri_handler::Error> { Ok(Self) }
//! #     fn step(&mut self) -> Result<akri_handler::Step, akri_handler::Error> { Ok(akri_handler::Step::unchanged()) }
//! # }
//! #[test]
//! fn recordings() {
//!     akri_handler::fake::replay_all::<Meter>("tests");
//! }
//! ```

use super::network::{Sent, Session};
use super::{State, World};
use crate::http::{Answer, Call, ErrorKind};
use crate::links::Link;
use crate::multicast::Datagram;
use crate::tcp::Peer;
use crate::uevents::Uevent;
use crate::{Device, Error, Handler, Permissions, Step};
use akri_recording::{Event, Recording, Said, Script, Turn};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// Steps of one replay.
const MOST_STEPS: usize = 10_000;

/// Replays each recording (`*.rec`) of a directory of the project. Panics where the handler says something else than it has said, or
/// if there is none.
pub fn replay_all<H: Handler>(directory: impl AsRef<Path>) {
    let directory = directory.as_ref();
    let failed = |error: &dyn std::fmt::Display| -> ! { panic!("recordings of {}: {error}", directory.display()) };
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| failed(&error));
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "rec"));
    paths.sort();
    if paths.is_empty() {
        failed(&"there is no file *.rec; `akri-krustlet dev --record FILE` makes one");
    }
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Err(what) = replay::<H>(&text) {
            panic!("{}: {what}", path.display());
        }
    }
}

/// Replays a recording. The error says where the handler says something else than it has said.
pub fn replay<H: Handler>(text: &str) -> Result<(), String> {
    let recording = Recording::read(text).map_err(|error| error.to_string())?;
    let world = World::new();
    world.set_clock(recording.clock);
    world.set_random(recording.random);
    recording.volumes.iter().for_each(|path| world.directory(path));
    world.0.borrow_mut().network.script = Some(Script::of(&recording));
    let mut said: Vec<Said> = Vec::new();
    let mut say = |new: Said| {
        if said.last() != Some(&new) {
            said.push(new);
        }
    };
    world.happen();
    let properties = recording.properties_with(&[]);
    let properties = properties.iter().map(|(name, value)| (*name, value.as_slice()));
    match world.open_with::<H>(&recording.details, properties) {
        Err(error) => say(of_error(error)),
        Ok(mut handler) => {
            for number in 0.. {
                if number == MOST_STEPS {
                    return Err(format!(
                        "the recording has more than {MOST_STEPS} steps: end it earlier, by its line `end`"
                    ));
                }
                let stepped = handler.step();
                let is_end = matches!(stepped, Err(Error::InvalidDetails(_)));
                let wake = match &stepped {
                    Ok(Step { wake_after, .. }) => {
                        wake_after.map(|after| world.now() + after.max(Duration::from_millis(100)))
                    }
                    Err(Error::InvalidDetails(_)) => None,
                    Err(_) => Some(world.now() + Duration::from_secs(1)),
                };
                match stepped {
                    Ok(Step { devices: Some(devices), .. }) => say(list(devices)),
                    Ok(_) => {}
                    Err(error) => say(of_error(error)),
                }
                if is_end || !world.wait(wake, recording.end) {
                    break;
                }
            }
        }
    }
    let missing = world.0.borrow().network.script.as_ref().map(|script| script.missing().clone()).unwrap_or_default();
    compare(&recording.said(), &said).map_err(|difference| match missing.is_empty() {
        true => difference,
        false => format!("{difference}\nnot in the recording: {}", missing.into_iter().collect::<Vec<_>>().join("; ")),
    })
}

/// By id: what is in a directory has no order.
fn list(devices: Vec<Device>) -> Said {
    let mut devices: Vec<akri_recording::Device> = devices.into_iter().map(Into::into).collect();
    devices.sort_by(|one, other| one.id.cmp(&other.id));
    Said::List(devices)
}

fn of_error(error: Error) -> Said {
    match error {
        Error::InvalidDetails(what) => Said::InvalidDetails(what),
        Error::Unavailable(what) => Said::Unavailable(what),
        Error::Internal(what) => Said::Internal(what),
    }
}

fn compare(recorded: &[&Said], said: &[Said]) -> Result<(), String> {
    for (number, (recorded, said)) in recorded.iter().zip(said).enumerate() {
        if *recorded != said {
            let line =
                |said: &Said| akri_recording::line(Duration::ZERO, Some(&Event::Said(said.clone())))[6..].to_owned();
            return Err(format!(
                "what the handler says is not what it said in the recording (number {}).\nrecorded: {}said: {}",
                number + 1,
                line(recorded),
                line(said)
            ));
        }
    }
    match recorded.len() == said.len() {
        true => Ok(()),
        false => Err(format!("the handler said {} things in the recording, and says {}", recorded.len(), said.len())),
    }
}

impl From<Device> for akri_recording::Device {
    fn from(device: Device) -> Self {
        let mut properties: Vec<_> = device.properties;
        properties.sort();
        let letters = |of: Permissions| {
            let all = [(of.read, 'r'), (of.write, 'w'), (of.mknod, 'm')];
            all.iter().filter(|(has, _)| *has).map(|(_, letter)| letter).collect()
        };
        let nodes = device.device_files.into_iter();
        Self {
            id: device.id,
            properties,
            mounts: device.mounts,
            nodes: nodes.map(|(container, host, of)| (container, host, letters(of))).collect(),
        }
    }
}

impl World {
    fn now(&self) -> Duration {
        self.0.borrow().now
    }

    fn directory(&self, path: &str) {
        std::fs::create_dir_all(self.path(path)).expect("made");
    }

    /// What has come by now in the recording comes; whether that is something that a handler may follow.
    fn happen(&self) -> bool {
        let now = self.now();
        let events = self.0.borrow_mut().network.script.as_mut().map(|script| script.changes_until(now));
        let events = events.unwrap_or_default();
        let is_news = |event: &Event| {
            matches!(event, Event::Uevent { .. } | Event::Group { .. } | Event::Changed { .. } | Event::Lost(..))
        };
        let has_come = events.iter().any(is_news);
        events.into_iter().for_each(|event| self.happens(event));
        has_come
    }

    fn lose(&self, kind: &str, count: u32) {
        fn each<T, Of>(sources: &[super::Source<T, Of>], count: u32) {
            for waiting in sources.iter().filter_map(|source| source.waiting.upgrade()) {
                let lost = &mut waiting.borrow_mut().1;
                *lost = lost.saturating_add(count);
            }
        }
        let state = self.0.borrow();
        match kind {
            "uevents" => each(&state.monitors, count),
            "groups" => each(&state.listeners, count),
            _ => each(&state.watches, count),
        }
    }

    fn happens(&self, event: Event) {
        match event {
            Event::Uevent { action, path, properties } => {
                let of = |key: &str| properties.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
                let subsystem = of("SUBSYSTEM").unwrap_or_default();
                self.uevent(Uevent { action, devpath: path, subsystem, properties });
            }
            Event::Group { place, link, from, payload } => self.datagram(place, Datagram { from, link, payload }),
            Event::Lost(kind, count) => self.lose(&kind, count),
            Event::Link { name, addresses, multicast, loopback } => {
                let mut state = self.0.borrow_mut();
                state.links.retain(|link| link.name != name);
                state.links.push(Link { name, addresses, multicast, loopback });
            }
            Event::LinkGone(name) => self.0.borrow_mut().links.retain(|link| link.name != name),
            Event::File { path, content } => {
                self.make_room(&path);
                std::fs::write(self.path(path), content).expect("written");
            }
            Event::Directory(path) => {
                if self.path(&path).symlink_metadata().is_ok_and(|there| !there.is_dir()) {
                    self.remove(&path);
                }
                self.directory(&path);
            }
            Event::Symlink { path, to } => {
                self.make_room(&path);
                std::os::unix::fs::symlink(to, self.path(path)).expect("linked");
            }
            Event::Gone(path) if self.path(&path).symlink_metadata().is_ok() => self.remove(path),
            Event::Changed { directory, name } => self.change(&directory, &name),
            _ => {}
        }
    }

    /// For a file, where another one may be.
    fn make_room(&self, path: &str) {
        let place = self.path(path);
        if place.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            self.remove(path);
        }
        std::fs::create_dir_all(place.parent().expect("it has a name")).expect("made");
    }

    /// Lets time pass until the next step; false if the recording ends before.
    fn wait(&self, wake: Option<Duration>, end: Duration) -> bool {
        loop {
            // As a node's inbox has it: what stays is not told again.
            if self.happen() && self.wants_step() {
                return self.now() <= end;
            }
            let change = self.0.borrow().network.script.as_ref().and_then(Script::next_change);
            let Some(next) = wake.into_iter().chain(change).min() else { return false };
            if next > end {
                return false;
            }
            {
                let mut state = self.0.borrow_mut();
                state.now = state.now.max(next);
            }
            if wake.is_some_and(|wake| wake <= self.now()) {
                self.happen();
                return true;
            }
        }
    }
}

fn script(state: &mut State) -> Option<&mut Script> {
    state.network.script.as_mut()
}

/// What answers a datagram, if a recording does.
pub(super) fn datagrams(state: &mut State, sent: &Sent) -> Option<Vec<(Duration, crate::udp::Datagram)>> {
    let answers = script(state)?.datagrams(sent.from, sent.to);
    let datagram =
        |(after, from, payload): (Duration, SocketAddr, Vec<u8>)| (after, crate::udp::Datagram { from, payload });
    Some(answers.into_iter().map(datagram).collect())
}

pub(super) fn answer(state: &mut State, call: &Call) -> Option<Result<Answer, ErrorKind>> {
    let Some(exchange) = script(state)?.request(&call.method, &call.url) else {
        return Some(Err(ErrorKind::Failed("not in the recording".to_owned())));
    };
    let failed = |why: &str| match why {
        "denied" => ErrorKind::Denied,
        "timeout" => ErrorKind::Timeout,
        "too-long" => ErrorKind::TooLong,
        "refused" => ErrorKind::Failed("nobody listens there".to_owned()),
        "not-found" => ErrorKind::Failed("its name leads nowhere".to_owned()),
        "unreachable" => ErrorKind::Failed("there is no way there".to_owned()),
        "closed" => ErrorKind::Failed("the server closed the connection".to_owned()),
        "certificate" => ErrorKind::Failed(
            "its certificate is not one that the node trusts (a rule `http URL any-certificate` takes any)".to_owned(),
        ),
        "tls" => ErrorKind::Failed("TLS failed".to_owned()),
        "no-http" => ErrorKind::Failed("the server does not speak HTTP".to_owned()),
        _ => ErrorKind::Failed("the request failed".to_owned()),
    };
    if exchange.after > call.timeout {
        return Some(Err(ErrorKind::Timeout));
    }
    Some(match &exchange.failed {
        Some(why) => Err(failed(why)),
        // Its handler gave it up.
        None if exchange.status == 0 => Err(ErrorKind::Timeout),
        None => {
            let text = |(name, value): (String, Vec<u8>)| (name, String::from_utf8_lossy(&value).into_owned());
            let headers = exchange.headers.into_iter().map(text).collect();
            Ok(Answer { status: exchange.status, headers, body: exchange.body })
        }
    })
}

/// A connection by the recording, or why there is none.
pub(super) fn session(state: &mut State, peer: &Peer) -> Option<Result<Session, &'static str>> {
    script(state)?;
    let addresses = match peer.host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => script(state)?.name(&peer.host).unwrap_or_default(),
    };
    let mut failed = "its name leads nowhere";
    for address in addresses {
        let mut conversation = match script(state)?.connection(SocketAddr::new(address, peer.port)) {
            Some(conversation) => conversation,
            None => {
                failed = "not in the recording";
                continue;
            }
        };
        failed = match conversation.failed.as_deref() {
            None => {
                return Some(Ok(Box::new(move |sent| {
                    if !sent.is_empty() {
                        conversation.wrote();
                    }
                    match conversation.turn() {
                        Turn::Says(_, bytes) => {
                            conversation.taken();
                            Some(bytes)
                        }
                        Turn::Ends | Turn::Breaks => None,
                        Turn::Asks | Turn::Silent => Some(Vec::new()),
                    }
                })));
            }
            Some("refused") => "nobody listens there",
            Some("unreachable") => "there is no way there",
            Some("denied") => {
                "the pod does not grant it (annotation akri-krustlet/network; the container's log says more)"
            }
            Some("closed") => "it closed the connection",
            Some(_) => "no answer in time",
        };
    }
    Some(Err(failed))
}

pub(super) fn name(state: &mut State, name: &str) -> Option<Vec<IpAddr>> {
    script(state)?.name(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Request, fs, time, udp, uevents};

    /// Asks by a datagram, reads a file, and follows uevents.
    struct Meter(uevents::Monitor);

    impl Handler for Meter {
        const NAME: &'static str = "meter";
        const SHARED: bool = false;
        type Details = String;

        fn open(request: Request<String>) -> Result<Self, Error> {
            assert_eq!(request.details, "ask");
            assert_eq!(request.properties.get("token"), Some(&Some(b"withheld".to_vec())));
            Ok(Self(uevents::Monitor::open(&[])?))
        }

        fn step(&mut self) -> Result<Step, Error> {
            self.0.take();
            let socket = udp::Socket::bind(IpAddr::from([0; 4]))?;
            socket.send("239.0.0.1:4000".parse().unwrap(), &crate::random::bytes::<4>())?;
            let (until, mut devices) = (time::now() + Duration::from_secs(1), Vec::new());
            while let Some((_, datagram)) = udp::receive(&[&socket], until) {
                devices.push(Device::new(datagram.from.ip().to_string()));
            }
            let file = fs::read("/data/list").unwrap_or_default();
            devices.extend(file.lines().map(Device::new));
            if devices.is_empty() {
                return Err(Error::Unavailable("nobody".to_owned()));
            }
            Ok(Step::devices(devices).wake_after(Duration::from_secs(10)))
        }
    }

    const TEXT: &str = "akri-krustlet recording 1\nhandler meter\nrandom 7\ndetails \"\\\"ask\\\"\"\nproperty token withheld\n\n\
        0.001 udp 0.0.0.0 > 239.0.0.1:4000 x\"01 02 03 04\"\n\
        0.301 udp 0.0.0.0 < 192.0.2.7:4000 \"me\"\n\
        1.002 file /data/list \"a\\n\"\n\
        1.003 list\n  \"192.0.2.7\"\n  \"a\"\n\
        5 gone /data/list\n\
        5 uevent add /devices/x SUBSYSTEM=tty\n\
        5.1 udp 0.0.0.0 > 239.0.0.1:4000 x\"01 02 03 05\"\n\
        6.1 unavailable \"nobody\"\n\
        7.1 udp 0.0.0.0 > 239.0.0.1:4000 x\"01 02 03 05\"\n\
        7.2 udp 0.0.0.0 < 192.0.2.7:4000 \"me\"\n\
        8.1 list\n  \"192.0.2.7\"\n\
        9 end\n";

    #[test]
    fn a_recording_is_a_test_that_passes_each_time_and_can_fail() {
        for _ in 0..1000 {
            replay::<Meter>(TEXT).unwrap();
        }
        let error =
            replay::<Meter>(&TEXT.replace("x\"01 02 03 04\"", "\"?\"").replace("\"a\"\n5", "\"b\"\n5")).unwrap_err();
        assert!(error.contains("number 1") && error.contains("recorded: list\n  \"192.0.2.7\"\n  \"b\"\n"), "{error}");
        let error = replay::<Meter>(&TEXT.replace("239.0.0.1", "239.0.0.2")).unwrap_err();
        assert!(error.contains("not in the recording: a datagram to 239.0.0.1:4000"), "{error}");
        let error = replay::<Meter>(
            &TEXT.replace("9 end", "6.5 end").replace("7.1", "6.5").replace("7.2", "6.5").replace("8.1", "6.5"),
        );
        assert!(error.unwrap_err().contains("said 3 things in the recording, and says 2"));
        let error = replay::<Meter>(&TEXT.replace("9 end", "9999999 end")).unwrap_err();
        assert!(error.contains("more than 10000 steps"), "{error}");
        assert!(replay::<Meter>("nothing").unwrap_err().contains("line 1"));
    }
}
