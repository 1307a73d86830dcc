//! A mesh of any size as the YAML that a person would write, with one service in it that is really there.

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, SocketAddr};

/// Pods live in 10.0.0.0/8 (sixteen million), virtual IPs in 100.64.0.0/10 (four million): they can't meet.
const PODS: u32 = u32::from_be_bytes([10, 0, 0, 0]);
const VIPS: u32 = u32::from_be_bytes([100, 64, 0, 0]);
/// Services of one namespace.
const SERVICES_PER_NAMESPACE: u32 = 50;

/// What the mesh looks like and where the live service is.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    /// Services besides the live one.
    pub(crate) services: u32,
    /// Endpoints of each.
    pub(crate) endpoints: u32,
    /// The proxy's listener, whose destination is the live service's host name.
    pub(crate) listen: SocketAddr,
    /// The proxy's admin interface.
    pub(crate) admin: SocketAddr,
    /// Addresses of the live service's two endpoints, and the port that something listens on at both.
    pub(crate) live: ([Ipv4Addr; 2], u16),
}

/// What the n-th update leaves different from the mesh as it began: one endpoint that is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unhealthy {
    /// One of the many.
    Bystander {
        service: u32,
        endpoint: u32,
    },
    /// The second endpoint of the live service.
    Live,
    Nobody,
}

impl Mesh {
    /// The whole file after `update` updates (0 = as it begins). Consecutive updates differ in one or two endpoints, and
    /// every third of them concerns the service that is under load.
    pub(crate) fn yaml(&self, update: u32) -> String {
        let unhealthy = match (update, update % 3) {
            (0, _) => Unhealthy::Nobody,
            (_, 0) => Unhealthy::Live,
            _ => Unhealthy::Bystander {
                service: update % self.services.max(1),
                endpoint: update % self.endpoints.max(1),
            },
        };
        // 140 bytes a workload, measured; growing a 16 MB string would be timed by nobody, but takes memory twice.
        let mut text = String::with_capacity((self.services * (self.endpoints * 140 + 400)) as usize + 4096);
        self.write(&mut text, unhealthy)
            .unwrap_or_else(|_| unreachable!("writing to a String does not fail"));
        text
    }

    fn write(&self, text: &mut String, unhealthy: Unhealthy) -> fmt::Result {
        writeln!(
            text,
            "node:\n  name: bench\n  admin: \"{}\"\n  log: warn\n  access_log: {{format: \"off\"}}\n  listeners:\n  \
             - {{name: live, address: \"{}\", protocol: fixed, destination: \"live.bench.svc.cluster.local:80\"}}",
            self.admin, self.listen
        )?;
        self.write_workloads(text, unhealthy)?;
        self.write_services(text)
    }

    fn write_workloads(&self, text: &mut String, unhealthy: Unhealthy) -> fmt::Result {
        let health = |is_down| if is_down { ", health: unhealthy" } else { "" };
        writeln!(text, "workloads:")?;
        for (i, address) in self.live.0.iter().enumerate() {
            let health = health(i == 1 && unhealthy == Unhealthy::Live);
            writeln!(
                text,
                "- {{name: live-{i}, namespace: bench, addresses: [{address}]{health}}}"
            )?;
        }
        for service in 0..self.services {
            for endpoint in 0..self.endpoints {
                writeln!(
                    text,
                    "- {{name: web-{service}-{endpoint}, namespace: team-{}, service_account: web-{service}, \
                     addresses: [{}], node: node-{}{}}}",
                    service / SERVICES_PER_NAMESPACE,
                    Ipv4Addr::from(PODS + 1 + service * self.endpoints + endpoint),
                    endpoint % 7,
                    health(unhealthy == Unhealthy::Bystander { service, endpoint })
                )?;
            }
        }
        Ok(())
    }

    fn write_services(&self, text: &mut String) -> fmt::Result {
        writeln!(
            text,
            "services:\n- {{name: live, namespace: bench, vips: [{}], ports: [{{port: 80, target_port: {}}}], \
             endpoints: [bench/live-0, bench/live-1]}}",
            Ipv4Addr::from(VIPS + 1),
            self.live.1
        )?;
        for service in 0..self.services {
            let namespace = service / SERVICES_PER_NAMESPACE;
            let vip = Ipv4Addr::from(VIPS + 2 + service);
            write!(
                text,
                "- {{name: web-{service}, namespace: team-{namespace}, vips: [{vip}], \
                 ports: [{{port: 80, target_port: 8080, app_protocol: http}}], endpoints: ["
            )?;
            for endpoint in 0..self.endpoints {
                let comma = if endpoint == 0 { "" } else { ", " };
                write!(text, "{comma}team-{namespace}/web-{service}-{endpoint}")?;
            }
            writeln!(text, "]}}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_one_line_of_a_mesh_whose_size_is_as_asked() {
        let mesh = Mesh {
            services: 40,
            endpoints: 3,
            listen: "127.0.0.1:1".parse().unwrap(),
            admin: "127.0.0.1:2".parse().unwrap(),
            live: ([Ipv4Addr::new(127, 0, 0, 9), Ipv4Addr::new(127, 0, 0, 10)], 9),
        };
        let base = mesh.yaml(0);
        assert_eq!(base.matches("- {name: web-").count(), 40 * 3 + 40);
        for (update, name) in [(1, "web-1-1"), (2, "web-2-2"), (3, "live-1"), (41, "web-1-2")] {
            let changed = mesh.yaml(update);
            let different: Vec<&str> = changed
                .lines()
                .zip(base.lines())
                .filter(|(new, old)| new != old)
                .map(|(new, _)| new)
                .collect();
            assert_eq!(different.len(), 1, "update {update}");
            assert!(
                different[0].contains(name) && different[0].contains("health: unhealthy"),
                "{different:?}"
            );
        }
    }
}
