//! Whose tokens a request comes with (Envoy's `jwt_authn`).
//!
//! Nothing of a token is believed before its signature is verified, and nothing of a request that only this filter may write goes on from a client:
//! the fields that tell endpoints of tokens are taken off first, of whatever request. (Envoy takes them off when it looks at their provider, which it
//! does not for a preflight, nor for those behind one that was enough.)

mod claims;
mod fetch;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod key_sets;
mod locations;
mod requirement;
mod signature;
mod status;
mod token;

use std::sync::Arc;
use std::time::SystemTime;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, HeaderValue, ORIGIN};
use http::{Method, StatusCode};
use underpass_config::http::{JwksSource, Jwt, Requirement};

pub use fetch::follow;
pub use key_sets::{KeySets, ProvidersKeys};
use locations::{Place, without_param};
use requirement::{Effect, Stop, Trial};
pub use status::Status;

use super::{Findings, Refusal};
use crate::http::intake::Intake;

/// Of a request's URI, so much is in a challenge (`MaximumUriLength` of Envoy's filter).
const LONGEST_PATH: usize = 256;

/// The keys of a filter's providers, looked up for a connection.
#[derive(Debug)]
pub struct SettledJwt(Vec<Arc<ProvidersKeys>>);

impl SettledJwt {
    /// Those of `jwt`.
    pub fn new(jwt: &Jwt, known: &KeySets) -> Self {
        Self(jwt.providers().iter().map(|provider| known.of(provider)).collect())
    }

    /// Judges a request, does to it what is to be done, and notes what its token claims.
    ///
    /// # Errors
    /// Why it does not pass.
    pub async fn judge(
        &self,
        jwt: &Jwt,
        intake: &mut Intake,
        core: usize,
        findings: &mut Findings,
    ) -> Result<(), Status> {
        take_off_written(jwt, intake, findings);
        if jwt.bypass_cors_preflight && is_preflight(intake) {
            return Ok(());
        }
        let requirement = jwt.required(intake.view().path);
        if *requirement == Requirement::Nothing {
            return Ok(());
        }
        let mut unavailable = Vec::new();
        loop {
            let mut trial = Trial {
                jwt,
                keys: &self.0,
                request: intake.view(),
                core,
                now: now(),
                unavailable: &unavailable,
                effects: Vec::new(),
                removed: Vec::new(),
            };
            let judged = trial.judge(requirement);
            let effects = trial.effects;
            match judged {
                Ok(()) => {
                    apply(jwt, effects, intake, findings);
                    return Ok(());
                }
                Err(Stop::Refused(status)) => return Err(status),
                Err(Stop::Waits(place)) => {
                    let keys = &self.0[place];
                    let JwksSource::Remote(remote) = &keys.provider.keys else {
                        return Err(Status::NoKeys);
                    };
                    // Each is waited for once: it then has keys, or is known to have none.
                    if !keys.wait(remote.timeout).await {
                        unavailable.push(place);
                    }
                }
            }
        }
    }
}

/// Takes off what only the filter may write.
pub(super) fn take_off_written(jwt: &Jwt, intake: &mut Intake, findings: &mut Findings) {
    for name in jwt.written() {
        // A route may have been found by it.
        findings.is_edited |= intake.headers.remove(name).is_some();
    }
}

/// The proxy's answer to a request that does not pass, in Envoy's words.
pub(super) fn refusal(status: Status, intake: &Intake) -> Refusal {
    let text = status.text();
    Refusal {
        status: match status {
            Status::AudienceNotAllowed => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        },
        text,
        details: format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_")),
        challenge: challenge(status, intake),
    }
}

fn challenge(status: Status, intake: &Intake) -> Option<HeaderValue> {
    let target = intake.target.as_bytes();
    let mut challenge = b"Bearer realm=\"http://".to_vec();
    challenge.extend(intake.authority.as_bytes());
    challenge.extend(&target[..target.len().min(LONGEST_PATH)]);
    challenge.push(b'"');
    if status != Status::Missing {
        challenge.extend(b", error=\"invalid_token\"");
    }
    HeaderValue::from_bytes(&challenge).ok()
}

/// Seconds of Unix time.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Before it, nothing holds that says since when it does.
    since.map_or(0, |since| since.as_secs())
}

/// Whether a browser asks whether it may ask.
fn is_preflight(intake: &Intake) -> bool {
    let has = |name: HeaderName| intake.headers.get(name).is_some_and(|value| !value.is_empty());
    intake.method == Method::OPTIONS && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}

fn apply(jwt: &Jwt, effects: Vec<Effect<'_>>, intake: &mut Intake, findings: &mut Findings) {
    for effect in effects {
        match effect {
            Effect::Begins(provider) => {
                for name in jwt.providers()[provider].written() {
                    intake.headers.remove(name);
                }
            }
            Effect::Accepted(provider, verified, place) => {
                let provider = &jwt.providers()[provider];
                let written = &verified.written;
                for (name, value) in written.payload.iter().chain(&written.claims) {
                    intake.headers.append(name, value.clone());
                }
                findings.is_edited |= provider.clear_route_cache && !written.claims.is_empty();
                if !provider.forward {
                    take_off(intake, place);
                }
                if provider.shows_claims {
                    findings.claims = Some(verified.claims.clone());
                }
            }
        }
    }
}

/// Takes a token off that the endpoint is not to get. (Envoy writes the rest of the query anew, decoded and in another order; here it stays.)
fn take_off(intake: &mut Intake, place: Place<'_>) {
    match place {
        Place::Header(name) => drop(intake.headers.remove(name)),
        Place::Param(name) => {
            let left = intake.view().query.map(|query| without_param(query, name));
            if let Some(left) = left {
                intake.set_query(&left);
            }
        }
        // As with Envoy: it is the user's, not the request's.
        Place::Cookie => {}
    }
}
