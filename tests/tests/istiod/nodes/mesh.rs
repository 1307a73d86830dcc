//! That it is a mesh: identities of istiod's CA on both ends, and nothing in plain text between the nodes.

use underpass_tests::load::ask;
use underpass_tests::wait;

use super::{Nodes, web_servers};

#[test]
fn pods_of_two_nodes_speak_by_mtls_as_whom_istiod_says_they_are() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    for (near, far, server) in [(&nodes.a, &nodes.b, &servers[1]), (&nodes.b, &nodes.a, &servers[0])] {
        let stream = ask(&near.client, server.address()).expect("by tunnel");
        let source = stream.local_addr().expect("open");
        assert_eq!(stream.peer_addr().expect("open"), server.address());
        drop(stream);
        let of_client = near.proxy.access_line(source);
        of_client.assert_reason("completed", "-");
        let of_server = wait::some(wait::SOON, "the other node's line", || {
            let mut lines = far.proxy.access_lines().into_iter();
            lines.find(|line| line.field("listener") == "hbone")
        });
        for line in [&of_client, &of_server] {
            for (field, expected) in [
                ("src.identity", "spiffe://cluster.local/ns/shop/sa/client"),
                ("dst.identity", "spiffe://cluster.local/ns/shop/sa/web"),
                ("connection_security_policy", "mutual_tls"),
            ] {
                assert_eq!(line.field(field), expected, "{}", line.text);
            }
        }
        assert_eq!(of_client.field("hbone.peer"), format!("{}:15008", far.web.ip()));
    }
    // A node's own pods need no tunnel.
    let stream = ask(&nodes.a.client, servers[0].address()).expect("on one node");
    let source = stream.local_addr().expect("open");
    drop(stream);
    let line = nodes.a.proxy.access_line(source);
    assert_eq!(line.field("src.identity"), "spiffe://cluster.local/ns/shop/sa/client");
    assert_ne!(line.field("connection_security_policy"), "mutual_tls", "{}", line.text);
}
