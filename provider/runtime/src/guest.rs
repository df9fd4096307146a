//! A guest: one running instance of a program.

use crate::component::EventGrant;
use crate::component::link::{Granted, LinkError};
use crate::directories::OpenDirectories;
use crate::disk::{DiskBudget, OpenFiles};
use crate::limits::{GuestLimiter, HOSTCALL_BYTES, RANDOM_BYTES, SharedLimits};
use crate::log::{ContainerLog, Stream};
use crate::network::NetworkAccess;
use crate::outcome::{Outcome, classify};
use crate::preopen::{Preopen, PreopenError};
use crate::program::{LoadError, Program};
use crate::stdin::Stdin;
use crate::wasi::{GuestClock, GuestState, Progress, Signals};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::WasiCtxBuilder;

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
    /// Whether [`Guest::wake`] may end a sleep early; modules only.
    pub wakeable: bool,
    /// Standard input that is open until it is closed; empty by default.
    pub stdin: Option<Stdin>,
    /// What a component may reach by its sockets; nothing by default. Modules have none.
    pub network: Option<Arc<NetworkAccess>>,
    /// What of the machine's events a component may follow; nothing by default.
    pub events: EventGrant,
    /// Name of a file, modules only; [`Guest::progress`] tells when the guest has finished one of that name.
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
            network: None,
            events: EventGrant::default(),
            answer: None,
        }
    }

    /// Which of the host's own interfaces this gives a component.
    pub(crate) fn granted(&self) -> Granted {
        let joins_groups = self.network.as_ref().is_some_and(|network| network.joins_groups());
        Granted::of(&self.events, joins_groups, !self.preopens.is_empty())
    }
}

/// Why a guest was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its program is not a command.
    #[error(transparent)]
    Program(#[from] LoadError),
    /// It is a component, and imports what it does not get.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It is a component and no command.
    #[error("it does not export wasi:cli/run, which makes a component a command: {0}")]
    NoCommand(String),
    /// One of its directories cannot be opened.
    #[error(transparent)]
    Directory(#[from] PreopenError),
}

/// A running guest. Dropping it interrupts the guest.
#[derive(Debug)]
pub struct Guest {
    signals: Arc<Signals>,
    interrupt: CancellationToken,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Guest {
    pub(crate) fn new(
        signals: Arc<Signals>,
        interrupt: CancellationToken,
        outcome: watch::Receiver<Option<Outcome>>,
    ) -> Self {
        Self { signals, interrupt, outcome }
    }

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

/// All of a module's life, ready to be polled on the guest threads.
pub(crate) fn module_life(
    engine: &Engine,
    program: &Arc<Program>,
    spec: &GuestSpec,
    signals: Arc<Signals>,
) -> Result<impl Future<Output = Outcome> + Send + 'static + use<>, StartError> {
    let command = program.command()?.clone();
    let mut store = build_store(engine, spec, signals)?;
    // Its code stays as long as it runs.
    let program = program.clone();
    Ok(async move {
        let result = async {
            let instance = command.instantiate_async(&mut store).await?;
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
            start.call_async(&mut store, ()).await
        };
        let outcome = classify(result.await, &store.data().limiter);
        drop(program);
        outcome
    })
}

/// Descriptor of the first directory that a guest is given.
const FIRST_PREOPEN: i32 = 3;

/// Builds the store of every module: the one place where what a module may use is decided, as `component::store` is for components.
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
    let limits = spec.limits.limits();
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
