//! Compiles kubelet's APIs in pure Rust (no protoc).

/// The device plugin API, which this program serves, and the pod resources API, which it asks.
const PROTOS: [&str; 2] = ["proto/deviceplugin.proto", "proto/podresources.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
