//! Clients that ask without a pause, over HTTP/1.1 and over HTTP/2, and keep what they were answered.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use underpass_tests::Host;
use underpass_tests::wait::Stop;

/// Clients of each kind, and streams of each HTTP/2 client.
const CLIENTS: usize = 6;
const STREAMS: usize = 4;
/// Requests of one connection before its client opens another.
const REQUESTS: usize = 200;

/// What a request came to.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) path: String,
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    }
}

/// Judges an answer; `before` is what `moment` said before the request was sent.
pub(super) trait Judge: Send + Sync + 'static {
    /// What is to be known of the time before a request.
    fn moment(&self) -> usize;
    /// What is wrong with the answer, if anything.
    fn verdict(&self, before: usize, answer: &Answer) -> Result<(), String>;
}

/// Clients that run until they are told to stop.
pub(super) struct Load {
    runtime: Runtime,
    clients: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    from: Host,
    to: SocketAddr,
    paths: &'static [&'static str],
    judge: Box<dyn Judge>,
    /// What each request has beside.
    field: Option<(&'static str, &'static str)>,
    next: AtomicU64,
    answered: AtomicU64,
    wrong: Mutex<Vec<String>>,
    stop: Stop,
    /// Whether nobody listens any more, which ends a client.
    may_close: bool,
}

/// What a load came to.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Requests that were answered.
    pub(super) answered: u64,
    /// What was wrong with requests.
    pub(super) wrong: Vec<String>,
}

/// Why a connection of a client ends.
enum End {
    /// It is to be followed by another.
    Next,
    /// The proxy takes no more connections.
    Closed,
}

impl Load {
    /// Starts it. Each path is followed by a number of the request. `may_close`: the proxy may come to listen no more.
    pub(super) fn start(
        from: &Host,
        to: SocketAddr,
        paths: &'static [&'static str],
        judge: impl Judge,
        field: Option<(&'static str, &'static str)>,
        may_close: bool,
    ) -> Self {
        let shared = Arc::new(Shared {
            from: from.clone(),
            to,
            paths,
            judge: Box::new(judge),
            field,
            next: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            wrong: Mutex::default(),
            stop: Stop::default(),
            may_close,
        });
        let runtime = Runtime::new().expect("a runtime");
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (one, two) = (shared.clone(), shared.clone());
            clients.spawn_on(
                async move { while let Some(End::Next) = one.http1().await {} },
                runtime.handle(),
            );
            clients.spawn_on(
                async move { while let Some(End::Next) = two.http2().await {} },
                runtime.handle(),
            );
        }
        Self {
            runtime,
            clients,
            shared,
        }
    }

    /// Requests answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// Whether something was wrong with one.
    pub(super) fn has_failed(&self) -> bool {
        !self.shared.wrong.lock().expect("no client panics").is_empty()
    }

    /// Lets each client finish its request.
    pub(super) fn stop(mut self) -> Outcome {
        drop(self.shared.stop.when_dropped());
        self.runtime.block_on(async {
            let all = async { while self.clients.join_next().await.is_some_and(|joined| joined.is_ok()) {} };
            tokio::time::timeout(underpass_tests::wait::soon(), all)
                .await
                .expect("a request is answered before long");
        });
        let wrong = std::mem::take(&mut *self.shared.wrong.lock().expect("no client panics"));
        Outcome {
            answered: self.answered(),
            wrong,
        }
    }
}

impl Shared {
    fn path(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.paths[fastrand::usize(..self.paths.len())];
        format!("{path}{number}")
    }

    fn note(&self, before: usize, answer: Result<Answer, String>) {
        let verdict = answer.and_then(|answer| {
            let told = self.judge.verdict(before, &answer);
            told.map_err(|why| format!("{why}: {answer:?}"))
        });
        self.answered.fetch_add(1, Ordering::SeqCst);
        if let Err(why) = verdict {
            self.wrong.lock().expect("no client panics").push(why);
        }
    }

    fn connect(&self) -> Option<TcpStream> {
        match self.from.connect(self.to) {
            Ok(stream) => {
                stream.set_nonblocking(true).expect("a socket");
                Some(TcpStream::from_std(stream).expect("a socket"))
            }
            Err(error) => {
                if !self.may_close {
                    self.note(0, Err(format!("cannot connect: {error}")));
                }
                None
            }
        }
    }

    /// One connection of HTTP/1.1.
    async fn http1(&self) -> Option<End> {
        let Some(stream) = self.connect() else {
            return Some(End::Closed);
        };
        let mut stream = BufStream::new(stream);
        for _ in 0..REQUESTS {
            if self.stop.is_due() {
                return None;
            }
            let (path, before) = (self.path(), self.judge.moment());
            let answer = self.ask_http1(&mut stream, path).await;
            let ends = answer
                .as_ref()
                .map_or(true, |answer| answer.header("connection") == "close");
            self.note(before, answer);
            if ends {
                break;
            }
        }
        Some(End::Next)
    }

    async fn ask_http1(&self, stream: &mut BufStream<TcpStream>, path: String) -> Result<Answer, String> {
        let field = self
            .field
            .map_or_else(String::new, |(name, value)| format!("{name}: {value}\r\n"));
        let request = format!("GET {path} HTTP/1.1\r\nhost: web.test\r\n{field}\r\n");
        let head = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            read_head(stream).await
        };
        let head = head.await.map_err(|error| format!("{path} over HTTP/1.1: {error}"))?;
        let mut lines = head.lines();
        let status = lines
            .next()
            .and_then(|line| line.split(' ').nth(1)?.parse().ok())
            .unwrap_or(0);
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name = http::HeaderName::try_from(name).map_err(|_| format!("{path}: field {name}"))?;
            headers.append(name, value.parse().map_err(|_| format!("{path}: value {value}"))?);
        }
        let answer = Answer { path, status, headers };
        let length = answer.header("content-length").parse().unwrap_or(0);
        let mut body = vec![0; length];
        let read = tokio::io::AsyncReadExt::read_exact(stream, &mut body).await;
        read.map_err(|error| format!("{answer:?}: its body: {error}"))?;
        Ok(answer)
    }

    /// One connection of HTTP/2.
    async fn http2(self: &Arc<Self>) -> Option<End> {
        let Some(stream) = self.connect() else {
            return Some(End::Closed);
        };
        let (sender, connection) = match h2::client::handshake(stream).await {
            Ok(both) => both,
            Err(error) => {
                self.note(0, Err(format!("no HTTP/2: {error}")));
                return Some(End::Next);
            }
        };
        let driven = tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut streams = JoinSet::new();
        for _ in 0..STREAMS {
            let (shared, sender) = (self.clone(), sender.clone());
            streams.spawn(async move { shared.streams(sender).await });
        }
        drop(sender);
        let mut next = Some(End::Next);
        for stream in streams.join_all().await {
            if stream.is_none() {
                next = None;
            }
        }
        let _ = driven.await;
        next
    }

    /// Requests one after the other.
    async fn streams(&self, sender: SendRequest<Bytes>) -> Option<()> {
        let mut sender = sender;
        for _ in 0..REQUESTS / STREAMS {
            if self.stop.is_due() {
                return None;
            }
            // One that is told to go away before it has sent anything asks elsewhere.
            let Ok(ready) = sender.ready().await else {
                return Some(());
            };
            sender = ready;
            let (path, before) = (self.path(), self.judge.moment());
            match self.ask_http2(&mut sender, path.clone()).await {
                Ok(answer) => self.note(before, Ok(answer)),
                // The proxy has said that it has not looked at it (RFC 9113, section 6.8).
                Err(error) if self.may_close && is_untouched(&error) => return Some(()),
                Err(error) => {
                    self.note(before, Err(format!("{path} over HTTP/2: {error}")));
                    return Some(());
                }
            }
        }
        Some(())
    }

    async fn ask_http2(&self, sender: &mut SendRequest<Bytes>, path: String) -> Result<Answer, h2::Error> {
        let mut request = Request::get(format!("http://web.test{path}"));
        if let Some((name, value)) = self.field {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("a request");
        let (response, _) = sender.send_request(request, true)?;
        let (head, mut body) = response.await?.into_parts();
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        let (status, headers) = (head.status.as_u16(), head.headers);
        Ok(Answer { path, status, headers })
    }
}

fn is_untouched(error: &h2::Error) -> bool {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    refused || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR))
}

async fn read_head(stream: &mut BufStream<TcpStream>) -> io::Result<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await? == 0 {
            let so_far = format!("closed after {head:?}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, so_far));
        }
    }
    Ok(head)
}
