//! What a module is given: by flags, by a pod's manifest, or what it says that it needs.

use crate::annotate::{rule, volume};
use crate::check::{Inspected, container_of};
use crate::output::plain;
use akri_krustlet_discovery::host_path::AllowList;
use akri_krustlet_discovery::settings::{ALLOWED_HOST_PATHS, HandlerSettings};
use akri_krustlet_discovery::{ContainerSpec, HandlerInfo};
use akri_krustlet_host::one_line;
use akri_krustlet_node::grants;
use akri_krustlet_node::needs::{annotations, pod_lines};
use akri_krustlet_node::pod::PodObject;
use akri_krustlet_runtime::log::{ContainerLog, LogLimits};
use akri_krustlet_runtime::needs::VolumeNeed;
use akri_krustlet_runtime::network::{Denials, NetworkCeiling, NetworkGrant, NetworkRules, NodeNetwork};
use akri_krustlet_runtime::{ContainerLimits, EventGrant, Needs, Preopen};
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Container;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::MOST_LINE;

/// What it may reach.
#[derive(Debug, clap::Args)]
pub(super) struct GrantFlags {
    /// Give it what it says it needs (`describe` shows it), but for directories that it would write and those of the host's root and the
    /// user's home: those take a --volume
    #[arg(long, conflicts_with = "pod")]
    grant_needs: bool,
    /// Give it what the pod of this manifest gives: network, events, hostPath volumes, variables
    #[arg(long, value_name = "FILE")]
    pod: Option<PathBuf>,
    /// The container of that pod [default: its only one]
    #[arg(long, value_name = "NAME", requires = "pod")]
    container: Option<String>,
    /// A rule of its network, as `udp 239.255.255.250:3702`; may be given several times
    #[arg(long = "grant", visible_alias = "network", value_name = "RULE", value_parser = rule)]
    rules: Vec<String>,
    /// Subsystems whose uevents it may follow, or `*`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    uevents: Vec<String>,
    /// Network links that it may list, or `*`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    links: Vec<String>,
    /// A directory that it sees, and of which directory of this machine it is; `:rw` if it may write there
    #[arg(long = "volume", value_name = "PATH[=SOURCE][:rw]", value_parser = volume)]
    volumes: Vec<VolumeNeed>,
    /// Paths of the host that its devices may name
    #[arg(long = "host-path", value_name = "PATHS", value_delimiter = ',')]
    host_paths: Vec<String>,
}

pub(super) fn variable(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "expected NAME=VALUE".to_owned())
}

/// What the module is given.
pub(super) struct Given {
    network: Arc<NetworkRules>,
    events: EventGrant,
    pub(super) preopens: Vec<Preopen>,
    host_paths: AllowList,
    pub(super) env: Vec<(String, String)>,
}

impl GrantFlags {
    /// What the flags name, and with --grant-needs what the module needs.
    fn needs(&self, module: &Inspected) -> anyhow::Result<Needs> {
        let mut needs = match &module.program.metadata().needs {
            Ok(needs) if self.grant_needs => without_risk(needs.clone().unwrap_or_default()),
            Err(error) if self.grant_needs => bail!("--grant-needs: {error}"),
            _ => Needs::default(),
        };
        if let Some(path) = &self.pod {
            let (pod, container) = container_of(path, self.container.as_deref())?;
            let of_pod = given_by(&pod, &container, &self.volumes).with_context(|| path.display().to_string())?;
            needs.network.extend(of_pod.network);
            needs.uevents.extend(of_pod.uevents);
            needs.links.extend(of_pod.links);
            needs.host_paths.extend(of_pod.host_paths);
            needs.volumes.retain(|need| of_pod.volumes.iter().all(|own| own.path != need.path));
            needs.volumes.extend(of_pod.volumes);
        }
        needs.network.extend(self.rules.iter().cloned());
        needs.uevents.extend(self.uevents.iter().cloned());
        needs.links.extend(self.links.iter().cloned());
        needs.volumes.retain(|need| self.volumes.iter().all(|own| own.path != need.path));
        needs.host_paths.extend(self.host_paths.iter().cloned());
        for need in &self.volumes {
            let source = need.source.as_ref().map(std::path::absolute).transpose()?;
            let source = source.map(|source| plain(&source).display().to_string());
            needs.volumes.push(VolumeNeed { source, ..need.clone() });
        }
        needs.check()?;
        Ok(needs)
    }

    /// As a pod would give it, read by what reads pods.
    pub(super) fn given(&self, module: &Inspected, env: &[(String, String)]) -> anyhow::Result<Given> {
        let needs = self.needs(module)?;
        let said: serde_json::Map<_, _> =
            annotations(&needs).into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        let mounts: Vec<_> = needs.volumes.iter().map(|need| json!({"name": "v", "mountPath": need.path})).collect();
        let spec = json!({"hostNetwork": true, "containers": [{"name": "step", "volumeMounts": mounts}]});
        let pod = json!({"metadata": {"name": "step", "namespace": "default", "uid": "step", "annotations": said}, "spec": spec});
        let pod = PodObject::new(&serde_json::from_value(pod)?, None);
        let container: &Container = &pod.spec().containers[0];
        let missing = module.missing(&pod, container)?;
        for (number, line) in pod_lines(&needs).iter().enumerate() {
            eprintln!("{:13} {}", if number == 0 { "given" } else { "" }, one_line(line, MOST_LINE));
        }
        if !missing.is_empty() {
            eprintln!(
                "The module needs what it is not given (--grant-needs gives it): {}",
                one_line(&missing.join("; "), MOST_LINE)
            );
        }
        let preopens = needs.volumes.iter().map(|need| {
            let source = std::path::absolute(need.source.as_ref().unwrap_or(&need.path))?;
            Ok(Preopen { read_only: !need.writable, ..Preopen::new(source, &*need.path) })
        });
        Ok(Given {
            network: grants::network_of_handler(&pod, container)?,
            events: grants::events(&pod)?,
            preopens: preopens.collect::<std::io::Result<_>>()?,
            host_paths: AllowList::parse(&needs.host_paths.join(",")).unwrap_or_default(),
            env: self.variables(env)?,
        })
    }

    /// Those of the pod, and the flags'.
    fn variables(&self, env: &[(String, String)]) -> anyhow::Result<Vec<(String, String)>> {
        let mut variables = Vec::new();
        if let Some(path) = &self.pod {
            let (_, container) = container_of(path, self.container.as_deref())?;
            let said =
                container.env.into_iter().flatten().filter_map(|variable| Some((variable.name, variable.value?)));
            variables.extend(said);
        }
        variables.extend(env.iter().cloned());
        Ok(variables)
    }
}

impl Given {
    /// These directories, and devices that name whatever they name.
    pub(super) fn directories(preopens: Vec<Preopen>, host_paths: &[String], env: Vec<(String, String)>) -> Self {
        Self {
            network: Arc::default(),
            events: EventGrant::default(),
            preopens,
            host_paths: AllowList::parse(&host_paths.join(",")).unwrap_or_default(),
            env,
        }
    }

    /// The container that is asked.
    pub(super) fn container(
        &self,
        module: &Inspected,
        info: &Arc<HandlerInfo>,
        scratch: &Path,
        timeout: Duration,
    ) -> anyhow::Result<ContainerSpec> {
        let log = ContainerLog::create(&scratch.join("log"), 0, LogLimits::default())?;
        let denials = Denials::new("step", Some(log.clone()));
        let node = Arc::new(NodeNetwork::new(NetworkCeiling::default()));
        Ok(ContainerSpec {
            name: "step".to_owned(),
            settings: HandlerSettings {
                name: info.name.clone(),
                shared: info.shared,
                exchange_directory: "/".to_owned(),
                allowed_host_paths: self.host_paths.clone(),
                wake_on_change: true,
                step_deadline: timeout,
            },
            program: module.program.clone(),
            info: Some(info.clone()),
            args: Vec::new(),
            env: self.env.clone(),
            preopens: self.preopens.clone(),
            network: NetworkGrant::new(self.network.clone(), node, denials),
            events: self.events.clone(),
            limits: ContainerLimits::default().share(),
            log,
            operator_host_paths: self.host_paths.clone(),
            writable: Vec::new(),
            exchange_root: scratch.join("exchange"),
            exchange_volume: scratch.join("volume"),
            exchange_is_mounted: false,
        })
    }
}

/// What may be given to a module that nobody knows.
fn without_risk(mut needs: Needs) -> Needs {
    let home = std::env::home_dir();
    needs.volumes.retain(|need| {
        let source = plain(Path::new(need.source.as_ref().unwrap_or(&need.path)));
        let is_below = |path: &Path| path.starts_with(&source) || source.starts_with(path);
        !need.writable && source != Path::new("/") && !home.as_deref().is_some_and(is_below)
    });
    needs
}

/// What a pod gives a container of it, but for volumes that are named otherwise.
fn given_by(pod: &PodObject, container: &Container, named: &[VolumeNeed]) -> anyhow::Result<Needs> {
    // As the node reads it, which refuses what makes no sense.
    grants::network_of_handler(pod, container)?;
    grants::events(pod)?;
    let annotation = |name: &str| {
        let annotations = pod.api.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(name)).cloned().unwrap_or_default()
    };
    let names = |text: String| -> Vec<String> {
        text.split([',', ' ', '\t', '\n']).filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    let of_variable = container.env.iter().flatten().rfind(|variable| variable.name == grants::NETWORK_VARIABLE);
    let rules =
        [annotation(grants::NETWORK), of_variable.and_then(|variable| variable.value.clone()).unwrap_or_default()];
    let rules =
        rules.iter().flat_map(|text| text.lines()).map(|line| line.split('#').next().unwrap_or_default().trim());
    let mut volumes = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        if named.iter().any(|own| own.path == mount.mount_path) {
            continue;
        }
        let mut of_pod = pod.spec().volumes.iter().flatten();
        let volume = of_pod.find(|volume| volume.name == mount.name);
        let source = volume.and_then(|volume| volume.host_path.as_ref()).with_context(|| {
            let path = &mount.mount_path;
            format!("volume {} is no directory of this machine; name one with --volume {path}=DIR", mount.name)
        })?;
        volumes.push(VolumeNeed {
            path: mount.mount_path.clone(),
            source: Some(plain(&pod.resolve(&source.path)).display().to_string()),
            writable: mount.read_only != Some(true),
        });
    }
    Ok(Needs {
        network: rules.filter(|rule| !rule.is_empty()).map(str::to_owned).collect(),
        uevents: names(annotation(grants::UEVENTS)),
        links: names(annotation(grants::LINKS)),
        host_paths: annotation(ALLOWED_HOST_PATHS)
            .split(',')
            .map(|path| path.trim().to_owned())
            .filter(|path| !path.is_empty())
            .collect(),
        volumes,
        ..Needs::default()
    })
}
