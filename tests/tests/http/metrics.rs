//! Istio's metrics of requests: the labels of a waypoint, and the numbers that clients have counted.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use underpass_tests::{Host, Metrics, Proxy, World, wait};

use super::client::{Client, ask, get};
use super::endpoint::{Endpoint, Tries};
use super::grpc;

const DOCUMENTED: &str = include_str!("../../../docs/metrics.md");

/// Clients that ask at once, and how often each does.
const CLIENTS: usize = 6;
const ASKED: usize = 60;

struct Scene {
    client: Host,
    us: Host,
    runtime: Runtime,
    proxy: Proxy,
    _world: World,
}

impl Scene {
    /// `more`: fields of the route table.
    fn start(more: &str) -> Self {
        let world = World::loopback();
        let (client, us, server, messenger) = (world.host(), world.host(), world.host(), world.host());
        let web = Endpoint::start(&server, 9001, "e", Tries::default()).address;
        let runtime = Runtime::new().expect("a runtime");
        let listener = messenger.listen(9002);
        listener.set_nonblocking(true).expect("a socket");
        let echo = listener.local_addr().expect("a socket");
        runtime.spawn(async { grpc::serve(TcpListener::from_std(listener).expect("a socket")).await });
        let (listen, admin) = (us.at(8080), us.at(15000));
        let yaml = format!(
            "workloads:
- {{uid: c, name: client-7c6b-c1, workload_name: client, namespace: shop, service_account: client, canonical_name: client, canonical_revision: v3, cluster_id: west, addresses: ['{}']}}
- {{uid: s, name: server-5d8f-s1, workload_name: server-v1, namespace: shop, service_account: server, canonical_name: server, canonical_revision: v1, cluster_id: west, addresses: ['{}']}}
node:
  name: a
  admin: '{admin}'
  access_log: {{format: off}}
  listeners: [{{name: http, address: '{listen}', protocol: http, routes: t}}]
http:
  clusters:
  - {{name: web, endpoints: ['{web}'], service: {{hostname: server.shop.svc.cluster.local}}}}
  - {{name: echo, protocol: http2, endpoints: ['{echo}']}}
  - {{name: void, service: {{hostname: void.shop.svc.cluster.local}}}}
  routes:
  - name: t
    authorization: [{{name: p, action: DENY, rules: [{{to: [{{operation: {{paths: [/denied]}}}}]}}]}}]
    {more}
    virtual_hosts:
    - name: all
      domains: ['web.test']
      routes:
      - {{match: {{prefix: /void}}, forward: {{cluster: void}}}}
      - {{match: {{prefix: /echo}}, forward: {{cluster: echo, timeout: 100s}}}}
      - {{match: {{prefix: /trailers-only}}, forward: {{cluster: echo}}}}
      - {{forward: {{cluster: web}}}}
",
            client.ip(),
            server.ip()
        );
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            client,
            us,
            runtime,
            _world: world,
        }
    }

    fn ask(&self, request: &str) -> u16 {
        ask(&self.client, self.us.at(8080), request).status
    }

    /// The metrics, when so many requests have been counted.
    fn counted(&self, requests: u64) -> Metrics {
        wait::some(wait::SOON, "the requests are counted", || {
            let metrics = self.proxy.metrics();
            let counted = metrics.sum("istio_requests_total", &[]);
            assert!(counted <= requests, "{counted} of {requests}");
            (counted == requests).then_some(metrics)
        })
    }
}

fn labels<'a>(metrics: &'a Metrics, name: &str, of: &[(&str, &str)]) -> Vec<&'a BTreeMap<String, String>> {
    let has = |labels: &BTreeMap<String, String>| {
        of.iter()
            .all(|(name, value)| labels.get(*name).is_some_and(|v| v == value))
    };
    let samples = metrics
        .samples()
        .iter()
        .filter(|sample| sample.name == name && has(&sample.labels));
    samples.map(|sample| &sample.labels).collect()
}

/// The table's first column.
fn documented() -> BTreeSet<String> {
    // What follows is of other tables.
    let table = DOCUMENTED.split("\n## ").next().unwrap_or_default();
    let rows = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
    let names = rows.flat_map(|cell| cell.split(", ")).filter(|name| *name != "label");
    names.map(str::to_owned).collect()
}

#[test]
fn a_request_has_the_labels_of_a_waypoint() {
    let scene = Scene::start("");
    assert_eq!(scene.ask(&get("/", "")), 200);
    assert_eq!(scene.ask(&get("/void", "")), 503);
    assert_eq!(scene.ask(&get("/denied", "")), 403);
    assert_eq!(scene.ask("GET / HTTP/1.1\r\nhost: other.test\r\n\r\n"), 404);
    let metrics = scene.counted(4);
    let of_client = [
        ("source_workload", "client"),
        ("source_workload_namespace", "shop"),
        ("source_principal", "spiffe://cluster.local/ns/shop/sa/client"),
        ("source_canonical_service", "client"),
        ("source_canonical_revision", "v3"),
        ("source_app", "client"),
        ("source_version", "v3"),
        ("source_cluster", "west"),
        ("reporter", "waypoint"),
        ("request_protocol", "http"),
        ("connection_security_policy", "none"),
    ];
    let expected = |code: &str, flags: &str, server: bool, service: [&str; 3]| {
        let known = |value: &str| if server { value.to_owned() } else { "unknown".to_owned() };
        let mut labels: BTreeMap<String, String> = of_client
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        for (name, value) in [
            ("destination_workload", "server-v1"),
            ("destination_workload_namespace", "shop"),
            ("destination_principal", "spiffe://cluster.local/ns/shop/sa/server"),
            ("destination_canonical_service", "server"),
            ("destination_canonical_revision", "v1"),
            ("destination_app", "server"),
            ("destination_version", "v1"),
            ("destination_cluster", "west"),
        ] {
            labels.insert(name.to_owned(), known(value));
        }
        let names = [
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
        ];
        for (name, value) in names
            .into_iter()
            .zip(service)
            .chain([("response_code", code), ("response_flags", flags)])
        {
            labels.insert(name.to_owned(), value.to_owned());
        }
        labels
    };
    let server = ["server.shop.svc.cluster.local", "server", "shop"];
    let void = ["void.shop.svc.cluster.local", "void", "shop"];
    let nobody = ["unknown"; 3];
    for expected in [
        expected("200", "-", true, server),
        expected("503", "UH", false, void),
        expected("403", "-", false, nobody),
        expected("404", "NR", false, nobody),
    ] {
        let of_code = [("response_code", &*expected["response_code"])];
        assert_eq!(labels(&metrics, "istio_requests_total", &of_code), [&expected]);
        assert_eq!(labels(&metrics, "istio_request_bytes_sum", &of_code), [&expected]);
        let names: BTreeSet<String> = expected
            .into_keys()
            .chain(["grpc_response_status".to_owned()])
            .collect();
        assert_eq!(names, documented(), "the table in docs/metrics.md");
    }
}

/// What a client has counted: by status, requests and bytes of their bodies and of the responses'.
type Counted = BTreeMap<u16, [u64; 3]>;

fn ask_often(scene: &Scene, seed: u64) -> Counted {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut counted = Counted::new();
    let mut client = Client::connect(&scene.client, scene.us.at(8080));
    for _ in 0..ASKED {
        let path = ["/", "/a", "/void", "/denied", "/x"][random.usize(..5)];
        let body = "x".repeat(random.usize(..3000));
        let deed = ["", "x-do: 404\r\n", "x-do: chunked\r\n", "x-do: 500\r\n"][random.usize(..4)];
        let length = body.len();
        client.send(
            format!("POST {path} HTTP/1.1\r\nhost: web.test\r\n{deed}content-length: {length}\r\n\r\n{body}")
                .as_bytes(),
        );
        let seen = client.answer(false);
        assert!(seen.is_whole, "{seen:?}");
        let of_status = counted.entry(seen.status).or_default();
        of_status[0] += 1;
        // What is answered without its body having been asked for was sent nevertheless, and its connection ends.
        let is_read = seen.header("connection") != Some("close");
        of_status[1] += if is_read { length as u64 } else { 0 };
        of_status[2] += seen.body.len() as u64;
        if !is_read {
            client = Client::connect(&scene.client, scene.us.at(8080));
        }
    }
    counted
}

#[test]
fn the_numbers_are_those_that_clients_count() {
    let scene = Scene::start("");
    let seed = super::differential::seed();
    let counted = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS as u64)
            .map(|client| {
                scope.spawn({
                    let scene = &scene;
                    move || ask_often(scene, seed.wrapping_add(client))
                })
            })
            .collect();
        let mut all = Counted::new();
        for client in clients {
            for (status, numbers) in client.join().expect("a client") {
                let sum = all.entry(status).or_default();
                sum.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
            }
        }
        all
    });
    let metrics = scene.counted((CLIENTS * ASKED) as u64);
    assert!(counted.len() >= 4, "{counted:?}");
    for (status, [requests, sent, received]) in counted {
        let status = status.to_string();
        let of_status = [("response_code", &*status)];
        let told = |name: &str| metrics.sum(name, &of_status);
        assert_eq!(told("istio_requests_total"), requests, "{status}");
        assert_eq!(told("istio_request_duration_milliseconds_count"), requests, "{status}");
        assert_eq!(told("istio_request_bytes_sum"), sent, "{status}");
        assert_eq!(told("istio_response_bytes_sum"), received, "{status}");
    }
}

#[test]
fn messages_of_grpc_are_counted_and_its_status_is_a_label() {
    let scene = Scene::start("");
    let at = scene.us.at(8080);
    let client = scene.client.clone();
    scene.runtime.block_on(async {
        let stream = client.connect(at).expect("the proxy accepts");
        stream.set_nonblocking(true).expect("a socket");
        let stream = TcpStream::from_std(stream).expect("a socket");
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        let mut client = client.ready().await.expect("room for a stream");
        for path in ["/echo", "/trailers-only", "/void"] {
            let (response, mut stream) = client
                .send_request(grpc::request_to("web.test", path), false)
                .expect("a stream");
            if path == "/echo" {
                // Three messages in two frames.
                let frames: [&'static [u8]; 2] = [b"\0\0\0\0\x03one\0\0\0\0\0\0\0\0", b"\0\x05three"];
                for frame in frames {
                    stream.send_data(Bytes::from_static(frame), false).expect("sent");
                }
            }
            let _ = stream.send_data(Bytes::new(), true);
            let mut body = response.await.expect("a response").into_body();
            while let Some(data) = body.data().await {
                let data = data.expect("a whole response");
                body.flow_control().release_capacity(data.len()).expect("was received");
            }
            let _ = body.trailers().await;
        }
    });
    let metrics = scene.counted(3);
    for (status, code) in [("0", "200"), ("5", "200"), ("14", "200")] {
        let of_status = [
            ("grpc_response_status", status),
            ("request_protocol", "grpc"),
            ("response_code", code),
        ];
        assert_eq!(metrics.sum("istio_requests_total", &of_status), 1, "{status}");
    }
    for name in ["istio_request_messages_total", "istio_response_messages_total"] {
        assert_eq!(metrics.sum(name, &[]), 3, "{name}");
        let labels = labels(&metrics, name, &[]);
        assert!(
            labels.iter().all(|labels| !labels.contains_key("response_code")),
            "{labels:?}"
        );
    }
}

#[test]
fn a_table_says_what_is_counted_by_what() {
    let scene = Scene::start(
        "metrics: [{metric: REQUEST_COUNT, labels: {request_host: '%REQ(:authority)%', tenant: '%REQ(x-tenant)%'}, remove_labels: [response_flags]}, {metric: REQUEST_SIZE, disabled: true}]",
    );
    assert_eq!(scene.ask(&get("/", "x-tenant: gold\r\n")), 200);
    assert_eq!(scene.ask(&get("/void", "")), 503);
    let metrics = scene.counted(2);
    let of = |labels: &[(&str, &str)]| metrics.sum("istio_requests_total", labels);
    assert_eq!(
        of(&[
            ("request_host", "web.test"),
            ("tenant", "gold"),
            ("response_code", "200")
        ]),
        1
    );
    assert_eq!(
        of(&[
            ("request_host", "web.test"),
            ("tenant", "unknown"),
            ("response_code", "503")
        ]),
        1
    );
    assert!(
        labels(&metrics, "istio_requests_total", &[])
            .iter()
            .all(|labels| !labels.contains_key("response_flags"))
    );
    assert!(labels(&metrics, "istio_request_bytes_sum", &[]).is_empty());
    let durations = labels(&metrics, "istio_request_duration_milliseconds_sum", &[]);
    assert!(durations.len() == 2 && durations.iter().all(|labels| labels.contains_key("response_flags")));
}
