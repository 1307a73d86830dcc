//! The certificates of a node's pods, from a real istiod's CA.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use underpass_certs::{
    ClientTls, IdentityStore, IstioCa, IstioCaSettings, Istiod, IstiodSecurity, ServerTls, StoreSettings, Trust,
    TrustDomains,
};
use underpass_config::Identity;
use underpass_tests::istiod::{Istiod as RealIstiod, Pod, SERVER_NAME};
use underpass_tests::wait;

use crate::cluster::{NODE_TOKEN, address, cluster};

/// The pods of `node-a`, and one of another node.
fn fill(istiod: &RealIstiod) {
    istiod.apply("web", Pod::new("shop/web", address(1, 10)));
    istiod.apply("client", Pod::new("shop/client", address(1, 11)));
    istiod.apply("far", Pod::new("shop/far", address(2, 12)).on("node-b"));
}

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

struct Certificates {
    store: IdentityStore,
    runtime: Runtime,
}

impl Certificates {
    fn of(istiod: &RealIstiod, token: &str, cluster_id: &str) -> Self {
        let security = IstiodSecurity::Tls {
            roots: istiod.roots(),
            server_name: Some(SERVER_NAME.to_owned()),
        };
        let istiod = Istiod::new(istiod.secure().to_string(), security, Some(istiod.token(token)));
        let ca = Arc::new(IstioCa::new(istiod, IstioCaSettings::new(cluster_id)));
        let trust = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
        let (store, serving) = IdentityStore::new(ca, trust, StoreSettings::default());
        let runtime = Runtime::new().unwrap();
        runtime.spawn(serving);
        Self { store, runtime }
    }

    /// What is wrong, once the CA has refused the identity of `account`.
    fn refusal(&self, account: &str) -> String {
        let _lease = self.store.hold(&identity(account));
        wait::some(wait::SOON, "the CA refuses", || {
            self.store.status()[0].last_error.clone()
        })
    }
}

#[test]
fn a_node_gets_the_certificates_of_its_pods_and_they_believe_each_other() {
    let Some((_world, istiod)) = cluster() else { return };
    fill(&istiod);
    let certificates = Certificates::of(&istiod, NODE_TOKEN, "Kubernetes");
    let (store, trust) = (&certificates.store, certificates.store.trust().clone());
    let (web, client) = (store.hold(&identity("web")), store.hold(&identity("client")));
    certificates.runtime.block_on(async {
        let certificate = web.ready(wait::patient(wait::SOON)).await.unwrap();
        assert_eq!(certificate.identity(), &identity("web"));
        let left = certificate.not_after().duration_since(SystemTime::now()).unwrap();
        let day = Duration::from_secs(24 * 60 * 60);
        assert!(left <= day && left > day - 2 * wait::SOON, "{left:?}");
        client.ready(wait::patient(wait::SOON)).await.unwrap();
        assert_eq!(trust.roots(), 1, "that of istiod, once");

        let server = ServerTls::new(web.slot().clone(), trust.clone()).unwrap();
        let connect = |expected: &str| {
            let expected = Arc::new([identity(expected)]);
            ClientTls::new(client.slot().clone(), trust.clone(), expected).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        for (expected, succeeds) in [("web", true), ("client", false)] {
            let tls = connect(expected);
            let accepting = async {
                let (socket, _) = listener.accept().await.unwrap();
                server.accept(socket).await
            };
            let connecting = async {
                let socket = TcpStream::connect(here).await.unwrap();
                tls.connect(socket, here.ip()).await
            };
            let (accepted, connected) = tokio::join!(accepting, connecting);
            assert_eq!(connected.is_ok(), succeeds, "{expected}");
            if succeeds {
                assert_eq!(accepted.unwrap().1.identity(), &identity("client"));
                assert_eq!(connected.unwrap().1.identity(), &identity("web"));
            }
        }
    });
}

/// A node that starts with as many pods as no node has: the CA is asked once for each, by a few requests at a time.
#[test]
fn a_thousand_identities_of_one_node_come_from_the_ca_once_each() {
    const PODS: u16 = 1000;
    let Some((_world, istiod)) = cluster() else { return };
    let account = |number: u16| format!("account-{number}");
    let pod = |number: u16| {
        let address = address(
            3 + u8::try_from(number / 250).unwrap(),
            u8::try_from(number % 250 + 1).unwrap(),
        );
        Pod::new(&format!("shop/pod-{number}"), address)
            .account(&account(number))
            .to_string()
    };
    istiod.apply("crowd", (0..PODS).map(pod).collect::<String>());
    let certificates = Certificates::of(&istiod, NODE_TOKEN, "Kubernetes");
    let store = &certificates.store;
    // istiod knows of all pods when it knows of the last.
    let last = store.hold(&identity(&account(PODS - 1)));
    let patience = 6 * wait::patient(wait::SOON);
    certificates.runtime.block_on(last.ready(patience)).unwrap();
    let begun = Instant::now();
    let leases: Vec<_> = (0..PODS)
        .map(|number| store.hold(&identity(&account(number))))
        .collect();
    certificates.runtime.block_on(async {
        for lease in &leases {
            lease.ready(patience).await.unwrap();
        }
    });
    eprintln!("{PODS} certificates in {:?}", begun.elapsed());
    let serials = |store: &IdentityStore| -> BTreeSet<String> {
        let all = store.status().into_iter();
        all.map(|one| one.certificate.expect("it was ready").serial().to_owned())
            .collect()
    };
    let first = serials(store);
    assert_eq!(first.len(), usize::from(PODS), "each has its own");
    assert_eq!(store.trust().roots(), 1, "one root, however often it came");
    // What is there is not asked for again by whoever holds it too.
    let more: Vec<_> = (0..PODS)
        .map(|number| store.hold(&identity(&account(number))))
        .collect();
    certificates.runtime.block_on(more[0].ready(patience)).unwrap();
    assert_eq!(serials(store), first);
}

#[test]
fn identities_that_are_not_this_nodes_are_refused_and_it_is_said_why() {
    let Some((_world, istiod)) = cluster() else { return };
    fill(&istiod);
    for (token, cluster_id, account) in [
        (NODE_TOKEN, "Kubernetes", "far"),             // a pod of another node
        (NODE_TOKEN, "Kubernetes", "nobody"),          // no pod at all
        (NODE_TOKEN, "elsewhere", "web"),              // another cluster
        ("istio-system/ztunnel", "Kubernetes", "web"), // a token that no pod is bound to
        ("shop/client/client", "Kubernetes", "web"),   // an account that may not
        ("nonsense", "Kubernetes", "web"),
    ] {
        let certificates = Certificates::of(&istiod, token, cluster_id);
        let refusal = certificates.refusal(account);
        assert!(
            refusal.contains("the CA does not accept us") && refusal.contains("check the token file, the cluster id"),
            "{token} {cluster_id} {account}: {refusal}"
        );
        assert_eq!(certificates.store.trust().roots(), 0);
    }
}

/// A node that starts with its pods gets an identity that the CA did not know yet as soon as it does.
#[test]
fn an_identity_whose_pod_comes_late_is_asked_for_again() {
    let Some((_world, istiod)) = cluster() else { return };
    let certificates = Certificates::of(&istiod, NODE_TOKEN, "Kubernetes");
    let lease = certificates.store.hold(&identity("web"));
    wait::some(wait::SOON, "a refusal", || {
        certificates.store.status()[0].last_error.clone()
    });
    fill(&istiod);
    certificates
        .runtime
        .block_on(lease.ready(wait::patient(wait::SOON)))
        .unwrap();
}

#[test]
fn certificates_outlive_istiod_and_those_of_another_root_are_believed_beside_them() {
    let Some((_world, mut istiod)) = cluster() else { return };
    fill(&istiod);
    let certificates = Certificates::of(&istiod, NODE_TOKEN, "Kubernetes");
    let patience = wait::patient(wait::SOON);
    let old = certificates.store.hold(&identity("web"));
    certificates.runtime.block_on(old.ready(patience)).unwrap();
    istiod.kill();
    let new = certificates.store.hold(&identity("client"));
    wait::eventually(wait::SOON, "the CA is missed", || {
        certificates.store.status().iter().any(|one| one.last_error.is_some())
    });
    assert!(old.slot().valid().is_some());
    istiod.start_again_with_another_authority();
    certificates.runtime.block_on(new.ready(2 * patience)).unwrap();
    assert_eq!(certificates.store.trust().roots(), 2);
}
