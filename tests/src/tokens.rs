//! Issuers of tokens, with keys of all kinds.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
    RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{hmac, rsa};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// How a token is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// RSA, PKCS#1, with SHA-256.
    Rs256,
    /// The same with SHA-512.
    Rs512,
    /// RSA, PSS, with SHA-256.
    Ps256,
    /// ECDSA on P-256.
    Es256,
    /// Ed25519.
    EdDsa,
    /// HMAC with SHA-256, whose key is a secret.
    Hs256,
}

/// All of them.
pub const ALL: [By; 6] = [By::Rs256, By::Rs512, By::Ps256, By::Es256, By::EdDsa, By::Hs256];

impl By {
    /// As a token's header names it (RFC 7518, section 3.1).
    pub fn alg(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Hs256 => "HS256",
        }
    }

    /// The name of the key that signs so.
    pub fn kid(self) -> &'static str {
        match self {
            Self::Rs256 => "rsa",
            Self::Rs512 | Self::Ps256 => "any-rsa",
            Self::Es256 => "ec",
            Self::EdDsa => "ed",
            Self::Hs256 => "secret",
        }
    }
}

/// One who issues tokens.
pub struct Issuer {
    rsa: RsaKeyPair,
    any_rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
    secret: [u8; 32],
}

impl Issuer {
    /// One with keys of its own.
    #[expect(clippy::new_without_default, reason = "each is another")]
    pub fn new() -> Self {
        let rsa = || rsa::KeyPair::generate(KeySize::Rsa2048).expect("a key");
        Self {
            rsa: rsa(),
            any_rsa: rsa(),
            ec: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
            ed: Ed25519KeyPair::generate().expect("a key"),
            secret: *b"a secret that nobody can guess..",
        }
    }

    /// Its set of keys. One is for any algorithm of its kind, one is not known to anybody.
    pub fn jwks(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let n = |key: &RsaKeyPair| encode(&modulus(key));
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "use": "sig", "kid": "rsa", "alg": "RS256", "n": n(&self.rsa), "e": "AQAB"},
            {"kty": "what", "kid": "unknown"},
            {"kty": "RSA", "kid": "any-rsa", "n": n(&self.any_rsa), "e": "AQAB"},
            {"kty": "EC", "kid": "ec", "alg": "ES256", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])},
            {"kty": "OKP", "kid": "ed", "alg": "EdDSA", "crv": "Ed25519", "x": encode(self.ed.public_key().as_ref())},
            {"kty": "oct", "kid": "secret", "alg": "HS256", "k": encode(&self.secret)},
        ]})
    }

    /// A token with an ordinary header.
    pub fn token(&self, by: By, claims: &Value) -> String {
        self.signed(
            by,
            &json!({"alg": by.alg(), "kid": by.kid()}).to_string(),
            &claims.to_string(),
        )
    }

    /// A token of these texts, whatever they say.
    pub fn signed(&self, by: By, header: &str, claims: &str) -> String {
        let signed = unsigned(header, claims);
        let signature = URL_SAFE_NO_PAD.encode(self.sign(by, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// The signature of a message.
    pub fn sign(&self, by: By, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |key: &RsaKeyPair, encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(encoding, &random, message, &mut signature)
                .expect("a signature");
            signature
        };
        match by {
            By::Rs256 => rsa(&self.rsa, &RSA_PKCS1_SHA256),
            By::Rs512 => rsa(&self.any_rsa, &RSA_PKCS1_SHA512),
            By::Ps256 => rsa(&self.any_rsa, &RSA_PSS_SHA256),
            By::Es256 => self.ec.sign(&random, message).expect("a signature").as_ref().to_vec(),
            By::EdDsa => self.ed.sign(message).as_ref().to_vec(),
            By::Hs256 => by_secret(&self.secret, message),
        }
    }

    /// Its public keys of RSA, in each writing that somebody may take for a secret: modulus, DER, PEM, JWK.
    pub fn public_writings(&self) -> Vec<Vec<u8>> {
        let of = |key: &RsaKeyPair| {
            let der = key.public_key().as_ref().to_vec();
            let text = base64::engine::general_purpose::STANDARD.encode(&der);
            let pem = format!("-----BEGIN RSA PUBLIC KEY-----\n{text}\n-----END RSA PUBLIC KEY-----\n");
            let encoded = URL_SAFE_NO_PAD.encode(modulus(key));
            [modulus(key), encoded.into_bytes(), der, pem.into_bytes()]
        };
        let keys = self.jwks()["keys"].as_array().expect("keys").clone();
        let whole = keys.into_iter().map(|key| key.to_string().into_bytes());
        of(&self.rsa)
            .into_iter()
            .chain(of(&self.any_rsa))
            .chain(whole)
            .collect()
    }
}

/// An HMAC by any secret.
pub fn by_secret(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::sign(&key, message).as_ref().to_vec()
}

/// Header and payload, encoded.
pub fn unsigned(header: &str, claims: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
}

/// Of 2048 bits, in DER: a sequence (4 bytes), the modulus (5 bytes and 256), the exponent.
fn modulus(key: &RsaKeyPair) -> Vec<u8> {
    key.public_key().as_ref()[9..265].to_vec()
}
