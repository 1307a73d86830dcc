//! Requests with tokens: the recorded policies of istiod's scenario 04, to Envoy as they were recorded (but for the keys, which are the test's own) and to us
//! in Istio's words.

mod fetched;
mod tricks;

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};
use fastrand::Rng;
use serde_json::{Value, json};
use underpass_tests::tokens::{ALL, By, Issuer};
use underpass_tests::{Host, Need, available};

use super::client::Seen;
use super::differences::without_the_incidental;
use super::pair::{Pair, Side, envoys_config, router};

/// What istiod sent a waypoint for `/work/shared/istio/scenarios/04-jwt/input.yaml`: its filters of tokens and of rules.
const RECORDED: &str = include_str!("tokens/istiod-04-jwt.json");
/// Requests that are made of parts, for each run.
const ANY: usize = 600;

pub(crate) const FIRST: &str = "https://issuer.example.com";
pub(crate) const SECOND: &str = "https://second.example.com";

/// The same policies in our words; `keys`: how both providers come by theirs.
pub(crate) fn policies(keys: &str) -> String {
    format!(
        r#"    request_authentication:
    - jwtRules:
      - issuer: {FIRST}
        audiences: [shop, api]
        {keys}
        fromHeaders: [{{name: x-jwt, prefix: "Bearer "}}]
        fromParams: [access_token]
        forwardOriginalToken: true
        outputPayloadToHeader: x-jwt-payload
        outputClaimToHeaders: [{{header: x-jwt-sub, claim: sub}}]
        timeout: 5s
      - issuer: {SECOND}
        {keys}
        fromCookies: [session]
    authorization:
    - name: require-token
      namespace: shop
      action: ALLOW
      rules:
      - from: [{{source: {{requestPrincipals: ["{FIRST}/*"]}}}}]
        when:
        - {{key: "request.auth.claims[groups]", values: [admin, "dev-*"]}}
        - {{key: "request.auth.claims[nested][role]", values: [owner]}}
        - {{key: request.auth.audiences, values: [api]}}
      - from: [{{source: {{notRequestPrincipals: ["*"]}}}}]
        to: [{{operation: {{paths: [/healthz]}}}}]
      - when:
        - {{key: request.auth.presenter, values: [app-1]}}
        - {{key: request.auth.principal, values: ["*/alice"]}}
"#
    )
}

/// A proxy with these policies before `web`, and more clusters.
pub(crate) fn yaml(us: &Host, web: SocketAddr, clusters: &str, policies: &str) -> String {
    format!(
        "node:\n  name: a\n  admin: '{}'\n  access_log: {{format: off}}\n  listeners: [{{name: in, address: '{}', protocol: http, routes: t}}]\n\
         http:\n  clusters: [{{name: web, endpoints: ['{web}']}}{clusters}]\n  routes:\n  - name: t\n{policies}    virtual_hosts: [{{name: all, domains: ['*'], routes: [\n      \
         {{match: {{headers: {{x-jwt-sub: {{exact: alice}}}}}}, forward: {{cluster: web}}, response_headers: {{set: {{x-route: alice}}}}}},\n      \
         {{forward: {{cluster: web}}}}]}}]\n",
        us.at(15000),
        us.at(8080),
    )
}

pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a time after 1970").as_secs() as i64
}

/// What a token claims that is let to everything.
pub(crate) fn good() -> Value {
    json!({"iss": FIRST, "sub": "alice", "aud": ["api"], "exp": now() + 3600, "groups": ["admin"], "nested": {"role": "owner"}})
}

/// Both with the recorded policies, and whose tokens they take.
struct Place {
    pair: Pair,
    issuer: Issuer,
}

const PORT: u16 = 8080;

impl Place {
    fn start() -> Self {
        let issuer = Issuer::new();
        let keys = issuer.jwks().to_string();
        let policies = policies(&format!("jwks: '{keys}'"));
        Self {
            pair: Pair::start(
                |side, _| yaml(&side.host, side.web, "", &policies),
                |side, _| envoys(side, &keys),
                PORT,
            ),
            issuer,
        }
    }

    /// What a client sees of both, without what differs from run to run.
    fn both(&self, request: &str) -> [Seen; 2] {
        self.pair.both(PORT, request).map(|seen| {
            let mut seen = without_the_incidental(seen);
            if let Some((_, told)) = seen.body.split_once('\n') {
                seen.body = told.to_owned();
                seen.headers.remove("content-length");
            }
            seen
        })
    }

    /// Panics with those of `requests` that are treated in another way; how many were answered with each status.
    fn compare(&self, requests: &[String]) -> std::collections::BTreeMap<u16, usize> {
        let mut statuses = std::collections::BTreeMap::new();
        let mut differing = Vec::new();
        for request in requests {
            let [ours, mut envoys] = self.both(request);
            if ours.header("www-authenticate").is_some() {
                // A good token does nothing to a request that another one spoils; with Envoy, the request may have been routed by it.
                envoys.headers.remove("x-route");
            }
            *statuses.entry(ours.status).or_default() += 1;
            if ours != envoys {
                differing.push(format!("{request:?}\n   ours: {ours:?}\n  envoy: {envoys:?}"));
            }
        }
        let shown: Vec<&String> = differing.iter().take(6).collect();
        assert!(
            differing.is_empty(),
            "{} of {} differ:\n{shown:#?}",
            differing.len(),
            requests.len()
        );
        statuses
    }
}

fn envoys(side: &Side, keys: &str) -> Value {
    let mut filters: Vec<Value> = serde_json::from_str(RECORDED).expect("a recording");
    let providers = filters[0]["typed_config"]["providers"]
        .as_object_mut()
        .expect("providers");
    for provider in providers.values_mut() {
        provider["local_jwks"]["inline_string"] = keys.into();
    }
    filters.push(router());
    let forward = json!({"cluster": "web"});
    let told = json!([{"header": {"key": "x-route", "value": "alice"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]);
    let alice = json!([{"name": "x-jwt-sub", "string_match": {"exact": "alice"}}]);
    let routes = json!([
        {"match": {"prefix": "/", "headers": alice}, "route": forward, "response_headers_to_add": told},
        {"match": {"prefix": "/"}, "route": forward},
    ]);
    let manager = json!({
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    });
    envoys_config(vec![(side.host.at(PORT), manager)], &[("web", side.web)])
}

fn one_of<T: Clone>(random: &mut Rng, from: &[T]) -> T {
    from[random.usize(..from.len())].clone()
}

/// Mostly what `good` says, with a few claims that say something else, or nothing.
fn claims(random: &mut Rng) -> Value {
    let mut claims = good();
    let now = now();
    let others: [(&str, Vec<Value>); 12] = [
        (
            "iss",
            vec![
                json!(SECOND),
                json!(SECOND),
                json!("https://other.test"),
                json!(""),
                json!(1),
                Value::Null,
            ],
        ),
        (
            "sub",
            vec![json!("bob"), json!(""), json!("a b\u{e9}"), json!(7), json!(["alice"])],
        ),
        (
            "aud",
            vec![
                json!("api"),
                json!("https://shop/"),
                json!(["x", "api"]),
                json!("other"),
                json!([]),
                json!([1]),
                json!({}),
            ],
        ),
        (
            "exp",
            vec![
                json!(now - 30),
                json!(now - 3600),
                json!(0),
                json!(-1),
                json!("soon"),
                json!(now as f64 + 7000.5),
                json!(1e30),
            ],
        ),
        (
            "nbf",
            vec![
                json!(now - 10),
                json!(now + 30),
                json!(now + 3600),
                json!(-5),
                json!("x"),
            ],
        ),
        ("iat", vec![json!(now), json!(now + 3600), json!(-1), json!("x")]),
        ("jti", vec![json!("x"), json!(1)]),
        (
            "groups",
            vec![
                json!("admin"),
                json!(["dev-1", "x"]),
                json!(["x"]),
                json!("dev-"),
                json!({"a": "admin"}),
                json!([["admin"]]),
            ],
        ),
        (
            "nested",
            vec![
                json!({"role": ["owner"]}),
                json!({"role": "x"}),
                json!("owner"),
                json!([{"role": "owner"}]),
                json!({}),
            ],
        ),
        (
            "azp",
            vec![json!("app-1"), json!("app-1"), json!(["app-1"]), json!("app-2")],
        ),
        ("scope", vec![json!("read write"), json!("")]),
        ("x", vec![json!(1.5), json!({"deep": [1, 2, {"a": null}]})]),
    ];
    for _ in 0..random.usize(..4) {
        let (name, values) = &others[random.usize(..others.len())];
        match random.u8(..5) {
            0 => drop(claims.as_object_mut().expect("an object").remove(*name)),
            _ => claims[*name] = one_of(random, values),
        }
    }
    claims
}

/// Whether each part has the one writing that we take: Envoy passes over bits that are left over, and over what no JSON has in its texts.
fn is_strict(token: &str) -> bool {
    let lax = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));
    let is_strict = |part: &str| URL_SAFE_NO_PAD.decode(part).is_ok() || lax.decode(part).is_err();
    let is_text = |part: &str| {
        let bytes = URL_SAFE_NO_PAD.decode(part).unwrap_or_default();
        std::str::from_utf8(&bytes).is_ok_and(|text| !text.contains(char::is_control))
    };
    token.split('.').all(is_strict) && token.split('.').take(2).all(is_text)
}

/// A token, mostly a good one.
fn token(issuer: &Issuer, random: &mut Rng) -> String {
    loop {
        let token = any_token(issuer, random);
        if is_strict(&token) {
            return token;
        }
    }
}

fn any_token(issuer: &Issuer, random: &mut Rng) -> String {
    let by = one_of(random, &ALL);
    let claims = claims(random);
    let good = issuer.token(by, &claims);
    let (alg, kid) = (by.alg(), by.kid());
    let payload = claims.to_string();
    match random.u8(..24) {
        0 => issuer.signed(by, &json!({"alg": alg}).to_string(), &payload),
        1 => issuer.signed(by, &json!({"alg": alg, "kid": "other"}).to_string(), &payload),
        2 => issuer.signed(by, &json!({"alg": alg, "kid": 1}).to_string(), &payload),
        3 => issuer.signed(by, &json!({"kid": kid}).to_string(), &payload),
        4 => issuer.signed(
            by,
            &json!({"alg": one_of(random, &["none", "NONE", "", "HS1", "rs256"]), "kid": kid}).to_string(),
            &payload,
        ),
        5 => issuer.signed(
            by,
            &json!({"alg": one_of(random, &ALL).alg(), "kid": kid}).to_string(),
            &payload,
        ),
        6 => Issuer::new().token(one_of(random, &[By::Rs256, By::Es256, By::EdDsa]), &claims),
        7 => good[..good.len() - random.usize(1..8)].to_owned(),
        8 => {
            let at = random.usize(..good.len());
            format!(
                "{}{}{}",
                &good[..at],
                one_of(random, &["x", ".", "!", "%", "~"]),
                &good[at + 1..]
            )
        }
        9 => issuer.signed(
            by,
            &json!({"alg": alg}).to_string(),
            one_of(random, &["[]", "1", "{", "", "{} x", "\"a\""]),
        ),
        10 => issuer.signed(by, one_of(random, &["[]", "{", "1"]), &payload),
        11 => one_of(random, &["", ".", "..", "a.b.c", "x", "a.b", "....", "e30.e30.e30"]).to_owned(),
        _ => good,
    }
}

/// A request with some tokens where they stand, or where they don't.
fn request(issuer: &Issuer, random: &mut Rng) -> String {
    let method = one_of(random, &["GET", "GET", "GET", "HEAD", "POST", "OPTIONS"]);
    let mut path = one_of(random, &["/", "/healthz", "/a/b", "/x?y=1&z=a%20b"]).to_owned();
    let mut lines = String::new();
    let param = |path: &mut String, name: &str, value: &str| {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(&format!("{name}={value}"));
    };
    for _ in 0..one_of(random, &[0, 1, 1, 1, 1, 1, 2]) {
        let token = token(issuer, random);
        match random.u8(..9) {
            0..=2 => lines += &format!("x-jwt: Bearer {token}\r\n"),
            3 => {
                lines += &format!(
                    "x-jwt: {}{token}\r\n",
                    one_of(
                        random,
                        &["", "bearer ", "Bearer", "Bearer  ", "Basic x, Bearer ", "Bearer \""]
                    )
                )
            }
            4 => param(&mut path, "access_token", &token),
            5 => param(
                &mut path,
                one_of(random, &["access%5Ftoken", "Access_Token", "token"]),
                &token.replace('.', "%2E"),
            ),
            6 => lines += &format!("cookie: a=b; session={token}; c=d\r\n"),
            7 => {
                lines += &format!(
                    "cookie: {}=\"{token}\"\r\n",
                    one_of(random, &["session", "xsession", "SESSION"])
                )
            }
            // Several are one to Envoy, with commas between them.
            _ if lines.contains("authorization") => {}
            _ => lines += &format!("authorization: Bearer {token}\r\n"),
        }
    }
    for (name, value) in [("x-jwt-payload", "forged"), ("x-jwt-sub", "mallory")] {
        if random.u8(..6) == 0 {
            lines += &format!("{name}: {value}\r\n");
        }
    }
    // What is said of its length where there is no body is another matter.
    if method != "HEAD" && random.u8(..12) == 0 {
        lines += "content-type: application/grpc\r\n";
    }
    let body = if method == "POST" { "content-length: 0\r\n" } else { "" };
    format!("{method} {path} HTTP/1.1\r\nhost: web.test\r\n{lines}{body}\r\n")
}

/// `HTTP_SEED=n` repeats a run's requests; keys are each run's own.
#[test]
fn requests_with_tokens_are_treated_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let pair = Place::start();
    let mut random = Rng::with_seed(super::differential::seed());
    let requests: Vec<String> = (0..ANY).map(|_| request(&pair.issuer, &mut random)).collect();
    let statuses = pair.compare(&requests);
    println!("{statuses:?}");
    for status in [200, 401, 403] {
        let count = statuses.get(&status).copied().unwrap_or(0);
        assert!(count > ANY / 20, "few requests ended with {status}: {statuses:?}");
    }
}

/// A token of each key, twice: the second is known already. And each of the recorded rules, by what it asks for.
#[test]
fn rules_see_what_verified_tokens_claim_as_by_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let pair = Place::start();
    let get = |path: &str, line: &str| format!("GET {path} HTTP/1.1\r\nhost: web.test\r\n{line}\r\n");
    let mut requests = Vec::new();
    for by in ALL {
        let token = pair.issuer.token(by, &good());
        for _ in 0..2 {
            requests.push(get("/", &format!("x-jwt: Bearer {token}\r\n")));
        }
    }
    let presented = json!({"iss": SECOND, "sub": "alice", "azp": "app-1"});
    let session = |claims: &Value| format!("cookie: session={}\r\n", pair.issuer.token(By::Es256, claims));
    let by_param = format!("/x?access_token={}&a=b", pair.issuer.token(By::Rs256, &good()));
    requests.extend([get("/healthz", ""), get("/x", &session(&presented)), get(&by_param, "")]);
    assert_eq!(
        pair.compare(&requests).into_iter().collect::<Vec<_>>(),
        [(200, requests.len())]
    );
    let refused = [
        get("/x", ""),
        get("/healthz", &session(&json!({"iss": SECOND, "sub": "bob"}))),
        get("/x", &session(&json!({"iss": SECOND, "sub": "bob", "azp": "app-1"}))),
        get("/x", &session(&json!({"iss": SECOND, "sub": "alice"}))),
    ];
    assert_eq!(
        pair.compare(&refused).into_iter().collect::<Vec<_>>(),
        [(403, refused.len())]
    );
}
