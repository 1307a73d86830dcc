//! Whether a request's tokens are what is required of them.
//!
//! It is decided at once and without touching the request: what is to be done to it is noted, in order. Where a provider has no keys yet, it can't be
//! decided, and is decided anew when it has some.

use underpass_config::http::{Audiences, Jwt, Locations, RequestView, Requirement};

use std::sync::Arc;

use super::claims;
use super::key_sets::{KeySet, ProvidersKeys, Verified};
use super::locations::{Found, Place, find};
use super::signature::verify;
use super::status::Status;
use super::token::{Terms, Token};

/// Why a requirement is not fulfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The request does not pass.
    Refused(Status),
    /// The provider at this place has no keys yet.
    Waits(usize),
}

/// What is to be done to a request.
#[derive(Clone, Debug)]
pub enum Effect<'c> {
    /// This provider has its say: what an earlier one has written into its fields goes.
    Begins(usize),
    /// A token of this provider's is good, and stands there.
    Accepted(usize, Arc<Verified>, Place<'c>),
}

/// A request before its judge.
pub struct Trial<'c, 'r> {
    /// What is required.
    pub jwt: &'c Jwt,
    /// The keys of its providers, in their order.
    pub keys: &'c [Arc<ProvidersKeys>],
    /// The request.
    pub request: RequestView<'r>,
    /// Whose store is looked into.
    pub core: usize,
    /// Seconds of Unix time.
    pub now: u64,
    /// Providers that were waited for in vain.
    pub unavailable: &'c [usize],
    /// What is to be done to it.
    pub effects: Vec<Effect<'c>>,
    /// Where no token stands any more.
    pub removed: Vec<Place<'c>>,
}

impl<'c> Trial<'c, '_> {
    /// Whether it is fulfilled.
    ///
    /// # Errors
    /// Why it is not.
    pub fn judge(&mut self, requirement: &'c Requirement) -> Result<(), Stop> {
        match requirement {
            Requirement::Nothing => Ok(()),
            Requirement::Provider(place) => self.provider(*place, None),
            Requirement::ProviderAndAudiences(place, audiences) => self.provider(*place, Some(audiences)),
            Requirement::All(all) => all.iter().try_for_each(|one| self.judge(one)),
            Requirement::Any(any) => self.any(any),
            Requirement::AllowMissing => self.whosever(false),
            Requirement::AllowMissingOrFailed => self.whosever(true),
        }
    }

    /// As Envoy's `AnyVerifierImpl`: of several reasons the last that says more than that a token is not there or is another's.
    fn any(&mut self, any: &'c [Requirement]) -> Result<(), Stop> {
        let may_be = |how: &Requirement| any.contains(how);
        let (may_be_missing, may_fail) = (
            may_be(&Requirement::AllowMissing),
            may_be(&Requirement::AllowMissingOrFailed),
        );
        let is_lax = |one: &&Requirement| matches!(one, Requirement::AllowMissing | Requirement::AllowMissingOrFailed);
        let mut asked = any.iter().filter(|one| !is_lax(one)).peekable();
        if asked.peek().is_none() && (may_be_missing || may_fail) {
            return self.whosever(may_fail);
        }
        let mut last = Status::Missing;
        for one in asked {
            match self.judge(one) {
                Ok(()) => return Ok(()),
                Err(Stop::Refused(status)) => {
                    let says_more = !matches!(status, Status::Missing | Status::UnknownIssuer);
                    if says_more || last == Status::Missing {
                        last = status;
                    }
                }
                waits => return waits,
            }
        }
        match may_fail || (may_be_missing && last == Status::Missing) {
            true => Ok(()),
            false => Err(Stop::Refused(last)),
        }
    }

    /// All tokens that stand where this provider's do, of which there is one at least: whoever reads the request after us may take any of them.
    fn provider(&mut self, place: usize, audiences: Option<&Audiences>) -> Result<(), Stop> {
        let jwt = self.jwt;
        let provider = jwt.providers().get(place).ok_or(Stop::Refused(Status::UnknownIssuer))?;
        self.effects.push(Effect::Begins(place));
        let found = self.find(&provider.locations)?;
        if found.is_empty() {
            return Err(Stop::Refused(Status::Missing));
        }
        let mut last_first = found.iter().rev();
        last_first.try_for_each(|token| self.token(token, Some(place), audiences))
    }

    /// All tokens that stand where anybody's do. (Envoy passes a request whose last one is good; here none may be bad.)
    fn whosever(&mut self, may_fail: bool) -> Result<(), Stop> {
        let jwt = self.jwt;
        self.effects.extend((0..jwt.providers().len()).map(Effect::Begins));
        let mut outcome = Ok(());
        let found = match self.find(&jwt.everywhere) {
            Err(_) if may_fail => return Ok(()),
            found => found?,
        };
        for token in found.iter().rev() {
            match self.token(token, None, None) {
                Err(Stop::Waits(place)) => return Err(Stop::Waits(place)),
                judged => outcome = outcome.and(judged),
            }
        }
        if may_fail { Ok(()) } else { outcome }
    }

    fn find<'s>(&self, locations: &'c Locations) -> Result<Vec<Found<'c, 's>>, Stop>
    where
        Self: 's,
    {
        find(locations, &self.request, &self.removed).map_err(Stop::Refused)
    }

    /// One token, of the provider at `place`, or of whoever has issued it.
    fn token(
        &mut self,
        found: &Found<'c, '_>,
        place: Option<usize>,
        audiences: Option<&Audiences>,
    ) -> Result<(), Stop> {
        if let Some(place) = place
            && let Some(verified) = self.set(place).and_then(|set| set.verified(self.core, &found.text))
        {
            self.check(&verified.terms, found, place, audiences)
                .map_err(Stop::Refused)?;
            self.accept(place, verified, found.place);
            return Ok(());
        }
        let token = Token::parse(&found.text).map_err(Stop::Refused)?;
        let issuer = &*token.terms.issuer;
        let issued = || self.jwt.issued_by(issuer).filter(|_| found.issuers.have(issuer));
        let place = place.or_else(issued).ok_or(Stop::Refused(Status::UnknownIssuer))?;
        self.check(&token.terms, found, place, audiences)
            .map_err(Stop::Refused)?;
        let Some(set) = self.set(place) else {
            return Err(match self.unavailable.contains(&place) {
                true => Stop::Refused(Status::NoKeys),
                false => Stop::Waits(place),
            });
        };
        verify(&token, &set.keys).map_err(Stop::Refused)?;
        let provider = &self.jwt.providers()[place];
        let verified = Arc::new(Verified {
            written: claims::written(provider, &token),
            terms: token.terms,
            claims: Arc::new(claims::shown(provider, token.claims)),
        });
        set.keep(self.core, &found.text, &verified);
        self.accept(place, verified, found.place);
        Ok(())
    }

    fn set(&self, place: usize) -> Option<Arc<KeySet>> {
        self.keys.get(place)?.in_force()
    }

    /// What a token has to be each time, be it verified already or not.
    fn check(
        &self,
        terms: &Terms,
        found: &Found<'_, '_>,
        place: usize,
        audiences: Option<&Audiences>,
    ) -> Result<(), Status> {
        if !found.issuers.have(&terms.issuer) {
            return Err(Status::UnknownIssuer);
        }
        let provider = &self.jwt.providers()[place];
        terms.hold(self.now, provider.clock_skew_seconds)?;
        match audiences.unwrap_or(&provider.audiences).allow(&terms.audiences) {
            true => Ok(()),
            false => Err(Status::AudienceNotAllowed),
        }
    }

    fn accept(&mut self, provider: usize, verified: Arc<Verified>, place: Place<'c>) {
        self.effects.push(Effect::Accepted(provider, verified, place));
        if !self.jwt.providers()[provider].forward {
            self.removed.push(place);
        }
    }
}
