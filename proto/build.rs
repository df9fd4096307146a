//! Generates the Rust side of `proto/*.proto` without a `protoc` program.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(
        ["proto/discovery.proto", "proto/device_plugin.proto", "proto/pod_resources.proto"],
        ["proto"],
    )?;
    tonic_prost_build::configure().btree_map(".").codec_path("crate::codec::Codec").compile_fds(descriptors)?;
    Ok(())
}
