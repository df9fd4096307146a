//! What /proc tells about a process.

use std::time::Duration;

/// Bytes.
pub struct Memory {
    pub resident: u64,
    /// Each page divided by the number of processes that have it.
    pub proportional: u64,
    pub private: u64,
    pub dirty: u64,
}

pub fn memory_of(pid: u32) -> Memory {
    let field = |file: &str, names: &[&str]| -> u64 {
        // A process of somebody else may end meanwhile.
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let value = |line: &str| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        text.lines().filter(|line| names.contains(&line.split(':').next().unwrap())).map(value).sum::<u64>() * 1024
    };
    let tables = field("status", &["VmPTE"]);
    let dirty = field("smaps_rollup", &["Private_Dirty"]) + tables;
    let clean = field("smaps_rollup", &["Private_Clean"]);
    let proportional = field("smaps_rollup", &["Pss"]) + tables;
    Memory { resident: field("smaps_rollup", &["Rss"]), proportional, private: dirty + clean, dirty }
}

pub fn cpu_time_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// Finer than the ticks of [`cpu_time_of`].
pub fn exact_cpu_time_of(pid: u32) -> Duration {
    let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(pid.try_into().unwrap())).unwrap();
    clock.now().unwrap().into()
}

/// The processes in a process's namespace.
pub fn processes_beside(pid: u32) -> Vec<u32> {
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(pid);
    let all =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(|pid| namespace(*pid) == wanted).collect()
}

pub fn threads_of(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

pub fn wake_ups_of(pid: u32) -> u64 {
    let of_thread = |status: String| -> u64 {
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok()).map(of_thread).sum()
}

pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}
