//! Both proxies side by side, with the same endpoint each, and a configuration that a test writes.

use std::net::SocketAddr;

use serde_json::{Value, json};
use underpass_tests::envoy::{self, address};
use underpass_tests::{Host, Process, Proxy, World};

use super::client::{Client, Seen};
use super::endpoint::{Endpoint, Tries};

/// Where one of the two is to be.
pub(crate) struct Side {
    pub(crate) host: Host,
    /// Its endpoint.
    pub(crate) web: SocketAddr,
}

/// Both, running.
pub(crate) struct Pair {
    pub(crate) client: Host,
    pub(crate) ours: Host,
    pub(crate) envoys: Host,
    pub(crate) proxy: Proxy,
    _envoy: Process,
    pub(crate) world: World,
}

impl Pair {
    /// With our configuration in YAML, and Envoy's, which listens on `last` when it is ready.
    pub(crate) fn start(
        ours: impl FnOnce(&Side, &World) -> String,
        envoys: impl FnOnce(&Side, &World) -> Value,
        last: u16,
    ) -> Self {
        let world = World::loopback();
        let client = world.host();
        let [us, them] = [(); 2].map(|()| Side {
            host: world.host(),
            web: Endpoint::start(&world.host(), 9001, "w", Tries::default()).address,
        });
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, ours(&us, &world)).expect("write the configuration");
        let config = envoys(&them, &world);
        Self {
            proxy: Proxy::start_with_file(&world, &us.host, file),
            _envoy: envoy::start(&world, &them.host, &config, them.host.at(last)),
            client,
            ours: us.host,
            envoys: them.host,
            world,
        }
    }

    /// What a client sees of each, at a port.
    pub(crate) fn both(&self, port: u16, request: &str) -> [Seen; 2] {
        [&self.ours, &self.envoys].map(|host| {
            let mut client = Client::connect(&self.client, host.at(port));
            client.send(request.as_bytes());
            client.answer(request.starts_with("HEAD "))
        })
    }
}

/// A configuration of Envoy's: what manages HTTP at which address, and clusters of one endpoint each.
pub(crate) fn envoys_config(listeners: Vec<(SocketAddr, Value)>, clusters: &[(&str, SocketAddr)]) -> Value {
    let listeners = listeners.into_iter().map(|(at, mut manager)| {
        manager["@type"] =
            "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
                .into();
        manager["stat_prefix"] = "in".into();
        let filter = json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
        json!({"name": at.to_string(), "address": address(at), "filter_chains": [{"filters": [filter]}]})
    });
    let clusters = clusters.iter().map(|(name, at)| {
        let endpoint = json!({"endpoint": {"address": address(*at)}});
        json!({"name": name, "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}})
    });
    json!({"static_resources": {"listeners": listeners.collect::<Value>(), "clusters": clusters.collect::<Value>()}})
}

/// The filter that is the last of each.
pub(crate) fn router() -> Value {
    json!({"name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}})
}
