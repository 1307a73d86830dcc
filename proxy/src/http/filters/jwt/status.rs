//! Why a token is refused, in Envoy's words (`getStatusString` of its `source/common/jwt/status.cc`), which its clients may go by.

/// Why a request does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// There is none.
    Missing,
    /// It is for later.
    NotYetValid,
    /// It was for earlier.
    Expired,
    /// It has not three parts.
    BadFormat,
    /// Its header is not encoded as it has to be.
    HeaderBadBase64,
    /// Its header is no object.
    HeaderBadJson,
    /// Its header names no algorithm.
    HeaderBadAlg,
    /// The algorithm is none that is known, or `none`.
    HeaderUnknownAlg,
    /// The name of its key is no text.
    HeaderBadKid,
    /// What it claims is not encoded as it has to be.
    PayloadBadBase64,
    /// What it claims is no object.
    PayloadBadJson,
    /// This claim is no text.
    NotText(TextClaim),
    /// This claim is no number.
    NotNumber(TimeClaim),
    /// This claim is no number that a time can be.
    OutOfRange(TimeClaim),
    /// `aud` is neither a text nor a list of texts.
    BadAudiences,
    /// Its signature is not encoded as it has to be.
    SignatureBadBase64,
    /// Nobody whose tokens stand there has issued it.
    UnknownIssuer,
    /// It is for others.
    AudienceNotAllowed,
    /// A signature of Ed25519 has another length.
    SignatureWrongLength,
    /// No key has signed it.
    VerificationFails,
    /// No key may have signed it.
    NoSuchKey,
    /// There are too many.
    TooMany,
    /// There are no keys: who has them can't be asked.
    NoKeys,
}

/// Claims that are texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TextClaim {
    /// Who has issued it.
    Iss,
    /// Of whom it speaks.
    Sub,
    /// Its own name.
    Jti,
}

/// Claims that are times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeClaim {
    /// Since when it is there.
    Iat,
    /// From when on it holds.
    Nbf,
    /// Until when it holds.
    Exp,
}

impl Status {
    /// What the client is told, and the log.
    pub fn text(self) -> &'static str {
        use TextClaim::{Iss, Jti, Sub};
        use TimeClaim::{Exp, Iat, Nbf};
        match self {
            Self::Missing => "Jwt is missing",
            Self::NotYetValid => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::BadFormat => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderBadBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderBadJson => "Jwt header is an invalid JSON",
            Self::HeaderBadAlg => "Jwt header [alg] field is required and must be a string",
            Self::HeaderUnknownAlg => "Jwt header [alg] is not supported",
            Self::HeaderBadKid => "Jwt header [kid] field is not a string",
            Self::PayloadBadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadBadJson => "Jwt payload is an invalid JSON",
            Self::NotText(Iss) => "Jwt payload [iss] field is not a string",
            Self::NotText(Sub) => "Jwt payload [sub] field is not a string",
            Self::NotText(Jti) => "Jwt payload [jti] field is not a string",
            Self::NotNumber(Iat) => "Jwt payload [iat] field is not an integer",
            Self::NotNumber(Nbf) => "Jwt payload [nbf] field is not an integer",
            Self::NotNumber(Exp) => "Jwt payload [exp] field is not an integer",
            Self::OutOfRange(Iat) => "Jwt payload [iat] field is not a positive 64 bit integer",
            Self::OutOfRange(Nbf) => "Jwt payload [nbf] field is not a positive 64 bit integer",
            Self::OutOfRange(Exp) => "Jwt payload [exp] field is not a positive 64 bit integer",
            Self::BadAudiences => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureBadBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::SignatureWrongLength => "Jwt ED25519 signature is wrong length",
            Self::UnknownIssuer => "Jwt issuer is not configured",
            Self::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Self::VerificationFails => "Jwt verification fails",
            Self::NoSuchKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::TooMany => "Found multiple Jwt tokens",
            Self::NoKeys => "Jwks remote fetch is failed",
        }
    }
}
