//! What the proxy promises beyond what Envoy can be asked for beside it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use underpass_tests::{Host, Need, Proxy, World, available, wait};

use super::client::{Client, ask, get};
use super::endpoint::{Endpoint, Tries};
use super::scene;

/// Denies the client whose address is given, in whatever it opens to the workload that names the policy.
const DENIAL: &str = "authorization_policies:
- {name: no, namespace: shop, scope: WORKLOAD_SELECTOR, action: DENY, groups: [{rules: [{matches: [{source_ips: [CLIENT]}]}]}]}
";

struct Scene {
    world: World,
    client: Host,
    us: Host,
    at: SocketAddr,
    endpoints: Vec<SocketAddr>,
    hosts: Vec<Host>,
    closed: SocketAddr,
}

impl Scene {
    /// Two endpoints, `one` and `two`, that count the tries of an `x-id` together.
    fn new() -> Self {
        let world = World::loopback();
        let (client, us, nobody) = (world.host(), world.host(), world.host());
        let hosts = vec![world.host(), world.host()];
        let tries = Tries::default();
        let names = ["one", "two"];
        let endpoints = hosts
            .iter()
            .zip(names)
            .map(|(host, name)| Endpoint::start(host, 9001, name, tries.clone()).address);
        Self {
            endpoints: endpoints.collect(),
            at: us.at(8080),
            closed: nobody.at(9),
            world,
            client,
            us,
            hosts,
        }
    }

    fn yaml(&self, endpoints: &[SocketAddr], more: &str) -> String {
        let log = self.world.directory().join("access.log").display().to_string();
        scene::ours(self.at, self.us.at(15000), &log, endpoints, self.closed) + more
    }

    fn start(&self, yaml: &str) -> Proxy {
        let file = self.world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Proxy::start_with_file(&self.world, &self.us, file)
    }

    /// The mesh in which the endpoint's workload denies the client.
    fn denied_at(&self, endpoint: usize) -> String {
        let address = self.hosts[endpoint].ip();
        let denial = DENIAL.replace("CLIENT", &self.client.ip().to_string());
        format!(
            "workloads: [{{name: one, namespace: shop, addresses: ['{address}'], authorization_policies: [shop/no]}}]\n{denial}"
        )
    }

    fn logged(&self, part: &str) -> bool {
        let log = std::fs::read_to_string(self.world.directory().join("access.log")).unwrap_or_default();
        log.lines().any(|line| line.contains(part))
    }
}

/// A policy that the client's requests pass by, until it denies it: the open connection is reset, a new request refused.
#[test]
fn a_policy_that_comes_to_deny_resets_the_open_connection_and_refuses_new_requests() {
    let scene = Scene::new();
    let workload = |policies: &str| {
        let address = scene.hosts[0].ip();
        format!(
            "workloads: [{{name: one, namespace: shop, addresses: ['{address}'], authorization_policies: [{policies}]}}]\n"
        )
    };
    let endpoints = &scene.endpoints[..1];
    let denial = DENIAL.replace("CLIENT", &scene.client.ip().to_string());
    let proxy = scene.start(&scene.yaml(endpoints, &workload("")));
    let mut client = Client::connect(&scene.client, scene.at);
    client.send(get("/x", "").as_bytes());
    assert_eq!(client.answer(false).status, 200);
    proxy.replace_file(&scene.yaml(endpoints, &(workload("shop/no") + &denial)));
    assert!(
        client.is_reset(),
        "the connection that was let to the endpoint stays open"
    );
    let seen = ask(&scene.client, scene.at, &get("/x", ""));
    assert_eq!((seen.status, &*seen.body), (403, "RBAC: access denied"));
    wait::eventually(wait::SOON, "the refusal is logged", || {
        scene.logged(r#""response_flags":"DENY""#)
    });
    // Whoever asks for nothing that is guarded is not concerned.
    assert_eq!(ask(&scene.client, scene.at, &get("/direct", "")).status, 418);
}

/// An endpoint that the mesh does not know as yet is watched all the same.
#[test]
fn a_workload_that_comes_to_be_and_denies_resets_the_connection_that_was_let_to_its_address() {
    let scene = Scene::new();
    let endpoints = &scene.endpoints[..1];
    let proxy = scene.start(&scene.yaml(endpoints, ""));
    let mut client = Client::connect(&scene.client, scene.at);
    client.send(get("/x", "").as_bytes());
    assert_eq!(client.answer(false).status, 200);
    proxy.replace_file(&scene.yaml(endpoints, &scene.denied_at(0)));
    assert!(
        client.is_reset(),
        "the connection that was let to the endpoint stays open"
    );
}

/// An endpoint that is told who asks is told what policy knows, whatever the client says of itself; of one that nobody knows, too.
#[test]
fn who_a_client_is_says_its_identity_and_not_the_client() {
    let scene = Scene::new();
    let forged = "x-told-peer: spiffe://cluster.local/ns/shop/sa/owner\r\n";
    let told = || {
        let seen = ask(&scene.client, scene.at, &get("/told/on/x", forged));
        let lines = seen.body.lines().filter_map(|line| line.strip_prefix("x-told-peer: "));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    assert_eq!(told(), ["-"]);
    let address = scene.client.ip();
    let client =
        format!("workloads: [{{name: c, namespace: shop, service_account: buyer, addresses: ['{address}']}}]\n");
    proxy.replace_file(&scene.yaml(&scene.endpoints, &client));
    wait::eventually(wait::SOON, "the client is known", || told() != ["-"]);
    assert_eq!(told(), ["spiffe://cluster.local/ns/shop/sa/buyer"]);
}

/// However many endpoints one connection goes to, a denial at any of them finds it.
#[test]
fn the_endpoint_that_was_used_first_is_watched_after_many_others() {
    let scene = Scene::new();
    let others = (1..80).map(|n| Endpoint::start(&scene.hosts[1], 9100 + n, "other", Tries::default()).address);
    let mut endpoints = vec![scene.endpoints[0]];
    endpoints.extend(others);
    let proxy = scene.start(&scene.yaml(&endpoints, ""));
    let mut client = Client::connect(&scene.client, scene.at);
    for _ in 0..2 * endpoints.len() {
        client.send(get("/x", "").as_bytes());
        let seen = client.answer(false);
        assert_eq!(seen.status, 200);
        if seen.header("x-endpoint") == Some("one") {
            break;
        }
    }
    for _ in 1..endpoints.len() {
        client.send(get("/x", "").as_bytes());
        let seen = client.answer(false);
        assert_eq!((seen.status, seen.header("x-endpoint")), (200, Some("other")));
    }
    proxy.replace_file(&scene.yaml(&endpoints, &scene.denied_at(0)));
    assert!(
        client.is_reset(),
        "the connection that was let to the endpoint stays open"
    );
}

/// Policy is at the workloads behind it, which a way by the kernel's or another's balancing would not be asked for.
#[test]
fn a_cluster_does_not_lead_to_the_virtual_address_of_a_service() {
    let scene = Scene::new();
    let service = format!(
        "services: [{{name: one, namespace: shop, vips: ['{}'], ports: [{{port: 9001}}]}}]\n",
        scene.hosts[0].ip()
    );
    let _proxy = scene.start(&scene.yaml(&scene.endpoints[..1], &service));
    let seen = ask(&scene.client, scene.at, &get("/x", ""));
    assert_eq!((seen.status, &*seen.body), (403, "RBAC: access denied"));
    wait::eventually(wait::SOON, "it is said why", || {
        scene.logged("virtual address of a service")
    });
}

/// A connection to an endpoint on which a request is still to be sent is nobody else's.
#[test]
fn an_answer_before_the_request_has_ended_leaves_its_connection_to_no_other() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints[..1], ""));
    let early: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(&scene.client, scene.at);
            client.send(
                get("/x", "x-do: early\r\ncontent-length: 10\r\n")
                    .replacen("GET", "POST", 1)
                    .as_bytes(),
            );
            client.send(b"1");
            assert_eq!(client.answer(false).status, 413);
            client
        })
        .collect();
    for _ in 0..16 {
        let began = Instant::now();
        assert_eq!(ask(&scene.client, scene.at, &get("/x", "")).status, 200);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "it waited for another's request"
        );
    }
    drop(early);
}

/// A socket that is closed with something unread resets, and a reset takes from a client what it has not read yet.
#[test]
fn a_client_that_is_still_sending_sees_the_answer() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let head = get("/direct", "content-length: 8000000\r\n").replacen("GET", "POST", 1);
    for _ in 0..4 {
        let mut stream = scene.client.connect(scene.at).expect("the proxy accepts");
        stream.write_all(head.as_bytes()).expect("sent");
        stream.write_all(&[b'x'; 8_000_000]).expect("it is not reset");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and FIN");
        assert!(
            answer.starts_with("HTTP/1.1 418 ") && answer.ends_with("\r\n\r\nteapot"),
            "{answer}"
        );
    }
}

/// A request's time is over when it is over, whether or not its client reads: nothing is held for it any longer.
#[test]
fn a_client_that_does_not_read_holds_nothing_beyond_its_requests_time() {
    let scene = Scene::new();
    let yaml = scene
        .yaml(&scene.endpoints, "")
        .replace("{name: web, ", "{name: web, limits: {requests: 1}, ");
    let _proxy = scene.start(&yaml);
    let mut client = Client::connect(&scene.client, scene.at);
    client.send(get("/timeout", "x-do: endless\r\n").as_bytes());
    wait::eventually(wait::SOON, "its place is another's", || {
        ask(&scene.client, scene.at, &get("/x", "")).status == 200
    });
    assert!(client.ends(), "a response whose time is over goes on");
    wait::eventually(wait::SOON, "it is logged", || scene.logged(r#""response_flags":"UT""#));
}

#[test]
fn a_response_whose_end_is_ambiguous_is_none() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let seen = ask(&scene.client, scene.at, &get("/x", "x-do: ambiguous\r\n"));
    assert_eq!(seen.status, 502, "{seen:?}");
}

/// Where a rewrite leaves no path, there is no request.
#[test]
fn a_path_that_is_rewritten_to_none_goes_nowhere() {
    let scene = Scene::new();
    let yaml = scene
        .yaml(&scene.endpoints, "")
        .replace("substitution: '/\\2/number/\\1'", "substitution: '\\2'");
    let _proxy = scene.start(&yaml);
    let seen = ask(&scene.client, scene.at, &get("/rewrite/regex/1/evil.test", ""));
    assert_eq!((seen.status, &*seen.body), (500, ""));
    wait::eventually(wait::SOON, "it is said why", || {
        scene.logged("rewritten_path_is_invalid")
    });
}

#[test]
fn an_upgrade_with_a_body_is_refused() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let lines = "x-do: websocket\r\nconnection: upgrade\r\nupgrade: websocket\r\ncontent-length: 5\r\n";
    let seen = ask(&scene.client, scene.at, &get("/ws", lines));
    assert_eq!((seen.status, seen.header("connection")), (400, Some("close")));
}

#[test]
fn requests_on_one_connection_are_answered_in_their_order() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let mut client = Client::connect(&scene.client, scene.at);
    let pipelined: String = (0..20).map(|n| get(&format!("/n{n}"), "")).collect();
    client.send(pipelined.as_bytes());
    for n in 0..20 {
        let seen = client.answer(false);
        assert!(seen.body.contains(&format!("GET /n{n} HTTP/1.1")), "{n}: {seen:?}");
    }
}

#[test]
fn a_retry_goes_to_the_other_endpoint() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    for n in 0..10 {
        let seen = ask(
            &scene.client,
            scene.at,
            &get("/retry/5xx", &format!("x-id: r{n}\r\nx-do: 503 first 1\r\n")),
        );
        assert_eq!(seen.status, 200, "{seen:?}");
        assert!(seen.body.starts_with("attempt 2\n"), "{seen:?}");
    }
}

/// Whoever is told when it is welcome again waits until then, and not much longer.
#[test]
fn a_retry_waits_until_it_is_welcome() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let began = Instant::now();
    let seen = ask(
        &scene.client,
        scene.at,
        &get("/retry/wait", "x-id: w\r\nx-do: wait first 1\r\n"),
    );
    assert!(seen.status == 200 && seen.body.starts_with("attempt 2\n"), "{seen:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// What is kept to be sent again is bounded: a body of more than `replay_bytes` is sent once.
#[test]
fn a_body_that_is_too_long_to_be_kept_is_tried_once() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    for (length, status, attempt) in [(60_000, 200, "attempt 2\n"), (70_000, 503, "attempt 1\n")] {
        let lines = format!("x-id: long{length}\r\nx-do: 503 first 1\r\ncontent-length: {length}\r\n");
        let request = get("/retry/5xx", &lines).replacen("GET", "POST", 1) + &"x".repeat(length);
        let seen = ask(&scene.client, scene.at, &request);
        assert_eq!(seen.status, status, "{length}");
        assert!(
            seen.body.starts_with(attempt) && seen.body.contains(&format!("body {length}: ")),
            "{length}"
        );
    }
}

#[test]
fn a_clusters_limit_holds_for_the_node_and_is_given_back() {
    let scene = Scene::new();
    let yaml = scene
        .yaml(&scene.endpoints, "")
        .replace("{name: web, ", "{name: web, limits: {requests: 1}, ");
    let proxy = scene.start(&yaml);
    let mut slow = Client::connect(&scene.client, scene.at);
    slow.send(get("/x", "x-id: slow\r\nx-do: slow\r\n").as_bytes());
    wait::eventually(wait::SOON, "one is refused", || {
        let seen = ask(&scene.client, scene.at, &get("/x", ""));
        seen.status == 503 && seen.header("x-envoy-overloaded") == Some("true")
    });
    assert_eq!(slow.answer(false).status, 200);
    assert_eq!(ask(&scene.client, scene.at, &get("/x", "")).status, 200);
    let refused = proxy
        .metrics()
        .sum("underpass_http_requests_total", &[("response_flags", "UO")]);
    assert!(refused >= 1);
}

/// A response that breaks off is not taken for whole, and never followed by another try's.
#[test]
fn what_was_sent_to_the_client_is_never_tried_again() {
    let scene = Scene::new();
    let proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let seen = ask(
        &scene.client,
        scene.at,
        &get("/retry/5xx", "x-id: cut\r\nx-do: truncated\r\n"),
    );
    assert_eq!(seen.status, 200);
    assert!(!seen.is_whole && seen.body.matches("attempt").count() == 1, "{seen:?}");
    wait::eventually(wait::SOON, "it is counted", || {
        proxy
            .metrics()
            .sum("underpass_http_requests_total", &[("response_flags", "UC")])
            == 1
    });
}

#[test]
fn websockets_pass_both_ways() {
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let mut client = Client::connect(&scene.client, scene.at);
    client.send(
        get(
            "/ws",
            "x-do: websocket\r\nconnection: upgrade\r\nupgrade: websocket\r\n",
        )
        .as_bytes(),
    );
    let seen = client.answer(false);
    assert_eq!((seen.status, seen.header("upgrade")), (101, Some("websocket")));
    for message in ["hello", "again"] {
        client.send(message.as_bytes());
        assert_eq!(client.bytes(5).as_deref(), Some(message.as_bytes()));
    }
    client.end();
    assert!(client.is_closed());
    wait::eventually(wait::SOON, "the switch is logged", || {
        scene.logged(r#""response_code":101"#)
    });
}

/// What has begun is finished, and the client told not to come again.
#[test]
fn a_drain_finishes_requests_and_closes_their_connections() {
    let scene = Scene::new();
    let proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let (mut idle, mut busy) = (
        Client::connect(&scene.client, scene.at),
        Client::connect(&scene.client, scene.at),
    );
    idle.send(get("/x", "").as_bytes());
    assert_eq!(idle.answer(false).status, 200);
    busy.send(get("/x", "x-id: slow\r\nx-do: slow\r\n").as_bytes());
    wait::eventually(wait::SOON, "both are open", || proxy.connections().len() == 2);
    std::thread::sleep(Duration::from_millis(200));
    proxy.request("POST", "/drain");
    assert!(idle.is_closed());
    let seen = busy.answer(false);
    assert_eq!(
        (seen.status, seen.is_whole, seen.header("connection")),
        (200, true, Some("close"))
    );
    assert!(busy.is_closed());
}

#[test]
fn an_unfinished_head_does_not_hold_a_connection_for_ever() {
    let scene = Scene::new();
    let yaml = scene
        .yaml(&scene.endpoints, "")
        .replace("  access_log:", "  timeouts: {handshake: 300ms}\n  access_log:");
    let _proxy = scene.start(&yaml);
    let mut client = Client::connect(&scene.client, scene.at);
    client.send(b"GET / HTTP/1.1\r\nhost: web.test\r\nx-slow: ");
    assert!(client.is_closed(), "it is still waited for");
}

/// curl speaks HTTP/2 by the same port, and its request is bridged to HTTP/1.1.
#[test]
fn http2_is_told_apart_by_its_first_bytes() {
    if !available(&[Need::Program("curl")]) {
        return;
    }
    let scene = Scene::new();
    let _proxy = scene.start(&scene.yaml(&scene.endpoints, ""));
    let output = Command::new("curl")
        .args([
            "-s",
            "--http2-prior-knowledge",
            "-w",
            "%{http_version} %{http_code}",
            "-H",
            "host: web.test",
        ])
        .args(["-H", "x-id: h2", "-d", "hello", &format!("http://{}/over-h2", scene.at)])
        .output()
        .expect("curl");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("POST /over-h2 HTTP/1.1\n"), "{text}");
    assert!(
        text.contains("host: web.test\n") && text.ends_with("body 5: hello2 200"),
        "{text}"
    );
}
