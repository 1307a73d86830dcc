//! One try, at one endpoint, of a request that asks to speak something else.

use http::header::SEC_WEBSOCKET_KEY;
use http::{Method, Request, Response, Uri, Version};
use underpass_config::http::ConnectMode;

use super::arriving::Arriving;
use super::attempt::{self, Answer, Failure, in_time, send_by_http1};
use super::intake::Intake;
use super::pool::alone::{self, Silent};
use super::pool::dial::open_http1;
use super::pool::{Speaks, Wanted};
use super::switch::Switch;
use super::tunnel::End;
use super::upload::Upload;

/// Asks an endpoint.
///
/// # Errors
/// When there is no answer.
pub async fn attempt(
    wanted: Wanted<'_>,
    intake: &Intake,
    upload: &Upload,
    switch: &Switch,
    connect: Option<ConnectMode>,
) -> Result<Answer, Failure> {
    if (switch, connect) == (&Switch::Connect, Some(ConnectMode::Tcp)) {
        let (_, stream) = wanted.stream().await?;
        return Ok(Answer {
            response: Response::new(Arriving::Nothing),
            lease: wanted.alone(None, wanted.admit()?),
            switched: Some(End::connection(stream)),
            stream_until: wanted.stream_until(),
        });
    }
    if wanted.speaks == Speaks::Http1 {
        return switched(switch, attempt::attempt(wanted, intake, upload).await?).await;
    }
    let (dial, stream) = wanted.stream().await?;
    let stream_until = wanted.stream_until();
    if dial.is_http2(&stream) {
        let limit = wanted.cluster.settings.connect_timeout;
        let request = by_http2(intake, switch).ok_or(Failure::Unwritable)?;
        let answer = in_time(stream_until, by_stream(&wanted, stream, request, limit)).await??;
        return Ok(Answer { stream_until, ..answer });
    }
    let request = wanted.admit()?;
    let mut lease = wanted.alone_by_http1(open_http1(stream).await?, request);
    let response = in_time(stream_until, send_by_http1(&mut lease, intake, upload)).await??;
    switched(switch, Answer::new(response, lease, stream_until)).await
}

async fn by_stream(
    wanted: &Wanted<'_>,
    stream: super::pool::stream::Stream,
    request: Request<()>,
    settling: std::time::Duration,
) -> Result<Answer, Failure> {
    let silent = |error: Silent| match error {
        Silent::NotExtended => Failure::NotSpoken(error.to_string().into()),
        Silent::Broke(error) => attempt::of_stream(&error),
    };
    let admitted = wanted.admit()?;
    let reply = alone::connect(stream, request, settling).await.map_err(silent)?;
    let (head, receive) = reply.response.into_parts();
    let lease = wanted.alone(Some(reply.below), admitted);
    if !head.status.is_success() {
        let body = Arriving::of_stream(&head.headers, receive);
        return Ok(Answer::new(Response::from_parts(head, body), lease, None));
    }
    Ok(Answer {
        response: Response::from_parts(head, Arriving::Nothing),
        lease,
        switched: Some(End::stream(reply.send, receive)),
        stream_until: None,
    })
}

/// Takes the connection of an endpoint that has agreed out of its codec.
async fn switched(switch: &Switch, answer: Answer) -> Result<Answer, Failure> {
    if !switch.is_agreed(answer.response.version(), answer.response.status()) {
        return Ok(answer);
    }
    let mut response = answer.response;
    let upgraded = hyper::upgrade::on(&mut response).await.map_err(|_| Failure::Closed)?;
    Ok(Answer {
        switched: Some(End::of_endpoint(upgraded).map_err(|_| Failure::Closed)?),
        response: response.map(|_| Arriving::Nothing),
        ..answer
    })
}

fn by_http2(intake: &Intake, switch: &Switch) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = intake.headers.clone();
    let uri = Uri::builder().authority(intake.authority.as_bytes());
    *request.uri_mut() = match switch {
        Switch::Connect => uri.build().ok()?,
        Switch::Upgrade(protocol) => {
            request
                .extensions_mut()
                .insert(h2::ext::Protocol::from(protocol.as_str()));
            request.headers_mut().remove(SEC_WEBSOCKET_KEY);
            uri.scheme("http").path_and_query(intake.target.as_str()).build().ok()?
        }
    };
    Some(request)
}
