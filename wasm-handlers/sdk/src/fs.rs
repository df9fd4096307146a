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
    std::fs::read(place(path.as_ref())).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a link leads, as it is written.
pub fn read_link(path: impl AsRef<Path>) -> io::Result<PathBuf> {
    std::fs::read_link(place(path.as_ref()))
}

/// The names in a directory, sorted.
pub fn list(path: impl AsRef<Path>) -> io::Result<Vec<String>> {
    let entries = std::fs::read_dir(place(path.as_ref()))?;
    let mut names: Vec<_> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Whether there is something, wherever links lead.
pub fn exists(path: impl AsRef<Path>) -> bool {
    std::fs::metadata(place(path.as_ref())).is_ok()
}
