//! What is asked of a registry for one image: manifests, the module, or the layers that it is in.

mod download;

use crate::archive;
use crate::credentials::Credential;
use crate::digest;
use crate::layout::{self, Layout};
use crate::pull_error::PullError;
use crate::session::Session;
use crate::store::{ImageStore, Launch};
use akri_krustlet_host::one_line;
use download::{PAUSES, size_of};
use oci_client::Reference;
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Largest manifest, in bytes, and largest configuration of an image.
const MOST_MANIFEST: usize = 4 << 20;
const MOST_CONFIG: u64 = 1 << 20;
/// Layers of an image.
const MOST_LAYERS: usize = 128;
/// Longest time for one pull, in which a registry may be as slow as it likes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1800);
/// Indexes in indexes, and manifests of one image that are looked at.
const MOST_DEPTH: usize = 4;
const MOST_MANIFESTS: usize = 16;

/// One registry with one set of credentials, for one pull.
pub(crate) struct Registry {
    session: Session,
    /// Blobs that this repository is known to have: of images of it that are here.
    known: BTreeSet<String>,
}

/// What a reference leads to.
pub(crate) struct Resolved {
    /// Digest of the manifest, or the index, that the reference names.
    pub(crate) digest: String,
    manifest: OciImageManifest,
    layout: Layout,
    /// An index said that it is WebAssembly.
    is_wasm: bool,
}

impl Resolved {
    /// The manifest with the module, or with the archives that it is in.
    pub(crate) fn manifest(&self) -> &OciImageManifest {
        &self.manifest
    }
}

/// What was downloaded.
pub(crate) struct Fetched {
    /// The module's digest in the store.
    pub(crate) module: String,
    pub(crate) launch: Launch,
    /// What was downloaded for it.
    pub(crate) blobs: BTreeSet<String>,
}

/// What matters of an image's configuration.
#[derive(Default, Deserialize)]
struct Configuration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    config: Option<Execution>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

impl Registry {
    pub(crate) fn new(
        image: &Reference,
        credential: Credential,
        insecure: &[String],
        known: BTreeSet<String>,
    ) -> Result<Self, PullError> {
        Ok(Self { session: Session::new(image, credential, insecure)?, known })
    }

    /// Whether what is here already may be used for this image. A digest alone is no right: what another repository gave may
    /// be private, so this one has to show that it has it.
    fn is_theirs(&self, layer: &OciDescriptor) -> bool {
        self.known.contains(&layer.digest)
    }

    /// Follows the reference to a manifest with layers.
    pub(crate) async fn resolve(&self, image: &Reference) -> Result<Resolved, PullError> {
        let name = image.digest().or(image.tag()).unwrap_or("latest");
        let (manifest, digest) = self.manifest(name).await?;
        let mut left = MOST_MANIFESTS;
        let mut resolved = self.image_of(manifest, digest.clone(), false, MOST_DEPTH, &mut left).await?;
        resolved.digest = digest;
        Ok(resolved)
    }

    /// The image of a manifest: itself, or the first of an index that can be run here.
    async fn image_of(
        &self,
        manifest: OciManifest,
        digest: String,
        is_wasm: bool,
        depth: usize,
        left: &mut usize,
    ) -> Result<Resolved, PullError> {
        let index = match manifest {
            OciManifest::Image(manifest) => {
                let layout = layout::layout_of(&manifest)?;
                return Ok(Resolved { digest, manifest, layout, is_wasm });
            }
            OciManifest::ImageIndex(index) => index,
        };
        if depth == 0 {
            return Err(self.session.protocol(format!("indexes in more than {MOST_DEPTH} indexes")));
        }
        let mut refused = None;
        for entry in layout::entries_of(&index.manifests)? {
            *left = left
                .checked_sub(1)
                .ok_or_else(|| self.session.protocol(format!("more than {MOST_MANIFESTS} manifests for one image")))?;
            let platform = entry.platform.as_ref().map(|of| (of.os.to_string(), of.architecture.to_string()));
            let says_so = layout::is_annotated(&entry.annotations)
                || platform.as_ref().is_some_and(|(os, architecture)| layout::is_wasm(os, architecture));
            if digest::parts(&entry.digest).is_none() {
                // A name in its place would be whatever it is by then.
                let what = format!(
                    "an index with the entry {:?}, which is no digest that can be checked",
                    one_line(&entry.digest, 200)
                );
                return Err(self.session.protocol(what));
            }
            let (manifest, digest) = self.manifest(&entry.digest).await?;
            let found = Box::pin(self.image_of(manifest, digest, is_wasm || says_so, depth - 1, left)).await;
            match (found, platform) {
                (Ok(image), Some((os, _)))
                    if os == "linux" && !image.is_wasm && !layout::is_annotated(&image.manifest.annotations) =>
                {
                    refused.get_or_insert(layout::platforms(index.manifests.iter().filter_map(|entry| {
                        let platform = entry.platform.as_ref()?;
                        Some((platform.os.to_string(), platform.architecture.to_string()))
                    })));
                }
                (Ok(image), _) => return Ok(image),
                (Err(PullError::Layout(error)), _) => {
                    refused.get_or_insert(error);
                }
                (Err(error), _) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| layout::platforms(std::iter::empty())).into())
    }

    /// A short answer that is JSON; none if there is no such thing, or it is another one. One that is asked for by its digest has it.
    pub(crate) async fn json<T: DeserializeOwned>(&self, path: &str, most: usize) -> Result<Option<T>, PullError> {
        let body = self.found(path, most).await?;
        Ok(body.and_then(|body| serde_json::from_slice(&body).ok()))
    }

    /// A small blob whose content is what its digest says.
    pub(crate) async fn small_blob(&self, digest: &str, most: usize) -> Result<Option<Vec<u8>>, PullError> {
        if digest::parts(digest).is_none() {
            return Ok(None);
        }
        self.found(&format!("blobs/{digest}"), most).await
    }

    async fn found(&self, path: &str, most: usize) -> Result<Option<Vec<u8>>, PullError> {
        let asked = self.session.retried(&PAUSES, || async {
            let answer = self.session.get(path, &layout::MANIFESTS, 0).await?;
            self.session.body(answer, most).await
        });
        let body = match asked.await {
            Ok(body) => body,
            // Registries that know no referrers say so in several ways.
            Err(PullError::NotFound { .. } | PullError::Protocol { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        match path.rsplit('/').next() {
            Some(name) if path.starts_with("referrers/") || digest::parts(name).is_none() => Ok(Some(body)),
            Some(name) if digest::of(&body, name) != name => Err(self.damaged(name, digest::of(&body, name))),
            _ => Ok(Some(body)),
        }
    }

    /// A manifest by its tag or digest, and its digest.
    async fn manifest(&self, name: &str) -> Result<(OciManifest, String), PullError> {
        let body = self
            .session
            .retried(&PAUSES, || async {
                let answer = self.session.get(&format!("manifests/{name}"), &layout::MANIFESTS, 0).await?;
                self.session.body(answer, MOST_MANIFEST).await
            })
            .await?;
        let actual = digest::of(&body, name);
        if digest::parts(name).is_some() && actual != name {
            return Err(self.damaged(name, actual));
        }
        if name.contains(':') && digest::parts(name).is_none() {
            return Err(self
                .session
                .protocol(format!("digest {name:?}, which cannot be checked: sha256, sha384 and sha512 can")));
        }
        let manifest = serde_json::from_slice(&body)
            .map_err(|error| self.session.protocol(format!("a manifest that is not understood: {error}")))?;
        Ok((manifest, actual))
    }

    /// Downloads what the module is in and puts the module into the store.
    pub(crate) async fn fetch(
        &self,
        resolved: &Resolved,
        store: &ImageStore,
        limit: u64,
    ) -> Result<Fetched, PullError> {
        let (module, path, launch) = match &resolved.layout {
            Layout::Artifact(layer) => (layer.digest.clone(), self.blob(layer, store, limit).await?, Launch::default()),
            Layout::Archives(layers) => {
                let configuration = self.configuration(resolved, store).await?;
                let total = layers.iter().map(size_of).fold(0, u64::saturating_add);
                if total > limit {
                    return Err(PullError::TooLarge { size: total, limit });
                }
                if layers.len() > MOST_LAYERS {
                    return Err(self
                        .session
                        .protocol(format!("{} layers, {MOST_LAYERS} at most are taken", layers.len())));
                }
                let mut archives = Vec::new();
                for layer in layers {
                    archives.push(self.blob(layer, store, limit).await?);
                }
                let (launch, directory) = launch_of(configuration);
                let program = launch.program.clone().or_else(|| launch.cmd.first().cloned());
                static UNPACKING: Semaphore = Semaphore::const_new(2);
                let _turn = UNPACKING.acquire().await.map_err(std::io::Error::other)?;
                // Dropped with this future, when nobody waits any more.
                let wanted = Arc::new(());
                let is_wanted = Arc::downgrade(&wanted);
                let unpacked = tokio::task::spawn_blocking({
                    let store = store.clone();
                    move || {
                        let is_wanted = || is_wanted.strong_count() > 0;
                        let module = archive::module_of(&archives, program.as_deref(), &directory, limit, &is_wanted)?;
                        Ok::<_, PullError>(store.keep_bytes(&module)?)
                    }
                });
                let digest = unpacked.await.map_err(std::io::Error::other)??;
                let path = store.blob(&digest).ok_or_else(|| std::io::Error::other("the module was removed"))?;
                (digest, path, launch)
            }
        };
        check_magic(&path)?;
        let layers = resolved.manifest.layers.iter().chain([&resolved.manifest.config]);
        Ok(Fetched { module, launch, blobs: layers.map(|layer| layer.digest.clone()).collect() })
    }

    /// An image's configuration, after checking that the image is for WebAssembly at all.
    async fn configuration(&self, resolved: &Resolved, store: &ImageStore) -> Result<Configuration, PullError> {
        let config = &resolved.manifest.config;
        let is_of_image = config.media_type.ends_with("image.config.v1+json")
            || config.media_type.ends_with("container.image.v1+json");
        if !is_of_image {
            return Ok(Configuration::default());
        }
        let path = self.blob(config, store, MOST_CONFIG).await?;
        let configuration: Configuration = serde_json::from_slice(&std::fs::read(&path)?)
            .map_err(|error| self.session.protocol(format!("a configuration that is not understood: {error}")))?;
        let (os, architecture) = (configuration.os.clone(), configuration.architecture.clone());
        let labels = configuration.config.as_ref().and_then(|config| config.labels.clone());
        let is_for_wasm = resolved.is_wasm
            || layout::is_wasm(&os, &architecture)
            || (os.is_empty() && architecture.is_empty())
            || layout::is_annotated(&resolved.manifest.annotations)
            || layout::is_annotated(&labels);
        if !is_for_wasm {
            return Err(layout::platforms(std::iter::once((os, architecture))).into());
        }
        Ok(configuration)
    }
}

/// How an image is started, and in which directory.
fn launch_of(configuration: Configuration) -> (Launch, String) {
    let Execution { entrypoint, cmd, env, working_dir, .. } = configuration.config.unwrap_or_default();
    let mut entrypoint = entrypoint.unwrap_or_default().into_iter();
    let program = entrypoint.next();
    let pair = |text: String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    let env = env.unwrap_or_default().into_iter().filter_map(pair).filter(|(name, _)| !name.is_empty()).collect();
    let launch = Launch { entrypoint_args: entrypoint.collect(), cmd: cmd.unwrap_or_default(), env, program };
    (launch, working_dir.unwrap_or_default())
}

fn check_magic(path: &Path) -> Result<(), PullError> {
    use std::io::Read as _;
    let mut magic = Vec::new();
    std::fs::File::open(path)?.take(4).read_to_end(&mut magic)?;
    if magic == b"\0asm" { Ok(()) } else { Err(PullError::NotWasm(format!("{:?}", magic.escape_ascii().to_string()))) }
}
