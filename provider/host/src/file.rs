//! Files that are either the old or the new one, whatever happens.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes a file so that a reader, or the next start after a kill, finds the old content or the new one.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    write(path, content, mode, false)
}

/// As [`write_atomically`]; when it returns, the content is on the disk. For what cannot be made again.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    write(path, content, mode, true)
}

fn write(path: &Path, content: &[u8], mode: u32, durable: bool) -> std::io::Result<()> {
    let staged = path.with_extension("new");
    // Never a file of somebody else's with wider rights.
    let _ = std::fs::remove_file(&staged);
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(&staged)?;
    let written = file.write_all(content).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    let placed = written.and_then(|()| std::fs::rename(&staged, path));
    if placed.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        std::fs::write(directory.path().join("state.new"), "of a run that was killed").unwrap();
        write_atomically(&path, b"1", 0o640).unwrap();
        write_durably(&path, b"2", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"2");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        assert!(write_atomically(&directory.path().join("directory"), b"", 0o600).is_err());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
