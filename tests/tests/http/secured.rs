//! Tokens, rules, pages of other origins and paths that stand for others, all at once; and routes that have something else in the place of filters: as by Envoy.

use std::collections::BTreeMap;

use fastrand::Rng;
use serde_json::{Value, json};
use underpass_tests::{Need, Proxy, World, available, wait};

use super::client::{Seen, ask, get};
use super::differences::without_the_incidental;
use super::differential::seed;
use super::endpoint::{Endpoint, Tries};
use super::pair::{Pair, Side, envoys_config, router};
use super::tokens::{FIRST, now};
use underpass_tests::tokens::{By, Issuer};

/// Requests that nobody thought of.
const ANY: usize = 1200;
const PORT: u16 = 8080;

/// Nobody without a token but to `/public`, nobody to `/admin` but admins, and no DELETE without a token; `/open` is everybody's, `/own` has rules of its own,
/// `/few` a limit, and `/host` is a virtual host whose routes have no tokens but for one.
fn yaml(side: &Side, keys: &str) -> String {
    format!(
        r#"node:
  name: a
  admin: '{admin}'
  access_log: {{format: off}}
  listeners: [{{name: in, address: '{at}', protocol: http, routes: t}}]
http:
  clusters: [{{name: web, endpoints: ['{web}']}}]
  routes:
  - name: t
    path_normalization: decode-and-merge-slashes
    request_authentication: [{{jwt_rules: [{{issuer: '{FIRST}', jwks: '{keys}', forward_original_token: true}}]}}]
    authorization:
    - {{name: admin, namespace: n, action: DENY, rules: [{{to: [{{operation: {{paths: [/admin, /admin/*]}}}}], when: [{{key: "request.auth.claims[groups]", not_values: [admin]}}]}},
        {{to: [{{operation: {{methods: [DELETE]}}}}], from: [{{source: {{not_request_principals: ["*"]}}}}]}}]}}
    - {{name: some, namespace: n, action: ALLOW, rules: [{{from: [{{source: {{request_principals: ["{FIRST}/*"]}}}}]}}, {{to: [{{operation: {{paths: [/public, /public/*]}}}}]}}]}}
    virtual_hosts:
    - name: all
      domains: [web.test]
      cors: {{allow_origins: ['http://a.test', {{prefix: 'http://b.'}}], allow_methods: [GET, PUT], allow_headers: [x-a], expose_headers: [x-told], max_age: 9s, allow_credentials: true, forward_not_matching_preflights: false}}
      routes:
      - {{match: {{prefix: /open}}, forward: {{cluster: web}}, filters: {{off: [request_authentication, authorization]}}}}
      - {{match: {{prefix: /own}}, forward: {{cluster: web}}, filters: {{authorization: [{{name: own, namespace: n, action: DENY, rules: [{{to: [{{operation: {{paths: ['*/no']}}}}]}}]}}]}}}}
      - {{match: {{prefix: /few}}, forward: {{cluster: web}}, filters: {{off: [authorization], local_rate_limit: {{max_tokens: 3, fill_interval: 3600s}}}}}}
      - {{match: {{prefix: /forwarding}}, forward: {{cluster: web, cors: {{allow_origins: [{{regex: '.*'}}], forward_not_matching_preflights: true}}}}}}
      - {{forward: {{cluster: web}}}}
    - name: host
      domains: [host.test]
      filters: {{off: [request_authentication, authorization]}}
      routes:
      - {{match: {{prefix: /own}}, forward: {{cluster: web}}, filters: {{authorization: [{{name: own, namespace: n, action: ALLOW, rules: [{{to: [{{operation: {{paths: ['*/yes']}}}}]}}]}}]}}}}
      - {{forward: {{cluster: web}}}}
"#,
        admin = side.host.at(15000),
        at = side.host.at(PORT),
        web = side.web,
    )
}

/// The same, as istiod and a user of Envoy write it.
fn envoys(side: &Side, keys: &str) -> Value {
    let typed = |kind: &str, mut value: Value| {
        value["@type"] = format!("type.googleapis.com/envoy.extensions.filters.http.{kind}").into();
        value
    };
    let filter = |name: &str, kind: &str, value: Value| json!({"name": name, "typed_config": typed(kind, value)});
    let provider = json!({"issuer": FIRST, "local_jwks": {"inline_string": keys}, "forward": true, "payload_in_metadata": "payload"});
    let optional = json!({"requires_any": {"requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]}});
    let tokens = filter(
        "jwt",
        "jwt_authn.v3.JwtAuthentication",
        json!({"providers": {"origins-0": provider}, "bypass_cors_preflight": true, "rules": [{"match": {"prefix": "/"}, "requires": optional}]}),
    );
    let claim = |keys: &[&str], value: Value| {
        let path: Vec<Value> = ["payload"].iter().chain(keys).map(|key| json!({"key": key})).collect();
        json!({"metadata": {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": value}})
    };
    let any_text = json!({"string_match": {"safe_regex": {"regex": ".+"}}});
    let of_first = json!({"and_ids": {"ids": [claim(&["iss"], json!({"string_match": {"exact": FIRST}})), claim(&["sub"], any_text.clone())]}});
    let with_token = json!({"and_ids": {"ids": [claim(&["iss"], any_text.clone()), claim(&["sub"], any_text)]}});
    let admins = claim(
        &["groups"],
        json!({"or_match": {"value_matchers": [{"list_match": {"one_of": {"string_match": {"exact": "admin"}}}}, {"string_match": {"exact": "admin"}}]}}),
    );
    let paths = |name: &str| json!({"or_rules": {"rules": [{"url_path": {"path": {"exact": name}}}, {"url_path": {"path": {"prefix": format!("{name}/")}}}]}});
    let ends = |end: &str| json!({"url_path": {"path": {"suffix": end}}});
    let policy = |permission: Value, principal: Value| json!({"permissions": [permission], "principals": [principal]});
    let any = || json!({"any": true});
    let rules = |action: &str, policies: Value| json!({"rules": {"action": action, "policies": policies}});
    let deny = rules(
        "DENY",
        json!({
            "ns[n]-policy[admin]-rule[0]": policy(paths("/admin"), json!({"not_id": admins})),
            "ns[n]-policy[admin]-rule[1]": policy(json!({"header": {"name": ":method", "string_match": {"exact": "DELETE"}}}), json!({"not_id": with_token})),
        }),
    );
    let allow = rules(
        "ALLOW",
        json!({"ns[n]-policy[some]-rule[0]": policy(any(), of_first), "ns[n]-policy[some]-rule[1]": policy(paths("/public"), any())}),
    );
    let limit = |tokens: Value| {
        let all = json!({"default_value": {"numerator": 100}, "runtime_key": "none"});
        let mut limit = json!({"stat_prefix": "l"});
        if !tokens.is_null() {
            limit["token_bucket"] = tokens;
            limit["filter_enabled"] = all.clone();
            limit["filter_enforced"] = all;
        }
        limit
    };
    let rbac = "rbac.v3.RBAC";
    let filters = json!([
        filter("limit", "local_ratelimit.v3.LocalRateLimit", limit(Value::Null)),
        tokens,
        filter("deny", rbac, deny),
        filter("allow", rbac, allow),
        filter("cors", "cors.v3.Cors", json!({})),
        router(),
    ]);
    let no_rules = || typed("rbac.v3.RBACPerRoute", json!({}));
    let own_rules = |action: &str, name: &str, end: &str| {
        let policies = json!({name: policy(ends(end), any())});
        typed("rbac.v3.RBACPerRoute", json!({"rbac": rules(action, policies)}))
    };
    let no_tokens = || typed("jwt_authn.v3.PerRouteConfig", json!({"disabled": true}));
    let few = json!({"max_tokens": 3, "tokens_per_fill": 1, "fill_interval": "3600s"});
    let forward = json!({"cluster": "web"});
    let route = |prefix: &str, config: Value| json!({"match": {"prefix": prefix}, "route": forward, "typed_per_filter_config": config});
    let cors = |value: Value| typed("cors.v3.CorsPolicy", value);
    let all = json!({"name": "all", "domains": ["web.test"],
    "typed_per_filter_config": {"cors": cors(json!({"allow_origin_string_match": [{"exact": "http://a.test"}, {"prefix": "http://b."}], "allow_methods": "GET,PUT", "allow_headers": "x-a",
        "expose_headers": "x-told", "max_age": "9", "allow_credentials": true, "forward_not_matching_preflights": false}))},
    "routes": [
        route("/open", json!({"jwt": no_tokens(), "deny": no_rules(), "allow": no_rules()})),
        route("/own", json!({"deny": own_rules("DENY", "ns[n]-policy[own]-rule[0]", "/no"), "allow": no_rules()})),
        route("/few", json!({"deny": no_rules(), "allow": no_rules(), "limit": typed("local_ratelimit.v3.LocalRateLimit", limit(few))})),
        route("/forwarding", json!({"cors": cors(json!({"allow_origin_string_match": [{"safe_regex": {"regex": ".*"}}], "forward_not_matching_preflights": true}))})),
        {"match": {"prefix": "/"}, "route": forward},
    ]});
    let host = json!({"name": "host", "domains": ["host.test"],
    "typed_per_filter_config": {"jwt": no_tokens(), "deny": no_rules(), "allow": no_rules()},
    "routes": [
        route("/own", json!({"deny": no_rules(), "allow": own_rules("ALLOW", "ns[n]-policy[own]-rule[0]", "/yes")})),
        {"match": {"prefix": "/"}, "route": forward},
    ]});
    let manager = json!({
        "normalize_path": true, "merge_slashes": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        "http_filters": filters,
        "route_config": {"virtual_hosts": [all, host], "ignore_port_in_host_matching": true},
    });
    envoys_config(vec![(side.host.at(PORT), manager)], &[("web", side.web)])
}

struct Place {
    pair: Pair,
    issuer: Issuer,
}

impl Place {
    fn start() -> Self {
        let issuer = Issuer::new();
        let keys = issuer.jwks().to_string();
        Self {
            pair: Pair::start(
                |side, _: &World| yaml(side, &keys),
                |side, _: &World| envoys(side, &keys),
                PORT,
            ),
            issuer,
        }
    }

    /// What a client sees of both, without what differs from run to run.
    fn both(&self, request: &str) -> [Seen; 2] {
        self.pair.both(PORT, request).map(|seen| {
            let mut seen = without_the_incidental(seen);
            if let Some((_, told)) = seen
                .body
                .split_once('\n')
                .filter(|(first, _)| first.starts_with("attempt "))
            {
                seen.body = told.to_owned();
                seen.headers.remove("content-length");
            }
            seen
        })
    }

    fn token(&self, claims: &Value) -> String {
        format!("authorization: Bearer {}\r\n", self.issuer.token(By::Es256, claims))
    }

    /// Panics with those of `requests` that are treated in another way; how many were answered with each status.
    fn compare(&self, requests: &[String]) -> BTreeMap<u16, usize> {
        let (mut statuses, mut differing) = (BTreeMap::new(), Vec::new());
        for request in requests {
            let [mut ours, mut envoys] = self.both(request);
            if request.starts_with("HEAD ") {
                // Envoy says of an answer to HEAD that has no length how it would be framed; endpoints tell in theirs how often they were asked.
                envoys.headers.remove("transfer-encoding");
                for seen in [&mut ours, &mut envoys] {
                    seen.headers.remove("content-length");
                }
            }
            // What hyper's parser does not take for a path is refused by it (`differences`).
            if ours.status == 400 && ours.header("server").is_none() {
                continue;
            }
            *statuses.entry(ours.status).or_default() += 1;
            if ours != envoys {
                differing.push(format!("{request:?}\n   ours: {ours:?}\n  envoy: {envoys:?}"));
            }
        }
        let shown: Vec<&String> = differing.iter().take(6).collect();
        let (count, all) = (differing.len(), requests.len());
        assert!(differing.is_empty(), "{count} of {all} differ:\n{shown:#?}");
        statuses
    }
}

fn claims(groups: Value) -> Value {
    json!({"iss": FIRST, "sub": "alice", "exp": now() + 3600, "groups": groups})
}

fn one_of<T: Clone>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())].clone()
}

/// Ways to write a path, some of which lead to another than they seem to.
fn path(random: &mut Rng) -> String {
    let begins = one_of(random, &["/admin", "/public", "/open", "/own", "/forwarding", "/x", ""]);
    let leads = one_of(
        random,
        &[
            "",
            "",
            "",
            "/",
            "/a",
            "/no",
            "/yes",
            "/..",
            "/../admin",
            "/%2e%2e/admin/a",
            "%2F..%2Fadmin",
            "%5C..%5Cadmin",
            "/.%2e/public",
            "//a",
            "/./a",
            ";a",
            "%00",
            "%3Bx",
            "/..;/admin",
            "/%2e%2e%2fadmin",
            "?/../admin",
            "%3F/admin",
            "/a%2f..%2f..%2Fadmin",
            "/%252e%252e/admin",
        ],
    );
    let mut path = format!("{begins}{leads}");
    match random.u8(..12) {
        0 => path = path.replace("admin", "%61dmin"),
        1 => path = path.replace("admin", "ADMIN"),
        2 => path.insert(0, '/'),
        3 => path = format!("/.{path}"),
        4 => path = format!("/%2e%2e{path}"),
        5 => path += one_of(random, &["?a=b", "?a=/../admin", "/?"]),
        6 if path.starts_with('/') => path = format!("http://web.test{path}"),
        _ => {}
    }
    if path.is_empty() { "/".to_owned() } else { path }
}

fn request(place: &Place, random: &mut Rng) -> String {
    let method = one_of(random, &["GET", "GET", "OPTIONS", "OPTIONS", "DELETE", "PUT", "HEAD"]);
    let mut lines = String::new();
    match random.u8(..7) {
        0 | 1 => {}
        2 => lines += &place.token(&claims(json!(["admin", "x"]))),
        3 => lines += &place.token(&claims(json!("admin"))),
        4 => {
            lines += &place.token(&claims(one_of(
                random,
                &[json!(["user"]), json!({"admin": 1}), Value::Null],
            )))
        }
        5 => lines += &place.token(&json!({"iss": FIRST, "sub": "alice", "exp": now() - 3600, "groups": ["admin"]})),
        _ => {
            lines += one_of(
                random,
                &[
                    "authorization: Bearer x.y.z\r\n",
                    "authorization: Bearer \r\n",
                    "authorization: Basic x\r\n",
                ],
            )
        }
    }
    let origins = [
        "http://a.test",
        "http://b.test",
        "http://c.test",
        "null",
        "",
        "HTTP://A.test",
        "http://a.test, http://b.test",
    ];
    if random.u8(..3) > 0 {
        lines += &format!("origin: {}\r\n", one_of(random, &origins));
    }
    if random.u8(..2) > 0 {
        lines += &format!(
            "access-control-request-method: {}\r\n",
            one_of(random, &["GET", "DELETE", "", "x"])
        );
    }
    if random.u8(..4) == 0 {
        lines += "access-control-request-headers: x-a, x-b\r\n";
    }
    let body = if method == "PUT" { "content-length: 0\r\n" } else { "" };
    let host = one_of(
        random,
        &["web.test", "web.test", "web.test", "host.test", "WEB.test:80"],
    );
    format!(
        "{method} {} HTTP/1.1\r\nhost: {host}\r\n{lines}{body}\r\n",
        path(random)
    )
}

/// `HTTP_SEED=n` repeats a run's requests; keys are each run's own.
#[test]
fn tokens_rules_origins_and_paths_together_are_treated_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::start();
    let mut random = Rng::with_seed(seed());
    let requests: Vec<String> = (0..ANY).map(|_| request(&place, &mut random)).collect();
    let statuses = place.compare(&requests);
    println!("{statuses:?}");
    for status in [200, 401, 403] {
        let count = statuses.get(&status).copied().unwrap_or(0);
        assert!(count > ANY / 20, "few requests ended with {status}: {statuses:?}");
    }
}

/// Whatever a path is written like: who is no admin does not get there.
#[test]
fn no_way_to_write_it_leads_to_what_is_denied() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::start();
    let mut random = Rng::with_seed(seed());
    let (mut reached, mut denied) = (0, 0);
    for _ in 0..ANY / 2 {
        let token = place.token(&claims(json!(["user"])));
        let request = format!("GET {} HTTP/1.1\r\nhost: web.test\r\n{token}\r\n", path(&mut random));
        let [ours, _] = place.both(&request);
        match ours.status {
            200 => {
                reached += 1;
                // What the endpoint was asked for is what was judged.
                let line = ours
                    .body
                    .lines()
                    .find(|line| line.starts_with("GET "))
                    .expect("a request line");
                let asked = line.split(' ').nth(1).expect("a path");
                let path = asked.split('?').next().unwrap_or(asked);
                assert!(
                    path != "/admin" && !path.starts_with("/admin/"),
                    "{request:?} got to {asked}"
                );
            }
            403 => denied += 1,
            _ => {}
        }
    }
    assert!(reached > 50 && denied > 20, "{reached} {denied}");
}

#[test]
fn routes_have_their_own_in_the_place_of_filters_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let place = Place::start();
    let bad = "authorization: Bearer x.y.z\r\n";
    let on_host = |path: &str, lines: &str| format!("GET {path} HTTP/1.1\r\nhost: host.test\r\n{lines}\r\n");
    let user = place.token(&claims(json!(["user"])));
    for (request, status) in [
        (get("/x", ""), 403),
        (get("/x", bad), 401),
        (get("/x", &user), 200),
        // Neither tokens nor rules are looked at.
        (get("/open", bad), 200),
        // Tokens are, and rules of its own are all that there are.
        (get("/own/x", ""), 200),
        (get("/own/x", bad), 401),
        (get("/own/no", &user), 403),
        // What its virtual host says goes for all of its routes, but for what they say themselves.
        (on_host("/admin", bad), 200),
        (on_host("/own/yes", bad), 200),
        (on_host("/own/x", &user), 403),
    ] {
        let [ours, envoys] = place.both(&request);
        assert_eq!((ours.status, envoys.status), (status, status), "{request:?}");
        assert_eq!(ours, envoys, "{request:?}");
    }
    let limited: Vec<[u16; 2]> = (0..5)
        .map(|_| place.both(&get("/few", "")).map(|seen| seen.status))
        .collect();
    assert_eq!(limited, [[200; 2], [200; 2], [200; 2], [429; 2], [429; 2]]);
    assert_eq!(
        place.both(&get("/open", "")).map(|seen| seen.status),
        [200; 2],
        "others are not limited"
    );
    // Nor is a limit that an update leaves as it is filled anew.
    let text = place.pair.proxy.config_text().replace("max_age: 9s", "max_age: 8s");
    let before = place.pair.proxy.config_updates("applied");
    place.pair.proxy.replace_file(&text);
    wait::eventually(wait::SOON, "it is applied", || {
        place.pair.proxy.config_updates("applied") > before
    });
    assert_eq!(place.both(&get("/few", ""))[0].status, 429);
}

/// A field that only the filter of tokens may write leads nobody to a route where that is off, nor to an endpoint from there. (With Envoy it does both.)
#[test]
fn what_only_tokens_write_is_taken_off_where_they_are_off() {
    let world = World::loopback();
    let (client, us) = (world.host(), world.host());
    let web = Endpoint::start(&world.host(), 9001, "w", Tries::default()).address;
    let keys = Issuer::new().jwks().to_string();
    let yaml = format!(
        "node: {{name: a, admin: '{}', access_log: {{format: off}}, listeners: [{{name: in, address: '{}', protocol: http, routes: t}}]}}
http:
  clusters: [{{name: web, endpoints: ['{web}']}}]
  routes:
  - name: t
    request_authentication: [{{jwt_rules: [{{issuer: i, jwks: '{keys}', output_claim_to_headers: [{{header: x-sub, claim: sub}}]}}]}}]
    authorization: [{{name: p, action: ALLOW, rules: [{{from: [{{source: {{request_principals: ['*']}}}}]}}]}}]
    virtual_hosts:
    - name: all
      domains: ['*']
      routes:
      - {{match: {{headers: {{x-sub: admin}}}}, forward: {{cluster: web}}, filters: {{off: [request_authentication, authorization]}}}}
      - {{match: {{prefix: /open}}, forward: {{cluster: web}}, filters: {{off: [request_authentication, authorization]}}}}
      - {{forward: {{cluster: web}}}}
",
        us.at(15000),
        us.at(PORT),
    );
    let file = world.directory().join("http.yaml");
    std::fs::write(&file, yaml).expect("write the configuration");
    let _proxy = Proxy::start_with_file(&world, &us, file);
    assert_eq!(ask(&client, us.at(PORT), &get("/x", "x-sub: admin\r\n")).status, 403);
    let open = ask(&client, us.at(PORT), &get("/open", "x-sub: mallory\r\n"));
    assert_eq!(open.status, 200);
    assert!(!open.body.contains("mallory"), "{}", open.body);
}
