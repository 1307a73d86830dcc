//! What an operator is shown: routes, clusters and keys, with what has become of requests; and nothing secret.

use serde_json::Value;
use underpass_tests::{Proxy, World, wait};

use super::client::{Client, ask, get};
use super::endpoint::{Endpoint, Tries};

/// Stands wherever a configuration may have a secret.
const SECRET: &str = "c2VjcmV0LXNlY3JldA";

struct Place {
    client: underpass_tests::Host,
    us: underpass_tests::Host,
    proxy: Proxy,
    world: World,
    good: String,
    bad: String,
}

impl Place {
    fn start() -> Self {
        let world = World::loopback();
        let (client, us) = (world.host(), world.host());
        let [good, bad] =
            [world.host(), world.host()].map(|host| Endpoint::start(&host, 9001, "e", Tries::default()).address);
        let nobody = world.host().at(9);
        let yaml = format!(
            "node:
  name: a
  admin: '{}'
  access_log: {{format: off}}
  listeners: [{{name: front, address: '{}', protocol: http, routes: t}}]
http:
  clusters:
  - name: web
    balancing: round-robin
    endpoints: [{{address: '{good}', weight: 2}}, '{bad}']
    outliers: {{consecutive_5xx: 2, max_ejection_percent: 50, base_ejection_time: 60s}}
    limits: {{connections: 7, retry_budget: {{percent: 30, minimum: 4}}}}
  - {{name: keys, endpoints: ['{nobody}']}}
  routes:
  - name: t
    local_rate_limit: {{max_tokens: 1000, fill_interval: 1s}}
    request_authentication:
    - jwt_rules:
      - {{issuer: inline, jwks: '{{\"keys\": [{{\"kty\": \"oct\", \"kid\": \"k1\", \"k\": \"{SECRET}\"}}]}}'}}
      - {{issuer: remote, jwks_uri: 'http://keys.test/jwks?token={SECRET}', cluster: keys, timeout: 1s}}
    authorization:
    - {{name: p, action: DENY, rules: [{{to: [{{operation: {{paths: [/denied]}}}}]}}]}}
    virtual_hosts:
    - name: all
      domains: ['*.test', web.example]
      request_headers: {{set: {{x-key: {SECRET}}}}}
      routes:
      - {{name: private, match: {{prefix: /private, headers: {{x-token: {SECRET}}}}}, direct: {{status: 418, body: {SECRET}}}}}
      - {{name: split, match: {{path: /split}}, forward: {{clusters: [{{cluster: web, weight: 1}}, {{cluster: keys, weight: 3}}]}}}}
      - {{name: web, forward: {{cluster: web, retry: {{on: [5xx], retries: 1}}}}}}
",
            us.at(15000),
            us.at(8080)
        );
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            client,
            us,
            world,
            good: good.to_string(),
            bad: bad.to_string(),
        }
    }

    fn ask(&self, request: &str) -> u16 {
        ask(&self.client, self.us.at(8080), request).status
    }

    fn shown(&self, path: &str) -> Value {
        let answer = self.proxy.request("GET", path);
        assert_eq!(answer.status, 200);
        assert!(!answer.body.contains(SECRET), "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).expect("JSON")
    }

    /// What `underpass COMMAND` prints.
    fn printed(&self, command: &str) -> String {
        let admin = self.proxy.admin().to_string();
        let mut process = Proxy::command(&self.world, &self.us, &[command, "--admin", &admin]);
        let status = process.wait(wait::SOON);
        let output = process.output();
        assert!(status.success() && !output.contains(SECRET), "{output}");
        output
    }
}

fn at<'v>(list: &'v Value, key: &str, value: &str) -> &'v Value {
    let found = list.as_array().expect("a list").iter().find(|one| one[key] == value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list:#}"))
}

#[test]
fn routes_are_shown_with_what_became_of_their_requests() {
    let place = Place::start();
    for _ in 0..3 {
        assert_eq!(place.ask(&get("/", "")), 200);
    }
    assert_eq!(place.ask(&get("/", "x-do: 404\r\n")), 404);
    // Tried twice.
    assert_eq!(place.ask(&get("/", "x-do: 500\r\n")), 500);
    assert_eq!(place.ask(&get("/private", &format!("x-token: {SECRET}\r\n"))), 418);
    let tables = wait::some(wait::SOON, "the requests are counted", || {
        let tables = place.shown("/routes");
        let web = at(&tables[0]["virtual_hosts"][0]["routes"], "name", "web");
        (web["counted"]["requests"] == 5).then(|| tables.clone())
    });
    let table = at(&tables, "table", "t");
    assert_eq!(table["listeners"], serde_json::json!(["front"]));
    let kinds: Vec<&str> = table["filters"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["local_rate_limit", "jwt", "rbac"]);
    let host = &table["virtual_hosts"][0];
    assert_eq!(host["domains"], serde_json::json!(["*.test", "web.example"]));
    let web = at(&host["routes"], "name", "web");
    let counted = &web["counted"];
    assert_eq!(counted["by_code"], serde_json::json!({"200": 3, "404": 1, "500": 1}));
    assert_eq!((&counted["retries"], &web["counted_with"]), (&1.into(), &0.into()));
    let private = at(&host["routes"], "name", "private");
    assert_eq!(
        (&private["match"], &private["counted"]["requests"]),
        (&"prefix /private, header x-token".into(), &1.into())
    );
    let printed = place.printed("routes");
    assert!(
        printed.contains("policies: DENY, 1; dry run 0") && printed.contains("web 1, keys 3"),
        "{printed}"
    );
    assert!(
        printed.lines().any(|line| line.contains("200 3, 404 1, 500 1")),
        "{printed}"
    );
}

#[test]
fn clusters_are_shown_with_their_endpoints_limits_and_who_is_ejected() {
    let place = Place::start();
    // Whoever answers 500 twice in a row is ejected: the one whose turn it is.
    let mut client = Client::connect(&place.client, place.us.at(8080));
    let ejected = |clusters: &Value| at(clusters, "name", "web")["outliers"]["ejected"] == 1;
    wait::eventually(wait::SOON, "one is ejected", || {
        client.send(get("/", "x-do: 500\r\n").as_bytes());
        client.answer(false);
        ejected(&place.shown("/clusters"))
    });
    // One request that stays.
    let mut slow = Client::connect(&place.client, place.us.at(8080));
    slow.send(get("/", "x-do: pause\r\n").as_bytes());
    slow.bytes(20).expect("the head");
    let clusters = wait::some(wait::SOON, "one request is open, and one connection idle", || {
        let clusters = place.shown("/clusters");
        let web = at(&clusters, "name", "web");
        (web["limits"]["requests"]["used"] == 1).then(|| clusters.clone())
    });
    let web = at(&clusters, "name", "web");
    assert_eq!(
        (&web["protocol"], &web["balancing"], &web["discovery"]),
        (&"http1".into(), &"round-robin".into(), &"static".into())
    );
    let limits = &web["limits"];
    assert_eq!(
        (&limits["connections"]["limit"], &limits["requests"]["limit"]),
        (&7.into(), &1024.into())
    );
    assert_eq!(
        limits["retries"]["budget"],
        serde_json::json!({"percent": 30, "minimum": 4})
    );
    assert_eq!(limits["retries"]["limit"], 4, "the least that a budget gives");
    let connections = limits["connections"]["used"].as_u64().expect("a number");
    let endpoints: Vec<&Value> = [&place.good, &place.bad]
        .map(|address| at(&web["endpoints"], "address", address))
        .to_vec();
    let sum = |field: &dyn Fn(&Value) -> u64| endpoints.iter().map(|endpoint| field(endpoint)).sum::<u64>();
    let idle = sum(&|endpoint| endpoint["connections"]["idle"].as_u64().expect("a number"));
    let requests = sum(&|endpoint| endpoint["requests"].as_u64().expect("a number"));
    assert_eq!((requests, connections), (1, idle + 1), "{clusters:#}");
    let weights: Vec<u64> = endpoints.iter().filter_map(|one| one["weight"].as_u64()).collect();
    assert_eq!(weights, [2, 1]);
    let out: Vec<&&Value> = endpoints.iter().filter(|one| one["health"] == "ejected").collect();
    assert_eq!(out.len(), 1);
    let standing = &out[0]["outliers"];
    assert_eq!(standing["ejections"], 1);
    assert!(
        standing["ejection_left_ms"]
            .as_u64()
            .is_some_and(|left| (1..=60_000).contains(&left))
    );
    assert_eq!(web["outliers"]["found"]["CONSECUTIVE_5XX"]["enforced"], 1);
    let printed = place.printed("clusters");
    assert!(
        printed.contains("requests 1/1024") && printed.contains("budget 30 %, at least 4"),
        "{printed}"
    );
    assert!(
        printed.contains("ejected 1, CONSECUTIVE_5XX")
            && printed.contains("(enforced 1)")
            && printed.contains("back in"),
        "{printed}"
    );
}

#[test]
fn keys_are_shown_by_their_names_with_why_there_are_none() {
    let place = Place::start();
    let keys = wait::some(wait::SOON, "the server of keys was asked", || {
        let keys = place.shown("/keys");
        at(&keys, "issuer", "remote")["remote"]["failure"]
            .is_string()
            .then(|| keys.clone())
    });
    let inline = at(&keys, "issuer", "inline");
    assert_eq!(
        inline["keys"],
        serde_json::json!([{"kid": "k1", "alg": "", "kind": "oct"}])
    );
    assert_eq!(
        (&inline["state"], &inline["tables"]),
        (&"in-force".into(), &serde_json::json!(["t"]))
    );
    let remote = at(&keys, "issuer", "remote");
    assert_eq!(
        (&remote["state"], &remote["remote"]["path"]),
        (&"none-yet".into(), &"/jwks".into())
    );
    assert!(remote["remote"]["next"].is_string() && remote["remote"]["fetched"].is_null());
    let printed = place.printed("keys");
    assert!(
        printed.contains("k1 (oct)") && printed.contains("none yet") && printed.contains("failed at"),
        "{printed}"
    );
}
