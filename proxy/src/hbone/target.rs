//! Where at a pod a tunnel's bytes go.
//!
//! What a certificate proves to this pod must not open the way to another: a tunnel leads to an address of the pod that it came to. A service's name stands for
//! the service's endpoint here (gateways of other networks name services, they do not know addresses).
//!
//! A pod with an *application tunnel* ("sandwich": a waypoint behind the node's proxy) takes whatever it is sent on one port, and is told in a
//! [header](super::proxy_protocol) for where it was.

use std::net::{IpAddr, SocketAddr};

use http::Request;
use underpass_config::{ApplicationTunnel, Config, Destination, ServiceState, Workload};

use super::connect;
use super::inbound::refused;
use crate::capture::Pod;
use crate::ending::Ending;
use crate::socket;
use crate::upstream::Refused;

/// An application of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// What a PROXY protocol header is to say that the client connected to, if the application wants one.
    pub announced: Option<SocketAddr>,
}

/// Where at `pod` a request wants to go.
///
/// # Errors
/// Why to nowhere.
pub fn of<B>(config: &Config, pod: &Pod, request: &Request<B>) -> Result<Target, Refused> {
    let wanted = connect::destination(request).map_err(|why| refused(Ending::HandshakeFailed, why))?;
    let workload = config.mesh.workload(&pod.uid).ok_or(Ending::UnknownDestination)?;
    let found = match workload.application_tunnel {
        Some(tunnel) => in_sandwich(config, pod, workload, tunnel, &wanted),
        None => at_pod(config, pod, workload, &wanted),
    };
    found.ok_or_else(|| {
        let detail = format!("{wanted} is not at {}, where the request came", workload.name);
        refused(Ending::UnknownDestination, detail)
    })
}

fn at_pod(config: &Config, pod: &Pod, workload: &Workload, wanted: &Destination) -> Option<Target> {
    let address = match wanted {
        Destination::Address(address) => {
            let address = socket::canonical(*address);
            pod.owns(address.ip()).then_some(address)?
        }
        Destination::Host { host, port } => {
            let service: &ServiceState = config.mesh.service_named(host)?;
            let endpoint = service.endpoints().find(|endpoint| endpoint.workload.uid == pod.uid)?;
            let port = endpoint.target_port(service.service(), *port)?;
            SocketAddr::new(own_address(pod, workload)?, port)
        }
    };
    Some(Target {
        address,
        announced: None,
    })
}

fn in_sandwich(
    config: &Config,
    pod: &Pod,
    workload: &Workload,
    tunnel: ApplicationTunnel,
    wanted: &Destination,
) -> Option<Target> {
    let named = match wanted {
        Destination::Address(address) => socket::canonical(*address),
        Destination::Host { host, port } => {
            let service = config.mesh.service_named(host)?.service();
            SocketAddr::new(service.vips.first()?.address, *port)
        }
    };
    let port = match tunnel.port {
        0 => named.port(),
        port => port,
    };
    Some(Target {
        address: SocketAddr::new(own_address(pod, workload)?, port),
        announced: tunnel.proxy_protocol.then_some(named),
    })
}

fn own_address(pod: &Pod, workload: &Workload) -> Option<IpAddr> {
    workload.addresses.iter().copied().find(|ip| pod.owns(*ip))
}

#[cfg(test)]
mod tests {
    use http::Method;
    use underpass_config::{MeshChange, WorkloadUid};

    use super::*;

    const MESH: &str = "workloads:\n- {uid: web, name: web-1, namespace: shop, addresses: [10.0.0.1]}\n\
        - {uid: db, name: db-1, namespace: shop, addresses: [10.0.0.2]}\n\
        services:\n- {name: web, namespace: shop, vips: [10.96.0.1], ports: [{port: 80, target_port: 8080}], endpoints: [shop/web-1]}\n\
        - {name: db, namespace: shop, vips: [10.96.0.2], ports: [{port: 80}], endpoints: [shop/db-1]}\n";

    /// Where `authority` leads at the pod `web`, which has this application tunnel.
    fn led(authority: &str, tunnel: Option<ApplicationTunnel>) -> Option<(String, Option<String>)> {
        let mut config = Config::from_yaml(MESH).unwrap();
        let mut workload = Workload::clone(config.mesh.workload(&WorkloadUid::new("web")).unwrap());
        workload.application_tunnel = tunnel;
        config.mesh.apply([MeshChange::Workload(workload)]);
        let pod = Pod::at_address("web", "10.0.0.1".parse().unwrap());
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(authority)
            .body(())
            .unwrap();
        let target = of(&config, &pod, &request).ok()?;
        Some((target.address.to_string(), target.announced.map(|to| to.to_string())))
    }

    #[test]
    fn a_tunnel_leads_to_the_pod_that_it_came_to() {
        let plain = |address: &str| Some((address.to_owned(), None));
        assert_eq!(led("10.0.0.1:81", None), plain("10.0.0.1:81"));
        assert_eq!(led("[::ffff:10.0.0.1]:81", None), plain("10.0.0.1:81"));
        assert_eq!(led("web.shop.svc.cluster.local:80", None), plain("10.0.0.1:8080"));
        for elsewhere in [
            "10.0.0.2:81",
            "10.96.0.1:80",
            "127.0.0.1:80",
            "db.shop.svc.cluster.local:80",
            "web.shop.svc.cluster.local:81",
        ] {
            assert_eq!(led(elsewhere, None), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_pod_with_an_application_tunnel_takes_all_on_one_port_and_is_told_for_where_it_was() {
        let tunnel = |port, proxy_protocol| Some(ApplicationTunnel { port, proxy_protocol });
        let at = |address: &str, announced: Option<&str>| Some((address.to_owned(), announced.map(str::to_owned)));
        assert_eq!(
            led("10.96.0.2:80", tunnel(15088, true)),
            at("10.0.0.1:15088", Some("10.96.0.2:80"))
        );
        let by_name = led("db.shop.svc.cluster.local:80", tunnel(15088, true));
        assert_eq!(by_name, at("10.0.0.1:15088", Some("10.96.0.2:80")));
        assert_eq!(led("10.96.0.2:80", tunnel(0, false)), at("10.0.0.1:80", None));
        assert_eq!(led("nobody.example:80", tunnel(15088, true)), None);
    }
}
