//! A handler container: the guests of one module that do the work of one discovery handler.
//!
//! # Flow
//! 1. Starting the container starts a *spare*: a guest without a request. It makes the pod Running; its first lines are
//!    the first of the log.
//! 2. A Discover stream takes the spare, or gets a guest of its own if there is none.
//! 3. When the last stream's guest is gone, a new spare is started.
//! 4. The spare's end is the container's end. A stream's guest that ends is the session's affair.
//!
//! All guests share the container's memory and CPU limits.

use crate::exchange::{ExchangeDirectory, ExchangeError, ExchangeRoot, Files};
use crate::host_path::{AllowList, HostPaths};
use crate::settings::{self, HandlerSettings};
use crate::volume::ExchangeVolume;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_runtime::guest::StartError;
use akri_krustlet_runtime::log::ContainerLog;
use akri_krustlet_runtime::wasi::Progress;
use akri_krustlet_runtime::{Guest, GuestSpec, Outcome, Preopen, Program, Runtime, SharedLimits};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// What a handler container is made of.
#[derive(Debug)]
pub struct ContainerSpec {
    /// `namespace/pod/container`, for messages.
    pub name: String,
    /// The handler in it.
    pub settings: HandlerSettings,
    /// The module.
    pub program: Arc<Program>,
    /// Arguments.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Volumes other than the exchange volume.
    pub preopens: Vec<Preopen>,
    /// Limits of all guests together.
    pub limits: Arc<SharedLimits>,
    /// The container's log.
    pub log: Arc<ContainerLog>,
    /// Host paths that devices of any handler may name, if its pod allows them too.
    pub operator_host_paths: AllowList,
    /// Directories that the pod's other containers can write in.
    pub writable: Vec<PathBuf>,
    /// Directory for the guests' exchange directories; emptied at start.
    pub exchange_root: PathBuf,
    /// The exchange volume.
    pub exchange_volume: PathBuf,
}

/// Why a handler container or one of its guests does not start.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The guest cannot be made.
    #[error(transparent)]
    Guest(#[from] StartError),
    /// Its exchange directory cannot be made or filled.
    #[error("exchange directory: {0}")]
    Exchange(#[source] std::io::Error),
    /// The exchange volume cannot be read.
    #[error("exchange volume {}: {source}", path.display())]
    Volume {
        /// The volume's directory on the host.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The container was stopped.
    #[error("the container is being stopped")]
    Stopped,
}

/// A running handler container.
#[derive(Debug)]
pub struct HandlerContainer {
    spec: ContainerSpec,
    runtime: Arc<Runtime>,
    root: Arc<ExchangeRoot>,
    volume: ExchangeVolume,
    guests: Mutex<Guests>,
    spare_changed: Notify,
    stopped: CancellationToken,
    host_paths: Arc<HostPaths>,
    complaints: watch::Sender<BTreeMap<u64, String>>,
}

#[derive(Debug, Default)]
struct Guests {
    spare: Option<ExchangeGuest>,
    serving: usize,
}

impl HandlerContainer {
    /// Starts the container with its spare.
    pub fn start(
        runtime: Arc<Runtime>,
        watcher: &DirectoryWatcher,
        spec: ContainerSpec,
    ) -> Result<Arc<Self>, ContainerError> {
        let root = ExchangeRoot::create(&spec.exchange_root).map_err(ContainerError::Exchange)?;
        let volume = ExchangeVolume::watch(&spec.exchange_volume, watcher)
            .map_err(|source| ContainerError::Volume { path: spec.exchange_volume.clone(), source })?;
        let volumes = spec.preopens.iter().filter(|preopen| !preopen.read_only).map(|preopen| preopen.host.clone());
        let host_paths = Arc::new(HostPaths {
            pod: spec.settings.allowed_host_paths.clone(),
            operator: spec.operator_host_paths.clone(),
            writable: volumes
                .chain([spec.exchange_root.clone(), spec.exchange_volume.clone()])
                .chain(spec.writable.iter().cloned())
                .collect(),
        });
        let container = Self {
            host_paths,
            spec,
            runtime,
            root,
            volume,
            guests: Mutex::default(),
            spare_changed: Notify::new(),
            stopped: CancellationToken::new(),
            complaints: watch::Sender::default(),
        };
        container.guests().spare = Some(container.new_guest()?);
        Ok(Arc::new(container))
    }

    /// The handler in it.
    pub fn settings(&self) -> &HandlerSettings {
        &self.spec.settings
    }

    /// `namespace/pod/container`.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What its streams complain about, by stream: refused answers, guests that trapped.
    pub fn complaints(&self) -> watch::Receiver<BTreeMap<u64, String>> {
        self.complaints.subscribe()
    }

    /// Runs until the spare ends or the container is stopped. The guests of streams end with it.
    pub async fn run(&self) -> Outcome {
        let outcome = loop {
            let spare_changed = self.spare_changed.notified();
            let spare = self.guests().spare.as_ref().map(|spare| (spare.exchange.path(), spare.guest.outcome()));
            let ended = async {
                match spare {
                    Some((which, outcome)) => (which, outcome.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stopped.cancelled() => break Outcome::Interrupted,
                () = spare_changed => {}
                (which, outcome) = ended => {
                    // A stream may have taken it in the meantime; then its end is not the container's.
                    let mut guests = self.guests();
                    if guests.spare.as_ref().is_some_and(|spare| spare.exchange.path() == which) {
                        guests.spare = None;
                        break outcome;
                    }
                }
            }
        };
        self.stop();
        outcome
    }

    /// Ends all guests.
    pub fn stop(&self) {
        self.stopped.cancel();
        self.guests().spare = None;
    }

    pub(crate) fn stopped(&self) -> &CancellationToken {
        &self.stopped
    }

    pub(crate) fn files(&self) -> watch::Receiver<Arc<Files>> {
        self.volume.files()
    }

    /// What its devices may name of the host.
    pub(crate) fn host_paths(&self) -> &Arc<HostPaths> {
        &self.host_paths
    }

    /// A guest for a stream: the spare, or a new one.
    pub(crate) fn take_guest(self: &Arc<Self>) -> Result<ServingGuest, ContainerError> {
        if self.stopped.is_cancelled() {
            return Err(ContainerError::Stopped);
        }
        let spare = {
            let mut guests = self.guests();
            guests.serving += 1;
            guests.spare.take()
        };
        // From here on, dropping it counts it out again.
        let mut serving = ServingGuest { container: self.clone(), guest: None };
        self.spare_changed.notify_waiters();
        serving.guest = Some(match spare {
            Some(spare) if spare.guest.ended().is_none() => spare,
            _ => self.new_guest()?,
        });
        Ok(serving)
    }

    /// A line of the node's own in the container's log.
    pub(crate) fn note(&self, text: &str) {
        self.spec.log.note(text);
    }

    pub(crate) fn complain(&self, stream: u64, complaint: Option<String>) {
        self.complaints.send_if_modified(|complaints| match complaint {
            Some(complaint) => complaints.insert(stream, complaint.clone()).is_none_or(|old| old != complaint),
            None => complaints.remove(&stream).is_some(),
        });
    }

    fn give_back(&self) {
        let wants_spare = {
            let mut guests = self.guests();
            guests.serving -= 1;
            guests.serving == 0 && guests.spare.is_none() && !self.stopped.is_cancelled()
        };
        if !wants_spare {
            return;
        }
        match self.new_guest() {
            Ok(spare) => self.guests().spare = Some(spare),
            Err(error) => tracing::warn!(container = self.spec.name, %error, "cannot start a spare guest"),
        }
        self.spare_changed.notify_waiters();
    }

    fn new_guest(&self) -> Result<ExchangeGuest, ContainerError> {
        let exchange = ExchangeDirectory::create(&self.root).map_err(ContainerError::Exchange)?;
        let files = self.volume.files().borrow().clone();
        put_files(&exchange, &files).map_err(|error| ContainerError::Exchange(std::io::Error::other(error)))?;
        let mut env = self.spec.env.clone();
        if self.spec.settings.wake_on_change {
            env.push((settings::WAKES.to_owned(), "1".to_owned()));
        }
        let mut preopens = vec![Preopen {
            private: true,
            ..Preopen::new(exchange.path(), self.spec.settings.exchange_directory.clone())
        }];
        preopens.extend(self.spec.preopens.iter().cloned());
        let spec = GuestSpec {
            name: self.spec.name.clone(),
            args: self.spec.args.clone(),
            env,
            preopens,
            log: Some(self.spec.log.clone()),
            limits: self.spec.limits.clone(),
            wakeable: self.spec.settings.wake_on_change,
            stdin: None,
            answer: Some(crate::exchange::ANSWER.to_owned()),
        };
        match self.runtime.start(&self.spec.program, spec) {
            Ok(guest) => {
                Ok(ExchangeGuest { guest, exchange: Arc::new(exchange), given: files.keys().cloned().collect() })
            }
            Err(error) => {
                exchange.remove();
                Err(error.into())
            }
        }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put_files(exchange: &ExchangeDirectory, files: &Files) -> Result<(), ExchangeError> {
    files.iter().try_for_each(|(name, content)| exchange.put(&name.to_string_lossy(), content))
}

/// How long a new guest may take until it first waits, before it is given its request all the same.
const START_UP: Duration = Duration::from_millis(500);

/// A guest and the directory that it shares with the node. Dropping it ends the guest and then removes the directory.
#[derive(Debug)]
struct ExchangeGuest {
    guest: Guest,
    exchange: Arc<ExchangeDirectory>,
    /// Names of the user's files as it was given them when it started.
    given: Vec<OsString>,
}

impl Drop for ExchangeGuest {
    fn drop(&mut self) {
        self.guest.interrupt();
        let (outcome, exchange) = (self.guest.outcome(), self.exchange.clone());
        // Without a runtime the process is ending; the directory is emptied at its next start.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                outcome.await;
                exchange.remove();
            });
        }
    }
}

/// The guest of one stream. Dropping it ends it; the container starts a spare when the last one is gone.
#[derive(Debug)]
pub(crate) struct ServingGuest {
    container: Arc<HandlerContainer>,
    /// Only missing between being counted and being started.
    guest: Option<ExchangeGuest>,
}

impl ServingGuest {
    /// Gives the guest its request, once it has started up.
    ///
    /// The user's files are put in place again first: a module that resets one of them when it starts (the debugEcho of
    /// 2021 writes ONLINE into the availability file) must not undo what the user wrote.
    pub(crate) async fn request(&self, request: &[u8], files: &Files) -> Result<(), ExchangeError> {
        let Some(ExchangeGuest { guest, exchange, given }) = &self.guest else { return Ok(()) };
        let mut progress = guest.progress();
        if progress.borrow().waits == 0 {
            tokio::select! {
                _ = progress.wait_for(|progress| progress.waits > 0) => {}
                // The session notices it too, and tells why.
                _ = guest.outcome() => return Ok(()),
                () = tokio::time::sleep(START_UP) => {}
            }
        }
        for name in given.iter().filter(|name| !files.contains_key(*name)) {
            exchange.clear(&name.to_string_lossy());
        }
        put_files(exchange, files)?;
        exchange.put(crate::exchange::REQUEST, request)?;
        guest.names_are_taken();
        guest.wake();
        Ok(())
    }

    /// Brings the user's files up to date: `old` is what the guest has.
    pub(crate) fn update_files(&self, old: &Files, new: &Files) -> Result<(), ExchangeError> {
        let Some(ExchangeGuest { guest, exchange, .. }) = &self.guest else { return Ok(()) };
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            exchange.clear(&name.to_string_lossy());
        }
        for (name, content) in new.iter().filter(|(name, content)| old.get(*name) != Some(content)) {
            exchange.put(&name.to_string_lossy(), content)?;
        }
        guest.names_are_taken();
        guest.wake();
        Ok(())
    }

    pub(crate) fn take_answer(&self) -> Result<Option<Vec<u8>>, ExchangeError> {
        match &self.guest {
            Some(guest) => {
                let answer = guest.exchange.take_answer(crate::device::MOST_ANSWER);
                guest.guest.names_are_taken();
                answer
            }
            None => Ok(None),
        }
    }

    pub(crate) fn progress(&self) -> Option<watch::Receiver<Progress>> {
        self.guest.as_ref().map(|guest| guest.guest.progress())
    }

    pub(crate) async fn outcome(&self) -> Outcome {
        match &self.guest {
            Some(guest) => guest.guest.outcome().await,
            None => Outcome::Interrupted,
        }
    }
}

impl Drop for ServingGuest {
    fn drop(&mut self) {
        self.guest = None;
        self.container.give_back();
    }
}
