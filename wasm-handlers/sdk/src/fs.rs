//! Files of the machine, as far as the container mounts them; in a test, files below a directory of its own.

use std::io;
use std::path::{Path, PathBuf};

/// Where an absolute path is found.
fn place(path: &Path) -> PathBuf {
    #[cfg(target_family = "wasm")]
    {
        path.to_owned()
    }
    #[cfg(not(target_family = "wasm"))]
    crate::fake::place(path)
}

/// A file's text, without what is no text in it.
pub fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = inner::read(&place(path.as_ref()))?;
    Ok(match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// Where a link leads, as it is written.
pub fn read_link(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    std::fs::read_link(place(path.as_ref()))
}

/// The names in a directory, sorted.
pub fn list(path: impl AsRef<Path>) -> io::Result<Vec<String>> {
    let mut names = inner::list(&place(path.as_ref()))?;
    names.sort();
    Ok(names)
}

/// Whether there is something, wherever links lead.
pub fn exists(path: impl AsRef<Path>) -> bool {
    std::fs::metadata(place(path.as_ref())).is_ok()
}

#[cfg(not(target_family = "wasm"))]
mod inner {
    use std::io;
    use std::path::Path;

    pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(path)?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }
}

/// Each call to the node is one on a thread that may block there. The standard library makes one for each entry of a listing, and
/// several more for a file; here there are as few as there can be.
#[cfg(target_family = "wasm")]
mod inner {
    use std::io;
    use std::path::{Component, Path, PathBuf};
    use wasip2::filesystem::preopens::get_directories;
    use wasip2::filesystem::types::{Descriptor, DescriptorFlags, ErrorCode, OpenFlags, PathFlags};

    /// What is read of a file at once, in bytes.
    const PIECE: u64 = 64 << 10;

    thread_local! {
        /// The container's directories, and where they are. They stay the same as long as the guest lives.
        static DIRECTORIES: Vec<(Descriptor, PathBuf)> = get_directories()
            .into_iter()
            .map(|(directory, path)| (directory, plain(Path::new(&path))))
            .collect();
    }

    /// A path from the root on, without it.
    fn plain(path: &Path) -> PathBuf {
        path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).collect()
    }

    fn open(path: &Path, how: OpenFlags) -> io::Result<Descriptor> {
        let path = plain(path);
        DIRECTORIES.with(|directories| {
            let here = directories.iter().filter_map(|(directory, of)| Some((directory, path.strip_prefix(of).ok()?)));
            // The innermost of those that it is in.
            let (directory, rest) = here
                .min_by_key(|(_, rest)| rest.components().count())
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is in no volume of the container"))?;
            let rest = rest.to_str().ok_or(io::ErrorKind::InvalidInput)?;
            let rest = if rest.is_empty() { "." } else { rest };
            directory.open_at(PathFlags::SYMLINK_FOLLOW, rest, how, DescriptorFlags::READ).map_err(error)
        })
    }

    pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
        let file = open(path, OpenFlags::empty())?;
        let mut all = Vec::new();
        loop {
            let (bytes, is_end) = file.read(PIECE, all.len() as u64).map_err(error)?;
            let is_end = is_end || bytes.is_empty();
            all.extend(bytes);
            if is_end {
                return Ok(all);
            }
        }
    }

    pub(super) fn list(path: &Path) -> io::Result<Vec<String>> {
        let entries = open(path, OpenFlags::DIRECTORY)?.read_directory().map_err(error)?;
        let mut names = Vec::new();
        while let Some(entry) = entries.read_directory_entry().map_err(error)? {
            names.push(entry.name);
        }
        Ok(names)
    }

    /// As the standard library has it.
    fn error(code: ErrorCode) -> io::Error {
        let kind = match code {
            ErrorCode::NoEntry => io::ErrorKind::NotFound,
            ErrorCode::Access | ErrorCode::NotPermitted => io::ErrorKind::PermissionDenied,
            ErrorCode::NotDirectory => io::ErrorKind::NotADirectory,
            ErrorCode::IsDirectory => io::ErrorKind::IsADirectory,
            ErrorCode::Interrupted => io::ErrorKind::Interrupted,
            ErrorCode::Invalid => io::ErrorKind::InvalidInput,
            ErrorCode::InsufficientMemory => io::ErrorKind::OutOfMemory,
            ErrorCode::Busy => io::ErrorKind::ResourceBusy,
            other => return io::Error::other(other.message()),
        };
        kind.into()
    }
}
