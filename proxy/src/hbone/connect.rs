//! The CONNECT request that opens a tunnel: how it is written, and what is believed of one that came.
//!
//! Only the authority of a request decides anything. The other fields inform: `baggage` says who the client is (the W3C's format, Istio's keys) and
//! `forwarded` for whom and to which service (RFC 7239). Who the client *is*, its certificate says, and where it connects from, its connection. So nothing
//! of these fields is ever seen by policy; they are written as ztunnel writes them (`outbound.rs` there), and read for metrics ([`super::described`]).

use std::net::SocketAddr;

use h2::ext::Protocol;
use http::{HeaderValue, Method, Request, StatusCode, Version};
use underpass_config::{Config, Destination, Identity, Workload, WorkloadType};

use crate::ending::Ending;
use crate::upstream::Refused;

/// Istio's names of the fields.
pub const BAGGAGE: &str = "baggage";
/// The same.
pub const FORWARDED: &str = "forwarded";

/// What a tunnel is opened for.
#[derive(Debug)]
pub struct Connect<'a> {
    /// Where its bytes are to go.
    pub authority: String,
    /// Who opens it.
    pub client: &'a Workload,
    /// From where.
    pub client_address: SocketAddr,
    /// The host name of the service that was asked for, if one was.
    pub service: Option<&'a str>,
}

impl Connect<'_> {
    /// The request.
    ///
    /// # Errors
    /// When the authority is none; those of the model are.
    pub fn request(&self) -> Result<Request<()>, http::Error> {
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(self.authority.as_str())
            .version(Version::HTTP_2);
        let fields = [(BAGGAGE, baggage(self.client)), (FORWARDED, self.forwarded())];
        for (name, value) in fields {
            // Names and namespaces come from the control plane. What cannot stand in a field is not worth a connection.
            if let Ok(value) = HeaderValue::try_from(value) {
                request = request.header(name, value);
            }
        }
        request.body(())
    }

    fn forwarded(&self) -> String {
        let client = self.client_address;
        match self.service {
            Some(service) => format!("for=\"{client}\";host={service}"),
            None => format!("for=\"{client}\""),
        }
    }
}

/// The keys by which workloads are named, and what each says of them.
pub const WORKLOADS: [(&str, WorkloadType); 4] = [
    ("k8s.deployment.name", WorkloadType::Deployment),
    ("k8s.cronjob.name", WorkloadType::CronJob),
    ("k8s.pod.name", WorkloadType::Pod),
    ("k8s.job.name", WorkloadType::Job),
];

fn baggage(client: &Workload) -> String {
    let kind = WORKLOADS.into_iter().find(|(_, kind)| *kind == client.workload_type);
    members(&[
        ("k8s.cluster.name", &client.cluster_id),
        ("k8s.namespace.name", &client.namespace),
        (kind.map_or("", |(name, _)| name), &client.workload_name),
        ("service.name", &client.canonical_name),
        ("service.version", &client.canonical_revision),
        ("cloud.region", &client.locality.region),
        ("cloud.availability_zone", &client.locality.zone),
    ])
}

fn members(fields: &[(&str, &str)]) -> String {
    let known = fields.iter().filter(|(_, value)| !value.is_empty());
    let members: Vec<String> = known.map(|(name, value)| format!("{name}={value}")).collect();
    members.join(",")
}

/// What a proxy says of itself that opens a tunnel as `identity` for many clients: its pod's workload, where the mesh knows it, as a waypoint of Istio's says its own.
/// None: it can't be said in a field.
pub fn own_baggage(config: &Config, identity: &Identity) -> Option<HeaderValue> {
    let node = &config.node;
    let pod = node.istiod.as_ref().map(|istiod| (&istiod.namespace, &istiod.pod));
    let workload = pod.and_then(|(namespace, name)| config.mesh.pod(&node.cluster_id, namespace, name));
    let text = match workload.filter(|workload| workload.identity == *identity) {
        Some(workload) => baggage(workload),
        None => members(&[
            ("k8s.cluster.name", &node.cluster_id),
            ("k8s.namespace.name", &identity.namespace),
            ("cloud.region", &node.locality.region),
            ("cloud.availability_zone", &node.locality.zone),
        ]),
    };
    HeaderValue::try_from(text).ok()
}

/// Where a request that came wants to go.
///
/// # Errors
/// Why it is none that opens a tunnel, in words.
pub fn destination<B>(request: &Request<B>) -> Result<Destination, String> {
    if request.method() != Method::CONNECT {
        return Err(format!(
            "this is no HTTP server: {} instead of CONNECT",
            printable(request.method().as_str())
        ));
    }
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        return Err(format!("an extended CONNECT, for {}", printable(protocol.as_str())));
    }
    let authority = request.uri().authority().ok_or("a CONNECT without authority")?.as_str();
    authority
        .parse()
        .map_err(|error| format!("{} {error}", printable(authority)))
}

/// What a peer wrote, fit for a log line.
fn printable(text: &str) -> String {
    /// Nobody reads more of what is wrong anyway.
    const MOST: usize = 100;
    text.chars().take(MOST).flat_map(char::escape_debug).collect()
}

/// The status with which ztunnel refuses (`inbound.rs` there).
pub fn status_of(refused: &Refused) -> StatusCode {
    match refused.ending {
        Ending::PolicyDenied | Ending::PolicyRevoked => StatusCode::UNAUTHORIZED,
        Ending::UnknownDestination | Ending::HandshakeFailed => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Why a tunnel was refused, as its status tells.
pub fn refusal(status: StatusCode) -> Ending {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ending::PolicyDenied,
        _ => Ending::ConnectFailed,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use underpass_config::Config;

    use super::*;

    fn connect(authority: &str) -> Request<()> {
        let request = Request::builder().method(Method::CONNECT).uri(authority);
        request.version(Version::HTTP_2).body(()).unwrap()
    }

    #[test]
    fn only_a_connect_to_an_address_or_a_name_with_a_port_goes_anywhere() {
        for authority in ["10.0.0.1:80", "[fd00::1]:80", "web.shop.svc.cluster.local:80"] {
            assert_eq!(destination(&connect(authority)).unwrap().to_string(), authority);
        }
        for authority in [
            "10.0.0.1",
            "10.0.0.1:0",
            "user@web.shop:80",
            "10.0.0.256:80",
            "web.shop:http",
        ] {
            let Ok(request) = Request::builder().method(Method::CONNECT).uri(authority).body(()) else {
                continue;
            };
            assert!(destination(&request).is_err(), "{authority}");
        }
        let get = Request::builder().uri("http://10.0.0.1:80/").body(()).unwrap();
        assert!(destination(&get).unwrap_err().contains("GET instead of CONNECT"));
        let mut extended = connect("10.0.0.1:80");
        extended.extensions_mut().insert(Protocol::from_static("websocket"));
        assert!(destination(&extended).unwrap_err().contains("websocket"));
    }

    #[test]
    fn who_asks_and_for_what_is_told_as_ztunnel_tells_it() {
        let yaml = "workloads:\n- {name: web-1, namespace: shop, workload_name: web, workload_type: deployment, \
                    canonical_name: web, canonical_revision: v2, cluster_id: c1, addresses: [10.0.0.1]}\n";
        let mesh = Config::from_yaml(yaml).unwrap().mesh;
        let client = mesh.workload_at("", "10.0.0.1".parse().unwrap()).unwrap();
        let connect = Connect {
            authority: "10.0.0.2:80".to_owned(),
            client,
            client_address: "10.0.0.1:4711".parse().unwrap(),
            service: Some("db.shop.svc.cluster.local"),
        };
        let request = connect.request().unwrap();
        let field = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(
            field("forwarded"),
            "for=\"10.0.0.1:4711\";host=db.shop.svc.cluster.local"
        );
        assert_eq!(
            field("baggage"),
            "k8s.cluster.name=c1,k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=v2"
        );
        assert_eq!(destination(&request).unwrap().to_string(), "10.0.0.2:80");
    }

    proptest! {
        #[test]
        fn no_authority_panics_or_is_understood_in_two_ways(authority in "[a-z0-9.:\\[\\]@%/-]{1,40}") {
            if let Ok(request) = Request::builder().method(Method::CONNECT).uri(&authority).body(())
                && let Ok(destination) = destination(&request)
            {
                prop_assert_eq!(destination.to_string().parse(), Ok(destination));
            }
        }
    }
}
