//! What the commands print with: tables, progress, times.

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// A table without lines, as kubectl prints.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec());
    table
}

/// The table's text without the space that ends its lines and begins them.
pub(crate) fn text_of(table: &Table) -> String {
    let lines = table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// Shows on a terminal that something is going on; nothing elsewhere.
pub(crate) fn spinner(message: String) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

/// An age as kubectl prints it: 45s, 12m, 3h, 8d.
pub(crate) fn age(since: jiff::Timestamp) -> String {
    let seconds = jiff::Timestamp::now().as_second() - since.as_second();
    match seconds.max(0) {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// The host's name as a node's: lower case.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}

/// A path without `.` and `..`, as it is written: the file need not be there yet.
pub(crate) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// A name as objects have it: `debugEcho` becomes `debug-echo`.
pub(crate) fn plain_name(text: &str) -> String {
    let (mut name, mut is_word) = (String::new(), false);
    for letter in text.chars().take(40) {
        if letter.is_ascii_uppercase() && is_word {
            name.push('-');
        }
        is_word = letter.is_ascii_lowercase();
        match letter.to_ascii_lowercase() {
            letter if letter.is_ascii_alphanumeric() => name.push(letter),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    let name = name.trim_end_matches('-');
    if name.is_empty() { "module".to_owned() } else { name.to_owned() }
}
