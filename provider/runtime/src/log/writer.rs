//! Writing: bounded in rate and in size, whatever the guest prints.

use super::{Stream, files_of};
use akri_krustlet_host::TokenBucket;
use bytes::Bytes;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

/// Bounds of a container's log.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Bytes after which a file is rotated. Default 10 MiB, as a kubelet's `containerLogMaxSize`.
    pub file_size: u64,
    /// Files kept for each restart. Default 5, as a kubelet's `containerLogMaxFiles`.
    pub files: usize,
    /// Bytes per second that a container may print; above it, the guest waits in its write. Default 1 MiB.
    pub rate: u32,
    /// Several guests write it: a last line that one does not end is ended, so that the next one's does not go on with it.
    pub many_guests: bool,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { file_size: 10 << 20, files: 5, rate: 1 << 20, many_guests: false }
    }
}

/// Longest line; a longer one is written in parts.
const LINE: usize = 16 << 10;
/// Bytes before a line's text: time, stream, tag.
const LINE_HEAD: usize = 40;
/// Bytes that a guest may hand over in one write.
const PERMIT: usize = 16 << 10;

/// The log of one restart of a container, written by all of its guests.
#[derive(Debug)]
pub struct ContainerLog {
    directory: PathBuf,
    restart: u32,
    limits: LogLimits,
    /// Bytes.
    rate: Mutex<TokenBucket>,
    file: Mutex<FileState>,
}

#[derive(Debug, Default)]
struct FileState {
    lost: u64,
}

impl ContainerLog {
    /// Makes `<directory>/<restart>.log`, and the directory if it is missing. Of earlier restarts only the last one's log is
    /// kept, as by a kubelet. No file stays open between lines.
    pub fn create(directory: &Path, restart: u32, limits: LogLimits) -> std::io::Result<Arc<Self>> {
        std::fs::create_dir_all(directory)?;
        let log = Self {
            directory: directory.to_owned(),
            restart,
            limits,
            rate: Mutex::new(TokenBucket::new(f64::from(limits.rate), f64::from(limits.rate))),
            file: Mutex::default(),
        };
        log.open()?;
        log.remove_older()?;
        Ok(Arc::new(log))
    }

    /// A stream for one guest. Its unfinished last line is written when it is dropped.
    pub fn stream(self: &Arc<Self>, stream: Stream) -> LogStream {
        LogStream { log: self.clone(), stream }
    }

    /// Lines that a guest says, as `stderr`, when the log's rate allows it.
    pub(crate) async fn say(self: &Arc<Self>, text: &str) {
        while self.allowed() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stream(Stream::Stderr).lines().spend_and_print(text.as_bytes());
    }

    /// A line of the node's own in the container's log, as `stderr`.
    pub fn note(&self, text: &str) {
        let mut lines = Vec::new();
        push_line(&mut lines, Stream::Stderr, 'F', text.as_bytes());
        self.append(&lines);
    }

    fn remove_older(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let restart = name.to_string_lossy().split('.').next().and_then(|restart| restart.parse::<u32>().ok());
            if restart.is_some_and(|restart| restart + 1 < self.restart) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        self.directory.join(format!("{}.log", self.restart))
    }

    fn open(&self) -> std::io::Result<std::fs::File> {
        use std::os::unix::fs::OpenOptionsExt as _;
        std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(self.path())
    }

    /// Appends complete lines. A log that cannot be written (disk full) loses lines, not the guest; how many is said in
    /// the log once it can be written again.
    fn append(&self, lines: &[u8]) {
        let mut state = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.open().and_then(|mut file| {
            if state.lost > 0 {
                let mut note = Vec::new();
                let text = format!("[{} bytes of the log were lost: it could not be written]", state.lost);
                push_line(&mut note, Stream::Stderr, 'F', text.as_bytes());
                file.write_all(&note)?;
                state.lost = 0;
            }
            file.write_all(lines)?;
            Ok(file.metadata()?.len())
        });
        match written {
            Ok(size) if size >= self.limits.file_size => self.rotate(),
            Ok(_) => {}
            Err(error) => {
                if state.lost == 0 {
                    tracing::warn!(path = %self.path().display(), %error, "cannot write a container's log");
                }
                state.lost += lines.len() as u64;
            }
        }
    }

    fn rotate(&self) {
        let path = self.path();
        let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f");
        if let Err(error) = std::fs::rename(&path, format!("{}.{time}", path.display())) {
            tracing::warn!(path = %path.display(), %error, "cannot rotate a container's log");
            return;
        }
        let files = files_of(&self.directory, self.restart);
        for old in files.iter().take(files.len().saturating_sub(self.limits.files.max(1))) {
            let _ = std::fs::remove_file(old);
        }
    }

    fn allowed(&self) -> usize {
        let bytes = self.rate.lock().unwrap_or_else(PoisonError::into_inner).available();
        // Less than a page is not worth a turn of the guest.
        if bytes < 4096.0_f64.min(f64::from(self.limits.rate)) { 0 } else { (bytes as usize).min(PERMIT) }
    }

    fn spend(&self, bytes: usize) {
        self.rate.lock().unwrap_or_else(PoisonError::into_inner).spend(bytes as f64);
    }
}

fn push_line(lines: &mut Vec<u8>, stream: Stream, tag: char, text: &[u8]) {
    let _ = write!(lines, "{:.9} {} {tag} ", jiff::Timestamp::now(), stream.name());
    lines.extend_from_slice(text);
    lines.push(b'\n');
}

/// One output of one guest.
#[derive(Debug)]
pub struct LogStream {
    log: Arc<ContainerLog>,
    stream: Stream,
}

impl LogStream {
    fn lines(&self) -> LineStream {
        LineStream { log: self.log.clone(), stream: self.stream, unfinished: Vec::new(), permit: 0 }
    }
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn async_stream(&self) -> Box<dyn tokio::io::AsyncWrite + Send + Sync> {
        // Only WASI 0.3 asks for this form, and the node does not link it.
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.lines())
    }
}

/// Splits what a guest prints into lines.
struct LineStream {
    log: Arc<ContainerLog>,
    stream: Stream,
    unfinished: Vec<u8>,
    /// Bytes that the guest may write since it asked.
    permit: usize,
}

impl LineStream {
    fn spend_and_print(&mut self, bytes: &[u8]) {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        self.log.spend(bytes.len() + lines * LINE_HEAD);
        self.print(bytes);
    }

    fn print(&mut self, bytes: &[u8]) {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            self.unfinished.extend_from_slice(text);
            while self.unfinished.len() > LINE {
                let rest = self.unfinished.split_off(LINE);
                push_line(&mut lines, self.stream, 'P', &self.unfinished);
                self.unfinished = rest;
            }
            if ends {
                push_line(&mut lines, self.stream, 'F', &self.unfinished);
                // Frees what one long line took: a thousand idle guests would keep it for days.
                self.unfinished = Vec::new();
            }
        }
        if !lines.is_empty() {
            self.log.append(&lines);
        }
    }
}

#[async_trait::async_trait]
impl Pollable for LineStream {
    async fn ready(&mut self) {
        while self.log.allowed() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl OutputStream for LineStream {
    /// A component may call it without having asked how much it may write.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let Some(left) = self.permit.checked_sub(bytes.len()) else {
            return Err(StreamError::trap("more was written to a stream than it takes now"));
        };
        self.permit = left;
        self.spend_and_print(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.permit = self.log.allowed();
        Ok(self.permit)
    }
}

impl Drop for LineStream {
    fn drop(&mut self) {
        if !self.unfinished.is_empty() {
            let mut line = Vec::new();
            push_line(&mut line, self.stream, if self.log.limits.many_guests { 'F' } else { 'P' }, &self.unfinished);
            self.log.append(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogOptions, Logs};
    use tokio::time::Instant;

    fn text_of(directory: &Path, restart: u32) -> Vec<String> {
        let mut logs = Logs::open(directory, restart, LogOptions::default()).unwrap();
        logs.read_batch().unwrap().into_iter().map(|part| String::from_utf8(part.text).unwrap()).collect()
    }

    #[test]
    fn lines_have_time_stream_and_tag_and_long_ones_are_written_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let log = ContainerLog::create(directory.path(), 3, LogLimits::default()).unwrap();
        let mut stdout = log.stream(Stream::Stdout).lines();
        stdout.print(b"one\ntw");
        stdout.print(b"o\n");
        stdout.print(&[b'x'; LINE + 5]);
        drop(stdout);
        let file = std::fs::read_to_string(directory.path().join("3.log")).unwrap();
        let lines: Vec<_> = file.lines().map(|line| line.splitn(4, ' ').collect::<Vec<_>>()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[0][0].parse::<jiff::Timestamp>().is_ok(), "{}", lines[0][0]);
        assert_eq!(lines[0][1..], ["stdout", "F", "one"]);
        assert_eq!(lines[1][1..], ["stdout", "F", "two"]);
        assert_eq!((lines[2][2], lines[2][3].len()), ("P", LINE));
        assert_eq!(lines[3][1..], ["stdout", "P", "xxxxx"]);
        let of_many = LogLimits { many_guests: true, ..LogLimits::default() };
        let log = ContainerLog::create(directory.path(), 4, of_many).unwrap();
        log.stream(Stream::Stderr).lines().print(b"unfinished");
        let file = std::fs::read_to_string(directory.path().join("4.log")).unwrap();
        assert!(file.ends_with(" stderr F unfinished\n"), "{file}");
    }

    #[test]
    fn a_log_is_rotated_and_keeps_its_newest_files() {
        let directory = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_size: 250, files: 3, ..LogLimits::default() };
        let log = ContainerLog::create(directory.path(), 0, limits).unwrap();
        for number in 0..20 {
            log.note(&format!("line {number:>60}"));
        }
        let files = std::fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(files, 3);
        assert!(text_of(directory.path(), 0).last().unwrap().ends_with("19"));
    }

    #[test]
    fn of_earlier_restarts_the_last_ones_log_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        for restart in 0..12 {
            ContainerLog::create(directory.path(), restart, LogLimits::default()).unwrap().note("x");
        }
        let mut names: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["10.log", "11.log"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_waits_for_its_rate() {
        let directory = tempfile::tempdir().unwrap();
        let limits = LogLimits { rate: 64 << 10, ..LogLimits::default() };
        let log = ContainerLog::create(directory.path(), 0, limits).unwrap();
        let mut stdout = log.stream(Stream::Stdout).lines();
        let mut written = 0;
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            stdout.ready().await;
            let permit = stdout.check_write().unwrap();
            stdout.write(Bytes::from(vec![b'\n'; permit.min(100)])).unwrap();
            written += permit.min(100);
        }
        // Each byte was a line.
        let charged = written * (1 + LINE_HEAD);
        assert!((600 << 10..=(11 * 64 + 8) << 10).contains(&charged), "{charged}");
    }
}
