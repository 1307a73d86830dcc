//! Policies that nobody thought of: each of parts of which both writings are known, for requests of parts.

use serde_json::{Value, json};
use underpass_tests::{Host, Need, available};

use super::place::{ALL, Place, Policies};
use super::recorded::{FORWARDED, PATHS};
use crate::cases::Case;
use crate::differential::{Speaks, seed};

/// Sets of policies.
const SETS: usize = 16;
/// Requests to each, from each client.
const ANY: usize = 50;

/// An attribute with a value: a field (or a key) and the text in Istio's words, what istiod makes of it, and of which half that is.
struct Part {
    field: &'static str,
    value: String,
    envoys: Value,
}

fn part(field: &'static str, value: &str, envoys: Value) -> Part {
    Part {
        field,
        value: value.to_owned(),
        envoys,
    }
}

fn principal(matcher: Value) -> Value {
    json!({"filter_state": {"key": "io.istio.peer_principal", "string_match": matcher}})
}

fn header(name: &str, matcher: Value) -> Value {
    json!({"header": {"name": name, "string_match": matcher}})
}

fn block(kind: &str, address: &str, length: u8) -> Value {
    json!({kind: {"address_prefix": address, "prefix_len": length}})
}

fn sources(clients: &[Host; 3]) -> Vec<Part> {
    let own = clients[0].ip().to_string();
    vec![
        part(
            "principals",
            "cluster.local/ns/shop/sa/client",
            principal(json!({"exact": "spiffe://cluster.local/ns/shop/sa/client"})),
        ),
        part(
            "principals",
            "cluster.local/ns/sh*",
            principal(json!({"prefix": "spiffe://cluster.local/ns/sh"})),
        ),
        part("principals", "*/sa/client", principal(json!({"suffix": "/sa/client"}))),
        part("principals", "*", principal(json!({"safe_regex": {"regex": ".+"}}))),
        part(
            "principals",
            "cluster.local/ns/shop/sa/CLIENT",
            principal(json!({"exact": "spiffe://cluster.local/ns/shop/sa/CLIENT"})),
        ),
        part(
            "namespaces",
            "shop",
            principal(json!({"safe_regex": {"regex": ".*/ns/shop/.*"}})),
        ),
        part(
            "namespaces",
            "ban*",
            principal(json!({"safe_regex": {"regex": ".*/ns/ban.*/.*"}})),
        ),
        part(
            "serviceAccounts",
            "shop/client",
            principal(json!({"safe_regex": {"regex": "spiffe://.+/ns/shop/(.+/|)sa/client(/.+)?"}})),
        ),
        part("ipBlocks", &own, block("direct_remote_ip", &own, 32)),
        part("ipBlocks", "127.0.0.0/8", block("direct_remote_ip", "127.0.0.0", 8)),
        part(
            "remoteIpBlocks",
            "203.0.113.0/24",
            block("remote_ip", "203.0.113.0", 24),
        ),
        part("remoteIpBlocks", "192.0.2.1", block("remote_ip", "192.0.2.1", 32)),
    ]
}

fn operations() -> Vec<Part> {
    let template = |template: &str| {
        json!({"uri_template": {"name": "uri-template", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", "path_template": template}}})
    };
    let path = |matcher: Value| json!({"url_path": {"path": matcher}});
    vec![
        part(
            "hosts",
            "a.example.com",
            header(":authority", json!({"exact": "a.example.com", "ignore_case": true})),
        ),
        part(
            "hosts",
            "*.Example.com",
            header(":authority", json!({"suffix": ".Example.com", "ignore_case": true})),
        ),
        part(
            "hosts",
            "server.*",
            header(":authority", json!({"prefix": "server.", "ignore_case": true})),
        ),
        part("methods", "GET", header(":method", json!({"exact": "GET"}))),
        part("methods", "P*", header(":method", json!({"prefix": "P"}))),
        part("methods", "*E", header(":method", json!({"suffix": "E"}))),
        part(
            "methods",
            "*",
            json!({"header": {"name": ":method", "present_match": true}}),
        ),
        part("ports", "80", json!({"destination_port": 80})),
        part("ports", "83", json!({"destination_port": 83})),
        part("paths", "/secure", path(json!({"exact": "/secure"}))),
        part("paths", "/api/*", path(json!({"prefix": "/api/"}))),
        part("paths", "*/admin", path(json!({"suffix": "/admin"}))),
        part("paths", "*", path(json!({"safe_regex": {"regex": ".+"}}))),
        part("paths", "/users/{*}/info", template("/users/*/info")),
        part("paths", "/files/{**}", template("/files/**")),
        part("paths", "/{*}/{**}", template("/*/**")),
        part("paths", "/api/{*}", template("/api/*")),
    ]
}

/// Conditions of principals (false) and of permissions (true).
fn conditions() -> Vec<(bool, Part)> {
    let any = |name: &str| json!({"header": {"name": name, "present_match": true}});
    vec![
        (
            false,
            part(
                "request.headers[x-tenant]",
                "gold",
                header("x-tenant", json!({"exact": "gold"})),
            ),
        ),
        (
            false,
            part(
                "request.headers[x-tenant]",
                "*back",
                header("x-tenant", json!({"suffix": "back"})),
            ),
        ),
        (false, part("request.headers[X-Debug]", "*", any("X-Debug"))),
        (
            false,
            part(
                "request.headers[:path]",
                "/api*",
                header(":path", json!({"prefix": "/api"})),
            ),
        ),
        (
            false,
            part(
                "source.namespace",
                "shop",
                principal(json!({"safe_regex": {"regex": ".*/ns/shop/.*"}})),
            ),
        ),
        (
            false,
            part("remote.ip", "203.0.113.9", block("remote_ip", "203.0.113.9", 32)),
        ),
        (true, part("destination.port", "81", json!({"destination_port": 81}))),
        (
            true,
            part("destination.ip", "127.0.0.0/8", block("destination_ip", "127.0.0.0", 8)),
        ),
        (
            true,
            part("destination.ip", "10.0.0.0/8", block("destination_ip", "10.0.0.0", 8)),
        ),
        (
            true,
            part(
                "connection.sni",
                "*",
                json!({"requested_server_name": {"safe_regex": {"regex": ".+"}}}),
            ),
        ),
    ]
}

/// What Envoy calls the and, the or and the not of one half.
struct Half {
    all: (&'static str, &'static str),
    either: (&'static str, &'static str),
    not: &'static str,
}

const PERMISSION: Half = Half {
    all: ("and_rules", "rules"),
    either: ("or_rules", "rules"),
    not: "not_rule",
};
const PRINCIPAL: Half = Half {
    all: ("and_ids", "ids"),
    either: ("or_ids", "ids"),
    not: "not_id",
};

impl Half {
    fn all(&self, of: &[Value]) -> Value {
        match of {
            [] => json!({"any": true}),
            of => json!({self.all.0: {self.all.1: of}}),
        }
    }

    fn either(&self, of: &[Value]) -> Value {
        json!({self.either.0: {self.either.1: of}})
    }

    fn negated(&self, of: Value, is_negated: bool) -> Value {
        match is_negated {
            true => json!({self.not: of}),
            false => of,
        }
    }
}

/// Some fields with some values, in our YAML and as one condition of Envoy's.
fn fields(random: &mut fastrand::Rng, parts: &[Part], half: &Half) -> (String, Value) {
    let mut names: Vec<&'static str> = parts.iter().map(|part| part.field).collect();
    names.dedup();
    random.shuffle(&mut names);
    let (mut ours, mut envoys) = (Vec::new(), Vec::new());
    for name in names.into_iter().take(random.usize(1..3)) {
        let mut of_it: Vec<&Part> = parts.iter().filter(|part| part.field == name).collect();
        random.shuffle(&mut of_it);
        of_it.truncate(random.usize(1..3));
        let is_negated = random.usize(..4) == 0;
        let values: Vec<String> = of_it.iter().map(|part| format!("'{}'", part.value)).collect();
        let field = match is_negated {
            true => format!("not{}{}", name[..1].to_uppercase(), &name[1..]),
            false => name.to_owned(),
        };
        ours.push(format!("{field}: [{}]", values.join(", ")));
        let of_it: Vec<Value> = of_it.iter().map(|part| part.envoys.clone()).collect();
        envoys.push(half.negated(half.either(&of_it), is_negated));
    }
    (format!("{{{}}}", ours.join(", ")), half.all(&envoys))
}

/// A rule in YAML, on one line, and a policy of Envoy's.
fn rule(random: &mut fastrand::Rng, sources: &[Part]) -> (String, Value) {
    let mut ours = Vec::new();
    let mut alternatives = |name: &str, inner: &str, parts: &[Part], half: &Half, random: &mut fastrand::Rng| {
        let (mut yaml, mut envoys) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(..3) {
            let (one, condition) = fields(random, parts, half);
            yaml.push(format!("{{{inner}: {one}}}"));
            envoys.push(condition);
        }
        if !yaml.is_empty() {
            ours.push(format!("{name}: [{}]", yaml.join(", ")));
        }
        envoys
    };
    let mut principals = alternatives("from", "source", sources, &PRINCIPAL, random);
    let mut permissions = alternatives("to", "operation", &operations(), &PERMISSION, random);
    let (mut more, mut when) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..random.usize(..3) {
        let mut conditions = conditions();
        let (is_permission, one) = conditions.swap_remove(random.usize(..conditions.len()));
        let half = if is_permission { &PERMISSION } else { &PRINCIPAL };
        let is_negated = random.bool();
        let field = if is_negated { "notValues" } else { "values" };
        when.push(format!("{{key: '{}', {field}: ['{}']}}", one.field, one.value));
        let condition = half.either(&[one.envoys]);
        more[usize::from(is_permission)].push(half.negated(condition, is_negated));
    }
    if !when.is_empty() {
        ours.push(format!("when: [{}]", when.join(", ")));
    }
    // As istiod does it: what `when` says is part of each alternative.
    for (half, list, more) in [
        (&PRINCIPAL, &mut principals, &more[0]),
        (&PERMISSION, &mut permissions, &more[1]),
    ] {
        if list.is_empty() {
            list.push(half.all(&[]));
        }
        for one in list.iter_mut() {
            let mut all = vec![one.clone()];
            all.extend(more.iter().cloned());
            *one = half.all(&all);
        }
    }
    let policy = json!({"principals": principals, "permissions": permissions});
    (format!("{{{}}}", ours.join(", ")), policy)
}

fn set(random: &mut fastrand::Rng, sources: &[Part]) -> Policies {
    let mut ours = String::new();
    let mut envoys = Vec::new();
    for (action, likely) in [("AUDIT", 2), ("DENY", 8), ("ALLOW", 7)] {
        if random.usize(..10) >= likely {
            continue;
        }
        let mut policies = serde_json::Map::new();
        for name in 0..random.usize(1..4) {
            let mut rules = Vec::new();
            for place in 0..random.usize(1..4) {
                let (yaml, policy) = rule(random, sources);
                rules.push(yaml);
                policies.insert(format!("ns[shop]-policy[{action}-{name}]-rule[{place}]"), policy);
            }
            ours += &format!(
                "- {{name: {action}-{name}, namespace: shop, action: {action}, rules: [{}]}}\n",
                rules.join(", ")
            );
        }
        let action = if action == "AUDIT" { "LOG" } else { action };
        envoys.push(json!({"name": "envoy.filters.http.rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": {"action": action, "policies": policies}}}));
    }
    if ours.is_empty() {
        // A list is not empty in the file.
        ours.push_str("- {name: none, namespace: shop, action: AUDIT}\n");
    }
    Policies { ours, envoys }
}

fn one(random: &mut fastrand::Rng) -> Case {
    let mut pick = |from: &[&'static str]| from[random.usize(..from.len())];
    let method = pick(&["GET", "GET", "POST", "PUT", "DELETE", "get"]);
    let host = pick(&[
        "a.example.com",
        "A.example.COM",
        "b.example.com:80",
        "server.shop",
        "other.test",
    ]);
    let tenant = pick(&[
        "",
        "x-tenant: gold\r\n",
        "x-tenant: silverback\r\n",
        "x-tenant: iron\r\nx-tenant: gold\r\n",
    ]);
    let debug = pick(&["", "x-debug: 1\r\n"]);
    let (path, forwarded) = (pick(PATHS), pick(FORWARDED));
    Case::new(format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nx-id: {}\r\n{tenant}{debug}{forwarded}\r\n",
        random.u64(..)
    ))
}

/// `HTTP_SEED=n` repeats a run.
#[test]
fn policies_that_nobody_thought_of_decide_as_in_envoy() {
    if !available(&[Need::Envoy]) {
        return;
    }
    let mut random = fastrand::Rng::with_seed(seed());
    let mut made = Vec::new();
    let place = Place::start(|clients| {
        let sources = sources(clients);
        made = (0..SETS).map(|_| set(&mut random, &sources)).collect();
        made.clone()
    });
    for (set, policies) in made.iter().enumerate() {
        println!("set {set}:\n{}", policies.ours);
        for who in ALL {
            let cases: Vec<Case> = (0..ANY).map(|_| one(&mut random)).collect();
            let speaks = if random.bool() { Speaks::Http1 } else { Speaks::Http2 };
            place.sides(who, set, speaks).compare(&cases);
        }
    }
}
