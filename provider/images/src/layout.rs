//! Where in an image the module is.
//!
//! These layouts are in use:
//! - the CNCF's Wasm OCI artifact: config `application/vnd.wasm.config.v0+json`, one layer `application/wasm`;
//! - those of wasm-to-oci, which the 2021 project used, and of wasme: a layer of a type that ends in `+wasm`;
//! - what `oras push` makes of a file: one layer, the module, called anything, often an archive;
//! - an ordinary image whose layers are archives: for the platform `wasi/wasm`, or for Linux with an annotation
//!   `module.wasm.image/variant` (compat images) or `run.oci.handler: wasm`. The module in them is the one that the entrypoint
//!   names, or the only one.

use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest};
use std::collections::BTreeMap;

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

/// The entries of an index that may be WebAssembly, the most likely first: what says so, then what says nothing, then what is
/// for Linux and may be annotated in its manifest.
pub(crate) fn entries_of(entries: &[ImageIndexEntry]) -> Result<Vec<&ImageIndexEntry>, LayoutError> {
    let platform = |entry: &ImageIndexEntry| {
        entry.platform.as_ref().map(|platform| (platform.os.to_string(), platform.architecture.to_string()))
    };
    let rank = |entry: &ImageIndexEntry| match platform(entry) {
        _ if is_annotated(&entry.annotations) => Some(0),
        Some((os, architecture)) if is_wasm(&os, &architecture) => Some(0),
        None => Some(1),
        Some((os, architecture)) if os.is_empty() && architecture.is_empty() => Some(1),
        Some((os, architecture)) if os == "linux" && architecture == "amd64" => Some(2),
        Some(_) => None,
    };
    let mut ranked: Vec<_> = entries.iter().filter_map(|entry| Some((rank(entry)?, entry))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    if ranked.is_empty() {
        return Err(platforms(entries.iter().filter_map(platform)));
    }
    Ok(ranked.into_iter().map(|(_, entry)| entry).collect())
}

/// What an index or an image is for, which is not WebAssembly.
pub(crate) fn platforms(of: impl Iterator<Item = (String, String)>) -> LayoutError {
    LayoutError::Platform { platforms: listed(of.map(|(os, architecture)| format!("{os}/{architecture}"))) }
}

/// True for `wasi/wasm`, `wasip1/wasm`, `js/wasm32` and the like, and the same the other way round.
pub(crate) fn is_wasm(os: &str, architecture: &str) -> bool {
    [os, architecture].iter().any(|part| part.starts_with("wasm") || part.starts_with("wasi"))
}

/// An image for Linux may say that a runtime for WebAssembly can run it.
pub(crate) fn is_annotated(annotations: &Option<BTreeMap<String, String>>) -> bool {
    annotations.as_ref().is_some_and(|annotations| {
        annotations.contains_key("module.wasm.image/variant")
            || annotations.get("run.oci.handler").is_some_and(|handler| handler == "wasm")
    })
}

pub(crate) fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Which layers of a manifest may hold the module.
pub(crate) fn layout_of(manifest: &OciImageManifest) -> Result<Layout, LayoutError> {
    let of_type = |layer: &&OciDescriptor| layer.media_type.ends_with("/wasm") || layer.media_type.ends_with("+wasm");
    let titled = |layer: &&OciDescriptor| {
        let title =
            layer.annotations.as_ref().and_then(|annotations| annotations.get("org.opencontainers.image.title"));
        title.is_some_and(|title| title.ends_with(".wasm"))
    };
    let media_types = || listed(manifest.layers.iter().map(|layer| layer.media_type.clone()));
    let of_types: Vec<_> = manifest.layers.iter().filter(of_type).collect();
    let titled: Vec<_> = manifest.layers.iter().filter(titled).collect();
    for modules in [of_types, titled] {
        match modules[..] {
            [module] => return Ok(Layout::Artifact(module.clone())),
            [] => {}
            _ => return Err(LayoutError::Ambiguous { modules: media_types() }),
        }
    }
    let is_archive = |layer: &&OciDescriptor| [".tar", "+tar", "/tar"].iter().any(|tar| layer.media_type.contains(tar));
    let archives: Vec<_> = manifest.layers.iter().filter(is_archive).cloned().collect();
    match &manifest.layers[..] {
        _ if !archives.is_empty() => Ok(Layout::Archives(archives)),
        // Called nothing that anybody knows: its content tells.
        [only] if only.media_type.starts_with("application/") => Ok(Layout::Archives(vec![only.clone()])),
        _ => Err(LayoutError::NoModule { layers: media_types() }),
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
        for module in [
            "application/wasm",
            "application/vnd.wasm.content.layer.v1+wasm",
            "application/vnd.module.wasm.content.layer.v1+wasm",
        ] {
            assert!(matches!(layout_of(&manifest(&[module])), Ok(Layout::Artifact(_))), "{module}");
        }
        for archive in [
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/octet-stream",
        ] {
            assert!(matches!(layout_of(&manifest(&[archive])), Ok(Layout::Archives(_))), "{archive}");
        }
        let error = layout_of(&manifest(&["text/plain"])).unwrap_err().to_string();
        assert!(error.contains("its layers are: text/plain"), "{error}");
        assert!(layout_of(&manifest(&["application/wasm", "application/wasm"])).is_err());
        let mut titled = manifest(&["application/vnd.oci.image.layer.v1.tar", "text/plain"]);
        titled.layers[0].annotations =
            Some([("org.opencontainers.image.title".to_owned(), "a.wasm".to_owned())].into());
        assert!(matches!(layout_of(&titled), Ok(Layout::Artifact(_))));
    }

    #[test]
    fn an_index_for_other_machines_is_refused_by_their_names() {
        let entry = |os: &str, architecture: &str| json!({"mediaType": "m", "digest": "sha256:0", "size": 1, "platform": {"os": os, "architecture": architecture}});
        let parse = |value| serde_json::from_value::<Vec<ImageIndexEntry>>(value).unwrap();
        let foreign = parse(json!([entry("windows", "amd64"), entry("linux", "arm64")]));
        let error = entries_of(&foreign).unwrap_err().to_string();
        assert!(error.starts_with("it is for windows/amd64, linux/arm64"), "{error}");
        let first =
            |value| entries_of(&parse(value)).unwrap()[0].platform.as_ref().map(|platform| platform.os.to_string());
        assert_eq!(first(json!([entry("linux", "amd64"), entry("wasip1", "wasm")])).unwrap(), "wasip1");
        assert_eq!(first(json!([entry("linux", "amd64"), entry("wasm", "wasi")])).unwrap(), "wasm");
        assert_eq!(first(json!([entry("linux", "amd64"), {"mediaType": "m", "digest": "sha256:0", "size": 1}])), None);
        let annotated = json!([{"mediaType": "m", "digest": "sha256:0", "size": 1, "platform": {"os": "linux", "architecture": "arm64"},
            "annotations": {"module.wasm.image/variant": "compat"}}]);
        assert_eq!(first(annotated).unwrap(), "linux");
    }
}
