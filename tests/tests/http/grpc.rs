//! HTTP/2 on both sides: streams both ways, trailers, trailers only, resets.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use underpass_tests::{Proxy, World};

/// A test that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// What a response of `/flood` has: more than the windows of one stream have room for.
const FLOOD: usize = 2 << 20;

fn trailers(status: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("grpc-message", HeaderValue::from_static("as said"));
    trailers
}

/// Echoes each message as it comes, and ends with trailers; by its path it does otherwise.
async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let path = request.uri().path().to_owned();
    let mut response = Response::new(());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    let te = request
        .headers()
        .get("te")
        .cloned()
        .unwrap_or(HeaderValue::from_static("-"));
    response.headers_mut().insert("x-te", te);
    match path.as_str() {
        "/trailers-only" => {
            response.headers_mut().extend(trailers("5"));
            return respond.send_response(response, true).map(drop);
        }
        "/flood" => {
            let mut stream = respond.send_response(response, false)?;
            return stream.send_data(vec![7; FLOOD].into(), true);
        }
        "/reset" => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        _ => {}
    }
    let mut body = request.into_body();
    let mut stream = respond.send_response(response, false)?;
    while let Some(message) = body.data().await {
        let message = message?;
        body.flow_control().release_capacity(message.len())?;
        stream.send_data(message, false)?;
    }
    stream.send_trailers(trailers("0"))
}

pub(crate) async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(mut connection) = server::handshake(stream).await else {
                return;
            };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond));
            }
        });
    }
}

struct Scene {
    runtime: Runtime,
    at: SocketAddr,
    _proxy: Proxy,
    _world: World,
}

impl Scene {
    fn start() -> Self {
        let world = World::loopback();
        let (us, host) = (world.host(), world.host());
        let runtime = Runtime::new().expect("a runtime");
        let listener = host.listen(9001);
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("a socket");
        runtime.spawn(async { serve(TcpListener::from_std(listener).expect("a socket")).await });
        let (at, admin) = (us.at(8080), us.at(15000));
        let yaml = format!(
            "node: {{name: a, admin: '{admin}', access_log: {{format: off}}, listeners: [{{name: http, address: '{at}', protocol: http, routes: t}}]}}
http:
  clusters: [{{name: web, protocol: http2, endpoints: ['{address}']}}, {{name: void}}]
  routes:
  - name: t
    virtual_hosts:
    - name: all
      domains: ['*']
      routes:
      - {{match: {{path: /void}}, forward: {{cluster: void}}}}
      - {{forward: {{cluster: web, timeout: 100s}}}}
"
        );
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            _proxy: Proxy::start_with_file(&world, &us, file),
            at,
            runtime,
            _world: world,
        }
    }

    fn run<T>(&self, test: impl Future<Output = T>) -> T {
        let in_time = async { tokio::time::timeout(DEADLINE, test).await };
        self.runtime.block_on(in_time).expect("it does not hang")
    }
}

type Client = client::SendRequest<Bytes>;

async fn connect(at: SocketAddr) -> Client {
    let stream = TcpStream::connect(at).await.expect("the proxy accepts");
    let (client, connection) = client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    client.ready().await.expect("room for a stream")
}

fn request(at: SocketAddr, path: &str) -> Request<()> {
    request_to(&at.to_string(), path)
}

pub(crate) fn request_to(authority: &str, path: &str) -> Request<()> {
    let uri = format!("http://{authority}{path}");
    let request = Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    request.body(()).expect("a request")
}

#[test]
fn messages_go_both_ways_as_they_come_and_trailers_end_them() {
    let scene = Scene::start();
    scene.run(async {
        let mut client = connect(scene.at).await;
        let (response, mut stream) = client
            .send_request(request(scene.at, "/echo"), false)
            .expect("a stream");
        stream.send_data(Bytes::from_static(b"first"), false).expect("sent");
        let response = response.await.expect("a response before the request has ended");
        assert_eq!(response.headers()["x-te"], "trailers");
        let mut body = response.into_body();
        for message in ["first", "second"] {
            if message == "second" {
                stream.send_data(Bytes::from_static(b"second"), false).expect("sent");
            }
            let echoed = body.data().await.expect("a message").expect("a message");
            assert_eq!(echoed, message);
        }
        stream.send_data(Bytes::new(), true).expect("sent");
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.expect("no reset").expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"0".parse().unwrap(), &"as said".parse().unwrap())
        );
    });
}

#[test]
fn trailers_may_be_all_that_there_is() {
    let scene = Scene::start();
    scene.run(async {
        let mut client = connect(scene.at).await;
        let (response, _) = client
            .send_request(request(scene.at, "/trailers-only"), true)
            .expect("a stream");
        let response = response.await.expect("a response");
        assert_eq!(response.headers()["grpc-status"], "5");
        assert!(response.body().is_end_stream());
    });
}

#[test]
fn what_the_proxy_answers_itself_is_grpc_too() {
    let scene = Scene::start();
    scene.run(async {
        let mut client = connect(scene.at).await;
        for (path, message) in [
            ("/void", "no healthy upstream"),
            (
                "/reset",
                "upstream connect error or disconnect/reset before headers. reset reason: remote reset",
            ),
        ] {
            let (response, _) = client.send_request(request(scene.at, path), true).expect("a stream");
            let response = response.await.expect("a response");
            assert_eq!(
                (response.status().as_u16(), &response.headers()["grpc-status"]),
                (200, &"14".parse().unwrap())
            );
            assert_eq!(response.headers()["grpc-message"], message);
        }
    });
}

/// Responses that one client does not read do not use up what an endpoint may send to others by the same connection.
#[test]
fn responses_that_are_not_read_hold_up_no_other_client() {
    let scene = Scene::start();
    scene.run(async {
        let mut client = connect(scene.at).await;
        let mut unread = Vec::new();
        for _ in 0..40 {
            let (response, _) = client
                .send_request(request(scene.at, "/flood"), true)
                .expect("a stream");
            unread.push(response.await.expect("a response"));
        }
        // There is no telling when the endpoint has sent all that it may but that it was let to for a while.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for _ in 0..8 {
            let mut other = connect(scene.at).await;
            let (response, _) = other.send_request(request(scene.at, "/flood"), true).expect("a stream");
            let mut body = response.await.expect("a response").into_body();
            let mut length = 0;
            let reading = async {
                while let Some(data) = body.data().await {
                    let data = data.expect("no reset");
                    length += data.len();
                    body.flow_control().release_capacity(data.len()).expect("it was taken");
                }
            };
            let read = tokio::time::timeout(Duration::from_secs(20), reading).await;
            assert_eq!((read, length), (Ok(()), FLOOD));
        }
        drop(unread);
    });
}

/// One stream whose client does not read holds up none beside it, and no more of it is taken than the windows have room for.
#[test]
fn a_stream_that_is_not_read_holds_up_no_other() {
    let scene = Scene::start();
    scene.run(async {
        let mut client = connect(scene.at).await;
        let (stuck, mut stream) = client
            .send_request(request(scene.at, "/echo"), false)
            .expect("a stream");
        let stuck = stuck.await;
        stream.reserve_capacity(64 << 20);
        let mut taken = 0;
        let filling = async {
            loop {
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx))
                    .await
                    .expect("open")
                    .expect("open");
                let room = room.min(stream.capacity()).min(16 * 1024);
                stream.send_data(vec![7; room].into(), false).expect("sent");
                taken += room;
            }
        };
        // There is no telling when nothing more will be taken but that nothing was for a while.
        let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(3), filling).await;
        assert!(
            taken < 32 << 20,
            "{taken} bytes were taken for a client that does not read"
        );
        let mut other = connect(scene.at).await;
        for client in [&mut client, &mut other] {
            let (response, _) = client.send_request(request(scene.at, "/echo"), true).expect("a stream");
            let mut body = response.await.expect("a response").into_body();
            assert!(body.data().await.is_none());
            assert_eq!(
                body.trailers().await.expect("no reset").expect("trailers")["grpc-status"],
                "0"
            );
        }
        drop(stuck);
    });
}
