//! Container images of one static program, made on the spot.

use anyhow::Context as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::path::Path;

/// Writes a docker archive of the image `name`, whose only file and entrypoint is `/program`.
pub fn write_archive(name: &str, program: &Path, archive: &Path) -> anyhow::Result<()> {
    let content = std::fs::read(program).with_context(|| program.display().to_string())?;
    let layer = tar(&[("program", &content, 0o755)])?;
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Entrypoint": ["/program"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))]},
    })
    .to_string();
    let config_file = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest = json!([{"Config": config_file, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let files = [
        (config_file.as_str(), config.as_bytes(), 0o644),
        ("layer.tar", layer.as_slice(), 0o644),
        ("manifest.json", manifest.as_bytes(), 0o644),
    ];
    std::fs::write(archive, tar(&files)?).with_context(|| archive.display().to_string())
}

/// As container images name this machine's.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn tar(files: &[(&str, &[u8], u32)]) -> anyhow::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        builder.append_data(&mut header, name, *content)?;
    }
    Ok(builder.into_inner()?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
