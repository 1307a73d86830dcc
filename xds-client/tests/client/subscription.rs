//! What is asked for, taken, handed on and answered.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use prost_types::value::Kind;
use underpass_config::WorkloadUid;
use underpass_xds_client::ResourceType::{Address, Authorization};
use underpass_xds_client::proto::istio::security::Scope;

use crate::peer::{Peer, policy_resource, resource, response, service_resource, soon, workload, workload_resource};
use crate::{Consumer, begin, settings};

#[tokio::test]
async fn everything_of_both_types_is_subscribed_to_by_a_node_that_says_who_it_is() {
    let mut peer = Peer::start().await;
    let _consumer = Consumer::of(&peer, settings());
    let mut stream = peer.stream().await;
    let [first, second] = stream.subscriptions().await;
    assert_eq!(
        [&*first.type_url, &*second.type_url],
        [Address.url(), Authorization.url()]
    );
    for request in [&first, &second] {
        assert!(request.resource_names_subscribe.is_empty() && request.initial_resource_versions.is_empty());
    }
    assert_eq!(second.node, None, "only the first request names the node");
    let node = first.node.unwrap();
    assert_eq!(
        node.id,
        "ztunnel~10.0.0.7~underpass-x.istio-system~istio-system.svc.cluster.local"
    );
    let metadata = node.metadata.unwrap().fields;
    let text = |key: &str| match &metadata[key].kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(
        [
            "NAMESPACE",
            "NODE_NAME",
            "CLUSTER_ID",
            "SERVICE_ACCOUNT",
            "INSTANCE_IPS"
        ]
        .map(text),
        ["istio-system", "node-a", "Kubernetes", "ztunnel", "10.0.0.7"]
    );
    assert!(!metadata.contains_key("NETWORK") && metadata.contains_key("LABELS"));
}

/// Without the policies of its namespace, a workload would be open.
#[tokio::test]
async fn the_first_update_holds_workloads_and_policies() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = peer.stream().await;
    stream.subscriptions().await;
    stream
        .acked(response(
            Address,
            vec![workload_resource("1", workload("a", |_| {}))],
            &[],
        ))
        .await;
    assert!(!consumer.status.read().synced);
    let guard = policy_resource("guard", Scope::Namespace);
    stream.acked(response(Authorization, vec![guard], &[])).await;
    assert!(consumer.status.read().synced);
    let (changes, _) = consumer.apply_next().await;
    assert_eq!(changes, 2);
    assert_eq!(
        (consumer.workloads(), consumer.mesh.policies().count()),
        (vec!["a".to_owned()], 1)
    );
}

#[tokio::test]
async fn one_endpoint_changed_costs_one_endpoint() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let names: Vec<String> = (0..500).map(|index| format!("w{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut stream = begin(&mut peer, &mut consumer, &names).await;
    let before = consumer.mesh.clone();

    let ill = workload("w7", |workload| workload.status = 1);
    stream
        .acked(response(Address, vec![workload_resource("2", ill)], &[]))
        .await;
    let (changes, touched) = consumer.apply_next().await;
    assert_eq!(changes, 1);
    assert_eq!(touched.workloads, HashSet::from([WorkloadUid::new("w7")]));
    for old in before.workloads() {
        let new = consumer.mesh.workload(&old.uid).unwrap();
        assert_eq!(Arc::ptr_eq(old, new), old.uid.as_str() != "w7", "{}", old.uid);
    }
}

#[tokio::test]
async fn a_bad_resource_is_named_in_the_nack_and_the_last_good_one_stays() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = begin(&mut peer, &mut consumer, &["a", "b"]).await;
    let bad = workload("a", |workload| {
        workload.node = "elsewhere".into();
        workload.addresses = vec![vec![1, 2, 3]];
    });
    let good = workload("b", |workload| workload.node = "elsewhere".into());
    let both = vec![workload_resource("2", bad), workload_resource("2", good)];
    let before = consumer.status.read().types[&Address].bytes;
    let both = response(Address, both, &[]);
    let size = both.encoded_len() as u64;
    let answer = stream.ask(both).await;
    let counted = consumer.status.read().types[&Address].bytes - before;
    assert!(
        (size..size + 50).contains(&counted),
        "{size} and a nonce, not {counted}"
    );
    let detail = answer.error_detail.unwrap();
    assert_eq!(
        detail.message,
        "resource a: `addresses` is an address of 3 bytes; it has to be 4 or 16"
    );
    consumer.apply_next().await;
    let node = |uid: &str| consumer.mesh.workload(&WorkloadUid::new(uid)).unwrap().node.to_string();
    assert_eq!((node("a"), node("b")), (String::new(), "elsewhere".to_owned()));
    let status = consumer.status.read();
    assert_eq!((status.rejected_count, status.types[&Address].nacks), (1, 1));
    assert_eq!(status.rejected[0].1, "a");

    // On the next stream istiod learns which version of it is in force.
    drop(stream);
    let mut stream = peer.stream().await;
    let [addresses, _] = stream.subscriptions().await;
    let version = |name: &str| addresses.initial_resource_versions[name].clone();
    assert_eq!((version("a"), version("b")), ("1".to_owned(), "2".to_owned()));

    let repaired = workload("a", |workload| workload.node = "here".into());
    stream
        .acked(response(Address, vec![workload_resource("3", repaired)], &[]))
        .await;
    consumer.apply_next().await;
    assert_eq!(&*consumer.mesh.workload(&WorkloadUid::new("a")).unwrap().node, "here");
    assert_eq!(consumer.status.read().rejected_count, 0);
}

#[tokio::test]
async fn nothing_of_a_contradictory_response_is_taken() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = begin(&mut peer, &mut consumer, &["a"]).await;
    let new = || workload_resource("1", workload("new", |_| {}));
    let answer = stream.ask(response(Address, vec![new()], &["a", "new"])).await;
    let message = answer.error_detail.unwrap().message;
    assert_eq!(
        message,
        "nothing of the response is taken: resource `new` is named twice"
    );
    // The next response is taken, and the update that comes out is its.
    stream.acked(response(Address, vec![new()], &[])).await;
    assert_eq!(consumer.apply_next().await.0, 1);
    assert_eq!(consumer.workloads(), ["a", "new"]);
}

/// istiod pushes the workload that refers to a new policy before the policy. Handed on by itself, the workload would
/// refuse everybody.
#[tokio::test]
async fn a_workload_waits_for_the_policy_it_refers_to() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(
        &peer,
        crate::ClientSettings {
            policy_grace: Duration::from_secs(3600),
            ..settings()
        },
    );
    let mut stream = begin(&mut peer, &mut consumer, &["a"]).await;
    let guarded = workload("a", |workload| workload.authorization_policies = vec!["shop/p".into()]);
    stream
        .acked(response(Address, vec![workload_resource("2", guarded)], &[]))
        .await;
    stream
        .acked(response(
            Address,
            vec![workload_resource("1", workload("b", |_| {}))],
            &[],
        ))
        .await;
    let policy = policy_resource("p", Scope::WorkloadSelector);
    stream.acked(response(Authorization, vec![policy], &[])).await;
    let (changes, _) = consumer.apply_next().await;
    assert_eq!(changes, 3, "both workloads and the policy, at once");
}

#[tokio::test]
async fn a_policy_that_does_not_come_denies_after_the_grace() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(
        &peer,
        crate::ClientSettings {
            policy_grace: Duration::from_millis(50),
            ..settings()
        },
    );
    let mut stream = begin(&mut peer, &mut consumer, &["a"]).await;
    let guarded = workload("a", |workload| workload.authorization_policies = vec!["shop/p".into()]);
    stream
        .acked(response(Address, vec![workload_resource("2", guarded)], &[]))
        .await;
    assert_eq!(consumer.apply_next().await.0, 1);
    let a = consumer.mesh.workload(&WorkloadUid::new("a")).unwrap();
    assert_eq!(a.authorization_policies.len(), 1);
}

#[tokio::test]
async fn a_name_may_change_from_workload_to_service() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = begin(&mut peer, &mut consumer, &["a"]).await;
    let odd = workload("shop/web", |_| {});
    stream
        .acked(response(Address, vec![workload_resource("2", odd)], &[]))
        .await;
    consumer.apply_next().await;
    assert_eq!((consumer.workloads().len(), consumer.mesh.services().count()), (2, 0));
    stream
        .acked(response(Address, vec![service_resource("3")], &["a"]))
        .await;
    consumer.apply_next().await;
    assert_eq!((consumer.workloads().len(), consumer.mesh.services().count()), (0, 1));
}

/// The queue holds one update and the client one more; then it reads no further, and istiod is not told otherwise.
#[tokio::test]
async fn a_slow_consumer_slows_istiod() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = begin(&mut peer, &mut consumer, &[]).await;
    let large = "x".repeat(1 << 20);
    let update = |index: usize| {
        let fat = workload(&format!("w{index}"), |workload| workload.hostname = large.clone());
        response(Address, vec![workload_resource("1", fat)], &[])
    };
    let mut sent = 0;
    let mut acked = 0;
    // Windows and socket buffers hold some megabytes; a client that read on would take all of these.
    while sent < 64 {
        let room = async {
            while !stream.has_room() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(500), room).await.is_err() {
            break;
        }
        stream.send(update(sent)).await;
        sent += 1;
    }
    assert!(sent < 64, "istiod was never stopped");
    while stream.request_within(Duration::from_millis(200)).await.is_some() {
        acked += 1;
    }
    assert_eq!(acked, 1, "what is queued is acknowledged, what waits for room is not");
    for _ in 0..sent {
        consumer.apply_next().await;
    }
    assert_eq!(consumer.workloads().len(), sent, "nothing is lost");
}

#[tokio::test]
async fn a_policy_from_a_later_istio_is_nacked_and_denies() {
    let mut peer = Peer::start().await;
    let mut consumer = Consumer::of(&peer, settings());
    let mut stream = begin(&mut peer, &mut consumer, &["a"]).await;
    let mut policy = policy_resource("p", Scope::Namespace);
    policy.resource.as_mut().unwrap().value.extend([0x98, 0x06, 0x01]);
    let answer = stream.ask(response(Authorization, vec![policy], &[])).await;
    let message = answer.error_detail.unwrap().message;
    assert!(
        message.starts_with("resource shop/p: field 99 is not known"),
        "{message}"
    );
    consumer.apply_next().await;
    assert_eq!(consumer.mesh.policies().count(), 1);
    assert_eq!(consumer.status.read().rejected[0].0, Authorization);
    // An undecodable update of it leaves it as it is.
    let garbage = resource(Authorization, "shop/p", "", vec![0xff]);
    let answer = stream.ask(response(Authorization, vec![garbage], &[])).await;
    assert!(answer.error_detail.unwrap().message.contains("last good version"));
    stream.acked(response(Authorization, Vec::new(), &["shop/p"])).await;
    consumer.apply_next().await;
    assert_eq!(
        (consumer.mesh.policies().count(), consumer.status.read().rejected_count),
        (0, 0)
    );
}

#[tokio::test]
async fn a_client_ends_when_nobody_wants_its_updates() {
    let mut peer = Peer::start().await;
    let istiod = underpass_certs::Istiod::new(
        peer.address.to_string(),
        underpass_certs::IstiodSecurity::Plaintext,
        None,
    );
    let (client, updates, _status) = underpass_xds_client::client(istiod, crate::node(), settings());
    let running = tokio::spawn(client.run());
    let mut stream = peer.stream().await;
    stream.subscriptions().await;
    drop(updates);
    soon("the client's end", running).await.unwrap();
}
