//! Who is admitted, and what is said of those who are not.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::TlsConnector;
use underpass_certs::{ClientTls, HandshakeError, PeerError, ServerTls, Trust, VerifiedPeer, WorkloadCertificate};
use underpass_config::Identity;

use crate::authority::{Authority, HOUR, Paper, Pod, identity, trust_of};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

type Outcome = Result<VerifiedPeer, HandshakeError>;

/// What client and server make of each other. The client reads, so that it learns what the server has against it.
async fn shake_hands(client: &ClientTls, server: &ServerTls) -> (Outcome, Outcome) {
    let (ours, theirs) = duplex(1 << 16);
    let client = async {
        let (mut stream, peer) = client.connect(ours, SERVER).await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map_err(HandshakeError::Io)?;
        Ok(peer)
    };
    let server = async {
        let (mut stream, peer) = server.accept(theirs).await?;
        stream.write_all(b"x").await.map_err(HandshakeError::Io)?;
        stream.flush().await.map_err(HandshakeError::Io)?;
        Ok(peer)
    };
    tokio::join!(client, server)
}

fn client_side(pod: &Pod, trust: &Arc<Trust>, expected: &[Identity]) -> ClientTls {
    ClientTls::new(pod.lease.slot().clone(), trust.clone(), expected.into()).unwrap()
}

fn server_side(pod: &Pod, trust: &Arc<Trust>) -> ServerTls {
    ServerTls::new(pod.lease.slot().clone(), trust.clone()).unwrap()
}

#[tokio::test]
async fn each_side_knows_the_other_by_a_post_quantum_handshake() {
    let authority = Authority::new();
    let trust = trust_of(&[&authority], &[]);
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let (client, server) = (Pod::of(&authority, &web).await, Pod::of(&authority, &db).await);
    let client = client_side(&client, &trust, &[identity("shop", "other"), db.clone()]);
    let server = server_side(&server, &trust);

    let (ours, theirs) = duplex(1 << 16);
    let (connected, accepted) = tokio::join!(client.connect(ours, SERVER), server.accept(theirs));
    let ((stream, peer), (_accepted, other)) = (connected.unwrap(), accepted.unwrap());
    assert_eq!((peer.identity(), other.identity()), (&db, &web));
    let connection = stream.get_ref().1;
    assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
}

/// Every way in which a server may not be the one that was asked for.
#[tokio::test]
async fn a_server_that_is_not_the_one_expected_is_refused_with_the_reason() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let now = SystemTime::now();
    let good = Paper::of(&db, now, HOUR);
    let expired = Paper {
        not_before: now - 3 * HOUR,
        not_after: now - HOUR,
        ..good.clone()
    };
    let future = Paper {
        not_before: now + HOUR,
        not_after: now + 2 * HOUR,
        ..good.clone()
    };
    let revoked = Paper {
        serial: 7,
        ..good.clone()
    };
    let client = Pod::of(&authority, &web).await;
    let trust = trust_of(&[&authority], &[]);
    trust
        .configure(vec![authority.root.clone()], &[authority.revoke(7)])
        .unwrap();

    let rows = [
        (&authority, &good, &db, None),
        (&authority, &good, &web, Some("peer_identity")),
        (&stranger, &good, &db, Some("peer_untrusted")),
        (&authority, &expired, &db, Some("peer_expired")),
        (&authority, &future, &db, Some("peer_not_yet_valid")),
        (&authority, &revoked, &db, Some("peer_revoked")),
    ];
    for (issuer, paper, expected, reason) in rows {
        // The server believes that it is two hours ago, or its store would not even show an expired certificate.
        let server = Pod::with(&db, issuer.issue(&db, paper), || SystemTime::now() - 2 * HOUR).await;
        let client = client_side(&client, &trust, std::slice::from_ref(expected));
        let (found, _) = shake_hands(&client, &server_side(&server, &trust)).await;
        assert_eq!(found.as_ref().err().map(HandshakeError::reason), reason, "{found:?}");
    }

    // Nobody expected is nobody admitted, and nobody trusted is nobody believed.
    let server = Pod::of(&authority, &db).await;
    let server = server_side(&server, &trust);
    let (nobody, _) = shake_hands(&client_side(&client, &trust, &[]), &server).await;
    assert_eq!(nobody.unwrap_err().reason(), "peer_identity");
    let empty = trust_of(&[], &[]);
    let (untrusted, _) = shake_hands(&client_side(&client, &empty, &[db]), &server).await;
    assert_eq!(untrusted.unwrap_err().reason(), "peer_untrusted");
}

#[tokio::test]
async fn a_client_of_another_mesh_or_past_its_time_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let db = identity("shop", "db");
    let foreign: Identity = "spiffe://other.domain/ns/shop/sa/web".parse().unwrap();
    let web = identity("shop", "web");
    let trust = trust_of(&[&authority], &["old.domain"]);
    let server = Pod::of(&authority, &db).await;
    let server = server_side(&server, &trust);
    let alias: Identity = "spiffe://old.domain/ns/shop/sa/web".parse().unwrap();
    let now = SystemTime::now();
    let expired = |identity: &Identity| Paper {
        not_before: now - 3 * HOUR,
        not_after: now - HOUR,
        ..Paper::of(identity, now, HOUR)
    };
    let rows = [
        (&authority, &web, Paper::of(&web, now, HOUR), None),
        (&authority, &alias, Paper::of(&alias, now, HOUR), None),
        (
            &authority,
            &foreign,
            Paper::of(&foreign, now, HOUR),
            Some("peer_trust_domain"),
        ),
        (&stranger, &web, Paper::of(&web, now, HOUR), Some("peer_untrusted")),
        (&authority, &web, expired(&web), Some("peer_expired")),
    ];
    for (issuer, identity, paper, reason) in rows {
        let client = Pod::with(identity, issuer.issue(identity, &paper), || {
            SystemTime::now() - 2 * HOUR
        })
        .await;
        let client = client_side(&client, &trust, std::slice::from_ref(&db));
        let (seen, found) = shake_hands(&client, &server).await;
        assert_eq!(found.as_ref().err().map(HandshakeError::reason), reason, "{found:?}");
        // The client of TLS 1.3 is done before the server has seen its certificate; it gets no byte all the same.
        assert_eq!(seen.is_ok(), reason.is_none(), "{seen:?}");
    }
}

/// Identities of an alias are the mesh's own, for both sides.
#[tokio::test]
async fn a_server_of_an_alias_is_the_one_expected() {
    let authority = Authority::new();
    let old: Identity = "spiffe://old.domain/ns/shop/sa/db".parse().unwrap();
    let (client, server) = (
        Pod::of(&authority, &identity("shop", "web")).await,
        Pod::of(&authority, &old).await,
    );
    let db = [identity("shop", "db")];
    for (aliases, reason) in [(&["old.domain"][..], None), (&[], Some("peer_identity"))] {
        let trust = trust_of(&[&authority], aliases);
        let server = server_side(&server, &trust_of(&[&authority], &["old.domain"]));
        let (found, _) = shake_hands(&client_side(&client, &trust, &db), &server).await;
        assert_eq!(found.as_ref().err().map(HandshakeError::reason), reason, "{found:?}");
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_or_without_tls_is_refused() {
    let authority = Authority::new();
    let trust = trust_of(&[&authority], &[]);
    let server = Pod::of(&authority, &identity("shop", "db")).await;
    let server = server_side(&server, &trust);

    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let anonymous = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    let (ours, theirs) = duplex(1 << 16);
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(anonymous));
    let (_, refused) = tokio::join!(connector.connect(name, ours), server.accept(theirs));
    assert_eq!(refused.err().unwrap().reason(), "peer_without_certificate");

    let (mut ours, theirs) = duplex(1 << 16);
    ours.write_all(b"GET / HTTP/1.1\r\nhost: db\r\n\r\n").await.unwrap();
    let refused = server.accept(theirs).await.err().unwrap();
    assert_eq!(refused.reason(), "tls", "{refused}");
}

/// Believes everybody.
#[derive(Debug)]
struct Credulous;

mod credulous {
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::UnixTime;
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    use super::{CertificateDer, Credulous, ServerName};

    impl ServerCertVerifier for Credulous {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }
}

/// Both during a rotation of the root: who trusts both admits both, and who no longer trusts the old one does not.
#[tokio::test]
async fn a_handshake_uses_the_roots_and_revocations_of_its_moment() {
    let (old, new) = (Authority::new(), Authority::new());
    let db = identity("shop", "db");
    let (client, server) = (Pod::of(&old, &identity("shop", "web")).await, Pod::of(&old, &db).await);
    let trust = trust_of(&[&old], &[]);
    let (client, server) = (client_side(&client, &trust, &[db]), server_side(&server, &trust));
    let revoked = [old.revoke(1)];
    let steps: [(Vec<CertificateDer<'static>>, &[_], Option<&str>); 4] = [
        (vec![old.root.clone()], &[], None),
        (vec![old.root.clone(), new.root.clone()], &[], None),
        (vec![old.root.clone()], &revoked, Some("peer_revoked")),
        (vec![new.root.clone()], &[], Some("peer_untrusted")),
    ];
    for (roots, revocations, reason) in steps {
        trust.configure(roots, revocations).unwrap();
        let (found, _) = shake_hands(&client, &server).await;
        assert_eq!(found.as_ref().err().map(HandshakeError::reason), reason, "{found:?}");
    }
    assert!(trust.configure(vec![CertificateDer::from(vec![1, 2, 3])], &[]).is_err());
    assert_eq!(trust.roots(), 1, "what can't be used changes nothing");
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_not_shown() {
    let authority = Authority::new();
    let trust = trust_of(&[&authority], &[]);
    let db = identity("shop", "db");
    let paper = Paper {
        not_before: SystemTime::now() - 3 * HOUR,
        not_after: SystemTime::now() - HOUR,
        ..Paper::of(&db, SystemTime::now(), HOUR)
    };
    thread_local! {
        static IS_NOW: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    let clock = || SystemTime::now() - if IS_NOW.get() { Duration::ZERO } else { 2 * HOUR };
    let pod = Pod::with(&db, authority.issue(&db, &paper), clock).await;
    IS_NOW.set(true);
    let (ours, theirs) = duplex(1 << 16);
    drop(ours);
    let refused = server_side(&pod, &trust).accept(theirs).await.err().unwrap();
    assert_eq!(refused.reason(), "no_certificate", "{refused}");
}

#[test]
fn a_certificate_is_for_exactly_one_identity_and_its_key() {
    let authority = Authority::new();
    let db = identity("shop", "db");
    let now = SystemTime::now();
    let made = |names: &[&str]| {
        let paper = Paper {
            names: names.iter().map(ToString::to_string).collect(),
            ..Paper::of(&db, now, HOUR)
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = paper.params().signed_by(&key, &authority.issuer).unwrap();
        (certificate.der().clone(), key)
    };
    let signing = |key: &rcgen::KeyPair| {
        let encoded = rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialized_der().into());
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&encoded).unwrap()
    };
    let ours = "spiffe://cluster.local/ns/shop/sa/db";
    let rows: [(&[&str], &str); 5] = [
        (&[ours], ""),
        (&[], "0 URI names"),
        (&[ours, ours], "2 URI names"),
        (&["https://example.com"], "is for `https://example.com`"),
        (
            &["spiffe://cluster.local/ns/shop/sa/web"],
            "not for spiffe://cluster.local/ns/shop/sa/db",
        ),
    ];
    for (names, expected) in rows {
        let (certificate, key) = made(names);
        let error = WorkloadCertificate::new(&db, vec![certificate], signing(&key), Vec::new()).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.contains(expected) && error.is_empty() == expected.is_empty(),
            "{names:?}: {error}"
        );
    }
    let ((certificate, _), (_, other)) = (made(&[ours]), made(&[ours]));
    let error = WorkloadCertificate::new(&db, vec![certificate], signing(&other), Vec::new()).unwrap_err();
    assert!(error.to_string().contains("not for this key"), "{error}");
    let shown = format!("{:?}", authority.issue(&db, &Paper::of(&db, now, HOUR)));
    assert!(
        shown.contains("shop/sa/db") && !shown.to_lowercase().contains("key"),
        "{shown}"
    );
}

#[test]
fn reasons_are_told_in_words() {
    let error = PeerError::SomebodyElse {
        found: identity("shop", "web"),
        expected: vec![identity("shop", "db"), identity("shop", "cache")],
    };
    assert_eq!(
        error.to_string(),
        "the peer is spiffe://cluster.local/ns/shop/sa/web, not spiffe://cluster.local/ns/shop/sa/db or \
         spiffe://cluster.local/ns/shop/sa/cache"
    );
}

/// A handshake's verdict is of its moment; whoever keeps the connection asks again.
#[tokio::test]
async fn what_was_believed_is_believed_until_it_expires_is_revoked_or_its_root_goes() {
    let authority = Authority::new();
    let trust = trust_of(&[&authority], &[]);
    let (web, db) = (identity("shop", "web"), identity("shop", "db"));
    let (client, server) = (Pod::of(&authority, &web).await, Pod::of(&authority, &db).await);
    let client = client_side(&client, &trust, &[db]);
    let (server_found, client_found) = shake_hands(&client, &server_side(&server, &trust)).await;
    let now = SystemTime::now();
    for peer in [server_found.unwrap(), client_found.unwrap()] {
        let reason = |now| trust.still_believes(&peer, now).err().map(|error| error.reason());
        let roots = || vec![authority.root.clone()];
        trust.configure(roots(), &[]).unwrap();
        assert_eq!(reason(now), None);
        assert_eq!(reason(peer.not_after() + Duration::from_secs(1)), Some("peer_expired"));
        let generation = trust.generation();
        trust.configure(roots(), &[authority.revoke(1)]).unwrap();
        assert_eq!(reason(now), Some("peer_revoked"));
        assert_eq!(
            reason(peer.not_after() + HOUR),
            Some("peer_revoked"),
            "the worse of the two"
        );
        trust.configure(roots(), &[authority.revoke(2)]).unwrap();
        assert_eq!(reason(now), None);
        trust.configure(vec![Authority::new().root], &[]).unwrap();
        assert_eq!(reason(now), Some("peer_untrusted"));
        assert_eq!(trust.generation(), generation + 3);
    }
}

#[tokio::test]
async fn who_follows_what_is_trusted_is_not_told_of_what_is_as_it_was() {
    let authority = Authority::new();
    let trust = trust_of(&[&authority], &[]);
    let list = authority.revoke(1);
    let configure = || {
        trust
            .configure(vec![authority.root.clone()], std::slice::from_ref(&list))
            .unwrap()
    };
    configure();
    let before = trust.generation();
    configure();
    assert_eq!(trust.generation(), before);
}

#[tokio::test]
async fn a_certificate_of_ours_that_was_revoked_is_known_to_be() {
    let authority = Authority::new();
    let trust = trust_of(&[&authority], &[]);
    let web = identity("shop", "web");
    let own = authority.issue(&web, &Paper::of(&web, SystemTime::now(), HOUR));
    assert!(!trust.has_revoked(&own));
    trust
        .configure(vec![authority.root.clone()], &[authority.revoke(1)])
        .unwrap();
    assert!(trust.has_revoked(&own));
}
