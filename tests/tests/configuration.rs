//! Configuration that changes under traffic: applied whole or not at all, and never at the expense of a connection.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use underpass_tests::{Config, Host, Listen, Proxy, Server, World, is_reset, wait};

/// Issue 3: updates applied under constant load without a failed connection.
const UPDATES: u64 = 1000;
const LOAD_THREADS: usize = 2;

#[test]
fn a_bad_update_is_rejected_whole_and_says_what_to_do() {
    let place = Place::start();
    let good = place.proxy.config_text();
    let to_second = good.replace("endpoints: [shop/web-1]", "endpoints: [shop/web-2]");
    for (n, (text, words)) in bad_updates(&to_second, place.first.address()).into_iter().enumerate() {
        place.proxy.replace_file(&text);
        let what = format!("update {n} is rejected: {text}");
        wait::eventually(wait::SOON, &what, || {
            place.proxy.config_updates("rejected") == n as u64 + 1
        });
        let (dump, log) = (
            place.proxy.config_dump()["last_rejected"].to_string(),
            place.proxy.log(),
        );
        let said = &log[log.rfind("configuration update rejected").expect("the log says so")..];
        for word in words {
            assert!(dump.contains(word), "/config_dump should name {word}: {dump}");
            assert!(said.contains(word), "the log should name {word}: {said}");
        }
        assert_eq!(
            place.reaches(),
            place.first.address(),
            "the last good configuration serves"
        );
    }
    assert_eq!(place.proxy.config_updates("applied"), 0);
    place.proxy.replace_file(&to_second);
    wait::eventually(wait::SOON, "a good update is applied", || {
        place.proxy.config_updates("applied") == 1
    });
    assert_eq!(place.reaches(), place.second.address());
    assert!(
        place.proxy.config_dump()["last_rejected"].is_null(),
        "what was rejected is history"
    );
}

/// Files that are wrong, and would also move the service to the second server; the path of what is wrong, and its value.
fn bad_updates(to_second: &str, taken: SocketAddr) -> Vec<(String, Vec<&'static str>)> {
    let taken = format!("  listeners:\n  - {{name: taken, address: \"{taken}\", protocol: socks5}}\n");
    vec![
        (
            to_second.replace("name: node-a", "name: node-a\n  colour: red"),
            vec!["colour"],
        ),
        (
            to_second.replace("[shop/web-2]", "[shop/web-2, shop/web-9]"),
            vec!["services[0].endpoints[1]", "shop/web-9"],
        ),
        (format!("{to_second}\nworkloads: oops"), vec!["workloads"]),
        (
            to_second.replace("port: 80,", "port: 80808,"),
            vec!["services[0].ports[0]", "80808"],
        ),
        (
            to_second.replace("addresses: [\"127.", "addresses: [\"427."),
            vec!["workloads[0].addresses[0]", "427."],
        ),
        (
            format!("{to_second}authorization_policies:\n{BAD_POLICY}"),
            vec!["authorization_policies[0]", "10.0.0.0/33"],
        ),
        (
            to_second.replace("protocol: fixed", "protocol: fxied"),
            vec!["listeners[0]", "fxied"],
        ),
        ("{".to_owned(), vec!["line"]),
        // What the machine refuses.
        (
            to_second.replace("/access/", "/no-such-folder/"),
            vec!["access log", "/no-such-folder/"],
        ),
        (to_second.replace("  listeners:\n", &taken), vec!["taken", "in use"]),
        // What needs a restart.
        (to_second.replace(":15000\"", ":15099\""), vec!["admin"]),
    ]
}

const BAD_POLICY: &str = "- {name: p, namespace: shop, scope: NAMESPACE, \
     groups: [{rules: [{matches: [{source_ips: [10.0.0.0/33]}]}]}]}\n";

#[test]
fn all_problems_of_a_file_are_reported_by_validate_run_and_update() {
    let world = World::loopback();
    let host = world.host();
    let bad = Config::new()
        .workload("shop/web-1", host.ip(), "health: sick")
        .service(
            "shop/web",
            "vips: [10.96.0.1], ports: [{port: 80}], endpoints: [shop/nobody]",
        )
        .service(
            "shop/api",
            "vips: [10.96.0.1], ports: [{port: 80}], endpoints: [shop/nowhere]",
        );
    let healthy = bad
        .yaml(host.at(15000), &world.directory().join("log"))
        .replace("health: sick", "health: healthy");
    let file = world.directory().join("bad.yaml");
    std::fs::write(&file, healthy).expect("write");
    for command in ["validate", "run"] {
        let mut process = Proxy::command(&world, &host, &[command, "--config", &file.display().to_string()]);
        assert!(!process.wait(wait::SOON).success(), "{command} fails");
        let output = process.output();
        for path in [
            "services[0].endpoints[0]",
            "services[1].endpoints[0]",
            "shop/nobody",
            "shop/nowhere",
            "10.96.0.1",
        ] {
            assert!(output.contains(path), "{command} should name {path}: {output}");
        }
    }
    std::fs::write(
        &file,
        Config::new().yaml(host.at(15000), &world.directory().join("log")),
    )
    .expect("write");
    let mut validate = Proxy::command(&world, &host, &["validate", "--config", &file.display().to_string()]);
    assert!(validate.wait(wait::SOON).success(), "{}", validate.output());
}

#[test]
fn listeners_come_go_and_change_while_their_connections_stay() {
    let place = Place::start();
    let mut kept = place.client.connect(place.proxy_host.at(15001)).expect("connect");
    assert_eq!(Server::greeting(&mut kept).expect("a greeting"), place.first.address());

    let added = place.proxy_host.at(15002);
    assert!(place.client.connect(added).is_err(), "not there yet");
    let service = "web.shop.svc.cluster.local:80";
    let both = place
        .config("shop/web-1")
        .listener("second", added, Listen::fixed(service));
    place.proxy.apply(&both);
    let mut stream = place.client.connect(added).expect("the new listener is there");
    assert_eq!(
        Server::greeting(&mut stream).expect("a greeting"),
        place.first.address()
    );

    // The same address, another destination.
    let changed = place
        .config("shop/web-1")
        .listener("second", added, Listen::fixed(place.second.address()));
    place.proxy.apply(&changed);
    let mut changed = place.client.connect(added).expect("the listener is still there");
    assert_eq!(
        Server::greeting(&mut changed).expect("a greeting"),
        place.second.address()
    );

    place.proxy.apply(&place.config("shop/web-1"));
    wait::eventually(wait::SOON, "the removed listener refuses", || {
        place.client.connect(added).is_err()
    });
    for stream in [&mut kept, &mut stream, &mut changed] {
        Server::echo(stream, b"still here").expect("a connection outlives its listener");
    }
}

#[test]
fn node_settings_change_without_a_restart() {
    let place = Place::start();
    let keepalive = "keepalive: {time: 60s, interval: 5s, probes: 3}";
    place.proxy.apply(&place.config("shop/web-1").node(keepalive));
    assert_eq!(place.reaches(), place.first.address());
    let beyond = place.proxy_host.at(15002);
    let to_a_stranger = place
        .config("shop/web-1")
        .listener("beyond", beyond, Listen::fixed(place.client.at(9)));
    place
        .proxy
        .apply(&to_a_stranger.clone().node("unknown_destination: deny"));
    let (source, _stream) = place.client.dial(beyond);
    place
        .proxy
        .access_line(source)
        .assert_reason("unknown_destination", "NR");
    place.proxy.apply(&to_a_stranger);
    let (source, _stream) = place.client.dial(beyond);
    place.proxy.access_line(source).assert_reason("connect_failed", "UF");
}

#[test]
fn a_file_rewritten_in_place_or_replaced_through_a_link_is_read() {
    let place = Place::start();
    let (one, two) = (
        place.proxy.config_text(),
        place.proxy.config_text().replace("[shop/web-1]", "[shop/web-2]"),
    );
    place.proxy.rewrite_file(&two);
    wait::eventually(wait::SOON, "a rewritten file is read", || {
        place.reaches() == place.second.address()
    });
    // As a Kubernetes ConfigMap is mounted: config.yaml -> ..data/config.yaml, ..data -> a folder that is swapped by a rename.
    let folder = place.world.directory().join("mounted");
    for (version, text) in [("..1", &one), ("..2", &two)] {
        std::fs::create_dir_all(folder.join(version)).expect("a folder");
        std::fs::write(folder.join(version).join("config.yaml"), text).expect("a file");
    }
    std::os::unix::fs::symlink("..1", folder.join("..data")).expect("a link");
    std::os::unix::fs::symlink("..data/config.yaml", folder.join("config.yaml")).expect("a link");
    let Place {
        world,
        client,
        proxy_host,
        first,
        second,
        proxy,
    } = place;
    drop(proxy);
    let proxy = Proxy::start_with_file(&world, &proxy_host, folder.join("config.yaml"));
    let place = Place {
        world,
        client,
        proxy_host,
        first,
        second,
        proxy,
    };
    assert_eq!(place.reaches(), place.first.address());
    std::os::unix::fs::symlink("..2", folder.join("..data_tmp")).expect("a link");
    std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("swap");
    wait::eventually(wait::SOON, "a swapped ConfigMap is read", || {
        place.reaches() == place.second.address()
    });
}

#[test]
fn no_connection_fails_while_a_thousand_updates_are_applied() {
    let place = Place::start();
    let (stop, served) = (wait::Stop::default(), AtomicU64::new(0));
    thread::scope(|scope| {
        let running = stop.when_dropped();
        let load: Vec<_> = (0..LOAD_THREADS)
            .map(|_| scope.spawn(|| place.load(&stop, &served)))
            .collect();
        let mut last = place.first.address();
        for update in 1..=UPDATES {
            let (endpoint, server) = if update % 2 == 0 {
                ("shop/web-1", &place.first)
            } else {
                ("shop/web-2", &place.second)
            };
            place.proxy.replace_config(&place.config(endpoint));
            // In force when new connections reach the other endpoint.
            wait::eventually(wait::SOON, "the update is in force", || {
                last = place.reaches();
                last == server.address()
            });
        }
        drop(running);
        for thread in load {
            thread.join().expect("no connection fails");
        }
    });
    wait::eventually(wait::SOON, "every update is counted", || {
        place.proxy.config_updates("applied") == UPDATES
    });
    assert_eq!(place.proxy.config_updates("rejected"), 0);
    let served = served.load(Ordering::SeqCst);
    assert!(
        served >= UPDATES,
        "only {served} connections while {UPDATES} updates were applied: no load"
    );
}

struct Place {
    world: World,
    client: Host,
    proxy_host: Host,
    first: Server,
    second: Server,
    proxy: Proxy,
}

impl Place {
    fn start() -> Self {
        let world = World::loopback();
        let [proxy_host, client, first, second] = [(); 4].map(|()| world.host());
        let [first, second] = [first, second].map(|host| Server::start(&host, 8080));
        let proxy = Proxy::start(&world, &proxy_host, &config(&proxy_host, &first, &second, "shop/web-1"));
        Self {
            world,
            client,
            proxy_host,
            first,
            second,
            proxy,
        }
    }

    /// A service `web` with one endpoint of two, behind a fixed listener.
    fn config(&self, endpoint: &str) -> Config {
        config(&self.proxy_host, &self.first, &self.second, endpoint)
    }

    /// The server that a new connection reaches.
    fn reaches(&self) -> SocketAddr {
        let mut stream = self
            .client
            .connect(self.proxy_host.at(15001))
            .expect("the proxy accepts");
        Server::greeting(&mut stream).expect("a greeting")
    }

    /// Opens, uses and closes connections one after the other.
    fn load(&self, stop: &wait::Stop, served: &AtomicU64) {
        while !stop.is_due() {
            let mut stream = self.client.connect(self.proxy_host.at(15001)).expect("connect");
            let server = Server::greeting(&mut stream).expect("a greeting");
            assert!([self.first.address(), self.second.address()].contains(&server));
            Server::echo(&mut stream, b"a message").expect("an echo");
            stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
            let rest = stream.read(&mut [0]);
            assert!(!matches!(&rest, Err(e) if is_reset(e)), "reset after {server}'s echo");
            assert_eq!(rest.expect("EOF"), 0);
            served.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn config(proxy: &Host, first: &Server, second: &Server, endpoint: &str) -> Config {
    Config::new()
        .node("timeouts: {drain: 20s}")
        .listener("relay", proxy.at(15001), Listen::fixed("web.shop.svc.cluster.local:80"))
        .workload("shop/web-1", first.address().ip(), "")
        .workload("shop/web-2", second.address().ip(), "")
        .service(
            "shop/web",
            format!("ports: [{{port: 80, target_port: 8080}}], endpoints: [{endpoint}]"),
        )
}

#[test]
fn a_pod_needs_no_file_and_what_its_environment_lacks_is_said() {
    let world = World::loopback();
    let host = world.host();
    let validate = |role: &str, variables: &[(&str, &str)]| {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let arguments = ["validate", "--role", role].map(str::to_owned);
        let mut process = Proxy::command_in(&world, &host, &arguments, variables);
        (process.wait(wait::SOON).success(), process.output())
    };
    let pod = [
        ("POD_NAMESPACE", "mesh"),
        ("SERVICE_ACCOUNT", "way"),
        ("XDS_ADDRESS", "istiod-a.mesh.svc:15012"),
    ];
    let (valid, output) = validate("waypoint", &pod);
    assert!(valid && output.contains("istiod-a.mesh.svc:15012"), "{output}");
    let (valid, output) = validate("waypoint", &pod[..1]);
    assert!(!valid && output.contains("SERVICE_ACCOUNT"), "{output}");
    let (valid, output) = validate("node", &[("POD_IP", "here")]);
    assert!(
        !valid && output.contains("POD_IP: \"here\": is not an IP address"),
        "{output}"
    );
    let (valid, output) = validate("standalone", &pod);
    assert!(!valid && output.contains("--config FILE"), "{output}");
}
