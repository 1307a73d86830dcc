//! Servers that are slow, down, or say what can't be: nothing passes but where the configuration lets it.

use super::*;

/// A proxy by itself, and its servers.
struct Alone {
    side: Side,
    client: Host,
    proxy: Proxy,
    _runtime: Runtime,
    _world: World,
}

impl Alone {
    fn start(change: impl Fn(String) -> String) -> Self {
        let world = World::loopback();
        let runtime = Runtime::new().expect("a runtime");
        let side = Side::start(&world, &runtime);
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, change(yaml(&world, &side))).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &side.host, file),
            client: world.host(),
            side,
            _runtime: runtime,
            _world: world,
        }
    }

    fn ask(&self, table: usize, asked: &str) -> Seen {
        let request = format!("GET /protected/ HTTP/1.1\r\nhost: web.test\r\nx-ask: {asked}\r\n\r\n");
        ask(&self.client, self.side.at(table), &request)
    }

    fn count(&self, provider: &str, result: &str) -> u64 {
        let labels = [("provider", provider), ("result", result)];
        self.proxy.metrics().sum("underpass_ext_authz_checks_total", &labels)
    }
}

const HTTP: usize = 0;
const HTTP_ALL: usize = 1;
const GRPC: usize = 2;
const GRPC_BODY: usize = 3;

#[test]
fn a_server_that_says_nothing_lets_nothing_pass_unless_it_is_to_fail_open() {
    let alone = Alone::start(|yaml| {
        yaml.replace("timeout: 2s", "timeout: 300ms")
            .replace("timeout: 1s", "timeout: 300ms")
    });
    for asked in ["slow", "close", "garbage", "500", "broken", "long", "many"] {
        let (closed, open) = (alone.ask(HTTP_ALL, asked), alone.ask(HTTP, asked));
        // A head that is too long is none, whatever its status.
        assert_eq!((closed.status, &*closed.body), (403, ""), "{asked}");
        assert_eq!(open.status, 200, "{asked}");
        assert!(!open.body.contains("alice"), "{asked}");
    }
    for asked in [
        "slow",
        "close",
        "garbage",
        "500",
        "compressed",
        "truncated",
        "nothing",
        "unavailable",
        "late-error",
        "long",
    ] {
        let (closed, open) = (alone.ask(GRPC, asked), alone.ask(GRPC_BODY, asked));
        assert_eq!((closed.status, &*closed.body), (403, ""), "{asked}");
        assert_eq!(open.status, 200, "{asked}");
    }
    assert_eq!(alone.ask(4, "").status, 502, "a cluster without endpoints");
    for (provider, result, count) in [
        ("authz-http-all", "error", 7),
        ("authz-http", "failure_mode_allowed", 7),
        ("authz-grpc", "error", 10),
        ("authz-grpc-body", "failure_mode_allowed", 10),
        ("void", "error", 1),
    ] {
        assert_eq!(alone.count(provider, result), count, "{provider} {result}");
    }
    // It asks again, and the connections are in order.
    assert_eq!((alone.ask(HTTP_ALL, "").status, alone.ask(GRPC, "").status), (200, 200));
    assert_eq!(
        (
            alone.count("authz-http-all", "allowed"),
            alone.count("authz-grpc", "allowed")
        ),
        (1, 1)
    );
}

/// Not even where it fails open: that a server asks for what can't be is no failure to say something.
#[test]
fn changes_that_no_request_can_have_let_nothing_pass() {
    let alone = Alone::start(|yaml| yaml);
    for asked in ["smuggle", "many", "many-told"] {
        for table in [GRPC, GRPC_BODY] {
            let seen = alone.ask(table, asked);
            assert_eq!((seen.status, &*seen.body), (500, ""), "{asked}");
        }
    }
    assert_eq!(alone.count("authz-grpc", "invalid"), 3);
}

/// Nor is it a failure of the server's that a client can't be asked about.
#[test]
fn a_client_does_not_make_a_server_fail_open() {
    let alone = Alone::start(|yaml| {
        yaml.replace(
            "operation: {paths: [/protected/*, /nowhere*]}",
            "operation: {ports: ['8080']}",
        )
        .replace(
            "[{match: {path: /nowhere-else}",
            "[{match: {connect: true}, forward: {cluster: web, connect: tcp}}, {match: {path: /nowhere-else}",
        )
    });
    let tunnel = ask(
        &alone.client,
        alone.side.at(HTTP),
        "CONNECT web.test:80 HTTP/1.1\r\nhost: web.test:80\r\n\r\n",
    );
    assert_eq!(tunnel.status, 503);
    assert!(alone.side.heard().is_empty());
}

/// Envoy does as it is told here, and its endpoint waits for a body that never comes.
#[test]
fn a_server_does_not_say_how_a_request_is_framed() {
    let alone = Alone::start(|yaml| yaml);
    let seen = alone.ask(GRPC, "frame");
    assert_eq!(seen.status, 200);
    assert!(
        !seen.body.contains("transfer-encoding") && !seen.body.contains("content-length"),
        "{}",
        seen.body
    );
}

#[test]
fn a_body_is_held_until_the_server_has_spoken_and_then_goes_on_whole() {
    let alone = Alone::start(|yaml| {
        yaml.replace(
            "max_request_bytes: 1024, allow_partial_message: true",
            "max_request_bytes: 1024",
        )
    });
    let post = |table: usize, body: &str, asked: &str| {
        let head = format!("POST /protected/ HTTP/1.1\r\nhost: web.test\r\nx-ask: {asked}\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
        ask(&alone.client, alone.side.at(table), &request)
    };
    // No more than may be, exactly.
    let seen = post(HTTP, &"x".repeat(1024), "allow");
    assert!(seen.status == 200 && seen.body.contains("body 1024: xxx"), "{seen:?}");
    assert!(alone.side.heard()[0].ends_with(&"x".repeat(1024)));
    let seen = post(HTTP, &"x".repeat(1025), "allow");
    assert_eq!((seen.status, &*seen.body), (413, "Payload Too Large"));
    assert_eq!(seen.header("connection"), Some("close"));
    assert!(alone.side.heard().is_empty(), "nobody is asked about what is too long");
    // The beginning will do: the server has it, the endpoint all.
    let long: String = (0..200_000).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
    let seen = post(GRPC_BODY, &long, "");
    assert!(seen.status == 200 && seen.body.ends_with(&long), "{}", seen.status);
    let heard = alone.side.heard();
    assert!(
        heard[0].contains("x-envoy-auth-partial-body: true") && heard[0].ends_with(&format!("raw {:?}", &long[..64])),
        "{heard:?}"
    );
    let seen = post(GRPC_BODY, &long, "deny");
    assert_eq!(seen.status, 403);
}

/// Its bytes are no body that anybody is told of.
#[test]
fn a_connection_that_changes_its_protocol_is_asked_about_before() {
    let alone = Alone::start(|yaml| {
        yaml.replace(
            "forward: {cluster: web}",
            "forward: {cluster: web, upgrades: [websocket]}",
        )
    });
    for (table, asked, status) in [
        (HTTP, "allow", 101),
        (HTTP, "deny", 403),
        (GRPC_BODY, "", 101),
        (GRPC_BODY, "deny", 403),
    ] {
        let mut client = crate::client::Client::connect(&alone.client, alone.side.at(table));
        let head = "GET /protected/ HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-do: websocket\r\n";
        client.send(format!("{head}x-ask: {asked}\r\n\r\n").as_bytes());
        assert_eq!(client.answer(false).status, status, "{asked}");
        let heard = alone.side.heard();
        assert!(heard.len() == 1 && !heard[0].contains("partial-body"), "{heard:?}");
        if status == 101 {
            client.send(b"echo");
            assert_eq!(client.bytes(4).as_deref(), Some(&b"echo"[..]));
        }
    }
}

/// A client that does not send its body waits at its own cost, and no server is asked meanwhile.
#[test]
fn a_body_that_does_not_come_is_not_waited_for_forever() {
    let alone = Alone::start(|yaml| {
        yaml.replace(
            "forward: {cluster: web}",
            "forward: {cluster: web, idle_timeout: 300ms}",
        )
    });
    let request = "POST /protected/ HTTP/1.1\r\nhost: web.test\r\ncontent-length: 10\r\n\r\nhalf";
    let seen = ask(&alone.client, alone.side.at(HTTP), request);
    assert_eq!((seen.status, &*seen.body), (408, "stream timeout"));
    assert!(alone.side.heard().is_empty());
}

/// One connection, and requests behind each other: what was refused leaves nothing behind that is taken for a request.
#[test]
fn a_refused_body_is_no_request() {
    let alone = Alone::start(|yaml| yaml);
    let mut client = crate::client::Client::connect(&alone.client, alone.side.at(HTTP));
    let inner = "GET /free HTTP/1.1\r\nhost: web.test\r\n\r\n";
    let length = inner.len();
    client.send(
        format!(
            "POST /protected/ HTTP/1.1\r\nhost: web.test\r\nx-ask: deny\r\ncontent-length: {length}\r\n\r\n{inner}"
        )
        .as_bytes(),
    );
    assert_eq!(client.answer(false).status, 403);
    client.send(b"GET /nothing HTTP/1.1\r\nhost: unknown.test\r\n\r\n");
    assert_eq!(client.answer(false).status, 404, "the body was served");
    // What was not read is not served either.
    let mut client = crate::client::Client::connect(&alone.client, alone.side.at(HTTP_ALL));
    client.send(
        format!(
            "POST /protected/ HTTP/1.1\r\nhost: web.test\r\nx-ask: deny\r\ncontent-length: {length}\r\n\r\n{inner}"
        )
        .as_bytes(),
    );
    assert_eq!(client.answer(false).status, 403);
    assert_ne!(client.answer(false).status, 200);
}
