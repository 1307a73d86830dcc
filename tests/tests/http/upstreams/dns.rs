//! Endpoints that are known by name.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use serde_json::json;
use underpass_tests::{Host, Need, available, wait};

use super::place::{ClusterPair, Place};
use super::teller::{Running, Teller};

/// What a server says of every name.
#[derive(Clone, Debug, Default)]
struct Says {
    addresses: Vec<IpAddr>,
    ttl: u32,
    /// RFC 1035's RCODE: 2 SERVFAIL, 3 NXDOMAIN.
    code: u8,
    is_mute: bool,
    /// The first label of a name of which nothing is said.
    is_silent_of: &'static str,
    /// What is said of IPv6.
    v6: Vec<Ipv6Addr>,
    asked: u32,
}

/// A DNS server of a test.
struct Names {
    at: SocketAddr,
    says: Arc<Mutex<Says>>,
}

impl Names {
    fn start(host: &Host) -> Self {
        let at = host.at(5353);
        let socket = UdpSocket::bind(at).expect("a socket");
        let says = Arc::new(Mutex::new(Says::default()));
        let told = says.clone();
        thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let mut says = told.lock().expect("no test panics with it");
                says.asked += 1;
                if let Some(answer) = answer(&query[..length], &says).filter(|_| !says.is_mute) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { at, says }
    }

    fn says(&self) -> MutexGuard<'_, Says> {
        self.says.lock().expect("no test panics with it")
    }

    fn say(&self, endpoints: &[&Running]) {
        let mut says = self.says();
        says.addresses = endpoints.iter().map(|endpoint| endpoint.address.ip()).collect();
        says.ttl = 1;
        says.code = 0;
    }

    fn asked(&self) -> u32 {
        self.says().asked
    }
}

/// RFC 1035, section 4: the question again, and the addresses of its type (A; AAAA, RFC 3596).
fn answer(query: &[u8], says: &Says) -> Option<Vec<u8>> {
    let labels = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(12..12 + labels + 5)?;
    let is_of = |kind: u8| question[labels + 1..labels + 3] == [0, kind] && says.code == 0;
    if !says.is_silent_of.is_empty() && question[1..].starts_with(says.is_silent_of.as_bytes()) {
        return None;
    }
    let v4 = says
        .addresses
        .iter()
        .filter(|_| is_of(1))
        .filter_map(|address| match address {
            IpAddr::V4(v4) => Some((1, v4.octets().to_vec())),
            IpAddr::V6(_) => None,
        });
    let v6 = says
        .v6
        .iter()
        .filter(|_| is_of(28))
        .map(|v6| (28, v6.octets().to_vec()));
    let addresses: Vec<_> = v4.chain(v6).collect();
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | says.code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    answer.extend(question);
    for (kind, octets) in addresses {
        answer.extend([0xc0, 12, 0, kind, 0, 1]);
        answer.extend(says.ttl.to_be_bytes());
        answer.extend([0, octets.len() as u8]);
        answer.extend(octets);
    }
    Some(answer)
}

fn clusters(names: &Names) -> Vec<ClusterPair> {
    let ours = |kind: &str| {
        format!(
            "balancing: round-robin, endpoints: ['web.test.example:9001'], dns: {{kind: {kind}, refresh: 1s, servers: ['{}']}}",
            names.at
        )
    };
    let envoys = |kind: &str| {
        let resolver = json!({"socket_address": {"address": names.at.ip().to_string(), "port_value": names.at.port()}});
        let endpoint =
            json!({"endpoint": {"address": {"socket_address": {"address": "web.test.example", "port_value": 9001}}}});
        json!({"type": kind, "dns_lookup_family": "V4_ONLY", "respect_dns_ttl": true, "dns_refresh_rate": "1s",
            "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint]}]},
            "typed_dns_resolver_config": {"name": "envoy.network.dns_resolver.cares", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [resolver], "dns_resolver_options": {"no_default_search_domain": true}}}})
    };
    vec![
        ClusterPair {
            name: "strict",
            ours: ours("strict"),
            envoys: envoys("STRICT_DNS"),
        },
        ClusterPair {
            name: "logical",
            ours: ours("logical"),
            envoys: envoys("LOGICAL_DNS"),
        },
    ]
}

/// Who answers, in as many requests as find each of a few.
fn answerers(place: &Place, at: SocketAddr, name: &str) -> BTreeSet<String> {
    let ask = || crate::client::ask(&place.client, at, &crate::client::get(&format!("/{name}/x"), ""));
    let answers = (0..6).map(|_| ask());
    answers
        .map(|seen| match seen.header("x-server") {
            Some(server) => server.to_owned(),
            None => format!("{} {}", seen.status, seen.body),
        })
        .collect()
}

#[test]
fn endpoints_follow_what_dns_says_as_with_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let [a, b, c] = [(), (), ()].map(|()| Teller::default().start(&place.world.host(), 9001));
    names.say(&[&a, &b]);
    let _both = place.start_both(&clusters(&names));
    let ip = |endpoint: &Running| endpoint.address.ip().to_string();
    let expect = |what: &str, name: &str, expected: &[String]| {
        let expected: BTreeSet<String> = expected.iter().cloned().collect();
        for (who, at) in [("we", place.ours()), ("Envoy", place.envoys())] {
            wait::eventually(wait::SOON, &format!("{what}: {who}, {name}"), || {
                answerers(&place, at, name) == expected
            });
        }
    };
    expect("two addresses", "strict", &[ip(&a), ip(&b)]);
    expect("two addresses", "logical", &[ip(&a)]);
    names.say(&[&c, &b]);
    expect("other addresses", "strict", &[ip(&b), ip(&c)]);
    expect("other addresses", "logical", &[ip(&c)]);
    // A failure is no answer.
    names.says().code = 2;
    let asked = names.asked();
    wait::eventually(wait::SOON, "they are asked again", || names.asked() > asked + 8);
    expect("SERVFAIL", "strict", &[ip(&b), ip(&c)]);
    names.say(&[&a]);
    expect("one address", "strict", &[ip(&a)]);
    names.says().code = 3;
    expect("NXDOMAIN", "strict", &["503 no healthy upstream".to_owned()]);
    names.say(&[&a]);
    expect("an address again", "strict", &[ip(&a)]);
    names.says().is_mute = true;
    expect("no answer", "strict", &[ip(&a)]);
}

/// Whoever answers for a name may not lead clients to where they could not go by themselves.
#[test]
fn a_name_does_not_lead_into_the_proxy() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    names.says().addresses = vec![place.us.ip()];
    let fields = format!(
        "endpoints: ['own.test.example:15000'], dns: {{refresh: 1s, servers: ['{}']}}",
        names.at
    );
    let _proxy = place.start(&place.yaml(&[("own", fields)], ""));
    wait::eventually(wait::SOON, "it is known", || place.ask("/own/ready", "").status != 503);
    let seen = place.ask("/own/ready", "");
    assert_eq!((seen.status, &*seen.body), (403, "RBAC: access denied"));
}

/// What a change of the file leaves as it is keeps its endpoints: no request finds none.
#[test]
fn an_update_keeps_the_addresses_that_are_known() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let a = Teller::default().start(&place.world.host(), 9001);
    names.say(&[&a]);
    names.says().ttl = 3000;
    let fields = |timeout: &str, refresh: &str, more: &str| {
        format!(
            "connect_timeout: {timeout}, endpoints: ['web.test.example:9001'{more}], dns: {{refresh: {refresh}, servers: ['{}']}}",
            names.at
        )
    };
    let proxy = place.start(&place.yaml(&[("web", fields("1s", "5s", ""))], ""));
    wait::eventually(wait::SOON, "it is known", || place.ask("/web/x", "").status == 200);
    let asked = names.asked();
    names.says().is_mute = true;
    for n in 2..5 {
        proxy.replace_file(&place.yaml(&[("web", fields(&format!("{n}s"), "5s", ""))], ""));
        wait::eventually(wait::SOON, "the update is in force", || {
            proxy.config_updates("applied") == n - 1
        });
        for _ in 0..5 {
            assert_eq!(place.ask("/web/x", "").status, 200);
        }
    }
    assert_eq!(names.asked(), asked, "an answer holds as long as it says");
    // What is asked in another way, or for more, is asked anew; and as long as there is no answer, the last one stays.
    for (n, refresh, more) in [(4, "1s", ""), (5, "1s", ", 'more.test.example:9001'"), (6, "2s", "")] {
        proxy.replace_file(&place.yaml(&[("web", fields("1s", refresh, more))], ""));
        wait::eventually(wait::SOON, "the update is in force", || {
            proxy.config_updates("applied") == n
        });
        let asked = names.asked();
        assert_eq!(place.ask("/web/x", "").status, 200, "{n}");
        wait::eventually(wait::SOON, "it is asked anew", || names.asked() > asked);
        names.says().code = 2;
        names.says().is_mute = false;
        let asked = names.asked();
        wait::eventually(wait::SOON, "it has not been answered", || names.asked() > asked + 4);
        assert_eq!(place.ask("/web/x", "").status, 200, "{n}");
        names.says().is_mute = true;
    }
}

/// One name of a cluster of which nobody says anything holds up none of the others.
#[test]
fn a_name_without_an_answer_holds_up_no_other() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let a = Teller::default().start(&place.world.host(), 9001);
    names.say(&[&a]);
    names.says().is_silent_of = "mute";
    let fields = format!(
        "endpoints: ['web.test.example:9001', 'mute.test.example:9001'], dns: {{refresh: 1s, servers: ['{}']}}",
        names.at
    );
    let proxy = place.start(&place.yaml(&[("web", fields)], ""));
    wait::eventually(wait::SOON, "it is known", || place.ask("/web/x", "").status == 200);
    assert!(
        !proxy.log().contains("DNS can't be asked"),
        "the other is waited for: {}",
        proxy.log()
    );
}

/// Which addresses of a name with both kinds are endpoints, as `dns_lookup_family` says it.
#[test]
fn the_family_of_addresses_is_chosen_as_with_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let a = Teller::default().start(&place.world.host(), 9001);
    // On loopback there is one address of IPv6 only, where whoever listens is told from the others by the port.
    names.say(&[&a]);
    names.says().v6 = vec![Ipv6Addr::LOCALHOST];
    let families = [
        ("auto", "AUTO"),
        ("v4-only", "V4_ONLY"),
        ("v6-only", "V6_ONLY"),
        ("v4-preferred", "V4_PREFERRED"),
        ("all", "ALL"),
    ];
    let pairs: Vec<ClusterPair> = families
        .iter()
        .map(|(ours, envoys)| {
            let mut pair = clusters(&names).swap_remove(0);
            pair.name = ours;
            pair.ours = pair.ours.replace("dns: {", &format!("dns: {{family: {ours}, "));
            pair.envoys["dns_lookup_family"] = json!(envoys);
            pair
        })
        .collect();
    let _both = place.start_both(&pairs);
    let v4 = a.address.ip().to_string();
    for (name, _) in families {
        let reaches = |at| {
            let seen =
                (0..8).map(|_| crate::client::ask(&place.client, at, &crate::client::get(&format!("/{name}/x"), "")));
            let seen: BTreeSet<(u16, String)> = seen
                .map(|seen| (seen.status, seen.header("x-server").unwrap_or("-").to_owned()))
                .collect();
            seen
        };
        // Nobody listens at `[::1]:9001`: those that go there are refused.
        let (there, refused) = ((200, v4.clone()), (503, "-".to_owned()));
        let expected: BTreeSet<_> = match name {
            "auto" | "v6-only" => [refused].into(),
            "all" => [there, refused].into(),
            _ => [there].into(),
        };
        for (who, at) in [("we", place.ours()), ("Envoy", place.envoys())] {
            wait::eventually(wait::SOON, &format!("{name}: {who}"), || reaches(at) == expected);
        }
    }
}

/// A service that names another of its hosts each time: connections to those that it has named before wait for their next turn, as long as any may.
#[test]
fn connections_of_a_logical_cluster_outlive_the_answer_that_led_to_them() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let [a, b] = [(), ()].map(|()| Teller::default().start(&place.world.host(), 9001));
    names.say(&[&a]);
    let fields = |kind: &str| {
        format!(
            "idle_timeout: 30s, connections: {{lifetime: 20s}}, endpoints: ['web.test.example:9001'], dns: {{kind: {kind}, refresh: 1s, servers: ['{}']}}",
            names.at
        )
    };
    let _proxy = place.start(&place.yaml(&[("strict", fields("strict")), ("logical", fields("logical"))], ""));
    for name in ["strict", "logical"] {
        wait::eventually(wait::SOON, "it is known", || {
            place.ask(&format!("/{name}/x"), "").status == 200
        });
    }
    assert_eq!(a.open(), 2);
    names.say(&[&b]);
    for name in ["strict", "logical"] {
        wait::eventually(wait::SOON, "the other is", || {
            place.ask(&format!("/{name}/x"), "").header("x-server") == Some(&b.address.ip().to_string())
        });
    }
    // Old connections have been looked through when that of the strict cluster is gone.
    wait::eventually(wait::SOON, "the strict one's is closed", || a.open() < 2);
    assert_eq!(a.open(), 1);
    names.say(&[&a]);
    wait::eventually(wait::SOON, "the first is again", || {
        place.ask("/logical/x", "").header("x-server") == Some(&a.address.ip().to_string())
    });
    assert_eq!((a.open(), a.accepted()), (1, 2));
}

/// The host that a request is for, at a proxy whose cluster asks for it.
fn ask_for(place: &Place, host: &str) -> crate::client::Seen {
    let request = format!("GET /host/x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    crate::client::ask(&place.client, place.ours(), &request)
}

/// Envoy's dynamic forward proxy.
#[test]
fn a_host_is_asked_for_when_a_request_is_for_it() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let [a, b] = [(), ()].map(|()| Teller::default().start(&place.world.host(), 9001));
    names.say(&[&a]);
    names.says().ttl = 3600;
    let fields = format!(
        "endpoints_from: host, dns: {{family: v4-only, servers: ['{}']}}",
        names.at
    );
    let _proxy = place.start(&place.yaml(&[("host", fields)], ""));
    assert_eq!(names.asked(), 0, "nobody wants one");
    let server = |host: &str| ask_for(&place, host).header("x-server").map(str::to_owned);
    let ip = |endpoint: &Running| Some(endpoint.address.ip().to_string());
    for host in [
        "web.test.example:9001",
        "WEB.test.example:9001",
        "web.test.example:9001",
    ] {
        assert_eq!(server(host), ip(&a));
    }
    assert_eq!(names.asked(), 1, "the answer holds, for all who write the name");
    names.say(&[&b]);
    assert_eq!(server("other.test.example:9001"), ip(&b));
    assert_eq!(server("web.test.example:9001"), ip(&a));
    assert_eq!(
        server(&format!("{}:9001", a.address.ip())),
        ip(&a),
        "an address stands for itself"
    );
    // Another answer is asked for when one holds no more.
    wait::eventually(wait::SOON, "the new address", || {
        names.say(&[&a]);
        server("other.test.example:9001") == ip(&a)
    });
    names.says().code = 3;
    let seen = ask_for(&place, "none.test.example:9001");
    assert_eq!((seen.status, &*seen.body), (503, "DNS resolution failure"));
    let log = place.world.directory().join("access.log");
    let line = wait::some(wait::SOON, "its line", || {
        let text = std::fs::read_to_string(&log).ok()?;
        let mut lines = text.lines();
        lines
            .find(|line| line.contains("dns_resolution_failure"))
            .map(str::to_owned)
    });
    assert!(line.contains("\"response_flags\":\"DF\""), "{line}");
}

#[test]
fn those_who_want_a_host_at_once_ask_once() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let a = Teller::default().start(&place.world.host(), 9001);
    names.say(&[&a]);
    names.says().ttl = 3600;
    names.says().is_mute = true;
    let fields = format!(
        "endpoints_from: host, dns: {{family: v4-only, servers: ['{}']}}",
        names.at
    );
    let _proxy = place.start(&place.yaml(&[("host", fields)], ""));
    thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| ask_for(&place, "web.test.example:9001").status))
            .collect();
        wait::eventually(wait::SOON, "it is asked for", || names.asked() > 0);
        names.says().is_mute = false;
        asking
            .into_iter()
            .for_each(|one| assert_eq!(one.join().expect("a client"), 200));
    });
    // The question that nobody heard was asked again.
    assert!(names.asked() <= 3, "{} questions", names.asked());
}

#[test]
fn a_host_does_not_lead_into_the_proxy_or_to_the_link() {
    let place = Place::new();
    let names = Names::start(&place.world.host());
    let fields = format!("endpoints_from: host, dns: {{servers: ['{}']}}", names.at);
    let _proxy = place.start(&place.yaml(&[("host", fields)], ""));
    names.says().addresses = vec![place.us.ip()];
    for host in [
        "own.test.example:15000".to_owned(),
        format!("{}:15000", place.us.ip()),
        place.ours().to_string(),
        "169.254.169.254:80".to_owned(),
        "[::ffff:169.254.169.254]:80".to_owned(),
        "[fe80::1]:80".to_owned(),
    ] {
        let seen = ask_for(&place, &host);
        assert_eq!((seen.status, &*seen.body), (403, "RBAC: access denied"), "{host}");
    }
    // No address of anybody.
    assert_eq!(ask_for(&place, "0.0.0.0:80").status, 503);
}
