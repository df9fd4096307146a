//! The images that were pulled.
//!
//! ```text
//! <root>/blobs/<algorithm>/<digest> modules and layers, named by what they hold
//! <root>/images/<hash>.json         one record an image reference: which module it is
//! <root>/staged/                    downloads under way; emptied at start
//! ```

use crate::digest::{self, hex};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Those of digests.
const ALGORITHMS: [&str; 3] = ["sha256", "sha384", "sha512"];

/// An image that is on this machine.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Image {
    /// As the container names it, with registry and tag: `docker.io/library/x:latest`.
    pub reference: String,
    /// `registry/repository@sha256:...` of its manifest; a container's `imageID`.
    pub id: String,
    /// Digest of the module, `sha256:...`.
    pub module: String,
    /// When it was pulled.
    pub pulled: SystemTime,
    /// Whose pods may run it without the registry being asked.
    #[serde(default)]
    pub access: Access,
    /// What it says of how it is started.
    #[serde(default)]
    pub launch: Launch,
    /// Digests of its layers and its configuration.
    #[serde(default)]
    pub blobs: BTreeSet<String>,
    /// Fingerprints of the keys whose signatures it was found to have.
    #[serde(default)]
    pub signers: BTreeSet<String>,
}

/// Who has shown to a registry that they may have an image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub enum Access {
    /// It was pulled without a pod's credentials, or is of a time in which that was not noted: everybody.
    #[default]
    Everyone,
    /// Those whose credentials have one of these fingerprints.
    Holders(BTreeSet<String>),
}

/// How an image is started.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Launch {
    /// The entrypoint's arguments, without the module itself.
    pub entrypoint_args: Vec<String>,
    /// What stands in place of a pod's `args`.
    pub cmd: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// The module as the entrypoint names it; `None` if there is no entrypoint.
    pub program: Option<String>,
}

/// An image as a node lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedImage {
    /// `registry/repository@sha256:...`, and the references that were pulled.
    pub names: Vec<String>,
    /// Of its module, in bytes.
    pub size: u64,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
    listed: Arc<Mutex<Option<Listing>>>,
}

/// What was listed last, and when the records had been changed by then.
#[derive(Clone, Debug)]
struct Listing {
    changed: SystemTime,
    images: Vec<ListedImage>,
}

impl ImageStore {
    /// Opens the store, making its directories and dropping downloads that were cut off.
    pub fn open(root: impl Into<PathBuf>) -> std::io::Result<Self> {
        let store = Self { root: root.into(), listed: Arc::default() };
        let _ = std::fs::remove_dir_all(store.staged());
        let blobs = ALGORITHMS.map(|algorithm| store.blobs(algorithm));
        for directory in blobs.into_iter().chain([store.root.join("images"), store.staged()]) {
            std::fs::create_dir_all(directory)?;
        }
        Ok(store)
    }

    fn blobs(&self, algorithm: &str) -> PathBuf {
        self.root.join("blobs").join(algorithm)
    }

    pub(crate) fn staged(&self) -> PathBuf {
        self.root.join("staged")
    }

    fn record(&self, reference: &str) -> PathBuf {
        self.root.join("images").join(format!("{}.json", hex(&Sha256::digest(reference))))
    }

    /// Where the content with this digest is, if it is there. `None` as well for what is no digest.
    pub fn blob(&self, digest: &str) -> Option<PathBuf> {
        let path = self.blob_path(digest)?;
        path.is_file().then_some(path)
    }

    pub(crate) fn blob_path(&self, digest: &str) -> Option<PathBuf> {
        let (algorithm, digits) = digest::parts(digest)?;
        Some(self.blobs(algorithm).join(digits))
    }

    /// Keeps a download whose digest has been verified.
    pub(crate) fn keep(&self, staged: tempfile::NamedTempFile, digest: &str) -> std::io::Result<PathBuf> {
        let path = self.blob_path(digest).ok_or_else(|| std::io::Error::other("not a digest"))?;
        staged.as_file().sync_all()?;
        staged.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }

    /// Keeps bytes; returns their digest.
    pub(crate) fn keep_bytes(&self, bytes: &[u8]) -> std::io::Result<String> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(bytes)));
        if self.blob(&digest).is_none() {
            let mut staged = tempfile::NamedTempFile::new_in(self.staged())?;
            staged.write_all(bytes)?;
            self.keep(staged, &digest)?;
        }
        Ok(digest)
    }

    /// An image that was pulled and is complete.
    pub fn find(&self, reference: &str) -> Option<Image> {
        let image: Image = serde_json::from_slice(&std::fs::read(self.record(reference)).ok()?).ok()?;
        self.blob(&image.module)?;
        Some(image)
    }

    /// An image with this id that was pulled under another reference; it is here under this one, too, from then on.
    pub(crate) fn find_under(&self, id: &str, reference: &str) -> Option<Image> {
        let is_here = |image: &Image| image.id == id && self.blob(&image.module).is_some();
        let image = Image { reference: reference.to_owned(), ..self.images().find(is_here)? };
        self.add(&image).ok()?;
        Some(image)
    }

    /// What the records say; one that cannot be read says nothing.
    fn images(&self) -> impl Iterator<Item = Image> {
        let records = std::fs::read_dir(self.root.join("images")).into_iter().flatten().flatten();
        records.filter_map(|record| serde_json::from_slice(&std::fs::read(record.path()).ok()?).ok())
    }

    /// The images that are here, the largest first. The records are read only if one has come or gone.
    pub fn list(&self) -> Vec<ListedImage> {
        let records = self.root.join("images");
        let changed = std::fs::metadata(&records).and_then(|metadata| metadata.modified()).ok();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*listed
            && Some(known.changed) == changed
        {
            return known.images.clone();
        }
        let mut by_id: BTreeMap<String, ListedImage> = BTreeMap::new();
        for image in self.images() {
            let Some(module) = self.blob(&image.module).and_then(|path| path.metadata().ok()) else { continue };
            let first = || ListedImage { names: vec![image.id.clone()], size: module.len() };
            let listed = by_id.entry(image.id.clone()).or_insert_with(first);
            if !listed.names.contains(&image.reference) {
                listed.names.push(image.reference.clone());
                listed.names[1..].sort();
            }
        }
        let mut images: Vec<_> = by_id.into_values().collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        *listed = changed.map(|changed| Listing { changed, images: images.clone() });
        images
    }

    /// The blobs of images that are here and whose id begins so.
    pub(crate) fn blobs_of(&self, id: &str) -> BTreeSet<String> {
        self.images().filter(|image| image.id.starts_with(id)).flat_map(|image| image.blobs).collect()
    }

    pub(crate) fn add(&self, image: &Image) -> std::io::Result<()> {
        let path = self.record(&image.reference);
        let mut staged = tempfile::NamedTempFile::new_in(self.staged())?;
        staged.write_all(&serde_json::to_vec_pretty(image)?)?;
        staged.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Notes that an image is in use, for [`ImageStore::collect`].
    pub fn touch(&self, reference: &str) {
        if let Ok(record) = std::fs::File::options().write(true).open(self.record(reference)) {
            let _ = record.set_modified(SystemTime::now());
        }
    }

    /// Removes the images that were unused for longest, and for `minimum_age` at least, none that is in `used` (references),
    /// until `wanted` bytes are free of them or none is left. Returns the bytes that were freed and the modules that are gone.
    pub fn collect(
        &self,
        wanted: u64,
        minimum_age: Duration,
        used: &HashSet<String>,
    ) -> std::io::Result<(u64, Vec<String>)> {
        let mut images: Vec<(SystemTime, PathBuf, Image)> = Vec::new();
        for entry in std::fs::read_dir(self.root.join("images"))? {
            let path = entry?.path();
            let Some(image) = std::fs::read(&path).ok().and_then(|json| serde_json::from_slice(&json).ok()) else {
                continue;
            };
            images.push((path.metadata()?.modified()?, path, image));
        }
        images.sort_by_key(|(last_used, ..)| *last_used);
        let mut kept: HashSet<String> = images.iter().map(|(.., image)| image.module.clone()).collect();
        let mut freed = 0;
        let mut gone = Vec::new();
        for (last_used, path, image) in &images {
            let old = last_used.elapsed().is_ok_and(|age| age >= minimum_age);
            if freed >= wanted || used.contains(&image.reference) || !old {
                continue;
            }
            std::fs::remove_file(path)?;
            let shared =
                images.iter().any(|(_, other, of)| other != path && other.exists() && of.module == image.module);
            if !shared && let Some(blob) = self.blob(&image.module) {
                freed += remove(&blob)?;
                kept.remove(&image.module);
                gone.push(image.module.clone());
            }
        }
        // Layers of archives, and what no record names.
        let algorithms: &[_] = if freed < wanted { &ALGORITHMS } else { &[] };
        for algorithm in algorithms {
            for entry in std::fs::read_dir(self.blobs(algorithm))? {
                let path = entry?.path();
                let name =
                    path.file_name().map(|name| format!("{algorithm}:{}", name.to_string_lossy())).unwrap_or_default();
                let old = path.metadata()?.modified()?.elapsed().is_ok_and(|age| age >= minimum_age);
                if !kept.contains(&name) && old {
                    freed += remove(&path)?;
                }
            }
        }
        Ok((freed, gone))
    }
}

fn remove(path: &Path) -> std::io::Result<u64> {
    let size = path.metadata()?.len();
    std::fs::remove_file(path)?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(120);

    fn add(store: &ImageStore, reference: &str, content: &[u8], age: u64) -> PathBuf {
        let module = store.keep_bytes(content).unwrap();
        let blob = store.blob(&module).unwrap();
        let (access, launch) = (Access::Everyone, Launch::default());
        let image = Image {
            reference: reference.to_owned(),
            id: String::new(),
            module,
            pulled: SystemTime::now(),
            access,
            launch,
            blobs: BTreeSet::new(),
            signers: BTreeSet::new(),
        };
        store.add(&image).unwrap();
        for path in [store.record(reference), blob.clone()] {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        blob
    }

    #[test]
    fn the_images_that_were_unused_for_longest_go_first_and_used_ones_stay() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let oldest = add(&store, "oldest", b"oldest", 4000);
        let used = add(&store, "used", b"used", 3000);
        let old = add(&store, "old", b"old", 2000);
        let new = add(&store, "new", b"new", 1);
        let in_use = HashSet::from(["used".to_owned()]);
        let (freed, gone) = store.collect(1, AGE, &in_use).unwrap();
        assert_eq!((freed, gone.len()), (6, 1));
        assert!(!oldest.exists() && old.exists());
        assert_eq!(store.collect(u64::MAX, AGE, &in_use).unwrap().0, 3);
        assert!(!old.exists() && used.exists() && new.exists());
        assert!(store.find("oldest").is_none() && store.find("used").is_some());
    }

    #[test]
    fn a_module_of_two_images_goes_with_the_second() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let blob = add(&store, "a", b"same", 4000);
        add(&store, "b", b"same", 3000);
        let used = HashSet::from(["b".to_owned()]);
        assert_eq!(store.collect(u64::MAX, AGE, &used).unwrap().0, 0);
        assert!(blob.exists() && store.find("a").is_none());
        assert_eq!(store.collect(u64::MAX, AGE, &HashSet::new()).unwrap().0, 4);
    }

    #[test]
    fn what_is_here_is_listed_with_all_its_names_and_the_largest_first() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        assert_eq!(store.list(), []);
        let mut images = Vec::new();
        for (reference, id, content) in [
            ("r/a:2", "r/a@sha256:1", "small"),
            ("r/b:1", "r/b@sha256:2", "larger"),
            ("r/a:1", "r/a@sha256:1", "small"),
        ] {
            add(&store, reference, content.as_bytes(), 1);
            let image = Image { id: id.to_owned(), ..store.find(reference).unwrap() };
            store.add(&image).unwrap();
            images.push(image);
        }
        let listed =
            |names: &[&str], size| ListedImage { names: names.iter().map(ToString::to_string).collect(), size };
        let all = [listed(&["r/b@sha256:2", "r/b:1"], 6), listed(&["r/a@sha256:1", "r/a:1", "r/a:2"], 5)];
        assert_eq!(store.list(), all);
        std::fs::remove_file(store.record("r/b:1")).unwrap();
        assert_eq!(store.list(), all[1..]);
    }

    #[test]
    fn what_is_here_under_a_tag_is_here_under_its_digest() {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path()).unwrap();
        let blob = add(&store, "r/a:1", b"content", 4000);
        store.add(&Image { id: "r/a@sha256:1".to_owned(), ..store.find("r/a:1").unwrap() }).unwrap();
        assert_eq!(store.find_under("r/a@sha256:2", "r/a@sha256:2"), None);
        let found = store.find_under("r/a@sha256:1", "r/a@sha256:1").unwrap();
        assert_eq!(Some(found.clone()), store.find("r/a@sha256:1"));
        // Who uses it by that name keeps it.
        let used = HashSet::from([found.reference]);
        store.collect(u64::MAX, Duration::ZERO, &used).unwrap();
        assert!(blob.exists() && store.find("r/a:1").is_none());
        std::fs::remove_file(blob).unwrap();
        assert_eq!(store.find_under("r/a@sha256:1", "r/a:2@sha256:1"), None, "it is not whole");
    }

    #[test]
    fn a_digest_is_never_a_path() {
        let store = ImageStore::open(tempfile::tempdir().unwrap().path()).unwrap();
        for digest in ["sha256:../../etc/passwd", "sha512:00", "", "sha256:", "md5:00"] {
            assert_eq!(store.blob_path(digest), None, "{digest}");
        }
    }
}
