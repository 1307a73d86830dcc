//! AuthorizationPolicy and PeerAuthentication: what they decide, they decide for the clients of both nodes at the servers of both.

use underpass_tests::load::ask;
use underpass_tests::{Server, wait};

use super::{Nodes, is_answered, wait_until, web_servers};
use crate::policy::{CLIENT, WEB, assert_reset, peer_authentication, policy, rule};

/// A second port of the servers.
const OTHER_PORT: u16 = 9090;

/// Who may reach the servers under a policy, and who may not.
struct Scenario {
    name: &'static str,
    policy: String,
    client_may: bool,
    other_may: bool,
}

/// Each scope, and each matcher of a source.
fn scenarios(nodes: &Nodes) -> Vec<Scenario> {
    let scenario = |name, policy: &str, spec: &str, may: (bool, bool)| Scenario {
        name,
        policy: crate::policy::policy(policy, spec),
        client_may: may.0,
        other_may: may.1,
    };
    let selected = format!("{WEB},");
    let [a, b] = nodes.clients().map(|host| host.ip());
    let addresses = format!("ipBlocks: [{a}, {b}]");
    let not_addresses = format!("notIpBlocks: [{a}, {b}]");
    let method = format!("{selected} action: DENY, rules: [{{to: [{{operation: {{methods: [GET]}}}}]}}]");
    let (shop, mesh) = ("shop/rule", "istio-system/rule");
    let (both, neither, client, other) = ((true, true), (false, false), (true, false), (false, true));
    let allow_else = rule(&selected, "ALLOW", "namespaces: [else]");
    let of_client = rule("selector: {matchLabels: {app: client}},", "DENY", CLIENT);
    vec![
        scenario("selector, principal", shop, &rule(&selected, "ALLOW", CLIENT), client),
        scenario("selector, namespace", shop, &allow_else, other),
        scenario("namespace, principal", shop, &rule("", "DENY", CLIENT), other),
        scenario(
            "namespace, not of it",
            shop,
            &rule("", "DENY", "notNamespaces: [shop]"),
            client,
        ),
        scenario("namespace, address", shop, &rule("", "DENY", &addresses), other),
        scenario(
            "namespace, not the address",
            shop,
            &rule("", "DENY", &not_addresses),
            client,
        ),
        scenario("mesh, namespace", mesh, &rule("", "DENY", "namespaces: [else]"), client),
        scenario(
            "mesh, account by suffix",
            mesh,
            &rule("", "DENY", "principals: ['*/sa/client']"),
            other,
        ),
        scenario("another namespace's", "else/rule", &rule("", "DENY", CLIENT), both),
        scenario("another pod's", shop, &of_client, both),
        scenario(
            "an allowance of nothing",
            shop,
            &format!("{selected} action: ALLOW"),
            neither,
        ),
        // What is left of it at L4 denies everybody (recorded in 02-l4-policy).
        scenario("a denial by method", shop, &method, neither),
    ]
}

impl Nodes {
    /// Waits until the proxies of both nodes have the policy `namespace/name`.
    #[track_caller]
    fn wait_for_policy(&self, name: &str) {
        for side in self.sides() {
            wait::eventually(wait::SOON, &format!("the mesh has the policy {name}"), || {
                let dump = side.proxy.config_dump();
                let policies = dump["policies"].as_array().expect("a list").clone();
                policies.iter().any(|policy| policy["key"] == *name)
            });
        }
    }
}

#[test]
fn a_policy_of_each_scope_decides_who_reaches_a_server() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    for scenario in scenarios(&nodes) {
        // From a state that is unlike both.
        nodes.istiod.apply("rule", "");
        wait_until(&nodes.clients(), &servers, true);
        wait_until(&nodes.others(), &servers, true);
        nodes.istiod.apply("rule", &scenario.policy);
        let Scenario {
            name,
            client_may,
            other_may,
            ..
        } = scenario;
        if client_may && other_may {
            let elsewhere = name.starts_with("another namespace");
            nodes.wait_for_policy(if elsewhere { "else/rule" } else { "shop/rule" });
        }
        eprintln!("{name}: client may: {client_may}, other may: {other_may}");
        wait_until(&nodes.clients(), &servers, client_may);
        wait_until(&nodes.others(), &servers, other_may);
        // All at once are as they should be.
        for server in &servers {
            let at = |hosts: [&underpass_tests::Host; 2]| hosts.map(|host| is_answered(host, server.address()));
            assert_eq!(at(nodes.clients()), [client_may; 2], "{name}");
            assert_eq!(at(nodes.others()), [other_may; 2], "{name}");
        }
    }
}

#[test]
fn a_policy_of_ports_decides_by_the_port_of_the_pod() {
    let Some(nodes) = Nodes::start() else { return };
    let (open, closed) = (web_servers(&nodes), nodes.servers(OTHER_PORT));
    wait_until(&nodes.clients(), &closed, true);
    let deny = format!("{WEB}, action: DENY, rules: [{{to: [{{operation: {{ports: ['{OTHER_PORT}']}}}}]}}]");
    nodes.istiod.apply("ports", policy("shop/ports", &deny));
    wait_until(&nodes.clients(), &closed, false);
    for (client, server) in nodes.clients().iter().flat_map(|c| open.iter().map(move |s| (c, s))) {
        ask(client, server.address()).expect("the other port is not meant");
    }
}

#[test]
fn a_denial_resets_the_tunnels_that_it_concerns_and_no_others() {
    let Some(nodes) = Nodes::start() else { return };
    let servers = web_servers(&nodes);
    let to = servers[1].address();
    let mut denied = nodes.clients().map(|client| ask(client, to).expect("allowed so far"));
    let mut spared = nodes.others().map(|other| ask(other, to).expect("allowed so far"));
    nodes
        .istiod
        .apply("rule", policy("shop/rule", &rule("", "DENY", CLIENT)));
    for stream in &mut denied {
        assert_reset(stream);
    }
    wait::eventually(wait::SOON, "the server has seen it too", || servers[1].resets() == 2);
    for stream in &mut spared {
        Server::echo(stream, b"still here").expect("the other pods' connections go on");
    }
    let across = denied[0].local_addr().expect("bound");
    let line = nodes.a.proxy.access_line(across);
    // Whichever of the nodes istiod has told first. To the other it is a reset.
    if line.field("reason") == "upstream_reset" {
        wait::eventually(wait::SOON, "the server's node says why", || {
            let lines = nodes.b.proxy.access_lines();
            lines.iter().any(|line| line.field("reason") == "policy_revoked")
        });
    } else {
        line.assert_reason("policy_revoked", "DENY");
    }
}

/// Who is not of the mesh speaks plain text, from wherever.
#[test]
fn strict_mtls_keeps_plain_text_of_any_node_out_and_lets_tunnels_in() {
    let Some(nodes) = Nodes::start() else { return };
    let (servers, others) = (web_servers(&nodes), nodes.servers(OTHER_PORT));
    wait_until(&nodes.strangers(), &servers, true);
    nodes
        .istiod
        .apply("mtls", peer_authentication("shop/default", "mtls: {mode: STRICT}"));
    wait_until(&nodes.strangers(), &servers, false);
    let before = servers.each_ref().map(Server::accepted);
    for server in &servers {
        for stranger in nodes.strangers() {
            assert!(!is_answered(stranger, server.address()));
        }
    }
    assert_eq!(
        servers.each_ref().map(Server::accepted),
        before,
        "no server has seen who is refused"
    );
    wait_until(&nodes.clients(), &servers, true);
    wait_until(&nodes.others(), &servers, true);

    let but_for = format!("{WEB}, mtls: {{mode: STRICT}}, portLevelMtls: {{{OTHER_PORT}: {{mode: PERMISSIVE}}}}");
    nodes.istiod.apply("mtls", peer_authentication("shop/web", &but_for));
    wait_until(&nodes.strangers(), &others, true);
    wait_until(&nodes.strangers(), &servers, false);
    let mesh = peer_authentication("istio-system/default", "mtls: {mode: STRICT}");
    nodes.istiod.apply("mtls", mesh);
    wait_until(&nodes.strangers(), &others, false);
    nodes.istiod.delete("mtls");
    wait_until(&nodes.strangers(), &servers, true);
}
