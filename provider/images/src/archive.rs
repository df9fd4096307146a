//! The module in the layers of an ordinary image.
//!
//! The layers are laid one over the other as a container runtime lays them, without being unpacked: a file hides one of its name
//! below, a whiteout removes what is below, links lead on. Only the module's content is read.

use crate::layout::{LayoutError, listed};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Files, directories and links of all layers together, and bytes of their names.
const MOST_ENTRIES: usize = 65_536;
const MOST_NAMES: usize = 8 << 20;
/// Links that lead to the module.
const MOST_LINKS: usize = 40;
/// Modules that are told, if it is not clear which one is meant.
const TOLD: usize = 8;

/// What a path of the image is.
#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Directory,
    /// In a layer, the number of the entry in its archive; whether it begins as a module does.
    File {
        layer: usize,
        entry: usize,
        is_module: bool,
    },
    /// To another path of the image, absolute or from its own directory.
    Link(PathBuf),
    /// Something that no module can be.
    Other,
}

/// The files of an image, by their path without a slash at its beginning.
#[derive(Debug, Default)]
struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
    bytes_of_names: usize,
}

/// The module in the layers, lowest first, each a file. `program` is what the image starts, if it says so, and `directory` where.
/// At most `limit` bytes of it are read, one more if it is longer.
pub(crate) fn module_of(
    layers: &[PathBuf],
    program: Option<&str>,
    directory: &str,
    limit: u64,
) -> Result<Vec<u8>, LayoutError> {
    // `oras push` and others call a file an archive that is none.
    for layer in layers {
        if magic(layer)?.starts_with(b"\0asm") && layers.len() == 1 {
            return read(File::open(layer).map_err(failed)?, limit);
        }
    }
    let mut tree = Tree::default();
    for (number, layer) in layers.iter().enumerate() {
        tree.lay(number, layer, limit)?;
    }
    let (layer, entry) = tree.choose(program, directory)?;
    let mut archive = open(&layers[layer], limit)?;
    let mut entries = archive.entries().map_err(failed)?;
    let entry = entries.nth(entry).ok_or_else(|| LayoutError::Archive("it has changed meanwhile".to_owned()))?;
    read(entry.map_err(failed)?, limit)
}

fn failed(error: std::io::Error) -> LayoutError {
    LayoutError::Archive(error.to_string())
}

fn read(file: impl Read, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let mut module = Vec::new();
    file.take(limit + 1).read_to_end(&mut module).map_err(failed)?;
    Ok(module)
}

fn magic(path: &Path) -> Result<Vec<u8>, LayoutError> {
    let mut magic = Vec::new();
    File::open(path).map_err(failed)?.take(4).read_to_end(&mut magic).map_err(failed)?;
    Ok(magic)
}

/// Opens a layer, however it is compressed: what its media type says is often wrong.
fn open(layer: &Path, limit: u64) -> Result<tar::Archive<Box<dyn Read>>, LayoutError> {
    let magic = magic(layer)?;
    let mut file = BufReader::new(File::open(layer).map_err(failed)?);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let reader: Box<dyn Read> = match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file);
            Box::new(decoder.map_err(|error| LayoutError::Archive(error.to_string()))?)
        }
        _ => Box::new(file),
    };
    // A small archive may unpack to any size.
    Ok(tar::Archive::new(Box::new(reader.take(limit.saturating_mul(2).saturating_add(1 << 20)))))
}

/// The parts of a path without `.`, `..` taken from what is before it; it does not lead out of the image.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::Normal(part) => plain.push(part),
            std::path::Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

impl Tree {
    /// Lays a layer over those below.
    fn lay(&mut self, layer: usize, path: &Path, limit: u64) -> Result<(), LayoutError> {
        let mut archive = open(path, limit)?;
        let mut entries = Vec::new();
        for (number, entry) in archive.entries().map_err(failed)?.enumerate() {
            let mut entry = entry.map_err(failed)?;
            let path = plain(&entry.path().map_err(failed)?);
            self.bytes_of_names += path.as_os_str().len();
            if entries.len() + self.entries.len() >= MOST_ENTRIES || self.bytes_of_names > MOST_NAMES {
                return Err(LayoutError::Archive(format!(
                    "its layers have more than {MOST_ENTRIES} files, or {} MiB of their names",
                    MOST_NAMES >> 20
                )));
            }
            let target = |entry: &tar::Entry<'_, Box<dyn Read>>| {
                let target = entry.link_name().map_err(failed)?.map(std::borrow::Cow::into_owned);
                target.ok_or_else(|| LayoutError::Archive("a link leads nowhere".to_owned()))
            };
            let what = match entry.header().entry_type() {
                kind if kind.is_dir() => Entry::Directory,
                kind if kind.is_symlink() => Entry::Link(target(&entry)?),
                // Its target is a path of the image, whatever it begins with.
                kind if kind.is_hard_link() => Entry::Link(Path::new("/").join(plain(&target(&entry)?))),
                kind if kind.is_file() => {
                    let mut magic = [0; 4];
                    let is_module = entry.read_exact(&mut magic).is_ok() && magic == *b"\0asm";
                    Entry::File { layer, entry: number, is_module }
                }
                _ => Entry::Other,
            };
            entries.push((path, what));
        }
        // Whiteouts are of what is below, wherever in the layer they stand.
        for (path, _) in &entries {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let directory = path.parent().unwrap_or(Path::new(""));
            match name.strip_prefix(".wh.") {
                Some(".wh..opq") => {
                    let whole = self.entries.get(directory).cloned();
                    self.remove(directory);
                    self.entries.extend(whole.map(|entry| (directory.to_owned(), entry)));
                }
                Some(removed) if !removed.starts_with(".wh.") => self.remove(&directory.join(removed)),
                _ => {}
            }
        }
        for (path, what) in entries {
            if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(".wh.")) {
                continue;
            }
            // What was a directory and is none any more takes along what was in it.
            if what != Entry::Directory {
                self.remove(&path);
            }
            self.entries.insert(path, what);
        }
        Ok(())
    }

    /// Removes a path and what is below it, which stands right after it.
    fn remove(&mut self, path: &Path) {
        let known = self.entries.range(path.to_owned()..).map(|(known, _)| known);
        let gone: Vec<_> = known.take_while(|known| known.starts_with(path)).cloned().collect();
        for path in gone {
            self.entries.remove(&path);
        }
    }

    /// The layer of the module and its entry there.
    fn choose(&self, program: Option<&str>, directory: &str) -> Result<(usize, usize), LayoutError> {
        if let Some(program) = program.filter(|program| !program.is_empty()) {
            let from_directory = Path::new("/").join(directory).join(program);
            let from_root = Path::new("/").join(program);
            for path in [from_directory, from_root] {
                if let Some(Entry::File { layer, entry, is_module: true }) = self.resolve(&plain(&path)) {
                    return Ok((*layer, *entry));
                }
            }
        }
        let modules = self.entries.iter().filter_map(|(path, what)| match what {
            Entry::File { layer, entry, is_module: true } => Some((path, (*layer, *entry))),
            _ => None,
        });
        let modules: Vec<_> = modules.collect();
        match modules[..] {
            [(_, module)] => Ok(module),
            [] => Err(LayoutError::NoModule { layers: "archives without a WebAssembly module".to_owned() }),
            _ => {
                let mut names: Vec<_> = modules.iter().take(TOLD).map(|(path, _)| path.display().to_string()).collect();
                if modules.len() > TOLD {
                    names.push(format!("{} more", modules.len() - TOLD));
                }
                Err(LayoutError::Ambiguous { modules: listed(names.into_iter()) })
            }
        }
    }

    /// What a path is when all links in it have been followed.
    fn resolve(&self, path: &Path) -> Option<&Entry> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            // The first link on the way; a path is there without its directories being listed.
            let mut link = None;
            for (length, _) in path.components().enumerate() {
                let part: PathBuf = path.components().take(length + 1).collect();
                if let Some(Entry::Link(target)) = self.entries.get(&part) {
                    let rest: PathBuf = path.components().skip(length + 1).collect();
                    let from = Path::new("/").join(part.parent().unwrap_or(Path::new("")));
                    link = Some(plain(&from.join(target).join(rest)));
                    break;
                }
            }
            match link {
                Some(next) => path = next,
                None => return self.entries.get(&path),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    enum What<'a> {
        File(&'a str),
        Link(&'a str),
        Hard(&'a str),
    }
    use What::{File as F, Hard as H, Link as L};

    fn layer(directory: &Path, name: &str, entries: &[(&str, What<'_>)]) -> PathBuf {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, what) in entries {
            let mut header = tar::Header::new_gnu();
            match what {
                F(content) => {
                    header.set_size(content.len() as u64);
                    header.set_cksum();
                    builder.append_data(&mut header, path, content.as_bytes()).unwrap();
                }
                L(target) | H(target) => {
                    let kind = if matches!(what, L(_)) { tar::EntryType::Symlink } else { tar::EntryType::Link };
                    header.set_entry_type(kind);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target).unwrap();
                }
            }
        }
        let path = directory.join(name);
        std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
        path
    }

    fn module(layers: &[PathBuf], program: Option<&str>, directory: &str) -> Result<String, String> {
        let module = module_of(layers, program, directory, 1000).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(module).unwrap().replacen('\0', "", 1))
    }

    #[test]
    fn layers_lie_one_over_the_other() {
        let directory = tempfile::tempdir().unwrap();
        let of = |name: &str, entries: &[(&str, What<'_>)]| layer(directory.path(), name, entries);
        let lower = of("1", &[("app.wasm", F("\0asm old")), ("readme", F("text")), ("lib/x.wasm", F("\0asm x"))]);
        let upper = of("2", &[("./app.wasm", F("\0asm new")), ("lib/.wh.x.wasm", F(""))]);
        assert_eq!(module(&[lower.clone(), upper], None, "").unwrap(), "asm new");
        let opaque = of("3", &[("lib/y.wasm", F("\0asm y")), ("lib/.wh..wh..opq", F("")), (".wh.app.wasm", F(""))]);
        assert_eq!(module(&[lower.clone(), opaque], None, "").unwrap(), "asm y", "its own files stay");
        let replaced = of("4", &[("lib", F("no directory any more"))]);
        assert_eq!(module(&[lower.clone(), replaced], None, "").unwrap(), "asm old");
        let whole = of("5", &[(".wh.lib", F("")), (".wh.app.wasm", F(""))]);
        assert!(module(&[lower, whole], None, "").unwrap_err().contains("without a WebAssembly module"));
    }

    #[test]
    fn what_the_image_starts_decides_by_any_way_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let layer = layer(
            directory.path(),
            "1",
            &[
                ("opt/a.wasm", F("\0asm a")),
                ("opt/b", F("\0asm b")),
                ("usr/bin/link", L("../../opt/b")),
                ("usr/lib", L("/opt")),
                ("hard", H("opt/a.wasm")),
                ("loop", L("loop")),
                ("text.wasm", F("text")),
            ],
        );
        let layers = [layer];
        for (program, directory, expected) in [
            ("/opt/a.wasm", "", "asm a"),
            ("opt/a.wasm", "/", "asm a"),
            ("a.wasm", "/opt", "asm a"),
            ("./b", "/opt", "asm b"),
            ("/opt/b", "/nowhere", "asm b"),
            ("opt/b", "/nowhere", "asm b"),
            ("/usr/bin/link", "", "asm b"),
            ("/usr/lib/a.wasm", "", "asm a"),
            ("/hard", "", "asm a"),
            ("../../../opt/b", "/usr/bin", "asm b"),
        ] {
            assert_eq!(module(&layers, Some(program), directory).unwrap(), expected, "{program} in {directory}");
        }
        for program in ["/loop", "/text.wasm", "/none", ""] {
            let error = module(&layers, Some(program), "").unwrap_err();
            assert!(error.contains("opt/a.wasm, opt/b"), "{program}: {error}");
        }
    }

    #[test]
    fn compression_is_what_it_is_and_a_module_may_be_called_an_archive() {
        let directory = tempfile::tempdir().unwrap();
        let plain = layer(directory.path(), "1", &[("a.wasm", F("\0asm a"))]);
        let gzip = directory.path().join("2");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&gzip).unwrap(), flate2::Compression::fast());
        encoder.write_all(&std::fs::read(&plain).unwrap()).unwrap();
        encoder.finish().unwrap();
        let zstd = directory.path().join("3");
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress(File::open(&plain).unwrap(), File::create(&zstd).unwrap(), level);
        for layer in [plain, gzip, zstd] {
            assert_eq!(module(&[layer], None, "").unwrap(), "asm a");
        }
        let bare = directory.path().join("4");
        std::fs::write(&bare, "\0asm bare").unwrap();
        assert_eq!(module(&[bare], None, "").unwrap(), "asm bare");
    }

    #[test]
    fn an_archive_of_many_files_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..=MOST_ENTRIES {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_cksum();
            builder.append_data(&mut header, format!("{number}"), &b""[..]).unwrap();
        }
        let path = directory.path().join("1");
        std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let error = module_of(&[path], None, "", 1 << 30).unwrap_err().to_string();
        assert!(error.contains("more than 65536 files"), "{error}");
    }
}
