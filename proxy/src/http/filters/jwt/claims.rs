//! What a verified token is turned into: header fields for endpoints, claims for rules.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use underpass_config::http::{JwtProvider, claim_at};

use super::token::Token;

/// The fields that tell an endpoint of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The payload's.
    pub payload: Option<(HeaderName, HeaderValue)>,
    /// Those of claims.
    pub claims: Vec<(HeaderName, HeaderValue)>,
}

/// What `provider` has endpoints told of a token.
pub fn written(provider: &JwtProvider, token: &Token<'_>) -> Written {
    let payload = provider.forward_payload_header.as_ref().and_then(|name| {
        let mut text = token.payload.to_owned();
        while provider.pads_payload && !text.len().is_multiple_of(4) {
            text.push('=');
        }
        Some((name.clone(), HeaderValue::try_from(text).ok()?))
    });
    let claims = provider.claim_to_headers.iter().filter_map(|one| {
        let text = text_of(claim_at(&token.claims, &one.claim)?)?;
        // What no field can hold (a line's end) is not told.
        Some((one.header.clone(), HeaderValue::from_bytes(text.as_bytes()).ok()?))
    });
    Written {
        payload,
        claims: claims.collect(),
    }
}

/// A claim as Envoy writes it; one that would be empty is not written.
fn text_of(claim: &Value) -> Option<String> {
    let text = match claim {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number_text(number.as_f64()?),
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => STANDARD.encode(claim.to_string()),
    };
    (!text.is_empty()).then_some(text)
}

/// Whole and not negative, or else with C's six digits (`std::to_string`).
fn number_text(number: f64) -> String {
    match (0.0..u64::MAX as f64).contains(&number) && number.fract() == 0.0 {
        true => (number as u64).to_string(),
        false => format!("{number:.6}"),
    }
}

/// What rules see of a token's claims.
pub fn shown(provider: &JwtProvider, mut claims: Map<String, Value>) -> Value {
    for name in &provider.space_delimited_claims {
        if let Some(claim) = claims.get_mut(&**name)
            && let Value::String(text) = claim
        {
            let parts: Vec<Value> = text
                .split(' ')
                .filter(|part| !part.is_empty())
                .map(Value::from)
                .collect();
            // As with Envoy, one of blanks alone stays what it is.
            if !parts.is_empty() {
                *claim = Value::Array(parts);
            }
        }
    }
    Value::Object(claims)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_written_as_envoy_writes_them() {
        for (json, text) in [
            ("\"a b\"", Some("a b")),
            ("\"\"", None),
            ("null", None),
            ("false", Some("false")),
            ("0", Some("0")),
            ("1.0", Some("1")),
            ("-1", Some("-1.000000")),
            ("1.5", Some("1.500000")),
            ("9007199254740993", Some("9007199254740992")),
            ("[\"a\",1]", Some("WyJhIiwxXQ==")),
            ("{}", Some("e30=")),
        ] {
            let claim = serde_json::from_str(json).unwrap();
            assert_eq!(text_of(&claim).as_deref(), text, "{json}");
        }
    }
}
