//! The exchange volume: the directory that a pod mounts at the exchange directory's path, or that the node provides.
//!
//! Each stream's guest has a private exchange directory; the files that users put into the volume are copied into all of
//! them when they change. What a guest writes over such a file is its own affair and never comes back here. A file that is being
//! written is handed on when it is closed, or given its name, and not before.

use super::directory::{ANSWER, Files, REQUEST, open_directory, read_regular};
use akri_krustlet_host::file::FileStamp;
use akri_krustlet_host::patience::patiently;
use akri_krustlet_host::{BackOff, DirectoryWatcher, Finished, FinishedFiles};
use rustix::fs::Dir;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Largest file that is handed on, in bytes.
pub const MOST_FILE: usize = 1 << 20;
/// Most files that are handed on.
pub const MOST_FILES: usize = 64;
/// Most bytes of all of them together: each stream has a copy.
pub const MOST_BYTES: usize = 8 << 20;
/// Most entries that are looked at.
const MOST_ENTRIES: usize = 1024;

/// Follows a volume's files. Ends when dropped.
#[derive(Debug)]
pub struct ExchangeVolume {
    files: watch::Receiver<Arc<Files>>,
    task: tokio::task::JoinHandle<()>,
}

impl ExchangeVolume {
    /// Reads the files and keeps watching them.
    pub fn watch(directory: &Path, watcher: &DirectoryWatcher) -> std::io::Result<Self> {
        let changes = watcher.watch_finished(directory)?;
        let mut known = Known::default();
        let (sender, files) = watch::channel(Arc::new(read_files(directory, &mut known, &Finished::all())?));
        let task = tokio::spawn(follow(directory.to_owned(), watcher.clone(), changes, known, sender));
        Ok(Self { files, task })
    }

    /// The files as they are now; changes when one of them does.
    pub fn files(&self) -> watch::Receiver<Arc<Files>> {
        self.files.clone()
    }
}

impl Drop for ExchangeVolume {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    directory: PathBuf,
    watcher: DirectoryWatcher,
    mut changes: FinishedFiles,
    mut known: Known,
    files: watch::Sender<Arc<Files>>,
) {
    loop {
        while changes.changed().await.is_ok() {
            known = publish(&directory, known, changes.take(), &files).await;
            // Somebody may be writing all the time; the first change is told at once.
            tokio::time::sleep(PACE).await;
        }
        // The directory is gone. The last files stay in force; a user may be replacing the directory.
        tracing::warn!(directory = %directory.display(), "the exchange volume was removed; waiting for it to come back");
        changes = loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Ok(changes) = watcher.watch_finished(&directory) {
                break changes;
            }
        };
        known = publish(&directory, known, Finished::all(), &files).await;
    }
}

/// What is known of the files.
#[derive(Clone, Debug, Default)]
struct Known {
    /// As they were read, by their names, with what they were then; none if their next change may look the same.
    contents: HashMap<OsString, (Option<FileStamp>, Arc<[u8]>)>,
    /// Names that were made, and whose files nobody has finished yet.
    being_written: HashSet<OsString>,
}

/// Pause after a look that came to nothing; it doubles to the second.
const RETRY: Duration = Duration::from_secs(1);
const MOST_RETRY: Duration = Duration::from_secs(60);

/// Pause between two looks.
const PACE: Duration = Duration::from_millis(20);

/// Reads what has changed, on a thread that may wait for the files' system; again if that does not answer, since nothing else may
/// tell of the change.
async fn publish(directory: &Path, known: Known, mut finished: Finished, files: &watch::Sender<Arc<Files>>) -> Known {
    let mut back_off = BackOff::new(RETRY, MOST_RETRY);
    loop {
        let (of_thread, mut before) = (directory.to_owned(), known.clone());
        let read = move || {
            let read = read_files(&of_thread, &mut before, &finished);
            (read, before)
        };
        let failed = match patiently(&directory.display().to_string(), read).await {
            Ok((Ok(new), known)) => {
                files.send_if_modified(|old| {
                    let changed = **old != new;
                    if changed {
                        *old = Arc::new(new);
                    }
                    changed
                });
                return known;
            }
            Ok((Err(error), _)) => error.to_string(),
            Err(hangs) => hangs.to_string(),
        };
        tracing::warn!(directory = %directory.display(), "the exchange volume cannot be read: {failed}; trying again");
        tokio::time::sleep(back_off.pause()).await;
        // Nothing else may tell of the change.
        finished = Finished::all();
    }
}

/// Reads the files that are finished and of which `known` has not the content, and makes that up to date.
fn read_files(directory: &Path, known: &mut Known, finished: &Finished) -> std::io::Result<Files> {
    let descriptor = open_directory(rustix::fs::CWD, directory)?;
    let before = std::mem::take(known);
    let mut files = Files::new();
    let (mut bytes, mut left_out) = (0, Vec::new());
    for (number, entry) in Dir::read_from(&descriptor)?.enumerate() {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if [".", "..", REQUEST, ANSWER].contains(&name) || entry.file_type().is_dir() {
            continue;
        }
        if files.len() == MOST_FILES || number > MOST_ENTRIES || bytes > MOST_BYTES {
            left_out.push(format!("more than {MOST_FILES} files, {MOST_ENTRIES} names or {} MiB", MOST_BYTES >> 20));
            break;
        }
        let key = OsStr::new(name);
        let metadata = std::fs::symlink_metadata(directory.join(name)).ok();
        // A name that was made for a file that had one before is as good as a finished file.
        let is_link = metadata.as_ref().is_some_and(|metadata| metadata.nlink() > 1);
        let is_new = finished.created.contains(key) || before.being_written.contains(key);
        let is_finished = finished.any || finished.names.contains(key) || (is_new && is_link);
        let stamp = metadata.as_ref().and_then(FileStamp::settled);
        let content = match before.contents.get(key) {
            Some((old, content)) if !is_finished || (old.is_some() && *old == stamp) => Some((*old, content.clone())),
            None if is_new && !is_finished => {
                known.being_written.insert(name.into());
                None
            }
            _ => match read_regular(descriptor.as_fd(), name, MOST_FILE) {
                Ok(content) => content.map(|content| (stamp, content.into())),
                Err(error) => {
                    left_out.push(error.to_string());
                    None
                }
            },
        };
        if let Some((stamp, content)) = content {
            bytes += content.len();
            files.insert(name.into(), content.clone());
            known.contents.insert(name.into(), (stamp, content));
        }
    }
    if !left_out.is_empty() {
        left_out.truncate(4);
        tracing::warn!(directory = %directory.display(), "not all of the exchange volume is handed on: {}", left_out.join("; "));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_followed_and_odd_ones_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, content: &str| std::fs::write(directory.path().join(name), content).unwrap();
        put("a.txt", "1");
        put(REQUEST, "left over");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("link")).unwrap();
        std::fs::create_dir(directory.path().join("inner")).unwrap();
        let watcher = DirectoryWatcher::start().unwrap();
        let volume = ExchangeVolume::watch(directory.path(), &watcher).unwrap();
        let mut files = volume.files();
        assert_eq!(files.borrow().keys().collect::<Vec<_>>(), ["a.txt"]);
        put("b.txt", "2");
        files.wait_for(|files| files.len() == 2).await.unwrap();
        put("a.txt", "3");
        files.wait_for(|files| **files.get(std::ffi::OsStr::new("a.txt")).unwrap() == *b"3").await.unwrap();
        std::fs::remove_file(directory.path().join("a.txt")).unwrap();
        files.wait_for(|files| files.len() == 1).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_is_handed_on_when_it_is_finished() {
        use std::io::Write as _;
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("old"), "whole").unwrap();
        let watcher = DirectoryWatcher::start().unwrap();
        let volume = ExchangeVolume::watch(directory.path(), &watcher).unwrap();
        let mut files = volume.files();
        let mut new = std::fs::File::create(path("new")).unwrap();
        let mut old = std::fs::File::create(path("old")).unwrap();
        for file in [&mut new, &mut old] {
            file.write_all(b"ha").unwrap();
        }
        // Something else is finished meanwhile, by each way there is.
        std::fs::write(path("written"), "1").unwrap();
        std::fs::write(path(".staged"), "2").unwrap();
        std::fs::rename(path(".staged"), path("moved")).unwrap();
        std::fs::hard_link(path("written"), path("linked")).unwrap();
        let seen = files.wait_for(|files| files.len() == 4).await.unwrap().clone();
        let content = |files: &Files, name: &str| files.get(OsStr::new(name)).map(|content| content.to_vec());
        assert_eq!(content(&seen, "new"), None);
        assert_eq!(content(&seen, "old").unwrap(), b"whole", "what it was before it was opened");
        for mut file in [new, old] {
            file.write_all(b"lf").unwrap();
        }
        let whole =
            |files: &Arc<Files>| ["new", "old"].iter().all(|name| content(files, name).unwrap_or_default() == b"half");
        files.wait_for(whole).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_that_cannot_be_read_is_read_again_until_it_can() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("not-yet");
        let (sender, files) = watch::channel(Arc::default());
        let started = tokio::time::Instant::now();
        let comes = async {
            tokio::time::sleep(Duration::from_secs(200)).await;
            std::fs::create_dir(&directory).unwrap();
            std::fs::write(directory.join("file"), "1").unwrap();
        };
        tokio::join!(publish(&directory, Known::default(), Finished::default(), &sender), comes);
        assert_eq!(files.borrow().len(), 1, "all files are read, not only what was told to have changed");
        assert!(started.elapsed() <= Duration::from_secs(200) + MOST_RETRY + Duration::from_secs(1));
    }
}
