//! Who is not let in, and what is said of it: the same word in the log line (which `/refusals` keeps) and in the metric.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use h2::client;
use http::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use underpass_certs::{ClientTls, Clock};
use underpass_config::Identity;

use super::authority::{self, Authority, HOUR, Paper, identity};
use super::world::{Peer, World, connect, policy, web};
use crate::hbone::pool::{DialError, OpenError};
use crate::hbone::server::SERVED;

fn text<'a>(refusal: &'a Value, field: &str) -> &'a str {
    refusal[field].as_str().unwrap()
}

/// Says why, and says it everywhere alike.
fn assert_told(world: &World, refusal: &Value, reason: &str, flag: &str, detail: &str) {
    assert_eq!(
        (text(refusal, "reason"), text(refusal, "response_flags")),
        (reason, flag),
        "{refusal}"
    );
    assert!(text(refusal, "detail").contains(detail), "{refusal}");
    assert_eq!(
        (text(refusal, "direction"), text(refusal, "listener")),
        ("INBOUND", "hbone")
    );
    let flag = format!("response_flags=\"{flag}\"");
    let closed = world.metric(
        "istio_tcp_connections_closed_total",
        &[&flag, "reporter=\"destination\""],
    );
    assert!(!closed.is_empty(), "no metric says {flag}");
}

#[tokio::test]
async fn whoever_does_not_show_a_certificate_of_the_mesh_is_refused() {
    let world = World::new("").await;
    let (now, client) = (SystemTime::now(), identity("shop", "client"));
    let other_domain: Identity = "spiffe://other.example/ns/shop/sa/client".parse().unwrap();
    let expired = Paper {
        not_before: now - 3 * HOUR,
        not_after: now - HOUR,
        ..Paper::of(&client, now, HOUR)
    };
    let stranger = Authority::new();
    // A pod whose clock has stopped shows its certificate although it has expired.
    let (long_ago, today): (Clock, Clock) = (|| SystemTime::now() - 2 * HOUR, SystemTime::now);
    let rows = [
        (world.authority.issue(&client, &expired), long_ago, "peer_expired"),
        (
            stranger.issue(&client, &Paper::of(&client, now, HOUR)),
            today,
            "peer_untrusted",
        ),
        (
            world
                .authority
                .issue(&other_domain, &Paper::of(&other_domain, now, HOUR)),
            today,
            "peer_trust_domain",
        ),
    ];
    for (number, (certificate, clock, reason)) in rows.into_iter().enumerate() {
        let identity = certificate.identity().clone();
        let peer = world.peer_with(authority::Pod::with(&identity, certificate, clock).await);
        let outcome = peer.open(world.gateway, &world.target()).await;
        assert!(outcome.is_err(), "{reason}");
        let refusal = world.refusal(number).await;
        assert_told(&world, &refusal, "handshake_failed", "DPE", reason);
    }
    assert_eq!(world.node.flows.open_connections().total(), 0);
}

#[tokio::test]
async fn plaintext_and_tls_without_a_certificate_are_refused() {
    let world = World::new("").await;
    let mut plain = TcpStream::connect(world.gateway).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    let refusal = world.refusal(0).await;
    assert_told(&world, &refusal, "handshake_failed", "DPE", "tls");

    let mut roots = rustls::RootCertStore::empty();
    roots.add(world.authority.root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let socket = TcpStream::connect(world.gateway).await.unwrap();
    let name = ServerName::IpAddress(world.gateway.ip().into());
    let mut stream = connector.connect(name, socket).await.unwrap();
    assert!(stream.read_u8().await.is_err());
    let refusal = world.refusal(1).await;
    assert_told(&world, &refusal, "handshake_failed", "DPE", "peer_without_certificate");
}

/// Believes every server.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_not_spoken_to() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let dial = peer.dial(world.gateway, &[identity("shop", "db")]);
    let outcome = peer.pool.open(&dial, &connect(&world.target())).await;
    let Err(OpenError::Dial(DialError::Handshake { reason, error, .. })) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(reason, "peer_identity");
    assert!(
        error.contains("/sa/web, not spiffe://cluster.local/ns/shop/sa/db"),
        "{error}"
    );
}

#[tokio::test]
async fn only_what_is_at_the_pod_is_reached_through_it() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let rows = [
        ("127.0.0.1:80", "unknown_destination", "NR"),
        ("10.96.0.1:80", "unknown_destination", "NR"),
        ("elsewhere.example:80", "unknown_destination", "NR"),
        ("web.shop.svc.cluster.local:81", "unknown_destination", "NR"),
        ("127.0.0.2", "handshake_failed", "DPE"),
    ];
    for (number, (target, reason, flag)) in rows.into_iter().enumerate() {
        let outcome = peer.open(world.gateway, target).await;
        assert!(
            matches!(outcome, Err(OpenError::Refused(StatusCode::BAD_REQUEST))),
            "{target}: {outcome:?}"
        );
        let refusal = world.refusal(number).await;
        assert_told(&world, &refusal, reason, flag, target.split(':').next().unwrap());
    }
    // Nobody listens there.
    let outcome = peer.open(world.gateway, "127.0.0.2:1").await;
    assert!(
        matches!(outcome, Err(OpenError::Refused(StatusCode::SERVICE_UNAVAILABLE))),
        "{outcome:?}"
    );
    assert_told(&world, &world.refusal(5).await, "connect_failed", "UF", "refused");
    // The service's name stands for its port at this pod.
    let outcome = peer.open(world.gateway, "web.shop.svc.cluster.local:80").await;
    assert!(
        matches!(outcome, Err(OpenError::Refused(StatusCode::SERVICE_UNAVAILABLE))),
        "{outcome:?}"
    );
    let refusal = world.refusal(6).await;
    assert_eq!(text(&refusal, "dst.addr"), "127.0.0.2:8080");
}

#[tokio::test]
async fn policy_sees_who_the_certificate_says_and_denies_before_a_byte() {
    let only_client = policy("ALLOW", "{principals: [cluster.local/ns/shop/sa/client]}");
    let world = World::new(&only_client).await;
    // From the same address: it is not the address that counts.
    let (client, other) = (world.peer("client").await, world.peer("other").await);
    let outcome = other.open(world.gateway, &world.target()).await;
    assert!(
        matches!(outcome, Err(OpenError::Refused(StatusCode::UNAUTHORIZED))),
        "{outcome:?}"
    );
    let refusal = world.refusal(0).await;
    assert_told(&world, &refusal, "policy_denied", "DENY", "");
    assert_eq!(
        text(&refusal, "src.identity"),
        "spiffe://cluster.local/ns/shop/sa/other"
    );
    assert_eq!(
        text(&refusal, "src.workload"),
        "-",
        "the workload at that address is another"
    );
    assert_eq!(text(&refusal, "connection_security_policy"), "mutual_tls");
    let listener = &world.application;
    let contacted = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(contacted.is_err(), "the application has seen a denied client");
    let (_tunnel, _application) = world.connect(&client).await;
}

/// Requests that no proxy of a mesh sends, on one connection, which goes on.
#[tokio::test]
async fn what_is_not_a_connect_is_answered_and_harms_nobody() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let sender = connection(&world, &peer).await;
    let requests = [
        Request::builder().uri("http://127.0.0.2:80/"),
        Request::builder().method(Method::POST).uri("http://127.0.0.2:80/"),
        Request::builder().method(Method::CONNECT).uri("127.0.0.2"),
    ];
    for (number, request) in requests.into_iter().enumerate() {
        let mut ready = sender.clone().ready().await.unwrap();
        let (answer, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), StatusCode::BAD_REQUEST);
        assert_told(&world, &world.refusal(number).await, "handshake_failed", "DPE", "");
    }
    // A head that is larger than it may be costs its stream.
    let mut ready = sender.clone().ready().await.unwrap();
    let huge = Request::builder()
        .method(Method::CONNECT)
        .uri(world.target())
        .header("x", "y".repeat(1 << 15));
    let (answer, _) = ready.send_request(huge.body(()).unwrap(), false).unwrap();
    assert!(answer.await.map_or(true, |answer| answer.status().is_client_error()));
    let mut ready = sender.clone().ready().await.unwrap();
    let good = connect(&world.target());
    let (answer, _stream) = ready.send_request(good, false).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
}

/// A connection on which nothing is as the pool would do it.
pub async fn connection(world: &World, peer: &Peer) -> client::SendRequest<Bytes> {
    let (slot, trust) = (peer.pod.lease.slot().clone(), peer.trust.clone());
    let tls = ClientTls::new(slot, trust, [web()].into()).unwrap();
    let socket = TcpStream::connect(world.gateway).await.unwrap();
    let (stream, _) = tls.connect(socket, world.gateway.ip()).await.unwrap();
    let (sender, connection) = client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn who_opens_and_resets_without_end_is_not_served_without_end() {
    let world = World::stalled().await;
    let peer = world.peer("client").await;
    let sender = connection(&world, &peer).await;
    let open = async || {
        let mut ready = sender.clone().ready().await.unwrap();
        ready.send_request(connect(&world.target()), false).unwrap()
    };
    let served = || world.node.flows.open_connections().total() as usize - 1;
    let most = SERVED * peer.hbone.streams as usize;
    for number in 0..most {
        let (_, mut stream) = open().await;
        while served() == number {
            tokio::task::yield_now().await;
        }
        stream.send_reset(h2::Reason::CANCEL);
    }
    let error = open().await.0.await.expect_err("one more");
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    assert_eq!(served(), most);
    // They end as any that nothing can be connected for, and then there is room.
    while served() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(open().await.0.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}
