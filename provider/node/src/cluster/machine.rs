//! The machine: what it has, and how it is.

use std::path::Path;

/// What the machine has, in whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of the filesystem with the data directory.
    pub ephemeral_storage: u64,
}

/// What may go wrong with a machine, and whether it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Less memory is available than a guest may want.
    pub memory: Option<String>,
    /// The data directory's filesystem is nearly full.
    pub disk: Option<String>,
    /// The system has hardly any process left to start.
    pub pid: Option<String>,
}

/// Below this, in bytes, memory is short; a kubelet's default.
const LEAST_MEMORY: u64 = 100 << 20;
/// Below these parts, in percent, of what there is, space, inodes and processes are short; a kubelet's defaults.
const LEAST_SPACE: u64 = 10;
const LEAST_INODES: u64 = 5;
const LEAST_PROCESSES: u64 = 10;

impl Capacity {
    /// What is left of it.
    pub fn without(&self, reserved: &Self) -> Self {
        Self {
            cpu_millis: self.cpu_millis.saturating_sub(reserved.cpu_millis),
            memory: self.memory.saturating_sub(reserved.memory),
            ephemeral_storage: self.ephemeral_storage.saturating_sub(reserved.ephemeral_storage),
        }
    }

    /// Of this machine.
    pub fn read(data: &Path) -> std::io::Result<Self> {
        let cores = std::thread::available_parallelism()?.get() as u64;
        let disk = rustix::fs::statvfs(data)?;
        Ok(Self {
            cpu_millis: cores * 1000,
            memory: meminfo("MemTotal:").unwrap_or(0),
            ephemeral_storage: disk.f_blocks * disk.f_frsize,
        })
    }
}

impl Pressure {
    /// Of this machine, now.
    pub fn read(data: &Path) -> Self {
        Self { memory: memory_pressure(), disk: disk_pressure(data), pid: pid_pressure() }
    }
}

fn memory_pressure() -> Option<String> {
    let available = meminfo("MemAvailable:")?;
    (available < LEAST_MEMORY).then(|| format!("{} MiB of memory are available", available >> 20))
}

fn disk_pressure(data: &Path) -> Option<String> {
    let disk = rustix::fs::statvfs(data).ok()?;
    let percent = |free: u64, all: u64| (free * 100).checked_div(all).unwrap_or(100);
    let (space, inodes) = (percent(disk.f_bavail, disk.f_blocks), percent(disk.f_favail, disk.f_files));
    if space < LEAST_SPACE {
        return Some(format!("{space} % of the space of {} is free", data.display()));
    }
    (inodes < LEAST_INODES).then(|| format!("{inodes} % of the inodes of {} are free", data.display()))
}

fn pid_pressure() -> Option<String> {
    let most: u64 = read("/proc/sys/kernel/pid_max")?.parse().ok()?;
    let load = read("/proc/loadavg")?;
    let tasks: u64 = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let left = most.saturating_sub(tasks);
    (left * 100 < most * LEAST_PROCESSES).then(|| format!("{tasks} of {most} processes are in use"))
}

fn meminfo(field: &str) -> Option<u64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}

/// A file of the system in one line, trimmed.
pub(super) fn read(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `PRETTY_NAME` of the operating system.
pub(super) fn os_image() -> Option<String> {
    let release = read("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_cores_memory_and_a_disk() {
        let capacity = Capacity::read(Path::new("/")).unwrap();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory > 1 << 20 && capacity.ephemeral_storage > 1 << 20);
    }
}
