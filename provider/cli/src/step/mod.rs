//! `step`: a handler's module asked once, without a node.

mod given;
mod replay;
mod report;

use crate::check::Inspected;
use crate::discover::{details_of, request_from};
use akri_krustlet_discovery::trial::{Stepped, Trial, TrialError};
use akri_krustlet_discovery::{ContainerSpec, HandlerInfo};
use akri_krustlet_host::one_line;
use akri_krustlet_runtime::events::Uevent;
use akri_krustlet_runtime::world::RecordTo;
use akri_krustlet_runtime::{Counting, RuntimeConfig};
use anyhow::{Context as _, bail};
use given::{GrantFlags, variable};
use report::Report;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Ask a discovery handler's module without a node: opens a request, asks for a step, prints what it says, what that took and its
/// log. What it may reach is what the flags give, and nothing else.
///
/// Exit codes: 0 a list came; 1 the module cannot be asked; 2 no list came; 3 the details were refused; 4 a list came, and not all of the
/// steps; 5 in a replay it said something else than was recorded, and 0 if it said the same, whatever that is.
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
    #[command(flatten)]
    grants: GrantFlags,
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
    /// Write down what it sees and says, for `--replay` and for tests; a recording that is there is written over
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// With the values of --property, and headers with credentials, in the recording
    #[arg(long, requires = "record")]
    record_secrets: bool,
    /// Ask it in the world of a recording, with its details and in its time, and compare what it says; --property gives values that the
    /// recording withholds
    #[arg(long, value_name = "FILE", conflicts_with_all = ["details", "GrantFlags", "events", "steps", "record"])]
    replay: Option<PathBuf>,
    /// Format: `text` or `json`
    #[arg(short, long, value_enum, default_value_t)]
    output: crate::check::Format,
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
    /// Than what was recorded.
    Differs(String),
}

pub(crate) fn step(arguments: &StepArguments) -> ExitCode {
    let (code, message) = match run(arguments) {
        Ok(End::Listed) => return ExitCode::SUCCESS,
        Ok(End::NoList(message)) => (2, message),
        Ok(End::Refused(message)) => (3, message),
        Ok(End::Early(message)) => (4, message),
        Ok(End::Differs(message)) => (5, message),
        Err(error) => (1, format!("{error:#}")),
    };
    // Some of it may be a guest's words.
    eprintln!("error: {}", one_line(&message, MOST_LINE));
    ExitCode::from(code)
}

fn run(arguments: &StepArguments) -> anyhow::Result<End> {
    if let Some(recording) = &arguments.replay {
        return replay::run(arguments, recording);
    }
    let request = details_of(&arguments.details).and_then(|details| request_from(details, &arguments.properties));
    let request = request.map_err(anyhow::Error::msg)?;
    let timeout = arguments.timeout()?;
    akri_krustlet_host::allocations::count();
    let record = arguments.record.clone().map(|path| RecordTo { path, secrets: arguments.record_secrets });
    let (module, info, cache) = read_module(arguments, |config| config.record = record)?;
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let given = arguments.grants.given(&module, &arguments.env)?;
    // Who writes there makes what is executed.
    if let Some(preopen) = given.preopens.iter().find(|preopen| cache.starts_with(&preopen.host)) {
        bail!("--volume: {} has the compiled modules in it ({})", preopen.host.display(), cache.display());
    }
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (end, report) = threads.block_on(async {
        let spec = given.container(&module, &info, scratch.path(), timeout)?;
        let mut report = Report::new(arguments, &info, scratch.path());
        let end = ask(arguments, &module, spec, request, timeout, &mut report).await;
        Ok::<_, anyhow::Error>((end, report))
    })?;
    report.end(&end)?;
    forget_old(&cache);
    Ok(end)
}

/// The module, what it says of itself, and where it was compiled.
fn read_module(
    arguments: &StepArguments,
    configure: impl FnOnce(&mut RuntimeConfig),
) -> anyhow::Result<(Inspected, Arc<HandlerInfo>, PathBuf)> {
    // Compiled once for each module, in the user's cache.
    let cache = cache()?.join("modules");
    let mut config = RuntimeConfig::new(&cache);
    config.compiler.counting = Counting::Fuel;
    configure(&mut config);
    let module = Inspected::by(&arguments.module, config)?;
    let path = arguments.module.display();
    let info = module.info.clone().with_context(|| {
        format!(
            "{path}: it is a {}, and no component that is a discovery handler; `check` says what it is",
            module.kind()
        )
    })?;
    Ok((module, info, cache))
}

impl StepArguments {
    fn timeout(&self) -> anyhow::Result<Duration> {
        let timeout = Duration::try_from_secs_f64(self.timeout);
        timeout.with_context(|| format!("--timeout {}: not a number of seconds", self.timeout))
    }
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
    let (mut trial, cost) = match Trial::open(module.runtime.clone(), spec, request, None).await {
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
        let (stepped, _, cost) = match trial.step().await {
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
