//! Directories and files of the host.

use super::{Mounted, MountedKind};
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

/// Makes a hostPath volume available: its type is checked, and what it says to make is made.
pub fn mount(source: &HostPathVolumeSource, path: PathBuf) -> Result<Mounted, (PathBuf, String)> {
    let kind = source.type_.as_deref().unwrap_or_default();
    let result = match kind {
        // A container runtime makes the missing directory of a hostPath without a type.
        "" | "DirectoryOrCreate" if !path.exists() => std::fs::create_dir_all(&path),
        "FileOrCreate" if !path.exists() => std::fs::File::create_new(&path).map(|_| ()),
        _ => Ok(()),
    };
    let metadata = match result.and_then(|()| std::fs::metadata(&path)) {
        Ok(metadata) => metadata,
        Err(error) => return Err((path, error.to_string())),
    };
    let is = metadata.file_type();
    let expected = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => is.is_dir(),
        "File" | "FileOrCreate" => is.is_file(),
        "Socket" => is.is_socket(),
        "CharDevice" => is.is_char_device(),
        "BlockDevice" => is.is_block_device(),
        _ => return Err((path, format!("{kind:?} is no type of a hostPath"))),
    };
    if !expected {
        return Err((path, format!("hostPath type check failed: it is not of type {kind}")));
    }
    if is.is_dir() {
        return Ok(Mounted { path, kind: MountedKind::Directory, in_memory: false });
    }
    if is.is_file() {
        return Ok(Mounted { path, kind: MountedKind::File, in_memory: false });
    }
    Err((path, "a WebAssembly guest cannot be given sockets and devices, only directories and files".to_owned()))
}

/// What is at a path below a volume.
#[derive(Debug)]
pub enum Beneath {
    /// A directory.
    Directory,
    /// A file.
    File(OwnedFd),
}

/// Looks at a path below a volume, wherever the links lead that guests may have put there: never out of it. A directory that
/// is missing is made.
pub fn make_beneath(volume: &Path, path: &str) -> std::io::Result<Beneath> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, flags, Mode::empty())?;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside) {
        Ok(found) => {
            let stat = rustix::fs::fstat(&found)?;
            return match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Ok(Beneath::Directory),
                FileType::RegularFile => Ok(Beneath::File(found)),
                _ => Err(std::io::Error::other("neither a directory nor a file")),
            };
        }
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut directory = root;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match rustix::fs::mkdirat(directory.as_fd(), part, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        directory = rustix::fs::openat2(&directory, part, flags, Mode::empty(), inside)?;
    }
    Ok(Beneath::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked_by_their_type() {
        let parent = tempfile::tempdir().unwrap();
        let with = |path: &Path, kind: &str| {
            let source = HostPathVolumeSource { path: String::new(), type_: Some(kind.to_owned()) };
            mount(&source, path.to_owned()).map(|mounted| mounted.kind).map_err(|(_, what)| what)
        };
        let (missing, file) = (parent.path().join("missing"), parent.path().join("file"));
        assert!(with(&missing, "Directory").unwrap_err().contains("No such file"));
        assert_eq!(with(&missing, "DirectoryOrCreate"), Ok(MountedKind::Directory));
        assert!(with(&file, "File").unwrap_err().contains("No such file"));
        assert_eq!(with(&file, "FileOrCreate"), Ok(MountedKind::File));
        assert_eq!(with(&file, ""), Ok(MountedKind::File));
        assert!(with(&file, "Directory").unwrap_err().contains("not of type Directory"));
        assert!(with(&missing, "File").unwrap_err().contains("not of type File"));
        assert!(with("/dev/null".as_ref(), "CharDevice").unwrap_err().contains("cannot be given"));
        assert!(with("/dev/null".as_ref(), "BlockDevice").unwrap_err().contains("not of type BlockDevice"));
        assert!(with("/dev/null".as_ref(), "Pipe").unwrap_err().contains("no type of a hostPath"));
    }

    #[test]
    fn no_link_leads_out_of_a_volume() {
        let parent = tempfile::tempdir().unwrap();
        let volume = parent.path().join("volume");
        std::fs::create_dir_all(volume.join("inside")).unwrap();
        std::fs::write(parent.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("..", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("inside", volume.join("in")).unwrap();
        for path in ["out", "out/secret", "out/new", "../secret"] {
            assert!(make_beneath(&volume, path).is_err(), "{path}");
        }
        assert!(!parent.path().join("new").exists());
        for path in ["inside", "in", "in/new/er"] {
            assert!(matches!(make_beneath(&volume, path), Ok(Beneath::Directory)), "{path}");
        }
        assert!(volume.join("inside/new/er").is_dir());
        std::fs::write(volume.join("file"), "x").unwrap();
        assert!(matches!(make_beneath(&volume, "file"), Ok(Beneath::File(_))));
    }
}
