//! A running Envoy, which the tests compare with and speak to.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Host, Process, World, wait};

/// The Envoy that `scripts/envoy-setup.sh` fetches, which the bench compares with too.
pub(crate) fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/bench/envoy")
}

/// Starts Envoy on `host` with a bootstrap configuration, and waits until it listens at `ready_at`.
pub fn start(world: &World, host: &Host, config: &Value, ready_at: SocketAddr) -> Process {
    let file = world.directory().join(format!("envoy-{}.json", host.ip()));
    fs::write(&file, config.to_string()).expect("write Envoy's configuration");
    let mut command = Process::command(&program().display().to_string());
    command
        .arg("-c")
        .arg(&file)
        .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]);
    let mut process = Process::start(world, host, "envoy", command);
    wait::eventually(wait::SOON, "Envoy listens", || {
        assert!(process.exit_status().is_none(), "{}", process.output());
        host.connect_unbound(ready_at).is_ok()
    });
    process
}

/// `envoy.config.core.v3.Address` of a socket.
pub fn address(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}
