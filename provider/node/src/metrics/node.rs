//! `/metrics`: the node itself.

use super::{container, machine};
use crate::cluster::certificate::Certificate;
use crate::services::Services;
use crate::status::{DISCOVERY_HEALTHY, is_final};
use akri_krustlet_metrics::Page;

pub(super) fn tell(page: &mut Page, services: &Services, started: f64) {
    page.gauge(
        "akri_krustlet_build_info",
        "1, with the version of the program",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    page.gauge("kubelet_node_name", "1, with the node's name", &[("node", &services.node.name)], 1.0);
    pods(page, services);
    certificates(page, services);
    process(page, started);
}

fn pods(page: &mut Page, services: &Services) {
    let pods = services.pods.all();
    let statuses: Vec<_> = pods.iter().map(|context| (context, context.reporter.current())).collect();
    let running = statuses.iter().filter(|(_, status)| status.phase.as_deref() == Some("Running")).count();
    page.gauge("kubelet_running_pods", "Pods whose containers run", &[], running as f64);
    for (state, number) in container::states(statuses.iter().map(|(_, status)| status)) {
        let help = "Containers by state: created (they wait), running, exited";
        page.gauge("kubelet_running_containers", help, &[("container_state", state)], number as f64);
    }
    for (context, status) in &statuses {
        let Some(healthy) = status.conditions.iter().flatten().find(|one| one.type_ == DISCOVERY_HEALTHY) else {
            continue;
        };
        if is_final(status) {
            continue;
        }
        // The condition tells of the container's last life.
        let runs = status
            .container_statuses
            .iter()
            .flatten()
            .any(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()));
        let labels = [("namespace", context.pod.namespace()), ("pod", context.pod.name())];
        let help =
            "Whether a pod's discovery handler runs and its answers are used, as its condition DiscoveryHealthy says";
        page.gauge(
            "akri_krustlet_discovery_healthy",
            help,
            &labels,
            f64::from(u8::from(runs && healthy.status == "True")),
        );
    }
}

fn certificates(page: &mut Page, services: &Services) {
    let pki = services.data.path().join("pki");
    let now = machine::now();
    let client = ("kubelet_certificate_manager_client_ttl_seconds", "Time until the node's client certificate ends");
    let serving =
        ("kubelet_certificate_manager_server_ttl_seconds", "Time until the certificate of the node's endpoint ends");
    for (file, (name, help)) in [("client.pem", client), ("serving.pem", serving)] {
        if let Ok(Some(certificate)) = Certificate::read(&pki.join(file)) {
            page.gauge(name, help, &[], certificate.not_after.as_second() as f64 - now);
        }
    }
}

fn process(page: &mut Page, started: f64) {
    let process = machine::process();
    page.counter("process_cpu_seconds", "CPU time of the node, guests included", &[], process.cpu_seconds);
    for (name, help, value) in [
        ("process_resident_memory_bytes", "Memory of the node, guests included", process.resident_bytes),
        (
            "process_virtual_memory_bytes",
            "Addresses that the node has taken; most are never used",
            process.virtual_bytes,
        ),
        ("process_threads", "Threads of the node", process.threads),
        ("process_open_fds", "Open file descriptors", process.open_files),
        ("process_start_time_seconds", "When the node began, in Unix time", started),
    ] {
        page.gauge(name, help, &[], value);
    }
    if let Some(most) = process.most_open_files {
        page.gauge("process_max_fds", "Most open file descriptors", &[], most as f64);
    }
}
