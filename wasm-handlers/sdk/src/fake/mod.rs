//! A faked world, for tests of a handler on the machine of its author.
//!
//! ```
//! # use akri_handler::{Device, Error, Handler, Request, Step};
//! # struct Ports(akri_handler::uevents::Monitor);
//! # impl Handler for Ports {
//! #     const NAME: &'static str = "ports";
//! #     const SHARED: bool = false;
//! #     type Details = ();
//! #     fn open(_: Request<()>) -> Result<Self, Error> {
//! #         Ok(Self(akri_handler::uevents::Monitor::open(&["tty".to_owned()])?))
//! #     }
//! #     fn step(&mut self) -> Result<Step, Error> {
//! #         self.0.take();
//! #         let names = akri_handler::fs::list("/sys/class/tty")?;
//! #         Ok(Step::devices(names.into_iter().map(Device::new).collect()))
//! #     }
//! # }
//! use akri_handler::fake::World;
//! use akri_handler::uevents::Uevent;
//!
//! let world = World::new();
//! world.write("/sys/class/tty/ttyS0/dev", "4:64\n");
//! let mut ports = world.open::<Ports>("null").unwrap();
//! assert_eq!(ports.step().unwrap().devices.unwrap().len(), 1);
//! world.write("/sys/class/tty/ttyS1/dev", "4:65\n");
//! world.uevent(Uevent { action: "add".to_owned(), subsystem: "tty".to_owned(), ..Uevent::default() });
//! assert!(world.wants_step());
//! assert_eq!(ports.step().unwrap().devices.unwrap().len(), 2);
//! assert!(!world.wants_step());
//! ```

mod network;
mod replay;

pub use network::{Sent, Session};
pub(crate) use network::{http, tcp, udp};
pub use replay::{replay, replay_all};

use crate::links::Link;
use crate::multicast::Datagram;
use crate::uevents::Uevent;
use crate::{Error, Handler, Request, Step};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// What the machine of a test has. One at a time on each thread: the handler finds the newest.
#[derive(Debug)]
pub struct World(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    root: PathBuf,
    owns_root: bool,
    now: Duration,
    /// What the machine's clock says when no time has passed.
    clock: Option<Duration>,
    random: u64,
    links: Vec<Link>,
    monitors: Vec<Source<Uevent, Vec<String>>>,
    listeners: Vec<Source<Datagram, (SocketAddr, Option<String>)>>,
    watches: Vec<Source<String, PathBuf>>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    network: network::Network,
}

type Waiting<T> = Rc<RefCell<(VecDeque<T>, u32)>>;

#[derive(Debug)]
struct Source<T, Of> {
    of: Of,
    waiting: std::rc::Weak<RefCell<(VecDeque<T>, u32)>>,
}

impl<T: Clone, Of> Source<T, Of> {
    fn push(&self, event: &T) {
        if let Some(waiting) = self.waiting.upgrade() {
            waiting.borrow_mut().0.push_back(event.clone());
        }
    }

    fn has_something(&self) -> bool {
        self.waiting.upgrade().is_some_and(|waiting| !waiting.borrow().0.is_empty() || waiting.borrow().1 > 0)
    }
}

thread_local! {
    static WORLD: RefCell<Weak<RefCell<State>>> = const { RefCell::new(Weak::new()) };
}

impl World {
    /// With no files, below a directory that goes with it.
    #[allow(clippy::new_without_default, reason = "it changes what its thread sees")]
    pub fn new() -> Self {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        use std::os::unix::fs::DirBuilderExt as _;
        // One that is nobody else's, and new.
        let root = loop {
            let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let root = std::env::temp_dir().join(format!("akri-handler-{}-{number}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&root) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                made => {
                    made.expect("the directory for temporary files can be written");
                    break root;
                }
            }
        };
        let world = Self::at(&root);
        world.0.borrow_mut().owns_root = true;
        world
    }

    /// With the files below a directory that is there.
    pub fn at(root: &Path) -> Self {
        let state = Rc::new(RefCell::new(State { root: root.to_owned(), ..State::default() }));
        WORLD.set(Rc::downgrade(&state));
        Self(state)
    }

    /// Where a path of the handler is found.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        below(&self.0.borrow().root, path.as_ref())
    }

    /// Writes a file, with the directories above it.
    pub fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("it has a name")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// Makes a link, with the directories above it.
    pub fn link(&self, path: impl AsRef<Path>, to: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("it has a name")).expect("made");
        std::os::unix::fs::symlink(to, path).expect("linked");
    }

    /// Removes a file, or a directory with all in it.
    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = self.path(path);
        let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        let removed = if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        removed.expect("removed");
    }

    /// The network links.
    pub fn set_links(&self, links: Vec<Link>) {
        self.0.borrow_mut().links = links;
    }

    /// What the machine's clock says now, since 1970-01-01; before this is called, it is some day in 2023.
    pub fn set_clock(&self, clock: Duration) {
        let mut state = self.0.borrow_mut();
        state.clock = Some(clock.saturating_sub(state.now));
    }

    /// Whence random numbers come; the same ones come from the same.
    pub fn set_random(&self, seed: u64) {
        self.0.borrow_mut().random = seed;
    }

    /// Something happens to a device.
    pub fn uevent(&self, uevent: Uevent) {
        for monitor in &self.0.borrow().monitors {
            if monitor.of.is_empty() || monitor.of.contains(&uevent.subsystem) {
                monitor.push(&uevent);
            }
        }
    }

    /// So many uevents were lost.
    pub fn lose_uevents(&self, count: u32) {
        let state = self.0.borrow();
        state.monitors.iter().filter_map(|of| of.waiting.upgrade()).for_each(|waiting| waiting.borrow_mut().1 += count);
    }

    /// Somebody sends to a group.
    pub fn datagram(&self, group: SocketAddr, datagram: Datagram) {
        for listener in &self.0.borrow().listeners {
            let (of, link) = &listener.of;
            if *of == group && link.as_ref().is_none_or(|link| *link == datagram.link) {
                listener.push(&datagram);
            }
        }
    }

    /// Something in a directory has changed.
    pub fn change(&self, directory: &str, name: &str) {
        let state = self.0.borrow();
        state.watches.iter().filter(|of| of.of == Path::new(directory)).for_each(|of| of.push(&name.to_owned()));
    }

    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        self.0.borrow_mut().now += time;
    }

    /// What the handler has sent to groups.
    pub fn sent(&self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.0.borrow_mut().sent)
    }

    /// Whether the node would ask for a step now, for something has come to a source.
    pub fn wants_step(&self) -> bool {
        let state = self.0.borrow();
        state.monitors.iter().any(Source::has_something)
            || state.listeners.iter().any(Source::has_something)
            || state.watches.iter().any(Source::has_something)
    }

    /// Opens a handler with these details, JSON.
    pub fn open<H: Handler>(&self, details: &str) -> Result<Opened<H>, Error> {
        self.open_with(details, [])
    }

    /// The same with values of the Configuration.
    pub fn open_with<'a, H: Handler>(
        &self,
        details: &str,
        properties: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    ) -> Result<Opened<H>, Error> {
        let details = serde_json::from_str(details).map_err(|error| Error::InvalidDetails(error.to_string()))?;
        let properties = properties.into_iter().map(|(name, value)| (name.to_owned(), Some(value.to_vec()))).collect();
        H::open(Request { details, properties }).map(Opened)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let state = self.0.borrow();
        if state.owns_root {
            let _ = std::fs::remove_dir_all(&state.root);
        }
    }
}

/// A handler that was opened.
#[derive(Debug)]
pub struct Opened<H>(pub H);

impl<H: Handler> Opened<H> {
    /// Asks for a step.
    pub fn step(&mut self) -> Result<Step, Error> {
        self.0.step()
    }
}

fn here<T>(of: impl FnOnce(&mut State) -> T) -> T {
    let world = WORLD.with_borrow(Weak::upgrade).expect("a test has a `fake::World` while its handler runs");
    let mut state = world.borrow_mut();
    of(&mut state)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    let plain = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    root.join(plain.collect::<PathBuf>())
}

pub(crate) fn place(path: &Path) -> PathBuf {
    here(|state| below(&state.root, path))
}

pub(crate) fn now() -> Duration {
    here(|state| state.now)
}

pub(crate) fn wall_clock() -> Duration {
    const DAY: Duration = Duration::from_secs(1_700_000_000);
    here(|state| state.clock.unwrap_or(DAY) + state.now)
}

/// Other ones each time in one test, the same ones in each run of it.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    here(|state| {
        let (mut bytes, mut random) = ([0; N], akri_recording::Random(state.random));
        random.fill(&mut bytes);
        state.random = random.0;
        bytes
    })
}

pub(crate) fn links() -> Vec<Link> {
    here(|state| state.links.clone())
}

/// What a handler holds of a source.
#[derive(Debug)]
pub(crate) struct Subscription<T>(Waiting<T>);

fn subscribe<T, Of>(sources: &mut Vec<Source<T, Of>>, of: Of) -> Subscription<T> {
    let waiting: Waiting<T> = Rc::default();
    sources.retain(|source| source.waiting.strong_count() > 0);
    sources.push(Source { of, waiting: Rc::downgrade(&waiting) });
    Subscription(waiting)
}

impl<T> Subscription<T> {
    fn take(&self, most: usize) -> (Vec<T>, u32) {
        let (events, lost) = &mut *self.0.borrow_mut();
        let count = events.len().min(most);
        let taken = events.drain(..count).collect();
        (taken, if events.is_empty() { std::mem::take(lost) } else { 0 })
    }
}

pub(crate) mod uevents {
    use super::{Subscription, here, subscribe};
    use crate::Error;
    use crate::uevents::Uevent;

    pub(crate) type Monitor = Subscription<Uevent>;

    pub(crate) fn open(subsystems: &[String]) -> Result<Monitor, Error> {
        Ok(here(|state| subscribe(&mut state.monitors, subsystems.to_vec())))
    }

    pub(crate) fn take(monitor: &Monitor) -> (Vec<Uevent>, u32) {
        monitor.take(usize::MAX)
    }
}

pub(crate) mod multicast {
    use super::{Subscription, here, subscribe};
    use crate::Error;
    use crate::multicast::Datagram;
    use std::net::SocketAddr;

    #[derive(Debug)]
    pub(crate) struct Listener(SocketAddr, Subscription<Datagram>);

    pub(crate) fn join(group: SocketAddr, link: Option<&str>) -> Result<Listener, Error> {
        let of = (group, link.map(str::to_owned));
        Ok(Listener(group, here(|state| subscribe(&mut state.listeners, of))))
    }

    pub(crate) fn take(listener: &Listener, most: u32) -> (Vec<Datagram>, u32) {
        listener.1.take(usize::try_from(most).unwrap_or(usize::MAX))
    }

    pub(crate) fn send(listener: &Listener, payload: &[u8]) -> Result<(), Error> {
        here(|state| state.sent.push((listener.0, payload.to_vec())));
        Ok(())
    }
}

pub(crate) mod watch {
    use super::{Subscription, here, subscribe};
    use crate::Error;

    pub(crate) type Watch = Subscription<String>;

    pub(crate) fn open(path: &str) -> Result<Watch, Error> {
        match super::place(path.as_ref()).is_dir() {
            true => Ok(here(|state| subscribe(&mut state.watches, path.into()))),
            false => Err(Error::Unavailable(format!("changes of {path}: it is no directory"))),
        }
    }

    pub(crate) fn take(watch: &Watch) -> (Vec<String>, bool) {
        let (names, lost) = watch.take(usize::MAX);
        (names, lost > 0)
    }
}
