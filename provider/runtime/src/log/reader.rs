//! Reading: what `logs` and the node's log endpoint print.

use super::files_of;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Which lines to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only lines of this time or later.
    pub since: Option<Timestamp>,
}

/// One line, its parts joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When its last part was written.
    pub time: Timestamp,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What the guest printed, without the line's end; invalid UTF-8 is replaced.
    pub text: String,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The container has not been started that often, or its log was removed.
    #[error("no log {}", .0.display())]
    Missing(PathBuf),
    /// Reading failed.
    #[error("log {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Lines held at most for `tail`, whatever number was asked for; the files of one restart hold fewer in practice.
const MOST_TAIL: usize = 1 << 20;

/// A position in the log of one restart of a container.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    restart: u32,
    options: LogOptions,
    /// The file being read and its inode.
    current: Option<(BufReader<std::fs::File>, u64)>,
    started: bool,
    partial: String,
    /// Lines that were read for `tail` and not handed out.
    pending: VecDeque<LogLine>,
}

impl Logs {
    /// Opens the log; nothing is read yet.
    pub fn open(directory: &Path, restart: u32, options: LogOptions) -> Result<Self, LogError> {
        let path = directory.join(format!("{restart}.log"));
        if !path.exists() && files_of(directory, restart).len() < 2 {
            return Err(LogError::Missing(path));
        }
        Ok(Self {
            directory: directory.to_owned(),
            restart,
            options,
            current: None,
            started: false,
            partial: String::new(),
            pending: VecDeque::new(),
        })
    }

    /// The lines that are there and have not been read: on the first call as the options say, then what came since.
    pub fn read_available(&mut self) -> Result<Vec<LogLine>, LogError> {
        let mut lines = VecDeque::new();
        let keep = if self.started { MOST_TAIL } else { self.options.tail.unwrap_or(MOST_TAIL).min(MOST_TAIL) };
        for path in self.unread_files() {
            self.read_file(&path, &mut |line| {
                lines.push_back(line);
                if lines.len() > keep {
                    lines.pop_front();
                }
                true
            })?;
        }
        self.started = true;
        Ok(lines.into())
    }

    /// Like [`Logs::read_available`], at most `most` lines of it; an empty answer means that there are no more now. What
    /// `tail` asks for is held in whole first.
    pub fn read_batch(&mut self, most: usize) -> Result<Vec<LogLine>, LogError> {
        if !self.started && self.options.tail.is_some() {
            self.pending = self.read_available()?.into();
        }
        self.started = true;
        let mut lines: Vec<_> = self.pending.drain(..most.min(self.pending.len())).collect();
        if self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
        if !lines.is_empty() {
            return Ok(lines);
        }
        for path in self.unread_files() {
            self.read_file(&path, &mut |line| {
                lines.push(line);
                lines.len() < most
            })?;
            if lines.len() >= most {
                break;
            }
        }
        Ok(lines)
    }

    /// Every file on the first call; later the one that was being read (it may have been rotated) and newer ones.
    fn unread_files(&self) -> Vec<PathBuf> {
        let mut files = files_of(&self.directory, self.restart);
        if let Some((_, inode)) = &self.current {
            let known = files.iter().position(|path| std::fs::metadata(path).is_ok_and(|file| file.ino() == *inode));
            files.drain(..known.unwrap_or(0));
        }
        files
    }

    /// Hands lines to `take` until it has enough.
    fn read_file(&mut self, path: &Path, take: &mut impl FnMut(LogLine) -> bool) -> Result<(), LogError> {
        let failed = |source| LogError::Io { path: path.to_owned(), source };
        let inode = match std::fs::metadata(path) {
            Ok(metadata) => metadata.ino(),
            // Rotated away, or not yet made again after a rotation.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut file = match self.current.take() {
            Some((file, of)) if of == inode => file,
            _ => match std::fs::File::open(path) {
                Ok(file) => BufReader::new(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(failed(error)),
            },
        };
        let mut line = Vec::new();
        loop {
            let start = file.stream_position().map_err(failed)?;
            line.clear();
            file.read_until(b'\n', &mut line).map_err(failed)?;
            if line.last() != Some(&b'\n') {
                // Being written: read again from its start next time.
                file.seek(std::io::SeekFrom::Start(start)).map_err(failed)?;
                break;
            }
            if let Some(line) = self.parse(&line)
                && !take(line)
            {
                break;
            }
        }
        self.current = Some((file, inode));
        Ok(())
    }

    fn parse(&mut self, line: &[u8]) -> Option<LogLine> {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n")?);
        let mut fields = line.splitn(4, ' ');
        let time: Timestamp = fields.next()?.parse().ok()?;
        let (stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?);
        self.partial.push_str(text);
        if tag == "P" {
            return None;
        }
        let text = std::mem::take(&mut self.partial);
        let wanted = self.options.since.is_none_or(|since| time >= since);
        wanted.then(|| LogLine { time, stream: stream.to_owned(), text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{ContainerLog, LogLimits};

    fn texts(lines: Vec<LogLine>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_reader_follows_over_rotations_and_honours_tail() {
        let directory = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_size: 200, files: 50, ..LogLimits::default() };
        let log = ContainerLog::create(directory.path(), 0, limits).unwrap();
        for number in 0..10 {
            log.note(&format!("{number}"));
        }
        let options = LogOptions { tail: Some(2), since: None };
        let mut logs = Logs::open(directory.path(), 0, options).unwrap();
        assert_eq!(texts(logs.read_available().unwrap()), ["8", "9"]);
        assert!(logs.read_available().unwrap().is_empty());
        let mut followed = Vec::new();
        for number in 10..40 {
            log.note(&format!("{number}"));
            if number % 7 == 0 {
                followed.extend(texts(logs.read_available().unwrap()));
            }
        }
        followed.extend(texts(logs.read_available().unwrap()));
        assert_eq!(followed, (10..40).map(|number| number.to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_hands_out_batches_of_any_log() {
        let directory = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_size: 200, files: 50, ..LogLimits::default() };
        let log = ContainerLog::create(directory.path(), 0, limits).unwrap();
        (0..20).for_each(|number| log.note(&format!("{number}")));
        for (tail, first) in [(None, 0), (Some(15), 5), (Some(usize::MAX), 0)] {
            let mut logs = Logs::open(directory.path(), 0, LogOptions { tail, since: None }).unwrap();
            let mut read = Vec::new();
            loop {
                let batch = texts(logs.read_batch(3).unwrap());
                assert!(batch.len() <= 3);
                if batch.is_empty() {
                    break;
                }
                read.extend(batch);
            }
            assert_eq!(read, (first..20).map(|number| number.to_string()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn since_leaves_out_older_lines_and_a_missing_log_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let log = ContainerLog::create(directory.path(), 0, LogLimits::default()).unwrap();
        log.note("now");
        let later = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        let options = LogOptions { tail: None, since: Some(later) };
        assert!(Logs::open(directory.path(), 0, options).unwrap().read_available().unwrap().is_empty());
        let missing = Logs::open(directory.path(), 1, LogOptions::default()).unwrap_err();
        assert!(missing.to_string().ends_with("1.log"), "{missing}");
    }
}
