//! The node as a service: it tells systemd when it is ready, reloads and ends, and that it is alive; SIGHUP reloads what can change
//! while it runs.

use super::log::LogLevel;
use super::{RunArguments, network_ceiling};
use crate::config::{self, Settings};
use akri_krustlet_runtime::network::NodeNetwork;
use sd_notify::NotifyState;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

/// The setting that SIGHUP changes, besides the content of the file of the network ceiling; others count from the next start on.
const LIVE: &str = "log-level";

/// The running service.
#[derive(Debug)]
pub(super) struct Service {
    is_ready: Arc<AtomicBool>,
}

impl Service {
    /// Follows the signal. Must be called in a runtime.
    pub(super) fn start(arguments: &RunArguments, level: LogLevel, network: Arc<NodeNetwork>) -> anyhow::Result<Self> {
        let mut hang_up = signal(SignalKind::hangup())?;
        let is_ready = Arc::new(AtomicBool::new(false));
        let started = is_ready.clone();
        let mut reloads = Reloads {
            settings: settings(&arguments.config).unwrap_or_default(),
            ceiling: arguments.network_ceiling.clone(),
            level,
            network,
        };
        tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                let mut told = vec![NotifyState::Reloading];
                told.extend(NotifyState::monotonic_usec_now());
                notify(&told);
                // Files, and no others than at the start.
                reloads = match tokio::task::spawn_blocking(move || reloads.once()).await {
                    Ok(reloads) => reloads,
                    Err(error) => return tracing::error!(%error, "the settings cannot be reloaded any more"),
                };
                if started.load(Ordering::Relaxed) {
                    notify(&[NotifyState::Ready]);
                }
            }
        });
        if let Some(longest) = sd_notify::watchdog_enabled() {
            tokio::spawn(async move {
                let mut ticks = tokio::time::interval(longest / 2);
                loop {
                    ticks.tick().await;
                    notify(&[NotifyState::Watchdog]);
                }
            });
        }
        Ok(Self { is_ready })
    }

    /// The node does what it is there for.
    pub(super) fn is_ready(&self, status: &str) {
        self.is_ready.store(true, Ordering::Relaxed);
        notify(&[NotifyState::Ready, NotifyState::Status(status)]);
    }
}

/// The node is asked to end. Told before anything ends, since the process may be gone at once.
pub(super) fn is_stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd, if it started this process.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd is not told");
    }
}

fn settings(file: &Option<PathBuf>) -> anyhow::Result<Settings> {
    let Some(file) = file else { return Ok(Settings::new()) };
    config::read(&crate::command(), file)
}

struct Reloads {
    /// What the files said at the start.
    settings: Settings,
    /// The file of the start; another one counts from the next start on.
    ceiling: Option<PathBuf>,
    level: LogLevel,
    network: Arc<NodeNetwork>,
}

impl Reloads {
    fn once(mut self) -> Self {
        match self.reload() {
            Ok(later) if later.is_empty() => tracing::info!("the settings were reloaded"),
            Ok(later) => {
                tracing::warn!(
                    "the settings were reloaded; of these, the change counts from the next start on: {}",
                    later.join(", ")
                );
            }
            Err(error) => tracing::error!("the settings cannot be reloaded, those that were known count on: {error:#}"),
        }
        self
    }

    /// Reads everything before it changes anything. Which changed settings take a new start.
    fn reload(&mut self) -> anyhow::Result<Vec<String>> {
        let arguments = crate::run_arguments()?;
        let settings = settings(&arguments.config)?;
        let ceiling = network_ceiling(self.ceiling.as_deref())?;
        // A file that is just being written is no wish to let everything through.
        if ceiling.is_empty() && self.network.has_ceiling() {
            let file = self.ceiling.as_deref().unwrap_or(Path::new("")).display();
            anyhow::bail!(
                "--network-ceiling {file}: it has no rule any more; a start of the node takes that over, a reload does not"
            );
        }
        self.level.set(&arguments.log_level)?;
        self.network.replace_ceiling(ceiling);
        let value = |settings: &Settings, key: &str| settings.get(key).cloned();
        let mut keys: Vec<_> = settings.keys().chain(self.settings.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        keys.retain(|key| value(&settings, key) != value(&self.settings, key) && key != LIVE);
        Ok(keys)
    }
}
