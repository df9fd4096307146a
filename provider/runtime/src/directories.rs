//! `fd_readdir`: listings of directories of any size, a piece at a time.
//!
//! wasmtime's own lists a directory in whole in the host's memory, for each call. Here a cookie is the system's own place in the
//! directory, so that each call reads what fits into the guest's buffer and nothing else, and the guest pays for the time.

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What the host reads at once, in bytes.
const CHUNK: usize = 32 << 10;
/// Bytes of an entry before its name: the next cookie, the inode, the name's length, the type.
const HEAD: usize = 24;

/// The directories that a guest has open, for listing them.
#[derive(Debug, Default)]
pub(crate) struct OpenDirectories {
    by_descriptor: BTreeMap<i32, Arc<OwnedFd>>,
}

impl OpenDirectories {
    pub(crate) fn insert(&mut self, descriptor: i32, directory: Arc<OwnedFd>) {
        self.by_descriptor.insert(descriptor, directory);
    }

    pub(crate) fn get(&self, descriptor: i32) -> Option<&Arc<OwnedFd>> {
        self.by_descriptor.get(&descriptor)
    }

    /// True if it was one.
    pub(crate) fn close(&mut self, descriptor: i32) -> bool {
        self.by_descriptor.remove(&descriptor).is_some()
    }

    /// True if what had the number was one.
    pub(crate) fn renumber(&mut self, from: i32, to: i32) -> bool {
        let replaced = self.close(to);
        if let Some(directory) = self.by_descriptor.remove(&from) {
            self.by_descriptor.insert(to, directory);
        }
        replaced
    }
}

/// A directory below an open one, which the guest has just opened. One that cannot be opened again, because something else has
/// its name by now, cannot be listed. Blocks as long as what it is on does.
pub(crate) fn open_below(parent: &OwnedFd, path: &[u8], follows: bool) -> Option<Arc<OwnedFd>> {
    let follow = if follows { OFlags::empty() } else { OFlags::NOFOLLOW };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | follow;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(parent, path, flags, Mode::empty(), resolve).ok().map(Arc::new)
}

/// The same directory, opened once more.
pub(crate) fn open_again(directory: &impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(directory, c".", flags, Mode::empty())
}

/// What is in a directory under one name.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: FileType,
    pub(crate) inode: u64,
    /// Where the listing goes on after it.
    pub(crate) cookie: u64,
}

/// A piece of a listing.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(crate) entries: Vec<Entry>,
    /// Where the next piece begins.
    pub(crate) next: u64,
    /// There is no next one.
    pub(crate) is_last: bool,
}

/// What follows a cookie, 0 for the beginning; names of `room` bytes, with what preview 1 has before each, and one entry more at
/// most. Blocks as long as what the directory is on does.
pub(crate) fn entries(directory: &OwnedFd, cookie: u64, room: usize) -> Result<Entries, Errno> {
    rustix::fs::seek(directory, SeekFrom::Start(cookie))?;
    let mut buffer = [MaybeUninit::uninit(); CHUNK];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut piece = Entries { next: cookie, ..Entries::default() };
    let mut bytes = 0;
    while bytes < room {
        let Some(entry) = listing.next() else {
            piece.is_last = true;
            break;
        };
        let entry = entry?;
        piece.next = entry.next_entry_cookie();
        // Names in a guest are text.
        if let Ok(name) = entry.file_name().to_str() {
            bytes += HEAD + name.len();
            let (kind, inode) = (entry.file_type(), entry.ino());
            piece.entries.push(Entry { name: name.to_owned(), kind, inode, cookie: piece.next });
        }
        if listing.is_buffer_empty() {
            break;
        }
    }
    Ok(piece)
}

/// A piece of a listing, as a guest of preview 1 reads it.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    pub(crate) bytes: Vec<u8>,
    /// Where the next piece begins.
    pub(crate) next: u64,
    /// There is no next one.
    pub(crate) is_last: bool,
}

/// What follows a cookie, 0 for the beginning, at most `room` bytes of it; the last entry may be cut off. Blocks as long as what
/// the directory is on does.
pub(crate) fn read(directory: &OwnedFd, cookie: u64, room: usize) -> Result<Piece, Errno> {
    let Entries { entries, next, is_last } = entries(directory, cookie, room)?;
    let mut piece = Piece { bytes: Vec::new(), next, is_last };
    for entry in entries {
        let mut head = [0; HEAD];
        head[..8].copy_from_slice(&entry.cookie.to_le_bytes());
        head[8..16].copy_from_slice(&entry.inode.to_le_bytes());
        head[16..20].copy_from_slice(&u32::try_from(entry.name.len()).unwrap_or(0).to_le_bytes());
        head[20] = kind(entry.kind);
        piece.bytes.extend_from_slice(&head);
        piece.bytes.extend_from_slice(entry.name.as_bytes());
    }
    piece.bytes.truncate(room);
    Ok(piece)
}

/// Preview 1's number of a type.
fn kind(kind: FileType) -> u8 {
    match kind {
        FileType::BlockDevice => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => 3,
        FileType::RegularFile => 4,
        FileType::Socket => 6,
        FileType::Symlink => 7,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn open(path: &std::path::Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    /// All names, read with a buffer of so many bytes as a guest reads them.
    fn names(directory: &OwnedFd, room: usize) -> BTreeSet<String> {
        let (mut names, mut cookie) = (BTreeSet::new(), 0);
        loop {
            let piece = read(directory, cookie, room).unwrap();
            assert!(piece.bytes.len() <= room);
            let mut rest = &piece.bytes[..];
            while rest.len() >= HEAD {
                let length = u32::from_le_bytes(rest[16..20].try_into().unwrap()) as usize;
                let Some(name) = rest.get(HEAD..HEAD + length) else { break };
                assert!(names.insert(String::from_utf8(name.to_vec()).unwrap()), "twice");
                cookie = u64::from_le_bytes(rest[..8].try_into().unwrap());
                rest = &rest[HEAD + length..];
            }
            if piece.is_last {
                return names;
            }
            if piece.bytes.len() < room {
                cookie = piece.next;
            }
        }
    }

    #[test]
    fn a_listing_has_every_name_once_whatever_the_buffer() {
        let directory = tempfile::tempdir().unwrap();
        let mut expected: BTreeSet<_> = [".".to_owned(), "..".to_owned()].into();
        for number in 0..3000 {
            let name = format!("{number}-{}", "x".repeat(number % 200));
            std::fs::write(directory.path().join(&name), "").unwrap();
            expected.insert(name);
        }
        let not_text: std::ffi::OsString = std::os::unix::ffi::OsStringExt::from_vec(vec![0xff]);
        std::fs::write(directory.path().join(not_text), "").unwrap();
        for room in [300, 4096, 65_536] {
            assert_eq!(names(&open(directory.path()), room), expected, "{room}");
        }
        assert!(read(&open(directory.path()), u64::MAX, 100).is_err());
    }

    #[test]
    fn a_directory_is_reached_from_an_open_one_and_no_link_leads_out() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(place.path().join("volume/inner")).unwrap();
        std::fs::write(place.path().join("volume/inner/file"), "").unwrap();
        std::os::unix::fs::symlink("inner", place.path().join("volume/link")).unwrap();
        std::os::unix::fs::symlink("..", place.path().join("volume/out")).unwrap();
        let volume = Arc::new(open(&place.path().join("volume")));
        let inner = open_below(&volume, b"inner", true).unwrap();
        assert!(names(&inner, 4096).contains("file"));
        assert!(open_below(&volume, b"link", true).is_some());
        assert!(open_below(&volume, b"link", false).is_none());
        assert!(open_below(&volume, b"out", true).is_none() && open_below(&inner, b"../..", true).is_none());
        let mut directories = OpenDirectories::default();
        directories.insert(3, volume);
        directories.insert(4, inner);
        assert!(directories.renumber(4, 3) && !directories.renumber(4, 5));
        assert!(directories.get(4).is_none() && names(directories.get(3).unwrap(), 4096).contains("file"));
        assert!(directories.close(3) && !directories.close(3));
    }
}
