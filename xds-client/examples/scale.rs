//! A mesh of 10 000 services and 100 000 workloads over a real stream, from another process: how long until it is in
//! the model, what it costs in memory, and what one changed endpoint costs.
//!
//! `cargo run --release -p underpass-xds-client --example scale`

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use underpass_certs::{Istiod, IstiodSecurity};
use underpass_config::Mesh;
use underpass_xds_client::proto::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use underpass_xds_client::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use underpass_xds_client::proto::istio::workload::{self as wds, address::Type};
use underpass_xds_client::{ClientSettings, Node, NodeRole, ResourceType, client};

const SERVICES: u32 = 10_000;
const ENDPOINTS_PER_SERVICE: u32 = 10;
const CHANGES: u32 = 1_000;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    if std::env::args().nth(1).as_deref() == Some("istiod") {
        return istiod().await;
    }
    let mut server = Command::new(std::env::current_exe()?)
        .arg("istiod")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut address = String::new();
    BufReader::new(server.stdout.take().ok_or("no standard output")?).read_line(&mut address)?;
    let measured = measure(address.trim()).await;
    server.kill()?;
    server.wait()?;
    measured
}

async fn measure(address: &str) -> Result<(), Failure> {
    let node = Node {
        role: NodeRole::Node,
        pod: "underpass".into(),
        namespace: "istio-system".into(),
        addresses: vec!["10.0.0.1".parse()?],
        node: "node-0".into(),
        cluster_id: "Kubernetes".into(),
        network: String::new(),
        service_account: String::new(),
        istio_version: String::new(),
        labels: Default::default(),
    };
    let before = rss_mib()?;
    let (begun, cpu) = (Instant::now(), cpu_time()?);
    let istiod = Istiod::new(address, IstiodSecurity::Plaintext, None);
    let (client, mut updates, _status) = client(istiod, node, ClientSettings::default());
    tokio::spawn(client.run());
    let mut mesh = Mesh::default();
    let first = updates.next().await.ok_or("no first update")?;
    mesh.apply(first.changes);
    println!(
        "{} services, {} workloads: {:.2} s, {:.2} s of CPU, {:.0} MiB",
        mesh.services().count(),
        mesh.workloads().count(),
        begun.elapsed().as_secs_f64(),
        (cpu_time()? - cpu).as_secs_f64(),
        rss_mib()? - before,
    );
    let (begun, cpu) = (Instant::now(), cpu_time()?);
    for _ in 0..CHANGES {
        let update = updates.next().await.ok_or("no update")?;
        assert_eq!(update.changes.len(), 1);
        mesh.apply(update.changes);
    }
    println!(
        "one endpoint changed: {:.0} us, {:.0} us of CPU; {:.0} MiB afterwards",
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(CHANGES),
        (cpu_time()? - cpu).as_secs_f64() * 1e6 / f64::from(CHANGES),
        rss_mib()? - before,
    );
    Ok(())
}

/// Resident memory of this process.
fn rss_mib() -> Result<f64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.ok_or("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// Time that this thread, the only one that works, was on a processor.
fn cpu_time() -> Result<Duration, Failure> {
    let statistics = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = statistics.split(' ').next().ok_or("no schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

async fn istiod() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    tonic::transport::Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(Ads))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

struct Ads;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            let push = async |kind: ResourceType, resources: Vec<Resource>| {
                let response = DeltaDiscoveryResponse {
                    type_url: kind.url().into(),
                    resources,
                    nonce: "n".into(),
                    ..Default::default()
                };
                responses.send(Ok(response)).await.is_ok()
            };
            let _subscriptions = (requests.message().await, requests.message().await);
            let mut all: Vec<Resource> = (0..SERVICES).map(service).collect();
            for index in 0..SERVICES {
                all.extend((0..ENDPOINTS_PER_SERVICE).map(|replica| workload(index, replica, 0)));
            }
            push(ResourceType::Address, all).await;
            push(ResourceType::Authorization, Vec::new()).await;
            for change in 0..CHANGES {
                push(ResourceType::Address, vec![workload(change * 7 % SERVICES, 3, 1)]).await;
            }
            while let Ok(Some(_)) = requests.message().await {}
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
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

fn hostname(index: u32) -> (String, String) {
    let namespace = format!("ns-{}", index % 100);
    let hostname = format!("service-{index}.{namespace}.svc.cluster.local");
    (namespace, hostname)
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
        ports: vec![wds::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: wds::AppProtocol::Http11 as i32,
        }],
        canonical: true,
        ..Default::default()
    };
    resource(name, Type::Service(service), 0)
}

fn workload(index: u32, replica: u32, status: i32) -> Resource {
    let (namespace, hostname) = hostname(index);
    let name = format!("service-{index}-5d8f6b7c9-{replica:05}");
    let uid = format!("Kubernetes//Pod/{namespace}/{name}");
    let ports = wds::PortList {
        ports: vec![wds::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
    };
    let workload = wds::Workload {
        uid: uid.clone(),
        name,
        addresses: vec![
            (0x0AF4_0000 + index * ENDPOINTS_PER_SERVICE + replica)
                .to_be_bytes()
                .to_vec(),
        ],
        tunnel_protocol: wds::TunnelProtocol::Hbone as i32,
        service_account: format!("service-{index}"),
        node: format!("node-{}", (index + replica) % 500),
        canonical_name: format!("service-{index}"),
        canonical_revision: "latest".into(),
        workload_type: wds::WorkloadType::Pod as i32,
        workload_name: format!("service-{index}"),
        services: [(format!("{namespace}/{hostname}"), ports)].into(),
        namespace,
        status,
        cluster_id: "Kubernetes".into(),
        locality: Some(wds::Locality {
            region: "region-1".into(),
            zone: format!("zone-{}", (index + replica) % 3),
            subzone: String::new(),
        }),
        ..Default::default()
    };
    resource(uid, Type::Workload(workload), 0)
}
