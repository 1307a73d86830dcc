//! Whether one policy matches one connection. The meaning of every level, empty ones included, is in the table at the
//! head of [`super`].

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

use super::{Action, Authorization, Group, Match, Rule, ServiceAccountMatch, StringMatch};
use crate::Identity;
use crate::identity::SPIFFE_SCHEME;

/// What is known of a connection when it is to be authorized.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// The verified identity of the source; `None` if it has none.
    pub source: Option<&'a Identity>,
    /// The address the connection comes from.
    pub source_ip: IpAddr,
    /// Where it goes: the endpoint's address and port, not the service's.
    pub destination: SocketAddr,
}

/// [`ConnectionFacts`] made ready to be compared many times.
pub(crate) struct Facts<'a> {
    source: Option<&'a Identity>,
    /// Written out when the first policy asks for it.
    principal: OnceCell<String>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Facts<'a> {
    pub(crate) fn new(connection: &ConnectionFacts<'a>) -> Self {
        Self {
            source: connection.source,
            principal: OnceCell::new(),
            source_ip: connection.source_ip.to_canonical(),
            destination_ip: connection.destination.ip().to_canonical(),
            destination_port: connection.destination.port(),
        }
    }

    fn namespace_is(&self, pattern: &StringMatch) -> bool {
        self.source.is_some_and(|source| pattern.matches(&source.namespace))
    }

    fn service_account_is(&self, pattern: &ServiceAccountMatch) -> bool {
        self.source.is_some_and(|source| {
            source.namespace == pattern.namespace && source.service_account == pattern.service_account
        })
    }

    fn principal_is(&self, pattern: &StringMatch) -> bool {
        self.source.is_some_and(|source| {
            let principal = self.principal.get_or_init(|| source.principal());
            pattern.matches_principal(principal)
        })
    }
}

impl Authorization {
    pub(crate) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.groups.iter().any(|group| group.matches(facts, self.action))
    }
}

impl Group {
    fn matches(&self, facts: &Facts<'_>, action: Action) -> bool {
        self.rules.iter().all(|rule| rule.matches(facts, action))
    }
}

impl Rule {
    fn matches(&self, facts: &Facts<'_>, action: Action) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.matches(facts, action))
    }
}

impl Match {
    fn matches(&self, facts: &Facts<'_>, action: Action) -> bool {
        // Taken apart by name, so that a new field can't be forgotten here.
        let Self {
            namespaces,
            not_namespaces,
            service_accounts,
            not_service_accounts,
            principals,
            not_principals,
            source_ips,
            not_source_ips,
            destination_ips,
            not_destination_ips,
            destination_ports,
            not_destination_ports,
        } = self;
        if *self == Self::default() {
            return action == Action::Deny;
        }
        holds(namespaces, not_namespaces, |pattern| facts.namespace_is(pattern))
            && holds(service_accounts, not_service_accounts, |pattern| {
                facts.service_account_is(pattern)
            })
            && holds(principals, not_principals, |pattern| facts.principal_is(pattern))
            && holds(source_ips, not_source_ips, |net| contains(net, facts.source_ip))
            && holds(destination_ips, not_destination_ips, |net| {
                contains(net, facts.destination_ip)
            })
            && holds(destination_ports, not_destination_ports, |&port| {
                port == facts.destination_port
            })
    }
}

/// One field: any of `positive` (if there are any), and none of `negative`.
fn holds<T>(positive: &[T], negative: &[T], is: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&is)) && !negative.iter().any(&is)
}

/// `address` is canonical, so a network written in IPv4-mapped form has to be read as the IPv4 network that it is.
fn contains(net: &IpNet, address: IpAddr) -> bool {
    match (net, address) {
        (IpNet::V4(net), IpAddr::V4(address)) => net.contains(&address),
        (IpNet::V6(net), IpAddr::V6(address)) => net.contains(&address),
        (IpNet::V6(net), IpAddr::V4(address)) => {
            let mapped = net.addr().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96));
            mapped
                .and_then(|(v4, length)| Ipv4Net::new(v4, length).ok())
                .is_some_and(|v4| v4.contains(&address))
        }
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    }
}

impl StringMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(whole) => text == &**whole,
            Self::Prefix(start) => text.starts_with(&**start),
            Self::Suffix(end) => text.ends_with(&**end),
            Self::Presence => !text.is_empty(),
        }
    }

    /// Like [`matches`](Self::matches) for a principal, which is without scheme where the pattern may have one. A
    /// suffix that reaches back to the scheme is the whole principal.
    fn matches_principal(&self, principal: &str) -> bool {
        match self {
            Self::Exact(pattern) => principal == pattern.strip_prefix(SPIFFE_SCHEME).unwrap_or(pattern),
            Self::Prefix(pattern) => principal.starts_with(pattern.strip_prefix(SPIFFE_SCHEME).unwrap_or(pattern)),
            Self::Suffix(pattern) => match pattern.strip_prefix(SPIFFE_SCHEME) {
                Some(whole) => principal == whole,
                None => principal.ends_with(&**pattern),
            },
            Self::Presence => !principal.is_empty(),
        }
    }
}
