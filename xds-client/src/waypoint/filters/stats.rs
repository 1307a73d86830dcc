//! `stats.PluginConfig`: Istio's metrics, and what differs from them (`Telemetry.metrics`). What is not understood of it is told of, and closes nothing.

use std::time::Duration;

use underpass_config::Text;
use underpass_config::http::{AddedLabel, Format, MetricSettings, RequestMetric, Stage};

use super::super::refusal::{At, Refused, each, only_if};
use super::super::values::said;
use crate::proto::stats as wire;

/// Istio's names of its metrics, as the filter has them. Those of TCP, which requests don't have, are known, too.
const METRICS: [(&str, &[RequestMetric]); 11] = [
    ("", &RequestMetric::ALL),
    ("requests_total", &[RequestMetric::Count]),
    ("request_duration_milliseconds", &[RequestMetric::Duration]),
    ("request_bytes", &[RequestMetric::RequestBytes]),
    ("response_bytes", &[RequestMetric::ResponseBytes]),
    ("request_messages_total", &[RequestMetric::RequestMessages]),
    ("response_messages_total", &[RequestMetric::ResponseMessages]),
    ("tcp_sent_bytes_total", &[]),
    ("tcp_received_bytes_total", &[]),
    ("tcp_connections_opened_total", &[]),
    ("tcp_connections_closed_total", &[]),
];

/// What a waypoint's expressions are in our words. They are CEL; of it istiod's users have attributes.
const ATTRIBUTES: [(&str, &str); 5] = [
    ("request.host", "%REQ(:authority)%"),
    ("request.method", "%REQ(:method)%"),
    ("request.path", "%REQ(:path)%"),
    ("request.useragent", "%REQ(user-agent)%"),
    ("request.id", "%REQ(x-request-id)%"),
];

/// What metrics are changed by, and how often open connections are counted.
pub(in super::super) fn translate(wire: &wire::PluginConfig) -> Result<(MetricSettings, Option<Duration>), Refused> {
    let wire::PluginConfig {
        // A request's host is not taken for a service's name here, either.
        disable_host_header_fallback: _,
        tcp_reporting_duration,
        metrics,
        reporter,
    } = wire;
    let is_waypoint = *reporter == wire::Reporter::ServerGateway as i32;
    only_if(is_waypoint, "reporter", "is not SERVER_GATEWAY, which a waypoint is")?;
    let interval = said("tcp_reporting_duration", tcp_reporting_duration.as_ref())?;
    let mut settings = MetricSettings::default();
    each("metrics", metrics, |wire| change(wire, &mut settings))?;
    Ok((settings, interval))
}

fn change(wire: &wire::MetricConfig, settings: &mut MetricSettings) -> Result<(), Refused> {
    let wire::MetricConfig {
        dimensions,
        name,
        tags_to_remove,
        drop,
    } = wire;
    let metrics = METRICS.iter().find(|(known, _)| known == name);
    let (_, metrics) = metrics.ok_or_else(|| Refused::unsupported("name", format!("`{name}`")))?;
    if *drop {
        settings.disabled.extend(*metrics);
    }
    for tag in tags_to_remove {
        let removed = metrics.iter().map(|metric| (*metric, Text::from(tag.as_str())));
        settings.removed.extend(removed);
    }
    for (label, expression) in dimensions {
        let value = value_of(expression).at(&format!("dimensions[{label}]"))?;
        settings.added.push(AddedLabel {
            metrics: metrics.to_vec(),
            name: label.as_str().into(),
            value,
        });
    }
    Ok(())
}

/// An attribute, a header field, or a text in quotes.
fn value_of(expression: &str) -> Result<Format, Refused> {
    let expression = expression.trim();
    let quoted = |text: &str| {
        let inner = ['\'', '"']
            .iter()
            .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote));
        inner
            .filter(|inner| !inner.contains(['\'', '"', '\\']))
            .map(str::to_owned)
    };
    let attribute = ATTRIBUTES.iter().find(|(known, _)| *known == expression);
    let header = expression
        .strip_prefix("request.headers[")
        .and_then(|rest| rest.strip_suffix(']'));
    let text = match (attribute, header.and_then(quoted), quoted(expression)) {
        (Some((_, operator)), _, _) => (*operator).to_owned(),
        (None, Some(name), _) => format!("%REQ({name})%"),
        (None, None, Some(fixed)) => fixed.replace('%', "%%"),
        _ => return Err(Refused::unsupported("", format!("`{expression}`"))),
    };
    Format::parse(&text, Stage::Request).map_err(|why| Refused::new("", why.to_string()))
}
