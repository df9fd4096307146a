//! `step`: a handler's module asked once, without a node.

use crate::annotate::{rule, volume};
use crate::check::{Inspected, container_of};
use crate::discover::{Lists, as_json, default_configuration, details_of, request_from};
use crate::output::{host_name, plain};
use akri_krustlet_discovery::host_path::AllowList;
use akri_krustlet_discovery::settings::{ALLOWED_HOST_PATHS, HandlerSettings};
use akri_krustlet_discovery::trial::{Cost, Stepped, Trial, TrialError};
use akri_krustlet_discovery::{ContainerSpec, HandlerInfo};
use akri_krustlet_host::one_line;
use akri_krustlet_node::grants;
use akri_krustlet_node::needs::{annotations, pod_lines};
use akri_krustlet_node::pod::PodObject;
use akri_krustlet_runtime::events::Uevent;
use akri_krustlet_runtime::log::{ContainerLog, LogLimits, LogOptions, LogPrinter, Logs};
use akri_krustlet_runtime::needs::VolumeNeed;
use akri_krustlet_runtime::network::{Denials, NetworkCeiling, NetworkGrant, NetworkRules, NodeNetwork};
use akri_krustlet_runtime::{ContainerLimits, Counting, Needs, Preopen, RuntimeConfig};
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Ask a discovery handler's module without a node: opens a request, asks for a step, prints what it says, what that took and its
/// log. What it may reach is what the flags give, and nothing else.
///
/// Exit codes: 0 a list came; 1 the module cannot be asked; 2 no list came; 3 the details were refused; 4 a list came, and not all of the
/// steps.
#[derive(Debug, clap::Args)]
pub(crate) struct StepArguments {
    /// The module's file: a component
    module: PathBuf,
    /// Discovery details (YAML or JSON): the text itself, or `-` for standard input, or `@FILE`
    #[arg(long, value_name = "TEXT|-|@FILE", default_value = "{}", allow_hyphen_values = true)]
    details: String,
    /// A discovery property; may be given several times
    #[arg(long = "property", value_name = "NAME=VALUE")]
    properties: Vec<String>,
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
    /// A variable of its environment; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// A uevent that it is told of after its first step, as if the kernel had sent it: `add /devices/x SUBSYSTEM=tty DEVNAME=ttyS9`
    #[arg(long = "event", value_name = "EVENT", value_parser = uevent)]
    events: Vec<Uevent>,
    /// How many steps it is asked for; each comes when it wanted to be asked again
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// How long one step may take, and the wait for the next one, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    timeout: f64,
    /// Format: `text` or `json`
    #[arg(short, long, value_enum, default_value_t)]
    output: crate::check::Format,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "expected NAME=VALUE".to_owned())
}

fn uevent(text: &str) -> Result<Uevent, String> {
    let expected = || "expected ACTION DEVPATH SUBSYSTEM=NAME [KEY=VALUE..]".to_owned();
    let mut words = text.split_whitespace();
    let action = words.next().ok_or_else(expected)?.to_owned();
    let devpath = words.next().filter(|path| path.starts_with('/')).ok_or_else(expected)?.to_owned();
    let pairs: Vec<_> = words.map(|word| word.split_once('=').ok_or_else(expected)).collect::<Result<_, _>>()?;
    let subsystem = pairs.iter().find(|(key, _)| *key == "SUBSYSTEM").ok_or_else(expected)?.1.to_owned();
    let head = [("ACTION", action.as_str()), ("DEVPATH", devpath.as_str())];
    let properties = head.into_iter().chain(pairs).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    Ok(Uevent { action, devpath, subsystem, properties })
}

/// Letters of a line that is printed.
const MOST_LINE: usize = 4000;
/// Compiled modules that are kept.
const MOST_KEPT: usize = 64;

/// How it ends.
enum End {
    Listed,
    NoList(String),
    Refused(String),
    Early(String),
}

pub(crate) fn step(arguments: &StepArguments) -> ExitCode {
    let (code, message) = match run(arguments) {
        Ok(End::Listed) => return ExitCode::SUCCESS,
        Ok(End::NoList(message)) => (2, message),
        Ok(End::Refused(message)) => (3, message),
        Ok(End::Early(message)) => (4, message),
        Err(error) => (1, format!("{error:#}")),
    };
    // Some of it may be a guest's words.
    eprintln!("error: {}", one_line(&message, MOST_LINE));
    ExitCode::from(code)
}

fn run(arguments: &StepArguments) -> anyhow::Result<End> {
    let request = details_of(&arguments.details).and_then(|details| request_from(details, &arguments.properties));
    let request = request.map_err(anyhow::Error::msg)?;
    let timeout = Duration::try_from_secs_f64(arguments.timeout)
        .with_context(|| format!("--timeout {}: not a number of seconds", arguments.timeout))?;
    // Compiled once for each module, in the user's cache.
    let cache = cache()?.join("modules");
    let mut config = RuntimeConfig::new(&cache);
    config.compiler.counting = Counting::Fuel;
    let module = Inspected::by(&arguments.module, config)?;
    let path = arguments.module.display();
    let info = module.info.clone().with_context(|| {
        format!(
            "{path}: it is a {}, and no component that is a discovery handler; `check` says what it is",
            module.kind()
        )
    })?;
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let given = arguments.given(&module)?;
    // Who writes there makes what is executed.
    if let Some(preopen) = given.preopens.iter().find(|preopen| cache.starts_with(&preopen.host)) {
        bail!("--volume: {} has the compiled modules in it ({})", preopen.host.display(), cache.display());
    }
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (end, report) = threads.block_on(async {
        let spec = arguments.container(&module, &info, &given, scratch.path(), timeout)?;
        let mut report = Report::new(arguments, &info, scratch.path());
        let end = ask(arguments, &module, spec, request, timeout, &mut report).await;
        Ok::<_, anyhow::Error>((end, report))
    })?;
    report.end(&end)?;
    forget_old(&cache);
    Ok(end)
}

/// Keeps the newest compiled modules.
fn forget_old(cache: &Path) {
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let age = |path: &PathBuf| std::cmp::Reverse(path.metadata().and_then(|metadata| metadata.modified()).ok());
    let mut files: Vec<_> =
        entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "cwasm")).collect();
    files.sort_by_cached_key(age);
    for old in files.iter().skip(MOST_KEPT) {
        let _ = std::fs::remove_file(old);
    }
}

fn cache() -> anyhow::Result<PathBuf> {
    let of_user = || std::env::home_dir().map(|home| home.join(".cache"));
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(of_user);
    let cache =
        cache.context("there is no home directory to keep compiled modules in; name one with XDG_CACHE_HOME")?;
    Ok(cache.join("akri-krustlet/step"))
}

/// Asks for the steps, and tells of each.
async fn ask(
    arguments: &StepArguments,
    module: &Inspected,
    spec: ContainerSpec,
    request: akri_proto::v0::DiscoverRequest,
    timeout: Duration,
    report: &mut Report,
) -> End {
    let (mut trial, cost) = match Trial::open(module.runtime.clone(), spec, request).await {
        Ok(opened) => opened,
        Err(TrialError::InvalidDetails(reason)) => return End::Refused(format!("the details are refused: {reason}")),
        Err(error) => return End::NoList(error.to_string()),
    };
    report.opened(cost);
    let mut events = arguments.events.iter();
    let mut no_list = "the handler has said nothing of devices".to_owned();
    let steps = arguments.steps.max(1 + u32::try_from(arguments.events.len()).unwrap_or(0));
    let early = |report: &Report, why: String| if report.listed { End::Early(why) } else { End::NoList(why) };
    for number in 1..=steps {
        let (stepped, cost) = match trial.step().await {
            Ok(stepped) => stepped,
            Err(TrialError::InvalidDetails(reason)) => {
                return End::Refused(format!("the details are refused: {reason}"));
            }
            Err(error) => return early(report, error.to_string()),
        };
        if let Stepped::Unavailable(reason) | Stepped::Internal(reason) | Stepped::Unusable(reason) = &stepped {
            no_list.clone_from(reason);
        }
        report.step(number, &stepped, cost);
        if number == steps {
            break;
        }
        if let Some(event) = events.next() {
            module.runtime.event_sources().inject_uevent(event.clone());
        }
        let pause = match &stepped {
            Stepped::Found { wake_after, .. } => *wake_after,
            _ => Some(Duration::from_secs(1)),
        };
        let wait = pause.unwrap_or(timeout).min(timeout);
        let came = tokio::select! {
            () = trial.event() => true,
            () = tokio::time::sleep(wait) => pause.is_some_and(|pause| pause <= timeout),
        };
        if !came {
            return early(report, format!("after step {number} nothing came within {} ms", wait.as_millis()));
        }
    }
    match report.listed {
        true => End::Listed,
        false => End::NoList(no_list),
    }
}

/// What the module is given.
struct Given {
    network: Arc<NetworkRules>,
    events: akri_krustlet_runtime::EventGrant,
    preopens: Vec<Preopen>,
    host_paths: AllowList,
}

impl StepArguments {
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
    fn given(&self, module: &Inspected) -> anyhow::Result<Given> {
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
        })
    }

    /// Those of the pod, and the flags'.
    fn variables(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut variables = Vec::new();
        if let Some(path) = &self.pod {
            let (_, container) = container_of(path, self.container.as_deref())?;
            let said =
                container.env.into_iter().flatten().filter_map(|variable| Some((variable.name, variable.value?)));
            variables.extend(said);
        }
        variables.extend(self.env.iter().cloned());
        Ok(variables)
    }

    fn container(
        &self,
        module: &Inspected,
        info: &Arc<HandlerInfo>,
        given: &Given,
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
                allowed_host_paths: given.host_paths.clone(),
                wake_on_change: true,
                step_deadline: timeout,
            },
            program: module.program.clone(),
            info: Some(info.clone()),
            args: Vec::new(),
            env: self.variables()?,
            preopens: given.preopens.clone(),
            network: NetworkGrant::new(given.network.clone(), node, denials),
            events: given.events.clone(),
            limits: ContainerLimits::default().share(),
            log,
            operator_host_paths: given.host_paths.clone(),
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

/// What is printed.
struct Report {
    is_json: bool,
    lists: Lists,
    listed: bool,
    steps: Vec<Value>,
    opened: Value,
    scratch: PathBuf,
}

impl Report {
    fn new(arguments: &StepArguments, info: &HandlerInfo, scratch: &Path) -> Self {
        Self {
            is_json: matches!(arguments.output, crate::check::Format::Json),
            lists: Lists::new(info.shared, default_configuration(&info.name), host_name()),
            listed: false,
            steps: Vec::new(),
            opened: Value::Null,
            scratch: scratch.to_owned(),
        }
    }

    fn opened(&mut self, cost: Cost) {
        self.opened = cost_json(cost);
        self.line("opened", &cost_text(cost));
    }

    fn step(&mut self, number: u32, stepped: &Stepped, cost: Cost) {
        self.line(&format!("step {number}"), &cost_text(cost));
        let mut json = cost_json(cost);
        match stepped {
            Stepped::Found { devices, warning, note, wake_after } => {
                let next = match wake_after {
                    Some(pause) => format!("the next step after {} ms", pause.as_millis()),
                    None => "the next step when something comes that it follows".to_owned(),
                };
                let what = match devices {
                    Some(list) => format!("{} device(s); {next}", list.devices.len()),
                    None => format!("the list as before; {next}"),
                };
                self.line("", &what);
                for (name, text) in [("warning", warning), ("note", note)] {
                    text.iter().for_each(|text| self.line(name, text));
                    json[name] = json!(text);
                }
                json["wakeAfterMs"] = json!(wake_after.map(|pause| pause.as_millis() as u64));
                json["devices"] =
                    json!(devices.as_ref().map(|list| list.devices.iter().map(as_json).collect::<Vec<_>>()));
                if let Some(list) = devices {
                    self.listed = true;
                    if !self.is_json {
                        let _ = self.lists.show(list.devices.clone());
                    }
                }
            }
            Stepped::Unusable(reason) => self.trouble("unusable", reason, &mut json),
            Stepped::Unavailable(reason) => self.trouble("unavailable", reason, &mut json),
            Stepped::Internal(reason) => self.trouble("internal", reason, &mut json),
        }
        if self.is_json {
            self.steps.push(json);
        }
    }

    fn trouble(&self, kind: &str, reason: &str, json: &mut Value) {
        self.line(kind, reason);
        json["error"] = json!({"kind": kind, "message": reason});
    }

    fn line(&self, about: &str, what: &str) {
        if !self.is_json {
            println!("{about:13} {}", one_line(what, MOST_LINE));
        }
    }

    /// The log, which is whole now.
    fn end(self, end: &End) -> anyhow::Result<()> {
        let mut text = Vec::new();
        let mut printer = LogPrinter::new(false);
        let mut logs = Logs::open(&self.scratch.join("log"), 0, LogOptions::default())?;
        loop {
            let parts = logs.read_batch()?;
            if parts.is_empty() {
                break;
            }
            parts.iter().for_each(|part| printer.print(part, &mut text));
        }
        let text = String::from_utf8_lossy(&text);
        if self.is_json {
            let log: Vec<_> = text.lines().collect();
            let error = match end {
                End::Listed => None,
                End::NoList(message) | End::Refused(message) | End::Early(message) => Some(message),
            };
            println!(
                "{}",
                serde_json::to_string_pretty(
                    &json!({"opened": self.opened, "steps": self.steps, "log": log, "error": error})
                )?
            );
        } else {
            text.lines().for_each(|line| self.line("log", line));
        }
        Ok(())
    }
}

fn cost_json(cost: Cost) -> Value {
    let milliseconds = (cost.time.as_secs_f64() * 1e6).round() / 1e3;
    json!({"milliseconds": milliseconds, "fuel": cost.fuel, "memoryBytes": cost.memory})
}

fn cost_text(cost: Cost) -> String {
    let Cost { time, fuel, memory } = cost;
    let fuel = fuel.map(|count| format!(", {count} units of fuel")).unwrap_or_default();
    format!("{:.3} ms{fuel}, memory {memory} bytes", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_the_kernel_would_say_them() {
        let event = uevent("add /devices/x SUBSYSTEM=tty DEVNAME=ttyS9").unwrap();
        assert_eq!(
            (event.action.as_str(), event.devpath.as_str(), event.subsystem.as_str()),
            ("add", "/devices/x", "tty")
        );
        let of = |key: &str| event.properties.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        assert_eq!((of("ACTION"), of("DEVNAME")), (Some("add"), Some("ttyS9")));
        for wrong in ["", "add", "add x SUBSYSTEM=tty", "add /x", "add /x nonsense"] {
            assert!(uevent(wrong).unwrap_err().contains("SUBSYSTEM=NAME"), "{wrong}");
        }
    }
}
