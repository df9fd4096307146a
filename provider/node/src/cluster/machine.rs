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
pub enum Least {
    /// In bytes, inodes or processes.
    Amount(f64),
    /// Of all.
    Percent(f64),
}

impl Least {
    fn of(self, all: u64) -> f64 {
        match self {
            Self::Amount(least) => least,
            Self::Percent(percent) => all as f64 * percent / 100.0,
        }
    }
}

impl std::str::FromStr for Least {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix('%') {
            Some(percent) => {
                percent.parse().map(Self::Percent).map_err(|error: std::num::ParseFloatError| error.to_string())
            }
            None => quantity::parse(text).map(|least| Self::Amount(least.as_f64())).map_err(|error| error.to_string()),
        }
    }
}

/// Something that the machine may be short of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortage {
    /// As a kubelet names it.
    pub signal: &'static str,
    /// In words.
    pub what: &'static str,
    /// What must be left.
    pub least: Least,
    /// What is left.
    pub left: u64,
    /// What there is.
    pub all: u64,
}

/// What the machine has left of each thing.
#[derive(Clone, Debug, Default)]
pub struct Shortages {
    /// Memory.
    pub memory: Option<Shortage>,
    /// Space of the data directory's filesystem.
    pub space: Option<Shortage>,
    /// Inodes of it; some filesystems count none.
    pub inodes: Option<Shortage>,
    /// Processes.
    pub pid: Option<Shortage>,
}

impl Shortage {
    /// Less than the least is left, or less than that and what is to be reclaimed.
    pub fn is_met(&self, reclaim: Option<Least>) -> bool {
        let wanted = self.least.of(self.all) + reclaim.map_or(0.0, |reclaim| reclaim.of(self.all));
        (self.left as f64) < wanted
    }

    /// How it is, in words.
    pub fn message(&self) -> String {
        let Self { what, left, all, .. } = self;
        match self.signal {
            "memory.available" | "nodefs.available" => {
                format!("{} of {} MiB {what} are available", left >> 20, all >> 20)
            }
            _ => format!("{left} of {all} {what} are available"),
        }
    }

    /// Of this machine, now. What cannot be told is not short.
    pub fn read(data: &Path, least: &Thresholds) -> Shortages {
        let (space, inodes) = disk(data, least).unzip();
        Shortages { memory: memory(least), space, inodes: inodes.flatten(), pid: processes(least) }
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
            let least = least.parse().map_err(|error| format!("{part}: {error}"))?;
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

fn memory(least: &Thresholds) -> Option<Shortage> {
    let (left, all) = (meminfo("MemAvailable:")?, meminfo("MemTotal:")?);
    Some(Shortage { signal: "memory.available", what: "of memory", least: least.memory, left, all })
}

fn disk(data: &Path, least: &Thresholds) -> Option<(Shortage, Option<Shortage>)> {
    let disk = rustix::fs::statvfs(data).ok()?;
    let space = Shortage {
        signal: "nodefs.available",
        what: "of the data directory's filesystem",
        least: least.space,
        left: disk.f_bavail * disk.f_frsize,
        all: disk.f_blocks * disk.f_frsize,
    };
    let inodes = Shortage {
        signal: "nodefs.inodesFree",
        what: "inodes of the data directory's filesystem",
        least: least.inodes,
        left: disk.f_favail,
        all: disk.f_files,
    };
    Some((space, (disk.f_files > 0).then_some(inodes)))
}

fn processes(least: &Thresholds) -> Option<Shortage> {
    let all: u64 = read("/proc/sys/kernel/pid_max")?.parse().ok()?;
    let load = read("/proc/loadavg")?;
    let tasks: u64 = load.split(' ').nth(3)?.split_once('/')?.1.parse().ok()?;
    let left = all.saturating_sub(tasks);
    Some(Shortage { signal: "pid.available", what: "processes", least: least.processes, left, all })
}

/// An amount of /proc/meminfo, in bytes; the field's name ends with a colon.
pub(crate) fn meminfo(field: &str) -> Option<u64> {
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
        let met = |left| Shortage { signal: "s", what: "w", least: Least::Percent(7.0), left, all: 1000 }.is_met(None);
        assert!(met(69) && !met(70));
        for bad in ["memory.available", "memory.available<much", "cpu.available<1", "nodefs.available<x%"] {
            assert!(bad.parse::<Thresholds>().is_err(), "{bad}");
        }
        let short = Shortage::read(Path::new("/"), &"memory.available<8Ei,nodefs.available<101%".parse().unwrap());
        let met = |shortage: Option<Shortage>| shortage.is_some_and(|shortage| shortage.is_met(None));
        assert!(met(short.memory) && met(short.space) && !met(short.inodes) && !met(short.pid));
    }

    #[test]
    fn a_machine_has_cores_memory_and_a_disk() {
        let capacity = Capacity::read(Path::new("/")).unwrap();
        assert!(capacity.cpu_millis >= 1000 && capacity.memory > 1 << 20 && capacity.ephemeral_storage > 1 << 20);
    }
}
