//! `filter_chain_matcher` of `main_internal`: by authority, address, port and protocol to a chain.
//!
//! A branch that is not understood is closed; the others lead where they lead.

use std::collections::BTreeMap;

use ipnet::IpNet;
use underpass_config::Text;
use underpass_config::waypoint::{Place, Places};

use super::inspection::type_name;
use super::refusal::{At, Refused, each};
use super::values::{range, unpack};
use crate::proto::envoy::extensions::matching::common_inputs::network::v3::FilterStateInput;
use crate::proto::xds::core::v3 as base;
use crate::proto::xds::r#type::matcher::v3 as wire;
use wire::ip_matcher::IpRangeMatcher;
use wire::matcher::matcher_tree::TreeType;
use wire::matcher::on_match::OnMatch as Then;
use wire::matcher::{MatcherTree, MatcherType, OnMatch};

const INPUTS: &str = "envoy.extensions.matching.common_inputs.network.v3.";
/// What the tunnel was opened for, as the listener of HBONE keeps it.
const AUTHORITY: &str = "io.istio.connect_authority";
/// Levels of a tree; istiod's have four.
const DEEPEST: usize = 8;

/// What closes a branch is told to `refused`.
pub(super) fn translate(wire: &wire::Matcher, refused: &mut Vec<Refused>) -> Place {
    let mut reading = Reading { refused };
    reading.matcher(wire, 0).unwrap_or_else(|why| reading.closed(why))
}

struct Reading<'r> {
    refused: &'r mut Vec<Refused>,
}

/// What a tree asks.
enum Input {
    Authority,
    Address,
    Port,
    Protocol,
}

impl Reading<'_> {
    fn closed(&mut self, why: Refused) -> Place {
        let text = why.to_string();
        self.refused.push(why);
        Place::Closed(text.into())
    }

    fn matcher(&mut self, wire: &wire::Matcher, depth: usize) -> Result<Place, Refused> {
        let wire::Matcher {
            matcher_type,
            on_no_match,
        } = wire;
        if depth >= DEEPEST {
            return Err(Refused::new("", format!("is deeper than {DEEPEST} levels")));
        }
        let Some(MatcherType::MatcherTree(MatcherTree { input, tree_type })) = matcher_type else {
            return Err(Refused::missing("matcher_tree"));
        };
        let input = input_of(input.as_ref()).at("matcher_tree.input")?;
        let otherwise = on_no_match.as_deref().map(|then| self.then(then, "on_no_match", depth));
        let places = match (input, tree_type) {
            (Input::Address, Some(TreeType::CustomMatch(custom))) => {
                let wire::IpMatcher { range_matchers } =
                    unpack(custom.typed_config.as_ref()).at("matcher_tree.custom_match.typed_config")?;
                let mut by = Vec::with_capacity(range_matchers.len());
                for (index, one) in range_matchers.iter().enumerate() {
                    by.push(
                        self.of_ranges(one, depth)
                            .item(index)
                            .at("matcher_tree.custom_match.range_matchers")?,
                    );
                }
                Places::Address { by, otherwise }
            }
            (Input::Authority, Some(TreeType::ExactMatchMap(map))) => {
                let mut by = BTreeMap::new();
                for (name, then) in &map.map {
                    by.insert(name.clone(), self.then(then, name, depth));
                }
                Places::Authority { by, otherwise }
            }
            (Input::Port, Some(TreeType::ExactMatchMap(map))) => {
                let mut by = BTreeMap::new();
                for (text, then) in &map.map {
                    let port = text.parse::<u16>();
                    let port = port.map_err(|_| Refused::new("matcher_tree", format!("has the port `{text}`")))?;
                    by.insert(port, self.then(then, text, depth));
                }
                Places::Port { by, otherwise }
            }
            (Input::Protocol, Some(TreeType::ExactMatchMap(map))) => Places::Protocol {
                http: self.of_protocols(&map.map, depth)?,
                otherwise,
            },
            _ => {
                return Err(Refused::new(
                    "matcher_tree",
                    "is of a kind that does not go with its input",
                ));
            }
        };
        Ok(Place::Depends(Box::new(places)))
    }

    fn of_ranges(&mut self, wire: &IpRangeMatcher, depth: usize) -> Result<(Vec<IpNet>, Place), Refused> {
        let IpRangeMatcher { ranges, on_match } = wire;
        let ranges = each("ranges", ranges, |wire: &base::CidrRange| {
            let base::CidrRange {
                address_prefix,
                prefix_len,
            } = wire;
            range(address_prefix, *prefix_len)
        })?;
        let then = on_match.as_ref().ok_or_else(|| Refused::missing("on_match"))?;
        let name = ranges.first().map_or_else(String::new, IpNet::to_string);
        Ok((ranges, self.then(then, &name, depth)))
    }

    /// Where HTTP leads: both of its protocols to the same.
    fn of_protocols(&mut self, map: &BTreeMap<String, OnMatch>, depth: usize) -> Result<Option<Place>, Refused> {
        let mut http: Option<Place> = None;
        for (protocol, then) in map {
            if !["'http/1.1'", "'http/1.0'", "'h2c'"].contains(&protocol.as_str()) {
                return Err(Refused::unsupported(
                    "matcher_tree",
                    format!("by the protocol {protocol}"),
                ));
            }
            let place = self.then(then, protocol, depth);
            if http.as_ref().is_some_and(|before| *before != place) {
                return Err(Refused::new(
                    "matcher_tree",
                    "tells protocols of HTTP apart, which is not supported",
                ));
            }
            http = Some(place);
        }
        Ok(http)
    }

    fn then(&mut self, wire: &OnMatch, name: &str, depth: usize) -> Place {
        let place = match &wire.on_match {
            Some(Then::Matcher(inner)) => self.matcher(inner, depth + 1),
            Some(Then::Action(action)) => chain(action).map(Place::Chain),
            None => Err(Refused::missing("on_match")),
        };
        place.at(&format!("[{name}]")).unwrap_or_else(|why| self.closed(why))
    }
}

fn input_of(wire: Option<&base::TypedExtensionConfig>) -> Result<Input, Refused> {
    let any = wire.and_then(|wire| wire.typed_config.as_ref());
    let any = any.ok_or_else(|| Refused::missing("typed_config"))?;
    match type_name(any).strip_prefix(INPUTS) {
        Some("DestinationIPInput") => Ok(Input::Address),
        Some("DestinationPortInput") => Ok(Input::Port),
        Some("ApplicationProtocolInput") => Ok(Input::Protocol),
        Some("FilterStateInput") => {
            let FilterStateInput { key } = unpack(Some(any)).at("typed_config")?;
            match key == AUTHORITY {
                true => Ok(Input::Authority),
                false => Err(Refused::unsupported("typed_config.key", format!("`{key}`"))),
            }
        }
        _ => Err(Refused::unsupported("typed_config", format!("a `{}`", type_name(any)))),
    }
}

/// The name of a chain.
fn chain(action: &base::TypedExtensionConfig) -> Result<Text, Refused> {
    let base::TypedExtensionConfig {
        // The same again.
        name: _,
        typed_config,
    } = action;
    let any = typed_config
        .as_ref()
        .ok_or_else(|| Refused::missing("action.typed_config"))?;
    if type_name(any) != "google.protobuf.StringValue" {
        return Err(Refused::unsupported(
            "action.typed_config",
            format!("a `{}`", type_name(any)),
        ));
    }
    let name = <String as prost::Message>::decode(&*any.value);
    let name = name.map_err(|error| Refused::new("action.typed_config", error.to_string()))?;
    Ok(name.as_str().into())
}
