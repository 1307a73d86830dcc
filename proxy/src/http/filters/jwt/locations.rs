//! Finds the tokens of a request, and takes one off it.

use std::borrow::Cow;

use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;
use underpass_config::Text;
use underpass_config::http::{HeaderLocation, Issuers, Locations, RequestView};

use super::status::Status;

/// More tokens no honest request has. Each of them may cost a signature's verification by each key.
const MOST_TOKENS: usize = 16;

/// A token that stands in a request.
#[derive(Clone, Debug)]
pub struct Found<'c, 'r> {
    /// What stands there.
    pub text: Cow<'r, str>,
    /// Who may have issued it.
    pub issuers: &'c Issuers,
    /// Where it stands.
    pub place: Place<'c>,
}

/// Where a token stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'c> {
    /// In this field.
    Header(&'c HeaderName),
    /// In this parameter of the query.
    Param(&'c Text),
    /// In a cookie.
    Cookie,
}

/// The tokens that stand where `locations` say, in Envoy's order; not in fields that were taken off.
///
/// # Errors
/// If there are too many.
pub fn find<'c, 'r>(
    locations: &'c Locations,
    request: &RequestView<'r>,
    removed: &[Place<'c>],
) -> Result<Vec<Found<'c, 'r>>, Status> {
    let mut found = Vec::new();
    for located in locations.headers() {
        let (place, issuers) = (&located.place, &located.issuers);
        if !removed.contains(&Place::Header(&place.name)) {
            let values = request.headers.get_all(&place.name).iter();
            found.extend(values.filter_map(|value| {
                let text = after_prefix(value.as_bytes(), place)?;
                let (text, place) = (String::from_utf8_lossy(text), Place::Header(&place.name));
                Some(Found { text, issuers, place })
            }));
        }
    }
    for (name, issuers) in locations.params() {
        if let Some(text) = param(request.query, name).filter(|_| !removed.contains(&Place::Param(name))) {
            let place = Place::Param(name);
            found.push(Found { text, issuers, place });
        }
    }
    for (name, issuers) in locations.cookies() {
        if let Some(text) = cookie(request.headers, name) {
            let place = Place::Cookie;
            found.push(Found { text, issuers, place });
        }
    }
    match found.len() > MOST_TOKENS {
        true => Err(Status::TooMany),
        false => Ok(found),
    }
}

/// The token in a field's value. As with Envoy, the prefix may stand anywhere in it, and what no token begins with is skipped behind it.
fn after_prefix<'r>(value: &'r [u8], place: &HeaderLocation) -> Option<&'r [u8]> {
    let prefix = place.prefix.as_bytes();
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|window| window == prefix)?;
    let rest = &value[at + prefix.len()..];
    let begins = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    Some(rest.iter().position(begins).map_or(value, |begin| &rest[begin..]))
}

/// The first value of a parameter.
fn param<'r>(query: Option<&'r str>, name: &str) -> Option<Cow<'r, str>> {
    let mut pairs = query?.split('&');
    let value = pairs.find_map(|pair| value_of(pair, name))?;
    Some(percent_decode_str(value).decode_utf8_lossy())
}

/// The value of a pair, if it has this name.
fn value_of<'r>(pair: &'r str, name: &str) -> Option<&'r str> {
    let (own, value) = pair.split_once('=').unwrap_or((pair, ""));
    percent_decode_str(own).eq(name.bytes()).then_some(value)
}

/// What is left of a query without all parameters of this name.
pub fn without_param(query: &str, name: &str) -> String {
    let pairs = query.split('&').filter(|pair| value_of(pair, name).is_none());
    pairs.collect::<Vec<_>>().join("&")
}

/// The first cookie of this name.
fn cookie<'r>(headers: &'r HeaderMap, name: &str) -> Option<Cow<'r, str>> {
    let fields = headers.get_all(COOKIE).iter();
    let mut cookies = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    let value = cookies.find_map(|cookie| {
        let at = cookie.iter().position(|byte| *byte == b'=')?;
        let (own, value) = (cookie[..at].trim_ascii_start(), &cookie[at + 1..]);
        (own == name.as_bytes()).then_some(value)
    })?;
    let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    Some(String::from_utf8_lossy(unquoted.unwrap_or(value)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::AUTHORIZATION;

    use super::*;

    fn texts(
        locations: &Locations,
        headers: &[(HeaderName, &'static str)],
        query: &str,
    ) -> Result<Vec<String>, Status> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        let request = RequestView {
            method: "GET",
            scheme: "http",
            authority: "a",
            path: "/",
            query: Some(query),
            headers: &map,
        };
        let found = find(locations, &request, &[])?;
        Ok(found.into_iter().map(|found| found.text.into_owned()).collect())
    }

    #[test]
    fn tokens_stand_where_they_usually_do_unless_it_is_said() {
        let usual = Locations::new(&"a".into(), Vec::new(), Vec::new(), Vec::new());
        let bearer = |value| [(AUTHORIZATION, value)];
        let of = |value| texts(&usual, &bearer(value), "").unwrap();
        assert_eq!(of("Bearer a.b.c"), ["a.b.c"]);
        assert_eq!(of("Basic x, Bearer  \"a.b.c"), ["a.b.c"]);
        assert_eq!(of("Bearer a.b.c, Bearer d.e.f"), ["a.b.c, Bearer d.e.f"]);
        assert_eq!(of("bearer a.b.c"), [""; 0]);
        assert_eq!(of("Bearer"), [""; 0]);
        assert_eq!(of("Bearer ?"), ["Bearer ?"]);
        let both = texts(&usual, &bearer("Bearer a"), "x=1&access%5Ftoken=b%2Ec&access_token=d").unwrap();
        assert_eq!(both, ["a", "b.c"]);
        let many = vec![(AUTHORIZATION, "Bearer a"); MOST_TOKENS + 1];
        assert_eq!(texts(&usual, &many, ""), Err(Status::TooMany));
    }

    #[test]
    fn cookies_may_be_quoted_and_the_first_counts() {
        let cookies = Locations::new(&"a".into(), Vec::new(), Vec::new(), vec!["session".into()]);
        let of = |value| texts(&cookies, &[(COOKIE, value)], "session=x").unwrap();
        assert_eq!(of("a=b; session=\"c\"; session=d"), ["c"]);
        assert_eq!(of("xsession=a; session"), [""; 0]);
        assert_eq!(of("session="), [""]);
    }

    #[test]
    fn a_parameter_is_taken_off_in_whatever_writing() {
        for (query, left) in [
            ("t=1", ""),
            ("a=1&t=2&b=%20&%74=3&t", "a=1&b=%20"),
            ("at=1&ta=2", "at=1&ta=2"),
        ] {
            assert_eq!(without_param(query, "t"), left);
        }
    }
}
