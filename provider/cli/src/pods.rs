//! `pods`: what the node on this machine runs.

use crate::DirectoryArguments;
use crate::output::{age, table, text_of};
use akri_krustlet_node::container::local_module::REPLACED;
use akri_krustlet_node::data_directory::StoredPod;
use akri_krustlet_node::status::DISCOVERY_HEALTHY;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};

/// List the pods of the node on this machine, from its data directory: as kubectl would, and below the table what is wrong
/// with any of them.
#[derive(Debug, clap::Args)]
pub(crate) struct PodsArguments {
    #[command(flatten)]
    directories: DirectoryArguments,
    /// How to print
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table
    Table,
    /// The whole objects, as a Kubernetes list
    Json,
}

pub(crate) fn pods(arguments: &PodsArguments) -> anyhow::Result<()> {
    let data = arguments.directories.data_directory()?;
    let pods = crate::stored_pods(&data)?;
    if arguments.output == Format::Json {
        let items: Vec<_> = pods
            .into_iter()
            .map(|StoredPod { mut pod, status }| {
                pod.status = Some(status);
                pod
            })
            .collect();
        let list = serde_json::json!({ "apiVersion": "v1", "kind": "PodList", "items": items });
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(());
    }
    if !data.is_locked() {
        println!("The node is not running; this is what it last knew.");
    }
    let mut rows = table(&["NAMESPACE", "NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    let mut problems = Vec::new();
    for StoredPod { pod, status } in &pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let sidecars = status.init_container_statuses.iter().flatten().filter(|one| is_sidecar(pod, &one.name));
        let containers: Vec<_> = sidecars.chain(status.container_statuses.iter().flatten()).collect();
        let ready = containers.iter().filter(|container| container.ready).count();
        let restarts: i32 = containers.iter().map(|container| container.restart_count).sum();
        let started = status.start_time.as_ref().map(|time| age(time.0)).unwrap_or_default();
        problems.extend(problems_of(status).into_iter().map(|problem| format!("{namespace}/{name}: {problem}")));
        let ready = format!("{ready}/{}", containers.len());
        rows.add_row([namespace, name, ready, summary(pod, status), restarts.to_string(), started]);
    }
    println!("{}", text_of(&rows));
    for problem in problems {
        println!("{problem}");
    }
    Ok(())
}

/// Whether an init container of the pod runs on.
fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    init.into_iter().any(|container| container.name == name && akri_krustlet_node::pod::is_sidecar(container))
}

/// The word in kubectl's STATUS column.
fn summary(pod: &Pod, status: &PodStatus) -> String {
    let phase = status.phase.clone().unwrap_or_else(|| "Unknown".to_owned());
    let of_containers = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten()
        .filter_map(|container| {
            let state = container.state.as_ref()?;
            let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
            let terminated = state.terminated.as_ref().filter(|terminated| terminated.exit_code != 0);
            waiting.or_else(|| terminated.and_then(|terminated| terminated.reason.clone()))
        })
        .next_back();
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let is_done = |container: &&ContainerStatus| {
        let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
        let runs_on = is_sidecar(pod, &container.name) && container.started == Some(true);
        runs_on || ended.is_some_and(|ended| ended.exit_code == 0)
    };
    let done = init.iter().take_while(is_done).count();
    if done < init.len() && phase != "Succeeded" && status.reason.is_none() {
        let state = init.get(done).and_then(|container| container.state.as_ref());
        let waiting = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.clone());
        let waiting = waiting.filter(|reason| reason != "PodInitializing");
        let ended = state.and_then(|state| state.terminated.as_ref()).and_then(|ended| ended.reason.clone());
        return format!("Init:{}", waiting.or(ended).unwrap_or_else(|| format!("{done}/{}", init.len())));
    }
    match phase.as_str() {
        "Succeeded" => "Completed".to_owned(),
        _ => status.reason.clone().or(of_containers).unwrap_or(phase),
    }
}

/// What is wrong with a pod, in words.
pub(crate) fn problems_of(status: &PodStatus) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(status.message.clone());
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    problems.extend(containers.filter_map(container_problem));
    let unhealthy = |condition: &&k8s_openapi::api::core::v1::PodCondition| {
        condition.type_ == DISCOVERY_HEALTHY && condition.status == "False"
    };
    problems.extend(status.conditions.iter().flatten().find(unhealthy).and_then(|condition| condition.message.clone()));
    problems
}

fn container_problem(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    if let Some(message) = state.waiting.as_ref().and_then(|waiting| waiting.message.as_ref())
        && container.last_state.is_none()
    {
        return Some(format!("container {}: {message}", container.name));
    }
    let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let ended = state.terminated.as_ref().or(last).filter(|ended| ended.exit_code != 0);
    // It runs again after the node was away.
    if state.running.is_some() && last.is_none_or(|last| last.exit_code == 255) {
        return None;
    }
    // It was ended so that it runs the module that was built anew.
    if ended?.message.as_deref() == Some(REPLACED) {
        return None;
    }
    let message = ended?.message.clone().unwrap_or_else(|| "no message".to_owned());
    let reason = ended?.reason.clone().unwrap_or_default();
    Some(format!("container {} ended with code {} ({reason}): {message}", container.name, ended?.exit_code))
}
