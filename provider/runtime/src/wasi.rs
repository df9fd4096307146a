//! WASI preview 1 as guests get it: wasmtime's implementation, with what it leaves unbounded bounded here.
//!
//! Some functions of `wasi_snapshot_preview1` are shadowed:
//! - `poll_oneoff`, so that the host can end a guest's sleep ([`Signals::wake`]) and learns that the guest waits;
//! - `path_open`, `fd_close`, `fd_renumber`: open files are counted against the container's limit (EMFILE);
//! - `fd_readdir`, so that a listing costs the host what the guest reads of it ([`crate::directories`]);
//! - `fd_read`, `fd_pread`, `path_filestat_get`: what they take on threads that block is paid by the guest;
//! - `fd_write`, `fd_pwrite` and what makes entries in a directory: the private directory's size is bounded (ENOSPC),
//!   and the host is told when a file was written ([`Signals::progress`]).
//!
//! No sockets, no inherited environment; standard input is empty or, see [`crate::stdin`], open with nothing in it.

use crate::cpu::thread_cpu_time;
use crate::directories::{self, OpenDirectories, Piece};
use crate::disk::{DiskBudget, OpenFiles};
use crate::limits::GuestLimiter;
use crate::stdin::Stdin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use wasmtime::{AsContextMut, Caller, Engine, Extern, Linker, Result};
use wasmtime_wasi::HostMonotonicClock;
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wiggle::GuestMemory;

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

/// The guest's memory and state, as the functions of [`preview1`] take them.
macro_rules! call_preview1 {
    ($caller:ident, $function:ident($($argument:expr),*)) => {{
        let fuel = $caller.as_context_mut().hostcall_fuel();
        let memory = exported_memory(&mut $caller)?;
        let (bytes, state) = memory.data_and_store_mut(&mut $caller);
        preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut state.wasi, fuel);
        preview1::$function(&mut state.wasi, &mut GuestMemory::Unshared(bytes), $($argument),*).await?
    }};
}

fn exported_memory(caller: &mut Caller<'_, GuestState>) -> Result<wasmtime::Memory> {
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => Ok(memory),
        _ => Err(wasmtime::format_err!("the module does not export its memory as `memory`")),
    }
}

/// `oflags` and `fdflags` of `path_open`.
const OFLAGS_CREAT: i32 = 1;
const OFLAGS_TRUNC: i32 = 8;

/// A linker with all of preview 1.
pub(crate) fn linker(engine: &Engine) -> Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    p1::add_to_linker_async(&mut linker, |state: &mut GuestState| &mut state.wasi)?;
    linker.allow_shadowing(true);
    // The codes of a process are a byte; wasmtime-wasi takes those below 126 only.
    linker.func_wrap(MODULE, "proc_exit", |_: Caller<'_, GuestState>, code: i32| -> Result<()> {
        Err(I32Exit(code & 0xff).into())
    })?;
    link_files(&mut linker)?;
    link_reads(&mut linker)?;
    link_writes(&mut linker)?;
    linker.func_wrap_async(
        MODULE,
        "poll_oneoff",
        |mut caller: Caller<'_, GuestState>, (subscriptions, events, count, written): (i32, i32, i32, i32)| {
            Box::new(async move { poll_oneoff(&mut caller, subscriptions, events, count, written).await })
        },
    )?;
    Ok(linker)
}

fn link_files(linker: &mut Linker<GuestState>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "path_open",
        |mut caller: Caller<'_, GuestState>,
         (fd, lookup, path, length, oflags, rights, inherited, fdflags, opened): (
            i32,
            i32,
            i32,
            i32,
            i32,
            i64,
            i64,
            i32,
            i32,
        )| {
            Box::new(async move {
                let state = caller.data_mut();
                if state.open_files >= state.limiter.container().limits().open_files {
                    return Ok(errno::MFILE);
                }
                if oflags & OFLAGS_CREAT != 0 && !may_create(&mut caller, fd) {
                    return Ok(errno::NOSPC);
                }
                let result = call_preview1!(
                    caller,
                    path_open(fd, lookup, path, length, oflags, rights, inherited, fdflags, opened)
                );
                if result == errno::SUCCESS {
                    caller.data_mut().open_files += 1;
                    let named = named(&mut caller, path, length)?;
                    let is_answer = caller.data().is_answer(&named);
                    let memory = exported_memory(&mut caller)?;
                    let descriptor = read_u32(memory.data(&caller), opened as u32 as usize);
                    if let Some(descriptor) = descriptor.filter(|_| oflags & OFLAGS_CREAT == 0) {
                        note_directory(&mut caller, fd, lookup, (path, length), descriptor as i32).await?;
                    }
                    let files = &mut caller.data_mut().files;
                    if let Some(descriptor) = descriptor.filter(|_| files.is_private(fd)) {
                        files.open(descriptor as i32, is_answer);
                        if oflags & OFLAGS_TRUNC != 0 {
                            files.write(descriptor as i32, 0);
                        }
                    }
                }
                Ok(result)
            })
        },
    )?;
    linker.func_wrap_async(MODULE, "fd_close", |mut caller: Caller<'_, GuestState>, (fd,): (i32,)| {
        Box::new(async move {
            if is_stdio(fd) {
                // They stay what they are: their number must not become a file's.
                return Ok(errno::SUCCESS);
            }
            let result = call_preview1!(caller, fd_close(fd));
            if result == errno::SUCCESS {
                let state = caller.data_mut();
                state.open_files = state.open_files.saturating_sub(1);
                state.directories.close(fd);
                if state.files.close(fd) {
                    state.report_answer();
                }
            }
            Ok(result)
        })
    })?;
    linker.func_wrap_async(MODULE, "fd_renumber", |mut caller: Caller<'_, GuestState>, (from, to): (i32, i32)| {
        Box::new(async move {
            if is_stdio(from) || is_stdio(to) {
                return Ok(errno::NOTSUP);
            }
            let result = call_preview1!(caller, fd_renumber(from, to));
            if result == errno::SUCCESS && from != to {
                let state = caller.data_mut();
                state.open_files = state.open_files.saturating_sub(1);
                state.directories.renumber(from, to);
                if state.files.renumber(from, to) {
                    state.report_answer();
                }
            }
            Ok(result)
        })
    })?;
    Ok(())
}

/// What one call counts for at most that a thread did which may block, beside the bytes that it read.
const PAID_AT_MOST: Duration = Duration::from_micros(200);
/// Nanoseconds that a byte counts for which such a thread reads.
const PAID_PER_BYTE: f64 = 0.5;

fn link_reads(linker: &mut Linker<GuestState>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "fd_readdir",
        |mut caller: Caller<'_, GuestState>, (fd, buffer, length, cookie, used): (i32, i32, i32, i64, i32)| {
            Box::new(async move { fd_readdir(&mut caller, fd, (buffer, length), cookie as u64, used).await })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_read",
        |mut caller: Caller<'_, GuestState>, (fd, vectors, count, read): (i32, i32, i32, i32)| {
            Box::new(async move {
                let started = Instant::now();
                let result = call_preview1!(caller, fd_read(fd, vectors, count, read));
                pay_for_read(&mut caller, fd, started, read, result)
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_pread",
        |mut caller: Caller<'_, GuestState>, (fd, vectors, count, offset, read): (i32, i32, i32, i64, i32)| {
            Box::new(async move {
                let started = Instant::now();
                let result = call_preview1!(caller, fd_pread(fd, vectors, count, offset, read));
                pay_for_read(&mut caller, fd, started, read, result)
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_filestat_get",
        |mut caller: Caller<'_, GuestState>, (fd, flags, path, length, stat): (i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let started = Instant::now();
                let result = call_preview1!(caller, path_filestat_get(fd, flags, path, length, stat));
                pay(&mut caller, started.elapsed().min(PAID_AT_MOST));
                Ok(result)
            })
        },
    )?;
    Ok(())
}

/// Charges CPU time that another thread spent for the guest; it waits for it at the end of its turn.
fn pay(caller: &mut Caller<'_, GuestState>, time: Duration) {
    let state = caller.data();
    if let Some(share) = state.limiter.container().cpu().filter(|_| state.may_block) {
        share.owe(time);
    }
}

/// A thread that blocks may have waited, which is free, and has read, which is not.
fn pay_for_read(caller: &mut Caller<'_, GuestState>, fd: i32, started: Instant, read: i32, result: i32) -> Result<i32> {
    if !is_stdio(fd) && caller.data().may_block {
        let memory = exported_memory(caller)?;
        let bytes = read_u32(memory.data(&*caller), read as u32 as usize).filter(|_| result == errno::SUCCESS);
        let of_bytes = Duration::from_nanos((f64::from(bytes.unwrap_or(0)) * PAID_PER_BYTE) as u64);
        let elapsed = started.elapsed();
        pay(caller, elapsed.min(PAID_AT_MOST + of_bytes));
    }
    Ok(result)
}

/// Notes a directory that the guest has opened, so that it can be listed.
async fn note_directory(
    caller: &mut Caller<'_, GuestState>,
    parent: i32,
    lookup: i32,
    (path, length): (i32, i32),
    descriptor: i32,
) -> Result<()> {
    const FILETYPE: usize = 16;
    const DIRECTORY: u8 = 3;
    let fuel = caller.as_context_mut().hostcall_fuel();
    let memory = exported_memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut *caller);
    // Where the guest has nothing: what it is told of its files is not for it.
    let mut stat = [0; 64];
    preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut state.wasi, fuel);
    let told = preview1::fd_filestat_get(&mut state.wasi, &mut GuestMemory::Unshared(&mut stat), descriptor, 0).await?;
    if told != errno::SUCCESS || stat[FILETYPE] != DIRECTORY {
        return Ok(());
    }
    let (at, length) = (path as u32 as usize, length as u32 as usize);
    let path = at.checked_add(length).and_then(|end| bytes.get(at..end)).unwrap_or_default();
    state.directories.open_below(parent, path, lookup & 1 != 0, descriptor);
    Ok(())
}

async fn fd_exists(caller: &mut Caller<'_, GuestState>, fd: i32) -> Result<bool> {
    let fuel = caller.as_context_mut().hostcall_fuel();
    let state = caller.data_mut();
    let mut stat = [0; 24];
    preview1::WasiSnapshotPreview1::set_hostcall_fuel(&mut state.wasi, fuel);
    let told = preview1::fd_fdstat_get(&mut state.wasi, &mut GuestMemory::Unshared(&mut stat), fd, 0).await?;
    Ok(told == errno::SUCCESS)
}

/// Fills the guest's buffer with what follows the cookie. A buffer that is not full says that there is no more.
async fn fd_readdir(
    caller: &mut Caller<'_, GuestState>,
    fd: i32,
    (buffer, length): (i32, i32),
    mut cookie: u64,
    used: i32,
) -> Result<i32> {
    let Some(directory) = caller.data().directories.get(fd).cloned() else {
        let known = fd_exists(caller, fd).await?;
        return Ok(if known { errno::NOTDIR } else { errno::BADF });
    };
    let memory = exported_memory(caller)?;
    let (start, length) = (buffer as u32 as usize, length as u32 as usize);
    let Some(end) = start.checked_add(length).filter(|end| *end <= memory.data_size(&*caller)) else {
        return Err(wasmtime::Trap::MemoryOutOfBounds.into());
    };
    let mut at = start;
    while at < end {
        let (directory, room) = (directory.clone(), end - at);
        let listing = move || {
            let before = thread_cpu_time();
            let piece = directories::read(&directory, cookie, room);
            (piece, thread_cpu_time().saturating_sub(before))
        };
        let may_block = caller.data().may_block;
        let (piece, time) = if may_block {
            tokio::task::spawn_blocking(listing).await.map_err(|error| wasmtime::format_err!("{error}"))?
        } else {
            listing()
        };
        pay(caller, time);
        let Piece { bytes, next, is_last } = match piece {
            Ok(piece) => piece,
            Err(rustix::io::Errno::INVAL) => return Ok(errno::INVAL),
            Err(rustix::io::Errno::NOENT) => return Ok(errno::NOENT),
            Err(rustix::io::Errno::ACCESS) => return Ok(errno::ACCES),
            Err(_) => return Ok(errno::IO),
        };
        memory.write(&mut *caller, at, &bytes)?;
        at += bytes.len();
        cookie = next;
        if is_last {
            break;
        }
        // However large the directory is, others have their turn.
        tokio::task::yield_now().await;
    }
    memory.write(&mut *caller, used as u32 as usize, &u32::try_from(at - start).unwrap_or(u32::MAX).to_le_bytes())?;
    Ok(errno::SUCCESS)
}

fn link_writes(linker: &mut Linker<GuestState>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "fd_write",
        |mut caller: Caller<'_, GuestState>, (fd, vectors, count, written): (i32, i32, i32, i32)| {
            Box::new(async move {
                let bytes = match may_write(&mut caller, fd, vectors, count)? {
                    Ok(bytes) => bytes,
                    Err(refused) => return Ok(refused),
                };
                let result = call_preview1!(caller, fd_write(fd, vectors, count, written));
                Ok(has_written(&mut caller, fd, bytes, result))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "fd_pwrite",
        |mut caller: Caller<'_, GuestState>, (fd, vectors, count, offset, written): (i32, i32, i32, i64, i32)| {
            Box::new(async move {
                let bytes = match may_write(&mut caller, fd, vectors, count)? {
                    Ok(bytes) => bytes,
                    Err(refused) => return Ok(refused),
                };
                let result = call_preview1!(caller, fd_pwrite(fd, vectors, count, offset, written));
                Ok(has_written(&mut caller, fd, bytes, result))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_create_directory",
        |mut caller: Caller<'_, GuestState>, (fd, path, length): (i32, i32, i32)| {
            Box::new(async move {
                if !may_create(&mut caller, fd) {
                    return Ok(errno::NOSPC);
                }
                Ok(call_preview1!(caller, path_create_directory(fd, path, length)))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_symlink",
        |mut caller: Caller<'_, GuestState>, (old, old_length, fd, new, new_length): (i32, i32, i32, i32, i32)| {
            Box::new(async move {
                if !may_create(&mut caller, fd) {
                    return Ok(errno::NOSPC);
                }
                let named = named(&mut caller, new, new_length)?;
                let result = call_preview1!(caller, path_symlink(old, old_length, fd, new, new_length));
                Ok(changed_names(&mut caller, &named, result))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_link",
        |mut caller: Caller<'_, GuestState>,
         (fd, flags, old, old_length, new_fd, new, new_length): (i32, i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                if !may_create(&mut caller, new_fd) {
                    return Ok(errno::NOSPC);
                }
                let named = named(&mut caller, new, new_length)?;
                let result = call_preview1!(caller, path_link(fd, flags, old, old_length, new_fd, new, new_length));
                Ok(changed_names(&mut caller, &named, result))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_unlink_file",
        |mut caller: Caller<'_, GuestState>, (fd, path, length): (i32, i32, i32)| {
            Box::new(async move {
                let result = call_preview1!(caller, path_unlink_file(fd, path, length));
                if result == errno::SUCCESS {
                    caller.data_mut().files.lose_name();
                }
                Ok(result)
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_rename",
        |mut caller: Caller<'_, GuestState>,
         (fd, old, old_length, new_fd, new, new_length): (i32, i32, i32, i32, i32, i32)| {
            Box::new(async move {
                let named = named(&mut caller, new, new_length)?;
                let result = call_preview1!(caller, path_rename(fd, old, old_length, new_fd, new, new_length));
                Ok(changed_names(&mut caller, &named, result))
            })
        },
    )?;
    Ok(())
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

/// A file appeared under this name, complete; one that had it may have lost it.
fn changed_names(caller: &mut Caller<'_, GuestState>, name: &[u8], result: i32) -> i32 {
    if result == errno::SUCCESS {
        let state = caller.data_mut();
        state.files.lose_name();
        if state.is_answer(name) {
            state.report_answer();
        }
    }
    result
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

/// More vectors than this in one write make no sense.
const MOST_VECTORS: usize = 1024;

/// Adds up the vectors of a write and asks the disk budget; the error number if it is refused. Other volumes are not
/// bounded; standard output and error have their own bounds.
fn may_write(
    caller: &mut Caller<'_, GuestState>,
    fd: i32,
    vectors: i32,
    count: i32,
) -> Result<std::result::Result<u64, i32>> {
    if !caller.data().files.is_private(fd) {
        return Ok(Ok(0));
    }
    let count = count as u32 as usize;
    if count > MOST_VECTORS {
        return Ok(Err(errno::INVAL));
    }
    let memory = exported_memory(caller)?;
    let (memory, state) = memory.data_and_store_mut(caller);
    let mut bytes = 0u64;
    for index in 0..count {
        let Some(length) = read_u32(memory, vectors as u32 as usize + index * 8 + 4) else { break };
        bytes += u64::from(length);
    }
    let nameless = state.nameless_bytes();
    if state.disk.as_mut().is_some_and(|disk| !disk.may_write(bytes, nameless)) {
        return Ok(Err(errno::NOSPC));
    }
    Ok(Ok(bytes))
}

/// Notes a write that was done: a number that is no open file leaves nothing behind.
fn has_written(caller: &mut Caller<'_, GuestState>, fd: i32, bytes: u64, result: i32) -> i32 {
    if result == errno::SUCCESS {
        caller.data_mut().files.write(fd, bytes);
    }
    result
}

fn read_u32(memory: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(memory.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// Sizes and offsets of `subscription` and `event` in a guest's memory.
mod layout {
    pub(super) const SUBSCRIPTION: usize = 48;
    pub(super) const EVENT: usize = 32;
    pub(super) const TAG_CLOCK: u8 = 0;
    pub(super) const TAG_READ: u8 = 1;
    pub(super) const CLOCK_REALTIME: u32 = 0;
    pub(super) const CLOCK_MONOTONIC: u32 = 1;
    pub(super) const ABSOLUTE: u16 = 1;
    /// More subscriptions than a guest has files make no sense.
    pub(super) const MOST: usize = 1024;
}

struct Subscription {
    userdata: [u8; 8],
    tag: u8,
    /// For a clock: when it is over.
    due: Option<Instant>,
    /// It is for reading standard input.
    of_stdin: bool,
}

impl Subscription {
    fn read(bytes: &[u8], clock: GuestClock) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let tag = *bytes.get(8)?;
        let userdata = bytes.get(..8)?.try_into().ok()?;
        if tag != layout::TAG_CLOCK {
            let of_stdin = tag == layout::TAG_READ && read_u32(bytes, 16)? == 0;
            return Some(Self { userdata, tag, due: None, of_stdin });
        }
        let id = read_u32(bytes, 16)?;
        let timeout = u64_at(24)?;
        let absolute = u16::from_le_bytes(bytes.get(40..42)?.try_into().ok()?) & layout::ABSOLUTE != 0;
        let relative = match (id, absolute) {
            (layout::CLOCK_REALTIME | layout::CLOCK_MONOTONIC, false) => timeout,
            (layout::CLOCK_MONOTONIC, true) => timeout.saturating_sub(clock.now()),
            (layout::CLOCK_REALTIME, true) => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                timeout.saturating_sub(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
            }
            _ => return None,
        };
        // Further off than a year is as good as never, and `Instant` cannot hold every u64.
        let relative = Duration::from_nanos(relative).min(Duration::from_secs(365 * 24 * 3600));
        Some(Self { userdata, tag, due: Some(Instant::now() + relative), of_stdin: false })
    }

    fn event(&self) -> [u8; layout::EVENT] {
        let mut event = [0; layout::EVENT];
        event[..8].copy_from_slice(&self.userdata);
        event[10] = self.tag;
        event[16] = 1;
        event
    }
}

/// Waits for clocks, for the end of an open standard input, and for the host. Files, standard output and an empty standard
/// input are always ready.
async fn poll_oneoff(
    caller: &mut Caller<'_, GuestState>,
    subscriptions: i32,
    events: i32,
    count: i32,
    written: i32,
) -> Result<i32> {
    let count = count as u32 as usize;
    if count == 0 || count > layout::MOST {
        return Ok(errno::INVAL);
    }
    let memory = exported_memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut *caller);
    let from = subscriptions as u32 as usize;
    let Some(bytes) = bytes.get(from..from + count * layout::SUBSCRIPTION) else {
        return Err(wasmtime::Trap::MemoryOutOfBounds.into());
    };
    let clock = state.clock;
    let read: Option<Vec<_>> =
        bytes.chunks_exact(layout::SUBSCRIPTION).map(|one| Subscription::read(one, clock)).collect();
    let Some(subscriptions) = read else { return Ok(errno::INVAL) };

    state.signals.progress.send_modify(|progress| progress.waits += 1);
    let signals = state.signals.clone();
    let stdin = state.stdin.clone();
    let waits_for_stdin = |subscription: &Subscription| subscription.of_stdin && stdin.is_some();
    let has_files = subscriptions.iter().any(|one| one.due.is_none() && !waits_for_stdin(one));
    let first_due = subscriptions.iter().filter_map(|subscription| subscription.due).min();
    let mut over = Instant::now();
    let mut stdin_ended = false;
    if !has_files {
        let clock = async {
            match first_due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let end = async {
            match &stdin {
                Some(stdin) if subscriptions.iter().any(waits_for_stdin) => stdin.closed().await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = end => stdin_ended = true,
            () = clock => {}
            // The guest is told that its first clock is over: it runs its loop sooner. One without a clock waits on.
            () = signals.wake.notified(), if first_due.is_some() => {}
        }
        if let Some(due) = first_due.filter(|_| !stdin_ended) {
            over = due.max(Instant::now());
        }
    }

    let memory = exported_memory(caller)?;
    let bytes = memory.data_mut(&mut *caller);
    let happened = subscriptions.iter().filter(|one| match one.due {
        Some(due) => due <= over,
        None => !waits_for_stdin(one) || stdin_ended,
    });
    let mut at = events as u32 as usize;
    let mut number = 0u32;
    for subscription in happened {
        let Some(slot) = bytes.get_mut(at..at + layout::EVENT) else {
            return Err(wasmtime::Trap::MemoryOutOfBounds.into());
        };
        slot.copy_from_slice(&subscription.event());
        at += layout::EVENT;
        number += 1;
    }
    let at = written as u32 as usize;
    let Some(slot) = bytes.get_mut(at..at + 4) else {
        return Err(wasmtime::Trap::MemoryOutOfBounds.into());
    };
    slot.copy_from_slice(&number.to_le_bytes());
    Ok(errno::SUCCESS)
}
