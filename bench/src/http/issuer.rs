//! Who signs the tokens of the requests that are secured: one key for a run.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Whose tokens they are.
pub(crate) const NAME: &str = "https://issuer.bench";
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// A token and what verifies it.
pub(crate) struct Issuer {
    /// In its compact form, signed by RS256.
    pub(crate) token: String,
    /// The keys, as JSON (RFC 7517).
    pub(crate) keys: String,
}

impl Issuer {
    /// The one of this run.
    pub(crate) fn get() -> &'static Issuer {
        static ISSUER: OnceLock<Issuer> = OnceLock::new();
        ISSUER.get_or_init(|| Issuer::new().expect("a key of RSA, 2048 bits"))
    }

    fn new() -> Result<Issuer> {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).context("generating a key")?;
        let public = key.public_key();
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // Of 2048 bits, in DER: a sequence (4 bytes), the modulus (5 bytes and 256), the exponent.
        let modulus = public.as_ref().get(9..9 + 256).context("a modulus of 256 bytes")?;
        let keys = format!(
            "{{\"keys\": [{{\"kty\": \"RSA\", \"kid\": \"bench\", \"alg\": \"RS256\", \"n\": \"{}\", \"e\": \"AQAB\"}}]}}",
            number(modulus),
        );
        let expires = (SystemTime::now() + LIFETIME).duration_since(UNIX_EPOCH)?.as_secs();
        let claims = format!(
            "{{\"iss\": \"{NAME}\", \"sub\": \"bench\", \"aud\": [\"shop\"], \"exp\": {expires}, \"groups\": [\"admin\", \"dev\"]}}"
        );
        let signed = format!(
            "{}.{}",
            number(br#"{"alg":"RS256","kid":"bench","typ":"JWT"}"#),
            number(claims.as_bytes())
        );
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            signed.as_bytes(),
            &mut signature,
        )
        .context("signing a token")?;
        Ok(Issuer {
            token: format!("{signed}.{}", number(&signature)),
            keys,
        })
    }
}
