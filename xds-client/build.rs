//! Generates the messages of `proto/`, and keeps their descriptors for `unknown_fields`.

use std::path::PathBuf;
use std::{env, error, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["discovery.proto", "workload.proto", "authorization.proto"], ["proto"])?;
    let file = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(file, descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .btree_map(".istio")
        .compile_fds(descriptors)?;
    Ok(())
}
