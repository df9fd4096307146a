//! The store of compiled modules: `<directory>/<engine hash>-<module digest>.cwasm`.
//!
//! # Guarantees
//! - The directory is private to the node's user (0700, owner checked): what it holds is executed.
//! - A file appears under its name complete or not at all (temporary file, then rename), and is never changed after.
//! - Files of another engine version or configuration have another name, so they are never loaded; they are removed when
//!   the store is opened.

use crate::module::Digest;
use rustix::fs::{Mode, OFlags};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wasmtime::Engine;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AotStoreError {
    /// The directory cannot be made or read.
    #[error("module store {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could put code into the directory.
    #[error(
        "module store {path} belongs to user {owner}, but the node runs as user {user}: compiled modules are executed, so the directory must be the node's own; choose another data directory or change its owner"
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The node's user id.
        user: u32,
    },
}

/// A staged file that is older was left by a process that is gone: no compilation takes so long.
const STAGED: Duration = Duration::from_secs(600);

/// A directory of compiled modules.
#[derive(Debug)]
pub struct AotStore {
    directory: PathBuf,
    engine: String,
}

impl AotStore {
    /// Opens the store, making the directory if it is missing.
    pub fn open(directory: &Path, engine: &Engine) -> Result<Self, AotStoreError> {
        let io = |source| AotStoreError::Io { path: directory.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
        let handle = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io(error.into()))?;
        let handle = std::fs::File::from(handle);
        let metadata = handle.metadata().map_err(io)?;
        let user = rustix::process::geteuid().as_raw();
        if metadata.uid() != user {
            return Err(AotStoreError::Owner { path: directory.to_owned(), owner: metadata.uid(), user });
        }
        if metadata.mode() & 0o077 != 0 {
            handle.set_permissions(std::fs::Permissions::from_mode(0o700)).map_err(io)?;
        }
        let mut hasher = std::hash::DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let store = Self { directory: directory.to_owned(), engine: format!("{:016x}", hasher.finish()) };
        store.remove_foreign().map_err(io)?;
        Ok(store)
    }

    /// Where the compiled form of `digest` is, if it has been made.
    pub fn find(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.path(digest);
        path.is_file().then_some(path)
    }

    /// A temporary file in the store's directory, for [`AotStore::commit`].
    pub fn stage(&self) -> std::io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix(".staging-").tempfile_in(&self.directory)
    }

    /// Gives a staged file its name. A file that another thread or process put there meanwhile is replaced by its equal.
    pub fn commit(&self, staged: tempfile::NamedTempFile, digest: &Digest) -> std::io::Result<PathBuf> {
        staged.as_file().sync_all()?;
        let path = self.path(digest);
        staged.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }

    /// Removes a file that turned out to be unusable.
    pub fn discard(&self, digest: &Digest) {
        let _ = std::fs::remove_file(self.path(digest));
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(format!("{}-{}.cwasm", self.engine, digest.hex()))
    }

    fn remove_foreign(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let foreign = name.ends_with(".cwasm") && !name.starts_with(&self.engine);
            // Another process may be at work in the same store.
            let is_left = || {
                entry
                    .metadata()
                    .and_then(|metadata| metadata.modified())
                    .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > STAGED))
            };
            if foreign || (name.starts_with(".staging-") && is_left()) {
                match std::fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_files_of_other_engines_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("modules");
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        let old = directory.join("0000000000000000-aa.cwasm");
        std::fs::write(&old, "x").unwrap();
        let store = AotStore::open(&directory, &crate::engine::new().unwrap()).unwrap();
        assert_eq!(std::fs::metadata(&directory).unwrap().mode() & 0o777, 0o700);
        assert!(!old.exists());
        let digest = Digest::of(b"a module");
        assert_eq!(store.find(&digest), None);
        let path = store.commit(store.stage().unwrap(), &digest).unwrap();
        assert_eq!(store.find(&digest), Some(path));
        store.discard(&digest);
        assert_eq!(store.find(&digest), None);
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let link = parent.path().join("modules");
        std::os::unix::fs::symlink(target.path(), &link).unwrap();
        assert!(AotStore::open(&link, &crate::engine::new().unwrap()).is_err());
    }
}
