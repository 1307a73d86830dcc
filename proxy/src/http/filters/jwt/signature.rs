//! Whether a key has signed a token. The key says what it can have signed with, never the token alone: `alg` only chooses among that.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use underpass_config::http::{Curve, JwkMaterial, Jwks};

use super::status::Status;
use super::token::Token;

/// Whether one of `keys` has signed it.
///
/// # Errors
/// If none has.
pub fn verify(token: &Token<'_>, keys: &Jwks) -> Result<(), Status> {
    let mut may_any = false;
    for key in keys.keys().iter().filter(|key| key.may_sign(&token.kid, &token.alg)) {
        may_any = true;
        if matches!(key.material, JwkMaterial::Ed25519(_)) && token.alg == "EdDSA" && token.signature.len() != 64 {
            return Err(Status::SignatureWrongLength);
        }
        if has_signed(token, &key.material) {
            return Ok(());
        }
    }
    match may_any {
        true => Err(Status::VerificationFails),
        false => Err(Status::NoSuchKey),
    }
}

fn has_signed(token: &Token<'_>, key: &JwkMaterial) -> bool {
    if !key.algorithms().contains(&&*token.alg) {
        return false;
    }
    let (signed, signature) = (token.signed.as_bytes(), &*token.signature);
    let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
        UnparsedPublicKey::new(algorithm, key).verify(signed, signature).is_ok()
    };
    match key {
        JwkMaterial::Rsa { n, e } => {
            let key = RsaPublicKeyComponents { n, e };
            rsa(&token.alg).is_some_and(|parameters| key.verify(parameters, signed, signature).is_ok())
        }
        JwkMaterial::Ec(Curve::P256, point) => by(&ECDSA_P256_SHA256_FIXED, point),
        JwkMaterial::Ec(Curve::P384, point) => by(&ECDSA_P384_SHA384_FIXED, point),
        JwkMaterial::Ec(Curve::P521, point) => by(&ECDSA_P521_SHA512_FIXED, point),
        JwkMaterial::Ed25519(key) => by(&ED25519, key),
        JwkMaterial::Secret(secret) => {
            let Some(algorithm) = digest(&token.alg) else {
                return false;
            };
            // In constant time.
            hmac::verify(&hmac::Key::new(algorithm, secret), signed, signature).is_ok()
        }
    }
}

fn rsa(alg: &str) -> Option<&'static RsaParameters> {
    Some(match alg {
        "RS256" => &RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &RSA_PSS_2048_8192_SHA256,
        "PS384" => &RSA_PSS_2048_8192_SHA384,
        "PS512" => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn digest(alg: &str) -> Option<hmac::Algorithm> {
    match alg {
        "HS256" => Some(hmac::HMAC_SHA256),
        "HS384" => Some(hmac::HMAC_SHA384),
        "HS512" => Some(hmac::HMAC_SHA512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key, the token and the signature of RFC 7515, appendix A.1.
    #[test]
    fn the_rfcs_example_is_signed_by_its_key_alone() {
        let keys = |k: &str| {
            let text = format!(r#"{{"keys": [{{"kty": "oct", "k": "{k}"}}]}}"#);
            Jwks::parse(text.as_bytes()).unwrap()
        };
        let right = keys("AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow");
        let text = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9\
            .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
            .dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
        let token = Token::parse(text).unwrap();
        assert_eq!(verify(&token, &right), Ok(()));
        assert_eq!(verify(&token, &keys("AyM1")), Err(Status::VerificationFails));
        for byte in 0..token.signature.len() {
            let mut other = token.clone();
            other.signature[byte] ^= 1;
            assert_eq!(verify(&other, &right), Err(Status::VerificationFails));
        }
        let mut shorter = token.clone();
        shorter.signature.pop();
        assert_eq!(verify(&shorter, &right), Err(Status::VerificationFails));
    }
}
