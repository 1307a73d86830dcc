//! Spans: what a collector is told of a request, and what the next hop is told of its trace (Envoy's OpenTelemetry tracer).
//!
//! **One idea.** Whether a request is traced is decided once, when it comes ([`sampling`]), and it is a span between from then on: what it came with is its
//! parent, and what it goes on with names it ([`propagation`]). Only of one that is to be told of is anything kept; what that says is made when it is over
//! ([`told`]).
//!
//! As in Envoy, a trace that can't be understood is left as it is, and the request has no span.

mod propagation;
mod sampling;
mod told;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use underpass_config::Text;
use underpass_config::http::{Route, SpanDirection, Tracing};

use super::attempt::Failure;
use super::filters::Findings;
use super::flags::Flags;
use super::intake::Intake;
use super::logged::Kept;
use super::record::Record;
use crate::export::Exporter;
use crate::node::Node;
use propagation::{Came, Context};

const X_ENVOY_DECORATOR_OPERATION: HeaderName = HeaderName::from_static("x-envoy-decorator-operation");

/// A request of a table that is traced.
#[derive(Debug)]
pub struct Traced {
    tracing: Arc<Tracing>,
    /// The name of its route's operation, which the response tells the client's side.
    answered_operation: Option<HeaderValue>,
    /// None: it came with a trace that can't be understood.
    span: Option<Span>,
}

/// A span that has begun.
#[derive(Debug)]
struct Span {
    context: Context,
    /// What it is below, if it came with a trace.
    parent: Option<[u8; 8]>,
    /// None: nobody is told of it.
    reported: Option<Box<Reported>>,
}

/// What is kept of a span that is told of.
#[derive(Debug)]
struct Reported {
    exporter: Arc<Exporter>,
    name: Name,
    kept: Kept,
    /// What shadow rules have said, by the names under which that is told.
    shadow: Vec<(Text, Text)>,
    tries: Vec<Try>,
}

/// What a span is called.
#[derive(Debug)]
enum Name {
    /// As its route's operation.
    Operation(Text),
    /// As the other side calls it.
    Said(HeaderValue),
    /// For want of that.
    Direction,
}

/// A span of one try.
#[derive(Debug)]
struct Try {
    id: [u8; 8],
    began: SystemTime,
    endpoint: SocketAddr,
    cluster: Text,
    /// How many came before it.
    number: u32,
    /// What is spoken with the endpoint; none: there is no connection, or it is not known.
    version: Option<Version>,
    /// How it has failed, if the endpoint, or the way there, is to blame.
    reset: Option<&'static str>,
    /// When it was given up for another, and what it had come to; none: it is the last.
    given_up: Option<GivenUp>,
}

#[derive(Debug)]
struct GivenUp {
    at: SystemTime,
    status: u16,
    flags: Flags,
}

fn reported(span: &mut Option<Span>) -> Option<&mut Reported> {
    span.as_mut()?.reported.as_deref_mut()
}

impl Traced {
    /// A request of a table that is traced; `route` is the one that was found for it.
    pub fn begin(tracing: &Arc<Tracing>, intake: &mut Intake, route: Option<&Route>, node: &Node) -> Box<Self> {
        let is_traced = sampling::decide(&tracing.sampling, &mut intake.headers);
        let mut traced = Self {
            tracing: tracing.clone(),
            answered_operation: None,
            span: None,
        };
        let (context, parent) = match Came::of(&tracing.provider.propagation, &intake.headers) {
            Came::Nothing => (Some(Context::fresh(is_traced)), None),
            // What its parent has decided is not told again, but less may be told of than it wants.
            Came::Trace(trace) => (
                Some(trace.context.below(trace.is_sampled.is_none_or(|is| is) && is_traced)),
                Some(trace.parent),
            ),
            Came::Garbage => (None, None),
        };
        let name = traced.operation(intake, route);
        traced.span = context.map(|context| {
            let exporter = context
                .is_sampled
                .then(|| node.telemetry.exporters.of(&tracing.provider))
                .flatten();
            let reported = exporter.map(|exporter| {
                Box::new(Reported {
                    exporter,
                    name,
                    kept: Kept::default(),
                    shadow: Vec::new(),
                    tries: Vec::new(),
                })
            });
            Span {
                context,
                parent: parent.flatten(),
                reported,
            }
        });
        let mut traced = Box::new(traced);
        traced.note_request(intake);
        traced
    }

    /// What the span is called; the other side is told, or tells.
    fn operation(&mut self, intake: &mut Intake, route: Option<&Route>) -> Name {
        let decorator = route.and_then(|route| route.decorator.as_ref());
        let told = decorator.filter(|decorator| decorator.propagates);
        let told = told.and_then(|decorator| HeaderValue::try_from(&*decorator.operation).ok());
        let name = decorator.map_or(Name::Direction, |decorator| {
            Name::Operation(decorator.operation.clone())
        });
        match self.tracing.direction {
            SpanDirection::Egress => {
                if let Some(told) = told {
                    intake.headers.insert(X_ENVOY_DECORATOR_OPERATION, told);
                }
                name
            }
            SpanDirection::Ingress => {
                self.answered_operation = told;
                match intake.headers.remove(X_ENVOY_DECORATOR_OPERATION) {
                    Some(said) if !said.is_empty() => {
                        self.answered_operation = None;
                        Name::Said(said)
                    }
                    _ => name,
                }
            }
        }
    }

    /// Notes what is asked for, as it goes on.
    pub fn note_request(&mut self, intake: &Intake) {
        if let Some(reported) = reported(&mut self.span) {
            reported.kept.request(self.tracing.wanted(), intake);
        }
    }

    /// Notes the head of the response.
    pub fn note_response(&mut self, headers: &HeaderMap) {
        if let Some(reported) = reported(&mut self.span) {
            reported.kept.response(self.tracing.wanted(), headers);
        }
    }

    /// Notes its trailers.
    pub fn note_trailers(&mut self, trailers: &HeaderMap) {
        if let Some(reported) = reported(&mut self.span) {
            reported.kept.trailers(self.tracing.wanted(), trailers);
        }
    }

    /// Notes what filters have found out.
    pub fn note_found(&mut self, findings: &Findings) {
        if let Some(reported) = reported(&mut self.span) {
            reported.shadow.extend_from_slice(&findings.shadow);
            reported.kept.found(self.tracing.wanted(), findings);
        }
    }

    /// Has the next hop told of the trace.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(span) = &self.span {
            span.context.inject(&self.tracing.provider.propagation, headers);
        }
    }

    /// Has a copy of the request told of the trace: it is a span of its own below this one, of which nobody is told here.
    pub fn inject_copy(&self, headers: &mut HeaderMap) {
        if let Some(span) = &self.span {
            let below = span.context.below(span.context.is_sampled);
            below.inject(&self.tracing.provider.propagation, headers);
        }
    }

    /// Begins a try by `version`, where that is known, if tries have spans; the fields that tell the endpoint of it, made of `headers`.
    pub fn begin_try(
        &mut self,
        (cluster, endpoint): (&Text, SocketAddr),
        version: Option<Version>,
        headers: &HeaderMap,
    ) -> Option<HeaderMap> {
        if !self.tracing.has_try_spans {
            return None;
        }
        let span = self.span.as_mut()?;
        let below = span.context.below(span.context.is_sampled);
        let mut headers = headers.clone();
        below.inject(&self.tracing.provider.propagation, &mut headers);
        if let Some(reported) = &mut span.reported {
            reported.tries.push(Try {
                id: below.span_id,
                began: SystemTime::now(),
                endpoint,
                cluster: cluster.clone(),
                number: u32::try_from(reported.tries.len()).unwrap_or(u32::MAX),
                version,
                reset: None,
                given_up: None,
            });
        }
        Some(headers)
    }

    /// Notes what was spoken in a try that was answered, or how one has failed.
    pub fn end_try(&mut self, outcome: Result<Version, &Failure>) {
        let last = reported(&mut self.span).and_then(|reported| reported.tries.last_mut());
        let Some(last) = last else { return };
        match outcome {
            Ok(version) => last.version = Some(version),
            Err(failure) => {
                last.reset = failure.reset_reason();
                last.version = last.version.filter(|_| !failure.is_unconnected());
            }
        }
    }

    /// Notes that there will be another try, and what the last one has come to.
    pub fn give_up_try(&mut self, status: u16, flags: Flags) {
        let last = reported(&mut self.span).and_then(|reported| reported.tries.last_mut());
        if let Some(last) = last {
            last.given_up = Some(GivenUp {
                at: SystemTime::now(),
                status,
                flags,
            });
        }
    }

    /// What the other side's operation is called: told in a response, or heard in one.
    pub fn edit_response(&mut self, headers: &mut HeaderMap) {
        match self.tracing.direction {
            SpanDirection::Ingress => {
                if let Some(operation) = &self.answered_operation {
                    headers.insert(X_ENVOY_DECORATOR_OPERATION, operation.clone());
                }
            }
            SpanDirection::Egress => {
                let said = headers.remove(X_ENVOY_DECORATOR_OPERATION);
                let said = said.filter(|said| !said.is_empty());
                if let (Some(said), Some(reported)) = (said, reported(&mut self.span)) {
                    reported.name = Name::Said(said);
                }
            }
        }
    }

    /// The trace and the span that the request is, if it is one.
    pub fn ids(&self) -> Option<([u8; 16], [u8; 8])> {
        let context = &self.span.as_ref()?.context;
        Some((context.trace_id, context.span_id))
    }

    /// The request is over: its spans are queued, if anyone is told of them.
    pub fn finish(&self, record: &Record) {
        if let Some(span) = &self.span
            && let Some(reported) = &span.reported
        {
            told::tell(&self.tracing, span, reported, record);
        }
    }
}
