//! What a node counts of its own work, and the text in which it tells that to Prometheus.
//!
//! [`counted()`] is what the process has done since it began; every part of the node adds to it where the thing happens. How things
//! are at the moment of a scrape (pods, memory) is not kept here: whoever knows it makes a [`Page`] of it.
//!
//! # Guarantees
//! - The number of series is bounded: of a metric with labels at most [`MOST_SERIES`] are kept, and what comes beyond is
//!   counted under the label value `(others)`.
//! - Names and units are those of the kubelet where it has the same thing, else they begin with `akri_krustlet_`; durations are in
//!   seconds, sizes in bytes.

mod page;
mod series;

pub use page::{Format, Page};
pub use series::{Counters, Durations, Gauges, MOST_SERIES};

use prometheus_client::registry::Registry;
use std::sync::LazyLock;

/// What the process has counted since it began.
#[derive(Debug)]
pub struct Counted {
    registry: Registry,
    /// Calls of Discover, by handler and gRPC code.
    pub discover_calls: Counters<2>,
    /// From a call of Discover to its first list, by handler.
    pub first_list: Durations<1>,
    /// Discover streams that are open, by handler.
    pub streams: Gauges<1>,
    /// Devices in the newest lists of the open streams, by handler.
    pub devices: Gauges<1>,
    /// Changed lists that were sent, by handler.
    pub lists: Counters<1>,
    /// Lists that were not taken, by handler and what was wrong with them.
    pub refused_lists: Counters<2>,
    /// Steps of components, by handler.
    pub steps: Durations<1>,
    /// Guests that ended, by how.
    pub guests_ended: Counters<1>,
    /// Compiles of modules, by what became of them.
    pub compiles: Durations<1>,
    /// Pulls of images, by what became of them.
    pub pulls: Durations<1>,
    /// What guests wanted to reach and may not, by the pod.
    pub network_denials: Counters<2>,
    /// Events of the machine that guests lost because they did not take them in time.
    pub events_lost: Counters<0>,
    /// Registrations of device plugins, by resource.
    pub plugin_registrations: Counters<1>,
    /// Devices that plugins prepared for containers, by resource.
    pub plugin_allocations: Durations<1>,
    /// Pods that were taken up.
    pub pods_started: Counters<0>,
    /// Containers that were started, by kind.
    pub containers_started: Counters<1>,
    /// Containers that could not be started, by kind.
    pub containers_not_started: Counters<1>,
    /// Pods that the node evicted, by what it was short of.
    pub evictions: Counters<1>,
    /// Requests to the API server, by method and code.
    pub api_requests: Counters<2>,
}

/// What the process has counted.
pub fn counted() -> &'static Counted {
    static COUNTED: LazyLock<Counted> = LazyLock::new(Counted::new);
    &COUNTED
}

/// Bounds of what takes microseconds to seconds, in seconds.
const QUICK: &[f64] = &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Bounds of what takes seconds to minutes.
const SLOW: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

impl Counted {
    fn new() -> Self {
        let mut registry = Registry::default();
        let of = &mut registry;
        Self {
            discover_calls: Counters::new(
                of,
                "akri_krustlet_discover_calls",
                "Calls of Discover that were answered, by gRPC code",
                ["handler", "code"],
            ),
            first_list: Durations::new(
                of,
                "akri_krustlet_first_list_duration_seconds",
                "Time from a call of Discover to its first list",
                ["handler"],
                QUICK,
            ),
            streams: Gauges::new(of, "akri_krustlet_streams", "Discover streams that are open", ["handler"]),
            devices: Gauges::new(
                of,
                "akri_krustlet_devices",
                "Devices in the newest lists of the open Discover streams",
                ["handler"],
            ),
            lists: Counters::new(
                of,
                "akri_krustlet_lists",
                "Lists of devices that differed from the one before, without their repetitions",
                ["handler"],
            ),
            refused_lists: Counters::new(
                of,
                "akri_krustlet_refused_lists",
                "Lists of devices that a guest gave and that break a rule",
                ["handler", "reason"],
            ),
            steps: Durations::new(
                of,
                "akri_krustlet_step_duration_seconds",
                "Time that a component took for a step, waiting for the network included",
                ["handler"],
                QUICK,
            ),
            guests_ended: Counters::new(
                of,
                "akri_krustlet_guests_ended",
                "Guests that ended, by how: exited, failed (another exit code than 0), trapped, out_of_memory, interrupted",
                ["outcome"],
            ),
            compiles: Durations::new(
                of,
                "akri_krustlet_module_compile_duration_seconds",
                "Time that the compile child took for a module",
                ["result"],
                SLOW,
            ),
            pulls: Durations::new(
                of,
                "akri_krustlet_image_pull_duration_seconds",
                "Time that a pull of an image took",
                ["result"],
                SLOW,
            ),
            network_denials: Counters::new(
                of,
                "akri_krustlet_network_denials",
                "What guests wanted to reach or serve and their pods do not grant",
                ["namespace", "pod"],
            ),
            events_lost: Counters::new(
                of,
                "akri_krustlet_events_lost",
                "Events of the machine that guests lost because they did not take them in time",
                [],
            ),
            plugin_registrations: Counters::new(
                of,
                "kubelet_device_plugin_registration",
                "Registrations of device plugins",
                ["resource_name"],
            ),
            plugin_allocations: Durations::new(
                of,
                "kubelet_device_plugin_alloc_duration_seconds",
                "Time that a device plugin took to prepare devices for a container",
                ["resource_name"],
                QUICK,
            ),
            pods_started: Counters::new(of, "kubelet_started_pods", "Pods that were taken up", []),
            containers_started: Counters::new(
                of,
                "kubelet_started_containers",
                "Containers that were started",
                ["container_type"],
            ),
            containers_not_started: Counters::new(
                of,
                "kubelet_started_containers_errors",
                "Containers that could not be started",
                ["container_type"],
            ),
            evictions: Counters::new(
                of,
                "kubelet_evictions",
                "Pods that the node evicted, by what it was short of",
                ["eviction_signal"],
            ),
            api_requests: Counters::new(
                of,
                "rest_client_requests",
                "Requests to the API server, by method and status code; the code is <error> where none came",
                ["method", "code"],
            ),
            registry,
        }
    }

    /// What is counted of a pod goes with it.
    pub fn forget_pod(&self, namespace: &str, pod: &str) {
        self.network_denials.forget(&[namespace, pod]);
    }

    /// What is counted of a handler goes with it.
    pub fn forget_handler(&self, handler: &str) {
        self.streams.forget(&[handler]);
        self.devices.forget(&[handler]);
        self.lists.forget(&[handler]);
        self.first_list.forget(&[handler]);
        self.steps.forget(&[handler]);
        self.discover_calls.forget(&[handler]);
        self.refused_lists.forget(&[handler]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_counted_is_told_in_both_formats_and_bounded() {
        let counted = Counted::new();
        counted.lists.add(["udev"]);
        counted.streams.change(["udev"], 2);
        counted.streams.change(["udev"], -1);
        counted.events_lost.add_many([], 3);
        counted.first_list.observe(["udev"], Duration::from_millis(3));
        for number in 0..2 * MOST_SERIES {
            counted.network_denials.add(["default", &format!("p{number}")]);
        }
        counted.network_denials.add(["default", "p0"]);
        let text = |format| Page::default().text_with(&counted, format);
        let prometheus = text(Format::Prometheus);
        for line in [
            "# TYPE akri_krustlet_lists_total counter",
            "akri_krustlet_lists_total{handler=\"udev\"} 1",
            "akri_krustlet_streams{handler=\"udev\"} 1",
            "akri_krustlet_events_lost_total 3",
            "akri_krustlet_first_list_duration_seconds_bucket{handler=\"udev\",le=\"0.005\"} 1",
            "akri_krustlet_network_denials_total{namespace=\"default\",pod=\"p0\"} 2",
            "akri_krustlet_network_denials_total{namespace=\"(others)\",pod=\"(others)\"} 1000",
        ] {
            assert!(prometheus.lines().any(|other| other == line), "{line}\n{prometheus}");
        }
        assert!(prometheus.lines().count() < MOST_SERIES + 200);
        let open_metrics = text(Format::OpenMetrics);
        assert!(open_metrics.contains("# TYPE akri_krustlet_lists counter\n"), "{open_metrics}");
        assert!(open_metrics.ends_with("# EOF\n"));
        counted.forget_pod("default", "p0");
        assert!(!text(Format::Prometheus).contains("pod=\"p0\""));
        counted.forget_handler("udev");
        counted.streams.change(["udev"], -1);
        assert!(!text(Format::Prometheus).contains("handler=\"udev\""));
    }
}
