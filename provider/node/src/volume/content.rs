//! Volumes whose files the node makes: of ConfigMaps and Secrets, of the pod itself, of tokens.

use super::publish::{self, File, Files};
use crate::cluster::connection::describe;
use crate::context::PodContext;
use crate::fields;
use crate::objects::{ObjectError, ObjectKey, ObjectKind, WatchedObject};
use crate::pod::PodObject;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use kube::Api;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A volume with files that the node makes, and makes again when what they are made of changes.
#[derive(Debug)]
pub struct Content {
    /// The volume's name.
    pub volume: String,
    /// Its directory on the host.
    pub path: PathBuf,
    mode: u32,
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    Object {
        key: ObjectKey,
        watched: Arc<WatchedObject>,
        items: Option<Vec<KeyToPath>>,
        optional: bool,
    },
    /// What is optional and cannot be had on a node without a cluster.
    Nothing,
    Pod(Vec<DownwardAPIVolumeFile>),
    Token {
        source: ServiceAccountTokenProjection,
        current: Mutex<Option<Token>>,
    },
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    /// When another one is asked for.
    due: Instant,
    expires: Instant,
}

/// Default permissions of the files.
const MODE: u32 = 0o644;
/// What of the permissions is left to files that nobody but the node may read.
const PRIVATE: u32 = 0o600;
/// A token is asked for again when this part of its life is over, in percent, or after a day.
const TOKEN_LIFE: u32 = 80;
const TOKEN_DAY: Duration = Duration::from_secs(24 * 3600);
/// Default life of a token.
const TOKEN_DEFAULT: i64 = 3600;

/// True for volumes of this kind.
pub fn is_content(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// What is in the volume: the sources of a projected volume, or the one source of another. With the files' permissions.
pub fn sources(volume: &Volume) -> (Vec<VolumeProjection>, Option<i32>) {
    if let Some(source) = &volume.projected {
        return (source.sources.clone().unwrap_or_default(), source.default_mode);
    }
    let mut projection = VolumeProjection::default();
    let mut mode = None;
    if let Some(source) = &volume.config_map {
        mode = source.default_mode;
        projection.config_map = Some(k8s_openapi::api::core::v1::ConfigMapProjection {
            items: source.items.clone(),
            name: source.name.clone(),
            optional: source.optional,
        });
    }
    if let Some(source) = &volume.secret {
        mode = source.default_mode;
        projection.secret = Some(k8s_openapi::api::core::v1::SecretProjection {
            items: source.items.clone(),
            name: source.secret_name.clone().unwrap_or_default(),
            optional: source.optional,
        });
    }
    if let Some(source) = &volume.downward_api {
        mode = source.default_mode;
        projection.downward_api =
            Some(k8s_openapi::api::core::v1::DownwardAPIProjection { items: source.items.clone() });
    }
    (vec![projection], mode)
}

impl Content {
    /// Begins to watch what the volume is made of.
    pub fn of(volume: &Volume, path: PathBuf, context: &PodContext) -> Result<Self, String> {
        let (sources, mode) = sources(volume);
        let mut parts = Vec::new();
        for source in sources {
            if let Some(source) = source.config_map {
                let optional = source.optional.unwrap_or(false);
                parts.push(object(context, ObjectKind::ConfigMap, source.name, source.items, optional)?);
            }
            if let Some(source) = source.secret {
                let optional = source.optional.unwrap_or(false);
                parts.push(object(context, ObjectKind::Secret, source.name, source.items, optional)?);
            }
            if let Some(source) = source.downward_api {
                parts.push(Part::Pod(source.items.unwrap_or_default()));
            }
            if let Some(source) = source.service_account_token {
                parts.push(Part::Token { source, current: Mutex::default() });
            }
        }
        let mode = mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE);
        Ok(Self { volume: volume.name.clone(), path, mode, parts })
    }

    /// The objects that it is made of.
    pub fn objects(&self) -> impl Iterator<Item = &Arc<WatchedObject>> {
        self.parts.iter().filter_map(|part| match part {
            Part::Object { watched, .. } => Some(watched),
            _ => None,
        })
    }

    /// When the next token is asked for.
    pub fn due(&self) -> Option<Instant> {
        let dues = self.parts.iter().filter_map(|part| match part {
            Part::Token { current, .. } => Some(current.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.due),
            _ => None,
        });
        dues.min()
    }

    /// Makes the files what they should be; true if they were not.
    pub async fn publish(&self, context: &PodContext) -> Result<bool, String> {
        let files = self.files(context).await?;
        let path = self.path.clone();
        let published = tokio::task::spawn_blocking(move || publish::publish(&path, &files)).await;
        let published = published.map_err(|error| error.to_string())?;
        published.map_err(|error| format!("{}: {error}", self.path.display()))
    }

    async fn files(&self, context: &PodContext) -> Result<Files, String> {
        let mut files = Files::new();
        for part in &self.parts {
            match part {
                Part::Nothing => {}
                Part::Object { key, watched, items, optional } => {
                    let values = match watched.read().await {
                        Ok(values) => values,
                        Err(ObjectError::Missing(_)) if *optional => continue,
                        Err(error) => return Err(error.to_string()),
                    };
                    let secret = key.kind == ObjectKind::Secret;
                    let file = |content: &[u8], mode: Option<i32>| {
                        let mode = mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(self.mode);
                        File { content: content.to_vec(), mode: if secret { mode & PRIVATE } else { mode } }
                    };
                    let Some(items) = items else {
                        files.extend(values.iter().map(|(name, value)| (name.clone(), file(value, None))));
                        continue;
                    };
                    for item in items {
                        match values.get(&item.key) {
                            Some(value) => {
                                files.insert(item.path.clone(), file(value, item.mode));
                            }
                            None if *optional => {}
                            None => return Err(format!("{key} has no key {:?}", item.key)),
                        }
                    }
                }
                Part::Pod(items) => {
                    let pod = context.latest();
                    for item in items {
                        let text = pod_file(item, &pod, context)?;
                        let mode = item.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(self.mode);
                        files.insert(item.path.clone(), File { content: text.into_bytes(), mode });
                    }
                }
                Part::Token { source, current } => {
                    let text = token(source, current, context).await?;
                    files.insert(source.path.clone(), File { content: text.into_bytes(), mode: self.mode & PRIVATE });
                }
            }
        }
        match files.keys().find(|path| !publish::is_path(path)) {
            Some(path) => Err(format!("{path:?} is no path of a file in a volume: relative, and without `..`")),
            None => Ok(files),
        }
    }
}

fn object(
    context: &PodContext,
    kind: ObjectKind,
    name: String,
    items: Option<Vec<KeyToPath>>,
    optional: bool,
) -> Result<Part, String> {
    let key = ObjectKey { kind, namespace: context.pod.namespace().to_owned(), name };
    match context.services.objects.watch(&key) {
        Ok(watched) => Ok(Part::Object { key, watched, items, optional }),
        Err(ObjectError::NoCluster(_)) if optional => Ok(Part::Nothing),
        Err(error) => Err(error.to_string()),
    }
}

fn pod_file(item: &DownwardAPIVolumeFile, pod: &PodObject, context: &PodContext) -> Result<String, String> {
    let node = &context.services.node;
    if let Some(field) = &item.field_ref {
        let value = fields::file_field(&field.field_path, pod, node);
        return value.ok_or_else(|| format!("no field {:?}", field.field_path));
    }
    let Some(selector) = &item.resource_field_ref else { return Err(format!("{} has no source", item.path)) };
    let name = selector.container_name.as_deref().unwrap_or_default();
    let mut containers = pod.spec().containers.iter().chain(pod.init_containers());
    let container =
        containers.find(|container| container.name == name).ok_or_else(|| format!("no container {name:?}"))?;
    fields::resource(selector, container, pod, node)
}

/// The token that there is, or another one. If that cannot be had, the old one is used as long as it lives.
async fn token(
    source: &ServiceAccountTokenProjection,
    current: &Mutex<Option<Token>>,
    context: &PodContext,
) -> Result<String, String> {
    let known = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let now = Instant::now();
    if let Some(known) = known.as_ref().filter(|known| known.due > now) {
        return Ok(known.text.clone());
    }
    match request_token(source, context).await {
        Ok(token) => {
            let text = token.text.clone();
            *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
            Ok(text)
        }
        Err(error) => match known.filter(|known| known.expires > now) {
            Some(known) => {
                tracing::warn!(pod = context.pod.key(), "{error}; the token before it is used on");
                *current.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(Token { due: now + super::RETRY, ..known.clone() });
                Ok(known.text)
            }
            None => Err(error),
        },
    }
}

async fn request_token(source: &ServiceAccountTokenProjection, context: &PodContext) -> Result<Token, String> {
    let account = fields::service_account(&context.pod);
    let Some(cluster) = &context.services.cluster else {
        return Err("a node without a cluster has no service accounts; leave the token out".to_owned());
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), context.pod.namespace());
    let seconds = source.expiration_seconds.unwrap_or(TOKEN_DEFAULT);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            // Without one it is for the API server.
            audiences: Some(source.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect()),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(context.pod.name().to_owned()),
                uid: Some(context.pod.uid().to_owned()),
            }),
            expiration_seconds: Some(seconds),
        }),
        ..TokenRequest::default()
    };
    let failed = |message: String| format!("token of service account {account}: {message}");
    let answer = accounts.create_token_request(account, &Default::default(), &request).await;
    let status = answer.map_err(|error| failed(describe(&error)))?.status;
    let status = status.ok_or_else(|| failed("the API server gave none".to_owned()))?;
    let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
        return Err(failed("the API server gave none".to_owned()));
    };
    let life = Duration::try_from(expires.0.duration_since(jiff::Timestamp::now())).unwrap_or_default();
    let now = Instant::now();
    Ok(Token { text, due: now + renewal(life), expires: now + life })
}

/// How old a token gets.
fn renewal(life: Duration) -> Duration {
    (life * TOKEN_LIFE / 100).min(TOKEN_DAY)
}

/// Copies what is published at `path` of a volume; it will not change with it.
pub fn copy(volume: &Path, path: &str, to: &Path) -> std::io::Result<()> {
    let from = volume.join(path);
    if !from.is_dir() {
        std::fs::copy(&from, to)?;
        return Ok(());
    }
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(&from)? {
        let name = entry?.file_name();
        copy(&from, &name.to_string_lossy(), &to.join(&name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_expire_and_every_day() {
        assert_eq!(renewal(Duration::from_secs(600)), Duration::from_secs(480));
        assert_eq!(renewal(Duration::from_secs(100 * 3600)), TOKEN_DAY);
    }
}
