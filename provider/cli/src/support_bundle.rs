//! `support-bundle`: what whoever looks into a problem needs to know of a node, in one file, and no secret.
//!
//! # Guarantees
//! - Of a pod it has named fields, among them no value of a variable, no command, no argument, no header of a probe. Logs, and the
//!   messages of statuses, which may be a guest's words, are in it only if asked for; of other files there are names and sizes.
//! - Nothing is followed out of the data directory, and the bundle is bounded: 10,000 entries of the listing, the last 256 KiB of each log.

use crate::DirectoryArguments;
use akri_krustlet_host::one_line;
use akri_krustlet_node::DataDirectory;
use akri_krustlet_node::data_directory::StoredPod;
use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::core::v1::{Container, EnvVar, Volume};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Entries of the listing.
const MOST_ENTRIES: usize = 10_000;
/// Bytes of one log.
const LOG: u64 = 256 << 10;
/// Letters of a path that is listed.
const MOST_PATH: usize = 4096;
/// What stands where something was left out.
const LEFT_OUT: &str = "(left out)";

/// Write what is needed to look into a problem into one file: the pods and their statuses without the values of variables,
/// arguments and annotations, the sizes of the node's files, the machine. No secret is in it, and no word of a guest unless asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct SupportBundleArguments {
    /// The file to write; it must not be there yet
    #[arg(long, short, value_name = "FILE", default_value = "akri-krustlet-support.tar.gz")]
    output: PathBuf,
    /// The ends of the containers' logs and the messages of their statuses as well; look at what is in them before you pass them on
    #[arg(long)]
    logs: bool,
    #[command(flatten)]
    directories: DirectoryArguments,
}

pub(crate) fn support_bundle(arguments: &SupportBundleArguments) -> anyhow::Result<()> {
    let data = arguments.directories.data_directory()?;
    let pods = crate::stored_pods(&data)?;
    let path = &arguments.output;
    let failed = || path.display().to_string();
    let file = File::options().write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    let mut bundle = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let mut add = |name: &str, content: &[u8]| -> std::io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0));
        bundle.append_data(&mut header, format!("akri-krustlet-support/{name}"), content)
    };
    add("node.txt", node(&data).as_bytes()).with_context(failed)?;
    add("files.txt", listing(data.path()).as_bytes()).with_context(failed)?;
    let logs = if arguments.logs { logs(&data, &pods) } else { Vec::new() };
    let items: Vec<_> = pods.iter().map(|pod| told_of(pod, arguments.logs)).collect();
    let list = json!({"items": items});
    add("pods.json", serde_json::to_string_pretty(&list)?.as_bytes()).with_context(failed)?;
    for (name, content) in logs {
        add(&name, &content).with_context(failed)?;
    }
    let written = bundle.into_inner().and_then(GzEncoder::finish).and_then(|file| file.sync_all());
    written.with_context(failed)?;
    println!("{} is written; look through it before you pass it on: tar -xzf {0}", path.display());
    Ok(())
}

/// The node and the machine.
fn node(data: &DataDirectory) -> String {
    let system = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().filter(|line| line.starts_with("MemTotal") || line.starts_with("MemAvailable"));
    let disk = rustix::fs::statvfs(data.path()).map(|disk| {
        format!(
            "{} of {} bytes free, {} of {} inodes",
            disk.f_bavail * disk.f_frsize,
            disk.f_blocks * disk.f_frsize,
            disk.f_favail,
            disk.f_files
        )
    });
    format!(
        "version: {}\nrunning: {}\ndata directory: {}\ndisk: {}\nsystem: {} {} {}\ncores: {}\n{}\ntime: {}\n",
        env!("CARGO_PKG_VERSION"),
        data.is_locked(),
        data.path().display(),
        disk.unwrap_or_else(|error| error.to_string()),
        text(system.sysname()),
        text(system.release()),
        text(system.machine()),
        std::thread::available_parallelism().map_or(0, usize::from),
        memory.collect::<Vec<_>>().join("\n"),
        jiff::Timestamp::now(),
    )
}

/// Directories whose entries guests make: what is in them is not listed.
const OF_GUESTS: [&str; 5] = ["volumes", "exchange", "streams", "files", "termination"];

/// Mode, owner, size and path of each file; links are not followed.
fn listing(root: &Path) -> String {
    let mut text = String::new();
    let mut left = MOST_ENTRIES;
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                let _ = writeln!(text, "{}: {error}", directory.display());
                continue;
            }
        };
        for entry in entries.flatten() {
            if left == 0 {
                let _ = writeln!(text, "... and more");
                return text;
            }
            left -= 1;
            let Ok(metadata) = entry.metadata() else { continue };
            let (mode, path) = (metadata.mode(), entry.path());
            let shown = one_line(&path.to_string_lossy(), MOST_PATH);
            let _ = writeln!(text, "{mode:o} {}:{} {:>10} {shown}", metadata.uid(), metadata.gid(), metadata.len());
            let is_of_guests = path.file_name().is_some_and(|name| OF_GUESTS.iter().any(|one| name == *one));
            if metadata.is_dir() && !is_of_guests {
                directories.push(path);
            }
        }
    }
    text
}

/// What of a pod is in the bundle: only these fields, since a pod may have a secret in any other one.
fn told_of(StoredPod { pod, status }: &StoredPod, with_messages: bool) -> Value {
    let (metadata, spec) = (&pod.metadata, pod.spec.clone().unwrap_or_default());
    // The node's own say what it grants; of others the names are enough.
    let annotations: serde_json::Map<_, _> = metadata
        .annotations
        .iter()
        .flatten()
        .map(|(name, value)| {
            let value = if name.starts_with("akri-krustlet/") { value.as_str() } else { LEFT_OUT };
            (name.clone(), Value::from(value))
        })
        .collect();
    let container = |container: &Container| {
        let names = |variable: &EnvVar| variable.name.clone();
        let probes = [
            ("startup", &container.startup_probe),
            ("readiness", &container.readiness_probe),
            ("liveness", &container.liveness_probe),
        ];
        let probes = probes.into_iter().filter(|(_, probe)| probe.is_some()).map(|(name, _)| name);
        json!({
            "name": container.name, "image": container.image, "imagePullPolicy": container.image_pull_policy,
            "restartPolicy": container.restart_policy, "resources": container.resources, "ports": container.ports,
            "volumeMounts": container.volume_mounts, "stdin": container.stdin,
            "variables": container.env.iter().flatten().map(names).collect::<Vec<_>>(),
            "probes": probes.collect::<Vec<_>>(),
        })
    };
    let volume = |volume: &Volume| {
        let kinds = serde_json::to_value(volume).unwrap_or_default();
        let kinds = kinds.as_object().into_iter().flatten().map(|(kind, _)| kind).filter(|kind| *kind != "name");
        json!({"name": volume.name, "kind": kinds.collect::<Vec<_>>()})
    };
    let mut status = serde_json::to_value(status).unwrap_or_default();
    if !with_messages {
        leave_out_messages(&mut status);
    }
    json!({
        "metadata": {
            "namespace": metadata.namespace, "name": metadata.name, "uid": metadata.uid, "generation": metadata.generation,
            "creationTimestamp": metadata.creation_timestamp, "deletionTimestamp": metadata.deletion_timestamp,
            "annotations": annotations,
        },
        "spec": {
            "nodeName": spec.node_name, "restartPolicy": spec.restart_policy, "hostNetwork": spec.host_network,
            "terminationGracePeriodSeconds": spec.termination_grace_period_seconds,
            "initContainers": spec.init_containers.iter().flatten().map(container).collect::<Vec<_>>(),
            "containers": spec.containers.iter().map(container).collect::<Vec<_>>(),
            "volumes": spec.volumes.iter().flatten().map(volume).collect::<Vec<_>>(),
        },
        "status": status,
    })
}

/// Messages may be a guest's own words, or the end of its log.
fn leave_out_messages(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("message", value @ Value::String(_)) => *value = LEFT_OUT.into(),
                    (_, value) => leave_out_messages(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(leave_out_messages),
        _ => {}
    }
}

/// The ends of the newest logs of each container.
fn logs(data: &DataDirectory, pods: &[StoredPod]) -> Vec<(String, Vec<u8>)> {
    let mut logs = Vec::new();
    for StoredPod { pod, .. } in pods {
        let metadata = &pod.metadata;
        let of = |text: &Option<String>| text.clone().unwrap_or_default();
        let (namespace, name) =
            (metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()), of(&metadata.name));
        let root = data.pod_logs(&namespace, &name, &of(&metadata.uid));
        for container in std::fs::read_dir(&root).into_iter().flatten().flatten() {
            let files = std::fs::read_dir(container.path()).into_iter().flatten().flatten();
            let files = files.filter(|file| file.file_type().is_ok_and(|kind| kind.is_file()));
            let newest = files.max_by_key(|file| file.metadata().and_then(|metadata| metadata.modified()).ok());
            if let Some(content) = newest.and_then(|file| end_of(&file.path()).ok()) {
                let container = container.file_name().to_string_lossy().into_owned();
                logs.push((format!("logs/{namespace}_{name}_{container}.log"), content));
            }
        }
    }
    logs
}

fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG)))?;
    let mut content = Vec::new();
    file.take(LOG).read_to_end(&mut content)?;
    Ok(content)
}
