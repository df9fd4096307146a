//! One layer of an image: a tar archive, compressed or not, read as a stream that is paid from a budget.

use crate::layout::LayoutError;
use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Bytes of headers between two files that hold long names and the like; ordinary tools write some hundred.
const MOST_EXTENSION: u64 = 64 << 10;
/// A whole image may unpack to as many times the largest module.
const UNPACKED: u64 = 4;

/// What all layers of an image together may unpack to, and whether anybody still waits for it.
#[derive(Clone)]
pub(super) struct Budget<'a> {
    left: Rc<Cell<u64>>,
    most: u64,
    is_wanted: &'a dyn Fn() -> bool,
}

impl<'a> Budget<'a> {
    pub(super) fn new(limit: u64, is_wanted: &'a dyn Fn() -> bool) -> Self {
        // Small modules may come with large neighbours.
        let most = limit.saturating_mul(UNPACKED).max(1 << 20);
        Self { left: Rc::new(Cell::new(most)), most, is_wanted }
    }
}

/// A layer's content, paid from the budget.
struct Paid<'a, R> {
    inner: R,
    budget: Budget<'a>,
}

impl<R: Read> Read for Paid<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !(self.budget.is_wanted)() {
            return Err(std::io::Error::other("nobody waits for it any more"));
        }
        let read = self.inner.read(buffer)?;
        let Some(left) = self.budget.left.get().checked_sub(read as u64) else {
            let most = self.budget.most >> 20;
            return Err(std::io::Error::other(format!("its layers unpack to more than {most} MiB")));
        };
        self.budget.left.set(left);
        Ok(read)
    }
}

/// The content of all frames of a file, one after the other; some tools make many, and some that hold nothing.
struct ZstdFrames<R> {
    file: R,
    decoder: ruzstd::decoding::FrameDecoder,
    is_in_frame: bool,
}

impl<R: Read> ZstdFrames<R> {
    fn new(file: R) -> Self {
        Self { file, decoder: ruzstd::decoding::FrameDecoder::new(), is_in_frame: false }
    }

    /// False at the end of the file.
    fn begin_frame(&mut self) -> std::io::Result<bool> {
        use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError as Header};
        loop {
            match self.decoder.reset(&mut self.file) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(Header::SkipFrame { length, .. })) => {
                    std::io::copy(&mut (&mut self.file).take(length.into()), &mut std::io::sink())?;
                }
                Err(FrameDecoderError::ReadFrameHeaderError(Header::MagicNumberReadError(_))) => return Ok(false),
                Err(error) => return Err(std::io::Error::other(error.to_string())),
            }
        }
    }
}

impl<R: Read> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        use ruzstd::decoding::BlockDecodingStrategy::UptoBytes;
        loop {
            if !self.is_in_frame {
                self.is_in_frame = self.begin_frame()?;
                if !self.is_in_frame {
                    return Ok(0);
                }
            }
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let decoded = self.decoder.decode_blocks(&mut self.file, UptoBytes(buffer.len().max(1)));
                decoded.map_err(|error| std::io::Error::other(error.to_string()))?;
            }
            let read = self.decoder.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            self.is_in_frame = !self.decoder.is_finished();
        }
    }
}

pub(super) fn failed(error: std::io::Error) -> LayoutError {
    LayoutError::Archive(error.to_string())
}

pub(super) fn magic(path: &Path) -> Result<Vec<u8>, LayoutError> {
    let mut magic = Vec::new();
    File::open(path).map_err(failed)?.take(4).read_to_end(&mut magic).map_err(failed)?;
    Ok(magic)
}

/// Opens a layer, however it is compressed: what its media type says is often wrong.
pub(super) fn open<'a>(layer: &Path, budget: &Budget<'a>) -> Result<tar::Archive<Box<dyn Read + 'a>>, LayoutError> {
    let magic = magic(layer)?;
    let file = BufReader::new(File::open(layer).map_err(failed)?);
    let budget = budget.clone();
    Ok(tar::Archive::new(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(Paid { inner: flate2::read::MultiGzDecoder::new(file), budget }),
        // A frame that is skipped may come first.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            Box::new(Paid { inner: ZstdFrames::new(file), budget })
        }
        _ => Box::new(Paid { inner: file, budget }),
    }))
}

/// Names that are too long for a file's header, and so come before it.
#[derive(Debug, Default)]
pub(super) struct LongNames {
    pub(super) path: Option<PathBuf>,
    pub(super) target: Option<PathBuf>,
}

impl LongNames {
    /// Takes what is no file but tells of the next one; false if it is a file.
    pub(super) fn take(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<bool, LayoutError> {
        let kind = entry.header().entry_type();
        let is_pax = kind.is_pax_local_extensions() || kind.is_pax_global_extensions();
        if !kind.is_gnu_longname() && !kind.is_gnu_longlink() && !is_pax {
            return Ok(false);
        }
        if entry.size() > MOST_EXTENSION {
            return Err(LayoutError::Archive(format!("a header of {} bytes for one file", entry.size())));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(failed)?;
        let name = |bytes: &[u8]| {
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            PathBuf::from(std::ffi::OsStr::from_bytes(&bytes[..end]))
        };
        if kind.is_gnu_longname() {
            self.path = Some(name(&content));
        } else if kind.is_gnu_longlink() {
            self.target = Some(name(&content));
        } else if kind.is_pax_local_extensions() {
            for extension in tar::PaxExtensions::new(&content) {
                let extension = extension.map_err(failed)?;
                match extension.key_bytes() {
                    b"path" => self.path = Some(name(extension.value_bytes())),
                    b"linkpath" => self.target = Some(name(extension.value_bytes())),
                    // Only of files that no module is.
                    b"size" => return Err(LayoutError::Archive("a file of more than 8 GiB".to_owned())),
                    _ => {}
                }
            }
        }
        Ok(true)
    }
}
