//! Reading: what `logs` and the node's log endpoint print.
//!
//! # Guarantees
//! - However long a line is, and however many lines are asked for, little of the log is held.
//! - Text is as the guest wrote it, byte for byte.

use super::{Stream, files_of};
use jiff::Timestamp;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Which lines to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogOptions {
    /// Only the last lines.
    pub tail: Option<usize>,
    /// Only lines of this time or later.
    pub since: Option<Timestamp>,
}

/// A line, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// When it was written.
    pub time: Timestamp,
    /// Where the guest wrote it.
    pub stream: Stream,
    /// What the guest wrote, without the line's end.
    pub text: Vec<u8>,
    /// The line ends here.
    pub ends_line: bool,
}

/// Prints parts as a kubelet does: a time where a line begins, if that is asked for.
#[derive(Debug, Default)]
pub struct LogPrinter {
    /// With the time of each line.
    pub timestamps: bool,
    in_line: bool,
}

impl LogPrinter {
    /// One that prints times or not.
    pub fn new(timestamps: bool) -> Self {
        Self { timestamps, in_line: false }
    }

    /// The text of a part, its line's end included.
    pub fn print(&mut self, part: &LogPart, out: &mut Vec<u8>) {
        use std::io::Write as _;
        if self.timestamps && !self.in_line {
            let _ = write!(out, "{:.9} ", part.time);
        }
        out.extend_from_slice(&part.text);
        if part.ends_line {
            out.push(b'\n');
        }
        self.in_line = !part.ends_line;
    }
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

/// Bytes of text that are handed out at once, more or less.
const BATCH: usize = 256 << 10;
/// Bytes of a file that are looked at together when its end is looked for.
const BLOCK: usize = 64 << 10;
/// Time, stream and tag have no more bytes.
const HEAD: usize = 64;
/// Longest line of a file that is read: a part and its head. What is longer is none of ours.
const MOST_LINE: u64 = 64 << 10;

/// A position in the log of one restart of a container.
#[derive(Debug)]
pub struct Logs {
    directory: PathBuf,
    restart: u32,
    options: LogOptions,
    /// The file being read and its inode.
    current: Option<(BufReader<std::fs::File>, u64)>,
    started: bool,
}

impl Logs {
    /// Opens the log; nothing is read yet.
    pub fn open(directory: &Path, restart: u32, options: LogOptions) -> Result<Self, LogError> {
        let path = directory.join(format!("{restart}.log"));
        if !path.exists() && files_of(directory, restart).len() < 2 {
            return Err(LogError::Missing(path));
        }
        Ok(Self { directory: directory.to_owned(), restart, options, current: None, started: false })
    }

    /// What is there and has not been read, at most a batch of it; an empty answer means that there is no more now.
    pub fn read_batch(&mut self) -> Result<Vec<LogPart>, LogError> {
        if !std::mem::replace(&mut self.started, true)
            && let Some(lines) = self.options.tail
        {
            self.seek_to_tail(lines)?;
        }
        let mut parts = Vec::new();
        let mut bytes = 0;
        for path in self.unread_files() {
            self.read_file(&path, &mut |part: LogPart| {
                bytes += part.text.len() + HEAD;
                parts.push(part);
                bytes < BATCH
            })?;
            if bytes >= BATCH {
                break;
            }
        }
        Ok(parts)
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

    /// Goes to where the last so many lines begin.
    fn seek_to_tail(&mut self, lines: usize) -> Result<(), LogError> {
        let (mut left, mut is_newest) = (lines, true);
        for path in files_of(&self.directory, self.restart).into_iter().rev() {
            let failed = |source| LogError::Io { path: path.clone(), source };
            let Some((mut file, inode)) = open(&path)? else { continue };
            // If there is none: all of this file, and some of the one before.
            if let Some(start) = start_of_tail(&file, &mut left, &mut is_newest).map_err(failed)? {
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                self.current = Some((BufReader::new(file), inode));
                return Ok(());
            }
        }
        Ok(())
    }

    /// Hands parts to `take` until it has enough.
    fn read_file(&mut self, path: &Path, take: &mut impl FnMut(LogPart) -> bool) -> Result<(), LogError> {
        let failed = |source| LogError::Io { path: path.to_owned(), source };
        let inode = match std::fs::metadata(path) {
            Ok(metadata) => metadata.ino(),
            // Rotated away, or not yet made again after a rotation.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut file = match self.current.take() {
            Some((file, of)) if of == inode => file,
            _ => match open(path)? {
                Some((file, _)) => BufReader::new(file),
                None => return Ok(()),
            },
        };
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = file.by_ref().take(MOST_LINE).read_until(b'\n', &mut line).map_err(failed)?;
            if line.last() != Some(&b'\n') && (read as u64) < MOST_LINE {
                // Being written: read again from its start next time.
                file.seek_relative(-(read as i64)).map_err(failed)?;
                break;
            }
            if let Some(part) = self.parse(&line)
                && !take(part)
            {
                break;
            }
        }
        self.current = Some((file, inode));
        Ok(())
    }

    fn parse(&self, line: &[u8]) -> Option<LogPart> {
        let line = line.strip_suffix(b"\n")?;
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let (time, stream, tag) = (text()?, text()?, text()?);
        let time: Timestamp = time.parse().ok()?;
        let stream = Stream::named(stream)?;
        let wanted = self.options.since.is_none_or(|since| time >= since);
        let text = fields.next()?.to_vec();
        wanted.then(|| LogPart { time, stream, text, ends_line: tag == "F" })
    }
}

/// A file and its inode; none if it is not there any more.
fn open(path: &Path) -> Result<Option<(std::fs::File, u64)>, LogError> {
    let opened = std::fs::File::open(path).and_then(|file| {
        let inode = file.metadata()?.ino();
        Ok((file, inode))
    });
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LogError::Io { path: path.to_owned(), source }),
    }
}

/// Where the last `left` lines of a file begin; if it has fewer, those that it has are taken off. Reads from the end. A line that
/// is still being written, in parts, counts, which only the newest part of a log can belong to.
fn start_of_tail(file: &std::fs::File, left: &mut usize, is_newest: &mut bool) -> std::io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    let mut block = vec![0; BLOCK + HEAD];
    let (mut end, mut start) = (length, length);
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let size = usize::try_from((end - begin + HEAD as u64).min(length - begin)).unwrap_or(0);
        file.read_exact_at(&mut block[..size], begin)?;
        let starts = (0..usize::try_from(end - begin).unwrap_or(0)).rev();
        for at in starts {
            let offset = begin + at as u64;
            let begins = offset == 0 || (at > 0 && block[at - 1] == b'\n') || (at == 0 && is_end(file, offset)?);
            if !begins {
                continue;
            }
            let ends_line = block[at..size.min(at + HEAD)].split(|byte| *byte == b' ').nth(2) == Some(b"F");
            if std::mem::take(is_newest) || ends_line {
                if *left == 0 {
                    return Ok(Some(start));
                }
                *left -= 1;
            }
            start = offset;
        }
        end = begin;
    }
    Ok(None)
}

/// A line ends right before this place.
fn is_end(file: &std::fs::File, offset: u64) -> std::io::Result<bool> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset - 1)?;
    Ok(byte[0] == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{ContainerLog, LogLimits};

    /// Whole lines.
    fn texts(parts: Vec<LogPart>) -> Vec<String> {
        let mut printed = Vec::new();
        let mut printer = LogPrinter::default();
        parts.iter().for_each(|part| printer.print(part, &mut printed));
        String::from_utf8_lossy(&printed).lines().map(str::to_owned).collect()
    }

    fn all(logs: &mut Logs) -> Vec<LogPart> {
        let mut all = Vec::new();
        loop {
            let batch = logs.read_batch().unwrap();
            if batch.is_empty() {
                return all;
            }
            all.extend(batch);
        }
    }

    fn numbers(of: std::ops::Range<usize>) -> Vec<String> {
        of.map(|number| number.to_string()).collect()
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
        assert_eq!(texts(all(&mut logs)), ["8", "9"]);
        assert!(logs.read_batch().unwrap().is_empty());
        let mut followed = Vec::new();
        for number in 10..40 {
            log.note(&format!("{number}"));
            if number % 7 == 0 {
                followed.extend(texts(all(&mut logs)));
            }
        }
        followed.extend(texts(all(&mut logs)));
        assert_eq!(followed, numbers(10..40));
    }

    #[test]
    fn any_number_of_last_lines_can_be_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_size: 200, files: 50, ..LogLimits::default() };
        let log = ContainerLog::create(directory.path(), 0, limits).unwrap();
        (0..20).for_each(|number| log.note(&format!("{number}")));
        for tail in (0..=22).chain([usize::MAX]) {
            let options = LogOptions { tail: Some(tail), since: None };
            let mut logs = Logs::open(directory.path(), 0, options).unwrap();
            assert_eq!(texts(all(&mut logs)), numbers(20 - tail.min(20)..20), "{tail}");
        }
    }

    #[test]
    fn the_last_lines_are_found_in_large_files_with_lines_in_parts() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = String::new();
        let mut expected = Vec::new();
        for number in 0..300 {
            let text = format!("{number} ").repeat(1 + (number * 7) % 1500);
            let parts: Vec<_> = text.as_bytes().chunks(1000).collect();
            for (index, part) in parts.iter().enumerate() {
                let tag = if index + 1 == parts.len() { "F" } else { "P" };
                let part = std::str::from_utf8(part).unwrap();
                file.push_str(&format!("2026-01-01T00:00:00.000000000Z stdout {tag} {part}\n"));
            }
            expected.push(text);
        }
        let head = "2026-01-01T00:00:00.000000000Z stdout";
        file.push_str(&format!("{head} P unfin\n{head} P ished\n"));
        expected.push("unfinished".to_owned());
        std::fs::write(directory.path().join("0.log"), file).unwrap();
        for tail in [1, 2, 3, 17, 100, 299, 300, 301, 302] {
            let options = LogOptions { tail: Some(tail), since: None };
            let mut logs = Logs::open(directory.path(), 0, options).unwrap();
            let lines = texts(all(&mut logs));
            assert!(lines == expected[301 - tail.min(301)..], "{tail}: {} lines", lines.len());
        }
    }

    #[test]
    fn bytes_are_as_they_were_written_and_long_lines_come_in_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let mut file = b"2026-01-01T00:00:00.000000000Z stdout P a\xff\xc3\n".to_vec();
        file.extend_from_slice(b"2026-01-01T00:00:00.000000000Z stdout F \xa4 b\n");
        for _ in 0..1000 {
            file.extend_from_slice(b"2026-01-01T00:00:01.000000000Z stderr P ");
            file.extend(std::iter::repeat_n(b'x', 16 << 10));
            file.push(b'\n');
        }
        std::fs::write(directory.path().join("0.log"), &file).unwrap();
        let mut logs = Logs::open(directory.path(), 0, LogOptions::default()).unwrap();
        let first = logs.read_batch().unwrap();
        let bytes: usize = first.iter().map(|part| part.text.len()).sum();
        assert!((BATCH / 2..=BATCH + (16 << 10)).contains(&bytes), "{bytes}");
        let mut printed = Vec::new();
        let mut printer = LogPrinter::new(true);
        first[..3].iter().for_each(|part| printer.print(part, &mut printed));
        assert!(
            printed.starts_with(b"2026-01-01T00:00:00.000000000Z a\xff\xc3\xa4 b\n2026-01-01T00:00:01.000000000Z xxx")
        );
        assert_eq!(all(&mut logs).len() + first.len(), 1002);
    }

    #[test]
    fn since_leaves_out_older_lines_and_a_missing_log_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let log = ContainerLog::create(directory.path(), 0, LogLimits::default()).unwrap();
        log.note("now");
        let later = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        let options = LogOptions { tail: None, since: Some(later) };
        assert!(Logs::open(directory.path(), 0, options).unwrap().read_batch().unwrap().is_empty());
        let missing = Logs::open(directory.path(), 1, LogOptions::default()).unwrap_err();
        assert!(missing.to_string().ends_with("1.log"), "{missing}");
    }
}
