//! Where tokens stand in requests.

use std::collections::BTreeMap;

use http::HeaderName;
use http::header::AUTHORIZATION;

use crate::Text;

/// Places where tokens stand, each with those who may have issued what stands there. In Envoy's order, by which several tokens are tried:
/// fields by name and prefix, then parameters, then cookies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Locations {
    /// By name and prefix in one text, as Envoy sorts them, and by where the one ends.
    headers: BTreeMap<(String, usize), Located<HeaderLocation>>,
    params: BTreeMap<Text, Issuers>,
    cookies: BTreeMap<Text, Issuers>,
}

/// A place, and whose tokens stand there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Located<P> {
    /// The place.
    pub place: P,
    /// Those who may have issued them.
    pub issuers: Issuers,
}

/// A header field, and what stands before the token in it (`Bearer `).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderLocation {
    /// The field.
    pub name: HeaderName,
    /// What stands before.
    pub prefix: Text,
}

/// Who may have issued a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Issuers {
    is_any: bool,
    named: Vec<Text>,
}

impl Issuers {
    /// Whether this one may have.
    pub fn have(&self, issuer: &str) -> bool {
        self.is_any || self.named.iter().any(|one| **one == *issuer)
    }

    /// An empty name: anybody.
    fn add(&mut self, issuer: &Text) {
        match issuer.is_empty() {
            true => self.is_any = true,
            false => self.named.push(issuer.clone()),
        }
    }

    fn extend(&mut self, others: &Self) {
        self.is_any |= others.is_any;
        self.named.extend(others.named.iter().cloned());
    }
}

impl Locations {
    /// Those of tokens that `issuer` issues. Without any: `Authorization: Bearer …`, and the parameter `access_token`.
    pub fn new(issuer: &Text, headers: Vec<HeaderLocation>, params: Vec<Text>, cookies: Vec<Text>) -> Self {
        let mut locations = Self::default();
        let is_default = headers.is_empty() && params.is_empty() && cookies.is_empty();
        for place in headers {
            locations.header(place).add(issuer);
        }
        for name in params {
            locations.params.entry(name).or_default().add(issuer);
        }
        for name in cookies {
            locations.cookies.entry(name).or_default().add(issuer);
        }
        if is_default {
            let place = HeaderLocation {
                name: AUTHORIZATION,
                prefix: "Bearer ".into(),
            };
            locations.header(place).add(issuer);
            locations.params.entry("access_token".into()).or_default().add(issuer);
        }
        locations
    }

    fn header(&mut self, place: HeaderLocation) -> &mut Issuers {
        let key = (format!("{}{}", place.name, place.prefix), place.name.as_str().len());
        let located = self.headers.entry(key).or_insert_with(|| Located {
            place,
            issuers: Issuers::default(),
        });
        &mut located.issuers
    }

    /// And those.
    pub(super) fn extend(&mut self, others: &Self) {
        for Located { place, issuers } in others.headers.values() {
            self.header(place.clone()).extend(issuers);
        }
        for (name, issuers) in &others.params {
            self.params.entry(name.clone()).or_default().extend(issuers);
        }
        for (name, issuers) in &others.cookies {
            self.cookies.entry(name.clone()).or_default().extend(issuers);
        }
    }

    /// Header fields.
    pub fn headers(&self) -> impl Iterator<Item = &Located<HeaderLocation>> {
        self.headers.values()
    }

    /// Parameters of the query.
    pub fn params(&self) -> impl Iterator<Item = (&Text, &Issuers)> {
        self.params.iter()
    }

    /// Cookies.
    pub fn cookies(&self) -> impl Iterator<Item = (&Text, &Issuers)> {
        self.cookies.iter()
    }
}
