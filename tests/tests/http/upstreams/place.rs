//! A proxy with clusters that differ in how they are connected to, perhaps beside an Envoy with the same: `/NAME/...` leads to cluster NAME.

use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Process, Proxy, World};

use crate::client::{Seen, ask, get};

/// A cluster, in our words (fields of a YAML mapping, without the name) and in Envoy's (fields beside name and connect_timeout).
pub(crate) struct ClusterPair {
    pub(crate) name: &'static str,
    pub(crate) ours: String,
    pub(crate) envoys: Value,
}

/// What a test runs in.
pub(crate) struct Place {
    pub(crate) world: World,
    pub(crate) client: Host,
    pub(crate) us: Host,
    pub(crate) them: Host,
}

impl Place {
    pub(crate) fn new() -> Self {
        let world = World::loopback();
        let (client, us, them) = (world.host(), world.host(), world.host());
        Self {
            world,
            client,
            us,
            them,
        }
    }

    /// Where we listen.
    pub(crate) fn ours(&self) -> SocketAddr {
        self.us.at(8080)
    }

    /// Where Envoy listens.
    pub(crate) fn envoys(&self) -> SocketAddr {
        self.them.at(8080)
    }

    /// Our file, with these clusters and with `more` in each of their routes' `forward`.
    pub(crate) fn yaml(&self, clusters: &[(&str, String)], more: &str) -> String {
        let log = self.world.directory().join("access.log");
        let written = clusters
            .iter()
            .map(|(name, fields)| format!("  - {{name: {name}, {fields}}}\n"));
        let written: String = written.collect();
        let routes = clusters
            .iter()
            .map(|(name, _)| format!("      - {{match: {{prefix: /{name}/}}, forward: {{cluster: {name}{more}}}}}\n"));
        let routes: String = routes.collect();
        format!(
            "node:
  name: a
  admin: '{}'
  workers: 1
  access_log: {{path: '{}', format: json}}
  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http:
  clusters:
{written}  routes:
  - name: t
    virtual_hosts:
    - name: all
      domains: ['*']
      routes:
{routes}",
            self.us.at(15000),
            log.display(),
            self.ours()
        )
    }

    pub(crate) fn start(&self, yaml: &str) -> Proxy {
        let file = self.world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Proxy::start_with_file(&self.world, &self.us, file)
    }

    /// Both, with the same clusters.
    pub(crate) fn start_both(&self, clusters: &[ClusterPair]) -> (Proxy, Process) {
        let ours: Vec<_> = clusters.iter().map(|pair| (pair.name, pair.ours.clone())).collect();
        let envoy = self.start_envoy(clusters, json!({}));
        (self.start(&self.yaml(&ours, "")), envoy)
    }

    /// Envoy, with `more` in its HttpConnectionManager.
    pub(crate) fn start_envoy(&self, clusters: &[ClusterPair], more: Value) -> Process {
        let log = self.world.directory().join("envoy.log");
        let routes: Vec<Value> = clusters
            .iter()
            .map(|pair| json!({"match": {"prefix": format!("/{}/", pair.name)}, "route": {"cluster": pair.name}}))
            .collect();
        let mut manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "in",
            "codec_type": "AUTO",
            "access_log": [{"name": "file", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": log.display().to_string(),
                "log_format": {"text_format_source": {"inline_string": "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"}}}}],
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        });
        merge(&mut manager, more);
        let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
        let clusters: Vec<Value> = clusters.iter().map(envoys_cluster).collect();
        let listener =
            json!({"name": "in", "address": address(self.envoys()), "filter_chains": [{"filters": [filter]}]});
        let config = json!({"static_resources": {"listeners": [listener], "clusters": clusters}});
        envoy::start(&self.world, &self.them, &config, self.envoys())
    }

    /// What we answer to `GET /path`.
    pub(crate) fn ask(&self, path: &str, lines: &str) -> Seen {
        ask(&self.client, self.ours(), &get(path, lines))
    }

    /// What we answer to a request of another method, without a body.
    pub(crate) fn ask_by(&self, method: &str, path: &str) -> Seen {
        let request = get(path, "content-length: 0\r\n").replacen("GET", method, 1);
        ask(&self.client, self.ours(), &request)
    }

    /// And Envoy.
    pub(crate) fn ask_envoy(&self, path: &str, lines: &str) -> Seen {
        ask(&self.client, self.envoys(), &get(path, lines))
    }

    /// Lines of our access log with `part`.
    pub(crate) fn logged(&self, part: &str) -> usize {
        self.lines("access.log", part)
    }

    /// Lines of Envoy's (path, code, flags, details) with `part`.
    pub(crate) fn logged_by_envoy(&self, part: &str) -> usize {
        self.lines("envoy.log", part)
    }

    fn lines(&self, file: &str, part: &str) -> usize {
        let log = std::fs::read_to_string(self.world.directory().join(file)).unwrap_or_default();
        log.lines().filter(|line| line.contains(part)).count()
    }
}

fn envoys_cluster(pair: &ClusterPair) -> Value {
    let mut cluster = json!({"name": pair.name, "connect_timeout": "5s"});
    merge(&mut cluster, pair.envoys.clone());
    cluster
}

pub(crate) fn merge(into: &mut Value, more: Value) {
    let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) else {
        panic!("two objects are merged");
    };
    into.extend(more);
}

/// `load_assignment` of a cluster with these endpoints.
pub(crate) fn endpoints(addresses: &[SocketAddr]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|at| json!({"endpoint": {"address": address(*at)}}))
        .collect();
    json!({"cluster_name": "c", "endpoints": [{"lb_endpoints": endpoints}]})
}
