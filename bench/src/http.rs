//! Underpass and Envoy as proxies of HTTP, with the same routes, the same retries and their metrics, and no access log.
//!
//! Both may be asked to do more for each request (`Extras`).
//!
//! The last route of the table is the one that is taken; before it there may be many others, each with a cluster of its own.

mod extras;
mod issuer;

use std::fmt::Write;
use std::net::Ipv4Addr;

pub(crate) use self::extras::{Extras, KNOWN_TENANT, TENANT};
pub(crate) use self::issuer::Issuer;
use crate::system::{Task, node_configuration};
use crate::tunnelled::address;

/// Routes and clusters besides the one that counts, where there are many.
pub(crate) const MANY: usize = 999;
/// Our proxy of HTTP.
pub(crate) const OURS: &str = "underpass-http";

/// Our configuration.
pub(crate) fn ours(task: &Task<'_>, extras: Extras) -> String {
    let others = extras.others;
    let Task {
        listen, destination, ..
    } = task;
    let mut text = format!(
        "{}  - {{name: http, address: \"{listen}\", protocol: http, routes: all}}\n\
         http:\n  routes:\n  - name: all\n{}    virtual_hosts:\n    - name: all\n      domains: [\"*\"]\n      routes:\n",
        node_configuration(task.admin_port, task.threads, &extras.our_log()),
        extras.ours(),
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

/// Envoy's.
pub(crate) fn envoys(task: &Task<'_>, extras: Extras) -> String {
    let others = extras.others;
    let mut text = format!(
        "admin: {{address: {}}}\nstatic_resources:\n  listeners:\n  - name: http\n    address: {}\n    filter_chains:\n    - filters:\n      \
         - name: envoy.filters.network.http_connection_manager\n        typed_config:\n          \"@type\": \
         type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n          stat_prefix: http\n{}          \
         http_filters: [{}{{name: envoy.filters.http.router, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]\n          route_config:\n            virtual_hosts:\n            \
         - name: all\n              domains: [\"*\"]\n              routes:\n",
        address((Ipv4Addr::LOCALHOST, task.admin_port).into()),
        address(task.listen),
        extras.envoys_log(),
        extras.envoys_filters(),
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
    let endpoint = address(task.destination);
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
