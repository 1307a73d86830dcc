//! Paths that stand for the same: written alike before they are routed, in each of Istio's modes, as by Envoy.

use serde_json::{Value, json};
use underpass_tests::{Need, Proxy, World, available};

use super::client::{Seen, ask, get};
use super::endpoint::{Endpoint, Tries};
use super::pair::{Pair, Side, envoys_config, router};

/// Paths that nobody thought of, for each mode.
const ANY: usize = 400;

/// In our words, and what Envoy's HttpConnectionManager is told.
fn modes() -> [(&'static str, Value); 4] {
    [
        ("none", json!({})),
        ("base", json!({"normalize_path": true})),
        ("merge-slashes", json!({"normalize_path": true, "merge_slashes": true})),
        (
            "decode-and-merge-slashes",
            json!({"normalize_path": true, "merge_slashes": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"}),
        ),
    ]
}

/// The port of the first mode.
const FIRST: u16 = 8080;

/// Both, with a listener for each mode.
struct Place(Pair);

impl Place {
    fn start() -> Self {
        Self(Pair::start(|side, _| yaml(side), |side, _| envoys(side), FIRST + 3))
    }

    /// Which of `paths` are treated in another way, in the mode of this place.
    fn differing(&self, mode: usize, paths: &[String]) -> Vec<String> {
        let mut differing = Vec::new();
        for path in paths {
            let request = format!("GET {path} HTTP/1.1\r\nhost: web.test\r\n\r\n");
            let [ours, envoys] = self.0.both(FIRST + mode as u16, &request);
            let is_hypers = ours.status == 400 && ours.header("server").is_none();
            // What hyper's parser does not take for a path is refused by it (`differences`).
            if is_hypers {
                continue;
            }
            let told = |seen: &Seen| {
                let line = seen.body.lines().find(|line| line.starts_with("GET "));
                (seen.status, line.unwrap_or_default().to_owned())
            };
            if told(&ours) != told(&envoys) {
                differing.push(format!(
                    "{} {path:?}: {:?}, Envoy: {:?}",
                    modes()[mode].0,
                    told(&ours),
                    told(&envoys)
                ));
            }
        }
        differing
    }
}

/// `/admin` is guarded.
fn yaml(side: &Side) -> String {
    let (mut listeners, mut tables) = (String::new(), String::new());
    for (port, (mode, _)) in (FIRST..).zip(modes()) {
        let at = side.host.at(port);
        listeners += &format!("  - {{name: {mode}, address: '{at}', protocol: http, routes: {mode}}}\n");
        tables += &format!(
            "  - {{name: {mode}, path_normalization: {mode}, virtual_hosts: [{{name: all, domains: ['*'], routes: [
      {{match: {{prefix: /admin}}, direct: {{status: 403}}}}, {{forward: {{cluster: web}}}}]}}]}}\n"
        );
    }
    let (admin, web) = (side.host.at(15000), side.web);
    format!(
        "node:\n  name: a\n  admin: '{admin}'\n  access_log: {{format: off}}\n  listeners:\n{listeners}http:\n  clusters: [{{name: web, endpoints: ['{web}']}}]\n  routes:\n{tables}"
    )
}

fn envoys(side: &Side) -> Value {
    let routes = json!([{"match": {"prefix": "/admin"}, "direct_response": {"status": 403}}, {"match": {"prefix": "/"}, "route": {"cluster": "web"}}]);
    let managers = (FIRST..).zip(modes()).map(|(port, (_, mut manager))| {
        manager["http_filters"] = json!([router()]);
        manager["route_config"] = json!({"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]});
        (side.host.at(port), manager)
    });
    envoys_config(managers.collect(), &[("web", side.web)])
}

fn thought_of() -> Vec<String> {
    let paths = [
        "/",
        "//",
        "///",
        "/a",
        "/a/",
        "/a//",
        "/a//b",
        "/./a",
        "/a/.",
        "/a/./",
        "/a/..",
        "/a/../",
        "/../a",
        "/..",
        "/.",
        "/a/../../admin",
        "/x/../admin",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/x\\..\\admin",
        "/x%2f..%2fadmin",
        "/x%2F..%5cadmin",
        "/x%5C..%5Cadmin",
        "//admin",
        "/%61dmin",
        "/%2fadmin",
        "/x/..%2fadmin",
        "/a?/../b",
        "/a//b?c//d",
        "/a%2Fb?c%2Fd",
        "/%41%7e%7E",
        "/a%",
        "/a%zz",
        "/a%2",
        "/...",
        "/a..",
        "/..a",
        "/.../x",
        "/%2e",
        "/%2e%2e",
        "/%252e%252e/x",
        "/a%2e",
        "/a/%2e%2e",
        "/a%2f%2fb",
        "/{a}",
        "/a|b",
        "/a^b",
        "/a\"b",
        "/a[b]",
        "/a;b/../c",
        "/~a",
        "/a'b",
        "/%c3%a4",
        "/a%20b",
        "/a%0ab",
        "/a%00b",
        "/a%5c",
        "/a%5c%5cb",
        "/a\\\\b",
        "/a/\\../b",
    ];
    paths.map(str::to_owned).to_vec()
}

fn any(random: &mut fastrand::Rng) -> String {
    let pieces = [
        "/", "/", "//", ".", "..", "/../", "/./", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "\\", "a", "b", "admin",
        "%41", "%7e", "%25", "%", ";", "~", "{", "|", "^", "-", "_",
    ];
    let count = random.usize(..9);
    let path: String = (0..count).map(|_| pieces[random.usize(..pieces.len())]).collect();
    let query = ["", "", "?", "?a//b/../c%2f"][random.usize(..4)];
    format!("/{path}{query}")
}

/// `HTTP_SEED=n` repeats a run.
#[test]
fn paths_are_written_as_envoy_writes_them() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::start();
    let seed = super::differential::seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut paths = thought_of();
    paths.extend((0..ANY).map(|_| any(&mut random)));
    let differing: Vec<String> = (0..modes().len())
        .flat_map(|mode| place.differing(mode, &paths))
        .collect();
    let shown: Vec<&String> = differing.iter().take(40).collect();
    assert!(
        differing.is_empty(),
        "{} of {}: {shown:#?}",
        differing.len(),
        4 * paths.len()
    );
}

/// What is guarded by its path is not come by in another writing of it.
#[test]
fn a_guarded_path_is_not_gone_around() {
    let world = World::loopback();
    let client = world.host();
    let side = Side {
        host: world.host(),
        web: Endpoint::start(&world.host(), 9001, "w", Tries::default()).address,
    };
    let file = world.directory().join("http.yaml");
    std::fs::write(&file, yaml(&side)).expect("write the configuration");
    let _proxy = Proxy::start_with_file(&world, &side.host, file);
    for (path, guarded) in [
        ("/admin", [true; 4]),
        ("/x/../admin", [false, true, true, true]),
        ("/x/%2e%2e/admin", [false, true, true, true]),
        ("//admin", [false, false, true, true]),
        ("/x%2f..%2fadmin", [false, false, false, true]),
    ] {
        for (port, guarded) in (FIRST..).zip(guarded) {
            let status = ask(&client, side.host.at(port), &get(path, "")).status;
            assert_eq!(status, if guarded { 403 } else { 200 }, "{path} at {port}");
        }
    }
}
