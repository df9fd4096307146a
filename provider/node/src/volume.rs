//! Volumes: the host's directories that a container's guests see.

use crate::data_directory::{DataDirectory, make_directory};
use crate::pod::PodObject;
use akri_krustlet_runtime::Preopen;
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Volume, VolumeMount};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
        "volume {volume} is a {kind} volume, which this version of the node does not support; it supports hostPath and emptyDir"
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
        if volume.host_path.is_none() && volume.empty_dir.is_none() {
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
    if mount.sub_path.is_some() || mount.sub_path_expr.is_some() {
        return Some("subPath is not supported yet");
    }
    if !mount.mount_path.starts_with('/') || mount.mount_path.split('/').any(|part| part == "..") {
        return Some("the mount path must be absolute and without `..`");
    }
    None
}

/// The name of the volume's source: the one field besides `name` that its JSON has.
fn kind_of(volume: &Volume) -> String {
    let json = serde_json::to_value(volume).unwrap_or_default();
    let fields = json.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    fields.filter(|name| name != "name").collect::<Vec<_>>().join(", ")
}

/// Makes the volumes of a pod available: their directories on the host, by name.
pub fn prepare(pod: &PodObject, data: &DataDirectory) -> Result<BTreeMap<String, PathBuf>, MountError> {
    let mut directories = BTreeMap::new();
    for volume in pod.spec().volumes.iter().flatten().filter(|volume| !is_api_access(volume)) {
        let path = match &volume.host_path {
            Some(source) => host_path(pod, volume, source)?,
            None => {
                let path = data.pod(pod.uid()).join("volumes").join(volume.name.replace('/', "_"));
                make_directory(&path).map_err(|error| failed(volume, &path, error.to_string()))?;
                path
            }
        };
        directories.insert(volume.name.clone(), path);
    }
    Ok(directories)
}

fn failed(volume: &Volume, path: &Path, what: String) -> MountError {
    MountError { volume: volume.name.clone(), path: path.to_owned(), what }
}

fn host_path(pod: &PodObject, volume: &Volume, source: &HostPathVolumeSource) -> Result<PathBuf, MountError> {
    let path = pod.resolve(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    // A container runtime makes the missing directory of a hostPath without a type.
    if ["", "DirectoryOrCreate"].contains(&kind) && !path.exists() {
        std::fs::create_dir_all(&path).map_err(|error| failed(volume, &path, error.to_string()))?;
    }
    match (kind, std::fs::metadata(&path)) {
        ("" | "Directory" | "DirectoryOrCreate", Ok(metadata)) if metadata.is_dir() => Ok(path),
        ("" | "Directory" | "DirectoryOrCreate", Ok(_)) => Err(failed(
            volume,
            &path,
            "is not a directory; a WebAssembly guest sees directories only: mount the one that the file is in"
                .to_owned(),
        )),
        ("" | "Directory" | "DirectoryOrCreate", Err(error)) => Err(failed(volume, &path, error.to_string())),
        (kind, _) => Err(failed(
            volume,
            &path,
            format!("hostPath type {kind} cannot be given to a WebAssembly guest; it sees directories only"),
        )),
    }
}

/// The directories of one container. With `exchange_directory`, the volume mounted there is left out and returned by
/// itself.
pub fn preopens(
    container: &Container,
    directories: &BTreeMap<String, PathBuf>,
    exchange_directory: Option<&str>,
) -> (Vec<Preopen>, Option<PathBuf>) {
    let mut preopens = Vec::new();
    let mut exchange = None;
    for mount in container.volume_mounts.iter().flatten() {
        let Some(host) = directories.get(&mount.name) else { continue };
        let guest = match mount.mount_path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        if Some(guest) == exchange_directory {
            exchange = Some(host.clone());
            continue;
        }
        preopens.push(Preopen {
            host: host.clone(),
            guest: guest.to_owned(),
            read_only: mount.read_only.unwrap_or(false),
            private: false,
        });
    }
    (preopens, exchange)
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
        let message = refused(json!({"containers": mount, "volumes": [{"name": "v", "configMap": {"name": "x"}}]}));
        assert!(message.contains("configMap volume"), "{message}");
        let token = json!([{"name": "c", "volumeMounts": [{"name": "kube-api-access-x", "mountPath": "/var/run/t"}]}]);
        let volumes = json!([{"name": "kube-api-access-x", "projected": {"sources": []}}]);
        assert_eq!(validate(&pod(json!({"containers": token, "volumes": volumes}))), Ok(()));
        let sub_path = json!([{"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/d", "subPath": "x"}]}]);
        assert!(
            refused(json!({"containers": sub_path, "volumes": [{"name": "v", "emptyDir": {}}]})).contains("subPath")
        );
    }

    #[test]
    fn host_paths_are_checked_by_their_type() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDirectory::new(parent.path().join("data"), parent.path().join("logs"));
        let with = |path: &Path, kind: &str| {
            let spec = json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}]});
            prepare(&pod(spec), &data).map_err(|error| error.to_string())
        };
        let missing = parent.path().join("missing");
        assert!(with(&missing, "Directory").unwrap_err().contains("No such file"));
        assert!(with(&missing, "DirectoryOrCreate").is_ok());
        let file = parent.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(with(&file, "").unwrap_err().contains("not a directory"));
        assert!(with(&file, "CharDevice").unwrap_err().contains("CharDevice"));
    }
}
