//! The last good answer of each open stream, kept over an end of the node.
//!
//! When the node has been restarted, a stream that opens with a request that was open before gets that answer at once,
//! before its new guest has found anything: a guest that searches a network for ten seconds costs no device. What is kept is
//! checked again as any answer is: its pod may be allowed less by now.
//!
//! An answer counts for 5 min after the node's start, and only if its stream was open within 5 min before the end:
//! older ones could tell of devices that went long ago.

use crate::device::Said;
use crate::device_json;
use akri_proto::v0::{Device, DiscoverResponse};
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long an answer is of use without its stream.
const FRESH: Duration = Duration::from_secs(300);

/// The answers of all streams of a node; one file each, named by handler and request.
#[derive(Debug)]
pub(crate) struct LastLists {
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Left by the node's life before, not taken up yet.
    left: HashSet<OsString>,
    /// How many streams have this request open.
    open: HashMap<OsString, usize>,
    /// The hash of what is in a file of this life: a list that is there already is not written again.
    written: HashMap<OsString, [u8; 32]>,
}

impl LastLists {
    /// Takes up what the node's life before has left in `directory`. Must be called in a runtime.
    pub(crate) fn open(directory: &Path) -> std::io::Result<Arc<Self>> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let entries = std::fs::read_dir(directory)?.flatten();
        let left = entries.map(|entry| entry.file_name()).collect();
        let lists =
            Arc::new(Self { directory: directory.to_owned(), state: Mutex::new(State { left, ..State::default() }) });
        let kept = Arc::downgrade(&lists);
        tokio::spawn(async move {
            tokio::time::sleep(FRESH).await;
            if let Some(lists) = kept.upgrade() {
                lists.forget_left();
            }
        });
        Ok(lists)
    }

    /// The place for the answers to `request`, whose stream opens now.
    pub(crate) fn stream(self: &Arc<Self>, handler: &str, request: &[u8]) -> LastList {
        let hash = Sha256::new().chain_update(handler).chain_update([0]).chain_update(request).finalize();
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = OsString::from(format!("{name}.json"));
        *self.state().open.entry(name.clone()).or_default() += 1;
        LastList { lists: self.clone(), name }
    }

    fn forget_left(&self) {
        let mut state = self.state();
        for name in std::mem::take(&mut state.left) {
            if !state.open.contains_key(&name) {
                self.remove(&mut state, &name);
            }
        }
    }

    fn forget_if_closed(&self, name: &OsString) {
        let mut state = self.state();
        if !state.open.contains_key(name) {
            self.remove(&mut state, name);
        }
    }

    fn remove(&self, state: &mut State, name: &OsString) {
        state.written.remove(name);
        let path = self.directory.join(name);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the last list of a stream that ended");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last good answer of one stream.
#[derive(Debug)]
pub(crate) struct LastList {
    lists: Arc<LastLists>,
    name: OsString,
}

impl LastList {
    /// What the stream of this request last answered in the node's life before; handed out once.
    pub(crate) fn take_left(&self) -> Option<Vec<Device>> {
        if !self.lists.state().left.remove(&self.name) {
            return None;
        }
        match device_json::read(&std::fs::read(self.lists.directory.join(&self.name)).ok()?) {
            Ok(Said::Found { devices, .. }) => devices,
            _ => None,
        }
    }

    /// Keeps a list, in place of the one before.
    pub(crate) fn keep(&self, list: &DiscoverResponse) {
        let text = device_json::write(list);
        let hash: [u8; 32] = Sha256::digest(&text).into();
        if self.lists.state().written.insert(self.name.clone(), hash) == Some(hash) {
            return;
        }
        let path = self.lists.directory.join(&self.name);
        // For the node's user only: devices may have properties that are secret.
        if let Err(error) = akri_krustlet_host::file::write_atomically(&path, &text, 0o600) {
            self.lists.state().written.remove(&self.name);
            tracing::warn!(
                path = %path.display(), %error,
                "cannot keep the last list; if the node is restarted now, the stream begins with what its guest finds"
            );
        }
    }

    /// The stream has ended while the node goes on.
    pub(crate) fn close(&self) {
        let mut state = self.lists.state();
        if let Some(open) = state.open.get_mut(&self.name) {
            *open -= 1;
            if *open > 0 {
                return;
            }
        }
        state.open.remove(&self.name);
        drop(state);
        let (lists, name) = (self.lists.clone(), self.name.clone());
        tokio::spawn(async move {
            tokio::time::sleep(FRESH).await;
            lists.forget_if_closed(&name);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(id: &str) -> DiscoverResponse {
        DiscoverResponse { devices: vec![Device { id: id.to_owned(), ..Device::default() }] }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_left_for_the_next_life_if_its_stream_was_open_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let lists = LastLists::open(directory.path()).unwrap();
        let open = lists.stream("a", b"request");
        assert_eq!(open.take_left(), None);
        open.keep(&list("first"));
        open.keep(&list("second"));
        let twice = lists.stream("a", b"other request");
        let again = lists.stream("a", b"other request");
        twice.keep(&list("of two streams"));
        twice.close();
        let closed = lists.stream("b", b"request");
        closed.keep(&list("closed"));
        closed.close();
        let just_closed = lists.stream("c", b"request");
        just_closed.keep(&list("just closed"));
        tokio::time::sleep(FRESH).await;
        tokio::task::yield_now().await;
        just_closed.close();
        drop(again);

        let next = LastLists::open(directory.path()).unwrap();
        assert_eq!(next.stream("a", b"request").take_left().unwrap(), list("second").devices);
        assert_eq!(next.stream("a", b"request").take_left(), None, "handed out once");
        assert_eq!(next.stream("a", b"other request").take_left().unwrap(), list("of two streams").devices);
        assert_eq!(next.stream("b", b"request").take_left(), None);
        assert_eq!(next.stream("c", b"request").take_left().unwrap(), list("just closed").devices);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_there_already_is_not_written_again_unless_it_was_removed() {
        use std::os::unix::fs::MetadataExt as _;
        let directory = tempfile::tempdir().unwrap();
        let lists = LastLists::open(directory.path()).unwrap();
        let (one, other) = (lists.stream("a", b"request"), lists.stream("a", b"request"));
        let file = directory.path().join(&one.name);
        let inode = || std::fs::metadata(&file).unwrap().ino();
        one.keep(&list("first"));
        let first = inode();
        other.keep(&list("first"));
        assert_eq!(inode(), first);
        one.keep(&list("second"));
        assert_ne!(inode(), first);
        one.close();
        other.close();
        tokio::time::sleep(FRESH * 2).await;
        assert!(!file.exists());
        lists.stream("a", b"request").keep(&list("second"));
        assert!(file.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        LastLists::open(directory.path()).unwrap().stream("a", b"request").keep(&list("{}"));
        let next = LastLists::open(directory.path()).unwrap();
        tokio::time::sleep(FRESH + Duration::from_secs(1)).await;
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(next.stream("a", b"request").take_left(), None);
    }
}
