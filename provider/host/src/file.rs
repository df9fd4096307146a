//! Files that are either the old or the new one, whatever happens; directories that go, whatever is in them.

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io::{Error, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// Writes a file so that a reader, or the next start after a kill, finds the old content or the new one.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    write(path, content, mode, false)
}

/// As [`write_atomically`]; when it returns, the content is on the disk. For what cannot be made again.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    write(path, content, mode, true)
}

fn write(path: &Path, content: &[u8], mode: u32, durable: bool) -> std::io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Beside it, of a name that no other writer of the same file has.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", NEXT.fetch_add(1, Ordering::Relaxed)));
    let staged = path.with_file_name(name);
    // Never a file of an earlier life, or of somebody else's with wider rights.
    let _ = std::fs::remove_file(&staged);
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(&staged)?;
    let written = file.write_all(content).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    let placed = written.and_then(|()| std::fs::rename(&staged, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    placed?;
    if durable { sync_directory(path) } else { Ok(()) }
}

/// Makes what was written to a file durable, its name included. Blocks.
pub fn sync(path: &Path) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()?;
    sync_directory(path)
}

fn sync_directory(of: &Path) -> std::io::Result<()> {
    let parent = of.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(parent)?.sync_all()
}

/// Whether a path, if it is there, is reached without a symbolic link. Blocks as long as what it is on does.
pub fn is_reached_without_links(path: &Path) -> std::io::Result<bool> {
    let (flags, resolve) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_SYMLINKS);
    match openat2(CWD, path, flags, Mode::empty(), resolve) {
        Ok(_) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::LOOP) => Ok(false),
        // A kernel or a sandbox without openat2.
        Err(Errno::NOSYS | Errno::PERM) => {
            let links = |part: &Path| std::fs::symlink_metadata(part).is_ok_and(|metadata| metadata.is_symlink());
            Ok(!path.ancestors().any(links))
        }
        Err(error) => Err(error.into()),
    }
}

/// What a file was when it was looked at: inode, length in bytes, and time of its last change. Equal for a file that was not
/// changed since, if it [is settled](FileStamp::is_settled).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    inode: u64,
    length: u64,
    changed: SystemTime,
}

/// The kernel's clock for files has steps of some milliseconds: a file is settled that much after its last change.
pub const CLOCK_STEP: Duration = Duration::from_millis(100);

impl FileStamp {
    /// Of a file with this metadata.
    pub fn of(metadata: &std::fs::Metadata) -> Self {
        let seconds = Duration::from_secs(u64::try_from(metadata.ctime()).unwrap_or(0));
        let rest = Duration::from_nanos(u64::try_from(metadata.ctime_nsec()).unwrap_or(0));
        Self { inode: metadata.ino(), length: metadata.len(), changed: SystemTime::UNIX_EPOCH + seconds + rest }
    }

    /// The same; none for a file that was changed so lately that its next change may look the same.
    pub fn settled(metadata: &std::fs::Metadata) -> Option<Self> {
        let stamp = Self::of(metadata);
        stamp.is_settled(SystemTime::now()).then_some(stamp)
    }

    /// Whether a change after `read` looks different: a file that was read so soon after a change may have been changed since
    /// within the same step of the clock.
    pub fn is_settled(&self, read: SystemTime) -> bool {
        read.duration_since(self.changed).is_ok_and(|age| age > CLOCK_STEP)
    }
}

/// Files that were read, and whether they have been changed since.
#[derive(Debug)]
pub struct ReadFiles {
    files: Vec<(PathBuf, Option<FileStamp>)>,
    at: SystemTime,
}

impl ReadFiles {
    /// To be made before they are read.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let files = paths.into_iter().map(|path| {
            let stamp = stamp_of(&path);
            (path, stamp)
        });
        Self { files: files.collect(), at: SystemTime::now() }
    }

    /// With more of them, which are not read yet.
    #[must_use]
    pub fn and(mut self, paths: impl IntoIterator<Item = PathBuf>) -> Self {
        self.files.extend(Self::new(paths).files);
        self
    }

    /// Whether one of them is another one now, has come or gone. Blocks as long as what they are on does.
    pub fn are_changed(&self) -> bool {
        self.files.iter().any(|(path, was)| {
            let now = stamp_of(path);
            now != *was || now.is_some_and(|stamp| !stamp.is_settled(self.at))
        })
    }
}

fn stamp_of(path: &Path) -> Option<FileStamp> {
    std::fs::metadata(path).ok().map(|metadata| FileStamp::of(&metadata))
}

/// Removes a directory and all that is in it; one that is not there is gone already.
///
/// Somebody hostile may have filled it: no link is followed, and however deep the tree is, it costs two descriptors and no stack.
/// Directories below the first level are moved up before they are emptied. Blocks.
pub fn remove_tree(directory: &Path) -> std::io::Result<()> {
    let root = match open_directory(CWD, directory) {
        Ok(root) => root,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    remove_files(root.as_fd(), |name| {
        found.push(name.to_owned());
        Ok(())
    })?;
    let mut number = 0u64;
    while let Some(name) = found.pop() {
        let below = open_directory(root.as_fd(), &name)?;
        remove_files(below.as_fd(), |inner| {
            // Names that are there already are somebody else's.
            loop {
                let free = CString::new(format!(".removed-{number}")).map_err(Error::other)?;
                number += 1;
                if statat(&root, &free, AtFlags::SYMLINK_NOFOLLOW).is_err() {
                    renameat(&below, inner, &root, &free)?;
                    found.push(free);
                    return Ok(());
                }
            }
        })?;
        unlinkat(&root, &name, AtFlags::REMOVEDIR)?;
    }
    Ok(unlinkat(CWD, directory, AtFlags::REMOVEDIR)?)
}

fn open_directory(at: BorrowedFd<'_>, path: impl rustix::path::Arg) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

/// Removes what is no directory, and hands over the names of directories.
fn remove_files(
    directory: BorrowedFd<'_>,
    mut of_directory: impl FnMut(&CStr) -> std::io::Result<()>,
) -> std::io::Result<()> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => FileType::from_raw_mode(statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
            kind => kind,
        };
        match kind {
            FileType::Directory => of_directory(name)?,
            _ => unlinkat(directory, name, AtFlags::empty())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_of_one_file_do_not_disturb_each_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    (0..100).for_each(|_| write_atomically(path, &[b'0' + writer; 1000], 0o600).unwrap())
                });
            }
        });
        let content = std::fs::read(&path).unwrap();
        assert!(content.len() == 1000 && content.iter().all(|byte| *byte == content[0]));
        write_durably(&path, b"x", 0o600).unwrap();
        sync(&path).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_link_anywhere_in_a_path_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/file"), "").unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("file", root.join("real/last")).unwrap();
        for (path, without) in
            [("real/file", true), ("real/none", true), ("link/file", false), ("link/none", false), ("real/last", false)]
        {
            assert_eq!(is_reached_without_links(&root.join(path)).unwrap(), without, "{path}");
        }
    }
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        write_atomically(&path, b"1", 0o640).unwrap();
        write_durably(&path, b"2", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        assert!(write_atomically(&directory.path().join("directory"), b"", 0o600).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_tree_goes_however_deep_it_is_and_what_its_links_name_stays() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        std::fs::create_dir_all(root.join(".removed-0/x")).unwrap();
        std::fs::write(place.path().join("kept"), "").unwrap();
        std::fs::create_dir(place.path().join("kept-directory")).unwrap();
        std::fs::write(place.path().join("kept-directory/file"), "").unwrap();
        std::os::unix::fs::symlink(place.path().join("kept"), root.join("link")).unwrap();
        std::os::unix::fs::symlink(place.path().join("kept-directory"), root.join("directory-link")).unwrap();
        // Deeper than a recursive walk has stack or descriptors for.
        let mut deep = open_directory(CWD, &root).unwrap();
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&deep, "d", Mode::from_raw_mode(0o755)).unwrap();
            deep = open_directory(deep.as_fd(), "d").unwrap();
        }
        drop(deep);
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert!(place.path().join("kept").exists() && place.path().join("kept-directory/file").exists());
        remove_tree(&root).unwrap();
    }
}
