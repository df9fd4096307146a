//! Bounds what a guest keeps in its private directory, whatever it does to descriptors and names.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Bounds what a guest keeps in its private directory.
///
/// Writes are added up; only when the sum could be over the limit is the directory measured, so that a guest that
/// rewrites its answer for years is never refused and one that fills the disk is stopped at the limit.
#[derive(Debug)]
pub(crate) struct DiskBudget {
    directory: Arc<OwnedFd>,
    bytes: u64,
    entries: u64,
    bytes_assumed: u64,
    entries_assumed: u64,
}

impl DiskBudget {
    pub(crate) fn new(directory: Arc<OwnedFd>, bytes: u64, entries: u64) -> Self {
        Self { directory, bytes, entries, bytes_assumed: 0, entries_assumed: 0 }
    }

    /// `bytes` are what one write has; the least that it can take on the disk is a block.
    pub(crate) fn may_write(&mut self, bytes: u64, nameless: u64) -> bool {
        let bytes = blocks(bytes);
        if self.bytes_assumed.saturating_add(bytes) > self.bytes {
            self.measure(nameless);
        }
        let fits = self.bytes_assumed.saturating_add(bytes) <= self.bytes;
        if fits {
            self.bytes_assumed += bytes;
        }
        fits
    }

    pub(crate) fn may_create(&mut self, nameless: u64) -> bool {
        if self.entries_assumed >= self.entries {
            self.measure(nameless);
        }
        let fits = self.entries_assumed < self.entries;
        if fits {
            self.entries_assumed += 1;
        }
        fits
    }

    fn measure(&mut self, nameless: u64) {
        let (mut bytes, mut entries) = (nameless, 0);
        if measure_directory(self.directory.as_fd(), 0, &mut bytes, &mut entries) {
            (self.bytes_assumed, self.entries_assumed) = (bytes, entries);
        } else {
            (self.bytes_assumed, self.entries_assumed) = (self.bytes, self.entries);
        }
    }
}

/// What a write may take of the disk: the blocks that it touches, at the worst place.
fn blocks(bytes: u64) -> u64 {
    const BLOCK: u64 = 4096;
    bytes.saturating_add(BLOCK)
}

/// A deeper tree counts as full: what cannot be measured is not given back.
const MEASURED_DEPTH: u32 = 16;

/// Adds up what is in a directory; false if it is deeper than [`MEASURED_DEPTH`] or cannot be read.
fn measure_directory(directory: BorrowedFd<'_>, depth: u32, bytes: &mut u64, entries: &mut u64) -> bool {
    let Ok(listing) = Dir::read_from(directory) else { return false };
    for entry in listing.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *entries += 1;
        let Ok(stat) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        // Blocks, not length: a sparse file takes no room.
        *bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = rustix::fs::openat(directory, name, flags, Mode::empty());
            let measured = depth < MEASURED_DEPTH
                && inner.is_ok_and(|inner| measure_directory(inner.as_fd(), depth + 1, bytes, entries));
            if !measured {
                return false;
            }
        }
    }
    true
}

/// A guest's open files in its private directory, and what it has written to them. Those of other volumes are not bounded.
#[derive(Debug, Default)]
pub(crate) struct OpenFiles {
    /// By descriptor; the private directory itself is one.
    of_private: BTreeMap<i32, OpenFile>,
}

#[derive(Debug, Default)]
struct OpenFile {
    /// Bytes written; `None` if it was not written.
    written: Option<u64>,
    /// It may have lost its name, and so cannot be measured any more.
    nameless: bool,
    /// It is the guest's answer.
    is_answer: bool,
}

impl OpenFiles {
    /// The private directory has this descriptor.
    pub(crate) fn new(private: Option<i32>) -> Self {
        Self { of_private: private.into_iter().map(|descriptor| (descriptor, OpenFile::default())).collect() }
    }

    /// Whether the descriptor is one of the private directory, or of what is in it.
    pub(crate) fn is_private(&self, descriptor: i32) -> bool {
        self.of_private.contains_key(&descriptor)
    }

    /// Something in the private directory was opened.
    pub(crate) fn open(&mut self, descriptor: i32, is_answer: bool) {
        self.of_private.insert(descriptor, OpenFile { is_answer, ..OpenFile::default() });
    }

    pub(crate) fn write(&mut self, descriptor: i32, bytes: u64) {
        if let Some(file) = self.of_private.get_mut(&descriptor) {
            // Each may be a place of its own in the file.
            *file.written.get_or_insert_default() += if bytes == 0 { 0 } else { blocks(bytes) };
        }
    }

    /// True if it is an answer that had been written.
    pub(crate) fn close(&mut self, descriptor: i32) -> bool {
        self.of_private.remove(&descriptor).is_some_and(|file| file.is_answer && file.written.is_some())
    }

    /// True if what had the number was an answer that had been written.
    pub(crate) fn renumber(&mut self, from: i32, to: i32) -> bool {
        let replaced = self.close(to);
        if let Some(file) = self.of_private.remove(&from) {
            self.of_private.insert(to, file);
        }
        replaced
    }

    /// A name was removed or replaced: it may have been that of any of them.
    pub(crate) fn lose_name(&mut self) {
        self.of_private.values_mut().for_each(|file| file.nameless = true);
    }

    /// Bytes that may be on the disk without a name.
    pub(crate) fn nameless_bytes(&self) -> u64 {
        self.of_private.values().filter(|file| file.nameless).filter_map(|file| file.written).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(directory: &std::path::Path) -> DiskBudget {
        let descriptor = rustix::fs::open(directory, OFlags::DIRECTORY, Mode::empty()).unwrap();
        DiskBudget::new(Arc::new(descriptor), 1 << 20, 100)
    }

    #[test]
    fn rewriting_a_file_costs_nothing_and_a_full_directory_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let mut budget = budget(directory.path());
        for _ in 0..100 {
            assert!(budget.may_write(100 << 10, 0));
            std::fs::write(directory.path().join("out.out"), vec![1; 100 << 10]).unwrap();
        }
        std::fs::write(directory.path().join("big"), vec![1; 900 << 10]).unwrap();
        assert!(!budget.may_write(1 << 20, 0));
    }

    #[test]
    fn a_file_without_a_name_and_a_tree_too_deep_to_measure_count() {
        let directory = tempfile::tempdir().unwrap();
        let mut of_files = budget(directory.path());
        let mut files = OpenFiles::new(Some(3));
        files.open(5, false);
        // Its name goes before anything is written, by the guest or by the host.
        files.lose_name();
        let mut total = 0;
        while of_files.may_write(64 << 10, files.nameless_bytes()) {
            files.write(5, 64 << 10);
            files.close(6);
            total += 64;
            assert!(total <= 1024, "{total} KiB");
        }
        assert!(!files.close(5), "it is no answer");
        assert!(of_files.may_write(64 << 10, files.nameless_bytes()), "closed, it takes no room");
        // A log on another volume is nobody's business.
        files.write(7, 1 << 30);
        files.lose_name();
        assert!(!files.is_private(7) && files.nameless_bytes() == 0);

        let mut path = directory.path().to_owned();
        let mut of_entries = budget(directory.path());
        let mut made = 0;
        while of_entries.may_create(0) {
            path.push("d");
            std::fs::create_dir(&path).unwrap();
            made += 1;
            assert!(made <= 100, "{made}");
        }
    }
}
