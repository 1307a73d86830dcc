//! Endpoints of HTTP/2 that break off in the middle of an answer, with and without an error; and ones that have answered and read no further. Written by hand, since
//! a library's server would not.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::Bytes;
use h2::Reason;
use http::Request;
use serde_json::json;
use tokio::runtime::Runtime;
use underpass_tests::{Host, Need, available, wait};

use super::place::{ClusterPair, Place, endpoints};
use crate::attacks::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame, read_frame};
use crate::{client, streams};

/// RFC 7541, appendix A: `:status: 200` of the static table.
const OK: u8 = 0x88;
/// `content-length: 6`, by the table's name, not indexed (section 6.2.2).
const SIX: [u8; 4] = [0x0f, 28 - 15, 1, b'6'];
/// Section 7.
const NO_ERROR: u32 = 0;
const CANCEL: u32 = 8;

/// What an endpoint does when it has sent the head of its answer and a part of the body.
#[derive(Clone, Copy)]
enum Deed {
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY, by which it has not looked at the request, though it has begun to answer it.
    GoAwayBefore,
    /// GOAWAY behind the request, and the end of the connection.
    GoAwayBehind,
    /// The end of the connection.
    Close,
    /// END_STREAM, and RST_STREAM without an error: it wants nothing more of the request (section 8.1).
    Enough,
    /// END_STREAM; it neither reads the rest of the request nor says so.
    Rest,
    /// END_STREAM, and the end of the connection.
    EndAndClose,
    /// A head that announces six bytes, these bytes, and END_STREAM when the next request comes.
    EndLater(&'static [u8]),
}

/// Starts one that does it with every request, and tells of the streams that are reset, with their codes.
fn start(host: &Host, port: u16, deed: Deed) -> (SocketAddr, Receiver<u32>) {
    let listener = host.listen(port);
    let address = listener.local_addr().expect("a socket");
    let (tell, told) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tell = tell.clone();
            thread::spawn(move || serve(stream, deed, &tell));
        }
    });
    (address, told)
}

fn serve(mut stream: TcpStream, deed: Deed, tell: &Sender<u32>) -> io::Result<()> {
    stream.read_exact(&mut [0; 24])?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let mut unended = None;
    loop {
        let (kind, flags, id, content) = read_frame(&stream)?;
        match kind {
            SETTINGS if flags == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            HEADERS => {
                if let Some(before) = unended.take() {
                    stream.write_all(&frame(DATA, END_STREAM, before, &[]))?;
                }
                unended = matches!(deed, Deed::EndLater(_)).then_some(id);
                stream.write_all(&act(deed, id))?;
                if matches!(deed, Deed::GoAwayBehind | Deed::Close | Deed::EndAndClose) {
                    return Ok(());
                }
            }
            RST_STREAM => {
                let _ = tell.send(u32::from_be_bytes([content[0], content[1], content[2], content[3]]));
            }
            _ => {}
        }
    }
}

fn act(deed: Deed, id: u32) -> Vec<u8> {
    if let Deed::EndLater(body) = deed {
        let head = frame(HEADERS, END_HEADERS, id, &[&[OK], &SIX[..]].concat());
        let body = Some(body).filter(|body| !body.is_empty());
        return [head, body.map_or_else(Vec::new, |body| frame(DATA, 0, id, body))].concat();
    }
    let is_end = matches!(deed, Deed::Enough | Deed::Rest | Deed::EndAndClose);
    let mut answer = frame(HEADERS, END_HEADERS, id, &[OK]);
    answer.extend(frame(DATA, if is_end { END_STREAM } else { 0 }, id, b"a part"));
    let go_away = |last: u32| frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    answer.extend(match deed {
        Deed::Reset(code) => frame(RST_STREAM, 0, id, &code.to_be_bytes()),
        Deed::Enough => frame(RST_STREAM, 0, id, &NO_ERROR.to_be_bytes()),
        Deed::GoAwayBefore => go_away(0),
        Deed::GoAwayBehind => go_away(id),
        Deed::Close | Deed::Rest | Deed::EndAndClose | Deed::EndLater(_) => Vec::new(),
    });
    answer
}

fn pair(name: &'static str, address: SocketAddr) -> ClusterPair {
    ClusterPair {
        name,
        ours: format!("protocol: http2, endpoints: ['{address}']"),
        envoys: json!({"load_assignment": endpoints(&[address]), "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}}}}}),
    }
}

fn get(name: &str) -> Request<()> {
    let uri = format!("http://web.test/{name}/x");
    Request::get(uri).body(()).expect("a request")
}

/// Whatever ends an answer but its END_STREAM, breaks it off for the client too, by HTTP/1.1 as by HTTP/2, and is told as Envoy tells it.
#[test]
fn an_answer_that_its_endpoint_breaks_off_never_looks_complete() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let deeds = [
        ("reset", Deed::Reset(NO_ERROR), "UR"),
        ("cancelled", Deed::Reset(CANCEL), "UR"),
        ("unseen", Deed::GoAwayBefore, "UR"),
        ("going", Deed::GoAwayBehind, "UC"),
        ("closed", Deed::Close, "UC"),
    ];
    let clusters: Vec<ClusterPair> = (9001..)
        .zip(deeds)
        .map(|(port, (name, deed, _))| pair(name, start(&place.them, port, deed).0))
        .collect();
    let _both = place.start_both(&clusters);
    let runtime = Runtime::new().expect("a runtime");
    for (name, _, flag) in deeds {
        for at in [place.ours(), place.envoys()] {
            let request = client::get(&format!("/{name}/x"), "");
            let by_http1 = client::ask(&place.client, at, &request);
            let by_http2 = runtime.block_on(streams::ask(&place.client, at, get(name), Bytes::new()));
            for seen in [by_http1, by_http2] {
                // A proxy that learns of both at once may as well say that there was no answer.
                let is_broken = seen.status == 503 || seen.status == 0 || (seen.status == 200 && !seen.is_whole);
                assert!(is_broken, "{name} at {at}: {seen:?}");
            }
        }
        let (ours, envoys) = (format!("\"path\":\"/{name}/x\""), format!("/{name}/x "));
        wait::eventually(wait::SOON, "both are logged", || {
            place.logged(&ours) == 2 && place.logged_by_envoy(&envoys) == 2
        });
        let log = std::fs::read_to_string(place.world.directory().join("access.log")).expect("a log");
        let envoy_log = std::fs::read_to_string(place.world.directory().join("envoy.log")).expect("a log");
        let of_it = |log: &str, path: &str| -> Vec<String> {
            let lines = log.lines().filter(|line| line.contains(path));
            lines.map(str::to_owned).collect()
        };
        for line in of_it(&log, &ours) {
            assert!(
                line.contains(&format!("\"response_flags\":\"{flag}\"")),
                "{name}: {line}"
            );
        }
        for line in of_it(&envoy_log, &envoys) {
            assert!(line.contains(&format!(" {flag} ")), "{name}: Envoy tells {line}");
        }
    }
}

/// What has come whole is whole, though its endpoint wants nothing more of the request.
#[test]
fn an_answer_that_has_come_whole_is_whole_though_its_stream_is_reset() {
    let place = Place::new();
    let (address, _told) = start(&place.them, 9001, Deed::Enough);
    let _proxy = place.start(&place.yaml(&[("web", format!("protocol: http2, endpoints: ['{address}']"))], ""));
    let runtime = Runtime::new().expect("a runtime");
    for _ in 0..20 {
        let seen = runtime.block_on(streams::ask(&place.client, place.ours(), get("web"), Bytes::new()));
        assert_eq!((seen.status, &*seen.body, seen.is_whole), (200, "a part", true));
        let seen = client::ask(&place.client, place.ours(), &client::get("/web/x", ""));
        assert_eq!((seen.status, &*seen.body, seen.is_whole), (200, "a part", true));
    }
}

/// The end of a connection is no end of an answer that has come to its own, be there a request that has not. Where the codec is told of the end
/// first, there is no answer: never a part of one.
#[test]
fn an_answer_that_has_come_whole_is_whole_though_its_connection_ends_in_its_request() {
    let place = Place::new();
    let (address, _told) = start(&place.them, 9001, Deed::EndAndClose);
    // Each has a connection that is made for it: none finds that of the one before at its end.
    let fields = format!("protocol: http2, endpoints: ['{address}'], connections: {{requests: 1}}");
    let _proxy = place.start(&place.yaml(&[("web", fields)], ""));
    let (mut whole, mut asked) = (0, 0);
    // How often the end is seen first depends on what else the machine does; that it is not always.
    while whole < 5 {
        asked += 1;
        assert!(asked <= 300, "{whole} of {asked}");
        let mut client = client::Client::connect(&place.client, place.ours());
        client.send(b"POST /web/x HTTP/1.1\r\nhost: web.test\r\ncontent-length: 100\r\n\r\na part of it");
        let seen = client.answer(false);
        match seen.status {
            503 => {}
            _ => {
                assert_eq!((seen.status, &*seen.body, seen.is_whole), (200, "a part", true));
                whole += 1;
            }
        }
    }
}

/// A request's body belongs to its answer: when that has ended, nobody sends on, and both peers are told.
#[test]
fn an_upload_ends_with_its_answer_on_both_sides() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let (address, told) = start(&place.them, 9001, Deed::Rest);
    let _both = place.start_both(&[pair("web", address)]);
    let runtime = Runtime::new().expect("a runtime");
    for at in [place.ours(), place.envoys()] {
        let reason = runtime.block_on(async {
            let stream = place.client.connect(at).expect("the proxy accepts");
            stream.set_nonblocking(true).expect("a socket");
            let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
            let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::spawn(connection);
            let mut sender = sender.ready().await.expect("room");
            let request = Request::post("http://web.test/web/x").body(()).expect("a request");
            let (response, mut send) = sender.send_request(request, false).expect("a stream");
            send.send_data(Bytes::from(vec![7; 100]), false).expect("a stream");
            let mut body = response.await.expect("an answer").into_body();
            while let Some(bytes) = body.data().await {
                bytes.expect("a whole answer");
            }
            let reset = std::future::poll_fn(|cx| send.poll_reset(cx));
            tokio::time::timeout(wait::soon(), reset)
                .await
                .expect("the client is told")
                .expect("a reset")
        });
        assert_eq!(reason, Reason::NO_ERROR, "{at}");
        told.recv_timeout(wait::soon())
            .unwrap_or_else(|_| panic!("the endpoint of {at} is not told"));
    }
}

/// The end may come in a frame of its own, which a client of HTTP/1.1 that has all bytes does not wait for: the endpoint is waited for a
/// little, and does not see an answer cancelled that it has given whole.
#[test]
fn an_answer_whose_end_comes_later_is_not_cancelled() {
    const ASKED: u32 = 5;
    let place = Place::new();
    let (whole, whole_told) = start(&place.them, 9001, Deed::EndLater(b"a part"));
    let (empty, empty_told) = start(&place.them, 9002, Deed::EndLater(b""));
    let fields = |address| format!("protocol: http2, endpoints: ['{address}'], limits: {{requests: 1}}");
    let _proxy = place.start(&place.yaml(&[("whole", fields(whole)), ("empty", fields(empty))], ""));
    for (name, method, body, told) in [
        ("whole", "GET", "a part", whole_told),
        ("empty", "HEAD", "", empty_told),
    ] {
        let request = client::get(&format!("/{name}/x"), "").replacen("GET", method, 1);
        for _ in 0..ASKED {
            let seen = client::ask(&place.client, place.ours(), &request);
            assert_eq!((seen.status, &*seen.body, seen.is_whole), (200, body, true), "{name}");
        }
        // The last one's end does not come at all.
        assert_eq!(told.recv_timeout(wait::soon()), Ok(CANCEL), "{name}");
        assert!(told.try_recv().is_err(), "{name}: others were cancelled too");
        let logged = format!("\"path\":\"/{name}/x\"");
        wait::eventually(wait::SOON, "all are logged", || place.logged(&logged) == ASKED as usize);
    }
    assert_eq!(
        place.logged(r#""response_flags":"-""#),
        2 * ASKED as usize,
        "none has lost its client"
    );
}
