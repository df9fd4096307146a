//! What guests were denied, told in the container's log and the node's.

use crate::log::ContainerLog;
use akri_krustlet_host::one_line;
use akri_krustlet_metrics::counted;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A denial is told once in this time.
const TOLD: Duration = Duration::from_secs(60);
/// Different denials that are told of one container in that time.
pub(super) const MOST_TOLD: usize = 32;
/// Letters of what is told.
const MOST_WORDS: usize = 400;

/// Tells of denials: each once in a while, in the container's log and the node's.
#[derive(Debug)]
pub struct Denials {
    container: String,
    log: Option<Arc<ContainerLog>>,
    pub(super) told: Mutex<HashMap<String, (Instant, u64)>>,
}

impl Denials {
    /// Of a container, `namespace/pod/container`.
    pub fn new(container: &str, log: Option<Arc<ContainerLog>>) -> Arc<Self> {
        Arc::new(Self { container: container.to_owned(), log, told: Mutex::default() })
    }

    pub(super) fn tell(&self, what: &str, why: &str) {
        let mut words = self.container.split('/');
        counted().network_denials.add([words.next().unwrap_or_default(), words.next().unwrap_or_default()]);
        // Some of it is a guest's words.
        let what = &one_line(what, MOST_WORDS);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let before = match told.get_mut(what.as_str()) {
            Some((at, more)) if now.duration_since(*at) < TOLD => {
                *more += 1;
                return;
            }
            Some((_, more)) => std::mem::take(more),
            None => 0,
        };
        told.retain(|_, (at, _)| now.duration_since(*at) < TOLD);
        if told.len() >= MOST_TOLD {
            return;
        }
        told.insert(what.clone(), (now, 0));
        drop(told);
        let again = if before > 0 { format!(" ({before} more in the meantime)") } else { String::new() };
        tracing::warn!(container = self.container, "network: {what} denied: {why}{again}");
        if let Some(log) = &self.log {
            log.note(&format!("[akri-krustlet] network: {what} denied: {why}{again}"));
        }
    }
}
