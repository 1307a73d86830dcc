//! A waypoint's subscription: what is asked for, and when what it serves is handed on.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use tokio::time::timeout;
use underpass_config::http::Http;
use underpass_xds_client::ResourceType::{self, Address, Authorization, Cluster, Endpoints, Listener};
use underpass_xds_client::proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use underpass_xds_client::waypoint::Told;
use underpass_xds_client::{ClientSettings, Wanted};

use crate::peer::{Peer, ServerStream, resource, response, soon};
use crate::{Consumer, settings};

const HOUR: Duration = Duration::from_secs(3600);
/// A service of the recordings whose chain leads to subsets in one, and in another to no subset.
const SERVER: &str = "inbound-vip|80|http|server.shop.svc.cluster.local";
const SUBSET: &str = "inbound-vip|80|http/v1|server.shop.svc.cluster.local";
const ROUTED: &str = "05-traffic-management";
const PLAIN: &str = "01-baseline";

fn recorded(scenario: &str, kind: ResourceType) -> Vec<Resource> {
    let file = match kind {
        Cluster => "cds",
        Endpoints => "eds",
        _ => "lds",
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let bytes = std::fs::read(root.join(scenario).join(format!("waypoint-{file}.pb"))).unwrap();
    DeltaDiscoveryResponse::decode(&*bytes).unwrap().resources
}

fn wanted(grace: Duration) -> ClientSettings {
    ClientSettings {
        wanted: Wanted::Both(grace),
        ..settings()
    }
}

fn served(told: Option<Told>) -> Option<Http> {
    Some(told?.http(None, &Told::default(), &Http::default()))
}

impl Consumer {
    /// What the next update has a waypoint serve.
    async fn next_served(&mut self) -> Option<Http> {
        let update = soon("an update", self.updates.next()).await.unwrap();
        self.mesh.apply(update.changes);
        served(update.waypoint)
    }

    /// Whether nothing has been handed on by now: a response is answered after that.
    async fn has_nothing(&mut self) -> bool {
        timeout(Duration::ZERO, self.updates.next()).await.is_err()
    }
}

/// The types that a stream asks for at its beginning, where no cluster is known.
async fn asked_first(stream: &mut ServerStream) -> Vec<String> {
    let mut types = Vec::new();
    for _ in 0..4 {
        types.push(stream.request().await.type_url);
    }
    types
}

/// Sends clusters, and reads what is asked for because of them besides the answer.
async fn send_clusters(stream: &mut ServerStream, clusters: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    stream.acked(clusters).await;
    stream.request().await
}

fn names(of: &[Resource]) -> BTreeSet<&str> {
    of.iter().map(|resource| resource.name.as_str()).collect()
}

async fn mesh(stream: &mut ServerStream) {
    stream.acked(response(Address, Vec::new(), &[])).await;
    stream.acked(response(Authorization, Vec::new(), &[])).await;
}

/// A stream on which all of a recording was told.
async fn begun(peer: &mut Peer, consumer: &mut Consumer) -> ServerStream {
    let mut stream = peer.stream().await;
    asked_first(&mut stream).await;
    send_clusters(&mut stream, response(Cluster, recorded(ROUTED, Cluster), &[])).await;
    for kind in [Endpoints, Listener] {
        stream.acked(response(kind, recorded(ROUTED, kind), &[])).await;
    }
    mesh(&mut stream).await;
    let first = consumer.next_served().await.unwrap();
    assert!(first.clusters.contains_key(SUBSET) && first.tables.contains_key(SERVER));
    stream
}

#[tokio::test]
async fn the_first_update_has_the_mesh_and_all_that_is_served() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, wanted(HOUR));
    let mut stream = peer.stream().await;
    assert_eq!(
        asked_first(&mut stream).await,
        [Cluster, Listener, Address, Authorization].map(ResourceType::url)
    );
    let clusters = response(Cluster, recorded(ROUTED, Cluster), &[]);
    let endpoints = send_clusters(&mut stream, clusters).await;
    assert_eq!(endpoints.type_url, Endpoints.url());
    let sets = recorded(ROUTED, Endpoints);
    let asked: BTreeSet<_> = endpoints.resource_names_subscribe.iter().map(String::as_str).collect();
    assert_eq!(asked, names(&sets));

    stream.acked(response(Listener, recorded(ROUTED, Listener), &[])).await;
    mesh(&mut stream).await;
    assert!(consumer.has_nothing().await, "no endpoint is known");
    assert!(!consumer.status.read().synced);
    let (first, rest) = sets.split_first().unwrap();
    stream.acked(response(Endpoints, rest.to_vec(), &[])).await;
    assert!(consumer.has_nothing().await, "those of one cluster are not");
    // istiod says that there are none.
    stream.acked(response(Endpoints, Vec::new(), &[&first.name])).await;
    let http = consumer.next_served().await.unwrap();
    assert!(http.waypoint.is_some() && http.tables.contains_key(SERVER));
    assert!(http.clusters[SERVER].endpoints().len() > 1);
    let status = consumer.status.read();
    assert!(status.synced);
    assert_eq!(status.types[&Endpoints].resources, rest.len());
}

/// Mutant: `Serving::fits` that does not look at chains.
#[tokio::test]
async fn a_cluster_that_is_gone_stays_until_no_chain_leads_there() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, wanted(HOUR));
    let mut stream = begun(&mut peer, &mut consumer).await;
    let asked = send_clusters(&mut stream, response(Cluster, Vec::new(), &[SUBSET])).await;
    assert_eq!(asked.resource_names_unsubscribe, [SUBSET]);
    assert!(consumer.has_nothing().await, "a route leads there");
    stream.acked(response(Listener, recorded(PLAIN, Listener), &[])).await;
    let http = consumer.next_served().await.unwrap();
    assert!(!http.clusters.contains_key(SUBSET) && http.tables.contains_key(SERVER));
}

/// Mutant: `Serving::hand_on` hands on whatever came, also what is the same.
#[tokio::test]
async fn what_is_sent_again_is_not_handed_on() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, wanted(HOUR));
    let mut stream = begun(&mut peer, &mut consumer).await;
    for kind in [Cluster, Endpoints, Listener] {
        stream.acked(response(kind, recorded(ROUTED, kind), &[])).await;
        assert!(consumer.has_nothing().await, "{kind}");
    }
    stream.acked(response(Listener, recorded(PLAIN, Listener), &[])).await;
    assert!(consumer.next_served().await.is_some());
}

#[tokio::test]
async fn what_does_not_come_is_not_waited_for_longer_than_the_grace() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, wanted(Duration::from_millis(50)));
    let mut stream = begun(&mut peer, &mut consumer).await;
    send_clusters(&mut stream, response(Cluster, Vec::new(), &[SUBSET])).await;
    let http = consumer.next_served().await.unwrap();
    assert!(!http.clusters.contains_key(SUBSET));
}

#[tokio::test]
async fn a_new_stream_is_told_what_is_held() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, wanted(HOUR));
    let stream = begun(&mut peer, &mut consumer).await;
    drop(stream);
    let mut stream = peer.stream().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(stream.request().await);
    }
    for (request, kind) in held.iter().zip([Cluster, Endpoints, Listener]) {
        assert_eq!(request.type_url, kind.url());
        let known: BTreeSet<_> = request.initial_resource_versions.keys().map(String::as_str).collect();
        assert_eq!(known, names(&recorded(ROUTED, kind)), "{kind}");
    }
    assert_eq!(
        held[1].resource_names_subscribe.len(),
        recorded(ROUTED, Endpoints).len()
    );
}

#[tokio::test]
async fn what_is_closed_is_named_in_the_nack_and_the_rest_is_served() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, wanted(HOUR));
    let mut stream = begun(&mut peer, &mut consumer).await;
    // A field that nobody knows.
    let known = recorded(ROUTED, Cluster)
        .into_iter()
        .find(|one| one.name == SUBSET)
        .unwrap();
    let mut bytes = known.resource.unwrap().value;
    bytes.extend([0xfa, 0xff, 0x7f, 0x01, 0x00]);
    let odd = resource(Cluster, SUBSET, "odd", bytes);
    let answer = stream.ask(response(Cluster, vec![odd], &[])).await;
    let message = answer.error_detail.unwrap().message;
    assert!(
        message.contains(SUBSET) && message.ends_with("it is closed"),
        "{message}"
    );
    let http = consumer.next_served().await.unwrap();
    assert!(!http.clusters.contains_key(SUBSET) && http.clusters.contains_key(SERVER));
    let status = consumer.status.read();
    assert_eq!((status.types[&Cluster].nacks, status.rejected.len()), (1, 1));
    assert_eq!(status.rejected[0].1, SUBSET);
}
