//! The program's own pages while nothing happens.
//!
//! Most of what a process of ours has in memory is code that was mapped when it was used once: a start, a compile of a
//! regular expression, a call. Those pages are clean and can be mapped again at any time, so a node at rest lets them go, and
//! with them what the allocator keeps for later.

use futures::FutureExt as _;
use rustix::mm::{Advice, madvise};
use std::ffi::c_void;
use std::time::Duration;
use tokio::sync::Notify;

/// How long nothing must have happened.
const QUIET: Duration = Duration::from_secs(5);

/// How long after a component's step free pages of the heap are given back. Those that poll do so every ten seconds and more, and to
/// have the pages again takes less than a millisecond.
const BETWEEN: Duration = Duration::from_secs(2);

static WORK: Notify = Notify::const_new();
static STEPS: Notify = Notify::const_new();

/// Something happened that takes code which a process at rest does not need: a pod came or went, a call.
pub fn has_worked() {
    WORK.notify_one();
}

/// A component has taken a step and rests: what it needed of the heap meanwhile is free again, and the same code will be needed soon.
pub fn has_stepped() {
    STEPS.notify_one();
}

/// Heaps of the process. The allocator makes one for each thread if it may, and each keeps what its threads ever needed at once.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// To be called before there are threads, unless the operator says how many heaps there are to be.
///
/// # Safety
/// No other thread may be there.
#[allow(unsafe_code, reason = "there is no other way to say so from within")]
pub unsafe fn have_few_heaps() {
    #[cfg(target_env = "gnu")]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: nobody else changes the allocator, as the caller promises; a number that it does not take changes nothing.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        }
    }
}

/// Gives free pages of the heap back now and then, while components take steps. No wake-up without one.
pub async fn give_back_between_steps() {
    loop {
        STEPS.notified().await;
        tokio::time::sleep(BETWEEN).await;
        // Those of meanwhile are in it.
        let _ = STEPS.notified().now_or_never();
        if let Err(error) = tokio::task::spawn_blocking(give_back).await {
            tracing::debug!(%error, "free memory was not given back");
        }
    }
}

/// Lets the pages of the program's code, and free ones of its heap, go whenever it has come to rest. One wake-up for each time; none without work.
pub async fn let_go_at_rest() {
    loop {
        WORK.notified().await;
        while tokio::time::timeout(QUIET, WORK.notified()).await.is_ok() {}
        match tokio::task::spawn_blocking(let_go).await {
            Ok(Ok(bytes)) => tracing::debug!(bytes, "the node rests: code that is not used is unmapped"),
            Ok(Err(error)) => tracing::debug!(%error, "what this process has mapped cannot be told"),
            Err(error) => tracing::debug!(%error, "code was not unmapped"),
        }
    }
}

/// Gives back what the allocator does not use.
fn give_back() {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "only the allocator knows which pages of its heaps are free")]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back what the allocator does not use, unmaps the clean pages of the program's file, and says how many bytes those were.
///
/// Of the program's file alone: its mappings are there until the process ends, while another one may be gone, and something else at
/// its place, between the look at it and the call.
fn let_go() -> std::io::Result<u64> {
    give_back();
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut bytes = 0;
    for mapping in clean_mappings(&maps, &program.to_string_lossy()) {
        let start = std::ptr::with_exposed_provenance_mut::<c_void>(mapping.start);
        #[allow(
            unsafe_code,
            reason = "the mapping's pages are a file's, unchanged: the next access maps the same bytes again"
        )]
        // SAFETY: the mapping is the program's, which nobody unmaps; it cannot be written and has no pages of its own, so that its
        // contents are the file's before and after.
        let gone = unsafe { madvise(start, mapping.length, Advice::LinuxDontNeed) };
        if gone.is_ok() {
            bytes += mapping.resident;
        }
    }
    Ok(bytes)
}

/// A mapping of a file, as /proc/PID/smaps tells it.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
    /// Bytes of it that are in memory.
    resident: u64,
}

/// The mappings of a file that cannot be written and of which no page was changed, in memory or swapped out (relocations,
/// breakpoints).
fn clean_mappings(smaps: &str, file: &str) -> Vec<Mapping> {
    let mut mappings: Vec<(Mapping, bool)> = Vec::new();
    let mut is_of_file = false;
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            let mapping = of_file(line, file);
            is_of_file = mapping.is_some();
            mappings.extend(mapping.map(|mapping| (mapping, true)));
            continue;
        }
        let Some((mapping, is_clean)) = mappings.last_mut().filter(|_| is_of_file) else { continue };
        let kilobytes = line.split_ascii_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
        match first {
            "Rss:" => mapping.resident = kilobytes.unwrap_or_default() * 1024,
            "Anonymous:" | "Swap:" => *is_clean &= kilobytes == Some(0),
            _ => {}
        }
    }
    mappings
        .into_iter()
        .filter(|(mapping, is_clean)| *is_clean && mapping.resident > 0)
        .map(|(mapping, _)| mapping)
        .collect()
}

/// A mapping's first line, if it is the file's and read-only: `START-END r-xp OFFSET DEVICE INODE PATH`.
fn of_file(line: &str, file: &str) -> Option<Mapping> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.split_once(' ')?;
        rest = after.trim_start_matches(' ');
        Some(word)
    };
    let (start, end) = word()?.split_once('-')?;
    let permissions = word()?;
    let inode = [word()?, word()?, word()?][2];
    let is_read_only = permissions.starts_with('r') && !permissions.contains('w') && permissions.ends_with('p');
    if rest != file || inode == "0" || !is_read_only {
        return None;
    }
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some(Mapping { start, length: end.checked_sub(start)?, resident: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_pages_of_files_are_let_go() {
        let entry = |first: &str, anonymous: u64| {
            let swap = if first.starts_with("d000") { 4 } else { 0 };
            format!("{first}\nRss: 48 kB\nPss: 40 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd ex\n")
        };
        let smaps = [
            entry("1000-5000 r-xp 00001000 fe:00 17 /usr/bin/node", 0),
            entry("5000-6000 r--p 00005000 fe:00 17 /usr/bin/node", 4),
            entry("6000-7000 rw-p 00006000 fe:00 17 /usr/bin/node", 0),
            entry("7000-8000 r--s 00006000 fe:00 18 /var/cache/shared", 0),
            entry("8000-9000 r--p 00000000 00:00 0 [vvar]", 0),
            entry("9000-a000 r-xp 00000000 00:00 0", 0),
            entry("a000-c000 r-xp 00000000 fe:00 19 /a program (deleted)", 0),
            entry("c000-d000 r-xp 00000000 fe:00 20 /usr/lib/libc.so.6", 0),
            entry("d000-e000 r--p 00000000 fe:00 17 /usr/bin/node", 0),
            entry("e000-f000 r-xp 00000000 fe:00 21 /a /usr/bin/node", 0),
        ]
        .concat();
        let places = |file: &str| -> Vec<_> {
            clean_mappings(&smaps, file).iter().map(|mapping| (mapping.start, mapping.length)).collect()
        };
        assert_eq!(places("/usr/bin/node"), [(0x1000, 0x4000)]);
        assert_eq!(places("/a program (deleted)"), [(0xa000, 0x2000)], "it was replaced while it runs");
        let mappings = clean_mappings(&smaps, "/usr/bin/node");
        assert!(mappings.iter().all(|mapping| mapping.resident == 48 * 1024));
    }

    /// Both give back what is free, and one counts it.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[cfg(target_env = "gnu")]
    #[test]
    fn free_pages_between_used_ones_are_given_back() {
        let _alone = ALONE.blocking_lock();
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        // Not as much each as the allocator maps for itself.
        let mut blocks: Vec<_> = (0..2000).map(|_| vec![1_u8; 16 << 10]).collect();
        let kept: Vec<_> = (0..blocks.len()).step_by(2).rev().map(|at| blocks.swap_remove(at)).collect();
        drop(blocks);
        let before = resident();
        give_back();
        assert!(resident() + 8000 < before, "{before} kB, then {} kB", resident());
        assert!(kept.iter().flatten().all(|byte| *byte == 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn code_that_was_let_go_runs_on() {
        let _alone = ALONE.lock().await;
        let let_go = tokio::task::spawn_blocking(let_go).await.unwrap().unwrap();
        assert!(let_go > 100_000, "{let_go}");
        assert_eq!(format!("{:?}", [1.5_f64, 2.0]).len(), 10, "the library's code is mapped again");
    }
}
