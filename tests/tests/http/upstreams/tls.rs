//! TLS to endpoints: what is asked for, whom is believed, what is shown.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use serde_json::{Value, json};
use underpass_tests::{Authority, Issued, Need, available, wait};

use super::place::{ClusterPair, Place, endpoints};
use super::teller::{Running, Teller};
use crate::client::Seen;

const NAME: &str = "api.test.example";

const OLD: &[&SupportedProtocolVersion] = &[&version::TLS12];

/// A server that shows `issued`, and wants a certificate that `clients` has issued.
struct Server<'a> {
    issued: &'a Issued,
    clients: Option<&'a Authority>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'a [&'a str],
}

impl<'a> Server<'a> {
    fn showing(issued: &'a Issued) -> Self {
        Self {
            issued,
            clients: None,
            versions: rustls::ALL_VERSIONS,
            alpn: &[],
        }
    }

    fn config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.versions)
            .expect("versions");
        let builder = match self.clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(&fs::read(authority.roots()).expect("roots")));
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.expect("roots"))
            }
        };
        let chain = certificates(&fs::read(&self.issued.chain).expect("a chain"));
        let key = PrivateKeyDer::from_pem_file(&self.issued.key).expect("a key");
        let mut config = builder.with_single_cert(chain, key).expect("a certificate");
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn start(&self, place: &Place) -> Running {
        let teller = Teller {
            tls: Some(self.config()),
            ..Teller::default()
        };
        teller.start(&place.world.host(), 9443)
    }
}

fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem)
        .map(|one| one.expect("PEM"))
        .collect()
}

fn authority(place: &Place, name: &str) -> Authority {
    Authority::new(&place.world.directory().join(name))
}

/// Envoy's cluster with this `UpstreamTlsContext`.
fn envoys(at: SocketAddr, sni: Option<&str>, validation: Value, certificates: Value) -> Value {
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": sni.unwrap_or_default(),
        "common_tls_context": {"validation_context": validation, "tls_certificates": certificates},
    });
    json!({"type": "STATIC", "load_assignment": endpoints(&[at]),
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}})
}

/// What a failed handshake is answered with.
fn is_tls_failure(seen: &Seen) -> bool {
    seen.status == 503 && seen.body.ends_with("reset reason: remote connection failure")
}

/// The verdict of both on the same endpoints, with the same configurations.
#[test]
fn endpoints_are_believed_and_refused_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let (ours, others) = (authority(&place, "ours"), authority(&place, "others"));
    let client = ours.issue("shop/web");
    let by_dns = Server::showing(&ours.issue_to_host(NAME)).start(&place);
    let by_star = Server::showing(&ours.issue_to_host("*.test.example")).start(&place);
    let by_uri = Server::showing(&ours.issue("shop/api")).start(&place);
    let strange = Server::showing(&others.issue_to_host(NAME)).start(&place);
    let shown_there = ours.issue_to_host(NAME);
    let mutual = Server {
        clients: Some(&ours),
        ..Server::showing(&shown_there)
    };
    let mutual = mutual.start(&place);
    let roots = ours.roots().display().to_string();
    let ca = json!({"filename": roots});
    let san = |kind: &str, matcher: Value| json!({"trusted_ca": ca, "match_typed_subject_alt_names": [{"san_type": kind, "matcher": matcher}]});
    let pair = json!([{"certificate_chain": {"filename": client.chain}, "private_key": {"filename": client.key}}]);
    let shown = format!(", certificate: {{chain: {:?}, key: {:?}}}", client.chain, client.key);
    let case = |name, at: &Running, tls: &str, validation: Value, more: (&str, Value)| ClusterPair {
        name,
        ours: format!(
            "endpoints: ['{}'], tls: {{server_name: {NAME}, roots: '{roots}', {tls}{}}}",
            at.address, more.0
        ),
        envoys: envoys(at.address, Some(NAME), validation, more.1),
    };
    let none = || ("", json!([]));
    let exact = |value: &str| json!({"exact": value});
    let clusters = [
        case("any", &by_uri, "any_name: true", json!({"trusted_ca": ca}), none()),
        case("strange", &strange, "any_name: true", json!({"trusted_ca": ca}), none()),
        case(
            "dns",
            &by_dns,
            &format!("names: [{{type: dns, exact: {NAME}}}]"),
            san("DNS", exact(NAME)),
            none(),
        ),
        case(
            "star",
            &by_star,
            &format!("names: [{{type: dns, exact: {NAME}}}]"),
            san("DNS", exact(NAME)),
            none(),
        ),
        case(
            "other",
            &by_dns,
            "names: [{type: dns, exact: web.test.example}]",
            san("DNS", exact("web.test.example")),
            none(),
        ),
        case(
            "prefix",
            &by_uri,
            "names: [{type: uri, prefix: 'spiffe://cluster.local/ns/shop/'}]",
            san("URI", json!({"prefix": "spiffe://cluster.local/ns/shop/"})),
            none(),
        ),
        case(
            "suffix",
            &by_uri,
            "names: [{type: uri, suffix: '/sa/web'}]",
            san("URI", json!({"suffix": "/sa/web"})),
            none(),
        ),
        case(
            "regex",
            &by_uri,
            "names: [{type: uri, regex: '.*/sa/(api|web)'}]",
            san("URI", json!({"safe_regex": {"regex": ".*/sa/(api|web)"}})),
            none(),
        ),
        case(
            "kind",
            &by_uri,
            "names: [{type: dns, prefix: spiffe}]",
            san("DNS", json!({"prefix": "spiffe"})),
            none(),
        ),
        case(
            "mutual",
            &mutual,
            "any_name: true",
            json!({"trusted_ca": ca}),
            (&shown, pair.clone()),
        ),
        case("unshown", &mutual, "any_name: true", json!({"trusted_ca": ca}), none()),
    ];
    let _both = place.start_both(&clusters);
    for (cluster, expected) in clusters
        .iter()
        .zip([true, false, true, true, false, true, false, true, false, true, false])
    {
        let path = format!("/{}/x", cluster.name);
        let (ours, envoys) = (place.ask(&path, ""), place.ask_envoy(&path, ""));
        assert_eq!(ours.status == 200, expected, "{}: {ours:?}", cluster.name);
        assert_eq!(ours.status, envoys.status, "{}: {ours:?}\n{envoys:?}", cluster.name);
        for name in ["x-sni", "x-certificates", "x-certificate"] {
            assert_eq!(ours.header(name), envoys.header(name), "{}", cluster.name);
        }
        // (Who shows no certificate is told so behind TLS 1.3's handshake: both see a connection that ends.)
        if !expected && cluster.name != "unshown" {
            assert!(is_tls_failure(&ours), "{}: {ours:?}", cluster.name);
            assert!(is_tls_failure(&envoys), "{}: {envoys:?}", cluster.name);
            wait::eventually(wait::SOON, "both have logged it", || {
                place.logged_by_envoy(&format!("{path} 503 UF upstream_reset_before_response_started")) == 1
                    && place.logged(&format!("{path}\"")) == 1
            });
        }
    }
    assert_eq!(place.logged(r#""response_flags":"UF""#), 4);
}

/// Without names of its own, a cluster's endpoints are verified by the name they were asked for; without roots, by the system's; and nothing less.
#[test]
fn nothing_is_left_unverified_unless_it_is_said() {
    let place = Place::new();
    let (ours, others) = (authority(&place, "ours"), authority(&place, "others"));
    let named = Server::showing(&ours.issue_to_host(NAME)).start(&place);
    let unnamed = Server::showing(&ours.issue_to_host("web.test.example")).start(&place);
    let strange = Server::showing(&others.issue_to_host(NAME)).start(&place);
    let cluster = |at: &Running, tls: &str| format!("endpoints: ['{}'], tls: {{{tls}}}", at.address);
    let roots = format!("roots: {:?}", ours.roots());
    let clusters = [
        ("named", cluster(&named, &format!("server_name: {NAME}, {roots}")), 200),
        (
            "unnamed",
            cluster(&unnamed, &format!("server_name: {NAME}, {roots}")),
            503,
        ),
        (
            "strange",
            cluster(&strange, &format!("server_name: {NAME}, {roots}")),
            503,
        ),
        ("system", cluster(&named, &format!("server_name: {NAME}")), 503),
        (
            "skipped",
            cluster(&strange, "server_name: web.test.example, insecure_skip_verify: true"),
            200,
        ),
        ("auto", cluster(&named, &roots), 503),
    ];
    let written: Vec<_> = clusters
        .iter()
        .map(|(name, fields, _)| (*name, fields.clone()))
        .collect();
    let _proxy = place.start(&place.yaml(&written, ""));
    for (name, _, status) in clusters {
        let seen = place.ask(&format!("/{name}/x"), "");
        assert_eq!(seen.status, status, "{name}: {seen:?}");
        assert_eq!(is_tls_failure(&seen), status == 503, "{name}: {seen:?}");
    }
    // Where the cluster names no server, the request does, and each has connections of its own.
    let request = |host: &str| format!("GET /auto/x HTTP/1.1\r\nhost: {host}\r\n\r\n");
    for (host, status) in [
        ("api.test.example:8443", 200),
        ("web.test.example", 503),
        ("API.test.example", 200),
    ] {
        let seen = crate::client::ask(&place.client, place.ours(), &request(host));
        assert_eq!(seen.status, status, "{host}: {seen:?}");
        if status == 200 {
            assert_eq!(seen.header("x-sni"), Some(NAME), "{host}");
        }
    }
}

#[test]
fn http2_is_spoken_with_whoever_chooses_it() {
    let place = Place::new();
    let ours = authority(&place, "ours");
    let issued = ours.issue_to_host(NAME);
    let with = |alpn: &'static [&'static str], versions| {
        let server = Server {
            alpn,
            versions,
            ..Server::showing(&issued)
        };
        server.start(&place)
    };
    let both = with(&["h2", "http/1.1"], rustls::ALL_VERSIONS);
    let old = with(&["http/1.1"], OLD);
    let none = with(&[], rustls::ALL_VERSIONS);
    let tls = format!("tls: {{server_name: {NAME}, roots: {:?}}}", ours.roots());
    let cluster = |at: &Running, protocol: &str| format!("endpoints: ['{}'], protocol: {protocol}, {tls}", at.address);
    let clusters = [
        ("both", cluster(&both, "negotiated")),
        ("old", cluster(&old, "negotiated")),
        ("none", cluster(&none, "negotiated")),
        ("one", cluster(&both, "http1")),
        ("two", cluster(&both, "http2")),
    ];
    let _proxy = place.start(&place.yaml(&clusters, ""));
    for (name, alpn) in [
        ("both", "h2"),
        ("old", "http/1.1"),
        ("none", ""),
        ("one", "http/1.1"),
        ("two", "h2"),
    ] {
        for n in 0..3 {
            let seen = place.ask(&format!("/{name}/{n}"), "");
            assert_eq!(
                (seen.status, seen.header("x-alpn")),
                (200, Some(alpn)),
                "{name}: {seen:?}"
            );
            assert_eq!(seen.header("x-path"), Some(&*format!("/{name}/{n}")));
        }
    }
    assert_eq!((old.accepted(), none.accepted()), (1, 1), "connections are used again");
}

/// Files are replaced one after the other, and looked at when connections are made.
#[test]
fn a_certificate_that_is_replaced_is_shown_from_then_on_and_a_broken_one_never() {
    let place = Place::new();
    let (ours, others) = (authority(&place, "ours"), authority(&place, "others"));
    let client = ours.issue("shop/web");
    let shown_there = ours.issue_to_host(NAME);
    let server = Server {
        clients: Some(&ours),
        ..Server::showing(&shown_there)
    };
    let server = server.start(&place);
    let shown = format!("certificate: {{chain: {:?}, key: {:?}}}", client.chain, client.key);
    let tls = format!("tls: {{server_name: {NAME}, roots: {:?}, {shown}}}", ours.roots());
    // Each request has a connection of its own.
    let fields = format!("endpoints: ['{}'], connections: {{requests: 1}}, {tls}", server.address);
    let proxy = place.start(&place.yaml(&[("api", fields.clone())], ""));
    let ask = || {
        let seen = place.ask("/api/x", "");
        assert_eq!(seen.status, 200, "{seen:?}");
        seen.header("x-certificate").map(str::to_owned)
    };
    let first = ask();
    assert_eq!(first, ask());
    fs::write(&client.chain, "no certificate").expect("write");
    wait::eventually(wait::SOON, "it is said that it can't be used", || {
        ask();
        proxy.log().contains("what was there before stays")
    });
    assert_eq!(first, ask());
    ours.issue("shop/web");
    wait::eventually(wait::SOON, "the new one is shown", || ask() != first);
    // An update that names what can't be used is refused as a whole.
    fs::write(place.world.directory().join("empty.pem"), "").expect("write");
    let broken = fields.replace(
        &ours.roots().display().to_string(),
        &place.world.directory().join("empty.pem").display().to_string(),
    );
    proxy.replace_file(&place.yaml(&[("api", broken)], ""));
    wait::eventually(wait::SOON, "it is rejected", || proxy.config_updates("rejected") == 1);
    assert!(
        proxy.log().contains("the TLS of `api` can't be used"),
        "{}",
        proxy.log()
    );
    ask();
    // Other roots: connections that were made under those before are nobody's.
    let other = fields.replace(
        &ours.roots().display().to_string(),
        &others.roots().display().to_string(),
    );
    proxy.replace_file(&place.yaml(&[("api", other.replace("requests: 1", "requests: 9"))], ""));
    wait::eventually(wait::SOON, "the endpoint is no longer believed", || {
        place.ask("/api/x", "").status == 503
    });
}

/// A connection that was made before its cluster's roots changed is not used after.
#[test]
fn a_connection_does_not_outlive_the_transport_that_it_was_made_by() {
    let place = Place::new();
    let (ours, others) = (authority(&place, "ours"), authority(&place, "others"));
    let server = Server::showing(&ours.issue_to_host(NAME)).start(&place);
    let cluster = |roots: &Authority, weight: u32| {
        format!(
            "endpoints: [{{address: '{}', weight: {weight}}}], tls: {{server_name: {NAME}, roots: {:?}}}",
            server.address,
            roots.roots()
        )
    };
    let proxy = place.start(&place.yaml(&[("api", cluster(&ours, 1))], ""));
    assert_eq!(place.ask("/api/x", "").status, 200);
    // What says nothing about the transport leaves its connections alone.
    proxy.replace_file(&place.yaml(&[("api", cluster(&ours, 2))], ""));
    wait::eventually(wait::SOON, "the update is in force", || {
        proxy.config_updates("applied") == 1
    });
    assert_eq!(place.ask("/api/x", "").status, 200);
    assert_eq!(server.accepted(), 1);
    proxy.replace_file(&place.yaml(&[("api", cluster(&others, 2))], ""));
    wait::eventually(wait::SOON, "the update is in force", || {
        proxy.config_updates("applied") == 2
    });
    let seen = place.ask("/api/x", "");
    assert!(is_tls_failure(&seen), "{seen:?}");
}

/// Who is believed no more is spoken to no more, by connections neither that are there.
#[test]
fn a_connection_does_not_outlive_the_roots_that_it_was_made_by() {
    let place = Place::new();
    let (ours, others) = (authority(&place, "ours"), authority(&place, "others"));
    let issued = ours.issue_to_host(NAME);
    let server = Server {
        alpn: &["h2", "http/1.1"],
        ..Server::showing(&issued)
    };
    let (one, two) = (server.start(&place), server.start(&place));
    let roots = place.world.directory().join("roots.pem");
    fs::copy(ours.roots(), &roots).expect("roots");
    let cluster = |at: &Running, protocol: &str| {
        format!(
            "endpoints: ['{}'], protocol: {protocol}, tls: {{server_name: {NAME}, roots: {roots:?}}}",
            at.address
        )
    };
    let clusters = [("one", cluster(&one, "http1")), ("two", cluster(&two, "http2"))];
    let _proxy = place.start(&place.yaml(&clusters, ""));
    for name in ["one", "two"] {
        for _ in 0..3 {
            assert_eq!(place.ask(&format!("/{name}/x"), "").status, 200);
        }
    }
    assert_eq!((one.accepted(), two.accepted()), (1, 1));
    fs::copy(others.roots(), &roots).expect("roots");
    for name in ["one", "two"] {
        wait::eventually(wait::SOON, "it is believed no more", || {
            is_tls_failure(&place.ask(&format!("/{name}/x"), ""))
        });
    }
    for endpoint in [&one, &two] {
        wait::eventually(
            wait::patient(std::time::Duration::from_secs(30)),
            "it is closed",
            || endpoint.open() == 0,
        );
    }
}
