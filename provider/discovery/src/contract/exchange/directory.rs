//! The directory that one guest and the node share.
//!
//! It is the guest's to write in, so everything in it is hostile. The node touches it only through its file
//! descriptor and by single file names, follows no symbolic link, reads regular files only and no more than a bound, and
//! prepares what it writes outside, where the guest cannot reach.

use akri_krustlet_host::file::FileStamp;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// The request's file.
pub const REQUEST: &str = "in.in";
/// The answer's file; removed once it is read.
pub const ANSWER: &str = "out.out";

/// What is wrong with a file that a guest left for the node.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// It is not a regular file.
    #[error("{name} is {kind}; the node takes regular files only")]
    NotRegular {
        /// The file.
        name: String,
        /// What it is instead.
        kind: &'static str,
    },
    /// It is larger than the node reads.
    #[error("{name} has more than {most} bytes")]
    TooLarge {
        /// The file.
        name: String,
        /// Bytes that are read at most.
        most: usize,
    },
    /// The system refused.
    #[error("{name}: {source}")]
    Io {
        /// The file.
        name: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl ExchangeError {
    fn named(self, new: &str) -> Self {
        match self {
            Self::NotRegular { kind, .. } => Self::NotRegular { name: new.to_owned(), kind },
            Self::TooLarge { most, .. } => Self::TooLarge { name: new.to_owned(), most },
            Self::Io { source, .. } => Self::Io { name: new.to_owned(), source },
        }
    }
}

/// Where the exchange directories of one container are made.
#[derive(Debug)]
pub struct ExchangeRoot {
    path: PathBuf,
    descriptor: OwnedFd,
    next: AtomicU64,
}

impl ExchangeRoot {
    /// Makes the directory, empty: what an earlier life of the node left there is removed.
    pub fn create(path: &Path) -> std::io::Result<Arc<Self>> {
        use std::os::unix::fs::DirBuilderExt as _;
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let descriptor = open_directory(rustix::fs::CWD, path)?;
        Ok(Arc::new(Self { path: path.to_owned(), descriptor, next: AtomicU64::new(0) }))
    }
}

/// The directory that one guest and the node share.
#[derive(Debug)]
pub struct ExchangeDirectory {
    root: Arc<ExchangeRoot>,
    name: String,
    descriptor: OwnedFd,
    /// The answer that was taken last. A guest that writes its answer in place may still be writing it.
    taken: Mutex<Option<Taken>>,
}

/// An answer's file, which has no name any more.
#[derive(Debug)]
struct Taken {
    file: std::fs::File,
    /// What it was when it was read; none if that cannot be told.
    stamp: Option<FileStamp>,
    read: SystemTime,
}

impl ExchangeDirectory {
    /// Makes an empty directory.
    pub fn create(root: &Arc<ExchangeRoot>) -> std::io::Result<Self> {
        let name = root.next.fetch_add(1, Ordering::Relaxed).to_string();
        rustix::fs::mkdirat(&root.descriptor, &name, Mode::from(0o700))?;
        let descriptor = open_directory(root.descriptor.as_fd(), Path::new(&name))?;
        Ok(Self { root: root.clone(), name, descriptor, taken: Mutex::default() })
    }

    /// Its path on the host.
    pub fn path(&self) -> PathBuf {
        self.root.path.join(&self.name)
    }

    /// Puts a file in place, complete, replacing whatever has its name.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<(), ExchangeError> {
        let failed = |source: std::io::Error| ExchangeError::Io { name: name.to_owned(), source };
        // Beside the guest's directory, not in it.
        let staged = format!(".{}-{name}", self.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.root.descriptor, &staged, flags, Mode::from(0o600))
            .map_err(|error| failed(error.into()))?;
        std::fs::File::from(file).write_all(content).map_err(failed)?;
        let rename = || rustix::fs::renameat(&self.root.descriptor, &staged, &self.descriptor, name);
        match rename() {
            // The guest made a directory of that name.
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
                self.clear(name);
                rename()
            }
            renamed => renamed,
        }
        .map_err(|error| failed(error.into()))
    }

    /// Removes a file, or a directory with all that is in it.
    pub fn clear(&self, name: &str) {
        if rustix::fs::unlinkat(&self.descriptor, name, AtFlags::empty()) == Err(Errno::ISDIR) {
            // The standard library walks by descriptors and does not follow links either.
            let _ = std::fs::remove_dir_all(self.path().join(name));
        }
    }

    /// Takes the answer away, if there is one. One that is not a regular file or too large is removed and is an error. An answer
    /// that was taken while the guest was writing it comes again when it is another one.
    pub fn take_answer(&self, most: usize) -> Result<Option<Vec<u8>>, ExchangeError> {
        let mut last = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // Moved out of the guest's reach first: an answer that it writes under this name meanwhile is the next one.
        let taken = format!(".{}-{ANSWER}", self.name);
        match rustix::fs::renameat(&self.descriptor, ANSWER, &self.root.descriptor, &taken) {
            Ok(()) => {}
            Err(Errno::NOENT) => return read_again(&mut last, most),
            Err(error) => return Err(ExchangeError::Io { name: ANSWER.to_owned(), source: error.into() }),
        }
        let opened = open_regular(self.root.descriptor.as_fd(), &taken);
        if rustix::fs::unlinkat(&self.root.descriptor, &taken, AtFlags::empty()) == Err(Errno::ISDIR) {
            let _ = std::fs::remove_dir_all(self.root.path.join(&taken));
        }
        let Some(file) = opened.map_err(|error| error.named(ANSWER))? else { return Ok(None) };
        let stamp = stamp(&file);
        let content = read_bounded(&file, ANSWER, most);
        *last = content.is_ok().then(|| Taken { file, stamp, read: SystemTime::now() });
        content.map(Some)
    }

    /// Removes the directory. The guest must have ended.
    pub fn remove(&self) {
        if let Err(error) = std::fs::remove_dir_all(self.path())
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path().display(), %error, "cannot remove an exchange directory");
        }
    }
}

/// Files that belong to the user, by name.
pub type Files = BTreeMap<OsString, Arc<[u8]>>;

pub(crate) fn open_directory(at: BorrowedFd<'_>, path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(at, path, flags, Mode::empty())?)
}

/// Reads the answer that was taken last, if the guest has written it since.
fn read_again(last: &mut Option<Taken>, most: usize) -> Result<Option<Vec<u8>>, ExchangeError> {
    let Some(taken) = last else { return Ok(None) };
    let now = stamp(&taken.file);
    if now == taken.stamp && now.is_none_or(|stamp| stamp.is_settled(taken.read)) {
        return Ok(None);
    }
    (taken.stamp, taken.read) = (now, SystemTime::now());
    read_bounded(&taken.file, ANSWER, most).map(Some)
}

fn stamp(file: &std::fs::File) -> Option<FileStamp> {
    file.metadata().ok().map(|metadata| FileStamp::of(&metadata))
}

/// Reads a regular file of at most `most` bytes by its single name in `directory`, following no link; `None` if it is not
/// there.
pub(crate) fn read_regular(
    directory: BorrowedFd<'_>,
    name: &str,
    most: usize,
) -> Result<Option<Vec<u8>>, ExchangeError> {
    open_regular(directory, name)?.map(|file| read_bounded(&file, name, most)).transpose()
}

/// A file from its beginning.
fn read_bounded(mut file: &std::fs::File, name: &str, most: usize) -> Result<Vec<u8>, ExchangeError> {
    let failed = |source: std::io::Error| ExchangeError::Io { name: name.to_owned(), source };
    file.seek(std::io::SeekFrom::Start(0)).map_err(failed)?;
    let length = file.metadata().map_or(0, |metadata| usize::try_from(metadata.len()).unwrap_or(usize::MAX));
    if length > most {
        return Err(ExchangeError::TooLarge { name: name.to_owned(), most });
    }
    let mut content = Vec::with_capacity(length);
    file.take(most as u64 + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() > most {
        return Err(ExchangeError::TooLarge { name: name.to_owned(), most });
    }
    Ok(content)
}

/// Opens a regular file, following no link.
fn open_regular(directory: BorrowedFd<'_>, name: &str) -> Result<Option<std::fs::File>, ExchangeError> {
    let failed = |source: std::io::Error| ExchangeError::Io { name: name.to_owned(), source };
    let not_regular = |kind| ExchangeError::NotRegular { name: name.to_owned(), kind };
    // NONBLOCK: opening a FIFO must not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = match rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve) {
        // A kernel or a sandbox without openat2: for a single name, NOFOLLOW says the same.
        Err(Errno::NOSYS | Errno::PERM) if !name.contains('/') => {
            rustix::fs::openat(directory, name, flags, Mode::empty())
        }
        opened => opened,
    };
    let file = match opened {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP) => return Err(not_regular("a symbolic link")),
        Err(Errno::NXIO) => return Err(not_regular("a socket or device")),
        Err(error) => return Err(failed(error.into())),
    };
    let stat = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(Some(file)),
        FileType::Directory => Err(not_regular("a directory")),
        FileType::Fifo => Err(not_regular("a FIFO")),
        _ => Err(not_regular("a socket or device")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Longer than the step of the kernel's clock for files.
    const SETTLED: Duration = Duration::from_millis(200);

    struct Fixture {
        parent: tempfile::TempDir,
        exchange: ExchangeDirectory,
    }

    fn fixture() -> Fixture {
        let parent = tempfile::tempdir().unwrap();
        let root = ExchangeRoot::create(&parent.path().join("sessions")).unwrap();
        Fixture { parent, exchange: ExchangeDirectory::create(&root).unwrap() }
    }

    #[test]
    fn an_answer_is_taken_once() {
        let Fixture { exchange, parent: _parent } = fixture();
        assert_eq!(exchange.take_answer(10).unwrap(), None);
        std::fs::write(exchange.path().join(ANSWER), "{}").unwrap();
        assert_eq!(exchange.take_answer(10).unwrap(), Some(b"{}".to_vec()));
        std::thread::sleep(SETTLED);
        let _ = exchange.take_answer(10);
        assert_eq!(exchange.take_answer(10).unwrap(), None);
    }

    #[test]
    fn an_answer_that_is_taken_while_it_is_written_comes_when_it_is_whole() {
        let Fixture { exchange, parent: _parent } = fixture();
        let mut writing = std::fs::File::create(exchange.path().join(ANSWER)).unwrap();
        assert_eq!(exchange.take_answer(10).unwrap(), Some(Vec::new()));
        writing.write_all(b"{}").unwrap();
        assert_eq!(exchange.take_answer(10).unwrap(), Some(b"{}".to_vec()));
        // Another one of the same length, in the same step of the clock.
        writing.seek(std::io::SeekFrom::Start(0)).unwrap();
        writing.write_all(b"[]").unwrap();
        assert_eq!(exchange.take_answer(10).unwrap(), Some(b"[]".to_vec()));
        // The next answer has the name.
        std::fs::write(exchange.path().join(ANSWER), "{ }").unwrap();
        assert_eq!(exchange.take_answer(10).unwrap(), Some(b"{ }".to_vec()));
        writing.write_all(b"late").unwrap();
        std::thread::sleep(SETTLED);
        let _ = exchange.take_answer(10);
        assert_eq!(exchange.take_answer(10).unwrap(), None);
    }

    #[test]
    fn an_answer_that_is_no_regular_file_is_removed_and_named() {
        let Fixture { exchange, parent: _parent } = fixture();
        let answer = exchange.path().join(ANSWER);
        let refusal = || exchange.take_answer(10).unwrap_err().to_string();
        std::os::unix::fs::symlink("/etc/passwd", &answer).unwrap();
        assert!(refusal().contains("symbolic link"));
        std::fs::create_dir_all(answer.join("inner")).unwrap();
        assert!(refusal().contains("directory"));
        rustix::fs::mknodat(rustix::fs::CWD, &answer, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        assert!(refusal().contains("FIFO"));
        std::fs::write(&answer, "eleven bytes").unwrap();
        assert!(refusal().contains("more than 10 bytes"));
        assert!(!answer.exists());
    }

    #[test]
    fn a_request_does_not_follow_the_links_that_a_guest_made() {
        let Fixture { exchange, parent } = fixture();
        let victim = parent.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        let request = exchange.path().join(REQUEST);
        std::os::unix::fs::symlink(&victim, &request).unwrap();
        exchange.put(REQUEST, b"{}").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(std::fs::read(&request).unwrap(), b"{}");
        assert!(request.symlink_metadata().unwrap().is_file());
        std::fs::remove_file(&request).unwrap();
        std::fs::create_dir_all(request.join("inner")).unwrap();
        exchange.put(REQUEST, b"{}").unwrap();
        assert_eq!(std::fs::read(&request).unwrap(), b"{}");
    }
}
