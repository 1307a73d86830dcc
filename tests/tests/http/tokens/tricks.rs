//! What has been tried with tokens elsewhere, and gets past nobody here.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use serde_json::json;
use underpass_tests::{Host, Proxy, World, wait};

use super::super::client::{Client, Seen, ask};
use super::super::endpoint::{Endpoint, Heard, Tries};
use super::{FIRST, SECOND, good, now, policies, yaml};
use underpass_tests::tokens::{By, Issuer, by_secret, unsigned};

struct Guarded {
    client: Host,
    us: Host,
    issuer: Issuer,
    heard: Heard,
    proxy: Proxy,
    _world: World,
}

impl Guarded {
    fn start() -> Self {
        let world = World::loopback();
        let (client, us) = (world.host(), world.host());
        let heard = Heard::default();
        let web = Endpoint::heard(&world.host(), 9001, "w", Tries::default(), heard.clone()).address;
        let issuer = Issuer::new();
        let file = world.directory().join("http.yaml");
        let policies = policies(&format!("jwks: '{}'", issuer.jwks()));
        std::fs::write(&file, yaml(&us, web, "", &policies)).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            client,
            us,
            issuer,
            heard,
            _world: world,
        }
    }

    fn ask(&self, start: &str, lines: &str) -> Seen {
        let request = format!("{start} HTTP/1.1\r\nhost: web.test\r\n{lines}\r\n");
        ask(&self.client, self.us.at(8080), &request)
    }

    fn with(&self, token: &str) -> Seen {
        self.ask("GET /x", &format!("x-jwt: Bearer {token}\r\n"))
    }

    /// None of these gets to the endpoint.
    fn refuses<'t>(&self, tokens: impl IntoIterator<Item = (&'t str, String)>) {
        for (trick, token) in tokens {
            let seen = self.with(&token);
            assert!(matches!(seen.status, 401 | 403), "{trick}: {seen:?}");
            // By what looks at tokens: rules may let to more than these do.
            assert_ne!(seen.body, "RBAC: access denied", "{trick}");
            assert!(
                seen.header("www-authenticate").is_some() || seen.status == 403,
                "{trick}: {seen:?}"
            );
        }
        let heard = std::mem::take(&mut *self.heard.lock().expect("no test panics with it"));
        assert_eq!(heard, Vec::<String>::new());
    }

    /// What the endpoint has heard of a request that was let to it.
    fn let_through(&self, start: &str, lines: &str) -> (Seen, String) {
        let seen = self.ask(start, lines);
        assert_eq!(seen.status, 200, "{start} {lines}: {seen:?}");
        let heard = self.heard.lock().expect("no test panics with it").pop();
        (seen, heard.expect("a request").to_ascii_lowercase())
    }
}

fn header(alg: &str, kid: &str) -> String {
    json!({"alg": alg, "kid": kid}).to_string()
}

#[test]
fn a_signature_that_is_none_is_refused() {
    let guarded = Guarded::start();
    let claims = good().to_string();
    let mut tokens = Vec::new();
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "RS256", "ES256", "EdDSA"] {
        let unsigned = unsigned(&header(alg, "rsa"), &claims);
        tokens.push(("no signature", format!("{unsigned}.")));
        tokens.push(("two parts", unsigned.clone()));
        tokens.push(("any signature", format!("{unsigned}.c2ln")));
    }
    // CVE-2022-21449: zeros for r and s.
    let zeros = URL_SAFE_NO_PAD.encode([0; 64]);
    for (alg, kid) in [("ES256", "ec"), ("EdDSA", "ed")] {
        tokens.push(("zeros", format!("{}.{zeros}", unsigned(&header(alg, kid), &claims))));
    }
    let rsa = URL_SAFE_NO_PAD.encode([0; 256]);
    tokens.push(("zeros", format!("{}.{rsa}", unsigned(&header("RS256", "rsa"), &claims))));
    guarded.refuses(tokens);
}

/// CVE-2015-9235 and its like: what is public is no secret.
#[test]
fn a_public_key_is_no_secret() {
    let guarded = Guarded::start();
    let mut tokens = Vec::new();
    for secret in guarded.issuer.public_writings() {
        for header in [
            header("HS256", "rsa"),
            header("HS256", "any-rsa"),
            header("HS256", "secret"),
            json!({"alg": "HS256"}).to_string(),
        ] {
            let unsigned = unsigned(&header, &good().to_string());
            let signature = URL_SAFE_NO_PAD.encode(by_secret(&secret, unsigned.as_bytes()));
            tokens.push(("a public key", format!("{unsigned}.{signature}")));
        }
    }
    let empty = unsigned(&header("HS256", "secret"), &good().to_string());
    let signature = URL_SAFE_NO_PAD.encode(by_secret(&[], empty.as_bytes()));
    tokens.push(("an empty secret", format!("{empty}.{signature}")));
    guarded.refuses(tokens);
}

#[test]
fn a_token_says_nothing_of_the_keys_that_it_is_to_be_believed_by() {
    let (guarded, mallory) = (Guarded::start(), Issuer::new());
    let own = &mallory.jwks()["keys"][0];
    let claims = good().to_string();
    let by_mallory = |header: serde_json::Value| mallory.signed(By::Rs256, &header.to_string(), &claims);
    guarded.refuses([
        ("another's key", by_mallory(json!({"alg": "RS256", "kid": "rsa"}))),
        ("another's key, not named", by_mallory(json!({"alg": "RS256"}))),
        ("a key of its own", by_mallory(json!({"alg": "RS256", "jwk": own}))),
        (
            "where to get one",
            by_mallory(json!({"alg": "RS256", "jku": "http://mallory.test/", "x5u": "http://mallory.test/"})),
        ),
        (
            "a path for a key",
            by_mallory(json!({"alg": "RS256", "kid": "../../../dev/null"})),
        ),
        (
            "no such key",
            guarded.issuer.signed(By::Rs256, &header("RS256", "other"), &claims),
        ),
        (
            "another key's name",
            guarded.issuer.signed(By::Rs256, &header("RS256", "any-rsa"), &claims),
        ),
        (
            "another algorithm",
            guarded.issuer.signed(By::Rs256, &header("RS384", "rsa"), &claims),
        ),
        (
            "another algorithm's padding",
            guarded.issuer.signed(By::Rs256, &header("PS256", "rsa"), &claims),
        ),
    ]);
}

#[test]
fn a_token_is_as_it_was_signed() {
    let guarded = Guarded::start();
    let token = guarded.issuer.token(By::Rs256, &good());
    let other = guarded.issuer.token(By::Rs256, &json!({"iss": FIRST, "sub": "bob"}));
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        panic!("{token}")
    };
    let others: Vec<&str> = other.split('.').collect();
    let bytes = URL_SAFE_NO_PAD.decode(signature).expect("a signature");
    // 256 bytes leave four bits over, which are zero.
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = alphabet
        .iter()
        .position(|byte| signature.ends_with(char::from(*byte)))
        .expect("its last");
    let left_over = format!("{}{}", &signature[..signature.len() - 1], char::from(alphabet[at + 1]));
    guarded.refuses([
        ("another's payload", format!("{header}.{}.{signature}", others[1])),
        ("another's signature", format!("{header}.{payload}.{}", others[2])),
        ("padded", format!("{header}.{payload}.{}", URL_SAFE.encode(&bytes))),
        (
            "another alphabet",
            format!("{header}.{payload}.{}", STANDARD.encode(&bytes)),
        ),
        ("bits left over", format!("{header}.{payload}.{left_over}")),
        (
            "a blank",
            format!("{header}.{payload}.{} {}", &signature[..9], &signature[9..]),
        ),
        ("a fourth part", format!("{token}.x")),
        ("a fourth part that is empty", format!("{token}.")),
        ("a part twice", format!("{header}.{payload}.{payload}.{signature}")),
        ("cut off", token[..token.len() - 4].to_owned()),
        ("long", "a".repeat(50_000)),
        ("many dots", ".".repeat(50_000)),
    ]);
}

#[test]
fn claims_that_say_two_things_or_nothing_are_refused() {
    let guarded = Guarded::start();
    let signed = |claims: &str| guarded.issuer.signed(By::Es256, &header("ES256", "ec"), claims);
    let with = |more: &str| {
        let claims = good().to_string();
        signed(&format!("{},{more}}}", claims.strip_suffix('}').expect("an object")))
    };
    let changed = |name: &str, value: serde_json::Value| {
        let mut claims = good();
        claims[name] = value;
        signed(&claims.to_string())
    };
    let list = format!("[{}]", good());
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    guarded.refuses([
        ("a claim twice", with("\"sub\": \"bob\"")),
        ("a claim twice, the same", with("\"sub\": \"alice\"")),
        ("a claim twice, in another writing", with("\"\\u0073ub\": \"bob\"")),
        ("a claim twice within", with("\"nested2\": {\"a\": 1, \"a\": 2}")),
        ("a list", signed(&list)),
        ("a text", signed("\"a\"")),
        ("nothing", signed("{}")),
        ("deep", signed(&format!("{{\"a\": {deep}}}"))),
        ("has expired", changed("exp", json!(now() - 120))),
        ("expires never, it says", changed("exp", json!("never"))),
        ("expired before there was time", changed("exp", json!(-1))),
        ("expired at the beginning of time", changed("exp", json!(0.5))),
        ("not yet", changed("nbf", json!(now() + 120))),
        ("issued at no time", changed("iat", json!(-1))),
        ("for others", changed("aud", json!(["others"]))),
        ("for nobody", changed("aud", json!([]))),
        ("of another issuer", changed("iss", json!("https://other.test"))),
        (
            "of an issuer whose tokens stand elsewhere",
            changed("iss", json!(SECOND)),
        ),
        ("of no issuer", changed("iss", json!(""))),
        ("of several issuers", changed("iss", json!([FIRST]))),
    ]);
}

/// Whoever reads the request after us may take the bad one.
#[test]
fn beside_a_good_token_there_is_no_bad_one() {
    let guarded = Guarded::start();
    let (token, bad) = (
        guarded.issuer.token(By::Ps256, &good()),
        Issuer::new().token(By::Ps256, &good()),
    );
    guarded.let_through("GET /x", &format!("x-jwt: Bearer {token}\r\n"));
    for (start, lines) in [
        (
            "GET /x".to_owned(),
            format!("x-jwt: Bearer {token}\r\nx-jwt: Bearer {bad}\r\n"),
        ),
        (
            "GET /x".to_owned(),
            format!("x-jwt: Bearer {bad}\r\nx-jwt: Bearer {token}\r\n"),
        ),
        ("GET /x".to_owned(), format!("x-jwt: Bearer {token}, Bearer {bad}\r\n")),
        (
            format!("GET /x?access_token={bad}"),
            format!("x-jwt: Bearer {token}\r\n"),
        ),
        (
            format!("GET /x?access_token={token}"),
            format!("x-jwt: Bearer {bad}\r\n"),
        ),
        ("GET /x".to_owned(), format!("x-jwt: Bearer {token}\r\n").repeat(17)),
        // It would be let to without one.
        ("GET /healthz".to_owned(), format!("x-jwt: Bearer {bad}\r\n")),
        ("GET /healthz".to_owned(), format!("cookie: session={bad}\r\n")),
    ] {
        let seen = guarded.ask(&start, &lines);
        assert_eq!(seen.status, 401, "{start} {lines}: {seen:?}");
    }
}

/// What only the proxy may write, it alone has written: whoever has no token has none of it, and goes by no route that asks for it.
#[test]
fn what_endpoints_are_told_of_tokens_is_nobodys_word_but_the_proxys() {
    let guarded = Guarded::start();
    let forged = "x-jwt-sub: alice\r\nX-JWT-Payload: e30\r\n";
    let preflight = "origin: http://a.test\r\naccess-control-request-method: GET\r\n";
    for (start, lines) in [("GET /healthz", ""), ("OPTIONS /healthz", preflight)] {
        let (seen, heard) = guarded.let_through(start, &format!("{forged}{lines}"));
        assert!(!heard.contains("alice") && !heard.contains("e30"), "{heard}");
        assert_eq!(seen.header("x-route"), None, "it is routed by what it is left with");
    }
    let token = guarded.issuer.token(By::EdDsa, &good());
    let (seen, heard) = guarded.let_through("GET /x", &format!("x-jwt-sub: bob\r\nx-jwt: Bearer {token}\r\n"));
    assert_eq!(
        seen.header("x-route"),
        Some("alice"),
        "it is routed by what it has become"
    );
    assert!(
        heard.contains("x-jwt-sub: alice\n") && !heard.contains("bob"),
        "{heard}"
    );
    let bob = guarded.ask("GET /x", "x-jwt-sub: alice\r\n");
    assert_eq!((bob.status, &*bob.body), (403, "RBAC: access denied"));
}

/// That it was verified once is no reason to take it for ever.
#[test]
fn a_token_that_was_good_is_not_when_its_time_is_over() {
    let guarded = Guarded::start();
    let mut claims = good();
    // A minute is for clocks that differ.
    claims["exp"] = json!(now() - 60 + 3);
    let token = guarded.issuer.token(By::Rs256, &claims);
    let mut client = Client::connect(&guarded.client, guarded.us.at(8080));
    let mut passed = 0;
    wait::eventually(wait::SOON, "it has expired", || {
        client.send(format!("GET /x HTTP/1.1\r\nhost: a\r\nx-jwt: Bearer {token}\r\n\r\n").as_bytes());
        let seen = client.answer(false);
        passed += u32::from(seen.status == 200);
        seen.body == "Jwt is expired"
    });
    assert!(passed > 1, "it was good before");
    let refused = guarded.proxy.metrics();
    let labels = [("routes", "t"), ("reason", "Jwt is expired")];
    assert_eq!(refused.sum("underpass_http_jwt_refused_total", &labels), 1);
}
