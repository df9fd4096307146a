//! The machine and this process, by /proc.

use crate::cluster::machine::meminfo;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Ticks of the kernel's clock in a second, as /proc counts.
fn ticks() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// Now, in seconds of Unix time.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A process, this one.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub cpu_seconds: f64,
    pub resident_bytes: f64,
    pub virtual_bytes: f64,
    pub threads: f64,
    pub open_files: f64,
    pub most_open_files: Option<u64>,
}

pub(super) fn process() -> Process {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let page = rustix::param::page_size() as f64;
    let memory = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = memory.split_ascii_whitespace().map(|pages| pages.parse::<f64>().unwrap_or_default() * page);
    let entries = |path: &str| std::fs::read_dir(path).map_or(0.0, |entries| entries.count() as f64);
    Process {
        cpu_seconds: time.tv_sec as f64 + time.tv_nsec as f64 / 1e9,
        virtual_bytes: pages.next().unwrap_or_default(),
        resident_bytes: pages.next().unwrap_or_default(),
        threads: entries("/proc/self/task"),
        open_files: entries("/proc/self/fd"),
        most_open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    }
}

/// When this process began, in seconds of Unix time.
pub(super) fn process_start() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let ticks_after_boot: f64 = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()?;
    Some(boot()? + ticks_after_boot / ticks())
}

/// When the machine was started, in seconds of Unix time.
pub(super) fn boot() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

/// CPU time that all processes and the kernel of the machine have taken since its start.
pub(super) fn cpu() -> Duration {
    let busy = || {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let all: Vec<f64> =
            stat.lines().next()?.split_ascii_whitespace().skip(1).filter_map(|ticks| ticks.parse().ok()).collect();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
        let idle: f64 = all.iter().skip(3).take(2).sum();
        Some((all.iter().take(8).sum::<f64>() - idle) / ticks())
    };
    Duration::try_from_secs_f64(busy().unwrap_or_default()).unwrap_or_default()
}

/// Memory of the machine: what is there, what is left, in bytes.
pub(super) fn memory() -> (u64, u64) {
    let of = |field: &str| meminfo(field).unwrap_or_default();
    (of("MemTotal:"), of("MemAvailable:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_and_this_process_are_told() {
        let (all, left) = memory();
        assert!(left > 0 && left < all);
        assert!(cpu() > Duration::ZERO);
        let started = process_start().unwrap();
        assert!(boot().unwrap() < started && started <= now() + 1.0, "{started}");
        let process = process();
        assert!(process.resident_bytes > 1e6 && process.virtual_bytes > process.resident_bytes);
        assert!(process.threads >= 1.0 && process.open_files >= 3.0 && process.cpu_seconds > 0.0);
    }
}
