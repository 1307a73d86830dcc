//! Copies of requests: the same as Envoy's, and no hindrance to what they are copies of.

mod ends;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use underpass_tests::{Need, Proxy, available, wait};

use super::client::{Client, ask};
use super::endpoint::{Endpoint, Heard, Tries, streams};
use super::upstreams::place::{ClusterPair, Place, endpoints};

/// What Envoy adds to a copy, and we don't: that it was made here, and where that is. The endpoint is told of the client what the request's own is told.
const ENVOYS_OWN: [&str; 2] = ["x-envoy-internal: ", "x-forwarded-for: "];

/// Routes by their prefixes, with what they do, in our words and in Envoy's. `web` is where they lead to.
fn routes() -> Vec<(&'static str, &'static str, Value)> {
    let copy = || json!({"cluster": "copy"});
    vec![
        (
            "/plain",
            "cluster: web, mirrors: [{cluster: copy}]",
            json!({"cluster": "web", "request_mirror_policies": [copy()]}),
        ),
        (
            "/two",
            "cluster: web, timeout: 5s, mirrors: [{cluster: copy}, {cluster: other, host_suffix: false}]",
            json!({"cluster": "web", "timeout": "5s", "request_mirror_policies": [copy(), {"cluster": "other", "disable_shadow_host_suffix_append": true}]}),
        ),
        (
            "/changed",
            "cluster: web, prefix_rewrite: /new, host_rewrite: 'inner.test:81', mirrors: [{cluster: copy}]",
            json!({"cluster": "web", "prefix_rewrite": "/new", "host_rewrite_literal": "inner.test:81", "request_mirror_policies": [copy()]}),
        ),
        (
            "/never",
            "cluster: web, mirrors: [{cluster: copy, percent: 0}]",
            json!({"cluster": "web", "request_mirror_policies": [{"cluster": "copy", "runtime_fraction": {"default_value": {"numerator": 0}}}]}),
        ),
        (
            "/void",
            "cluster: void, mirrors: [{cluster: copy}]",
            json!({"cluster": "void", "request_mirror_policies": [copy()]}),
        ),
        (
            "/lost",
            "cluster: web, mirrors: [{cluster: void}]",
            json!({"cluster": "web", "request_mirror_policies": [{"cluster": "void"}]}),
        ),
        (
            "/retried",
            "cluster: web, retry: {on: [5xx], retries: 2}, mirrors: [{cluster: copy}]",
            json!({"cluster": "web", "retry_policy": {"retry_on": "5xx", "num_retries": 2}, "request_mirror_policies": [copy()]}),
        ),
    ]
}

/// Requests, each with an `x-id`, and whether `copy` and `other` get one.
fn requests() -> Vec<(String, bool, bool)> {
    let mut all = Vec::new();
    for (path, copied, other) in [
        ("/plain/a?b=c", true, false),
        ("/two/", true, true),
        ("/changed/x?y", true, false),
        ("/never/", false, false),
        ("/void/", false, false),
        ("/lost/", false, false),
        ("/retried/", true, false),
    ] {
        for (method, lines, body) in [
            ("GET", "", ""),
            ("HEAD", "", ""),
            ("POST", "content-length: 5\r\nx-do: 503 first 1\r\n", "hello"),
            (
                "PUT",
                "transfer-encoding: chunked\r\n",
                "4\r\nsome\r\n5\r\nthing\r\n0\r\n\r\n",
            ),
            ("POST", "content-length: 0\r\n", ""),
        ] {
            let id = all.len();
            let host = ["web.test", "web.test:8080"][id % 2];
            let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-id: {id:03}\r\n{lines}\r\n{body}");
            all.push((request, copied, other));
        }
    }
    all
}

struct Heards {
    copy: Heard,
    other: Heard,
}

impl Heards {
    /// Endpoints `copy` and `other`, in front of whoever hears of them.
    fn start(place: &Place) -> (Self, [SocketAddr; 2]) {
        let heards = Self {
            copy: Heard::default(),
            other: Heard::default(),
        };
        let start = |heard: &Heard| Endpoint::heard(&place.world.host(), 9001, "m", Tries::default(), heard.clone());
        let addresses = [start(&heards.copy), start(&heards.other)].map(|endpoint| endpoint.address);
        (heards, addresses)
    }

    /// What each heard of each request, when it has heard of as many as it is to.
    fn told(&self, copies: usize, others: usize) -> [BTreeMap<String, Vec<String>>; 2] {
        [(&self.copy, copies), (&self.other, others)].map(|(heard, expected)| {
            wait::eventually(wait::SOON, "all copies come", || {
                heard.lock().expect("no panic").len() >= expected
            });
            let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for text in heard.lock().expect("no panic").iter() {
                let lines = text.lines().map(|line| match line.starts_with("x-request-id: ") {
                    true => "x-request-id: UUID",
                    false => line,
                });
                let kept: Vec<&str> = lines
                    .filter(|line| !ENVOYS_OWN.iter().any(|own| line.starts_with(own)))
                    .collect();
                let id = kept.iter().find_map(|line| line.strip_prefix("x-id: "));
                told.entry(id.unwrap_or_default().to_owned())
                    .or_default()
                    .push(kept.join("\n"));
            }
            told
        })
    }
}

#[test]
fn copies_are_as_envoys() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let web = [(); 2].map(|()| Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address);
    let (ours, our_mirrors) = Heards::start(&place);
    let (envoys, envoys_mirrors) = Heards::start(&place);
    let names = ["web", "copy", "other"];
    let addresses = |web: SocketAddr, mirrors: [SocketAddr; 2]| [web, mirrors[0], mirrors[1]];
    let (of_us, of_envoy) = (addresses(web[0], our_mirrors), addresses(web[1], envoys_mirrors));
    let written: Vec<String> = routes()
        .iter()
        .map(|(prefix, forward, _)| format!("{{match: {{prefix: {prefix}}}, forward: {{{forward}}}}}"))
        .collect();
    let mut clusters: Vec<_> = names
        .iter()
        .zip(of_us)
        .map(|(name, at)| (*name, format!("endpoints: ['{at}']")))
        .collect();
    clusters.push(("void", "endpoints: []".to_owned()));
    let yaml = place.yaml(&clusters, "");
    let at = yaml.find("      routes:\n").expect("routes");
    let yaml = format!("{}      routes: [{}]\n", &yaml[..at], written.join(", "));
    let _proxy = place.start(&yaml);
    let mut pairs: Vec<ClusterPair> = names
        .iter()
        .zip(of_envoy)
        .map(|(name, at)| ClusterPair {
            name,
            ours: String::new(),
            envoys: json!({"type": "STATIC", "load_assignment": endpoints(&[at])}),
        })
        .collect();
    pairs.push(ClusterPair {
        name: "void",
        ours: String::new(),
        envoys: json!({"type": "STATIC", "load_assignment": endpoints(&[])}),
    });
    let envoys_routes: Vec<Value> = routes()
        .into_iter()
        .map(|(prefix, _, route)| json!({"match": {"prefix": prefix}, "route": route}))
        .collect();
    let more = json!({"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": envoys_routes}]}});
    let _envoy = place.start_envoy(&pairs, more);
    let all = requests();
    for (request, ..) in &all {
        let answers = [place.ours(), place.envoys()].map(|at| ask(&place.client, at, request));
        assert_eq!(answers[0].status, answers[1].status, "{request}");
    }
    let copies = all.iter().filter(|(_, copied, _)| *copied).count();
    let others = all.iter().filter(|(.., other)| *other).count();
    let (ours, envoys) = (ours.told(copies, others), envoys.told(copies, others));
    assert_eq!(ours, envoys);
    assert_eq!(
        (ours[0].len(), ours[1].len()),
        (copies, others),
        "what is not to be copied, is not"
    );
    println!("{copies} and {others} copies were compared");
}

/// One proxy, one endpoint that answers, and a mirror that is what the test makes of it.
struct Scene {
    place: Place,
    mirror: SocketAddr,
    proxy: Proxy,
    yaml: String,
}

impl Scene {
    fn start(forward: &str, mirror: impl FnOnce(TcpListener)) -> Self {
        let place = Place::new();
        let web = Endpoint::start(&place.world.host(), 9001, "w", Tries::default()).address;
        let listener = place.them.listen(9001);
        let address = listener.local_addr().expect("a socket");
        mirror(listener);
        let clusters = [
            ("web", format!("endpoints: ['{web}']")),
            ("copy", format!("endpoints: ['{address}']")),
        ];
        let yaml = place.yaml(&clusters, forward);
        Self {
            proxy: place.start(&yaml),
            mirror: address,
            yaml,
            place,
        }
    }

    fn count(&self, result: &str) -> u64 {
        let labels = [("cluster", "copy"), ("result", result)];
        self.proxy
            .metrics()
            .sum("underpass_http_mirrored_requests_total", &labels)
    }

    fn comes_to(&self, result: &str, count: u64) {
        wait::eventually(wait::SOON, result, || self.count(result) == count);
    }

    /// Policy that keeps the client from the mirror.
    fn denied(&self) -> String {
        format!(
            "{}workloads: [{{name: copy, namespace: shop, addresses: ['{}'], authorization_policies: [shop/no]}}]
authorization_policies:
- {{name: no, namespace: shop, scope: WORKLOAD_SELECTOR, action: DENY, groups: [{{rules: [{{matches: [{{source_ips: [{}]}}]}}]}}]}}
",
            self.yaml,
            self.mirror.ip(),
            self.place.client.ip()
        )
    }

    fn post(&self, length: usize) -> Client {
        let mut client = Client::connect(&self.place.client, self.place.ours());
        client.send(format!("POST /web/ HTTP/1.1\r\nhost: web.test\r\ncontent-length: {length}\r\n\r\n").as_bytes());
        client
    }
}

/// Accepts, and hands over what it has accepted: nothing is read.
fn mute(listener: TcpListener) -> Receiver<TcpStream> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = tell.send(stream);
        }
    });
    told
}

/// How much a peer sends until the connection ends.
fn length_of(mut stream: TcpStream) -> usize {
    let (mut length, mut chunk) = (0, [0; 64 * 1024]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        length += count;
    }
    length
}

const MIRRORS: &str = ", mirrors: [{cluster: copy}]";
const LARGE: usize = 24 << 20;

/// Its sender goes on at its own pace, the memory that it costs is bounded, and what it got of the copy does not look whole.
#[test]
fn a_mirror_that_does_not_read_holds_up_no_request_and_costs_no_memory() {
    let mut accepted = None;
    let scene = Scene::start(", timeout: 60s, mirrors: [{cluster: copy}]", |listener| {
        accepted = Some(mute(listener))
    });
    let accepted = accepted.expect("a mirror");
    let before = scene.proxy.resident_bytes();
    let mut unread = Vec::new();
    for copies in 1..=4 {
        let mut client = scene.post(LARGE);
        client.send(&vec![b'x'; LARGE]);
        let seen = client.answer(false);
        assert_eq!(seen.status, 200);
        assert!(seen.body.contains(&format!("body {LARGE}: ")));
        unread.push(accepted.recv().expect("a copy"));
        scene.comes_to("slow", copies);
    }
    let grown = scene.proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more, for copies that nobody reads");
    for stream in unread {
        let length = length_of(stream);
        assert!(length < LARGE, "a copy that was broken off came whole: {length}");
    }
}

/// A copy is whole only if the request was.
#[test]
fn a_request_that_is_cut_off_cuts_off_its_copy() {
    let mut accepted = None;
    let scene = Scene::start(MIRRORS, |listener| accepted = Some(mute(listener)));
    let mut client = scene.post(1000);
    client.send(&[b'x'; 500]);
    let mut stream = accepted.expect("a mirror").recv().expect("a copy");
    let mut read = Vec::new();
    while !read.ends_with(&[b'x'; 500]) {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).expect("the beginning"), 1);
        read.push(byte[0]);
    }
    drop(client);
    assert_eq!(length_of(stream), 0, "something else followed");
    scene.comes_to("cut_off", 1);
}

#[test]
fn a_mirror_that_does_not_answer_has_as_long_as_its_request() {
    let mut accepted = None;
    let scene = Scene::start(", timeout: 300ms, mirrors: [{cluster: copy}]", |listener| {
        accepted = Some(mute(listener))
    });
    assert_eq!(scene.place.ask("/web/", "").status, 200);
    let stream = accepted.expect("a mirror").recv().expect("a copy");
    scene.comes_to("timed_out", 1);
    assert!(
        length_of(stream) > 0,
        "its connection is still open, or carried nothing"
    );
}

#[test]
fn a_copy_goes_nowhere_that_its_client_may_not() {
    let heard = Heard::default();
    let scene = Scene::start(MIRRORS, drop);
    let _copy = Endpoint::heard(&scene.place.them, 9001, "m", Tries::default(), heard.clone());
    assert_eq!(scene.place.ask("/web/", "").status, 200);
    wait::eventually(wait::SOON, "a copy comes", || {
        heard.lock().expect("no panic").len() == 1
    });
    let updates = scene.proxy.config_updates("applied");
    scene.proxy.replace_file(&scene.denied());
    wait::eventually(wait::SOON, "the policy is in force", || {
        scene.proxy.config_updates("applied") > updates
    });
    assert_eq!(scene.place.ask("/web/", "").status, 200);
    scene.comes_to("denied", 1);
    assert_eq!(heard.lock().expect("no panic").len(), 1);
}

/// The request that it is a copy of goes on.
#[test]
fn a_policy_that_comes_to_deny_a_mirror_ends_the_copy_only() {
    let mut accepted = None;
    let scene = Scene::start(MIRRORS, |listener| accepted = Some(mute(listener)));
    let mut client = scene.post(1000);
    client.send(&[b'x'; 500]);
    let stream = accepted.expect("a mirror").recv().expect("a copy");
    scene.proxy.replace_file(&scene.denied());
    scene.comes_to("denied", 1);
    client.send(&[b'x'; 500]);
    assert_eq!(client.answer(false).status, 200);
    assert!(length_of(stream) < 1000, "the copy went on");
}

#[test]
fn as_many_requests_are_copied_as_it_is_said() {
    let scene = Scene::start(", mirrors: [{cluster: copy, percent: 30}]", |listener| {
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || answer_all(stream));
            }
        });
    });
    let mut client = Client::connect(&scene.place.client, scene.place.ours());
    for _ in 0..500 {
        client.send(b"GET /web/ HTTP/1.1\r\nhost: web.test\r\n\r\n");
        assert_eq!(client.answer(false).status, 200);
    }
    // 150 are expected: ten standard deviations are 102.
    wait::eventually(wait::SOON, "as many are copied", || scene.count("answered") >= 48);
    let copied = scene.count("answered");
    assert!(copied < 252, "{copied} of 500");
}

fn answer_all(mut stream: TcpStream) {
    let mut read = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        read.extend_from_slice(&chunk[..count]);
        while let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            read.drain(..end + 4);
            if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").is_err() {
                return;
            }
        }
    }
}

/// Reads one request after the other whole, and tells of its body and its trailers.
async fn read_whole(listener: TcpListener, tell: mpsc::Sender<(Vec<u8>, Option<HeaderMap>)>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    let (stream, _) = listener.accept().await.expect("a connection");
    let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let tell = tell.clone();
        tokio::spawn(async move {
            let (mut body, mut read) = (request.into_body(), Vec::new());
            while let Some(Ok(bytes)) = body.data().await {
                let _ = body.flow_control().release_capacity(bytes.len());
                read.extend_from_slice(&bytes);
            }
            let trailers = body.trailers().await.ok().flatten();
            let _ = tell.send((read, trailers));
            let _ = respond.send_response(Response::new(()), true);
        });
    }
}

#[test]
fn a_copy_has_its_requests_trailers() {
    let place = Place::new();
    let runtime = Runtime::new().expect("a runtime");
    let web = streams::start(runtime.handle(), &place.world.host(), 9001, Tries::default()).address;
    let listener = place.them.listen(9001);
    let copy = listener.local_addr().expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let (tell, told) = mpsc::channel();
    runtime.spawn(read_whole(listener, tell));
    let clusters =
        [("web", web), ("copy", copy)].map(|(name, at)| (name, format!("protocol: http2, endpoints: ['{at}']")));
    let _proxy = place.start(&place.yaml(&clusters, MIRRORS));
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("5"));
    let stream = place.client.connect(place.ours()).expect("the proxy accepts");
    stream.set_nonblocking(true).expect("a socket");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("room for a stream");
        let request = Request::post(format!("http://{}/web/", place.ours()));
        let (response, mut send) = sender
            .send_request(request.body(()).expect("a request"), false)
            .expect("a stream");
        send.send_data(Bytes::from_static(b"hello"), false).expect("sent");
        send.send_trailers(trailers.clone()).expect("sent");
        assert_eq!(response.await.expect("a response").status(), 200);
    });
    let copy = told.recv_timeout(wait::soon()).expect("a copy");
    assert_eq!(copy, (b"hello".to_vec(), Some(trailers)));
}
