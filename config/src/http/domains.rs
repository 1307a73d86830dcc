//! Which virtual host a request is for, by the host it names (`config.route.v3.VirtualHost.domains`).
//!
//! Looked for in this order: the exact name, the longest `*suffix`, the longest `prefix*`, `*`. Case does not count, nor does the port
//! that a client may have added (Envoy's `ignore_port_in_host_matching`, as istiod sets it).

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use foldhash::quality::RandomState;

/// One domain of a virtual host.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Domain {
    /// One host.
    Exact(String),
    /// `*.example.com`: what the star stands for is not empty.
    Suffix(String),
    /// `example.*`
    Prefix(String),
    /// `*`
    Any,
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// Why a text is no domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDomain {
    /// There is nothing.
    #[error("is empty")]
    Empty,
    /// A star in the middle, or several.
    #[error("has a star that is neither its first nor its last character")]
    Star,
    /// It has a port, which is not looked at.
    #[error("has a port, which is not compared")]
    Port,
}

impl std::str::FromStr for Domain {
    type Err = BadDomain;

    fn from_str(text: &str) -> Result<Self, BadDomain> {
        let text = text.to_ascii_lowercase();
        if text.is_empty() {
            return Err(BadDomain::Empty);
        }
        if without_port(&text).len() != text.len() {
            return Err(BadDomain::Port);
        }
        let domain = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => Self::Any,
            (Some(suffix), _) => Self::Suffix(suffix.to_owned()),
            (None, Some(prefix)) => Self::Prefix(prefix.to_owned()),
            (None, None) => Self::Exact(text),
        };
        let (Self::Exact(rest) | Self::Suffix(rest) | Self::Prefix(rest)) = &domain else {
            return Ok(domain);
        };
        if rest.contains('*') {
            return Err(BadDomain::Star);
        }
        Ok(domain)
    }
}

/// The host of an authority.
pub(super) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // An IPv6 address without a port ends in a bracket.
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// From domains to the places of virtual hosts.
#[derive(Clone, Default)]
pub(super) struct DomainIndex {
    exact: HashMap<String, usize, RandomState>,
    /// Longest first.
    suffixes: Vec<(String, usize)>,
    /// Longest first.
    prefixes: Vec<(String, usize)>,
    any: Option<usize>,
}

/// In the order of names.
impl fmt::Debug for DomainIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact: BTreeMap<_, _> = self.exact.iter().collect();
        let rest = (&self.suffixes, &self.prefixes, &self.any);
        f.debug_tuple("DomainIndex").field(&exact).field(&rest).finish()
    }
}

impl DomainIndex {
    /// Of `domains`, each with the place it stands for. The first of two equal ones is taken.
    pub(super) fn new<'d>(domains: impl IntoIterator<Item = (&'d Domain, usize)>) -> Self {
        let mut index = Self::default();
        for (domain, place) in domains {
            match domain {
                Domain::Exact(name) => {
                    index.exact.entry(name.clone()).or_insert(place);
                }
                Domain::Suffix(suffix) => index.suffixes.push((suffix.clone(), place)),
                Domain::Prefix(prefix) => index.prefixes.push((prefix.clone(), place)),
                Domain::Any => {
                    index.any.get_or_insert(place);
                }
            }
        }
        for list in [&mut index.suffixes, &mut index.prefixes] {
            list.sort_by_key(|(part, _)| std::cmp::Reverse(part.len()));
        }
        index
    }

    /// The place that `authority` stands for.
    pub(super) fn find(&self, authority: &str) -> Option<usize> {
        let is_lower = !authority.bytes().any(|b| b.is_ascii_uppercase());
        let lowered;
        let host = match is_lower {
            true => without_port(authority),
            false => {
                lowered = authority.to_ascii_lowercase();
                without_port(&lowered)
            }
        };
        let longer = |part: &str| host.len() > part.len();
        (self.exact.get(host).copied())
            .or_else(|| {
                let mut all = self.suffixes.iter();
                all.find(|(suffix, _)| longer(suffix) && host.ends_with(suffix.as_str()))
                    .map(|found| found.1)
            })
            .or_else(|| {
                let mut all = self.prefixes.iter();
                all.find(|(prefix, _)| longer(prefix) && host.starts_with(prefix.as_str()))
                    .map(|found| found.1)
            })
            .or(self.any)
    }
}
