//! A proxy's configuration file in a few words: the parts that every test needs have a builder, the rest is YAML as users write it.

use std::fmt::{Display, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// What a listener does with a connection.
pub enum Listen {
    /// Relays it to one destination: an address or `hostname:port`.
    Fixed(String),
    /// Asks the client by SOCKS5.
    Socks5,
    /// Asks the client by HTTP CONNECT.
    Connect,
    /// Routes requests by this table (see [`Config::http`]).
    Http(&'static str),
    /// Takes tunnels, as this identity (see `http.services`).
    Hbone(String),
}

impl Listen {
    /// Relays to `destination`.
    pub fn fixed(destination: impl Display) -> Self {
        Self::Fixed(destination.to_string())
    }
}

/// A configuration; [`Config::yaml`] adds what the harness needs to see the proxy (admin address, access log).
#[derive(Clone, Default)]
pub struct Config {
    node: String,
    node_name: Option<&'static str>,
    capture: String,
    access_log_format: Option<&'static str>,
    listeners: String,
    workloads: String,
    services: String,
    policies: String,
    http: String,
}

impl Config {
    /// Nothing but the harness's own settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// The node's name; `node-a` if none is given.
    pub fn node_name(mut self, name: &'static str) -> Self {
        self.node_name = Some(name);
        self
    }

    /// A setting of the node: `timeouts: {idle: 1s}`.
    pub fn node(mut self, setting: impl Display) -> Self {
        writeln!(self.node, "  {setting}").expect("a String");
        self
    }

    /// The fields of `node.offload` in YAML: when connections move to the kernel. The tests' programs that read by splice(2) are known, so the kernel
    /// need not be able to notice them.
    pub fn offload(self, fields: impl Display) -> Self {
        self.node(format!("offload: {{trust_readers: true, {fields}}}"))
    }

    /// The `capture` section's fields in YAML.
    pub fn capture(mut self, fields: impl Display) -> Self {
        self.capture = format!("capture: {{{fields}}}\n");
        self
    }

    /// `json` or `text` (the default).
    pub fn access_log_format(mut self, format: &'static str) -> Self {
        self.access_log_format = Some(format);
        self
    }

    /// A listener.
    pub fn listener(mut self, name: &str, address: SocketAddr, protocol: Listen) -> Self {
        let protocol = match protocol {
            Listen::Fixed(destination) => format!("fixed, destination: {destination:?}"),
            Listen::Socks5 => "socks5".to_owned(),
            Listen::Connect => "http-connect".to_owned(),
            Listen::Http(routes) => format!("http, routes: {routes}"),
            Listen::Hbone(identity) => format!("hbone, identity: {identity:?}"),
        };
        writeln!(
            self.listeners,
            "  - {{name: {name}, address: {:?}, protocol: {protocol}}}",
            address.to_string()
        )
        .expect("a String");
        self
    }

    /// A workload `namespace/name` at `address`, with further fields in YAML: `health: unhealthy`.
    pub fn workload(self, name: &str, address: IpAddr, more: impl Display) -> Self {
        self.workload_at(name, &[address], more)
    }

    /// As [`Config::workload`], with any number of addresses.
    pub fn workload_at(mut self, name: &str, addresses: &[IpAddr], more: impl Display) -> Self {
        let quoted: Vec<String> = addresses
            .iter()
            .map(|address| format!("{:?}", address.to_string()))
            .collect();
        let entry = format!("addresses: [{}], {more}", quoted.join(", "));
        self.workloads.push_str(&resource(name, &entry));
        self
    }

    /// A service `namespace/name` with its fields in YAML.
    pub fn service(mut self, name: &str, fields: impl Display) -> Self {
        self.services.push_str(&resource(name, &fields.to_string()));
        self
    }

    /// An authorization policy `namespace/name` with its fields in YAML.
    pub fn policy(mut self, name: &str, fields: impl Display) -> Self {
        self.policies.push_str(&resource(name, &fields.to_string()));
        self
    }

    /// The `http` section's fields in YAML.
    pub fn http(mut self, fields: impl Display) -> Self {
        self.http = format!("http: {{{fields}}}\n");
        self
    }

    /// The file's text.
    pub fn yaml(&self, admin: SocketAddr, access_log: &Path) -> String {
        let format = self.access_log_format.unwrap_or("text");
        let mut yaml = format!(
            "node:\n  name: {}\n  admin: \"{admin}\"\n  access_log: {{format: {format}, path: {:?}}}\n{}",
            self.node_name.unwrap_or("node-a"),
            access_log.display().to_string(),
            self.node
        );
        // Behind the listeners, which belong to the node.
        let capture = &self.capture;
        for (key, list) in [
            ("  listeners", &self.listeners),
            ("workloads", &self.workloads),
            ("services", &self.services),
            ("authorization_policies", &self.policies),
        ] {
            if !list.is_empty() {
                write!(yaml, "{key}:\n{list}").expect("a String");
            }
        }
        yaml + capture + &self.http
    }
}

/// `- {name: …, namespace: …, FIELDS}` for `namespace/name`.
fn resource(name: &str, fields: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("a resource's name is namespace/name");
    let fields = fields.trim_end_matches([',', ' ']);
    format!("- {{name: {name}, namespace: {namespace}, {fields}}}\n")
}
