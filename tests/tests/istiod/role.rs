//! `underpass run --role node`: agent and proxy in ztunnel's place, on its ports.

use underpass_tests::capture::CaptureNode;
use underpass_tests::istiod::{Istiod, Pod as PodObject, namespace, node};
use underpass_tests::load::ask;
use underpass_tests::{Need, Proxy, Server, available, wait};

use crate::cluster::NODE_TOKEN;
use crate::place::{PORT, config, object};

#[test]
fn a_node_has_ztunnels_ports_and_takes_its_pods_policies_from_istiod() {
    if !available(&[Need::Capture, Need::Istiod]) {
        return;
    }
    let place = CaptureNode::new();
    let host = place.host();
    let istiod = Istiod::start(place.world(), &host);
    let (client, web) = (place.pod("shop/client"), place.pod("shop/web"));
    istiod.apply("nodes", node("node-a", "zone-a"));
    istiod.apply("shop", namespace("shop", ""));
    let proxy = PodObject::new("istio-system/ztunnel-a", host.ip()).account("ztunnel");
    istiod.apply(
        "pods",
        format!("{}{}{}", proxy.uncaptured(), object(&client), object(&web)),
    );
    let capture = format!(
        "cgroup: {:?}, run_dir: {:?}, pin_dir: {:?}, proxy_user: nobody, pods: [{{netns: {:?}, workload: {}}}]",
        place.cgroup("").display().to_string(),
        place.run_directory().display().to_string(),
        place.pin_directory().display().to_string(),
        client.path().display().to_string(),
        client.uid(),
    );
    let both = place.start_both_with(&["--role", "node"], &config(&istiod).capture(capture));
    place.enrol(&web);
    let server = Server::start(&web, PORT);
    wait::eventually(wait::SOON, "the pods reach each other", || {
        ask(&client, server.address()).is_ok()
    });

    // From another machine: metrics and readiness, and nothing else.
    let elsewhere = place.elsewhere();
    for ip in host.addresses() {
        let get = |port: u16, path: &str| {
            let answer = Proxy::ask_admin(&elsewhere, (ip, port).into(), path);
            answer.unwrap_or_else(|e| panic!("{ip}:{port}{path}: {e}"))
        };
        for path in ["/metrics", "/stats/prometheus"] {
            let metrics = get(15020, path);
            assert!(
                metrics.body.contains("istio_tcp_connections_opened_total{"),
                "{metrics:?}"
            );
        }
        assert_eq!(
            (get(15021, "/healthz/ready").status, get(15021, "/healthz/ready").body),
            (200, "ready\n".into())
        );
        for (port, path) in [
            (15020, "/config_dump"),
            (15020, "/"),
            (15021, "/metrics"),
            (15021, "/ready"),
        ] {
            assert_eq!(get(port, path).status, 404, "{port}{path}");
        }
        assert!(
            Proxy::ask_admin(&elsewhere, (ip, both.admin().port()).into(), "/").is_err(),
            "admin is on loopback"
        );
    }
    for pod in &place.pods() {
        let listens = |direction: &str| pod[direction].to_string();
        assert!(
            listens("outbound").contains(":15001") && listens("inbound").contains(":15006"),
            "{pod}"
        );
    }
    let dump = both.config_dump();
    assert_eq!(dump["node"]["role"], "node");
    assert_eq!(
        dump["node"]["istiod"]["token"],
        istiod.token(NODE_TOKEN).display().to_string()
    );
}
