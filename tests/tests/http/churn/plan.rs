//! What one generation of the configuration says, and so which answers may come of it.

use std::net::{IpAddr, SocketAddr};

/// The clusters' names, and what their endpoints speak. A cluster's endpoints change, its protocol doesn't.
const CLUSTERS: [(&str, bool); 3] = [("a", false), ("b", false), ("c", true)];
const BALANCING: [&str; 3] = ["round-robin", "least-request", "random"];
/// Routes `/r0/` to `/r3/`.
pub(super) const ROUTES: usize = 4;

/// One generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    number: usize,
    /// The endpoints of each cluster.
    endpoints: Vec<Vec<SocketAddr>>,
    balancing: Vec<&'static str>,
    /// The weight of each cluster, by route.
    weights: Vec<Vec<u32>>,
}

impl Plan {
    /// A random one. `addresses` are all endpoints; `is_http2` says what each speaks.
    pub(super) fn random(
        number: usize,
        addresses: &[SocketAddr],
        is_http2: &[bool],
        random: &mut fastrand::Rng,
    ) -> Self {
        let endpoints = CLUSTERS.map(|(_, http2)| {
            let able = addresses.iter().zip(is_http2).filter(|(_, is)| **is == http2);
            let mut able: Vec<SocketAddr> = able.map(|(address, _)| *address).collect();
            random.shuffle(&mut able);
            able.truncate(random.usize(1..=able.len()));
            able
        });
        let balancing = CLUSTERS.map(|_| BALANCING[random.usize(..BALANCING.len())]);
        let mut weights = || {
            let mut weights: Vec<u32> = CLUSTERS.map(|_| random.u32(..3) * random.u32(1..50)).to_vec();
            if weights.iter().sum::<u32>() == 0 {
                weights[number % CLUSTERS.len()] = 1;
            }
            weights
        };
        Self {
            number,
            weights: (0..ROUTES).map(|_| weights()).collect(),
            endpoints: endpoints.to_vec(),
            balancing: balancing.to_vec(),
        }
    }

    /// The `http` section.
    pub(super) fn yaml(&self) -> String {
        let mut yaml = "  clusters:\n".to_owned();
        for (((name, is_http2), endpoints), balancing) in CLUSTERS.iter().zip(&self.endpoints).zip(&self.balancing) {
            let protocol = if *is_http2 { "http2" } else { "http1" };
            let endpoints: Vec<String> = endpoints.iter().map(|address| format!("'{address}'")).collect();
            yaml += &format!(
                "  - {{name: {name}, protocol: {protocol}, balancing: {balancing}, endpoints: [{}]}}\n",
                endpoints.join(", ")
            );
        }
        yaml += "  routes:\n  - name: t\n    virtual_hosts:\n    - name: all\n      domains: ['*']\n      routes:\n";
        for (route, weights) in self.weights.iter().enumerate() {
            let split = CLUSTERS.iter().zip(weights).map(|((name, _), weight)| {
                format!("{{cluster: {name}, weight: {weight}, response_headers: {{set: {{x-cluster: {name}}}}}}}")
            });
            let split: Vec<String> = split.collect();
            yaml += &format!(
                "      - {{match: {{prefix: /r{route}/}}, forward: {{clusters: [{}]}}, response_headers: {{set: {{x-generation: '{}'}}}}}}\n",
                split.join(", "),
                self.number
            );
        }
        yaml
    }

    /// Whether a request by `route` may be answered by `server` as an endpoint of `cluster`.
    pub(super) fn allows(&self, route: usize, cluster: &str, server: IpAddr) -> bool {
        let index = CLUSTERS.iter().position(|(name, _)| *name == cluster);
        index.is_some_and(|index| {
            self.weights[route][index] > 0 && self.endpoints[index].iter().any(|address| address.ip() == server)
        })
    }
}
