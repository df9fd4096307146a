//! The module in the layers of an ordinary image.
//!
//! The layers are laid one over the other as a container runtime lays them, without being unpacked: a file hides one of its name
//! below, a whiteout removes what is below, links lead on. Only the module's content is read.

mod layer;

use crate::layout::{LayoutError, listed};
use layer::{Budget, LongNames, failed, magic, open};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files, directories and links of all layers together, and bytes of their names.
const MOST_ENTRIES: usize = 65_536;
const MOST_NAMES: usize = 8 << 20;
/// Longest path, in bytes, as on Linux; longer ones lead nowhere.
const MOST_PATH: usize = 4096;
/// Links that lead to the module.
const MOST_LINKS: usize = 40;
/// Modules that are named, if it is not clear which one is meant.
const MOST_SHOWN: usize = 8;

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
/// At most `limit` bytes of it are read, one more if it is longer. Ends with an error when it `is_wanted` no more.
pub(crate) fn module_of(
    layers: &[PathBuf],
    program: Option<&str>,
    directory: &str,
    limit: u64,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Vec<u8>, LayoutError> {
    // `oras push` and others call a file an archive that is none.
    if let [only] = layers
        && magic(only)?.starts_with(b"\0asm")
    {
        return read(File::open(only).map_err(failed)?, limit);
    }
    let budget = Budget::new(limit, is_wanted);
    let mut tree = Tree::default();
    for (number, layer) in layers.iter().enumerate() {
        tree.lay(number, layer, &budget)?;
    }
    let (layer, entry) = tree.choose(program, directory)?;
    let mut archive = open(&layers[layer], &budget)?;
    let mut entries = archive.entries().map_err(failed)?.raw(true);
    let entry = entries.nth(entry).ok_or_else(|| LayoutError::Archive("it has changed meanwhile".to_owned()))?;
    read(entry.map_err(failed)?, limit)
}

fn read(file: impl Read, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let mut module = Vec::new();
    file.take(limit + 1).read_to_end(&mut module).map_err(failed)?;
    Ok(module)
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
    fn lay(&mut self, layer: usize, path: &Path, budget: &Budget<'_>) -> Result<(), LayoutError> {
        let mut archive = open(path, budget)?;
        let mut entries = Vec::new();
        let mut long = LongNames::default();
        for (number, entry) in archive.entries().map_err(failed)?.raw(true).enumerate() {
            let mut entry = entry.map_err(failed)?;
            if long.take(&mut entry)? {
                continue;
            }
            let LongNames { path, target } = std::mem::take(&mut long);
            let path = match path {
                Some(path) => path,
                None => entry.path().map_err(failed)?.into_owned(),
            };
            let target = match target {
                Some(target) => Some(target),
                None => entry.link_name().map_err(failed)?.map(std::borrow::Cow::into_owned),
            };
            let kind = entry.header().entry_type();
            let target = target.filter(|_| kind.is_symlink() || kind.is_hard_link());
            self.bytes_of_names +=
                path.as_os_str().len() + target.as_ref().map_or(0, |target| target.as_os_str().len());
            if entries.len() + self.entries.len() >= MOST_ENTRIES || self.bytes_of_names > MOST_NAMES {
                return Err(LayoutError::Archive(format!(
                    "its layers have more than {MOST_ENTRIES} files, or {} MiB of their names",
                    MOST_NAMES >> 20
                )));
            }
            let what = match target {
                // Nothing is found there.
                Some(target) if target.as_os_str().len() > MOST_PATH => Entry::Other,
                // Its target is a path of the image, whatever it begins with.
                Some(target) if kind.is_hard_link() => Entry::Link(Path::new("/").join(plain(&target))),
                Some(target) => Entry::Link(target),
                None if kind.is_dir() => Entry::Directory,
                None if kind.is_file() => {
                    let mut magic = [0; 4];
                    let is_module = entry.read_exact(&mut magic).is_ok() && magic == *b"\0asm";
                    Entry::File { layer, entry: number, is_module }
                }
                None => Entry::Other,
            };
            entries.push((plain(&path), what));
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
                if path.as_os_str().len() <= MOST_PATH
                    && let Some(Entry::File { layer, entry, is_module: true }) = self.resolve(&plain(&path))
                {
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
                let mut names: Vec<_> =
                    modules.iter().take(MOST_SHOWN).map(|(path, _)| path.display().to_string()).collect();
                if modules.len() > MOST_SHOWN {
                    names.push(format!("{} more", modules.len() - MOST_SHOWN));
                }
                Err(LayoutError::Ambiguous { modules: listed(names.into_iter()) })
            }
        }
    }

    /// What a path is when all links in it have been followed.
    fn resolve(&self, path: &Path) -> Option<&Entry> {
        let mut path = path.to_owned();
        for _ in 0..MOST_LINKS {
            if path.as_os_str().len() > MOST_PATH {
                return None;
            }
            // The first link on the way; a path is there without its directories being listed.
            let mut part = PathBuf::new();
            let mut components = path.components();
            let link = components.by_ref().find_map(|component| {
                part.push(component);
                match self.entries.get(&part) {
                    Some(Entry::Link(target)) => Some(target),
                    _ => None,
                }
            });
            match link {
                Some(target) => {
                    let from = Path::new("/").join(part.parent().unwrap_or(Path::new("")));
                    path = plain(&from.join(target).join(components.as_path()));
                }
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
        let module = module_of(layers, program, directory, 1000, &|| true).map_err(|error| error.to_string())?;
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
        // In frames, with one between them that holds nothing.
        let bytes = std::fs::read(&plain).unwrap();
        let frame = |bytes: &[u8]| ruzstd::encoding::compress_to_vec(bytes, level);
        let (first, second) = (frame(&bytes[..700]), frame(&bytes[700..]));
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0xyz";
        std::fs::write(&zstd, [skipped, &first[..], skipped, &second[..]].concat()).unwrap();
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
        let error = module_of(&[path], None, "", 1 << 30, &|| true).unwrap_err().to_string();
        assert!(error.contains("more than 65536 files"), "{error}");
    }

    #[test]
    fn long_names_are_read_and_longer_ones_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let deep = format!("{}/app.wasm", "d".repeat(90).repeat(2));
        let archive = layer(directory.path(), "1", &[(&deep, F("\0asm long")), ("link", L(&format!("/{deep}")))]);
        assert_eq!(module(&[archive], Some("/link"), "").unwrap(), "asm long");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 20);
        header.set_cksum();
        builder.append_data(&mut header, "x", &vec![b'x'; 1 << 20][..]).unwrap();
        let path = directory.path().join("2");
        std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let error = module_of(&[path], None, "", 1 << 30, &|| true).unwrap_err().to_string();
        assert!(error.contains("a header of 1048576 bytes"), "{error}");
    }

    #[test]
    fn a_whole_image_has_one_budget_and_an_end_of_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::best());
        encoder.write_all(&vec![0; 700 << 10]).unwrap();
        encoder.finish().unwrap();
        let layers = vec![path; 100];
        let error = module_of(&layers, None, "", 1000, &|| true).unwrap_err().to_string();
        assert!(
            error.contains("unpack to more than 1 MiB") || error.contains("without a WebAssembly module"),
            "{error}"
        );
        let error = module_of(&layers, None, "", 1000, &|| false).unwrap_err().to_string();
        assert!(error.contains("nobody waits"), "{error}");
        // A long way round to nowhere costs little.
        let archive = layer(directory.path(), "2", &[("a", L(&"a/".repeat(2000))), ("m.wasm", F("\0asm m"))]);
        assert_eq!(module(&[archive], Some(&"/a".repeat(500_000)), &"b/".repeat(500_000)).unwrap(), "asm m");
    }
}
