//! The admin server: metrics, readiness, the configuration in force, open connections, log level, drain.
//!
//! It listens on loopback only and has no authentication, as Envoy's and ztunnel's; nothing secret is ever in its answers. Metrics and
//! readiness, which change nothing, may be asked for from elsewhere, at addresses of their own ([`View`]).

mod clusters;
mod explain;
mod keys;
mod routes;
mod status;

use std::convert::Infallible;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::configuration::Configuration;
use crate::flow::{Flow, FlowId};
use crate::logging::LogFilter;
use crate::node::Node;
use crate::offload::{Direction, InKernel, WhyNot};

/// What the admin server shows and changes.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The node.
    pub node: Arc<Node>,
    /// The configuration.
    pub configuration: Arc<Configuration>,
    /// The log filter.
    pub log: LogFilter,
}

const HELP: &str = "\
GET  /metrics               OpenMetrics text
GET  /ready                 200 when serving, 503 when draining or waiting
GET  /config_dump           the configuration in force, and the last rejected update
GET  /status                how istiod, the mesh and the certificates stand
GET  /connections           open connections
GET  /tunnels               HBONE connections to other nodes, with their streams
GET  /routes                routes of HTTP, and how many requests each has had
GET  /clusters              where they lead: endpoints, their health, connections, limits
GET  /keys                  keys that verify tokens: which, from where, since when
GET  /explain?from=&to=     what would become of a connection or request (method, path, header): step by step, and why
GET  /offload               the kernel tier: whether there is one, and what it has done
GET  /refusals              the last connections that were refused, and why
GET  /logging               the log filter
POST /logging?level=FILTER  change it: debug, or underpass::relay=trace,info
POST /drain                 stop accepting, let connections finish, exit
";

/// What may be asked for at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Everything, on loopback.
    Everything,
    /// Metrics, from anywhere: at `/metrics`, and where Envoy and ztunnel have them.
    Metrics,
    /// Readiness, from anywhere: at `/healthz/ready`, as of ztunnel.
    Readiness,
}

/// Serves `listener` for as long as the process lives.
pub async fn serve(listener: TcpListener, view: View, admin: Admin) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = admin.answer(view, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "admin connection failed");
            }
        });
    }
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

fn json_answer(value: &Value) -> Answer {
    answer(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

impl Admin {
    fn answer(&self, view: View, request: &Request<Incoming>) -> Answer {
        match (view, request.method(), request.uri().path()) {
            (View::Everything, ..) => self.answer_everything(request),
            (View::Metrics, &Method::GET, "/metrics" | "/stats/prometheus") => self.metrics(),
            (View::Readiness, &Method::GET, "/healthz/ready") => self.ready(),
            (View::Metrics, ..) => text(StatusCode::NOT_FOUND, "GET /metrics\n"),
            (View::Readiness, ..) => text(StatusCode::NOT_FOUND, "GET /healthz/ready\n"),
        }
    }

    fn answer_everything(&self, request: &Request<Incoming>) -> Answer {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/") => text(StatusCode::OK, HELP),
            (&Method::GET, "/metrics") => self.metrics(),
            (&Method::GET, "/ready") => self.ready(),
            (&Method::GET, "/config_dump") => json_answer(&self.config_dump()),
            (&Method::GET, "/status") => json_answer(&status::status(&self.node)),
            (&Method::GET, "/connections") => json_answer(&self.connections()),
            (&Method::GET, "/tunnels") => json_answer(&self.tunnels()),
            (&Method::GET, "/routes") => json_answer(&routes::routes(&self.node)),
            (&Method::GET, "/clusters") => json_answer(&clusters::clusters(&self.node)),
            (&Method::GET, "/keys") => json_answer(&keys::keys(&self.node)),
            (&Method::GET, "/explain") => {
                match explain::explain(&self.node, request.uri().query().unwrap_or_default()) {
                    Ok(steps) => json_answer(&steps),
                    Err(why) => text(StatusCode::BAD_REQUEST, format!("{why}\n")),
                }
            }
            (&Method::GET, "/offload") => json_answer(&self.offload()),
            (&Method::GET, "/refusals") => json_answer(&Value::Array(self.node.telemetry.refusals())),
            (&Method::GET, "/logging") => text(StatusCode::OK, format!("{}\n", self.log)),
            (&Method::POST, "/logging") => self.set_log_level(request.uri().query().unwrap_or_default()),
            (&Method::POST, "/drain") => {
                self.node.start_drain();
                text(StatusCode::OK, "draining\n")
            }
            (
                _,
                "/" | "/metrics" | "/ready" | "/config_dump" | "/status" | "/connections" | "/tunnels" | "/routes"
                | "/clusters" | "/keys" | "/explain" | "/offload" | "/refusals" | "/logging" | "/drain",
            ) => text(StatusCode::METHOD_NOT_ALLOWED, HELP),
            _ => text(StatusCode::NOT_FOUND, HELP),
        }
    }

    fn metrics(&self) -> Answer {
        match self.node.telemetry.encode() {
            Ok(body) => answer(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                body,
            ),
            Err(error) => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("metrics cannot be encoded: {error}\n"),
            ),
        }
    }

    fn ready(&self) -> Answer {
        if self.node.is_draining() {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        } else if self.node.awaits_mesh() {
            text(StatusCode::SERVICE_UNAVAILABLE, "waiting for istiod\n")
        } else if self.node.awaits_serving() {
            text(
                StatusCode::SERVICE_UNAVAILABLE,
                "waiting for what istiod has the waypoint serve\n",
            )
        } else if self.node.awaits_agent() {
            text(StatusCode::SERVICE_UNAVAILABLE, "waiting for the agent\n")
        } else {
            text(StatusCode::OK, "ready\n")
        }
    }

    fn config_dump(&self) -> Value {
        let snapshot = self.node.snapshot();
        let mesh = &snapshot.config.mesh;
        json!({
            "generation": snapshot.generation,
            "last_rejected": self.configuration.last_rejected(),
            "node": &*snapshot.config.node,
            "workloads": mesh.workloads().collect::<Vec<_>>(),
            "services": mesh.services().map(|state| json!({
                "service": &**state.service(),
                "endpoints": state.endpoints().map(|endpoint| json!({
                    "workload": endpoint.workload.uid.to_string(),
                    "health": endpoint.workload.health,
                    "outstanding": endpoint.load.outstanding(),
                })).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "policies": mesh.policies().collect::<Vec<_>>(),
        })
    }

    fn connections(&self) -> Value {
        self.node
            .flows
            .flows()
            .iter()
            .filter(|(_, flow)| !flow.is_watch)
            .map(|(id, flow)| connection(*id, flow))
            .collect()
    }

    fn tunnels(&self) -> Value {
        let tunnels = self.node.tunnels.connections().into_iter();
        tunnels
            .map(|(key, streams)| {
                json!({
                    "client": key.client.to_string(),
                    "peer": key.gateway.to_string(),
                    "expected": key.expected.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "streams": streams,
                })
            })
            .collect()
    }

    fn offload(&self) -> Value {
        let offload = &self.node.offload;
        let counts = &offload.counts;
        let refusals = counts.refusals().filter(|(_, count)| *count > 0);
        let settings = &self.node.snapshot().config.node.offload;
        let (state, reason) = offload.state(settings.trust_readers);
        json!({
            "state": state,
            "reason": reason,
            "connections": self.node.flows.tiers().joined,
            "joins": counts.joins(),
            "parks": counts.parks(),
            "refusals": refusals.map(|(why, count)| (why.word().to_owned(), count.into())).collect::<serde_json::Map<_, _>>(),
        })
    }

    fn set_log_level(&self, query: &str) -> Answer {
        let Some(level) = query.split('&').find_map(|pair| pair.strip_prefix("level=")) else {
            return text(StatusCode::BAD_REQUEST, "say which: POST /logging?level=debug\n");
        };
        match self.log.parse(level) {
            Ok(filter) => {
                self.log.set(filter);
                text(StatusCode::OK, format!("{}\n", self.log))
            }
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }
}

fn connection(id: FlowId, flow: &Flow) -> Value {
    let facts = &flow.facts;
    let source = facts.source.workload();
    let destination = facts.destination_workload.as_deref();
    let why_not = flow.offload.why_not();
    json!({
        "id": id,
        "listener": facts.listener,
        "src_addr": facts.source.address().to_string(),
        "src_workload": source.map(|w| &w.name),
        "src_namespace": source.map(|w| &w.namespace),
        "src_identity": facts.source.identity().map(ToString::to_string),
        "dst_addr": facts.destination.to_string(),
        "dst_service": facts.service.as_ref().map(ToString::to_string),
        "dst_workload": destination.map(|w| &w.name),
        "dst_namespace": destination.map(|w| &w.namespace),
        "dst_identity": destination.map(|w| w.identity.to_string()),
        "hbone_peer": facts.tunnel.map(|peer| peer.to_string()),
        "policy": facts.policy.as_ref().map(ToString::to_string),
        "sent_bytes": flow.sent(),
        "received_bytes": flow.received(),
        "kernel_sent_bytes": flow.offload.bypassed(Direction::Out),
        "kernel_received_bytes": flow.offload.bypassed(Direction::In),
        "tier": if why_not.is_none() { "kernel" } else { "relay" },
        "why_not": why_not.map(WhyNot::word),
        "kernel": flow.offload.kernel().map(|kernel| json!({
            "sent": direction(kernel, Direction::Out),
            "received": direction(kernel, Direction::In),
        })),
        "start_time": humantime::format_rfc3339_nanos(flow.started).to_string(),
        "state": match (flow.requested_end(), flow.is_established()) {
            (Some(ending), _) => ending.word(),
            (None, true) => "open",
            (None, false) => "connecting",
        },
    })
}

/// What the kernel does in one direction of a connection. `parked`: the sender waits until the receiver has read.
fn direction(kernel: &InKernel, direction: Direction) -> Value {
    let tally = kernel.tally(direction);
    json!({
        "armed": kernel.flow().is_armed(direction),
        "parked": kernel.is_parked(direction),
        "bypassed_messages": tally.bypassed_messages,
        "behind": tally.behind,
        "full": tally.full,
        "busy": tally.busy,
        "closed_by": kernel.why_closed(direction).map(WhyNot::word),
    })
}
