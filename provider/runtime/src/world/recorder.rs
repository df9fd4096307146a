//! Writes down what a guest sees and says, while it works.

use crate::preopen::Preopen;
use akri_recording::{Event, Http, Recording, Said, Secrets, Tcp, WITHHELD};
use base64::Engine as _;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::hash::{Hash as _, Hasher as _};
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

/// What was written of a file or a link last: whether it is there, and a hash of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    is_there: bool,
    hash: u64,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Bytes of what waits to be written, about.
    waiting: u64,
    /// When the last event was that was written.
    last: Duration,
    /// Where the next step is written.
    position: u64,
    is_full: bool,
    /// That was written.
    has_ended: bool,
    number: u32,
    /// What was seen before this step, and what was written of it.
    seen: BTreeMap<String, Seen>,
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
    /// How many were written.
    steps: u64,
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
        env: &[(String, String)],
        preopens: &[Preopen],
    ) -> io::Result<Self> {
        let seed = u64::from_le_bytes(random()?);
        let secrets = match to.secrets {
            true => Secrets::none(),
            false => {
                let of_env = env.iter().filter(|(name, value)| value.len() >= LEAST_OF_ENV && !is_setting(name));
                let of_env = of_env.map(|(_, value)| value.as_bytes().to_vec());
                let values = properties.iter().filter_map(|(_, value)| value.as_deref()).flat_map(texts).chain(of_env);
                Secrets::of(values.collect::<Vec<_>>().iter().map(Vec::as_slice))
            }
        };
        let shown = |(name, value): &(String, Option<Vec<u8>>)| {
            let value = if secrets.leave_out_values() { None } else { Some(value.clone().unwrap_or_default()) };
            (secrets.without_text(name), value)
        };
        let head = Recording {
            handler: handler.to_owned(),
            clock: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
            random: seed,
            details: secrets.without_text(details),
            properties: properties.iter().map(shown).collect(),
            volumes: preopens.iter().map(|preopen| preopen.guest.clone()).collect(),
            ..Recording::default()
        };
        let head = akri_recording::header(&head);
        let whole = head.clone() + &akri_recording::line(Duration::ZERO, None);
        let file = place(&to.path, whole.as_bytes())?;
        let directories = preopens.iter().filter_map(|preopen| {
            let host = preopen.host.join(preopen.beneath.as_deref().unwrap_or(Path::new("")));
            Some((host.canonicalize().ok()?, preopen.guest.clone()))
        });
        let state = State {
            file,
            waiting: 0,
            last: Duration::ZERO,
            position: head.len() as u64,
            is_full: false,
            has_ended: false,
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
            steps: 0,
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
        let mut state = self.state();
        // What was done since the step before, by what it began.
        let now = self.started.elapsed();
        state.write_step(&self.secrets, now);
        state.step_began = now;
    }

    /// The guest has answered; none: it said nothing new.
    pub fn said(&self, said: Option<Said>) {
        let mut state = self.state();
        let now = self.started.elapsed();
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
        let mut state = self.state();
        if state.has_room(&event) {
            state.during.push((self.started.elapsed(), event));
        }
    }

    /// Something that has come since the step before; of a source that was opened in this step, since then.
    pub(crate) fn took(&self, event: Event, since_opened: bool) {
        let mut state = self.state();
        if !state.has_room(&event) {
            return;
        }
        match since_opened {
            true => state.during.push((self.started.elapsed(), event)),
            false => state.taken.push(event),
        }
    }

    /// Which step it is, for sources that are opened in it.
    pub(crate) fn steps(&self) -> u64 {
        self.state().steps
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

    /// A socket is gone; what it began to connect to did not answer in the time that its guest gave it.
    pub(crate) fn dropped(&self, socket: u32) {
        self.connected(socket, Some("timeout"));
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
            .filter(|(of, seen)| seen.is_there && of.starts_with("link ") && !there.contains(*of))
            .filter_map(|(of, _)| of.strip_prefix("link ").map(str::to_owned))
            .collect();
        for event in links.into_iter().chain(gone.into_iter().map(Event::LinkGone)) {
            if let Some(key) = key(&event) {
                state.sees(key, event);
            }
        }
    }

    /// The guest has looked at a path of the host, or at what it leads to; with what is in it, if it has opened it.
    pub(crate) fn looked(&self, path: &Path, opened: bool) {
        for (root, guest) in self.volumes_of(path) {
            self.looked_in(path, (root, guest), opened);
        }
    }

    /// The volumes that have a path: of those in one another the innermost, of those of one directory all.
    fn volumes_of(&self, path: &Path) -> impl Iterator<Item = (&Path, &str)> {
        let here = self.directories.iter().filter(move |(root, _)| path.starts_with(root));
        let depth = here.clone().map(|(root, _)| root.components().count()).max();
        here.filter(move |(root, _)| Some(root.components().count()) == depth)
            .map(|(root, guest)| (root.as_path(), guest.as_str()))
    }

    fn looked_in(&self, path: &Path, (root, guest): (&Path, &str), opened: bool) {
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
                    state.sees_file(name.clone(), Event::Symlink { path: name, to: to.display().to_string() });
                    if to.is_absolute() || links > MOST_LINKS {
                        return;
                    }
                    here.pop();
                    for part in parts(&to).into_iter().rev() {
                        left.push_front(part);
                    }
                }
                Ok(metadata) if metadata.is_file() && left.is_empty() && !opened => state.lists(name),
                Ok(metadata) if metadata.is_file() && left.is_empty() => {
                    if let Some(content) = content(root, &here) {
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
        self.looked(path, false);
        for volume in self.volumes_of(path) {
            self.listed_in(path, volume);
        }
    }

    fn listed_in(&self, path: &Path, (root, guest): (&Path, &str)) {
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
            } else if kind.is_file() {
                state.lists(name);
            }
        }
        let is_child = |path: &str| {
            let rest = path.strip_prefix(above).and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| !rest.contains('/'))
        };
        let known = state.seen.iter().filter(|(_, seen)| seen.is_there);
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

    /// A file that is known by its name alone.
    fn lists(&mut self, path: String) {
        let key = format!("file {path}");
        if self.listed.contains(&path) || self.seen.get(&key).is_some_and(|seen| seen.is_there) {
            return;
        }
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let was_gone = self.seen.contains_key(&key);
        if was_gone {
            // Whatever is in it.
            self.sees(key, Event::File { path, content: Vec::new() });
            return;
        }
        if self.directories.contains(directory) {
            self.sees(key.clone(), Event::Gone(path.clone()));
            self.sees(key, Event::File { path, content: Vec::new() });
        } else if self.listed.len() < MOST_ENTRIES {
            self.waiting += path.len() as u64;
            self.listed.insert(path);
        }
    }

    fn sees(&mut self, key: String, event: Event) {
        let mut hasher = std::hash::DefaultHasher::new();
        format!("{event:?}").hash(&mut hasher);
        let is_there = !matches!(event, Event::Gone(_) | Event::LinkGone(_));
        let seen = Seen { is_there, hash: hasher.finish() };
        if self.seen.get(&key) != Some(&seen) && self.has_room(&event) {
            self.before.push(event);
            self.seen.insert(key, seen);
        }
    }

    /// Whether an event can wait to be written; from the first on that cannot, nothing can.
    fn has_room(&mut self, event: &Event) -> bool {
        let bytes = match event {
            Event::Udp { payload, .. } | Event::Group { payload, .. } | Event::SentToGroup { payload, .. } => {
                payload.len()
            }
            Event::Tcp(_, Tcp::Wrote(bytes) | Tcp::Read(bytes)) => bytes.len(),
            Event::Http(_, Http::Header(name, value) | Http::AnswerHeader(name, value)) => name.len() + value.len(),
            Event::Http(_, Http::Body(bytes) | Http::AnswerBody(bytes)) => bytes.len(),
            Event::File { path, content } => path.len() + content.len(),
            _ => 200,
        };
        self.waiting += bytes as u64 + 64;
        self.is_full |= self.position + self.waiting > MOST_BYTES;
        !self.is_full
    }

    /// What is written is in the order in which it comes in a replay: what was so before the step, what it was asked for, what it did.
    fn write_step(&mut self, secrets: &Secrets, now: Duration) {
        let began = self.step_began;
        // After the step before, also where that was at the very beginning.
        let ended = began.min(self.step_ended + Duration::from_millis(1));
        let before = std::mem::take(&mut self.before).into_iter().map(|event| (ended, event));
        let taken = std::mem::take(&mut self.taken).into_iter().map(|event| (began, event));
        let during = joined(std::mem::take(&mut self.during));
        let mut text = String::new();
        for (at, event) in before.chain(taken).chain(during) {
            // What was begun in one step may go on between it and the next one.
            self.last = self.last.max(at);
            text.push_str(&akri_recording::line(self.last, Some(&without_secrets(event, secrets))));
        }
        self.last = self.last.max(now);
        self.waiting = 0;
        self.steps += 1;
        let last = self.last;
        self.write(&text, last);
    }

    /// The file is a whole recording each time, whenever this process may end.
    fn write(&mut self, text: &str, now: Duration) {
        if self.has_ended {
            return;
        }
        let mut text = text.to_owned();
        self.is_full |= self.position + text.len() as u64 > MOST_BYTES;
        self.has_ended = self.is_full;
        if self.has_ended {
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
            self.has_ended = true;
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

/// Puts a new file there, for its owner alone. Another file than a recording is not replaced; whoever writes to an old one goes on
/// with what has no name any more.
fn place(path: &Path, content: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {}
        Err(rustix::io::Errno::LOOP) => return Err(io::Error::other("it is a link; name the file itself")),
        Err(error) => return Err(error.into()),
        Ok(there) => {
            let there = File::from(there);
            let mut first = Vec::new();
            if there.metadata()?.is_file() {
                io::Read::read_to_end(&mut io::Read::take(&there, FIRST.len() as u64), &mut first)?;
            }
            if first != FIRST {
                return Err(io::Error::other("it is there already and is no recording; name another file"));
            }
        }
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Of mode 0600.
    let mut staged = tempfile::Builder::new().prefix(".recording-").tempfile_in(parent)?;
    io::Write::write_all(&mut staged, content)?;
    staged.persist(path).map_err(|error| error.error)
}

/// Values of the environment that are secrets perhaps.
const LEAST_OF_ENV: usize = 8;

fn is_setting(name: &str) -> bool {
    ["DISCOVERY_", "AKRI_", "RUST_"].iter().any(|prefix| name.starts_with(prefix))
}

/// A value, and if it is JSON or base64, the texts in it.
fn texts(value: &[u8]) -> Vec<Vec<u8>> {
    let mut texts = vec![value.to_vec()];
    let mut left: Vec<serde_json::Value> = serde_json::from_slice(value).into_iter().collect();
    let mut leaves = vec![value.trim_ascii().to_vec()];
    while let Some(value) = left.pop() {
        match value {
            serde_json::Value::String(text) => leaves.push(text.into_bytes()),
            serde_json::Value::Array(all) => left.extend(all),
            serde_json::Value::Object(all) => left.extend(all.into_values()),
            _ => {}
        }
    }
    for leaf in leaves {
        texts.extend(base64::engine::general_purpose::STANDARD.decode(&leaf));
        texts.push(leaf);
    }
    texts
}

/// Pieces of one connection or body that follow one another are one: a secret may be in two of them.
fn joined(events: Vec<(Duration, Event)>) -> Vec<(Duration, Event)> {
    let mut all: Vec<(Duration, Event)> = Vec::new();
    // Where the newest event of each connection or request is.
    let mut newest: HashMap<(bool, u32), usize> = HashMap::new();
    for (at, event) in events {
        let key = match &event {
            Event::Tcp(number, _) => Some((true, *number)),
            Event::Http(number, _) => Some((false, *number)),
            _ => None,
        };
        let before = key.and_then(|key| newest.get(&key)).map(|place| &mut all[*place].1);
        match (before, &event) {
            (Some(Event::Tcp(_, Tcp::Wrote(before))), Event::Tcp(_, Tcp::Wrote(more)))
            | (Some(Event::Tcp(_, Tcp::Read(before))), Event::Tcp(_, Tcp::Read(more)))
            | (Some(Event::Http(_, Http::Body(before))), Event::Http(_, Http::Body(more)))
            | (Some(Event::Http(_, Http::AnswerBody(before))), Event::Http(_, Http::AnswerBody(more))) => {
                before.extend_from_slice(more);
                continue;
            }
            _ => {}
        }
        if let Some(key) = key {
            newest.insert(key, all.len());
        }
        all.push((at, event));
    }
    all
}

fn random() -> io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

/// Of a file in a volume, and of nothing that has come in its place.
fn content(root: &Path, path: &Path) -> Option<Vec<u8>> {
    let directory = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(directory, path, flags, Mode::empty(), how).ok()?);
    let mut content = Vec::new();
    if file.metadata().ok()?.is_file() {
        io::Read::read_to_end(&mut io::Read::take(file, MOST_FILE), &mut content).ok()?;
    }
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
    let text = |text: String| secrets.without_text(&text);
    let header = |name: String, value: Vec<u8>| {
        let value = if secrets.is_header(&name) { WITHHELD.into() } else { bytes(value) };
        (text(name), value)
    };
    match event {
        Event::Udp { own, sent, peer, payload } => Event::Udp { own, sent, peer, payload: bytes(payload) },
        Event::Tcp(number, Tcp::Wrote(of)) => Event::Tcp(number, Tcp::Wrote(bytes(of))),
        Event::Tcp(number, Tcp::Read(of)) => Event::Tcp(number, Tcp::Read(bytes(of))),
        Event::Http(number, what) => Event::Http(
            number,
            match what {
                Http::Asked { method, url } => Http::Asked { method: text(method), url: secrets.without_url(&url) },
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
        Event::Name(name, found) => Event::Name(text(name), found),
        Event::Uevent { action, path, properties } => {
            let properties = properties.into_iter().map(|(name, value)| (name, text(value))).collect();
            Event::Uevent { action: text(action), path: text(path), properties }
        }
        Event::Group { place, link, from, payload } => Event::Group { place, link, from, payload: bytes(payload) },
        Event::SentToGroup { place, payload } => Event::SentToGroup { place, payload: bytes(payload) },
        Event::File { path, content } => Event::File { path: text(path), content: bytes(content) },
        Event::Directory(path) => Event::Directory(text(path)),
        Event::Symlink { path, to } => Event::Symlink { path: text(path), to: text(to) },
        Event::Gone(path) => Event::Gone(text(path)),
        Event::Changed { directory, name } => Event::Changed { directory: text(directory), name: text(name) },
        Event::Said(said) => Event::Said(secrets.without_said(said)),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use akri_recording::Device;

    fn recorder(directory: &Path, to: &Path) -> Recorder {
        let to = RecordTo { path: to.to_owned(), secrets: false };
        Recorder::begin(&to, "test", "{}", &[], &[], &[Preopen::new(directory, "/data")]).unwrap()
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
        recorder.looked(&data.join("link"), true);
        recorder.looked(&data.join("out"), true);
        recorder.looked(&data.join("missing"), true);
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
        recorder.looked(&data.join("b"), true);
        recorder.looked(&data.join("new"), true);
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
