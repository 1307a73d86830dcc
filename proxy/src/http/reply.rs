//! Answers of the proxy's own. To a gRPC client they are gRPC's (Envoy's `sendLocalReply`).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};

use super::download::Download;

/// Where gRPC has its status.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Whether a request is one of gRPC (`application/grpc`, `application/grpc+…`).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return false;
    };
    is_kind_of_grpc(kind)
}

/// Whether a content type is gRPC's.
pub fn is_kind_of_grpc(kind: &[u8]) -> bool {
    kind.strip_prefix(b"application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

/// How an answer is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audience {
    /// To a client of gRPC.
    pub is_grpc: bool,
    /// To a request whose response has no body.
    pub is_head: bool,
}

impl Audience {
    /// Of a request.
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        Self {
            is_grpc: is_grpc(headers),
            is_head: *method == Method::HEAD,
        }
    }
}

/// `status` and a text.
pub fn reply(audience: Audience, status: StatusCode, text: impl Into<Bytes>) -> Response<Download> {
    reply_with(audience, (status, grpc_status(status)), text)
}

/// The same, with a status of gRPC that is not what HTTP's stands for.
pub fn reply_with(
    audience: Audience,
    (status, of_grpc): (StatusCode, u16),
    text: impl Into<Bytes>,
) -> Response<Download> {
    let text = text.into();
    if audience.is_grpc {
        let text = if audience.is_head { Bytes::new() } else { text };
        return grpc_reply(of_grpc, &text);
    }
    let length = text.len();
    let body = match audience.is_head {
        true => Bytes::new(),
        false => text,
    };
    let mut response = Response::new(Download::whole(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if length > 0 {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

/// An answer that is the last on its connection of HTTP/1.1.
pub fn closing(mut response: Response<Download>) -> Response<Download> {
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A response that is its trailers only.
fn grpc_reply(status: u16, text: &[u8]) -> Response<Download> {
    let mut response = Response::new(Download::whole(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(status));
    if let Some(message) = percent_encoded(text) {
        headers.insert("grpc-message", message);
    }
    response
}

/// gRPC's status for HTTP's (gRPC's doc/http-grpc-status-mapping.md).
pub fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// The status that a header or trailer section of gRPC has, as a number; `Some(None)`: what it has is none.
pub fn said_grpc_status(fields: &HeaderMap) -> Option<Option<i64>> {
    fields.get(GRPC_STATUS).map(|value| read_grpc_status(value.as_bytes()))
}

/// The number that a value of `grpc-status` is.
pub fn read_grpc_status(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// The status of HTTP that one of gRPC stands for (Envoy's `grpcToHttpStatus`).
pub fn http_status(of_grpc: i64) -> u16 {
    match of_grpc {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    }
}

/// As gRPC wants a message (PROTOCOL-HTTP2.md, `Percent-Encoded`); none for an empty one.
fn percent_encoded(text: &[u8]) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    let mut encoded = String::with_capacity(text.len());
    for &byte in text {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte as char),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    HeaderValue::try_from(encoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_is_answered_in_grpc() {
        let audience = Audience {
            is_grpc: true,
            is_head: false,
        };
        let response = reply(audience, StatusCode::SERVICE_UNAVAILABLE, "no\nhealthy 100%");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no%0Ahealthy 100%25");
    }

    #[test]
    fn only_grpc_is_grpc() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("text/plain", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
    }
}
