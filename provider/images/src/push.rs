//! Modules on their way to a registry, in the CNCF's layout of Wasm artifacts.

use crate::credentials::{Credential, Credentials};
use crate::digest;
use crate::layout::MANIFESTS;
use crate::pull_error::PullError;
use crate::session::{Request, Session, Target};
use oci_client::Reference;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, Url};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MODULE: &str = "application/wasm";
const TITLE: &str = "org.opencontainers.image.title";
/// Bytes that are sent at a time. Some registries take no less, but for the last ones.
const CHUNK: usize = 5 << 20;
/// How long a request of an upload may take: this, and for each byte as on a line of 16 kB a second.
const AT_LEAST: Duration = Duration::from_secs(60);
const PER_BYTE: Duration = Duration::from_micros(62);
/// A registry may look at all of a blob before it says that it has it.
const COMPLETION: Duration = Duration::from_secs(240);
/// Pauses before what failed for the moment is tried again; those of an upload begin again with every chunk that has arrived.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(9)];

/// What is pushed.
#[derive(Clone, Debug, Default)]
pub struct Artifact {
    /// The module or component.
    pub module: Vec<u8>,
    /// Of a component: the names of what it exports and imports. `None` for a module.
    pub component: Option<(Vec<String>, Vec<String>)>,
    /// Of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970. The same artifact has the same digest only if this is the same.
    pub created: i64,
}

/// How it is pushed.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// Tags besides the reference's.
    pub tags: Vec<String>,
    /// Registries that are spoken to without TLS, as `host` or `host:port`.
    pub insecure_registries: Vec<String>,
    /// A tag that is another image's stays.
    pub no_clobber: bool,
}

/// What a registry has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Of the manifest.
    pub digest: String,
    /// Bytes that the registry did not have yet.
    pub sent: u64,
}

/// Why a module cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// Credentials that may not, or none.
    #[error("{registry} does not let {who} push to {repository}: {message}; {way_out}")]
    Refused {
        /// The registry.
        registry: String,
        /// The repository.
        repository: String,
        /// In words, who asked.
        who: &'static str,
        /// What the registry said.
        message: String,
        /// What can be done.
        way_out: &'static str,
    },
    /// The tag is another image's.
    #[error(
        "{reference} is there already and is another image, {digest}; push to another tag, or leave out --no-clobber"
    )]
    Exists {
        /// The image.
        reference: String,
        /// What it is.
        digest: String,
    },
    /// An image is pushed to a name, not to a digest.
    #[error("{reference} names a digest, which is the content's own: push to a tag")]
    Digest {
        /// The image.
        reference: String,
    },
    /// What can go wrong with a registry.
    #[error("{0}")]
    Registry(PullError),
}

impl Artifact {
    fn config(&self, layer: &str) -> Value {
        let created = rfc3339(self.created);
        let mut config = json!({"created": created, "architecture": "wasm", "os": "wasip1", "layerDigests": [layer]});
        if let Some((exports, imports)) = &self.component {
            config["os"] = json!("wasip2");
            config["component"] = json!({"exports": exports, "imports": imports});
        }
        config
    }
}

/// Bytes of an upload that a registry says that it has.
fn received(answer: &Response) -> Option<usize> {
    let range = answer.headers().get(RANGE).and_then(|range| range.to_str().ok());
    // `0-0` is one byte, and what registries say of none.
    let last: usize = range?.trim_start_matches("bytes=").split_once('-')?.1.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

/// RFC 3339, of whole seconds.
fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Pushes an artifact under the reference's tag and others, with the first credentials of its registry, or none. Content that the
/// registry has already is not sent.
///
/// # Errors
/// With `no_clobber`, a tag that is another image's: then nothing is changed.
pub async fn push(
    reference: &Reference,
    artifact: &Artifact,
    credentials: &Credentials,
    options: &PushOptions,
) -> Result<Pushed, PushError> {
    let PushOptions { tags, insecure_registries, no_clobber } = options;
    if reference.digest().is_some() {
        return Err(PushError::Digest { reference: reference.whole() });
    }
    let credential = credentials.of(reference).into_iter().next().unwrap_or(Credential::Anonymous);
    let is_anonymous = credential == Credential::Anonymous;
    let session = Session::new(reference, credential, insecure_registries).map_err(PushError::Registry)?;
    let upload = Upload { session, reference, is_anonymous };
    let layer = digest::of(&artifact.module, "");
    let config = artifact.config(&layer).to_string().into_bytes();
    let config_digest = digest::of(&config, "");
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": MODULE, "digest": layer, "size": artifact.module.len()}],
    });
    // Under which tools that pull files write it.
    if let Some(title) = artifact.annotations.get(TITLE) {
        manifest["layers"][0]["annotations"] = json!({TITLE: title});
    }
    if !artifact.annotations.is_empty() {
        manifest["annotations"] = json!(artifact.annotations);
    }
    let manifest = manifest.to_string().into_bytes();
    let digest = digest::of(&manifest, "");
    let tags: Vec<_> =
        [reference.tag().unwrap_or("latest")].into_iter().chain(tags.iter().map(String::as_str)).collect();
    if *no_clobber {
        for tag in &tags {
            upload.refuse_other(tag, &digest).await?;
        }
    }
    let mut sent = 0;
    for (blob, digest) in [(&artifact.module, &layer), (&config, &config_digest)] {
        sent += upload.blob(blob, digest).await?;
    }
    for tag in tags {
        upload.manifest(tag, &manifest).await?;
    }
    Ok(Pushed { digest, sent })
}

/// Of one artifact to one repository.
struct Upload<'a> {
    session: Session,
    reference: &'a Reference,
    is_anonymous: bool,
}

impl Upload<'_> {
    async fn request(&self, request: Request<'_>) -> Result<Response, PushError> {
        self.session.request(request).await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: PullError) -> PushError {
        let (who, way_out) = match self.is_anonymous {
            true => (
                "anybody without credentials",
                "log in first (docker login, podman login), or name a file with --registry-credentials",
            ),
            false => ("the user of these credentials", "they may pull from it and not push to it, or have expired"),
        };
        let (registry, repository) = (self.session.name().to_owned(), self.reference.repository().to_owned());
        match error {
            PullError::Unauthorized { message, .. } => {
                PushError::Refused { registry, repository, who, message, way_out }
            }
            error => PushError::Registry(error),
        }
    }

    /// Whether the registry has something: 404 is an answer.
    async fn head(&self, path: &str, accept: &[&'static str]) -> Result<Option<Response>, PushError> {
        let mut headers = HeaderMap::new();
        for accept in accept {
            headers.append(ACCEPT, HeaderValue::from_static(accept));
        }
        match self.session.request(Request { headers, ..Request::new(Method::HEAD, path) }).await {
            Ok(answer) => Ok(Some(answer)),
            Err(PullError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    async fn refuse_other(&self, tag: &str, digest: &str) -> Result<(), PushError> {
        let Some(answer) = self.head(&format!("manifests/{tag}"), &MANIFESTS).await? else { return Ok(()) };
        let there = answer.headers().get("docker-content-digest").and_then(|digest| digest.to_str().ok());
        let there = there.unwrap_or("its digest is not told").to_owned();
        if there == digest {
            return Ok(());
        }
        let reference = format!("{}/{}:{tag}", self.reference.registry(), self.reference.repository());
        Err(PushError::Exists { reference, digest: there })
    }

    /// Sends a blob that is not there yet, and goes on where it broke off. The bytes that it took.
    async fn blob(&self, blob: &[u8], digest: &str) -> Result<u64, PushError> {
        if self.head(&format!("blobs/{digest}"), &["*/*"]).await?.is_some() {
            return Ok(0);
        }
        let mut pauses = PAUSES.iter();
        let mut upload: Option<(Url, usize)> = None;
        let mut arrived = 0;
        loop {
            match self.go_on(blob, digest, &mut upload).await {
                Ok(()) => return Ok(blob.len() as u64),
                // An upload that the registry does not know any more begins again.
                Err(PushError::Registry(error))
                    if error.is_temporary() || (upload.is_some() && matches!(error, PullError::NotFound { .. })) =>
                {
                    let sent = upload.as_ref().map_or(0, |(_, sent)| *sent);
                    if sent > arrived {
                        (arrived, pauses) = (sent, PAUSES.iter());
                    }
                    let Some(pause) = pauses.next() else { return Err(PushError::Registry(error)) };
                    tracing::info!(registry = self.session.name(), "{error}; going on with the upload");
                    tokio::time::sleep(*pause).await;
                    upload = self.progress(upload, blob.len()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn go_on(&self, blob: &[u8], digest: &str, upload: &mut Option<(Url, usize)>) -> Result<(), PushError> {
        let (mut location, mut sent) = match upload.take() {
            Some(upload) => upload,
            None => {
                let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
                let begun = Request { headers, ..Request::new(Method::POST, "blobs/uploads/") };
                let begun = self.request(begun).await?;
                (self.session.location(&begun).map_err(PushError::Registry)?, 0)
            }
        };
        while sent < blob.len() {
            *upload = Some((location.clone(), sent));
            let end = blob.len().min(sent + CHUNK);
            let range = HeaderValue::from_str(&format!("{sent}-{}", end - 1))
                .map_err(|error| PushError::Registry(self.session.protocol(error.to_string())))?;
            let headers = HeaderMap::from_iter([
                (CONTENT_RANGE, range),
                (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            ]);
            let within = Some(AT_LEAST + (end - sent) as u32 * PER_BYTE);
            let (method, target) = (Method::PATCH, Target::Url(location.clone()));
            let taken = self.request(Request { method, target, headers, body: &blob[sent..end], within }).await?;
            location = self.session.location(&taken).map_err(PushError::Registry)?;
            // It may have taken less than all.
            sent = received(&taken).filter(|received| sent < *received && *received < end).unwrap_or(end);
        }
        *upload = Some((location.clone(), sent));
        location.query_pairs_mut().append_pair("digest", digest);
        let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static("0"))]);
        let (method, target, within) = (Method::PUT, Target::Url(location), Some(AT_LEAST + COMPLETION));
        self.request(Request { method, target, headers, body: &[], within }).await?;
        Ok(())
    }

    /// How far an upload has come, as the registry says; `None` if it has to begin again.
    async fn progress(&self, upload: Option<(Url, usize)>, length: usize) -> Option<(Url, usize)> {
        let (location, sent) = upload?;
        let asked = Request { target: Target::Url(location.clone()), ..Request::new(Method::GET, "") };
        let answer = match self.session.request(asked).await {
            Ok(answer) => answer,
            // It is asked again when the next attempt has failed.
            Err(error) if error.is_temporary() => return Some((location, sent)),
            Err(_) => return None,
        };
        let sent = received(&answer).filter(|sent| *sent <= length)?;
        Some((self.session.location(&answer).ok()?, sent))
    }

    async fn manifest(&self, tag: &str, manifest: &[u8]) -> Result<(), PushError> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(MANIFEST))]);
        let path = format!("manifests/{tag}");
        let put = || {
            let put = Request { headers: headers.clone(), body: manifest, ..Request::new(Method::PUT, &path) };
            self.session.request(put)
        };
        self.session.retried(&PAUSES, put).await.map(drop).map_err(|error| self.failed(error))
    }
}
