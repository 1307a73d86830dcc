//! Losing istiod and finding it again.

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::Status;
use underpass_certs::{Istiod, IstiodSecurity};
use underpass_xds_client::ResourceType::{Address, Authorization};
use underpass_xds_client::proto::istio::security::Scope;
use underpass_xds_client::{ClientSettings, Connection, client};

use crate::peer::{Peer, policy_resource, response, soon, workload, workload_resource};
use crate::{Consumer, begin, node, settings};

#[tokio::test]
async fn a_new_stream_tells_what_is_held_and_takes_what_changed_meanwhile() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = begin(&mut peer, &mut consumer, &["a", "b"]).await;
    let policy = policy_resource("p", Scope::Namespace);
    stream.acked(response(Authorization, vec![policy], &[])).await;
    consumer.apply_next().await;
    drop(stream);

    let mut stream = peer.stream().await;
    let [addresses, policies] = stream.subscriptions().await;
    assert!(addresses.node.is_some(), "a new stream names the node again");
    let mut names: Vec<_> = addresses.initial_resource_versions.into_iter().collect();
    names.sort();
    let expected = ["a", "b", "shop/web"].map(|name| (name.to_owned(), "1".to_owned()));
    assert_eq!(names, expected);
    let held: Vec<_> = policies.initial_resource_versions.into_iter().collect();
    assert_eq!(held, [("shop/p".to_owned(), String::new())]);
    assert_eq!(consumer.workloads(), ["a", "b"], "what was received stays in force");

    // istiod leaves out what is up to date, and names what is gone.
    let new = workload_resource("1", workload("c", |_| {}));
    stream.acked(response(Address, vec![new], &["b"])).await;
    consumer.apply_next().await;
    stream.acked(response(Authorization, Vec::new(), &["shop/p"])).await;
    consumer.apply_next().await;
    assert_eq!(
        (consumer.workloads(), consumer.mesh.policies().count()),
        (vec!["a".to_owned(), "c".to_owned()], 0)
    );
    let status = consumer.status.read();
    assert!(matches!(status.connection, Connection::Connected { .. }) && status.disconnects == 1);
}

#[tokio::test]
async fn istiod_may_be_gone_for_a_while() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let istiod = Istiod::new(address.to_string(), IstiodSecurity::Plaintext, None);
    let mut consumer = Consumer::run(client(istiod, node(), settings()));
    let refused = async {
        loop {
            if let Connection::Disconnected { reason, .. } = consumer.status.read().connection {
                return reason;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reason = soon("a refused connection", refused).await;
    assert!(
        reason.contains(&address.to_string()) && reason.contains("refused"),
        "{reason}"
    );
    let mut peer = Peer::on(TcpListener::bind(address).await.unwrap());
    begin(&mut peer, &mut consumer, &["a"]).await;
    assert_eq!(consumer.workloads(), ["a"]);
}

#[tokio::test]
async fn a_refused_stream_says_what_to_check() {
    let mut peer = Peer::start().await;
    let consumer = Consumer::of(
        &peer,
        ClientSettings {
            backoff: underpass_certs::Backoff::new(Duration::from_secs(3600), Duration::from_secs(3600)),
            ..settings()
        },
    );
    let mut stream = peer.stream().await;
    stream.subscriptions().await;
    stream.refuse(Status::permission_denied("no identities matched")).await;
    let reason = async {
        loop {
            if let Connection::Disconnected { reason, .. } = consumer.status.read().connection {
                return reason;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reason = soon("the end of the stream", reason).await;
    assert!(
        reason.contains("no identities matched") && reason.contains("namespace and account"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_response_that_is_too_large_ends_the_stream_and_changes_nothing() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(
        &peer,
        ClientSettings {
            largest_response: 100_000,
            ..settings()
        },
    );
    let mut stream = begin(&mut peer, &mut consumer, &["a"]).await;
    let fat = workload("b", |workload| workload.hostname = "x".repeat(200_000));
    stream
        .send(response(Address, vec![workload_resource("1", fat)], &[]))
        .await;
    let mut stream = peer.stream().await;
    let [addresses, _] = stream.subscriptions().await;
    assert!(!addresses.initial_resource_versions.contains_key("b"));
    assert_eq!(consumer.workloads(), ["a"]);
}

#[tokio::test]
async fn each_stream_shows_the_token_of_its_time() {
    let mut peer = Peer::start().await;
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let istiod = Istiod::new(peer.address.to_string(), IstiodSecurity::Plaintext, Some(token.clone()));
    let _consumer = Consumer::run(client(istiod, node(), settings()));
    let stream = peer.stream().await;
    assert_eq!(stream.metadata.get("authorization").unwrap(), "Bearer first");
    std::fs::write(&token, "second").unwrap();
    drop(stream);
    let stream = peer.stream().await;
    assert_eq!(stream.metadata.get("authorization").unwrap(), "Bearer second");
}
