//! Mistakes in the `http:` section: each is named with its place and a remedy.

use underpass_config::Config;
use underpass_config::http::{Discovery, DnsFamily, HostDiscovery, Reach};

use super::problems;

/// `http:` with these fields has exactly one problem; its path, and a part of the problem and of the remedy.
fn refused(http: &str, path: &str, what: &str, remedy: &str) {
    let found = problems(&format!("http: {{{http}}}"));
    let is_it = found.len() == 1
        && found[0].path == path
        && found[0].problem.contains(what)
        && found[0].remedy.contains(remedy);
    assert!(is_it, "{http}\nexpected: {path} | {what} | {remedy}\nfound: {found:#?}");
}

fn route(route: &str) -> String {
    format!(
        "clusters: [{{name: web}}], routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{route}]}}]}}]"
    )
}

#[test]
fn mistakes_in_routes() {
    let at = "http.routes[0].virtual_hosts[0].routes[0]";
    let forward = |fields: &str| format!("{{forward: {{{fields}}}}}");
    let direct = |fields: &str| format!("{{direct: {{status: 200}}, {fields}}}");
    let cases = [
        (
            forward("cluster: wbe"),
            "forward.cluster",
            "not one of `http.clusters`",
            "did you mean `web`",
        ),
        (
            forward("timeout: 1s"),
            "forward",
            "leads to no cluster",
            "cluster: NAME",
        ),
        (
            forward("cluster: web, timeout: 5"),
            "forward.timeout",
            "is not a duration",
            "5s",
        ),
        (
            forward("cluster: web, cors: {allow_origins: []}"),
            "forward.cors.allow_origins",
            "allows no origin",
            "for all",
        ),
        (
            forward("cluster: web, cors: {allow_origins: [{exact: a, prefix: b}]}"),
            "forward.cors.allow_origins[0]",
            "exactly one",
            "exact, prefix",
        ),
        (
            forward("cluster: web, cors: {allow_origins: [{regex: 'a('}]}"),
            "forward.cors.allow_origins[0].regex",
            "not a regular expression",
            "RE2",
        ),
        (
            forward("cluster: web, cors: {allow_origins: ['*'], allow_methods: ['GET, PUT']}"),
            "forward.cors.allow_methods[0]",
            "not a name",
            "one name for each",
        ),
        (
            forward("cluster: web, mirrors: [{cluster: wbe}]"),
            "forward.mirrors[0].cluster",
            "not one of `http.clusters`",
            "did you mean `web`",
        ),
        (
            forward("cluster: web, mirrors: [{cluster: web, percent: 101}]"),
            "forward.mirrors[0].percent",
            "not a percentage",
            "0 to 100",
        ),
        (
            forward("cluster: web, grpc_timeout_offset: 1s"),
            "forward.grpc_timeout_offset",
            "shortens nothing",
            "`max_grpc_timeout` too",
        ),
        (
            forward("cluster: web, max_stream_duration: {grpc_timeout_header_offset: 1s}"),
            "forward.max_stream_duration.grpc_timeout_header_offset",
            "shortens nothing",
            "`grpc_timeout_header_max` too",
        ),
        (
            forward("cluster: web, timeout: 1s, max_stream_duration: 5s"),
            "forward.timeout",
            "no effect beside",
            "remove one",
        ),
        (
            forward("clusters: [{cluster: web, weight: 0}]"),
            "forward",
            "no cluster",
            "weight above 0",
        ),
        (
            forward("cluster: web, retry: {on: [gateway-errors]}"),
            "forward.retry.on[0]",
            "not a known value",
            "`gateway-error`",
        ),
        (
            forward("cluster: web, retry: {on: [retriable-status-codes]}"),
            "forward.retry.statuses",
            "goes with",
            "statuses: [503]",
        ),
        (
            forward("cluster: web, prefix_rewrite: v2"),
            "forward.prefix_rewrite",
            "is not a path",
            "from `/` on",
        ),
        (
            forward("cluster: web, regex_rewrite: {pattern: '(a)', substitution: '\\2'}"),
            "forward.regex_rewrite.substitution",
            "names group 2",
            "first group",
        ),
        (
            forward("cluster: web, host_rewrite: 'a b'"),
            "forward.host_rewrite",
            "is not a host",
            "with a port",
        ),
        (
            forward("cluster: web, fault: {abort: 503, abort_percent: 101}"),
            "forward.fault.abort_percent",
            "not a percentage",
            "0 to 100",
        ),
        (
            direct("match: {prefix: a}"),
            "match.prefix",
            "is not a path",
            "from `/` on",
        ),
        (
            direct("match: {path: /a, prefix: /a}"),
            "match.prefix",
            "`path` is given too",
            "remove one",
        ),
        (
            direct("match: {regex: '('}"),
            "match.regex",
            "not a regular expression",
            "RE2",
        ),
        (
            // Two in the parentheses that one is put in.
            direct("match: {regex: 'a)|(?:b'}"),
            "match.regex",
            "not a regular expression",
            "RE2",
        ),
        (
            direct("match: {regex: '(a{1000}){1000}'}"),
            "match.regex",
            "too large",
            "RE2",
        ),
        (
            direct("match: {runtime_fraction: {numerator: 101}}"),
            "match.runtime_fraction.numerator",
            "not a valid number",
            "0 to 100",
        ),
        (
            direct("match: {runtime_fraction: {numerator: 1, denominator: 1000}}"),
            "match.runtime_fraction.denominator",
            "not a known value",
            "10000",
        ),
        (
            direct("match: {headers: {'x y': a}}"),
            "match.headers.x y",
            "not the name",
            "hyphens",
        ),
        (
            direct("match: {headers: {x: {}}}"),
            "match.headers.x",
            "exactly one condition",
            "present",
        ),
        (
            direct("request_headers: {set: {content-length: '1'}}"),
            "request_headers.set.content-length",
            "frames the message",
            "remove it",
        ),
        (
            direct("response_headers: {add: {x: '%SPAN_ID%'}}"),
            "response_headers.add.x",
            "`%SPAN_ID%`, which is not supported",
            "UPSTREAM_HOST",
        ),
        (
            direct("request_headers: {set: {x: '100%'}}"),
            "request_headers.set.x",
            "`%` that begins nothing",
            "write %%",
        ),
        (
            direct("request_headers: {replace: {x: '%UPSTREAM_HOST%'}}"),
            "request_headers.replace.x",
            "nothing is known when a request",
            "`response_headers`",
        ),
        (
            forward("cluster: web, fault: {abort: 503, abort_grpc: 14}"),
            "forward.fault.abort_grpc",
            "`abort` is given too",
            "remove one",
        ),
        (
            forward("cluster: web, fault: {abort_grpc: 17}"),
            "forward.fault.abort_grpc",
            "not a valid number",
            "1 to 16",
        ),
        (
            "{direct: {status: 99}}".to_owned(),
            "direct.status",
            "not a valid number",
            "200 to 599",
        ),
        (
            "{name: nothing}".to_owned(),
            "",
            "exactly one thing",
            "forward: {cluster: web}",
        ),
        (
            "{redirect: {status: '304'}}".to_owned(),
            "redirect.status",
            "not a known value",
            "301",
        ),
    ];
    for (written, field, what, remedy) in cases {
        let path = match field {
            "" => at.to_owned(),
            field => format!("{at}.{field}"),
        };
        refused(&route(&written), &path, what, remedy);
    }
}

#[test]
fn mistakes_in_how_endpoints_are_found_and_reached() {
    let at = "http.clusters[0]";
    let cases = [
        (
            "endpoints: [{address: '10.0.0.1:80', reach: hbone}]",
            "endpoints[0].reach",
            "nobody is said to open tunnels as",
            "http.client",
        ),
        (
            "endpoints: [{address: '10.0.0.1:80', reach: tunnel}]",
            "endpoints[0].reach",
            "not a known value",
            "hbone",
        ),
        (
            "endpoints: [{address: '10.0.0.1:80', via: '10.0.0.2:15008'}]",
            "endpoints[0].via",
            "what has no tunnel",
            "reach: hbone",
        ),
        (
            "endpoints: [{address: 'a.test:80', reach: direct}], dns: {ttl: maybe}",
            "dns.ttl",
            "not a known value",
            "true, false",
        ),
        (
            "endpoints_from: workload",
            "endpoints_from",
            "nobody is said to open tunnels as",
            "http.client",
        ),
        (
            "endpoints_from: anywhere",
            "endpoints_from",
            "not a known value",
            "connection",
        ),
        (
            "endpoints_from: host, endpoints: ['10.0.0.1:80']",
            "endpoints",
            "`endpoints_from` is given too",
            "remove one",
        ),
        (
            "endpoints_from: host, dns: {kind: strict}",
            "dns.kind",
            "when somebody wants them",
            "remove it",
        ),
        (
            "endpoints_from: connection, dns: {}",
            "dns",
            "no name to ask it for",
            "host",
        ),
    ];
    for (cluster, path, what, remedy) in cases {
        refused(
            &format!("clusters: [{{name: a, {cluster}}}]"),
            &format!("{at}.{path}"),
            what,
            remedy,
        );
    }
}

#[test]
fn how_endpoints_are_found_and_reached_is_read() {
    let client = "client: 'spiffe://cluster.local/ns/shop/sa/waypoint'";
    let certificate = "{identity: 'spiffe://cluster.local/ns/shop/sa/waypoint', chain: /a, key: /b}";
    let http = |clusters: &str| {
        let yaml = format!(
            "node: {{identities: {{roots: /r, certificates: [{certificate}]}}}}\nhttp: {{{client}, clusters: [{{name: a, {clusters}}}]}}"
        );
        let config = Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{clusters}: {problems}"));
        assert!(config.http.client.is_some());
        config.http.cluster("a").expect("it is there").settings.clone()
    };
    let reach = |fields: &str| {
        let settings = http(&format!("endpoints: [{{address: '10.0.0.1:80'{fields}}}]"));
        settings.endpoints[0].reach.clone()
    };
    let via = "10.0.0.2:15008".parse().ok();
    assert_eq!(reach(""), Reach::Direct);
    assert_eq!(reach(", reach: hbone"), Reach::Hbone { via: None });
    assert_eq!(reach(", reach: hbone, via: '10.0.0.2:15008'"), Reach::Hbone { via });
    let original = |reach| Discovery::Original(reach);
    assert_eq!(http("endpoints_from: connection").discovery, original(Reach::Direct));
    assert_eq!(
        http("endpoints_from: workload").discovery,
        original(Reach::Hbone { via: None })
    );
    let expected = HostDiscovery {
        family: DnsFamily::V4Only,
        servers: vec!["10.0.0.53:53".parse().expect("an address")],
    };
    let of_host = http("endpoints_from: host, dns: {family: v4-only, servers: ['10.0.0.53:53']}");
    assert_eq!(of_host.discovery, Discovery::Host(expected));
}

#[test]
fn mistakes_in_clusters_and_tables() {
    let cases = [
        (
            "clusters: [{name: a, endpoints: ['10.0.0.1']}]",
            "http.clusters[0].endpoints[0]",
            "not the address of one host with a port",
            "127.0.0.1:9001",
        ),
        (
            "clusters: [{name: a, endpoints: ['10.0.0.1:80', '10.0.0.1:80']}]",
            "http.clusters[0].endpoints[1]",
            "endpoints[0] is there already",
            "weight",
        ),
        (
            "clusters: [{name: a}, {name: a}]",
            "http.clusters[1].name",
            "already has this name",
            "its own",
        ),
        (
            "clusters: [{name: a, protocol: h2}]",
            "http.clusters[0].protocol",
            "not a known value",
            "http2",
        ),
        (
            "routes: [{name: t, virtual_hosts: [{name: a, domains: ['*']}, {name: b, domains: ['*']}]}]",
            "http.routes[0].virtual_hosts[1].domains[0]",
            "virtual_hosts[0] already has this domain",
            "remove one",
        ),
        (
            "routes: [{name: t, virtual_hosts: [{name: a, domains: ['*'], cors: {max_age: 1h}}]}]",
            "http.routes[0].virtual_hosts[0].cors.allow_origins",
            "allows no origin",
            "for all",
        ),
        (
            "routes: [{name: t, virtual_hosts: [{name: a, domains: ['a.*.b']}]}]",
            "http.routes[0].virtual_hosts[0].domains[0]",
            "a star",
            "*.example.com",
        ),
        (
            "routes: [{name: t, virtual_hosts: [{name: a, domains: ['a:80']}]}]",
            "http.routes[0].virtual_hosts[0].domains[0]",
            "a port",
            "web.example.com",
        ),
    ];
    for (http, path, what, remedy) in cases {
        refused(http, path, what, remedy);
    }
}

#[test]
fn a_listener_and_its_routes_go_together() {
    let cases = [
        ("protocol: http", "routes | | needs its routes | routes: NAME"),
        (
            "protocol: http, routes: other",
            "routes | other | not one of `http.routes` | none yet",
        ),
        (
            "protocol: socks5, routes: t",
            "routes | t | only HTTP listeners | protocol: http",
        ),
        (
            "protocol: hbone",
            "identity | | shows a certificate | identity: spiffe://",
        ),
        (
            "protocol: hbone, identity: web",
            "identity | web | begins with `spiffe://` | spiffe://cluster.local/ns/shop/sa/web",
        ),
        (
            "protocol: hbone, identity: 'spiffe://cluster.local/ns/shop/sa/web'",
            "identity | spiffe://cluster.local/ns/shop/sa/web | there is no certificate | node.identities.certificates",
        ),
        (
            "protocol: socks5, identity: 'spiffe://cluster.local/ns/shop/sa/web'",
            "identity | spiffe://cluster.local/ns/shop/sa/web | only listeners for tunnels | protocol: hbone",
        ),
    ];
    for (fields, expected) in cases {
        let yaml = format!("node: {{listeners: [{{name: a, address: '127.0.0.1:80', {fields}}}]}}");
        let parts: Vec<&str> = expected.split('|').map(str::trim).collect();
        let found = problems(&yaml);
        let first = &found[0];
        assert_eq!(first.path, format!("node.listeners[0].{}", parts[0]), "{found:#?}");
        assert!(
            first.value == parts[1] && first.problem.contains(parts[2]) && first.remedy.contains(parts[3]),
            "{found:#?}"
        );
    }
}

#[test]
fn mistakes_in_how_clusters_are_connected_to() {
    let cluster = |fields: &str| format!("clusters: [{{name: a, {fields}}}]");
    let cases = [
        (
            cluster("tls: {insecure_skip_verify: true, roots: /ca.pem}"),
            "tls.insecure_skip_verify",
            "nothing is verified",
            "remove `roots`",
        ),
        (
            cluster("tls: {any_name: true, names: [a.example]}"),
            "tls.any_name",
            "`names` is given too",
            "remove",
        ),
        (
            cluster("tls: {roots: ca.pem}"),
            "tls.roots",
            "not an absolute path",
            "whole path",
        ),
        (
            cluster("tls: {names: [{type: dns}]}"),
            "tls.names[0]",
            "exactly one condition",
            "regex",
        ),
        (
            cluster("max_stream_duration: 5"),
            "max_stream_duration",
            "not a duration",
            "200ms",
        ),
        (
            cluster("balancing: maglev, maglev: {table_size: 100}"),
            "maglev.table_size",
            "not a prime number",
            "65537",
        ),
        (
            cluster("maglev: {table_size: 101}"),
            "maglev",
            "another way of balancing",
            "balancing: maglev",
        ),
        (
            cluster("balancing: ring-hash, ring_hash: {minimum_ring_size: 9, maximum_ring_size: 8}"),
            "ring_hash.minimum_ring_size",
            "above `maximum_ring_size`",
            "at most",
        ),
        (
            cluster("localities: {eu/a: 1}"),
            "localities.eu/a",
            "none of the endpoints is there",
            "locality",
        ),
        (
            cluster("subsets: {selectors: [[]]}"),
            "subsets.selectors[0]",
            "makes no subset",
            "[version]",
        ),
        (
            cluster("subsets: {selectors: [[version]], fallback: default}"),
            "subsets.default",
            "goes with `fallback: default`",
            "write both",
        ),
        (
            cluster("outliers: {max_ejection_percent: 101}"),
            "outliers.max_ejection_percent",
            "not a valid number",
            "from 0 to 100",
        ),
        (
            cluster("limits: {retries: 3, retry_budget: {}}"),
            "limits.retries",
            "`retry_budget` is given too",
            "remove one",
        ),
        (
            cluster("slow_start: {aggression: 0}"),
            "slow_start.aggression",
            "not a valid number",
            "0.1 to 100",
        ),
        (
            cluster("tls: {names: [{prefix: ''}]}"),
            "tls.names[0].prefix",
            "verifies nothing",
            "any_name",
        ),
        (
            cluster("tls: {names: [{contains: ''}]}"),
            "tls.names[0].contains",
            "verifies nothing",
            "any_name",
        ),
        (
            cluster("tls: {names: [{suffix: ''}]}"),
            "tls.names[0].suffix",
            "verifies nothing",
            "any_name",
        ),
        (cluster("dns: {}"), "endpoints", "no name to ask it for", "add one"),
        (
            cluster("tls: {names: [{type: spiffe, exact: a}]}"),
            "tls.names[0].type",
            "not a known value",
            "uri",
        ),
        (
            cluster("tls: {server_name: 'a b'}"),
            "tls.server_name",
            "not a host name",
            "for example",
        ),
        (
            cluster("protocol: negotiated"),
            "protocol",
            "negotiated in TLS",
            "add `tls:`",
        ),
        (
            cluster("proxy_protocol: v3"),
            "proxy_protocol",
            "not a known value",
            "v1",
        ),
        (
            cluster("limits: {connections: 0}"),
            "limits.connections",
            "not a valid number",
            "from 1",
        ),
        (
            cluster("subsets: {selectors: [[a, b], [c], [b, a]]}"),
            "subsets.selectors[2]",
            "selectors[0] is the same",
            "remove one",
        ),
        (
            cluster("endpoints: ['api.example:443'], dns: {family: v5}"),
            "dns.family",
            "not a known value",
            "v4-only",
        ),
        (
            cluster("connections: {requests: 0}"),
            "connections.requests",
            "not a valid number",
            "from 1",
        ),
        (
            cluster("connections: {streams: 1001}"),
            "connections.streams",
            "not a valid number",
            "to 1000",
        ),
        (
            cluster("connections: {ping: {interval: 0s}}"),
            "connections.ping.interval",
            "no time at all",
            "above zero",
        ),
        (
            cluster("endpoints: ['api.example:443']"),
            "endpoints[0]",
            "not the address",
            "`dns: {}`",
        ),
        (
            cluster("dns: {}, endpoints: [api.example]"),
            "endpoints[0]",
            "host name with a port",
            "api.example.com:443",
        ),
        (
            cluster("endpoints: ['a.example:80'], dns: {kind: loose}"),
            "dns.kind",
            "not a known value",
            "logical",
        ),
    ];
    for (http, path, what, remedy) in cases {
        refused(&http, &format!("http.clusters[0].{path}"), what, remedy);
    }
}
