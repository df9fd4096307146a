//! The machine: what it has, and how it is.

use crate::quantity;
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

/// What must be left, or the machine is short of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    memory: Least,
    space: Least,
    inodes: Least,
    processes: Least,
}

/// An amount, or a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Least {
    Amount(f64),
    Percent(f64),
}

impl Least {
    fn is_reached(self, left: u64, all: u64) -> bool {
        match self {
            Self::Amount(least) => (left as f64) < least,
            Self::Percent(least) => left as f64 * 100.0 < all as f64 * least,
        }
    }
}

/// A kubelet's defaults.
impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory: Least::Amount(f64::from(100u32 << 20)),
            space: Least::Percent(10.0),
            inodes: Least::Percent(5.0),
            processes: Least::Percent(10.0),
        }
    }
}

impl std::str::FromStr for Thresholds {
    type Err = String;

    /// `SIGNAL<AMOUNT,...` as a kubelet's `--eviction-hard` has it; what is not named has its default.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut thresholds = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (signal, least) =
                part.split_once('<').ok_or_else(|| format!("{part}: expected SIGNAL<AMOUNT or SIGNAL<PERCENT%"))?;
            let least = match least.strip_suffix('%') {
                Some(percent) => percent.parse().map(Least::Percent).map_err(|error| format!("{part}: {error}"))?,
                None => quantity::parse(least)
                    .map(|least| Least::Amount(least.as_f64()))
                    .map_err(|error| format!("{part}: {error}"))?,
            };
            match signal {
                "memory.available" => thresholds.memory = least,
                "nodefs.available" => thresholds.space = least,
                "nodefs.inodesFree" => thresholds.inodes = least,
                "pid.available" => thresholds.processes = least,
                _ => {
                    return Err(format!(
                        "{signal}: expected memory.available, nodefs.available, nodefs.inodesFree or pid.available"
                    ));
                }
            }
        }
        Ok(thresholds)
    }
}

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
    pub fn read(data: &Path, least: &Thresholds) -> Self {
        Self { memory: memory_pressure(least), disk: disk_pressure(data, least), pid: pid_pressure(least) }
    }
}

fn memory_pressure(least: &Thresholds) -> Option<String> {
    let (available, all) = (meminfo("MemAvailable:")?, meminfo("MemTotal:")?);
    least.memory.is_reached(available, all).then(|| format!("{} MiB of memory are available", available >> 20))
}

fn disk_pressure(data: &Path, least: &Thresholds) -> Option<String> {
    let disk = rustix::fs::statvfs(data).ok()?;
    let (free, all) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    if least.space.is_reached(free, all) {
        return Some(format!("{} MiB of the space of {} are free", free >> 20, data.display()));
    }
    // Some filesystems count no inodes.
    let short = disk.f_files > 0 && least.inodes.is_reached(disk.f_favail, disk.f_files);
    short.then(|| format!("{} of the inodes of {} are free", disk.f_favail, data.display()))
}

fn pid_pressure(least: &Thresholds) -> Option<String> {
    let most: u64 = read("/proc/sys/kernel/pid_max")?.parse().ok()?;
    let load = read("/proc/loadavg")?;
    let tasks: u64 = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let left = most.saturating_sub(tasks);
    least.processes.is_reached(left, most).then(|| format!("{tasks} of {most} processes are in use"))
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
    fn thresholds_are_those_of_a_kubelet() {
        let thresholds: Thresholds = "memory.available<1Gi,nodefs.inodesFree<7%".parse().unwrap();
        let expected = Thresholds {
            memory: Least::Amount(f64::from(1u32 << 30)),
            inodes: Least::Percent(7.0),
            ..Thresholds::default()
        };
        assert_eq!(thresholds, expected);
        assert!(Least::Percent(7.0).is_reached(69, 1000) && !Least::Percent(7.0).is_reached(70, 1000));
        for bad in ["memory.available", "memory.available<much", "cpu.available<1", "nodefs.available<x%"] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
        let short = Pressure::read(Path::new("/"), &"memory.available<8Ei,nodefs.available<101%".parse().unwrap());
        assert!(short.memory.is_some() && short.disk.is_some() && short.pid.is_none());
    }

    #[test]
    fn a_machine_has_cores_memory_and_a_disk() {
        let capacity = Capacity::read(Path::new("/")).unwrap();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory > 1 << 20 && capacity.ephemeral_storage > 1 << 20);
    }
}
