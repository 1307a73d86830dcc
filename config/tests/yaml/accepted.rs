//! Documents that are accepted, and what they become.

use std::num::NonZeroUsize;
use std::time::Duration;

use underpass_config::{
    AccessLog, Action, AppProtocol, BalanceMode, ByteSize, CaptureSettings, CapturedPod, CertificateFile, Config,
    ConnectionFacts, Destination, Group, HbonePing, HboneSettings, Health, HealthPolicy, IdentitySettings,
    IstiodSettings, Keepalive, LapsedStreams, Limits, Listener, ListenerProtocol, LoadBalancing, Locality, LogFormat,
    Match, NodeSettings, OffloadAfter, OffloadExcept, OffloadSettings, PodPlace, PolicyKey, PolicyScope, PortMapping,
    Premises, Role, Rule, Scope, ServiceAccountMatch, ServiceKey, StringMatch, Timeouts, TunnelProtocol,
    UnknownDestination, Vip, WaypointSettings, WorkloadName, WorkloadType, WorkloadUid,
};

use underpass_config::http::{Filter, Override, RequestMetric};

use super::COMPLETE;

fn uid(text: &str) -> WorkloadUid {
    WorkloadUid::new(text)
}

fn workload_name(name: &str) -> WorkloadName {
    WorkloadName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

#[test]
fn every_node_setting_is_read() {
    let node = Config::from_yaml(COMPLETE).unwrap().node;
    let listener = |name: &str, address: &str, protocol| Listener {
        name: name.into(),
        address: address.parse().unwrap(),
        protocol,
    };
    let named = Destination::Host {
        host: "Web.shop.svc.cluster.local".into(),
        port: 80,
    };
    let expected = NodeSettings {
        role: Role::Node,
        name: "node-a".into(),
        network: "main".into(),
        cluster_id: "east".into(),
        locality: Locality {
            region: "r1".into(),
            zone: "z1".into(),
            subzone: "s1".into(),
        },
        istiod: None,
        identities: IdentitySettings {
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: vec!["example.com".into(), "old.example.com".into()],
            certificates: vec![CertificateFile {
                identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
                chain: "/etc/mesh/web.pem".into(),
                key: "/etc/mesh/web.key".into(),
            }],
            roots: Some("/etc/mesh/roots.pem".into()),
            revocations: Some("/etc/mesh/revoked.pem".into()),
            validity: Duration::from_secs(12 * 60 * 60),
        },
        workers: NonZeroUsize::new(2),
        admin: "[::1]:15000".parse().unwrap(),
        metrics: Some("0.0.0.0:15020".parse().unwrap()),
        readiness: None,
        listeners: vec![
            listener(
                "relay",
                "127.0.0.1:15001",
                ListenerProtocol::Fixed {
                    destination: Destination::Address("10.0.0.1:9001".parse().unwrap()),
                },
            ),
            listener("named", "[::1]:15001", ListenerProtocol::Fixed { destination: named }),
            listener("socks", "127.0.0.1:1080", ListenerProtocol::Socks5),
            listener("connect", "0.0.0.0:3128", ListenerProtocol::HttpConnect),
        ],
        timeouts: Timeouts {
            connect: Duration::from_millis(200),
            idle: Duration::from_secs(5400),
            drain: Duration::ZERO,
            handshake: Duration::from_secs(60),
        },
        limits: Limits {
            connections: 100_000,
            connections_per_namespace: 1000,
            connections_per_workload: 100,
            connect_attempts: 2,
            idle_http_connections: 500,
        },
        keepalive: Keepalive {
            time: Duration::from_secs(60),
            interval: Duration::from_secs(5),
            probes: 4,
        },
        hbone: HboneSettings {
            streams: 50,
            stream_window: ByteSize(1 << 20),
            connection_window: ByteSize(3 << 20),
            buffer: ByteSize(64 << 20),
            connections_per_peer: 20,
            idle: Duration::from_secs(60),
            stalled: Duration::from_secs(30),
            ping: HbonePing {
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(2),
            },
            spread: 4,
            connections: 2,
            expired: LapsedStreams::Reset,
            revoked: LapsedStreams::Keep,
        },
        offload: OffloadSettings {
            enabled: false,
            after: OffloadAfter {
                messages: 3,
                bytes: ByteSize(4096),
                time: Duration::ZERO,
            },
            limit: ByteSize(512 << 10),
            low_watermark: ByteSize(100_000),
            trust_readers: true,
            except: OffloadExcept {
                namespaces: ["batch".into()].into(),
                workloads: ["db-1", "db-2"].map(workload_name).into(),
                ports: [5432].into(),
            },
        },
        unknown_destination: UnknownDestination::Deny,
        access_log: AccessLog {
            format: LogFormat::Json,
            path: "/var/log/access.json".into(),
            // What they are is `logs`'s matter.
            requests: node.access_log.requests.clone(),
        },
        log: "underpass=debug".into(),
        capture: Some(CaptureSettings {
            cgroup: Some("/sys/fs/cgroup/kubepods.slice".into()),
            kubelet_cgroups: vec!["/sys/fs/cgroup/system.slice/kubelet.service".into()],
            pods: vec![
                CapturedPod {
                    place: PodPlace::Netns("/run/netns/client".into()),
                    workload: uid("east//Pod/shop/client"),
                },
                CapturedPod {
                    place: PodPlace::Pid(4711),
                    workload: uid("east//Pod/shop/web-one"),
                },
            ],
            proxy_user: Some("underpass".into()),
            run_dir: "/run/mesh".into(),
            pin_dir: "/sys/fs/bpf/mesh".into(),
            refuse_after: Duration::from_secs(2),
            keep: true,
        }),
    };
    assert_eq!(*node, expected);
    assert_eq!(node.access_log.requests.len(), 2);
}

#[test]
fn routes_are_read_with_what_their_requests_go_through() {
    let http = Config::from_yaml(COMPLETE).unwrap().http;
    let table = &http.tables["complete"];
    let kinds: Vec<&str> = table
        .filters
        .iter()
        .map(|filter| match filter {
            Filter::LocalRateLimit(_) => "limit",
            Filter::Jwt(_) => "tokens",
            Filter::Rbac(_) => "rules",
            Filter::ExtAuthz(_) => "asking",
            Filter::OfRoutes => "of routes",
        })
        .collect();
    // Whom CUSTOM asks about, AUDIT, DENY (a dry run), ALLOW.
    assert_eq!(kinds, ["limit", "tokens", "rules", "asking", "rules", "rules", "rules"]);
    assert_eq!(table.metrics.disabled, [RequestMetric::ResponseBytes]);
    assert_eq!((table.metrics.removed.len(), table.metrics.added.len()), (1, 1));
    let routes = &table.virtual_hosts()[0].routes;
    let different = |route: usize| -> Vec<String> {
        let overrides = routes[route].overrides.iter();
        let word = |different: &Override| match different {
            Override::Off => "off",
            Override::LocalRateLimit(_) => "limit",
            Override::Rbac(_) => "rules",
            Override::Context(_) => "context",
        };
        let mut words: Vec<String> = overrides
            .map(|(place, different)| format!("{place} {}", word(different)))
            .collect();
        words.sort();
        words
    };
    assert_eq!(
        different(0),
        ["0 limit", "1 off", "2 off", "3 off", "4 off", "5 off", "6 off"]
    );
    // It has rules of one action, and none of the others.
    assert_eq!(different(1), ["0 off", "3 context", "4 off", "5 rules", "6 off"]);
    assert_eq!(different(2), ["3 context"]);
}

#[test]
fn every_field_of_a_workload_is_read() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let web = mesh.workload(&uid("east//Pod/shop/web-one")).unwrap();
    assert_eq!((&*web.name, &*web.namespace), ("web-v1", "shop"));
    assert_eq!(web.identity.to_string(), "spiffe://example.org/ns/shop/sa/web");
    assert_eq!(
        web.addresses.iter().map(|ip| ip.to_string()).collect::<Vec<_>>(),
        ["10.244.1.10", "fd00::10", "10.244.1.11"]
    );
    assert_eq!(&*web.hostname, "web-1.example.org");
    assert_eq!(
        (&*web.node, &*web.network, &*web.cluster_id),
        ("node-b", "other", "west")
    );
    assert_eq!(
        web.locality,
        Locality {
            region: "r2".into(),
            zone: "z2".into(),
            subzone: "s2".into()
        }
    );
    assert_eq!(
        (web.health, web.tunnel_protocol),
        (Health::Unhealthy, TunnelProtocol::Hbone)
    );
    assert_eq!((&*web.canonical_name, &*web.canonical_revision), ("web", "v1"));
    assert_eq!(
        (&*web.workload_name, web.workload_type),
        ("web-deployment", WorkloadType::Deployment)
    );
    let policies = [
        PolicyKey::new("shop/only-client"),
        PolicyKey::new("istio-system/from-root"),
    ];
    assert_eq!(*web.authorization_policies, policies);
    assert_eq!(mesh.workload_at("other", "10.244.1.11".parse().unwrap()), Some(web));
}

#[test]
fn a_workload_has_the_defaults_of_its_node_and_of_istio() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let client = mesh.workload(&uid("east//Pod/shop/client")).unwrap();
    assert_eq!(client.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!(
        (&*client.network, &*client.cluster_id, &*client.node),
        ("main", "east", "")
    );
    assert_eq!((client.addresses.len(), &*client.hostname), (0, ""));
    assert_eq!(client.locality, Locality::default());
    assert_eq!(
        (client.health, client.tunnel_protocol),
        (Health::Healthy, TunnelProtocol::None)
    );
    assert_eq!(
        (&*client.canonical_name, &*client.canonical_revision),
        ("client", "latest")
    );
    assert_eq!(
        (&*client.workload_name, client.workload_type),
        ("client", WorkloadType::Pod)
    );
    assert!(client.authorization_policies.is_empty() && client.services.is_empty());
}

#[test]
fn every_field_of_a_service_is_read() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let state = mesh
        .service(&ServiceKey::new("shop/web.shop.svc.cluster.local"))
        .unwrap();
    let web = state.service();
    assert_eq!(
        (&*web.name, &*web.namespace, &*web.hostname),
        ("web", "shop", "web.shop.svc.cluster.local")
    );
    let vip = |network: &str, address: &str| Vip {
        network: network.into(),
        address: address.parse().unwrap(),
    };
    assert_eq!(
        *web.vips,
        [
            vip("main", "10.96.1.1"),
            vip("other", "10.96.1.1"),
            vip("main", "fd00::1")
        ]
    );
    let ports: Vec<_> = web
        .ports
        .iter()
        .map(|port| (port.port, port.target_port, port.app_protocol))
        .collect();
    assert_eq!(ports, [(80, 8080, AppProtocol::Http11), (443, 443, AppProtocol::Tls)]);
    use Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    let expected = LoadBalancing {
        scopes: [Network, Region, Zone, Subzone, Node, Cluster].into(),
        mode: BalanceMode::Failover,
        health: HealthPolicy::AllowAll,
    };
    assert_eq!(web.load_balancing, expected);
}

#[test]
fn endpoints_become_memberships_of_their_workloads() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let web = ServiceKey::new("shop/web.shop.svc.cluster.local");
    let db = ServiceKey::new("shop/db.example.org");
    let v2 = mesh.workload(&uid("east//Pod/shop/web-v2")).unwrap();
    assert_eq!(
        v2.services.iter().map(|of| &of.service).collect::<Vec<_>>(),
        [&db, &web]
    );
    assert_eq!(
        *v2.services[1].ports,
        [PortMapping {
            service_port: 80,
            target_port: 8081
        }]
    );

    let state = mesh.service(&web).unwrap();
    let mut targets: Vec<_> = (state.endpoints())
        .map(|endpoint| (&*endpoint.workload.name, endpoint.target_port(state.service(), 80)))
        .collect();
    targets.sort_unstable();
    assert_eq!(targets, [("web-v1", Some(8080)), ("web-v2", Some(8081))]);
}

#[test]
fn services_may_share_an_address_with_different_ports() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let at = |port| {
        mesh.service_at("main", "10.96.1.1".parse().unwrap(), port)
            .map(|state| state.service().name.clone())
    };
    assert_eq!(
        (at(80).as_deref(), at(5432).as_deref(), at(81)),
        (Some("web"), Some("db"), None)
    );
}

#[test]
fn every_matcher_of_a_policy_is_read() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let policy = mesh.policy(&PolicyKey::new("shop/only-client")).unwrap();
    assert_eq!(
        (policy.scope, policy.action, policy.dry_run),
        (PolicyScope::WorkloadSelector, Action::Allow, false)
    );
    use StringMatch::{Exact, Prefix, Presence, Suffix};
    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: name.into(),
    };
    let ips = |ranges: &[&str]| ranges.iter().map(|range| range.parse().unwrap()).collect::<Vec<_>>();
    let full = Match {
        principals: vec![
            Exact("cluster.local/ns/shop/sa/client".into()),
            Prefix("x".into()),
            Suffix("y".into()),
            Exact("a*b".into()),
            Presence,
            Suffix("suffix".into()),
            Prefix("prefix".into()),
            Presence,
        ],
        not_principals: vec![Exact("spiffe://cluster.local/ns/shop/sa/other".into())],
        namespaces: vec![Exact("shop".into())],
        not_namespaces: vec![Suffix("-test".into())],
        service_accounts: vec![account("shop", "client"), account("shop", "other")],
        not_service_accounts: vec![account("shop", "bad")],
        source_ips: ips(&["10.0.0.0/8", "1.2.3.4/32", "fd00::/8"]),
        not_source_ips: ips(&["10.0.0.0/8"]),
        destination_ips: ips(&["10.244.0.0/16"]),
        not_destination_ips: ips(&["10.244.9.9/32"]),
        destination_ports: vec![80, 8080],
        not_destination_ports: vec![22],
    };
    let rules = vec![
        Rule {
            matches: vec![full, Match::default()],
        },
        Rule::default(),
    ];
    assert_eq!(policy.groups, [Group { rules }, Group::default()]);

    let root = mesh.policy(&PolicyKey::new("istio-system/from-root")).unwrap();
    assert_eq!((root.action, root.dry_run, root.groups.len()), (Action::Deny, true, 0));
    let nothing = mesh.policy(&PolicyKey::new("shop/nothing")).unwrap();
    assert_eq!(
        (nothing.scope, nothing.action, nothing.dry_run),
        (PolicyScope::Namespace, Action::Allow, false)
    );
}

#[test]
fn policies_of_a_document_decide() {
    let mesh = Config::from_yaml(COMPLETE).unwrap().mesh;
    let facts = ConnectionFacts {
        source: None,
        source_ip: "10.1.1.1".parse().unwrap(),
        destination: "10.244.1.20:80".parse().unwrap(),
    };
    // `nothing` is an ALLOW policy of the namespace that matches nothing.
    let v2 = mesh.workload(&uid("east//Pod/shop/web-v2")).unwrap();
    assert!(!mesh.authorize(&facts, v2).decision.is_allowed());
}

#[test]
fn nothing_written_means_the_documented_defaults() {
    let node = Config::from_yaml("node: {}").unwrap().node;
    assert_eq!(*node, NodeSettings::default());
    let defaults = "
node:
  name: local
  network: ''
  cluster_id: Kubernetes
  locality: {}
  identities: {trust_domain: cluster.local, trust_domain_aliases: [], certificates: [], validity: 24h}
  admin: 127.0.0.1:15000
  timeouts: {connect: 5s, idle: 1h, drain: 30s, handshake: 10s}
  limits: {connections: 1000000, connections_per_namespace: 1000000, connections_per_workload: 1000000, connect_attempts: 3}
  keepalive: {time: 180s, interval: 9s, probes: 9}
  unknown_destination: allow
  access_log: {format: text, path: '-'}
  log: info
  listeners: []
";
    assert_eq!(*Config::from_yaml(defaults).unwrap().node, NodeSettings::default());
}

#[test]
fn a_limit_on_connections_is_the_default_of_those_below_it() {
    let node = Config::from_yaml("node: {limits: {connections: 7}}").unwrap().node;
    let expected = Limits {
        connections: 7,
        connections_per_namespace: 7,
        connections_per_workload: 7,
        connect_attempts: 3,
        idle_http_connections: 16_384,
    };
    assert_eq!(node.limits, expected);
}

/// `/config_dump` shows settings as JSON; an operator must be able to paste a section back.
#[test]
fn settings_are_shown_as_they_are_written() {
    let mut complete = NodeSettings::clone(&Config::from_yaml(COMPLETE).unwrap().node);
    // Logs of requests are shown beside the proxy's own, not as the list that they are written in.
    complete.access_log.requests.clear();
    let shown = serde_json::to_value(&complete).unwrap();
    // JSON is YAML.
    let again = Config::from_yaml(&serde_json::json!({"node": shown}).to_string())
        .unwrap()
        .node;
    // Which is a section of its own in the file, and there by default in this role.
    let capture = Some(CaptureSettings::default());
    let complete = NodeSettings { capture, ..complete };
    assert_eq!(*again, complete);
}

#[test]
fn anchors_aliases_and_merges_are_yaml_too() {
    let yaml = "
workloads:
- &v1 {name: web-v1, namespace: shop, locality: &here {region: eu, zone: a}, canonical_name: web}
- {<<: *v1, name: web-v2}
- {name: other, namespace: shop, locality: *here}
";
    let mesh = Config::from_yaml(yaml).unwrap().mesh;
    let localities: Vec<_> = mesh.workloads().map(|workload| workload.locality.clone()).collect();
    assert_eq!(
        localities,
        vec![
            Locality {
                region: "eu".into(),
                zone: "a".into(),
                subzone: "".into()
            };
            3
        ]
    );
    assert_eq!(
        &*mesh
            .workload(&uid("Kubernetes//Pod/shop/web-v2"))
            .unwrap()
            .canonical_name,
        "web"
    );
}

/// YAML 1.1 took `no` for a boolean; a country or a namespace may be called that.
#[test]
fn words_are_texts_without_quotes() {
    let yaml = "
workloads: [{name: no, namespace: on, node: 007, canonical_revision: 1.10}]
services: [{name: yes, namespace: on, ports: [{port: 80}], endpoints: [on/no]}]
authorization_policies:
- {name: p, namespace: on, scope: GLOBAL, groups: [{rules: [{matches: [{namespaces: [no, off]}]}]}]}";
    let mesh = Config::from_yaml(yaml).unwrap().mesh;
    let workload = mesh.workload(&uid("Kubernetes//Pod/on/no")).unwrap();
    assert_eq!((&*workload.node, &*workload.canonical_revision), ("007", "1.10"));
    let policy = mesh.policy(&PolicyKey::new("on/p")).unwrap();
    let expected = [StringMatch::Exact("no".into()), StringMatch::Exact("off".into())];
    assert_eq!(policy.groups[0].rules[0].matches[0].namespaces, expected);
}

/// The parser's own limit is 250 000 nodes, and 10 aliases for each anchor.
#[test]
fn a_large_document_is_no_bomb() {
    let mut yaml = "workloads:\n- {name: first, namespace: shop, locality: &here {region: eu, zone: a}}\n".to_owned();
    for index in 0..20_000 {
        yaml += &format!("- {{name: w{index}, namespace: shop, node: n, health: healthy, locality: *here}}\n");
    }
    assert_eq!(Config::from_yaml(&yaml).unwrap().mesh.workloads().count(), 20_001);
}

#[test]
fn capture_is_off_unless_it_is_asked_for_and_has_defaults_then() {
    let node = |yaml: &str| Config::from_yaml(yaml).unwrap().node;
    assert_eq!(node("node: {}").capture, None);
    assert_eq!(node("capture: {}").capture, Some(CaptureSettings::default()));
}

/// Every field of `node.istiod`.
const ISTIOD: &str = "
node:
  istiod:
    address: 10.0.0.1:15012
    roots: /etc/mesh/root.pem
    server_name: istiod.istio-system.svc
    token: /etc/mesh/token
    root_namespace: mesh-root
    pod: underpass-x7
    namespace: mesh
    pod_ip: 10.244.0.7
    service_account: underpass
    connect_timeout: 2s
    policy_grace: 0s
    waypoint: {gateway: shared, address: '10.244.0.7:15008', grace: 1s}
";

#[test]
fn every_setting_of_istiod_is_read_and_has_a_default() {
    let node = Config::from_yaml(ISTIOD).unwrap().node;
    let expected = IstiodSettings {
        address: "10.0.0.1:15012".parse().unwrap(),
        roots: "/etc/mesh/root.pem".into(),
        server_name: Some("istiod.istio-system.svc".into()),
        token: "/etc/mesh/token".into(),
        root_namespace: "mesh-root".into(),
        pod: "underpass-x7".into(),
        namespace: "mesh".into(),
        pod_ip: "10.244.0.7".parse().unwrap(),
        service_account: Some("underpass".into()),
        connect_timeout: Duration::from_secs(2),
        policy_grace: Duration::ZERO,
        waypoint: Some(WaypointSettings {
            gateway: "shared".into(),
            address: "10.244.0.7:15008".parse().unwrap(),
            grace: Duration::from_secs(1),
        }),
    };
    assert_eq!(node.istiod, Some(expected));
    let shown = serde_json::json!({"node": serde_json::to_value(&*node).unwrap()}).to_string();
    assert_eq!(Config::from_yaml(&shown).unwrap().node, node);

    let defaults = Config::from_yaml("node: {istiod: {}}").unwrap().node;
    assert_eq!(defaults.istiod, Some(IstiodSettings::default()));
}

#[test]
fn a_waypoint_listens_and_shows_its_account() {
    let node = |yaml: &str| Config::from_yaml(yaml).unwrap().node;
    let by_role = node("node: {role: waypoint, istiod: {namespace: mesh, service_account: way}}");
    let beside = node("node: {role: node, istiod: {namespace: mesh, service_account: way, waypoint: {}}}");
    for waypoint in [&by_role, &beside] {
        let own = waypoint.waypoint_listener().unwrap();
        assert_eq!(
            (&*own.name, own.address.to_string()),
            ("waypoint", "[::]:15008".to_owned())
        );
        let identity = "spiffe://cluster.local/ns/mesh/sa/way".parse().unwrap();
        assert_eq!(own.protocol, ListenerProtocol::Hbone { identity });
        assert_eq!(waypoint.all_listeners(), [own]);
        assert_eq!(waypoint.readiness.unwrap().port(), 15021);
    }
    assert_eq!(node("node: {istiod: {service_account: way}}").waypoint_listener(), None);
}

#[test]
fn with_istiod_captured_pods_are_named_by_uid() {
    let yaml = "
node: {istiod: {}}
capture: {pods: [{netns: /run/netns/a, workload: Kubernetes//Pod/shop/a}]}
";
    let capture = Config::from_yaml(yaml).unwrap().node.capture.clone().unwrap();
    assert_eq!(capture.pods[0].workload, uid("Kubernetes//Pod/shop/a"));
}

#[test]
fn a_workload_is_of_the_nodes_trust_domain_unless_it_names_one() {
    let yaml = "
node: {identities: {trust_domain: example.com}}
workloads: [{name: a, namespace: b}]
";
    let mesh = Config::from_yaml(yaml).unwrap().mesh;
    let workload = mesh.workloads().next().unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://example.com/ns/b/sa/default");
}

#[test]
fn the_role_decides_what_is_not_said() {
    let node = |yaml: &str, role: Role| {
        let premises = Premises {
            role,
            ..Premises::default()
        };
        Config::from_yaml_given(yaml, &premises).unwrap().node
    };
    let address = |text: &str| Some(text.parse().unwrap());
    let standalone = node("node: {}", Role::Standalone);
    assert_eq!((standalone.metrics, standalone.readiness), (None, None));
    assert!(standalone.capture.is_none());
    for said in [
        node("node: {role: node}", Role::Standalone),
        node("node: {}", Role::Node),
    ] {
        assert_eq!(
            (said.metrics, said.readiness),
            (address("[::]:15020"), address("[::]:15021"))
        );
        assert_eq!(said.capture, Some(CaptureSettings::default()));
        assert_eq!(said.admin, "127.0.0.1:15000".parse().unwrap());
    }
    let said = node("node: {role: standalone}", Role::Node);
    assert_eq!((said.role, said.metrics), (Role::Standalone, None));
    let said = node("node: {metrics: 'off', readiness: 127.0.0.1:1}", Role::Node);
    assert_eq!((said.metrics, said.readiness), (None, address("127.0.0.1:1")));
}
