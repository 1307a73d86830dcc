//! One try of a request at one endpoint.

use std::error::Error;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderValue, UPGRADE};
use http::{Method, Request, Response, Uri, Version};
use hyper::body::{Body, Incoming};

use super::intake::{Intake, check_framing};
use super::pool::{Lease, NotConnected, Sender, Wanted};
use super::upload::{Attempt, Upload};

/// Why a try has no answer.
#[derive(Debug)]
pub enum Failure {
    /// There is no connection; why, in words.
    NotConnected(String),
    /// The endpoint did not take a connection in time.
    ConnectTimedOut,
    /// The endpoint refused the stream: it has done nothing.
    Refused,
    /// The endpoint reset the stream.
    Reset,
    /// The connection ended, or was none of HTTP.
    Closed,
    /// The endpoint sent what is no response.
    Malformed,
    /// It had its time.
    TimedOut,
    /// The client broke its request off.
    ClientGone,
    /// The request can't be written: a rewrite has made it so.
    Unwritable,
}

/// Sends a request and waits for the head of its response.
///
/// # Errors
/// When none comes.
pub async fn attempt(
    wanted: Wanted<'_>,
    intake: &Intake,
    upload: &Upload,
) -> Result<(Response<Incoming>, Lease), Failure> {
    loop {
        let mut lease = wanted.connection().await.map_err(|error| match error {
            NotConnected::TimedOut => Failure::ConnectTimedOut,
            NotConnected::Failed(error) => Failure::NotConnected(error.to_string()),
        })?;
        let is_reused = lease.is_reused;
        let body = upload.attempt();
        lease.sends(body.sent());
        let sent = match lease.sender() {
            Some(Sender::Http1(sender)) => {
                let request = for_http1(intake, body).ok_or(Failure::Unwritable)?;
                sender.try_send_request(request).await.map_err(unsent)
            }
            Some(Sender::Http2(sender)) => {
                let request = for_http2(intake, body).ok_or(Failure::Unwritable)?;
                sender.try_send_request(request).await.map_err(unsent)
            }
            None => return Err(Failure::Closed),
        };
        match sent {
            Ok(response) if is_ambiguous(&response) => return Err(Failure::Malformed),
            Ok(response) => return Ok((response, lease)),
            // It closed while it waited for work, and nothing was sent: that is no try.
            Err((true, _)) if is_reused => {}
            Err((_, error)) => return Err(classify(&error, upload)),
        }
    }
}

/// Whether someone else could see the end of a response at another place than the codec did.
fn is_ambiguous(response: &Response<Incoming>) -> bool {
    response.version() == Version::HTTP_11 && check_framing(response.headers()).is_err()
}

/// Whether nothing was sent, and what went wrong.
fn unsent<T>(mut error: hyper::client::conn::TrySendError<T>) -> (bool, hyper::Error) {
    let is_unsent = error.take_message().is_some();
    (is_unsent, error.into_error())
}

fn classify(error: &hyper::Error, upload: &Upload) -> Failure {
    if upload.has_broken() {
        return Failure::ClientGone;
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return match error.reason() {
                Some(h2::Reason::REFUSED_STREAM) => Failure::Refused,
                Some(_) if error.is_reset() => Failure::Reset,
                _ => Failure::Closed,
            };
        }
        source = cause.source();
    }
    match error.is_parse() {
        true => Failure::Malformed,
        false => Failure::Closed,
    }
}

fn for_http1(intake: &Intake, body: Attempt) -> Option<Request<Attempt>> {
    let mut request = Request::new(body);
    *request.method_mut() = intake.method.clone();
    *request.uri_mut() = intake.target.parse().ok()?;
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
    if let Some(protocol) = &intake.upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::try_from(protocol.as_str()).ok()?);
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

fn for_http2(intake: &Intake, body: Attempt) -> Option<Request<Attempt>> {
    let mut request = Request::new(body);
    *request.method_mut() = intake.method.clone();
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(intake.authority.as_bytes())
        .path_and_query(intake.target.as_str())
        .build()
        .ok()?;
    *request.headers_mut() = intake.headers.clone();
    Some(request)
}
