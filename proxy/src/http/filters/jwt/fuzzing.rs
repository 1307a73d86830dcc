//! Any text where a token is to stand, and any where keys are (see [`crate::fuzzing`]).

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use underpass_config::http::Jwks;

use super::signature::verify;
use super::token::Token;

/// The secret of RFC 7515, appendix A.1, and a key of each other kind (of whose secret halves nobody knows anything).
const KEYS: &str = r#"{"keys": [
    {"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"},
    {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
]}"#;
/// What that secret has signed.
const SIGNED: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9\
    .eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ\
    .dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

/// A token, or a set of keys. True if it is one; only what was signed is ever believed, in the one writing that it was signed in.
pub fn jwt(bytes: &[u8]) -> bool {
    static KNOWN: OnceLock<Jwks> = OnceLock::new();
    let known = KNOWN.get_or_init(|| Jwks::parse(KEYS.as_bytes()).unwrap_or_else(|error| unreachable!("{error}")));
    if let Ok(keys) = Jwks::parse(bytes) {
        assert!(!keys.keys().is_empty());
        return true;
    }
    let Ok(text) = str::from_utf8(bytes) else { return false };
    let Ok(token) = Token::parse(text) else { return false };
    let signature = URL_SAFE_NO_PAD.encode(&token.signature);
    assert_eq!(
        text,
        format!("{}.{signature}", token.signed),
        "there is another writing of it"
    );
    assert_ne!(token.alg.to_ascii_lowercase(), "none");
    let is_signed = verify(&token, known).is_ok();
    assert_eq!(is_signed, text == SIGNED, "{text}");
    let _ = token.terms.hold(u64::MAX, u64::MAX);
    true
}
