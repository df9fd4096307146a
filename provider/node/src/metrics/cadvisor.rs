//! `/metrics/cadvisor`: the series of containers that dashboards use.

use super::container::PodSample;
use super::machine;
use akri_krustlet_metrics::Page;

/// The period of a CPU quota, in microseconds; Linux' default.
const PERIOD: f64 = 100_000.0;

pub(super) fn tell(page: &mut Page, samples: &[PodSample]) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    page.gauge("machine_cpu_cores", "Cores of the machine", &[], cores as f64);
    page.gauge("machine_memory_bytes", "Memory of the machine", &[], machine::memory().0 as f64);
    let now = machine::now();
    for sample in samples.iter().flat_map(|pod| &pod.containers) {
        let labels = [
            ("container", sample.name.as_str()),
            ("id", sample.id.as_str()),
            ("image", sample.image.as_str()),
            ("name", sample.name.as_str()),
            ("namespace", sample.namespace.as_str()),
            ("pod", sample.pod.as_str()),
        ];
        let mut with_cpu = labels.to_vec();
        with_cpu.push(("cpu", "total"));
        let cpu = "CPU time of a container's guests, and of the node for them";
        page.counter("container_cpu_usage_seconds", cpu, &with_cpu, sample.cpu.as_secs_f64());
        let memory = "Linear memory of a container's guests";
        for name in ["container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_rss"] {
            page.gauge(name, memory, &labels, sample.memory as f64);
        }
        let limit = "Limit of the linear memory of a container's guests";
        page.gauge("container_spec_memory_limit_bytes", limit, &labels, sample.limits.memory as f64);
        if let Some(millis) = sample.limits.cpu_millis {
            let quota = "CPU time of a container's guests in each period, in microseconds";
            page.gauge("container_spec_cpu_quota", quota, &labels, f64::from(millis) / 1000.0 * PERIOD);
            page.gauge("container_spec_cpu_period", "Period of the CPU quota, in microseconds", &labels, PERIOD);
        }
        page.gauge("container_start_time_seconds", "When it was started, in Unix time", &labels, sample.started);
        page.gauge("container_last_seen", "When it was looked at, in Unix time", &labels, now);
    }
    for sample in samples {
        let first = &sample.containers[0];
        // As cAdvisor tells the network of a pod, which all of its containers share.
        let labels = [("interface", "wasi"), ("namespace", first.namespace.as_str()), ("pod", first.pod.as_str())];
        let received = "Bytes that a pod's guests received by wasi:http";
        page.counter("container_network_receive_bytes", received, &labels, sample.taken.received as f64);
        let sent = "Bytes that a pod's guests sent";
        page.counter("container_network_transmit_bytes", sent, &labels, sample.taken.sent as f64);
    }
}
