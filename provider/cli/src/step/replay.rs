//! A recording in place of the machine: the same questions, the same answers, and time that passes when nothing is to do.

use super::given::Given;
use super::report::Report;
use super::{End, StepArguments, forget_old, read_module};
use crate::discover::property;
use akri_krustlet_discovery::ContainerSpec;
use akri_krustlet_discovery::trial::{Stepped, Trial, TrialError};
use akri_krustlet_runtime::Runtime;
use akri_krustlet_runtime::world::Replay;
use akri_krustlet_runtime::world::recording::{Event, Recording, Said, Secrets, line};
use akri_proto::v0::{ByteData, DiscoverRequest};
use anyhow::{Context as _, bail};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Steps of one replay.
const MOST_STEPS: u32 = 10_000;
/// Pause after a step that found nothing out.
const AGAIN: Duration = Duration::from_secs(1);
/// The least pause between two steps.
const LEAST: Duration = Duration::from_millis(100);

pub(super) fn run(arguments: &StepArguments, path: &Path) -> anyhow::Result<End> {
    let of_file = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(of_file)?;
    let recording = Recording::read(&text).with_context(of_file)?;
    let known = arguments.properties.iter().map(|text| property(text)).collect::<Result<Vec<_>, _>>();
    let known = known.map_err(anyhow::Error::msg)?;
    let properties = recording.properties_with(&known).into_iter();
    let request = DiscoverRequest {
        discovery_details: recording.details.clone(),
        discovery_properties: properties
            .map(|(name, value)| (name.to_owned(), ByteData { vec: Some(value) }))
            .collect(),
    };
    let (module, info, cache) = read_module(arguments, |config| config.replays = true)?;
    let scratch = tempfile::tempdir().context("no temporary directory")?;
    let files = scratch.path().join("files");
    std::fs::create_dir(&files)?;
    // Its time stands still while anything is to do.
    let thread = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()?;
    let replay = {
        let _in_its_time = thread.enter();
        Arc::new(Replay::of(&recording, &files).with_context(of_file)?)
    };
    let preopens = replay.volumes().collect();
    let mut host_paths = module.needs().map(|needs| needs.host_paths.clone()).unwrap_or_default();
    host_paths.extend(named(&recording));
    let given = Given::directories(preopens, &host_paths, arguments.env.clone());
    let spec = given.container(&module, &info, scratch.path(), arguments.timeout()?)?;
    let mut report = Report::new(arguments, &info, scratch.path());
    let said = thread.block_on(ask(module.runtime.clone(), spec, request, &replay, recording.end, &mut report))?;
    // Whoever gives a value that is withheld is not told it again.
    let secrets = match known.is_empty() {
        true => Secrets::none(),
        false => Secrets::of(known.iter().map(|(_, value)| value.as_slice())),
    };
    let said: Vec<_> = said.into_iter().map(|said| secrets.without_said(said)).collect();
    let missing = replay.missing();
    if !missing.is_empty() {
        let all = missing.into_iter().collect::<Vec<_>>().join("; ");
        report.line("not recorded", &all);
    }
    let end = match difference(&recording.said(), &said) {
        None => End::Listed,
        Some(difference) => End::Differs(difference),
    };
    report.end(&end)?;
    forget_old(&cache);
    Ok(end)
}

/// The paths of the host that devices named when it was recorded.
fn named(recording: &Recording) -> impl Iterator<Item = String> {
    let lists = recording.said().into_iter().filter_map(|said| match said {
        Said::List(devices) => Some(devices),
        _ => None,
    });
    lists.flatten().flat_map(|device| {
        let mounts = device.mounts.iter().map(|(_, host, _)| host);
        mounts.chain(device.nodes.iter().map(|(_, host, _)| host)).cloned()
    })
}

/// Asks as long as the recording goes; tells what was said, without what was repeated.
async fn ask(
    runtime: Arc<Runtime>,
    spec: ContainerSpec,
    request: DiscoverRequest,
    replay: &Arc<Replay>,
    end: Duration,
    report: &mut Report,
) -> anyhow::Result<Vec<Said>> {
    let mut all: Vec<Said> = Vec::new();
    let mut say = |said: Option<Said>| {
        if let Some(said) = said.filter(|said| all.last() != Some(said)) {
            all.push(said);
        }
    };
    let (mut trial, cost) = match Trial::open(runtime, spec, request, Some(replay.clone())).await {
        Ok(opened) => opened,
        Err(error) => {
            report.line("refused", &error.to_string());
            say(Some(of_error(error)?));
            return Ok(all);
        }
    };
    report.opened(cost);
    for number in 1..=MOST_STEPS {
        replay.happen(replay.elapsed())?;
        let (stepped, said, cost) = match trial.step().await {
            Ok(stepped) => stepped,
            Err(error) => {
                report.line("refused", &error.to_string());
                say(Some(of_error(error)?));
                return Ok(all);
            }
        };
        say(said);
        report.line("at", &format!("{:.3} s of the recording", replay.elapsed().as_secs_f64()));
        report.step(number, &stepped, cost);
        let pause = match &stepped {
            Stepped::Found { wake_after, .. } => wake_after.map(|pause| pause.max(LEAST)),
            _ => Some(AGAIN),
        };
        let wake = pause.map(|pause| replay.elapsed() + pause);
        if !wait(replay, wake, end).await? {
            return Ok(all);
        }
    }
    bail!("the recording has more than {MOST_STEPS} steps: end it earlier, by its line `end`")
}

/// Until the next step; false if the recording ends before.
async fn wait(replay: &Replay, wake: Option<Duration>, end: Duration) -> anyhow::Result<bool> {
    loop {
        let now = replay.elapsed();
        replay.happen(now)?;
        if replay.wants_step() {
            return Ok(now <= end);
        }
        if wake.is_some_and(|wake| wake <= now) {
            return Ok(true);
        }
        match wake.into_iter().chain(replay.next_change()).min().filter(|next| *next <= end) {
            Some(next) => tokio::time::sleep(next.saturating_sub(now)).await,
            None => return Ok(false),
        }
    }
}

fn of_error(error: TrialError) -> anyhow::Result<Said> {
    match error {
        TrialError::InvalidDetails(what) => Ok(Said::InvalidDetails(what)),
        error @ TrialError::Ended(_) if error.to_string().contains("took longer") => {
            Err(anyhow::Error::new(error).context("--timeout gives a step more time"))
        }
        TrialError::Unavailable(what) => Ok(Said::Unavailable(what)),
        other => Err(other.into()),
    }
}

fn difference(recorded: &[&Said], said: &[Said]) -> Option<String> {
    let shown = |said: Option<&Said>| match said {
        Some(said) => {
            line(Duration::ZERO, Some(&Event::Said(said.clone())))[6..].split_whitespace().collect::<Vec<_>>().join(" ")
        }
        None => "nothing".to_owned(),
    };
    let most = recorded.len().max(said.len());
    (0..most).find_map(|at| {
        let (then, now) = (recorded.get(at).copied(), said.get(at));
        let place = at + 1;
        (then != now).then(|| {
            format!(
                "it says something else than in the recording, as number {place}: {}; recorded: {}",
                shown(now),
                shown(then)
            )
        })
    })
}
