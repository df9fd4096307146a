//! A page of metrics: how things are at the moment of a scrape.

use crate::series::Labels;
use crate::{Counted, counted};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;

/// The formats in which metrics are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What a client takes, by its header `Accept`: OpenMetrics if it names it.
    pub fn accepted(accept: Option<&str>) -> Self {
        let names_open_metrics =
            |accept: &str| accept.split(',').any(|one| one.trim().starts_with("application/openmetrics-text"));
        if accept.is_some_and(names_open_metrics) { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its name in HTTP.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Metrics of the moment. Each is told once, with all of its series.
#[derive(Debug, Default)]
pub struct Page {
    registry: Registry,
    gauges: HashMap<&'static str, Family<Labels, Gauge<f64, AtomicU64>>>,
    counters: HashMap<&'static str, Family<Labels, Counter<f64, AtomicU64>>>,
}

impl Page {
    /// A value.
    pub fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&'static str, &str)], value: f64) {
        let family = self.gauges.entry(name).or_insert_with(|| registered(&mut self.registry, name, help));
        family.get_or_create(&owned(labels)).set(value);
    }

    /// A value that only grows; the formats add `_total` to its name.
    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&'static str, &str)], value: f64) {
        let family = self.counters.entry(name).or_insert_with(|| registered(&mut self.registry, name, help));
        family.get_or_create(&owned(labels)).inc_by(value);
    }

    /// The page alone.
    pub fn text(&self, format: Format) -> String {
        encode(&[&self.registry], format)
    }

    /// The page, after what the process has counted.
    pub fn text_with_counted(&self, format: Format) -> String {
        self.text_with(counted(), format)
    }

    pub(crate) fn text_with(&self, counted: &Counted, format: Format) -> String {
        encode(&[&counted.registry, &self.registry], format)
    }
}

/// A new metric of the page.
fn registered<M: Default>(registry: &mut Registry, name: &str, help: &str) -> Family<Labels, M>
where
    Family<Labels, M>: Metric + Clone,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

fn owned(labels: &[(&'static str, &str)]) -> Labels {
    labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

fn encode(registries: &[&Registry], format: Format) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    for registry in registries {
        let _ = match format {
            Format::Prometheus => prometheus_text::encode(&mut page, registry),
            Format::OpenMetrics => text::encode_registry(&mut page, registry),
        };
    }
    if format == Format::OpenMetrics {
        let _ = text::encode_eof(&mut page);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_takes() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        for accept in [None, Some("*/*"), Some("text/plain")] {
            assert_eq!(Format::accepted(accept).content_type(), "text/plain; version=0.0.4; charset=utf-8");
        }
    }

    #[test]
    fn a_metric_is_told_once_with_all_its_series() {
        let mut page = Page::default();
        for (pod, value) in [("a", 1.5), ("b", 2.0)] {
            page.gauge("pod_memory_working_set_bytes", "Memory", &[("pod", pod)], value);
            page.counter("pod_cpu_usage_seconds", "CPU", &[("pod", pod)], value);
        }
        let text = page.text(Format::Prometheus);
        assert_eq!(text.matches("# TYPE").count(), 2, "{text}");
        assert!(text.contains("pod_memory_working_set_bytes{pod=\"a\"} 1.5\n"), "{text}");
        assert!(text.contains("pod_cpu_usage_seconds_total{pod=\"b\"} 2.0\n"), "{text}");
    }
}
