//! Clients of tunnels: by HTTP/1.1 and by HTTP/2.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream, client};
use http::{Method, Request, Uri};
use socket2::SockRef;

use super::place::Place;

/// One end of a tunnel.
pub(super) enum Client<'p> {
    Http1(TcpStream),
    Http2(&'p Place, Box<Stream>),
}

pub(super) struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    read: BytesMut,
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

impl<'p> Client<'p> {
    /// Opens a tunnel in which the endpoint does `deed`. To `tcp` it is a CONNECT.
    pub(super) fn open(place: &'p Place, speaks: &str, endpoint: &str, deed: &str) -> Self {
        let target = match endpoint {
            "tcp" => "CONNECT web.test:80".to_owned(),
            _ => format!("/{endpoint}/{deed}"),
        };
        let mut opened = match speaks {
            "h1" => {
                let (stream, status) = http1(place, &target);
                let expected = if endpoint == "tcp" { 200 } else { 101 };
                assert_eq!(status, expected, "{target}");
                Self::Http1(stream)
            }
            _ => {
                let opened = place.run(http2(place, &target));
                Self::Http2(
                    place,
                    Box::new(opened.unwrap_or_else(|status| panic!("{target}: {status}"))),
                )
            }
        };
        if endpoint == "tcp" {
            opened.send(format!("{deed}\n").as_bytes());
        }
        opened
    }

    /// Bytes by which an endpoint of TCP is told what to do.
    pub(super) fn asked(endpoint: &str, deed: &str) -> usize {
        if endpoint == "tcp" { deed.len() + 1 } else { 0 }
    }

    /// The status with which one is refused.
    pub(super) fn refused(place: &Place, speaks: &str, target: &str) -> u16 {
        match speaks {
            "h1" => http1(place, target).1,
            _ => place.run(http2(place, target)).err().expect("it is refused"),
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Http1(stream) => stream.write_all(bytes).expect("the tunnel takes it"),
            Self::Http2(place, stream) => {
                let bytes = Bytes::copy_from_slice(bytes);
                stream.send.send_data(bytes, false).expect("the tunnel takes it");
                // The connection's task writes it.
                place.run(tokio::task::yield_now());
            }
        }
    }

    /// Sends until nothing more is taken.
    pub(super) fn fill(&mut self) {
        match self {
            Self::Http1(stream) => {
                stream
                    .set_write_timeout(Some(Duration::from_secs(1)))
                    .expect("a socket");
                while stream.write(&[7; 64 * 1024]).is_ok() {}
            }
            Self::Http2(place, stream) => place.run(async {
                stream.send.reserve_capacity(64 << 20);
                let filling = async {
                    while let Some(Ok(_)) = std::future::poll_fn(|cx| stream.send.poll_capacity(cx)).await {
                        let room = stream.send.capacity().min(64 * 1024);
                        stream.send.send_data(vec![7; room].into(), false).expect("open");
                    }
                };
                let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(1), filling).await;
            }),
        }
    }

    /// Exactly so many bytes.
    pub(super) fn read(&mut self, length: usize) -> Vec<u8> {
        match self {
            Self::Http1(stream) => {
                let mut read = vec![0; length];
                stream.read_exact(&mut read).expect("the endpoint's bytes");
                read
            }
            Self::Http2(place, stream) => place.run(async {
                while stream.read.len() < length {
                    let more = stream.receive.data().await.expect("no end").expect("no reset");
                    let _ = stream.receive.flow_control().release_capacity(more.len());
                    stream.read.extend_from_slice(&more);
                }
                stream.read.split_to(length).to_vec()
            }),
        }
    }

    pub(super) fn finish(&mut self) {
        match self {
            Self::Http1(stream) => stream.shutdown(Shutdown::Write).expect("a socket"),
            Self::Http2(_, stream) => stream.send.send_data(Bytes::new(), true).expect("open"),
        }
    }

    /// Breaks it off: RST, RST_STREAM.
    pub(super) fn break_off(self) {
        match self {
            Self::Http1(stream) => SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .expect("a socket"),
            Self::Http2(place, mut stream) => {
                stream.send.send_reset(Reason::CANCEL);
                place.run(tokio::task::yield_now());
            }
        }
    }

    /// Whether it ends as something that is complete, whatever comes before.
    pub(super) fn ends_complete(&mut self) -> bool {
        self.end().is_ok()
    }

    /// Whether it ends as something that is broken.
    pub(super) fn ends_broken(&mut self) -> bool {
        self.end().is_err()
    }

    fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Http1(stream) => match stream.read_to_end(&mut Vec::new()) {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(error),
                Err(error) => panic!("the tunnel does not end: {error}"),
            },
            Self::Http2(place, stream) => place.run(async {
                while let Some(bytes) = stream.receive.data().await {
                    bytes.map_err(io::Error::other)?;
                }
                Ok(())
            }),
        }
    }
}

fn http1(place: &Place, target: &str) -> (TcpStream, u16) {
    let mut stream = place.client.connect(place.at).expect("the proxy accepts");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a socket");
    let request = match target.strip_prefix("CONNECT ") {
        Some(authority) => format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n"),
        None => format!(
            "GET {target} HTTP/1.1\r\nhost: web.test\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: {KEY}\r\nsec-websocket-version: 13\r\n\r\n"
        ),
    };
    stream.write_all(request.as_bytes()).expect("sent");
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a response");
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.expect("a status");
    if status == 101 {
        let is_complete = head.contains("\r\nconnection: upgrade\r\n")
            && head.contains("\r\nupgrade: websocket\r\n")
            && head.contains("\r\nsec-websocket-accept: ");
        assert!(is_complete, "{head}");
    }
    (stream, status)
}

/// A tunnel, or the status with which it is refused.
async fn http2(place: &Place, target: &str) -> Result<Stream, u16> {
    let stream = place.client.connect(place.at).expect("the proxy accepts");
    stream.set_nonblocking(true).expect("a socket");
    let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
    let (sender, mut connection) = client::handshake(stream).await.expect("HTTP/2");
    // Whether it takes extended CONNECT, the proxy says in its settings.
    std::future::poll_fn(|cx| {
        assert!(
            std::pin::Pin::new(&mut connection).poll(cx).is_pending(),
            "the connection ended"
        );
        match sender.is_extended_connect_protocol_enabled() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
    tokio::spawn(connection);
    let mut sender = sender.ready().await.expect("room for a stream");
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = match target.strip_prefix("CONNECT ") {
        Some(authority) => Uri::builder().authority(authority).build().expect("a URI"),
        None => {
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from_static("websocket"));
            format!("http://web.test{target}").parse().expect("a URI")
        }
    };
    let (response, send) = sender.send_request(request, false).expect("a stream");
    let response = response.await.expect("a response");
    match response.status().as_u16() {
        200 => Ok(Stream {
            send,
            receive: response.into_body(),
            read: BytesMut::new(),
        }),
        status => Err(status),
    }
}
