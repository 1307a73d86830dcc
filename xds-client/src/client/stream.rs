//! The life of one stream.

use std::collections::BTreeSet;
use std::time::SystemTime;

use prost::Message;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};
use underpass_certs::{Backoff, IstiodError};
use underpass_config::Text;

use super::Client;
use super::serving::Serving;
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

/// Requests that may wait to be sent. The client has two per response in flight, and one for each type at the start.
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
        let mut asked = self.subscribe(&requests)?;
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
            let until = self.until();
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
                    self.ask_for_endpoints(&mut asked, &requests)?;
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

    /// Asks for everything of each type, and says what of it is there already. Endpoints are asked for by name: those of the clusters that are known. The
    /// names that were.
    fn subscribe(&self, requests: &mpsc::Sender<DeltaDiscoveryRequest>) -> Result<BTreeSet<Text>, StreamEnd> {
        let mut node = Some(self.node.to_wire()); // only the first request of a stream names it
        let mut asked = BTreeSet::new();
        for kind in self.settings.wanted.types() {
            if kind == ResourceType::Endpoints {
                // A request that names none would ask for all.
                asked = self.serving.as_ref().map(Serving::wanted).unwrap_or_default();
                if asked.is_empty() {
                    continue;
                }
            }
            let request = DeltaDiscoveryRequest {
                node: node.take(),
                type_url: kind.url().to_owned(),
                resource_names_subscribe: match kind {
                    ResourceType::Endpoints => asked.iter().map(ToString::to_string).collect(),
                    _ => Vec::new(),
                },
                initial_resource_versions: match &self.serving {
                    Some(serving) if kind.is_of_waypoint() => serving.versions(kind),
                    _ => self.held.versions(kind),
                },
                ..Default::default()
            };
            requests.try_send(request).map_err(|_| StreamEnd::Unread)?;
        }
        Ok(asked)
    }

    /// Asks for the endpoints that clusters have come to name, and no more for those that none does.
    fn ask_for_endpoints(
        &mut self,
        asked: &mut BTreeSet<Text>,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let Some(serving) = &mut self.serving else {
            return Ok(());
        };
        let wanted = serving.wanted();
        if wanted == *asked {
            return Ok(());
        }
        for gone in asked.difference(&wanted) {
            serving.forget(gone);
        }
        let texts = |names: &mut dyn Iterator<Item = &Text>| names.map(ToString::to_string).collect();
        let request = DeltaDiscoveryRequest {
            type_url: ResourceType::Endpoints.url().to_owned(),
            resource_names_subscribe: texts(&mut wanted.difference(asked)),
            resource_names_unsubscribe: texts(&mut asked.difference(&wanted)),
            ..Default::default()
        };
        *asked = wanted;
        requests.try_send(request).map_err(|_| StreamEnd::Unread)
    }

    /// Takes a response, hands on what is complete, and only then answers.
    async fn take(
        &mut self,
        response: &DeltaDiscoveryResponse,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamEnd> {
        let error = self.taken_in(response);
        if !self.hand_on().await {
            return Err(StreamEnd::Unwanted);
        }
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

    /// Takes a response. What of it is not in force as it was sent, in words.
    pub(super) fn taken_in(&mut self, response: &DeltaDiscoveryResponse) -> Option<String> {
        if let Some(recorder) = &self.settings.recorder {
            recorder.note(response);
        }
        match self.take_in(response) {
            Ok(rejections) => in_words(&rejections),
            Err(error) => Some(whole_response(&error)),
        }
    }

    fn take_in(&mut self, response: &DeltaDiscoveryResponse) -> Result<Vec<Rejection>, ResponseError> {
        let kind = ResourceType::of_url(&response.type_url).filter(|kind| kind.is_of_waypoint());
        if let (Some(serving), Some(kind)) = (&mut self.serving, kind) {
            return serving.take(kind, response);
        }
        if !self.settings.wanted.has_mesh() {
            return Err(ResponseError::Type(response.type_url.clone()));
        }
        let (kind, accepted) = self.held.take(response, &self.settings.mesh)?;
        self.assembly.add(kind, accepted.changes, &self.held);
        Ok(accepted.rejections)
    }

    pub(super) fn report(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
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
