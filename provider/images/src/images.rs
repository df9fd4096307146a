//! [`Images`]: finds and pulls images.

use crate::credentials::Credentials;
use crate::registry::{PullError, Registry};
use crate::store::{Image, ImageStore};
use oci_client::Reference;
use oci_client::secrets::RegistryAuth;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

/// How images are had.
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// Directory of the store.
    pub directory: PathBuf,
    /// Registries that are spoken to without TLS, as `host` or `host:port`.
    pub insecure_registries: Vec<String>,
    /// Credentials of the node itself, tried after those of a pod.
    pub credentials: Credentials,
    /// Largest module, in bytes.
    pub module_size_limit: u64,
    /// When unused images go.
    pub garbage_collection: GarbageCollection,
}

/// When images that nobody uses are removed.
#[derive(Clone, Copy, Debug)]
pub struct GarbageCollection {
    /// Percent of the disk in use at which they begin to go. Default 85.
    pub high_threshold: u8,
    /// Percent in use at which that ends. Default 80.
    pub low_threshold: u8,
    /// How long an image is kept after its last use. Default 2 min.
    pub minimum_age: Duration,
    /// How often the disk is looked at. Default 5 min.
    pub period: Duration,
}

impl Default for GarbageCollection {
    fn default() -> Self {
        let (minimum_age, period) = (Duration::from_secs(120), Duration::from_secs(300));
        Self { high_threshold: 85, low_threshold: 80, minimum_age, period }
    }
}

/// Finds and pulls images. Shared by all pods.
#[derive(Debug)]
pub struct Images {
    config: ImagesConfig,
    store: ImageStore,
    /// One download of a manifest's content at a time; those who want the same wait and find it in the store.
    downloads: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Images {
    /// Opens the store.
    pub fn open(config: ImagesConfig) -> std::io::Result<Self> {
        let store = ImageStore::open(&config.directory)?;
        Ok(Self { config, store, downloads: Mutex::default() })
    }

    /// The store.
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    /// An image that was pulled before, and its module's file.
    pub fn find(&self, reference: &Reference) -> Option<(Image, PathBuf)> {
        let image = self.store.find(&reference.whole())?;
        self.store.touch(&image.reference);
        let path = self.store.blob(&image.module)?;
        Some((image, path))
    }

    /// Asks the registry what the image is now, downloads it unless it is there, and returns it with its module's file.
    ///
    /// # Errors
    /// What keeps the registry from answering for the moment has been tried four times by then; the rest is final until
    /// somebody changes the image, the registry or the credentials.
    pub async fn pull(&self, reference: &Reference, credentials: &Credentials) -> Result<(Image, PathBuf), PullError> {
        let mut all = credentials.clone();
        all.extend(self.config.credentials.clone());
        let mut candidates = all.of(reference);
        if candidates.is_empty() {
            candidates.push(RegistryAuth::Anonymous);
        }
        let mut refused = None;
        for auth in candidates {
            match self.pull_with(reference, auth).await {
                Err(error @ PullError::Unauthorized { .. }) => refused = Some(error),
                result => return result,
            }
        }
        Err(refused.unwrap_or(PullError::NotFound { registry: reference.registry().to_owned() }))
    }

    async fn pull_with(&self, reference: &Reference, auth: RegistryAuth) -> Result<(Image, PathBuf), PullError> {
        let registry = Registry::new(reference, auth, &self.config.insecure_registries)?;
        let resolved = registry.resolve(reference).await?;
        let id = format!("{}/{}@{}", reference.registry(), reference.repository(), resolved.digest);
        let download = self.download(&resolved.digest);
        let _one_at_a_time = download.lock().await;
        if let Some((image, path)) = self.find(reference).filter(|(image, _)| image.id == id) {
            return Ok((image, path));
        }
        let module = registry.fetch(reference, &resolved, &self.store, self.config.module_size_limit).await?;
        let image = Image { reference: reference.whole(), id, module, pulled: SystemTime::now() };
        self.store.add(&image)?;
        let path = self.store.blob(&image.module).ok_or_else(|| std::io::Error::other("the module was removed"))?;
        Ok((image, path))
    }

    /// Removes images that nobody uses if the disk is nearly full, the ones that were unused for longest first. `used` are
    /// full names of images that pods run. Returns the bytes that were freed and the digests of modules that are gone; `None`
    /// if there was no need.
    pub fn collect_garbage(&self, used: &HashSet<String>) -> std::io::Result<Option<(u64, Vec<String>)>> {
        let GarbageCollection { high_threshold, low_threshold, minimum_age, .. } = self.config.garbage_collection;
        let disk = rustix::fs::statvfs(&self.config.directory)?;
        let total = disk.f_blocks * disk.f_frsize;
        let in_use = total.saturating_sub(disk.f_bavail * disk.f_frsize);
        let percent = |part: u8| total / 100 * u64::from(part);
        if in_use < percent(high_threshold) {
            return Ok(None);
        }
        self.store.collect(in_use.saturating_sub(percent(low_threshold)), minimum_age, used).map(Some)
    }

    fn download(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        downloads.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = downloads.get(digest).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        downloads.insert(digest.to_owned(), Arc::downgrade(&lock));
        lock
    }
}
