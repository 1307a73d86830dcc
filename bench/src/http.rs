//! Underpass and Envoy as proxies of HTTP, with the same routes, the same retries and their metrics, and no access log.
//!
//! The last route of the table is the one that is taken; before it there may be many others, each with a cluster of its own.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::system::{ENVOY_ARGUMENTS, Kind, Programs, THREADS, Task, launch};

/// Routes and clusters besides the one that counts, where there are many.
pub(crate) const MANY: usize = 999;

/// Starts the proxy of this kind with `others` routes that are not taken.
pub(crate) fn start(kind: Kind, others: usize, programs: &Programs, task: &Task<'_>) -> Result<Process> {
    let envoy = kind == Kind::EnvoyHttp;
    let path = task.directory.join(format!("{}.yaml", task.name));
    let text = if envoy {
        envoys(task, others)
    } else {
        ours(task, others)
    };
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let arguments: &[&str] = if envoy { &ENVOY_ARGUMENTS } else { &["run", "--config"] };
    let program: PathBuf = programs.find(kind)?;
    launch(&program, arguments, Some(&path), task)
}

fn ours(task: &Task<'_>, others: usize) -> String {
    let Task {
        listen,
        destination,
        admin_port,
        ..
    } = task;
    let mut text = format!(
        "node:\n  name: bench\n  workers: {THREADS}\n  admin: \"127.0.0.1:{admin_port}\"\n  log: warn\n  \
         access_log: {{format: \"off\"}}\n  listeners:\n  - {{name: http, address: \"{listen}\", protocol: http, routes: all}}\n\
         http:\n  routes:\n  - name: all\n    virtual_hosts:\n    - name: all\n      domains: [\"*\"]\n      routes:\n"
    );
    for other in 0..others {
        let _ = writeln!(
            text,
            "      - {{match: {{prefix: /other/{other}/}}, forward: {{cluster: other-{other}}}}}"
        );
    }
    text.push_str(
        "      - match: {prefix: /}\n        forward: {cluster: web, timeout: 15s, retry: {on: [connect-failure, \
         refused-stream, reset, gateway-error, unavailable], retries: 2}}\n  clusters:\n",
    );
    for other in 0..others {
        let _ = writeln!(text, "  - {{name: other-{other}, endpoints: [\"{destination}\"]}}");
    }
    let _ = writeln!(
        text,
        "  - {{name: web, endpoints: [\"{destination}\"], balancing: least-request, protocol: as-downstream, connect_timeout: 5s, \
         limits: {{requests: 100000}}}}"
    );
    text
}

fn envoys(task: &Task<'_>, others: usize) -> String {
    let Task {
        listen,
        destination,
        admin_port,
        ..
    } = task;
    let address = |ip: String, port: u16| format!("{{socket_address: {{address: \"{ip}\", port_value: {port}}}}}");
    let mut text = format!(
        "admin: {{address: {}}}\nstatic_resources:\n  listeners:\n  - name: http\n    address: {}\n    filter_chains:\n    - filters:\n      \
         - name: envoy.filters.network.http_connection_manager\n        typed_config:\n          \"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: http\n          \
         http_filters: [{{name: envoy.filters.http.router, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n          route_config:\n            virtual_hosts:\n            \
         - name: all\n              domains: [\"*\"]\n              routes:\n",
        address("127.0.0.1".into(), *admin_port),
        address(listen.ip().to_string(), listen.port()),
    );
    for other in 0..others {
        let _ = writeln!(
            text,
            "              - {{match: {{prefix: /other/{other}/}}, route: {{cluster: other-{other}}}}}"
        );
    }
    text.push_str(
        "              - {match: {prefix: /}, route: {cluster: web, timeout: 15s, retry_policy: {retry_on: \
         \"connect-failure,refused-stream,reset,gateway-error,unavailable\", num_retries: 2}}}\n  clusters:\n",
    );
    let endpoint = address(destination.ip().to_string(), destination.port());
    let mut cluster = |name: &str, more: &str| {
        let _ = writeln!(
            text,
            "  - {{name: {name}, type: STATIC, connect_timeout: 5s, load_assignment: {{cluster_name: {name}, endpoints: \
             [{{lb_endpoints: [{{endpoint: {{address: {endpoint}}}}}]}}]}}{more}}}"
        );
    };
    for other in 0..others {
        cluster(&format!("other-{other}"), "");
    }
    cluster(
        "web",
        ", lb_policy: LEAST_REQUEST, circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: \
         100000}]}, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\"@type\": \
         type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, use_downstream_protocol_config: \
         {http_protocol_options: {}, http2_protocol_options: {}}}}",
    );
    text
}
