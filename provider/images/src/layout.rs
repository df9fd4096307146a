//! Where in an image the module is.
//!
//! Three layouts are in use:
//! - the CNCF's Wasm OCI artifact: config `application/vnd.wasm.config.v0+json`, one layer `application/wasm`;
//! - the one of wasm-to-oci, which the 2021 project used: a layer `application/vnd.wasm.content.layer.v1+wasm`;
//! - an ordinary image for the platform `wasi/wasm` whose layers are tar archives with one `.wasm` file in them, or the one
//!   that the entrypoint names.

use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest};
use std::io::Read;
use std::path::Path;

/// Media types of layers that are a module.
const MODULES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

/// Media types of manifests that are asked for.
pub(crate) const MANIFESTS: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// Why an image holds no module that the node can run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// An index without an entry for WebAssembly.
    #[error(
        "it is for {platforms}; this node runs WebAssembly: build it for the platform wasi/wasm, or push the module as an OCI artifact"
    )]
    Platform {
        /// `os/architecture` of what there is.
        platforms: String,
    },
    /// Neither an artifact nor an image with layers.
    #[error("it has no layer with a WebAssembly module; its layers are: {layers}")]
    NoModule {
        /// Media types.
        layers: String,
    },
    /// More than one module and nothing that says which.
    #[error("it has several modules ({modules}); name one of them in the image's entrypoint")]
    Ambiguous {
        /// What there is.
        modules: String,
    },
    /// The archive cannot be read.
    #[error("its layer cannot be unpacked: {0}")]
    Archive(String),
}

/// The layers to download.
#[derive(Clone, Debug)]
pub(crate) enum Layout {
    /// One layer is the module.
    Artifact(OciDescriptor),
    /// The module is in one of these archives.
    Archives(Vec<OciDescriptor>),
}

/// The entry of an index that is WebAssembly.
pub(crate) fn entry_of(entries: &[ImageIndexEntry]) -> Result<&ImageIndexEntry, LayoutError> {
    let platform = |entry: &ImageIndexEntry| {
        entry.platform.as_ref().map(|platform| (platform.os.to_string(), platform.architecture.to_string()))
    };
    let of_wasm = |entry: &&ImageIndexEntry| platform(entry).is_some_and(|(os, arch)| is_wasm(&os, &arch));
    let only = match entries {
        [entry] if entry.platform.is_none() => Some(entry),
        _ => None,
    };
    entries.iter().find(of_wasm).or(only).ok_or_else(|| LayoutError::Platform {
        platforms: listed(entries.iter().filter_map(|entry| platform(entry).map(|(os, arch)| format!("{os}/{arch}")))),
    })
}

/// True for `wasi/wasm`, `wasip1/wasm`, `js/wasm32` and the like.
pub(crate) fn is_wasm(os: &str, architecture: &str) -> bool {
    architecture.starts_with("wasm") || os.starts_with("wasi")
}

pub(crate) fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Which layers of a manifest may hold the module.
pub(crate) fn layout_of(manifest: &OciImageManifest) -> Result<Layout, LayoutError> {
    let modules: Vec<_> = manifest.layers.iter().filter(|layer| MODULES.contains(&layer.media_type.as_str())).collect();
    let media_types = || listed(manifest.layers.iter().map(|layer| layer.media_type.clone()));
    match modules[..] {
        [module] => return Ok(Layout::Artifact(module.clone())),
        [] => {}
        _ => return Err(LayoutError::Ambiguous { modules: media_types() }),
    }
    let archives: Vec<_> = manifest.layers.iter().filter(|layer| layer.media_type.contains(".tar")).cloned().collect();
    if archives.is_empty() {
        return Err(LayoutError::NoModule { layers: media_types() });
    }
    Ok(Layout::Archives(archives))
}

/// The module in the archives of an image, lowest layer first; a file in a higher layer replaces one of the same name.
/// `entrypoint` decides between several. At most `limit` bytes of it are read, one more if it is longer.
pub(crate) fn module_of(
    archives: &[(String, std::path::PathBuf)],
    entrypoint: Option<&str>,
    limit: u64,
) -> Result<Vec<u8>, LayoutError> {
    let name_of = |path: &Path| path.to_string_lossy().trim_start_matches("./").trim_start_matches('/').to_owned();
    let wanted = entrypoint.map(|path| name_of(Path::new(path)));
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    for (media_type, path) in archives {
        let failed = |error: std::io::Error| LayoutError::Archive(error.to_string());
        let file = std::fs::File::open(path).map_err(failed)?;
        let reader: Box<dyn Read> = match media_type {
            media_type if media_type.ends_with("gzip") => Box::new(flate2::read::GzDecoder::new(file)),
            media_type if media_type.ends_with("zstd") => {
                return Err(LayoutError::Archive("zstd is not supported; push it with gzip".to_owned()));
            }
            _ => Box::new(file),
        };
        // A small archive may unpack to any size.
        let mut archive = tar::Archive::new(reader.take(limit.saturating_mul(2).saturating_add(1 << 20)));
        for entry in archive.entries().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = name_of(&entry.path().map_err(failed)?);
            if !entry.header().entry_type().is_file() || !name.ends_with(".wasm") {
                continue;
            }
            if wanted.as_ref().is_some_and(|wanted| wanted.ends_with(".wasm") && *wanted != name) {
                continue;
            }
            let mut module = Vec::new();
            entry.take(limit + 1).read_to_end(&mut module).map_err(failed)?;
            found.retain(|(known, _)| *known != name);
            found.push((name, module));
            if found.len() > 8 {
                break;
            }
        }
    }
    match found.len() {
        0 => Err(LayoutError::NoModule { layers: "archives without a .wasm file".to_owned() }),
        1 => Ok(found.remove(0).1),
        _ => Err(LayoutError::Ambiguous { modules: listed(found.into_iter().map(|(name, _)| name)) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn manifest(layers: &[&str]) -> OciImageManifest {
        let descriptor = |media_type: &str| json!({"mediaType": media_type, "digest": "sha256:0", "size": 1});
        let layers: Vec<_> = layers.iter().map(|media_type| descriptor(media_type)).collect();
        serde_json::from_value(json!({"schemaVersion": 2, "config": descriptor("c"), "layers": layers})).unwrap()
    }

    #[test]
    fn the_module_is_found_in_each_layout() {
        for module in MODULES {
            assert!(matches!(layout_of(&manifest(&[module])), Ok(Layout::Artifact(_))), "{module}");
        }
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert!(matches!(layout_of(&manifest(&[tar])), Ok(Layout::Archives(_))));
        let error = layout_of(&manifest(&["text/plain"])).unwrap_err().to_string();
        assert!(error.contains("its layers are: text/plain"), "{error}");
        assert!(layout_of(&manifest(&[MODULES[0], MODULES[0]])).is_err());
    }

    #[test]
    fn an_index_for_other_machines_is_refused_by_their_names() {
        let entry = |os: &str, architecture: &str| json!({"mediaType": "m", "digest": "sha256:0", "size": 1, "platform": {"os": os, "architecture": architecture}});
        let parse = |value| serde_json::from_value::<Vec<ImageIndexEntry>>(value).unwrap();
        let linux = parse(json!([entry("linux", "amd64"), entry("linux", "arm64")]));
        let error = entry_of(&linux).unwrap_err().to_string();
        assert!(error.starts_with("it is for linux/amd64, linux/arm64"), "{error}");
        let mixed = parse(json!([entry("linux", "amd64"), entry("wasip1", "wasm")]));
        assert_eq!(entry_of(&mixed).unwrap().platform.as_ref().unwrap().os.to_string(), "wasip1");
    }

    #[test]
    fn one_module_is_taken_from_archives_and_the_entrypoint_decides_between_several() {
        let directory = tempfile::tempdir().unwrap();
        let archive = |name: &str, files: &[(&str, &str)]| {
            let path = directory.path().join(name);
            let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
            for (name, content) in files {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
            builder.finish().unwrap();
            ("application/vnd.oci.image.layer.v1.tar".to_owned(), path)
        };
        let lower = archive("1", &[("app.wasm", "old"), ("readme", "text")]);
        let upper = archive("2", &[("./app.wasm", "new")]);
        assert_eq!(module_of(&[lower, upper], None, 100).unwrap(), b"new");
        let two = archive("3", &[("a.wasm", "a"), ("b.wasm", "b")]);
        assert_eq!(module_of(std::slice::from_ref(&two), Some("/b.wasm"), 100).unwrap(), b"b");
        assert!(matches!(module_of(&[two], None, 100), Err(LayoutError::Ambiguous { .. })));
        let none = archive("4", &[("x", "x")]);
        assert!(matches!(module_of(&[none], None, 100), Err(LayoutError::NoModule { .. })));
    }
}
