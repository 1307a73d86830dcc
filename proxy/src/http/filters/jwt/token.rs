//! A token, read before anybody knows whether it is to be believed. In the order in which Envoy looks at its parts, so that of several mistakes
//! the same is told.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use underpass_config::http::json_object;

use super::status::{Status, TextClaim, TimeClaim};

/// What a token says.
#[derive(Clone, Debug)]
pub struct Token<'t> {
    /// What was signed: its first two parts, as they are written.
    pub signed: &'t str,
    /// Its second part, as it is written.
    pub payload: &'t str,
    /// How it was signed: never `none`.
    pub alg: String,
    /// By which key; empty: that is not said.
    pub kid: String,
    /// The signature.
    pub signature: Vec<u8>,
    /// When and by whom it can be used.
    pub terms: Terms,
    /// All that it claims.
    pub claims: Map<String, Value>,
}

/// What decides each time whether a token can be used, be its signature as good as it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Who has issued it; empty: that is not said.
    pub issuer: String,
    /// For whom it is.
    pub audiences: Vec<String>,
    /// From when on it holds, in seconds of Unix time.
    pub not_before: u64,
    /// Until when; 0: for ever, as with Envoy.
    pub expires: u64,
}

/// Algorithms that are known (RFC 7518, section 3.1; RFC 8037): `none` is not among them.
const ALGORITHMS: [&str; 13] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "EdDSA",
];

impl<'t> Token<'t> {
    /// The token that `text` is.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(text: &'t str) -> Result<Self, Status> {
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Status::BadFormat);
        };
        if [header, payload, signature].iter().any(|part| part.is_empty()) {
            return Err(Status::BadFormat);
        }
        let signed = &text[..header.len() + 1 + payload.len()];
        let decode = |part: &str, status| URL_SAFE_NO_PAD.decode(part).map_err(|_| status);
        let header = decode(header, Status::HeaderBadBase64)?;
        let header = json_object(&header).ok_or(Status::HeaderBadJson)?;
        let alg = header.get("alg").and_then(Value::as_str).ok_or(Status::HeaderBadAlg)?;
        if !ALGORITHMS.contains(&alg) {
            return Err(Status::HeaderUnknownAlg);
        }
        let kid = match header.get("kid") {
            None => "",
            Some(kid) => kid.as_str().ok_or(Status::HeaderBadKid)?,
        };
        let claims = decode(payload, Status::PayloadBadBase64)?;
        let claims = json_object(&claims).ok_or(Status::PayloadBadJson)?;
        let terms = Terms::of(&claims)?;
        Ok(Self {
            signed,
            payload,
            alg: alg.to_owned(),
            kid: kid.to_owned(),
            signature: decode(signature, Status::SignatureBadBase64)?,
            terms,
            claims,
        })
    }
}

impl Terms {
    fn of(claims: &Map<String, Value>) -> Result<Self, Status> {
        let text = |name: &str, claim| match claims.get(name) {
            None => Ok(""),
            Some(value) => value.as_str().ok_or(Status::NotText(claim)),
        };
        let issuer = text("iss", TextClaim::Iss)?;
        text("sub", TextClaim::Sub)?;
        time(claims.get("iat"), TimeClaim::Iat)?;
        let not_before = time(claims.get("nbf"), TimeClaim::Nbf)?;
        let expires = time(claims.get("exp"), TimeClaim::Exp)?;
        text("jti", TextClaim::Jti)?;
        Ok(Self {
            issuer: issuer.to_owned(),
            audiences: audiences(claims.get("aud"))?,
            not_before,
            expires,
        })
    }

    /// Whether it holds at `now`, where clocks may differ by `skew`, all in seconds.
    ///
    /// # Errors
    /// If it holds no more, or not yet.
    pub fn hold(&self, now: u64, skew: u64) -> Result<(), Status> {
        if now.saturating_add(skew) < self.not_before {
            return Err(Status::NotYetValid);
        }
        match self.expires > 0 && now > self.expires.saturating_add(skew) {
            true => Err(Status::Expired),
            false => Ok(()),
        }
    }
}

/// In whole seconds; 0 if it is not there.
fn time(value: Option<&Value>, claim: TimeClaim) -> Result<u64, Status> {
    /// 2⁶⁴.
    const END: f64 = 18_446_744_073_709_551_616.0;
    let Some(value) = value else { return Ok(0) };
    let seconds = value.as_f64().ok_or(Status::NotNumber(claim))?;
    match (0.0..END).contains(&seconds) {
        // A fraction would round to the second that has begun: the time before 1 is 0, which is no time at all.
        true if claim == TimeClaim::Exp && seconds > 0.0 => Ok((seconds as u64).max(1)),
        true => Ok(seconds as u64),
        false => Err(Status::OutOfRange(claim)),
    }
}

fn audiences(value: Option<&Value>) -> Result<Vec<String>, Status> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(one)) => Ok(vec![one.clone()]),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|one| one.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or(Status::BadAudiences)
        }
        Some(_) => Err(Status::BadAudiences),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(header: &str, payload: &str) -> String {
        let [header, payload] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
        format!("{header}.{payload}.c2ln")
    }

    fn status(header: &str, payload: &str) -> Option<Status> {
        Token::parse(&token(header, payload)).err()
    }

    #[test]
    fn what_is_no_token_is_told_why() {
        let good = r#"{"alg": "RS256"}"#;
        assert_eq!(status(good, "{}"), None);
        for (header, why) in [
            ("{}", Status::HeaderBadAlg),
            (r#"{"alg": null}"#, Status::HeaderBadAlg),
            (r#"{"alg": "none"}"#, Status::HeaderUnknownAlg),
            (r#"{"alg": "None"}"#, Status::HeaderUnknownAlg),
            (r#"{"alg": ""}"#, Status::HeaderUnknownAlg),
            (r#"{"alg": "rs256"}"#, Status::HeaderUnknownAlg),
            (r#"{"alg": "RS256", "alg": "RS256"}"#, Status::HeaderBadJson),
            (r#"["RS256"]"#, Status::HeaderBadJson),
            (r#"{"alg": "RS256", "kid": 1}"#, Status::HeaderBadKid),
        ] {
            assert_eq!(status(header, "{}"), Some(why), "{header}");
        }
        for (payload, why) in [
            ("[]", Status::PayloadBadJson),
            ("null", Status::PayloadBadJson),
            (r#"{"iss": "a", "iss": "b"}"#, Status::PayloadBadJson),
            (r#"{"iss": null}"#, Status::NotText(TextClaim::Iss)),
            (r#"{"sub": ["a"]}"#, Status::NotText(TextClaim::Sub)),
            (r#"{"exp": "9999999999"}"#, Status::NotNumber(TimeClaim::Exp)),
            (r#"{"exp": -1}"#, Status::OutOfRange(TimeClaim::Exp)),
            (r#"{"exp": 1e20}"#, Status::OutOfRange(TimeClaim::Exp)),
            (r#"{"nbf": 18446744073709551615}"#, Status::OutOfRange(TimeClaim::Nbf)),
            (r#"{"aud": {"a": "b"}}"#, Status::BadAudiences),
            (r#"{"aud": ["a", 1]}"#, Status::BadAudiences),
        ] {
            assert_eq!(status(good, payload), Some(why), "{payload}");
        }
    }

    /// One signature has one writing, else a token that is refused by its text could be written anew.
    #[test]
    fn only_one_writing_of_a_part_is_taken() {
        let good = token(r#"{"alg": "RS256"}"#, "{}");
        assert!(Token::parse(&good).is_ok());
        for (text, why) in [
            (good.replace(".c2ln", ".c2ln="), Status::SignatureBadBase64),
            // Bits are left over, and are not zero.
            (good.replace(".c2ln", ".c2l"), Status::SignatureBadBase64),
            (good.replace(".c2ln", ".c2+n"), Status::SignatureBadBase64),
            (good.replace(".c2ln", ".c2l n"), Status::SignatureBadBase64),
            (good.replace(".c2ln", "."), Status::BadFormat),
            (good.replace(".c2ln", ""), Status::BadFormat),
            (format!("{good}."), Status::BadFormat),
            (format!("{good}.x"), Status::BadFormat),
            (format!(" {good}"), Status::HeaderBadBase64),
            (String::new(), Status::BadFormat),
            ("..".to_owned(), Status::BadFormat),
        ] {
            assert_eq!(Token::parse(&text).err(), Some(why), "{text}");
        }
    }

    #[test]
    fn a_token_holds_from_its_beginning_to_its_end_and_a_little_more() {
        let terms = |payload: &str| Terms::of(&json_object(payload.as_bytes()).unwrap()).unwrap();
        let both = terms(r#"{"nbf": 1000, "exp": 2000}"#);
        for (now, expected) in [
            (939, Err(Status::NotYetValid)),
            (940, Ok(())),
            (2060, Ok(())),
            (2061, Err(Status::Expired)),
            (u64::MAX, Err(Status::Expired)),
        ] {
            assert_eq!(both.hold(now, 60), expected, "{now}");
        }
        assert_eq!(terms("{}").hold(u64::MAX, 60), Ok(()));
        assert_eq!(terms(r#"{"exp": 0.5}"#).hold(1_800_000_000, 60), Err(Status::Expired));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".*") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn any_payload_is_read(payload in any::<Vec<u8>>()) {
            let payload = URL_SAFE_NO_PAD.encode(payload);
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg": "RS256"}"#);
            let _ = Token::parse(&format!("{header}.{payload}.c2ln"));
        }
    }
}
