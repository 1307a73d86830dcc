//! What says something about one hop only does not go on to the next (RFC 9110, section 7.6.1; RFC 9113, section 8.2.2).

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION,
    TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

pub const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Takes off what belongs to the hop that the message came by, the fields that `Connection` names included. What the message
/// is framed by stays named by nobody: a client may not have `Content-Length` or `Host` taken off.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = (headers.get_all(CONNECTION).iter())
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            .filter(may_be_named)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        HTTP2_SETTINGS,
        TRANSFER_ENCODING,
        UPGRADE,
        TRAILER,
    ] {
        headers.remove(name);
    }
    // "trailers" is no negotiation but a promise, and gRPC wants to hear it.
    let promises_trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    headers.remove(TE);
    if promises_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether `Connection` may have it taken off: nothing that routing, policy or framing go by.
fn may_be_named(name: &HeaderName) -> bool {
    let kept = [
        CONTENT_LENGTH,
        http::header::HOST,
        PROXY_AUTHORIZATION,
        PROXY_AUTHENTICATE,
        TE,
    ];
    !kept.contains(name)
        && !name.as_str().starts_with("x-forwarded-")
        && !name.as_str().starts_with("x-envoy-")
        && name.as_str() != "x-request-id"
}

/// Puts cookies together that HTTP/2 lets a client send one by one, and HTTP/1.1 does not (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() < 2 {
        return;
    }
    // One that says nothing would leave a separator, and with it a blank, at an end.
    crumbs.retain(|crumb| !crumb.is_empty());
    if let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// The protocol that a request asks to change to, in lower case.
pub fn upgrade(headers: &HeaderMap) -> Option<String> {
    let asks = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(UPGRADE).filter(|_| asks)?;
    Some(protocol.to_str().ok()?.trim().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(fields: &[(&'static str, &'static str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn what_connection_names_is_taken_off() {
        let fields = [
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("x-kept", "2"),
        ];
        assert_eq!(stripped(&fields), ["x-kept: 2"]);
    }

    #[test]
    fn what_others_decide_by_is_not_taken_off_because_a_client_says_so() {
        let fields = [
            ("connection", "content-length, host, x-forwarded-for, x-request-id"),
            ("content-length", "3"),
            ("host", "a"),
            ("x-forwarded-for", "b"),
            ("x-request-id", "c"),
        ];
        assert_eq!(stripped(&fields).len(), 4);
    }

    #[test]
    fn of_te_only_the_promise_of_trailers_goes_on() {
        assert_eq!(stripped(&[("te", "gzip, Trailers")]), ["te: trailers"]);
        assert!(stripped(&[("te", "gzip")]).is_empty());
    }

    #[test]
    fn an_upgrade_needs_both_fields() {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        assert_eq!(upgrade(&headers), None);
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        assert_eq!(upgrade(&headers).as_deref(), Some("websocket"));
    }
}
