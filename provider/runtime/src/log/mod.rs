//! Container logs: files in the layout and format that a kubelet's tools expect.
//!
//! `<directory>/<restart>.log`, lines `<RFC 3339 time> <stdout|stderr> <F|P> <text>`, P for a part of a line longer than
//! 16 KiB, and for a last line that the guest did not end. A file of 10 MiB is renamed to `<restart>.log.<time>`; five files are kept for each restart.

mod reader;
mod writer;

pub use reader::{LogError, LogOptions, LogPart, LogPrinter, Logs};
pub use writer::{ContainerLog, LogLimits, LogStream};

/// Which of a guest's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn named(name: &str) -> Option<Self> {
        [Self::Stdout, Self::Stderr].into_iter().find(|stream| stream.name() == name)
    }

    /// `stdout` or `stderr`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The files of one restart of a container, oldest first, the one being written last.
fn files_of(directory: &std::path::Path, restart: u32) -> Vec<std::path::PathBuf> {
    let current = format!("{restart}.log");
    let rotated_prefix = format!("{current}.");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&rotated_prefix))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.push(directory.join(current));
    files
}
