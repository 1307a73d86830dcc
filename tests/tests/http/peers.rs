//! Who the workloads at both ends are: told by the mesh, and by no field of a request.

use underpass_tests::{Proxy, World, wait};

use super::client::{ask, get};
use super::endpoint::{Endpoint, Tries};

/// What a client could say of itself, to be taken for another.
const CLAIMS: &str = "baggage: k8s.namespace.name=bank,k8s.deployment.name=teller,service.name=teller,k8s.cluster.name=east\r\n\
    x-envoy-peer-metadata: ChoKCkNMVVNURVJfSUQSDBoKS3ViZXJuZXRlcw==\r\n\
    x-envoy-peer-metadata-id: sidecar~10.0.0.1~teller.bank~bank.svc.cluster.local\r\n";

#[test]
fn both_ends_are_told_by_the_mesh_and_not_by_what_a_client_says() {
    let world = World::loopback();
    let (client, us, server) = (world.host(), world.host(), world.host());
    let web = Endpoint::start(&server, 9001, "e", Tries::default()).address;
    let (log, file) = (world.directory().join("peers.log"), world.directory().join("http.yaml"));
    let fields = [
        "namespace",
        "workload",
        "type",
        "service",
        "revision",
        "app",
        "version",
        "cluster",
        "identity",
        "name",
        "region",
    ];
    let end = |end: &str| {
        fields
            .map(|field| format!("%FILTER_STATE({end}_peer_obj:FIELD:{field})%"))
            .join(",")
    };
    let yaml = format!(
        "workloads:
- {{uid: c, name: client-7c6b-c1, workload_name: client, workload_type: job, namespace: shop, service_account: client, canonical_name: shopper, canonical_revision: v3, cluster_id: west, locality: {{region: r1}}, addresses: ['{}']}}
- {{uid: s, name: server-5d8f-s1, workload_name: server-v1, workload_type: deployment, namespace: store, service_account: server, canonical_name: server, canonical_revision: v1, cluster_id: north, addresses: ['{}']}}
node:
  name: a
  admin: '{}'
  access_log:
  - {{path: '{}', text_format: \"{}|{}|%FILTER_STATE(downstream_peer_obj:FIELD:labels)%\\n\",
     filter: {{expression: \"filter_state.downstream_peer.workload == 'client' && filter_state.upstream_peer.namespace != 'bank'\"}}}}
  listeners: [{{name: http, address: '{}', protocol: http, routes: t}}]
http:
  clusters: [{{name: web, endpoints: ['{web}']}}]
  routes:
  - name: t
    virtual_hosts:
    - name: all
      domains: ['*']
      request_headers: {{set: {{x-from: \"%FILTER_STATE(downstream_peer_obj:FIELD:workload)%\"}}}}
      routes: [{{forward: {{cluster: web}}}}]
",
        client.ip(),
        server.ip(),
        us.at(15000),
        log.display(),
        end("downstream"),
        end("upstream"),
        us.at(8080),
    );
    std::fs::write(&file, yaml).expect("write the configuration");
    let proxy = Proxy::start_with_file(&world, &us, file);
    let seen = ask(&client, us.at(8080), &get("/", &format!("{CLAIMS}x-from: teller\r\n")));
    assert_eq!(seen.status, 200);
    let line = wait::some(wait::SOON, "the request is logged", || {
        std::fs::read_to_string(&log).ok().filter(|text| text.ends_with('\n'))
    });
    let expected = "shop,client,job,shopper,v3,shopper,v3,west,spiffe://cluster.local/ns/shop/sa/client,client-7c6b-c1,r1\
        |store,server-v1,deployment,server,v1,server,v1,north,spiffe://cluster.local/ns/store/sa/server,server-5d8f-s1,|-\n";
    assert_eq!(line, expected);
    let metrics = proxy.metrics();
    let as_it_is = [
        ("source_workload", "client"),
        ("source_workload_namespace", "shop"),
        ("source_cluster", "west"),
        ("source_app", "shopper"),
    ];
    assert_eq!(metrics.sum("istio_requests_total", &as_it_is), 1);
    // They are fields as any other, to an ambient waypoint as to this proxy.
    for told in [
        "x-from: client\n",
        "baggage: k8s.namespace.name=bank",
        "x-envoy-peer-metadata: Cho",
        "x-envoy-peer-metadata-id: sidecar~",
    ] {
        assert!(seen.body.contains(told), "{told}: {}", seen.body);
    }
}
