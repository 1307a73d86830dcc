//! Sets of keys (RFC 7517), as far as they verify signatures: which key is for which algorithm is settled here, before there is any token.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::{certificates, json_object};

/// More than these no issuer has; a token that names no key is tried with each.
pub(super) const MOST_KEYS: usize = 128;
/// Bits that the modulus of RSA has at least (NIST SP 800-131A), and at most.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Keys of one issuer. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Jwks(Vec<Jwk>);

/// One key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Jwk {
    /// Its name (`kid`); empty: it has none, and is tried for any token.
    pub kid: String,
    /// The only algorithm that it is for (`alg`); empty: any that its kind allows.
    pub alg: String,
    /// What it is.
    pub material: JwkMaterial,
}

/// What a key is made of. The kind decides which algorithms it can be used with: a public key of RSA never is a secret of HMAC.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum JwkMaterial {
    /// A public key of RSA: modulus and exponent, without zeros at the beginning.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent: 3 or 65537, as with Envoy.
        e: Vec<u8>,
    },
    /// A point on a curve, uncompressed (SEC 1, section 2.3.3).
    Ec(Curve, Vec<u8>),
    /// A public key of Ed25519.
    Ed25519([u8; 32]),
    /// A secret of HMAC.
    Secret(Vec<u8>),
}

/// A curve of NIST's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Curve {
    /// P-256, for ES256.
    P256,
    /// P-384, for ES384.
    P384,
    /// P-521, for ES512.
    P521,
}

/// A text is no set of keys, or has none that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// It is not JSON.
    #[error("is no JSON object")]
    NotJson,
    /// It has no list of keys.
    #[error("has no list `keys`")]
    NoList,
    /// Too many.
    #[error("has more than {MOST_KEYS} keys")]
    TooMany,
    /// It has certificates by their names, and one of them is none, or has no key of RSA that can be used.
    #[error("has certificates, of which one is none with a key of RSA of 2048 to 8192 bits")]
    NotCertificates,
    /// None of them verifies a signature that is known here.
    #[error("has no key that verifies signatures (RSA of 2048 to 8192 bits, EC, Ed25519, oct)")]
    NoneUsable,
}

impl fmt::Debug for Jwk {
    /// A secret is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jwk({:?} {:?} {})", self.kid, self.alg, self.material.kind())
    }
}

impl Jwks {
    /// The keys of a set that can be used: one that can't is passed over, as with Envoy. Of a key's certificates (`x5c`) nothing is believed: the key is what `n` and
    /// `e` say. As with Envoy, an object of nothing but certificates in PEM, by the names of their keys, is a set of keys, too (Google has them so).
    ///
    /// # Errors
    /// Why there is none.
    pub fn parse(text: &[u8]) -> Result<Self, BadKeys> {
        let object = json_object(text).ok_or(BadKeys::NotJson)?;
        if certificates::are_all(&object) {
            return certificates::keys(&object).map(Self);
        }
        let list = object.get("keys").and_then(Value::as_array).ok_or(BadKeys::NoList)?;
        if list.len() > MOST_KEYS {
            return Err(BadKeys::TooMany);
        }
        let keys: Vec<Jwk> = list.iter().filter_map(|key| Jwk::parse(key.as_object()?)).collect();
        match keys.is_empty() {
            true => Err(BadKeys::NoneUsable),
            false => Ok(Self(keys)),
        }
    }

    /// The keys, in their order.
    pub fn keys(&self) -> &[Jwk] {
        &self.0
    }
}

impl Jwk {
    fn parse(object: &Map<String, Value>) -> Option<Self> {
        // What is there and is no text says what we don't know.
        let text = |name: &str| match object.get(name) {
            None => Some(""),
            Some(value) => value.as_str(),
        };
        let (kid, alg) = (text("kid")?, text("alg")?);
        // A key to encrypt for its owner.
        if !matches!(text("use")?, "" | "sig") {
            return None;
        }
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(object.get(name)?.as_str()?).ok();
        let material = match text("kty")? {
            "RSA" => rsa(bytes("n")?, bytes("e")?)?,
            "EC" => {
                let curve = Curve::of(text("crv")?, alg)?;
                JwkMaterial::Ec(curve, curve.point(&bytes("x")?, &bytes("y")?)?)
            }
            "OKP" if text("crv")? == "Ed25519" => JwkMaterial::Ed25519(bytes("x")?.try_into().ok()?),
            "oct" => JwkMaterial::Secret(Some(bytes("k")?).filter(|secret| !secret.is_empty())?),
            _ => return None,
        };
        let is_of_kind = alg.is_empty() || material.algorithms().contains(&alg);
        is_of_kind.then(|| Self {
            kid: kid.to_owned(),
            alg: alg.to_owned(),
            material,
        })
    }

    /// Whether a token that names the key `kid`, if it names one, may be signed by this one with `alg`.
    pub fn may_sign(&self, kid: &str, alg: &str) -> bool {
        (kid.is_empty() || self.kid.is_empty() || self.kid == kid) && (self.alg.is_empty() || self.alg == alg)
    }
}

impl JwkMaterial {
    /// What it can be used with.
    pub fn algorithms(&self) -> &'static [&'static str] {
        match self {
            Self::Rsa { .. } => &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
            Self::Ec(Curve::P256, _) => &["ES256"],
            Self::Ec(Curve::P384, _) => &["ES384"],
            Self::Ec(Curve::P521, _) => &["ES512"],
            Self::Ed25519(_) => &["EdDSA"],
            Self::Secret(_) => &["HS256", "HS384", "HS512"],
        }
    }

    /// What it is, in the words of RFC 7518 (`kty`).
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "RSA",
            Self::Ec(..) => "EC",
            Self::Ed25519(_) => "OKP",
            Self::Secret(_) => "oct",
        }
    }
}

/// A key of RSA, if it can be used.
pub(super) fn rsa(n: Vec<u8>, e: Vec<u8>) -> Option<JwkMaterial> {
    let [n, e] = [n, e].map(|number| {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        number[zeros..].to_vec()
    });
    let bits = n.len() * 8 - n.first()?.leading_zeros() as usize;
    let is_usual = e == [3] || e == [1, 0, 1];
    (is_usual && RSA_BITS.contains(&bits)).then_some(JwkMaterial::Rsa { n, e })
}

impl Curve {
    /// As Envoy tells it: either may be missing, and they may not contradict each other.
    fn of(crv: &str, alg: &str) -> Option<Self> {
        match (crv, alg) {
            ("P-256", _) | ("", "" | "ES256") => Some(Self::P256),
            ("P-384", _) | ("", "ES384") => Some(Self::P384),
            ("P-521", _) | ("", "ES512") => Some(Self::P521),
            _ => None,
        }
    }

    fn point(self, x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
        let length: usize = match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        };
        let mut point = vec![4];
        for coordinate in [x, y] {
            let zeros = length
                .checked_sub(coordinate.len())
                .filter(|_| !coordinate.is_empty())?;
            point.extend(std::iter::repeat_n(0, zeros));
            point.extend(coordinate);
        }
        Some(point)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fields: &str) -> Option<Jwk> {
        Jwk::parse(&json_object(format!("{{{fields}}}").as_bytes()).unwrap())
    }

    fn encoded(length: usize) -> String {
        URL_SAFE_NO_PAD.encode(vec![0xc1; length])
    }

    #[test]
    fn a_key_is_for_its_kind_of_algorithm_only() {
        let n = encoded(256);
        let rsa = |more: &str| key(&format!(r#""kty": "RSA", "n": "{n}", "e": "AQAB"{more}"#));
        for (more, is_one) in [
            ("", true),
            (r#", "alg": "PS384", "use": "sig", "kid": "a""#, true),
            (r#", "alg": "HS256""#, false),
            (r#", "alg": "none""#, false),
            (r#", "alg": "RSA-OAEP""#, false),
            (r#", "alg": 1"#, false),
            (r#", "use": "enc""#, false),
        ] {
            assert_eq!(rsa(more).is_some(), is_one, "{more}");
        }
        let named = rsa(r#", "alg": "RS256", "kid": "a""#).unwrap();
        assert!(named.may_sign("a", "RS256") && named.may_sign("", "RS256"));
        assert!(!named.may_sign("b", "RS256") && !named.may_sign("a", "RS512"));
    }

    #[test]
    fn weak_and_strange_keys_are_passed_over() {
        let (short, coordinate, long) = (encoded(128), encoded(32), encoded(33));
        for fields in [
            format!(r#""kty": "RSA", "n": "{short}", "e": "AQAB""#),
            format!(r#""kty": "RSA", "n": "{}", "e": "AQ""#, encoded(256)),
            format!(r#""kty": "RSA", "n": "{}=", "e": "AQAB""#, encoded(256)),
            format!(r#""kty": "RSA", "n": "{}""#, encoded(256)),
            format!(r#""kty": "EC", "crv": "P-256", "x": "{coordinate}", "y": "{long}""#),
            format!(r#""kty": "EC", "crv": "P-256", "x": "{coordinate}", "y": """#),
            format!(r#""kty": "EC", "crv": "P-256", "alg": "ES384", "x": "{coordinate}", "y": "{coordinate}""#),
            format!(r#""kty": "EC", "crv": "secp256k1", "x": "{coordinate}", "y": "{coordinate}""#),
            format!(r#""kty": "OKP", "crv": "Ed25519", "x": "{long}""#),
            format!(r#""kty": "OKP", "crv": "X25519", "x": "{coordinate}""#),
            r#""kty": "oct", "k": """#.to_owned(),
            r#""kty": "dsa""#.to_owned(),
            String::new(),
        ] {
            assert!(key(&fields).is_none(), "{fields}");
        }
        let padded = key(r#""kty": "EC", "x": "AQ", "y": "Ag""#).unwrap();
        let JwkMaterial::Ec(Curve::P256, point) = padded.material else {
            panic!("{padded:?}");
        };
        assert_eq!((point.len(), point[32], point[64]), (65, 1, 2));
    }

    #[test]
    fn a_set_without_a_usable_key_is_none() {
        let many = format!(r#"{{"keys": [{}]}}"#, vec!["{}"; MOST_KEYS + 1].join(","));
        for (text, why) in [
            ("", BadKeys::NotJson),
            ("[]", BadKeys::NotJson),
            ("{}", BadKeys::NoList),
            (r#"{"keys": {}}"#, BadKeys::NoList),
            (r#"{"keys": [], "keys": []}"#, BadKeys::NotJson),
            (r#"{"keys": []}"#, BadKeys::NoneUsable),
            (r#"{"keys": [1, {"kty": "dsa"}]}"#, BadKeys::NoneUsable),
            (&many, BadKeys::TooMany),
        ] {
            assert_eq!(Jwks::parse(text.as_bytes()), Err(why), "{text:.40}");
        }
        let secret = Jwks::parse(br#"{"keys": [{"kty": "dsa"}, {"kty": "oct", "k": "c2VjcmV0"}]}"#).unwrap();
        assert_eq!(secret.keys().len(), 1);
        assert!(!format!("{secret:?}").contains("115"), "it is not shown: {secret:?}");
    }
}
