//! Modules that are files (`fs://`) of the pods of a folder, which their authors build anew while containers run them.
//!
//! One follower for each file, however many containers run it: it tries a new module once, before any of them ends for it, and
//! keeps it until they have it.
//!
//! # Guarantees
//! - A module that cannot be run changes nothing: it is told of, and what runs goes on.
//! - Whoever can write the file has the node look five times a second, try five modules at once and one more every ten seconds.
//! - Nothing here waits for a file's system on a thread of the node's own.

use crate::container::image::{self, ImageError};
use crate::services::Services;
use akri_krustlet_discovery::HandlerInfo;
use akri_krustlet_host::file::{CLOCK_STEP, FileStamp};
use akri_krustlet_host::patience::patiently;
use akri_krustlet_host::{DirectoryWatcher, TokenBucket, until};
use akri_krustlet_runtime::Program;
use futures::future::{pending, select_all};
use rustix::fs::{Mode, OFlags};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Pause between two looks at a file.
const PACE: Duration = Duration::from_millis(200);
/// Modules of one file that are tried: at once, and each second.
const TRIES: (f64, f64) = (5.0, 0.1);
/// Pause before a directory that is not there is looked for again, which whoever builds all anew removes first; the same before a
/// try that failed for reasons of the node's own is made again.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_TRY: Duration = Duration::from_secs(10);

/// The files that are followed now.
#[derive(Debug, Default)]
pub struct LocalModules(Mutex<HashMap<PathBuf, Weak<LocalModule>>>);

/// A file that is followed, for as long as somebody has this.
#[derive(Debug)]
pub struct LocalModule {
    tried: Arc<watch::Sender<Tried>>,
    _follower: AbortOnDropHandle<()>,
}

/// What became of the file's newest module.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// How many were tried.
    pub number: u64,
    /// The module, or why it cannot be run; none before the first try.
    pub result: Option<Result<TriedModule, Arc<str>>>,
}

/// A module that can be run.
#[derive(Clone, Debug)]
pub struct TriedModule {
    /// The program.
    pub program: Arc<Program>,
    /// What it says of the discovery handler in it.
    pub info: Option<Arc<HandlerInfo>>,
}

impl LocalModules {
    /// Follows a file; with others who do.
    pub fn follow(&self, services: &Arc<Services>, path: &Path) -> Arc<LocalModule> {
        let mut followed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = followed.get(path).and_then(Weak::upgrade) {
            return module;
        }
        followed.retain(|_, module| module.strong_count() > 0);
        let tried = Arc::new(watch::Sender::default());
        let follower = Follower { services: services.clone(), path: path.to_owned(), tried: tried.clone() };
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run()));
        let module = Arc::new(LocalModule { tried, _follower: task });
        followed.insert(path.to_owned(), Arc::downgrade(&module));
        module
    }
}

impl LocalModule {
    /// What is tried from now on, and the last try.
    pub fn tried(&self) -> watch::Receiver<Tried> {
        self.tried.subscribe()
    }

    /// Resolves when a newer module than that of a try can be run.
    pub async fn runs_after(&self, number: u64) {
        let is_newer = |tried: &Tried| tried.number > number && matches!(tried.result, Some(Ok(_)));
        if self.tried().wait_for(is_newer).await.is_err() {
            pending().await
        }
    }
}

struct Follower {
    services: Arc<Services>,
    path: PathBuf,
    tried: Arc<watch::Sender<Tried>>,
}

/// What there is at a path.
#[derive(Debug, Default, PartialEq)]
struct Look {
    stamp: Option<FileStamp>,
    /// Through which it is reached.
    directories: BTreeSet<PathBuf>,
}

impl Look {
    /// Blocks.
    fn at(path: &Path) -> Self {
        let stamp = std::fs::metadata(path).ok().map(|metadata| FileStamp::of(&metadata));
        let links = path.ancestors().filter(|part| part.is_symlink());
        let target = path.canonicalize().ok();
        let names = [Some(path), target.as_deref()].into_iter().flatten().chain(links);
        Self { stamp, directories: names.filter_map(Path::parent).map(Path::to_owned).collect() }
    }
}

impl Follower {
    async fn run(self) {
        let mut tries = TokenBucket::new(TRIES.0, TRIES.1);
        let mut places = Places::default();
        let mut looked_at = None;
        // Modules that were replaced: when nobody runs them any more, nobody needs their compiled form.
        let mut replaced: Vec<Arc<Program>> = Vec::new();
        loop {
            let look = self.settled(&mut places).await;
            let mut again = None;
            if look.stamp.is_some() && look.stamp != looked_at {
                tokio::time::sleep_until(tries.when(1.0)).await;
                tries.spend(1.0);
                let result = image::load_local(&self.services, &self.path).await;
                let is_final = result.as_ref().map_or_else(ImageError::is_of_module, |_| true);
                (looked_at, again) = if is_final { (look.stamp, None) } else { (None, Some(RETRY_TRY)) };
                replaced.extend(self.note(result));
                self.discard(&mut replaced);
            } else if places.changes.is_empty() {
                again = Some(RETRY);
            } else if look.stamp.is_none() {
                // A file's system that did not answer tells of no change.
                again = Some(RETRY_TRY);
            }
            let again = again.map(|pause| Instant::now() + pause);
            tokio::select! {
                () = places.changed() => {}
                () = until(again) => {}
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// What is there when nobody writes to it.
    async fn settled(&self, places: &mut Places) -> Look {
        let mut before = None;
        loop {
            let look = self.look(places).await;
            let is_settled = look.stamp.is_none_or(|stamp| stamp.is_settled(SystemTime::now()));
            // A clock that is behind the files' says of none that it is settled.
            if is_settled || before.is_some_and(|before| before == look.stamp) {
                return look;
            }
            before = Some(look.stamp);
            tokio::time::sleep(CLOCK_STEP).await;
        }
    }

    async fn look(&self, places: &mut Places) -> Look {
        let (path, owner) = (self.path.clone(), self.path.display().to_string());
        let Ok(look) = patiently(&owner, move || Look::at(&path)).await else { return Look::default() };
        if places.directories != look.directories || places.is_gone() {
            places.watch(&self.services.watcher, &owner, &look.directories).await;
            // What happened in between was not told.
            let path = self.path.clone();
            return patiently(&owner, move || Look::at(&path)).await.unwrap_or_default();
        }
        look
    }

    /// Tells everybody what became of a try; the program that was there before, if this is another one.
    fn note(&self, result: Result<TriedModule, ImageError>) -> Option<Arc<Program>> {
        let before = self.tried.borrow().clone();
        let before_that = before.result.and_then(Result::ok).map(|module| module.program);
        let result = result.map_err(|error| {
            if before.number > 0 {
                tracing::warn!("{error}; what runs goes on with the module from before");
            }
            Arc::from(error.to_string())
        });
        let is_other = |old: &Arc<Program>| result.as_ref().is_ok_and(|new| new.program.digest() != old.digest());
        let replaced = before_that.filter(is_other);
        self.tried.send_modify(|tried| *tried = Tried { number: tried.number + 1, result: Some(result.clone()) });
        replaced
    }

    fn discard(&self, replaced: &mut Vec<Arc<Program>>) {
        let is_unused = |program: &mut Arc<Program>| Arc::strong_count(program) == 1;
        for program in replaced.extract_if(.., is_unused) {
            self.services.runtime.discard(&program.digest().to_string());
        }
    }
}

/// The directories that a file is reached through, followed.
#[derive(Default)]
struct Places {
    directories: BTreeSet<PathBuf>,
    changes: Vec<watch::Receiver<()>>,
}

impl Places {
    fn is_gone(&self) -> bool {
        self.changes.iter().any(|changes| changes.has_changed().is_err())
    }

    async fn watch(&mut self, watcher: &DirectoryWatcher, owner: &str, directories: &BTreeSet<PathBuf>) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (of_thread, watcher) = (directories.clone(), watcher.clone());
        // Opened first: what hangs does not hang while it has the watcher's lock.
        let open = move || {
            let open = |path: &PathBuf| rustix::fs::open(path, flags, Mode::empty()).ok();
            let opened: Vec<_> = of_thread.iter().filter_map(open).collect();
            let path = |directory: &std::os::fd::OwnedFd| format!("/proc/self/fd/{}", directory.as_raw_fd());
            opened.iter().filter_map(|directory| watcher.watch(Path::new(&path(directory))).ok()).collect::<Vec<_>>()
        };
        self.changes = patiently(owner, open).await.unwrap_or_default();
        self.directories.clone_from(directories);
    }

    /// Resolves when something has changed in one of them, or one is gone.
    async fn changed(&mut self) {
        if self.changes.is_empty() {
            return pending().await;
        }
        let changed = self.changes.iter_mut().map(|changes| Box::pin(changes.changed()));
        if select_all(changed).await.0.is_err() {
            self.directories.clear();
        }
    }
}
