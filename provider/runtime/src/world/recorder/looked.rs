//! Files as the guest sees them: what it looks at is looked at here, too.

use super::{MOST_ENTRIES, Recorder, State};
use akri_recording::Event;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Largest file that is written down, in bytes.
const MOST_FILE: u64 = 256 << 10;
/// Links on the way to a file.
const MOST_LINKS: usize = 40;

impl Recorder {
    /// The guest has looked at a path of the host, or at what it leads to; with what is in it, if it has opened it.
    pub(crate) fn looked(&self, path: &Path, opened: bool) {
        for (root, guest) in self.volumes_of(path) {
            self.looked_in(path, (root, guest), opened);
        }
    }

    /// The volumes that have a path: of those in one another the innermost, of those of one directory all.
    fn volumes_of(&self, path: &Path) -> impl Iterator<Item = (&Path, &str)> {
        let here = self.directories.iter().filter(move |(root, _)| path.starts_with(root));
        let depth = here.clone().map(|(root, _)| root.components().count()).max();
        here.filter(move |(root, _)| Some(root.components().count()) == depth)
            .map(|(root, guest)| (root.as_path(), guest.as_str()))
    }

    fn looked_in(&self, path: &Path, (root, guest): (&Path, &str), opened: bool) {
        let Ok(rest) = path.strip_prefix(root) else { return };
        let mut left: VecDeque<PathBuf> = parts(rest);
        let (mut here, mut links) = (PathBuf::new(), 0);
        let mut state = self.state();
        while let Some(part) = left.pop_front() {
            if part == Path::new("..") {
                if !here.pop() {
                    return;
                }
                continue;
            }
            here.push(part);
            let (host, name) = (root.join(&here), guest_path(guest, &here));
            match std::fs::symlink_metadata(&host) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    state.sees_file(name.clone(), Event::Gone(name));
                    return;
                }
                Err(_) => return,
                Ok(metadata) if metadata.is_symlink() => {
                    let Ok(to) = std::fs::read_link(&host) else { return };
                    links += 1;
                    state.sees_file(name.clone(), Event::Symlink { path: name, to: to.display().to_string() });
                    if to.is_absolute() || links > MOST_LINKS {
                        return;
                    }
                    here.pop();
                    for part in parts(&to).into_iter().rev() {
                        left.push_front(part);
                    }
                }
                Ok(metadata) if metadata.is_file() && left.is_empty() && !opened => state.lists(name),
                Ok(metadata) if metadata.is_file() && left.is_empty() => {
                    if let Some(content) = content(root, &here) {
                        state.sees_file(name.clone(), Event::File { path: name, content });
                    }
                }
                Ok(_) if left.is_empty() => state.sees_file(name.clone(), Event::Directory(name)),
                Ok(_) => {}
            }
        }
    }

    /// The guest has listed a directory of the host.
    pub(crate) fn listed(&self, path: &Path) {
        self.looked(path, false);
        for volume in self.volumes_of(path) {
            self.listed_in(path, volume);
        }
    }

    fn listed_in(&self, path: &Path, (root, guest): (&Path, &str)) {
        let Ok(entries) = std::fs::read_dir(path) else { return };
        let Ok(rest) = path.strip_prefix(root) else { return };
        let directory = guest_path(guest, rest);
        let above = directory.trim_end_matches('/');
        let mut there = BTreeSet::new();
        let mut state = self.state();
        for entry in entries.flatten().take(MOST_ENTRIES) {
            let Ok(kind) = entry.file_type() else { continue };
            let name = guest_path(guest, &rest.join(entry.file_name()));
            there.insert(name.clone());
            if kind.is_symlink() {
                if let Ok(to) = std::fs::read_link(entry.path()) {
                    state.sees_file(name.clone(), Event::Symlink { path: name, to: to.display().to_string() });
                }
            } else if kind.is_dir() {
                state.sees_file(name.clone(), Event::Directory(name));
            } else if kind.is_file() {
                state.lists(name);
            }
        }
        let is_child = |path: &str| {
            let rest = path.strip_prefix(above).and_then(|rest| rest.strip_prefix('/'));
            rest.is_some_and(|rest| !rest.contains('/'))
        };
        let known = state.seen.iter().filter(|(_, seen)| seen.is_there);
        let known = known.filter_map(|(of, _)| of.strip_prefix("file ")).chain(state.listed.iter().map(String::as_str));
        let gone: Vec<_> = known.filter(|path| is_child(path) && !there.contains(*path)).map(str::to_owned).collect();
        for path in gone {
            state.sees_file(path.clone(), Event::Gone(path));
        }
        state.directories.insert(above.to_owned());
    }

    /// A path of the guest's on the host, for what it is told of by name.
    pub(crate) fn host_path(&self, guest: &str) -> Option<PathBuf> {
        let of = self.directories.iter().filter(|(_, of)| Path::new(guest).starts_with(of));
        let (root, of) = of.max_by_key(|(_, of)| of.len())?;
        Some(root.join(Path::new(guest).strip_prefix(of).ok()?))
    }
}

impl State {
    fn sees_file(&mut self, path: String, event: Event) {
        let key = format!("file {path}");
        let was_listed = self.listed.remove(&path);
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        if was_listed && !matches!(event, Event::File { .. }) {
            // It was there, whatever was in it.
            self.sees(key.clone(), Event::File { path: path.clone(), content: Vec::new() });
        } else if !was_listed
            && !self.seen.contains_key(&key)
            && self.directories.contains(directory)
            && !matches!(event, Event::Gone(_))
        {
            // Its directory was listed without it: it was not there.
            self.sees(key.clone(), Event::Gone(path));
        }
        self.sees(key, event);
    }

    /// A file that is known by its name alone.
    fn lists(&mut self, path: String) {
        let key = format!("file {path}");
        if self.listed.contains(&path) || self.seen.get(&key).is_some_and(|seen| seen.is_there) {
            return;
        }
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let was_gone = self.seen.contains_key(&key);
        if was_gone {
            // Whatever is in it.
            self.sees(key, Event::File { path, content: Vec::new() });
            return;
        }
        if self.directories.contains(directory) {
            self.sees(key.clone(), Event::Gone(path.clone()));
            self.sees(key, Event::File { path, content: Vec::new() });
        } else if self.listed.len() < MOST_ENTRIES {
            self.waiting += path.len() as u64;
            self.listed.insert(path);
        }
    }
}

/// Of a file in a volume, and of nothing that has come in its place.
fn content(root: &Path, path: &Path) -> Option<Vec<u8>> {
    let directory = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(directory, path, flags, Mode::empty(), how).ok()?);
    let mut content = Vec::new();
    if file.metadata().ok()?.is_file() {
        io::Read::read_to_end(&mut io::Read::take(file, MOST_FILE), &mut content).ok()?;
    }
    Some(content)
}

fn parts(path: &Path) -> VecDeque<PathBuf> {
    let part = |part: Component<'_>| match part {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().filter_map(part).collect()
}

fn guest_path(guest: &str, rest: &Path) -> String {
    match rest.as_os_str().is_empty() {
        true => guest.to_owned(),
        false => format!("{}/{}", guest.trim_end_matches('/'), rest.display()),
    }
}
