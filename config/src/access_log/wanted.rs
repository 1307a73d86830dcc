//! Which fields of requests some log asks for: nothing else is kept of them.

use http::header::{CONTENT_TYPE, HeaderName, REFERER, USER_AGENT};

use super::{GrpcLog, LogTo, RequestLog};
use crate::http::{Fact, Field};

/// Fields, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WantedFields {
    /// Of the request's head, but for what it begins with.
    pub request: Vec<HeaderName>,
    /// The path, and what follows it, is wanted too.
    pub path: bool,
    /// Whom it is for.
    pub authority: bool,
    /// Of the response's head.
    pub response: Vec<HeaderName>,
    /// Of its trailers.
    pub trailers: Vec<HeaderName>,
    /// What filters have found out is wanted too.
    pub metadata: bool,
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What an entry of a log by gRPC says of every request.
const OF_ENTRIES: [HeaderName; 5] = [
    USER_AGENT,
    REFERER,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-envoy-original-path"),
];

impl WantedFields {
    /// Those of some logs.
    pub fn of<'a>(logs: impl IntoIterator<Item = &'a RequestLog>) -> Self {
        let mut wanted = Self::default();
        for log in logs {
            log.facts(&mut |fact| wanted.add(fact));
            if let LogTo::Grpc(grpc) = &log.to {
                wanted.add_all(grpc);
            }
        }
        wanted.each_once();
        wanted
    }

    /// Names each field once.
    pub(crate) fn each_once(&mut self) {
        for names in [&mut self.request, &mut self.response, &mut self.trailers] {
            names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
            names.dedup();
        }
    }

    /// What an entry of a log by gRPC says of every request, and what it is to say beside.
    fn add_all(&mut self, log: &GrpcLog) {
        (self.path, self.authority) = (true, true);
        self.request.extend(OF_ENTRIES);
        self.request.extend_from_slice(&log.request_headers);
        self.response.extend_from_slice(&log.response_headers);
        self.trailers.extend_from_slice(&log.response_trailers);
    }

    pub(crate) fn add(&mut self, fact: &Fact) {
        match fact {
            Fact::Request(first, second) | Fact::RequestWithoutQuery(first, second) => {
                for field in std::iter::once(first).chain(second) {
                    match field {
                        Field::Header(name) => self.request.push(name.clone()),
                        Field::Path => self.path = true,
                        Field::Authority => self.authority = true,
                        Field::Method | Field::Scheme => {}
                    }
                }
            }
            Fact::Response(first, second) => {
                self.response.extend([first].into_iter().chain(second).cloned());
            }
            Fact::Trailer(first, second) => {
                self.trailers.extend([first].into_iter().chain(second).cloned());
            }
            Fact::GrpcStatus(_) | Fact::AsGrpcStatus => {
                self.request.push(CONTENT_TYPE);
                self.response.push(GRPC_STATUS);
                self.trailers.push(GRPC_STATUS);
            }
            Fact::Metadata(_) => self.metadata = true,
            _ => {}
        }
    }
}
