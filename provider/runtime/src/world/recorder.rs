//! Writes down what a guest sees and says, while it works.

use crate::preopen::Preopen;
use akri_recording::{Event, Http, Recording, Said, Secrets, Tcp, WITHHELD};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Largest recording, in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// Largest file that is written down, in bytes.
const MOST_FILE: u64 = 256 << 10;
/// Entries of a directory that are.
const MOST_ENTRIES: usize = 10_000;
/// Links on the way to a file.
const MOST_LINKS: usize = 40;

/// Where a recording goes.
#[derive(Clone, Debug)]
pub struct RecordTo {
    /// The file, which is written anew for each request.
    pub path: PathBuf,
    /// Whether values of the Configuration and headers with credentials are in it.
    pub secrets: bool,
}

/// Writes down what one instance sees.
#[derive(Debug)]
pub struct Recorder {
    started: Instant,
    seed: u64,
    secrets: Secrets,
    /// On the host, and in the guest.
    directories: Vec<(PathBuf, String)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Where the next step is written.
    position: u64,
    is_full: bool,
    number: u32,
    /// What was seen before this step, and what was written of it.
    seen: BTreeMap<String, Event>,
    /// Files that are known by their names alone.
    listed: BTreeSet<String>,
    /// Directories that were listed.
    directories: BTreeSet<String>,
    /// Of the machine, which was like this since the step before.
    before: Vec<Event>,
    /// What this step was asked for.
    taken: Vec<Event>,
    during: Vec<(Duration, Event)>,
    /// The last that was new.
    said: Option<Said>,
    step_began: Duration,
    step_ended: Duration,
    /// Where sockets of the guest are bound, and to whom they are connected.
    sockets: BTreeMap<u32, (IpAddr, Option<SocketAddr>)>,
    /// Where its connections go.
    connecting: BTreeMap<u32, SocketAddr>,
}

impl Recorder {
    /// Begins a recording.
    pub fn begin(
        to: &RecordTo,
        handler: &str,
        details: &str,
        properties: &[(String, Option<Vec<u8>>)],
        preopens: &[Preopen],
    ) -> io::Result<Self> {
        let seed = u64::from_le_bytes(random()?);
        let secrets = match to.secrets {
            true => Secrets::none(),
            false => Secrets::of(properties.iter().filter_map(|(_, value)| value.as_deref())),
        };
        let shown = |(name, value): &(String, Option<Vec<u8>>)| {
            let value = if secrets.leave_out_values() { None } else { Some(value.clone().unwrap_or_default()) };
            (name.clone(), value)
        };
        let head = Recording {
            handler: handler.to_owned(),
            clock: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            random: seed,
            details: details.to_owned(),
            properties: properties.iter().map(shown).collect(),
            volumes: preopens.iter().map(|preopen| preopen.guest.clone()).collect(),
            ..Recording::default()
        };
        let head = akri_recording::header(&head);
        let file = create(&to.path)?;
        file.write_all_at(head.as_bytes(), 0)?;
        let directories = preopens.iter().filter_map(|preopen| {
            let host = preopen.host.join(preopen.beneath.as_deref().unwrap_or(Path::new("")));
            Some((host.canonicalize().ok()?, preopen.guest.clone()))
        });
        let state = State {
            file,
            position: head.len() as u64,
            is_full: false,
            number: 0,
            seen: BTreeMap::new(),
            listed: BTreeSet::new(),
            directories: BTreeSet::new(),
            before: Vec::new(),
            taken: Vec::new(),
            during: Vec::new(),
            said: None,
            step_began: Duration::ZERO,
            step_ended: Duration::ZERO,
            sockets: BTreeMap::new(),
            connecting: BTreeMap::new(),
        };
        let directories = directories.collect();
        Ok(Self { started: Instant::now(), seed, secrets, directories, state: Mutex::new(state) })
    }

    /// What the guest's random numbers come from.
    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub fn step(&self) {
        self.state().step_began = self.started.elapsed();
    }

    /// The guest has answered; none: it said nothing new.
    pub fn said(&self, said: Option<Said>) {
        let now = self.started.elapsed();
        let mut state = self.state();
        if let Some(said) = said.filter(|said| state.said.as_ref() != Some(said)) {
            state.said = Some(said.clone());
            state.during.push((now, Event::Said(said)));
        }
        state.write_step(&self.secrets, now);
        state.step_ended = now;
        state.step_began = now;
    }

    /// Something that happens now.
    pub(crate) fn note(&self, event: Event) {
        let now = self.started.elapsed();
        self.state().during.push((now, event));
    }

    /// Something that has come since the step before.
    pub(crate) fn took(&self, event: Event) {
        self.state().taken.push(event);
    }

    /// A number for a connection or a request.
    pub(crate) fn number(&self) -> u32 {
        let mut state = self.state();
        state.number += 1;
        state.number
    }

    pub(crate) fn bound(&self, stream: u32, own: IpAddr, peer: Option<SocketAddr>) {
        self.state().sockets.insert(stream, (own, peer));
    }

    /// A datagram of a stream of the guest's.
    pub(crate) fn datagram(&self, stream: u32, sent: bool, peer: Option<SocketAddr>, payload: &[u8]) {
        let of = self.state().sockets.get(&stream).copied();
        let Some((own, connected)) = of else { return };
        if let Some(peer) = peer.or(connected) {
            self.note(Event::Udp { own, sent, peer, payload: payload.to_owned() });
        }
    }

    pub(crate) fn connects(&self, socket: u32, to: SocketAddr) {
        self.state().connecting.insert(socket, to);
    }

    /// Whether there is a connection now; its number if there is.
    pub(crate) fn connected(&self, socket: u32, failed: Option<&str>) -> Option<u32> {
        let to = self.state().connecting.remove(&socket)?;
        let number = self.number();
        match failed {
            Some(why) => {
                self.note(Event::Tcp(number, Tcp::Failed(to, why.to_owned())));
                None
            }
            None => {
                self.note(Event::Tcp(number, Tcp::Open(to)));
                Some(number)
            }
        }
    }

    /// The links that there are.
    pub(crate) fn links(&self, links: Vec<Event>) {
        let mut state = self.state();
        let key = |event: &Event| match event {
            Event::Link { name, .. } | Event::LinkGone(name) => Some(format!("link {name}")),
            _ => None,
        };
        let there: BTreeSet<_> = links.iter().filter_map(key).collect();
        let gone: Vec<_> = state
            .seen
            .iter()
            .filter(|(of, event)| matches!(event, Event::Link { .. }) && !there.contains(*of))
            .filter_map(|(of, _)| of.strip_prefix("link ").map(str::to_owned))
            .collect();
        for event in links.into_iter().chain(gone.into_iter().map(Event::LinkGone)) {
            if let Some(key) = key(&event) {
                state.sees(key, event);
            }
        }
    }

    /// The guest has looked at a path of the host, or at what it leads to.
    pub(crate) fn looked(&self, path: &Path) {
        let Some((root, guest)) = self.directories.iter().find(|(root, _)| path.starts_with(root)) else { return };
        let Ok(rest) = path.strip_prefix(root) else { return };
        let mut left: VecDeque<PathBuf> = parts(rest);
        let (mut here, mut links) = (PathBuf::new(), 0);
        let mut state = self.state();
        while let Some(part) = left.pop_front() {
            if part == Path::new("..") {
                if !here.pop() {
                    return;
                }
                continue;
            }
            here.push(part);
            let (host, name) = (root.join(&here), guest_path(guest, &here));
            match std::fs::symlink_metadata(&host) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    state.sees_file(name.clone(), Event::Gone(name));
                    return;
                }
                Err(_) => return,
                Ok(metadata) if metadata.is_symlink() => {
                    let Ok(to) = std::fs::read_link(&host) else { return };
                    links += 1;
                    if to.is_absolute() || links > MOST_LINKS {
                        return;
                    }
                    state.sees_file(name.clone(), Event::Symlink { path: name, to: to.display().to_string() });
                    here.pop();
                    for part in parts(&to).into_iter().rev() {
                        left.push_front(part);
                    }
                }
                Ok(metadata) if metadata.is_file() && left.is_empty() => {
                    if let Some(content) = content(&host) {
                        let content = self.secrets.without(&content);
                        state.sees_file(name.clone(), Event::File { path: name, content });
                    }
                }
                Ok(_) if left.is_empty() => state.sees_file(name.clone(), Event::Directory(name)),
                Ok(_) => {}
            }
        }
    }

    /// The guest has listed a directory of the host.
    pub(crate) fn listed(&self, path: &Path) {
        self.looked(path);
        let Some((root, guest)) = self.directories.iter().find(|(root, _)| path.starts_with(root)) else { return };
        let Ok(entries) = std::fs::read_dir(path) else { return };
        let Ok(rest) = path.strip_prefix(root) else { return };
        let directory = guest_path(guest, rest);
        let above = directory.trim_end_matches('/');
        let mut there = BTreeSet::new();
        let mut state = self.state();
        for entry in entries.flatten().take(MOST_ENTRIES) {
            let Ok(kind) = entry.file_type() else { continue };
            let name = guest_path(guest, &rest.join(entry.file_name()));
            there.insert(name.clone());
            if kind.is_symlink() {
                if let Ok(to) = std::fs::read_link(entry.path()) {
                    state.sees_file(name.clone(), Event::Symlink { path: name, to: to.display().to_string() });
                }
            } else if kind.is_dir() {
                state.sees_file(name.clone(), Event::Directory(name));
            } else if kind.is_file() && !state.seen.contains_key(&format!("file {name}")) {
                if state.directories.contains(above) && !state.listed.contains(&name) {
                    state.sees(format!("file {name}"), Event::Gone(name.clone()));
                }
                state.listed.insert(name);
            }
        }
        let is_child = |path: &str| {
            let rest = path.strip_prefix(above).and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| !rest.contains('/'))
        };
        let known = state.seen.iter().filter(|(_, event)| !matches!(event, Event::Gone(_)));
        let known = known.filter_map(|(of, _)| of.strip_prefix("file ")).chain(state.listed.iter().map(String::as_str));
        let gone: Vec<_> = known.filter(|path| is_child(path) && !there.contains(*path)).map(str::to_owned).collect();
        for path in gone {
            state.sees_file(path.clone(), Event::Gone(path));
        }
        state.directories.insert(above.to_owned());
    }

    /// A path of the guest's on the host, for what it is told of by name.
    pub(crate) fn host_path(&self, guest: &str) -> Option<PathBuf> {
        let of = self.directories.iter().filter(|(_, of)| Path::new(guest).starts_with(of));
        let (root, of) = of.max_by_key(|(_, of)| of.len())?;
        Some(root.join(Path::new(guest).strip_prefix(of).ok()?))
    }
}

impl State {
    fn sees_file(&mut self, path: String, event: Event) {
        let key = format!("file {path}");
        let was_listed = self.listed.remove(&path);
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        if was_listed && !matches!(event, Event::File { .. }) {
            // It was there, whatever was in it.
            self.sees(key.clone(), Event::File { path: path.clone(), content: Vec::new() });
        } else if !was_listed
            && !self.seen.contains_key(&key)
            && self.directories.contains(directory)
            && !matches!(event, Event::Gone(_))
        {
            // Its directory was listed without it: it was not there.
            self.sees(key.clone(), Event::Gone(path));
        }
        self.sees(key, event);
    }

    fn sees(&mut self, key: String, event: Event) {
        if self.seen.get(&key) != Some(&event) {
            self.before.push(event.clone());
            self.seen.insert(key, event);
        }
    }

    /// What is written is in the order in which it comes in a replay: what was so before the step, what it was asked for, what it did.
    fn write_step(&mut self, secrets: &Secrets, now: Duration) {
        let began = self.step_began;
        // After the step before, also where that was at the very beginning.
        let ended = began.min(self.step_ended + Duration::from_millis(1));
        let before = std::mem::take(&mut self.before).into_iter().map(|event| (ended, event));
        let taken = std::mem::take(&mut self.taken).into_iter().map(|event| (began, event));
        let during = std::mem::take(&mut self.during);
        let text: String = before
            .chain(taken)
            .chain(during)
            .map(|(at, event)| akri_recording::line(at, Some(&without_secrets(event, secrets))))
            .collect();
        self.write(&text, now);
    }

    /// The file is a whole recording each time, whenever this process may end.
    fn write(&mut self, text: &str, now: Duration) {
        if self.is_full {
            return;
        }
        let mut text = text.to_owned();
        self.is_full = self.position + text.len() as u64 > MOST_BYTES;
        if self.is_full {
            "# The recording ends here: it would be larger than 16 MiB.\n".clone_into(&mut text);
        }
        let unread = self.listed.iter().map(|path| Event::File { path: path.clone(), content: Vec::new() });
        let rest: String = unread.map(|event| akri_recording::line(now, Some(&event))).collect();
        let end = akri_recording::line(now, None);
        let next = self.position + text.len() as u64;
        text.push_str(&rest);
        text.push_str(&end);
        let written = self.file.write_all_at(text.as_bytes(), self.position);
        if let Err(error) = written.and_then(|()| self.file.set_len(self.position + text.len() as u64)) {
            self.is_full = true;
            tracing::error!(%error, "the recording cannot be written; it ends here");
        }
        self.position = next;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let now = self.started.elapsed();
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.write_step(&self.secrets, now);
    }
}

/// How a recording begins.
const FIRST: &[u8] = b"akri-krustlet recording ";

/// Another file than a recording is not written over.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.write(true).mode(0o600);
    match options.clone().create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        opened => return opened,
    }
    let mut first = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, FIRST.len() as u64), &mut first)?;
    if !first.is_empty() && first != FIRST {
        return Err(io::Error::other("it is there already and is no recording; name another file"));
    }
    options.truncate(true).open(path)
}

fn random() -> io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

fn content(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path).ok()?, MOST_FILE), &mut content).ok()?;
    Some(content)
}

fn parts(path: &Path) -> VecDeque<PathBuf> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

fn guest_path(guest: &str, rest: &Path) -> String {
    match rest.as_os_str().is_empty() {
        true => guest.to_owned(),
        false => format!("{}/{}", guest.trim_end_matches('/'), rest.display()),
    }
}

fn without_secrets(event: Event, secrets: &Secrets) -> Event {
    let bytes = |bytes: Vec<u8>| secrets.without(&bytes);
    let header = |name: String, value: Vec<u8>| {
        let value = if secrets.is_header(&name) { WITHHELD.into() } else { secrets.without(&value) };
        (name, value)
    };
    match event {
        Event::Udp { own, sent, peer, payload } => Event::Udp { own, sent, peer, payload: bytes(payload) },
        Event::Tcp(number, Tcp::Wrote(text)) => Event::Tcp(number, Tcp::Wrote(bytes(text))),
        Event::Tcp(number, Tcp::Read(text)) => Event::Tcp(number, Tcp::Read(bytes(text))),
        Event::Http(number, what) => Event::Http(
            number,
            match what {
                Http::Asked { method, url } => Http::Asked { method, url: secrets.without_url(&url) },
                Http::Header(name, value) => {
                    let (name, value) = header(name, value);
                    Http::Header(name, value)
                }
                Http::AnswerHeader(name, value) => {
                    let (name, value) = header(name, value);
                    Http::AnswerHeader(name, value)
                }
                Http::Body(body) => Http::Body(bytes(body)),
                Http::AnswerBody(body) => Http::AnswerBody(bytes(body)),
                other => other,
            },
        ),
        Event::Group { place, link, from, payload } => Event::Group { place, link, from, payload: bytes(payload) },
        Event::SentToGroup { place, payload } => Event::SentToGroup { place, payload: bytes(payload) },
        Event::Said(said) => Event::Said(match said {
            Said::List(mut devices) => {
                for device in &mut devices {
                    device.id = secrets.without_text(&device.id);
                    for (_, value) in &mut device.properties {
                        *value = secrets.without_text(value);
                    }
                }
                Said::List(devices)
            }
            Said::InvalidDetails(text) => Said::InvalidDetails(secrets.without_text(&text)),
            Said::Unavailable(text) => Said::Unavailable(secrets.without_text(&text)),
            Said::Internal(text) => Said::Internal(secrets.without_text(&text)),
        }),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_recording::Device;

    fn recorder(directory: &Path, to: &Path) -> Recorder {
        let to = RecordTo { path: to.to_owned(), secrets: false };
        Recorder::begin(&to, "test", "{}", &[], &[Preopen::new(directory, "/data")]).unwrap()
    }

    fn said(id: &str) -> Option<Said> {
        Some(Said::List(vec![Device { id: id.to_owned(), ..Device::default() }]))
    }

    #[test]
    fn files_are_in_a_replay_as_they_were_at_each_step() {
        let directory = tempfile::tempdir().unwrap();
        let (data, to) = (directory.path().join("data"), directory.path().join("x.rec"));
        std::fs::create_dir(&data).unwrap();
        for name in ["a", "b", "unread"] {
            std::fs::write(data.join(name), "first\n").unwrap();
        }
        std::os::unix::fs::symlink("a", data.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", data.join("out")).unwrap();
        let recorder = recorder(&data, &to);
        recorder.listed(&data);
        recorder.looked(&data.join("link"));
        recorder.looked(&data.join("out"));
        recorder.looked(&data.join("missing"));
        recorder.said(said("1"));
        let cut = std::fs::read_to_string(&to).unwrap();
        // Times are in milliseconds.
        while recorder.started.elapsed() < recorder.state().step_ended + Duration::from_millis(2) {
            std::thread::yield_now();
        }
        std::fs::write(data.join("b"), "second\n").unwrap();
        std::fs::write(data.join("new"), "new\n").unwrap();
        std::fs::remove_file(data.join("unread")).unwrap();
        recorder.step();
        recorder.listed(&data);
        recorder.looked(&data.join("b"));
        recorder.looked(&data.join("new"));
        recorder.said(said("1"));
        recorder.step();
        recorder.said(said("2"));
        drop(recorder);
        // A process that was killed leaves a whole one, too.
        assert_eq!(Recording::read(&cut).unwrap().said().len(), 1);
        let recording = Recording::read(&std::fs::read_to_string(&to).unwrap()).unwrap();
        assert_eq!(recording.said().len(), 2, "a list that is repeated is one");
        let mut script = akri_recording::Script::of(&recording);
        let mut seen = BTreeMap::new();
        let mut take = |now: Duration| {
            for event in script.changes_until(now) {
                match event {
                    Event::File { path, content } => seen.insert(path, String::from_utf8(content).unwrap()),
                    Event::Symlink { path, to } => seen.insert(path, format!("-> {to}")),
                    Event::Gone(path) => seen.remove(&path),
                    Event::Directory(_) => None,
                    other => panic!("{other:?}"),
                };
            }
            seen.iter().map(|(path, what)| format!("{path} {}", what.trim())).collect::<Vec<_>>()
        };
        let (link, out) = ("/data/link -> a", "/data/out -> /etc/passwd");
        // What was not read before it changed was never seen otherwise.
        assert_eq!(take(Duration::ZERO), ["/data/a first", "/data/b second", link, out, "/data/unread "]);
        assert_eq!(take(Duration::from_secs(60)), ["/data/a first", "/data/b second", link, "/data/new new", out]);
    }

    #[test]
    fn a_recording_that_becomes_too_long_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("x.rec");
        let recorder = recorder(directory.path(), &to);
        for number in 0..20 {
            let payload = vec![b'x'; 1 << 20];
            recorder.note(Event::Tcp(number, Tcp::Read(payload)));
            recorder.said(said(&number.to_string()));
        }
        drop(recorder);
        let text = std::fs::read_to_string(&to).unwrap();
        assert!(text.len() < 18 << 20 && text.contains("# The recording ends here"), "{}", text.len());
        let recording = Recording::read(&text).unwrap();
        assert!((10..20).contains(&recording.said().len()), "{}", recording.said().len());
    }
}
