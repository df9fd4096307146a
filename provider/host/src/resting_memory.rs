//! The program's own pages while nothing happens.
//!
//! Most of what a process of ours has in memory is code that was mapped when it was used once: a start, a compile of a
//! regular expression, a call. Those pages are clean and can be mapped again at any time, so a node at rest lets them go, and
//! with them what the allocator keeps for later.

use rustix::mm::{Advice, madvise};
use std::ffi::c_void;
use std::time::Duration;
use tokio::sync::Notify;

/// How long nothing must have happened.
const QUIET: Duration = Duration::from_secs(5);

static WORK: Notify = Notify::const_new();

/// Something happened that takes code which a process at rest does not need: a pod came or went, a call.
pub fn has_worked() {
    WORK.notify_one();
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

/// Gives back what the allocator does not use, unmaps all clean pages of files that this process cannot write, and says how many bytes those were.
fn let_go() -> std::io::Result<u64> {
    #[cfg(target_env = "gnu")]
    #[allow(unsafe_code, reason = "only the allocator knows which pages of its arenas are free")]
    // SAFETY: it may be called at any time, by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut bytes = 0;
    for mapping in clean_mappings(&maps) {
        let start = std::ptr::with_exposed_provenance_mut::<c_void>(mapping.start);
        #[allow(
            unsafe_code,
            reason = "the mapping's pages are a file's, unchanged: the next access maps the same bytes again"
        )]
        // SAFETY: the mapping cannot be written and has no pages of its own, so that its contents are the file's before and after.
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

/// The mappings of files that cannot be written and of which no page was changed.
fn clean_mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings = Vec::new();
    let mut current: Option<Mapping> = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        let kilobytes =
            |words: &mut std::str::SplitAsciiWhitespace<'_>| words.next().and_then(|n| n.parse::<u64>().ok());
        match first {
            "Rss:" => {
                if let (Some(mapping), Some(resident)) = (&mut current, kilobytes(&mut words)) {
                    mapping.resident = resident * 1024;
                }
            }
            // The last one of those that matter: pages that are not the file's any more (relocations, breakpoints).
            "Anonymous:" => {
                if let (Some(mapping), Some(0)) = (current.take(), kilobytes(&mut words)) {
                    mappings.push(mapping);
                }
            }
            _ if first.ends_with(':') => {}
            _ => current = of_file(first, words),
        }
    }
    mappings.retain(|mapping| mapping.resident > 0);
    mappings
}

/// A mapping's first line, if it is a file's and read-only: `START-END r-xp OFFSET DEVICE INODE PATH`.
fn of_file<'a>(range: &str, mut words: impl Iterator<Item = &'a str>) -> Option<Mapping> {
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    let permissions = words.next()?;
    let inode = words.nth(2)?;
    let is_file = inode != "0" && words.next().is_some_and(|path| path.starts_with('/'));
    let fits = is_file && permissions.starts_with('r') && !permissions.contains('w') && permissions.ends_with('p');
    fits.then_some(Mapping { start, length: end.checked_sub(start)?, resident: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_pages_of_files_are_let_go() {
        let entry = |first: &str, anonymous: u64| {
            format!("{first}\nSize: 64 kB\nRss: 48 kB\nPss: 40 kB\nAnonymous: {anonymous} kB\nVmFlags: rd ex\n")
        };
        let smaps = [
            entry("1000-5000 r-xp 00001000 fe:00 17 /usr/bin/node", 0),
            entry("5000-6000 r--p 00005000 fe:00 17 /usr/bin/node", 4),
            entry("6000-7000 rw-p 00006000 fe:00 17 /usr/bin/node", 0),
            entry("7000-8000 r--s 00006000 fe:00 18 /var/cache/shared", 0),
            entry("8000-9000 r--p 00000000 00:00 0 [vvar]", 0),
            entry("9000-a000 r-xp 00000000 00:00 0", 0),
            entry("a000-c000 r-xp 00000000 fe:00 19 /a file (deleted)", 0),
        ]
        .concat();
        let expected = [(0x1000, 0x4000), (0xa000, 0x2000)];
        let mappings = clean_mappings(&smaps);
        assert_eq!(mappings.iter().map(|m| (m.start, m.length)).collect::<Vec<_>>(), expected);
        assert!(mappings.iter().all(|mapping| mapping.resident == 48 * 1024));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn code_that_was_let_go_runs_on() {
        let let_go = tokio::task::spawn_blocking(let_go).await.unwrap().unwrap();
        assert!(let_go > 100_000, "{let_go}");
        assert_eq!(format!("{:?}", [1.5_f64, 2.0]).len(), 10, "the library's code is mapped again");
    }
}
