//! The devices of a pod: what it asks for, and what its containers see of them.

use crate::cluster::events::EventType;
use crate::context::PodContext;
use crate::pod::{PodObject, is_sidecar};
use crate::quantity;
use crate::status::ContainerKind;
use crate::volume::files::FileMount;
use akri_krustlet_devices::allocation::ProvidedMount;
use akri_krustlet_devices::{ContainerRequest, PodRequest, Provided};
use akri_krustlet_host::patience::patiently;
use akri_krustlet_host::{span, spans};
use akri_krustlet_runtime::Preopen;
use k8s_openapi::api::core::v1::Container;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::time::Duration;

/// A pod that waits for its devices for longer says so.
const SILENCE: Duration = Duration::from_secs(2);

/// What a pod asks for.
pub fn request(pod: &PodObject) -> PodRequest {
    let of = |container: &Container, init| {
        let resources = container.resources.clone().unwrap_or_default();
        let mut all = resources.limits.unwrap_or_default();
        all.extend(resources.requests.unwrap_or_default());
        let devices = all.into_iter().filter(|(name, _)| is_extended(name));
        let count = |quantity: &str| quantity::parse(quantity).map_or(0, |count| count.ceil());
        ContainerRequest {
            name: container.name.clone(),
            init,
            resources: devices.map(|(name, quantity)| (name, count(&quantity.0))).collect(),
        }
    };
    // A sidecar's devices are its own for as long as the pod runs.
    let init = pod.init_containers().iter().map(|container| of(container, !is_sidecar(container)));
    let app = pod.spec().containers.iter().map(|container| of(container, false));
    PodRequest {
        uid: pod.uid().to_owned(),
        namespace: pod.namespace().to_owned(),
        name: pod.name().to_owned(),
        containers: init.chain(app).collect(),
    }
}

/// A resource that only a device plugin can offer: one with a domain that is not the API's own.
fn is_extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}

/// Gives the pod its devices, all or none; the error says in words why it has none.
pub async fn allocate(context: &PodContext) -> Result<(), String> {
    let span = span!(parent: &context.start_span(), "devices allocate");
    spans::told(span, allocate_all(context)).await
}

async fn allocate_all(context: &PodContext) -> Result<(), String> {
    let request = request(&context.pod);
    if let Some(devices) = &context.services.devices {
        let allocation = devices.allocate(&request);
        tokio::pin!(allocation);
        let allocated = match tokio::time::timeout(SILENCE, &mut allocation).await {
            Ok(allocated) => allocated,
            Err(_) => {
                let message = "the devices that the pod asks for are not to be had yet: their plugins do not offer them, or do not know that they are free";
                context.services.events.pod(&context.pod, EventType::Normal, "WaitingForDevices", message);
                allocation.await
            }
        };
        return allocated.map_err(|error| error.to_string());
    }
    let asked = |container: &ContainerRequest| {
        let resource = container.resources.iter().find(|(_, count)| **count > 0)?.0;
        Some(format!(
            "container {} asks for {resource}, and this node serves no device plugins: see --device-plugins-directory",
            container.name
        ))
    };
    request.containers.iter().find_map(asked).map_or(Ok(()), Err)
}

/// What a container gets of its devices.
#[derive(Debug, Default)]
pub struct DeviceAccess {
    /// Environment variables.
    pub variables: Vec<(String, String)>,
    /// Directories of the host.
    pub preopens: Vec<Preopen>,
    /// Files of the host; a guest sees nothing of what is beside them.
    pub files: Vec<FileMount>,
}

/// Prepares a container's devices for a start. What a guest cannot be given is told by an event; an error means that the
/// container cannot be started now.
pub async fn access(context: &PodContext, kind: ContainerKind, container: &str) -> Result<DeviceAccess, String> {
    let Some(devices) = &context.services.devices else { return Ok(DeviceAccess::default()) };
    let uid = context.pod.uid();
    devices.pre_start(uid, container).await.map_err(|error| error.to_string())?;
    let provided = devices.provided(uid, container);
    for message in shortcomings(&provided) {
        context.event(kind, container, EventType::Warning, "DeviceNotGiven", message);
    }
    let mut access = DeviceAccess { variables: provided.envs.into_iter().collect(), ..DeviceAccess::default() };
    let given = patiently(uid, move || {
        for mount in &provided.mounts {
            give(mount, &mut access)?;
        }
        Ok(access)
    });
    given.await.map_err(|hangs| format!("the files of the container's devices: {hangs}"))?
}

/// Adds a directory or file of the host.
fn give(mount: &ProvidedMount, access: &mut DeviceAccess) -> Result<(), String> {
    let (host, guest) = (&mount.host_path, &mount.container_path);
    let failed = |what: String| format!("a device of the container needs {host}: {what}");
    // Opened once: what has the name a moment later is something else. A FIFO is not waited for.
    let resolve = if mount.without_links { ResolveFlags::NO_SYMLINKS } else { ResolveFlags::empty() };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match openat2(CWD, host.as_str(), flags, Mode::empty(), resolve) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::LOOP) if mount.without_links => {
            return Err(failed("there is a symbolic link in that path, which a discovery handler named".to_owned()));
        }
        Err(Errno::NXIO) => return Err(failed(NO_FILE.to_owned())),
        // A kernel or a sandbox without openat2.
        Err(Errno::NOSYS | Errno::PERM) if !mount.without_links => {
            std::fs::File::open(host).map_err(|error| failed(error.to_string()))?
        }
        Err(error) => return Err(failed(std::io::Error::from(error).to_string())),
    };
    let metadata = file.metadata().map_err(|error| failed(error.to_string()))?;
    if metadata.is_dir() {
        let preopen = Preopen { read_only: mount.read_only, ..Preopen::new(host, guest.trim_end_matches('/')) };
        let same = |other: &Preopen| other.host == preopen.host && other.guest == preopen.guest;
        if !access.preopens.iter().any(same) {
            access.preopens.push(preopen);
        }
        return Ok(());
    }
    if !metadata.is_file() {
        return Err(failed(NO_FILE.to_owned()));
    }
    access.files.push(FileMount::link(guest, file.into(), mount.read_only).map_err(failed)?);
    Ok(())
}

/// What cannot be given.
const NO_FILE: &str = "a WebAssembly guest cannot be given sockets and devices, only directories and files";

fn shortcomings(provided: &Provided) -> Vec<String> {
    let mut messages = Vec::new();
    if !provided.conflicts.is_empty() {
        let names = provided.conflicts.join(", ");
        messages.push(format!(
            "the devices of this container set variables to different values, the first counts: {names}"
        ));
    }
    if !provided.device_nodes.is_empty() {
        let nodes = provided.device_nodes.join(", ");
        messages.push(format!("a WebAssembly guest cannot open device nodes; it runs without {nodes}"));
    }
    if !provided.cdi_devices.is_empty() {
        let names = provided.cdi_devices.join(", ");
        messages.push(format!("CDI devices are for container runtimes; the guest runs without {names}"));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::files::Private;
    use serde_json::json;
    use std::sync::Arc;

    #[test]
    fn extended_resources_are_asked_for_and_init_containers_first() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {
            "initContainers": [{"name": "i", "resources": {"requests": {"akri.sh/a": "2"}}}],
            "containers": [{"name": "c", "resources": {
                "requests": {"cpu": "1", "akri.sh/a": "1"}, "limits": {"akri.sh/a": "1", "a.kubernetes.io/b": "1"}}}]}});
        let request = request(&PodObject { api: Arc::new(serde_json::from_value(pod).unwrap()), folder: None });
        let asked: Vec<_> = request.containers.iter().map(|c| (c.name.as_str(), c.init, c.resources.clone())).collect();
        assert_eq!(asked[0], ("i", true, [("akri.sh/a".to_owned(), 2)].into()));
        assert_eq!(asked[1], ("c", false, [("akri.sh/a".to_owned(), 1)].into()));
    }

    #[test]
    fn a_file_is_given_without_what_is_beside_it_and_under_any_name() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("video0.conf"), "of the camera").unwrap();
        std::fs::write(directory.path().join("secret"), "").unwrap();
        let mount = |host: &str, guest: &str| ProvidedMount {
            container_path: guest.to_owned(),
            host_path: directory.path().join(host).display().to_string(),
            read_only: true,
            without_links: false,
        };
        let mut access = DeviceAccess::default();
        give(&mount("video0.conf", "/etc/camera/camera.conf"), &mut access).unwrap();
        give(&mount("", "/data/"), &mut access).unwrap();
        give(&mount("", "/data"), &mut access).unwrap();
        assert_eq!(access.preopens.iter().map(|preopen| preopen.guest.as_str()).collect::<Vec<_>>(), ["/data"]);
        let private = Private { disk: directory.path().join("private"), memory: None };
        let seen = crate::volume::files::preopens(access.files, &private).unwrap();
        assert_eq!((seen[0].guest.as_str(), seen.len()), ("/etc/camera", 1));
        let names: Vec<_> = std::fs::read_dir(&seen[0].host).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["camera.conf"]);
        std::os::unix::fs::symlink("secret", directory.path().join("link")).unwrap();
        give(&mount("link", "/x"), &mut DeviceAccess::default()).unwrap();
        let of_a_handler = ProvidedMount { without_links: true, ..mount("link", "/x") };
        let error = give(&of_a_handler, &mut DeviceAccess::default()).unwrap_err();
        assert!(error.contains("symbolic link"), "{error}");
        let error = give(&mount("no/such", "/x"), &mut DeviceAccess::default()).unwrap_err();
        assert!(error.contains("no/such"), "{error}");
    }
}
