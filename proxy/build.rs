//! Generates the messages of `proto/`.

use std::error;

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["external_auth.proto", "otlp.proto", "als.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .build_client(false)
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
