//! Requests that ask to speak something else: `Upgrade` (RFC 9110, section 7.8), extended CONNECT (RFC 8441), CONNECT.
//!
//! Routes see an upgrade as HTTP/1.1 writes it, a GET, whichever it came by (as Envoy's do). What only one of the two ways to write a WebSocket's
//! handshake has (the key, and what shows that it was understood) is added where the other side's lacks it: both peers are told what they expect.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, StatusCode, Version};

/// What a request asks to speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Switch {
    /// A protocol, in lower case.
    Upgrade(String),
    /// Whatever there is at the other end.
    Connect,
}

/// RFC 6455, section 1.3.
const WEBSOCKET: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

impl Switch {
    /// Whether an endpoint's answer to it is a yes, where it was asked by `version`.
    pub fn is_agreed(&self, version: Version, status: StatusCode) -> bool {
        match self {
            Self::Upgrade(_) if version < Version::HTTP_2 => status == StatusCode::SWITCHING_PROTOCOLS,
            Self::Upgrade(_) | Self::Connect => status.is_success(),
        }
    }

    /// What a stream of HTTP/2 is reset with when the other end broke off (RFC 8441, section 5; RFC 9113, section 8.5).
    pub fn reset_reason(&self) -> h2::Reason {
        match self {
            Self::Upgrade(_) => h2::Reason::CANCEL,
            Self::Connect => h2::Reason::CONNECT_ERROR,
        }
    }

    fn is_websocket(&self) -> bool {
        matches!(self, Self::Upgrade(protocol) if protocol == "websocket")
    }

    /// Adds to a request that goes on by HTTP/1.1 what says so there.
    pub fn ask_by_http1(&self, headers: &mut HeaderMap) -> Option<()> {
        let Self::Upgrade(protocol) = self else { return Some(()) };
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::try_from(protocol.as_str()).ok()?);
        if self.is_websocket() && !headers.contains_key(SEC_WEBSOCKET_KEY) {
            // A nonce, which tells a WebSocket server from another; it protects nothing.
            let key = STANDARD.encode(fastrand::u128(..).to_be_bytes());
            headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::try_from(key).ok()?);
        }
        Some(())
    }

    /// The head with which a client is told yes. `key` is what it sent of a WebSocket's handshake.
    pub fn agree(&self, headers: &mut HeaderMap, to: Version, key: Option<&HeaderValue>) -> StatusCode {
        headers.remove(CONTENT_LENGTH);
        let Self::Upgrade(protocol) = self else {
            return StatusCode::OK;
        };
        if to >= Version::HTTP_2 {
            headers.remove(SEC_WEBSOCKET_ACCEPT);
            return StatusCode::OK;
        }
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if !headers.contains_key(UPGRADE)
            && let Ok(protocol) = HeaderValue::try_from(protocol.as_str())
        {
            headers.insert(UPGRADE, protocol);
        }
        if let (true, false, Some(key)) = (self.is_websocket(), headers.contains_key(SEC_WEBSOCKET_ACCEPT), key)
            && let Ok(accept) = HeaderValue::try_from(accept(key))
        {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        StatusCode::SWITCHING_PROTOCOLS
    }
}

/// What shows that a key was understood (RFC 6455, section 4.2.2).
fn accept(key: &HeaderValue) -> String {
    let text = [key.as_bytes(), WEBSOCKET].concat();
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_understood_as_the_specification_shows() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn only_an_answer_of_the_right_kind_is_a_yes() {
        let upgrade = Switch::Upgrade("websocket".to_owned());
        for (version, status, expected) in [
            (Version::HTTP_11, 101, true),
            (Version::HTTP_11, 200, false),
            (Version::HTTP_2, 200, true),
            (Version::HTTP_2, 403, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(upgrade.is_agreed(version, status), expected, "{version:?} {status}");
        }
        assert!(Switch::Connect.is_agreed(Version::HTTP_11, StatusCode::OK));
        assert!(!Switch::Connect.is_agreed(Version::HTTP_11, StatusCode::BAD_GATEWAY));
    }
}
