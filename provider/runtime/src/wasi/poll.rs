//! `poll_oneoff`: waiting for clocks, for the end of an open standard input, and for the host.

use super::{GuestClock, GuestState, errno, exported_memory, read_u32};
use std::time::Duration;
use tokio::time::Instant;
use wasmtime::{Caller, Result};
use wasmtime_wasi::HostMonotonicClock as _;

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
pub(super) async fn poll_oneoff(
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
