//! A mesh as istiod would send it: services with endpoints, each a pod of its own, spread over nodes and zones.

use prost::Message;
use underpass_xds_client::ResourceType;
use underpass_xds_client::proto::discovery::Resource;
use underpass_xds_client::proto::istio::workload::{self as wds, address::Type};

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Synthetic {
    pub(crate) services: u32,
    /// Of each service.
    pub(crate) endpoints: u32,
}

impl Synthetic {
    /// Everything, services first.
    pub(crate) fn all(self) -> Vec<Resource> {
        let workloads = (0..self.services).flat_map(|index| (0..self.endpoints).map(move |replica| (index, replica)));
        let workloads = workloads.map(|(index, replica)| self.workload(index, replica, 0));
        (0..self.services).map(service).chain(workloads).collect()
    }

    /// Change number `change`: one endpoint gets another state of health.
    pub(crate) fn changed(self, change: u32) -> Resource {
        // Odd strides over both, so that consecutive changes have nothing in common.
        let (index, replica) = (change * 7 % self.services, change % self.endpoints);
        self.workload(index, replica, change / self.services % 2 + 1)
    }

    fn workload(self, index: u32, replica: u32, version: u32) -> Resource {
        let (namespace, hostname) = hostname(index);
        let name = format!("service-{index}-5d8f6b7c9-{replica:05}");
        let uid = format!("Kubernetes//Pod/{namespace}/{name}");
        let ports = wds::PortList { ports: vec![port(0)] };
        let address = 0x0AF4_0000 + index * self.endpoints + replica;
        let status = match version % 2 {
            0 => wds::WorkloadStatus::Healthy,
            _ => wds::WorkloadStatus::Unhealthy,
        };
        let workload = wds::Workload {
            uid: uid.clone(),
            name,
            addresses: vec![address.to_be_bytes().to_vec()],
            tunnel_protocol: wds::TunnelProtocol::Hbone as i32,
            service_account: format!("service-{index}"),
            node: format!("node-{}", (index + replica) % 500),
            canonical_name: format!("service-{index}"),
            canonical_revision: "latest".into(),
            workload_type: wds::WorkloadType::Pod as i32,
            workload_name: format!("service-{index}"),
            services: [(format!("{namespace}/{hostname}"), ports)].into(),
            namespace,
            status: status as i32,
            cluster_id: "Kubernetes".into(),
            locality: Some(wds::Locality {
                region: "region-1".into(),
                zone: format!("zone-{}", (index + replica) % 3),
                subzone: String::new(),
            }),
            ..Default::default()
        };
        resource(uid, Type::Workload(workload), version)
    }
}

fn service(index: u32) -> Resource {
    let (namespace, hostname) = hostname(index);
    let name = format!("{namespace}/{hostname}");
    let service = wds::Service {
        name: format!("service-{index}"),
        namespace,
        hostname,
        addresses: vec![wds::NetworkAddress {
            address: (0x0A60_0000 + index).to_be_bytes().to_vec(),
            ..Default::default()
        }],
        ports: vec![port(wds::AppProtocol::Http11 as i32)],
        canonical: true,
        ..Default::default()
    };
    resource(name, Type::Service(service), 0)
}

fn port(app_protocol: i32) -> wds::Port {
    wds::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol,
    }
}

fn hostname(index: u32) -> (String, String) {
    let namespace = format!("ns-{}", index % 100);
    let hostname = format!("service-{index}.{namespace}.svc.cluster.local");
    (namespace, hostname)
}

fn resource(name: String, kind: Type, version: u32) -> Resource {
    Resource {
        name,
        version: format!("{version:016x}"),
        resource: Some(prost_types::Any {
            type_url: ResourceType::Address.url().into(),
            value: wds::Address { r#type: Some(kind) }.encode_to_vec(),
        }),
        aliases: Vec::new(),
    }
}
