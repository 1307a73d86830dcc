//! The life of one stream.

use std::time::SystemTime;

use prost::Message;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use underpass_certs::{Backoff, IstiodError};

use super::Client;
use crate::held::{Rejection, ResponseError};
use crate::proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use crate::resource::ResourceType;
use crate::status::{Connection, Termination, TypeStatus};

/// Why a stream ended.
#[derive(Debug, Error)]
pub(super) enum StreamEnd {
    #[error(transparent)]
    Unreachable(#[from] IstiodError),
    #[error("{}istiod says {:?}: {}", advice(.0.code()), .0.code(), .0.message())]
    Refused(Status),
    #[error("istiod closed the stream")]
    Closed,
    #[error("istiod does not read what it is told")]
    Unread,
    #[error("the updates are no longer wanted")]
    Unwanted,
}

impl StreamEnd {
    pub(super) fn termination(&self) -> Termination {
        match self {
            Self::Unreachable(_) => Termination::ConnectionError,
            Self::Refused(_) | Self::Unread => Termination::Error,
            Self::Closed | Self::Unwanted => Termination::Complete,
        }
    }
}

/// What to look at first.
fn advice(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "check the token file: ",
        Code::PermissionDenied => "check that the token is of the namespace and account that this node says it has: ",
        Code::OutOfRange | Code::ResourceExhausted => "the response may be larger than `largest_response`: ",
        _ => "",
    }
}

/// Requests that may wait to be sent. The client has one per response in flight, and two at the start.
const QUEUED_REQUESTS: usize = 32;

/// Rejected resources that a NACK names; the rest are counted.
const NAMED_REJECTIONS: usize = 10;

impl Client {
    pub(super) async fn serve_one_stream(&mut self, backoff: &mut Backoff) -> StreamEnd {
        match self.stream(backoff).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn stream(&mut self, backoff: &mut Backoff) -> Result<std::convert::Infallible, StreamEnd> {
        let channel = self.istiod.connect().await?;
        let (requests, outgoing) = mpsc::channel(QUEUED_REQUESTS);
        self.subscribe(&requests)?;
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = self.istiod.authorization().await? {
            request.metadata_mut().insert("authorization", token);
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(self.settings.largest_response);
        // istiod answers with the head of its response when it has something to say.
        let response = tokio::select! {
            response = client.delta_aggregated_resources(request) => response.map_err(StreamEnd::Refused)?,
            () = self.updates.closed() => return Err(StreamEnd::Unwanted),
        };
        let mut responses = response.into_inner();
        self.status.change(|status| {
            status.connection = Connection::Connected {
                since: SystemTime::now(),
            };
        });
        loop {
            let until = self.assembly.until();
            let grace_is_over = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                response = responses.message() => {
                    let response = response.map_err(StreamEnd::Refused)?.ok_or(StreamEnd::Closed)?;
                    backoff.reset();
                    self.take(&response, &requests).await?;
                }
                () = grace_is_over => {
                    if !self.hand_on().await {
                        return Err(StreamEnd::Unwanted);
                    }
                }
                () = self.updates.closed() => return Err(StreamEnd::Unwanted),
            }
        }
    }

    /// Asks for everything of each type, and says what of it is there already.
    fn subscribe(&self, requests: &mpsc::Sender<DeltaDiscoveryRequest>) -> Result<(), StreamEnd> {
        let mut node = Some(self.node.to_wire()); // only the first request of a stream names it
        for kind in ResourceType::ALL {
            let request = DeltaDiscoveryRequest {
                node: node.take(),
                type_url: kind.url().to_owned(),
                initial_resource_versions: self.held.versions(kind),
                ..Default::default()
            };
            requests.try_send(request).map_err(|_| StreamEnd::Unread)?;
        }
        Ok(())
    }

    /// Takes a response, hands on what is complete, and only then answers.
    async fn take(
        &mut self,
        response: &DeltaDiscoveryResponse,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let error = match self.held.take(response, &self.settings.mesh) {
            Ok((kind, accepted)) => {
                self.assembly.add(kind, accepted.changes, &self.held);
                if !self.hand_on().await {
                    return Err(StreamEnd::Unwanted);
                }
                in_words(&accepted.rejections)
            }
            Err(error) => Some(whole_response(&error)),
        };
        self.report(response, error.as_deref());
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| discovery::Status {
                code: Code::InvalidArgument as i32,
                message,
            }),
            ..Default::default()
        };
        requests.try_send(answer).map_err(|_| StreamEnd::Unread)
    }

    fn report(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        if let Some(error) = error {
            tracing::warn!(
                type_url = response.type_url,
                error,
                "a response of istiod is not accepted as it is"
            );
        }
        if let Some(kind) = ResourceType::of_url(&response.type_url) {
            self.status.change(|status| {
                let of_type: &mut TypeStatus = status.types.entry(kind).or_default();
                of_type.last_response = Some(SystemTime::now());
                of_type.bytes += response.encoded_len() as u64;
                match error {
                    None => of_type.acks += 1,
                    Some(_) => of_type.nacks += 1,
                }
            });
        }
        self.report_held();
    }
}

fn whole_response(error: &ResponseError) -> String {
    format!("nothing of the response is taken: {error}")
}

fn in_words(rejections: &[Rejection]) -> Option<String> {
    if rejections.is_empty() {
        return None;
    }
    let named: Vec<String> = rejections
        .iter()
        .take(NAMED_REJECTIONS)
        .map(|rejection| format!("resource {}: {}", rejection.name, rejection.reason))
        .collect();
    let mut text = named.join("; ");
    if let Some(more @ 1..) = rejections.len().checked_sub(NAMED_REJECTIONS) {
        text.push_str(&format!("; and {more} more"));
    }
    Some(text)
}
