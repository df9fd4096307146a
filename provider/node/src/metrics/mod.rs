//! The node in numbers, for those who watch it: Prometheus, metrics-server, dashboards.
//!
//! # Flow
//! A scrape looks at the pods as they are and makes a page of it: `/metrics` (the node itself, and what it has counted
//! since it began), `/metrics/resource` (what metrics-server reads), `/metrics/cadvisor` (the series of containers that dashboards
//! use), `/stats/summary` (the kubelet's JSON). Nothing is sampled between two scrapes.
//!
//! # Guarantees
//! - Series are bounded by the pods on the node; what was counted is bounded by `akri_krustlet_metrics::MOST_SERIES`.
//! - Names are the kubelet's, cAdvisor's and the process collector's where they have the same thing.

mod cadvisor;
mod container;
mod machine;
mod node;
mod resource;
mod server;
mod summary;

pub use server::{MetricsAddress, MetricsServer, MetricsServerError, Pages};

use crate::container_log::{ContainerLogError, LogRequest};
use crate::overview::{self, Overview};
use crate::services::Services;
use akri_krustlet_metrics::{Format, Page};
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use summary::Before;

/// Tells of a node in numbers.
#[derive(Debug)]
pub struct NodeMetrics {
    services: Arc<Services>,
    /// When the process began, in seconds of Unix time.
    started: f64,
    /// What the last summary was made of.
    before: Mutex<Option<Before>>,
}

impl NodeMetrics {
    pub(crate) fn new(services: Arc<Services>) -> Arc<Self> {
        let started = machine::process_start().unwrap_or_else(machine::now);
        Arc::new(Self { services, started, before: Mutex::default() })
    }

    /// The page of a path, if there is one.
    pub fn page(&self, path: &str, format: Format) -> Option<String> {
        let mut page = Page::default();
        Some(match path {
            "/metrics" => {
                node::tell(&mut page, &self.services, self.started);
                page.text_with_counted(format)
            }
            "/metrics/resource" => {
                resource::tell(&mut page, &container::samples(&self.services));
                page.text(format)
            }
            "/metrics/cadvisor" => {
                cadvisor::tell(&mut page, &container::samples(&self.services));
                page.text(format)
            }
            _ => return None,
        })
    }

    /// What the node is at.
    pub fn overview(&self) -> Overview {
        let process = machine::process();
        Overview::of(&self.services, self.started, process.cpu_seconds, process.resident_bytes as u64)
    }

    /// The newest lines of a container's log.
    pub(crate) async fn log(&self, request: LogRequest) -> Result<String, ContainerLogError> {
        overview::newest_lines(&self.services, request).await
    }

    /// The kubelet's summary. Rates are those since the last one.
    pub fn summary(&self) -> Value {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        summary::summary(&self.services, &mut before, self.started)
    }
}
