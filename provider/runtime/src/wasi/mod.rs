//! WASI preview 1 as guests get it: wasmtime's implementation, with what it leaves unbounded bounded here.
//!
//! Some functions of `wasi_snapshot_preview1` are shadowed:
//! - `poll_oneoff`, so that the host can end a guest's sleep ([`Signals::wake`]) and learns that the guest waits;
//! - `path_open`, `fd_close`, `fd_renumber`: open files are counted against the container's limit (EMFILE);
//! - `fd_readdir`, so that a listing costs the host what the guest reads of it (`directories`);
//! - `fd_read`, `fd_pread`, `path_filestat_get`: what they take on threads that block is paid by the guest;
//! - `fd_write`, `fd_pwrite` and what makes entries in a directory: the private directory's size is bounded (ENOSPC),
//!   and the host is told when a file was written ([`Signals::progress`]).
//!
//! No sockets, no inherited environment; standard input is empty or, see [`crate::stdin`], open with nothing in it.

use crate::directories::OpenDirectories;
use crate::disk::{DiskBudget, OpenFiles};
use crate::limits::GuestLimiter;
use crate::stdin::Stdin;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use wasmtime::{Caller, Engine, Extern, Linker, Result};
use wasmtime_wasi::HostMonotonicClock;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::{self, WasiP1Ctx};

/// The guest's memory and state, as the functions of preview 1 take them.
macro_rules! call_preview1 {
    ($caller:ident, $function:ident($($argument:expr),*)) => {{
        let fuel = $caller.as_context_mut().hostcall_fuel();
        let memory = exported_memory(&mut $caller)?;
        let (bytes, state) = memory.data_and_store_mut(&mut $caller);
        preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut state.wasi, fuel);
        preview1::$function(&mut state.wasi, &mut GuestMemory::Unshared(bytes), $($argument),*).await?
    }};
}

mod files;
mod poll;
mod reads;
mod writes;

pub(crate) use reads::{PaidCall, price_of};

const MODULE: &str = "wasi_snapshot_preview1";

/// Error numbers of preview 1 that the shadowed functions return themselves.
mod errno {
    pub(super) const SUCCESS: i32 = 0;
    pub(super) const ACCES: i32 = 2;
    pub(super) const BADF: i32 = 8;
    pub(super) const INVAL: i32 = 28;
    pub(super) const IO: i32 = 29;
    pub(super) const MFILE: i32 = 33;
    pub(super) const NOENT: i32 = 44;
    pub(super) const NOSPC: i32 = 51;
    pub(super) const NOTDIR: i32 = 54;
    pub(super) const NOTSUP: i32 = 58;
}

/// What the host and one guest tell each other while the guest runs.
#[derive(Debug)]
pub struct Signals {
    wake: Notify,
    wakeable: bool,
    progress: watch::Sender<Progress>,
    /// The host has taken names of files away that the guest may have open.
    names_taken: AtomicBool,
}

/// What a guest has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Times that it has begun to wait (`poll_oneoff`).
    pub waits: u64,
    /// Times that it has finished the file that [`crate::GuestSpec::answer`] names: closed it after writing, or given another
    /// file its name.
    pub answers: u64,
}

impl Signals {
    pub(crate) fn new(wakeable: bool) -> Self {
        Self {
            wake: Notify::new(),
            wakeable,
            progress: watch::Sender::new(Progress::default()),
            names_taken: AtomicBool::new(false),
        }
    }

    /// Ends the guest's sleep, or the next one if it is not sleeping. Does nothing for a guest that opted out.
    pub fn wake(&self) {
        if self.wakeable {
            self.wake.notify_one();
        }
    }

    /// The host took names of files in the private directory away: what the guest has open of them still takes room.
    pub fn names_are_taken(&self) {
        self.names_taken.store(true, Ordering::Relaxed);
    }

    /// Follows what the guest does.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }
}

/// The data of a guest's store.
pub(crate) struct GuestState {
    pub(crate) wasi: WasiP1Ctx,
    pub(crate) limiter: GuestLimiter,
    pub(crate) signals: std::sync::Arc<Signals>,
    pub(crate) clock: GuestClock,
    pub(crate) disk: Option<DiskBudget>,
    pub(crate) open_files: usize,
    pub(crate) files: OpenFiles,
    pub(crate) directories: OpenDirectories,
    /// Its volumes may block: its file operations are done by threads that may.
    pub(crate) may_block: bool,
    /// See [`crate::GuestSpec::answer`].
    pub(crate) answer: Option<String>,
    /// An open standard input; an empty one is always ready.
    pub(crate) stdin: Option<Stdin>,
}

impl GuestState {
    /// Bytes of open files that may have no name any more.
    fn nameless_bytes(&mut self) -> u64 {
        if self.signals.names_taken.swap(false, Ordering::Relaxed) {
            self.files.lose_name();
        }
        self.files.nameless_bytes()
    }

    fn report_answer(&self) {
        self.signals.progress.send_modify(|progress| progress.answers += 1);
    }

    /// Whether a path names the file that the host waits for.
    fn is_answer(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next();
        self.answer.as_ref().is_some_and(|answer| name == Some(answer.as_bytes()))
    }
}

/// The guest's monotonic clock: nanoseconds since it was made. Shared with `poll_oneoff`, whose absolute times refer to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestClock(Instant);

impl GuestClock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl HostMonotonicClock for GuestClock {
    fn resolution(&self) -> u64 {
        1
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

fn exported_memory(caller: &mut Caller<'_, GuestState>) -> Result<wasmtime::Memory> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(wasmtime::format_err!("the module does not export its memory as `memory`")),
    }
}

/// A linker with all of preview 1.
pub(crate) fn linker(engine: &Engine) -> Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state: &mut GuestState| &mut state.wasi)?;
    linker.allow_shadowing(true);
    // The codes of a process are a byte; wasmtime-wasi takes those below 126 only.
    linker.func_wrap(MODULE, "proc_exit", |_: Caller<'_, GuestState>, code: i32| -> Result<()> {
        Err(I32Exit(code & 0xff).into())
    })?;
    files::link(&mut linker)?;
    reads::link(&mut linker)?;
    writes::link(&mut linker)?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, GuestState>, (subscriptions, events, count, written): (i32, i32, i32, i32)| {
            Box::new(async move { poll::poll_oneoff(&mut caller, subscriptions, events, count, written).await })
        },
    )?;
    Ok(linker)
}

/// Whether an entry may be made in a directory.
fn may_create(caller: &mut Caller<'_, GuestState>, directory: i32) -> bool {
    let state = caller.data_mut();
    if !state.files.is_private(directory) {
        return true;
    }
    let nameless = state.nameless_bytes();
    state.disk.as_mut().is_none_or(|disk| disk.may_create(nameless))
}

fn is_stdio(descriptor: i32) -> bool {
    (0..=2).contains(&descriptor)
}

/// A path in the guest's memory, or nothing if it is not in there; longer ones than the kernel takes are cut off.
fn named(caller: &mut Caller<'_, GuestState>, at: i32, length: i32) -> Result<Vec<u8>> {
    const MOST: usize = 4096;
    // A guest that has no answer to give has its paths looked at by nobody.
    if caller.data().answer.is_none() {
        return Ok(Vec::new());
    }
    let memory = exported_memory(caller)?;
    let (at, length) = (at as u32 as usize, (length as u32 as usize).min(MOST));
    let path = at.checked_add(length).and_then(|end| memory.data(&*caller).get(at..end));
    Ok(path.unwrap_or_default().to_vec())
}

fn read_u32(memory: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(memory.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
