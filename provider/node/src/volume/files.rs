//! Single files, which WASI does not know: each is given in a directory that holds nothing else.
//!
//! A file of the host is linked: what a guest writes is in the host's file, and if the host puts another file in its place, the
//! guest keeps the old one, as with a bind mount. One of another filesystem cannot be linked; for reading only it is copied. A
//! file of a ConfigMap and the like is copied, and not brought up to date, as a kubelet does it; one of a Secret stays in
//! memory, unless a file of the host is in the same directory.

use super::content;
use akri_krustlet_runtime::Preopen;
use rustix::fs::{AtFlags, CWD};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Largest file of another filesystem that is copied, in bytes.
const MOST_COPIED: u64 = 64 << 20;

/// A file, and where a container wants it.
#[derive(Debug)]
pub struct FileMount {
    directory: String,
    name: String,
    read_only: bool,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Link(OwnedFd),
    Copy { volume: PathBuf, path: String, in_memory: bool },
}

impl FileMount {
    /// The file itself.
    pub fn link(guest: &str, file: OwnedFd, read_only: bool) -> Result<Self, String> {
        Self::new(guest, read_only, Source::Link(file))
    }

    /// What a volume that the node makes has at a path now; a copy of what is `in_memory` stays there.
    pub fn copy(guest: &str, volume: &Path, path: &str, in_memory: bool) -> Result<Self, String> {
        Self::new(guest, true, Source::Copy { volume: volume.to_owned(), path: path.to_owned(), in_memory })
    }

    fn new(guest: &str, read_only: bool, source: Source) -> Result<Self, String> {
        let (directory, name) = guest.rsplit_once('/').unwrap_or(("", guest));
        if name.is_empty() {
            return Err("a file needs a name".to_owned());
        }
        let directory = if directory.is_empty() { "/" } else { directory };
        Ok(Self { directory: directory.to_owned(), name: name.to_owned(), read_only, source })
    }
}

/// Where a container's single files are put. Each is for these alone.
#[derive(Debug)]
pub struct Private {
    /// On the disk.
    pub disk: PathBuf,
    /// For copies of files that are in memory; where they are not, there is none.
    pub memory: Option<PathBuf>,
}

/// Puts the files into directories of `private`, one for each directory of the guest.
pub fn preopens(files: Vec<FileMount>, private: &Private) -> Result<Vec<Preopen>, String> {
    for private in [Some(&private.disk), private.memory.as_ref()].into_iter().flatten() {
        akri_krustlet_host::file::remove_tree(private).map_err(|error| format!("{}: {error}", private.display()))?;
    }
    let mut directories: BTreeMap<String, Vec<FileMount>> = BTreeMap::new();
    for file in files {
        directories.entry(file.directory.clone()).or_default().push(file);
    }
    let mut preopens = Vec::new();
    for (number, (guest, files)) in directories.into_iter().enumerate() {
        // A file of the host can be linked on its own filesystem only: beside one, copies are on the disk.
        let is_copy = |file: &FileMount| matches!(file.source, Source::Copy { .. });
        let is_secret = files.iter().any(|file| matches!(file.source, Source::Copy { in_memory: true, .. }));
        let place = private.memory.as_ref().filter(|_| is_secret && files.iter().all(is_copy)).unwrap_or(&private.disk);
        // Of files for reading only, a guest cannot replace one by another either.
        let read_only = files.iter().all(|file| file.read_only);
        let host = place.join(number.to_string());
        put(&files, &host)?;
        preopens.push(Preopen { read_only, ..Preopen::new(host, guest) });
    }
    Ok(preopens)
}

fn put(files: &[FileMount], directory: &Path) -> Result<(), String> {
    for file in files {
        let to = directory.join(&file.name);
        let put = crate::data_directory::make_directory(directory).and_then(|()| match &file.source {
            Source::Copy { volume, path, .. } => content::copy(volume, path, &to),
            Source::Link(from) => {
                let from = format!("/proc/self/fd/{}", from.as_raw_fd());
                match rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::SYMLINK_FOLLOW) {
                    Err(rustix::io::Errno::XDEV) if file.read_only && is_small(&from) => copy_bounded(&from, &to),
                    linked => Ok(linked?),
                }
            }
        });
        put.map_err(|error| match (&file.source, error.raw_os_error()) {
            (Source::Link(_), Some(code)) if code == rustix::io::Errno::XDEV.raw_os_error() => format!(
                "{}/{}: a file can be given if it is on the filesystem of the data directory, or read-only and at most {} MiB; mount the directory that it is in",
                file.directory,
                file.name,
                MOST_COPIED >> 20
            ),
            _ => format!("{}/{}: {error}", file.directory, file.name),
        })?;
    }
    Ok(())
}

/// Files of the kernel say that they are empty, and may go on without end.
fn copy_bounded(from: &str, to: &Path) -> std::io::Result<()> {
    use std::io::Read as _;
    let mut source = std::fs::File::open(from)?.take(MOST_COPIED + 1);
    let copied = std::io::copy(&mut source, &mut std::fs::File::create(to)?)?;
    if copied > MOST_COPIED {
        std::fs::remove_file(to)?;
        return Err(std::io::Error::other(format!("it has more than {} MiB", MOST_COPIED >> 20)));
    }
    Ok(())
}

fn is_small(path: &str) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MOST_COPIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_alone_and_those_of_the_host_are_the_hosts() {
        let place = tempfile::tempdir().unwrap();
        let (host, volume) = (place.path().join("host.conf"), place.path().join("volume"));
        std::fs::write(&host, "of the host").unwrap();
        std::fs::write(place.path().join("secret"), "x").unwrap();
        std::fs::create_dir_all(volume.join("tree/deep")).unwrap();
        std::fs::write(volume.join("key"), "1").unwrap();
        std::fs::write(volume.join("tree/deep/leaf"), "2").unwrap();
        let mounts = || {
            vec![
                FileMount::link("/etc/app/app.conf", std::fs::File::open(&host).unwrap().into(), false).unwrap(),
                FileMount::copy("/etc/app/key.conf", &volume, "key", false).unwrap(),
                FileMount::copy("/tree", &volume, "tree", true).unwrap(),
            ]
        };
        let memory = place.path().join("memory");
        let private = Private { disk: place.path().join("files"), memory: Some(memory.clone()) };
        // A container may start many times.
        for _ in 0..2 {
            let preopens = preopens(mounts(), &private).unwrap();
            let guests: Vec<_> = preopens.iter().map(|preopen| (preopen.guest.as_str(), preopen.read_only)).collect();
            assert_eq!(guests, [("/", true), ("/etc/app", false)]);
            assert!(preopens[0].host.starts_with(&memory) && !preopens[1].host.starts_with(&memory));
            let app = &preopens[1].host;
            assert_eq!(std::fs::read_dir(app).unwrap().count(), 2);
            std::fs::write(app.join("app.conf"), "of the guest").unwrap();
            assert_eq!(std::fs::read_to_string(&host).unwrap(), "of the guest");
            std::fs::write(app.join("key.conf"), "3").unwrap();
            assert_eq!(std::fs::read_to_string(volume.join("key")).unwrap(), "1");
            assert_eq!(std::fs::read_to_string(preopens[0].host.join("tree/deep/leaf")).unwrap(), "2");
        }
        assert!(FileMount::copy("/", &volume, "key", false).is_err());
    }
}
