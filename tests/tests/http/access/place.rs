//! Both proxies with the same policies: a listener for each set of them, and clients of which each is somebody else.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Process, Proxy, World};

use crate::differences::{BY_POLICY, DIFFERENCES};
use crate::differential::{Sides, Speaks};
use crate::endpoint::{Endpoint, Tries};
use crate::pair::{self, router};

/// The port of the first set; the recorded policies ask for it.
const FIRST_PORT: u16 = 80;

/// Policies, in Istio's words and in Envoy's.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    /// `authorization:`, a list in YAML.
    pub(crate) ours: String,
    /// Filters of HTTP.
    pub(crate) envoys: Vec<Value>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// `spiffe://cluster.local/ns/shop/sa/client`
    Client,
    /// `spiffe://cluster.local/ns/banned/sa/client`
    Banned,
    /// Nobody that is known.
    Stranger,
}

pub(crate) const ALL: [Who; 3] = [Who::Client, Who::Banned, Who::Stranger];

impl Who {
    fn namespace(self) -> Option<&'static str> {
        match self {
            Self::Client => Some("shop"),
            Self::Banned => Some("banned"),
            Self::Stranger => None,
        }
    }
}

/// Both, running.
pub(crate) struct Place {
    clients: [Host; 3],
    ours: Host,
    envoys: Host,
    pub(crate) proxy: Proxy,
    _envoy: Process,
    _world: World,
}

impl Place {
    /// With a listener for each of `sets`, whose texts may name the clients' addresses: `{client}`, `{banned}`, `{stranger}`.
    pub(crate) fn start(sets: impl FnOnce(&[Host; 3]) -> Vec<Policies>) -> Self {
        let world = World::loopback();
        let clients = [world.host(), world.host(), world.host()];
        let (us, them) = (world.host(), world.host());
        let [our_endpoint, their_endpoint] =
            [(); 2].map(|()| Endpoint::start(&world.host(), 9001, "e", Tries::default()).address);
        let sets = sets(&clients);
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml(&world, &us, &clients, &sets, our_endpoint)).expect("write the configuration");
        let config = envoys_config(&them, &clients, &sets, their_endpoint);
        let last = them.at(FIRST_PORT + sets.len() as u16 - 1);
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            _envoy: envoy::start(&world, &them, &config, last),
            clients,
            ours: us,
            envoys: them,
            _world: world,
        }
    }

    /// As `who` asks by the listener of a set.
    pub(crate) fn sides(&self, who: Who, set: usize, speaks: Speaks) -> Sides {
        let port = FIRST_PORT + set as u16;
        Sides {
            client: self.client(who).clone(),
            ours: self.ours.at(port),
            envoys: self.envoys.at(port),
            speaks,
            differences: DIFFERENCES.iter().chain(BY_POLICY).collect(),
            runtime: Runtime::new().expect("a runtime"),
        }
    }

    fn client(&self, who: Who) -> &Host {
        &self.clients[ALL.iter().position(|one| *one == who).expect("all are there")]
    }
}

fn yaml(world: &World, us: &Host, clients: &[Host; 3], sets: &[Policies], endpoint: SocketAddr) -> String {
    let mut workloads = String::new();
    for (who, host) in ALL.iter().zip(clients) {
        if let Some(namespace) = who.namespace() {
            workloads += &format!(
                "- {{uid: {namespace}, name: {namespace}, namespace: {namespace}, service_account: client, addresses: ['{}']}}\n",
                host.ip()
            );
        }
    }
    let (mut listeners, mut tables) = (String::new(), String::new());
    for (set, policies) in sets.iter().enumerate() {
        let at = us.at(FIRST_PORT + set as u16);
        listeners += &format!("  - {{name: l{set}, address: '{at}', protocol: http, routes: t{set}}}\n");
        let policies = policies.ours.replace('\n', "\n    ");
        tables += &format!(
            "  - name: t{set}
    path_normalization: base
    authorization:
    {policies}
    virtual_hosts: [{{name: all, domains: ['*'], response_headers: {{add: {{x-of-host: h}}}}, routes: [{{match: {{prefix: /files}}, direct: {{status: 200, body: files}}}}, {{forward: {{cluster: web}}, response_headers: {{set: {{x-of-route: r}}}}}}]}}]\n"
        );
    }
    let (admin, log) = (us.at(15000), world.directory().join("access.log"));
    format!(
        "workloads:
{workloads}node:
  name: a
  admin: '{admin}'
  access_log: {{path: '{}', format: json}}
  listeners:
{listeners}http:
  clusters: [{{name: web, endpoints: ['{endpoint}']}}]
  routes:
{tables}",
        log.display()
    )
}

fn envoys_config(them: &Host, clients: &[Host; 3], sets: &[Policies], endpoint: SocketAddr) -> Value {
    let listeners: Vec<Value> = sets
        .iter()
        .enumerate()
        .map(|(set, policies)| {
            let mut filters = policies.envoys.clone();
            filters.push(router());
            let manager = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "in", "normalize_path": true, "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
                "http_filters": filters,
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"],
                    "response_headers_to_add": [{"header": {"key": "x-of-host", "value": "h"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}],
                    "routes": [{"match": {"prefix": "/files"}, "direct_response": {"status": 200, "body": {"inline_string": "files"}}},
                        {"match": {"prefix": "/"}, "route": {"cluster": "web"},
                            "response_headers_to_add": [{"header": {"key": "x-of-route", "value": "r"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]}]}]}}});
            let chains: Vec<Value> = ALL
                .iter()
                .zip(clients)
                .map(|(who, host)| chain(*who, host, &manager))
                .collect();
            json!({"name": format!("l{set}"), "address": address(them.at(FIRST_PORT + set as u16)), "filter_chains": chains})
        })
        .collect();
    let mut config = pair::envoys_config(Vec::new(), &[("web", endpoint)]);
    config["static_resources"]["listeners"] = listeners.into();
    config
}

/// Envoy is told who the client is as a waypoint is by istiod: by a filter state, which here goes by the address.
fn chain(who: Who, host: &Host, manager: &Value) -> Value {
    let identity = who.namespace().map(|namespace| {
        let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/client");
        json!({"name": "envoy.filters.network.set_filter_state", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config",
            "on_new_connection": [{"object_key": "io.istio.peer_principal", "factory_key": "envoy.string",
                "format_string": {"text_format_source": {"inline_string": identity}}}]}})
    });
    let filters: Vec<&Value> = identity.iter().chain([manager]).collect();
    json!({"filter_chain_match": {"source_prefix_ranges": [{"address_prefix": host.ip().to_string(), "prefix_len": 32}]},
        "filters": filters})
}
