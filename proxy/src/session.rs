//! One client's connection on its way through the proxy: by which way it came, who opened it, and what is told of it at its end.
//!
//! Whatever a connection is carried by, a socket or a tunnel, it takes the same steps and leaves the same trace.

use std::sync::Arc;
use std::time::SystemTime;

use crate::ending::Ending;
use crate::entrance::Entrance;
use crate::flow::Flow;
use crate::flow_table::PathEnds;
use crate::node::Node;
use crate::offload::Direction;
use crate::socket::TcpQuality;
use crate::source::Source;
use crate::telemetry::Line;
use crate::upstream::{NamedBy, Refused, Request};

/// A client that is being served.
#[derive(Debug)]
pub struct Session {
    /// The node.
    pub node: Arc<Node>,
    /// The way it came in by.
    pub entrance: Entrance,
    /// Who it is.
    pub source: Source,
    /// When it was accepted.
    pub started: SystemTime,
    /// The core that serves it.
    pub core: usize,
}

impl Session {
    /// Its request for a destination, which `named_by` named.
    pub fn request(&self, named_by: NamedBy) -> Request<'_> {
        Request {
            node: &self.node,
            core: self.core,
            entrance: &self.entrance,
            source: &self.source,
            started: self.started,
            named_by,
        }
    }

    /// Counts and logs a client that is turned away before a destination was looked for.
    pub fn refuse(&self, refused: &Refused) {
        let ends = || {
            let config = &self.node.snapshot().config;
            let destination = self.entrance.destination().and_then(|uid| config.mesh.workload(uid));
            PathEnds::new(self.source.workload(), destination, None, &config.node)
                .carried_by(self.entrance.transport(&self.source))
                .refreshed(config)
        };
        self.node.flows.count_refused(self.core, ends, refused.ending);
        self.log_refused(refused);
    }

    /// Logs the end of a flow.
    pub fn log_flow(&self, flow: &Flow, ending: Ending, quality: TcpQuality) {
        let facts = &flow.facts;
        let denial = flow.denial().filter(|_| ending == Ending::PolicyRevoked);
        let policy = denial.map_or(facts.policy.as_ref(), |denial| denial.policy.as_ref());
        let line = Line {
            source: facts.source.address(),
            source_workload: facts.source.workload().map(|w| &**w),
            source_identity: facts.source.identity(),
            destination: Some(facts.destination),
            destination_workload: facts.destination_workload.as_deref(),
            tunnel: facts.tunnel,
            service: facts.service.as_ref(),
            started: flow.started,
            sent: flow.sent(),
            received: flow.received(),
            by_kernel: (
                flow.offload.bypassed(Direction::Out),
                flow.offload.bypassed(Direction::In),
            ),
            quality,
            entrance: &self.entrance,
            policy,
            ending,
            detail: denial.map(|denial| denial.why.to_string()),
            ended: SystemTime::now(),
        };
        self.node.telemetry.connection_ended(&line, false);
    }

    /// Logs a client that was turned away, which has been counted.
    pub fn log_refused(&self, refused: &Refused) {
        let target = refused.target.as_deref();
        let line = Line {
            source: self.source.address(),
            source_workload: self.source.workload().map(|w| &**w),
            source_identity: self.source.identity(),
            destination: target.map(|t| t.address),
            destination_workload: target.and_then(|t| t.ends.destination.as_deref()),
            tunnel: target.and_then(|t| t.tunnel),
            service: target.and_then(|t| t.ends.service.as_ref()).map(|s| &s.key),
            started: self.started,
            sent: 0,
            received: 0,
            by_kernel: (0, 0),
            quality: TcpQuality::default(),
            entrance: &self.entrance,
            policy: target.and_then(|t| t.policy.as_ref()),
            ending: refused.ending,
            detail: refused.detail.clone(),
            ended: SystemTime::now(),
        };
        self.node.telemetry.connection_ended(&line, true);
    }
}
