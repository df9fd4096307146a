//! Writing and naming: the private directory is bounded, and a finished answer is told.

use super::{GuestState, MODULE, errno, exported_memory, may_create, named, read_u32};
use crate::wasi::reads::{pay_for_bytes, pay_for_call};
use tokio::time::Instant;
use wasmtime::{AsContextMut as _, Caller, Linker, Result};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wiggle::GuestMemory;

/// What writes to files, and what makes or takes names.
pub(super) fn link(linker: &mut Linker<GuestState>) -> Result<()> {
    linker.func_wrap_async(
        MODULE,
        "fd_write",
        |mut caller: Caller<'_, GuestState>, (fd, vectors, count, written): (i32, i32, i32, i32)| {
            Box::new(async move {
                let bytes = match may_write(&mut caller, fd, vectors, count)? {
                    Ok(bytes) => bytes,
                    Err(refused) => return Ok(refused),
                };
                let started = Instant::now();
                let result = call_preview1!(caller, fd_write(fd, vectors, count, written));
                pay_for_bytes(&mut caller, fd, started, written, result)?;
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
                let started = Instant::now();
                let result = call_preview1!(caller, fd_pwrite(fd, vectors, count, offset, written));
                pay_for_bytes(&mut caller, fd, started, written, result)?;
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
                let started = Instant::now();
                let result = call_preview1!(caller, path_create_directory(fd, path, length));
                pay_for_call(&mut caller, started, 0);
                Ok(result)
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
                let started = Instant::now();
                let result = call_preview1!(caller, path_symlink(old, old_length, fd, new, new_length));
                pay_for_call(&mut caller, started, 0);
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
                let started = Instant::now();
                let result = call_preview1!(caller, path_link(fd, flags, old, old_length, new_fd, new, new_length));
                pay_for_call(&mut caller, started, 0);
                Ok(changed_names(&mut caller, &named, result))
            })
        },
    )?;
    linker.func_wrap_async(
        MODULE,
        "path_unlink_file",
        |mut caller: Caller<'_, GuestState>, (fd, path, length): (i32, i32, i32)| {
            Box::new(async move {
                let started = Instant::now();
                let result = call_preview1!(caller, path_unlink_file(fd, path, length));
                pay_for_call(&mut caller, started, 0);
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
                let started = Instant::now();
                let result = call_preview1!(caller, path_rename(fd, old, old_length, new_fd, new, new_length));
                pay_for_call(&mut caller, started, 0);
                Ok(changed_names(&mut caller, &named, result))
            })
        },
    )?;
    Ok(())
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
