//! One endpoint of one service, and the count of connections it carries.
//!
//! An [`Endpoint`] is replaced whenever its workload changes; its [`EndpointLoad`] is not. So the balancer keeps
//! counting through an update, and connections opened before it are released from the same count they were added to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{PortMapping, Service, Workload};

/// A workload in its role as an endpoint of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Its own target ports for this service.
    pub ports: Box<[PortMapping]>,
    /// Connections that this node has open to it through this service; survives updates of the workload.
    pub load: Arc<EndpointLoad>,
}

impl Endpoint {
    /// The port on which this endpoint serves `service_port`, or `None` if the service has no such port or this
    /// endpoint doesn't serve it. As in ztunnel: the endpoint's own mapping first, then the service's.
    pub fn target_port(&self, service: &Service, service_port: u16) -> Option<u16> {
        let declared = service.port(service_port)?;
        let own = self
            .ports
            .iter()
            .find(|mapping| mapping.service_port == service_port)
            .map(|own| own.target_port);
        [own.unwrap_or(0), declared.target_port]
            .into_iter()
            .find(|&port| port != 0)
    }
}

/// How many connections are open to an endpoint (of one service, from this node).
#[derive(Debug, Default)]
pub struct EndpointLoad(AtomicUsize);

impl EndpointLoad {
    /// Connections open at this moment.
    pub fn outstanding(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one connection until the guard is dropped.
    pub fn acquire(self: &Arc<Self>) -> LoadGuard {
        self.0.fetch_add(1, Ordering::Relaxed);
        LoadGuard(self.clone())
    }
}

/// Holds one connection in an [`EndpointLoad`].
#[derive(Debug)]
pub struct LoadGuard(Arc<EndpointLoad>);

impl Drop for LoadGuard {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::{service, workload};
    use crate::{AppProtocol, ServicePort};

    fn endpoint(ports: &[(u16, u16)]) -> Endpoint {
        let ports = ports.iter().map(|&(service_port, target_port)| PortMapping {
            service_port,
            target_port,
        });
        Endpoint {
            workload: Arc::new(workload("a", &[])),
            ports: ports.collect(),
            load: Arc::default(),
        }
    }

    #[test]
    fn target_port_is_the_endpoints_own_then_the_services() {
        let port = |port, target_port| ServicePort {
            port,
            target_port,
            app_protocol: AppProtocol::Unknown,
        };
        let service = Service {
            ports: Box::new([port(80, 8080), port(90, 0)]),
            ..service("web", &[])
        };
        type Mappings = &'static [(u16, u16)];
        let rows: [(Mappings, u16, Option<u16>); 10] = [
            (&[], 80, Some(8080)),
            (&[(80, 8081)], 80, Some(8081)),
            (&[(90, 9090)], 80, Some(8080)),
            (&[(80, 0)], 80, Some(8080)),
            (&[], 90, None),
            (&[(90, 9090)], 90, Some(9090)),
            (&[(90, 0)], 90, None),
            (&[], 443, None),
            (&[(443, 8443)], 443, None),
            (&[(90, 1), (80, 2)], 80, Some(2)),
        ];
        for (own, asked, expected) in rows {
            assert_eq!(
                endpoint(own).target_port(&service, asked),
                expected,
                "{asked} of {own:?}"
            );
        }
    }

    #[test]
    fn load_counts_what_is_held() {
        let load = Arc::new(EndpointLoad::default());
        let first = load.acquire();
        let second = load.acquire();
        assert_eq!(load.outstanding(), 2);
        drop(first);
        assert_eq!(load.outstanding(), 1);
        drop(second);
        assert_eq!(load.outstanding(), 0);
    }
}
