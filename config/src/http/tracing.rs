//! Spans of requests: which requests have one, what it says, and who is told (`HttpConnectionManager.Tracing`, `config.trace.v3.OpenTelemetryConfig`).
//!
//! As with access logs, all that can be read is read when the configuration changes, and of a request nothing is kept that no tag asks for
//! ([`WantedFields`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderName;
use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};

use super::{Facts, Format};
use crate::export::Export;
use crate::{Text, WantedFields};

/// How the requests of a table are traced.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// Who is told.
    pub provider: Arc<TracingProvider>,
    /// Which of them.
    pub sampling: Sampling,
    /// On which side of a call the proxy stands.
    pub direction: SpanDirection,
    /// Whether each try has a span of its own below the request's (`spawn_upstream_span`). Default no.
    pub has_try_spans: bool,
    /// Of the path so many bytes are told (`max_path_tag_length`). Default 256.
    pub max_path_tag_length: usize,
    tags: Vec<SpanTag>,
    wanted: WantedFields,
}

/// Who is told of spans, and by what headers others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingProvider {
    /// Its name.
    pub name: Text,
    /// How it is told.
    pub export: Export,
    /// What the spans are of: `service.name`, and what was found out about the process (`resource_detectors`). Each name once.
    pub resource: Vec<(Text, Text)>,
    /// In which words traces come and go on. What comes in the first of them that a request has; all of them go on.
    pub propagation: Vec<Propagation>,
}

/// The words in which a trace goes from hop to hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// `traceparent` and `tracestate` (W3C Trace Context).
    W3c,
    /// `b3` (Zipkin's single header).
    B3,
    /// `x-b3-traceid`, `x-b3-spanid`, `x-b3-sampled`.
    B3Multi,
}

/// Which requests are traced that belong to no trace yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Of a hundred that ask for it by `x-client-trace-id`. Default all.
    pub client: u32,
    /// Of ten thousand others. Default all.
    pub random: u32,
    /// Of a hundred that would be. Default all.
    pub overall: u32,
    /// Whether `x-request-id` decides, and says what was decided (`use_request_id_for_trace_sampling`). If not, all are traced. Default yes.
    pub by_request_id: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            client: 100,
            random: Self::RANDOM_ALL,
            overall: 100,
            by_request_id: true,
        }
    }
}

impl Sampling {
    /// All of [`Sampling::random`].
    pub const RANDOM_ALL: u32 = 10_000;

    /// So many percent of `all`; none, if it is no percentage. Parts of one are not counted, as in Envoy: none is more than what was asked for.
    pub fn part(percent: f64, all: u32) -> Option<u32> {
        let is_one = (0.0..=100.0).contains(&percent);
        is_one.then(|| (percent * f64::from(all) / 100.0) as u32)
    }
}

/// Where the environment says what a process is (the OpenTelemetry specification).
const RESOURCE_VARIABLE: &str = "OTEL_RESOURCE_ATTRIBUTES";

impl TracingProvider {
    /// What a service is called that nobody has given a name.
    pub const UNKNOWN_SERVICE: &str = "unknown_service:underpass";

    /// What spans are of. What is said later takes the place of what was said before: the service's name; with `detects`, what the environment says of the process; what is
    /// `said` besides.
    pub fn resource(service: &str, detects: bool, said: impl Iterator<Item = (Text, Text)>) -> Vec<(Text, Text)> {
        let service = Some(service).filter(|name| !name.is_empty());
        let mut resource = BTreeMap::new();
        resource.insert("service.name".into(), service.unwrap_or(Self::UNKNOWN_SERVICE).into());
        if detects {
            let found = std::env::var(RESOURCE_VARIABLE).unwrap_or_default();
            resource.extend(attributes(&found).map(|(name, value)| (name.into(), value.into())));
        }
        resource.extend(said);
        resource.into_iter().collect()
    }
}

/// `a=b,c=d`: pairs that are none are left out, as Envoy does it.
fn attributes(said: &str) -> impl Iterator<Item = (&str, &str)> {
    said.split(',').filter_map(|pair| {
        let mut parts = pair.split('=').filter(|part| !part.is_empty());
        let (name, value) = (parts.next()?, parts.next()?);
        parts.next().is_none().then_some((name, value))
    })
}

/// On which side of a call a proxy stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpanDirection {
    /// The server's.
    #[default]
    Ingress,
    /// The client's.
    Egress,
}

/// What a route's requests are called in their spans (`config.route.v3.Decorator`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decorator {
    /// The name.
    pub operation: Text,
    /// Whether the other side is told of it (`x-envoy-decorator-operation`).
    pub propagates: bool,
}

/// A tag that spans have besides what all have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanTag {
    /// Its name; it takes the place of another of this name.
    pub name: Text,
    /// Its value; one that is empty is none.
    pub value: TagValue,
}

/// Where the value of a tag comes from (`type.tracing.v3.CustomTag`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagValue {
    /// It is always the same. (What comes from the environment is, too: [`TagValue::environment`].)
    Fixed(Text),
    /// A field of the request, or else a default.
    Header(HeaderName, Text),
    /// What operators say.
    Told(Format),
    /// What a filter has found out.
    Metadata(MetadataTag),
}

/// What a filter has found out of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataTag {
    /// By which filter (`metadata_key.key`).
    pub filter: Text,
    /// Where in what it has found.
    pub path: Vec<Text>,
    /// What is told where there is nothing; empty: nothing.
    pub default: Text,
}

/// What spans tell of each request.
const OF_REQUESTS: [HeaderName; 9] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-client-trace-id"),
    HeaderName::from_static("x-envoy-downstream-service-cluster"),
    HeaderName::from_static("x-envoy-original-path"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("content-length"),
    USER_AGENT,
    CONTENT_TYPE,
];
/// And of responses.
const OF_RESPONSES: [HeaderName; 2] = [
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
];

impl Tracing {
    /// Default of [`Tracing::max_path_tag_length`], Envoy's.
    pub const MAX_PATH_TAG_LENGTH: usize = 256;

    /// Of all requests, to `provider`, with these tags besides what all spans have.
    pub fn new(provider: Arc<TracingProvider>, tags: Vec<SpanTag>) -> Self {
        let mut wanted = WantedFields {
            request: OF_REQUESTS.to_vec(),
            path: true,
            authority: true,
            response: OF_RESPONSES.to_vec(),
            trailers: OF_RESPONSES.to_vec(),
            metadata: false,
        };
        for tag in &tags {
            match &tag.value {
                TagValue::Header(name, _) => wanted.request.push(name.clone()),
                TagValue::Told(format) => format.facts().for_each(|fact| wanted.add(fact)),
                TagValue::Fixed(_) | TagValue::Metadata(_) => {}
            }
        }
        wanted.each_once();
        Self {
            provider,
            sampling: Sampling::default(),
            direction: SpanDirection::default(),
            has_try_spans: false,
            max_path_tag_length: Self::MAX_PATH_TAG_LENGTH,
            tags,
            wanted,
        }
    }

    /// Tags besides what all spans have.
    pub fn tags(&self) -> &[SpanTag] {
        &self.tags
    }

    /// What of requests is to be kept for their spans.
    pub fn wanted(&self) -> &WantedFields {
        &self.wanted
    }
}

impl TagValue {
    /// What the environment has under a name, or else a default.
    pub fn environment(name: &str, default: &str) -> Self {
        Self::Fixed(std::env::var(name).map_or_else(|_| default.into(), Text::from))
    }

    /// What it is for one request; nothing, if that is empty. `header`: the first value of a field of the request; `metadata`: what a filter has
    /// found out.
    pub fn written(
        &self,
        facts: &dyn Facts,
        header: impl Fn(&HeaderName) -> Option<String>,
        metadata: impl Fn(&MetadataTag) -> Option<String>,
    ) -> Option<String> {
        let value = match self {
            Self::Fixed(text) => text.to_string(),
            Self::Header(name, default) => header(name).unwrap_or_else(|| default.to_string()),
            Self::Told(format) => String::from_utf8_lossy(&format.written(&HeaderMap::new(), facts)).into_owned(),
            Self::Metadata(tag) => metadata(tag).unwrap_or_else(|| tag.default.to_string()),
        };
        (!value.is_empty()).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_environment_says_is_read_as_envoy_reads_it() {
        let said = "a=b, c = d ,bad,x=1=2,e==f,,=g";
        assert_eq!(
            attributes(said).collect::<Vec<_>>(),
            [("a", "b"), (" c ", " d "), ("e", "f")]
        );
        assert_eq!(attributes("").count(), 0);
    }
}
