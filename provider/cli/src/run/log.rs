//! The node's own log, on standard error.

use anyhow::Context as _;
use std::io::IsTerminal as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// A line each, for people
    #[default]
    Text,
    /// A JSON object each, for programs
    Json,
}

/// What is logged, while the node runs.
#[derive(Clone, Debug)]
pub(super) struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Logs what `level` says from now on.
    pub(super) fn set(&self, level: &str) -> anyhow::Result<()> {
        self.0.reload(filter(level)?).context("the log's level cannot be changed")
    }
}

/// A level of the command line, as it is.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    filter(text).map(|_| text.to_owned()).map_err(|error| format!("{error:#}"))
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(level).with_context(|| format!("{level:?} is no level, and no list of TARGET=LEVEL"))
}

/// Starts the log, and whatever else is told of what happens.
pub(super) fn start(
    format: LogFormat,
    level: &str,
    other: Option<impl Layer<Registry> + Send + Sync>,
) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let is_terminal = std::io::stderr().is_terminal();
    let log = match format {
        LogFormat::Text => {
            let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(is_terminal);
            lines.with_target(false).with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let objects = fmt::layer().with_writer(std::io::stderr).json().flatten_event(true);
            objects.with_current_span(false).with_span_list(false).with_filter(filter).boxed()
        }
    };
    let layers: Vec<_> = [log].into_iter().chain(other.map(Layer::boxed)).collect();
    tracing_subscriber::registry().with(layers).init();
    Ok(LogLevel(handle))
}
