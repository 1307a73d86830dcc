//! Endpoints that agree to a tunnel, and do in it what its path says: `echo`, `bye`, `break`, `stuck`, `last`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, server};
use http::{Method, Request, Response};
use socket2::SockRef;
use tokio::runtime::Handle;
use underpass_tests::wait;

/// How a tunnel ended, for its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saw {
    /// The client has finished.
    Finished,
    /// It was broken off.
    Broken,
}

/// Tells an endpoint that it is time.
#[derive(Debug, Default)]
pub(super) struct Flag(AtomicBool);

impl Flag {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Bytes of an endpoint's last words: what a connection takes at once that nobody reads.
pub(super) const LAST: usize = 20_000;

/// Long enough for whatever is to be noticed meanwhile.
const STUCK: Duration = Duration::from_secs(600);

/// Starts an endpoint of HTTP/1.1; `is_bare`: of none, which does what the first byte says.
pub(super) fn http1(listener: TcpListener, is_bare: bool, cue: &Arc<Flag>) -> Receiver<Saw> {
    let cue = cue.clone();
    let (tell, told) = channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (tell, cue) = (tell.clone(), cue.clone());
            thread::spawn(move || {
                let path = if is_bare { deed(&stream) } else { agree(&stream) };
                if let Ok(path) = path {
                    let saw = act(&stream, &path, &cue);
                    drop(stream);
                    let _ = tell.send(saw);
                }
            });
        }
    });
    told
}

/// What a client of plain TCP asks for: a line.
fn deed(stream: &TcpStream) -> io::Result<String> {
    head(stream, b"\n").map(|line| line.trim().to_owned())
}

fn head(mut stream: &TcpStream, end: &[u8]) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(end) {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Reads the request of a WebSocket, agrees, and says what its path asks for.
fn agree(mut stream: &TcpStream) -> io::Result<String> {
    let head = head(stream, b"\r\n\r\n")?.to_ascii_lowercase();
    let is_upgrade = head.contains("\r\nconnection: upgrade\r\n") && head.contains("\r\nupgrade: websocket\r\n");
    if !is_upgrade || !head.contains("\r\nsec-websocket-key: ") {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")?;
        return Err(io::ErrorKind::InvalidData.into());
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: yes\r\n\r\n")?;
    let path = head.split(' ').nth(1).unwrap_or_default();
    Ok(path.rsplit('/').next().unwrap_or_default().to_owned())
}

fn act(mut stream: &TcpStream, deed: &str, cue: &Flag) -> Saw {
    let mut buffer = [0; 4096];
    match deed {
        "bye" => {
            let _ = stream.write_all(b"bye").and_then(|()| stream.shutdown(Shutdown::Write));
        }
        "break" => {
            let _ = stream.read(&mut buffer);
            // It closes when it is dropped.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            return Saw::Broken;
        }
        "last" => {
            let _ = stream.write_all(b"?");
            wait::eventually(wait::SOON, "the cue", || cue.is_set());
            let _ = stream.write_all(&[9; LAST]);
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            return Saw::Broken;
        }
        "stuck" => thread::sleep(STUCK),
        _ => {}
    }
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Saw::Finished,
            Ok(length) if deed == "echo" => {
                if stream.write_all(&buffer[..length]).is_err() {
                    return Saw::Broken;
                }
            }
            Ok(_) => {}
            Err(_) => return Saw::Broken,
        }
    }
}

/// Starts one of HTTP/2 that takes extended CONNECT.
pub(super) fn http2(runtime: &Handle, listener: TcpListener) -> Receiver<Saw> {
    let (tell, told) = channel();
    listener.set_nonblocking(true).expect("a socket");
    let _inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut builder = server::Builder::new();
                builder.enable_connect_protocol();
                let Ok(mut connection) = builder.handshake(stream).await else {
                    return;
                };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let is_asked = *request.method() == Method::CONNECT
                        && request
                            .extensions()
                            .get::<h2::ext::Protocol>()
                            .is_some_and(|name| name.as_str() == "websocket");
                    assert!(is_asked, "{request:?}");
                    let send = respond.send_response(Response::new(()), false).expect("a stream");
                    tokio::spawn(act_by_stream(request, send, tell.clone()));
                }
            });
        }
    });
    told
}

async fn act_by_stream(request: Request<RecvStream>, mut send: SendStream<Bytes>, tell: Sender<Saw>) {
    let deed = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let mut receive = request.into_body();
    match &*deed {
        "bye" => send.send_data(Bytes::from_static(b"bye"), true).expect("sent"),
        "break" => {
            let _ = receive.data().await;
            return send.send_reset(Reason::CANCEL);
        }
        "stuck" => tokio::time::sleep(STUCK).await,
        _ => {}
    }
    loop {
        match receive.data().await {
            None => {
                if deed == "echo" {
                    send.send_data(Bytes::new(), true).expect("sent");
                }
                let _ = tell.send(Saw::Finished);
                return;
            }
            Some(Ok(bytes)) => {
                receive
                    .flow_control()
                    .release_capacity(bytes.len())
                    .expect("it was received");
                if deed == "echo" && !bytes.is_empty() && send.send_data(bytes, false).is_err() {
                    let _ = tell.send(Saw::Broken);
                    return;
                }
            }
            Some(Err(_)) => {
                let _ = tell.send(Saw::Broken);
                return;
            }
        }
    }
}
