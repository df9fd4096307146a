//! The last words of a container: what it wrote to its `terminationMessagePath`, or the end of its log.

use akri_krustlet_runtime::Preopen;
use akri_krustlet_runtime::log::{LogOptions, Logs};
use k8s_openapi::api::core::v1::Container;
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{Read as _, Result};
use std::path::{Path, PathBuf};

/// Where a container writes its message if it names no other path.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Longest message of a file, in bytes; a kubelet's bound.
const MOST_OF_FILE: u64 = 4096;
/// What of the log is a message: so many lines at most, and so many bytes of them.
const LINES_OF_LOG: usize = 80;
const MOST_OF_LOG: usize = 2048;

/// The message's file in one life of a container.
#[derive(Clone, Debug)]
pub struct TerminationMessage {
    /// On the host, in a directory of its own: a guest sees directories.
    file: PathBuf,
    /// The path of that directory in the guest.
    guest_directory: String,
    falls_back_to_log: bool,
}

impl TerminationMessage {
    /// Of a container whose file may be in `directory`; `None` if it names a path that is none.
    pub fn of(container: &Container, directory: &Path) -> Option<Self> {
        let path =
            container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(DEFAULT_PATH);
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (name, parents) = parts.split_last()?;
        if !path.starts_with('/') || parts.iter().any(|part| [".", ".."].contains(part)) {
            return None;
        }
        let guest_directory = format!("/{}", parents.join("/"));
        let falls_back_to_log = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        Some(Self { file: directory.join(name), guest_directory, falls_back_to_log })
    }

    /// Makes the file, empty, for a container that starts, and gives it its directory. A volume that is mounted there has the file
    /// instead, and the message is not read.
    pub fn prepare(&self, mounted: &[Preopen]) -> Result<Option<Preopen>> {
        let directory = self.file.parent().unwrap_or(&self.file);
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if mounted.iter().any(|preopen| preopen.guest == self.guest_directory) {
            return Ok(None);
        }
        std::fs::create_dir_all(directory)?;
        File::create(&self.file)?;
        Ok(Some(Preopen { private: true, ..Preopen::new(directory, self.guest_directory.clone()) }))
    }

    /// What a container that ended has left.
    pub fn read(&self, log: &Path, restart: u32, failed: bool) -> Option<String> {
        let written = self.read_file().filter(|text| !text.is_empty());
        match written {
            None if failed && self.falls_back_to_log => end_of_log(log, restart),
            written => written,
        }
    }

    /// A guest may have put anything in the file's place.
    fn read_file(&self) -> Option<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&self.file, flags, Mode::empty()).ok()?);
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(MOST_OF_FILE).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn end_of_log(directory: &Path, restart: u32) -> Option<String> {
    let options = LogOptions { tail: Some(LINES_OF_LOG), since: None };
    let lines = Logs::open(directory, restart, options).ok()?.read_available().ok()?;
    let mut text: String = lines.into_iter().flat_map(|line| [line.text, "\n".to_owned()]).collect();
    let cut = text.len().saturating_sub(MOST_OF_LOG);
    text.drain(..text.ceil_char_boundary(cut));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn message(container: serde_json::Value, directory: &Path) -> Option<TerminationMessage> {
        TerminationMessage::of(&serde_json::from_value(container).unwrap(), directory)
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
        for path in ["relative", "/a/../b", "/", "//", "/dev/.", "/.."] {
            assert!(
                message(json!({"name": "c", "terminationMessagePath": path}), directory.path()).is_none(),
                "{path}"
            );
        }
        let message =
            message(json!({"name": "c", "terminationMessagePath": "//v//m"}), &directory.path().join("m")).unwrap();
        assert!(message.prepare(&[Preopen::new("/x", "/v")]).unwrap().is_none());
    }
}
