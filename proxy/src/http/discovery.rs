//! Asks DNS for the endpoints of clusters that are known by name, again and again.
//!
//! What it answers is put in force as any update of the configuration: requests find endpoints in their snapshot and never wait for DNS. A name that
//! can't be asked keeps the addresses it had; one of which DNS says that it has none has none, as with Envoy.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{Resolver, TokioResolver};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use underpass_config::http::{Cluster, Discovery, DnsDiscovery, DnsKind, EndpointSettings, Http};
use underpass_config::{Config, Text, Touched};

use crate::node::Node;

/// No answer holds for less: a name with a time to live of zero is not asked all the time.
pub(super) const SHORTEST: Duration = Duration::from_secs(1);
/// No answer holds for longer.
pub(super) const LONGEST: Duration = Duration::from_secs(3600);

/// Asks for as long as the node lives, for the clusters of the configuration in force.
pub async fn follow(node: Arc<Node>) {
    let mut changes = node.changes();
    let node = Arc::downgrade(&node);
    let mut asked: HashMap<Text, (DnsDiscovery, AbortHandle)> = HashMap::new();
    loop {
        let Some(wanted) = node.upgrade().map(|node| wanted(&node.snapshot().config.http)) else {
            return;
        };
        asked.retain(|name, (settings, asking)| {
            let is_wanted = wanted.get(name) == Some(settings);
            if !is_wanted {
                asking.abort();
            }
            is_wanted
        });
        for (name, settings) in wanted {
            asked.entry(name).or_insert_with_key(|name| {
                let asking = tokio::spawn(ask(node.clone(), name.clone(), settings.clone()));
                (settings, asking.abort_handle())
            });
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn wanted(http: &Http) -> HashMap<Text, DnsDiscovery> {
    let named = http
        .clusters
        .iter()
        .filter_map(|(name, cluster)| match &cluster.settings.discovery {
            Discovery::Dns(settings) => Some((name.clone(), settings.clone())),
            Discovery::Static | Discovery::Original(_) | Discovery::Host(_) => None,
        });
    named.collect()
}

/// How long a server may take to answer: what resolv.conf(5) has for its `timeout`.
const ONE_TRY: Duration = Duration::from_secs(5);

/// Each family is asked for by itself: what cannot be told of one says nothing of the other.
pub(super) const FAMILIES: [LookupIpStrategy; 2] = [LookupIpStrategy::Ipv6Only, LookupIpStrategy::Ipv4Only];
/// How long the answer for one family waits for that for the other (RFC 8305, section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// What is known of one name, in the order of [`FAMILIES`].
type Known = [Vec<IpAddr>; 2];

/// What DNS says of one name, by its place among the cluster's: the addresses of some families, by their place in [`FAMILIES`].
struct News {
    name: usize,
    addresses: Vec<(usize, Vec<IpAddr>)>,
}

/// Asks for a cluster's names, each by itself: one of which nothing is said holds up no other.
async fn ask(node: Weak<Node>, cluster: Text, settings: DnsDiscovery) {
    let resolvers = resolvers(&cluster, &settings).await;
    let Some(mut known) = node
        .upgrade()
        .map(|node| known_before(&node.snapshot().config.http, &cluster, &settings))
    else {
        return;
    };
    let (tell, mut told) = mpsc::channel(settings.names.len().max(1));
    let mut asking = JoinSet::new();
    for (name, named) in settings.names.iter().enumerate() {
        let question = Question {
            name,
            host: named.host.clone(),
            cluster: cluster.clone(),
            refresh: settings.refresh,
            holds_for_ttl: settings.holds_for_ttl,
            resolvers: resolvers.clone(),
            tell: tell.clone(),
        };
        asking.spawn(question.ask_again_and_again());
    }
    drop(tell);
    let mut next = told.recv().await;
    while let Some(news) = next {
        for (family, addresses) in news.addresses {
            known[news.name][family] = addresses;
        }
        if let Ok(more) = told.try_recv() {
            next = Some(more);
            continue;
        }
        let Some(node) = node.upgrade() else { return };
        publish(&node, &cluster, &settings, &known);
        drop(node);
        next = told.recv().await;
    }
}

/// What is in force of earlier answers: it stays until there are others, whatever else of the question has changed.
fn known_before(http: &Http, cluster: &Text, settings: &DnsDiscovery) -> Vec<Known> {
    let endpoints = http
        .cluster(cluster)
        .map_or(&[][..], |cluster| &cluster.settings.endpoints);
    let names = settings.names.iter().map(|name| {
        let is_of_it = |endpoint: &&EndpointSettings| {
            endpoint.host.as_ref() == Some(&name.host) && endpoint.address.port() == name.port
        };
        let addresses = endpoints.iter().filter(is_of_it).map(|endpoint| endpoint.address.ip());
        let (v6, v4) = addresses.partition(IpAddr::is_ipv6);
        [v6, v4]
    });
    names.collect()
}

/// Who is asked for the families that are wanted. Where that can't be found out, it is tried again.
async fn resolvers(cluster: &Text, settings: &DnsDiscovery) -> [Option<TokioResolver>; 2] {
    let [v6, v4] = settings.family.asks();
    loop {
        let make = |(is_asked, family): (bool, LookupIpStrategy)| {
            is_asked
                .then(|| resolver(&settings.servers, family, ONE_TRY))
                .transpose()
        };
        match (make((v6, FAMILIES[0])), make((v4, FAMILIES[1]))) {
            (Ok(v6), Ok(v4)) => return [v6, v4],
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%cluster, %error, "DNS can't be asked for a cluster's endpoints: check /etc/resolv.conf, or set `dns.servers`");
            }
        }
        tokio::time::sleep(settings.refresh).await;
    }
}

/// Asks `servers`, or whom the system asks; each of them again where there is no answer to `one_try`.
pub(super) fn resolver(
    servers: &[SocketAddr],
    family: LookupIpStrategy,
    one_try: Duration,
) -> Result<TokioResolver, NetError> {
    let mut builder = match servers.is_empty() {
        true => TokioResolver::builder_tokio()?,
        false => {
            let servers = servers.iter().map(|server| {
                let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                connections.iter_mut().for_each(|one| one.port = server.port());
                NameServerConfig::new(server.ip(), true, connections)
            });
            let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
            Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    // Answers are kept here, for as long as they hold.
    builder.options_mut().cache_size = 0;
    builder.options_mut().ip_strategy = family;
    builder.options_mut().timeout = one_try;
    builder.build()
}

/// What is asked about one name.
struct Question {
    name: usize,
    host: Text,
    cluster: Text,
    refresh: Duration,
    holds_for_ttl: bool,
    resolvers: [Option<TokioResolver>; 2],
    tell: mpsc::Sender<News>,
}

impl Question {
    async fn ask_again_and_again(self) {
        while let Some(holds) = self.ask().await {
            tokio::time::sleep(holds).await;
        }
    }

    /// Asks once, and says how long the answer holds; nothing if nobody wants to know any more.
    async fn ask(&self) -> Option<Duration> {
        let mut lookups = JoinSet::new();
        for (family, resolver) in self.resolvers.iter().enumerate() {
            if let Some(resolver) = resolver.clone() {
                let host = self.host.clone();
                lookups.spawn(async move { (family, resolver.lookup_ip(&*host).await) });
            }
        }
        let mut holds = LONGEST;
        let mut addresses = Vec::new();
        loop {
            let delay = if addresses.is_empty() {
                LONGEST
            } else {
                RESOLUTION_DELAY
            };
            match tokio::time::timeout(delay, lookups.join_next()).await {
                // It is told later, if it is.
                Err(_) => self.tell(&mut addresses).await?,
                Ok(None) => break,
                Ok(Some(Err(_))) => {}
                Ok(Some(Ok((family, answer)))) => {
                    let (said, for_so_long) = self.read(family, answer);
                    holds = holds.min(for_so_long);
                    addresses.extend(said.map(|said| (family, said)));
                }
            }
        }
        self.tell(&mut addresses).await?;
        Some(holds)
    }

    async fn tell(&self, addresses: &mut Vec<(usize, Vec<IpAddr>)>) -> Option<()> {
        if addresses.is_empty() {
            return Some(());
        }
        let addresses = std::mem::take(addresses);
        let news = News {
            name: self.name,
            addresses,
        };
        self.tell.send(news).await.ok()
    }

    /// What an answer says, if anything, and how long that holds.
    fn read(&self, family: usize, answer: Result<LookupIp, NetError>) -> (Option<Vec<IpAddr>>, Duration) {
        let (cluster, host) = (&self.cluster, &*self.host);
        match answer {
            Ok(answer) => {
                let addresses = answer.iter().filter(is_of_a_host).collect();
                let ttl = answer
                    .valid_until()
                    .saturating_duration_since(std::time::Instant::now());
                // A hosts file says nothing of time: what it says holds for as long as anything may.
                let holds = match self.holds_for_ttl && ttl < LONGEST {
                    true => ttl.max(SHORTEST),
                    false => self.refresh,
                };
                (Some(addresses), holds)
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(_))) => {
                tracing::debug!(%cluster, host, family = ?FAMILIES[family], "DNS has no address");
                (Some(Vec::new()), self.refresh)
            }
            Err(error) => {
                tracing::warn!(%cluster, host, %error, "DNS can't be asked: the addresses that were known stay");
                (None, self.refresh)
            }
        }
    }
}

pub(super) fn is_of_a_host(address: &IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast()
}

/// Puts in force what is known, if it is something else than what is in force.
fn publish(node: &Arc<Node>, cluster: &Text, settings: &DnsDiscovery, known: &[Known]) {
    let endpoints = endpoints(settings, known);
    let is_news = |http: &Http| match http.cluster(cluster) {
        // Unless the configuration has changed meanwhile: then this is asked no more.
        Some(now) if now.settings.discovery == Discovery::Dns(settings.clone()) => now.settings.endpoints != endpoints,
        _ => false,
    };
    if !is_news(&node.snapshot().config.http) {
        return;
    }
    tracing::info!(%cluster, endpoints = endpoints.len(), "the endpoints that DNS has for a cluster have changed");
    node.publish(|in_force| {
        let mut http = (*in_force.http).clone();
        if is_news(&http)
            && let Some(now) = http.clusters.get_mut(cluster)
        {
            *now = Cluster::with_addresses(now, endpoints.clone());
        }
        let config = Config {
            http: Arc::new(http),
            ..in_force.clone()
        };
        (config, Touched::default())
    });
}

fn endpoints(settings: &DnsDiscovery, known: &[Known]) -> Vec<EndpointSettings> {
    let mut endpoints: Vec<EndpointSettings> = Vec::new();
    for (name, known) in settings.names.iter().zip(known) {
        let used = match settings.kind {
            DnsKind::Strict => usize::MAX,
            DnsKind::Logical => 1,
        };
        let [v6, v4] = known;
        for ip in settings.family.chosen([v6, v4]).into_iter().flatten().take(used) {
            let address = SocketAddr::new(ip.to_canonical(), name.port);
            // Two names may lead to one host.
            if !endpoints.iter().any(|endpoint| endpoint.address == address) {
                endpoints.push(name.endpoint(address));
            }
        }
    }
    if settings.kind == DnsKind::Strict {
        // Servers turn their answers round; that changes nothing.
        endpoints.sort_by_key(|endpoint| endpoint.address);
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;
    use underpass_config::http::{DnsFamily, NamedEndpoint};

    fn of(kind: DnsKind, answers: &[&[&str]]) -> Vec<String> {
        let names = answers.iter().map(|_| NamedEndpoint {
            host: "a".into(),
            port: 80,
            weight: 1,
            priority: 0,
            locality: "".into(),
            labels: Default::default(),
        });
        let settings = DnsDiscovery {
            kind,
            family: DnsFamily::All,
            names: names.collect(),
            refresh: DnsDiscovery::REFRESH,
            holds_for_ttl: true,
            servers: Vec::new(),
        };
        let known: Vec<Known> = answers
            .iter()
            .map(|addresses| {
                let addresses = addresses.iter().map(|address| address.parse().unwrap());
                [addresses.collect(), Vec::new()]
            })
            .collect();
        let endpoints = endpoints(&settings, &known);
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[test]
    fn the_order_of_answers_is_none_and_an_address_counts_once() {
        let answers: [&[&str]; 2] = [&["10.0.0.2", "10.0.0.1"], &["::ffff:10.0.0.2", "fd00::1"]];
        assert_eq!(
            of(DnsKind::Strict, &answers),
            ["10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80"]
        );
        assert_eq!(of(DnsKind::Logical, &answers), ["10.0.0.2:80"]);
    }
}
