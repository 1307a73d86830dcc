//! An endpoint that tells, in the fields of its responses, what it knows of the connection that a request came by.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::{Request, Response};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;
use underpass_tests::Host;

/// What an endpoint is like.
#[derive(Clone, Default)]
pub(crate) struct Teller {
    /// TLS, as its server.
    pub(crate) tls: Option<Arc<ServerConfig>>,
    /// Whether a header of the PROXY protocol comes first.
    pub(crate) is_told: bool,
    /// Whether it speaks HTTP/2 where TLS does not say.
    pub(crate) is_http2: bool,
    /// Streams that it allows on one HTTP/2 connection at once.
    pub(crate) streams: Option<u32>,
    /// Whether it reads what comes on a connection that it has accepted, and says nothing.
    pub(crate) is_mute: bool,
    /// The requests that it has.
    pub(crate) busy: Busy,
}

/// Requests that are being answered, and the most that were.
#[derive(Clone, Default)]
pub(crate) struct Busy {
    now: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
}

impl Busy {
    /// Notes one, for as long as it lasts until `pause` is over.
    async fn during(&self, pause: Duration) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(pause).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One that runs, until it is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicU32>,
    open: Arc<AtomicU32>,
    busy: Busy,
    _runtime: Runtime,
}

impl Running {
    /// Connections that it has accepted.
    pub(crate) fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }

    /// The most requests that it has had at once. (Of connections it may see a new one before the end of an old one that came first.)
    pub(crate) fn most(&self) -> u32 {
        self.busy.most.load(Ordering::SeqCst)
    }

    /// Connections that it has.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }
}

impl Teller {
    /// Starts it.
    pub(crate) fn start(self, host: &Host, port: u16) -> Running {
        let runtime = Runtime::new().expect("a runtime");
        let listener = host.listen(port);
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("a socket");
        let (accepted, open) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (counted, now) = (accepted.clone(), open.clone());
        let busy = self.busy.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a socket");
            while let Ok((stream, _)) = listener.accept().await {
                let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                let (teller, now) = (self.clone(), now.clone());
                now.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let _ = teller.serve(stream, number).await;
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Running {
            address,
            accepted,
            open,
            busy,
            _runtime: runtime,
        }
    }

    async fn serve(&self, mut stream: TcpStream, number: u32) -> io::Result<()> {
        let server = stream.local_addr()?.ip();
        let socket = stream.as_fd().try_clone_to_owned()?;
        let mut told = vec![("x-connection", number.to_string()), ("x-server", server.to_string())];
        if self.is_mute {
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
            return Ok(());
        }
        if self.is_told {
            told.push(("x-proxy", read_proxy_header(&mut stream).await?));
        }
        let Some(tls) = &self.tls else {
            return match self.is_http2 {
                true => self.http2(stream, told).await,
                false => http1(stream, told, &socket, &self.busy).await,
            };
        };
        let stream = TlsAcceptor::from(tls.clone()).accept(stream).await?;
        let session = stream.get_ref().1;
        let alpn = session.alpn_protocol().unwrap_or_default();
        let is_http2 = alpn == b"h2";
        told.push(("x-sni", session.server_name().unwrap_or("-").to_owned()));
        told.push(("x-alpn", String::from_utf8_lossy(alpn).into_owned()));
        told.push(("x-tls", format!("{:?}", session.protocol_version())));
        let shown = session.peer_certificates().unwrap_or_default();
        told.push(("x-certificates", shown.len().to_string()));
        if let Some(certificate) = shown.first() {
            // Enough to tell one from another.
            let sum = certificate
                .iter()
                .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
            told.push(("x-certificate", sum.to_string()));
        }
        match is_http2 {
            true => self.http2(stream, told).await,
            false => http1(stream, told, &socket, &self.busy).await,
        }
    }

    async fn http2<IO>(&self, io: IO, told: Vec<(&'static str, String)>) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::server::Builder::new();
        if let Some(streams) = self.streams {
            builder.max_concurrent_streams(streams);
        }
        let mut connection = builder
            .handshake::<_, bytes::Bytes>(io)
            .await
            .map_err(io::Error::other)?;
        while let Some(accepted) = connection.accept().await {
            let (request, mut respond) = accepted.map_err(io::Error::other)?;
            let (told, busy) = (told.clone(), self.busy.clone());
            tokio::spawn(async move {
                busy.during(pause(&request)).await;
                let mut response = Response::builder().header("x-path", request.uri().path());
                for (name, value) in &told {
                    response = response.header(*name, value);
                }
                let response = response.body(()).map_err(io::Error::other)?;
                respond
                    .send_response(response, true)
                    .map(drop)
                    .map_err(io::Error::other)
            });
        }
        Ok(())
    }
}

/// How long a request asks to be left unanswered.
fn pause<B>(request: &Request<B>) -> Duration {
    let asked = request
        .headers()
        .get("x-pause-ms")
        .and_then(|value| value.to_str().ok());
    Duration::from_millis(asked.and_then(|value| value.parse().ok()).unwrap_or(0))
}

/// Requests have no bodies. `x-do: quit` has the connection closed behind the answer, `x-do: quit-next` has it closed when the next request
/// has come, which is left unanswered, `x-do: reset-next` the same with a reset; `x-do: vanish` has the socket go without a word to the peer, which takes root.
async fn http1<IO>(io: IO, told: Vec<(&'static str, String)>, socket: &OwnedFd, busy: &Busy) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufStream::new(io);
    let (mut quits_next, mut resets_next) = (false, false);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        if resets_next {
            let at_once = libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(socket, sockopt::Linger, &at_once)?;
        }
        if quits_next || resets_next {
            return Ok(());
        }
        let field = |name: &str| {
            let found = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
            found.unwrap_or_default().to_owned()
        };
        let pause = field("x-pause-ms").parse().unwrap_or(0);
        busy.during(Duration::from_millis(pause)).await;
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nx-path: {}\r\n",
            head.split(' ').nth(1).unwrap_or("-")
        );
        for (name, value) in &told {
            answer += &format!("{name}: {value}\r\n");
        }
        answer += "content-length: 0\r\n\r\n";
        stream.write_all(answer.as_bytes()).await?;
        stream.flush().await?;
        let does = field("x-do");
        if does == "quit" {
            return Ok(());
        }
        if does == "vanish" {
            setsockopt(socket, sockopt::TcpRepair, &1)?;
            return Ok(());
        }
        (quits_next, resets_next) = (does == "quit-next", does == "reset-next");
    }
}

/// A header of the PROXY protocol, in the words of version 1.
async fn read_proxy_header(stream: &mut TcpStream) -> io::Result<String> {
    let mut first = [0; 12];
    stream.read_exact(&mut first).await?;
    if first != *b"\r\n\r\n\0\r\nQUIT\n" {
        let mut line = first.to_vec();
        while !line.ends_with(b"\r\n") {
            line.push(stream.read_u8().await?);
        }
        return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    let (kind, family, length) = (
        stream.read_u8().await?,
        stream.read_u8().await?,
        stream.read_u16().await?,
    );
    let mut rest = vec![0; usize::from(length)];
    stream.read_exact(&mut rest).await?;
    if (kind, family) != (0x21, 0x11) || rest.len() < 12 {
        return Err(io::Error::other("a header of another kind"));
    }
    let ip = |at: usize| format!("{}.{}.{}.{}", rest[at], rest[at + 1], rest[at + 2], rest[at + 3]);
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    Ok(format!("V2 TCP4 {} {} {} {}", ip(0), ip(4), port(8), port(10)))
}
