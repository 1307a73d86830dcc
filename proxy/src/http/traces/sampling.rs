//! Whether a request is traced: by what its `x-request-id` says, or by chance, as Envoy's HTTP connection manager decides it.
//!
//! The fifteenth character of an id says what an earlier hop has decided: `4` of a UUID that nobody has touched (RFC 9562, section 5.4), `9` that it is traced by
//! chance, `a` that someone has forced it, `b` that its client has. The decision that chance makes is the id's own, so that all hops make the same.

use http::{HeaderMap, HeaderName, HeaderValue};
use underpass_config::http::Sampling;

use crate::http::intake::X_REQUEST_ID;

const X_CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");
/// An id is as long as a UUID, or says nothing.
const LENGTH: usize = 36;
/// Where an id says what was decided.
const PLACE: usize = 14;
const UNDECIDED: u8 = b'4';
const BY_CHANCE: u8 = b'9';
const BY_FORCE: u8 = b'a';
const BY_CLIENT: u8 = b'b';

/// Decides, and notes it in the request's id. An id that can't be read is of no request that is traced.
pub(super) fn decide(sampling: &Sampling, headers: &mut HeaderMap) -> bool {
    if !sampling.by_request_id {
        return true;
    }
    let id = headers.get(&X_REQUEST_ID).map_or(&b""[..], HeaderValue::as_bytes);
    let Some(number) = number(id) else { return false };
    // All that follows goes by this, as in Envoy.
    let number = number % Sampling::RANDOM_ALL;
    let said = (id.len() == LENGTH).then(|| id[PLACE]);
    let mut decided = said.filter(|said| [BY_CHANCE, BY_FORCE, BY_CLIENT].contains(said));
    let before = decided;
    if decided.is_none() {
        if headers.contains_key(&X_CLIENT_TRACE_ID) && fastrand::u32(..100) < sampling.client {
            decided = Some(BY_CLIENT);
        } else if number < sampling.random {
            decided = Some(BY_CHANCE);
        }
    }
    decided = decided.filter(|_| number % 100 < sampling.overall);
    if decided != before && said.is_some() {
        note(decided.unwrap_or(UNDECIDED), headers);
    }
    decided.is_some()
}

/// What decides: the first eight digits of an id.
fn number(id: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(id.get(..8)?).ok()?;
    // `from_str_radix` takes a sign.
    let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| is_number)
}

fn note(decided: u8, headers: &mut HeaderMap) {
    let Some(id) = headers.get_mut(&X_REQUEST_ID) else {
        return;
    };
    let mut bytes = [0; LENGTH];
    bytes.copy_from_slice(id.as_bytes());
    bytes[PLACE] = decided;
    // What was a value still is one.
    if let Ok(noted) = HeaderValue::from_bytes(&bytes) {
        *id = noted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is decided, and the id then.
    fn decided(sampling: Sampling, id: &str, fields: &[&'static str]) -> (bool, String) {
        let mut headers = HeaderMap::new();
        headers.insert(X_REQUEST_ID, HeaderValue::try_from(id).unwrap());
        for field in fields {
            headers.insert(*field, HeaderValue::from_static("1"));
        }
        let is_traced = decide(&sampling, &mut headers);
        (is_traced, headers[X_REQUEST_ID].to_str().unwrap().to_owned())
    }

    /// As Envoy 1.40 has answered them.
    #[test]
    fn an_id_says_what_was_decided() {
        let (all, none) = (
            Sampling::default(),
            Sampling {
                random: 0,
                ..Sampling::default()
            },
        );
        let id = |nibble: char| format!("a4b0a0c0-1111-{nibble}111-8111-111111111111");
        for (sampling, given, is_traced, then) in [
            (none, '4', false, '4'),
            (all, '4', true, '9'),
            (none, '9', true, '9'),
            (none, 'a', true, 'a'),
            (all, 'a', true, 'a'),
            (none, 'b', true, 'b'),
            (none, '7', false, '7'),
            (all, '7', true, '9'),
        ] {
            assert_eq!(
                decided(sampling, &id(given), &[]),
                (is_traced, id(then)),
                "{given} {sampling:?}"
            );
        }
        assert_eq!(decided(none, &id('4'), &["x-client-trace-id"]), (true, id('b')));
        for (unreadable, is_traced) in [
            ("short", false),
            ("abcdefgh-1111-4111-8111-111111111111", false),
            ("+1bcdef0-1111-4111-8111-111111111111", false),
            // It is a number, but no UUID: nothing is noted in it.
            ("a4b0a0c0-1111-4111-8111-1111111111110", true),
        ] {
            assert_eq!(decided(all, unreadable, &[]), (is_traced, unreadable.to_owned()));
        }
    }

    #[test]
    fn shares_are_of_ids() {
        let traced = |sampling: Sampling| {
            let is_traced =
                |number: &u32| decided(sampling, &format!("{number:08x}-1111-4111-8111-111111111111"), &[]).0;
            (0..10_000).filter(is_traced).count()
        };
        let all = Sampling::default();
        assert_eq!(traced(Sampling { random: 5000, ..all }), 5000);
        assert_eq!(traced(Sampling { overall: 30, ..all }), 3000);
        assert_eq!(traced(Sampling { random: 1, ..all }), 1);
        // What an earlier hop has decided is undone too.
        let overall = Sampling { overall: 0, ..all };
        let id = "a4b0a0c0-1111-9111-8111-111111111111";
        assert_eq!(decided(overall, id, &[]), (false, id.replacen("-9", "-4", 1)));
        let by_id = Sampling {
            by_request_id: false,
            random: 0,
            ..all
        };
        assert_eq!(decided(by_id, id, &[]), (true, id.to_owned()));
        assert_eq!(decided(by_id, "short", &[]), (true, "short".to_owned()));
    }
}
