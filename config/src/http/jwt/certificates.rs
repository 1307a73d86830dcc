//! Sets of keys that are certificates: an object of nothing but certificates in PEM, by the names of their keys (`JwksX509` of Envoy's `jwt_verify_lib`).
//!
//! A certificate is no more here than a way to write its key: whoever may say what the keys are has said it. Its time and its issuer are not looked at, as by Envoy.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use x509_parser::parse_x509_certificate;
use x509_parser::public_key::PublicKey;

use super::keys::{BadKeys, Jwk, MOST_KEYS, rsa};

/// What a text has to begin and end with.
const PEM: [&str; 2] = ["-----BEGIN CERTIFICATE-----\n", "\n-----END CERTIFICATE-----\n"];

/// Whether an object has nothing but certificates.
pub(super) fn are_all(object: &Map<String, Value>) -> bool {
    let is_one = |(name, value): (&String, &Value)| !name.is_empty() && value.as_str().and_then(within).is_some();
    !object.is_empty() && object.iter().all(is_one)
}

/// Their keys.
///
/// # Errors
/// If one of them has none that can be used: Envoy takes all of them, or nothing.
pub(super) fn keys(object: &Map<String, Value>) -> Result<Vec<Jwk>, BadKeys> {
    if object.len() > MOST_KEYS {
        return Err(BadKeys::TooMany);
    }
    let keys = object.iter().map(|(name, value)| key(name, value));
    keys.collect::<Option<Vec<_>>>().ok_or(BadKeys::NotCertificates)
}

fn within(text: &str) -> Option<&str> {
    text.strip_prefix(PEM[0])?.strip_suffix(PEM[1])
}

fn key(name: &str, value: &Value) -> Option<Jwk> {
    let text: String = within(value.as_str()?)?.split_ascii_whitespace().collect();
    let certificate = STANDARD.decode(text).ok()?;
    let (_, certificate) = parse_x509_certificate(&certificate).ok()?;
    let PublicKey::RSA(key) = certificate.public_key().parsed().ok()? else {
        return None;
    };
    Some(Jwk {
        kid: name.to_owned(),
        alg: String::new(),
        material: rsa(key.modulus.to_vec(), key.exponent.to_vec())?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{JwkMaterial, Jwks};

    /// Made with `openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=keys.test`, and long expired.
    const CERTIFICATE: &str = include_str!("certificates/rsa.pem");
    /// With a key on P-256.
    const OTHER: &str = include_str!("certificates/ec.pem");

    fn parsed(pairs: &[(&str, &str)]) -> Result<Jwks, BadKeys> {
        let object: Map<String, Value> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        Jwks::parse(Value::Object(object).to_string().as_bytes())
    }

    #[test]
    fn certificates_by_name_are_keys_of_rsa() {
        let keys = parsed(&[("a", CERTIFICATE), ("b", CERTIFICATE)]).unwrap();
        let names: Vec<&str> = keys.keys().iter().map(|key| &*key.kid).collect();
        assert_eq!(names, ["a", "b"]);
        let JwkMaterial::Rsa { n, e } = &keys.keys()[0].material else {
            panic!("{keys:?}")
        };
        assert_eq!((n.len(), &**e), (256, &[1, 0, 1][..]));
        assert!(keys.keys()[0].may_sign("a", "RS256") && !keys.keys()[0].may_sign("b", "RS256"));
    }

    #[test]
    fn all_of_them_are_taken_or_nothing() {
        let cut = CERTIFICATE.replace("MII", "MIIX");
        for pairs in [
            &[("a", CERTIFICATE), ("b", OTHER)][..],
            &[("a", &cut)],
            &[("a", CERTIFICATE), ("b", &cut)],
        ] {
            assert_eq!(parsed(pairs), Err(BadKeys::NotCertificates));
        }
        // What has something else in it is no such object.
        for pairs in [
            &[("a", CERTIFICATE), ("b", "text")][..],
            &[("", CERTIFICATE)],
            &[("a", CERTIFICATE.trim_end())],
        ] {
            assert_eq!(parsed(pairs), Err(BadKeys::NoList));
        }
    }

    #[test]
    fn the_certificates_of_a_key_say_nothing_of_it() {
        let only = r#"{"keys": [{"kty": "RSA", "kid": "a", "x5c": ["MIIB"]}]}"#;
        assert_eq!(Jwks::parse(only.as_bytes()), Err(BadKeys::NoneUsable));
    }
}
