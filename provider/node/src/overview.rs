//! What the node is at, in one piece: for `top` and for the web page.

use crate::cluster::events::RecentEvent;
use crate::container_log::{ContainerLogError, ContainerLogReader, LogRequest};
use crate::context::PodContext;
use crate::services::Services;
use crate::status::DISCOVERY_HEALTHY;
use akri_krustlet_discovery::overview::HandlerOverview;
use akri_krustlet_runtime::log::{LogOptions, LogPrinter};
use k8s_openapi::api::core::v1::{ContainerStatus, PodStatus};
use serde::{Deserialize, Serialize};
use std::time::{SystemTime, UNIX_EPOCH};

/// Pods that are shown.
const MOST_PODS: usize = 500;
/// Lines of a log that are.
const LINES: usize = 200;
/// Bytes of them.
const MOST_LOG: usize = 256 << 10;

/// The node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Overview {
    /// The node's name.
    pub node: String,
    /// The program's version.
    pub version: String,
    /// Whether its pods are a cluster's.
    pub in_cluster: bool,
    /// When this was so, in seconds of Unix time.
    pub at: f64,
    /// When the process began, in seconds of Unix time.
    pub started: f64,
    /// CPU time that it has taken, guests included, in seconds.
    pub cpu_seconds: f64,
    /// Its memory, guests included, in bytes.
    pub memory_bytes: u64,
    /// Its discovery handlers.
    pub handlers: Vec<HandlerOverview>,
    /// Its pods, by namespace and name.
    pub pods: Vec<PodOverview>,
    /// What happened lately, the newest first.
    pub events: Vec<RecentEvent>,
}

/// One pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodOverview {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `Running` and so on, or what keeps it from that.
    pub status: String,
    /// When it was taken up, in seconds of Unix time.
    pub started: u64,
    /// What is wrong with its handler, if anything is.
    pub unhealthy: Option<String>,
    /// Its containers.
    pub containers: Vec<ContainerOverview>,
}

/// One container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerOverview {
    /// Its name.
    pub name: String,
    /// `running`, or why it does not run.
    pub state: String,
    /// How often it was started again.
    pub restarts: i32,
    /// CPU time that its guests have taken, in seconds.
    pub cpu_seconds: f64,
    /// Memory of its guests, in bytes.
    pub memory_bytes: u64,
    /// Its limit, if it has one.
    pub memory_limit: Option<u64>,
}

impl Overview {
    pub(crate) fn of(services: &Services, started: f64, cpu_seconds: f64, memory_bytes: u64) -> Self {
        let pods = services.pods.all();
        Self {
            node: services.node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            in_cluster: services.cluster.is_some(),
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
            started,
            cpu_seconds,
            memory_bytes,
            handlers: services.handlers.overview(),
            pods: pods.iter().take(MOST_PODS).map(|context| pod(context)).collect(),
            events: services.events.recent(),
        }
    }
}

fn pod(context: &PodContext) -> PodOverview {
    let status = context.reporter.current();
    let containers: Vec<_> = [&status.init_container_statuses, &status.container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .map(|status| container(context, status))
        .collect();
    PodOverview {
        namespace: context.pod.namespace().to_owned(),
        name: context.pod.name().to_owned(),
        status: summary(&status),
        started: status.start_time.as_ref().map_or(0, |time| u64::try_from(time.0.as_second()).unwrap_or(0)),
        unhealthy: unhealthy(&status),
        containers,
    }
}

fn unhealthy(status: &PodStatus) -> Option<String> {
    let conditions = status.conditions.iter().flatten();
    let mut bad = conditions.filter(|condition| condition.type_ == DISCOVERY_HEALTHY && condition.status == "False");
    bad.next().and_then(|condition| condition.message.clone()).or_else(|| status.message.clone())
}

fn summary(status: &PodStatus) -> String {
    let waiting = |container: &ContainerStatus| {
        let state = container.state.as_ref()?;
        state.waiting.as_ref().and_then(|waiting| waiting.reason.clone())
    };
    let of_container = status.container_statuses.iter().flatten().find_map(waiting);
    let reason = status.reason.clone().or(of_container);
    reason.or_else(|| status.phase.clone()).unwrap_or_else(|| "Unknown".to_owned())
}

fn container(context: &PodContext, status: &ContainerStatus) -> ContainerOverview {
    let state = status.state.clone().unwrap_or_default();
    let words = match (&state.running, &state.terminated, &state.waiting) {
        (Some(_), ..) => "running".to_owned(),
        (_, Some(ended), _) => format!("ended with code {}", ended.exit_code),
        (.., waiting) => {
            waiting.as_ref().and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "waiting".to_owned())
        }
    };
    let limits = context.limits(&status.name).filter(|_| state.running.is_some());
    ContainerOverview {
        name: status.name.clone(),
        state: words,
        restarts: status.restart_count,
        cpu_seconds: limits.as_ref().map_or(0.0, |limits| limits.cpu_time().as_secs_f64()),
        memory_bytes: limits.as_ref().map_or(0, |limits| limits.memory_in_use() as u64),
        memory_limit: limits.map(|limits| limits.limits().memory as u64).filter(|most| *most < 1 << 40),
    }
}

/// The newest lines of a container's log.
pub(crate) async fn newest_lines(services: &Services, request: LogRequest) -> Result<String, ContainerLogError> {
    let options = LogOptions { tail: Some(LINES), ..LogOptions::default() };
    let (request, data) = (LogRequest { options, ..request }, services.data.clone());
    let opened = tokio::task::spawn_blocking(move || ContainerLogReader::open(request, data, None));
    let mut reader = opened.await.map_err(std::io::Error::other)??;
    let (mut text, mut printer) = (Vec::new(), LogPrinter::new(false));
    while let Some(parts) = reader.next().await? {
        parts.iter().for_each(|part| printer.print(part, &mut text));
        if text.len() > 2 * MOST_LOG {
            text.drain(..text.len() - MOST_LOG);
        }
    }
    let newest = text.len().saturating_sub(MOST_LOG);
    Ok(String::from_utf8_lossy(&text[newest..]).into_owned())
}
