//! A guest: one running instance of a program.

use crate::cpu::GuestThreads;
use crate::directories::OpenDirectories;
use crate::disk::{DiskBudget, OpenFiles};
use crate::limits::{GuestLimiter, HOSTCALL_BYTES, RANDOM_BYTES, SharedLimits};
use crate::log::{ContainerLog, Stream};
use crate::preopen::{Preopen, PreopenError};
use crate::program::{LoadError, Program};
use crate::stdin::Stdin;
use crate::wasi::{GuestClock, GuestState, Progress, Signals};
use futures::FutureExt as _;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmtime::{Engine, Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::{I32Exit, WasiCtxBuilder};

/// What to start.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// Names the guest in messages; also its `argv[0]`.
    pub name: String,
    /// Arguments after `argv[0]`.
    pub args: Vec<String>,
    /// Environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Directories; none by default.
    pub preopens: Vec<Preopen>,
    /// Where standard output and error go; nowhere by default.
    pub log: Option<Arc<ContainerLog>>,
    /// The container's limits.
    pub limits: Arc<SharedLimits>,
    /// Whether [`Guest::wake`] may end a sleep early.
    pub wakeable: bool,
    /// Standard input that is open until it is closed; empty by default.
    pub stdin: Option<Stdin>,
    /// Name of a file; [`Guest::progress`] tells when the guest has finished one of that name.
    pub answer: Option<String>,
}

impl GuestSpec {
    /// A guest without arguments, environment, directories and log.
    pub fn new(name: impl Into<String>, limits: Arc<SharedLimits>) -> Self {
        Self {
            name: name.into(),
            args: Vec::new(),
            env: Vec::new(),
            preopens: Vec::new(),
            log: None,
            limits,
            wakeable: true,
            stdin: None,
            answer: None,
        }
    }
}

/// Why a guest was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its program is not a command.
    #[error(transparent)]
    Program(#[from] LoadError),
    /// One of its directories cannot be opened.
    #[error(transparent)]
    Directory(#[from] PreopenError),
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It returned from `_start` (code 0) or called `proc_exit`.
    Exited(i32),
    /// It trapped: a panic, an out-of-bounds access, a stack overflow.
    Trapped(TrapReport),
    /// It trapped after the container's memory limit refused it memory, or did not fit to begin with.
    OutOfMemory {
        /// The container's limit in bytes.
        limit: usize,
    },
    /// The host ended it.
    Interrupted,
}

impl fmt::Display for Outcome {
    /// As a sentence goes on that names the guest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Trapped(report) => write!(f, "trapped: {report}"),
            Self::OutOfMemory { limit } => write!(f, "needs more than {} MiB of memory", limit >> 20),
            Self::Interrupted => f.write_str("was interrupted"),
        }
    }
}

/// Where and why a guest trapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrapReport {
    /// The engine's words.
    pub message: String,
    /// Functions of the guest, innermost first; at most 32.
    pub frames: Vec<String>,
}

impl fmt::Display for TrapReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for (index, frame) in self.frames.iter().enumerate() {
            write!(f, "{} {frame}", if index == 0 { "; at" } else { " <" })?;
        }
        Ok(())
    }
}

/// A running guest. Dropping it interrupts the guest.
#[derive(Debug)]
pub struct Guest {
    signals: Arc<Signals>,
    interrupt: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Guest {
    /// Ends the guest's sleep, so that it looks at its files now.
    pub fn wake(&self) {
        self.signals.wake();
    }

    /// See [`Signals::names_are_taken`].
    pub fn names_are_taken(&self) {
        self.signals.names_are_taken();
    }

    /// Follows what the guest does.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.signals.progress()
    }

    /// Ends the guest, within one epoch (10 ms) whatever it does.
    pub fn interrupt(&self) {
        self.interrupt.cancel();
    }

    /// Resolves with how the guest ended. May be called again.
    pub fn outcome(&self) -> impl Future<Output = Outcome> + Send + 'static {
        let mut outcome = self.outcome.clone();
        async move {
            match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone().unwrap_or(Outcome::Interrupted),
                // The guest threads were shut down with the runtime.
                Err(_) => Outcome::Interrupted,
            }
        }
    }

    /// Its end, if it has ended.
    pub fn ended(&self) -> Option<Outcome> {
        self.outcome.borrow().clone()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.interrupt.cancel();
    }
}

pub(crate) fn start(
    engine: &Engine,
    threads: &GuestThreads,
    program: &Arc<Program>,
    spec: GuestSpec,
) -> Result<Guest, StartError> {
    program.command()?;
    let limits = spec.limits.clone();
    let signals = Arc::new(Signals::new(spec.wakeable));
    let mut store = build_store(engine, &spec, signals.clone())?;
    let interrupt = CancellationToken::new();
    let (ended, outcome) = watch::channel(None);

    let program = program.clone();
    let run = async move {
        let result = match program.command() {
            Ok(command) => {
                async {
                    let instance = command.instantiate_async(&mut store).await?;
                    let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
                    start.call_async(&mut store, ()).await
                }
                .await
            }
            Err(error) => Err(wasmtime::format_err!("{error}")),
        };
        classify(result, &store.data().limiter)
    };
    let metered = unless_host_panics(spec.name, threads.meter(limits, run));
    let interrupted = interrupt.clone();
    threads.spawn(async move {
        let outcome = tokio::select! {
            biased;
            () = interrupted.cancelled() => Outcome::Interrupted,
            outcome = metered => outcome,
        };
        ended.send_replace(Some(outcome));
    });
    Ok(Guest { signals, interrupt, outcome })
}

/// Calls of guests in which the host panicked, since the process began.
static HOST_PANICS: AtomicU64 = AtomicU64::new(0);

/// A panic of the host in a guest's call ends that guest as a trap does: it is the guest's, and whoever runs it waits before
/// it is run again.
async fn unless_host_panics(name: String, run: impl Future<Output = Outcome>) -> Outcome {
    catch_host_panic(name, run).await.unwrap_or_else(|outcome| outcome)
}

/// The same of what is no guest's whole life: an error is the end that a panic is.
pub(crate) async fn catch_host_panic<T>(name: String, run: impl Future<Output = T>) -> Result<T, Outcome> {
    AssertUnwindSafe(run).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        let number = HOST_PANICS.fetch_add(1, Ordering::Relaxed) + 1;
        tracing::error!(
            guest = name,
            panics = number,
            "the host panicked in a call of a guest: {text}; please report this"
        );
        let message = format!("the host panicked in a call of the guest: {text}");
        Outcome::Trapped(TrapReport { message, frames: Vec::new() })
    })
}

/// Descriptor of the first directory that a guest is given.
const FIRST_PREOPEN: i32 = 3;

/// Builds the store of every guest: the one place where what a guest may use is decided.
pub(crate) fn build_store(
    engine: &Engine,
    spec: &GuestSpec,
    signals: Arc<Signals>,
) -> Result<Store<GuestState>, StartError> {
    let clock = GuestClock::new();
    let may_block = spec.preopens.iter().any(|preopen| !preopen.private);
    let mut wasi = WasiCtxBuilder::new();
    wasi.arg(&spec.name)
        .args(&spec.args)
        .envs(&spec.env)
        .max_random_size(RANDOM_BYTES)
        .monotonic_clock(clock)
        .allow_tcp(false)
        .allow_udp(false)
        .allow_ip_name_lookup(false)
        .allow_blocking_current_thread(!may_block);
    if let Some(stdin) = &spec.stdin {
        wasi.stdin(stdin.clone());
    }
    if let Some(log) = &spec.log {
        wasi.stdout(log.stream(Stream::Stdout));
        wasi.stderr(log.stream(Stream::Stderr));
    }
    let limits = *spec.limits.limits();
    let (mut disk, mut private) = (None, None);
    let mut directories = OpenDirectories::default();
    for (preopen, descriptor) in spec.preopens.iter().zip(FIRST_PREOPEN..) {
        let directory = Arc::new(preopen.give(&mut wasi)?);
        directories.insert(descriptor, directory.clone());
        if preopen.private {
            disk = Some(DiskBudget::new(directory, limits.disk, limits.disk_entries));
            private = Some(descriptor);
        }
    }
    let state = GuestState {
        wasi: wasi.build_p1(),
        limiter: GuestLimiter::new(spec.limits.clone()),
        signals,
        clock,
        disk,
        open_files: 0,
        files: OpenFiles::new(private),
        directories,
        may_block,
        answer: spec.answer.clone(),
        stdin: spec.stdin.clone(),
    };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limiter);
    store.set_hostcall_fuel(HOSTCALL_BYTES);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| Ok(UpdateDeadline::Yield(1)));
    Ok(store)
}

pub(crate) fn classify(result: wasmtime::Result<()>, limiter: &GuestLimiter) -> Outcome {
    let Err(error) = result else { return Outcome::Exited(0) };
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return Outcome::Exited(exit.0);
    }
    if limiter.memory_was_refused() {
        return Outcome::OutOfMemory { limit: limiter.container().limits().memory };
    }
    let message = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map_or_else(Vec::new, |backtrace| {
        backtrace
            .frames()
            .iter()
            .take(32)
            .map(|frame| match frame.func_name() {
                Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
                None => format!("function {}", frame.func_index()),
            })
            .collect()
    });
    Outcome::Trapped(TrapReport { message, frames })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_of_the_host_is_the_end_of_its_guest_only() {
        async fn panics() -> Outcome {
            panic!("out of {}", "order")
        }
        let Outcome::Trapped(report) = unless_host_panics("g".to_owned(), panics()).await else { panic!() };
        assert_eq!(report.message, "the host panicked in a call of the guest: out of order");
        assert!(HOST_PANICS.load(Ordering::Relaxed) > 0);
        assert_eq!(unless_host_panics("g".to_owned(), async { Outcome::Exited(3) }).await, Outcome::Exited(3));
    }
}
