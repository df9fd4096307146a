//! `/metrics/resource`: what metrics-server reads, for `kubectl top` and autoscalers.

use super::container::{ContainerSample, PodSample};
use super::machine;
use akri_krustlet_metrics::Page;

pub(super) fn tell(page: &mut Page, samples: &[PodSample]) {
    let (all, left) = machine::memory();
    page.counter("node_cpu_usage_seconds", "CPU time of the whole machine", &[], machine::cpu().as_secs_f64());
    page.gauge(
        "node_memory_working_set_bytes",
        "Memory of the machine that is in use and cannot be had at once",
        &[],
        all.saturating_sub(left) as f64,
    );
    for sample in samples.iter().flat_map(|pod| &pod.containers) {
        let ContainerSample { namespace, pod, name, .. } = sample;
        let labels = [("container", name.as_str()), ("namespace", namespace.as_str()), ("pod", pod.as_str())];
        let cpu = "CPU time of a container's guests, and of the node for them";
        page.counter("container_cpu_usage_seconds", cpu, &labels, sample.cpu.as_secs_f64());
        let memory = "Linear memory of a container's guests";
        page.gauge("container_memory_working_set_bytes", memory, &labels, sample.memory as f64);
        let started = "When a container was started, in Unix time";
        page.gauge("container_start_time_seconds", started, &labels, sample.started);
    }
    for sample in samples {
        let ContainerSample { namespace, pod, .. } = &sample.containers[0];
        let labels = [("namespace", namespace.as_str()), ("pod", pod.as_str())];
        let help = "CPU time of a pod's guests, and of the node for them, over all lives of its containers";
        page.counter("pod_cpu_usage_seconds", help, &labels, sample.taken.cpu.as_secs_f64());
        let help = "Linear memory of a pod's guests";
        page.gauge("pod_memory_working_set_bytes", help, &labels, sample.memory() as f64);
    }
    page.gauge("resource_scrape_error", "1 if the values could not be found out, else 0", &[], 0.0);
}
