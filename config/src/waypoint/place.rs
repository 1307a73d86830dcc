//! Where connections lead, by where they were going (a listener's `filter_chain_matcher`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::{Service, Text};

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// To the chain of this name.
    Chain(Text),
    /// That depends.
    Depends(Box<Places>),
    /// Nowhere, and why: what is asked there is not understood.
    Closed(Text),
}

/// Places, and what decides between them. Where nothing fits, `otherwise`; where there is none, whatever was asked before decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Places {
    /// The host and port that the tunnel was opened for, as its client wrote it.
    Authority {
        /// By name.
        by: BTreeMap<String, Place>,
        /// For others.
        otherwise: Option<Place>,
    },
    /// The address that it was going to: the narrowest range that has it, and of two as narrow the first.
    Address {
        /// Ranges.
        by: Vec<(Vec<IpNet>, Place)>,
        /// For others.
        otherwise: Option<Place>,
    },
    /// The port that it was going to.
    Port {
        /// By number.
        by: BTreeMap<u16, Place>,
        /// For others.
        otherwise: Option<Place>,
    },
    /// What it speaks, by its first bytes.
    Protocol {
        /// HTTP of any version.
        http: Option<Place>,
        /// Anything else.
        otherwise: Option<Place>,
    },
}

/// Where a connection was going.
#[derive(Clone, Copy, Debug)]
pub struct Going<'a> {
    /// What the tunnel was opened for, as its client wrote it.
    pub authority: Option<&'a str>,
    /// The address that this is.
    pub to: SocketAddr,
}

/// Where a connection leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead<'p> {
    /// To this chain.
    Chain(&'p Text),
    /// To one of these, by what it speaks; none: nowhere.
    Protocol {
        /// HTTP of any version.
        http: Option<&'p Text>,
        /// Anything else.
        other: Option<&'p Text>,
    },
    /// Nowhere, and why.
    Closed(&'p Text),
}

impl Place {
    /// Where a connection leads; none: nowhere that there is.
    pub fn lead(&self, going: &Going<'_>) -> Option<Lead<'_>> {
        match self {
            Self::Chain(name) => Some(Lead::Chain(name)),
            Self::Closed(why) => Some(Lead::Closed(why)),
            Self::Depends(places) => places.lead(going),
        }
    }

    /// Whether one of a service's addresses and ports leads anywhere.
    pub fn stands_before(&self, service: &Service) -> bool {
        let leads = |address: IpAddr, port: u16| {
            let authority = format!("{}:{port}", service.hostname);
            let going = Going {
                authority: Some(&authority),
                to: SocketAddr::new(address, port),
            };
            self.lead(&going).is_some()
        };
        let ports = || service.ports.iter().map(|port| port.port);
        let mut vips = service.vips.iter().map(|vip| vip.address);
        vips.any(|address| ports().any(|port| leads(address, port)))
    }

    /// The chains that it may lead to.
    pub fn chains<'p>(&'p self, found: &mut dyn FnMut(&'p Text)) {
        match self {
            Self::Chain(name) => found(name),
            Self::Closed(_) => {}
            Self::Depends(places) => places.each(&mut |place| place.chains(found)),
        }
    }

    fn chain(&self, going: &Going<'_>) -> Option<&Text> {
        match self.lead(going)? {
            Lead::Chain(name) => Some(name),
            // What it speaks is asked once.
            Lead::Protocol { .. } | Lead::Closed(_) => None,
        }
    }
}

impl Places {
    fn lead(&self, going: &Going<'_>) -> Option<Lead<'_>> {
        let (by, otherwise) = match self {
            Self::Authority { by, otherwise } => (going.authority.and_then(|name| by.get(name)), otherwise),
            Self::Port { by, otherwise } => (by.get(&going.to.port()), otherwise),
            Self::Address { by, otherwise } => {
                let within = narrowest(by, going.to.ip().to_canonical()).into_iter();
                let found = within.filter_map(|place| place.lead(going)).next();
                return found.or_else(|| otherwise.as_ref()?.lead(going));
            }
            Self::Protocol { http, otherwise } => {
                let other = otherwise.as_ref().and_then(|place| place.chain(going));
                let http = http.as_ref().and_then(|place| place.chain(going));
                return Some(Lead::Protocol {
                    http: http.or(other),
                    other,
                });
            }
        };
        by.and_then(|place| place.lead(going))
            .or_else(|| otherwise.as_ref()?.lead(going))
    }

    fn each<'p>(&'p self, found: &mut dyn FnMut(&'p Place)) {
        match self {
            Self::Authority { by, otherwise } => by.values().chain(otherwise).for_each(found),
            Self::Address { by, otherwise } => by.iter().map(|(_, place)| place).chain(otherwise).for_each(found),
            Self::Port { by, otherwise } => by.values().chain(otherwise).for_each(found),
            Self::Protocol { http, otherwise } => http.iter().chain(otherwise).for_each(found),
        }
    }
}

/// The places whose ranges have an address, the narrowest first: one that leads nowhere leaves it to the next (xDS `IPMatcher`).
fn narrowest(by: &[(Vec<IpNet>, Place)], address: IpAddr) -> Vec<&Place> {
    let width = |ranges: &[IpNet]| {
        let has_it = ranges.iter().filter(|range| range.contains(&address));
        has_it.map(IpNet::prefix_len).max()
    };
    let mut found: Vec<_> = by
        .iter()
        .filter_map(|(ranges, place)| Some((width(ranges)?, place)))
        .collect();
    found.sort_by_key(|(width, _)| std::cmp::Reverse(*width));
    found.into_iter().map(|(_, place)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(name: &str) -> Place {
        Place::Chain(name.into())
    }

    fn ports(of: &[(u16, &str)]) -> Place {
        let by = of.iter().map(|(port, name)| (*port, chain(name))).collect();
        Place::Depends(Box::new(Places::Port { by, otherwise: None }))
    }

    fn ranges(by: Vec<(&str, Place)>, otherwise: Option<Place>) -> Place {
        let by = by
            .into_iter()
            .map(|(range, place)| (vec![range.parse().unwrap()], place));
        let by = by.collect();
        Place::Depends(Box::new(Places::Address { by, otherwise }))
    }

    fn lead<'p>(place: &'p Place, authority: Option<&str>, to: &str) -> Option<Lead<'p>> {
        let to = to.parse().unwrap();
        place.lead(&Going { authority, to })
    }

    #[test]
    fn the_narrowest_range_that_leads_somewhere_decides() {
        let place = ranges(
            vec![
                ("10.0.0.0/8", ports(&[(80, "wide"), (81, "wide-81")])),
                ("10.1.0.0/16", ports(&[(80, "narrow")])),
                ("10.1.0.1/32", ports(&[(82, "one")])),
            ],
            Some(chain("rest")),
        );
        for (to, expected) in [
            ("10.1.0.1:82", "one"),
            ("10.1.0.1:80", "narrow"),
            ("10.1.0.1:81", "wide-81"),
            ("10.2.0.1:80", "wide"),
            ("10.2.0.1:82", "rest"),
            ("11.0.0.1:80", "rest"),
            ("[::ffff:10.2.0.1]:80", "wide"),
        ] {
            assert_eq!(lead(&place, None, to), Some(Lead::Chain(&expected.into())), "{to}");
        }
        let closed = ranges(vec![("10.0.0.0/8", ports(&[(80, "a")]))], None);
        assert_eq!(lead(&closed, None, "10.0.0.1:81"), None);
    }

    #[test]
    fn what_the_tunnel_was_opened_for_comes_before_the_address() {
        let by = BTreeMap::from([("web.test:80".to_owned(), chain("named"))]);
        let otherwise = Some(ranges(vec![("10.0.0.1/32", chain("addressed"))], None));
        let place = Place::Depends(Box::new(Places::Authority { by, otherwise }));
        let named = lead(&place, Some("web.test:80"), "10.0.0.1:80");
        assert_eq!(named, Some(Lead::Chain(&"named".into())));
        for authority in [Some("10.0.0.1:80"), None] {
            let found = lead(&place, authority, "10.0.0.1:80");
            assert_eq!(found, Some(Lead::Chain(&"addressed".into())));
        }
    }

    #[test]
    fn what_is_spoken_decides_where_nothing_else_does() {
        let place = Place::Depends(Box::new(Places::Protocol {
            http: Some(chain("h")),
            otherwise: Some(chain("t")),
        }));
        let (http, other): (Text, Text) = ("h".into(), "t".into());
        assert_eq!(
            lead(&place, None, "10.0.0.1:1"),
            Some(Lead::Protocol {
                http: Some(&http),
                other: Some(&other)
            })
        );
        let mut chains = Vec::new();
        place.chains(&mut |name| chains.push(name.to_string()));
        assert_eq!(chains, ["h", "t"]);
    }

    #[test]
    fn what_is_not_understood_leads_nowhere() {
        let place = ranges(vec![("10.0.0.1/32", Place::Closed("odd".into()))], Some(chain("rest")));
        assert_eq!(lead(&place, None, "10.0.0.1:80"), Some(Lead::Closed(&"odd".into())));
        assert_eq!(lead(&place, None, "10.0.0.2:80"), Some(Lead::Chain(&"rest".into())));
    }
}
