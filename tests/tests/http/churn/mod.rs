//! Requests without a pause while something changes under them: none may fail, and each has to be answered as the configuration says that
//! was in force while it was on its way.

mod changes;
mod ends;
mod load;
mod plan;

use std::net::SocketAddr;

use underpass_tests::{Host, Proxy, World};

use crate::upstreams::teller::{Running, Teller};

/// How much a test asks for: what is usual, or what a variable says (`make soak`: 100 000 requests, 1 000 changes).
fn wanted(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| {
        text.parse().unwrap_or_else(|_| panic!("{variable}: a number"))
    })
}

/// A proxy, its clients, and endpoints that each have an address of their own.
struct Place {
    world: World,
    client: Host,
    us: Host,
    hosts: Vec<Host>,
    endpoints: Vec<Option<Running>>,
}

impl Place {
    /// With an endpoint for each of `is_http2`, which says what it speaks.
    fn new(is_http2: &[bool]) -> Self {
        let world = World::loopback();
        let (client, us) = (world.host(), world.host());
        let hosts: Vec<Host> = is_http2.iter().map(|_| world.host()).collect();
        let start = |(host, is_http2): (&Host, &bool)| Some(start(host, *is_http2));
        let endpoints = hosts.iter().zip(is_http2).map(start).collect();
        Self {
            world,
            client,
            us,
            hosts,
            endpoints,
        }
    }

    fn at(&self) -> SocketAddr {
        self.us.at(8080)
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.hosts.iter().map(|host| host.at(PORT)).collect()
    }

    /// All of it is gone, as when its process is killed.
    fn kill(&mut self, endpoint: usize) {
        self.endpoints[endpoint] = None;
    }

    /// It is there again.
    fn revive(&mut self, endpoint: usize) {
        self.endpoints[endpoint] = Some(start(&self.hosts[endpoint], false));
    }

    /// A configuration with this `http` section.
    fn yaml(&self, http: &str) -> String {
        format!(
            "node:
  name: node-a
  admin: '{}'
  access_log: {{path: '{}', format: json}}
  timeouts: {{drain: 30s}}
  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http:
{http}",
            self.us.at(15000),
            self.log_file().display(),
            self.at()
        )
    }

    fn log_file(&self) -> std::path::PathBuf {
        self.world.directory().join("access.log")
    }

    /// The lines of requests in the log.
    fn logged(&self) -> Vec<serde_json::Value> {
        let log = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines
            .filter(|line: &serde_json::Value| line.get("response_code").is_some())
            .collect()
    }

    fn start(&self, yaml: &str) -> Proxy {
        let file = self.world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Proxy::start_with_file(&self.world, &self.us, file)
    }
}

const PORT: u16 = 9001;

fn start(host: &Host, is_http2: bool) -> Running {
    let teller = Teller {
        is_http2,
        ..Teller::default()
    };
    teller.start(host, PORT)
}

/// Replaces the configuration and waits until it is in force.
fn apply(proxy: &Proxy, yaml: &str) {
    let (applied, rejected) = (proxy.config_updates("applied"), proxy.config_updates("rejected"));
    proxy.replace_file(yaml);
    underpass_tests::wait::eventually(underpass_tests::wait::SOON, "the configuration is applied", || {
        assert_eq!(proxy.config_updates("rejected"), rejected, "{}", proxy.log());
        proxy.config_updates("applied") > applied
    });
}
