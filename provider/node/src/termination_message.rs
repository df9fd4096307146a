//! The last words of a container: what it wrote to its `terminationMessagePath`, or the end of its log.

use akri_krustlet_host::file::remove_tree;
use akri_krustlet_runtime::Preopen;
use k8s_openapi::api::core::v1::Container;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read as _, Result, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Where a container writes its message if it names no other path.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Longest name of a file, in bytes.
const MOST_NAME: usize = 255;
/// Longest message of a file, in bytes, and of all containers of a pod together; a kubelet's bounds.
const MOST_OF_FILE: usize = 4096;
const MOST_OF_POD: usize = 12 << 10;
/// What of the log is a message: so many lines at most, and so many bytes of them.
const LINES_OF_LOG: usize = 80;
const MOST_OF_LOG: usize = 2048;
/// What is read of the log for that, in bytes.
const END_OF_LOG: u64 = 64 << 10;

/// The message's file in one life of a container.
#[derive(Clone, Debug)]
pub struct TerminationMessage {
    /// On the host, of the container alone: a guest sees directories.
    directory: PathBuf,
    /// Of the file in it.
    name: String,
    /// The path of that directory in the guest.
    guest_directory: String,
    /// In bytes.
    most: usize,
    falls_back_to_log: bool,
}

impl TerminationMessage {
    /// Of a container, one of so many, whose file may be in `directory`; `None` if it names a path that is none.
    pub fn of(container: &Container, containers: usize, directory: PathBuf) -> Option<Self> {
        let path =
            container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH);
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (name, parents) = parts.split_last()?;
        let is_bad = |part: &&str| [".", ".."].contains(part) || part.contains('\0') || part.len() > MOST_NAME;
        if !path.starts_with('/') || parts.iter().any(is_bad) {
            return None;
        }
        let guest_directory = format!("/{}", parents.join("/"));
        let falls_back_to_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let most = (MOST_OF_POD / containers.max(1)).min(MOST_OF_FILE);
        Some(Self { directory, name: (*name).to_owned(), guest_directory, most, falls_back_to_log })
    }

    /// Makes the file, empty, for a container that starts, and gives it its directory. A volume that is mounted there, or around
    /// it, has the file instead, and the message is not read. Blocks.
    ///
    /// The directory is bounded like a handler's own, unless the container has a volume that it can fill anyway.
    pub fn prepare(&self, mounted: &[Preopen]) -> Result<Option<Preopen>> {
        remove_tree(&self.directory)?;
        // A directory of its own would hide that of a volume around it.
        let directory = Path::new(&self.guest_directory);
        if mounted.iter().any(|preopen| directory.starts_with(&preopen.guest)) {
            return Ok(None);
        }
        std::fs::create_dir_all(&self.directory)?;
        File::create(self.directory.join(&self.name))?;
        let private = mounted.iter().all(|preopen| preopen.read_only);
        Ok(Some(Preopen { private, ..Preopen::new(&self.directory, self.guest_directory.clone()) }))
    }

    /// What a container that ended has left; its log is in the directory `log`. Blocks.
    pub fn read(&self, log: &Path, restart: u32, failed: bool) -> Option<String> {
        let written = self.read_file().filter(|text| !text.is_empty());
        let mut text = match written {
            None if failed && self.falls_back_to_log => {
                end_of_log(&log.join(format!("{restart}.log"))).filter(|text| !text.is_empty())?
            }
            written => written?,
        };
        text.truncate(text.floor_char_boundary(self.most));
        Some(text)
    }

    /// A guest may have put anything in the file's place.
    fn read_file(&self) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(self.directory.join(&self.name), flags, Mode::empty()).ok()?);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(MOST_OF_FILE as u64).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The last lines of a log in CRI's format, `TIME STREAM F|P TEXT`. However long they are, only the file's end is read.
fn end_of_log(file: &Path) -> Option<String> {
    let mut file = File::open(file).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(END_OF_LOG))).ok()?;
    let mut bytes = Vec::new();
    file.take(END_OF_LOG).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let parts: Vec<_> = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(4, ' ');
            let (tag, text) = (fields.nth(2)?, fields.next()?);
            ["F", "P"].contains(&tag).then(|| format!("{text}{}", if tag == "F" { "\n" } else { "" }))
        })
        .collect();
    let mut end = parts[parts.len().saturating_sub(LINES_OF_LOG)..].concat();
    let cut = end.len().saturating_sub(MOST_OF_LOG);
    end.drain(..end.ceil_char_boundary(cut));
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(container: serde_json::Value, directory: &Path) -> Option<TerminationMessage> {
        TerminationMessage::of(&serde_json::from_value(container).unwrap(), 1, directory.to_owned())
    }

    #[test]
    fn a_message_is_the_start_of_a_regular_file() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("message");
        let message = message(json!({"name": "c"}), &own).unwrap();
        let preopen = message.prepare(&[]).unwrap().unwrap();
        assert_eq!((preopen.guest.as_str(), preopen.private), ("/dev", true));
        assert_eq!(message.read(directory.path(), 0, true), None, "nothing was written");
        let file = own.join("termination-log");
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(message.read(directory.path(), 0, false).unwrap().len(), 4096);
        // Next life: empty again.
        message.prepare(&[]).unwrap();
        assert_eq!(message.read(directory.path(), 0, false), None);
        std::fs::write(directory.path().join("secret"), "of the host").unwrap();
        std::fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(directory.path().join("secret"), &file).unwrap();
        assert_eq!(message.read(directory.path(), 0, false), None, "a link is not followed");
    }

    #[test]
    fn a_path_that_is_none_has_no_message_and_a_volume_hides_it() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["relative", "/a/../b", "/", "//", "/dev/.", "/..", "/dev/\0", "/./x"] {
            assert!(
                message(json!({"name": "c", "terminationMessagePath": path}), directory.path()).is_none(),
                "{path}"
            );
        }
        let message =
            message(json!({"name": "c", "terminationMessagePath": "//v//m"}), &directory.path().join("m")).unwrap();
        for mounted in ["/v", "/"] {
            assert!(message.prepare(&[Preopen::new("/x", mounted)]).unwrap().is_none(), "{mounted}");
        }
        assert!(message.prepare(&[Preopen::new("/x", "/vw")]).unwrap().is_some());
    }

    #[test]
    fn a_message_of_the_log_is_its_end_and_messages_of_one_pod_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let container = json!({"name": "c", "terminationMessagePolicy": "FallbackToLogsOnError"});
        let message = message(container.clone(), &directory.path().join("m")).unwrap();
        let line = |tag: &str, text: &str| format!("2026-01-01T00:00:00.000000000Z stdout {tag} {text}\n");
        let long = line("P", &"x".repeat(100_000));
        let log: String =
            [long, line("F", "y")].into_iter().chain((0..100).map(|n| line("F", &format!("l{n}")))).collect();
        std::fs::write(directory.path().join("3.log"), log).unwrap();
        let text = message.read(directory.path(), 3, true).unwrap();
        assert!(text.starts_with("l20\n") && text.ends_with("l99\n"), "{text}");
        assert_eq!(message.read(directory.path(), 3, false), None, "it succeeded");
        let of_many =
            TerminationMessage::of(&serde_json::from_value(container).unwrap(), 64, directory.path().join("m"));
        assert_eq!(of_many.unwrap().read(directory.path(), 3, true).unwrap().len(), 192);
    }

    #[test]
    fn the_directory_is_bounded_unless_there_is_a_volume_to_fill() {
        let directory = tempfile::tempdir().unwrap();
        let message = message(json!({"name": "c"}), &directory.path().join("m")).unwrap();
        let private = |mounted: &[Preopen]| message.prepare(mounted).unwrap().unwrap().private;
        let read_only = Preopen { read_only: true, ..Preopen::new("/x", "/v") };
        assert!(private(&[]) && private(&[read_only]));
        assert!(!private(&[Preopen::new("/x", "/v")]));
    }
}
