//! What `step` prints.

use super::{End, MOST_LINE, StepArguments};
use crate::discover::{Lists, as_json, default_configuration};
use crate::output::host_name;
use akri_krustlet_discovery::HandlerInfo;
use akri_krustlet_discovery::trial::{Cost, Stepped};
use akri_krustlet_host::one_line;
use akri_krustlet_runtime::log::{LogOptions, LogPrinter, Logs};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What is printed.
pub(super) struct Report {
    is_json: bool,
    lists: Lists,
    pub(super) listed: bool,
    steps: Vec<Value>,
    opened: Value,
    scratch: PathBuf,
}

impl Report {
    pub(super) fn new(arguments: &StepArguments, info: &HandlerInfo, scratch: &Path) -> Self {
        Self {
            is_json: matches!(arguments.output, crate::check::Format::Json),
            lists: Lists::new(info.shared, default_configuration(&info.name), host_name()),
            listed: false,
            steps: Vec::new(),
            opened: Value::Null,
            scratch: scratch.to_owned(),
        }
    }

    pub(super) fn opened(&mut self, cost: Cost) {
        self.opened = cost_json(cost);
        self.line("opened", &cost_text(cost));
    }

    pub(super) fn step(&mut self, number: u32, stepped: &Stepped, cost: Cost) {
        self.line(&format!("step {number}"), &cost_text(cost));
        let mut json = cost_json(cost);
        match stepped {
            Stepped::Found { devices, warning, note, wake_after } => {
                let next = match wake_after {
                    Some(pause) => format!("the next step after {} ms", pause.as_millis()),
                    None => "the next step when something comes that it follows".to_owned(),
                };
                let what = match devices {
                    Some(list) => format!("{} device(s); {next}", list.devices.len()),
                    None => format!("the list as before; {next}"),
                };
                self.line("", &what);
                for (name, text) in [("warning", warning), ("note", note)] {
                    text.iter().for_each(|text| self.line(name, text));
                    json[name] = json!(text);
                }
                json["wakeAfterMs"] = json!(wake_after.map(|pause| pause.as_millis() as u64));
                json["devices"] =
                    json!(devices.as_ref().map(|list| list.devices.iter().map(as_json).collect::<Vec<_>>()));
                if let Some(list) = devices {
                    self.listed = true;
                    if !self.is_json {
                        let _ = self.lists.show(list.devices.clone());
                    }
                }
            }
            Stepped::Unusable(reason) => self.trouble("unusable", reason, &mut json),
            Stepped::Unavailable(reason) => self.trouble("unavailable", reason, &mut json),
            Stepped::Internal(reason) => self.trouble("internal", reason, &mut json),
        }
        if self.is_json {
            self.steps.push(json);
        }
    }

    fn trouble(&self, kind: &str, reason: &str, json: &mut Value) {
        self.line(kind, reason);
        json["error"] = json!({"kind": kind, "message": reason});
    }

    pub(super) fn line(&self, about: &str, what: &str) {
        if !self.is_json {
            println!("{about:13} {}", one_line(what, MOST_LINE));
        }
    }

    /// The log, which is whole now.
    pub(super) fn end(self, end: &End) -> anyhow::Result<()> {
        let mut text = Vec::new();
        let mut printer = LogPrinter::new(false);
        let mut logs = Logs::open(&self.scratch.join("log"), 0, LogOptions::default())?;
        loop {
            let parts = logs.read_batch()?;
            if parts.is_empty() {
                break;
            }
            parts.iter().for_each(|part| printer.print(part, &mut text));
        }
        let text = String::from_utf8_lossy(&text);
        if self.is_json {
            let log: Vec<_> = text.lines().collect();
            let error = match end {
                End::Listed => None,
                End::NoList(message) | End::Refused(message) | End::Early(message) | End::Differs(message) => {
                    Some(message)
                }
            };
            println!(
                "{}",
                serde_json::to_string_pretty(
                    &json!({"opened": self.opened, "steps": self.steps, "log": log, "error": error})
                )?
            );
        } else {
            text.lines().for_each(|line| self.line("log", line));
        }
        Ok(())
    }
}

fn cost_json(cost: Cost) -> Value {
    let milliseconds = (cost.time.as_secs_f64() * 1e6).round() / 1e3;
    json!({"milliseconds": milliseconds, "fuel": cost.fuel, "memoryBytes": cost.memory, "allocations": cost.allocations})
}

fn cost_text(cost: Cost) -> String {
    let Cost { time, fuel, memory, allocations } = cost;
    let fuel = fuel.map(|count| format!(", {count} units of fuel")).unwrap_or_default();
    let allocations = allocations.map(|count| format!(", {count} allocations of the node")).unwrap_or_default();
    format!("{:.3} ms{fuel}, memory {memory} bytes{allocations}", time.as_secs_f64() * 1e3)
}
