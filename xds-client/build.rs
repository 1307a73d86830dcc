//! Generates the messages of `proto/`, and keeps their descriptors for `unknown_fields` and `waypoint`.

use std::path::{Path, PathBuf};
use std::{env, error, fs, io};

use prost::Message;

const WAYPOINT: &str = "proto/waypoint";

fn main() -> Result<(), Box<dyn error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut files: Vec<PathBuf> = ["discovery.proto", "workload.proto", "authorization.proto"]
        .map(PathBuf::from)
        .into();
    files.extend(protos(Path::new(WAYPOINT))?);
    let descriptors = protox::compile(files, ["proto", WAYPOINT])?;
    let file = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(file, descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    // By its name a message is looked for in an `Any`.
    config.enable_type_names();
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .include_file("messages.rs")
        .btree_map(".istio")
        .btree_map(".envoy.config")
        .btree_map(".envoy.extensions")
        .btree_map(".xds")
        .btree_map(".stats")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

fn protos(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in fs::read_dir(directory)? {
        let name = PathBuf::from(file?.file_name());
        if name.extension().is_some_and(|extension| extension == "proto") {
            files.push(name);
        }
    }
    files.sort();
    Ok(files)
}
