//! The examples do what their comments say.

use std::path::Path;

use underpass_tests::{Host, Proxy, World, wait};

use super::client::{ask, get};
use super::endpoint::{Endpoint, Heard, Tries};
use super::tracing::collector::Collector;
use super::tracing::messages::texts;

/// An example that runs, at this test's addresses: 127.0.0.1:9001 and 127.0.0.1:9002 are two endpoints.
struct Example {
    client: Host,
    us: Host,
    heard: [Heard; 2],
    proxy: Proxy,
    _world: World,
}

impl Example {
    fn start(name: &str) -> Self {
        Self::start_with(name, |_, yaml| yaml)
    }

    /// One that knows others, whose addresses `edit` writes into it.
    fn start_with(name: &str, edit: impl FnOnce(&World, String) -> String) -> Self {
        let world = World::loopback();
        let (client, us) = (world.host(), world.host());
        let heard = [Heard::default(), Heard::default()];
        let [one, two] = [("one", &heard[0]), ("two", &heard[1])].map(|(name, heard)| {
            Endpoint::heard(&world.host(), 9001, name, Tries::default(), heard.clone())
                .address
                .to_string()
        });
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
        let yaml = std::fs::read_to_string(file).expect("the example");
        let admin = format!("  name: laptop\n  admin: '{}'\n", us.at(15000));
        let yaml = yaml
            .replace("127.0.0.1:8080", &us.at(8080).to_string())
            .replace("127.0.0.1:9001", &one)
            .replace("127.0.0.1:9002", &two)
            .replace("  name: laptop\n", &admin);
        let yaml = edit(&world, yaml);
        let file = world.directory().join(name);
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            client,
            us,
            heard,
            _world: world,
        }
    }
}

#[test]
fn the_mirror_is_asked_what_production_is_asked() {
    let example = Example::start("mirror.yaml");
    let seen = ask(&example.client, example.us.at(8080), &get("/a?b", ""));
    assert_eq!((seen.status, seen.header("x-endpoint")), (200, Some("one")));
    let copy = wait::some(wait::SOON, "the mirror is asked", || {
        example.heard[1].lock().expect("no panic").pop()
    });
    assert!(
        copy.contains("GET /a?b HTTP/1.1\n") && copy.contains("host: web.test-shadow\n"),
        "{copy}"
    );
    wait::eventually(wait::SOON, "it is counted", || {
        let labels = [("cluster", "next"), ("result", "answered")];
        example
            .proxy
            .metrics()
            .sum("underpass_http_mirrored_requests_total", &labels)
            == 1
    });
}

#[test]
fn routes_do_what_their_example_says() {
    let example = Example::start("routes.yaml");
    let ask = |request: &str| ask(&example.client, example.us.at(8080), request);
    let wish = "origin: https://shop.example.com\r\naccess-control-request-method: PUT\r\n";
    let preflight = ask(&get("/api/", wish).replacen("GET", "OPTIONS", 1));
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-methods")),
        (200, Some("GET,PUT"))
    );
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        Some("https://shop.example.com")
    );
    // Of its virtual host.
    assert_eq!(preflight.header("access-control-max-age"), Some("3600"));
    assert!(preflight.header("x-endpoint").is_none(), "the endpoint was asked");
    let actual = ask(&get("/api/", "origin: https://a.shop.example.com\r\nx-account: 7\r\n"));
    assert_eq!(
        (
            actual.header("access-control-allow-credentials"),
            actual.header("access-control-expose-headers")
        ),
        (Some("true"), Some("x-served-by"))
    );
    let client = format!("x-client: {} by HTTP/1.1\n", example.client.ip());
    assert!(
        actual.body.contains(&client) && actual.body.contains("x-user: 7\n"),
        "{actual:?}"
    );
    assert!(actual.body.contains("x-peer: -\n"), "{actual:?}");
    assert!(
        actual
            .header("x-went")
            .is_some_and(|went| went.starts_with("200 - at ")),
        "{actual:?}"
    );
    assert!(
        actual
            .header("x-served-by")
            .is_some_and(|served| served.ends_with(":9001"))
    );
    assert_eq!(ask(&get("/x/..//admin", "")).status, 403);
    assert_eq!(
        ask(&get("/staging/", "x-envoy-fault-abort-request: 503\r\n")).status,
        503
    );
    assert_eq!(ask(&get("/staging/", "")).status, 200);
}

#[test]
fn policies_do_what_their_example_says() {
    let example = Example::start("authorization.yaml");
    let ask = |path: &str, fields: &str| ask(&example.client, example.us.at(8080), &get(path, fields));
    let gold = "x-tenant: gold\r\n";
    assert_eq!(ask("/", "").status, 403);
    assert_eq!(ask("/", gold).status, 200);
    assert_eq!(ask("/x/../admin", gold).status, 403);
    assert_eq!(ask("//admin/x", gold).body, "RBAC: access denied");
    wait::eventually(wait::SOON, "what would have been done is counted", || {
        let labels = [("policy", "none"), ("would", "allow")];
        example
            .proxy
            .metrics()
            .sum("underpass_authorization_dry_run_total", &labels)
            == 4
    });
}

#[test]
fn traces_and_logs_do_what_their_example_says() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut collector = None;
    let example = Example::start_with("tracing.yaml", |world, yaml| {
        let started = collector.insert(Collector::start(runtime.handle(), &world.host()));
        yaml.replace("127.0.0.1:4317", &started.grpc.to_string())
    });
    let collector = collector.expect("it was started");
    let ask = |fields: &str| ask(&example.client, example.us.at(8080), &get("/x", fields));
    let seen = ask("x-tenant: gold\r\nuser-agent: me\r\nb3: 0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1\r\n");
    assert_eq!(
        seen.header("x-envoy-decorator-operation"),
        Some("web.shop.svc.cluster.local:80/*")
    );
    assert_eq!(ask("x-do: 500\r\nuser-agent: other\r\n").status, 500);
    wait::eventually(wait::SOON, "all are told of", || {
        collector.spans_of("me").len() == 2
            && collector.spans_of("other").len() == 2
            && collector.told().logs.len() == 1
    });
    let spans = collector.spans_of("me");
    let tags: Vec<_> = spans.iter().map(|span| texts(&span.attributes)).collect();
    assert!(
        tags.iter()
            .all(|tags| tags["env"] == "test" && tags["tenant"] == "gold"),
        "{tags:?}"
    );
    for told in [
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-",
        "b3: 0af7651916cd43dd8448eb211c80319c-",
    ] {
        assert!(seen.body.contains(told), "{seen:?}");
    }
}

#[test]
fn tokens_do_what_their_example_says() {
    let example = Example::start("tokens.yaml");
    let text = example.proxy.config_text();
    let (_, token) = text.split_once("TOKEN=").expect("the example has one");
    let token = token.lines().next().expect("a line");
    let ask = |fields: &str| ask(&example.client, example.us.at(8080), &get("/x", fields));
    assert_eq!(ask("").status, 403);
    let refused = ask("authorization: Bearer x\r\n");
    assert_eq!(refused.status, 401);
    assert!(
        refused
            .body
            .starts_with("Jwt is not in the form of Header.Payload.Signature"),
        "{refused:?}"
    );
    for field in [
        format!("authorization: Bearer {token}\r\n"),
        format!("cookie: session={token}\r\n"),
    ] {
        let seen = ask(&field);
        assert!(seen.status == 200 && seen.body.contains("x-user: alice\n"), "{seen:?}");
    }
}
