//! Documents that are refused: where, what, why, and what to write instead.

use underpass_config::Problem;

use super::problems;

/// The document has exactly the expected problems, in this order; one on each line: the path, the value, a part of the
/// problem and a part of the remedy.
pub(super) fn refused(yaml: &str, expected: &str) {
    let found = problems(yaml);
    let expected: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let matching = |(problem, expected): (&Problem, &&str)| {
        let parts: Vec<&str> = expected.split('|').map(str::trim).collect();
        let [path, value, what, remedy] = parts[..] else {
            panic!("not four parts: {expected}")
        };
        problem.path == path
            && problem.value == value
            && problem.problem.contains(what)
            && problem.remedy.contains(remedy)
    };
    let all = found.len() == expected.len() && found.iter().zip(&expected).all(matching);
    assert!(all, "{yaml}\nexpected: {expected:#?}\nfound: {found:#?}");
}

#[test]
fn fields_that_do_not_exist() {
    let cases: [(&str, &str); 9] = [
        (
            "nodes: {}",
            "nodes | nodes | no such field | did you mean `node`? known: node, workloads, services, auth",
        ),
        (
            "node: {listners: []}",
            "node.listners | listners | no such field | did you mean `listeners`?",
        ),
        (
            "node: {timeouts: {read: 5s}}",
            "node.timeouts.read | read | no such field | known: connect, idle, drain",
        ),
        (
            "workloads:\n- {name: a, namespace: b, adresses: [10.0.0.1]}",
            "workloads[0].adresses | adresses | no such field | did you mean `addresses`?",
        ),
        (
            "workloads:\n- {name: a, namespace: b, colour: red}",
            "workloads[0].colour | colour | no such field | known: name, namespace, uid, service_account, trust_domain",
        ),
        (
            "services:\n- {name: a, namespace: b, ports: [{port: 80}], endpoints: [{worklaod: b/a}]}",
            "services[0].endpoints[0].worklaod | worklaod | no such field | did you mean `workload`?",
        ),
        (
            "services:\n- {name: a, namespace: b, ports: [{port: 80, targetPort: 81}]}",
            "services[0].ports[0].targetPort | targetPort | no such field | did you mean `target_port`?",
        ),
        (
            "authorization_policies:\n- {name: p, namespace: n, scope: GLOBAL, groups: [{rules: [{matches: [{ports: [1]}]}]}]}",
            "authorization_policies[0].groups[0].rules[0].matches[0].ports | ports | no such field | known: namespaces, not_namespaces, service_accounts",
        ),
        (
            "authorization_policies:\n- {name: p, namespace: n, scope: GLOBAL, targetRefs: []}",
            "authorization_policies[0].targetRefs | targetRefs | no such field | known: name, namespace, scope",
        ),
    ];
    for (yaml, expected) in cases {
        refused(yaml, expected);
    }
}

#[test]
fn values_of_the_wrong_shape() {
    let cases: [(&str, &str); 12] = [
        ("", " |  | the document is empty | examples/relay.yaml"),
        (
            "# only a comment\n",
            " |  | the document is empty | examples/relay.yaml",
        ),
        ("- a", " |  | must be a mapping | `{field: value}`"),
        (
            "node: {}\n---\nnode: {}",
            " |  | second document | remove the line `---`",
        ),
        ("node:\n\tname: a", " |  | tab | indentation"),
        (
            "workloads:\n- {name: a, namespace: b, addresses: 10.0.0.1}",
            "workloads[0].addresses |  | must be a list | `[a, b]`",
        ),
        (
            "services:\n- {name: a, namespace: b, ports: [{port: 80}], endpoints: }",
            "services[0].endpoints |  | must be a list | `[]`",
        ),
        ("node: {name: [a]}", "node.name |  | must be a single value | no list"),
        (
            "workloads:\n- {name: a}",
            "workloads[0] |  | the field `namespace` is missing | add it",
        ),
        (
            "workloads:\n- {name: a, namespace: ~}",
            "workloads[0].namespace |  | there is no value | write one",
        ),
        (
            "workloads:\n- {name: a, namespace: b, name: c}",
            "workloads[0] | name | given twice | remove one",
        ),
        (
            "services:\n- {name: a, namespace: b, ports: [{port: 80}], endpoints: [12]}",
            "services[0].endpoints[0] |  | here is integer `12` | write a text (in quotes",
        ),
    ];
    for (yaml, expected) in cases {
        refused(yaml, expected);
    }
}

#[test]
fn node_settings_that_make_no_sense() {
    refused(
        "node:
  name: ''
  workers: 0
  admin: 0.0.0.0:15000
  timeouts: {connect: 0s, idle: 5, drain: -1s, handshake: 100years}
  limits: {connections: 0, connections_per_namespace: many, connect_attempts: +3, connections_per_workload: 5000000000}
  keepalive: {time: 1500ms, interval: 0s, probes: 128}
  hbone:
    streams: 0
    stream_window: 8MiB
    connection_window: 1MiB
    buffer: 1KiB
    connections_per_peer: lots
    idle: 0s
    ping: {interval: 5, timeout: 0s}
    expired: reet
  offload:
    enabled: yes
    after: {messages: 0, bytes: 1.5MiB, time: 5}
    limit: 2GiB
    low_watermark: 2GiB
    except: {namespaces: [a/b], workloads: [db], ports: [0]}
  unknown_destination: alow
  access_log: {format: xml, path: ''}
  log: ''",
        "
            node.workers | 0 | not a valid number | from 1 to 1024
            node.admin | 0.0.0.0:15000 | may only listen on loopback | 127.0.0.1
            node.name |  | is empty | give it a name
            node.timeouts.connect | 0s | no time at all | above zero
            node.timeouts.idle | 5 | not a duration | 200ms, 5s, 1h
            node.timeouts.drain | -1s | not a duration | 200ms, 5s, 1h
            node.timeouts.handshake | 100years | too long | at most 1year
            node.limits.connections | 0 | not a valid number | from 1 to 4294967295
            node.limits.connections_per_namespace | many | not a valid number | from 1 to
            node.limits.connections_per_workload | 5000000000 | not a valid number | from 1 to
            node.limits.connect_attempts | +3 | not a valid number | from 1 to
            node.keepalive.time | 1500ms | not possible for keepalive | whole seconds
            node.keepalive.interval | 0s | no time at all | above zero
            node.keepalive.interval | 0s | not possible for keepalive | whole seconds
            node.keepalive.probes | 128 | not a valid number | from 1 to 127
            node.hbone.buffer | 1KiB | not a sensible size | 1MiB to 3GiB
            node.hbone.connection_window | 1MiB | less than one stream may have, 8MiB | at least `stream_window`
            node.hbone.streams | 0 | not a valid number | from 1 to 10000
            node.hbone.connections_per_peer | lots | not a valid number | from 1 to
            node.hbone.expired | reet | not a known value | did you mean `reset`? known: keep, reset
            node.hbone.idle | 0s | no time at all | above zero
            node.hbone.ping.interval | 5 | not a duration | 200ms, 5s, 1h
            node.hbone.ping.timeout | 0s | no time at all | above zero
            node.offload.limit | 2GiB | not a sensible limit | 16KiB to 1GiB
            node.offload.low_watermark | 2GiB | not below the limit | half
            node.offload.enabled | yes | not a known value | true, false
            node.offload.after.messages | 0 | not a valid number | from 1
            node.offload.after.bytes | 1.5MiB | not a number of bytes | 64KiB
            node.offload.after.time | 5 | not a duration | 200ms, 5s, 1h
            node.offload.except.namespaces[0] | a/b | not a name | no slashes
            node.offload.except.workloads[0] | db | not a workload | NAMESPACE/NAME
            node.offload.except.ports[0] | 0 | not a port | 1 to 65535
            node.unknown_destination | alow | not a known value | did you mean `allow`? known: allow, deny
            node.access_log.path |  | is empty | `-`
            node.access_log.format | xml | not a known value | write one of: text, json, off, istio, istio-json
            node.log |  | is empty | `info`",
    );
}

#[test]
fn listeners_that_can_not_be_opened() {
    refused(
        "node:
  listeners:
  - {name: a, address: '127.0.0.1:1000', protocol: fixed, destination: '127.0.0.1:1000'}
  - {name: a, address: '0.0.0.0:1000', protocol: socks5}
  - {name: b, address: '[::]:15000', protocol: http-connect, destination: '10.0.0.1:80'}
  - {name: c, address: '127.0.0.1:0', protocol: socks5}
  - {name: d, address: localhost, protocol: socks5}
  - {name: e, address: '127.0.0.1:1001', protocol: sock5}
  - {name: f, address: '127.0.0.1:1002', protocol: fixed}
  - {name: g, address: '127.0.0.1:1003', protocol: fixed, destination: web.shop}
  - {name: h, address: '127.0.0.1:1004', protocol: fixed, destination: 'web:0'}
  - {name: i, address: '127.0.0.1:1005', protocol: fixed, destination: '::1:80'}
  - {name: j, address: '[::ffff:127.0.0.1]:1005', protocol: socks5}
  - {name: k, address: '[::1]:1000', protocol: socks5}
  - {name: l, address: '0.0.0.0:1006', protocol: fixed, destination: '127.0.0.1:1006'}",
        "
            node.listeners[0].destination | 127.0.0.1:1000 | the listener itself | go round for ever
            node.listeners[1].name | a | listeners[0] already has this name | its own
            node.listeners[1].address | 0.0.0.0:1000 | node.listeners[0] already listens there | another port
            node.listeners[2].address | [::]:15000 | node.admin already listens there | another port
            node.listeners[2].destination | 10.0.0.1:80 | the client names the destination | protocol: fixed
            node.listeners[3].address | 127.0.0.1:0 | not an address with a port | from 1 to 65535
            node.listeners[4].address | localhost | not an address with a port | 127.0.0.1:15001
            node.listeners[5].protocol | sock5 | not a known value | did you mean `socks5`?
            node.listeners[6].destination |  | needs a destination | destination: 127.0.0.1:9001
            node.listeners[7].destination | web.shop | has no port | web.shop.svc.cluster.local:80
            node.listeners[8].destination | web:0 | no valid port | 10.0.0.1:80
            node.listeners[9].destination | ::1:80 | needs brackets | [::1]:80
            node.listeners[10].address | [::ffff:127.0.0.1]:1005 | node.listeners[9] already | another port
            node.listeners[12].destination | 127.0.0.1:1006 | the listener itself | go round for ever",
    );
}

#[test]
fn a_fixed_destination_that_its_service_does_not_have() {
    refused(
        "node: {listeners: [{name: a, address: '127.0.0.1:1000', protocol: fixed, destination: 'WEB.shop.svc.cluster.local.:81'}]}
services:
- {name: web, namespace: shop, ports: [{port: 80}, {port: 443}]}",
        "
            node.listeners[0].destination | WEB.shop.svc.cluster.local.:81 | shop/web.shop.svc.cluster.local has no port 81 | its ports are 80, 443",
    );
}

#[test]
fn workloads_with_wrong_values() {
    refused(
        "workloads:
- {name: a/b, namespace: shop, addresses: [10.0.0.256, 10.0.0.1/24, '0.0.0.0', 224.0.0.1], health: sick}
- {name: b, namespace: '', service_account: s/a, trust_domain: 'a b', hostname: a..b, uid: 'a b'}
- {name: c, namespace: shop, tunnel_protocol: hbon, workload_type: statefulset}",
        "
            workloads[0].name | a/b | not a name | no slashes
            workloads[0].health | sick | not a known value | healthy, unhealthy
            workloads[0].addresses[0] | 10.0.0.256 | not an IP address | IPv4 or IPv6
            workloads[0].addresses[1] | 10.0.0.1/24 | not an IP address | without port or prefix
            workloads[0].addresses[2] | 0.0.0.0 | not the address of one host | connections go to
            workloads[0].addresses[3] | 224.0.0.1 | not the address of one host | connections go to
            workloads[1].namespace |  | is empty | give it a name
            workloads[1].uid | a b | not a uid | leave it out
            workloads[1].trust_domain | a b | not a name | no slashes
            workloads[1].service_account | s/a | not a name | no slashes
            workloads[1].hostname | a..b | not a host name | web.shop.svc.cluster.local
            workloads[2].tunnel_protocol | hbon | not a known value | did you mean `hbone`?
            workloads[2].workload_type | statefulset | not a known value | pod, deployment, cronjob, job",
    );
}

#[test]
fn what_two_workloads_can_not_both_have() {
    refused(
        "workloads:
- {name: a, namespace: shop, addresses: [10.0.0.1, 10.0.0.1]}
- {name: a, namespace: shop}
- {name: b, namespace: shop, uid: Kubernetes//Pod/shop/a}
- {name: c, namespace: shop, addresses: ['::ffff:10.0.0.1']}
- {name: d, namespace: shop, addresses: [10.0.0.1], network: other}",
        "
            workloads[0].addresses[1] | 10.0.0.1 | workloads[0] already has this address in network \"\" | remove it
            workloads[1].uid | Kubernetes//Pod/shop/a | workloads[0] already has this uid | its own `name`
            workloads[2].uid | Kubernetes//Pod/shop/a | workloads[0] already has this uid | its own `uid`
            workloads[3].addresses[0] | ::ffff:10.0.0.1 | workloads[0] already has this address | `network`",
    );
}

#[test]
fn references_to_policies() {
    refused(
        "workloads:
- {name: a, namespace: shop, authorization_policies: [shop/onyl-client, only-client, bank/vault, shop/all, root/all, shop/only-client, shop/only-client]}
authorization_policies:
- {name: only-client, namespace: shop, scope: WORKLOAD_SELECTOR}
- {name: all, namespace: shop, scope: NAMESPACE}
- {name: all, namespace: root, scope: GLOBAL}
- {name: other, namespace: bank, scope: WORKLOAD_SELECTOR}",
        "
            workloads[0].authorization_policies[0] | shop/onyl-client | no such policy | did you mean `shop/only-client`?
            workloads[0].authorization_policies[1] | only-client | no such policy | did you mean `shop/only-client`?
            workloads[0].authorization_policies[2] | bank/vault | no such policy | `namespace/name`
            workloads[0].authorization_policies[3] | shop/all | guards its whole namespace without | remove the reference
            workloads[0].authorization_policies[4] | root/all | guards every workload without | remove the reference
            workloads[0].authorization_policies[6] | shop/only-client | listed twice | remove one",
    );
}

#[test]
fn services_with_wrong_values() {
    refused(
        "services:
- {name: a, namespace: shop, hostname: '*.shop', vips: [10.0.0.0/24], ports: []}
- {name: b, namespace: shop, vips: [{address: x}, 10.0.0.1, 10.0.0.1], ports: [{port: 0}, {port: 80, target_port: 0}, {port: 80, app_protocol: htp}, {port: 65536}]}
- {name: c/d, namespace: shop, ports: [{port: 80}]}
- {name: c_d, namespace: -shop, ports: [{port: 80}]}",
        "
            services[0].hostname | *.shop | not a host name | web.shop.svc.cluster.local
            services[0].vips[0] | 10.0.0.0/24 | not an IP address | prefix length
            services[0].ports |  | no ports | `- {port: 80}`
            services[1].vips[0].address | x | not an IP address | IPv4 or IPv6
            services[1].ports[0].port | 0 | not a port | 1 to 65535
            services[1].ports[1].target_port | 0 | not a port | 1 to 65535
            services[1].ports[2].port | 80 | has this port already | remove one
            services[1].ports[2].app_protocol | htp | not a known value | did you mean `http`?
            services[1].ports[3].port | 65536 | not a port | 1 to 65535
            services[1].vips[1] | 10.0.0.1 | has this address already | remove one
            services[2].name | c/d | not a name | no slashes
            services[2].name | c/d | does not make a host name | set `hostname`
            services[3].name | c_d | does not make a host name: c_d.-shop.svc | set `hostname`",
    );
}

#[test]
fn what_two_services_can_not_both_have() {
    refused(
        "services:
- {name: a, namespace: shop, vips: [10.96.0.1, {network: other, address: 10.96.0.2}], ports: [{port: 80}, {port: 81}]}
- {name: a, namespace: shop, ports: [{port: 80}]}
- {name: b, namespace: bank, hostname: A.shop.svc.cluster.local, ports: [{port: 80}]}
- {name: c, namespace: shop, vips: [10.96.0.2, '::ffff:10.96.0.1'], ports: [{port: 80}, {port: 82}]}",
        "
            services[1].hostname | a.shop.svc.cluster.local | services[0] already has this hostname in this | merge
            services[2].hostname | a.shop.svc.cluster.local | services[0] already has this hostname, in another | alone
            services[3].vips[1] | 10.96.0.1:80 | services[0] already has this address and port in network \"\" | another",
    );
}

#[test]
fn endpoints_that_are_none() {
    refused(
        "workloads:
- {name: web-v1, namespace: shop}
- {name: twin, namespace: shop, cluster_id: east}
- {name: twin, namespace: shop, cluster_id: west}
services:
- name: web
  namespace: shop
  ports: [{port: 80}, {port: 443}]
  endpoints:
  - shop/web-v1
  - shop/wbe-v1
  - shpo/web-v1
  - web-v1
  - other/thing
  - shop/twin
  - west//Pod/shop/twin
  - {workload: shop/web-v1}
  - {workload: shop/nothing, ports: {81: 8081, 443: 0, x: 80}}",
        "
            services[0].endpoints[1] | shop/wbe-v1 | no such workload | did you mean `shop/web-v1`?
            services[0].endpoints[2] | shpo/web-v1 | no such workload | did you mean `shop/web-v1`?
            services[0].endpoints[3] | web-v1 | no such workload | did you mean `shop/web-v1`?
            services[0].endpoints[4] | other/thing | no such workload | write `namespace/name`
            services[0].endpoints[5] | shop/twin | several workloads have this name | `uid`
            services[0].endpoints[7].workload | shop/web-v1 | an endpoint of the service already | remove one
            services[0].endpoints[8].ports.443 | 0 | not a port | 1 to 65535
            services[0].endpoints[8].ports.81 | 81 | has no port 81 | its ports are 80, 443
            services[0].endpoints[8].ports.x | x | not a port | 1 to 65535
            services[0].endpoints[8].workload | shop/nothing | no such workload | write `namespace/name`",
    );
}

#[test]
fn load_balancing_that_contradicts_itself() {
    refused(
        "services:
- {name: a, namespace: n, ports: [{port: 1}], load_balancing: {scopes: [region]}}
- {name: b, namespace: n, ports: [{port: 1}], load_balancing: {mode: passthrough, scopes: [region]}}
- {name: c, namespace: n, ports: [{port: 1}], load_balancing: {mode: strict}}
- {name: d, namespace: n, ports: [{port: 1}], load_balancing: {mode: failover, scopes: []}}
- {name: e, namespace: n, ports: [{port: 1}], load_balancing: {mode: failover, scopes: [region, regoin, region], health: some}}",
        "
            services[0].load_balancing.scopes |  | no effect | mode: failover
            services[1].load_balancing.scopes | passthrough | no effect | remove the scopes
            services[2].load_balancing.mode | strict | needs `scopes` | scopes: [region, zone]
            services[3].load_balancing.mode | failover | needs `scopes` | scopes: [region, zone]
            services[4].load_balancing.health | some | not a known value | only-healthy, allow-all
            services[4].load_balancing.scopes[1] | regoin | not a known value | did you mean `region`?
            services[4].load_balancing.scopes[2] | region | listed twice | remove one",
    );
}

#[test]
fn policies_that_are_not_understood() {
    refused(
        "authorization_policies:
- {name: p, namespace: shop, scope: workload, action: AUDIT, dry_run: yes}
- {name: p, namespace: shop, scope: GLOBAL}",
        "
            authorization_policies[0].scope | workload | not a known value | GLOBAL, NAMESPACE, WORKLOAD_SELECTOR
            authorization_policies[0].action | AUDIT | not a known value | ALLOW, DENY
            authorization_policies[0].dry_run | yes | not a known value | true, false
            authorization_policies[1].name | p | authorization_policies[0] already has this name | another",
    );
}

#[test]
fn matchers_that_match_nothing_or_something_else() {
    let cases: [(&str, &str); 18] = [
        ("principals: ['']", "principals[0] |  | matches nothing | `\"*\"`"),
        (
            "namespaces: ['a*b']",
            "namespaces[0] | a*b | neither its beginning nor its end | `x*`",
        ),
        (
            "not_principals: ['*a*']",
            "not_principals[0] | *a* | neither its beginning nor its end | `*x`",
        ),
        (
            "principals: ['**']",
            "principals[0] | ** | neither its beginning nor its end | `*`",
        ),
        (
            "not_namespaces: [{}]",
            "not_namespaces[0] |  | has 0 conditions | exactly one of",
        ),
        (
            "principals: [{exact: a, prefix: b}]",
            "principals[0] |  | has 2 conditions | exactly one of",
        ),
        ("principals: [{prefix: ''}]", "principals[0] |  | empty text | presence"),
        (
            "service_accounts: [client]",
            "service_accounts[0] | client | not a service account | `namespace/service-account`",
        ),
        (
            "not_service_accounts: [/client]",
            "not_service_accounts[0] | /client | not a service account | `namespace/",
        ),
        (
            "service_accounts: [a/b/c]",
            "service_accounts[0] | b/c | not a name | no slashes",
        ),
        (
            "not_service_accounts: ['shop/*']",
            "not_service_accounts[0] | * | not a name | no slashes, stars",
        ),
        (
            "service_accounts: [{namespace: a, service_account: ''}]",
            "service_accounts[0].service_account |  | is empty | give it a name",
        ),
        (
            "source_ips: [10.0.0.0/33]",
            "source_ips[0] | 10.0.0.0/33 | not an IP address or CIDR block | 10.0.0.0/8",
        ),
        (
            "not_source_ips: [10.0.0]",
            "not_source_ips[0] | 10.0.0 | not an IP address or CIDR block | fd00::/8",
        ),
        (
            "destination_ips: [web]",
            "destination_ips[0] | web | not an IP address or CIDR block | 10.0.0.0/8",
        ),
        (
            "not_destination_ips: ['']",
            "not_destination_ips[0] |  | not an IP address or CIDR block | 10.0.0.0/8",
        ),
        (
            "destination_ports: [0]",
            "destination_ports[0] | 0 | not a port | 1 to 65535",
        ),
        (
            "not_destination_ports: [80-90]",
            "not_destination_ports[0] | 80-90 | not a port | 1 to 65535",
        ),
    ];
    for (matcher, expected) in cases {
        let matches = format!("[{{}}, {{{matcher}}}]");
        let yaml = format!(
            "authorization_policies:\n- {{name: p, namespace: n, scope: GLOBAL, groups: [{{rules: [{{matches: {matches}}}]}}]}}"
        );
        refused(
            &yaml,
            &format!("authorization_policies[0].groups[0].rules[0].matches[1].{expected}"),
        );
    }
}

#[test]
fn captured_pods_that_make_no_sense() {
    refused(
        "capture: {pods: [{nets: /run/netns/a, workload: shop/b}]}",
        "capture.pods[0].nets | nets | no such field | did you mean `netns`?",
    );
    refused(
        "workloads: [{name: a, namespace: shop}, {name: b, namespace: shop}]
capture:
  cgroup: kubepods
  kubelet_cgroups: ['']
  run_dir: run
  refuse_after: 0s
  keep: maybe
  proxy_user: 'a b'
  pods:
  - {netns: netns/a, workload: shop/a}
  - {netns: /run/netns/a, pid: 7, workload: shop/b}
  - {workload: shop/c}
  - {pid: 0, workload: shop/bb}
  - {netns: /run/netns/a, workload: shop/a}
  - {netns: /run/netns/a, workload: shop/b}",
        "capture.cgroup | kubepods | not an absolute path | from `/` on
        capture.kubelet_cgroups[0] |  | not an absolute path | from `/` on
        capture.pods[0].netns | netns/a | not an absolute path | from `/` on
        capture.pods[1].pid | 7 | `netns` is given too | remove one
        capture.pods[2] |  | needs its network namespace | add for example
        capture.pods[2].workload | shop/c | no such workload | namespace/name
        capture.pods[3].pid | 0 | not a valid number | 1 to 4194304
        capture.pods[3].workload | shop/bb | no such workload | namespace/name
        capture.pods[4].workload | shop/a | pods[0] is already this workload | of its own
        capture.pods[5].netns | /run/netns/a | pods[4] already has this namespace | remove one
        capture.pods[5].workload | shop/b | pods[1] is already this workload | of its own
        capture.proxy_user | a b | is not a name | use no slashes
        capture.run_dir | run | not an absolute path | from `/` on
        capture.refuse_after | 0s | no time at all | above zero
        capture.keep | maybe | not a known value | true, false",
    );
}

#[test]
fn a_mesh_of_two_sources() {
    refused(
        "
node: {istiod: {}}
workloads: [{name: a, namespace: b, addresses: [10.0.0.1]}]
services: [{name: a, namespace: b, ports: [{port: 80}], endpoints: [b/a]}]
authorization_policies: [{name: a, namespace: b, scope: NAMESPACE, action: DENY}]
",
        "workloads |  | comes from istiod | remove `workloads`, or `node.istiod`
        services |  | comes from istiod | remove `services`, or `node.istiod`
        authorization_policies |  | comes from istiod | remove `authorization_policies`, or `node.istiod`",
    );
}

#[test]
fn an_istiod_that_makes_no_sense() {
    refused(
        "
node:
  istiod: {address: istiod, roots: root.pem, token: token, pod: a/b, pod_ip: 0.0.0.0, server_name: a b, connect_timeout: 0s}
",
        "node.istiod.address | istiod | has no port | istiod.istio-system.svc:15012
        node.istiod.roots | root.pem | not an absolute path | from `/` on
        node.istiod.token | token | not an absolute path | from `/` on
        node.istiod.pod_ip | 0.0.0.0 | not the address of one host | the address that
        node.istiod.pod | a/b | is not a name | use no slashes
        node.istiod.server_name | a b | not a host name | for example
        node.istiod.connect_timeout | 0s | no time at all | above zero",
    );
}

#[test]
fn identities_that_make_no_sense() {
    refused(
        "
node:
  identities:
    trust_domain: a/b
    trust_domain_aliases: ['a*']
    certificates:
    - {identity: spiffe://a/ns/b/sa/c, chain: c.pem, key: /c.key}
    - {identity: b/c, chain: /c.pem, key: /c.key}
    - {identity: spiffe://a/ns/b/sa/c, chain: /c.pem, key: /c.key}
    validity: 91days
",
        "node.identities.trust_domain_aliases[0] | a* | is not a name | use no slashes
        node.identities.validity | 91days | too long | 90 days
        node.identities.certificates[0].chain | c.pem | not an absolute path | from `/` on
        node.identities.certificates[1].identity | b/c | begins with `spiffe://` | for example
        node.identities.certificates[2].identity | spiffe://a/ns/b/sa/c | certificates[0] is already | remove one
        node.identities |  | nobody is believed | add `roots:`
        node.identities.trust_domain | a/b | is not a name | use no slashes",
    );
}

#[test]
fn public_addresses_that_make_no_sense() {
    refused(
        "
node:
  role: nod
  admin: 127.0.0.1:15020
  metrics: 0.0.0.0:15020
  readiness: 15021
  listeners: [{name: a, address: 127.0.0.1:15020, protocol: socks5}]
",
        "node.role | nod | not a known value | did you mean `node`?
        node.readiness | 15021 | not an address with a port | for example
        node.metrics | 0.0.0.0:15020 | node.admin already listens there | another port
        node.listeners[0].address | 127.0.0.1:15020 | node.admin already listens there | another port",
    );
}
