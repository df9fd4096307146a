//! Volumes: the directories that a container's guests see.
//!
//! - hostPath and emptyDir are directories of the host ([`mod@host_path`]).
//! - Files of ConfigMaps, Secrets, the pod itself and tokens are made by the node, below the pod's private directory
//!   ([`content`]), change together ([`publish`]) and are kept up to date ([`keeper`]).
//! - What must not be on a disk is on a tmpfs of the node ([`crate::memory_directory`]).
//! - A guest cannot see a single file: one that is mounted (by `subPath`, or a hostPath of type File) is given in a directory
//!   that holds nothing else ([`files`]).

pub mod content;
pub mod files;
pub mod host_path;
pub mod keeper;
pub mod publish;

use crate::context::PodContext;
use crate::data_directory::{file_name, make_directory};
use crate::environment;
use crate::memory_directory;
use crate::objects::Awaited;
use crate::pod::PodObject;
use crate::quantity;
use akri_krustlet_host::file::remove_tree;
use akri_krustlet_host::patience::patiently;
use akri_krustlet_runtime::Preopen;
use content::Content;
use files::{FileMount, Private};
use k8s_openapi::api::core::v1::{Container, ResourceRequirements, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// After what could not be had, it is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// What a pod asks for that cannot be given; found before anything is started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VolumeError {
    /// A mount names a volume that the pod does not define.
    #[error("container {container} mounts volume {volume:?}, which spec.volumes does not define")]
    Unknown {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// A kind of volume that the node does not have.
    #[error(
        "volume {volume}: {kind} volumes cannot be given to a WebAssembly guest here; hostPath, emptyDir, configMap, secret, downwardAPI and projected can"
    )]
    Unsupported {
        /// The volume.
        volume: String,
        /// Its kind.
        kind: String,
    },
    /// A mount with a feature that cannot be honoured.
    #[error("container {container}: mount of {volume} at {path}: {what}")]
    Mount {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
        /// Its path in the container.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// A volume that cannot be made available now.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume}: {}: {what}", path.display())]
pub struct MountError {
    /// The volume.
    pub volume: String,
    /// Its directory on the host.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
}

/// Checks what can be checked without touching the host.
pub fn validate(pod: &PodObject) -> Result<(), VolumeError> {
    let volumes = pod.spec().volumes.as_deref().unwrap_or_default();
    for volume in volumes.iter().filter(|volume| !is_api_access(volume)) {
        if volume.host_path.is_none() && volume.empty_dir.is_none() && !content::is_content(volume) {
            return Err(VolumeError::Unsupported { volume: volume.name.clone(), kind: kind_of(volume) });
        }
    }
    for container in pod.init_containers().iter().chain(&pod.spec().containers) {
        for mount in container.volume_mounts.iter().flatten() {
            if !volumes.iter().any(|volume| volume.name == mount.name) {
                let (container, volume) = (container.name.clone(), mount.name.clone());
                return Err(VolumeError::Unknown { container, volume });
            }
            if let Some(what) = unsupported(mount) {
                let (container, volume, path) = (container.name.clone(), mount.name.clone(), mount.mount_path.clone());
                return Err(VolumeError::Mount { container, volume, path, what });
            }
        }
    }
    Ok(())
}

/// The API server adds this volume to every pod that does not say no: a token for itself, on a network that a guest does not
/// have. It is left out.
fn is_api_access(volume: &Volume) -> bool {
    volume.name.starts_with("kube-api-access-") && volume.projected.is_some()
}

fn unsupported(mount: &VolumeMount) -> Option<&'static str> {
    if let Some(path) = mount.sub_path.as_deref().filter(|path| !path.is_empty())
        && !is_relative(path)
    {
        return Some("subPath must be relative and without `..`");
    }
    if mount.mount_path.is_empty() || mount.mount_path.split('/').any(|part| part == "..") {
        return Some("the mount path must not be empty, and be without `..`");
    }
    None
}

fn is_relative(path: &str) -> bool {
    !path.starts_with('/') && path.split('/').all(|part| part != "..")
}

/// The name of the volume's source: the one field besides `name` that its JSON has.
fn kind_of(volume: &Volume) -> String {
    let json = serde_json::to_value(volume).unwrap_or_default();
    let fields = json.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    fields.filter(|name| name != "name").collect::<Vec<_>>().join(", ")
}

/// A pod's volumes on the host. What keeps them up to date ends with them.
#[derive(Debug, Default)]
pub struct Volumes {
    mounted: Arc<MountedVolumes>,
    _keeper: Option<keeper::Keeper>,
}

impl Volumes {
    /// Where they are.
    pub fn mounted(&self) -> Arc<MountedVolumes> {
        self.mounted.clone()
    }
}

/// Volumes on the host, by their names.
pub type MountedVolumes = BTreeMap<String, Mounted>;

/// A volume on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: MountedKind,
    /// It is not on a disk.
    pub in_memory: bool,
}

/// What a mounted volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountedKind {
    /// A directory that guests may write to.
    Directory,
    /// A file of the host.
    File,
    /// Files that the node makes.
    Content,
}

/// Makes the volumes of a pod available. `awaited` is given the objects that they are made of: when something fails, it may
/// not when one of them has changed.
pub async fn mount(context: &Arc<PodContext>, awaited: &mut Awaited) -> Result<Volumes, MountError> {
    let pod = &context.pod;
    let mut mounted = BTreeMap::new();
    let (mut contents, mut limited) = (Vec::new(), Vec::new());
    for volume in pod.spec().volumes.iter().flatten().filter(|volume| !is_api_access(volume)) {
        let own = context.services.data.pod(pod.uid()).join("volumes").join(file_name(&volume.name));
        let failed = |path: &Path, what| MountError { volume: volume.name.clone(), path: path.to_owned(), what };
        let of_volume = if let Some(source) = &volume.host_path {
            let (source, path) = (source.clone(), pod.resolve(&source.path));
            let mounted = patiently(pod.uid(), {
                let path = path.clone();
                move || host_path::mount(&source, path)
            });
            let mounted = mounted.await.map_err(|hangs| failed(&path, hangs.to_string()))?;
            mounted.map_err(|(path, what)| failed(&path, what))?
        } else if content::is_content(volume) {
            let own = if memory_directory::is_in_memory(volume) { in_memory(context, volume, own).await } else { own };
            let content = Content::of(volume, own.clone(), context).map_err(|what| failed(&own, what))?;
            content.objects().for_each(|object| awaited.add(object.clone()));
            content.publish(context).await.map_err(|what| failed(&own, what))?;
            contents.push(content);
            let in_memory = context.services.memory.has(&own);
            Mounted { path: own, kind: MountedKind::Content, in_memory }
        } else {
            // What an earlier node has on the disk stays there.
            let bounded = match memory_directory::is_in_memory(volume) && !own.exists() {
                true => context.services.memory.volume(pod.uid(), &volume.name, memory_size(pod, volume)),
                false => None,
            };
            let in_memory = bounded.is_some();
            let path = match bounded {
                Some(bounded) => bounded.map_err(|error| failed(&own, format!("in memory: {error}")))?,
                None => {
                    make_directory(&own).map_err(|error| failed(&own, error.to_string()))?;
                    let limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.clone());
                    let (name, path) = (volume.name.clone(), own.clone());
                    limited.extend(limit.map(|limit| keeper::Limited { volume: name, path, limit: limit.0 }));
                    own
                }
            };
            Mounted { path, kind: MountedKind::Directory, in_memory }
        };
        mounted.insert(volume.name.clone(), of_volume);
    }
    let mounted = Arc::new(mounted);
    Ok(Volumes { mounted, _keeper: keeper::Keeper::start(context, contents, std::mem::take(awaited), limited) })
}

/// Where the files of a volume are that is kept in memory: there, if that can be had. What an earlier node had on the disk goes.
async fn in_memory(context: &PodContext, volume: &Volume, on_disk: PathBuf) -> PathBuf {
    let Some(of_pod) = context.services.memory.pod(context.pod.uid()) else { return on_disk };
    let removed = tokio::task::spawn_blocking(move || remove_tree(&on_disk).map_err(|error| (on_disk, error)));
    if let Ok(Err((directory, error))) = removed.await {
        tracing::warn!(directory = %directory.display(), %error, "cannot remove files that are kept in memory now");
    }
    of_pod.join("volumes").join(file_name(&volume.name))
}

/// What a volume in memory may hold: its own limit, and not more than the pod's containers may have together.
fn memory_size(pod: &PodObject, volume: &Volume) -> Option<u64> {
    let bytes = |quantity: &Quantity| quantity::parse(&quantity.0).ok().map(quantity::Quantity::ceil);
    let own = volume.empty_dir.as_ref().and_then(|source| bytes(source.size_limit.as_ref()?));
    let limit = |resources: Option<&ResourceRequirements>| {
        bytes(resources?.limits.as_ref()?.get("memory")?).filter(|&bytes| bytes > 0)
    };
    let limits: Option<Vec<_>> =
        pod.spec().containers.iter().map(|container| limit(container.resources.as_ref())).collect();
    let of_containers = limits.map(|limits| limits.into_iter().fold(0, u64::saturating_add));
    let of_pod = limit(pod.spec().resources.as_ref());
    own.filter(|&bytes| bytes > 0).into_iter().chain(of_containers).chain(of_pod).min()
}

/// The directories of one container.
#[derive(Debug, Default)]
pub struct ContainerVolumes {
    /// What its guests see.
    pub preopens: Vec<Preopen>,
    /// The volume that is mounted at the exchange directory, which is left out of the others.
    pub exchange: Option<PathBuf>,
}

/// Prepares a container's directories for a start, with the files that its devices bring.
pub fn preopens(
    container: &Container,
    volumes: &MountedVolumes,
    variables: &[(String, String)],
    exchange_directory: Option<&str>,
    mut single: Vec<FileMount>,
    private: &Private,
) -> Result<ContainerVolumes, String> {
    let mut of_container = ContainerVolumes::default();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(mounted) = volumes.get(&mount.name) else { continue };
        // A relative path is one from the root, as for a kubelet.
        let parts: Vec<_> = mount.mount_path.split('/').filter(|part| !["", "."].contains(part)).collect();
        let guest = format!("/{}", parts.join("/"));
        let guest = guest.as_str();
        let sub_path = sub_path(mount, variables)?;
        let failed = |what: String| format!("mount of volume {} at {guest}: {what}", mount.name);
        if Some(guest) == exchange_directory {
            if mounted.kind != MountedKind::Directory || sub_path.is_some() {
                let what = "the exchange directory of a handler takes a whole hostPath or emptyDir volume";
                return Err(failed(what.to_owned()));
            }
            of_container.exchange = Some(mounted.path.clone());
            continue;
        }
        let read_only = mount.read_only.unwrap_or(false) || mounted.kind == MountedKind::Content;
        let directory = |beneath| Preopen { beneath, read_only, ..Preopen::new(mounted.path.clone(), guest) };
        match (mounted.kind, sub_path) {
            (MountedKind::Directory | MountedKind::Content, None) => of_container.preopens.push(directory(None)),
            (MountedKind::Directory, Some(path)) => match host_path::make_beneath(&mounted.path, &path) {
                Ok(host_path::Beneath::Directory) => of_container.preopens.push(directory(Some(path.into()))),
                Ok(host_path::Beneath::File(file)) => {
                    single.push(FileMount::link(guest, file, read_only).map_err(failed)?);
                }
                Err(error) => return Err(failed(format!("subPath {path}: {error}"))),
            },
            (MountedKind::Content, Some(path)) => {
                single.push(FileMount::copy(guest, &mounted.path, &path, mounted.in_memory).map_err(failed)?);
            }
            (MountedKind::File, None) => {
                let file = std::fs::File::open(&mounted.path)
                    .map_err(|error| failed(format!("{}: {error}", mounted.path.display())))?;
                single.push(FileMount::link(guest, file.into(), read_only).map_err(failed)?);
            }
            (MountedKind::File, Some(_)) => return Err(failed("a file has no subPath".to_owned())),
        }
    }
    for preopen in files::preopens(single, private)? {
        if of_container.preopens.iter().any(|other| other.guest == preopen.guest) {
            return Err(format!(
                "{} is mounted, and a single file into it; a WebAssembly guest can see one of them",
                preopen.guest
            ));
        }
        of_container.preopens.push(preopen);
    }
    Ok(of_container)
}

/// The path below the volume, its variables replaced.
fn sub_path(mount: &VolumeMount, variables: &[(String, String)]) -> Result<Option<String>, String> {
    let path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => environment::expand(expression, variables),
        _ => return Ok(None),
    };
    let path = path.trim_matches('/').to_owned();
    match is_relative(&path) && !path.is_empty() && !path.contains("$(") {
        true => Ok(Some(path)),
        false => Err(format!("subPath {path:?} of volume {} must be relative and without `..`", mount.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(spec: serde_json::Value) -> PodObject {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
        PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: Some("/m".into()) }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_before_anything_starts() {
        let refused = |spec| validate(&pod(spec)).unwrap_err().to_string();
        let mount = json!([{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/data"}]}]);
        let message = refused(json!({"containers": mount}));
        assert_eq!(message, "container c mounts volume \"v\", which spec.volumes does not define");
        let claim = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]);
        let message = refused(json!({"containers": mount, "volumes": claim}));
        assert!(message.contains("persistentVolumeClaim volumes cannot be given"), "{message}");
        assert_eq!(validate(&pod(json!({"containers": mount, "volumes": [{"name": "v", "secret": {}}]}))), Ok(()));
        let token = json!([{"name": "c", "volumeMounts": [{"name": "kube-api-access-x", "mountPath": "/var/run/t"}]}]);
        let volumes = json!([{"name": "kube-api-access-x", "projected": {"sources": []}}]);
        assert_eq!(validate(&pod(json!({"containers": token, "volumes": volumes}))), Ok(()));
        let sub_path = json!([{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/d", "subPath": "../x"}]}]);
        assert!(
            refused(json!({"containers": sub_path, "volumes": [{"name": "v", "emptyDir": {}}]})).contains("subPath")
        );
    }
}
