//! How a guest ended, and why.

use crate::limits::GuestLimiter;
use akri_krustlet_metrics::counted;
use futures::FutureExt as _;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

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

impl Outcome {
    /// In one word, as metrics tell it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exited(0) => "exited",
            Self::Exited(_) => "failed",
            Self::Trapped(_) => "trapped",
            Self::OutOfMemory { .. } => "out_of_memory",
            Self::Interrupted => "interrupted",
        }
    }
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

/// Calls of guests in which the host panicked, since the process began.
static HOST_PANICS: AtomicU64 = AtomicU64::new(0);

/// A panic of the host in a guest's call ends that guest as a trap does: it is the guest's, and whoever runs it waits before
/// it is run again.
pub(crate) async fn unless_host_panics(name: String, run: impl Future<Output = Outcome>) -> Outcome {
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

/// How a guest ended, by what its last call returned.
pub(crate) fn classify(result: wasmtime::Result<()>, limiter: &GuestLimiter) -> Outcome {
    let outcome = outcome(result, limiter);
    counted().guests_ended.add([outcome.name()]);
    outcome
}

fn outcome(result: wasmtime::Result<()>, limiter: &GuestLimiter) -> Outcome {
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
