use http::HeaderMap;

use super::*;
use crate::http::{Field, Part, PeerEnd, PeerField};

/// What a request is: a text for each fact that it has.
struct Told(Vec<(Fact, &'static str)>);

impl Facts for Told {
    fn tell(&self, fact: &Fact, _: &HeaderMap, out: &mut Vec<u8>) -> bool {
        let found = self.0.iter().find(|(known, _)| known == fact);
        out.extend_from_slice(found.map_or("", |(_, text)| text).as_bytes());
        found.is_some()
    }
}

fn header(name: &'static str) -> Fact {
    Fact::Request(Field::Header(name.try_into().unwrap()), None)
}

fn request(code: &'static str) -> Told {
    Told(vec![
        (Fact::Status, code),
        (Fact::MutualTls, "false"),
        (Fact::Request(Field::Path, None), "/api/v1?a=b"),
        (Fact::Request(Field::Method, None), "GET"),
        (header("x-user"), "alice"),
        (Fact::Flags, "UF,URX"),
        (Fact::Duration, "1500"),
        (Fact::StartTime(None), "2023-11-14T22:13:23.007Z"),
        (Fact::BytesReceived, "9223372036854775807"),
        (Fact::Client(Part::Port), "4711"),
        (Fact::Peer(PeerEnd::Downstream, PeerField::Namespace), "shop"),
    ])
}

#[track_caller]
fn is_true(text: &str, told: &Told) -> bool {
    let expression = Expression::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    expression.is_true(told)
}

#[test]
fn the_recorded_expression_is_evaluated() {
    let recorded = "response.code >= 400 || connection.mtls == false";
    for (code, mtls, expected) in [
        ("404", "true", true),
        ("200", "true", false),
        ("200", "false", true),
        ("0", "false", true),
        // There is no code, and what is left decides nothing.
        ("0", "true", false),
    ] {
        let told = Told(vec![(Fact::Status, code), (Fact::MutualTls, mtls)]);
        assert_eq!(is_true(recorded, &told), expected, "{code} {mtls}");
    }
}

#[test]
fn attributes_are_envoys() {
    for text in [
        "request.path == '/api/v1?a=b'",
        "request.query == 'a=b'",
        "request.path.startsWith('/api') && request.method in ['GET', 'HEAD']",
        "request.path.matches('^/api/v[0-9]+') && !matches(request.path, '^/x')",
        "request.headers['X-User'] == 'alice'",
        "request.headers['x-user'].matches('^al')",
        "'x-user' in request.headers && !('x-none' in request.headers)",
        "has(request.headers.x) == false",
        "request.headers[':method'] == 'GET'",
        "response.flags == 32 + 32768",
        "request.duration > duration('1s') && request.duration < duration('2s')",
        "request.time < timestamp('2024-01-01T00:00:00Z')",
        "source.port == 4711",
        "filter_state.downstream_peer.namespace == 'shop'",
        "size(request.method) == 3",
        "(response.code == 404 ? 'a' : 'b') == 'a'",
    ] {
        assert!(is_true(text, &request("404")), "{text}");
    }
}

#[test]
fn what_is_not_there_does_not_match() {
    for text in [
        "request.headers['x-none'] == 'a'",
        "request.headers['x-none'] != 'a'",
        "!(request.headers['x-none'] == 'a')",
        "upstream.address != ''",
        "connection.tls_version != 'TLSv1.3'",
        "metadata.filter_metadata['a']['b'] != 'c'",
        "filter_state.upstream_peer.namespace != 'shop'",
        "filter_state.downstream_peer.labels != 'shop'",
        "response.code",
        "'text'",
        "request.size * 9223372036854775807 > 0",
        "1 / 0 == 0",
        "request.path > 3",
        "request.path.startsWith(3)",
    ] {
        assert!(!is_true(text, &request("404")), "{text}");
    }
}

#[test]
fn what_is_no_expression_says_why() {
    use BadExpression::{Attribute, ComputedPattern, Construct, Function, Headers, Long, Pattern};
    for (text, why) in [
        ("request.what == 1", Attribute("request.what".into())),
        ("code >= 400", Attribute("code".into())),
        ("request == 1", Attribute("request".into())),
        ("request.path.x == 1", Attribute("request.path.x".into())),
        ("size(request.headers) > 3", Headers("request.headers")),
        ("request.headers[request.path] == ''", Headers("request.headers")),
        ("[1, 2].all(x, x > 0)", Construct("a loop")),
        ("{'a': 1}['a'] == 1", Construct("a map")),
        ("request.path.lowerAscii() == ''", Function("lowerAscii".into())),
        ("request.path.matches('(')", Pattern("(".into())),
        ("request.path.matches(request.headers['x'])", ComputedPattern),
        (&"a".repeat(5000), Long),
    ] {
        assert_eq!(Expression::parse(text).unwrap_err(), why, "{text}");
    }
    for text in ["", "response.code >=", "a b", "'", "(((", "\u{0}"] {
        assert!(
            matches!(Expression::parse(text), Err(BadExpression::Syntax(_))),
            "{text:?}"
        );
    }
}

/// Whatever is written, it is refused or evaluated.
#[test]
fn no_text_breaks_it() {
    let pieces = [
        "response.code",
        "request.path",
        "request.headers",
        "'x'",
        "[",
        "]",
        "(",
        ")",
        " == ",
        " && ",
        " || ",
        "!",
        "-",
        "1",
        "1u",
        "1.5",
        ".",
        ", ",
        "matches",
        "in",
        "?",
        ":",
        "{",
        "}",
        "\"",
        "é",
        "\\",
        "null",
        "true",
        "b'a'",
        " * ",
        " / ",
        "9223372036854775807",
        "size",
        "has",
        "duration('1s')",
    ];
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..3000 {
        let text: String = (0..random.usize(..12))
            .map(|_| pieces[random.usize(..pieces.len())])
            .collect();
        if let Ok(expression) = Expression::parse(&text) {
            expression.is_true(&request("404"));
        }
    }
    // As deep as it may be, and deeper.
    for length in [16, 100, 190, 4000] {
        let deep = |piece: &str| piece.repeat(length);
        for text in [
            deep("("),
            deep("(") + "1" + &deep(")"),
            deep("[") + &deep("]"),
            deep("!") + "true",
            deep("-") + "1",
            deep("1+") + "1",
            deep("true||") + "true",
            deep("true?1:") + "2",
            deep("size(") + "''" + &deep(")"),
            "request.headers['x']".to_owned() + &deep("[0]"),
            "request.path".to_owned() + &deep(".x"),
        ] {
            if let Ok(expression) = Expression::parse(&text) {
                expression.is_true(&request("404"));
            }
        }
    }
    let as_deep_as_it_may = "1 + ".repeat(29) + "1 == 30";
    assert!(is_true(&as_deep_as_it_may, &request("404")));
    assert_eq!(
        Expression::parse(&("1 + ".repeat(40) + "1 == 41")).unwrap_err(),
        BadExpression::Deep
    );
    assert!(is_true(
        &("response.code == 1 || ".repeat(30) + "true"),
        &request("404")
    ));
    assert_eq!(Expression::parse(&"(".repeat(4000)).unwrap_err(), BadExpression::Long);
}
