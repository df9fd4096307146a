//! What a Linux node takes of the machine, and how it is given back.

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// One file for each share, locked by whoever has it, and what is too long for a cluster's directory: sockets.
const DIRECTORY: &str = "/run/akri-krustlet";
/// As many as there are numbers for.
const MOST: u8 = 200;
/// The mounts of cgroup v1's controllers, or of cgroup v2.
const CGROUPS: &str = "/sys/fs/cgroup";

/// A share of the machine: a number, from which names and addresses follow, so that two nodes do not meet.
///
/// # Guarantees
/// - It is one node's alone. The lock goes with the process, however that ends.
/// - What a node left that could not clean up after itself is taken away when the next one takes a share.
#[derive(Debug)]
pub struct Share {
    number: u8,
    lock: File,
}

impl Share {
    /// Takes the first free one for a node with its files in `files`, which go when the share does.
    pub fn take(files: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(DIRECTORY).context(DIRECTORY)?;
        let mut taken = None;
        for number in 0..MOST {
            let path = lock_file(number);
            if taken.is_some() && !path.exists() {
                continue;
            }
            let mut lock = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let mut left = String::new();
            lock.read_to_string(&mut left)?;
            if let Err(error) = sweep(number, Path::new(&left)) {
                eprintln!("what an earlier Linux node has left stays for now: {error:#}");
                continue;
            }
            // What it names is gone, and may be another node's by the time of the next sweep.
            lock.set_len(0)?;
            if taken.is_none() {
                std::fs::write(&path, files.as_os_str().as_encoded_bytes())?;
                std::fs::create_dir_all(run(number))?;
                taken = Some(Self { number, lock });
            }
        }
        taken.with_context(|| format!("{MOST} Linux nodes run on this machine already"))
    }

    /// For sockets and what else needs a short path.
    pub fn run(&self) -> PathBuf {
        run(self.number)
    }

    /// The cgroup that everything of the node is in.
    pub fn cgroup(&self) -> String {
        cgroup(self.number)
    }

    /// The network bridge of its pods; made by the CNI plugin.
    pub fn bridge(&self) -> String {
        bridge(self.number)
    }

    /// The addresses of its pods, of a range that RFC 2544 keeps for tests.
    pub fn pods(&self) -> String {
        format!("198.19.{}.0/24", self.number)
    }

    /// The node's address.
    pub fn address(&self) -> String {
        format!("198.18.0.{}", self.number + 1)
    }

    /// Makes the link that has the node's address: a kubelet takes no loopback address.
    pub fn make_link(&self) -> anyhow::Result<()> {
        let link = link(self.number);
        // Not every kernel has dummies; a bridge without ports will do, and the pods need bridges anyway.
        ip(&["link", "add", &link, "type", "dummy"]).or_else(|_| ip(&["link", "add", &link, "type", "bridge"]))?;
        ip(&["address", "add", &format!("{}/32", self.address()), "dev", &link])?;
        ip(&["link", "set", &link, "up"])
    }

    /// Makes the node's cgroup, in each hierarchy.
    pub fn make_cgroup(&self) -> anyhow::Result<()> {
        for directory in cgroups(self.number)? {
            std::fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            // A new one of cgroup v1 has no processor and no memory of its own until it is told which.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Some(parent) = directory.parent()
                    && let Ok(value) = std::fs::read_to_string(parent.join(file))
                    && !value.trim().is_empty()
                {
                    let _ = std::fs::write(directory.join(file), value);
                }
            }
        }
        Ok(())
    }

    /// Takes away what is left of the node, whose processes have been ended.
    pub fn give_back(&self, files: &Path) -> anyhow::Result<()> {
        sweep(self.number, files)?;
        Ok(self.lock.set_len(0)?)
    }
}

fn lock_file(number: u8) -> PathBuf {
    Path::new(DIRECTORY).join(format!("linux-node-{number}"))
}

fn run(number: u8) -> PathBuf {
    Path::new(DIRECTORY).join(format!("linux-node-{number}.run"))
}

fn link(number: u8) -> String {
    format!("akri-node{number}")
}

fn bridge(number: u8) -> String {
    format!("akri-pods{number}")
}

fn cgroup(number: u8) -> String {
    format!("/akri-krustlet-{number}")
}

/// The directories of a cgroup: one in each hierarchy of cgroup v1, or the one of cgroup v2.
fn cgroups(number: u8) -> anyhow::Result<Vec<PathBuf>> {
    let root = Path::new(CGROUPS);
    let name = cgroup(number);
    let name = name.trim_start_matches('/');
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.join(name)]);
    }
    let entries = std::fs::read_dir(root).context(CGROUPS)?;
    let hierarchies = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(hierarchies.map(|hierarchy| hierarchy.path().join(name)).collect())
}

/// Ends what runs in the node's cgroup and removes that, the links and the files.
fn sweep(number: u8, files: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for directory in cgroups(number)? {
        while directory.exists() {
            end_processes(&directory);
            remove_cgroup(&directory);
            if Instant::now() > deadline {
                bail!("the cgroup {} of an earlier Linux node cannot be removed", directory.display());
            }
            if directory.exists() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    for link in [link(number), bridge(number)] {
        if Path::new("/sys/class/net").join(&link).exists() {
            ip(&["link", "delete", &link])?;
        }
    }
    for directory in [run(number), files.to_owned()] {
        // The path of the files was read from a file: nothing else is removed.
        let is_ours = directory == run(number) || directory.ends_with(super::FILES);
        if is_ours && directory.is_absolute() && directory.exists() {
            std::fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
    }
    Ok(())
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn end_processes(cgroup: &Path) {
    let processes = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        let _ = kill_process(pid, Signal::KILL);
    }
    subdirectories(cgroup).iter().for_each(|directory| end_processes(directory));
}

/// From the leaves up; one that is still in use stays.
fn remove_cgroup(cgroup: &Path) {
    subdirectories(cgroup).iter().for_each(|directory| remove_cgroup(directory));
    let _ = std::fs::remove_dir(cgroup);
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip (Debian: apt-get install iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
