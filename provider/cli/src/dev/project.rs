//! What a handler's author works on: the pod, the module that it runs, how that is built, and the sources.

use crate::check::container_of;
use crate::output::plain;
use akri_krustlet_host::DirectoryWatcher;
use akri_krustlet_host::file::FileStamp;
use akri_krustlet_node::manifest::is_manifest;
use akri_krustlet_node::pod::PodObject;
use anyhow::{Context as _, bail};
use futures::future::{pending, select_all};
use k8s_openapi::api::core::v1::Container;
use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Directories that have no sources.
const NO_SOURCES: [&str; 5] = ["target", "node_modules", "__pycache__", "dist", "build"];
/// Most directories that are followed, and files that are looked at.
const MOST_DIRECTORIES: usize = 2000;
const MOST_FILES: usize = 20_000;
/// Largest file that is read to see whether it is another one, in bytes.
const MOST_READ: u64 = 1 << 20;
/// Editors write a file in several steps.
const EDITOR: Duration = Duration::from_millis(30);

/// A handler's project.
#[derive(Debug)]
pub(super) struct Project {
    pub directory: PathBuf,
    pub manifests: PathBuf,
    /// The manifest with the pod, for messages.
    pub manifest: PathBuf,
    pub pod: PodObject,
    pub container: Container,
    /// The module's file.
    pub module: PathBuf,
    pub details: PathBuf,
    /// What builds it: a program and its arguments.
    pub build: Vec<String>,
}

impl Project {
    pub(super) fn read(directory: &Path, arguments: &super::DevArguments) -> anyhow::Result<Self> {
        let directory = directory.canonicalize().with_context(|| directory.display().to_string())?;
        let of_project = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => std::path::absolute(path),
            None => Ok(directory.join(name)),
        };
        let manifests = of_project(&arguments.manifests, "manifests")?;
        let details = of_project(&arguments.details, "details.yaml")?;
        let (manifest, pod, container) = pod_in(&manifests, arguments.container.as_deref())?;
        let image = container.image.clone().unwrap_or_default();
        let Some(path) = image.strip_prefix("fs://") else {
            bail!(
                "{}: container {} runs image {image}; a module that is built here is a file: image: fs://../target/wasm32-wasip2/release/NAME.wasm",
                manifest.display(),
                container.name
            )
        };
        let module = plain(&pod.resolve(path));
        let build = match &arguments.build {
            Some(command) => vec!["sh".to_owned(), "-c".to_owned(), command.clone()],
            None => cargo_build(&directory, &module)?,
        };
        Ok(Self { directory, manifests, manifest, pod, container, module, details, build })
    }

    /// What of its directory is no source.
    fn others(&self) -> Vec<PathBuf> {
        let volumes = self.pod.spec().volumes.iter().flatten().filter_map(|volume| volume.host_path.as_ref());
        let mounted = volumes.map(|volume| plain(&self.pod.resolve(&volume.path)));
        [self.manifests.clone(), self.module.clone()].into_iter().chain(mounted).collect()
    }

    /// The details as they are now.
    pub(super) fn read_details(&self) -> anyhow::Result<String> {
        match std::fs::read_to_string(&self.details) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok("{}".to_owned()),
            read => read.with_context(|| self.details.display().to_string()),
        }
    }
}

/// The pod of a folder of manifests, with one container that is meant.
fn pod_in(manifests: &Path, name: Option<&str>) -> anyhow::Result<(PathBuf, PodObject, Container)> {
    let entries = std::fs::read_dir(manifests).with_context(|| {
        format!("{}: a project has the manifest of its pod there, or --manifests says where", manifests.display())
    })?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| is_manifest(path)).collect();
    files.sort();
    match &files[..] {
        [] => bail!("{}: there is no manifest in it (*.yaml, *.json)", manifests.display()),
        [file] => {
            let (pod, container) = container_of(file, name)?;
            Ok((file.clone(), pod, container))
        }
        files => {
            let found: Vec<_> = files
                .iter()
                .filter_map(|file| container_of(file, name).ok().map(|(pod, container)| (file, pod, container)))
                .collect();
            match <[_; 1]>::try_from(found) {
                Ok([(file, pod, container)]) => Ok((file.clone(), pod, container)),
                Err(_) => bail!(
                    "{}: several pods are in it; name the container that is worked on with --container",
                    manifests.display()
                ),
            }
        }
    }
}

/// How cargo builds a module at this path: `TARGET-DIR/TARGET/PROFILE/NAME.wasm`.
fn cargo_build(directory: &Path, module: &Path) -> anyhow::Result<Vec<String>> {
    if !directory.join("Cargo.toml").exists() {
        // Projects in other languages, as `new-handler` makes them.
        if directory.join("Makefile").exists() {
            return Ok(["make", "--silent"].map(str::to_owned).to_vec());
        }
        bail!(
            "{}: there is neither a Cargo.toml nor a Makefile; say with --build what builds {}",
            directory.display(),
            module.display()
        );
    }
    let mut above = module.ancestors().skip(1).filter_map(|path| Some((path, path.file_name()?.to_str()?)));
    let (profile, target) = (above.next(), above.next());
    let (Some((_, profile)), Some((target_path, target))) = (profile, target) else {
        bail!("{}: cargo builds no module there; say with --build what does", module.display())
    };
    if !target.starts_with("wasm32-") {
        bail!("{}: cargo builds modules in target/TARGET/PROFILE; say with --build what builds this", module.display());
    }
    let profile = if profile == "debug" { "dev" } else { profile };
    let target_directory = target_path.parent().unwrap_or(directory).display().to_string();
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let words = [&cargo, "build", "--profile", profile, "--target", target, "--target-dir", &target_directory];
    Ok(words.map(str::to_owned).to_vec())
}

/// The files of a project that its author changes, followed.
pub(super) struct Sources {
    directory: PathBuf,
    details: PathBuf,
    /// What is no source: the manifests, which the node reads, the module, and what the pod mounts.
    others: Vec<PathBuf>,
    watcher: DirectoryWatcher,
    changes: Vec<tokio::sync::watch::Receiver<()>>,
    seen: BTreeMap<PathBuf, Seen>,
}

/// What was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    pub sources: bool,
    pub details: bool,
}

/// What a file was when it was looked at. One that is written again as it was is the same.
#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: FileStamp,
    content: u64,
}

impl Sources {
    pub(super) fn follow(project: &Project) -> anyhow::Result<Self> {
        let mut sources = Self {
            directory: project.directory.clone(),
            details: project.details.clone(),
            others: project.others(),
            watcher: DirectoryWatcher::start().context("files cannot be followed")?,
            changes: Vec::new(),
            seen: BTreeMap::new(),
        };
        sources.seen = sources.look();
        Ok(sources)
    }

    /// Resolves when something was saved.
    pub(super) async fn saved(&mut self) -> Saved {
        loop {
            if self.changes.is_empty() {
                return pending().await;
            }
            let changed = self.changes.iter_mut().map(|changes| Box::pin(changes.changed()));
            let _ = select_all(changed).await;
            tokio::time::sleep(EDITOR).await;
            let now = self.look();
            let content = |files: &BTreeMap<PathBuf, Seen>, path: &PathBuf| files.get(path).map(|seen| seen.content);
            let differs = |path: &&PathBuf| content(&now, path) != content(&self.seen, path);
            let changed: Vec<_> = now.keys().chain(self.seen.keys()).filter(differs).cloned().collect();
            self.seen = now;
            let saved = Saved {
                sources: changed.iter().any(|path| *path != self.details),
                details: changed.contains(&self.details),
            };
            if saved.sources || saved.details {
                return saved;
            }
        }
    }

    /// What the files are, and from now on what happens in their directories.
    fn look(&mut self) -> BTreeMap<PathBuf, Seen> {
        let mut directories = vec![self.directory.clone()];
        let mut files = BTreeMap::new();
        let (mut next, mut changes) = (0, Vec::new());
        while let Some(directory) = directories.get(next).cloned() {
            next += 1;
            // Before it is read, so that nothing is missed.
            changes.extend(self.watcher.watch(&directory));
            for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
                let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                let Ok(metadata) = entry.metadata() else { continue };
                if name.starts_with('.') || name.ends_with('~') {
                    continue;
                }
                if metadata.is_dir() {
                    let is_source = !NO_SOURCES.contains(&name.as_str()) && !self.others.contains(&path);
                    if is_source && directories.len() < MOST_DIRECTORIES {
                        directories.push(path);
                    }
                } else if metadata.is_file() && files.len() < MOST_FILES && !self.others.contains(&path) {
                    let seen = self.seen(&path, &metadata);
                    files.insert(path, seen);
                }
            }
        }
        // A file elsewhere is followed as well.
        if let Ok(metadata) = std::fs::metadata(&self.details) {
            files.insert(self.details.clone(), self.seen(&self.details, &metadata));
        }
        if let Some(directory) =
            self.details.parent().filter(|directory| !directories.contains(&directory.to_path_buf()))
        {
            changes.extend(self.watcher.watch(directory));
        }
        self.changes = changes;
        files
    }

    /// Reads what may have changed.
    fn seen(&self, path: &Path, metadata: &std::fs::Metadata) -> Seen {
        let stamp = FileStamp::of(metadata);
        match self.seen.get(path) {
            Some(seen) if seen.stamp == stamp && stamp.is_settled(std::time::SystemTime::now()) => *seen,
            _ => Seen { stamp, content: content(path, metadata) },
        }
    }
}

/// Tells contents apart; of a large file, versions.
fn content(path: &Path, metadata: &std::fs::Metadata) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    match std::fs::read(path) {
        Ok(content) if metadata.len() <= MOST_READ => content.hash(&mut hasher),
        _ => (metadata.len(), metadata.modified().ok()).hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_builds_where_the_manifest_looks() {
        let directory = tempfile::tempdir().unwrap();
        let module = |path: &str| directory.path().join(path);
        let error = cargo_build(directory.path(), &module("target/wasm32-wasip2/release/x.wasm")).unwrap_err();
        assert!(error.to_string().contains("say with --build"), "{error}");
        std::fs::write(directory.path().join("Cargo.toml"), "").unwrap();
        let build = cargo_build(directory.path(), &module("target/wasm32-wasip2/release/x.wasm")).unwrap();
        let target = module("target").display().to_string();
        assert_eq!(build[1..], ["build", "--profile", "release", "--target", "wasm32-wasip2", "--target-dir", &target]);
        assert_eq!(cargo_build(directory.path(), &module("t/wasm32-wasip1/debug/x.wasm")).unwrap()[3], "dev");
        assert!(cargo_build(directory.path(), &module("x.wasm")).is_err());
        assert_eq!(plain(Path::new("/a/m/../target/./x.wasm")), Path::new("/a/target/x.wasm"));
    }
}
