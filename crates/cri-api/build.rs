//! Compiles `proto/runtime/v1/api.proto` without protoc, and keeps the descriptors for the test that holds them to the
//! table of facts.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let proto = root.join("runtime/v1/api.proto");
    println!("cargo::rerun-if-changed={}", proto.display());
    let descriptors = protox::compile([&proto], [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("cri.bin"), descriptors.encode_to_vec())?;
    let generator = tonic_prost_build::configure().build_server(true).build_client(true);
    let by_hand = "crate::listed::ListContainersResponse";
    generator.extern_path(".runtime.v1.ListContainersResponse", by_hand).compile_fds(descriptors)?;
    Ok(())
}
