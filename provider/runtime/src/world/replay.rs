//! A recording in place of the machine.

use crate::preopen::Preopen;
use akri_krustlet_events::Uevent;
use akri_recording::{Conversation, Datagrams, Event, Exchange, Recording, Script};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A recording that a guest is given in place of the machine. Its files are below a directory, as the guest's volumes.
#[derive(Debug)]
pub struct Replay {
    clock: Duration,
    seed: u64,
    root: PathBuf,
    volumes: Vec<String>,
    /// In the time of the thread that asks.
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    script: Script,
    /// Something has come, or was left when a part was taken, since the last step began.
    has_come: bool,
    numbered: u32,
    links: BTreeMap<String, Link>,
    monitors: BTreeMap<u32, Source<Uevent, Vec<String>>>,
    listeners: BTreeMap<u32, Source<GroupDatagram, (SocketAddr, Option<String>)>>,
    watches: BTreeMap<u32, Source<String, String>>,
}

/// A network link.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) addresses: Vec<(IpAddr, u8)>,
    pub(crate) multicast: bool,
    pub(crate) loopback: bool,
}

/// What came to a group: from whom, on which link, what.
pub(crate) type GroupDatagram = (SocketAddr, String, Vec<u8>);

#[derive(Debug)]
struct Source<T, Of> {
    of: Of,
    waiting: VecDeque<T>,
    lost: u32,
}

impl<T, Of> Source<T, Of> {
    fn new(of: Of) -> Self {
        Self { of, waiting: VecDeque::new(), lost: 0 }
    }

    fn lose(&mut self, count: u32) {
        self.lost = self.lost.saturating_add(count);
    }

    fn has_something(&self) -> bool {
        !self.waiting.is_empty() || self.lost > 0
    }

    fn take(&mut self, most: usize) -> (Vec<T>, u32) {
        let count = self.waiting.len().min(most);
        let taken = self.waiting.drain(..count).collect();
        (taken, if self.waiting.is_empty() { std::mem::take(&mut self.lost) } else { 0 })
    }
}

impl Replay {
    /// Of a recording, whose files are made below a directory that is there.
    pub fn of(recording: &Recording, root: &Path) -> io::Result<Self> {
        for path in &recording.volumes {
            std::fs::create_dir_all(below(root, path))?;
        }
        let state = State {
            script: Script::of(recording),
            has_come: false,
            numbered: 0,
            links: BTreeMap::new(),
            monitors: BTreeMap::new(),
            listeners: BTreeMap::new(),
            watches: BTreeMap::new(),
        };
        let replay = Self {
            clock: recording.clock,
            seed: recording.random,
            root: root.to_owned(),
            volumes: recording.volumes.clone(),
            started: Instant::now(),
            state: Mutex::new(state),
        };
        replay.happen(Duration::ZERO)?;
        Ok(replay)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn clock(&self) -> Duration {
        self.clock
    }

    /// The directories that the guest saw: on this machine, and in the guest.
    pub fn volumes(&self) -> impl Iterator<Item = Preopen> {
        // Links in it do not lead out of it, whatever the recording makes of its directory.
        self.volumes.iter().map(|path| Preopen {
            beneath: Some(path.trim_start_matches('/').into()),
            ..Preopen::new(&self.root, path.as_str())
        })
    }

    /// When something comes by itself next.
    pub fn next_change(&self) -> Option<Duration> {
        self.state().script.next_change()
    }

    /// What the guest asked for that is not in the recording.
    pub fn missing(&self) -> BTreeSet<String> {
        self.state().script.missing().clone()
    }

    /// Whether something has come that the guest follows.
    /// As a node's inbox has it: what stays is not told again.
    pub fn wants_step(&self) -> bool {
        let mut state = self.state();
        let waits = state.monitors.values().any(Source::has_something)
            || state.listeners.values().any(Source::has_something)
            || state.watches.values().any(Source::has_something);
        std::mem::take(&mut state.has_come) && waits
    }

    /// How long the recording goes by now.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// What came before this was asked, also within a step. Files that cannot be made are told when a step ends.
    fn catch_up(&self) {
        if let Err(error) = self.happen(self.elapsed()) {
            tracing::warn!(%error, "the recording's files");
        }
    }

    /// What has come by then comes.
    pub fn happen(&self, now: Duration) -> io::Result<()> {
        let events = self.state().script.changes_until(now);
        events.into_iter().try_for_each(|event| self.happens(event))
    }

    fn happens(&self, event: Event) -> io::Result<()> {
        let mut state = self.state();
        state.has_come |=
            matches!(event, Event::Uevent { .. } | Event::Group { .. } | Event::Changed { .. } | Event::Lost(..));
        match event {
            Event::Uevent { action, path, properties } => {
                let subsystem = properties.iter().find(|(name, _)| name == "SUBSYSTEM");
                let subsystem = subsystem.map(|(_, value)| value.clone()).unwrap_or_default();
                let uevent = Uevent { action, devpath: path, subsystem, properties };
                for monitor in state.monitors.values_mut() {
                    if monitor.of.is_empty() || monitor.of.contains(&uevent.subsystem) {
                        monitor.waiting.push_back(uevent.clone());
                    }
                }
            }
            Event::Group { place, link, from, payload } => {
                for listener in state.listeners.values_mut() {
                    let (of, on) = &listener.of;
                    if *of == place && on.as_ref().is_none_or(|on| *on == link) {
                        listener.waiting.push_back((from, link.clone(), payload.clone()));
                    }
                }
            }
            Event::Changed { directory, name } => {
                for watch in state.watches.values_mut().filter(|watch| same_path(&watch.of, &directory)) {
                    watch.waiting.push_back(name.clone());
                }
            }
            Event::Lost(kind, count) => match kind.as_str() {
                "uevents" => state.monitors.values_mut().for_each(|source| source.lose(count)),
                "groups" => state.listeners.values_mut().for_each(|source| source.lose(count)),
                _ => state.watches.values_mut().for_each(|source| source.lose(count)),
            },
            Event::Link { name, addresses, multicast, loopback } => {
                state.links.insert(name.clone(), Link { name, addresses, multicast, loopback });
            }
            Event::LinkGone(name) => {
                state.links.remove(&name);
            }
            Event::File { path, content } => std::fs::write(self.room_for(&path)?, content)?,
            Event::Directory(path) => {
                let place = below(&self.root, &path);
                if place.symlink_metadata().is_ok_and(|there| !there.is_dir()) {
                    remove(&place)?;
                }
                std::fs::create_dir_all(place)?;
            }
            Event::Symlink { path, to } => std::os::unix::fs::symlink(to, self.room_for(&path)?)?,
            Event::Gone(path) => remove(&below(&self.root, &path))?,
            _ => {}
        }
        Ok(())
    }

    /// A place where nothing is, in a directory that is there.
    fn room_for(&self, path: &str) -> io::Result<PathBuf> {
        let place = below(&self.root, path);
        remove(&place)?;
        if let Some(parent) = place.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(place)
    }

    pub(crate) fn links(&self) -> Vec<Link> {
        self.state().links.values().cloned().collect()
    }

    fn open<T, Of>(&self, of: Of, sources: impl FnOnce(&mut State) -> &mut BTreeMap<u32, Source<T, Of>>) -> u32 {
        let mut state = self.state();
        state.numbered += 1;
        let number = state.numbered;
        sources(&mut state).insert(number, Source::new(of));
        number
    }

    pub(crate) fn monitor(&self, subsystems: Vec<String>) -> u32 {
        self.open(subsystems, |state| &mut state.monitors)
    }

    pub(crate) fn uevents(&self, monitor: u32) -> (Vec<Uevent>, u32) {
        self.catch_up();
        self.state().monitors.get_mut(&monitor).map(|source| source.take(usize::MAX)).unwrap_or_default()
    }

    pub(crate) fn listener(&self, place: SocketAddr, link: Option<String>) -> u32 {
        self.open((place, link), |state| &mut state.listeners)
    }

    pub(crate) fn group_datagrams(&self, listener: u32, most: usize) -> (Vec<GroupDatagram>, u32) {
        self.catch_up();
        let mut state = self.state();
        let taken = state.listeners.get_mut(&listener).map(|source| (source.take(most), source.has_something()));
        let (taken, is_left) = taken.unwrap_or_default();
        state.has_come |= is_left && !taken.0.is_empty();
        taken
    }

    pub(crate) fn watch(&self, directory: String) -> u32 {
        self.open(directory, |state| &mut state.watches)
    }

    pub(crate) fn changes(&self, watch: u32) -> (Vec<String>, u32) {
        self.catch_up();
        let (mut names, lost) =
            self.state().watches.get_mut(&watch).map(|source| source.take(usize::MAX)).unwrap_or_default();
        names.sort();
        names.dedup();
        (names, lost)
    }

    /// Whatever has that number, the guest does not follow it any more.
    pub(crate) fn close(&self, number: u32) {
        let mut state = self.state();
        state.monitors.remove(&number);
        state.listeners.remove(&number);
        state.watches.remove(&number);
    }

    pub(crate) fn datagrams(&self, own: IpAddr, to: SocketAddr) -> Datagrams {
        self.state().script.datagrams(own, to)
    }

    pub(crate) fn connection(&self, to: SocketAddr) -> Option<Conversation> {
        self.state().script.connection(to)
    }

    pub(crate) fn request(&self, method: &str, url: &str) -> Option<Exchange> {
        self.state().script.request(method, url)
    }

    pub(crate) fn name(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        self.state().script.name(name)
    }
}

fn same_path(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
