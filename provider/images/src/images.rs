//! [`Images`]: finds and pulls images.

use crate::credentials::{Credential, Credentials, CredentialsError};
use crate::policy::{ImagePolicy, PolicyError};
use crate::pull_error::PullError;
use crate::registry::{DEADLINE, Fetched, Registry};
use crate::store::{Access, Image, ImageStore};
use akri_krustlet_host::file::ReadFiles;
use akri_krustlet_host::{Turns, span, spans};
use akri_krustlet_metrics::counted;
use oci_client::Reference;
use oci_client::manifest::OciImageManifest;
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How images are had.
#[derive(Clone, Debug)]
pub struct ImagesConfig {
    /// Directory of the store.
    pub directory: PathBuf,
    /// Registries that are spoken to without TLS, as `host` or `host:port`.
    pub insecure_registries: Vec<String>,
    /// Credentials of the node itself, tried after those of a pod.
    pub credentials: NodeCredentials,
    /// Largest module, in bytes.
    pub module_size_limit: u64,
    /// When unused images go.
    pub garbage_collection: GarbageCollection,
    /// What is asked of images before they are run.
    pub policy: ImagePolicy,
}

/// The node's own credentials, which are read again when their file is changed.
#[derive(Clone, Debug, Default)]
pub struct NodeCredentials {
    file: Option<PathBuf>,
    read: Arc<Mutex<Credentials>>,
    files: Arc<Mutex<Option<ReadFiles>>>,
}

impl NodeCredentials {
    /// Those of a Docker config.json. Blocks.
    pub fn of_file(path: PathBuf) -> Result<Self, NodeCredentialsError> {
        let files = ReadFiles::new([path.clone()]);
        let read = read_credentials(&path)?;
        Ok(Self { file: Some(path), read: Arc::new(Mutex::new(read)), files: Arc::new(Mutex::new(Some(files))) })
    }

    /// As they are now. A file that cannot be read any more is told, and what it held counts on.
    async fn current(&self) -> Credentials {
        if let Some(path) = self.file.clone() {
            let of_file = self.clone();
            // It reads, or leaves everything as it is.
            let _ = tokio::task::spawn_blocking(move || of_file.look(&path)).await;
        }
        self.read.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn look(&self, path: &Path) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if files.as_ref().is_some_and(|files| !files.are_changed()) {
            return;
        }
        *files = Some(ReadFiles::new([path.to_owned()]));
        match read_credentials(path) {
            Ok(read) => *self.read.lock().unwrap_or_else(PoisonError::into_inner) = read,
            Err(error) => tracing::error!(
                path = %path.display(),
                "the credentials for registries cannot be read again: {error}; those that were known count on"
            ),
        }
    }
}

fn read_credentials(path: &Path) -> Result<Credentials, NodeCredentialsError> {
    Ok(Credentials::from_docker_config(&std::fs::read(path)?)?)
}

/// Why a file of credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeCredentialsError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// It holds no credentials.
    #[error(transparent)]
    Content(#[from] CredentialsError),
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

/// What is newer may be of a pull that is under way.
const JUST_PULLED: Duration = Duration::from_secs(60);

/// Which of the images that nobody uses are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// Those above the thresholds of the collection, and not of late.
    AboveThreshold,
    /// All of them: pods would have to go otherwise.
    All,
}

/// Finds and pulls images. Shared by all pods.
#[derive(Debug)]
pub struct Images {
    config: ImagesConfig,
    store: ImageStore,
    /// One download of an image's content at a time; those who want the same wait and find it in the store.
    downloads: Turns<String>,
}

impl Images {
    /// Opens the store.
    pub fn open(config: ImagesConfig) -> std::io::Result<Self> {
        let store = ImageStore::open(&config.directory)?;
        Ok(Self { config, store, downloads: Turns::default() })
    }

    /// The store.
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    /// An image that was pulled before, and its module's file. By its digest also one that was pulled under another name.
    pub fn find(&self, reference: &Reference) -> Option<(Image, PathBuf)> {
        let by_digest = || {
            let id = format!("{}/{}@{}", reference.registry(), reference.repository(), reference.digest()?);
            self.store.find_under(&id, &reference.whole())
        };
        let image = self.store.find(&reference.whole()).or_else(by_digest)?;
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
        self.config.policy.check_name(reference).await?;
        let started = Instant::now();
        let attempt = |credential, holder| self.pull_with(reference, credential, holder);
        let span = span!("image pull", container.image.name = %reference.whole());
        let pulled = spans::told(span, self.with_each(reference, credentials, attempt)).await;
        counted().pulls.observe([if pulled.is_ok() { "pulled" } else { "failed" }], started.elapsed());
        pulled
    }

    /// What the registry says of an image: the manifest's digest, and the manifest that the node would take.
    pub async fn manifest(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<(String, OciImageManifest), PullError> {
        let ask = |credential, _| async {
            let registry = Registry::new(reference, credential, &self.config.insecure_registries, BTreeSet::new())?;
            let resolved = registry.resolve(reference).await?;
            Ok((resolved.digest.clone(), resolved.manifest().clone()))
        };
        self.with_each(reference, credentials, ask).await
    }

    /// With each of the credentials that there are for an image, those of its pod first, until one of them will do.
    async fn with_each<T, F: Future<Output = Result<T, PullError>>>(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        attempt: impl Fn(Credential, Option<String>) -> F,
    ) -> Result<T, PullError> {
        let of_pod = credentials.of(reference).into_iter().map(|credential| (credential, true));
        let of_node = self.config.credentials.current().await.of(reference);
        let mut candidates: Vec<_> = of_pod.chain(of_node.into_iter().map(|credential| (credential, false))).collect();
        if candidates.is_empty() {
            candidates.push((Credential::Anonymous, false));
        }
        let (mut first, mut refused) = (None, None);
        for (credential, is_of_pod) in candidates {
            let holder = credential.fingerprint(reference.registry()).filter(|_| is_of_pod);
            let pulled = tokio::time::timeout(DEADLINE, attempt(credential, holder)).await.unwrap_or_else(|_| {
                let message = format!("the image did not come within {} min", DEADLINE.as_secs() / 60);
                Err(PullError::Temporary { registry: reference.registry().to_owned(), message })
            });
            match pulled {
                Ok(pulled) => return Ok(pulled),
                Err(error @ (PullError::Store(_) | PullError::TooLarge { .. } | PullError::Policy(_))) => {
                    return Err(error);
                }
                Err(error @ PullError::Unauthorized { .. }) => refused = Some(error),
                // Registries say so, too, to those who may not know of an image.
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(refused.or(first).unwrap_or(PullError::NotFound { registry: reference.registry().to_owned() }))
    }

    /// Whether pods with these credentials may run an image that is here without the registry being asked: it was pulled without
    /// any or with the node's own, or with one of theirs.
    pub fn may_run(&self, image: &Image, reference: &Reference, credentials: &Credentials) -> bool {
        let Access::Holders(holders) = &image.access else { return true };
        let fingerprint = |credential: &Credential| credential.fingerprint(reference.registry());
        credentials.of(reference).iter().filter_map(fingerprint).any(|holder| holders.contains(&holder))
    }

    /// Whether the policy says at once that an image of this name is not run.
    pub async fn check_name(&self, reference: &Reference) -> Result<(), PolicyError> {
        self.config.policy.check_name(reference).await
    }

    /// Whether the node's operator lets an image run that is here, without the registry being asked.
    pub async fn is_permitted(&self, image: &Image, reference: &Reference) -> Result<bool, PolicyError> {
        self.config.policy.permits(reference, image).await
    }

    async fn pull_with(
        &self,
        reference: &Reference,
        credential: Credential,
        holder: Option<String>,
    ) -> Result<(Image, PathBuf), PullError> {
        let repository = format!("{}/{}@", reference.registry(), reference.repository());
        let known = self.store.blobs_of(&repository);
        let registry = Registry::new(reference, credential, &self.config.insecure_registries, known)?;
        let resolved = registry.resolve(reference).await?;
        let signers = self.config.policy.verify(&registry, reference, &resolved.digest).await?;
        let id = format!("{}/{}@{}", reference.registry(), reference.repository(), resolved.digest);
        let _one_at_a_time = self.downloads.take(id.clone()).await;
        let known = self.find(reference).filter(|(image, _)| image.id == id);
        // The registry has just said that whoever has these credentials may have it.
        let access = match (known.as_ref().map(|(image, _)| &image.access), holder) {
            (Some(Access::Everyone), _) | (_, None) => Access::Everyone,
            (Some(Access::Holders(known)), Some(holder)) => {
                Access::Holders(known.iter().cloned().chain([holder]).collect())
            }
            (None, Some(holder)) => Access::Holders(BTreeSet::from([holder])),
        };
        if let Some((mut image, path)) = known {
            if image.access != access || !signers.is_subset(&image.signers) {
                image.access = access;
                image.signers.extend(signers);
                self.store.add(&image)?;
            }
            return Ok((image, path));
        }
        let Fetched { module, launch, blobs } =
            registry.fetch(&resolved, &self.store, self.config.module_size_limit).await?;
        let image = Image {
            reference: reference.whole(),
            id,
            module,
            pulled: SystemTime::now(),
            access,
            launch,
            blobs,
            signers,
        };
        self.store.add(&image)?;
        let path = self.store.blob(&image.module).ok_or_else(|| std::io::Error::other("the module was removed"))?;
        Ok((image, path))
    }

    /// Removes images that nobody uses if the disk is nearly full, the ones that were unused for longest first. `used` are
    /// full names of images that pods run. Returns the bytes that were freed and the digests of modules that are gone; `None`
    /// if there was no need.
    pub fn collect_garbage(
        &self,
        used: &HashSet<String>,
        unused: Unused,
    ) -> std::io::Result<Option<(u64, Vec<String>)>> {
        let GarbageCollection { high_threshold, low_threshold, minimum_age, .. } = self.config.garbage_collection;
        if unused == Unused::All {
            return self.store.collect(u64::MAX, JUST_PULLED, used).map(Some);
        }
        let disk = rustix::fs::statvfs(&self.config.directory)?;
        let total = disk.f_blocks * disk.f_frsize;
        let in_use = total.saturating_sub(disk.f_bavail * disk.f_frsize);
        let percent = |part: u8| total / 100 * u64::from(part);
        if in_use < percent(high_threshold) {
            return Ok(None);
        }
        self.store.collect(in_use.saturating_sub(percent(low_threshold)), minimum_age, used).map(Some)
    }
}
