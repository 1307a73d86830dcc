//! One try of a request at one endpoint.

use std::pin::pin;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Body;
use tokio::time::Instant;
use underpass_config::Text;

use super::arriving::{Arriving, is_our_limit};
use super::intake::{Intake, check_framing};
use super::pool::http1;
use super::pool::http2::{self, ask};
use super::pool::{Age, Lease, NotConnected, Sender, Speaks, Wanted};
use super::switch::Switch;
use super::tunnel::End;
use super::upload::{Attempt, Upload};

/// Why a try has no answer.
#[derive(Debug)]
pub enum Failure {
    /// There is no connection; why, in words.
    NotConnected(Arc<str>),
    /// The endpoint is not who it has to be, or does not speak TLS with us; why, in words.
    Untrusted(Arc<str>),
    /// The endpoint did not take a connection in time.
    ConnectTimedOut,
    /// The endpoint refused the stream: it has done nothing.
    Refused,
    /// The endpoint reset the stream.
    Reset,
    /// The connection ended, or was none of HTTP.
    Closed,
    /// The proxy has ended the connection, which others have left unread.
    Limited,
    /// The endpoint sent what is no response.
    Malformed,
    /// The endpoint does not take what the request asks to speak; why, in words.
    NotSpoken(Arc<str>),
    /// A limit of the cluster is reached.
    Overflow,
    /// It had its time.
    TimedOut,
    /// Nothing of it moved for too long.
    Idle,
    /// Its stream lasted longer than one to the cluster may.
    Lasted,
    /// The client broke its request off.
    ClientGone,
    /// The request can't be written: a rewrite has made it so.
    Unwritable,
}

impl Failure {
    /// Why there is no connection, if that is it.
    pub fn of_transport(&self) -> Option<Text> {
        match self {
            // What the kernel says, Envoy says like that.
            Self::NotConnected(why) => Some(match why.split_once(" (os error ") {
                Some((words, _)) => format!("delayed connect error: {words}").into(),
                None => why.as_ref().into(),
            }),
            Self::Untrusted(why) => Some(format!("TLS_error: {why}").into()),
            _ => None,
        }
    }
}

impl Failure {
    /// Whether there was no connection.
    pub fn is_unconnected(&self) -> bool {
        matches!(
            self,
            Self::NotConnected(_) | Self::Untrusted(_) | Self::ConnectTimedOut | Self::Overflow
        )
    }

    /// What a span of the try says of it, in Envoy's words (`resetReasonToString`); nothing, if the proxy has given it up.
    pub fn reset_reason(&self) -> Option<&'static str> {
        match self {
            Self::NotConnected(_) | Self::Untrusted(_) => Some("remote connection failure"),
            Self::ConnectTimedOut => Some("connection timeout"),
            Self::Refused => Some("remote refused stream reset"),
            Self::Reset => Some("remote reset"),
            Self::Closed | Self::Limited => Some("connection termination"),
            Self::Malformed => Some("protocol error"),
            Self::Overflow => Some("overflow"),
            Self::NotSpoken(_) | Self::TimedOut | Self::Idle | Self::Lasted | Self::ClientGone | Self::Unwritable => {
                None
            }
        }
    }
}

/// What an endpoint has answered.
pub struct Answer {
    /// The head, and the body.
    pub response: Response<Arriving>,
    /// The connection that it comes by.
    pub lease: Lease,
    /// The endpoint's end of a tunnel, if it has agreed to one.
    pub switched: Option<End>,
    /// When it has to have come to its end, by what the cluster says.
    pub stream_until: Option<Instant>,
}

impl Answer {
    /// An answer as any, which has to end by `stream_until`.
    pub fn new(response: Response<Arriving>, lease: Lease, stream_until: Option<Instant>) -> Self {
        Self {
            response,
            lease,
            switched: None,
            stream_until,
        }
    }
}

/// Connections that one try may find closed under its hands; then it is sent by one that is made for it.
const STALE: usize = 3;

/// Sends a request and waits for the head of its response. A connection that its endpoint has closed while it waited for work is no try: another is
/// taken, if nothing was sent by it, or if what was sent seems not to have come to the endpoint, whose kernel has acknowledged none of it, and is there to
/// be sent again. An acknowledgement may be late or lost, so that is for requests only that may be served twice (RFC 9110, section 9.2.2).
///
/// # Errors
/// When none comes.
pub async fn attempt(mut wanted: Wanted<'_>, intake: &Intake, upload: &Upload) -> Result<Answer, Failure> {
    let mut stale = 0;
    loop {
        // One that was closed is a sign for those that waited beside it; where many requests share one, those are few.
        let age = match stale {
            0 => Age::Any,
            _ if stale < STALE && wanted.speaks == Speaks::Http2 => Age::Any,
            _ => Age::New,
        };
        let mut lease = pin!(wanted.connection(age)).await?;
        let stream_until = wanted.stream_until();
        upload.goes_by(lease.local_address());
        let body = upload.attempt();
        lease.sends(body.sent());
        if !body.is_end_stream() {
            lease.moves(upload.activity());
        }
        let sending = async {
            match lease.sender() {
                Some(Sender::Http1(sender)) => Some(by_http1(sender, intake, body).await),
                Some(Sender::Http2(sender)) => Some(by_http2(sender, &mut lease, intake, body).await),
                None => None,
            }
        };
        let sent = in_time(stream_until, pin!(sending)).await?.ok_or(Failure::Closed)?;
        let Unanswered { is_unsent, error } = match sent {
            Ok(response) if is_ambiguous(&response) => return Err(Failure::Malformed),
            Ok(response) => return Ok(Answer::new(response, lease, stream_until)),
            Err(failed) => failed,
        };
        let failure = classify(&error, upload);
        let was_no_try = match is_unsent {
            // One may go as soon as it is there.
            true => lease.is_reused || is_unseen(&error),
            // An endpoint that goes says which streams it has not looked at (RFC 9113, section 6.8): those may be sent again, whatever they ask for.
            false if is_unseen(&error) => upload.stop_for_another(),
            // So may those that it refuses (section 8.7), as it does before it has said how many it takes: once, by a connection that is
            // made for it.
            false if is_refused(&error) && stale < STALE => {
                stale = STALE - 1;
                upload.stop_for_another()
            }
            false => {
                matches!(failure, Failure::Closed)
                    && intake.method.is_idempotent()
                    && lease.was_stale()
                    && upload.stop_for_another()
            }
        };
        if !was_no_try || stale == STALE {
            return Err(failure);
        }
        stale += 1;
    }
}

/// What comes of `sending`, if it comes by `stream_until`.
pub async fn in_time<T>(stream_until: Option<Instant>, sending: impl Future<Output = T>) -> Result<T, Failure> {
    match stream_until {
        None => Ok(sending.await),
        Some(until) => (tokio::time::timeout_at(until, sending).await).map_err(|_| Failure::Lasted),
    }
}

impl From<NotConnected> for Failure {
    fn from(error: NotConnected) -> Self {
        match error {
            NotConnected::TimedOut => Self::ConnectTimedOut,
            NotConnected::Overflow => Self::Overflow,
            NotConnected::Failed(why) => Self::NotConnected(why),
            NotConnected::Untrusted(why) => Self::Untrusted(why),
        }
    }
}

/// Sends a request by a connection of HTTP/1.1 that nobody has used before.
///
/// # Errors
/// When it is not answered.
pub async fn send_by_http1(lease: &mut Lease, intake: &Intake, upload: &Upload) -> Result<Response<Arriving>, Failure> {
    let Some(Sender::Http1(sender)) = lease.sender() else {
        return Err(Failure::Closed);
    };
    match by_http1(sender, intake, upload.attempt()).await {
        Ok(response) if is_ambiguous(&response) => Err(Failure::Malformed),
        Ok(response) => Ok(response),
        Err(failed) => Err(classify(&failed.error, upload)),
    }
}

/// A request that has no answer.
struct Unanswered {
    /// Whether nothing was sent.
    is_unsent: bool,
    error: SendError,
}

enum SendError {
    Http1(hyper::Error),
    Http2(h2::Error),
    /// It can't be written.
    Unwritable,
}

const UNWRITABLE: Unanswered = Unanswered {
    is_unsent: false,
    error: SendError::Unwritable,
};

async fn by_http1(
    sender: &mut http1::Sender,
    intake: &Intake,
    body: Attempt,
) -> Result<Response<Arriving>, Unanswered> {
    let request = for_http1(intake, body).ok_or(UNWRITABLE)?;
    match sender.try_send_request(request).await {
        Ok(response) => Ok(response.map(Arriving::Read)),
        Err(mut failed) => Err(Unanswered {
            is_unsent: failed.take_message().is_some(),
            error: SendError::Http1(failed.into_error()),
        }),
    }
}

async fn by_http2(
    sender: http2::Sender,
    lease: &mut Lease,
    intake: &Intake,
    body: Attempt,
) -> Result<Response<Arriving>, Unanswered> {
    let request = for_http2(intake, &body).ok_or(UNWRITABLE)?;
    match ask(sender, request, body).await {
        Ok((response, uploading)) => {
            lease.uploads(uploading);
            let (head, stream) = response.into_parts();
            let body = Arriving::of_stream(&head.headers, stream);
            let body = match intake.method == Method::HEAD || has_no_content(head.status) {
                true => body.without_content(),
                false => body,
            };
            Ok(Response::from_parts(head, body))
        }
        Err(failed) => Err(Unanswered {
            is_unsent: failed.is_unsent,
            error: SendError::Http2(failed.error),
        }),
    }
}

/// Whether an answer of this status never has any (RFC 9110, sections 15.3.5 and 15.4.5).
fn has_no_content(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// Whether someone else could see the end of a response at another place than the codec did.
fn is_ambiguous<B>(response: &Response<B>) -> bool {
    response.version() == Version::HTTP_11 && check_framing(response.headers()).is_err()
}

/// Whether the endpoint has said GOAWAY, and that it has not looked at this stream.
fn is_unseen(error: &SendError) -> bool {
    matches!(error, SendError::Http2(error) if error.is_go_away() && error.is_remote())
}

/// Whether the endpoint has refused this stream, before it has done anything with it.
fn is_refused(error: &SendError) -> bool {
    matches!(error, SendError::Http2(error) if error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn classify(error: &SendError, upload: &Upload) -> Failure {
    if matches!(error, SendError::Unwritable) {
        return Failure::Unwritable;
    }
    if upload.has_broken() {
        return Failure::ClientGone;
    }
    if is_unseen(error) {
        return Failure::Refused;
    }
    match error {
        SendError::Http2(error) => of_stream(error),
        SendError::Http1(error) if error.is_parse() => Failure::Malformed,
        SendError::Http1(_) | SendError::Unwritable => Failure::Closed,
    }
}

/// What has become of a stream of HTTP/2.
pub fn of_stream(error: &h2::Error) -> Failure {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => Failure::Refused,
        Some(_) if error.is_reset() => Failure::Reset,
        Some(_) if is_our_limit(error) => Failure::Limited,
        _ => Failure::Closed,
    }
}

/// The request as it goes on by HTTP/1.1; none if a rewrite has made it one that can't be written.
pub fn for_http1(intake: &Intake, body: Attempt) -> Option<Request<Attempt>> {
    let mut request = Request::new(body);
    *request.method_mut() = intake.method.clone();
    *request.uri_mut() = match intake.switch {
        Some(Switch::Connect) => Uri::builder().authority(intake.authority.as_bytes()).build().ok()?,
        Some(Switch::Upgrade(_)) | None => intake.target.parse().ok()?,
    };
    let headers = request.headers_mut();
    headers.insert(HOST, intake.authority.clone());
    for (name, value) in &intake.headers {
        headers.append(name, value.clone());
    }
    let is_empty = request.body().is_end_stream();
    let headers = request.headers_mut();
    if is_empty && expects_body(&intake.method) && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    if let Some(switch) = &intake.switch {
        switch.ask_by_http1(headers)?;
    }
    Some(request)
}

/// Whether a request of this method that has no body says so (RFC 9110, section 8.6; the list is Envoy's).
fn expects_body(method: &Method) -> bool {
    ![
        Method::GET,
        Method::HEAD,
        Method::DELETE,
        Method::TRACE,
        Method::CONNECT,
    ]
    .contains(method)
}

/// The same by HTTP/2.
pub fn for_http2(intake: &Intake, body: &Attempt) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = intake.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(intake.authority.as_bytes())
        .path_and_query(intake.target.as_str())
        .build()
        .ok()?;
    *request.headers_mut() = intake.headers.clone();
    if let Some(length) = body.size_hint().exact()
        && (length > 0 || expects_body(&intake.method))
    {
        let headers = request.headers_mut();
        headers
            .entry(CONTENT_LENGTH)
            .or_insert_with(|| HeaderValue::from(length));
    }
    Some(request)
}
