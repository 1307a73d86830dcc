//! HTTP whose endpoints are reached by tunnel: through another node of ours, and through Envoy.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use http::Response;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use underpass_tests::{Authority, Config, Host, Listen, Need, Proxy, World, available, wait};

use crate::envoy::Envoy;
use crate::place::{GATEWAY, PORT, Place, address};

/// Where the near proxy takes requests.
const LISTEN: &str = "127.0.0.1:8000";
const HBONE: u16 = 15008;
/// Where endpoints speak HTTP/2.
const PORT_OF_HTTP2: u16 = 8081;
/// Where nobody listens.
const CLOSED: u16 = 8082;

pub(crate) fn id(account: &str) -> String {
    let (namespace, name) = account.split_once('/').expect("namespace/name");
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

/// `http:` with clusters for the endpoints at `host`, where `peer` has to be: `/1/...` leads to HTTP/1.1, `/2/...` to HTTP/2, `/0/...` to where nobody is.
fn clusters(host: &Host, peer: &str) -> String {
    let cluster = |name: &str, port, more: &str| {
        format!(
            "{{name: '{name}', endpoints: ['{}'], hbone: {{identity: '{}', peers: ['{}']}}{more}}}",
            host.at(port),
            id(GATEWAY),
            id(peer)
        )
    };
    let route =
        |name: &str| format!("{{match: {{prefix: /{name}/}}, forward: {{cluster: '{name}', upgrades: [websocket]}}}}");
    format!(
        "clusters: [{}, {}, {}], routes: [{{name: t, virtual_hosts: [{{name: all, domains: ['*'], routes: [{}, {}, {}]}}]}}]",
        cluster("1", PORT, ""),
        cluster("2", PORT_OF_HTTP2, ", protocol: http2"),
        cluster("0", CLOSED, ""),
        route("1"),
        route("2"),
        route("0"),
    )
}

/// An endpoint of HTTP/1.1. What becomes of a request says the end of its path.
pub(crate) struct Endpoint {
    accepted: Arc<AtomicUsize>,
}

impl Endpoint {
    pub(crate) fn start(host: &Host) -> Self {
        let (listener, accepted) = (host.listen(PORT), Arc::new(AtomicUsize::new(0)));
        let counted = accepted.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || answer(stream.expect("accepted")));
            }
        });
        Self { accepted }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream) {
    let mut chunk = [0; 4096];
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(length) => head.extend_from_slice(&chunk[..length]),
            }
        }
        let head = String::from_utf8(head).expect("a head");
        let path = head.split(' ').nth(1).expect("a path");
        let say = |stream: &mut TcpStream, text: &str| stream.write_all(text.as_bytes()).expect("sent");
        match path.rsplit('/').next() {
            Some("whole") => say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole"),
            // A process that is killed: its kernel sends FIN.
            Some("killed") => return say(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf"),
            // Its end would be that of the body.
            Some("reset") => {
                say(&mut stream, "HTTP/1.0 200 OK\r\n\r\nhalf");
                let at_once = Some(Duration::ZERO);
                return SockRef::from(&stream).set_linger(at_once).expect("a socket");
            }
            Some("endless") => say(&mut stream, "HTTP/1.0 200 OK\r\n\r\nhalf"),
            Some(last @ ("upgrade" | "upgrade-and-reset")) => {
                let agreed = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
                say(&mut stream, agreed);
                if last == "upgrade-and-reset" {
                    say(&mut stream, "half");
                    let at_once = Some(Duration::ZERO);
                    return SockRef::from(&stream).set_linger(at_once).expect("a socket");
                }
                while let Ok(length @ 1..) = stream.read(&mut chunk) {
                    stream.write_all(&chunk[..length]).expect("sent");
                }
                return;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// An endpoint of HTTP/2, which tells a request's path.
fn start_http2(host: &Host) -> Runtime {
    let runtime = Runtime::new().expect("a runtime");
    let listener = host.listen(PORT_OF_HTTP2);
    listener.set_nonblocking(true).expect("a socket");
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a socket");
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let response = Response::builder().header("x-path", request.uri().path());
                    let _ = respond.send_response(response.body(()).expect("a response"), true);
                }
            });
        }
    });
    runtime
}

/// A request on a connection of its own: all that comes back, and whether it ends by FIN.
pub(crate) fn get(from: &Host, to: SocketAddr, path: &str) -> (String, bool) {
    let mut stream = from.connect_unbound(to).expect("the proxy accepts");
    stream.set_read_timeout(Some(wait::soon())).expect("a socket");
    let request = format!("GET {path} HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    (String::from_utf8_lossy(&all).into_owned(), ended.is_ok())
}

/// Whether an answer looks whole to a client that reads it by its framing.
pub(crate) fn is_whole(answer: &(String, bool)) -> bool {
    let (head, body) = answer.0.split_once("\r\n\r\n").expect("a head");
    let head = head.to_ascii_lowercase();
    match head.split("content-length: ").nth(1) {
        Some(length) => {
            let length = length.lines().next().and_then(|length| length.parse().ok());
            length == Some(body.len())
        }
        None if head.contains("transfer-encoding: chunked") => body.ends_with("0\r\n\r\n"),
        None => answer.1,
    }
}

/// The log line of the last request of `path`.
pub(crate) fn logged(proxy: &Proxy, path: &str) -> String {
    let part = format!("\"path\":\"{path}\"");
    wait::some(wait::SOON, "the request is logged", || {
        let mut lines = proxy.access_lines().into_iter();
        lines.rfind(|line| line.text.contains(&part)).map(|line| line.text)
    })
}

/// It was not connected to, as Envoy says it; `why` is in the details.
fn assert_not_connected(proxy: &Proxy, path: &str, answer: &(String, bool), why: &str) {
    assert!(
        answer.0.starts_with("HTTP/1.1 503") && answer.0.ends_with("reset reason: remote connection failure"),
        "{answer:?}"
    );
    let line = logged(proxy, path);
    let is_told = line.contains("\"response_flags\":\"UF\"") && line.contains(why);
    assert!(is_told, "{why}: {line}");
}

/// Two nodes, of which the near one takes requests for endpoints on the far one, where `peer` has to be.
fn place(peer: &'static str) -> Option<(Place, Host)> {
    let place = Place::start_with(
        |hosts| hosts.mesh("").access_log_format("json"),
        |near, hosts| {
            near.listener("web", address(LISTEN), Listen::Http("t"))
                .http(clusters(&hosts.server, peer))
        },
    )?;
    let client = place.near.node.host();
    Some((place, client))
}

#[test]
fn requests_reach_endpoints_of_another_node_by_tunnel() {
    let Some((place, client)) = place("shop/web") else {
        return;
    };
    let (endpoint, _http2) = (Endpoint::start(&place.server), start_http2(&place.server));
    for _ in 0..3 {
        let answer = get(&client, address(LISTEN), "/1/whole");
        assert!(
            answer.0.starts_with("HTTP/1.1 200") && answer.0.ends_with("whole"),
            "{answer:?}"
        );
        let answer = get(&client, address(LISTEN), "/2/two");
        assert!(
            answer.0.starts_with("HTTP/1.1 200") && answer.0.contains("x-path: /2/two"),
            "{answer:?}"
        );
    }
    assert_eq!(endpoint.accepted(), 1, "the tunnel is kept for the next request");
    let tunnels = place.near.proxy.request("GET", "/tunnels").body;
    assert!(
        tunnels.contains("sa/gateway") && tunnels.contains(":15008"),
        "{tunnels}"
    );
    let line = logged(&place.near.proxy, "/1/whole");
    let expected = format!("\"upstream_host\":\"{}\"", place.server.at(PORT));
    assert!(
        line.contains("\"response_flags\":\"-\"") && line.contains(&expected),
        "{line}"
    );
    // Bytes that are none of HTTP's any more.
    let mut stream = client.connect_unbound(address(LISTEN)).expect("the proxy accepts");
    stream.set_read_timeout(Some(wait::soon())).expect("a socket");
    let request = "GET /1/upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", head.escape_ascii());
    let message = vec![b'x'; 3 << 20];
    let mut sending = stream.try_clone().expect("dup");
    let sent = message.clone();
    let sender = thread::spawn(move || {
        sending.write_all(&sent).expect("sent");
        sending.shutdown(Shutdown::Write).expect("FIN");
    });
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).expect("all of it, and then the end");
    sender.join().expect("the sender");
    assert!(echo == message, "{} bytes came back", echo.len());
    // The other node judges, counts and logs what the tunnel says: the gateway, which is who opened it.
    let far = wait::some(wait::SOON, "the other node's line", || {
        place.far.proxy.access_lines().into_iter().last()
    });
    assert_eq!(
        (far.field("listener"), far.field("src.identity")),
        ("hbone", &*id(GATEWAY)),
        "{}",
        far.text
    );
    far.assert_reason("completed", "-");
    // No workload of the mesh has the gateway's address: what it says of itself, besides what its certificate does, is in the labels.
    let of_gateway = [
        ("source_principal", &*id(GATEWAY)),
        ("source_workload_namespace", "shop"),
        ("source_cluster", "Kubernetes"),
        ("reporter", "destination"),
    ];
    assert!(
        place
            .far
            .proxy
            .metrics()
            .sum("istio_tcp_connections_opened_total", &of_gateway)
            > 0
    );
}

#[test]
fn who_is_not_one_of_the_peers_gets_no_request() {
    let Some((place, client)) = place("shop/other") else {
        return;
    };
    let endpoint = Endpoint::start(&place.server);
    let answer = get(&client, address(LISTEN), "/1/whole");
    assert_not_connected(&place.near.proxy, "/1/whole", &answer, "TLS_error: ");
    assert!(logged(&place.near.proxy, "/1/whole").contains("peer_identity"));
    assert_eq!(endpoint.accepted(), 0);
    // When it is one of them it gets some, and no more when it is none again: what was made by then is not used.
    let wrong = place.near.proxy.config_text();
    let right = wrong.replace(&id("shop/other"), &id("shop/web"));
    let replace = |text: &str| {
        let before = place.near.proxy.config_updates("applied");
        place.near.proxy.replace_file(text);
        wait::eventually(wait::SOON, "the configuration is applied", || {
            place.near.proxy.config_updates("applied") > before
        });
    };
    replace(&right);
    let answer = get(&client, address(LISTEN), "/1/whole");
    assert!(answer.0.ends_with("whole"), "{answer:?}");
    replace(&wrong);
    let answer = get(&client, address(LISTEN), "/1/whole");
    assert!(answer.0.starts_with("HTTP/1.1 503"), "{answer:?}");
    assert_eq!(endpoint.accepted(), 1);
}

#[test]
fn what_the_other_node_refuses_is_not_connected() {
    let Some((place, client)) = place("shop/web") else {
        return;
    };
    let answer = get(&client, address(LISTEN), "/0/nobody");
    assert_not_connected(&place.near.proxy, "/0/nobody", &answer, "503");
    let deny = format!(
        "authorization_policies:\n- {{name: p, namespace: shop, scope: NAMESPACE, action: DENY, \
         groups: [{{rules: [{{matches: [{{principals: ['{}']}}]}}]}}]}}\n",
        id(GATEWAY).trim_start_matches("spiffe://")
    );
    let endpoint = Endpoint::start(&place.server);
    let text = place.far.proxy.config_text();
    let before = place.far.proxy.config_updates("applied");
    place.far.proxy.replace_file(&(text + &deny));
    wait::eventually(wait::SOON, "the policy is in force", || {
        place.far.proxy.config_updates("applied") > before
    });
    let answer = get(&client, address(LISTEN), "/1/whole");
    assert_not_connected(&place.near.proxy, "/1/whole", &answer, "401");
    assert_eq!(endpoint.accepted(), 0);
}

/// An answer is broken whose endpoint dies or resets; and so is one in whose middle, which would end where its connection does, `kill` ends a proxy on the way.
pub(crate) fn assert_breaks_off(client: &Host, kill: impl FnOnce()) {
    for path in ["/1/killed", "/1/reset"] {
        let answer = get(client, address(LISTEN), path);
        assert!(
            answer.0.starts_with("HTTP/1.1 200") && answer.0.contains("half"),
            "{answer:?}"
        );
        assert!(!is_whole(&answer), "{path}: {answer:?}");
    }
    let mut stream = client.connect_unbound(address(LISTEN)).expect("the proxy accepts");
    stream.set_read_timeout(Some(wait::soon())).expect("a socket");
    stream
        .write_all(b"GET /1/endless HTTP/1.1\r\nhost: web.test\r\n\r\n")
        .expect("sent");
    let mut all = Vec::new();
    while !all.windows(4).any(|four| four == b"half") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("half of it");
        all.push(byte[0]);
    }
    kill();
    let ended = stream.read_to_end(&mut all);
    let answer = (String::from_utf8_lossy(&all).into_owned(), ended.is_ok());
    assert!(!is_whole(&answer), "{answer:?}");
}

#[test]
fn an_answer_whose_endpoint_or_tunnel_dies_is_broken_not_complete() {
    let Some((mut place, client)) = place("shop/web") else {
        return;
    };
    let _endpoint = Endpoint::start(&place.server);
    assert_breaks_off(&client, || place.far.proxy.process().kill());
    let answer = get(&client, address(LISTEN), "/1/whole");
    assert!(answer.0.starts_with("HTTP/1.1 503"), "{answer:?}");
}

/// Roots are replaced: whom the near node believed, it believes no more.
#[test]
fn a_tunnel_whose_certificate_lapses_carries_no_further_request() {
    let Some((place, client)) = place("shop/web") else {
        return;
    };
    let endpoint = Endpoint::start(&place.server);
    let ask = || get(&client, address(LISTEN), "/1/whole");
    assert!(ask().0.ends_with("whole"));
    let other = Authority::new(&place.near.node.world().directory().join("others"));
    std::fs::copy(other.roots(), place.authority.roots()).expect("other roots");
    wait::eventually(wait::SOON, "nobody is asked any more", || {
        ask().0.starts_with("HTTP/1.1 503")
    });
    assert_eq!(endpoint.accepted(), 1, "it was kept until then");
}

/// A stock Envoy before the endpoint, and no capture anywhere.
#[test]
fn requests_reach_endpoints_behind_envoy_that_believe_us() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let world = World::loopback();
    let (client, us, server) = (world.host(), world.host(), world.host());
    let authority = Authority::new(&world.directory().join("certificates"));
    let (roots, web) = (authority.roots().display().to_string(), authority.issue("shop/web"));
    let endpoint = Endpoint::start(&server);
    let (listen, application) = (server.at(HBONE), server.at(PORT));
    let _envoy = Envoy::server(&world, &server, (&web, &roots), listen, application, &id(GATEWAY));
    let start = |host: &Host, account: &str| {
        let http = clusters(&server, "shop/web").replace(&id(GATEWAY), &id(account));
        let config = Config::new()
            .access_log_format("json")
            .node(format!("identities: {}", authority.identities(&[account])))
            .listener("web", host.at(8000), Listen::Http("t"))
            .http(http);
        Proxy::start(&world, host, &config)
    };
    let proxy = start(&us, GATEWAY);
    for _ in 0..3 {
        let answer = get(&client, us.at(8000), "/1/whole");
        assert!(answer.0.ends_with("whole"), "{answer:?}");
    }
    assert_eq!(endpoint.accepted(), 1);
    let killed = get(&client, us.at(8000), "/1/killed");
    assert!(killed.0.contains("half") && !is_whole(&killed), "{killed:?}");
    drop(proxy);
    // One that Envoy does not let in.
    let stranger = world.host();
    let proxy = start(&stranger, "shop/stranger");
    let answer = get(&client, stranger.at(8000), "/1/whole");
    assert_not_connected(&proxy, "/1/whole", &answer, "remote_connection_failure");
}
