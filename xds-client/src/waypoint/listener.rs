//! `envoy.config.listener.v3.Listener`. One says what is served: `main_internal`, whose matcher leads to its chains. The others are wiring.

use prost_reflect::{DynamicMessage, Value};
use underpass_config::Text;
use underpass_config::waypoint::{Chain, Place};

use super::inspection::{ContentHash, inspect, type_name};
use super::refusal::{At, Refused, Untranslated, each};
use super::values::unpack;
use super::wiring::{self, Kind};
use super::{chain, matcher};
use crate::proto::envoy::config::listener::v3 as wire;
use crate::proto::envoy::extensions::filters::listener as inspectors;

/// The listener that says what is served.
pub(super) const MAIN: &str = "main_internal";

/// What a listener comes to.
#[derive(Debug)]
pub(super) enum Translated {
    /// It is wiring, as it is known, or it is not, and nothing can be served.
    Wiring(Result<(), Refused>),
    /// What is served.
    Main(Box<Main>),
    /// Nobody knows what it is.
    Unknown,
}

/// What `main_internal` comes to.
#[derive(Debug)]
pub(super) struct Main {
    /// What is around the chains: if it is not understood, nothing can be served.
    pub(super) frame: Result<(), Refused>,
    /// Where connections lead.
    pub(super) place: Place,
    /// Branches of that which are closed.
    pub(super) closed: Vec<Refused>,
    /// The chains, in their order.
    pub(super) chains: Vec<Unread>,
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
    /// Translates it.
    pub(super) fn read(&self) -> (Result<Chain, Untranslated>, Vec<Untranslated>) {
        let mut left_out = Vec::new();
        let chain = self.understood(&mut left_out);
        let of = |refused: Refused| refused.of(&self.name);
        (chain.map_err(of), left_out.into_iter().map(of).collect())
    }

    /// Fields that are not known close the chain, but for those of what only tells of requests.
    fn understood(&self, left_out: &mut Vec<Refused>) -> Result<Chain, Refused> {
        for path in &self.unknown {
            let refused = Refused::new(path.as_str(), "is not known");
            match chain::only_tells(path) {
                true => left_out.push(refused),
                false => return Err(refused),
            }
        }
        chain::translate(&self.wire, left_out)
    }
}

pub(super) fn translate(wire: wire::Listener, message: &DynamicMessage) -> Translated {
    let Some(known) = wiring::known(Kind::Listener, &wire.name) else {
        return Translated::Unknown;
    };
    if wire.name != MAIN {
        return Translated::Wiring(wiring::check(message, known));
    }
    let inspectors = each("listener_filters", &wire.listener_filters, check_inspector);
    let mut frame = wiring::check(message, known).and(inspectors.map(|_| ()));
    let mut closed = Vec::new();
    let place = match &wire.filter_chain_matcher {
        Some(wire) => {
            for path in field(message, "filter_chain_matcher")
                .iter()
                .flat_map(|matcher| inspect(matcher).unknown)
            {
                frame = frame.and(Err(Refused::new(path, "is not known")).at("filter_chain_matcher"));
            }
            matcher::translate(wire, &mut closed)
        }
        // A waypoint that nothing is bound to.
        None => Place::Closed("nothing is served".into()),
    };
    let messages = list(message, "filter_chains");
    let chains = wire.filter_chains.into_iter().zip(messages).map(|(wire, message)| {
        let inspected = inspect(&message);
        Unread {
            name: wire.name.as_str().into(),
            hash: inspected.hash,
            unknown: inspected.unknown,
            wire,
        }
    });
    Translated::Main(Box::new(Main {
        frame,
        place,
        closed,
        chains: chains.collect(),
    }))
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

fn list(message: &DynamicMessage, name: &str) -> Vec<DynamicMessage> {
    match message.get_field_by_name(name).as_deref() {
        Some(Value::List(items)) => items.iter().filter_map(|item| item.as_message().cloned()).collect(),
        _ => Vec::new(),
    }
}
