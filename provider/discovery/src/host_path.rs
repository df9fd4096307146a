//! Which host paths the devices of a handler may name.
//!
//! What a handler returns becomes mounts and devices of other pods, so it is the handler's real privilege. A path must be named
//! by the pod's annotation and by the node's operator. It must not be where a guest could put a link, or be one.

use akri_krustlet_host::file::is_reached_without_links;
use std::path::{Path, PathBuf};

/// Absolute paths, each with what is below it; none by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowList(Vec<String>);

impl AllowList {
    /// Parses `/dev/video*,/run/udev`: absolute paths, each standing for itself and what is below it; a `*` at the end
    /// stands for any rest of that path component. On failure returns the entry at fault.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries
            .map(|entry| {
                let path = entry.strip_suffix('*').unwrap_or(entry);
                let whole = crate::settings::is_plain_absolute(path) && !path.contains('*');
                if whole { Ok(entry.trim_end_matches('/').to_owned()) } else { Err(entry.to_owned()) }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(crate) fn allows(&self, path: &str) -> bool {
        crate::settings::is_plain_absolute(path)
            && self.0.iter().any(|entry| match entry.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => path.strip_prefix(entry.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            })
    }
}

impl AllowList {
    /// Whether some path is allowed that `entry` of another list allows.
    pub fn allows_some_of(&self, entry: &str) -> bool {
        let start = |entry: &str| {
            entry.strip_suffix('*').map_or_else(|| format!("{}/", entry.trim_end_matches('/')), str::to_owned)
        };
        let asked = start(entry);
        self.0.iter().map(|own| start(own)).any(|own| asked.starts_with(&own) || own.starts_with(&asked))
    }
}

/// What of the host's files the devices of one handler may name.
#[derive(Clone, Debug, Default)]
pub struct HostPaths {
    /// What the handler's pod allows.
    pub pod: AllowList,
    /// What the node's operator allows.
    pub operator: AllowList,
    /// Directories that the handler's guests can write in.
    pub writable: Vec<PathBuf>,
}

/// Why a host path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The pod does not allow it.
    Pod,
    /// The operator does not allow it.
    Operator,
    /// A guest of the handler can write there.
    Writable,
    /// There is a symbolic link in it.
    Link,
    /// It cannot be looked at.
    Unreadable,
}

impl Refusal {
    /// In words, with the way out.
    pub(crate) fn explain(self, path: &str) -> String {
        match self {
            Self::Pod => format!(
                "which its pod does not allow; if the handler is trusted with it, annotate the pod: {}: {path}",
                crate::settings::ALLOWED_HOST_PATHS
            ),
            Self::Operator => format!(
                "which the operator of this node does not allow; if they trust the handlers that name it in their annotation, start the node with --allowed-host-paths {path}"
            ),
            Self::Writable => {
                "which is in a volume that the handler's guest can write in: it could put anything there".to_owned()
            }
            Self::Link => "which has a symbolic link in it; name the path that it leads to".to_owned(),
            Self::Unreadable => "which this node cannot look at".to_owned(),
        }
    }
}

impl HostPaths {
    /// Whether the words of a path may be said.
    pub(crate) fn check(&self, path: &str) -> Result<(), Refusal> {
        if !self.pod.allows(path) {
            return Err(Refusal::Pod);
        }
        if !self.operator.allows(path) {
            return Err(Refusal::Operator);
        }
        if self.writable.iter().any(|writable| Path::new(path).starts_with(writable)) {
            return Err(Refusal::Writable);
        }
        Ok(())
    }

    /// Whether a path that passed is what it says. Blocks as long as the files that it names do.
    pub(crate) fn look(&self, path: &str) -> Result<(), Refusal> {
        match is_reached_without_links(Path::new(path)) {
            Ok(true) => {}
            Ok(false) => return Err(Refusal::Link),
            Err(_) => return Err(Refusal::Unreadable),
        }
        // A volume may be named by another way than the path goes.
        let writable = self.writable.iter().filter_map(|writable| std::fs::canonicalize(writable).ok());
        match writable.into_iter().any(|writable| Path::new(path).starts_with(writable)) {
            true => Err(Refusal::Writable),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_must_be_allowed_twice_and_be_out_of_the_guests_reach() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let text = root.to_str().unwrap();
        for name in ["volume", "devices"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/etc", root.join("devices/link")).unwrap();
        std::os::unix::fs::symlink("volume", root.join("alias")).unwrap();
        let paths = HostPaths {
            pod: AllowList::parse(&format!("{text},/dev/video*")).unwrap(),
            operator: AllowList::parse(text).unwrap(),
            writable: vec![root.join("alias")],
        };
        let judge = |path: &str| paths.check(path).and_then(|()| paths.look(path));
        let below = |name: &str| format!("{text}/{name}");
        assert_eq!(judge(&below("devices")), Ok(()));
        assert_eq!(judge(&below("devices/not-there-yet")), Ok(()));
        assert_eq!(judge("/etc/passwd"), Err(Refusal::Pod));
        assert_eq!(judge("/dev/video0"), Err(Refusal::Operator));
        assert_eq!(judge(&below("alias/x")), Err(Refusal::Writable));
        assert_eq!(judge(&below("volume/x")), Err(Refusal::Writable));
        assert_eq!(judge(&below("devices/link/passwd")), Err(Refusal::Link));
    }
}
