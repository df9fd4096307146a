//! Files of a volume that change together.
//!
//! ```text
//! <volume>/..data           -> ..3            the one link that is replaced, by rename
//! <volume>/..3/password                       the files of this version
//! <volume>/password         -> ..data/password
//! ```
//!
//! It is a kubelet's layout, and WASI can follow it: the links are relative and stay inside the volume. A guest that opens
//! `password` gets one version or the other, and one that reads several files can open `..data` first and then read within it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path};

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub content: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Files by their paths in the volume.
pub type Files = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEXT: &str = "..data_next";

/// True if a file may be at this path of a volume.
pub fn is_path(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && !path.starts_with("..") && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Makes a volume hold these files and no others; true if it did not already.
pub fn publish(volume: &Path, files: &Files) -> std::io::Result<bool> {
    make_private_directory(volume)?;
    let current = std::fs::read_link(volume.join(DATA)).ok();
    if let Some(current) = &current
        && read(&volume.join(current)).is_ok_and(|published| published == *files)
    {
        return Ok(false);
    }
    let number = |name: &Path| name.to_str()?.strip_prefix("..")?.parse::<u64>().ok();
    let next = format!("..{}", current.as_deref().and_then(number).unwrap_or(0) + 1);
    let directory = volume.join(&next);
    // Of an attempt that was cut off.
    remove(&directory)?;
    make_private_directory(&directory)?;
    for (path, file) in files {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            make_private_directory(parent)?;
        }
        let mut open = std::fs::OpenOptions::new();
        open.write(true).create_new(true).mode(0o600).open(&path)?.write_all(&file.content)?;
        // Whatever the process' mask is.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode))?;
    }
    remove(&volume.join(NEXT))?;
    std::os::unix::fs::symlink(&next, volume.join(NEXT))?;
    std::fs::rename(volume.join(NEXT), volume.join(DATA))?;
    let first = |path: &String| path.split('/').next().unwrap_or_default().to_owned();
    let names: BTreeSet<_> = files.keys().map(first).collect();
    for name in &names {
        if std::fs::symlink_metadata(volume.join(name)).is_err() {
            std::os::unix::fs::symlink(Path::new(DATA).join(name), volume.join(name))?;
        }
    }
    for entry in std::fs::read_dir(volume)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != DATA && name != next && !names.contains(&name) {
            remove(&volume.join(name))?;
        }
    }
    Ok(true)
}

fn make_private_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files in a directory, as [`publish`] wrote them.
fn read(directory: &Path) -> std::io::Result<Files> {
    let mut files = Files::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next)? {
            let path = entry?.path();
            let metadata = std::fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let mode = metadata.permissions().mode() & 0o7777;
            files.insert(name, File { content: std::fs::read(&path)?, mode });
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(of: &[(&str, &str)]) -> Files {
        of.iter()
            .map(|(path, text)| ((*path).to_owned(), File { content: text.as_bytes().to_vec(), mode: 0o640 }))
            .collect()
    }

    #[test]
    fn files_change_together_and_stale_ones_go() {
        let directory = tempfile::tempdir().unwrap();
        let volume = directory.path().join("v");
        assert!(publish(&volume, &files(&[("a", "1"), ("deep/er/b", "2")])).unwrap());
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(std::fs::read_to_string(volume.join("deep/er/b")).unwrap(), "2");
        assert!(!publish(&volume, &files(&[("a", "1"), ("deep/er/b", "2")])).unwrap(), "nothing to do");
        // Who opened the version before goes on reading it.
        let old = std::fs::canonicalize(volume.join(DATA)).unwrap();
        assert!(publish(&volume, &files(&[("a", "3"), ("c", "4")])).unwrap());
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("deep").exists() && !old.exists());
        assert_eq!(std::fs::metadata(volume.join("c")).unwrap().permissions().mode() & 0o777, 0o640);
        // What an attempt left that was cut off is in nobody's way.
        std::fs::create_dir(volume.join("..3")).unwrap();
        std::fs::write(volume.join("..3/half"), "").unwrap();
        std::os::unix::fs::symlink("..3", volume.join(NEXT)).unwrap();
        assert!(publish(&volume, &files(&[("a", "5")])).unwrap());
        let names: BTreeSet<_> = std::fs::read_dir(&volume)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["..3", "..data", "a"].map(str::to_owned).into());
        // A volume of nothing.
        assert!(publish(&volume, &Files::new()).unwrap());
        assert_eq!(std::fs::read_dir(volume.join(DATA)).unwrap().count(), 0);
    }

    #[test]
    fn paths_stay_in_their_volume() {
        for path in ["a", "a/b", "..", "../a", "/a", "a/../b", "", "..data", "./a"] {
            assert_eq!(is_path(path), ["a", "a/b"].contains(&path), "{path}");
        }
    }
}
