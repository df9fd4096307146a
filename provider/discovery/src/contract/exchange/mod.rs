//! The contract of 2021: the request as JSON in `in.in`, the answer as JSON in `out.out`, in a directory that a guest and the
//! node share.
//!
//! # Flow
//! 1. Starting the container starts a *spare*: a guest without a request. It makes the pod Running; its first lines are
//!    the first of the log.
//! 2. A Discover stream takes the spare, or gets a guest of its own if there is none.
//! 3. When the last stream's guest is gone, a new spare is started.
//! 4. The spare's end is the container's end. A stream's guest that ends is the session's affair.

pub mod directory;
pub mod volume;

use crate::container::{ContainerError, ContainerSpec};
use crate::contract::Taken;
use crate::device::MOST_ANSWER;
use crate::device_json;
use crate::settings;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_runtime::wasi::Progress;
use akri_krustlet_runtime::{Guest, GuestSpec, Outcome, Preopen, Runtime};
use directory::{ANSWER, ExchangeDirectory, ExchangeError, ExchangeRoot, Files, REQUEST};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use volume::ExchangeVolume;

/// The guests of one container.
#[derive(Debug)]
pub(crate) struct Exchange {
    spec: Arc<ContainerSpec>,
    runtime: Arc<Runtime>,
    root: Arc<ExchangeRoot>,
    volume: ExchangeVolume,
    guests: Mutex<Guests>,
    spare_changed: Notify,
    stopped: CancellationToken,
}

#[derive(Debug, Default)]
struct Guests {
    spare: Option<OwnGuest>,
    serving: usize,
}

impl Exchange {
    /// With its spare.
    pub(crate) fn start(
        runtime: Arc<Runtime>,
        watcher: &DirectoryWatcher,
        spec: Arc<ContainerSpec>,
        stopped: CancellationToken,
    ) -> Result<Arc<Self>, ContainerError> {
        let root = ExchangeRoot::create(&spec.exchange_root).map_err(ContainerError::Exchange)?;
        let volume = ExchangeVolume::watch(&spec.exchange_volume, watcher)
            .map_err(|source| ContainerError::Volume { path: spec.exchange_volume.clone(), source })?;
        let (guests, spare_changed) = (Mutex::default(), Notify::new());
        let exchange = Self { spec, runtime, root, volume, guests, spare_changed, stopped };
        exchange.guests().spare = Some(exchange.new_guest()?);
        Ok(Arc::new(exchange))
    }

    /// Resolves when the spare ends.
    pub(crate) async fn ended(&self) -> Outcome {
        loop {
            let spare_changed = self.spare_changed.notified();
            let spare = self.guests().spare.as_ref().map(|spare| (spare.exchange.path(), spare.guest.outcome()));
            let ended = async {
                match spare {
                    Some((which, outcome)) => (which, outcome.await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = spare_changed => {}
                (which, outcome) = ended => {
                    // A stream may have taken it in the meantime; then its end is not the container's.
                    let mut guests = self.guests();
                    if guests.spare.as_ref().is_some_and(|spare| spare.exchange.path() == which) {
                        guests.spare = None;
                        return outcome;
                    }
                }
            }
        }
    }

    /// Ends the spare.
    pub(crate) fn stop(&self) {
        self.guests().spare = None;
    }

    /// The user's files.
    pub(crate) fn files(&self) -> watch::Receiver<Arc<Files>> {
        self.volume.files()
    }

    /// The spare, or a new one.
    pub(crate) fn take_guest(self: &Arc<Self>) -> Result<ExchangeGuest, ContainerError> {
        let spare = {
            let mut guests = self.guests();
            guests.serving += 1;
            guests.spare.take()
        };
        // From here on, dropping it counts it out again.
        let mut serving = ExchangeGuest { contract: self.clone(), guest: None };
        self.spare_changed.notify_waiters();
        serving.guest = Some(match spare {
            Some(spare) if spare.guest.ended().is_none() => spare,
            _ => self.new_guest()?,
        });
        Ok(serving)
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

    fn new_guest(&self) -> Result<OwnGuest, ContainerError> {
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
            args: self.spec.args.clone(),
            env,
            preopens,
            log: Some(self.spec.log.clone()),
            wakeable: self.spec.settings.wake_on_change,
            answer: Some(ANSWER.to_owned()),
            ..GuestSpec::new(self.spec.name.clone(), self.spec.limits.clone())
        };
        match self.runtime.start(&self.spec.program, spec) {
            Ok(guest) => Ok(OwnGuest { guest, exchange: Arc::new(exchange), given: files.keys().cloned().collect() }),
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
struct OwnGuest {
    guest: Guest,
    exchange: Arc<ExchangeDirectory>,
    /// Names of the user's files as it was given them when it started.
    given: Vec<OsString>,
}

impl Drop for OwnGuest {
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
pub(crate) struct ExchangeGuest {
    contract: Arc<Exchange>,
    /// Only missing between being counted and being started.
    guest: Option<OwnGuest>,
}

impl ExchangeGuest {
    /// Gives the guest its request, once it has started up.
    ///
    /// The user's files are put in place again first: a module that resets one of them when it starts (the debugEcho of
    /// 2021 writes ONLINE into the availability file) must not undo what the user wrote.
    pub(crate) async fn request(&self, request: &[u8], files: &Files) -> Result<(), ExchangeError> {
        let Some(OwnGuest { guest, exchange, given }) = &self.guest else { return Ok(()) };
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
        exchange.put(REQUEST, request)?;
        guest.names_are_taken();
        guest.wake();
        Ok(())
    }

    /// Brings the user's files up to date: `old` is what the guest has.
    pub(crate) fn update_files(&self, old: &Files, new: &Files) -> Result<(), ExchangeError> {
        let Some(OwnGuest { guest, exchange, .. }) = &self.guest else { return Ok(()) };
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

    pub(crate) fn take_answer(&self) -> Taken {
        let Some(guest) = &self.guest else { return Taken { said: Ok(None), bytes: 0 } };
        let answer = guest.exchange.take_answer(MOST_ANSWER);
        guest.guest.names_are_taken();
        match answer {
            Ok(None) => Taken { said: Ok(None), bytes: 0 },
            Ok(Some(json)) => {
                let said = device_json::read(&json).map(Some).map_err(|refused| refused.to_string());
                Taken { said, bytes: json.len() }
            }
            Err(error) => Taken { said: Err(error.to_string()), bytes: MOST_ANSWER },
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

impl Drop for ExchangeGuest {
    fn drop(&mut self) {
        self.guest = None;
        self.contract.give_back();
    }
}
