//! Writes down what a guest sees and says, while it works.

mod looked;
mod withheld;

use crate::preopen::Preopen;
use akri_recording::{Event, Http, Recording, Said, Secrets, Tcp};
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// Largest recording, in bytes.
const MOST_BYTES: u64 = 16 << 20;
/// Entries of a directory that are written down.
const MOST_ENTRIES: usize = 10_000;

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
            false => withheld::secrets(properties, env),
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

    /// What has come of a source since the step before, and how much of it was lost under which name; if the source was opened
    /// in this step, since then.
    pub(crate) fn took(&self, opened: Option<u64>, events: impl Iterator<Item = Event>, (name, lost): (&str, u32)) {
        let lost = (lost > 0).then(|| Event::Lost(name.to_owned(), lost));
        let mut state = self.state();
        let since_opened = opened == Some(state.steps);
        for event in events.chain(lost) {
            if !state.has_room(&event) {
                continue;
            }
            match since_opened {
                true => state.during.push((self.started.elapsed(), event)),
                false => state.taken.push(event),
            }
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
}

impl State {
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
        let during = withheld::joined(std::mem::take(&mut self.during));
        let mut text = String::new();
        for (at, event) in before.chain(taken).chain(during) {
            // What was begun in one step may go on between it and the next one.
            self.last = self.last.max(at);
            text.push_str(&akri_recording::line(self.last, Some(&withheld::without(event, secrets))));
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

fn random() -> io::Result<[u8; 8]> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
