//! How long a large mesh takes to build and to change, and what it occupies.
//!
//! ```text
//! cargo run --release -p underpass-config --example scale
//! ```
//!
//! Builds 10 000 services of 10 endpoints each through [`Mesh::apply`], then changes one endpoint at a time while the
//! snapshot before is held, as the proxy does.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use underpass_config::{
    AppProtocol, Health, Identity, Interner, LoadBalancing, Locality, Membership, Mesh, MeshChange, PolicyKey,
    Position, Service, ServiceKey, ServicePort, TunnelProtocol, Vip, Workload, WorkloadType, WorkloadUid,
};

const SERVICES: u32 = 10_000;
const ENDPOINTS_PER_SERVICE: u32 = 10;
const UPDATES: u32 = 1000;

fn main() {
    let resident_before = resident_kib();
    let started = Instant::now();
    let mut names = Interner::default();
    let mut mesh = Mesh::default();
    for index in 0..SERVICES {
        mesh.apply([MeshChange::Service(service(&mut names, index))]);
        mesh.apply(
            (0..ENDPOINTS_PER_SERVICE).map(|replica| MeshChange::Workload(workload(&mut names, index, replica))),
        );
    }
    drop(names);
    println!(
        "built     {SERVICES} services x {ENDPOINTS_PER_SERVICE} endpoints in {:.0?}, {} MiB resident",
        started.elapsed(),
        (resident_kib() - resident_before) / 1024
    );

    let mut names = Interner::default();
    let client = Position::of(&workload(&mut names, 0, 0));
    let (mut updates, mut selections) = (Vec::new(), Vec::new());
    for update in 0..UPDATES {
        let index = update * 7919 % SERVICES;
        let mut changed = workload(&mut names, index, 3);
        changed.health = Health::Unhealthy;
        let snapshot = mesh.clone();
        let started = Instant::now();
        let touched = mesh.apply([MeshChange::Workload(changed)]);
        updates.push(started.elapsed());
        assert_eq!(touched.workloads.len(), 1);

        let key = service_key(&mut names, index);
        let started = Instant::now();
        let candidates = mesh.service(&key).map(|state| state.candidates(&client).len());
        selections.push(started.elapsed());
        let unchanged = snapshot.service(&key).map(|state| state.candidates(&client).len());
        assert_eq!(candidates.zip(unchanged), Some((9, 10)));
    }
    print_times("one update", updates);
    print_times("first selection after it", selections);
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what}: median {:.1?}, max {:.1?} of {}",
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    );
}

fn service_key(names: &mut Interner, index: u32) -> ServiceKey {
    let namespace = index % 100;
    ServiceKey::new(names.intern(&format!(
        "ns-{namespace}/service-{index}.ns-{namespace}.svc.cluster.local"
    )))
}

fn service(names: &mut Interner, index: u32) -> Service {
    let namespace = index % 100;
    Service {
        key: service_key(names, index),
        name: names.intern(&format!("service-{index}")),
        namespace: names.intern(&format!("ns-{namespace}")),
        hostname: names.intern(&format!("service-{index}.ns-{namespace}.svc.cluster.local")),
        vips: Box::new([Vip {
            network: names.intern(""),
            address: address(0x0A60_0000 + index),
        }]),
        ports: Box::new([ServicePort {
            port: 80,
            target_port: 8080,
            app_protocol: AppProtocol::Http11,
        }]),
        load_balancing: LoadBalancing::default(),
        waypoint: None,
        subject_alt_names: Box::default(),
    }
}

fn workload(names: &mut Interner, index: u32, replica: u32) -> Workload {
    let namespace = names.intern(&format!("ns-{}", index % 100));
    let name = names.intern(&format!("service-{index}-5d8f6b7c9-{replica:05}"));
    let deployment = names.intern(&format!("service-{index}"));
    Workload {
        uid: WorkloadUid::new(format!("Kubernetes//Pod/{namespace}/{name}")),
        name,
        identity: Identity {
            trust_domain: names.intern("cluster.local"),
            namespace: namespace.clone(),
            service_account: deployment.clone(),
        },
        namespace,
        addresses: Box::new([address(0x0AF4_0000 + index * ENDPOINTS_PER_SERVICE + replica)]),
        hostname: names.intern(""),
        node: names.intern(&format!("node-{}", (index + replica) % 500)),
        network: names.intern(""),
        cluster_id: names.intern("Kubernetes"),
        locality: Locality {
            region: names.intern("region-1"),
            zone: names.intern(&format!("zone-{}", (index + replica) % 3)),
            subzone: names.intern(""),
        },
        health: Health::Healthy,
        tunnel_protocol: TunnelProtocol::Hbone,
        network_mode: Default::default(),
        application_tunnel: None,
        waypoint: None,
        network_gateway: None,
        canonical_name: deployment.clone(),
        canonical_revision: names.intern("latest"),
        workload_name: deployment,
        workload_type: WorkloadType::Pod,
        authorization_policies: Box::new([PolicyKey::new(names.intern("istio-system/strict"))]),
        services: Box::new([Membership {
            service: service_key(names, index),
            ports: Box::default(),
        }]),
    }
}

fn address(bits: u32) -> IpAddr {
    Ipv4Addr::from_bits(bits).into()
}

/// Resident memory of this process (`VmRSS` of proc(5)).
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
