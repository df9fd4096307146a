//! Reading, on threads that may block: it is paid by the guest, and a listing is read a piece at a time.

use super::{GuestState, MODULE, errno, exported_memory, is_stdio, read_u32};
use crate::cpu::thread_cpu_time;
use crate::directories::{self, Piece};
use crate::limits::SharedLimits;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use wasmtime::{AsContextMut as _, Caller, Linker, Result};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wiggle::GuestMemory;

/// What one call counts for at most that a thread did which may block, beside the bytes that it read.
const PAID_AT_MOST: Duration = Duration::from_micros(200);
/// Nanoseconds that a byte counts for which such a thread reads.
const PAID_PER_BYTE: f64 = 0.5;

/// `fd_readdir`, `fd_read`, `fd_pread`, `path_filestat_get`.
pub(super) fn link(linker: &mut Linker<GuestState>) -> Result<()> {
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
                pay_for_bytes(&mut caller, fd, started, read, result)?;
                Ok(result)
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
                pay_for_bytes(&mut caller, fd, started, read, result)?;
                Ok(result)
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
                pay_for_call(&mut caller, started, 0);
                Ok(result)
            })
        },
    )?;
    Ok(())
}

/// Charges CPU time that another thread spent for the guest; it waits for it at the end of its turn.
pub(super) fn pay(caller: &mut Caller<'_, GuestState>, time: Duration) {
    let state = caller.data();
    if state.may_block {
        state.limiter.container().owe(time);
    }
}

/// Charges a call that a thread did which may block.
pub(super) fn pay_for_call(caller: &mut Caller<'_, GuestState>, started: Instant, bytes: u64) {
    pay(caller, price(started, bytes));
}

/// It may have waited, which is free, and has moved bytes, which is not.
fn price(started: Instant, bytes: u64) -> Duration {
    let of_bytes = Duration::from_nanos((bytes as f64 * PAID_PER_BYTE) as u64);
    started.elapsed().min(PAID_AT_MOST + of_bytes)
}

/// Of a call whose time nobody sees, with so many bytes.
pub(crate) fn price_of(bytes: usize) -> Duration {
    PAID_AT_MOST / 10 + Duration::from_nanos((bytes as f64 * PAID_PER_BYTE) as u64)
}

/// A call of a component that goes on, on a thread that may block.
pub(crate) struct PaidCall {
    limits: Arc<SharedLimits>,
    started: Instant,
    place: Option<OwnedSemaphorePermit>,
}

impl PaidCall {
    /// When its container has a place for it.
    pub(crate) async fn begin(limits: Arc<SharedLimits>) -> Self {
        let place = limits.file_calls().clone().acquire_owned().await.ok();
        Self { limits, started: Instant::now(), place }
    }

    /// If its container has a place for it now.
    pub(crate) fn try_begin(limits: Arc<SharedLimits>) -> Option<Self> {
        let place = limits.file_calls().clone().try_acquire_owned().ok()?;
        Some(Self { limits, started: Instant::now(), place: Some(place) })
    }

    /// It has moved so many bytes.
    pub(crate) fn ended(self, bytes: usize) {
        let price = price(self.started, bytes as u64);
        self.took(price);
    }

    /// It has ended, and this is what it took.
    pub(crate) fn took(mut self, time: Duration) {
        drop(self.place.take());
        self.limits.owe(time);
    }
}

impl Drop for PaidCall {
    fn drop(&mut self) {
        // Nobody waits for it any more, and its thread may never come back: a FIFO, a server that is away.
        if let Some(place) = self.place.take() {
            place.forget();
        }
    }
}

/// Charges a read or a write: it moved what it says that it has, at `count`. Standard input and output have their own
/// bounds.
pub(super) fn pay_for_bytes(
    caller: &mut Caller<'_, GuestState>,
    fd: i32,
    started: Instant,
    count: i32,
    result: i32,
) -> Result<()> {
    if !is_stdio(fd) && caller.data().may_block {
        let memory = exported_memory(caller)?;
        let bytes = read_u32(memory.data(&*caller), count as u32 as usize).filter(|_| result == errno::SUCCESS);
        pay_for_call(caller, started, bytes.unwrap_or(0).into());
    }
    Ok(())
}

/// Notes a directory that the guest has opened, so that it can be listed.
pub(super) async fn note_directory(
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
    let path = at.checked_add(length).and_then(|end| bytes.get(at..end)).unwrap_or_default().to_vec();
    let Some(parent) = state.directories.get(parent).cloned() else { return Ok(()) };
    let (follows, may_block) = (lookup & 1 != 0, state.may_block);
    let open = move || directories::open_below(&parent, &path, follows);
    let opened = if may_block {
        tokio::task::spawn_blocking(open).await.map_err(|error| wasmtime::format_err!("{error}"))?
    } else {
        open()
    };
    if let Some(directory) = opened {
        let state = caller.data_mut();
        // A descriptor of the host more.
        state.open_files += 1;
        state.directories.insert(descriptor, directory);
    }
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
