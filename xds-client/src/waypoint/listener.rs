//! `envoy.config.listener.v3.Listener`. One says what is served: `main_internal`, whose matcher leads to its chains. The others are wiring.

use std::sync::Arc;

use prost::{Message, Name};
use prost_reflect::DynamicMessage;
use underpass_config::Text;
use underpass_config::waypoint::{Chain, Place};

use super::inspection::{ContentHash, inspect, inspect_bytes, type_name};
use super::refusal::{At, Refused, Untranslated, each};
use super::values::unpack;
use super::wiring::{self, Kind};
use super::{chain, matcher};
use crate::proto::envoy::config::listener::v3 as wire;
use crate::proto::envoy::extensions::filters::listener as inspectors;

/// The listener that says what is served.
pub(super) const MAIN: &str = "main_internal";

/// What is around the chains of `main_internal`.
#[derive(Debug)]
pub(super) struct Frame {
    /// If it is not understood, nothing can be served.
    pub(super) checked: Result<(), Refused>,
    /// Where connections lead.
    pub(super) place: Place,
    /// Branches of that which are closed.
    pub(super) closed: Vec<Refused>,
}

/// A chain that is not translated yet: whether it has to be, its hash says.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) name: Text,
    pub(super) hash: ContentHash,
    wire: wire::FilterChain,
    unknown: Vec<String>,
}

impl Unread {
    /// The chain of this name, of its bytes.
    pub(super) fn of(name: &Text, bytes: &[u8]) -> Result<Self, Refused> {
        let wire = wire::FilterChain::decode(bytes);
        let wire = wire.map_err(|error| Refused::new("", format!("can't be decoded: {error}")))?;
        let message = inspect_bytes(&wire::FilterChain::full_name(), bytes).map_err(|why| Refused::new("", why))?;
        let inspected = inspect(&message);
        Ok(Self {
            name: name.clone(),
            hash: inspected.hash,
            unknown: inspected.unknown,
            wire,
        })
    }

    /// Translates it.
    pub(super) fn read(&self) -> (Result<Chain, Untranslated>, Vec<Untranslated>) {
        let mut left_out = Vec::new();
        let chain = self.understood(&mut left_out);
        let of = |refused: Refused| refused.of(&self.name);
        (chain.map_err(of), left_out.into_iter().map(of).collect())
    }

    /// Fields that are not known close the chain, but for those of what only tells of requests. Of spans nobody is told then: it could be of too many, or too much.
    fn understood(&self, left_out: &mut Vec<Refused>) -> Result<Chain, Refused> {
        for path in &self.unknown {
            let refused = Refused::new(path.as_str(), "is not known");
            match chain::only_tells(path) {
                true => left_out.push(refused),
                false => return Err(refused),
            }
        }
        let mut chain = chain::translate(&self.wire, left_out)?;
        if self.unknown.iter().any(|path| chain::is_of_tracing(path))
            && let Chain::Http(http) = &mut chain
            && let Some(table) = Arc::get_mut(&mut http.table)
        {
            table.tracing = None;
        }
        Ok(chain)
    }
}

impl Frame {
    /// That of a listener, twice.
    pub(super) fn of(wire: &wire::Listener, message: &DynamicMessage) -> Self {
        let inspectors = each("listener_filters", &wire.listener_filters, check_inspector);
        let known = wiring::known(Kind::Listener, MAIN).unwrap_or_default();
        let mut checked = wiring::check(message, known).and(inspectors.map(|_| ()));
        let mut closed = Vec::new();
        let place = match &wire.filter_chain_matcher {
            Some(wire) => {
                for path in field(message, "filter_chain_matcher")
                    .iter()
                    .flat_map(|matcher| inspect(matcher).unknown)
                {
                    checked = checked.and(Err(Refused::new(path, "is not known")).at("filter_chain_matcher"));
                }
                matcher::translate(wire, &mut closed)
            }
            // A waypoint that nothing is bound to.
            None => Place::Closed("nothing is served".into()),
        };
        Self { checked, place, closed }
    }
}

/// What Envoy finds out about a connection before it is led anywhere: where it was going, and what it speaks. Here both are found out where they are asked
/// for.
fn check_inspector(wire: &wire::ListenerFilter) -> Result<(), Refused> {
    let wire::ListenerFilter {
        // A label: the type decides.
        name: _,
        config_type,
        // Ports whose chain says what is spoken.
        filter_disabled: _,
    } = wire;
    let any = config_type
        .as_ref()
        .map(|wire::listener_filter::ConfigType::TypedConfig(any)| any);
    let known = |any| match type_name(any).strip_prefix("envoy.extensions.filters.listener.") {
        Some("original_dst.v3.OriginalDst") => {
            let inspectors::original_dst::v3::OriginalDst {} = unpack(Some(any))?;
            Ok(())
        }
        Some("http_inspector.v3.HttpInspector") => {
            let inspectors::http_inspector::v3::HttpInspector {} = unpack(Some(any))?;
            Ok(())
        }
        Some("tls_inspector.v3.TlsInspector") => {
            let inspectors::tls_inspector::v3::TlsInspector {
                // How much of a connection it begins with.
                initial_read_buffer_size: _,
            } = unpack(Some(any))?;
            Ok(())
        }
        _ => Err(Refused::unsupported("", format!("a `{}`", type_name(any)))),
    };
    any.ok_or_else(|| Refused::missing(""))
        .and_then(known)
        .at("typed_config")
}

fn field(message: &DynamicMessage, name: &str) -> Option<DynamicMessage> {
    let value = message.get_field_by_name(name)?.into_owned();
    value.as_message().cloned()
}
