//! What must not be on a disk: files of Secrets, tokens and of the pod itself, and emptyDir volumes with `medium: Memory`.
//!
//! ```text
//! <data>/memory/                          a tmpfs of the node, mounted when the first pod needs it
//! <data>/memory/<uid>/volumes/<name>/     files that the node makes; or a tmpfs of its own, of the size that the volume may have
//! <data>/memory/<uid>/files/<container>/  copies of such files, where a container mounts a single one
//! ```
//!
//! As a kubelet's, it outlives the node's process and not the machine. Where the node may not mount, these files are on the disk,
//! and it says so.

use crate::data_directory::{self, file_name, make_directory};
use akri_krustlet_host::file::remove_tree;
use k8s_openapi::api::core::v1::Volume;
use rustix::fs::{CWD, statfs};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Most files of one volume.
const MOST_FILES: u64 = 256 << 10;
/// What a file without content takes of the machine's memory, about, in bytes.
const FILE: u64 = 1 << 10;
/// Of `statfs`.
const TMPFS: rustix::fs::FsWord = 0x0102_1994;
const FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);

/// The node's tmpfs.
#[derive(Debug)]
pub struct MemoryDirectory {
    path: PathBuf,
    /// Whether it was to be had, once somebody asked.
    is_mounted: Mutex<Option<bool>>,
}

impl MemoryDirectory {
    /// At this path, which an earlier life of the node may have used.
    pub fn new(path: PathBuf) -> Self {
        let is_mounted = Mutex::new(is_tmpfs(&path).then_some(true));
        Self { path, is_mounted }
    }

    /// A pod's place in it; none on a node that may not mount.
    pub fn pod(&self, uid: &str) -> Option<PathBuf> {
        let mut is_mounted = self.is_mounted.lock().unwrap_or_else(PoisonError::into_inner);
        let mounted = *is_mounted.get_or_insert_with(|| match mount_tmpfs(&self.path, None) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(
                    "cannot mount a tmpfs at {}: {error}; files of Secrets and volumes with medium Memory are on the disk. \
                     Run the node with CAP_SYS_ADMIN, or mount a tmpfs there before it starts",
                    self.path.display()
                );
                false
            }
        });
        mounted.then(|| self.place(uid))
    }

    fn place(&self, uid: &str) -> PathBuf {
        self.path.join(file_name(uid))
    }

    /// True if files at this path are in memory.
    pub fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.path)
    }

    /// A volume of its own, which holds at most `size` bytes; none on a node that may not mount.
    pub fn volume(&self, uid: &str, volume: &str, size: Option<u64>) -> Option<io::Result<PathBuf>> {
        let path = self.pod(uid)?.join("volumes").join(file_name(volume));
        // It is there if the node was started again.
        Some(if is_mount_point(&path) { Ok(path) } else { mount_tmpfs(&path, size).map(|()| path) })
    }

    /// Bytes that a pod has in volumes of their own.
    pub fn in_use(&self, uid: &str) -> u64 {
        let volumes = std::fs::read_dir(self.place(uid).join("volumes")).into_iter().flatten().flatten();
        let own = volumes.map(|volume| volume.path()).filter(|path| is_mount_point(path));
        let used = own.filter_map(|path| {
            let stat = statfs(&path).ok()?;
            let blocks = stat.f_blocks.saturating_sub(stat.f_bfree);
            let files = stat.f_files.saturating_sub(stat.f_ffree);
            let content = blocks.saturating_mul(u64::try_from(stat.f_bsize).unwrap_or(0));
            Some(content.saturating_add(files.saturating_mul(FILE)))
        });
        used.fold(0, u64::saturating_add)
    }

    /// Takes what a pod has in it aside, to be removed by [`MemoryDirectory::remove_aside`]: its place is free at once.
    pub fn set_aside(&self, uid: &str) {
        self.move_aside(&self.place(uid));
    }

    /// The same of all pods but these.
    pub fn set_others_aside<'a>(&self, kept: impl IntoIterator<Item = &'a String>) {
        let kept: HashSet<_> = kept.into_iter().map(|uid| file_name(uid)).collect();
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let path = entry.path();
            if !data_directory::is_aside(&path) && !kept.contains(&*entry.file_name().to_string_lossy()) {
                self.move_aside(&path);
            }
        }
    }

    fn move_aside(&self, directory: &Path) {
        if let Err(error) = data_directory::move_aside(directory, &self.path) {
            tracing::warn!(directory = %directory.display(), %error, "cannot remove what a pod left in memory");
        }
    }

    /// Removes what was set aside, by an earlier life of the node, too. Blocks.
    pub fn remove_aside(&self) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if data_directory::is_aside(&entry.path())
                && let Err(error) = remove_pod(&entry.path())
            {
                tracing::warn!(directory = %entry.path().display(), %error, "cannot remove what a pod left in memory");
            }
        }
    }

    /// Gives it back if nothing is in it.
    pub fn close(&self) {
        let is_empty = std::fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_none());
        if is_empty && is_mount_point(&self.path) {
            let _ = unmount(&self.path, UnmountFlags::NOFOLLOW);
            *self.is_mounted.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// True for volumes whose files a kubelet keeps in memory.
pub fn is_in_memory(volume: &Volume) -> bool {
    let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
    volume.secret.is_some() || volume.projected.is_some() || volume.downward_api.is_some() || medium == Some("Memory")
}

fn remove_pod(directory: &Path) -> io::Result<()> {
    let mut failed = None;
    for volume in std::fs::read_dir(directory.join("volumes")).into_iter().flatten().flatten() {
        let path = volume.path();
        let removed = match is_mount_point(&path) {
            // Guests may have files of it open; it goes with the last.
            true => unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(io::Error::from),
            // Files of Secrets go, whatever becomes of the others.
            false => remove_tree(&path),
        };
        failed = removed.err().or(failed);
    }
    match failed {
        Some(error) => Err(error),
        None => remove_tree(directory),
    }
}

/// Makes the directory and mounts a tmpfs there, which is not written to a swap device where the kernel knows how.
fn mount_tmpfs(path: &Path, size: Option<u64>) -> io::Result<()> {
    make_directory(path)?;
    // A file without content takes memory, too.
    let files = size.map_or(MOST_FILES, |size| (size / 4096).clamp(1024, MOST_FILES));
    let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let options = format!("mode=0750,nr_inodes={files}{size}");
    Ok(mount_with(path, &format!("{options},noswap")).or_else(|_| mount_with(path, &options))?)
}

fn mount_with(path: &Path, options: &str) -> rustix::io::Result<()> {
    let options = CString::new(options).map_err(|_| rustix::io::Errno::INVAL)?;
    mount("tmpfs", path, "tmpfs", FLAGS, options.as_c_str())
}

fn is_tmpfs(path: &Path) -> bool {
    is_mount_point(path) && statfs(path).is_ok_and(|stat| stat.f_type == TMPFS)
}

/// True if something is mounted exactly there.
fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty());
    stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_bounded_outlive_the_node_and_leave_nothing_mounted() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may mount a tmpfs");
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("memory");
        let memory = MemoryDirectory::new(path.clone());
        assert!(!path.exists(), "it is mounted when it is needed");
        let volume = memory.volume("uid", "v", Some(1 << 20)).unwrap().unwrap();
        assert!(memory.has(&volume) && is_tmpfs(&volume));
        std::fs::write(volume.join("half"), vec![1; 512 << 10]).unwrap();
        let error = std::fs::write(volume.join("more"), vec![1; 1 << 20]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
        assert!((512 << 10..=(1 << 20) + 8 * FILE).contains(&memory.in_use("uid")), "{}", memory.in_use("uid"));
        let files = (0..2000).map(|number| std::fs::write(volume.join(format!("file-{number}")), ""));
        assert!(files.filter(Result::is_err).count() > 900, "files without content are bounded, too");
        // The next life of the node.
        let memory = MemoryDirectory::new(path.clone());
        let volume = memory.volume("uid", "v", Some(1 << 20)).unwrap().unwrap();
        assert!(volume.join("half").exists());
        memory.volume("other", "v", None).unwrap().unwrap();
        memory.close();
        assert!(is_tmpfs(&path), "pods have something in it");
        memory.set_others_aside([&"uid".to_owned()]);
        assert!(volume.exists() && !path.join("other").exists());
        memory.set_aside("uid");
        assert!(!volume.exists());
        // The place is free before the files are gone.
        memory.volume("uid", "v", Some(1 << 20)).unwrap().unwrap();
        memory.remove_aside();
        assert!(is_tmpfs(&volume) && !volume.join("half").exists());
        memory.set_aside("uid");
        memory.remove_aside();
        memory.close();
        assert!(!is_mount_point(&path));
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0);
    }

    #[test]
    fn where_nothing_can_be_mounted_files_are_on_the_disk() {
        let place = tempfile::tempdir().unwrap();
        std::fs::write(place.path().join("memory"), "a file").unwrap();
        let memory = MemoryDirectory::new(place.path().join("memory"));
        assert_eq!(memory.pod("uid"), None);
        assert!(memory.volume("uid", "v", None).is_none());
        assert_eq!(memory.in_use("uid"), 0);
    }
}
