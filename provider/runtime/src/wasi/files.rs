//! Descriptors: how many files a guest has open, and which they are.

use super::{GuestState, MODULE, errno, exported_memory, is_stdio, may_create, named, read_u32};
use crate::wasi::reads::{note_directory, pay_for_call};
use tokio::time::Instant;
use wasmtime::{AsContextMut as _, Caller, Linker, Result};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wiggle::GuestMemory;

/// `oflags` and `fdflags` of `path_open`.
const OFLAGS_CREAT: i32 = 1;
const OFLAGS_TRUNC: i32 = 8;

/// `path_open`, `fd_close`, `fd_renumber`.
pub(super) fn link(linker: &mut Linker<GuestState>) -> Result<()> {
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
                let started = Instant::now();
                let result = call_preview1!(
                    caller,
                    path_open(fd, lookup, path, length, oflags, rights, inherited, fdflags, opened)
                );
                pay_for_call(&mut caller, started, 0);
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
                if state.directories.close(fd) {
                    state.open_files = state.open_files.saturating_sub(1);
                }
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
                if state.directories.renumber(from, to) {
                    state.open_files = state.open_files.saturating_sub(1);
                }
                if state.files.renumber(from, to) {
                    state.report_answer();
                }
            }
            Ok(result)
        })
    })?;
    Ok(())
}
